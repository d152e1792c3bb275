"""Make the notebooks: run each lesson's .py and write the .ipynb beside it, pictures and all.

    python lessons/workshop/make.py            all of them
    python lessons/workshop/make.py 01 03      those whose names begin so

A lesson is written in its .py, in jupytext's py:percent form; tests/test_lessons.py checks that both say the
same.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellTimeoutError
from nbformat import NotebookNode

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script: where `workshop` is
course = importlib.import_module("workshop.course")

LESSONS = Path(__file__).resolve().parents[1]
ATTEMPTS = 3
CELL_SECONDS = 240  # the longest compile a dozen kernels for the emulator, beside another such lesson
WIDGET = "application/vnd.jupyter.widget-view+json"
METADATA = {
    "jupytext": {"formats": "ipynb,py:percent"},  # an edit of either file in Jupyter changes both
    "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def lessons() -> list[Path]:
    """The lessons' .py files, in order."""
    return sorted(LESSONS.glob("[0-9][0-9]_*.py"))


def run(lesson: Path, more: Mapping[int, Sequence[NotebookNode]] | None = None) -> NotebookNode:
    """The lesson, executed from a clean start; nbclient.exceptions.CellExecutionError where a cell fails.

    A cell that takes more than CELL_SECONDS is more likely a message between client and kernel that got lost,
    which was seen with idle kernels: then all is run again. The last of ATTEMPTS raises CellTimeoutError.

    Args:
        lesson: its .py file.
        more: cells to run after some of its own, by the place of those.
    """
    notebook = jupytext.read(lesson)
    notebook.cells = [
        one for index, cell in enumerate(notebook.cells) for one in (cell, *(more or {}).get(index, ()))
    ]
    for _ in range(ATTEMPTS - 1):
        with contextlib.suppress(CellTimeoutError):
            return _execute(copy.deepcopy(notebook))
    return _execute(notebook)


def _execute(notebook: NotebookNode) -> NotebookNode:
    client = NotebookClient(
        notebook,
        timeout=CELL_SECONDS,
        kernel_name="python3",
        resources={"metadata": {"path": str(LESSONS)}},
        record_timing=False,
        coalesce_streams=True,
    )
    client.execute()
    return _stable(notebook)


def _stable(notebook: NotebookNode) -> NotebookNode:
    """Without what differs from run to run, and without widgets: a page cannot run them."""
    notebook.metadata = nbformat.from_dict(METADATA)
    for index, cell in enumerate(notebook.cells):
        cell.id = f"cell-{index}"
        for output in cell.get("outputs", []):
            output.get("data", {}).pop(WIDGET, None)
    return notebook


def main(prefixes: list[str]) -> int:
    chosen = [lesson for lesson in lessons() if not prefixes or lesson.name.startswith(tuple(prefixes))]
    for lesson in chosen:
        start = time.perf_counter()
        nbformat.write(run(lesson), lesson.with_suffix(".ipynb"))
        seconds, said = time.perf_counter() - start, course.SECONDS[lesson.stem[3:]]
        print(
            f"{lesson.stem}: {seconds:.0f} s" + (f", more than the {said} s of course.py" * (seconds > said))
        )
    return 0 if chosen else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
