"""What gemm_ladder raises. A message is one sentence: what was given and what is needed. A BuildError's goes
on with what the compiler says, a ToolchainError's with what was found and cannot be used.

GemmLadderError
├── InputError (ValueError, and RuntimeError, which DeepGEMM raises)
│                                    a tensor, a shape or an option that cannot be used; `out` is untouched
├── UnknownRungError (KeyError)      a name that is not a rung's
├── LaunchError (RuntimeError)       a launch was refused, by CUDA or by the kernel's own launcher
├── EmulatorError (RuntimeError)     the emulated machine found a fault in a kernel: a deadlock, a misuse
├── ToolchainError (RuntimeError)    what a build needs is missing or too old: a compiler, a library, a folder
├── BuildError (RuntimeError)        a source does not build, or what was built does not load
├── UnknownCodeError (ValueError)    sass/ffma.py: machine code that is not what the rewriting knows
└── ProfilerError (RuntimeError)     measure/timing.py: the CUDA profiler does not report what ran

The last two are defined in the modules that raise them. `gemm_ladder.build` has ToolchainError and BuildError
as well. Every error can be pickled, so a process pool hands it on.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gemm_ladder.lab.recording import Recording

_AROUND = re.compile(
    r"\[\d+/\d+\] |FAILED:|ninja: build stopped|RuntimeError: Error building extension|Traceback "
)


class GemmLadderError(Exception):
    """The base of everything that gemm_ladder raises on purpose."""


class InputError(GemmLadderError, ValueError, RuntimeError):
    """The caller's input cannot be used; nothing was written to the output."""


class UnknownRungError(GemmLadderError, KeyError):
    """There is no rung of that name."""

    __str__ = Exception.__str__  # KeyError's own would put the whole sentence in quotation marks


class LaunchError(GemmLadderError, RuntimeError):
    """A kernel could not be launched."""


class EmulatorError(GemmLadderError, RuntimeError):
    """The emulator stopped a kernel; the message names the fault, the threads and the barriers involved.

    Attributes:
        what: str, the kind of fault, such as "deadlock": a name from the table in
            ref/emulator/core/fault.hpp, which explains it. Messages may change, names do not. "unknown" if
            the error was made without one.
        block, warp, lane: int, the thread that executed the instruction at fault, or that issued it where it
            is a TMA store or a WGMMA; `block` is its index in the grid. None where there is no one thread: a
            deadlock has several, and a WGMMA is issued by a whole warp.
        address: int, the address at fault, in shared memory (with the rank of the block, if the instruction
            takes a shared::cluster address) or in global memory. None where it has none.
        line: str, the line of the kernel's source, such as "s3_wgmma.cu:65"; None where it is not known.
        other_line: str, that of the other access of a data race; None where it is not known.
        recording: `gemm_ladder.lab`'s record of the launch up to the fault, which `lab.view` shows; None
            unless `lab.run` was asked to record.
    """

    recording: Recording | None = None

    def __init__(
        self,
        message: str,
        *,
        what: str = "unknown",
        block: int | None = None,
        warp: int | None = None,
        lane: int | None = None,
        address: int | None = None,
        line: str | None = None,
        other_line: str | None = None,
    ) -> None:
        super().__init__(message)  # args hold the message alone; pickle carries the attributes beside it
        self.what = what
        self.block, self.warp, self.lane, self.address, self.line = block, warp, lane, address, line
        self.other_line = other_line


class ToolchainError(GemmLadderError, RuntimeError):
    """What a build needs is missing or too old.

    Attributes:
        missing: what is missing, or too old.
        remedy: how to get it; "" where nothing is known to help.
    """

    def __init__(self, missing: str, remedy: str = "") -> None:
        super().__init__(missing, remedy)
        self.missing = missing
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.missing}: {self.remedy}" if self.remedy else self.missing


class BuildError(GemmLadderError, RuntimeError):
    """A source does not build, or what was built does not load.

    Attributes:
        sentence: which source, and what was tried with it.
        log: the whole output of the compiler or of the loader; "" where there is none.
    """

    def __init__(self, sentence: str, log: str) -> None:
        super().__init__(sentence, log)
        self.sentence = sentence
        self.log = log

    def __str__(self) -> str:
        return f"{self.sentence}\n{_said(self.log)}" if self.log else self.sentence


def _said(log: str) -> str:
    """What the compiler says in the log of a build, without what ninja and torch write around it."""
    kept, command = [], False
    for line in log.splitlines():
        if not command and not _AROUND.match(line):
            kept.append(line)
        command = line.startswith("FAILED:")  # then comes the compiler's command
    return "\n".join(kept) if any(kept) else log


def one_line(error: BaseException) -> str:
    """An exception's text on one line of bearable length."""
    text = " ".join((str(error) or type(error).__name__).split())
    return text if len(text) <= 200 else text[:197] + "..."
