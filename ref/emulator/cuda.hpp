// The keywords, types and functions of CUDA C++ that the kernels use, defined for a plain C++ compiler.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <source_location>

#include "copies.hpp"
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
// stack, so a thread finds them by its stack pointer alone. Were all tops at the same distance from a multiple of
// kStackBytes, the bytes that are used most would share a few lines of the caches. So each of kColours neighbouring
// stacks ends kColourBytes below the one before.
constexpr uintptr_t kStackBytes = 256 * 1024, kColours = 64, kColourBytes = 1024 + 64;
struct alignas(64) Indices {
    dim3 thread, block, block_size, grid_size;
    uint32_t lane, rank;  // in the warp, and in the cluster
    void* state;          // the emulator's own
};
static_assert(sizeof(Indices) == 64);
// Those of the stack that holds this address.
__attribute__((always_inline)) inline Indices& indices_of(uintptr_t address) {
    const uintptr_t colour = address / kStackBytes % kColours * kColourBytes;
    return *reinterpret_cast<Indices*>((address | (kStackBytes - 1)) + 1 - sizeof(Indices) - colour);
}
__attribute__((always_inline)) inline const Indices& indices() {
    return indices_of(reinterpret_cast<uintptr_t>(__builtin_frame_address(0)));
}

// What __launch_bounds__ promises of a launch: every thread executes this first (kernels/build/plain_cpp.py).
void launch_bounds(int64_t threads, int64_t blocks_an_sm = 1, int64_t cluster = 0);

}  // namespace emulator

// The default argument for where a kernel calls an .aligned instruction, all of whose lanes must be in one place: the
// line, and the column, which tells two calls in one line apart. As an argument it also keeps a compiler from making
// equal calls in two branches one.
#ifdef __clang__
#define EMULATOR_PLACE (__builtin_LINE() | __builtin_COLUMN() << 20)
#else
namespace emulator {
constexpr int place(const std::source_location& at) { return static_cast<int>(at.line() | at.column() << 20); }
}  // namespace emulator
#define EMULATOR_PLACE ::emulator::place(std::source_location::current())
#endif

void __syncthreads(int place = EMULATOR_PLACE);

#define threadIdx (emulator::indices().thread)
#define blockIdx (emulator::indices().block)
#define blockDim (emulator::indices().block_size)
#define gridDim (emulator::indices().grid_size)
