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

inline ThreadName name_of_thread(uint32_t number) {
    const auto of_a_block = static_cast<uint32_t>(current_cluster->shape().warps()) * 32;
    const uint32_t first_write = current_cluster->actor(Cluster::Unit::thread_writes, 0);
    const bool writes = number >= first_write;
    if (writes) number -= first_write;
    ThreadName name;
    std::snprintf(name.text, sizeof name.text, "%sthread %u of block %lld",
                  writes ? "an asynchronous copy or store of " : "", number % of_a_block,
                  static_cast<long long>(current_cluster->blocks[number / of_a_block].index));
    name.asynchronous = writes;
    return name;
}

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

struct Stopped {};  // thrown by fail_at() when no thread is running

// Notes a fault of the running thread, after which the scheduler ends the run. Not of self(): a signal handler runs on
// a stack of its own.
inline void note(Fault what, uint64_t address, const void* other, const std::string& text,
                 std::vector<const void*> callers = {}) {
    const Thread& thread = *current_thread;
    const Place place = thread.place();
    char where[96];
    std::snprintf(where, sizeof where, "block %lld, warp %d, lane %d: ", static_cast<long long>(place.block),
                  place.warp, place.lane);
    current_cluster->end_with({what, where + text, place, address, thread.from, other, std::move(callers)});
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
    char text[512];
    std::vsnprintf(text, sizeof text, format, arguments);
    const int64_t index = current_thread ? current_thread->block->index : current_cluster->issuer().block;
    const auto block = std::ranges::find(current_cluster->blocks, index, &Block::index);
    std::string message = text;
    if (block != current_cluster->blocks.end()) {
        if (what == Fault::data_race || what == Fault::missing_proxy_fence || what == Fault::released_too_early)
            message += block->mixed_barrier;
        message = with_names(message, [&](uint64_t at) { return block->memory.name_at(at); });
    }
    if (!current_thread) {
        current_cluster->end_with({what, message, current_cluster->issuer(), address});
        throw Stopped{};
    }
    note(what, address, other, message, callers());
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
