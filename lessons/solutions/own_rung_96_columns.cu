// own_rung_96_columns: rung s4_tma with tiles of 96 columns. A worked solution of lesson 14's third brief.
//
//   python -m gemm_ladder lab judge own_rung_96_columns.cu
//
// With n = 2112 there are 22 tiles of 96 columns and nothing left over; of 128 columns there are 17, and the last is
// half empty. The price: a tile begins at a multiple of 96, so that it may lie in two scale blocks of B. The boundary
// is at a multiple of 32 columns of the tile, which are 16 registers of a thread.
#include "launch.cuh"
#include "layout.cuh"
#include "ptx.cuh"

constexpr int kTileM = kWgmmaM;
constexpr int kTileN = 96;
constexpr int kSegment =
    32;  // columns that share a scale of B in every tile: the greatest common divisor of 96 and 128
constexpr int kSegments = kTileN / kSegment;
constexpr int kTileK = kScaleK;
constexpr int kThreads = 128;  // one warpgroup
constexpr int kRegisters = kTileM * kTileN / kThreads;
constexpr int kStages = 4;

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

// A position in the ring: the stage's address, and the parity of the phase that its mbarriers are in this time around.
struct Ring {
    uint32_t stage = smem_stage(0), parity = 0;
    __device__ void advance() {
        stage += kBytesStage;
        if (stage == smem_stage(kStages)) stage = smem_stage(0), parity ^= 1;
    }
};

__global__ void __launch_bounds__(kThreads, 2)
    own_rung_96_columns(const __grid_constant__ TensorMap map_a, const __grid_constant__ TensorMap map_b,
                        const __grid_constant__ TensorMap map_sfa, const GemmArgs p) {
    const int64_t tiles_m = ceil_div(p.m, kTileM);
    const int64_t tile_m = blockIdx.x % tiles_m * kTileM;
    const int64_t tile_n = blockIdx.x / tiles_m * kTileN;
    const int blocks = static_cast<int>(p.k / kScaleK);

    // ---- Prologue: initialise the mbarriers
    if (threadIdx.x == 0) {
        for (int stage = 0; stage < kStages; ++stage) {
            ptx::mbarrier_init(smem_stage(stage) + kFull, 1);               // thread 0's expect_tx
            ptx::mbarrier_init(smem_stage(stage) + kEmpty, kThreads / 32);  // one arrival a warp
        }
        ptx::fence_mbarrier_init();
    }
    __syncthreads();

    // ---- Loading, by thread 0. A fresh mbarrier is in phase 0, so waiting for the other parity returns at once: the
    // first kStages loads do not wait.
    Ring next;  // the stage to load
    const auto load = [&](int block) {
        const uint32_t full = next.stage + kFull;
        ptx::mbarrier_wait_parity(next.stage + kEmpty, next.parity ^ 1);
        ptx::mbarrier_arrive_expect_tx(full, kBytesA + kBytesB + kBytesScales);
        ptx::cp_async_bulk_tensor_2d(next.stage, &map_a, full, block * kTileK, tile_m);
        ptx::cp_async_bulk_tensor_2d(next.stage + kB, &map_b, full, block * kTileK, tile_n);
        ptx::cp_async_bulk_tensor_2d(next.stage + kScaleA, &map_sfa, full, tile_m, block);
        next.advance();
    };
    if (threadIdx.x == 0)
        for (int block = 0; block < kStages - 1 && block < blocks; ++block) load(block);

    // A thread's accumulators belong to two rows of the tile, 8 apart, and each row of A has its own scale.
    const int row0 = accumulator_row(threadIdx.x, 0), row1 = row0 + 8;
    // Each segment's scales of B. Those of columns past the end are never stored: they get any scale.
    const float* sfb[kSegments];
#pragma unroll
    for (int segment = 0; segment < kSegments; ++segment) {
        const int64_t column = tile_n + segment * kSegment;
        sfb[segment] = p.sfb + (column < p.n ? column : tile_n) / kScaleN * blocks;
    }

    // ---- Main loop: one K block at a time
    Ring ring;                                          // the stage to multiply
    float total[kRegisters] = {}, partial[kRegisters];  // (kTileM, kTileN), spread over the CTA's threads
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

        const float scale0 = ptx::ld_shared<float>(ring.stage + kScaleA + row0 * sizeof(float));
        const float scale1 = ptx::ld_shared<float>(ring.stage + kScaleA + row1 * sizeof(float));
        float scale_b[kSegments];
#pragma unroll
        for (int segment = 0; segment < kSegments; ++segment) scale_b[segment] = sfb[segment][block];

        // The stage is released before the promotion: the WGMMAs have read it, and the promotion works on registers.
        ptx::wgmma_wait_group<0>();
        __syncwarp();
        if (ptx::laneid() == 0) ptx::mbarrier_arrive(ring.stage + kEmpty);
#pragma unroll
        for (int i = 0; i < kRegisters; ++i) {
            const float scale = (i / 2 % 2 ? scale1 : scale0) * scale_b[i * 2 / kSegment];
            total[i] = fmaf(partial[i], scale, total[i]);
        }
    }

    // ---- Epilogue: registers to D
#pragma unroll
    for (int i = 0; i < kRegisters; i += 2) {
        const int64_t row = tile_m + (i / 2 % 2 ? row1 : row0);
        const int64_t column = tile_n + accumulator_column(threadIdx.x, i);
        if (row < p.m && column < p.n)  // n is even: both columns of a pair are inside, or neither
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
    return launch(own_rung_96_columns,
                  {.blocks = tiles, .threads = kThreads, .shared_bytes = kSharedBytes, .stream = p.stream}, map_a,
                  map_b, map_sfa, p);
}
