"""What a reader is told of the lessons before reading them: needs, times, what may be skipped, paths.

    python lessons/workshop/course.py     writes the lessons' heads and the paths in lessons/README.md

Times are counted from the lessons' own text; what may be skipped is what has (optional) in its heading.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script: where `workshop` is
texts = importlib.import_module("workshop.texts")

# How fast one reads. Nobody was timed at single lessons: the rates are set so that the twelve sessions come
# to what readers gave for the course, SESSIONS.
SESSIONS = 17, 19  # hours, at the least and at most
WORDS, LINES = 100, 15  # of text, of code, in a minute
EXERCISE, GUESS = 10, 2  # minutes for one
STEP = 5  # minutes: what times are rounded to
LONG = 240  # minutes, from which on a path's sum is told in hours, too

# By a lesson's name: the lessons that it needs. Lessons are named without their numbers here.
NEEDS = {
    "start_here": (),
    "fp8_numbers": ("start_here",),
    "naive": ("fp8_numbers",),
    "tiled": ("naive",),
    "wgmma": ("tiled",),
    "precision": ("wgmma",),
    "tma": ("wgmma",),
    "tma_multicast": ("tma",),
    "warp_specialized": ("tma_multicast",),
    "persistent": ("warp_specialized",),
    "ffma_interleave": ("persistent",),
    "production": ("persistent",),
    "grouped_gemms": ("production",),
    "reading_the_results": ("production",),
    "your_own_rung": ("tma_multicast",),
    "fp8_in_a_model": ("precision",),
    "experts_over_gpus": ("grouped_gemms",),
}
# Lessons that none needs but optional ones.
OPTIONAL = ("ffma_interleave", "grouped_gemms", "fp8_in_a_model", "experts_over_gpus")
# By the name of one of these: a lesson that takes an example or an exercise from it, and does without it.
SHOWN_IN = {"ffma_interleave": "reading_the_results", "grouped_gemms": "reading_the_results"}
# Seconds that a lesson's cells take on two cores when its kernels are not compiled yet, rounded up; make.py
# says where one takes longer.
SECONDS = {
    **dict.fromkeys(("start_here", "fp8_numbers", "naive"), 30),
    **dict.fromkeys(("tiled", "wgmma", "precision", "tma", "tma_multicast", "warp_specialized"), 60),
    **dict.fromkeys(("persistent", "ffma_interleave", "grouped_gemms", "reading_the_results"), 60),
    "production": 120,
    "your_own_rung": 120,
    "fp8_in_a_model": 60,
    "experts_over_gpus": 60,
}
_IN_WORDS = {30: "half a minute", 60: "a minute", 120: "two minutes"}


class Step(NamedTuple):
    """One line of a path: a lesson, of which only some sections are read, or all but some."""

    name: str
    only: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    optional: bool = False  # whether its optional sections are read
    words: str = ""  # what to do beside reading


# By its length: what the path is for, and its steps. An inner tuple is what belongs together in one session.
PATHS: dict[str, tuple[str, tuple[tuple[Step, ...], ...]]] = {
    "40 minutes": (
        "To see what this is. Read in a browser and run nothing.",
        (
            (Step("start_here", without=("Exercises",)),),
            (Step("fp8_numbers", only=("256 numbers",)),),
            (Step("wgmma", only=("The idea",)),),
            (Step("tma", only=("The idea",)),),
            (Step("reading_the_results", only=("How to doubt a benchmark",)),),
        ),
    ),
    "3 hours": (
        "To know how a fast kernel works on Hopper. Make the guesses, and leave the exercises for later.",
        (
            (Step("start_here", without=("Exercises",)),),
            (
                Step(
                    "fp8_numbers",
                    only=("256 numbers", "Who shares a scale", "Why the scales shape the kernel"),
                ),
            ),
            (Step("naive", without=("Exercises", "Break it")),),
            (Step("tiled", without=("Exercises", "Break it")),),
            (Step("wgmma", without=("Exercises", "Break it")),),
            (Step("tma", without=("Exercises", "Break it")),),
            (
                Step(
                    "tma_multicast",
                    only=("The idea", "1. The neighbour's shared memory", "2. One load, two blocks"),
                ),
            ),
            (Step("warp_specialized", without=("Exercises", "Break it")),),
            (Step("persistent", only=("4. Blocks that stay: the persistent loop",)),),
            (Step("reading_the_results", only=("How to doubt a benchmark",)),),
        ),
    ),
    "12 sessions of 1 to 2 hours": (
        "To be able to write one. All guesses and exercises, but those of the sections to skip; a session's "
        "reading is for before it, where there is a teacher.",
        (
            (Step("start_here"), Step("fp8_numbers")),
            (Step("naive"),),
            (Step("tiled"),),
            (Step("wgmma"),),
            (Step("precision"),),
            (Step("tma"),),
            (Step("tma_multicast"),),
            (Step("warp_specialized"),),
            (Step("persistent"),),
            (Step("production", without=("Break it",)),),
            (Step("reading_the_results"),),
            (Step("your_own_rung"),),
        ),
    ),
    "Further sessions": (
        "What the twelve leave out, in any order, each after the lessons that its head names.",
        (
            (Step("ffma_interleave"),),
            (Step("grouped_gemms"),),
            (Step("fp8_in_a_model"),),
            (Step("experts_over_gpus"),),
        ),
    ),
}


# ---------------------------------------------------------------------------------------------- the lessons


class Lesson(NamedTuple):
    """A lesson's .py: its stem, such as 02_naive, what is ahead of its cells, and the cells."""

    stem: str
    head: str
    cells: list

    @property
    def name(self) -> str:
        return self.stem[3:]

    @property
    def link(self) -> str:
        return f"[{self.stem[:2]}]({self.stem}.ipynb)"


def lessons() -> dict[str, Lesson]:
    """All of them, by name, in order."""
    return {path.stem[3:]: Lesson(path.stem, *texts.cells(path.read_text())) for path in texts.paths()}


class Piece(NamedTuple):
    """A piece of a lesson: the headings that it is under, outermost first, and its minutes."""

    headings: tuple[str, ...]
    reading: float
    doing: float


def pieces(lesson: Lesson) -> Iterator[Piece]:
    """A lesson in pieces, cell by cell, and at headings inside of a cell."""
    above: list[tuple[int, str]] = []
    for cell in lesson.cells:
        if not cell.is_text:
            lines = sum(bool(line.strip()) for line in cell.body.splitlines())
            doing = EXERCISE * ('"exercise"' in cell.marker) + GUESS * ('"guess"' in cell.marker)
            yield Piece(tuple(title for _, title in above), lines / LINES, doing)
            continue
        for part in re.split(r"^(?=##+ )", cell.markdown, flags=re.M):
            if found := re.match(r"(##+) (.+)", part):
                above = [one for one in above if one[0] < len(found[1])] + [(len(found[1]), found[2])]
            bare = re.sub(r"\]\([^)]*\)|<[^>]*>|^> .*$", "", part, flags=re.M)
            yield Piece(tuple(title for _, title in above), len(bare.split()) / WORDS, 0)


def optional(lesson: Lesson) -> list[str]:
    """The headings of the sections that may be skipped."""
    found = dict.fromkeys(title for piece in pieces(lesson) for title in piece.headings)
    return [title for title in found if title.endswith("(optional)")]


def minutes(lesson: Lesson, step: Step) -> tuple[float, float]:
    """What a step of a path takes: to read, and for guesses and exercises.

    ValueError where the lesson lacks one of the step's sections.
    """
    skipped = {*step.without, *([] if step.optional else optional(lesson))}
    every = [*pieces(lesson)]
    if missing := {*step.only, *step.without} - {title for piece in every for title in piece.headings}:
        raise ValueError(
            f"{lesson.stem} has no section {', '.join(missing)}, which a path of course.py names"
        )
    read = [
        piece
        for piece in every
        if not skipped & {*piece.headings} and (not step.only or {*step.only} & {*piece.headings})
    ]
    return sum(piece.reading for piece in read), sum(piece.doing for piece in read)


# ------------------------------------------------------------------------------------------------- the pages


def head(lesson: Lesson, every: dict[str, Lesson]) -> str:
    """The lines at a lesson's head."""
    needs = " and ".join(every[name].link for name in NEEDS[lesson.name])
    needs = f"lesson {needs}" if needs else "NumPy, and to have seen one CUDA kernel"
    reading, doing = minutes(lesson, Step(lesson.name))
    skipped = "; ".join(f"*{title.removesuffix(' (optional)')}*" for title in optional(lesson))
    if skipped:
        whole, with_exercises = minutes(lesson, Step(lesson.name, optional=True))
        skipped += f" ({_rounded(whole + with_exercises - reading - doing)} minutes more)"
    if lesson.name in OPTIONAL:
        users = [other.link for name, other in every.items() if lesson.name in NEEDS.get(name, ())]
        needed_by = " and ".join(users)
        skipped = f"all of it: no {'' if needed_by else 'other '}lesson needs it"
        skipped += f", but for {needed_by}" if needed_by else ""
        if lesson.name in SHOWN_IN:
            skipped += f"; lesson {every[SHOWN_IN[lesson.name]].link} has an example or an exercise of it"
    return texts.wrapped(
        f"> **Needs:** {needs}. **Time:** {_rounded(reading)} minutes to read, {_rounded(doing)} for "
        f"guesses and exercises; its cells run in {_IN_WORDS[SECONDS[lesson.name]]}, less when its kernels "
        f"have been compiled. **May be skipped:** {skipped or 'nothing'}."
    )


def with_head(lesson: Lesson, every: dict[str, Lesson]) -> str:
    """A lesson's .py with its head, at the end of its first cell."""
    first, *rest = lesson.cells
    bare = re.sub(r"^> \*\*Needs:\*\*.*(?:\n> .*)*", "", first.markdown, flags=re.M)
    text = bare.rstrip("\n") + "\n\n" + head(lesson, every)
    new = text if text != first.markdown.rstrip("\n") else None
    return texts.joined(lesson.head, [first.rewritten(new) if new else first, *rest])


def paths(every: dict[str, Lesson]) -> str:
    """The paths, as README.md has them."""
    found = []
    for length, (words, sessions) in PATHS.items():
        steps = [step for session in sessions for step in session]
        total = sum(_rounded(sum(minutes(every[step.name], step))) for step in steps)
        hours = f", {total / 60:.1f} hours" if total >= LONG else ""
        found += [f"### {length}", "", texts.filled(f"{words} Together: {total} minutes{hours}."), ""]
        found += ["| | lesson | read | skip | minutes |", "|---:|---|---|---|---:|"]
        for number, session in enumerate(sessions, start=1):
            for step in session:
                lesson = every[step.name]
                first = str(number) if step is session[0] else ""
                read = ", ".join(map(_bare, step.only)) or "all"
                skipped = [*step.without, *([] if step.optional or step.only else optional(lesson))]
                skip = ", ".join(map(_bare, skipped))
                link = f"[{lesson.stem}]({lesson.stem}.ipynb)" + (f", {step.words}" if step.words else "")
                took = _rounded(sum(minutes(lesson, step)))
                found.append(f"| {first} | {link} | {read} | {skip} | {took} |")
        found.append("")
    return "\n".join(found).rstrip("\n")


def with_paths(page: str, every: dict[str, Lesson]) -> str:
    """README.md with the paths between its markers."""
    begin, end = "<!-- paths:begin -->", "<!-- paths:end -->"
    ahead, behind = page.partition(begin)[0], page.partition(end)[2]
    return f"{ahead}{begin}\n{paths(every)}\n{end}{behind}"


def _bare(title: str) -> str:
    return title.removesuffix(" (optional)")


def _rounded(found: float) -> int:
    return max(STEP, STEP * round(found / STEP))


def written(every: dict[str, Lesson]) -> dict[Path, str]:
    """What the files have to be: the lessons and README.md.

    ValueError where a lesson is not in the tables above.
    """
    if missing := [lesson.stem for name, lesson in every.items() if not (name in NEEDS and name in SECONDS)]:
        raise ValueError(f"{', '.join(missing)}: NEEDS and SECONDS of course.py have no line for it")
    page = texts.lessons.FOLDER / "README.md"
    pages = {path: with_head(every[path.stem[3:]], every) for path in texts.paths()}
    return {**pages, page: with_paths(page.read_text(), every)}


def main(_: Sequence[str] = ()) -> None:
    for path, text in written(lessons()).items():
        if text != path.read_text():
            path.write_text(text)
            print(path.name)


if __name__ == "__main__":
    main()
