"""Who did what, and for how long: the events of a run, from either machine, made into spans of time.

The emulator's events (`gemm_ladder.ref.emulator`) and the GPU's stamps (`stamps`) come as one sequence of
`Event`, with the event names of ref/emulator/record.hpp, which include/trace.cuh uses as well: `spans` does
not know which machine it reads. A span belongs to an actor of a thread block:

    a warp          wait      for an mbarrier, for the tensor core, for other warps
                    issue     it gives the copy engine a stage's loads
                    promote   from the end of a product on, until the warp's next wait or next product
                    store     results to shared memory and to the copy engine; in kernels without that: the
                              last promotion too, and results straight to global memory
    a warp's part of the tensor core
                    multiply  from the fence before a product's first WGMMA on, until the warp has waited for
                              the product
    a stage of the copy engine
                    load      from the first request on, until all bytes are there; on a GPU, until the first
                              warp of the block sees that they are
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

WARP, TENSOR_CORE, COPY_ENGINE = "warp", "tensor core", "copy engine"

# What blocks a warp, and what says that it goes on.
WAITS = {
    "mbarrier_wait": "mbarrier_pass",
    "wgmma_wait": "wgmma_pass",
    "bar_sync": "bar_pass",
    "cluster_wait": "cluster_pass",
    "tma_store_wait": "tma_store_pass",
}
_ISSUES = ("mbarrier_expect_tx", "tma_load")
_STORES = ("fence_proxy_async", "tma_store")
_ENDS = ("cluster_wait", "thread_exit")
_KINDS = {*WAITS, *WAITS.values(), *_ISSUES, *_STORES, *_ENDS, "thread_start", "wgmma_fence"}


class Event(NamedTuple):
    """One thing that happened. `warp` is -1 for the copy engine and the tensor core."""

    time: float
    block: int
    warp: int
    kind: str
    address: int
    value: int


@dataclasses.dataclass(frozen=True)
class Span:
    """Times are in the unit of the events.

    Attributes:
        unit, index: the actor: WARP and its number in the block, TENSOR_CORE and the number of the warp that
            it works for, or COPY_ENGINE and the stage.
        role: "producer" for a warp that only loads, "consumer 0", ... for those of a warpgroup that
            multiplies, "copy engine".
        what: load, issue, wait, multiply, promote or store.
        on: what is waited for.
        bytes: that a load brings.
    """

    block: int
    unit: str
    index: int
    role: str
    what: str
    begin: float
    end: float
    on: str = ""
    bytes: int = 0


def place(span: Span) -> tuple[int, int, int]:
    """From the top: who issues, the copy engine, then each warp below its part of the tensor core."""
    if span.unit == COPY_ENGINE:
        return 1, span.index, 0
    return (0 if span.role == "producer" else 2), span.index, int(span.unit == WARP)


def label(span: Span) -> str:
    """The actor's name, inside its block."""
    if span.unit == COPY_ENGINE:
        return f"copy engine, stage {span.index}"
    return f"{span.role}, warp {span.index}" + (": tensor core" if span.unit == TENSOR_CORE else "")


def of_emulator(recorded: np.ndarray) -> list[Event]:
    """The events of the first launch's first cluster; `recorded` is `Run.events`.

    A warp's mbarrier instructions are recorded by every lane that executes them: the lowest of them speaks.
    """
    first = recorded[(recorded["launch"] == 0) & (recorded["cluster"] == 0)]
    rows = [
        (int(row["step"]), int(row["block"]), int(row["thread"]), str(row["kind"]), int(row["address"]),
         int(row["value"])) for row in first
    ]  # fmt: skip
    speakers: dict[tuple[int, int, int], int] = {}
    for _, block, thread, _, address, _ in rows:
        key = block, thread // 32, address
        speakers[key] = min(speakers.get(key, thread), thread)
    return [
        Event(step, block, thread // 32, "cluster_wait" if kind == "cluster_arrive" else kind, address, value)
        for step, block, thread, kind, address, value in rows
        if thread == speakers[block, thread // 32, address]
    ]


def spans(events: Iterable[Event]) -> list[Span]:
    """The spans of all blocks, by block, actor and time; what took no time is left out.

    Args:
        events: each warp's in the order in which they happened.
    """
    blocks: dict[int, list[Event]] = defaultdict(list)
    for event in events:
        blocks[event.block].append(event)
    found = [span for block in sorted(blocks) for span in _block(block, blocks[block])]
    return [span for span in found if span.end > span.begin]


def _block(block: int, events: Sequence[Event]) -> Iterator[Span]:
    full = sorted({event.address for event in events if event.kind == "mbarrier_expect_tx"})
    waited = {event.address for event in events if event.kind == "mbarrier_wait"}
    names = {address: f"full {stage}" for stage, address in enumerate(full)}
    names |= {address: f"empty {stage}" for stage, address in enumerate(sorted(waited - set(full)))}

    warps: dict[int, list[Event]] = defaultdict(list)
    for event in events:
        if event.warp >= 0:
            warps[event.warp].append(event)
    for stage, address in enumerate(full):
        yield from _loads(block, stage, [event for event in events if event.address == address])
    multiplying = {warp for warp in warps if any(event.kind == "wgmma_fence" for event in warps[warp])}
    groups = sorted({warp // 4 for warp in multiplying})
    for warp in sorted(warps):
        if warp in multiplying:
            role = f"consumer {groups.index(warp // 4)}"
        elif any(event.kind == "tma_load" for event in warps[warp]):
            role = "producer"
        else:
            continue  # it does nothing but meet the others at the block's barriers
        yield from _products(block, warp, role, warps[warp])
        yield from _merged(_activity(block, warp, role, warps[warp], names))


def _loads(block: int, stage: int, events: Sequence[Event]) -> Iterator[Span]:
    """Of one stage; `events` are those of its `full` mbarrier."""
    knows = ("mbarrier_phase",)
    if not any(event.kind in knows for event in events):
        knows = ("mbarrier_pass", "mbarrier_test")  # nobody can tell but the warps that look
    ends = sorted(event.time for event in events if event.kind in knows)
    for event in events:
        if event.kind == "mbarrier_expect_tx":
            end = next((time for time in ends if time >= event.time), None)
            if end is not None:
                yield Span(
                    block, COPY_ENGINE, stage, "copy engine", "load", event.time, end, bytes=event.value
                )


def _products(block: int, warp: int, role: str, events: Sequence[Event]) -> Iterator[Span]:
    """What the tensor core does for one warp. A group of WGMMAs begins with its wgmma.fence."""
    begun: list[float] = []
    for event in events:
        if event.kind == "wgmma_fence":
            begun.append(event.time)
        elif event.kind == "wgmma_pass":
            while len(begun) > event.value:  # so many may still be in flight
                yield Span(block, TENSOR_CORE, warp, role, "multiply", begun.pop(0), event.time)


def _activity(
    block: int, warp: int, role: str, events: Sequence[Event], names: dict[int, str]
) -> Iterator[Span]:
    """What one warp does itself: said by what an interval between two of its events begins and ends with."""
    for last, next_ in itertools.pairwise(event for event in events if event.kind in _KINDS):
        what, on = "", ""
        if WAITS.get(last.kind) == next_.kind:
            what, on = "wait", _waits_for(last, names)
        elif next_.kind in _ISSUES:
            what = "issue"
        elif next_.kind in _STORES or (last.kind == "wgmma_pass" and next_.kind in _ENDS):
            what = "store"
        elif last.kind == "wgmma_pass":
            what = "promote"
        if what:
            yield Span(block, WARP, warp, role, what, last.time, next_.time, on)


def _waits_for(event: Event, names: dict[int, str]) -> str:
    if event.kind == "mbarrier_wait":
        return names[event.address]
    if event.kind == "bar_sync":
        return f"barrier {event.value}"
    return {"wgmma_wait": "tensor core", "cluster_wait": "cluster", "tma_store_wait": "copy engine"}[
        event.kind
    ]


def _merged(parts: Iterable[Span]) -> Iterator[Span]:
    """Parts that follow one another without a gap, and are the same, as one."""
    whole = None
    for part in parts:
        if whole and (whole.what, whole.on, whole.end) == (part.what, part.on, part.begin):
            whole = dataclasses.replace(whole, end=part.end)
            continue
        if whole:
            yield whole
        whole = part
    if whole:
        yield whole
