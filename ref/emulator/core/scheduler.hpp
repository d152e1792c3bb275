// The scheduler: sets a cluster up, and chooses which of its threads run next and when asynchronous work happens.
#pragma once

#include "deadlock.hpp"
#include "exits.hpp"
#include "lanes.hpp"

namespace emulator {

inline dim3 Cluster::index_of_block(int64_t cluster, uint32_t rank) const {
    const dim3 &grid = shape_.grid.grid, &size = shape_.grid.cluster;
    const dim3 outer = at(static_cast<uint64_t>(cluster), {grid.x / size.x, grid.y / size.y, grid.z / size.z});
    const dim3 inner = at(rank, size);
    return {outer.x * size.x + inner.x, outer.y * size.y + inner.y, outer.z * size.z + inner.z};
}

inline void Cluster::reset(int64_t cluster) {
    index_ = cluster;
    step_ = still_since_ = 0;
    polls_ = spins_ = 0;
    last_ = nullptr;
    fault_.reset();
    instruction = {};
    recorded.clear();
    ready_.reset(numbers() / 32);
    pending_.clear();
    patient_.clear();
    random_ = Random(config_.seed * 0x2545F4914F6CDD1D + static_cast<uint64_t>(cluster));
    // The seed also chooses what the whole run is like: asynchronous work is done immediately, soon, late, or only when
    // nothing else can run; all warps advance alike, or some run far ahead of others.
    static constexpr uint32_t kAsyncChances[] = {1024, 512, 64, 0};
    async_chance_ = kAsyncChances[random_.below(4)];
    priorities_ = random_.chance(512);
    lazy_stores_ = random_.chance(512);
    elected_lane_ = static_cast<int>(random_.below(32));
    priority_.assign(numbers() / 32, 0);
    loads_.assign(numbers() / 32, 0);
    stores_ = loads_;
    for (uint32_t& priority : priority_) priority = random_.below(1 << 16);

    const int warps = shape_.warps();
    const int registers = registers_of_thread(shape_.registers, shape_.threads);
    for (int rank = 0; rank < shape_.size; ++rank) {
        Block& block = blocks[rank];
        SharedMemory memory = std::move(block.memory);  // its buffers serve again
        block = {};
        block.memory = std::move(memory);
        block.rank = rank;
        const dim3 block_index = index_of_block(cluster, static_cast<uint32_t>(rank));
        block.index = block_index.x + static_cast<int64_t>(shape_.grid.grid.x) *
                                          (block_index.y + static_cast<int64_t>(shape_.grid.grid.y) * block_index.z);
        block.memory.reset(shape_.shared_bytes, launch_.fresh);
        block.exchanges.resize(warps);
        for (int warp = 0; warp < warps; ++warp) block.alive.push_back(lanes_of(warp, shape_.threads));
        block.aligned.assign(warps, {});
        block.registers.assign(warps, {registers});
        block.set_registers_at.assign(warps, nullptr);
        block.free_registers = 0;  // setmaxnreg can only take what another warp has given back
        block.live = shape_.threads;
        block.wgmmas.resize(warps);
        block.warpgroup_wgmmas.resize((warps + 3) / 4);
        block.wgmma_progress.resize((warps + 3) / 4);
        for (int i = 0; i < shape_.threads; ++i) {
            Thread& thread = threads_[rank * shape_.threads + i];
            thread.block = &block;
            thread.cluster = this;
            thread.index = i;
            thread.fiber.indices() = {at(static_cast<uint32_t>(i), shape_.grid.block),
                                      block_index,
                                      shape_.grid.block,
                                      shape_.grid.grid,
                                      static_cast<uint32_t>(i % 32),
                                      static_cast<uint32_t>(rank),
                                      &thread};
            thread.finished = false;
            thread.wait = {};
            thread.waited.clear();
            thread.number = static_cast<uint32_t>(rank * warps * 32 + i);
            thread.moment = orders() ? 1 : 0;  // moment 0 lies before everything
            thread.known.reset();
            thread.from = nullptr;
            thread.ticks = 0;
            thread.stored = thread.polls = false;
            thread.unfenced.clear();
            thread.doubtful = false;
            thread.cluster_generation = 0;
            thread.aligned = 0;
            thread.cluster_pending = thread.wgmma_fenced = thread.overdue = false;
            thread.fiber.watched() = false;
            thread.dependency_waited = !shape_.early;
            thread.wgmmas = thread.wgmmas_waited = 0;
            thread.wgmma_groups = {};
            thread.accumulators.clear();
            thread.rested.clear();
            thread.written_since_fence.clear();
            thread.stores.clear();
            thread.store_groups.clear();
            thread.async_writes = {};
            block.threads.push_back(&thread);
            ready_.add(thread);
        }
    }
    cluster_arrived = 0;
    cluster_live = static_cast<int64_t>(threads_.size());
    cluster_generation = 0;
    cluster_waiters.clear();
    cluster_told = {};
    cluster_completed.reset();
}

inline std::optional<FaultReport> Cluster::run(int64_t cluster, const Call& call, int64_t place) {
    current_cluster = this;
    reset(cluster);
    call_ = &call;
    for (Thread& thread : threads_)
        thread.fiber.start(
            [](void* argument) {
                auto* me = static_cast<Cluster*>(argument);
                Thread& thread = self();
                if (thread.lane() == 0) me->record(Event::thread_start, *thread.block, thread.index);
                me->call_->run(me->call_->kernel, me->call_->arguments);
                me->exit_checks(thread);
            },
            this);
    try {
        std::size_t alive = threads_.size();
        uint64_t overtime = 0, rounds = 0;
        while (alive > 0 && !fault_) {
            if (++rounds % kRounds == 0) {
                publish_progress();
                end_if_nothing_changes();
                // A cluster that has ended by a fault may hold a lock that this one waits for.
                if (const int64_t failed = launch_.failed;
                    failed < place || (failed != INT64_MAX && ++overtime > kOvertime))
                    break;
            }
            if (at_step_limit())
                end_with({Fault::step_limit, "no end after " + std::to_string(config_.max_steps) + " steps", {}, 0});
            else if (!pending_.empty() && (idle() || random_.chance(async_chance_)))
                complete_one(pending_);
            else if (idle() && !patient_.empty())
                complete_one(patient_);
            else if (ready_.empty())
                end_with(deadlock());
            else
                alive -= run_turn();
        }
        while (alive == 0 && !pending_.empty() && !fault_) complete_one(pending_);
        while (alive == 0 && !patient_.empty() && !fault_) complete_one(patient_);
    } catch (const Stopped&) {
    }
    current_thread = nullptr;
    current_cluster = nullptr;
    return fault_;
}

// Chooses a warp whose lanes have their turn: all of them that can go on, or sometimes only one.
inline void Cluster::begin_turn() {
    const auto count = static_cast<uint32_t>(ready_.warps().size());
    std::size_t best = random_.below(count);
    // The warp with the highest priority of four chosen at random; but many threads that poll must not starve the one
    // that they wait for.
    if (priorities_ && polls_ <= kStarving) {
        const auto priority = [&](std::size_t i) { return priority_[ready_.warps()[i]]; };
        for (int i = 0; i < 3; ++i) {
            const std::size_t other = random_.below(count);
            if (priority(other) > priority(best)) best = other;
        }
    }
    turn_warp_ = first_of_warp(ready_.warps()[best]);
    turn_lanes_ = ready_.lanes(best);
    turn_begin_ = random_.below(32);
    if (random_.chance(kOneLane)) turn_lanes_ = 1u << first_lane();
    ready_.take(best, turn_lanes_);
}

// Whether all threads that can go on poll mbarriers, but for the calling one.
inline bool Cluster::others_poll() {
    const auto poll = [](const Thread* warp, uint32_t lanes) {
        for (; lanes; lanes &= lanes - 1)
            if (!warp[std::countr_zero(lanes)].polls) return false;
        return true;
    };
    for (std::size_t i = 0; i < ready_.warps().size(); ++i)
        if (!poll(first_of_warp(ready_.warps()[i]), ready_.lanes(i))) return false;
    return poll(turn_warp_, turn_lanes_);
}

// Of the lanes of the turn, the next one, which now has its turn; nullptr: there is none.
inline Thread* Cluster::next_in_turn() {
    if (!turn_lanes_ || at_step_limit()) return nullptr;
    const uint32_t lane = first_lane();
    turn_lanes_ &= ~(1u << lane);
    if (turn_lanes_) turn_warp_[first_lane()].fiber.prefetch();
    ++step_;
    turn_.store(turn_.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
    return current_thread = &turn_warp_[lane];
}

// Returns how many threads have finished.
inline std::size_t Cluster::run_turn() {
    std::size_t finished = 0;
    begin_turn();
    while (Thread* thread = fault_ ? nullptr : next_in_turn()) {
        thread->fiber.resume();
        finished += current_thread->finished;  // which need not be `thread`: Fiber::hand_over
    }
    last_ = std::exchange(current_thread, nullptr);
    return finished;
}

inline void Cluster::complete_one(std::vector<Work>& from) {
    ++step_;
    const std::size_t i = random_.below(static_cast<uint32_t>(from.size()));
    const Work work = std::move(from[i]);
    from[i] = std::move(from.back());
    from.pop_back();
    polls_ = 0;
    ++changes_;
    issuer_ = work.issuer;
    work.run();
}

}  // namespace emulator
