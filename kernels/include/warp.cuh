// What the lanes of a mask do together. nvcc has a function for each of these instructions, and the emulator has the
// same ones, so one file serves both. Every lane of the mask calls the function, with the same mask.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

constexpr uint32_t kAllLanes = 0xFFFFFFFFu;  // the mask of a full warp

namespace ptx {

// "Parallel Synchronization and Communication Instructions: redux.sync". All lanes get the result. T is uint32_t, or,
// except for and, or and xor, int32_t.
template <typename T>
__device__ __forceinline__ T redux_sync_add(uint32_t mask, T value) {
    return __reduce_add_sync(mask, value);
}
template <typename T>
__device__ __forceinline__ T redux_sync_min(uint32_t mask, T value) {
    return __reduce_min_sync(mask, value);
}
template <typename T>
__device__ __forceinline__ T redux_sync_max(uint32_t mask, T value) {
    return __reduce_max_sync(mask, value);
}
__device__ __forceinline__ uint32_t redux_sync_and(uint32_t mask, uint32_t value) {
    return __reduce_and_sync(mask, value);
}
__device__ __forceinline__ uint32_t redux_sync_or(uint32_t mask, uint32_t value) {
    return __reduce_or_sync(mask, value);
}
__device__ __forceinline__ uint32_t redux_sync_xor(uint32_t mask, uint32_t value) {
    return __reduce_xor_sync(mask, value);
}

// "shfl.sync". Each lane gets the value of the lane whose number differs from its own in the bits of `lanes`.
template <typename T>
__device__ __forceinline__ T shfl_sync_bfly(uint32_t mask, T value, int lanes) {
    return __shfl_xor_sync(mask, value, lanes);
}

// "match.sync". The lanes that have the same value; and the mask if all have the same, else 0. T has 4 or 8 bytes.
template <typename T>
__device__ __forceinline__ uint32_t match_any_sync(uint32_t mask, T value) {
    return __match_any_sync(mask, value);
}
template <typename T>
__device__ __forceinline__ uint32_t match_all_sync(uint32_t mask, T value) {
    int all;
    return __match_all_sync(mask, value, &all);
}

// "vote.sync". The lanes that say yes; whether all do; whether any does; whether all say the same.
__device__ __forceinline__ uint32_t vote_sync_ballot(uint32_t mask, bool yes) { return __ballot_sync(mask, yes); }
__device__ __forceinline__ bool vote_sync_all(uint32_t mask, bool yes) { return __all_sync(mask, yes); }
__device__ __forceinline__ bool vote_sync_any(uint32_t mask, bool yes) { return __any_sync(mask, yes); }
__device__ __forceinline__ bool vote_sync_uni(uint32_t mask, bool yes) {
    const uint32_t votes = __ballot_sync(mask, yes);
    return votes == 0 || votes == mask;
}

}  // namespace ptx
