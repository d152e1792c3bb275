// The functions of kernels/include/mma.cuh, for the emulator. That file says which instruction each one is.
#pragma once

#include "cuda.hpp"
#include "mma_types.cuh"

namespace emulator {

struct MatrixKind {
    ptx::Type d, a, b;
    ptx::WgmmaOptions options;  // of mma.sync: `satfinite` alone

    bool operator==(const MatrixKind&) const = default;
};

// The accumulators `d` and A in registers are a thread's own variables. a = nullptr: A is in shared memory.
void issue_wgmma(const MatrixKind& kind, uint32_t* d, int64_t n, const uint32_t* a, uint64_t desc_a, uint64_t desc_b,
                 bool scale_d);
void mma_sync(const MatrixKind& kind, uint32_t* d, const uint32_t* a, const uint32_t* b);

template <ptx::Type kD, int N>
constexpr bool has_columns() {
    return N >= 8 && N <= 256 && N % 8 == 0 && (kD != ptx::Type::s32 || N <= 24 || N % 16 == 0);
}
// Not made anew for each instruction: it would be a local variable, whose hooks take longer than the rest of the call.
template <ptx::Type kD, ptx::Type kA, ptx::Type kB, ptx::WgmmaOptions kOptions>
inline constexpr MatrixKind kMatrixKind{kD, kA, kB, kOptions};

template <typename T>
uint32_t* registers(T* d) {
    static_assert(sizeof(T) == sizeof(uint32_t));
    return reinterpret_cast<uint32_t*>(d);
}

}  // namespace emulator

namespace ptx {

// The parentheses around an array's size are for clang 14, which takes a comma in <> for the end of the parameter.
template <Type kD, Type kA, Type kB, int N, WgmmaOptions kOptions = WgmmaOptions{}>
void wgmma(Accumulator<kD> (&d)[(kWgmmaRegisters<kD, N>)], uint64_t desc_a, uint64_t desc_b, int scale_d) {
    static_assert(has_matrix_instruction(kD, kA, kB, kOptions.satfinite), "there is no WGMMA of these types");
    static_assert(emulator::has_columns<kD, N>(), "n is 8 to 256 in steps of 8; of integers, from 32 on, of 16");
    static_assert(options_suit<kA, kOptions, false>());
    emulator::issue_wgmma(emulator::kMatrixKind<kD, kA, kB, kOptions>, emulator::registers(d), N, nullptr, desc_a,
                          desc_b, scale_d != 0);
}
template <Type kD, Type kA, Type kB, int N, WgmmaOptions kOptions = WgmmaOptions{}>
void wgmma(Accumulator<kD> (&d)[(kWgmmaRegisters<kD, N>)], const uint32_t (&a)[4], uint64_t desc_b, int scale_d) {
    static_assert(has_matrix_instruction(kD, kA, kB, kOptions.satfinite), "there is no WGMMA of these types");
    static_assert(emulator::has_columns<kD, N>(), "n is 8 to 256 in steps of 8; of integers, from 32 on, of 16");
    static_assert(options_suit<kA, kOptions, true>());
    emulator::issue_wgmma(emulator::kMatrixKind<kD, kA, kB, kOptions>, emulator::registers(d), N, a, 0, desc_b,
                          scale_d != 0);
}

template <Type kD, Type kA, Type kB, bool kSatfinite = false>
void mma_sync(Accumulator<kD> (&d)[kMmaRegisters<kD>], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    static_assert(has_matrix_instruction(kD, kA, kB, kSatfinite), "there is no mma.sync of these types");
    constexpr WgmmaOptions kOptions{.satfinite = kSatfinite};
    emulator::mma_sync(emulator::kMatrixKind<kD, kA, kB, kOptions>, emulator::registers(d), a, b);
}

}  // namespace ptx
