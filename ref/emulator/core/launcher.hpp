// A launcher, which runs on the host: where it crashes, the launch ends with a fault, and the process goes on.
//
// Unlike a kernel, a launcher may own memory and locks when it crashes. They are lost. It may also start threads of its
// own. Where one of them crashes, it stops for good, and the launcher is ended, unless it ends by itself soon.
#pragma once

#include <dlfcn.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <unistd.h>
#include <unwind.h>

#include <algorithm>
#include <chrono>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "fiber.hpp"
#include "reports.hpp"

namespace emulator {

constexpr int kTooLong = SIGURG;  // sent by a Watchdog or a Launcher; a process that does not know it ignores it

// While an object of this class lives, the calling OS thread runs a launcher.
class Launcher {
  public:
    explicit Launcher(const void* function) : outer_(std::exchange(current, this)) {
        Dl_info found{};
        dladdr(function, &found);
        image_ = found.dli_fbase;
        session.library = found.dli_fname ? found.dli_fname : "";
        session.library_begin = reinterpret_cast<uintptr_t>(image_);
        const std::lock_guard lock(mutex_);
        all_.push_back(this);
    }
    ~Launcher() {
        current = outer_;
        const std::lock_guard lock(mutex_);
        std::erase(all_, this);
    }
    Launcher(const Launcher&) = delete;
    Launcher& operator=(const Launcher&) = delete;

    // While an object of this class lives, the launcher waits for clusters: what crashes is the emulator's own.
    class Waiting {
      public:
        Waiting() : of_(current) {
            if (of_) of_->waits_ = true;
        }
        ~Waiting() {
            if (of_) of_->waits_ = false;
        }
        Waiting(const Waiting&) = delete;
        Waiting& operator=(const Waiting&) = delete;

      private:
        Launcher* of_;
    };

    // While an object of this class lives, memory is copied for the launcher, if it is that which copies, at `from` in
    // its machine code.
    class Copying {
      public:
        explicit Copying(const void* from) : of_(running()) {
            if (of_) of_->copies_at_ = from;
        }
        ~Copying() {
            if (of_) of_->copies_at_ = nullptr;
        }
        Copying(const Copying&) = delete;
        Copying& operator=(const Copying&) = delete;

      private:
        Launcher* of_;
    };

    // The launcher of this OS thread, if what runs is that one's; else nullptr.
    static Launcher* running() { return current && !current->waits_ ? current : nullptr; }

    // What leaves it comes back here; to be called with setjmp.
    jmp_buf& back() { return back_; }
    // Where leave() may run: a place on the stack that the launcher's functions have had, of which no more is needed.
    // Processors count on a multiple of 16 bytes, on x86-64 before the return address.
    void stands_at(uintptr_t stack) { stack_ = (stack - kUnused) / 16 * 16 - kReturnAddress; }
    uintptr_t stack() const { return stack_; }
    // Ends the launcher, with what it has been noted to have done.
    [[noreturn]] static void leave() { longjmp(current->back_, 1); }

    // Notes what it has done, if no kernel that it has started was at fault before. `at`: the place in machine code,
    // that of the launcher or of a function that it has called.
    void note(const char* text, const void* at) const { note(text, at, ""); }
    // Notes what a thread of its own has done. Returns false if none has done anything.
    bool note_elsewhere() const {
        const std::lock_guard lock(mutex_);
        if (elsewhere_at_) note(elsewhere_, elsewhere_at_, "in a thread that it has started, ");
        return elsewhere_at_;
    }
    // The calling OS thread has crashed, at `at`. If a launcher of this process has started it, this does not return.
    static void end_elsewhere(const char* text, const void* at) {
        const Launcher* whose = nullptr;
        {
            const std::lock_guard lock(mutex_);
            for (Launcher* one : all_) {
                const void* place = one->found(at);
                if (!place) continue;
                whose = one;
                if (one->elsewhere_at_) break;
                std::snprintf(one->elsewhere_, sizeof one->elsewhere_, "%s", text);
                one->elsewhere_at_ = place;
                break;
            }
        }
        while (whose) {  // others of its threads, which may use its variables, have time to end
            std::this_thread::sleep_for(std::chrono::milliseconds(500));
            const std::lock_guard lock(mutex_);
            if (std::ranges::find(all_, whose) == all_.end()) break;
            pthread_kill(whose->thread_, kTooLong);
        }
        while (whose) pause();
    }
    // Whether the place is in the machine code of its library.
    bool has(const void* place) const {
        Dl_info found;
        return dladdr(place, &found) && found.dli_fbase == image_;
    }
    [[noreturn]] void fail(const char* text, const void* at) const {
        note(text, at);
        leave();
    }

  private:
    void note(const char* text, const void* at, const char* where) const {
        if (session.fault) return;
        session.fault = {
            Fault::crashed, std::string("emulator: the launcher, on the host, ") + where + text, {}, 0, mine(at)};
    }
    const void* mine(const void* place) const { return copies_at_ ? copies_at_ : found(place); }
    // The place, or where a function of the launcher's library has called the function that it is in.
    const void* found(const void* place) const {
        if (has(place)) return place;
        std::pair<const Launcher*, const void*> found{this, nullptr};
        _Unwind_Backtrace(
            [](_Unwind_Context* frame, void* into) {
                auto& [launcher, found] = *static_cast<std::pair<const Launcher*, const void*>*>(into);
                const auto* place = reinterpret_cast<const void*>(_Unwind_GetIP(frame));
                if (launcher->has(place)) found = place;
                return found ? _URC_END_OF_STACK : _URC_NO_REASON;
            },
            &found);
        return found.second;
    }

    static constexpr uintptr_t kUnused = 4096;
#ifdef __x86_64__
    static constexpr uintptr_t kReturnAddress = 8;  // bytes on the stack
#else
    static constexpr uintptr_t kReturnAddress = 0;  // in a register
#endif
    static inline thread_local Launcher* current = nullptr;
    Launcher* outer_;
    const void* image_ = nullptr;
    bool waits_ = false;
    const void* copies_at_ = nullptr;
    uintptr_t stack_ = 0;
    jmp_buf back_;
    const pthread_t thread_ = pthread_self();
    char elsewhere_[256] = "";            // what a thread that it has started has done
    const void* elsewhere_at_ = nullptr;  // and where, once it has
    static inline std::mutex mutex_;      // of the next, and of the two above
    static inline std::vector<Launcher*> all_;
};

}  // namespace emulator
