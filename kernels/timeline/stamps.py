"""A rung's run on a GPU, as it was stamped: who executed what, and when.

The stamps are in the instruction wrappers (include/trace.cuh), compiled in only here: the rung's own file is
the same, and so are the bits of its result. An SM has a fine clock of its own, and all have a coarse common
one; a stamp has both, and a line through the stamps of each SM puts them all on the common clock's scale.
"""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from gemm_ladder.errors import LaunchError
from gemm_ladder.rungs import InterleavedRung, Rung, rungs
from gemm_ladder.timeline.spans import WAITS, Event

if TYPE_CHECKING:
    import torch
    from gemm_ladder.build import Built

MACRO = "GEMM_LADDER_TRACE"
SLOTS = 1 << 13  # of a warp; its ring holds SLOTS * SLOT_CLOCKS cycles, 75 us at 1.75 GHz
SLOT_CLOCKS = 16  # trace::kSlotClocks
WARPS = 16  # trace::kWarps
BLOCKS_AN_SM = 2  # of any rung, at a time: so many blocks are recorded
CALLS = 20  # timed, with and without stamps
QUEUEING_CYCLES = 400_000  # of the GPU: more than it takes to queue a call

# struct trace::Stamp, and the block and the warp whose row it is in.
STAMP = np.dtype([(name, np.uint32) for name in ("what", "begin", "end", "globaltimer", "block", "warp")])


class Recording(NamedTuple):
    """Events, each warp's in order, times in microseconds from the first on; the SM of each block; what the
    clocks were found to be, and what the stamps cost."""

    events: list[Event]
    sm: dict[int, int]
    about: dict[str, float]


@dataclasses.dataclass(frozen=True)
class TracedRung(Rung):
    """The rung of that name, stamped where it runs on a GPU."""

    @property
    def path(self) -> Path:
        return rungs[self.name].path

    def build(self, target: Literal["cuda", "emulator"]) -> Built:
        from gemm_ladder import build
        from gemm_ladder.sass import ffma

        base = rungs[self.name]
        if target == "emulator":
            return base.build(target)
        sass_pass = ffma.sass_pass(base.mode) if isinstance(base, InterleavedRung) else None
        return build.load(
            self.path, target=target, name=f"{self.name}_traced", defines={MACRO: 1}, sass_pass=sass_pass
        )


def traced(rung: Rung) -> TracedRung:
    """`rung`, stamped."""
    return TracedRung(rung.name, rung.idea, rung.n_multiple, rung.k_multiple)


def record(rung: Rung, lhs: tuple, rhs: tuple, out: torch.Tensor, blocks: Sequence[int] | None) -> Recording:
    """Run `rung` on its tensors' GPU, stamped, after some calls that are not recorded.

    Args:
        lhs, rhs, out: as a rung takes them; `out` is written.
        blocks: whose events are wanted; None: block 0's, and those of the blocks on its SM meanwhile.

    Raises:
        LaunchError: CUDA refuses; the stamps do not fit on one time scale.
        gemm_ladder.build.ToolchainError, BuildError: the kernel could not be compiled.
    """
    import torch

    stamped, device = traced(rung), out.device
    library = stamped.build("cuda").lib
    with torch.cuda.device(device):
        blocks_recorded = BLOCKS_AN_SM * torch.cuda.get_device_properties(device).multi_processor_count
        stamps = torch.zeros((blocks_recorded, WARPS, SLOTS, 4), dtype=torch.int32, device=device)
        plain_us = _median_us(lambda: rung(lhs, rhs, out))
        _keep_in(library, stamps.data_ptr(), blocks_recorded)
        try:
            stamped_us = _median_us(lambda: stamped(lhs, rhs, out))
            stamps.zero_()
            stamped(lhs, rhs, out)
            torch.cuda.synchronize(device)
        finally:
            _keep_in(library, None, 0)
        used = stamps[..., 0].nonzero()  # block, warp, slot
        taken = torch.cat([stamps[tuple(used.T)], used[:, :2].int()], dim=1).cpu().numpy().view(STAMP)[:, 0]
    recording = read(taken, _names(library), blocks)
    recording.about.update(us=round(plain_us, 2), stamped_us=round(stamped_us, 2))
    return recording


def read(taken: np.ndarray, names: Sequence[str], blocks: Sequence[int] | None) -> Recording:
    """What the stamps say.

    Args:
        taken: of dtype STAMP, in any order; the more there are, of whatever block, the better the time scale.
        names: of the events, by number.
        blocks: as `record` takes them.

    Raises:
        LaunchError: there are no stamps, too few for a time scale, or more than there was room for.
    """
    if not len(taken):
        raise LaunchError(
            "the launch left no stamps; a kernel with stamps, and a product to compute, are needed"
        )
    sm_of = _sms(taken, names)
    sm = np.array([sm_of[int(block)] for block in taken["block"]])
    clock = np.zeros(len(taken))  # cycles, from some moment of the SM on
    for one in np.unique(sm):
        clock[sm == one] = _since(taken["end"][sm == one])
    scale = _Scale.fit(sm, clock, _since(taken["globaltimer"]))
    end = scale.us(sm, clock)

    if blocks is None:
        mine = end[taken["block"] == 0]
        beside = (sm == sm_of[0]) & (end >= mine.min()) & (end <= mine.max())
        blocks = np.unique(taken["block"][beside])
    events: list[Event] = []
    for block, warp in itertools.product(blocks, range(WARPS)):
        row = np.flatnonzero((taken["block"] == block) & (taken["warp"] == warp))
        row = row[np.argsort(end[row])]
        row = row[clock[row] > clock[row].max(initial=0) - SLOTS * SLOT_CLOCKS]  # one turn of the ring
        events += _events(taken[row], end[row], scale.us_a_cycle, names)
    zero = min((event.time for event in events), default=0.0)
    return Recording(
        [event._replace(time=event.time - zero) for event in events],
        {int(block): sm_of[int(block)] for block in blocks},
        scale.about(),
    )


def _sms(taken: np.ndarray, names: Sequence[str]) -> dict[int, int]:
    """The SM of each block. A block's first stamps say it: where they are gone, its ring has turned."""
    placed = taken[taken["what"] >> 28 == names.index("placed")]
    found = dict(zip(placed["block"].tolist(), placed["begin"].tolist(), strict=True))
    if set(found) != set(taken["block"].tolist()):
        raise LaunchError(
            f"a block runs for longer than the {SLOTS * SLOT_CLOCKS} cycles that its stamps have room for; "
            "a smaller shape is needed"
        )
    return found


def _events(row: np.ndarray, end: np.ndarray, us_a_cycle: float, names: Sequence[str]) -> list[Event]:
    """One warp's events, from its stamps in order."""
    kinds = [names[number] for number in row["what"] >> 28]
    addresses = (row["what"] & 0xFFFFF).tolist()
    events: list[Event] = []
    for index, (stamp, kind, address) in enumerate(zip(row, kinds, addresses, strict=True)):
        who = int(stamp["block"]), int(stamp["warp"])
        if kind in WAITS:
            begin = end[index] - us_a_cycle * int(stamp["end"] - stamp["begin"])
            value = int(stamp["what"] >> 20 & 0xFF)
            events.append(Event(begin, *who, kind, address, value))
            events.append(Event(end[index], *who, WAITS[kind], address, value))
        elif kind != "mbarrier_test" or _found_complete(row[index:], kinds[index:], addresses[index:]):
            events.append(Event(end[index], *who, kind, address, int(stamp["begin"])))
    return events


def _found_complete(row: np.ndarray, kinds: Sequence[str], addresses: Sequence[int]) -> bool:
    """Whether the test that the row begins with succeeded: then the warp does not wait for that phase."""
    for later, kind, address in zip(row[1:], kinds[1:], addresses[1:], strict=True):
        if address == addresses[0] and kind == "mbarrier_test":
            return True
        if address == addresses[0] and kind == "mbarrier_wait":
            return int(later["what"] >> 20 & 0xFF) != int(row[0]["begin"])
    return False


def _since(counter: np.ndarray) -> np.ndarray:
    """What a 32-bit counter's readings, all within 2^31 of each other, are more than the first of them."""
    return (counter - counter[0]).view(np.int32).astype(np.float64)


@dataclasses.dataclass(frozen=True)
class _Scale:
    """From the clocks of the SMs, all of one frequency, to microseconds."""

    us_a_cycle: float
    zero: dict[int, float]  # by SM: the time at which its clock was 0
    tick_ns: int  # of the global timer
    residual_ns: float

    @classmethod
    def fit(cls, sm: np.ndarray, cycles: np.ndarray, ns: np.ndarray) -> _Scale:
        """The line of least squares. The timer's coarse steps shift every SM's zero by the same."""
        sms, which = np.unique(sm, return_inverse=True)
        count = np.bincount(which)
        mean_cycles, mean_ns = (np.bincount(which, counter) / count for counter in (cycles, ns))
        x, y = cycles - mean_cycles[which], ns - mean_ns[which]
        slope = (x * y).sum() / max((x * x).sum(), 1.0)
        ticks = np.unique(ns)
        if len(ticks) < 3 or not 0.1 < slope < 10:
            raise LaunchError(
                f"the global timer had {len(ticks)} values during the launch; 3 or more are needed, and "
                "a larger shape has them"
            )
        zero = (mean_ns - slope * mean_cycles) / 1e3
        return cls(
            slope / 1e3,
            {int(one): float(at) for one, at in zip(sms, zero, strict=True)},
            int(np.gcd.reduce(np.diff(ticks).astype(np.int64))),
            float(np.sqrt(np.mean((y - slope * x) ** 2))),
        )

    def us(self, sm: np.ndarray, cycles: np.ndarray) -> np.ndarray:
        zero = np.array([self.zero.get(one, 0.0) for one in range(max(self.zero) + 1)])
        return zero[sm] + cycles * self.us_a_cycle

    def about(self) -> dict[str, float]:
        return {
            "sm_mhz": round(1 / self.us_a_cycle, 1),
            "globaltimer_tick_ns": self.tick_ns,
            "residual_ns": round(self.residual_ns, 1),
        }


def _median_us(call: Callable[[], None]) -> float:
    """Of one call among several, everything warm."""
    import torch

    call()
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(CALLS + 1)]
    torch.cuda._sleep(CALLS * QUEUEING_CYCLES)  # else the GPU would wait for the calls
    for mark in marks[:-1]:
        mark.record()
        call()
    marks[-1].record()
    torch.cuda.synchronize()
    return 1e3 * float(np.median([a.elapsed_time(b) for a, b in itertools.pairwise(marks)]))


@functools.cache
def _names(library: ctypes.CDLL) -> tuple[str, ...]:
    """The events' names, by number."""
    library.gemm_ladder_trace_event.restype = ctypes.c_char_p
    names = (library.gemm_ladder_trace_event(number) for number in itertools.count())
    return tuple(name.decode() for name in itertools.takewhile(lambda name: name is not None, names))


def _keep_in(library: ctypes.CDLL, address: int | None, blocks: int) -> None:
    """Where the library's launches leave their stamps from now on."""
    library.gemm_ladder_trace.restype = ctypes.c_char_p
    error = library.gemm_ladder_trace(
        ctypes.c_void_p(address), ctypes.c_uint32(blocks), ctypes.c_uint32(SLOTS)
    )
    if error is not None:
        raise LaunchError(f"the stamps cannot be switched on: {error.decode()}")
