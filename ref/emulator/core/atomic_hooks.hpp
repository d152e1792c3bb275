// What -fsanitize=thread makes of a kernel's C++ atomics (std::atomic, std::atomic_ref and the compilers' __atomic
// functions): calls of these functions. CUDA's own atomics are in plain.hpp.
#pragma once

#include "lanes.hpp"
#include "plain.hpp"

namespace emulator {

// Calls operation(address) after the checks of an atomic operation; those of local variables and of the launcher need
// none. One that leaves the number as it was only looks at it.
template <typename T, typename Operation>
[[gnu::always_inline]] inline auto atomically(const volatile T* pointer, const void* from, const Operation& operation) {
    auto* plain = const_cast<T*>(pointer);
    if (!Stacks::holds(reinterpret_cast<uintptr_t>(__builtin_frame_address(0)))) return operation(plain);
    Thread& thread = self();
    if (thread.fiber.owns(reinterpret_cast<uintptr_t>(plain))) return operation(plain);
    thread.cluster->look(thread, from);
    use_atomically(plain, sizeof(T));
    const T before = __atomic_load_n(plain, __ATOMIC_RELAXED);
    const auto result = operation(plain);
    if (__atomic_load_n(plain, __ATOMIC_RELAXED) != before) thread.cluster->enter(thread, from);
    return result;
}

}  // namespace emulator

// The last arguments are C++'s memory orders: the strictest is right for all.
#define EMULATOR_ATOMICALLY(at, ...) \
    emulator::atomically(at, __builtin_return_address(0), [&](auto* plain) { return __VA_ARGS__; })
#define EMULATOR_FETCH(bits, T, name)                                                          \
    T __tsan_atomic##bits##_fetch_##name(volatile T* at, T value, int) {                       \
        return EMULATOR_ATOMICALLY(at, __atomic_fetch_##name(plain, value, __ATOMIC_SEQ_CST)); \
    }
#define EMULATOR_COMPARE(bits, T, strength)                                                                        \
    int __tsan_atomic##bits##_compare_exchange_##strength(volatile T* at, T* expected, T desired, int, int) {      \
        return EMULATOR_ATOMICALLY(                                                                                \
            at, __atomic_compare_exchange_n(plain, expected, desired, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)); \
    }
#define EMULATOR_ATOMICS(bits, T)                                                                                   \
    T __tsan_atomic##bits##_load(const volatile T* at, int) {                                                       \
        return EMULATOR_ATOMICALLY(at, __atomic_load_n(plain, __ATOMIC_SEQ_CST));                                   \
    }                                                                                                               \
    void __tsan_atomic##bits##_store(volatile T* at, T value, int) {                                                \
        EMULATOR_ATOMICALLY(at, (__atomic_store_n(plain, value, __ATOMIC_SEQ_CST), 0));                             \
    }                                                                                                               \
    T __tsan_atomic##bits##_exchange(volatile T* at, T value, int) {                                                \
        return EMULATOR_ATOMICALLY(at, __atomic_exchange_n(plain, value, __ATOMIC_SEQ_CST));                        \
    }                                                                                                               \
    EMULATOR_FETCH(bits, T, add)                                                                                    \
    EMULATOR_FETCH(bits, T, sub)                                                                                    \
    EMULATOR_FETCH(bits, T, and)                                                                                    \
    EMULATOR_FETCH(bits, T, or)                                                                                     \
    EMULATOR_FETCH(bits, T, xor)                                                                                    \
    EMULATOR_FETCH(bits, T, nand)                                                                                   \
    EMULATOR_COMPARE(bits, T, strong)                                                                               \
    EMULATOR_COMPARE(bits, T, weak)                                                                                 \
    T __tsan_atomic##bits##_compare_exchange_val(volatile T* at, T expected, T desired, int, int) {                 \
        EMULATOR_ATOMICALLY(                                                                                        \
            at, __atomic_compare_exchange_n(plain, &expected, desired, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)); \
        return expected;                                                                                            \
    }
extern "C" {
EMULATOR_ATOMICS(8, uint8_t)
EMULATOR_ATOMICS(16, uint16_t)
EMULATOR_ATOMICS(32, uint32_t)
EMULATOR_ATOMICS(64, uint64_t)
void __tsan_atomic_thread_fence(int) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
void __tsan_atomic_signal_fence(int) {}
}
#undef EMULATOR_ATOMICS
#undef EMULATOR_COMPARE
#undef EMULATOR_FETCH
#undef EMULATOR_ATOMICALLY
