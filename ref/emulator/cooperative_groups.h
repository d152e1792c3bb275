// Cooperative groups, for the emulator: the thread block, tiles of a warp, and the cluster.
#pragma once

#include "cuda_runtime.h"

namespace emulator {

void cluster_arrive();  // of one thread; the whole warp need not do so together
void cluster_wait();
void* pointer_at_rank(const void* pointer, unsigned rank);
unsigned rank_of_pointer(const void* pointer);
unsigned cluster_blocks();

inline unsigned thread_rank() { return threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z); }
inline unsigned block_threads() { return blockDim.x * blockDim.y * blockDim.z; }

}  // namespace emulator

namespace cooperative_groups {

class thread_block {
  public:
    static void sync() { __syncthreads(); }
    static unsigned thread_rank() { return emulator::thread_rank(); }
    static unsigned num_threads() { return emulator::block_threads(); }
    static unsigned size() { return num_threads(); }
    static dim3 thread_index() { return threadIdx; }
    static dim3 group_index() { return blockIdx; }
    static dim3 dim_threads() { return blockDim; }
};
inline thread_block this_thread_block() { return {}; }

// `kSize` neighbouring lanes of a warp.
template <unsigned kSize, typename Parent = thread_block>
class thread_block_tile {
    static_assert(kSize >= 1 && kSize <= 32 && (kSize & (kSize - 1)) == 0, "1, 2, 4, 8, 16 or 32 lanes");

  public:
    static void sync() { __syncwarp(mask()); }
    static unsigned thread_rank() { return emulator::indices().lane % kSize; }
    static constexpr unsigned num_threads() { return kSize; }
    static constexpr unsigned size() { return kSize; }
    static unsigned meta_group_rank() { return emulator::thread_rank() / kSize; }
    static unsigned meta_group_size() { return (emulator::block_threads() + kSize - 1) / kSize; }
    template <typename T>
    static T shfl(T value, int rank) {
        return __shfl_sync(mask(), value, rank, kSize);
    }
    template <typename T>
    static T shfl_up(T value, unsigned delta) {
        return __shfl_up_sync(mask(), value, delta, kSize);
    }
    template <typename T>
    static T shfl_down(T value, unsigned delta) {
        return __shfl_down_sync(mask(), value, delta, kSize);
    }
    template <typename T>
    static T shfl_xor(T value, int lanes) {
        return __shfl_xor_sync(mask(), value, lanes, kSize);
    }
    static int any(int predicate) { return __any_sync(mask(), predicate); }
    static int all(int predicate) { return __all_sync(mask(), predicate); }
    static unsigned ballot(int predicate) { return __ballot_sync(mask(), predicate) >> first(); }

  private:
    static unsigned first() { return emulator::indices().lane / kSize * kSize; }
    static unsigned mask() { return (kSize == 32 ? ~0u : (1u << kSize % 32) - 1) << first(); }
};
template <unsigned kSize, typename Parent>
thread_block_tile<kSize, Parent> tiled_partition(const Parent&) {
    return {};
}

class cluster_group {
  public:
    static void sync() { barrier_arrive(), barrier_wait(); }
    static void barrier_arrive() { emulator::cluster_arrive(); }
    static void barrier_wait() { emulator::cluster_wait(); }
    static unsigned block_rank() { return emulator::indices().rank; }
    static unsigned num_blocks() { return emulator::cluster_blocks(); }
    static unsigned thread_rank() { return block_rank() * emulator::block_threads() + emulator::thread_rank(); }
    static unsigned num_threads() { return num_blocks() * emulator::block_threads(); }
    static unsigned size() { return num_threads(); }
    template <typename T>
    static T* map_shared_rank(T* pointer, unsigned rank) {
        return static_cast<T*>(emulator::pointer_at_rank(pointer, rank));
    }
    static unsigned query_shared_rank(const void* pointer) { return emulator::rank_of_pointer(pointer); }
};
inline cluster_group this_cluster() { return {}; }

template <typename Group>
void sync(const Group& group) {
    group.sync();
}

}  // namespace cooperative_groups
