"""Lesson 14's exercises: the prediction, and the rung."""

from __future__ import annotations

from gemm_ladder.errors import InputError
from workshop import own_rung
from workshop.exercises.record import Exercise, Verdict, same


def _rung(mine: object) -> Verdict:
    try:
        return Verdict(*own_rung.fulfils(str(mine)))
    except InputError as error:
        return Verdict(False, str(error))


TIMES = (2.5, 0.5), (2.0, 0.6)
WORK = [(1, 1), (132, 16), (133, 16), (264, 56), (265, 56), (3584, 128)]

EXERCISES = {
    "14.1": Exercise(
        same(
            own_rung.predicted,
            [(*work, bytes_, *TIMES) for work in WORK for bytes_ in (10**6, 10**9)],
        ),
        (
            "Three things: the pair of times that counts, the number of waves, and the floor below which "
            "memory does not let the kernel come.",
            "With as many CTAs as SMs, or fewer, each is alone and there is one wave. With more, 2 x 132 "
            "run at once, and waves are whole. A wave takes the ends of one tile and all of its K blocks.",
            "ends, block = alone or together; waves is ctas over 132 or over 264, rounded up. Return the "
            "larger of LAUNCH + waves * (...) and the bytes over MEMORY.",
        ),
    ),
    "14.2": Exercise(
        _rung,
        (
            "Change one thing at a time and judge after each. Which constants of the file does your brief "
            "touch? Follow each to where it is used.",
            "BF16: what had 128 elements in 128 bytes has 64, and who promotes what? Split-K: which K blocks "
            "does each of the two CTAs walk through, and where do their sums meet? 96 columns: at which "
            "columns of a tile may B's scale change?",
            "The wrappers: ptx::wgmma<ptx::Type::f32, ptx::Type::bf16, ptx::Type::bf16, N> of mma.cuh; "
            "ptx::cluster_ctarank, mapa and ld_shared_cluster of cluster.cuh, between two cluster barriers; "
            "and for 96 columns a scale for each 32 of them, which are 16 registers of one WGMMA of n = 96, "
            "or a WGMMA of n = 32 of their own.",
        ),
    ),
}
