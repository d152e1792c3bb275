// The casts that a CTA does for a tile of 128 rows: one scale for the tile (per block), or one for each of its columns
// (per channel). cast_tiles.cuh does the same after SiLU-and-multiply or RMSNorm for one matrix of whole runs.
//
// A thread holds pieces of 8 columns in four rows, one below the other: in a tile of 128 columns with 256 threads those
// of columns 8 * (thread % 16), in rows 4 * (thread / 16) and the three below, and in the same four of the tile's lower
// half. So a tile is read once, and a warp reads two rows at a time. The largest magnitudes of the warps meet in shared
// memory.
//
// Per channel the codes can be stored turned, [k, m], as products want their operands, whose sum runs over the tokens.
// A thread has four neighbouring codes of a column, one word; the words of the tile go through shared memory, each
// column's 32 in another order (Tile::turned), so that the lanes of a warp that store columns 8 apart, and those that
// load the 16-byte chunks of a column, use different banks.
#pragma once

#include "cast_rms_norm.cuh"

constexpr int kTile = kScaleK;  // rows, and of a block columns
constexpr int kQuad = 4;        // rows of a column in a word of codes

// How kCtaThreads threads share a tile of kColumns columns, and where in shared memory they put what.
template <int kTileColumns, int kCtaThreads>
struct Tile {
    static constexpr int kColumns = kTileColumns, kThreads = kCtaThreads, kWarps = kThreads / 32;
    static constexpr int kLanesARow = kColumns / kPiece;
    static constexpr int kPieces = kTile * kColumns / kPiece / kThreads;  // that a thread holds
    static constexpr int kOffsetInverse = kWarps * kColumns * 4;          // after the warps' maxima
    static constexpr int kOffsetCodes = kOffsetInverse + kColumns * 4;
    static constexpr uint32_t kBytesMaxima = kWarps * 4;  // of a block
    static_assert(kPieces == kQuad || kPieces == 2 * kQuad, "row() knows one half or two");
    static constexpr uint32_t shared_bytes(Kind kind) {
        if (kind == Kind::kBlock) return 2 * kBytesMaxima;  // of a tile and of the next (cast_tiles.cuh)
        return kind == Kind::kChannel ? kOffsetCodes : kOffsetCodes + kColumns * kTile;
    }

    // Of this thread's pieces: the first column, which four rows of a half, and the row of piece i.
    static __device__ __forceinline__ uint32_t column() { return threadIdx.x % kLanesARow * kPiece; }
    static __device__ __forceinline__ uint32_t quad() { return threadIdx.x / kLanesARow; }
    static __device__ __forceinline__ uint32_t row(int i) {
        return static_cast<uint32_t>(i / kQuad) * (kTile / 2) + kQuad * quad() + i % kQuad;
    }

    // The place of a column's word `word`, its rows 4 * word to 4 * word + 3, among the column's words. With 64 columns
    // kSwap is 4, and the XOR moves whole chunks of 16 bytes. With 128 it is 2, and where column / kPiece is odd, the
    // XOR also exchanges the halves of each chunk, which store_turned puts right.
    static constexpr uint32_t kSwap = 32 / kLanesARow;
    static __device__ __forceinline__ uint32_t turned(uint32_t column, uint32_t word) {
        return word ^ kSwap * (column / kPiece);
    }
};

// Which tile a CTA casts: its group, how many tiles are above it, and its first column.
struct TileAt {
    int64_t group, line, column;
};

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

// Stores the scale of a tile, and returns its inverse. The warps' maxima meet at `smem`.
template <typename T, Input kCast>
__device__ __forceinline__ float inverse_of_block(const CastParams& p, const TileAt& at,
                                                  const Piece<kCast> (&pieces)[T::kPieces], uint32_t smem) {
    uint32_t amax = ptx::redux_sync_max(kAllLanes, amax_of(pieces));
    if (threadIdx.x % 32 == 0) ptx::st_shared(smem + 4 * (threadIdx.x / 32), amax);
    __syncthreads();
    for (int i = 0; i < T::kWarps; ++i) amax = max(amax, ptx::ld_shared<uint32_t>(smem + 4 * i));
    const Scale scale = scale_of(amax, p.power_of_two);
    if (threadIdx.x == 0)
        p.scales[at.group * p.scale_group + at.line * p.scale_row + at.column / kTile * p.scale_column] = scale.value;
    return scale.inverse;
}

// Stores the scales of the tile's columns, and finds the inverses of those of this thread's columns.
template <typename T, Input kCast>
__device__ __forceinline__ void inverses_of_columns(const CastParams& p, const TileAt& at,
                                                    const Piece<kCast> (&pieces)[T::kPieces], uint32_t smem,
                                                    float (&inverses)[kPiece]) {
    // The maxima: in this thread, then in the others of its warp; of a word's two columns together, if numbers have 16
    // bits.
    uint32_t amax[kPiece];
#pragma unroll
    for (int j = 0; j < Piece<kCast>::kWords; ++j) {
        uint32_t most = 0;
        for (int i = 0; i < T::kPieces; ++i) most = larger<kCast>(most, pieces[i].words[j]);
        for (int lanes = T::kLanesARow; lanes < 32; lanes *= 2)
            most = larger<kCast>(most, ptx::shfl_sync_bfly(kAllLanes, most, lanes));
        if constexpr (kCast == Input::kFp32)
            amax[j] = most;
        else
            amax[2 * j] = widened<kCast>(most & 0xFFFFu), amax[2 * j + 1] = widened<kCast>(most >> 16);
    }
    const uint32_t warp = threadIdx.x / 32;
    if (threadIdx.x % 32 < T::kLanesARow)
        for (int e = 0; e < kPiece; e += 4)
            ptx::st_shared(smem + 4 * (warp * T::kColumns + T::column() + e),
                           uint4{amax[e], amax[e + 1], amax[e + 2], amax[e + 3]});
    __syncthreads();
    if (threadIdx.x < T::kColumns) {
        uint32_t most = 0;
        for (int i = 0; i < T::kWarps; ++i)
            most = max(most, ptx::ld_shared<uint32_t>(smem + 4 * (i * T::kColumns + threadIdx.x)));
        const Scale scale = scale_of(most, p.power_of_two);
        ptx::st_shared(smem + T::kOffsetInverse + 4 * threadIdx.x, scale.inverse);
        const int64_t mine = at.column + threadIdx.x;
        if (mine < p.k)
            p.scales[at.group * p.scale_group + at.line * p.scale_row + mine * p.scale_column] = scale.value;
    }
    __syncthreads();
    for (int e = 0; e < kPiece; e += 4) {
        const float4 four = ptx::ld_shared<float4>(smem + T::kOffsetInverse + 4 * (T::column() + e));
        inverses[e] = four.x, inverses[e + 1] = four.y, inverses[e + 2] = four.z, inverses[e + 3] = four.w;
    }
}

// Stores a tile's codes turned, through shared memory.
template <typename T, Input kCast>
__device__ __forceinline__ void store_turned(const CastParams& p, const TileAt& at,
                                             const Piece<kCast> (&pieces)[T::kPieces], uint32_t smem,
                                             const float (&inverses)[kPiece]) {
    const uint32_t codes = smem + T::kOffsetCodes;
#pragma unroll
    for (int half = 0; half < T::kPieces; half += kQuad)
#pragma unroll
        for (int e = 0; e < kPiece; ++e) {
            const uint32_t column = T::column() + e, word = T::row(half) / kQuad;
            ptx::st_shared(codes + column * kTile + 4 * T::turned(column, word),
                           codes_of(pieces[half][e] * inverses[e], pieces[half + 1][e] * inverses[e],
                                    pieces[half + 2][e] * inverses[e], pieces[half + 3][e] * inverses[e]));
        }
    __syncthreads();
    const Turned matrix = group_of(p, at.line * kTile);
    constexpr int kChunks = kTile / 16;  // of a column
    const uint32_t chunk = threadIdx.x % kChunks;
    const int64_t row = at.line * kTile + 16 * chunk;
    // The rows are a multiple of 16: without ks, p.codes_row is, so that the padding is written, too, with zeros.
    if (row >= matrix.begin + matrix.rows) return;
    uint8_t* to = p.codes + at.group * p.codes_group + p.k * matrix.begin + row - matrix.begin;
#pragma unroll
    for (int i = threadIdx.x / kChunks; i < T::kColumns; i += T::kThreads / kChunks) {
        if (at.column + i >= p.k) break;
        const uint32_t place = T::turned(i, 4 * chunk);
        uint4 words = ptx::ld_shared<uint4>(codes + i * kTile + 16 * (place / 4));
        if (place % 4) words = {words.z, words.w, words.x, words.y};
        *reinterpret_cast<uint4*>(to + (at.column + i) * matrix.rows) = words;
    }
}

// Casts a tile whose numbers the threads hold. `count`: how many columns of this thread's are in the matrix.
template <typename T, Kind kKind, bool kVector, Input kCast>
__device__ __forceinline__ void cast_tile(const CastParams& p, const TileAt& at,
                                          const Piece<kCast> (&pieces)[T::kPieces], uint32_t smem, int count) {
    const auto store = [&](auto inverse) {
#pragma unroll
        for (int i = 0; i < T::kPieces; ++i) {
            const int64_t row = at.line * kTile + T::row(i);
            if (row >= p.m) continue;
            uint8_t* codes = p.codes + at.group * p.codes_group + row * p.codes_row + at.column + T::column();
            store_codes<kVector>(codes, pieces[i], inverse, count);
        }
    };
    if constexpr (kKind == Kind::kBlock) {
        const float inverse = inverse_of_block<T>(p, at, pieces, smem);
        store([&](int) { return inverse; });
    } else {
        float inverses[kPiece];
        inverses_of_columns<T>(p, at, pieces, smem, inverses);
        if constexpr (kKind == Kind::kChannelTurned)
            store_turned<T>(p, at, pieces, smem, inverses);
        else
            store([&](int e) { return inverses[e]; });
    }
}

// The CTAs that an SM holds at least: as many as have room for their pieces in its registers.
constexpr int tile_ctas_an_sm(Input input, Before before, bool vector) {
    return !vector ? 1 : before == Before::kNothing && input != Input::kFp32 ? 3 : 2;
}

// With 512 threads an SM has twice the warps, and so more loads on their way (NOTES.md). FP32 would not fit into the
// registers of so many.
template <Input kInput, Before kBefore>
using WholeTile = Tile<kTile, kBefore == Before::kRmsNorm && kInput != Input::kFp32 ? 2 * kThreads : kThreads>;

template <Input kInput, Before kBefore, Kind kKind, bool kVector>
__global__ void __launch_bounds__(WholeTile<kInput, kBefore>::kThreads, tile_ctas_an_sm(kInput, kBefore, kVector))
    fp8_cast_tile(const CastParams p) {
    using T = WholeTile<kInput, kBefore>;
    const int64_t across = ceil_div(p.k, kTile), down = ceil_div(p.m, kTile);
    // fp8_cast_row_roots has just read x from its first row to its last. L2 still has the last ones, which are cast
    // first.
    const uint32_t tile = kBefore == Before::kRmsNorm ? gridDim.x - 1 - blockIdx.x : blockIdx.x;
    const uint32_t lines = tile / static_cast<uint32_t>(across), group = lines / static_cast<uint32_t>(down);
    const TileAt at = {group, lines - group * down, (tile - lines * across) * kTile};
    const int64_t column = at.column + T::column();
    const int count = inside(p, column);

    start_early(p);
    constexpr Input kCast = kBefore == Before::kNothing ? kInput : Input::kFp32;
    int64_t begins[T::kPieces];
    find_rows(p, group, p.m, [&](int i) { return at.line * kTile + T::row(i); }, begins);
    Piece<kInput> weights;
    if constexpr (kBefore == Before::kRmsNorm) weights = load_piece<kInput, kVector>(p.weight, column, 1, count);
    Piece<kCast> pieces[T::kPieces];
#pragma unroll
    for (int half = 0; half < T::kPieces; half += kQuad) {
        Piece<kInput> loaded[kQuad], ups[kBefore == Before::kSiluAndMul ? kQuad : 1];
        float inverse_roots[kQuad];
        // A row that is made of no row of x has an inverse root, too; one beyond m has none.
        const auto is_row = [&](int i) { return at.line * kTile + T::row(half + i) < p.m; };
#pragma unroll
        for (int i = 0; i < kQuad; ++i) {
            const int64_t begin = begins[half + i];
            const int numbers = begin < 0 ? 0 : count;
            loaded[i] = load_piece<kInput, kVector>(p.x, begin + column * p.x_column, p.x_column, numbers);
            if constexpr (kBefore == Before::kSiluAndMul)
                ups[i] = load_piece<kInput, kVector>(p.x, begin + (p.k + column) * p.x_column, p.x_column, numbers);
            if constexpr (kBefore == Before::kRmsNorm)
                inverse_roots[i] = is_row(i) ? p.inverse_roots[group * p.m + at.line * kTile + T::row(half + i)] : 0;
        }
#pragma unroll
        for (int i = 0; i < kQuad; ++i) {
            if constexpr (kBefore == Before::kSiluAndMul)
                pieces[half + i] = silu_and_mul(loaded[i], ups[i]);
            else if constexpr (kBefore == Before::kRmsNorm)
                pieces[half + i] = normalised(loaded[i], inverse_roots[i], weights, is_row(i) ? count : 0);
            else
                pieces[half + i] = loaded[i];
        }
    }
    cast_tile<T, kKind, kVector>(p, at, pieces, ptx::shared_memory(), count);
}
