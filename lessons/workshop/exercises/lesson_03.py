"""Lesson 03's exercises: tiles, registers and banks."""

from __future__ import annotations

import numpy as np
from workshop import drawing_shared, workbench
from workshop.exercises.record import Exercise, Verdict, in_rung, same
from workshop.exercises.whole import whole_kernel

LOOPS = """#pragma unroll
                for (int i = 0; i < kPerThread; ++i)
#pragma unroll
                    for (int j = 0; j < kPerThread; ++j) partial[i][j] = fmaf(a[i], b[j], partial[i][j]);
"""
STORED = "tile[i][line] = ptx::cvt_f32_e4m3(static_cast<uint8_t>(word >> i % 4 * 8));"
WORD = 4  # bytes


def _in_s2(own: str, mine: str) -> Verdict:
    return in_rung("s2_tiled", workbench.problem(m=130, n=136, k=256), (own, mine), seeds=4)


EXERCISES = {
    "03.1": Exercise(
        lambda mine: _in_s2(LOOPS, f"{mine}\n"),
        (
            "A thread makes 8 x 8 outputs. How many multiplications does it do for this one k?",
            "Every number of A meets every number of B: two loops, one inside the other, and partial[i][j] "
            "gets the product of number i and number j. As in s1 by fmaf; the product of two E4M3 numbers is "
            "exact, so a multiplication and an addition give the same bits here.",
            "for (int i = 0; i < kPerThread; ++i), inside it the same for j, and in that fmaf with a[i], "
            "b[j] and the partial sum of these two, whose result goes back to where that sum was.",
        ),
    ),
    "03.2": Exercise(
        lambda mine: _in_s2(STORED, str(mine)),
        (
            "Two things: which byte of the word, and which place in the tile. `line` is this thread's row. "
            "What is i?",
            "i is the step of k, and the tile has k first. Shift the word so that byte i is the lowest, let "
            "a cast to uint8_t cut off the rest, and convert it as s1 did, with ptx::cvt_f32_e4m3.",
            "The place is tile[i][line]. The byte is static_cast<uint8_t>(word >> ...), shifted by as many "
            "bits as the exercise's text says.",
        ),
    ),
    "03.3": Exercise(
        same(
            lambda r, width: r * r / (r * r + 2 * r / width),
            [(1, 1), (4, 1), (4, 4), (8, 1), (8, 4), (16, 4)],
        ),
        (
            "Count both kinds of instructions for one k, then take the share.",
            "R x R outputs are as many fmaf. The thread needs R numbers of A and R of B, and one load brings "
            "`width` of them.",
            "The fmaf are r * r and the loads 2 * r / width; the share is the first over the sum of both.",
        ),
    ),
    "03.4": Exercise(
        same(
            lambda stride: drawing_shared.turns(np.arange(32) * stride * WORD, 1),
            [(1,), (2,), (3,), (4,), (16,), (32,), (33,), (48,), (64,), (96,)],
        ),
        (
            "Write down the banks of a few threads for strides of 2, 3 and 32: word w is in bank w % 32. How "
            "often does a bank come up?",
            "The threads' words go around the 32 banks in steps of `stride`. They meet a bank again the "
            "sooner, the more stride and 32 have in common. With an odd stride they visit every bank once.",
            "It is the greatest common divisor of the stride and 32, as an int; NumPy has np.gcd.",
        ),
    ),
    "03.5": whole_kernel(
        "03.5",
        (
            "Begin with s1_naive's kernel. What changes is where the operands of `fmaf` come from; the "
            "sums, the promotion and the store stay as they are, for kEach outputs in place of one.",
            "Each step of kTile of k has four parts: all threads store both tiles, zeros for rows past the "
            "end; they meet; each adds kTile products to each of its partial sums; they meet again, because "
            "the next step overwrites the tiles. The check names the barrier that is missing.",
            "Thread t has column t % kTile of the tile and the rows t / kTile + i * kRowsApart. To store, "
            "it takes the same lines, at k + t % kTile. To multiply step j, it reads tile_a[row][j] and "
            "tile_b[column][j].",
        ),
    ),
}
