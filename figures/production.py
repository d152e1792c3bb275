"""The production kernels beside the libraries of the same run: the comparison, and figures/production.png.

All from data/production.json. A row is compared with the fastest library that computes the same product, with
the same scales; its ceiling is the fastest product with one scale per tensor (or per row) and no promotion.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

from .measured import CEILING, PEERS, Series, name_of, provenance
from .rows import TimedRow, TimesFile
from .sheet import INK, MUTED, frame, sheet

RUNG = "s9_production"
BLOCK_SCALED = ("cublaslt_blockwise", "deep_gemm")  # these compute the same product
CEILINGS = ("cublaslt_tensorwise", "torch_grouped")
KINDS = ("dense", "contiguous", "masked")
FASTER, SLOWER = "#2a788e", "#d8576b"
GROUP_BY_GROUP = (
    "cuBLASLt has no grouped product with these scales: at a grouped row its time is the sum of one dense "
    "product for each group."
)

Key = tuple[str, int, int, int, int]  # kind, groups, m, n, k


class Compared(NamedTuple):
    """A row of the table. The best block-scaled peer and the ceiling's time are None where there is none."""

    kind: str
    groups: int
    m: int
    n: int
    k: int
    us: float
    tflops: float
    gb_s: float
    peer: str | None
    peer_us: float | None
    ceiling_us: float | None

    @property
    def key(self) -> Key:
        return self.kind, self.groups, self.m, self.n, self.k

    @property
    def name(self) -> str:
        groups = f"{self.groups} of " if self.kind != "dense" else ""
        return groups + name_of((self.m, self.n, self.k))

    @property
    def peer_name(self) -> str:
        return PEERS[self.peer] if self.peer else "-"

    @property
    def ratio(self) -> float | None:
        """The peer's time over this kernel's: above 1, this kernel is faster."""
        return self.peer_us / self.us if self.peer_us else None


def key_of(row: TimedRow) -> Key:
    return row["kind"], row["groups"], row["m"], row["n"], row["k"]


def times(data: TimesFile, l2: str) -> dict[str, dict[Key, float]]:
    """Microseconds by implementation and row."""
    found: dict[str, dict[Key, float]] = {}
    for row in data["rows"]:
        if row["l2"] == l2:
            found.setdefault(row["impl"], {})[key_of(row)] = row["us"]
    return found


def compared(data: TimesFile, l2: str) -> list[Compared]:
    """Every row of the production kernels, by kind, m, k and n, beside its peer and its ceiling."""
    here = times(data, l2)
    found = []
    for row in data["rows"]:
        if row["impl"] != RUNG or row["l2"] != l2:
            continue
        key = key_of(row)
        peers = [(here[impl][key], impl) for impl in BLOCK_SCALED if key in here.get(impl, {})]
        ceilings = [here[impl][key] for impl in CEILINGS if key in here.get(impl, {})]
        us, peer = min(peers, default=(None, None))
        found.append(
            Compared(*key, row["us"], row["tflops"], row["gb_s"], peer, us, min(ceilings, default=None))
        )
    return sorted(found, key=lambda one: (KINDS.index(one.kind), one.m, one.groups, one.k, one.n))


def geometric_mean(rows: Sequence[Compared]) -> float | None:
    """Of the ratios that there are; None if there are none."""
    ratios = [one.ratio for one in rows if one.ratio]
    return statistics.geometric_mean(ratios) if ratios else None


def table(rows: Sequence[Compared]) -> list[list[str]]:
    """The comparison as cells; the first row is the header."""
    cells = [["m x n x k", "kind", "us", "TFLOPS", "GB/s", "best peer", "its us", "ratio", "ceiling*, us"]]
    for one in rows:
        theirs = [f"{one.peer_us:.2f}", f"{one.ratio:.3f}"] if one.peer_us else ["-", "-"]
        mine = [f"{one.us:.2f}", f"{one.tflops:.0f}", f"{one.gb_s:.0f}"]
        ceiling = f"{one.ceiling_us:.2f}" if one.ceiling_us else "-"
        cells.append([one.name, one.kind, *mine, one.peer_name, *theirs, ceiling])
    return cells


def summary(rows: Sequence[Compared]) -> list[str]:
    """The ratios, a sentence for the dense rows and one for the grouped, and how the latter are measured."""
    sentences = []
    for words, chosen in (
        ("dense", [one for one in rows if one.kind == "dense"]),
        ("grouped", [one for one in rows if one.kind != "dense"]),
    ):
        if mean := geometric_mean(chosen):
            ratios = [one.ratio for one in chosen if one.ratio]
            faster = sum(ratio >= 1 for ratio in ratios)
            sentences.append(
                f"Geometric mean of the {len(ratios)} {words} ratios: {mean:.3f}; {faster} are 1 or more."
            )
    if any(one.kind != "dense" and one.peer == "cublaslt_blockwise" for one in rows):
        sentences.append(GROUP_BY_GROUP)
    return sentences


def notes(rows: Sequence[Compared], data: TimesFile, protocol: bool = False) -> list[str]:
    """What stands under the table and the picture: the summary, and where the figures come from."""
    ceiling = [f"{CEILING}."] if any(one.ceiling_us for one in rows) else []
    peers = dict.fromkeys(one.peer for one in rows if one.peer)
    shown = [Series(impl, {}, data["meta"]) for impl in (RUNG, *peers)]
    return [*ceiling, *summary(rows), *provenance(shown, protocol)]


def picture(data: TimesFile) -> Any:
    """The ratios as bars that begin at 1, a matplotlib Figure: faster to the right, slower to the left. A
    vertical line in a row is its ceiling."""
    rows = compared(data, "dirty")
    positions = _positions(rows)
    figure, bottom, top = sheet(
        10,
        0.24 * (positions[-1] + 1),
        "The production kernels beside the best library of the same run",
        "The library's time over theirs, both with 1x128 and 128x128 scales: above 1 they are faster. Kernel "
        "time, L2 cold and dirty",
        ["Vertical lines: the ceiling* of each row, also as time over theirs.", *notes(rows, data)],
    )
    axes = figure.add_axes((0.285, bottom, 0.395, top - bottom))
    ratios = [1.0, *(one.ratio for one in rows if one.ratio)]
    ratios += [one.ceiling_us / one.us for one in rows if one.ceiling_us]
    label = 0.09 * (max(ratios) - min(ratios))  # about as wide as a ratio's number
    for y, one in zip(positions, rows, strict=True):
        ceiling = one.ceiling_us / one.us if one.ceiling_us else None
        if ceiling:
            axes.plot([ceiling, ceiling], [y - 0.42, y + 0.42], color=INK, linewidth=1.6, zorder=4)
        if one.ratio is None:
            continue
        side = 1 if one.ratio >= 1 else -1
        axes.barh(y, one.ratio - 1, left=1, height=0.7, color=FASTER if side > 0 else SLOWER, zorder=2)
        in_the_way = ceiling is not None and 0 <= side * (ceiling - one.ratio) < label
        end = ceiling if in_the_way else one.ratio
        axes.annotate(
            f"{one.ratio:.2f}", (end, y), (4 * side, 0), textcoords="offset points", size=8.5,
            color=INK, ha="left" if side > 0 else "right", va="center",
        )  # fmt: skip
    margin = 0.12 * max(max(ratios) - min(ratios), 0.1)
    axes.set_xlim(min(ratios) - margin, max(ratios) + margin)
    axes.set_ylim(positions[-1] + 0.7, -0.7)
    axes.axvline(1, color=INK, linewidth=1.2, zorder=3)
    axes.set_yticks(positions, [one.name for one in rows])
    frame(axes, "x")
    _columns(axes, positions, rows)
    return figure


def _positions(rows: Sequence[Compared]) -> list[float]:
    """Where the bars are: a little room between different m, more between kinds."""
    positions = [0.0]
    for index in range(1, len(rows)):
        above, below = rows[index - 1], rows[index]
        gap = 1.0 if above.kind != below.kind else 0.4 if above.m != below.m else 0.0
        positions.append(positions[-1] + 1 + gap)
    return positions


def _columns(axes: Any, positions: Sequence[float], rows: Sequence[Compared]) -> None:
    """Words beside the bars: the kind at its first row, then the times."""

    def say(x: float, y: float, text: str, side: str = "left", **look: Any) -> None:
        place = {"xycoords": ("figure fraction", "data"), "ha": side, "va": "center"}
        axes.annotate(text, (x, y), **place, **{"size": 8.5, "color": INK} | look, annotation_clip=False)

    head = positions[0] - 1.2
    say(0.765, head, "us", "right", color=MUTED)
    say(0.785, head, "best peer, us", color=MUTED)
    say(0.98, head, "ceiling*, us", "right", color=MUTED)
    seen = set()
    for y, one in zip(positions, rows, strict=True):
        say(0.765, y, f"{one.us:.1f}", "right")
        if one.peer_us:
            say(0.785, y, f"{one.peer_name}, {one.peer_us:.1f}", color=MUTED)
        if one.ceiling_us:
            say(0.98, y, f"{one.ceiling_us:.1f}", "right", color=MUTED)
        if one.kind not in seen:
            say(0.022, y, one.kind, weight="bold")
            seen.add(one.kind)
