"""Draw every figure, and rewrite README.md's tables, from data/*.json alone: python figures/draw.py

Needs matplotlib and nothing else: no GPU, no compiler, no gemm_ladder. The files:

    data/ladder.json   the rungs, and the peers measured in the same run (python -m gemm_ladder compare)
    data/peers.json    the peers as they were measured before there was a rung
    data/interleave.json   rung 6 in each of its modes (python -m gemm_ladder interleave)

A file is {"schema": 1, "meta": {gpu, driver, cuda, torch, date, sources, protocol, ...}, "rows": [{kind,
groups, m, n, k, impl, l2, us, us_p10, us_p90, tflops, gb_s, rel_err}, ...]}; us is microseconds, tflops and
gb_s count valid rows.
"""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
DATA = HERE / "data"

Data = dict[str, Any]
Size = tuple[int, int, int]  # m, n, k

SCHEMA = 1
ROW_FIELDS = (
    "kind", "groups", "m", "n", "k", "impl", "l2", "us", "us_p10", "us_p90", "tflops", "gb_s", "rel_err",
)  # fmt: skip
META_FIELDS = ("gpu", "num_sms", "power_limit_w", "driver", "cuda", "nvcc", "torch", "date", "protocol")

# Everything that is not a rung, in the order in which it is shown.
PEERS = {
    "cublas_bf16": "cuBLAS BF16",
    "cublaslt_blockwise": "cuBLASLt",
    "deep_gemm_v1": "DeepGEMM v1",
    "deep_gemm": "DeepGEMM",
    "cublaslt_tensorwise": "cuBLASLt ceiling*",
}
CEILING = "* one scale per tensor and no promotion: a ceiling, not the same product"


# ------------------------------------------------------------------------------------------------- the data


class Series(NamedTuple):
    """One implementation's TFLOPS by (m, n, k), and the meta of the file that they come from."""

    impl: str
    tflops: dict[Size, float]
    meta: Data

    @property
    def label(self) -> str:
        return PEERS.get(self.impl, self.impl)

    @property
    def is_peer(self) -> bool:
        return self.impl in PEERS


def load(path: Path) -> Data:
    """A data file. Raises ValueError where it does not have the form that the module's docstring gives."""
    data = json.loads(path.read_text(encoding="utf-8"))
    check(data, path.name)
    return data


def check(data: Data, name: str) -> None:
    """Raise ValueError where `data` is not of the form that the module's docstring gives."""
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        raise ValueError(f'{name} has no "schema": {SCHEMA}, which is the only form that is understood')
    if missing := [field for field in META_FIELDS if field not in data.get("meta", {})]:
        raise ValueError(f"{name} lacks {', '.join(missing)} in its meta")
    for index, row in enumerate(data.get("rows", [])):
        if missing := [field for field in ROW_FIELDS if field not in row]:
            raise ValueError(f"{name} lacks {', '.join(missing)} in row {index}")


def recorded(folder: Path = DATA) -> list[Data]:
    """The data files that there are, the rungs' first."""
    return [load(folder / name) for name in ("ladder.json", "peers.json") if (folder / name).exists()]


def series(files: Iterable[Data], l2: str) -> list[Series]:
    """The dense rows measured with L2 in the state `l2`: rungs in the ladder's order, then the peers.

    An implementation that is in several files is taken from the first. Files of another GPU than the first
    one's are left out: their figures cannot stand beside it.
    """
    found: dict[str, Series] = {}
    gpu = None
    for data in files:
        gpu = gpu or data["meta"]["gpu"]
        if data["meta"]["gpu"] != gpu:
            continue
        earlier = set(found)
        for row in data["rows"]:
            if row["kind"] == "dense" and row["l2"] == l2 and row["impl"] not in earlier:
                one = found.setdefault(row["impl"], Series(row["impl"], {}, data["meta"]))
                one.tflops[row["m"], row["n"], row["k"]] = row["tflops"]
    peers = list(PEERS)
    return sorted(
        found.values(), key=lambda one: (one.is_peer, peers.index(one.impl) if one.is_peer else one.impl)
    )


def sizes_of(shown: Iterable[Series]) -> list[Size]:
    """Every (m, n, k) of these series: by m, then by the length of the sum."""
    return sorted(
        {size for one in shown for size in one.tflops}, key=lambda size: (size[0], size[2], size[1])
    )


def number(tflops: float | None) -> str:
    """Three digits, or a dash for what was not measured."""
    if tflops is None:
        return "-"
    return f"{tflops:.0f}" if tflops >= 100 else f"{tflops:.3g}"


def provenance(shown: Sequence[Series], protocol: bool = False) -> list[str]:
    """Where the figures come from: a line for each measurement that they are taken from."""
    sentences = []
    for meta in {id(one.meta): one.meta for one in shown}.values():
        rungs = [one.label for one in shown if one.meta is meta and not one.is_peer]
        peers = [one.label for one in shown if one.meta is meta and one.is_peer]
        names = ", ".join(([f"{rungs[0]} to {rungs[-1]}"] if len(rungs) > 2 else rungs) + peers)
        power = f", {meta['power_limit_w']} W" if meta["power_limit_w"] else ""
        nvcc = f", nvcc {meta['nvcc']}" if meta["nvcc"] else ""
        sources = f", kernel sources {meta['sources'][:12]}" if meta.get("sources") else ""
        sentences.append(
            f"{names}: {meta['gpu']}, {meta['num_sms']} SMs{power}; driver {meta['driver']}, "
            f"CUDA {meta['cuda']}{nvcc}, torch {meta['torch']}; {meta['date']}{sources}."
            + (f" Protocol: {meta['protocol']}." if protocol else "")
        )
    return sentences


# --------------------------------------------------------------------------------------------------- tables


def table(shown: Sequence[Series]) -> list[list[str]]:
    """TFLOPS by shape, as cells; the first row is the header."""
    cells = [["m x n x k", *(one.label for one in shown)]]
    for size in sizes_of(shown):
        cells.append([" x ".join(map(str, size)), *(number(one.tflops.get(size)) for one in shown)])
    return cells


def plain(cells: Sequence[Sequence[str]]) -> str:
    """A table for a terminal."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(f"{cell:{'<' if not i else '>'}{widths[i]}}" for i, cell in enumerate(row)).rstrip()
        for row in cells
    )


def markdown(cells: Sequence[Sequence[str]]) -> str:
    """A table for README.md."""
    lines = ["| " + " | ".join(row) + " |" for row in cells]
    lines.insert(1, "|---|" + "---:|" * (len(cells[0]) - 1))
    return "\n".join(lines)


def readme_table(files: Sequence[Data], l2: str) -> str:
    """What stands in README.md between the markers of the table `l2`."""
    shown = series(files, l2)
    notes = [f"{CEILING}.", *provenance(shown, protocol=True)]
    body = markdown(table(shown)) + "\n\n" + "\n".join(f"<sub>{note}</sub><br>" for note in notes)
    return body.replace("*", r"\*")


def rewrite(text: str, name: str, body: str) -> str:
    """`text` with what stands between <!-- name:begin --> and <!-- name:end --> replaced.

    Raises ValueError where the markers are not there once each, in this order.
    """
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise ValueError(f"the text needs {begin} and, after it, {end}, once each")
    head, tail = text.split(begin)[0], text.split(end)[1]
    return f"{head}{begin}\n{body}\n{end}{tail}"


def interleave_table(data: Data) -> str:
    """What stands in README.md between the markers of the table `interleave`: microseconds, with spread."""
    shown = series([data], "dirty")
    modes = list(dict.fromkeys(row["impl"] for row in data["rows"]))
    found = {(row["m"], row["n"], row["k"], row["impl"]): row for row in data["rows"]}
    cells = [["m x n x k", *modes]]
    for size in sizes_of(shown):
        rows = [found[(*size, mode)] for mode in modes]
        spread = [f"{row['us']:.1f} ({row['us_p10']:.1f} to {row['us_p90']:.1f})" for row in rows]
        cells.append([" x ".join(map(str, size)), *spread])
    (note,) = provenance(shown)
    return f"{markdown(cells)}\n\n<sub>{note}</sub><br>"


def readme(text: str, files: Sequence[Data], interleave: Data | None = None) -> str:
    """README.md with its tables as the data give them."""
    for l2 in ("dirty", "clean"):
        text = rewrite(text, f"table-{l2}", readme_table(files, l2))
    return rewrite(text, "table-interleave", interleave_table(interleave)) if interleave else text


# -------------------------------------------------------------------------------------------------- figures

INK, MUTED, GRID = "#1a1a1a", "#666666", "#e4e4e4"
# Peers: greys and dashes, so that only rungs have colour.
PEER_STYLES = {
    "cublas_bf16": ("#9a9a9a", (0, (1, 1.5)), "s"),
    "cublaslt_blockwise": ("#7a7a7a", (0, (4, 1.5)), "^"),
    "deep_gemm_v1": ("#9a9a9a", (0, (4, 1.5, 1, 1.5)), "v"),
    "deep_gemm": ("#505050", (0, (4, 1.5, 1, 1.5)), "D"),
    "cublaslt_tensorwise": ("#1a1a1a", (0, (1, 1)), "x"),
}


def ladder(files: Sequence[Data]) -> Any:
    """The picture, a matplotlib Figure: one shape as bars, every shape as lines in a panel for each m."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = series(files, "dirty")
    styles = _styles(shown)
    figure = Figure(figsize=(12, 8.4), facecolor="white")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(2, 2, left=0.13, right=0.88, top=0.86, bottom=0.145, hspace=0.4, wspace=0.5)
    _bars(figure.add_subplot(grid[0, 0]), shown, styles)
    rows = sorted({size[0] for size in sizes_of(shown)})
    for cell, m in zip((grid[0, 1], grid[1, 0], grid[1, 1]), rows, strict=False):
        _lines(figure.add_subplot(cell), shown, styles, m)
    figure.text(
        0.02, 0.965, "One FP8 matrix product, rung by rung", size=16, weight="bold", color=INK, va="center"
    )
    figure.text(
        0.02,
        0.93,
        "TFLOPS on DeepSeek-V3's dense shapes; FP8 with 1x128 and 128x128 scales, BF16 output; kernel time, "
        "L2 cold and dirty",
        size=10,
        color=MUTED,
        va="center",
    )
    notes = [f"{CEILING}. Black and grey: libraries, not rungs.", *provenance(shown)]
    lines = [line for note in notes for line in textwrap.wrap(note, 185, subsequent_indent="    ")]
    figure.text(0.02, 0.015, "\n".join(lines), size=7.5, color=MUTED, va="bottom", linespacing=1.5)
    return figure


def _styles(shown: Sequence[Series]) -> dict[str, dict[str, Any]]:
    """How each implementation is drawn. The rungs go from dark to bright, so that colour-blind eyes, and grey
    printing, keep them apart."""
    from matplotlib import colormaps

    rungs = [one.impl for one in shown if not one.is_peer]
    styles = {}
    for index, impl in enumerate(rungs):
        colour = colormaps["plasma"](0.76 * index / max(len(rungs) - 1, 1))
        styles[impl] = {"color": colour, "linestyle": "-", "marker": "o", "linewidth": 2, "markersize": 5}
    for impl, (colour, dash, marker) in PEER_STYLES.items():
        styles[impl] = {"color": colour, "linestyle": dash, "marker": marker, "linewidth": 1, "markersize": 4}
    return styles


def _bars(axes: Any, shown: Sequence[Series], styles: dict[str, dict[str, Any]]) -> None:
    """The shape with the most work: a bar for each implementation, rungs from the bottom up."""
    largest = max(sizes_of(shown), key=math.prod)
    bars = [one for one in shown if largest in one.tflops]
    gap = 0.6 if bars and not bars[0].is_peer else 0.0
    for index, one in enumerate(bars):
        y = index + (gap if one.is_peer else 0.0)
        value = one.tflops[largest]
        axes.barh(y, value, height=0.7, color=styles[one.impl]["color"], zorder=2)
        axes.annotate(
            number(value), (value, y), (4, 0), textcoords="offset points", size=8.5, color=INK, va="center"
        )
    positions = [index + (gap if one.is_peer else 0.0) for index, one in enumerate(bars)]
    axes.set_yticks(positions, [one.label for one in bars])
    values = [one.tflops[largest] for one in bars]
    logarithmic = max(values) > 20 * min(values)  # an s1_naive would be out of sight
    if logarithmic:
        axes.set_xscale("log")
        axes.set_xlim(min(values) / 3, max(values) * 2.2)
        axes.xaxis.set_major_formatter("{x:g}")
    else:
        axes.set_xlim(0, max(values) * 1.15)
    _title(axes, " x ".join(map(str, largest)), "TFLOPS, logarithmic" if logarithmic else "TFLOPS")
    _frame(axes, "x")


def _lines(axes: Any, shown: Sequence[Series], styles: dict[str, dict[str, Any]], m: int) -> None:
    """All shapes of one m, from the shortest sum to the longest, each line labelled at its end (the
    rungs by their numbers, in the bars' colours)."""
    sizes = [size for size in sizes_of(shown) if size[0] == m]
    ends = []
    for one in shown:
        points = [(x, one.tflops[size]) for x, size in enumerate(sizes) if size in one.tflops]
        if points:
            axes.plot(*zip(*points, strict=True), zorder=3, clip_on=False, **styles[one.impl])
            ends.append((points[-1][1], one))
    top = max(max(one.tflops.get(size, 0) for size in sizes) for one in shown) * 1.06
    axes.set_ylim(0, top)
    axes.set_xlim(-0.3, len(sizes) - 0.7)
    axes.set_xticks(range(len(sizes)), [f"n {n}\nk {k}" for _, n, k in sizes], size=7.5)
    ends.sort(key=lambda end: end[0])
    heights = spread([value for value, _ in ends], 0.062 * top)
    for (value, one), height in zip(ends, heights, strict=True):
        axes.annotate(
            f"{one.label if one.is_peer else one.impl.split('_')[0]}  {number(value)}",
            (len(sizes) - 1, value),
            (len(sizes) - 0.62, height),
            size=8,
            color=MUTED if one.is_peer else styles[one.impl]["color"],
            weight="normal" if one.is_peer else "bold",
            va="center",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": GRID, "linewidth": 0.8, "shrinkA": 0, "shrinkB": 3},
        )
    _title(axes, f"m = {m}", "TFLOPS")
    _frame(axes, "y")


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """Ascending heights moved as little as needed to lie `gap` apart, none below gap / 2."""
    groups: list[
        tuple[float, int]
    ] = []  # (centre, members), each one's members `gap` apart around its centre
    for height in heights:
        centre, count = max(height, gap / 2), 1
        while groups and centre - groups[-1][0] < gap * (count + groups[-1][1]) / 2:
            below, members = groups.pop()
            centre = (centre * count + below * members) / (count + members)
            count += members
            centre = max(centre, gap * count / 2)
        groups.append((centre, count))
    return [centre + gap * (i - (count - 1) / 2) for centre, count in groups for i in range(count)]


def _title(axes: Any, title: str, unit: str) -> None:
    axes.set_title(title, loc="left", size=11, weight="bold", color=INK)
    axes.set_title(unit, loc="right", size=8, color=MUTED)


def _frame(axes: Any, grid: str) -> None:
    axes.grid(axis=grid, color=GRID, linewidth=0.8, zorder=0)
    axes.tick_params(length=0, colors=INK, labelsize=8.5)
    axes.tick_params(axis="x", labelsize=7.5)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(MUTED)


def main(root: Path = HERE.parent) -> None:
    """Draw figures/*.png and rewrite README.md, both under `root`, from figures/data under it."""
    data = root / "figures" / "data"
    files = recorded(data)
    interleave = load(data / "interleave.json") if (data / "interleave.json").exists() else None
    ladder(files).savefig(root / "figures" / "ladder.png", dpi=130, metadata={"Software": None})
    path = root / "README.md"
    path.write_text(readme(path.read_text(encoding="utf-8"), files, interleave), encoding="utf-8")


if __name__ == "__main__":
    main()
