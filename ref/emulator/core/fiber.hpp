// A fiber: a function with a stack of its own that can stop in the middle and be resumed. One for each CUDA thread.
#pragma once

#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

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
        // The lowest page stays inaccessible: an overflow stops there, not in the neighbour's stack.
        if (mprotect(stack + page(), kStackBytes - page(), PROT_READ | PROT_WRITE)) throw std::bad_alloc();
        used_ += kStackBytes;
        return stack;
    }
    static void give_back(char* stack) {
        const std::lock_guard lock(mutex_);
        free_.push_back(stack);
    }
    static bool holds(uintptr_t address) { return address - begin_ < bytes_; }
    static std::size_t page() {
        static const auto bytes = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
        return bytes;
    }

  private:
    // Addresses only: memory is used where a stack is. Where so many are not to be had, fewer are tried.
    static void reserve() {
        for (std::size_t bytes = std::size_t{1} << 36; bytes >= kStackBytes * 2048; bytes /= 4) {
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
    static inline uintptr_t begin_ = 0;
    static inline std::size_t bytes_ = 0, used_ = 0;
    static inline std::vector<char*> free_;
    static inline std::mutex mutex_;
};

// makecontext starts a fiber on its own stack. From then on _setjmp and _longjmp switch, because swapcontext makes a
// system call at every switch.
class Fiber {
  public:
    Fiber() : stack_(Stacks::take()) {}
    ~Fiber() { Stacks::give_back(stack_); }
    Fiber(const Fiber&) = delete;
    Fiber& operator=(const Fiber&) = delete;

    Indices& indices() { return *reinterpret_cast<Indices*>(stack_ + kStackBytes - sizeof(Indices)); }
    bool guards(uintptr_t address) const { return address - reinterpret_cast<uintptr_t>(stack_) < Stacks::page(); }
    bool owns(uintptr_t address) const { return address - reinterpret_cast<uintptr_t>(stack_) < kStackBytes; }

    // The next resume() begins function(argument). Whatever the fiber was doing is forgotten.
    void start(void (*function)(void*), void* argument) {
        function_ = function;
        argument_ = argument;
        fresh_ = true;
    }

    // Runs the fiber until it suspends or its function returns.
    void resume() {
        if (_setjmp(resumer_)) return;
        if (!fresh_) _longjmp(self_, 1);
        fresh_ = false;
        starting_ = this;
        getcontext(&context_);
        context_.uc_stack.ss_sp = stack_;
        context_.uc_stack.ss_size = kStackBytes - sizeof(Indices);
        context_.uc_link = nullptr;
        makecontext(&context_, &Fiber::enter, 0);
        setcontext(&context_);
    }

    // Called on the fiber: stops it and returns from the resume() that was running it.
    void suspend() {
        if (!_setjmp(self_)) _longjmp(resumer_, 1);
    }

  private:
    static void enter() {
        Fiber* fiber = starting_;
        fiber->function_(fiber->argument_);
        _longjmp(fiber->resumer_, 1);
    }

    static inline thread_local Fiber* starting_ = nullptr;
    char* stack_;
    void (*function_)(void*) = nullptr;
    void* argument_ = nullptr;
    bool fresh_ = true;
    ucontext_t context_;
    jmp_buf self_, resumer_;
};

}  // namespace emulator
