// Small kernels that each misuse the machine in one way, for test_faults.py: the emulator must say how.
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

__global__ void fault(int which, const __grid_constant__ TensorMap map) {
    const uint32_t smem = ptx::shared_memory(), barrier = smem + kBarrier;
    const uint64_t tile = smem_descriptor(smem);
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    float d[kN / 2] = {};
    switch (which) {
        case 0:  // the lanes of a warp issue different WGMMAs
            multiply(d, lane == 5 ? advance(tile, 32) : tile, tile);
            return ptx::wgmma_wait_group<0>();
        case 1:  // the warps of a warpgroup do
            multiply(d, warp == 2 ? advance(tile, 32) : tile, tile);
            return ptx::wgmma_wait_group<0>();
        case 2:  // half a warpgroup issues one
        case 3:  // three of its warps do
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
        case 7:  // one lane executes what the whole warp must
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
        case 12:  // only one of them asks
            if (warp == 1) ptx::setmaxnreg_dec<48>();
            return;
        case 13:
            return ptx::bar_sync(16, 128);
        case 14:
            return ptx::bar_sync(1, 40);
        case 15:  // the warps disagree on how many threads meet
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
        case 25:  // waits, without ever stopping, for what nobody does
            if (threadIdx.x == 0) ptx::mbarrier_init(barrier, 1);
            __syncthreads();
            while (!ptx::mbarrier_test_wait_parity(barrier, 0)) {
            }
            return;
        case 26:  // no fault: the same, for bytes that are on their way
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
        case 27:  // leaves while a load into its shared memory is on its way
            if (threadIdx.x) return;
            ptx::mbarrier_init(barrier, 1);
            ptx::fence_mbarrier_init();
            ptx::mbarrier_arrive_expect_tx(barrier, 64 * 128);
            return ptx::cp_async_bulk_tensor_2d(smem, &map, barrier, 0, 0);
        case 28:  // the instruction for a block's own barriers, with an address from mapa
            if (threadIdx.x) return;
            ptx::mbarrier_init(barrier, 1);
            return ptx::mbarrier_arrive(ptx::mapa(barrier, 0));
        case 29:  // the barrier is the second half of these 16 bytes
            ptx::mbarrier_init(barrier - 8, 1);
            return ptx::st_shared(barrier - 16, uint4{});
        case 30:  // as it is of 16 bytes that a load brings
            if (threadIdx.x) return;
            ptx::mbarrier_init(barrier, 1);
            ptx::mbarrier_init(smem + 15 * 1024 + 8, 1);
            ptx::fence_mbarrier_init();
            return ptx::cp_async_bulk_tensor_2d(smem + 8 * 1024, &map, barrier, 0, 0);
        case 31:  // 512 bytes are the pattern of the 64-byte swizzle, 256 that of the 32-byte one
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
    }
}

// Refusals of the host's side: no kernel runs.
const char* refused(int64_t which, const float* tensor) {
    TensorMap map;
    const auto box = [&](const float* base, int64_t rows, int64_t columns, int64_t stride, uint32_t box_rows,
                         uint32_t box_columns, Swizzle swizzle) {
        return tensor_map_2d(&map, base, rows, columns, stride, box_rows, box_columns, swizzle);
    };
    switch (which) {
        case 100:
            return box(tensor + 1, 64, 32, 64, 64, 32, Swizzle::k128B);
        case 101:
            return box(tensor, 64, 32, 33, 64, 32, Swizzle::k128B);
        case 102:
            return box(tensor, 0, 32, 64, 64, 32, Swizzle::k128B);
        case 103:
            return box(tensor, 64, 32, 64, 257, 32, Swizzle::k128B);
        case 104:
            return box(tensor, 64, 32, 64, 64, 3, Swizzle::kNone);
        case 105:
            return box(tensor, 64, 64, 64, 64, 64, Swizzle::k128B);
        case 106:
            return launch(fault, {.blocks = 1, .threads = 100}, 0, map);
        case 107:
            return launch(fault, {.blocks = 1, .threads = 128, .shared_bytes = 232449}, 0, map);
        case 108:
            return launch(fault, {.blocks = 3, .threads = 128, .cluster = 2}, 0, map);
        case 109:
            return launch(fault, {.blocks = int64_t{1} << 31, .threads = 128}, 0, map);
        case 110:
            return box(tensor, 64, 64, 64, 64, 20, Swizzle::k64B);
        default:
            return box(tensor, 64, 64, 64, 64, 12, Swizzle::k32B);
    }
}

extern "C" const char* gemm_ladder_launch(const FaultArgs* args) {
    if (args->fault >= 100) return refused(args->fault, args->tensor);
    TensorMap map;
    const Swizzle swizzle = args->fault == 31 ? Swizzle::k64B : args->fault == 32 ? Swizzle::k32B : Swizzle::k128B;
    const uint32_t columns = 4u << static_cast<int>(swizzle);  // as many floats as a swizzled row holds
    if (auto error = tensor_map_2d(&map, args->tensor, 64, 64, 64, 64, columns, swizzle)) return error;
    return launch(fault, {.blocks = 1, .threads = args->fault == 2 ? 64u : 128u, .shared_bytes = kBarrier + 8},
                  static_cast<int>(args->fault), map);
}
