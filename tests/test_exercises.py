"""The exercises' checks: what they must refuse and what they must accept, beside the solutions."""

from __future__ import annotations

import functools
import math
import operator
import re
from collections.abc import Callable

import numpy as np
import pytest
from gemm_ladder.figures import lessons
from gemm_ladder.production.config import Config

lessons.find()
from workshop import exercises, texts  # noqa: E402
from workshop.exercises import fitting, lesson_11  # noqa: E402


def asked(name: str) -> fitting.Asked:
    return fitting.asked(next(lessons.FOLDER.glob(f"{name[:2]}_*.py")), name)


BEHIND = "Behind the barrier"  # what a check says of a fence that is there


verdict = exercises.verdict


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


def of_no_kind(rows: list[dict], libraries: list[str]) -> tuple:
    first: dict[tuple, str] = {}
    for row in rows:
        fields = tuple(row[field] for field in ("groups", "m", "n", "k", "l2", "max_m", "expected_m"))
        row["kind"] = first.setdefault(fields, row["kind"])
    return weakest("max_m", "expected_m")(rows, libraries)


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


def call_times(kernels: list[tuple[str, float]]) -> list[float]:
    """The list is used up, which a check has to bear."""
    times, inside = [], False
    while kernels:
        name, us = kernels.pop(0)
        inside ^= name == "spin_kernel"
        if inside:
            times += [0.0] if name == "spin_kernel" else []
            times[-1] += us if name != "spin_kernel" else 0.0
    return times


def between_memsets(kernels: list[tuple[str, float]]) -> list[float]:
    times: list[float] = []
    for name, us in kernels:
        if name == "memset":
            times.append(0.0)
        elif name != "spin_kernel":
            times[-1] += us
    return times


def gaps_without_memset(kernels: list[tuple[str, float]]) -> list[float]:
    times: list[float] = []
    for name, us in kernels:
        if name == "spin_kernel":
            times.append(0.0)
        elif name != "memset" and times:
            times[-1] += us
    return [us for us in times if us]


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
        ("13.3", call_times, True),
        ("13.3", between_memsets, False),
        ("13.3", gaps_without_memset, False),
        ("13.5", weakest("max_m", "expected_m"), True),
        ("13.5", weakest(), False),
        ("13.5", weakest("max_m"), False),
        ("13.5", weakest("expected_m"), False),
        ("13.5", of_no_kind, False),
    ],
)
def test_answers_that_come_near(name: str, mine: object, right: bool) -> None:
    found = verdict(name, mine)
    assert found.right == right, found.words


@pytest.mark.parametrize("multicast", [False, True])
def test_each_block_loading_all_of_b_is_no_answer(multicast: bool) -> None:
    """Nor is it by a multicast to the block itself."""
    name, mask = ("_multicast", ", 1 << ptx::cluster_ctarank()") if multicast else ("", "")
    load = "ptx::cp_async_bulk_tensor_2d%s(next.stage + kB%s, &map_b, full, block * kTileK, tile_n%s%s);"
    found = verdict("07.4", load % (name, "", "", mask) + load % (name, " + 8192", " + 64", mask))
    assert not found.right and "297,984 bytes of L2 where 199,680 do" in found.words, found.words


def test_a_multicast_of_both_halves() -> None:
    load = (
        "ptx::cp_async_bulk_tensor_2d_multicast(next.stage + kB + %s * 8192, &map_b, full, block * kTileK, "
    )
    load += "tile_n + %s * 64, 3);"
    assert verdict("07.4", load.replace("%s", "ptx::cluster_ctarank()")).right
    one_for_both = f"if (ptx::cluster_ctarank() == 0) {{ {load % (0, 0)} {load % (1, 1)} }}"
    assert verdict("07.4", one_for_both).right, "it asks for each byte once, too"


EVERY = [name for path in texts.paths() for name in exercises.of_lesson(path.name[:2])]


class Strange:
    """Compared with a number, it says nothing that is true or false."""

    def __eq__(self, other: object) -> object:  # type: ignore[override]
        return np.zeros(2)

    __hash__ = None  # type: ignore[assignment]


@pytest.mark.parametrize("name", EVERY)
def test_an_answer_of_another_kind(name: str) -> None:
    """It is refused in one sentence that says what is needed, whatever was given."""
    kind = asked(name).kind
    nothing, text = (None, Strange, Strange(), 1j, math.nan, True, b"x", {}), ("x", "0.5")
    functions = (lambda: None, lambda one, *, more: one, functools.partial(max, key=abs), len)
    given = {
        "a n": (*text, *functions, [1, [2]], np.zeros(3)),
        "a l": (*text, *functions, 1.0, [1]),
        "a t": (*functions, 1.0, ["x"]),
        "a f": (*text, *functions[:2], 1.0, [1]),
    }[kind[:3]]
    for mine in (*nothing, *given):
        found = verdict(name, mine)
        assert not found.right and found.words.startswith(f"{kind} is needed, not "), found.words
        assert "\n" not in found.words and found.words.endswith(".") and len(found.words) < 160, found.words


@pytest.mark.parametrize("name", [name for name in EVERY if re.match(r"a f", asked(name).kind)])
def test_a_function_that_returns_something_strange(name: str) -> None:
    """One case is named, and there is no traceback. A function without a name is as good as another."""
    for result in (None, "x", Strange(), [np.zeros(2), 1], math.nan, (), lambda: 0):
        found = verdict(name, lambda *_, result=result: result)
        assert not found.right and re.search("gives|raises", found.words), found.words
    assert not verdict(name, functools.partial(lambda *_: None)).right


def test_a_partial_may_be_right() -> None:
    found = verdict("07.1", functools.partial(lambda by, m, n, blocks: by * (m + n / blocks), 128))
    assert found.right and found.words == "the function agrees in all 5 cases.", found.words


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
