// Leaving one stack for another: what a fiber is made of.
#pragma once

#include <cstddef>
#include <cstdint>

namespace emulator {

// Where a suspended stack goes on: its stack pointer, below which the registers lie that a function must preserve.
using Context = void*;

// Stores where the caller's stack goes on in *from, and goes on with the other one.
extern "C" void emulator_switch(Context* from, Context to) __asm__("emulator_switch");

#if defined(__x86_64__)
constexpr std::size_t kSavedWords = 6;
__asm__(R"(
    .text
    .p2align 4
emulator_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
)");
#elif defined(__aarch64__)
constexpr std::size_t kSavedWords = 20;
__asm__(R"(
    .text
    .p2align 2
emulator_switch:
    sub sp, sp, #160
    stp d8, d9, [sp]
    stp d10, d11, [sp, #16]
    stp d12, d13, [sp, #32]
    stp d14, d15, [sp, #48]
    stp x19, x20, [sp, #64]
    stp x21, x22, [sp, #80]
    stp x23, x24, [sp, #96]
    stp x25, x26, [sp, #112]
    stp x27, x28, [sp, #128]
    stp x29, x30, [sp, #144]
    mov x2, sp
    str x2, [x0]
    mov sp, x1
    ldp d8, d9, [sp]
    ldp d10, d11, [sp, #16]
    ldp d12, d13, [sp, #32]
    ldp d14, d15, [sp, #48]
    ldp x19, x20, [sp, #64]
    ldp x21, x22, [sp, #80]
    ldp x23, x24, [sp, #96]
    ldp x25, x26, [sp, #112]
    ldp x27, x28, [sp, #128]
    ldp x29, x30, [sp, #144]
    add sp, sp, #160
    ret
)");
#else
#error "the emulator switches stacks on x86-64 and aarch64"
#endif

// A context that begins enter(), which never returns, on the stack that ends at `end`.
inline Context begin_at(void* end, void (*enter)()) {
    auto* words = reinterpret_cast<uintptr_t*>(reinterpret_cast<uintptr_t>(end) & ~uintptr_t{15});
#if defined(__x86_64__)
    *--words = 0;  // the address that a call of enter() would have put there
    *--words = reinterpret_cast<uintptr_t>(enter);
    for (std::size_t i = 0; i < kSavedWords; ++i) *--words = 0;
#else
    *--words = reinterpret_cast<uintptr_t>(enter);  // x30
    for (std::size_t i = 1; i < kSavedWords; ++i) *--words = 0;
#endif
    return words;
}

}  // namespace emulator
