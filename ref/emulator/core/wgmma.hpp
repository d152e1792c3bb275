// WGMMA and mma.sync. Of a WGMMA, each of the warpgroup's four warps computes its own 16 rows, in its own tensor core,
// at some moment between issuing the instruction and the wait that covers it. Until that wait the accumulators hold
// NaN, so that a kernel which reads them too early gets a wrong result.
#pragma once

#include <algorithm>
#include <span>
#include <type_traits>

#include "../ptx.cuh"
#include "cluster.hpp"

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
            std::memcpy(to + number % rows * kBytesK + number / rows * SharedMemory::kChunk, chunk,
                        SharedMemory::kChunk);
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
    const WgmmaOp& op = queue.ops[static_cast<std::size_t>(queue.executed - queue.retired)];
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

inline std::string reader_of(const SharedMemory& memory, uint32_t address) {
    const auto reads = [chunk = (address - kSharedBase) / SharedMemory::kChunk *
                                SharedMemory::kChunk](const Footprint* operand) {
        return operand && std::ranges::find(operand->chunks, chunk) != operand->chunks.end();
    };
    for (Block& block : current_cluster->blocks) {
        if (&block.memory != &memory) continue;
        for (std::size_t warp = 0; warp < block.wgmmas.size(); ++warp) {
            const WgmmaQueue& queue = block.wgmmas[warp];
            for (std::size_t i = 0; i < queue.ops.size(); ++i) {
                if (!reads(queue.ops[i].footprint_a) && !reads(queue.ops[i].footprint_b)) continue;
                const auto& groups = block.threads[warp * 32]->wgmma_groups;
                const bool committed = !groups.empty() && groups.back() > queue.retired + static_cast<int64_t>(i);
                return ", by warp " + std::to_string(warp) + "'s WGMMA, which " +
                       (committed ? "wgmma.wait_group has not waited for"
                                  : "is in no group to wait for: wgmma.commit_group is missing");
            }
        }
        for (const Thread* thread : block.threads)
            for (const auto& store : thread->stores)
                if (!store->has_read)
                    return ", by thread " + std::to_string(thread->index) +
                           "'s TMA store, if it is the one that is in no group: cp.async.bulk.commit_group is missing";
    }
    return "";
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

// What a compiler puts into a variable that nothing has initialised (-ftrivial-auto-var-init=pattern): a float of
// -1.7e38, or a NaN, that no computation is likely to give.
#ifdef __clang__
constexpr uint32_t kUninitialised = 0xFFFFFFFF;
#else
constexpr uint32_t kUninitialised = 0xFEFEFEFE;
#endif
inline void check_initialised(const uint32_t* registers, std::size_t count, const char* who, const char* what) {
    const uint32_t* found = std::find(registers, registers + count, kUninitialised);
    if (found != registers + count)
        fail(Fault::uninitialised_register, "%s %s register %lld, which nothing has initialised", who, what,
             static_cast<long long>(found - registers));
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

// A lane issues a WGMMA without wgmma.fence. Where other lanes of its warp are in one, or come to one before they come
// to the WGMMA, the fence is there, and the warp has diverged.
inline void check_fence_of_others(const Thread& thread) {
    const Aligned& met = thread.block->aligned[static_cast<std::size_t>(thread.warp())];
    constexpr int kTurns = 256;
    for (int turn = 0; turn < kTurns && !met.lanes; ++turn) current_cluster->yield();
    if (met.lanes && !(met.lanes >> thread.lane() & 1) && !std::strcmp(met.what, "wgmma.fence"))
        fail_race(Fault::divergent_warp, 0, met.from,
                  "executes wgmma without wgmma.fence, which other lanes of its warp execute: all lanes must execute "
                  "it together");
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
    const int64_t number = thread.wgmmas++;
    const auto place = static_cast<std::size_t>(number - queue.retired);
    const WgmmaForm form{kind, n, desc_a, desc_b, scale_d, a != nullptr};
    if (place == queue.ops.size()) {
        check_warpgroup(block, warp, number, form);
        queue.ops.push_back({.form = form});
        if (a) queue.ops.back().a.resize(32);
    }
    WgmmaOp& op = queue.ops[place];
    if (!(op.form == form))
        fail(Fault::divergent_warp, "wgmma number %lld differs from its warp's", static_cast<long long>(number));

    const auto lane = static_cast<std::size_t>(thread.lane());
    const auto count = static_cast<std::size_t>(kind.d == ptx::Type::f16 ? n / 4 : n / 2);
    auto accumulator = std::ranges::find(thread.accumulators, d, &Accumulator::home);
    if (accumulator == thread.accumulators.end()) {
        const auto same = [&](const Accumulator& one) {
            return one.home == d && one.count == count && one.type == kind.d;
        };
        if (!std::erase_if(thread.rested, same) && !thread.wgmma_fenced) {
            check_fence_of_others(thread);
            fail(Fault::missing_wgmma_fence, "wgmma without wgmma.fence after the accumulators were last touched");
        }
        check_fenced(thread, d, count, "accumulator");
        if (scale_d) check_initialised(d, count, "wgmma adds to", "accumulator");
        if (!op.accumulators) op.accumulators = queue.take_tile(count * 32 * sizeof(uint32_t));
        ++op.accumulators->lanes;
        if (scale_d)
            move_accumulators<true>(kind.d, lane, static_cast<std::size_t>(n), d, op.accumulators->rows.data());
        thread.accumulators.push_back({d, count, op.accumulators, kind.d, 0, nullptr});
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
        check_initialised(a, 4, "wgmma reads", "A's");
        std::copy_n(a, 4, op.a[lane].begin());
    }
    if (lane == 0) cluster.record(Event::wgmma, block, thread.index, a ? 0 : Descriptor(desc_a).start, n);

    const uint32_t first = static_cast<uint32_t>(warp % 4) * kWarpRows;
    const Operand operand_a{kWgmmaA, desc_a, kind.options.mn_major_a, first, first + kWarpRows};
    const Operand operand_b{kWgmmaB, desc_b, kind.options.mn_major_b, 0, static_cast<uint32_t>(n)};
    if (!a) block.memory.wait_for_load(operand_a.begin(), kWgmmaA, thread);
    block.memory.wait_for_load(operand_b.begin(), kWgmmaB, thread);
    cluster.join(op.known, thread.known);
    if (++op.lanes == 32) {
        ++queue.issued;
        op.from = thread.from;
        op.footprint_a = a ? nullptr : &block.memory.footprint(operand_a);
        op.footprint_b = &block.memory.footprint(operand_b);
        AsyncRead reads{kWgmmaA,
                        thread.from,
                        warp / 4 * 4,
                        cluster.moment(Cluster::Unit::wgmma_commit, first_warp(thread), number + 1),
                        cluster.moment(Cluster::Unit::wgmma_wait, first_warp(thread), number + 1),
                        &block.wgmma_progress[static_cast<std::size_t>(warp / 4)]};
        const Issuer lanes{op.known, thread.number / 32 * 32, 32};
        if (!a) block.memory.begin_read(*op.footprint_a, reads, lanes);
        reads.who = kWgmmaB;
        block.memory.begin_read(*op.footprint_b, reads, lanes);
        cluster.later({block.index, warp, -1}, [&block, &queue, warp] {
            if (queue.executed < queue.issued) execute_next_wgmma(block, warp);
        });
        cluster.wake(queue.waiters);
    }
    cluster.maybe_yield();
}

// A wgmma-group is of the warpgroup, and is complete when all four warps' parts are. So who waits for it waits for the
// other warps, too, and one warp's wait is enough to release what all four have read.
inline void finish_wgmmas(Thread& thread, int64_t target) {
    Block& block = *thread.block;
    const int first = thread.warp() / 4 * 4;
    for (int warp = first; warp < first + 4; ++warp) {
        WgmmaQueue& queue = block.wgmmas[static_cast<std::size_t>(warp)];
        while (queue.issued < target) {
            if (!block.alive[static_cast<std::size_t>(warp)]) fail_without_wgmma();
            current_cluster->block_on(queue.waiters, {"the rest of its warpgroup to issue a wgmma"});
        }
        while (queue.executed < target) execute_next_wgmma(block, warp);
    }
    WgmmaProgress& progress = block.wgmma_progress[static_cast<std::size_t>(first / 4)];
    progress.waited = std::max(progress.waited, target);
    const Moment moment = current_cluster->moment(Cluster::Unit::wgmma_wait, first_warp(thread), target);
    current_cluster->learn(thread.known, moment, progress.told_waited);
}

// Of the warp's warpgroup, the first `target` WGMMAs read no more.
inline void end_reads(Block& block, int of, int64_t target) {
    for (int warp = of / 4 * 4; warp < of / 4 * 4 + 4; ++warp)
        for (WgmmaQueue& queue = block.wgmmas[static_cast<std::size_t>(warp)]; queue.read < target; ++queue.read) {
            const WgmmaOp& done = queue.ops[static_cast<std::size_t>(queue.read - queue.retired)];
            if (done.footprint_a) block.memory.end_read(*done.footprint_a);
            block.memory.end_read(*done.footprint_b);
        }
}

// wgmma.wait_group of one lane: its warp goes on when at most `in_flight` of its groups are unfinished.
void wait_wgmma(int in_flight, int line) {
    EMULATOR_ENTER;
    together("wgmma.wait_group", line);
    Thread& thread = self();
    Cluster& cluster = *thread.cluster;
    Block& block = *thread.block;
    if (thread.lane() == 0) cluster.record(Event::wgmma_wait, block, thread.index, 0, in_flight);
    const auto groups = static_cast<int64_t>(thread.wgmma_groups.size());
    if (groups > in_flight) {
        const int64_t target = thread.wgmma_groups[static_cast<std::size_t>(groups - in_flight - 1)];
        finish_wgmmas(thread, target);
        WgmmaQueue& queue = block.wgmmas[static_cast<std::size_t>(thread.warp())];
        for (; thread.wgmmas_waited < target; ++thread.wgmmas_waited) {
            if (++queue.ops[static_cast<std::size_t>(thread.wgmmas_waited - queue.retired)].waited < 32) continue;
            end_reads(block, thread.warp(), queue.retired + 1);
            queue.ops.pop_front();
            ++queue.retired;
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
            if (--tile.lanes == 0) queue.free_tiles.push_back(&tile);
            thread.wgmma_fenced = false;
            thread.rested.push_back(accumulator);
            return true;
        });
    }
    exchange("wgmma.wait_group", {});  // .sync.aligned: all lanes of the warp go on together
    if (thread.lane() == 0) cluster.record(Event::wgmma_pass, block, thread.index, 0, in_flight);
}

// mma.sync of one lane: the warp computes all of it, in one step, when all lanes have brought their operands.
void mma_sync(const MatrixKind& kind, uint32_t* d, const uint32_t* a, const uint32_t* b) {
    EMULATOR_ENTER;
    const Thread& thread = self();
    if (!current_cluster->config().mma) fail(Fault::unsupported, "mma.sync: no tensor core was configured");
    const bool halves = kind.d == ptx::Type::f16;
    check_initialised(a, 4, "mma.sync reads", "A's");
    check_initialised(b, 2, "mma.sync reads", "B's");
    check_initialised(d, halves ? 2 : 4, "mma.sync adds to", "accumulator");
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
