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
import functools
from collections.abc import Iterator
from numbers import Integral

import numpy as np
from gemm_ladder.errors import EmulatorError, InputError
from gemm_ladder.ref import tensor_core

__all__ = ["EVENT", "EmulatorError", "LaunchConfig", "Run", "emulator", "launch"]

# struct EmulatorEvent
RAW_EVENT = np.dtype(
    [
        ("step", np.uint64),
        ("cluster", np.int32),
        ("block", np.int32),
        ("thread", np.int32),
        ("kind", np.int32),
        ("address", np.uint32),
        ("pad", np.int32),
        ("value", np.int64),
    ]
)

# One row of Run.events. `launch` counts the launches inside the `with` block from 0, `step` is the clock of
# the cluster's scheduler, `thread` is -1 for an asynchronous unit, `kind` is the event's name: record.hpp
# lists the names and says what `address` and `value` mean for each.
EVENT = np.dtype(
    [
        ("launch", np.int32),
        ("step", np.uint64),
        ("cluster", np.int32),
        ("block", np.int32),
        ("thread", np.int32),
        ("kind", "U32"),
        ("address", np.uint32),
        ("value", np.int64),
    ]
)


class _Config(ctypes.Structure):
    """struct EmulatorConfig"""

    _fields_ = [
        ("seed", ctypes.c_uint64),
        ("record", ctypes.c_int32),
        ("threads", ctypes.c_int32),
        ("max_steps", ctypes.c_int64),
        ("wgmma", ctypes.c_void_p),
        ("dry", ctypes.c_int32),
    ]


class _Fault(ctypes.Structure):
    """struct EmulatorFault"""

    _fields_ = [
        ("what", ctypes.c_char_p),
        ("message", ctypes.c_char_p),
        ("address", ctypes.c_uint64),  # 0: not known
        ("block", ctypes.c_int64),  # -1: not known, as for warp and lane
        ("warp", ctypes.c_int32),
        ("lane", ctypes.c_int32),
    ]

    def error(self) -> EmulatorError:
        return EmulatorError(
            self.message.decode(),
            what=self.what.decode(),
            block=self.block if self.block >= 0 else None,
            warp=self.warp if self.warp >= 0 else None,
            lane=self.lane if self.lane >= 0 else None,
            address=self.address or None,
        )


class LaunchConfig(ctypes.Structure):
    """struct LaunchConfig: what a launcher asked for; `blocks` is 0 if it started no kernel."""

    _fields_ = [
        ("blocks", ctypes.c_int64),
        ("threads", ctypes.c_uint32),  # a block
        ("shared_bytes", ctypes.c_uint32),  # dynamic shared memory a block
        ("stream", ctypes.c_void_p),
        ("cluster", ctypes.c_uint32),  # blocks a cluster
        ("blocks_an_sm", ctypes.c_uint32),  # as __launch_bounds__ says
        ("early", ctypes.c_bool),  # may begin before the kernel ahead of it ends
    ]


class Run:
    """What the launches inside one `with emulator(...)` block did.

    Attributes:
        seed, record, threads, max_steps, dry: as given to `emulator`.
        steps: int, scheduler steps of all clusters of all launches together.
        launches: list of LaunchConfig, one for each launch.
        events: structured array of dtype EVENT, one cluster after another (each has its own clock), in the
            order in which things happened within a cluster; empty if not recorded.
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
        self.launches: list[LaunchConfig] = []
        self._events: list[np.ndarray] = []

    @property
    def events(self) -> np.ndarray:
        if len(self._events) != 1:
            self._events = [np.concatenate([np.empty(0, EVENT), *self._events])]
        return self._events[0]

    def _configure(self, library: ctypes.CDLL) -> None:
        library.emulator_configure(
            ctypes.byref(
                _Config(
                    seed=self.seed,
                    record=self.record,
                    threads=self.threads or 0,
                    max_steps=self.max_steps or 0,
                    wgmma=tensor_core.cfunc_address(),
                    dry=self.dry,
                )
            )
        )

    def _collect(self, library: ctypes.CDLL) -> None:
        self.steps += library.emulator_steps()
        if self.record:
            self._events.append(_read_events(library, len(self.launches)))
        config = LaunchConfig()
        library.emulator_launched(ctypes.byref(config))
        self.launches.append(config)


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
        record: keep every event (slower, and 40 bytes an event).
        threads: the most OS threads to use; each runs one cluster at a time. None: one for each core. Changes
            the time only.
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


def launch(library: ctypes.CDLL, args: ctypes.Structure) -> str | None:
    """Run `gemm_ladder_launch(args)` of a library built for the emulator, as the current context chose.

    Args:
        library: from `gemm_ladder.build.load(..., target="emulator").lib`.
        args: the launcher's argument structure; pointers to host memory.

    Returns:
        None, or the launcher's own reason for refusing its arguments: then nothing has run.

    Raises:
        EmulatorError: the kernel is at fault; `what` and the message name the fault.
    """
    run = _current.get() or Run()
    _declare(library)
    # The library keeps its configuration and its results per OS thread: one thread must make these calls.
    run._configure(library)
    said: bytes | None = library.gemm_ladder_launch(ctypes.byref(args))
    fault = _Fault()
    faulty = library.emulator_fault(ctypes.byref(fault))
    if said is not None and not faulty:
        return said.decode()
    run._collect(library)
    if faulty:
        raise fault.error()
    return None


@functools.cache
def _declare(library: ctypes.CDLL) -> None:
    library.gemm_ladder_launch.restype = ctypes.c_char_p
    library.emulator_configure.restype = None
    library.emulator_launched.restype = None
    library.emulator_fault.restype = ctypes.c_bool
    library.emulator_steps.restype = ctypes.c_int64
    library.emulator_events.restype = ctypes.c_int64
    library.emulator_events.argtypes = [ctypes.POINTER(ctypes.c_void_p)]
    library.emulator_event_name.restype = ctypes.c_char_p
    library.emulator_event_name.argtypes = [ctypes.c_int32]


@functools.cache
def _kinds(library: ctypes.CDLL) -> np.ndarray:
    names: list[str] = []
    while (name := library.emulator_event_name(len(names))) is not None:
        names.append(name.decode())
    return np.array(names, EVENT["kind"])


def _read_events(library: ctypes.CDLL, launch_index: int) -> np.ndarray:
    address = ctypes.c_void_p()
    count = library.emulator_events(ctypes.byref(address))
    events = np.empty(count, EVENT)
    if count:
        raw = np.frombuffer(
            (ctypes.c_char * (count * RAW_EVENT.itemsize)).from_address(address.value), RAW_EVENT
        )
        for field in set(EVENT.names or ()) & set(RAW_EVENT.names or ()) - {"kind"}:
            events[field] = raw[field]
        events["kind"] = _kinds(library)[raw["kind"]]
        events["launch"] = launch_index
    return events
