"""FP8 in layers and in a model, from data/model.json: tables of figures/README.md, what they mean, and two
pictures, figures/layers.png and figures/minilm.png."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from . import measured
from .rows import MachineMeta, ModelFile, ModelRow, fields
from .sheet import INK, MUTED, frame, sheet

META_FIELDS = fields(MachineMeta)
ROW_FIELDS = fields(ModelRow)
LABELS = {
    "bf16": "BF16",
    "bf16_compiled": "BF16, torch.compile",
    "fp8": "FP8",
    "fp8_compiled": "FP8, torch.compile",
    "fp8_fused": "FP8, casts fused",
    "deep_gemm": "DeepGEMM, casts fused",
}
BF16 = ("bf16", "bf16_compiled")
OURS = ("fp8", "fp8_compiled", "fp8_fused")
HOWS = {"graph": "In a CUDA graph", "calls": "Called from Python"}
# What the parts are called in tables and pictures, and their colours.
PARTS = {
    "products": "products",
    "experts": "experts",
    "attention": "attention",
    "elementwise": "norms, SiLU, sums, casts",
    "routing": "routing",
}
COLOURS = {
    "products": "#414487",
    "experts": "#b5367a",
    "attention": "#8c510a",
    "elementwise": "#f2d857",
    "routing": "#000000",
}
WHOLE = "#d9d9d9"  # a bar whose parts are not known
LINES = {
    "bf16": ("o", "#8a8a8a"),
    "bf16_compiled": ("s", "#1a1a1a"),
    "fp8": ("^", "#e08a3c"),
    "fp8_compiled": ("D", "#0072b2"),
}
PAYS = 1.02  # times as fast: less is level

Case = tuple[str, str, int, int]  # model, phase, tokens, context


def load(path: Path) -> ModelFile:
    """model.json. Raises ValueError where a field of its form is missing."""
    return cast(ModelFile, measured.load(path, META_FIELDS, ROW_FIELDS))


def by_case(data: ModelFile, how: str) -> dict[Case, dict[str, ModelRow]]:
    """The rows of one way of calling: for each case those of all implementations."""
    found: dict[Case, dict[str, ModelRow]] = {}
    for row in data["rows"]:
        if row["how"] == how:
            case = (row["model"], row["phase"], row["tokens"], row["context"])
            found.setdefault(case, {})[row["impl"]] = row
    return found


def gain(
    rows: Mapping[str, ModelRow], ours: Iterable[str] = OURS, others: Iterable[str] = BF16
) -> float | None:
    """How many times as fast the fastest of ours is as the fastest of the others; None where one is not
    there."""
    mine, theirs = ([rows[impl]["us"] for impl in impls if impl in rows] for impls in (ours, others))
    return min(theirs) / min(mine) if mine and theirs else None


def table(data: ModelFile, how: str) -> list[list[str]]:
    """Microseconds as cells; the first row is the header."""
    shown = [impl for impl in LABELS if any(row["impl"] == impl for row in data["rows"])]
    head = ["model", "phase", "tokens", *(f"{LABELS[impl]}, us" for impl in shown)]
    cells = [[*head, "FP8's gain", "DeepGEMM over ours", "tokens a second through one layer", "error"]]
    for (model, phase, tokens, _), rows in by_case(data, how).items():
        us = [_number(rows[impl]["us"]) if impl in rows else "-" for impl in shown]
        pays, beside = gain(rows), gain(rows, ["fp8_fused"], ["deep_gemm"])
        mine = [rows[impl] for impl in OURS if impl in rows]
        fastest = f"{max(row['tokens_s'] for row in mine):,}".replace(",", " ") if mine else "-"
        fastest += ", the whole model" * bool(mine and phase == "encode")
        error = f"{100 * max(row['rel_err'] for row in mine):.1f}%" if mine else "-"
        ratios = [f"{one:.2f}" if one else "-" for one in (pays, beside)]
        cells.append([model, phase, str(tokens), *us, *ratios, fastest, error])
    return cells


def parts_table(data: ModelFile) -> list[list[str]]:
    """Microseconds of the kernels by part, as cells; the first row is the header."""
    cells = [["model", "phase", "tokens", "", *(f"{name}, us" for name in PARTS.values())]]
    for (model, phase, tokens, _), rows in by_case(data, "graph").items():
        for impl, row in rows.items():
            if row["parts"]:
                us = [_number(row["parts"][part]) if part in row["parts"] else "-" for part in PARTS]
                cells.append([model, phase, str(tokens), LABELS[impl], *us])
    return cells


def summary(data: ModelFile) -> list[str]:
    """What the times mean, a sentence each: where FP8 pays, what fusing the casts gives, DeepGEMM's products
    beside ours, and what is left of MiniLM's sentences."""
    found = []
    for how, words in HOWS.items():
        of_how = by_case(data, how)
        for model, phase in dict.fromkeys(case[:2] for case in of_how):
            mine = {case[2]: rows for case, rows in of_how.items() if case[:2] == (model, phase)}
            gains = {tokens: one for tokens, rows in mine.items() if (one := gain(rows))}
            if gains:
                both = all({*BF16} <= rows.keys() for rows in mine.values())
                found.append(f"{words}, {model}, {phase}: {verdict(gains, both)}")
            if how == "graph":
                for ours, others, said in (
                    ("fp8_fused", "fp8", "Fusing the casts with norms and SiLU makes FP8 {} times as fast"),
                    (
                        "fp8_fused",
                        "deep_gemm",
                        "With DeepGEMM's products it takes {} times as long",
                    ),
                ):
                    ratios = [one for rows in mine.values() if (one := gain(rows, [ours], [others]))]
                    if ratios:
                        found.append(f"    {said.format(_range(ratios))}.")
                spread = max(
                    row["us_most"] / row["us_least"] for rows in mine.values() for row in rows.values()
                )
                found.append(f"    Times are medians of rounds, which differ by up to {spread - 1:.0%}.")
    meta = data["meta"]
    if "cosine" in meta:
        found.append(
            f"MiniLM in FP8: the vectors of sentences of seven words or more have a cosine of "
            f"{meta['cosine']:.4f} or more with those in FP32, of one to four words of "
            f"{meta['cosine_short']:.4f} or more."
        )
    return found


def verdict(gains: Mapping[int, float], both: bool = True) -> str:
    """Where FP8 pays, by tokens, given how many times as fast it is as BF16: as the faster of the eager and
    the compiled one, if there are both."""
    paying = {tokens: one for tokens, one in gains.items() if one > PAYS}
    others = {tokens: one for tokens, one in gains.items() if one <= PAYS}
    fast = "times as fast as the faster BF16" if both else "times as fast as BF16"
    if not others:
        return f"FP8 pays at every size, it is {_range(gains.values())} {fast}."
    if not paying:
        return f"FP8 pays at no size, it is {_range(gains.values())} {fast}."
    return (
        f"FP8 pays at {_list(paying)} tokens ({_range(paying.values())} {fast}), "
        f"not at {_list(others)} ({_range(others.values())})."
    )


def _range(values: Iterable[float]) -> str:
    low, high = f"{min(values := [*values]):.2f}", f"{max(values):.2f}"
    return low if low == high else f"{low} to {high}"


def _list(tokens: Iterable[int]) -> str:
    *first, last = map(str, sorted(tokens))
    return f"{', '.join(first)} and {last}" if first else last


def _number(us: float) -> str:
    return f"{us:.0f}" if us >= 100 else f"{us:.1f}"


def provenance(data: ModelFile, protocol: bool = False) -> list[str]:
    """Where the figures come from."""
    meta = data["meta"]
    theirs = f", DeepGEMM {meta['deep_gemm']}" if meta.get("deep_gemm") else ""
    return [measured.source_of(meta, protocol, libraries=theirs)]


BAR, GAP = 0.17, 0.16  # inches: a bar, and what is between two sizes


def picture(data: ModelFile) -> Any:
    """A matplotlib Figure: for each decoder layer a panel; for each size and implementation a bar of the
    kernels' time by part, in units of the BF16 layer's time."""
    cases = {case: rows for case, rows in by_case(data, "graph").items() if case[1] != "encode"}
    models = list(dict.fromkeys(case[0] for case in cases))
    heights = [
        sum(BAR * len(rows) + GAP for case, rows in cases.items() if case[0] == model) for model in models
    ]
    contexts = sorted({case[3] for case in cases if case[3]})
    figure, bottom, top = sheet(
        11,
        max(heights, default=1),
        "One decoder layer, BF16 and FP8",
        "Kernel time by part; a bar's line, and its number, is the time in a CUDA graph, in microseconds",
        [
            "Every size has its own scale: the BF16 layer's time in a CUDA graph is 1. Prefill: tokens of "
            "one sequence. Decode: a batch of sequences of "
            f"{_list(contexts) if contexts else '-'} tokens. Compiled layers are not divided into parts. A "
            "kernel that begins before the one ahead has ended counts from its own beginning, so a bar may "
            "reach beyond its line.",
            *provenance(data),
        ],
    )
    inch = (top - bottom) / max(heights, default=1)
    for index, (model, height) in enumerate(zip(models, heights, strict=True)):
        left = 0.2 + 0.5 * index
        axes = figure.add_axes((left, top - height * inch, 0.275, height * inch))
        _bars(axes, {case: rows for case, rows in cases.items() if case[0] == model})
        axes.set_ylim(height, 0)
        axes.set_title(model, loc="left", size=10, color=INK)
    from matplotlib.patches import Patch

    handles = [Patch(color=COLOURS[part], label=name) for part, name in PARTS.items()]
    figure.legend(
        handles=[*handles, Patch(color=WHOLE, label="not divided")], loc="upper left", ncols=6, frameon=False,
        bbox_to_anchor=(0.01, top + 0.62 * inch), fontsize=9,
    )  # fmt: skip
    return figure


def _bars(axes: Any, cases: Mapping[Case, Mapping[str, ModelRow]]) -> None:
    ticks, names, y = [], [], GAP / 2
    most = 1.0
    for (_, phase, tokens, _), rows in cases.items():
        unit = rows["bf16"]["us"] if "bf16" in rows else max(row["us"] for row in rows.values())
        for impl in (one for one in LABELS if one in rows):
            row, begin = rows[impl], 0.0
            middle = y + BAR / 2
            for part in PARTS:
                share = row["parts"].get(part, 0.0) / unit
                axes.barh(middle, share, BAR * 0.8, begin, color=COLOURS[part], zorder=2)
                begin += share
            whole = row["us"] / unit
            if not row["parts"]:
                axes.barh(middle, whole, BAR * 0.8, color=WHOLE, zorder=2)
            axes.plot([whole] * 2, [y + 0.01, y + BAR - 0.01], color=INK, linewidth=1.2, zorder=3)
            most = max(most, whole, begin)
            axes.annotate(
                _number(row["us"]), (max(whole, begin), middle), (4, 0), textcoords="offset points", size=9,
                va="center", color=INK,
            )  # fmt: skip
            ticks.append(middle)
            first = impl == next(one for one in LABELS if one in rows)
            names.append(f"{phase} {tokens}:  {LABELS[impl]}" if first else LABELS[impl])
            y += BAR
        y += GAP
    axes.set_yticks(ticks, names)
    axes.set_xlim(0, 1.22 * most)
    frame(axes, "x", 9)


def lines(data: ModelFile) -> Any:
    """A matplotlib Figure of MiniLM: for both ways of calling, how many times as fast each implementation is
    as the faster BF16, by tokens."""
    figure, bottom, top = sheet(
        9,
        2.9,
        "all-MiniLM-L6-v2 in FP8",
        "How many times as fast as the faster BF16, eager or compiled, by tokens; above 1, FP8 pays",
        provenance(data),
    )
    for index, (how, words) in enumerate(HOWS.items()):
        cases = {case: rows for case, rows in by_case(data, how).items() if case[1] == "encode"}
        axes = figure.add_axes((0.07 + 0.48 * index, bottom, 0.42, top - bottom))
        for impl, (marker, colour) in LINES.items():
            found = [
                (case[2], one) for case, rows in cases.items() if impl in rows and (one := gain(rows, [impl]))
            ]
            axes.plot(
                [tokens for tokens, _ in found], [one for _, one in found], marker=marker, markersize=5,
                color=colour, linewidth=1.4, label=LABELS[impl], zorder=3,
            )  # fmt: skip
        sizes = sorted({case[2] for case in cases})
        axes.set_xscale("log", base=2)
        axes.set_xticks(sizes, list(map(str, sizes)))
        axes.minorticks_off()
        axes.set_ylim(0, None)
        axes.axhline(1, color=INK, linewidth=0.8, zorder=2)
        axes.set_title(words, loc="left", size=9, color=MUTED)
        frame(axes, "both", 8)
        if index == 0:
            above: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (-0.03, 1.06), "ncols": 4}
            axes.legend(**above, fontsize=8, frameon=False)
    return figure


def notes(data: ModelFile) -> Sequence[str]:
    """Small print below the tables."""
    return [
        "FP8's gain: the time of BF16, of the faster one if a compiled one was measured, too, over that of "
        "the fastest of ours; DeepGEMM over ours: both with fused casts; tokens a second: of the fastest of "
        "ours; error: of a token in the middle of all, against BF16, relative to what the layer adds.",
        *provenance(data, protocol=True),
    ]
