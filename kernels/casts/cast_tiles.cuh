// The casts per block and per channel after SiLU-and-multiply or RMSNorm, of BF16 or FP16, for one matrix whose rows
// are whole runs. They compute what cast_tile.cuh does.
//
// The arithmetic takes nearly as long as the bytes, so neither may wait for the other. A CTA takes every gridDim.x-th
// tile, and has the numbers of the next loaded while it casts one. A thread has four pieces of a tile, half as many as
// in cast_tile.cuh, so that there are registers for both. Per channel, tiles of 64 columns let an SM hold three CTAs,
// of which one computes where another waits for memory or at a barrier. There the next tile is loaded once a tile has
// been computed, into the same registers, so that pieces are computed as they arrive. A block has one CTA an SM, and
// its loads are issued ahead (kAhead), once a whole tile has arrived.
#pragma once

#include "cast_row_roots.cuh"
#include "cast_silu.cuh"
#include "cast_tile.cuh"

// A block needs all 128 columns in one CTA.
template <Kind kKind>
using NextTile = Tile<kKind == Kind::kBlock ? kTile : kTile / 2, kKind == Kind::kBlock ? 2 * kThreads : kThreads>;

template <Kind kKind>
constexpr int kTilesCtasAnSm = kKind == Kind::kBlock ? 1 : 3;  // that run at the same time

// What a thread loads for its pieces of a tile.
template <Input kInput, Before kBefore>
struct TileOperands {
    static_assert(kInput != Input::kFp32, "a thread has registers for pieces of 16 bytes");
    static constexpr bool kNorm = kBefore == Before::kRmsNorm;
    using P = Piece<kInput>;
    P x[kQuad];                   // the gates, or what is normalised
    P others[kNorm ? 1 : kQuad];  // the numbers beside the gates, or the columns' weights
    float inverse_roots[kNorm ? kQuad : 1];

    // From the tile whose first row and column are given. Only the last tiles have rows beyond m. Where the others do
    // not ask, the cast is 2 % faster.
    template <typename T>
    __device__ __forceinline__ void load(const CastParams& p, uint32_t first_row, uint32_t first_column) {
        const uint32_t m = static_cast<uint32_t>(p.m), k = static_cast<uint32_t>(p.k);
        const uint32_t x_row = static_cast<uint32_t>(p.x_row) * P::kBytes, column = first_column + T::column();
        const uint8_t* from = static_cast<const uint8_t*>(p.x) + static_cast<uint64_t>(first_row + T::row(0)) * x_row +
                              column * P::kBytes;
        if constexpr (kNorm) others[0] = load_piece<kInput, true>(p.weight, column, 1, kPiece);
        const auto load_rows = [&]<bool kWhole>() {
#pragma unroll
            for (int i = 0; i < kQuad; ++i, from += x_row) {
                const bool inside = kWhole || first_row + T::row(i) < m;
                x[i] = load_piece<kInput, true>(from, 0, 1, inside ? kPiece : 0);
                if constexpr (kNorm)
                    inverse_roots[i] = inside ? p.inverse_roots[first_row + T::row(i)] : 0;
                else
                    others[i] = load_piece<kInput, true>(from + k * P::kBytes, 0, 1, inside ? kPiece : 0);
            }
        };
        if (first_row + kTile <= m)
            load_rows.template operator()<true>();
        else
            load_rows.template operator()<false>();
    }

    // What is cast. Rows from `rows` on, counted in the tile, are zeros.
    template <typename T>
    __device__ __forceinline__ void compute(Piece<Input::kFp32> (&pieces)[kQuad], uint32_t rows) const {
#pragma unroll
        for (int i = 0; i < kQuad; ++i)
            if constexpr (kNorm)
                pieces[i] = normalised(x[i], inverse_roots[i], others[0], T::row(i) < rows ? kPiece : 0);
            else
                pieces[i] = silu_and_mul(x[i], others[i]);
    }
};

template <Input kInput, Before kBefore, Kind kKind, bool kAhead>
__global__ void __launch_bounds__(NextTile<kKind>::kThreads, kTilesCtasAnSm<kKind>) fp8_cast_tiles(const CastParams p) {
    using T = NextTile<kKind>;
    static_assert(T::kPieces == kQuad);
    const uint32_t m = static_cast<uint32_t>(p.m), k = static_cast<uint32_t>(p.k);
    const uint32_t across = k / T::kColumns, lines = (m + kTile - 1) / kTile, tiles = across * lines;
    const uint32_t down = gridDim.x / across, aside = gridDim.x - down * across;  // from one tile to the next
    // RMSNorm's tiles are counted from the last: L2 still has what fp8_cast_row_roots has just read last.
    constexpr bool kBackwards = kBefore == Before::kRmsNorm;
    const auto first_row = [&](const Place& place) { return (kBackwards ? lines - 1 - place.row : place.row) * kTile; };
    const auto first_column = [&](const Place& place) {
        return (kBackwards ? across - 1 - place.run : place.run) * T::kColumns;
    };

    Place at{blockIdx.x / across, blockIdx.x % across}, next = at;
    TileOperands<kInput, kBefore> loaded;  // of the tile at `next`
    const auto load_next = [&] {
        if (next.row < lines) loaded.template load<T>(p, first_row(next), first_column(next));
    };
    start_early(p);
    load_next();
    uint32_t smem = ptx::shared_memory();
    for (uint32_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        const TileOperands<kInput, kBefore> operands = loaded;
        next.advance(down, aside, across);
        if constexpr (kAhead) load_next();
        Piece<Input::kFp32> pieces[kQuad];
        operands.template compute<T>(pieces, m - first_row(at));
        if constexpr (!kAhead) load_next();
        cast_tile<T, kKind, true>(p, {0, first_row(at) / kTile, first_column(at)}, pieces, smem, kPiece);
        at = next;
        // The next block's maxima lie elsewhere, as a thread may still read these. Columns need no second place, as
        // inverses_of_columns has another barrier behind the last read.
        if constexpr (kKind == Kind::kBlock) smem ^= T::kBytesMaxima;
    }
}
