// One function per instruction, named after it. Above each is the PTX ISA section that defines the instruction.
// The kernels call these and nothing lower. ref/emulator/ptx.cuh has the same functions for the CPU.
// A shared-memory address is a uint32_t, as in PTX: the shared window's own 32-bit address space.
// trace::stamp, Span and place record a timeline. They compile to nothing unless one is asked for (trace.cuh).
#pragma once

#include <cuda.h>  // CUtensorMap, the type only

#include <cstdint>

#include "trace.cuh"
#include "wgmma.cuh"

using TensorMap = CUtensorMap;

namespace ptx {

// --------------------------------------------------------------------------------------------- identity

// "Special Registers: %laneid"
__device__ __forceinline__ uint32_t laneid() {
    uint32_t lane;
    asm("mov.u32 %0, %%laneid;" : "=r"(lane));
    return lane;
}

// "Special Registers: %cluster_ctarank"
__device__ __forceinline__ uint32_t cluster_ctarank() {
    uint32_t rank;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}

// "Parallel Synchronization and Communication Instructions: elect.sync". One lane of the full warp gets true.
__device__ __forceinline__ bool elect_sync() {
    uint32_t elected;
    asm volatile(
        "{\n.reg .pred p;\n"
        "elect.sync _|p, 0xffffffff;\n"
        "selp.u32 %0, 1, 0, p;\n}\n"
        : "=r"(elected));
    return elected != 0;
}

// "Data Movement and Conversion Instructions: shfl.sync". Every lane of the full warp gets lane `lane`'s value.
template <typename T>
__device__ __forceinline__ T shfl_sync_idx(T value, int lane) {
    return __shfl_sync(0xffffffff, value, lane);
}

// "Miscellaneous Instructions: setmaxnreg". Executed by the whole warpgroup; registers per thread, a multiple of 8 from
// 24 to 256. inc waits until the CTA has that many free registers; dec frees them.
template <int kRegisters>
__device__ __forceinline__ void setmaxnreg_inc() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" : : "n"(kRegisters));
}
template <int kRegisters>
__device__ __forceinline__ void setmaxnreg_dec() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" : : "n"(kRegisters));
}

// -------------------------------------------------------------------------------------------- conversions

// "Data Movement and Conversion Instructions: cvt". Exact: every E4M3 value is an FP16 value.
__device__ __forceinline__ float cvt_f32_e4m3(uint8_t x) {
    uint32_t halves;
    asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(halves) : "h"(static_cast<uint16_t>(x)));
    float value;
    asm("{\n.reg .b16 low, high;\n"
        "mov.b32 {low, high}, %1;\n"
        "cvt.f32.f16 %0, low;\n}\n"
        : "=f"(value)
        : "r"(halves));
    return value;
}

// "Data Movement and Conversion Instructions: cvt". Two FP32 to a pair of BF16, round to nearest even; `low` goes to
// bits 0-15.
__device__ __forceinline__ uint32_t cvt_rn_bf16x2_f32(float high, float low) {
    uint32_t pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}

// "Data Movement and Conversion Instructions: cvt". Two FP32 to a pair of E4M3, round to nearest even; what is beyond
// 448 becomes 448, and NaN 0x7F. `low` goes to bits 0-7.
__device__ __forceinline__ uint16_t cvt_rn_satfinite_e4m3x2_f32(float high, float low) {
    uint16_t pair;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(high), "f"(low));
    return pair;
}

// "Floating Point Instructions: rcp.approx.ftz.f32". 1 / x to within the last bit.
__device__ __forceinline__ float rcp_approx_ftz_f32(float x) {
    float inverse;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(x));
    return inverse;
}

// ------------------------------------------------------------------------------------------ shared memory

// The address of the CTA's dynamic shared memory, a multiple of 1024.
__device__ __forceinline__ uint32_t shared_memory() {
    extern __shared__ __align__(1024) uint8_t dynamic_shared_memory[];
    return static_cast<uint32_t>(__cvta_generic_to_shared(dynamic_shared_memory));
}

// "Data Movement and Conversion Instructions: mapa". The same address in the CTA `rank` of the cluster.
__device__ __forceinline__ uint32_t mapa(uint32_t address, uint32_t rank) {
    uint32_t remote;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(remote) : "r"(address), "r"(rank));
    return remote;
}

// "Data Movement and Conversion Instructions: st". Ordinary stores: the generic proxy.
__device__ __forceinline__ void st_shared(uint32_t address, float value) {
    asm volatile("st.shared.f32 [%0], %1;" : : "r"(address), "f"(value) : "memory");
}
__device__ __forceinline__ void st_shared(uint32_t address, uint32_t value) {
    asm volatile("st.shared.u32 [%0], %1;" : : "r"(address), "r"(value) : "memory");
}
__device__ __forceinline__ void st_shared(uint32_t address, uint4 v) {
    asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};"
                 :
                 : "r"(address), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w)
                 : "memory");
}
__device__ __forceinline__ void st_shared(uint32_t address, float4 v) {
    asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};"
                 :
                 : "r"(address), "f"(v.x), "f"(v.y), "f"(v.z), "f"(v.w)
                 : "memory");
}

__device__ __forceinline__ void st_shared(uint32_t address, float2 v) {
    asm volatile("st.shared.v2.f32 [%0], {%1, %2};" : : "r"(address), "f"(v.x), "f"(v.y) : "memory");
}

// "Data Movement and Conversion Instructions: st". A store to any CTA of the cluster; the address comes from mapa.
__device__ __forceinline__ void st_shared_cluster(uint32_t address, float4 v) {
    asm volatile("st.shared::cluster.v4.f32 [%0], {%1, %2, %3, %4};"
                 :
                 : "r"(address), "f"(v.x), "f"(v.y), "f"(v.z), "f"(v.w)
                 : "memory");
}

// "Data Movement and Conversion Instructions: ld".
template <typename T>
__device__ T ld_shared(uint32_t address);
template <>
__device__ __forceinline__ float ld_shared<float>(uint32_t address) {
    float value;
    asm volatile("ld.shared.f32 %0, [%1];" : "=f"(value) : "r"(address) : "memory");
    return value;
}
template <>
__device__ __forceinline__ uint32_t ld_shared<uint32_t>(uint32_t address) {
    uint32_t value;
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(value) : "r"(address) : "memory");
    return value;
}

template <>
__device__ __forceinline__ float2 ld_shared<float2>(uint32_t address) {
    float2 v;
    asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(v.x), "=f"(v.y) : "r"(address) : "memory");
    return v;
}
template <>
__device__ __forceinline__ uint4 ld_shared<uint4>(uint32_t address) {
    uint4 v;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "r"(address)
                 : "memory");
    return v;
}
template <>
__device__ __forceinline__ float4 ld_shared<float4>(uint32_t address) {
    float4 v;
    asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
                 : "r"(address)
                 : "memory");
    return v;
}

// "Warp-level matrix store instruction: stmatrix". Four 8x8 tiles of 16-bit elements. Lane i gives the address of row
// i % 8 of tile i / 8; in every tile it holds two elements of row i / 4, from column 2 * (i % 4) on.
__device__ __forceinline__ void stmatrix_x4(uint32_t address, uint32_t r0, uint32_t r1, uint32_t r2, uint32_t r3) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};"
                 :
                 : "r"(address), "r"(r0), "r"(r1), "r"(r2), "r"(r3)
                 : "memory");
}

// "Parallel Synchronization and Communication Instructions: membar/fence". Makes ordinary writes to shared memory
// visible to the async proxy, that is, to WGMMA and to the copy engine: this thread's, and those of other threads that
// a barrier has ordered before the fence. PTX asks for one such fence on the way from a write to an asynchronous
// access. In the kernels here each thread that wrote executes it, and then comes the barrier; behind the barrier, in
// the thread that issues the access, it is right as well.
__device__ __forceinline__ void fence_proxy_async() {
    trace::stamp(trace::Event::fence_proxy_async);
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// --------------------------------------------------------------------------------------- execution barriers

// "bar, barrier". Barrier `id` (0 to 15; __syncthreads uses 0) completes when `threads` threads, a multiple of 32, have
// arrived. sync arrives and waits, arrive does not wait.
__device__ __forceinline__ void bar_sync(uint32_t id, uint32_t threads) {
    const trace::Span span(trace::Event::bar_sync, 0, id);
    asm volatile("bar.sync %0, %1;" : : "r"(id), "r"(threads) : "memory");
}
__device__ __forceinline__ void bar_arrive(uint32_t id, uint32_t threads) {
    asm volatile("bar.arrive %0, %1;" : : "r"(id), "r"(threads) : "memory");
}

// "barrier.cluster". It completes when every thread of every CTA of the cluster has arrived. Arrive has release
// semantics, wait has acquire semantics.
__device__ __forceinline__ void barrier_cluster_arrive() {
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}
// "barrier.cluster". An arrival without release semantics: it does not wait for this thread's earlier writes.
__device__ __forceinline__ void barrier_cluster_arrive_relaxed() {
    asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
}
__device__ __forceinline__ void barrier_cluster_wait() {
    const trace::Span span(trace::Event::cluster_wait);
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

// ------------------------------------------------------------------------------------- kernels of one stream

// "Parallel Synchronization and Communication Instructions: griddepcontrol". The kernel behind this one in the stream,
// if it was launched with LaunchConfig::early, may begin once every CTA of this one has executed this or has ended.
__device__ __forceinline__ void griddepcontrol_launch_dependents() {
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}
// "griddepcontrol". Waits until the kernel ahead of this one has ended and its writes are visible. In a kernel that was
// launched without LaunchConfig::early it does nothing, as such a kernel begins only then.
__device__ __forceinline__ void griddepcontrol_wait() { asm volatile("griddepcontrol.wait;" ::: "memory"); }

// ----------------------------------------------------------------------------------------------- mbarriers

// "mbarrier.init". Makes 8 bytes of shared memory an mbarrier, whose phases complete after `count` arrivals each.
__device__ __forceinline__ void mbarrier_init(uint32_t address, uint32_t count) {
    trace::place();
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" : : "r"(address), "r"(count) : "memory");
}

// "mbarrier.inval". The memory may then be used for something else.
__device__ __forceinline__ void mbarrier_inval(uint32_t address) {
    asm volatile("mbarrier.inval.shared.b64 [%0];" : : "r"(address) : "memory");
}

// Not an instruction: what the emulator calls this mbarrier in its messages, such as "full 2".
__device__ constexpr void name_mbarrier(uint32_t, const char*, int = -1) {}

// "membar/fence". Makes mbarrier.init visible to the cluster and to the async proxy.
__device__ __forceinline__ void fence_mbarrier_init() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

// "mbarrier.arrive"
__device__ __forceinline__ void mbarrier_arrive(uint32_t address) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" : : "r"(address) : "memory");
}
// "mbarrier.arrive". On an mbarrier of any CTA of the cluster; the address comes from mapa.
__device__ __forceinline__ void mbarrier_arrive_cluster(uint32_t address) {
    asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" : : "r"(address) : "memory");
}
// "mbarrier.arrive". Before it arrives, it adds `bytes` to the transaction count: the phase does not complete until TMA
// loads have brought that many bytes.
__device__ __forceinline__ void mbarrier_arrive_expect_tx(uint32_t address, uint32_t bytes) {
    trace::stamp(trace::Event::mbarrier_expect_tx, address, bytes);
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" : : "r"(address), "r"(bytes) : "memory");
}

// "mbarrier.test_wait/try_wait". Returns once the phase of this parity has completed. A fresh mbarrier is in phase 0,
// so waiting for parity 1 returns at once.
__device__ __forceinline__ void mbarrier_wait_parity(uint32_t address, uint32_t parity) {
    const trace::Span span(trace::Event::mbarrier_wait, address, parity);
    asm volatile(
        "{\n.reg .pred done;\n"
        "WAIT:\n"
        "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
        "@!done bra WAIT;\n}\n"
        :
        : "r"(address), "r"(parity)
        : "memory");
}

// "mbarrier.test_wait/try_wait". Whether the phase of this parity has completed; does not wait.
__device__ __forceinline__ bool mbarrier_test_wait_parity(uint32_t address, uint32_t parity) {
    uint32_t done;
    asm volatile(
        "{\n.reg .pred p;\n"
        "mbarrier.test_wait.parity.shared::cta.b64 p, [%1], %2;\n"
        "selp.u32 %0, 1, 0, p;\n}\n"
        : "=r"(done)
        : "r"(address), "r"(parity)
        : "memory");
    trace::stamp(trace::Event::mbarrier_test, address, parity);
    return done != 0;
}

// --------------------------------------------------------------------------------------------- copy engine

// "prefetch". Fetches a tensor map, so that the first TMA load or store that uses it does not wait for it.
__device__ __forceinline__ void prefetch_tensormap(const TensorMap* map) {
    asm volatile("prefetch.tensormap [%0];" : : "l"(map) : "memory");
}

// "cp.async.bulk.prefetch.tensor". Fetches the box at element (x, y) into L2, except elements that are out of bounds.
// The hint, from createpolicy, is the priority with which L2 keeps it.
__device__ __forceinline__ void cp_async_bulk_prefetch_tensor_2d_hint(const TensorMap* map, int x, int y,
                                                                      uint64_t policy) {
    asm volatile("cp.async.bulk.prefetch.tensor.2d.L2.global.tile.L2::cache_hint [%0, {%1, %2}], %3;"
                 :
                 : "l"(map), "r"(x), "r"(y), "l"(policy)
                 : "memory");
}

// "cp.async.bulk.tensor". Loads the box at element (x, y), x being the contiguous dimension, from global to shared
// memory. Its bytes count on the mbarrier. Elements that are out of bounds arrive as zeros, and count too.
__device__ __forceinline__ void cp_async_bulk_tensor_2d(uint32_t shared, const TensorMap* map, uint32_t mbarrier, int x,
                                                        int y) {
    trace::stamp(trace::Event::tma_load, shared);
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];"
        :
        : "r"(shared), "l"(map), "r"(mbarrier), "r"(x), "r"(y)
        : "memory");
}
// "cp.async.bulk.tensor". A load with a hint, from createpolicy: the priority with which L2 keeps the box.
__device__ __forceinline__ void cp_async_bulk_tensor_2d_hint(uint32_t shared, const TensorMap* map, uint32_t mbarrier,
                                                             int x, int y, uint64_t policy) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
        "[%0], [%1, {%3, %4}], [%2], %5;"
        :
        : "r"(shared), "l"(map), "r"(mbarrier), "r"(x), "r"(y), "l"(policy)
        : "memory");
}
// "Data Movement and Conversion Instructions: createpolicy". Data loaded with this policy is evicted from L2 first.
__device__ __forceinline__ uint64_t createpolicy_evict_first() {
    uint64_t policy;
    asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}
// "cp.async.bulk.tensor". A multicast load: into every CTA of the cluster whose bit is set in cta_mask, at the same
// shared-memory offset, and counted on that CTA's mbarrier at the same offset.
__device__ __forceinline__ void cp_async_bulk_tensor_2d_multicast(uint32_t shared, const TensorMap* map,
                                                                  uint32_t mbarrier, int x, int y, uint16_t cta_mask) {
    trace::stamp(trace::Event::tma_load, shared);
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster "
        "[%0], [%1, {%3, %4}], [%2], %5;"
        :
        : "r"(shared), "l"(map), "r"(mbarrier), "r"(x), "r"(y), "h"(cta_mask)
        : "memory");
}
// "cp.async.bulk.tensor". Stores a box from shared to global memory; elements that are out of bounds are not written.
__device__ __forceinline__ void cp_async_bulk_tensor_2d_store(const TensorMap* map, uint32_t shared, int x, int y) {
    trace::stamp(trace::Event::tma_store, shared);
    asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%2, %3}], [%1];"
                 :
                 : "l"(map), "r"(shared), "r"(x), "r"(y)
                 : "memory");
}
// "cp.reduce.async.bulk.tensor". Adds a box of FP32 numbers in shared memory to global memory, in L2: each sum is
// rounded once, to nearest. Elements that are out of bounds are not touched. It is committed and waited for as a store
// is.
__device__ __forceinline__ void cp_reduce_async_bulk_tensor_2d_add(const TensorMap* map, uint32_t shared, int x,
                                                                   int y) {
    trace::stamp(trace::Event::tma_store, shared);
    asm volatile("cp.reduce.async.bulk.tensor.2d.global.shared::cta.add.tile.bulk_group [%0, {%2, %3}], [%1];"
                 :
                 : "l"(map), "r"(shared), "r"(x), "r"(y)
                 : "memory");
}

// "cp.async.bulk.commit_group". This thread's TMA stores since the last commit become one group.
__device__ __forceinline__ void cp_async_bulk_commit_group() {
    asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}
// "cp.async.bulk.wait_group". Waits until at most kGroups groups have not yet completed their writes.
template <int kGroups>
__device__ __forceinline__ void cp_async_bulk_wait_group() {
    const trace::Span span(trace::Event::tma_store_wait, 0, kGroups);
    asm volatile("cp.async.bulk.wait_group %0;" : : "n"(kGroups) : "memory");
}
// "cp.async.bulk.wait_group". Waits until at most kGroups groups still read shared memory, which is enough before it is
// overwritten.
template <int kGroups>
__device__ __forceinline__ void cp_async_bulk_wait_group_read() {
    const trace::Span span(trace::Event::tma_store_wait, 0, kGroups);
    asm volatile("cp.async.bulk.wait_group.read %0;" : : "n"(kGroups) : "memory");
}

// --------------------------------------------------------------------------------------------------- WGMMA
// wgmma<N>(d, desc_a, desc_b, scale_d) itself is in wgmma.cuh.

// "wgmma.fence". Orders the warpgroup's earlier register accesses before its next wgmma. It is needed before the first
// wgmma, and again after any other access to the accumulators.
__device__ __forceinline__ void wgmma_fence() {
    trace::stamp(trace::Event::wgmma_fence);
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
// "wgmma.commit_group". The warpgroup's wgmmas since the last commit become one group.
__device__ __forceinline__ void wgmma_commit_group() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// "wgmma.wait_group". Waits until at most kGroups groups are in flight.
template <int kGroups>
__device__ __forceinline__ void wgmma_wait_group() {
    const trace::Span span(trace::Event::wgmma_wait, 0, kGroups);
    asm volatile("wgmma.wait_group.sync.aligned %0;" : : "n"(kGroups) : "memory");
}

}  // namespace ptx
