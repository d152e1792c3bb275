"""Lesson 11's exercises: waves, the order of units, stages, and the addition of split-K's parts."""

from __future__ import annotations

from functools import partial

import numpy as np
from gemm_ladder.production import prediction
from gemm_ladder.production.config import MAX_RING, MAX_STAGES, Config
from workshop import workbench, workbench_production
from workshop.exercises.record import Exercise, Verdict, by_running, compared, same


def _waves(m: int, n: int, tile_m: int, tile_n: int, sms: int) -> tuple[int, float]:
    expected = prediction.predict(Config.of("dense", n, 1024, tile_m, tile_n), m, num_sms=sms)
    return int(np.ceil(expected.waves)), expected.last_wave


def _place(mine: object) -> Verdict:
    units_m, units_n, group = 5, 3, 2
    one = Config.of("dense", 128 * units_n, 1024, 128, 128, group_m=group)
    tiles = workbench_production.walk(one, 128 * units_m, num_sms=1, device="cpu")  # one block makes them all
    walked = [(int(tile["row"]) // 128, int(tile["column"]) // 128) for tile in tiles]
    orders = {(units_m, units_n, group): walked, (7, 2, 3): in_bands(7, 2, 3)}
    cases = [(unit, *of) for of, order in orders.items() for unit in range(len(order))]
    return compared(mine, lambda unit, *of: orders[of][unit], cases)


def in_bands(units_m: int, units_n: int, group: int) -> list[tuple[int, int]]:
    """Where each unit lies, in the order in which the scheduler walks."""
    bands = [range(first, min(first + group, units_m)) for first in range(0, units_m, group)]
    return [(row, column) for band in bands for column in range(units_n) for row in band]


TILES = [
    *((256, 128), (256, 144), (128, 192), (128, 96), (128, 32)),
    *((64, 256), (64, 144), (64, 32), (64, 16), (64, 8)),
]


def stages_that_fit(tile_m: int, tile_n: int, scales_b: int) -> int:
    """What `Config.of` finds at k = 7168, but for any number of B's scales."""
    stage = -(-((tile_m + tile_n) * 128 + 4 * tile_m + 32) // 1024) * 1024
    most = MAX_RING // stage if tile_m == 64 else MAX_STAGES
    return min(MAX_STAGES, most, (232448 - 2 * tile_m * tile_n - 2 * 256 * scales_b) // stage)


def _stages(mine: object) -> Verdict:
    cases = [(*tile, Config.of("dense", 2112, 7168, *tile).scales_b) for tile in TILES]
    # A made-up number of scales: with one buffer in place of two there would be room for 8 stages.
    return compared(mine, stages_that_fit, [*cases, (128, 72, 3)])


def _addition(mine: object) -> Verdict:
    split = Config.of("dense", 72, 512, 64, 64, cluster=4, share="K", stages=2)
    text = workbench_production.source("gemm.cuh")
    begin = text.index("            float4 sum = partial(0)")
    end = text.index("            const int column", begin)
    changed = workbench_production.changed(split, (text[begin:end], str(mine)))
    # The second one tells the order from (0 + 1) + (2 + 3), which has the same sum of the first.
    for parts in (workbench_production.PARTS, (2.0**24, 1, 1, -(2.0**24))):
        of = workbench_production.parts_in_order(parts)
        right = workbench_production.multiply(split, of, "cpu")
        find = partial(workbench.tried, workbench_production.symptoms, changed, of, right, range(4))
        found = by_running(find)
        if not found.right:
            break
    return found


EXERCISES = {
    "11.1": Exercise(
        same(
            _waves,
            [
                (4096, 2112, 128, 192, 132),
                (64, 7168, 64, 64, 132),
                (4096, 7168, 256, 128, 132),
                (130, 2112, 64, 96, 78),
                (12 * 128, 11 * 192, 128, 192, 132),  # all waves are full, the last one too
                (24 * 128, 11 * 192, 128, 192, 132),
            ],
        ),
        (
            "Tiles are whole: half of one at an edge takes as long as a whole one. And so are waves.",
            "Round up three times: the tiles along m, the tiles along n, and the waves. The last wave has "
            "the tiles that those before it have not made.",
            "tiles is the product of two quotients rounded up, whole = tiles over sms rounded up, and the "
            "last wave's part is (tiles - (whole - 1) * sms) over sms.",
        ),
    ),
    "11.2": Exercise(
        _place,
        (
            "It is the walk of lesson 09 over its tiles, with other names.",
            "A band is `group` units high and units_n wide. Find the band, then the place in it, which goes "
            "down first; the last band may be lower.",
            "first = unit // (group * units_n) * group, height = the smaller of group and units_m - first; "
            "inside the band, the rest and the quotient by height are how far down and how far right.",
        ),
    ),
    "11.3": Exercise(
        _stages,
        (
            "Take it sentence by sentence: what does the block need besides the stages, and how large is a "
            "stage? A helper that rounds up to 1024 is worth writing.",
            "Results: tile_m * tile_n * 2 bytes. Scales of B: two buffers, 256 bytes for each of scales_b. A "
            "stage: (tile_m + tile_n) * 128, four bytes for each row of A, and 32, all rounded up.",
            "The least of three: 16; for tile_m == 64 also 176 * 1024 // stage; and what is left of 232448 "
            "after results and scales, // stage.",
        ),
    ),
    "11.4": Exercise(
        _addition,
        (
            "How many parts are there, and in which order do they have to be added? The section on "
            "splitting K says why the order counts.",
            "Begin with partial(0), as the stub does, and add those of the ranks 1, 2, ... in a loop up to "
            "kSplits. A float4 has no operator +: add its four fields one by one.",
            "for (int from = 1; from < kSplits; ++from), and in it `const float4 next = partial(from);`, "
            "then sum.x += next.x and the same for y, z and w.",
        ),
    ),
}
