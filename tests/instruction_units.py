"""Runs the kernels of units_*.cu, one for each instruction, and of faults_instructions.cu, in the lab."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import gemm_ladder as gl
import numpy as np
from gemm_ladder import lab

HERE = Path(__file__).parent
SEEDS = range(8)


def schedules(machine: str) -> range:
    """A GPU has one schedule that can be asked for."""
    return SEEDS if machine == "emulator" else range(1)


def run_unit(machine: str, file: str, *args: Any, seed: int = 0, **launch: Any) -> lab.Result:
    """Run the kernel `units` of a file, whose first argument is the unit's number."""
    device = "cpu" if machine == "emulator" else "cuda"
    launch.setdefault("kernel", "units")
    return lab.run(HERE / file, *args, device=device, seed=seed, **launch)


def fault_of(which: int, seed: int = 0, **launch: Any) -> gl.EmulatorError | None:
    """The fault that one schedule of a kernel of faults_instructions.cu ends with; None if there is none."""
    tensor = np.zeros((64, 64), np.float32)
    launch.setdefault("shared_bytes", 32768)
    try:
        lab.run(HERE / "faults_instructions.cu", which, tensor, seed=seed, **launch)
    except gl.EmulatorError as error:
        return error
    return None


def check_fault(which: int, what: str, message: str, **launch: Any) -> None:
    """On every schedule the kernel ends with this fault, whose sentence matches `message` somewhere."""
    for seed in SEEDS:
        error = fault_of(which, seed, **launch)
        assert error is not None and error.what == what and re.search(message, str(error)), error
