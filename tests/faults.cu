// Small kernels that each misuse the machine in one way. The emulator must report which (test_faults.py); there must be
// a kernel for each kind of fault in the table in ref/emulator/core/fault.hpp, here or in faults_plain.cu.
#include <algorithm>

#include "launch.cuh"
#include "layout.cuh"
#include "ptx.cuh"

struct FaultArgs {
    int64_t fault;
    float* tensor;  // [64, 64]
};

constexpr int kN = 8;
constexpr uint32_t kBarrier = 16384;

__device__ void multiply(float (&d)[kN / 2], uint64_t desc_a, uint64_t desc_b) {
    ptx::wgmma_fence();
    ptx::wgmma<kN>(d, desc_a, desc_b, 0);
    ptx::wgmma_commit_group();
}

__device__ void load(uint32_t shared, uint32_t barrier, const TensorMap& map) {
    ptx::mbarrier_init(barrier, 1);
    ptx::fence_mbarrier_init();
    ptx::mbarrier_arrive_expect_tx(barrier, 64 * 128);
    ptx::cp_async_bulk_tensor_2d(shared, &map, barrier, 0, 0);
}

// A use of a value that no compiler removes.
__device__ void sink(float value) { [[maybe_unused]] volatile float used = value; }

__global__ void fault(int which, const __grid_constant__ TensorMap map, float* tensor) {
    const uint32_t smem = ptx::shared_memory(), barrier = smem + kBarrier;
    const uint64_t tile = smem_descriptor(smem);
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    float d[kN / 2] = {};
    switch (which) {
        case 0:  // the lanes of a warp issue different WGMMAs
            multiply(d, lane == 5 ? advance(tile, 32) : tile, tile);
            return ptx::wgmma_wait_group<0>();
        case 1:  // the warps of a warpgroup issue different WGMMAs
            multiply(d, warp == 2 ? advance(tile, 32) : tile, tile);
            return ptx::wgmma_wait_group<0>();
        case 2:  // a block of two warps issues a WGMMA
        case 3:  // three of a warpgroup's four warps issue one
            if (warp < 3) multiply(d, tile, tile);
            return ptx::wgmma_wait_group<0>();
        case 4:  // an accumulator is written while its WGMMA is in flight
            multiply(d, tile, tile);
            d[0] = 1.0f;
            return ptx::wgmma_wait_group<0>();
        case 5:  // the tile begins in the middle of a swizzle atom, and the descriptor says so
            multiply(d, tile | 1ull << 49, tile);
            return ptx::wgmma_wait_group<0>();
        case 6:  // the lanes of a warp execute different instructions
            if (lane == 0)
                ptx::shfl_sync_idx(lane, 0);
            else
                __syncwarp();
            return;
        case 7:  // one lane executes an instruction that needs the whole warp
            if (lane == 0) ptx::elect_sync();
            return;
        case 8:  // a store is never committed
            ptx::fence_proxy_async();
            if (threadIdx.x == 0) ptx::cp_async_bulk_tensor_2d_store(&map, smem, 0, 0);
            return;
        case 9:
            return ptx::setmaxnreg_dec<20>();
        case 10:
            return ptx::setmaxnreg_inc<32>();
        case 11:  // the warps of a warpgroup ask for different numbers of registers
            return warp == 1 ? ptx::setmaxnreg_dec<48>() : ptx::setmaxnreg_dec<40>();
        case 12:  // only one warp of a warpgroup executes setmaxnreg
            if (warp == 1) ptx::setmaxnreg_dec<48>();
            return;
        case 13:
            return ptx::bar_sync(16, 128);
        case 14:
            return ptx::bar_sync(1, 40);
        case 15:  // the warps disagree on how many threads the barrier is for
            return ptx::bar_sync(1, warp == 3 ? 128 : 96);
        case 16:
            ptx::barrier_cluster_arrive();
            return ptx::barrier_cluster_arrive();
        case 17:
            return ptx::barrier_cluster_wait();
        case 18:
            if (threadIdx.x) return;
            ptx::mbarrier_init(barrier, 1);
            return ptx::mbarrier_arrive_expect_tx(barrier, 1 << 20);
        case 19:
            return ptx::mbarrier_init(barrier, 0);
        case 20:
            return ptx::mbarrier_arrive_cluster(ptx::mapa(barrier, 5));
        case 21:
            return ptx::st_shared(smem + 4, uint4{});
        case 22:
            ptx::mbarrier_init(barrier, 1);
            return ptx::st_shared(barrier + 4, 0u);
        case 23:
            if (threadIdx.x) return;
            ptx::mbarrier_init(barrier, 1);
            ptx::fence_mbarrier_init();
            return ptx::cp_async_bulk_tensor_2d(smem + 128, &map, barrier, 0, 0);
        case 24:
            ptx::ld_shared<float>(barrier + 1024);
            return;
        case 25:  // polls for a phase that nothing completes
            if (threadIdx.x == 0) ptx::mbarrier_init(barrier, 1);
            __syncthreads();
            while (!ptx::mbarrier_test_wait_parity(barrier, 0)) {
            }
            return;
        case 26:  // no fault: polls for a phase that a TMA load completes
            if (threadIdx.x == 0) {
                ptx::mbarrier_init(barrier, 1);
                ptx::fence_mbarrier_init();
                ptx::mbarrier_arrive_expect_tx(barrier, 64 * 128);
                ptx::cp_async_bulk_tensor_2d(smem, &map, barrier, 0, 0);
            }
            __syncthreads();
            while (!ptx::mbarrier_test_wait_parity(barrier, 0)) {
            }
            return;
        case 27:  // exits while a load into its shared memory is in flight
            if (threadIdx.x) return;
            return load(smem, barrier, map);
        case 28:  // the instruction for a block's own barriers, with an address from mapa
            if (threadIdx.x) return;
            ptx::mbarrier_init(barrier, 1);
            return ptx::mbarrier_arrive(ptx::mapa(barrier, 0));
        case 29:  // a store overwrites a barrier that is the second half of the stored 16 bytes
            ptx::mbarrier_init(barrier - 8, 1);
            return ptx::st_shared(barrier - 16, uint4{});
        case 30:  // a load overwrites a barrier that is the second half of 16 of its bytes
            if (threadIdx.x) return;
            ptx::mbarrier_init(barrier, 1);
            ptx::mbarrier_init(smem + 15 * 1024 + 8, 1);
            ptx::fence_mbarrier_init();
            return ptx::cp_async_bulk_tensor_2d(smem + 8 * 1024, &map, barrier, 0, 0);
        case 31:  // the 64-byte swizzle needs a multiple of 512 bytes, the 32-byte swizzle one of 256
        case 32:
            if (threadIdx.x) return;
            ptx::mbarrier_init(barrier, 1);
            ptx::fence_mbarrier_init();
            return ptx::cp_async_bulk_tensor_2d(smem + (which == 31 ? 256 : 128), &map, barrier, 0, 0);
        case 33:
            return ptx::st_shared_cluster(ptx::mapa(barrier, 5), float4{});
        case 34:
            ptx::ld_shared<uint4>(smem + 4);
            return;
        case 35:  // bytes are read before their load has landed
        case 36:  // bytes are written before their load has landed
            if (threadIdx.x) return;
            load(smem, barrier, map);
            if (which == 35)
                ptx::ld_shared<float>(smem + 512);
            else
                ptx::st_shared(smem + 512, 0.0f);
            return ptx::mbarrier_wait_parity(barrier, 0);
        case 37:  // bytes are overwritten before their store has read them
            if (threadIdx.x) return;
            ptx::cp_async_bulk_tensor_2d_store(&map, smem, 0, 0);
            ptx::cp_async_bulk_commit_group();
            ptx::st_shared(smem + 512, 0.0f);
            return ptx::cp_async_bulk_wait_group_read<0>();
        case 38:  // a WGMMA reads what a thread stored without a fence
            if (threadIdx.x == 0) ptx::st_shared(smem, 0.0f);
            __syncthreads();
            multiply(d, tile, tile);
            return ptx::wgmma_wait_group<0>();
        case 39:  // the same for a TMA store
            if (threadIdx.x != 37) return;
            ptx::st_shared(smem, 0.0f);
            ptx::cp_async_bulk_tensor_2d_store(&map, smem, 0, 0);
            ptx::cp_async_bulk_commit_group();
            return ptx::cp_async_bulk_wait_group_read<0>();
        case 40:  // no wgmma.fence before the first WGMMA
            ptx::wgmma<kN>(d, tile, tile, 0);
            ptx::wgmma_commit_group();
            return ptx::wgmma_wait_group<0>();
        case 41:  // exits without waiting for a WGMMA
            return multiply(d, tile, tile);
        case 42:  // exits without waiting for a store
            if (threadIdx.x) return;
            ptx::cp_async_bulk_tensor_2d_store(&map, smem, 0, 0);
            return ptx::cp_async_bulk_commit_group();
        case 43:  // a load on a barrier without the fence that makes the barrier visible
            if (threadIdx.x) return;
            ptx::mbarrier_init(barrier, 1);
            return ptx::cp_async_bulk_tensor_2d(smem, &map, barrier, 0, 0);
        case 44:  // two arrivals in a phase, which bytes keep open, of a barrier that counts one
            if (threadIdx.x) return;
            ptx::mbarrier_init(barrier, 1);
            ptx::mbarrier_arrive_expect_tx(barrier, 16);
            return ptx::mbarrier_arrive(barrier);
        case 45:  // the other block of the cluster may not have begun
            return ptx::st_shared_cluster(ptx::mapa(smem, 1 - ptx::cluster_ctarank()), float4{});
        case 46:  // the other block of the cluster may have ended
            ptx::barrier_cluster_arrive();
            ptx::barrier_cluster_wait();
            if (ptx::cluster_ctarank() == 0 && threadIdx.x == 0) ptx::st_shared_cluster(ptx::mapa(smem, 1), float4{});
            return;
        case 47:
            return ptx::cp_async_bulk_prefetch_tensor_2d_hint(&map, 1, 0, 0);
        case 49:  // a kernel that may begin early loads before it has waited for the one ahead; it may prefetch
        case 50:  // or it stores
            if (threadIdx.x == 64) {
                ptx::cp_async_bulk_prefetch_tensor_2d_hint(&map, 0, 0, 0);
                if (which == 49)
                    load(smem, barrier, map);
                else
                    ptx::cp_async_bulk_tensor_2d_store(&map, smem, 0, 0);
            }
            return ptx::griddepcontrol_wait();
        case 51:  // it never waits
            return;
        case 52:  // a kernel that may begin early reads global memory as ordinary C++ does
            d[0] = tensor[threadIdx.x];
            return ptx::griddepcontrol_wait();
        case 79:  // a thread reads although only others have waited, and nothing orders it after them
            if (threadIdx.x == 70) d[0] = tensor[0];
            return ptx::griddepcontrol_wait();
        case 60:  // an accumulator is read while its WGMMA is in flight
            multiply(d, tile, tile);
            sink(d[1]);
            return ptx::wgmma_wait_group<0>();
        case 61:  // an accumulator is written between the fence and its WGMMA
            ptx::wgmma_fence();
            d[2] = 1.0f;
            ptx::wgmma<kN>(d, tile, tile, 1);
            ptx::wgmma_commit_group();
            return ptx::wgmma_wait_group<0>();
        case 62:  // a thread reads what another one writes, without a barrier
            if (threadIdx.x == 40) ptx::st_shared(smem, 1.0f);
            return sink(ptx::ld_shared<float>(smem));
        case 63:  // one lane arrives for its warp, whose other lanes may still read
            if (threadIdx.x == 0) {
                ptx::mbarrier_init(barrier + 8, 1);
                ptx::mbarrier_init(barrier + 16, 3);
                load(smem, barrier, map);
            }
            __syncthreads();
            if (warp == 0) {
                if (lane == 0) {
                    ptx::mbarrier_wait_parity(barrier + 16, 0);
                    ptx::mbarrier_arrive_expect_tx(barrier, 64 * 128);
                    ptx::cp_async_bulk_tensor_2d(smem, &map, barrier, 0, 0);
                    ptx::mbarrier_wait_parity(barrier, 1);
                }
                return;
            }
            ptx::mbarrier_wait_parity(barrier, 0);
            sink(ptx::ld_shared<float>(smem + lane * 4));
            if (lane == 0) ptx::mbarrier_arrive(barrier + 16);
            return;
        case 64:  // a relaxed arrival releases nothing
            ptx::barrier_cluster_arrive();
            ptx::barrier_cluster_wait();
            if (ptx::cluster_ctarank() == 0 && threadIdx.x == 0) ptx::st_shared_cluster(ptx::mapa(smem, 1), float4{});
            __syncwarp();
            ptx::barrier_cluster_arrive();
            ptx::barrier_cluster_wait();
            if (ptx::cluster_ctarank() == 0 && threadIdx.x == 0) ptx::st_shared_cluster(ptx::mapa(smem, 1), float4{});
            __syncwarp();
            ptx::barrier_cluster_arrive_relaxed();
            ptx::barrier_cluster_wait();
            if (ptx::cluster_ctarank() == 1 && threadIdx.x == 7) sink(ptx::ld_shared<float>(smem));
            __syncwarp();
            ptx::barrier_cluster_arrive();
            return ptx::barrier_cluster_wait();
        case 65:  // an mbarrier is initialised twice
            if (threadIdx.x) return;
            ptx::mbarrier_init(barrier, 1);
            ptx::name_mbarrier(barrier, "full", 3);
            return ptx::mbarrier_init(barrier, 1);
        case 67:  // a TMA load over what a thread has stored without a fence
            if (threadIdx.x) return;
            ptx::st_shared(smem, 1.0f);
            load(smem, barrier, map);
            return ptx::mbarrier_wait_parity(barrier, 0);
        case 68:  // one lane waits for a load, and the others multiply
            if (threadIdx.x == 0) load(smem, barrier, map);
            __syncthreads();
            if (lane == 0) ptx::mbarrier_wait_parity(barrier, 0);
            multiply(d, tile, tile);
            return ptx::wgmma_wait_group<0>();
        case 70: {  // accumulators that were never initialised
            float sum[kN / 2];
            ptx::wgmma_fence();
            ptx::wgmma<kN>(sum, tile, tile, 1);
            ptx::wgmma_commit_group();
            return ptx::wgmma_wait_group<0>();
        }
        case 73:  // no commit, so that the wait waits for nothing
            ptx::wgmma_fence();
            ptx::wgmma<kN>(d, tile, tile, 0);
            ptx::wgmma_wait_group<0>();
            return sink(d[0]);
        case 74:  // no wgmma.commit_group before the wait, and then what the WGMMA reads is overwritten
            ptx::wgmma_fence();
            ptx::wgmma<kN>(d, tile, tile, 0);
            ptx::wgmma_wait_group<0>();
            __syncthreads();
            return ptx::st_shared(smem, 1.0f);
        case 75:  // two warpgroups meet at one barrier, each for itself
            ptx::st_shared(smem + threadIdx.x * 4, 1.0f);
            ptx::bar_sync(1, 128);
            return sink(ptx::ld_shared<float>(smem + (threadIdx.x ^ 127) * 4));
        case 76:  // a relaxed arrival at the end: the other block's store may come after this block's end
            ptx::barrier_cluster_arrive();
            ptx::barrier_cluster_wait();
            if (threadIdx.x == 7) ptx::st_shared_cluster(ptx::mapa(smem, 1 - ptx::cluster_ctarank()), float4{});
            __syncwarp();
            ptx::barrier_cluster_arrive_relaxed();
            return ptx::barrier_cluster_wait();
        case 77:  // a warp has diverged: its halves execute the same barrier in two places
            if (lane < 16)
                ptx::bar_sync(1, 128);
            else
                ptx::bar_sync(1, 128);
            return;
        case 78:  // the same, of an instruction that lanes do not wait for
            if (lane < 16)
                ptx::wgmma_fence();
            else
                ptx::wgmma_fence();
            return;
        case 80:  // one lane of each warp waits for an arrival that never comes, and the others for that lane
            if (threadIdx.x == 0) ptx::mbarrier_init(barrier, 1);
            __syncthreads();
            if (lane == 0) ptx::mbarrier_wait_parity(barrier, 0);
            return __syncwarp();
    }
}

// A kernel whose threads have 128 registers each, however it is launched.
__global__ void __launch_bounds__(256, 2) bounded() { ptx::setmaxnreg_inc<136>(); }

extern "C" const char* gemm_ladder_launch(const FaultArgs* args) {
    TensorMap map;
    const Swizzle swizzle = args->fault == 31 ? Swizzle::k64B : args->fault == 32 ? Swizzle::k32B : Swizzle::k128B;
    const uint32_t columns = 4u << static_cast<int>(swizzle);  // the floats of a swizzled row
    if (auto error = tensor_map_2d(&map, args->tensor, 64, 64, 64, 64, columns, swizzle)) return error;
    if (args->fault == 71) return launch(bounded, {.blocks = 1, .threads = 128});
    if (args->fault == 72) return launch(bounded, {.blocks = 1, .threads = 512});
    const int64_t pairs[] = {45, 46, 64, 76};
    const bool two = std::ranges::count(pairs, args->fault) > 0;
    const uint32_t cluster = two ? 2 : 1;
    const LaunchConfig config{.blocks = cluster,
                              .threads = args->fault == 2    ? 64u
                                         : args->fault == 75 ? 256u
                                                             : 128u,
                              .shared_bytes = kBarrier + 24,
                              .cluster = cluster,
                              .early = (args->fault >= 49 && args->fault <= 52) || args->fault == 79};
    if (args->fault == 48) {  // a fault whose message the launcher hides
        launch(fault, config, 21, map, args->tensor);
        return "something went wrong";
    }
    return launch(fault, config, static_cast<int>(args->fault), map, args->tensor);
}
