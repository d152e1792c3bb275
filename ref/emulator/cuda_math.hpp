// CUDA's functions of numbers: integers, conversions and floating-point arithmetic.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numbers>
#include <type_traits>

namespace emulator {

// A float or double that has been rounded, as an integer: clamped to the type's range; a NaN is 0, or in 64 bits the
// highest bit alone.
template <typename T, typename Float>
T to_integer(Float x) {
    using Limits = std::numeric_limits<T>;
    if (x != x) return sizeof(T) == 8 ? static_cast<T>(1ull << 63) : T{0};
    if (x <= static_cast<Float>(Limits::min())) return Limits::min();
    return x >= static_cast<Float>(Limits::max()) ? Limits::max() : static_cast<T>(x);
}

}  // namespace emulator

// -------------------------------------------------------------------------------------------------------- integers

template <typename T, typename U>
constexpr std::common_type_t<T, U> min(T a, U b) {
    return static_cast<std::common_type_t<T, U>>(a) < static_cast<std::common_type_t<T, U>>(b) ? a : b;
}
template <typename T, typename U>
constexpr std::common_type_t<T, U> max(T a, U b) {
    return static_cast<std::common_type_t<T, U>>(a) > static_cast<std::common_type_t<T, U>>(b) ? a : b;
}
constexpr unsigned umin(unsigned a, unsigned b) { return a < b ? a : b; }
constexpr unsigned umax(unsigned a, unsigned b) { return a > b ? a : b; }
constexpr long long llmin(long long a, long long b) { return a < b ? a : b; }
constexpr long long llmax(long long a, long long b) { return a > b ? a : b; }
constexpr unsigned long long ullmin(unsigned long long a, unsigned long long b) { return a < b ? a : b; }
constexpr unsigned long long ullmax(unsigned long long a, unsigned long long b) { return a > b ? a : b; }

inline int __popc(unsigned x) { return std::popcount(x); }
inline int __popcll(unsigned long long x) { return std::popcount(x); }
inline int __clz(int x) { return std::countl_zero(static_cast<unsigned>(x)); }
inline int __clzll(long long x) { return std::countl_zero(static_cast<unsigned long long>(x)); }
inline int __ffs(int x) { return x ? std::countr_zero(static_cast<unsigned>(x)) + 1 : 0; }
inline int __ffsll(long long x) { return x ? std::countr_zero(static_cast<unsigned long long>(x)) + 1 : 0; }
inline unsigned __brev(unsigned x) {
    unsigned reversed = 0;
    for (int bit = 0; bit < 32; ++bit) reversed |= (x >> bit & 1) << (31 - bit);
    return reversed;
}
inline unsigned long long __brevll(unsigned long long x) {
    return static_cast<unsigned long long>(__brev(static_cast<unsigned>(x))) << 32 |
           __brev(static_cast<unsigned>(x >> 32));
}
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
    const uint64_t bytes = static_cast<uint64_t>(y) << 32 | x;
    unsigned result = 0;
    for (int i = 0; i < 4; ++i) result |= static_cast<unsigned>(bytes >> (selector >> 4 * i & 7) * 8 & 0xFF) << 8 * i;
    return result;
}
inline unsigned __umulhi(unsigned x, unsigned y) { return static_cast<unsigned>(static_cast<uint64_t>(x) * y >> 32); }
inline int __mulhi(int x, int y) { return static_cast<int>(static_cast<int64_t>(x) * y >> 32); }
inline unsigned long long __umul64hi(unsigned long long x, unsigned long long y) {
    return static_cast<unsigned long long>(static_cast<unsigned __int128>(x) * y >> 64);
}
inline long long __mul64hi(long long x, long long y) {
    return static_cast<long long>(static_cast<__int128>(x) * y >> 64);
}
// The product of the lowest 24 bits.
inline int __mul24(int x, int y) {
    return static_cast<int>(static_cast<int64_t>(x << 8 >> 8) * static_cast<int64_t>(y << 8 >> 8));
}
inline unsigned __umul24(unsigned x, unsigned y) { return (x & 0xFFFFFF) * (y & 0xFFFFFF); }
inline unsigned __sad(int x, int y, unsigned z) {
    return z + static_cast<unsigned>(std::abs(static_cast<int64_t>(x) - y));
}
inline unsigned __usad(unsigned x, unsigned y, unsigned z) { return z + (x > y ? x - y : y - x); }
// Averages, rounded down or (r) up.
inline int __hadd(int x, int y) { return static_cast<int>((static_cast<int64_t>(x) + y) >> 1); }
inline int __rhadd(int x, int y) { return static_cast<int>((static_cast<int64_t>(x) + y + 1) >> 1); }
inline unsigned __uhadd(unsigned x, unsigned y) { return static_cast<unsigned>((static_cast<uint64_t>(x) + y) >> 1); }
inline unsigned __urhadd(unsigned x, unsigned y) {
    return static_cast<unsigned>((static_cast<uint64_t>(x) + y + 1) >> 1);
}
// Of the 64 bits `high` and `low`: the upper 32 after a shift to the left, the lower 32 after one to the right. The
// shift is taken modulo 32, or with a c at the end clamped to 32.
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
    return static_cast<unsigned>((static_cast<uint64_t>(high) << 32 | low) << (shift & 31) >> 32);
}
inline unsigned __funnelshift_lc(unsigned low, unsigned high, unsigned shift) {
    return shift >= 32 ? low : __funnelshift_l(low, high, shift);
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
    return static_cast<unsigned>((static_cast<uint64_t>(high) << 32 | low) >> (shift & 31));
}
inline unsigned __funnelshift_rc(unsigned low, unsigned high, unsigned shift) {
    return shift >= 32 ? high : __funnelshift_r(low, high, shift);
}

// "SIMD Intrinsics": four bytes, or two 16-bit numbers, of a register.
template <typename T, typename Combine>
unsigned emulator_simd(unsigned a, unsigned b, Combine combine) {
    using Unsigned = std::make_unsigned_t<T>;
    constexpr int kBits = 8 * sizeof(T);
    unsigned result = 0;
    for (int at = 0; at < 32; at += kBits) {
        const int x = static_cast<T>(a >> at), y = static_cast<T>(b >> at);
        result |= static_cast<unsigned>(static_cast<Unsigned>(combine(x, y))) << at;
    }
    return result;
}
#define EMULATOR_SIMD(count, S, U)                                                                                  \
    inline unsigned __vadd##count(unsigned a, unsigned b) {                                                         \
        return emulator_simd<U>(a, b, [](int x, int y) { return x + y; });                                          \
    }                                                                                                               \
    inline unsigned __vsub##count(unsigned a, unsigned b) {                                                         \
        return emulator_simd<U>(a, b, [](int x, int y) { return x - y; });                                          \
    }                                                                                                               \
    inline unsigned __vmaxs##count(unsigned a, unsigned b) {                                                        \
        return emulator_simd<S>(a, b, [](int x, int y) { return std::max(x, y); });                                 \
    }                                                                                                               \
    inline unsigned __vmaxu##count(unsigned a, unsigned b) {                                                        \
        return emulator_simd<U>(a, b, [](int x, int y) { return std::max(x, y); });                                 \
    }                                                                                                               \
    inline unsigned __vmins##count(unsigned a, unsigned b) {                                                        \
        return emulator_simd<S>(a, b, [](int x, int y) { return std::min(x, y); });                                 \
    }                                                                                                               \
    inline unsigned __vminu##count(unsigned a, unsigned b) {                                                        \
        return emulator_simd<U>(a, b, [](int x, int y) { return std::min(x, y); });                                 \
    }                                                                                                               \
    inline unsigned __vabsdiffu##count(unsigned a, unsigned b) {                                                    \
        return emulator_simd<U>(a, b, [](int x, int y) { return std::abs(x - y); });                                \
    }                                                                                                               \
    inline unsigned __vabsdiffs##count(unsigned a, unsigned b) {                                                    \
        return emulator_simd<S>(a, b, [](int x, int y) { return std::abs(x - y); });                                \
    }                                                                                                               \
    inline unsigned __vaddss##count(unsigned a, unsigned b) {                                                       \
        using Limits = std::numeric_limits<S>;                                                                      \
        return emulator_simd<S>(a, b,                                                                               \
                                [](int x, int y) { return std::clamp<int>(x + y, Limits::min(), Limits::max()); }); \
    }                                                                                                               \
    inline unsigned __vaddus##count(unsigned a, unsigned b) {                                                       \
        return emulator_simd<U>(a, b, [](int x, int y) { return std::min<int>(x + y, U(-1)); });                    \
    }                                                                                                               \
    inline unsigned __vcmpeq##count(unsigned a, unsigned b) {                                                       \
        return emulator_simd<U>(a, b, [](int x, int y) { return x == y ? -1 : 0; });                                \
    }                                                                                                               \
    inline unsigned __vcmpgtu##count(unsigned a, unsigned b) {                                                      \
        return emulator_simd<U>(a, b, [](int x, int y) { return x > y ? -1 : 0; });                                 \
    }                                                                                                               \
    inline unsigned __vcmpgts##count(unsigned a, unsigned b) {                                                      \
        return emulator_simd<S>(a, b, [](int x, int y) { return x > y ? -1 : 0; });                                 \
    }
EMULATOR_SIMD(4, int8_t, uint8_t)
EMULATOR_SIMD(2, int16_t, uint16_t)
#undef EMULATOR_SIMD
// The sum of the products of four bytes, and c.
inline int __dp4a(int a, int b, int c) {
    unsigned sum = static_cast<unsigned>(c);
    for (int at = 0; at < 32; at += 8)
        sum += static_cast<unsigned>(static_cast<int8_t>(a >> at) * static_cast<int8_t>(b >> at));
    return static_cast<int>(sum);
}
inline unsigned __dp4a(unsigned a, unsigned b, unsigned c) {
    for (int at = 0; at < 32; at += 8) c += (a >> at & 0xFF) * (b >> at & 0xFF);
    return c;
}

// ----------------------------------------------------------------------------------------------------- conversions

inline int __float_as_int(float x) { return std::bit_cast<int>(x); }
inline float __int_as_float(int x) { return std::bit_cast<float>(x); }
inline float __uint_as_float(unsigned x) { return std::bit_cast<float>(x); }
inline long long __double_as_longlong(double x) { return std::bit_cast<long long>(x); }
inline double __longlong_as_double(long long x) { return std::bit_cast<double>(x); }
inline int __double2hiint(double x) { return static_cast<int>(std::bit_cast<uint64_t>(x) >> 32); }
inline int __double2loint(double x) { return static_cast<int>(std::bit_cast<uint64_t>(x)); }
inline double __hiloint2double(int high, int low) {
    return std::bit_cast<double>(static_cast<uint64_t>(static_cast<unsigned>(high)) << 32 | static_cast<unsigned>(low));
}

#define EMULATOR_TO_INTEGER(Float, T, name)                                            \
    inline T name##_rn(Float x) { return emulator::to_integer<T>(std::nearbyint(x)); } \
    inline T name##_rz(Float x) { return emulator::to_integer<T>(std::trunc(x)); }     \
    inline T name##_rd(Float x) { return emulator::to_integer<T>(std::floor(x)); }     \
    inline T name##_ru(Float x) { return emulator::to_integer<T>(std::ceil(x)); }
EMULATOR_TO_INTEGER(float, int, __float2int)
EMULATOR_TO_INTEGER(float, unsigned, __float2uint)
EMULATOR_TO_INTEGER(float, long long, __float2ll)
EMULATOR_TO_INTEGER(float, unsigned long long, __float2ull)
EMULATOR_TO_INTEGER(double, int, __double2int)
EMULATOR_TO_INTEGER(double, unsigned, __double2uint)
EMULATOR_TO_INTEGER(double, long long, __double2ll)
EMULATOR_TO_INTEGER(double, unsigned long long, __double2ull)
#undef EMULATOR_TO_INTEGER
inline float __int2float_rn(int x) { return static_cast<float>(x); }
inline float __uint2float_rn(unsigned x) { return static_cast<float>(x); }
inline float __ll2float_rn(long long x) { return static_cast<float>(x); }
inline float __ull2float_rn(unsigned long long x) { return static_cast<float>(x); }
inline double __int2double_rn(int x) { return x; }
inline double __uint2double_rn(unsigned x) { return x; }
inline double __ll2double_rn(long long x) { return static_cast<double>(x); }
inline double __ull2double_rn(unsigned long long x) { return static_cast<double>(x); }
inline float __double2float_rn(double x) { return static_cast<float>(x); }

// ------------------------------------------------------------------------------------------- floating-point numbers

inline float __fmaf_rn(float x, float y, float z) { return std::fma(x, y, z); }
inline float __fadd_rn(float x, float y) { return x + y; }
inline float __fsub_rn(float x, float y) { return x - y; }
inline float __fmul_rn(float x, float y) { return x * y; }
inline float __fdiv_rn(float x, float y) { return x / y; }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fsqrt_rn(float x) { return std::sqrt(x); }
inline double __fma_rn(double x, double y, double z) { return std::fma(x, y, z); }
inline double __dadd_rn(double x, double y) { return x + y; }
inline double __dsub_rn(double x, double y) { return x - y; }
inline double __dmul_rn(double x, double y) { return x * y; }
inline double __ddiv_rn(double x, double y) { return x / y; }
inline double __drcp_rn(double x) { return 1.0 / x; }
inline double __dsqrt_rn(double x) { return std::sqrt(x); }
inline float __saturatef(float x) { return x > 0.0f ? std::min(x, 1.0f) : 0.0f; }

// These are approximations on a GPU; here they are as exact as the C library's functions, so bits can differ.
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline double rsqrt(double x) { return 1.0 / std::sqrt(x); }
inline float __frsqrt_rn(float x) { return static_cast<float>(1.0 / std::sqrt(static_cast<double>(x))); }
inline float rcbrtf(float x) { return 1.0f / std::cbrt(x); }
inline float __expf(float x) { return std::exp(x); }
inline float __exp10f(float x) { return std::pow(10.0f, x); }
inline float exp10f(float x) { return std::pow(10.0f, x); }
inline float __logf(float x) { return std::log(x); }
inline float __log2f(float x) { return std::log2(x); }
inline float __log10f(float x) { return std::log10(x); }
inline float __powf(float x, float y) { return std::pow(x, y); }
inline float __sinf(float x) { return std::sin(x); }
inline float __cosf(float x) { return std::cos(x); }
inline float __tanf(float x) { return std::tan(x); }
inline void __sincosf(float x, float* sine, float* cosine) { *sine = std::sin(x), *cosine = std::cos(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline float fdividef(float x, float y) { return x / y; }
inline float normf(int count, const float* x) {
    double sum = 0;
    for (int i = 0; i < count; ++i) sum += static_cast<double>(x[i]) * x[i];
    return static_cast<float>(std::sqrt(sum));
}
inline float rhypotf(float x, float y) { return 1.0f / std::hypot(x, y); }
// Of pi times x; x is reduced first, so multiples of 1/2 are exact.
inline double sinpi(double x) {
    const double rest = std::remainder(x, 2.0);  // -1 to 1
    const double near = rest > 0.5 ? 1.0 - rest : rest < -0.5 ? -1.0 - rest : rest;
    return near == 0 ? std::copysign(0.0, x) : std::sin(std::numbers::pi * near);
}
inline double cospi(double x) {
    const double rest = std::fabs(std::remainder(x, 2.0));
    return rest == 0.5 ? 0.0 : std::cos(std::numbers::pi * rest);
}
inline float sinpif(float x) { return static_cast<float>(sinpi(x)); }
inline float cospif(float x) { return static_cast<float>(cospi(x)); }
inline void sincospif(float x, float* sine, float* cosine) { *sine = sinpif(x), *cosine = cospif(x); }
