// RMSNorm and the cast per token, of BF16 or FP16, for a large matrix whose rows are whole runs. It computes what
// cast_rms_norm.cuh does.
//
// A CTA takes every gridDim.x-th row. While it sums and casts one, the next row is on its way into registers, so that
// memory is never idle. A CTA has just the warps that a row needs if each thread holds 8 pieces of it: what a row costs
// beside its numbers (shuffles, a barrier, the root) is then paid by few threads. The weights, which are the same for
// all rows, lie in shared memory: in registers they would leave room for fewer warps.
#pragma once

#include "cast_rms_norm.cuh"

constexpr int kRowPieces = 8;      // of a thread, at most
constexpr int kRowWarpsAnSm = 16;  // that run at the same time, with 128 registers a thread

// How a CTA of 32 * kWarps threads shares a row: thread t has pieces t, t + 32 * kWarps, .... The row's sum has the
// order of kThreads threads. They would be 8 warps, and a thread stands for one of each kPlaces of these: its pieces
// i, i + kPlaces, ... are those of one thread of theirs.
template <int kWarps>
struct Row {
    static constexpr int kPlaces = kThreads / 32 / kWarps;
    static constexpr uint32_t kPass = kWarps * 32 * kPiece;  // numbers from one piece of a thread to the next
    static constexpr int kCtasAnSm = kRowWarpsAnSm / kWarps;
    static constexpr uint32_t shared_bytes(int pieces) { return 2 * kBytesSums + pieces * kPass * 2; }
};

// For rows of at most kPieces pieces a thread, and more than kPieces - 2.
template <Input kInput, int kWarps, int kPieces>
__global__ void __launch_bounds__(kWarps * 32, Row<kWarps>::kCtasAnSm) fp8_cast_rms_norm_rows(const CastParams p) {
    static_assert(kInput != Input::kFp32, "a thread has registers for pieces of 16 bytes");
    using P = Piece<kInput>;
    using R = Row<kWarps>;
    const uint32_t k = static_cast<uint32_t>(p.k), m = static_cast<uint32_t>(p.m), column = threadIdx.x * kPiece;
    // The last two pieces may be beyond the row's end: for some warps, which skip them, or for some lanes of a warp.
    const auto sure = [&](int i) { return i + 2 < kPieces; };
    const auto warp_has = [&](int i) { return sure(i) || i * R::kPass + threadIdx.x / 32 * 32 * kPiece < k; };
    const auto count = [&](int i) { return sure(i) || i * R::kPass + column < k ? kPiece : 0; };

    start_early(p);
    P next[kPieces];
    const auto load_next = [&](uint32_t row) {
        if (row >= m) return;
#pragma unroll
        for (int i = 0; i < kPieces; ++i)
            next[i] = load_piece<kInput, true>(p.x, row * p.x_row + i * R::kPass + column, 1, count(i));
    };
    load_next(blockIdx.x);
    // A thread writes and reads its own pieces of the weights, so no barrier is needed.
    const auto weight = [&](int i) {
        return ptx::shared_memory() + 2 * kBytesSums + (i * R::kPass + column) * P::kBytes;
    };
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
        const P piece = load_piece<kInput, true>(p.weight, i * R::kPass + column, 1, count(i));
        ptx::st_shared(weight(i), uint4{piece.words[0], piece.words[1], piece.words[2], piece.words[3]});
    }

    uint32_t sums = ptx::shared_memory();
    for (uint32_t row = blockIdx.x; row < m; row += gridDim.x) {
        P held[kPieces];
        for (int i = 0; i < kPieces; ++i) held[i] = next[i];
        load_next(row + gridDim.x);

        float squares[R::kPlaces] = {};
#pragma unroll
        for (int i = 0; i < kPieces; ++i)
            if (warp_has(i)) squares[i % R::kPlaces] = with_squares(squares[i % R::kPlaces], held[i]);
        const float sum = one_of_each<32>(squares, [](float a, float b) { return a + b; });
        constexpr uint32_t kLanesAPlace = 32 / R::kPlaces;
        const uint32_t lane = threadIdx.x % 32, place = lane / kLanesAPlace * kWarps + threadIdx.x / 32;
        if (lane % kLanesAPlace == 0) ptx::st_shared(sums + 4 * place, sum);
        __syncthreads();
        const float inverse_root = inverse_root_of(sum_of_warps(sums), p);
        sums ^= kBytesSums;  // of the next row, as a thread may still read these

        Piece<Input::kFp32> numbers[kPieces];
        uint32_t amax[kRowPieces] = {};
#pragma unroll
        for (int i = 0; i < kPieces; ++i) {
            if (!warp_has(i)) continue;
            const uint4 four = ptx::ld_shared<uint4>(weight(i));
            const P weights = {{four.x, four.y, four.z, four.w}};
            numbers[i] = normalised(held[i], inverse_root, weights);
            // Beyond the row's end it belongs to no scale that is stored.
            amax[i] = amax_of<Input::kFp32, 1>({numbers[i]});
        }

        // Neighbouring lanes have a run in each piece, and each works out the scale of one of these runs.
        constexpr uint32_t kLanesARun = kPiecesARun / kRowPieces;
        const uint32_t neighbour = lane % kPiecesARun, run = (neighbour / kLanesARun * R::kPass + column) / kScaleK;
        const Scale mine = scale_of(amax_of_one<kPiecesARun>(amax), p.power_of_two);
        if (neighbour % kLanesARun == 0 && run * kScaleK < k)
            p.scales[row * p.scale_row + run * p.scale_column] = mine.value;
        uint8_t* codes = p.codes + row * p.codes_row + column;
#pragma unroll
        for (int i = 0; i < kPieces; ++i) {
            const float inverse = ptx::shfl_sync_idx(mine.inverse, lane - neighbour + i * kLanesARun);
            if (!warp_has(i)) continue;
            store_codes<true>(codes + i * R::kPass, numbers[i], [&](int) { return inverse; }, count(i));
        }
    }
}
