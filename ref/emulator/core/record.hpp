// The input and output of a run: its configuration, its events, its fault, and the random numbers that drive it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "fault.hpp"
#include "memory.hpp"

namespace emulator {

// Rows of one matrix instruction, acc[rows][n] += a[rows][k_bytes] * b[n][k_bytes]^T, in the tensor core's own
// arithmetic (ref/mma.py, cfunc_address). Not 0: there is no such instruction.
using MmaFunction = int64_t (*)(int64_t unit, int64_t type_a, int64_t type_b, int64_t type_d, int64_t satfinite,
                                int64_t rows, int64_t n, int64_t k_bytes, const uint8_t* a, const uint8_t* b,
                                void* acc);
// The same for WGMMAs of E4M3 operands and FP32 accumulators, in two steps (ref/tensor_core.py): B [n][32] is decoded,
// into as many values and exponents as n rounded up to a multiple of kDecodedColumns has; then it is multiplied.
using DecodeFunction = void (*)(int64_t n, const uint8_t* b, float* values, int8_t* exponents);
using MultiplyFunction = void (*)(int64_t rows, int64_t n, const uint8_t* a, const float* values,
                                  const int8_t* exponents, float* acc);
constexpr int64_t kDecodedColumns = 32;

}  // namespace emulator

struct EmulatorConfig {
    uint64_t seed;
    int32_t record;     // 1: keep events
    int32_t threads;    // OS threads for the clusters; 0 = one for each core
    int64_t max_steps;  // a cluster that takes more scheduler steps is stopped; 0 = no limit
    emulator::MmaFunction mma;
    emulator::DecodeFunction decode;
    emulator::MultiplyFunction multiply;
    int32_t dry;  // 1: run nothing, only keep the launcher's LaunchConfig
    const EmulatorTensor* tensors;
    int64_t tensor_count;  // 0: what a kernel does to global memory is not checked
    int64_t kept_bytes;    // of accumulators, if events are kept; each cluster keeps its share, the first ones
};

struct EmulatorEvent {
    uint64_t step;  // the cluster's scheduler step: its clock
    int32_t cluster, block;
    int32_t thread;  // index in the block; -1 = the copy engine or the tensor core
    int32_t kind;    // an emulator::Event
    uint32_t address;
    int32_t pad;
    int64_t value;
    const void*
        from;  // the place in the kernel's machine code that executed the instruction; nullptr where thread is -1
};

// What a warp's accumulators do from the WGMMA that is the first to use them to the wait that gives them back.
struct EmulatorAccumulator {
    int32_t cluster, block, warp;
    int32_t number;   // of the warp's accumulators, in the order in which WGMMAs have used them first
    int32_t type, n;  // a ptx::Type; columns
    int64_t begin,
        end;         // the events of lane 0, counted in the cluster, that begin and end this; end = -1: none has yet
    int64_t offset;  // of their 16 rows of n values in Recorded::values; -1: there are none, or they were left out
};

namespace emulator {

// What a cluster did or, in a Session, all of them did.
struct Recorded {
    std::vector<EmulatorEvent> events;
    std::vector<EmulatorAccumulator> accumulators;
    std::vector<uint8_t> values;

    void clear() {
        events.clear();
        accumulators.clear();
        values.clear();
    }
    // Adds what a cluster did. The first `earlier` events are those of kernels that the same launcher has started
    // before.
    void append(const Recorded& other, std::size_t earlier) {
        events.insert(events.end(), other.events.begin(), other.events.end());
        for (EmulatorAccumulator one : other.accumulators) {
            const auto end = events.begin() + static_cast<std::ptrdiff_t>(earlier);
            const int64_t before = std::count_if(
                events.begin(), end, [&](const EmulatorEvent& event) { return event.cluster == one.cluster; });
            one.begin += before;
            if (one.end >= 0) one.end += before;
            if (one.offset >= 0) one.offset += static_cast<int64_t>(values.size());
            accumulators.push_back(one);
        }
        values.insert(values.end(), other.values.begin(), other.values.end());
    }
};

// The kinds of event, and what `address` and `value` mean in each. An instruction of a whole warp is recorded once, for
// its lane 0.
#define EMULATOR_EVENTS(X)                                                       \
    X(thread_start)         /* lane 0 of a warp                              */  \
    X(thread_exit)          /* lane 0 of a warp                              */  \
    X(mbarrier_init)        /* address; value = count                        */  \
    X(mbarrier_arrive)      /* address; value = pending arrivals left        */  \
    X(mbarrier_expect_tx)   /* address; value = bytes                        */  \
    X(mbarrier_complete_tx) /* address; value = bytes still to come         */   \
    X(mbarrier_phase)       /* address; value = the phase that completed     */  \
    X(mbarrier_wait)        /* address; value = parity                       */  \
    X(mbarrier_pass)        /* address; value = parity                       */  \
    X(tma_load)             /* issued: address; value = bytes                */  \
    X(tma_load_landed)      /* address; value = bytes                        */  \
    X(tma_store)            /* issued: address; value = bytes                */  \
    X(tma_store_read)       /* shared memory has been read: address, bytes   */  \
    X(tma_store_written)    /* global memory has been written: address, bytes */ \
    X(wgmma_fence)          /* all lanes have reached it                     */  \
    X(wgmma)                /* issued: address of A; value = n               */  \
    X(wgmma_executed)       /* address of A; value = n                       */  \
    X(wgmma_commit)         /* value = group                                 */  \
    X(wgmma_wait)           /* value = groups that may stay in flight        */  \
    X(wgmma_pass)           /* value = groups that may stay in flight        */  \
    X(fence_proxy_async)    /*                                               */  \
    X(bar_sync)             /* value = barrier                               */  \
    X(bar_arrive)           /* value = barrier                               */  \
    X(bar_pass)             /* value = barrier                               */  \
    X(cluster_arrive)       /*                                               */  \
    X(cluster_pass)         /*                                               */  \
    X(setmaxnreg)           /* value = registers a thread                    */  \
    X(stmatrix)             /* address of lane 0's row                       */  \
    X(global_store)         /* first of lane 0 after an instruction; value = bytes */

enum class Event : int32_t {
#define X(name) name,
    EMULATOR_EVENTS(X)
#undef X
};

inline const char* event_name(int32_t kind) {
    static const char* const names[] = {
#define X(name) #name,
        EMULATOR_EVENTS(X)
#undef X
    };
    return kind >= 0 && kind < static_cast<int32_t>(std::size(names)) ? names[kind] : nullptr;
}

// SplitMix64 (Steele, Lea and Flood, 2014): small, fast, and any two seeds give unrelated sequences.
class Random {
  public:
    explicit Random(uint64_t seed) : state_(seed) {}
    uint64_t next() {
        uint64_t z = (state_ += 0x9E3779B97F4A7C15);
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
        return z ^ (z >> 31);
    }
    uint32_t below(uint32_t n) { return static_cast<uint32_t>((next() >> 32) * n >> 32); }
    bool chance(uint32_t of_1024) { return below(1024) < of_1024; }

  private:
    uint64_t state_;
};

// The configuration of this OS thread's launches, and the results of its last launch.
struct Session {
    EmulatorConfig config{};
    uint64_t steps = 0;
    Recorded recorded;
    std::optional<FaultReport> fault;
    std::string library;  // the path of the kernel's
    uintptr_t library_begin = 0;
    std::string printed;             // by the kernel's printf
    std::vector<std::string> notes;  // on what is legal and likely a mistake
    std::string refusal;             // the launcher's last objection to its arguments
    int error = 0;                   // a cudaError_t: what cudaGetLastError() is to return
};
inline thread_local Session session;

}  // namespace emulator
