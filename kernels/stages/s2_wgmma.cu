// Rung 2: tensor cores.
//
// One warpgroup makes a 64 x 128 tile. Its threads copy 128 of K of A and B into shared memory, in the 128-byte
// swizzle that WGMMA reads without bank conflicts; four WGMMAs multiply them; the CUDA cores promote the partial sum:
// scale it and add it in full FP32, because the tensor core keeps only about 14 bits while it adds.
// Copying and multiplying take turns here. The next rungs overlap them.
#include "launch.cuh"
#include "layout.cuh"
#include "ptx.cuh"

constexpr int kTileM = kWgmmaM;
constexpr int kTileN = 128;  // as wide as a scale block of B: one scale of B for the whole tile
constexpr int kTileK = kScaleK;
constexpr int kThreads = 128;  // one warpgroup
constexpr int kRegisters = kTileM * kTileN / kThreads;

constexpr uint32_t kBytesA = kTileM * kTileK;
constexpr uint32_t kBytesB = kTileN * kTileK;
constexpr uint32_t kSharedBytes = kBytesA + kBytesB;

// Copies rows [row, row + kRows), columns [k0, k0 + 128) of a [rows, k] matrix into a swizzled tile; rows past the
// end become zeros. A thread moves 16 bytes at a time, eight neighbours one row. All of a thread's reads are under way
// before its first write waits for one.
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

__global__ void __launch_bounds__(kThreads, 2) s2_wgmma(const GemmArgs p) {
    const int64_t tiles_m = ceil_div(p.m, kTileM);
    const int64_t tile_m = blockIdx.x % tiles_m * kTileM;
    const int64_t tile_n = blockIdx.x / tiles_m * kTileN;
    const uint32_t smem_a = ptx::shared_memory(), smem_b = smem_a + kBytesA;
    const uint64_t desc_a = smem_descriptor(smem_a), desc_b = smem_descriptor(smem_b);

    // A thread holds pieces of two rows, 8 apart; each row has its scale.
    const int64_t row0 = tile_m + accumulator_row(threadIdx.x, 0), row1 = row0 + 8;
    const float* sfb = p.sfb + tile_n / kScaleK * (p.k / kScaleK);

    float total[kRegisters] = {}, partial[kRegisters];
    for (int64_t block = 0; block < p.k / kScaleK; ++block) {
        copy_tile<kTileM>(smem_a, p.a, tile_m, p.m, block * kTileK, p.k);
        copy_tile<kTileN>(smem_b, p.b, tile_n, p.n, block * kTileK, p.k);
        ptx::fence_proxy_async();  // the tensor core must see this thread's stores
        __syncthreads();           // ... and everybody's

        ptx::wgmma_fence();
#pragma unroll
        for (int k = 0; k < kTileK / kWgmmaK; ++k)
            ptx::wgmma<kTileN>(partial, advance(desc_a, k * kWgmmaK), advance(desc_b, k * kWgmmaK),
                               k != 0);  // the first one starts from zero
        ptx::wgmma_commit_group();

        const float* sfa = p.sfa + block * p.sfa_stride;
        const float scale0 = (row0 < p.m ? sfa[row0] : 0.0f) * sfb[block];
        const float scale1 = (row1 < p.m ? sfa[row1] : 0.0f) * sfb[block];

        ptx::wgmma_wait_group<0>();
#pragma unroll
        for (int i = 0; i < kRegisters; ++i) total[i] = fmaf(partial[i], i / 2 % 2 ? scale1 : scale0, total[i]);
        __syncthreads();  // nobody overwrites a tile that is still being read
    }

#pragma unroll
    for (int i = 0; i < kRegisters; i += 2) {
        const int64_t row = i / 2 % 2 ? row1 : row0;
        const int64_t column = tile_n + accumulator_column(threadIdx.x, i);
        if (row < p.m && column < p.n)  // n is even, so a pair is inside or outside as a whole
            *reinterpret_cast<uint32_t*>(p.d + row * p.n + column) = ptx::cvt_rn_bf16x2_f32(total[i + 1], total[i]);
    }
}

extern "C" const char* gemm_ladder_launch(const GemmArgs* args) {
    const int64_t tiles = ceil_div(args->m, kTileM) * ceil_div(args->n, kTileN);
    return launch(s2_wgmma,
                  {.blocks = tiles, .threads = kThreads, .shared_bytes = kSharedBytes, .stream = args->stream}, *args);
}
