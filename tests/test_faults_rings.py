"""What the emulator says of mistakes in a ring of stages, as somebody makes them who writes a first one."""

from __future__ import annotations

import re

import ml_dtypes
import numpy as np
import pytest
from gemm_ladder import lab

# D = A B^T of one tile, in BF16. Warps 0 to 3 multiply, warp 4 loads.
SOURCE = """
#include "layout.cuh"
#include "mma.cuh"
#include "ptx.cuh"

constexpr int kStages = 2, kTile = 64 * 128;

__global__ void __launch_bounds__(160)
    ring(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, float* d, int blocks) {
    const uint32_t smem = ptx::shared_memory();
    __shared__ uint64_t filled[kStages], released[kStages];
    const auto at = [](uint64_t* barrier) { return uint32_t(__cvta_generic_to_shared(barrier)); };
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    if (threadIdx.x == 0) {
        for (int s = 0; s < kStages; ++s) {
            ptx::mbarrier_init(at(&filled[s]), 1);
            ptx::mbarrier_init(at(&released[s]), 4);
        }
        ptx::fence_mbarrier_init();
    }
    __syncthreads();  // begin
    if (warp == 4) {
        if (lane == 0)
            for (int i = 0; i < blocks; ++i) {
                const int s = i % kStages;
                ptx::mbarrier_wait_parity(at(&released[s]), (i / kStages & 1) ^ 1);
                ptx::mbarrier_arrive_expect_tx(at(&filled[s]), 2 * kTile);
                ptx::cp_async_bulk_tensor_2d(smem + s * 2 * kTile, &a, at(&filled[s]), i * 64, 0);
                ptx::cp_async_bulk_tensor_2d(smem + s * 2 * kTile + kTile, &b, at(&filled[s]), i * 64, 0);
            }
        return;
    }
    float sums[32];
    for (int i = 0; i < blocks; ++i) {
        const int s = i % kStages;
        const uint32_t stage = smem + s * 2 * kTile;
        ptx::mbarrier_wait_parity(at(&filled[s]), i / kStages & 1);
        ptx::wgmma_fence();
        for (int k = 0; k < 64; k += 16)
            ptx::wgmma<ptx::Type::f32, ptx::Type::bf16, ptx::Type::bf16, 64>(
                sums, advance(smem_descriptor(stage), 2 * k), advance(smem_descriptor(stage + kTile), 2 * k),
                i + k != 0);
        ptx::wgmma_commit_group();
        ptx::wgmma_wait_group<0>();
        if (lane == 0) ptx::mbarrier_arrive(at(&released[s]));
    }
    for (int i = 0; i < 32; ++i)
        d[accumulator_row(threadIdx.x, i) * 64 + accumulator_column(threadIdx.x, i)] = sums[i];
}
"""
BLOCKS = 6
FILLED, RELEASED = r"mbarrier 0x\w+ \(filled\[[01]\]\)", r"mbarrier 0x\w+ \(released\[[01]\]\)"
PLACE = r"\(\w+\.cu:\d+\)"
# For each mistake: what is changed into what; what all messages have; what at least one of them has.
WRONG = {
    "wrong parity": (
        ("filled[s]), i / kStages & 1)", "filled[s]), (i / kStages & 1) ^ 1)"),
        "wrong parity|this thread has not waited for it",
        rf"this thread's wait for {FILLED} {PLACE} was for parity [01], the phase before, and returned",
    ),
    "parity of the block, not of the stage's use": (
        ("filled[s]), i / kStages & 1)", "filled[s]), i & 1)"),
        "wrong parity",
        rf"wait for {FILLED} to complete.* {PLACE}\n    The phase before has completed, and this ",
    ),
    "first wait of the producer": (
        ("(i / kStages & 1) ^ 1", "i / kStages & 1"),
        r"Nobody has arrived on it yet\.\n  .*\n.*\n  Nobody has begun. The first wait for an empty stage",
        "has to be for parity 1",
    ),
    "too few bytes": (
        ("filled[s]), 2 * kTile)", "filled[s]), kTile)"),
        "expect|nothing had filled it",
        r"phase 0 expected 8192 bytes, and the loads that were issued in it bring 16384",
    ),
    "too many bytes": (
        ("filled[s]), 2 * kTile)", "filled[s]), 3 * kTile)"),
        "In this phase it was told to expect 24576 bytes, and the loads that were issued bring 16384",
        "8192 bytes to come",
    ),
    "no bytes": (
        ("ptx::mbarrier_arrive_expect_tx(at(&filled[s]), 2 * kTile)", "ptx::mbarrier_arrive(at(&filled[s]))"),
        "expect|nothing had filled it",
        "they expect fewer bytes than the loads bring",
    ),
    "a count above the arrivals": (
        ("released[s]), 4)", "released[s]), 5)"),
        rf"{RELEASED} to complete .*with 1 of 5 arrivals.*\n    The last to arrive on it was thread \d+ of "
        rf"block 0 {PLACE}: the count is larger than",
        "The last to arrive",
    ),
    "a count below the arrivals": (
        ("if (lane == 0) ptx::mbarrier_arrive", "ptx::mbarrier_arrive"),
        r"\n    \d+ phases have completed since this thread's last wait for it: there are more|count is",
        "phases have completed",
    ),
    "a producer that ends too early": (
        ("i < blocks; ++i) {\n                const", "i < blocks - 1; ++i) {\n                const"),
        r"warps 0 1 2 3 wait for (.*\n)+  block 0, warp 4 has ended",
        "has ended",
    ),
    "no fence": (
        ("        ptx::fence_mbarrier_init();\n", ""),
        rf"the copy engine cannot see yet: fence.mbarrier_init is missing behind its mbarrier.init {PLACE}",
        "in the thread that executed that",
    ),
    "no barrier": (
        ("    __syncthreads();  // begin\n", ""),
        r"was not initialised; the block has",
        r"the block has none yet, so a __syncthreads\(\) behind mbarrier.init is likely missing",
    ),
    "an mbarrier that is never initialised": (
        ("            ptx::mbarrier_init(at(&released[s]), 4);\n", ""),
        rf"try_wait: {RELEASED} of block 0 was not initialised; the block has {FILLED}, {FILLED}\.",
        "mbarrier.init is missing",
    ),
    "the other stage's address": (
        ("stage = smem + s * 2 * kTile", "stage = smem + (s ^ 1) * 2 * kTile"),
        "the address may be that of another stage|a wait is missing|nothing had filled|comes|came",
        rf"Its last wait was for mbarrier 0x\w+ \(filled\[0\]\) {PLACE}: the address may be that of another",
    ),
    "one lane's wait": (
        (
            "        ptx::mbarrier_wait_parity(at(&filled",
            "        if (lane == 0) ptx::mbarrier_wait_parity(at(&filled",
        ),
        r"__syncwarp\(\)",
        "is one lane's without __syncwarp|after one lane's wait",
    ),
    "no elected lane": (
        ("        if (lane == 0)\n", ""),
        r"lane of this warp|released too early|nothing tells this thread|overwrites",
        r"the arrival before was that of thread 1\d\d of block 0, another lane of this warp. One",
    ),
    "elect in a branch": (
        ("        if (lane == 0)\n", "        if (lane < 5 && ptx::elect_sync())\n"),
        r"block 0, warp 4 waits for elect.sync, which the other lanes of its warp have to execute with it "
        r"(.*\n)+  block 0, warp 4 \(lanes 5 to 31\) has ended",
        "elect.sync",
    ),
    "one stage more than there are": (
        (
            "const int s = i % kStages;\n                ",
            "const int s = i % (kStages + 1);\n                ",
        ),
        "",
        r"not into shared memory: it is where (filled|released)\[2\] would be, and \w+ has 2 elements",
    ),
}


def found_in(source: str, seeds: int = 20) -> tuple[lab.Sweep, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    a, b = (rng.integers(-4, 5, (64, 64 * BLOCKS)).astype(ml_dtypes.bfloat16) for _ in range(2))
    d = np.zeros((64, 64), np.float32)
    maps = [lab.tensor_map(x, (64, 64), 128) for x in (a, b)]
    found = lab.sweep(source, *maps, d, BLOCKS, block=160, shared_bytes=4 * 64 * 128, seeds=seeds)
    return found, d, a.astype(np.float32) @ b.astype(np.float32).T


def test_the_ring_without_a_mistake_is_right() -> None:
    found, d, expected = found_in(SOURCE)
    assert found.sound and not found.notes
    np.testing.assert_array_equal(d, expected)


@pytest.mark.parametrize("mistake", WRONG)
def test_a_mistake_is_named(mistake: str) -> None:
    (right, wrong), all_say, one_says = WRONG[mistake]
    assert SOURCE.count(right) == 1
    faults = found_in(SOURCE.replace(right, wrong))[0].faults.values()
    assert faults
    for fault in faults:
        assert re.search(all_say, str(fault)), fault
    assert any(re.search(one_says, str(fault)) for fault in faults), [str(fault) for fault in faults]
