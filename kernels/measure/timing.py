"""Timing calls on one Hopper GPU.

What is measured is the time of a call's kernels on the GPU, summed, as the CUDA profiler reports it: neither
the host's share nor the gaps between kernels. L2 is cold before every call, in one of two states:

    dirty   8 GB were just written, so L2 is full of lines that have to be written back first. Published
            DeepGEMM figures are measured this way; it is the primary figure.
    clean   1 GB was then read, so L2 is full of lines that can be dropped.

`graph_times` measures a third state, which is what decoding does: a CUDA graph of calls back to back, over
so many weights that L2 cannot hold them. There the time is that of the whole graph, gaps included, divided
by its calls.

All implementations are measured in one process, in two passes of opposite order. The pass with the better
median gives the median and the percentiles.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from gemm_ladder.errors import GemmLadderError, one_line
from gemm_ladder.measure.peers import Call

L2 = Literal["dirty", "clean"]
L2_STATES: tuple[L2, ...] = ("dirty", "clean")
State = Literal["dirty", "clean", "graph"]
STATES: tuple[State, ...] = ("dirty", "clean", "graph")
FLUSH_BYTES = 8_000_000_000
READ_BYTES = 1_000_000_000
# Writing this much leaves L2, of 50 MB, as dirty as FLUSH_BYTES do: kernels took the same time within 1 %.
BATCH_FLUSH_BYTES = 512 << 20
GRAPH_BYTES = 400_000_000  # the least that the weights of a graph's calls have together
HEAD_START = 1_000_000  # cycles, more than half a millisecond
GRAPH_US = 1500  # microseconds that the replays of one measurement of a graph take at least
MIN_CALLS, MAX_CALLS, PASS_SECONDS = 1, 20, 0.75  # a pass makes as many calls as fit PASS_SECONDS
MARKER = "spin_kernel"  # the kernel of torch.cuda._sleep, queued before and after each measured call


class Timing(NamedTuple):
    """Microseconds of one call: median, 10th and 90th percentile."""

    us: float
    p10: float
    p90: float


Timer = Callable[[Call, L2, int], Sequence[float]]  # (call, l2, calls) -> microseconds of each call


class Job(NamedTuple):
    """A call that is timed `calls` times, L2 in state `l2` before each of them."""

    call: Call
    l2: L2
    calls: int


class ProfilerError(GemmLadderError, RuntimeError):
    """The CUDA profiler did not report everything that ran."""


class KernelTimer:
    """Times calls on one GPU with the CUDA profiler.

    timer(call, l2, calls) -> microseconds of each call's kernels. Raises ProfilerError if the profiler does
    not report them.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        free, _ = torch.cuda.mem_get_info(device)
        self.flush_bytes = min(FLUSH_BYTES, free // 2) // 8 * 8
        self._buffer = torch.empty(self.flush_bytes // 8, dtype=torch.int64, device=device)
        self._read = self._buffer[: READ_BYTES // 8]
        os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # two lines on stderr per use otherwise
        # Starts the profiler, and raises if it does not work.
        self._times([Job(lambda: None, "clean", 1)], self._buffer, self._read)

    def __call__(self, call: Call, l2: L2, calls: int) -> list[float]:
        (times,) = self._timed([Job(call, l2, calls)], self._buffer, self._read)
        return times

    def batch(self, jobs: Sequence[Job]) -> list[list[float]]:
        """Time many calls in one session of the profiler, whose start would take longer than most of them.

        L2 is made cold by writing BATCH_FLUSH_BYTES, and in the clean state by reading them again.

        Returns:
            For each job, the microseconds of each of its calls.

        Raises:
            ProfilerError: the profiler did not report all kernels, in two attempts.
        """
        buffer = self._buffer[: BATCH_FLUSH_BYTES // 8]
        return self._timed(jobs, buffer, buffer)

    def _timed(self, jobs: Sequence[Job], written: torch.Tensor, read: torch.Tensor) -> list[list[float]]:
        """The microseconds of each call, by job."""
        try:
            times = self._times(jobs, written, read)
        except ProfilerError:  # an event may get lost, so try once more
            times = self._times(jobs, written, read)
        ends = list(itertools.accumulate(job.calls for job in jobs))
        found = [times[end - job.calls : end] for end, job in zip(ends, jobs, strict=True)]
        if not all(map(all, found)):
            raise ProfilerError("the CUDA profiler saw no kernel in a call")
        return found

    def _times(self, jobs: Sequence[Job], written: torch.Tensor, read: torch.Tensor) -> list[float]:
        """The microseconds of all calls of all jobs, in order. `written` is written before each call, and
        `read` is read after that in the clean state."""
        activities = [torch.profiler.ProfilerActivity.CUDA]
        # acc_events: without it some releases of torch warn that only this profile's events will be reported.
        with torch.profiler.profile(activities=activities, acc_events=True) as profile:
            for call, l2, calls in jobs:
                for _ in range(calls):
                    written.zero_()
                    if l2 == "clean":
                        read.sum()
                    torch.cuda._sleep(1)
                    call()
                    torch.cuda._sleep(1)
            torch.cuda.synchronize()
        on_gpu = [
            (event.start_ns(), event.name(), event.duration_ns() / 1000)
            for event in profile.profiler.kineto_results.events()
            if event.device_type() == torch.autograd.DeviceType.CUDA
        ]
        in_order = [(name, duration) for _, name, duration in sorted(on_gpu)]
        return between_markers(in_order, sum(job.calls for job in jobs))


class GraphTimer:
    """A CUDA graph of `calls`, back to back, whose replays are timed.

    timer() -> microseconds of a call: the graph's time over their number. The replays that are timed together
    take GRAPH_US or longer.

    Args:
        calls: each with its own weights, of GRAPH_BYTES together or more, so that no call finds them in L2.

    Raises:
        RuntimeError: a call cannot be captured.
    """

    def __init__(self, calls: Sequence[Call], device: torch.device) -> None:
        self.calls, self.replays = len(calls), 1
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, stream=torch.cuda.Stream(device)):
            for call in calls:
                call()
        self.graph.replay()
        self.replays = max(1, round(GRAPH_US / (self() * self.calls)))

    def __call__(self) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(HEAD_START)  # so that the host, which may be busy, has queued all before any runs
        start.record()
        for _ in range(self.replays):
            self.graph.replay()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) * 1000 / self.replays / self.calls


def graph_times(calls: Sequence[Call], device: torch.device, measurements: int = 3) -> list[float]:
    """Microseconds of a call in a CUDA graph of `calls`, as often as `measurements` says: see GraphTimer."""
    timer = GraphTimer(calls, device)
    return [timer() for _ in range(measurements)]


def between_markers(kernels: Iterable[tuple[str, float]], calls: int) -> list[float]:
    """The summed durations of each measured call.

    Args:
        kernels: (name, duration) in the order in which they ran. For each call these are the kernels that
            make L2 cold, a marker, the call's own kernels, a marker.
        calls: how many calls there were.

    Raises:
        ProfilerError: there are not two markers per call, so the profiler has lost something.
    """
    times, inside, markers = [], False, 0
    for name, duration in kernels:
        if MARKER in name:
            markers += 1
            inside = not inside
            if inside:
                times.append(0.0)
        elif inside:
            times[-1] += duration
    if markers != 2 * calls:
        raise ProfilerError(f"the CUDA profiler reported {markers} markers; {2 * calls} are needed")
    return times


def seconds_of(call: Callable[[], object], device: torch.device) -> float:
    """About how long a call takes on the GPU, without what only the first one sets up."""
    for _ in range(2):
        synchronize(device)
        started = time.perf_counter()
        call()
        synchronize(device)
        elapsed = time.perf_counter() - started
        if elapsed > PASS_SECONDS / MIN_CALLS:
            break
    return elapsed


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has done all that was queued; a CPU has nothing queued."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def calls_for(seconds: float) -> int:
    """How many calls of this duration a pass makes."""
    return max(MIN_CALLS, min(MAX_CALLS, int(PASS_SECONDS / max(seconds, 1e-6))))


def measure(
    calls: Mapping[str, Call],
    counts: Mapping[str, int],
    states: Sequence[L2],
    timer: Timer,
    tick: Callable[[str], None] = lambda name: None,
) -> tuple[dict[tuple[str, L2], Timing], dict[str, str]]:
    """Time every call in two passes of opposite order.

    Args:
        calls, counts: by implementation. A pass makes `counts` calls of it in each state of L2.
        timer: a KernelTimer.
        tick: called with an implementation's name before each of its passes.

    Returns:
        The timings by (implementation, L2), and by implementation the reasons why some failed.
    """
    timings: dict[tuple[str, L2], Timing] = {}
    failures: dict[str, str] = {}
    for order in (list(calls), list(calls)[::-1]):
        for name in order:
            tick(name)
            if name in failures:
                continue
            try:
                for l2 in states:
                    p10, median, p90 = np.percentile(timer(calls[name], l2, counts[name]), [10, 50, 90])
                    best = timings.get((name, l2))
                    if best is None or median < best.us:
                        timings[name, l2] = Timing(float(median), float(p10), float(p90))
            except Exception as error:  # the other implementations are still to be measured
                failures[name] = one_line(error)
    return {key: timing for key, timing in timings.items() if key[0] not in failures}, failures
