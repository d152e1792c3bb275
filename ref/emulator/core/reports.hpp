// How a fault is reported: whose it is, and what ends the run.
#pragma once

#include <unwind.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <string>
#include <vector>

#include "cluster.hpp"

namespace emulator {

// The thread that has this number in the cluster, or whose asynchronous writes have it.
inline const Thread& thread_of(uint32_t number) {
    if (const uint32_t first = current_cluster->actor(Cluster::Unit::thread_writes, 0); number >= first)
        number -= first;
    const auto of_block = static_cast<uint32_t>(current_cluster->shape().warps() * 32);
    return *current_cluster->blocks[number / of_block].threads[number % of_block];
}

inline ThreadName name_of_thread(uint32_t number) {
    const Thread& thread = thread_of(number);
    ThreadName name;
    std::snprintf(name.text, sizeof name.text, "thread %d of block %lld", thread.index,
                  static_cast<long long>(thread.block->index));
    return name;
}

// While an object of this class lives, a fault is one of the asynchronous instruction that was issued there, whoever
// carries it out: the scheduler, or a thread that waits for it.
class Issued {
  public:
    Issued(const Place& issuer, const void* from)
        : cluster_(*current_cluster), before_(std::exchange(cluster_.instruction, {issuer, from})) {}
    ~Issued() { cluster_.instruction = before_; }
    Issued(const Issued&) = delete;
    Issued& operator=(const Issued&) = delete;

  private:
    Cluster& cluster_;
    Cluster::Instruction before_;
};

// A place in the kernel's machine code. Python puts the source line there.
inline std::string place_of(const void* from) {
    if (!from) return "";
    Dl_info found{};
    dladdr(from, &found);
    char text[32];
    std::snprintf(text, sizeof text, " {+0x%llx}",
                  static_cast<unsigned long long>(reinterpret_cast<uintptr_t>(from) -
                                                  reinterpret_cast<uintptr_t>(found.dli_fbase)));
    return text;
}

// The calling thread executes an instruction that reads a tile otherwise than a TMA load has laid it out.
inline void note_misfit(const std::string& who, const char* what, const std::optional<Layouts::Misfit>& misfit) {
    if (!misfit || !current_cluster->orders()) return;
    current_cluster->note(who + place_of(self().from) + what + misfit->before + place_of(misfit->layout->from),
                          misfit->after);
}

constexpr const char* kEndless = "has run for a second without an instruction: an endless loop";

// A thread as the writer of an element of global memory, and the moment of such a writer of its block.
inline Writer writer(const Thread& thread) {
    return {thread.block->index, static_cast<uint32_t>(thread.index), current_cluster->orders() ? thread.moment : 0};
}
inline Moment moment_of(const Thread& mine, const Writer& of_block) {
    return {mine.number - static_cast<uint32_t>(mine.index) + of_block.thread, of_block.moment};
}

struct Stopped {};  // thrown by fail_at() when no thread is running

// Notes a fault of the running thread, after which the scheduler ends the run. Not of self(): a signal handler runs on
// a stack of its own.
inline void note(Fault what, uint64_t address, const void* other, const std::string& text,
                 std::vector<const void*> callers = {}) {
    const Thread& thread = *current_thread;
    const Place place = thread.place();
    current_cluster->end_with({what, where(place) + text, place, address, thread.from, other, std::move(callers)});
}

// Where the functions were called that the running thread is in, up to the kernel, the innermost first. Functions that
// the compiler has copied into others have no call.
inline std::vector<const void*> callers() {
    std::vector<const void*> found;
    _Unwind_Backtrace(
        [](_Unwind_Context* frame, void* into) {
            auto& found = *static_cast<std::vector<const void*>*>(into);
            const auto* place = reinterpret_cast<const void*>(_Unwind_GetIP(frame));
            const auto* function = reinterpret_cast<const void*>(_Unwind_GetRegionStart(frame));
            if (current_cluster->memory->runs(place))
                found.push_back(place);
            else if (!found.empty())
                return _URC_END_OF_STACK;
            return function == current_cluster->call().kernel ? _URC_END_OF_STACK : _URC_NO_REASON;
        },
        &found);
    // A store may be found at fault only when its thread does something else: then it is elsewhere by now.
    if (found.empty() || found.front() != current_thread->from) return {};
    found.erase(found.begin());
    return found;
}

[[noreturn]] inline void report(Fault what, uint64_t address, const void* other, const char* format,
                                va_list arguments) {
    char text[2048];
    std::vsnprintf(text, sizeof text, format, arguments);
    const Cluster::Instruction& issued = current_cluster->instruction;
    const Place place = issued.from      ? issued.issuer
                        : current_thread ? current_thread->place()
                                         : current_cluster->issuer();
    const auto block = std::ranges::find(current_cluster->blocks, place.block, &Block::index);
    std::string message = text;
    if (block != current_cluster->blocks.end()) {
        if (what == Fault::data_race || what == Fault::missing_proxy_fence || what == Fault::released_too_early)
            message += block->mixed_barrier;
        message = with_names(message, [&](uint64_t at) { return block->memory.name_at(at); });
    }
    if (issued.from || !current_thread)
        current_cluster->end_with({what, where(place) + message, place, address, issued.from, other});
    else
        note(what, address, other, message, callers());
    if (!current_thread) throw Stopped{};
    current_thread->fiber.suspend();  // for good
    __builtin_unreachable();
}

[[noreturn]] inline void fail_at(Fault what, uint64_t address, const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    report(what, address, nullptr, format, arguments);
}
[[noreturn]] inline void fail_race(Fault what, uint64_t address, const void* other, const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    report(what, address, other, format, arguments);
}

}  // namespace emulator
