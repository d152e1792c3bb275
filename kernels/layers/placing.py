"""Two kernels for a mixture of experts on a Hopper GPU. place_rows.cuh finds the row of each choice in a
grouped layout; scatter_rows.cuh copies tokens in FP8 into the masked or psum layout.

`routing` defines what they compute, and does it by torch's operators where the kernels are not used.
"""

from __future__ import annotations

import ctypes
from typing import NamedTuple

import torch
from gemm_ladder.arguments import MAX_SIZE
from gemm_ladder.layers.own_kernels import OwnKernel

PLACE, SCATTER = OwnKernel("place_rows"), OwnKernel("scatter_rows")
KERNELS = (PLACE, SCATTER)
LAYOUTS = ("contiguous", "masked", "psum")  # enum PlaceLayout of place_rows.cuh
# One thread block places all choices, and an expert needs a thread of it. Beyond these limits torch's
# operators take over, which use the whole GPU.
MOST_CHOICES, MOST_EXPERTS, MOST_ROWS = 16384, 1024, 2**20
_ALIGNMENT = 16  # bytes that scatter_rows.cuh copies at a time


class PlaceParams(ctypes.Structure):
    """struct PlaceParams of place_rows.cuh"""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("chosen", "rows", "places", "tokens")),
        *((name, ctypes.c_int64) for name in ("choices", "top_k", "experts", "size", "room", "alignment")),
        *((name, ctypes.c_int64) for name in ("layout", "is_int32")),
    )


class PlaceArgs(ctypes.Structure):
    """struct PlaceArgs of place_rows.cuh"""

    _fields_ = (("params", PlaceParams), ("stream", ctypes.c_void_p))


class ScatterParams(ctypes.Structure):
    """struct ScatterParams of scatter_rows.cuh"""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("codes", "scales", "places", "to", "to_scales")),
        *((name, ctypes.c_int64) for name in ("choices", "top_k", "row_bytes", "scales_a_row")),
        *((name, ctypes.c_int64) for name in ("size", "room")),
        *((name, ctypes.c_int64) for name in ("codes_row", "scale_row", "scale_column")),
        *((name, ctypes.c_int64) for name in ("to_group", "to_row", "to_column")),
    )


class ScatterArgs(ctypes.Structure):
    """struct ScatterArgs of scatter_rows.cuh"""

    _fields_ = (("params", ScatterParams), ("stream", ctypes.c_void_p))


class Placed(NamedTuple):
    """What place_rows.cuh writes.

    Attributes:
        rows, places: as in `routing.Placement`.
        tokens: int32 [size]: the token of each row, -1 where it has none; None where `place` does not ask for
            them.
    """

    rows: torch.Tensor
    places: torch.Tensor
    tokens: torch.Tensor | None


def why_not_placed(chosen: torch.Tensor, experts: int, size: int) -> str | None:
    """A reason why place_rows.cuh cannot place choices, wherever they are; None if it can."""
    if chosen.dtype not in (torch.int32, torch.int64) or chosen.dim() != 2:
        given = f"{chosen.dtype} {list(chosen.shape)}"
        return f"the choices are {given}; int32 or int64 [tokens, top_k] is needed"
    if not 0 < chosen.numel() <= MOST_CHOICES:
        return f"there are {chosen.numel()} choices; 1 to {MOST_CHOICES} are possible"
    if not 0 < experts <= MOST_EXPERTS:
        return f"there are {experts} experts; 1 to {MOST_EXPERTS} are possible"
    if not 0 < size <= MOST_ROWS:
        return f"the layout has {size} rows; 1 to {MOST_ROWS} are possible"
    return None


def place(
    chosen: torch.Tensor, experts: int, layout: str, size: int, room: int = 0, alignment: int = 1
) -> Placed:
    """Place choices, on the emulator, or queued on the current stream of a GPU.

    The tokens of rows are asked for where rows are gathered: in the contiguous layout, and in the psum layout
    if each token has one expert (`scattering.is_for`). Elsewhere tokens are written to their places, and to
    write the tokens of rows, padding included, would take up to half of the kernel's time (NOTES.md).

    Args:
        chosen: int32 or int64 [tokens, top_k]: experts.
        experts: how many there are.
        layout: one of LAYOUTS.
        size: how many rows it has. `why_not_placed` must have no reason.
        room: rows of each expert; masked only.
        alignment: each expert's rows begin at a multiple of it; contiguous and psum only.

    Raises:
        LaunchError: the launch is refused. EmulatorError: the emulator found the kernel at fault.
        gemm_ladder.build.ToolchainError, BuildError: the kernel could not be compiled.
    """
    chosen = chosen.contiguous()
    rows = chosen.new_empty(size if layout == "contiguous" else experts, dtype=torch.int32)
    places = chosen.new_empty(chosen.shape, dtype=torch.int64)
    gathered = layout == "contiguous" or (layout == "psum" and chosen.shape[1] == 1)
    tokens = chosen.new_empty(size, dtype=torch.int32) if gathered else None
    params = PlaceParams(
        chosen.data_ptr(),
        rows.data_ptr(),
        places.data_ptr(),
        None if tokens is None else tokens.data_ptr(),
        *(chosen.numel(), chosen.shape[1], experts, size, room, alignment),
        LAYOUTS.index(layout),
        chosen.dtype == torch.int32,
    )
    written = {"the rows": rows, "the places": places}
    if tokens is not None:
        written["the tokens"] = tokens
    PLACE.start(PlaceArgs(params), {"the choices": chosen}, written)
    return Placed(rows, places, tokens)


def why_not_scattered(
    codes: torch.Tensor, scales_of_rows: torch.Tensor, places: torch.Tensor, size: int
) -> str | None:
    """A reason why scatter_rows.cuh cannot copy rows, wherever they are; None if it can."""
    given = (codes, scales_of_rows, places)
    if any(one.dim() != 2 or one.device != codes.device for one in given) or len({*map(len, given)}) > 1:
        return "codes, scales and places are not three matrices of one device with a row for each token"
    if (codes.itemsize, scales_of_rows.dtype, places.dtype) != (1, torch.float32, torch.int64):
        dtypes = f"{codes.dtype}, {scales_of_rows.dtype} and {places.dtype}"
        return f"they are {dtypes}; FP8, FP32 and int64 is needed"
    steps = (codes.shape[1], codes.stride(0), codes.data_ptr())
    if codes.stride(1) != 1 or any(one % _ALIGNMENT for one in steps):
        return "rows are not contiguous, or not at multiples of 16 bytes"
    if not 0 < places.numel() <= MAX_SIZE or not 0 < size <= MAX_SIZE:
        return f"there are {places.numel()} choices and {size} rows; 1 to {MAX_SIZE} of each are possible"
    return None


def scatter(
    codes: torch.Tensor,
    scales_of_rows: torch.Tensor,
    places: torch.Tensor,
    out: torch.Tensor,
    out_scales: torch.Tensor,
) -> None:
    """Copy rows and their scales, on the emulator, or queued on the current stream of a GPU.

    Args:
        codes, scales_of_rows, places: `codes`, `of_rows` and `places` of `routing.in_masked_layout`;
            `why_not_scattered` must have no reason.
        out: of codes' type [groups, room, hidden], contiguous.
        out_scales: float32 [groups, room, blocks].

    Raises:
        LaunchError: the launch is refused. EmulatorError: the emulator found the kernel at fault.
        gemm_ladder.build.ToolchainError, BuildError: the kernel could not be compiled.
    """
    groups, room, hidden = out.shape
    places = places.contiguous()
    params = ScatterParams(
        *(one.data_ptr() for one in (codes, scales_of_rows, places, out, out_scales)),
        *(places.numel(), places.shape[1], hidden, scales_of_rows.shape[1], groups * room, room),
        *(codes.stride(0), *scales_of_rows.stride(), *out_scales.stride()),
    )
    read = {"the codes": codes, "the scales": scales_of_rows, "the places": places}
    SCATTER.start(ScatterArgs(params), read, {"the rows": out, "the rows' scales": out_scales})
