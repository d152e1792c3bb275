"""Lesson 05's exercises: what 14 bits lose, and what promotion costs."""

from __future__ import annotations

import math

import numpy as np
from gemm_ladder.ref import fp8, tensor_core
from workshop.exercises.record import Exercise, Verdict, number, same


def _cut(x: float, largest: int) -> float:
    last = 2.0 ** (largest - 13)
    return math.trunc(x / last) * last


def _stops_at(j: int) -> float:
    """On the model: 64 products of 2^j at a time, until nothing changes."""
    a, b = (fp8.encode(np.full((1, 2048), 2.0**half)) for half in (j // 2, j - j // 2))
    acc, last = np.zeros((1, 1), np.float32), None
    while last is None or acc != last:
        last, acc = acc, tensor_core.chain(a, b, acc)
    return float(acc[0, 0])


def _longest(mine: object) -> Verdict:
    acc, exact_until = np.zeros((1, 1), np.float32), 0
    run = fp8.encode(np.ones((1, 128)))
    while (acc := tensor_core.chain(run, run, acc)) == exact_until + 128:
        exact_until += 128
    return number(mine, exact_until, 0, "from there on the sum stays the same.")


EXERCISES = {
    "05.1": Exercise(
        same(
            _cut,
            [(3.0, 14), (-3.0625, 14), (3.0, 10), (0.4375, 10), (-0.4375, 12), (200704.0, 31), (1.0, -3)],
        ),
        (
            "The lesson's own one_wgmma does it, in its third step. What is the last digit that is kept?",
            "All digits from 2^largest down to 2^(largest - 13) are kept. Count x in units of the last one, "
            "drop what is behind the point, and count back.",
            "With unit = 2.0 ** (largest - 13): x over unit, cut by math.trunc (toward zero, not down), "
            "times unit.",
        ),
    ),
    "05.2": Exercise(
        same(_stops_at, [(0,), (1,), (4,), (-6,)]),
        (
            "For j = 0 you have seen it: the sum of ones stopped in the section on sums. Where?",
            "A product 2^j is cut to nothing as soon as the last digit that is kept is above it. That digit "
            "is 2^(E - 13), where E is the exponent of the sum.",
            "2^(E - 13) is above 2^j from E = j + 14 on, and the sum gets to two to that power exactly.",
        ),
    ),
    "05.3": Exercise(
        _longest,
        (
            "Between two promotions the tensor core adds ones, as in the section on sums. Up to where is "
            "that exact?",
            "The total has 24 bits, so numbers up to 2^24 are no trouble for it, and 2^20 is less. Only the "
            "sum in the tensor core counts. What happens at the length is after the last one has been added.",
            "It is the sum at which everything below 2 is cut off: exercise 2's answer for j = 0.",
        ),
    ),
    "05.4": Exercise(
        same(lambda every: (1 / 128) / (every / 8192), [(32,), (64,), (128,), (512,)]),
        (
            "The section on why it is 128 counts this for 8 bits: cost, in its cell. What changes?",
            "Promoting an output takes 1 / 128 of a cycle of an SM. Multiplying `every` pairs for it takes "
            "every / 4096 with 8-bit numbers, and half as long here.",
            "Divide 1 / 128 by every / 8192, and simplify. A function that does not simplify is right too.",
        ),
    ),
}
