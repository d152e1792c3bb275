"""Whether a result is the product: bit for bit that of a model, or within the bounds of rounding."""

from __future__ import annotations

import functools

import numpy as np
from gemm_ladder.lab import bf16, operands
from gemm_ladder.lab.cases import Case
from gemm_ladder.lab.operands import Arithmetic, Operands
from gemm_ladder.lab.surroundings import CANARY, UNWRITTEN
from gemm_ladder.ref import metrics

# A normal product's error, relative to the norm of what is measured (a matrix, a tile, a row).
#
# BF16 keeps 8 significant bits, so that rounding moves a number by at most 2^-8 of it; over numbers whose
# significands are spread as those of sums are, the root mean square is 2^-7 / sqrt(12) / 1.45 = 0.80 * 2^-9.
#
# The tensor core truncates each product, and the sum so far, to 2^(E - 13), E the largest exponent among
# them. A truncation is off by 2^(E - 13) / sqrt(3) in the root mean square, toward zero; products have both
# signs, so that 33 of them are off by sqrt(33 / 3) * 2^(E - 13) = 3.3 * 2^(E - 13). For normal operands E
# lies about one and a half above the exponent of a product's standard deviation, and the sum of 32 is
# sqrt(32) = 5.7 of those deviations: 3.3 * 2^1.5 / 5.7 * 2^-13 = 1.6 * 2^-13. Cutting the sum itself to 13
# bits adds less than 2^-13, and four such instructions for a K block do not change the ratio: at most 2^-12
# for the norm of many numbers. Rounding in FP32 (s1, the promotion) is too small to matter.
#
# Operands of another type lose less (`Operands.lost`), and BF16 rounds the same.
#
# 128 numbers average enough for the root mean square (it leaves 20%); the norm of fewer may be as bad as its
# worst number, and its truncation error a few times the mean.
BF16_RMS, BF16_WORST = 2.0**-9, 2.0**-8
SINGLE = 4  # a single number's truncation error, in those of the norm of many


def tolerance(count: int, lost: float = Operands.lost) -> float:
    """The largest error that is accepted in the norm of `count` numbers."""
    return BF16_RMS + lost if count >= 128 else BF16_WORST + SINGLE * lost


# A single number's error, for any operands: BF16 moves it by at most 2^-9 of it, and what is lost before is
# compared with the sum of the products' absolute values, which many terms of both signs leave far behind.
# FP32 loses at most 2^-126 where it has no subnormal numbers.
ELEMENT, FLUSHED = 2.0**-8, 2.0**-126


def added(operands: Operands) -> float:
    """What may be lost before BF16, in parts of the sum of the products' absolute values."""
    return SINGLE * operands.lost


def values(bits: np.ndarray) -> np.ndarray:
    """BF16 bits as float32."""
    return bf16.Bf16Operands.decode(bits)


def never_written(bits: np.ndarray) -> np.ndarray:
    """Where an output still holds what was there before the launch."""
    found: np.ndarray = (bits == UNWRITTEN) | (bits == CANARY)
    return found


def differing(found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """bool [m, n]: where two results differ in their bits. A NaN is as good as another, if it was written."""
    both_nan = np.isnan(values(found)) & np.isnan(values(expected)) & ~never_written(found)
    where: np.ndarray = (found != expected) & ~both_nan
    return where


def models_of(case: Case, found: np.ndarray, candidates: tuple[Arithmetic, ...]) -> tuple[Arithmetic, ...]:
    """The arithmetics among `candidates` whose bits a result has."""
    return tuple(one for one in candidates if not differing(found, expected_bits(case, one)).any())


@functools.cache
def expected_bits(case: Case, arithmetic: Arithmetic) -> np.ndarray:
    """uint16 [m, n]: as `Operands.bits`, computed once for each case."""
    return case.operands.bits(arithmetic)


def out_of_bounds(case: Case, found: np.ndarray) -> np.ndarray:
    """bool [m, n]: where a result is farther from the product than rounding takes it.

    Each number is compared by itself. Of a case of normal operands the rows, the tiles and the whole are
    compared too, by the bounds that the rungs' tests have (`tolerance`), which are narrower: all numbers of a
    row, or of a tile, that is beyond its bound are out of bounds.
    """
    given, exact = case.operands, case.operands.exact()
    with np.errstate(invalid="ignore"):  # of a signalling NaN, which is what an output holds at first
        got = values(found).astype(np.float64)
    if case.exact:
        other: np.ndarray = (got != values(expected_bits(case, "float64"))) | np.isnan(got)
        return other
    # Where something is NaN or infinite, or overflows FP32 on its way, the model says what is right.
    model = values(expected_bits(case, "tensor core")).astype(np.float64)
    plain = np.isfinite(model) & np.isfinite(exact)
    with np.errstate(invalid="ignore", over="ignore"):
        near = np.abs(got - exact) <= ELEMENT * np.abs(exact) + added(given) * given.magnitude() + FLUSHED
        same = (np.isnan(got) & (np.isnan(model) | np.isnan(exact))) | (got == model)
        same |= got == np.where(np.isnan(exact), np.nan, values(expected_bits(case, "float64")))
    wrong: np.ndarray = np.where(plain, ~near, ~same) | never_written(found)
    if case.fill in (operands.normal, bf16.normal) and not wrong.any():
        wrong |= _beyond_norms(got, exact, given.lost)
    return wrong


def _beyond_norms(found: np.ndarray, exact: np.ndarray, lost: float) -> np.ndarray:
    """bool [m, n]: rows and 64 x 64 tiles whose error is above `tolerance`; all, if the whole's is."""
    m, n = exact.shape
    wrong = np.zeros(exact.shape, bool)
    for row in range(m):
        wrong[row] = not metrics.relative_error(found[row], exact[row]) < tolerance(1, lost)
    for top in range(0, m, 64):
        for left in range(0, n, 64):
            tile = np.s_[top : top + 64, left : left + 64]
            limit = tolerance(exact[tile].size, lost)
            wrong[tile] |= not metrics.relative_error(found[tile], exact[tile]) < limit
    return wrong | (not metrics.relative_error(found, exact) < tolerance(exact.size, lost))
