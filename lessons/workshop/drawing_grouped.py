"""The pictures of the lesson on grouped GEMMs: who goes to which expert, how rows are packed, who makes which
tile, how fast memory lets it be.

As in drawing.py, a function draws one picture. What it shows is computed by the lesson, dealt out by the
kernels' own scheduler, or recorded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from gemm_ladder.production.config import Config
from matplotlib import pyplot as plt
from matplotlib.patches import Rectangle
from workshop.drawing import BLUE, EIGHT, GREEN, GRID, INK, ORANGE, _ink_on, _pale
from workshop.workbench_grouped import Call

PADDING = "#e4e4e4"


def _expert(index: int, strength: float = 0.75) -> tuple[float, ...]:
    return _pale(EIGHT[index], strength) if index >= 0 else plt.matplotlib.colors.to_rgb(PADDING)


def routing(chosen: np.ndarray, tokens: Sequence[str], experts: int) -> None:
    """Which experts each token goes to, int [tokens, of each], and how many rows an expert gets."""
    _, (axes, bars) = plt.subplots(
        1, 2, figsize=(9, 2.6), sharey=True, gridspec_kw={"width_ratios": (6, 1), "wspace": 0.04}
    )
    for token, of_token in enumerate(chosen):
        for expert in of_token:
            axes.add_patch(Rectangle((token, expert - 0.45), 1, 0.9, facecolor=_expert(expert), linewidth=0))
    begins = [index for index, token in enumerate(tokens) if token == "[CLS]"]
    for begin in begins[1:]:
        axes.axvline(begin, color=GRID, linewidth=0.8, zorder=0)
    axes.set_xlim(0, len(chosen))
    axes.set_ylim(experts - 0.4, -0.6)
    axes.set_yticks(range(experts), [f"expert {expert}" for expert in range(experts)])
    axes.set_xticks(begins)
    axes.set_xlabel("token; a tick and a line where a sentence begins")
    axes.tick_params(axis="y", length=0)
    axes.set_title("Who goes where")
    counts = np.bincount(chosen.ravel(), minlength=experts)
    bars.barh(range(experts), counts, color=[_expert(expert) for expert in range(experts)], height=0.9)
    for expert, count in enumerate(counts):
        bars.text(count, expert, f" {count}", va="center", size=8)
    bars.set_xlim(right=1.3 * counts.max())
    bars.set_xticks([])
    bars.tick_params(length=0)
    bars.spines["bottom"].set_visible(False)
    bars.set_title("rows")
    plt.show()


def packing(strips: Mapping[str, np.ndarray], block: int) -> None:
    """Strips of rows, coloured by their expert, -1 gray; a line every `block` rows."""
    longest = max(map(len, strips.values()))
    _, panels = plt.subplots(len(strips), 1, figsize=(9, 0.95 * len(strips)), sharex=True)
    for axes, (name, of_rows) in zip(panels, strips.items(), strict=True):
        ends = [*(np.flatnonzero(np.diff(of_rows)) + 1), len(of_rows)]
        for begin, end in zip([0, *ends[:-1]], ends, strict=True):
            expert = of_rows[begin]
            axes.add_patch(Rectangle((begin, 0), end - begin, 1, facecolor=_expert(expert), linewidth=0))
            if end - begin > 0.02 * longest:
                look = {"ha": "center", "va": "center", "size": 8, "color": _ink_on(_expert(expert))}
                box = {"facecolor": _expert(expert), "edgecolor": "none", "pad": 1.5}
                axes.text((begin + end) / 2, 0.5, str(expert), bbox=box, **look)
        for line in range(0, len(of_rows) + 1, block):
            axes.plot((line, line), (0, 1), color=INK, linewidth=0.7)
        axes.set_xlim(0, longest)
        axes.set_ylim(0, 1)
        axes.set_yticks([])
        for side in ("left", "bottom"):
            axes.spines[side].set_visible(False)
        axes.tick_params(length=0)
        axes.set_title(f"{name}: {len(of_rows)} rows", size=9)
    panels[-1].set_xticks(range(0, longest + 1, block))
    panels[-1].set_xlabel(f"row; a line every {block} rows. In colour: the row's expert; gray: -1, padding")
    panels[0].figure.subplots_adjust(hspace=0.9)
    plt.show()


def tiles(walked: np.ndarray, config: Config, call: Call, title: str) -> None:
    """D's tiles, who makes them and in which turn; rows to the right, columns down.

    walked: as workbench_production.walk gives them.
    """
    rows, n = int(np.prod(call.shape[:-1])), call.shape[-1]
    _, axes = plt.subplots(figsize=(9, 2.6))
    axes.add_patch(Rectangle((0, 0), rows, n, facecolor="#f2f2f2", linewidth=0))
    for tile in walked:
        high, wide = min(config.tile_m, tile["rows"]), min(config.tile_n, n - tile["column"])
        if high <= 0:
            continue
        colour = _expert(int(tile["group"]), 0.3 + 0.45 * (tile["block"] % 2))
        axes.add_patch(Rectangle((tile["row"], tile["column"]), high, wide, facecolor=colour, linewidth=0))
        if call.kind == "contiguous":
            counted = (call.rows[tile["row"] : tile["row"] + high] >= 0).sum()
            idle = (tile["row"] + counted, tile["column"]), high - counted, wide
            axes.add_patch(Rectangle(*idle, facecolor=PADDING, alpha=0.7, linewidth=0))
        edge = (tile["row"], tile["column"]), high, wide
        axes.add_patch(Rectangle(*edge, facecolor="none", edgecolor="white", linewidth=1.2))
        if high > 0.011 * rows:
            at, upright = (tile["row"] + high / 2, tile["column"] + wide / 2), high < 0.03 * rows
            words = f"{tile['block']}:{tile['turn']}"
            look = {"ha": "center", "va": "center", "size": 7.5, "rotation": 90 if upright else 0}
            box = {"facecolor": "white", "edgecolor": "none", "pad": 0.8, "alpha": 0.7}
            axes.text(*at, words, bbox=box, **look)
    if call.kind == "contiguous":
        axes.set_xticks(range(0, rows + 1, config.tile_m))
        axes.set_xlabel("row of D. In a tile, block:turn, odd blocks darker; grayish: padding")
    else:
        groups, max_m, _ = call.shape
        for group in range(1, groups):
            axes.plot((group * max_m, group * max_m), (0, n), color=INK, linewidth=1)
        names = [f"group {group}" for group in range(groups)]
        axes.set_xticks([(group + 0.5) * max_m for group in range(groups)], names)
        axes.set_xlabel(
            f"row of D, {max_m} for each group. In a tile, block:turn, odd blocks darker; gray: not touched"
        )
    axes.set_xlim(0, rows)
    axes.set_ylim(n, 0)
    axes.set_yticks(range(0, n + 1, config.tile_n))
    axes.set_ylabel("column of D")
    axes.tick_params(length=0)
    axes.set_title(title)
    plt.show()


def reach(
    curves: Mapping[tuple[int, int], Mapping[str, np.ndarray]], rows: np.ndarray, measured: Sequence[Mapping]
) -> None:
    """TFLOPS against rows of an expert: what memory and the tensor cores allow, and what was measured.

    curves: by (n, k), by name: TFLOPS for each of `rows`. measured: rows of figures/data/production.json.
    """
    figure, panels = plt.subplots(1, len(curves), figsize=(9, 3.6), sharey=True)
    figure.subplots_adjust(wspace=0.06)
    marks = {"contiguous": (BLUE, "o"), "masked": (ORANGE, "^")}
    for axes, ((n, k), lines) in zip(panels, curves.items(), strict=True):
        for (name, tflops), (colour, width) in zip(lines.items(), ((INK, 2.2), (GREEN, 1.2)), strict=True):
            axes.plot(rows, tflops, color=colour, linewidth=width, label=name)
        for kind, (colour, mark) in marks.items():
            here = [row for row in measured if row["kind"] == kind and (row["n"], row["k"]) == (n, k)]
            mine = [(row["m"], row["tflops"]) for row in here if row["impl"] == "s9_production"]
            if mine:
                axes.plot(*zip(*mine, strict=True), mark, color=colour, label=f"measured, {kind}")
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xlabel("rows of an expert")
        axes.set_title(f"n = {n}, k = {k}")
    panels[0].set_ylabel("TFLOPS")
    panels[0].set_yticks([200, 500, 1000, 2000], ["200", "500", "1000", "2000"])
    panels[0].yaxis.set_minor_formatter("")
    panels[0].legend(fontsize=8, loc="lower right")
    plt.show()


def padding(rows: np.ndarray, shares: Mapping[str, np.ndarray]) -> None:
    """The part of the multiplied rows that count, against the rows of an expert."""
    _, axes = plt.subplots(figsize=(8, 2.6))
    for (name, share), colour in zip(shares.items(), (BLUE, ORANGE), strict=True):
        axes.plot(rows, share, color=colour, linewidth=1.3, label=name)
    axes.set_ylim(0, 1.02)
    axes.set_xlim(0, rows[-1])
    axes.yaxis.set_major_formatter("{x:.0%}")
    axes.set_xticks(range(0, int(rows[-1]) + 1, 128))
    axes.set_xlabel("rows of an expert")
    axes.set_title("Of the rows that are multiplied, those that count")
    axes.legend(loc="lower right")
    plt.show()
