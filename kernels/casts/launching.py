"""The kernels of the casts: loaded once, and launched, on a GPU or on the emulator."""

from __future__ import annotations

import ctypes
import functools

import torch
from gemm_ladder import launch as launches
from gemm_ladder.arguments import EMULATED_SMS
from gemm_ladder.casts.kernel import Kernel
from gemm_ladder.casts.operands import NAME, CheckedCast, Results
from gemm_ladder.errors import LaunchError
from gemm_ladder.ref import emulator
from gemm_ladder.settings import num_sms_limit

_libraries: dict[Kernel, ctypes.CDLL | None] = {}  # None: it could not be built


class Params(ctypes.Structure):
    """struct CastParams of cast_numbers.cuh"""

    _fields_ = (
        ("x", ctypes.c_void_p),
        ("weight", ctypes.c_void_p),
        ("rows", ctypes.c_void_p),
        ("counts", ctypes.c_void_p),
        ("ends", ctypes.c_void_p),
        ("ks", ctypes.c_void_p),
        ("codes", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
        ("inverse_roots", ctypes.c_void_p),
        ("groups", ctypes.c_int64),
        ("x_rows", ctypes.c_int64),
        ("m", ctypes.c_int64),
        ("k", ctypes.c_int64),
        *((name, ctypes.c_int64) for name in ("ks_count", "ends_count", "alignment")),
        ("x_group", ctypes.c_int64),
        ("x_row", ctypes.c_int64),
        ("x_column", ctypes.c_int64),
        ("codes_group", ctypes.c_int64),
        ("codes_row", ctypes.c_int64),
        ("scale_group", ctypes.c_int64),
        ("scale_row", ctypes.c_int64),
        ("scale_column", ctypes.c_int64),
        ("epsilon", ctypes.c_float),
        ("power_of_two", ctypes.c_bool),
    )


class Args(ctypes.Structure):
    """struct CastArgs of cast_start.cuh"""

    _fields_ = (("params", Params), ("num_sms", ctypes.c_int64), ("stream", ctypes.c_void_p))


def arguments(call: CheckedCast, out: Results, num_sms: int) -> Args:
    """The arguments of a launch, but for the stream. The struct keeps no tensor alive."""
    tensors = (call.x, call.weight, call.rows, call.counts, call.ends, call.ks, *out)
    groups, x_rows, _ = call.x.shape
    return Args(
        Params(
            *(None if one is None else one.data_ptr() for one in tensors),
            groups,
            x_rows,
            call.m,
            call.k,
            -1 if call.ks is None else len(call.ks),
            0 if call.ends is None else len(call.ends),
            call.alignment,
            *call.x.stride(),
            *out.codes.stride()[:2],
            *out.scales.stride(),
            call.epsilon,
            call.use_ue8m0,
        ),
        num_sms,
    )


def run(call: CheckedCast, out: Results, num_sms: int = 0) -> None:
    """Run a cast where its tensors are: on the emulator, or queued on the current stream of their GPU.

    Args:
        out: is written.
        num_sms: of which a launch takes the size that suits it; 0: all of the GPU's, EMULATED_SMS of the
            emulator's.

    Raises:
        LaunchError: the launch is refused. EmulatorError: the emulator found the kernel at fault.
        gemm_ladder.build.ToolchainError, BuildError: the kernel could not be compiled.
    """
    if not out.codes.numel():
        return
    if not call.x.is_cuda:
        tensors = {**call.tensors, "the codes": _whole(out.codes), "the scales": out.scales}
        if out.inverse_roots is not None:
            tensors["the inverse roots"] = out.inverse_roots
        args = arguments(call, out, num_sms or EMULATED_SMS)
        error = emulator.launch(_emulated(call.kernel), args, tensors, once={"the codes", "the scales"})
        if error:
            raise LaunchError(f"{NAME}: {error}")
        return
    device = call.x.device
    with launches.current(device):
        entry = launcher(call.kernel)
    args = arguments(call, out, launches.usable_sms(device, num_sms or num_sms_limit()))
    launches.start(NAME, entry, args, device)


def launcher(kernel: Kernel) -> launches.Launcher:
    """A kernel's entry point for the GPU, loaded if it is not."""
    return launches.launcher(_libraries.get(kernel) or load(kernel))


def _whole(codes: torch.Tensor) -> torch.Tensor:
    """The codes with what lies between their rows."""
    return codes.as_strided((*codes.shape[:2], codes.stride(1)), codes.stride())


def load(kernel: Kernel) -> ctypes.CDLL:
    """A library for the GPU, compiled if it is not in the cache, and loaded."""
    library = _libraries[kernel] = kernel.compile("cuda").lib
    return library


def why_not(kernel: Kernel, device: torch.device) -> str | None:
    """Why a cast on a device cannot be done by its kernel; None if it can. The kernel is loaded then.

    A kernel that cannot be built is tried once in a process, and a warning says why it was not.

    Raises:
        LaunchError: the kernel is not loaded while a CUDA graph is captured.
    """
    return launches.why_not_loaded(kernel.name, kernel, _libraries, load, device)


@functools.cache
def _emulated(kernel: Kernel) -> ctypes.CDLL:
    return kernel.compile("emulator").lib
