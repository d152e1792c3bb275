"""The pictures of the timelines, figures/timeline_*.png, from data/timeline.json alone.

gemm_ladder.timeline records the file (python -m gemm_ladder timeline all --json FILE), and
gemm_ladder.timeline.spans says what each kind of span is.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

from . import measured
from .rows import TimelineFile, TimelineMeta, TimelineRow, fields
from .sheet import INK, MUTED, frame, least

META_FIELDS = fields(TimelineMeta)
ROW_FIELDS = fields(TimelineRow)

COLOURS = {
    "load": "#a9c8e8",
    "issue": "#2b6cb0",
    "multiply": "#e8590c",
    "promote": "#14784f",
    "store": "#7a0f4f",
    "wait": "#dcdcdc",
}
MEANINGS = {
    "load": "load: bytes on their way",
    "issue": "issue: requests to the copy engine",
    "multiply": "multiply: WGMMAs in flight",
    "promote": "promote: scale and add in FP32",
    "store": "store",
    "wait": "wait",
}

Interval = tuple[float, float]


def load(path: Path) -> TimelineFile:
    """timeline.json. Raises ValueError where a field of its form is missing."""
    return cast(TimelineFile, measured.load(path, META_FIELDS, ROW_FIELDS))


def pictures(data: TimelineFile) -> dict[str, Any]:
    """A matplotlib Figure for each rung, by its name: a panel for each machine that it was recorded on."""
    by_rung: dict[str, list[TimelineRow]] = {}
    for row in data["rows"]:
        by_rung.setdefault(row["rung"], []).append(row)
    return {rung: _picture(rung, rows, data["meta"]) for rung, rows in by_rung.items()}


def draw(root: Path) -> None:
    """figures/timeline_RUNG.png under `root`, from its figures/data/timeline.json, if there is one."""
    path = root / "figures" / "data" / "timeline.json"
    if path.exists():
        for rung, figure in pictures(load(path)).items():
            figure.savefig(root / "figures" / f"timeline_{rung}.png", dpi=130, metadata={"Software": None})


# ------------------------------------------------------------------------------- how busy, how much overlaps


def beside(rows: Sequence[TimelineRow]) -> float:
    """The share of the promotion time in which a WGMMA of another actor on the same SM is in flight."""
    sites: dict[tuple[str, int], list[TimelineRow]] = {}
    for row in rows:
        site = ("block", row["block"]) if row["sm"] is None else ("sm", row["sm"])
        sites.setdefault(site, []).append(row)
    promoting = together = 0.0
    for here in sites.values():
        for row in here:
            mine, who = union(_spans(row, "promote")), (row["block"], row["role"])
            others = [other for other in here if (other["block"], other["role"]) != who]
            theirs = union([span for other in others for span in _spans(other, "multiply")])
            promoting += length(mine)
            together += length(mine) + length(theirs) - length(union(mine + theirs))
    return together / promoting if promoting else 0.0


def share_in_words(row: TimelineRow) -> str:
    """The tensor-core share of a GPU's recording; "" where it was recorded without."""
    if "tensor_share" not in row:
        return ""
    share, busy = row["tensor_share"], row["in_flight"]
    return (
        f"Tensor-core share {share:.0%}: a WGMMA in flight {busy:.0%} of the time, at {share / busy:.0%} of "
        "the full rate"
    )


def _spans(row: TimelineRow, what: str) -> list[Interval]:
    return [(begin, end) for kind, begin, end in row["spans"] if kind == what]


def length(intervals: Sequence[Interval]) -> float:
    """Of intervals that do not overlap, together."""
    return sum(end - begin for begin, end in intervals)


def union(intervals: Sequence[Interval]) -> list[Interval]:
    """The same stretches of time as intervals that do not overlap, in order."""
    found: list[Interval] = []
    for begin, end in sorted(intervals):
        if found and begin <= found[-1][1]:
            found[-1] = found[-1][0], max(found[-1][1], end)
        else:
            found.append((begin, end))
    return found


# ------------------------------------------------------------------------------------------------ the picture

LANE, THIN = 0.3, 0.12  # inches: a row of the picture; one for a stage of the copy engine
GAP = 0.1  # below an actor's last row
HEAD, FOOT, BETWEEN = 1.1, 1.5, 1.15  # above the first panel, below the last, between two
WIDTH, LEFT, RIGHT = 9.6, 2.3, 0.2
SIZE = least(WIDTH) + 0.1


class _Lane(NamedTuple):
    """A row of the picture: the words at its left, its height and the free space below it, in inches."""

    row: TimelineRow
    actor: str
    unit: str
    height: float
    below: float


def _picture(rung: str, rows: Sequence[TimelineRow], meta: TimelineMeta) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    by_machine = [[row for row in rows if row["machine"] == machine] for machine in ("gpu", "emulator")]
    panels = [_lanes(of_machine) for of_machine in by_machine if of_machine]
    tall = [sum(lane.height + lane.below for lane in lanes) for lanes in panels]
    height = HEAD + sum(tall) + BETWEEN * (len(panels) - 1) + FOOT
    figure = Figure(figsize=(WIDTH, height), facecolor="white")
    FigureCanvasAgg(figure)
    bottom = height - HEAD
    for lanes, inches in zip(panels, tall, strict=True):
        bottom -= inches
        box = LEFT / WIDTH, bottom / height, 1 - (LEFT + RIGHT) / WIDTH, inches / height
        _panel(figure.add_axes(box), lanes, meta)
        bottom -= BETWEEN
    title = f"{rung}: who does what, and when"
    figure.text(0.02, 1 - 0.28 / height, title, size=14, weight="bold", color=INK, va="center")
    shown = [what for what in COLOURS if any(_spans(row, what) for row in rows)]
    figure.legend(
        handles=[Patch(color=COLOURS[what], label=MEANINGS[what]) for what in shown],
        loc="lower left",
        bbox_to_anchor=(0.021, 0.62 / height),
        borderaxespad=0,
        borderpad=0,
        ncols=3,
        frameon=False,
        fontsize=8.5,
        handlelength=1.2,
        columnspacing=1.4,
    )
    note = "\n".join(textwrap.wrap(_provenance(rows, meta), int(118 * WIDTH / SIZE)))
    figure.text(0.02, 0.1 / height, note, size=SIZE, color=MUTED, va="bottom", linespacing=1.5)
    return figure


def _lanes(rows: Sequence[TimelineRow]) -> list[_Lane]:
    """One panel's rows from the top down: who issues, the copy engine, each warp below its tensor core."""

    def place(row: TimelineRow) -> tuple[int, int, int, bool]:
        group = 1 if row["unit"] == "copy engine" else 0 if row["role"] == "producer" else 2
        return row["block"], group, row["index"], row["unit"] == "warp"

    blocks = {row["block"] for row in rows}
    lanes: list[_Lane] = []
    last = None
    for row in sorted(rows, key=place):
        actor = row["block"], row["role"]
        if actor == last:
            lanes[-1] = lanes[-1]._replace(below=0.0)
        where = f"block {row['block']}, " if len(blocks) > 1 else ""
        copies = row["unit"] == "copy engine"
        words = "" if actor == last else where + row["role"]
        lanes.append(_Lane(row, words, "" if copies else row["unit"], THIN if copies else LANE, GAP))
        last = actor
    return lanes


def _panel(axes: Any, lanes: Sequence[_Lane], meta: TimelineMeta) -> None:
    """One machine's timeline. y is inches from the panel's top."""
    at_left = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "ha": "right"}
    at_left |= {"va": "center", "annotation_clip": False}
    y = 0.0
    for lane in lanes:
        middle = y + lane.height / 2
        for what, colour in COLOURS.items():
            bars = [(begin, end - begin) for begin, end in _spans(lane.row, what)]
            place = y, lane.height
            axes.broken_barh(bars, place, facecolors=colour, edgecolor="white", linewidth=0.3, zorder=2)
        axes.annotate(lane.actor, (0, middle), (-62, 0), size=8.5, color=INK, **at_left)
        axes.annotate(lane.unit, (0, middle), (-5, 0), size=SIZE, color=MUTED, **at_left)
        y += lane.height + lane.below
    axes.set_ylim(y, 0)
    axes.set_yticks([])
    rows = [lane.row for lane in lanes]
    axes.set_xlim(0, max(end for row in rows for _, _, end in row["spans"]))
    gpu = rows[0]["machine"] == "gpu"
    size = " x ".join(str(rows[0][key]) for key in "mnk")
    machine = f"{meta['gpu'] if gpu else 'The emulator'}, {size}"
    axes.set_title(machine, loc="left", size=10.5, weight="bold", color=INK, pad=20)
    words = share_in_words(rows[0])
    axes.annotate(
        words, (0, 1), (0, 6), xycoords="axes fraction", textcoords="offset points", size=8.5, color=MUTED
    )
    unit = "microseconds" if gpu else "steps of the scheduler: an order, not durations"
    axes.set_xlabel(unit, size=SIZE, color=MUTED)
    frame(axes, "x", labels=SIZE)


def _provenance(rows: Sequence[TimelineRow], meta: TimelineMeta) -> str:
    """Where the picture's data come from, and what recording them costs."""
    words = "Of each role, the first warp is shown. "
    gpu = [row for row in rows if row["machine"] == "gpu"]
    if gpu:
        slow, plain = gpu[0]["stamped_us"], gpu[0]["us"]
        words += (
            f"{meta['gpu']}, driver {meta['driver']}, nvcc {meta['nvcc']}: a load is drawn until a warp sees "
            f"that it has arrived; the kernel takes {slow:.1f} us with stamps, {plain:.1f} us without. "
        )
    if len({row["block"] for row in gpu}) > len({row["sm"] for row in gpu}):
        words += "The blocks share an SM. "
    if any("tensor_share" in row for row in gpu):
        words += "The share is of all blocks that ran on the SM in a whole launch, with stamps of all. "
    return f"{words}{meta['date']}, kernel sources {meta['sources'][:12]}."
