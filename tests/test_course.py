"""python -m gemm_ladder lessons: a learner's copy, what is kept in it, and what is refused."""

from __future__ import annotations

import concurrent.futures
import json
import re
from pathlib import Path

import jupytext
import nbformat
import pytest
from gemm_ladder import cli
from gemm_ladder.errors import InputError
from gemm_ladder.figures import lessons

lessons.find()
from workshop import copies, exercises, guesses, make, progress, workbench  # noqa: E402
from workshop.changes import Change  # noqa: E402


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A learner's copy, and this process as if it were one of its notebooks."""
    copies.start(tmp_path / "mine")
    monkeypatch.setattr(lessons, "_learner", tmp_path / "mine")
    return tmp_path / "mine"


def cells(folder: Path) -> list[nbformat.NotebookNode]:
    books = [nbformat.read(path, as_version=4) for path in sorted(folder.glob("*.ipynb"))]
    for book in books:
        nbformat.validate(book)
    return [cell for book in books for cell in book.cells]


def test_a_copy_has_no_outputs_and_no_answers(folder: Path) -> None:
    names = {path.name for path in copies.notebooks()}
    assert {path.name for path in folder.iterdir()} == {*names, lessons.PROGRESS, lessons.REPOSITORY}
    found = cells(folder)
    code = [cell for cell in found if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)
    texts = [cell.source for cell in found]
    assert not any("<details>" in cell.source for cell in found if cell.cell_type == "markdown")
    reasons = [name for text in texts for name in re.findall(r'^exercises\.why\("([\d.]+)"\)$', text)]
    assert len(reasons) > 40 and all(exercises.why(name).plain for name in reasons)
    whole = "\n".join(texts)
    assert not any(exercises.why(name).plain in whole for name in reasons)
    for path in copies.notebooks():
        for answer in exercises.solutions(path.stem[:2]):
            assert answer not in whole
    broken = [cell for cell in code if "break" in cell.metadata.get("tags", [])]
    assert len(broken) > 40 and all(cell.metadata.jupyter.source_hidden for cell in broken)


def test_a_copy_is_not_set_up_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cell that installs gemm_ladder is for notebooks that are opened on their own."""
    made = make.with_setup(jupytext.read(lessons.FOLDER / "00_start_here.py"))
    assert "gemm-ladder" in made.cells[1].source and make.SETUP in made.cells[1].metadata.tags
    nbformat.write(made, tmp_path / "00_start_here.ipynb")
    monkeypatch.setattr(copies, "notebooks", lambda: [tmp_path / "00_start_here.ipynb"])
    copies.start(tmp_path / "mine")
    mine = cells(tmp_path / "mine")
    assert len(mine) >= len(made.cells) - 1 and made.cells[1].source not in [cell.source for cell in mine]


def test_links_of_a_copy_lead_somewhere(folder: Path) -> None:
    """Those that a cell shows, too."""
    shown = [workbench.card("s1_naive")._repr_mimebundle_()["text/markdown"]]
    links = [
        link
        for text in [*shown, *(cell.source for cell in cells(folder) if cell.cell_type == "markdown")]
        for link in re.findall(r"\]\(([^)\s]+)\)", text)
        if "://" not in link
    ]
    assert len(links) > 100 and any(link.startswith(lessons.REPOSITORY) for link in links)
    for link in links:
        assert (folder / link.partition("#")[0]).exists(), link


def test_links_of_the_repository_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lessons, "_learner", None)
    assert "repository/" not in workbench.card("s1_naive")._repr_mimebundle_()["text/markdown"]
    text = (
        "[a](02_naive.ipynb) [b](https://x.org/y) [c](#here) [d](../figures/data) [e](solutions) "
        "![f](../a.png)"
    )
    assert lessons.relocated(text) == (
        "[a](02_naive.ipynb) [b](https://x.org/y) [c](#here) [d](repository/figures/data) "
        "[e](repository/lessons/solutions) ![f](repository/a.png)"
    )


def test_start_again_where_nothing_was_done(folder: Path) -> None:
    """To have run a cell is no work: it can be run again."""
    path = folder / "02_naive.ipynb"
    book = nbformat.read(path, as_version=4)
    code = next(cell for cell in book.cells if cell.cell_type == "code")
    code.execution_count = 1
    code.outputs = [nbformat.v4.new_output("stream", text="ran")]
    nbformat.write(book, path)
    copies.start(folder)
    assert not any(cell.outputs for cell in cells(folder) if cell.cell_type == "code")


def edit(folder: Path) -> None:
    path = folder / "02_naive.ipynb"
    path.write_text(path.read_text().replace("total += partial;", "total = partial;"))


@pytest.mark.parametrize(
    ("work", "words"),
    [
        (edit, r"work in it \(a changed 02_naive\.ipynb\)"),
        (lambda folder: (folder / "my_own.ipynb").write_text("{}"), r"a changed my_own\.ipynb"),
        (
            lambda folder: exercises.check("00.2", lambda i, j, k: ((i, k // 128), (j // 128, k // 128))),
            "solved",
        ),
        (lambda folder: exercises.hint("02.1"), r"\(hints\)"),
        (lambda folder: guesses.guess("00.ladder", 12), r"\(guesses\)"),
        (lambda folder: (folder / lessons.PROGRESS).write_text("no JSON"), "cannot be read"),
        (lambda folder: (folder / lessons.PROGRESS).write_text("{}"), "lacks one of solved"),
        (lambda folder: (folder / lessons.PROGRESS).unlink(), "has files in it"),
    ],
)
def test_work_is_not_overwritten(folder: Path, work: object, words: str) -> None:
    work(folder)
    before = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    with pytest.raises(InputError, match=words):
        copies.start(folder)
    assert before == {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_what_cannot_be_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    for arguments, words in (
        (["start", str(tmp_path / "file")], "is a file; a folder that is new or empty is needed"),
        (["start", str(tmp_path)], "has files in it; a folder that is new or empty is needed"),
        (["start", str(tmp_path / "file" / "below")], "cannot be written"),
        (["progress", str(tmp_path)], "is not a learner's copy of the lessons"),
    ):
        assert cli.main(["lessons", *arguments]) == 2
        said = capsys.readouterr()
        assert not said.out and said.err.count("\n") == 1 and words in said.err
    assert {path.name for path in tmp_path.iterdir()} == {"file"}


def test_without_a_checkout(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lessons, "FOLDER", tmp_path)
    assert cli.main(["lessons", "start", str(tmp_path / "mine")]) == 2
    assert "The lessons need the repository" in capsys.readouterr().err


def test_progress(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def said() -> list[str]:
        assert cli.main(["lessons", "progress", str(folder)]) == 0
        return capsys.readouterr().out.splitlines()

    def of(lesson: str) -> list[str]:
        return next(re.split(r"\s{2,}", line)[1:] for line in said() if line.startswith(lesson))

    assert of("00_start_here") == ["0 of 2", "0 of 2"]
    assert said()[-1] == f"Next: exercise 00.1, in {folder}/00_start_here.ipynb"
    exercises.check("00.1", lambda m, n, k, us: 2 * m * n * k / us / 1e6)
    exercises.check("00.2", lambda i, j, k: None)
    exercises.check("02.3", lambda r, c: 2 * r * c / (r + c))
    guesses.guess("00.ladder", 100)
    guesses.guess_break("00.break1", line="fence_proxy_async", then="fault")
    capsys.readouterr()
    assert of("00_start_here") == ["1 of 2: 1", "2 of 2"]
    assert of("02_naive")[0] == "1 of 3: 3"
    assert said()[-1] == f"Next: exercise 00.2, in {folder}/00_start_here.ipynb"
    known = json.loads((folder / lessons.PROGRESS).read_text())
    known["solved"] = [f"{path.stem[:2]}.{i}" for path in copies.notebooks() for i in range(1, 10)]
    progress.write(folder, known)
    assert said()[-1] == "All exercises are solved."


def test_the_outcome_of_a_fault_beside_the_guess(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "    ptx::fence_proxy_async();\n    __syncthreads();\n"
    changed = Change(text, text.replace("ptx::fence_proxy_async();", ""))
    guesses.guess_break("00.break1", line="fence_proxy_async", then="fault")
    guesses.broken("00.break1", changed, ["fault", "fault", "right"])
    said = capsys.readouterr().out
    assert (
        "Found: the emulator names what was done wrong (2 of 3), the right answer all the same (1 of 3)."
        in said
    )
    assert "That is so." in said and "Your line is changed, yes." in said
    guesses.guess_break("00.break1", line="__syncthreads();", then="hang")
    guesses.broken("00.break1", changed, ["fault"])
    said = capsys.readouterr().out
    assert (
        "That is not so." in said
        and "Your line is another one.\nWhat was changed:\n    - ptx::fence_proxy_async();\n" in said
    )
    guesses.guess_break("00.break1", line="x", then="explodes")
    assert "'explodes' is not one of 'right', 'wrong', 'fault', 'hang'." in capsys.readouterr().out


@pytest.mark.parametrize("line", [70, "x", " ; ", ["fence"], b"fence_proxy_async"], ids=repr)
def test_a_line_is_guessed_by_its_text(
    line: object, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What cannot be found is refused before the outcome is shown, and the guess before it stays."""
    guesses.guess_break("00.break1", line="fence_proxy_async", then="fault")
    guesses.guess_break("00.break1", line=line, then="hang")  # type: ignore[arg-type]
    assert f"{line!r} is not a line that can be found; its text is needed" in capsys.readouterr().out
    assert progress.read(folder)["guesses"]["00.break1"] == {"line": "fence_proxy_async", "then": "fault"}


def test_notebooks_that_run_at_once_do_not_lose_what_the_others_wrote(folder: Path) -> None:
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: guesses.guess(f"00.g{i}", i), range(40)))
    assert progress.read(folder)["guesses"] == {f"00.g{i}": i for i in range(40)}


@pytest.mark.slow
def test_a_copy_runs_and_remembers(folder: Path) -> None:
    """Cell after cell, with a guess put in and an exercise solved, wherever the copy is."""
    book = nbformat.read(folder / "00_start_here.ipynb", as_version=4)
    for cell in book.cells:
        cell.source = cell.source.replace('("00.ladder", None)', '("00.ladder", 100)')
        if cell.source.startswith("def scales_of"):
            cell.source = exercises.solutions("00")[1]
    book, _ = make.execute(book, folder)
    known = progress.read(folder)
    assert (known["solved"], known["guesses"]) == (["00.2"], {"00.ladder": 100})
    said = "".join(output.get("text", "") for cell in book.cells for output in cell.get("outputs", []))
    assert "You guessed 100" in said
