"""What a call costs the host, from data/host.json: a table of figures/README.md, and figures/host.png."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from . import measured
from .rows import HostFile, HostMeta, HostRow, fields
from .sheet import INK, MUTED, frame, sheet

META_FIELDS = fields(HostMeta)
ROW_FIELDS = fields(HostRow)

LABELS = {
    "torch_mm": "torch.mm",
    "torch_mm_out": "torch.mm, into a given output",
    "cublaslt_tensorwise": "torch._scaled_mm, a scale per tensor",
    "cublaslt_blockwise": "torch scaled_mm, block scales",
    "deep_gemm": "DeepGEMM",
    "first_build": "first build",
    "cached_load": "load from the cache",
    "first_call": "first call, kernel in the cache",
    "one_core_call": "first call on one core, with its build",
    "warm_up": "a weight's warm-up, with its builds",
    "cached_warm_up": "a weight's warm-up, kernels in the cache",
}
COMPARED_WITH = "torch_mm_out"  # because gemm_ladder's functions are given an output too
OURS, PEER = "#2a788e", "#9a9a9a"


def load(path: Path) -> HostFile:
    """host.json. Raises ValueError where a field of its form is missing."""
    return cast(HostFile, measured.load(path, META_FIELDS, ROW_FIELDS))


def name_of(row: HostRow) -> str:
    if row["quantity"] != "call":
        return LABELS[row["quantity"]]
    return LABELS.get(row["impl"], f"gemm_ladder.{row['impl']}")


def table(data: HostFile) -> list[list[str]]:
    """The times as cells; the first row is the header."""
    yardstick = next((row["us"] for row in data["rows"] if row["impl"] == COMPARED_WITH), None)
    cells = [["on the host", "median", "10th to 90th percentile", "over torch.mm's"]]
    for row in data["rows"]:
        spread = f"{duration(row['us_p10'])} to {duration(row['us_p90'])}"
        ratio = f"{row['us'] / yardstick:.2f}" if row["quantity"] == "call" and yardstick else "-"
        cells.append([name_of(row), duration(row["us"]), spread, ratio])
    return cells


def duration(us: float) -> str:
    """Three digits of a time, in the unit that fits."""
    for unit, size in (("s", 1e6), ("ms", 1e3)):
        if us >= size:
            return f"{us / size:.3g} {unit}"
    return f"{us:.3g} us"


def shape_of(data: HostFile) -> str:
    first = data["rows"][0]
    return measured.name_of((first["m"], first["n"], first["k"]))


def provenance(data: HostFile, protocol: bool = False) -> list[str]:
    """Where the figures come from."""
    meta = data["meta"]
    sentence = (
        f"{meta['cpu']}, {meta['gpu']}; driver {meta['driver']}, CUDA {meta['cuda']}, torch {meta['torch']}, "
        f"Python {meta['python']}; {meta['date']}, kernel sources {meta['sources'][:12]}."
    )
    return [sentence + (f" Protocol: {meta['protocol']}." if protocol else "")]


def picture(data: HostFile) -> Any:
    """A matplotlib Figure: a bar for each call; below, one for each way to get a kernel ready. Bars are
    medians, lines go from the 10th to the 90th percentile."""
    calls = [row for row in data["rows"] if row["quantity"] == "call"]
    starts = [row for row in data["rows"] if row["quantity"] != "call"]
    heights = [0.3 * len(rows) for rows in (calls, starts)]
    figure, bottom, top = sheet(
        9,
        sum(heights) + (0.9 if starts else 0),
        "What a call costs the host",
        f"CPU time for a product of {shape_of(data)}; the GPU's time is not in it",
        ["Medians; lines from the 10th to the 90th percentile. Grey: other libraries.", *provenance(data)],
    )
    inch = (top - bottom) / (sum(heights) + (0.9 if starts else 0))
    axes = figure.add_axes((0.37, top - heights[0] * inch, 0.55, heights[0] * inch))
    _bars(axes, calls, "a call, microseconds")
    axes.set_xlim(0, 1.15 * max(row["us_p90"] for row in calls))
    if starts:
        axes = figure.add_axes((0.37, bottom, 0.55, heights[1] * inch))
        _bars(axes, starts, "until a kernel is ready, milliseconds, logarithmic", 1e-3)
        axes.set_xscale("log")
        axes.set_xlim(0.3e-3 * min(row["us"] for row in starts), 4e-3 * max(row["us"] for row in starts))
        axes.xaxis.set_major_formatter("{x:g}")
    return figure


def _bars(axes: Any, rows: Sequence[HostRow], title: str, unit: float = 1.0) -> None:
    for y, row in enumerate(rows):
        low, us, high = row["us_p10"] * unit, row["us"] * unit, row["us_p90"] * unit
        mine = row["impl"] not in LABELS
        axes.barh(y, us, height=0.65, color=OURS if mine else PEER, zorder=2)
        axes.plot([low, high], [y, y], color=INK, linewidth=1.2, zorder=3)
        axes.annotate(
            duration(row["us"]), (max(us, high), y), (5, 0), textcoords="offset points", size=8.5, color=INK,
            va="center",
        )  # fmt: skip
    axes.set_yticks(range(len(rows)), list(map(name_of, rows)))
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_title(title, loc="left", size=9, color=MUTED)
    frame(axes, "x")
