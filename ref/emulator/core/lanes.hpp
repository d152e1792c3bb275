// What the lanes of a warp do together: exchange operands, meet at instructions, and appear as one in a record.
#pragma once

#include "reports.hpp"

namespace emulator {

// Every function that a kernel calls begins with this: it notes the place of the call.
#define EMULATOR_ENTER ::emulator::self().cluster->enter(::emulator::self(), __builtin_return_address(0))
#define EMULATOR_MEET ::emulator::self().cluster->meet(::emulator::self(), __builtin_return_address(0))
#define EMULATOR_LOOK ::emulator::self().cluster->look(::emulator::self(), __builtin_return_address(0))
#define EMULATOR_POLL ::emulator::self().cluster->look(::emulator::self(), __builtin_return_address(0), true)

// Of a warp of the calling thread's warpgroup.
[[noreturn]] inline void fail_without_wgmma() {
    fail(Fault::divergent_warpgroup,
         "a warp has ended without a wgmma that other warps of its warpgroup issued: all four issue it");
}

// A named barrier counts warps, 32 threads each, however many have not exited: whether the thread, which has arrived or
// exits, is the last of its warp that was awaited. Returns true if the barrier has all its threads now.
inline bool count_warp(NamedBarrier& barrier, const Thread& thread) {
    const auto warp = static_cast<std::size_t>(thread.warp());
    if (!barrier.lanes[warp] || thread.block->alive[warp] & ~barrier.lanes[warp]) return false;
    barrier.lanes[warp] = 0;
    barrier.phases[warp] = barrier.generation;
    barrier.arrived += 32;
    return barrier.arrived == barrier.threads;
}
inline void complete(NamedBarrier& barrier) {
    barrier.arrived = 0;
    barrier.completed = barrier.told.take();
    barrier.result = barrier.votes;
    barrier.votes = 0;
    barrier.warps = 0;
    barrier.handed = false;
    ++barrier.generation;
    self().cluster->wake(barrier.waiters);
}
inline void complete(Exchange& exchange) {
    exchange.gave = std::exchange(exchange.arrived, 0);
    exchange.completed = exchange.told.take();
    ++exchange.generation;
    self().cluster->wake(exchange.waiters);
}

// Each lane of the mask gives its `data` and gets the data of all of them. `what` is the instruction's name.
// `orders`: what a lane has done before it lies before what the others do after it, as with bar.warp.sync.
inline const Slots& exchange(const char* what, std::initializer_list<uint64_t> data, uint32_t mask = ~0u,
                             bool ignores_exited = false, bool orders = false) {
    Thread& thread = self();
    Cluster& cluster = *thread.cluster;
    const auto warp = static_cast<std::size_t>(thread.warp());
    if (!(mask >> thread.lane() & 1))
        fail(Fault::divergent_warp, "executes %s for the lanes 0x%x, and is not one of them", what, mask);
    Exchange& exchange = thread.block->exchanges[warp][mask];
    const uint64_t generation = exchange.generation;
    if (exchange.arrived == 0) exchange.what = what, exchange.ignores_exited = ignores_exited;
    if (exchange.what != what && std::strcmp(exchange.what, what))
        fail(Fault::divergent_warp, "executes %s while its warp executes %s: all %d lanes must execute the same", what,
             exchange.what, std::popcount(mask));
    Slots& slots = exchange.slots[generation % 2];
    std::ranges::copy(data, slots[static_cast<std::size_t>(thread.lane())].begin());
    exchange.arrived |= 1u << thread.lane();
    if (orders) cluster.release(exchange.told);
    const uint32_t awaited = ignores_exited ? thread.block->alive[warp] : thread.lanes();
    if (exchange.arrived == (mask & awaited)) complete(exchange);
    while (exchange.generation <= generation) cluster.block_on(exchange.waiters, {.what = what, .of_lanes = true});
    if (orders) cluster.acquire(exchange.completed);
    return slots;
}

// An .aligned instruction of one lane, in a place of the kernel: all lanes of the warp must come to it in the same one.
// Otherwise the warp has diverged, and PTX does not say what the instruction does. A lane need not wait for the others
// here: each one's first such instruction is compared with the others' first, and so on.
inline void together(const char* what, int place) {
    Thread& thread = self();
    const auto warp = static_cast<std::size_t>(thread.warp());
    NumberedQueue<Aligned>& queue = thread.block->aligned[warp];
    const int64_t number = thread.aligned++;
    Aligned& met = number == queue.end() ? queue.push_back({what, place, 0, thread.from}) : queue[number];
    if (met.place != place || (met.what != what && std::strcmp(met.what, what) != 0))
        fail_race(
            Fault::divergent_warp, 0, met.from,
            "executes %s, and other lanes of its warp execute %s elsewhere: the warp has diverged, and all its lanes "
            "must execute such an instruction together",
            what, met.what);
    met.lanes |= 1u << thread.lane();
    const uint32_t alive = thread.block->alive[warp];
    while (!queue.empty() && (queue.front().lanes & alive) == alive) queue.pop_front();
}

// Records an instruction of a whole warp once, when lane 0 executes it.
inline void record_warp(Event kind, uint32_t address = 0, int64_t value = 0) {
    if (self().lane() == 0) self().cluster->record(kind, *self().block, self().index, address, value);
}

}  // namespace emulator
