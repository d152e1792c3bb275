// Cooperative groups, for the emulator: the thread block, tiles of a warp, lanes of a branch, the cluster, and the grid
// without its barrier.
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
    static void sync(int place = EMULATOR_PLACE) { __syncthreads(place); }
    static unsigned thread_rank() { return emulator::thread_rank(); }
    static unsigned num_threads() { return emulator::block_threads(); }
    static unsigned size() { return num_threads(); }
    static dim3 thread_index() { return threadIdx; }
    static dim3 group_index() { return blockIdx; }
    static dim3 dim_threads() { return blockDim; }
};
inline thread_block this_thread_block() { return {}; }

namespace details {

// What groups of lanes of one warp have in common. Group has lanes(), a bit for each lane of the group.
template <typename Group>
class lanes_group {
  public:
    void sync() const { __syncwarp(lanes()); }
    unsigned num_threads() const { return static_cast<unsigned>(__popc(lanes())); }
    unsigned size() const { return num_threads(); }
    unsigned thread_rank() const {
        return static_cast<unsigned>(__popc(lanes() & ((1u << emulator::indices().lane) - 1)));
    }
    template <typename T>
    T shfl(T value, int rank) const {
        return from_rank("shfl.sync.idx", value,
                         rank >= 0 ? static_cast<unsigned>(rank) % num_threads() : thread_rank());
    }
    template <typename T>
    T shfl_up(T value, unsigned delta) const {
        return from_rank("shfl.sync.up", value, delta <= thread_rank() ? thread_rank() - delta : thread_rank());
    }
    template <typename T>
    T shfl_down(T value, unsigned delta) const {
        return from_rank("shfl.sync.down", value,
                         thread_rank() + delta < num_threads() ? thread_rank() + delta : thread_rank());
    }
    int any(int predicate) const { return __any_sync(lanes(), predicate); }
    int all(int predicate) const { return __all_sync(lanes(), predicate); }
    // Masks have a bit for each rank.
    unsigned ballot(int predicate) const { return by_rank(__ballot_sync(lanes(), predicate)); }
    template <typename T>
    unsigned match_any(T value) const {
        return by_rank(__match_any_sync(lanes(), value));
    }
    template <typename T>
    unsigned match_all(T value, int& all) const {
        return by_rank(__match_all_sync(lanes(), value, &all));
    }

  protected:
    template <typename T>
    T from_rank(const char* what, T value, unsigned rank) const {
        unsigned rest = lanes();
        while (rank--) rest &= rest - 1;
        const auto source = static_cast<unsigned>(__ffs(static_cast<int>(rest)) - 1);
        return emulator::from_bits<T>(emulator::gather(what, lanes(), emulator::to_bits(value))[source]);
    }
    unsigned by_rank(unsigned of_lanes) const {
        unsigned result = 0, rank = 0;
        for (unsigned lane = 0; lane < 32; ++lane)
            if (lanes() >> lane & 1) result |= (of_lanes >> lane & 1) << rank++;
        return result;
    }

  private:
    unsigned lanes() const { return static_cast<const Group*>(this)->lanes(); }
};

}  // namespace details

// Some lanes of a warp.
class coalesced_group : public details::lanes_group<coalesced_group> {
  public:
    unsigned meta_group_rank() const { return rank_; }
    unsigned meta_group_size() const { return groups_; }
    unsigned lanes() const { return lanes_; }
    explicit coalesced_group(unsigned lanes, unsigned rank = 0, unsigned groups = 1)
        : lanes_(lanes), rank_(rank), groups_(groups) {}

  private:
    unsigned lanes_, rank_, groups_;
};
// The lanes that have come here together.
__attribute__((always_inline)) inline coalesced_group coalesced_threads() {
    return coalesced_group(emulator::active_lanes());
}

// `kSize` neighbouring lanes of a warp.
template <unsigned kSize, typename Parent = thread_block>
class thread_block_tile : public details::lanes_group<thread_block_tile<kSize, Parent>> {
    static_assert(kSize >= 1 && kSize <= 32 && (kSize & (kSize - 1)) == 0, "1, 2, 4, 8, 16 or 32 lanes");

  public:
    static unsigned thread_rank() { return emulator::indices().lane % kSize; }
    static constexpr unsigned num_threads() { return kSize; }
    static constexpr unsigned size() { return kSize; }
    static unsigned meta_group_rank() { return emulator::thread_rank() / kSize; }
    static unsigned meta_group_size() { return (emulator::block_threads() + kSize - 1) / kSize; }
    template <typename T>
    static T shfl(T value, int rank) {
        return __shfl_sync(lanes(), value, rank, kSize);
    }
    template <typename T>
    static T shfl_up(T value, unsigned delta) {
        return __shfl_up_sync(lanes(), value, delta, kSize);
    }
    template <typename T>
    static T shfl_down(T value, unsigned delta) {
        return __shfl_down_sync(lanes(), value, delta, kSize);
    }
    template <typename T>
    static T shfl_xor(T value, int other) {
        return __shfl_xor_sync(lanes(), value, other, kSize);
    }
    static unsigned lanes() {
        return (kSize == 32 ? ~0u : (1u << kSize % 32) - 1) << emulator::indices().lane / kSize * kSize;
    }
};
template <unsigned kSize, typename Parent>
thread_block_tile<kSize, Parent> tiled_partition(const Parent&) {
    return {};
}

// Any group of a block's threads, of a type that is known when the kernel runs.
class thread_group {
  public:
    thread_group(const thread_block&) : lanes_(0) {}
    thread_group(const coalesced_group& group) : lanes_(group.lanes()) {}
    template <unsigned kSize, typename Parent>
    thread_group(const thread_block_tile<kSize, Parent>& tile) : lanes_(tile.lanes()) {}
    void sync() const { lanes_ ? __syncwarp(lanes_) : __syncthreads(); }
    unsigned num_threads() const { return lanes_ ? static_cast<unsigned>(__popc(lanes_)) : emulator::block_threads(); }
    unsigned size() const { return num_threads(); }
    unsigned thread_rank() const { return lanes_ ? coalesced_group(lanes_).thread_rank() : emulator::thread_rank(); }

  private:
    unsigned lanes_;  // 0: the whole block
};
inline thread_group tiled_partition(const thread_block&, unsigned size) {
    const unsigned lane = emulator::indices().lane;
    return coalesced_group((size >= 32 ? ~0u : (1u << size) - 1) << lane / size * size);
}

// The lanes of a group that have the same label; for binary_partition, the same answer. Groups are ranked by their
// lowest lanes.
template <typename Group, typename Label>
coalesced_group labeled_partition(const Group& group, Label label) {
    const unsigned same = __match_any_sync(group.lanes(), label);
    const unsigned leader = static_cast<unsigned>(__ffs(static_cast<int>(same)) - 1);
    const unsigned leaders = __ballot_sync(group.lanes(), emulator::indices().lane == leader);
    return coalesced_group(same, static_cast<unsigned>(__popc(leaders & ((1u << leader) - 1))),
                           static_cast<unsigned>(__popc(leaders)));
}
template <typename Group>
coalesced_group binary_partition(const Group& group, bool predicate) {
    return labeled_partition(group, static_cast<int>(predicate));
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

// The emulator runs clusters one after another, so there is no barrier of a whole grid.
class grid_group {
  public:
    static bool is_valid() { return false; }
    static dim3 group_dim() { return gridDim; }
    static dim3 dim_blocks() { return gridDim; }
    static dim3 block_index() { return blockIdx; }
    static unsigned long long num_blocks() { return 1ull * gridDim.x * gridDim.y * gridDim.z; }
    static unsigned long long block_rank() {
        return blockIdx.x + 1ull * gridDim.x * (blockIdx.y + 1ull * gridDim.y * blockIdx.z);
    }
    static unsigned long long thread_rank() {
        return block_rank() * emulator::block_threads() + emulator::thread_rank();
    }
    static unsigned long long num_threads() { return num_blocks() * emulator::block_threads(); }
    static unsigned long long size() { return num_threads(); }
    template <int kNever = 0>
    static void sync() {
        static_assert(kNever, "grid_group::sync: the emulator has no barrier of a whole grid");
    }
};
inline grid_group this_grid() { return {}; }

template <typename Group>
void sync(const Group& group) {
    group.sync();
}

}  // namespace cooperative_groups
