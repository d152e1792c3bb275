// What mma.cuh and its twin in the emulator share: the types of matrix instructions, and which of them exist.
#pragma once

#include <cstdint>
#include <type_traits>

namespace ptx {

// The types of operands and accumulators. ref/mma.py has the same numbers.
enum class Type { e4m3, e5m2, bf16, f16, tf32, s8, u8, f32, s32 };

constexpr int type_bytes(Type type) {
    return type == Type::tf32 || type == Type::f32 || type == Type::s32 ? 4
           : type == Type::bf16 || type == Type::f16                    ? 2
                                                                        : 1;
}

// A register of accumulators holds one FP32 number or integer, or two FP16 numbers, the first in bits 0 to 15.
template <Type kD>
using Accumulator = std::conditional_t<kD == Type::f32, float, std::conditional_t<kD == Type::s32, int32_t, uint32_t>>;
// Registers of a thread for the accumulators of an instruction: of a WGMMA of N columns, and of mma.sync.
template <Type kD, int N>
constexpr int kWgmmaRegisters = kD == Type::f16 ? N / 4 : N / 2;
template <Type kD>
constexpr int kMmaRegisters = kD == Type::f16 ? 2 : 4;

// What a WGMMA can be told besides its types. Only operands of 16 bits can be MN-major, and only those in shared
// memory; only floating-point operands can be negated; only integer sums can saturate.
struct WgmmaOptions {
    bool mn_major_a = false, mn_major_b = false;  // imm-trans-a, imm-trans-b
    bool negate_a = false, negate_b = false;      // imm-scale-a, imm-scale-b of -1
    bool satfinite = false;

    constexpr bool operator==(const WgmmaOptions&) const = default;
};

// Whether there is a matrix instruction of these types.
constexpr bool has_matrix_instruction(Type d, Type a, Type b, bool satfinite = false) {
    const auto fp8 = [](Type type) { return type == Type::e4m3 || type == Type::e5m2; };
    const auto integer = [](Type type) { return type == Type::s8 || type == Type::u8; };
    if (integer(a)) return integer(b) && d == Type::s32;
    if (satfinite) return false;
    if (fp8(a)) return fp8(b) && (d == Type::f32 || d == Type::f16);
    if (a == Type::f16) return b == a && (d == Type::f32 || d == Type::f16);
    return (a == Type::bf16 || a == Type::tf32) && b == a && d == Type::f32;
}

template <Type kA, WgmmaOptions kOptions, bool kAInRegisters>
constexpr bool options_suit() {
    constexpr bool kInteger = kA == Type::s8 || kA == Type::u8, kTwoBytes = type_bytes(kA) == 2;
    static_assert(!kInteger || (!kOptions.negate_a && !kOptions.negate_b), "integer operands cannot be negated");
    static_assert(kTwoBytes || (!kOptions.mn_major_a && !kOptions.mn_major_b), "only 16-bit operands can be MN-major");
    static_assert(!kAInRegisters || !kOptions.mn_major_a, "A in registers has no major");
    return true;
}

}  // namespace ptx
