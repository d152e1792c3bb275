"""What the judge says: the verdict, and the first thing that is wrong with the values of a result."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal, get_args

import numpy as np
from gemm_ladder.errors import EmulatorError
from gemm_ladder.lab.agreement import (
    differing,
    expected_bits,
    models_of,
    never_written,
    out_of_bounds,
    values,
)
from gemm_ladder.lab.cases import Case
from gemm_ladder.lab.diagnosis import explain
from gemm_ladder.lab.operands import PARTS, Arithmetic
from gemm_ladder.lab.places import tiles, where, whole_tiles

Device = Literal["cpu", "cuda"]

LADDER_TILE = 64, 128  # rows and columns of the smallest tile on the tensor cores
ELEMENTS = 4  # wrong values that are shown


@dataclasses.dataclass(frozen=True)
class Wrong:
    """The first thing that is wrong.

    Attributes:
        case, seed: of the launch; seed is None on a GPU.
        what: the fault, or what is wrong with the values: the end of the verdict's first sentence.
        details: lines that say more, each a label and a text.
        fault: the emulator's error, where it found one.
        mask: bool [m, n], which values of D are wrong; None after a fault.
        found, expected: uint16 [m, n], BF16 bits; None after a fault.
    """

    case: Case
    seed: int | None
    what: str
    details: tuple[tuple[str, str], ...] = ()
    fault: EmulatorError | None = None
    mask: np.ndarray | None = dataclasses.field(default=None, repr=False)
    found: np.ndarray | None = dataclasses.field(default=None, repr=False)
    expected: np.ndarray | None = dataclasses.field(default=None, repr=False)


@dataclasses.dataclass
class Verdict:
    """What the judge says of a kernel; `print` shows it in one screen.

    Attributes:
        name: the kernel's file, without its suffix.
        device: "cpu", the emulator, or "cuda".
        runs: launches that were looked at.
        judged: the cases that were run at least once.
        refused: by case, what the kernel's launcher said when it refused it.
        unreached: the cases for which there was no time.
        arithmetic: whose bits the results have in every case, or None: they are within the bounds of
            rounding.
        apart: if None in `arithmetic`, the first case in which no known addition gives all bits so far.
        until: an addition that gives those of all cases before `apart`; None if that is the first one.
        wrong: the first thing that is wrong; None if nothing is.
        times: on a GPU, by implementation and shape "MxNxK", the microseconds of a call.
        seconds: that judging took.
    """

    name: str
    device: Device
    runs: int = 0
    judged: list[Case] = dataclasses.field(default_factory=list)
    refused: dict[str, str] = dataclasses.field(default_factory=dict)
    unreached: list[Case] = dataclasses.field(default_factory=list)
    arithmetic: Arithmetic | None = None
    apart: Case | None = None
    until: Arithmetic | None = None
    wrong: Wrong | None = None
    times: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)
    seconds: float = 0.0

    @property
    def right(self) -> bool:
        return self.wrong is None and bool(self.judged)

    @property
    def sentence(self) -> str:
        """The verdict, in one sentence."""
        if self.wrong:
            at = f"at {self.wrong.case.size} ({self.wrong.case.name})"
            seed = "" if self.wrong.seed is None else f", seed {self.wrong.seed}"
            machine = " on the GPU" if self.device == "cuda" else ""
            return f"WRONG: {self.name}{machine} {at}{seed}: {self.wrong.what}."
        if not self.judged:
            return f"NOT JUDGED: {self.name} refuses every shape that it was given."
        ran = f"{_count(len(self.judged), 'shape')} and {_count(self.runs, 'run')}"
        on = "a GPU" if self.device == "cuda" else "the emulator"
        if self.arithmetic == "tensor core" or self.arithmetic in PARTS:
            how = "its product is the tensor cores' bit for bit"
            if self.arithmetic in PARTS:
                how += f", with {DESCRIBED[self.arithmetic]}"
        else:
            how = "its product is within the rungs' error bounds, not the tensor cores' bit for bit"
            if self.arithmetic:
                how += f" (it is that of {DESCRIBED[self.arithmetic]})"
        return f"RIGHT: {self.name}: {how}, in {ran} on {on}."

    def __str__(self) -> str:
        lines = [self.sentence]
        if self.wrong:
            lines += [f"  {label:9} {text}" for label, text in self.wrong.details]
        elif self.apart and not self.arithmetic:
            before = f"; before, they are those of {DESCRIBED[self.until]}" if self.until else ""
            lines.append(f"  apart     its bits are no known addition's from {self.apart} on{before}")
        if self.refused:
            name, said = next(iter(self.refused.items()))
            lines.append(f"  refused   {_count(len(self.refused), 'shape')}, such as {name}: {said}")
        if self.unreached and not self.wrong:
            sizes = ", ".join(case.name for case in self.unreached[:4])
            more = " ..." if len(self.unreached) > 4 else ""
            lines.append(
                f"  unreached {_count(len(self.unreached), 'shape')} ({sizes}{more}) would take longer than "
                "there was time for: give more seconds"
            )
        shapes = list(dict.fromkeys(shape for of in self.times.values() for shape in of))
        for shape in shapes:
            each = sorted((of[shape], name) for name, of in self.times.items() if shape in of)
            lines.append(f"  {shape}: " + ", ".join(f"{name} {us:.4g} us" for us, name in each))
        return "\n".join(lines)


DESCRIBED: Mapping[Arithmetic, str] = {
    "tensor core": "the tensor cores",
    "CUDA cores": "FP32 additions in the order of k",
    "float64": "the exact product rounded once",
    **{
        name: f"{name}{',' if split.rounded_up else ''} whose sums are added in order"
        for name, split in PARTS.items()
    },
}


class Bits:
    """Which arithmetic's bits the results have, and whether each case's bits are the same every time."""

    def __init__(self) -> None:
        self.models: tuple[Arithmetic, ...] = get_args(Arithmetic)
        self.apart: Case | None = None
        self.until: Arithmetic | None = None
        self._first: dict[str, np.ndarray] = {}

    def wrong(self, case: Case, seed: int | None, found: np.ndarray) -> Wrong | None:
        """What is wrong with a result, if anything is."""
        known = case.operands.arithmetics
        left = models_of(case, found, tuple(one for one in self.models if one in known))
        if self.models and not left:
            self.apart, self.until = case, self.models[0] if self._first else None
        self.models = left
        if not differing(found, expected_bits(case, "tensor core")).any():
            self._first.setdefault(case.name, found)
        else:
            if not models_of(case, found, tuple(one for one in known if one != "tensor core")):
                mask = out_of_bounds(case, found)
                if mask.any():
                    return compare(case, seed, found, mask)
        first = self._first.setdefault(case.name, found)
        if (mask := differing(found, first)).any():
            what = (
                f"{_count(int(mask.sum()), 'value')} of D ({where(mask)}) have other bits than in the first "
                "run of the same product, so that the result depends on the schedule"
            )
            return Wrong(case, seed, what, (("case", case.reaches),), None, mask, found, first)
        return None


def compare(case: Case, seed: int | None, found: np.ndarray, mask: np.ndarray) -> Wrong:
    """Say what is wrong with a result.

    Args:
        found: uint16 [m, n].
        mask: bool [m, n], where it is wrong.
    """
    expected = expected_bits(case, "tensor core")
    count = int(mask.sum())
    guess = explain(case.operands, found, expected, mask)
    values_of = f"{count} of {mask.size} values" if count > 1 else "one value"
    what = f"{values_of} of D ({where(mask)})"
    if guess:
        most = "nearly all" if guess.share > 0.995 else f"{guess.share:.0%}"
        what += f" {guess.text}" if guess.share == 1 else f", of which {most} {guess.text}"
    else:
        what += " are wrong" if count > 1 else " is wrong"
    details = [("case", case.reaches), ("where", tiles(mask, *LADDER_TILE))]
    if made_of := whole_tiles(mask):
        details.append(("region", f"whole {made_of}"))
    rows, columns = np.nonzero(mask)
    shown = np.linspace(0, count - 1, min(count, ELEMENTS)).astype(int)
    for row, column in zip(rows[shown].tolist(), columns[shown].tolist(), strict=True):
        details.append(
            (
                "",
                f"D[{row}, {column}] is {_shown(found, row, column)}, and should be "
                f"{_shown(expected, row, column)}",
            )
        )
    if not guess:
        details.append(("looks", _looks(found, expected, mask)))
    return Wrong(case, seed, what, tuple(details), None, mask, found, expected)


def _looks(found: np.ndarray, expected: np.ndarray, mask: np.ndarray) -> str:
    """What can be said of wrong values that no guess explains."""
    with np.errstate(invalid="ignore"):  # of a signalling NaN, which is what an output holds at first
        got, right = (values(bits[mask]).astype(np.float64) for bits in (found, expected))
    kinds = {
        "were never written": never_written(found[mask]),
        "are NaN": np.isnan(got) & ~never_written(found[mask]),
        "are infinite": np.isinf(got),
        "are zero": got == 0,
    }
    said = [f"{int(one.sum())} {text}" for text, one in kinds.items() if one.any()]
    plain = np.isfinite(got) & np.isfinite(right) & (right != 0)
    if plain.any():
        off = np.abs(got[plain] / right[plain] - 1)
        others = "the others are" if said else "they are"
        said.append(f"{others} off by {np.median(off):.2g} of the right value in the median")
    return "; ".join(said) + ". No mistake that the judge knows gives these values"


def _shown(bits: np.ndarray, row: int, column: int) -> str:
    if never_written(bits[row, column]):
        return "never written"
    return f"{float(values(bits[row : row + 1, column])[0]):.6g}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
