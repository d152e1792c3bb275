// RMSNorm and the cast per token. A CTA has one row: it adds up the squares, then casts what the row becomes.
//
// Thread t holds pieces t, t + 256, ... of 8 elements, kHeld at most, so that a row is read once. Where a row has more,
// kHeld is 0 and it is read twice, the second time from L2. The order of the sum is that of ref/activations.py,
// whatever kHeld is.
#pragma once

#include "cast_numbers.cuh"

template <Input kInput, bool kVector, int kHeld>
__global__ void __launch_bounds__(kThreads) fp8_cast_rms_norm(const CastParams p) {
    const uint32_t smem = ptx::shared_memory(), group = blockIdx.x / static_cast<uint32_t>(p.m);
    const int64_t row = blockIdx.x - group * p.m;
    ptx::griddepcontrol_launch_dependents();
    ptx::griddepcontrol_wait();
    if (p.counts && row >= p.counts[group]) return;
    int64_t begins[1];
    find_rows(p, group, p.m, [&](int) { return row; }, begins);
    const int64_t begin = begins[0];
    const int64_t passes = ceil_div(p.k, kThreads * kPiece);
    const auto column_of = [&](int64_t pass) { return (pass * kThreads + threadIdx.x) * kPiece; };
    const auto load = [&](const void* from, int64_t offset, int64_t pass, int64_t stride) {
        const int64_t column = column_of(pass);
        return load_piece<kInput, kVector>(from, offset + column * stride, stride, offset < 0 ? 0 : inside(p, column));
    };

    // The sum of the squares.
    Piece<kInput> held[kHeld ? kHeld : 1], weights[kHeld ? kHeld : 1];
    float sum = 0;
    const auto add = [&](const Piece<kInput>& piece) {
        for (int i = 0; i < kPiece; ++i) sum = __fmaf_rn(piece[i], piece[i], sum);
    };
    if constexpr (kHeld != 0) {
#pragma unroll
        for (int pass = 0; pass < kHeld; ++pass) held[pass] = load(p.x, begin, pass, p.x_column);
#pragma unroll
        for (int pass = 0; pass < kHeld; ++pass) weights[pass] = load(p.weight, 0, pass, 1);
#pragma unroll
        for (int pass = 0; pass < kHeld; ++pass) add(held[pass]);
    } else {
        for (int64_t pass = 0; pass < passes; ++pass) add(load(p.x, begin, pass, p.x_column));
    }
    for (int lanes = 16; lanes; lanes /= 2) sum += ptx::shfl_sync_bfly(kAllLanes, sum, lanes);
    if (threadIdx.x % 32 == 0) ptx::st_shared(smem + 4 * (threadIdx.x / 32), sum);
    __syncthreads();
    float whole = 0;
    for (int i = 0; i < kThreads / 32; ++i) whole += ptx::ld_shared<float>(smem + 4 * i);
    const float inverse_root = __frcp_rn(__fsqrt_rn(__fdiv_rn(whole, static_cast<float>(p.k)) + p.epsilon));

    // The cast. All lanes take part in the shuffles, also those beyond the row's end, which have zeros.
    const auto cast = [&](const Piece<kInput>& piece, const Piece<kInput>& weight, int64_t pass) {
        const int64_t column = column_of(pass);
        Piece<Input::kFp32> numbers[1];
        for (int i = 0; i < kPiece; ++i) numbers[0].words[i] = __float_as_uint(piece[i] * inverse_root * weight[i]);
        const int count = inside(p, column);
        for (int i = 0; i < kPiece; ++i)
            if (i >= count) numbers[0].words[i] = 0;  // infinity times 0, where the row has no number
        uint32_t amax = amax_of(numbers);
        for (int lanes = kPiecesARun / 2; lanes; lanes /= 2)
            amax = max(amax, ptx::shfl_sync_bfly(kAllLanes, amax, lanes));
        const Scale scale = scale_of(amax, p.power_of_two);
        store_codes<kVector>(
            p.codes + group * p.codes_group + row * p.codes_row + column, numbers[0],
            [&](int) { return scale.inverse; }, count);
        if (threadIdx.x % kPiecesARun == 0 && count > 0)
            p.scales[group * p.scale_group + row * p.scale_row + column / kScaleK * p.scale_column] = scale.value;
    };
    if constexpr (kHeld != 0) {
#pragma unroll
        for (int pass = 0; pass < kHeld; ++pass) cast(held[pass], weights[pass], pass);
    } else {
        for (int64_t pass = 0; pass < passes; ++pass)
            cast(load(p.x, begin, pass, p.x_column), load(p.weight, 0, pass, 1), pass);
    }
}
