// Matrices of bytes with rows and columns exchanged: [n, k] becomes [k, n]. A backward pass multiplies by the codes of
// a weight the other way round.
//
// A CTA turns a tile of 128 x 128. Thread t loads 16 bytes of each of four rows below each other, and has then the four
// neighbouring bytes of 16 columns, one word each. The words go through shared memory:
//   word w of column c (rows 4 w to 4 w + 3) is stored as word w ^ 4 * (c / 16) of the column's 32.
// So the lanes of a warp, whose columns are 16 apart, use different banks, and 16 bytes of a column stay together.
#pragma once

#include <cuda_runtime.h>  // __byte_perm

#include <cstdint>

#include "launch.cuh"
#include "layout.cuh"
#include "ptx.cuh"

constexpr uint32_t kTurnThreads = 256, kTurnTile = 128, kChunk = 16, kChunks = kTurnTile / kChunk;

struct TurnParams {
    const uint8_t* from;           // [groups, n, k], each row at a multiple of 16 bytes
    uint8_t* to;                   // [groups, k, n], contiguous, at a multiple of 16 bytes
    int64_t groups, n, k;          // n and k are multiples of 16
    int64_t from_group, from_row;  // strides
};

// The argument of the launcher, filled in by Python (turning.py).
struct TurnArgs {
    TurnParams params;
    void* stream;  // cudaStream_t; ignored by the emulator
};

// A square of 4 x 4 bytes, with rows and columns exchanged.
__device__ __forceinline__ uint4 turned_square(uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
    const uint32_t ab_low = __byte_perm(a, b, 0x5140), ab_high = __byte_perm(a, b, 0x7362);
    const uint32_t cd_low = __byte_perm(c, d, 0x5140), cd_high = __byte_perm(c, d, 0x7362);
    return {__byte_perm(ab_low, cd_low, 0x5410), __byte_perm(ab_low, cd_low, 0x7632),
            __byte_perm(ab_high, cd_high, 0x5410), __byte_perm(ab_high, cd_high, 0x7632)};
}

__global__ void __launch_bounds__(kTurnThreads) turn_codes(const TurnParams p) {
    const uint32_t across = static_cast<uint32_t>(ceil_div(p.k, kTurnTile));
    const uint32_t down = static_cast<uint32_t>(ceil_div(p.n, kTurnTile));
    const uint32_t line = blockIdx.x / across, group = line / down;
    const int64_t row = (line - group * down) * static_cast<int64_t>(kTurnTile);
    const int64_t column = (blockIdx.x - line * across) * static_cast<int64_t>(kTurnTile);
    const uint32_t smem = ptx::shared_memory(), chunk = threadIdx.x % kChunks, quad = threadIdx.x / kChunks;

    ptx::griddepcontrol_wait();  // the codes may be what the kernel ahead writes
    const uint8_t* from = p.from + group * p.from_group + (row + 4 * quad) * p.from_row + column + chunk * kChunk;
    uint4 rows[4] = {};
    if (row + 4 * quad < p.n && column + chunk * kChunk < p.k)
#pragma unroll
        for (int i = 0; i < 4; ++i) rows[i] = *reinterpret_cast<const uint4*>(from + i * p.from_row);
    const auto store = [&](uint32_t square, uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
        const uint4 words = turned_square(a, b, c, d);
        const uint32_t to = smem + (chunk * kChunk + 4 * square) * kTurnTile + 4 * (quad ^ 4 * chunk);
        ptx::st_shared(to, words.x);
        ptx::st_shared(to + kTurnTile, words.y);
        ptx::st_shared(to + 2 * kTurnTile, words.z);
        ptx::st_shared(to + 3 * kTurnTile, words.w);
    };
    store(0, rows[0].x, rows[1].x, rows[2].x, rows[3].x);
    store(1, rows[0].y, rows[1].y, rows[2].y, rows[3].y);
    store(2, rows[0].z, rows[1].z, rows[2].z, rows[3].z);
    store(3, rows[0].w, rows[1].w, rows[2].w, rows[3].w);
    __syncthreads();

    uint8_t* to = p.to + (group * p.k + column) * p.n + row;
#pragma unroll
    for (uint32_t i = threadIdx.x; i < kTurnTile * kChunks; i += kTurnThreads) {
        const uint32_t here = i / kChunks, part = i % kChunks;
        if (column + here >= p.k || row + part * kChunk >= p.n) continue;
        *reinterpret_cast<uint4*>(to + here * p.n + part * kChunk) =
            ptx::ld_shared<uint4>(smem + here * kTurnTile + (part ^ here / kChunk) * kChunk);
    }
}

extern "C" const char* gemm_ladder_launch(const TurnArgs* args) {
    const TurnParams& p = args->params;
    const int64_t tiles = p.groups * ceil_div(p.n, kTurnTile) * ceil_div(p.k, kTurnTile);
    if (tiles > INT32_MAX) return "more than 2^31 - 1 tiles";
    return launch(turn_codes,
                  {.blocks = tiles,
                   .threads = kTurnThreads,
                   .shared_bytes = kTurnTile * kTurnTile,
                   .stream = args->stream,
                   .early = true},
                  p);
}
