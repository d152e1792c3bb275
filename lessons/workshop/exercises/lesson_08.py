"""Lesson 08's exercises: the registers, the producer, and which rows a consumer has."""

from __future__ import annotations

import gemm_ladder as gl
from gemm_ladder.ref import layouts
from workshop import workbench
from workshop.exercises.record import Exercise, Verdict, compared, in_rung, lines, same
from workshop.exercises.whole import whole_kernel


def _announce(mine: object) -> Verdict:
    source = gl.rungs["s6_warp_specialized"].source
    own = lines(source, "ptx::mbarrier_wait_parity(next.stage", "ptx::mbarrier_arrive_expect_tx(")
    return in_rung("s6_warp_specialized", workbench.problem(m=512, n=128, k=768), (own, str(mine)))


def _tile_row(mine: object) -> Verdict:
    rows, _ = layouts.wgmma_accumulator(128)
    cases = [
        (consumer, slice, thread, i)
        for consumer in (0, 1)
        for slice in (0, 1)
        for thread, i in ((0, 0), (37, 2), (127, 63))
    ]
    return compared(
        mine,
        lambda consumer, slice, thread, i: int(128 * slice + 64 * consumer + rows[thread, i]),
        cases,
    )


EXERCISES = {
    "08.1": Exercise(
        same(
            lambda consumers, producer: min(256, (65536 // 128 - producer) // consumers // 8 * 8),
            [(2, 40), (2, 24), (1, 40), (3, 32), (3, 24)],
        ),
        (
            "An SM has 65536 registers. How many does the producer's warpgroup take, if each of its 128 "
            "threads has `producer`?",
            "What is left is shared by the consumers' threads, 128 for each of them. The result has to be a "
            "multiple of 8, rounded down, and no more than 256.",
            "(65536 - 128 * producer) // (128 * consumers) is the share of a thread. Then round it down by "
            "// 8 * 8, and take the smaller of that and 256.",
        ),
    ),
    "08.2": Exercise(
        _announce,
        (
            "Rung s4's loader does the same two things, in the same order: lesson 06, the section on the "
            "kernel.",
            "Wait on the stage's `empty` for the parity that lets the first turn pass. Then announce, and "
            "arrive: an operation on `full` with the bytes of A, of B and of the scales.",
            "ptx::mbarrier_wait_parity takes the barrier, next.stage + kEmpty, and the parity, next.parity "
            "turned round by ^ 1. ptx::mbarrier_arrive_expect_tx takes full and the sum of the three kBytes.",
        ),
    ),
    "08.3": Exercise(
        _tile_row,
        (
            "The row inside one WGMMA is right already. Where do that WGMMA's 64 rows begin in the tile of "
            "256?",
            "A slice has 128 rows: 64 of the first consumer, then 64 of the second. The second slice comes "
            "below the first.",
            "Add 128 for each slice before this one, and 64 for each consumer before this one, to what the "
            "stub returns.",
        ),
    ),
    "08.4": whole_kernel(
        "08.4",
        (
            "Take your kernel of lesson 06 apart: what thread 0 did for all goes to warpgroup 0, what all "
            "did goes to warpgroups 1 and 2. Neither needs a line of the other's.",
            "After the mbarriers and __syncthreads, one `if`: a thread of warpgroup 0 gives registers back, "
            "and thread 0 walks through all blocks, waiting for `empty` alone; then they return. The others "
            "take registers and never load. A consumer's number is its warpgroup's minus 1.",
            "ptx::setmaxnreg_dec<40>() for all of the producer's warps, ptx::setmaxnreg_inc<232>() for the "
            "consumers'. The loop of the producer is the `load` of lesson 06 with `next.advance()` at its "
            "end; the consumers' loop is that lesson's, without the line that loads.",
        ),
    ),
}
