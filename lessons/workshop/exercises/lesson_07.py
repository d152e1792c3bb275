"""Lesson 07's exercises: clusters and multicast."""

from __future__ import annotations

import gemm_ladder as gl
from gemm_ladder.rungs import Rung
from workshop import apart, workbench
from workshop.exercises.record import Exercise, Verdict, in_rung, lines, same


def _load_b(mine: object) -> Verdict:
    source = gl.rungs["s5_tma_multicast"].source
    own = lines(source, "rank = ptx::cluster_ctarank", "next.stage + kScaleA, &map_sfa", last=False)
    change, of = (own, str(mine)), workbench.problem(m=128, n=128, k=768)
    verdict = in_rung("s5_tma_multicast", of, change)
    if not verdict.right:
        return verdict
    rung = gl.rungs["s5_tma_multicast"]
    asked, needed = (apart.call(_asked, one, of) for one in (workbench.changed(rung.name, change), rung))
    if asked > needed:
        words = "Each block asks for bytes that the other has asked for, too, as in s4."
        return Verdict(False, f"the bits are right, for {asked:,} bytes of L2 where {needed:,} do. {words}")
    return verdict


def _asked(rung: Rung, of: workbench.Problem) -> int:
    """The bytes that the copy engine is asked to load; of a multicast once, however many blocks get them."""
    with gl.emulator(record=True, max_steps=workbench.MAX_STEPS) as run:
        workbench.multiply(rung, of, "cpu")
    return int(run.events["value"][run.events["kind"] == "tma_load"].sum())


EXERCISES = {
    "07.1": Exercise(
        same(
            lambda m, n, blocks: 128 * (m + n / blocks),
            [(64, 128, 1), (64, 128, 2), (64, 128, 4), (128, 128, 2), (256, 128, 2)],
        ),
        (
            "With one block it is right. Which of the two terms does a cluster make smaller?",
            "A block loads all of its own tile of A, because no other block has those rows. Of B's tile it "
            "loads its part, one of as many as there are blocks.",
            "A's bytes stay 128 * tile_m. Divide B's by blocks, and add.",
        ),
    ),
    "07.2": Exercise(
        same(
            lambda m, n: "either" if m == n else "A" if m > n else "B",
            [(64, 128), (128, 128), (256, 128), (128, 192), (192, 128)],
        ),
        (
            "Use exercise 1: write down what a block asks for if B is shared, and if A is.",
            "The operand that is shared is asked for half as often. So share the one that has more bytes: A "
            "has 128 * tile_m of them, B 128 * tile_n.",
            'Three cases: where the sides are equal, "either"; else the name of the operand that belongs to '
            "the longer side.",
        ),
    ),
    "07.3": Exercise(
        same(
            lambda rank, blocks: (
                128 // blocks * rank,
                128 // blocks * rank * 128,
                2**blocks - 1,
                4 * blocks,
            ),
            [(0, 1), (0, 2), (1, 2), (3, 4), (5, 8)],
        ),
        (
            "How many of B's 128 rows does each of `blocks` blocks load? Then go through the four numbers "
            "one by one.",
            "A row has 128 bytes, so the offset is the first row times 128. The mask has a bit for each "
            "block, all of them set. `empty` counts an arrival for each warp of each block, and a block has "
            "four.",
            "With rows = 128 // blocks: rank * rows, the same times 128, as many ones in binary as there are "
            "blocks (a shifted 1, minus 1), and four times the blocks.",
        ),
    ),
    "07.4": Exercise(
        _load_b,
        (
            "The kernel's own text, in the section on the kernel, has it. What differs between the two "
            "blocks' loads, and what is the same?",
            "Each block loads its half of B's rows and writes it to both blocks, at the place where the half "
            "belongs. ptx::cluster_ctarank() says which half is its own.",
            "Use cp_async_bulk_tensor_2d_multicast, with kEveryBlock as its last argument. To the place add "
            "rank * (kBytesB / kCluster), and to the row rank * (kTileN / kCluster).",
        ),
    ),
}
