// CUDA's <cuda_bf16.h> for the emulator: BF16, and two of them side by side.
#pragma once

#include "small_float_functions.hpp"

struct __nv_bfloat16_raw {
    unsigned short x;
};
struct __nv_bfloat16 : emulator::SmallFloat<__nv_bfloat16, __nv_bfloat16_raw> {
    using Raw = __nv_bfloat16_raw;
    static constexpr emulator::Format kFormat{8, 7};

    using SmallFloat::SmallFloat;
    __nv_bfloat16() = default;
    template <typename T>
        requires std::is_arithmetic_v<T>
    constexpr __nv_bfloat16(T x) : SmallFloat(of(static_cast<double>(x))) {}
};
struct alignas(4) __nv_bfloat162 : emulator::SmallPair<__nv_bfloat162, __nv_bfloat16> {
    using SmallPair::SmallPair;
};
using nv_bfloat16 = __nv_bfloat16;
using nv_bfloat162 = __nv_bfloat162;
static_assert(sizeof(__nv_bfloat16) == 2 && sizeof(__nv_bfloat162) == 4);

// ----------------------------------------------------------------------------------------------------- conversions

inline __nv_bfloat16 __float2bfloat16(float x) { return __nv_bfloat16::of(x); }
inline __nv_bfloat16 __float2bfloat16_rn(float x) { return __nv_bfloat16::of(x); }
inline __nv_bfloat16 __float2bfloat16_rz(float x) { return __nv_bfloat16::of(x, emulator::Rounding::kZero); }
inline __nv_bfloat16 __float2bfloat16_rd(float x) { return __nv_bfloat16::of(x, emulator::Rounding::kDown); }
inline __nv_bfloat16 __float2bfloat16_ru(float x) { return __nv_bfloat16::of(x, emulator::Rounding::kUp); }
inline __nv_bfloat16 __double2bfloat16(double x) { return __nv_bfloat16::of(x); }
// The upper half of an FP32, so a NaN keeps its bits.
inline float __bfloat162float(__nv_bfloat16 x) { return std::bit_cast<float>(static_cast<uint32_t>(x.__x) << 16); }

inline __nv_bfloat162 make_bfloat162(__nv_bfloat16 x, __nv_bfloat16 y) { return {x, y}; }
inline __nv_bfloat162 __halves2bfloat162(__nv_bfloat16 x, __nv_bfloat16 y) { return {x, y}; }
inline __nv_bfloat162 __bfloat162bfloat162(__nv_bfloat16 x) { return {x, x}; }
inline __nv_bfloat162 __float2bfloat162_rn(float x) { return __bfloat162bfloat162(__float2bfloat16(x)); }
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) { return {__float2bfloat16(x), __float2bfloat16(y)}; }
inline __nv_bfloat162 __float22bfloat162_rn(float2 x) { return __floats2bfloat162_rn(x.x, x.y); }
inline float2 __bfloat1622float2(__nv_bfloat162 x) { return {__bfloat162float(x.x), __bfloat162float(x.y)}; }
inline __nv_bfloat16 __low2bfloat16(__nv_bfloat162 x) { return x.x; }
inline __nv_bfloat16 __high2bfloat16(__nv_bfloat162 x) { return x.y; }
inline __nv_bfloat162 __low2bfloat162(__nv_bfloat162 x) { return {x.x, x.x}; }
inline __nv_bfloat162 __high2bfloat162(__nv_bfloat162 x) { return {x.y, x.y}; }
inline __nv_bfloat162 __lows2bfloat162(__nv_bfloat162 x, __nv_bfloat162 y) { return {x.x, y.x}; }
inline __nv_bfloat162 __highs2bfloat162(__nv_bfloat162 x, __nv_bfloat162 y) { return {x.y, y.y}; }

inline short __bfloat16_as_short(__nv_bfloat16 x) { return static_cast<short>(x.__x); }
inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 x) { return x.__x; }
inline __nv_bfloat16 __short_as_bfloat16(short x) { return __nv_bfloat16_raw{static_cast<unsigned short>(x)}; }
inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short x) { return __nv_bfloat16_raw{x}; }

// To an integer: rounded, and clamped to its range. From one: to nearest.
#define EMULATOR_INTEGER(T, name)                                                                                  \
    inline T __bfloat162##name##_rn(__nv_bfloat16 x) { return emulator::to_integer<T>(std::nearbyint(float(x))); } \
    inline T __bfloat162##name##_rz(__nv_bfloat16 x) { return emulator::to_integer<T>(std::trunc(float(x))); }     \
    inline T __bfloat162##name##_rd(__nv_bfloat16 x) { return emulator::to_integer<T>(std::floor(float(x))); }     \
    inline T __bfloat162##name##_ru(__nv_bfloat16 x) { return emulator::to_integer<T>(std::ceil(float(x))); }      \
    inline __nv_bfloat16 __##name##2bfloat16_rn(T x) { return __nv_bfloat16(x); }
EMULATOR_INTEGER(int, int)
EMULATOR_INTEGER(unsigned, uint)
EMULATOR_INTEGER(short, short)
EMULATOR_INTEGER(unsigned short, ushort)
EMULATOR_INTEGER(long long, ll)
EMULATOR_INTEGER(unsigned long long, ull)
#undef EMULATOR_INTEGER
