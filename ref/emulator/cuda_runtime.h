// What a kernel that includes <cuda_runtime.h> may use of CUDA C++, for the emulator. The host side and the functions
// of numbers are in cuda_host.hpp and cuda_math.hpp.
#pragma once

#include <bit>
#include <cassert>
#include <cstdio>
#include <ctime>
#include <type_traits>

#include "cuda.hpp"
#include "cuda_host.hpp"
#include "cuda_math.hpp"
#include "shared_variable.hpp"

#define __constant__
#define __noinline__  // in headers; kernels/build/plain_cpp.py replaces it in .cu files
#define __align__(bytes) alignas(bytes)
#define __cluster_dims__(...)
#define __maxnreg__(...)
#define __restrict__ __restrict

inline constexpr int warpSize = 32;

int __syncthreads_count(int predicate, int place = EMULATOR_PLACE);
int __syncthreads_and(int predicate, int place = EMULATOR_PLACE);
int __syncthreads_or(int predicate, int place = EMULATOR_PLACE);
void __syncwarp();
void __syncwarp(unsigned mask);

// A function that is copied in where it is called, so that the line of the call is known.
#define EMULATOR_COPIED_IN __attribute__((always_inline)) inline

namespace emulator {

enum class AtomicOp { kAdd, kExchange, kCompareAndSwap, kMin, kMax, kAnd, kOr, kXor, kIncrement, kDecrement };
enum class Number { kUnsigned, kSigned, kFloat };

// What every lane of the mask has given, by lane: a copy, because a kernel reads no memory of the emulator's.
struct Lanes {
    uint64_t values[32];  // of lanes that have given none, all bits: NaN as a floating-point number
    unsigned present;     // the lanes that have given one; others of the mask have exited
    uint64_t operator[](unsigned lane) const { return values[lane]; }
};
Lanes gather(const char* what, unsigned mask, uint64_t bits);
// The old value; both are the value's bits.
uint64_t atomic(void* address, std::size_t bytes, AtomicOp op, Number number, uint64_t operand, uint64_t compare);
void* shared_variable(const SharedVariable& variable, std::size_t alignment);
void* dynamic_shared_memory();
uint32_t shared_address(const void* pointer);
void* shared_pointer(uint32_t address);
[[gnu::format(printf, 1, 2)]] int print(const char* format, ...);
[[noreturn]] void trap(const char* what);
uint64_t steps();
void sleep();
uint32_t active_lanes();
bool is_shared(const void* pointer);
bool is_local(const void* pointer);

template <typename T>
T& shared(const SharedVariable& variable, std::size_t alignment = 1) {
    return *static_cast<T*>(shared_variable(variable, std::max(alignof(T), alignment)));
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
    static_assert(std::is_arithmetic_v<T> && (sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 2),
                  "an atomic operation on this type: CUDA has them for integers, float and double, vectors of floats, "
                  "and the types of cuda_fp16.h and cuda_bf16.h");
    constexpr Number number = std::is_floating_point_v<T> ? Number::kFloat
                              : std::is_signed_v<T>       ? Number::kSigned
                                                          : Number::kUnsigned;
    return from_bits<T>(atomic(address, sizeof(T), op, number, to_bits(operand), to_bits(compare)));
}
// "Warp Shuffle Functions": a lane whose source lies outside its segment of `width` lanes keeps its own value.
template <typename T, typename Source>
EMULATOR_COPIED_IN T shuffled(const char* what, unsigned mask, T value, int width, Source source) {
    const Lanes lanes = gather(what, mask, to_bits(value));
    const int lane = static_cast<int>(indices().lane), segment = lane / width * width;
    const int from = source(lane - segment);
    return from_bits<T>(lanes[static_cast<unsigned>(from < 0 || from >= width ? lane : segment + from)]);
}

}  // namespace emulator

#define printf(...) emulator::print(__VA_ARGS__)

// ------------------------------------------------------------------------------------------------------------- warps

// The lanes that have come here together: those of a branch, and not those that wait elsewhere or have exited.
inline unsigned __activemask() { return emulator::active_lanes(); }

EMULATOR_COPIED_IN unsigned emulator_vote(const char* what, unsigned mask, bool predicate) {
    const emulator::Lanes lanes = emulator::gather(what, mask, predicate);
    unsigned votes = 0;
    for (unsigned lane = 0; lane < 32; ++lane)
        if (lanes.present >> lane & 1 && lanes[lane]) votes |= 1u << lane;
    return votes;
}
EMULATOR_COPIED_IN unsigned __ballot_sync(unsigned mask, int predicate) {
    return emulator_vote("vote.sync.ballot", mask, predicate != 0);
}
EMULATOR_COPIED_IN int __all_sync(unsigned mask, int predicate) {
    return emulator_vote("vote.sync.all", mask, predicate == 0) == 0;
}
EMULATOR_COPIED_IN int __any_sync(unsigned mask, int predicate) {
    return emulator_vote("vote.sync.any", mask, predicate != 0) != 0;
}

template <typename T>
EMULATOR_COPIED_IN T __shfl_sync(unsigned mask, T value, int lane, int width = 32) {
    return emulator::shuffled("shfl.sync.idx", mask, value, width, [=](int) { return lane & (width - 1); });
}
template <typename T>
EMULATOR_COPIED_IN T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
    return emulator::shuffled("shfl.sync.up", mask, value, width,
                              [=](int lane) { return lane - static_cast<int>(delta); });
}
template <typename T>
EMULATOR_COPIED_IN T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
    return emulator::shuffled("shfl.sync.down", mask, value, width,
                              [=](int lane) { return lane + static_cast<int>(delta); });
}
template <typename T>
EMULATOR_COPIED_IN T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32) {
    return emulator::shuffled("shfl.sync.bfly", mask, value, width, [=](int lane) { return lane ^ lanes; });
}
template <typename T>
EMULATOR_COPIED_IN unsigned emulator_match(const char* what, unsigned mask, T value) {
    const emulator::Lanes lanes = emulator::gather(what, mask, emulator::to_bits(value));
    unsigned same = 0;
    for (unsigned lane = 0; lane < 32; ++lane)
        if (lanes.present >> lane & 1 && lanes[lane] == emulator::to_bits(value)) same |= 1u << lane;
    return same;
}
template <typename T>
EMULATOR_COPIED_IN unsigned __match_any_sync(unsigned mask, T value) {
    return emulator_match("match.any.sync", mask, value);
}
template <typename T>
EMULATOR_COPIED_IN unsigned __match_all_sync(unsigned mask, T value, int* all) {
    *all = emulator_match("match.all.sync", mask, value) == mask;
    return *all ? mask : 0;
}
// "Warp Reduce Functions", of 32-bit integers.
template <typename T, typename Combine>
EMULATOR_COPIED_IN T emulator_reduce(const char* what, unsigned mask, T value, Combine combine) {
    static_assert(std::is_integral_v<T> && sizeof(T) == 4, "a 32-bit integer");
    const emulator::Lanes lanes = emulator::gather(what, mask, emulator::to_bits(value));
    const auto first = static_cast<unsigned>(std::countr_zero(lanes.present));
    T result = emulator::from_bits<T>(lanes[first]);
    for (unsigned lane = first + 1; lane < 32; ++lane)
        if (lanes.present >> lane & 1) result = combine(result, emulator::from_bits<T>(lanes[lane]));
    return result;
}
template <typename T>
EMULATOR_COPIED_IN T __reduce_add_sync(unsigned mask, T value) {
    return static_cast<T>(emulator_reduce("redux.sync.add", mask, static_cast<unsigned>(value),
                                          [](unsigned a, unsigned b) { return a + b; }));
}
template <typename T>
EMULATOR_COPIED_IN T __reduce_min_sync(unsigned mask, T value) {
    return emulator_reduce("redux.sync.min", mask, value, [](T a, T b) { return std::min(a, b); });
}
template <typename T>
EMULATOR_COPIED_IN T __reduce_max_sync(unsigned mask, T value) {
    return emulator_reduce("redux.sync.max", mask, value, [](T a, T b) { return std::max(a, b); });
}
EMULATOR_COPIED_IN unsigned __reduce_and_sync(unsigned mask, unsigned value) {
    return emulator_reduce("redux.sync.and", mask, value, [](unsigned a, unsigned b) { return a & b; });
}
EMULATOR_COPIED_IN unsigned __reduce_or_sync(unsigned mask, unsigned value) {
    return emulator_reduce("redux.sync.or", mask, value, [](unsigned a, unsigned b) { return a | b; });
}
EMULATOR_COPIED_IN unsigned __reduce_xor_sync(unsigned mask, unsigned value) {
    return emulator_reduce("redux.sync.xor", mask, value, [](unsigned a, unsigned b) { return a ^ b; });
}

// ----------------------------------------------------------------------------------------------------------- atomics

template <typename T>
T atomicAdd(T* address, std::type_identity_t<T> value) {
    return emulator::atomic(address, emulator::AtomicOp::kAdd, value);
}
// Each element is added by itself; the whole vector is not one atomic operation. Of global memory alone.
float2 atomicAdd(float2* address, float2 value);
float4 atomicAdd(float4* address, float4 value);
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

// With the scope of a thread block, or of all devices and the host.
#define EMULATOR_SCOPES(name)                    \
    template <typename... Arguments>             \
    auto name##_block(Arguments... arguments) {  \
        return name(arguments...);               \
    }                                            \
    template <typename... Arguments>             \
    auto name##_system(Arguments... arguments) { \
        return name(arguments...);               \
    }
EMULATOR_SCOPES(atomicAdd)
EMULATOR_SCOPES(atomicSub)
EMULATOR_SCOPES(atomicExch)
EMULATOR_SCOPES(atomicCAS)
EMULATOR_SCOPES(atomicMin)
EMULATOR_SCOPES(atomicMax)
EMULATOR_SCOPES(atomicAnd)
EMULATOR_SCOPES(atomicOr)
EMULATOR_SCOPES(atomicXor)
EMULATOR_SCOPES(atomicInc)
EMULATOR_SCOPES(atomicDec)
#undef EMULATOR_SCOPES

// ------------------------------------------------------------------------------------------------------------ memory

inline std::size_t __cvta_generic_to_shared(const void* pointer) { return emulator::shared_address(pointer); }
inline void* __cvta_shared_to_generic(std::size_t address) {
    return emulator::shared_pointer(static_cast<uint32_t>(address));
}
// With hints for caches, which are not modelled.
#define EMULATOR_LOAD(name)    \
    template <typename T>      \
    T name(const T* address) { \
        return *address;       \
    }
#define EMULATOR_STORE(name)                               \
    template <typename T>                                  \
    void name(T* address, std::type_identity_t<T> value) { \
        *address = value;                                  \
    }
EMULATOR_LOAD(__ldg)
EMULATOR_LOAD(__ldca)
EMULATOR_LOAD(__ldcg)
EMULATOR_LOAD(__ldcs)
EMULATOR_LOAD(__ldlu)
EMULATOR_LOAD(__ldcv)
EMULATOR_STORE(__stwb)
EMULATOR_STORE(__stcg)
EMULATOR_STORE(__stcs)
EMULATOR_STORE(__stwt)
#undef EMULATOR_LOAD
#undef EMULATOR_STORE
// Of a generic pointer. Constants lie in global memory here.
inline unsigned __isShared(const void* pointer) { return emulator::is_shared(pointer); }
inline unsigned __isLocal(const void* pointer) { return emulator::is_local(pointer); }
inline unsigned __isGlobal(const void* pointer) {
    return !emulator::is_shared(pointer) && !emulator::is_local(pointer);
}
inline void __threadfence_block() {}
inline void __threadfence() {}
inline void __threadfence_system() {}

// ----------------------------------------------------------------------------------------------------------- others

#if !__has_builtin(__builtin_assume)  // clang has it
#define __builtin_assume(condition) ((condition) ? (void)0 : __builtin_unreachable())
#endif
#define __nv_assume __builtin_assume

// Steps of the emulator, not cycles.
inline long long clock64() { return static_cast<long long>(emulator::steps()); }
#define clock() (static_cast<clock_t>(emulator::steps()))
inline void __nanosleep(unsigned) { emulator::sleep(); }
[[noreturn]] inline void __trap() { emulator::trap("__trap()"); }
