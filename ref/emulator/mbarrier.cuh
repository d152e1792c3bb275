// The functions of kernels/include/mbarrier.cuh, for the emulator. That file says which instruction each one is.
#pragma once

#include "ptx.cuh"

namespace ptx {

void mbarrier_arrive(uint32_t address, uint32_t count);
void mbarrier_arrive_cluster(uint32_t address, uint32_t count);
uint64_t mbarrier_arrive_state(uint32_t address, uint32_t count = 1);
void mbarrier_arrive_expect_tx_cluster(uint32_t address, uint32_t bytes);
void mbarrier_arrive_drop(uint32_t address, uint32_t count = 1);
void mbarrier_arrive_drop_cluster(uint32_t address, uint32_t count = 1);
void mbarrier_expect_tx(uint32_t address, uint32_t bytes);
void mbarrier_expect_tx_cluster(uint32_t address, uint32_t bytes);
void mbarrier_complete_tx(uint32_t address, uint32_t bytes);
void mbarrier_complete_tx_cluster(uint32_t address, uint32_t bytes);
bool mbarrier_try_wait_parity(uint32_t address, uint32_t parity);
bool mbarrier_try_wait_parity(uint32_t address, uint32_t parity, uint32_t nanoseconds);
bool mbarrier_try_wait(uint32_t address, uint64_t state);
bool mbarrier_test_wait(uint32_t address, uint64_t state);
uint32_t mbarrier_pending_count(uint64_t state);

}  // namespace ptx
