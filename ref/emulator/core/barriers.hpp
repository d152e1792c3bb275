// Mbarriers and named barriers: arriving, completing a phase, and reaching another block of the cluster.
#pragma once

#include "lanes.hpp"

namespace emulator {

// The mbarrier at `address` of `block`; `who` is the instruction that uses it.
inline Mbarrier& mbarrier(Block& block, uint32_t address, const char* who) {
    const auto found = block.mbarriers.find(address);
    if (found != block.mbarriers.end()) return found->second;
    if (address >> kRankShift)
        fail_at(
            Fault::mbarrier_uninitialised, address,
            "%s at 0x%x: that is an address of the cluster, which mapa gives, and the instruction takes one of its own "
            "block",
            who, address);
    block.memory.check_mbarrier(address, who);
    std::string others = "the block has none yet, so a __syncthreads() behind mbarrier.init is likely missing";
    if (!block.mbarriers.empty()) {
        others = "the block has";
        std::size_t listed = 0;
        for (const auto& [at, barrier] : block.mbarriers)
            if (++listed <= 8) others += (listed > 1 ? ", " : " ") + name_of(block, at);
        if (listed > 8) others += " and others";
        others += ". The address is wrong, or mbarrier.init is missing, or a barrier behind it";
    }
    fail_at(Fault::mbarrier_uninitialised, address, "%s: %s of block %lld was not initialised; %s", who,
            name_of(block, address).c_str(), static_cast<long long>(block.index), others.c_str());
}

// How an mbarrier is called in messages: its address, and the name that the kernel has given it, or the __shared__
// variable that it is. Of one without a name it is said what it is for, where the run has shown that: "full" if it has
// been told of bytes, "empty" if only warps have waited for it that tell others of bytes, counted in the order of
// addresses, as kernels/timeline/spans.py does for pages.
std::string name_of(const Block& block, uint32_t address) {
    char text[128];
    std::snprintf(text, sizeof text, "mbarrier 0x%x", address);
    if (const auto given = block.names.find(address); given != block.names.end())
        return text + (" (" + given->second + ")");
    if (const std::string variable = block.memory.name_at(address); !variable.empty())
        return text + (" (" + variable + ")");
    const auto role = [&block](const Mbarrier& barrier) {
        if (barrier.expects) return "full";
        return barrier.waited_for && !(barrier.waited_for & ~block.loaders) ? "empty" : nullptr;
    };
    const auto found = block.mbarriers.find(address);
    const char* const mine = found == block.mbarriers.end() ? nullptr : role(found->second);
    if (!mine) return text;
    const auto before =
        std::count_if(block.mbarriers.begin(), found, [&](const auto& other) { return role(other.second) == mine; });
    return text + (" (" + (mine + (" " + std::to_string(before)) + ")"));
}

// What is missing where another unit than the thread that initialised an mbarrier cannot see it yet.
inline std::string why_not_visible(const Mbarrier& barrier) {
    return "fence.mbarrier_init is missing behind its mbarrier.init" + place_of(barrier.initialised_from) +
           ", in the thread that executed that";
}

// The calling thread has waited for a phase of that parity, and the wait is over.
inline void note_wait(const Mbarrier& barrier, uint32_t address, uint32_t parity) {
    std::vector<Waited>& all = self().waited;
    const auto same = std::ranges::find(all, address, &Waited::address);
    const bool vain = barrier.phase == (same == all.end() ? 0 : same->phase);
    const Waited now{address, barrier.phase, parity, vain, self().from};
    if (same == all.end()) return all.push_back(now);
    *same = now;
    std::rotate(same, same + 1, all.end());
}

// Why an access to a tile need not come after the TMA load of it, which completes on this mbarrier. `actor`: the thread
// whose access it is; nullptr if it is not known, or knows that the load has landed.
std::string why_not_landed(const SharedMemory& memory, uint32_t mbarrier, const Actor* actor) {
    const Block& block =
        *std::ranges::find_if(current_cluster->blocks, [&](const Block& block) { return &block.memory == &memory; });
    const std::string name = name_of(block, mbarrier);
    if (const auto found = block.mbarriers.find(mbarrier); found != block.mbarriers.end()) {
        const Mbarrier& barrier = found->second;
        if (!barrier.too_few.empty() || barrier.loading > barrier.bytes)
            return "the phases of " + name + " do not wait for all of its loads: they expect fewer bytes than the " +
                   "loads bring, or count fewer arrivals than there are" + barrier.too_few;
    }
    if (!actor)
        return "nobody has waited for " + name +
               ", on which the load completes: the wait is missing, or the address, "
               "or a descriptor's stride, is that of another stage";
    const std::vector<Waited>& waits = static_cast<const Thread*>(actor)->waited;
    if (const auto same = std::ranges::find(waits, mbarrier, &Waited::address); same != waits.end()) {
        const std::string wait = name + place_of(same->from);
        if (same->vain)
            return "this thread's wait for " + wait + " was for parity " + std::to_string(same->parity & 1) +
                   ", the phase before, and returned at once: a wrong parity";
        return "this thread has last waited for phase " + std::to_string(same->phase - 1) + " of " + wait +
               ", and the load belongs to a later one: a wait is missing, or the stage is used after its release";
    }
    std::string text = "this thread has not waited for " + name +
                       ", on which the load completes, nor met a thread that has (__syncwarp() after one lane's wait)";
    if (!waits.empty())
        text += ". Its last wait was for " + name_of(block, waits.back().address) + place_of(waits.back().from) +
                ": the address may be that of another stage";
    return text;
}

// Completes the phase if nothing is outstanding: the barrier then begins its next phase and its waiters go on.
inline void settle(Mbarrier& barrier, Block& block, uint32_t address) {
    if (barrier.pending || barrier.bytes) return;
    current_cluster->record(Event::mbarrier_phase, block, -1, address, barrier.phase);
    if (barrier.loading > 0 && barrier.too_few.empty())
        barrier.too_few = ": phase " + std::to_string(barrier.phase) + " expected " + std::to_string(barrier.expected) +
                          " bytes, and the loads that were issued in it bring " + std::to_string(barrier.brought);
    barrier.expected = barrier.brought = 0;
    ++barrier.phase;
    barrier.pending = barrier.count;
    barrier.completed = barrier.told.take();
    current_cluster->wake(barrier.waiters);
}

// A TMA load has written `bytes` into the block's shared memory.
// `known` is what the thread knew that issued the load.
inline void complete_bytes(Block& block, uint32_t address, uint32_t bytes, const Known& known, const Moment& load) {
    Mbarrier& barrier = mbarrier(block, address, "TMA load");
    if (load.number) barrier.told.join(known, load, 0);
    barrier.bytes -= bytes;
    current_cluster->record(Event::mbarrier_complete_tx, block, -1, address, barrier.bytes);
    settle(barrier, block, address);
}

// The block that a shared::cluster address names; an address without a rank is the calling thread's own block.
// `lands`: for the copy engine, whose bytes that block counts (Block::loads), so it need not know the thread.
inline Block& remote_block(uint32_t address, bool lands = false) {
    const int rank = static_cast<int>(address >> kRankShift) - 1;
    if (rank < 0) return *self().block;
    if (rank >= current_cluster->shape().size)
        fail_at(Fault::out_of_bounds, address, "address 0x%x names block %d of a cluster of %d", address, rank,
                current_cluster->shape().size);
    Block& block = current_cluster->blocks[static_cast<std::size_t>(rank)];
    if (&block != self().block && current_cluster->cluster_generation == 0)
        fail_at(Fault::block_not_started, address,
                "reaches into block %lld of its cluster, which may not have begun: the blocks have not met yet",
                static_cast<long long>(block.index));
    if (!block.live)
        fail_at(Fault::block_ended, address, "reaches into block %lld of its cluster, which has already ended",
                static_cast<long long>(block.index));
    if (&block != self().block && !lands) block.visits[self().number] = {self().moment, self().from};
    return block;
}

// The mbarrier at `offset` of `block` for an instruction of the calling thread, and the address that it has for it. The
// events are recorded for that thread, so a barrier of another block appears in them with the address that mapa gives
// it.
inline std::pair<Mbarrier&, uint32_t> mbarrier_for_thread(Block& block, uint32_t offset, const char* who) {
    Mbarrier& barrier = mbarrier(block, offset, who);
    const bool remote = &block != self().block;
    const uint32_t address = offset | (remote ? static_cast<uint32_t>(block.rank + 1) << kRankShift : 0);
    if (remote && !barrier.visible)
        fail_at(Fault::mbarrier_not_visible, address,
                "arrives on %s of another block, which this one cannot see yet: %s", name_of(block, offset).c_str(),
                why_not_visible(barrier).c_str());
    return {barrier, address};
}

inline void add_bytes(Block& block, Mbarrier& barrier, uint32_t offset, uint32_t address, uint32_t bytes) {
    barrier.bytes += bytes;
    barrier.expected += bytes;
    if (barrier.bytes >= 1 << 20)
        fail_at(Fault::too_many_bytes, address, "%s expects %lld bytes; the transaction count ends at 2^20 - 1",
                name_of(block, offset).c_str(), static_cast<long long>(barrier.bytes));
    barrier.expects = true;
    self().block->loaders |= 1u << self().warp();
    current_cluster->record(Event::mbarrier_expect_tx, *self().block, self().index, address, bytes);
}

// mbarrier.expect_tx of the calling thread.
inline void expect_bytes(Block& block, uint32_t offset, uint32_t bytes) {
    const auto& [barrier, address] = mbarrier_for_thread(block, offset, "mbarrier.expect_tx");
    add_bytes(block, barrier, offset, address, bytes);
    settle(barrier, block, offset);
    current_cluster->maybe_yield();
}

// Why the calling thread arrives on an mbarrier of which all arrivals of this phase are done.
inline std::string why_too_many(const Mbarrier& barrier) {
    if (barrier.last && barrier.last != self().number + 1 && (barrier.last - 1) / 32 == self().number / 32)
        return "the arrival before was that of " + std::string(name_of_thread(barrier.last - 1).text) +
               ", another lane of this warp. One lane is to be elected, or the count is too small";
    return "the count is too small, or this arrival is meant for the next phase, because a stage is used again before "
           "a wait for its release";
}

// The calling thread arrives on the mbarrier at `offset` of `block`, `count` times, and adds `bytes` to what the phase
// expects. `drops`: later phases wait for so many arrivals fewer. Returns the mbarrier's state before the arrivals: its
// phase in the high 32 bits, its pending arrivals in the low ones.
inline uint64_t arrive(Block& block, uint32_t offset, uint32_t bytes, uint32_t count = 1, bool drops = false) {
    const auto& [barrier, address] = mbarrier_for_thread(block, offset, "mbarrier.arrive");
    const Thread& thread = self();
    const uint64_t state = static_cast<uint64_t>(barrier.phase) << 32 | static_cast<uint32_t>(barrier.pending);
    if (count == 0 || count >= 1 << 20)
        fail_at(Fault::invalid_operand, address, "mbarrier.arrive with a count of %u: 1 to 2^20 - 1 is needed", count);
    if (bytes) add_bytes(block, barrier, offset, address, bytes);
    if (barrier.pending < count)
        fail_race(Fault::too_many_arrivals, address, barrier.last_from,
                  "arrives on %s more often than its count of %lld in phase %lld: %s", name_of(block, offset).c_str(),
                  static_cast<long long>(barrier.count), static_cast<long long>(barrier.phase),
                  why_too_many(barrier).c_str());
    barrier.pending -= count;
    barrier.last = thread.number + 1;
    barrier.last_from = thread.from;
    if (drops) barrier.count -= count;
    thread.cluster->release(barrier.told);
    thread.cluster->record(Event::mbarrier_arrive, *thread.block, thread.index, address, barrier.pending);
    settle(barrier, block, offset);
    thread.cluster->maybe_yield();
    return state;
}

// A phase of a named barrier is about to complete. If it is for whole warpgroups, and some warps of one and some of
// another complete it, then two groups share the barrier, which is likely a mistake: the next fault mentions it.
inline void look_for_mixture(Block& block, uint32_t id) {
    NamedBarrier& barrier = block.barriers[id];
    const bool whole = barrier.threads % 128 == 0 && !barrier.everyone && !barrier.handed;
    int parts = 0;
    for (uint32_t warps = barrier.warps; warps; warps >>= 4) parts += (warps & 15) != 0;
    if (whole && parts * 128 > static_cast<int>(barrier.threads)) {
        block.mixed_barrier = "; barrier " + std::to_string(id) + " was completed by warps";
        for (int warp = 0; warp < 32; ++warp)
            if (barrier.warps >> warp & 1) block.mixed_barrier += " " + std::to_string(warp);
        block.mixed_barrier += ", of several warpgroups: do two groups share it?";
    }
}

// bar.sync (wait) and bar.arrive of one thread. `threads` is 0 for __syncthreads: all that have not exited. Returns how
// many of the threads have voted yes.
inline uint32_t named_barrier(uint32_t id, uint32_t threads, bool wait, bool vote = false) {
    const Thread& thread = self();
    if (id >= 16) fail(Fault::invalid_operand, "barrier %u: a block has barriers 0 to 15", id);
    NamedBarrier& barrier = thread.block->barriers[id];
    const bool everyone = threads == 0;
    if (everyone)
        threads = static_cast<uint32_t>(thread.block->live);
    else if (threads % 32)
        fail(Fault::invalid_operand, "barrier %u for %u threads: a multiple of 32 is needed", id, threads);
    if (barrier.warps && barrier.threads != threads)
        fail(Fault::named_barrier_mismatch, "barrier %u for %u threads, while others are there for %u", id, threads,
             barrier.threads);
    record_warp(wait ? Event::bar_sync : Event::bar_arrive, 0, id);
    barrier.threads = threads;
    barrier.everyone = everyone;
    barrier.votes += vote;
    barrier.warps |= 1u << thread.warp();
    barrier.handed |= !wait;
    thread.cluster->release(barrier.told);
    const auto warp = static_cast<std::size_t>(thread.warp());
    const uint64_t generation = barrier.generation;
    const uint32_t lane = 1u << thread.lane();
    if (!everyone && barrier.lanes[warp] & lane)
        fail(Fault::divergent_warp,
             "arrives at barrier %u again, before all lanes of its warp have: it counts whole warps", id);
    if (!everyone) barrier.lanes[warp] |= lane;
    if (everyone ? ++barrier.arrived == threads : count_warp(barrier, thread)) {
        look_for_mixture(*thread.block, id);
        complete(barrier);
    }
    if (!wait) return thread.cluster->maybe_yield(), 0;
    const auto waits = [&] {
        if (everyone) return barrier.generation == generation;
        return (barrier.lanes[warp] & lane) != 0 || barrier.generation == barrier.phases[warp];
    };
    while (waits()) thread.cluster->block_on(barrier.waiters, {"named barrier", id});
    thread.cluster->acquire(barrier.completed);
    record_warp(Event::bar_pass, 0, id);
    return barrier.result;
}

}  // namespace emulator
