// The copy engine's instructions: bulk copies of contiguous bytes, and copies of boxes of tensors of one to five
// dimensions. ptx.cuh has those of two dimensions that the package's own kernels use, and the bulk groups that stores
// are committed to and waited for with. "Data Movement and Conversion Instructions: Asynchronous copy" has them all.
#pragma once

#include <cuda.h>  // CUtensorMap, the type only

#include <cstdint>

#include "copy_types.cuh"

using TensorMap = CUtensorMap;

namespace ptx {

// ---------------------------------------------------------------------------------------- contiguous bytes
// Addresses and numbers of bytes are multiples of 16.

// "cp.async.bulk". From global to shared memory; the bytes count on the mbarrier.
__device__ __forceinline__ void cp_async_bulk(uint32_t shared, const void* global, uint32_t bytes, uint32_t mbarrier) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
                 :
                 : "r"(shared), "l"(global), "r"(bytes), "r"(mbarrier)
                 : "memory");
}
// "cp.async.bulk". Into every CTA of the cluster whose bit is set in cta_mask, at the same offset, counted on that
// CTA's mbarrier at the same offset.
__device__ __forceinline__ void cp_async_bulk_multicast(uint32_t shared, const void* global, uint32_t bytes,
                                                        uint32_t mbarrier, uint16_t cta_mask) {
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1], %2, [%3], "
        "%4;"
        :
        : "r"(shared), "l"(global), "r"(bytes), "r"(mbarrier), "h"(cta_mask)
        : "memory");
}
// "cp.async.bulk". From this CTA's shared memory to that of any CTA of the cluster; `remote` and `mbarrier` are
// addresses from mapa, in one CTA.
__device__ __forceinline__ void cp_async_bulk_cluster(uint32_t remote, uint32_t shared, uint32_t bytes,
                                                      uint32_t mbarrier) {
    asm volatile("cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
                 :
                 : "r"(remote), "r"(shared), "r"(bytes), "r"(mbarrier)
                 : "memory");
}
// "cp.async.bulk". From shared to global memory, in a bulk group.
__device__ __forceinline__ void cp_async_bulk_store(void* global, uint32_t shared, uint32_t bytes) {
    asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;"
                 :
                 : "l"(global), "r"(shared), "r"(bytes)
                 : "memory");
}
// "cp.async.bulk.prefetch". Fetches bytes of global memory into L2.
__device__ __forceinline__ void cp_async_bulk_prefetch(const void* global, uint32_t bytes) {
    asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" : : "l"(global), "r"(bytes) : "memory");
}

namespace detail {

template <Reduction kReduction>
struct ReductionName;
template <Element kElement>
struct ElementName;
#define GL_NAME(TEMPLATE, VALUE, TEXT)       \
    template <>                              \
    struct TEMPLATE<VALUE> {                 \
        static constexpr char text[] = TEXT; \
    };
GL_NAME(ReductionName, Reduction::add, "add")
GL_NAME(ReductionName, Reduction::min, "min")
GL_NAME(ReductionName, Reduction::max, "max")
GL_NAME(ReductionName, Reduction::inc, "inc")
GL_NAME(ReductionName, Reduction::dec, "dec")
GL_NAME(ReductionName, Reduction::bit_and, "and")
GL_NAME(ReductionName, Reduction::bit_or, "or")
GL_NAME(ReductionName, Reduction::bit_xor, "xor")
GL_NAME(ElementName, Element::u32, "u32")
GL_NAME(ElementName, Element::s32, "s32")
GL_NAME(ElementName, Element::u64, "u64")
GL_NAME(ElementName, Element::s64, "s64")
GL_NAME(ElementName, Element::f16, "f16")
GL_NAME(ElementName, Element::bf16, "bf16")
GL_NAME(ElementName, Element::f32, "f32")
GL_NAME(ElementName, Element::f64, "f64")
#undef GL_NAME

}  // namespace detail

// "cp.reduce.async.bulk". Combines elements in shared memory with those in global memory, each on its own, in a bulk
// group. Bits have no sign: and, or and xor are of .b32 and .b64. Additions of FP16 and BF16 keep subnormal numbers.
template <Reduction kReduction, Element kElement>
__device__ __forceinline__ void cp_reduce_async_bulk(void* global, uint32_t shared, uint32_t bytes) {
    static_assert(kHasReduction<kReduction, kElement>, "cp.reduce.async.bulk does not have it for this type");
    using Name = detail::ReductionName<kReduction>;
    if constexpr (kReduction >= Reduction::bit_and && kElementBytes<kElement> == 4)
        asm volatile("cp.reduce.async.bulk.global.shared::cta.bulk_group.%3.b32 [%0], [%1], %2;"
                     :
                     : "l"(global), "r"(shared), "r"(bytes), "C"(Name::text)
                     : "memory");
    else if constexpr (kReduction >= Reduction::bit_and)
        asm volatile("cp.reduce.async.bulk.global.shared::cta.bulk_group.%3.b64 [%0], [%1], %2;"
                     :
                     : "l"(global), "r"(shared), "r"(bytes), "C"(Name::text)
                     : "memory");
    else if constexpr (kReduction == Reduction::add && kElementBytes<kElement> == 2)
        asm volatile("cp.reduce.async.bulk.global.shared::cta.bulk_group.%3.noftz.%4 [%0], [%1], %2;"
                     :
                     : "l"(global), "r"(shared), "r"(bytes), "C"(Name::text), "C"(detail::ElementName<kElement>::text)
                     : "memory");
    else
        asm volatile("cp.reduce.async.bulk.global.shared::cta.bulk_group.%3.%4 [%0], [%1], %2;"
                     :
                     : "l"(global), "r"(shared), "r"(bytes), "C"(Name::text), "C"(detail::ElementName<kElement>::text)
                     : "memory");
}

// "cp.reduce.async.bulk". From this CTA's shared memory: combines integers with those of any CTA of the cluster;
// `remote` and `mbarrier` are addresses from mapa, in one CTA.
template <Reduction kReduction, Element kElement>
__device__ __forceinline__ void cp_reduce_async_bulk_cluster(uint32_t remote, uint32_t shared, uint32_t bytes,
                                                             uint32_t mbarrier) {
    static_assert(kHasSharedReduction<kReduction, kElement>, "cp.reduce.async.bulk does not have it for this type");
    using Name = detail::ReductionName<kReduction>;
    if constexpr (kReduction >= Reduction::bit_and)
        asm volatile(
            "cp.reduce.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes.%4.b32 [%0], [%1], %2, [%3];"
            :
            : "r"(remote), "r"(shared), "r"(bytes), "r"(mbarrier), "C"(Name::text)
            : "memory");
    else
        asm volatile(
            "cp.reduce.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes.%4.%5 [%0], [%1], %2, [%3];"
            :
            : "r"(remote), "r"(shared), "r"(bytes), "r"(mbarrier), "C"(Name::text),
              "C"(detail::ElementName<kElement>::text)
            : "memory");
}

// --------------------------------------------------------------------------------------- boxes of a tensor
// `at` is the box's first element, the contiguous dimension first: {x}, {x, y} ... up to five dimensions, as many as
// the tensor map has.

#define GL_AT(i) (kRank > i ? at[kRank > i ? i : 0] : 0)
#define GL_COORDINATES "r"(GL_AT(0)), "r"(GL_AT(1)), "r"(GL_AT(2)), "r"(GL_AT(3)), "r"(GL_AT(4))
#define GL_FOR_RANK(INSTRUCTION)                                                    \
    static_assert(kRank >= 1 && kRank <= 5, "a tensor has one to five dimensions"); \
    if constexpr (kRank == 1) {                                                     \
        INSTRUCTION("1d", "{%0}");                                                  \
    } else if constexpr (kRank == 2) {                                              \
        INSTRUCTION("2d", "{%0, %1}");                                              \
    } else if constexpr (kRank == 3) {                                              \
        INSTRUCTION("3d", "{%0, %1, %2}");                                          \
    } else if constexpr (kRank == 4) {                                              \
        INSTRUCTION("4d", "{%0, %1, %2, %3}");                                      \
    } else {                                                                        \
        INSTRUCTION("5d", "{%0, %1, %2, %3, %4}");                                  \
    }

// "cp.async.bulk.tensor". A load, as cp_async_bulk_tensor_2d in ptx.cuh.
template <int kRank>
__device__ __forceinline__ void cp_async_bulk_tensor(uint32_t shared, const TensorMap* map, uint32_t mbarrier,
                                                     const int (&at)[kRank]) {
#define GL_LOAD(RANK, AT)                                                                                           \
    asm volatile("cp.async.bulk.tensor." RANK ".shared::cluster.global.mbarrier::complete_tx::bytes [%5], [%6, " AT \
                 "], [%7];"                                                                                         \
                 :                                                                                                  \
                 : GL_COORDINATES, "r"(shared), "l"(map), "r"(mbarrier)                                             \
                 : "memory")
    GL_FOR_RANK(GL_LOAD)
#undef GL_LOAD
}
// "cp.async.bulk.tensor". A load into every CTA of the cluster whose bit is set in cta_mask.
template <int kRank>
__device__ __forceinline__ void cp_async_bulk_tensor_multicast(uint32_t shared, const TensorMap* map, uint32_t mbarrier,
                                                               const int (&at)[kRank], uint16_t cta_mask) {
#define GL_LOAD(RANK, AT)                                                                                 \
    asm volatile("cp.async.bulk.tensor." RANK                                                             \
                 ".shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%5], [%6, " AT \
                 "], [%7], %8;"                                                                           \
                 :                                                                                        \
                 : GL_COORDINATES, "r"(shared), "l"(map), "r"(mbarrier), "h"(cta_mask)                    \
                 : "memory")
    GL_FOR_RANK(GL_LOAD)
#undef GL_LOAD
}
// "cp.async.bulk.prefetch.tensor". Fetches a box into L2.
template <int kRank>
__device__ __forceinline__ void cp_async_bulk_prefetch_tensor(const TensorMap* map, const int (&at)[kRank]) {
#define GL_PREFETCH(RANK, AT)                                                          \
    asm volatile("cp.async.bulk.prefetch.tensor." RANK ".L2.global.tile [%5, " AT "];" \
                 :                                                                     \
                 : GL_COORDINATES, "l"(map)                                            \
                 : "memory")
    GL_FOR_RANK(GL_PREFETCH)
#undef GL_PREFETCH
}
// "cp.async.bulk.tensor". A store, in a bulk group.
template <int kRank>
__device__ __forceinline__ void cp_async_bulk_tensor_store(const TensorMap* map, uint32_t shared,
                                                           const int (&at)[kRank]) {
#define GL_STORE(RANK, AT)                                                                         \
    asm volatile("cp.async.bulk.tensor." RANK ".global.shared::cta.bulk_group [%5, " AT "], [%6];" \
                 :                                                                                 \
                 : GL_COORDINATES, "l"(map), "r"(shared)                                           \
                 : "memory")
    GL_FOR_RANK(GL_STORE)
#undef GL_STORE
}
// "cp.reduce.async.bulk.tensor". Combines a box in shared memory with the tensor, element by element, in a bulk group.
// The elements' type is the tensor map's; has_reduction says which go together.
template <Reduction kReduction, int kRank>
__device__ __forceinline__ void cp_reduce_async_bulk_tensor(const TensorMap* map, uint32_t shared,
                                                            const int (&at)[kRank]) {
#define GL_REDUCE(RANK, AT)                                                                                       \
    asm volatile("cp.reduce.async.bulk.tensor." RANK ".global.shared::cta.%7.tile.bulk_group [%5, " AT "], [%6];" \
                 :                                                                                                \
                 : GL_COORDINATES, "l"(map), "r"(shared), "C"(detail::ReductionName<kReduction>::text)            \
                 : "memory")
    GL_FOR_RANK(GL_REDUCE)
#undef GL_REDUCE
}

#undef GL_FOR_RANK
#undef GL_COORDINATES
#undef GL_AT

}  // namespace ptx
