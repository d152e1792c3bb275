"""A thread that loads shared memory which nothing has written: no fault, but a note."""

from __future__ import annotations

import numpy as np
import pytest
from gemm_ladder import lab

KERNEL = """
#include <cuda_runtime.h>
#include "cp_async.cuh"
#include "ptx.cuh"
__global__ void reads(const __grid_constant__ TensorMap map, const float* x, float* y) {
    extern __shared__ float dynamic[];
    __shared__ float s[64];
    __shared__ uint64_t full;
    const int t = threadIdx.x;
    FILL
    __syncthreads();
    y[t] = READ;
}
"""
LOAD = """
    const uint32_t barrier = __cvta_generic_to_shared(&full);
    if (t == 0) {
        ptx::mbarrier_init(barrier, 1);
        ptx::fence_mbarrier_init();
        ptx::mbarrier_arrive_expect_tx(barrier, 64 * 4);
        ptx::cp_async_bulk_tensor_2d(ptx::shared_memory(), &map, barrier, 0, 0);
    }
    __syncthreads();
    ptx::mbarrier_wait_parity(barrier, 0);
""".replace("\n", " ")
COPY = "if (t % 4 == 0) ptx::cp_async_cg(__cvta_generic_to_shared(&s[t]), &x[t]); ptx::cp_async_wait_all();"
NOTED = {
    ("if (t < 48) s[t] = 1;", "s[t]"): ", such as s[",
    ("s[t] = 1;", "dynamic[t]"): ", such as 0x",
    (f"if (t < 32) {{ {COPY} }}", "s[t]"): ", such as s[",
    ("s[t] = 1;", "s[t]"): None,
    ("s[t] = 1;", "s[t ^ 1] + s[t ^ 2]"): None,
    (
        "reinterpret_cast<uint8_t*>(s)[4 * t + 3] = 0; reinterpret_cast<float4*>(s)[t / 4] = float4{};",
        "s[t]",
    ): None,
    ("atomicExch(&s[t], 1.0f);", "s[t]"): None,
    (COPY, "s[t]"): None,
    (LOAD, "dynamic[t]"): None,
}


@pytest.mark.parametrize(("fill", "read"), NOTED)
def test_a_load_of_what_nothing_has_written(fill: str, read: str) -> None:
    x, y = np.ones(64, np.float32), np.zeros(64, np.float32)
    tensor_map = lab.tensor_map(np.ones((1, 64), np.float32), (1, 64))
    defines = {"FILL": fill, "READ": read}
    found = lab.sweep(KERNEL, tensor_map, x, y, block=64, shared_bytes=1024, defines=defines, seeds=4)
    said = NOTED[fill, read]
    assert not found.faults, str(found)
    if said is None:
        assert not found.notes
    else:
        assert len(found.notes) == 1
        begin = "a thread (reads.cu:12) reads shared memory that nothing has written"
        assert found.notes[0].startswith(begin + said), found.notes
