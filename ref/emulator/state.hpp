// The state of the emulated blocks and threads: barriers, registers, and the asynchronous work that they have issued.
#pragma once

#include <array>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <vector>

#include "cuda.hpp"
#include "fault.hpp"
#include "fiber.hpp"
#include "shared_memory.hpp"

namespace emulator {

struct Block;
struct Thread;
using Waiters = std::vector<Thread*>;

struct Wait {                    // what a thread waits for
    const char* what = nullptr;  // nullptr = not waiting
    uint32_t address = 0;        // mbarrier address or barrier number
    int64_t value = 0;           // parity
};

// An mbarrier: its phase completes when no arrival is pending and no byte is outstanding.
struct Mbarrier {
    int64_t count = 0, pending = 0, bytes = 0;
    int64_t phase = 0;
    bool visible = false;  // whether fence.mbarrier_init (or fence.proxy.async) has followed mbarrier.init
    int initialiser = 0;   // the thread that executed mbarrier.init: only its fence makes the barrier visible
    Waiters waiters;
};

struct NamedBarrier {
    uint32_t threads = 0, arrived = 0;
    uint64_t generation = 0;
    Waiters waiters;
};

// A warp-wide instruction, such as shfl or stmatrix: each lane leaves its operands in a slot; when all 32 have arrived,
// all go on and can read the slots. Two sets of slots, since a fast lane may reach the next instruction while a slow
// one still reads.
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
    uint32_t lanes = 0, waited = 0;  // number of lanes that have issued it, and that have waited for it
    std::array<float*, 32> accumulator;

    bool same(const WgmmaOp& other) const {
        return n == other.n && desc_a == other.desc_a && desc_b == other.desc_b && scale_d == other.scale_d;
    }
};

struct WgmmaQueue {                                 // the WGMMAs that a warp has issued, in order
    std::deque<WgmmaOp> ops;                        // ops[0] is number `retired`
    int64_t issued = 0, executed = 0, retired = 0;  // by all 32 lanes; by the tensor core; by the wait of all 32 lanes
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
    bool dependency_waited = false;         // has executed griddepcontrol.wait, or the kernel was not launched early
    int64_t wgmmas = 0, wgmmas_waited = 0;  // issued by this lane, and waited for
    std::vector<int64_t> wgmma_groups;      // the value of `wgmmas` at each commit
    std::vector<Accumulator> accumulators;
    std::vector<std::shared_ptr<Store>> stores;  // since the last commit
    std::vector<std::vector<std::shared_ptr<Store>>> store_groups;

    int warp() const { return index / 32; }
    int lane() const { return index % 32; }
    Place place() const;
};

struct Block {
    int rank = 0;
    int64_t index = 0;
    SharedMemory memory;
    std::map<uint32_t, Mbarrier> mbarriers;
    std::array<NamedBarrier, 16> barriers;
    std::vector<Exchange> exchanges;                           // of each warp
    std::vector<WgmmaQueue> wgmmas;                            // of each warp
    std::vector<std::map<int64_t, WgmmaOp>> warpgroup_wgmmas;  // of each warpgroup: not yet issued by all four warps
    // Of each warp: registers a thread, at the start and after each setmaxnreg.
    std::vector<std::vector<int>> registers;
    int64_t free_registers = 0;
    Waiters register_waiters;
    int live = 0;  // threads that have not exited
    int loads_in_flight = 0;
    std::vector<Thread*> threads;
};

inline Place Thread::place() const { return {block->index, warp(), lane()}; }

}  // namespace emulator
