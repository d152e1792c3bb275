"""Messages of faults name the cause, the thread and both lines: of asynchronous accesses above all."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np
import pytest
from gemm_ladder import lab
from gemm_ladder.errors import EmulatorError

SOURCE = Path(__file__).with_name("faults_messages.cu")
SEEDS = range(8)


class Said(NamedTuple):
    """What a fault must be, what its message must have, and what its line and the other line must have, as
    regular expressions."""

    what: str
    message: str
    line: str
    other: str | None = None


def text_of(line: str) -> str:
    file, number = line.split(":")
    assert file == SOURCE.name
    return SOURCE.read_text().splitlines()[int(number) - 1]


def faults(kernel: str, *arguments: object, **options: object) -> list[EmulatorError]:
    found = lab.sweep(SOURCE, *arguments, kernel=kernel, seeds=SEEDS, **options)
    assert not found.different
    return list(found.faults.values())


def check(found: list[EmulatorError], said: Said) -> None:
    assert found
    for error in found:
        assert re.fullmatch(said.what, error.what), error
        assert re.search(said.message, str(error)), error
        assert re.search(said.line, text_of(error.line)), error
        assert not said.other or re.search(said.other, text_of(error.other_line)), error


# ------------------------------------------------------------------------------------------------- cp.async

UNKNOWN = (
    r"reads shared memory at 0x\w+ \(s\[\d\d?\]\), which a cp.async of thread \d\d? of block 0 writes, "
    r"and nothing "
)
COPY, READ = r"ptx::cp_async_cg", r"= s\[threadIdx"
COPIES = {
    1: Said(
        "data_race", UNKNOWN + r".*it is in no group that cp.async.wait_group could wait for", READ, COPY
    ),
    2: Said("data_race", UNKNOWN + r".*its thread has not waited for it: .* or its N leaves the", READ, COPY),
    3: Said(
        "data_race", UNKNOWN + r".*(not waited for it: .* after the barrier|behind that wait)", READ, COPY
    ),
    4: Said("data_race", r"(reads|writes) shared memory .* and nothing orders the two", f"{READ}|{COPY}"),
}


@pytest.mark.parametrize("kind", [0, *COPIES])
def test_copies_of_threads(kind: int) -> None:
    x, y = np.arange(256, dtype=np.float32), np.zeros(256, np.float32)
    found = faults("copies", x, y, kind, block=64)
    check(found, COPIES[kind]) if kind else None
    assert len(found) == (len(SEEDS) if kind else 0)


# ------------------------------------------------------------------------------------------------ TMA stores

ISSUE, FILL, OVERWRITES = (
    "_2d_store",
    r"st_shared\(tile",
    r"which a TMA store of warp 1 (may still read|reads)",
)
STORES = {
    1: Said(
        "missing_proxy_fence",
        r"block 0, warp 1, lane 0: TMA store reads .* thread \d+ of block 0",
        ISSUE,
        FILL,
    ),
    2: Said(
        "released_too_early|data_race",
        OVERWRITES + ".*: it is in no group .* cp.async.bulk.commit_group is missing",
        FILL,
        ISSUE,
    ),
    3: Said("released_too_early|data_race", OVERWRITES + ".*has not waited for it", FILL, ISSUE),
    4: Said(
        "released_too_early|data_race",
        OVERWRITES
        + ".*(has not waited|behind that wait)|TMA store reads .* a barrier is missing between them",
        f"{FILL}|{ISSUE}",
        f"{FILL}|{ISSUE}",
    ),
    5: Said("uncommitted_store", "warp 1, lane 0: exits with a TMA store that was never committed", ISSUE),
}


@pytest.mark.parametrize("kind", [0, *STORES])
def test_stores_of_the_copy_engine(kind: int) -> None:
    out = np.zeros((128, 32), np.float32)
    found = faults("stores", lab.tensor_map(out, (64, 32), 128), kind, shared_bytes=64 * 128)
    check(found, STORES[kind]) if kind else None
    assert bool(found) == bool(kind)


# --------------------------------------------------------------------------------------- a ring, and WGMMAs

LOAD, WGMMA = "cp_async_bulk_tensor_2d|arrive_expect_tx", r"ptx::wgmma<|advance\("
RINGS = {
    1: Said(
        "released_too_early|data_race|read_during_load|deadlock",
        r"full mbarrier is missing, has the wrong parity, or is one lane's|the phase before, and returned at "
        "once|wrong parity",
        f"{LOAD}|{WGMMA}|wait|fence",
    ),
    2: Said(
        "data_race|released_too_early|too_many_arrivals|deadlock",
        r"that of warp 4 of block 0, .* counts fewer arrivals than there are|count is too small"
        r"|released 0\) .* it is in phase 32 with 4 of 4",
        f"{LOAD}|{WGMMA}|wait",
    ),
    3: Said("data_race|write_during_load", r"an earlier TMA load .* that of warp 4 of block 0", LOAD, LOAD),
    4: Said("divergent_warp", "executes wgmma without wgmma.fence, which other lanes", WGMMA, "wgmma_fence"),
    5: Said(
        "unfinished_load", r"warp 4, lane 0: block 0 ends while .* mbarrier 0x\w+ \(loaded \d\)", "tensor_2d"
    ),
    6: Said("mbarrier_not_visible", r"TMA load on mbarrier 0x\w+ \(loaded 0\), which the", "tensor_2d"),
    7: Said(
        "read_during_load|data_race|missing_proxy_fence|released_too_early",
        r"mbarrier 0x\w+ \(loaded 0\)|TMA load overwrites",
        f"ld_shared|{WGMMA}|{LOAD}",
    ),
}


def ring(kind: int, blocks: int = 6) -> tuple[list[EmulatorError], np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    a, b = (rng.integers(-4, 5, (64, 64 * blocks)).astype(ml_dtypes.bfloat16) for _ in range(2))
    d = np.zeros((64, 64), np.float32)
    maps = [lab.tensor_map(x, (64, 64), 128) for x in (a, b)]
    shared = 4 * 64 * 128 + 4 * 8
    found = faults("ring", *maps, d, blocks, kind, block=160, shared_bytes=shared)
    return found, d, a.astype(np.float32) @ b.astype(np.float32).T


@pytest.mark.parametrize("kind", RINGS)
def test_a_ring_of_stages(kind: int) -> None:
    check(ring(kind)[0], RINGS[kind])


@pytest.mark.parametrize("kind", [0, 8])
def test_a_fence_is_needed_only_after_an_access_to_the_accumulators(kind: int) -> None:
    """PTX asks for wgmma.fence between a thread's access to registers and a WGMMA; a wait is no access."""
    found, d, expected = ring(kind)
    assert not found
    np.testing.assert_array_equal(d, expected)


# --------------------------------------------------------------------------------- other blocks of a cluster


@pytest.mark.parametrize("past", [1, 8, 40])
def test_an_access_past_another_blocks_shared_memory(past: int) -> None:
    found = faults("reads_past", np.zeros(64, np.float32), past, grid=2, block=32)
    message = r"reads 4 bytes of shared memory, \d+ bytes behind the end of block [01]'s"
    check(found, Said("out_of_bounds", message, "map_shared_rank"))


def test_an_asynchronous_store_that_nobody_waits_for() -> None:
    """In blocks of 40 threads, whose second warp is not full."""
    found = faults("stores_async", np.zeros(80, np.float32), grid=2, block=40)
    message = (
        r"which a st.async of thread [123]?\d of block [01] writes, .*: this thread has not waited for "
        r"mbarrier 0x\w+ \(given\)"
    )
    check(found, Said("data_race", message, "39 - threadIdx", "st_async"))


# -------------------------------------------------------------------------- warps that must act together

ALONE = {
    "registers": (256, Said("divergent_warpgroup", "block 0, warp 4: the block ends with", "setmaxnreg")),
    "shared_barrier": (
        256,
        Said(
            "data_race", r"; barrier 1 was completed by warps [\d ]+, of several warpgroups", "bar_sync|s\\["
        ),
    ),
    "barriers_of_halves": (
        64,
        Said("divergent_warp", r"executes __syncthreads\(\), and other lanes of its warp", "__syncthreads"),
    ),
    "barriers_of_one_line": (
        64,
        Said(
            "divergent_warp", r"executes __syncthreads\(\), and other lanes of its warp", "[?] __syncthreads"
        ),
    ),
    "named_barriers_of_one_line": (
        64,
        Said("divergent_warp", r"executes bar.sync, and other lanes of its warp", "[?] ptx::bar_sync"),
    ),
    "shuffles_of_halves": (
        32,
        Said("divergent_warp", r"executes shfl.sync.\w+ while its warp executes shfl.sync.\w+", "__shfl"),
    ),
    "votes_of_halves": (
        32,
        Said(
            "divergent_warp",
            r"executes vote.sync.a\w+ while its warp executes vote.sync.a\w+",
            "a(ny|ll)_sync",
        ),
    ),
    "ends_early": (
        128,
        Said("deadlock", r"103 of 104 threads have arrived \(24 of the block's have ended\)", "sync|wait"),
    ),
}


@pytest.mark.parametrize("kernel", ALONE)
def test_warps_that_do_not_act_together(kernel: str) -> None:
    threads, said = ALONE[kernel]
    check(faults(kernel, np.zeros(256, np.float32), block=threads), said)


def test_two_blocks_that_write_one_element() -> None:
    found = faults("columns", np.zeros((5, 48), np.float32), 48, grid=2)
    message = r"writes y\[\d, \d+\], which block [01] has written: .*a check of the column is missing"
    check(found, Said("written_twice", message, "= 1;"))
