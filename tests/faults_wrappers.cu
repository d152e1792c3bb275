// Kernels that misuse those instructions which no other kernel of a fault uses (test_faults_wrappers.py).
#include "cluster.cuh"
#include "cp_async.cuh"
#include "cp_async_bulk.cuh"
#include "mbarrier.cuh"
#include "mma.cuh"
#include "ptx.cuh"
#include "warp.cuh"

using ptx::Type;

// Lane 0 shares the number of a mask with nobody.
template <typename Operation>
__device__ void in_two_places(const Operation& operation) {
    if (threadIdx.x == 0)
        operation(0xFFFFFFFFu);
    else
        __syncwarp();
}

__global__ void fault(int which, const __grid_constant__ TensorMap map, float* tensor) {
    const uint32_t smem = ptx::shared_memory(), none = smem + 2048, barrier = smem + 2056;
    const int thread = threadIdx.x;
    if (thread == 0) {
        ptx::mbarrier_init(barrier, 2);
        ptx::fence_mbarrier_init();
    }
    __syncthreads();
    const uint32_t here = ptx::mapa(smem, 0), remote = ptx::mapa(barrier, 0), remote_none = ptx::mapa(none, 0);
    if (which == 0) {  // half of a warp multiplies
        float d[4] = {};
        const uint32_t a[4] = {}, b[2] = {};
        if (thread < 16)
            ptx::mma_sync<Type::f32, Type::bf16, Type::bf16>(d, a, b);
        else
            __syncwarp(0xFFFF0000);
        tensor[thread] = d[0];
    }
    if (which == 1) ptx::stmatrix_x4(smem + 8, 1, 2, 3, 4);
    if (which == 2) in_two_places([](uint32_t mask) { ptx::redux_sync_add(mask, 1u); });
    if (which == 3) in_two_places([](uint32_t mask) { ptx::match_any_sync(mask, 1u); });
    if (which == 4) in_two_places([](uint32_t mask) { ptx::vote_sync_uni(mask, true); });
    if (which == 5) in_two_places([](uint32_t mask) { ptx::shfl_sync_bfly(mask, 1.0f, 1); });
    if (thread) return;
    const uint16_t all = 1;
    switch (which) {
        case 10:
            return ptx::red_async<Reduction::add>(here, 1u, remote_none);
        case 11:
            return ptx::cp_async_bulk_multicast(smem, tensor, 64, none, all);
        case 12:
            return ptx::cp_async_bulk_prefetch(tensor, 8);
        case 13:
            return ptx::cp_reduce_async_bulk<Reduction::add, Element::f32>(tensor + 1024, smem, 64);
        case 14:
            return ptx::cp_reduce_async_bulk_cluster<Reduction::add, Element::u32>(here, smem, 64, remote_none);
        case 15:
            return ptx::cp_async_bulk_tensor<3>(smem, &map, barrier, {0, 0, 0});
        case 16:
            return ptx::cp_async_bulk_tensor_multicast<2>(smem, &map, none, {0, 0}, all);
        case 17:
            return ptx::cp_async_bulk_prefetch_tensor<2>(&map, {1, 0});
        case 18:
            return ptx::cp_async_bulk_tensor_store<2>(&map, smem, {0, -1});
        case 19:
            return ptx::cp_reduce_async_bulk_tensor<Reduction::bit_and, 2>(&map, smem, {0, 0});
        case 20:
            return ptx::cp_async_bulk_tensor_2d_hint(smem, &map, none, 0, 0, ptx::createpolicy_evict_first());
        case 21:
            return ptx::cp_async_bulk_tensor_2d_multicast(smem, &map, none, 0, 0, all);
        case 22:
            return ptx::cp_reduce_async_bulk_tensor_2d_add(&map, smem, 1, 0);
        case 30:
            return ptx::mbarrier_arrive_expect_tx_cluster(remote_none, 64);
        case 31:
            return ptx::mbarrier_arrive_drop(barrier, 3);
        case 32:
            return ptx::mbarrier_arrive_drop_cluster(remote, 3);
        case 33:
            return ptx::mbarrier_expect_tx_cluster(remote, 1 << 20);
        case 34:
            return ptx::mbarrier_complete_tx_cluster(remote_none, 16);
        case 35:
            ptx::mbarrier_try_wait_parity(none, 0);
            return;
        case 36:
            ptx::mbarrier_test_wait(none, 0);
            return;
        case 37:
            return ptx::mbarrier_inval(none);
        case 38:
            ptx::mbarrier_inval(barrier);
            return ptx::mbarrier_arrive(barrier);
        case 39:
            return ptx::cp_async_mbarrier_arrive(none);
        case 40:
            ptx::atom_exch_shared_cluster(ptx::mapa(smem + 8192, 0), 1);
            return;
        default:
            return;
    }
}
