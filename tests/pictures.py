"""The texts of a picture and their places, to check that none is cut off or overlaps another."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from matplotlib.text import Text
from matplotlib.transforms import Bbox


def texts(figure: Any) -> list[tuple[str, Bbox]]:
    """Every visible text of a figure and its box, in coordinates from 0 to 1 over the page."""
    figure.canvas.draw()
    renderer = figure.canvas.get_renderer()
    found = [*figure.texts, *(text for axes in figure.axes for text in axes.texts)]
    for axes in figure.axes:
        found += [axes._left_title, axes._right_title]
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            found += [tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
        found += axes.get_legend().get_texts() if axes.get_legend() else []
    # Text.get_window_extent, because an annotation's own includes its arrow.
    return [
        (text.get_text(), Text.get_window_extent(text, renderer).transformed(figure.transFigure.inverted()))
        for text in found
        if text.get_text() and text.get_visible()
    ]


def check(found: Sequence[tuple[str, Bbox]]) -> None:
    """Assert that all texts are on the page and that none overlaps another."""
    for text, box in found:
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= 1 and box.y1 <= 1, f"{text!r} is cut off"
    for (one, a), (other, b) in itertools.combinations(found, 2):
        depth = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
        assert min(depth) <= 1e-3, f"{one!r} overlaps {other!r}"
