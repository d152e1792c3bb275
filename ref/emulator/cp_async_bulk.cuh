// The functions of kernels/include/cp_async_bulk.cuh, for the emulator. That file says which instruction each one is.
#pragma once

#include "ptx.cuh"

namespace emulator {

struct Coordinates {
    int rank;
    int at[5];
};
template <int kRank>
Coordinates coordinates(const int (&at)[kRank]) {
    static_assert(kRank >= 1 && kRank <= 5, "a tensor has one to five dimensions");
    Coordinates all{kRank, {}};
    for (int i = 0; i < kRank; ++i) all.at[i] = at[i];
    return all;
}

void load_tensor(uint32_t shared, const TensorMap* map, uint32_t mbarrier, const Coordinates& at, uint32_t mask);
void prefetch_tensor(const TensorMap* map, const Coordinates& at);
void store_tensor(const TensorMap* map, uint32_t shared, const Coordinates& at);
void reduce_tensor(Reduction reduction, const TensorMap* map, uint32_t shared, const Coordinates& at);
void load_bulk(uint32_t shared, const void* global, uint32_t bytes, uint32_t mbarrier, uint32_t mask);
void reduce_shared(Reduction reduction, Element element, uint32_t remote, uint32_t shared, uint32_t bytes,
                   uint32_t mbarrier);
void reduce_bulk(Reduction reduction, Element element, void* global, uint32_t shared, uint32_t bytes);

}  // namespace emulator

namespace ptx {

inline void cp_async_bulk(uint32_t shared, const void* global, uint32_t bytes, uint32_t mbarrier) {
    emulator::load_bulk(shared, global, bytes, mbarrier, 1u << cluster_ctarank());
}
inline void cp_async_bulk_multicast(uint32_t shared, const void* global, uint32_t bytes, uint32_t mbarrier,
                                    uint16_t cta_mask) {
    emulator::load_bulk(shared, global, bytes, mbarrier, cta_mask);
}
void cp_async_bulk_cluster(uint32_t remote, uint32_t shared, uint32_t bytes, uint32_t mbarrier);
void cp_async_bulk_store(void* global, uint32_t shared, uint32_t bytes);
void cp_async_bulk_prefetch(const void* global, uint32_t bytes);
template <Reduction kReduction, Element kElement>
void cp_reduce_async_bulk(void* global, uint32_t shared, uint32_t bytes) {
    static_assert(kHasReduction<kReduction, kElement>, "cp.reduce.async.bulk does not have it for this type");
    emulator::reduce_bulk(kReduction, kElement, global, shared, bytes);
}
template <Reduction kReduction, Element kElement>
void cp_reduce_async_bulk_cluster(uint32_t remote, uint32_t shared, uint32_t bytes, uint32_t mbarrier) {
    static_assert(kHasSharedReduction<kReduction, kElement>, "cp.reduce.async.bulk does not have it for this type");
    emulator::reduce_shared(kReduction, kElement, remote, shared, bytes, mbarrier);
}

template <int kRank>
void cp_async_bulk_tensor(uint32_t shared, const TensorMap* map, uint32_t mbarrier, const int (&at)[kRank]) {
    emulator::load_tensor(shared, map, mbarrier, emulator::coordinates(at), 1u << cluster_ctarank());
}
template <int kRank>
void cp_async_bulk_tensor_multicast(uint32_t shared, const TensorMap* map, uint32_t mbarrier, const int (&at)[kRank],
                                    uint16_t cta_mask) {
    emulator::load_tensor(shared, map, mbarrier, emulator::coordinates(at), cta_mask);
}
template <int kRank>
void cp_async_bulk_prefetch_tensor(const TensorMap* map, const int (&at)[kRank]) {
    emulator::prefetch_tensor(map, emulator::coordinates(at));
}
template <int kRank>
void cp_async_bulk_tensor_store(const TensorMap* map, uint32_t shared, const int (&at)[kRank]) {
    emulator::store_tensor(map, shared, emulator::coordinates(at));
}
template <Reduction kReduction, int kRank>
void cp_reduce_async_bulk_tensor(const TensorMap* map, uint32_t shared, const int (&at)[kRank]) {
    emulator::reduce_tensor(kReduction, map, shared, emulator::coordinates(at));
}

}  // namespace ptx
