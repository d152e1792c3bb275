// Rung 3: the copy engine, and a ring of mbarriers.
//
// One thread asks the copy engine (TMA) for the tiles of A, of B and for A's scales; the engine works out addresses,
// swizzles, fills what is outside the matrix with zeros, and counts the bytes on an mbarrier. Shared memory is a ring
// of stages, so loads run ahead of the tensor cores by up to kStages - 1 blocks of K.
#include "launch.cuh"
#include "layout.cuh"
#include "ptx.cuh"

constexpr int kTileM = kWgmmaM;
constexpr int kTileN = 128;  // as wide as a scale block of B: one scale of B for the whole tile
constexpr int kTileK = kScaleK;
constexpr int kThreads = 128;  // one warpgroup
constexpr int kRegisters = kTileM * kTileN / kThreads;
constexpr int kStages = 4;

constexpr uint32_t kBytesA = kTileM * kTileK;
constexpr uint32_t kBytesB = kTileN * kTileK;
constexpr uint32_t kBytesScales = kTileM * sizeof(float);
constexpr uint32_t kBytesStage = kBytesA + kBytesB + kBytesScales;
constexpr uint32_t kBytesMbarrier = 8;
constexpr uint32_t kSharedBytes = kStages * (kBytesStage + 2 * kBytesMbarrier);

// Shared memory: all tiles of A, of B, all scales, then the barriers. `full` completes when a stage's bytes have
// arrived, `empty` when every warp has finished with them.
__device__ uint32_t smem_a(int stage) { return ptx::shared_memory() + stage * kBytesA; }
__device__ uint32_t smem_b(int stage) { return smem_a(kStages) + stage * kBytesB; }
__device__ uint32_t smem_scales(int stage) { return smem_b(kStages) + stage * kBytesScales; }
__device__ uint32_t full(int stage) { return smem_scales(kStages) + stage * kBytesMbarrier; }
__device__ uint32_t empty(int stage) { return full(kStages) + stage * kBytesMbarrier; }

__global__ void __launch_bounds__(kThreads, 2)
    s3_tma(const __grid_constant__ TensorMap map_a, const __grid_constant__ TensorMap map_b,
           const __grid_constant__ TensorMap map_sfa, const GemmArgs p) {
    const int64_t tiles_m = ceil_div(p.m, kTileM);
    const int64_t tile_m = blockIdx.x % tiles_m * kTileM;
    const int64_t tile_n = blockIdx.x / tiles_m * kTileN;
    const int blocks = static_cast<int>(p.k / kScaleK);

    if (threadIdx.x == 0) {
        for (int stage = 0; stage < kStages; ++stage) {
            ptx::mbarrier_init(full(stage), 1);               // the issuing thread; the bytes count themselves
            ptx::mbarrier_init(empty(stage), kThreads / 32);  // one arrival a warp
        }
        ptx::fence_mbarrier_init();
    }
    __syncthreads();

    // A ring's parity is the number of its current turn, modulo 2. Nobody has filled a fresh stage, and waiting for
    // the parity before the first returns at once.
    const auto load = [&](int block) {
        const int stage = block % kStages, parity = block / kStages % 2;
        ptx::mbarrier_wait_parity(empty(stage), parity ^ 1);
        ptx::mbarrier_arrive_expect_tx(full(stage), kBytesStage);
        ptx::cp_async_bulk_tensor_2d(smem_a(stage), &map_a, full(stage), block * kTileK, tile_m);
        ptx::cp_async_bulk_tensor_2d(smem_b(stage), &map_b, full(stage), block * kTileK, tile_n);
        ptx::cp_async_bulk_tensor_2d(smem_scales(stage), &map_sfa, full(stage), tile_m, block);
    };
    if (threadIdx.x == 0)
        for (int block = 0; block < kStages - 1 && block < blocks; ++block) load(block);

    // A thread holds pieces of two rows, 8 apart; each row has its scale.
    const int row0 = accumulator_row(threadIdx.x, 0), row1 = row0 + 8;
    const float* sfb = p.sfb + tile_n / kScaleK * blocks;

    const uint64_t desc_a = smem_descriptor(smem_a(0)), desc_b = smem_descriptor(smem_b(0));
    float total[kRegisters] = {}, partial[kRegisters];
    for (int block = 0; block < blocks; ++block) {
        const int stage = block % kStages, parity = block / kStages % 2;
        ptx::mbarrier_wait_parity(full(stage), parity);

        ptx::wgmma_fence();
#pragma unroll
        for (int k = 0; k < kTileK / kWgmmaK; ++k)
            ptx::wgmma<kTileN>(partial, advance(desc_a, stage * kBytesA + k * kWgmmaK),
                               advance(desc_b, stage * kBytesB + k * kWgmmaK),
                               k != 0);  // the first one starts from zero
        ptx::wgmma_commit_group();
        if (threadIdx.x == 0 && block + kStages - 1 < blocks) load(block + kStages - 1);

        const float scale0 = ptx::ld_shared<float>(smem_scales(stage) + row0 * sizeof(float)) * sfb[block];
        const float scale1 = ptx::ld_shared<float>(smem_scales(stage) + row1 * sizeof(float)) * sfb[block];

        ptx::wgmma_wait_group<0>();
        __syncwarp();
        if (ptx::laneid() == 0) ptx::mbarrier_arrive(empty(stage));
#pragma unroll
        for (int i = 0; i < kRegisters; ++i) total[i] = fmaf(partial[i], i / 2 % 2 ? scale1 : scale0, total[i]);
    }

#pragma unroll
    for (int i = 0; i < kRegisters; i += 2) {
        const int64_t row = tile_m + (i / 2 % 2 ? row1 : row0);
        const int64_t column = tile_n + accumulator_column(threadIdx.x, i);
        if (row < p.m && column < p.n)  // n is even, so a pair is inside or outside as a whole
            *reinterpret_cast<uint32_t*>(p.d + row * p.n + column) = ptx::cvt_rn_bf16x2_f32(total[i + 1], total[i]);
    }
}

extern "C" const char* gemm_ladder_launch(const GemmArgs* args) {
    const GemmArgs& p = *args;
    const int64_t tiles = ceil_div(p.m, kTileM) * ceil_div(p.n, kTileN);
    if (tiles == 0) return nullptr;
    TensorMap map_a, map_b, map_sfa;
    if (auto error = tensor_map_2d(&map_a, p.a, p.m, p.k, p.k, kTileM, kTileK, Swizzle::k128B)) return error;
    if (auto error = tensor_map_2d(&map_b, p.b, p.n, p.k, p.k, kTileN, kTileK, Swizzle::k128B)) return error;
    if (auto error = tensor_map_2d(&map_sfa, p.sfa, p.k / kScaleK, p.m, p.sfa_stride, 1, kTileM, Swizzle::kNone))
        return error;
    return launch(s3_tma, {.blocks = tiles, .threads = kThreads, .shared_bytes = kSharedBytes, .stream = p.stream},
                  map_a, map_b, map_sfa, p);
}
