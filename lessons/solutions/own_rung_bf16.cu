// own_rung_bf16: rung s4_tma for BF16 operands without scales, and so without promotion. A worked solution of lesson
// 14's first brief.
//
//   python -m gemm_ladder lab judge own_rung_bf16.cu --operands bf16
//
// D[m, n] = sum_k A[m, k] * B[n, k]; a and b of GemmArgs point to BF16 numbers. What differs from s4_tma:
// - a K block is 64 elements: 128 bytes, one row of the swizzle. A WGMMA takes 16 of them, 32 bytes as before;
// - the tensor core keeps 25 bits of a sum, so the sum stays in its accumulators from the first K block to the last;
// - nothing is done with the accumulators between two K blocks, so one K block's WGMMAs may still run when the next
//   one's are issued. A stage is released one K block later than in s4_tma.
#include "launch.cuh"
#include "layout.cuh"
#include "mma.cuh"
#include "ptx.cuh"

using ptx::Type;

constexpr int kTileM = kWgmmaM;
constexpr int kTileN = 128;
constexpr int kElement = sizeof(uint16_t);
constexpr int kTileK = kSwizzleRow / kElement;  // 64
constexpr int kThreads = 128;                   // one warpgroup
constexpr int kRegisters = kTileM * kTileN / kThreads;
constexpr int kStages = 4;

// A stage: the tiles of A and B and the stage's two mbarriers, in that order.
constexpr uint32_t kBytesA = kTileM * kSwizzleRow;  // (kTileM, kTileK)
constexpr uint32_t kBytesB = kTileN * kSwizzleRow;  // (kTileN, kTileK)
constexpr uint32_t kB = kBytesA, kFull = kB + kBytesB, kEmpty = kFull + 16;
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
    own_rung_bf16(const __grid_constant__ TensorMap map_a, const __grid_constant__ TensorMap map_b, const GemmArgs p) {
    const int64_t tiles_m = ceil_div(p.m, kTileM);
    const int64_t tile_m = blockIdx.x % tiles_m * kTileM;
    const int64_t tile_n = blockIdx.x / tiles_m * kTileN;
    const int blocks = static_cast<int>(ceil_div(p.k, kTileK));

    // ---- Prologue: initialise the mbarriers
    if (threadIdx.x == 0) {
        for (int stage = 0; stage < kStages; ++stage) {
            ptx::mbarrier_init(smem_stage(stage) + kFull, 1);               // thread 0's expect_tx
            ptx::mbarrier_init(smem_stage(stage) + kEmpty, kThreads / 32);  // one arrival a warp
        }
        ptx::fence_mbarrier_init();
    }
    __syncthreads();

    // ---- Loading, by thread 0. Zeros fill what lies behind the end of k.
    Ring next;  // the stage to load
    const auto load = [&](int block) {
        const uint32_t full = next.stage + kFull;
        ptx::mbarrier_wait_parity(next.stage + kEmpty, next.parity ^ 1);
        ptx::mbarrier_arrive_expect_tx(full, kBytesA + kBytesB);
        ptx::cp_async_bulk_tensor_2d(next.stage, &map_a, full, block * kTileK, tile_m);
        ptx::cp_async_bulk_tensor_2d(next.stage + kB, &map_b, full, block * kTileK, tile_n);
        next.advance();
    };
    if (threadIdx.x == 0)
        for (int block = 0; block < kStages - 1 && block < blocks; ++block) load(block);

    // ---- Main loop: one K block at a time
    Ring ring;                // the stage to multiply
    uint32_t previous = 0;    // the stage before it
    float total[kRegisters];  // (kTileM, kTileN), spread over the CTA's threads
    for (int block = 0; block < blocks; ++block, ring.advance()) {
        ptx::mbarrier_wait_parity(ring.stage + kFull, ring.parity);
        const uint64_t desc_a = smem_descriptor(ring.stage);
        const uint64_t desc_b = smem_descriptor(ring.stage + kB);

        ptx::wgmma_fence();
#pragma unroll
        for (int byte = 0; byte < kSwizzleRow; byte += 32)
            ptx::wgmma<Type::f32, Type::bf16, Type::bf16, kTileN>(total, advance(desc_a, byte), advance(desc_b, byte),
                                                                  block > 0 || byte > 0);  // the first starts from zero
        ptx::wgmma_commit_group();

        // The WGMMAs of the K block before this one have read their stage.
        ptx::wgmma_wait_group<1>();
        __syncwarp();
        if (block > 0 && ptx::laneid() == 0) ptx::mbarrier_arrive(previous + kEmpty);
        if (threadIdx.x == 0 && block + kStages - 1 < blocks) load(block + kStages - 1);
        previous = ring.stage;
    }
    ptx::wgmma_wait_group<0>();

    // ---- Epilogue: registers to D
    const int64_t row0 = tile_m + accumulator_row(threadIdx.x, 0), row1 = row0 + 8;
#pragma unroll
    for (int i = 0; i < kRegisters; i += 2) {
        const int64_t row = i / 2 % 2 ? row1 : row0;
        const int64_t column = tile_n + accumulator_column(threadIdx.x, i);
        if (row < p.m && column < p.n)  // n is even: both columns of a pair are inside, or neither
            *reinterpret_cast<uint32_t*>(p.d + row * p.n + column) = ptx::cvt_rn_bf16x2_f32(total[i + 1], total[i]);
    }
}

extern "C" const char* gemm_ladder_launch(const GemmArgs* args) {
    const GemmArgs& p = *args;
    const int64_t tiles = ceil_div(p.m, kTileM) * ceil_div(p.n, kTileN);
    if (tiles == 0) return nullptr;
    const auto* a = reinterpret_cast<const uint16_t*>(p.a);
    const auto* b = reinterpret_cast<const uint16_t*>(p.b);
    TensorMap map_a, map_b;
    if (auto error = tensor_map_2d(&map_a, a, p.m, p.k, p.k, kTileM, kTileK, Swizzle::k128B)) return error;
    if (auto error = tensor_map_2d(&map_b, b, p.n, p.k, p.k, kTileN, kTileK, Swizzle::k128B)) return error;
    return launch(own_rung_bf16,
                  {.blocks = tiles, .threads = kThreads, .shared_bytes = kSharedBytes, .stream = p.stream}, map_a,
                  map_b, p);
}
