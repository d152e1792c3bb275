"""The pictures of lesson 11: which block makes which tile and when, what configurations are expected to take,
and how good the choice among them is.

Tiles come from production/scheduler.cuh itself (workbench_production.walk), expectations from
gemm_ladder.production, times from figures/data.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

import numpy as np
from gemm_ladder.arguments import H100_SMS, Kind
from gemm_ladder.figures import measured
from gemm_ladder.production import choice
from gemm_ladder.production.candidates import candidates
from gemm_ladder.production.config import Config
from gemm_ladder.production.prediction import predict
from matplotlib import pyplot as plt
from matplotlib.patches import Rectangle
from workshop import printed, workbench_production
from workshop.drawing import BLUE, EIGHT, GRID, INK, MUTED, ORANGE, _pale

SHARES = {"nothing": MUTED, "A": BLUE, "B": EIGHT[2], "K": ORANGE}
STYLES = {64: ":", 128: "--", 256: "-"}  # of tile_m


def bars(impls: Sequence[str], size: tuple[int, int, int], marked: str = "") -> list[str]:
    """TFLOPS of some implementations at one size, L2 dirty, from zero on; returns their provenance."""
    shown = {one.impl: one for one in measured.series(measured.recorded(), "dirty") if size in one.tflops}
    chosen = [shown[impl] for impl in impls if impl in shown]
    _, axes = plt.subplots(figsize=(8, 0.5 + 0.3 * len(chosen)))
    for y, one in enumerate(chosen):
        value = one.tflops[size]
        axes.barh(
            y, value, color=ORANGE if one.impl == marked else "#9a9a9a" if one.is_peer else BLUE, height=0.7
        )
        words = measured.number(value)
        axes.annotate(words, (value, y), (4, 0), textcoords="offset points", va="center")
    axes.set_yticks(range(len(chosen)), [one.label for one in chosen])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.1 * max(one.tflops[size] for one in chosen))
    axes.set_title(f"TFLOPS at {' x '.join(map(str, size))}")
    axes.tick_params(length=0)
    plt.show()
    return printed.provenance(chosen)


def clusters(walks: Mapping[str, tuple[Config, np.ndarray]]) -> None:
    """The tiles of D that the blocks of the first three clusters make, a panel for each configuration.

    Args:
        walks: by title: the configuration, and its tiles, workbench_production.TILE.
    """
    _, panels = plt.subplots(1, len(walks), figsize=(9.5, 2.9), squeeze=False)
    for axes, (title, (config, tiles)) in zip(panels[0], walks.items(), strict=True):
        columns, rows = int(tiles["column"].max()) + config.tile_n, int(tiles["row"].max()) + config.tile_m
        for row in range(0, rows, config.tile_m):
            for column in range(0, columns, config.tile_n):
                axes.add_patch(
                    Rectangle(
                        (column, row), config.tile_n, config.tile_m, facecolor="#f0f0f0", edgecolor="white"
                    )
                )
        parts = config.cluster if config.share == "K" else 1
        for tile in tiles[(tiles["turn"] == 0) & (tiles["block"] < 3 * config.cluster)]:
            cluster, rank = divmod(int(tile["block"]), config.cluster)
            width = config.tile_n / parts
            x = int(tile["column"]) + (width * rank if parts > 1 else 0)
            colour = _pale(EIGHT[cluster], 0.85 if rank == 0 else 0.5)
            box = Rectangle((x, tile["row"]), width, config.tile_m, facecolor=colour, edgecolor="white")
            axes.add_patch(box)
            middle = x + width / 2, int(tile["row"]) + config.tile_m / 2
            axes.text(*middle, str(tile["block"]), ha="center", va="center", size=8)
        axes.set_xlim(0, columns)
        axes.set_ylim(rows, 0)
        axes.set_aspect("equal")
        axes.set_xticks([])
        axes.set_yticks([])
        for side in ("left", "bottom"):
            axes.spines[side].set_visible(False)
        axes.set_title(title, size=9.5)
    plt.show()


def schedule(panels: Mapping[str, tuple[Config, np.ndarray]], num_sms: int) -> None:
    """Who works when: a line for each SM, a bar for each tile as long as its outputs are many.

    Args:
        panels: by title, as for clusters(); of configurations that do not split K.
    """
    _, both = plt.subplots(len(panels), 1, figsize=(9, 1.3 + 1.9 * len(panels)), sharex=True, squeeze=False)
    plt.subplots_adjust(hspace=0.42)
    unit = 128 * 128
    longest = 0.0
    for axes, (title, (_, tiles)) in zip(both[:, 0], panels.items(), strict=True):
        free = np.zeros(num_sms)  # when each block has made its tiles so far
        for turn in np.unique(tiles["turn"]):
            now = tiles[tiles["turn"] == turn]
            widths, begins = now["tile_m"] * now["tile_n"] / unit, free[now["block"]]
            colour = _pale(BLUE, 0.4 + 0.2 * (turn % 2))
            for begin, width in sorted(set(zip(begins, widths, strict=True))):
                blocks = now["block"][(begins == begin) & (widths == width)]
                lines = blocks.min(), len(blocks)
                axes.broken_barh([(begin, width)], lines, facecolors=colour, edgecolor="white", linewidth=1.2)
                words, height = f"wave {turn + 1}\n{len(blocks)} tiles", max(lines[0] + len(blocks) / 2, 24)
                axes.text(begin + width / 2, height, words, ha="center", va="center", size=8)
            free[now["block"]] += widths
        end = free.max()
        longest = max(longest, end)
        axes.plot([end, end], [0, num_sms], color=ORANGE, linewidth=1.6)
        work = free.sum() / (end * num_sms)
        axes.set_ylim(0, num_sms)
        axes.set_yticks([0, num_sms])
        axes.set_ylabel("SMs", labelpad=-10)
        axes.tick_params(length=0)
        axes.set_title(f"{title}: {work:.0%} of the SMs' time is spent on tiles")
    both[-1, 0].set_xlim(0, longest * 1.02)
    both[-1, 0].set_xlabel("time, in tiles of 128 x 128")
    plt.show()


def sawtooth(n: int, tiles: Sequence[tuple[int, int]], most_m: int = 8192, num_sms: int = H100_SMS) -> None:
    """The part of the SMs' time that goes into wanted outputs, against m, for tiles of some sizes."""
    m = np.arange(64, most_m + 1, 64)
    _, axes = plt.subplots(figsize=(9, 2.9))
    for index, (tile_m, tile_n) in enumerate(tiles):
        count = -(-m // tile_m) * -(-n // tile_n)
        waves = -(-count // num_sms)
        used = m * n / (waves * num_sms * tile_m * tile_n)
        axes.plot(m, used, color=EIGHT[index], linewidth=1.2, label=f"{tile_m} x {tile_n}")
    axes.set_ylim(0, 1.02)
    axes.set_xlim(0, most_m)
    axes.set_xlabel("m")
    axes.set_yticks([0, 0.5, 1], ["0", "50%", "100%"])
    axes.set_title(f"Share of the SMs' time that goes into valid outputs: n = {n}, {num_sms} SMs")
    axes.legend(loc="lower right", ncols=len(tiles), fontsize=8, bbox_to_anchor=(1, 0.0))
    plt.show()


def choices(m: int, n: int, k: int, kind: Kind = "dense", groups: int = 1) -> None:
    """The expected time of the candidates against the tile's columns; the chosen one is circled.

    Times are geometric means over the states of L2. A point is the best of the candidates that differ only in
    what the picture does not show, such as a tail or the size of a cluster.
    """
    known = candidates(kind, k)
    step = choice.rows_to_expect(kind, m, groups, None)
    times = np.exp(choice.expected(known, kind, (step,), n, k, groups, H100_SMS)[:, 0])
    found: dict[tuple[int, str], dict[int, float]] = {}
    for config, us in zip(known.configs, times.tolist(), strict=True):
        if np.isfinite(us):
            points = found.setdefault((config.tile_m, config.share), {})
            points[config.tile_n] = min(us, points.get(config.tile_n, us))
    rows = step * groups if kind == "contiguous" else step
    chosen = choice.choose(kind, rows, n, k, groups)
    expected = predict(chosen, rows, groups)
    chosen_us = statistics.geometric_mean(expected.by_state.values())
    _, axes = plt.subplots(figsize=(9, 3.3))
    for (tile_m, share), points in found.items():
        axes.plot(*zip(*sorted(points.items()), strict=True), color=SHARES[share], linestyle=STYLES[tile_m],
                  linewidth=1.3, marker=".", markersize=4,
                  label=f"{tile_m} rows, {share} shared")  # fmt: skip
    axes.axhline(expected.floor_us, color=INK, linewidth=0.8)
    axes.annotate("what memory or the tensor cores need at least", (256, expected.floor_us), (0, 3),
                  textcoords="offset points", ha="right", size=8, color=MUTED)  # fmt: skip
    axes.plot([chosen.tile_n], [chosen_us], "o", markersize=11, markerfacecolor="none", markeredgecolor=INK)
    axes.set_ylim(0, 3.5 * chosen_us)
    axes.set_xticks(range(16, 257, 16))
    axes.tick_params(length=0)
    axes.set_xlabel("columns of a tile")
    axes.set_title(f"Expected microseconds at {m} x {n} x {k}; circled: the choice")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8)
    plt.show()


def how_good(
    measured_us: np.ndarray, expected_us: Mapping[str, np.ndarray], regrets: Mapping[str, np.ndarray]
) -> None:
    """How far expected times are from measured ones, and what is lost by choosing with them.

    Args:
        measured_us: of each configuration that was measured.
        expected_us: by what they are expected from, the same of expected times.
        regrets: by what was chosen with: for each product, how much slower the choice is than the best.
    """
    _, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.8), width_ratios=(1.25, 1))
    colours = (ORANGE, BLUE, INK)
    for colour, (name, us) in zip(colours, expected_us.items(), strict=False):
        left.scatter(measured_us, us / measured_us, s=3, color=colour, alpha=0.25, linewidths=0)
        left.scatter([], [], s=18, color=colour, label=name)
    left.axhline(1, color=INK, linewidth=0.8)
    left.set_xscale("log")
    left.set_yscale("log")
    left.set_ylim(0.5, 2.3)
    left.set_yticks([0.5, 0.7, 1, 1.4, 2], ["0.5", "0.7", "1", "1.4", "2"])
    left.minorticks_off()
    left.xaxis.set_major_formatter("{x:g}")
    left.set_xlabel("measured microseconds, L2 dirty")
    left.set_title("Expected time over measured time")
    left.legend(loc="upper right", fontsize=8)
    for colour, (name, regret) in zip(colours, regrets.items(), strict=True):
        share = (np.arange(len(regret)) + 1) / len(regret)
        right.plot(100 * share, 100 * np.sort(regret), color=colour, linewidth=1.6, label=name)
    right.set_xlim(0, 100)
    right.set_ylim(0, 105 * max(regret.max() for regret in regrets.values()))
    right.set_xlabel("percent of the products")
    right.set_ylabel("percent")
    right.set_title("Regret: how much slower the choice is")
    right.legend(loc="upper left", fontsize=8)
    plt.tight_layout()
    plt.show()


def plan(of: choice.Plan, title: str) -> None:
    """Which of a weight's kernels each number of rows gets: a line for each kernel."""
    _, axes = plt.subplots(figsize=(9, 0.9 + 0.24 * len(of.configs)))
    order = sorted(range(len(of.configs)), key=of.chosen.index)  # by the first m that gets it
    begin = 1
    for step, index in zip(choice.STEPS, of.chosen, strict=True):
        axes.broken_barh(
            [(begin, step + 1 - begin)], (order.index(index) - 0.35, 0.7), color=BLUE, linewidth=0
        )
        begin = step + 1
    axes.set_xscale("log", base=2)
    axes.set_xlim(1, choice.STEPS[-1])
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_yticks(range(len(order)), [workbench_production.short(of.configs[one]) for one in order], size=8)
    axes.invert_yaxis()
    axes.tick_params(length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="y", color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_xlabel("m")
    axes.set_title(f"The kernels for {title}, and the m that get them")
    plt.show()


def recorded(impl: str, l2: str = "dirty") -> dict[tuple[int, int, int], float]:
    """Microseconds by (m, n, k) of one implementation in ladder.json."""
    rows = measured.load(measured.DATA / "ladder.json")["rows"]
    return {
        (row["m"], row["n"], row["k"]): row["us"] for row in rows if (row["impl"], row["l2"]) == (impl, l2)
    }
