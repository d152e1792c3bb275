// What the copy engine's reductions make of elements in global memory.
#pragma once

#include <bit>
#include <cmath>
#include <cstring>
#include <mutex>
#include <type_traits>

#include "../ptx.cuh"

namespace emulator {

inline const char* element_name(Element element) {
    static constexpr const char* kNames[] = {"u8", "u16", "u32", "s32", "u64", "s64", "f16", "f32", "f64", "bf16"};
    return kNames[static_cast<int>(element)];
}

// FP16 and BF16, which C++20 does not have: by way of FP32, which has more than twice as many bits and two more, so
// that a sum that is rounded twice is rounded as if once. To nearest, ties to even.
struct Half {
    uint16_t bits;
    float value() const {
        const int exponent = bits >> 10 & 31, fraction = bits & 1023;
        float magnitude = exponent ? std::ldexp(static_cast<float>(1024 + fraction), exponent - 25)
                                   : std::ldexp(static_cast<float>(fraction), -24);
        if (exponent == 31) magnitude = fraction ? NAN : INFINITY;
        return bits >> 15 ? -magnitude : magnitude;
    }
    static Half of(float x) {
        if (std::isnan(x)) return {0x7FFF};
        const uint16_t sign = std::signbit(x) ? 0x8000 : 0;
        const float magnitude = std::fabs(x);
        if (magnitude >= 65520.0f) return {static_cast<uint16_t>(sign | 0x7C00)};
        const int exponent = magnitude < 0x1p-14f ? -14 : std::ilogb(magnitude);
        const auto count = static_cast<int>(std::nearbyint(std::ldexp(magnitude, 10 - exponent)));
        return {static_cast<uint16_t>(sign | (count + ((exponent + 14) << 10)))};
    }
};
struct Brain {
    uint16_t bits;
    float value() const { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }
    static Brain of(float x) {
        if (std::isnan(x)) return {0x7FFF};
        const auto all = std::bit_cast<uint32_t>(x);
        return {static_cast<uint16_t>((all + 0x7FFF + (all >> 16 & 1)) >> 16)};
    }
};

// Unlike red.add.f32, of which PTX says so, an H200's copy engine does not take subnormal numbers for zero.
template <typename T>
T combine(Reduction reduction, T old, T operand) {
    if constexpr (std::is_integral_v<T>) {
        using Unsigned = std::make_unsigned_t<T>;
        switch (reduction) {
            case Reduction::add:
                return static_cast<T>(static_cast<Unsigned>(old) + static_cast<Unsigned>(operand));
            case Reduction::min:
                return std::min(old, operand);
            case Reduction::max:
                return std::max(old, operand);
            case Reduction::inc:
                return old >= operand ? T{0} : static_cast<T>(old + 1);
            case Reduction::dec:
                return old == 0 || old > operand ? operand : static_cast<T>(old - 1);
            case Reduction::bit_and:
                return old & operand;
            case Reduction::bit_or:
                return old | operand;
            default:
                return old ^ operand;
        }
    } else if constexpr (std::is_floating_point_v<T>) {
        return reduction == Reduction::add   ? old + operand
               : reduction == Reduction::min ? std::fmin(old, operand)
                                             : std::fmax(old, operand);
    } else {
        return T::of(combine(reduction, old.value(), operand.value()));
    }
}

template <typename T>
void reduce_all(Reduction reduction, uint8_t* global, const uint8_t* data, std::size_t bytes) {
    for (std::size_t at = 0; at < bytes; at += sizeof(T)) {
        T old, operand;
        std::memcpy(&old, global + at, sizeof old);
        std::memcpy(&operand, data + at, sizeof operand);
        old = combine(reduction, old, operand);
        std::memcpy(global + at, &old, sizeof old);
    }
}

inline void reduce(Reduction reduction, Element element, uint8_t* global, const uint8_t* data, std::size_t bytes) {
    static std::mutex mutex;  // clusters run on several OS threads
    const std::lock_guard lock(mutex);
    switch (element) {
        case Element::u32:
            return reduce_all<uint32_t>(reduction, global, data, bytes);
        case Element::s32:
            return reduce_all<int32_t>(reduction, global, data, bytes);
        case Element::u64:
            return reduce_all<uint64_t>(reduction, global, data, bytes);
        case Element::s64:
            return reduce_all<int64_t>(reduction, global, data, bytes);
        case Element::f16:
            return reduce_all<Half>(reduction, global, data, bytes);
        case Element::bf16:
            return reduce_all<Brain>(reduction, global, data, bytes);
        case Element::f64:
            return reduce_all<double>(reduction, global, data, bytes);
        default:
            return reduce_all<float>(reduction, global, data, bytes);
    }
}

}  // namespace emulator
