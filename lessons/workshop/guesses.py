"""Predict before you look: a cell stores the reader's guess, a later one prints it beside what was found.

Nothing here needs a guess: with None in its place every cell runs as well.
"""

from __future__ import annotations

import collections
from collections.abc import Sequence

from gemm_ladder.errors import EmulatorError
from workshop import printed, progress
from workshop.changes import Change, too_short

# What may come of a broken kernel.
OUTCOMES = {
    "right": "the right answer all the same",
    "wrong": "a wrong answer, without an error",
    "fault": "the emulator names what was done wrong",
    "hang": "a thread waits for ever",
}
CRASH = "crash"  # not offered as a guess: the emulator should have named a fault
HANGS = ("deadlock", "endless_polling", "step_limit", "endless_loop")  # of EmulatorError.what

Number = int | float


def guess(name: str, mine: Number | str | None = None, *choices: str) -> None:
    """Store a guess.

    Args:
        name: the lesson's number, a dot and a word, such as "02.ceiling".
        mine: a number or, where there are choices, one of them. None: there is no guess.
        choices: what to choose from; none: a number is asked for.
    """
    what = f"one of {', '.join(printed.whole(repr(one)) for one in choices)}" if choices else "a number"
    is_number = isinstance(mine, Number) and not isinstance(mine, bool)
    if mine is None:
        printed.show(f"Put your guess in place of None: {what}.")
    elif mine not in choices if choices else not is_number:
        printed.show(f"{mine!r} is not a guess that can be compared; {what} is needed.")
    else:
        _store(name, mine)


def found(name: str, truth: Number | str, unit: str = "") -> None:
    """Print what was found, beside the guess."""
    mine = progress.mine()["guesses"].get(name)
    shown = truth if isinstance(truth, str) else f"{truth:,.0f}" if abs(truth) >= 1000 else f"{truth:.4g}"
    words = f"Found: {shown}{unit and ' ' + unit}."
    if mine is None:
        print(words, "You made no guess.")
    elif isinstance(truth, str):
        print(words, f"You guessed {mine}: {'that is it' if mine == truth else 'not so'}.")
    else:
        ratio = f", {mine / truth:.2g} times that" if truth else ""
        print(words, f"You guessed {mine:g}{ratio}.")


def guess_break(name: str, line: str | None = None, then: str | None = None) -> None:
    """Store a guess about a fault: one of OUTCOMES, and the line that is changed for it, or a piece that no
    other line has. The line is None where the task names it."""
    if then is None:
        words = f"then: one of {', '.join(map(repr, OUTCOMES))}"
        print(f"{words}; line: the line or a piece of it, unless the text names it.")
    elif not isinstance(then, str) or then not in OUTCOMES:
        printed.show(f"{then!r} is not one of {', '.join(map(repr, OUTCOMES))}.")
    elif line is not None and (not isinstance(line, str) or too_short(line)):
        printed.show(
            f"{line!r} is not a line that can be found; its text is needed, or a piece of it that no other "
            "line has, in quotation marks."
        )
    else:
        _store(name, {"line": line, "then": then})


def broken(name: str, change: Change | None, outcomes: Sequence[str]) -> None:
    """Print what came of a fault, beside the guess.

    Args:
        name: as for guess_break.
        change: the source before and after; None: the fault is not in a source.
        outcomes: what came of it under each schedule.
    """
    counts = collections.Counter(outcomes).most_common()
    words = {**OUTCOMES, CRASH: "the process that ran it ended"}
    printed.show(
        "Found:",
        ", ".join(f"{words[outcome]} ({count} of {len(outcomes)})" for outcome, count in counts) + ".",
    )
    mine = progress.mine()["guesses"].get(name)
    if mine is None:
        print("You made no guess.")
        return
    print(f"You guessed: {words[mine['then']]}. That is {'so' if mine['then'] in outcomes else 'not so'}.")
    if change is None:
        return
    if mine["line"] is not None:
        printed.show(change.verdict(mine["line"]))
    printed.show(f"What was changed:\n{change.shown()}")


def outcome(symptom: EmulatorError | str | None) -> str:
    """The one of OUTCOMES that a schedule's symptom is, or CRASH."""
    if symptom is None:
        return "right"
    if isinstance(symptom, EmulatorError):
        return "hang" if symptom.what in HANGS else "fault"
    return CRASH if isinstance(symptom, Crash) else "wrong"


class Crash(str):
    """The symptom of a process that has ended or was ended: how."""


def _store(name: str, mine: object) -> None:
    with progress.changed() as known:
        known["guesses"][name] = mine
    print("Your guess is stored.")
