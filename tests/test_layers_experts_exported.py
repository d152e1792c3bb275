"""Experts in programs of torch.export and graphs of torch.compile that take any number of tokens: nothing of
the example's number is a condition of them."""

from __future__ import annotations

import io
import operator
from collections.abc import Callable
from typing import Any

import gemm_ladder as gl
import pytest
import torch
from gemm_ladder import ops
from gemm_ladder.errors import InputError
from gemm_ladder.layers import Fp8Experts, route, routing
from gemm_ladder.production import fast_path
from torch._dynamo.backends.common import aot_autograd
from torch.export import Dim, ExportedProgram

EXPERTS, HIDDEN, INTERMEDIATE = 2, 128, 16
COUNTS = (0, 1, 129)
KINDS = [*({"layout": layout} for layout in routing.LAYOUTS), {"trainable": True}]


def experts_of(**options: object) -> Fp8Experts:
    torch.manual_seed(0)
    return Fp8Experts(EXPERTS, HIDDEN, INTERMEDIATE, **options)


def tokens(count: int, top_k: int = 2) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(count)
    x = torch.randn(count, HIDDEN, generator=generator)
    return x, *route(torch.randn(count, EXPERTS, generator=generator), top_k)


def exported(module: torch.nn.Module, *given: torch.Tensor, strict: bool = False) -> ExportedProgram:
    """A program for any number of tokens."""
    sizes = ({0: Dim("m")},) * len(given)
    return torch.export.export(module, given, dynamic_shapes=sizes, strict=strict)


def same(found: Callable[..., torch.Tensor], layer: Fp8Experts, counts: tuple[int, ...] = COUNTS) -> bool:
    return all(torch.equal(found(*tokens(count)), layer(*tokens(count))) for count in counts)


@pytest.mark.parametrize(
    ("options", "strict"),
    [*((kind, False) for kind in KINDS), ({"layout": "psum"}, True), ({"layout": "masked"}, True)],
    ids=str,
)
def test_export(options: dict[str, object], strict: bool) -> None:
    layer = experts_of(**options)
    torch._dynamo.reset()
    program = exported(layer, *tokens(20), strict=strict)
    assert same(program.module(), layer)
    if options == {"layout": "masked"} and not strict:
        saved = io.BytesIO()
        torch.export.save(program, saved)
        saved.seek(0)
        assert same(torch.export.load(saved).run_decompositions().module(), layer, (1, 129))


def test_export_of_one_expert_each() -> None:
    """For any number of tokens, also of those that a GPU gathers instead of scattering them."""
    layer = experts_of(layout="psum")
    torch._dynamo.reset()
    program = exported(layer, *tokens(20, 1)).module()
    for count in COUNTS:
        assert torch.equal(program(*tokens(count, 1)), layer(*tokens(count, 1)))


@pytest.mark.parametrize("strict", [False, True])
def test_export_needs_a_layout(strict: bool) -> None:
    """But for one number of tokens, which says which."""
    layer = experts_of()
    torch._dynamo.reset()
    sentence = "layout is 'auto', which depends on the number of tokens; 'psum', 'contiguous' or 'masked'"
    with pytest.raises(RuntimeError if strict else InputError, match=sentence):
        exported(layer, *tokens(20), strict=strict)
    program = torch.export.export(layer, tokens(20), strict=strict).module()
    assert same(program, layer, (20,))


@pytest.mark.parametrize(
    ("options", "graphs"),
    [
        ({"layout": "contiguous"}, 3),  # for any number of tokens, for 0 and for 1
        ({"layout": "psum"}, 3),
        ({"layout": "masked"}, 4),  # and whether the scales of multiples of four rows are padded
        ({"layout": "auto"}, 5),  # both of these
        ({"trainable": True}, 3),
    ],
    ids=str,
)
def test_few_graphs(options: dict[str, object], graphs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their bits are those that others test: here products give zeros, which takes less time."""
    monkeypatch.setattr(ops, "run", lambda call, expected_m=0: call.out.zero_())
    layer, made = experts_of(**options), []
    torch._dynamo.reset()
    backend = aot_autograd(fw_compiler=lambda graph, example: made.append(1) or graph)
    compiled = torch.compile(layer, backend=backend, dynamic=True, fullgraph=True)
    with torch.no_grad():
        for count in (*range(20, 30), 0, 1, 2, 400, 1500):
            assert compiled(*tokens(count, 1)).shape == (count, HIDDEN)
    assert len(made) == graphs


def zeros(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.uint8).view(torch.float8_e4m3fn)


class Products(torch.nn.Module):
    """Both products that are told how many rows to expect."""

    def forward(self, a: torch.Tensor, expected: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        lhs, rhs = gl.per_token_group_quant_fp8(a), (zeros(2, 8, HIDDEN), a.new_ones(2, 1, 1))
        ends = torch.full((2,), 0, dtype=torch.int32)
        count = expected.shape[0]
        psum, masked = (a.new_zeros(*of, 8, dtype=torch.bfloat16) for of in (a.shape[:1], (2, 64)))
        gl.m_grouped_fp8_gemm_nt_contiguous(
            lhs, rhs, psum, ends, use_psum_layout=True, expected_m_for_psum_layout=count
        )
        both = zeros(2, 64, HIDDEN), a.new_ones(2, 64, 1)
        gl.m_grouped_fp8_gemm_nt_masked(both, rhs, masked, ends, count)
        return psum, masked


@pytest.mark.parametrize("strict", [False, True])
def test_expected_rows(strict: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """They stay variable, also where there is a fast path, which makes numbers of them."""

    def number_of(*given: Any) -> bool:
        operator.index(given[-1])
        return False

    asked = {kind: number_of for kind in ("masked", "psum")}
    monkeypatch.setattr(fast_path, "queue", fast_path.queue | asked)
    torch._dynamo.reset()
    given = torch.randn(128, HIDDEN), torch.zeros(20)
    sizes = ({}, {0: Dim("count")})
    program = torch.export.export(Products(), given, dynamic_shapes=sizes, strict=strict)
    hints = [node.args[6] for node in program.graph.nodes if "grouped" in str(node.target)]
    assert len(hints) == 2 and not any(isinstance(one, int) for one in hints)
    for count in (0, 1, 7, 4000):
        found = program.module()(given[0], torch.zeros(count))
        assert not any(one.any() for one in found)


def test_too_many_rows_to_expect() -> None:
    """What is compiled is asked about no largest number, and looks when it runs."""
    lhs, rhs = (zeros(2, 64, HIDDEN), torch.ones(2, 64, 1)), (zeros(2, 8, HIDDEN), torch.ones(2, 1, 1))
    out, counts = torch.zeros(2, 64, 8, dtype=torch.bfloat16), torch.tensor([1, 2], dtype=torch.int32)

    def called(expected: int) -> None:
        gl.m_grouped_fp8_gemm_nt_masked(lhs, rhs, out, counts, expected)

    torch._dynamo.reset()
    for call in (called, torch.compile(called, backend="eager", fullgraph=True)):
        with pytest.raises(InputError, match=rf"^expected_m is {2**31}; less than 2\^31 is needed$"):
            call(2**31)
