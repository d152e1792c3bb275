"""How long a call of a layer or a model takes: as Python makes it, in a CUDA graph, and part by part."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import torch
from gemm_ladder.measure import timing
from gemm_ladder.measure.peers import Call
from gemm_ladder.measure.timing import ProfilerError

Mark = Callable[[str], None]
Marked = Callable[[Mark], object]  # runs once, and tells the mark where a part begins

Measure = Callable[[], float]  # measures once, and returns microseconds of a call

SECONDS = 0.01  # that one measurement of a call takes at least
ROUNDS = 9  # in each of which every implementation is measured once
GRAPH_CALLS = 4  # of a graph, unless one call takes GRAPH_US
PARTS = ("elementwise", "products", "attention", "routing", "experts")
REPEATS = 3  # of a call under the profiler
# What kernels are called that belong to other parts than the one that was marked.
CASTS = "fp8_cast"
ATTENTION = ("flash", "fmha", "attention", "sdpa")


def as_called(call: Call, device: torch.device) -> Measure:
    """What measures a call by the clock on the wall. Calls are made one after another, and whichever is
    slower counts: the host that queues kernels, or the GPU that runs them."""
    count = max(2, min(200, round(SECONDS / timing.seconds_of(call, device))))

    def measure() -> float:
        timing.synchronize(device)
        begun = time.perf_counter()
        for _ in range(count):
            call()
        timing.synchronize(device)
        return (time.perf_counter() - begun) / count * 1e6

    return measure


def in_graph(call: Call, device: torch.device) -> Measure:
    """What measures a call in a CUDA graph, back to back. Raises RuntimeError where it is not captured."""
    us = timing.seconds_of(call, device) * 1e6
    return timing.GraphTimer([call] * (GRAPH_CALLS if us < timing.GRAPH_US else 1), device)


def in_turns(measures: Mapping[str, Measure]) -> dict[str, list[float]]:
    """Measure implementations in turns, ROUNDS times each.

    A GPU at its power limit is the slower the harder it has worked in the milliseconds before, so one that is
    measured alone, or always after the same other one, may be 5 % off. The order is drawn anew in each round.
    """
    drawn, found = random.Random(0), {name: [] for name in measures}
    for _ in range(ROUNDS):
        for name in drawn.sample([*measures], len(measures)):
            found[name].append(measures[name]())
    return found


def parts(runs: Sequence[Marked]) -> list[dict[str, float]]:
    """Microseconds of the kernels of each part, for each run: the median of some repeats.

    Casts count as elementwise, and torch's attention kernels as attention, wherever they are found but among
    the experts. Raises ProfilerError where the profiler has lost something, twice.
    """
    try:
        return _parts(runs)
    except ProfilerError:  # an event may get lost, so try once more
        return _parts(runs)


def _parts(runs: Sequence[Marked]) -> list[dict[str, float]]:
    marks: list[str] = []

    def mark(part: str) -> None:
        marks.append(part)
        torch.cuda._sleep(1)

    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CUDA], acc_events=True
    ) as profile:
        for run in runs:
            for _ in range(REPEATS):
                mark("")  # a call begins
                run(mark)
                mark("-")  # what follows belongs to no call
        torch.cuda.synchronize()
    kernels = sorted(
        (event.start_ns(), event.name(), event.duration_ns() / 1000)
        for event in profile.profiler.kineto_results.events()
        if event.device_type() == torch.autograd.DeviceType.CUDA  # type: ignore[attr-defined]
    )
    calls = by_part([(name, us) for _, name, us in kernels], marks)
    of_run = [calls[begin : begin + REPEATS] for begin in range(0, len(calls), REPEATS)]
    return [
        {part: round(statistics.median(call[part] for call in of), 3) for part in PARTS if of[0][part]}
        for of in of_run
    ]


def by_part(kernels: Sequence[tuple[str, float]], marks: Sequence[str]) -> list[dict[str, float]]:
    """The summed durations of each part of each call.

    Args:
        kernels: (name, duration) in the order in which they ran, the markers among them.
        marks: what each marker says: "" where a call begins, "-" where it ends, else a part of PARTS.

    Raises:
        ProfilerError: there are not as many markers among the kernels.
    """
    left = iter(marks)
    now, found = "-", 0
    calls: list[dict[str, float]] = []
    for name, duration in kernels:
        if timing.MARKER in name:
            found += 1
            now = next(left, "-")
            if not now:
                calls.append(dict.fromkeys(PARTS, 0.0))
                now = PARTS[0]
        elif now != "-":
            calls[-1][_part(name, now)] += duration
    if found != len(marks):
        raise ProfilerError(f"the CUDA profiler reported {found} markers; {len(marks)} are needed")
    return calls


def _part(kernel: str, marked: str) -> str:
    if marked == "experts":
        return marked
    if CASTS in kernel:
        return PARTS[0]
    return "attention" if any(word in kernel for word in ATTENTION) else marked
