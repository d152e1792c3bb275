"""Lesson 04's exercises: the swizzle, the descriptor, the fragment, the fences."""

from __future__ import annotations

import gemm_ladder as gl
from gemm_ladder.ref import layouts
from workshop import workbench
from workshop.exercises.record import Exercise, Verdict, compared, in_rung, lines, same, where_the_fence_is
from workshop.exercises.whole import whole_kernel


def _descriptor(mine: object) -> Verdict:
    def descriptor(address: int) -> layouts.SmemDescriptor:
        """Decoded: easier to read than 64 bits."""
        return layouts.SmemDescriptor.decode(mine(address))

    return compared(descriptor, layouts.SmemDescriptor, [(0,), (1024,), (9216,), (1024 * 200,)])


def _element(mine: object) -> Verdict:
    rows, columns = layouts.wgmma_accumulator(128)
    cases = [(thread, i) for thread in (0, 3, 4, 31, 32, 77, 127) for i in (0, 1, 2, 3, 4, 30, 63)]
    return compared(mine, lambda thread, i: (int(rows[thread, i]), int(columns[thread, i])), cases)


def _between(mine: object) -> Verdict:
    own = lines(gl.rungs["s3_wgmma"].source, "fence_proxy_async", "wgmma_fence")
    verdict = in_rung("s3_wgmma", workbench.problem(m=64, n=128, k=512), (own, str(mine)))
    return where_the_fence_is(verdict, str(mine), "__syncthreads")


EXERCISES = {
    "04.1": Exercise(
        same(
            lambda row, byte: int(layouts.swizzle_128b(row, byte)),
            [(row, byte) for row in (0, 1, 7, 8, 13, 63) for byte in (0, 5, 16, 100, 127)],
        ),
        (
            "Rows 0 and 8 are right already. A byte stays in its row, and at its place in its chunk of 16 "
            "bytes: what changes is the chunk.",
            "Chunk c of row r goes to place c XOR (r mod 8). A chunk's number is in bits 4 to 6 of the "
            "byte's offset, so XOR with the row, shifted up by four bits.",
            "Leave 128 * row. In place of byte: byte ^ (...), where the dots are 16 times the row modulo 8. "
            "Mind the parentheses: in Python + binds more tightly than ^.",
        ),
    ),
    "04.2": Exercise(
        _descriptor,
        (
            "The check shows the fields that your 64 bits have, and those that they should have. Which are 0 "
            "and should not be?",
            "Look at the picture of section 2: the address is in the lowest bits, the stride byte offset "
            "begins at bit 32, and the swizzle is in the highest two bits. Address and offset count in units "
            "of 16 bytes.",
            "Join three terms with |. The swizzle's is 1 << 62, the address you have; the third is the "
            "bytes from 8 rows to the next 8, which are 8 * 128, over 16, and shifted up to bit 32.",
        ),
    ),
    "04.3": Exercise(
        _element,
        (
            "Draw it for thread 0: (0, 0), (0, 1), (8, 0), (8, 1), then the columns 8 and 9. What do the "
            "bits of i say, from the lowest one on?",
            "The row: a warp has 16 rows of its own; four threads share a row; every second pair of "
            "registers is 8 rows further down. The column: 8 for each four registers, 2 for each thread of "
            "the four, 1 for the odd register.",
            "The row is 16 * (thread // 32) plus the lane, thread % 32, over 4, plus 8 if i // 2 is odd. The "
            "column is 8 * (i // 4), plus twice thread % 4, plus i % 2.",
        ),
    ),
    "04.4": Exercise(
        _between,
        (
            "Three things have to happen, and section 4 names them. Add one, and let the emulator say what "
            "is still missing.",
            "What each thread has stored must become visible to the tensor core; all threads must have done "
            "so; and the accumulators must be ready for a WGMMA.",
            "In the rung's order: the fence between the proxies, the barrier of the block, and the fence "
            "before a first WGMMA. The first and the last are functions of ptx::, without arguments.",
        ),
    ),
    "04.5": whole_kernel(
        "04.5",
        (
            "Both warpgroups do what s3_wgmma's one does, with the same tile of B. Which three things does "
            "the second one have of its own? Begin with the rung's kernel, and say threadIdx.x % kWarpgroup "
            "wherever it means a thread of the warpgroup.",
            "Its own: 64 rows of the tile of A, so the address in A's descriptor; the rows of D, and with "
            "them the scales. And one barrier that the rung could do without is needed now: the one at the "
            "end of the loop.",
            "A's descriptor begins at smem_a + warpgroup * kWgmmaM * kSwizzleRow, and row0 is tile_m + "
            "warpgroup * kWgmmaM + accumulator_row(threadIdx.x % kWarpgroup, 0). copy_tile is called twice, "
            "with smem_a and with smem_b; the rest of the loop is the rung's.",
        ),
    ),
}
