"""A model trained with FP8 linears and with BF16 ones, from data/fp8_training.json: a table of
figures/README.md, and figures/fp8_training.png."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean
from typing import Any, Literal, NamedTuple, cast

from . import measured
from .rows import LossesFile, LossesMeta, LossRow, fields
from .sheet import INK, MUTED, frame, sheet

META_FIELDS = fields(LossesMeta)
ROW_FIELDS = fields(LossRow)
Run = tuple[str, int]  # linears, seed
BF16, FP8, OTHER = ("bf16", 0), ("fp8", 0), ("bf16", 1)
MODES = {  # ways to run a step, as they stand behind a label
    "eager": "",
    "compiled": ", compiled",
    "graph": ", CUDA graph",
    "compiled_graph": ", compiled, CUDA graph",
}
LABELS = {BF16: "BF16", FP8: "FP8", OTHER: "BF16, another seed"}
COLOURS = {BF16: "#1a1a1a", FP8: "#d0642a", OTHER: "#9a9a9a"}
BARS = {"bf16": "#9a9a9a", "fp8": "#d0642a"}
LAST = 0.1  # the share of the steps at the end whose losses are compared
Split = Literal["train", "held_out"]


class Gap(NamedTuple):
    """By how much the loss of FP8, and that of another seed, is above that of BF16, in nats a byte."""

    fp8: float
    seed: float


def load(path: Path) -> LossesFile:
    """fp8_training.json. Raises ValueError where a field of its form is missing."""
    return cast(LossesFile, measured.load(path, META_FIELDS, ROW_FIELDS))


def losses(data: LossesFile, run: Run, split: Split) -> dict[int, float]:
    """The losses of one model by step."""
    found = {}
    for row in data["rows"]:
        loss = row["train"] if split == "train" else row["held_out"]
        if (row["linears"], row["seed"]) == run and loss is not None:
            found[row["step"]] = loss
    return found


def at_the_end(data: LossesFile, run: Run, split: Split) -> float:
    """The loss at the end: the mean of those that were recorded in the last LAST of the steps. A single one
    varies by as much as two seeds differ."""
    found = losses(data, run, split)
    return fmean(loss for step, loss in found.items() if step > (1 - LAST) * max(found))


def gap(data: LossesFile, split: Split) -> Gap:
    """The differences at the end."""
    ends = {run: at_the_end(data, run, split) for run in LABELS}
    return Gap(ends[FP8] - ends[BF16], ends[OTHER] - ends[BF16])


def verdict(data: LossesFile) -> str:
    """The difference in a sentence."""
    meta = data["meta"]
    steps = f"{meta['steps']} steps"
    if meta["steps"] < meta["steps_wanted"]:
        steps += f" (of the {meta['steps_wanted']} that were wanted)"
    return (
        f"At the end of {steps} of {meta['tokens']} bytes, the loss in nats a byte is, "
        f"{_beside(data, 'held_out')}; {_beside(data, 'train')}."
    )


def _beside(data: LossesFile, split: Split) -> str:
    """BF16's loss, and by how much the others are above it."""
    found, base = gap(data, split), at_the_end(data, BF16, split)
    where = "on held-out text" if split == "held_out" else "in training"
    return (
        f"{where}, {base:.4f} with BF16 linears, {found.fp8:+.4f} ({found.fp8 / base:+.2%}) with FP8, and "
        f"{found.seed:+.4f} ({found.seed / base:+.2%}) with BF16 and another seed"
    )


def table(data: LossesFile) -> list[list[str]]:
    """Losses and times as cells; the first row is the header."""
    meta = data["meta"]
    cells = [["linears", "steps", "held out", "training", "ms a step", "torch.compile", "CUDA graph", "both"]]
    for run, label in LABELS.items():
        times = {one["mode"]: one["ms"] for one in meta["times"] if (one["linears"], one["seed"]) == run}
        ms = [f"{times[mode]:.2f}" if mode in times else "-" for mode in MODES]
        ends = [f"{at_the_end(data, run, split):.4f}" for split in ("held_out", "train")]
        cells.append([label, str(meta["steps"]), *ends, *ms])
    return cells


def about(data: LossesFile) -> list[str]:
    """The model and the text, in sentences."""
    meta, model, text = data["meta"], data["meta"]["model"], data["meta"]["corpus"]
    return [
        f"{model['parameters'] / 1e6:.1f} million parameters, {model['in_fp8'] / 1e6:.1f} million of them in "
        f"linears that are in FP8: {model['layers']} layers, {model['width']} wide, {model['heads']} heads, "
        f"{model['hidden']} in the MLP; {meta['tokens'] // model['context']} sequences of {model['context']} "
        f"bytes a step. Text: {text['name']}, {text['files']} files, {text['train_bytes'] / 1e6:.1f} MB and "
        f"{text['held_out_bytes'] / 1e6:.1f} MB held out, SHA-256 {text['sha256'][:12]}."
    ]


def provenance(data: LossesFile, protocol: bool = False) -> list[str]:
    """Where the figures come from."""
    return [measured.source_of(data["meta"], protocol)]


def picture(data: LossesFile) -> Any:
    """A matplotlib Figure: the losses by step; below, their differences from BF16's; then the times."""
    meta = data["meta"]
    heights, gap_between = (2.4, 1.7, 0.28 * len(meta["times"])), 0.75
    panels = sum(heights) + gap_between * (len(heights) - 1)
    figure, bottom, top = sheet(
        9,
        panels,
        "Training in FP8",
        "A transformer over bytes with FP8 linears (forward and both products backward), and with BF16 ones",
        [verdict(data), *about(data), *provenance(data)],
    )
    inch, low, axes = (top - bottom) / panels, top, []
    for height in heights:
        low -= height * inch
        axes.append(figure.add_axes((0.22, low, 0.72, height * inch)))
        low -= gap_between * inch
    _losses(axes[0], data)
    _differences(axes[1], data)
    _times(axes[2], data)
    return figure


def _losses(axes: Any, data: LossesFile) -> None:
    for run, label in LABELS.items():
        front = 3 if run == FP8 else 2
        for split, style in (("train", ":"), ("held_out", "-")):
            found = losses(data, run, cast(Split, split))
            name = label if split == "held_out" else None
            axes.plot(
                [*found], [*found.values()], style, color=COLOURS[run], lw=1.3, label=name, zorder=front
            )
    last = [at_the_end(data, run, cast(Split, split)) for run in LABELS for split in ("train", "held_out")]
    axes.set_ylim(0.85 * min(last), 2.5 * max(last))
    axes.set_xlim(0, data["meta"]["steps"])
    axes.set_title("loss, nats a byte; solid: held out, dotted: in training", loc="left", size=9, color=MUTED)
    axes.legend(loc="upper right", fontsize=8.5, frameon=False)
    frame(axes, "both")


def _differences(axes: Any, data: LossesFile) -> None:
    base = losses(data, BF16, "held_out")
    shown: list[float] = []
    for run in (OTHER, FP8):
        found = {step: loss - base[step] for step, loss in losses(data, run, "held_out").items()}
        axes.plot([*found], [*found.values()], color=COLOURS[run], lw=1.5, label=LABELS[run], zorder=3)
        shown += [abs(one) for step, one in found.items() if step > LAST * data["meta"]["steps"]]
    axes.axhline(0, color=INK, lw=1, zorder=2)
    most = 1.15 * max(shown)
    axes.set_ylim(-most, most)
    axes.set_xlim(0, data["meta"]["steps"])
    axes.set_title("held-out loss above that of BF16, by step", loc="left", size=9, color=MUTED)
    axes.legend(loc="upper right", fontsize=8.5, frameon=False, ncols=2)
    frame(axes, "both")


def _times(axes: Any, data: LossesFile) -> None:
    order = list(MODES)
    times = sorted(data["meta"]["times"], key=lambda one: (order.index(one["mode"]), one["linears"] == "fp8"))
    for y, one in enumerate(times):
        axes.barh(y, one["ms"], height=0.65, color=BARS[one["linears"]], zorder=2)
        axes.plot([one["ms_p10"], one["ms_p90"]], [y, y], color=INK, linewidth=1.2, zorder=3)
        axes.annotate(
            f"{one['ms']:.2f}", (max(one["ms"], one["ms_p90"]), y), (5, 0), textcoords="offset points",
            size=8.5, color=INK, va="center",
        )  # fmt: skip
    names = [LABELS[one["linears"], one["seed"]] + MODES[one["mode"]] for one in times]
    axes.set_yticks(range(len(times)), names)
    axes.set_ylim(len(times) - 0.5, -0.5)
    axes.set_xlim(0, 1.12 * max(one["ms_p90"] for one in times))
    axes.set_title("milliseconds a step: forward, backward, optimizer", loc="left", size=9, color=MUTED)
    frame(axes, "x")
