"""Lesson 02's exercises: the naive kernel."""

from __future__ import annotations

import numpy as np
from workshop import workbench
from workshop.exercises.record import Exercise, Verdict, in_rung, same


def _promotion(mine: object) -> Verdict:
    line = "total = fmaf(partial, p.sfa[block * p.sfa_stride + row] * sfb[block], total);"
    verdict = in_rung("s1_naive", workbench.problem(m=22, n=256, k=512), (line, str(mine)))
    if not verdict.right:
        return verdict
    rounded = in_rung("s1_naive", _cancelling(), (line, str(mine)), seeds=1)
    return (
        Verdict(verdict.right, verdict.words)
        if rounded.right
        else Verdict(False, f"{ROUNDS}\n{rounded.words}")
    )


def _cancelling() -> workbench.Problem:
    """256 of K whose second half takes away what the first half gives: what is left of each sum is what the
    promotion's roundings made of it."""
    half = workbench.problem(m=8, n=128, k=128)
    twice = [np.concatenate([part, part], axis=1) for part in (half.a, half.sfa, half.sfb)]
    minus = (half.b.view(np.uint8) ^ 0x80).view(half.b.dtype)
    return workbench.Problem(twice[0], twice[1], np.concatenate([half.b, minus], axis=1), twice[2])


ROUNDS = (
    "the sum is right but for its last bits, which show where blocks cancel each other. The rung multiplies "
    "the two scales, and then multiplies and adds with a single rounding."
)


EXERCISES = {
    "02.1": Exercise(
        _promotion,
        (
            "Read what the emulator gives against what is expected: the sum is right in its size, and not "
            "scaled. Which two scales belong to this thread's block of k?",
            "B's scale is sfb[block]; A's is the one of this block and this row, with m contiguous, as the "
            "lesson says. The product of both multiplies partial, and the addition must not round in "
            "between.",
            "total = fmaf(partial, ... * sfb[block], total); and in place of the dots p.sfa at block times "
            "p.sfa_stride, plus the row.",
        ),
    ),
    "02.2": Exercise(
        same(
            lambda i, j, n: (i // 8 * -(-n // 32) + j // 32, i % 8 * 32 + j % 32),
            [(0, 0, 64), (9, 40, 64), (9, 40, 128), (63, 149, 150), (8, 0, 33)],
        ),
        (
            "A block computes 8 x 32 outputs, and the thread is right already. In which row and which column "
            "of blocks is D[i, j]?",
            "Blocks are numbered along n first, so a row of blocks has as many as it takes to cover n "
            "columns: n over 32, rounded *up*. In Python -(-x // y) rounds a quotient up.",
            "block is the row of blocks, i // 8, times the number of blocks in a row, plus the column of "
            "blocks, which is j // 32.",
        ),
    ),
    "02.3": Exercise(
        same(
            lambda rows, columns: 2 * rows * columns / (rows + columns),
            [(1, 1), (8, 32), (64, 128), (128, 128), (256, 128)],
        ),
        (
            "Count for a single step of k: how many bytes are loaded, and how many operations are done with "
            "them?",
            "One step of k needs a byte of each of the tile's rows of A, and a byte of each of its columns' "
            "rows of B. With them every output of the tile gets a multiplication and an addition.",
            "Operations: two for each of rows * columns outputs. Bytes: rows and columns, added. Divide.",
        ),
    ),
}
