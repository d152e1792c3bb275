"""The training products as operators of torch, as `gemm_ladder.ops` has the others, and how they are
computed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from gemm_ladder.arguments import SCALE_BLOCK
from gemm_ladder.ops import OPERANDS, define_product
from gemm_ladder.training import operands
from gemm_ladder.training.operands import CheckedCall

# `c` is None where d itself is added to: `accumulate` says so, since an operator's arguments do not share
# memory with what it writes. `turned` and `multiple`: as for operands.k_grouped().
_SCHEMAS = (
    f"fp8_gemm_nt_1d1d({OPERANDS}, Tensor? c, bool accumulate, bool turned) -> ()",
    f"k_grouped_fp8_gemm_nt_contiguous({OPERANDS}, int[] ks, Tensor? c, bool accumulate, int multiple, "
    "bool turned) -> ()",
)
NAMES = tuple(schema.partition("(")[0] for schema in _SCHEMAS)


def call(name: str, *given: object) -> None:
    """Call an operator of _SCHEMAS."""
    getattr(torch.ops.gemm_ladder, name)(*given)


def run(call: CheckedCall) -> None:
    """Compute a checked call: on the CPU at once, on a GPU queued on the current stream of its device."""
    if not call.d.numel():
        return
    if call.d.is_cuda:
        from gemm_ladder.training import launching  # here: a call on the CPU needs none of it

        torch.autograd.graph.increment_version(call.d)
        launching.queue(call)
    else:
        on_cpu(call)


def on_cpu(call: CheckedCall) -> None:
    """Write the sums of float64 products into `call.d`, rounded once to FP32."""
    for index, k, begin, scale_row in call.groups:
        left, right = (
            dequantize(_of_group(codes, rows, k, begin), scales, scale_row)
            for codes, scales, rows in ((call.a, call.sfa, call.m), (call.b, call.sfb, call.n))
        )
        d, c = (x if x is None or x.dim() == 2 else x[index] for x in (call.d, call.c))
        assert d is not None
        d.copy_(left @ right.mT if c is None else c + left @ right.mT)


def _of_group(codes: torch.Tensor, rows: int, k: int, begin: int) -> torch.Tensor:
    """A group's matrix [rows, k]; a dense call has one, which may have any stride."""
    return codes if codes.dim() == 2 else codes[rows * begin : rows * (begin + k)].view(rows, k)


def dequantize(codes: torch.Tensor, scales: torch.Tensor, first: int) -> torch.Tensor:
    """float64 [rows, k]: FP8 numbers times their scales [rows, K blocks], from block `first` on."""
    k = codes.shape[1]
    blocks = scales[:, first : first + -(-k // SCALE_BLOCK)].double()
    return codes.double() * blocks.repeat_interleave(SCALE_BLOCK, 1)[:, :k]


def _dense(
    a: torch.Tensor,
    sfa: torch.Tensor,
    b: torch.Tensor,
    sfb: torch.Tensor,
    d: torch.Tensor,
    c: torch.Tensor | None,
    accumulate: bool,
    turned: bool,
) -> None:
    run(operands.dense((a, sfa), (b, sfb), d, d if accumulate else c, turned))


def _k_grouped(
    a: torch.Tensor,
    sfa: torch.Tensor,
    b: torch.Tensor,
    sfb: torch.Tensor,
    d: torch.Tensor,
    ks: Sequence[int],
    c: torch.Tensor | None,
    accumulate: bool,
    multiple: int,
    turned: bool,
) -> None:
    run(operands.k_grouped((a, sfa), (b, sfb), d, ks, d if accumulate else c, multiple, turned))


for _schema, _function in zip(_SCHEMAS, (_dense, _k_grouped), strict=True):
    define_product(_schema, _function)
