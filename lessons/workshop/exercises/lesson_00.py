"""Lesson 00's exercises: speeds, and scales."""

from __future__ import annotations

from gemm_ladder.figures import measured
from workshop.exercises.record import Exercise, Verdict, compared, same


def _tflops(mine: object) -> Verdict:
    rows = measured.load(measured.DATA / "ladder.json")["rows"]
    cases = [tuple(row[key] for key in ("m", "n", "k", "us")) for row in rows if row["impl"] == "s3_wgmma"]
    return compared(mine, lambda m, n, k, us: 2 * m * n * k / (us * 1e-6) / 1e12, cases)


EXERCISES = {
    "00.1": Exercise(
        _tflops,
        (
            "Count the operations first, then the seconds. T is 10^12, and a microsecond is 10^-6 seconds.",
            "D has m n elements, and each is a sum of k products. A product is a multiplication and an "
            "addition: two operations, not one.",
            "Operations over seconds: twice m n k on top; below it us times 1e-6, and all of that over 1e12.",
        ),
    ),
    "00.2": Exercise(
        same(
            lambda i, j, k: ((i, k // 128), (j // 128, k // 128)),
            [(0, 0, 0), (5, 7, 127), (5, 7, 128), (63, 127, 255), (200, 128, 640), (3, 400, 1000)],
        ),
        (
            "Look at the formula of the product: the indices of the two scales are in it.",
            "A scale of A belongs to one row and to 128 of k. A scale of B belongs to 128 rows and to 128 of "
            "k. Whole blocks are counted by a division that rounds down, `//`.",
            "Both pairs end in the block of k, which is k // 128. A's pair begins with its row as it is, B's "
            "with its block of rows.",
        ),
    ),
}
