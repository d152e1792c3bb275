"""What wrong values of a plain product are: D = A B^T of two arrays, without scales."""

from __future__ import annotations

import dataclasses

import numpy as np
from gemm_ladder.arguments import SCALE_BLOCK, ceil_div
from gemm_ladder.lab import mistakes
from gemm_ladder.lab.operands import Operands

ROW = 128  # bytes of K that are a K block: a row of a tile with the largest swizzle
SAMPLE = 192  # wrong values on which the products with mistakes are compared
FEWEST = 4  # with fewer wrong values, one of the many mistakes would fit by chance


def mistake(
    a: np.ndarray,
    b: np.ndarray,
    item: int,
    found: np.ndarray,
    wrong: np.ndarray,
    slack: float,
    relative: float,
) -> tuple[str, float]:
    """The mistake that explains most of the wrong values, as the end of a sentence, and the share of them.

    Args:
        a, b: float64 [m, k] and [n, k].
        item: bytes of an element of A in memory.
        found: float64 [m, n].
        wrong: bool [m, n].
        slack, relative: a value explains another one that differs by at most slack + relative * its size.
    """
    places = np.argwhere(wrong)
    if len(places) < FEWEST:
        return "", 0.0
    chosen = places[np.sort(np.random.default_rng(1).permutation(len(places))[:SAMPLE])]
    sample = mistakes.Sample(_operands(a, b, ROW // item), chosen)
    got = found[tuple(chosen.T)]
    best = "", 0.0
    with np.errstate(invalid="ignore", over="ignore"):
        for text, predicted in mistakes.products(sample, got):
            near = relative * np.abs(predicted) + slack
            share = float((np.abs(got - predicted) <= near).mean())
            # A mistake that changes nothing explains nothing.
            if (np.abs(predicted - sample.right) > near / 2).mean() >= 0.5 and share > best[1] + 0.01:
                best = text, share
    return best


@dataclasses.dataclass(frozen=True)
class _Plain(Operands):
    """Numbers, not codes, whose scales are 1."""

    block: int = ROW  # type: ignore[misc] # of these operands, not of all

    @staticmethod
    def decode(codes: np.ndarray) -> np.ndarray:
        return codes


def _operands(a: np.ndarray, b: np.ndarray, block: int) -> Operands:
    blocks = ceil_div(a.shape[1], block)
    of_a, of_b = (np.ones((rows, blocks), np.float32) for rows in (len(a), ceil_div(len(b), SCALE_BLOCK)))
    return _Plain(a, of_a, b, of_b, block)
