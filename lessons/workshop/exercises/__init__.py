"""The exercises, as a notebook calls them: check, hint and answer; and why a fault does what it does.

Each lesson's exercises are in lesson_NN.py, a record for each. An id is the lesson's number, a dot and the
exercise's: "02.1". `guess`, `guess_break` and `found` store a prediction and print it beside the result.
"""

from __future__ import annotations

import importlib
import re
import textwrap
from pathlib import Path

from gemm_ladder.errors import GemmLadderError, InputError
from gemm_ladder.figures import lessons
from workshop import apart, printed, progress, workbench
from workshop.exercises import fitting, whole
from workshop.exercises.record import Exercise, Verdict
from workshop.guesses import found, guess, guess_break

__all__ = ["answer", "check", "found", "frame", "guess", "guess_break", "hint", "verdict", "why"]

STEPS = ("A nudge", "The idea", "Nearly the line")


def check(name: str, mine: object) -> None:
    """Print "Right", and remember it, or "Not yet" with what was given and what is expected in one case."""
    found = verdict(name, mine)
    if found.right:
        with progress.changed() as known:
            if name not in known["solved"]:
                known["solved"].append(name)
        printed.show(f"Right: {found.words}")
    else:
        printed.show(f'Not yet: {found.words}\nFor a hint: exercises.hint("{name}")')


def verdict(name: str, mine: object) -> Verdict:
    """What the check says of an answer, of whatever kind it is."""
    one = exercise(name)
    if misfit := fitting.misfit(fitting.asked(_lesson(name[:2]), name), mine):
        return Verdict(False, misfit)
    try:
        return one.check(mine)
    except (GemmLadderError, apart.Ended) as error:
        return Verdict(False, f"{error}")


def hint(name: str) -> None:
    """Print the exercise's hints up to one more than the last time: a nudge, the idea, nearly the line."""
    hints = exercise(name).hints
    with progress.changed() as known:
        seen = known["hints"][name] = min(known["hints"].get(name, 0) + 1, len(hints))
    for number in range(seen):
        print(
            textwrap.fill(
                f"{number + 1}. {STEPS[number]}: {hints[number]}", printed.WIDTH, subsequent_indent="   "
            )
        )
    rest = len(hints) - seen
    print(f"More: call it again ({rest} left)." if rest else f'The answer: exercises.answer("{name}")')


def answer(name: str) -> workbench.Text | None:
    """Show the answer to who has seen all hints, or has solved the exercise."""
    hints, known = exercise(name).hints, progress.mine()
    left = len(hints) - known["hints"].get(name, 0)
    if left and name not in known["solved"]:
        print(f'There are {left} hints left: exercises.hint("{name}")')
        return None
    text = solutions(name[:2])[int(name[3:]) - 1]
    return workbench.Text(f"```python\n{text}\n```", text)


def why(name: str) -> workbench.Text:
    """The reason that the repository's lesson has under a fold; "02.3" is lesson 02's third."""
    number, _, place = name.partition(".")
    reasons = lessons.FOLD.findall(_lesson(number).read_text().replace("\n# ", "\n").replace("\n#\n", "\n\n"))
    if not place.isdigit() or not 1 <= int(place) <= len(reasons):
        raise InputError(f"lesson {number} has {len(reasons)} reasons; one of those is needed, not {name!r}")
    return workbench.Text(reasons[int(place) - 1].strip())


def frame(name: str) -> workbench.Text:
    """What stands around the kernel that an exercise asks for."""
    exercise(name)
    if name not in whole.FRAME_OF:
        raise InputError(f"{name!r} asks for no whole kernel; one of {', '.join(whole.FRAME_OF)} is needed")
    return whole.FRAME_OF[name].show()


def exercise(name: str) -> Exercise:
    """InputError where there is none of that id."""
    known = of_lesson(name[:2])
    if name not in known:
        raise InputError(
            f"lesson {name[:2]} has the exercises {', '.join(known)}; one of those is needed, not {name!r}"
        )
    return known[name]


def of_lesson(number: str) -> dict[str, Exercise]:
    """A lesson's exercises, by id."""
    _lesson(number)
    found: dict[str, Exercise] = importlib.import_module(f"workshop.exercises.lesson_{number}").EXERCISES
    return found


def solutions(number: str) -> list[str]:
    """The cells that solve a lesson's exercises, in order."""
    text = (lessons.FOLDER / "solutions" / _lesson(number).name).read_text()
    return [cell.strip() for cell in text.split("# %%\n")[1:]]


def _lesson(number: str) -> Path:
    found = sorted(lessons.FOLDER.glob(f"{number}_*.py")) if re.fullmatch(r"\d\d", number) else []
    if not found:
        raise InputError(f"{number!r} is no lesson's number; two digits such as '02' are needed")
    return found[0]
