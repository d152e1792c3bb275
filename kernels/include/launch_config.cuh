// How a kernel is started: the argument of launch() on the GPU and in the emulator.
#pragma once

#include <cstdint>

struct LaunchConfig {
    int64_t blocks;                  // CTAs, a multiple of `cluster`; with 0 nothing is started
    uint32_t threads;                // per CTA
    uint32_t shared_bytes = 0;       // dynamic shared memory per CTA
    uint32_t most_shared_bytes = 0;  // of any launch of this kernel, where not all have the same
    void* stream = nullptr;          // cudaStream_t; ignored by the emulator
    uint32_t cluster = 1;            // CTAs per cluster
    uint32_t blocks_an_sm = 1;       // as in __launch_bounds__: the emulator divides an SM's resources by it
    bool early = false;  // may begin before the kernel ahead of it ends, for which it waits with griddepcontrol
    bool large_clusters = false;  // of more than 8 CTAs, which not every GPU can run
};

// How TMA permutes the 16-byte chunks of a box in shared memory (layout.cuh). A row of the box has at most that many
// bytes.
enum class Swizzle { kNone, k32B, k64B, k128B };
