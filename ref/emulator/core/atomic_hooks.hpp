// What -fsanitize=thread makes of a kernel's C++ atomics (std::atomic, std::atomic_ref and the compilers' __atomic
// functions): calls of these functions. CUDA's own atomics are in plain.hpp.
#pragma once

#include "lanes.hpp"
#include "plain.hpp"

namespace emulator {

// The address, after the checks of an atomic operation; those of local variables and of the launcher need none.
template <typename T>
[[gnu::always_inline]] inline T* atomically(const volatile T* pointer, const void* from) {
    auto* plain = const_cast<T*>(pointer);
    if (!Stacks::holds(reinterpret_cast<uintptr_t>(__builtin_frame_address(0)))) return plain;
    Thread& thread = self();
    if (thread.fiber.owns(reinterpret_cast<uintptr_t>(plain))) return plain;
    thread.cluster->enter(thread, from);
    use_atomically(plain, sizeof(T));
    return plain;
}

}  // namespace emulator

// The last arguments are C++'s memory orders: the strictest is right for all.
#define EMULATOR_FETCH(bits, T, name)                                                                                 \
    T __tsan_atomic##bits##_fetch_##name(volatile T* at, T value, int) {                                              \
        return __atomic_fetch_##name(emulator::atomically(at, __builtin_return_address(0)), value, __ATOMIC_SEQ_CST); \
    }
#define EMULATOR_COMPARE(bits, T, strength)                                                                          \
    int __tsan_atomic##bits##_compare_exchange_##strength(volatile T* at, T* expected, T desired, int, int) {        \
        return __atomic_compare_exchange_n(emulator::atomically(at, __builtin_return_address(0)), expected, desired, \
                                           false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);                               \
    }
#define EMULATOR_ATOMICS(bits, T)                                                                                     \
    T __tsan_atomic##bits##_load(const volatile T* at, int) {                                                         \
        return __atomic_load_n(emulator::atomically(at, __builtin_return_address(0)), __ATOMIC_SEQ_CST);              \
    }                                                                                                                 \
    void __tsan_atomic##bits##_store(volatile T* at, T value, int) {                                                  \
        __atomic_store_n(emulator::atomically(at, __builtin_return_address(0)), value, __ATOMIC_SEQ_CST);             \
    }                                                                                                                 \
    T __tsan_atomic##bits##_exchange(volatile T* at, T value, int) {                                                  \
        return __atomic_exchange_n(emulator::atomically(at, __builtin_return_address(0)), value, __ATOMIC_SEQ_CST);   \
    }                                                                                                                 \
    EMULATOR_FETCH(bits, T, add)                                                                                      \
    EMULATOR_FETCH(bits, T, sub)                                                                                      \
    EMULATOR_FETCH(bits, T, and)                                                                                      \
    EMULATOR_FETCH(bits, T, or)                                                                                       \
    EMULATOR_FETCH(bits, T, xor)                                                                                      \
    EMULATOR_FETCH(bits, T, nand)                                                                                     \
    EMULATOR_COMPARE(bits, T, strong)                                                                                 \
    EMULATOR_COMPARE(bits, T, weak)                                                                                   \
    T __tsan_atomic##bits##_compare_exchange_val(volatile T* at, T expected, T desired, int, int) {                   \
        __atomic_compare_exchange_n(emulator::atomically(at, __builtin_return_address(0)), &expected, desired, false, \
                                    __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);                                              \
        return expected;                                                                                              \
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
