"""The lessons: both forms of each are equal, it runs from a clean start, and its exercises can be solved."""

from __future__ import annotations

import ast
import base64
import copy
import os
import re
import subprocess
import sys
import time
import types
from collections.abc import Iterator
from pathlib import Path

import jupytext
import nbformat
import pytest
from gemm_ladder.errors import InputError
from gemm_ladder.figures import lessons
from gemm_ladder.rungs import rungs

REPOSITORY = Path(__file__).resolve().parents[1]
FOLDER = REPOSITORY / "lessons"
LESSONS = sorted(FOLDER.glob("[0-9][0-9]_*.py"))
BRIDGES = sorted(FOLDER.glob("bridge_*.py"))  # to read: without exercises
SOLVED = "solved"  # a check that comes after the solution
LARGEST = 1_000_000  # bytes: what a browser still shows, and a repository bears
WIDEST = 110  # letters of a printed line: what GitHub's column has room for

lessons.find()
from workshop import (  # noqa: E402
    apart,
    bridges,
    exercises,
    guesses,
    make,
    printed,
    progress,
    workbench,
)

each_lesson = pytest.mark.parametrize("lesson", LESSONS, ids=lambda path: path.stem)
each_page = pytest.mark.parametrize("lesson", [*LESSONS, *BRIDGES], ids=lambda path: path.stem)


def notebook(lesson: Path) -> nbformat.NotebookNode:
    """The committed .ipynb of a lesson's .py."""
    return nbformat.read(lesson.with_suffix(".ipynb"), as_version=4)


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
    assert BRIDGES and make.lessons() == [*LESSONS, *BRIDGES]


@each_page
def test_both_forms_say_the_same(lesson: Path) -> None:
    def cells(book: nbformat.NotebookNode) -> list[tuple]:
        return [(cell.cell_type, cell.source, cell.metadata.get("tags", [])) for cell in book.cells]

    assert cells(notebook(lesson)) == cells(make.with_setup(jupytext.read(lesson))), (
        f"python lessons/workshop/make.py {lesson.stem}"
    )


@each_page
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
    assert lesson in BRIDGES or any("image/png" in output.get("data", {}) for output in outputs)
    assert all("text/plain" in output["data"] for output in outputs if "data" in output)
    printed = "".join(output.get("text", "") for output in outputs).splitlines()
    wide = [line for line in printed if len(line) > WIDEST]
    assert not wide, f"a page does not break these lines (workshop/printed.py does): {wide}"


def texts() -> Iterator[tuple[str, str]]:
    """(name, Markdown) of every text that may have links."""
    for path in [FOLDER / "README.md"]:
        yield path.name, path.read_text()
    for lesson in [*LESSONS, *BRIDGES]:
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
        if re.fullmatch(r"L\d+", anchor):
            assert int(anchor[1:]) <= len((FOLDER / path).read_text().splitlines()), f"{name}: {link}"
        elif anchor:
            headings = re.findall(r"^#+ (.+)$", (FOLDER / path).read_text(), re.M)
            assert anchor in {heading.lower().replace(" ", "-") for heading in headings}, f"{name}: {link}"


def test_contents_have_every_lesson_and_every_rung() -> None:
    rows = re.findall(
        r"^\| (?:\[(\w+)\]\(\1\.ipynb\)|(\w+)) \| (\w*) ?\|", (FOLDER / "README.md").read_text(), re.M
    )
    read = [linked for linked, _, _ in rows if linked.startswith("bridge_")]
    assert sorted(read) == [bridge.stem for bridge in BRIDGES]
    rows = [row for row in rows[1:] if row[0] not in read and row[1] != "bridge"]  # without the heads
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
    cells, number = jupytext.read(lesson).cells, lesson.stem[:2]
    asked, checks = tagged(cells, "exercise"), tagged(cells, "check")
    assert asked and checks == [index + 1 for index in asked]
    assert len(exercises.solutions(number)) == len(asked)
    names = [f"{number}.{place + 1}" for place in range(len(asked))]
    assert [*exercises.of_lesson(number)] == names
    for name, index in zip(names, checks, strict=True):
        assert re.fullmatch(rf'exercises\.check\("{name}", \w+\)', cells[index].source)


def squeezed(text: str) -> str:
    return "".join(text.split())


def told(solution: str) -> list[str]:
    """The parts of a solution that no hint may have as a whole: what a function does, a text, or a value."""
    *_, last = ast.parse(solution).body
    if isinstance(last, ast.FunctionDef):
        return [squeezed("".join(map(ast.unparse, last.body)).removeprefix("return"))]
    if isinstance(last.value, ast.Constant):
        return [squeezed(last.value.value)]
    return [squeezed(ast.unparse(last.value)), squeezed(ast.get_source_segment(solution, last.value))]


@each_lesson
def test_every_exercise_has_three_hints(lesson: Path) -> None:
    """They are sentences, each says more than the one before, and none is the answer."""
    number = lesson.stem[:2]
    for (name, one), solution in zip(
        exercises.of_lesson(number).items(), exercises.solutions(number), strict=True
    ):
        assert len(set(one.hints)) == 3, name
        for hint in one.hints:
            assert 30 < len(hint) < 420, name
            assert hint[-1] in ".?", f"{name}: {hint}"
            assert all(part not in squeezed(hint) for part in told(solution)), f"{name}: {hint}"


def test_a_check_a_hint_and_an_answer(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def said() -> str:
        return capsys.readouterr().out

    def scales_of(i: int, j: int, k: int) -> tuple:
        return (i, 0), (0, 0)

    monkeypatch.setattr(progress, "_forgotten", copy.deepcopy(progress.EMPTY))
    exercises.check("00.2", scales_of)
    assert said() == (
        "Not yet: scales_of(5, 7, 128) gives ((5, 0), (0, 0)); ((5, 1), (0, 1)) is expected.\n"
        'For a hint: exercises.hint("00.2")\n'
    )
    assert exercises.answer("00.2") is None and "3 hints left" in said()
    for seen in (1, 2, 3, 3):
        exercises.hint("00.2")
        text = said()
        assert [f"{step}. " in text for step in (1, 2, 3)] == [step <= seen for step in (1, 2, 3)]
    assert 'exercises.answer("00.2")' in text
    answer = exercises.answer("00.2").plain
    assert answer == exercises.solutions("00")[1]
    exec(answer, names := {})
    exercises.check("00.2", names["scales_of"])
    assert said() == "Right: scales_of agrees in all 6 cases.\n"
    exercises.check("00.2", lambda i, j, k: 1 / 0)
    assert "raises ZeroDivisionError" in said()


@pytest.mark.parametrize("name", ["00.3", "77.1", "x", "00.", ""])
def test_a_name_that_is_no_exercise(name: str) -> None:
    with pytest.raises(InputError, match=r"needed"):
        exercises.hint(name)


def test_reasons_are_those_of_the_lesson() -> None:
    assert exercises.why("02.2").markdown.startswith("Columns 0 to 127 do have the first row of scales.")
    with pytest.raises(InputError, match="lesson 02 has 3 reasons"):
        exercises.why("02.4")


@each_lesson
def test_readers_guess_before_they_look(lesson: Path) -> None:
    """Each guess has a name of its own, and a later cell that shows it; each fault is guessed at before."""
    cells, number = jupytext.read(lesson).cells, lesson.stem[:2]
    named = re.compile(r'exercises\.guess(?:_break)?\("([\w.]+)"')
    guessed = {index: named.findall(cells[index].source) for index in tagged(cells, "guess")}
    names = [name for found in guessed.values() for name in found]
    assert names and len(names) == len(set(names)) and all(guessed.values())
    for index, found in guessed.items():
        later = "".join(cell.source for cell in cells[index + 1 :] if cell.cell_type == "code")
        for name in found:
            assert name.startswith(f"{number}.") and f'"{name}"' in later, name
    assert all(index - 1 in guessed for index in tagged(cells, "break"))
    untagged = [cell.source for i, cell in enumerate(cells) if cell.cell_type == "code" and i not in guessed]
    assert not any(map(named.search, untagged)), "a cell with a guess has the tag guess"


@pytest.mark.parametrize(
    ("mine", "choices", "said"),
    [
        (None, (), "Found: 7.3 times. You made no guess."),
        (3, (), "Found: 7.3 times. You guessed 3, 0.41 times that."),
        (1e3, (), "Found: 7.3 times. You guessed 1000, 1.4e+02 times that."),
        ("3", (), "a number is needed"),
        (True, (), "a number is needed"),
        ("L1", ("L1", "L2"), "Found: L2. You guessed L1: not so."),
        ("L2", ("L1", "L2"), "Found: L2. You guessed L2: that is it."),
        ("L3", ("L1", "L2"), "one of 'L1', 'L2' is needed"),
    ],
)
def test_guesses(
    mine: object,
    choices: tuple,
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(progress, "_forgotten", copy.deepcopy(progress.EMPTY))
    guesses.guess("02.a", mine, *choices)
    guesses.found("02.a", *(("L2",) if choices else (7.3, "times")))
    assert said in capsys.readouterr().out


def test_printed_lines_are_as_wide_as_a_page() -> None:
    words = ["word"] * 60 + ["in one piece"] * 20
    folded = printed.folded("  short\n  " + " ".join(map(printed.whole, words)))
    first, second, *rest = folded.splitlines()
    assert first == "  short" and second.startswith("  word") and len(rest) > 2
    assert all(len(line) <= printed.WIDTH < WIDEST for line in (second, *rest))
    assert all(re.match("      (word|in one piece)", line) for line in rest)
    assert " ".join(line.strip() for line in (second, *rest)) == " ".join(words)


def test_a_broken_kernel_cannot_end_the_notebook() -> None:
    assert apart.call(os.getpid) == apart.call(os.getpid) != os.getpid()
    for ends, words in ((os.abort, "SIGABRT"), (os._exit, "status 3")):
        with pytest.raises(apart.Ended, match=words):
            apart.call(ends, *([3] if ends is os._exit else []))
    with pytest.raises(apart.Ended, match=r"no answer in 0\.2 s"):
        apart.call(time.sleep, 60, seconds=0.2)
    with pytest.raises(ValueError, match="invalid literal"):
        apart.call(int, "no number")
    assert apart.call(abs, -3) == 3


def solved(cells: list, solution: list[str]) -> dict[int, list]:
    """What to run after each check: the exercise's solution, the check again, and the exercise as it was."""
    code, asked = nbformat.v4.new_code_cell, tagged(cells, "exercise")
    return {
        index + 1: [
            code(text),
            code(cells[index + 1].source, metadata={"tags": [SOLVED]}),
            code(cells[index].source),
        ]
        for index, text in zip(asked, solution, strict=True)
    }


def book(*sources: str) -> nbformat.NotebookNode:
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])


def test_what_a_cell_shows_is_kept_in_its_order() -> None:
    """As Jupyter's kernel does it, without one."""
    ran, taken = make.execute(
        book(
            "import sys\nprint('a')\nprint('b')\nprint('c', file=sys.stderr)\nprint('d')",
            "from matplotlib import pyplot as plt\nplt.plot([1, 2])\nprint('first')\n6 * 7",
            "_ = 3\n7;",
            "assert __name__ == '__main__'\nimport os\nos.getcwd()",
        )
    )
    streams, picture, nothing, folder = (cell.outputs for cell in ran.cells)
    assert [(one.name, one.text) for one in streams] == [
        ("stdout", "a\nb\n"),
        ("stderr", "c\n"),
        ("stdout", "d\n"),
    ]
    assert [one.output_type for one in picture] == ["stream", "execute_result", "display_data"]
    assert picture[1].data == {"text/plain": "42"} and picture[1].execution_count == 2
    assert set(picture[2].data) == {"text/plain", "image/png"}
    assert base64.b64decode(picture[2].data["image/png"]).startswith(b"\x89PNG")
    assert not nothing and folder[0].data["text/plain"] == repr(str(FOLDER))
    assert [cell.execution_count for cell in ran.cells] == [1, 2, 3, 4]
    assert all("seconds" not in cell.metadata for cell in ran.cells) and [*taken] == [0, 1, 2, 3]
    nbformat.validate(ran)


SETTING_UP = """
import importlib.util, os, site, subprocess
done = []
subprocess.run = lambda command, check: done.append(command)
site.addsitedir = lambda folder: None
"""


@pytest.mark.parametrize(("installed", "address"), [(True, ""), (False, "/a/checkout")])
def test_the_first_cell_installs_what_is_missing(installed: bool, address: str) -> None:
    hide = "" if installed else "importlib.util.find_spec = lambda name: None\n"
    told = f"os.environ['GEMM_LADDER_REPOSITORY'] = {address!r}"
    asked = make.with_setup(book("[' '.join(map(str, command[-3:])) for command in done]"))
    asked.cells[:0] = book(SETTING_UP + hide + told).cells
    ran, _ = make.execute(asked)
    commands = ast.literal_eval(ran.cells[-1].outputs[0].data["text/plain"])
    wanted = ["1 /a/checkout gemm-ladder", "--quiet --editable gemm-ladder"]
    assert commands == ([] if installed else wanted)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("1 / 0", r"this cell raised:\n1 / 0\n(.*\n)*ZeroDivisionError"),
        ("1 +", "SyntaxError"),
        ("import os\nos._exit(5)", "ended with status 5"),
        ("import time\ntime.sleep(60)", "did not end in 6 s"),
    ],
)
def test_a_cell_that_fails(source: str, words: str) -> None:
    with pytest.raises(make.LessonError, match=words):
        make.execute(book("x = 1", source, "print('never')"), seconds=6)


def test_sliders_are_for_jupyter(monkeypatch: pytest.MonkeyPatch) -> None:
    sentence = "Run this cell in Jupyter for sliders: x."
    assert workbench.slider(lambda x: None, x=(1, 3))._repr_mimebundle_()["text/plain"] == sentence
    monkeypatch.setitem(sys.modules, "ipykernel", types.SimpleNamespace(version_info=(7, 0)))
    shown = workbench.slider(lambda x: None, x=(1, 3))._repr_mimebundle_()
    assert make.WIDGET in shown and shown["text/plain"] == sentence


def test_a_bridge_names_the_line_of_each_step() -> None:
    rows = bridges.who_does_what().plain.splitlines()[1:]
    assert len(rows) == len(bridges.STEPS) and all(row.count("#L") == len(bridges.FILES) for row in rows)
    parts = bridges.beside(*(step.what for step in bridges.STEPS)).plain
    assert parts.count("```") == 2 * len(rows) * len(bridges.FILES)


@pytest.mark.slow
@pytest.mark.parametrize("bridge", BRIDGES, ids=lambda path: path.stem)
def test_a_bridge_runs(bridge: Path) -> None:
    _, _, *shown = (cell for cell in make.run(bridge).cells if cell.cell_type == "code")  # setup, imports
    assert shown and all(cell.outputs for cell in shown)


@pytest.mark.slow
@each_lesson
def test_runs_and_can_be_solved(lesson: Path) -> None:
    """Every cell runs. Each check says "Not yet", and "Right" once the exercise has its solution."""
    cells = jupytext.read(lesson).cells
    ran = make.run(lesson, solved(cells, exercises.solutions(lesson.stem[:2])))
    for tag, word in (("check", "Not yet: "), (SOLVED, "Right: ")):
        found = verdicts(ran, tag)
        assert len(found) == len(tagged(cells, "exercise"))
        assert all(verdict.startswith(word) for verdict in found), found
        assert all(("exercises.hint" in verdict) == (tag == "check") for verdict in found), found
