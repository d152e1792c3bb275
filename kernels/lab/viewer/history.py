"""The states of one cluster's warps, mbarriers and shared memory, as its recorded events imply them."""

from __future__ import annotations

import functools
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from gemm_ladder.errors import InputError
from gemm_ladder.lab.recording import Recording
from gemm_ladder.lab.viewer import smem
from gemm_ladder.lab.viewer.sentences import ARRIVES, WAITS, sentence
from gemm_ladder.lab.viewer.smem import Place
from gemm_ladder.timeline.spans import Span, barrier_names, kept, of_emulator, spans

_RANK_SHIFT = 24  # of shared::cluster addresses: kRankShift of ref/emulator/core/shared_memory.hpp


class BarrierState(NamedTuple):
    """An mbarrier from an event on, until the next change.

    Attributes:
        event: the index of the event after which it is so.
        phase: the phase that it is in, from 0; its parity is what threads wait for.
        pending: arrivals that the phase still needs.
        bytes: that TMA loads have still to write before the phase is complete.
    """

    event: int
    phase: int
    pending: int
    bytes: int


@dataclass
class Barrier:
    """One mbarrier of one thread block.

    Attributes:
        count: the arrivals that a phase needs.
        states: in the order of time; before the first, the mbarrier does not exist.
    """

    block: int
    address: int
    name: str
    count: int = 0
    states: list[BarrierState] = field(default_factory=list)

    def at(self, event: int) -> BarrierState | None:
        return _latest(self.states, event)


class Lanes(NamedTuple):
    """What some lanes of a warp do: the event that they recorded last, and whether they wait since then."""

    lanes: list[int]
    event: int
    waits: bool


class History:
    """One cluster of a recording.

    Attributes:
        events: those of the cluster; everything else here counts them from 0.
        blocks: the thread blocks, by their rank in the cluster.
        warps: (block, warp) of each warp.
        shown: for each event, whether it stands for its warp (`timeline.spans.kept`), so that an instruction
            of 32 lanes is one event.
        cause: for each event, the event that led to it: of a landed load the request, of a passed wait what
            completed the barrier's phase; -1: none.
        spans: what each warp, its tensor core and the copy engine did, and for how long.
        barriers, places: mbarriers, and ranges of shared memory with their contents, by block and address.
    """

    def __init__(self, recording: Recording, cluster: int) -> None:
        chosen = recording.events[recording.events["cluster"] == cluster]
        if not len(chosen):
            raise InputError(f"cluster is {cluster}; the recording has {_listed(recording.clusters())}.")
        self.recording, self.cluster, self.events = recording, cluster, chosen
        self.blocks = [int(block) for block in np.unique(chosen["block"])]
        columns = (chosen[name].tolist() for name in ("step", "block", "thread", "kind", "address", "value"))
        self.step, self.block, self.thread, self.kind, self.address, self.value = columns
        self.warps = sorted({(b, t // 32) for b, t in zip(self.block, self.thread, strict=True) if t >= 0})
        self.shown = kept(chosen)
        of_blocks = defaultdict(list)
        seen = of_emulator(recording.events, int(chosen["launch"][0]), cluster)
        for event in seen:
            of_blocks[event.block].append(event)
        names = {block: barrier_names(events) for block, events in of_blocks.items()}
        self.spans: list[Span] = spans(seen, self.step[-1], everyone=True)
        self.cause = [-1] * len(chosen)
        self.barriers = self._follow_barriers(names)
        self.places: list[Place] = smem.follow(self)
        self._place_of: dict[tuple[int, int], Place | None] = {}
        self._follow_causes()

    def __len__(self) -> int:
        return len(self.events)

    def target(self, event: int) -> tuple[int, int]:
        """The block and the address in its shared memory that an event is about."""
        rank, address = (self.address[event] >> _RANK_SHIFT) - 1, self.address[event] & (1 << _RANK_SHIFT) - 1
        known = 0 <= rank < len(self.blocks)
        return (self.blocks[rank] if known else self.block[event]), address

    def barrier(self, event: int) -> Barrier | None:
        """The mbarrier that an event is about."""
        return self.barriers.get(self.target(event)) if self.kind[event].startswith("mbarrier") else None

    def at_name(self, event: int) -> str:
        """What an event's address is called."""
        block, address = self.target(event)
        other = "" if block == self.block[event] else f" of block {block}"
        if barrier := self.barrier(event):
            return f"{barrier.name}{other}"
        if place := self.place(block, address):
            return f"{place.name}, 0x{address:x}{other}"
        return f"0x{address:x}{other}"

    def place(self, block: int, address: int) -> Place | None:
        """The range of shared memory that an address lies in."""
        key = block, address
        if key not in self._place_of:
            found = (one for one in self.places if one.block == block and one.holds(address))
            self._place_of[key] = next(found, None)
        return self._place_of[key]

    def sentence(self, event: int) -> str:
        return sentence(self.kind[event], self.at_name(event), self.value[event])

    def who(self, event: int) -> str:
        """Who did it, such as "block 0, warp 2, lane 0"."""
        block, thread = self.block[event], self.thread[event]
        return f"block {block}" + (f", warp {thread // 32}, lane {thread % 32}" if thread >= 0 else "")

    @functools.cached_property
    def lines(self) -> list[tuple[str, int] | None]:
        """The path and the line of each event; of an asynchronous one, those of the instruction behind it."""
        own = self.recording.lines(self.events["offset"])
        for event, kind in enumerate(self.kind):
            if kind in ("thread_start", "thread_exit"):
                own[event] = None
        found = []
        for event in range(len(self)):
            at = event
            while self.thread[at] < 0 and self.cause[at] >= 0:
                at = self.cause[at]
            found.append(own[at])
        return found

    def lanes(self, block: int, warp: int, event: int) -> list[Lanes]:
        """What the lanes of a warp do after an event; lanes that do the same are together, the largest group
        first. Lane 0 stands for all lanes in instructions of the whole warp."""
        last: dict[int, int] = {}
        for index in self._of_warp[block, warp]:
            if index > event:
                break
            last[self.thread[index] % 32] = index
        groups: dict[tuple[str, int, int], list[int]] = defaultdict(list)
        for lane, index in last.items():
            key = (
                (self.kind[index], self.address[index], self.value[index])
                if self._waits(index)
                else ("", 0, 0)
            )
            groups[key].append(lane)
        found = []
        for (kind, _, _), members in groups.items():
            since = min if kind else max
            found.append(Lanes(sorted(members), since(last[lane] for lane in members), bool(kind)))
        # A lane that has recorded nothing yet, or only passed with its warp, says nothing of its own.
        waiting = [group for group in found if group.waits]
        others = [group for group in found if (not group.waits and 0 in group.lanes) or not waiting]
        return sorted(waiting, key=lambda group: -len(group.lanes)) + others

    def where(self, block: int, warp: int, event: int) -> str:
        """What a warp does after an event, in one sentence."""
        groups = self.lanes(block, warp, event)
        if not groups:
            return "has not started"
        said = []
        for group in groups:
            index = group.event
            what = self.sentence(index)
            if self._waits(index):
                if self.kind[index] in ARRIVES:
                    what = "has arrived at the cluster barrier"
                what += self._outstanding(index, event)
                what += f", since step {self.step[index]}"
            elif self.kind[index] == "thread_exit":
                what = f"has ended, at step {self.step[index]}"
            else:
                what = f"runs; last, at step {self.step[index]}: {what}"
            alone = len(groups) == 1 or len(group.lanes) == 32
            said.append(what if alone else f"{_lanes(group.lanes)}: {what}")
        return "; ".join(said)

    def _waits(self, event: int) -> bool:
        return self.kind[event] in WAITS or self.kind[event] in ARRIVES

    def _outstanding(self, wait: int, event: int) -> str:
        """What a wait for an mbarrier still lacks after an event."""
        barrier = self.barrier(wait)
        state = barrier.at(event) if barrier else None
        if barrier is None or state is None:
            return ""
        if state.phase % 2 != self.value[wait] % 2:
            return " (complete, but it has not run since)"
        return (
            f" (it is in phase {state.phase}, {state.pending} of {barrier.count} arrivals pending, "
            f"{state.bytes} bytes to come)"
        )

    @functools.cached_property
    def _of_warp(self) -> dict[tuple[int, int], list[int]]:
        found: dict[tuple[int, int], list[int]] = defaultdict(list)
        for index, (block, thread) in enumerate(zip(self.block, self.thread, strict=True)):
            if thread >= 0:
                found[block, thread // 32].append(index)
        return found

    def _follow_barriers(self, names: dict[int, dict[int, str]]) -> dict[tuple[int, int], Barrier]:
        found: dict[tuple[int, int], Barrier] = {}
        for event, (kind, value) in enumerate(zip(self.kind, self.value, strict=True)):
            if kind not in _CHANGES:
                continue
            block, address = key = self.target(event)
            if key not in found:
                here = f"0x{address:x}"
                name = names.get(block, {}).get(address, f"mbarrier {here}")
                found[key] = Barrier(block, address, name if here in name else f"{name} ({here})")
            barrier = found[key]
            before = barrier.states[-1] if barrier.states else BarrierState(event, 0, 0, 0)
            if kind == "mbarrier_init":
                barrier.count = value
                state = BarrierState(event, 0, value, 0)
            elif kind == "mbarrier_arrive":
                state = before._replace(event=event, pending=value)
            elif kind == "mbarrier_expect_tx":
                state = before._replace(event=event, bytes=before.bytes + value)
            elif kind == "mbarrier_complete_tx":
                state = before._replace(event=event, bytes=value)
            else:
                state = BarrierState(event, value + 1, barrier.count, 0)
            barrier.states.append(state)
        return dict(sorted(found.items()))

    def _follow_causes(self) -> None:
        """All but those of loads and stores, which `smem` knows."""
        phase: dict[tuple[int, int], int] = {}  # by mbarrier, the last phase that was completed
        arrived: dict[tuple[int, int], int] = {}  # by block and named barrier, who arrived last
        expected: dict[tuple[int, int], int] = {}  # by mbarrier, the last expect_tx
        at_cluster = -1
        waits: dict[tuple[int, int, str], int] = {}
        issued: dict[tuple[int, int], list[int]] = defaultdict(list)
        for event, kind in enumerate(self.kind):
            block, address = key = self.target(event)
            if kind == "mbarrier_phase":
                phase[key] = event
                self.cause[event] = event - 1  # the arrival or the bytes that completed it
            elif kind == "mbarrier_expect_tx":
                expected[key] = event
            elif kind == "mbarrier_complete_tx" and self.cause[event] < 0:
                self.cause[event] = expected.get(key, -1)  # a part of a load that has not landed whole
            elif kind == "mbarrier_pass":
                self.cause[event] = phase.get(key, -1)
            elif kind in ("bar_sync", "bar_arrive"):
                arrived[block, self.value[event]] = event
            elif kind == "bar_pass":
                self.cause[event] = arrived.get((block, self.value[event]), -1)
            elif kind == "cluster_arrive":
                at_cluster = event
            elif kind == "cluster_pass":
                self.cause[event] = at_cluster
            elif kind == "wgmma_wait":
                waits[block, self.thread[event], kind] = event
            elif kind == "wgmma_pass":
                self.cause[event] = waits.get((block, self.thread[event], "wgmma_wait"), -1)
            elif kind == "wgmma":
                issued[block, address].append(event)
            elif kind == "wgmma_executed" and issued[block, address]:
                self.cause[event] = issued[block, address].pop(0)


_CHANGES = (
    "mbarrier_init",
    "mbarrier_arrive",
    "mbarrier_expect_tx",
    "mbarrier_complete_tx",
    "mbarrier_phase",
)


def _latest(states: list[BarrierState], event: int) -> BarrierState | None:
    """The last of the states that began at the event or before it."""
    place = bisect_right(states, event, key=lambda state: state.event)
    return states[place - 1] if place else None


def _lanes(lanes: list[int]) -> str:
    """Such as "lanes 1-31"; only how many they are if they are scattered."""
    runs: list[list[int]] = []
    for lane in lanes:
        if runs and lane == runs[-1][1] + 1:
            runs[-1][1] = lane
        else:
            runs.append([lane, lane])
    if len(runs) > 3:
        return f"{len(lanes)} lanes"
    text = ", ".join(f"{first}-{last}" if last > first else str(first) for first, last in runs)
    return f"lane{'s' * (len(lanes) > 1)} {text}"


def _listed(numbers: Iterable[int]) -> str:
    found = list(numbers)
    return f"clusters {found[0]} to {found[-1]}" if len(found) > 1 else f"cluster {found[0]}"
