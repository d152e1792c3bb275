// Numbers of fewer bits than FP32: how they are rounded and widened, and what the types of cuda_fp16.h and cuda_bf16.h
// have in common. A GPU rounds each of their results once, to nearest, ties to even; so does this.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <type_traits>

namespace emulator {

enum class Rounding { kNearest, kZero, kDown, kUp };

// A floating-point format with a sign, whose infinity and NaNs have the highest exponent, as in IEEE 754.
struct Format {
    int exponent, fraction;                                            // bits
    constexpr int least() const { return 2 - (1 << (exponent - 1)); }  // the exponent of the smallest normal number
    constexpr uint32_t infinity() const { return ((1u << exponent) - 1) << fraction; }
    constexpr uint32_t sign() const { return 1u << (exponent + fraction); }
};

// The bits of |x| in a format whose exponents do not end, so the answer may lie beyond its infinity. x is no NaN.
constexpr uint64_t rounded_magnitude(double x, const Format& format, Rounding rounding) {
    const auto bits = std::bit_cast<uint64_t>(x) & ~(1ull << 63);
    const bool negative = std::bit_cast<uint64_t>(x) >> 63;
    const int field = static_cast<int>(bits >> 52), exponent = field - 1023;
    const uint64_t fraction = (bits & ((1ull << 52) - 1)) | (field ? 1ull << 52 : 0);
    const int below = exponent < format.least() ? format.least() - exponent : 0;  // a subnormal number has fewer bits
    const int dropped = 52 - format.fraction + below;
    uint64_t kept = 0, rest = fraction, half = ~0ull;
    if (dropped < 63)
        kept = fraction >> dropped, rest = fraction & ((1ull << dropped) - 1), half = 1ull << (dropped - 1);
    if (rounding == Rounding::kNearest)
        kept += rest > half || (rest == half && kept & 1);
    else if (rounding == (negative ? Rounding::kDown : Rounding::kUp))
        kept += rest != 0;
    return kept + (static_cast<uint64_t>(below ? 0 : exponent - format.least()) << format.fraction);
}

// The bits of x, rounded once. A NaN becomes the one that a GPU's conversions and operations give.
constexpr uint16_t narrowed(double x, const Format& format, Rounding rounding = Rounding::kNearest) {
    if (x != x) return 0x7FFF;
    const bool negative = std::bit_cast<uint64_t>(x) >> 63;
    const uint32_t sign = negative ? format.sign() : 0;
    const bool infinite = (std::bit_cast<uint64_t>(x) & ~(1ull << 63)) == 0x7FF0000000000000;
    uint64_t magnitude = infinite ? format.infinity() : rounded_magnitude(x, format, rounding);
    if (!infinite && magnitude >= format.infinity()) {
        const bool away = rounding == Rounding::kNearest || rounding == (negative ? Rounding::kDown : Rounding::kUp);
        magnitude = format.infinity() - (away ? 0 : 1);
    }
    return static_cast<uint16_t>(sign | magnitude);
}

// A number of the format, exactly. NaNs are as a GPU's conversion of FP16 gives them.
constexpr float widened(uint32_t bits, const Format& format) {
    const uint32_t sign = (bits & format.sign()) << (31 - format.exponent - format.fraction);
    uint32_t magnitude = bits & (format.sign() - 1);
    if (magnitude > format.infinity()) return std::bit_cast<float>(0x7FFFFFFFu);
    if (magnitude == format.infinity()) return std::bit_cast<float>(sign | 0x7F800000u);
    if (magnitude == 0) return std::bit_cast<float>(sign);
    int exponent = static_cast<int>(magnitude >> format.fraction);
    magnitude &= (1u << format.fraction) - 1;
    if (exponent) {
        magnitude |= 1u << format.fraction;
    } else {
        exponent = 1;
        for (; !(magnitude >> format.fraction); --exponent) magnitude <<= 1;
    }
    const int field = exponent - 1 + format.least() + 127;
    magnitude = (magnitude & ((1u << format.fraction) - 1)) << (23 - format.fraction);
    if (field > 0) return std::bit_cast<float>(sign | static_cast<uint32_t>(field) << 23 | magnitude);
    // BF16 has FP32's subnormal numbers.
    return std::bit_cast<float>(sign | (magnitude | 1u << 23) >> (1 - field));
}

// a * b + c in FP64, rounded to odd, so that rounding it once more is as if the exact sum were rounded. The product of
// two numbers of at most 24 bits is exact.
inline double fused(double a, double b, double c) {
    const double product = a * b, sum = product + c;
    if (!std::isfinite(sum)) return sum;
    const double part = sum - product, error = (product - (sum - part)) + (c - part);
    const auto bits = std::bit_cast<uint64_t>(sum);
    if (error == 0 || bits & 1) return sum;
    // One further towards the error, which makes the last bit odd.
    return std::bit_cast<double>((error > 0) == (sum > 0) ? bits + 1 : bits - 1);
}

// What __half and __nv_bfloat16 have in common. T is the type itself, and has `kFormat`.
template <typename T, typename Raw>
struct SmallFloat {
    uint16_t __x;

    SmallFloat() = default;
    constexpr SmallFloat(const Raw& raw) : __x(raw.x) {}
    constexpr operator Raw() const { return Raw{__x}; }
    constexpr operator float() const { return widened(__x, T::kFormat); }

    static constexpr T of(double x, Rounding rounding = Rounding::kNearest) {
        return T(Raw{narrowed(x, T::kFormat, rounding)});
    }

    friend T operator+(const T& a, const T& b) { return T::of(static_cast<float>(a) + static_cast<float>(b)); }
    friend T operator-(const T& a, const T& b) { return T::of(static_cast<float>(a) - static_cast<float>(b)); }
    friend T operator*(const T& a, const T& b) { return T::of(static_cast<float>(a) * static_cast<float>(b)); }
    friend T operator/(const T& a, const T& b) { return T::of(static_cast<float>(a) / static_cast<float>(b)); }
    friend T operator+(const T& a) { return a; }
    friend T operator-(const T& a) { return T(Raw{static_cast<uint16_t>(a.__x ^ 0x8000)}); }
    friend T& operator+=(T& a, const T& b) { return a = a + b; }
    friend T& operator-=(T& a, const T& b) { return a = a - b; }
    friend T& operator*=(T& a, const T& b) { return a = a * b; }
    friend T& operator/=(T& a, const T& b) { return a = a / b; }
    friend T& operator++(T& a) { return a = a + T::of(1); }
    friend T& operator--(T& a) { return a = a - T::of(1); }
    friend bool operator==(const T& a, const T& b) { return static_cast<float>(a) == static_cast<float>(b); }
    friend bool operator!=(const T& a, const T& b) { return static_cast<float>(a) != static_cast<float>(b); }
    friend bool operator<(const T& a, const T& b) { return static_cast<float>(a) < static_cast<float>(b); }
    friend bool operator<=(const T& a, const T& b) { return static_cast<float>(a) <= static_cast<float>(b); }
    friend bool operator>(const T& a, const T& b) { return static_cast<float>(a) > static_cast<float>(b); }
    friend bool operator>=(const T& a, const T& b) { return static_cast<float>(a) >= static_cast<float>(b); }
};

// Two of them in a register, as __half2 and __nv_bfloat162.
template <typename Pair, typename T>
struct SmallPair {
    using Element = T;
    T x, y;

    SmallPair() = default;
    constexpr SmallPair(const T& a, const T& b) : x(a), y(b) {}

    friend Pair operator+(const Pair& a, const Pair& b) { return {a.x + b.x, a.y + b.y}; }
    friend Pair operator-(const Pair& a, const Pair& b) { return {a.x - b.x, a.y - b.y}; }
    friend Pair operator*(const Pair& a, const Pair& b) { return {a.x * b.x, a.y * b.y}; }
    friend Pair operator/(const Pair& a, const Pair& b) { return {a.x / b.x, a.y / b.y}; }
    friend Pair operator-(const Pair& a) { return {-a.x, -a.y}; }
    friend Pair& operator+=(Pair& a, const Pair& b) { return a = a + b; }
    friend Pair& operator-=(Pair& a, const Pair& b) { return a = a - b; }
    friend Pair& operator*=(Pair& a, const Pair& b) { return a = a * b; }
    friend Pair& operator/=(Pair& a, const Pair& b) { return a = a / b; }
    friend bool operator==(const Pair& a, const Pair& b) { return a.x == b.x && a.y == b.y; }
    friend bool operator!=(const Pair& a, const Pair& b) { return a.x != b.x && a.y != b.y; }
};

template <typename T>
concept IsSmall = requires { T::kFormat; };
template <typename P>
concept IsPair = IsSmall<typename P::Element>;

}  // namespace emulator
