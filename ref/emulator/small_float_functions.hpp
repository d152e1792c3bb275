// The functions that cuda_fp16.h and cuda_bf16.h have alike, for one number and for two side by side.
#pragma once

#include "cuda_runtime.h"
#include "small_floats.hpp"

// `result` is an expression of a, b and c. Of two numbers the function's name ends in 2.
#define EMULATOR_UNARY(name, pair_name, result) \
    template <emulator::IsSmall T>              \
    T name(T a) {                               \
        return result;                          \
    }                                           \
    template <emulator::IsPair P>               \
    P pair_name(P a) {                          \
        return {name(a.x), name(a.y)};          \
    }
#define EMULATOR_BINARY(name, result)            \
    template <emulator::IsSmall T>               \
    T name(T a, T b) {                           \
        return result;                           \
    }                                            \
    template <emulator::IsPair P>                \
    P EMULATOR_TWO(name)(P a, P b) {             \
        return {name(a.x, b.x), name(a.y, b.y)}; \
    }
#define EMULATOR_TWO(name) EMULATOR_BOTH(name, 2)
#define EMULATOR_BOTH(a, b) a##b

// "Arithmetic Functions". The names that end in _rn promise that a compiler does not fuse them, which none does here.
EMULATOR_BINARY(__hadd, a + b)
EMULATOR_BINARY(__hsub, a - b)
EMULATOR_BINARY(__hmul, a* b)
EMULATOR_BINARY(__hdiv, a / b)
template <emulator::IsPair P>
P __h2div(P a, P b) {
    return a / b;
}
template <typename T>
auto __hadd_rn(T a, T b) -> decltype(__hadd(a, b)) {
    return __hadd(a, b);
}
template <typename T>
auto __hsub_rn(T a, T b) -> decltype(__hsub(a, b)) {
    return __hsub(a, b);
}
template <typename T>
auto __hmul_rn(T a, T b) -> decltype(__hmul(a, b)) {
    return __hmul(a, b);
}
EMULATOR_UNARY(__hneg, __hneg2, -a)
EMULATOR_UNARY(__habs, __habs2, T(typename T::Raw{static_cast<uint16_t>(a.__x & 0x7FFF)}))
// One rounding.
template <emulator::IsSmall T>
T __hfma(T a, T b, T c) {
    return T::of(emulator::fused(static_cast<float>(a), static_cast<float>(b), static_cast<float>(c)));
}
template <emulator::IsPair P>
P __hfma2(P a, P b, P c) {
    return {__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y)};
}
// ...sat: clamped to [0, 1], a NaN to 0. ...relu: a negative result becomes 0.
template <emulator::IsSmall T>
T emulator_saturated(T a) {
    return static_cast<float>(a) > 0 ? (static_cast<float>(a) < 1 ? a : T::of(1)) : T::of(0);
}
EMULATOR_BINARY(__hadd_sat, emulator_saturated(a + b))
EMULATOR_BINARY(__hsub_sat, emulator_saturated(a - b))
EMULATOR_BINARY(__hmul_sat, emulator_saturated(a* b))
template <emulator::IsPair P>
P __hadd2_sat(P a, P b) {
    return __hadd_sat2(a, b);
}
template <emulator::IsPair P>
P __hsub2_sat(P a, P b) {
    return __hsub_sat2(a, b);
}
template <emulator::IsPair P>
P __hmul2_sat(P a, P b) {
    return __hmul_sat2(a, b);
}
template <emulator::IsSmall T>
T __hfma_sat(T a, T b, T c) {
    return emulator_saturated(__hfma(a, b, c));
}
template <emulator::IsPair P>
P __hfma2_sat(P a, P b, P c) {
    return {__hfma_sat(a.x, b.x, c.x), __hfma_sat(a.y, b.y, c.y)};
}
template <emulator::IsSmall T>
T __hfma_relu(T a, T b, T c) {
    const T result = __hfma(a, b, c);
    return static_cast<float>(result) < 0 ? T::of(0) : result;
}
template <emulator::IsPair P>
P __hfma2_relu(P a, P b, P c) {
    return {__hfma_relu(a.x, b.x, c.x), __hfma_relu(a.y, b.y, c.y)};
}

// "Comparison Functions". Those that end in u are true where an operand is a NaN.
template <emulator::IsSmall T>
bool __hisnan(T a) {
    return static_cast<float>(a) != static_cast<float>(a);
}
template <emulator::IsSmall T>
int __hisinf(T a) {
    return std::isinf(static_cast<float>(a)) ? (static_cast<float>(a) < 0 ? -1 : 1) : 0;
}
template <emulator::IsPair P>
P __hisnan2(P a) {
    using T = typename P::Element;
    return {T::of(__hisnan(a.x)), T::of(__hisnan(a.y))};
}
// Of two numbers: 1.0 or 0.0 for each; with b in the name, whether both are; with _mask at the end, all bits of each.
#define EMULATOR_COMPARISON(name, operation)                                                    \
    template <emulator::IsSmall T>                                                              \
    bool __h##name(T a, T b) {                                                                  \
        return a operation b;                                                                   \
    }                                                                                           \
    template <emulator::IsSmall T>                                                              \
    bool __h##name##u(T a, T b) {                                                               \
        return __hisnan(a) || __hisnan(b) || a operation b;                                     \
    }                                                                                           \
    template <emulator::IsPair P>                                                               \
    P __h##name##2(P a, P b) {                                                                  \
        using T = typename P::Element;                                                          \
        return {T::of(__h##name(a.x, b.x)), T::of(__h##name(a.y, b.y))};                        \
    }                                                                                           \
    template <emulator::IsPair P>                                                               \
    P __h##name##u2(P a, P b) {                                                                 \
        using T = typename P::Element;                                                          \
        return {T::of(__h##name##u(a.x, b.x)), T::of(__h##name##u(a.y, b.y))};                  \
    }                                                                                           \
    template <emulator::IsPair P>                                                               \
    bool __hb##name##2(P a, P b) {                                                              \
        return __h##name(a.x, b.x) && __h##name(a.y, b.y);                                      \
    }                                                                                           \
    template <emulator::IsPair P>                                                               \
    unsigned __h##name##2_mask(P a, P b) {                                                      \
        return (__h##name(a.x, b.x) ? 0xFFFFu : 0u) | (__h##name(a.y, b.y) ? 0xFFFF0000u : 0u); \
    }
EMULATOR_COMPARISON(eq, ==)
EMULATOR_COMPARISON(lt, <)
EMULATOR_COMPARISON(le, <=)
EMULATOR_COMPARISON(gt, >)
EMULATOR_COMPARISON(ge, >=)
#undef EMULATOR_COMPARISON
template <emulator::IsSmall T>
bool __hne(T a, T b) {  // of NaNs: false
    return !__hisnan(a) && !__hisnan(b) && a != b;
}
template <emulator::IsSmall T>
bool __hneu(T a, T b) {
    return a != b;
}

// The other operand where one is a NaN; +0 is greater than -0. With _nan, a NaN where one is.
template <emulator::IsSmall T>
T emulator_greater(T a, T b, bool greatest, bool keeps_nan) {
    const T nan(typename T::Raw{0x7FFF});
    if (__hisnan(a) || __hisnan(b)) {
        if (keeps_nan || (__hisnan(a) && __hisnan(b))) return nan;
        return __hisnan(a) ? b : a;
    }
    if (a == b) return (a.__x >> 15 != 0) == greatest ? b : a;
    return (a > b) == greatest ? a : b;
}
EMULATOR_BINARY(__hmax, emulator_greater(a, b, true, false))
EMULATOR_BINARY(__hmin, emulator_greater(a, b, false, false))
EMULATOR_BINARY(__hmax_nan, emulator_greater(a, b, true, true))
EMULATOR_BINARY(__hmin_nan, emulator_greater(a, b, false, true))
template <emulator::IsPair P>
P __hmax2_nan(P a, P b) {
    return __hmax_nan2(a, b);
}
template <emulator::IsPair P>
P __hmin2_nan(P a, P b) {
    return __hmin_nan2(a, b);
}

// "Math Functions". Approximations in FP32 on a GPU, so bits can differ; the roundings to integers and the square root
// are exact.
#define EMULATOR_MATH(name, result) EMULATOR_UNARY(h##name, h2##name, emulator_of(a, [](float x) { return result; }))
template <emulator::IsSmall T, typename Function>
T emulator_of(T a, Function function) {
    return T::of(function(static_cast<float>(a)));
}
EMULATOR_MATH(sqrt, std::sqrt(x))
EMULATOR_MATH(rsqrt, 1.0f / std::sqrt(x))
EMULATOR_MATH(rcp, 1.0f / x)
EMULATOR_MATH(exp, std::exp(x))
EMULATOR_MATH(exp2, std::exp2(x))
EMULATOR_MATH(exp10, std::pow(10.0f, x))
EMULATOR_MATH(log, std::log(x))
EMULATOR_MATH(log2, std::log2(x))
EMULATOR_MATH(log10, std::log10(x))
EMULATOR_MATH(sin, std::sin(x))
EMULATOR_MATH(cos, std::cos(x))
EMULATOR_MATH(tanh, std::tanh(x))
EMULATOR_MATH(floor, std::floor(x))
EMULATOR_MATH(ceil, std::ceil(x))
EMULATOR_MATH(trunc, std::trunc(x))
EMULATOR_MATH(rint, std::nearbyint(x))
#undef EMULATOR_MATH
#undef EMULATOR_UNARY
#undef EMULATOR_BINARY
#undef EMULATOR_TWO
#undef EMULATOR_BOTH

// "Half2 Data Movement": of both types.
template <emulator::IsPair P>
float __low2float(P a) {
    return a.x;
}
template <emulator::IsPair P>
float __high2float(P a) {
    return a.y;
}
template <emulator::IsPair P>
P __lowhigh2highlow(P a) {
    return {a.y, a.x};
}
template <emulator::IsPair P>
P __lows2half2(P a, P b) {
    return {a.x, b.x};
}
template <emulator::IsPair P>
P __highs2half2(P a, P b) {
    return {a.y, b.y};
}

// Atomic additions: of each number by itself where there are two.
namespace emulator {
template <typename T>
T add_atomically(T* address, T value) {
    uint64_t old = atomic(address, sizeof(T), AtomicOp::kCompareAndSwap, Number::kUnsigned, 0, 0);  // reads it
    for (;;) {
        const T before = from_bits<T>(old);
        const uint64_t found =
            atomic(address, sizeof(T), AtomicOp::kCompareAndSwap, Number::kUnsigned, to_bits(before + value), old);
        if (found == old) return before;
        old = found;
    }
}
}  // namespace emulator
template <emulator::IsSmall T>
T atomicAdd(T* address, std::type_identity_t<T> value) {
    return emulator::add_atomically(address, value);
}
template <emulator::IsPair P>
P atomicAdd(P* address, std::type_identity_t<P> value) {
    return emulator::add_atomically(address, value);
}
