"""Loops that wait for a number in memory: those that nobody ends are faults, and the others end."""

from __future__ import annotations

import re

import numpy as np
import pytest
from gemm_ladder import lab
from gemm_ladder.errors import EmulatorError

HEADER = "#include <atomic>\n#include <cuda_runtime.h>\n"
# What a loop asks of a number that nobody writes. The first ones only look at memory, the others also meet
# the other threads.
LOOKS = (
    "atomicAdd(flag, 0) == 0",
    "atomicCAS(flag, 1, 2) == 0",
    "atomicExch(flag, 0) == 0",
    "std::atomic_ref<int>(*flag).load() == 0",
    "std::atomic_ref<int>(*flag).fetch_or(0) == 0",
    "(__nanosleep(20), *(volatile int*)flag == 0)",
    "atomicCAS(&shared, 1, 2) == 0",
    "ptx::ld_shared<int>(__cvta_generic_to_shared(&shared)) == 0",
)
MEETS = ("__syncthreads_or(*(volatile int*)flag == 0)",)
LOOP = """
#include "ptx.cuh"
__global__ void k(int* flag) {
    __shared__ int shared;
    if (threadIdx.x == 0) shared = 0;
    __syncthreads();
    while (LOOP) {}
}
"""


@pytest.mark.parametrize("asks", [*LOOKS, *MEETS])
def test_a_loop_that_waits_for_what_nobody_writes(asks: str) -> None:
    with pytest.raises(EmulatorError) as caught:
        lab.run(HEADER + LOOP.replace("LOOP", asks), np.zeros(1, np.int32), block=32)
    assert caught.value.what == "endless_loop"
    said = "meets other threads again and again" if asks in MEETS else "has run for long"
    assert said in str(caught.value)
    assert re.search(r"k\.cu:9\)$", str(caught.value))


ENDLESS = """
#include <cuda_runtime.h>
static __global__ void endless(float*) {
    while (threadIdx.x == 7) {
    }
}
"""


def test_an_endless_loop_of_a_static_kernel_ends_and_a_sweep_with_it() -> None:
    found = lab.sweep(ENDLESS, np.zeros(8, np.float32), block=32, seeds=5)
    assert list(found.faults) == [0] and found.skipped == [1, 2, 3, 4] and not found.sound
    assert found.faults[0].what == "endless_loop"
    assert re.fullmatch(r"endless\.cu:[45]", found.faults[0].line)
    assert str(found).startswith("1 of 1 schedules: endless_loop. With seed 0:")
    assert str(found).endswith("4 more were not run: each could take as many seconds.")


# A serial split over K, as CUTLASS has it: each block waits until the block before it has added its part.
SERIAL = """
__global__ void serial(const float* x, int* semaphore, float* d) {
    float sum = 0;
    for (int i = blockIdx.x; i < 64; i += gridDim.x) sum += x[i * 128 + threadIdx.x];
    if (threadIdx.x == 0) while (LOOK != (int)blockIdx.x) {}
    __syncthreads();
    d[threadIdx.x] = (blockIdx.x ? d[threadIdx.x] : 0.f) + sum;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) atomicExch(semaphore, blockIdx.x + 1);
}
"""


@pytest.mark.parametrize("look", ["atomicAdd(semaphore, 0)", "*(volatile int*)semaphore"])
@pytest.mark.parametrize("threads", [1, 2, 4])
def test_blocks_that_wait_for_each_other_on_few_os_threads(look: str, threads: int) -> None:
    x = np.random.default_rng(0).integers(-9, 9, (64, 128)).astype(np.float32)
    for seed in range(4):
        semaphore, d = np.zeros(1, np.int32), np.zeros(128, np.float32)
        options = {"defines": {"LOOK": look}, "several_writers": ["d"], "threads": threads, "seed": seed}
        lab.run(HEADER + SERIAL, x, semaphore, d, grid=8, **options)
        assert (d == x.sum(0)).all()


# Thread 0 waits for the other block, and all others poll an mbarrier for thread 0.
POLLS = """
#include "ptx.cuh"
__global__ void polls(int* flag) {
    const uint32_t barrier = ptx::shared_memory();
    if (blockIdx.x == 1) {
        for (int i = 0; i < 2000000; ++i) if (threadIdx.x == 0) flag[1] += i & 1;
        if (threadIdx.x == 0) atomicExch(flag, 1);
        return;
    }
    if (threadIdx.x == 0) ptx::mbarrier_init(barrier, 1);
    __syncthreads();
    if (threadIdx.x == 0) {
        while (atomicAdd(flag, 0) == 0) {}
        ptx::mbarrier_arrive(barrier);
    }
    while (!ptx::mbarrier_test_wait_parity(barrier, 0)) {}
}
"""


def test_a_thread_that_waits_for_another_block_while_others_poll_an_mbarrier() -> None:
    for threads in (1, 2):
        flag = np.zeros(2, np.int32)
        options = {"grid": 2, "shared_bytes": 8, "threads": threads, "several_writers": ["flag"]}
        lab.run(HEADER + POLLS, flag, block=1024, **options)
        assert flag[0] == 1
