// Rung 5: warps with different jobs.
//
// One warp only loads; two warpgroups only multiply and promote, so that while one promotes on the CUDA cores the other
// has the tensor cores. The loader gives registers back (setmaxnreg) and the others take them: enough for a 256 x 128
// tile, 128 rows a warpgroup. Blocks are persistent: each walks through many tiles, the loader running ahead into the
// next tile while the last one is stored; tiles that run at the same time lie close together, so L2 serves most loads.
// Results leave through shared memory (stmatrix) and the copy engine.
#include "launch.cuh"
#include "layout.cuh"
#include "ptx.cuh"

constexpr int kTileM = 256;
constexpr int kTileN = 128;  // as wide as a scale block of B: one scale of B for the whole tile
constexpr int kTileK = kScaleK;
constexpr int kStages = 3;
constexpr int kCluster = 2;  // two tiles side by side share A
constexpr uint16_t kEveryBlock = (1 << kCluster) - 1;

constexpr int kWarpgroup = 128;
constexpr int kConsumers = 2;  // warpgroups
constexpr int kThreads = (1 + kConsumers) * kWarpgroup;
constexpr int kConsumerM = kTileM / kConsumers;
constexpr int kHalves = kConsumerM / kWgmmaM;  // WGMMA tiles below each other in a consumer's 128 rows
constexpr int kRegisters = kWgmmaM * kTileN / kWarpgroup;
constexpr int kGroupM = 8;  // tiles that run together span 8 tiles of m, and as much of n as there are SMs for

constexpr uint32_t kBytesA = kTileM * kTileK;
constexpr uint32_t kBytesB = kTileN * kTileK;
constexpr uint32_t kBytesScales = kTileM * sizeof(float);
constexpr uint32_t kBytesStage = kBytesA + kBytesB + kBytesScales;
constexpr int kStoreN = kSwizzleRow / sizeof(uint16_t);     // columns of D in a swizzled row: 64
constexpr uint32_t kBytesStore = kConsumerM * kSwizzleRow;  // one box of a consumer's D
constexpr uint32_t kBytesD = kConsumers * (kTileN / kStoreN) * kBytesStore;
constexpr uint32_t kBytesMbarrier = 8;
constexpr uint32_t kSharedBytes = kBytesD + kStages * (kBytesStage + 2 * kBytesMbarrier);

// Shared memory: D, all tiles of A, of B, all scales, then the barriers. `full` completes when a stage's bytes have
// arrived, `empty` when every consumer warp of the cluster has finished with them.
__device__ uint32_t smem_d(int consumer) { return ptx::shared_memory() + consumer * (kBytesD / kConsumers); }
__device__ uint32_t smem_a(int stage) { return smem_d(kConsumers) + stage * kBytesA; }
__device__ uint32_t smem_b(int stage) { return smem_a(kStages) + stage * kBytesB; }
__device__ uint32_t smem_scales(int stage) { return smem_b(kStages) + stage * kBytesScales; }
__device__ uint32_t full(int stage) { return smem_scales(kStages) + stage * kBytesMbarrier; }
__device__ uint32_t empty(int stage) { return full(kStages) + stage * kBytesMbarrier; }

// Where a walk around the ring is: the stage, and the parity of its turn.
struct Ring {
    int stage = 0, parity = 0;
    __device__ void advance() {
        if (++stage == kStages) stage = 0, parity ^= 1;
    }
};

// The tiles of one block, in order. A cluster takes two tiles side by side, and clusters go down kGroupM tiles of m
// before they go right.
struct Tiles {
    int tiles_m, pairs_n, pair;
    __device__ explicit Tiles(const GemmArgs& p)
        : tiles_m(static_cast<int>(ceil_div(p.m, kTileM))),
          pairs_n(static_cast<int>(ceil_div(p.n, kTileN * kCluster))),
          pair(blockIdx.x / kCluster) {}
    __device__ bool next(int& tile_m, int& tile_n) {
        if (pair >= tiles_m * pairs_n) return false;
        const int first_m = pair / (kGroupM * pairs_n) * kGroupM, in_group = pair % (kGroupM * pairs_n);
        const int group_m = tiles_m - first_m < kGroupM ? tiles_m - first_m : kGroupM;
        tile_m = (first_m + in_group % group_m) * kTileM;
        tile_n = (in_group / group_m * kCluster + ptx::cluster_ctarank()) * kTileN;
        pair += gridDim.x / kCluster;
        return true;
    }
};

__device__ void produce(const TensorMap* map_a, const TensorMap* map_b, const TensorMap* map_sfa, const GemmArgs& p) {
    const uint32_t rank = ptx::cluster_ctarank();
    Tiles tiles(p);
    Ring ring;
    for (int tile_m, tile_n; tiles.next(tile_m, tile_n);) {
        for (int block = 0; block < p.k / kScaleK; ++block, ring.advance()) {
            ptx::mbarrier_wait_parity(empty(ring.stage), ring.parity ^ 1);
            ptx::mbarrier_arrive_expect_tx(full(ring.stage), kBytesStage);
            ptx::cp_async_bulk_tensor_2d_multicast(smem_a(ring.stage) + rank * (kBytesA / kCluster), map_a,
                                                   full(ring.stage), block * kTileK,
                                                   tile_m + rank * (kTileM / kCluster), kEveryBlock);
            ptx::cp_async_bulk_tensor_2d(smem_b(ring.stage), map_b, full(ring.stage), block * kTileK, tile_n);
            ptx::cp_async_bulk_tensor_2d(smem_scales(ring.stage), map_sfa, full(ring.stage), tile_m, block);
        }
    }
}

// A consumer's 128 x 128 results to shared memory, swizzled, and from there to D. The copy engine reads them while the
// next tile is being multiplied.
__device__ void store(const float (&total)[kHalves][kRegisters], const TensorMap* map_d, int consumer, int row,
                      int column) {
    const int thread = threadIdx.x % kWarpgroup, lane = ptx::laneid();
    if (thread == 0) ptx::cp_async_bulk_wait_group_read<0>();  // the last tile has left this buffer
    ptx::bar_sync(1 + consumer, kWarpgroup);
#pragma unroll
    for (int half = 0; half < kHalves; ++half) {
#pragma unroll
        for (int i = 0; i < kRegisters; i += 8) {  // 16 rows x 16 columns a warp: four 8 x 8 tiles
            const float* d = &total[half][i];
            const int r = half * kWgmmaM + thread / 32 * 16 + lane % 16;
            const int chunk = (i / 4 + lane / 16) % (kStoreN / 8), box = i / 4 / (kStoreN / 8);
            ptx::stmatrix_x4(smem_d(consumer) + box * kBytesStore + swizzle_128b(r * kSwizzleRow + chunk * 16),
                             ptx::cvt_rn_bf16x2_f32(d[1], d[0]), ptx::cvt_rn_bf16x2_f32(d[3], d[2]),
                             ptx::cvt_rn_bf16x2_f32(d[5], d[4]), ptx::cvt_rn_bf16x2_f32(d[7], d[6]));
        }
    }
    ptx::fence_proxy_async();
    ptx::bar_sync(1 + consumer, kWarpgroup);
    if (thread == 0) {
        for (int box = 0; box < kTileN / kStoreN; ++box)
            ptx::cp_async_bulk_tensor_2d_store(map_d, smem_d(consumer) + box * kBytesStore, column + box * kStoreN,
                                               row);
        ptx::cp_async_bulk_commit_group();
    }
}

__device__ void consume(const TensorMap* map_d, const GemmArgs& p, int consumer) {
    const int first_row = consumer * kConsumerM;
    const int blocks = static_cast<int>(p.k / kScaleK);
    // A thread holds pieces of two rows of each WGMMA tile, this one and the one 8 below; each row has its scale.
    const int row = first_row + accumulator_row(threadIdx.x % kWarpgroup, 0);
    // Descriptors of the current stage. They walk along with the ring: worked out here from the stage's number, they
    // would be between the barrier and the tensor cores.
    const uint64_t first_a = smem_descriptor(smem_a(0) + first_row * kSwizzleRow);
    const uint64_t first_b = smem_descriptor(smem_b(0));
    uint64_t desc_a = first_a, desc_b = first_b;
    Tiles tiles(p);
    Ring ring;
    bool ready = false;  // is the stage known to be full?
    for (int tile_m, tile_n; tiles.next(tile_m, tile_n);) {
        // The second tile of the last pair may lie outside: its results go nowhere, whatever they are scaled with.
        const float* sfb = p.sfb + (tile_n < p.n ? static_cast<int64_t>(tile_n / kScaleK) * blocks : 0);
        float next_scale_b = sfb[0];
        float total[kHalves][kRegisters] = {}, partial[kRegisters];
        for (int block = 0; block < blocks; ++block) {
            const float scale_b = next_scale_b;
            next_scale_b = sfb[block + 1 < blocks ? block + 1 : block];  // asked for a block ahead
            if (!ready) ptx::mbarrier_wait_parity(full(ring.stage), ring.parity);
#pragma unroll
            for (int half = 0; half < kHalves; ++half) {
                ptx::wgmma_fence();
#pragma unroll
                for (int k = 0; k < kTileK; k += kWgmmaK)
                    ptx::wgmma<kTileN>(partial, advance(desc_a, half * kWgmmaM * kSwizzleRow + k), advance(desc_b, k),
                                       k != 0);
                ptx::wgmma_commit_group();

                const uint32_t scales = smem_scales(ring.stage) + (row + half * kWgmmaM) * sizeof(float);
                const float scale0 = ptx::ld_shared<float>(scales) * scale_b;
                const float scale1 = ptx::ld_shared<float>(scales + 8 * sizeof(float)) * scale_b;

                ptx::wgmma_wait_group<0>();
                if (half == kHalves - 1) {
                    if (ptx::laneid() < kCluster)
                        ptx::mbarrier_arrive_cluster(ptx::mapa(empty(ring.stage), ptx::laneid()));
                    ring.advance();
                    desc_a = ring.stage == 0 ? first_a : advance(desc_a, kBytesA);
                    desc_b = ring.stage == 0 ? first_b : advance(desc_b, kBytesB);
                    // The answer comes while the promotion runs.
                    ready = ptx::mbarrier_test_wait_parity(full(ring.stage), ring.parity);
                }
#pragma unroll
                for (int i = 0; i < kRegisters; ++i)
                    total[half][i] = fmaf(partial[i], i / 2 % 2 ? scale1 : scale0, total[half][i]);
            }
        }
        store(total, map_d, consumer, tile_m + first_row, tile_n);
    }
    if (threadIdx.x % kWarpgroup == 0) ptx::cp_async_bulk_wait_group<0>();
}

__global__ void __launch_bounds__(kThreads, 1)
    s5_warp_specialized(const __grid_constant__ TensorMap map_a, const __grid_constant__ TensorMap map_b,
                        const __grid_constant__ TensorMap map_sfa, const __grid_constant__ TensorMap map_d,
                        const GemmArgs p) {
    if (threadIdx.x == 0) {
        for (int stage = 0; stage < kStages; ++stage) {
            ptx::mbarrier_init(full(stage), 1);  // the issuing thread; the bytes count themselves
            ptx::mbarrier_init(empty(stage), kCluster * kConsumers * kWarpgroup / 32);  // one arrival a warp
        }
        ptx::fence_mbarrier_init();
    }
    __syncwarp();
    ptx::barrier_cluster_arrive();  // nobody sends before every block's barriers exist
    ptx::barrier_cluster_wait();

    if (threadIdx.x < kWarpgroup) {
        ptx::setmaxnreg_dec<40>();
        if (threadIdx.x == 0) produce(&map_a, &map_b, &map_sfa, p);
    } else {
        ptx::setmaxnreg_inc<232>();
        // The shuffle tells the compiler that the number is the same in all lanes.
        consume(&map_d, p, ptx::shfl_sync_idx(threadIdx.x / kWarpgroup, 0) - 1);
    }

    __syncwarp();
    ptx::barrier_cluster_arrive();  // nobody leaves while its neighbour may still send to it
    ptx::barrier_cluster_wait();
}

extern "C" const char* gemm_ladder_launch(const GemmArgs* args) {
    const GemmArgs& p = *args;
    const int64_t pairs = ceil_div(p.m, kTileM) * ceil_div(p.n, kTileN * kCluster);
    if (pairs == 0) return nullptr;
    TensorMap map_a, map_b, map_sfa, map_d;
    if (auto error = tensor_map_2d(&map_a, p.a, p.m, p.k, p.k, kTileM / kCluster, kTileK, Swizzle::k128B)) return error;
    if (auto error = tensor_map_2d(&map_b, p.b, p.n, p.k, p.k, kTileN, kTileK, Swizzle::k128B)) return error;
    if (auto error = tensor_map_2d(&map_sfa, p.sfa, p.k / kScaleK, p.m, p.sfa_stride, 1, kTileM, Swizzle::kNone))
        return error;
    if (auto error = tensor_map_2d(&map_d, p.d, p.m, p.n, p.n, kConsumerM, kStoreN, Swizzle::k128B)) return error;
    const int64_t most = p.num_sms < kCluster ? 1 : p.num_sms / kCluster;
    const int64_t blocks = (pairs < most ? pairs : most) * kCluster;
    return launch(
        s5_warp_specialized,
        {.blocks = blocks, .threads = kThreads, .shared_bytes = kSharedBytes, .stream = p.stream, .cluster = kCluster},
        map_a, map_b, map_sfa, map_d, p);
}
