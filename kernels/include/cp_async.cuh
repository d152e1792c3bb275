// Copies of 4, 8 or 16 bytes from global to shared memory that a thread does not wait for, as Ampere has them. They
// write as ordinary stores do (the generic proxy): a WGMMA that reads the bytes needs fence.proxy.async before it.
#pragma once

#include <cstdint>

namespace ptx {

// "Data Movement and Conversion Instructions: cp.async". Copies kBytes bytes; with fewer `bytes`, that many, and zeros
// behind them. Both addresses are multiples of kBytes. `ca` caches in L1 and L2, `cg` in L2 only.
template <int kBytes>
__device__ __forceinline__ void cp_async_ca(uint32_t shared, const void* global, uint32_t bytes = kBytes) {
    static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16, "cp.async copies 4, 8 or 16 bytes");
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;"
                 :
                 : "r"(shared), "l"(global), "n"(kBytes), "r"(bytes)
                 : "memory");
}
__device__ __forceinline__ void cp_async_cg(uint32_t shared, const void* global, uint32_t bytes = 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" : : "r"(shared), "l"(global), "r"(bytes) : "memory");
}

// "cp.async.commit_group". This thread's copies since the last commit become one group.
__device__ __forceinline__ void cp_async_commit_group() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// "cp.async.wait_group". Waits until at most kGroups of this thread's groups are in flight. Then this thread sees their
// bytes; other threads do behind a barrier.
template <int kGroups>
__device__ __forceinline__ void cp_async_wait_group() {
    asm volatile("cp.async.wait_group %0;" : : "n"(kGroups) : "memory");
}
// "cp.async.wait_group". Waits for all copies of this thread, committed or not.
__device__ __forceinline__ void cp_async_wait_all() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// "cp.async.mbarrier.arrive". When this thread's copies until now have completed, one arrival is made on the mbarrier,
// which is added to those that the phase waits for: the count given to mbarrier.init does not include it.
__device__ __forceinline__ void cp_async_mbarrier_arrive(uint32_t mbarrier) {
    asm volatile("cp.async.mbarrier.arrive.shared::cta.b64 [%0];" : : "r"(mbarrier) : "memory");
}
// "cp.async.mbarrier.arrive". The same, and the count given to mbarrier.init includes the arrival.
__device__ __forceinline__ void cp_async_mbarrier_arrive_noinc(uint32_t mbarrier) {
    asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" : : "r"(mbarrier) : "memory");
}

}  // namespace ptx
