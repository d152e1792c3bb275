// The functions of kernels/include/ptx.cuh, for the emulator. That file names each instruction and where PTX defines
// it; the emulator's core (core/instructions.hpp), a library that is compiled once, carries the instructions out.
#pragma once

#include <bit>
#include <type_traits>

#include "copy_types.cuh"
#include "cuda.hpp"
#include "mma.cuh"

// What the copy engine knows of a tensor. launch.cuh makes one; a kernel only hands it on.
struct TensorMap {
    uint8_t* base = nullptr;
    int64_t size[5] = {};    // elements, the contiguous dimension first
    int64_t stride[5] = {};  // bytes
    uint32_t box[5] = {};    // elements
    int rank = 0;
    Element element = Element::u8;
    uint32_t swizzle = 0;  // bytes of a swizzled row: 32, 64 or 128; 0: not swizzled
};

namespace emulator {

// The instructions that are templates for a kernel, for any size.
uint64_t shuffle(uint64_t bits, int lane);
void set_registers(int registers, bool increase, int place);
// What a shared load or store moves, the first byte in the lowest bits. It is passed in registers: a variable that is
// passed by its address has hooks wherever a kernel uses it.
struct SharedBytes {
    uint64_t low, high;
};
template <std::size_t kBytes>
using Unsigned =
    std::conditional_t<kBytes == 8, uint64_t,
                       std::conditional_t<kBytes == 4, uint32_t, std::conditional_t<kBytes == 2, uint16_t, uint8_t>>>;
void store_shared(uint32_t address, SharedBytes value, uint32_t bytes);
SharedBytes load_shared(uint32_t address, uint32_t bytes);
void wait_stores(std::size_t groups, bool read_only);
void wait_wgmma(int in_flight, int place);

}  // namespace emulator

namespace ptx {

// `place` is where the kernel calls. All lanes of a warp must execute an .aligned instruction together, so all must
// come from one place.

// ---------------------------------------------------------------------------------------------- thread identity

inline uint32_t laneid() { return emulator::indices().lane; }
inline uint32_t cluster_ctarank() { return emulator::indices().rank; }
bool elect_sync();
template <typename T>
T shfl_sync_idx(T value, int lane) {
    static_assert(sizeof(T) <= 8, "one register or two");
    uint64_t bits = 0;
    std::memcpy(&bits, &value, sizeof value);
    bits = emulator::shuffle(bits, lane);
    std::memcpy(&value, &bits, sizeof value);
    return value;
}
template <int kRegisters>
void setmaxnreg_inc(int place = EMULATOR_PLACE) {
    emulator::set_registers(kRegisters, true, place);
}
template <int kRegisters>
void setmaxnreg_dec(int place = EMULATOR_PLACE) {
    emulator::set_registers(kRegisters, false, place);
}

// -------------------------------------------------------------------------------------------- conversions

inline float cvt_f32_e4m3(uint8_t x) {
    const uint32_t sign = static_cast<uint32_t>(x & 0x80) << 24, exponent = x >> 3 & 15, mantissa = x & 7;
    if ((x & 0x7F) == 0x7F) return NAN;
    if (exponent == 0) return (sign ? -1.0f : 1.0f) * static_cast<float>(mantissa) * 0x1p-9f;
    return std::bit_cast<float>(sign | (exponent + 120) << 23 | mantissa << 20);
}
inline uint32_t cvt_rn_bf16x2_f32(float high, float low) {
    const auto round = [](float x) -> uint32_t {
        if (std::isnan(x)) return 0x7FFF;
        const uint32_t bits = __float_as_uint(x);
        return (bits + 0x7FFF + (bits >> 16 & 1)) >> 16;  // to nearest, ties to even
    };
    return round(high) << 16 | round(low);
}

inline uint16_t cvt_rn_satfinite_e4m3x2_f32(float high, float low) {
    const auto round = [](float x) -> uint32_t {
        if (std::isnan(x)) return 0x7F;
        const uint32_t bits = __float_as_uint(x), sign = bits >> 24 & 0x80;
        const float magnitude = std::fabs(x);
        if (magnitude >= 448.0f) return sign | 0x7E;
        if (magnitude < 0x1p-6f) return sign | static_cast<uint32_t>(std::nearbyint(magnitude * 0x1p9f));
        return sign | ((((bits & 0x7FFFFFFF) + 0x7FFFF + (bits >> 20 & 1)) >> 20) - (120 << 3));  // ties to even
    };
    return static_cast<uint16_t>(round(high) << 8 | round(low));
}

// Rounded once, which a GPU does not promise: its result may differ in the last bit.
inline float rcp_approx_ftz_f32(float x) { return 1.0f / x; }

// ------------------------------------------------------------------------------------------ shared memory

uint32_t shared_memory();
uint32_t mapa(uint32_t address, uint32_t rank);
template <typename T>
void st_shared(uint32_t address, T value) {
    emulator::SharedBytes bytes{};
    if constexpr (sizeof value == 16)
        bytes = std::bit_cast<emulator::SharedBytes>(value);
    else
        bytes.low = std::bit_cast<emulator::Unsigned<sizeof value>>(value);
    emulator::store_shared(address, bytes, sizeof value);
}
template <typename T>
T ld_shared(uint32_t address) {
    const emulator::SharedBytes bytes = emulator::load_shared(address, sizeof(T));
    if constexpr (sizeof(T) == 16)
        return std::bit_cast<T>(bytes);
    else
        return std::bit_cast<T>(static_cast<emulator::Unsigned<sizeof(T)>>(bytes.low));
}
void st_shared_cluster(uint32_t address, float4 value);
void stmatrix_x4(uint32_t address, uint32_t r0, uint32_t r1, uint32_t r2, uint32_t r3, int place = EMULATOR_PLACE);
void fence_proxy_async();

// --------------------------------------------------------------------------------------- execution barriers

void bar_sync(uint32_t id, uint32_t threads, int place = EMULATOR_PLACE);
void bar_arrive(uint32_t id, uint32_t threads);
void barrier_cluster_arrive(int place = EMULATOR_PLACE);
void barrier_cluster_arrive_relaxed(int place = EMULATOR_PLACE);
void barrier_cluster_wait(int place = EMULATOR_PLACE);

// ------------------------------------------------------------------------------------- kernels of one stream

void griddepcontrol_launch_dependents();
void griddepcontrol_wait();

// ----------------------------------------------------------------------------------------------- mbarriers

void mbarrier_init(uint32_t address, uint32_t count);
void mbarrier_inval(uint32_t address);
void name_mbarrier(uint32_t address, const char* name, int index = -1);
void fence_mbarrier_init();
void mbarrier_arrive(uint32_t address);
void mbarrier_arrive_cluster(uint32_t address);
void mbarrier_arrive_expect_tx(uint32_t address, uint32_t bytes);
void mbarrier_wait_parity(uint32_t address, uint32_t parity);
bool mbarrier_test_wait_parity(uint32_t address, uint32_t parity);

// --------------------------------------------------------------------------------------------- copy engine

void cp_async_bulk_tensor_2d_multicast(uint32_t shared, const TensorMap* map, uint32_t mbarrier, int x, int y,
                                       uint16_t cta_mask);
void cp_async_bulk_tensor_2d(uint32_t shared, const TensorMap* map, uint32_t mbarrier, int x, int y);
void cp_async_bulk_tensor_2d_hint(uint32_t shared, const TensorMap* map, uint32_t mbarrier, int x, int y,
                                  uint64_t policy);
uint64_t createpolicy_evict_first();
void prefetch_tensormap(const TensorMap* map);
void cp_async_bulk_prefetch_tensor_2d_hint(const TensorMap* map, int x, int y, uint64_t policy);
void cp_async_bulk_tensor_2d_store(const TensorMap* map, uint32_t shared, int x, int y);
void cp_reduce_async_bulk_tensor_2d_add(const TensorMap* map, uint32_t shared, int x, int y);
void cp_async_bulk_commit_group();
template <int kGroups>
void cp_async_bulk_wait_group() {
    emulator::wait_stores(kGroups, false);
}
template <int kGroups>
void cp_async_bulk_wait_group_read() {
    emulator::wait_stores(kGroups, true);
}

// --------------------------------------------------------------------------------------------------- WGMMA

template <int N>
void wgmma(float (&d)[N / 2], uint64_t desc_a, uint64_t desc_b, int scale_d) {
    wgmma<Type::f32, Type::e4m3, Type::e4m3, N>(d, desc_a, desc_b, scale_d);
}
void wgmma_fence(int place = EMULATOR_PLACE);
void wgmma_commit_group(int place = EMULATOR_PLACE);
template <int kGroups>
void wgmma_wait_group(int place = EMULATOR_PLACE) {
    emulator::wait_wgmma(kGroups, place);
}

}  // namespace ptx

void __syncwarp();
