// What stands around the reader's kernel in lesson 04. A CTA is two warpgroups and computes one 128 x 128 tile of D.
#include "launch.cuh"
#include "layout.cuh"
#include "ptx.cuh"

constexpr int kWarpgroup = 128;
constexpr int kThreads = 2 * kWarpgroup;  // the first has the tile's upper 64 rows, the second the lower
constexpr int kTileM = 2 * kWgmmaM;
constexpr int kTileN = 128;  // as wide as a scale block of B: one scale of B for the whole tile
constexpr int kTileK = kScaleK;
constexpr int kRegisters = kWgmmaM * kTileN / kWarpgroup;

constexpr uint32_t kBytesA = kTileM * kTileK;  // (kTileM, kTileK)
constexpr uint32_t kBytesB = kTileN * kTileK;  // (kTileN, kTileK)

// Copies rows [row, row + 128), columns [k0, k0 + 128) of a [rows, k] matrix into a swizzled tile; rows past the end
// become zeros. All threads of the CTA take part.
__device__ void copy_tile(uint32_t tile, const uint8_t* matrix, int64_t row, int64_t rows, int64_t k0, int64_t k) {
    constexpr int kChunk = sizeof(uint4), kChunksPerRow = kTileK / kChunk, kRowsPerStep = kThreads / kChunksPerRow;
    const int r = threadIdx.x / kChunksPerRow, chunk = threadIdx.x % kChunksPerRow;
    const uint8_t* source = matrix + (row + r) * k + k0 + chunk * kChunk;
    uint4 data[kTileM / kRowsPerStep];
#pragma unroll
    for (int i = 0; i < kTileM / kRowsPerStep; ++i) {
        const bool inside = row + r + i * kRowsPerStep < rows;
        data[i] = inside ? *reinterpret_cast<const uint4*>(source + i * kRowsPerStep * k) : uint4{0, 0, 0, 0};
    }
#pragma unroll
    for (int i = 0; i < kTileM / kRowsPerStep; ++i)
        ptx::st_shared(tile + swizzle_128b((r + i * kRowsPerStep) * kSwizzleRow + chunk * kChunk), data[i]);
}

// ---- Your kernel

extern "C" const char* gemm_ladder_launch(const GemmArgs* args) {
    const int64_t tiles = ceil_div(args->m, kTileM) * ceil_div(args->n, kTileN);
    return launch(
        mine, {.blocks = tiles, .threads = kThreads, .shared_bytes = kBytesA + kBytesB, .stream = args->stream}, *args);
}
