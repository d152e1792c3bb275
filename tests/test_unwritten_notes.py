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


# Half of s is written; each way uses it all, some of them only to forget what comes of it.
USES = r"""
#include <cuda_runtime.h>
#include "ptx.cuh"
__device__ int launches;
__global__ void uses(float* x, float* y, int way) {
    __shared__ float s[64];
    const int t = threadIdx.x;
    if (t < 32) s[t] = 1;
    __syncthreads();
    const float number = ptx::ld_shared<float>(__cvta_generic_to_shared(&s[t]));
    const float sum = fmaf(number, x[t], 2.0f);
    x[t] += 1;
    if (way == 0) y[t] = t < 32 ? sum : 7;
    if (way == 1) y[t] = t < 33 ? sum : 7;
    if (way == 2) y[t] = fmaxf(number, 2);
    if (way == 3) y[t] = fminf(number, 2);
    if (way == 4) y[t] = number > 0 ? 3 : 4;
    if (way == 5) printf(number > 5 ? "large" : "small");
    if (way == 6 && t == 0) ++launches;
}
"""


@pytest.mark.parametrize(("way", "used"), [(0, False), (1, True), (2, True), (3, True), (4, True), (5, True)])
def test_a_number_that_is_not_used(way: int, used: bool) -> None:
    """The runs that tell leave nothing behind: memory and what was printed are those of one run."""
    x, y = np.ones(64, np.float32), np.zeros(64, np.float32)
    found = lab.run(USES, x, y, way, block=64)
    assert [", such as s[32]" in note for note in found.notes] == [True] * used
    assert (x == 2).all() and found.printed in ("", "small" * 64)
    if way < 2:
        assert (y[:32] == 3).all() and np.isnan(y[32]) == used and (y[33:] == 7).all()


def test_a_number_of_a_kernel_that_keeps_count() -> None:
    """A second run would find the __device__ variable changed, so whether the number is used is not known."""
    x = np.ones(64, np.float32)
    assert len(lab.run(USES, x, x.copy(), 6, block=64).notes) == 1
    assert (x == 2).all()
