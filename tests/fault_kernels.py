"""Runs the kernels of faults.cu, each of which misuses the machine in one way."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

import gemm_ladder as gl
import numpy as np
from gemm_ladder import build
from gemm_ladder.ref import emulator

REPOSITORY = Path(__file__).resolve().parents[1]
SOURCE = REPOSITORY / "tests" / "faults.cu"
# The kinds of fault that faults_plain.cu has, and faults.cu has not.
PLAIN = {"global_out_of_bounds", "endless_loop", "crashed", "written_twice", "array_out_of_bounds"}


class FaultArgs(ctypes.Structure):
    """struct FaultArgs of faults.cu"""

    _fields_ = [("fault", ctypes.c_int64), ("tensor", ctypes.c_void_p)]


@functools.cache
def library() -> ctypes.CDLL:
    return build.load(SOURCE, target="emulator").lib


def kinds() -> list[str]:
    """Every kind of fault in the emulator's own table."""
    lib = library()
    lib.emulator_fault_name.restype = ctypes.c_char_p
    names = []
    while (name := lib.emulator_fault_name(len(names))) is not None:
        names.append(name.decode())
    return names


def run(fault: int, seed: int = 0, **choices) -> tuple[str | None, emulator.Run]:
    """Run one kernel; returns the launcher's refusal, if any, and the Run."""
    tensor = np.zeros((64, 64), np.float32)
    with gl.emulator(seed=seed, record=True, **choices) as seen:
        said = emulator.launch(library(), FaultArgs(fault, tensor.ctypes.data), {"T": tensor}, once={"T"})
    return said, seen


def caught(fault: int, seed: int = 0, **choices) -> gl.EmulatorError | None:
    """The fault that one schedule of a kernel ends with; None if it runs to its end."""
    try:
        run(fault, seed, **choices)
    except gl.EmulatorError as error:
        return error
    return None
