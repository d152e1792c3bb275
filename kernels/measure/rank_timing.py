"""Timing what several ranks do together: their clocks begin together, and the slowest one's time counts."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from gemm_ladder.figures.rows import ParallelRow

WARM = 3  # calls that are not counted


class Found(NamedTuple):
    """Microseconds of a call on the slowest rank, and of its steps: a list for each call."""

    us: list[float]
    steps: list[list[float]]


Step = Callable[[Any], Any]  # is given what the step before it has returned


def timed(steps: Sequence[Step], group: dist.ProcessGroup, calls: int, device: torch.device) -> Found:
    """Time calls of some steps: the group's ranks begin each together, and what counts is the slowest."""
    found = []
    for _ in range(WARM + calls):
        dist.barrier(group)
        wait(device)
        marks, state = [_mark(device)], None
        for step in steps:
            state = step(state)
            marks.append(_mark(device))
        wait(device)
        found.append([_between(one, other) for one, other in itertools.pairwise(marks)])
    of_ranks = gathered(found[WARM:], group)
    slowest = [max(of_call, key=sum) for of_call in zip(*of_ranks, strict=True)]
    return Found([sum(one) for one in slowest], [list(one) for one in zip(*slowest, strict=True)])


def gathered(value: Any, group: dist.ProcessGroup) -> list[Any]:
    found = [None] * dist.get_world_size(group)
    dist.all_gather_object(found, value, group=group)
    return found


def error(out: torch.Tensor, expected: torch.Tensor, group: dist.ProcessGroup) -> float:
    """The largest of all ranks' ||out - expected|| / ||expected||."""
    off = ((out.float() - expected.float()).norm() / expected.float().norm()).item() if out.numel() else 0.0
    return max(gathered(off, group))


def row(
    what: str,
    impl: str,
    ranks: int,
    tokens: int,
    found: Found,
    steps: dict[str, int],
    moved: int,
    off: float,
) -> ParallelRow:
    """One row of figures/data/parallel.json; `steps` says which of the measured ones is which."""
    p10, median, p90 = (round(float(value), 3) for value in np.percentile(found.us, [10, 50, 90]))
    of_step = {name: round(float(np.median(found.steps[at])), 3) for name, at in steps.items()}
    return {
        "what": what,
        "impl": impl,
        "ranks": ranks,
        "tokens": tokens,
        "us": median,
        "us_p10": p10,
        "us_p90": p90,
        "dispatch_us": of_step.get("dispatch", 0.0),
        "products_us": of_step.get("products", 0.0),
        "combine_us": of_step.get("combine", 0.0),
        "forward_us": of_step.get("forward", 0.0),
        "backward_us": of_step.get("backward", 0.0),
        "bytes": moved,
        "rel_err": float(f"{off:.3g}"),
    }


def _mark(device: torch.device) -> Any:
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _between(one: Any, other: Any) -> float:
    """Microseconds."""
    return (other - one) * 1e6 if isinstance(one, float) else one.elapsed_time(other) * 1e3


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
