"""figures/roofline.png: TFLOPS against operations per byte, under what memory and the tensor cores allow.

It shows every row of the production kernels' table, and every rung at the shape SHOWN. Memory's ceiling is
what a copy reaches; the tensor cores' ceiling is the best that cuBLASLt reaches without promotion in the
production kernels' own run.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from .ladder import spread
from .measured import CEILING, SHOWN, name_of, number, provenance, series
from .production import KINDS, RUNG
from .rows import TimedRow, TimesFile
from .sheet import GRID, INK, MUTED, frame, sheet

TENSOR_CORES = "cublaslt_tensorwise"


class Memory(NamedTuple):
    """A GPU's memory, in TB/s: by NVIDIA's data sheet, and what a copy reads and writes together."""

    sheet: float
    copy: float


# The copies: of many GB, measured on 2026-11-22; of casts.json's largest, L2 cold and dirty, on 2026-11-29.
MEMORY = {"NVIDIA H100 80GB HBM3": Memory(3.35, 3.01), "NVIDIA H200": Memory(4.8, 4.14)}
STYLES = {"dense": ("#3b528b", "o"), "contiguous": ("#21918c", "s"), "masked": ("#e16462", "D")}


def intensity(row: TimedRow) -> float:
    """Operations per byte that has to move, valid rows only."""
    return 1000 * row["tflops"] / row["gb_s"]


def roofline(production: TimesFile, ladder: TimesFile | None) -> Any:
    """The picture, a matplotlib Figure.

    Args:
        production: production.json.
        ladder: ladder.json, if it is there.
    """
    from matplotlib.ticker import LogLocator, NullLocator

    dirty = [row for row in production["rows"] if row["l2"] == "dirty"]
    rows = [row for row in dirty if row["impl"] == RUNG]
    tensor = max((row["tflops"] for row in dirty if row["impl"] == TENSOR_CORES), default=None)
    shown = [one for one in series(production, "dirty") if one.impl in (RUNG, TENSOR_CORES)]
    of_ladder = series(ladder, "dirty") if ladder else []
    rungs = [one for one in of_ladder if not one.is_peer and SHOWN in one.tflops]
    values = [row["tflops"] for row in rows]
    floor = min(values) / 1.6
    below = [f"{one.impl} ({number(one.tflops[SHOWN])})" for one in rungs if one.tflops[SHOWN] < floor]
    figure, bottom, top = sheet(
        10,
        5.0,
        "Every row and every rung under the ceilings",
        "TFLOPS against operations per byte of operands and result, each moved once; valid rows only; "
        "L2 cold and dirty",
        [
            f"{CEILING}." + (f" Too slow for the picture: {', '.join(below)}." if below else ""),
            *provenance(shown),
            *(f"Rungs: {note}" for note in provenance(rungs)),
        ],
    )
    axes = figure.add_axes((0.07, bottom, 0.77, top - bottom))
    axes.set_xscale("log")
    axes.set_yscale("log")
    low, high = min(map(intensity, rows)) / 1.5, max(map(intensity, rows)) * 1.4
    axes.set_xlim(low, high)
    axes.set_ylim(floor, max([tensor or 0, *values]) * 1.4)
    for kind in KINDS:
        colour, marker = STYLES[kind]
        points = [row for row in rows if row["kind"] == kind]
        axes.scatter(
            [intensity(row) for row in points], [row["tflops"] for row in points], s=34, color=colour,
            marker=marker, label=f"{RUNG}, {kind}", zorder=4, edgecolor="white", linewidth=0.6,
        )  # fmt: skip
    axes.legend(loc="lower right", fontsize=9, frameon=False)
    frame(axes, "both")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter("{x:g}")
    memory = MEMORY.get(production["meta"]["gpu"])
    _ceilings(axes, memory.copy if memory else None, tensor, low, high)
    at = [intensity(row) for row in rows if (row["m"], row["n"], row["k"]) == SHOWN]
    if at and rungs:
        drawn = {one.impl: one.tflops[SHOWN] for one in rungs if one.tflops[SHOWN] >= floor}
        _rungs(axes, at[0], drawn)
    return figure


def _ceilings(axes: Any, copy: float | None, tensor: float | None, low: float, high: float) -> None:
    """The two lines, from x = low to x = high, each with its name. copy is TB/s, tensor TFLOPS, if known."""
    ridge = tensor / copy if tensor and copy else None
    look = {"textcoords": "offset points", "size": 8.5, "color": INK, "va": "bottom"}
    if copy:
        end = min(ridge or high, high)
        axes.plot([low, end], [low * copy, end * copy], color=INK, linewidth=1.2, zorder=2)
        begin, finish = (axes.transData.transform((x, x * copy)) for x in (low, end))
        angle = math.degrees(math.atan2(finish[1] - begin[1], finish[0] - begin[0]))
        middle = low**0.4 * end**0.6  # nearer to the ridge than to the labels of the axis
        axes.annotate(
            f"memory: {copy:g} TB/s, which a copy reaches", (middle, middle * copy), (-4, 6),
            rotation=angle, rotation_mode="anchor", ha="center", **look,
        )  # fmt: skip
    if tensor:
        axes.plot([max(ridge or low, low), high], [tensor, tensor], color=INK, linewidth=1.2, zorder=2)
        axes.annotate(
            f"tensor cores: cuBLASLt's best without promotion*, {tensor:.0f} TFLOPS", (high, tensor), (0, 5),
            ha="right", **look,
        )  # fmt: skip


def _rungs(axes: Any, x: float, tflops: dict[str, float]) -> None:
    """The rungs at SHOWN, one above the other, named to the right."""
    ordered = sorted(tflops.items(), key=lambda rung: rung[1])
    values = [value for _, value in ordered]
    axes.plot([x] * len(values), values, color=MUTED, linewidth=0.8, linestyle=(0, (2, 2)), zorder=3)
    axes.scatter([x] * len(values), values, s=26, facecolor="white", edgecolor=INK, linewidth=1, zorder=5)
    lowest, highest = map(math.log10, axes.get_ylim())
    heights = spread([math.log10(value) - lowest for value in values], 0.04 * (highest - lowest))
    look = {"color": INK, "va": "center", "annotation_clip": False}
    look |= {"arrowprops": {"arrowstyle": "-", "color": GRID, "linewidth": 0.8, "shrinkA": 0, "shrinkB": 4}}
    for (name, value), height in zip(ordered, heights, strict=True):
        axes.annotate(
            f"{name.split('_')[0]}  {number(value)}", (x, value), (0.875, 10 ** (height + lowest)), size=8.5,
            textcoords=("figure fraction", "data"), **look,
        )  # fmt: skip
    axes.annotate(
        f"rungs at\n{name_of(SHOWN)}", (0.85, 1), (0, 4), textcoords="offset points", size=8.5,
        xycoords=("figure fraction", "axes fraction"), color=MUTED, va="bottom", annotation_clip=False,
    )  # fmt: skip
