// CUDA's <cuda_fp16.h> for the emulator: FP16, and two of them side by side.
#pragma once

#include "small_float_functions.hpp"

struct __half_raw {
    unsigned short x;
};
struct __half : emulator::SmallFloat<__half, __half_raw> {
    using Raw = __half_raw;
    static constexpr emulator::Format kFormat{5, 10};

    using SmallFloat::SmallFloat;
    __half() = default;
    template <typename T>
        requires std::is_arithmetic_v<T>
    constexpr __half(T x) : SmallFloat(of(static_cast<double>(x))) {}
};
struct alignas(4) __half2 : emulator::SmallPair<__half2, __half> {
    using SmallPair::SmallPair;
};
using half = __half;
using half2 = __half2;
using nv_half = __half;
using nv_half2 = __half2;
static_assert(sizeof(__half) == 2 && sizeof(__half2) == 4);

// ----------------------------------------------------------------------------------------------------- conversions

inline __half __float2half(float x) { return __half::of(x); }
inline __half __float2half_rn(float x) { return __half::of(x); }
inline __half __float2half_rz(float x) { return __half::of(x, emulator::Rounding::kZero); }
inline __half __float2half_rd(float x) { return __half::of(x, emulator::Rounding::kDown); }
inline __half __float2half_ru(float x) { return __half::of(x, emulator::Rounding::kUp); }
inline __half __double2half(double x) { return __half::of(x); }
inline float __half2float(__half x) { return x; }

inline __half2 make_half2(__half x, __half y) { return {x, y}; }
inline __half2 __halves2half2(__half x, __half y) { return {x, y}; }
inline __half2 __half2half2(__half x) { return {x, x}; }
inline __half2 __float2half2_rn(float x) { return __half2half2(__float2half(x)); }
inline __half2 __floats2half2_rn(float x, float y) { return {__float2half(x), __float2half(y)}; }
inline __half2 __float22half2_rn(float2 x) { return __floats2half2_rn(x.x, x.y); }
inline float2 __half22float2(__half2 x) { return {x.x, x.y}; }
inline __half __low2half(__half2 x) { return x.x; }
inline __half __high2half(__half2 x) { return x.y; }
inline __half2 __low2half2(__half2 x) { return {x.x, x.x}; }
inline __half2 __high2half2(__half2 x) { return {x.y, x.y}; }

inline short __half_as_short(__half x) { return static_cast<short>(x.__x); }
inline unsigned short __half_as_ushort(__half x) { return x.__x; }
inline __half __short_as_half(short x) { return __half_raw{static_cast<unsigned short>(x)}; }
inline __half __ushort_as_half(unsigned short x) { return __half_raw{x}; }

// To an integer: rounded, and clamped to its range. From one: to nearest.
#define EMULATOR_INTEGER(T, name)                                                                       \
    inline T __half2##name##_rn(__half x) { return emulator::to_integer<T>(std::nearbyint(float(x))); } \
    inline T __half2##name##_rz(__half x) { return emulator::to_integer<T>(std::trunc(float(x))); }     \
    inline T __half2##name##_rd(__half x) { return emulator::to_integer<T>(std::floor(float(x))); }     \
    inline T __half2##name##_ru(__half x) { return emulator::to_integer<T>(std::ceil(float(x))); }      \
    inline __half __##name##2half_rn(T x) { return __half(x); }
EMULATOR_INTEGER(int, int)
EMULATOR_INTEGER(unsigned, uint)
EMULATOR_INTEGER(short, short)
EMULATOR_INTEGER(unsigned short, ushort)
EMULATOR_INTEGER(long long, ll)
EMULATOR_INTEGER(unsigned long long, ull)
#undef EMULATOR_INTEGER
