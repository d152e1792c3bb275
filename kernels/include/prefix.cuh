// For each thread, the sum or the largest of the values of all threads with a lower number, and of all threads.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <ptx.cuh>  // in <>: the emulator must find its own, and quotes would find the one beside this file

#include "warp.cuh"

struct Prefix {
    uint32_t before, all;  // of the threads with a lower number; of all threads
};
struct Sum {
    __device__ __forceinline__ uint32_t operator()(uint32_t a, uint32_t b) const { return a + b; }
};
struct Largest {
    __device__ __forceinline__ uint32_t operator()(uint32_t a, uint32_t b) const { return a > b ? a : b; }
};

// Of the lanes of a full warp. Of no lanes it is 0, which suits a sum and the largest of unsigned numbers. After the
// step with `lanes`, `all` is what this lane's block of 2 * lanes lanes makes, and `before` what the lanes below it in
// the block make.
template <typename Combine>
__device__ __forceinline__ Prefix prefix_of_warp(uint32_t value, Combine combine) {
    Prefix prefix{0, value};
    for (uint32_t lanes = 1; lanes < 32; lanes *= 2) {
        const uint32_t other = ptx::shfl_sync_bfly(kAllLanes, prefix.all, static_cast<int>(lanes));
        if (threadIdx.x & lanes) prefix.before = combine(prefix.before, other);
        prefix.all = combine(prefix.all, other);
    }
    return prefix;
}

// Of the threads of a CTA of `warps` full warps, all of which call it. `scratch`: a word for each warp, in shared
// memory.
template <typename Combine>
__device__ __forceinline__ Prefix prefix_of_cta(uint32_t value, uint32_t scratch, uint32_t warps, Combine combine) {
    const uint32_t warp = threadIdx.x / 32;
    Prefix prefix = prefix_of_warp(value, combine);
    if (threadIdx.x % 32 == 0) ptx::st_shared(scratch + 4 * warp, prefix.all);
    __syncthreads();
    prefix.all = 0;
    for (uint32_t i = 0; i < warps; ++i) {
        const uint32_t of_warp = ptx::ld_shared<uint32_t>(scratch + 4 * i);
        if (i < warp) prefix.before = combine(prefix.before, of_warp);
        prefix.all = combine(prefix.all, of_warp);
    }
    __syncthreads();  // all threads have read `scratch` before the next call writes it
    return prefix;
}
