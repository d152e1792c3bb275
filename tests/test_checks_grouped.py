"""Refusals of the grouped layouts, and of sizes that no kernel multiplies."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from call_arguments import K, N, grouped_arguments, nothing
from cases import place
from gemm_ladder import checks
from gemm_ladder.errors import InputError
from gemm_ladder.lab.operands import normal

GROUPED = {
    kind: (functools.partial(checks.operands, kind), functools.partial(checks.call, kind))
    for kind in ("contiguous", "masked")
}


# id: (layout, which argument, what it becomes, the refusal)
GROUPED_REFUSALS = {
    "b_2d": (
        "contiguous",
        "B",
        lambda b: b[0],
        "B has shape [136, 256]; 3 dimensions, [groups, n, k], are needed",
    ),
    "b_other_k": (
        "contiguous",
        "B",
        lambda b: nothing(3, N, 128),
        "B has shape [3, 136, 128]; [3, 136, 256] is needed: [groups, n, k] with A's k = 256",
    ),
    "b_other_groups": (
        "masked",
        "B",
        lambda b: nothing(4, N, K),
        "B has shape [4, 136, 256]; [3, 136, 256] is needed: [groups, n, k] with A's groups = 3, k = 256",
    ),
    "no_groups": ("contiguous", "B", lambda b: b[:0], "B has 0 groups; at least 1 is needed"),
    "no_k": (
        "masked",
        "A",
        lambda a: a[..., :0],
        "n is 136 and k is 0; both must be at least 1 (only max_m may be 0)",
    ),
    "a_2d": (
        "masked",
        "A",
        lambda a: a[0],
        "A has shape [6, 256]; 3 dimensions, [groups, max_m, k], are needed",
    ),
    "sfa_of_one_group": (
        "masked",
        "sfa",
        lambda sfa: sfa[0],
        "sfa has shape [6, 2]; [3, 6, 2] is needed: [groups, max_m, ceil(k / 128)] for groups = 3, "
        "max_m = 6, k = 256",
    ),
    "sfb_of_one_group": (
        "contiguous",
        "sfb",
        lambda sfb: sfb[0],
        "sfb has shape [2, 2]; [3, 2, 2] is needed: [groups, ceil(n / 128), ceil(k / 128)] for groups = 3, "
        "n = 136, k = 256",
    ),
    "out_flat": (
        "masked",
        "out",
        lambda out: out.flatten(0, 1),
        "out has shape [18, 136]; [3, 6, 136] is needed: [groups, max_m, n] for groups = 3, max_m = 6, "
        "n = 136",
    ),
    "indices_int64": ("contiguous", "m_indices", torch.Tensor.long, "m_indices is int64; int32 is needed"),
    "indices_short": (
        "contiguous",
        "m_indices",
        lambda x: x[1:],
        "m_indices has shape [4]; [5] is needed: [m] for m = 5",
    ),
    "indices_strided": (
        "contiguous",
        "m_indices",
        lambda x: torch.zeros(10, dtype=torch.int32)[::2],
        "m_indices has strides (2,); contiguous rows, strides (1,), are needed",
    ),
    "indices_none": (
        "contiguous",
        "m_indices",
        lambda x: None,
        "m_indices is of type NoneType; a torch.Tensor is needed",
    ),
    "indices_elsewhere": (
        "contiguous",
        "m_indices",
        lambda x: x.to("meta"),
        "A is on cpu and m_indices on meta; one device is needed for all",
    ),
    "counts_float": ("masked", "masked_m", torch.Tensor.float, "masked_m is float32; int32 is needed"),
    "counts_long": (
        "masked",
        "masked_m",
        lambda x: torch.zeros(4, dtype=torch.int32),
        "masked_m has shape [4]; [3] is needed: [groups] for groups = 3",
    ),
    "counts_2d": (
        "masked",
        "masked_m",
        lambda x: x[:, None],
        "masked_m has shape [3, 1]; [3] is needed: [groups] for groups = 3",
    ),
}


@pytest.mark.parametrize(
    ("layout", "which", "function", "message"), GROUPED_REFUSALS.values(), ids=GROUPED_REFUSALS
)
def test_refuses_grouped(layout, which, function, message, request):
    """checks.operands and checks.call refuse with the same sentence, unless only the former has to refuse."""
    for check in GROUPED[layout][: 1 if "no_k" in request.node.callspec.id else 2]:
        arguments = grouped_arguments(layout)
        arguments.change(which, function)
        with pytest.raises(InputError) as refusal:
            check(*arguments.values())
        assert str(refusal.value) == message


@pytest.mark.parametrize("layout", GROUPED)
def test_refuses_an_output_that_tells_the_groups(layout):
    arguments = grouped_arguments(layout)
    index = checks.ROWS[layout]
    arguments[index] = arguments["out"].view(-1).view(torch.int32)[: len(arguments[index])]
    for check in GROUPED[layout]:
        with pytest.raises(InputError) as refusal:
            check(*arguments.values())
        assert str(refusal.value) == f"out shares memory with {index}; memory of its own is needed"


@pytest.mark.parametrize(
    ("layout", "size", "message"),
    [
        ("dense", {"m": 2**31, "n": 8, "k": 128}, "m is 2147483648; less than 2^31 is needed"),
        ("dense", {"m": 1, "n": 8, "k": 2**31}, "k is 2147483648; less than 2^31 is needed"),
        (
            "contiguous",
            {"m": 1, "groups": 2**20, "n": 2**11, "k": 128},
            "groups * n is 2147483648; less than 2^31 is needed",
        ),
        (
            "masked",
            {"groups": 8, "max_m": 2**28, "n": 8, "k": 128},
            "groups * max_m is 2147483648; less than 2^31 is needed",
        ),
    ],
)
def test_sizes_that_no_kernel_multiplies(layout, size, message):
    with pytest.raises(InputError) as refusal:
        checks.supported(layout, size)
    assert str(refusal.value) == message
    checks.supported(layout, {name: min(extent, 1024) for name, extent in size.items()})


def test_misaligned_scales_are_converted():
    placed = place(operands := normal(np.random.default_rng(0), 8, N, K))
    (a, sfa), flat = placed.lhs, torch.empty(8 * 2 + 1)
    shifted = flat[1:].as_strided(sfa.shape, sfa.stride(), 1).copy_(sfa)
    assert shifted.data_ptr() % 16 and shifted.stride() == sfa.stride()
    given = checks.call("dense", (a, shifted), placed.rhs, placed.out)
    assert given.sfa.data_ptr() % 16 == 0 and torch.equal(given.sfa, torch.from_numpy(operands.sfa))


@pytest.mark.gpu
@pytest.mark.parametrize("which", ["A", "sfa", "B", "sfb", "out", "masked_m"])
def test_one_operand_on_the_cpu(which):
    call = grouped_arguments("masked")
    for name in ("A", "sfa", "B", "sfb", "out", "masked_m"):
        call.change(name, lambda x: x.cuda())
    assert checks.call("masked", *call.values())
    call.change(which, lambda x: x.cpu())
    with pytest.raises(InputError, match=r"on (cuda:0|cpu) and .* on (cuda:0|cpu); one device is needed"):
        checks.call("masked", *call.values())
