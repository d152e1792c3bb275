"""Right values in the wrong places: by how many rows and columns they have moved."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np

SAMPLE = 64  # wrong values that are looked up
MOST = 2000  # places of one value that count

Distance = tuple[int, int]  # rows down, columns to the right


def likely(places: np.ndarray, belongs: Callable[[int, int], np.ndarray]) -> list[Distance]:
    """The distances at which most wrong values are expected, the likeliest first, at most two.

    Args:
        places: [count, 2], the rows and columns of the wrong values.
        belongs: the places [any, 2] at which the value at a row and a column is expected.
    """
    chosen = places[np.random.default_rng(0).permutation(len(places))[:SAMPLE]]
    votes: Counter[Distance] = Counter()
    for row, column in chosen.tolist():
        votes.update((down - row, right - column) for down, right in belongs(row, column)[:MOST].tolist())
    return [distance for distance, _ in votes.most_common(2)]


def share(
    distance: Distance,
    places: np.ndarray,
    shape: tuple[int, ...],
    same: Callable[[tuple[np.ndarray, ...], tuple[np.ndarray, ...]], np.ndarray],
) -> float:
    """The share of the wrong values that are those expected at this distance.

    Args:
        shape: of the matrix.
        same: given places of values, and as many places inside the matrix, whether each value is the one that
            is expected there.
    """
    there = places + np.array(distance)
    inside = ((there >= 0) & (there < shape)).all(axis=1)
    found = np.zeros(len(places), bool)
    found[inside] = same(tuple(places[inside].T), tuple(there[inside].T))
    return float(found.mean())


def in_words(distance: Distance) -> str:
    """Such as "8 rows below and 64 columns to the left"."""
    down, right = distance
    return " and ".join(
        f"{abs(size)} {many} {after if size > 0 else before}"
        for size, many, before, after in (
            (down, "rows", "above", "below"),
            (right, "columns", "to the left", "to the right"),
        )
        if size
    )
