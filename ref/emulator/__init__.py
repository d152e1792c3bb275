"""The emulated Hopper SM, seen from Python: choosing a schedule, and reading what happened.

A rung given CPU tensors runs on the emulator. By itself it runs with seed 0 and records nothing; inside

    with gl.emulator(seed=7, record=True, threads=1) as run:
        rung(lhs, rhs, out)
    run.events, run.steps

every launch follows the schedule of that seed: the order of the threads, and how late each asynchronous copy
and matrix instruction lands. The same seed gives the same run. The choice belongs to the `with` block's own
context (`contextvars`): other threads, and other tasks, are not affected.

The emulator itself is C++ (the .hpp and .cuh files beside this one), compiled together with each kernel. This
module calls the functions that such a library exports.
"""

from __future__ import annotations

import contextlib
import contextvars
import ctypes
from collections.abc import Collection, Iterator, Mapping
from numbers import Integral
from typing import TYPE_CHECKING

import numpy as np
from gemm_ladder.errors import EmulatorError, InputError
from gemm_ladder.ref import mma, tensor_core
from gemm_ladder.ref.emulator import interface, source_lines
from gemm_ladder.ref.emulator.interface import (
    EVENT,
    Accumulators,
    Config,
    Fault,
    LaunchConfig,
    Tensor,
    declare,
    read_accumulators,
    read_events,
)

if TYPE_CHECKING:
    import torch

    Array = np.ndarray | torch.Tensor

__all__ = ["EVENT", "Accumulators", "EmulatorError", "LaunchConfig", "Run", "emulator", "launch"]


def arithmetic() -> dict[str, int]:
    """The addresses of the functions that multiply matrices, as fields of EmulatorConfig.

    The first call of a process compiles them, or loads what an earlier process has compiled.
    """
    decode, multiply = tensor_core.decoding_addresses()
    return {"mma": mma.cfunc_address(), "decode": decode, "multiply": multiply}


class Run:
    """What the launches inside one `with emulator(...)` block did.

    Attributes:
        seed, record, threads, max_steps, dry: as given to `emulator`.
        steps: int, scheduler steps of all clusters of all launches together.
        printed: str, the output of the kernels' printf.
        notes: list of str, sentences on what the kernels did that is legal and likely a mistake, such as
            reading a tile with another swizzle than it was loaded with.
        launches: list of LaunchConfig, one for each launch.
        libraries: list of str, the path of each launch's library.
        texts: dict of str, source texts of these kernels that are in no file, by their names in line tables.
        fault: EmulatorError that ended the last launch; None if it had none.
        events: structured array of dtype EVENT, one cluster after another (each has its own clock), in the
            order in which things happened within a cluster; empty if not recorded.
        accumulators: dict of Accumulators, what WGMMAs' accumulators held, by the launch that was recorded.
    """

    def __init__(
        self,
        seed: int = 0,
        record: bool = False,
        threads: int | None = None,
        max_steps: int | None = None,
        dry: bool = False,
    ) -> None:
        self.seed, self.record, self.threads, self.max_steps, self.dry = seed, record, threads, max_steps, dry
        self.steps = 0
        self.printed = ""
        self.notes: list[str] = []
        self.launches: list[LaunchConfig] = []
        self.libraries: list[str] = []
        self.texts: dict[str, str] = {}
        self.fault: EmulatorError | None = None
        self.accumulators: dict[int, Accumulators] = {}
        self._events: list[np.ndarray] = []

    @property
    def events(self) -> np.ndarray:
        if len(self._events) != 1:
            self._events = [np.concatenate([np.empty(0, EVENT), *self._events])]
        return self._events[0]

    def _configure(self, library: ctypes.CDLL, tensors: Mapping[str, Array], once: Collection[str]) -> None:
        known = [Tensor.of(name, tensor, name in once) for name, tensor in tensors.items()]
        self._tensors = (Tensor * len(known))(*known)  # which the library reads until the launch has ended
        library.emulator_configure(
            ctypes.byref(
                Config(
                    seed=self.seed,
                    record=self.record,
                    threads=self.threads or 0,
                    max_steps=self.max_steps or 0,
                    dry=self.dry,
                    tensors=ctypes.addressof(self._tensors),
                    tensor_count=len(known),
                    kept_bytes=interface.KEPT_BYTES,
                    **arithmetic(),
                )
            )
        )

    def _collect(self, library: ctypes.CDLL) -> None:
        self.steps += library.emulator_steps()
        self.printed += library.emulator_printed().decode(errors="replace")
        number = 0
        while (note := library.emulator_note(number)) is not None:
            self.notes.append(source_lines.named(library._name, note.decode()))
            number += 1
        if self.record:
            self._events.append(read_events(library, len(self.launches)))
            self.accumulators[len(self.launches)] = read_accumulators(library)
        config = LaunchConfig()
        library.emulator_launched(ctypes.byref(config))
        self.launches.append(config)
        self.libraries.append(library._name)


_current: contextvars.ContextVar[Run | None] = contextvars.ContextVar("gemm_ladder_emulator", default=None)


@contextlib.contextmanager
def emulator(
    seed: int = 0,
    record: bool = False,
    threads: int | None = None,
    max_steps: int | None = None,
    dry: bool = False,
) -> Iterator[Run]:
    """Choose how the emulator runs the launches inside the block.

    Args:
        seed: the schedule, 0 to 2^64 - 1. The result of a correct kernel does not depend on it.
        record: keep every event (slower, and some 200 bytes an event), and the accumulators of WGMMAs after
            each wait (up to 256 MB in all, each cluster's first ones).
        threads: OS threads; each runs one cluster at a time. None: one for each core. Where a thread waits
            in a loop for another cluster that has not begun, one more is started. Fewer take longer; what a
            correct kernel computes does not depend on them.
        max_steps: a cluster that takes more scheduler steps is stopped, with an error. None: no limit.
        dry: run no kernel; Run.launches still holds what the launchers asked for.

    Raises:
        InputError: a seed or a number of threads out of range.
        EmulatorError: from a launch inside the block, when the kernel deadlocks or misuses the machine; the
            run keeps what was recorded up to then.
    """
    if not (isinstance(seed, Integral) and 0 <= seed < 2**64):
        raise InputError(f"seed is {seed!r}; an integer from 0 to 2^64 - 1 is needed")
    if threads is not None and not (isinstance(threads, Integral) and 1 <= threads < 2**31):
        raise InputError(f"threads is {threads!r}; a positive number of OS threads, or None, is needed")
    if max_steps is not None and not (isinstance(max_steps, Integral) and 1 <= max_steps < 2**63):
        raise InputError(f"max_steps is {max_steps!r}; a positive number of steps, or None, is needed")
    run = Run(int(seed), bool(record), threads, max_steps, bool(dry))
    token = _current.set(run)
    try:
        yield run
    finally:
        _current.reset(token)


class Watched:
    """What `watching` has seen.

    Attributes:
        run: the first run that ended in a fault; if there was none, the last that launched a kernel.
    """

    def __init__(self) -> None:
        self.run: Run | None = None


_watching: contextvars.ContextVar[Watched | None] = contextvars.ContextVar(
    "gemm_ladder_watching", default=None
)


@contextlib.contextmanager
def watching() -> Iterator[Watched]:
    """Record every launch inside the block, also those whose caller did not ask for it."""
    watched = Watched()
    token = _watching.set(watched)
    try:
        yield watched
    finally:
        _watching.reset(token)


def launch(
    library: ctypes.CDLL,
    args: ctypes.Structure,
    tensors: Mapping[str, Array] | None = None,
    once: Collection[str] = (),
) -> str | None:
    """Run `gemm_ladder_launch(args)` of a library built for the emulator, as the current context chose.

    Args:
        library: from `gemm_ladder.build.load(..., target="emulator").lib`.
        args: the launcher's argument structure; pointers to host memory.
        tensors: by name, all of the host memory that the kernel may use: an access outside is reported. None
            or empty: what the kernel does to memory is not checked.
        once: names of those tensors of which no two thread blocks may write the same element, and no two
            threads of a block other values of it, unless a barrier orders them.

    Returns:
        None, or the launcher's own reason for refusing its arguments: then nothing has run.

    Raises:
        EmulatorError: the kernel is at fault; `what` and the message name the fault.
    """
    run = _current.get() or Run()
    if (watched := _watching.get()) and not run.dry:
        run.record = (
            run.record or not run.launches
        )  # a launch before was not recorded: neither are the others
        if run.record and not (watched.run and watched.run.fault):
            watched.run = run
    declare(library)
    # The library keeps its configuration and its results per OS thread: one thread must make these calls.
    run._configure(library, tensors or {}, once)
    said: bytes | None = library.emulator_call(library.gemm_ladder_launch, ctypes.byref(args))
    fault = Fault()
    faulty = library.emulator_fault(ctypes.byref(fault))
    run.fault = fault.error() if faulty else None
    if said is not None and not faulty:
        return said.decode()
    run._collect(library)
    if run.fault:
        raise run.fault
    return None
