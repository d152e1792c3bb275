// RMSNorm and the cast per token, of BF16 or FP16, for a large matrix whose rows are whole runs. It computes what
// cast_rms_norm.cuh does.
//
// A CTA takes every gridDim.x-th row. While it sums and casts one, the next row is on its way into registers, so that
// memory is never idle. A CTA has just the warps that a row needs if each thread holds 8 pieces of it: what a row costs
// beside its numbers (shuffles, a barrier, the root) is then paid by few threads. The weights, which are the same for
// all rows, lie in shared memory: in registers they would leave room for fewer warps.
#pragma once

#include "cast_rms_norm.cuh"

constexpr int kMostPieces = 8;     // of a row, that a thread holds
constexpr int kRowWarpsAnSm = 16;  // that run at the same time, with 128 registers a thread

// How a CTA of 32 * kRowWarps threads shares rows of at most kPieces pieces a thread, and more than kPieces - 2: thread
// t has pieces t, t + 32 * kRowWarps, .... A row's sum has the order of kThreads threads. They would be 8 warps, and a
// thread stands for one of each kPlaces of these: its pieces i, i + kPlaces, ... are those of one thread of theirs.
template <Input kRowInput, int kRowWarps, int kRowPieces>
struct Row {
    static_assert(kRowInput != Input::kFp32, "a thread has registers for pieces of 16 bytes");
    static constexpr Input kInput = kRowInput;
    static constexpr int kWarps = kRowWarps, kThreads = 32 * kWarps, kPieces = kRowPieces;
    using P = Piece<kInput>;
    static constexpr int kPlaces = ::kThreads / kThreads;
    static constexpr uint32_t kPass = kThreads * kPiece;  // numbers from one piece of a thread to the next
    static constexpr int kCtasAnSm = kRowWarpsAnSm / kWarps;
    static constexpr uint32_t kBytesWeights = kPieces * kPass * P::kBytes;

    static __device__ __forceinline__ uint32_t column() { return threadIdx.x * kPiece; }  // of the first piece
    // The last two pieces may be beyond the row's end: for some warps, which skip them, or for some lanes of a warp.
    static __device__ __forceinline__ bool sure(int i) { return i + 2 < kPieces; }
    static __device__ __forceinline__ bool warp_has(int i, uint32_t k) {
        return sure(i) || i * kPass + threadIdx.x / 32 * 32 * kPiece < k;
    }
    static __device__ __forceinline__ int count(int i, uint32_t k) {
        return sure(i) || i * kPass + column() < k ? kPiece : 0;
    }

    // Loads this thread's pieces of the row that begins at element `begin`.
    static __device__ __forceinline__ void load(P (&pieces)[kPieces], const void* from, int64_t begin, uint32_t k) {
#pragma unroll
        for (int i = 0; i < kPieces; ++i)
            pieces[i] = load_piece<kInput, true>(from, begin + i * kPass + column(), 1, count(i, k));
    }

    // The sum of a row's squares, in each thread. `sums` are kBytesSums bytes of shared memory that nobody may be
    // reading any more.
    static __device__ __forceinline__ float sum(const P (&pieces)[kPieces], uint32_t k, uint32_t sums) {
        float squares[kPlaces] = {};
#pragma unroll
        for (int i = 0; i < kPieces; ++i)
            if (warp_has(i, k)) squares[i % kPlaces] = with_squares(squares[i % kPlaces], pieces[i]);
        const float mine = one_of_each<32>(squares, [](float a, float b) { return a + b; });
        constexpr uint32_t kLanesAPlace = 32 / kPlaces;
        const uint32_t lane = threadIdx.x % 32, place = lane / kLanesAPlace * kWarps + threadIdx.x / 32;
        if (lane % kLanesAPlace == 0) ptx::st_shared(sums + 4 * place, mine);
        __syncthreads();
        return sum_of_warps(sums);
    }
};

template <typename R>
__global__ void __launch_bounds__(R::kThreads, R::kCtasAnSm) fp8_cast_rms_norm_rows(const CastParams p) {
    constexpr int kPieces = R::kPieces;
    using P = typename R::P;
    const uint32_t k = static_cast<uint32_t>(p.k), m = static_cast<uint32_t>(p.m), column = R::column();

    start_early(p);
    P next[kPieces];
    if (blockIdx.x < m) R::load(next, p.x, blockIdx.x * p.x_row, k);
    // A thread writes and reads its own pieces of the weights, so no barrier is needed.
    const auto weight = [&](int i) {
        return ptx::shared_memory() + 2 * kBytesSums + (i * R::kPass + column) * P::kBytes;
    };
    P weights[kPieces];
    R::load(weights, p.weight, 0, k);
#pragma unroll
    for (int i = 0; i < kPieces; ++i)
        ptx::st_shared(weight(i),
                       uint4{weights[i].words[0], weights[i].words[1], weights[i].words[2], weights[i].words[3]});

    uint32_t sums = ptx::shared_memory();
    for (uint32_t row = blockIdx.x; row < m; row += gridDim.x) {
        P held[kPieces];
        for (int i = 0; i < kPieces; ++i) held[i] = next[i];
        if (row + gridDim.x < m) R::load(next, p.x, (row + gridDim.x) * p.x_row, k);
        const float inverse_root = inverse_root_of(R::sum(held, k, sums), p);
        sums ^= kBytesSums;  // of the next row, as a thread may still read these

        Piece<Input::kFp32> numbers[kPieces];
        uint32_t amax[kMostPieces] = {};
#pragma unroll
        for (int i = 0; i < kPieces; ++i) {
            if (!R::warp_has(i, k)) continue;
            const uint4 four = ptx::ld_shared<uint4>(weight(i));
            numbers[i] = normalised(held[i], inverse_root, P{{four.x, four.y, four.z, four.w}});
            // Beyond the row's end it belongs to no scale that is stored.
            amax[i] = amax_of<Input::kFp32, 1>({numbers[i]});
        }

        // Neighbouring lanes have a run in each piece, and each works out the scale of one of these runs.
        constexpr uint32_t kLanesARun = kPiecesARun / kMostPieces;
        const uint32_t lane = threadIdx.x % 32, neighbour = lane % kPiecesARun;
        const uint32_t run = (neighbour / kLanesARun * R::kPass + column) / kScaleK;
        const Scale mine = scale_of(amax_of_one<kPiecesARun>(amax), p.power_of_two);
        if (neighbour % kLanesARun == 0 && run * kScaleK < k)
            p.scales[row * p.scale_row + run * p.scale_column] = mine.value;
        uint8_t* codes = p.codes + row * p.codes_row + column;
#pragma unroll
        for (int i = 0; i < kPieces; ++i) {
            const float inverse = ptx::shfl_sync_idx(mine.inverse, lane - neighbour + i * kLanesARun);
            if (!R::warp_has(i, k)) continue;
            store_codes<true>(codes + i * R::kPass, numbers[i], [&](int) { return inverse; }, R::count(i, k));
        }
    }
}
