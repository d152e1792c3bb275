// What stands around the reader's kernel in lesson 03. A CTA is 256 threads and computes one 32 x 32 tile of D.
#include <cuda_runtime.h>

#include "launch.cuh"
#include "layout.cuh"
#include "ptx.cuh"

constexpr int kTile = 32;                        // rows and columns of D in a tile, and steps of k that are stored
constexpr int kThreads = 256;                    // eight warps
constexpr int kEach = kTile * kTile / kThreads;  // outputs of a thread, and elements of each operand that it stores
constexpr int kRowsApart = kThreads / kTile;     // a thread's rows are so far apart

// ---- Your kernel

extern "C" const char* gemm_ladder_launch(const GemmArgs* args) {
    const int64_t tiles = ceil_div(args->m, kTile) * ceil_div(args->n, kTile);
    return launch(mine, {.blocks = tiles, .threads = kThreads, .stream = args->stream}, *args);
}
