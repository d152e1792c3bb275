// Kernels of test_small_floats.py: the types and functions of CUDA's headers of small numbers. nvcc compiles them too.
#include <cooperative_groups.h>
#include <cooperative_groups/reduce.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>
#include <cuda_pipeline.h>
#include <math_constants.h>

#include <cstdint>

namespace cg = cooperative_groups;

// Every number of 16 bits, widened.
__global__ void widen(const __half* h, const __nv_bfloat16* b, float* from_half, float* from_bfloat) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    from_half[i] = __half2float(h[i]);
    from_bfloat[i] = __bfloat162float(b[i]);
}

__global__ void widen_fp8(const __nv_fp8_e4m3* e4m3, const __nv_fp8_e5m2* e5m2, float* from_e4m3, float* from_e5m2) {
    const int i = threadIdx.x;
    from_e4m3[i] = static_cast<float>(e4m3[i]);
    from_e5m2[i] = static_cast<float>(e5m2[i]);
}

// Rounded to nearest, and in the three directions.
__global__ void narrow(const float* x, __half* h, __nv_bfloat16* b, __nv_fp8_e4m3* e4m3, __nv_fp8_e5m2* e5m2,
                       uint8_t* unsaturated, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    h[i] = __float2half(x[i]);
    h[n + i] = __float2half_rz(x[i]);
    h[2 * n + i] = __float2half_rd(x[i]);
    h[3 * n + i] = __float2half_ru(x[i]);
    b[i] = __float2bfloat16(x[i]);
    b[n + i] = __float2bfloat16_rz(x[i]);
    b[2 * n + i] = __float2bfloat16_rd(x[i]);
    b[3 * n + i] = __float2bfloat16_ru(x[i]);
    e4m3[i] = __nv_fp8_e4m3(x[i]);
    e5m2[i] = __nv_fp8_e5m2(x[i]);
    unsaturated[i] = __nv_cvt_float_to_fp8(x[i], __NV_NOSAT, __NV_E4M3);
}

template <typename T>
__global__ void arithmetic(const T* a, const T* b, const T* c, T* out, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    out[i] = a[i] + b[i];
    out[n + i] = a[i] - b[i];
    out[2 * n + i] = __hmul(a[i], b[i]);
    out[3 * n + i] = a[i] / b[i];
    out[4 * n + i] = __hfma(a[i], b[i], c[i]);
    out[5 * n + i] = __hmax(a[i], b[i]);
    out[6 * n + i] = hsqrt(__habs(a[i]));
    out[7 * n + i] = __hlt(a[i], b[i]) ? -a[i] : b[i];
}

// Two at a time, and what else kernels do with them.
__global__ void pairs(const float2* x, float2* out, int* whole, __half* sum, __nv_bfloat162* sums) {
    const int i = threadIdx.x;
    const __half2 h = __float22half2_rn(x[i]), twice = __hadd2(h, h);
    const __nv_bfloat162 b = __floats2bfloat162_rn(x[i].x, x[i].y);
    const float2 wide = __half22float2(__hfma2(h, h, twice));
    out[i] = make_float2(wide.x + __low2float(b), wide.y + __high2float(b));
    whole[i] = __half2int_rn(__low2half(h)) + 1000 * __half2int_rz(__high2half(h));
    const __half other = __shfl_xor_sync(~0u, __low2half(h), 1);
    if (__hgt(other, __ushort_as_half(0x7BFF)) || __hisnan(other)) whole[i] = -1;
    atomicAdd(sum, __float2half(0.5f));
    atomicAdd(sums, __floats2bfloat162_rn(1.0f, 0.25f));
}

// What cuda_runtime.h has: each thread has one case.
__global__ void intrinsics(int* out, float* numbers) {
    const unsigned x = 0x01F07F80u, y = 0x017F0281u;
    const int t = threadIdx.x;
    const int cases[] = {
        static_cast<int>(__vadd4(x, y)),
        static_cast<int>(__vmaxs4(x, y)),
        static_cast<int>(__vminu2(x, y)),
        static_cast<int>(__vcmpeq4(x, y)),
        __dp4a(static_cast<int>(x), 3, -5),
        static_cast<int>(__usad(3u, 10u, 5u)),
        static_cast<int>(__funnelshift_l(x, y, 4)),
        static_cast<int>(__funnelshift_rc(x, y, 40)),
        __hadd(-3, 4),
        __float2int_rz(3e9f),
        static_cast<int>(__float2uint_rn(-2.0f)),
        __float2int_ru(2.25f),
        static_cast<int>(umax(3u, 4u)),
        __mul24(0x1000003, 5),
        __brev(1) == 0x80000000u,
        static_cast<int>(__umul64hi(1ull << 63, 6)),
    };
    if (t < 16) out[t] = cases[t];
    if (t == 0) {
        numbers[0] = __frcp_rn(3.0f), numbers[1] = __fsqrt_rn(2.0f), numbers[2] = sinpif(1.5f),
        numbers[3] = cospif(0.5f);
        numbers[4] = CUDART_INF_F, numbers[5] = CUDART_PI_F, numbers[6] = static_cast<float>(rsqrt(4.0)),
        numbers[7] = __double2float_rn(1.0 / 3.0);
    }
    __shared__ int count;
    if (t == 0) count = 0;
    __syncthreads();
    atomicAdd_block(&count, 1);
    __syncthreads();
    if (t == 16) out[16] = count, out[17] = __isShared(&count) && !__isShared(out) && __isGlobal(out);
}

__global__ void groups(int* out) {
    const int t = threadIdx.x;
    const auto tile = cg::tiled_partition<16>(cg::this_thread_block());
    out[t] = cg::reduce(tile, t, cg::plus<int>());
    out[64 + t] = static_cast<int>(tile.match_any(t / 3));
    if (t % 3 == 0) {
        const cg::coalesced_group together = cg::coalesced_threads();
        out[128 + t] = static_cast<int>(100 * together.size() + together.thread_rank());
        out[192 + t] = together.shfl(t, 2) + 1000 * cg::reduce(together, 1, cg::plus<int>());
    } else {
        const cg::coalesced_group others = cg::labeled_partition(cg::coalesced_threads(), t % 2);
        out[128 + t] = static_cast<int>(100 * others.size() + others.thread_rank());
    }
    cg::thread_group half = cg::tiled_partition(cg::this_thread_block(), 8);
    half.sync();
    if (t == 63) out[256] = static_cast<int>(half.size() * 100 + half.thread_rank());
    if (t == 63) out[257] = static_cast<int>(cg::this_grid().thread_rank());
}

// A ring of two stages, filled by cp.async.
__global__ void pipeline(const float4* x, float* out, int stages) {
    __shared__ float4 ring[2][32];
    const int t = threadIdx.x;
    __pipeline_memcpy_async(&ring[0][t], x + t, sizeof(float4));
    __pipeline_commit();
    for (int i = 0; i < stages; ++i) {
        if (i + 1 < stages) __pipeline_memcpy_async(&ring[(i + 1) % 2][t], x + 32 * (i + 1) + t, sizeof(float4), 8);
        __pipeline_commit();
        __pipeline_wait_prior(PRIOR);
        __syncthreads();
        const float4 other = ring[i % 2][31 - t];
        out[t] += other.x + other.y + other.z + other.w;
        __syncthreads();
    }
}
