// RMSNorm and the cast per token. A CTA has a row: it adds up the squares, then casts what the row becomes.
//
// Thread t holds pieces t, t + 256, ... of 8 elements, kHeld at most, so that a row is read once. Where a row has more,
// or cannot be loaded 16 bytes at a time, kHeld is 0 and it is read twice, the second time from L2. The order of the
// sum is that of ref/activations.py, whatever kHeld is. cast_rms_norm_rows.cuh does the same for a large matrix.
#pragma once

#include <type_traits>

#include "cast_numbers.cuh"

constexpr uint32_t kBytesSums = kThreads / 32 * 4;  // a float for each warp

// The sum of what the warps of kThreads threads have put at `sums`.
__device__ __forceinline__ float sum_of_warps(uint32_t sums) {
    float whole = 0;
    for (int i = 0; i < kThreads / 32; ++i) whole += ptx::ld_shared<float>(sums + 4 * i);
    return whole;
}

// The sum over a CTA's threads, in each of them. `sums` are kBytesSums bytes of shared memory that nobody may be
// reading any more: nothing waits before they are written.
__device__ __forceinline__ float sum_of_all(float sum, uint32_t sums) {
    for (int lanes = 16; lanes; lanes /= 2) sum += ptx::shfl_sync_bfly(kAllLanes, sum, lanes);
    if (threadIdx.x % 32 == 0) ptx::st_shared(sums + 4 * (threadIdx.x / 32), sum);
    __syncthreads();
    return sum_of_warps(sums);
}

// What the numbers of a row are multiplied by whose squares add up to `sum`: 1 / sqrt(their mean + epsilon).
__device__ __forceinline__ float inverse_root_of(float sum, const CastParams& p) {
    return __frcp_rn(__fsqrt_rn(__fdiv_rn(sum, static_cast<float>(p.k)) + p.epsilon));
}

// A sum of squares with those of a piece added, one after the other.
template <Input kInput>
__device__ __forceinline__ float with_squares(float sum, const Piece<kInput>& piece) {
    for (int i = 0; i < kPiece; ++i) sum = __fmaf_rn(piece[i], piece[i], sum);
    return sum;
}

// What the first `count` numbers of a piece become. The others are 0: where inverse_root is infinite (a row of zeros,
// without epsilon), they would be NaN.
template <Input kInput>
__device__ __forceinline__ Piece<Input::kFp32> normalised(const Piece<kInput>& piece, float inverse_root,
                                                          const Piece<kInput>& weights, int count = kPiece) {
    Piece<Input::kFp32> numbers;
    for (int i = 0; i < kPiece; ++i)
        numbers.words[i] = i < count ? __float_as_uint(piece[i] * inverse_root * weights[i]) : 0;
    return numbers;
}

template <Input kInput, bool kVector, int kHeld>
__global__ void __launch_bounds__(kThreads) fp8_cast_rms_norm(const CastParams p) {
    const uint32_t group = blockIdx.x / static_cast<uint32_t>(p.m);
    const int64_t row = blockIdx.x - group * p.m;
    start_early(p);
    if (p.counts && row >= p.counts[group]) return;
    int64_t begins[1];
    find_rows(p, group, p.m, [&](int) { return row; }, begins);
    const int64_t begin = begins[0];
    const int64_t passes = ceil_div(p.k, kThreads * kPiece);
    // kHeld pieces are few columns, so that an index of 32 bits is enough.
    using Index = std::conditional_t<kHeld != 0, int, int64_t>;
    const auto column_of = [&](int64_t pass) {
        return (static_cast<Index>(pass) * kThreads + static_cast<Index>(threadIdx.x)) * kPiece;
    };
    const auto count_of = [&](int64_t pass) {
        const Index left = static_cast<Index>(p.k) - column_of(pass);
        return left >= kPiece ? kPiece : static_cast<int>(left);
    };
    const auto load = [&](const void* from, int64_t offset, int64_t pass, int64_t stride) {
        const int64_t element = offset + column_of(pass) * (kVector ? 1 : stride);
        return load_piece<kInput, kVector>(from, element, stride, offset < 0 ? 0 : count_of(pass));
    };

    // The sum of the squares.
    constexpr int kTogether = kHeld ? kHeld : 1;
    Piece<kInput> held[kTogether], weights[kTogether];
    float sum = 0;
    if constexpr (kHeld != 0) {
#pragma unroll
        for (int pass = 0; pass < kHeld; ++pass) held[pass] = load(p.x, begin, pass, p.x_column);
#pragma unroll
        for (int pass = 0; pass < kHeld; ++pass) weights[pass] = load(p.weight, 0, pass, 1);
#pragma unroll
        for (int pass = 0; pass < kHeld; ++pass) sum = with_squares(sum, held[pass]);
    } else {
        for (int64_t pass = 0; pass < passes; ++pass) sum = with_squares(sum, load(p.x, begin, pass, p.x_column));
    }
    const float inverse_root = inverse_root_of(sum_of_all(sum, ptx::shared_memory()), p);

    // The cast, of kTogether passes' pieces. All lanes take part in the shuffles, also those beyond the row's end.
    constexpr int kLanesARun = kPiecesARun / kTogether;  // that have the same run's scale
    const int lane = static_cast<int>(threadIdx.x % kPiecesARun);
    uint8_t* codes = p.codes + group * p.codes_group + row * p.codes_row;
    float* scales = p.scales + group * p.scale_group + row * p.scale_row;
    const auto cast = [&](int64_t pass) {
        Piece<Input::kFp32> numbers[kTogether];
        uint32_t amax[kTogether];
#pragma unroll
        for (int i = 0; i < kTogether; ++i) {
            const int count = count_of(pass + i);
            // With kVector a piece lies wholly inside the row or outside.
            numbers[i] = normalised(held[i], inverse_root, weights[i], kVector ? kPiece : count);
            amax[i] = count > 0 ? amax_of<Input::kFp32, 1>({numbers[i]}) : 0;
        }
        const Scale mine = scale_of(amax_of_one<kPiecesARun>(amax), p.power_of_two);
        const int64_t my_run = column_of(pass + lane / kLanesARun) / kScaleK;
        if (lane % kLanesARun == 0 && my_run * kScaleK < p.k) scales[my_run * p.scale_column] = mine.value;
#pragma unroll
        for (int i = 0; i < kTogether; ++i) {
            const int source = static_cast<int>(threadIdx.x % 32) - lane + i * kLanesARun;
            const float inverse = ptx::shfl_sync_idx(mine.inverse, source);
            store_codes<kVector>(
                codes + column_of(pass + i), numbers[i], [&](int) { return inverse; }, count_of(pass + i));
        }
    };
    if constexpr (kHeld != 0) {
        cast(0);
    } else {
        for (int64_t pass = 0; pass < passes; ++pass) {
            held[0] = load(p.x, begin, pass, p.x_column);
            weights[0] = load(p.weight, 0, pass, 1);
            cast(pass);
        }
    }
}
