"""Single faults, made mechanically in the text of a kernel: what test_mutation.py plants, one at a time.

An operator changes one place of one line. OPERATORS is the whole list: the first half is about
synchronisation, the second about indices, bounds and guards, the last about arithmetic.
"""

from __future__ import annotations

import collections
import itertools
import re
from collections.abc import Iterator
from typing import NamedTuple


class Mutant(NamedTuple):
    """One fault.

    Attributes:
        file: name of the kernel's file.
        line: number of the line, from 1; where a statement has several lines, its first one.
        what: the operator.
        before, after: the text of these lines without comments and indentation, and what becomes of it.
        text: the whole file with the fault.
        nth: of the statements with this text, from 1.
    """

    file: str
    line: int
    what: str
    before: str
    after: str
    text: str
    nth: int

    @property
    def key(self) -> tuple[str, str, str]:
        """What identifies the mutant, also when other lines are edited."""
        return self.file, self.before + (f" [{self.nth}]" if self.nth > 1 else ""), self.after

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.what}: {self.before}  ->  {self.after}"


class Operator(NamedTuple):
    """A way to change a statement, where `pattern` matches: each match is a mutant of its own.

    Attributes:
        what: what is wrong afterwards, in words.
        pattern: a regular expression.
        new: its replacement, as re.Match.expand takes it.
        where: a regular expression that the statement has to match as well.
    """

    what: str
    pattern: str
    new: str
    where: str = ""


_WORD = r"[A-Za-z_]\w*"
_PARENTHESES = r"\((?:[^()]|\((?:[^()]|\((?:[^()]|\([^()]*\))*\))*\))*\)"  # with three more levels in them


def _call(name: str) -> str:
    """A pattern for a whole call."""
    return rf"(?<![\w:])((?:ptx::)?{name}(?:<[^<>;]*>)?{_PARENTHESES})"


_INDEX = r"(?:const |static |constexpr )*(?:int|int64_t|uint32_t|uint64_t|unsigned|uint16_t)"
OPERATORS = (
    # Synchronisation
    Operator(
        "twice", _call(r"(?:mbarrier_(?:init|arrive)\w*|\w+_commit_group|barrier_cluster_\w+)"), r"\1, \1"
    ),
    Operator("the other parity", r"(mbarrier_wait_parity\(.*), (.*)\);", r"\1, (\2) ^ 1);"),
    Operator("no bytes expected", r"mbarrier_arrive_expect_tx\((.*?), .*\);", r"mbarrier_arrive(\1);"),
    Operator("more bytes expected", r"(mbarrier_arrive_expect_tx\(.*)\);", r"\1 + 16);"),
    Operator("fewer bytes expected", r"(mbarrier_arrive_expect_tx\(.*)\);", r"\1 - 16);"),
    Operator("relaxed", r"barrier_cluster_arrive\(", "barrier_cluster_arrive_relaxed("),
    Operator("an arrival in place of a wait", r"bar_sync\(", "bar_arrive("),
    Operator("a warp's barrier in place of a block's", r"__syncthreads\(", "__syncwarp("),
    Operator("another fence", r"fence_proxy_async\(", "fence_mbarrier_init("),
    Operator("another fence", r"fence_mbarrier_init\(", "wgmma_fence("),
    Operator("this block in place of another", r"mapa\((.*?), .*?\)\)", r"mapa(\1, ptx::cluster_ctarank()))"),
    Operator("gives in place of takes", r"setmaxnreg_inc", "setmaxnreg_dec"),
    Operator("takes in place of gives", r"setmaxnreg_dec", "setmaxnreg_inc"),
    Operator("16 registers more", r"(setmaxnreg_\w+<[^<>]*)>", r"\1 + 16>"),
    # Statements that are left out, and two that change places
    Operator(
        "left out", r"^(\w[^;{}=]*\(.*\));$", ";", r"^(?!return\b|if\b|for\b|while\b|else\b|static|struct)"
    ),
    Operator("left out", r"^([\w.\[\]]+ [-+^]?= .*);$", ";"),
    Operator(
        "left out", r"^((?:if|for|else|else if) ?\(.*\)|else) (?!return\b|continue\b)[^;{}]*;$", r"\1 ;"
    ),
    Operator("left out", r"^(if \(.*\)) (?:return|continue)\b[^;]*;$", ";"),
    # Indices, strides, offsets, coordinates and bounds
    Operator("one more", r"(?<![\w.<:])(\d+)(?![\w.\]>])", r"(\1 + 1)", r"^(?!#)"),
    Operator(
        "one more", r"(?<=\[)(\d+)(?=\])", r"\1 + 1", r"^(?!.*(?:float|int|Part|bool|TensorMap)2? \w+\[)"
    ),
    Operator("one more", rf"^({_INDEX} \w+ = (?!\d+;)[^?;,]*);$", r"\1 + 1;"),
    Operator("one less", rf"^({_INDEX} \w+ = [^?;,]*);$", r"\1 - 1;"),
    Operator("one more", r"^([\w.\[\]]+ [-+]?= [^?;,{]*);$", r"\1 + 1;"),
    Operator("one coordinate more", r"(cp_\w*async_bulk_\w*tensor_2d\w*\(.*)\);$", r"\1 + 1);"),
    Operator("the bound included", r" < (?=[\w(])", " <= "),
    Operator("the bound left out", r" <= (?=[\w(])", " < "),
    Operator("the bound left out", r" >= (?=[\w(])", " > "),
    Operator("the bound included", r" > (?=[\w(])", " >= "),
    Operator("unequal", r" == ", " != "),
    Operator("equal", r" != ", " == "),
    Operator("minus", r" \+ ", " - "),
    Operator("plus", r" - ", " + "),
    Operator("plus in place of times", r" \* ", " + "),
    Operator("quotient", r" % ", " / "),
    Operator("remainder", r" / ", " % "),
    Operator("or", r" && ", " || "),
    Operator("and", r" \|\| ", " && "),
    Operator("or in place of exclusive or", r" \^ ", " | "),
    Operator("decreased", r"(?<=\w) \+= ", " -= "),
    Operator("increased", r"(?<=\w) -= ", " += "),
    Operator("always", rf"^((?:else )?if) ({_PARENTHESES}) (?=\S)", r"\1 (true || \2) "),
    # Arithmetic
    Operator("the other one", r" \? ([^?:]+) : ([^?:;,)\]]+)", r" ? \2 : \1"),
    Operator(
        "the lower half for the upper one", r"bf16x2_f32\((.*?), (.*?)\)(?=[;,])", r"bf16x2_f32(\2, \1)"
    ),
    Operator("not added up", r"fmaf\((.*), [^,]*\);", r"fmaf(\1, 0.0f);"),
    Operator(
        "always starts from zero", rf"(ptx::wgmma<{_WORD}(?:\.\w+)?>\(.*), (?:k != 0|[^,]*)\);", r"\1, 0);"
    ),
    Operator(
        "never starts from zero", rf"(ptx::wgmma<{_WORD}(?:\.\w+)?>\(.*), (?:k != 0|[^,]*)\);", r"\1, 1);"
    ),
)

# Statements that only one of two machines has, or that end before a kernel runs.
_LEFT_ALONE = re.compile(
    r"#|static_assert|using |template|extern|class |struct |enum |namespace |__global__|public:|private:|"
    r"\};?$|\{$|case |default:|return error;|if \(auto error"
)


def mutants(file: str, text: str) -> list[Mutant]:
    """All single faults of a file, in the order of its lines; each with other text than those before it."""
    found: dict[tuple[int, str], Mutant] = {}
    lines = text.splitlines()
    statements = list(_statements(lines))
    seen = collections.Counter[str]()
    nth: dict[int, int] = {}
    for first, last, before in statements:
        seen[before] += 1
        nth[first] = seen[before]
        for what, after in _changes(before):
            changed = [*lines[:first], after, *[""] * (last - first), *lines[last + 1 :]]
            mutant = Mutant(file, first + 1, what, before, after, "\n".join(changed) + "\n", nth[first])
            found.setdefault((first, after), mutant)
    for (first, last, before), (begin, end, other) in itertools.pairwise(statements):
        if begin != last + 1 or not _may_change_places(lines[first], before, lines[begin], other):
            continue
        changed = [*lines[:first], *lines[begin : end + 1], *lines[first : last + 1], *lines[end + 1 :]]
        after, text = f"{other} {before}", "\n".join(changed) + "\n"
        found[first, after] = Mutant(file, first + 1, "after the next", before, after, text, nth[first])
    return sorted(found.values(), key=lambda mutant: mutant.line)


def _changes(statement: str) -> Iterator[tuple[str, str]]:
    """What the operators make of a statement: (operator, text)."""
    for operator in OPERATORS:
        if operator.where and not re.search(operator.where, statement):
            continue
        for match in re.finditer(operator.pattern, statement):
            after = statement[: match.start()] + match.expand(operator.new) + statement[match.end() :]
            if after != statement:
                yield operator.what, after


def _may_change_places(line: str, before: str, next_line: str, other: str) -> bool:
    """Two statements of one block, one of them a synchronisation."""
    indented = len(line) - len(line.lstrip()) == len(next_line) - len(next_line.lstrip())
    simple = all(
        re.match(r"(?!return|else|for|const|float|if constexpr)\w.*;$", one) for one in (before, other)
    )
    synchronises = any(re.search(r"ptx::|__sync|release\(|meet\(", one) for one in (before, other))
    return indented and simple and synchronises and "for (" not in before


def _statements(lines: list[str]) -> Iterator[tuple[int, int, str]]:
    """The first and the last line of each statement that may be changed, and its text on one line.

    A statement ends with the line that ends in ; { } or : when all parentheses are closed.
    """
    first, text = 0, ""
    for number, line in enumerate(lines):
        code = re.sub(r"\s+", " ", line.split("//")[0]).strip()
        if not code or code.startswith("#"):
            continue
        if not text:
            first = number
        text = f"{text} {code}".strip()
        if text.count("(") == text.count(")") and text[-1] in ";{}:":
            if not _is_left_alone(text):
                yield first, number, text
            text = ""


def _is_left_alone(statement: str) -> bool:
    guard = re.match(r"(?:\} )?(?:else )?(?:if|for|while) \(", statement)
    if guard and statement.endswith("{"):
        return False
    return _LEFT_ALONE.match(statement) is not None or statement[-1] in "{}:"
