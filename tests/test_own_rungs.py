"""Lesson 14: its worked solutions do what their briefs ask for, and what is said of a learner's file."""

from __future__ import annotations

import ast
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
    """Right in every case, on two schedules."""
    path = own_rung.find(file)
    operands = own_rung.BRIEFS[own_rung.brief_of(file)].operands
    for first_seed in (0, 1000):  # each run has the next one
        verdict = gl.judge(
            path, operands=operands, device="cpu", seconds=1e-6, every_case=True, first_seed=first_seed
        )
        assert verdict.right and not verdict.unreached and not verdict.refused, verdict
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
    assert own_rung.changed_lines(name) == (3, 2), "the names alone, and a longer launch in two lines"
    (folder / name).write_text("// mine")
    own_rung.begin(brief)
    assert (folder / name).read_text() == "// mine"


@pytest.mark.parametrize(
    ("brief", "old", "new", "said"),
    [
        ("split_k", "", "", "right, but one CTA multiplies 16 of a tile's 16 K blocks: each is to have half"),
        (
            "bf16",
            "",
            "",
            r"^my_rung_bf16 at 64 x 128 x 128 \(two_k_blocks\), seed 0: .*global_out_of_bounds",
        ),
        (
            "split_k",
            "advance(desc_b, k)",
            "desc_b",
            "^my_rung_split_k at .* descriptor is not advanced",
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


def test_the_shape_of_the_brief_may_not_be_refused(folder: Path) -> None:
    path = folder / own_rung.begin("bf16")
    assert own_rung._refusal(str(path)) is None
    text = path.read_text()
    path.write_text(
        text.replace("if (tiles == 0)", 'if (p.k > 128) return "k is long";\n    if (tiles == 0)')
    )
    assert own_rung._refusal(str(path)) == "the brief's shape, 4096 x 7168 x 2048, is refused: k is long"


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


@pytest.mark.parametrize(
    ("brief", "changes", "said"),
    [
        (  # a rounding more for each K block: where K has few, the bits are those of parts
            "split_k",
            [
                (
                    "fmaf(partial[i], i / 2 % 2 ? scale1 : scale0, total[i])",
                    "fmaf(partial[i] * (i / 2 % 2 ? scale1 : scale0), 1.0f, total[i])",
                )
            ],
            "one CTA multiplies 16 of a tile's 16 K blocks",
        ),
        (  # half of a tile's columns for each CTA, both of which walk through all of k
            "split_k",
            [
                ("kTileN = 128", "kTileN = 64"),
                ("blockIdx.x % tiles_m", "blockIdx.x / 2 % tiles_m"),
                ("blockIdx.x / tiles_m * kTileN", "(blockIdx.x / 2 / tiles_m * 2 + blockIdx.x % 2) * kTileN"),
                ("ceil_div(p.n, kTileN)", "ceil_div(p.n, 2 * kTileN) * 2"),
            ],
            "more than one CTA multiplies in the same K block",
        ),
        ("96_columns", [], "its tiles are wider than 96 columns"),
        ("96_columns", [("kTileN = 128", "kTileN = 64")], "its tiles are narrower than 96 columns"),
        ("96_columns", [("kTileN = 128", "kTileN = 104")], "its tiles are wider than 96 columns"),
    ],
)
def test_a_right_product_that_is_not_the_brief(
    brief: str, changes: list[tuple[str, str]], said: str, folder: Path
) -> None:
    path = folder / own_rung.begin(brief)
    text = path.read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path.write_text(text)
    (lacks,) = own_rung.LOOKED_AT[brief]
    assert said in (lacks(str(path)) or "")


@pytest.mark.parametrize("brief", ["split_k", "96_columns"])
def test_what_a_brief_asks_for(brief: str, tmp_path: Path) -> None:
    """The worked solution has it; so has one whose tile is made of narrower WGMMAs."""
    solution = own_rung.find(f"solutions/own_rung_{brief}.cu")
    text, path = solution.read_text(), tmp_path / f"narrow_{brief}.cu"
    wide = re.search(r" *ptx::wgmma<kTileN>\(partial, (.*), (advance\(desc_b, k\)), k != 0\);.*\n", text)
    assert wide is not None
    narrow = f"""
            {{
                float(*parts)[16] = reinterpret_cast<float(*)[16]>(partial);
#pragma unroll
                for (int part = 0; part < kTileN / 32; ++part)
                    ptx::wgmma<32>(parts[part], {wide[1]}, advance({wide[2]}, part * 32 * kTileK), k != 0);
            }}
"""
    path.write_text(text.replace(wide[0], narrow))
    (lacks,) = own_rung.LOOKED_AT[brief]
    assert lacks(str(solution)) is None and lacks(str(path)) is None
    assert gl.judge(path, device="cpu", seconds=1, cases=["two_k_blocks", "ragged_127"]).right


def test_a_mistake_is_planted_in_the_rung_itself(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Lesson 14 shows one before the reader has written a kernel, or with one that is written."""
    (folder / "my_rung_split_k.cu").write_text("not a kernel")
    source = (lessons.FOLDER / "14_your_own_rung.py").read_text()
    wait = re.search(r"^wait = (.*)$", source, re.M)
    assert wait is not None and 'own_rung.judge("s4_tma", (wait, "")' in source
    found = own_rung.judge("s4_tma", (ast.literal_eval(wait[1]), ""), cases=("4_k_blocks", "5_k_blocks"))
    assert found == "5_k_blocks" and "data_race" in capsys.readouterr().out
