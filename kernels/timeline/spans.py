"""Who did what, and for how long: the events of a run on either machine, turned into spans of time.

The emulator's events (`gemm_ladder.ref.emulator`) and the GPU's stamps (`stamps`) both come as a sequence of
`Event`, with the event names of ref/emulator/core/record.hpp, which include/trace.cuh uses too. So `spans`
does not need to know which machine was recorded. A span belongs to an actor of a thread block:

    a warp          wait      for an mbarrier, for the tensor core or for other warps
                    issue     the warp requests a stage's loads from the copy engine
                    promote   from the end of a WGMMA group until the warp's next wait or next WGMMA group
                    store     results to shared memory and to the copy engine; in kernels without TMA stores:
                              the last promotion and the stores to global memory, as far as the emulator has
                              recorded them
    the tensor core, working for a warp
                    multiply  from the fence before a group's first WGMMA until the warp has waited for it
    a stage of the copy engine
                    load      from the first request until all bytes have arrived; on a GPU, until the first
                              warp of the thread block sees that they have
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

WARP, TENSOR_CORE, COPY_ENGINE = "warp", "tensor core", "copy engine"

# For each event after which a warp waits, the event that ends the wait.
WAITS = {
    "mbarrier_wait": "mbarrier_pass",
    "wgmma_wait": "wgmma_pass",
    "bar_sync": "bar_pass",
    "cluster_wait": "cluster_pass",
    "tma_store_wait": "tma_store_pass",
}
_ISSUES = ("mbarrier_expect_tx", "tma_load")
_STORES = ("fence_proxy_async", "tma_store")
_ENDS = ("cluster_wait", "thread_exit", "global_store")
_KINDS = {*WAITS, *WAITS.values(), *_ISSUES, *_STORES, *_ENDS, "thread_start", "wgmma_fence"}


class Event(NamedTuple):
    """One event. `warp` is -1 for events of the copy engine and the tensor core."""

    time: float
    block: int
    warp: int
    kind: str
    address: int
    value: int


@dataclasses.dataclass(frozen=True)
class Span:
    """What an actor did from `begin` to `end`, in the unit of the events' times.

    Attributes:
        unit, index: the actor: WARP and the warp's number in the thread block; TENSOR_CORE and the number of
            the warp that it works for; COPY_ENGINE and the stage.
        role: "producer" for a warp that only loads, "consumer 0", "consumer 1", ... for the warps of each
            warpgroup that multiplies, or "copy engine".
        what: load, issue, wait, multiply, promote or store.
        on: what a wait is for.
        bytes: the size of a load.
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
    """The order from top to bottom: who issues, the copy engine, then each warp below its tensor core."""
    if span.unit == COPY_ENGINE:
        return 1, span.index, 0
    return (0 if span.role == "producer" else 2), span.index, int(span.unit == WARP)


def label(span: Span) -> str:
    """The actor's name within its thread block."""
    if span.unit == COPY_ENGINE:
        return f"copy engine, stage {span.index}"
    return f"{span.role}, warp {span.index}" + (": tensor core" if span.unit == TENSOR_CORE else "")


def kept(recorded: np.ndarray) -> np.ndarray:
    """Which of the emulator's events stand for their warp: a bool for each.

    The emulator records a warp's mbarrier instruction once for every lane that executes it. The lowest lane
    that uses an address in an instruction stands for the others.

    Args:
        recorded: of dtype `emulator.EVENT`, of one cluster.
    """
    _, kinds = np.unique(recorded["kind"], return_inverse=True)
    place = np.stack(
        [recorded["block"], recorded["thread"] // 32, kinds, recorded["address"].astype(np.int64)]
    )
    _, group = np.unique(place, axis=1, return_inverse=True)
    lowest = np.full(len(recorded), np.iinfo(np.int32).max, np.int32)
    np.minimum.at(lowest, group.ravel(), recorded["thread"])
    return recorded["thread"] == lowest[group.ravel()]


def of_emulator(recorded: np.ndarray, launch: int = 0, cluster: int = 0) -> list[Event]:
    """The events of one cluster, for each warp those of one lane (`kept`); `recorded` is `Run.events`."""
    chosen = recorded[(recorded["launch"] == launch) & (recorded["cluster"] == cluster)]
    chosen = chosen[kept(chosen)]
    columns = (chosen[name].tolist() for name in ("step", "block", "thread", "kind", "address", "value"))
    return [
        Event(step, block, thread // 32, "cluster_wait" if kind == "cluster_arrive" else kind, address, value)
        for step, block, thread, kind, address, value in zip(*columns, strict=True)
    ]


def spans(events: Iterable[Event], until: float | None = None, everyone: bool = False) -> list[Span]:
    """The spans of all thread blocks, by block, actor and time; spans without duration are left out.

    Args:
        events: those of each warp in the order in which they happened.
        until: when the recording ends. What has not ended by then, such as a wait in a deadlock, becomes a
            span that ends there; None: it is left out.
        everyone: also give the spans of warps that neither load nor multiply.
    """
    blocks: dict[int, list[Event]] = defaultdict(list)
    for event in events:
        blocks[event.block].append(event)
    found = [span for block in sorted(blocks) for span in _block(block, blocks[block], until, everyone)]
    return [span for span in found if span.end > span.begin]


def barrier_names(events: Sequence[Event]) -> dict[int, str]:
    """The mbarriers of one thread block by address: "full" for those that expect bytes, "empty" for those
    that only warps wait for which expect bytes on others, each counted from 0 in the order of the addresses;
    of others that a warp waits for, the address."""
    expecting = [event for event in events if event.kind == "mbarrier_expect_tx"]
    loaders = {event.warp for event in expecting}
    waiting: dict[int, set[int]] = defaultdict(set)
    for event in events:
        if event.kind == "mbarrier_wait":
            waiting[event.address].add(event.warp)
    full = sorted({event.address for event in expecting})
    empty = sorted(address for address in waiting.keys() - set(full) if waiting[address] <= loaders)
    names = {address: f"mbarrier 0x{address:x}" for address in waiting}
    for kind, addresses in (("full", full), ("empty", empty)):
        names |= {address: f"{kind} {stage}" for stage, address in enumerate(addresses)}
    return names


def _block(block: int, events: Sequence[Event], until: float | None, everyone: bool) -> Iterator[Span]:
    names = barrier_names(events)
    full = [address for address, name in names.items() if name.startswith("full")]
    warps: dict[int, list[Event]] = defaultdict(list)
    for event in events:
        if event.warp >= 0:
            warps[event.warp].append(event)
    for stage, address in enumerate(full):
        yield from _loads(block, stage, [event for event in events if event.address == address], until)
    multiplying = {warp for warp in warps if any(event.kind == "wgmma_fence" for event in warps[warp])}
    groups = sorted({warp // 4 for warp in multiplying})
    for warp in sorted(warps):
        if warp in multiplying:
            role = f"consumer {groups.index(warp // 4)}"
        elif any(event.kind == "tma_load" for event in warps[warp]):
            role = "producer"
        elif everyone:
            role = ""
        else:
            continue  # this warp only takes part in the thread block's barriers
        yield from _products(block, warp, role, warps[warp], until)
        yield from _merged(_activity(block, warp, role, warps[warp], names, until))


def _loads(block: int, stage: int, events: Sequence[Event], until: float | None) -> Iterator[Span]:
    """The loads of one stage; `events` are those of its `full` mbarrier."""
    knows = ("mbarrier_phase",)
    if not any(event.kind in knows for event in events):
        knows = ("mbarrier_pass", "mbarrier_test")  # on a GPU only the warps that look at the mbarrier know
    ends = sorted(event.time for event in events if event.kind in knows)
    for event in events:
        if event.kind == "mbarrier_expect_tx":
            end = next((time for time in ends if time >= event.time), until)
            if end is not None:
                yield Span(
                    block, COPY_ENGINE, stage, "copy engine", "load", event.time, end, bytes=event.value
                )


def _products(
    block: int, warp: int, role: str, events: Sequence[Event], until: float | None
) -> Iterator[Span]:
    """The WGMMA groups of one warp. A group begins with its wgmma.fence."""
    begun: list[float] = []
    for event in events:
        if event.kind == "wgmma_fence":
            begun.append(event.time)
        elif event.kind == "wgmma_pass":
            while len(begun) > event.value:  # the number of groups that may still be in flight
                yield Span(block, TENSOR_CORE, warp, role, "multiply", begun.pop(0), event.time)
    if until is not None:
        yield from (Span(block, TENSOR_CORE, warp, role, "multiply", time, until) for time in begun)


def _activity(
    block: int, warp: int, role: str, events: Sequence[Event], names: dict[int, str], until: float | None
) -> Iterator[Span]:
    """What one warp does itself: the two events around an interval tell what it did between them."""
    mine = [event for event in events if event.kind in _KINDS]
    if until is not None and mine and mine[-1].kind in WAITS:
        mine.append(mine[-1]._replace(time=until, kind=WAITS[mine[-1].kind]))
    for last, next_ in itertools.pairwise(mine):
        what, on = "", ""
        if WAITS.get(last.kind) == next_.kind:
            what, on = "wait", _waits_for(last, names)
        elif next_.kind in _ISSUES:
            what = "issue"
        elif (
            last.kind == "global_store"
            or next_.kind in _STORES
            or (last.kind == "wgmma_pass" and next_.kind in _ENDS)
        ):
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


def _merged(found: Iterable[Span]) -> Iterator[Span]:
    """The same spans, with those of one kind that follow each other without a gap joined."""
    whole = None
    for one in found:
        if whole and (whole.what, whole.on, whole.end) == (one.what, one.on, one.begin):
            whole = dataclasses.replace(whole, end=one.end)
            continue
        if whole:
            yield whole
        whole = one
    if whole:
        yield whole
