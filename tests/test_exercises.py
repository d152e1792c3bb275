"""The exercises' checks: what they must refuse and what they must accept, beside the solutions."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable

import numpy as np
import pytest
from gemm_ladder.figures import lessons
from gemm_ladder.production.config import Config

lessons.find()
from workshop import exercises  # noqa: E402
from workshop.exercises import lesson_11, record  # noqa: E402

BEHIND = "Behind the barrier"  # what a check says of a fence that is there


def verdict(name: str, mine: object) -> record.Verdict:
    return exercises.exercise(name).check(mine)


@pytest.mark.parametrize(
    ("name", "barrier", "behind"),
    [
        ("04.4", "__syncthreads();", "ptx::wgmma_fence();"),
        ("09.3", "ptx::bar_sync(1 + consumer, kWarpgroup);", ""),
    ],
)
def test_a_fence_behind_the_barrier(name: str, barrier: str, behind: str) -> None:
    """PTX accepts it, and the check says why; the rung has it before the barrier."""
    found = verdict(name, f"{barrier} ptx::fence_proxy_async(); {behind}")
    assert found.right and BEHIND in found.words, found.words


# Answers that come near, by exercise: each is wrong in a way that some case has to show.


def decoded_waves(m: int, n: int, tile_m: int, tile_n: int, sms: int) -> tuple[int, float]:
    tiles = -(-m // tile_m) * -(-n // tile_n)
    return -(-tiles // sms), tiles % sms / sms  # 0 where the last wave is full


def stages(
    limit: int = 16, scales: int = 512, small: int = 176, of_a: int = 4, barriers: int = 32
) -> Callable[..., int]:
    def stages(tile_m: int, tile_n: int, scales_b: int) -> int:
        stage = -(-((tile_m + tile_n) * 128 + of_a * tile_m + barriers) // 1024) * 1024
        most = small * 1024 // stage if tile_m == 64 else limit
        return min(limit, most, (232448 - tile_m * tile_n * 2 - scales_b * scales) // stage)

    return stages


def place(group: int | None = None, units: int | None = None) -> Callable[..., tuple[int, int]]:
    """With a number that is the first product's, in place of the argument."""

    def place(unit: int, units_m: int, units_n: int, down: int) -> tuple[int, int]:
        high, wide = group or down, units or units_n
        first = unit // (high * wide) * high
        height = min(high, units_m - first)
        return first + unit % (high * wide) % height, unit % (high * wide) // height

    return place


def yields(earlier: Callable[[int, list[int]], int]) -> Callable[..., bool]:
    def yields(i: int, sixteenths: int, scales: list[int]) -> bool:
        return earlier(i, scales) % 2 == 0 and i < len(scales) * sixteenths // 16

    return yields


def without_a_break(i: int, scales: list[int]) -> int:
    """How many FFMAs right before number i have its scale."""
    return next((back for back in range(i) if scales[i - back - 1] != scales[i]), i)


def mbarrier(over: Callable[[int], bool], least: int | None = None) -> Callable[..., tuple[int, int, int]]:
    def mbarrier(count: int, events: list[tuple[str, int]]) -> tuple[int, int, int]:
        phase, pending, to_come = 0, count, 0
        for event, size in events:
            pending -= event != "land"
            to_come += {"arrive": 0, "expect": size, "land": -size}[event]
            to_come = to_come if least is None else max(least, to_come)
            if pending == 0 and over(to_come):
                phase, pending = phase + 1, count
        return phase, pending, to_come

    return mbarrier


def weakest(*fields: str) -> Callable[..., tuple]:
    def weakest(rows: list[dict], libraries: list[str]) -> tuple:
        times: dict[tuple, dict[str, float]] = {}
        for row in rows:
            product = tuple(row[field] for field in ("kind", "groups", "m", "n", "k", "l2", *fields))
            times.setdefault(product, {})[row["impl"]] = row["us"]
        ratios = {}
        for product, us in times.items():
            theirs = [us[library] for library in libraries if library in us]
            if theirs and "s9_production" in us:
                ratios[product] = min(theirs) / us["s9_production"]
        worst = min(ratios, key=ratios.__getitem__)
        return *worst[:6], ratios[worst]

    return weakest


def address(warp: int, lane: int, column: int, right_half: Callable[[int, int], int]) -> int:
    row = 16 * warp + lane % 16
    return row * 128 + right_half(column // 8 ^ row % 8, lane // 16) * 16


def result(
    better: Callable[[list[float]], float], middle: Callable[[list[float]], float]
) -> Callable[..., tuple]:
    def result(passes: list[list[float]]) -> tuple:
        times = min(passes, key=better)
        low, high = np.percentile(times, [10, 90])
        return middle(times), low, high

    return result


@pytest.mark.parametrize(
    ("name", "mine", "right"),
    [
        ("01.3", 0.669, True),
        ("01.3", 0.7056, False),  # of a scale that is 9.1 times too small
        ("03.4", lambda stride: math.gcd(stride, 32), True),
        ("03.4", lambda stride: stride & -stride, False),  # 64 turns at 64
        ("03.4", lambda stride: 1 if stride % 2 else stride % 32 or 32, False),  # 12 turns at 12
        ("06.1", mbarrier(lambda to_come: to_come == 0), True),
        ("06.1", mbarrier(lambda to_come: to_come <= 0), False),
        ("06.1", mbarrier(lambda to_come: to_come == 0, least=0), False),
        ("09.2", lambda warp, lane, column: address(warp, lane, column, operator.xor), True),
        ("09.2", lambda warp, lane, column: address(warp, lane, column, operator.add), False),
        ("10.2", lambda gap, one, other, to: gap < 48 and one == other != to, False),
        ("10.3", yields(lambda i, scales: scales[:i].count(scales[i])), True),
        ("10.3", yields(lambda i, scales: i), False),
        ("10.3", yields(without_a_break), False),
        ("11.1", decoded_waves, False),
        ("11.2", place(), True),
        ("11.2", place(group=2), False),
        ("11.2", place(units=3), False),
        ("11.3", stages(), True),
        ("11.3", stages(limit=99), False),
        ("11.3", stages(scales=0), False),
        ("11.3", stages(small=999), False),
        ("11.3", stages(scales=256), False),
        ("11.3", stages(of_a=0), False),
        ("11.3", stages(of_a=8), False),
        ("11.3", stages(barriers=0), False),
        ("13.2", result(np.median, np.median), True),
        ("13.2", result(min, np.median), False),
        ("13.2", result(np.median, lambda times: sorted(times)[len(times) // 2]), False),
        ("13.5", weakest("max_m", "expected_m"), True),
        ("13.5", weakest(), False),
        ("13.5", weakest("max_m"), False),
        ("13.5", weakest("expected_m"), False),
    ],
)
def test_answers_that_come_near(name: str, mine: object, right: bool) -> None:
    found = verdict(name, mine)
    assert found.right == right, found.words


def test_the_bits_without_multicast_are_no_answer() -> None:
    load = "ptx::cp_async_bulk_tensor_2d(next.stage + kB{}, &map_b, full, block * kTileK, tile_n{});"
    found = verdict("07.4", load.format("", "") + load.format(" + 8192", " + 64"))
    assert not found.right and "as in s4" in found.words, found.words


@pytest.mark.parametrize(
    ("line", "right"),
    [
        ("total = fmaf(partial, p.sfa[block * p.sfa_stride + row] * sfb[block], total);", True),
        ("total += partial * (p.sfa[block * p.sfa_stride + row] * sfb[block]);", False),
    ],
)
def test_the_promotion_rounds_once(line: str, right: bool) -> None:
    found = verdict("02.1", line)
    assert found.right == right and right != ("single rounding" in found.words), found.words


def test_a_walk_through_groups_leaves_other_layouts_alone() -> None:
    line = "while (unit_ >= units_m_ * kUnitsN && ++group_ < p_.groups) {"
    found = verdict("12.4", f"{line} unit_ -= units_m_ * kUnitsN; enter_group(); }}")
    assert not found.right and "stores 32 times where 16 are needed" in found.words


@pytest.mark.parametrize(
    ("name", "mine", "words"),
    [
        ("02.1", "total = fmaf(partial, p.sfa[block * p.m + row] * sfb[block], total);", "wrong answer"),
        # The bytes of a word in the other order; a shift by 32 and more, which gives 0 on a GPU.
        ("03.2", "tile[i][line] = ptx::cvt_f32_e4m3(word >> (3 - i % 4) * 8 & 255);", "order of the bytes"),
        ("03.2", "tile[i][line] = ptx::cvt_f32_e4m3(word >> i * 8 & 255);", "wrong answer"),
        (
            "11.4",
            "const auto add = [](float4 a, float4 b) {"
            "    return float4{a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w};"
            "};"
            "const float4 sum = add(add(partial(0), partial(1)), add(partial(2), partial(3)));",
            "is 1, not 0",
        ),
    ],
)
def test_lines_that_come_near(name: str, mine: str, words: str) -> None:
    found = verdict(name, mine)
    assert not found.right and words in found.words, found.words


def test_the_stages_that_are_expected_are_the_kernels() -> None:
    for tile in lesson_11.TILES:
        config = Config.of("dense", 2112, 7168, *tile)
        assert lesson_11.stages_that_fit(*tile, config.scales_b) == config.stages, tile


def test_a_walk_through_groups_is_psums_too() -> None:
    line = "while (kC.kind == Kind::kMasked && unit_ >= units_m_ * kUnitsN && ++group_ < p_.groups) {"
    found = verdict("12.4", f"{line} unit_ -= units_m_ * kUnitsN; enter_group(); }}")
    assert not found.right and "A masked call is right. In a psum call" in found.words, found.words
