"""Lesson 06's exercises: mbarriers, the ring, the loads."""

from __future__ import annotations

import gemm_ladder as gl
from workshop import workbench
from workshop.exercises.record import Exercise, Verdict, in_rung, lines, same
from workshop.exercises.whole import whole_kernel


def _mbarrier(count: int, events: list[tuple[str, int]]) -> tuple[int, int, int]:
    phase, pending, to_come = 0, count, 0
    for event, size in events:
        pending -= event != "land"
        to_come += {"arrive": 0, "expect": size, "land": -size}[event]
        if pending == 0 and to_come == 0:
            phase, pending = phase + 1, count
    return phase, pending, to_come


ARRIVE = ("arrive", 0)
EVENTS = [
    (2, [ARRIVE]),
    (2, [ARRIVE, ARRIVE]),
    (2, [ARRIVE, ARRIVE, ARRIVE]),
    (1, [("expect", 1024)]),
    (1, [("expect", 1024), ("land", 768)]),
    (1, [("expect", 1024), ("land", 768), ("land", 256)]),
    (2, [("expect", 64), ("land", 64)]),
    (1, [("expect", 64), ("land", 64), ("expect", 32)]),
    (1, [("land", 64), ("expect", 64)]),
    (2, [ARRIVE, ("land", 64), ("expect", 96), ("land", 32)]),
    (1, [("land", 64), ARRIVE]),
]


def _loads(mine: object) -> Verdict:
    own = lines(gl.rungs["s4_tma"].source, "mbarrier_arrive_expect_tx", "next.advance();", last=False)
    return in_rung("s4_tma", workbench.problem(m=64, n=128, k=768), (own, str(mine)))


EXERCISES = {
    "06.1": Exercise(
        same(_mbarrier, EVENTS),
        (
            "Two things are missing: the bytes, and the end of a phase. When is a phase complete?",
            '"expect" announces bytes *and* arrives; "land" takes bytes off and does not arrive. After each '
            "event look: if no arrival is pending and no byte is to come, the next phase begins.",
            "After the event's own effect: if pending == 0 and to_come == 0, then the phase goes up by one "
            "and pending becomes count again. An arrival is an announcement of 0 bytes, which saves a case.",
        ),
    ),
    "06.2": Exercise(
        same(
            lambda b, s: (b % s, b // s % 2, 1 - b // s % 2),
            [(0, 4), (3, 4), (4, 4), (7, 4), (8, 4), (1, 1), (5, 3), (100, 7)],
        ),
        (
            "How often has the ring been walked around when block number `block` comes? And where in the "
            "ring is it?",
            "The place is what is left of block / stages. In turn number t, one waits for `full` in phase "
            "t, of which only the parity counts. For `empty` it is one phase earlier, and so the other "
            "parity; in turn 0 that lets the loader pass at once.",
            "With turn = block // stages: block % stages, then turn % 2, then the other of 0 and 1.",
        ),
    ),
    "06.3": Exercise(
        _loads,
        (
            "The order of things: announce, then ask. How many boxes does a block of k have, and how many "
            "bytes together?",
            "First mbarrier_arrive_expect_tx on `full` with the bytes of A, of B and of A's scales. Then "
            "three times cp_async_bulk_tensor_2d(where in shared memory, &map, full, x, y). The section on "
            "the kernel says what x and y are.",
            "The places are next.stage, next.stage + kB and next.stage + kScaleA; the maps map_a, map_b "
            "and map_sfa. For A and B, x is block * kTileK and y is tile_m or tile_n. For the scales, x is "
            "tile_m and y the block.",
        ),
    ),
    "06.4": Exercise(
        same(
            lambda latency, block: -(-latency // block) + 1,
            [(100, 100), (101, 100), (1000, 300), (1600, 650), (2000, 500)],
        ),
        (
            "How long before block i is needed was it ordered, if there are `stages` stages?",
            "It is ordered when block i - (stages - 1) begins, so stages - 1 blocks of time lie between. "
            "That has to be at least the latency.",
            "stages - 1 is the latency over block, rounded up: -(-x // y) rounds up.",
        ),
    ),
    "06.5": whole_kernel(
        "06.5",
        (
            "Write it in five parts, and let the check judge each: the mbarriers; the loads by thread 0; "
            "the wait and the WGMMAs; the release and the promotion; the store to D. Exercises 2 and 3 have "
            "two of them.",
            "As in s4_tma, thread 0 loads kStages - 1 blocks before the loop, and in it one more after each "
            "commit. What is new are the two warpgroups: how many warps arrive at `empty`, and where the "
            "second one's 64 rows of A, of the scales and of D begin.",
            "`full` is made for 1 arrival, `empty` for kConsumers * kWarpgroup / 32. With consumer = "
            "threadIdx.x / kWarpgroup, A's descriptor begins at ring.stage + consumer * kWgmmaM * "
            "kSwizzleRow, and row0 is consumer * kWgmmaM + accumulator_row(threadIdx.x % kWarpgroup, 0).",
        ),
    ),
}
