"""What a learner has done: exercises solved, hints seen, guesses made; one file in the learner's copy.

A notebook of the repository itself has no such file: what is done in it is forgotten when its process ends.
"""

from __future__ import annotations

import contextlib
import copy
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gemm_ladder.build import folders
from gemm_ladder.errors import InputError
from gemm_ladder.figures import lessons

# solved: exercises' ids, in the order in which they were solved. hints: how many have been seen, by id.
# guesses: by name. laid_out: by notebook, a hash of the cells that `lessons start` wrote.
EMPTY: dict[str, Any] = {"solved": [], "hints": {}, "guesses": {}, "laid_out": {}}

_forgotten = copy.deepcopy(EMPTY)  # of a notebook of the repository


def mine() -> dict[str, Any]:
    """What is known of this process's notebook."""
    folder = lessons.learner()
    return copy.deepcopy(_forgotten) if folder is None else read(folder)


def read(folder: Path) -> dict[str, Any]:
    """What is known of a learner's copy.

    Raises:
        InputError: the folder is no learner's copy, or somebody else has written into its file.
    """
    path = folder / lessons.PROGRESS
    try:
        known = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise InputError(
            f"{folder} is not a learner's copy of the lessons: it has no {lessons.PROGRESS}; "
            f"`python -m gemm_ladder lessons start {folder}` makes one"
        ) from error
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} cannot be read ({error}); a file that `lessons start` wrote is needed"
        ) from error
    if not isinstance(known, dict) or any(type(known.get(key)) is not type(EMPTY[key]) for key in EMPTY):
        raise InputError(
            f"{path} lacks one of {', '.join(EMPTY)}; a file that `lessons start` wrote is needed"
        )
    return known


def write(folder: Path, known: dict[str, Any]) -> None:
    """Replace a learner's file as a whole."""
    folders.replace(folder / lessons.PROGRESS, json.dumps(known, indent=1) + "\n")


@contextlib.contextmanager
def changed() -> Iterator[dict[str, Any]]:
    """What is known of this process's notebook, to be changed; other notebooks of the copy wait meanwhile."""
    folder = lessons.learner()
    if folder is None:
        yield _forgotten
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        known = read(folder)
        yield known
        write(folder, known)
    finally:
        os.close(handle)
