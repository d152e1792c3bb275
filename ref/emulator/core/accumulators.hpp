// The registers of matrix instructions: whether anything has initialised them, and what a record keeps of accumulators,
// their values after each wait.
#pragma once

#include "cluster.hpp"

namespace emulator {

// What a compiler puts into a variable that nothing has initialised (-ftrivial-auto-var-init=pattern): a float of
// -1.7e38, or a NaN, that no computation is likely to give. Of some types it is a number like others, and not looked
// for.
#ifdef __clang__
constexpr uint32_t kUninitialised = 0xFFFFFFFF;  // of integers: -1, or 255
constexpr bool is_likely(ptx::Type type) {
    return type == ptx::Type::s8 || type == ptx::Type::u8 || type == ptx::Type::s32;
}
#else
constexpr uint32_t kUninitialised = 0xFEFEFEFE;  // of bytes: -2, 254, and -448, to which E4M3 saturates
constexpr bool is_likely(ptx::Type type) {
    return type == ptx::Type::s8 || type == ptx::Type::u8 || type == ptx::Type::e4m3;
}
#endif
inline void check_initialised(ptx::Type type, const uint32_t* registers, std::size_t count, const char* who,
                              const char* what) {
    if (is_likely(type)) return;
    const uint32_t* found = std::find(registers, registers + count, kUninitialised);
    if (found != registers + count)
        fail(Fault::uninitialised_register, "%s %s register %lld, which nothing has initialised", who, what,
             static_cast<long long>(found - registers));
}

// Lane 0 gives its registers to a WGMMA of `n` columns, and no WGMMA had them before.
inline void record_flight(const Thread& thread, WgmmaQueue& queue, Accumulator& accumulator, int64_t n) {
    Cluster& cluster = *thread.cluster;
    if (!cluster.config().record) return;
    const std::tuple<const uint32_t*, ptx::Type, int64_t> mine{accumulator.home, accumulator.type, n};
    const auto found = std::ranges::find(queue.known, mine);
    const auto number = static_cast<int32_t>(found - queue.known.begin());
    if (found == queue.known.end()) queue.known.push_back(mine);
    Recorded& recorded = cluster.recorded;
    accumulator.row = recorded.accumulators.size();
    recorded.accumulators.push_back({.cluster = static_cast<int32_t>(cluster.index()),
                                     .block = static_cast<int32_t>(thread.block->index),
                                     .warp = thread.warp(),
                                     .number = number,
                                     .type = static_cast<int32_t>(accumulator.type),
                                     .n = static_cast<int32_t>(n),
                                     .begin = static_cast<int64_t>(recorded.events.size()),
                                     .end = -1,
                                     .offset = -1});
}

// Lane 0 gets them back, and its event wgmma_pass follows.
inline void record_values(Cluster& cluster, const Accumulator& accumulator) {
    Recorded& recorded = cluster.recorded;
    EmulatorAccumulator& row = recorded.accumulators[*accumulator.row];
    const std::vector<uint8_t>& rows = accumulator.tile->rows;
    row.end = static_cast<int64_t>(recorded.events.size());
    const int64_t kept = cluster.config().kept_bytes / cluster.clusters();
    if (static_cast<int64_t>(recorded.values.size() + rows.size()) > kept) return;
    row.offset = static_cast<int64_t>(recorded.values.size());
    recorded.values.insert(recorded.values.end(), rows.begin(), rows.end());
}

}  // namespace emulator
