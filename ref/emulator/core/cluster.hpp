// One cluster of blocks on one OS thread: its threads (fibers), and the scheduler that chooses, from a seed, which of
// them runs next and when asynchronous work happens.
#pragma once

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstdarg>
#include <cstdio>
#include <map>
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
    std::mutex printing;  // for what follows
    std::string printed{};
    using Notes = std::map<std::string, std::string>;  // by what each begins with, its end
    Notes notes{}, unwritten{};                        // `unwritten`: of numbers that may not have been used
    uint8_t fresh = 0xFF;                              // each byte of shared memory that nothing has written
};

// Shared memories that no cluster uses: their buffers, of some megabytes, serve the next launch.
class SharedMemories {
  public:
    static SharedMemory take() {
        const std::lock_guard lock(mutex_);
        if (spare_.empty()) return {};
        SharedMemory memory = std::move(spare_.back());
        spare_.pop_back();
        return memory;
    }
    static void give_back(SharedMemory memory) {
        const std::lock_guard lock(mutex_);
        if (spare_.size() < kMost) spare_.push_back(std::move(memory));
    }

  private:
    static constexpr std::size_t kMost = 32;
    static inline std::mutex mutex_;
    static inline std::vector<SharedMemory> spare_;
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
        for (Block& block : blocks) block.memory = SharedMemories::take();
    }
    ~Cluster() {
        for (Block& block : blocks) {
            block.memory.forget();
            SharedMemories::give_back(std::move(block.memory));
        }
    }
    Cluster(const Cluster&) = delete;
    Cluster& operator=(const Cluster&) = delete;

    // Runs one cluster to its end. Returns the fault that ended it, or nothing.
    // `place` is its place in the order in which the launch's clusters begin.
    std::optional<FaultReport> run(int64_t cluster, const Call& call, int64_t place);

    uint64_t steps() const { return step_; }
    uint64_t turn() const { return turn_; }  // rises whenever a thread is given its turn
    Recorded recorded;
    std::vector<Block> blocks;
    const GlobalMemory* memory;
    const EmulatorConfig& config() const { return config_; }
    const Call& call() const { return *call_; }
    const Shape& shape() const { return shape_; }
    int64_t index() const { return index_; }
    int64_t clusters() const {  // of the grid
        const dim3& grid = shape_.grid.grid;
        return static_cast<int64_t>(grid.x) * grid.y * grid.z / shape_.size;
    }
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
            recorded.events.push_back({step_, static_cast<int32_t>(index_), static_cast<int32_t>(block.index), thread,
                                       static_cast<int32_t>(kind), address, 0, value,
                                       thread >= 0 ? self().from : nullptr});
    }
    // The calling thread stops until these waiters are woken; the caller then tests its condition again.
    void block_on(Waiters& waiters, const Wait& wait) {
        Thread& thread = self();
        waiters.push_back(&thread);
        thread.wait = wait;
        stop(thread);
        thread.wait = {};
    }
    void wake(Waiters& waiters) {
        for (const Thread* thread : waiters) ready_.add(*thread);
        waiters.clear();
        polls_ = 0;
    }
    // With a probability of one in eight, another thread may run before the calling one goes on.
    void maybe_yield() {
        if (random_.chance(128)) yield();
    }
    // Another thread may run before the calling one goes on.
    void yield() {
        ready_.add(self());
        stop(self());
    }
    // A thread has tested an mbarrier in vain. Threads that poll stay runnable, so after kPatience polls in a row
    // without any other progress the scheduler does asynchronous work; if there is none, they would poll for ever.
    void poll(uint32_t address) {
        if (++polls_ > kPatience && pending_.empty() && patient_.empty()) {
            if (others_poll())
                fail_at(Fault::endless_polling, address,
                        "polls %s for ever: nothing is on its way and no other thread makes progress",
                        name_of(*self().block, address).c_str());
            polls_ = 0;  // one of the others may wait for another cluster, and spin() says if it does so for ever
        }
        self().polls = true;
        yield();
    }
    // A thread has used memory kTicks times without an instruction that changes anything. It may compute, or read the
    // same again and again until another thread has written it: that one may be of this cluster, or of one that has
    // not begun.
    void spin() {
        if (self().doubtful) Accesses::settle(self());
        const uint64_t progress = publish_progress();
        if (progress != seen_progress_) seen_progress_ = progress, spins_ = 0;
        if (++spins_ > kSpins)
            fail(
                Fault::endless_loop,
                "has run for long without an instruction that changes anything, and nothing else happens meanwhile: an "
                "endless loop");
        if (spins_ % kFewSpins == 0) launch_.begin_another();
        polls_ += kPatience / kFewSpins;
        yield();
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
    int64_t stores_issued() const { return stores_[self().number / 32]; }  // by its warp
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
    // A sentence on what is legal and likely a mistake. Of those that begin alike one is kept, whatever the order of
    // the clusters.
    void note(const std::string& begin, const std::string& end) { note(launch_.notes, begin, end); }
    void note_unwritten(const std::string& begin, const std::string& end) { note(launch_.unwritten, begin, end); }
    Layouts layouts;
    // A thread calls the emulator, from the place `from` in the kernel's machine code.
    void enter(Thread& thread, const void* from) {
        if (thread.doubtful) [[unlikely]]
            Accesses::settle(thread);
        thread.from = from;
        thread.ticks = 0;
        thread.stored = thread.polls = false;
        ++instructions_;
        ++changes_;
    }
    // The same, by an instruction at which threads meet. Alone it changes nothing that a loop could wait for.
    void meet(Thread& thread, const void* from) {
        enter(thread, from);
        --changes_;
    }
    // The same, by an instruction that only looks whether others have changed something, or waits a while. In a loop it
    // is as a load, but takes longer. `polls`: it tests an mbarrier, as a thread may that poll() has stopped before.
    void look(Thread& thread, const void* from, bool polls = false) {
        if (thread.doubtful) [[unlikely]]
            Accesses::settle(thread);
        thread.polls &= polls;
        thread.stored = false;
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
    void end_with(FaultReport fault) {
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
    void note(Launch::Notes& notes, const std::string& begin, const std::string& end) {
        const std::lock_guard lock(launch_.printing);
        std::string& known = notes.try_emplace(begin, end).first->second;
        known = std::min(known, end);
    }
    void reset(int64_t cluster);
    dim3 index_of_block(int64_t cluster, uint32_t rank) const;
    void exit_checks(Thread& thread);
    void check_visits(const Block& block);
    void release_those_who_wait_for(Thread& thread);
    // The calling thread stops until it is resumed. The next one of the turn goes on in its place.
    void stop(Thread& thread) {
        if (thread.overdue) [[unlikely]]
            thread.overdue = false, thread.watch();
        if (Thread* next = next_in_turn())
            thread.fiber.hand_over(next->fiber);
        else
            thread.fiber.suspend();
    }
    Thread* first_of_warp(uint32_t warp) {  // of the cluster's
        const auto warps = static_cast<uint32_t>(shape_.warps());
        return &threads_[warp / warps * static_cast<uint32_t>(shape_.threads) + warp % warps * 32];
    }
    bool others_poll();
    Thread* next_in_turn();
    void begin_turn();
    std::size_t run_turn();
    void complete_one(std::vector<Work>& from);
    FaultReport deadlock() const;
    std::string cause_of_deadlock() const;
    static std::string reason(const Thread& thread);
    uint64_t publish_progress() { return publish(instructions_, published_, launch_.progress); }
    static uint64_t publish(uint64_t mine, uint64_t& published, std::atomic<uint64_t>& of_launch) {
        if (std::exchange(published, mine) != mine) return of_launch.fetch_add(1, std::memory_order_relaxed) + 1;
        return of_launch.load(std::memory_order_relaxed);
    }
    // Threads may meet again and again, for example at __syncthreads() in a loop that waits for a number in memory.
    void end_if_nothing_changes() {
        const uint64_t changes = publish(changes_, published_changes_, launch_.changes);
        if (changes != seen_changes_) seen_changes_ = changes, still_since_ = step_;
        if (step_ - still_since_ < kStill || !last_) return;
        const Place place = last_->place();
        end_with({Fault::endless_loop,
                  where(place) + "meets other threads again and again, and nothing changes meanwhile: an endless loop",
                  place, 0, last_->from});
    }
    bool at_step_limit() const { return config_.max_steps && step_ >= static_cast<uint64_t>(config_.max_steps); }
    uint32_t first_lane() const {  // of turn_lanes_, from turn_begin_ on
        const uint32_t from_begin = turn_lanes_ >> turn_begin_ << turn_begin_;
        return static_cast<uint32_t>(std::countr_zero(from_begin ? from_begin : turn_lanes_));
    }
    bool idle() const { return ready_.empty() || polls_ > kPatience; }

    static constexpr int64_t kPatience = 100000;    // polls in vain, of all threads together
    static constexpr int64_t kStarving = 1000;      // after so many, all threads advance alike
    static constexpr std::size_t kOrdered = 4096;   // threads of a cluster
    static constexpr uint64_t kRounds = 16;         // of the scheduler, until it looks at the other clusters
    static constexpr uint64_t kOvertime = 1 << 14;  // times kRounds, after another cluster's fault
    static constexpr uint32_t kOneLane = 128;       // probability, in 1024ths, that one lane has a turn alone
    static constexpr int64_t kSpins = 1 << 15, kFewSpins = 64;
    static constexpr uint64_t kStill = 1 << 28;  // steps, of some seconds: another cluster may wait for a core so long

    Shape shape_;
    Launch& launch_;
    const EmulatorConfig& config_;
    int64_t index_ = 0;
    const Call* call_ = nullptr;
    std::vector<Thread> threads_;  // those of a block, and of a warp, are neighbours
    Ready ready_;
    // The lanes of a warp that have their turn one after another: the first one of the warp, those that have not had it
    // yet, and the lane that it began with.
    Thread* turn_warp_ = nullptr;
    uint32_t turn_lanes_ = 0, turn_begin_ = 0;
    const Thread* last_ = nullptr;  // of the turn before
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

}  // namespace emulator
