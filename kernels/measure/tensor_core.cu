// What a tensor core computes from given operands and accumulators: a kernel that runs only WGMMAs, one tile per
// thread block, for every n. tensor_core.py launches it and compares the results with ref/tensor_core.py.
#include <utility>

#include "launch.cuh"
#include "layout.cuh"
#include "ptx.cuh"

struct ProbeArgs {
    const uint8_t* a;  // E4M3 [tiles][64][instructions * 32]
    const uint8_t* b;  // E4M3 [tiles][n][instructions * 32]
    const float* acc;  // [tiles][64][n]: the accumulators before the first WGMMA
    float* d;          // [tiles][64][n]: the accumulators after the last one
    int64_t tiles, n, instructions;
    int64_t scale_d;  // 0: the first WGMMA ignores the accumulators
    void* stream;
};

#ifndef PROBE_N_STEP  // the kernel is compiled for n = its multiples up to 256; a larger step compiles faster
#define PROBE_N_STEP 8
#endif

constexpr int kThreads = 128;
constexpr int kStep = PROBE_N_STEP, kLargestN = 256;

template <int kRows, int kBytes>
__device__ void copy_swizzled(uint32_t tile, const uint8_t* matrix) {
    constexpr int kChunk = sizeof(uint4), kChunks = kBytes / kChunk;
    for (int i = threadIdx.x; i < kRows * kChunks; i += kThreads)
        ptx::st_shared(tile + swizzle_128b(i / kChunks * kSwizzleRow + i % kChunks * kChunk),
                       reinterpret_cast<const uint4*>(matrix)[i]);
}

template <int N, int kInstructions>
__global__ void __launch_bounds__(kThreads) probe(const ProbeArgs p) {
    constexpr int kBytes = kInstructions * kWgmmaK;  // of a row of A or B
    const int64_t tile = blockIdx.x;
    const uint32_t smem_a = ptx::shared_memory(), smem_b = smem_a + kWgmmaM * kSwizzleRow;
    copy_swizzled<kWgmmaM, kBytes>(smem_a, p.a + tile * kWgmmaM * kBytes);
    copy_swizzled<N, kBytes>(smem_b, p.b + tile * N * kBytes);
    ptx::fence_proxy_async();
    __syncthreads();

    const auto element = [&](int i) {
        return (tile * kWgmmaM + accumulator_row(threadIdx.x, i)) * N + accumulator_column(threadIdx.x, i);
    };
    float d[N / 2];
#pragma unroll
    for (int i = 0; i < N / 2; ++i) d[i] = p.acc[element(i)];
    ptx::wgmma_fence();
#pragma unroll
    for (int k = 0; k < kInstructions; ++k)
        ptx::wgmma<N>(d, smem_descriptor(smem_a + k * kWgmmaK), smem_descriptor(smem_b + k * kWgmmaK),
                      k != 0 || p.scale_d != 0);
    ptx::wgmma_commit_group();
    ptx::wgmma_wait_group<0>();
#pragma unroll
    for (int i = 0; i < N / 2; ++i) p.d[element(i)] = d[i];
}

template <int N>
const char* launch_probe(const ProbeArgs& args) {
    return launch(
        args.instructions == 1 ? probe<N, 1> : probe<N, 4>,
        {.blocks = args.tiles, .threads = kThreads, .shared_bytes = (kWgmmaM + N) * kSwizzleRow, .stream = args.stream},
        args);
}

template <int... kIndex>
const char* launch_for_n(const ProbeArgs& args, std::integer_sequence<int, kIndex...>) {
    using Launcher = const char* (*)(const ProbeArgs&);
    constexpr Launcher kLaunchers[] = {launch_probe<kStep*(kIndex + 1)>...};
    return kLaunchers[args.n / kStep - 1](args);
}

extern "C" const char* gemm_ladder_launch(const ProbeArgs* args) {
    if (args->n % kStep || args->n < kStep || args->n > kLargestN) return "the probe was not compiled for this n";
    if (args->instructions != 1 && args->instructions != 4) return "one instruction, or a chain of four, is needed";
    return launch_for_n(*args, std::make_integer_sequence<int, kLargestN / kStep>());
}
