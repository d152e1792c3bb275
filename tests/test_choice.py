"""The choice of a configuration, and what is expected of one, without a GPU."""

from __future__ import annotations

import re

import pytest
from gemm_ladder import cli
from gemm_ladder.errors import InputError
from gemm_ladder.production import choice, explain, prediction
from gemm_ladder.production import config as configs
from gemm_ladder.production.choice import BUCKETS, bucket, candidates, choose, rows_to_expect
from gemm_ladder.production.config import Config
from gemm_ladder.production.prediction import predict
from measured_choices import CHOSEN, MEASURED, MEASURED_TAILS, WEIGHTS, chosen


@pytest.mark.parametrize(("row", "expected"), CHOSEN.items(), ids=str)
def test_choice(row, expected):
    found = chosen(*row)
    assert (found.tile_m, found.tile_n, found.share) == expected
    assert found.check() is found
    assert found.cluster == (1 if found.share == "nothing" else 2)


@pytest.mark.parametrize(("n", "k"), WEIGHTS)
def test_few_kernels(n, k):
    """A serving process compiles few kernels for one weight, over all batch sizes."""
    found = {choose("dense", m, n, k) for m in range(1, 8193)}
    assert 4 <= len(found) <= 11
    assert found == {choose("dense", m, n, k) for m in choice.rows_up_to("dense", 8192, 1)}


@pytest.mark.parametrize(("kind", "groups"), [("dense", 1), ("contiguous", 8), ("masked", 8)])
@pytest.mark.parametrize("max_m", [1, 64, 65, 1000, 5000, 20000])
def test_rows_up_to_covers_every_m(kind, groups, max_m):
    """precompile() asks for these rows; the kernel of a call with any m up to max_m must be among theirs."""
    asked = {rows_to_expect(kind, m, groups, None) for m in choice.rows_up_to(kind, max_m, groups)}
    called = {rows_to_expect(kind, m, groups, None) for m in range(1, max_m + 1)}
    assert called <= asked
    hinted = {rows_to_expect("masked", max_m, groups, expected) for expected in range(max_m + 3)}
    assert hinted <= {rows_to_expect("masked", m, 1, None) for m in choice.rows_up_to("masked", max_m, 1)}


def test_bucket():
    assert [bucket(m) for m in (1, 64, 65, 128, 129, 192, 193, 4096, 4097, 12289, 10**9)] == [
        *(64, 64, 128, 128, 192, 192, 256, 4096, 6144, 12288, 12288)
    ]
    assert sorted(set(BUCKETS)) == list(BUCKETS)


def test_choice_repeats():
    before = {row: chosen(*row) for row in CHOSEN}
    choice._choose.cache_clear()
    assert {row: chosen(*row) for row in CHOSEN} == before


@pytest.mark.parametrize("num_sms", [1, 2, 3, 4, 20, 78, 114, 132, 144])
@pytest.mark.parametrize(("kind", "groups", "n", "k"), [("dense", 1, 8, 128), ("masked", 3, 264, 1280)])
def test_any_number_of_sms(kind, groups, n, k, num_sms):
    for m in (1, 64, 100, 1000, 100_000):
        assert choose(kind, m, n, k, groups, num_sms).check()


def test_candidates_are_for_the_rows_of_a_group():
    """In the contiguous layout m counts the rows of all groups; in the masked one those of one group."""
    few = list(candidates("contiguous", 64 * 64, 4096, 7168, 64))
    assert {one.tile_m for one in few} == {64} and all(one.stream_b for one in few if one.share != "B")
    assert {one.tile_m for one in candidates("contiguous", 64 * 4096, 4096, 7168, 64)} == {64, 128, 256}
    assert {one.tile_m for one in candidates("masked", 4096, 4096, 7168, 64)} == {64, 128, 256}


def test_candidates_keep_the_rules():
    found = [
        one for kind in ("dense", "contiguous", "masked") for one in candidates(kind, 512, 2112, 7168, 2)
    ]
    assert len(found) == len(set(found)) > 100
    assert len({one.name for one in found}) == len(found), "tables tell them apart by their names"
    for one in found:
        one.check()
        full = one.shared_bytes + one.stage_bytes > 232448
        full |= one.tile_m == 64 and (one.stages + 1) * one.stage_bytes > configs.MAX_RING
        assert one.stages == configs.MAX_STAGES or full
    assert {one.tile_m for one in found} == {64, 128, 256}
    assert {112, 144, 160} < {one.tile_n for one in found}
    assert {one.share for one in candidates("dense", 4096, 4096, 7168)} == {"nothing", "A", "B"}
    tails = {(one.tail_m, one.tail_n) for one in candidates("dense", 4096, 2112, 7168)}
    assert tails == {(0, 0), *choice.TAILS}
    assert "K" in {one.share for one in candidates("dense", 64, 2112, 7168)}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("dense", 0, 8, 128), "m is 0; 1 or more"),
        (("dense", 1, 12, 128), "n is 12; a multiple of 8"),
        (("dense", 1, 8, 64), "k is 64; a multiple of 128"),
        (("dense", 1, 8, 128, 1, 0), "num_sms is 0; 1 or more"),
        (("masked", 1, 8, 128, 0), "groups is 0; 1 or more"),
        (("batched", 1, 8, 128), "kind is 'batched'; one of dense, contiguous, masked"),
    ],
)
def test_choose_refuses(arguments, sentence):
    with pytest.raises(InputError, match=sentence):
        choose(*arguments)


def test_weights_that_are_read_once_leave_l2_first():
    for m, expected in ((64, True), (128, True), (4096, False)):
        assert choose("dense", m, 7168, 16384).stream_b is expected


@pytest.mark.parametrize(("row", "us"), MEASURED.items(), ids=str)
def test_expected_times(row, us):
    """The model is accurate enough to choose by: within a tenth of the measured time."""
    m, n, k, tile_m, tile_n, share = row
    one = Config.of(
        "dense", n, k, tile_m, tile_n, share=share, cluster=1 + (share != "nothing"), stream_b=m <= tile_m
    )
    assert predict(one, m).us == pytest.approx(us, rel=0.1)


@pytest.mark.parametrize(("row", "us"), MEASURED_TAILS.items(), ids=str)
def test_expected_times_of_tails(row, us):
    m, n, k, tile_m, tile_n, tail_m, tail_n = row
    one = Config.of("dense", n, k, tile_m, tile_n, tail_m=tail_m, tail_n=tail_n)
    assert predict(one, m).us == pytest.approx(us, rel=0.12)


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
    alone = [
        predict(Config.of("dense", 2112, 7168, *tile), rows)
        for *tile, rows in ((128, 192, 3072), (256, 64, 1024))
    ]
    assert found.us / sum(one.us for one in alone) == pytest.approx(1, rel=0.05)
    assert found.us < predict(Config.of("dense", 2112, 7168, 128, 192), 4096).us
    # Five tiles for four clusters: the next tile goes to the second cluster. With three, to the fourth.
    assert prediction.busy([(5, 1.0), (3, 10.0)], 4) == 11.0
    assert prediction.busy([(5, 1.0), (4, 10.0)], 4) == 12.0


def test_explain(capsys):
    assert cli.main(["explain", "4096", "2112", "7168"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("fp8_gemm_dense_2112x7168_128x192_256x64, chosen for m = 4096\n")
    assert "tile         128 x 192, then 256 x 64, 2 consumer(s)\n" in shown
    assert re.search(
        r"^measured +[\d.]+ us with fp8_gemm_dense_2112x7168_\w+.*, which runs on an NVIDIA H100", shown, re.M
    )
    assert "waves        3.00, the last one 100% full\n" in shown
    assert re.search(r"^128x192, then 256x64 +2x1 +nothing +4 +3\.00 ", shown, re.M)
    assert explain.main(["300", "7168", "2048", "--kind=masked", "--groups=4", "--sms=78", "--all=2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("fp8_gemm_masked_7168x2048_") and lines[0].endswith("m = 384")
    assert lines[-3].startswith("tile "), "a header and two rows"
    assert cli.main(["explain", "4096", "2113", "7168"]) == 2
    assert capsys.readouterr().err == "gemm_ladder: n is 2113; a multiple of 8 is needed\n"
