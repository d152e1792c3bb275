"""The picture of the ladder, figures/ladder.png: TFLOPS of every rung and of its peers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from .measured import CEILING, Data, Series, Size, is_square, number, provenance, series, sizes_of
from .sheet import GRID, INK, MUTED, frame, sheet

# Peers: greys and dashes, so that only rungs have colour.
PEER_STYLES = {
    "cublas_bf16": ("#9a9a9a", (0, (1, 1.5)), "s"),
    "cublaslt_blockwise": ("#7a7a7a", (0, (4, 1.5)), "^"),
    "deep_gemm_v1": ("#9a9a9a", (0, (4, 1.5, 1, 1.5)), "v"),
    "deep_gemm": ("#505050", (0, (4, 1.5, 1, 1.5)), "D"),
    "cublaslt_tensorwise": ("#1a1a1a", (0, (1, 1)), "x"),
}


def ladder(files: Sequence[Data]) -> Any:
    """The picture, a matplotlib Figure: one shape as bars, every shape as lines in a panel for each m, and
    the squares, where there are any, as lines below."""
    shown = series(files, "dirty")
    styles = _styles(shown)
    sizes = sizes_of(shown)
    shapes, squares = ([size for size in sizes if is_square(size) == square] for square in (False, True))
    rows = 3 if squares else 2
    figure, bottom, top = sheet(
        12,
        2.5 * rows + (rows - 1),  # the panels, and the ticks and titles between them
        "One FP8 matrix product, rung by rung",
        f"TFLOPS on DeepSeek-V3's dense shapes{' and on squares' if squares else ''}; FP8 with 1x128 and "
        "128x128 scales, BF16 output; kernel time, L2 cold and dirty",
        [f"{CEILING}. Black and grey: libraries, not rungs.", *provenance(shown)],
    )
    grid = figure.add_gridspec(rows, 2, left=0.13, right=0.88, top=top, bottom=bottom, hspace=0.4, wspace=0.5)
    _bars(figure.add_subplot(grid[0, 0]), shown, styles)
    for cell, m in zip((grid[0, 1], grid[1, 0], grid[1, 1]), sorted({m for m, _, _ in shapes}), strict=False):
        ticks = {size: f"n {size[1]}\nk {size[2]}" for size in shapes if size[0] == m}
        _lines(figure.add_subplot(cell), shown, styles, ticks, f"m = {m}")
    if squares:
        ticks = {size: str(size[0]) for size in squares}
        _lines(figure.add_subplot(grid[2, :]), shown, styles, ticks, "m = n = k")
    return figure


def _styles(shown: Sequence[Series]) -> dict[str, dict[str, Any]]:
    """How each implementation is drawn. The rungs go from dark to bright, so that colour-blind eyes, and grey
    printing, keep them apart."""
    from matplotlib import colormaps

    rungs = [one.impl for one in shown if not one.is_peer]
    styles = {}
    for index, impl in enumerate(rungs):
        colour = colormaps["plasma"](0.76 * index / max(len(rungs) - 1, 1))
        styles[impl] = {"color": colour, "linestyle": "-", "marker": "o", "linewidth": 2, "markersize": 5}
    for impl, (colour, dash, marker) in PEER_STYLES.items():
        styles[impl] = {"color": colour, "linestyle": dash, "marker": marker, "linewidth": 1, "markersize": 4}
    return styles


def _bars(axes: Any, shown: Sequence[Series], styles: dict[str, dict[str, Any]]) -> None:
    """The shape with the most work: a bar for each implementation, rungs from the bottom up."""
    largest = max((size for size in sizes_of(shown) if not is_square(size)), key=math.prod)
    bars = [one for one in shown if largest in one.tflops]
    gap = 0.6 if bars and not bars[0].is_peer else 0.0
    for index, one in enumerate(bars):
        y = index + (gap if one.is_peer else 0.0)
        value = one.tflops[largest]
        axes.barh(y, value, height=0.7, color=styles[one.impl]["color"], zorder=2)
        axes.annotate(
            number(value), (value, y), (4, 0), textcoords="offset points", size=8.5, color=INK, va="center"
        )
    positions = [index + (gap if one.is_peer else 0.0) for index, one in enumerate(bars)]
    axes.set_yticks(positions, [one.label for one in bars])
    values = [one.tflops[largest] for one in bars]
    logarithmic = max(values) > 20 * min(values)  # an s1_naive would be out of sight
    if logarithmic:
        axes.set_xscale("log")
        axes.set_xlim(min(values) / 3, max(values) * 2.2)
        axes.xaxis.set_major_formatter("{x:g}")
    else:
        axes.set_xlim(0, max(values) * 1.15)
    _title(axes, " x ".join(map(str, largest)), "TFLOPS, logarithmic" if logarithmic else "TFLOPS")
    frame(axes, "x")
    axes.tick_params(axis="x", labelsize=7.5)


def _lines(
    axes: Any,
    shown: Sequence[Series],
    styles: dict[str, dict[str, Any]],
    ticks: dict[Size, str],
    title: str,
) -> None:
    """TFLOPS at some shapes, `ticks` being their names from left to right, each line labelled at its end (the
    rungs by their numbers, in the bars' colours)."""
    sizes = list(ticks)
    ends = []
    for one in shown:
        points = [(x, one.tflops[size]) for x, size in enumerate(sizes) if size in one.tflops]
        if points:
            axes.plot(*zip(*points, strict=True), zorder=3, clip_on=False, **styles[one.impl])
            ends.append((points[-1][1], one))
    top = max(max(one.tflops.get(size, 0) for size in sizes) for one in shown) * 1.06
    axes.set_ylim(0, top)
    axes.set_xlim(-0.3, len(sizes) - 0.7)
    axes.set_xticks(range(len(sizes)), list(ticks.values()), size=7.5)
    ends.sort(key=lambda end: end[0])
    heights = spread([value for value, _ in ends], 0.062 * top)
    for (value, one), height in zip(ends, heights, strict=True):
        axes.annotate(
            f"{one.label if one.is_peer else one.impl.split('_')[0]}  {number(value)}",
            (len(sizes) - 1, value),
            (axes.get_position().x1 + 0.004, height),
            textcoords=("figure fraction", "data"),
            size=8,
            color=MUTED if one.is_peer else styles[one.impl]["color"],
            weight="normal" if one.is_peer else "bold",
            va="center",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": GRID, "linewidth": 0.8, "shrinkA": 0, "shrinkB": 3},
        )
    _title(axes, title, "TFLOPS")
    frame(axes, "y")
    axes.tick_params(axis="x", labelsize=7.5)


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """Ascending heights moved as little as needed to lie `gap` apart, none below gap / 2."""
    groups: list[
        tuple[float, int]
    ] = []  # (centre, members), each one's members `gap` apart around its centre
    for height in heights:
        centre, count = max(height, gap / 2), 1
        while groups and centre - groups[-1][0] < gap * (count + groups[-1][1]) / 2:
            below, members = groups.pop()
            centre = (centre * count + below * members) / (count + members)
            count += members
            centre = max(centre, gap * count / 2)
        groups.append((centre, count))
    return [centre + gap * (i - (count - 1) / 2) for centre, count in groups for i in range(count)]


def _title(axes: Any, title: str, unit: str) -> None:
    axes.set_title(title, loc="left", size=11, weight="bold", color=INK)
    axes.set_title(unit, loc="right", size=8, color=MUTED)
