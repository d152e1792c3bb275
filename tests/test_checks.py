"""Every refusal says, in one sentence, what was given and what is needed, and leaves the output as it was."""

from __future__ import annotations

import re

import gemm_ladder as gl
import numpy as np
import pytest
import torch
from call_arguments import Arguments, K, M, N, columns_of_more, misaligned, nothing
from cases import place
from gemm_ladder import checks, scales
from gemm_ladder.checks import rules
from gemm_ladder.errors import InputError
from gemm_ladder.lab.operands import normal
from gemm_ladder.lab.surroundings import CANARY, UNWRITTEN

# id: (which argument, what it becomes, the refusal)
REFUSALS = {
    # structure
    "lhs_alone": ("lhs", lambda lhs: lhs[0], "lhs is of type Tensor; the pair (A, sfa) is needed"),
    "lhs_of_three": ("lhs", lambda lhs: (*lhs, lhs[1]), "lhs has 3 elements; the pair (A, sfa) is needed"),
    "rhs_none": ("rhs", lambda rhs: None, "rhs is of type NoneType; the pair (B, sfb) is needed"),
    "a_numpy": ("A", lambda a: np.zeros((M, K)), "A is of type ndarray; a torch.Tensor is needed"),
    "out_none": ("out", lambda out: None, "out is of type NoneType; a torch.Tensor is needed"),
    "sfb_sparse": (
        "sfb",
        lambda sfb: sfb.to_sparse(),
        "sfb has layout torch.sparse_coo; a dense tensor (torch.strided) is needed",
    ),
    # device
    "b_elsewhere": (
        "B",
        lambda b: b.to("meta"),
        "A is on cpu and B on meta; one device is needed for all",
    ),
    "out_elsewhere": (
        "out",
        lambda out: out.to("meta"),
        "A is on cpu and out on meta; one device is needed for all",
    ),
    # dtype
    "a_bf16": ("A", lambda a: a.to(torch.bfloat16), "A is bfloat16; float8_e4m3fn is needed"),
    "b_e5m2": ("B", lambda b: b.to(torch.float8_e5m2), "B is float8_e5m2; float8_e4m3fn is needed"),
    "sfa_conjugated": (
        "sfa",
        lambda sfa: torch.complex(sfa, sfa).conj(),
        "sfa is complex64; float32 is needed",
    ),
    "sfa_f64": ("sfa", lambda sfa: sfa.double(), "sfa is float64; float32 is needed"),
    "sfb_ue8m0": ("sfb", lambda sfb: sfb.to(torch.int32), "sfb is int32; float32 is needed"),
    "out_f32": ("out", lambda out: out.float(), "out is float32; bfloat16 is needed"),
    # shape
    "a_1d": ("A", lambda a: a[0], "A has shape [256]; 2 dimensions, [m, k], are needed"),
    "b_3d": ("B", lambda b: b[None], "B has shape [1, 136, 256]; 2 dimensions, [n, k], are needed"),
    "b_empty": ("B", lambda b: b[:0], "n is 0 and k is 256; both must be at least 1 (only m may be 0)"),
    "a_without_k": (
        "A",
        lambda a: a[:, :0],
        "n is 136 and k is 0; both must be at least 1 (only m may be 0)",
    ),
    "b_other_k": (
        "B",
        lambda b: nothing(N, 128),
        "B has shape [136, 128]; [136, 256] is needed: [n, k] with A's k = 256",
    ),
    "sfa_per_row": (
        "sfa",
        lambda sfa: sfa[:, :1],
        "sfa has shape [5, 1]; [5, 2] is needed: [m, ceil(k / 128)] for m = 5, k = 256",
    ),
    "sfa_transposed": (
        "sfa",
        lambda sfa: sfa.T,
        "sfa has shape [2, 5]; [5, 2] is needed: [m, ceil(k / 128)] for m = 5, k = 256",
    ),
    "sfb_rounded_down": (
        "sfb",
        lambda sfb: sfb[:1],
        "sfb has shape [1, 2]; [2, 2] is needed: [ceil(n / 128), ceil(k / 128)] for n = 136, k = 256",
    ),
    "out_other_m": (
        "out",
        lambda out: out[:4],
        "out has shape [4, 136]; [5, 136] is needed: [m, n] for m = 5, n = 136",
    ),
    "out_transposed": (
        "out",
        lambda out: out.T,
        "out has shape [136, 5]; [5, 136] is needed: [m, n] for m = 5, n = 136",
    ),
    # strides
    "a_slice": (
        "A",
        columns_of_more,
        "A has strides (272, 1); contiguous rows, strides (256, 1), are needed",
    ),
    "b_column_major": (
        "B",
        lambda b: b.T.contiguous().T,
        "B has strides (1, 136); contiguous rows, strides (256, 1), are needed",
    ),
    "out_slice": (
        "out",
        columns_of_more,
        "out has strides (152, 1); contiguous rows, strides (136, 1), are needed",
    ),
    "sfb_slice": (
        "sfb",
        columns_of_more,
        "sfb has strides (18, 1); (2, 1) or, transposed, (1, 2) is needed",
    ),
    "sfb_expanded": (
        "sfb",
        lambda sfb: torch.ones(1, 1).expand(2, 2),
        "sfb has strides (0, 0); (2, 1) or, transposed, (1, 2) is needed",
    ),
    # addresses
    "a_misaligned": ("A", misaligned, "A starts at address {}; a multiple of 16 bytes is needed"),
    "b_misaligned": ("B", misaligned, "B starts at address {}; a multiple of 16 bytes is needed"),
    "out_misaligned": ("out", misaligned, "out starts at address {}; a multiple of 16 bytes is needed"),
}


# A lazily negated view shares the memory of another tensor and stands for the opposite numbers.
REFUSALS |= {
    f"{which}_negated": (
        which,
        torch._neg_view,
        f"{which} is a lazily negated view; the numbers themselves (resolve_neg) are needed",
    )
    for which in ("A", "B", "out")
}


REFUSALS["out_requires_grad"] = (
    "out",
    lambda out: out.requires_grad_(),
    "out requires grad, which no kernel computes; a tensor that does not is needed",
)


def refused(arguments: dict, rung: str = "s1_naive") -> str:
    """The sentence with which a rung refuses the arguments."""
    with pytest.raises(InputError) as refusal:
        gl.rungs[rung](**arguments)
    assert isinstance(refusal.value, ValueError) and isinstance(refusal.value, gl.GemmLadderError)
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


@pytest.mark.parametrize("rung", gl.rungs)
@pytest.mark.parametrize(("which", "function", "message"), REFUSALS.values(), ids=REFUSALS)
def test_refuses(which, function, message, rung):
    placed = place(normal(np.random.default_rng(0), M, N, K))
    arguments = Arguments(lhs=placed.lhs, rhs=placed.rhs, out=placed.out)
    arguments.change(which, function)
    if "{}" in message:
        message = message.format(arguments.address(which))
    before = arguments["out"].clone() if isinstance(arguments["out"], torch.Tensor) else None
    assert refused(arguments, rung) == message
    assert placed.untouched()
    if before is not None and before.device.type == "cpu":
        torch.testing.assert_close(arguments["out"], before, rtol=0, atol=0, equal_nan=True)


# What the production kernels can do, and the rungs cannot: test_calls.py.
OF_RUNGS = ("b_empty", "a_without_k", "a_slice", "b_column_major", "out_slice")
OF_ALL = {name: refusal for name, refusal in REFUSALS.items() if name not in OF_RUNGS}


@pytest.mark.parametrize(("which", "function", "message"), OF_ALL.values(), ids=OF_ALL)
def test_the_api_refuses(which, function, message):
    """The public functions refuse with the same sentences as the rungs."""
    placed = place(normal(np.random.default_rng(0), M, N, K))
    arguments = Arguments(lhs=placed.lhs, rhs=placed.rhs, out=placed.out)
    arguments.change(which, function)
    if "{}" in message:
        message = message.format(arguments.address(which))
    with pytest.raises(InputError) as refusal:
        gl.gemm_fp8_fp8_bf16_nt(**arguments)
    assert str(refusal.value) == message
    assert placed.untouched()


@pytest.mark.parametrize("which", ["A", "sfa", "B", "sfb"])
@pytest.mark.parametrize("edge", ["first", "last"])
def test_refuses_an_output_that_is_an_input(which, edge):
    """Sharing one byte is enough, at either end."""
    sizes = {"A": M * K, "sfa": 4 * (8 + M), "B": N * K, "sfb": 4 * 4}  # up to the last byte that is read
    align = {"A": 16, "sfa": 16, "B": 16, "sfb": 4}[which]
    out_bytes, input_bytes = 2 * M * N, sizes[which]
    memory = torch.zeros(64 + input_bytes + 2 * out_bytes, dtype=torch.uint8)
    memory = memory[-memory.data_ptr() % 16 :]
    if edge == "first":  # the output's last bytes are the input's first
        out_at, input_at = 0, (out_bytes - 1) // align * align
    else:
        out_at, input_at = (input_bytes - 1) // 16 * 16, 0

    def inside(tensor: torch.Tensor) -> torch.Tensor:
        at = input_at // tensor.element_size()
        whole = memory[: len(memory) // 16 * 16].view(tensor.dtype)
        return whole.as_strided(tensor.shape, tensor.stride(), at)

    placed = place(normal(np.random.default_rng(0), M, N, K))
    arguments = Arguments(lhs=placed.lhs, rhs=placed.rhs)
    arguments["out"] = memory[out_at : out_at + out_bytes].view(torch.bfloat16).view(M, N)
    arguments.change(which, inside)
    assert refused(arguments) == f"out shares memory with {which}; memory of its own is needed"
    with pytest.raises(InputError, match=f"^out shares memory with {which}; "):
        gl.gemm_fp8_fp8_bf16_nt(**arguments)
    assert not memory.any()


def test_neighbours_do_not_overlap():
    """An output may begin right where an input ends."""
    operands = normal(np.random.default_rng(1), 8, 8, 128)
    placed = place(operands)
    memory = torch.zeros(8 * 128 + 2 * 8 * 8 + 16, dtype=torch.uint8)
    memory = memory[-memory.data_ptr() % 16 :]
    a = memory[: 8 * 128].view(8, 128)
    a.copy_(torch.from_numpy(operands.a))
    out = memory[8 * 128 :][: 2 * 8 * 8].view(torch.bfloat16).view(8, 8)
    gl.rungs["s1_naive"]((a.view(torch.float8_e4m3fn), placed.lhs[1]), placed.rhs, out)
    np.testing.assert_array_equal(
        out.view(torch.int16).numpy().view(np.uint16), operands.expected_bits("s1_naive")
    )


def test_unsupported_device():
    tensors = {"A": nothing(1, 1).to("meta"), "out": nothing(1, 1).to("meta")}
    with pytest.raises(InputError, match=r"^the tensors are on meta; the CPU or a CUDA device is needed$"):
        checks.same_device(tensors)


@pytest.mark.parametrize(
    ("name", "capability"), [("NVIDIA A100-SXM4-80GB", (8, 0)), ("NVIDIA B200", (10, 0))]
)
def test_a_gpu_that_is_not_hopper(monkeypatch, name, capability):
    """The wrong GPU is reported before anything else about the tensors."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    monkeypatch.setattr(rules, "same_device", lambda named: torch.device("cuda", 3))
    checks.runs_on.cache_clear()
    message = (
        f"cuda:3 is a {name}, compute capability {capability[0]}.{capability[1]}; a Hopper GPU (compute "
        "capability 9.0), or tensors on the CPU, is needed"
    )
    wrong = torch.zeros(1)
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        gl.rungs["s1_naive"]((wrong, wrong), (wrong, wrong), wrong)
    with pytest.raises(InputError, match="A is float32"):
        gl.rungs["s0_numpy"]((wrong, wrong), (wrong, wrong), wrong)  # NumPy needs no GPU


def test_a_hopper_gpu_passes(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    checks.runs_on.cache_clear()
    checks.runs_on(torch.device("cuda", 3))
    checks.runs_on.cache_clear()


@pytest.mark.parametrize("rung", gl.rungs)
def test_no_rows_are_checked_as_well(rung):
    """A call with m = 0 does nothing, but wrong arguments are refused all the same."""
    operands = normal(np.random.default_rng(2), 0, N, K)
    placed = place(operands)
    gl.rungs[rung](placed.lhs, placed.rhs, placed.out)
    assert refused({"lhs": placed.lhs, "rhs": placed.rhs, "out": placed.out.float()}, rung) == (
        "out is float32; bfloat16 is needed"
    )


def test_lists_are_pairs():
    placed = place(normal(np.random.default_rng(3), 1, 8, 128))
    assert gl.rungs["s1_naive"](list(placed.lhs), list(placed.rhs), placed.out) is None
    assert not placed.untouched()


@pytest.mark.parametrize("rung", ["s0_numpy", "s1_naive"])
def test_inputs_that_require_grad(rung):
    """They are refused, unless nothing is recorded for autograd, both in the layout that kernels read and in
    one that is converted."""
    operands = normal(np.random.default_rng(5), M, N, K)
    for layout in (torch.Tensor.contiguous, lambda sfa: sfa):
        placed = place(operands)
        (a, sfa), (b, sfb) = placed.lhs, placed.rhs
        a, sfa, b, sfb = (tensor.detach().requires_grad_() for tensor in (a, layout(sfa), b, sfb))
        message = refused({"lhs": (a, sfa), "rhs": (b, sfb), "out": placed.out}, rung)
        assert message.startswith(
            "A requires grad, which no kernel computes; A.detach(), or a call inside of"
        )
        assert placed.untouched()
        with torch.no_grad():
            gl.rungs[rung]((a, sfa), (b, sfb), placed.out)
        np.testing.assert_array_equal(placed.bits(), operands.expected_bits(rung))
        assert not placed.out.requires_grad


# Conversions: operands that are accepted in more than one layout.


@pytest.mark.parametrize("rung", ["s0_numpy", "s1_naive"])
@pytest.mark.parametrize("which", ["sfa", "sfb"])
def test_lazily_negated_scales(rung, which):
    """The negated values are used, not the bits in memory, in every layout."""
    operands = normal(np.random.default_rng(6), M, N, K)
    negated = operands.expected_bits(rung) ^ 0x8000
    for layout in (torch.Tensor.contiguous, lambda scales: scales, lambda scales: scales.T.contiguous().T):
        placed = place(operands)
        arguments = Arguments(lhs=placed.lhs, rhs=placed.rhs, out=placed.out)
        arguments.change(which, lambda scales, layout=layout: torch._neg_view(layout(scales)))
        gl.rungs[rung](**arguments)
        np.testing.assert_array_equal(placed.bits(), negated)


@pytest.mark.parametrize("m", [1, 3, 4, 5, 128])
@pytest.mark.parametrize("blocks", [1, 2, 7])
def test_mn_major(m, blocks):
    rows = -(-m // 4) * 4
    values = torch.arange(m * blocks, dtype=torch.float32).view(m, blocks)
    converted = scales.mn_major(values)
    assert torch.equal(converted, values)
    assert all(
        size == 1 or stride == needed
        for size, stride, needed in zip(converted.shape, converted.stride(), (1, rows), strict=True)
    )
    assert scales.mn_major(converted) is converted, "a copy of what was right"


def test_mn_major_of_groups():
    """[groups, max_m, blocks]: the masked layout's scales."""
    values = torch.arange(2.0 * 5 * 3).view(2, 5, 3)
    converted = scales.mn_major(values)
    assert converted.stride() == (8 * 3, 1, 8)
    assert torch.equal(converted, values)
    assert scales.mn_major(converted) is converted


def test_scales_that_are_right_are_not_copied():
    placed = place(normal(np.random.default_rng(4), M, N, K))
    gemm = checks.operands("dense", placed.lhs, placed.rhs, placed.out)
    assert gemm.sfa.data_ptr() == placed.lhs[1].data_ptr()
    assert gemm.sfb.data_ptr() == placed.rhs[1].data_ptr()
    assert (gemm.m, gemm.n, gemm.k) == (M, N, K)


def test_sizes_beyond_32_bits():
    """2^31 + 8 rows, an A of 2^40 bytes; the tensors are on the meta device, which has no memory."""
    m, n, k = 2**31 + 8, 8, 512

    def huge(shape: tuple[int, ...], stride: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        return torch.empty_strided(shape, stride, dtype=dtype, device="meta")

    tensors = {
        "A": huge((m, k), (k, 1), torch.float8_e4m3fn),
        "sfa": huge((m, k // 128), (1, m), torch.float32),
        "out": huge((m, n), (n, 1), torch.bfloat16),
    }
    assert scales.mn_major(tensors["sfa"]) is tensors["sfa"]
    checks.gapless("A", tensors["A"])
    checks.shape("out", tensors["out"], (m, n), "")
    assert rules._span(tensors["A"])[1] == m * k
    assert rules._span(tensors["sfa"])[1] == 4 * m * (k // 128)


def test_poison_is_told_apart():
    """The bit patterns that cases.py poisons with are NaNs that no kernel and no rounding produces."""
    for pattern in (CANARY, UNWRITTEN):
        assert pattern not in (0x7FFF, 0x7FC0, 0xFFC0, 0xFFFF)
        assert np.isnan((np.array([pattern], np.uint32) << 16).view(np.float32))
