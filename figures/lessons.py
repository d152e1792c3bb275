"""Where the lessons are: so that a notebook works wherever Jupyter was started, in a learner's copy too."""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

FOLDER = Path(__file__).resolve().parent.parent / "lessons"
PROGRESS = "progress.json"  # the file that makes a folder a learner's copy; lessons/workshop/progress.py
REPOSITORY = "repository"  # in a learner's copy: a link to the checkout, so that links to its files work
FOLD = re.compile(r"<details><summary>[^<]*</summary>\n+(.*?)</details>\n*", re.S)  # around a reason

_learner: Path | None = None


def find() -> None:
    """Make what the lessons share (lessons/workshop) importable.

    Raises:
        FileNotFoundError: this package was not installed from a checkout, so the lessons are not beside it.
    """
    if not (FOLDER / "workshop").is_dir():
        raise FileNotFoundError(
            "The lessons need the repository that gemm_ladder was installed from, but it is not there: in "
            "the repository's folder, run pip install -e '.[lessons]'."
        )
    if str(FOLDER) not in sys.path:
        sys.path.insert(0, str(FOLDER))


def enter() -> None:
    """Do `find`, and make the lessons' folder the working directory. A notebook calls this first.

    If the notebook lies in a learner's copy, `learner` returns that folder from then on.
    """
    global _learner
    find()
    if Path(PROGRESS).is_file():
        _learner = Path.cwd()
    os.chdir(FOLDER)


def learner() -> Path | None:
    """The learner's copy that this process's notebook lies in; None if it lies in the repository."""
    return _learner


def relocated(markdown: str) -> str:
    """A lesson's Markdown with the links as they have to be in a learner's copy.

    Links to other lessons stay, as the copy has those. Links to the repository's other files, which are
    relative to FOLDER, go through the copy's link REPOSITORY.
    """

    def moved(link: re.Match[str]) -> str:
        path = os.path.relpath(FOLDER / link[1], FOLDER.parent)
        return link[0] if re.fullmatch(r"\d\d_\w+\.ipynb", link[1]) else f"]({REPOSITORY}/{path})"

    return re.sub(r"\]\((?![\w+]+:|#)([^)\s]+)\)", moved, markdown)


def main(argv: Sequence[str] | None = None) -> int:
    """python -m gemm_ladder lessons: lessons/workshop/copies.py does it, if the lessons are there."""
    try:
        find()
    except FileNotFoundError as error:
        print(f"gemm_ladder: {error}", file=sys.stderr)
        return 2
    return importlib.import_module("workshop.copies").main(argv)
