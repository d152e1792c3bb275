// Rung 1: one thread per element of D, on the CUDA cores.
//
//   python -m gemm_ladder compare --rungs s1_naive --shapes 64x128x256
//
// For each K block (128 of K) a thread
//   1. reads 128 elements of its row of A and of its row of B, converts them to FP32, and adds their products;
//   2. promotes: it adds that partial sum, times A's and B's scale, to the total.
// After the last K block it rounds the total to BF16 and stores it.
// Threads share no tile: each element of A is read n times, each element of B m times.
#include "launch.cuh"
#include "layout.cuh"
#include "ptx.cuh"

constexpr int kTileM = 8;   // a CTA computes kTileM x kTileN elements of D, one in each thread
constexpr int kTileN = 32;  // a warp computes 32 neighbours of one row
constexpr int kThreads = kTileM * kTileN;

__global__ void __launch_bounds__(kThreads) s1_naive(const GemmArgs p) {
    const int64_t tiles_n = ceil_div(p.n, kTileN);
    const int64_t row = blockIdx.x / tiles_n * kTileM + threadIdx.x / kTileN;
    const int64_t column = blockIdx.x % tiles_n * kTileN + threadIdx.x % kTileN;
    if (row >= p.m || column >= p.n) return;

    const uint8_t* a = p.a + row * p.k;
    const uint8_t* b = p.b + column * p.k;
    const float* sfb = p.sfb + column / kScaleK * ceil_div(p.k, kScaleK);
    float total = 0.0f;
    for (int64_t block = 0; block * kScaleK < p.k; ++block) {
        const int64_t begin = block * kScaleK;
        const int64_t end = begin + kScaleK < p.k ? begin + kScaleK : p.k;
        float partial = 0.0f;
        for (int64_t k = begin; k < end; ++k) partial = fmaf(ptx::cvt_f32_e4m3(a[k]), ptx::cvt_f32_e4m3(b[k]), partial);
        total = fmaf(partial, p.sfa[block * p.sfa_stride + row] * sfb[block], total);
    }
    p.d[row * p.n + column] = static_cast<uint16_t>(ptx::cvt_rn_bf16x2_f32(0.0f, total));
}

extern "C" const char* gemm_ladder_launch(const GemmArgs* args) {
    const int64_t tiles = ceil_div(args->m, kTileM) * ceil_div(args->n, kTileN);
    return launch(s1_naive, {.blocks = tiles, .threads = kThreads, .stream = args->stream}, *args);
}
