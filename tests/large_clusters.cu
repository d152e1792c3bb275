// Faults in a cluster of 8 blocks of 1024 threads, in which the emulator does not follow the order of accesses: what is
// overwritten too early is known by what still runs.
#include "layout.cuh"
#include "ptx.cuh"

__global__ void __launch_bounds__(1024) fault(int which, const __grid_constant__ TensorMap map) {
    const uint32_t smem = ptx::shared_memory();
    if (blockIdx.x) return;
    ptx::st_shared(smem + threadIdx.x * 8, make_float2(0.0f, 0.0f));  // a tile of 64 x 128 bytes: A and B
    ptx::fence_proxy_async();
    __syncthreads();
    if (which == 2) {  // a TMA store that is not waited for
        if (threadIdx.x == 0) {
            ptx::cp_async_bulk_tensor_2d_store(&map, smem, 0, 0);
            ptx::cp_async_bulk_commit_group();
        }
        __syncthreads();
        if (threadIdx.x == 1) ptx::st_shared(smem, 1.0f);
        return __syncthreads();  // nobody exits before the fault
    }
    if (threadIdx.x < 128) {  // WGMMAs that are not waited for, and those that are not even committed
        float d[32];
        const uint64_t tile = smem_descriptor(smem);
        ptx::wgmma_fence();
        ptx::wgmma<64>(d, tile, tile, 0);
        if (which == 0) ptx::wgmma_commit_group();
    }
    __syncthreads();
    if (threadIdx.x == 200) ptx::st_shared(smem, 1.0f);
    __syncthreads();
}
