// cp.async alone (test_cp_async.py). Each thread of a block of 128 copies 48 bytes, as pieces of one size.
#include "cp_async.cuh"
#include "layout.cuh"
#include "mma.cuh"
#include "ptx.cuh"

constexpr uint32_t kBytes = 48;  // of a thread
constexpr uint32_t kBarrier = 128 * kBytes;

// A word that another thread has copied, so a barrier is needed.
__device__ void dump(uint32_t* out) {
    for (uint32_t i = threadIdx.x; i < 128 * kBytes / 4; i += 128)
        out[i] = ptx::ld_shared<uint32_t>(ptx::shared_memory() + i * 4);
}

template <int kPiece>
__device__ void copy(const uint8_t* in, uint32_t valid) {
    const uint32_t begin = threadIdx.x * kBytes;
    for (uint32_t at = begin; at < begin + kBytes; at += kPiece)
        ptx::cp_async_ca<kPiece>(ptx::shared_memory() + at, in + at, valid);
}

// Of every piece, `valid` bytes are copied, and zeros behind them.
__global__ void units(int unit, const uint8_t* in, uint32_t* out, uint32_t valid) {
    const uint32_t smem = ptx::shared_memory(), barrier = smem + kBarrier, begin = threadIdx.x * kBytes;
    switch (unit) {
        case 0:
            copy<4>(in, valid);
            ptx::cp_async_wait_all();
            break;
        case 1:
            copy<8>(in, valid);
            ptx::cp_async_commit_group();
            ptx::cp_async_wait_group<0>();
            break;
        case 2:
            copy<16>(in, valid);
            ptx::cp_async_wait_all();
            break;
        case 3:  // three groups, of which the first is used while the others are in flight
            for (uint32_t i = 0; i < 3; ++i) {
                ptx::cp_async_cg(smem + begin + i * 16, in + begin + i * 16, valid);
                ptx::cp_async_commit_group();
            }
            ptx::cp_async_wait_group<2>();
            ptx::st_shared(smem + begin, ptx::ld_shared<uint32_t>(smem + begin) + 1u);
            ptx::cp_async_wait_group<0>();
            break;
        case 4:  // the copies' own arrivals: one of each thread, which the count includes
        case 5:  // or not: then it has one of each thread too
            if (threadIdx.x == 0) {
                ptx::mbarrier_init(barrier, 128);
                ptx::fence_mbarrier_init();
            }
            __syncthreads();
            copy<16>(in, valid);
            if (unit == 4) {
                ptx::cp_async_mbarrier_arrive_noinc(barrier);
            } else {
                ptx::cp_async_mbarrier_arrive(barrier);
                ptx::mbarrier_arrive(barrier);
            }
            ptx::mbarrier_wait_parity(barrier, 0);
            return dump(out);  // without a barrier: the mbarrier is one
        case 6: {              // a WGMMA of what was copied: A, 64 swizzled rows, and B, the first 8 of them
            for (uint32_t at = threadIdx.x * 16; at < 64 * kSwizzleRow; at += 128 * 16)
                ptx::cp_async_cg(smem + at, in + at);
            ptx::cp_async_wait_all();
            ptx::fence_proxy_async();
            __syncthreads();
            float d[4];
            ptx::wgmma_fence();
            ptx::wgmma<ptx::Type::f32, ptx::Type::bf16, ptx::Type::bf16, 8>(d, smem_descriptor(smem),
                                                                            smem_descriptor(smem), 0);
            ptx::wgmma_commit_group();
            ptx::wgmma_wait_group<0>();
            for (int i = 0; i < 4; ++i) out[threadIdx.x * 4 + i] = __float_as_uint(d[i]);
            return;
        }
        default:
            return;
    }
    __syncthreads();
    dump(out);
}
