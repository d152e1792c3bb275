// How a kernel is started, in words that both machines' launch.cuh understand.
#pragma once

#include <cstdint>

struct LaunchConfig {
    int64_t blocks;             // a multiple of `cluster`; none, and nothing is started
    uint32_t threads;           // a block
    uint32_t shared_bytes = 0;  // dynamic shared memory a block
    void* stream = nullptr;     // cudaStream_t; the emulator has none
    uint32_t cluster = 1;       // blocks a cluster
};

enum class Swizzle { kNone, k128B };  // how a tensor map's box lies in shared memory
