// What a kernel that includes <cuda_runtime.h> may use of CUDA C++, for the emulator: the device side. nvcc makes these
// functions known without an #include as well; here a file has to include this one.
#pragma once

#include <algorithm>
#include <bit>
#include <cassert>
#include <cmath>
#include <cstdio>
#include <type_traits>

#include "cuda.hpp"

#define __constant__
#define __noinline__ __attribute__((noinline))
#define __align__(bytes) alignas(bytes)
#define __cluster_dims__(...)
#define __maxnreg__(...)
#define __restrict__ __restrict
#define warpSize 32

using cudaStream_t = void*;

void __syncthreads();
int __syncthreads_count(int predicate);
int __syncthreads_and(int predicate);
int __syncthreads_or(int predicate);
void __syncwarp();
void __syncwarp(unsigned mask);

namespace emulator {

enum class AtomicOp { kAdd, kExchange, kCompareAndSwap, kMin, kMax, kAnd, kOr, kXor, kIncrement, kDecrement };
enum class Number { kUnsigned, kSigned, kFloat };

// What every lane of the mask has given, by lane: a copy, because a kernel reads no memory of the emulator's.
struct Lanes {
    uint64_t values[32];
    uint64_t operator[](unsigned lane) const { return values[lane]; }
};
Lanes gather(const char* what, unsigned mask, uint64_t bits);
// The old value; both are the value's bits.
uint64_t atomic(void* address, std::size_t bytes, AtomicOp op, Number number, uint64_t operand, uint64_t compare);
void* shared_variable(const void* key, std::size_t bytes, std::size_t alignment);
void* dynamic_shared_memory();
uint32_t shared_address(const void* pointer);
void* shared_pointer(uint32_t address);
[[gnu::format(printf, 1, 2)]] int print(const char* format, ...);
[[noreturn]] void trap(const char* what);
uint64_t clock();
void sleep();

template <typename T>
T& shared(const void* key, std::size_t alignment = 1) {
    return *static_cast<T*>(shared_variable(key, sizeof(T), std::max(alignof(T), alignment)));
}

template <typename T>
uint64_t to_bits(T value) {
    static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>, "a value of one register or two");
    uint64_t bits = 0;
    std::memcpy(&bits, &value, sizeof value);
    return bits;
}
template <typename T>
T from_bits(uint64_t bits) {
    T value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}
template <typename T>
T atomic(T* address, AtomicOp op, T operand, T compare = {}) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "32 or 64 bits");
    constexpr Number number = std::is_floating_point_v<T> ? Number::kFloat
                              : std::is_signed_v<T>       ? Number::kSigned
                                                          : Number::kUnsigned;
    return from_bits<T>(atomic(address, sizeof(T), op, number, to_bits(operand), to_bits(compare)));
}
// "Warp Shuffle Functions": a lane whose source lies outside its segment of `width` lanes keeps its own value.
template <typename T, typename Source>
T shuffled(unsigned mask, T value, int width, Source source) {
    const Lanes lanes = gather("shfl.sync", mask, to_bits(value));
    const int lane = static_cast<int>(indices().lane), segment = lane / width * width;
    const int from = source(lane - segment);
    return from_bits<T>(lanes[static_cast<unsigned>(from < 0 || from >= width ? lane : segment + from)]);
}

}  // namespace emulator

#define printf(...) emulator::print(__VA_ARGS__)

// ------------------------------------------------------------------------------------------------------------- warps

inline unsigned __ballot_sync(unsigned mask, int predicate) {
    const emulator::Lanes lanes = emulator::gather("vote.sync", mask, predicate != 0);
    unsigned votes = 0;
    for (unsigned lane = 0; lane < 32; ++lane)
        if (mask >> lane & 1 && lanes[lane]) votes |= 1u << lane;
    return votes;
}
inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, !predicate) == 0; }
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }

template <typename T>
T __shfl_sync(unsigned mask, T value, int lane, int width = 32) {
    return emulator::shuffled(mask, value, width, [=](int) { return lane & (width - 1); });
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
    return emulator::shuffled(mask, value, width, [=](int lane) { return lane - static_cast<int>(delta); });
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
    return emulator::shuffled(mask, value, width, [=](int lane) { return lane + static_cast<int>(delta); });
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32) {
    return emulator::shuffled(mask, value, width, [=](int lane) { return lane ^ lanes; });
}
template <typename T>
unsigned __match_any_sync(unsigned mask, T value) {
    const emulator::Lanes lanes = emulator::gather("match.sync", mask, emulator::to_bits(value));
    unsigned same = 0;
    for (unsigned lane = 0; lane < 32; ++lane)
        if (mask >> lane & 1 && lanes[lane] == emulator::to_bits(value)) same |= 1u << lane;
    return same;
}
template <typename T>
unsigned __match_all_sync(unsigned mask, T value, int* all) {
    *all = __match_any_sync(mask, value) == mask;
    return *all ? mask : 0;
}
// "Warp Reduce Functions", of 32-bit integers.
template <typename T, typename Combine>
T emulator_reduce(unsigned mask, T value, Combine combine) {
    static_assert(std::is_integral_v<T> && sizeof(T) == 4, "a 32-bit integer");
    const emulator::Lanes lanes = emulator::gather("redux.sync", mask, emulator::to_bits(value));
    const auto first = static_cast<unsigned>(std::countr_zero(mask));
    T result = emulator::from_bits<T>(lanes[first]);
    for (unsigned lane = first + 1; lane < 32; ++lane)
        if (mask >> lane & 1) result = combine(result, emulator::from_bits<T>(lanes[lane]));
    return result;
}
template <typename T>
T __reduce_add_sync(unsigned mask, T value) {
    return static_cast<T>(
        emulator_reduce(mask, static_cast<unsigned>(value), [](unsigned a, unsigned b) { return a + b; }));
}
template <typename T>
T __reduce_min_sync(unsigned mask, T value) {
    return emulator_reduce(mask, value, [](T a, T b) { return std::min(a, b); });
}
template <typename T>
T __reduce_max_sync(unsigned mask, T value) {
    return emulator_reduce(mask, value, [](T a, T b) { return std::max(a, b); });
}
inline unsigned __reduce_and_sync(unsigned mask, unsigned value) {
    return emulator_reduce(mask, value, [](unsigned a, unsigned b) { return a & b; });
}
inline unsigned __reduce_or_sync(unsigned mask, unsigned value) {
    return emulator_reduce(mask, value, [](unsigned a, unsigned b) { return a | b; });
}
inline unsigned __reduce_xor_sync(unsigned mask, unsigned value) {
    return emulator_reduce(mask, value, [](unsigned a, unsigned b) { return a ^ b; });
}

// ----------------------------------------------------------------------------------------------------------- atomics

template <typename T>
T atomicAdd(T* address, std::type_identity_t<T> value) {
    return emulator::atomic(address, emulator::AtomicOp::kAdd, value);
}
template <typename T>
T atomicSub(T* address, std::type_identity_t<T> value) {
    return emulator::atomic(address, emulator::AtomicOp::kAdd, static_cast<T>(0 - value));
}
template <typename T>
T atomicExch(T* address, std::type_identity_t<T> value) {
    return emulator::atomic(address, emulator::AtomicOp::kExchange, value);
}
template <typename T>
T atomicCAS(T* address, std::type_identity_t<T> compare, std::type_identity_t<T> value) {
    return emulator::atomic(address, emulator::AtomicOp::kCompareAndSwap, value, compare);
}
template <typename T>
T atomicMin(T* address, std::type_identity_t<T> value) {
    return emulator::atomic(address, emulator::AtomicOp::kMin, value);
}
template <typename T>
T atomicMax(T* address, std::type_identity_t<T> value) {
    return emulator::atomic(address, emulator::AtomicOp::kMax, value);
}
template <typename T>
T atomicAnd(T* address, std::type_identity_t<T> value) {
    return emulator::atomic(address, emulator::AtomicOp::kAnd, value);
}
template <typename T>
T atomicOr(T* address, std::type_identity_t<T> value) {
    return emulator::atomic(address, emulator::AtomicOp::kOr, value);
}
template <typename T>
T atomicXor(T* address, std::type_identity_t<T> value) {
    return emulator::atomic(address, emulator::AtomicOp::kXor, value);
}
inline unsigned atomicInc(unsigned* address, unsigned limit) {
    return emulator::atomic(address, emulator::AtomicOp::kIncrement, limit);
}
inline unsigned atomicDec(unsigned* address, unsigned limit) {
    return emulator::atomic(address, emulator::AtomicOp::kDecrement, limit);
}

// ------------------------------------------------------------------------------------------------------------ memory

inline std::size_t __cvta_generic_to_shared(const void* pointer) { return emulator::shared_address(pointer); }
inline void* __cvta_shared_to_generic(std::size_t address) {
    return emulator::shared_pointer(static_cast<uint32_t>(address));
}
template <typename T>
T __ldg(const T* address) {
    return *address;
}
template <typename T>
T __ldcg(const T* address) {
    return *address;
}
template <typename T>
T __ldcs(const T* address) {
    return *address;
}
template <typename T>
void __stcg(T* address, T value) {
    *address = value;
}
template <typename T>
void __stcs(T* address, T value) {
    *address = value;
}
inline void __threadfence_block() {}
inline void __threadfence() {}
inline void __threadfence_system() {}

// ----------------------------------------------------------------------------------------------------------- numbers

template <typename T, typename U>
constexpr std::common_type_t<T, U> min(T a, U b) {
    return static_cast<std::common_type_t<T, U>>(a) < static_cast<std::common_type_t<T, U>>(b) ? a : b;
}
template <typename T, typename U>
constexpr std::common_type_t<T, U> max(T a, U b) {
    return static_cast<std::common_type_t<T, U>>(a) > static_cast<std::common_type_t<T, U>>(b) ? a : b;
}
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
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
    const uint64_t bytes = static_cast<uint64_t>(y) << 32 | x;
    unsigned result = 0;
    for (int i = 0; i < 4; ++i) result |= static_cast<unsigned>(bytes >> (selector >> 4 * i & 7) * 8 & 0xFF) << 8 * i;
    return result;
}
inline unsigned __umulhi(unsigned x, unsigned y) { return static_cast<unsigned>(static_cast<uint64_t>(x) * y >> 32); }
inline int __mulhi(int x, int y) { return static_cast<int>(static_cast<int64_t>(x) * y >> 32); }
inline int __float_as_int(float x) { return std::bit_cast<int>(x); }
inline float __int_as_float(int x) { return std::bit_cast<float>(x); }
inline float __uint_as_float(unsigned x) { return std::bit_cast<float>(x); }
inline float __fmaf_rn(float x, float y, float z) { return std::fma(x, y, z); }
inline float __fadd_rn(float x, float y) { return x + y; }
inline float __fsub_rn(float x, float y) { return x - y; }
inline float __fmul_rn(float x, float y) { return x * y; }
inline float __fdiv_rn(float x, float y) { return x / y; }
inline float __saturatef(float x) { return x > 0.0f ? std::min(x, 1.0f) : 0.0f; }
inline float __int2float_rn(int x) { return static_cast<float>(x); }
inline int __float2int_rn(float x) { return static_cast<int>(std::nearbyint(x)); }
inline int __float2int_rz(float x) { return static_cast<int>(x); }
// These are approximations on a GPU; here they are as exact as the C library's functions, so bits can differ.
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline float __frsqrt_rn(float x) { return 1.0f / std::sqrt(x); }
inline float __expf(float x) { return std::exp(x); }
inline float exp10f(float x) { return std::pow(10.0f, x); }
inline float __logf(float x) { return std::log(x); }
inline float __log2f(float x) { return std::log2(x); }
inline float __powf(float x, float y) { return std::pow(x, y); }
inline float __sinf(float x) { return std::sin(x); }
inline float __cosf(float x) { return std::cos(x); }
inline float __fdividef(float x, float y) { return x / y; }

inline long long clock64() { return static_cast<long long>(emulator::clock()); }
inline void __nanosleep(unsigned) { emulator::sleep(); }
[[noreturn]] inline void __trap() { emulator::trap("__trap()"); }
