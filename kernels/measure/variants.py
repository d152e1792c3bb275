"""Rungs with some lines of their source replaced, to measure what those lines are worth."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from gemm_ladder import build
from gemm_ladder.rungs import Rung, rungs


@dataclasses.dataclass(frozen=True)
class ChangedRung(Rung):
    """A rung with another source text."""

    text: str = ""

    @property
    def source(self) -> str:
        return self.text

    def build(self, target: build.Target) -> build.Built:
        return build.load(self.text, target=target, name=self.name)


def changed(name: str, *changes: tuple[str, str]) -> ChangedRung:
    """The rung `name` with each (old, new) replaced in its source; ValueError where `old` is not in it."""
    rung = rungs[name]
    text = replaced(rung.source, name, changes)
    return ChangedRung(f"{name}_changed", rung.idea, rung.n_multiple, rung.k_multiple, text)


def replaced(text: str, of: str, changes: Iterable[tuple[str, str]]) -> str:
    """`text` with the first `old` of each (old, new) replaced. `of` names the text in the ValueError that is
    raised where `old` is not in it."""
    for old, new in changes:
        if old not in text:
            raise ValueError(f"{of} has no {old!r}; text of its source is needed")
        text = text.replace(old, new, 1)
    return text
