"""The exercises that ask for a whole kernel: frames, what the check says, the solutions' machine code.

`tests/test_lessons.py` checks the solutions on the emulator, in their lessons.
"""

from __future__ import annotations

import re

import pytest
from building import nvcc_or_skip
from gemm_ladder import build
from gemm_ladder.errors import InputError
from gemm_ladder.figures import lessons
from gemm_ladder.sass import disassembly

lessons.find()
from workshop import exercises  # noqa: E402
from workshop.exercises import whole  # noqa: E402

TILED = whole.FRAME_OF["03.5"]


def solution(name: str) -> str:
    """The kernel's text."""
    found: dict[str, str] = {}
    exec(exercises.solutions(name[:2])[int(name[3:]) - 1], found)
    return found["kernel"]


def test_five_rungs_ask_for_one() -> None:
    assert [name[:2] for name in whole.FRAME_OF] == ["03", "04", "06", "08", "09"]
    for name, frame in whole.FRAME_OF.items():
        assert frame.text.count(whole.PLACE) == 1
        shown = exercises.frame(name).plain
        assert all(f"#define {macro} {value}\n" in shown for macro, value in frame.defines.items())
        assert shown.endswith(frame.text) and solution(name).strip() not in shown
    with pytest.raises(InputError, match="asks for no whole kernel"):
        exercises.frame("03.1")


@pytest.mark.parametrize(
    ("kernel", "said"),
    [
        ("int mine;", "there is no __global__ function in it."),
        (
            "__global__ void mine(const GemmArgs p) {\n    int x = y;\n}",
            r"it does not compile. kernel.cu:2: .*y.* was not declared",
        ),
        ("__global__ void other(const GemmArgs p) {}", r"it does not compile. .*mine.* was not declared"),
        (
            "__global__ void __launch_bounds__(kThreads) mine(const GemmArgs p) {\n"
            "    __shared__ float x[1];\n"
            "    x[0] = threadIdx.x;\n"
            "}",
            r"at 1 x 128 x 128 \(one_row\), seed 0: .*kernel\.cu:3.*\n(.*\n)*  fault     data_race\n",
        ),
        (
            "__global__ void __launch_bounds__(kThreads) mine(const GemmArgs p) {\n"
            "    *static_cast<volatile int*>(nullptr) = 1;\n"
            "}",
            "fault     ",
        ),
    ],
)
def test_what_is_wrong_is_said_of_the_readers_lines(kernel: str, said: str) -> None:
    verdict = whole.judged(TILED, kernel)
    assert not verdict.right and re.search(said, verdict.words), verdict.words
    assert "--first-seed" not in verdict.words, "a notebook's reader has no file to judge again"


def test_a_case_tells_the_stride_of_the_scales_from_m() -> None:
    verdict = whole.judged(TILED, solution("03.5").replace("p.sfa_stride", "p.m"))
    assert not verdict.right and "as if their rows were m = 63 apart" in verdict.words, verdict.words


@pytest.mark.parametrize(
    ("line", "instead"),
    [
        ("for (int j = 0; j < kTile; ++j)", "for (int j = kTile - 1; j >= 0; --j)"),
        (
            "block = 0; block < p.k / kScaleK; ++block",
            "block = p.k / kScaleK - 1; block >= 0; --block",
        ),
    ],
)
def test_a_kernel_that_adds_in_another_order(line: str, instead: str) -> None:
    """Where the task asks for a rung's order, errors within the bounds are not enough."""
    text = solution("03.5")
    assert line in text
    verdict = whole.judged(TILED, text.replace(line, instead))
    assert not verdict.right and "the sums are not s1_naive's bit for bit" in verdict.words, verdict.words


@pytest.mark.slow
@pytest.mark.parametrize("name", whole.FRAME_OF)
def test_a_solution_as_machine_code(name: str) -> None:
    """ptxas has nothing to warn of (it says C7510 to C7515 where WGMMAs are serialised); none spills."""
    nvcc_or_skip()
    frame = whole.FRAME_OF[name]
    log = build.compile(frame.around(solution(name)), target="cuda", name="mine", defines=frame.defines).log
    (found,) = disassembly.resources(log).values()
    assert not re.findall(r"^.*(?:\bC75\d\d\b|\bwarning\b).*$", log, re.MULTILINE | re.IGNORECASE)
    assert found.stack_frame == found.spill_stores == found.spill_loads == 0, found


def test_a_busy_machine_leaves_no_case_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whole, "SECONDS", 1e-3)  # enough for the first case, which always runs
    text = solution("03.5")
    assert text.count("if (m < p.m && n < p.n)") == 1
    wrong = TILED.around(text.replace("if (m < p.m && n < p.n)", "if (m < p.m && m < 64 && n < p.n)"))
    verdict = whole._judge(wrong, {}, ("one_row", "ragged_65"), None)
    assert not verdict.right and "(row 64, all 248 columns) were never written" in verdict.words, verdict
