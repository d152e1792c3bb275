"""The production kernels themselves, on both machines: every family of configurations, hostile layouts, fuzz.

test_rungs.py has what s9_production has in common with the other rungs, test_api.py the public functions.
"""

from __future__ import annotations

import os
import subprocess
import sys
import zlib
from pathlib import Path

import gemm_ladder as gl
import numpy as np
import pytest
import torch
from cases import place
from families import (
    ALIGNED_TO_64,
    CONTIGUOUS,
    DENSE,
    DEVICE,
    FAMILIES,
    MASKED,
    PSUM,
    TAILS,
    check_contiguous,
    launch,
    name,
    run_dense,
)
from gemm_ladder.arguments import GroupedArgs
from gemm_ladder.lab.operands import normal
from gemm_ladder.lab.surroundings import UNWRITTEN
from gemm_ladder.precompiling import build_all
from gemm_ladder.production import config as configs
from gemm_ladder.production import launching, prediction
from gemm_ladder.production.candidates import Candidates
from gemm_ladder.production.config import Config
from gemm_ladder.ref import emulator
from grouped_cases import BLOCK, contiguous, masked, psum

FUZZ = {"emulator": int(os.environ.get("GEMM_LADDER_FUZZ", "8")), "gpu": 60}  # configurations


CASES_EACH = {"emulator": 3, "gpu": 40}


INT_MAX = 2**31 - 1

# Rows in few of many groups: the scheduler passes over the others eight at a time.
SPARSE = (
    [0] * 9 + [3] + [0] * 7 + [1, 2] + [0] * 8,
    [1] + [0] * 15 + [2],
    [0] * 8 + [1] + [0] * 16,
    [0] * 17,
)


LESSONS = Path(__file__).resolve().parents[1] / "lessons"


@pytest.mark.parametrize("config", FAMILIES, ids=name)
def test_launch_is_what_the_configuration_says(config):
    """Config computes the same shared memory, threads and cluster as geometry.cuh and start.cuh."""
    args = GroupedArgs(m=300, n=config.n, k=config.k, sfa_stride=300, num_sms=132, groups=1, groups_a=1)
    with gl.emulator(dry=True) as run:
        assert emulator.launch(config.compile("emulator").lib, args) is None
    (asked,) = run.launches
    assert (asked.shared_bytes, asked.cluster) == (config.shared_bytes, config.cluster)
    assert (asked.threads, asked.blocks_an_sm) == (128 * (1 + config.consumers), config.blocks_an_sm)


@pytest.mark.parametrize("config", DENSE, ids=name)
@pytest.mark.parametrize("m", [1, 130, 300])
def test_dense(config, m, machine):
    run_dense(config, m, machine, seed=m)
    run_dense(config, m, machine, seed=m + 1, num_sms=config.cluster * 3, exact=True)


@pytest.mark.parametrize("config", TAILS, ids=name)
@pytest.mark.parametrize(("m", "num_sms"), [(300, 4), (700, 8), (513, 10)])
def test_rows_left_after_whole_waves(config, m, num_sms, machine):
    """The last rows get the tail tile. run_family's call has such rows, too, for the sanitizer."""
    assert len(config.parts(m, num_sms)) == len(config.parts(300, 2 * config.cluster)) == 2
    run_dense(config, m, machine, seed=m, num_sms=num_sms)


@pytest.mark.parametrize("config", TAILS, ids=name)
@pytest.mark.parametrize(("m", "num_sms"), [(300, 4), (700, 8), (512, 4), (60, 9)])
def test_rows_are_dealt_out_as_the_configuration_says(config, m, num_sms, monkeypatch):
    """Config.parts agrees with deal() of start.cuh, and clusters get the tiles of both sizes in turn, as if
    they were one list."""
    monkeypatch.syspath_prepend(LESSONS)
    from workshop import workbench_production

    tiles, begin = workbench_production.walk(config, m, num_sms, device="cpu"), 0
    for one, rows in config.parts(m, num_sms):
        mine = tiles[(tiles["tile_m"] == one.tile_m) & (tiles["tile_n"] == one.tile_n)]
        assert len(mine) == one.units(rows) * one.cluster
        assert set(mine["row"]) == set(range(begin, begin + rows, one.tile_m))
        begin += rows
    made = [np.sum(tiles["block"] == block) for block in range(config.cluster * config.at_once(num_sms))]
    assert made == sorted(made, reverse=True) and made[0] - made[-1] <= 1


@pytest.mark.parametrize(
    ("m", "n", "k", "fields", "first"),
    [
        (512, 64 * 12, 128, {}, "down"),  # up to group_m units below each other
        (513, 64 * 12, 128, {}, "aside"),
        (513, 64 * 11, 128, {}, "down"),  # not many side by side
        (513, 64 * 12, 65536, {}, "down"),  # A is too large to be loaded again for each narrow band
        (513, 64 * 11, 65536, {"group_m": 2}, "aside"),  # bands as wide as they would be tall
        (513, 64 * 12, 128, {"group_n": 0}, "down"),
    ],
)
def test_the_order_of_units(m, n, k, fields, first, monkeypatch):
    """Which way consecutive tiles go, and that prediction.py expects the same."""
    monkeypatch.syspath_prepend(LESSONS)
    from workshop import workbench_production

    config = Config.of("dense", n, k, 64, 64, **{"group_m": 8, "group_n": 2} | fields)
    tiles = workbench_production.walk(config, m, num_sms=1, device="cpu")
    assert len(tiles) == len(set(zip(tiles["row"], tiles["column"], strict=True))) == config.units(m)
    after_one = (int(tiles["row"][1]), int(tiles["column"][1]))
    assert after_one == ((64, 0) if first == "down" else (0, 64))
    band = config.group_n if first == "aside" else min(config.group_m, -(-m // 64))
    after_band = (int(tiles["row"][band]), int(tiles["column"][band]))
    assert after_band == ((0, 64) if first == "down" else (64, 0))
    found = prediction.work(Candidates((config,)).columns, np.array([float(m)]), "dense", n, k, 1, 132)
    assert found["share_b" if first == "down" else "share_a"] == [band]


@pytest.mark.parametrize("config", DENSE, ids=name)
def test_repeats_its_bits(config, machine):
    """With split-K, too, where the order in which thread blocks finish differs from run to run."""
    operands = normal(np.random.default_rng(3), 100, config.n, config.k)
    found = []
    for seed in range(4):
        placed = place(operands, DEVICE[machine])
        with gl.emulator(seed=seed):
            launching.launch(config, placed.lhs, placed.rhs, placed.out)
        found.append(placed.bits())
    for bits in found[1:]:
        np.testing.assert_array_equal(bits, found[0])


@pytest.mark.parametrize("config", CONTIGUOUS, ids=name)
@pytest.mark.parametrize("counts", [[100, 0, 128, 130], [0, 0, 5], [300], [128, 512, 128]], ids=str)
def test_contiguous(config, counts, machine):
    call = contiguous(counts, config.n, config.k, DEVICE[machine], padding=2)
    launch(config, call, seed=len(counts), num_sms=config.cluster * 2)
    check_contiguous(call)


@pytest.mark.parametrize("config", [one for one in CONTIGUOUS if one.consumers_m == 2], ids=name)
def test_half_a_block_of_padding(config, machine):
    """A consumer whose 64 rows are all padding multiplies nothing; its rows become zeros."""
    call = contiguous([60, 128, 190], config.n, config.k, DEVICE[machine])
    launch(config, call, num_sms=config.cluster)
    halves = call.rows.view(-1, 64)
    padding = (halves == -1).all(1)
    assert padding.sum() == 2
    assert not call.out.view(len(halves), -1)[padding].any()
    check_contiguous(call)


@pytest.mark.parametrize("config", MASKED, ids=name)
@pytest.mark.parametrize(
    ("counts", "max_m"),
    [([5, 0, 100, 130], 130), ([0, 0, 64], 64), ([1, 257], 300), ([0, 0], 70), *((one, 3) for one in SPARSE)],
    ids=str,
)
def test_masked(config, counts, max_m, machine):
    """max_m is no multiple of the tile, so a group's last tile reaches into the next group's rows, which must
    not be written."""
    call = masked(counts, max_m, config.n, config.k, DEVICE[machine])
    launch(config, call, seed=max_m, num_sms=config.cluster * 2)
    call.check(exact=False)


@pytest.mark.parametrize("config", CONTIGUOUS, ids=name)
@pytest.mark.parametrize("index", [3, 1000, INT_MAX, -2, -INT_MAX - 1])
def test_an_expert_that_does_not_exist(config, index, machine):
    """Rows with such an index become zeros, the others are right, and nothing else is read or written."""
    call = contiguous([128, 128, 128], config.n, config.k, DEVICE[machine])
    call.rows[BLOCK : 2 * BLOCK] = index
    call.expected[BLOCK : 2 * BLOCK] = 0
    launch(config, call)
    call.check(exact=False)


@pytest.mark.parametrize("config", MASKED, ids=name)
@pytest.mark.parametrize(("given", "meant"), [(131, 130), (INT_MAX, 130), (-1, 0), (-INT_MAX - 1, 0)])
def test_a_count_that_is_none(config, given, meant, machine):
    """A count above max_m is taken for max_m, a negative one for 0."""
    call = masked([7, meant, 64], 130, config.n, config.k, DEVICE[machine])
    call.rows[1] = given
    launch(config, call)
    call.check(exact=False)


@pytest.mark.parametrize("config", ALIGNED_TO_64, ids=name)
@pytest.mark.parametrize("counts", [[100, 0, 64, 130], [0, 0, 5], [64, 192, 65]], ids=str)
def test_contiguous_aligned_to_64(config, counts, machine):
    call = contiguous(counts, config.n, config.k, DEVICE[machine], padding=3, block=64)
    launch(config, call, seed=len(counts), num_sms=config.cluster * 2)
    check_contiguous(call, block=64)


@pytest.mark.parametrize("config", PSUM, ids=name)
@pytest.mark.parametrize(
    ("counts", "behind"),
    [
        *(([100, 0, 128, 130], 300), ([0, 0, 5], 0), ([300], 20), ([64, 1, 65, 7, 129], 200), ([0, 0], 70)),
        *((one, 30) for one in SPARSE),
    ],
    ids=str,
)
def test_psum(config, counts, behind, machine):
    """Padding becomes zeros, up to the end of D; rows behind that of the last group are left as they were."""
    call = psum(counts, config.n, config.k, DEVICE[machine], config.alignment, behind)
    launch(config, call, seed=behind, num_sms=config.cluster * 2)
    call.check(exact=False)


@pytest.mark.parametrize("config", PSUM, ids=name)
@pytest.mark.parametrize("end", [-INT_MAX - 1, -1, 0, 100_000, INT_MAX])
def test_an_end_that_is_none(config, end, machine):
    """A group that ends before it begins has no rows, one that ends behind A ends with it; nothing else is
    read or written, and the groups ahead are right."""
    call = psum([130, 70, 64], config.n, config.k, DEVICE[machine], config.alignment)
    call.rows[1] = end
    launch(config, call)
    call.out[130:].view(torch.int16).fill_(UNWRITTEN)
    call.expected[130:] = np.nan
    call.check(exact=False)


@pytest.mark.parametrize("config", [CONTIGUOUS[1], MASKED[1], PSUM[0]], ids=name)
def test_touches_nothing_outside_its_tensors(config):
    """Nor reads anything outside. The call runs in a process of its own, which such a read would end."""
    run = subprocess.run([sys.executable, __file__, config.kind], capture_output=True, text=True)
    assert run.stdout.endswith("done\n"), f"exit status {run.returncode}\n{run.stdout}{run.stderr}"


def fenced_call(kind: str, at_end: bool) -> None:
    """A grouped call on the emulator with every tensor between pages without access."""
    from fenced_memory import fenced

    config = {"contiguous": CONTIGUOUS[1], "masked": MASKED[1], "psum": PSUM[0]}[kind]
    n, k = config.n, config.k
    call = {
        "contiguous": lambda: contiguous([128, 64, 0], n, k),
        "masked": lambda: masked([5, 0, 68, 68], 68, n, k),
        "psum": lambda: psum([5, 0, 68, 68], n, k),
    }[kind]()

    def between_fences(tensor: torch.Tensor) -> torch.Tensor:
        whole = tensor.mT if tensor is call.lhs[1] else tensor  # A's scales are contiguous transposed
        whole = whole.view(torch.uint8) if whole.dtype == torch.float8_e4m3fn else whole
        copy = torch.from_numpy(fenced(whole.numpy(), at_end))
        return copy.mT if tensor is call.lhs[1] else copy

    a, b = (between_fences(x).view(torch.float8_e4m3fn) for x in (call.lhs[0], call.rhs[0]))
    out = between_fences(call.out.view(torch.int16)).view(torch.bfloat16)
    lhs, rhs = (a, between_fences(call.lhs[1])), (b, between_fences(call.rhs[1]))
    launching.launch(config, lhs, rhs, out, between_fences(call.rows))
    call.out.copy_(out)
    check_contiguous(call) if kind == "contiguous" else call.check(exact=False)


# --------------------------------------------------------------------------------------------------- fuzz


def random_config(rng: np.random.Generator) -> Config:
    """Any configuration that keeps the rules, for a small n and k."""
    while True:
        kind = rng.choice(["dense", "contiguous", "masked", "psum"])
        share = rng.choice(["nothing", "A", "B", "K"])
        stream_b = bool(rng.integers(2))
        config = Config.of(
            str(kind),
            8 * int(rng.integers(1, 60)),
            16 * int(rng.integers(1, 80)),
            int(rng.choice([64, 128, 256])),
            16 * int(rng.integers(1, 17)),
            share=str(share),
            cluster=1 if share == "nothing" else int(rng.choice([2, 4])),
            group_m=int(rng.integers(1, 10)),
            group_n=int(rng.integers(0, 5)),
            stream_b=stream_b,
            prefetch=int(rng.integers(12)) if stream_b else 0,
            tail_m=(tail_m := int(rng.choice([0, 64, 128, 256]))),
            tail_n=16 * int(rng.integers(1, 17)) if tail_m else 0,
            alignment=int(rng.choice([64, 128, 192, 256])) if kind in ("contiguous", "psum") else BLOCK,
            **({"blocks_an_sm": 2, "consumers_m": 1, "consumers_n": 1} if rng.integers(4) == 0 else {}),
        )
        if configs.fits(config):
            return config


def random_call(config: Config, rng: np.random.Generator, machine: str) -> None:
    num_sms, seed = int(rng.integers(1, 12)), int(rng.integers(2**31))
    device, n, k = DEVICE[machine], config.n, config.k
    if config.kind == "dense":
        run_dense(config, int(rng.integers(1, 400)), machine, seed, num_sms, exact=bool(rng.integers(2)))
        return
    groups = int(rng.integers(1, 7))
    largest = int(rng.choice([3, 130, 260]))
    counts = [int(rng.integers(0, largest + 1)) * int(rng.integers(4) > 0) for _ in range(groups)]
    if config.kind == "masked":
        call = masked(counts, max(1, *counts, int(rng.integers(1, 300))), n, k, device)
        launch(config, call, seed, num_sms)
        call.check(exact=False)
    elif config.kind == "psum":
        call = psum(counts, n, k, device, config.alignment, behind=int(rng.integers(300)))
        launch(config, call, seed, num_sms)
        call.check(exact=False)
    else:
        block = config.alignment
        call = contiguous(counts, n, k, device, padding=int(rng.integers(3)), block=block)
        launch(config, call, seed, num_sms)
        check_contiguous(call, block)


@pytest.mark.slow
def test_fuzz(machine):
    """Random configurations, each at random sizes and layouts. The same on every run."""
    rng = np.random.default_rng(zlib.crc32(machine.encode()))
    drawn = [random_config(rng) for _ in range(FUZZ[machine])]
    build_all(drawn, "cuda" if machine == "gpu" else "emulator")
    for config in drawn:
        for case in range(CASES_EACH[machine]):
            try:
                random_call(config, rng, machine)
            except Exception as error:
                raise AssertionError(f"case {case} of {config}") from error


if __name__ == "__main__":
    import faulthandler

    faulthandler.enable()
    for at_end in (True, False):
        print("the tensors end at a fence" if at_end else "the tensors begin at a fence", flush=True)
        fenced_call(sys.argv[1], at_end)
    print("done")
