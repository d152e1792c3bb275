"""The lessons: both forms of each are equal, it runs from a clean start, and its exercises can be solved."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import jupytext
import nbformat
import pytest
from gemm_ladder.rungs import rungs
from nbclient.exceptions import CellTimeoutError

REPOSITORY = Path(__file__).resolve().parents[1]
FOLDER = REPOSITORY / "lessons"
LESSONS = sorted(FOLDER.glob("[0-9][0-9]_*.py"))
SOLVED = "solved"  # a check that comes after the solution
LARGEST = 1_000_000  # bytes: what a browser still shows, and a repository bears

spec = importlib.util.spec_from_file_location("lessons_make", FOLDER / "workshop" / "make.py")
make = importlib.util.module_from_spec(spec)
spec.loader.exec_module(make)

each_lesson = pytest.mark.parametrize("lesson", LESSONS, ids=lambda path: path.stem)


def notebook(lesson: Path) -> nbformat.NotebookNode:
    """The committed .ipynb of a lesson's .py."""
    return nbformat.read(lesson.with_suffix(".ipynb"), as_version=4)


def solution(lesson: Path) -> list[str]:
    """The cells that solve the lesson's exercises, in order."""
    return [
        cell.source
        for cell in jupytext.read(FOLDER / "solutions" / lesson.name, fmt="py:percent").cells
        if not cell.source.startswith("# Lesson ")
    ]


def tagged(cells: list, tag: str) -> list[int]:
    return [index for index, cell in enumerate(cells) if tag in cell.metadata.get("tags", [])]


def verdicts(ran: nbformat.NotebookNode, tag: str) -> list[str]:
    """What each check with that tag prints."""
    return [
        "".join(output.get("text", "") for output in ran.cells[index].outputs)
        for index in tagged(ran.cells, tag)
    ]


def test_there_are_lessons() -> None:
    assert LESSONS and LESSONS[0].stem == "00_start_here"
    assert make.lessons() == LESSONS


@each_lesson
def test_both_forms_say_the_same(lesson: Path) -> None:
    def cells(book: nbformat.NotebookNode) -> list[tuple]:
        return [(cell.cell_type, cell.source, cell.metadata.get("tags", [])) for cell in book.cells]

    assert cells(notebook(lesson)) == cells(jupytext.read(lesson)), (
        f"python lessons/workshop/make.py {lesson.stem}"
    )


@each_lesson
def test_notebook_is_whole_and_small(lesson: Path) -> None:
    """It was run from top to bottom, without an error, and can be read without running it."""
    path = lesson.with_suffix(".ipynb")
    assert path.stat().st_size < LARGEST
    book = notebook(lesson)
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert all(output.output_type != "error" for output in outputs)
    assert all(output.get("name") != "stderr" for output in outputs), "a warning is in the lesson"
    assert all(make.WIDGET not in output.get("data", {}) for output in outputs), "a page cannot run it"
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert all("text/plain" in output["data"] for output in outputs if "data" in output)


def texts() -> Iterator[tuple[str, str]]:
    """(name, Markdown) of every text that may have links."""
    for path in [FOLDER / "README.md"]:
        yield path.name, path.read_text()
    for lesson in LESSONS:
        for cell in notebook(lesson).cells:
            if cell.cell_type == "markdown":
                yield lesson.name, cell.source
            for output in cell.get("outputs", []):
                yield lesson.name, output.get("data", {}).get("text/markdown", "")


def test_links_lead_somewhere() -> None:
    found = [(name, link) for name, text in texts() for link in re.findall(r"\]\(([^)\s]+)\)", text)]
    assert found
    for name, link in found:
        path, _, anchor = link.partition("#")
        if "://" in link:
            continue
        assert (FOLDER / path).exists(), f"{name}: {link}"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", (FOLDER / path).read_text(), re.M)
            assert anchor in {heading.lower().replace(" ", "-") for heading in headings}, f"{name}: {link}"


def test_contents_have_every_lesson_and_every_rung() -> None:
    rows = re.findall(
        r"^\| (?:\[(\w+)\]\(\1\.ipynb\)|(\w+)) \| (\w*) ?\|", (FOLDER / "README.md").read_text(), re.M
    )
    rows = rows[1:]  # the head
    assert [linked for linked, _, _ in rows if linked] == [lesson.stem for lesson in LESSONS]
    stems = [linked or planned for linked, planned, _ in rows]
    assert [int(stem[:2]) for stem in stems] == list(range(len(stems)))
    assert {rung for _, _, rung in rows if rung} >= set(rungs)


def test_spelling() -> None:
    files = [*FOLDER.glob("*.py"), *FOLDER.glob("solutions/*.py"), FOLDER / "README.md"]
    checked = subprocess.run(
        [sys.executable, "-m", "codespell_lib", *files], capture_output=True, text=True, cwd=FOLDER
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


@each_lesson
def test_every_exercise_has_a_check_and_a_solution(lesson: Path) -> None:
    cells = jupytext.read(lesson).cells
    exercises, checks = tagged(cells, "exercise"), tagged(cells, "check")
    assert exercises and checks == [index + 1 for index in exercises]
    assert len(solution(lesson)) == len(exercises)


def solved(cells: list, solution: list[str]) -> dict[int, list]:
    """What to run after each check: the exercise's solution, the check again, and the exercise as it was."""
    code, exercises = nbformat.v4.new_code_cell, tagged(cells, "exercise")
    return {
        index + 1: [
            code(text),
            code(cells[index + 1].source, metadata={"tags": [SOLVED]}),
            code(cells[index].source),
        ]
        for index, text in zip(exercises, solution, strict=True)
    }


@pytest.mark.parametrize("hangs", [0, 1, 2, 3])
def test_a_lost_message_is_no_failure_at_first(hangs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = []

    class Client:
        def __init__(self, notebook: nbformat.NotebookNode, **options: object) -> None:
            self.notebook = notebook

        def execute(self) -> None:
            runs.append([cell.get("execution_count") for cell in self.notebook.cells])
            for cell in self.notebook.cells:
                cell.execution_count = 1
            if len(runs) <= hangs:
                raise CellTimeoutError("a cell hangs")

    monkeypatch.setattr(make, "NotebookClient", Client)
    if hangs == make.ATTEMPTS:
        with pytest.raises(CellTimeoutError):
            make.run(LESSONS[0])
    else:
        make.run(LESSONS[0])
    assert len(runs) == min(hangs + 1, make.ATTEMPTS) and all(run == runs[0] for run in runs), (
        "each from a clean start"
    )


@pytest.mark.slow
@each_lesson
def test_runs_and_can_be_solved(lesson: Path) -> None:
    """Every cell runs. Each check says "Not yet", and "Right" once the exercise has its solution."""
    cells = jupytext.read(lesson).cells
    ran = make.run(lesson, solved(cells, solution(lesson)))
    for tag, word in (("check", "Not yet: "), (SOLVED, "Right: ")):
        found = verdicts(ran, tag)
        assert len(found) == len(tagged(cells, "exercise"))
        assert all(verdict.startswith(word) for verdict in found), found
