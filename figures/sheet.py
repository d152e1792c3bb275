"""What the pictures share: colours, and a page with a title above the panels and notes below them."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any, NamedTuple

INK, MUTED, GRID = "#1a1a1a", "#666666", "#e4e4e4"

# Inches: above the panels; for the ticks below them; a line of notes; below and above all notes.
HEAD, TICKS, LINE, MARGIN = 1.2, 0.4, 0.16, 0.25
LETTERS = 16.5  # of a note per inch


class Sheet(NamedTuple):
    """A matplotlib Figure, and where its panels begin and end, from 0 at its bottom to 1 at its top."""

    figure: Any
    bottom: float
    top: float


def sheet(width: float, panels: float, title: str, subtitle: str, notes: Sequence[str]) -> Sheet:
    """An empty page, `width` inches wide, with `panels` inches of height for all panels together."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    letters = int(LETTERS * width)
    lines = [line for note in notes for line in textwrap.wrap(note, letters, subsequent_indent="    ")]
    foot = TICKS + LINE * len(lines) + MARGIN
    height = HEAD + panels + foot
    figure = Figure(figsize=(width, height), facecolor="white")
    FigureCanvasAgg(figure)
    left = 0.24 / width
    above, below = {"color": INK, "va": "center"}, {"color": MUTED, "va": "bottom"}
    figure.text(left, 1 - 0.32 / height, title, size=16, weight="bold", **above)
    figure.text(left, 1 - 0.62 / height, subtitle, size=10, **above | {"color": MUTED})
    figure.text(left, 0.12 / height, "\n".join(lines), size=7.5, linespacing=1.5, **below)
    return Sheet(figure, foot / height, 1 - HEAD / height)


def frame(axes: Any, grid: str, labels: float = 8.5) -> None:
    """Give a panel a line below and grid lines for `grid`: "x", "y" or "both"."""
    axes.grid(axis=grid, color=GRID, linewidth=0.8, zorder=0)
    axes.tick_params(length=0, which="both", colors=INK, labelsize=labels)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(MUTED)
