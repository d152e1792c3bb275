"""The pictures of lessons 08 and 09: who does what and when. Timelines, roles, registers, a tile's way out.

What they show is recorded: the emulator's events, and figures/data. The other pictures of lesson 09 are in
drawing_tiles.py.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from gemm_ladder.figures import measured
from gemm_ladder.figures import timeline as figure
from gemm_ladder.ref import layouts
from gemm_ladder.timeline import command as recording
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import Patch
from workshop.drawing import BLUE, INK, MUTED, ORANGE, _canvas, _cell, _pale

GREEN, PURPLE = figure.COLOURS["promote"], figure.COLOURS["store"]
STEPS = "steps of the emulator's scheduler: an order, not durations"
ROLES = {"producer": BLUE, "consumer 0": ORANGE, "consumer 1": GREEN}

Rows = list[dict[str, Any]]  # of figures/data/timeline.json: an actor of a block, and its spans

# -------------------------------------------------------------------------------------------------- timelines


def on_gpu(rung: str, block: int = 0) -> Rows:
    """A rung's recorded timeline on a GPU: the rows of one block; none where it has not been recorded."""
    path = measured.DATA / "timeline.json"
    rows = figure.load(path)["rows"] if path.exists() else []
    return [row for row in rows if (row["rung"], row["machine"], row["block"]) == (rung, "gpu", block)]


def on_emulator(rung: str, block: int = 0) -> Rows:
    """The same of a run on the emulator, recorded now."""
    return [row for row in recording.rows(recording.take(rung, "emulator", None)) if row["block"] == block]


def before_after(before: Rows, after: Rows, until: float | None = None) -> None:
    """Two timelines, one above the other; of each role the first warp.

    Args:
        until: where both axes end, in microseconds; None: each where its own recording does.
    """
    panels = [sorted(rows, key=_place) for rows in (before, after)]
    heights = [sum(_height(row) for row in rows) for rows in panels]
    figsize = 9, 2.1 + sum(heights)
    _, both = plt.subplots(2, 1, figsize=figsize, gridspec_kw={"height_ratios": heights, "hspace": 0.55})
    for axes, rows in zip(both, panels, strict=True):
        _panel(axes, rows, until or max(span[2] for row in rows for span in row["spans"]))
    on_gpu = before[0]["machine"] == "gpu"
    both[1].set_xlabel("microseconds" if on_gpu else STEPS)
    there = {span[0] for rows in panels for row in rows for span in row["spans"]}
    _legend(both[1], there, heights[1])
    plt.show()


def closer(rows: Rows, begin: float, end: float) -> None:
    """What the consumers of one recorded block do between two moments."""
    rows = sorted((row for row in rows if row["role"].startswith("consumer")), key=_place)
    height = sum(_height(row) for row in rows)
    _, axes = plt.subplots(figsize=(9.5, 0.9 + height))
    _panel(axes, rows, end, begin)
    axes.set_xlabel("microseconds" if rows[0]["machine"] == "gpu" else STEPS)
    inside = {what for row in rows for what, first, last in row["spans"] if first < end and last > begin}
    _legend(axes, inside, height)
    plt.show()


def _legend(axes: Axes, there: Collection[str], height: float) -> None:
    """What the colours of the spans in `there` mean, below the axes; `height` is theirs in inches."""
    handles = [
        Patch(color=colour, label=figure.MEANINGS[what])
        for what, colour in figure.COLOURS.items()
        if what in there
    ]
    place = {"loc": "upper left", "bbox_to_anchor": (0, -0.62 / height), "borderaxespad": 0}
    axes.legend(handles=handles, ncols=3, **place)


def _panel(axes: Axes, rows: Rows, end: float, begin: float = 0) -> None:
    """One block's rows between two moments; an actor's name beside its first row."""
    y = 0.0
    for row, above in zip(rows, [None, *rows], strict=False):
        height = _height(row)
        for what, colour in figure.COLOURS.items():
            inside = [span for span in row["spans"] if span[0] == what and span[1] < end and span[2] > begin]
            bars = [(max(span[1], begin), min(span[2], end) - max(span[1], begin)) for span in inside]
            axes.broken_barh(bars, (y, 0.88 * height), facecolors=colour, edgecolor="white", linewidth=0.3)
        if above is None or (above["role"], above["unit"]) != (row["role"], row["unit"]):
            name = row["role"] + (": tensor core" if row["unit"] == "tensor core" else "")
            axes.text(begin - 0.008 * (end - begin), y + height / 2, name, ha="right", va="center", size=8)
        y += height
    axes.set_xlim(begin, end)
    axes.set_ylim(y, 0)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    machine = {"gpu": "a GPU", "emulator": "the emulator"}[rows[0]["machine"]]
    size = " x ".join(str(rows[0][key]) for key in "mnk")
    axes.set_title(f"{rows[0]['rung']}: block 0 on {machine}, {size}")


def _place(row: Mapping[str, Any]) -> tuple[int, int, bool]:
    """From the top: who issues, the copy engine, each warp below its part of the tensor core."""
    group = 1 if row["unit"] == "copy engine" else 0 if row["role"] == "producer" else 2
    return group, row["index"], row["unit"] == "warp"


def _height(row: Mapping[str, Any]) -> float:
    """Inches."""
    return 0.12 if row["unit"] == "copy engine" else 0.26


def stores(events: np.ndarray) -> None:
    """What becomes of a tile, from a recorded run of s7 on the emulator: block 0, consumer 0.

    Args:
        events: `Run.events`, of a schedule in which a tile is in D before the next one's store is asked for.
    """
    mine = _block_0(events)
    first = 128  # lane 0 of consumer 0's first warp: the thread that starts the copy engine
    lane_0 = mine[mine["thread"] == first]
    buffer = {int(row["address"]) for row in lane_0[lane_0["kind"] == "tma_store"]}
    engine = mine[np.isin(mine["address"], list(buffer))]

    def steps(of: np.ndarray, *kinds: str) -> np.ndarray:
        return of["step"][np.isin(of["kind"], kinds)].astype(int)

    products, written = steps(lane_0, "wgmma_fence"), steps(lane_0, "stmatrix")
    fences, asked = steps(lane_0, "fence_proxy_async"), steps(lane_0, "tma_store")
    asked = asked.reshape(len(fences), -1)  # a tile, and each of its boxes
    read, done = (np.sort(steps(engine, kind)).reshape(asked.shape) for kind in _LEAVING)
    if any(done[:-1, -1] > asked[1:, 0]):
        raise ValueError("a tile reached D after the next one's store; a schedule without that is needed")
    lanes: dict[str, list[tuple[int, int]]] = {"multiplies and promotes": [], "writes shared memory": []}
    for before, fence in zip([0, *fences], fences, strict=False):
        here = written[(written > before) & (written < fence)]
        lanes["writes shared memory"].append((here[0], fence))
        lanes["multiplies and promotes"].append((products[products > before][0], here[0]))
    lanes["store asked for, not read yet"] = list(zip(asked[:, 0], read[:, -1], strict=True))
    lanes["... read, not in D yet"] = list(zip(read[:, -1], done[:, -1], strict=True))

    _, axes = plt.subplots(figsize=(9, 2.3))
    colours = [ORANGE, PURPLE, BLUE, figure.COLOURS["load"]]
    for lane, (bars, colour) in enumerate(zip(lanes.values(), colours, strict=True)):
        spans = [(begin, end - begin) for begin, end in bars]
        axes.broken_barh(spans, (lane - 0.38, 0.76), facecolors=_pale(colour, 0.8))
    axes.set_yticks(range(len(lanes)), lanes)
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    axes.set_xlim(left=0)
    axes.set_xlabel(STEPS)
    axes.set_title("Tiles of consumer 0: the next one is multiplied while the last one leaves")
    plt.show()


_LEAVING = "tma_store_read", "tma_store_written"


def _block_0(events: np.ndarray) -> np.ndarray:
    """Of the first launch's first cluster."""
    return events[(events["launch"] == 0) & (events["cluster"] == 0) & (events["block"] == 0)]


# ---------------------------------------------------------------------------------------------- who does what


def roles(events: np.ndarray) -> None:
    """One block of s6 or s7: who fills a stage, who reads which part of it, and whose rows of D that gives.

    Args:
        events: `Run.events` of a recorded run of the kernel with tiles of 256 x 128.
    """
    mine = _block_0(events)
    loads, products = mine[mine["kind"] == "tma_load"], mine[mine["kind"] == "wgmma"]
    first_wait = int(mine["address"][mine["kind"] == "mbarrier_expect_tx"][0])  # full of the first stage
    stage = int(loads["address"][0])
    inside = products[(products["address"] >= stage) & (products["address"] < first_wait)]
    rows = sorted({((int(a) - stage) // (64 * layouts.SWIZZLE_ROW), int(t) // 128) for a, t in
                   zip(inside["address"], inside["thread"], strict=True)})  # fmt: skip
    slabs, warps = len(rows), int(mine["thread"].max()) // 32 + 1
    colours = [ROLES["producer"], ROLES["consumer 0"], ROLES["consumer 1"]]

    loading, multiplying = ({int(thread) // 32 for thread in of["thread"]} for of in (loads, products))

    _, axes = plt.subplots(figsize=(9, 4.2))
    _canvas(axes, 38, 15.6, "")
    for warp in range(warps):
        group, y = warp // 4, 1 + warp * 1.05 + warp // 4 * 0.8
        strength = 0.8 if warp in loading | multiplying else 0.12
        _cell(axes, 0, y, _pale(colours[group], strength), f"warp {warp}", 5, 0.95)
        if warp % 4 == 0:
            words = f"consumer {group - 1}" if group else "producer: one thread of warp 0"
            axes.text(0, y - 0.15, words, size=8, weight="bold", color=colours[group], va="bottom")
    top, height = 2.4, 2.3
    for slab, group in rows:
        for x, name in ((16, "A"), (29, "D")):
            words = f"{name}, rows {64 * slab} to {64 * slab + 63}"
            _cell(axes, x, top + slab * height, _pale(colours[group], 0.45), words, 8.4, height)
    bottom = top + slabs * height
    _cell(axes, 16, bottom + 0.2, _pale(MUTED, 0.35), "B, all rows:\nboth consumers", 8.4, height)
    small = {"size": 8, "color": MUTED, "ha": "center"}
    axes.text(20.2, top - 0.3, "a stage, in shared memory", va="bottom", **small)
    axes.text(33.2, top - 0.3, "the tile, in registers", va="bottom", **small)
    axes.text(33.2, bottom + 0.4, "128 columns", va="top", **small)
    for group, colour in enumerate(colours):
        begin = 1.5 + 5 * group + (2 if group else 0)
        end = 1.5 + top if group == 0 else top + height * (rows[-3 + group][0] + 0.5)
        arrow = {"arrowstyle": "->", "linewidth": 1.2, "color": colour}
        axes.annotate("", (15.8, end), (5.3, begin), arrowprops=arrow)
        words = "multiplies it (WGMMA)" if group else "asks for it (TMA)"
        above = (begin + end) / 2 - 0.3 - 0.23 * abs(end - begin)
        axes.text(10.5, above, words, ha="center", va="bottom", size=8, color=colour)
    arrow = {"arrowstyle": "->", "linewidth": 1.2, "color": INK}
    axes.annotate("", (28.8, top + slabs * height / 2), (24.6, top + slabs * height / 2), arrowprops=arrow)
    axes.set_title("One block, as recorded: a warp that loads, eight that multiply, three that do nothing")
    plt.show()


def registers(events: np.ndarray, at_launch: int, threads: int = 384) -> None:
    """What setmaxnreg does to an SM's register file, from a recorded run: who holds how much, event by event.

    Args:
        events: `Run.events`, of one block.
        at_launch: registers a thread.
    """
    changes = [(int(row["thread"]) // 32, int(row["value"])) for row in events if row["kind"] == "setmaxnreg"]
    held = np.full((len(changes) + 1, threads // 32), at_launch * 32)
    for index, (warp, count) in enumerate(changes):
        held[index + 1 :, warp] = count * 32
    of_group = held.reshape(len(held), -1, 4).sum(2) / 1024
    _, axes = plt.subplots(figsize=(9, 3.2))
    below = np.zeros(len(held))
    names = ("warpgroup 0: producer", "warpgroup 1: consumer 0", "warpgroup 2: consumer 1")
    for group, name in enumerate(names):
        colour = list(ROLES.values())[group]
        axes.bar(range(len(held)), of_group[:, group], 0.92, below, color=_pale(colour, 0.7), label=name)
        below += of_group[:, group]
    axes.axhline(64, color=INK, linewidth=1)
    axes.text(len(held) - 0.4, 64.8, "65536: all that an SM has", ha="right", size=8)
    words = [
        f"warp {warp}\n{'-' if count < at_launch else '+'}{abs(count - at_launch)}" for warp, count in changes
    ]
    axes.set_xticks(range(len(held)), ["at the\nlaunch", *words], size=7.5)
    axes.set_ylabel("registers, in units of 1024", size=8)
    axes.set_ylim(0, 74)
    axes.tick_params(length=0)
    axes.legend(loc="upper left", bbox_to_anchor=(0, -0.22), ncols=3, borderaxespad=0)
    axes.set_title("The block's registers, one setmaxnreg after the other")
    plt.show()
