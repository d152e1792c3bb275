"""What the pictures share: colours, legible sizes, and a page with a title above its panels, notes below."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any, NamedTuple

INK, MUTED, GRID = "#1a1a1a", "#666666", "#e4e4e4"

# Inches: above the panels; for the ticks below them; a line of notes; below and above all notes.
HEAD, TICKS, LINE, MARGIN = 1.2, 0.4, 0.16, 0.25
LETTERS = 124  # of a note per inch, of one point

SHOWN_WIDTH = 800  # pixels: how wide a page on GitHub shows a picture, or less where the picture has less
SMALLEST = 9  # pixels of height that a text has there at least


class Sheet(NamedTuple):
    """A matplotlib Figure, and where its panels begin and end, from 0 at its bottom to 1 at its top."""

    figure: Any
    bottom: float
    top: float


def shown(figure: Any, dpi: float, width: float | None = None) -> dict[str, float]:
    """The texts of a matplotlib Figure, and how high each is on a page that shows the picture, in pixels.

    Args:
        figure: the picture.
        dpi: the dots per inch with which it is saved.
        width: the picture's, in inches, if it is not the figure's.
    """
    from matplotlib.text import Text

    a_point = min(dpi, SHOWN_WIDTH / (width or figure.get_figwidth())) / 72
    texts = [text for text in figure.findobj(Text) if text.get_text().strip() and text.get_visible()]
    sizes: dict[str, float] = {}
    for text in texts:
        size = text.get_fontsize() * a_point
        sizes[text.get_text()] = min(size, sizes.get(text.get_text(), size))
    return sizes


def least(width: float) -> float:
    """The points that a text has to have in a picture `width` inches wide."""
    return SMALLEST * 72 * width / SHOWN_WIDTH


def sheet(width: float, panels: float, title: str, subtitle: str, notes: Sequence[str]) -> Sheet:
    """An empty page, `width` inches wide, with `panels` inches of height for all panels together."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    size = max(7.5, least(width))
    letters = int(LETTERS * width / size)
    lines = [line for note in notes for line in textwrap.wrap(note, letters, subsequent_indent="    ")]
    line = LINE * size / 7.5
    foot = TICKS + line * len(lines) + MARGIN
    height = HEAD + panels + foot
    figure = Figure(figsize=(width, height), facecolor="white")
    FigureCanvasAgg(figure)
    left = 0.24 / width
    above, below = {"color": INK, "va": "center"}, {"color": MUTED, "va": "bottom"}
    figure.text(left, 1 - 0.32 / height, title, size=16, weight="bold", **above)
    subtitle = "\n".join(textwrap.wrap(subtitle, int(122 * width / 10)))
    figure.text(left, 1 - 0.5 / height, subtitle, size=10, **above | {"color": MUTED, "va": "top"})
    figure.text(left, 0.12 / height, "\n".join(lines), size=size, linespacing=1.5, **below)
    return Sheet(figure, foot / height, 1 - HEAD / height)


def frame(axes: Any, grid: str, labels: float = 8.5) -> None:
    """Give a panel a line below and grid lines for `grid`: "x", "y" or "both"."""
    axes.grid(axis=grid, color=GRID, linewidth=0.8, zorder=0)
    axes.tick_params(length=0, which="both", colors=INK, labelsize=labels)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(MUTED)
