// The functions of kernels/include/cluster.cuh, for the emulator. That file says which instruction each one is.
#pragma once

#include <type_traits>

#include "ptx.cuh"

namespace emulator {

void load_remote(uint32_t address, void* value, uint32_t bytes);
void store_remote(uint32_t address, const void* value, uint32_t bytes);
// `compare`: nullptr, or what the old value must be for an exchange. `reduction` counts where `exchanges` is false.
void atomic_remote(uint32_t address, Element element, Reduction reduction, bool exchanges, const void* compare,
                   const void* value, void* old);
void store_async(uint32_t address, const void* value, uint32_t bytes, uint32_t mbarrier);
void reduce_async(uint32_t address, Element element, Reduction reduction, const void* value, uint32_t mbarrier);

template <Reduction kReduction, typename T>
constexpr Element atomic_element() {
    constexpr bool kFloat = std::is_same_v<T, float>, kUnsigned = std::is_same_v<T, uint32_t>;
    static_assert(kFloat || kUnsigned || std::is_same_v<T, int32_t> || std::is_same_v<T, unsigned long long>,
                  "uint32_t, int32_t, unsigned long long or float");
    static_assert(!kFloat || kReduction == Reduction::add, "floats can be added only");
    static_assert(kUnsigned || (kReduction != Reduction::inc && kReduction != Reduction::dec), "inc and dec: uint32_t");
    return kFloat ? Element::f32 : sizeof(T) == 8 ? Element::u64 : kUnsigned ? Element::u32 : Element::s32;
}

}  // namespace emulator

namespace ptx {

dim3 cluster_ctaid();
dim3 cluster_nctaid();
dim3 clusterid();
dim3 nclusterid();
uint32_t cluster_nctarank();
bool elect_sync(uint32_t mask, uint32_t& leader);

template <typename T>
T ld_shared_cluster(uint32_t address) {
    T value;
    emulator::load_remote(address, &value, sizeof value);
    return value;
}
template <typename T>
void st_shared_cluster(uint32_t address, T value) {
    emulator::store_remote(address, &value, sizeof value);
}
template <Reduction kReduction, typename T>
T atom_shared_cluster(uint32_t address, T value) {
    T old;
    emulator::atomic_remote(address, emulator::atomic_element<kReduction, T>(), kReduction, false, nullptr, &value,
                            &old);
    return old;
}
inline uint32_t atom_exch_shared_cluster(uint32_t address, uint32_t value) {
    uint32_t old;
    emulator::atomic_remote(address, Element::u32, Reduction::add, true, nullptr, &value, &old);
    return old;
}
inline uint32_t atom_cas_shared_cluster(uint32_t address, uint32_t compare, uint32_t value) {
    uint32_t old;
    emulator::atomic_remote(address, Element::u32, Reduction::add, true, &compare, &value, &old);
    return old;
}
template <typename T>
void st_async(uint32_t address, T value, uint32_t mbarrier) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 16, "4, 8 or 16 bytes");
    emulator::store_async(address, &value, sizeof value, mbarrier);
}
template <Reduction kReduction, typename T>
void red_async(uint32_t address, T value, uint32_t mbarrier) {
    static_assert(sizeof(T) == 4 && std::is_integral_v<T>, "uint32_t or int32_t");
    emulator::reduce_async(address, emulator::atomic_element<kReduction, T>(), kReduction, &value, mbarrier);
}

}  // namespace ptx
