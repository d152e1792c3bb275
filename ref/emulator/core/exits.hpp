// How threads end: what must be over when one exits or a block ends.
#pragma once

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
    // It may have arrived on the barrier before it exits: then it is neither waited for nor counted any more.
    if (thread.cluster_pending && thread.cluster_generation > cluster_generation) --cluster_arrived;
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

}  // namespace emulator
