// What the emulator reports when it stops a kernel: the kind of fault, a message, and who is at fault where.
#pragma once

#include <cstdint>
#include <iterator>
#include <string>
#include <vector>

namespace emulator {

// The table of faults. A name is EmulatorError.what in Python; programs compare it, so a name does not change.
#define EMULATOR_FAULTS(X)                                                                                          \
    /* No progress */                                                                                               \
    X(deadlock)        /* every thread that is left waits, and no asynchronous work is outstanding */               \
    X(endless_polling) /* a thread keeps testing an mbarrier whose phase nothing will complete */                   \
    X(step_limit)      /* a cluster has taken more scheduler steps than max_steps allows */                         \
    X(endless_loop)    /* threads run on, and nothing changes meanwhile that they could wait for */                 \
    /* Shared memory used too early or too late */                                                                  \
    X(read_during_load)    /* bytes are read that a TMA load is still writing */                                    \
    X(data_race)           /* two accesses, one of them a write, whose order nothing makes sure of */               \
    X(write_during_load)   /* bytes are written that a TMA load is still writing */                                 \
    X(released_too_early)  /* bytes are overwritten that a WGMMA or a TMA store may still read */                   \
    X(missing_proxy_fence) /* a WGMMA or a TMA store reads what a thread stored without fence.proxy.async */        \
    /* WGMMA accumulators */                                                                                        \
    X(missing_wgmma_fence)     /* no wgmma.fence since the accumulators were last touched */                        \
    X(accumulator_overwritten) /* a thread has written an accumulator of a WGMMA in flight */                       \
    X(uninitialised_register)  /* a matrix instruction reads registers that nothing has initialised */              \
    X(accumulator_read)        /* a thread reads an accumulator of a WGMMA in flight */                             \
    /* Work that is unfinished when a thread or a block ends */                                                     \
    X(unfinished_wgmma)  /* a thread exits before it has waited for its WGMMAs */                                   \
    X(unfinished_load)   /* a block ends while a TMA load into its shared memory is in flight */                    \
    X(unfinished_store)  /* a thread exits while its TMA store may still read shared memory */                      \
    X(uncommitted_store) /* a thread exits with a TMA store that belongs to no bulk group */                        \
    /* Barriers */                                                                                                  \
    X(mbarrier_uninitialised) /* there is no mbarrier at the address */                                             \
    X(mbarrier_not_visible)   /* no fence after mbarrier.init, so the copy engine or another block cannot see it */ \
    X(mbarrier_reinitialised) /* mbarrier.init where there is an mbarrier already, without mbarrier.inval */        \
    X(mbarrier_overwritten)   /* a store or a TMA load writes over an mbarrier */                                   \
    X(too_many_arrivals)      /* more arrivals in a phase than the mbarrier counts */                               \
    X(too_many_bytes)         /* more bytes expected in a phase than an mbarrier's tx-count can hold */             \
    X(named_barrier_mismatch) /* threads name different thread counts for one named barrier */                      \
    X(cluster_barrier_order)  /* barrier.cluster.arrive and .wait do not alternate */                               \
    /* Kernels of one stream */                                                                                     \
    X(missing_dependency_wait) /* a kernel launched early uses global memory before griddepcontrol.wait */          \
    /* Threads that must act together */                                                                            \
    X(divergent_warp)      /* the lanes of a warp do not execute the same warp-wide instruction */                  \
    X(divergent_warpgroup) /* the warps of a warpgroup do not execute the same wgmma or setmaxnreg */               \
    X(block_not_started)   /* another block of the cluster is used before it is known to have begun */              \
    X(block_ended)         /* another block of the cluster is used after it has ended */                            \
    /* Global memory, and code that a CPU cannot execute */                                                         \
    X(global_out_of_bounds) /* an access to global memory outside the tensors that the launch was given */          \
    X(array_out_of_bounds)  /* an index outside an array, such as one of local memory */                            \
    X(written_twice)        /* two threads write one element of a tensor, in no particular order */                 \
    X(crashed)              /* a signal, such as one for an address that does not exist */                          \
    /* Operands */                                                                                                  \
    X(out_of_bounds)   /* an address outside the shared memory of the block, or of the cluster */                   \
    X(misaligned)      /* an address, a size or a coordinate that is not a multiple of what is needed */            \
    X(invalid_operand) /* any other operand that the instruction does not accept */                                 \
    X(unsupported)     /* allowed on a GPU, but the emulator does not model it */                                   \
    /* The emulator itself */                                                                                       \
    X(host) /* a C++ exception, such as no memory for the threads' stacks: not the kernel's fault */

enum class Fault : int32_t {
#define X(name) name,
    EMULATOR_FAULTS(X)
#undef X
};

inline const char* fault_name(int32_t fault) {
    static const char* const names[] = {
#define X(name) #name,
        EMULATOR_FAULTS(X)
#undef X
    };
    return fault >= 0 && fault < static_cast<int32_t>(std::size(names)) ? names[fault] : nullptr;
}

// The thread that executes an instruction or, for asynchronous work, the thread that issued it. -1: not known; a WGMMA
// is issued by a whole warp, so it has no lane.
struct Place {
    int64_t block = -1;
    int warp = -1, lane = -1;
};

// Such as "block 0, warp 1, lane 5: ", as messages begin; nothing if the place is not known.
inline std::string where(const Place& place) {
    if (place.block < 0) return "";
    std::string text = "block " + std::to_string(place.block) + ", warp " + std::to_string(place.warp);
    if (place.lane >= 0) text += ", lane " + std::to_string(place.lane);
    return text + ": ";
}

struct FaultReport {
    Fault what;
    std::string message;
    Place place;
    uint64_t address;                    // in shared memory, or in global memory; 0: not known
    const void* from = nullptr;          // where in the kernel's machine code; nullptr: not known
    const void* other = nullptr;         // the other place that takes part in it, if there is one
    std::vector<const void*> callers{};  // where the functions were called that `from` is in, the innermost first
};

// How messages name the thread of that number in the cluster, or the thread whose asynchronous writes have that number:
// its number in its block, and the block.
struct ThreadName {
    char text[48];
};
ThreadName name_of_thread(uint32_t number);

// End the run with such a report (reports.hpp); `format` and the arguments after it are printf's.
[[noreturn]] void fail_at(Fault what, uint64_t address, const char* format, ...);
// Of two places in the kernel: the calling thread's, and `other`'s.
[[noreturn]] void fail_race(Fault what, uint64_t address, const void* other, const char* format, ...);
template <typename... Args>
[[noreturn]] void fail(Fault what, const char* format, Args... args) {
    fail_at(what, 0, format, args...);
}

}  // namespace emulator

// The report as Python reads it. The strings live until this OS thread's next launch.
struct EmulatorFault {
    const char* what;
    const char* message;
    uint64_t address;
    int64_t block;
    int32_t warp, lane;
    const char* library;     // where in the machine code: a library's path, and an offset in it; or nullptr
    uint64_t offset, other;  // places in its machine code; 0: not known
    uint64_t callers[8];     // the first of FaultReport::callers; 0 behind the last
};
