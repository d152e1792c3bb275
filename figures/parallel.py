"""Layers that GPUs share, from data/parallel.json: tables of figures/README.md, and figures/parallel.png, on
which is the model of parallel_model.py, too."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from . import measured, parallel_model
from .rows import ParallelFile, ParallelMeta, ParallelRow, fields
from .sheet import INK, MUTED, frame, sheet

META_FIELDS = fields(ParallelMeta)
ROW_FIELDS = fields(ParallelRow)
LAYERS = {
    "experts": "Mixture of experts",
    "mlp": "Feed-forward layer",
    "training": "Smaller mixture, forward and backward",
}
# The parts of a call: in a row, in words, and the colour.
STEPS = {
    "dispatch_us": ("dispatch", "#c77d3a"),
    "products_us": ("casts and products", "#2a788e"),
    "combine_us": ("combine", "#8a5fa8"),
    "forward_us": ("forward", "#7fb0bb"),
    "backward_us": ("backward", "#35608d"),
    "graph_us": ("all in a CUDA graph", "#b5b5b5"),
}
LINES = ("#1a1a1a", "#2a788e", "#c77d3a", "#8a5fa8", "#7f7f7f")  # numbers of tokens, in the model
IMPLS = {"one": "", "sums": "sums", "rows": "rows", "everywhere": "all"}
WHOLE = "graph_us"  # of a call in a CUDA graph, which has no parts


def load(path: Path) -> ParallelFile:
    """parallel.json. Raises ValueError where a field of its form is missing."""
    return cast(ParallelFile, measured.load(path, META_FIELDS, ROW_FIELDS))


def of(data: ParallelFile, what: str) -> dict[int, dict[tuple[int, str], ParallelRow]]:
    """The rows of a layer: for each number of tokens, by (ranks, impl)."""
    found: dict[int, dict[tuple[int, str], ParallelRow]] = {}
    for row in data["rows"]:
        if row["what"] == what:
            found.setdefault(row["tokens"], {})[row["ranks"], row["impl"]] = row
    return found


def name_of(ranks: int, impl: str, between: str = ", ") -> str:
    """How a time was measured, in words."""
    how, graph, _ = impl.partition("_graph")
    gpus = f"{ranks} GPU{'s' * (ranks > 1)}" if between == ", " else str(ranks)
    return between.join(filter(None, (gpus, IMPLS[how], graph.removeprefix("_"))))


def parts(row: ParallelRow) -> dict[str, float]:
    """The microseconds of a call's steps."""
    found = {step: float(cast(Any, row).get(step, 0.0)) for step in STEPS}
    if row["impl"].endswith("_graph"):
        found[WHOLE] = row["us"]
    return found


def table(data: ParallelFile) -> list[list[str]]:
    """The times of calls without gradients as cells; the first row is the header."""
    return _times(data, ("experts", "mlp"), ("dispatch_us", "products_us", "combine_us"))


def training(data: ParallelFile) -> list[list[str]]:
    """The times of forward and backward passes as cells."""
    return _times(data, ("training",), ("forward_us", "backward_us"))


def _times(data: ParallelFile, layers: Sequence[str], steps: Sequence[str]) -> list[list[str]]:
    head = ["layer", "tokens", "GPUs", "us", *(f"{STEPS[step][0]}, us" for step in steps)]
    cells = [[*head, "times faster than one", "MB sent", "error"]]
    for what in layers:
        for tokens, rows in of(data, what).items():
            for (ranks, impl), row in rows.items():
                graph = "_graph" * impl.endswith("_graph")
                one, found = rows.get((1, "one" + graph)), parts(row)
                faster = f"{one['us'] / row['us']:.2f}" if one else "-"
                sent = f"{row['bytes'] / 1e6:.1f}" if ranks > 1 else "-"
                off = f"{row['rel_err']:.1e}" if ranks > 1 else "-"
                gpus = str(ranks) if what == "mlp" else name_of(ranks, impl)
                times = [f"{found[step]:.0f}" if found[step] else "-" for step in steps]
                cells.append([LAYERS[what], str(tokens), gpus, f"{row['us']:.0f}", *times, faster, sent, off])
    return cells


def transfers(data: ParallelFile) -> list[list[str]]:
    """The transfers alone as cells."""
    cells = [["transfer", "GPUs", "MB sent", "us", "GB/s"]]
    for row in data["rows"]:
        if row["what"] not in LAYERS:
            rate = f"{row['bytes'] / row['us'] / 1e3:.0f}"
            sent = f"{row['bytes'] / 1e6:.2f}"
            cells.append([row["what"], str(row["ranks"]), sent, f"{row['us']:.0f}", rate])
    return cells


def provenance(data: ParallelFile, protocol: bool = False) -> list[str]:
    """Where the figures come from."""
    return [measured.source_of(data["meta"], protocol, more=f" NCCL {data['meta']['nccl']}.")]


def model_of(data: ParallelFile) -> parallel_model.Layer:
    """The sizes that were measured."""
    plan = data["meta"]["plan"]
    return parallel_model.Layer(**{name: plan[name] for name in parallel_model.Layer._fields})


def picture(data: ParallelFile) -> Any:
    """A matplotlib Figure: what was measured on one GPU and on several, with its steps, and the model."""
    sizes = data["meta"]["plan"]
    trained = sizes["training"]
    figure, bottom, top = sheet(
        11,
        10.4,
        "Layers that several GPUs share",
        f"Experts: {sizes['experts']} of {sizes['hidden']} x {sizes['intermediate']}, {sizes['top_k']} for "
        f"each token. Feed-forward: {sizes['hidden']} x {sizes['mlp']}, in columns and rows. The "
        f"smaller mixture: {trained['experts']} of {trained['hidden']} x {trained['intermediate']}, "
        f"{trained['top_k']} for each token",
        [
            "Bars: measured, with the host's share; medians of the slowest GPU. On a bar: microseconds. "
            "Below it: GPUs, and the tokens of all together. sums: a GPU adds up a token's rows before it "
            "sends one back; rows: it sends one for each expert; all: as sums, but every token goes to every "
            "GPU.",
            "Model: from what was measured on one GPU and on two (points). Assumed: inside of 8 GPUs rows "
            "travel as fast, outside as InfiniBand's data sheet says. Shaded: with the least and the most of "
            "what two GPUs took besides their shares and the transfers.",
            *provenance(data),
        ],
    )
    gap = 0.11 * (top - bottom)
    height = (top - bottom - 2 * gap) / 3
    upper, middle = top - height, bottom + height + gap
    _bars(figure.add_axes((0.06, upper, 0.92, height)), of(data, "experts"), LAYERS["experts"])
    _bars(figure.add_axes((0.06, middle, 0.44, height)), of(data, "mlp"), LAYERS["mlp"])
    _bars(figure.add_axes((0.56, middle, 0.42, height)), of(data, "training"), LAYERS["training"])
    _model(figure.add_axes((0.06, bottom, 0.54, height)), data)
    _limits(figure.add_axes((0.68, bottom, 0.3, height)), data)
    return figure


def _bars(axes: Any, cases: dict[int, dict[tuple[int, str], ParallelRow]], title: str) -> None:
    """Each time over that of one GPU, in its parts."""
    keys = list(dict.fromkeys(key for rows in cases.values() for key in rows))
    wide, most = 0.86 / max(1, len(keys)), 1.0
    named: set[str] = set()
    for place, rows in enumerate(cases.values()):
        one, here = rows[1, "one"]["us"], [key for key in keys if key in rows]
        for index, key in enumerate(here):
            below, x = 0.0, place + (index - (len(here) - 1) / 2) * wide
            for step, us in parts(rows[key]).items():
                if us:
                    words, colour = STEPS[step]
                    axes.bar(
                        x, us / one, wide * 0.9, below, color=colour, label=None if words in named else words,
                        zorder=2, edgecolor="white", linewidth=0.5,
                    )  # fmt: skip
                    named.add(words)
                    below += us / one
            most = max(most, below)
            name = name_of(*key, between="\n") if len(keys) > 2 else str(key[0])
            axes.text(x, below, f"{rows[key]['us']:.0f}", ha="center", va="bottom", size=9, color=INK)
            axes.text(x, -0.02 * most, name, ha="center", va="top", size=9, color=MUTED, linespacing=1)
    lines = "\n\n\n" if len(keys) > 2 else "\n"
    axes.set_xticks(range(len(cases)), [f"{lines}{tokens}" for tokens in cases])
    axes.set_ylim(0, most * (1.25 if len(keys) > 2 else 1.12))
    axes.set_title(f"{title}: time over one GPU's", loc="left", size=10, color=MUTED)
    frame(axes, "y", 9)
    if len(keys) > 2:
        axes.legend(loc="upper center", ncols=len(named), fontsize=9, frameon=False)


def _model(axes: Any, data: ParallelFile) -> None:
    """The model's time by number of GPUs, a line for each number of tokens, and what was measured."""
    layer = model_of(data)
    known = parallel_model.measured(layer, data["rows"])
    for colour, (tokens, rows) in zip(LINES, of(data, "experts").items(), strict=False):
        costs = [parallel_model.shared(layer, known, "calls", tokens, one) for one in parallel_model.RANKS]
        us = [cost.us for cost in costs]
        axes.plot(parallel_model.RANKS, us, "-", color=colour, linewidth=1.6, label=str(tokens), zorder=2)
        seen = [(ranks, row["us"]) for (ranks, impl), row in rows.items() if impl in ("one", "sums")]
        axes.plot([x for x, _ in seen], [y for _, y in seen], "o", color=colour, markersize=6, zorder=3)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(parallel_model.RANKS, [str(ranks) for ranks in parallel_model.RANKS])
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(lambda us, _: f"{us:g}" if f"{us:g}"[0] in "25" else "")
    axes.legend(title="tokens of all", fontsize=9, title_fontsize=9, frameon=False, loc="upper right")
    axes.set_title("Model, called from Python: us by GPUs", loc="left", size=10, color=MUTED)
    frame(axes, "both", 9)


def _limits(axes: Any, data: ParallelFile) -> None:
    """From how many tokens of a GPU on sharing pays, and up to how many."""
    layer = model_of(data)
    known = parallel_model.measured(layer, data["rows"])
    ranks = parallel_model.RANKS[1:]
    for way, step in (("calls", "dispatch_us"), ("graph", "products_us")):
        if way not in known.one:
            continue
        found = {
            rest: [parallel_model.pays(layer, known, way, one, rest) or (math.nan,) * 2 for one in ranks]
            for rest in parallel_model.Rest._fields
        }
        for end in range(2):
            low, middle, high = ([both[end] for both in of_rest] for of_rest in found.values())
            words = parallel_model.WAYS[way][0] if end else None
            axes.plot(ranks, middle, "o-", color=STEPS[step][1], linewidth=1.6, label=words, zorder=2)
            axes.fill_between(ranks, low, high, color=STEPS[step][1], alpha=0.2, linewidth=0, zorder=1)
    axes.legend(fontsize=9, frameon=False, loc="upper right")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(ranks, [str(one) for one in ranks])
    axes.set_xlim(1.6, ranks[-1] * 1.3)
    axes.set_ylim(1, 30000)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_title("Model: pays between, tokens a GPU", loc="left", size=10, color=MUTED)
    frame(axes, "both", 9)
