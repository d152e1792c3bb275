"""The choice of a configuration, and what is expected of one, without a GPU."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
import statistics
import time

import numpy as np
import pytest
from gemm_ladder import cli
from gemm_ladder.arguments import KINDS, MAX_SIZE
from gemm_ladder.errors import InputError
from gemm_ladder.measure import calibration, learning
from gemm_ladder.measure.shapes import WEIGHTS
from gemm_ladder.production import candidates as tiles
from gemm_ladder.production import choice, explain, prediction
from gemm_ladder.production import config as configs
from gemm_ladder.production.candidates import candidates
from gemm_ladder.production.choice import MOST_KERNELS, STEPS, choose, plan, rows_to_expect
from gemm_ladder.production.config import Config
from gemm_ladder.production.prediction import predict
from hypothesis import given, settings
from hypothesis import strategies as st
from measured_choices import FOLDERS, gpu_of, measured

# ------------------------------------------------------------------------------------------- how good it is


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_regret(folder):
    """The kernel that a product gets is, on average, within a percent of the best that was measured for it.
    The worst cases are rare; NOTES.md says what they are."""
    results = [one for some in measured(folder).values() for one in some]
    found = sorted(calibration.regrets(results, gpu_of(folder)).values())
    # The H100's results are older than the order of tiles that most of its candidates have now.
    assert len(found) > (0.9 if "H200" in folder.name else 0.7) * len(measured(folder))
    assert statistics.mean(found) < 0.01
    assert found[int(0.95 * len(found))] < 0.05
    assert sum(value > 0.08 for value in found) < 0.02 * len(found)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_residuals(folder):
    """What is expected of a configuration is within a few percent of what was measured."""
    results = [one for some in measured(folder).values() for one in some]
    data = learning.prepare(results)
    network = prediction.read(json.loads((prediction.LEARNED / f"{folder.name}.json").read_text()))
    off = learning.residuals(network, data, np.ones(len(results), dtype=bool))
    assert max(off) < 0.06


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_what_was_learned_is_of_these_results(folder):
    """learned/GPU.json names the number of results and the regret that its folder has."""
    meta = json.loads((prediction.LEARNED / f"{folder.name}.json").read_text())["meta"]
    assert meta["gpu"] == gpu_of(folder)
    assert meta["results"] == sum(map(len, measured(folder).values()))
    assert meta["regret"]["not learned from"]["mean"] < 0.015


# -------------------------------------------------------------------------------------- what it costs to ask


@pytest.mark.parametrize(("n", "k"), [*WEIGHTS, (384, 1536), (28672, 8192), (1408, 8320)])
def test_few_kernels(n, k):
    """A serving process compiles few kernels for one weight, over all batch sizes."""
    found = {choose("dense", m, n, k) for m in range(1, 8193)}
    assert 4 <= len(found) <= MOST_KERNELS
    steps = choice.steps_up_to("dense", 8192, 1)
    assert found == {plan("dense", n, k, 1, 132).at(rows) for rows in steps}


def test_time():
    """A choice takes a few microseconds, and the first one for a weight some milliseconds: far less than
    compiling its first kernel."""

    def seconds(n: int, m: int) -> float:
        started = time.thread_time()  # what this thread computes, however busy the machine is
        choose("dense", m, n, 4096)
        return time.thread_time() - started

    choose("dense", 1, 4096, 4096)
    assert statistics.median(seconds(4096, m) for m in range(1, 500)) < 0.2e-3
    assert statistics.median(seconds(4096 + 64 * one, 64) for one in range(1, 9)) < 0.15


def test_choice_repeats():
    rows = [(m, n, k) for m in (1, 200, 5000) for n, k in WEIGHTS]
    before = [choose("dense", *row) for row in rows]
    plan.cache_clear()
    tiles._candidates.cache_clear()
    assert [choose("dense", *row) for row in rows] == before


def test_steps():
    assert sorted(set(STEPS)) == list(STEPS)
    assert all(above - below <= max(8, above / 8) for below, above in itertools.pairwise(STEPS))
    asked = (1, 8, 9, 256, 257, 1000, 16384, 10**9)
    assert [rows_to_expect("dense", m, 1, None) for m in asked] == [8, 8, 16, 256, 288, 1024, 16384, 16384]
    assert rows_to_expect("contiguous", 1280, 10, None) == 128
    assert rows_to_expect("masked", 4096, 10, 100) == 104
    assert rows_to_expect("masked", 64, 10, 100) == 64, "there is room for no more"


@pytest.mark.parametrize(("kind", "groups"), [("dense", 1), ("contiguous", 8), ("masked", 8)])
@pytest.mark.parametrize("max_m", [1, 64, 65, 1000, 5000, 20000])
def test_steps_cover_every_m(kind, groups, max_m):
    """precompile() asks for these; the kernel of a call with any m up to max_m must be among theirs."""
    asked = set(choice.steps_up_to(kind, max_m, groups))
    assert {rows_to_expect(kind, m, groups, None) for m in range(1, max_m + 1)} == asked
    hinted = {rows_to_expect("masked", max_m, groups, expected) for expected in range(max_m + 3)}
    assert hinted <= set(choice.steps_up_to("masked", max_m, groups))


@given(
    kind=st.sampled_from(KINDS),
    m=st.one_of(st.integers(1, 700), st.integers(1, 400_000)),
    groups=st.integers(1, 40),
    expected_m=st.sampled_from([0, 1, 7, 300, 20_000]),
)
def test_the_same_rows(kind, m, groups, expected_m):
    """The rows to expect are the same from the first m to the last one, and others outside of these."""
    groups = 1 if kind == "dense" else groups
    first, last = choice.same_rows(kind, m, groups, expected_m)
    assert first <= m <= last
    rows = rows_to_expect(kind, m, groups, expected_m)
    for other in (first, last):
        assert rows_to_expect(kind, other, groups, expected_m) == rows
    if first != last:
        assert first == 1 or rows_to_expect(kind, first - 1, groups, expected_m) != rows
        assert last == MAX_SIZE or rows_to_expect(kind, last + 1, groups, expected_m) != rows
    else:
        assert kind in ("masked", "psum")


def test_what_was_measured_is_taken():
    """A measured configuration gets its number of rows, and is among the kernels for the others."""
    one, other = Config.of("dense", 4096, 7168, 64, 144), Config.of("dense", 4096, 7168, 128, 192, unroll=2)
    found = plan("dense", 4096, 7168, 1, 132, "", ((104, one), (4096, other)))
    assert found.at(97) == found.at(104) == one and found.at(4090) == other
    assert found.at(96) != one or found.at(112) != one
    assert len(found.configs) <= MOST_KERNELS


@pytest.mark.parametrize("kind", ["masked", "psum"])
def test_few_rows_of_many_groups(kind):
    """They have a kernel that passes over groups without rows; other calls have those that they had."""
    many, few = plan(kind, 4096, 7168, 256, 132), plan(kind, 4096, 7168, 16, 132)
    assert many.at(8).sparse and not any(many.at(rows).sparse for rows in STEPS[1:])
    assert sum(config.sparse for config in many.configs) == 1 and len(many.configs) <= MOST_KERNELS + 1
    assert not any(config.sparse for config in few.configs)
    assert ".sparse = true" in many.at(8).source() and "sparse" not in many.at(16).source()
    assert not any(config.sparse for config in plan("contiguous", 4096, 7168, 256, 132).configs)
    for one in (many.at(8), many.at(128)):  # sparse, and not
        found = plan(kind, 4096, 7168, 256, 132, "", ((8, one),))
        assert found.at(8) == dataclasses.replace(one, sparse=True)
        assert sum(config.sparse for config in found.configs) == 1 and not found.at(16).sparse


# ------------------------------------------------------------------------------------------ what is allowed


@settings(deadline=None, derandomize=True, database=None)
@given(
    kind=st.sampled_from(("dense", "contiguous", "masked")),
    m=st.integers(1, 2**31 - 1),
    n=st.integers(1, 2**17).map(lambda n: n * 8),
    k=st.integers(1, 2**12).map(lambda k: k * 128),
    groups=st.integers(1, 300),
    num_sms=st.integers(1, 200),
)
def test_any_product(kind, m, n, k, groups, num_sms):
    """There is a configuration for every legal product, and it can be built."""
    groups = 1 if kind == "dense" else groups
    config = choose(kind, m, n, k, groups, num_sms, expected_m=m // 2)
    assert config.check() is config and (config.kind, config.n, config.k) == (kind, n, k)


@pytest.mark.parametrize("num_sms", [1, 2, 3, 4, 20, 78, 114, 132, 144])
@pytest.mark.parametrize(("kind", "groups", "n", "k"), [("dense", 1, 8, 128), ("masked", 3, 264, 1280)])
def test_any_number_of_sms(kind, groups, n, k, num_sms):
    for m in (1, 64, 100, 1000, 100_000):
        assert choose(kind, m, n, k, groups, num_sms).check()


def suiting(kind: str, rows: int, n: int = 4096, k: int = 7168, groups: int = 1) -> list[Config]:
    """The candidates that suit a product with these rows of a group."""
    known = candidates(kind, k)
    suits = known.suiting(kind, np.array([float(rows)]), n, k, 132, groups)[:, 0]
    return [known.at(one, n, k) for one in np.flatnonzero(suits)]


def test_candidates_are_for_the_rows_of_a_group():
    assert {one.tile_m for one in suiting("contiguous", 64)} == {64}
    assert {one.tile_m for one in suiting("contiguous", 4096)} == {64, 128, 256}
    assert {one.tile_m for one in suiting("masked", 4096)} == {64, 128, 256}
    assert not any(one.stream_b for one in suiting("dense", 4096)), "B is read again"


@pytest.mark.parametrize(
    ("rows", "k", "groups", "drift"),
    [
        (256, 7168, 256, True),
        (100, 7168, 256, False),
        (2048, 7168, 256, False),
        (256, 2048, 256, False),
        (256, 7168, 16, False),
    ],
)
def test_thread_blocks_of_a_psum_layout_drift_apart(rows, k, groups, drift):
    """In many waves, unless a group has one tile below each other or a wave's B stays in L2."""
    found = {one.tile_m for one in suiting("psum", rows, k=k, groups=groups)}
    assert found == ({64} if drift else {64, 128})
    assert 128 in {one.tile_m for one in suiting("masked", rows, k=k, groups=groups)}


def test_candidates_keep_the_rules():
    found = [one for kind in ("dense", "contiguous", "masked") for one in candidates(kind, 7168).configs]
    assert len(found) == len(set(found)) > 400
    for one in found:
        one.check()
        full = one.shared_bytes + one.stage_bytes > one.most_shared_bytes - 2048
        full |= one.tile_m == 64 and (one.stages + 1) * one.stage_bytes > configs.MAX_RING
        assert one.stages == configs.MAX_STAGES or full, one
        assert one.prefetch == 0 or one.prefetch == tiles.prefetched(one.tile_n)
    assert {one.tile_m for one in found} == {64, 128, 256}
    assert {112, 144, 160} < {one.tile_n for one in found}
    assert {one.share for one in suiting("dense", 4096)} == {"nothing", "A", "B"}
    assert {(one.tail_m, one.tail_n) for one in suiting("dense", 4096, 2112)} == {(0, 0), *tiles.TAILS}
    assert {2, 4, 8} == {one.cluster for one in suiting("dense", 64, 256) if one.share == "K"}
    assert not any(one.share == "K" for one in suiting("dense", 4096))


def test_the_order_of_tiles():
    """It follows from the tile and the layout, unless it is given."""

    def order(kind: str, tile_m: int, tile_n: int, **fields: object) -> tuple[int, int]:
        config = Config.of(kind, 4096, 7168, tile_m, tile_n, **fields)
        return config.group_m, config.group_n

    assert {order("dense", tile_m, tile_n) for tile_m in (64, 128) for tile_n in (32, 128, 192)} == {(8, 2)}
    assert order("dense", 256, 128) == order("dense", 256, 64) == (8, 8)
    assert order("contiguous", 128, 192) == (4, 0), "most tiles below each other have different experts"
    assert order("contiguous", 64, 128) == (8, 0) and order("contiguous", 256, 128) == (8, 12)
    assert {order("masked", tile_m, 128) for tile_m in (64, 128, 256)} == {(8, 0)}
    assert order("dense", 128, 128, share="A", cluster=2) == (8, 0)
    assert order("dense", 128, 128, group_m=5) == (5, 0) and order("dense", 128, 128, group_n=3) == (8, 3)


def test_there_is_room_for_the_scales():
    """The buffers for B's scales grow with k, and there are more of them where k is short: both may cost a
    stage."""
    for k in (128, 384, 4096, 21760, 53248):
        known = candidates("dense", k)
        assert all(configs.fits(known.at(one, 8, k)) for one in range(len(known.configs)))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("dense", 0, 8, 128), "m is 0; 1 or more"),
        (("dense", 1, 12, 128), "n is 12; a multiple of 8"),
        (("dense", 1, 8, 72), "k is 72; a multiple of 16"),
        (("dense", 1, 8, 128, 1, 0), "num_sms is 0; 1 or more"),
        (("masked", 1, 8, 128, 0), "groups is 0; 1 or more"),
        (("batched", 1, 8, 128), "kind is 'batched'; one of dense, contiguous, masked"),
    ],
)
def test_choose_refuses(arguments, sentence):
    with pytest.raises(InputError, match=sentence):
        choose(*arguments)


def test_weights_that_are_read_once_leave_l2_first():
    for m, expected in ((64, True), (4096, False)):
        assert choose("dense", m, 7168, 16384).stream_b is expected


def test_prediction():
    """4096x2112x7168 in pairs of 128x192 tiles below each other: 16 x 11 pairs on 66 pairs of SMs."""
    found = predict(Config.of("dense", 2112, 7168, 128, 192, share="B", cluster=2), 4096)
    assert found.waves == pytest.approx(176 / 66)
    assert found.last_wave == pytest.approx((176 - 132) / 66)
    two_tiles_scales = 2 * 2 * 256  # of B, two rows each
    assert found.shared_bytes == 2 * 64 * 192 * 2 + 4 * 41 * 1024 + two_tiles_scales
    assert found.l2_bytes == 352 * 56 * ((128 + 96) * 128 + 512)
    operands = 4096 * 7168 + 2112 * 7168 + 4 * 56 * (4096 + 17)
    assert found.memory_bytes == operands + 2 * 4096 * 2112
    assert found.floor_us < found.us
    assert predict(Config.of("dense", 2112, 7168, 128, 192), 4096, num_sms=66).us > found.us * 1.5


def test_prediction_of_a_tail():
    """264 tiles of 128x192 are two waves, 132 tail tiles of 256x64 one more; and where the two overlap."""
    one = Config.of("dense", 2112, 7168, 128, 192, tail_m=256, tail_n=64)
    found = predict(one, 4096)
    assert (found.waves, found.last_wave) == (3.0, 1.0)
    assert found.l2_bytes == 56 * (264 * (320 * 128 + 512) + 132 * (320 * 128 + 1024))
    alone = predict(Config.of("dense", 2112, 7168, 128, 192), 3072)
    assert found.us > alone.us, "the tail's wave costs something"
    assert found.us == pytest.approx(87, rel=0.15), "as measured on an H100"
    # Five tiles for four clusters: the next tile goes to the second cluster. With three, to the fourth.
    assert prediction.busy([(5, 1.0), (3, 10.0)], 4) == 11.0
    assert prediction.busy([(5, 1.0), (4, 10.0)], 4) == 12.0


def test_explain(capsys):
    assert cli.main(["explain", "4096", "2112", "7168"]) == 0
    shown = capsys.readouterr().out
    config = choose("dense", 4096, 2112, 7168)
    assert shown.startswith(f"{config.name}, chosen for m = 4096\n")
    assert f"tile         {explain.tile(config, ' x ')}, {config.consumers} consumer(s)\n" in shown
    measured = (
        r"^measured +[\d.]+, [\d.]+ us with fp8_gemm_dense_2112x7168_\w+.*, which runs on an NVIDIA H100"
    )
    assert re.search(measured, shown, re.M)
    expected = predict(config, 4096)
    assert f"waves        {expected.waves:.2f}, the last one {expected.last_wave:.0%} full\n" in shown
    assert "us by arithmetic alone" in shown and f"{expected.by_state['graph']:.1f} us graph" in shown
    assert re.search(r"^128x192, then 256x64 +2x1 +nothing +yes +4 +3\.00 ", shown, re.M)
    assert explain.main(["300", "7168", "2048", "--kind=masked", "--groups=4", "--sms=78", "--all=2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("fp8_gemm_masked_7168x2048_") and lines[0].endswith("m = 320")
    assert lines[-3].startswith("tile "), "a header and two rows"
    assert cli.main(["explain", "4096", "2113", "7168"]) == 2
    assert capsys.readouterr().err == "gemm_ladder: n is 2113; a multiple of 8 is needed\n"
