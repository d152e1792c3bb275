"""Lesson 03's exercises: tiles, registers and banks."""

from __future__ import annotations

import numpy as np
from gemm_ladder.ref import fp8
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
RAGGED = workbench.problem(m=130, n=136, k=256)
LOADED = "const uint32_t word = i < 4 ? bytes.x : i < 8 ? bytes.y : i < 12 ? bytes.z : bytes.w;"
# The same word, with a GPU's shift: by 32 and more it gives 0, where a CPU shifts by the remainder.
SHIFTED = """struct Word {
    uint32_t bits;
    operator uint32_t() const { return bits; }
    uint32_t operator>>(int by) const { return by < 0 || by > 31 ? 0 : bits >> by; }
    uint32_t operator>>(uint32_t by) const { return by > 31 ? 0 : bits >> by; }
};
const Word word{i < 4 ? bytes.x : i < 8 ? bytes.y : i < 12 ? bytes.z : bytes.w};"""
ORDER = (
    "numbers that do not cancel have the right sums, because both tiles hold k in the same order. But it is "
    "not the order of the bytes in memory, of which a word has the first one lowest."
)


def _stored(mine: object) -> Verdict:
    changes = (LOADED, SHIFTED), (STORED, str(mine))
    verdict = in_rung("s2_tiled", RAGGED, *changes, seeds=4)
    if not verdict.right:
        return verdict
    ordered = in_rung("s2_tiled", order_of_k(), *changes, seeds=1)
    return verdict if ordered.right else Verdict(False, f"{ORDER}\n{ordered.words}")


def order_of_k() -> workbench.Problem:
    """In every word the first two products cancel, and the third is lost if it comes before them."""
    words = [np.tile([448, sign * 448, 2.0**-9, 0], (rows, 32)) for rows, sign in ((8, -1), (128, 1))]
    a, b = (fp8.encode(x).view(fp8.E4M3) for x in words)
    return workbench.Problem(a, np.ones((8, 1), np.float32), b, np.ones((1, 1), np.float32))


EXERCISES = {
    "03.1": Exercise(
        lambda mine: in_rung("s2_tiled", RAGGED, (LOOPS, f"{mine}\n"), seeds=4),
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
        _stored,
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
            [(1,), (2,), (3,), (4,), (12,), (16,), (32,), (33,), (48,), (64,), (96,)],
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
