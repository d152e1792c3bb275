"""Elements of global memory that two threads of one block write, and nothing says in which order."""

from __future__ import annotations

import re

import numpy as np
import pytest
from gemm_ladder import lab

# Threads t and t + 8 write one element: of one warp (SHIFT 8) or of two (SHIFT 32).
STORES = """
#include <cuda_runtime.h>
__global__ void stores(int* d) {
    const int half = threadIdx.x / SHIFT % 2;
    if (half == 0) d[threadIdx.x % SHIFT] = 1;
    BETWEEN
    if (half == 1) d[threadIdx.x % SHIFT] = VALUE;
}
"""
# Each of two warps stores a tile.
TILES = """
#include "ptx.cuh"
__global__ void tiles(const __grid_constant__ TensorMap map) {
    const uint32_t tile = ptx::shared_memory() + threadIdx.x / 32 * 1024;
    for (uint32_t at = threadIdx.x % 32 * 4; at < 1024; at += 128)
        ptx::st_shared(tile + at, static_cast<uint32_t>(VALUE));
    ptx::fence_proxy_async();
    __syncwarp();
    for (int warp = 0; warp < 2; ++warp) {
        if (threadIdx.x == warp * 32) {
            ptx::cp_async_bulk_tensor_2d_store(&map, tile, 0, ROW);
            ptx::cp_async_bulk_commit_group();
            ptx::cp_async_bulk_wait_group<0>();
        }
        BETWEEN
    }
}
"""


@pytest.mark.parametrize("shift", [8, 32])
@pytest.mark.parametrize("between", ["", "__syncthreads();", "__syncwarp();"])
@pytest.mark.parametrize("value", [1, 2])
def test_two_threads_of_a_block(shift: int, between: str, value: int) -> None:
    d = np.zeros(shift, np.int32)
    defines = {"SHIFT": shift, "BETWEEN": between, "VALUE": value}
    found = lab.sweep(STORES, d, block=2 * shift, defines=defines, seeds=8)
    ordered = between == "__syncthreads();" or (shift == 8 and between)
    if ordered or value == 1:  # stores of one value are no fault
        assert found.sound and (d == value).all()
        return
    assert len(found.faults) == 8
    for fault in found.faults.values():
        message = (
            r"writes d\[\d+\], which thread \d+ of the same block has written with another value: .*overlap"
        )
        assert fault.what == "written_twice" and re.search(message, str(fault)), fault
        assert fault.line in ("stores.cu:5", "stores.cu:7")
    assert lab.sweep(STORES, d, block=2 * shift, defines=defines, seeds=8, several_writers=["d"]).faults == {}


@pytest.mark.parametrize(
    ("row", "between", "value", "sound"),
    [
        ("0", "", "threadIdx.x / 32", False),
        ("0", "__syncthreads();", "threadIdx.x / 32", True),
        ("0", "", "7", True),
        ("threadIdx.x / 32 * 8", "", "threadIdx.x / 32", True),
        ("threadIdx.x / 32 * 4", "", "threadIdx.x / 32", False),
    ],
)
def test_two_stores_by_the_copy_engine(row: str, between: str, value: str, sound: bool) -> None:
    d = np.zeros((16, 32), np.int32)
    defines = {"ROW": row, "BETWEEN": between, "VALUE": value}
    found = lab.sweep(
        TILES, lab.tensor_map(d, (8, 32)), block=64, shared_bytes=2048, defines=defines, seeds=8
    )
    assert found.sound == sound
    for fault in found.faults.values():
        message = (
            r"TMA store writes map\[\d, 0\], which thread (0|32) of the same block has written with another"
        )
        assert fault.what == "written_twice" and re.search(message, str(fault)), fault


def test_where_results_differ() -> None:
    """Which of two writers is the last depends on the schedule, and is allowed to."""
    d = np.zeros(8, np.int32)
    defines = {"SHIFT": 8, "BETWEEN": "", "VALUE": 2}
    found = lab.sweep(STORES, d, block=16, defines=defines, seeds=20, several_writers=["d"])
    assert found.different and re.search(r"such as seed \d+: (one value|\d values) of d \(", str(found)), (
        found
    )
