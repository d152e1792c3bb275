// What RMSNorm multiplies each row by, for the casts of tiles: a tile has a part of each of its rows, and the 128 whole
// rows do not fit in an SM. So this kernel reads x ahead of theirs. In a large matrix a CTA takes row after row.
#pragma once

#include "cast_rms_norm_rows.cuh"

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

// The same for a large matrix of BF16 or FP16 whose rows are whole runs: see cast_rms_norm_rows.cuh.
template <typename R>
__global__ void __launch_bounds__(R::kThreads, R::kCtasAnSm) fp8_cast_row_roots_rows(const CastParams p) {
    constexpr int kPieces = R::kPieces;
    using P = typename R::P;
    const uint32_t k = static_cast<uint32_t>(p.k), m = static_cast<uint32_t>(p.m);
    start_early(p);
    P next[kPieces];
    if (blockIdx.x < m) R::load(next, p.x, blockIdx.x * p.x_row, k);
    uint32_t sums = ptx::shared_memory();
    for (uint32_t row = blockIdx.x; row < m; row += gridDim.x) {
        P held[kPieces];
        for (int i = 0; i < kPieces; ++i) held[i] = next[i];
        if (row + gridDim.x < m) R::load(next, p.x, (row + gridDim.x) * p.x_row, k);
        const float sum = R::sum(held, k, sums);
        if (threadIdx.x == 0) p.inverse_roots[row] = inverse_root_of(sum, p);
        sums ^= kBytesSums;  // of the next row, as a thread may still read these
    }
}
