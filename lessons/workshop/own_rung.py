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
from gemm_ladder.arguments import EMULATED_SMS, H100_SMS, GemmArgs, ceil_div
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
SECONDS = 8.0  # of the judge: all cases run once, and again on other schedules in the time that is left
FEW_SECONDS = 2.0  # for some cases
COLUMNS = 96  # of a tile of that brief
BLOCKS = 16  # K blocks of a product that shows who multiplies them
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
        case: the one that is wrong, or none.
    """

    right: bool
    words: str
    case: str


def judge(file: str, *changes: tuple[str, str], cases: tuple[str, ...] | None = None) -> str:
    """Print what the judge says of a rung on the emulator, with each (old, new) replaced before. Returns the
    case that is wrong, or nothing. `file` may be the rung that a brief begins with, as well."""
    path = gl.rungs[BELOW].path if file == BELOW else find(file)
    found = apart.call(_judged, str(path), changes, cases)
    printed.show(found.words)
    return str(found.case)


def fulfils(file: str) -> tuple[bool, str]:
    """Whether a rung is right and does what its brief asks for, and a sentence about it."""
    path = find(file)
    try:
        found = apart.call(_judged, str(path), (), None)
        if not found.right:
            return False, found.words.removeprefix("WRONG: ")
        for lacks in (_refusal, *LOOKED_AT.get(brief_of(path), ())):
            if words := apart.call(lacks, str(path)):
                return False, f"the product is right, but {words}"
    except build.BuildError as error:
        return False, compiler_said(error, path.name)
    except (apart.Ended, EmulatorError) as error:
        return False, str(error)
    return True, found.words.removeprefix("RIGHT: ")


def _judged(path: str, changes: tuple[tuple[str, str], ...], cases: tuple[str, ...] | None) -> Judged:
    """In the other process."""
    source: Path | str = Path(path)
    if changes:
        source = variants.replaced(Path(path).read_text(), path, changes)
    operands = "fp8" if Path(path) == gl.rungs[BELOW].path else BRIEFS[brief_of(path)].operands
    seconds = FEW_SECONDS if cases else SECONDS
    found = lab.judge(source, operands=operands, device="cpu", seconds=seconds, every_case=True, cases=cases)
    words = str(found).replace(f"{Path(path).parent}/", "")
    return Judged(found.right, words, found.wrong.case.name if found.wrong else "")


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


def _refusal(path: str) -> str | None:
    """What the launcher says of the brief's own shape, if it refuses that; nothing runs."""
    m, n, k = BRIEFS[brief_of(path)].timed
    args = GemmArgs(m=m, n=n, k=k, sfa_stride=ceil_div(m, 4) * 4, num_sms=H100_SMS)
    library = build.load(Path(path), target="emulator").lib
    with emulator.emulator(dry=True):
        said = emulator.launch(library, args)
    return said and f"the brief's shape, {m} x {n} x {k}, is refused: {said}"


def _not_split(path: str) -> str | None:
    """What a rung lacks to split K: in a product of one tile, whatever its size, by what each CTA multiplies
    of 16 K blocks, and of one."""
    many = _multiplied(path, BLOCKS)
    block = sum(many.values()) / BLOCKS  # what a K block takes, of all CTAs together
    busiest = max(many.values()) / block
    if busiest > BLOCKS / 2:
        return f"one CTA multiplies {busiest:g} of a tile's {BLOCKS} K blocks: each is to have half of them."
    try:
        alone = _multiplied(path, 1)
    except InputError:  # a rung may refuse a single K block
        return None
    if max(alone.values()) < block:
        return "more than one CTA multiplies in the same K block: each is to have K blocks of its own."
    return None


def _multiplied(path: str, blocks: int) -> dict[int, int]:
    """For each CTA that multiplies in a product of one tile, the columns of all its WGMMAs."""
    events = _events(path, 1, 8, 128 * blocks, 0)
    wgmmas = events[events["kind"] == "wgmma"]
    return {
        int(block): int(wgmmas["value"][wgmmas["block"] == block].sum()) for block in set(wgmmas["block"])
    }


def _not_96_wide(path: str) -> str | None:
    """What a rung lacks to have tiles of 96 columns, whatever WGMMAs they are made of."""
    if _tiles(path, COLUMNS) > _tiles(path, 8):
        return f"its tiles are narrower than {COLUMNS} columns."
    if _tiles(path, COLUMNS + 8) == _tiles(path, 8):
        return f"its tiles are wider than {COLUMNS} columns."
    return None


def _tiles(path: str, n: int) -> int:
    """How often a stage is filled for n columns, with one K block: for each tile as often as for another."""
    return int((_events(path, 1, n, 128, 0)["kind"] == "mbarrier_expect_tx").sum())


LOOKED_AT = {"split_k": (_not_split,), "96_columns": (_not_96_wide,)}  # of a brief's rung, when it is right


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
