"""The contents of shared memory, as far as recorded events tell: what TMA loads and WGMMAs do with it.

A place is a range of one thread block's shared memory: the stage that the loads on one mbarrier fill, the
range that a TMA store reads, or a tile that WGMMAs read and no TMA load fills. What threads themselves read
and write there is not recorded, except by stmatrix.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from gemm_ladder.lab.viewer.history import History

# The states of a place.
STATES = {
    "loading": "a TMA load is on its way",
    "full": "all bytes have arrived",
    "being read": "WGMMAs or a TMA store may read it",
    "read": "what was asked to read it has done so",
    "written": "stmatrix has written to it",
    "conflict": "a TMA load is on its way, and what is there may still be read",
}
_TILE_GAP = 128  # WGMMAs of one tile read A from addresses that are at most this far apart


class PlaceState(NamedTuple):
    """A place from an event on. `round` counts, from 1, how often it has been loaded; 0: never."""

    event: int
    state: str
    round: int


@dataclass
class Place:
    """A range of shared memory.

    Attributes:
        boxes: the ranges that it consists of: address and bytes; bytes are 0 where they are not known.
        barrier: the address of the mbarrier that its loads complete; None if there is none.
        states: in the order of time; before the first, nothing is known of it.
    """

    block: int
    name: str
    boxes: dict[int, int]
    barrier: int | None = None
    states: list[PlaceState] = field(default_factory=list)

    def holds(self, address: int) -> bool:
        return any(begin <= address < begin + max(size, _TILE_GAP) for begin, size in self.boxes.items())

    def at(self, event: int) -> PlaceState | None:
        place = bisect_right(self.states, event, key=lambda state: state.event)
        return self.states[place - 1] if place else None


@dataclass
class _Load:
    """A TMA load: the event of its request, the boxes' block and address, and when each landed."""

    issued: int
    block: int
    address: int
    bytes: int
    barrier: int | None  # the mbarrier that the thread expected bytes on before
    landed: dict[int, int] = field(default_factory=dict)  # by block


def follow(history: History) -> list[Place]:
    """The places of all blocks of the cluster, by block and address. Sets the causes of the events of TMA."""
    loads = _loads(history)
    places = _stages(history, loads)
    for block, kind, name in ((b, *what) for b in history.blocks for what in _OTHERS):
        boxes: dict[int, int] = {}
        for event, of in enumerate(history.kind):
            if of == kind and history.block[event] == block:
                address = history.address[event]
                if not any(one.block == block and one.holds(address) for one in places):
                    boxes[address] = history.value[event] if kind == "tma_store" else 0
        for run in _runs(boxes):
            places.append(Place(block, f"{name} 0x{min(run):x}", run))
    _states(history, loads, places)
    return sorted(places, key=lambda place: (place.block, min(place.boxes)))


_OTHERS = (("tma_store", "store"), ("wgmma", "tile"))


def _runs(boxes: dict[int, int]) -> list[dict[int, int]]:
    """Boxes that follow each other closely, together."""
    found: list[dict[int, int]] = []
    end = -1
    for address in sorted(boxes):
        if not found or address > end:
            found.append({})
        found[-1][address] = boxes[address]
        end = address + max(boxes[address], _TILE_GAP)
    return found


def _loads(history: History) -> list[_Load]:
    """The loads in the order of their requests. A load that has landed somewhere was requested by the block
    itself, if it has requested one there, or else by another block, which multicast it."""
    found: list[_Load] = []
    waiting: dict[tuple[int, int], list[_Load]] = defaultdict(list)  # by address and bytes
    expects: dict[tuple[int, int], int] = {}  # by thread
    for event, kind in enumerate(history.kind):
        block, address, value = history.block[event], history.address[event], history.value[event]
        if kind == "mbarrier_expect_tx":
            expects[block, history.thread[event]] = address
        elif kind == "tma_load":
            load = _Load(event, block, address, value, expects.get((block, history.thread[event])))
            found.append(load)
            waiting[address, value].append(load)
        elif kind == "tma_load_landed":
            open_ = [load for load in waiting[address, value] if block not in load.landed]
            if open_:
                load = min(open_, key=lambda one: (one.block != block, one.issued))
                load.landed[block] = event
                history.cause[event] = load.issued
                if len(load.landed) == len(history.blocks):
                    waiting[address, value].remove(load)
    # A load that has not landed everywhere goes where those before it from the same block went.
    reach: dict[tuple[int, int], set[int]] = defaultdict(set)
    for load in found:
        reach[load.block, load.address] |= set(load.landed)
    for load in found:
        for block in reach[load.block, load.address] or {load.block}:
            load.landed.setdefault(block, len(history))
    return found


def _stages(history: History, loads: list[_Load]) -> list[Place]:
    """A stage is all boxes of a block whose loads complete one mbarrier."""
    barriers: dict[tuple[int, int], int] = {}  # by block and address of a box
    for load in loads:
        for block, landed in load.landed.items():
            completes = landed + 1  # the engine says that it has landed, and then completes the bytes
            if completes < len(history) and history.kind[completes] == "mbarrier_complete_tx":
                barriers[block, load.address] = history.address[completes]
                history.cause[completes] = landed
    for load in loads:
        for block in load.landed:
            if load.barrier is not None:
                barriers.setdefault((block, load.address), load.barrier)
    boxes: dict[tuple[int, int], dict[int, int]] = defaultdict(dict)
    for load in loads:
        for block in load.landed:
            boxes[block, barriers.get((block, load.address), load.address)][load.address] = load.bytes
    full: dict[int, list[int]] = defaultdict(list)
    for block, barrier in sorted(boxes):
        full[block].append(barrier)
    return [
        Place(block, f"stage {full[block].index(barrier)}", dict(sorted(mine.items())), barrier)
        for (block, barrier), mine in sorted(boxes.items())
    ]


class _Reader:
    """The WGMMA groups of one warp: which places each reads."""

    def __init__(self) -> None:
        self.issued: list[int] = []
        self.groups: list[list[int]] = []


def _states(history: History, loads: list[_Load], places: list[Place]) -> None:
    """Fill in the places' states."""
    at: dict[tuple[int, int], int] = {}

    def place_of(block: int, address: int) -> int:
        if (block, address) not in at:
            at[block, address] = next(
                (i for i, one in enumerate(places) if one.block == block and one.holds(address)), -1
            )
        return at[block, address]

    requests = {load.issued: load for load in loads}
    loading, reading, rounds = [0] * len(places), [0] * len(places), [0] * len(places)
    readers: dict[tuple[int, int], _Reader] = defaultdict(_Reader)
    stores: dict[tuple[int, int], list[int]] = defaultdict(list)
    full = {(one.block, one.barrier): i for i, one in enumerate(places) if one.barrier is not None}

    def become(place: int, event: int, state: str) -> None:
        if place >= 0:
            states = places[place].states
            if not states or states[-1][1:] != (state, rounds[place]):
                states.append(PlaceState(event, state, rounds[place]))

    def changed(place: int, event: int, otherwise: str) -> None:
        if loading[place] and reading[place]:
            become(place, event, "conflict")
        else:
            become(
                place, event, "loading" if loading[place] else "being read" if reading[place] else otherwise
            )

    for event, kind in enumerate(history.kind):
        block, address = history.target(event)
        thread = history.thread[event]
        warp = readers[block, thread // 32]
        if kind == "tma_load":
            for target in requests[event].landed:
                if (place := place_of(target, address)) >= 0:
                    rounds[place] += not loading[place]
                    loading[place] += 1
                    changed(place, event, "loading")
        elif kind == "mbarrier_phase" and (block, address) in full:
            place = full[block, address]
            if loading[place]:
                loading[place] = 0
                changed(place, event, "full")
        elif kind == "wgmma" and (place := place_of(block, address)) >= 0:
            warp.issued.append(place)
            reading[place] += 1
            changed(place, event, "being read")
        elif kind == "wgmma_commit":
            warp.groups.append(warp.issued)
            warp.issued = []
        elif kind == "wgmma_pass":
            while len(warp.groups) > history.value[event]:
                for place in warp.groups.pop(0):
                    reading[place] -= 1
                    changed(place, event, "read")
        elif kind == "stmatrix":
            if (place := place_of(block, address)) >= 0:
                changed(place, event, "written")
        elif kind == "tma_store" and (place := place_of(block, address)) >= 0:
            stores[block, address].append(event)
            reading[place] += 1
            changed(place, event, "being read")
        elif kind in ("tma_store_read", "tma_store_written") and (block, address) in stores:
            history.cause[event] = stores[block, address][0]
            if kind == "tma_store_read":
                place = place_of(block, address)
                reading[place] -= 1
                changed(place, event, "read")
            else:
                stores[block, address].pop(0)
