"""Lesson 12's exercises: whose row, which group, when padding costs, and the walk through the groups."""

from __future__ import annotations

from functools import partial

import gemm_ladder as gl
from gemm_ladder.arguments import H100_SMS
from gemm_ladder.measure.shapes import EXPERTS
from gemm_ladder.production import prediction
from gemm_ladder.production.config import Config
from workshop import workbench, workbench_grouped, workbench_production
from workshop.exercises.record import Exercise, Verdict, by_running, lines, same


def _owners(counts: list[int]) -> list[int]:
    """m_indices, and a block of rows behind the end."""
    filled = []
    for expert, count in enumerate(counts):
        filled += [expert] * count + [-1] * (-count % 128)
    return filled + [-1] * 128


def _every_unit(masked_m: tuple[int, ...], tile_m: int, tiles_n: int) -> list[tuple[int, int]]:
    return [(g, i) for g, rows in enumerate(masked_m) for i in range(-(-rows // tile_m) * tiles_n)]


def _balance(n: int, k: int, bandwidth: float, speed: float) -> float:
    """The two times are straight lines in the number of rows: where they cross."""
    at = [2 * n * k * rows / speed - (n * k + rows * (k + 2 * n)) / bandwidth for rows in (0, 1)]
    return -at[0] / (at[1] - at[0])


ROWS = [
    (row, counts)
    for counts in ([128], [100, 40, 116], [0, 129, 0, 256])
    for row in range(0, len(_owners(counts)), 9)
]
UNITS = [
    (unit, *layout)
    for layout in (((70, 100, 0, 5), 64, 2), ((0, 0, 300, 1), 128, 3))
    for unit in range(len(_every_unit(*layout)))
]
MACHINE = prediction.MEMORY, prediction.WGMMA_FLOPS * prediction.CLOCK_MHZ * H100_SMS


def _walk_on(mine: object) -> Verdict:
    """By a masked and a psum call's results, and by how often a contiguous one, in which no block walks on,
    stores."""
    own = lines(workbench_production.source("scheduler.cuh"), "while (kByGroup", "        }\n")
    change = own, str(mine)
    found = []
    for kind in ("masked", "psum"):
        call = workbench_grouped.random_call(kind, (70, 100, 0, 5), 256, 256, max_m=100)
        changed = workbench_production.changed(Config.of(kind, 256, 256, 64, 128), change)
        one = by_running(partial(workbench.tried, workbench_grouped.symptoms, changed, call, range(4)))
        if not one.right:
            return Verdict(False, f"{' '.join(found)} In a {kind} call {one.words}".strip())
        found.append(f"A {kind} call is right.")
    config = Config.of("contiguous", 256, 256, 128, 128)
    changed = workbench_production.changed(config, change)
    other = by_running(lambda: workbench.tried(_more_stores, changed, config))
    return one if other.right else Verdict(False, f"masked and psum calls are right, but: {other.words}")


def _more_stores(changed: Config, config: Config) -> list[workbench.Symptom | None]:
    """Blocks that walk on where there is nothing to walk to make their tiles again: no fault, only slow."""
    try:
        stores, wanted = _stores(changed), _stores(config)
    except gl.EmulatorError as error:
        return [error]
    if stores == wanted:
        return [None]
    return [f"A contiguous call stores {stores} times where {wanted} are needed: its blocks walk on as well."]


def _stores(config: Config) -> int:
    call = workbench_grouped.random_call("contiguous", (128, 128), config.n, config.k)
    with gl.emulator(record=True, max_steps=workbench_grouped.MAX_STEPS) as run:
        workbench_grouped.multiply(config, call, "cpu")
    return int((run.events["kind"] == "tma_store").sum())


EXERCISES = {
    "12.1": Exercise(
        same(lambda row, counts: _owners(counts)[row], ROWS),
        (
            "Go through the experts in order. How many rows of A does one with `count` rows take?",
            "Its count, rounded up to a multiple of 128. If the row lies within its count, the expert is "
            "found; if it lies behind that and still in its blocks, it is padding.",
            "In a loop over enumerate(counts): if row < count, return the expert; else subtract the rounded "
            "count from row, and if row is below 0 now, return -1. After the loop, -1 as well.",
        ),
    ),
    "12.2": Exercise(
        same(lambda unit, *layout: _every_unit(*layout)[unit], UNITS),
        (
            "How many units does a group with `rows` rows have? A group may have none.",
            "Its tiles of m, rows over tile_m rounded up, times tiles_n. Walk as the scheduler does: "
            "subtract each group's units until the number fits into one.",
            "for group, rows in enumerate(masked_m): if unit is below the group's units, return both; "
            "otherwise subtract them from unit.",
        ),
    ),
    "12.3": Exercise(
        same(_balance, [(*size, *MACHINE) for size in (*EXPERTS, (256, 1536))]),
        (
            "Write down the two times, each as a function of the number of rows. Where are they equal?",
            "The tensor cores: 2 n k rows operations over speed. Memory: n k bytes of B, k bytes of A for "
            "each row and 2 n bytes of D for each row, all over bandwidth. Bring the terms with rows to one "
            "side.",
            "rows = (n k / bandwidth) / (2 n k / speed - what a row's bytes take), and a row has k + 2 n "
            "bytes.",
        ),
    ),
    "12.4": Exercise(
        _walk_on,
        (
            "It is exercise 2, in CUDA: while the unit's number is not in this group, go on to the next one. "
            "When must it stop even so?",
            "As long as there are groups left. A group has units_m_ * kUnitsN units; subtract them, move "
            "group_ on, and call enter_group(), which sets units_m_ for the new group.",
            "A while loop, whose condition is that this kind of call goes from group to group (kByGroup: "
            "masked and psum ones do), unit_ is not below the group's units, and ++group_ < p_.groups; its "
            "body subtracts, then enters.",
        ),
    ),
}
