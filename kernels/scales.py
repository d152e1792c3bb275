"""The scales of A and B: their types, and the layouts in which TMA reads them."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from gemm_ladder.arguments import TMA_ALIGNMENT, ceil_div
from gemm_ladder.errors import InputError

# What scales may be instead of float32: BF16 as in some checkpoints, or E8M0, a power of two in one byte.
CONVERTED = (torch.bfloat16, torch.float8_e8m0fnu)

_said: set[str] = set()  # the names for which the warning was given


def as_float32(scales: torch.Tensor, name: str) -> torch.Tensor:
    """The scales in float32, without a lazy negation and without a history for autograd: themselves if they
    are, else a copy.

    A warning says once in a process that they were converted, since that costs a kernel. No copy is kept for
    later calls, not even of a weight's scales: who writes through `Tensor.data`, as loaders of checkpoints
    do, or by a kernel of his own, changes them without a trace.

    Args:
        scales: float32, or one of CONVERTED.
        name: of the scales, for the warning.
    """
    if scales.dtype == torch.float32:
        return scales.detach().resolve_neg()
    if name not in _said:
        _said.add(name)
        dtype = str(scales.dtype).removeprefix("torch.")
        warnings.warn(
            f"{name} is {dtype}; it is converted to float32 in every call, unless {name}.float() is passed",
            stacklevel=2,
        )
    return scales.detach().float()


def mn_major(sfa: torch.Tensor) -> torch.Tensor:
    """A's scales, [(groups,) mn, k / 128], as TMA reads them: stride (aligned * k / 128, 1, aligned) with
    aligned = mn rounded up to 4 floats. The tensor itself if it has them, else a copy.

    The padding is not initialised, and the strides of dimensions of size 1 do not matter.
    """
    strides = mn_major_strides(sfa.shape)
    if sfa.data_ptr() % TMA_ALIGNMENT == 0 and all(
        size == 1 or stride == needed
        for size, stride, needed in zip(sfa.shape, sfa.stride(), strides, strict=True)
    ):
        return sfa
    return torch.empty_strided(sfa.shape, strides, dtype=sfa.dtype, device=sfa.device).copy_(sfa)


def row_major(sfb: torch.Tensor) -> torch.Tensor:
    """B's scales as TMA reads them, contiguous and 16-byte aligned: the tensor itself if it is so, else a
    copy. (One expert's scales, sliced from those of many, may begin at any multiple of 4 bytes.)"""
    sfb = sfb.contiguous()
    return sfb.clone() if sfb.data_ptr() % TMA_ALIGNMENT else sfb


def mn_major_strides(
    shape: tuple[int, ...], ceil_div: Callable[[int, int], int] = ceil_div
) -> tuple[int, ...]:
    """The strides, in floats, of scales [(groups,) mn, k / 128] as TMA reads them.

    ceil_div: divides mn, which may be a symbol.
    """
    mn, blocks = shape[-2:]
    floats = TMA_ALIGNMENT // torch.float32.itemsize
    rows = ceil_div(mn, floats) * floats
    return (rows * blocks, 1, rows)[-len(shape) :]


def pack_ue8m0_to_int(x: torch.Tensor) -> torch.Tensor:
    """Powers of two, four in an int: the exponents of four neighbours, the first one in the lowest byte.

    Args:
        x: float32 [..., 4 * count], contiguous, each 2^-126 to 2^127 or 0.

    Returns:
        int32 [..., count].

    Raises:
        InputError: another type or shape, or a number that is no power of two. The numbers are looked at,
            which waits for a GPU.
    """
    if not isinstance(x, torch.Tensor) or x.dtype != torch.float32 or x.dim() == 0 or x.shape[-1] % 4:
        given = f"{x.dtype} {list(x.shape)}" if isinstance(x, torch.Tensor) else f"of type {type(x).__name__}"
        raise InputError(f"x is {given}; float32 with a multiple of 4 numbers in a row is needed")
    if not x.numel():
        return x.new_empty((*x.shape[:-1], x.shape[-1] // 4), dtype=torch.int32)
    bits = x.contiguous().view(torch.int32)
    if ((bits < 0) | (bits & 0x7FFFFF != 0)).any():
        raise InputError("x has a number that is no power of two; ceil_to_ue8m0 makes one of each")
    return (bits >> 23).to(torch.uint8).view(torch.int32)


def unpack_ue8m0_from_int(packed: torch.Tensor) -> torch.Tensor:
    """What `pack_ue8m0_to_int` has packed: int32 [..., count] becomes float32 [..., 4 * count]."""
    if not isinstance(packed, torch.Tensor) or packed.dtype != torch.int32 or packed.dim() == 0:
        given = packed.dtype if isinstance(packed, torch.Tensor) else f"of type {type(packed).__name__}"
        raise InputError(f"packed is {given}; an int32 tensor with a dimension is needed")
    return (packed.contiguous().view(torch.uint8).to(torch.int32) << 23).view(torch.float32)
