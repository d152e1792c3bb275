"""Recording a rung's run on a GPU by stamps: which warp executed what, and when.

The stamps are taken by the instruction wrappers (include/trace.cuh), which are compiled with them only here:
the rung's own file is the same, and so are the bits of its result. Every SM has a fine clock of its own, and
all SMs share a coarse one, the global timer. A stamp holds both, and a straight line fitted through the
stamps of each SM converts its clock to the global timer's scale.
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
SLOT_CLOCKS = 16  # trace::kSlotClocks
WARPS = 16  # trace::kWarps
STAMP_BYTES = 16  # struct trace::Stamp
ROOM = 4 << 30  # bytes for the stamps of all thread blocks
MOST_SLOTS = 1 << 14  # per warp: a ring that holds this many times SLOT_CLOCKS cycles, 150 us at 1.75 GHz
WARPS_A_GROUP = 4  # that issue a WGMMA group together, each with its stamps
CALLS = 20  # calls that are timed with stamps, and as many without
QUEUEING_CYCLES = 400_000  # GPU cycles; queueing a call takes the host less

# struct trace::Stamp, and the thread block and the warp that took it.
STAMP = np.dtype([(name, np.uint32) for name in ("what", "begin", "end", "globaltimer", "block", "warp")])


class Recording(NamedTuple):
    """What the stamps of a run say.

    Attributes:
        events: those of each warp in order; times in microseconds from the first event.
        sm: the SM of each thread block.
        groups: how many WGMMA groups all thread blocks with stamps issued.
        about: the clocks, and the kernel's time without and with stamps.
    """

    events: list[Event]
    sm: dict[int, int]
    groups: int
    about: dict[str, float]


@dataclasses.dataclass(frozen=True)
class TracedRung(Rung):
    """The rung of that name, compiled with stamps for a GPU."""

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
    """`rung`, compiled with stamps."""
    return TracedRung(rung.name, rung.idea, rung.n_multiple, rung.k_multiple)


def record(rung: Rung, lhs: tuple, rhs: tuple, out: torch.Tensor, blocks: int) -> Recording:
    """Run `rung` with stamps on its tensors' GPU, after some calls that are not recorded.

    Args:
        lhs, rhs, out: as a rung takes them; `out` is written.
        blocks: how many thread blocks, from 0 on, leave stamps. The events are those of the SM that block 0
            runs on.

    Raises:
        LaunchError: CUDA refuses the launch, or the stamps do not fit on one time scale.
        gemm_ladder.build.ToolchainError, BuildError: the kernel could not be compiled.
    """
    import torch

    stamped, device = traced(rung), out.device
    library = stamped.build("cuda").lib
    with torch.cuda.device(device):
        slots = slots_for(blocks)
        stamps = torch.zeros((blocks, WARPS, slots, 4), dtype=torch.int32, device=device)
        plain_us = _median_us(lambda: rung(lhs, rhs, out))
        _keep_in(library, stamps.data_ptr(), blocks, slots)
        try:
            stamped_us = _median_us(lambda: stamped(lhs, rhs, out))
            stamps.zero_()
            stamped(lhs, rhs, out)
            torch.cuda.synchronize(device)
        finally:
            _keep_in(library, None, 0, 0)
        used = stamps[..., 0].nonzero()  # block, warp, slot
        taken = torch.cat([stamps[tuple(used.T)], used[:, :2].int()], dim=1).cpu().numpy().view(STAMP)[:, 0]
    recording = read(taken, _names(library), slots)
    recording.about.update(us=round(plain_us, 2), stamped_us=round(stamped_us, 2))
    return recording


def slots_for(blocks: int) -> int:
    """A warp's slots where so many thread blocks share ROOM: a power of two, as trace.cuh wants it."""
    each = ROOM // (max(blocks, 1) * WARPS * STAMP_BYTES)
    return min(MOST_SLOTS, 1 << max(each.bit_length() - 1, 0))


def read(taken: np.ndarray, names: Sequence[str], slots: int) -> Recording:
    """Turn stamps into events: those of the thread blocks on block 0's SM.

    Args:
        taken: of dtype STAMP, in any order. The time scale is fitted to the stamps of all thread blocks
            during block 0's life: later the SMs may have another clock.
        names: the events' names by number.
        slots: a warp's.

    Raises:
        LaunchError: there are no stamps, too few to fit a time scale, or more than there was room for.
    """
    if not len(taken):
        raise LaunchError(
            "the launch left no stamps; a kernel with stamps, and a product to compute, are needed"
        )
    sm_of = _sms(taken, names, slots)
    sm = np.array([sm_of[int(block)] for block in taken["block"]])
    clock = np.zeros(len(taken))  # cycles; every SM counts from a moment of its own
    for one in np.unique(sm):
        clock[sm == one] = _since(taken["end"][sm == one])
    ns = _since(taken["globaltimer"])
    life = ns[taken["block"] == 0]
    near = (ns >= life.min()) & (ns <= life.max())
    scale = _Scale.fit(sm[near], clock[near], ns[near])
    end = scale.us(sm, clock)

    blocks = sorted(block for block in sm_of if sm_of[block] == sm_of[0])
    events: list[Event] = []
    for block, warp in itertools.product(blocks, range(WARPS)):
        row = np.flatnonzero((taken["block"] == block) & (taken["warp"] == warp))
        row = row[np.argsort(end[row])]
        row = row[
            clock[row] > clock[row].max(initial=0) - slots * SLOT_CLOCKS
        ]  # older ones are of the ring's last turn
        events += _events(taken[row], end[row], scale.us_a_cycle, names)
    zero = min((event.time for event in events), default=0.0)
    return Recording(
        [event._replace(time=event.time - zero) for event in events],
        {block: sm_of[block] for block in blocks},
        int(np.count_nonzero(taken["what"] >> 28 == names.index("wgmma_fence"))) // WARPS_A_GROUP,
        scale.about(),
    )


def _sms(taken: np.ndarray, names: Sequence[str], slots: int) -> dict[int, int]:
    """The SM of each thread block. A block's first stamp has it; if that is missing, the ring was
    overwritten."""
    placed = taken[taken["what"] >> 28 == names.index("placed")]
    found = dict(zip(placed["block"].tolist(), placed["begin"].tolist(), strict=True))
    if set(found) != set(taken["block"].tolist()):
        raise LaunchError(
            f"a block runs for longer than the {slots * SLOT_CLOCKS} cycles that its stamps have room for; "
            "a smaller shape is needed"
        )
    return found


def _events(row: np.ndarray, end: np.ndarray, us_a_cycle: float, names: Sequence[str]) -> list[Event]:
    """One warp's events, from its stamps in the order of time."""
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
    """Whether the mbarrier test at the beginning of `row` succeeded: then no wait for that phase follows."""
    for later, kind, address in zip(row[1:], kinds[1:], addresses[1:], strict=True):
        if address == addresses[0] and kind == "mbarrier_test":
            return True
        if address == addresses[0] and kind == "mbarrier_wait":
            return int(later["what"] >> 20 & 0xFF) != int(row[0]["begin"])
    return False


def _since(counter: np.ndarray) -> np.ndarray:
    """The readings of a 32-bit counter minus the first; all have to be within 2^31 of each other."""
    return (counter - counter[0]).view(np.int32).astype(np.float64)


@dataclasses.dataclass(frozen=True)
class _Scale:
    """Converts the clocks of the SMs, which have one frequency, to microseconds."""

    us_a_cycle: float
    zero: dict[int, float]  # by SM: the time, in microseconds, at which its clock was 0
    tick_ns: int  # of the global timer
    residual_ns: float  # root mean square

    @classmethod
    def fit(cls, sm: np.ndarray, cycles: np.ndarray, ns: np.ndarray) -> _Scale:
        """Fit by least squares. The timer's coarse steps shift the zero of every SM by the same amount."""
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
        zero = np.array([self.zero.get(one, 0.0) for one in range(max(sm.max(), *self.zero) + 1)])
        return zero[sm] + cycles * self.us_a_cycle

    def about(self) -> dict[str, float]:
        return {
            "sm_mhz": round(1 / self.us_a_cycle, 1),
            "globaltimer_tick_ns": self.tick_ns,
            "residual_ns": round(self.residual_ns, 1),
        }


def _median_us(call: Callable[[], None]) -> float:
    """The median time of a call, with warm caches, from CUDA events around each of CALLS calls."""
    import torch

    call()
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(CALLS + 1)]
    torch.cuda._sleep(CALLS * QUEUEING_CYCLES)  # without it the GPU would wait for the host
    for mark in marks[:-1]:
        mark.record()
        call()
    marks[-1].record()
    torch.cuda.synchronize()
    return 1e3 * float(np.median([a.elapsed_time(b) for a, b in itertools.pairwise(marks)]))


@functools.cache
def _names(library: ctypes.CDLL) -> tuple[str, ...]:
    """The events' names by number, from the compiled kernel."""
    library.gemm_ladder_trace_event.restype = ctypes.c_char_p
    names = (library.gemm_ladder_trace_event(number) for number in itertools.count())
    return tuple(name.decode() for name in itertools.takewhile(lambda name: name is not None, names))


def _keep_in(library: ctypes.CDLL, address: int | None, blocks: int, slots: int) -> None:
    """Set where the library's launches write their stamps from now on; None and 0 to take none."""
    library.gemm_ladder_trace.restype = ctypes.c_char_p
    error = library.gemm_ladder_trace(
        ctypes.c_void_p(address), ctypes.c_uint32(blocks), ctypes.c_uint32(slots)
    )
    if error is not None:
        raise LaunchError(f"the stamps cannot be switched on: {error.decode()}")
