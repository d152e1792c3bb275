"""How fast a function is.

The tables of this repository come from `gemm_ladder.measure`, which makes two passes, keeps percentiles and
measures libraries in the same run.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence

import torch
from gemm_ladder.errors import InputError
from gemm_ladder.measure.timing import FLUSH_BYTES

__all__ = ["bench", "bench_kineto"]

L2_BYTES = 256_000_000  # several times the size of an L2


def bench(
    fn: Callable[[], object], num_warmups: int = 5, num_tests: int = 10, high_precision: bool = False
) -> float:
    """The mean duration of a call in seconds, over calls in a row: measured by events on the current CUDA
    stream, or by the clock where torch finds no GPU.

    Args:
        fn: the function that is timed.
        num_warmups: calls before those that count. L2 is flushed before them, and not between calls.
        num_tests: calls that count.
        high_precision: keep the GPU busy first (8192^3 in FP32, about 20 ms), so that the host has queued the
            calls before the GPU reaches them, and its own time is not measured.

    Raises:
        InputError: num_tests is below 1.
    """
    _at_least_one(num_tests)
    if not torch.cuda.is_available():
        for _ in range(num_warmups):
            fn()
        start = time.perf_counter()
        for _ in range(num_tests):
            fn()
        return (time.perf_counter() - start) / num_tests

    torch.empty(L2_BYTES, dtype=torch.int8, device="cuda").zero_()
    for _ in range(num_warmups):
        fn()
    if high_precision:
        busy = torch.ones(8192, 8192, device="cuda")
        busy @ busy
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    for _ in range(num_tests):
        fn()
    end.record()
    end.synchronize()
    milliseconds: float = begin.elapsed_time(end)
    return milliseconds / num_tests / 1e3


def bench_kineto(
    fn: Callable[[], object],
    kernel_names: str | Sequence[str],
    num_tests: int = 30,
    suppress_kineto_output: bool = False,
    trace_path: str | None = None,
    flush_l2: bool = True,
    with_multiple_kernels: bool = False,
    barrier: Callable[[], object] | None = None,
) -> float | tuple[float, ...]:
    """The mean duration of a kernel, in seconds, as the CUDA profiler reports it.

    Args:
        fn: launches the kernel on the current CUDA device.
        kernel_names: a part of the kernel's name, or several such parts.
        num_tests: calls of `fn` that count, after one that does not.
        suppress_kineto_output: silence the profiler's own messages, if it has not been used before.
        trace_path: where to write a Chrome trace of the calls.
        flush_l2: write 8 GB before each call, which leaves L2 full of dirty lines.
        with_multiple_kernels: allow a name to match several kernels, and return the mean over all of them.
        barrier: called before each call of `fn`, after L2 is flushed, as several processes need it that are
            to begin together.

    Returns:
        Seconds for one name; a tuple of them for several.

    Raises:
        InputError: there is no GPU; a name matches no kernel, or several without with_multiple_kernels.
    """
    _at_least_one(num_tests)
    if not torch.cuda.is_available():
        raise InputError("torch finds no CUDA device; bench_kineto needs one, and bench times calls without")
    if suppress_kineto_output:
        os.environ.setdefault("KINETO_LOG_LEVEL", "6")
    flush = torch.empty(_flush_bytes() if flush_l2 else 0, dtype=torch.int8, device="cuda")
    fn()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(num_tests):
            flush.zero_()
            if barrier is not None:
                barrier()
            fn()
        torch.cuda.synchronize()
    if trace_path is not None:
        profile.export_chrome_trace(trace_path)
    ran = [
        (event.name, event.time_range.elapsed_us())
        for event in profile.events()
        if event.device_type.name == "CUDA"
    ]
    if isinstance(kernel_names, str):
        return mean_seconds(ran, kernel_names, with_multiple_kernels)
    return tuple(mean_seconds(ran, name, with_multiple_kernels) for name in kernel_names)


def mean_seconds(ran: Iterable[tuple[str, float]], name: str, several: bool = False) -> float:
    """The mean duration, in seconds, of the kernels whose name has `name` in it.

    Args:
        ran: (name, microseconds) of all kernels that ran.
        several: whether `name` may match kernels of different names.

    Raises:
        InputError: no kernel matches, or kernels of different names do and `several` is false.
    """
    ran = list(ran)
    found = [(kernel, us) for kernel, us in ran if name in kernel]
    kernels = sorted({kernel for kernel, _ in found})
    if not kernels:
        seen = ", ".join(sorted({kernel for kernel, _ in ran})) or "none"
        raise InputError(f"{name!r} is a part of no kernel's name; one of those that ran is needed: {seen}")
    if len(kernels) > 1 and not several:
        raise InputError(
            f"{name!r} is a part of {len(kernels)} kernels' names, {', '.join(kernels)}; "
            "a part of one, or with_multiple_kernels=True, is needed"
        )
    return sum(us for _, us in found) / len(found) / 1e6


def _at_least_one(num_tests: int) -> None:
    if num_tests < 1:
        raise InputError(f"num_tests is {num_tests}; 1 or more is needed")


def _flush_bytes() -> int:
    """FLUSH_BYTES, or half of the free memory of the current device if that is less."""
    return min(FLUSH_BYTES, torch.cuda.mem_get_info()[0] // 2)
