// mbarriers alone (test_mbarriers.py). A block has 128 threads.
#include "mbarrier.cuh"
#include "ptx.cuh"

__device__ uint32_t init(uint32_t count) {
    const uint32_t barrier = ptx::shared_memory();
    if (threadIdx.x == 0) {
        ptx::mbarrier_init(barrier, count);
        ptx::fence_mbarrier_init();
    }
    __syncthreads();
    return barrier;
}

__device__ void meet_cluster() {
    ptx::barrier_cluster_arrive();
    ptx::barrier_cluster_wait();
}

__global__ void units(int unit, uint32_t* out) {
    const uint32_t thread = threadIdx.x, rank = ptx::cluster_ctarank(), other = 1 - rank;
    switch (unit) {
        case 0: {  // arrivals of several at once, states, pending counts
            const uint32_t barrier = init(128);
            if (thread) return;
            const uint64_t first = ptx::mbarrier_arrive_state(barrier, 100);
            out[0] = ptx::mbarrier_pending_count(first);
            out[1] = ptx::mbarrier_test_wait(barrier, first);
            const uint64_t second = ptx::mbarrier_arrive_state(barrier);
            out[2] = ptx::mbarrier_pending_count(second);
            ptx::mbarrier_arrive(barrier, 27);
            while (!ptx::mbarrier_try_wait(barrier, first)) {
            }
            out[3] = ptx::mbarrier_test_wait(barrier, second);
            out[4] = ptx::mbarrier_test_wait_parity(barrier, 0);
            return;
        }
        case 1: {  // half of the threads drop out: the second phase waits for the other half
            const uint32_t barrier = init(128);
            if (thread < 64) return ptx::mbarrier_arrive_drop(barrier);
            ptx::mbarrier_arrive(barrier);
            while (!ptx::mbarrier_try_wait_parity(barrier, 0)) {
            }
            ptx::mbarrier_arrive(barrier);
            while (!ptx::mbarrier_try_wait_parity(barrier, 1, 1000)) {
            }
            out[thread - 64] = thread;
            return;
        }
        case 2: {  // bytes are expected and counted without a copy
            const uint32_t barrier = init(1);
            if (thread) return;
            ptx::mbarrier_expect_tx(barrier, 48);
            ptx::mbarrier_arrive(barrier);
            out[0] = ptx::mbarrier_test_wait_parity(barrier, 0);
            ptx::mbarrier_complete_tx(barrier, 32);
            out[1] = ptx::mbarrier_test_wait_parity(barrier, 0);
            ptx::mbarrier_complete_tx(barrier, 16);
            ptx::mbarrier_wait_parity(barrier, 0);
            out[2] = 1;
            return;
        }
        case 3: {  // the same from another block: it expects, arrives twice, completes
            const uint32_t barrier = init(4), remote = ptx::mapa(barrier, other);
            meet_cluster();
            if (thread == 0) {
                ptx::mbarrier_expect_tx_cluster(remote, 16);
                ptx::mbarrier_arrive_cluster(remote, 2);
                ptx::mbarrier_arrive_expect_tx_cluster(remote, 32);
                ptx::mbarrier_complete_tx_cluster(remote, 48);
                ptx::mbarrier_arrive_drop_cluster(remote);
                ptx::mbarrier_wait_parity(barrier, 0);
                ptx::mbarrier_arrive(barrier, 3);  // all that the second phase waits for
                ptx::mbarrier_wait_parity(barrier, 1);
                out[rank] = 1 + rank;
            }
            return meet_cluster();
        }
        case 4: {  // made invalid, and then again an mbarrier, of another count and in its first phase
            const uint32_t barrier = init(1);
            if (thread) return;
            ptx::mbarrier_arrive(barrier);
            ptx::mbarrier_wait_parity(barrier, 0);
            ptx::mbarrier_inval(barrier);
            ptx::mbarrier_init(barrier, 2);
            ptx::mbarrier_arrive(barrier);
            out[0] = ptx::mbarrier_test_wait_parity(barrier, 0);
            ptx::mbarrier_arrive(barrier);
            out[1] = ptx::mbarrier_test_wait_parity(barrier, 0);
            return;
        }
        default:
            return;
    }
}
