// A kernel that crashes or never ends: its launch ends with a fault, and the process goes on.
//
// A kernel's code holds no locks and owns nothing, so a signal handler may leave it for good.
#pragma once

#include <pthread.h>
#include <signal.h>
#include <time.h>
#include <ucontext.h>

#include <array>
#include <condition_variable>
#include <list>
#include <memory>
#include <mutex>
#include <system_error>
#include <thread>

#include "cluster.hpp"

namespace emulator {

constexpr int kTooLong = SIGURG;  // sent by a Watchdog; a process that does not know it ignores it

// The machine instruction at which a signal came.
inline const void* interrupted(const void* context) {
    const auto* machine = static_cast<const ucontext_t*>(context);
#if defined(__linux__) && defined(__x86_64__)
    return reinterpret_cast<const void*>(machine->uc_mcontext.gregs[REG_RIP]);
#elif defined(__linux__) && defined(__aarch64__)
    return reinterpret_cast<const void*>(machine->uc_mcontext.pc);
#elif defined(__APPLE__) && defined(__arm64__)
    return reinterpret_cast<const void*>(machine->uc_mcontext->__ss.__pc);
#elif defined(__APPLE__)
    return reinterpret_cast<const void*>(machine->uc_mcontext->__ss.__rip);
#else
    return nullptr;
#endif
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
    static constexpr std::array kSignals{SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, kTooLong};

    static const char* reason(int signal) {
        switch (signal) {
            case SIGFPE:
                return "divides an integer by zero, or INT_MIN by -1";
            case SIGILL:
            case SIGTRAP:
                return "reaches code that is not to be reached, such as the end of a function that returns a value";
            default:
                return "uses an address that does not exist";
        }
    }

    static void handle(int signal, siginfo_t* info, void* context) {
        Thread* thread = current_thread;
        const void* from = interrupted(context);
        if (signal == kTooLong) {
            // The emulator's own code, which holds locks, is not left, and a jump to it has no source line: a later
            // signal finds the kernel's.
            Dl_info found;
            if (!thread || !current_cluster->memory->runs(from) || !dladdr(from, &found) || !found.dli_sname) return;
            thread->from = from;
            fail(Fault::endless_loop, "has run for a second without an instruction: an endless loop");
        }
        if (!thread) {  // not in a kernel: the signal happens again, with the handler that was there before
            for (std::size_t i = 0; i < kSignals.size(); ++i)
                if (kSignals[i] == signal) sigaction(signal, &earlier_[i], nullptr);
            return;
        }
        const auto address = reinterpret_cast<uint64_t>(info->si_addr);
        if (current_cluster->memory->runs(from)) thread->from = from;
        if (thread->fiber.guards(address))
            fail(Fault::crashed, "has used up its stack: a recursion, or local arrays of more than 100 KB");
        fail_at(Fault::crashed, signal == SIGSEGV || signal == SIGBUS ? address : 0, "%s", reason(signal));
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
            watchdog_.watched_.push_back({&cluster, pthread_self(), 0, 0});
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
#ifdef __linux__
        clockid_t clock;
        if (pthread_getcpuclockid(thread, &clock) == 0) clock_gettime(clock, &now);
#else
        (void)thread;  // the time on the wall, which is longer
        clock_gettime(CLOCK_MONOTONIC, &now);
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
