"""The six products of experts that have gradients, all in FP8, and which is the gradient of which.

    inner = x W1^T          rows of tokens, gathered by expert, and gates above up in W1
    out   = h W2^T          h = SiLU(gate) * up, of inner; a token's result is the sum of its rows of `out`,
                            each times a factor f
    dh    = f (dy W2)       dy gathered as x is; f's own gradient is the sum of (dy W2) h over a row
    dx    = dinner W1       added up as `out` is, without factors; dinner is dh through SiLU-and-multiply
    dW2   = dy^T (f h)      over the rows of each expert, as
    dW1   = dinner^T x      is this

The first four are products in the contiguous layout with a scale for each 1 x 128 of a row and for each 128 x
128 of a weight, which is the same for a weight that is turned. The last two are products that are grouped
along K: both operands are cast per channel, with a scale for each 128 rows of a column, and sums are FP32.
What passes from one product to the next is rounded to BF16. A gradient passes through the casts as if they
changed nothing.

Both passes are operators of torch, which gemm_ladder.layers registers; torch.compile and torch.export trace
each as one call. If gradients of weights are wanted, the backward pass reads how many rows each expert has,
for which it waits for the GPU.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from gemm_ladder import calls, ops, settings
from gemm_ladder.arguments import SCALE_BLOCK
from gemm_ladder.casts import functions
from gemm_ladder.errors import InputError
from gemm_ladder.layers import combining, products, routing, silu_backward, turning
from gemm_ladder.training import products as training

Pair = tuple[torch.Tensor, torch.Tensor]


class Weights(NamedTuple):
    """The weights of experts in FP8: codes and scales of gate_up_proj and of down_proj."""

    w1: torch.Tensor
    w1_scales: torch.Tensor
    w2: torch.Tensor
    w2_scales: torch.Tensor


def experts(
    x: torch.Tensor,
    chosen: torch.Tensor,
    factors: torch.Tensor,
    trained: tuple[torch.Tensor, torch.Tensor] | None,
    stored: Weights,
    use_ue8m0: bool,
) -> torch.Tensor:
    """A mixture of experts, with gradients of x, of the factors and of the weights.

    Args:
        x: float32, bfloat16 or float16 [tokens, hidden].
        chosen: int32 or int64 [tokens, top_k]: experts; other numbers are none.
        factors: [tokens, top_k], of a floating-point type; they are rounded to BF16.
        trained: what the weights were cast from, which gets gradients; None if they are stored in FP8.
        stored: the weights.
        use_ue8m0: whether scales are rounded up to powers of two.

    Returns:
        x's type [tokens, hidden].

    Raises:
        InputError: the alignment of the contiguous layout is no multiple of 128, or, in the backward pass,
            it is no longer what it was.
    """
    alignment_now()
    out: torch.Tensor = torch.ops.gemm_ladder.fp8_experts(
        x, chosen, factors, *(trained or (None, None)), *stored, use_ue8m0
    )[0]
    return out


def is_aligned() -> bool:
    """Whether the alignment of the contiguous layout is one that gradients can have."""
    return settings.get_mk_alignment_for_contiguous_layout() % SCALE_BLOCK == 0


def alignment_now(before: int | None = None) -> int:
    """The alignment of the contiguous layout, for a pass; `before` is what it was in the forward pass.

    Raises:
        InputError: it is no multiple of 128, or is no longer what it was.
    """
    alignment = settings.get_mk_alignment_for_contiguous_layout()
    if before is None and not is_aligned():
        raise InputError(
            f"the alignment of the contiguous layout is {alignment}; a multiple of {SCALE_BLOCK} is needed "
            "for gradients of experts"
        )
    if before not in (None, alignment):
        raise InputError(
            f"the alignment of the contiguous layout was {before} in the forward pass and is {alignment} in "
            "the backward pass; one is needed for both"
        )
    return alignment


def _forward(
    x: torch.Tensor,
    chosen: torch.Tensor,
    factors: torch.Tensor,
    gate_up: torch.Tensor | None,
    down: torch.Tensor | None,
    w1: torch.Tensor,
    w1_scales: torch.Tensor,
    w2: torch.Tensor,
    w2_scales: torch.Tensor,
    use_ue8m0: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The result, and for the backward pass: the first products' results, which row each choice has, and the
    expert of each row."""
    placed = routing.place(chosen, len(w1), "contiguous")
    a = functions.per_token_group_quant_fp8(x, use_ue8m0, rows=placed.tokens())
    out, inner = results(a, placed.rows, Weights(w1, w1_scales, w2, w2_scales), use_ue8m0)
    y = combining.combined(out, placed.places, factors, x.dtype)
    return y, inner, placed.places, placed.rows


def results(
    a: Pair, rows: torch.Tensor, stored: Weights, use_ue8m0: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """The forward products: what the experts give for each row, and the first products' results.

    Args:
        a: codes and scales of the tokens' rows, in the contiguous layout.
        rows: int32 [rows]: the expert of each, as the product takes it.
        stored, use_ue8m0: as for `experts`.

    Returns:
        bfloat16 [rows, hidden] and [rows, 2 intermediate].
    """
    inner = _product(a, stored[:2], rows)
    b = functions.silu_and_mul_per_token_group_quant_fp8(inner, use_ue8m0)
    return _product(b, stored[2:], rows), inner


def _product(a: Pair, b: Pair, rows: torch.Tensor) -> torch.Tensor:
    """BF16 [size, n]: a product in the contiguous layout."""
    out = a[0].new_empty(a[0].shape[0], b[0].shape[1], dtype=torch.bfloat16)
    calls.contiguous(a, b, out, rows, None)
    return out


def of_rows(factors: torch.Tensor, places: torch.Tensor, size: int) -> torch.Tensor:
    """float32 [size]: the factor of each row, from those of tokens: rounded to BF16, as the forward pass has
    them, and 0 where a row is padding."""
    found = factors.new_zeros(size + 1, dtype=torch.float32)
    found[places] = factors.bfloat16().float()
    return found[:size]


def back_to_inner(
    grad: Pair, factors: torch.Tensor, inner: torch.Tensor, rows: torch.Tensor, stored: Weights
) -> silu_backward.Gradients:
    """Back through the second product and SiLU-and-multiply.

    Args:
        grad: codes and scales of the gradient of the result, gathered as the tokens' rows are.
        factors: float32 [rows], as `of_rows` gives them.
        inner, rows, stored: of the forward pass.

    Returns:
        What `silu_backward.through_silu_and_mul` gives: the gradients of `inner` and of the factors, and h
        times the factors.
    """
    of_h = _product(grad, _turned(*stored[2:]), rows)
    return silu_backward.through_silu_and_mul(inner, of_h, factors)


def back_to_x(of_inner: torch.Tensor, rows: torch.Tensor, stored: Weights, use_ue8m0: bool) -> torch.Tensor:
    """bfloat16 [rows, hidden]: the gradient of each row, of which a token adds up its own."""
    a = functions.per_token_group_quant_fp8(of_inner, use_ue8m0)
    return _product(a, _turned(*stored[:2]), rows)


def back_to_weights(
    grad: torch.Tensor,
    x: torch.Tensor,
    of_inner: torch.Tensor,
    factored: torch.Tensor,
    token: torch.Tensor,
    rows: torch.Tensor,
    count: int,
    use_ue8m0: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """float32: the gradients of both weights of `count` experts, for which this waits for the GPU.

    Args:
        grad, x: [tokens, hidden]: the gradient of the result, and the tokens.
        of_inner, factored: of the rows, as `back_to_inner` gives them.
        token: int32 [rows]: the token of each row, -1 for padding.
        rows: int32 [rows]: the expert of each.
    """
    ks = _rows_of_experts(rows, count)
    on_host = ks.tolist()  # which waits for the GPU
    of_w1 = _grouped(
        functions.per_channel_group_quant_fp8(of_inner, use_ue8m0, ks=ks),
        functions.per_channel_group_quant_fp8(x, use_ue8m0, rows=token, ks=ks),
        on_host,
    )
    of_w2 = _grouped(
        functions.per_channel_group_quant_fp8(grad, use_ue8m0, rows=token, ks=ks),
        functions.per_channel_group_quant_fp8(factored, use_ue8m0, ks=ks),
        on_host,
    )
    return of_w1, of_w2


def _turned(codes: torch.Tensor, of_blocks: torch.Tensor) -> Pair:
    return turning.turned(codes), of_blocks.mT.contiguous()


def _backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    factors: torch.Tensor,
    inner: torch.Tensor,
    places: torch.Tensor,
    rows: torch.Tensor,
    w1: torch.Tensor,
    w1_scales: torch.Tensor,
    w2: torch.Tensor,
    w2_scales: torch.Tensor,
    use_ue8m0: bool,
    of_x: bool,
    of_weights: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The gradients of x, of the factors, in FP32, and of both weights, in FP32; those that are not wanted
    are empty."""
    size, stored = len(rows), Weights(w1, w1_scales, w2, w2_scales)
    token = routing.Placement("contiguous", size, rows, places, places.numel()).tokens()
    of_inner, of_each, factored = back_to_inner(
        functions.per_token_group_quant_fp8(grad, use_ue8m0, rows=token),
        of_rows(factors, places, size),
        inner,
        rows,
        stored,
    )
    of_factors = torch.nn.functional.pad(of_each, (0, 1))[places]  # 0 for a choice that has no row
    of_input, of_w1, of_w2 = (
        x.new_empty(0, dtype=dtype) for dtype in (x.dtype, torch.float32, torch.float32)
    )
    if of_x:
        back = back_to_x(of_inner, rows, stored, use_ue8m0)
        of_input = combining.combined(back, places, None, x.dtype)
    if of_weights:
        of_w1, of_w2 = back_to_weights(grad, x, of_inner, factored, token, rows, len(w1), use_ue8m0)
    return of_input, of_factors, of_w1, of_w2


def _rows_of_experts(rows: torch.Tensor, count: int) -> torch.Tensor:
    """int32 [experts]: how many rows each has, with its padding. The first row of every block that has rows
    has an expert."""
    alignment = settings.get_mk_alignment_for_contiguous_layout()
    numbers = torch.arange(count, dtype=rows.dtype, device=rows.device)
    blocks = (rows[::alignment] == numbers[:, None]).sum(1, dtype=torch.int32)
    return blocks * alignment


def _grouped(a: Pair, b: Pair, ks: list[int]) -> torch.Tensor:
    """FP32 [experts, m, n]: for each expert the product over its rows."""
    total = sum(ks)

    def used(codes: torch.Tensor, scales: torch.Tensor) -> Pair:
        return codes[: scales.shape[0] * total], scales[:, : total // SCALE_BLOCK]

    out = a[0].new_empty(len(ks), a[1].shape[0], b[1].shape[0], dtype=torch.float32)
    training.k_grouped_fp8_gemm_nt_contiguous(used(*a), used(*b), out, ks)
    return out


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    x, _, factors, gate_up, down, *stored, ctx.use_ue8m0 = inputs
    wanted = ctx.needs_input_grad
    ctx.of_x, ctx.of_factors, ctx.of_weights = wanted[0], wanted[2], wanted[3] or wanted[4]
    ctx.types = [None if one is None else one.dtype for one in (factors, gate_up, down)]
    ctx.alignment = settings.get_mk_alignment_for_contiguous_layout()
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, factors, *output[1:], *stored)


def _gradients(ctx: Any, grad: torch.Tensor | None, *of_others: None) -> tuple[torch.Tensor | None, ...]:
    if grad is None:
        return (None,) * 10
    if torch.is_grad_enabled():
        raise products.second_derivative()
    alignment_now(ctx.alignment)  # of the rows that are kept
    of_input, *others = torch.ops.gemm_ladder.fp8_experts_backward(
        grad, *ctx.saved_tensors, ctx.use_ue8m0, ctx.of_x, ctx.of_weights
    )
    wanted = (ctx.of_factors, *ctx.needs_input_grad[3:5])
    of_factors, of_w1, of_w2 = (
        one.to(dtype) if needed else None
        for one, dtype, needed in zip(others, ctx.types, wanted, strict=True)
    )
    return of_input if ctx.of_x else None, None, of_factors, of_w1, of_w2, *(None,) * 5


def _fake_forward(
    x: torch.Tensor, chosen: torch.Tensor, factors: torch.Tensor, *others: Any
) -> tuple[torch.Tensor, ...]:
    w1 = others[2]
    size = routing.most_rows(chosen.numel(), w1.shape[0])
    return (
        torch.empty_like(x, memory_format=torch.contiguous_format),
        x.new_empty(size, w1.shape[1], dtype=torch.bfloat16),
        chosen.new_empty(chosen.shape, dtype=torch.int64),
        chosen.new_empty(size, dtype=torch.int32),
    )


def _fake_backward(
    grad: torch.Tensor, x: torch.Tensor, factors: torch.Tensor, *others: Any
) -> tuple[torch.Tensor, ...]:
    *_, w1, _, w2, _, _, of_x, of_weights = others
    shapes = [w1.shape, w2.shape] if of_weights else [(0,), (0,)]
    return (
        x.new_empty(x.shape if of_x else (0,)),
        x.new_empty(factors.shape, dtype=torch.float32),
        *(x.new_empty(shape, dtype=torch.float32) for shape in shapes),
    )


_STORED = "Tensor w1, Tensor w1_scales, Tensor w2, Tensor w2_scales, bool use_ue8m0"
ops.define(
    f"fp8_experts(Tensor x, Tensor chosen, Tensor factors, Tensor? gate_up, Tensor? down, {_STORED}) -> "
    "(Tensor, Tensor, Tensor, Tensor)",
    _forward,
    _fake_forward,
    gradient=(_keep, _gradients),
)
ops.define(
    "fp8_experts_backward(Tensor grad, Tensor x, Tensor factors, Tensor inner, Tensor places, Tensor rows, "
    f"{_STORED}, bool of_x, bool of_weights) -> (Tensor, Tensor, Tensor, Tensor)",
    _backward,
    _fake_backward,
)
