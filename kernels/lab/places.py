"""Saying in words where in a matrix something is wrong: rows, columns, tiles."""

from __future__ import annotations

import numpy as np

PERIODS = (2, 4, 8, 16, 32, 64, 128)  # of rows or columns that alternate, by warp, by swizzle, by tile
# Tile shapes, from which the largest is taken that the wrong region is made of.
TILE_ROWS = (256, 192, 128, 64, 32, 16, 8)
TILE_COLUMNS = (256, 192, 160, 128, 96, 64, 32, 16, 8)
SHOWN = 8  # numbers that are listed one by one
MOSTLY = 0.9  # of a tile: values may be right by chance


def listed(indices: np.ndarray, size: int, one: str, many: str) -> str:
    """Distinct indices in order, in words: "all 64 rows", "rows 8 to 15 of every 16".

    Args:
        indices: at least one, each below `size`.
        one, many: what they are, as "row" and "rows".
    """
    numbers = np.asarray(indices)
    first, last = int(numbers[0]), int(numbers[-1])
    if len(numbers) == 1:
        return f"{one} {first}"
    if len(numbers) == size:
        return f"all {size} {many}"
    if len(numbers) == last - first + 1:
        return f"{many} {first} to {last}"
    for period in PERIODS:
        inside = np.unique(numbers % period)
        span = np.arange(first, last + 1)
        expected = span[np.isin(span % period, inside)]
        if len(inside) < period and last - first >= 2 * period and np.array_equal(expected, numbers):
            whole = first < period and last >= size - period
            where = "" if whole else f", from {first} to {last}"
            return f"{many} {_ranges(inside)} of every {period}{where}"
    return f"{many} {_ranges(numbers)}"


def _ranges(numbers: np.ndarray) -> str:
    """Numbers in order as "3, 5 to 9 and 12"; of many ranges the first, and how many numbers follow."""
    breaks = np.flatnonzero(np.diff(numbers) > 1) + 1
    parts = np.split(numbers, breaks)
    texts = [str(part[0]) if len(part) == 1 else f"{part[0]} to {part[-1]}" for part in parts]
    if len(texts) > SHOWN:
        left = sum(map(len, parts[SHOWN:]))
        return f"{', '.join(texts[:SHOWN])} and {left} others"
    return " and ".join(filter(None, [", ".join(texts[:-1]), texts[-1]]))


def whole_tiles(wrong: np.ndarray) -> str | None:
    """The largest tile shape such that each tile of the matrix is wrong or right as a whole, in words. None
    if there is none, or if all of the matrix is wrong."""
    m, n = wrong.shape
    for rows in TILE_ROWS:
        if _is_made_of(wrong, rows, n):
            return f"bands of {rows} rows"
    for columns in TILE_COLUMNS:
        if _is_made_of(wrong, m, columns):
            return f"bands of {columns} columns"
    sizes = [(rows, columns) for rows in TILE_ROWS for columns in TILE_COLUMNS]
    for rows, columns in sorted(sizes, key=lambda size: -size[0] * size[1]):
        if _is_made_of(wrong, rows, columns):
            return f"tiles of {rows} x {columns}"
    return None


def _is_made_of(wrong: np.ndarray, rows: int, columns: int) -> bool:
    m, n = wrong.shape
    if rows > m or columns > n:
        return False
    share = _shares(wrong, rows, columns)
    # A tile that the end of the matrix cuts off does not show how large it is.
    uncut = share[: m // rows, : n // columns]
    return bool((uncut > 0).any() and (share == 0).any() and ((share == 0) | (share >= MOSTLY)).all())


def _shares(wrong: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """The share of wrong values in each tile."""

    def sums(of: np.ndarray) -> np.ndarray:
        down = np.add.reduceat(of.astype(np.int64), np.arange(0, of.shape[0], rows), axis=0)
        return np.add.reduceat(down, np.arange(0, of.shape[1], columns), axis=1)

    found: np.ndarray = sums(wrong) / sums(np.ones_like(wrong))
    return found


def where(wrong: np.ndarray, whole: str = "all of D") -> str:
    """The rows and columns that have something wrong, in words; `whole`: what all of them are."""
    m, n = wrong.shape
    if wrong.all():
        return f"{whole}, {m} x {n}"
    rows = listed(np.flatnonzero(wrong.any(axis=1)), m, "row", "rows")
    columns = listed(np.flatnonzero(wrong.any(axis=0)), n, "column", "columns")
    return f"{rows}, {columns}"


def tiles(wrong: np.ndarray, rows: int, columns: int) -> str:
    """Which tiles have something wrong, counted from 0, in words."""
    share = _shares(wrong, rows, columns)
    found = np.argwhere(share > 0)
    if len(found) == share.size:
        return (
            f"every tile of {rows} x {columns}" if share.size > 1 else f"the only tile of {rows} x {columns}"
        )
    names = [f"({down}, {right})" for down, right in found[:SHOWN].tolist()]
    more = f" and {len(found) - SHOWN} others" if len(found) > SHOWN else ""
    word = "tile" if len(found) == 1 else "tiles"
    return f"{word} {', '.join(names)}{more} of {share.shape[0]} x {share.shape[1]}, each {rows} x {columns}"
