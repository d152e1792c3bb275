// Rung 7: warps with different jobs.
//
//   python -m gemm_ladder compare --rungs s7_persistent --shapes 256x256x256
//
// CTAs are persistent: each computes many tiles. Tiles that run at the same time lie close together, so that L2 serves
// most loads. Tiles are 256 x 128, or 128 x 192 where waves of those are expected to take less time in all
// (gemm_ladder_launch, at the end). For each tile
//   1. the producer, one thread of warpgroup 0, loads K block after K block into the ring of stages. It runs ahead into
//      the next tile while the previous one is being stored. The cluster's two CTAs multicast A to each other;
//   2. two consumer warpgroups multiply and promote, so that while one promotes on the CUDA cores, the other has the
//      tensor cores. setmaxnreg moves registers to them from the producer's warpgroup;
//   3. each consumer packs its results into shared memory (stmatrix), and the copy engine stores them.
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
#include "epilogue.cuh"
#include "launch.cuh"
#include "layout.cuh"
#include "ptx.cuh"

constexpr int kTileK = kScaleK;
constexpr int kCluster = 2;  // two CTAs compute tiles side by side, and share A
constexpr uint16_t kEveryBlock = (1 << kCluster) - 1;

constexpr int kWarpgroup = 128;
constexpr int kConsumers = 2;  // warpgroups
constexpr int kThreads = (1 + kConsumers) * kWarpgroup;
constexpr int kSliceM = kConsumers * kWgmmaM;  // a tile is one or two slices of 128 rows; each consumer has 64 of each
constexpr int kStoreN = kSwizzleRow / sizeof(uint16_t);     // columns of D in a swizzled row: 64
constexpr uint32_t kBytesStoreBox = kWgmmaM * kSwizzleRow;  // (kWgmmaM, kStoreN): one TMA store
// Rasterisation: clusters go down a band 8 tiles tall before they go right. Tiles that run at the same time then load
// the same operands, and L2 serves most loads.
constexpr int kGroupM = 8;

template <int kTileM, int kTileN, int kStages>
struct Kernel {
    static constexpr int kSlices = kTileM / kSliceM;
    static constexpr int kRegisters = kWgmmaM * kTileN / kWarpgroup;
    // A tile of 128 columns needs one scale of B for each K block. A tile of 192 columns needs two, and its first 64 or
    // 128 columns belong to the first of them.
    static constexpr int kSegments = kTileN % kScaleN == 0 ? 1 : kTileN / kStoreN;
    static constexpr int kScalesB = kSegments == 1 ? 1 : 2;
    // K blocks in the body of the main loop. A longer body costs registers, and pays where a tile has two slices.
    static constexpr int kUnroll = kSlices == 1 ? 1 : 4;
    static constexpr int kBoxes = kSlices * kTileN / kStoreN;  // TMA stores of D, for each consumer

    // A stage is one piece of shared memory: the tiles of A and B, the scales of both, and the stage's two mbarriers,
    // in that order. The consumers' buffers for D lie before the first stage.
    static constexpr uint32_t kBytesA = kTileM * kTileK;  // (kTileM, kTileK)
    static constexpr uint32_t kBytesB = kTileN * kTileK;  // (kTileN, kTileK)
    static constexpr uint32_t kBytesScales = kTileM * sizeof(float) + kScalesB * kScaleBox * sizeof(float);
    static constexpr uint32_t kB = kBytesA, kScaleA = kB + kBytesB, kScaleB = kScaleA + kTileM * sizeof(float);
    static constexpr uint32_t kFull = kScaleB + kScalesB * kScalePitch, kEmpty = kFull + 16;
    static constexpr uint32_t kBytesStage = ceil_div(kEmpty + 16, 1024) * 1024;
    static constexpr uint32_t kSharedBytes = kConsumers * kBoxes * kBytesStoreBox + kStages * kBytesStage;

    static __device__ uint32_t smem_d(int consumer) {
        return ptx::shared_memory() + consumer * kBoxes * kBytesStoreBox;
    }
    static __device__ uint32_t smem_stage(int stage) { return smem_d(kConsumers) + stage * kBytesStage; }

    // A position in the ring: the stage's address in shared memory, and the parity of the phase of `full` in which this
    // round's loads arrive. `empty` is one phase behind: the producer waits for it with the opposite parity.
    struct Ring {
        uint32_t stage = smem_stage(0), parity = 0;
        __device__ void advance() {
            stage += kBytesStage;
            if (stage == smem_stage(kStages)) stage = smem_stage(0), parity ^= 1;
        }
    };

    static __host__ __device__ int64_t pairs(const GemmArgs& p) {
        return ceil_div(p.m, kTileM) * ceil_div(p.n, kTileN * kCluster);
    }

    // The tiles of one CTA, in order. A cluster takes pairs of tiles side by side. Pairs are numbered down a band that
    // is kGroupM tiles tall before they go right.
    struct Tiles {
        int pairs, tiles_m, pairs_n, pair;
        __device__ explicit Tiles(const GemmArgs& p)
            : pairs(static_cast<int>(Kernel::pairs(p))),
              tiles_m(static_cast<int>(ceil_div(p.m, kTileM))),
              pairs_n(static_cast<int>(ceil_div(p.n, kTileN * kCluster))),
              pair(blockIdx.x / kCluster) {}
        __device__ bool next(int& tile_m, int& tile_n) {
            if (pair >= pairs) return false;
            const int first_m = pair / (kGroupM * pairs_n) * kGroupM, in_group = pair % (kGroupM * pairs_n);
            const int group_m = tiles_m - first_m < kGroupM ? tiles_m - first_m : kGroupM;
            tile_m = (first_m + in_group % group_m) * kTileM;
            tile_n = (in_group / group_m * kCluster + ptx::cluster_ctarank()) * kTileN;
            pair += gridDim.x / kCluster;
            return true;
        }
    };

    // ---- The producer
    static __device__ void produce(const TensorMap* map_a, const TensorMap* map_b, const TensorMap* map_sfa,
                                   const TensorMap* map_sfb, const GemmArgs& p) {
        const uint32_t rank = ptx::cluster_ctarank();
        const int blocks = static_cast<int>(p.k / kScaleK);
        Tiles tiles(p);
        Ring ring;
        for (int tile_m, tile_n; tiles.next(tile_m, tile_n);) {
            const uint32_t sfb = tile_n / kScaleN * blocks;
#pragma unroll 1
            for (int block = 0; block < blocks; ++block, ring.advance()) {
                const uint32_t full = ring.stage + kFull;
                ptx::mbarrier_wait_parity(ring.stage + kEmpty, ring.parity ^ 1);
                ptx::mbarrier_arrive_expect_tx(full, kBytesA + kBytesB + kBytesScales);
                ptx::cp_async_bulk_tensor_2d_multicast(ring.stage + rank * (kBytesA / kCluster), map_a, full,
                                                       block * kTileK, tile_m + rank * (kTileM / kCluster),
                                                       kEveryBlock);
                ptx::cp_async_bulk_tensor_2d(ring.stage + kB, map_b, full, block * kTileK, tile_n);
                ptx::cp_async_bulk_tensor_2d(ring.stage + kScaleA, map_sfa, full, tile_m, block);
                // Out-of-bounds scales only affect columns >= n, which are never stored.
                for (int i = 0; i < kScalesB; ++i)
                    ptx::cp_async_bulk_tensor_2d(ring.stage + kScaleB + i * kScalePitch, map_sfb, full,
                                                 (sfb + i * blocks + block) / kScaleBox * kScaleBox, 0);
            }
        }
    }

    // ---- A consumer's epilogue: its results go to shared memory, swizzled, and from there to D. The copy engine reads
    // them while the next tile is being multiplied.
    static __device__ void store(const float (&total)[kSlices][kRegisters], const TensorMap* map_d, int consumer,
                                 int tile_m, int tile_n) {
        const int thread = threadIdx.x % kWarpgroup;
        if (thread == 0) ptx::cp_async_bulk_wait_group_read<0>();  // the previous tile's stores read this buffer
        ptx::bar_sync(1 + consumer, kWarpgroup);
#pragma unroll
        for (int slice = 0; slice < kSlices; ++slice)
            store_shared<kTileN, kStoreN>(smem_d(consumer) + slice * kTileN / kStoreN * kBytesStoreBox, total[slice]);
        ptx::fence_proxy_async();
        ptx::bar_sync(1 + consumer, kWarpgroup);
        if (thread == 0) {
            for (int box = 0; box < kBoxes; ++box)
                ptx::cp_async_bulk_tensor_2d_store(map_d, smem_d(consumer) + box * kBytesStoreBox,
                                                   tile_n + box * kStoreN % kTileN,
                                                   tile_m + box * kStoreN / kTileN * kSliceM + consumer * kWgmmaM);
            ptx::cp_async_bulk_commit_group();
        }
    }

    // ---- A consumer
    static __device__ void consume(const TensorMap* map_d, const GemmArgs& p, int consumer) {
        const int blocks = static_cast<int>(p.k / kScaleK);
        // A thread's accumulators belong to two rows of each WGMMA tile, this one and the one 8 below, and each row of
        // A has its own scale.
        const int row = consumer * kWgmmaM + accumulator_row(threadIdx.x % kWarpgroup, 0);
        Tiles tiles(p);
        Ring ring;
        for (int tile_m, tile_n; tiles.next(tile_m, tile_n);) {
            const uint32_t sfb = tile_n / kScaleN * blocks;
            // (kSlices, kWgmmaM, kTileN) and (kWgmmaM, kTileN), spread over the warpgroup's threads
            float total[kSlices][kRegisters] = {}, partial[kRegisters];
#pragma unroll kUnroll
            for (int block = 0; block < blocks; ++block) {
                ptx::mbarrier_wait_parity(ring.stage + kFull, ring.parity);
                const uint64_t desc_a = smem_descriptor(ring.stage + consumer * kWgmmaM * kSwizzleRow);
                const uint64_t desc_b = smem_descriptor(ring.stage + kB);
                // Scales are loaded before the first WGMMA: loading them after it would delay the second slice's
                // WGMMAs.
                float scale_a[kSlices][2], scale_b[kSegments];
#pragma unroll
                for (int i = 0; i < kSlices * 2; ++i)
                    scale_a[i / 2][i % 2] = ptx::ld_shared<float>(ring.stage + kScaleA +
                                                                  (i / 2 * kSliceM + row + i % 2 * 8) * sizeof(float));
#pragma unroll
                for (int i = 0; i < kSegments; ++i) {
                    const int which = (tile_n % kScaleN + i * kStoreN) / kScaleN;
                    const uint32_t in_box = (sfb + which * blocks + block) % kScaleBox;
                    scale_b[i] =
                        ptx::ld_shared<float>(ring.stage + kScaleB + which * kScalePitch + in_box * sizeof(float));
                }
#pragma unroll
                for (int slice = 0; slice < kSlices; ++slice) {
                    ptx::wgmma_fence();
#pragma unroll
                    for (int k = 0; k < kTileK; k += kWgmmaK)
                        ptx::wgmma<kTileN>(partial, advance(desc_a, slice * kSliceM * kSwizzleRow + k),
                                           advance(desc_b, k), k != 0);
                    ptx::wgmma_commit_group();
                    ptx::wgmma_wait_group<0>();
                    if (slice == kSlices - 1) {
                        __syncwarp();
                        if (ptx::laneid() < kCluster)
                            ptx::mbarrier_arrive_cluster(ptx::mapa(ring.stage + kEmpty, ptx::laneid()));
                        ring.advance();
                    }
#pragma unroll
                    for (int i = 0; i < kRegisters; ++i)
                        total[slice][i] =
                            fmaf(partial[i], scale_a[slice][i / 2 % 2] * scale_b[i * 2 / kStoreN % kSegments],
                                 total[slice][i]);
                }
            }
            store(total, map_d, consumer, tile_m, tile_n);
        }
        if (threadIdx.x % kWarpgroup == 0) ptx::cp_async_bulk_wait_group_read<0>();
    }
};

template <int kTileM, int kTileN, int kStages>
__global__ void __launch_bounds__(kThreads, 1)
    s7_persistent(const __grid_constant__ TensorMap map_a, const __grid_constant__ TensorMap map_b,
                  const __grid_constant__ TensorMap map_sfa, const __grid_constant__ TensorMap map_sfb,
                  const __grid_constant__ TensorMap map_d, const GemmArgs p) {
    using K = Kernel<kTileM, kTileN, kStages>;
    // ---- Prologue: initialise the mbarriers
    if (threadIdx.x == 0) {
        for (int stage = 0; stage < kStages; ++stage) {
            ptx::mbarrier_init(K::smem_stage(stage) + K::kFull, 1);  // the producer's expect_tx
            ptx::mbarrier_init(K::smem_stage(stage) + K::kEmpty, kCluster * kConsumers * kWarpgroup / 32);
        }
        ptx::fence_mbarrier_init();
    }
    __syncwarp();
    ptx::barrier_cluster_arrive();  // both CTAs' mbarriers exist before either CTA sends
    ptx::barrier_cluster_wait();

    // ---- Roles: warpgroup 0 is the producer's, the others are the consumers
    if (threadIdx.x < kWarpgroup) {
        ptx::setmaxnreg_dec<40>();
        if (threadIdx.x == 0) K::produce(&map_a, &map_b, &map_sfa, &map_sfb, p);
    } else {
        ptx::setmaxnreg_inc<232>();
        // The shuffle tells the compiler that all lanes have the same number.
        K::consume(&map_d, p, ptx::shfl_sync_idx(threadIdx.x / kWarpgroup, 0) - 1);
    }

    __syncwarp();
    ptx::barrier_cluster_arrive();  // no CTA exits while its neighbour may still send to it
    ptx::barrier_cluster_wait();
}

template <int kTileM, int kTileN, int kStages>
const char* start(const GemmArgs& p, int64_t clusters) {
    using K = Kernel<kTileM, kTileN, kStages>;
    const int64_t scales = ceil_div(p.n, kScaleN) * (p.k / kScaleK);
    TensorMap map_a, map_b, map_sfa, map_sfb, map_d;
    if (auto error = tensor_map_2d(&map_a, p.a, p.m, p.k, p.k, kTileM / kCluster, kTileK, Swizzle::k128B)) return error;
    if (auto error = tensor_map_2d(&map_b, p.b, p.n, p.k, p.k, kTileN, kTileK, Swizzle::k128B)) return error;
    if (auto error = tensor_map_2d(&map_sfa, p.sfa, p.k / kScaleK, p.m, p.sfa_stride, 1, kTileM, Swizzle::kNone))
        return error;
    if (auto error = tensor_map_2d(&map_sfb, p.sfb, 1, scales, ceil_div(scales, kScaleBox) * kScaleBox, 1, kScaleBox,
                                   Swizzle::kNone))
        return error;
    if (auto error = tensor_map_2d(&map_d, p.d, p.m, p.n, p.n, kWgmmaM, kStoreN, Swizzle::k128B)) return error;
    const int64_t pairs = K::pairs(p);
    return launch(s7_persistent<kTileM, kTileN, kStages>,
                  {.blocks = (pairs < clusters ? pairs : clusters) * kCluster,
                   .threads = kThreads,
                   .shared_bytes = K::kSharedBytes,
                   .stream = p.stream,
                   .cluster = kCluster},
                  map_a, map_b, map_sfa, map_sfb, map_d, p);
}

extern "C" const char* gemm_ladder_launch(const GemmArgs* args) {
    const GemmArgs& p = *args;
    const int64_t clusters = p.num_sms < kCluster ? 1 : p.num_sms / kCluster;
    // A wave of clusters is estimated to take as long as one tile, and a tile's time to be proportional to its area.
    const auto time = [&](int64_t pairs, int tile) { return ceil_div(pairs, clusters) * tile; };
    return time(Kernel<256, 128, 3>::pairs(p), 256 * 128) <= time(Kernel<128, 192, 4>::pairs(p), 128 * 192)
               ? start<256, 128, 3>(p, clusters)
               : start<128, 192, 4>(p, clusters);
}
