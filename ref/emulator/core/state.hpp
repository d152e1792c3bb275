// The state of the emulated blocks and threads: barriers, registers, and the asynchronous work that they have issued.
#pragma once

#include <algorithm>
#include <array>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <vector>

#include "../cuda.hpp"
#include "../mma.cuh"
#include "fault.hpp"
#include "fiber.hpp"
#include "layouts.hpp"
#include "memory.hpp"
#include "shared_memory_loads.hpp"

namespace emulator {

class Cluster;
struct Block;
struct Thread;
using Waiters = std::vector<Thread*>;

// Loads and stores of a thread, without an instruction that changes anything, before others may run.
constexpr uint32_t kTicks = 1 << 14;

constexpr int kRegisters = 65536;  // of an SM, 32 bits each

struct Wait {                    // what a thread waits for
    const char* what = nullptr;  // nullptr = not waiting
    uint32_t address = 0;        // mbarrier address or barrier number
    int64_t value = 0;           // parity
    bool of_lanes = false;       // for the other lanes of its warp to execute the same instruction
};

// An mbarrier: its phase completes when no arrival is pending and no byte is outstanding.
struct Mbarrier {
    int64_t count = 0, pending = 0, bytes = 0;
    int64_t phase = 0;
    int64_t loading = 0;                // bytes of TMA loads that have not landed
    int64_t expected = 0, brought = 0;  // of this phase: the bytes it was told of, and those of the loads issued in it
    bool expects = false;               // whether it has ever been told of bytes
    uint32_t waited_for = 0;            // the warps whose threads have waited for it, a bit for each
    bool visible = false;               // whether fence.mbarrier_init (or fence.proxy.async) has followed mbarrier.init
    int initialiser = 0;  // the thread that executed mbarrier.init: only its fence makes the barrier visible
    const void* initialised_from = nullptr;  // the place in the kernel that did
    uint32_t last = 0;                       // 1 + the thread that has arrived last (Actor::number); 0: none has yet
    const void* last_from = nullptr;         // and where
    std::string too_few;  // how many bytes a phase expected that has completed before its loads have landed
    Told told;            // by those who have arrived, in this phase
    Known completed;      // what those who wait for the last phase are told
    Waiters waiters;
};

// A thread's last wait for an mbarrier that is over.
struct Waited {
    uint32_t address;
    int64_t phase;    // of the mbarrier, behind the wait
    uint32_t parity;  // that it waited for
    bool vain;        // whether no phase had completed since the thread's wait before, so that this one was for nothing
    const void* from;  // the place in the kernel
};

struct NamedBarrier {
    uint32_t threads = 0, arrived = 0;
    bool everyone = false;  // __syncthreads: all threads that have not exited
    bool handed = false;    // whether some only arrive in this phase
    uint32_t warps = 0;     // that have arrived in this phase, a bit for each
    // Of each warp: the lanes that have arrived since the warp as a whole did, and the phase in which that was.
    std::array<uint32_t, 32> lanes{};
    std::array<uint64_t, 32> phases{};
    Told told;
    Known completed;
    uint32_t votes = 0, result = 0;  // threads that have said yes, until and at the last completion
    uint64_t generation = 0;
    Waiters waiters;
};

// An instruction of several lanes of a warp, such as shfl or stmatrix: each lane leaves its operands in a slot; when
// all have arrived, all go on and can read the slots. Two sets of slots, since a fast lane may reach the next
// instruction while a slow one still reads.
using Slots = std::array<std::array<uint64_t, 5>, 32>;
struct Exchange {
    const char* what = nullptr;
    bool ignores_exited = false;  // whether lanes that have exited are not waited for
    uint32_t arrived = 0;         // a bit for each lane
    uint32_t gave = 0;            // the lanes that had arrived when the last one was complete
    uint64_t generation = 0;
    Slots slots[2];
    Told told;
    Known completed;
    Waiters waiters;
};

struct Convergence {  // lanes of a warp that have asked at one place who is with them (active_lanes)
    uint32_t arrived = 0;
    std::array<uint32_t, 32> together{};  // for each lane, the answer; 0: none yet
};

// A queue whose elements keep their numbers: the first one that it ever had is number 0. It is often empty, or nearly.
template <typename T>
class NumberedQueue {
  public:
    int64_t begin() const { return over_ + static_cast<int64_t>(begin_); }
    int64_t end() const { return over_ + static_cast<int64_t>(all_.size()); }
    bool empty() const { return begin_ == all_.size(); }
    T& operator[](int64_t number) { return all_[static_cast<std::size_t>(number - over_)]; }
    T& front() { return all_[begin_]; }
    const T& back() const { return all_.back(); }
    T& push_back(T element) { return all_.emplace_back(std::move(element)); }
    void pop_front() {
        if (++begin_ < all_.size() && begin_ < kKept) return;
        over_ += static_cast<int64_t>(begin_);
        all_.erase(all_.begin(), all_.begin() + static_cast<std::ptrdiff_t>(begin_));
        begin_ = 0;
    }

  private:
    static constexpr std::size_t kKept = 64;  // elements that are no longer in the queue
    std::vector<T> all_;
    std::size_t begin_ = 0;
    int64_t over_ = 0;  // elements that have been in front of all_
};

struct Aligned {  // an .aligned instruction, and the lanes that have come to it
    const char* what = nullptr;
    int place = 0;  // EMULATOR_PLACE
    uint32_t lanes = 0;
    const void* from = nullptr;
};

// The accumulators of a warp while WGMMAs are working on them: 16 rows of n.
struct AccumulatorTile {
    std::vector<uint8_t> rows;
    int lanes = 0;  // that have given their registers and not got them back
};

struct Accumulator {    // a thread's part of it
    uint32_t* home;     // its registers
    std::size_t count;  // of them
    AccumulatorTile* tile;
    ptx::Type type;
    int64_t last_op;
    const void* from;                // the place in the kernel that issued that
    std::optional<std::size_t> row;  // of Recorded::accumulators, of a lane 0
};

struct WgmmaForm {  // what all lanes of a warpgroup must agree on
    MatrixKind kind;
    int64_t n;
    uint64_t desc_a, desc_b;
    bool scale_d, a_in_registers;

    bool operator==(const WgmmaForm&) const = default;
};

struct WgmmaOp {
    WgmmaForm form;
    uint32_t lanes = 0, waited = 0;  // number of lanes that have issued it, and that have waited for it
    AccumulatorTile* accumulators = nullptr;
    Footprint *footprint_a = nullptr, *footprint_b = nullptr;  // a: nullptr if A is in registers
    std::vector<std::array<uint32_t, 4>> a;                    // of each lane, if A is in registers
    Known known;                                               // what its lanes knew that issued it
    Known waited_for_loads;      // what the last of them knew; it had waited for the TMA loads of the operands
    const void* from = nullptr;  // the place in the kernel that issued it
};

struct WgmmaQueue {                    // the WGMMAs that a warp has issued, in order
    NumberedQueue<WgmmaOp> ops;        // until all 32 lanes have waited for them
    int64_t issued = 0, executed = 0;  // by all 32 lanes; by the tensor core
    Waiters waiters;
    std::deque<AccumulatorTile> tiles;
    std::vector<AccumulatorTile*> free_tiles;
    // The accumulators that have been used, in order: lane 0's registers, type and columns. Only if they are recorded.
    std::vector<std::tuple<const uint32_t*, ptx::Type, int64_t>> known;

    AccumulatorTile* take_tile(std::size_t bytes) {
        if (free_tiles.empty()) free_tiles.push_back(&tiles.emplace_back());
        AccumulatorTile* tile = free_tiles.back();
        free_tiles.pop_back();
        tile->rows.resize(bytes);
        return tile;
    }
};

// An operand of FP8, as the tensor core's model multiplies it (ref/tensor_core.py). The four warps of a warpgroup read
// the same B, and it is decoded once.
struct DecodedOperand {
    const Footprint* footprint = nullptr;
    uint64_t version = 0;  // of its contents
    std::vector<float> values;
    std::vector<int8_t> exponents;
};

struct MmaResult {  // of a warp's mma.sync: the accumulators, row by row, and the lanes that have taken theirs
    std::array<uint8_t, 16 * 8 * 4> accumulators;
    int taken = 0;
};

struct Store {  // a TMA store on its way
    Moment done;
    int64_t number = 0;  // counted from its warp's first one, which is 1
    std::function<void()> read, write;
    bool has_read = false, has_written = false;
    bool waited_for = false;     // by its thread, at least for the read
    const void* from = nullptr;  // the place in the kernel that issued it
};

struct Load {  // a TMA load on its way into a block's shared memory
    uint64_t number;
    Place issuer;
    const void* from;   // the place in the kernel that issued it
    uint32_t mbarrier;  // on which it completes
};

struct AsyncWrite {  // a cp.async or st.async on its way
    std::function<void()> land;
    bool has_landed = false;
};
struct AsyncWrites {  // of one thread
    struct Group {
        std::vector<std::shared_ptr<AsyncWrite>> copies;
        Moment last;
    };
    uint32_t issued = 0, committed = 0, waited = 0;  // the numbers of their last ones
    uint32_t arrived = 0, arrived_on = 0;            // the last one before a cp.async.mbarrier.arrive; its mbarrier
    std::map<uint32_t, std::pair<Block*, uint32_t>> stores;  // the numbers of st.asyncs: where their mbarriers are
    std::vector<std::shared_ptr<AsyncWrite>> open;           // copies since the last commit
    std::vector<Group> groups;  // few; and an empty deque would allocate memory, for each thread of each launch
    // What the thread's next write knows; and what the thread knew, and its moment, when that was computed.
    Known known, thread_knew;
    uint32_t thread_moment = 0;
};

struct Thread : Actor {
    Fiber fiber;
    Block* block = nullptr;
    Cluster* cluster = nullptr;
    bool finished = false;
    Wait wait;
    std::vector<Waited> waited;   // for each mbarrier of its block, the last one behind the others
    uint32_t ticks = 0;           // loads and stores since its last instruction that changed something
    bool polls = false;           // has tested an mbarrier in vain, and done nothing else since
    bool stored = false;          // whether it has stored to global memory since its last instruction
    std::size_t last_tensor = 0;  // of GlobalMemory, that it used last

    int64_t aligned = 0;  // number of .aligned instructions that it has come to
    uint64_t cluster_generation = 0;
    bool cluster_pending = false;  // arrived at the cluster barrier and not yet waited
    bool wgmma_fenced = false;
    bool overdue = false;            // whether it has run for so long that it has to end at the next access to memory
    bool dependency_waited = false;  // has executed griddepcontrol.wait, or the kernel was not launched early
    Moment dependency_moment;        // when
    int64_t wgmmas_waited = 0;       // of Actor::wgmmas, those that this lane has waited for
    NumberedQueue<int64_t> wgmma_groups;  // the value of `wgmmas` at each commit that it has not waited for
    std::vector<Accumulator> accumulators;
    std::vector<Accumulator> rested;  // those that it has waited for and not touched since, nor fenced
    std::vector<std::pair<uintptr_t, std::size_t>> written_since_fence;  // local variables: addresses and bytes
    std::vector<std::shared_ptr<Store>> stores;                          // since the last commit
    std::vector<std::vector<std::shared_ptr<Store>>> store_groups;
    AsyncWrites async_writes;

    // Its local variables are watched since wgmma.fence, while accumulators are in flight, and until they are touched.
    void watch() { fiber.watched() = wgmma_fenced || !accumulators.empty() || !rested.empty(); }
    int warp() const { return index / 32; }
    int lane() const { return index % 32; }
    inline uint32_t lanes() const;  // of its warp: a bit for each
    Place place() const;
};

struct Block {
    int rank = 0;
    int64_t index = 0;
    SharedMemory memory;
    LayoutNumbers layouts;
    std::map<uint32_t, Mbarrier> mbarriers;
    std::map<uint32_t, std::string> names;  // that the kernel has given them
    uint32_t loaders = 0;                   // the warps that have told an mbarrier of bytes, a bit for each
    std::array<NamedBarrier, 16> barriers;
    std::string mixed_barrier;  // what is odd about a phase of a named barrier that threads of two groups completed
    std::vector<std::map<uint32_t, Exchange>> exchanges;  // of each warp, by the lanes that take part
    std::map<std::pair<std::size_t, const void*>, Convergence> convergences;  // by warp and place in the kernel
    std::vector<uint32_t> alive;                                              // of each warp, a bit for each lane
    std::vector<NumberedQueue<Aligned>> aligned;  // of each warp, those that not all of its lanes have come to
    std::vector<WgmmaQueue> wgmmas;               // of each warp
    // Of each warpgroup: WGMMAs not yet issued by all four warps, and how many have.
    std::vector<std::map<int64_t, std::pair<WgmmaForm, int>>> warpgroup_wgmmas;
    std::vector<WgmmaProgress> wgmma_progress;  // of each warpgroup
    std::array<DecodedOperand, 8> decoded;
    std::size_t next_decoded = 0;   // the one that the next operand replaces
    std::map<int, MmaResult> mmas;  // of each warp
    // Of each warp: registers a thread, at the start and after each setmaxnreg.
    std::vector<std::vector<int>> registers;
    std::vector<const void*> set_registers_at;  // the place in the kernel of each warp's last setmaxnreg
    int64_t free_registers = 0;
    bool bounded = false;  // whether a thread has executed launch_bounds()
    Waiters register_waiters;
    int live = 0;  // threads that have not exited
    // Of each thread of another block, the moment when it last reached into this one, and the place in the kernel.
    std::map<uint32_t, std::pair<uint32_t, const void*>> visits;
    std::vector<Load> loads;  // that are in flight
    uint64_t loads_issued = 0;

    void end_load(uint64_t number) {
        std::erase_if(loads, [number](const Load& load) { return load.number == number; });
    }
    std::vector<Thread*> threads;
};

// The place of number `number` in a box of that size, x running fastest.
inline dim3 at(uint64_t number, const dim3& size) {
    return {static_cast<uint32_t>(number % size.x), static_cast<uint32_t>(number / size.x % size.y),
            static_cast<uint32_t>(number / size.x / size.y)};
}

// The registers that each of a block's threads begins with, of those that the block may have.
inline int registers_of_thread(int64_t registers, int64_t threads) {
    return static_cast<int>(std::min<int64_t>(255, registers / threads) / 8 * 8);
}
// The lanes of a warp, a bit for each: the last warp of a block may have fewer than 32.
inline uint32_t lanes_of(int warp, int threads) { return threads >= 32 * (warp + 1) ? ~0u : (1u << threads % 32) - 1; }
inline uint32_t Thread::lanes() const { return lanes_of(warp(), static_cast<int>(block->threads.size())); }
// Whether the kernel ahead is known to have ended: the thread has waited for it, or a thread of its block has, of whose
// wait it knows. Where the order is not followed, any thread's wait will do.
inline bool knows_dependency(const Thread& thread) {
    return thread.dependency_waited || std::ranges::any_of(thread.block->threads, [&](const Thread* other) {
               return other->dependency_waited && (thread.moment == 0 || knows(thread.known, other->dependency_moment));
           });
}

// The threads that can go on.
class Ready {
  public:
    void reset(std::size_t warps) {
        lanes_.assign(warps, 0);
        warps_.clear();
    }
    void add(const Thread& thread) {
        uint32_t& lanes = lanes_[thread.number / 32];
        if (!lanes) warps_.push_back(thread.number / 32);
        lanes |= 1u << thread.number % 32;
    }
    bool empty() const { return warps_.empty(); }
    // The warps that have some, in no particular order.
    const std::vector<uint32_t>& warps() const { return warps_; }
    uint32_t lanes(std::size_t i) const { return lanes_[warps_[i]]; }  // of warps()[i], a bit for each
    void take(std::size_t i, uint32_t lanes) {
        if (lanes_[warps_[i]] &= ~lanes) return;
        warps_[i] = warps_.back();
        warps_.pop_back();
    }

  private:
    std::vector<uint32_t> lanes_, warps_;
};

inline Place Thread::place() const { return {block->index, warp(), lane()}; }

}  // namespace emulator
