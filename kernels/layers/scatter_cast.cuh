// Casts each token, with a scale for each run of 128 numbers, and writes it to each row that one of its choices has in
// the masked or psum layout.
//
// A gather makes each row from its token, and so reads and casts a token once for each of its experts. Here 8 lanes
// read and cast a run of 128 numbers once, as in cast_per_token.cuh, and write it to one row after the other. Most
// bytes are written here, not read, so a lane has 16 neighbouring numbers, and stores their codes together. Rows of no
// token are not written.
#pragma once

#include "cast_per_token.cuh"
#include "launch.cuh"

constexpr int kPlaces = 8;  // of a token, that a thread loads together

struct ScatterCastParams {
    const void* x;          // kInput [tokens, k]: columns side by side, each row at a multiple of 16 bytes
    const int64_t* places;  // [tokens, top_k], contiguous; a choice whose number is outside 0 to size - 1 has no row
    uint8_t* codes;         // E4M3 [size, k], contiguous, at a multiple of 16 bytes; k is a multiple of 16
    float* scales;          // [size / room, room, runs of k], of any strides; a group's are [room, runs of k]
    int64_t tokens, top_k, k, size, room;
    int64_t x_row, scale_group, scale_row, scale_column;  // strides, in elements
    bool power_of_two;                                    // round scales up to powers of two
};

// The argument of the launcher, filled in by Python (scattering.py).
struct ScatterCastArgs {
    ScatterCastParams params;
    int64_t input;  // Input
    void* stream;   // cudaStream_t; ignored by the emulator
};

template <Input kInput>
__global__ void __launch_bounds__(kThreads) scatter_cast(const ScatterCastParams p) {
    constexpr uint32_t kUnits = kThreads / kRunLanes;  // runs that a CTA casts
    const uint32_t runs = static_cast<uint32_t>(ceil_div(p.k, kScaleK)), top_k = static_cast<uint32_t>(p.top_k);
    const uint32_t unit = blockIdx.x * kUnits + threadIdx.x / kRunLanes;  // scattering.py has seen to it that this fits
    const uint32_t token = unit / runs, run = unit - token * runs, lane = threadIdx.x % kRunLanes;
    const bool is_token = token < p.tokens;
    const int64_t column = static_cast<int64_t>(run) * kScaleK + lane * kParts * kPiece;
    const bool is_inside = is_token && column < p.k;
    const int64_t* places = p.places + static_cast<int64_t>(token) * top_k;
    start_early(p.tokens);

    // The loads of x and of the first places are all on their way before one is used.
    Piece<kInput> pieces[kParts];
#pragma unroll
    for (int j = 0; j < kParts; ++j) {
        const int64_t from = token * p.x_row + column + j * kPiece;
        pieces[j] = load_piece<kInput, true>(p.x, from, 1, is_inside ? kPiece : 0);
    }
    int64_t at[kPlaces];
    const auto load_places = [&](uint32_t first) {
#pragma unroll
        for (uint32_t i = 0; i < kPlaces; ++i) at[i] = is_token && first + i < top_k ? places[first + i] : -1;
    };
    load_places(0);

    uint32_t amax[1] = {amax_of(pieces)};
    const Scale scale = scale_of(amax_of_one<kRunLanes>(amax), p.power_of_two);
    uint32_t words[kParts][2];
#pragma unroll
    for (int j = 0; j < kParts; ++j) codes_of(words[j], pieces[j], [&](int) { return scale.inverse; });
    for (uint32_t first = 0; first < top_k; first += kPlaces) {
        if (first) load_places(first);
#pragma unroll
        for (int i = 0; i < kPlaces; ++i) {
            // One comparison for both ends: a negative number is a large unsigned one.
            if (static_cast<uint64_t>(at[i]) >= static_cast<uint64_t>(p.size)) continue;
            const uint32_t place = static_cast<uint32_t>(at[i]), room = static_cast<uint32_t>(p.room);
            uint4* to = reinterpret_cast<uint4*>(p.codes + place * p.k + column);
            if (is_inside) *to = {words[0][0], words[0][1], words[1][0], words[1][1]};
            const uint32_t group = place < room ? 0 : place / room;  // the psum layout has one, and needs no division
            if (lane == 0)
                p.scales[group * p.scale_group + (place - group * room) * p.scale_row + run * p.scale_column] =
                    scale.value;
        }
    }
}

template <Input kInput>
const char* start_scatter_cast(const ScatterCastArgs& args) {
    const ScatterCastParams& p = args.params;
    const int64_t runs = p.tokens * ceil_div(p.k, kScaleK);
    return launch(
        scatter_cast<kInput>,
        {.blocks = ceil_div(runs, kThreads / kRunLanes), .threads = kThreads, .stream = args.stream, .early = true}, p);
}

extern "C" const char* gemm_ladder_launch(const ScatterCastArgs* args) {
    return with_input(args->input, [&]<Input kInput>() { return start_scatter_cast<kInput>(*args); });
}
