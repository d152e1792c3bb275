// One WGMMA of BF16, m64n64k16, whose operands lie in shared memory as the test says (test_wgmma_layouts.py).
#include "mma.cuh"
#include "ptx.cuh"

using ptx::Type;

constexpr uint32_t kImage = 16384;  // bytes of an operand

// `a` and `b` are shared memory's content, kImage bytes each; layout_a and layout_b the descriptors without addresses.
// out[thread][register].
template <ptx::WgmmaOptions kOptions>
__device__ void multiply(const uint8_t* a, const uint8_t* b, uint64_t layout_a, uint64_t layout_b, float* out) {
    const uint32_t smem = ptx::shared_memory();
    for (uint32_t i = threadIdx.x * 4; i < kImage; i += 128 * 4) {
        ptx::st_shared(smem + i, *reinterpret_cast<const uint32_t*>(a + i));
        ptx::st_shared(smem + kImage + i, *reinterpret_cast<const uint32_t*>(b + i));
    }
    ptx::fence_proxy_async();
    __syncthreads();
    float d[32];
    ptx::wgmma_fence();
    ptx::wgmma<Type::f32, Type::bf16, Type::bf16, 64, kOptions>(d, layout_a | smem >> 4,
                                                                layout_b | (smem + kImage) >> 4, 0);
    ptx::wgmma_commit_group();
    ptx::wgmma_wait_group<0>();
    for (int i = 0; i < 32; ++i) out[threadIdx.x * 32 + i] = d[i];
}

__global__ void __launch_bounds__(128)
    units(int unit, const uint8_t* a, const uint8_t* b, uint64_t layout_a, uint64_t layout_b, float* out) {
    switch (unit) {
        case 0:
            return multiply<ptx::WgmmaOptions{}>(a, b, layout_a, layout_b, out);
        case 1:
            return multiply<ptx::WgmmaOptions{.mn_major_a = true}>(a, b, layout_a, layout_b, out);
        case 2:
            return multiply<ptx::WgmmaOptions{.mn_major_b = true}>(a, b, layout_a, layout_b, out);
        case 3:
            return multiply<ptx::WgmmaOptions{.mn_major_a = true, .mn_major_b = true}>(a, b, layout_a, layout_b, out);
        case 4:
            return multiply<ptx::WgmmaOptions{.negate_a = true}>(a, b, layout_a, layout_b, out);
        default:
            return multiply<ptx::WgmmaOptions{.negate_a = true, .negate_b = true}>(a, b, layout_a, layout_b, out);
    }
}
