"""The cast of tokens into a grouped layout.

On a Hopper GPU one kernel (scatter_cast.cuh) reads and casts each token once and writes it to the rows of its
experts. It is for the masked layout, and for the psum layout unless many tokens have one expert each.
Elsewhere, for tokens that the kernel does not take (`why_not`), and for the contiguous layout, whose padding
has to be zeros, the casts that users call do it, with the same numbers.
"""

from __future__ import annotations

import ctypes

import torch
from gemm_ladder import checks, ops, scales
from gemm_ladder.arguments import MAX_SIZE, SCALE_BLOCK, ceil_div
from gemm_ladder.casts import functions
from gemm_ladder.casts.kernel import INPUT_NUMBERS, INPUTS
from gemm_ladder.casts.operands import E4M3
from gemm_ladder.layers import routing
from gemm_ladder.layers.own_kernels import OwnKernel

KERNEL = OwnKernel("scatter_cast")
_ALIGNMENT = 16  # bytes that the kernel loads at a time
_MULTIPLE = 16  # numbers that a thread casts
# Where each token has one expert, a gather of more tokens than these is as fast or faster (NOTES.md).
MOST_SINGLE = 1024


class Params(ctypes.Structure):
    """struct ScatterCastParams of scatter_cast.cuh"""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("x", "places", "codes", "scales")),
        *((name, ctypes.c_int64) for name in ("tokens", "top_k", "k", "size", "room")),
        *((name, ctypes.c_int64) for name in ("x_row", "scale_group", "scale_row", "scale_column")),
        ("power_of_two", ctypes.c_bool),
    )


class Args(ctypes.Structure):
    """struct ScatterCastArgs of scatter_cast.cuh"""

    _fields_ = (("params", Params), ("input", ctypes.c_int64), ("stream", ctypes.c_void_p))


def in_layout(
    x: torch.Tensor, placed: routing.Placement, use_ue8m0: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cast tokens to FP8, where their layout has them.

    Args:
        x: float32, bfloat16 or float16 [tokens, hidden].
        placed: from `routing.place`.
        use_ue8m0: whether scales are rounded up to powers of two.

    Returns:
        float8_e4m3fn [*placed.shape, hidden], and the scales, float32 [*placed.shape, ceil(hidden / 128)], as
        TMA reads them. In the contiguous layout rows of no token are zeros; in the others they may be
        anything.

    Raises:
        InputError: x has a smaller storage than its elements need.
        LaunchError: a CUDA graph is captured, and the kernels have not been loaded before: by
            `gemm_ladder.layers.precompile`, or by the same call with tensors that lie in memory alike.
    """
    places, masked = placed.places, placed.layout == "masked"
    if ops.in_eager(x, places) and is_for(placed) and KERNEL.can_run(x, why_not(x, places, placed.size)):
        shape = (*placed.shape, ceil_div(x.shape[1], SCALE_BLOCK))
        codes = x.new_empty(*placed.shape, x.shape[1], dtype=E4M3)
        of_rows = x.new_empty_strided(shape, scales.mn_major_strides(shape), dtype=torch.float32)
        cast(x, places, *(one if masked else one[None] for one in (codes, of_rows)), use_ue8m0)
        return codes, of_rows
    if masked:
        of_tokens = functions.per_token_group_quant_fp8(x, use_ue8m0)
        return routing.in_masked_layout(*of_tokens, places, *placed.shape)
    return functions.per_token_group_quant_fp8(x, use_ue8m0, rows=placed.tokens(), psum_m=placed.ends)


def is_for(placed: routing.Placement) -> bool:
    """Whether the kernel is for such a layout. Not to be asked while torch traces: sizes are symbols then."""
    tokens, top_k = placed.places.shape
    return placed.layout == "masked" or (placed.layout == "psum" and (top_k > 1 or tokens <= MOST_SINGLE))


def why_not(x: torch.Tensor, places: torch.Tensor, size: int) -> str | None:
    """A reason why the kernel cannot cast these tokens, wherever they are; None if it can.

    Args:
        x, places: as for `cast`; size: the rows of the layout.
    """
    if x.dtype not in INPUTS or places.dtype != torch.int64:
        return f"x is {x.dtype} and places {places.dtype}; FP32, BF16 or FP16, and int64, are needed"
    if x.dim() != 2 or places.dim() != 2 or x.shape[0] != places.shape[0] or x.device != places.device:
        return "x and places are not two matrices of one device with a row for each token"
    steps = (x.stride(0) * x.itemsize, x.data_ptr())
    if x.stride(1) != 1 or x.shape[1] % _MULTIPLE or any(one % _ALIGNMENT for one in steps):
        return "rows are not contiguous, of no multiple of 16 numbers, or not at multiples of 16 bytes"
    runs = x.shape[0] * ceil_div(x.shape[1], SCALE_BLOCK)
    if not all(0 < one <= MAX_SIZE for one in (runs, places.numel(), size)):
        return (
            f"there are {runs} runs of {SCALE_BLOCK} numbers, {places.numel()} choices and {size} rows; 1 to "
            f"{MAX_SIZE} of each are possible"
        )
    return None


def cast(
    x: torch.Tensor, places: torch.Tensor, codes: torch.Tensor, of_rows: torch.Tensor, use_ue8m0: bool
) -> None:
    """Cast tokens, on the emulator, or queued on the current stream of a GPU.

    Args:
        x: float32, bfloat16 or float16 [tokens, hidden]; `why_not` must have no reason.
        places: int64 [tokens, top_k]: rows of the layout, as `routing.place` gives them. A choice whose
            number is none of the `groups * room` rows has none.
        codes: float8_e4m3fn [groups, room, hidden], contiguous. The psum layout is one group.
        of_rows: the scales, float32 [groups, room, ceil(hidden / 128)].
        use_ue8m0: whether scales are rounded up to powers of two.

    Raises:
        InputError: x has a smaller storage than its elements need.
        LaunchError: the launch is refused. EmulatorError: the emulator found the kernel at fault.
        gemm_ladder.build.ToolchainError, BuildError: the kernel could not be compiled.
    """
    checks.has_memory("x", x)
    places = places.contiguous()
    groups, room, hidden = codes.shape
    params = Params(
        *(one.data_ptr() for one in (x, places, codes, of_rows)),
        *(len(x), places.shape[1], hidden, groups * room, room),
        *(x.stride(0), *of_rows.stride()),
        use_ue8m0,
    )
    read, written = {"x": x, "the places": places}, {"the codes": codes, "the scales": of_rows}
    KERNEL.start(Args(params, INPUT_NUMBERS[x.dtype]), read, written)
