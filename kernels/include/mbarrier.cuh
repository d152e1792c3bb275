// What else an mbarrier can do: ptx.cuh has what the package's own kernels use. Addresses that end in `cluster` come
// from mapa and are of any CTA of the cluster. "Parallel Synchronization and Communication Instructions: mbarrier" has
// all.
//
// A state is what an arrival returns: the phase that it arrived in, and the arrivals that were pending before it.
#pragma once

#include <cstdint>

namespace ptx {

// "mbarrier.arrive". `count` arrivals at once.
__device__ __forceinline__ void mbarrier_arrive(uint32_t address, uint32_t count) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0], %1;" : : "r"(address), "r"(count) : "memory");
}
__device__ __forceinline__ void mbarrier_arrive_cluster(uint32_t address, uint32_t count) {
    asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0], %1;" : : "r"(address), "r"(count) : "memory");
}
__device__ __forceinline__ uint64_t mbarrier_arrive_state(uint32_t address, uint32_t count = 1) {
    uint64_t state;
    asm volatile("mbarrier.arrive.shared::cta.b64 %0, [%1], %2;" : "=l"(state) : "r"(address), "r"(count) : "memory");
    return state;
}
// "mbarrier.arrive". Expects bytes and arrives, on an mbarrier of any CTA of the cluster.
__device__ __forceinline__ void mbarrier_arrive_expect_tx_cluster(uint32_t address, uint32_t bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cluster.b64 _, [%0], %1;" : : "r"(address), "r"(bytes) : "memory");
}

// "mbarrier.arrive_drop". Arrives, and takes as many arrivals from what later phases wait for.
__device__ __forceinline__ void mbarrier_arrive_drop(uint32_t address, uint32_t count = 1) {
    asm volatile("mbarrier.arrive_drop.shared::cta.b64 _, [%0], %1;" : : "r"(address), "r"(count) : "memory");
}
__device__ __forceinline__ void mbarrier_arrive_drop_cluster(uint32_t address, uint32_t count = 1) {
    asm volatile("mbarrier.arrive_drop.shared::cluster.b64 _, [%0], %1;" : : "r"(address), "r"(count) : "memory");
}

// "mbarrier.expect_tx". The phase waits for so many bytes more; nobody arrives.
__device__ __forceinline__ void mbarrier_expect_tx(uint32_t address, uint32_t bytes) {
    asm volatile("mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], %1;" : : "r"(address), "r"(bytes) : "memory");
}
__device__ __forceinline__ void mbarrier_expect_tx_cluster(uint32_t address, uint32_t bytes) {
    asm volatile("mbarrier.expect_tx.relaxed.cluster.shared::cluster.b64 [%0], %1;"
                 :
                 : "r"(address), "r"(bytes)
                 : "memory");
}
// "mbarrier.complete_tx". Counts bytes as if a copy had brought them. It orders no memory accesses.
__device__ __forceinline__ void mbarrier_complete_tx(uint32_t address, uint32_t bytes) {
    asm volatile("mbarrier.complete_tx.relaxed.cta.shared::cta.b64 [%0], %1;" : : "r"(address), "r"(bytes) : "memory");
}
__device__ __forceinline__ void mbarrier_complete_tx_cluster(uint32_t address, uint32_t bytes) {
    asm volatile("mbarrier.complete_tx.relaxed.cluster.shared::cluster.b64 [%0], %1;"
                 :
                 : "r"(address), "r"(bytes)
                 : "memory");
}

// "mbarrier.test_wait/try_wait". Whether the phase of this parity has completed; waits for a while first, as long as
// the hardware likes, or about `nanoseconds`.
__device__ __forceinline__ bool mbarrier_try_wait_parity(uint32_t address, uint32_t parity) {
    uint32_t done;
    asm volatile(
        "{\n.reg .pred p;\n"
        "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
        "selp.u32 %0, 1, 0, p;\n}\n"
        : "=r"(done)
        : "r"(address), "r"(parity)
        : "memory");
    return done != 0;
}
__device__ __forceinline__ bool mbarrier_try_wait_parity(uint32_t address, uint32_t parity, uint32_t nanoseconds) {
    uint32_t done;
    asm volatile(
        "{\n.reg .pred p;\n"
        "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2, %3;\n"
        "selp.u32 %0, 1, 0, p;\n}\n"
        : "=r"(done)
        : "r"(address), "r"(parity), "r"(nanoseconds)
        : "memory");
    return done != 0;
}
// "mbarrier.test_wait/try_wait". Whether the phase that the state is of has completed: test_wait does not wait.
__device__ __forceinline__ bool mbarrier_try_wait(uint32_t address, uint64_t state) {
    uint32_t done;
    asm volatile(
        "{\n.reg .pred p;\n"
        "mbarrier.try_wait.shared::cta.b64 p, [%1], %2;\n"
        "selp.u32 %0, 1, 0, p;\n}\n"
        : "=r"(done)
        : "r"(address), "l"(state)
        : "memory");
    return done != 0;
}
__device__ __forceinline__ bool mbarrier_test_wait(uint32_t address, uint64_t state) {
    uint32_t done;
    asm volatile(
        "{\n.reg .pred p;\n"
        "mbarrier.test_wait.shared::cta.b64 p, [%1], %2;\n"
        "selp.u32 %0, 1, 0, p;\n}\n"
        : "=r"(done)
        : "r"(address), "l"(state)
        : "memory");
    return done != 0;
}

// "mbarrier.pending_count". The arrivals that were pending before the arrival that returned this state.
__device__ __forceinline__ uint32_t mbarrier_pending_count(uint64_t state) {
    uint32_t count;
    asm volatile("mbarrier.pending_count.b64 %0, %1;" : "=r"(count) : "l"(state));
    return count;
}

}  // namespace ptx
