// Copies each token's FP8 row, and its scales, to the rows of the masked or psum layout that its choices have.
//
// A CTA copies the row for one choice; each thread moves 16 bytes at a time.
#pragma once

#include "cast_numbers.cuh"
#include "launch.cuh"

constexpr uint32_t kScatterThreads = 128;

struct ScatterParams {
    const uint8_t* codes;   // [tokens, row_bytes], each row at a multiple of 16 bytes
    const float* scales;    // [tokens, scales_a_row], of any strides
    const int64_t* places;  // [tokens, top_k], contiguous; a choice whose number is outside 0 to size - 1 has no row
    uint8_t* to;            // [size, row_bytes], contiguous, at a multiple of 16 bytes
    float* to_scales;       // [size / room, room, scales_a_row], of any strides; a group's are [room, scales_a_row]
    int64_t choices, top_k, row_bytes, scales_a_row, size, room;
    int64_t codes_row, scale_row, scale_column, to_group, to_row, to_column;  // strides; codes_row in bytes
};

// The argument of the launcher, filled in by Python (placing.py).
struct ScatterArgs {
    ScatterParams params;
    void* stream;  // cudaStream_t; ignored by the emulator
};

__global__ void __launch_bounds__(kScatterThreads) scatter_rows(const ScatterParams p) {
    start_early(static_cast<uint32_t>(p.choices) / static_cast<uint32_t>(p.top_k));
    const uint32_t choice = blockIdx.x, token = choice / static_cast<uint32_t>(p.top_k);
    const int64_t place = p.places[choice];
    if (place < 0 || place >= p.size) return;
    const uint8_t* from = p.codes + token * p.codes_row;
    uint8_t* to = p.to + place * p.row_bytes;
#pragma unroll 4
    for (uint32_t i = threadIdx.x * 16; i < p.row_bytes; i += kScatterThreads * 16)
        *reinterpret_cast<uint4*>(to + i) = *reinterpret_cast<const uint4*>(from + i);
    const uint32_t room = static_cast<uint32_t>(p.room), group = static_cast<uint32_t>(place) / room;
    float* to_scales = p.to_scales + group * p.to_group + (place - group * room) * p.to_row;
    for (uint32_t i = threadIdx.x; i < p.scales_a_row; i += kScatterThreads)
        to_scales[i * p.to_column] = p.scales[token * p.scale_row + i * p.scale_column];
}

extern "C" const char* gemm_ladder_launch(const ScatterArgs* args) {
    return launch(scatter_rows,
                  {.blocks = args->params.choices, .threads = kScatterThreads, .stream = args->stream, .early = true},
                  args->params);
}
