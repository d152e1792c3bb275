"""What the emulator's library and Python tell each other: its structures, its functions, its events."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from gemm_ladder.errors import EmulatorError
from gemm_ladder.ref.emulator import source_lines

if TYPE_CHECKING:
    import torch

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
        ("from", np.uint64),
    ]
)

# One row of Run.events. `launch` counts the launches inside the `with` block from 0, `step` is the clock of
# the cluster's scheduler, `thread` is -1 for an asynchronous unit, `kind` is the event's name: record.hpp
# lists the names and says what `address` and `value` mean for each. `offset` is the place of the instruction
# in the kernel's library, whose line source_lines.py knows; 0: an asynchronous unit did it, or not known.
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
        ("offset", np.uint64),
    ]
)


# struct EmulatorAccumulator: what a warp's accumulators do from the WGMMA that is the first to use them to
# the wait that gives them back.
ACCUMULATOR = np.dtype(
    [
        ("cluster", np.int32),
        ("block", np.int32),
        ("warp", np.int32),
        ("number", np.int32),
        ("type", np.int32),
        ("n", np.int32),
        ("begin", np.int64),
        ("end", np.int64),
        ("offset", np.int64),
    ]
)


class Accumulators(NamedTuple):
    """What a launch's accumulators held.

    Attributes:
        rows: of dtype ACCUMULATOR: record.hpp says what the fields mean.
        values: uint8, the bytes that `offset` counts: 16 rows of n values, of `mma.Type(type)`.
    """

    rows: np.ndarray = np.empty(0, ACCUMULATOR)
    values: np.ndarray = np.empty(0, np.uint8)


KEPT_BYTES = 256 << 20  # of accumulators, that a launch which is recorded keeps
PIECE = 16  # bytes that a TMA store writes as one


class Config(ctypes.Structure):
    """struct EmulatorConfig"""

    _fields_ = [
        ("seed", ctypes.c_uint64),
        ("record", ctypes.c_int32),
        ("threads", ctypes.c_int32),
        ("max_steps", ctypes.c_int64),
        ("mma", ctypes.c_void_p),
        ("decode", ctypes.c_void_p),
        ("multiply", ctypes.c_void_p),
        ("dry", ctypes.c_int32),
        ("tensors", ctypes.c_void_p),
        ("tensor_count", ctypes.c_int64),
        ("kept_bytes", ctypes.c_int64),
    ]


class Tensor(ctypes.Structure):
    """struct EmulatorTensor"""

    _fields_ = [
        ("name", ctypes.c_char_p),
        ("begin", ctypes.c_uint64),
        ("bytes", ctypes.c_int64),
        ("item", ctypes.c_int32),
        ("dimensions", ctypes.c_int32),
        ("once", ctypes.c_int32),
        ("shape", ctypes.c_int64 * 8),
        ("strides", ctypes.c_int64 * 8),
        ("padding", ctypes.c_int64),
    ]

    @classmethod
    def of(cls, name: str, tensor: np.ndarray | torch.Tensor, once: bool) -> Tensor:
        if isinstance(tensor, np.ndarray):
            begin = tensor.ctypes.data
            strides = [stride // tensor.itemsize for stride in tensor.strides]
        else:
            begin, strides = tensor.data_ptr(), list(tensor.stride())
        shape = [int(size) for size in tensor.shape]
        span = 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
        size = span * tensor.itemsize if 0 not in shape else 0
        return cls(
            name=name.encode(),
            begin=begin,
            bytes=size,
            item=tensor.itemsize,
            dimensions=len(shape),
            once=once,
            shape=(ctypes.c_int64 * 8)(*shape),
            strides=(ctypes.c_int64 * 8)(*strides),
            padding=max(0, min(_end_of_memory(tensor) - begin - size, PIECE - 1)),
        )


def _end_of_memory(tensor: np.ndarray | torch.Tensor) -> int:
    """The end of the memory of which a tensor is a part, such as the columns of a larger array; that of the
    tensor's storage, or of the array that a NumPy array is a view of."""
    if not isinstance(tensor, np.ndarray):
        storage = tensor.untyped_storage()
        return storage.data_ptr() + storage.nbytes()
    whole = tensor
    while isinstance(whole.base, np.ndarray):
        whole = whole.base
    return whole.ctypes.data + whole.nbytes if whole.flags.c_contiguous else 0


class Fault(ctypes.Structure):
    """struct EmulatorFault"""

    _fields_ = [
        ("what", ctypes.c_char_p),
        ("message", ctypes.c_char_p),
        ("address", ctypes.c_uint64),  # 0: not known
        ("block", ctypes.c_int64),  # -1: not known, as for warp and lane
        ("warp", ctypes.c_int32),
        ("lane", ctypes.c_int32),
        ("library", ctypes.c_char_p),
        ("offset", ctypes.c_uint64),  # 0: not known
        ("other", ctypes.c_uint64),
        ("callers", ctypes.c_uint64 * 8),  # 0 behind the last
    ]

    def error(self) -> EmulatorError:
        library = self.library.decode() if self.library else ""
        callers = [caller for caller in self.callers if caller]
        chain = source_lines.chain(library, self.offset, *callers) if library and self.offset else []
        others = source_lines.chain(library, self.other) if library and self.other else []
        line, other = (next(iter(places), None) for places in (chain, others))
        where = source_lines.joined(chain) if chain else None
        if other:
            where = f"{where}; the other place: {source_lines.joined(others)}"
        if self.what == b"deadlock":  # whose message has the lines already
            where = None
        message = source_lines.named(library, self.message.decode())
        return EmulatorError(
            f"{message} ({where})" if where else message,
            line=line,
            other_line=other,
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
        ("most_shared_bytes", ctypes.c_uint32),  # of any launch of this kernel; 0: they all have the same
        ("stream", ctypes.c_void_p),
        ("cluster", ctypes.c_uint32),  # blocks a cluster
        ("blocks_an_sm", ctypes.c_uint32),  # as __launch_bounds__ says
        ("early", ctypes.c_bool),  # may begin before the kernel ahead of it ends
        ("large_clusters", ctypes.c_bool),  # of more than 8 blocks
    ]


@functools.cache
def declare(library: ctypes.CDLL) -> None:
    library.emulator_call.restype = ctypes.c_char_p
    library.emulator_configure.restype = None
    library.emulator_launched.restype = None
    library.emulator_printed.restype = ctypes.c_char_p
    library.emulator_note.restype = ctypes.c_char_p
    library.emulator_note.argtypes = [ctypes.c_int64]
    library.emulator_fault.restype = ctypes.c_bool
    library.emulator_steps.restype = ctypes.c_int64
    library.emulator_events.restype = ctypes.c_int64
    library.emulator_events.argtypes = [ctypes.POINTER(ctypes.c_void_p)]
    library.emulator_accumulators.restype = ctypes.c_int64
    library.emulator_accumulators.argtypes = [ctypes.POINTER(ctypes.c_void_p)]
    library.emulator_accumulator_values.restype = ctypes.c_int64
    library.emulator_accumulator_values.argtypes = [ctypes.POINTER(ctypes.c_void_p)]
    library.emulator_event_name.restype = ctypes.c_char_p
    library.emulator_event_name.argtypes = [ctypes.c_int32]


@functools.cache
def _kinds(library: ctypes.CDLL) -> np.ndarray:
    names: list[str] = []
    while (name := library.emulator_event_name(len(names))) is not None:
        names.append(name.decode())
    return np.array(names, EVENT["kind"])


def read_events(library: ctypes.CDLL, launch_index: int) -> np.ndarray:
    raw = _array(library.emulator_events, RAW_EVENT)
    events = np.empty(len(raw), EVENT)
    if len(raw):
        for field in set(EVENT.names or ()) & set(RAW_EVENT.names or ()) - {"kind"}:
            events[field] = raw[field]
        events["offset"] = source_lines.offsets(library, raw["from"])
        events["kind"] = _kinds(library)[raw["kind"]]
        events["launch"] = launch_index
    return events


def read_accumulators(library: ctypes.CDLL) -> Accumulators:
    return Accumulators(
        _array(library.emulator_accumulators, ACCUMULATOR).copy(),
        _array(library.emulator_accumulator_values, np.dtype(np.uint8)).copy(),
    )


def _array(function: Callable[..., int], dtype: np.dtype) -> np.ndarray:
    """What a function of the library gives: an address, and how many. Valid until the next launch."""
    address = ctypes.c_void_p()
    count = function(ctypes.byref(address))
    if not count or address.value is None:
        return np.empty(0, dtype)
    return np.frombuffer((ctypes.c_char * (count * dtype.itemsize)).from_address(address.value), dtype)
