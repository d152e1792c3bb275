// SiLU-and-multiply and the cast per token, of BF16 or FP16, for a large matrix, or groups of rows, whose rows are
// whole runs. It computes what cast_per_token.cuh does.
//
// The arithmetic takes nearly as long as the bytes, so neither may wait for the other: 8 lanes cast a run, and while
// they compute with it, the numbers of their next run, `step` runs further, are on their way into registers. The place
// of the next run follows from that of the last by two additions.
#pragma once

#include <type_traits>

#include "cast_groups.cuh"
#include "cast_per_token.cuh"

constexpr int kSiluCtasAnSm = 4;  // that run at the same time

// Where a run is; or a tile, of which there are `runs` side by side.
struct Place {
    uint32_t row, run;

    // Goes on by so many rows and runs, `runs` of which are a row.
    __device__ __forceinline__ void advance(uint32_t down, uint32_t across, uint32_t runs) {
        row += down, run += across;
        if (run >= runs) ++row, run -= runs;
    }
};

// kGroups: of groups of rows, of which counts or ends may say how many are cast.
template <Input kInput, bool kGroups>
__global__ void __launch_bounds__(kThreads, kSiluCtasAnSm) fp8_cast_silu(const CastParams p) {
    static_assert(kInput != Input::kFp32, "a thread has registers for pieces of 16 bytes");
    constexpr uint32_t kUnits = kThreads / kRunLanes;  // runs that a CTA casts at the same time
    using P = Piece<kInput>;
    const uint32_t runs = static_cast<uint32_t>(p.k) / kScaleK;
    const uint32_t lane = threadIdx.x % kRunLanes, step = gridDim.x * kUnits;
    const uint32_t down = step / runs, across = step - down * runs;
    const uint32_t unit = blockIdx.x * kUnits + threadIdx.x / kRunLanes;  // of the runs, row by row
    Place next{unit / runs, unit % runs};
    const uint8_t* x = static_cast<const uint8_t*>(p.x) + lane * sizeof(P);
    const uint32_t x_row = static_cast<uint32_t>(p.x_row) * P::kBytes, ups = static_cast<uint32_t>(p.k) * P::kBytes;
    const uint32_t codes_row = static_cast<uint32_t>(p.codes_row);
    uint8_t* codes = p.codes + lane * kPiece;

    start_early(p);
    std::conditional_t<kGroups, RowsOfGroups, OneMatrix> rows(p);
    // Of the run at `next`. Past the end they stay as they are, and nothing of them is stored.
    P gates[kParts]{}, others[kParts]{};
    const auto load_next = [&] {
        rows.find(next.row);
        if (!rows.any()) return;
        const uint8_t* from =
            x + static_cast<uint64_t>(rows.place(next.row)) * x_row + next.run * (kScaleK * P::kBytes);
        if constexpr (kGroups) from += rows.group * p.x_group * P::kBytes;
#pragma unroll
        for (int j = 0; j < kParts; ++j) {
            gates[j] = load_piece<kInput, true>(from + j * kApart * P::kBytes, 0, 1, kPiece);
            others[j] = load_piece<kInput, true>(from + ups + j * kApart * P::kBytes, 0, 1, kPiece);
        }
    };

    load_next();
    while (ptx::vote_sync_any(kAllLanes, rows.any())) {  // all lanes of a warp stay
        const P gate[kParts] = {gates[0], gates[1]}, other[kParts] = {others[0], others[1]};
        const uint32_t row = rows.place(next.row), run = next.run, group = rows.group;
        const bool is_row = rows.any();
        next.advance(down, across, runs);
        load_next();

        Piece<Input::kFp32> numbers[kParts];
#pragma unroll
        for (int j = 0; j < kParts; ++j) numbers[j] = silu_and_mul(gate[j], other[j]);
        uint32_t amax[1] = {amax_of(numbers)};
        const Scale scale = scale_of(amax_of_one<kRunLanes>(amax), p.power_of_two);
        if (!is_row) continue;
        float* scales = p.scales + row * p.scale_row + run * p.scale_column;
        uint8_t* to = codes + static_cast<uint64_t>(row) * codes_row + run * kScaleK;
        if constexpr (kGroups) scales += group * p.scale_group, to += group * p.codes_group;
        if (lane == 0) *scales = scale.value;
#pragma unroll
        for (int j = 0; j < kParts; ++j)
            store_codes<true>(to + j * kApart, numbers[j], [&](int) { return scale.inverse; }, kPiece);
    }
}
