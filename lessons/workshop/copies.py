"""A learner's copy of the lessons: the notebooks without outputs and answers, and how far the learner is.

    python -m gemm_ladder lessons start DIR
    python -m gemm_ladder lessons progress [DIR]

The copy runs with the checkout's workshop, so it needs nothing else. figures/lessons.py says how a notebook
finds that, and progress.py what is kept.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from gemm_ladder.errors import InputError
from gemm_ladder.figures import lessons, tables
from workshop import progress

Cell = dict[str, Any]

CHECKS = re.compile(r'^exercises\.check\("(\d\d\.\d+)"', re.M)
GUESSES = re.compile(r'^exercises\.guess(?:_break)?\("(\d\d\.\w+)"', re.M)


def main(argv: Sequence[str] | None = None) -> int:
    """Lay out a copy, or say how far it is. InputError where that cannot be done."""
    parser = argparse.ArgumentParser(
        prog="python -m gemm_ladder lessons", description="A copy of the lessons to work in."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="start|progress")
    one = commands.add_parser("start", help="lay out the notebooks in DIR, without outputs and answers")
    one.add_argument("dir", metavar="DIR", type=Path)
    one = commands.add_parser(
        "progress", help="say what has been solved and guessed in DIR, and what is next"
    )
    one.add_argument("dir", metavar="DIR", type=Path, nargs="?", default=Path())
    arguments = parser.parse_args(argv)
    if arguments.command == "start":
        first = start(arguments.dir)
        print(f"The lessons are in {arguments.dir}. Begin with: jupyter lab {first}")
    else:
        print(how_far(arguments.dir))
    return 0


# ------------------------------------------------------------------------------------------ laying out a copy


def start(folder: Path) -> Path:
    """Lay out the notebooks in a folder that is new, empty, or a copy in which nothing has been done.

    Returns the first notebook. InputError, before anything is written, where it has other files or work.
    """
    _refuse_work(folder)
    books = {path.name: _learners(json.loads(path.read_text()), path.stem[:2]) for path in notebooks()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, book in books.items():
            (folder / name).write_text(json.dumps(book, indent=1, ensure_ascii=False) + "\n")
        link = folder / lessons.REPOSITORY
        link.unlink(missing_ok=True)
        link.symlink_to(lessons.FOLDER.parent)
        laid_out = {name: _sources(book) for name, book in books.items()}
        progress.write(folder, {**copy.deepcopy(progress.EMPTY), "laid_out": laid_out})
    except OSError as error:
        raise InputError(f"{folder} cannot be written: {error}") from error
    return folder / min(books)


def notebooks() -> list[Path]:
    """The repository's notebooks, in order."""
    return sorted(lessons.FOLDER.glob("[0-9][0-9]_*.ipynb"))


def _refuse_work(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; a folder that is new or empty is needed")
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    if not (folder / lessons.PROGRESS).exists():
        raise InputError(f"{folder} has files in it; a folder that is new or empty is needed")
    if worked := _worked(folder):
        raise InputError(f"{folder} has work in it ({worked}); a folder that is new or empty is needed")


def _worked(folder: Path) -> str:
    """What a learner has done in a copy, in words; nothing if it is as it was laid out."""
    known = progress.read(folder)
    for key, words in (("solved", "solved exercises"), ("guesses", "guesses"), ("hints", "hints")):
        if known[key]:
            return words
    for path in sorted(folder.glob("*.ipynb")):
        try:
            as_it_was = _sources(json.loads(path.read_text())) == known["laid_out"].get(path.name)
        except (ValueError, TypeError, KeyError, AttributeError):  # not a notebook as `start` writes them
            as_it_was = False
        if not as_it_was:
            return f"a changed {path.name}"
    return ""


def _sources(book: dict[str, Any]) -> str:
    """A hash of a notebook's cells without their outputs: to have run a cell is no work."""
    cells = [(cell["cell_type"], "".join(cell["source"])) for cell in book["cells"]]
    return hashlib.sha256(json.dumps(cells).encode()).hexdigest()


def _learners(book: dict[str, Any], number: str) -> dict[str, Any]:
    """A lesson's notebook as a learner gets it."""
    metadata = {key: value for key, value in book["metadata"].items() if key != "jupytext"}
    cells, reasons = [], 0
    for cell in book["cells"]:
        if "setup" in cell["metadata"].get("tags", []):  # a copy is laid out where gemm_ladder is installed
            continue
        if cell["cell_type"] == "code":
            cells.append(_unrun(cell))
            continue
        for text, is_reason in _parts("".join(cell["source"])):
            if is_reason:
                reasons += 1
                cells.append(_unrun({"source": [f'exercises.why("{number}.{reasons}")'], "metadata": {}}))
            else:
                text = lessons.relocated(text)
                cells.append({**cell, "source": text.splitlines(keepends=True)})
    for index, cell in enumerate(cells):
        cell["id"] = f"cell-{index}"
    return {**book, "metadata": metadata, "cells": cells}


def _unrun(cell: Cell) -> Cell:
    metadata = dict(cell["metadata"])
    if "break" in metadata.get("tags", []):  # the learner guesses which line it changes
        metadata["jupyter"] = {"source_hidden": True}
    return {
        "cell_type": "code",
        "execution_count": None,
        "metadata": metadata,
        "outputs": [],
        "source": cell["source"],
    }


def _parts(markdown: str) -> Iterator[tuple[str, bool]]:
    """A text in pieces, between folds and in them; and whether the piece is what a fold hides."""
    for index, part in enumerate(lessons.FOLD.split(markdown)):
        if part.strip():
            yield part.strip(), index % 2 == 1


# --------------------------------------------------------------------------------------------------- how far


def how_far(folder: Path) -> str:
    """A table of the lessons, with what has been solved and guessed in a copy, and what comes next."""
    known = progress.read(folder)
    rows, following = [["lesson", "exercises solved", "guesses made"]], ""
    for path in notebooks():
        text = path.with_suffix(".py").read_text()
        checks, guesses = CHECKS.findall(text), GUESSES.findall(text)
        solved = [name for name in checks if name in known["solved"]]
        made = [name for name in guesses if name in known["guesses"]]
        which = f": {', '.join(name[3:] for name in solved)}" if solved else ""
        rows.append([path.stem, f"{len(solved)} of {len(checks)}{which}", f"{len(made)} of {len(guesses)}"])
        left = [name for name in checks if name not in solved]
        if left and not following:
            following = f"Next: exercise {left[0]}, in {os.path.join(folder, path.name)}"
    return f"{tables.plain(rows)}\n\n{following or 'All exercises are solved.'}"
