"""Layers in FP8 and their inputs, and a linear one in float64, from the definitions of the casts."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from gemm_ladder.layers import Fp8Experts, Fp8Linear, route
from gemm_ladder.ref import fp8, gemm, metrics

BF16 = torch.bfloat16
EXPERTS, HIDDEN, INTERMEDIATE = 5, 144, 80
ROW_ERROR = 4e-3  # of a tensor core's sums, rounded to BF16
CHOICE_EXTREMES = {torch.int64: 2**63 - 1, torch.int32: 2**31 - 1}


class Model(NamedTuple):
    """What a layer computes, float64.

    Attributes:
        out: [m, n], without bias.
        grad_input: [m, k].
        grad_weight: [n, k].
    """

    out: np.ndarray
    grad_input: np.ndarray
    grad_weight: np.ndarray


def model(x: torch.Tensor, weight: torch.Tensor, grad: torch.Tensor, use_ue8m0: bool = False) -> Model:
    """The products of a layer's quantised operands.

    Args:
        x: [m, k]; weight: [n, k], before its cast; grad: [m, n], of what the layer returns.
    """
    x, weight, grad = (one.detach().float().cpu().numpy() for one in (x, weight, grad))
    of_weight = fp8.dequantize_rhs(*fp8.per_block_cast_to_fp8(weight, use_ue8m0))
    rows, of_grad = (fp8.dequantize_lhs(*fp8.per_token_cast_to_fp8(one, use_ue8m0)) for one in (x, grad))
    columns_x, columns_grad = (of_columns(one, use_ue8m0) for one in (x, grad))
    return Model(rows @ of_weight.T, of_grad @ of_weight, columns_grad @ columns_x.T)


def of_columns(x: np.ndarray, use_ue8m0: bool) -> np.ndarray:
    """float64 [n, m]: a matrix [m, n] after the cast per channel, transposed."""
    codes, scales = fp8.per_channel_cast_to_fp8(x, use_ue8m0)
    return fp8.dequantize_lhs(np.ascontiguousarray(codes.T), np.ascontiguousarray(scales.T))


def check(found: torch.Tensor, expected: np.ndarray, dtype: torch.dtype) -> None:
    """Compare a product whose sums are rounded to BF16: on a CPU bit by bit, on a GPU row by row."""
    assert found.dtype == dtype
    if found.is_cuda:
        assert metrics.max_row_error(found.detach().float().cpu().numpy(), expected) < ROW_ERROR
    else:
        rounded = torch.from_numpy(gemm.to_bf16(expected).astype(np.float32)).to(dtype)
        assert torch.equal(found.detach(), rounded)


def check_sums(found: torch.Tensor, expected: np.ndarray, dtype: torch.dtype) -> None:
    """Compare a weight's gradient, whose sums are rounded to FP32 and then to the weight's type."""
    assert found.dtype == dtype
    if found.is_cuda:
        assert metrics.max_row_error(found.float().cpu().numpy(), expected) < ROW_ERROR
    else:
        assert torch.equal(found, torch.from_numpy(expected.astype(np.float32)).to(dtype))


def experts_of(
    device: str = "cpu", **options: object
) -> tuple[Fp8Experts, tuple[torch.Tensor, torch.Tensor]]:
    """Experts, and the BF16 weights that they were made of."""
    torch.manual_seed(0)
    given = (
        torch.randn(EXPERTS, 2 * INTERMEDIATE, HIDDEN, dtype=BF16) / 12,
        torch.randn(EXPERTS, HIDDEN, INTERMEDIATE, dtype=BF16) / 9,
    )
    given = tuple(one.to(device) for one in given)
    return Fp8Experts.from_weights(*given, **options), given


def tokens(count: int, top_k: int = 2, device: str = "cpu", seed: int = 0) -> tuple[torch.Tensor, ...]:
    """Tokens, the experts of each, and their weights."""
    generator = torch.Generator().manual_seed(seed + count)
    x = torch.randn(count, HIDDEN, generator=generator).to(BF16)
    chosen, factors = route(torch.randn(count, EXPERTS, generator=generator), top_k)
    return x.to(device), chosen.to(device), factors.to(device)


def normal(
    *shape: int, device: str = "cpu", dtype: torch.dtype = torch.float32, seed: int = 0
) -> torch.Tensor:
    """Normal numbers, with columns of several magnitudes."""
    rng = np.random.default_rng(seed + sum(shape))
    x = rng.normal(size=shape) * np.exp2(rng.integers(-3, 4, shape[-1]))
    return torch.from_numpy(x.astype(np.float32)).to(device, dtype)


def layer_of(
    n: int,
    k: int,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    bias: bool = False,
    **options: bool,
) -> tuple[Fp8Linear, torch.nn.Linear]:
    """A layer, and the one that it was made from."""
    torch.manual_seed(n + k)
    linear = torch.nn.Linear(k, n, bias, device, dtype)
    return Fp8Linear.from_linear(linear, **options), linear


def choices(tokens: int, top_k: int, experts: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
    """Random ones, of which some are no expert: just outside, and as far outside as the type allows."""
    generator = torch.Generator().manual_seed(tokens * top_k)
    found = torch.randint(-1, experts + 1, (tokens, top_k), generator=generator).to(dtype)
    found[0, -1] = CHOICE_EXTREMES[dtype]
    found[-1, 0] = -CHOICE_EXTREMES[dtype] - 1
    return found
