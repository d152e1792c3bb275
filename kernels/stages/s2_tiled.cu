// Rung 2: tiles in shared memory and in registers.
//
//   python -m gemm_ladder compare --rungs s2_tiled --shapes 128x128x256
//
// A CTA is 256 threads and computes one 128 x 128 tile of D, 8 x 8 elements in each thread. For each step of 16 of K
//   1. a thread loads 16 bytes of one row of A or of B at once, before they are needed;
//   2. it converts them to FP32 and stores them to shared memory, where all of the CTA's threads read them: an element
//      of A is read from global memory n / 128 times, not n times;
//   3. for each k a thread reads 8 numbers of A and 8 of B, and does 64 multiplications and additions with them.
// Every eight steps, which is a K block (128 of K), it promotes: it adds the partial sum, times A's and B's scale, to
// the total. k is a multiple of 128 and n of 8 (rungs.py refuses others). Shared memory has room for two steps: while
// one is multiplied, the next is stored.
#include <cuda_runtime.h>

#include "launch.cuh"
#include "layout.cuh"
#include "ptx.cuh"

constexpr int kTileM = 128;
constexpr int kTileN = 128;  // as wide as a scale block of B: one scale of B for the whole tile
constexpr int kStepK = 16;   // as many FP8 elements as one load can have: 128 bits
constexpr int kThreads = 256;
constexpr int kQuad = 4;  // FP32 numbers in a 128-bit load from shared memory
// A thread's 8 rows are two quads, 64 rows apart, and so are its 8 columns. Neighbouring threads then read neighbouring
// quads: no bank conflicts.
constexpr int kPerThread = 2 * kQuad;
constexpr int kHalf = 64;

__device__ int place(int quad, int i) { return i / kQuad * kHalf + quad * kQuad + i % kQuad; }

// Of a tile's 128 numbers for one k, the eight that belong to this thread's quads.
__device__ void load_quads(float (&to)[kPerThread], const float* line, int quad) {
#pragma unroll
    for (int i = 0; i < kPerThread; i += kQuad) {
        const float4 four = *reinterpret_cast<const float4*>(line + place(quad, i));
        to[i] = four.x, to[i + 1] = four.y, to[i + 2] = four.z, to[i + 3] = four.w;
    }
}

__global__ void __launch_bounds__(kThreads) s2_tiled(const GemmArgs p) {
    // Two steps of both tiles, in FP32. K comes first, so that for one k the rows of a tile are neighbours.
    __shared__ __align__(16) float tile_a[2][kStepK][kTileM], tile_b[2][kStepK][kTileN];

    const int64_t tiles_m = ceil_div(p.m, kTileM);
    const int64_t tile_m = blockIdx.x % tiles_m * kTileM;
    const int64_t tile_n = blockIdx.x / tiles_m * kTileN;
    const int steps = static_cast<int>(p.k / kStepK);

    // ---- Loading and storing: the first 128 threads have a row of A each, the others a row of B
    const bool loads_a = threadIdx.x < kTileM;
    const int line = threadIdx.x % kTileM;
    const int64_t row = loads_a ? tile_m + line : tile_n + line;
    const bool inside = row < (loads_a ? p.m : p.n);  // rows past the end are zeros
    const uint8_t* source = (loads_a ? p.a : p.b) + row * p.k;
    const auto load = [&](int step) {
        return inside ? *reinterpret_cast<const uint4*>(source + step * kStepK) : uint4{0, 0, 0, 0};
    };
    const auto store = [&](int step, uint4 bytes) {
        auto& tile = loads_a ? tile_a[step % 2] : tile_b[step % 2];
#pragma unroll
        for (int i = 0; i < kStepK; ++i) {
            const uint32_t word = i < 4 ? bytes.x : i < 8 ? bytes.y : i < 12 ? bytes.z : bytes.w;
            tile[i][line] = ptx::cvt_f32_e4m3(static_cast<uint8_t>(word >> i % 4 * 8));
        }
    };

    // ---- Multiplying: a warp has 4 quads of rows and 8 quads of columns, and the CTA 4 x 2 warps
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int quad_m = warp / 2 * 4 + lane / 8, quad_n = warp % 2 * 8 + lane % 8;
    const float* sfb = p.sfb + tile_n / kScaleN * (p.k / kScaleK);
    float total[kPerThread][kPerThread] = {};

    store(0, load(0));
    __syncthreads();
    for (int block = 0; block < p.k / kScaleK; ++block) {
        float scale[kPerThread], partial[kPerThread][kPerThread] = {};
#pragma unroll
        for (int i = 0; i < kPerThread; ++i) {
            const int64_t m = tile_m + place(quad_m, i);
            scale[i] = (m < p.m ? p.sfa[block * p.sfa_stride + m] : 0.0f) * sfb[block];
        }
#pragma unroll 1
        for (int step = block * kScaleK / kStepK; step < (block + 1) * kScaleK / kStepK; ++step) {
            uint4 next{};
            if (step + 1 < steps) next = load(step + 1);  // its latency passes while this step is multiplied
#pragma unroll
            for (int k = 0; k < kStepK; ++k) {
                float a[kPerThread], b[kPerThread];
                load_quads(a, tile_a[step % 2][k], quad_m);
                load_quads(b, tile_b[step % 2][k], quad_n);
#pragma unroll
                for (int i = 0; i < kPerThread; ++i)
#pragma unroll
                    for (int j = 0; j < kPerThread; ++j) partial[i][j] = fmaf(a[i], b[j], partial[i][j]);
            }
            if (step + 1 < steps) store(step + 1, next);
            __syncthreads();  // the next step is stored, and this one's place may be overwritten
        }
#pragma unroll
        for (int i = 0; i < kPerThread; ++i)
#pragma unroll
            for (int j = 0; j < kPerThread; ++j) total[i][j] = fmaf(partial[i][j], scale[i], total[i][j]);
    }

    // ---- Epilogue: four neighbours of a row at a time. n is a multiple of 4: all four are inside, or none
#pragma unroll
    for (int i = 0; i < kPerThread; ++i)
#pragma unroll
        for (int j = 0; j < kPerThread; j += kQuad) {
            const int64_t m = tile_m + place(quad_m, i), n = tile_n + place(quad_n, j);
            const uint2 four{ptx::cvt_rn_bf16x2_f32(total[i][j + 1], total[i][j]),
                             ptx::cvt_rn_bf16x2_f32(total[i][j + 3], total[i][j + 2])};
            if (m < p.m && n < p.n) *reinterpret_cast<uint2*>(p.d + m * p.n + n) = four;
        }
}

extern "C" const char* gemm_ladder_launch(const GemmArgs* args) {
    const int64_t tiles = ceil_div(args->m, kTileM) * ceil_div(args->n, kTileN);
    return launch(s2_tiled, {.blocks = tiles, .threads = kThreads, .stream = args->stream}, *args);
}
