"""What a fault's message calls things: __shared__ variables, mbarriers, the lines that led to the fault."""

from __future__ import annotations

import re

import numpy as np
import pytest
from gemm_ladder import lab
from gemm_ladder.errors import EmulatorError

VARIABLES = """
#include <cuda_runtime.h>
struct Pair { float first; int second; };
template <typename T>
__device__ void together() {
    __shared__ T both;
    both = threadIdx.x;
}
__global__ void variables() {
    __shared__ float tile[4][8];
    __shared__ Pair pairs[2];
    __shared__ int flag;
    RACE
}
"""
NAMES = {
    "tile[3][5] = threadIdx.x;": "tile[3][5]",
    "((float*)tile)[13] = threadIdx.x;": "tile[1][5]",
    "pairs[1].second = threadIdx.x;": "pairs[1] + 4 bytes",
    "flag = threadIdx.x;": "flag",
    "together<unsigned short>();": "both",
}


@pytest.mark.parametrize("race", NAMES)
def test_a_shared_variable_has_its_name(race: str) -> None:
    with pytest.raises(
        EmulatorError, match=r"writes shared memory at 0x\w+ \((.*?)\), which thread"
    ) as error:
        lab.run(VARIABLES, block=64, defines={"RACE": race})
    assert error.value.what == "data_race"
    assert re.search(r"at 0x\w+ \((.*?)\), which", str(error.value))[1] == NAMES[race]


BARRIERS = """
#include <cuda_runtime.h>
#include "ptx.cuh"
__global__ void barriers(const __grid_constant__ TensorMap map) {
    extern __shared__ uint8_t dynamic[];
    __shared__ uint64_t ready[2];
    const uint32_t stage = __cvta_generic_to_shared(dynamic), full = stage + 1024, other = full + 8;
    const uint32_t named = __cvta_generic_to_shared(&ready[1]);
    if (threadIdx.x == 0)
        for (const uint32_t barrier : {full, other, named}) ptx::mbarrier_init(barrier, 1);
    ptx::fence_mbarrier_init();
    __syncthreads();
    WAIT
}
"""
LOAD = "ptx::mbarrier_arrive_expect_tx(full, 1024); ptx::cp_async_bulk_tensor_2d(stage, &map, full, 0, 0);"
PARITY = "ptx::mbarrier_wait_parity({}, {});"
# By what the threads do, how a deadlock calls the barrier that they wait for.
WAITS = {
    # Nothing has arrived yet: nobody can know whether bytes are to come.
    PARITY.format("full", 0): r"mbarrier 0x800 to complete",
    f"if (threadIdx.x == 0) {{ {LOAD} }} {PARITY.format('full', 0)} {PARITY.format('full', 1)}": (
        r"mbarrier 0x800 \(full 0\) to complete"
    ),
    # Only the warp that loads waits for it.
    f"if (threadIdx.x == 0) {{ {LOAD} {PARITY.format('other', 0)} }}": r"mbarrier 0x808 \(empty 0\) to",
    # Others wait for it, too: it may be for anything.
    f"if (threadIdx.x == 0) {{ {LOAD} }} {PARITY.format('other', 0)}": r"mbarrier 0x808 to complete",
    PARITY.format("named", 0): r"mbarrier 0x\w+ \(ready\[1\]\) to complete",
    f'ptx::name_mbarrier(named, "go", 7); {PARITY.format("named", 0)}': r"mbarrier 0x\w+ \(go 7\) to",
}


@pytest.mark.parametrize("wait", WAITS)
def test_an_mbarrier_is_called_what_the_run_shows_it_is(wait: str) -> None:
    tensor_map = lab.tensor_map(np.zeros((8, 128), np.uint8), (8, 128))
    found = lab.sweep(BARRIERS, tensor_map, block=64, shared_bytes=2048, defines={"WAIT": wait}, seeds=4)
    assert len(found.faults) == 4
    for error in found.faults.values():
        assert error.what == "deadlock" and re.search(WAITS[wait], str(error)), error


CALLS = """
#include <cuda_runtime.h>
__device__ __noinline__ void put(float* p, int i) {
    p[i] = 1;
}
__device__ __noinline__ void put_two(float* p, int i) {
    put(p, i);
    put(p, i + 1);
}
__device__ inline void put_four(float* p, int i) {
    put_two(p, i);
    put_two(p, i + 2);
}
__global__ void calls(float* x) {
    if (threadIdx.x == 3)
        put_four(x, 5);
}
"""


def test_the_lines_that_call_functions_are_named() -> None:
    """Of functions that the compiler has copied into others, and of those that it has not."""
    found = lab.sweep(CALLS, np.zeros(8, np.float32), block=64, seeds=2).faults.values()
    assert len(found) == 2
    for error in found:
        assert error.line == "calls.cu:4"
        assert str(error).endswith(
            "(calls.cu:4, called at calls.cu:8, called at calls.cu:12, called at calls.cu:16)"
        )


WRITERS = """
#include <cuda_runtime.h>
__global__ void writers(float* out) {
    __shared__ float tile[40];
    tile[threadIdx.x] = threadIdx.x;
    out[blockIdx.x * 40 + threadIdx.x] = tile[39 - threadIdx.x];
}
"""


def test_the_writer_is_named_in_its_block() -> None:
    """Also in the second of two blocks whose last warp has eight threads."""
    out = np.zeros(80, np.float32)
    found = lab.sweep(WRITERS, out, grid=2, cluster=2, block=40, seeds=8).faults.values()
    assert len(found) == 8
    blocks = set()
    for error in found:
        said = re.search(
            r"which thread (\d+) of block (\d+) has .* the two: a barrier is missing", str(error)
        )
        assert said and int(said[1]) < 40 and int(said[2]) == error.block, error
        blocks.add(error.block)
    assert blocks == {0, 1}
