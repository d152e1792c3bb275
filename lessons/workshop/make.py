"""Make the notebooks: run each lesson's .py and write the .ipynb beside it, pictures and all.

    python lessons/workshop/make.py            all of them
    python lessons/workshop/make.py 01 03      those whose names begin so
    python lessons/workshop/make.py --time     write nothing; from an empty cache, how long do they take?

A lesson is written in its .py, in jupytext's py:percent form; tests/test_lessons.py checks that both say the
same. execute.py runs it, in a process of its own.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jupytext
import nbformat
from nbformat import NotebookNode

LESSONS = Path(__file__).resolve().parents[1]
LESSON_SECONDS = 1200  # of wall time, on a machine that has other things to do
SETUP = "setup"  # the tag of the cell that installs what is missing
WIDGET = "application/vnd.jupyter.widget-view+json"
METADATA = {
    "jupytext": {"formats": "ipynb,py:percent"},  # an edit of either file in Jupyter changes both
    "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


class LessonError(RuntimeError):
    """A cell raised, or the lesson did not end in time; the message says which cell, and what it raised."""


class Seconds(NamedTuple):
    """What a cell or a lesson took: CPU time, that of all its processes, and wall time."""

    cpu: float
    wall: float


def lessons() -> list[Path]:
    """The .py files of the lessons, in order, and of the bridges, which are read at any time."""
    return [*sorted(LESSONS.glob("[0-9][0-9]_*.py")), *sorted(LESSONS.glob("bridge_*.py"))]


def run(lesson: Path, more: Mapping[int, Sequence[NotebookNode]] | None = None) -> NotebookNode:
    """The lesson, executed from a clean start, as it is written to a file. LessonError where a cell fails.

    Args:
        lesson: its .py file.
        more: cells to run after some of its own, by the place of those.
    """
    notebook = jupytext.read(lesson)
    notebook.cells = [
        one for index, cell in enumerate(notebook.cells) for one in (cell, *(more or {}).get(index, ()))
    ]
    ran, _ = execute(with_setup(notebook))
    return _stable(ran)


def with_setup(notebook: NotebookNode) -> NotebookNode:
    """The notebook with setup.py as its first code cell, which a notebook needs that is opened on its own."""
    text = (LESSONS / "workshop" / "setup.py").read_text().strip()
    first = next(index for index, cell in enumerate(notebook.cells) if _is_code(cell))
    notebook.cells.insert(first, nbformat.v4.new_code_cell(text, metadata={"tags": [SETUP]}))
    return notebook


def execute(
    notebook: NotebookNode,
    folder: Path = LESSONS,
    cache: Path | None = None,
    seconds: float = LESSON_SECONDS,
) -> tuple[NotebookNode, dict[int, Seconds]]:
    """A notebook as it is after its cells were run in `folder`, and what each code cell took, by its place.

    Args:
        cache: where kernels are compiled to; the usual folder if it is None.
        seconds: it is ended after so much wall time.

    Raises:
        LessonError: a cell raised, or the time was over.
    """
    environment = dict(os.environ) if cache is None else {**os.environ, "GEMM_LADDER_CACHE": str(cache)}
    with tempfile.TemporaryDirectory() as temporary:
        asked, out = Path(temporary) / "asked.ipynb", Path(temporary) / "ran.ipynb"
        nbformat.write(notebook, asked)
        command = [sys.executable, LESSONS / "workshop" / "execute.py", asked, out]
        try:
            ended = subprocess.run(command, cwd=folder, env=environment, timeout=seconds)
        except subprocess.TimeoutExpired:
            raise LessonError(f"the lesson did not end in {seconds:g} s") from None
        if ended.returncode < 0 or not out.exists():  # a signal ended it, or it wrote nothing
            raise LessonError(f"the lesson's process ended with status {ended.returncode}")
        ran = nbformat.read(out, as_version=4)
    for cell in ran.cells:
        for output in cell.get("outputs", []):
            if output.output_type == "error":
                raise LessonError(f"this cell raised:\n{cell.source}\n\n{''.join(output.traceback)}")
    taken = {i: Seconds(*cell.metadata.pop("seconds")) for i, cell in enumerate(ran.cells) if _is_code(cell)}
    return ran, taken


def _is_code(cell: NotebookNode) -> bool:
    return cell.cell_type == "code"


def _stable(notebook: NotebookNode) -> NotebookNode:
    """Without what differs from run to run, and without widgets: a page cannot run them."""
    notebook.metadata = nbformat.from_dict(METADATA)
    for index, cell in enumerate(notebook.cells):
        cell.id = f"cell-{index}"
        for output in cell.get("outputs", []):
            output.get("data", {}).pop(WIDGET, None)
    return notebook


def report(lesson: Path, cache: Path) -> Seconds:
    """Run a lesson with this cache of kernels and print what its slowest cells take; its total."""
    ran, taken = execute(with_setup(jupytext.read(lesson)), cache=cache)
    for index, (cpu, wall) in sorted(taken.items(), key=lambda item: -item[1].cpu)[:6]:
        first = next(line for line in ran.cells[index].source.splitlines() if line.strip())
        print(f"  cell {index:3}: {cpu:6.1f} s of CPU time, {wall:6.1f} s: {first[:70]}")
    return Seconds(*map(sum, zip(*taken.values(), strict=True)))


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("prefixes", nargs="*", help="how the lessons' names begin; all of them without")
    parser.add_argument("--time", action="store_true", help="write nothing, and say how long each cell takes")
    arguments = parser.parse_args(argv)
    prefixes = tuple(arguments.prefixes)
    chosen = [lesson for lesson in lessons() if not prefixes or lesson.name.startswith(prefixes)]
    if arguments.time:
        with tempfile.TemporaryDirectory() as cache:
            totals = {}
            for lesson in chosen:
                cpu, wall = totals[lesson] = report(lesson, Path(cache))
                print(f"{lesson.stem}: {cpu:.0f} s of CPU time, {wall:.0f} s", flush=True)
        print(f"together: {sum(cpu for cpu, _ in totals.values()):.0f} s of CPU time")
        return 0 if chosen else 1
    for lesson in chosen:
        started = time.perf_counter()
        nbformat.write(run(lesson), lesson.with_suffix(".ipynb"))
        print(f"{lesson.stem}: {time.perf_counter() - started:.0f} s", flush=True)
    return 0 if chosen else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
