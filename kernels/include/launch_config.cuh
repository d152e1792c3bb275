// How a kernel is started, in words that both machines' launch.cuh understand.
#pragma once

#include <cstdint>

struct LaunchConfig {
    int64_t blocks;             // a multiple of `cluster`; none, and nothing is started
    uint32_t threads;           // a block
    uint32_t shared_bytes = 0;  // dynamic shared memory a block
    void* stream = nullptr;     // cudaStream_t; the emulator has none
    uint32_t cluster = 1;       // blocks a cluster
    uint32_t blocks_an_sm = 1;  // as __launch_bounds__ says: they share the registers, and the emulator has to know
};

// How a tensor map's box lies in shared memory: its rows are at most so many bytes, and their 16-byte chunks change
// places (layout.cuh).
enum class Swizzle { kNone, k32B, k64B, k128B };
