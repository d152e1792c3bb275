"""The production kernels at the weights of public models, beside the best library of the same run:
figures/everywhere.png and the sentences about it in README.md, from data/everywhere.json.

A product is compared with the fastest library that computes the same, with the same scales, in each of three
states: L2 dirty, L2 clean, and a CUDA graph of calls over different weights.
"""

from __future__ import annotations

import math
import statistics
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from . import measured
from .measured import PEERS, Series, name_of, provenance
from .production import BLOCK_SCALED, FASTER, GROUP_BY_GROUP, RUNG, SLOWER
from .rows import EverywhereRow, fields
from .sheet import GRID, INK, MUTED, frame, least, sheet

STATES = {
    "dirty": "with L2 dirty",
    "clean": "with L2 clean",
    "graph": "in a CUDA graph of calls over different weights",
}
SECTIONS = {"dense": "dense", "contiguous": "experts, contiguous", "masked": "experts, masked"}
LIMIT = 1.6  # the ratio at which, and at whose inverse, the colours end
WIDTH = 9.6  # inches, of the picture
SIZE = least(WIDTH)
BF16 = "cublas_bf16"
ROW_FIELDS = fields(EverywhereRow)

Key = tuple[str, int, int, int, int, int, int]  # kind, groups, m, n, k, max_m, expected_m


class Ratio(NamedTuple):
    """A product in one state: our time, the best block-scaled library's, and BF16's if it was measured."""

    key: Key
    us: float
    peer: str
    peer_us: float
    bf16_us: float | None

    @property
    def value(self) -> float:
        """The library's time over ours: above 1, ours is faster."""
        return self.peer_us / self.us

    @property
    def name(self) -> str:
        kind, groups, *size, _, _ = self.key
        return (f"{kind}, {groups} of " if kind != "dense" else "") + name_of((size[0], size[1], size[2]))


class Line(NamedTuple):
    """A row of the picture: a kind of product, a weight's name, and its n and k, whole and cut."""

    kind: str
    name: str
    sizes: tuple[tuple[int, int], ...]


def load(path: Path) -> Any:
    """everywhere.json. Raises ValueError where a field of its form is missing."""
    return measured.load(path, (*measured.META_FIELDS, "weights"), ROW_FIELDS)


def key_of(row: EverywhereRow) -> Key:
    return row["kind"], row["groups"], row["m"], row["n"], row["k"], row["max_m"], row["expected_m"]


def ratios(data: Any, state: str) -> list[Ratio]:
    """Every product that was measured with ours and a block-scaled library in this state."""
    times: dict[Key, dict[str, float]] = {}
    for row in data["rows"]:
        if row["l2"] == state:
            times.setdefault(key_of(row), {})[row["impl"]] = row["us"]
    found = []
    for key, of in times.items():
        peers = [(of[impl], impl) for impl in BLOCK_SCALED if impl in of]
        if RUNG in of and peers:
            us, peer = min(peers)
            found.append(Ratio(key, of[RUNG], peer, us, of.get(BF16)))
    return found


def mean(found: Iterable[Ratio]) -> float:
    """The geometric mean of the ratios, of which there is at least one."""
    return statistics.geometric_mean(one.value for one in found)


def summary(data: Any) -> list[str]:
    """A sentence for each state about all its ratios, and one about BF16."""
    sentences, best = [], dict.fromkeys(PEERS[impl] for impl in BLOCK_SCALED)
    used: dict[str, None] = {}
    for state, words in STATES.items():
        found = ratios(data, state)
        if not found:
            continue
        used |= dict.fromkeys(PEERS[one.peer] for one in found)
        worst = min(found, key=lambda one: one.value)
        share = sum(one.value >= 1 for one in found) / len(found)
        sentences.append(
            f"{words[0].upper()}{words[1:]}: the geometric mean of {len(found)} ratios is {mean(found):.2f}, "
            f"{100 * share:.0f}% are 1 or more, and the least is {worst.value:.2f} ({worst.name})."
        )
    if missing := [name for name in best if name not in used]:
        sentences.append(f"Never the best, or not measured: {', '.join(missing)}.")
    return sentences


def table(data: Any) -> list[list[str]]:
    """The geometric mean of the ratios by m of the dense products, and by layout of the grouped ones, in each
    state, as cells; the first row is the header."""
    cells = [["ratios at", *STATES.values()]]
    of_states = [ratios(data, state) for state in STATES]
    ms = sorted({one.key[2] for found in of_states for one in found if one.key[0] == "dense"})
    chosen: list[tuple[str, str, int | None]] = [(f"m = {m}", "dense", m) for m in ms]
    chosen += [(words, kind, None) for kind, words in SECTIONS.items() if kind != "dense"]
    for words, kind, m in chosen:
        row = [words]
        for found in of_states:
            here = [one for one in found if one.key[0] == kind and m in (None, one.key[2])]
            row.append(f"{mean(here):.3f} ({len(here)})" if here else "-")
        if row[1:] != ["-"] * len(STATES):
            cells.append(row)
    return cells


def notes(data: Any) -> list[str]:
    """What stands under the table and the picture: the summary, and what was not measured."""
    refused = data["meta"].get("not_measurable", [])
    sizes = ", ".join(dict.fromkeys(f"{one['n']} x {one['k']}" for one in refused))
    why = "for n a multiple of 8 is needed, for k one of 128"
    sentences = [f"{len(refused)} weights and cuts cannot be multiplied ({sizes}): {why}."]
    in_parts = any(
        one.key[0] != "dense" and one.peer == "cublaslt_blockwise" for one in ratios(data, "dirty")
    )
    return [*summary(data), *([GROUP_BY_GROUP] if in_parts else []), *(sentences if refused else [])]


def provenance_of(data: Any, protocol: bool = False) -> list[str]:
    """Where the figures come from."""
    return provenance([Series(impl, {}, data["meta"]) for impl in (RUNG, *BLOCK_SCALED)], protocol)


def libraries(meta: Any) -> str:
    """Which libraries with the same scales were measured."""
    version = meta.get("deep_gemm")
    if version is None:
        return "cuBLASLt; DeepGEMM was not installed"
    return f"DeepGEMM{'' if version == 'unknown' else f' {version}'} or cuBLASLt"


def readme(data: Any) -> str:
    """What README.md says of this file: the picture and the summary."""
    meta = data["meta"]
    products = len({key_of(row) for row in data["rows"]})
    models = len({one["model"] for one in meta["weights"]})
    of_states = {words: found for state, words in STATES.items() if (found := ratios(data, state))}
    means = ", ".join(f"{mean(found):.2f} {words}" for words, found in of_states.items())
    shares = ", ".join(
        f"{100 * sum(one.value >= 1 for one in found) / len(found):.0f}%" for found in of_states.values()
    )
    sentences = [
        f"{products} products with the weights of {models} public models, whole and cut for 2, 4 and 8 GPUs, "
        f"on an {meta['gpu']}. The ratio is the time of the best library with the same scales "
        f"({libraries(meta)}) over ours. Its geometric mean is {means}; it is 1 or more at {shares} of them.",
    ]
    text = "\n".join(textwrap.wrap(" ".join(sentences), 118, break_on_hyphens=False))
    return (
        "![The time of the best library over ours by weight and m, with L2 dirty and clean and in a CUDA "
        f"graph](figures/everywhere.png)\n\n{text}"
    )


def lines(data: Any) -> list[Line]:
    """The rows of the picture: every weight of which a product was measured, by kind; equal ones once."""
    measured_sizes: dict[str, set[tuple[int, int]]] = {}
    for row in data["rows"]:
        measured_sizes.setdefault(row["kind"], set()).add((row["n"], row["k"]))
    found = []
    for kind in SECTIONS:
        names: dict[tuple[tuple[int, int], ...], list[tuple[str, str]]] = {}
        for one in data["meta"]["weights"]:
            if (one["experts"] > 1) == (kind != "dense"):
                sizes = tuple(dict.fromkeys((n, k) for n, k in one["sizes"]))
                if set(sizes) & measured_sizes.get(kind, set()):
                    names.setdefault(sizes, []).append((one["model"], one["linear"]))
        for sizes, of in names.items():
            others = f" and {len(of) - 1} more" if len(of) > 1 else ""
            model, linear = of[0]
            n, k = sizes[0]
            found.append(Line(kind, f"{model} {linear}{others}, {n} x {k}", sizes))
    return found


def picture(data: Any) -> Any:
    """A matplotlib Figure: a heat map for each state, weights down and m across, and below it how its ratios
    are distributed."""
    rows, states = lines(data), [state for state in STATES if ratios(data, state)]
    ms = sorted({row["m"] for row in data["rows"]})
    places = _places(rows)
    heat, gap, bars = 0.135 * (max(places, default=0) + 1), 0.95, 1.5
    below = [
        "A square is the geometric mean over the cuts of its weight that were measured at this m (of a "
        "grouped product: the mean rows of a group). White: not measured. 'and 1 more': another linear has "
        "this size. Below, how many products have which ratio, and their geometric mean.",
        *notes(data),
        *provenance_of(data),
    ]
    figure, bottom, top = sheet(
        WIDTH,
        heat + gap + bars,
        "The weights of public models, beside the best library of the same run",
        f"The time of the best library ({libraries(data['meta'])}) over ours, all with 1x128 and 128x128 "
        "scales: above 1 ours is faster",
        below,
    )
    inch = (top - bottom) / (heat + gap + bars)
    left, width, between = 0.39, 0.185, 0.0175
    counts: list[Any] = []
    for index, state in enumerate(states):
        x = left + index * (width + between)
        found = ratios(data, state)
        axes = figure.add_axes((x, top - heat * inch, width, heat * inch))
        mesh = _heat(axes, rows, places, ms, found)
        axes.set_title(textwrap.fill(STATES[state], 28), loc="left", size=9, color=INK, pad=6)
        if index == 0:
            _names(axes, rows, places)
        counts.append(figure.add_axes((x, bottom, width, bars * inch)))
        _distribution(counts[-1], found)
    most = max((axes.get_ylim()[1] for axes in counts), default=1)
    for index, axes in enumerate(counts):  # one scale, whose numbers are at the first
        axes.set_ylim(0, most)
        axes.tick_params(labelleft=index == 0)
    if states:
        _scale(figure, (0.04, bottom + 0.5 * bars * inch, 0.24, 0.1 * inch), mesh)
    return figure


def _places(rows: Sequence[Line]) -> list[float]:
    """Where the rows are, with room for a heading above each kind."""
    places: list[float] = []
    for index, one in enumerate(rows):
        new = index == 0 or one.kind != rows[index - 1].kind
        places.append((places[-1] + 1 if places else 0) + (1.6 if new else 0))
    return places


def _heat(
    axes: Any, rows: Sequence[Line], places: Sequence[float], ms: Sequence[int], found: Sequence[Ratio]
) -> Any:
    from matplotlib.collections import PatchCollection
    from matplotlib.colors import LinearSegmentedColormap, Normalize
    from matplotlib.patches import Rectangle

    at: dict[tuple[str, int, int, int], list[Ratio]] = {}
    for one in found:
        kind, _, m, n, k, _, _ = one.key
        at.setdefault((kind, m, n, k), []).append(one)
    squares, values = [], []
    for row, y in zip(rows, places, strict=True):
        for x, m in enumerate(ms):
            here = [one for n, k in row.sizes for one in at.get((row.kind, m, n, k), ())]
            if here:
                squares.append(Rectangle((x - 0.5, y - 0.5), 1, 1))
                values.append(math.log2(mean(here)))
    colours = LinearSegmentedColormap.from_list("ratio", [SLOWER, "#efefef", FASTER])
    bound = math.log2(LIMIT)
    mesh = PatchCollection(squares, cmap=colours, norm=Normalize(-bound, bound), linewidths=0)
    mesh.set_array(values)
    axes.add_collection(mesh)
    axes.set_xlim(-0.5, len(ms) - 0.5)
    axes.set_ylim(max(places, default=0) + 0.5, -0.2)
    axes.set_xticks(range(0, len(ms), 2), list(map(str, ms))[::2], rotation=90)
    axes.set_xlabel("m", size=SIZE, color=MUTED, labelpad=2)
    axes.set_yticks([])
    frame(axes, "x", labels=SIZE)
    axes.grid(color=GRID, linewidth=0.4)
    axes.set_axisbelow(True)
    return mesh


def _names(axes: Any, rows: Sequence[Line], places: Sequence[float]) -> None:
    axes.set_yticks(places, [one.name for one in rows])
    axes.tick_params(axis="y", labelsize=SIZE)
    axes.grid(visible=False, axis="y")
    for index, (one, y) in enumerate(zip(rows, places, strict=True)):
        if index == 0 or one.kind != rows[index - 1].kind:
            axes.annotate(
                SECTIONS[one.kind], (0.03, y - 1), xycoords=("figure fraction", "data"), size=SIZE + 0.5,
                color=INK, weight="bold", va="center", annotation_clip=False,
            )  # fmt: skip


def _distribution(axes: Any, found: Sequence[Ratio]) -> None:
    """How many products have which ratio, the dense ones and the grouped ones stacked."""
    bound, step = math.log2(LIMIT), math.log2(LIMIT) / 16
    edges = [-bound + step * index for index in range(33)]
    groups = {
        "dense": [one for one in found if one.key[0] == "dense"],
        "grouped": [one for one in found if one.key[0] != "dense"],
    }
    shown = {name: of for name, of in groups.items() if of}
    values = [[min(bound, max(-bound, math.log2(one.value))) for one in of] for of in shown.values()]
    labels = [f"{len(of)} {name}: {mean(of):.2f}" for name, of in shown.items()]
    axes.hist(
        values, edges, stacked=True, color=["#3b528b", "#8fa3c7"][: len(values)], label=labels, zorder=2
    )
    axes.plot([0, 0], [0, axes.get_ylim()[1]], color=INK, linewidth=1, zorder=3)
    ticks = [1 / 1.4, 1, 1.4]
    axes.set_xticks([math.log2(tick) for tick in ticks], [f"{tick:.2f}" for tick in ticks])
    axes.set_xlim(-bound, bound)
    axes.set_ylim(0, axes.get_ylim()[1] * 1.5)
    axes.legend(loc="upper left", fontsize=SIZE, frameon=False, borderpad=0)
    frame(axes, "y", labels=SIZE)


def _scale(figure: Any, place: tuple[float, float, float, float], mesh: Any) -> None:
    """The colours and their ratios."""
    axes = figure.add_axes(place)
    ticks = [1 / LIMIT, 1 / 1.25, 1, 1.25, LIMIT]
    bar = figure.colorbar(mesh, cax=axes, orientation="horizontal", ticks=[math.log2(tick) for tick in ticks])
    bar.ax.set_xticklabels([f"{tick:.2f}" for tick in ticks])
    bar.outline.set_visible(False)
    axes.tick_params(labelsize=SIZE, length=0, colors=INK)
    axes.set_title("best library's time over ours", loc="left", size=SIZE, color=MUTED, pad=4)
