"""The pictures of lesson 09 that show a tile's way out: stmatrix, its banks, and the order of tiles.

What they show is what a kernel wrote on the emulator, or computed by gemm_ladder.ref.layouts and `order`,
which the lesson compares with the kernel's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from gemm_ladder.ref import layouts
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from workshop.drawing import BLUE, EIGHT, INK, MUTED, ORANGE, _canvas, _cell, _pale

# ----------------------------------------------------------------------------------------------- the epilogue


def stmatrix(lane: np.ndarray, register: np.ndarray) -> None:
    """A 16 x 16 tile that one stmatrix.x4 has written: whose register each pair of elements was.

    Args:
        lane, register: int [16, 16]; register 2 i is the lower half of the instruction's i-th, 2 i + 1
            the upper.
    """
    _, axes = plt.subplots(figsize=(9, 5.2))
    _canvas(axes, 36, 17.6, "")
    width, left = 1.7, 4.2
    for row in range(16):
        for column in range(0, 16, 2):
            owner, which = int(lane[row, column]), int(register[row, column]) // 2
            colour = _pale(EIGHT[which], 0.3 + 0.2 * (owner % 2))
            _cell(axes, left + width * column, 1.4 + row, colour, f"T{owner} r{which}", 2 * width)
        for side, x, align in ((0, left - 0.3, "right"), (1, left + 16 * width + 0.3, "left")):
            words = f"address: lane {side * 16 + row}"
            axes.text(x, 1.9 + row, words, ha=align, va="center", size=8, color=MUTED)
    for column in range(16):
        axes.text(left + width * (column + 0.5), 1.2, str(column), ha="center", size=8, color=MUTED)
    axes.set_title("One stmatrix.x4: a warp's 16 x 16 tile. T: lane, r: which of its four registers")
    plt.show()


def store_banks(place: np.ndarray, marked: int = 0) -> None:
    """Where the 8 rows of one stmatrix tile land, row by row as they come and as the kernel has them.

    Args:
        place: int [64, 64], the byte offset at which the kernel puts element (row, column) of a box.
        marked: which column of 16-byte chunks, 0 to 7.
    """
    plain = np.arange(64)[:, np.newaxis] * layouts.SWIZZLE_ROW + 2 * np.arange(64)
    figure, panels = plt.subplots(1, 2, figsize=(9, 3.6))
    figure.subplots_adjust(wspace=0.1)
    for axes, offsets, words in zip(panels, (plain, place), ("as the rows come", "swizzled"), strict=True):
        _canvas(axes, 9.4, 9.6, "")
        hit = []
        for row in range(8):
            for chunk in range(8):
                at = int(offsets[row, 8 * chunk]) % layouts.SWIZZLE_ROW // layouts.SWIZZLE_CHUNK
                hit += [at] if chunk == marked else []
                colour = EIGHT[chunk] if chunk == marked else _pale(EIGHT[chunk], 0.2)
                _cell(axes, 1.3 + at, 1.4 + row, colour, str(chunk))
            axes.text(1.1, 1.9 + row, f"row {row}", ha="right", va="center", size=8, color=MUTED)
        for at in range(8):
            colour, weight = (INK, "bold") if at in hit else (MUTED, "normal")
            axes.text(1.8 + at, 1.2, str(4 * at), ha="center", size=8, color=colour, weight=weight)
        axes.text(1.1, 1.2, "from bank", ha="right", size=8, color=MUTED)
        turns = int(np.bincount(hit).max())
        axes.set_title(f"{words}: {turns} turn{'s' * (turns > 1)}")
    plt.show()


# ------------------------------------------------------------------------------------------------- tile order


def order(tiles_m: int, pairs_n: int, group: int) -> np.ndarray:
    """int [pairs, 2]: tile of m and pair of n that comes first, second, ..., `group` tiles of m at a time."""
    found = []
    for first in range(0, tiles_m, group):
        height = min(group, tiles_m - first)
        found += [(first + i % height, i // height) for i in range(height * pairs_n)]
    return np.array(found)


class Footprint(NamedTuple):
    """What the clusters of one wave read, each for its own tiles and all together, in rows of A or B."""

    asked: int
    different: int


def footprint(walk: np.ndarray, clusters: int, tile: int = 256) -> Footprint:
    """Of the first wave of `walk`; a pair of tiles has `tile` rows of A and as many of B."""
    wave = walk[:clusters]
    return Footprint(2 * tile * len(wave), tile * (len(set(wave[:, 0])) + len(set(wave[:, 1]))))


def tile_orders(groups: Sequence[int], tiles_m: int, pairs_n: int, clusters: int) -> None:
    """The tiles of D in the order of each group width: the first wave orange, the others in blues."""
    _, panels = plt.subplots(1, len(groups), figsize=(9.5 if len(groups) > 1 else 6.5, 3.2), squeeze=False)
    for axes, group in zip(panels[0], groups, strict=True):
        _order(axes, group, tiles_m, pairs_n, clusters)
    plt.show()


def _order(axes: Axes, group: int, tiles_m: int, pairs_n: int, clusters: int) -> None:
    walk = order(tiles_m, pairs_n, group)
    wave = np.zeros((tiles_m, pairs_n), int)
    wave[walk[:, 0], walk[:, 1]] = np.arange(len(walk)) // clusters
    for tile, pair in walk:
        colour = ORANGE if wave[tile, pair] == 0 else _pale(BLUE, 0.15 + 0.22 * (wave[tile, pair] % 3))
        axes.add_patch(Rectangle((pair, tile), 1, 1, facecolor=colour, edgecolor="white", linewidth=0.5))
    first = walk[: min(2 * group + 1, clusters)]
    axes.plot(first[:, 1] + 0.5, first[:, 0] + 0.5, color=INK, linewidth=2)
    axes.set_xlim(0, pairs_n)
    axes.set_ylim(tiles_m, 0)
    axes.set_aspect("equal")
    axes.tick_params(length=0, labelsize=8)
    axes.set_yticks(range(0, tiles_m + 1, max(1, tiles_m // 4)))
    axes.set_xlabel("pairs of tiles along n", size=8)
    axes.set_ylabel("tiles along m", size=8)
    found = footprint(walk, clusters)
    axes.set_title(
        f"{group} tile{'s' * (group > 1)} of m at a time\n{found.different} rows for the first wave", size=9
    )


def footprints(tiles_m: int, pairs_n: int, clusters: int) -> None:
    """The first wave's footprint for every group width."""
    widths = np.arange(1, tiles_m + 1)
    found = [footprint(order(tiles_m, pairs_n, int(width)), clusters).different for width in widths]
    _, axes = plt.subplots(figsize=(7, 2.1))
    axes.bar(widths, found, color=[ORANGE if width == 8 else _pale(BLUE, 0.6) for width in widths])
    axes.set_xticks(widths)
    axes.tick_params(length=0)
    axes.set_xlabel("tiles of m at a time (the kernel's: orange)")
    axes.set_title("Different rows of A and B that the first wave reads")
    plt.show()
