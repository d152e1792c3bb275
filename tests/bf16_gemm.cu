// D = A B^T in BF16 with FP32 accumulators: A [m, k], B [n, k], D [m, n], each row-major. One block computes a tile of
// 128 x 128. A producer warp loads K blocks of 64 into a ring of two stages; two consumer warpgroups multiply, 64 rows
// each, and store their tiles by way of shared memory. m and n may be any number, k a multiple of 8.
//
//   producer                     consumers
//   wait empty[s]  <-----------  arrive on empty[s]: each warp, when its own WGMMAs have read the stage
//   load A, B on full[s]  ---->  wait full[s], WGMMA
#include "cp_async_bulk.cuh"
#include "fragments.cuh"
#include "layout.cuh"
#include "mbarrier.cuh"
#include "mma.cuh"
#include "ptx.cuh"

using ptx::Type;

constexpr int kTileM = 128, kTileN = 128, kTileK = 64, kStages = 2;
constexpr int kConsumers = 2, kThreads = (kConsumers + 1) * 128;
constexpr int kInstructionK = 16;
constexpr uint32_t kRow = kTileK * 2;                                 // bytes: a 128-byte-swizzled row
constexpr uint32_t kBytesA = kTileM * kRow, kBytesB = kTileN * kRow;  // (kTileM, kTileK), (kTileN, kTileK)
constexpr uint32_t kStage = kBytesA + kBytesB;
constexpr uint32_t kOut = kStages * kStage;             // (2 halves of N, kTileM, 64) BF16, swizzled
constexpr uint32_t kFull = kOut + kTileM * kTileN * 2;  // mbarriers
constexpr uint32_t kEmpty = kFull + kStages * 8, kShared = kEmpty + kStages * 8;

__device__ void produce(uint32_t smem, const TensorMap* a, const TensorMap* b, int blocks, int row, int column) {
    for (int i = 0; i < blocks; ++i) {
        const uint32_t s = i % kStages, turn = i / kStages, stage = smem + s * kStage, full = smem + kFull + s * 8;
        ptx::mbarrier_wait_parity(smem + kEmpty + s * 8, (turn & 1) ^ 1);  // a fresh mbarrier lets it pass
        ptx::mbarrier_arrive_expect_tx(full, kStage);
        ptx::cp_async_bulk_tensor(stage, a, full, {i * kTileK, row});
        ptx::cp_async_bulk_tensor(stage + kBytesA, b, full, {i * kTileK, column});
    }
}

__device__ void consume(uint32_t smem, int group, float (&d)[kTileN / 2], int blocks) {
    for (int i = 0; i < blocks; ++i) {
        const uint32_t s = i % kStages, turn = i / kStages, stage = smem + s * kStage;
        ptx::mbarrier_wait_parity(smem + kFull + s * 8, turn & 1);
        const uint64_t a = smem_descriptor(stage + group * 64 * kRow), b = smem_descriptor(stage + kBytesA);
        ptx::wgmma_fence();
#pragma unroll
        for (int k = 0; k < kTileK; k += kInstructionK)
            ptx::wgmma<Type::f32, Type::bf16, Type::bf16, kTileN>(d, advance(a, k * 2), advance(b, k * 2), i || k);
        ptx::wgmma_commit_group();
        ptx::wgmma_wait_group<0>();
        if (ptx::laneid() == 0) ptx::mbarrier_arrive(smem + kEmpty + s * 8);
    }
}

// A warp's 16 rows, 16 columns at a time, to the swizzled tile that TMA stores.
__device__ void write_out(uint32_t smem, int group, const float (&d)[kTileN / 2]) {
    const uint32_t lane = ptx::laneid(), warp = threadIdx.x / 32 % 4;
    const uint32_t row = group * 64 + warp * 16 + lane % 8 + lane / 8 % 2 * 8;
#pragma unroll
    for (int i = 0; i < kTileN / 2; i += 8) {
        const uint32_t pairs[4] = {ptx::cvt_rn_bf16x2_f32(d[i + 1], d[i]), ptx::cvt_rn_bf16x2_f32(d[i + 3], d[i + 2]),
                                   ptx::cvt_rn_bf16x2_f32(d[i + 5], d[i + 4]),
                                   ptx::cvt_rn_bf16x2_f32(d[i + 7], d[i + 6])};
        const uint32_t column = i * 2 + lane / 16 * 8;  // of this lane's address
        const uint32_t half = smem + kOut + column / 64 * kTileM * kRow;
        ptx::stmatrix<4>(half + swizzle_128b(row * kRow + column % 64 * 2), pairs);
    }
}

__global__ void __launch_bounds__(kThreads, 1)
    bf16_gemm(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b,
              const __grid_constant__ TensorMap out, int k) {
    const uint32_t smem = ptx::shared_memory();
    const int row = blockIdx.y * kTileM, column = blockIdx.x * kTileN, blocks = (k + kTileK - 1) / kTileK;
    const int group = threadIdx.x / 128;
    if (threadIdx.x == 0) {
        for (uint32_t s = 0; s < kStages; ++s) {
            ptx::mbarrier_init(smem + kFull + s * 8, 1);
            ptx::mbarrier_init(smem + kEmpty + s * 8, kConsumers * 4);
        }
        ptx::fence_mbarrier_init();
    }
    __syncthreads();
    if (group == kConsumers) {
        if (threadIdx.x % 128 == 0) produce(smem, &a, &b, blocks, row, column);
        return;
    }
    float d[kTileN / 2];
    consume(smem, group, d, blocks);
    write_out(smem, group, d);
    ptx::fence_proxy_async();
    ptx::bar_sync(1, kConsumers * 128);
    if (threadIdx.x == 0) {
        for (int half = 0; half < 2; ++half)
            ptx::cp_async_bulk_tensor_store(&out, smem + kOut + half * kTileM * kRow, {column + half * 64, row});
        ptx::cp_async_bulk_commit_group();
        ptx::cp_async_bulk_wait_group<0>();
    }
}
