// The functions that ../mbarrier.cuh declares.
#pragma once

#include "../mbarrier.cuh"
#include "barriers.hpp"

namespace emulator {

// Whether the phase has completed. If not, other threads run before the calling one goes on: a wait that gives up.
inline bool phase_completed(uint32_t address, const char* who, bool (*completed)(const Mbarrier&, uint64_t),
                            uint64_t of) {
    current_cluster->maybe_yield();
    Mbarrier& barrier = mbarrier(*self().block, address, who);
    barrier.waited_for |= 1u << self().warp();
    if (!completed(barrier, of)) return current_cluster->poll(address), false;
    current_cluster->acquire(barrier.completed);
    note_wait(barrier, address, static_cast<uint32_t>(barrier.phase & 1) ^ 1);
    self().polls = false;
    return true;
}
inline bool parity_completed(uint32_t address, uint32_t parity) {
    return phase_completed(
        address, "mbarrier.try_wait",
        [](const Mbarrier& barrier, uint64_t of) { return (barrier.phase & 1) != static_cast<int64_t>(of & 1); },
        parity);
}
inline bool state_completed(uint32_t address, const char* who, uint64_t state) {
    return phase_completed(
        address, who,
        [](const Mbarrier& barrier, uint64_t of) { return static_cast<uint32_t>(barrier.phase) != of >> 32; }, state);
}

}  // namespace emulator

namespace ptx {

using emulator::kOffsetMask;

void mbarrier_arrive(uint32_t address, uint32_t count) {
    EMULATOR_ENTER;
    emulator::arrive(*self().block, address, 0, count);
}
void mbarrier_arrive_cluster(uint32_t address, uint32_t count) {
    EMULATOR_ENTER;
    emulator::arrive(emulator::remote_block(address), address & kOffsetMask, 0, count);
}
uint64_t mbarrier_arrive_state(uint32_t address, uint32_t count) {
    EMULATOR_ENTER;
    return emulator::arrive(*self().block, address, 0, count);
}
void mbarrier_arrive_expect_tx_cluster(uint32_t address, uint32_t bytes) {
    EMULATOR_ENTER;
    emulator::arrive(emulator::remote_block(address), address & kOffsetMask, bytes);
}
void mbarrier_arrive_drop(uint32_t address, uint32_t count) {
    EMULATOR_ENTER;
    emulator::arrive(*self().block, address, 0, count, true);
}
void mbarrier_arrive_drop_cluster(uint32_t address, uint32_t count) {
    EMULATOR_ENTER;
    emulator::arrive(emulator::remote_block(address), address & kOffsetMask, 0, count, true);
}
void mbarrier_expect_tx(uint32_t address, uint32_t bytes) {
    EMULATOR_ENTER;
    emulator::expect_bytes(*self().block, address, bytes);
}
void mbarrier_expect_tx_cluster(uint32_t address, uint32_t bytes) {
    EMULATOR_ENTER;
    emulator::expect_bytes(emulator::remote_block(address), address & kOffsetMask, bytes);
}
void mbarrier_complete_tx(uint32_t address, uint32_t bytes) {
    EMULATOR_ENTER;
    emulator::complete_bytes(*self().block, address, bytes, nullptr, {});
}
void mbarrier_complete_tx_cluster(uint32_t address, uint32_t bytes) {
    EMULATOR_ENTER;
    emulator::complete_bytes(emulator::remote_block(address), address & kOffsetMask, bytes, nullptr, {});
}
bool mbarrier_try_wait_parity(uint32_t address, uint32_t parity) {
    EMULATOR_POLL;
    return emulator::parity_completed(address, parity);
}
bool mbarrier_try_wait_parity(uint32_t address, uint32_t parity, uint32_t /* time is not modelled */) {
    EMULATOR_POLL;
    return emulator::parity_completed(address, parity);
}
bool mbarrier_try_wait(uint32_t address, uint64_t state) {
    EMULATOR_POLL;
    return emulator::state_completed(address, "mbarrier.try_wait", state);
}
bool mbarrier_test_wait(uint32_t address, uint64_t state) {
    EMULATOR_POLL;
    return emulator::state_completed(address, "mbarrier.test_wait", state);
}
uint32_t mbarrier_pending_count(uint64_t state) { return static_cast<uint32_t>(state); }

}  // namespace ptx
