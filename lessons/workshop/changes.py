"""Which lines of a source a fault changes: as a diff, and compared with the line that a reader names."""

from __future__ import annotations

import dataclasses
import difflib
import re
import textwrap

SHORTEST = 4  # characters of a line's text, without spaces: fewer say nothing
NEAR = 4  # lines: a line that moves past so few others might as well have stayed, and they moved
AROUND = 2  # lines that did not change, of those that a reader names with one that did


@dataclasses.dataclass(frozen=True)
class Change:
    """A source before and after a change."""

    before: str
    after: str

    def shown(self) -> str:
        """The lines that differ, "-" before those that are gone and "+" before the new ones; no comments."""
        parts = []
        for _, i, i_end, j, j_end in self._differing():
            old, new = self.before.splitlines()[i:i_end], self.after.splitlines()[j:j_end]
            if lines := [f"    - {line}" for line in _flush(old)] + [f"    + {line}" for line in _flush(new)]:
                parts.append("\n".join(lines))
        return "\n    ...\n".join(parts)

    def verdict(self, line: str) -> str:
        """Whether a line that a reader names is one that has changed, as a sentence.

        It may be the whole line, its begin or another piece of it, with or without its comment and its
        spaces, or several lines. No other line may have that piece.
        """
        if too_short(line):
            return f"Your line, {line.strip()!r}, is too short to tell: give more of the line."
        changed, places = self._changed(), list[set[int]]()
        for squeezed in (_tight, _plain) if "//" in line else (_plain, _tight):  # _tight keeps comments
            wanted, lines = squeezed(line), [squeezed(one) for one in self.before.splitlines()]
            numbers = [number for number, text in enumerate(lines) for _ in text]  # of each character
            if places := [set(numbers[at : at + len(wanted)]) for at in _places(wanted, "".join(lines))]:
                break
        here = [place for place in places if place & changed]
        if not here:
            return "Your line is another one." if places else "Your line is none of this source."
        if all(len(place - changed) > AROUND for place in here):
            return "Your lines have the changed one among many: give that line alone."
        if len(here) < len(places) and not any(wanted == lines[number] for place in here for number in place):
            return f"Your line is in {len(places)} places, one of them changed: give more of the line."
        return "Your line is changed, yes."

    def _differing(self) -> list[tuple[str, int, int, int, int]]:
        """difflib's opcodes, but for equal lines."""
        old, new = self.before.splitlines(), self.after.splitlines()
        codes = difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes()
        return [code for code in codes if code[0] != "equal"]

    def _changed(self) -> set[int]:
        """The numbers, from 0 on, of the lines that have changed, and of those that one moves past."""
        differing, found = self._differing(), set[int]()
        old, new = self.before.splitlines(), self.after.splitlines()
        for _, i, i_end, _, _ in differing:
            found.update(range(i, i_end))
            gone = "".join(map(_plain, old[i:i_end]))
            for _, to, to_end, j, j_end in differing:
                first, last = min(i, to), max(i_end, to_end)
                between = last - first - (i_end - i)
                if gone and gone == "".join(map(_plain, new[j:j_end])) and between <= NEAR:
                    found.update(range(first, last))
        return found


def too_short(line: str) -> bool:
    """Whether a line, or a piece of one, is so short that many lines may have it."""
    return len(_tight(line)) < SHORTEST


def _flush(lines: list[str]) -> list[str]:
    """Without the spaces that all begin with, and without lines that say nothing but a comment."""
    return [line for line in textwrap.dedent("\n".join(lines)).split("\n") if _plain(line)]


def _plain(text: str) -> str:
    """Without comments and spaces."""
    return _tight(re.sub(r"//.*", "", text))


def _tight(text: str) -> str:
    """Without spaces."""
    return "".join(text.split())


def _places(wanted: str, text: str) -> list[int]:
    """Where a text, if there is any, is found in another one, also where two places overlap."""
    return [found.start() for found in re.finditer(f"(?={re.escape(wanted)})", text)] if wanted else []
