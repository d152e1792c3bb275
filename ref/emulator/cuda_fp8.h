// CUDA's <cuda_fp8.h> for the emulator: E4M3 and E5M2, which are converted and not calculated with.
#pragma once

#include "cuda_bf16.h"
#include "cuda_fp16.h"

enum __nv_saturation_t { __NV_NOSAT, __NV_SATFINITE };
enum __nv_fp8_interpretation_t { __NV_E4M3, __NV_E5M2 };
using __nv_fp8_storage_t = unsigned char;
using __nv_fp8x2_storage_t = unsigned short;
using __nv_fp8x4_storage_t = unsigned;

namespace emulator {

// To nearest, ties to even. Beyond the largest number: that one, or with __NV_NOSAT the NaN or, in E5M2, infinity.
constexpr __nv_fp8_storage_t to_fp8(double x, __nv_saturation_t saturation, __nv_fp8_interpretation_t type) {
    if (x != x) return 0x7F;
    const Format format = type == __NV_E4M3 ? Format{4, 3} : Format{5, 2};
    const uint32_t most = type == __NV_E4M3 ? 0x7E : 0x7B;
    const uint32_t sign = std::bit_cast<uint64_t>(x) >> 63 ? 0x80 : 0;
    const bool infinite = (std::bit_cast<uint64_t>(x) & ~(1ull << 63)) == 0x7FF0000000000000;
    const uint64_t magnitude = infinite ? 0x100 : rounded_magnitude(x, format, Rounding::kNearest);
    if (magnitude <= most) return static_cast<__nv_fp8_storage_t>(sign | magnitude);
    if (saturation == __NV_SATFINITE) return static_cast<__nv_fp8_storage_t>(sign | most);
    return static_cast<__nv_fp8_storage_t>(sign | (type == __NV_E4M3 ? 0x7F : 0x7C));
}
// Exactly. E4M3 has one NaN, and no infinity: the highest exponent is one like the others.
constexpr float from_fp8(__nv_fp8_storage_t x, __nv_fp8_interpretation_t type) {
    if (type == __NV_E5M2) return widened(x, {5, 2});
    if ((x & 0x7F) == 0x7F) return std::bit_cast<float>(0x7FFFFFFFu);
    const uint32_t sign = (x & 0x80u) << 1;  // as E5M3, whose exponents begin 8 lower
    return widened(sign | (x & 0x7Fu), {5, 3}) * 256.0f;
}

template <typename T, __nv_fp8_interpretation_t kType>
struct Fp8 {
    __nv_fp8_storage_t __x;

    Fp8() = default;
    template <typename U>
        requires std::is_arithmetic_v<U> || IsSmall<U>
    explicit constexpr Fp8(U x) : __x(to_fp8(static_cast<double>(static_cast<Wide<U>>(x)), __NV_SATFINITE, kType)) {}
    explicit operator float() const { return from_fp8(__x, kType); }
    explicit operator double() const { return from_fp8(__x, kType); }
    explicit operator __half() const { return __half(from_fp8(__x, kType)); }
    explicit operator __nv_bfloat16() const { return __nv_bfloat16(from_fp8(__x, kType)); }
    explicit operator int() const { return to_integer<int>(std::trunc(from_fp8(__x, kType))); }
    explicit operator bool() const { return __x & 0x7F; }

  private:
    template <typename U>
    using Wide = std::conditional_t<std::is_arithmetic_v<U>, U, float>;
};

// kCount of them side by side, the first in the lowest bits.
template <typename Storage, typename Floats, int kCount, __nv_fp8_interpretation_t kType>
struct Fp8s {
    Storage __x;

    Fp8s() = default;
    explicit Fp8s(const Floats& x) : __x(0) {
        const float* values = &x.x;
        for (int i = 0; i < kCount; ++i)
            __x = static_cast<Storage>(__x | static_cast<Storage>(to_fp8(values[i], __NV_SATFINITE, kType)) << 8 * i);
    }
    explicit operator Floats() const {
        Floats result;
        float* values = &result.x;
        for (int i = 0; i < kCount; ++i)
            values[i] = from_fp8(static_cast<__nv_fp8_storage_t>(__x >> 8 * i & 0xFF), kType);
        return result;
    }
};

}  // namespace emulator

struct __nv_fp8_e4m3 : emulator::Fp8<__nv_fp8_e4m3, __NV_E4M3> {
    using Fp8::Fp8;
};
struct __nv_fp8_e5m2 : emulator::Fp8<__nv_fp8_e5m2, __NV_E5M2> {
    using Fp8::Fp8;
};
struct __nv_fp8x2_e4m3 : emulator::Fp8s<__nv_fp8x2_storage_t, float2, 2, __NV_E4M3> {
    using Fp8s::Fp8s;
    explicit __nv_fp8x2_e4m3(__half2 x) : Fp8s(__half22float2(x)) {}
    explicit __nv_fp8x2_e4m3(__nv_bfloat162 x) : Fp8s(__bfloat1622float2(x)) {}
    explicit operator __half2() const { return __float22half2_rn(static_cast<float2>(*this)); }
};
struct __nv_fp8x2_e5m2 : emulator::Fp8s<__nv_fp8x2_storage_t, float2, 2, __NV_E5M2> {
    using Fp8s::Fp8s;
    explicit __nv_fp8x2_e5m2(__half2 x) : Fp8s(__half22float2(x)) {}
    explicit __nv_fp8x2_e5m2(__nv_bfloat162 x) : Fp8s(__bfloat1622float2(x)) {}
    explicit operator __half2() const { return __float22half2_rn(static_cast<float2>(*this)); }
};
struct __nv_fp8x4_e4m3 : emulator::Fp8s<__nv_fp8x4_storage_t, float4, 4, __NV_E4M3> {
    using Fp8s::Fp8s;
};
struct __nv_fp8x4_e5m2 : emulator::Fp8s<__nv_fp8x4_storage_t, float4, 4, __NV_E5M2> {
    using Fp8s::Fp8s;
};

inline __nv_fp8_storage_t __nv_cvt_float_to_fp8(float x, __nv_saturation_t saturation, __nv_fp8_interpretation_t type) {
    return emulator::to_fp8(x, saturation, type);
}
inline __nv_fp8_storage_t __nv_cvt_double_to_fp8(double x, __nv_saturation_t saturation,
                                                 __nv_fp8_interpretation_t type) {
    return emulator::to_fp8(x, saturation, type);
}
inline __nv_fp8_storage_t __nv_cvt_halfraw_to_fp8(__half_raw x, __nv_saturation_t saturation,
                                                  __nv_fp8_interpretation_t type) {
    return emulator::to_fp8(__half(x), saturation, type);
}
inline __nv_fp8_storage_t __nv_cvt_bfloat16raw_to_fp8(__nv_bfloat16_raw x, __nv_saturation_t saturation,
                                                      __nv_fp8_interpretation_t type) {
    return emulator::to_fp8(__nv_bfloat16(x), saturation, type);
}
inline __nv_fp8x2_storage_t __nv_cvt_float2_to_fp8x2(float2 x, __nv_saturation_t saturation,
                                                     __nv_fp8_interpretation_t type) {
    return static_cast<__nv_fp8x2_storage_t>(emulator::to_fp8(x.x, saturation, type) |
                                             emulator::to_fp8(x.y, saturation, type) << 8);
}
inline __half_raw __nv_cvt_fp8_to_halfraw(__nv_fp8_storage_t x, __nv_fp8_interpretation_t type) {
    return __half(emulator::from_fp8(x, type));
}
