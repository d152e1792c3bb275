// Rung 4: two blocks share one operand's loads.
//
// The two blocks of a cluster make tiles that lie below each other, so they need the same tile of B. Each loads half
// of it and multicasts it: the copy engine writes it at the same place in both blocks' shared memory, and counts its
// bytes on both blocks' barriers. B crosses from L2 once, not twice. The price: a stage is free only when the warps of
// both blocks have finished with it.
#include "launch.cuh"
#include "layout.cuh"
#include "ptx.cuh"

constexpr int kTileM = kWgmmaM;
constexpr int kTileN = 128;  // as wide as a scale block of B: one scale of B for the whole tile
constexpr int kTileK = kScaleK;
constexpr int kThreads = 128;  // one warpgroup
constexpr int kRegisters = kTileM * kTileN / kThreads;
constexpr int kStages = 4;
constexpr int kCluster = 2;
constexpr uint16_t kEveryBlock = (1 << kCluster) - 1;

// A stage is one piece of shared memory; this is what lies where in it. `full` completes when the stage's bytes have
// arrived, `empty` when every warp of the cluster has finished with them.
constexpr uint32_t kBytesA = kTileM * kTileK;
constexpr uint32_t kBytesB = kTileN * kTileK;
constexpr uint32_t kBytesScales = kTileM * sizeof(float);
constexpr uint32_t kB = kBytesA, kScalesA = kB + kBytesB;
constexpr uint32_t kFull = kScalesA + kBytesScales, kEmpty = kFull + 16;
constexpr uint32_t kBytesStage = ceil_div(kEmpty + 16, 1024) * 1024;
constexpr uint32_t kSharedBytes = kStages * kBytesStage;

__device__ uint32_t smem_stage(int stage) { return ptx::shared_memory() + stage * kBytesStage; }

// Where a walk around the ring is: the stage's address, and the parity of its turn.
struct Ring {
    uint32_t stage = smem_stage(0), parity = 0;
    __device__ void advance() {
        stage += kBytesStage;
        if (stage == smem_stage(kStages)) stage = smem_stage(0), parity ^= 1;
    }
};

__global__ void __launch_bounds__(kThreads, 2)
    s4_tma_multicast(const __grid_constant__ TensorMap map_a, const __grid_constant__ TensorMap map_b,
                     const __grid_constant__ TensorMap map_sfa, const GemmArgs p) {
    // An odd number of tiles is filled up: the last block then loads zeros and writes nothing.
    const int64_t tiles_m = ceil_div(p.m, kTileM * kCluster) * kCluster;
    const int64_t tile_m = blockIdx.x % tiles_m * kTileM;
    const int64_t tile_n = blockIdx.x / tiles_m * kTileN;
    const int blocks = static_cast<int>(p.k / kScaleK);

    if (threadIdx.x == 0) {
        for (int stage = 0; stage < kStages; ++stage) {
            ptx::mbarrier_init(smem_stage(stage) + kFull, 1);  // the issuing thread; the bytes count themselves
            ptx::mbarrier_init(smem_stage(stage) + kEmpty, kCluster * kThreads / 32);  // one arrival a warp
        }
        ptx::fence_mbarrier_init();
    }
    __syncwarp();
    ptx::barrier_cluster_arrive();  // nobody sends before every block's barriers exist
    ptx::barrier_cluster_wait();

    // Nobody has filled a fresh stage: waiting for the parity before the first returns at once.
    Ring next;  // the stage to fill
    const auto load = [&](int block) {
        const uint32_t full = next.stage + kFull;
        ptx::mbarrier_wait_parity(next.stage + kEmpty, next.parity ^ 1);
        ptx::mbarrier_arrive_expect_tx(full, kBytesA + kBytesB + kBytesScales);
        ptx::cp_async_bulk_tensor_2d(next.stage, &map_a, full, block * kTileK, tile_m);
        const uint32_t rank = ptx::cluster_ctarank();
        ptx::cp_async_bulk_tensor_2d_multicast(next.stage + kB + rank * (kBytesB / kCluster), &map_b, full,
                                               block * kTileK, tile_n + rank * (kTileN / kCluster), kEveryBlock);
        ptx::cp_async_bulk_tensor_2d(next.stage + kScalesA, &map_sfa, full, tile_m, block);
        next.advance();
    };
    if (threadIdx.x == 0)
        for (int block = 0; block < kStages - 1 && block < blocks; ++block) load(block);

    // A thread holds pieces of two rows, 8 apart; each row has its scale.
    const int row0 = accumulator_row(threadIdx.x, 0), row1 = row0 + 8;
    const float* sfb = p.sfb + tile_n / kScaleN * blocks;

    Ring ring;  // the stage to multiply
    float total[kRegisters] = {}, partial[kRegisters];
#pragma unroll 4
    for (int block = 0; block < blocks; ++block, ring.advance()) {
        ptx::mbarrier_wait_parity(ring.stage + kFull, ring.parity);
        const uint64_t desc_a = smem_descriptor(ring.stage);
        const uint64_t desc_b = smem_descriptor(ring.stage + kB);

        ptx::wgmma_fence();
#pragma unroll
        for (int k = 0; k < kTileK; k += kWgmmaK)
            ptx::wgmma<kTileN>(partial, advance(desc_a, k), advance(desc_b, k), k != 0);  // the first: from zero
        ptx::wgmma_commit_group();
        if (threadIdx.x == 0 && block + kStages - 1 < blocks) load(block + kStages - 1);

        const float scale0 = ptx::ld_shared<float>(ring.stage + kScalesA + row0 * sizeof(float)) * sfb[block];
        const float scale1 = ptx::ld_shared<float>(ring.stage + kScalesA + row1 * sizeof(float)) * sfb[block];

        ptx::wgmma_wait_group<0>();
        __syncwarp();
        if (ptx::laneid() < kCluster) ptx::mbarrier_arrive_cluster(ptx::mapa(ring.stage + kEmpty, ptx::laneid()));
#pragma unroll
        for (int i = 0; i < kRegisters; ++i) total[i] = fmaf(partial[i], i / 2 % 2 ? scale1 : scale0, total[i]);
    }

    __syncwarp();
    ptx::barrier_cluster_arrive();  // before the stores: its release would wait for them to reach memory
#pragma unroll
    for (int i = 0; i < kRegisters; i += 2) {
        const int64_t row = tile_m + (i / 2 % 2 ? row1 : row0);
        const int64_t column = tile_n + accumulator_column(threadIdx.x, i);
        if (row < p.m && column < p.n)  // n is even, so a pair is inside or outside as a whole
            *reinterpret_cast<uint32_t*>(p.d + row * p.n + column) = ptx::cvt_rn_bf16x2_f32(total[i + 1], total[i]);
    }
    ptx::barrier_cluster_wait();  // nobody leaves while its neighbour may still send to it
}

extern "C" const char* gemm_ladder_launch(const GemmArgs* args) {
    const GemmArgs& p = *args;
    const int64_t tiles = ceil_div(p.m, kTileM * kCluster) * kCluster * ceil_div(p.n, kTileN);
    if (tiles == 0) return nullptr;
    TensorMap map_a, map_b, map_sfa;
    if (auto error = tensor_map_2d(&map_a, p.a, p.m, p.k, p.k, kTileM, kTileK, Swizzle::k128B)) return error;
    if (auto error = tensor_map_2d(&map_b, p.b, p.n, p.k, p.k, kTileN / kCluster, kTileK, Swizzle::k128B)) return error;
    if (auto error = tensor_map_2d(&map_sfa, p.sfa, p.k / kScaleK, p.m, p.sfa_stride, 1, kTileM, Swizzle::kNone))
        return error;
    return launch(
        s4_tma_multicast,
        {.blocks = tiles, .threads = kThreads, .shared_bytes = kSharedBytes, .stream = p.stream, .cluster = kCluster},
        map_a, map_b, map_sfa, p);
}
