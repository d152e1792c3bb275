// memcpy, memmove and memset of a kernel's library: copies of arrays and structs, which the compiler makes calls of
// them. The emulator compares their addresses with the launch's arrays, as it does with those of single loads and
// stores.
#pragma once

#include <cstddef>

// Not for the emulator itself, which is compiled without. On macOS a compiler that is new enough calls other functions
// by itself (core/hooks.hpp).
#ifdef __has_feature
#define EMULATOR_KERNEL __has_feature(thread_sanitizer)
#elif defined(__SANITIZE_THREAD__)
#define EMULATOR_KERNEL 1
#else
#define EMULATOR_KERNEL 0
#endif

#if EMULATOR_KERNEL && !defined(__APPLE__)
extern "C" {
void* emulator_copy(void* to, const void* from, std::size_t bytes, void* place) noexcept;
void* emulator_fill(void* to, int value, std::size_t bytes, void* place) noexcept;

// Names of their own, because the C library's headers declare the others.
[[gnu::weak, gnu::visibility("hidden")]] void* emulator_memcpy(void*, const void*, std::size_t) __asm__("memcpy");
[[gnu::weak, gnu::visibility("hidden")]] void* emulator_memmove(void*, const void*, std::size_t) __asm__("memmove");
[[gnu::weak, gnu::visibility("hidden")]] void* emulator_memset(void*, int, std::size_t) __asm__("memset");
void* emulator_memcpy(void* to, const void* from, std::size_t bytes) {
    return emulator_copy(to, from, bytes, __builtin_return_address(0));
}
void* emulator_memmove(void* to, const void* from, std::size_t bytes) {
    return emulator_copy(to, from, bytes, __builtin_return_address(0));
}
void* emulator_memset(void* to, int value, std::size_t bytes) {
    return emulator_fill(to, value, bytes, __builtin_return_address(0));
}
}
#endif
#undef EMULATOR_KERNEL
