// WGMMA. Each of the warpgroup's four warps computes its own 16 rows, in its own tensor core, at some moment between
// issuing the instruction and the wait that covers it. Until that wait the accumulators hold NaN, so that a kernel
// which reads them too early gets a wrong result.
#pragma once

#include <algorithm>

#include "cluster.hpp"

namespace emulator {

constexpr uint32_t kWarpRows = 16;
constexpr uint32_t kBytesK = 32;  // one instruction's K, in bytes

// "Matrix Descriptor Format" (PTX ISA): where element (row, byte of k) of a K-major operand lies.
struct Descriptor {
    uint32_t start, leading_offset, stride_offset, swizzle;  // swizzle: 0 none, 1 128 bytes, 2 64 bytes, 3 32 bytes

    explicit Descriptor(uint64_t bits)
        : start(static_cast<uint32_t>(bits & 0x3FFF) << 4),
          leading_offset(static_cast<uint32_t>(bits >> 16 & 0x3FFF) << 4),
          stride_offset(static_cast<uint32_t>(bits >> 32 & 0x3FFF) << 4),
          swizzle(static_cast<uint32_t>(bits >> 62)) {
        if (bits >> 49 & 7)
            fail_at(Fault::unsupported, start,
                    "wgmma descriptor 0x%llx has base offset %d; the emulator knows 0: align the tile to 1024 bytes",
                    static_cast<unsigned long long>(bits), static_cast<int>(bits >> 49 & 7));
    }
    // Where the 16-byte chunk of `row` that begins at `byte`, a multiple of 16, lies.
    uint32_t address(uint32_t row, uint32_t byte) const {
        if (swizzle == 0) return start + row / 8 * stride_offset + byte / 16 * leading_offset + row % 8 * 16;
        const uint32_t row_bytes = 256u >> swizzle;  // 128, 64, 32
        const uint32_t linear = start + row / 8 * stride_offset + row % 8 * row_bytes + byte;
        return linear ^ ((linear >> 7 & (row_bytes / 16 - 1)) << 4);
    }
};

// Calls visit(who, shared address, operand (0 = A, 1 = B), byte in the operand) for every chunk that the warp reads:
// its own 16 rows of A and all of B.
template <typename Visit>
void for_each_operand_chunk(const WgmmaOp& op, int warp, const Visit& visit) {
    const Descriptor a(op.desc_a), b(op.desc_b);
    const uint32_t first_row = static_cast<uint32_t>(warp % 4) * kWarpRows;
    for (uint32_t byte = 0; byte < kBytesK; byte += SharedMemory::kChunk) {
        for (uint32_t row = 0; row < kWarpRows; ++row)
            visit("wgmma (A)", a.address(first_row + row, byte), 0, row * kBytesK + byte);
        for (uint32_t row = 0; row < op.n; ++row) visit("wgmma (B)", b.address(row, byte), 1, row * kBytesK + byte);
    }
}

inline void execute_next_wgmma(Block& block, int warp) {
    WgmmaQueue& queue = block.wgmmas[static_cast<std::size_t>(warp)];
    const WgmmaOp& op = queue.ops[static_cast<std::size_t>(queue.executed - queue.retired)];
    const auto n = static_cast<std::size_t>(op.n);
    thread_local std::vector<uint8_t> operands[2];
    thread_local std::vector<float> acc;
    operands[0].resize(kWarpRows * kBytesK);
    operands[1].resize(n * kBytesK);
    acc.assign(kWarpRows * n, 0.0f);
    for_each_operand_chunk(op, warp, [&](const char* who, uint32_t address, int operand, uint32_t at) {
        std::ranges::copy(block.memory.async_read(address, who), &operands[operand][at]);
    });
    const auto element = [&](std::size_t lane, std::size_t i) -> float& {
        return acc[(lane / 4 + i / 2 % 2 * 8) * n + i / 4 * 8 + lane % 4 * 2 + i % 2];
    };
    for (std::size_t lane = 0; lane < 32; ++lane)
        for (std::size_t i = 0; i < n / 2; ++i)
            if (op.scale_d) element(lane, i) = op.accumulator[lane][i];
    current_cluster->config().wgmma(kWarpRows, op.n, operands[0].data(), operands[1].data(), acc.data());
    for (std::size_t lane = 0; lane < 32; ++lane)
        for (std::size_t i = 0; i < n / 2; ++i) op.accumulator[lane][i] = element(lane, i);
    ++queue.executed;
    current_cluster->record(Event::wgmma_executed, block, -1, Descriptor(op.desc_a).start, op.n);
}

// All four warps of a warpgroup must issue the same WGMMA: the first to issue it is what the others are compared with.
inline void check_warpgroup(Block& block, int warp, int64_t number, const WgmmaOp& op) {
    auto& issued = block.warpgroup_wgmmas[static_cast<std::size_t>(warp / 4)];
    const auto [found, first] = issued.try_emplace(number, op);
    WgmmaOp& theirs = found->second;
    if (!first && !theirs.same(op))
        fail(Fault::divergent_warpgroup,
             "wgmma number %lld differs from the one that another warp of its warpgroup issued",
             static_cast<long long>(number));
    theirs.lanes = first ? 1 : theirs.lanes + 1;  // counts warps here
    if (theirs.lanes == 4) issued.erase(found);
}

// One lane issues a WGMMA. When the last of the warp's 32 lanes has done so, the tensor core may execute it.
inline void issue_wgmma(float* d, int64_t n, uint64_t desc_a, uint64_t desc_b, bool scale_d) {
    Cluster& cluster = *current_cluster;
    Thread& thread = self();
    Block& block = *thread.block;
    const int warp = thread.warp();
    if (static_cast<int>(block.threads.size()) < (warp / 4 + 1) * 128)
        fail(Fault::divergent_warpgroup, "wgmma needs a whole warpgroup: four warps, the first a multiple of 4");
    if (!cluster.config().wgmma) fail(Fault::unsupported, "wgmma: no tensor core was configured");
    WgmmaQueue& queue = block.wgmmas[static_cast<std::size_t>(warp)];
    const int64_t number = thread.wgmmas++;
    const auto place = static_cast<std::size_t>(number - queue.retired);
    const WgmmaOp mine{n, desc_a, desc_b, scale_d, 0, 0, {}};
    if (place == queue.ops.size()) {
        check_warpgroup(block, warp, number, mine);
        queue.ops.push_back(mine);
    }
    WgmmaOp& op = queue.ops[place];
    if (!op.same(mine))
        fail(Fault::divergent_warp, "wgmma number %lld differs from its warp's", static_cast<long long>(number));

    auto accumulator = std::ranges::find(thread.accumulators, d, &Accumulator::home);
    if (accumulator == thread.accumulators.end()) {
        if (!thread.wgmma_fenced)
            fail(Fault::missing_wgmma_fence, "wgmma without wgmma.fence after the accumulators were last touched");
        thread.accumulators.push_back({d, std::vector<float>(d, d + n / 2), 0});
        accumulator = std::prev(thread.accumulators.end());
        std::fill_n(d, n / 2, NAN);
    }
    accumulator->last_op = number;
    op.accumulator[static_cast<std::size_t>(thread.lane())] = accumulator->value.data();
    if (thread.lane() == 0) cluster.record(Event::wgmma, block, thread.index, Descriptor(desc_a).start, n);

    if (++op.lanes == 32) {
        ++queue.issued;
        for_each_operand_chunk(
            op, warp, [&](const char* who, uint32_t address, int, uint32_t) { block.memory.begin_read(address, who); });
        cluster.later({block.index, warp, -1}, [&block, &queue, warp] {
            if (queue.executed < queue.issued) execute_next_wgmma(block, warp);
        });
        cluster.wake(queue.waiters);
    }
    cluster.maybe_yield();
}

// wgmma.wait_group of one lane: its warp goes on when at most `in_flight` of its groups are unfinished.
inline void wait_wgmma(int in_flight) {
    Cluster& cluster = *current_cluster;
    Thread& thread = self();
    Block& block = *thread.block;
    if (thread.lane() == 0) cluster.record(Event::wgmma_wait, block, thread.index, 0, in_flight);
    const auto groups = static_cast<int64_t>(thread.wgmma_groups.size());
    if (groups > in_flight) {
        const int64_t target = thread.wgmma_groups[static_cast<std::size_t>(groups - in_flight - 1)];
        WgmmaQueue& queue = block.wgmmas[static_cast<std::size_t>(thread.warp())];
        while (queue.issued < target) cluster.block_on(queue.waiters, {"the rest of its warp to issue a wgmma"});
        while (queue.executed < target) execute_next_wgmma(block, thread.warp());
        for (; thread.wgmmas_waited < target; ++thread.wgmmas_waited) {
            if (++queue.ops[static_cast<std::size_t>(thread.wgmmas_waited - queue.retired)].waited < 32) continue;
            for_each_operand_chunk(queue.ops.front(), thread.warp(), [&](const char*, uint32_t address, int, uint32_t) {
                block.memory.end_read(address);
            });
            queue.ops.pop_front();
            ++queue.retired;
        }
        std::erase_if(thread.accumulators, [&](const Accumulator& accumulator) {
            if (accumulator.last_op >= target) return false;
            for (std::size_t i = 0; i < accumulator.value.size(); ++i) {
                if (!std::isnan(accumulator.home[i]))
                    fail(Fault::accumulator_overwritten,
                         "accumulator register %zu was written while a WGMMA was in flight", i);
                accumulator.home[i] = accumulator.value[i];
            }
            thread.wgmma_fenced = false;
            return true;
        });
    }
    exchange("wgmma.wait_group", {});  // .sync.aligned: all lanes of the warp go on together
    if (thread.lane() == 0) cluster.record(Event::wgmma_pass, block, thread.index, 0, in_flight);
}

}  // namespace emulator
