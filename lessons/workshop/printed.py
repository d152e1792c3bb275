"""What a lesson prints, in lines that a page shows whole.

A page on GitHub does not break the lines of an output: what is longer has to be scrolled to.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from gemm_ladder.figures import measured

WIDTH = 105  # letters of a line
_GLUE = "\u00a0"  # stands for a space at which a line is not broken


def folded(text: object) -> str:
    """The text, each of its lines that is longer than WIDTH broken at spaces; what follows is indented."""
    return "\n".join(map(_fold, str(text).splitlines())).replace(_GLUE, " ")


def whole(text: str) -> str:
    """The text as a part of one that is folded: it stays in one line there."""
    return text.replace(" ", _GLUE)


def _fold(line: str) -> str:
    if len(line) <= WIDTH:
        return line
    indent = line[: len(line) - len(line.lstrip())]
    return textwrap.fill(
        line.lstrip(),
        WIDTH,
        initial_indent=indent,
        subsequent_indent=f"{indent}    ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def show(*words: object) -> None:
    """Print them, as `print` does, folded."""
    print(folded(" ".join(map(str, words))))


def provenance(shown: Sequence[measured.Series]) -> list[str]:
    """What measured.provenance says of these series, folded: for a notebook."""
    return [folded(line) for line in measured.provenance(shown)]
