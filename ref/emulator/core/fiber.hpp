// A fiber: a function with a stack of its own that can stop in the middle and be resumed. One for each CUDA thread.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <mutex>
#include <new>
#include <vector>

#include "../cuda.hpp"
#include "context.hpp"

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
        if (fresh_) {
            fresh_ = false;
            starting_ = this;
            self_ = begin_at(stack_ + kStackBytes - sizeof(Indices) - colour(), &Fiber::enter);
        }
        emulator_switch(&resumer_, self_);
    }

    // Called on the fiber: stops it and returns from the resume() that was running it.
    void suspend() { emulator_switch(&self_, resumer_); }

  private:
    // All stacks begin at the same distance from a large power of two, so their hottest bytes would share a few lines
    // of the caches. Therefore each of kColours neighbouring stacks begins kColourBytes lower than the one before.
    static constexpr std::size_t kColours = 64, kColourBytes = 1024 + 64;
    std::size_t colour() const { return reinterpret_cast<uintptr_t>(stack_) / kStackBytes % kColours * kColourBytes; }

    static void enter() {
        Fiber* fiber = starting_;
        fiber->function_(fiber->argument_);
        fiber->suspend();
    }

    static inline thread_local Fiber* starting_ = nullptr;
    char* stack_;
    void (*function_)(void*) = nullptr;
    void* argument_ = nullptr;
    bool fresh_ = true;
    Context self_ = nullptr, resumer_ = nullptr;
};

}  // namespace emulator
