"""What the choice is judged by: the products of the calibration, and what was measured at them."""

from __future__ import annotations

import functools
import math
from pathlib import Path

from gemm_ladder.measure import calibration
from gemm_ladder.measure.configurations import Timed
from gemm_ladder.measure.shapes import Cell
from repository import REPOSITORY

FOLDERS = sorted((REPOSITORY / "figures" / "data" / "calibration").iterdir())


@functools.cache
def measured(folder: Path) -> dict[Cell, list[Timed]]:
    """The results of a folder that have times, by product."""
    found: dict[Cell, list[Timed]] = {}
    for one in calibration.read(folder):
        if math.isfinite(one.us[0]):
            found.setdefault(one.cell, []).append(one)
    return found


def gpu_of(folder: Path) -> str:
    """The name of the GPU that a folder's results are of."""
    return folder.name.replace("_", " ")
