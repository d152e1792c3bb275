"""The pictures of lesson 10: the bits of an FFMA, a promotion in several modes, what the modes are worth.

What they show is machine code that nvcc made, and figures/data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from gemm_ladder.figures import measured
from gemm_ladder.figures import timeline as figure
from gemm_ladder.sass import ffma
from matplotlib import pyplot as plt
from matplotlib.patches import Patch, Rectangle
from workshop import printed
from workshop.drawing import BLUE, EIGHT, INK, MUTED, ORANGE, _canvas, _cell, _pale

PURPLE = figure.COLOURS["store"]
REUSE = _pale(BLUE, 0.75)

FFMA_FIELDS = {  # name: lowest bit, bits; of FFMA Rd, Ra, Rb, Rc. ffma.py says where this is known from
    "opcode": (0, 12), "predicate": (12, 4), "Rd": (16, 8), "Ra": (24, 8), "Rb: the scale": (32, 8),
    "Rc": (64, 8), "stall": (105, 4), "yield": (109, 1), "write barrier": (110, 3), "read barrier": (113, 3),
    "wait mask": (116, 6), "reuse": (122, 4),
}  # fmt: skip
CONTROL = ("stall", "yield", "write barrier", "read barrier", "wait mask", "reuse")


def field(word: int, name: str) -> int:
    """A field of an FFMA's 128 bits."""
    low, width = FFMA_FIELDS[name]
    return word >> low & (1 << width) - 1


def instruction(word: int, after: int | None = None, title: str = "") -> None:
    """An FFMA's 128 bits, 32 a line, its fields named; where `after` has another bit, that bit, framed."""
    after = word if after is None else after
    _, axes = plt.subplots(figsize=(9.5, 4.5))
    _canvas(axes, 32, 13, title)

    def place(bit: int) -> tuple[float, float]:
        return 31 - bit % 32, 1 + (127 - bit) // 32 * 3.2

    for bit in range(128):
        _cell(axes, *place(bit), "#f0f0f0", str(after >> bit & 1))
    for index, (name, (low, width)) in enumerate(FFMA_FIELDS.items()):
        colour = _pale(EIGHT[index % 8], 0.75 if name in CONTROL else 0.3)
        for bit in range(low, low + width):
            _cell(axes, *place(bit), colour, str(after >> bit & 1))
        x, y = place(low + width - 1)
        words = f"{name.replace(' ', chr(10), 1) if width < 6 else name}\n{_value(after, name)}"
        weight = "bold" if name in CONTROL else "normal"
        axes.text(
            x + width / 2, y + 1.1, words, ha="center", va="top", size=8, weight=weight, linespacing=1.15
        )
    for bit in range(128):
        if (word ^ after) >> bit & 1:
            frame = {"fill": False, "edgecolor": INK, "linewidth": 2.2, "zorder": 3}
            axes.add_patch(Rectangle(place(bit), 1, 1, **frame))
    for low in range(0, 128, 32):
        (x, y), small = place(low), {"va": "center", "size": 8, "color": MUTED}
        axes.text(x + 1.2, y + 0.5, str(low), **small)
        axes.text(-0.2, y + 0.5, str(low + 31), ha="right", **small)
    plt.show()


def _value(word: int, name: str) -> str:
    """As one writes it: registers by number, masks in bits."""
    value = field(word, name)
    if name in ("reuse", "wait mask"):
        return f"{value:0{FFMA_FIELDS[name][1]}b}"
    if name in ("opcode", "predicate"):
        return f"0x{value:x}"
    return f"R{value}" if name.startswith("R") else str(value)


def runs(of_mode: Mapping[str, Sequence[ffma.Ffma]]) -> None:
    """One promotion in several modes: for each FFMA whether it yields, keeps its scale, or neither."""
    _, axes = plt.subplots(figsize=(9.5, 0.9 + 0.5 * len(of_mode)))
    for y, run in enumerate(of_mode.values()):
        for x, one in enumerate(run):
            colour = ORANGE if one.yields else REUSE if one.reuses else "#e4e4e4"
            axes.add_patch(Rectangle((x, y), 1, 0.7, facecolor=colour, edgecolor="white", linewidth=0.5))
    run = next(iter(of_mode.values()))
    for x, (one, before) in enumerate(zip(run, [None, *run], strict=False)):
        if before is None or one.scale != before.scale:
            axes.plot((x, x), (-0.15, len(of_mode) - 0.2), color=INK, linewidth=1)
            axes.text(x + 0.3, len(of_mode) - 0.22, f"scale in R{one.scale}", va="top", size=8, color=MUTED)
    axes.set_xlim(-0.2, len(run))
    axes.set_ylim(len(of_mode) + 0.25, -0.2)
    axes.set_yticks([y + 0.35 for y in range(len(of_mode))], of_mode)
    axes.set_xticks([x + 0.5 for x in range(0, len(run), 8)], range(0, len(run), 8))
    axes.tick_params(length=0)
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.set_xlabel("FFMA of the run")
    kinds = {"yields": ORANGE, "keeps the scale (reuse)": REUSE, "neither": "#e4e4e4"}
    handles = [Patch(color=colour, label=words) for words, colour in kinds.items()]
    axes.legend(handles=handles, loc="lower right", bbox_to_anchor=(1, 1), ncols=3, borderaxespad=0)
    axes.set_title("One promotion")
    plt.show()


def modes(data: Mapping[str, Any], base: str = "s8_compiler") -> None:
    """figures/data/interleave.json: each mode's time against the mode `base`, by shape, with p10 to p90."""
    times = {(row["impl"], (row["m"], row["n"], row["k"])): row for row in data["rows"]}
    names = [name for name in dict.fromkeys(name for name, _ in times) if name != base]
    shapes = list(dict.fromkeys(shape for _, shape in times))
    _, axes = plt.subplots(figsize=(9, 0.9 + 0.62 * len(shapes)))
    axes.axvline(0, color=INK, linewidth=1)

    def per_cent(row: Mapping[str, Any], shape: tuple[int, ...]) -> list[float]:
        return [100 * (row[key] / times[base, shape]["us"] - 1) for key in ("us_p10", "us", "us_p90")]

    for y, shape in enumerate(shapes):
        low, _, high = per_cent(times[base, shape], shape)
        axes.barh(y, high - low, left=low, height=0.86, color="#ececec", zorder=0)
        for index, name in enumerate(names):
            low, middle, high = per_cent(times[name, shape], shape)
            colour, at = (PURPLE, BLUE, ORANGE)[index], y + 0.24 * (index - 1)
            axes.plot((low, high), (at, at), color=colour, linewidth=1.6, solid_capstyle="round")
            label = name.removeprefix("s8_").replace("_of_", "/") if y == 0 else None
            axes.plot(middle, at, "o", color=colour, markersize=5, label=label)
    axes.set_yticks(range(len(shapes)), [" x ".join(map(str, shape)) for shape in shapes])
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("per cent more time than the compiler's own; lines: 10th to 90th percentile of the calls")
    handles, labels = axes.get_legend_handles_labels()
    handles.append(Patch(color="#ececec"))
    labels.append("the compiler's own, 10th to 90th")
    axes.legend(handles, labels, loc="lower left", bbox_to_anchor=(0, 1), ncols=4, borderaxespad=0)
    axes.set_title("Modes of s8: left is faster", pad=24)
    plt.show()


def of_ceiling(impl: str, ceiling: str = "cublaslt_tensorwise") -> list[str]:
    """An implementation's speed in per cent of the ceiling's, by shape, L2 dirty; returns the provenance."""
    shown = {one.impl: one for one in measured.series(measured.recorded(), "dirty")}
    chosen = [shown[impl], shown[ceiling]]
    sizes = [size for size in measured.sizes_of(chosen) if all(size in one.tflops for one in chosen)]
    share = np.array([100 * chosen[0].tflops[size] / chosen[1].tflops[size] for size in sizes])
    _, axes = plt.subplots(figsize=(8.5, 0.7 + 0.2 * len(sizes)))
    colours = [ORANGE if size[0] <= 128 else BLUE for size in sizes]
    axes.barh(range(len(sizes)), share, color=colours, height=0.75)
    for y, one in enumerate(share):
        over = {"facecolor": "white", "linewidth": 0, "pad": 0.8}  # the line at 100
        axes.text(one + 0.8, y, f"{one:.0f}", va="center", size=8, bbox=over)
    axes.axvline(100, color=INK, linewidth=0.8)
    axes.set_yticks(range(len(sizes)), [" x ".join(map(str, size)) for size in sizes], size=8)
    axes.invert_yaxis()
    axes.tick_params(length=0)
    axes.set_xlabel("per cent")
    handles = [Patch(color=ORANGE, label="m up to 128"), Patch(color=BLUE, label="larger")]
    axes.legend(handles=handles, loc="upper right", bbox_to_anchor=(1, -0.05), ncols=2, borderaxespad=0)
    axes.set_title(f"Speed of {chosen[0].label}, the ceiling's being 100")
    plt.show()
    return printed.provenance(chosen)
