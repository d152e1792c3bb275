// RMSNorm and the cast per token, of BF16 or FP16, for a large matrix whose rows are whole runs. It computes what
// cast_rms_norm.cuh does.
//
// A CTA takes every gridDim.x-th row. While it sums and casts one, the next row is on its way into registers, so that
// memory is never idle, and what a row costs beside its numbers is little. The weights, which are the same for all
// rows, lie in shared memory: with them in registers, an SM would have two such CTAs instead of three.
#pragma once

#include "cast_rms_norm.cuh"

constexpr int kRowsCtasAnSm = 3;  // that run at the same time

template <Input kInput, int kHeld>
__global__ void __launch_bounds__(kThreads, kRowsCtasAnSm) fp8_cast_rms_norm_rows(const CastParams p) {
    static_assert(kHeld == 2 || kHeld == 4, "neighbouring lanes cast kHeld runs");
    static_assert(kInput != Input::kFp32, "a thread has registers for pieces of 16 bytes");
    using P = Piece<kInput>;
    constexpr uint32_t kPass = kThreads * kPiece;
    const uint32_t k = static_cast<uint32_t>(p.k), m = static_cast<uint32_t>(p.m), column = threadIdx.x * kPiece;
    // The last passes of a row may be beyond its end: for some warps, which skip them, or for some lanes of a warp.
    const auto warp_has = [&](uint32_t pass) { return pass * kPass + threadIdx.x / 32 * 32 * kPiece < k; };
    const auto has = [&](uint32_t pass) { return pass * kPass + column < k; };

    start_early(p);
    // A thread writes and reads its own pieces of the weights, so no barrier is needed.
    const auto weight = [&](uint32_t pass) {
        return ptx::shared_memory() + 2 * kBytesSums + (pass * kThreads + threadIdx.x) * sizeof(P);
    };
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
        const P piece = load_piece<kInput, true>(p.weight, i * kPass + column, 1, has(i) ? kPiece : 0);
        ptx::st_shared(weight(i), uint4{piece.words[0], piece.words[1], piece.words[2], piece.words[3]});
    }
    P next[kHeld];
    const auto load_next = [&](uint32_t row) {
        if (row >= m) return;
#pragma unroll
        for (int i = 0; i < kHeld; ++i)
            next[i] = load_piece<kInput, true>(p.x, row * p.x_row + i * kPass + column, 1, has(i) ? kPiece : 0);
    };

    uint32_t sums = ptx::shared_memory();
    load_next(blockIdx.x);
    for (uint32_t row = blockIdx.x; row < m; row += gridDim.x) {
        P held[kHeld];
        for (int i = 0; i < kHeld; ++i) held[i] = next[i];
        load_next(row + gridDim.x);

        float sum = 0;
#pragma unroll
        for (int i = 0; i < kHeld; ++i)
            if (warp_has(i)) sum = with_squares(sum, held[i]);
        const float inverse_root = inverse_root_of(sum_of_all(sum, sums), p);
        sums ^= kBytesSums;  // of the next row, as a thread may still read these

        Piece<Input::kFp32> numbers[kHeld];
        uint32_t amax[kHeld] = {};
#pragma unroll
        for (int i = 0; i < kHeld; ++i) {
            if (!warp_has(i)) continue;
            const uint4 four = ptx::ld_shared<uint4>(weight(i));
            const P weights = {{four.x, four.y, four.z, four.w}};
            numbers[i] = normalised(held[i], inverse_root, weights);
            // Beyond the row's end it belongs to no scale that is stored.
            amax[i] = amax_of<Input::kFp32, 1>({numbers[i]});
        }

        // Neighbouring lanes cast a run in each pass, and each works out the scale of one of these runs.
        constexpr uint32_t kLanesARun = kPiecesARun / kHeld;
        const uint32_t lane = threadIdx.x % kPiecesARun, run = (lane / kLanesARun * kPass + column) / kScaleK;
        const Scale mine = scale_of(amax_of_one<kPiecesARun>(amax), p.power_of_two);
        if (lane % kLanesARun == 0 && run * kScaleK < k)
            p.scales[row * p.scale_row + run * p.scale_column] = mine.value;
        uint8_t* codes = p.codes + row * p.codes_row + column;
#pragma unroll
        for (int i = 0; i < kHeld; ++i) {
            const float inverse = ptx::shfl_sync_idx(mine.inverse, threadIdx.x % 32 - lane + i * kLanesARun);
            if (!warp_has(i)) continue;
            store_codes<true>(codes + i * kPass, numbers[i], [&](int) { return inverse; }, has(i) ? kPiece : 0);
        }
    }
}
