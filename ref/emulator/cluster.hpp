// One cluster of blocks on one OS thread: its threads (fibers), what they wait for, and the scheduler that picks, from
// a seed, who runs next and when asynchronous work happens.
#pragma once

#include <array>
#include <cstdarg>
#include <cstdio>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "cuda.hpp"
#include "fiber.hpp"
#include "record.hpp"
#include "shared_memory.hpp"

namespace emulator {

struct Block;
struct Thread;
using Waiters = std::vector<Thread*>;

struct Wait {
    const char* what = nullptr;  // nullptr = not waiting
    uint32_t address = 0;        // mbarrier address or barrier number
    int64_t value = 0;           // parity
};

// "mbarrier": a phase completes when no arrival is pending and no byte is outstanding.
struct Mbarrier {
    int64_t count = 0, pending = 0, bytes = 0;
    int64_t phase = 0;
    bool visible = false;  // has fence.mbarrier_init (or fence.proxy.async) followed mbarrier.init?
    int initialiser = 0;
    Waiters waiters;
};

struct NamedBarrier {
    uint32_t threads = 0, arrived = 0;
    uint64_t generation = 0;
    Waiters waiters;
};

// What the 32 lanes of a warp hand each other in shfl and stmatrix: all arrive, then all go on.
struct Exchange {
    const char* what = nullptr;
    uint32_t arrived = 0;
    uint64_t generation = 0;
    std::array<std::array<uint64_t, 5>, 32> slots[2];
    Waiters waiters;
};

struct Accumulator {  // a thread's registers while WGMMAs are working on them
    float* home;
    std::vector<float> value;
    int64_t last_op;
};

struct WgmmaOp {
    int64_t n;
    uint64_t desc_a, desc_b;
    bool scale_d;
    uint32_t lanes = 0, waited = 0;  // how many have issued it, and waited for it
    std::array<float*, 32> accumulator;

    bool same(const WgmmaOp& other) const {
        return n == other.n && desc_a == other.desc_a && desc_b == other.desc_b && scale_d == other.scale_d;
    }
};

struct WgmmaQueue {                                 // a warp's part of its warpgroup's WGMMAs, in order
    std::deque<WgmmaOp> ops;                        // ops[0] is number `retired`
    int64_t issued = 0, executed = 0, retired = 0;  // by all 32 lanes; by the tensor core; waited for by all 32 lanes
    Waiters waiters;
};

struct Store {  // a TMA store on its way
    std::function<void()> read, write;
    bool has_read = false, has_written = false;
};

struct Thread {
    Fiber fiber;
    Block* block = nullptr;
    int index = 0;
    dim3 thread_index, block_index, block_dim, grid_dim;
    bool finished = false;
    Wait wait;

    std::vector<uint32_t> unfenced;  // words written since the last fence.proxy.async
    uint64_t exchanges = 0, cluster_generation = 0;
    bool cluster_pending = false;  // arrived at the cluster barrier and not yet waited
    bool wgmma_fenced = false;
    int64_t wgmmas = 0, wgmmas_waited = 0;  // issued by this lane, and waited for
    std::vector<int64_t> wgmma_groups;      // wgmmas at each commit
    std::vector<Accumulator> accumulators;
    std::vector<std::shared_ptr<Store>> stores;  // since the last commit
    std::vector<std::vector<std::shared_ptr<Store>>> store_groups;

    int warp() const { return index / 32; }
    int lane() const { return index % 32; }
};

struct Block {
    int rank = 0;
    int64_t index = 0;
    SharedMemory memory;
    std::map<uint32_t, Mbarrier> mbarriers;
    std::array<NamedBarrier, 16> barriers;
    std::vector<Exchange> exchanges;                           // of each warp
    std::vector<WgmmaQueue> wgmmas;                            // of each warp
    std::vector<std::map<int64_t, WgmmaOp>> warpgroup_wgmmas;  // of each warpgroup, not yet issued by all four warps
    std::vector<std::vector<int>> registers;                   // a thread, of each warp: at the start, and as set since
    int64_t free_registers = 0;
    Waiters register_waiters;
    int live = 0;
    int loads_in_flight = 0;
    std::vector<Thread*> threads;
};

class Cluster;
inline thread_local Cluster* current_cluster = nullptr;
inline thread_local Thread* current_thread = nullptr;  // nullptr: the scheduler or an asynchronous unit
inline Thread& self() { return *current_thread; }

class Cluster {
  public:
    struct Shape {
        int size, threads;
        uint32_t shared_bytes;
        int64_t blocks;  // of the whole grid
        int registers;   // 32-bit ones, a block
    };

    Cluster(const Shape& shape, const EmulatorConfig& config) : shape_(shape), config_(config) {
        blocks.resize(shape.size);
        for (int i = 0; i < shape.size * shape.threads; ++i) threads_.push_back(std::make_unique<Thread>());
    }

    // Runs one cluster to its end. Returns the error, or nothing.
    std::string run(int64_t cluster, const std::function<void()>& kernel);

    uint64_t steps() const { return step_; }
    std::vector<EmulatorEvent> events;
    std::vector<Block> blocks;
    const EmulatorConfig& config() const { return config_; }
    const Shape& shape() const { return shape_; }
    int elected_lane() const { return elected_lane_; }

    // ---- for the instructions
    void record(Event kind, const Block& block, int thread, uint32_t address = 0, int64_t value = 0) {
        if (config_.record)
            events.push_back({step_, static_cast<int32_t>(index_), static_cast<int32_t>(block.index), thread,
                              static_cast<int32_t>(kind), address, 0, value});
    }
    // The calling thread stops until somebody wakes these waiters; the caller then looks again.
    void block_on(Waiters& waiters, const Wait& wait) {
        Thread& thread = self();
        waiters.push_back(&thread);
        thread.wait = wait;
        thread.fiber.suspend();
        thread.wait = {};
    }
    void wake(Waiters& waiters) {
        runnable_.insert(runnable_.end(), waiters.begin(), waiters.end());
        waiters.clear();
        polls_ = 0;
    }
    // Now and then somebody else goes first.
    void maybe_yield() {
        if (!random_.chance(128)) return;
        runnable_.push_back(&self());
        self().fiber.suspend();
    }
    // A thread has looked and not found what it wants. Polling does not stop the world: when nothing else has happened
    // for a while, asynchronous work does; and if there is none, nothing ever will.
    void poll() {
        if (++polls_ > kPatience && pending_.empty() && patient_.empty())
            fail("polls an mbarrier for ever: nothing is on its way and no other thread makes progress");
        runnable_.push_back(&self());
        self().fiber.suspend();
    }
    // `work` happens at some later moment, in no order with other such work. What is patient may wait for as long as
    // anything else can be done: nobody needs a store to be over soon.
    void later(std::function<void()> work, bool patient = false) {
        (patient && lazy_stores_ ? patient_ : pending_).push_back(std::move(work));
    }
    Random& random() { return random_; }
    void stop(std::string error) {
        if (error_.empty()) error_ = std::move(error);
    }

    int64_t cluster_arrived = 0, cluster_live = 0;
    uint64_t cluster_generation = 0;
    Waiters cluster_waiters;
    void complete_cluster_barrier() {
        if (cluster_arrived < cluster_live || cluster_arrived == 0) return;
        cluster_arrived = 0;
        ++cluster_generation;
        wake(cluster_waiters);
    }

  private:
    void reset(int64_t cluster);
    void exit_checks(Thread& thread);
    Thread* pick();
    void complete_one(std::vector<std::function<void()>>& from);
    std::string deadlock() const;
    static std::string reason(const Thread& thread);
    bool idle() const { return runnable_.empty() || polls_ > kPatience; }

    static constexpr int64_t kPatience = 100000;  // looks in vain, of all threads together

    Shape shape_;
    const EmulatorConfig& config_;
    int64_t index_ = 0;
    const std::function<void()>* kernel_ = nullptr;
    std::vector<std::unique_ptr<Thread>> threads_;
    std::vector<Thread*> runnable_;
    std::vector<std::function<void()>> pending_, patient_;
    Random random_{0};
    uint32_t async_chance_ = 0;       // of 1024: how eager asynchronous work is, this run
    bool priorities_ = false;         // do some warps usually go first, this run?
    bool lazy_stores_ = false;        // do TMA stores wait until nothing else happens, this run?
    std::vector<uint32_t> priority_;  // of each warp of the cluster
    int elected_lane_ = 0;
    uint64_t step_ = 0;
    int64_t polls_ = 0;  // since anybody was woken, or anything asynchronous happened
    std::string error_;
};

struct Stopped {};  // thrown by fail() when no thread is running

[[noreturn]] inline void fail(const char* format, ...) {
    char text[512];
    va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    if (!current_thread) {
        current_cluster->stop(text);
        throw Stopped{};
    }
    char where[96];
    std::snprintf(where, sizeof where, "block %lld, warp %d, lane %d: ", static_cast<long long>(self().block->index),
                  self().warp(), self().lane());
    current_cluster->stop(std::string(where) + text);
    self().fiber.suspend();  // for good: the scheduler sees the error and ends the run
    __builtin_unreachable();
}

// All 32 lanes hand in `data`; each gets everybody's.
inline const std::array<std::array<uint64_t, 5>, 32>& exchange(const char* what, const std::array<uint64_t, 5>& data) {
    Thread& thread = self();
    Exchange& warp = thread.block->exchanges[static_cast<std::size_t>(thread.warp())];
    const uint64_t generation = thread.exchanges++;
    if (warp.arrived == 0) warp.what = what;
    if (std::string(warp.what) != what)
        fail("executes %s while its warp executes %s: all 32 lanes must execute the same", what, warp.what);
    auto& slots = warp.slots[generation % 2];
    slots[static_cast<std::size_t>(thread.lane())] = data;
    if (++warp.arrived == 32) {
        warp.arrived = 0;
        ++warp.generation;
        current_cluster->wake(warp.waiters);
    }
    while (warp.generation <= generation) current_cluster->block_on(warp.waiters, {what});
    return slots;
}

inline void Cluster::reset(int64_t cluster) {
    index_ = cluster;
    step_ = 0;
    polls_ = 0;
    error_.clear();
    events.clear();
    runnable_.clear();
    pending_.clear();
    patient_.clear();
    random_ = Random(config_.seed * 0x2545F4914F6CDD1D + static_cast<uint64_t>(cluster));
    // The seed also chooses the weather: asynchronous work immediate, prompt, slow, or only when nothing else can
    // run; all threads alike, or some warps far ahead of others.
    static constexpr uint32_t kAsyncChances[] = {1024, 512, 64, 0};
    async_chance_ = kAsyncChances[random_.below(4)];
    priorities_ = random_.chance(512);
    lazy_stores_ = random_.chance(512);
    elected_lane_ = static_cast<int>(random_.below(32));
    priority_.assign(threads_.size() / 32, 0);
    for (uint32_t& priority : priority_) priority = random_.below(1 << 16);

    const int warps = shape_.threads / 32;
    const int registers = std::min(255, shape_.registers / shape_.threads) / 8 * 8;
    for (int rank = 0; rank < shape_.size; ++rank) {
        Block& block = blocks[rank];
        block = {};
        block.rank = rank;
        block.index = cluster * shape_.size + rank;
        block.memory.reset(shape_.shared_bytes);
        block.exchanges.resize(warps);
        block.registers.assign(warps, {registers});
        block.free_registers = shape_.registers - static_cast<int64_t>(registers) * shape_.threads;
        block.live = shape_.threads;
        block.wgmmas.resize(warps);
        block.warpgroup_wgmmas.resize((warps + 3) / 4);
        for (int i = 0; i < shape_.threads; ++i) {
            Thread& thread = *threads_[rank * shape_.threads + i];
            thread.block = &block;
            thread.index = i;
            thread.thread_index = {static_cast<uint32_t>(i), 0, 0};
            thread.block_index = {static_cast<uint32_t>(block.index), 0, 0};
            thread.block_dim = {static_cast<uint32_t>(shape_.threads), 1, 1};
            thread.grid_dim = {static_cast<uint32_t>(shape_.blocks), 1, 1};
            thread.finished = false;
            thread.wait = {};
            thread.unfenced.clear();
            thread.exchanges = thread.cluster_generation = 0;
            thread.cluster_pending = thread.wgmma_fenced = false;
            thread.wgmmas = thread.wgmmas_waited = 0;
            thread.wgmma_groups.clear();
            thread.accumulators.clear();
            thread.stores.clear();
            thread.store_groups.clear();
            block.threads.push_back(&thread);
            runnable_.push_back(&thread);
        }
    }
    cluster_arrived = 0;
    cluster_live = static_cast<int64_t>(threads_.size());
    cluster_generation = 0;
    cluster_waiters.clear();
}

inline std::string Cluster::run(int64_t cluster, const std::function<void()>& kernel) {
    current_cluster = this;
    reset(cluster);
    kernel_ = &kernel;
    for (auto& thread : threads_)
        thread->fiber.start(
            [](void* argument) {
                auto* me = static_cast<Cluster*>(argument);
                Thread& thread = self();
                if (thread.lane() == 0) me->record(Event::thread_start, *thread.block, thread.index);
                (*me->kernel_)();
                me->exit_checks(thread);
            },
            this);
    try {
        std::size_t alive = threads_.size();
        while (alive > 0 && error_.empty()) {
            ++step_;
            if (config_.max_steps && step_ > static_cast<uint64_t>(config_.max_steps)) {
                stop("no end after " + std::to_string(config_.max_steps) + " steps");
            } else if (!pending_.empty() && (idle() || random_.chance(async_chance_))) {
                complete_one(pending_);
            } else if (idle() && !patient_.empty()) {
                complete_one(patient_);
            } else if (runnable_.empty()) {
                stop(deadlock());
            } else {
                current_thread = pick();
                current_thread->fiber.resume();
                alive -= current_thread->finished;
                current_thread = nullptr;
            }
        }
        while (!pending_.empty() && error_.empty()) complete_one(pending_);
        while (!patient_.empty() && error_.empty()) complete_one(patient_);
    } catch (const Stopped&) {
    }
    current_thread = nullptr;
    current_cluster = nullptr;
    return error_;
}

inline Thread* Cluster::pick() {
    std::size_t best = random_.below(static_cast<uint32_t>(runnable_.size()));
    if (priorities_) {  // the highest of four drawn at random
        const auto priority = [&](std::size_t i) {
            return priority_[(runnable_[i]->block->rank * shape_.threads + runnable_[i]->index) / 32];
        };
        for (int i = 0; i < 3; ++i) {
            const std::size_t other = random_.below(static_cast<uint32_t>(runnable_.size()));
            if (priority(other) > priority(best)) best = other;
        }
    }
    Thread* thread = runnable_[best];
    runnable_[best] = runnable_.back();
    runnable_.pop_back();
    return thread;
}

inline void Cluster::complete_one(std::vector<std::function<void()>>& from) {
    const std::size_t i = random_.below(static_cast<uint32_t>(from.size()));
    const std::function<void()> work = std::move(from[i]);
    from[i] = std::move(from.back());
    from.pop_back();
    polls_ = 0;
    work();
}

inline void Cluster::exit_checks(Thread& thread) {
    Block& block = *thread.block;
    if (thread.lane() == 0) record(Event::thread_exit, block, thread.index);
    if (!thread.accumulators.empty()) fail("exits with WGMMAs in flight: commit them and wait for them");
    for (const auto& group : thread.store_groups)
        for (const auto& store : group)
            if (!store->has_read) fail("exits while a TMA store may still read shared memory: wait_group.read first");
    if (!thread.stores.empty()) fail("exits with a TMA store that was never committed");
    thread.finished = true;
    --cluster_live;
    complete_cluster_barrier();
    if (--block.live == 0 && block.loads_in_flight)
        fail("the block ends while %d TMA loads into its shared memory are in flight", block.loads_in_flight);
    for (const auto& issued : block.warpgroup_wgmmas)
        if (!block.live && !issued.empty())
            fail("the block ends with a wgmma that only some warps of a warpgroup issued");
    for (std::size_t warp = 0; !block.live && warp < block.registers.size(); ++warp)
        if (block.registers[warp].size() != block.registers[warp / 4 * 4].size())
            fail("the block ends with a setmaxnreg that only some warps of a warpgroup executed");
}

// Who waits for what, warps with the same reason together.
inline std::string Cluster::deadlock() const {
    std::map<std::pair<int64_t, std::string>, std::vector<int>> waiting;  // block and reason: warps
    for (const auto& thread : threads_) {
        if (thread->finished) continue;
        auto& warps = waiting[{thread->block->index, reason(*thread)}];
        if (warps.empty() || warps.back() != thread->warp()) warps.push_back(thread->warp());
    }
    std::string text = "deadlock in cluster " + std::to_string(index_) + " after " + std::to_string(step_) + " steps";
    const char* separator = ": ";
    for (const auto& [where, warps] : waiting) {
        text += separator + ("block " + std::to_string(where.first)) + ", warp";
        for (const int warp : warps) text += " " + std::to_string(warp);
        text += " waits for " + where.second;
        separator = "; ";
    }
    return text;
}

inline std::string Cluster::reason(const Thread& thread) {
    const Block& block = *thread.block;
    const std::string what = thread.wait.what;
    char text[256];
    if (what == "mbarrier") {
        const Mbarrier& barrier = block.mbarriers.at(thread.wait.address);
        std::snprintf(
            text, sizeof text,
            "mbarrier 0x%x to complete a phase of parity %lld: it is in phase %lld with %lld of %lld arrivals "
            "pending and %lld bytes to come",
            thread.wait.address, static_cast<long long>(thread.wait.value), static_cast<long long>(barrier.phase),
            static_cast<long long>(barrier.pending), static_cast<long long>(barrier.count),
            static_cast<long long>(barrier.bytes));
        return text;
    }
    if (what == "named barrier") {
        const NamedBarrier& barrier = block.barriers[thread.wait.address];
        std::snprintf(text, sizeof text, "barrier %u, where %u of %u threads have arrived", thread.wait.address,
                      barrier.arrived, barrier.threads);
        return text;
    }
    return what;
}

}  // namespace emulator
