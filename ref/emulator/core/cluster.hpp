// One cluster of blocks on one OS thread: its threads (fibers), and the scheduler that chooses, from a seed, which of
// them runs next and when asynchronous work happens.
#pragma once

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstdarg>
#include <cstdio>
#include <mutex>
#include <optional>

#include "../launch.cuh"
#include "record.hpp"
#include "state.hpp"

namespace emulator {

class Cluster;
std::string name_of(const Block& block, uint32_t address);
inline thread_local Cluster* current_cluster = nullptr;
inline thread_local Thread* current_thread = nullptr;  // nullptr: the scheduler or an asynchronous unit
// The thread on whose stack the caller runs; not for the scheduler and asynchronous units, which have none.
[[gnu::always_inline]] inline Thread& self() { return *static_cast<Thread*>(indices().state); }

struct Work {  // asynchronous work, and the thread that issued it
    std::function<void()> run;
    Place issuer;
};

// What all clusters of a launch share.
struct Launch {
    EmulatorConfig config;
    GlobalMemory memory;
    std::atomic<int64_t> failed{INT64_MAX};  // of the clusters that were at fault, the first in the launch's order
    // Rise when any thread of the launch has executed an instruction that does more than look at memory; and one that
    // does more than meet other threads, too.
    std::atomic<uint64_t> progress{0}, changes{0};
    // Called by a cluster that may wait for one that has not begun yet.
    std::function<void()> begin_another{};
    std::mutex printing;
    std::string printed{};
};

class Cluster {
  public:
    struct Shape {
        GridShape grid;
        int size, threads;                                 // blocks of a cluster, threads of a block
        int warps() const { return (threads + 31) / 32; }  // of a block
        uint32_t shared_bytes;
        int registers;  // 32-bit ones, a block
        bool early;     // LaunchConfig::early
    };

    Cluster(const Shape& shape, Launch& launch)
        : memory(&launch.memory),
          shape_(shape),
          launch_(launch),
          config_(launch.config),
          threads_(static_cast<std::size_t>(shape.size * shape.threads)) {
        blocks.resize(shape.size);
    }

    // Runs one cluster to its end. Returns the fault that ended it, or nothing.
    // `place` is its place in the order in which the launch's clusters begin.
    std::optional<FaultReport> run(int64_t cluster, const Call& call, int64_t place);

    uint64_t steps() const { return step_; }
    uint64_t turn() const { return turn_; }  // rises whenever a thread is given its turn
    std::vector<EmulatorEvent> events;
    std::vector<Block> blocks;
    const GlobalMemory* memory;
    const EmulatorConfig& config() const { return config_; }
    const Shape& shape() const { return shape_; }
    int elected_lane() const { return elected_lane_; }
    Place issuer() const { return issuer_; }
    // The asynchronous instruction that is being carried out (Issued), and the place in the kernel that issued it.
    struct Instruction {
        Place issuer;
        const void* from = nullptr;
    };
    Instruction instruction;

    // ---- What the instructions use
    void record(Event kind, const Block& block, int thread, uint32_t address = 0, int64_t value = 0) {
        if (config_.record)
            events.push_back({step_, static_cast<int32_t>(index_), static_cast<int32_t>(block.index), thread,
                              static_cast<int32_t>(kind), address, 0, value, thread >= 0 ? self().from : nullptr});
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
        if (random_.chance(128)) yield();
    }
    // Another thread may run before the calling one goes on.
    void yield() {
        runnable_.push_back(&self());
        self().fiber.suspend();
    }
    // A thread has tested an mbarrier in vain. Threads that poll stay runnable, so after kPatience polls in a row
    // without any other progress the scheduler does asynchronous work; if there is none, they would poll for ever.
    void poll(uint32_t address) {
        if (++polls_ > kPatience && pending_.empty() && patient_.empty()) {
            if (std::ranges::all_of(runnable_, &Thread::polls))
                fail_at(Fault::endless_polling, address,
                        "polls %s for ever: nothing is on its way and no other thread makes progress",
                        name_of(*self().block, address).c_str());
            polls_ = 0;  // one of the others may wait for another cluster, and spin() says if it does so for ever
        }
        self().polls = true;
        runnable_.push_back(&self());
        self().fiber.suspend();
    }
    // A thread has used memory kTicks times without an instruction that changes anything. It may compute, or read the
    // same again and again until another thread has written it: that one may be of this cluster, or of one that has
    // not begun.
    void spin() {
        if (self().doubtful) SharedMemory::settle(self());
        const uint64_t progress = publish_progress();
        if (progress != seen_progress_) seen_progress_ = progress, spins_ = 0;
        if (++spins_ > kSpins)
            fail(
                Fault::endless_loop,
                "has run for long without an instruction that changes anything, and nothing else happens meanwhile: an "
                "endless loop");
        if (spins_ % kFewSpins == 0) launch_.begin_another();
        polls_ += kPatience / kFewSpins;
        runnable_.push_back(&self());
        self().fiber.suspend();
    }
    // The calling thread tells a barrier what it has done. In large clusters too many threads would have to be kept in
    // mind for each other, so there all of them know everything.
    void release(Told& told) {
        if (orders()) self().release(told, numbers());
    }
    // The calling thread is told what a barrier was told.
    void acquire(const Known& told) { joined_.tell(self().known, told); }
    // What is asynchronous is another actor than the thread that issues it, one of each kind for each warp: who knows
    // that a load was issued does not know that it has landed. Of a warpgroup, it is the first warp's.
    enum class Unit : uint32_t { load, store, wgmma_commit, wgmma_wait, thread_writes };
    uint32_t actor(Unit unit, uint32_t of) const {
        return static_cast<uint32_t>(numbers() + static_cast<uint32_t>(unit) * loads_.size()) + of;
    }
    Moment moment(Unit unit, uint32_t warp, int64_t number) const {
        if (!orders()) return {};
        return {actor(unit, warp), static_cast<uint32_t>(number)};
    }
    // Of a TMA load, or of a TMA store, that the calling thread issues.
    Moment next_load() { return moment(Unit::load, self().number / 32, ++loads_[self().number / 32]); }
    Moment next_store() { return moment(Unit::store, self().number / 32, ++stores_[self().number / 32]); }
    // A thread, or a warp, learns of `moment`. `told` is where others who learn of the same find it.
    void learn(Known& known, const Moment& moment, Known& told) {
        if (!moment.number) return;
        if (!knows(told, moment) || told->size() != moment.thread + 1 || told->back() != moment.number) {
            Told only;
            only.join(nullptr, moment, 0);
            told = only.take();
        }
        joined_.tell(known, told);
    }
    void join(Known& known, const Known& more) { joined_.tell(known, more); }
    // The cluster's threads have numbers below this one (Actor::number): 32 for each warp, also for an incomplete one.
    uint32_t numbers() const { return static_cast<uint32_t>(shape_.size * shape_.warps() * 32); }
    bool orders() const { return threads_.size() <= kOrdered; }
    // A kernel's printf.
    void print(const char* text) {
        const std::lock_guard lock(launch_.printing);
        launch_.printed += text;
    }
    // A thread calls the emulator, from the place `from` in the kernel's machine code.
    void enter(Thread& thread, const void* from) {
        if (thread.doubtful) [[unlikely]]
            SharedMemory::settle(thread);
        thread.from = from;
        thread.ticks = 0;
        thread.polls = false;
        ++instructions_;
        ++changes_;
    }
    // The same, by an instruction at which threads meet. Alone it changes nothing that a loop could wait for.
    void meet(Thread& thread, const void* from) {
        enter(thread, from);
        --changes_;
    }
    // The same, by an instruction that only looks whether others have changed something, or waits a while. In a loop it
    // is as a load, but takes longer.
    // `polls`: it tests an mbarrier, as a thread may that poll() has stopped before.
    void look(Thread& thread, const void* from, bool polls = false) {
        if (thread.doubtful) [[unlikely]]
            SharedMemory::settle(thread);
        thread.polls &= polls;
        thread.from = from;
        constexpr uint32_t kLoads = 4;  // that take as long
        if ((thread.ticks += kLoads) <= kTicks) return;
        thread.ticks = 0;
        spin();
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
    Told cluster_told;
    Known cluster_completed;
    void complete_cluster_barrier() {
        if (cluster_arrived < cluster_live || cluster_arrived == 0) return;
        cluster_arrived = 0;
        cluster_completed = cluster_told.take();
        ++cluster_generation;
        wake(cluster_waiters);
    }

  private:
    void reset(int64_t cluster);
    dim3 index_of_block(int64_t cluster, uint32_t rank) const;
    void exit_checks(Thread& thread);
    void check_visits(const Block& block);
    void release_those_who_wait_for(Thread& thread);
    Thread* pick();
    void complete_one(std::vector<Work>& from);
    FaultReport deadlock() const;
    static std::string reason(const Thread& thread);
    uint64_t publish_progress() { return publish(instructions_, published_, launch_.progress); }
    static uint64_t publish(uint64_t mine, uint64_t& published, std::atomic<uint64_t>& of_launch) {
        if (std::exchange(published, mine) != mine) return of_launch.fetch_add(1, std::memory_order_relaxed) + 1;
        return of_launch.load(std::memory_order_relaxed);
    }
    // Threads may meet again and again, for example at __syncthreads() in a loop that waits for a number in memory.
    void end_if_nothing_changes(const Thread* last) {
        const uint64_t changes = publish(changes_, published_changes_, launch_.changes);
        if (changes != seen_changes_) seen_changes_ = changes, still_since_ = step_;
        if (step_ - still_since_ < kStill || !last) return;
        const Place place = last->place();
        stop({Fault::endless_loop,
              where(place) + "meets other threads again and again, and nothing changes meanwhile: an endless loop",
              place, 0, last->from});
    }
    bool idle() const { return runnable_.empty() || polls_ > kPatience; }

    static constexpr int64_t kPatience = 100000;    // polls in vain, of all threads together
    static constexpr int64_t kStarving = 1000;      // after so many, all threads advance alike
    static constexpr std::size_t kOrdered = 4096;   // threads of a cluster
    static constexpr uint64_t kOvertime = 1 << 14;  // times 64 steps, after another cluster's fault
    static constexpr int64_t kSpins = 1 << 15, kFewSpins = 64;
    static constexpr uint64_t kStill = 1 << 26;  // steps

    Shape shape_;
    Launch& launch_;
    const EmulatorConfig& config_;
    int64_t index_ = 0;
    const Call* call_ = nullptr;
    std::vector<Thread> threads_;  // those of a block, and of a warp, are neighbours
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
    int64_t spins_ = 0;  // times that threads of this cluster have called spin() since the launch made progress
    std::atomic<uint64_t> turn_{0};
    Joined joined_;
    std::vector<uint32_t> loads_, stores_;  // that each warp has issued
    uint64_t instructions_ = 0, published_ = 0, seen_progress_ = 0;
    uint64_t changes_ = 0, published_changes_ = 0, seen_changes_ = 0;
    uint64_t still_since_ = 0;  // the step at which seen_changes_ was new
    Place issuer_;              // of the asynchronous work that was begun last
    std::optional<FaultReport> fault_;
};

// The thread that has this number in the cluster, or whose asynchronous writes have it.
inline const Thread& thread_of(uint32_t number) {
    if (const uint32_t first = current_cluster->actor(Cluster::Unit::thread_writes, 0); number >= first)
        number -= first;
    const auto of_block = static_cast<uint32_t>(current_cluster->shape().warps() * 32);
    return *current_cluster->blocks[number / of_block].threads[number % of_block];
}

inline ThreadName name_of_thread(uint32_t number) {
    const Thread& thread = thread_of(number);
    ThreadName name;
    std::snprintf(name.text, sizeof name.text, "thread %d of block %lld", thread.index,
                  static_cast<long long>(thread.block->index));
    return name;
}

// While an object of this class lives, a fault is one of the asynchronous instruction that was issued there, whoever
// carries it out: the scheduler, or a thread that waits for it.
class Issued {
  public:
    Issued(const Place& issuer, const void* from)
        : cluster_(*current_cluster), before_(std::exchange(cluster_.instruction, {issuer, from})) {}
    ~Issued() { cluster_.instruction = before_; }
    Issued(const Issued&) = delete;
    Issued& operator=(const Issued&) = delete;

  private:
    Cluster& cluster_;
    Cluster::Instruction before_;
};

struct Stopped {};  // thrown by fail_at() when no thread is running

// Notes a fault of the running thread, after which the scheduler ends the run. Not of self(): a signal handler runs on
// a stack of its own.
inline void note(Fault what, uint64_t address, const void* other, const char* text) {
    const Thread& thread = *current_thread;
    const Place place = thread.place();
    current_cluster->stop({what, where(place) + text, place, address, thread.from, other});
}

[[noreturn]] inline void report(Fault what, uint64_t address, const void* other, const char* format,
                                va_list arguments) {
    char text[768];
    std::vsnprintf(text, sizeof text - 256, format, arguments);
    const Cluster::Instruction& issued = current_cluster->instruction;
    const Place place = issued.from      ? issued.issuer
                        : current_thread ? current_thread->place()
                                         : current_cluster->issuer();
    if (what == Fault::data_race || what == Fault::missing_proxy_fence || what == Fault::released_too_early)
        for (const Block& one : current_cluster->blocks)
            if (one.index == place.block) std::strncat(text, one.mixed_barrier.c_str(), 255);
    if (issued.from || !current_thread)
        current_cluster->stop({what, where(place) + text, place, address, issued.from, other});
    else
        note(what, address, other, text);
    if (!current_thread) throw Stopped{};
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
    exchange.arrived = 0;
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
    while (exchange.generation <= generation) cluster.block_on(exchange.waiters, {what});
    if (orders) cluster.acquire(exchange.completed);
    return slots;
}

// An .aligned instruction of one lane, in a line of the kernel: all lanes of the warp must come to it in the same one.
// Otherwise the warp has diverged, and PTX does not say what the instruction does.
inline void together(const char* what, int line) {
    const Thread& thread = self();
    const auto warp = static_cast<std::size_t>(thread.warp());
    Aligned& met = thread.block->aligned[warp];
    if (met.lanes >> thread.lane() & 1)
        met.lanes = 0;  // the others have gone on, past a barrier that had enough threads
    if (met.lanes && (met.line != line || std::strcmp(met.what, what) != 0))
        fail_race(
            Fault::divergent_warp, 0, met.from,
            "executes %s, and other lanes of its warp execute %s elsewhere: the warp has diverged, and all its lanes "
            "must execute such an instruction together",
            what, met.what);
    if (!met.lanes) met = {what, line, 0, thread.from};
    met.lanes |= 1u << thread.lane();
    const uint32_t alive = thread.block->alive[warp];
    if ((met.lanes & alive) == alive) met.lanes = 0;
}

// Records an instruction of a whole warp once, when lane 0 executes it.
inline void record_warp(Event kind, uint32_t address = 0, int64_t value = 0) {
    if (self().lane() == 0) self().cluster->record(kind, *self().block, self().index, address, value);
}

// The place of number `number` in a box of that size, x running fastest.
inline dim3 at(uint64_t number, const dim3& size) {
    return {static_cast<uint32_t>(number % size.x), static_cast<uint32_t>(number / size.x % size.y),
            static_cast<uint32_t>(number / size.x / size.y)};
}

inline dim3 Cluster::index_of_block(int64_t cluster, uint32_t rank) const {
    const dim3 &grid = shape_.grid.grid, &size = shape_.grid.cluster;
    const dim3 outer = at(static_cast<uint64_t>(cluster), {grid.x / size.x, grid.y / size.y, grid.z / size.z});
    const dim3 inner = at(rank, size);
    return {outer.x * size.x + inner.x, outer.y * size.y + inner.y, outer.z * size.z + inner.z};
}

// The registers that each of a block's threads begins with, of those that the block may have.
inline int registers_of_thread(int64_t registers, int64_t threads) {
    return static_cast<int>(std::min<int64_t>(255, registers / threads) / 8 * 8);
}

inline void Cluster::reset(int64_t cluster) {
    index_ = cluster;
    step_ = still_since_ = 0;
    polls_ = spins_ = 0;
    fault_.reset();
    instruction = {};
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
        block.memory.reset(shape_.shared_bytes);
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
            thread.number = static_cast<uint32_t>(rank * warps * 32 + i);
            thread.moment = orders() ? 1 : 0;  // moment 0 lies before everything
            thread.known.reset();
            thread.from = nullptr;
            thread.ticks = 0;
            thread.polls = false;
            thread.unfenced.clear();
            thread.doubtful = false;
            thread.cluster_generation = 0;
            thread.cluster_pending = thread.wgmma_fenced = false;
            thread.dependency_waited = !shape_.early;
            thread.wgmmas = thread.wgmmas_waited = 0;
            thread.wgmma_groups.clear();
            thread.accumulators.clear();
            thread.rested.clear();
            thread.written_since_fence.clear();
            thread.stores.clear();
            thread.store_groups.clear();
            thread.async_writes = {};
            block.threads.push_back(&thread);
            runnable_.push_back(&thread);
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
        uint64_t overtime = 0;
        const Thread* last = nullptr;
        while (alive > 0 && !fault_) {
            ++step_;
            if (step_ % 64 == 0) {
                publish_progress();
                end_if_nothing_changes(last);
                // A cluster that has ended by a fault may hold a lock that this one waits for.
                if (const int64_t failed = launch_.failed;
                    failed < place || (failed != INT64_MAX && ++overtime > kOvertime))
                    break;
            }
            if (config_.max_steps && step_ > static_cast<uint64_t>(config_.max_steps)) {
                stop({Fault::step_limit, "no end after " + std::to_string(config_.max_steps) + " steps", {}, 0});
            } else if (!pending_.empty() && (idle() || random_.chance(async_chance_))) {
                complete_one(pending_);
            } else if (idle() && !patient_.empty()) {
                complete_one(patient_);
            } else if (runnable_.empty()) {
                stop(deadlock());
            } else {
                current_thread = pick();
                turn_.store(turn_.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
                current_thread->fiber.resume();
                alive -= current_thread->finished;
                last = current_thread;
                current_thread = nullptr;
            }
        }
        while (alive == 0 && !pending_.empty() && !fault_) complete_one(pending_);
        while (alive == 0 && !patient_.empty() && !fault_) complete_one(patient_);
    } catch (const Stopped&) {
    }
    current_thread = nullptr;
    current_cluster = nullptr;
    return fault_;
}

inline Thread* Cluster::pick() {
    std::size_t best = random_.below(static_cast<uint32_t>(runnable_.size()));
    // The thread with the highest priority of four chosen at random; but many threads that poll must not starve the one
    // that they wait for.
    if (priorities_ && polls_ <= kStarving) {
        const auto priority = [&](std::size_t i) { return priority_[runnable_[i]->number / 32]; };
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
    ++changes_;
    issuer_ = work.issuer;
    work.run();
}

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
    if (thread.doubtful) SharedMemory::settle(thread);
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

// A place in the kernel's machine code. Python puts the source line there.
inline std::string place_of(const void* from) {
    if (!from) return "";
    Dl_info found{};
    dladdr(from, &found);
    char text[32];
    std::snprintf(text, sizeof text, " {+0x%llx}",
                  static_cast<unsigned long long>(reinterpret_cast<uintptr_t>(from) -
                                                  reinterpret_cast<uintptr_t>(found.dli_fbase)));
    return text;
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
