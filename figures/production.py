"""The production kernels beside the best block-scaled peer: the comparison, and figures/production.png.

From data/production.json and data/peers.json. The time of a peer that is not in the production kernels' own
run is another run's, on the same GPU model, times what YARDSTICKS take in this run over what they took in
that one: at the row itself if it is dense, else the median of the dense rows.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

from .measured import PEERS, Data, Series, provenance
from .sheet import INK, MUTED, frame, sheet

RUNG = "s7_production"
BLOCK_SCALED = ("cublaslt_blockwise", "deep_gemm_v1", "deep_gemm")  # the same product
YARDSTICKS = ("cublaslt_tensorwise", "cublas_bf16")
KINDS = ("dense", "contiguous", "masked")
FASTER, SLOWER = "#2a788e", "#d8576b"
FOREIGN = "†"

Key = tuple[str, int, int, int, int]  # kind, groups, m, n, k


class Compared(NamedTuple):
    """A row of the table: what was measured, and the best block-scaled peer (None where there is none)."""

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
    foreign: bool  # the peer's time comes from another run

    @property
    def key(self) -> Key:
        return self[:5]

    @property
    def name(self) -> str:
        groups = f"{self.groups} of " if self.kind != "dense" else ""
        return f"{groups}{self.m} x {self.n} x {self.k}"

    @property
    def peer_name(self) -> str:
        return f"{PEERS[self.peer]}{FOREIGN if self.foreign else ''}" if self.peer else "-"

    @property
    def ratio(self) -> float | None:
        """How many times as fast as the peer."""
        return self.peer_us / self.us if self.peer_us else None


def key_of(row: Data) -> Key:
    return row["kind"], row["groups"], row["m"], row["n"], row["k"]


def times(data: Data, l2: str) -> dict[str, dict[Key, float]]:
    """Microseconds by implementation and row."""
    found: dict[str, dict[Key, float]] = {}
    for row in data["rows"]:
        if row["l2"] == l2:
            found.setdefault(row["impl"], {})[key_of(row)] = row["us"]
    return found


def compared(production: Data, peers: Data | None, l2: str) -> list[Compared]:
    """Every row of the production kernels, by kind, m, k and n, beside its best block-scaled peer."""
    here = times(production, l2)
    there = times(peers, l2) if peers and peers["meta"]["gpu"] == production["meta"]["gpu"] else {}
    slower = {
        key: statistics.geometric_mean(
            here[impl][key] / there[impl][key]
            for impl in YARDSTICKS
            if key in here.get(impl, {}) and key in there.get(impl, {})
        )
        for key in set().union(*(here.get(impl, {}).keys() & there.get(impl, {}) for impl in YARDSTICKS))
        if key[0] == "dense"
    }
    usual = statistics.median(slower.values()) if slower else None
    found = []
    for row in production["rows"]:
        if row["impl"] != RUNG or row["l2"] != l2:
            continue
        key = key_of(row)
        factor = slower.get(key) if row["kind"] == "dense" else usual
        candidates = []
        for peer in BLOCK_SCALED:
            if key in here.get(peer, {}):
                candidates.append((here[peer][key], peer, False))
            elif factor and key in there.get(peer, {}):
                candidates.append((there[peer][key] * factor, peer, True))
        us, peer, foreign = min(candidates, default=(None, None, False))
        found.append(Compared(*key, row["us"], row["tflops"], row["gb_s"], peer, us, foreign))
    return sorted(found, key=lambda one: (KINDS.index(one.kind), one.m, one.groups, one.k, one.n))


def geometric_mean(rows: Sequence[Compared]) -> float | None:
    """Of the ratios that there are."""
    ratios = [one.ratio for one in rows if one.ratio]
    return statistics.geometric_mean(ratios) if ratios else None


def table(rows: Sequence[Compared]) -> list[list[str]]:
    """The comparison as cells; the first row is the header."""
    cells = [["m x n x k", "kind", "us", "TFLOPS", "GB/s", "best peer", "its us", "ratio"]]
    for one in rows:
        theirs = [f"{one.peer_us:.2f}", f"{one.ratio:.3f}"] if one.ratio else ["-", "-"]
        mine = [f"{one.us:.2f}", f"{one.tflops:.0f}", f"{one.gb_s:.0f}"]
        cells.append([one.name, one.kind, *mine, one.peer_name, *theirs])
    return cells


def summary(rows: Sequence[Compared]) -> list[str]:
    """The ratios in a sentence, and what the mark at a peer means."""
    sentences = []
    if mean := geometric_mean(rows):
        ratios = [one.ratio for one in rows if one.ratio]
        sentences.append(
            f"Geometric mean of {len(ratios)} ratios: {mean:.3f}; {sum(ratio >= 1 for ratio in ratios)} are "
            "1 or more."
        )
    if any(one.foreign for one in rows):
        sentences.append(
            f"{FOREIGN} another run on the same GPU model, times what {' and '.join(YARDSTICKS)} take in "
            "this one over what they took there (a grouped row: the median of the dense ones)."
        )
    return sentences


def notes(
    rows: Sequence[Compared], production: Data, peers: Data | None, protocol: bool = False
) -> list[str]:
    """What stands under the table and the picture: the summary, and where the figures come from."""
    impls = {RUNG: False} | {one.peer: one.foreign for one in rows if one.peer}
    shown = [
        Series(impl, {}, peers["meta"] if foreign else production["meta"]) for impl, foreign in impls.items()
    ]
    return [*summary(rows), *provenance(shown, protocol)]


def picture(production: Data, peers: Data | None) -> Any:
    """The ratios as bars that begin at 1, a matplotlib Figure: faster to the right, slower to the left."""
    rows = compared(production, peers, "dirty")
    positions = _positions(rows)
    figure, bottom, top = sheet(
        11,
        0.24 * (positions[-1] + 1),
        "The production kernels beside the best peer",
        "The best block-scaled peer's time over theirs: 1 is as fast, more is faster. Kernel time, L2 cold "
        "and dirty",
        notes(rows, production, peers),
    )
    axes = figure.add_axes((0.25, bottom, 0.5, top - bottom))
    for y, one in zip(positions, rows, strict=True):
        if one.ratio is None:
            continue
        side = 1 if one.ratio >= 1 else -1
        axes.barh(y, one.ratio - 1, left=1, height=0.7, color=FASTER if side > 0 else SLOWER, zorder=2)
        axes.annotate(
            f"{one.ratio:.2f}", (one.ratio, y), (4 * side, 0), textcoords="offset points", size=8.5,
            color=INK, ha="left" if side > 0 else "right", va="center",
        )  # fmt: skip
    ratios = [1.0, *(one.ratio for one in rows if one.ratio)]
    margin = 0.12 * max(max(ratios) - min(ratios), 0.1)
    axes.set_xlim(min(ratios) - margin, max(ratios) + margin)
    axes.set_ylim(positions[-1] + 0.7, -0.7)
    axes.axvline(1, color=INK, linewidth=1.2, zorder=3)
    axes.set_yticks(positions, [one.name for one in rows])
    frame(axes, "x")
    _columns(axes, positions, rows)
    return figure


def _positions(rows: Sequence[Compared]) -> list[float]:
    """Where the bars are: a little room between numbers of rows, more between kinds."""
    positions = [0.0]
    for index in range(1, len(rows)):
        above, below = rows[index - 1], rows[index]
        gap = 1.0 if above.kind != below.kind else 0.4 if above.m != below.m else 0.0
        positions.append(positions[-1] + 1 + gap)
    return positions


def _columns(axes: Any, positions: Sequence[float], rows: Sequence[Compared]) -> None:
    """Words beside the bars: the kind at its first row, what was measured, and the peer."""

    def say(x: float, y: float, text: str, side: str = "left", **look: Any) -> None:
        place = {"xycoords": ("figure fraction", "data"), "ha": side, "va": "center"}
        axes.annotate(text, (x, y), **place, **{"size": 8.5, "color": INK} | look, annotation_clip=False)

    say(0.835, positions[0] - 1.2, "us", "right", size=8, color=MUTED)
    say(0.855, positions[0] - 1.2, "best peer, us", size=8, color=MUTED)
    seen = set()
    for y, one in zip(positions, rows, strict=True):
        say(0.835, y, f"{one.us:.1f}", "right")
        if one.peer_us:
            say(0.855, y, f"{one.peer_name}, {one.peer_us:.1f}", color=MUTED)
        if one.kind not in seen:
            say(0.022, y, one.kind, weight="bold")
            seen.add(one.kind)
