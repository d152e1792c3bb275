// The thread block cluster: where a CTA is in it, and the shared memory of its other CTAs (distributed shared memory).
// Addresses come from mapa; no CTA may use another's shared memory before that one has begun, or after it has ended.
#pragma once

#include <cstdint>
#include <type_traits>

#include "copy_types.cuh"

namespace ptx {

// ------------------------------------------------------------------------------------------------ identity

// "Special Registers": %cluster_ctaid, the CTA's index in its cluster; %cluster_nctaid, the cluster's shape in CTAs;
// %clusterid, the cluster's index in the grid; %nclusterid, the grid's shape in clusters.
#define GL_INDEX(NAME)                                     \
    __device__ __forceinline__ dim3 NAME() {               \
        dim3 index;                                        \
        asm("mov.u32 %0, %%" #NAME ".x;" : "=r"(index.x)); \
        asm("mov.u32 %0, %%" #NAME ".y;" : "=r"(index.y)); \
        asm("mov.u32 %0, %%" #NAME ".z;" : "=r"(index.z)); \
        return index;                                      \
    }
GL_INDEX(cluster_ctaid)
GL_INDEX(cluster_nctaid)
GL_INDEX(clusterid)
GL_INDEX(nclusterid)
#undef GL_INDEX

// "Special Registers: %cluster_nctarank". The CTAs of the cluster.
__device__ __forceinline__ uint32_t cluster_nctarank() {
    uint32_t count;
    asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(count));
    return count;
}

// "Parallel Synchronization and Communication Instructions: elect.sync". One of the mask's lanes gets true, and all of
// them get its number.
__device__ __forceinline__ bool elect_sync(uint32_t mask, uint32_t& leader) {
    uint32_t elected;
    asm volatile(
        "{\n.reg .pred p;\n"
        "elect.sync %0|p, %2;\n"
        "selp.u32 %1, 1, 0, p;\n}\n"
        : "=r"(leader), "=r"(elected)
        : "r"(mask));
    return elected != 0;
}

// ------------------------------------------------------------------------------- loads, stores and atomics

// "Data Movement and Conversion Instructions: ld", of shared memory of any CTA of the cluster.
template <typename T>
__device__ __forceinline__ T ld_shared_cluster(uint32_t address) {
    static_assert(sizeof(T) == 1 || sizeof(T) == 2 || sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 16,
                  "1, 2, 4, 8 or 16 bytes");
    union {
        T value;
        uint32_t words[sizeof(T) > 4 ? sizeof(T) / 4 : 1];
    } data;
    if constexpr (sizeof(T) == 1)
        asm volatile("ld.shared::cluster.u8 %0, [%1];" : "=r"(data.words[0]) : "r"(address) : "memory");
    else if constexpr (sizeof(T) == 2)
        asm volatile("ld.shared::cluster.u16 %0, [%1];" : "=r"(data.words[0]) : "r"(address) : "memory");
    else if constexpr (sizeof(T) == 4)
        asm volatile("ld.shared::cluster.b32 %0, [%1];" : "=r"(data.words[0]) : "r"(address) : "memory");
    else if constexpr (sizeof(T) == 8)
        asm volatile("ld.shared::cluster.v2.b32 {%0, %1}, [%2];"
                     : "=r"(data.words[0]), "=r"(data.words[1])
                     : "r"(address)
                     : "memory");
    else
        asm volatile("ld.shared::cluster.v4.b32 {%0, %1, %2, %3}, [%4];"
                     : "=r"(data.words[0]), "=r"(data.words[1]), "=r"(data.words[2]), "=r"(data.words[3])
                     : "r"(address)
                     : "memory");
    return data.value;
}

// "Data Movement and Conversion Instructions: st".
template <typename T>
__device__ __forceinline__ void st_shared_cluster(uint32_t address, T value) {
    static_assert(sizeof(T) == 1 || sizeof(T) == 2 || sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 16,
                  "1, 2, 4, 8 or 16 bytes");
    union {
        T value;
        uint32_t words[sizeof(T) > 4 ? sizeof(T) / 4 : 1];
    } data;
    data.words[0] = 0;
    data.value = value;
    if constexpr (sizeof(T) == 1)
        asm volatile("st.shared::cluster.u8 [%0], %1;" : : "r"(address), "r"(data.words[0]) : "memory");
    else if constexpr (sizeof(T) == 2)
        asm volatile("st.shared::cluster.u16 [%0], %1;" : : "r"(address), "r"(data.words[0]) : "memory");
    else if constexpr (sizeof(T) == 4)
        asm volatile("st.shared::cluster.b32 [%0], %1;" : : "r"(address), "r"(data.words[0]) : "memory");
    else if constexpr (sizeof(T) == 8)
        asm volatile("st.shared::cluster.v2.b32 [%0], {%1, %2};"
                     :
                     : "r"(address), "r"(data.words[0]), "r"(data.words[1])
                     : "memory");
    else
        asm volatile("st.shared::cluster.v4.b32 [%0], {%1, %2, %3, %4};"
                     :
                     : "r"(address), "r"(data.words[0]), "r"(data.words[1]), "r"(data.words[2]), "r"(data.words[3])
                     : "memory");
}

namespace detail {

// The operation and the type of an atomic operation on a value.
template <Reduction kReduction, typename T>
struct Atomic;
#define GL_ATOMIC(OPERATION, T, TEXT)        \
    template <>                              \
    struct Atomic<Reduction::OPERATION, T> { \
        static constexpr char text[] = TEXT; \
    };
#define GL_ATOMIC_INTEGER(T, TYPE, BITS) \
    GL_ATOMIC(add, T, "add." TYPE)       \
    GL_ATOMIC(min, T, "min." TYPE)       \
    GL_ATOMIC(max, T, "max." TYPE)       \
    GL_ATOMIC(bit_and, T, "and." BITS)   \
    GL_ATOMIC(bit_or, T, "or." BITS)     \
    GL_ATOMIC(bit_xor, T, "xor." BITS)
GL_ATOMIC_INTEGER(uint32_t, "u32", "b32")
GL_ATOMIC_INTEGER(int32_t, "s32", "b32")
GL_ATOMIC_INTEGER(unsigned long long, "u64", "b64")
GL_ATOMIC(inc, uint32_t, "inc.u32")
GL_ATOMIC(dec, uint32_t, "dec.u32")
GL_ATOMIC(add, float, "add.f32")
#undef GL_ATOMIC_INTEGER
#undef GL_ATOMIC

}  // namespace detail

// "Parallel Synchronization and Communication Instructions: atom", of shared memory of any CTA of the cluster. Returns
// the old value. T is uint32_t, int32_t, unsigned long long, or float, which can be added only.
template <Reduction kReduction, typename T>
__device__ __forceinline__ T atom_shared_cluster(uint32_t address, T value) {
    using Text = detail::Atomic<kReduction, T>;
    T old;
    if constexpr (sizeof(T) == 8)
        asm volatile("atom.relaxed.cluster.shared::cluster.%3 %0, [%1], %2;"
                     : "=l"(old)
                     : "r"(address), "l"(value), "C"(Text::text)
                     : "memory");
    else if constexpr (std::is_floating_point_v<T>)
        asm volatile("atom.relaxed.cluster.shared::cluster.%3 %0, [%1], %2;"
                     : "=f"(old)
                     : "r"(address), "f"(value), "C"(Text::text)
                     : "memory");
    else
        asm volatile("atom.relaxed.cluster.shared::cluster.%3 %0, [%1], %2;"
                     : "=r"(old)
                     : "r"(address), "r"(value), "C"(Text::text)
                     : "memory");
    return old;
}
// "atom": exchange, and compare and swap.
__device__ __forceinline__ uint32_t atom_exch_shared_cluster(uint32_t address, uint32_t value) {
    uint32_t old;
    asm volatile("atom.relaxed.cluster.shared::cluster.exch.b32 %0, [%1], %2;"
                 : "=r"(old)
                 : "r"(address), "r"(value)
                 : "memory");
    return old;
}
__device__ __forceinline__ uint32_t atom_cas_shared_cluster(uint32_t address, uint32_t compare, uint32_t value) {
    uint32_t old;
    asm volatile("atom.relaxed.cluster.shared::cluster.cas.b32 %0, [%1], %2, %3;"
                 : "=r"(old)
                 : "r"(address), "r"(compare), "r"(value)
                 : "memory");
    return old;
}

// -------------------------------------------------------------- stores that complete bytes on an mbarrier
// The address and the mbarrier are in one CTA; who waits for the mbarrier sees what was stored.

// "Data Movement and Conversion Instructions: st.async". A value of 4, 8 or 16 bytes.
template <typename T>
__device__ __forceinline__ void st_async(uint32_t address, T value, uint32_t mbarrier) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 16, "4, 8 or 16 bytes");
    union {
        T value;
        uint32_t words[sizeof(T) / 4];
    } data{value};
    if constexpr (sizeof(T) == 4)
        asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %1, [%2];"
                     :
                     : "r"(address), "r"(data.words[0]), "r"(mbarrier)
                     : "memory");
    else if constexpr (sizeof(T) == 8)
        asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v2.b32 [%0], {%1, %2}, [%3];"
                     :
                     : "r"(address), "r"(data.words[0]), "r"(data.words[1]), "r"(mbarrier)
                     : "memory");
    else
        asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1, %2, %3, %4}, [%5];"
                     :
                     : "r"(address), "r"(data.words[0]), "r"(data.words[1]), "r"(data.words[2]), "r"(data.words[3]),
                       "r"(mbarrier)
                     : "memory");
}

// "red.async". Combines a 32-bit integer with the one in memory.
template <Reduction kReduction, typename T>
__device__ __forceinline__ void red_async(uint32_t address, T value, uint32_t mbarrier) {
    static_assert(sizeof(T) == 4 && std::is_integral_v<T>, "uint32_t or int32_t");
    asm volatile("red.async.relaxed.cluster.shared::cluster.mbarrier::complete_tx::bytes.%3 [%0], %1, [%2];"
                 :
                 : "r"(address), "r"(value), "r"(mbarrier), "C"(detail::Atomic<kReduction, T>::text)
                 : "memory");
}

}  // namespace ptx
