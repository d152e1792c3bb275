// The functions of kernels/include/ptx.cuh, for the emulator. That file names each instruction and where PTX defines
// it; this one carries the instruction out.
#pragma once

#include "cluster.hpp"
#include "tma.hpp"
#include "wgmma.hpp"

#define threadIdx (emulator::self().thread_index)
#define blockIdx (emulator::self().block_index)
#define blockDim (emulator::self().block_dim)
#define gridDim (emulator::self().grid_dim)

namespace emulator {

// setmaxnreg, once for each warp: registers are given back at once; to take more, a warp waits until the block has
// enough free. The warps of a warpgroup must all ask for the same number.
inline void set_registers(int registers, bool increase) {
    if (registers % 8 || registers < 24 || registers > 256)
        fail(Fault::invalid_operand, "setmaxnreg %d: a multiple of 8 from 24 to 256 is needed", registers);
    Thread& thread = self();
    exchange("setmaxnreg", {static_cast<uint64_t>(registers)});
    if (thread.lane()) return;
    Block& block = *thread.block;
    const auto warp = static_cast<std::size_t>(thread.warp());
    std::vector<int>& mine = block.registers[warp];
    const int had = mine.back();
    for (std::size_t other = warp / 4 * 4; other < std::min(warp / 4 * 4 + 4, block.registers.size()); ++other)
        if (block.registers[other].size() > mine.size() && block.registers[other][mine.size()] != registers)
            fail(Fault::divergent_warpgroup, "setmaxnreg %d, where warp %zu of its warpgroup asked for %d", registers,
                 other, block.registers[other][mine.size()]);
    mine.push_back(registers);
    if (increase ? registers < had : registers > had)
        fail(Fault::invalid_operand, "setmaxnreg.%s %d while the warp has %d registers a thread",
             increase ? "inc" : "dec", registers, had);
    while (32 * (registers - had) > block.free_registers)
        current_cluster->block_on(block.register_waiters, {"setmaxnreg.inc: no registers are free"});
    block.free_registers -= 32 * (registers - had);
    record_warp(Event::setmaxnreg, 0, registers);
    current_cluster->wake(block.register_waiters);
}

// cp.async.bulk.wait_group: does what the calling thread's stores still have to do, except those of its last `groups`
// groups.
inline void wait_stores(std::size_t groups, bool read_only) {
    auto& committed = self().store_groups;
    const std::size_t done = committed.size() > groups ? committed.size() - groups : 0;
    for (std::size_t i = 0; i < done; ++i)
        for (const auto& store : committed[i]) read_only ? store->read() : store->write();
    if (!read_only) committed.erase(committed.begin(), committed.begin() + static_cast<std::ptrdiff_t>(done));
}

}  // namespace emulator

namespace ptx {

using emulator::current_cluster;
using emulator::Event;
using emulator::fail;
using emulator::fail_at;
using emulator::Fault;
using emulator::self;

// ---------------------------------------------------------------------------------------------- thread identity

inline uint32_t laneid() { return static_cast<uint32_t>(self().lane()); }
inline uint32_t cluster_ctarank() { return static_cast<uint32_t>(self().block->rank); }
// Any lane may be elected; the seed says which, for the whole run.
inline bool elect_sync() {
    emulator::exchange("elect.sync", {});
    return self().lane() == current_cluster->elected_lane();
}
template <typename T>
T shfl_sync_idx(T value, int lane) {
    static_assert(sizeof(T) <= 8, "one register or two");
    uint64_t bits = 0;
    std::memcpy(&bits, &value, sizeof value);
    const uint64_t theirs = emulator::exchange("shfl.sync", {bits})[static_cast<std::size_t>(lane % 32)][0];
    std::memcpy(&value, &theirs, sizeof value);
    return value;
}
template <int kRegisters>
void setmaxnreg_inc() {
    emulator::set_registers(kRegisters, true);
}
template <int kRegisters>
void setmaxnreg_dec() {
    emulator::set_registers(kRegisters, false);
}

// -------------------------------------------------------------------------------------------- conversions

inline float cvt_f32_e4m3(uint8_t x) {
    static const auto table = [] {
        std::array<float, 256> values;
        for (int i = 0; i < 256; ++i) {
            const int exponent = i >> 3 & 15, mantissa = i & 7;
            const float magnitude =
                exponent ? std::ldexp(8.0f + mantissa, exponent - 10) : std::ldexp(1.0f * mantissa, -9);
            values[i] = (i & 127) == 127 ? NAN : i & 128 ? -magnitude : magnitude;
        }
        return values;
    }();
    return table[x];
}
inline uint32_t cvt_rn_bf16x2_f32(float high, float low) {
    const auto round = [](float x) -> uint32_t {
        if (std::isnan(x)) return 0x7FFF;
        const uint32_t bits = __float_as_uint(x);
        return (bits + 0x7FFF + (bits >> 16 & 1)) >> 16;  // to nearest, ties to even
    };
    return round(high) << 16 | round(low);
}

// ------------------------------------------------------------------------------------------ shared memory

inline uint32_t shared_memory() { return emulator::kSharedBase; }
inline uint32_t mapa(uint32_t address, uint32_t rank) {
    return (address & emulator::kOffsetMask) | (rank + 1) << emulator::kRankShift;
}
template <typename T>
void st_shared(uint32_t address, T value) {
    self().block->memory.write(address, &value, sizeof value, self().index, self().unfenced);
}
template <typename T>
T ld_shared(uint32_t address) {
    T value;
    self().block->memory.read(address, &value, sizeof value);
    return value;
}
inline void st_shared_cluster(uint32_t address, float4 value) {
    // A fence.proxy.async by this thread does not publish these bytes to the other block's copy engine: no kernel here
    // needs that, so it is not modelled, and a WGMMA or TMA store that read them would be reported.
    std::vector<uint32_t> unfenced;
    emulator::remote_block(address).memory.write(address & emulator::kOffsetMask, &value, sizeof value, self().index,
                                                 unfenced);
}
inline void stmatrix_x4(uint32_t address, uint32_t r0, uint32_t r1, uint32_t r2, uint32_t r3) {
    const auto& lanes = emulator::exchange("stmatrix", {address, r0, r1, r2, r3});
    const uint32_t tile = laneid() / 8, row = laneid() % 8;  // the row that this lane's address is for
    uint4 data;
    uint32_t words[4];
    for (uint32_t i = 0; i < 4; ++i) words[i] = static_cast<uint32_t>(lanes[row * 4 + i][1 + tile]);
    std::memcpy(&data, words, sizeof data);
    emulator::record_warp(Event::stmatrix, address);
    st_shared(address, data);
}
inline void fence_proxy_async() {
    emulator::record_warp(Event::fence_proxy_async);
    self().block->memory.publish(self().index, self().unfenced);
    for (auto& [address, barrier] : self().block->mbarriers)
        if (barrier.initialiser == self().index) barrier.visible = true;
}

// --------------------------------------------------------------------------------------- execution barriers

inline void bar_sync(uint32_t id, uint32_t threads) { emulator::named_barrier(id, threads, true); }
inline void bar_arrive(uint32_t id, uint32_t threads) { emulator::named_barrier(id, threads, false); }
inline void barrier_cluster_arrive() {
    emulator::exchange("barrier.cluster.arrive", {});
    emulator::record_warp(Event::cluster_arrive);
    emulator::Thread& thread = self();
    if (thread.cluster_pending) fail(Fault::cluster_barrier_order, "barrier.cluster.arrive twice without a wait");
    thread.cluster_pending = true;
    thread.cluster_generation = current_cluster->cluster_generation + 1;
    ++current_cluster->cluster_arrived;
    current_cluster->complete_cluster_barrier();
}
inline void barrier_cluster_arrive_relaxed() { barrier_cluster_arrive(); }
inline void barrier_cluster_wait() {
    emulator::exchange("barrier.cluster.wait", {});
    emulator::Thread& thread = self();
    if (!thread.cluster_pending) fail(Fault::cluster_barrier_order, "barrier.cluster.wait without an arrive");
    while (current_cluster->cluster_generation < thread.cluster_generation)
        current_cluster->block_on(current_cluster->cluster_waiters, {"barrier.cluster"});
    thread.cluster_pending = false;
    emulator::record_warp(Event::cluster_pass);
}

// ------------------------------------------------------------------------------------- kernels of one stream

// A launch returns when its kernel has ended, so no kernel is ahead of another one that runs, and nothing waits. But a
// thread of a kernel that was launched early must not have TMA load or store before it has executed
// griddepcontrol.wait (check_box). It may prefetch.
inline void griddepcontrol_launch_dependents() {}
inline void griddepcontrol_wait() { self().dependency_waited = true; }

// ----------------------------------------------------------------------------------------------- mbarriers

inline void mbarrier_init(uint32_t address, uint32_t count) {
    if (count == 0 || count >= 1 << 20)
        fail_at(Fault::invalid_operand, address, "mbarrier.init with a count of %u: 1 to 2^20 - 1 is needed", count);
    emulator::Block& block = *self().block;
    block.memory.mark_mbarrier(address);
    emulator::Mbarrier& barrier = block.mbarriers[address];
    barrier = {};
    barrier.count = barrier.pending = count;
    barrier.initialiser = self().index;
    current_cluster->record(Event::mbarrier_init, block, self().index, address, count);
}
inline void fence_mbarrier_init() {
    for (auto& [address, barrier] : self().block->mbarriers)
        if (barrier.initialiser == self().index) barrier.visible = true;
}
inline void mbarrier_arrive(uint32_t address) { emulator::arrive(*self().block, address, 0); }
inline void mbarrier_arrive_cluster(uint32_t address) {
    emulator::arrive(emulator::remote_block(address), address & emulator::kOffsetMask, 0);
}
inline void mbarrier_arrive_expect_tx(uint32_t address, uint32_t bytes) {
    emulator::arrive(*self().block, address, bytes);
}
inline void mbarrier_wait_parity(uint32_t address, uint32_t parity) {
    emulator::Block& block = *self().block;
    emulator::Mbarrier& barrier = emulator::mbarrier(block, address, "mbarrier.try_wait");
    current_cluster->record(Event::mbarrier_wait, block, self().index, address, parity);
    while ((barrier.phase & 1) == (parity & 1))
        current_cluster->block_on(barrier.waiters, {"mbarrier", address, parity});
    current_cluster->record(Event::mbarrier_pass, block, self().index, address, parity);
}

inline bool mbarrier_test_wait_parity(uint32_t address, uint32_t parity) {
    current_cluster->maybe_yield();
    const emulator::Mbarrier& barrier = emulator::mbarrier(*self().block, address, "mbarrier.test_wait");
    const bool completed = (barrier.phase & 1) != (parity & 1);
    if (!completed) current_cluster->poll(address);
    return completed;
}

// --------------------------------------------------------------------------------------------- copy engine

inline void cp_async_bulk_tensor_2d_multicast(uint32_t shared, const TensorMap* map, uint32_t mbarrier, int x, int y,
                                              uint16_t cta_mask) {
    current_cluster->record(Event::tma_load, *self().block, self().index, shared, emulator::box_bytes(*map));
    for (uint32_t rank = 0; rank < 16; ++rank)
        if (cta_mask >> rank & 1)
            emulator::load_box(emulator::remote_block(mapa(shared, rank)), shared, *map, mbarrier, x, y);
    current_cluster->maybe_yield();
}
inline void cp_async_bulk_tensor_2d(uint32_t shared, const TensorMap* map, uint32_t mbarrier, int x, int y) {
    cp_async_bulk_tensor_2d_multicast(shared, map, mbarrier, x, y, static_cast<uint16_t>(1u << cluster_ctarank()));
}
inline void cp_async_bulk_tensor_2d_hint(uint32_t shared, const TensorMap* map, uint32_t mbarrier, int x, int y,
                                         uint64_t /* L2 is not modelled */) {
    cp_async_bulk_tensor_2d(shared, map, mbarrier, x, y);
}
inline uint64_t createpolicy_evict_first() { return 0; }
inline void prefetch_tensormap(const TensorMap*) {}
// L2 is not modelled. The box must still be one that could be loaded.
inline void cp_async_bulk_prefetch_tensor_2d_hint(const TensorMap* map, int x, int y, uint64_t) {
    const auto base = static_cast<int64_t>(reinterpret_cast<uintptr_t>(map->base));
    const int64_t global = base + y * map->row_stride + x * static_cast<int64_t>(map->element);
    emulator::check_column(*map, "TMA prefetch", static_cast<uint64_t>(global), x);
}
inline void cp_async_bulk_tensor_2d_store(const TensorMap* map, uint32_t shared, int x, int y) {
    emulator::store_box(*map, shared, x, y);
    current_cluster->maybe_yield();
}
inline void cp_reduce_async_bulk_tensor_2d_add(const TensorMap* map, uint32_t shared, int x, int y) {
    if (map->element != sizeof(float))
        fail_at(Fault::invalid_operand, shared, "a reduction of elements of %u bytes: FP32 is needed", map->element);
    emulator::store_box(*map, shared, x, y, true);
    current_cluster->maybe_yield();
}
inline void cp_async_bulk_commit_group() {
    self().store_groups.push_back(std::move(self().stores));
    self().stores.clear();
}
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
    static_assert(N % 8 == 0 && N >= 8 && N <= 256, "n is a multiple of 8 from 8 to 256");
    emulator::issue_wgmma(d, N, desc_a, desc_b, scale_d != 0);
}
inline void wgmma_fence() {
    emulator::exchange("wgmma.fence", {});
    self().wgmma_fenced = true;
    emulator::record_warp(Event::wgmma_fence);
}
inline void wgmma_commit_group() {
    emulator::exchange("wgmma.commit_group", {});
    self().wgmma_groups.push_back(self().wgmmas);
    emulator::record_warp(Event::wgmma_commit, 0, static_cast<int64_t>(self().wgmma_groups.size()) - 1);
}
template <int kGroups>
void wgmma_wait_group() {
    emulator::wait_wgmma(kGroups);
}

}  // namespace ptx

inline void __syncthreads() { ptx::bar_sync(0, blockDim.x); }
inline void __syncwarp() { emulator::exchange("bar.warp.sync", {}); }
