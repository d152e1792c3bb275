// A fiber: a function with a stack of its own that can stop in the middle and be resumed. One for each CUDA thread.
#pragma once

#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <cstddef>
#include <new>

namespace emulator {

// makecontext starts a fiber on its own stack. From then on _setjmp and _longjmp switch, because swapcontext makes a
// system call at every switch.
class Fiber {
  public:
    Fiber() : page_(static_cast<std::size_t>(sysconf(_SC_PAGESIZE))) {
        stack_ = mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (stack_ == MAP_FAILED) throw std::bad_alloc();
        mprotect(stack_, page_, PROT_NONE);  // an overflow stops here, not in the neighbour's stack
    }
    ~Fiber() { munmap(stack_, kStackBytes); }
    Fiber(const Fiber&) = delete;
    Fiber& operator=(const Fiber&) = delete;

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
        context_.uc_stack.ss_size = kStackBytes;
        context_.uc_link = nullptr;
        makecontext(&context_, &Fiber::enter, 0);
        setcontext(&context_);
    }

    // Called on the fiber: stops it and returns from the resume() that was running it.
    void suspend() {
        if (!_setjmp(self_)) _longjmp(resumer_, 1);
    }

  private:
    static constexpr std::size_t kStackBytes = 128 * 1024;

    static void enter() {
        Fiber* fiber = starting_;
        fiber->function_(fiber->argument_);
        _longjmp(fiber->resumer_, 1);
    }

    static inline thread_local Fiber* starting_ = nullptr;
    std::size_t page_;
    void* stack_;
    void (*function_)(void*) = nullptr;
    void* argument_ = nullptr;
    bool fresh_ = true;
    ucontext_t context_;
    jmp_buf self_, resumer_;
};

}  // namespace emulator
