"""The casts to FP8, from data/casts.json: a table of figures/README.md, and figures/casts.png."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from . import measured
from .rows import CastRow, CastsFile, MachineMeta, fields
from .sheet import MUTED, frame, sheet

META_FIELDS = fields(MachineMeta)
ROW_FIELDS = fields(CastRow)
LABELS = {
    "casts": "ours",
    "copy": "copy",
    "empty": "empty kernel",
    "torch": "torch",
    "torch_compile": "torch.compile",
    "vllm": "vLLM",
    "sglang": "SGLang",
}
# How each is marked: matplotlib's marker, its size, and the colour.
MARKS = {
    "casts": ("o", 8, "#2a788e"),
    "copy": ("|", 13, "#1a1a1a"),
    "empty": ("|", 13, "#b5b5b5"),
    "torch": ("s", 5, "#9a9a9a"),
    "torch_compile": ("D", 5, "#9a9a9a"),
    "vllm": ("^", 6, "#c77d3a"),
    "sglang": ("v", 6, "#8a5fa8"),
}
# What may come ahead of a cast, as names of the data say it and in words.
AHEAD = {
    "silu_and_mul_": "SiLU-and-multiply, ",
    "rms_norm_": "RMSNorm, ",
    "gather_": "gather, ",
    "masked_": "masked, ",
}
LINE = 0.3  # inches for a cast
STATE = "dirty"  # the state of L2 that is drawn


def load(path: Path) -> CastsFile:
    """casts.json. Raises ValueError where a field of its form is missing."""
    return cast(CastsFile, measured.load(path, META_FIELDS, ROW_FIELDS))


def function_of(name: str) -> str:
    """The function of gemm_ladder that does a cast of the data."""
    name = name.removeprefix("masked_").removeprefix("gather_").removesuffix("_turned")
    return f"{name}_quant_fp8" if name.endswith("per_block") else f"{name}_group_quant_fp8"


def words(name: str) -> str:
    """A cast of the data in words."""
    turned = name.endswith("_turned")
    text = name.removesuffix("_turned")
    for part, said in {**AHEAD, "per_": "per "}.items():
        text = text.replace(part, said)
    return f"{text}, transposed" if turned else text


def by_case(data: CastsFile, l2: str) -> dict[tuple[str, int, int], dict[str, CastRow]]:
    """The rows of one state of L2: for each (cast, m, k) those of all implementations. Casts of the same that
    comes ahead of them are next to each other."""
    found: dict[tuple[str, int, int], dict[str, CastRow]] = {}
    for row in data["rows"]:
        if row["l2"] == l2:
            found.setdefault((row["cast"], row["m"], row["k"]), {})[row["impl"]] = row
    shapes = list(dict.fromkeys((m, k) for _, m, k in found))
    ahead = ("per_", *AHEAD)

    def place(case: tuple[str, int, int]) -> tuple[int, int]:
        name, m, k = case
        return shapes.index((m, k)), next(i for i, part in enumerate(ahead) if name.startswith(part))

    return {case: found[case] for case in sorted(found, key=place)}


def table(data: CastsFile) -> list[list[str]]:
    """The times as cells; the first row is the header."""
    impls = [name for name in LABELS if any(row["impl"] == name for row in data["rows"])]
    names = [f"{LABELS[name]}, us" for name in impls]
    cells = [["cast", "m x k", "L2", *names, "of the copy's rate", "times an empty kernel"]]
    for l2 in ("dirty", "clean", "graph"):
        for (name, m, k), rows in by_case(data, l2).items():
            us = [f"{rows[impl]['us']:.2f}" if impl in rows else "-" for impl in impls]
            ours = rows["casts"]["us"] if "casts" in rows else None
            share = f"{rows['copy']['us'] / ours:.0%}" if ours and "copy" in rows else "-"
            times = f"{ours / rows['empty']['us']:.2f}" if ours and "empty" in rows else "-"
            cells.append([words(name), f"{m} x {k}", l2, *us, share, times])
    return cells


def provenance(data: CastsFile, protocol: bool = False) -> list[str]:
    """Where the figures come from."""
    return [measured.source_of(data["meta"], protocol)]


def picture(data: CastsFile) -> Any:
    """A matplotlib Figure: a panel for each shape, in it a line for each cast, on it every time."""
    from matplotlib.ticker import LogLocator, NullLocator

    cases = by_case(data, STATE)
    shapes = list(dict.fromkeys((m, k) for _, m, k in cases))
    names = list(dict.fromkeys(name for name, *_ in cases))
    impls = [impl for impl in LABELS if any(impl in rows for rows in cases.values())]
    panel, gap = LINE * len(names), 0.6
    figure, bottom, top = sheet(
        9,
        len(shapes) * (panel + gap) - gap / 2,
        "Casts to FP8",
        "Kernel time of one call, BF16 input, L2 cold and dirty; a copy moves as many bytes",
        ["Medians; logarithmic.", *provenance(data)],
    )
    inch = (top - bottom) / (len(shapes) * (panel + gap) - gap / 2)
    for index, (m, k) in enumerate(shapes):
        low = top - ((index + 1) * panel + index * gap) * inch
        axes = figure.add_axes((0.3, low, 0.64, panel * inch))
        for impl in impls:
            marker, size, colour = MARKS[impl]
            lines = [(y, cases.get((name, m, k), {})) for y, name in enumerate(names)]
            shown = [(y, rows[impl]["us"]) for y, rows in lines if impl in rows]
            axes.plot(
                [us for _, us in shown], [y for y, _ in shown], marker, markersize=size, markeredgewidth=1.6,
                color=colour, label=LABELS[impl], zorder=3 if impl == "casts" else 2,
            )  # fmt: skip
        axes.set_yticks(range(len(names)), list(map(words, names)))
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_xscale("log")
        axes.set_title(f"{m} x {k}, microseconds", loc="left", size=9, color=MUTED)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter("{x:g}")
        frame(axes, "both", 7.5)
        if index == 0:
            above = {"loc": "lower right", "bbox_to_anchor": (1.02, 1 + 0.16 / panel), "ncols": len(impls)}
            axes.legend(**above, fontsize=7.5, frameon=False)
    return figure
