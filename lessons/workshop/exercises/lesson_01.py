"""Lesson 01's exercises: E4M3, and scales."""

from __future__ import annotations

import numpy as np
from gemm_ladder.ref import fp8, metrics
from workshop.exercises.record import Exercise, Verdict, compared, number, same


def _block_scales(mine: object) -> Verdict:
    rng = np.random.default_rng(1)
    sides = ((1, 1), (2, 3), (3, 1))
    matrices = [(rng.standard_normal((128 * rows, 128 * columns)),) for rows, columns in sides]
    return compared(
        mine,
        lambda x: fp8.per_block_cast_to_fp8(x)[1],
        matrices,
        shown=lambda x: f"a matrix of {x.shape[0]} x {x.shape[1]}",
    )


def _predicted(mine: object) -> Verdict:
    block = np.random.default_rng(1).standard_normal(4096)  # the lesson's
    scale = np.abs(block).max() / fp8.E4M3_MAX / 8
    truth = metrics.relative_error(fp8.decode(fp8.encode(block / scale)) * scale, block)
    return number(mine, truth, 0.05, f"it is {truth:.3f}.")


EXERCISES = {
    "01.1": Exercise(
        same(
            lambda code: float(fp8.decode(np.uint8(code))),
            [(code,) for code in range(256) if code & 0x7F != 0x7F],
        ),
        (
            "Most codes are right already. Which are not? Look at the first one that the check names: what "
            "is its exponent?",
            "Where the four bits of the exponent are 0, the number is subnormal. It has no leading 1, and "
            "its power of two is fixed.",
            "Add a case for exponent == 0, before the last line: the sign, times the fraction over 8 without "
            "the 1, times two to the power of -6.",
        ),
    ),
    "01.2": Exercise(
        _block_scales,
        (
            "The function returns one number for the whole matrix. What should the shape of the result be?",
            "Split both dimensions with reshape: rows become (blocks, 128), columns too. Then each block is "
            "two axes of four, and a maximum over two axes at once is one call.",
            "x.reshape(rows // 128, 128, columns // 128, 128) puts what is inside a block on axes 1 and 3. "
            "Take the largest magnitude over these two, and divide as before.",
        ),
    ),
    "01.3": Exercise(
        _predicted,
        (
            "With a scale that is too small the numbers become too large for E4M3. What does the conversion "
            "do with those?",
            "The largest of the numbers is sent to 8 * 448, so whatever is above an eighth of it saturates, "
            "and comes back as an eighth of it. The largest of 4096 normal numbers is about four, so that is "
            "about everything above a half.",
            "You may compute it: np.clip(block, -limit, limit) is what comes back, if you leave out the "
            "small roundings. The limit is an eighth of the largest magnitude, and metrics.relative_error "
            "compares.",
        ),
    ),
}
