// A kernel that crashes or never ends: its launch ends with a fault, and the process goes on.
//
// A kernel's code holds no locks and owns nothing, so a signal handler may leave it for good.
#pragma once

#include <pthread.h>
#include <signal.h>
#include <sys/ucontext.h>
#include <time.h>
#ifdef __APPLE__
#include <mach/mach.h>
#endif

#include <array>
#include <condition_variable>
#include <list>
#include <memory>
#include <mutex>
#include <system_error>
#include <thread>

#include "launcher.hpp"
#include "reports.hpp"

namespace emulator {

// Two registers of the code that a signal has interrupted. It goes on with what they are when the handler returns.
class Interrupted {
  public:
    explicit Interrupted(void* context) : machine_(static_cast<ucontext_t*>(context)->uc_mcontext) {}
#if defined(__linux__) && defined(__x86_64__)
    auto& instruction() const { return machine_.gregs[REG_RIP]; }
    auto& stack() const { return machine_.gregs[REG_RSP]; }
#elif defined(__linux__) && defined(__aarch64__)
    auto& instruction() const { return machine_.pc; }
    auto& stack() const { return machine_.sp; }
#elif defined(__APPLE__) && defined(__arm64__)
    auto& instruction() const { return machine_->__ss.__pc; }
    auto& stack() const { return machine_->__ss.__sp; }
#elif defined(__APPLE__)
    auto& instruction() const { return machine_->__ss.__rip; }
    auto& stack() const { return machine_->__ss.__rsp; }
#else
#error "The emulator runs on Linux and macOS: it has to know where a signal has interrupted a kernel."
#endif

    // Whether it waits in a system call, which goes on when the handler returns, or has just done so.
    bool in_system_call() const {
#ifdef __x86_64__
        constexpr uint16_t kCall = 0x050F;
        using Code = uint16_t;
        const auto is_call = [](Code code) { return code == kCall; };
#else
        constexpr uint32_t kCall = 0xD4000001, kNumber = 0xFFFF << 5;
        using Code = uint32_t;
        const auto is_call = [](Code code) { return (code & ~kNumber) == kCall; };
#endif
        Code around[2];
        std::memcpy(around, reinterpret_cast<const Code*>(static_cast<uintptr_t>(instruction())) - 1, sizeof around);
        return is_call(around[0]) || is_call(around[1]);
    }

  private:
    mcontext_t& machine_;
};

template <typename Register, typename Place>
void set(Register& into, Place* place) {
    into = static_cast<Register>(reinterpret_cast<uintptr_t>(place));
}

// While an object of this class lives, its OS thread has a stack for signal handlers, and the handlers are in place.
class Signals {
  public:
    Signals() : stack_(new char[kBytes]) {
        stack_t mine{};
        mine.ss_sp = stack_.get();
        mine.ss_size = kBytes;
        sigaltstack(&mine, &before_);
        const std::lock_guard lock(mutex_);
        if (users_++) return;
        struct sigaction action{};
        action.sa_sigaction = &Signals::handle;
        action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER | SA_RESTART;
        for (std::size_t i = 0; i < kSignals.size(); ++i) sigaction(kSignals[i], &action, &earlier_[i]);
    }
    ~Signals() {
        {
            const std::lock_guard lock(mutex_);
            if (--users_ == 0)
                for (std::size_t i = 0; i < kSignals.size(); ++i) sigaction(kSignals[i], &earlier_[i], nullptr);
        }
        sigaltstack(&before_, nullptr);
    }
    Signals(const Signals&) = delete;
    Signals& operator=(const Signals&) = delete;

  private:
    static constexpr std::size_t kBytes = 64 * 1024;
    static constexpr int kWithoutSymbol = 3;
    static constexpr std::array kSignals{SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGABRT, kTooLong};

    static const char* reason(int signal) {
        switch (signal) {
            case SIGFPE:
                return "divides an integer by zero, or INT_MIN by -1";
            case SIGILL:
            case SIGTRAP:
                return "reaches code that is not to be reached, such as the end of a function that returns a value";
            case SIGABRT:
                return "is aborted, as by an exception that nothing catches";
            default:
                return "uses an address that does not exist";
        }
    }

    // A jump from the kernel to the emulator has no symbol and no source line, so a later signal is waited for. But a
    // function that is static has no symbol either: it is where signals find the thread again and again.
    static bool is_function(const void* from) {
        static thread_local uint64_t turn = 0;
        static thread_local int without = 0;
        Dl_info found;
        if (dladdr(from, &found) && found.dli_sname) return true;
        if (turn != current_cluster->turn()) without = 0;
        turn = current_cluster->turn();
        return ++without > kWithoutSymbol;
    }

    static void handle(int signal, siginfo_t* info, void* context) {
        const Interrupted interrupted(context);
        Thread* thread = current_thread;
        const auto* from = reinterpret_cast<const void*>(static_cast<uintptr_t>(interrupted.instruction()));
        if (signal == kTooLong) {
            // The emulator's own code, which holds locks, is not left: the thread's next hook ends it, or a later
            // signal that finds the kernel's code.
            if (!thread) return end_launcher(interrupted, from);
            thread->overdue = thread->fiber.watched() = true;
            if (!current_cluster->memory->runs(from) || !is_function(from)) return;
            thread->from = from;
            return end(interrupted, Fault::endless_loop, 0, kEndless);
        }
        if (Launcher* launcher = thread ? nullptr : Launcher::running()) {
            constexpr uintptr_t kNear = 1 << 16;
            const auto address = reinterpret_cast<uintptr_t>(info->si_addr);
            const auto stack = static_cast<uintptr_t>(interrupted.stack());
            const bool overflow = signal != SIGFPE && address - (stack - kNear) < 2 * kNear;
            launcher->note(overflow ? "has used up its stack" : reason(signal), from);
            return leave(interrupted, *launcher);
        }
        if (!thread) {
            Launcher::end_elsewhere(reason(signal), from);
            // The emulator's own: the signal happens again, with the handler that was there before.
            for (std::size_t i = 0; i < kSignals.size(); ++i)
                if (kSignals[i] == signal) sigaction(signal, &earlier_[i], nullptr);
            return;
        }
        const auto address = reinterpret_cast<uintptr_t>(info->si_addr);
        if (current_cluster->memory->runs(from)) thread->from = from;
        if (thread->fiber.guards(address))
            return end(interrupted, Fault::crashed, 0,
                       "has used up its stack: a recursion, or local arrays of more than 100 KB");
        end(interrupted, Fault::crashed, signal == SIGSEGV || signal == SIGBUS ? address : 0, reason(signal));
    }

    // The running thread's last moment: when the handler returns, the scheduler goes on in its place. A jump out of the
    // handler would do the same on Linux; macOS would take it for still running, and not give the next one its stack.
    static void end(const Interrupted& interrupted, Fault what, uint64_t address, const char* text) {
        note(what, address, nullptr, text);
        set(interrupted.instruction(), &resume_stack);
        set(interrupted.stack(), current_thread->fiber.resumer());
    }

    static void leave(const Interrupted& interrupted, const Launcher& launcher) {
        set(interrupted.instruction(), &Launcher::leave);
        set(interrupted.stack(), reinterpret_cast<void*>(launcher.stack()));
    }
    // A thread that the launcher has started has crashed. The launcher ends where it runs code of its own, or waits;
    // the C library's code, which may hold locks, is not left, and the signal comes again.
    static void end_launcher(const Interrupted& interrupted, const void* from) {
        const Launcher* launcher = Launcher::running();
        if (launcher && (launcher->has(from) || interrupted.in_system_call()) && launcher->note_elsewhere())
            leave(interrupted, *launcher);
    }

    std::unique_ptr<char[]> stack_;
    stack_t before_{};
    static inline std::mutex mutex_;
    static inline int users_ = 0;
    static inline std::array<struct sigaction, kSignals.size()> earlier_{};
};

// Interrupts an OS thread that has spent kSeconds of its CPU time in one turn of one CUDA thread. A loop that uses
// memory ends by Cluster::spin(); this is for one that does not.
class Watchdog {
  public:
    Watchdog() {
        try {
            watcher_ = std::thread([this] { watch(); });
        } catch (const std::system_error&) {  // no thread is to be had: then an endless loop has no end
        }
    }
    ~Watchdog() {
        {
            const std::lock_guard lock(mutex_);
            ended_ = true;
        }
        wake_.notify_all();
        if (watcher_.joinable()) watcher_.join();
    }
    // While an object of this class lives, the calling OS thread runs the cluster.
    class Watching {
      public:
        Watching(Watchdog& watchdog, const Cluster& cluster) : watchdog_(watchdog), cluster_(cluster) {
            const std::lock_guard lock(watchdog_.mutex_);
            watchdog_.watched_.push_back({&cluster, pthread_self(), 0, cpu_seconds(pthread_self())});
        }
        ~Watching() {
            const std::lock_guard lock(watchdog_.mutex_);
            watchdog_.watched_.remove_if([this](const Watched& one) { return one.cluster == &cluster_; });
        }
        Watching(const Watching&) = delete;
        Watching& operator=(const Watching&) = delete;

      private:
        Watchdog& watchdog_;
        const Cluster& cluster_;
    };

  private:
    static constexpr double kSeconds = 1;
    struct Watched {
        const Cluster* cluster;
        pthread_t thread;
        uint64_t turn;
        double since;  // CPU time of the thread when that turn was seen first
    };

    static double cpu_seconds(pthread_t thread) {
        timespec now{};
#ifdef __APPLE__
        thread_basic_info used{};
        mach_msg_type_number_t words = THREAD_BASIC_INFO_COUNT;
        thread_info(pthread_mach_thread_np(thread), THREAD_BASIC_INFO, reinterpret_cast<thread_info_t>(&used), &words);
        now.tv_sec = used.user_time.seconds;
        now.tv_nsec = 1000 * used.user_time.microseconds;
#else
        clockid_t clock;
        if (pthread_getcpuclockid(thread, &clock) == 0) clock_gettime(clock, &now);
#endif
        return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
    }

    void watch() {
        std::unique_lock lock(mutex_);
        while (!wake_.wait_for(lock, std::chrono::milliseconds(250), [this] { return ended_; })) {
            for (Watched& one : watched_) {
                const uint64_t turn = one.cluster->turn();
                const double now = cpu_seconds(one.thread);
                if (turn != one.turn)
                    one.turn = turn, one.since = now;
                else if (now - one.since > kSeconds)
                    pthread_kill(one.thread, kTooLong);
            }
        }
    }

    std::mutex mutex_;
    std::condition_variable wake_;
    std::list<Watched> watched_;
    bool ended_ = false;
    std::thread watcher_;
};

}  // namespace emulator
