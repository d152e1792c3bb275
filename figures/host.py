"""What a call costs the host, from data/host.json: README.md's table, and figures/host.png.

A row of host.json is {quantity, impl, kind, groups, m, n, k, us, us_p10, us_p90}; quantity is "call",
"first_build", "cached_load" or "first_call" (kernels/host_times.py says what each is), us microseconds.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from . import measured
from .measured import Data
from .sheet import INK, MUTED, frame, sheet

META_FIELDS = (*measured.META_FIELDS, "cpu", "python", "sources")
ROW_FIELDS = ("quantity", "impl", "kind", "groups", "m", "n", "k", "us", "us_p10", "us_p90")

LABELS = {
    "torch_mm": "torch.mm",
    "torch_mm_out": "torch.mm, into a given output",
    "cublaslt_tensorwise": "torch._scaled_mm, a scale per tensor",
    "cublaslt_blockwise": "torch scaled_mm, block scales",
    "deep_gemm": "DeepGEMM",
    "deep_gemm_v1": "DeepGEMM v1",
    "first_build": "first build",
    "cached_load": "load from the cache",
    "first_call": "first call, kernel in the cache",
}
COMPARED_WITH = "torch_mm_out"  # gemm_ladder's functions are given an output, too
OURS, PEER = "#2a788e", "#9a9a9a"


def load(path: Path) -> Data:
    """host.json. Raises ValueError where it does not have the form that the module's docstring gives."""
    return measured.load(path, META_FIELDS, ROW_FIELDS)


def name_of(row: Data) -> str:
    if row["quantity"] != "call":
        return LABELS[row["quantity"]]
    return LABELS.get(row["impl"], f"gemm_ladder.{row['impl']}")


def table(data: Data) -> list[list[str]]:
    """The times as cells; the first row is the header."""
    yardstick = next((row["us"] for row in data["rows"] if row["impl"] == COMPARED_WITH), None)
    cells = [["on the host", "median", "10th to 90th percentile", "of torch.mm's"]]
    for row in data["rows"]:
        spread = f"{duration(row['us_p10'])} to {duration(row['us_p90'])}"
        part = f"{row['us'] / yardstick:.2f}" if row["quantity"] == "call" and yardstick else "-"
        cells.append([name_of(row), duration(row["us"]), spread, part])
    return cells


def duration(us: float) -> str:
    """Three digits of a time, in the unit that fits."""
    for unit, size in (("s", 1e6), ("ms", 1e3)):
        if us >= size:
            return f"{us / size:.3g} {unit}"
    return f"{us:.3g} us"


def shape_of(data: Data) -> str:
    return " x ".join(str(data["rows"][0][size]) for size in "mnk")


def provenance(data: Data, protocol: bool = False) -> list[str]:
    """Where the figures come from."""
    meta = data["meta"]
    sentence = (
        f"{meta['cpu']}, {meta['gpu']}; driver {meta['driver']}, CUDA {meta['cuda']}, torch {meta['torch']}, "
        f"Python {meta['python']}; {meta['date']}, kernel sources {meta['sources'][:12]}."
    )
    return [sentence + (f" Protocol: {meta['protocol']}." if protocol else "")]


def elsewhere(peers: Data | None) -> list[str]:
    """What peers.json says of other libraries' calls: its meta's host_us, microseconds by implementation."""
    if not peers:
        return []
    meta = peers["meta"]
    found = ", ".join(f"{LABELS[impl]} {duration(us)}" for impl, us in meta["host_us"].items())
    return [f"A call in another run ({meta['gpu']}, torch {meta['torch']}, {meta['date']}): {found}."]


def picture(data: Data, peers: Data | None) -> Any:
    """A bar for each call, and one for each of a kernel's starts below, a matplotlib Figure: medians, with
    lines from the 10th to the 90th percentile."""
    calls = [row for row in data["rows"] if row["quantity"] == "call"]
    starts = [row for row in data["rows"] if row["quantity"] != "call"]
    heights = [0.3 * len(rows) for rows in (calls, starts)]
    figure, bottom, top = sheet(
        9,
        sum(heights) + (0.9 if starts else 0),
        "What a call costs the host",
        f"Time of the CPU for a product of {shape_of(data)}, whatever the GPU then needs",
        [
            "Medians; lines from the 10th to the 90th percentile. Grey: torch and DeepGEMM.",
            *provenance(data),
            *elsewhere(peers),
        ],
    )
    inch = (top - bottom) / (sum(heights) + (0.9 if starts else 0))
    axes = figure.add_axes((0.37, top - heights[0] * inch, 0.55, heights[0] * inch))
    _bars(axes, calls, "a call, microseconds")
    axes.set_xlim(0, 1.15 * max(row["us_p90"] for row in calls))
    if starts:
        axes = figure.add_axes((0.37, bottom, 0.55, heights[1] * inch))
        _bars(axes, starts, "until a kernel is there, milliseconds, logarithmic", 1e-3)
        axes.set_xscale("log")
        axes.set_xlim(0.3e-3 * min(row["us"] for row in starts), 4e-3 * max(row["us"] for row in starts))
        axes.xaxis.set_major_formatter("{x:g}")
    return figure


def _bars(axes: Any, rows: list[Data], title: str, unit: float = 1.0) -> None:
    for y, row in enumerate(rows):
        low, us, high = (row[field] * unit for field in ("us_p10", "us", "us_p90"))
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
