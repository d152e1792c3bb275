// The casts that a CTA does for a tile of 128 x 128: one scale for the tile (per block), or one for each of its columns
// (per channel).
//
// A thread holds 8 pieces of 8 columns: those of columns 8 * (thread % 16), in rows 4 * (thread / 16) and the three
// below, and in the same four of the tile's lower half. So a tile is read once, and a warp reads two rows at a time.
// The largest magnitudes of the warps meet in shared memory.
//
// Per channel the codes can be stored turned, [k, m], as products want their operands, whose sum runs over the tokens.
// A thread has four neighbouring codes of a column, one word; the words of the tile go through shared memory:
//   word w of column c (rows 4 w to 4 w + 3) is stored as word w ^ 2 * (c / 8 % 16) of the column's 32.
// So the lanes of a warp that store columns 8 apart, and those that load the 16-byte chunks of a column, use different
// banks.
#pragma once

#include "cast_numbers.cuh"

enum class Share { kBlock, kColumn, kColumnTurned };

constexpr int kTile = kScaleK;                              // rows and columns
constexpr int kQuad = 4;                                    // rows of a column in a word of codes
constexpr int kPieces = kTile * kTile / kPiece / kThreads;  // that a thread holds
constexpr int kWarps = kThreads / 32;
constexpr int kOffsetInverse = kWarps * kTile * 4;  // in shared memory, after the warps' maxima
constexpr int kOffsetCodes = kOffsetInverse + kTile * 4;
constexpr int kSharedBytes = kOffsetCodes + kTile * kTile;

// The CTAs that an SM is to hold at least: as many as the registers allow that their tiles need.
constexpr int ctas_an_sm(Input input, Before before, bool vector) {
    return !vector ? 1 : before == Before::kNothing && input != Input::kFp32 ? 3 : 2;
}

// The address, in a turned tile's shared memory, of word `word` of column `column`.
__device__ __forceinline__ uint32_t turned(uint32_t column, uint32_t word) {
    return column * kTile + 4 * (word ^ 2 * (column / kPiece));
}

// The matrix [k, rows] that turned codes of row `row` belong to: all of them, or a group's. Groups are whole tiles, and
// whatever the counts say, they lie in the m rows one after the other.
struct Turned {
    int64_t begin, rows;  // the first row, and how many; none if the row belongs to no group
};
__device__ __forceinline__ Turned group_of(const CastParams& p, int64_t row) {
    if (p.ks_count < 0) return {0, p.codes_row};
    int64_t begin = 0;
    for (int64_t i = 0; i < p.ks_count; ++i) {
        const int64_t left = p.m - begin, said = p.ks[i] / kTile * kTile;
        const int64_t rows = said < 0 ? 0 : said < left ? said : left;
        if (row < begin + rows) return {begin, rows};
        begin += rows;
    }
    return {row, 0};
}

template <Input kInput, Before kBefore, Share kShare, bool kVector>
__global__ void __launch_bounds__(kThreads, ctas_an_sm(kInput, kBefore, kVector)) fp8_cast_tile(const CastParams p) {
    const int64_t across = ceil_div(p.k, kTile), down = ceil_div(p.m, kTile);
    const uint32_t lines = blockIdx.x / static_cast<uint32_t>(across), group = lines / static_cast<uint32_t>(down);
    const int64_t tile_row = lines - group * down, tile_column = blockIdx.x - lines * across;
    const uint32_t smem = ptx::shared_memory(), warp = threadIdx.x / 32;
    const uint32_t column_here = threadIdx.x % kPiecesARun * kPiece, quad = threadIdx.x / kPiecesARun;
    const int64_t column = tile_column * kTile + column_here;
    const int count = inside(p, column);
    const auto row_here = [&](int i) {
        return static_cast<uint32_t>(i / kQuad) * (kTile / 2) + kQuad * quad + i % kQuad;
    };

    // Load.
    start_early(p);
    constexpr Input kHeld = kBefore == Before::kNothing ? kInput : Input::kFp32;
    int64_t begins[kPieces];
    find_rows(p, group, p.m, [&](int i) { return tile_row * kTile + row_here(i); }, begins);
    Piece<kHeld> pieces[kPieces];
#pragma unroll
    for (int half = 0; half < kPieces; half += kQuad) {
        Piece<kInput> loaded[kQuad], ups[kBefore == Before::kSiluAndMul ? kQuad : 1];
#pragma unroll
        for (int i = 0; i < kQuad; ++i) {
            const int64_t begin = begins[half + i];
            const int numbers = begin < 0 ? 0 : count;
            loaded[i] = load_piece<kInput, kVector>(p.x, begin + column * p.x_column, p.x_column, numbers);
            if constexpr (kBefore == Before::kSiluAndMul)
                ups[i] = load_piece<kInput, kVector>(p.x, begin + (p.k + column) * p.x_column, p.x_column, numbers);
        }
#pragma unroll
        for (int i = 0; i < kQuad; ++i) {
            if constexpr (kBefore == Before::kSiluAndMul)
                pieces[half + i] = silu_and_mul(loaded[i], ups[i]);
            else
                pieces[half + i] = loaded[i];
        }
    }

    // The scales, and their inverses for this thread's columns.
    float inverses[kShare == Share::kBlock ? 1 : kPiece];
    if constexpr (kShare == Share::kBlock) {
        uint32_t amax = ptx::redux_sync_max(kAllLanes, amax_of(pieces));
        if (threadIdx.x % 32 == 0) ptx::st_shared(smem + 4 * warp, amax);
        __syncthreads();
        for (int i = 0; i < kWarps; ++i) amax = max(amax, ptx::ld_shared<uint32_t>(smem + 4 * i));
        const Scale scale = scale_of(amax, p.power_of_two);
        inverses[0] = scale.inverse;
        if (threadIdx.x == 0)
            p.scales[group * p.scale_group + tile_row * p.scale_row + tile_column * p.scale_column] = scale.value;
    } else {
        // Of a word's two columns together, if they are 16-bit numbers: in this thread, then in the other of its warp.
        constexpr int kWords = Piece<kHeld>::kWords;
        uint32_t amax[kPiece];
#pragma unroll
        for (int j = 0; j < kWords; ++j) {
            uint32_t most = 0;
            for (int i = 0; i < kPieces; ++i) most = larger<kHeld>(most, pieces[i].words[j]);
            most = larger<kHeld>(most, ptx::shfl_sync_bfly(kAllLanes, most, kPiecesARun));
            if constexpr (kHeld == Input::kFp32)
                amax[j] = most;
            else
                amax[2 * j] = widened<kHeld>(most & 0xFFFFu), amax[2 * j + 1] = widened<kHeld>(most >> 16);
        }
        if (threadIdx.x % 32 < kPiecesARun)
            for (int e = 0; e < kPiece; e += 4)
                ptx::st_shared(smem + 4 * (warp * kTile + column_here + e),
                               uint4{amax[e], amax[e + 1], amax[e + 2], amax[e + 3]});
        __syncthreads();
        if (threadIdx.x < kTile) {
            uint32_t most = 0;
            for (int i = 0; i < kWarps; ++i)
                most = max(most, ptx::ld_shared<uint32_t>(smem + 4 * (i * kTile + threadIdx.x)));
            const Scale scale = scale_of(most, p.power_of_two);
            ptx::st_shared(smem + kOffsetInverse + 4 * threadIdx.x, scale.inverse);
            const int64_t mine = tile_column * kTile + threadIdx.x;
            if (mine < p.k)
                p.scales[group * p.scale_group + tile_row * p.scale_row + mine * p.scale_column] = scale.value;
        }
        __syncthreads();
        for (int e = 0; e < kPiece; e += 4) {
            const float4 four = ptx::ld_shared<float4>(smem + kOffsetInverse + 4 * (column_here + e));
            inverses[e] = four.x, inverses[e + 1] = four.y, inverses[e + 2] = four.z, inverses[e + 3] = four.w;
        }
    }

    // The codes.
    if constexpr (kShare != Share::kColumnTurned) {
#pragma unroll
        for (int i = 0; i < kPieces; ++i) {
            const int64_t row = tile_row * kTile + row_here(i);
            if (row < p.m)
                store_codes<kVector>(
                    p.codes + group * p.codes_group + row * p.codes_row + column, pieces[i],
                    [&](int e) { return inverses[kShare == Share::kBlock ? 0 : e]; }, count);
        }
    } else {
        const uint32_t tile = smem + kOffsetCodes;
#pragma unroll
        for (int half = 0; half < kPieces; half += kQuad)
#pragma unroll
            for (int e = 0; e < kPiece; ++e)
                ptx::st_shared(tile + turned(column_here + e, half / kQuad * (kTile / 2 / kQuad) + quad),
                               codes_of(pieces[half][e] * inverses[e], pieces[half + 1][e] * inverses[e],
                                        pieces[half + 2][e] * inverses[e], pieces[half + 3][e] * inverses[e]));
        __syncthreads();
        const Turned matrix = group_of(p, tile_row * kTile);
        constexpr int kChunks = kTile / 16;  // of a column
        for (int i = threadIdx.x; i < kTile * kChunks; i += kThreads) {
            const uint32_t here = i / kChunks, chunk = i % kChunks, swapped = here / kPiece;
            const int64_t of = tile_column * kTile + here, row = tile_row * kTile + 16 * chunk;
            if (of >= p.k || row >= matrix.begin + matrix.rows) continue;  // whose rows are a multiple of 16
            // The XOR exchanges 16-byte chunks, and in every other group of 8 columns the halves of a chunk.
            uint4 words = ptx::ld_shared<uint4>(tile + here * kTile + 16 * (chunk ^ swapped / 2));
            if (swapped % 2) words = {words.z, words.w, words.x, words.y};
            *reinterpret_cast<uint4*>(p.codes + group * p.codes_group + p.k * matrix.begin + of * matrix.rows + row -
                                      matrix.begin) = words;
        }
    }
}
