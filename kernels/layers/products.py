"""The three products of a linear layer in FP8, and which of them is the gradient of which.

    y = x W^T, of [m, k] and [n, k]     x per token, W per block, output in BF16
    dx = dy W, of [m, n] and [n, k]     dy per token, W as it is, since a block's scale is the same either way
    dW = dy^T x, of [m, n] and [m, k]   both per channel, since the sum is over tokens; output in FP32

They are operators of torch, `torch.ops.gemm_ladder`: torch.compile and torch.export trace each as one call,
and autograd knows the gradients of the first. Where nobody wants to see a call (`ops.direct`), the operators'
functions are called directly, with `_Linear` to tell autograd the same: torch's dispatcher, and the rules for
autograd that it has from Python, take several times as long as the functions. The gradient passes through the
casts as if they changed nothing (the "straight-through" estimate), as is usual for FP8. There is no second
derivative.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from gemm_ladder import calls, checks, ops
from gemm_ladder.arguments import K_MULTIPLE
from gemm_ladder.casts import functions
from gemm_ladder.errors import InputError
from gemm_ladder.layers import turning
from gemm_ladder.training import products as training


def linear(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    codes: torch.Tensor,
    scales: torch.Tensor,
    use_ue8m0: bool = False,
) -> torch.Tensor:
    """x @ W.T, with gradients of x and of `weight`.

    Args:
        x: float32, bfloat16 or float16 [m, k], of any strides.
        weight: the [n, k] that `codes` were cast from, which gets the gradient; its numbers are not used.
            None: W has no gradient.
        codes, scales: W, as `per_block_quant_fp8` gives it: float8_e4m3fn [n, k] and float32 [ceil(n / 128),
            ceil(k / 128)].
        use_ue8m0: whether the scales of x, and of the gradients, are rounded up to powers of two.

    Returns:
        x's type, [m, n]: the sums rounded to BF16 and then, where x is of another type, converted.
    """
    if not ops.compiling():
        checks.no_tangents({"x": x})
    elif ops.in_transform():
        return ops.run_uncompiled(linear, x, weight, codes, scales, use_ue8m0)
    differentiated = torch.is_grad_enabled() and (
        x.requires_grad or (weight is not None and weight.requires_grad)
    )
    if differentiated and ops.direct(x, weight, codes):
        found: torch.Tensor = _Linear.apply(x, weight, codes, scales, use_ue8m0)
    elif differentiated or ops.compiling() or ops.seen(x, codes) or x.is_meta:
        if not ops.compiling():
            checks.in_no_transform("x", x)
        found = torch.ops.gemm_ladder.fp8_linear(x, weight, codes, scales, use_ue8m0)
    else:
        found = _linear(x, weight, codes, scales, use_ue8m0)
    return found


def _linear(
    x: torch.Tensor, weight: torch.Tensor | None, codes: torch.Tensor, scales: torch.Tensor, use_ue8m0: bool
) -> torch.Tensor:
    out = x.new_empty(x.shape[0], codes.shape[0], dtype=torch.bfloat16)
    calls.dense(functions.per_token_group_quant_fp8(x, use_ue8m0), (codes, scales), out)
    return out.to(x.dtype)


def _grad_input(
    grad: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor, use_ue8m0: bool
) -> torch.Tensor:
    """dx, of grad's type. The sum is over n here, which is padded with zeros to what a product takes as its
    k."""
    n, k = codes.shape
    padding = -n % K_MULTIPLE
    if padding:
        turned = codes.new_empty(k, n + padding)
        turned[:, :n].copy_(codes.t())
        turned[:, n:].view(torch.uint8).zero_()
        grad = F.pad(grad, (0, padding))
    else:
        turned = turning.turned(codes)
    return _linear(grad, None, turned, scales.t().contiguous(), use_ue8m0)


def _grad_weight(grad: torch.Tensor, x: torch.Tensor, use_ue8m0: bool) -> torch.Tensor:
    """dW, float32 [n, k]. The sum is over m here, which is padded as n is above."""
    if padding := -x.shape[0] % K_MULTIPLE:
        grad, x = (F.pad(one, (0, 0, 0, padding)) for one in (grad, x))
    out = x.new_empty(grad.shape[1], x.shape[1], dtype=torch.float32)
    if not x.shape[0]:
        return out.zero_()
    of_grad, of_x = (functions.per_channel_group_quant_fp8(one, use_ue8m0) for one in (grad, x))
    training.gemm_of_casts(of_grad, of_x, out)
    return out


def _keep(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    """What the gradients are made of: x in its own type, and W in FP8."""
    x, weight, codes, scales, ctx.use_ue8m0 = inputs
    of_x, of_weight = ctx.needs_input_grad[:2]
    ctx.weight_dtype = weight.dtype if of_weight else None
    ctx.save_for_backward(x if of_weight else None, *((codes, scales) if of_x else (None, None)))


def second_derivative() -> InputError:
    """What is raised where a backward pass is asked for a history of its own."""
    return InputError(
        "a gradient of a gradient is asked for; create_graph=False is needed: a product in FP8 has a first "
        "derivative only"
    )


def _backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    # Where W is trained, dx depends on it, and dW on x, also if `grad` itself has no history.
    if torch.is_grad_enabled() and (grad.requires_grad or ctx.weight_dtype is not None):
        raise second_derivative()
    x, codes, scales = ctx.saved_tensors
    grad_input: Callable[..., torch.Tensor] = torch.ops.gemm_ladder.fp8_linear_grad_input
    grad_weight: Callable[..., torch.Tensor] = torch.ops.gemm_ladder.fp8_linear_grad_weight
    if ops.direct(grad, x, codes):
        grad_input, grad_weight = _grad_input, _grad_weight
    of_x = of_weight = None
    if codes is not None:
        of_x = grad_input(grad, codes, scales, ctx.use_ue8m0)
    if x is not None:
        of_weight = grad_weight(grad, x, ctx.use_ue8m0).to(ctx.weight_dtype)
    return of_x, of_weight, None, None, None


class _Linear(torch.autograd.Function):
    """What the operator fp8_linear is to autograd."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> torch.Tensor:
        found = _linear(*inputs)
        _keep(ctx, inputs, found)
        return found

    backward = staticmethod(_backward)


ops.define(
    "fp8_linear(Tensor x, Tensor? weight, Tensor codes, Tensor scales, bool use_ue8m0) -> Tensor",
    _linear,
    lambda x, weight, codes, scales, use_ue8m0: x.new_empty(x.shape[0], codes.shape[0]),
    gradient=(_keep, _backward),
)
ops.define(
    "fp8_linear_grad_input(Tensor grad, Tensor codes, Tensor scales, bool use_ue8m0) -> Tensor",
    _grad_input,
    lambda grad, codes, scales, use_ue8m0: grad.new_empty(grad.shape[0], codes.shape[1]),
)
ops.define(
    "fp8_linear_grad_weight(Tensor grad, Tensor x, bool use_ue8m0) -> Tensor",
    _grad_weight,
    lambda grad, x, use_ue8m0: x.new_empty(grad.shape[1], x.shape[1], dtype=torch.float32),
)
