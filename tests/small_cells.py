"""Small products of each kind, for the tests of what measures a grid of them."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from gemm_ladder.figures import measured
from gemm_ladder.measure import cells, run, timing
from gemm_ladder.measure.shapes import Cell, Shape, masked_cell

DENSE = Cell("dense", 1, Shape(33, 136, 256))
CONTIGUOUS = Cell("contiguous", 8, Shape(24, 128, 256))
MASKED = masked_cell(8, Shape(16, 72, 384), 40, "low")
SMALL = (DENSE, CONTIGUOUS, MASKED)
META = dict.fromkeys(measured.META_FIELDS, "1") | {"gpu": "GPU", "sources": "abcdef" * 10 + "0123"}


def invented(
    chosen: Sequence[Cell],
    impls: Sequence[str],
    draw: random.Random,
    slower: tuple[float, float],
    about: Mapping[str, Any] | None = None,
) -> Any:
    """A file with made-up times.

    Args:
        slower: between which shares of the first implementation's time each next one adds to it.
        about: what meta says besides META.
    """
    result = run.Run(META | dict(about or {}))
    for cell in chosen:
        for state in timing.STATES:
            for turn, impl in enumerate(impls):
                us = 10.0 * (1 + turn * draw.uniform(*slower))
                result.rows.append(cells.row(impl, cell, state, timing.Timing(us, us, us), 0.001))
    return result.data
