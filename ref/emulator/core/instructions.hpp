// The functions that ../ptx.cuh declares: what each instruction does.
#pragma once

#include "../ptx.cuh"
#include "lanes.hpp"
#include "tma.hpp"
#include "wgmma.hpp"

namespace emulator {

// A kernel with __launch_bounds__ is compiled for as many registers as its bounds leave a thread, however it is
// launched.
void launch_bounds(int64_t threads, int64_t blocks_an_sm, int64_t cluster) {
    EMULATOR_ENTER;
    const Cluster::Shape& shape = current_cluster->shape();
    Block& block = *self().block;
    if (block.bounded) return;
    if (shape.threads > threads)
        fail(Fault::invalid_operand, "%d threads a block; the kernel's __launch_bounds__ promises at most %lld",
             shape.threads, static_cast<long long>(threads));
    if (cluster > 0 && shape.size > cluster)
        fail(Fault::invalid_operand, "%d blocks a cluster; the kernel's __launch_bounds__ promises at most %lld",
             shape.size, static_cast<long long>(cluster));
    block.bounded = true;
    const int registers = registers_of_thread(kRegisters / std::max<int64_t>(blocks_an_sm, 1), threads);
    for (std::vector<int>& of_warp : block.registers) of_warp = {registers};
}

// setmaxnreg, once for each warp: registers are given back at once; to take more, a warp waits until the block has
// enough free. The warps of a warpgroup must all ask for the same number.
void set_registers(int registers, bool increase, int place) {
    EMULATOR_ENTER;
    together("setmaxnreg", place);
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
    const char* reason = mine.size() == 1 ? "as its __launch_bounds__, or else the block's size, leaves it"
                                          : "as its setmaxnreg before this one left it";
    mine.push_back(registers);
    block.set_registers_at[warp] = thread.from;
    if (increase ? registers < had : registers > had)
        fail(Fault::invalid_operand, "setmaxnreg.%s %d while the warp has %d registers a thread, %s",
             increase ? "inc" : "dec", registers, had, reason);
    while (32 * (registers - had) > block.free_registers)
        current_cluster->block_on(block.register_waiters, {"registers", static_cast<uint32_t>(registers), had});
    block.free_registers -= 32 * (registers - had);
    record_warp(Event::setmaxnreg, 0, registers);
    current_cluster->wake(block.register_waiters);
}

// cp.async.bulk.wait_group: does what the calling thread's stores still have to do, except those of its last `groups`
// groups.
void wait_stores(std::size_t groups, bool read_only) {
    EMULATOR_ENTER;
    auto& committed = self().store_groups;
    const std::size_t done = committed.size() > groups ? committed.size() - groups : 0;
    for (std::size_t i = 0; i < done; ++i)
        for (const auto& store : committed[i]) {
            store->waited_for = true;
            read_only ? store->read() : store->write();
            Known told;
            current_cluster->learn(self().known, store->done, told);
        }
    if (!read_only) committed.erase(committed.begin(), committed.begin() + static_cast<std::ptrdiff_t>(done));
}

// The address in the block `rank` of the cluster.
inline uint32_t at_rank(uint32_t address, uint32_t rank) { return (address & kOffsetMask) | (rank + 1) << kRankShift; }

// barrier.cluster.arrive of one thread.
inline void arrive_at_cluster(bool aligned = true, bool releases = true) {
    if (aligned) exchange("barrier.cluster.arrive", {});
    record_warp(Event::cluster_arrive);
    Thread& thread = self();
    if (thread.cluster_pending) fail(Fault::cluster_barrier_order, "barrier.cluster.arrive twice without a wait");
    thread.cluster_pending = true;
    if (releases) current_cluster->release(current_cluster->cluster_told);
    thread.cluster_generation = current_cluster->cluster_generation + 1;
    ++current_cluster->cluster_arrived;
    current_cluster->complete_cluster_barrier();
}

inline void wait_for_cluster(bool aligned = true) {
    if (aligned) exchange("barrier.cluster.wait", {});
    Thread& thread = self();
    if (!thread.cluster_pending) fail(Fault::cluster_barrier_order, "barrier.cluster.wait without an arrive");
    while (current_cluster->cluster_generation < thread.cluster_generation)
        current_cluster->block_on(current_cluster->cluster_waiters, {"barrier.cluster"});
    thread.cluster_pending = false;
    current_cluster->acquire(current_cluster->cluster_completed);
    record_warp(Event::cluster_pass);
}

// The thread count of a named barrier, which must be one.
inline uint32_t counted(uint32_t id, uint32_t threads) {
    if (threads == 0) fail(Fault::invalid_operand, "barrier %u for 0 threads: a multiple of 32 is needed", id);
    return threads;
}

// A load into each block of the mask.
inline void load_boxes(uint32_t shared, const TensorMap& map, uint32_t mbarrier, int x, int y, uint32_t mask) {
    check_box(map, "TMA load", shared, {2, {x, y}}, false);
    load_global(box_of(map, "TMA load", shared, {2, {x, y}}, false), mbarrier, mask);
}

uint64_t shuffle(uint64_t bits, int lane) {
    EMULATOR_MEET;
    return exchange("shfl.sync.idx", {bits}, ~0u, true)[static_cast<std::size_t>(lane % 32)][0];
}

void store_shared(uint32_t address, SharedBytes value, uint32_t bytes) {
    EMULATOR_ENTER;
    self().block->memory.write(address, &value, bytes, self());
}
SharedBytes load_shared(uint32_t address, uint32_t bytes) {
    EMULATOR_LOOK;
    SharedBytes value{};
    self().block->memory.read(address, &value, bytes, self());
    return value;
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

// Any lane may be elected; the seed says which, for the whole run.
bool elect_sync() {
    EMULATOR_MEET;
    emulator::exchange("elect.sync", {});
    return self().lane() == current_cluster->elected_lane() % std::popcount(self().lanes());
}

// ------------------------------------------------------------------------------------------ shared memory

uint32_t shared_memory() { return emulator::kSharedBase; }
uint32_t mapa(uint32_t address, uint32_t rank) {
    EMULATOR_LOOK;
    return emulator::at_rank(address, rank);
}
void st_shared_cluster(uint32_t address, float4 value) {
    EMULATOR_ENTER;
    // A fence.proxy.async by this thread does not publish these bytes to the other block's copy engine: no kernel here
    // needs that, so it is not modelled, and a WGMMA or TMA store that read them would be reported.
    emulator::Actor& actor = self();
    std::vector<emulator::Words> own = std::move(actor.unfenced);
    emulator::remote_block(address).memory.write(address & emulator::kOffsetMask, &value, sizeof value, actor);
    actor.unfenced = std::move(own);
}
void stmatrix_x4(uint32_t address, uint32_t r0, uint32_t r1, uint32_t r2, uint32_t r3, int place) {
    EMULATOR_ENTER;
    emulator::together("stmatrix", place);
    const auto& lanes = emulator::exchange("stmatrix", {address, r0, r1, r2, r3});
    const uint32_t tile = laneid() / 8, row = laneid() % 8;  // the row that this lane's address is for
    uint4 data;
    uint32_t words[4];
    for (uint32_t i = 0; i < 4; ++i) words[i] = static_cast<uint32_t>(lanes[row * 4 + i][1 + tile]);
    std::memcpy(&data, words, sizeof data);
    emulator::record_warp(Event::stmatrix, address);
    self().block->memory.write(address, &data, sizeof data, self(), "stmatrix");
}
void fence_proxy_async() {
    EMULATOR_MEET;
    emulator::record_warp(Event::fence_proxy_async);
    self().block->memory.publish(self());
    for (auto& [address, barrier] : self().block->mbarriers)
        if (barrier.initialiser == self().index) barrier.visible = true;
}

// --------------------------------------------------------------------------------------- execution barriers

void bar_sync(uint32_t id, uint32_t threads, int place) {
    EMULATOR_MEET;
    emulator::together("bar.sync", place);
    emulator::named_barrier(id, emulator::counted(id, threads), true);
}
void bar_arrive(uint32_t id, uint32_t threads) {
    EMULATOR_MEET;
    emulator::named_barrier(id, emulator::counted(id, threads), false);
}
void barrier_cluster_arrive(int place) {
    EMULATOR_MEET;
    emulator::together("barrier.cluster.arrive", place);
    emulator::arrive_at_cluster();
}
void barrier_cluster_arrive_relaxed(int place) {
    EMULATOR_MEET;
    emulator::together("barrier.cluster.arrive", place);
    emulator::arrive_at_cluster(true, false);
}
void barrier_cluster_wait(int place) {
    EMULATOR_MEET;
    emulator::together("barrier.cluster.wait", place);
    emulator::wait_for_cluster();
}

// ------------------------------------------------------------------------------------- kernels of one stream

// A launch returns when its kernel has ended, so no kernel is ahead of another one that runs, and nothing waits. But a
// thread of a kernel that was launched early must not have TMA load or store before it has executed
// griddepcontrol.wait (check_box). It may prefetch.
void griddepcontrol_launch_dependents() {}
void griddepcontrol_wait() {
    EMULATOR_ENTER;
    emulator::Thread& thread = self();
    if (!thread.dependency_waited) thread.dependency_moment = thread.now();
    thread.dependency_waited = true;
}

// ----------------------------------------------------------------------------------------------- mbarriers

void mbarrier_init(uint32_t address, uint32_t count) {
    EMULATOR_ENTER;
    if (count == 0 || count >= 1 << 20)
        fail_at(Fault::invalid_operand, address, "mbarrier.init with a count of %u: 1 to 2^20 - 1 is needed", count);
    emulator::Block& block = *self().block;
    if (block.mbarriers.contains(address))
        fail_at(Fault::mbarrier_reinitialised, address,
                "mbarrier.init of %s, which is an mbarrier already: mbarrier.inval comes before that",
                emulator::name_of(block, address).c_str());
    block.memory.mark_mbarrier(address);
    emulator::Mbarrier& barrier = block.mbarriers[address];
    barrier = {};
    barrier.count = barrier.pending = count;
    barrier.initialiser = self().index;
    barrier.initialised_from = self().from;
    current_cluster->record(Event::mbarrier_init, block, self().index, address, count);
}
void mbarrier_inval(uint32_t address) {
    EMULATOR_ENTER;
    emulator::Block& block = *self().block;
    if (!emulator::mbarrier(block, address, "mbarrier.inval").waiters.empty())
        fail_at(Fault::mbarrier_overwritten, address, "mbarrier.inval of %s, for which threads wait",
                emulator::name_of(block, address).c_str());
    block.mbarriers.erase(address);
    block.memory.mark_mbarrier(address, false);
}
void name_mbarrier(uint32_t address, const char* name, int index) {
    self().block->names[address] = index < 0 ? name : name + (" " + std::to_string(index));
}
void fence_mbarrier_init() {
    EMULATOR_MEET;
    for (auto& [address, barrier] : self().block->mbarriers)
        if (barrier.initialiser == self().index) barrier.visible = true;
}
void mbarrier_arrive(uint32_t address) {
    EMULATOR_ENTER;
    emulator::arrive(*self().block, address, 0);
}
void mbarrier_arrive_cluster(uint32_t address) {
    EMULATOR_ENTER;
    emulator::arrive(emulator::remote_block(address), address & emulator::kOffsetMask, 0);
}
void mbarrier_arrive_expect_tx(uint32_t address, uint32_t bytes) {
    EMULATOR_ENTER;
    emulator::arrive(*self().block, address, bytes);
}
void mbarrier_wait_parity(uint32_t address, uint32_t parity) {
    EMULATOR_ENTER;
    emulator::Cluster& cluster = *self().cluster;
    emulator::Block& block = *self().block;
    emulator::Mbarrier& barrier = emulator::mbarrier(block, address, "mbarrier.try_wait");
    barrier.waited_for |= 1u << self().warp();
    cluster.record(Event::mbarrier_wait, block, self().index, address, parity);
    while ((barrier.phase & 1) == (parity & 1)) cluster.block_on(barrier.waiters, {"mbarrier", address, parity});
    cluster.acquire(barrier.completed);
    emulator::note_wait(barrier, address, parity);
    cluster.record(Event::mbarrier_pass, block, self().index, address, parity);
}

bool mbarrier_test_wait_parity(uint32_t address, uint32_t parity) {
    EMULATOR_POLL;
    current_cluster->maybe_yield();
    emulator::Mbarrier& barrier = emulator::mbarrier(*self().block, address, "mbarrier.test_wait");
    barrier.waited_for |= 1u << self().warp();
    if ((barrier.phase & 1) == (parity & 1)) return current_cluster->poll(address), false;
    current_cluster->acquire(barrier.completed);
    emulator::note_wait(barrier, address, parity);
    self().polls = false;
    return true;
}

// --------------------------------------------------------------------------------------------- copy engine

void cp_async_bulk_tensor_2d_multicast(uint32_t shared, const TensorMap* map, uint32_t mbarrier, int x, int y,
                                       uint16_t cta_mask) {
    EMULATOR_ENTER;
    emulator::load_boxes(shared, *map, mbarrier, x, y, cta_mask);
}
void cp_async_bulk_tensor_2d(uint32_t shared, const TensorMap* map, uint32_t mbarrier, int x, int y) {
    EMULATOR_ENTER;
    emulator::load_boxes(shared, *map, mbarrier, x, y, 1u << cluster_ctarank());
}
void cp_async_bulk_tensor_2d_hint(uint32_t shared, const TensorMap* map, uint32_t mbarrier, int x, int y,
                                  uint64_t /* L2 is not modelled */) {
    EMULATOR_ENTER;
    emulator::load_boxes(shared, *map, mbarrier, x, y, 1u << cluster_ctarank());
}
uint64_t createpolicy_evict_first() { return 0; }
void prefetch_tensormap(const TensorMap*) {}
void cp_async_bulk_prefetch_tensor_2d_hint(const TensorMap* map, int x, int y, uint64_t) {
    EMULATOR_ENTER;
    emulator::prefetch_box(*map, {2, {x, y}});
}
void cp_async_bulk_tensor_2d_store(const TensorMap* map, uint32_t shared, int x, int y) {
    EMULATOR_ENTER;
    emulator::store_box(*map, shared, {2, {x, y}});
}
void cp_reduce_async_bulk_tensor_2d_add(const TensorMap* map, uint32_t shared, int x, int y) {
    EMULATOR_ENTER;
    if (map->element != Element::f32)
        fail_at(Fault::invalid_operand, shared, "a reduction of %s elements: FP32 is needed",
                emulator::element_name(map->element));
    emulator::store_box(*map, shared, {2, {x, y}}, emulator::Combination{Reduction::add, Element::f32});
}
void cp_async_bulk_commit_group() {
    EMULATOR_ENTER;
    self().store_groups.push_back(std::move(self().stores));
    self().stores.clear();
}

// --------------------------------------------------------------------------------------------------- WGMMA

void wgmma_fence(int place) {
    EMULATOR_ENTER;
    emulator::together("wgmma.fence", place);
    self().wgmma_fenced = self().fiber.watched() = true;
    self().written_since_fence.clear();
    self().rested.clear();
    emulator::record_warp(Event::wgmma_fence);
}
void wgmma_commit_group(int place) {
    EMULATOR_ENTER;
    emulator::together("wgmma.commit_group", place);
    self().wgmma_groups.push_back(self().wgmmas);
    emulator::commit_wgmmas(self(), self().wgmmas);
    emulator::record_warp(Event::wgmma_commit, 0, self().wgmma_groups.end() - 1);
}

}  // namespace ptx

void __syncthreads(int place) {
    EMULATOR_MEET;
    emulator::together("__syncthreads()", place);
    emulator::named_barrier(0, 0, true);
}
void __syncwarp() {
    EMULATOR_MEET;
    emulator::exchange("bar.warp.sync", {}, ~0u, true, true);
}
