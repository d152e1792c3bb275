"""The training kernels: loaded once, and launched, on a GPU or on the emulator."""

from __future__ import annotations

import ctypes
import functools

from gemm_ladder import launch as launches
from gemm_ladder.arguments import EMULATED_SMS, TMA_ALIGNMENT, align, row_stride
from gemm_ladder.checks import grouped
from gemm_ladder.errors import LaunchError
from gemm_ladder.ref import emulator
from gemm_ladder.settings import num_sms_limit
from gemm_ladder.training.candidates import choose
from gemm_ladder.training.config import Config
from gemm_ladder.training.operands import RECIPE, CheckedCall

NAME = "the training kernel"  # in errors

_libraries: dict[Config, ctypes.CDLL] = {}


class GroupArgs(ctypes.Structure):
    """struct TrainingGroup of start_1d1d.cuh"""

    _fields_ = (
        ("a", ctypes.c_void_p),
        ("b", ctypes.c_void_p),
        ("d", ctypes.c_void_p),
        ("k", ctypes.c_int64),
        ("a_stride", ctypes.c_int64),
        ("b_stride", ctypes.c_int64),
        ("scale_row", ctypes.c_int64),
    )


class Args(ctypes.Structure):
    """struct TrainingArgs of start_1d1d.cuh"""

    _fields_ = (
        ("sfa", ctypes.c_void_p),
        ("sfb", ctypes.c_void_p),
        ("m", ctypes.c_int64),
        ("n", ctypes.c_int64),
        ("scale_rows", ctypes.c_int64),
        ("sfa_stride", ctypes.c_int64),
        ("sfb_stride", ctypes.c_int64),
        ("d_stride", ctypes.c_int64),
        ("accumulate", ctypes.c_int64),
        ("num_sms", ctypes.c_int64),
        ("stream", ctypes.c_void_p),
        ("groups", ctypes.POINTER(GroupArgs)),
        ("num_groups", ctypes.c_int64),
    )


def queue(call: CheckedCall) -> None:
    """Queue a call on the current stream of its tensors' GPU.

    Raises:
        LaunchError: the launch is refused, or the kernel is not loaded while a CUDA graph is captured.
        gemm_ladder.build.ToolchainError, BuildError: the kernel could not be compiled.
    """
    device = call.d.device
    num_sms = launches.usable_sms(device, num_sms_limit())
    ks = [group.k for group in call.groups if group.k]
    run(choose(call.m, call.n, ks, num_sms) if ks else None, call, num_sms)


def run(config: Config | None, call: CheckedCall, num_sms: int = 0) -> None:
    """Run a call where its tensors are: on the emulator, or on their GPU.

    Args:
        config: of the kernel; None if no group has anything to multiply.
        call: with an m and an n of 1 or more.
        num_sms: how many SMs to use; 0: all of the GPU's, EMULATED_SMS of the emulator's.

    Raises:
        LaunchError: as `queue`. EmulatorError: the emulator found the kernel at fault.
    """
    if not call.d.is_cuda:
        kernel = _emulated(config) if config else None
        _begin(call)
        if kernel:
            args = arguments(call, num_sms or EMULATED_SMS)
            tensors = {
                "A": call.a,
                "A's scales": call.sfa,
                "B": call.b,
                "B's scales": call.sfb,
                "D": call.d,
            }
            if error := emulator.launch(kernel, args, tensors, once={"D"}):
                raise LaunchError(f"{NAME}: {error}")
        return
    device = call.d.device
    with launches.current(device):
        if config and config not in _libraries:
            _refuse_capture(config, call)
        kernel = library(config) if config else None
        _begin(call)
    if kernel:
        args = arguments(call, launches.usable_sms(device, num_sms))
        launches.start(NAME, launches.launcher(kernel), args, device)


def _begin(call: CheckedCall) -> None:
    """What no kernel of ours does: D becomes C, where that is another tensor, and groups of no k become
    zeros, where there is no C."""
    if call.c is None:
        of_group = call.d if call.d.dim() == 3 else call.d[None]
        for group in call.groups:
            if not group.k:
                of_group[group.number].zero_()
    elif call.c is not call.d:
        call.d.copy_(call.c)


def arguments(call: CheckedCall, num_sms: int) -> Args:
    """The arguments of a launch, but for the stream: all groups that have a k, those with the largest first,
    so that no large tile begins last. The struct keeps what it points to alive, but not the tensors."""
    groups = sorted((group for group in call.groups if group.k), key=lambda group: -group.k)
    a, b, d, m, n = call.a.data_ptr(), call.b.data_ptr(), call.d.data_ptr(), call.m, call.n
    floats = ctypes.sizeof(ctypes.c_float)
    if call.d.dim() == 2:
        strides = [row_stride(matrix.shape, matrix.stride()) for matrix in (call.a, call.b)]
        structs = [GroupArgs(a, b, d, group.k, *strides, 0) for group in groups]
    else:
        step = call.d.stride(0) * floats
        structs = [
            GroupArgs(a + m * begin, b + n * begin, d + index * step, k, k, k, scale_row)
            for index, k, begin, scale_row in groups
        ]
    quad = TMA_ALIGNMENT // floats
    return Args(
        sfa=call.sfa.data_ptr(),
        sfb=call.sfb.data_ptr(),
        m=m,
        n=n,
        scale_rows=call.sfa.shape[1],
        sfa_stride=align(m, quad),
        sfb_stride=align(n, quad),
        d_stride=call.d.stride(-2) if m > 1 else align(n, quad),
        accumulate=call.c is not None,
        num_sms=num_sms,
        groups=(GroupArgs * len(structs))(*structs),
        num_groups=len(structs),
    )


def library(config: Config) -> ctypes.CDLL:
    """A configuration's kernel for the GPU, compiled if it is not in the cache, and loaded."""
    if config not in _libraries:
        _libraries[config] = config.compile("cuda").lib
    return _libraries[config]


def _refuse_capture(config: Config, call: CheckedCall) -> None:
    """Raise LaunchError while a CUDA graph is being captured: loading a kernel would break the capture."""
    if grouped.capturing(call.d.device):
        k = sum(group.k for group in call.groups)
        product = f"groups={len(call.groups)}, kind='k_grouped'" if call.d.dim() == 3 else f"recipe={RECIPE}"
        raise LaunchError(
            f"a CUDA graph is being captured and {config.name} is not loaded; gemm_ladder.precompile("
            f"n={call.n}, k={k}, max_m={call.m}, {product}) is needed before"
        )


@functools.lru_cache(maxsize=256)
def _emulated(config: Config) -> ctypes.CDLL:
    return config.compile("emulator").lib
