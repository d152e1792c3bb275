"""What an exercise is, and two ways to check one: a function by its cases, a kernel's lines by a run."""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from gemm_ladder import build
from workshop import workbench


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Whether an answer is right, and a sentence about it."""

    right: bool
    words: str


@dataclasses.dataclass(frozen=True)
class Exercise:
    """An exercise of a lesson. Its answer is in lessons/solutions, under the lesson's name.

    Attributes:
        check: from the reader's answer to the verdict; it is only given answers of the kind that the lesson's
            cell begins with (fitting.py).
        hints: a nudge, then the idea, then nearly the line.
    """

    check: Callable[[object], Verdict]
    hints: tuple[str, str, str]


def same(right: Callable, cases: Iterable[Sequence]) -> Callable[[Callable], Verdict]:
    """The check of a function: in all cases, each a tuple of arguments, it returns what `right` does."""
    return lambda mine: compared(mine, right, cases)


def compared(mine: Callable, right: Callable, cases: Iterable[Sequence], shown: Callable = str) -> Verdict:
    """Compare a function with the right one, case by case, up to the first case that differs.

    `shown` turns an argument into words.
    """
    cases, name = list(cases), getattr(mine, "__name__", "the function")
    for case in cases:
        call = f"{name}({', '.join(map(shown, case))})"
        wanted = right(*case)
        try:
            got = mine(*copy.deepcopy(case))  # which the function may change
        except Exception as error:
            return Verdict(False, f"{call} raises {type(error).__name__}: {error}; {wanted} is expected.")
        if not _equal(got, wanted):
            plain = re.sub(r"\bnp\.\w+\(([^()]*)\)", r"\1", str(got))  # NumPy's numbers, without their types
            return Verdict(False, f"{call} gives {plain}; {wanted} is expected.")
    return Verdict(True, f"{name} agrees in all {len(cases)} cases.")


def _equal(got: object, wanted: object) -> bool:
    """Numbers up to their last digits, anything else exactly."""
    try:
        return np.shape(got) == np.shape(wanted) and np.allclose(got, wanted, rtol=1e-6, equal_nan=True)
    except (TypeError, ValueError):  # not numbers, or tuples of unequal parts
        pass
    try:
        return bool(got == wanted)
    except (TypeError, ValueError, RuntimeError):  # arrays or tensors among the parts
        return False


def number(mine: float, truth: float, within: float, why: str) -> Verdict:
    """The check of a number, which may be off by a part `within` of the truth; `why` follows "Right:"."""
    if abs(mine - truth) <= within * abs(truth):
        return Verdict(True, why)
    return Verdict(False, f"{mine:g} is too {'small' if mine < truth else 'large'}.")


def in_rung(name: str, of: workbench.Problem, *changes: tuple[str, str], seeds: int = 8) -> Verdict:
    """The verdict on lines put into a rung, (its own, the reader's), by its result under some schedules."""
    changes = tuple(
        (own, mine + "\n" if own.endswith("\n") and not mine.endswith("\n") else mine)
        for own, mine in changes
    )
    rung, right = workbench.changed(name, *changes), workbench.expected(name, of)
    found = by_running(lambda: workbench.tried(workbench.symptoms, rung, of, right, range(seeds)))
    return Verdict(found.right, without_a_ring(found.words, rung.source))


def by_running(find: Callable[[], Sequence[workbench.Symptom | None]]) -> Verdict:
    """The verdict on a kernel that `find` compiles and runs; it returns a symptom or None a schedule."""
    try:
        found = find()
    except build.BuildError as error:
        return Verdict(False, compiler_said(error))
    wrong = [symptom for symptom in found if symptom]
    if wrong:
        return Verdict(False, f"{len(wrong)} of {len(found)} schedules fail. {wrong[0]}")
    return Verdict(True, f"bit for bit the expected result in {len(found)} schedules.")


def where_the_fence_is(verdict: Verdict, mine: str, barrier: str) -> Verdict:
    """A verdict on lines with fence.proxy.async and a barrier; if they are right, and unlike the rung's have
    the fence behind the barrier, a sentence says why that is right, too."""
    text = re.sub(r"//[^\n]*", "", mine)
    if not verdict.right or text.rfind("fence_proxy_async") < text.find(barrier):
        return verdict
    words = (
        "The rung has the fence before the barrier, by each thread for its own stores. Behind the barrier it "
        "carries over what the barrier has told its thread of, and PTX accepts either."
    )
    return Verdict(True, f"{verdict.words}\n{words}")


def without_a_ring(words: str, source: str) -> str:
    """What the emulator says of a cause, for a kernel without mbarriers: its reader may not know them yet."""
    if "mbarrier" not in words or "mbarrier" in source:
        return words
    return f"{words}\nThis kernel has no mbarriers: here a __syncthreads is missing, or at another place."


def compiler_said(error: build.BuildError, file: str = "kernel.cu") -> str:
    """The compiler's first error, as the end of a verdict; with its place if that is in the reader's file."""
    said = re.search(rf"(?:^(?:\S*/)?({re.escape(file)}:\d+):\d+: )?(?:fatal )?error: (.*)", str(error), re.M)
    if not said:
        return f"it does not compile. {error}"
    return f"it does not compile. {said[1] + ': ' if said[1] else ''}{said[2]}"


def lines(source: str, begin: str, end: str, last: bool = True) -> str:
    """The lines of a source from the first that has `begin` to the next that has `end`, that one included
    where `last`."""
    every = source.splitlines(keepends=True)
    first = next(i for i, line in enumerate(every) if begin in line)
    until = next(i for i in range(first, len(every)) if end in every[i])
    return "".join(every[first : until + last])
