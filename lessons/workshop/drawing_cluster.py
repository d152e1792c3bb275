"""The pictures of lesson 07: what a cluster of two blocks loads and releases, and what that costs.

Each is drawn from what a run of the emulator recorded, or from figures/data.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from gemm_ladder.figures import measured
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import Patch, Rectangle
from workshop.drawing import BLUE, EIGHT, GRID, INK, MUTED, ORANGE, _canvas, _pale
from workshop.drawing_tma import Stages, stages
from workshop.workbench_tma import RANK_SHIFT

BLOCKS = (BLUE, ORANGE)  # a colour for each block of a cluster
OPERANDS = {"A": _pale(EIGHT[0], 0.7), "B": _pale(EIGHT[1], 0.7), "scales": _pale(EIGHT[2], 0.9)}


# -------------------------------------------------------------------------------------------------- multicast


@dataclasses.dataclass(frozen=True)
class Request:
    """A box that one block ordered: at which offset of a stage it lands, its bytes, and in which blocks."""

    issuer: int
    offset: int
    bytes: int
    lands: tuple[int, ...]


def requests(recorded: np.ndarray) -> list[Request]:
    """What the blocks ordered for their first stages; `recorded` is Run.events of one cluster.

    All blocks' rings lie alike. A box that several blocks ordered to one place is each one's own.
    """
    ring, found = stages(recorded), []
    for offset, count in ring.parts:
        here = recorded[recorded["address"] == ring.starts[0] + offset]
        issuers, landed = (
            sorted({int(block) for block in here[here["kind"] == kind]["block"]})
            for kind in ("tma_load", "tma_load_landed")
        )
        for issuer in issuers:
            lands = (issuer,) if len(issuers) > 1 else tuple(landed)
            found.append(Request(issuer, offset, count, lands))
    return found


def arrivals(recorded: np.ndarray) -> np.ndarray:
    """int [from block, to block]: arrivals on the first stage's `empty` barriers in their first phase."""
    ring = stages(recorded)
    blocks = len(set(recorded["block"]))
    count = np.zeros((blocks, blocks), int)
    over = set()
    for event in recorded:
        block, rank = int(event["block"]), int(event["address"]) >> RANK_SHIFT
        if int(event["address"]) % (1 << RANK_SHIFT) != ring.empty[0]:
            continue
        if event["kind"] == "mbarrier_phase":
            over.add(block)
        elif event["kind"] == "mbarrier_arrive":
            to = rank - 1 if rank else block
            count[block, to] += to not in over
    return count


LEFT = (1.0, 19.5)  # where each block is drawn
PARTS = ((0.0, 4.0), (4.2, 4.0), (8.4, 4.0), (12.6, 3.2))  # (x, width) of a stage's parts: not to scale
MIDDLE = 7.4  # of a block


def multicast(recorded: np.ndarray, names: Sequence[str]) -> None:
    """One stage of a cluster of two: who orders what, where it lands and counts, who releases whose stage.

    `names` are of the parts of a stage, in the order of their places.
    """
    ring = stages(recorded)
    _, axes = plt.subplots(figsize=(9.2, 6.8))
    _canvas(axes, 36, 18.4, "One stage in each block of a cluster, filled and released")
    axes.set_aspect("auto")
    axes.add_patch(Rectangle((0.4, 0.1), 35.4, 3.7, facecolor="#f4f4f4", edgecolor=GRID))
    axes.text(18, 0.7, "L2", ha="center", va="center", size=11, weight="bold", color=INK)
    _filling(axes, ring, requests(recorded), names)
    axes.axhline(11.0, color=GRID, linewidth=0.8)
    _releasing(axes, arrivals(recorded))
    for y, words in ((5.4, "filling\na stage"), (14.4, "releasing\nit")):
        axes.text(0.2, y, words, size=8.5, color=MUTED, ha="right", va="center")
    plt.show()


def _part(axes: Axes, x: float, y: float, width: float, block: int, words: str) -> None:
    colour = _pale(BLOCKS[block], 0.55)
    axes.add_patch(Rectangle((x, y - 0.1), width, 2.4, facecolor=colour, edgecolor="white"))
    words = words.replace(": ", ":\n")
    axes.text(x + width / 2, y + 1.05, words, ha="center", va="center", size=8, color=INK)


def _arrow(
    axes: Axes, begin: tuple[float, float], end: tuple[float, float], block: int, width: float
) -> None:
    arrow = {"arrowstyle": "-|>", "color": BLOCKS[block], "linewidth": width, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", end, begin, arrowprops=arrow)


def _filling(axes: Axes, ring: Stages, ordered: Sequence[Request], names: Sequence[str]) -> None:
    """What comes out of L2, and the two stages that it comes to."""
    places = {
        offset: (*place, name) for (offset, _), place, name in zip(ring.parts, PARTS, names, strict=True)
    }
    for one in ordered:
        x, width, name = places[one.offset]
        shared = len(one.lands) > 1
        mask = f"\nmask {sum(1 << block for block in one.lands):02b}" if shared else ""
        _part(axes, LEFT[one.issuer] + x, 1.4, width, one.issuer, f"{name}\n{one.bytes:,} bytes{mask}")
        for block in one.lands:
            begin, end = (LEFT[at] + x + width / 2 for at in (one.issuer, block))
            _arrow(axes, (begin, 3.5), (end, 7), one.issuer, 2.0 if shared else 1.0)
            _part(axes, LEFT[block] + x, 7, width, one.issuer, name)
    for block, colour in enumerate(BLOCKS):
        comes = [one for one in ordered if block in one.lands]
        announced = sum(one.bytes for one in comes)
        foreign = sum(one.bytes for one in comes if one.issuer != block)
        words = f"block {block}, full: {announced:,} bytes,\nof which block {1 - block} ordered {foreign:,}"
        axes.text(LEFT[block], 10.15, words, va="center", size=8.5, color=colour)


def _releasing(axes: Axes, released: np.ndarray) -> None:
    """How many arrivals go from each block's warps to each block's `empty`."""
    for block, colour in enumerate(BLOCKS):
        x = LEFT[block] + MIDDLE
        axes.text(x, 12, f"the warps of block {block}", ha="center", size=8.5, color=colour)
        words = f"block {block}, empty: {released[:, block].sum()} arrivals"
        axes.text(x, 17.6, words, ha="center", va="center", size=8.5, color=colour)
        for to in np.flatnonzero(released[block]):
            begin, end = np.array([x, 12.3]), np.array([LEFT[to] + MIDDLE, 16.9])
            _arrow(axes, tuple(begin), tuple(end), block, 1.6)
            label = begin + (0.45 if to == block else 0.3) * (end - begin)
            axes.text(
                *label, str(released[block, to]), ha="center", va="center", size=8.5, weight="bold",
                color=colour, bbox={"facecolor": "white", "linewidth": 0, "pad": 1.5},
            )  # fmt: skip


# ---------------------------------------------------------------------------------------------------- traffic


def traffic(recorded: np.ndarray) -> dict[str, dict[str, int]]:
    """Bytes of A, of B and of the scales: "asked" of L2, and "landed" in all blocks' shared memory."""
    ring = stages(recorded)
    first, last = ring.parts[0][0], ring.parts[-1][0]
    sums = {what: dict.fromkeys(OPERANDS, 0) for what in ("asked", "landed")}
    for event in recorded:
        what = {"tma_load": "asked", "tma_load_landed": "landed"}.get(str(event["kind"]))
        if what:
            offset = int(event["address"]) - ring.starts[ring.of(int(event["address"]))]
            operand = "A" if offset == first else "scales" if offset == last else "B"
            sums[what][operand] += int(event["value"])
    return sums


def traffic_bars(runs: Mapping[str, np.ndarray]) -> None:
    """`traffic` of some rungs' recorded events, side by side, in KiB."""
    _, axes = plt.subplots(figsize=(9, 0.8 + 0.75 * len(runs)))
    labels = {}
    for i, (rung, recorded) in enumerate(runs.items()):
        for j, (what, parts) in enumerate(traffic(recorded).items()):
            y, at = 2.4 * i + j, 0.0
            for operand, count in parts.items():
                kib = count / 1024
                axes.barh(y, kib, left=at, height=0.85, color=OPERANDS[operand], edgecolor="white")
                if operand != "scales":  # too narrow for words
                    words = f"{operand}: {kib:,.0f}"
                    axes.text(at + kib / 2, y, words, ha="center", va="center", size=8.5, color=INK)
                at += kib
            axes.text(at, y, f"  {at:,.0f} KiB", va="center", size=8.5, color=INK)
            labels[y] = f"{rung}: {'asked of L2' if what == 'asked' else 'landed in shared memory'}"
    axes.set_yticks(list(labels), list(labels.values()))
    axes.invert_yaxis()
    axes.set_xticks([])
    axes.margins(x=0.14)
    axes.set_xlim(left=0)
    axes.tick_params(length=0)
    axes.spines["bottom"].set_visible(False)
    handles = [Patch(color=colour, label=operand) for operand, colour in OPERANDS.items()]
    axes.legend(handles=handles, loc="lower right", bbox_to_anchor=(1, 1), ncols=3)
    axes.set_title("Two tiles, one below the other: bytes")
    plt.show()


# ---------------------------------------------------------------------------------------------------- speed


def against(impl: str, other: str, a_tile: Mapping[measured.Size, float]) -> None:
    """`impl`'s speed over `other`'s at every shape of figures/data, L2 dirty, by k; and the time lost a tile.

    `a_tile` are the microseconds lost a tile by (m, n, k), where they are known.
    """
    shown = {one.impl: one.tflops for one in measured.series(measured.recorded(), "dirty")}
    ratio = {size: shown[impl][size] / shown[other][size] for size in shown[impl] if size in shown[other]}
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.4))
    figure.subplots_adjust(wspace=0.22)
    for words, colour, chosen in (
        ("m up to 128", "#9a9a9a", [size for size in ratio if size[0] <= 128]),
        ("m above 128", ORANGE, [size for size in ratio if size[0] > 128]),
    ):
        k = [size[2] for size in chosen]
        left.plot(k, [ratio[size] for size in chosen], "o", color=colour, label=words, alpha=0.85)
    left.axhline(1, color=INK, linewidth=0.8)
    left.set_ylim(0, 1.08 * max(1.1, *ratio.values()))
    left.legend(loc="lower right", ncols=2)
    left.set_title(f"speed over that of {other}")
    right.plot([size[2] for size in a_tile], list(a_tile.values()), "o", color=ORANGE, alpha=0.85)
    right.axhline(0, color=INK, linewidth=0.8)
    right.set_title("microseconds more for a tile")
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.set_xticks(2 ** np.arange(9, 15), 2 ** np.arange(9, 15))
        axes.minorticks_off()
        axes.set_xlabel("k")
    plt.show()
