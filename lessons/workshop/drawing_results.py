"""The pictures of lesson 13: measurements, looked at from several sides. All numbers are in figures/data."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from gemm_ladder.figures import ladder, measured
from gemm_ladder.figures.ladder import spread as spread_apart
from gemm_ladder.figures.roofline import MEMORY, Memory, intensity
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from workshop.drawing import BLUE, EIGHT, GRID, INK, MUTED, ORANGE, _pale

Size = tuple[int, int, int]  # m, n, k
Row = Mapping[str, Any]

SHEET_TFLOPS = 1979  # FP8 without sparsity, by the data sheets of the H100 SXM and of the H200


def memory() -> Memory:
    """TB/s of the memory of the GPU that ladder.json is of."""
    return MEMORY[measured.recorded()["meta"]["gpu"]]


def rows(impl: str | None = None, l2: str = "dirty", name: str = "ladder.json") -> list[Row]:
    """The dense rows of a file of times, of one implementation or of all, in one state of L2."""
    found = measured.load(measured.DATA / name)["rows"]
    return [
        row
        for row in found
        if row["kind"] == "dense" and row["l2"] == l2 and (impl is None or row["impl"] == impl)
    ]


def size(row: Row) -> Size:
    return row["m"], row["n"], row["k"]


def times(impl: str, l2: str = "dirty", name: str = "ladder.json") -> dict[Size, float]:
    """Microseconds by (m, n, k)."""
    return {size(row): row["us"] for row in rows(impl, l2, name)}


def page(figure: Figure) -> Figure:
    """A picture of figures/ as it is there: a notebook crops a picture, and takes too much of these."""
    whole = Rectangle((0, 0), 1, 1, transform=figure.transFigure, facecolor="none", linewidth=0)
    figure.add_artist(whole)
    return figure


def name(shape: Size) -> str:
    return " x ".join(map(str, shape))


def ceiling() -> float:
    """The best TFLOPS of the product without block scales."""
    return max(row["tflops"] for row in rows("cublaslt_tensorwise"))


# ---------------------------------------------------------------------------------------- how it was measured


def states(impls: Sequence[str]) -> None:
    """How much longer a product takes with L2 dirty than with L2 clean, against its time with L2 clean."""
    _, axes = plt.subplots(figsize=(8.5, 3))
    for index, impl in enumerate(impls):
        dirty, clean = times(impl), times(impl, "clean")
        points = sorted((clean[shape], dirty[shape] / clean[shape]) for shape in dirty.keys() & clean.keys())
        label = measured.PEERS.get(impl, impl)
        axes.scatter(
            *zip(*points, strict=True), s=26, color=(ORANGE, BLUE, EIGHT[2])[index], label=label, zorder=3
        )
    axes.axhline(1, color=INK, linewidth=0.8)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.grid(axis="y", color=GRID, linewidth=0.6)
    axes.set_xlabel("microseconds, L2 clean")
    axes.set_title("Time with L2 dirty over time with L2 clean; a dot is a shape")
    axes.legend(loc="upper right")
    plt.show()


def spreads() -> None:
    """Half of what lies between the 10th and 90th percentile, over the median: every row of ladder.json."""
    shown = rows()
    _, axes = plt.subplots(figsize=(8.5, 3))
    for peer, colour, label in ((False, BLUE, "rungs"), (True, "#9a9a9a", "libraries")):
        points = [
            (row["us"], (row["us_p90"] - row["us_p10"]) / 2 / row["us"])
            for row in shown
            if (row["impl"] in measured.PEERS) == peer
        ]
        axes.scatter(*zip(*points, strict=True), s=16, color=colour, alpha=0.75, label=label, zorder=3)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:.0f}")
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.2g}%")
    axes.set_ylim(bottom=0)
    axes.grid(axis="y", color=GRID, linewidth=0.6)
    axes.set_xlabel("microseconds, median")
    axes.set_title("Spread inside a run: half of p90 - p10, over the median; a dot is a row")
    axes.legend(loc="upper right")
    plt.show()


def two_runs(impls: Sequence[str]) -> dict[str, list[float]]:
    """One implementation in two runs of one day: its time in production.json over that in ladder.json.

    Returns the ratios by implementation.
    """
    found: dict[str, list[float]] = {}
    _, axes = plt.subplots(figsize=(8.5, 0.9 + 0.5 * len(impls)))
    for y, impl in enumerate(impls):
        earlier, later = times(impl), times(impl, name="production.json")
        found[impl] = [later[shape] / earlier[shape] for shape in sorted(earlier.keys() & later.keys())]
        axes.scatter(found[impl], [y] * len(found[impl]), s=30, color=BLUE, alpha=0.5, linewidth=0, zorder=3)
        middle = float(np.median(found[impl]))
        axes.plot([middle, middle], [y - 0.3, y + 0.3], color=ORANGE, linewidth=2, zorder=4)
    axes.axvline(1, color=INK, linewidth=0.8)
    axes.set_yticks(range(len(impls)), [measured.PEERS.get(impl, impl) for impl in impls])
    axes.set_ylim(len(impls) - 0.5, -0.5)
    axes.grid(axis="x", color=GRID, linewidth=0.6)
    axes.tick_params(length=0)
    axes.set_title("Two runs: the second time over the first; a dot is a shape, orange the median")
    plt.show()
    return found


# -------------------------------------------------------------------------------------------------- rooflines


def roofline(shapes: Sequence[Size], impls: Sequence[str]) -> None:
    """TFLOPS against operations a byte, both logarithmic, under two roofs: the data sheet's, and as reached.

    A column of dots is a shape, a dot an implementation.
    """
    at = {shape: {row["impl"]: row for row in rows() if size(row) == shape} for shape in shapes}
    _, axes = plt.subplots(figsize=(9, 5.8))
    axes.set_xscale("log")
    axes.set_yscale("log")
    x = np.logspace(math.log10(60), math.log10(20000), 300)
    for tb_s, tflops, style, words in (
        (memory().sheet, SHEET_TFLOPS, ":", "data sheet"),
        (memory().copy, ceiling(), "-", "reached"),
    ):
        axes.plot(x, np.minimum(x * tb_s, tflops), color=INK, linewidth=1.1, linestyle=style, label=words)
    lowest = min(row["tflops"] for shape in shapes for impl, row in at[shape].items() if impl in impls)
    for index, shape in enumerate(shapes):
        found = [at[shape][impl] for impl in impls if impl in at[shape]]
        found.sort(key=lambda row: row["tflops"])
        here = intensity(found[0])
        axes.plot([here] * len(found), [row["tflops"] for row in found], color=GRID, linewidth=1, zorder=1)
        heights = spread_apart([math.log10(row["tflops"]) + 9 for row in found], 0.125)
        for row, height in zip(found, heights, strict=True):
            colour = "#9a9a9a" if row["impl"] in measured.PEERS else ladder.colour_of(row["impl"])
            axes.scatter([here], [row["tflops"]], s=26, color=colour, zorder=3)
            words = measured.PEERS.get(row["impl"], row["impl"].split("_")[0])
            line = {"arrowstyle": "-", "color": GRID, "linewidth": 0.6}
            box = {"facecolor": "white", "linewidth": 0, "pad": 0.6}
            at_side = here * 1.16, 10 ** (height - 9)
            axes.annotate(
                words,
                (here, row["tflops"]),
                at_side,
                size=7.5,
                color=colour,
                va="center",
                arrowprops=line,
                bbox=box,
                zorder=5,
            )
        axes.annotate(
            name(shape), (here, lowest / (1.7 + index % 2)), ha="center", va="top", size=8, color=INK
        )
    axes.set_xlim(60, 20000)
    axes.set_ylim(lowest / 4.5, SHEET_TFLOPS * 2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("operations for each byte that has to move")
    axes.set_ylabel("TFLOPS")
    axes.set_title("TFLOPS under the roofs, L2 dirty")
    axes.legend(loc="upper left")
    plt.show()


def of_the_roof(impl: str) -> None:
    """Which part of the nearest roof, as reached, an implementation gets at every shape."""
    found = sorted(rows(impl), key=intensity)
    tb_s, tensor = memory().copy, ceiling()
    _, axes = plt.subplots(figsize=(9, 0.8 + 0.19 * len(found)))
    for y, row in enumerate(found):
        by_memory, compute = intensity(row) * tb_s, tensor
        part = row["tflops"] / min(by_memory, compute)
        axes.barh(y, part, height=0.7, color=BLUE if by_memory < compute else ORANGE)
        axes.annotate(f"{part:.0%}", (part, y), (4, 0), textcoords="offset points", va="center", size=7.5)
    axes.set_yticks(range(len(found)), [name(size(row)) for row in found], size=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.12)
    axes.axvline(1, color=INK, linewidth=0.8)
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)
    axes.tick_params(length=0)
    for colour, words in ((BLUE, "memory is the nearer roof"), (ORANGE, "the tensor cores are")):
        axes.barh([-9], [0], color=colour, label=words)
    axes.set_ylim(len(found) - 0.4, -0.6)
    axes.legend(loc="lower left", bbox_to_anchor=(0, -0.13), ncols=2, borderaxespad=0)
    axes.set_title(f"{impl}: part of the nearer roof, as reached; few operations a byte first")
    plt.show()


# ----------------------------------------------------------------------------------------------------- ratios


def three_axes(impls: Sequence[str], shape: Size) -> None:
    """The same TFLOPS three times: from zero on, from just below the smallest on, logarithmic."""
    at = {row["impl"]: row["tflops"] for row in rows() if size(row) == shape}
    shown = [impl for impl in impls if impl in at]
    values = [at[impl] for impl in shown]
    _, panels = plt.subplots(1, 3, figsize=(9.5, 0.8 + 0.3 * len(shown)))
    titles = ("from zero", "from just below the smallest", "logarithmic")
    for index, (axes, title) in enumerate(zip(panels, titles, strict=True)):
        axes.barh(range(len(shown)), values, height=0.7, color=BLUE)
        axes.set_yticks(
            range(len(shown)), [measured.PEERS.get(impl, impl) for impl in shown] if not index else []
        )
        axes.invert_yaxis()
        if title == "logarithmic":
            axes.set_xscale("log")
            axes.set_xlim(1, 3 * max(values))
        else:
            axes.set_xlim(0 if index == 0 else min(values) * 0.985, max(values) * 1.02)
        axes.tick_params(length=0, which="both")
        axes.set_title(title)
    plt.show()


def ratios(of: str, against: str, l2: str = "dirty") -> dict[Size, float]:
    """How many times as fast `of` is as `against`, a bar a shape; 2 and 1/2 are equally far from 1.

    Returns the ratios.
    """
    mine, theirs = times(of, l2), times(against, l2)
    found = {shape: theirs[shape] / mine[shape] for shape in mine if shape in theirs}
    shapes = sorted(found, key=found.__getitem__, reverse=True)
    mean = math.exp(np.mean([math.log(ratio) for ratio in found.values()]))
    _, axes = plt.subplots(figsize=(9, 0.9 + 0.19 * len(shapes)))
    for y, shape in enumerate(shapes):
        ratio = found[shape]
        colour = BLUE if ratio >= 1 else ORANGE
        axes.barh(y, math.log2(ratio), height=0.7, color=_pale(colour, 0.8))
        side = 1 if ratio >= 1 else -1
        place = {"ha": "left" if side > 0 else "right", "va": "center", "size": 7.5}
        place["bbox"] = {"facecolor": "white", "linewidth": 0, "pad": 0.8}
        end = math.log2(ratio), y
        axes.annotate(f"{ratio:.2f}", end, (4 * side, 0), textcoords="offset points", **place)
    axes.axvline(0, color=INK, linewidth=1)
    axes.axvline(math.log2(mean), color=ORANGE, linewidth=1.3, linestyle="--", zorder=0)
    axes.annotate(f"geometric mean {mean:.3f}", (math.log2(mean), len(shapes) - 0.5), (5, 2),
                  textcoords="offset points", size=8, color=ORANGE)  # fmt: skip
    _log2_axis(axes, found.values())
    axes.set_yticks(range(len(shapes)), [name(shape) for shape in shapes], size=8)
    axes.set_ylim(len(shapes) - 0.4, -0.6)
    axes.tick_params(length=0)
    axes.spines["left"].set_visible(False)
    labels = [measured.PEERS.get(impl, impl) for impl in (of, against)]
    axes.set_title(f"How many times as fast {labels[0]} is as {labels[1]}, L2 {l2}")
    plt.show()
    return found


def _log2_axis(axes: Axes, values: Sequence[float]) -> None:
    low, high = (math.log2(value) for value in (min(1, *values), max(1, *values)))
    margin = 0.12 * (high - low)
    axes.set_xlim(low - margin, high + margin)
    ticks = [
        tick
        for tick in (0.25, 0.5, 0.7, 1, 1.4, 2, 2.8, 4)
        if low - margin <= math.log2(tick) <= high + margin
    ]
    axes.set_xticks([math.log2(tick) for tick in ticks], [f"{tick:g}" for tick in ticks])


def fullness(points: Mapping[str, tuple[float, float]]) -> None:
    """Part of the ceiling against the part of the waves that is full; a dot is a shape, by its name."""
    _, axes = plt.subplots(figsize=(7.5, 4.2))
    ends = sorted((y, x, words) for words, (x, y) in points.items())
    heights = spread_apart([y + 9 for y, _, _ in ends], 0.022)
    low = 0.9 * min(min(x, y) for y, x, _ in ends)
    for (y, x, words), height in zip(ends, heights, strict=True):
        axes.scatter([x], [y], s=30, color=BLUE, zorder=3)
        line = {"arrowstyle": "-", "color": GRID, "linewidth": 0.6}
        place = {"size": 7.5, "color": MUTED, "va": "center", "annotation_clip": False}
        axes.annotate(words, (x, y), (1.03, height - 9), arrowprops=line, **place)
    axes.plot([0, 1], [0, 1], color=INK, linewidth=0.8, linestyle=":")
    axes.set_xlim(low, 1.01)
    axes.set_ylim(low, 1.01)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.set_xlabel("share of the SMs' time that goes into valid outputs, by its tiles")
    axes.set_title("s9_production, part of the ceiling")
    plt.show()
