"""The products on the CPU, through the reference: `gemm_ladder.ref.gemm`, rounded once to BF16.

The functions stand for those of the same names that launch kernels; what they are given was checked.
"""

from __future__ import annotations

from collections.abc import Callable

import ml_dtypes
import numpy as np
import torch
from gemm_ladder.ref import gemm as reference


def dense(
    a: torch.Tensor,
    sfa: torch.Tensor,
    b: torch.Tensor,
    sfb: torch.Tensor,
    out: torch.Tensor,
    m: int,
    n: int,
    k: int,
) -> None:
    """out[m, n] = A[m, k] @ B[n, k].T; `out` may be on a GPU."""
    _write(out, _in_float64(reference.dense, a, sfa, b, sfb))


def contiguous(
    a: torch.Tensor,
    sfa: torch.Tensor,
    b: torch.Tensor,
    sfb: torch.Tensor,
    out: torch.Tensor,
    m_indices: torch.Tensor,
    m: int,
    n: int,
    k: int,
    groups: int,
) -> None:
    """out[i] = A[i] @ B[m_indices[i]].T for A [m, k] and B [groups, n, k]; zeros where the index is -1."""
    _write(out, _in_float64(reference.grouped_contiguous, a, sfa, b, sfb, m_indices))


def masked(
    a: torch.Tensor,
    sfa: torch.Tensor,
    b: torch.Tensor,
    sfb: torch.Tensor,
    out: torch.Tensor,
    masked_m: torch.Tensor,
    max_m: int,
    n: int,
    k: int,
    groups: int,
    expected_m: int,
) -> None:
    """out[g, :r] = A[g, :r] @ B[g].T with r = masked_m[g]; out[g, r:] is left as it was."""
    products = _in_float64(reference.grouped_masked, a, sfa, b, sfb, masked_m)
    for rows, product, count in zip(out, products, masked_m.tolist(), strict=True):
        _write(rows[:count], product[:count])


def _in_float64(function: Callable[..., np.ndarray], *operands: torch.Tensor) -> np.ndarray:
    arrays = (
        tensor.view(torch.uint8).numpy().view(ml_dtypes.float8_e4m3fn)
        if tensor.dtype == torch.float8_e4m3fn
        else tensor.numpy()
        for tensor in (operand.detach() for operand in operands)
    )
    with np.errstate(invalid="ignore", over="ignore"):  # NaN and infinities are results like any other
        return function(*arrays)


def _write(out: torch.Tensor, product: np.ndarray) -> None:
    with np.errstate(invalid="ignore", over="ignore"):
        out.copy_(torch.from_numpy(reference.to_bf16(product).view(np.int16)).view(torch.bfloat16))
