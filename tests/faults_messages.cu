// Kernels that are wrong in ways of which a message should say the cause: test_faults_messages.py has what each one
// must say, by the macro KIND. A kernel whose KIND is "RIGHT" is right.
#include <cooperative_groups.h>
#include <cuda_runtime.h>

#include "cluster.cuh"
#include "cp_async.cuh"
#include "layout.cuh"
#include "mma.cuh"
#include "ptx.cuh"

constexpr uint32_t kTile = 64 * 128, kStages = 2;
enum Copy { kNoCommit = 1, kWaitsForFewer, kWaitsLate, kNoBarrier };

// Each thread copies a float4, and reads that of another one.
__global__ void copies(const float4* x, float4* y, int kind) {
    __shared__ float4 s[64];
    ptx::cp_async_cg(__cvta_generic_to_shared(&s[threadIdx.x]), &x[threadIdx.x]);
    if (kind != kNoCommit) ptx::cp_async_commit_group();
    if (kind == kWaitsLate) __syncthreads();
    if (kind == kWaitsForFewer)
        ptx::cp_async_wait_group<1>();
    else
        ptx::cp_async_wait_group<0>();
    if (kind != kWaitsLate && kind != kNoBarrier) __syncthreads();
    y[threadIdx.x] = s[threadIdx.x ^ 33];
}

enum Store { kNoFence = 1, kNoStoreCommit, kNoStoreWait, kStoreWaitUnknown, kNeverCommitted };

// Two tiles are stored, from the same shared memory.
__global__ void stores(const __grid_constant__ TensorMap map, int kind) {
    const uint32_t tile = ptx::shared_memory();
    for (int i = 0; i < 2; ++i) {
        if (i && threadIdx.x == 32 && kind != kNoStoreWait) ptx::cp_async_bulk_wait_group_read<0>();
        if (!i || kind != kStoreWaitUnknown) __syncthreads();
        for (uint32_t at = threadIdx.x * 16; at < kTile; at += 128 * 16) ptx::st_shared(tile + at, float4{});
        if (kind != kNoFence) ptx::fence_proxy_async();
        __syncthreads();
        if (threadIdx.x == 32) {
            ptx::cp_async_bulk_tensor_2d_store(&map, tile, 0, 64 * i);
            if (kind != kNoStoreCommit && (kind != kNeverCommitted || i == 0)) ptx::cp_async_bulk_commit_group();
        }
    }
    if (threadIdx.x == 32) ptx::cp_async_bulk_wait_group<0>();
}

enum Ring {
    kWrongParity = 1,
    kManyArrivals,
    kTwoProducers,
    kFenceOfHalf,
    kLoadsMore,
    kNotVisible,
    kNoWait,
    kFenceOnce
};

// Warps 0 to 3 multiply, warp 4 loads.
__global__ void __launch_bounds__(160)
    ring(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, float* d, int blocks, int kind) {
    const uint32_t smem = ptx::shared_memory(), barriers = smem + kStages * 2 * kTile;
    const auto full = [&](int s) { return barriers + 16 * s; };
    const auto empty = [&](int s) { return barriers + 16 * s + 8; };
    if (threadIdx.x == 0) {
        for (int s = 0; s < kStages; ++s) {
            ptx::name_mbarrier(full(s), "loaded", s);
            ptx::name_mbarrier(empty(s), "released", s);
            ptx::mbarrier_init(full(s), kind == kTwoProducers ? 2 : 1);
            ptx::mbarrier_init(empty(s), 4);
        }
        if (kind != kNotVisible) ptx::fence_mbarrier_init();
    }
    __syncthreads();
    if (threadIdx.x >= 128) {
        if (threadIdx.x > 128 + (kind == kTwoProducers ? 1 : 0)) return;
        for (int i = 0; i < blocks + (kind == kLoadsMore ? 1 : 0); ++i) {
            const int s = i % kStages;
            ptx::mbarrier_wait_parity(empty(s), (i / kStages & 1) ^ 1);
            ptx::mbarrier_arrive_expect_tx(full(s), 2 * kTile);
            ptx::cp_async_bulk_tensor_2d(smem + s * 2 * kTile, &a, full(s), i * 64, 0);
            ptx::cp_async_bulk_tensor_2d(smem + s * 2 * kTile + kTile, &b, full(s), i * 64, 0);
        }
        return;
    }
    float sums[32];
    if (kind == kFenceOnce) ptx::wgmma_fence();
    for (int i = 0; i < blocks; ++i) {
        const int s = i % kStages;
        const uint64_t tile_a = smem_descriptor(smem + s * 2 * kTile),
                       tile_b = smem_descriptor(smem + s * 2 * kTile + kTile);
        if (kind != kNoWait) ptx::mbarrier_wait_parity(full(s), (i / kStages & 1) ^ (kind == kWrongParity ? 1 : 0));
        if (kind == kNoWait && threadIdx.x == 0) sums[0] = ptx::ld_shared<float>(smem);
        if (kind != kFenceOnce && (kind != kFenceOfHalf || threadIdx.x % 32 < 16)) ptx::wgmma_fence();
        for (int k = 0; k < 64; k += 16)
            ptx::wgmma<ptx::Type::f32, ptx::Type::bf16, ptx::Type::bf16, 64>(sums, advance(tile_a, 2 * k),
                                                                             advance(tile_b, 2 * k), i + k != 0);
        ptx::wgmma_commit_group();
        ptx::wgmma_wait_group<0>();
        if (kind == kManyArrivals || threadIdx.x % 32 == 0) ptx::mbarrier_arrive(empty(s));
    }
    for (int i = 0; i < 32; ++i) d[accumulator_row(threadIdx.x, i) * 64 + accumulator_column(threadIdx.x, i)] = sums[i];
}

// A thread reads `past` floats past the end of another block's array.
__global__ void __cluster_dims__(2, 1, 1) reads_past(float* y, int past) {
    __shared__ float s[32];
    const auto cluster = cooperative_groups::this_cluster();
    s[threadIdx.x] = threadIdx.x;
    cluster.sync();
    y[blockIdx.x * 32 + threadIdx.x] = cluster.map_shared_rank(s, cluster.block_rank() ^ 1)[threadIdx.x + past];
    cluster.sync();
}

// A store by way of the asynchronous unit that the other block does not wait for.
__global__ void __cluster_dims__(2, 1, 1) stores_async(float* y) {
    __shared__ uint64_t barrier;
    __shared__ float s[40];
    const auto cluster = cooperative_groups::this_cluster();
    const auto at = [&](const void* here) {
        return ptx::mapa(static_cast<uint32_t>(__cvta_generic_to_shared(here)), cluster.block_rank() ^ 1);
    };
    if (threadIdx.x == 0) {
        ptx::mbarrier_init(__cvta_generic_to_shared(&barrier), 1);
        ptx::name_mbarrier(__cvta_generic_to_shared(&barrier), "given");
        ptx::fence_mbarrier_init();
        ptx::mbarrier_arrive_expect_tx(__cvta_generic_to_shared(&barrier), 40 * 4);
    }
    cluster.sync();
    ptx::st_async(at(&s[threadIdx.x]), static_cast<float>(threadIdx.x), at(&barrier));
    cluster.sync();
    y[blockIdx.x * 40 + threadIdx.x] = s[39 - threadIdx.x];
    cluster.sync();
}

__global__ void __launch_bounds__(256, 2) registers(float*) {
    if (threadIdx.x / 32 == 4) ptx::setmaxnreg_dec<40>();
    __syncthreads();
}

// Two warpgroups meet at one barrier, each for itself; in between are barriers of whole warps alone.
__global__ void shared_barrier(float* y) {
    __shared__ float s[256];
    s[threadIdx.x] = threadIdx.x;
    ptx::bar_sync(1, 128);
    y[threadIdx.x] = s[threadIdx.x ^ 96];
}

__global__ void barriers_of_halves(float* y) {
    if (threadIdx.x % 32 < 16)
        __syncthreads();
    else
        __syncthreads();
    y[threadIdx.x] = 1;
}

__global__ void barriers_of_one_line(float* y) {
    threadIdx.x % 32 < 16 ? __syncthreads() : __syncthreads();
    y[threadIdx.x] = 1;
}

__global__ void named_barriers_of_one_line(float* y) {
    threadIdx.x % 32 < 16 ? ptx::bar_sync(1, 64) : ptx::bar_sync(1, 64);
    y[threadIdx.x] = 1;
}

__global__ void shuffles_of_halves(float* y) {
    float value = threadIdx.x;
    if (threadIdx.x % 2)
        value = __shfl_sync(0xffffffff, value, 0);
    else
        value = __shfl_down_sync(0xffffffff, value, 1);
    y[threadIdx.x] = value;
}

__global__ void votes_of_halves(float* y) {
    if (threadIdx.x % 2)
        y[threadIdx.x] = __any_sync(0xffffffff, 1);
    else
        y[threadIdx.x] = __all_sync(0xffffffff, 1);
}

__global__ void ends_early(float* y) {
    if (threadIdx.x >= 40 && threadIdx.x < 64) return;
    if (threadIdx.x == 0) {
        __shared__ uint64_t barrier;
        ptx::mbarrier_init(__cvta_generic_to_shared(&barrier), 1);
        ptx::mbarrier_wait_parity(__cvta_generic_to_shared(&barrier), 0);
    }
    __syncthreads();
    y[threadIdx.x] = 1;
}

// Each block has 32 columns of y; nothing stops the last one at the end of a row.
__global__ void columns(float* y, int n) { y[threadIdx.x / 32 * n + blockIdx.x * 32 + threadIdx.x % 32] = 1; }
