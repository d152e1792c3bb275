// Kernels that misuse an instruction that the package's own kernels do not have. The tests that run them, by number,
// are beside those of the instruction.
#include "cluster.cuh"
#include "cp_async.cuh"
#include "cp_async_bulk.cuh"
#include "fragments.cuh"
#include "layout.cuh"
#include "mbarrier.cuh"
#include "mma.cuh"
#include "ptx.cuh"

using ptx::Type;

// One WGMMA of what lies at the beginning of shared memory.
__device__ void multiply(float (&d)[4], uint32_t smem) {
    ptx::wgmma_fence();
    ptx::wgmma<Type::f32, Type::bf16, Type::bf16, 8>(d, smem_descriptor(smem), smem_descriptor(smem), 0);
    ptx::wgmma_commit_group();
}

__device__ void meet_cluster() {
    ptx::barrier_cluster_arrive();
    ptx::barrier_cluster_wait();
}

__global__ void __launch_bounds__(128) fault(int which, float* tensor) {
    const uint32_t smem = ptx::shared_memory(), lane = ptx::laneid();
    [[maybe_unused]] const uint32_t barrier = smem + 16384;
    [[maybe_unused]] uint32_t r[4] = {};
    float d[4] = {};
    switch (which) {
        case 0:  // half of the lanes transpose
            if (lane < 16)
                return ptx::ldmatrix<4>(r, smem + lane * 16);
            else
                return ptx::ldmatrix<4, true>(r, smem + lane * 16);
        case 1:  // a row's address is not a multiple of 16
            return ptx::stmatrix<1>(smem + 8, {1});
        case 2:  // a row that another warp has stored, without a barrier
            if (threadIdx.x == 32) ptx::st_shared(smem, 1u);
            if (threadIdx.x < 32) ptx::ldmatrix<1>(reinterpret_cast<uint32_t (&)[1]>(r[0]), smem + lane * 16);
            return;
        case 3:  // A's registers are written behind the fence
            ptx::wgmma_fence();
            for (uint32_t i = 0; i < 4; ++i) r[i] = lane + i;
            tensor[threadIdx.x] = static_cast<float>(r[lane % 4]);
            ptx::wgmma<Type::f32, Type::bf16, Type::bf16, 8>(d, r, smem_descriptor(smem), 0);
            ptx::wgmma_commit_group();
            return ptx::wgmma_wait_group<0>();
        case 4:  // two warps issue WGMMAs of different types
            ptx::wgmma_fence();
            if (threadIdx.x < 64)
                ptx::wgmma<Type::f32, Type::bf16, Type::bf16, 8>(d, smem_descriptor(smem), smem_descriptor(smem), 0);
            else
                ptx::wgmma<Type::f32, Type::f16, Type::f16, 8>(d, smem_descriptor(smem), smem_descriptor(smem), 0);
            ptx::wgmma_commit_group();
            return ptx::wgmma_wait_group<0>();
        case 5:  // A is loaded behind the fence
            ptx::wgmma_fence();
            ptx::ldmatrix<4>(r, smem + lane * 16);
            ptx::wgmma<Type::f32, Type::bf16, Type::bf16, 8>(d, r, smem_descriptor(smem), 0);
            ptx::wgmma_commit_group();
            return ptx::wgmma_wait_group<0>();
        case 10:  // a copy is not waited for
            if (threadIdx.x) return;
            ptx::cp_async_ca<4>(smem, tensor);
            tensor[0] = ptx::ld_shared<float>(smem);
            return ptx::cp_async_wait_all();
        case 11:  // a copy is waited for by its thread, and no barrier tells the others
            if (threadIdx.x == 0) ptx::cp_async_ca<4>(smem, tensor);
            ptx::cp_async_wait_all();
            tensor[threadIdx.x] = ptx::ld_shared<float>(smem);
            return;
        case 12:
            return ptx::cp_async_cg(smem + 8, tensor);
        case 13:
            return ptx::cp_async_cg(smem, tensor + 2);
        case 14:
            return ptx::cp_async_cg(smem + threadIdx.x * 16, tensor + 64 * 64);
        case 15:
            return ptx::cp_async_ca<8>(smem, tensor, 9);
        case 16:  // copies are of the generic proxy
            for (uint32_t i = threadIdx.x; i < 64 * 8; i += 128) ptx::cp_async_cg(smem + i * 16, tensor + i * 4);
            ptx::cp_async_wait_all();
            __syncthreads();
            multiply(d, smem);
            return ptx::wgmma_wait_group<0>();
        case 17:  // the phase has had its arrival, and waits for bytes
            if (threadIdx.x) return;
            ptx::mbarrier_init(barrier, 1);
            ptx::mbarrier_arrive_expect_tx(barrier, 16);
            ptx::cp_async_mbarrier_arrive_noinc(barrier);
            return ptx::mbarrier_wait_parity(barrier, 0);
        case 18:  // a copy overwrites what a WGMMA may still read
            multiply(d, smem);
            if (threadIdx.x == 0) ptx::cp_async_cg(smem, tensor);
            return ptx::wgmma_wait_group<0>();
        case 20:
            return ptx::cp_async_bulk_store(tensor, smem + 8, 16);
        case 21:
            return ptx::cp_async_bulk_store(tensor, smem, 24);
        case 22:
            if (threadIdx.x) return;
            ptx::mbarrier_init(barrier, 1);
            ptx::fence_mbarrier_init();
            ptx::mbarrier_arrive_expect_tx(barrier, 32);
            ptx::cp_async_bulk(smem, tensor + 64 * 64 - 4, 32, barrier);
            return ptx::mbarrier_wait_parity(barrier, 0);
        case 23:  // a store of what is not fenced
            if (threadIdx.x) return;
            ptx::st_shared(smem, uint4{});
            ptx::cp_async_bulk_store(tensor, smem, 16);
            ptx::cp_async_bulk_commit_group();
            return ptx::cp_async_bulk_wait_group<0>();
        case 24:  // a load is not waited for
        case 25:  // nor is the barrier visible
            if (threadIdx.x) return;
            ptx::mbarrier_init(barrier, 1);
            if (which == 24) ptx::fence_mbarrier_init();
            ptx::mbarrier_arrive_expect_tx(barrier, 16);
            ptx::cp_async_bulk(smem, tensor, 16, barrier);
            tensor[0] = ptx::ld_shared<float>(smem);
            return;
        case 26:  // to one block, and counted by another
            if (threadIdx.x == 0) {
                ptx::mbarrier_init(barrier, 1);
                ptx::fence_mbarrier_init();
            }
            ptx::barrier_cluster_arrive();
            ptx::barrier_cluster_wait();
            if (threadIdx.x == 0) ptx::cp_async_bulk_cluster(ptx::mapa(smem, 0), smem, 16, ptx::mapa(barrier, 1));
            ptx::barrier_cluster_arrive();
            return ptx::barrier_cluster_wait();
        case 30:
        case 31:
        case 32:
            if (threadIdx.x) return;
            ptx::mbarrier_init(barrier, 4);
            if (which == 30) ptx::mbarrier_arrive(barrier, 5);
            if (which == 31) ptx::mbarrier_arrive(barrier, 0);
            if (which == 32) ptx::mbarrier_expect_tx(barrier, 1 << 20);
            return;
        case 33:
            return ptx::mbarrier_expect_tx(smem, 16);
        case 34:  // mbarrier.complete_tx orders nothing
            if (threadIdx.x == 0) {
                ptx::mbarrier_init(barrier, 1);
                ptx::mbarrier_arrive_expect_tx(barrier, 16);
            }
            __syncthreads();
            if (threadIdx.x == 40) {
                ptx::st_shared(smem, 1u);
                ptx::mbarrier_complete_tx(barrier, 16);
            }
            ptx::mbarrier_wait_parity(barrier, 0);
            tensor[threadIdx.x] = ptx::ld_shared<float>(smem);
            return;
        case 35:  // a state whose phase nothing completes
            if (threadIdx.x) return;
            ptx::mbarrier_init(barrier, 2);
            for (const uint64_t state = ptx::mbarrier_arrive_state(barrier); !ptx::mbarrier_try_wait(barrier, state);) {
            }
            return;
        case 40:    // an st.async is not waited for
        case 41:    // its bytes are counted by another block
        case 43:    // the other block cannot see the mbarrier
        case 45: {  // the other block may have ended when it arrives
            if (threadIdx.x == 0) {
                ptx::mbarrier_init(barrier, 1);
                if (which != 43) ptx::fence_mbarrier_init();
                ptx::mbarrier_arrive_expect_tx(barrier, 4);
            }
            meet_cluster();
            const uint32_t rank = ptx::cluster_ctarank();
            if (threadIdx.x == 0 && (rank == 0 || which != 45))
                ptx::st_async(ptx::mapa(smem, which == 41 ? 0 : 1 - rank), 1u, ptx::mapa(barrier, 1 - rank));
            if (which == 45) {
                ptx::barrier_cluster_arrive();
                return ptx::barrier_cluster_wait();
            }
            if (which == 40) tensor[rank] = ptx::ld_shared<float>(smem);
            return meet_cluster();
        }
        case 42:
            meet_cluster();
            ptx::atom_shared_cluster<Reduction::add>(ptx::mapa(smem, 0) + 2, 1u);
            return meet_cluster();
        case 44:  // a store into the other block, without a barrier
            meet_cluster();
            if (threadIdx.x == 0) {
                if (ptx::cluster_ctarank()) ptx::st_shared_cluster(ptx::mapa(smem, 0), 1u);
                tensor[ptx::cluster_ctarank()] = ptx::ld_shared_cluster<float>(ptx::mapa(smem, 0));
            }
            return meet_cluster();
        default:
            return;
    }
}
