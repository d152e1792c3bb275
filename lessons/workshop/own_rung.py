"""The capstone, lesson 14: a file to begin with, what the judge says of it, what the emulator recorded.

A rung's file is found by its name, in the learner's copy of the lessons or in the repository's. The end of
the name says which brief it follows: my_rung_split_k.cu.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import tempfile
from pathlib import Path
from typing import NamedTuple

import gemm_ladder as gl
import numpy as np
from gemm_ladder import build, lab
from gemm_ladder.arguments import EMULATED_SMS, H100_SMS, ceil_div
from gemm_ladder.errors import EmulatorError, InputError
from gemm_ladder.figures import lessons
from gemm_ladder.lab import bf16, template
from gemm_ladder.lab.cases import Case, OperandType
from gemm_ladder.lab.given import arguments
from gemm_ladder.lab.surroundings import surround
from gemm_ladder.measure import cards, variants
from gemm_ladder.production import prediction
from gemm_ladder.ref import emulator
from gemm_ladder.timeline import spans
from workshop import apart, drawing, model, printed
from workshop.exercises.record import compiler_said

BELOW = "s4_tma"  # the rung that a brief begins with
SECONDS = 8.0  # of the judge: all cases once, on two cores
FEW_SECONDS = 2.0  # for some cases
LARGE = ("many_tiles",)  # of the cases
MEASURED = Path(__file__).resolve().parents[1] / "data" / "own_rungs.json"


@dataclasses.dataclass(frozen=True)
class Brief:
    """What a rung is to do.

    Attributes:
        operands: of the judge.
        timed: the (m, n, k) that its time is predicted and measured at.
    """

    operands: OperandType
    timed: tuple[int, int, int]


BRIEFS = {
    "bf16": Brief("bf16", (4096, 7168, 2048)),
    "split_k": Brief("fp8", (64, 7168, 16384)),
    "96_columns": Brief("fp8", (4096, 2112, 7168)),
}


def begin(brief: str) -> str:
    """Lay out my_rung_BRIEF.cu, as `lab new` does, where it is not there yet. Returns its name."""
    path = _folder() / f"my_rung_{brief}.cu"
    operands = BRIEFS[_known(brief)].operands
    if not path.exists():
        template.new(path, BELOW, operands)
    where = f"in {path.parent}" if lessons.learner() else "in a folder that goes with this notebook's kernel"
    print(f"{path.name} is {where}.")
    return path.name


@functools.cache
def _forgotten() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory()


def _folder() -> Path:
    """The learner's copy; for a notebook of the repository, which is not to be written to, a passing one."""
    return lessons.learner() or Path(_forgotten().name)


def _known(brief: str) -> str:
    if brief not in BRIEFS:
        raise InputError(f"{brief!r} is no brief; one of {', '.join(BRIEFS)} is needed")
    return brief


def find(file: str) -> Path:
    """The file of a rung. InputError where there is none, or its name says no brief."""
    brief_of(file)
    for folder in (_folder(), lessons.FOLDER):
        if (folder / file).is_file():
            return folder / file
    raise InputError(f"there is no {file}; the name of a file that `begin` has laid out is needed")


def brief_of(file: str | Path) -> str:
    found = [brief for brief in BRIEFS if Path(file).name.endswith(f"{brief}.cu")]
    if not found:
        raise InputError(f"{file} says no brief; a name such as my_rung_{next(iter(BRIEFS))}.cu is needed")
    return found[0]


# ------------------------------------------------------------------------------------------------------ judge


class Judged(NamedTuple):
    """What the judge says.

    Attributes:
        words: all that it prints.
        arithmetic: whose bits the results have.
        case: the one that is wrong, or none.
    """

    right: bool
    words: str
    arithmetic: str | None
    case: str


def judge(file: str, *changes: tuple[str, str], cases: tuple[str, ...] | None = None) -> str:
    """Print what the judge says of a rung on the emulator, with each (old, new) replaced before. Returns the
    case that is wrong, or nothing."""
    found = apart.call(_judged, str(find(file)), changes, cases)
    printed.show(found.words)
    return str(found.case)


def fulfils(file: str) -> tuple[bool, str]:
    """Whether a rung is right and does what its brief asks for, and a sentence about it."""
    path = find(file)
    try:
        found = apart.call(_judged, str(path), (), None)
        if not found.right:
            return False, found.words
        brief = brief_of(path)
        # In a product of few numbers BF16 may hide in which order they were added.
        if brief == "split_k" and apart.call(_judged, str(path), (), LARGE).arithmetic == "tensor core":
            return False, "its bits are those of one sum over all of k: it splits nothing."
        if brief == "96_columns" and (others := apart.call(_widths, str(path)) - {96}):
            return False, f"the product is right, by WGMMAs of n = {', '.join(map(str, sorted(others)))}."
    except build.BuildError as error:
        return False, compiler_said(error, path.name)
    except (apart.Ended, EmulatorError) as error:
        return False, str(error)
    return True, found.words


def _judged(path: str, changes: tuple[tuple[str, str], ...], cases: tuple[str, ...] | None) -> Judged:
    """In the other process."""
    source: Path | str = Path(path)
    if changes:
        source = variants.replaced(Path(path).read_text(), path, changes)
    operands = BRIEFS[brief_of(path)].operands
    seconds = FEW_SECONDS if cases else SECONDS
    found = lab.judge(source, operands=operands, device="cpu", seconds=seconds, cases=cases)
    words = str(found).replace(f"{Path(path).parent}/", "")
    return Judged(found.right, words, found.arithmetic, found.wrong.case.name if found.wrong else "")


# ------------------------------------------------------------------------------------- predict and record


Pair = tuple[float, float]


def predicted(ctas: int, blocks: int, moved: int, alone: Pair, together: Pair) -> float:
    """Microseconds of a launch, by the lesson's model.

    Args:
        ctas: of the grid.
        blocks: K blocks of each.
        moved: bytes that memory has to move.
        alone, together: microseconds of a wave for the ends of its tiles, and for each K block: where an SM
            has one CTA at most, and where it has two.
    """
    at_once, (ends, block) = (H100_SMS, alone) if ctas <= H100_SMS else (2 * H100_SMS, together)
    working = prediction.LAUNCH_US + ceil_div(ctas, at_once) * (ends + blocks * block)
    return max(working, moved / model.MEMORY)


def changed_lines(file: str) -> tuple[int, int]:
    """(added, removed): lines of code, against the rung that it began with."""
    before, after = (cards.code_lines(path) for path in (gl.rungs[BELOW].path, find(file)))
    return cards.changed(before, after)


def timeline(file: str, m: int, n: int, k: int, seed: int = 2) -> None:
    """Record a launch of a rung on the emulator, and draw what each block of its first cluster did, of each
    warpgroup its first warp; or print what fault it has."""
    try:
        events = apart.call(_events, str(find(file)), m, n, k, seed)
    except EmulatorError as error:
        printed.show(f"FAULT: {error}")
        return
    found = spans.spans(spans.of_emulator(events))
    found = [span for span in found if span.unit == spans.COPY_ENGINE or span.index % 4 == 0]
    end = max(span.end for span in found)
    for block in sorted({span.block for span in found}):
        title = f"{Path(file).stem}, block {block}: {m} x {n} x {k}"
        drawing.timeline([span for span in found if span.block == block], end, title)


def _widths(path: str) -> set[int]:
    """The n of a rung's WGMMAs."""
    events = _events(path, 64, 264, 256, 0)
    return set(events["value"][events["kind"] == "wgmma"].tolist())


def _events(path: str, m: int, n: int, k: int, seed: int) -> np.ndarray:
    case = Case("recorded", m, n, k, "nothing in particular")
    if BRIEFS[brief_of(path)].operands == "bf16":
        case = bf16.of_case(dataclasses.replace(case, k=2 * k))
    placed = surround(case.operands)
    arrays = {name: one.array for name, one in placed.inputs.items()} | {"d": placed.out}
    pointers = {name: array.ctypes.data for name, array in arrays.items()}
    library = build.load(Path(path), target="emulator").lib
    with emulator.emulator(seed=seed, record=True) as run:
        said = emulator.launch(library, arguments(case, pointers, EMULATED_SMS))
    if said is not None:
        raise InputError(f"the launcher refuses {case.size}: {said}")
    return run.events


def measured() -> dict[str, dict[str, float]]:
    """By brief, the microseconds of the worked solution and of others at the brief's shape, as
    data/own_rungs.py has measured them; empty where nothing has been."""
    if not MEASURED.exists():
        return {}
    found: dict[str, dict[str, float]] = json.loads(MEASURED.read_text())["us"]
    return found
