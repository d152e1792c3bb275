"""Where the lessons are: so that a notebook works wherever Jupyter was started."""

from __future__ import annotations

import os
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent.parent / "lessons"


def enter() -> None:
    """Make the lessons' folder the working directory, and what they share (lessons/workshop) importable.

    Raises:
        FileNotFoundError: this package was not installed from a checkout, so the lessons are not beside it.
    """
    if not (FOLDER / "workshop").is_dir():
        raise FileNotFoundError(
            "The lessons need the repository that gemm_ladder was installed from, but it is not there: in "
            "the repository's folder, run pip install -e '.[lessons]'."
        )
    os.chdir(FOLDER)
    if str(FOLDER) not in sys.path:
        sys.path.insert(0, str(FOLDER))
