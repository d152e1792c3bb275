"""Lesson 13's exercises: the roof, the passes, the markers, a ratio across runs, the weakest cell."""

from __future__ import annotations

import math

import numpy as np
from gemm_ladder.figures import everywhere, measured
from gemm_ladder.figures.production import BLOCK_SCALED
from gemm_ladder.measure import timing
from gemm_ladder.measure.shapes import Shape
from workshop import drawing_results
from workshop.exercises.record import Exercise, Verdict, compared, same


def _roof(mine: object) -> Verdict:
    def right(m: int, n: int, k: int, tb_s: float, peak: float) -> float:
        shape = Shape(m, n, k)
        return min(peak, tb_s * shape.flops / shape.bytes)

    sizes = sorted(drawing_results.times("s9_production"))
    return compared(mine, right, [(*size, 3.0, 1600.0) for size in sizes])


def _result(mine: object) -> Verdict:
    def right(passes: list[list[float]]) -> tuple[float, ...]:
        left = iter(passes)
        timings, _ = timing.measure(
            {"call": None}, {"call": 1}, ("dirty",), lambda call, l2, calls: next(left)
        )
        return tuple(timings["call", "dirty"])

    rng = np.random.default_rng(1)
    cases = [
        [10 + offset + rng.exponential(size=5) for offset in (0.0, shift)] for shift in (0.5, -0.5, 0.05)
    ]
    drawn = [[times.round(1).tolist() for times in case] for case in cases]
    # The fastest call of all is in the pass with the higher median; the middle of four lies between two.
    fastest = [[10.0, 14.0, 14.5, 15.0, 16.0], [11.0, 12.0, 13.0, 14.0, 15.0]]
    even = [[9.0, 13.0, 14.0, 20.0], [12.0, 12.5, 13.5, 14.0]]
    return compared(mine, right, [(case,) for case in (*drawn, fastest, even)])


MARKER = ("spin_kernel", 1.0)
SEEN = [
    *(("memset", 2700.0), MARKER, ("gemm", 10.0), MARKER),
    *(("memset", 2700.0), MARKER, ("split_k_gemm", 6.0), ("reduce", 3.0), MARKER),
]
# With clean L2 a read follows the memset; with L2 as it is, nothing lies between two calls. A call may begin
# with a memset of its own, and may take several kernels of one name.
CLEAN = [one for i, kernel in enumerate(SEEN) for one in ((kernel, ("read", 1400.0))[: 1 + (i in (0, 4))])]
WARM = [MARKER, ("gemm", 10.0), MARKER, MARKER, ("gemm", 11.0), ("gemm", 4.0), MARKER]
ZEROED = [("copy", 5.0), MARKER, ("memset", 2.0), ("gemm", 10.0), MARKER, ("read", 3.0), *SEEN]


def _ratio(ours_now: float, theirs_then: float, yardsticks: list[tuple[float, float]]) -> float:
    logarithms = [math.log(now / then) for then, now in yardsticks]
    return theirs_then * math.exp(sum(logarithms) / len(logarithms)) / ours_now


def _weakest(mine: object) -> Verdict:
    """On a few rows first, so that a wrong answer can be looked through; then on the file."""

    def right(rows: list[dict], libraries: list[str]) -> tuple:
        found = [(one, l2) for l2 in everywhere.STATES for one in everywhere.ratios({"rows": rows}, l2)]
        worst, l2 = min(found, key=lambda one: one[0].value)
        return *worst.key[:5], l2, worst.value

    def row(
        impl: str, us: float, m: int = 64, expected_m: int = 0, max_m: int = 0, l2: str = "dirty"
    ) -> dict:
        size = {"groups": 1, "m": m, "n": 512, "k": 256, "max_m": max_m, "expected_m": expected_m}
        kind = "masked" if expected_m else "dense"
        return {"kind": kind, **size, "impl": impl, "l2": l2, "us": us}

    ours, theirs, other = "s9_production", "deep_gemm", "cublaslt_blockwise"
    dense = [
        row(ours, 10),
        row(theirs, 12),
        row(other, 9),
        row(ours, 8, l2="clean"),
        row(other, 8, l2="clean"),
    ]
    alone = [row(theirs, 1, m=128), row("cublas_bf16", 2), row(ours, 50, m=256)]
    # Two products that only one field tells apart, the worse one last and first.
    few, many = (
        [row(ours, us, expected_m=rows, max_m=256), row(theirs, other_us, expected_m=rows, max_m=256)]
        for us, other_us, rows in ((20, 24, 64), (30, 21, 128))
    )
    low, high = (
        [row(ours, us, expected_m=64, max_m=most), row(theirs, other_us, expected_m=64, max_m=most)]
        for us, other_us, most in ((20, 24, 128), (30, 21, 512))
    )
    other_kind = [one | {"kind": "contiguous", "us": us} for one, us in zip(few, (20, 15), strict=True)]
    grouped = (few + many, many + few, low + high, high + low, few + other_kind, other_kind + few)
    recorded = everywhere.load(measured.DATA / "everywhere.json")["rows"]
    libraries = list(BLOCK_SCALED)
    made = (dense, dense + alone, *(dense + pair for pair in grouped))
    cases = [(rows, libraries) for rows in (*made, recorded)]

    def shown(argument: object) -> str:
        rows = isinstance(argument, list) and isinstance(argument[0], dict)
        return f"{len(argument)} rows" if rows else str(argument)

    return compared(mine, right, cases, shown)


EXERCISES = {
    "13.1": Exercise(
        _roof,
        (
            "The roof is the lower of two: the stub returns one of them. The other is the bandwidth times "
            "the operations a byte.",
            "Operations: 2 m n k. Bytes: A has m k, B n k, D twice m n, and four for each scale. Blocks of "
            "128 are counted by rounding up. TB/s times operations a byte is TFLOPS.",
            "A's scales are m times the blocks of k, B's the blocks of n times the blocks of k. Return the "
            "smaller of peak and tb_s times the operations over all bytes.",
        ),
    ),
    "13.2": Exercise(
        _result,
        (
            "Which of the two passes counts? The one whose *median* is lower, and all three numbers come "
            "from it.",
            "min takes a key: a function by which the lists are compared. Percentiles are one call of NumPy "
            "for several at once.",
            "better = min(passes, key=...), with the median as the key; then np.percentile of it at 10, 50 "
            "and 90. Mind the order: us is the median, and comes first.",
        ),
    ),
    "13.3": Exercise(
        same(
            lambda kernels: timing.between_markers(
                kernels, sum(name == "spin_kernel" for name, _ in kernels) // 2
            ),
            [(SEEN,), (SEEN[:4],), ([*SEEN[:3], ("copy", 2.0), *SEEN[3:]],), (CLEAN,), (WARM,), (ZEROED,)],
        ),
        (
            "A call is what lies between two markers, whatever its kernels are called. What lies between a "
            "call and the next one does not count.",
            "Walk through the list and remember whether you are inside a call. Each marker changes that; one "
            "that begins a call begins a new sum.",
            "inside = False at first. At a marker: inside = not inside, and if that is true now, append 0.0 "
            "to the times. At anything else, if inside, add its microseconds to the last of the times.",
        ),
    ),
    "13.4": Exercise(
        same(
            _ratio,
            [
                (10.0, 11.0, [(8.0, 8.0), (20.0, 20.0)]),
                (10.0, 11.0, [(8.0, 8.4), (20.0, 20.2)]),
                (92.0, 97.5, [(70.0, 69.3), (150.0, 152.0)]),
            ],
        ),
        (
            "With yardsticks that did not move, the stub is right. What do they say if they did?",
            "Each says by which factor this run is slower than that one: now over then. Their geometric mean "
            "is the factor for the peer, too.",
            "Multiply theirs_then by statistics.geometric_mean of now / then over the yardsticks, and divide "
            "by ours_now.",
        ),
    ),
    "13.5": Exercise(
        _weakest,
        (
            "A ratio needs two rows: ours and a library's, at the same product and in the same state. So "
            "collect the times by what makes two rows comparable.",
            "A dictionary from the fields that identify a product and its state to another, from impl to us. "
            "A masked product also has max_m and expected_m: two with equal sizes may differ in them.",
            "Where ours and at least one library are there, the ratio is the least of the libraries' times "
            "over ours. Of the key with the least ratio, return the first six fields, and the ratio.",
        ),
    ),
}
