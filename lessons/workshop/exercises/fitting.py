"""Whether an answer is of the kind that its exercise asks for: that of the lesson's own cell.

A check is written for answers of that kind, and is not given others.
"""

from __future__ import annotations

import ast
import functools
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np


class Asked(NamedTuple):
    """What an exercise asks for.

    Attributes:
        kind: of the answer, in words.
        fits: whether an answer is of that kind.
        parameters: of a function, in order.
    """

    kind: str
    fits: Callable[[object], bool]
    parameters: tuple[str, ...] = ()


def misfit(asked: Asked, mine: object) -> str | None:
    """What was given and what is needed, as the end of a verdict; None where the answer is of that kind."""
    if not asked.fits(mine):
        return f"{asked.kind} is needed, not {_described(mine)}."
    if not callable(mine):
        return None
    try:
        taken = inspect.signature(mine)
    except (TypeError, ValueError):  # a function written in C may not say what it takes
        return None
    try:
        taken.bind(*asked.parameters)
    except TypeError:
        return f"{asked.kind} is needed, not one of {taken}."
    return None


@functools.cache
def asked(lesson: Path, name: str) -> Asked:
    """What the exercise `name` asks for, by the cell in front of its check."""
    before, check, after = lesson.read_text().partition(f'exercises.check("{name}", ')
    variable = re.match(r"\w+", after)
    if not check or variable is None:
        raise LookupError(f"{lesson.name} has no check of {name}")
    for statement in reversed(ast.parse(before).body):
        if isinstance(statement, ast.FunctionDef) and statement.name == variable[0]:
            parameters = tuple(one.arg for one in statement.args.args)
            return Asked(f"a function of ({', '.join(parameters)})", _is_function, parameters)
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == variable[0]:
            return _like(ast.literal_eval(statement.value))
    raise LookupError(f"{lesson.name} begins no {variable[0]} for {name}")


def _like(stub: object) -> Asked:
    """What an exercise asks for that begins with this value."""
    if isinstance(stub, str):
        return Asked("a text in quotation marks", lambda mine: isinstance(mine, str))
    if isinstance(stub, list):
        return Asked("a list of texts", _are_texts)
    return Asked("a number", _is_number)


def _is_function(mine: object) -> bool:
    return callable(mine) and not isinstance(mine, type)


def _are_texts(mine: object) -> bool:
    return isinstance(mine, (list, tuple)) and all(isinstance(one, str) for one in mine)


def _is_number(mine: object) -> bool:
    if isinstance(mine, (str, bytes, bool, type)):
        return False
    try:
        return np.ndim(mine) == 0 and not np.isnan(float(mine))  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return False


def _described(mine: object) -> str:
    """An answer of another kind, in a few words."""
    if isinstance(mine, type):
        return f"the class {mine.__name__}"
    if callable(mine):
        return f"the function {getattr(mine, '__name__', 'that was given')}"
    if mine is None or isinstance(mine, (str, int, float, complex)):
        words = repr(mine)
        return words if len(words) <= 40 else f"{words[:37]}..."
    return f"a value of type {type(mine).__name__}"
