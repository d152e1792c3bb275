// What RMSNorm multiplies each row by, for the casts of tiles: a tile has a part of each of its rows, and the 128 whole
// rows do not fit in an SM. So this kernel reads x ahead of theirs.
#pragma once

#include "cast_rms_norm.cuh"

// A CTA has a row. Thread t adds up the squares of pieces t, t + 256, ..., of which several are on their way at a time.
template <Input kInput, bool kVector>
__global__ void __launch_bounds__(kThreads) fp8_cast_row_roots(const CastParams p) {
    const uint32_t group = blockIdx.x / static_cast<uint32_t>(p.m);
    const int64_t row = blockIdx.x - group * p.m;
    start_early(p);
    int64_t begins[1];
    find_rows(p, group, p.m, [&](int) { return row; }, begins);
    constexpr int kTogether = 4;
    constexpr int64_t kPass = kThreads * kPiece;
    float sum = 0;
    for (int64_t column = threadIdx.x * kPiece; column < p.k; column += kTogether * kPass) {
        Piece<kInput> pieces[kTogether];
#pragma unroll
        for (int i = 0; i < kTogether; ++i) {
            const int64_t here = column + i * kPass;
            const int count = begins[0] < 0 ? 0 : inside(p, here);
            pieces[i] = load_piece<kInput, kVector>(p.x, begins[0] + here * p.x_column, p.x_column, count);
        }
#pragma unroll
        for (int i = 0; i < kTogether; ++i) sum = with_squares(sum, pieces[i]);
    }
    const float whole = sum_of_all(sum, ptx::shared_memory());
    if (threadIdx.x == 0) p.inverse_roots[blockIdx.x] = inverse_root_of(whole, p);
}
