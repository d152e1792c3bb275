"""Ordinary CUDA C++ on the emulator: what a kernel writes that calls no function of ptx.cuh."""

from __future__ import annotations

import gemm_ladder as gl
import numpy as np
import pytest
from gemm_ladder import lab
from gemm_ladder.errors import EmulatorError, InputError

SUM = """
#include <cuda_runtime.h>
__global__ void __launch_bounds__(256) sum(const float* x, float* out, int n) {
    __shared__ float part[8];
    extern __shared__ float line[];
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    line[threadIdx.x] = i < n ? x[i] : 0.0f;
    __syncthreads();
    float value = line[255 - threadIdx.x];
    for (int distance = 16; distance; distance /= 2) value += __shfl_down_sync(~0u, value, distance);
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = value;
    __syncthreads();
    if (threadIdx.x == 0) {
        for (int warp = 1; warp < 8; ++warp) part[0] += part[warp];
        atomicAdd(out, part[0]);
        printf("block %d: %g\\n", blockIdx.x, part[0]);
    }
}
"""
TRANSPOSE = """
#include <cuda_runtime.h>
__global__ void transpose(const float* x, float* y) {
    __shared__ float tile[32][33];
    tile[threadIdx.y][threadIdx.x] = x[(blockIdx.y * 32 + threadIdx.y) * 64 + blockIdx.x * 32 + threadIdx.x];
    __syncthreads();
    y[(blockIdx.x * 32 + threadIdx.y) * 64 + blockIdx.y * 32 + threadIdx.x] = tile[threadIdx.x][threadIdx.y];
}
"""
WARPS = """
#include <cuda_runtime.h>
__global__ void warps(const int* x, unsigned* out) {
    const int lane = threadIdx.x, value = x[lane];
    unsigned* mine = out + lane * 8;
    mine[0] = __ballot_sync(~0u, value > 0);
    mine[1] = __any_sync(~0u, value == 7) + 2 * __all_sync(~0u, value < 100);
    mine[2] = __match_any_sync(~0u, value % 3);
    mine[3] = __reduce_add_sync(~0u, value);
    mine[4] = __shfl_xor_sync(~0u, value, 5, 8);
    mine[5] = __shfl_up_sync(~0u, value, 3, 16);
    if (lane < 16) mine[6] = __reduce_max_sync(0xFFFFu, value);
    mine[7] = __popc(value) + 100 * __clz(value) + 10000 * __ffs(value);
}
"""
CLUSTER = """
#include <cooperative_groups.h>
namespace cg = cooperative_groups;
__global__ void ring(int* out) {
    __shared__ int box;
    const cg::cluster_group cluster = cg::this_cluster();
    const unsigned next = (cluster.block_rank() + 1) % cluster.num_blocks();
    cluster.sync();
    if (cg::this_thread_block().thread_rank() == 0) *cluster.map_shared_rank(&box, next) = 10 * blockIdx.x;
    SYNC
    const auto tile = cg::tiled_partition<8>(cg::this_thread_block());
    out[blockIdx.x * 32 + threadIdx.x] = box + tile.shfl(static_cast<int>(threadIdx.x), 2);
    cluster.sync();
}
"""


def test_shared_memory_shuffles_atomics_and_printf(capsys: pytest.CaptureFixture[str]) -> None:
    x, out = np.arange(1000, dtype=np.float32), np.zeros(1, np.float32)
    lab.run(SUM, x, out, 1000, grid=4, block=256, shared_bytes=1024)
    assert out[0] == x.sum()
    assert sorted(capsys.readouterr().out.splitlines())[0] == "block 0: 32640"


def test_what_is_read_outside_an_array_is_named() -> None:
    x, out = np.arange(1000, dtype=np.float32), np.zeros(1, np.float32)
    with pytest.raises(
        EmulatorError, match=r"reads 4 bytes at x\[10\d\d\], outside x of shape 1000"
    ) as caught:
        lab.run(SUM, x, out, 1010, grid=4, block=256, shared_bytes=1024)
    assert caught.value.what == "global_out_of_bounds"
    assert (
        SUM.splitlines()[int(caught.value.line.split(":")[1]) - 1]
        .strip()
        .startswith("line[threadIdx.x] = i < n")
    )


def test_too_little_shared_memory_is_named() -> None:
    x, out = np.arange(1000, dtype=np.float32), np.zeros(1, np.float32)
    with pytest.raises(EmulatorError, match=r"outside the block's shared memory, 0x400 to 0x600") as caught:
        lab.run(SUM, x, out, 1000, grid=4, block=256, shared_bytes=512)
    assert caught.value.what == "out_of_bounds"


def test_blocks_and_grids_of_two_dimensions() -> None:
    x, y = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32), np.zeros((64, 64), np.float32)
    assert lab.sweep(TRANSPOSE, x, y, grid=(2, 2), block=(32, 32), seeds=4).sound
    np.testing.assert_array_equal(y, x.T)


def test_a_missing_barrier_is_a_race_on_every_schedule() -> None:
    x, y = np.ones((64, 64), np.float32), np.zeros((64, 64), np.float32)
    found = lab.sweep(TRANSPOSE.replace("__syncthreads();", ""), x, y, grid=(2, 2), block=(32, 32), seeds=8)
    assert {fault.what for fault in found.faults.values()} == {"data_race"}
    assert len(found.faults) == 8


def test_two_blocks_that_write_one_element() -> None:
    source = "#include <cuda_runtime.h>\n__global__ void k(int* out) { out[threadIdx.x] = blockIdx.x; }\n"
    out = np.zeros(32, np.int32)
    with pytest.raises(EmulatorError, match=r"writes out\[\d+\], which block [01] has written") as caught:
        lab.run(source, out, grid=2, block=32)
    assert caught.value.what == "written_twice"
    lab.run(source, out, grid=2, block=32, several_writers=["out"])


def test_functions_of_a_warp() -> None:
    x = np.random.default_rng(1).integers(-50, 50, 32).astype(np.int32)
    out = np.zeros((32, 8), np.uint32)
    lab.run(WARPS, x, out, block=32)
    lanes = np.arange(32)
    bits = 1 << lanes.astype(np.uint64)
    assert (out[:, 0] == bits[x > 0].sum()).all()
    assert (out[:, 1] == int((x == 7).any()) + 2).all()
    remainder = np.fmod(x, 3)
    assert out[:, 2].tolist() == [int(bits[remainder == one].sum()) for one in remainder]
    assert (out[:, 3].view(np.int32) == x.sum()).all()
    assert (out[:, 4].view(np.int32) == x[lanes ^ 5]).all()
    assert (out[:, 5].view(np.int32) == np.where(lanes % 16 >= 3, x[lanes - 3], x)).all()
    assert (out[:16, 6].view(np.int32) == x[:16].max()).all()
    for value, found in zip(x, out[:, 7], strict=True):
        word = int(value) & 0xFFFFFFFF
        low = (word & -word).bit_length()
        assert found == word.bit_count() + 100 * (32 - word.bit_length()) + 10000 * low


def test_cooperative_groups_in_a_cluster() -> None:
    out = np.zeros((4, 32), np.int32)
    for seed in range(8):
        lab.run(CLUSTER.replace("SYNC", "cluster.sync();"), out, grid=4, block=32, cluster=4, seed=seed)
        for block in range(4):
            expected = 10 * ((block - 1) % 4) + np.arange(32) // 8 * 8 + 2
            np.testing.assert_array_equal(out[block], expected)
    found = lab.sweep(CLUSTER.replace("SYNC", ""), out, grid=4, block=32, cluster=4, seeds=8)
    assert {fault.what for fault in found.faults.values()} == {"data_race"}


def test_a_thread_that_has_exited_is_not_waited_for() -> None:
    source = """
    #include <cuda_runtime.h>
    __global__ void k(int* out, int n) {
        if (threadIdx.x >= n) return;
        __shared__ int count;
        if (threadIdx.x == 0) count = 0;
        __syncthreads();
        atomicAdd(&count, 1);
        __syncwarp();
        __syncthreads();
        out[threadIdx.x] = count;
    }
    """
    out = np.zeros(64, np.int32)
    assert lab.sweep(source, out, 50, block=64, seeds=8).sound
    assert out.tolist() == [50] * 50 + [0] * 14


def test_a_failed_assertion_ends_the_kernel() -> None:
    source = """
    #include <cassert>
    #include <cuda_runtime.h>
    __global__ void k(int n) { assert(threadIdx.x < n); }
    """
    lab.run(source, 32, block=32)
    with pytest.raises(EmulatorError, match=r"lane 31: assertion `threadIdx.x < n' failed") as caught:
        lab.run(source, 31, block=32)
    assert caught.value.what == "crashed"


@pytest.mark.slow
def test_a_spin_on_another_blocks_flag_ends() -> None:
    """Also where one OS thread runs all blocks, and the one that waits begins first."""
    source = """
    #include <cuda_runtime.h>
    __global__ void k(volatile int* flag, int* out) {
        if (blockIdx.x == 0) while (*flag == 0) {}
        else *flag = 1;
        out[blockIdx.x] = 1;
    }
    """
    for seed in range(6):
        flag, out = np.zeros(1, np.int32), np.zeros(2, np.int32)
        lab.run(source, flag, out, grid=2, block=32, seed=seed, threads=1, several_writers=["flag", "out"])
        assert out.tolist() == [1, 1]


def test_inline_ptx_is_refused_with_its_line() -> None:
    source = '#include <cuda_runtime.h>\n__global__ void k() {\n    asm volatile("bar.sync 0;");\n}\n'
    with pytest.raises(InputError, match=r"^k\.cu:3 is inline PTX"):
        lab.run(source)


def test_a_tensor_map_has_to_be_a_grid_constant() -> None:
    source = gl.rungs["s4_tma"].source.replace(
        "const __grid_constant__ TensorMap map_b", "const TensorMap map_b"
    )
    with pytest.raises(InputError, match=r"map_b, a tensor map, is a parameter without __grid_constant__"):
        lab.run(source, kernel="s4_tma")


@pytest.mark.parametrize(
    ("rung", "guard", "replacement"),
    [
        ("s1_naive", "if (row >= p.m || column >= p.n) return;", ""),
        ("s3_wgmma", "const bool inside = row + r + i * kRowsPerStep < rows;", "const bool inside = true;"),
    ],
)
def test_a_rung_without_its_guard_is_named(rung: str, guard: str, replacement: str) -> None:
    source = gl.rungs[rung].source
    assert guard in source
    verdict = gl.judge(source.replace(guard, replacement), seconds=20)
    assert not verdict.right
    assert "global_out_of_bounds" in str(verdict) or "outside" in str(verdict)


@pytest.mark.parametrize(
    "kernel",
    [
        "__global__ void __launch_bounds__(128, 2) bounded(int* x) { x[threadIdx.x] = 1; }",
        "__global__ __launch_bounds__(kThreads) void bounded(int* x) { x[threadIdx.x] = 1; }",
        "template <int kN>\n__global__ void __launch_bounds__(kN * 2)\n    of(int* x);\n"
        "template <int kN>\n__global__ void __launch_bounds__(kN * 2)\n    of(int* x) { x[0] = kN; }\n"
        "template __global__ void of<64>(int*);\n"
        "__global__ void __launch_bounds__(128, 1, 1) bounded(int* x) { x[threadIdx.x] = 1; }",
    ],
)
def test_a_launch_that_the_bounds_do_not_allow(kernel: str) -> None:
    x = np.zeros(256, np.int32)
    source = f"#include <cuda_runtime.h>\nconstexpr int kThreads = 128;\n{kernel}"
    lab.run(source, x, kernel="bounded", block=128)
    assert x[:128].all()
    with pytest.raises(EmulatorError, match=r"256 threads a block; the kernel's __launch_bounds__ .* 128"):
        lab.run(source, x, kernel="bounded", block=256)


def test_an_index_outside_a_shared_array_is_named() -> None:
    kernel = TRANSPOSE.replace("tile[threadIdx.x][threadIdx.y]", "tile[threadIdx.x][threadIdx.y + 2]")
    x, y = np.ones((64, 64), np.float32), np.zeros((64, 64), np.float32)
    with pytest.raises(
        EmulatorError, match=r"index 33 of an array of type 'float \[33\]' \(transpose.cu:7\)"
    ):
        lab.run(kernel, x, y, grid=(2, 2), block=(32, 32))
