"""The end of a mixture of experts: for each token the sum of its experts' rows, each times a factor.

    sums = combined(rows, places, factors, torch.bfloat16)

combine_rows.cuh does it in one pass on a Hopper GPU. Elsewhere, or where the kernel cannot be built, torch's
operators do it, with the same bits. torch.compile traces a call as one operator,
`torch.ops.gemm_ladder.combine_rows`, which gemm_ladder.layers registers.
"""

from __future__ import annotations

import ctypes

import torch
from gemm_ladder import ops
from gemm_ladder.arguments import MAX_SIZE, ceil_div
from gemm_ladder.casts.kernel import INPUT_NUMBERS, INPUTS
from gemm_ladder.layers.own_kernels import OwnKernel

KERNEL = OwnKernel("combine_rows")
COLUMNS = 1024  # of a row that one thread block adds up: 128 threads with 8 each
_ALIGNMENT = 16  # bytes that a load of the kernel has


class Params(ctypes.Structure):
    """struct CombineParams of combine_rows.cuh"""

    _fields_ = (
        ("rows", ctypes.c_void_p),
        ("places", ctypes.c_void_p),
        ("factors", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("count", ctypes.c_int64),
        ("hidden", ctypes.c_int64),
        ("tokens", ctypes.c_int64),
        ("top_k", ctypes.c_int64),
        ("row_bytes", ctypes.c_int64),
    )


class Args(ctypes.Structure):
    """struct CombineArgs of combine_rows.cuh"""

    _fields_ = (
        ("params", Params),
        ("out", ctypes.c_int64),
        ("factor", ctypes.c_int64),
        ("stream", ctypes.c_void_p),
    )


def combined(
    rows: torch.Tensor,
    places: torch.Tensor,
    factors: torch.Tensor | None,
    dtype: torch.dtype = torch.bfloat16,
) -> torch.Tensor:
    """Sums of some rows each, every row times a factor.

    A sum begins with 0 and takes its rows in order, each by a fused multiply-add in FP32. It is rounded to
    BF16 once, at its end.

    Args:
        rows: bfloat16 [rows, hidden], hidden a multiple of 8.
        places: int64 [sums, of each]: the rows of each sum. A number that is no row's adds nothing, whatever
            its factor, NaN too.
        factors: of places' elements, of a floating-point type; they are rounded to BF16. None: all are 1.
        dtype: float32, bfloat16 or float16: what the sums are converted to.

    Returns:
        dtype [sums, hidden], without a history for autograd.
    """
    operands = (rows.detach(), places, None if factors is None else factors.detach())
    if ops.compiling() or ops.seen(*operands):
        found: torch.Tensor = torch.ops.gemm_ladder.combine_rows(*operands, dtype)
        return found
    return _compute(*operands, dtype)


def _compute(
    rows: torch.Tensor, places: torch.Tensor, factors: torch.Tensor | None, dtype: torch.dtype
) -> torch.Tensor:
    if factors is not None:
        factors = factors.reshape(places.shape)
    if rows.is_cuda and why_not(rows.device, len(places), rows.shape[1]) is None:
        return by_kernel(rows, places, factors, dtype)
    return by_torch(rows, places, factors, dtype)


def _fake(
    rows: torch.Tensor, places: torch.Tensor, factors: torch.Tensor | None, dtype: torch.dtype
) -> torch.Tensor:
    return rows.new_empty(places.shape[0], rows.shape[1], dtype=dtype)


def by_torch(
    rows: torch.Tensor, places: torch.Tensor, factors: torch.Tensor | None, dtype: torch.dtype
) -> torch.Tensor:
    """As `combined`, on any device; factors has places' shape."""
    sums = rows.new_zeros(len(places), rows.shape[1], dtype=torch.float32)
    if len(rows):
        inside = (places >= 0) & (places < len(rows))
        places = places.where(inside, 0)
        # A product of two BF16 numbers is exact in FP64. Its sum with an FP32 number, rounded to FP64 and
        # then to FP32, is what a fused multiply-add gives, as FP64 has more than twice the digits.
        # What is no row has -0 for its product, which changes no sum; +0 would change a sum of -0.
        given = torch.ones_like(places) if factors is None else factors.bfloat16()
        numbers = given.double().where(inside, -0.0)
        for choice in range(places.shape[1]):
            picked = rows[places[:, choice]].double().where(inside[:, choice, None], 0)
            sums = torch.addcmul(sums.double(), picked, numbers[:, choice, None]).float()
    return sums.bfloat16().to(dtype)


def by_kernel(
    rows: torch.Tensor, places: torch.Tensor, factors: torch.Tensor | None, dtype: torch.dtype
) -> torch.Tensor:
    """As `by_torch`, on the emulator, or queued on the current stream of a GPU for which `why_not` had no
    reason.

    Raises:
        LaunchError: the launch is refused. EmulatorError: the emulator found the kernel at fault.
        gemm_ladder.build.ToolchainError, BuildError: the kernel could not be compiled.
    """
    out = rows.new_empty(len(places), rows.shape[1], dtype=dtype)
    if out.numel():
        run(rows, places, factors, out)
    return out


def run(rows: torch.Tensor, places: torch.Tensor, factors: torch.Tensor | None, out: torch.Tensor) -> None:
    """As `by_kernel`, into `out`, which is contiguous, at a multiple of 16 bytes and not empty."""
    if rows.stride(1) != 1 or rows.stride(0) * 2 % _ALIGNMENT or rows.data_ptr() % _ALIGNMENT:
        rows = rows.clone(memory_format=torch.contiguous_format)
    if factors is None:
        factors = torch.ones(places.shape, dtype=rows.dtype, device=rows.device)
    elif factors.dtype not in INPUTS:
        factors = factors.bfloat16()
    places, factors = places.contiguous(), factors.contiguous()
    params = Params(
        rows.data_ptr(),
        places.data_ptr(),
        factors.data_ptr(),
        out.data_ptr(),
        *rows.shape,
        *places.shape,
        rows.stride(0) * rows.itemsize,
    )
    given = {"the rows": rows, "the places": places, "the factors": factors}
    KERNEL.start(
        Args(params, INPUT_NUMBERS[out.dtype], INPUT_NUMBERS[factors.dtype]), given, {"the sums": out}
    )


def why_not(device: torch.device, tokens: int, hidden: int) -> str | None:
    """Why the kernel cannot add up rows on a device; None if it can. It is loaded then.

    Raises:
        LaunchError: the kernel is not loaded while a CUDA graph is captured.
    """
    if hidden % 8 or tokens * ceil_div(hidden, COLUMNS) > MAX_SIZE:
        return f"{tokens} rows of {hidden} numbers cannot be divided among thread blocks"
    return KERNEL.why_not(device)


_SCHEMA = f"{KERNEL.name}(Tensor rows, Tensor places, Tensor? factors, ScalarType dtype) -> Tensor"
ops.define(_SCHEMA, _compute, _fake)
