// Rung 5: two CTAs share one operand's loads.
//
//   python -m gemm_ladder compare --rungs s5_tma_multicast --shapes 128x128x256
//
// The two CTAs of a cluster compute tiles that lie below each other, so they need the same tile of B. For each K block
//   1. thread 0 of each CTA loads the CTA's own tile of A and its scales, and one half of the tile of B, which it
//      multicasts: the copy engine writes it to the same address in the shared memory of both CTAs, and counts its
//      bytes on both CTAs' `full`. B is read from L2 once, not twice;
//   2. all warps wait until their CTA's stage is full, multiply it, and release it to both CTAs;
//   3. they promote the partial sum.
// The price: a stage may be loaded again only when the warps of both CTAs have finished with it.
//
// The mbarriers of one CTA; its neighbour's are the mirror image.
//
//     thread 0 --- 1 arrival (expect_tx); bytes of A, the scales, half of B --+
//        ^                                                                    +--> full[stage]
//        |     neighbour's thread 0 --- bytes of the other half of B ---------+         |
//        |                                                                              |
//        | phase complete: load the stage again                                         | phase complete:
//        |                                                                              v the bytes are there
//   empty[stage] <------------------------------------------------ 4 warps, and the neighbour's 4 warps
//                 8 arrivals, one from each warp of both CTAs
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

// A stage is one piece of shared memory: the tiles of A and B, A's scales, and the stage's two mbarriers, in that
// order.
constexpr uint32_t kBytesA = kTileM * kTileK;  // (kTileM, kTileK)
constexpr uint32_t kBytesB = kTileN * kTileK;  // (kTileN, kTileK)
constexpr uint32_t kBytesScales = kTileM * sizeof(float);
constexpr uint32_t kB = kBytesA, kScalesA = kB + kBytesB;
constexpr uint32_t kFull = kScalesA + kBytesScales, kEmpty = kFull + 16;
constexpr uint32_t kBytesStage = ceil_div(kEmpty + 16, 1024) * 1024;
constexpr uint32_t kSharedBytes = kStages * kBytesStage;

__device__ uint32_t smem_stage(int stage) { return ptx::shared_memory() + stage * kBytesStage; }

// A position in the ring: the stage's address, and the parity of the phase that its mbarriers are in this time around.
struct Ring {
    uint32_t stage = smem_stage(0), parity = 0;
    __device__ void advance() {
        stage += kBytesStage;
        if (stage == smem_stage(kStages)) stage = smem_stage(0), parity ^= 1;
    }
};

__global__ void __launch_bounds__(kThreads, 2)
    s5_tma_multicast(const __grid_constant__ TensorMap map_a, const __grid_constant__ TensorMap map_b,
                     const __grid_constant__ TensorMap map_sfa, const GemmArgs p) {
    // The rows of tiles are rounded up to whole clusters. The last CTA may then lie past the end: it loads zeros and
    // stores nothing.
    const int64_t tiles_m = ceil_div(p.m, kTileM * kCluster) * kCluster;
    const int64_t tile_m = blockIdx.x % tiles_m * kTileM;
    const int64_t tile_n = blockIdx.x / tiles_m * kTileN;
    const int blocks = static_cast<int>(p.k / kScaleK);

    // ---- Prologue: initialise the mbarriers
    if (threadIdx.x == 0) {
        for (int stage = 0; stage < kStages; ++stage) {
            ptx::mbarrier_init(smem_stage(stage) + kFull, 1);                          // thread 0's expect_tx
            ptx::mbarrier_init(smem_stage(stage) + kEmpty, kCluster * kThreads / 32);  // one arrival a warp
        }
        ptx::fence_mbarrier_init();
    }
    __syncwarp();
    ptx::barrier_cluster_arrive();  // both CTAs' mbarriers exist before either CTA sends
    ptx::barrier_cluster_wait();

    // ---- Loading, by thread 0. A fresh mbarrier is in phase 0, so waiting for the other parity returns at once: the
    // first kStages loads do not wait.
    Ring next;  // the stage to load
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

    // A thread's accumulators belong to two rows of the tile, 8 apart, and each row of A has its own scale.
    const int row0 = accumulator_row(threadIdx.x, 0), row1 = row0 + 8;
    const float* sfb = p.sfb + tile_n / kScaleN * blocks;

    // ---- Main loop: one K block at a time
    Ring ring;                                          // the stage to multiply
    float total[kRegisters] = {}, partial[kRegisters];  // (kTileM, kTileN), spread over the CTA's threads
#pragma unroll 4
    for (int block = 0; block < blocks; ++block, ring.advance()) {
        ptx::mbarrier_wait_parity(ring.stage + kFull, ring.parity);
        const uint64_t desc_a = smem_descriptor(ring.stage);
        const uint64_t desc_b = smem_descriptor(ring.stage + kB);

        ptx::wgmma_fence();
#pragma unroll
        for (int k = 0; k < kTileK; k += kWgmmaK)
            ptx::wgmma<kTileN>(partial, advance(desc_a, k), advance(desc_b, k), k != 0);  // the first starts from zero
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

    // ---- Epilogue: registers to D
    __syncwarp();
    ptx::barrier_cluster_arrive();  // before the stores: its release would wait for them to reach memory
#pragma unroll
    for (int i = 0; i < kRegisters; i += 2) {
        const int64_t row = tile_m + (i / 2 % 2 ? row1 : row0);
        const int64_t column = tile_n + accumulator_column(threadIdx.x, i);
        if (row < p.m && column < p.n)  // n is even: both columns of a pair are inside, or neither
            *reinterpret_cast<uint32_t*>(p.d + row * p.n + column) = ptx::cvt_rn_bf16x2_f32(total[i + 1], total[i]);
    }
    ptx::barrier_cluster_wait();  // no CTA exits while its neighbour may still send to it
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
        s5_tma_multicast,
        {.blocks = tiles, .threads = kThreads, .shared_bytes = kSharedBytes, .stream = p.stream, .cluster = kCluster},
        map_a, map_b, map_sfa, p);
}
