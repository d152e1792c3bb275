// How threads end: what must be over when one exits or a block ends, and what a deadlock is reported as.
#pragma once

#include <bit>

#include "lanes.hpp"

namespace emulator {

// A thread exits: what waited for it alone goes on.
inline void Cluster::release_those_who_wait_for(Thread& thread) {
    Block& block = *thread.block;
    const auto warp = static_cast<std::size_t>(thread.warp());
    block.alive[warp] &= ~(1u << thread.lane());
    for (auto& [mask, exchange] : block.exchanges[warp])
        if (exchange.arrived && exchange.ignores_exited && exchange.arrived == (mask & block.alive[warp]))
            complete(exchange);
    for (NamedBarrier& barrier : block.barriers)
        if (barrier.everyone && barrier.arrived && --barrier.threads == barrier.arrived)
            complete(barrier);
        else if (count_warp(barrier, thread))
            complete(barrier);
}

// A block ends: a thread of it must know that whatever other blocks did to its shared memory came before.
inline void Cluster::check_visits(const Block& block) {
    for (const auto& [visitor, visit] : block.visits) {
        const Moment moment{visitor, visit.first};
        if (visit.first == 0 ||
            std::ranges::any_of(block.threads, [&](const Thread* thread) { return knows(thread->known, moment); }))
            continue;
        fail_race(Fault::block_ended, 0, visit.second,
                  "the block ends, and nothing makes sure that %s has done by then what it does to the block's shared "
                  "memory: barrier.cluster.arrive (not relaxed) and wait at the end",
                  name_of_thread(visitor).text);
    }
}

inline void Cluster::exit_checks(Thread& thread) {
    Block& block = *thread.block;
    if (thread.doubtful) Accesses::settle(thread);
    if (thread.lane() == 0) record(Event::thread_exit, block, thread.index);
    if (!thread.accumulators.empty()) {
        const Issued wgmma(thread.place(), thread.accumulators.back().from);
        fail(Fault::unfinished_wgmma, "exits with WGMMAs in flight: %s is missing",
             thread.wgmma_groups.empty() || thread.wgmma_groups.back() < thread.wgmmas ? "wgmma.commit_group"
                                                                                       : "wgmma.wait_group");
    }
    for (const auto& group : thread.store_groups)
        for (const auto& store : group)
            if (!store->has_read) {
                const Issued issued(thread.place(), store->from);
                fail(Fault::unfinished_store,
                     "exits while a TMA store may still read shared memory: wait_group.read first");
            }
    if (!thread.stores.empty()) {
        const Issued issued(thread.place(), thread.stores.front()->from);
        fail(Fault::uncommitted_store, "exits with a TMA store that was never committed");
    }
    thread.finished = true;
    ++instructions_;
    ++changes_;
    --cluster_live;
    complete_cluster_barrier();
    release_those_who_wait_for(thread);
    const auto warp = static_cast<std::size_t>(thread.warp());
    const auto& issued = block.warpgroup_wgmmas[warp / 4];
    if (!block.alive[warp] && !issued.empty() && issued.rbegin()->first >= block.wgmmas[warp].issued)
        fail_without_wgmma();
    if (--block.live == 0 && !block.loads.empty()) {
        const Load& load = block.loads.front();
        const Issued issued(load.issuer, load.from);
        fail(Fault::unfinished_load,
             "block %lld ends while %zu TMA loads into its shared memory are in flight: this one completes on %s",
             static_cast<long long>(block.index), block.loads.size(), name_of(block, load.mbarrier).c_str());
    }
    if (!block.live) check_visits(block);
    if (!block.live && std::ranges::none_of(block.threads, &Thread::dependency_waited))
        fail(Fault::missing_dependency_wait,
             "the block ends without griddepcontrol.wait, in a kernel that may begin before the one ahead has ended");
    for (std::size_t warp = 0; !block.live && warp < block.registers.size(); ++warp)
        if (const std::size_t first = warp / 4 * 4; block.registers[warp].size() != block.registers[first].size()) {
            const std::size_t did = block.registers[warp].size() > block.registers[first].size() ? warp : first;
            const Issued issued({block.index, static_cast<int>(did), -1}, block.set_registers_at[did]);
            fail(Fault::divergent_warpgroup,
                 "the block ends with a setmaxnreg that only some warps of a warpgroup executed");
        }
}

// Such as " 0 1 2 (lanes 0 to 3) 3", of the warps' lanes that wait; `alive`: those of each warp that have not exited.
inline std::string list_warps(const std::map<int, uint32_t>& warps, const std::vector<uint32_t>& alive) {
    std::string text;
    for (const auto& [warp, lanes] : warps) {
        text += " " + std::to_string(warp);
        if (lanes == alive[static_cast<std::size_t>(warp)]) continue;
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

// Which warps wait for what: a line for all that wait alike. Several threads wait, so no one of them is at fault; the
// report's line is that of the first.
inline FaultReport Cluster::deadlock() const {
    std::map<std::string, std::map<const Block*, std::map<int, uint32_t>>> waiting;  // reason: block: warp: lanes
    const void* from = nullptr;
    for (const Thread& thread : threads_) {
        if (thread.finished) continue;
        if (!from) from = thread.from;
        waiting[reason(thread) + place_of(thread.from)][thread.block][thread.warp()] |= 1u << thread.lane();
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
        std::snprintf(text, sizeof text,
                      "%s to complete a phase of parity %lld: it is in phase %lld with %lld of %lld arrivals pending "
                      "and %s",
                      name_of(block, thread.wait.address).c_str(), static_cast<long long>(thread.wait.value),
                      static_cast<long long>(barrier.phase), static_cast<long long>(barrier.pending),
                      static_cast<long long>(barrier.count), bytes.c_str());
        return text;
    }
    if (what == "setmaxnreg") {
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
    return what;
}

}  // namespace emulator
