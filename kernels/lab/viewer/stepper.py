"""Stepping through what a kernel did, in a terminal or a notebook."""

from __future__ import annotations

import cmd
import html
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from gemm_ladder.errors import InputError
from gemm_ladder.lab.recording import Recording
from gemm_ladder.lab.viewer.accumulators import Accumulator, accumulators
from gemm_ladder.lab.viewer.history import Barrier, BarrierState, History
from gemm_ladder.lab.viewer.sentences import SENTENCES
from gemm_ladder.lab.viewer.smem import Place, PlaceState

if TYPE_CHECKING:
    from gemm_ladder.lab.viewer.page import Viewable


class Stepper:
    """A place in a recorded run, between its events: what has happened, and the states that this has led to.

        step = lab.Stepper(result)
        step.next("mbarrier_phase")     # to the next event of that kind, of any warp
        step.next(warp=2)               # to warp 2's next event
        step.where(2), step.barrier("full 0"), step.stage(0), step.accumulator(0)

    Nothing runs: a step back is as good as one forward.

    Attributes:
        history: all events of the cluster, and their states.
        accumulators: of WGMMAs, all that the cluster's warpgroups use.
        event: the index of the event that has just happened.
        every_lane: whether `next` and `back` stop at the events of every lane; by default an instruction of a
            warp's lanes is one stop.
    """

    def __init__(
        self,
        run: Viewable,
        *,
        launch: int | None = None,
        cluster: int | None = None,
        every_lane: bool = False,
    ) -> None:
        """
        Args:
            run, launch: as for `lab.view`.
            cluster: which cluster of the launch; None: the one that a fault happened in, or the first.

        Raises:
            InputError: nothing was recorded, or there is no such launch or cluster.
        """
        recording = Recording.of(run, launch)
        if cluster is None:
            faulty = recording.faulty_cluster()
            cluster = recording.clusters()[0] if faulty is None else faulty
        self.history = History(recording, cluster)
        self.accumulators = accumulators(recording, cluster)
        self.event = 0
        self.every_lane = every_lane

    def next(self, kind: str | None = None, warp: int | None = None, block: int | None = None) -> Stepper:
        """Go to the next event; where there is none, stay.

        Args:
            kind: of the event, such as "mbarrier_phase" or "wgmma"; another word is refused with a list.
            warp: of the thread block.
            block: the thread block.

        Raises:
            InputError: there is no such kind, warp or block.
        """
        return self._go(range(self.event + 1, len(self.history)), kind, warp, block)

    def back(self, kind: str | None = None, warp: int | None = None, block: int | None = None) -> Stepper:
        """As `next`, towards the begin."""
        return self._go(range(self.event - 1, -1, -1), kind, warp, block)

    def to_fault(self) -> Stepper:
        """Go to the last event: where a run with a fault ended."""
        self.event = len(self.history) - 1
        return self

    def where(self, warp: int, block: int | None = None) -> str:
        """What a warp does or waits for, and since when. Raises InputError if there is no such warp."""
        block = self.history.blocks[0] if block is None else block
        if (block, warp) not in self.history.warps:
            raise InputError(
                f"warp is {warp} of block {block}; the cluster has blocks {self.history.blocks} and "
                f"{len(self.history.warps)} warps."
            )
        return self.history.where(block, warp, self.event)

    def barrier(self, which: int | str, block: int | None = None) -> BarrierState | None:
        """An mbarrier's phase, pending arrivals and bytes to come; None before its initialisation.

        Args:
            which: its address, or its name, such as "full 0".

        Raises:
            InputError: there is no such mbarrier.
        """
        return self._barrier(which, block).at(self.event)

    def stage(self, which: int | str, block: int | None = None) -> PlaceState | None:
        """What a stage of shared memory holds; None before anything was loaded into it.

        Args:
            which: the stage's number, or the name or an address of any place in `history.places`.

        Raises:
            InputError: there is no such place.
        """
        return self._place(which, block).at(self.event)

    def accumulator(self, warpgroup: int = 0, number: int = 0, block: int | None = None) -> np.ndarray | None:
        """The accumulators, 64 rows of n columns, that some of a warpgroup's WGMMAs add to.

            step.next("wgmma_pass", warp=0).accumulator()  # the sums after warp 0's next wait

        A warp's 16 rows are as its last `wgmma.wait_group` gave them back; what the kernel's own statements
        have done to the registers since then is not recorded.

        Args:
            warpgroup: of the thread block.
            number: which of the warpgroup's accumulators, in the order in which it has used them first.
            block: the thread block; None: the cluster's first.

        Returns:
            Array of shape [64, n], float32, float16 or int32; None before the first WGMMA on them. Rows of
            warps whose WGMMAs are in flight, or not issued, are NaN (in int32 the same bits, 0x7FC00000).

        Raises:
            InputError: there is no such accumulator, or its values were too many to be kept.
        """
        return self._accumulator(warpgroup, number, block).at(self.event)

    @property
    def line(self) -> str | None:
        """The source line of the event, such as "s4_tma.cu:91"."""
        found = self.history.lines[self.event]
        return f"{Path(found[0]).name}:{found[1]}" if found else None

    def source(self, around: int = 3) -> str:
        """The source text around the event's line, which is marked; "" where it is not known."""
        found = self.history.lines[self.event]
        text = self.history.recording.text(found[0]) if found else None
        if found is None or text is None:
            return ""
        lines, line = text.splitlines(), found[1]
        first = max(line - around, 1)
        return "\n".join(
            f"{'>' if number == line else ' '} {number:4} {lines[number - 1]}"
            for number in range(first, min(line + around, len(lines)) + 1)
        )

    def state(self) -> str:
        """All warps, mbarriers, places and accumulators at this moment, one a line."""
        history = self.history
        lines = [
            f"block {block}, warp {warp}: {history.where(block, warp, self.event)}"
            for block, warp in history.warps
        ]
        for barrier in history.barriers.values():
            if state := barrier.at(self.event):
                lines.append(
                    f"block {barrier.block}, {barrier.name}: phase {state.phase}, "
                    f"{state.pending} of {barrier.count} pending, {state.bytes} bytes to come"
                )
        for place in history.places:
            if content := place.at(self.event):
                load = f", load {content.round}" if content.round else ""
                lines.append(f"block {place.block}, {place.name}: {content.state}{load}")
        for one in self.accumulators:
            if said := one.state(self.event):
                lines.append(f"block {one.block}, {one.name}: {said}")
        return "\n".join(lines)

    def __repr__(self) -> str:
        history, event = self.history, self.event
        said = (
            f"step {history.step[event]}, event {event} of {len(history)}: "
            f"{history.who(event)} {history.sentence(event)}"
        )
        if self.line:
            said += f" ({self.line})"
        if event == len(history) - 1 and history.recording.fault is not None:
            said += f"\nThe run ended in a fault: {history.recording.fault}"
        return said

    def _repr_html_(self) -> str:
        rows = "".join(
            "<tr>"
            + "".join(f"<td style='text-align:left'>{html.escape(cell)}</td>" for cell in row)
            + "</tr>"
            for row in (line.split(": ", 1) for line in self.state().splitlines())
        )
        source = f"<pre>{html.escape(self.source())}</pre>" if self.source() else ""
        return f"<p><b>{html.escape(repr(self))}</b></p>{source}<table>{rows}</table>"

    def _go(self, events: range, kind: str | None, warp: int | None, block: int | None) -> Stepper:
        history = self.history
        if kind is not None and kind not in SENTENCES and kind not in history.kind:
            raise InputError(f"kind is {kind!r}; one of {', '.join(SENTENCES)} is needed.")
        if block is not None and block not in history.blocks:
            raise InputError(f"block is {block}; one of {history.blocks} is needed.")
        if warp is not None and all(warp != other for _, other in history.warps):
            raise InputError(
                f"warp is {warp}; a thread block has {len(history.warps) // len(history.blocks)}."
            )
        for event in events:
            if (
                (self.every_lane or history.shown[event])
                and kind in (None, history.kind[event])
                and block in (None, history.block[event])
                and warp in (None, history.thread[event] // 32)
            ):
                self.event = event
                break
        return self

    def _barrier(self, which: int | str, block: int | None) -> Barrier:
        block = self.history.blocks[0] if block is None else block
        mine = [one for one in self.history.barriers.values() if one.block == block]
        for one in mine:
            if which in (one.address, one.name, one.name.partition(" (")[0]):
                return one
        raise InputError(
            f"There is no mbarrier {which!r} in block {block}; it has {', '.join(one.name for one in mine)}."
        )

    def _place(self, which: int | str, block: int | None) -> Place:
        block = self.history.blocks[0] if block is None else block
        mine = [one for one in self.history.places if one.block == block]
        for one in mine:
            if which == one.name or f"stage {which}" == one.name:
                return one
        for one in mine:
            if isinstance(which, int) and one.holds(which):
                return one
        raise InputError(
            f"There is no stage {which!r} in block {block}; it has {', '.join(one.name for one in mine)}."
        )

    def _accumulator(self, warpgroup: int, number: int, block: int | None) -> Accumulator:
        block = self.history.blocks[0] if block is None else block
        mine = [one for one in self.accumulators if one.block == block]
        for one in mine:
            if (one.warpgroup, one.number) == (warpgroup, number):
                return one
        raise InputError(
            f"There is no accumulator {number} of warpgroup {warpgroup} in block {block}; it has "
            f"{'; '.join(one.name for one in mine) or 'none'}."
        )


class Terminal(cmd.Cmd):
    """Commands for a Stepper: what `python -m gemm_ladder lab step` reads."""

    intro = "Enter steps to the next event; help lists the commands (n, b, s, w, a, q are short)."
    prompt = "> "

    def __init__(self, stepper: Stepper) -> None:
        super().__init__()
        self.stepper = stepper

    def do_next(self, line: str) -> None:
        """next [KIND] [WARP]: the next event, of a kind, of a warp. Enter alone: the next event."""
        self._step(self.stepper.next, line)

    def do_back(self, line: str) -> None:
        """back [KIND] [WARP]: the event before."""
        self._step(self.stepper.back, line)

    def do_end(self, line: str) -> None:
        """end: the last event, where a run with a fault ended."""
        print(self.stepper.to_fault(), file=self.stdout)

    def do_state(self, line: str) -> None:
        """state: what all warps do, all mbarriers, and what shared memory holds."""
        print(self.stepper.state(), file=self.stdout)

    def do_where(self, line: str) -> None:
        """where WARP [BLOCK]: what a warp does or waits for, and since when."""
        numbers = line.split()
        if not 1 <= len(numbers) <= 2 or not all(number.isdigit() for number in numbers):
            print("where needs a warp's number, and may have a block's.", file=self.stdout)
            return
        self._answer(lambda: self.stepper.where(*map(int, numbers)))

    def do_barrier(self, line: str) -> None:
        """barrier NAME or ADDRESS: an mbarrier's phase, pending arrivals and bytes to come."""
        name = line.strip()

        def said() -> str:
            state = self.stepper.barrier(_number_or_name(name))
            if state is None:
                return f"{name} has not been initialised yet."
            return f"{name}: phase {state.phase}, {state.pending} pending, {state.bytes} bytes to come"

        self._answer(said)

    def do_stage(self, line: str) -> None:
        """stage NUMBER or ADDRESS: what a stage of shared memory holds."""
        name = line.strip()

        def said() -> str:
            state = self.stepper.stage(_number_or_name(name))
            if state is None:
                return f"Nothing has been loaded into stage {name} yet."
            return f"stage {name}: {state.state}, load {state.round}"

        self._answer(said)

    def do_accumulator(self, line: str) -> None:
        """accumulator [WARPGROUP [NUMBER [BLOCK]]]: the 64 rows that WGMMAs add to, after the last wait."""
        numbers = line.split()
        if len(numbers) > 3 or not all(number.isdigit() for number in numbers):
            print(
                "accumulator may have a warpgroup's number, one of its accumulators' and a block's.",
                file=self.stdout,
            )
            return

        def said() -> str:
            found = self.stepper.accumulator(*map(int, numbers))
            if found is None:
                return "No WGMMA has used it yet."
            return f"{found.shape[0]} x {found.shape[1]}, {found.dtype}:\n{found}"

        self._answer(said)

    def do_source(self, line: str) -> None:
        """source: the source text around the event."""
        print(self.stepper.source(8) or "The event has no source line.", file=self.stdout)

    def do_quit(self, line: str) -> bool:
        """quit: leave, as the end of the input does."""
        return True

    do_EOF = do_quit  # the name that cmd gives the end of the input

    def emptyline(self) -> bool:
        self.do_next("")
        return False

    def default(self, line: str) -> bool | None:  # type: ignore[override] # cmd's returns what a command does
        short: dict[str, Callable[[str], bool | None]] = {
            **{"n": self.do_next, "b": self.do_back, "s": self.do_state, "w": self.do_where},
            **{"a": self.do_accumulator, "q": self.do_quit},
        }
        command, _, rest = line.partition(" ")
        if command in short:
            return short[command](rest)
        print(f"{command!r} is not a command; help lists them.", file=self.stdout)
        return None

    def _answer(self, said: Callable[[], str]) -> None:
        try:
            print(said(), file=self.stdout)
        except InputError as error:
            print(error, file=self.stdout)

    def _step(self, go: Callable[[str | None, int | None], Stepper], line: str) -> None:
        words = line.split()
        warps = [int(word) for word in words if word.isdigit()]
        kinds = [word for word in words if not word.isdigit()]
        before = self.stepper.event
        try:
            found = go(kinds[0] if kinds else None, warps[0] if warps else None)
        except InputError as error:
            print(error, file=self.stdout)
            return
        print(found if found.event != before else "There is no further event of that kind.", file=self.stdout)
        if found.event != before and found.line:
            print(found.source(0), file=self.stdout)


def _number_or_name(word: str) -> int | str:
    return int(word, 0) if re.fullmatch(r"0x[0-9a-fA-F]+|\d+", word) else word
