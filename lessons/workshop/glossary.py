"""Links from the lessons to the glossary: the first use of each of its terms in a lesson is one.

python lessons/workshop/glossary.py     makes it so, in all lessons; run make.py afterwards
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script: where `workshop` is
texts = importlib.import_module("workshop.texts")

PAGE = "glossary.md"
_ENTRY = re.compile(r"^### (.+)\n(?:\*Also: (.+?)\.\*\n)?", re.M)
_LINK = re.compile(r"\[([^\][]+)\]\(glossary\.md#([\w-]+)\)")
# What is no use of a word: code, formulas, links, pictures, headings, tables, folded reasons, lessons' heads.
_NOT_PROSE = re.compile(
    r"```.*?```|``[^`]+``|`[^`]+`|\$\$.*?\$\$|\$[^$\n]+\$|!?\[[^\]]*\]\([^)]*\)|^#+ .*?$|^(?:> |\|).*?$"
    r"|<details>.*?</details>|<[^>\n]+>",
    re.M | re.S,
)


class Term(NamedTuple):
    """An entry: its heading, and the pattern of all forms in which the lessons use it."""

    name: str
    pattern: re.Pattern[str]

    @property
    def anchor(self) -> str:
        """As GitHub makes it of the heading."""
        return self.name.lower().replace(" ", "-")


class Use(NamedTuple):
    """A place in a cell's text without links to the glossary, and the entry that it links to."""

    begin: int
    end: int
    anchor: str


def terms(page: str) -> list[Term]:
    """The entries of the glossary's text, in order."""
    found = []
    for name, also in _ENTRY.findall(page):
        forms = [name, *filter(None, (form.strip() for form in also.split(",")))]
        found.append(Term(name, re.compile("|".join(map(_form, sorted(forms, key=len, reverse=True))))))
    return found


def _form(form: str) -> str:
    """A pattern for one form: at a sentence's beginning too, in the plural too, broken over lines too."""
    words = [re.escape(word) for word in form.split()]
    if form[0].islower():
        words[0] = f"[{form[0]}{form[0].upper()}]{words[0][1:]}"
    return r"(?<![\w-])" + r"\s+".join(words) + r"s?(?![\w-])"


def links(markdown: str) -> tuple[str, list[Use]]:
    """A text without its links to the glossary, and where these were."""
    plain, found, at = "", [], 0
    for link in _LINK.finditer(markdown):
        plain += markdown[at : link.start()]
        found.append(Use(len(plain), len(plain) + len(link[1]), link[2]))
        plain += link[1]
        at = link.end()
    return plain + markdown[at:], found


def first_uses(plain: Sequence[str], known: Sequence[Term]) -> list[list[Use]]:
    """For each of a lesson's texts, the places where a term is used for the first time in the lesson.

    A place belongs to one term: to the one of the longest match that begins there or before.
    """
    missing = list(known)
    found = []
    for text in plain:
        prose = _NOT_PROSE.sub(lambda part: "\0" * len(part[0]), text)
        matches = [(match, term) for term in known for match in term.pattern.finditer(prose)]
        matches.sort(key=lambda one: (one[0].start(), -one[0].end()))
        here, until = [], 0
        for match, term in matches:
            if match.start() < until:
                continue
            until = match.end()
            if term in missing:
                missing.remove(term)
                here.append(Use(match.start(), match.end(), term.anchor))
        found.append(here)
    return found


def linked(plain: str, uses: Sequence[Use]) -> str:
    """The text with these links."""
    for use in reversed(uses):
        plain = f"{plain[: use.begin]}[{plain[use.begin : use.end]}]({PAGE}#{use.anchor}){plain[use.end :]}"
    return plain


def relinked(lesson: str, known: Sequence[Term]) -> str:
    """A lesson's .py with the links that it has to have; cells that have them are left as they are."""
    head, parts = texts.cells(lesson)
    prose = [index for index, cell in enumerate(parts) if cell.is_text]
    now = [links(parts[index].markdown) for index in prose]
    wanted = first_uses([plain for plain, _ in now], known)
    for index, (plain, has), uses in zip(prose, now, wanted, strict=True):
        if has != uses:
            parts[index] = parts[index].rewritten(_wrapped(parts[index].markdown, linked(plain, uses)))
    return texts.joined(head, parts)


def _wrapped(before: str, after: str) -> str:
    """`after`, with those of its paragraphs wrapped that `before` does not have."""
    old = set(texts.paragraphs(before))
    return "\n".join(part if part in old else texts.wrapped(part) for part in texts.paragraphs(after))


def main() -> None:
    known = terms((texts.lessons.FOLDER / PAGE).read_text())
    for path in texts.paths():
        text = path.read_text()
        new = relinked(text, known)
        if new != text:
            path.write_text(new)
            print(path.name)


if __name__ == "__main__":
    main()
