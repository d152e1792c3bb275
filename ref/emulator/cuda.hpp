// The keywords, types and functions of CUDA C++ that the kernels use, defined for a plain C++ compiler.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <initializer_list>

#include "cuda_vectors.hpp"

#define __CUDA_ARCH__ 900  // kernels are compiled once, for the device
#define __CUDA_ARCH_FEAT_SM90_ALL 1
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)

inline uint32_t __float_as_uint(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits;
}

namespace emulator {

// Every CUDA thread runs on a stack of its own, of kStackBytes and aligned to that. Its indices lie at the top of the
// stack, so a thread finds them by its stack pointer alone.
constexpr uintptr_t kStackBytes = 128 * 1024;
struct alignas(64) Indices {
    dim3 thread, block, block_size, grid_size;
    uint32_t lane, rank;  // in the warp, and in the cluster
    void* state;          // the emulator's own
};
static_assert(sizeof(Indices) == 64);
__attribute__((always_inline)) inline const Indices& indices() {
    const auto here = reinterpret_cast<uintptr_t>(__builtin_frame_address(0));
    return *reinterpret_cast<const Indices*>((here | (kStackBytes - 1)) + 1 - sizeof(Indices));
}

}  // namespace emulator

#define threadIdx (emulator::indices().thread)
#define blockIdx (emulator::indices().block)
#define blockDim (emulator::indices().block_size)
#define gridDim (emulator::indices().grid_size)
