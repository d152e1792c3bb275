// Mbarriers and named barriers: arriving, completing a phase, and reaching another block of the cluster.
#pragma once

#include "cluster.hpp"

namespace emulator {

// The mbarrier at `address` of `block`; `who` is the instruction that uses it.
inline Mbarrier& mbarrier(Block& block, uint32_t address, const char* who) {
    const auto found = block.mbarriers.find(address);
    if (found == block.mbarriers.end())
        fail_at(Fault::mbarrier_uninitialised, address, "%s: no mbarrier was initialised at 0x%x of block %lld", who,
                address, static_cast<long long>(block.index));
    return found->second;
}

// Completes the phase if nothing is outstanding: the barrier then begins its next phase and its waiters go on.
inline void settle(Mbarrier& barrier, Block& block, uint32_t address) {
    if (barrier.pending || barrier.bytes) return;
    current_cluster->record(Event::mbarrier_phase, block, -1, address, barrier.phase);
    ++barrier.phase;
    barrier.pending = barrier.count;
    current_cluster->wake(barrier.waiters);
}

// A TMA load has written `bytes` into the block's shared memory.
inline void complete_bytes(Block& block, uint32_t address, uint32_t bytes) {
    Mbarrier& barrier = mbarrier(block, address, "TMA load");
    barrier.bytes -= bytes;
    current_cluster->record(Event::mbarrier_complete_tx, block, -1, address, barrier.bytes);
    settle(barrier, block, address);
}

// The block that a shared::cluster address names; an address without a rank is the calling thread's own block.
inline Block& remote_block(uint32_t address) {
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
    return block;
}

// The calling thread arrives on the mbarrier at `offset` of `block` and adds `bytes` to what the phase expects. The
// events are recorded for the arriving thread, so a barrier of another block appears in them with the address that
// mapa gives it.
inline void arrive(Block& block, uint32_t offset, uint32_t bytes) {
    Mbarrier& barrier = mbarrier(block, offset, "mbarrier.arrive");
    const Thread& thread = self();
    const bool remote = &block != thread.block;
    const uint32_t address = offset | (remote ? static_cast<uint32_t>(block.rank + 1) << kRankShift : 0);
    if (remote && !barrier.visible)
        fail_at(Fault::mbarrier_not_visible, address,
                "arrives on mbarrier 0x%x of another block before fence.mbarrier_init made it visible", offset);
    if (bytes) {
        barrier.bytes += bytes;
        if (barrier.bytes >= 1 << 20)
            fail_at(Fault::too_many_bytes, address,
                    "mbarrier 0x%x expects %lld bytes; the transaction count ends at 2^20 - 1", offset,
                    static_cast<long long>(barrier.bytes));
        current_cluster->record(Event::mbarrier_expect_tx, *thread.block, thread.index, address, bytes);
    }
    if (barrier.pending == 0)
        fail_at(Fault::too_many_arrivals, address,
                "arrives on mbarrier 0x%x more often than its count of %lld in phase %lld", offset,
                static_cast<long long>(barrier.count), static_cast<long long>(barrier.phase));
    --barrier.pending;
    current_cluster->record(Event::mbarrier_arrive, *thread.block, thread.index, address, barrier.pending);
    settle(barrier, block, offset);
    current_cluster->maybe_yield();
}

// bar.sync (wait) and bar.arrive of one thread.
inline void named_barrier(uint32_t id, uint32_t threads, bool wait) {
    const Thread& thread = self();
    if (id >= 16) fail(Fault::invalid_operand, "barrier %u: a block has barriers 0 to 15", id);
    if (threads == 0 || threads % 32)
        fail(Fault::invalid_operand, "barrier %u for %u threads: a multiple of 32 is needed", id, threads);
    NamedBarrier& barrier = thread.block->barriers[id];
    if (barrier.arrived && barrier.threads != threads)
        fail(Fault::named_barrier_mismatch, "barrier %u for %u threads, while others are there for %u", id, threads,
             barrier.threads);
    record_warp(wait ? Event::bar_sync : Event::bar_arrive, 0, id);
    barrier.threads = threads;
    const uint64_t generation = barrier.generation;
    if (++barrier.arrived == threads) {
        barrier.arrived = 0;
        ++barrier.generation;
        current_cluster->wake(barrier.waiters);
    }
    if (!wait) return current_cluster->maybe_yield();
    while (barrier.generation == generation) current_cluster->block_on(barrier.waiters, {"named barrier", id});
    record_warp(Event::bar_pass, 0, id);
}

}  // namespace emulator
