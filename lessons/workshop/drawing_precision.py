"""The pictures of the lesson on precision: sums bit by bit, where outliers lie, errors against k.

As in drawing.py, a function draws one picture. What it shows is computed by the lesson, or recorded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.colors import LogNorm
from workshop.drawing import BLUE, EIGHT, GREEN, GRID, INK, MUTED, ORANGE, _canvas, _cell, _pale

COLOURS = {128: BLUE, 512: GREEN, 2048: EIGHT[3], 0: ORANGE}  # by how much of k is added unpromoted


class Term(NamedTuple):
    """A number that is added, what the adder takes of it, and the words beside it."""

    words: str
    exact: float
    kept: float


def bits(terms: Sequence[Term], total: float, result: float, cut: int, cut_sum: int) -> None:
    """A sum in binary, a number a line. Digits below 2^cut are lost, of the sum those below 2^cut_sum."""
    lines = [*terms, Term("their sum", total, result)]
    top = max(int(np.floor(np.log2(abs(x)))) for line in lines for x in line[1:] if x)
    lowest = [
        next(power for power in range(-20, 60) if x * 2.0**-power % 2 == 1)
        for line in lines
        for x in line[1:]
        if x
    ]
    bottom = min(cut, *lowest)
    columns, left = top - bottom + 1, 5
    _, axes = plt.subplots(figsize=(9, 0.55 + 0.36 * (len(lines) + 1)))
    _canvas(axes, left + columns + 6.5, len(lines) + 1.6, "")
    for power in range(bottom, top + 1):
        x = left + top - power
        axes.text(x + 0.5, 0.8, str(power), ha="center", size=7.5, color=MUTED)
    axes.text(left - 0.3, 0.8, "power of two", ha="right", size=7.5, color=MUTED)
    for y, line in enumerate(lines, 1):
        last = line is lines[-1]
        y += 0.3 * last
        here = cut_sum if last else cut
        axes.text(left - 0.3, y + 0.5, line.words, ha="right", va="center", size=7.5)
        for power in range(bottom, top + 1):
            digit = int(abs(line.exact) * 2.0**-power) & 1
            begun = abs(line.exact) >= 2.0**power
            kept = power >= here
            colour = _pale(BLUE, 0.75 if digit else 0.2) if kept else _pale(ORANGE, 0.6 if digit else 0.12)
            if begun:
                _cell(axes, left + top - power, y, colour, str(digit))
        sign = "-" if line.exact < 0 else ""
        words = f"{sign}{abs(line.exact):g}"
        words += f"  becomes  {line.kept:g}" if line.kept != line.exact else ""
        axes.text(left + columns + 0.3, y + 0.5, words, va="center", size=7.5)
    x = left + top - cut + 1
    axes.plot((x, x), (1, len(terms) + 1), color=ORANGE, linewidth=1.6)
    x = left + top - cut_sum + 1
    axes.plot((x, x), (len(terms) + 1.3, len(terms) + 2.3), color=ORANGE, linewidth=1.6)
    axes.set_ylim(len(lines) + 1.5, 0)
    axes.set_title("Blue: kept. Right of the orange line: lost")
    plt.show()


def name(every: int) -> str:
    return f"promoted every {every}" if every else "never promoted"


def running(k: np.ndarray, exact: np.ndarray, sums: Mapping[int, np.ndarray], title: str) -> None:
    """A sum as it grows with k: exactly, and as it is promoted every so many of k."""
    _, axes = plt.subplots(figsize=(8, 3))
    unit = 10.0 ** int(np.log10(exact.max()))
    axes.plot(k, exact / unit, color=GRID, linewidth=5, label="exact")
    for every, values in sums.items():
        axes.plot(k, values / unit, color=COLOURS[every], linewidth=1.4, label=name(every))
    axes.set_ylabel(f"in units of {unit:.0e}".replace("e+0", "e"))
    axes.set_xlabel("k")
    axes.set_title(title)
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.legend()
    plt.show()


def errors(
    computed: Mapping[str, Mapping[int, Mapping[int, float]]],
    rounding: Mapping[str, float],
    recorded: Sequence[Mapping],
) -> None:
    """Relative error against k, a panel for each kind of data: lines are the model's, marks the H100's.

    computed: by data, by promotion, by k. rounding: the error of an exact result as BF16, by data. recorded:
    the rows of precision.json.
    """
    figure, panels = plt.subplots(1, len(computed), figsize=(9, 4.1), sharey=True)
    figure.subplots_adjust(wspace=0.06)
    peers = {"scaled_mm_fast": ("cuBLASLt, fast", "x"), "scaled_mm_slow": ("cuBLASLt, not fast", "+")}
    for axes, (data, lines) in zip(panels, computed.items(), strict=True):
        for every, points in lines.items():
            axes.plot(
                *zip(*points.items(), strict=True), color=COLOURS[every], linewidth=1.4, label=name(every)
            )
            mine = [row for row in recorded if row["data"] == data and row["out"] == "fp32"]
            found = [x for x in mine if x["impl"] == "s3_wgmma" and x["promotion"] == every]
            label = "the same, of a GPU" if not every else None
            style = {"color": COLOURS[every], "markerfacecolor": "none", "markersize": 6, "linestyle": "none"}
            if found:
                axes.plot(
                    [x["k"] for x in found], [x["rel_err"] for x in found], marker="o", label=label, **style
                )
        for impl, (label, marker) in peers.items():
            found = [x for x in recorded if x["data"] == data and x["impl"] == impl and x["of"] > x["m"]]
            if found:
                axes.plot(
                    [x["k"] for x in found],
                    [x["rel_err"] for x in found],
                    color=INK,
                    marker=marker,
                    markersize=5,
                    linestyle="none",
                    label=label,
                )
        axes.axhline(rounding[data], color=MUTED, linewidth=0.9, linestyle="--")
        left = axes is panels[0]
        at = (2**7, 1.12, "left", "bottom") if left else (2**16, 0.92, "right", "top")
        words = {"size": 7.5, "color": MUTED, "ha": at[2], "va": at[3]}
        axes.text(at[0], rounding[data] * at[1], "rounding to BF16", **words)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xlabel("k")
        axes.set_title(f"{data} numbers")
    panels[0].set_ylabel("relative error")
    panels[0].legend(fontsize=7.5, loc="upper left", bbox_to_anchor=(0, 0.98))
    plt.show()


def why_128(by_data: Mapping[str, Mapping[int, float]], rounding: float, cost: Mapping[int, float]) -> None:
    """Against the promotion's interval: the error, and the CUDA cores' time for it over the tensor cores'."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.3))
    figure.subplots_adjust(wspace=0.28)
    for (data, points), colour in zip(by_data.items(), (BLUE, EIGHT[3]), strict=True):
        left.plot(*zip(*points.items(), strict=True), color=colour, marker="o", markersize=3.5)
        k, error = list(points.items())[-1]
        place = {"xytext": (-6, 0), "ha": "right", "va": "bottom"}
        if error < rounding:  # below its line, where no other is
            place = {"xytext": (0, -9), "ha": "right", "va": "top"}
        left.annotate(data, (k, error), textcoords="offset points", color=colour, size=8, **place)
    left.axhline(rounding, color=MUTED, linewidth=0.9, linestyle="--")
    left.text(max(cost), rounding * 1.15, "rounding to BF16", size=7.5, color=MUTED, ha="right")
    left.set_yscale("log")
    left.set_title("Relative error")
    right.plot(*zip(*cost.items(), strict=True), color=ORANGE, marker="o", markersize=3.5)
    right.set_ylim(0, 1.05)
    right.yaxis.set_major_formatter("{x:.0%}")
    right.set_title("Promoting, in parts of the multiplying time")
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.axvline(128, color=GRID, linewidth=5, zorder=0)
        axes.set_xlabel("promoted every so many of k")
        axes.minorticks_off()
    plt.show()


def activations(values: np.ndarray, tokens: Sequence[str], columns: tuple[int, int], rows: int) -> None:
    """Magnitudes of the first `rows` tokens, in these columns; lines where a run of 128 ends."""
    first, last = columns
    part = np.abs(values[:rows, first:last])
    _, axes = plt.subplots(figsize=(9, 4.6))
    image = axes.imshow(
        np.maximum(part, 1e-3),
        aspect="auto",
        cmap="magma_r",
        norm=LogNorm(1e-2, part.max()),
        extent=(first, last, rows, 0),
        interpolation="nearest",
    )
    ends = range(-(-first // 128) * 128, last + 1, 128)
    for run in ends:
        axes.axvline(run, color=BLUE, linewidth=0.9)
    marked = [row for row in range(rows) if tokens[row] == "[CLS]"]
    axes.set_yticks([row + 0.5 for row in marked], [f"[CLS], row {row}" for row in marked])
    row, column = np.unravel_index(part.argmax(), part.shape)
    axes.annotate(
        f"{part.max():.1f}",
        (first + column + 1, row + 0.5),
        (22, -14),
        textcoords="offset points",
        size=9,
        weight="bold",
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5},
        arrowprops={"arrowstyle": "->", "linewidth": 0.8},
    )
    axes.set_xticks([first + column + 0.5, *ends], [first + column, *ends])
    axes.set_xlabel("column; blue: where a run of 128 ends")
    plt.colorbar(image, ax=axes, pad=0.015, label="magnitude")
    axes.set_title("What the matrix multiplies: a row for each token")
    plt.show()
