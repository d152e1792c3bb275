"""The tables as cells, for a terminal and in Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from .measured import Series, name_of, number, sizes_of


def table(shown: Sequence[Series]) -> list[list[str]]:
    """TFLOPS by shape, as cells; the first row is the header."""
    cells = [["m x n x k", *(one.label for one in shown)]]
    for size in sizes_of(shown):
        cells.append([name_of(size), *(number(one.tflops.get(size)) for one in shown)])
    return cells


def plain(cells: Sequence[Sequence[str]]) -> str:
    """A table for a terminal."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(f"{cell:{'<' if not i else '>'}{widths[i]}}" for i, cell in enumerate(row)).rstrip()
        for row in cells
    )


def markdown(cells: Sequence[Sequence[str]]) -> str:
    """A table in Markdown: the first column aligned to the left, the others to the right."""
    lines = ["| " + " | ".join(row) + " |" for row in cells]
    lines.insert(1, "|---|" + "---:|" * (len(cells[0]) - 1))
    return "\n".join(lines)


def under(notes: Sequence[str]) -> str:
    """Small print below a table in Markdown, a line for each note."""
    return "\n".join(f"<sub>{note}</sub><br>" for note in notes)
