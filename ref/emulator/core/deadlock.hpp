// What a deadlock is reported as: who waits for what, and what keeps that from happening.
#pragma once

#include <bit>
#include <set>
#include <string_view>

#include "barriers.hpp"

namespace emulator {

// Such as " 0 1 2 (lanes 0 to 3) 3", of the warps' lanes; those of a warp are left out if they are all that `whole`
// has of it.
inline std::string list_warps(const std::map<int, uint32_t>& warps, const std::vector<uint32_t>& whole) {
    std::string text;
    for (const auto& [warp, lanes] : warps) {
        text += " " + std::to_string(warp);
        if (lanes == whole[static_cast<std::size_t>(warp)]) continue;
        const int first = std::countr_zero(lanes), last = 31 - std::countl_zero(lanes);
        if (first == last)
            text += " (lane " + std::to_string(first) + ")";
        else if (std::popcount(lanes) == last - first + 1)
            text += " (lanes " + std::to_string(first) + " to " + std::to_string(last) + ")";
        else
            text += " (" + std::to_string(std::popcount(lanes)) + " of its lanes)";
    }
    return text;
}

// A line on the threads of a block that have ended while others wait; nothing, if there are none. Of a warp that goes
// on its lanes that have ended count only if the others wait for them.
inline std::string those_who_have_ended(const Block& block) {
    std::map<int, uint32_t> ended;
    std::vector<uint32_t> all;
    for (std::size_t warp = 0; warp < block.alive.size(); ++warp) {
        all.push_back(lanes_of(static_cast<int>(warp), static_cast<int>(block.threads.size())));
        const uint32_t lanes = all.back() & ~block.alive[warp];
        const bool missed = std::ranges::any_of(block.threads, [&](const Thread* thread) {
            return thread->warp() == static_cast<int>(warp) && !thread->finished &&
                   std::string_view(thread->wait.what) != "mbarrier";
        });
        if (lanes && (lanes == all.back() || missed)) ended[static_cast<int>(warp)] = lanes;
    }
    if (ended.empty() || !block.live) return "";
    return "\n  block " + std::to_string(block.index) + (ended.size() > 1 ? ", warps" : ", warp") +
           list_warps(ended, all) + (ended.size() > 1 ? " have ended" : " has ended");
}

// What keeps the phase from completing for which a thread waits, as a line below that on the wait.
inline std::string why_not_complete(const Thread& thread) {
    const Mbarrier& barrier = thread.block->mbarriers.at(thread.wait.address);
    const auto waited = std::ranges::find(thread.waited, thread.wait.address, &Waited::address);
    const int64_t since = barrier.phase - (waited == thread.waited.end() ? 0 : waited->phase);
    const std::string begin = "\n    ";
    if (since > 1)
        return begin + std::to_string(since) +
               " phases have completed since this thread's last wait for it: there are more arrivals than its count, "
               "or waits are missing.";
    if (since == 1)
        return begin +
               "The phase before has completed, and this thread has not waited for it: a wrong parity, or more "
               "arrivals than its count.";
    if (barrier.bytes < 0 || (barrier.bytes > 0 && !barrier.pending && !barrier.loading))
        return begin + "In this phase it was told to expect " + std::to_string(barrier.expected) +
               " bytes, and the loads that were issued bring " + std::to_string(barrier.brought) + ".";
    if (!barrier.last) return begin + "Nobody has arrived on it yet.";
    return begin + "The last to arrive on it was " + name_of_thread(barrier.last - 1).text +
           place_of(barrier.last_from) +
           (barrier.pending < barrier.count ? ": the count is larger than the arrivals, or one is missing." : ".");
}

// A cause that no line alone shows: everybody waits for mbarriers on which nothing has ever happened.
inline std::string Cluster::cause_of_deadlock() const {
    std::set<const Mbarrier*> fresh;
    for (const Thread& thread : threads_) {
        if (thread.finished) continue;
        if (std::string_view(thread.wait.what) != "mbarrier") return "";
        const Mbarrier& barrier = thread.block->mbarriers.at(thread.wait.address);
        if (barrier.last || barrier.phase || barrier.bytes) return "";
        fresh.insert(&barrier);
    }
    if (fresh.size() < 2) return "";
    return "\n  Nobody has begun. The first wait for an empty stage has to be for parity 1, which passes on a fresh "
           "mbarrier";
}

// Which warps wait for what: a line for all that wait alike. Several threads wait, so no one of them is at fault; the
// report's line is that of the first.
inline FaultReport Cluster::deadlock() const {
    std::map<std::string, std::map<const Block*, std::map<int, uint32_t>>> waiting;  // reason: block: warp: lanes
    const void* from = nullptr;
    for (const Thread& thread : threads_) {
        if (thread.finished) continue;
        if (!from) from = thread.from;
        const bool for_mbarrier = std::string_view(thread.wait.what) == "mbarrier";
        const std::string cause = for_mbarrier ? why_not_complete(thread) : "";
        waiting[reason(thread) + place_of(thread.from) + cause][thread.block][thread.warp()] |= 1u << thread.lane();
    }
    std::string text = "deadlock in cluster " + std::to_string(index_) + " after " + std::to_string(step_) + " steps:";
    for (const auto& [what, blocks] : waiting) {
        text += "\n  ";
        const char* separator = "";
        std::size_t many = 0;
        for (const auto& [block, warps] : blocks) {
            text += separator + ("block " + std::to_string(block->index)) + (warps.size() > 1 ? ", warps" : ", warp") +
                    list_warps(warps, block->alive);
            separator = ", ";
            many += warps.size();
        }
        text += (many > 1 ? " wait for " : " waits for ") + what;
    }
    for (const Block& block : blocks) text += those_who_have_ended(block);
    text += cause_of_deadlock();
    return {Fault::deadlock, text, {}, 0, from};
}

inline std::string Cluster::reason(const Thread& thread) {
    const Block& block = *thread.block;
    const std::string what = thread.wait.what;
    char text[320];
    if (what == "mbarrier") {
        const Mbarrier& barrier = block.mbarriers.at(thread.wait.address);
        std::string bytes = std::to_string(barrier.bytes) + " bytes to come";
        if (barrier.bytes < 0) bytes = std::to_string(-barrier.bytes) + " bytes more arrived than were expected";
        return name_of(block, thread.wait.address) + " to complete a phase of parity " +
               std::to_string(thread.wait.value) + ": it is in phase " + std::to_string(barrier.phase) + " with " +
               std::to_string(barrier.pending) + " of " + std::to_string(barrier.count) + " arrivals pending and " +
               bytes;
    }
    if (what == "registers") {
        std::snprintf(text, sizeof text,
                      "setmaxnreg.inc %u: each thread has %lld registers, as __launch_bounds__ leaves it, so a warp "
                      "needs %lld more, and of those that setmaxnreg.dec has given back %lld are left",
                      thread.wait.address, static_cast<long long>(thread.wait.value),
                      32 * (thread.wait.address - static_cast<long long>(thread.wait.value)),
                      static_cast<long long>(block.free_registers));
        return text;
    }
    if (what == "named barrier") {
        const NamedBarrier& barrier = block.barriers[thread.wait.address];
        const auto ended = static_cast<int>(block.threads.size()) - block.live;
        std::snprintf(text, sizeof text, "barrier %u, where %u of %u threads have arrived%s", thread.wait.address,
                      barrier.arrived, barrier.threads,
                      ended ? (" (" + std::to_string(ended) + " of the block's have ended)").c_str() : "");
        return text;
    }
    if (thread.wait.of_lanes) return what + ", which the other lanes of its warp have to execute with it";
    return what;
}

}  // namespace emulator
