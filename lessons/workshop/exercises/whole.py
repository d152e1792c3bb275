"""Exercises that ask for a whole kernel: it is put into a frame, compiled, and judged on the emulator.

A frame is a .cu file in workshop/frames that has everything but the kernel: constants, helpers, the launcher.
The judge is that of `python -m gemm_ladder lab judge`; it runs in a process of its own, as a kernel may crash
or hang.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from gemm_ladder import build, lab
from gemm_ladder.errors import InputError
from gemm_ladder.lab.operands import OTHER_ARITHMETIC
from workshop import apart, workbench
from workshop.exercises.record import Exercise, Verdict, compiler_said, without_a_ring

FRAMES = Path(__file__).resolve().parents[1] / "frames"
PLACE = "// ---- Your kernel\n"  # of a frame: what the reader writes goes behind this line
NAME = "kernel.cu"  # what compiler and emulator call the reader's lines, which begin at its line 1
# Of the judge's lines: what needs a file, or counts tiles of the ladder's size.
LEFT_OUT = ("again ", "where ")
HOW = "Results and the order of accesses were looked at, not whether it works as the exercise describes."
SECONDS = 1.5  # of the judge: each case runs once, and again on other schedules in the time that is left
# Of the judge's: one K block, rings that come round; one tile, and several; rows and columns past the end.
CASES = (
    "one_tile",
    "one_row",
    "5_k_blocks",
    "9_k_blocks",
    "ragged_65",
    "third_turn",
    "ragged_129",
    "many_tiles",
    "17_k_blocks",  # whose sums show how they are added
)
# The emulator follows every access of a CUDA core: a kernel without tensor cores gets smaller ones.
SMALL_CASES = ("one_row", "3_k_blocks", "narrow", "subnormal", "ragged_63", "17_k_blocks")


@dataclasses.dataclass(frozen=True)
class Frame:
    """What stands around a kernel.

    Attributes:
        file: its name in workshop/frames.
        defines: its macros.
        cases: of the judge.
        like: a rung whose bits the task asks for; None: the rungs' error bounds are enough.
    """

    file: str
    defines: Mapping[str, int] = dataclasses.field(default_factory=dict)
    cases: Sequence[str] = CASES
    like: str | None = None

    @property
    def text(self) -> str:
        return (FRAMES / self.file).read_text()

    def around(self, kernel: str) -> str:
        """The source with a kernel in its place."""
        before, after = self.text.split(PLACE)
        line = before.count("\n") + 2  # the text after the kernel, in the frame's own file
        return f'{before}{PLACE}#line 1 "{NAME}"\n{kernel.strip()}\n#line {line} "{self.file}"\n{after}'

    def show(self) -> workbench.Text:
        """The frame, for a lesson."""
        defines = "".join(f"#define {name} {value}\n" for name, value in self.defines.items())
        text = defines + self.text
        return workbench.Text(f"```cpp\n{text}```", text)


FRAME_OF = {
    "03.5": Frame("tiled.cu", cases=SMALL_CASES, like="s1_naive"),
    "04.5": Frame("wgmma.cu"),
    "06.5": Frame("ring.cu", {"PRODUCER": 0, "PERSISTENT": 0}),
    "08.4": Frame("ring.cu", {"PRODUCER": 1, "PERSISTENT": 0}),
    "09.4": Frame("ring.cu", {"PRODUCER": 1, "PERSISTENT": 1}),
}


def whole_kernel(name: str, hints: tuple[str, str, str]) -> Exercise:
    """The exercise `name`, whose answer is the text of a `__global__ void mine(...)` for its frame."""
    return Exercise(lambda kernel: judged(FRAME_OF[name], str(kernel)), hints)


def judged(frame: Frame, kernel: str) -> Verdict:
    """The judge's verdict on a kernel in its frame."""
    if "__global__" not in kernel:
        return Verdict(False, "there is no __global__ function in it.")
    try:
        return apart.call(_judge, frame.around(kernel), dict(frame.defines), frame.cases, frame.like)
    except build.BuildError as error:
        return Verdict(False, compiler_said(error))
    except apart.Ended as error:
        return Verdict(False, f"{error}.")
    except InputError as error:
        return Verdict(False, str(error))


def _judge(source: str, defines: dict[str, int], cases: Sequence[str], like: str | None) -> Verdict:
    """In the other process: what the judge says, without what a notebook's reader cannot use."""
    found = lab.judge(source, seconds=SECONDS, every_case=True, device="cpu", cases=cases, defines=defines)
    words = str(found).removeprefix(f"{'RIGHT' if found.right else 'WRONG'}: {found.name}").lstrip(": ")
    shown = [line for line in words.splitlines() if not line.lstrip().startswith(LEFT_OUT)]
    right = found.right
    if right and like and found.arithmetic != OTHER_ARITHMETIC.get(like, "tensor core"):
        right = False
        shown.insert(
            0, f"the sums are not {like}'s bit for bit: they are added in another order, or by other steps."
        )
    if right:
        shown.append(HOW)
    return Verdict(right, without_a_ring("\n".join(shown), source))
