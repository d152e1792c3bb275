"""What the choice is judged by: the products of the calibration, and what was measured at them."""

from __future__ import annotations

import functools
import math
from pathlib import Path

from gemm_ladder.measure import calibration
from gemm_ladder.measure.configurations import Timed
from gemm_ladder.measure.shapes import Cell
from repository import REPOSITORY

FILES = sorted((REPOSITORY / "figures" / "data" / "calibration").glob("*.csv"))


@functools.cache
def measured(path: Path) -> dict[Cell, list[Timed]]:
    """The results of a file that have times, by product."""
    found: dict[Cell, list[Timed]] = {}
    for one in calibration.read(path):
        if math.isfinite(one.us[0]):
            found.setdefault(one.cell, []).append(one)
    return found


def gpu_of(path: Path) -> str:
    """The name of the GPU that a file's results are of."""
    return path.stem.replace("_", " ")
