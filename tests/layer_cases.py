"""A linear layer in FP8 in float64, from the definitions of the casts: what its results and gradients have to
be."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from gemm_ladder.ref import fp8, gemm, metrics

ROW_ERROR = 4e-3  # of a tensor core's sums, rounded to BF16


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
