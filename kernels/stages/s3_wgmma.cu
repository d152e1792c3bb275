// Rung 3: tensor cores.
//
//   python -m gemm_ladder compare --rungs s3_wgmma --shapes 64x128x256
//
// A CTA is one warpgroup and computes one 64 x 128 tile of D. For each K block (128 of K)
//   1. its threads copy a tile of A and a tile of B into shared memory, in the 128-byte swizzle that WGMMA reads
//      without bank conflicts;
//   2. four WGMMAs, each for 32 of K, multiply them;
//   3. the CUDA cores promote the partial sum: they scale it and add it to the total in full FP32, because the tensor
//      core keeps only about 14 bits while it adds.
// After the last K block the threads round the total to BF16 and store it. k is a multiple of 128 and n of 8 (rungs.py
// refuses others).
// Copying and multiplying take turns here. The next rungs overlap them.
#include "launch.cuh"
#include "layout.cuh"
#include "ptx.cuh"

constexpr int kTileM = kWgmmaM;
constexpr int kTileN = 128;  // as wide as a scale block of B: one scale of B for the whole tile
constexpr int kTileK = kScaleK;
constexpr int kThreads = 128;  // one warpgroup
constexpr int kRegisters = kTileM * kTileN / kThreads;

constexpr uint32_t kBytesA = kTileM * kTileK;  // (kTileM, kTileK)
constexpr uint32_t kBytesB = kTileN * kTileK;  // (kTileN, kTileK)
constexpr uint32_t kSharedBytes = kBytesA + kBytesB;

// Copies rows [row, row + kRows), columns [k0, k0 + 128) of a [rows, k] matrix into a swizzled tile; rows past the
// end become zeros. A thread moves 16 bytes at a time, and eight neighbouring threads move one row. A thread issues all
// of its reads before its first write waits for one of them, so that their latencies overlap.
template <int kRows>
__device__ __forceinline__ void copy_tile(uint32_t tile, const uint8_t* matrix, int64_t row, int64_t rows, int64_t k0,
                                          int64_t k) {
    constexpr int kChunk = sizeof(uint4), kChunksPerRow = kTileK / kChunk, kRowsPerStep = kThreads / kChunksPerRow;
    const int r = threadIdx.x / kChunksPerRow, chunk = threadIdx.x % kChunksPerRow;
    const uint8_t* source = matrix + (row + r) * k + k0 + chunk * kChunk;
    uint4 data[kRows / kRowsPerStep];
#pragma unroll
    for (int i = 0; i < kRows / kRowsPerStep; ++i) {
        const bool inside = row + r + i * kRowsPerStep < rows;
        data[i] = inside ? *reinterpret_cast<const uint4*>(source + i * kRowsPerStep * k) : uint4{0, 0, 0, 0};
    }
#pragma unroll
    for (int i = 0; i < kRows / kRowsPerStep; ++i)
        ptx::st_shared(tile + swizzle_128b((r + i * kRowsPerStep) * kSwizzleRow + chunk * kChunk), data[i]);
}

__global__ void __launch_bounds__(kThreads, 2) s3_wgmma(const GemmArgs p) {
    const int64_t tiles_m = ceil_div(p.m, kTileM);
    const int64_t tile_m = blockIdx.x % tiles_m * kTileM;
    const int64_t tile_n = blockIdx.x / tiles_m * kTileN;
    const uint32_t smem_a = ptx::shared_memory(), smem_b = smem_a + kBytesA;
    const uint64_t desc_a = smem_descriptor(smem_a), desc_b = smem_descriptor(smem_b);

    // A thread's accumulators belong to two rows of the tile, 8 apart, and each row of A has its own scale.
    const int64_t row0 = tile_m + accumulator_row(threadIdx.x, 0), row1 = row0 + 8;
    const float* sfb = p.sfb + tile_n / kScaleK * (p.k / kScaleK);

    // ---- Main loop: one K block at a time
    float total[kRegisters] = {}, partial[kRegisters];  // (kTileM, kTileN), spread over the CTA's threads
    for (int64_t block = 0; block < p.k / kScaleK; ++block) {
        copy_tile<kTileM>(smem_a, p.a, tile_m, p.m, block * kTileK, p.k);
        copy_tile<kTileN>(smem_b, p.b, tile_n, p.n, block * kTileK, p.k);
        ptx::fence_proxy_async();  // makes this thread's stores visible to the tensor core
        __syncthreads();           // every thread has stored and fenced

        ptx::wgmma_fence();
#pragma unroll
        for (int k = 0; k < kTileK / kWgmmaK; ++k)
            ptx::wgmma<kTileN>(partial, advance(desc_a, k * kWgmmaK), advance(desc_b, k * kWgmmaK),
                               k != 0);  // the first WGMMA starts from zero
        ptx::wgmma_commit_group();

        const float* sfa = p.sfa + block * p.sfa_stride;
        const float scale0 = (row0 < p.m ? sfa[row0] : 0.0f) * sfb[block];
        const float scale1 = (row1 < p.m ? sfa[row1] : 0.0f) * sfb[block];

        ptx::wgmma_wait_group<0>();
#pragma unroll
        for (int i = 0; i < kRegisters; ++i) total[i] = fmaf(partial[i], i / 2 % 2 ? scale1 : scale0, total[i]);
        __syncthreads();  // the next copy must not overwrite a tile that is still being read
    }

    // ---- Epilogue: registers to D
#pragma unroll
    for (int i = 0; i < kRegisters; i += 2) {
        const int64_t row = i / 2 % 2 ? row1 : row0;
        const int64_t column = tile_n + accumulator_column(threadIdx.x, i);
        if (row < p.m && column < p.n)  // n is even: both columns of a pair are inside, or neither
            *reinterpret_cast<uint32_t*>(p.d + row * p.n + column) = ptx::cvt_rn_bf16x2_f32(total[i + 1], total[i]);
    }
}

extern "C" const char* gemm_ladder_launch(const GemmArgs* args) {
    const int64_t tiles = ceil_div(args->m, kTileM) * ceil_div(args->n, kTileN);
    return launch(s3_wgmma,
                  {.blocks = tiles, .threads = kThreads, .shared_bytes = kSharedBytes, .stream = args->stream}, *args);
}
