"""The casts that make the operands, on the tensors' own device: the bits of `gemm_ladder.ref.fp8`'s."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from gemm_ladder import layout
from gemm_ladder.arguments import SCALE_BLOCK, align, ceil_div
from gemm_ladder.errors import InputError
from gemm_ladder.layout import get_mn_major_tma_aligned_tensor, get_tma_aligned_size
from gemm_ladder.ref.fp8 import E4M3_MAX

__all__ = [
    "align",
    "ceil_div",
    "get_mn_major_tma_aligned_tensor",
    "get_tma_aligned_size",
    "layout",
    "per_block_cast_to_fp8",
    "per_token_cast_to_fp8",
]

_CAST_FROM = (torch.float32, torch.bfloat16, torch.float16)
_SMALLEST_AMAX = 1e-4  # a block of zeros still gets a scale that can be divided by


def per_token_cast_to_fp8(
    x: torch.Tensor, use_ue8m0: bool = False, gran_k: int = SCALE_BLOCK
) -> tuple[torch.Tensor, torch.Tensor]:
    """A's cast: one scale for each run of `gran_k` columns of a row, whose largest magnitude becomes 448.

    Args:
        x: float32, bfloat16 or float16 [m, k], of any strides.
        use_ue8m0: round each scale up to a power of two; it stays a float32. Hopper does not need it.
        gran_k: columns that share a scale; the products need 128.

    Returns:
        float8_e4m3fn [m, k] and its scales, float32 [m, ceil(k / gran_k)], both contiguous. The products
        convert such scales in every call; get_mn_major_tma_aligned_tensor does it once.

    Raises:
        InputError: x is not a matrix of such numbers, or gran_k is below 1.
    """
    return _cast(x, 1, gran_k, use_ue8m0)


def per_block_cast_to_fp8(
    x: torch.Tensor, use_ue8m0: bool = False, gran_k: int = SCALE_BLOCK
) -> tuple[torch.Tensor, torch.Tensor]:
    """B's cast: as A's, with one scale for each block of gran_k x gran_k.

    Returns:
        float8_e4m3fn [n, k] and its scales, float32 [ceil(n / gran_k), ceil(k / gran_k)], both contiguous.
    """
    return _cast(x, gran_k, gran_k, use_ue8m0)


def _cast(x: torch.Tensor, gran_rows: int, gran_k: int, use_ue8m0: bool) -> tuple[torch.Tensor, torch.Tensor]:
    if not isinstance(x, torch.Tensor) or x.dim() != 2 or x.dtype not in _CAST_FROM:
        given = f"{x.dtype} {list(x.shape)}" if isinstance(x, torch.Tensor) else f"of type {type(x).__name__}"
        raise InputError(f"x is {given}; a float32, bfloat16 or float16 matrix is needed")
    if gran_k < 1:
        raise InputError(f"gran_k is {gran_k}; 1 or more is needed")
    rows, columns = x.shape
    padded = F.pad(x.detach().float(), (0, -columns % gran_k, 0, -rows % gran_rows))
    block_rows, block_columns = ceil_div(rows, gran_rows), ceil_div(columns, gran_k)
    blocks = padded.view(block_rows, gran_rows, block_columns, gran_k)
    if blocks.numel():
        amax = blocks.abs().amax(dim=(1, 3), keepdim=True).clamp(min=_SMALLEST_AMAX)
    else:  # amax refuses it
        amax = blocks.new_empty(block_rows, 1, block_columns, 1)
    scales = amax / E4M3_MAX
    if use_ue8m0:
        scales = _round_up_to_power_of_two(scales)
    codes = (blocks * (1 / scales)).to(torch.float8_e4m3fn).view(padded.shape)
    return codes[:rows, :columns].contiguous(), scales.view(block_rows, block_columns)


def _round_up_to_power_of_two(x: torch.Tensor) -> torch.Tensor:
    """For normal positive float32; a NaN and an infinity stay. In the bits, since log2 would round."""
    mantissa = 0x7FFFFF
    power = ((x.view(torch.int32) + mantissa) & ~mantissa).view(torch.float32)
    return torch.where(x.isfinite(), power, x)
