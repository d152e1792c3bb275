"""The scales of A and B: their types, and the layouts in which TMA reads them."""

from __future__ import annotations

import warnings
from collections.abc import MutableMapping

import torch
from gemm_ladder.arguments import TMA_ALIGNMENT, align
from gemm_ladder.errors import InputError
from torch.utils.weak import WeakTensorKeyDictionary

# What scales may be instead of float32: BF16 as in some checkpoints, or E8M0, a power of two in one byte.
CONVERTED = (torch.bfloat16, torch.float8_e8m0fnu)

_said: set[str] = set()  # the names for which the warning was given
# What as_float32 keeps: for each tensor its version and the copy.
_kept: MutableMapping[torch.Tensor, tuple[int, torch.Tensor]] = WeakTensorKeyDictionary()


def as_float32(scales: torch.Tensor, name: str, keep: bool = False) -> torch.Tensor:
    """The scales in float32, without a lazy negation and without a history for autograd: themselves if they
    are, else a copy.

    A warning says once in a process that they were converted, since that costs a kernel.

    Args:
        scales: float32, or one of CONVERTED.
        name: of the scales, for the warning.
        keep: keep the copy with `scales`, a weight's, and return it in later calls, until `scales` is
            written.
    """
    if scales.dtype == torch.float32:
        return scales.detach().resolve_neg()
    if name not in _said:
        _said.add(name)
        often = "once for each tensor" if keep else "in every call"
        dtype = str(scales.dtype).removeprefix("torch.")
        warnings.warn(f"{name} is {dtype}; it is converted to float32 {often}", stacklevel=2)
    capturing = scales.is_cuda and torch.cuda.is_current_stream_capturing()
    if not keep or capturing or scales.is_inference():  # those that are made in a capture belong to its graph
        return scales.detach().float()
    version, kept = _kept.get(scales, (None, None))
    if kept is None or version != scales._version:
        kept = scales.detach().float()
        _kept[scales] = (scales._version, kept)
    return kept


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


def mn_major_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The strides, in floats, of scales [(groups,) mn, k / 128] as TMA reads them."""
    mn, blocks = shape[-2:]
    rows = align(mn, TMA_ALIGNMENT // torch.float32.itemsize)
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
