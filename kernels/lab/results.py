"""What running a kernel gives back: one launch's result, or that of many schedules."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from gemm_ladder.errors import EmulatorError
from gemm_ladder.lab.recording import Recording
from gemm_ladder.ref import emulator

Device = Literal["cpu", "cuda"]


@dataclass
class Result:
    """What one launch did. The arrays among its arguments hold what the kernel wrote.

    Attributes:
        device: "cpu", the emulator, or "cuda".
        printed: the output of the kernel's printf; on a GPU it goes to stdout instead.
        seconds: that the launch took, until its end. On the emulator this says nothing about a GPU.
        steps: of the emulator's scheduler, of all clusters together.
        notes: sentences on what the kernel did that is legal and likely a mistake (emulator).
        events: what happened, if it was recorded: a structured array of dtype `emulator.EVENT`.
        recording: the same with all that `lab.view` and `lab.Stepper` need; None if it was not recorded.
    """

    device: Device
    printed: str
    seconds: float
    steps: int = 0
    notes: list[str] = field(default_factory=list)
    events: np.ndarray = field(default_factory=lambda: np.empty(0, emulator.EVENT), repr=False)
    recording: Recording | None = field(default=None, repr=False)


@dataclass
class Sweep:
    """What the launches of one kernel with many seeds did.

    Attributes:
        seeds: how many there were.
        faults: by seed, the fault that ended its launch.
        different: the seeds whose results are not those of the first launch without a fault, bit for bit.
        difference: of the first of them, which values differ: the array's name, the rows and columns.
        steps: by seed.
        notes: sentences on what the kernel did in any of them that is legal and likely a mistake.
        skipped: the seeds that were not run, because the launch before them ended in an endless loop, which
            takes seconds to recognise.
    """

    seeds: int
    faults: dict[int, EmulatorError] = field(default_factory=dict)
    different: list[int] = field(default_factory=list)
    difference: str = ""
    steps: dict[int, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    skipped: list[int] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        """No launch had a fault, and all gave the same results."""
        return not self.faults and not self.different

    def __str__(self) -> str:
        notes = [f"note: {note}" for note in self.notes]
        if self.sound:
            return "\n".join([f"{self.seeds} schedules: no fault, and the same result each time.", *notes])
        lines: list[str] = []
        ran = self.seeds - len(self.skipped)
        kinds: dict[str, list[int]] = {}
        for seed, fault in self.faults.items():
            kinds.setdefault(fault.what, []).append(seed)
        for what, seeds in kinds.items():
            lines.append(f"{len(seeds)} of {ran} schedules: {what}. With seed {seeds[0]}:")
            lines.append(f"  {self.faults[seeds[0]]}")
        if self.different:
            lines.append(
                f"{len(self.different)} of {ran} schedules give another result than the first, such "
                f"as seed {self.different[0]}: {self.difference}."
            )
        if self.skipped:
            lines.append(f"{len(self.skipped)} more were not run: each could take as many seconds.")
        return "\n".join(lines + notes)
