// Kernels about the order of accesses to shared memory: what threads do to it in pieces of a word, and what WGMMAs and
// the copy engine do. test_faults_order.py says what the emulator must say of each, by number; those from 100 on are
// right.
#include <cuda_runtime.h>

#include "layout.cuh"
#include "mma.cuh"
#include "ptx.cuh"

constexpr uint32_t kBarriers = 16384, kBytes = 64 * 128;
using Accumulators = float[4];

__device__ void multiply(Accumulators& d, uint32_t a, uint32_t b, bool commits = true) {
    ptx::wgmma_fence();
    ptx::wgmma<ptx::Type::f32, ptx::Type::bf16, ptx::Type::bf16, 8>(d, smem_descriptor(a), smem_descriptor(b), 0);
    if (commits) ptx::wgmma_commit_group();
}

// What a load, a WGMMA and the stage's release are in a ring of one stage. Threads 0 to 127 multiply, thread 128 loads.
struct Ring {
    uint32_t smem, full, empty, phases = 2;

    __device__ void init(uint32_t arrivals) const {
        if (threadIdx.x == 0) {
            ptx::mbarrier_init(full, 1);
            ptx::mbarrier_init(empty, arrivals);
            ptx::fence_mbarrier_init();
        }
        __syncthreads();
    }
    __device__ void produce(const TensorMap& map, bool waits, bool expects_all) const {
        for (uint32_t i = 0; i < phases; ++i) {
            if (i && waits) ptx::mbarrier_wait_parity(empty, i - 1);
            ptx::mbarrier_arrive_expect_tx(full, expects_all ? 2 * kBytes : kBytes);
            for (uint32_t tile = 0; tile < 2; ++tile)
                ptx::cp_async_bulk_tensor_2d(smem + tile * kBytes, &map, full, 0, 0);
        }
    }
};

__device__ void store_tile(uint32_t smem) {
    for (uint32_t i = threadIdx.x; i < kBytes / 4; i += 128) ptx::st_shared(smem + i * 4, 0u);
    ptx::fence_proxy_async();
}

__global__ void order(int which, const __grid_constant__ TensorMap map, float* out) {
    const uint32_t smem = ptx::shared_memory(), t = threadIdx.x;
    const Ring ring{smem, smem + kBarriers, smem + kBarriers + 8};
    __shared__ uint8_t bytes[128];
    __shared__ uint16_t halves[128];
    Accumulators d = {};
    switch (which) {
        case 0:  // two threads store the same byte
            bytes[t / 2] = static_cast<uint8_t>(t);
            return;
        case 1:  // a thread reads the half that another one has stored
            halves[t] = static_cast<uint16_t>(t);
            out[t] = halves[t ^ 1];
            return;
        case 2:  // a thread stores a word while others store its halves
            halves[t] = 1;
            if (t == 0) *reinterpret_cast<uint32_t*>(&halves[64]) = 2;
            return;
        case 100:  // each thread stores and loads its own byte and its own half; then all read all
            bytes[t] = static_cast<uint8_t>(t);
            halves[t] = static_cast<uint16_t>(bytes[t] + 1);
            __syncthreads();
            out[t] = static_cast<float>(bytes[127 - t] + halves[t ^ 1]);
            __syncthreads();
            if (t < 32) reinterpret_cast<uint32_t*>(bytes)[t] = t;  // whole words again
            __syncthreads();
            bytes[t] = 1;
            return;
        case 3:  // a WGMMA reads what the warpgroup's threads have stored, without a barrier
            store_tile(smem);
            multiply(d, smem, smem);
            return ptx::wgmma_wait_group<0>();
        case 101:  // with one
        case 4:    // a thread of another warpgroup overwrites it, and no barrier lies behind the wait
        case 5:    // or one of the same warpgroup does so before the wait
            if (t < 128) store_tile(smem);
            __syncthreads();
            if (t < 128) multiply(d, smem, smem);
            if (which == 5 && t == 40) ptx::st_shared(smem, 1u);
            if (t < 128) ptx::wgmma_wait_group<0>();
            if (which == 101) __syncthreads();
            if (which != 5 && t == 130) ptx::st_shared(smem + 4, 1u);
            return;
        case 6:    // a TMA store reads what all threads have stored, without a barrier
        case 102:  // with one
        case 7:    // and another thread overwrites it without a barrier behind the wait
        case 103:  // with one
            store_tile(smem);
            if (which != 6) __syncthreads();
            if (t == 0) {
                ptx::cp_async_bulk_tensor_2d_store(&map, smem, 0, 0);
                ptx::cp_async_bulk_commit_group();
                ptx::cp_async_bulk_wait_group_read<0>();
            }
            if (which == 103) __syncthreads();
            if (which != 6 && which != 102 && t == 40) ptx::st_shared(smem + 4, 1u);
            return;
        case 106:  // the fence is on the readers' side of the barrier
            for (uint32_t i = t; i < kBytes / 4; i += 128) ptx::st_shared(smem + i * 4, 0u);
            __syncthreads();
            ptx::fence_proxy_async();
            multiply(d, smem, smem);
            if (t == 40) {
                ptx::cp_async_bulk_tensor_2d_store(&map, smem, 0, 0);
                ptx::cp_async_bulk_commit_group();
                ptx::cp_async_bulk_wait_group_read<0>();
            }
            return ptx::wgmma_wait_group<0>();
        case 8:     // a stage is released before the wait
        case 9:     // the WGMMA is not committed
        case 10:    // the producer does not wait for the release, and loads by a barrier of its own
        case 104:   // one thread releases the stage for its warpgroup, as CUTLASS's pipelines do
        case 105:   // each warp's first lane does
        case 11: {  // fewer bytes are expected than the loads bring
            ring.init(which == 105 ? 4 : 1);
            if (t == 128) return ring.produce(map, which != 10, which != 11);
            if (t > 128) return;
            for (uint32_t i = 0; i < ring.phases; ++i) {
                ptx::mbarrier_wait_parity(ring.full, i);
                multiply(d, smem, smem + kBytes, which != 9);
                if (which != 8) ptx::wgmma_wait_group<0>();
                if (t == 0 || (which == 105 && t % 32 == 0)) ptx::mbarrier_arrive(ring.empty);
                ptx::wgmma_wait_group<0>();
            }
            return;
        }
        case 12:  // one lane waits for a load, and all of its warp read
            ring.init(1);
            if (t == 128) {
                ptx::mbarrier_arrive_expect_tx(ring.full, kBytes);
                return ptx::cp_async_bulk_tensor_2d(smem, &map, ring.full, 0, 0);
            }
            if (t >= 32) return;
            if (t == 0) ptx::mbarrier_wait_parity(ring.full, 0);
            out[t] = ptx::ld_shared<float>(smem + t * 4);
            return;
    }
}
