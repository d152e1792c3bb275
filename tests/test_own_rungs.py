"""Lesson 14: its worked solutions do what their briefs ask for, and what is said of a learner's file."""

from __future__ import annotations

import re
from pathlib import Path

import gemm_ladder as gl
import pytest
from building import nvcc_or_skip
from gemm_ladder import build
from gemm_ladder.errors import InputError
from gemm_ladder.figures import lessons
from gemm_ladder.sass import disassembly

lessons.find()
from workshop import own_rung  # noqa: E402

SOLUTIONS = [f"solutions/own_rung_{brief}.cu" for brief in own_rung.BRIEFS]
MAX_CHANGED = 130  # as between two rungs


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """In the place of a learner's copy."""
    monkeypatch.setattr(lessons, "_learner", tmp_path)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("file", SOLUTIONS)
def test_a_worked_solution(file: str) -> None:
    """Right in every case, on more schedules than one."""
    path = own_rung.find(file)
    operands = own_rung.BRIEFS[own_rung.brief_of(file)].operands
    verdict = gl.judge(path, operands=operands, device="cpu", seconds=40)
    assert verdict.right and not verdict.unreached and not verdict.refused, verdict
    assert verdict.runs >= 2 * len(verdict.judged)
    assert verdict.arithmetic == ("K in 2 parts" if "split_k" in file else "tensor core")
    assert own_rung.fulfils(file)[0], own_rung.fulfils(file)


@pytest.mark.parametrize("file", SOLUTIONS)
def test_a_worked_solution_is_short(file: str) -> None:
    assert max(own_rung.changed_lines(file)) <= MAX_CHANGED
    text = own_rung.find(file).read_text()
    assert "asm" not in text and f"lab judge {Path(file).name}" in text


@pytest.mark.slow
@pytest.mark.parametrize("file", SOLUTIONS)
def test_a_worked_solution_as_machine_code(file: str) -> None:
    """ptxas has nothing to warn of, and nothing spills."""
    nvcc_or_skip()
    log = build.compile(own_rung.find(file), target="cuda").log
    (found,) = disassembly.resources(log).values()
    assert not re.findall(r"^.*(?:\bC75\d\d\b|\bwarning\b).*$", log, re.MULTILINE | re.IGNORECASE)
    assert found.stack_frame == found.spill_stores == found.spill_loads == 0, found
    assert found.registers <= 255


@pytest.mark.parametrize("brief", own_rung.BRIEFS)
def test_a_file_to_begin_with(brief: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = own_rung.begin(brief)
    assert name == f"my_rung_{brief}.cu" and f"{name} is in {folder}." in capsys.readouterr().out
    assert own_rung.find(name) == folder / name and own_rung.brief_of(name) == brief
    assert ("--operands bf16" in (folder / name).read_text()) == (brief == "bf16")
    assert own_rung.changed_lines(name) == (2, 2), "nothing but the names"
    (folder / name).write_text("// mine")
    own_rung.begin(brief)
    assert (folder / name).read_text() == "// mine"


@pytest.mark.parametrize(
    ("brief", "old", "new", "said"),
    [
        ("split_k", "", "", "those of one sum over all of k: it splits nothing"),
        ("96_columns", "", "", "the product is right, by WGMMAs of n = 128"),
        (
            "bf16",
            "",
            "",
            r"WRONG: my_rung_bf16 at 64 x 128 x 128 \(two_k_blocks\), seed 0: .*global_out_of_bounds",
        ),
        (
            "split_k",
            "advance(desc_b, k)",
            "desc_b",
            "WRONG: my_rung_split_k at .* descriptor is not advanced",
        ),
        ("split_k", "Ring ring;", "Ring ring", r"it does not compile\. my_rung_split_k\.cu:\d+: expected"),
    ],
)
def test_what_a_rung_lacks(brief: str, old: str, new: str, said: str, folder: Path) -> None:
    name = own_rung.begin(brief)
    path = folder / name
    path.write_text(path.read_text().replace(old, new, 1) if old else path.read_text())
    right, words = own_rung.fulfils(name)
    assert not right and re.search(said, words, re.S), words
    assert str(folder) not in words


def test_names_that_say_nothing(folder: Path) -> None:
    with pytest.raises(InputError, match=r"says no brief; a name such as my_rung_bf16\.cu is needed"):
        own_rung.find("my_rung.cu")
    with pytest.raises(InputError, match=r"there is no my_rung_split_k\.cu"):
        own_rung.find("my_rung_split_k.cu")
    with pytest.raises(InputError, match="'fp4' is no brief; one of bf16, split_k, 96_columns is needed"):
        own_rung.begin("fp4")


def test_the_timeline_is_of_this_file() -> None:
    """Both blocks of the cluster have half of the loads each."""
    events = own_rung._events(str(own_rung.find("solutions/own_rung_split_k.cu")), 64, 128, 1024, 0)
    loads = events[events["kind"] == "tma_load"]
    assert [int((loads["block"] == block).sum()) for block in (0, 1)] == [4 * 3, 4 * 3]
    assert own_rung._widths(str(own_rung.find("solutions/own_rung_96_columns.cu"))) == {96}
