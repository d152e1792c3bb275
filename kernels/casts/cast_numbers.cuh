// What all casts share: loading a piece of a row, the activation ahead of the cast, the scale, and the FP8 codes.
// ref/fp8.py and ref/activations.py define every bit.
#pragma once

#include <cuda_fp16.h>

#include <cstdint>

#include "layout.cuh"
#include "ptx.cuh"
#include "warp.cuh"

// Which numbers share a scale, and whether their codes are stored turned.
enum class Kind { kToken, kBlock, kChannel, kChannelTurned };
enum class Input { kBf16, kFp16, kFp32 };
// What a number is made of: an element of x; SiLU of one of x's first half times the one beside it in the second half;
// or an element of x normalised by its row's root mean square.
enum class Before { kNothing, kSiluAndMul, kRmsNorm };

constexpr int kPiece = 8;      // neighbouring numbers that a thread loads and casts together
constexpr int kThreads = 256;  // of a CTA; some tiles have twice as many (Tile::kThreads)
constexpr int kPiecesARun = kScaleK / kPiece;
constexpr uint32_t kSmallestAmax = 0x38D1B717u;  // the bits of 1e-4f: a run of zeros needs a scale above 0
constexpr uint32_t kInfinity = 0x7F800000u;

// Calls start<Input>() with the type that a launcher's argument says.
template <typename Start>
const char* with_input(int64_t input, const Start& start) {
    switch (static_cast<Input>(input)) {
        case Input::kBf16:
            return start.template operator()<Input::kBf16>();
        case Input::kFp16:
            return start.template operator()<Input::kFp16>();
        default:
            return start.template operator()<Input::kFp32>();
    }
}

// The arguments of every cast's kernel. Strides are in elements.
struct CastParams {
    const void* x;          // [groups, x_rows, k], or [groups, x_rows, 2 k] ahead of SiLU-and-multiply
    const void* weight;     // [k], of x's type; RMSNorm only
    const int32_t* rows;    // [m]: which row of x each row is made of; null: row i of row i
    const int32_t* counts;  // [groups]: how many rows of a group are cast; null: m
    const int32_t* ends;    // [ends_count]: the psum layout, whose padding need not be cast; null: all of m rows
    const int32_t* ks;      // [ks_count]: of turned codes, how many of m belong to each group
    uint8_t* codes;         // E4M3 [groups, m, k]; turned [groups, k, m], or with ks each group's [k, ks] in turn
    float* scales;
    float* inverse_roots;  // [groups, m], of RMSNorm per block and per channel only: a kernel writes them for the next
    int64_t groups, x_rows, m, k;
    int64_t ks_count;               // -1: there are no ks, and all rows belong together
    int64_t ends_count, alignment;  // a group's rows begin at the next multiple of `alignment` behind the last group's
    int64_t x_group, x_row, x_column;
    int64_t codes_group, codes_row;
    int64_t scale_group, scale_row, scale_column;  // strides of the scales [groups, rows, columns] of m x k
    float epsilon;
    bool power_of_two;  // round scales up to powers of two
};

// A piece as it lies in memory: 4 words of pairs, or 8 FP32 numbers.
template <Input kInput>
struct Piece {
    static constexpr int kWords = kInput == Input::kFp32 ? kPiece : kPiece / 2;
    static constexpr int kBytes = kInput == Input::kFp32 ? 4 : 2;  // of an element
    uint32_t words[kWords];

    // Number i, exactly.
    __device__ __forceinline__ float operator[](int i) const {
        if constexpr (kInput == Input::kFp32) return __uint_as_float(words[i]);
        const uint32_t word = words[i / 2];
        if constexpr (kInput == Input::kBf16) return __uint_as_float(i % 2 ? word & 0xFFFF0000u : word << 16);
        return __half2float(__ushort_as_half(static_cast<uint16_t>(i % 2 ? word >> 16 : word)));
    }
};

// At the start of a cast of `rows` rows, or of tokens of which an expert has one row each: lets the kernel behind
// begin, and waits for the one ahead, whose results x, the rows, the counts and the ends may be. What is behind a cast
// is mostly a product. One with more than a tile of rows should not begin early: its CTAs would get the SMs in the
// order in which the cast leaves them, and those that read the same tile of B would lie apart (production/NOTES.md,
// 2026-11-30).
__device__ __forceinline__ void start_early(int64_t rows) {
    constexpr int64_t kFewRows = 128;  // of one tile
    if (rows <= kFewRows) ptx::griddepcontrol_launch_dependents();
    ptx::griddepcontrol_wait();
}
__device__ __forceinline__ void start_early(const CastParams& p) { start_early(p.m); }

// Loads `count` numbers, at most a piece, and zeros for the others. kVector: a piece lies at a multiple of 16 bytes and
// is loaded whole or not at all.
template <Input kInput, bool kVector>
__device__ __forceinline__ Piece<kInput> load_piece(const void* x, int64_t element, int64_t stride, int count) {
    using P = Piece<kInput>;
    P piece{};
    const uint8_t* from = static_cast<const uint8_t*>(x) + element * P::kBytes;
    if constexpr (kVector) {
        if (count > 0) {
            for (int i = 0; i < P::kWords; i += 4) {
                const uint4 four = *reinterpret_cast<const uint4*>(from + 4 * i);
                piece.words[i] = four.x, piece.words[i + 1] = four.y;
                piece.words[i + 2] = four.z, piece.words[i + 3] = four.w;
            }
        }
    } else {
#pragma unroll
        for (int i = 0; i < kPiece; ++i) {
            if (i >= count) continue;
            const uint8_t* one = from + i * stride * P::kBytes;
            if constexpr (kInput == Input::kFp32)
                piece.words[i] = *reinterpret_cast<const uint32_t*>(one);
            else
                piece.words[i / 2] |= static_cast<uint32_t>(*reinterpret_cast<const uint16_t*>(one)) << 16 * (i % 2);
        }
    }
    return piece;
}

// Where some rows of a group begin in x: row_of(i) for each i. It is -1 for a row of zeros: one from `end` on, or one
// that is made of a row that x does not have. All indices are loaded before the first is used. With them x is one
// matrix, and there are no groups.
template <int kRows, typename RowOf>
__device__ __forceinline__ void find_rows(const CastParams& p, int64_t group, int64_t end, RowOf row_of,
                                          int64_t (&begins)[kRows]) {
    if (p.rows) {
        int32_t indices[kRows];
#pragma unroll
        for (int i = 0; i < kRows; ++i) indices[i] = row_of(i) < end ? p.rows[row_of(i)] : -1;
#pragma unroll
        for (int i = 0; i < kRows; ++i)
            begins[i] = indices[i] < 0 || indices[i] >= p.x_rows ? -1 : indices[i] * p.x_row;
    } else {
#pragma unroll
        for (int i = 0; i < kRows; ++i) begins[i] = row_of(i) < end ? group * p.x_group + row_of(i) * p.x_row : -1;
    }
}

// How many numbers of the piece that begins at column `column` lie inside the row; 0 or less if it begins behind it.
__device__ __forceinline__ int inside(const CastParams& p, int64_t column) {
    const int64_t left = p.k - column;
    return left >= kPiece ? kPiece : static_cast<int>(left);
}

// The bits of a float that has the magnitude of a 16-bit number.
template <Input kInput>
__device__ __forceinline__ uint32_t widened(uint32_t magnitude) {
    static_assert(kInput != Input::kFp32, "a 16-bit number");
    if constexpr (kInput == Input::kBf16) return magnitude << 16;
    return __float_as_uint(__half2float(__ushort_as_half(static_cast<uint16_t>(magnitude))));
}

// The larger magnitudes of two words of a piece, number by number. Magnitudes are compared as integers, in which
// infinity is larger than all numbers, and NaN larger than infinity.
template <Input kInput>
__device__ __forceinline__ uint32_t larger(uint32_t magnitudes, uint32_t word) {
    if constexpr (kInput == Input::kFp32) return max(magnitudes, word & 0x7FFFFFFFu);
    return __vmaxu2(magnitudes, word & 0x7FFF7FFFu);
}

// The largest magnitude of the numbers of some pieces, as the bits of a float.
template <Input kInput, int kCount>
__device__ __forceinline__ uint32_t amax_of(const Piece<kInput> (&pieces)[kCount]) {
    uint32_t most = 0;
#pragma unroll
    for (int i = 0; i < kCount; ++i)
        for (int j = 0; j < Piece<kInput>::kWords; ++j) most = larger<kInput>(most, pieces[i].words[j]);
    if constexpr (kInput == Input::kFp32)
        return most;
    else
        return widened<kInput>(max(most >> 16, most & 0xFFFFu));
}

// kCount values of each lane, each combined over the kLanes neighbouring lanes. Lane l of them returns value number
// l / (kLanes / kCount). `values` is overwritten. With four (a to d) and 8 lanes:
//   lanes 4 apart  keep a, b or c, d, and give away the other two
//   lanes 2 apart  keep one of the two
//   lanes 1 apart  have the same one
// A value is combined in the order of a butterfly: lanes kLanes / 2 apart first.
template <int kLanes, typename T, int kCount, typename Combine>
__device__ __forceinline__ T one_of_each(T (&values)[kCount], Combine combine) {
    int held = kCount;
#pragma unroll
    for (int lanes = kLanes / 2; lanes; lanes /= 2) {
        if (held == 1) {
            values[0] = combine(values[0], ptx::shfl_sync_bfly(kAllLanes, values[0], lanes));
            continue;
        }
        held /= 2;
        const bool upper = threadIdx.x & lanes;
#pragma unroll
        for (int i = 0; i < held; ++i) {
            const T given = upper ? values[i] : values[i + held], kept = upper ? values[i + held] : values[i];
            values[i] = combine(kept, ptx::shfl_sync_bfly(kAllLanes, given, lanes));
        }
    }
    return values[0];
}

// The maxima of kCount runs, each over the kLanes neighbouring lanes that share it, so that each lane works out the
// scale of one run instead of all.
template <int kLanes, int kCount>
__device__ __forceinline__ uint32_t amax_of_one(uint32_t (&amax)[kCount]) {
    return one_of_each<kLanes>(amax, [](uint32_t a, uint32_t b) { return max(a, b); });
}

// 1 / x, rounded to nearest, of a normal x below 2^126: the approximation is wrong by a unit in the last place at most,
// and a step of Newton's mends it. It is what __frcp_rn does where it does not branch.
__device__ __forceinline__ float inverse_of(float x) {
    const float inverse = ptx::rcp_approx_ftz_f32(x);
    return __fmaf_rn(inverse, __fmaf_rn(-x, inverse, 1.0f), inverse);
}

// What a gate counts as: 1 + exp(-gate) has to stay below 2^126, for inverse_of. NaN stays NaN.
__device__ __forceinline__ float limited(float gate) { return gate < -87.0f ? -87.0f : gate; }

// exp(-y) for y from -87 to 87, as ref/activations.py says: 2^n * 2^r with |r| <= 1/2.
__device__ __forceinline__ float exponential_of_minus(float y) {
    constexpr float kLog2E = 1.44269502f, kRounding = 12582912.0f;  // 1.5 * 2^23: rounds to an integer
    constexpr float kC1 = 0.693147f, kC2 = 0.24022242f, kC3 = 0.055507336f, kC4 = 0.009671513f, kC5 = 0.0013264727f;
    const float shifted = __fmaf_rn(y, -kLog2E, kRounding), n = shifted - kRounding, r = __fmaf_rn(y, -kLog2E, -n);
    float power = __fmaf_rn(kC5, r, kC4);
    power = __fmaf_rn(power, r, kC3);
    power = __fmaf_rn(power, r, kC2);
    power = __fmaf_rn(power, r, kC1);
    power = __fmaf_rn(power, r, 1.0f);
    return __uint_as_float(__float_as_uint(power) + (__float_as_uint(shifted) << 23));
}

// 1 / (1 + exp(-x)) of what limited() returns.
__device__ __forceinline__ float sigmoid(float x) {
    const float y = fminf(x, 30.0f);  // above, 1 + exp(-x) is 1; 30 where x is NaN
    return inverse_of(1.0f + exponential_of_minus(y));
}

// gate / (1 + exp(-gate)) * up
__device__ __forceinline__ float silu_and_mul(float gate, float up) {
    const float x = limited(gate);
    return x * sigmoid(x) * up;
}

// The piece of FP32 numbers that SiLU-and-multiply makes of two pieces.
template <Input kInput>
__device__ __forceinline__ Piece<Input::kFp32> silu_and_mul(const Piece<kInput>& gate, const Piece<kInput>& up) {
    Piece<Input::kFp32> piece;
    for (int i = 0; i < kPiece; ++i) piece.words[i] = __float_as_uint(silu_and_mul(gate[i], up[i]));
    return piece;
}

struct Scale {
    float value, inverse;
};

// The scale of numbers whose largest magnitude has the bits `amax`: it makes that one 448. The quotient is the rounded
// one, as the remainder of a first try mends it; that gives NaN for infinity, so infinity is put back.
__device__ __forceinline__ Scale scale_of(uint32_t amax, bool power_of_two) {
    constexpr float kInverse = 1.0f / 448.0f;
    const float largest = __uint_as_float(max(amax, kSmallestAmax)), first = largest * kInverse;
    float scale = __fmaf_rn(__fmaf_rn(-first, 448.0f, largest), kInverse, first);
    if (power_of_two) scale = __uint_as_float((__float_as_uint(scale) + 0x7FFFFFu) & kInfinity);
    float inverse = inverse_of(scale);
    if (amax >= kInfinity) {
        scale = largest;  // or NaN
        inverse = amax == kInfinity ? 0.0f : largest;
    }
    return {scale, inverse};
}

// The codes of four numbers, the first in the lowest byte.
__device__ __forceinline__ uint32_t codes_of(float a, float b, float c, float d) {
    return ptx::cvt_rn_satfinite_e4m3x2_f32(b, a) | static_cast<uint32_t>(ptx::cvt_rn_satfinite_e4m3x2_f32(d, c)) << 16;
}

// The codes of a piece, each number times the inverse of its scale, inverse(i).
template <Input kInput, typename Inverse>
__device__ __forceinline__ void codes_of(uint32_t (&words)[2], const Piece<kInput>& piece, Inverse inverse) {
    const auto scaled = [&](int i) { return piece[i] * inverse(i); };
    for (int i = 0; i < 2; ++i)
        words[i] = codes_of(scaled(4 * i), scaled(4 * i + 1), scaled(4 * i + 2), scaled(4 * i + 3));
}

// Writes the codes of a piece's first `count` numbers, each times the inverse of its scale, inverse(i). kVector: of all
// eight, at a multiple of 8 bytes, or of none where count is not positive.
template <bool kVector, Input kInput, typename Inverse>
__device__ __forceinline__ void store_codes(uint8_t* codes, const Piece<kInput>& piece, Inverse inverse, int count) {
    uint32_t words[2];
    codes_of(words, piece, inverse);
    if constexpr (kVector) {
        if (count > 0) *reinterpret_cast<uint2*>(codes) = {words[0], words[1]};
    } else {
#pragma unroll
        for (int i = 0; i < kPiece; ++i)
            if (i < count) codes[i] = static_cast<uint8_t>(words[i / 4] >> 8 * (i % 4));
    }
}
