"""The two pictures of the rungs, from data/ladder.json: figures/shape.png has every rung and library at one
shape, figures/ladder.png at every shape."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from .measured import (
    CEILING,
    SHOWN,
    Series,
    Size,
    is_square,
    name_of,
    number,
    provenance,
    series,
    sizes_of,
)
from .rows import TimesFile
from .sheet import GRID, INK, MUTED, frame, least, sheet

# Libraries are grey and dashed, so that only rungs have colour.
PEER_STYLES = {
    "cublas_bf16": ("#9a9a9a", (0, (1, 1.5)), "s"),
    "cublaslt_blockwise": ("#7a7a7a", (0, (4, 1.5)), "^"),
    "deep_gemm": ("#505050", (0, (4, 1.5, 1, 1.5)), "D"),
    "cublaslt_tensorwise": ("#1a1a1a", (0, (1, 1)), "x"),
}
# Of each rung: neighbours on the ladder are far apart in hue, and no two look alike to a colour-blind reader.
RUNG_COLOURS = (
    *("#991f50", "#2d75e0", "#e087bc", "#65732e", "#2e2e73"),
    *("#4c280f", "#993d99", "#26bf82", "#e8590c", "#4526bf"),
)
WIDTH = 10.0  # inches, of the picture with all shapes
SIZE = least(WIDTH)
OTHER_PEER = ("#505050", (0, (4, 1.5, 1, 1.5)), "P")


def bars(data: TimesFile) -> Any:
    """TFLOPS at SHOWN as bars on a linear axis, a matplotlib Figure: the rungs in order, then libraries."""
    shown = [one for one in series(data, "dirty") if SHOWN in one.tflops]
    styles = _styles(shown)
    gap = 0.6 if len({one.is_peer for one in shown}) > 1 else 0.0
    positions = [index + (gap if one.is_peer else 0.0) for index, one in enumerate(shown)]
    figure, bottom, top = sheet(
        9,
        0.29 * (len(shown) + gap),
        f"One FP8 matrix product, {name_of(SHOWN)}",
        "TFLOPS; m x n x k; kernel time, L2 cold and dirty. Black and grey: libraries in the same run",
        [f"{CEILING}.", *provenance(shown)],
    )
    axes = figure.add_axes((0.23, bottom, 0.69, top - bottom))
    for y, one in zip(positions, shown, strict=True):
        value = one.tflops[SHOWN]
        axes.barh(y, value, height=0.74, color=styles[one.impl]["color"], zorder=2)
        axes.annotate(
            number(value), (value, y), (4, 0), textcoords="offset points", size=10, color=INK, va="center"
        )
    axes.set_yticks(positions, [one.label for one in shown])
    axes.set_ylim((positions[-1] if positions else 0) + 0.6, -0.6)
    axes.set_xlim(0, 1.1 * max((one.tflops[SHOWN] for one in shown), default=1))
    frame(axes, "x", labels=10)
    return figure


def ladder(data: TimesFile) -> Any:
    """TFLOPS as lines, a matplotlib Figure: a panel for each m, and one for the squares if there are any."""
    shown = series(data, "dirty")
    styles = _styles(shown)
    sizes = sizes_of(shown)
    shapes, squares = ([size for size in sizes if is_square(size) == square] for square in (False, True))
    panels = [
        (f"m = {m}", {size: f"{size[1]}\n{size[2]}" for size in shapes if size[0] == m})
        for m in sorted({m for m, _, _ in shapes})
    ]
    if squares:
        panels.append(("m = n = k", {size: str(size[0]) for size in squares}))
    rows = max(1, -(-len(panels) // 2))
    figure, bottom, top = sheet(
        WIDTH,
        2.5 * rows + (rows - 1),  # the panels, and the ticks and titles between them
        "One FP8 matrix product, rung by rung",
        f"TFLOPS on DeepSeek-V3's dense shapes{' and on squares' if squares else ''}; FP8 with 1x128 and "
        "128x128 scales, BF16 output; kernel time, L2 cold and dirty",
        [f"{CEILING}. Black and grey: libraries, not rungs.", *provenance(shown)],
    )
    grid = figure.add_gridspec(
        rows, 2, left=0.055, right=0.83, top=top, bottom=bottom, hspace=0.4, wspace=0.64
    )
    for index, (title, ticks) in enumerate(panels):
        _lines(figure.add_subplot(grid[index // 2, index % 2]), shown, styles, ticks, title)
    return figure


def colour_of(rung: str, otherwise: int = 0) -> str:
    """A rung's colour: s3_... has the third, whichever others are shown; what has no number, the one of place
    `otherwise`."""
    found = re.match(r"s(\d+)_", rung)
    return RUNG_COLOURS[(int(found[1]) - 1 if found else otherwise) % len(RUNG_COLOURS)]


def _styles(shown: Sequence[Series]) -> dict[str, dict[str, Any]]:
    """How each implementation is drawn."""
    rungs = [one.impl for one in shown if not one.is_peer]
    styles = {}
    for index, impl in enumerate(rungs):
        styles[impl] = {
            "color": colour_of(impl, index),
            "linestyle": "-",
            "marker": "o",
            "linewidth": 2,
            "markersize": 5,
        }
    for impl in (one.impl for one in shown if one.is_peer):
        colour, dash, marker = PEER_STYLES.get(impl, OTHER_PEER)
        styles[impl] = {"color": colour, "linestyle": dash, "marker": marker, "linewidth": 1, "markersize": 4}
    return styles


def _lines(
    axes: Any,
    shown: Sequence[Series],
    styles: dict[str, dict[str, Any]],
    ticks: dict[Size, str],
    title: str,
) -> None:
    """TFLOPS at the shapes of `ticks`, from left to right. Each line is labelled at its end: libraries by
    name, rungs by their number in the line's colour."""
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
    axes.set_xticks(range(len(sizes)), list(ticks.values()))
    ends.sort(key=lambda end: end[0])
    heights = spread([value for value, _ in ends], 0.062 * top)
    for (value, one), height in zip(ends, heights, strict=True):
        axes.annotate(
            f"{one.label if one.is_peer else one.impl.split('_')[0]}  {number(value)}",
            (len(sizes) - 1, value),
            (axes.get_position().x1 + 0.004, height),
            textcoords=("figure fraction", "data"),
            size=SIZE,
            color=MUTED if one.is_peer else styles[one.impl]["color"],
            weight="normal" if one.is_peer else "bold",
            va="center",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": GRID, "linewidth": 0.8, "shrinkA": 0, "shrinkB": 3},
        )
    axes.set_title(title, loc="left", size=11, weight="bold", color=INK)
    frame(axes, "y")
    axes.tick_params(axis="x", labelsize=SIZE, pad=7)
    if any("\n" in tick for tick in ticks.values()):
        axes.annotate(
            "n\nk", (0, 0), (-7, -7), xycoords="axes fraction", textcoords="offset points", size=SIZE,
            color=MUTED, ha="right", va="top", annotation_clip=False,
        )  # fmt: skip


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """Ascending heights moved as little as needed to lie `gap` apart, none below gap / 2."""
    # (centre, members): heights that had to be moved together, `gap` apart around their centre.
    groups: list[tuple[float, int]] = []
    for height in heights:
        centre, count = max(height, gap / 2), 1
        while groups and centre - groups[-1][0] < gap * (count + groups[-1][1]) / 2:
            below, members = groups.pop()
            centre = (centre * count + below * members) / (count + members)
            count += members
            centre = max(centre, gap * count / 2)
        groups.append((centre, count))
    return [centre + gap * (i - (count - 1) / 2) for centre, count in groups for i in range(count)]
