"""From a public function to a product: the fast path, torch's operators, or the checks and a launch.

    calls.dense(lhs, rhs, out)

A call ends in one of three ways. In torch.compile and torch.export it becomes an operator of
`gemm_ladder.ops`. Otherwise `fast_path` launches it, if it can. What that leaves, `gemm_ladder.checks`
refuses or converts, and `ops.run` computes.
"""

from __future__ import annotations

import numbers
from typing import Any, cast

import torch
from gemm_ladder import checks, ops, scales, settings
from gemm_ladder.arguments import MAX_SIZE, Kind
from gemm_ladder.errors import InputError
from gemm_ladder.production import fast_path
from gemm_ladder.settings import whole_number


def dense(lhs: object, rhs: object, out: object) -> None:
    """`fp8_gemm_nt`, by whichever name it was called."""
    if ops.compiling():
        if ops.in_transform():
            return ops.run_uncompiled(dense, lhs, rhs, out)
        return ops.call("dense", *_two(lhs), *_two(rhs), out)
    answer = fast_path.queue["dense"](lhs, rhs, out)
    if answer is True:
        answer = fast_path.queue["dense"](_converted(lhs), rhs, out)
    if answer is None or fast_path.launched(answer):
        return
    if _other_sequence(lhs) or _other_sequence(rhs):
        return dense(_tuple(lhs), _tuple(rhs), out)
    _run("dense", lhs, rhs, out)


def contiguous(lhs: object, rhs: object, out: object, grouped_layout: object, m_indices: object) -> None:
    """`m_grouped_fp8_gemm_nt_contiguous` with an index for each row, by whichever name it was called."""
    rows = _one(grouped_layout, m_indices)
    if ops.compiling():
        if ops.in_transform():
            return ops.run_uncompiled(contiguous, lhs, rhs, out, rows, None)
        return ops.call("contiguous", *_two(lhs), *_two(rhs), out, rows)
    if not settings.check_contents and _launched("contiguous", lhs, rhs, out, rows):
        return
    if _other_sequence(lhs) or _other_sequence(rhs):
        return contiguous(_tuple(lhs), _tuple(rhs), out, rows, None)
    _run("contiguous", lhs, rhs, out, rows)


def psum(
    lhs: object, rhs: object, out: object, grouped_layout: object, m_indices: object, expected_m: object
) -> None:
    """`m_grouped_fp8_gemm_nt_contiguous` with the groups' ends, by whichever name it was called."""
    rows, name = _one(grouped_layout, m_indices), "expected_m_for_psum_layout"
    if ops.compiling():
        if ops.in_transform():
            return ops.run_uncompiled(psum, lhs, rhs, out, rows, None, expected_m)
        hint = 0 if expected_m is None else _expected_when_compiled(name, expected_m)
        return ops.call("psum", *_two(lhs), *_two(rhs), out, rows, hint)
    expected = 0 if expected_m is None else _expected(name, expected_m)
    if (
        type(expected) is int
        and not settings.check_contents
        and _launched("psum", lhs, rhs, out, rows, expected)
    ):
        return
    if _other_sequence(lhs) or _other_sequence(rhs):
        return psum(_tuple(lhs), _tuple(rhs), out, rows, None, expected)
    _run("psum", lhs, rhs, out, rows, expected)


def masked(lhs: object, rhs: object, out: object, masked_m: object, expected_m: object) -> None:
    """`m_grouped_fp8_gemm_nt_masked`, by whichever name it was called."""
    if ops.compiling():
        if ops.in_transform():
            return ops.run_uncompiled(masked, lhs, rhs, out, masked_m, expected_m)
        hint = _expected_when_compiled("expected_m", expected_m)
        return ops.call("masked", *_two(lhs), *_two(rhs), out, masked_m, hint)
    expected = _expected("expected_m", expected_m)
    if (
        type(expected) is int
        and not settings.check_contents
        and _launched("masked", lhs, rhs, out, masked_m, expected)
    ):
        return
    if _other_sequence(lhs) or _other_sequence(rhs):
        return masked(_tuple(lhs), _tuple(rhs), out, masked_m, expected)
    _run("masked", lhs, rhs, out, masked_m, expected)


def _expected(name: str, value: object) -> int:
    """A hint as an int, or a symbol, of which the fast path would make a number. `whole_number`, which takes
    longer, is asked about what is neither."""
    if type(value) is int and 0 <= value <= MAX_SIZE:
        return value
    return cast(int, value) if isinstance(value, torch.SymInt) else whole_number(name, value)


def _expected_when_compiled(name: str, value: object) -> int:
    """The same for torch.compile. `whole_number` would make a constant of a size that it keeps variable, and
    that such a size is at most MAX_SIZE would be a condition of the program: the operator looks, when it
    runs."""
    return value if type(value) is int and value >= 0 else whole_number(name, value)


def _launched(kind: Kind, lhs: object, *others: object) -> bool:
    """Whether the fast path has launched a call of grouped matrices; `dense` has the same written out, which
    takes less time. If only A's scales have other strides than TMA reads, they are converted first."""
    answer = fast_path.queue[kind](lhs, *others)
    if answer is True:
        answer = fast_path.queue[kind](_converted(lhs), *others)
    return answer is None or fast_path.launched(answer)


def _converted(lhs: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """A with its scales as TMA reads them, where servers pass others that the fast path has checked."""
    return lhs[0], scales.mn_major(lhs[1])


def _one(grouped_layout: object, m_indices: object) -> object:
    """The one of two names of a tensor that is given."""
    if m_indices is None:
        return grouped_layout
    if grouped_layout is not None:
        raise InputError(
            "m_indices and grouped_layout are both given; one, two names of one tensor, is needed"
        )
    return m_indices


def _other_sequence(pair: object) -> bool:
    """Whether a pair is a list or, say, a named tuple: the fast path takes plain tuples."""
    return isinstance(pair, (list, tuple)) and type(pair) is not tuple


def _tuple(pair: object) -> object:
    return tuple(pair) if isinstance(pair, (list, tuple)) else pair


def _two(pair: object) -> tuple[object, object]:
    return checks.pair(pair, "lhs or rhs", "of a matrix and its scales")


def _run(kind: Kind, lhs: object, rhs: object, out: object, rows: object = None, expected_m: int = 0) -> None:
    """What the fast path does not do: a first call, one whose scales were converted, one on the CPU, and one
    that torch's dispatcher has to see."""
    pairs = checks.pair(lhs, "lhs", "(A, sfa)") + checks.pair(rhs, "rhs", "(B, sfb)")
    if ops.seen(*pairs, out, rows):
        checks.described(kind, lhs, rhs, out, rows)  # torch would refuse a wrong argument in its own words
        return ops.call(kind, *pairs, out, rows, expected_m)
    ops.run(checks.call(kind, lhs, rhs, out, rows), expected_m)


def is_recipe(given: object, needed: tuple[int, ...]) -> bool:
    """Whether a recipe is this one, as a tuple or a list of whole numbers."""
    if not isinstance(given, (tuple, list)) or not all(isinstance(one, numbers.Integral) for one in given):
        return False
    return tuple(given) == needed


def check_options(
    c: object, recipe: object, recipe_a: object, recipe_b: object, alpha: object, epilogue: object
) -> None:
    """Refuse options of DeepGEMM's that are for other GPUs.

    Raises:
        InputError: one of them is given, and is not what the products do anyway.
    """
    if c is not None:
        raise InputError("c is given; None is needed: an output in BF16 is written on Hopper, not added to")
    for name, given, needed in (
        ("recipe", recipe, (1, 128, 128)),
        ("recipe_a", recipe_a, (1, 128)),
        ("recipe_b", recipe_b, (128, 128)),
    ):
        if given is not None and not is_recipe(given, needed):
            shown = " ".join(repr(given).split())  # a tensor's has several lines
            raise InputError(f"{name} is {shown}; {needed} or None is needed")
    if alpha is not None and not (isinstance(alpha, numbers.Real) and alpha == 1):
        given = alpha if isinstance(alpha, numbers.Real) else f"of type {type(alpha).__name__}"
        raise InputError(
            f"alpha is {given}; 1 or None is needed: the product is not scaled as a whole on Hopper"
        )
    if epilogue is not None:
        raise InputError("epilogue is given; None is needed: there are no epilogues on Hopper")
