// The cast per token: one scale for each run of 128 along a row, of x, or of SiLU-and-multiply of x.
//
// 8 lanes cast a run together. Each loads two pieces of 8 numbers, 64 apart, so that a warp's loads of BF16 are 16
// bytes a lane and 128 in a row. There is neither shared memory nor a barrier: the largest magnitude goes around by
// shuffles. A thread has the same run of kRows rows, whose pieces it loads before it uses the first, so that enough
// bytes are in flight. Where x is small, kRows is 1 and more CTAs share the work. Where x is large, neighbouring units
// of 8 lanes have the same run of kLines lines of kRows rows, so that a warp writes the scales of 8 rows, a whole
// sector of L2, at once.
#pragma once

#include "cast_numbers.cuh"

constexpr int kRunLanes = 8;
constexpr int kParts = 2, kApart = kScaleK / kParts;  // pieces of a lane, and how far apart they are

// kSkips: rows of zeros that a gather makes are not written, as the psum layout's padding need not be.
template <Input kInput, Before kBefore, bool kVector, int kRows, bool kSkips, int kLines>
__global__ void __launch_bounds__(kThreads) fp8_cast_per_token(const CastParams p) {
    constexpr uint32_t kUnits = kThreads / kRunLanes;  // of kRows rows and one run, a CTA
    constexpr uint32_t kLanesARow = kRunLanes / kRows;
    const uint32_t runs = static_cast<uint32_t>(ceil_div(p.k, kScaleK));
    const uint32_t lines_a_group = static_cast<uint32_t>(ceil_div(p.m, kRows * kLines)) * kLines;
    const uint32_t unit = blockIdx.x * kUnits + threadIdx.x / kRunLanes;  // operands.py has seen to it that this fits
    const uint32_t place = unit / kLines, stack = place / runs, run = place - stack * runs;
    const uint32_t line = stack * kLines + unit % kLines;
    const uint32_t group = p.groups == 1 ? 0 : line / lines_a_group;
    const int64_t first = static_cast<int64_t>(line - group * lines_a_group) * kRows;
    const uint32_t lane = threadIdx.x % kRunLanes;
    const int64_t column = static_cast<int64_t>(run) * kScaleK + lane * kPiece;
    const int counts[kParts] = {inside(p, column), inside(p, column + kApart)};

    start_early(p);
    int64_t rows = group < p.groups ? p.m : 0;  // of the group that are cast
    if (p.counts && rows && p.counts[group] < rows) rows = p.counts[group];
    Piece<kInput> pieces[kRows][kParts], ups[kBefore == Before::kSiluAndMul ? kRows : 1][kParts];
    int64_t begins[kRows];
    find_rows(p, group, rows, [&](int i) { return first + i; }, begins);
    uint32_t skipped = 0;  // a bit for each row
    if constexpr (kSkips) {
#pragma unroll
        for (int i = 0; i < kRows; ++i) skipped |= (begins[i] < 0) << i;
        if (ptx::vote_sync_all(kAllLanes, skipped == (1u << kRows) - 1)) return;
    }
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
        const int64_t begin = begins[i];
#pragma unroll
        for (int j = 0; j < kParts; ++j) {
            const int count = begin < 0 ? 0 : counts[j];
            const int64_t from = begin + (column + j * kApart) * p.x_column;
            pieces[i][j] = load_piece<kInput, kVector>(p.x, from, p.x_column, count);
            if constexpr (kBefore == Before::kSiluAndMul)
                ups[i][j] = load_piece<kInput, kVector>(p.x, from + p.k * p.x_column, p.x_column, count);
        }
    }
    constexpr Input kCast = kBefore == Before::kNothing ? kInput : Input::kFp32;
    Piece<kCast> numbers[kRows][kParts];
    uint32_t amax[kRows];
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
#pragma unroll
        for (int j = 0; j < kParts; ++j) {
            if constexpr (kBefore == Before::kSiluAndMul)
                numbers[i][j] = silu_and_mul(pieces[i][j], ups[i][j]);
            else
                numbers[i][j] = pieces[i][j];
        }
        amax[i] = amax_of(numbers[i]);
    }

    const Scale mine = scale_of(amax_of_one<kRunLanes>(amax), p.power_of_two);
    const int64_t my_row = first + lane / kLanesARow;
    if (lane % kLanesARow == 0 && my_row < rows && !(skipped >> lane / kLanesARow & 1))
        p.scales[group * p.scale_group + my_row * p.scale_row + run * p.scale_column] = mine.value;
    uint8_t* codes = p.codes + group * p.codes_group + first * p.codes_row + column;
#pragma unroll
    for (int i = 0; i < kRows; ++i, codes += p.codes_row) {
        const int source = static_cast<int>(threadIdx.x % 32 / kRunLanes * kRunLanes + i * kLanesARow);
        const float inverse = ptx::shfl_sync_idx(mine.inverse, source);
#pragma unroll
        for (int j = 0; j < kParts; ++j)
            store_codes<kVector>(
                codes + j * kApart, numbers[i][j], [&](int) { return inverse; },
                first + i < rows && !(skipped >> i & 1) ? counts[j] : 0);
    }
}
