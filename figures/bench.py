"""A user's own products beside libraries: the table and the picture of `python -m gemm_ladder bench`."""

from __future__ import annotations

import math
from typing import Any

from .everywhere import BF16, STATES, Key, key_of, ratios
from .measured import PEERS, Series, name_of, provenance
from .production import CEILINGS, RUNG
from .sheet import INK, MUTED, frame, sheet

COLOURS = {"dirty": "#3b528b", "clean": "#21918c", "graph": "#e16462"}
FOOTNOTE = (
    "us: microseconds of gemm_ladder, of the fastest library with the same scales, of BF16 and of the "
    "ceiling (one scale per tensor or row and no promotion: another product). What it costs to cast A to "
    "FP8 is in none of them."
)


def times(data: Any, state: str) -> dict[Key, dict[str, float]]:
    """Microseconds by product and implementation."""
    found: dict[Key, dict[str, float]] = {}
    for row in data["rows"]:
        if row["l2"] == state:
            found.setdefault(key_of(row), {})[row["impl"]] = row["us"]
    return found


def table(data: Any, state: str) -> list[list[str]]:
    """The times of one state as cells; the first row is the header. Empty if nothing was measured in it."""
    compared = {one.key: one for one in ratios(data, state)}
    mine = {key_of(row): row for row in data["rows"] if row["l2"] == state and row["impl"] == RUNG}
    head = ["m x n x k", "us", "TFLOPS", "GB/s", "best peer", "its us", "ratio", "BF16 us", "ratio"]
    cells = [[*head, "ceiling us"]]
    for key, us in times(data, state).items():
        one, row = compared.get(key), mine.get(key)
        ours = [_us(row["us"]), f"{row['tflops']:.0f}", f"{row['gb_s']:.0f}"] if row else ["-", "-", "-"]
        peer = [PEERS[one.peer], _us(one.peer_us), f"{one.value:.3f}"] if one else ["-", "-", "-"]
        gain = f"{us[BF16] / us[RUNG]:.2f}" if {BF16, RUNG} <= us.keys() else "-"
        ceiling = min((us[impl] for impl in CEILINGS if impl in us), default=None)
        cells.append([name(key), *ours, *peer, _us(us.get(BF16)), gain, _us(ceiling)])
    return cells if len(cells) > 1 else []


def _us(us: float | None) -> str:
    return "-" if us is None else f"{us:.4g}"


def name(key: Key) -> str:
    kind, groups, m, n, k, max_m, expected_m = key
    size = name_of((m, n, k))
    if kind == "dense":
        return size
    return f"{kind} {groups} of {size}" + (f", max_m {max_m}, expected {expected_m}" if max_m else "")


def picture(data: Any) -> Any:
    """A matplotlib Figure: for each product and state, the best library's time over ours on the left and
    BF16's on the right."""
    states = [state for state in STATES if times(data, state)]
    keys = list(dict.fromkeys(key for state in states for key in times(data, state)))
    compared = {state: {one.key: one.value for one in ratios(data, state)} for state in states}
    gains = {
        state: {
            key: us[BF16] / us[RUNG] for key, us in times(data, state).items() if {BF16, RUNG} <= us.keys()
        }
        for state in states
    }
    meta = data["meta"]
    figure, bottom, top = sheet(
        10,
        0.24 * len(keys) + 0.4,
        "Your products beside libraries",
        "Their time over gemm_ladder's: to the right of 1, gemm_ladder is faster",
        [
            "Colours: " + "; ".join(f"{_COLOUR_NAMES[state]}, {STATES[state]}" for state in states) + ".",
            *provenance([Series(RUNG, {}, meta), *(Series(impl, {}, meta) for impl in PEERS)]),
        ],
    )
    panels = (("the fastest library with the same scales", compared), ("cuBLAS in BF16", gains))
    for index, (title, values) in enumerate(panels):
        axes = figure.add_axes((0.4 + 0.305 * index, bottom, 0.275, top - bottom))
        for turn, state in enumerate(states):
            offset = 0.2 * (turn - (len(states) - 1) / 2)
            points = [(values[state][key], y + offset) for y, key in enumerate(keys) if key in values[state]]
            axes.scatter(
                [x for x, _ in points], [y for _, y in points], s=20, color=COLOURS[state], zorder=3
            )  # fmt: skip
        _axis(axes, [value for of in values.values() for value in of.values()])
        axes.set_ylim(len(keys) - 0.4, -0.6)
        axes.set_yticks(range(len(keys)), list(map(name, keys)) if index == 0 else [""] * len(keys))
        axes.axvline(1, color=INK, linewidth=1, zorder=2)
        axes.set_title(title, loc="left", size=8.5, color=MUTED)
        frame(axes, "both")
    return figure


_COLOUR_NAMES = {"dirty": "blue", "clean": "green", "graph": "red"}


def _axis(axes: Any, values: list[float]) -> None:
    """A logarithmic axis with a handful of round numbers, 1 among them."""
    low, high = min([0.9, *values]) / 1.06, max([1.1, *values]) * 1.06
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    step = next(one for one in (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 1e9) if math.log(high / low) < 7 * one)
    marks = [1 + step * turn for turn in range(-20, 40)]
    inside = [mark for mark in marks if mark > 0 and low <= mark <= high]
    axes.set_xticks(inside, [f"{mark:.4g}" for mark in inside])
    axes.minorticks_off()
