"""What one launch did on the emulator, kept for looking at: its events, their source lines, its fault."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from gemm_ladder.errors import EmulatorError, InputError
from gemm_ladder.ref import emulator
from gemm_ladder.ref.emulator import source_lines


class Recorded(Protocol):
    """What a launch by `lab.run` leaves: a `lab.Result`, or the EmulatorError that ended it."""

    recording: Recording | None


@dataclass(eq=False)
class Recording:
    """One launch.

    Attributes:
        events: of dtype `emulator.EVENT`, all clusters, of one launch.
        library: the path of the kernel's library, whose line table knows the events' source lines.
        seed: of the schedule.
        fault: that ended the launch, or None.
        texts: source texts that are in no file, by the name that the line table gives them.
        accumulators: what the accumulators of WGMMAs held.
    """

    events: np.ndarray = field(repr=False)
    library: str
    seed: int = 0
    fault: EmulatorError | None = None
    texts: dict[str, str] = field(default_factory=dict, repr=False)
    accumulators: emulator.Accumulators = field(default_factory=emulator.Accumulators, repr=False)

    @classmethod
    def of(cls, run: Recording | Recorded | emulator.Run, launch: int | None = None) -> Recording:
        """The recording of a launch.

        Args:
            run: a `Recording`, a `lab.Result`, an EmulatorError that `lab.run` raised, or what
                `with gl.emulator(record=True) as run` gives.
            launch: which of the run's launches, from 0; None: the last.

        Raises:
            InputError: nothing was recorded, or there is no such launch.
        """
        if isinstance(run, emulator.Run):
            number = len(run.launches) - 1 if launch is None else launch
            if not 0 <= number < len(run.launches):
                raise InputError(f"launch is {launch}; the run has {len(run.launches)} launches.")
            events = run.events[run.events["launch"] == number]
            fault = run.fault if number == len(run.launches) - 1 else None
            held = run.accumulators.get(number, emulator.Accumulators())
            found: Any = cls(events, run.libraries[number], run.seed, fault, dict(run.texts), held)
        else:
            if launch:
                raise InputError(f"launch is {launch}; {type(run).__name__} holds one launch.")
            found = run if isinstance(run, cls) else getattr(run, "recording", None)
        if not isinstance(found, cls) or not len(found.events):
            raise InputError(
                f"{type(run).__name__} holds no events; a launch on the emulator with record=True is needed."
            )
        return found

    def lines(self, offsets: np.ndarray) -> list[tuple[str, int] | None]:
        """The file's path and the line of each offset in the library; None where it is not known."""
        known = source_lines.lines(self.library, (int(offset) for offset in np.unique(offsets) if offset))
        return [known.get(offset) for offset in offsets.tolist()]

    def text(self, path: str) -> str | None:
        """The source text of a file that `lines` names; None if it cannot be read."""
        if Path(path).name in self.texts:
            return self.texts[Path(path).name]
        try:
            return Path(path).read_text(encoding="utf-8", errors="replace")
        except OSError:
            return None

    def clusters(self) -> list[int]:
        """The clusters that have events."""
        return [int(cluster) for cluster in np.unique(self.events["cluster"])]

    def faulty_cluster(self) -> int | None:
        """The cluster in which the fault happened; None without a fault."""
        if self.fault is None:
            return None
        events = self.events
        if self.fault.block is not None and (mine := events[events["block"] == self.fault.block]).size:
            return int(mine["cluster"][0])
        for cluster in self.clusters():  # of those that did not reach their end, the first
            kinds = events["kind"][events["cluster"] == cluster]
            if (kinds == "thread_start").sum() > (kinds == "thread_exit").sum():
                return cluster
        return self.clusters()[0]
