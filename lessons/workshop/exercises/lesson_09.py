"""Lesson 09's exercises: the walk over the tiles, and the store."""

from __future__ import annotations

import gemm_ladder as gl
from gemm_ladder.ref import layouts
from workshop import drawing_tiles, workbench
from workshop.exercises.record import Exercise, Verdict, in_rung, lines, same, where_the_fence_is
from workshop.exercises.whole import whole_kernel

WALKS = ((16, 28, 8), (10, 5, 8), (3, 4, 8), (7, 3, 1))  # tiles of m, pairs of n, tiles of m at a time
PLACES = [(pair, *of) for of in WALKS for pair in (0, 2, 5, 9, 11)]


def _between(mine: object) -> Verdict:
    own = lines(gl.rungs["s7_persistent"].source, "ptx::fence_proxy_async();", "ptx::bar_sync(")
    verdict = in_rung("s7_persistent", workbench.problem(m=768, n=128, k=512), (own, str(mine)))
    return where_the_fence_is(verdict, str(mine), "bar_sync")


EXERCISES = {
    "09.1": Exercise(
        same(
            lambda pair, *of: tuple(map(int, drawing_tiles.order(*of)[pair])),
            [*PLACES, (49, 10, 5, 8), (300, 16, 28, 8)],
        ),
        (
            "First find the group that the pair is in: how many pairs does a whole group have?",
            "A whole group has group * pairs_n pairs, and begins at a tile of m that is a multiple of group. "
            "Inside it the walk goes down first. The last group may be less high, so its height is what is "
            "left of tiles_m.",
            "first = pair // (group * pairs_n) * group, inside = pair % (group * pairs_n), and height the "
            "smaller of group and tiles_m - first. Then inside, by height: the rest goes down from first, "
            "the quotient to the right.",
        ),
    ),
    "09.2": Exercise(
        same(
            lambda warp, lane, column: int(
                layouts.swizzle_128b(16 * warp + lane % 16, 2 * (column + lane // 16 * 8))
            ),
            [
                (warp, lane, column)
                for warp in (0, 3)
                for column in (0, 16, 48)
                for lane in (0, 1, 9, 16, 17, 31)
            ],
        ),
        (
            "An x4 writes 16 rows and two halves of 8 columns. Which lanes give which addresses? The section "
            "on stmatrix says it.",
            "Lane i gives row i mod 16, of the left half for i below 16 and of the right half above. A chunk "
            "of 16 bytes is 8 columns; the swizzle moves it to chunk XOR (row mod 8).",
            "The row is 16 * warp + lane % 16, the chunk column // 8 + lane // 16. The offset is 128 * row, "
            "plus 16 times the chunk after the XOR.",
        ),
    ),
    "09.3": Exercise(
        _between,
        (
            "Two lines. Section 3 says what has to be done before one of the threads that wrote may ask the "
            "copy engine.",
            "The copy engine reads by the async proxy, so what was stored needs a fence between the proxies: "
            "the rung has each thread execute it. And the consumer's 128 threads must meet, but not the "
            "producer: __syncthreads will not do.",
            "The same fence as in lesson 04; then ptx::bar_sync(id, threads), with the id that the exercise "
            "gives, and kWarpgroup threads.",
        ),
    ),
    "09.4": whole_kernel(
        "09.4",
        (
            "Your kernel of lesson 08 with two loops around: one in the producer, one in the consumers. "
            "Which variables belong to a tile, and which to the whole life of the block?",
            "Tiles are numbered; a block begins at blockIdx.x and goes on by gridDim.x. The position in the "
            "ring stays where it is from tile to tile, as break 3 shows. The totals begin at 0 with each "
            "tile.",
            "for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x), the same in both. tile_m is tile "
            "% tiles_m * kTileM, tile_n is tile / tiles_m * kTileN, both inside the loop; the Ring is made "
            "before it, total and sfb inside. A thread may return only behind its loop.",
        ),
    ),
}
