"""The lessons' pictures that show how things lie: each function draws one, with matplotlib's pyplot.

Curves of what a lesson computes are drawn in the lesson. What a picture shows comes from
gemm_ladder.ref.layouts, gemm_ladder.timeline.spans or figures/data, so that it cannot differ from what the
kernels do.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

import numpy as np
from gemm_ladder.figures import hopper_map, measured
from gemm_ladder.figures.timeline import COLOURS, MEANINGS
from gemm_ladder.ref import fp8, layouts
from gemm_ladder.timeline.spans import TENSOR_CORE, Span, label, place
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import Patch, Rectangle
from workshop import printed

INK, MUTED, GRID, BLUE, ORANGE = "#1a1a1a", "#666666", "#d8d8d8", "#2b6cb0", "#e8590c"
GREEN = "#14784f"
# One colour for each of eight things; colour-blind readers can tell them apart, too.
EIGHT = [BLUE, ORANGE, GREEN, "#eb81d0", "#804306", "#0c0ceb", "#cc9e70", INK]


# For pages that nbconvert makes of a notebook: it marks a change's lines, but gives them no colours. GitHub
# ignores it, and has its own. Orange and blue, as red and green look alike to many.
DIFFS = """<style>
.highlight pre {font-family: Menlo, Consolas, "DejaVu Sans Mono", monospace; font-size: 13px;
  white-space: pre; overflow-x: auto}
.highlight .gd {color: #8a3600; background: #fdeadf}
.highlight .gi {color: #0b4a8f; background: #e4effb}
.highlight .gu {color: #666666}
</style>"""


def style() -> None:
    """How all of the lessons' pictures look; call it once, at the start."""
    plt.rcParams.update(
        {
            "figure.dpi": 90,
            "figure.hooks": ["workshop.legible:watch"],
            "figure.facecolor": "white",
            "font.size": 9,
            "axes.titlesize": 10.5,
            "axes.titleweight": "bold",
            "axes.titlelocation": "left",
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": False,
            "legend.frameon": False,
        }
    )
    if "IPython" in sys.modules and sys.modules["IPython"].get_ipython():
        from IPython.display import display

        display(Shown("text/html", DIFFS, "How changes to a file are shown."))


def _canvas(axes: Axes, width: float, height: float, title: str) -> None:
    """An empty drawing area, x to the right and y down, without ticks."""
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    axes.set_aspect("equal")
    axes.set_axis_off()
    axes.set_title(title)


def _cell(axes: Axes, x: float, y: float, colour: object, text: str = "", w: float = 1, h: float = 1) -> None:
    axes.add_patch(Rectangle((x, y), w, h, facecolor=colour, edgecolor="white", linewidth=0.8))
    if text:
        place = {"ha": "center", "va": "center"}
        axes.text(x + w / 2, y + h / 2, text, size=7.8, color=_ink_on(colour), **place)


def _ink_on(colour: object) -> str:
    """The colour of words on this one: dark on light ones, white on dark ones."""
    red, green, blue = plt.matplotlib.colors.to_rgb(colour)
    return INK if 0.3 * red + 0.59 * green + 0.11 * blue > 0.5 else "white"


def _pale(colour: object, strength: float = 0.35) -> tuple[float, ...]:
    """The colour, mixed with white."""
    return tuple(1 - strength * (1 - part) for part in plt.matplotlib.colors.to_rgb(colour))


class Shown:
    """What a notebook shows as `kind`, a MIME type; and in words."""

    def __init__(self, kind: str, text: str, words: str) -> None:
        self.kind, self.text, self.words = kind, text, words

    def _repr_mimebundle_(self, **_: object) -> dict[str, str]:
        return {self.kind: self.text, "text/plain": self.words}


def where(*pieces: str) -> Shown:
    """The map of a Hopper GPU with these of figures.hopper_map.PIECES marked: where a lesson is."""
    return Shown(
        "image/svg+xml", hopper_map.svg(pieces), f"A map of a Hopper GPU. Marked: {', '.join(pieces)}."
    )


# ----------------------------------------------------------------------------------------------- measurements


def bars(impls: Sequence[str], size: tuple[int, int, int], marked: str = "") -> list[str]:
    """TFLOPS of some implementations at one size, L2 dirty, on a logarithmic axis; returns their provenance.

    `marked` is the one that the lesson is about.
    """
    shown = {one.impl: one for one in measured.series(measured.recorded(), "dirty") if size in one.tflops}
    chosen = [shown[impl] for impl in impls if impl in shown]
    _, axes = plt.subplots(figsize=(8, 0.5 + 0.32 * len(chosen)))
    for y, one in enumerate(chosen):
        colour = ORANGE if one.impl == marked else "#9a9a9a" if one.is_peer else BLUE
        axes.barh(y, one.tflops[size], color=colour, height=0.7)
        axes.annotate(
            measured.number(one.tflops[size]),
            (one.tflops[size], y),
            (4, 0),
            textcoords="offset points",
            va="center",
        )
    axes.set_yticks(range(len(chosen)), [one.label for one in chosen])
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlim(right=3 * max(one.tflops[size] for one in chosen))
    axes.set_title(f"TFLOPS at {' x '.join(map(str, size))}, logarithmic")
    axes.tick_params(length=0)
    plt.show()
    return printed.provenance(chosen)


# ------------------------------------------------------------------------------------------------ FP8, scales


def number_line() -> None:
    """Every positive finite E4M3 number, on a line and by powers of two."""
    values = np.unique(fp8.decode(np.arange(1, 0x7F, dtype=np.uint8)))
    _, (line, powers) = plt.subplots(2, 1, figsize=(9, 2.6), gridspec_kw={"hspace": 1.3})
    for axes, title in ((line, "by value"), (powers, "by powers of two")):
        subnormal = values < 2.0**-6
        axes.vlines(values[~subnormal], 0, 1, color=BLUE, linewidth=0.9)
        axes.vlines(values[subnormal], 0, 1, color=ORANGE, linewidth=1.2)
        axes.set_ylim(0, 1)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.set_title(title)
    powers.set_xscale("log", base=2)
    powers.set_xticks([2.0**e for e in range(-9, 9, 2)])
    powers.minorticks_off()
    line.set_xlim(left=0)
    handles = [Patch(color=BLUE, label="normal"), Patch(color=ORANGE, label="subnormal")]
    line.legend(handles=handles, loc="lower right", bbox_to_anchor=(1, 1), ncols=2, borderaxespad=0)
    plt.show()


def scale_blocks(m: int, n: int, k: int) -> None:
    """Which elements of A [m, k] and of B [n, k] share a scale; one line a row, blocks of 128 along k."""
    blocks = -(-k // fp8.SCALE_BLOCK)
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4))
    figure.subplots_adjust(wspace=0.25)
    for axes, rows, height, name in ((left, m, 1, "A"), (right, n, fp8.SCALE_BLOCK, "B")):
        for row in range(0, rows, height):
            for block in range(blocks):
                shade = 0.25 + 0.5 * ((row // height + block) % 2)
                box = (block * fp8.SCALE_BLOCK, row), fp8.SCALE_BLOCK, min(height, rows - row)
                axes.add_patch(Rectangle(*box, facecolor=_pale(EIGHT[block % 8], shade), linewidth=0))
        count = blocks * -(-rows // height)
        axes.set_xlim(0, k)
        axes.set_ylim(rows, 0)
        axes.set_xticks(range(0, k + 1, fp8.SCALE_BLOCK))
        axes.set_yticks([0, rows // 2, rows])
        axes.set_xlabel("k")
        axes.set_ylabel("m" if name == "A" else "n")
        words = "1 x 128" if name == "A" else "128 x 128"
        axes.set_title(f"{name}: a scale for each {words}, {count} in all")
    plt.show()


# ---------------------------------------------------------------------------------------------- who does what


def naive_block(tile_m: int, tile_n: int) -> None:
    """The outputs of one block of s1_naive: a warp has one row; what one thread reads for its output."""
    _, axes = plt.subplots(figsize=(9, 3.4))
    _canvas(axes, 50, 17, "")
    top, left = 7, 12
    for row in range(tile_m):
        for column in range(tile_n):
            mine = (row, column) == (2, 5)
            _cell(axes, left + column, top + row, ORANGE if mine else _pale(BLUE, 0.2 + 0.25 * (row % 2)))
        axes.text(left + tile_n + 0.5, top + row + 0.5, f"warp {row}", va="center", size=7.5, color=MUTED)
    axes.add_patch(Rectangle((0, top + 2), 11, 1, facecolor=_pale(ORANGE, 0.6), linewidth=0))
    axes.text(5.5, top + 2.5, "a row of A, all of k", ha="center", va="center", size=8)
    axes.add_patch(Rectangle((left + 5, 0), 1, 6.2, facecolor=_pale(ORANGE, 0.6), linewidth=0))
    axes.text(left + 6.5, 3, "a row of B, all of k", va="center", size=8)
    words = f"One block: {tile_m} x {tile_n} outputs of D, a thread for each"
    axes.set_title(f"{words}. Orange: one thread, and what it reads")
    plt.show()


def wgmma_tile(n: int) -> None:
    """One block of K in s3_wgmma: A's and B's tiles in shared memory, four steps of 32 along k; D's tile."""
    _, axes = plt.subplots(figsize=(9, 5.2))
    _canvas(axes, 34, 21, "")
    size = 2.0  # drawing units for 32 of k; rows are drawn 1 for 16
    for step in range(4):
        colour = _pale(EIGHT[step], 0.75)
        for y, rows, name in ((8, 64, "A"), (0, n, "B")):
            height = rows / 16 if name == "A" else size
            if name == "A":
                _cell(axes, step * size, y, colour, f"k32\n{step}", size, height)
            else:
                _cell(axes, 11, y + step * 1.6, colour, f"B: k32 {step}", rows / 8, 1.6)
    for warp in range(4):
        _cell(axes, 11, 8 + warp, _pale(BLUE, 0.3 + 0.12 * warp), f"warp {warp}: 16 rows", n / 8, 1)
    small = {"size": 8, "color": MUTED}
    axes.text(4, 12.7, "A: 64 x 128 bytes,\nin shared memory", ha="center", va="top", **small)
    axes.text(11 + n / 8 + 0.4, 3.2, f"B: {n} x 128 bytes,\nin shared memory", va="center", **small)
    words = f"D: 64 x {n} partial sums, FP32, in the registers of 128 threads"
    axes.text(11 + n / 16, 12.7, words, ha="center", va="top", **small)
    axes.set_ylim(14.5, -0.3)
    axes.set_title(
        "One warpgroup, one block of 128 along k: four WGMMAs, each adding 32 of k to all of the tile"
    )
    plt.show()


TO_MULTIPLY = "wait for the tensor core"  # in timelines, apart from the other waits


def timeline(spans: Iterable[Span], until: float, title: str) -> None:
    """Spans of a recorded run, a lane for each actor; time in steps of the emulator's scheduler."""
    colours = {**COLOURS, TO_MULTIPLY: "#9a9a9a"}
    meanings = {**MEANINGS, "wait": "wait for anything else", TO_MULTIPLY: TO_MULTIPLY}
    kinds = {span: TO_MULTIPLY if span.on == TENSOR_CORE else span.what for span in spans}
    spans = sorted((span for span in kinds if span.begin < until), key=place)
    alone = len({span.role for span in spans}) == 1  # then its name says nothing
    names = [label(span).removeprefix(f"{span.role}, " if alone else "") for span in spans]
    lanes = list(dict.fromkeys(names))
    _, axes = plt.subplots(figsize=(9, 0.9 + 0.34 * len(lanes)))
    for span, name in zip(spans, names, strict=True):
        y, width = lanes.index(name), min(span.end, until) - span.begin
        colour = colours[kinds[span]]
        axes.barh(y, width, left=span.begin, height=0.8, color=colour, edgecolor="white", linewidth=0.8)
    axes.set_yticks(range(len(lanes)), lanes)
    axes.invert_yaxis()
    axes.set_xlabel("steps of the emulator's scheduler: an order, not durations")
    axes.tick_params(length=0)
    axes.set_title(title)
    shown = [what for what in colours if any(kinds[span] == what for span in spans)]
    handles = [Patch(color=colours[what], label=meanings[what]) for what in shown]
    axes.legend(handles=handles, loc="upper left", bbox_to_anchor=(0, -1.7 / len(lanes)), ncols=3)
    plt.show()


# ----------------------------------------------------------------------------------- shared memory, registers

BANKS, BANK_BYTES = 32, 4  # of an SM's shared memory: "Shared Memory" in the CUDA C++ Programming Guide


def banks(chunk: int = 2) -> None:
    """The 8 rows of an atom without and with the 128-byte swizzle, chunk `chunk` of each row marked."""
    figure, panels = plt.subplots(1, 2, figsize=(9, 3.5))
    figure.subplots_adjust(wspace=0.12)
    places = layouts.SWIZZLE_ROW // layouts.SWIZZLE_CHUNK
    for axes, swizzled in zip(panels, (False, True), strict=True):
        _canvas(axes, places + 1.2, layouts.SWIZZLE_ATOM_ROWS + 1.6, "")
        hit = set()
        for row in range(layouts.SWIZZLE_ATOM_ROWS):
            for c in range(places):
                plain = row * layouts.SWIZZLE_ROW + c * layouts.SWIZZLE_CHUNK
                offset = int(layouts.swizzle_128b(row, c * layouts.SWIZZLE_CHUNK)) if swizzled else plain
                place = offset % layouts.SWIZZLE_ROW // layouts.SWIZZLE_CHUNK
                marked = c == chunk
                hit |= {place} if marked else set()
                _cell(axes, 1.2 + place, 1.4 + row, EIGHT[c] if marked else _pale(EIGHT[c], 0.25), str(c))
            axes.text(1, 1.9 + row, f"row {row}", ha="right", va="center", size=7.5, color=MUTED)
        for place in range(places):
            first = place * layouts.SWIZZLE_CHUNK // BANK_BYTES
            colour, weight = (INK, "bold") if place in hit else (MUTED, "normal")
            axes.text(1.7 + place, 1.2, str(first), ha="center", size=7.5, color=colour, weight=weight)
        axes.text(1, 1.2, "from bank", ha="right", size=7.5, color=MUTED)
        turns = layouts.SWIZZLE_ATOM_ROWS // len(hit)
        how = "128-byte swizzle" if swizzled else "without a swizzle"
        axes.set_title(f"{how}: {turns} turn{'s' if turns > 1 else ''}")
    plt.show()


def descriptor(bits: int) -> None:
    """A shared-memory descriptor's 64 bits, 32 a line, its fields named and decoded."""
    fields = [  # name, lowest bit, bits; as in gemm_ladder.ref.layouts
        ("address", 0, 14), ("leading_byte_offset", 16, 14), ("stride_byte_offset", 32, 14),
        ("base_offset", 49, 3), ("swizzle", 62, 2),
    ]  # fmt: skip
    decoded = layouts.SmemDescriptor.decode(bits)
    _, axes = plt.subplots(figsize=(9, 3))
    _canvas(axes, 32, 7.6, f"0x{bits:016x}")
    for bit in range(64):
        field = next((i for i, (_, low, width) in enumerate(fields) if low <= bit < low + width), None)
        x, y = 31 - bit % 32, 1.9 if bit >= 32 else 6.1
        _cell(axes, x, y, "#eeeeee" if field is None else _pale(EIGHT[field], 0.6), str(bits >> bit & 1))
    for name, low, width in fields:
        x, y = 32 - (low % 32 + width), 1.7 if low >= 32 else 5.9
        y -= 0.9 * (name == "base_offset")  # its words are longer than its bits
        unit = " bytes" if name in ("address", "leading_byte_offset", "stride_byte_offset") else ""
        words = f"{name} = {getattr(decoded, name)}{unit}  (bits {low} to {low + width - 1})"
        axes.text(x, y, words, size=7.5, color=INK, weight="bold")
    plt.show()


def fragment(columns: int = 16) -> None:
    """Who holds what of a WGMMA's result: the warps' rows, and one warp's threads and registers in detail."""
    row, column = layouts.wgmma_accumulator(columns)
    _, axes = plt.subplots(figsize=(9, 7.2))
    _canvas(axes, columns * 2 + 2, 17.4, "")
    for lane in range(32):
        for i in range(columns // 2):
            x, y = 2 + 2 * column[lane, i], 1.2 + row[lane, i]
            _cell(axes, x, y, _pale(EIGHT[lane % 8], 0.7), f"T{lane} r{i}", 2, 1)
    for c in range(columns):
        axes.text(3 + 2 * c, 1, str(c), ha="center", size=7.5, color=MUTED)
    for r in range(16):
        axes.text(1.8, 1.7 + r, str(r), ha="right", va="center", size=7.5, color=MUTED)
    words = f"Warp 0: rows 0 to 15, columns 0 to {columns - 1}. T: thread, r: its register."
    axes.set_title(f"{words} Warp w has the same from row 16 w on.")
    plt.show()
