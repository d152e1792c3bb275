// The end of a mixture of experts: for each token, the sum of its experts' rows, each times a factor.
//
//   rows [count, hidden]                  out [tokens, hidden]
//   places[t] = {7, 2, 9}     out[t] = f0 * rows[7] + f1 * rows[2] + f2 * rows[9]
//
// A CTA has a part of one token's row, and a thread 8 neighbouring columns of it, which it reads and writes 16 bytes at
// a time. It loads kTogether rows' pieces before it adds the first, so that enough bytes are in flight. Each sum begins
// with 0, is taken in FP32 in the order of the choices by fused multiply-adds, and is rounded to BF16 once at its end.
#pragma once

#include "cast_numbers.cuh"
#include "launch.cuh"

constexpr int kCombineThreads = 128;  // per CTA: 7 CTAs a token where hidden is 7168
constexpr int kTogether = 8;

struct CombineParams {
    const void* rows;       // BF16 [count, hidden]: columns side by side, each row at a multiple of 16 bytes
    const int64_t* places;  // [tokens, top_k], contiguous: rows; a number that is no row's adds nothing
    const void* factors;    // kFactor [tokens, top_k], contiguous; they are rounded to BF16
    void* out;              // kOut [tokens, hidden], contiguous, at a multiple of 16 bytes
    int64_t count, hidden, tokens, top_k;
    int64_t row_bytes;  // from one row to the next; like count and hidden it is below 2^32
};

// The argument of the launcher, filled in by Python (combining.py).
struct CombineArgs {
    CombineParams params;
    int64_t out, factor;  // Input
    void* stream;         // cudaStream_t; ignored by the emulator
};

// A number's bits, and the number, exactly.
template <Input kInput>
__device__ __forceinline__ uint32_t load_bits(const uint8_t* from) {
    if constexpr (kInput == Input::kFp32) return *reinterpret_cast<const uint32_t*>(from);
    return *reinterpret_cast<const uint16_t*>(from);
}
template <Input kInput>
__device__ __forceinline__ float number_of(uint32_t bits) {
    if constexpr (kInput == Input::kFp32) return __uint_as_float(bits);
    if constexpr (kInput == Input::kBf16) return __uint_as_float(bits << 16);
    return __half2float(__ushort_as_half(static_cast<uint16_t>(bits)));
}

// Rounds a piece to BF16 and writes it as kOut, which changes an FP16 number once more.
template <Input kOut>
__device__ __forceinline__ void store_piece(void* out, int64_t element, const float (&numbers)[kPiece]) {
    Piece<Input::kBf16> rounded;
    for (int i = 0; i < rounded.kWords; ++i)
        rounded.words[i] = ptx::cvt_rn_bf16x2_f32(numbers[2 * i + 1], numbers[2 * i]);
    Piece<kOut> piece;
    if constexpr (kOut == Input::kBf16) {
        piece = rounded;
    } else {
        for (int i = 0; i < piece.kWords; ++i) {
            if constexpr (kOut == Input::kFp32) {
                piece.words[i] = __float_as_uint(rounded[i]);
            } else {
                const auto half = [&](int j) -> uint32_t { return __half_as_ushort(__float2half_rn(rounded[j])); };
                piece.words[i] = half(2 * i + 1) << 16 | half(2 * i);
            }
        }
    }
    uint8_t* to = static_cast<uint8_t*>(out) + element * piece.kBytes;
    for (int i = 0; i < piece.kWords; i += 4)
        *reinterpret_cast<uint4*>(to + 4 * i) = {piece.words[i], piece.words[i + 1], piece.words[i + 2],
                                                 piece.words[i + 3]};
}

template <Input kOut, Input kFactor>
__global__ void __launch_bounds__(kCombineThreads) combine_rows(const CombineParams p) {
    constexpr int kFactorBytes = Piece<kFactor>::kBytes;
    constexpr uint32_t kMinusZero = 1u << (8 * kFactorBytes - 1);
    const uint32_t parts = static_cast<uint32_t>(ceil_div(p.hidden, kCombineThreads * kPiece));
    const uint32_t token = blockIdx.x / parts, part = blockIdx.x - token * parts;
    const int64_t column = static_cast<int64_t>(part * kCombineThreads + threadIdx.x) * kPiece;
    ptx::griddepcontrol_launch_dependents();
    ptx::griddepcontrol_wait();  // all that is read may be what the kernels ahead write
    if (column >= p.hidden) return;

    const uint8_t* rows = static_cast<const uint8_t*>(p.rows) + column * Piece<Input::kBf16>::kBytes;
    const uint32_t row_bytes = static_cast<uint32_t>(p.row_bytes);
    const int64_t* places = p.places + token * p.top_k;
    const uint8_t* factors = static_cast<const uint8_t*>(p.factors) + token * p.top_k * kFactorBytes;
    float sums[kPiece] = {};
    for (int left = static_cast<int>(p.top_k); left > 0; left -= kTogether) {
        int64_t at[kTogether];
        uint32_t factor[kTogether];
        Piece<Input::kBf16> pieces[kTogether];
#pragma unroll
        for (int i = 0; i < kTogether; ++i) at[i] = i < left ? places[i] : -1;
#pragma unroll
        for (int i = 0; i < kTogether; ++i) {
            // One comparison for both ends: a negative number is a large unsigned one. What is no row becomes a row of
            // zeros times -0: adding their product, -0, changes no sum, while +0 would change a sum of -0.
            const bool is_row = static_cast<uint64_t>(at[i]) < static_cast<uint64_t>(p.count);
            const uint8_t* row = rows + static_cast<uint64_t>(static_cast<uint32_t>(at[i])) * row_bytes;
            pieces[i] = load_piece<Input::kBf16, true>(row, 0, 1, is_row ? kPiece : 0);
            factor[i] = is_row ? load_bits<kFactor>(factors + i * kFactorBytes) : kMinusZero;
        }
#pragma unroll
        for (int i = 0; i < kTogether; ++i) {
            const float number = number_of<kFactor>(factor[i]);
            const float rounded = __uint_as_float(ptx::cvt_rn_bf16x2_f32(0.0f, number) << 16);
            for (int j = 0; j < kPiece; ++j) sums[j] = __fmaf_rn(rounded, pieces[i][j], sums[j]);
        }
        places += kTogether, factors += kTogether * kFactorBytes;
    }
    store_piece<kOut>(p.out, token * p.hidden + column, sums);
}

template <Input kOut, Input kFactor>
const char* start_combine(const CombineArgs& args) {
    const CombineParams& p = args.params;
    const int64_t blocks = p.tokens * ceil_div(p.hidden, kCombineThreads * kPiece);
    if (blocks > INT32_MAX) return "more than 2^31 - 1 parts of tokens";
    return launch(combine_rows<kOut, kFactor>,
                  {.blocks = blocks, .threads = kCombineThreads, .stream = args.stream, .early = true}, p);
}

extern "C" const char* gemm_ladder_launch(const CombineArgs* args) {
    return with_input(args->out, [&]<Input kOut>() {
        return with_input(args->factor, [&]<Input kFactor>() { return start_combine<kOut, kFactor>(*args); });
    });
}
