"""Codes of weights with rows and columns exchanged, as a backward pass multiplies by them.

turn_codes.cuh does it at the rate of a copy on a Hopper GPU, and torch's operators elsewhere.
"""

from __future__ import annotations

import ctypes
import math

import torch
from gemm_ladder.arguments import MAX_SIZE, ceil_div
from gemm_ladder.layers.own_kernels import OwnKernel

KERNEL = OwnKernel("turn_codes")
TILE = 128  # rows and columns that a thread block turns
_ALIGNMENT = 16  # bytes that the kernel reads and writes at a time


class Params(ctypes.Structure):
    """struct TurnParams of turn_codes.cuh"""

    _fields_ = (
        ("from_", ctypes.c_void_p),
        ("to", ctypes.c_void_p),
        ("groups", ctypes.c_int64),
        ("n", ctypes.c_int64),
        ("k", ctypes.c_int64),
        ("from_group", ctypes.c_int64),
        ("from_row", ctypes.c_int64),
    )


class Args(ctypes.Structure):
    """struct TurnArgs of turn_codes.cuh"""

    _fields_ = (("params", Params), ("stream", ctypes.c_void_p))


def turned(codes: torch.Tensor) -> torch.Tensor:
    """A copy with the last two dimensions exchanged, contiguous.

    Args:
        codes: [n, k] or [groups, n, k], of a type with one byte.
    """
    if codes.is_cuda and why_not(codes) is None and KERNEL.why_not(codes.device) is None:
        return by_kernel(codes)
    return codes.mT.contiguous()


def why_not(codes: torch.Tensor) -> str | None:
    """Why the kernel cannot turn codes, wherever they are; None if it can."""
    *groups, n, k = codes.shape
    if n % _ALIGNMENT or k % _ALIGNMENT or not codes.numel():
        return f"the shape is {list(codes.shape)}; [..., n, k], positive multiples of 16, is needed"
    if codes.stride(-1) != 1 or any(
        stride % _ALIGNMENT for stride in (*codes.stride()[:-1], codes.data_ptr())
    ):
        return "rows are not contiguous, or not at multiples of 16 bytes"
    if math.prod(groups) * ceil_div(n, TILE) * ceil_div(k, TILE) > MAX_SIZE:
        return "there are too many tiles"
    return None


def by_kernel(codes: torch.Tensor) -> torch.Tensor:
    """As `turned`, on the emulator or a GPU, of codes for which `why_not` had no reason.

    Raises:
        LaunchError: the launch is refused. EmulatorError: the emulator found the kernel at fault.
        gemm_ladder.build.ToolchainError, BuildError: the kernel could not be compiled.
    """
    *groups, n, k = codes.shape
    out = codes.new_empty(*groups, k, n)
    whole = codes if groups else codes[None]
    params = Params(codes.data_ptr(), out.data_ptr(), *whole.shape, *whole.stride()[:2])
    KERNEL.start(Args(params), {"the codes": codes}, {"the turned codes": out})
    return out
