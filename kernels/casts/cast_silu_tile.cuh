// SiLU-and-multiply and the casts per block and per channel, of BF16 or FP16, for one matrix whose rows are whole runs.
// It computes what cast_tile.cuh does.
//
// The arithmetic takes nearly as long as the bytes, so neither may wait for the other. A CTA takes every gridDim.x-th
// tile, and has the numbers of the next loaded while it casts one. A thread has four pieces of a tile, half as many as
// in cast_tile.cuh, so that there are registers for both. Per channel, tiles of 64 columns let an SM hold three CTAs,
// of which one computes where another waits for memory or at a barrier. It is enough that the next tile is on its way
// when SiLU is computed, and pieces of the first are cast as they arrive. A block has one CTA an SM; there, loads are
// issued ahead of SiLU (kAhead), once all of a tile has arrived.
#pragma once

#include "cast_silu.cuh"
#include "cast_tile.cuh"

// A block needs all 128 columns in one CTA.
template <Kind kKind>
using SiluTile = Tile<kKind == Kind::kBlock ? kTile : kTile / 2, kKind == Kind::kBlock ? 2 * kThreads : kThreads>;

template <Kind kKind>
constexpr int kSiluTileCtasAnSm = kKind == Kind::kBlock ? 1 : 3;  // CTAs that run at the same time

template <Input kInput, Kind kKind, bool kAhead>
__global__ void __launch_bounds__(SiluTile<kKind>::kThreads, kSiluTileCtasAnSm<kKind>)
    fp8_cast_silu_tile(const CastParams p) {
    static_assert(kInput != Input::kFp32, "a thread has registers for pieces of 16 bytes");
    using T = SiluTile<kKind>;
    static_assert(T::kPieces == kQuad);
    using P = Piece<kInput>;
    const uint32_t m = static_cast<uint32_t>(p.m), k = static_cast<uint32_t>(p.k);
    const uint32_t across = k / T::kColumns, lines = (m + kTile - 1) / kTile, tiles = across * lines;
    const uint32_t down = gridDim.x / across, aside = gridDim.x - down * across;  // from one tile to the next
    const uint32_t x_row = static_cast<uint32_t>(p.x_row) * P::kBytes;
    const uint8_t* x =
        static_cast<const uint8_t*>(p.x) + static_cast<uint64_t>(T::row(0)) * x_row + T::column() * P::kBytes;

    Place at{blockIdx.x / across, blockIdx.x % across}, next = at;
    P gates[kQuad], ups[kQuad];  // of the tile at `next`
    const auto load_next = [&] {
        if (next.row >= lines) return;
        const uint32_t first = next.row * kTile;
        const uint8_t* from = x + static_cast<uint64_t>(first) * x_row + next.run * (T::kColumns * P::kBytes);
        const auto load = [&]<bool kWhole>() {
#pragma unroll
            for (int i = 0; i < kQuad; ++i, from += x_row) {
                const int count = kWhole || first + T::row(i) < m ? kPiece : 0;
                gates[i] = load_piece<kInput, true>(from, 0, 1, count);
                ups[i] = load_piece<kInput, true>(from + k * P::kBytes, 0, 1, count);
            }
        };
        // Only the last tiles have rows beyond m. Where the others do not ask, the cast is 2 % faster.
        if (first + kTile <= m)
            load.template operator()<true>();
        else
            load.template operator()<false>();
    };

    start_early(p);
    load_next();
    uint32_t smem = ptx::shared_memory();
    for (uint32_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        P gate[kQuad], up[kQuad];
#pragma unroll
        for (int i = 0; i < kQuad; ++i) gate[i] = gates[i], up[i] = ups[i];
        next.advance(down, aside, across);
        if constexpr (kAhead) load_next();
        Piece<Input::kFp32> pieces[kQuad];
#pragma unroll
        for (int i = 0; i < kQuad; ++i) pieces[i] = silu_and_mul(gate[i], up[i]);
        if constexpr (!kAhead) load_next();
        cast_tile<T, kKind, true>(p, {0, at.row, at.run * T::kColumns}, pieces, smem, kPiece);
        at = next;
        // The next block's maxima lie elsewhere, as a thread may still read these. Columns need no second place, as
        // inverses_of_columns has another barrier behind the last read.
        if constexpr (kKind == Kind::kBlock) smem ^= T::kBytesMaxima;
    }
}
