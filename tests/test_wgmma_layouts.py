"""WGMMA operands in every layout that a descriptor can describe, on the emulator and on a GPU."""

from __future__ import annotations

import numpy as np
import pytest
from gemm_ladder import lab
from gemm_ladder.errors import EmulatorError
from gemm_ladder.ref import layouts, mma
from instruction_units import run_unit, schedules

IMAGE, ROWS, K = 16384, 64, 16
SWIZZLES = {"none": 0, "128B": 1, "64B": 2, "32B": 3}  # as bits 62 and 63 of a descriptor say it
ROW = np.arange(ROWS)[:, None]


def lying(operand: np.ndarray, swizzle: int, mn_major: bool) -> tuple[np.ndarray, int]:
    """An operand [64, 16] of BF16 bits as it lies in shared memory, and its descriptor without the address.

    Without a swizzle, 8 rows of 16 bytes are contiguous; with one, 8 rows of 32, 64 or 128 bytes are. A row
    is along K, or, MN-major, along M or N.
    """
    k = np.arange(K)[None, :]
    row_bytes = 256 >> swizzle if swizzle else 16
    in_row, of_row = (ROW, k) if mn_major else (k, ROW)  # what runs along a row, and which row it is
    # Bytes to the next piece of the same row, and to the next 8 rows.
    if swizzle:
        along, across = leading, stride = 2048, 8 * row_bytes
    elif mn_major:
        along, across = stride, leading = 256, 2048
    else:
        along, across = leading, stride = 2048, 256
    at = (
        in_row * 2 % row_bytes
        + in_row * 2 // row_bytes * along
        + of_row % 8 * row_bytes
        + of_row // 8 * across
    )
    if swizzle:
        at ^= (at >> 7 & (row_bytes // 16 - 1)) << 4
    image = np.zeros(IMAGE // 2, np.uint16)
    image[at // 2] = operand
    assert len(np.unique(at)) == operand.size
    return image, swizzle << 62 | stride >> 4 << 32 | leading >> 4 << 16


def run(machine: str, unit: int, layout_a: tuple[int, bool], layout_b: tuple[int, bool]) -> list[np.ndarray]:
    a, b = OPERANDS
    (image_a, bits_a), (image_b, bits_b) = lying(a, *layout_a), lying(b, *layout_b)
    outs = []
    for seed in list(schedules(machine))[:2]:
        outs.append(np.zeros((128, 32), np.uint32))
        args = (unit, image_a, image_b, bits_a, bits_b, outs[-1])
        run_unit(machine, "units_wgmma.cu", *args, shared_bytes=2 * IMAGE, seed=seed)
    return outs


OPERANDS = (
    np.random.default_rng(0).standard_normal((2, 64, 16)).astype(np.float32).view(np.uint32) >> 16
).astype(np.uint16)
INSTRUCTION = mma.INSTRUCTIONS["wgmma.f32.bf16.bf16"]


def expected(sign: int = 0) -> np.ndarray:
    a, b = OPERANDS
    product = mma.multiply(INSTRUCTION, a ^ np.uint16(sign), b, np.zeros((64, 64), np.uint32))
    row, column = layouts.wgmma_accumulator(64)
    return product[row, column]


@pytest.mark.parametrize("mn_major", [False, True], ids=["k", "mn"])
@pytest.mark.parametrize("swizzle", SWIZZLES)
def test_layouts_of_a(machine: str, swizzle: str, mn_major: bool) -> None:
    for out in run(machine, int(mn_major), (SWIZZLES[swizzle], mn_major), (1, False)):
        np.testing.assert_array_equal(out, expected())


@pytest.mark.parametrize("mn_major", [False, True], ids=["k", "mn"])
@pytest.mark.parametrize("swizzle", SWIZZLES)
def test_layouts_of_b(machine: str, swizzle: str, mn_major: bool) -> None:
    for out in run(machine, 2 * mn_major, (1, False), (SWIZZLES[swizzle], mn_major)):
        np.testing.assert_array_equal(out, expected())


def test_both_mn_major(machine: str) -> None:
    for out in run(machine, 3, (2, True), (3, True)):
        np.testing.assert_array_equal(out, expected())


@pytest.mark.parametrize(("unit", "sign"), [(4, 0x8000), (5, 0)])
def test_negated_operands(machine: str, unit: int, sign: int) -> None:
    for out in run(machine, unit, (1, False), (1, False)):
        np.testing.assert_array_equal(out, expected(sign))


BESIDE = r"""
#include "ptx.cuh"
#include "layout.cuh"

// A WGMMA reads bytes 0 to 31 of each row, and thread 0 writes 16 bytes of row 0 before the wait.
__global__ void beside(float* out, int byte) {
    const uint32_t a = ptx::shared_memory(), b = a + 8192;  // 64 and 8 rows of 128 bytes, swizzled
    for (int i = threadIdx.x; i < 9216 / 16; i += 128) ptx::st_shared(a + i * 16, uint4{0x38383838, 0, 0, 0});
    ptx::fence_proxy_async();
    __syncthreads();
    float d[4] = {};
    ptx::wgmma_fence();
    ptx::wgmma<8>(d, smem_descriptor(a), smem_descriptor(b), 0);
    ptx::wgmma_commit_group();
    if (threadIdx.x == 0) ptx::st_shared(a + byte, uint4{0, 0, 0, 0});
    ptx::wgmma_wait_group<0>();
    out[threadIdx.x] = d[0];
}
"""


def beside(byte: int, seed: int) -> np.ndarray:
    out = np.zeros(128, np.float32)
    lab.run(BESIDE, out, byte, block=128, shared_bytes=9216, seed=seed)
    return out


@pytest.mark.parametrize("byte", [32, 96, 112])
def test_a_write_beside_an_operand(byte):
    """The same 1024 bytes hold what the WGMMA reads and what it does not."""
    expected = beside(byte, seed=0)
    assert all(np.array_equal(beside(byte, seed), expected) for seed in range(1, 8))


@pytest.mark.parametrize("byte", [0, 16])
def test_a_write_over_an_operand(byte):
    for seed in range(8):
        with pytest.raises(EmulatorError, match="which a WGMMA of warps 0 to 3 may still read") as caught:
            beside(byte, seed)
        assert caught.value.what == "released_too_early"
