// One cluster of blocks on one OS thread: its threads (fibers), and the scheduler that chooses, from a seed, which of
// them runs next and when asynchronous work happens.
#pragma once

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <optional>

#include "record.hpp"
#include "state.hpp"

namespace emulator {

class Cluster;
inline thread_local Cluster* current_cluster = nullptr;
inline thread_local Thread* current_thread = nullptr;  // nullptr: the scheduler or an asynchronous unit
inline Thread& self() { return *current_thread; }

struct Work {  // asynchronous work, and the thread that issued it
    std::function<void()> run;
    Place issuer;
};

class Cluster {
  public:
    struct Shape {
        int size, threads;
        uint32_t shared_bytes;
        int64_t blocks;  // of the whole grid
        int registers;   // 32-bit ones, a block
        bool early;      // LaunchConfig::early
    };

    Cluster(const Shape& shape, const EmulatorConfig& config) : shape_(shape), config_(config) {
        blocks.resize(shape.size);
        for (int i = 0; i < shape.size * shape.threads; ++i) threads_.push_back(std::make_unique<Thread>());
    }

    // Runs one cluster to its end. Returns the fault that ended it, or nothing.
    std::optional<FaultReport> run(int64_t cluster, const std::function<void()>& kernel);

    uint64_t steps() const { return step_; }
    std::vector<EmulatorEvent> events;
    std::vector<Block> blocks;
    const EmulatorConfig& config() const { return config_; }
    const Shape& shape() const { return shape_; }
    int elected_lane() const { return elected_lane_; }
    Place issuer() const { return issuer_; }

    // ---- What the instructions use
    void record(Event kind, const Block& block, int thread, uint32_t address = 0, int64_t value = 0) {
        if (config_.record)
            events.push_back({step_, static_cast<int32_t>(index_), static_cast<int32_t>(block.index), thread,
                              static_cast<int32_t>(kind), address, 0, value});
    }
    // The calling thread stops until these waiters are woken; the caller then tests its condition again.
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
    // With a probability of one in eight, another thread may run before the calling one goes on.
    void maybe_yield() {
        if (!random_.chance(128)) return;
        runnable_.push_back(&self());
        self().fiber.suspend();
    }
    // A thread has tested an mbarrier in vain. Threads that poll stay runnable, so after kPatience polls in a row
    // without any other progress the scheduler does asynchronous work; if there is none, they would poll for ever.
    void poll(uint32_t address) {
        if (++polls_ > kPatience && pending_.empty() && patient_.empty())
            fail_at(Fault::endless_polling, address,
                    "polls an mbarrier for ever: nothing is on its way and no other thread makes progress");
        runnable_.push_back(&self());
        self().fiber.suspend();
    }
    // `work` happens at some later moment, in no particular order. Patient work, which is TMA stores, may be put off
    // for as long as anything else can be done, because no thread has to see a store finish in order to go on.
    void later(Place issuer, std::function<void()> work, bool patient = false) {
        (patient && lazy_stores_ ? patient_ : pending_).push_back({std::move(work), issuer});
    }
    Random& random() { return random_; }
    void stop(FaultReport fault) {
        if (!fault_) fault_ = std::move(fault);
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
    void complete_one(std::vector<Work>& from);
    std::string deadlock() const;
    static std::string reason(const Thread& thread);
    bool idle() const { return runnable_.empty() || polls_ > kPatience; }

    static constexpr int64_t kPatience = 100000;  // polls in vain, of all threads together

    Shape shape_;
    const EmulatorConfig& config_;
    int64_t index_ = 0;
    const std::function<void()>* kernel_ = nullptr;
    std::vector<std::unique_ptr<Thread>> threads_;
    std::vector<Thread*> runnable_;
    std::vector<Work> pending_, patient_;
    Random random_{0};
    // Chosen by the seed, for the whole run:
    uint32_t async_chance_ = 0;       // probability, in 1024ths, that a step does asynchronous work
    bool priorities_ = false;         // whether some warps usually run before others
    bool lazy_stores_ = false;        // whether TMA stores wait until nothing else can happen
    std::vector<uint32_t> priority_;  // of each warp of the cluster
    int elected_lane_ = 0;
    uint64_t step_ = 0;
    int64_t polls_ = 0;  // since a thread was woken or asynchronous work was done
    Place issuer_;       // of the asynchronous work that was begun last
    std::optional<FaultReport> fault_;
};

struct Stopped {};  // thrown by fail_at() when no thread is running

[[noreturn]] inline void fail_at(Fault what, uint64_t address, const char* format, ...) {
    char text[512];
    va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    if (!current_thread) {
        current_cluster->stop({what, text, current_cluster->issuer(), address});
        throw Stopped{};
    }
    const Place place = self().place();
    char where[96];
    std::snprintf(where, sizeof where, "block %lld, warp %d, lane %d: ", static_cast<long long>(place.block),
                  place.warp, place.lane);
    current_cluster->stop({what, std::string(where) + text, place, address});
    self().fiber.suspend();  // for good: the scheduler sees the fault and ends the run
    __builtin_unreachable();
}

// Each of the warp's 32 lanes gives its `data` and gets the data of all of them. `what` is the instruction's name.
inline const std::array<std::array<uint64_t, 5>, 32>& exchange(const char* what, const std::array<uint64_t, 5>& data) {
    Thread& thread = self();
    Exchange& warp = thread.block->exchanges[static_cast<std::size_t>(thread.warp())];
    const uint64_t generation = thread.exchanges++;
    if (warp.arrived == 0) warp.what = what;
    if (std::string(warp.what) != what)
        fail(Fault::divergent_warp, "executes %s while its warp executes %s: all 32 lanes must execute the same", what,
             warp.what);
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

// Records an instruction of a whole warp once, when lane 0 executes it.
inline void record_warp(Event kind, uint32_t address = 0, int64_t value = 0) {
    if (self().lane() == 0) current_cluster->record(kind, *self().block, self().index, address, value);
}

inline void Cluster::reset(int64_t cluster) {
    index_ = cluster;
    step_ = 0;
    polls_ = 0;
    fault_.reset();
    events.clear();
    runnable_.clear();
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
            thread.dependency_waited = !shape_.early;
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

inline std::optional<FaultReport> Cluster::run(int64_t cluster, const std::function<void()>& kernel) {
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
        while (alive > 0 && !fault_) {
            ++step_;
            if (config_.max_steps && step_ > static_cast<uint64_t>(config_.max_steps)) {
                stop({Fault::step_limit, "no end after " + std::to_string(config_.max_steps) + " steps", {}, 0});
            } else if (!pending_.empty() && (idle() || random_.chance(async_chance_))) {
                complete_one(pending_);
            } else if (idle() && !patient_.empty()) {
                complete_one(patient_);
            } else if (runnable_.empty()) {
                stop({Fault::deadlock, deadlock(), {}, 0});  // several threads wait, so no one place is at fault
            } else {
                current_thread = pick();
                current_thread->fiber.resume();
                alive -= current_thread->finished;
                current_thread = nullptr;
            }
        }
        while (!pending_.empty() && !fault_) complete_one(pending_);
        while (!patient_.empty() && !fault_) complete_one(patient_);
    } catch (const Stopped&) {
    }
    current_thread = nullptr;
    current_cluster = nullptr;
    return fault_;
}

inline Thread* Cluster::pick() {
    std::size_t best = random_.below(static_cast<uint32_t>(runnable_.size()));
    if (priorities_) {  // the thread with the highest priority of four chosen at random
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

inline void Cluster::complete_one(std::vector<Work>& from) {
    const std::size_t i = random_.below(static_cast<uint32_t>(from.size()));
    const Work work = std::move(from[i]);
    from[i] = std::move(from.back());
    from.pop_back();
    polls_ = 0;
    issuer_ = work.issuer;
    work.run();
}

inline void Cluster::exit_checks(Thread& thread) {
    Block& block = *thread.block;
    if (thread.lane() == 0) record(Event::thread_exit, block, thread.index);
    if (!thread.accumulators.empty())
        fail(Fault::unfinished_wgmma, "exits with WGMMAs in flight: commit them and wait for them");
    for (const auto& group : thread.store_groups)
        for (const auto& store : group)
            if (!store->has_read)
                fail(Fault::unfinished_store,
                     "exits while a TMA store may still read shared memory: wait_group.read first");
    if (!thread.stores.empty()) fail(Fault::uncommitted_store, "exits with a TMA store that was never committed");
    thread.finished = true;
    --cluster_live;
    complete_cluster_barrier();
    if (--block.live == 0 && block.loads_in_flight)
        fail(Fault::unfinished_load, "the block ends while %d TMA loads into its shared memory are in flight",
             block.loads_in_flight);
    // Ordinary loads and stores of global memory are plain C++, which the emulator does not see. It does see that no
    // thread of the block has waited.
    if (!block.live && std::ranges::none_of(block.threads, &Thread::dependency_waited))
        fail(Fault::missing_dependency_wait,
             "the block ends without griddepcontrol.wait, in a kernel that may begin before the one ahead has ended");
    for (const auto& issued : block.warpgroup_wgmmas)
        if (!block.live && !issued.empty())
            fail(Fault::divergent_warpgroup, "the block ends with a wgmma that only some warps of a warpgroup issued");
    for (std::size_t warp = 0; !block.live && warp < block.registers.size(); ++warp)
        if (block.registers[warp].size() != block.registers[warp / 4 * 4].size())
            fail(Fault::divergent_warpgroup,
                 "the block ends with a setmaxnreg that only some warps of a warpgroup executed");
}

// Which warps wait for what; warps that wait for the same are listed together.
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
