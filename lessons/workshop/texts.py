"""A lesson's .py as Markdown cells, to read them and to write some of them anew.

A lesson is in jupytext's py:percent form: a Markdown cell is lines of comments below `# %% [markdown]`.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from gemm_ladder.figures import lessons

WIDTH = 108  # of a line of text: two characters less than a line of the .py
PAGE_WIDTH = 118  # of a line of a page that is not a lesson
CELL = re.compile(r"^# %%.*$", re.M)
_APART = re.compile(r"^\s*(?:[-*+] |\d+\. |#|>|\||<|\$\$|!\[|```)")  # a line with which a paragraph begins


class Cell(NamedTuple):
    """One cell: its marker, such as `# %% tags=["guess"]`, and what is below, as it stands in the file."""

    marker: str
    body: str

    @property
    def is_text(self) -> bool:
        return "[markdown]" in self.marker

    @property
    def markdown(self) -> str:
        return re.sub(r"^# ?", "", self.body, flags=re.M)

    def rewritten(self, markdown: str) -> Cell:
        """The cell with another text."""
        lines = markdown.rstrip("\n").split("\n")
        blank = self.body[len(self.body.rstrip("\n")) :]
        return Cell(self.marker, "\n".join(f"# {line}".rstrip() for line in lines) + blank)


def paths() -> list[Path]:
    """The lessons' .py files, in order."""
    return sorted(lessons.FOLDER.glob("[0-9][0-9]_*.py"))


def cells(text: str) -> tuple[str, list[Cell]]:
    """What is ahead of the first cell of a lesson's text, and the cells."""
    markers = [*CELL.finditer(text)]
    ends = [marker.start() for marker in markers[1:]] + [len(text)]
    found = [Cell(marker[0], text[marker.end() + 1 : end]) for marker, end in zip(markers, ends, strict=True)]
    return text[: markers[0].start()], found


def joined(head: str, parts: list[Cell]) -> str:
    """The inverse of `cells`."""
    return head + "".join(f"{cell.marker}\n{cell.body}" for cell in parts)


def paragraphs(markdown: str) -> Iterator[str]:
    """The text in pieces that can be wrapped by themselves; joined with line ends, they are the text."""
    piece: list[str] = []
    for line in markdown.split("\n"):
        if piece and (not line.strip() or not piece[-1].strip() or _APART.match(line)):
            yield "\n".join(piece)
            piece = []
        piece.append(line)
    yield "\n".join(piece)


def wrapped(paragraph: str) -> str:
    """One paragraph, wrapped to WIDTH; an item of a list keeps its indent. Tables and headings stay."""
    if re.match(r"\s*(?:\||#|<|\$\$|```)", paragraph) or not paragraph.strip():
        return paragraph
    item = re.match(r"(\s*(?:[-*+] |\d+\. |> )?)(.*)", paragraph, re.S)
    quote = item[1].endswith("> ")
    words = re.sub(r"\n> ?", " ", item[2]) if quote else item[2]
    further = item[1] if quote else " " * len(item[1])
    return textwrap.fill(
        " ".join(words.split()), WIDTH, initial_indent=item[1], subsequent_indent=further,
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip


def filled(words: str) -> str:
    """A paragraph of README.md."""
    return textwrap.fill(words, PAGE_WIDTH, break_long_words=False, break_on_hyphens=False)
