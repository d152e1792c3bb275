"""The casts that make the operands, on the tensors' device: the same bits as `gemm_ladder.ref.fp8` gives."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from gemm_ladder import checks, ops
from gemm_ladder.arguments import SCALE_BLOCK, align, ceil_div
from gemm_ladder.errors import InputError
from gemm_ladder.ref.fp8 import E4M3_MAX
from gemm_ladder.scales import pack_ue8m0_to_int, unpack_ue8m0_from_int
from gemm_ladder.settings import whole_number

__all__ = [
    "align",
    "cast_back_from_fp8",
    "ceil_div",
    "ceil_to_ue8m0",
    "pack_ue8m0_to_int",
    "per_block_cast_to_fp8",
    "per_channel_cast_to_fp8",
    "per_custom_dims_cast_to_fp8",
    "per_token_cast_to_fp8",
    "unpack_ue8m0_from_int",
]

_CAST_FROM = (torch.float32, torch.bfloat16, torch.float16)
_SMALLEST_AMAX = 1e-4  # so that a block of zeros gets a scale other than 0


def per_token_cast_to_fp8(
    x: torch.Tensor, use_ue8m0: bool = False, gran_k: int = SCALE_BLOCK, use_packed_ue8m0: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """The cast for A: one scale for each run of `gran_k` elements of a row, so that the largest becomes 448.

    Args:
        x: float32, bfloat16 or float16 [m, k], of any strides.
        use_ue8m0: round each scale up to a power of two; it stays a float32. Hopper does not need it.
        gran_k: how many elements of a row share a scale; the products need 128.
        use_packed_ue8m0: return the scales as `pack_ue8m0_to_int` packs them, with 1 after the last ones of a
            row up to a multiple of four. use_ue8m0 is needed for it. No kernel here reads them.

    Returns:
        float8_e4m3fn [m, k] and its scales, float32 [m, ceil(k / gran_k)], both contiguous. The products
        convert such scales in every call; get_mn_major_tma_aligned_tensor does it once.

    Raises:
        InputError: x is not a matrix of one of these types, gran_k is below 1, or use_packed_ue8m0 is given
            without use_ue8m0.
    """
    if use_packed_ue8m0 and not use_ue8m0:
        raise InputError("use_packed_ue8m0 is given without use_ue8m0; both are needed, or neither")
    codes, scales = _cast("per_token", x, use_ue8m0, gran_k)
    if use_packed_ue8m0:
        scales = pack_ue8m0_to_int(F.pad(scales, (0, -scales.shape[-1] % 4), value=1.0))
    return codes, scales


def per_block_cast_to_fp8(
    x: torch.Tensor, use_ue8m0: bool = False, gran_k: int = SCALE_BLOCK
) -> tuple[torch.Tensor, torch.Tensor]:
    """The cast for B: one scale for each block of gran_k x gran_k elements.

    Args:
        x: float32, bfloat16 or float16 [n, k], of any strides.
        use_ue8m0, gran_k: as for `per_token_cast_to_fp8`.

    Returns:
        float8_e4m3fn [n, k] and its scales, float32 [ceil(n / gran_k), ceil(k / gran_k)], both contiguous.

    Raises:
        InputError: as `per_token_cast_to_fp8`.
    """
    return _cast("per_block", x, use_ue8m0, gran_k)


def per_channel_cast_to_fp8(
    x: torch.Tensor, use_ue8m0: bool = False, gran_k: int = SCALE_BLOCK
) -> tuple[torch.Tensor, torch.Tensor]:
    """The cast of `per_token_cast_to_fp8` down the columns: one scale for each run of `gran_k` elements of a
    column.

    Args:
        x: float32, bfloat16 or float16 [k, n], of any strides.
        use_ue8m0, gran_k: as for `per_token_cast_to_fp8`.

    Returns:
        float8_e4m3fn [k, n] and its scales, float32 [ceil(k / gran_k), n], both contiguous.

    Raises:
        InputError: as `per_token_cast_to_fp8`.
    """
    return _cast("per_channel", x, use_ue8m0, gran_k)


def per_custom_dims_cast_to_fp8(
    x: torch.Tensor, dims: Sequence[int], use_ue8m0: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """A cast with one scale for each index of some dimensions.

    Args:
        x: float32, bfloat16 or float16, of any shape and strides.
        dims: the dimensions whose indices have scales of their own; a scale covers all of the others.
        use_ue8m0: as for `per_token_cast_to_fp8`.

    Returns:
        float8_e4m3fn of x's shape, and the scales, float32, of those of its sizes that are in `dims` and are
        not 1.

    Raises:
        InputError: x is not of one of these types, is empty, or does not have one of the dimensions.
    """
    if not isinstance(x, torch.Tensor) or x.dtype not in _CAST_FROM or not x.numel():
        given = f"{x.dtype} {list(x.shape)}" if isinstance(x, torch.Tensor) else f"of type {type(x).__name__}"
        raise InputError(f"x is {given}; float32, bfloat16 or float16 with an element is needed")
    checks.dense("x", x)
    if not isinstance(dims, Sequence) or not all(isinstance(one, int) for one in dims):
        raise InputError(f"dims is {dims!r}; a tuple of dimensions is needed")
    if wrong := [one for one in dims if not 0 <= one < x.dim()]:
        raise InputError(f"dims has {wrong[0]}; a dimension from 0 to {x.dim() - 1} is needed")
    values = x.detach().float()
    covered = [one for one in range(x.dim()) if one not in set(dims)]
    amax = values.abs().amax(dim=covered, keepdim=True) if covered else values.abs()
    scales = amax.clamp(min=_SMALLEST_AMAX) / E4M3_MAX
    if use_ue8m0:
        scales = _round_up_to_power_of_two(scales)
    return (values * (1 / scales)).to(torch.float8_e4m3fn), scales.squeeze()


def cast_back_from_fp8(
    x_fp8: torch.Tensor, sf: torch.Tensor, gran_k: int = SCALE_BLOCK, use_packed_ue8m0: bool = False
) -> torch.Tensor:
    """What `per_token_cast_to_fp8` has cast, in float32: each number times its scale.

    Args:
        x_fp8: float8_e4m3fn [m, k].
        sf: float32 [m, ceil(k / gran_k)]; with use_packed_ue8m0 int32, as `pack_ue8m0_to_int` packs them.
        gran_k, use_packed_ue8m0: as for the cast.

    Raises:
        InputError: the types or the shapes are others.
    """
    given = checks.tensors({"x_fp8": x_fp8, "sf": sf})
    checks.same_device(given)
    checks.dtype("x_fp8", x_fp8, torch.float8_e4m3fn)
    rows, columns = checks.sizes("x_fp8", x_fp8, "m", "k")
    if use_packed_ue8m0:
        sf = unpack_ue8m0_from_int(sf)[..., : ceil_div(columns, gran_k)]
    checks.dtype("sf", sf, torch.float32)
    checks.shape("sf", sf, (rows, ceil_div(columns, gran_k)), f"[m, ceil(k / {gran_k})] for x_fp8's sizes")
    return x_fp8.float() * sf.repeat_interleave(gran_k, dim=1)[:, :columns]


def ceil_to_ue8m0(x: torch.Tensor) -> torch.Tensor:
    """Positive numbers, each rounded up to a power of two, which is what UE8M0 holds.

    Args:
        x: float32, bfloat16 or float16.

    Returns:
        float32 of x's shape; NaN and infinity stay.

    Raises:
        InputError: x is of another type.
    """
    if not isinstance(x, torch.Tensor) or x.dtype not in _CAST_FROM:
        given = x.dtype if isinstance(x, torch.Tensor) else f"of type {type(x).__name__}"
        raise InputError(f"x is {given}; a float32, bfloat16 or float16 tensor is needed")
    return _round_up_to_power_of_two(x.float())


def _cast(which: str, x: torch.Tensor, use_ue8m0: bool, gran_k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """One of CASTS. It is an operator of torch where somebody wants to see it; torch.compile sees what it is
    made of, and makes one kernel of that."""
    if not ops.compiling() and ops.seen(x):
        found: tuple[torch.Tensor, torch.Tensor] = getattr(torch.ops.gemm_ladder, f"{which}_cast_to_fp8")(
            x, use_ue8m0, gran_k
        )
        return found
    return CASTS[which](x, use_ue8m0, gran_k)


def _per_token(x: torch.Tensor, use_ue8m0: bool, gran_k: int) -> tuple[torch.Tensor, torch.Tensor]:
    return _blocks(x, 1, gran_k, use_ue8m0)


def _per_block(x: torch.Tensor, use_ue8m0: bool, gran_k: int) -> tuple[torch.Tensor, torch.Tensor]:
    return _blocks(x, gran_k, gran_k, use_ue8m0)


def _per_channel(x: torch.Tensor, use_ue8m0: bool, gran_k: int) -> tuple[torch.Tensor, torch.Tensor]:
    turned = x.T if isinstance(x, torch.Tensor) and x.dim() == 2 else x
    codes, scales = _blocks(turned, 1, gran_k, use_ue8m0)
    return codes.T.contiguous(), scales.T.contiguous()


CASTS = {"per_token": _per_token, "per_block": _per_block, "per_channel": _per_channel}
for _name, _function in CASTS.items():
    ops.define(
        f"{_name}_cast_to_fp8(Tensor x, bool use_ue8m0, int gran_k) -> (Tensor, Tensor)", _function, _function
    )


def _blocks(
    x: torch.Tensor, gran_rows: int, gran_k: int, use_ue8m0: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    if not isinstance(x, torch.Tensor) or x.dim() != 2 or x.dtype not in _CAST_FROM:
        given = f"{x.dtype} {list(x.shape)}" if isinstance(x, torch.Tensor) else f"of type {type(x).__name__}"
        raise InputError(f"x is {given}; a float32, bfloat16 or float16 matrix is needed")
    checks.dense("x", x)
    if whole_number("gran_k", gran_k) < 1:
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
    """The next power of two, for normal positive float32; NaN and infinity stay. It is done on the bits, as
    log2 would round."""
    mantissa = 0x7FFFFF
    power = ((x.view(torch.int32) + mantissa) & ~mantissa).view(torch.float32)
    return torch.where(x.isfinite(), power, x)
