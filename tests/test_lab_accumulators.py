"""The stepper's accumulators: what WGMMAs have computed after each wait."""

from __future__ import annotations

import io

import ml_dtypes
import numpy as np
import pytest
from gemm_ladder import lab
from gemm_ladder.errors import InputError
from gemm_ladder.lab.viewer.stepper import Terminal
from gemm_ladder.ref.emulator import interface

# Two warpgroups of 64 rows. Each adds up 4 steps of K in sums[0], 4 others in sums[1], and waits after each.
SOURCE = """
#include "layout.cuh"
#include "mma.cuh"
#include "ptx.cuh"
using ptx::Type;
constexpr int kN = 48, kTileA = 128 * 128, kTileB = kN * 128;
__global__ void steps(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, float* d) {
    const uint32_t smem = ptx::shared_memory(), tiles_b = smem + 2 * kTileA, full = tiles_b + 2 * kTileB;
    if (threadIdx.x == 0) {
        ptx::mbarrier_init(full, 1);
        ptx::fence_mbarrier_init();
        ptx::mbarrier_arrive_expect_tx(full, 2 * (kTileA + kTileB));
        for (int block = 0; block < 2; ++block) {
            ptx::cp_async_bulk_tensor_2d(smem + block * kTileA, &a, full, block * BOX, 0);
            ptx::cp_async_bulk_tensor_2d(tiles_b + block * kTileB, &b, full, block * BOX, 0);
        }
    }
    __syncthreads();
    ptx::mbarrier_wait_parity(full, 0);
    ptx::Accumulator<Type::TYPE_D> sums[2][ptx::kWgmmaRegisters<Type::TYPE_D, kN>];
    const uint32_t rows = smem + threadIdx.x / 128 * 64 * 128;
    for (int step = 0; step < 8; ++step) {
        const uint32_t block = step / 4, k = step % 4;
        const uint64_t of_a = advance(smem_descriptor(rows + block * kTileA), 32 * k);
        const uint32_t k_of_b = step == WRONG ? k + 1 : k;
        const uint64_t of_b = advance(smem_descriptor(tiles_b + block * kTileB), 32 * k_of_b);
        ptx::wgmma_fence();
        ptx::wgmma<Type::TYPE_D, Type::TYPE, Type::TYPE, kN>(sums[block], of_a, of_b, k != 0);
        ptx::wgmma_commit_group();
        ptx::wgmma_wait_group<0>();
    }
    d[threadIdx.x] = static_cast<float>(sums[0][0]) + static_cast<float>(sums[1][0]);
}
"""
N, STEPS = 48, 8
CASES = {
    "bf16": ("f32", ml_dtypes.bfloat16, np.float32),
    "f16": ("f16", np.float16, np.float16),
    "s8": ("s32", np.int8, np.int32),
}


def stepper(type_ab: str, wrong: int = -1) -> tuple[lab.Stepper, np.ndarray, np.ndarray]:
    """A recorded run, and A and B as small integers, whose sums are exact in all types."""
    type_d, dtype, _ = CASES[type_ab]
    elements = 128 // np.dtype(dtype).itemsize
    random = np.random.default_rng(0)
    a, b = (random.integers(-3, 4, (rows, 2 * elements)) for rows in (128, N))
    maps = [lab.tensor_map(x.astype(dtype), (len(x), elements), swizzle=128) for x in (a, b)]
    defines = {"TYPE": type_ab, "TYPE_D": type_d, "BOX": elements, "WRONG": wrong}
    shared = 2 * 128 * (128 + N) + 8
    d = np.zeros(256, np.float32)
    result = lab.run(SOURCE, *maps, d, block=256, shared_bytes=shared, record=True, seed=3, defines=defines)
    return lab.Stepper(result), a, b


def product(a: np.ndarray, b: np.ndarray, step: int) -> np.ndarray:
    """What a block's accumulator is to hold after a step of it, [128, N]."""
    size = a.shape[1] // STEPS
    k = slice(step // 4 * 4 * size, (step + 1) * size)
    return a[:, k] @ b[:, k].T


@pytest.mark.parametrize("type_ab", CASES)
def test_every_step_holds_the_product(type_ab: str) -> None:
    step, a, b = stepper(type_ab)
    assert [(one.warpgroup, one.number, one.n) for one in step.accumulators] == [
        (warpgroup, number, N) for warpgroup in (0, 1) for number in (0, 1)
    ]
    assert step.accumulator() is None and step.accumulator(1, 1) is None
    for warp in (0, 5):
        rows = slice(warp // 4 * 64 + warp % 4 * 16, warp // 4 * 64 + warp % 4 * 16 + 16)
        step.event = 0
        for k in range(STEPS):
            step.next("wgmma", warp=warp)
            flying = step.accumulator(warp // 4, k // 4)
            assert flying.shape == (64, N) and flying.dtype == CASES[type_ab][2]
            mine = flying[warp % 4 * 16 : warp % 4 * 16 + 16]
            assert (mine == 0x7FC00000 if type_ab == "s8" else np.isnan(mine)).all()
            step.next("wgmma_pass", warp=warp)
            mine = step.accumulator(warp // 4, k // 4)[warp % 4 * 16 : warp % 4 * 16 + 16]
            assert (mine == product(a, b, k)[rows]).all(), (warp, k)
    step.to_fault()  # the end
    for number, last in ((0, 3), (1, 7)):
        whole = np.concatenate([step.accumulator(warpgroup, number) for warpgroup in (0, 1)])
        assert (whole == product(a, b, last)).all()


def test_the_first_wrong_step() -> None:
    """A WGMMA with a wrong descriptor: all sums before it are right, and none after it."""
    wrong = 5
    step, a, b = stepper("bf16", wrong)
    right = []
    for k in range(STEPS):
        step.next("wgmma_pass", warp=2)
        right.append((step.accumulator(0, k // 4)[32:48] == product(a, b, k)[32:48]).all())
    assert right == [k < wrong for k in range(STEPS)]


def test_what_the_stepper_says_of_them() -> None:
    step, _, _ = stepper("f16")
    terminal = Terminal(step)
    terminal.stdout = io.StringIO()
    terminal.onecmd("accumulator")
    step.next("wgmma", warp=1)
    assert "block 0, warpgroup 0, accumulator 0: 64 x 48 of FP16, in flight in warp" in step.state()
    step.to_fault()
    assert "block 0, warpgroup 1, accumulator 1: 64 x 48 of FP16, complete" in step.state()
    for line in ("accumulator 1 1", "a 2", "accumulator x"):
        terminal.onecmd(line)
    said = terminal.stdout.getvalue()
    for words in (
        "No WGMMA has used it yet.",
        "64 x 48, float16:\n[[",
        "no accumulator 0 of warpgroup 2 in block 0; it has warpgroup 0, accumulator 0; warpgroup 0, a",
        "may have a warpgroup's number",
    ):
        assert words in said, said
    with pytest.raises(InputError, match="no accumulator 7 of warpgroup 0"):
        step.accumulator(0, 7)


def test_a_launch_keeps_a_limited_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first ones: here those of 9 waits of a warp, 16 rows of N float32 values each."""
    monkeypatch.setattr(interface, "KEPT_BYTES", 10 * 16 * N * 4 - 1)
    step, _, _ = stepper("bf16")
    assert sum(len(one.uses[warp]) for one in step.accumulators for warp in range(4)) == 8 * STEPS
    kept = [use for one in step.accumulators for uses in one.uses for use in uses if use.values is not None]
    first = sorted(use.end for one in step.accumulators for uses in one.uses for use in uses)[:9]
    assert sorted(use.end for use in kept) == first
    with pytest.raises(InputError, match="were left out: the emulator keeps"):
        step.to_fault().accumulator()
