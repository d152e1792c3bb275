"""Rules of CUDA that a CPU does not have, and what a kernel's own macros may be called."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from gemm_ladder import lab
from gemm_ladder.errors import BuildError, EmulatorError, InputError
from gemm_ladder.ref import emulator

HEADER = "#include <cuda_runtime.h>\n"


def fault(source: str, *args: object, **options: object) -> EmulatorError:
    with pytest.raises(EmulatorError) as caught:
        lab.run(HEADER + source, *args, **options)
    return caught.value


# ---------------------------------------------------------------------------------- the text that is compiled


@pytest.mark.parametrize("defines", [None, {"N": 64, "T": "float", "args": "nothing", "kSize": 3}])
def test_macros_with_the_names_of_ours(defines: dict[str, str | int] | None) -> None:
    source = "" if defines else "#define N 64\n#define T float\n#define args nothing\n#define kSize 3\n"
    source += """
    #include <cooperative_groups.h>
    #include <cuda_fp16.h>
    #include "ptx.cuh"
    __global__ void k(T* y) { if (threadIdx.x < N) y[threadIdx.x] = kSize; }
    """
    y = np.zeros(64, np.float32)
    lab.run(source, y, block=64, defines=defines)
    assert (y == 3).all()


def test_a_build_error_is_what_the_compiler_says() -> None:
    source = HEADER + "__global__ void k(float* y) {\n    y[0] = undeclared;\n}\n"
    with pytest.raises(BuildError) as caught:
        lab.run(source, np.zeros(1, np.float32))
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("k.cu (emulator) does not build with ")
    assert any(line.startswith("k.cu:3:12: error: ") and "undeclared" in line for line in lines)
    assert len(lines) <= 6 and max(map(len, lines)) < 120
    assert "RuntimeError: Error building extension" in caught.value.log, "the whole output"


def test_a_template_needs_its_arguments() -> None:
    source = HEADER + "template <int kN>\n__global__ void k(int* y) { y[threadIdx.x] = kN; }\n"
    y = np.zeros(32, np.int32)
    for kernel in (None, "k"):
        with pytest.raises(InputError, match=r"^k is a template; its name with arguments is needed"):
            lab.run(source, y, kernel=kernel, block=32)
    lab.run(source, y, kernel="k<7>", block=32)
    assert (y == 7).all()


def test_the_size_of_clusters_that_the_kernel_says() -> None:
    source = """
    #include <cooperative_groups.h>
    constexpr int kBlocks = 2;
    __global__ void __launch_bounds__(32) __cluster_dims__(kBlocks, 1, 1) k(int* y) {
        y[blockIdx.x * 32 + threadIdx.x] = cooperative_groups::this_cluster().num_blocks();
    }
    """
    y = np.zeros(128, np.int32)
    lab.run(source, y, grid=4, block=32)
    assert (y == 2).all()
    with pytest.raises(InputError, match=r"grid has 3 blocks along x; a multiple of cluster's 2 is needed"):
        lab.run(source, y, grid=3, block=32)


def test_code_for_the_device() -> None:
    source = """
    __global__ void k(int* y) {
    #if __CUDA_ARCH__ >= 900
        y[threadIdx.x] = __CUDA_ARCH__;
    #endif
    }
    """
    y = np.zeros(32, np.int32)
    lab.run(HEADER + source, y, block=32)
    assert (y == 900).all()


# ------------------------------------------------------------------------------ blocks that end within a warp

WARPS = """
#include <cooperative_groups.h>
#include "ptx.cuh"
__global__ void k(int* y) {
    __shared__ int s[100];
    const int t = threadIdx.x + blockDim.x * threadIdx.y;
    s[t] = t;
    __syncthreads();
    int sum = s[99 - t];
    for (int distance = 16; distance; distance /= 2) sum += __shfl_xor_sync(~0u, sum, distance);
    y[t] = __ballot_sync(~0u, 1);
    const bool elected = ptx::elect_sync();
    const int votes = __popc(__ballot_sync(~0u, elected));
    ptx::bar_sync(1, 128);
    if (t < 96) y[100 + t] = sum;
    if (votes != 1 || __syncthreads_count(1) != 100) y[t] = -1;
}
"""


def test_blocks_that_end_within_a_warp() -> None:
    for seed in range(6):
        y = np.zeros(200, np.int32)
        lab.run(WARPS, y, block=(10, 10), seed=seed)
        assert (y[:96] == -1).sum() == 96 and (y[96:100] == 0xF).all()
        for warp in range(3):
            assert (
                y[100 + 32 * warp : 132 + 32 * warp] == sum(99 - t for t in range(32 * warp, 32 * warp + 32))
            ).all()


def test_one_thread_and_clusters_of_odd_blocks() -> None:
    source = """
    #include <cooperative_groups.h>
    __global__ void k(int* y) {
        __shared__ int s;
        const auto cluster = cooperative_groups::this_cluster();
        if (threadIdx.x == 0) s = blockIdx.x + 1;
        SYNC
        y[blockIdx.x * blockDim.x + threadIdx.x] = *cluster.map_shared_rank(&s, cluster.block_rank() ^ 1);
        cluster.sync();
    }
    """
    for threads in (1, 40):
        y = np.zeros(2 * threads, np.int32)
        right = source.replace("SYNC", "cluster.sync();")
        assert lab.sweep(right, y, grid=2, cluster=2, block=threads, seeds=4).sound
        assert y.tolist() == [2] * threads + [1] * threads
    y = np.zeros(80, np.int32)
    early = source.replace("SYNC", "").replace(
        "if (threadIdx.x == 0)", "cluster.sync(); if (threadIdx.x == 0)"
    )
    found = lab.sweep(early, y, grid=2, cluster=2, block=40, seeds=4)
    assert {one.what for one in found.faults.values()} == {"data_race"}


# ----------------------------------------------------------------------------------- stores of the same value

FLAG = """
__global__ void k(int* y) {
    __shared__ int flag;
    if (threadIdx.x == 0) flag = 0;
    __syncthreads();
    if (threadIdx.x > 5) flag = VALUE;
    BARRIER
    y[threadIdx.x] = flag;
}
"""


def test_threads_may_store_the_same_value() -> None:
    """PTX calls it a race; every GPU stores the value, and compute-sanitizer's racecheck does not warn."""
    y = np.zeros(64, np.int32)
    same = HEADER + FLAG.replace("VALUE", "7").replace("BARRIER", "__syncthreads();")
    assert lab.sweep(same, y, block=64, seeds=8).sound
    assert (y == 7).all()
    stored = same.replace("flag = 7;", "*(volatile int*)&flag = 7;")
    assert lab.sweep(stored, y, block=64, seeds=4).sound


@pytest.mark.parametrize(
    ("value", "barrier", "said"),
    [
        ("threadIdx.x", "__syncthreads();", "writes shared memory"),
        ("threadIdx.x / 63", "__syncthreads();", "writes"),
        ("7", "", "shared memory"),
    ],
)
def test_other_values_and_reads_stay_races(value: str, barrier: str, said: str) -> None:
    y = np.zeros(64, np.int32)
    source = HEADER + FLAG.replace("VALUE", value).replace("BARRIER", barrier)
    found = lab.sweep(source, y, block=64, seeds=8)
    assert len(found.faults) == 8 and {one.what for one in found.faults.values()} == {"data_race"}
    assert all(said in str(one) and one.line for one in found.faults.values())
    if barrier:
        assert {one.line for one in found.faults.values()} == {"k.cu:7"}


def test_two_blocks_that_write_one_element_are_told_of_several_writers() -> None:
    lock = """
    __global__ void k(int* y, int* lock) {
        if (threadIdx.x) return;
        while (atomicCAS(lock, 0, 1) != 0) {}
        __threadfence();
        y[0] = y[0] + 1;
        __threadfence();
        atomicExch(lock, 0);
    }
    """
    y, free = np.zeros(1, np.int32), np.zeros(1, np.int32)
    one = fault(lock, y, free, grid=4, block=32)
    assert one.what == "written_twice" and 'several_writers=["y"]' in str(one)
    y[:] = free[:] = 0
    lab.run(HEADER + lock, y, free, grid=4, block=32, several_writers=["y"])
    assert y[0] == 4


# ---------------------------------------------------------------------------------------- what a GPU refuses


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        (
            "*reinterpret_cast<float4*>(x + 1) = make_float4(1, 2, 3, 4);",
            "stores a 'struct float4' at x[1], which is",
        ),
        (
            "const float4 v = *reinterpret_cast<float4*>(x + 2); x[0] = v.y;",
            "at x[2], which is not a multiple of 16",
        ),
        (
            "*reinterpret_cast<double*>(x + 1) = 1;",
            "stores a 'double' at x[1], which is not a multiple of 8 bytes",
        ),
        (
            "__shared__ float s[8]; *reinterpret_cast<float2*>(s + 1) = make_float2(1, 2); x[0] = s[2];",
            "at shared memory at 0x",
        ),
    ],
)
def test_misaligned_accesses(statement: str, said: str) -> None:
    one = fault(f"__global__ void k(float* x) {{\n    {statement}\n}}\n", np.zeros(16, np.float32), block=1)
    assert one.what == "misaligned" and said in str(one) and one.line == "k.cu:3"


def test_aligned_accesses() -> None:
    x = np.zeros(16, np.float32)
    source = "__global__ void k(float* x) { *reinterpret_cast<float4*>(x + 4) = make_float4(1, 2, 3, 4); }\n"
    lab.run(HEADER + source, x, block=1)
    assert x[4:8].tolist() == [1, 2, 3, 4]


def test_more_static_shared_memory_than_nvcc_allows() -> None:
    source = "__global__ void k(float* y) {{ __shared__ float s[{}]; s[0] = 1; y[0] = s[0]; }}\n"
    y = np.zeros(1, np.float32)
    lab.run(HEADER + source.format(48 * 256), y, block=1)
    one = fault(source.format(48 * 256 + 1), y, block=1)
    assert one.what == "out_of_bounds" and "nvcc refuses more than 49152" in str(one) and one.line == "k.cu:2"


def test_where_a_stray_access_lies() -> None:
    y = np.zeros(64, np.float32)
    stray = """
__global__ void k(float* y) {
    __shared__ float s[32];
    float* p = s;  // an index of s itself would be an array's
    p[threadIdx.x + 32] = 1;
    y[0] = s[0];
}
"""
    one = fault(stray, y, block=1)
    assert one.what == "out_of_bounds"
    assert "writes 4 bytes of shared memory, 0 bytes behind the end of the block's" in str(one)
    one = fault("__global__ void k(float* y, const float* x) { y[0] = x[3]; }\n", y, None, block=1)
    assert one.what == "global_out_of_bounds" and "at address 0xc: by way of a null pointer" in str(one)


# ------------------------------------------------------------------------------------------------- the README


def test_the_examples_of_the_readme(capsys: pytest.CaptureFixture[str]) -> None:
    readme = Path(emulator.__file__).with_name("README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", readme, re.S)
    assert len(blocks) == 2
    for block in blocks:
        exec(block, {})
    sound = "20 schedules: no fault, and the same result each time."
    said = capsys.readouterr().out
    assert said.splitlines()[:2] == [sound, sound]
    assert re.fullmatch(r"RIGHT: all 4096 values; the largest difference is \S+e-0\d\.", said.splitlines()[2])
    broken = blocks[0].replace("    __syncthreads();\n", "")
    broken = "\n".join(line for line in broken.splitlines() if not line.startswith("lab.run"))
    assert len(broken.splitlines()) == len(blocks[0].splitlines()) - 2
    exec(broken, {})
    said = capsys.readouterr().out
    assert (
        "20 of 20 schedules: data_race. " in said and "nothing orders the two: a barrier is missing" in said
    )
