// The functions of kernels/include/cp_async.cuh, for the emulator. That file says which instruction each one is.
#pragma once

#include "cuda.hpp"

namespace emulator {

void copy_async(uint32_t shared, const void* global, uint32_t size, uint32_t bytes);
void wait_copies(std::size_t groups);

}  // namespace emulator

namespace ptx {

template <int kBytes>
void cp_async_ca(uint32_t shared, const void* global, uint32_t bytes = kBytes) {
    static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16, "cp.async copies 4, 8 or 16 bytes");
    emulator::copy_async(shared, global, kBytes, bytes);
}
inline void cp_async_cg(uint32_t shared, const void* global, uint32_t bytes = 16) {
    emulator::copy_async(shared, global, 16, bytes);
}
void cp_async_commit_group();
template <int kGroups>
void cp_async_wait_group() {
    emulator::wait_copies(kGroups);
}
inline void cp_async_wait_all() {
    cp_async_commit_group();
    emulator::wait_copies(0);
}
void cp_async_mbarrier_arrive(uint32_t mbarrier);
void cp_async_mbarrier_arrive_noinc(uint32_t mbarrier);

}  // namespace ptx
