// CUDA's <cuda_pipeline_primitives.h> for the emulator: cp.async by other names.
#pragma once

#include "cp_async.cuh"
#include "cuda_runtime.h"

// Copies `bytes` bytes, 4, 8 or 16, of which the last `zeros` are not read and become zeros.
inline void __pipeline_memcpy_async(void* shared, const void* global, std::size_t bytes, std::size_t zeros = 0) {
    emulator::copy_async(emulator::shared_address(shared), global, static_cast<uint32_t>(bytes),
                         static_cast<uint32_t>(bytes - zeros));
}
inline void __pipeline_commit() { ptx::cp_async_commit_group(); }
// Waits until at most the last `groups` groups of the calling thread are in flight.
inline void __pipeline_wait_prior(std::size_t groups) { emulator::wait_copies(groups); }
using __mbarrier_t = uint64_t;
inline void __pipeline_arrive_on(__mbarrier_t* barrier) {
    ptx::cp_async_mbarrier_arrive(emulator::shared_address(barrier));
}
