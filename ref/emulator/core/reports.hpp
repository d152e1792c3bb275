// How a fault is reported: whose it is, and what ends the run.
#pragma once

#include <cstdarg>
#include <cstdio>

#include "cluster.hpp"

namespace emulator {

inline ThreadName name_of_thread(uint32_t number) {
    const auto threads = static_cast<uint32_t>(current_cluster->shape().threads);
    ThreadName name;
    std::snprintf(name.text, sizeof name.text, "thread %u of block %lld", number % threads,
                  static_cast<long long>(current_cluster->blocks[number / threads].index));
    return name;
}

constexpr const char* kEndless = "has run for a second without an instruction: an endless loop";

struct Stopped {};  // thrown by fail_at() when no thread is running

// Notes a fault of the running thread, after which the scheduler ends the run. Not of self(): a signal handler runs on
// a stack of its own.
inline void note(Fault what, uint64_t address, const void* other, const char* text) {
    const Thread& thread = *current_thread;
    const Place place = thread.place();
    char where[96];
    std::snprintf(where, sizeof where, "block %lld, warp %d, lane %d: ", static_cast<long long>(place.block),
                  place.warp, place.lane);
    current_cluster->end_with({what, std::string(where) + text, place, address, thread.from, other});
}

[[noreturn]] inline void report(Fault what, uint64_t address, const void* other, const char* format,
                                va_list arguments) {
    char text[768];
    std::vsnprintf(text, sizeof text - 256, format, arguments);
    const int64_t block = current_thread ? current_thread->block->index : current_cluster->issuer().block;
    if (what == Fault::data_race || what == Fault::missing_proxy_fence || what == Fault::released_too_early)
        for (const Block& one : current_cluster->blocks)
            if (one.index == block) std::strncat(text, one.mixed_barrier.c_str(), 255);
    if (!current_thread) {
        current_cluster->end_with({what, text, current_cluster->issuer(), address});
        throw Stopped{};
    }
    note(what, address, other, text);
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
