"""The pictures of the lessons on the copy engine: boxes, rings of stages, mbarriers through time.

Each is drawn from what a run of the emulator recorded, from bytes that a kernel loaded, or from figures/data.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from gemm_ladder.figures import measured, timeline
from gemm_ladder.ref import layouts
from gemm_ladder.timeline import spans
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from workshop.drawing import BLUE, EIGHT, GRID, INK, MUTED, ORANGE, _canvas, _cell, _pale

CHUNK = layouts.SWIZZLE_CHUNK
LOAD = timeline.COLOURS["load"]


# ------------------------------------------------------------------------------------------------------ boxes


def numbered(rows: int, columns: int) -> np.ndarray:
    """A uint8 tensor in which every chunk of 16 bytes holds its own number, from 1 on."""
    chunks = np.arange(1, rows * columns // CHUNK + 1)
    return np.repeat(chunks.astype(np.uint8).reshape(rows, columns // CHUNK), CHUNK, axis=1)


def box(tensor: np.ndarray, at: tuple[int, int], shared: np.ndarray) -> None:
    """A box at `at` = (x, y) of a tensor of `numbered`, and the bytes that it became: uint8 [rows, 128]."""
    x, y = at
    rows, columns = tensor.shape[0], tensor.shape[1] // CHUNK
    high, wide = shared.shape[0], shared.shape[1] // CHUNK
    left, right = min(0, x // CHUNK), max(columns, x // CHUNK + wide)
    top, bottom = min(0, y), max(rows, y + high)
    figure, (world, memory) = plt.subplots(
        1, 2, figsize=(9, 1.1 + 0.33 * max(bottom - top, high)), width_ratios=(right - left, wide + 1)
    )
    figure.subplots_adjust(wspace=0.1)
    _canvas(world, right - left, bottom - top, "")
    for r in range(rows):
        for c in range(columns):
            inside = y <= r < y + high and x // CHUNK <= c < x // CHUNK + wide
            colour = _pale(EIGHT[(r - y) % 8], 0.6) if inside else "#eeeeee"
            _cell(world, c - left, r - top, colour, str(tensor[r, CHUNK * c]))
    frame = (x // CHUNK - left, y - top)
    world.add_patch(Rectangle(frame, wide, high, fill=False, edgecolor=INK, linewidth=1.8, clip_on=False))
    size = f"{rows} x {tensor.shape[1]} bytes"
    world.set_title(f"{size} of global memory; box at ({x}, {y})")
    _canvas(memory, wide + 1, bottom - top, "")
    for r in range(high):
        memory.text(0.8, r + 0.5, f"{r}", ha="right", va="center", size=7.5, color=MUTED)
        for c in range(wide):
            number = int(shared[r, CHUNK * c])
            source = (number - 1) // columns
            _cell(memory, 1 + c, r, _pale(EIGHT[(source - y) % 8], 0.6) if number else "#c4c4c4", str(number))
    memory.set_title("the box in shared memory")
    plt.show()


# ------------------------------------------------------------------------------------------------------ rings


@dataclasses.dataclass(frozen=True)
class Stages:
    """Where a block's ring lies, read out of its recorded events: byte addresses of shared memory.

    `parts` are (offset in the stage, bytes) of what the copy engine writes there.
    """

    starts: tuple[int, ...]
    parts: tuple[tuple[int, int], ...]
    full: tuple[int, ...]
    empty: tuple[int, ...]

    def of(self, address: int) -> int:
        """The stage that an address is in."""
        return sum(start <= address for start in self.starts) - 1


def stages(recorded: np.ndarray, block: int = 0) -> Stages:
    """The ring of one block; `recorded` is Run.events."""
    mine = recorded[recorded["block"] == block]

    def addresses(kind: str) -> list[int]:
        return sorted({int(address) for address in mine[mine["kind"] == kind]["address"]})

    full, landed = addresses("mbarrier_expect_tx"), addresses("tma_load_landed")
    starts = [next(a for a in landed if a > before) for before in (0, *full[:-1])]
    parts = {
        (int(event["address"]) - starts[0], int(event["value"]))
        for event in mine[mine["kind"] == "tma_load_landed"]
        if event["address"] < full[0]
    }
    empty = [address for address in addresses("mbarrier_init") if address not in full]
    return Stages(tuple(starts), tuple(sorted(parts)), tuple(full), tuple(empty))


def ring_memory(recorded: np.ndarray, names: Sequence[str]) -> None:
    """Block 0's ring in shared memory, a row for each stage; `names` are of what the copy engine writes."""
    ring = stages(recorded)
    size = ring.starts[1] - ring.starts[0]
    end = ring.parts[-1][0] + ring.parts[-1][1]
    figure, (whole, tail) = plt.subplots(
        1, 2, figsize=(9.5, 0.9 + 0.42 * len(ring.starts)), width_ratios=(2.2, 1)
    )
    figure.subplots_adjust(wspace=0.08)
    colours = [_pale(EIGHT[i], 0.55) for i in range(len(names))]
    for stage, start in enumerate(ring.starts):
        for axes in (whole, tail):
            for colour, (offset, count) in zip(colours, ring.parts, strict=True):
                axes.barh(stage, count, left=offset, height=0.8, color=colour, edgecolor="white")
            for address, colour in ((ring.full[stage], BLUE), (ring.empty[stage], ORANGE)):
                axes.barh(stage, 8, left=address - start, height=0.8, color=colour)
        for name, (offset, count) in zip(names, ring.parts, strict=True):
            words = f"{name}: {count:,} bytes"
            if count > size / 8:
                whole.text(offset + count / 2, stage, words, ha="center", va="center", size=8, color=INK)
            else:
                tail.text(offset + count / 2, stage, words, ha="center", va="center", size=8, color=INK)
    for axes in (whole, tail):
        axes.set_ylim(len(ring.starts) - 0.5, -0.5)
        axes.tick_params(length=0)
        axes.spines["left"].set_visible(False)
    whole.set_yticks(range(len(ring.starts)), [f"stage {stage}" for stage in range(len(ring.starts))])
    whole.set_xlim(0, size)
    whole.set_xlabel("byte of the stage")
    whole.set_title(f"{len(ring.starts)} stages of {size:,} bytes")
    tail.set_yticks([])
    tail.set_xlim(end - 280, end + 80)
    tail.set_xlabel("its end, enlarged")
    marks = [Patch(color=BLUE, label="full"), Patch(color=ORANGE, label="empty")]
    tail.legend(
        handles=marks, title="mbarriers, 8 bytes each", loc="lower right", bbox_to_anchor=(1, 1), ncols=2
    )
    plt.show()


def ring_use(recorded: np.ndarray, title: str) -> None:
    """What each stage of block 0's ring is used for, through time; the number is the block of k."""
    ring = stages(recorded)
    mine = recorded[recorded["block"] == 0]
    _, axes = plt.subplots(figsize=(9, 1.1 + 0.4 * len(ring.starts)))
    until = int(mine["step"].max())
    for number, event in enumerate(mine[mine["kind"] == "mbarrier_expect_tx"]):
        stage, begin = ring.full.index(event["address"]), int(event["step"])

        def after(kind: str, *where: int, since: int = begin) -> int:
            hits = mine[(mine["kind"] == kind) & np.isin(mine["address"], where) & (mine["step"] >= since)]
            return int(hits["step"][0]) if len(hits) else until

        there = after("mbarrier_phase", ring.full[stage])
        read = after("wgmma", ring.starts[stage], since=there)
        free = after("mbarrier_phase", ring.empty[stage], since=there)
        for since, to, colour in ((begin, there, LOAD), (there, read, "#f2d16b"), (read, free, ORANGE)):
            axes.barh(
                stage, to - since, left=since, height=0.8, color=colour, edgecolor="white", linewidth=0.4
            )
        words = f"block {number}"
        axes.text((read + free) / 2, stage, words, ha="center", va="center", size=8, color="white")
    axes.set_yticks(range(len(ring.starts)), [f"stage {stage}" for stage in range(len(ring.starts))])
    axes.invert_yaxis()
    axes.tick_params(length=0)
    axes.set_xlim(0, until)
    axes.set_xlabel("steps of the emulator's scheduler: an order, not durations")
    axes.set_title(title, pad=24)
    meanings = {
        LOAD: "on its way",
        "#f2d16b": "full, waits for its turn",
        ORANGE: "in use, until all warps have released it",
    }
    handles = [Patch(color=colour, label=words) for colour, words in meanings.items()]
    axes.legend(handles=handles, loc="lower left", bbox_to_anchor=(0, 1), ncols=3, borderaxespad=0)
    plt.show()


def barriers(recorded: np.ndarray, title: str) -> None:
    """Phase, pending arrivals and outstanding bytes of every mbarrier of block 0's ring, through time."""
    ring = stages(recorded)
    mine = recorded[recorded["block"] == 0]
    until = int(mine["step"].max())
    waiting = [span for span in spans.spans(spans.of_emulator(recorded)) if span.what == "wait"]
    rows = [
        (f"{kind} {i}", a)
        for i in range(len(ring.full))
        for kind, a in (("full", ring.full[i]), ("empty", ring.empty[i]))
    ]
    figure, panels = plt.subplots(len(rows), 1, sharex=True, figsize=(9.5, 1.35 * len(rows) + 0.6))
    figure.subplots_adjust(hspace=0.28)
    for axes, (name, address) in zip(panels, rows, strict=True):
        history = _history(mine, address, until)
        count = int(mine[(mine["address"] == address) & (mine["kind"] == "mbarrier_init")]["value"][0])
        top = 1.12
        phases = sorted({phase for _, phase, _, _ in history})
        for phase in phases:
            begin = min(step for step, p, _, _ in history if p == phase)
            end = min((step for step, p, _, _ in history if p > phase), default=until)
            axes.axvspan(begin, end, color="#ffffff" if phase % 2 else "#efefef", linewidth=0)
            if end - begin > until / 100:  # room for a word, or for a digit
                words = f"phase {phase}" if end - begin > until / 16 else f"{phase}"
                axes.text(begin + until / 250, top, words, va="top", size=8, color=MUTED)
        step, _, pending, byte = (np.array(column) for column in zip(*history, strict=True))
        if byte.any():
            axes.fill_between(step, 0, 0.9 * byte / byte.max(), step="post", color=LOAD, linewidth=0)
            most = int(byte.max())
        axes.step(step, 0.9 * pending / count, where="post", color=INK, linewidth=1.4)
        for span in waiting:
            if span.on == name:
                y = -0.2 - 0.11 * (span.index % 4)
                axes.plot((span.begin, span.end), (y, y), color=ORANGE, linewidth=2.2, solid_capstyle="butt")
        axes.axhline(0, color=GRID, linewidth=0.8)
        axes.set_ylim(-0.68, 1.16)
        axes.set_xlim(0, until)
        axes.set_yticks([0, 0.9], ["0", str(count)])
        axes.tick_params(length=0)
        axes.set_ylabel(name, rotation=0, ha="right", va="center", weight="bold")
        axes.spines["left"].set_visible(False)
    panels[0].set_title(title, pad=24)
    panels[-1].set_xlabel("steps of the emulator's scheduler: an order, not durations")
    handles = [
        plt.Line2D([], [], color=INK, label="arrivals pending"),
        Patch(color=LOAD, label=f"bytes to come, of {most:,}"),
        plt.Line2D([], [], color=ORANGE, linewidth=2.2, label="a warp waits: 0 (top) to 3"),
        Patch(color="#e4e4e4", label="phase of parity 0"),
    ]
    panels[0].legend(handles=handles, loc="lower left", bbox_to_anchor=(0, 1.0), ncols=4, borderaxespad=0.3)
    plt.show()


def _history(events: np.ndarray, address: int, until: int) -> list[tuple[int, int, int, int]]:
    """(step, phase, pending, bytes) of one mbarrier after each of its events."""
    count = pending = phase = byte = 0
    history = []
    for event in events[events["address"] == address]:
        kind, value = str(event["kind"]), int(event["value"])
        if kind == "mbarrier_init":
            count = pending = value
        elif kind == "mbarrier_arrive":
            pending = value
        elif kind == "mbarrier_expect_tx":
            byte += value
        elif kind == "mbarrier_complete_tx":
            byte = value
        elif kind == "mbarrier_phase":
            phase, pending = value + 1, count
        else:
            continue
        history.append((int(event["step"]), phase, pending, byte))
    return [*history, (until, phase, pending, byte)]


# ------------------------------------------------------------------------------------------ recorded on a GPU


def gpu_timeline(rung: str) -> Figure:
    """The panel of figures/timeline_RUNG.png that an H100 gave."""
    plt.switch_backend(plt.get_backend())  # so that a notebook shows it, even as its first picture
    data = timeline.load(measured.DATA / "timeline.json")
    rows = [row for row in data["rows"] if row["rung"] == rung and row["machine"] == "gpu"]
    plain = {"axes.titleweight": "normal", "font.size": 10}  # the picture was made for matplotlib's own style
    with plt.rc_context(plain):
        return timeline.pictures({"meta": data["meta"], "rows": rows})[rung]
