"""The production kernels themselves, on both machines: every family of configurations, hostile layouts, fuzz.

test_rungs.py has what s7_production has in common with the other rungs, test_api.py the public functions.
"""

from __future__ import annotations

import functools
import os
import re
import subprocess
import sys
import zlib
from pathlib import Path

import gemm_ladder as gl
import numpy as np
import pytest
import torch
from cases import UNWRITTEN, normal, place, small_integers
from gemm_ladder.arguments import GemmArgs, GroupedArgs
from gemm_ladder.build import job
from gemm_ladder.errors import InputError, LaunchError
from gemm_ladder.production import config as configs
from gemm_ladder.production import launching, tuner
from gemm_ladder.production.config import Config
from gemm_ladder.production.precompiling import build_all
from gemm_ladder.ref import metrics
from grouped_cases import BLOCK, Grouped, contiguous, masked

DEVICE = {"emulator": "cpu", "gpu": "cuda"}
FUZZ = {"emulator": int(os.environ.get("GEMM_LADDER_FUZZ", "8")), "gpu": 60}  # configurations
CASES_EACH = {"emulator": 3, "gpu": 40}
INT_MAX = 2**31 - 1
LESSONS = Path(__file__).resolve().parents[1] / "lessons"


def family(
    kind: str, tile_m: int, tile_n: int, share: str = "nothing", n: int = 328, **fields: object
) -> Config:
    """A configuration for a ragged n and an odd number of blocks of K."""
    k = 1152 if share == "K" else 384
    fields = {"cluster": 1 if share == "nothing" else 2, **fields}
    return Config.of(kind, n, k, tile_m, tile_n, share=share, **fields)


TAILS = [
    family("dense", 128, 192, n=520, tail_m=256, tail_n=64),
    family("dense", 64, 96, "A", n=520, tail_m=128, tail_n=32),
    family("dense", 64, 112, tail_m=64, tail_n=48, prefetch=1, stream_b=True),
]
DENSE = [
    family("dense", 64, 16, stream_b=True, prefetch=2),
    family("dense", 64, 64, "K", stream_b=True, prefetch=20),
    family("dense", 64, 112, "K", cluster=4, stages=3),
    family("dense", 64, 256, stages=1),
    family("dense", 128, 160, "A"),
    family("dense", 128, 192, "B"),
    family("dense", 256, 128),
    family("dense", 256, 128, "A"),
    family("dense", 128, 256, consumers_m=1, consumers_n=2),
    family("dense", 128, 128, consumers_m=1, blocks_an_sm=2),
    family("dense", 64, 64, "K", cluster=4, blocks_an_sm=2),
    *TAILS,
]
CONTIGUOUS = [
    family("contiguous", 64, 64, stream_b=True, prefetch=1),
    family("contiguous", 128, 144, "A"),
    family("contiguous", 256, 64),
    family("contiguous", 256, 96, "A"),
    family("contiguous", 128, 224, consumers_m=1, consumers_n=2),
    family("contiguous", 128, 128, consumers_m=1, blocks_an_sm=2),
]
MASKED = [
    family("masked", 64, 256, stream_b=True, prefetch=4),
    family("masked", 64, 96, "B", cluster=4),
    family("masked", 128, 112),
    family("masked", 256, 64, "A"),
    family("masked", 128, 256, consumers_m=1, consumers_n=2),
    family("masked", 128, 112, consumers_m=1, blocks_an_sm=2),
]
FAMILIES = (*DENSE, *CONTIGUOUS, *MASKED)


def name(config: Config) -> str:
    twice = "_2" if config.blocks_an_sm > 1 else ""
    tail = f"_{config.tail_m}x{config.tail_n}" if config.tail else ""
    return f"{config.kind}_{config.tile_m}x{config.tile_n}_{config.share}{config.cluster}{twice}{tail}"


def run_dense(
    config: Config, m: int, machine: str, seed: int = 0, num_sms: int = 0, exact: bool = False
) -> None:
    """Launch at m rows, and compare: the bits, but where parts of K are added in another order."""
    fill = small_integers if exact else normal
    operands = fill(np.random.default_rng(m + config.n), m, config.n, config.k)
    placed = place(operands, DEVICE[machine])
    with gl.emulator(seed=seed):
        launching.launch(config, placed.lhs, placed.rhs, placed.out, num_sms=num_sms)
    if config.share != "K" or exact:
        np.testing.assert_array_equal(placed.bits(), operands.expected_bits("s7_production"))
    else:
        found = (placed.bits().astype(np.uint32) << 16).view(np.float32)
        assert metrics.max_row_error(found, operands.exact()) < 1e-2


def launch(config: Config, call: Grouped, seed: int = 0, num_sms: int = 0) -> None:
    with gl.emulator(seed=seed):
        launching.launch(config, call.lhs, call.rhs, call.out, call.rows, num_sms=num_sms)


def check_contiguous(call: Grouped) -> None:
    """Rows of padding inside a block are multiplied or zero: not looked at. Whole blocks of it are zeros."""
    padding = call.rows == -1
    padding &= call.rows[::BLOCK].repeat_interleave(BLOCK) != -1
    call.out.view(torch.int16)[padding] = 0
    call.check(exact=False)


def run_family(config: Config, machine: str) -> None:
    """A call of ragged sizes, with several tiles a block: what test_sanitizer.py looks at."""
    num_sms = config.cluster * 2
    if config.kind == "dense":
        run_dense(config, 300, machine, num_sms=num_sms)
    elif config.kind == "contiguous":
        call = contiguous([100, 0, 128, 130], config.n, config.k, DEVICE[machine], padding=2)
        launch(config, call, num_sms=num_sms)
        check_contiguous(call)
    else:
        call = masked([5, 0, 100, 130], 130, config.n, config.k, DEVICE[machine])
        launch(config, call, num_sms=num_sms)
        call.check(exact=False)


@pytest.mark.parametrize("config", DENSE, ids=name)
@pytest.mark.parametrize("m", [1, 130, 300])
def test_dense(config, m, machine):
    run_dense(config, m, machine, seed=m)
    run_dense(config, m, machine, seed=m + 1, num_sms=config.cluster * 3, exact=True)


@pytest.mark.parametrize("config", TAILS, ids=name)
@pytest.mark.parametrize(("m", "num_sms"), [(300, 4), (700, 8), (513, 10)])
def test_rows_left_after_whole_waves(config, m, num_sms, machine):
    """The last rows have another tile; run_family's call has such rows too, for the sanitizer."""
    assert len(config.parts(m, num_sms)) == len(config.parts(300, 2 * config.cluster)) == 2
    run_dense(config, m, machine, seed=m, num_sms=num_sms)


@pytest.mark.parametrize("config", TAILS, ids=name)
@pytest.mark.parametrize(("m", "num_sms"), [(300, 4), (700, 8), (512, 4), (60, 9)])
def test_rows_are_dealt_out_as_the_configuration_says(config, m, num_sms, monkeypatch):
    """Config.parts, by which a tail is chosen, against deal() of production/start.cuh; clusters take turns
    through both tiles, as if those were one list."""
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


@pytest.mark.parametrize("config", DENSE, ids=name)
def test_repeats_its_bits(config, machine):
    """Also where the blocks of a cluster add up their parts, in whatever order they are ready."""
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
    """A consumer all of whose 64 rows are padding multiplies nothing; its rows become zeros."""
    call = contiguous([60, 128, 190], config.n, config.k, DEVICE[machine])
    launch(config, call, num_sms=config.cluster)
    halves = call.rows.view(-1, 64)
    padding = (halves == -1).all(1)
    assert padding.sum() == 2
    assert not call.out.view(len(halves), -1)[padding].any()
    check_contiguous(call)


@pytest.mark.parametrize("config", MASKED, ids=name)
@pytest.mark.parametrize(
    ("counts", "max_m"), [([5, 0, 100, 130], 130), ([0, 0, 64], 64), ([1, 257], 300), ([0, 0], 70)], ids=str
)
def test_masked(config, counts, max_m, machine):
    """max_m is no multiple of the tile: a group's last tile must not write the next one's first rows."""
    call = masked(counts, max_m, config.n, config.k, DEVICE[machine])
    launch(config, call, seed=max_m, num_sms=config.cluster * 2)
    call.check(exact=False)


@pytest.mark.parametrize("config", CONTIGUOUS, ids=name)
@pytest.mark.parametrize("index", [3, 1000, INT_MAX, -2, -INT_MAX - 1])
def test_an_expert_that_does_not_exist(config, index, machine):
    """Its rows become zeros, the others are right, nothing else is read or written."""
    call = contiguous([128, 128, 128], config.n, config.k, DEVICE[machine])
    call.rows[BLOCK : 2 * BLOCK] = index
    call.expected[BLOCK : 2 * BLOCK] = 0
    launch(config, call)
    call.check(exact=False)


@pytest.mark.parametrize("config", MASKED, ids=name)
@pytest.mark.parametrize(("given", "meant"), [(131, 130), (INT_MAX, 130), (-1, 0), (-INT_MAX - 1, 0)])
def test_a_count_that_is_none(config, given, meant, machine):
    """More than max_m are max_m, fewer than none are none."""
    call = masked([7, meant, 64], 130, config.n, config.k, DEVICE[machine])
    call.rows[1] = given
    launch(config, call)
    call.check(exact=False)


@pytest.mark.parametrize("config", [CONTIGUOUS[1], MASKED[1]], ids=name)
def test_touches_nothing_outside_its_tensors(config):
    """Not even to read it; in a process of its own, which a read outside would end."""
    run = subprocess.run([sys.executable, __file__, config.kind], capture_output=True, text=True)
    assert run.stdout.endswith("done\n"), f"exit status {run.returncode}\n{run.stdout}{run.stderr}"


def fenced_call(kind: str, at_end: bool) -> None:
    """A grouped call on the emulator with every tensor between pages without access."""
    from fenced_memory import fenced

    config = CONTIGUOUS[1] if kind == "contiguous" else MASKED[1]
    n, k = config.n, config.k
    call = contiguous([128, 64, 0], n, k) if kind == "contiguous" else masked([5, 0, 68, 68], 68, n, k)

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
        kind = rng.choice(["dense", "contiguous", "masked"])
        share = rng.choice(["nothing", "A", "B", "K"])
        stream_b = bool(rng.integers(2))
        config = Config.of(
            str(kind),
            8 * int(rng.integers(1, 60)),
            128 * int(rng.integers(1, 10)),
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
    else:
        call = contiguous(counts, n, k, device, padding=int(rng.integers(3)))
        launch(config, call, seed, num_sms)
        check_contiguous(call)


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


# ------------------------------------------------------------------------------------------------- launching


def test_arguments_are_those_in_cpp():
    text = (job.KERNELS / "include" / "args.cuh").read_text()
    fields = re.findall(r"^    (?:const )?\w+[ *]+([\w, ]+);", text, re.M)
    names = [name for line in fields for name in line.split(", ")]
    ours = (*GemmArgs._fields_, *GroupedArgs._fields_)
    assert names == [name for name, _ in ours]


def test_another_n_is_refused():
    placed = place(normal(np.random.default_rng(1), 5, 64, 384))
    with pytest.raises(
        InputError, match="n is 64 and k is 384; 328 and 384, the configuration's, are needed"
    ):
        launching.launch(DENSE[0], placed.lhs, placed.rhs, placed.out)
    assert placed.untouched()


@pytest.mark.parametrize("kind", ["dense", "contiguous", "masked"])
def test_what_the_tuner_measures(kind, machine):
    """Its problems are valid calls, and a right result is taken for right, a wrong one for wrong."""
    operands = tuner.operands_for(kind, 200, 72, 256, 3 if kind != "dense" else 1, DEVICE[machine])
    config = Config.of(kind, 72, 256, 64, 48)
    out = operands.output()
    launching.launch(config, operands.lhs, operands.rhs, out, operands.rows)
    assert operands.errors(out, operands.references()).right
    operands.results(out)[-1][-1] = 0
    assert not operands.errors(out, operands.references()).right


def api_call(kind: str, m: int, n: int, k: int, groups: int) -> tuple:
    """(run, check, out): a call of the public API on the GPU, and what looks at its result."""
    if kind == "dense":
        operands = normal(np.random.default_rng(m), m, n, k)
        placed = place(operands, "cuda")

        def check() -> None:
            values = (placed.bits().astype(np.uint32) << 16).view(np.float32)
            assert metrics.max_row_error(values, operands.exact()) < 1e-2

        return lambda: gl.fp8_gemm_nt(placed.lhs, placed.rhs, placed.out), check, placed.out
    counts = [m // 2 + 3 * group for group in range(groups)]
    if kind == "masked":
        call = masked(counts, m + 3 * groups, n, k, "cuda")
        run = functools.partial(gl.m_grouped_fp8_gemm_nt_masked, call.lhs, call.rhs, call.out, call.rows, m)
        return run, lambda: call.check(exact=False), call.out
    call = contiguous(counts, n, k, "cuda", padding=1)
    run = functools.partial(gl.m_grouped_fp8_gemm_nt_contiguous, call.lhs, call.rhs, call.out, call.rows)
    return run, lambda: check_contiguous(call), call.out


KINDS = [("dense", 1), ("contiguous", 3), ("masked", 3)]


@pytest.mark.gpu
@pytest.mark.parametrize(("kind", "groups"), KINDS)
def test_api_on_a_gpu(kind, groups):
    for m in (1, 64, 100, 700):
        run, check, _ = api_call(kind, m, 2112, 1024, groups)
        run()
        check()


@pytest.mark.gpu
@pytest.mark.parametrize(("kind", "groups"), KINDS)
def test_capture(kind, groups):
    """What is not loaded is refused with the remedy; after that, a captured call may be the first of all."""
    n, k, m = 2112 + 8 * len(kind), 512, 100
    run, check, out = api_call(kind, m, n, k, groups)
    remedy = rf"gemm_ladder\.precompile\(n={n}, k={k}, .*kind='{kind}'\)"
    with pytest.raises(LaunchError, match=remedy), torch.cuda.graph(torch.cuda.CUDAGraph()):
        run()
    assert gl.precompile(n, k, groups=groups, max_m=1024, kind=kind)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    for _ in range(2):
        out.view(torch.int16).fill_(UNWRITTEN)
        graph.replay()
        torch.cuda.synchronize()
        check()


@pytest.mark.gpu
def test_precompile_is_enough():
    """No call for a smaller m compiles."""
    assert len(gl.precompile(1536, 768, max_m=2048)) <= 10
    before = len(launching._libraries)
    for m in (1, 63, 64, 65, 200, 1000, 2048):
        run, check, _ = api_call("dense", m, 1536, 768, 1)
        run()
        check()
    assert len(launching._libraries) == before


@pytest.mark.gpu
def test_set_num_sms():
    gl.set_num_sms(20)
    try:
        run, check, _ = api_call("masked", 300, 1024, 512, 4)
        run()
        check()
    finally:
        gl.set_num_sms(0)


@pytest.mark.gpu
@pytest.mark.slow
def test_tune(monkeypatch, tmp_path):
    """The result is kept, and is what the next call runs."""
    from gemm_ladder.production import tuned

    monkeypatch.setenv("GEMM_LADDER_CACHE", str(tmp_path))
    tuned._table.cache_clear()
    results = gl.tune("dense", 100, 2112, 1024, limit=4)
    assert [one.us for one in results] == sorted(one.us for one in results) and len(results) == 4
    sms = torch.cuda.get_device_properties(0).multi_processor_count
    arguments = ("dense", 100, 2112, 1024, 1, None, sms, torch.cuda.get_device_name(0))
    assert launching.configuration(*arguments) == results[0].config
    monkeypatch.undo()
    tuned._table.cache_clear()


if __name__ == "__main__":
    import faulthandler

    faulthandler.enable()
    for at_end in (True, False):
        print("the tensors end at a fence" if at_end else "the tensors begin at a fence", flush=True)
        fenced_call(sys.argv[1], at_end)
    print("done")
