// WGMMA and mma.sync. Of a WGMMA, each of the warpgroup's four warps computes its own 16 rows, in its own tensor core,
// at some moment between issuing the instruction and the wait that covers it. Until that wait the accumulators hold
// NaN, so that a kernel which reads them too early gets a wrong result.
#pragma once

#include <algorithm>
#include <span>
#include <type_traits>

#include "../ptx.cuh"
#include "accumulators.hpp"
#include "lanes.hpp"

namespace emulator {

constexpr uint32_t kWarpRows = 16;
constexpr const char *kWgmmaA = "wgmma (A)", *kWgmmaB = "wgmma (B)";

// Calls visit(register, place in bytes) for the accumulators that a lane holds of a warp's 16 rows of `n` columns.
template <typename Visit>
void for_each_accumulator(ptx::Type type, std::size_t lane, std::size_t n, const Visit& visit) {
    const std::size_t in_register = type == ptx::Type::f16 ? 2 : 1, bytes = sizeof(uint32_t) / in_register;
    for (std::size_t at = 0; at < n / 2 / in_register; ++at) {
        const std::size_t i = at * in_register;  // of the lane's accumulators
        visit(at, ((lane / 4 + i / 2 % 2 * 8) * n + i / 4 * 8 + lane % 4 * 2 + i % 2) * bytes);
    }
}

// Lane `lane`'s four registers of A, in the warp's 16 rows of 32 bytes.
inline void place_a(uint8_t* rows, std::size_t lane, const uint32_t* a) {
    for (std::size_t i = 0; i < 4; ++i)
        std::memcpy(&rows[(lane / 4 + i % 2 * 8) * kBytesK + lane % 4 * 4 + i / 2 * 16], &a[i], sizeof a[i]);
}

// What a register holds while a WGMMA is in flight: NaN, or two of them.
inline uint32_t poison(ptx::Type type) { return type == ptx::Type::f16 ? 0x7FFF7FFF : __float_as_uint(NAN); }

// Moves a lane's registers into the warp's 16 rows of `n` accumulators, or back: two neighbours in a row at a time.
template <bool kIntoRows>
void move_accumulators(ptx::Type type, std::size_t lane, std::size_t n, uint32_t* registers, uint8_t* rows) {
    const std::size_t bytes = 2 * static_cast<std::size_t>(ptx::type_bytes(type));
    uint8_t* in_rows = rows + (lane / 4 * n / 2 + lane % 4) * bytes;
    auto* in_registers = reinterpret_cast<uint8_t*>(registers);
    const auto move = [&](auto size) {
        for (std::size_t column = 0; column < n; column += 8, in_rows += 4 * size())
            for (std::size_t half = 0; half < 2; ++half, in_registers += size()) {
                uint8_t* place = in_rows + half * 4 * n * size();
                std::memcpy(kIntoRows ? place : in_registers, kIntoRows ? in_registers : place, size());
            }
    };
    if (bytes == 8)
        move(std::integral_constant<std::size_t, 8>());
    else
        move(std::integral_constant<std::size_t, 4>());
}

inline void change_signs(std::vector<uint8_t>& operand, ptx::Type type) {
    const auto bytes = static_cast<std::size_t>(ptx::type_bytes(type));
    for (std::size_t at = bytes - 1; at < operand.size(); at += bytes) operand[at] ^= 0x80;
}

inline void multiply(int64_t unit, const MatrixKind& kind, int64_t n, const uint8_t* a, const uint8_t* b, void* acc) {
    const auto number = [](ptx::Type type) { return static_cast<int64_t>(type); };
    if (current_cluster->config().mma(unit, number(kind.a), number(kind.b), number(kind.d), kind.options.satfinite,
                                      kWarpRows, n, kBytesK, a, b, acc))
        fail(Fault::unsupported, "a matrix instruction of types that the emulator's model does not have");
}

// The rows of an operand in shared memory, as 32 bytes each.
inline void read_rows(Block& block, const Footprint& footprint, bool mn_major, std::size_t rows, const char* who,
                      const Known& issuer, uint8_t* to) {
    block.memory.async_read(footprint, who, issuer, [&](std::size_t number, const uint8_t* chunk) {
        if (!mn_major) {
            std::memcpy(to + number % rows * kBytesK + number / rows * kChunk, chunk, kChunk);
            return;
        }
        uint8_t* first = to + number % (rows / 8) * 8 * kBytesK + number / (rows / 8) * 2;
        for (std::size_t i = 0; i < 8; ++i) std::memcpy(first + i * kBytesK, chunk + i * 2, 2);
    });
}

// B of FP8, decoded, and read again only if shared memory has changed since it was read.
inline const DecodedOperand& decoded_b(Block& block, const WgmmaOp& op) {
    const std::optional<uint64_t> version = block.memory.version(*op.footprint_b);
    for (const DecodedOperand& known : block.decoded)
        if (version && known.footprint == op.footprint_b && known.version == *version) return known;
    thread_local std::vector<uint8_t> rows;
    const auto n = static_cast<std::size_t>(op.form.n);
    rows.resize(n * kBytesK);
    read_rows(block, *op.footprint_b, false, n, kWgmmaB, op.known, rows.data());
    DecodedOperand& decoded = block.decoded[block.next_decoded++ % block.decoded.size()];
    const std::size_t columns = (n + kDecodedColumns - 1) / kDecodedColumns * kDecodedColumns;
    decoded.values.resize(columns * kBytesK);
    decoded.exponents.resize(columns * kBytesK);
    current_cluster->config().decode(op.form.n, rows.data(), decoded.values.data(), decoded.exponents.data());
    decoded.footprint = version ? op.footprint_b : nullptr;
    decoded.version = version.value_or(0);
    return decoded;
}

inline void execute_next_wgmma(Block& block, int warp) {
    WgmmaQueue& queue = block.wgmmas[static_cast<std::size_t>(warp)];
    const WgmmaOp& op = queue.ops[queue.executed];
    const Issued issued({block.index, warp, -1}, op.from);
    const MatrixKind& kind = op.form.kind;
    const ptx::WgmmaOptions& options = kind.options;
    const auto n = static_cast<std::size_t>(op.form.n);
    thread_local std::vector<uint8_t> rows_a(kWarpRows * kBytesK), rows_b;
    if (op.footprint_a)
        read_rows(block, *op.footprint_a, options.mn_major_a, kWarpRows, kWgmmaA, op.known, rows_a.data());
    for (std::size_t lane = 0; lane < op.a.size(); ++lane) place_a(rows_a.data(), lane, op.a[lane].data());
    if (options.negate_a) change_signs(rows_a, kind.a);
    std::vector<uint8_t>& accumulators = op.accumulators->rows;
    if (!op.form.scale_d) std::ranges::fill(accumulators, 0);
    const bool is_fp8 = kind.a == ptx::Type::e4m3 && kind.b == ptx::Type::e4m3 && kind.d == ptx::Type::f32;
    if (is_fp8 && !options.negate_b) {
        const DecodedOperand& b = decoded_b(block, op);
        current_cluster->config().multiply(kWarpRows, op.form.n, rows_a.data(), b.values.data(), b.exponents.data(),
                                           reinterpret_cast<float*>(accumulators.data()));
    } else {
        rows_b.resize(n * kBytesK);
        read_rows(block, *op.footprint_b, options.mn_major_b, n, kWgmmaB, op.known, rows_b.data());
        if (options.negate_b) change_signs(rows_b, kind.b);
        multiply(0, kind, op.form.n, rows_a.data(), rows_b.data(), accumulators.data());
    }
    ++queue.executed;
    current_cluster->record(Event::wgmma_executed, block, -1,
                            op.form.a_in_registers ? 0 : Descriptor(op.form.desc_a).start, op.form.n);
}

// All four warps of a warpgroup must issue the same WGMMA: the first to issue it is what the others are compared with.
inline void check_warpgroup(Block& block, int warp, int64_t number, const WgmmaForm& form) {
    auto& issued = block.warpgroup_wgmmas[static_cast<std::size_t>(warp / 4)];
    const auto [found, first] = issued.try_emplace(number, form, 0);
    auto& [theirs, warps] = found->second;
    if (!(theirs == form))
        fail(Fault::divergent_warpgroup,
             "wgmma number %lld differs from the one that another warp of its warpgroup issued",
             static_cast<long long>(number));
    if (++warps == 4) issued.erase(found);
}

// wgmma reads and writes registers some time later, so what a thread did to them before must lie before wgmma.fence.
inline void check_fenced(const Thread& thread, const uint32_t* registers, std::size_t count, const char* what) {
    const auto begin = reinterpret_cast<uintptr_t>(registers), end = begin + count * sizeof(uint32_t);
    for (const auto& [address, bytes] : thread.written_since_fence)
        if (address < end && address + bytes > begin)
            fail(Fault::missing_wgmma_fence,
                 "wgmma after %s register %lld was written behind wgmma.fence: fence after that", what,
                 static_cast<long long>((std::max(address, begin) - begin) / sizeof(uint32_t)));
}

// A lane issues a WGMMA without wgmma.fence. Where other lanes of its warp have come to one in the place of its next
// aligned instruction, or come to it soon, the fence is there, and the warp has diverged.
inline void check_fence_of_others(const Thread& thread) {
    NumberedQueue<Aligned>& queue = thread.block->aligned[static_cast<std::size_t>(thread.warp())];
    constexpr int kTurns = 256;
    for (int turn = 0; turn < kTurns && thread.aligned == queue.end(); ++turn) current_cluster->yield();
    if (thread.aligned != queue.end() && !std::strcmp(queue[thread.aligned].what, "wgmma.fence"))
        fail_race(Fault::divergent_warp, 0, queue[thread.aligned].from,
                  "executes wgmma without wgmma.fence, which other lanes of its warp execute: all lanes must execute "
                  "it together");
}

// A lane issues a WGMMA on accumulators that no WGMMA in flight has. PTX asks for wgmma.fence, unless nothing has
// touched them since the wait for one of the same shape.
inline void check_fence(Thread& thread, ptx::Type type, const uint32_t* d, std::size_t count) {
    const auto same = [&](const Accumulator& one) { return one.home == d && one.count == count && one.type == type; };
    if (!std::erase_if(thread.rested, same) && !thread.wgmma_fenced) {
        check_fence_of_others(thread);
        fail(Fault::missing_wgmma_fence, "wgmma without wgmma.fence after the accumulators were last touched");
    }
    check_fenced(thread, d, count, "accumulator");
}

// The number in the cluster of the first warp of a thread's warpgroup.
inline uint32_t first_warp(const Thread& thread) {
    return (thread.number - static_cast<uint32_t>(thread.index % 128)) / 32;
}

// wgmma.commit_group of one lane, of its first `count` WGMMAs.
inline void commit_wgmmas(Thread& thread, int64_t count) {
    WgmmaProgress& progress = thread.block->wgmma_progress[static_cast<std::size_t>(thread.warp() / 4)];
    progress.committed = std::max(progress.committed, count);
    const Moment moment = current_cluster->moment(Cluster::Unit::wgmma_commit, first_warp(thread), count);
    current_cluster->learn(thread.known, moment, progress.told_committed);
}

// What a warp's WGMMA reads in shared memory.
inline Operand operand_a(const WgmmaForm& form, int warp) {
    const uint32_t first = static_cast<uint32_t>(warp % 4) * kWarpRows;
    return {kWgmmaA, form.desc_a, form.kind.options.mn_major_a, first, first + kWarpRows};
}
inline Operand operand_b(const WgmmaForm& form) {
    return {kWgmmaB, form.desc_b, form.kind.options.mn_major_b, 0, static_cast<uint32_t>(form.n)};
}

// The first lane of a warp issues a WGMMA, its warpgroup's `number`th, counted from 0: from here on, the operands are
// read at some moment.
inline void begin_reads(const Thread& thread, WgmmaOp& op, int64_t number) {
    const Cluster& cluster = *thread.cluster;
    Block& block = *thread.block;
    const int warpgroup = thread.warp() / 4;
    AsyncRead read{.who = kWgmmaA,
                   .from = thread.from,
                   .warp = warpgroup * 4,
                   .issued = cluster.moment(Cluster::Unit::wgmma_commit, first_warp(thread), number + 1),
                   .done = cluster.moment(Cluster::Unit::wgmma_wait, first_warp(thread), number + 1),
                   .progress = &block.wgmma_progress[static_cast<std::size_t>(warpgroup)],
                   .number = number + 1};
    if (!op.form.a_in_registers) {
        op.footprint_a = &block.memory.footprint(operand_a(op.form, thread.warp()));
        block.memory.begin_read(*op.footprint_a, read);
    }
    read.who = kWgmmaB;
    op.footprint_b = &block.memory.footprint(operand_b(op.form));
    block.memory.begin_read(*op.footprint_b, read);
}

// A warp has issued a WGMMA: whether it reads its operands as they were loaded.
inline void note_misfits(const Block& block, int warp, const WgmmaOp& op) {
    const auto misfit = [&](const Operand& operand, ptx::Type type, Footprint& footprint) {
        return current_cluster->layouts.misfit(operand, type, footprint, block.layouts, block.memory);
    };
    const MatrixKind& kind = op.form.kind;
    if (op.footprint_a)
        note_misfit("a WGMMA", " reads its A", misfit(operand_a(op.form, warp), kind.a, *op.footprint_a));
    note_misfit("a WGMMA", " reads its B", misfit(operand_b(op.form), kind.b, *op.footprint_b));
}

// One lane issues a WGMMA. When the last of the warp's 32 lanes has done so, the tensor core may execute it.
void issue_wgmma(const MatrixKind& kind, uint32_t* d, int64_t n, const uint32_t* a, uint64_t desc_a, uint64_t desc_b,
                 bool scale_d) {
    EMULATOR_ENTER;
    Thread& thread = self();
    Cluster& cluster = *thread.cluster;
    Block& block = *thread.block;
    const int warp = thread.warp();
    if (static_cast<int>(block.threads.size()) < (warp / 4 + 1) * 128)
        fail(Fault::divergent_warpgroup, "wgmma needs a whole warpgroup: four warps, the first a multiple of 4");
    if (!cluster.config().mma) fail(Fault::unsupported, "wgmma: no tensor core was configured");
    WgmmaQueue& queue = block.wgmmas[static_cast<std::size_t>(warp)];
    const auto lane = static_cast<std::size_t>(thread.lane());
    const auto count = static_cast<std::size_t>(kind.d == ptx::Type::f16 ? n / 4 : n / 2);
    auto accumulator = std::ranges::find(thread.accumulators, d, &Accumulator::home);
    const bool is_fresh = accumulator == thread.accumulators.end();
    if (is_fresh) check_fence(thread, kind.d, d, count);  // before the warp is told of the WGMMA, as others may go on
    const int64_t number = thread.wgmmas++;
    const WgmmaForm form{kind, n, desc_a, desc_b, scale_d, a != nullptr};
    const bool is_first = number == queue.ops.end();
    if (is_first) {
        check_warpgroup(block, warp, number, form);
        WgmmaOp& op = queue.ops.push_back({.form = form, .from = thread.from});
        if (a) op.a.resize(32);
    }
    WgmmaOp& op = queue.ops[number];
    if (!(op.form == form))
        fail(Fault::divergent_warp, "wgmma number %lld differs from its warp's", static_cast<long long>(number));

    if (is_fresh) {
        if (scale_d) check_initialised(kind.d, d, count, "wgmma adds to", "accumulator");
        if (!op.accumulators) op.accumulators = queue.take_tile(count * 32 * sizeof(uint32_t));
        ++op.accumulators->lanes;
        if (scale_d)
            move_accumulators<true>(kind.d, lane, static_cast<std::size_t>(n), d, op.accumulators->rows.data());
        thread.accumulators.push_back({d, count, op.accumulators, kind.d, 0, nullptr, {}});
        if (lane == 0) record_flight(thread, queue, thread.accumulators.back(), n);
        accumulator = std::prev(thread.accumulators.end());
        std::fill_n(d, count, poison(kind.d));
    }
    if (!op.accumulators) op.accumulators = accumulator->tile;
    if (op.accumulators != accumulator->tile || count != accumulator->count)
        fail(Fault::divergent_warp, "wgmma number %lld has other accumulators in flight than its warp's",
             static_cast<long long>(number));
    accumulator->last_op = number;
    accumulator->from = thread.from;
    if (a) {
        check_fenced(thread, a, 4, "A's");
        check_initialised(kind.a, a, 4, "wgmma reads", "A's");
        std::copy_n(a, 4, op.a[lane].begin());
    }
    if (lane == 0) cluster.record(Event::wgmma, block, thread.index, a ? 0 : Descriptor(desc_a).start, n);

    if (is_first) begin_reads(thread, op, number);
    if (is_first || thread.known != op.waited_for_loads) {
        if (!a) block.memory.wait_for_load(op.footprint_a->chunks.front() + kSharedBase, kWgmmaA, thread);
        block.memory.wait_for_load(op.footprint_b->chunks.front() + kSharedBase, kWgmmaB, thread);
        op.waited_for_loads = thread.known;
    }
    cluster.join(op.known, thread.known);
    if (++op.lanes == 32) {
        ++queue.issued;
        note_misfits(block, warp, op);
        if (cluster.orders()) {
            const Issuer lanes{op.known, thread.number / 32 * 32, 32};
            if (!a) block.memory.order_read(*op.footprint_a, kWgmmaA, lanes);
            block.memory.order_read(*op.footprint_b, kWgmmaB, lanes);
        }
        cluster.later({block.index, warp, -1}, [&block, warp] {  // as small as std::function keeps without allocating
            const WgmmaQueue& queue = block.wgmmas[static_cast<std::size_t>(warp)];
            if (queue.executed < queue.issued) execute_next_wgmma(block, warp);
        });
        cluster.wake(queue.waiters);
        cluster.maybe_yield();
    }
}

// The first `target` WGMMAs of a warpgroup read no more.
inline void end_reads(Block& block, int first_warp, int64_t target) {
    const WgmmaProgress* progress = &block.wgmma_progress[static_cast<std::size_t>(first_warp / 4)];
    for (int warp = first_warp; warp < first_warp + 4; ++warp) {
        WgmmaQueue& queue = block.wgmmas[static_cast<std::size_t>(warp)];
        for (int64_t number = progress->waited; number < target; ++number) {
            const WgmmaOp& done = queue.ops[number];
            if (done.footprint_a) block.memory.end_read(*done.footprint_a, progress);
            block.memory.end_read(*done.footprint_b, progress);
        }
    }
}

// A wgmma-group is of the warpgroup, and is complete when all four warps' parts are. So who waits for it waits for the
// other warps, too, and one warp's wait is enough to release what all four have read.
inline void finish_wgmmas(Thread& thread, int64_t target) {
    Block& block = *thread.block;
    const int first = thread.warp() / 4 * 4;
    WgmmaProgress& progress = block.wgmma_progress[static_cast<std::size_t>(first / 4)];
    for (int warp = first; warp < first + 4 && progress.waited < target; ++warp) {
        WgmmaQueue& queue = block.wgmmas[static_cast<std::size_t>(warp)];
        while (queue.issued < target) {
            if (!block.alive[static_cast<std::size_t>(warp)]) fail_without_wgmma();
            current_cluster->block_on(queue.waiters, {"the rest of its warpgroup to issue a wgmma"});
        }
        while (queue.executed < target) execute_next_wgmma(block, warp);
    }
    if (progress.waited < target) end_reads(block, first, target);
    progress.waited = std::max(progress.waited, target);
    const Moment moment = current_cluster->moment(Cluster::Unit::wgmma_wait, first_warp(thread), target);
    current_cluster->learn(thread.known, moment, progress.told_waited);
}

// wgmma.wait_group of one lane: its warp goes on when at most `in_flight` of its groups are unfinished.
void wait_wgmma(int in_flight, int place) {
    EMULATOR_ENTER;
    together("wgmma.wait_group", place);
    Thread& thread = self();
    Cluster& cluster = *thread.cluster;
    Block& block = *thread.block;
    if (thread.lane() == 0) cluster.record(Event::wgmma_wait, block, thread.index, 0, in_flight);
    NumberedQueue<int64_t>& groups = thread.wgmma_groups;
    if (const int64_t done = groups.end() - in_flight; done > groups.begin()) {
        const int64_t target = groups[done - 1];
        finish_wgmmas(thread, target);
        while (groups.begin() < done) groups.pop_front();
        WgmmaQueue& queue = block.wgmmas[static_cast<std::size_t>(thread.warp())];
        for (; thread.wgmmas_waited < target; ++thread.wgmmas_waited) {
            if (++queue.ops[thread.wgmmas_waited].waited == 32) queue.ops.pop_front();
        }
        std::erase_if(thread.accumulators, [&](const Accumulator& accumulator) {
            if (accumulator.last_op >= target) return false;
            const std::span registers(accumulator.home, accumulator.count);
            const uint32_t held = poison(accumulator.type);
            uint32_t differ = 0;
            for (const uint32_t bits : registers) differ |= bits ^ held;
            for (std::size_t i = 0; differ && i < registers.size(); ++i)
                if (registers[i] != held)
                    fail(Fault::accumulator_overwritten,
                         "accumulator register %zu was written while a WGMMA was in flight", i);
            AccumulatorTile& tile = *accumulator.tile;
            const std::size_t columns = accumulator.count * (accumulator.type == ptx::Type::f16 ? 4 : 2);
            move_accumulators<false>(accumulator.type, static_cast<std::size_t>(thread.lane()), columns,
                                     accumulator.home, tile.rows.data());
            if (accumulator.row) record_values(cluster, accumulator);
            if (--tile.lanes == 0) queue.free_tiles.push_back(&tile);
            thread.wgmma_fenced = false;
            thread.rested.push_back(accumulator);
            return true;
        });
        thread.watch();
    }
    if (thread.lane() == 0) cluster.record(Event::wgmma_pass, block, thread.index, 0, in_flight);
}

// mma.sync of one lane: the warp computes all of it, in one step, when all lanes have brought their operands.
void mma_sync(const MatrixKind& kind, uint32_t* d, const uint32_t* a, const uint32_t* b) {
    EMULATOR_ENTER;
    const Thread& thread = self();
    if (!current_cluster->config().mma) fail(Fault::unsupported, "mma.sync: no tensor core was configured");
    const bool halves = kind.d == ptx::Type::f16;
    check_initialised(kind.a, a, 4, "mma.sync reads", "A's");
    check_initialised(kind.b, b, 2, "mma.sync reads", "B's");
    check_initialised(kind.d, d, halves ? 2 : 4, "mma.sync adds to", "accumulator");
    const auto pair = [](uint32_t low, uint32_t high) { return static_cast<uint64_t>(high) << 32 | low; };
    const Slots& lanes = exchange("mma.sync", {pair(a[0], a[1]), pair(a[2], a[3]), pair(b[0], b[1]), pair(d[0], d[1]),
                                               halves ? 0 : pair(d[2], d[3])});
    MmaResult& result = thread.block->mmas[thread.warp()];
    if (result.taken == 0) {
        std::array<uint8_t, kWarpRows * kBytesK> rows_a;
        std::array<uint8_t, 8 * kBytesK> rows_b;
        for (std::size_t lane = 0; lane < 32; ++lane) {
            uint32_t words[10];
            std::memcpy(words, lanes[lane].data(), sizeof words);  // a, b, d
            place_a(rows_a.data(), lane, words);
            for (std::size_t i = 0; i < 2; ++i)
                std::memcpy(&rows_b[lane / 4 * kBytesK + lane % 4 * 4 + i * 16], &words[4 + i], sizeof words[0]);
            for_each_accumulator(kind.d, lane, 8, [&](std::size_t i, std::size_t at) {
                std::memcpy(&result.accumulators[at], &words[6 + i], sizeof words[0]);
            });
        }
        multiply(1, kind, 8, rows_a.data(), rows_b.data(), result.accumulators.data());
    }
    for_each_accumulator(kind.d, static_cast<std::size_t>(thread.lane()), 8, [&](std::size_t i, std::size_t at) {
        std::memcpy(&d[i], &result.accumulators[at], sizeof d[i]);
    });
    result.taken = (result.taken + 1) % 32;
}

}  // namespace emulator
