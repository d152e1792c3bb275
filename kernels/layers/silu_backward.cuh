// Back through SiLU-and-multiply, in the backward pass of a mixture of experts. A row has a gate g and an up u in each
// column, and what comes back for h = SiLU(g) * u is b, before it is multiplied by the row's factor f:
//
//   d g = f b u SiLU'(g)      d u = f b SiLU(g)      d f = sum of b h      and f h, for the gradient of a weight
//
// A warp has a row. A lane takes every 32nd piece of 8 columns; ref/activations.py defines every bit, the order of the
// sum too.
#pragma once

#include "cast_numbers.cuh"
#include "launch.cuh"

struct SiluBackwardParams {
    const void* inner;      // BF16 [rows, 2 columns]: gates, then ups
    const void* of_h;       // BF16 [rows, columns]: b
    const float* factors;   // [rows]: f
    void* of_inner;         // BF16 [rows, 2 columns]: d g, then d u
    void* factored;         // BF16 [rows, columns]: f h
    float* of_factors;      // [rows]: d f
    int64_t rows, columns;  // all are contiguous and at multiples of 16 bytes; columns are a multiple of 8
};

// The argument of the launcher, filled in by Python (silu_backward.py).
struct SiluBackwardArgs {
    SiluBackwardParams params;
    void* stream;  // cudaStream_t; ignored by the emulator
};

// Eight numbers, rounded to BF16.
__device__ __forceinline__ uint4 rounded(const float (&numbers)[kPiece]) {
    const auto pair = [&](int i) { return ptx::cvt_rn_bf16x2_f32(numbers[i + 1], numbers[i]); };
    return {pair(0), pair(2), pair(4), pair(6)};
}

__global__ void __launch_bounds__(kThreads) silu_backward(const SiluBackwardParams p) {
    constexpr int kBytes = 2;  // of a number in BF16
    const int64_t row = blockIdx.x * static_cast<int64_t>(kThreads / 32) + threadIdx.x / 32;
    ptx::griddepcontrol_wait();  // all that is read may be what the kernels ahead write
    if (row >= p.rows) return;
    const float factor = p.factors[row];
    const int64_t in_inner = 2 * row * p.columns, in_h = row * p.columns;
    const auto at = [](void* tensor, int64_t element) {
        return reinterpret_cast<uint4*>(static_cast<uint8_t*>(tensor) + element * kBytes);
    };
    float sum = 0;
    for (int64_t column = threadIdx.x % 32 * kPiece; column < p.columns; column += 32 * kPiece) {
        const auto load = [&](const void* from, int64_t element) {
            return load_piece<Input::kBf16, true>(from, element + column, 1, kPiece);
        };
        const Piece<Input::kBf16> gates = load(p.inner, in_inner), ups = load(p.inner, in_inner + p.columns);
        const Piece<Input::kBf16> backs = load(p.of_h, in_h);
        float of_gate[kPiece], of_up[kPiece], factored[kPiece];
#pragma unroll
        for (int i = 0; i < kPiece; ++i) {
            const float x = limited(gates[i]), s = sigmoid(x), silu = x * s, h = silu * ups[i];
            // From 30 on SiLU' is 1, also where the gate is infinite; NaN stays NaN.
            const float slope = s * __fmaf_rn(x > 30.0f ? 30.0f : x, 1.0f - s, 1.0f);
            const float back = backs[i] * factor;
            sum = __fmaf_rn(backs[i], h, sum);
            of_gate[i] = back * ups[i] * slope;
            of_up[i] = back * silu;
            factored[i] = factor * h;
        }
        *at(p.of_inner, in_inner + column) = rounded(of_gate);
        *at(p.of_inner, in_inner + p.columns + column) = rounded(of_up);
        *at(p.factored, in_h + column) = rounded(factored);
    }
    for (int lanes = 16; lanes; lanes /= 2) sum += ptx::shfl_sync_bfly(kAllLanes, sum, lanes);
    if (threadIdx.x % 32 == 0) p.of_factors[row] = sum;
}

extern "C" const char* gemm_ladder_launch(const SiluBackwardArgs* args) {
    const SiluBackwardParams& p = args->params;
    const int64_t blocks = ceil_div(p.rows, kThreads / 32);
    if (blocks > INT32_MAX) return "more than 2^34 rows";
    return launch(silu_backward, {.blocks = blocks, .threads = kThreads, .stream = args->stream, .early = true}, p);
}
