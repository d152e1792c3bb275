// A fiber: a function with a stack of its own that can stop in the middle and be resumed. One for each CUDA thread.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <mutex>
#include <new>
#include <vector>

#include "../cuda.hpp"

namespace emulator {

// The stacks of all fibers of the process lie in one range of addresses. So an address alone says whether it is in one
// of them, and a stack that a launch has used serves the next one.
class Stacks {
  public:
    static char* take() {
        const std::lock_guard lock(mutex_);
        if (!free_.empty()) {
            char* stack = free_.back();
            free_.pop_back();
            return stack;
        }
        if (!begin_) reserve();
        if (used_ == bytes_) throw std::bad_alloc();
        auto* stack = reinterpret_cast<char*>(begin_ + used_);
        // The lowest page stays inaccessible: an overflow stops there, not in the neighbour's stack. But every such
        // page is an entry in the process's table of memory areas, of which Linux allows 65530 for everything, so
        // stacks beyond kGuarded have none.
        const std::size_t guard = used_ < kGuarded * kStackBytes ? page() : 0;
        if (mprotect(stack + guard, kStackBytes - guard, PROT_READ | PROT_WRITE)) throw std::bad_alloc();
        used_ += kStackBytes;
        return stack;
    }
    static void give_back(char* stack) {
        const std::lock_guard lock(mutex_);
        free_.push_back(stack);
    }
    static bool holds(uintptr_t address) { return address - begin_ < bytes_; }
    // Of each stack, whether its thread's local variables are watched (Thread::watch). It stands here, and not in the
    // thread, because the hooks ask for it so often: a cache line has the answers of two warps.
    [[gnu::always_inline]] static bool& watched(uintptr_t address) {
        // As many stacks as follow one another have different places. An address that is in none has the place of one.
        return watched_[address / kStackBytes % kMost];
    }
    static std::size_t page() {
        static const auto bytes = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
        return bytes;
    }

  private:
    // Addresses only: memory is used where a stack is. Where so many are not to be had, fewer are tried.
    static void reserve() {
        for (std::size_t bytes = kMost * kStackBytes; bytes >= kStackBytes * 2048; bytes /= 4) {
            void* range =
                mmap(nullptr, bytes + kStackBytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | kNoReserve, -1, 0);
            if (range == MAP_FAILED) continue;
            begin_ = (reinterpret_cast<uintptr_t>(range) + kStackBytes - 1) / kStackBytes * kStackBytes;
            bytes_ = bytes;
            return;
        }
        throw std::bad_alloc();
    }

#ifdef MAP_NORESERVE
    static constexpr int kNoReserve = MAP_NORESERVE;
#else
    static constexpr int kNoReserve = 0;
#endif
    static constexpr std::size_t kGuarded = 4096;
    static constexpr std::size_t kMost = std::size_t{1} << 18;
    static inline std::array<bool, kMost> watched_{};
    static inline uintptr_t begin_ = 0;
    static inline std::size_t bytes_ = 0, used_ = 0;
    static inline std::vector<char*> free_;
    static inline std::mutex mutex_;
};

// switch_stack saves the registers that a called function has to keep on the caller's stack, keeps that stack's pointer
// in *left, and does resume_stack(other). resume_stack takes the registers from another stack and returns to who called
// switch_stack there. Machine code, because swapcontext makes a system call for each switch, and some systems lack it.
extern "C" {
[[gnu::visibility("hidden")]] void switch_stack(void** left, void* other) __asm__("emulator_switch_stack");
[[gnu::visibility("hidden")]] void resume_stack() __asm__(
    "emulator_resume_stack");  // not to be called: a place to go to with a stack's pointer
}
#ifdef __APPLE__
#define EMULATOR_BEGIN ".text\n.private_extern emulator_switch_stack\n.private_extern emulator_resume_stack\n"
#define EMULATOR_END ""
#else
#define EMULATOR_BEGIN ".pushsection .text\n.hidden emulator_switch_stack\n.hidden emulator_resume_stack\n"
#define EMULATOR_END ".popsection\n"
#endif
#if defined(__x86_64__)
constexpr std::size_t kSavedRegisters = 6, kReturnsAt = 6;  // words on a stack that is left; which of them is where to
__asm__(EMULATOR_BEGIN R"(
.globl emulator_switch_stack
.globl emulator_resume_stack
emulator_switch_stack:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
emulator_resume_stack:
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
)" EMULATOR_END);
#elif defined(__aarch64__)
constexpr std::size_t kSavedRegisters = 20, kReturnsAt = 1;
__asm__(EMULATOR_BEGIN R"(
.globl emulator_switch_stack
.globl emulator_resume_stack
.p2align 2
emulator_switch_stack:
    sub sp, sp, #160
    stp x29, x30, [sp]
    stp x19, x20, [sp, #16]
    stp x21, x22, [sp, #32]
    stp x23, x24, [sp, #48]
    stp x25, x26, [sp, #64]
    stp x27, x28, [sp, #80]
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mov x9, sp
    str x9, [x0]
    mov sp, x1
emulator_resume_stack:
    ldp x29, x30, [sp]
    ldp x19, x20, [sp, #16]
    ldp x21, x22, [sp, #32]
    ldp x23, x24, [sp, #48]
    ldp x25, x26, [sp, #64]
    ldp x27, x28, [sp, #80]
    ldp d8, d9, [sp, #96]
    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    add sp, sp, #160
    ret
)" EMULATOR_END);
#else
#error "The emulator runs on x86-64 and on 64-bit Arm: its fibers switch stacks in machine code."
#endif
#undef EMULATOR_BEGIN
#undef EMULATOR_END

// An address in the stack that the caller runs on. Unlike __builtin_frame_address, it makes no frame.
[[gnu::always_inline]] inline uintptr_t stack_pointer() {
    uintptr_t pointer;
#ifdef __x86_64__
    __asm__("mov %%rsp, %0" : "=r"(pointer));
#else
    __asm__("mov %0, sp" : "=r"(pointer));
#endif
    return pointer;
}

class Fiber {
  public:
    Fiber() : stack_(Stacks::take()) {}
    ~Fiber() { Stacks::give_back(stack_); }
    Fiber(const Fiber&) = delete;
    Fiber& operator=(const Fiber&) = delete;

    Indices& indices() { return indices_of(reinterpret_cast<uintptr_t>(stack_)); }
    bool guards(uintptr_t address) const { return address - reinterpret_cast<uintptr_t>(stack_) < Stacks::page(); }
    bool owns(uintptr_t address) const { return address - reinterpret_cast<uintptr_t>(stack_) < kStackBytes; }

    // The next resume() begins function(argument). Whatever the fiber was doing is forgotten.
    void start(void (*function)(void*), void* argument) {
        function_ = function;
        argument_ = argument;
        fresh_ = true;
    }

    // Runs the fiber until it, or one that it has handed over to, suspends or its function returns.
    void resume() {
        prepare();
        switch_stack(&resumer_, self_);
    }

    // Called on the fiber: stops it, and `next` goes on in its place, until that one suspends. The two have often
    // stopped in the same functions, and then the processor predicts their returns.
    void hand_over(Fiber& next) {
        next.prepare();
        next.resumer_ = resumer_;
        switch_stack(&self_, next.self_);
    }

    // Fetches what a fiber that has stopped needs first into the caches.
    void prefetch() const {
        for (std::size_t line = 0; line < kPrefetchedLines; ++line)
            __builtin_prefetch(static_cast<char*>(self_) + line * 64);
    }

    // Called on the fiber: stops it and returns from the resume() that was running it.
    void suspend() { switch_stack(&self_, resumer_); }
    bool& watched() const { return Stacks::watched(reinterpret_cast<uintptr_t>(stack_)); }
    // The stack of the resume() that runs the fiber: a signal handler that sends the OS thread to resume_stack with it
    // suspends the fiber for good.
    void* resumer() const { return resumer_; }

  private:
    static constexpr std::size_t kPrefetchedLines = 8;

    void prepare() {
        if (!fresh_) return;
        fresh_ = false;
        starting_ = this;
        self_ = first_frame();
    }
    static void enter() {
        Fiber* fiber = starting_;
        fiber->function_(fiber->argument_);
        fiber->suspend();
        __builtin_unreachable();
    }
    // What switch_stack leaves on a stack, so that it "returns" to enter(). Above it is the return address of enter(),
    // 0, where debuggers stop. On entry to a function, the stack is a multiple of 16 bytes before the return address.
    void* first_frame() {
        constexpr std::size_t kWords = kSavedRegisters + 2;
        static_assert(sizeof(Indices) % 16 == 0 && kWords % 2 == 0);
        auto* frame = reinterpret_cast<uintptr_t*>(&indices()) - kWords;
        std::fill_n(frame, kWords, uintptr_t{0});
        frame[kReturnsAt] = reinterpret_cast<uintptr_t>(&Fiber::enter);
        return frame;
    }

    static inline thread_local Fiber* starting_ = nullptr;
    char* stack_;
    void (*function_)(void*) = nullptr;
    void* argument_ = nullptr;
    bool fresh_ = true;
    void *self_ = nullptr, *resumer_ = nullptr;  // the stacks' pointers while they are left
};

}  // namespace emulator
