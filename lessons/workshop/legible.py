"""A warning where a lesson's picture has a text that is too small to read on a page.

drawing.style has matplotlib call `watch` for every figure. A warning in a lesson fails tests/test_lessons.py.
"""

from __future__ import annotations

import warnings
from typing import Any

from gemm_ladder.figures import sheet

_TOLERANCE = 0.02  # of a pixel: a figure's width is in hundredths of an inch


def watch(figure: Any) -> None:
    """Look at the sizes of a matplotlib Figure's texts whenever it is drawn."""
    figure.canvas.mpl_connect("draw_event", lambda event: _look(event.canvas.figure))


def _look(figure: Any) -> None:
    """Warn of the smallest text if it is too small. What a notebook shows may be cut to its content, so that
    the width of the picture is not that of the figure."""
    width = figure.bbox_inches.width
    sizes = sheet.shown(figure, figure.dpi, width)
    text = min(sizes, key=sizes.__getitem__, default=None)
    if text is not None and sizes[text] < sheet.SMALLEST - _TOLERANCE:
        warnings.warn(
            f"{text!r} is {sizes[text]:.1f} pixels high where a page shows this picture, {width:.1f} inches "
            f"wide; {sheet.least(width):.1f} points are needed for {sheet.SMALLEST} pixels.",
            stacklevel=2,
        )
