// Rung 6: warps with different jobs.
//
//   python -m gemm_ladder compare --rungs s6_warp_specialized --shapes 256x256x256
//
// A CTA is three warpgroups and computes one 256 x 128 tile of D. Tiles that run at the same time lie close together,
// so that L2 serves most loads.
//   1. The producer, one thread of warpgroup 0, loads K block after K block into the ring of stages. It waits for
//      nothing but an empty stage. The cluster's two CTAs, whose tiles lie side by side, multicast A to each other;
//   2. two consumer warpgroups multiply and promote, 2 x 64 rows each, so that while one promotes on the CUDA
//      cores, the other has the tensor cores. setmaxnreg moves registers to them from the producer's warpgroup.
//
// The mbarriers of one CTA; its neighbour's are the mirror image.
//
//     producer --- 1 arrival (expect_tx); bytes of B, the scales, half of A --+
//        ^                                                                    +--> full[stage]
//        |     neighbour's producer --- bytes of the other half of A ---------+         |
//        |                                                                              |
//        | phase complete: load the stage again                                         | phase complete:
//        |                                                                              v the bytes are there
//   empty[stage] <---------------------------------------- 2 consumers, and the neighbour's 2 consumers
//                 16 arrivals, one from each consumer warp of both CTAs
#include "launch.cuh"
#include "layout.cuh"
#include "ptx.cuh"

constexpr int kTileM = 256;
constexpr int kTileN = 128;  // as wide as a scale block of B: one scale of B for the whole tile
constexpr int kTileK = kScaleK;
constexpr int kWarpgroup = 128;
constexpr int kConsumers = 2;  // warpgroups
constexpr int kThreads = (1 + kConsumers) * kWarpgroup;
constexpr int kSliceM = kConsumers * kWgmmaM;  // rows of a tile are in slices of 128: each consumer has 64 of each
constexpr int kSlices = kTileM / kSliceM;
constexpr int kRegisters = kWgmmaM * kTileN / kWarpgroup;
constexpr int kStages = 4;
constexpr int kCluster = 2;  // two CTAs compute tiles side by side, and share A
constexpr uint16_t kEveryBlock = (1 << kCluster) - 1;
// Rasterisation: clusters go down a band 8 tiles tall before they go right. Tiles that run at the same time then load
// the same operands, and L2 serves most loads.
constexpr int kGroupM = 8;

// A stage is one piece of shared memory: the tiles of A and B, A's scales, and the stage's two mbarriers, in that
// order.
constexpr uint32_t kBytesA = kTileM * kTileK;  // (kTileM, kTileK)
constexpr uint32_t kBytesB = kTileN * kTileK;  // (kTileN, kTileK)
constexpr uint32_t kBytesScales = kTileM * sizeof(float);
constexpr uint32_t kB = kBytesA, kScaleA = kB + kBytesB;
constexpr uint32_t kFull = kScaleA + kBytesScales, kEmpty = kFull + 16;
constexpr uint32_t kBytesStage = ceil_div(kEmpty + 16, 1024) * 1024;
constexpr uint32_t kSharedBytes = kStages * kBytesStage;

__device__ uint32_t smem_stage(int stage) { return ptx::shared_memory() + stage * kBytesStage; }

// A position in the ring: the stage's address in shared memory, and the parity of the phase of `full` in which this
// round's loads arrive. `empty` is one phase behind: the producer waits for it with the opposite parity.
struct Ring {
    uint32_t stage = smem_stage(0), parity = 0;
    __device__ void advance() {
        stage += kBytesStage;
        if (stage == smem_stage(kStages)) stage = smem_stage(0), parity ^= 1;
    }
};

// Clusters are numbered down a band that is kGroupM tiles tall before they go right.
__device__ void find_tile(const GemmArgs& p, int& tile_m, int& tile_n) {
    const int tiles_m = static_cast<int>(ceil_div(p.m, kTileM));
    const int pairs_n = static_cast<int>(ceil_div(p.n, kTileN * kCluster)), pair = blockIdx.x / kCluster;
    const int first_m = pair / (kGroupM * pairs_n) * kGroupM, in_group = pair % (kGroupM * pairs_n);
    const int group_m = tiles_m - first_m < kGroupM ? tiles_m - first_m : kGroupM;
    tile_m = (first_m + in_group % group_m) * kTileM;
    tile_n = (in_group / group_m * kCluster + ptx::cluster_ctarank()) * kTileN;
}

__global__ void __launch_bounds__(kThreads, 1)
    s6_warp_specialized(const __grid_constant__ TensorMap map_a, const __grid_constant__ TensorMap map_b,
                        const __grid_constant__ TensorMap map_sfa, const GemmArgs p) {
    int tile_m, tile_n;
    find_tile(p, tile_m, tile_n);
    const int blocks = static_cast<int>(p.k / kScaleK);

    // ---- Prologue: initialise the mbarriers
    if (threadIdx.x == 0) {
        for (int stage = 0; stage < kStages; ++stage) {
            ptx::mbarrier_init(smem_stage(stage) + kFull, 1);  // the producer's expect_tx
            ptx::mbarrier_init(smem_stage(stage) + kEmpty, kCluster * kConsumers * kWarpgroup / 32);
        }
        ptx::fence_mbarrier_init();
    }
    __syncwarp();
    ptx::barrier_cluster_arrive();  // both CTAs' mbarriers exist before either CTA sends
    ptx::barrier_cluster_wait();

    // ---- The producer, warpgroup 0. A fresh mbarrier is in phase 0, so waiting for the other parity returns at once:
    // the first kStages loads do not wait.
    if (threadIdx.x < kWarpgroup) {
        ptx::setmaxnreg_dec<40>();
        if (threadIdx.x == 0) {
            const uint32_t rank = ptx::cluster_ctarank();
            Ring next;  // the stage to load
#pragma unroll 1
            for (int block = 0; block < blocks; ++block, next.advance()) {
                const uint32_t full = next.stage + kFull;
                ptx::mbarrier_wait_parity(next.stage + kEmpty, next.parity ^ 1);
                ptx::mbarrier_arrive_expect_tx(full, kBytesA + kBytesB + kBytesScales);
                ptx::cp_async_bulk_tensor_2d_multicast(next.stage + rank * (kBytesA / kCluster), &map_a, full,
                                                       block * kTileK, tile_m + rank * (kTileM / kCluster),
                                                       kEveryBlock);
                ptx::cp_async_bulk_tensor_2d(next.stage + kB, &map_b, full, block * kTileK, tile_n);
                ptx::cp_async_bulk_tensor_2d(next.stage + kScaleA, &map_sfa, full, tile_m, block);
            }
        }
    } else {
        // ---- The consumers, the other two. The shuffle tells the compiler that all lanes have the same number.
        ptx::setmaxnreg_inc<232>();
        const int consumer = ptx::shfl_sync_idx(threadIdx.x / kWarpgroup, 0) - 1;
        // A thread's accumulators belong to two rows of each WGMMA tile, this one and the one 8 below, and each row of
        // A has its own scale.
        const int row = consumer * kWgmmaM + accumulator_row(threadIdx.x % kWarpgroup, 0);

        // The cluster's second tile may lie past the end of B: it gets any scale, and stores nothing.
        const float* sfb = tile_n < p.n ? p.sfb + tile_n / kScaleN * blocks : p.sfb;

        // ---- Main loop: one K block at a time
        Ring ring;  // the stage to multiply
        // (kSlices, kWgmmaM, kTileN) and (kWgmmaM, kTileN), spread over the warpgroup's threads
        float total[kSlices][kRegisters] = {}, partial[kRegisters];
#pragma unroll 4
        for (int block = 0; block < blocks; ++block) {
            ptx::mbarrier_wait_parity(ring.stage + kFull, ring.parity);
            const uint64_t desc_a = smem_descriptor(ring.stage + consumer * kWgmmaM * kSwizzleRow);
            const uint64_t desc_b = smem_descriptor(ring.stage + kB);
            // Scales are loaded before the first WGMMA: loading them after it would delay the second slice's WGMMAs.
            float scale_a[kSlices][2], scale_b = sfb[block];
#pragma unroll
            for (int i = 0; i < kSlices * 2; ++i) {
                const uint32_t in_tile = (i / 2 * kSliceM + row + i % 2 * 8) * sizeof(float);
                scale_a[i / 2][i % 2] = ptx::ld_shared<float>(ring.stage + kScaleA + in_tile);
            }
#pragma unroll
            for (int slice = 0; slice < kSlices; ++slice) {
                const uint64_t slice_a = advance(desc_a, slice * kSliceM * kSwizzleRow);
                ptx::wgmma_fence();
#pragma unroll
                for (int k = 0; k < kTileK; k += kWgmmaK)
                    ptx::wgmma<kTileN>(partial, advance(slice_a, k), advance(desc_b, k), k != 0);
                ptx::wgmma_commit_group();
                ptx::wgmma_wait_group<0>();
                if (slice == kSlices - 1) {
                    __syncwarp();
                    if (ptx::laneid() < kCluster)
                        ptx::mbarrier_arrive_cluster(ptx::mapa(ring.stage + kEmpty, ptx::laneid()));
                    ring.advance();
                }
#pragma unroll
                for (int i = 0; i < kRegisters; ++i) {
                    const float scale = scale_a[slice][i / 2 % 2] * scale_b;
                    total[slice][i] = fmaf(partial[i], scale, total[slice][i]);
                }
            }
        }

        // ---- Epilogue: registers to D
#pragma unroll
        for (int i = 0; i < kSlices * kRegisters; i += 2) {
            const float* pair = total[i / kRegisters] + i % kRegisters;
            const int64_t m = tile_m + i / kRegisters * kSliceM + row + i / 2 % 2 * 8;
            const int64_t n = tile_n + accumulator_column(threadIdx.x % kWarpgroup, i % kRegisters);
            if (m < p.m && n < p.n)  // n is even: both columns of a pair are inside, or neither
                *reinterpret_cast<uint32_t*>(p.d + m * p.n + n) = ptx::cvt_rn_bf16x2_f32(pair[1], pair[0]);
        }
    }

    __syncwarp();
    ptx::barrier_cluster_arrive();  // no CTA exits while its neighbour may still send to it
    ptx::barrier_cluster_wait();
}

extern "C" const char* gemm_ladder_launch(const GemmArgs* args) {
    const GemmArgs& p = *args;
    const int64_t tiles = ceil_div(p.m, kTileM) * ceil_div(p.n, kTileN * kCluster) * kCluster;
    if (tiles == 0) return nullptr;
    TensorMap map_a, map_b, map_sfa;
    if (auto error = tensor_map_2d(&map_a, p.a, p.m, p.k, p.k, kTileM / kCluster, kTileK, Swizzle::k128B)) return error;
    if (auto error = tensor_map_2d(&map_b, p.b, p.n, p.k, p.k, kTileN, kTileK, Swizzle::k128B)) return error;
    if (auto error = tensor_map_2d(&map_sfa, p.sfa, p.k / kScaleK, p.m, p.sfa_stride, 1, kTileM, Swizzle::kNone))
        return error;
    return launch(
        s6_warp_specialized,
        {.blocks = tiles, .threads = kThreads, .shared_bytes = kSharedBytes, .stream = p.stream, .cluster = kCluster},
        map_a, map_b, map_sfa, p);
}
