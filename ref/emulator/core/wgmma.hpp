// WGMMA and mma.sync. Of a WGMMA, each of the warpgroup's four warps computes its own 16 rows, in its own tensor core,
// at some moment between issuing the instruction and the wait that covers it. Until that wait the accumulators hold
// NaN, so that a kernel which reads them too early gets a wrong result.
#pragma once

#include <algorithm>

#include "../ptx.cuh"
#include "cluster.hpp"

namespace emulator {

constexpr uint32_t kWarpRows = 16;
constexpr uint32_t kBytesK = 32;  // one instruction's K, in bytes

// "Matrix Descriptor Format" (PTX ISA): where the elements of an operand lie.
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
    // K-major: where the 16-byte chunk of `row` that begins at `byte` of K, a multiple of 16, lies.
    uint32_t k_major(uint32_t row, uint32_t byte) const {
        if (swizzle == 0) return start + row / 8 * stride_offset + byte / 16 * leading_offset + row % 8 * 16;
        return swizzled(start + row / 8 * stride_offset + row % 8 * row_bytes() + byte);
    }
    // MN-major, elements of 16 bits: where the chunk of rows `row` to row + 7, a multiple of 8, at `k` lies.
    uint32_t mn_major(uint32_t row, uint32_t k) const {
        if (swizzle == 0) return start + row / 8 * stride_offset + k / 8 * leading_offset + k % 8 * 16;
        const uint32_t rows = row_bytes() / 2;
        return swizzled(start + row / rows * leading_offset + k / 8 * stride_offset + k % 8 * row_bytes() +
                        row % rows * 2);
    }

  private:
    uint32_t row_bytes() const { return 256u >> swizzle; }  // 128, 64, 32
    uint32_t swizzled(uint32_t address) const { return address ^ ((address >> 7 & (row_bytes() / 16 - 1)) << 4); }
};

// Calls visit(shared address, row, byte of K) for every chunk of the rows from `first` to `last` of an operand. A chunk
// is 16 bytes of one row; if the operand is MN-major, 2 bytes of each of 8 rows.
template <typename Visit>
void for_each_chunk_of(uint64_t bits, bool mn_major, uint32_t first, uint32_t last, const Visit& visit) {
    const Descriptor descriptor(bits);
    if (mn_major) {
        for (uint32_t k = 0; k < kBytesK / 2; ++k)
            for (uint32_t row = first; row < last; row += 8) visit(descriptor.mn_major(row, k), row - first, k * 2);
    } else {
        for (uint32_t byte = 0; byte < kBytesK; byte += SharedMemory::kChunk)
            for (uint32_t row = first; row < last; ++row) visit(descriptor.k_major(row, byte), row - first, byte);
    }
}

// Calls visit(who, shared address, operand (0 = A, 1 = B), row, byte of K) for every chunk that the warp reads: its own
// 16 rows of A, unless they are in registers, and all of B.
template <typename Visit>
void for_each_operand_chunk(const WgmmaForm& form, int warp, const Visit& visit) {
    const uint32_t first = static_cast<uint32_t>(warp % 4) * kWarpRows;
    const auto visit_operand = [&](int operand) {
        return [&visit, operand](uint32_t address, uint32_t row, uint32_t byte) {
            visit(operand ? "wgmma (B)" : "wgmma (A)", address, operand, row, byte);
        };
    };
    const ptx::WgmmaOptions& options = form.kind.options;
    if (!form.a_in_registers)
        for_each_chunk_of(form.desc_a, options.mn_major_a, first, first + kWarpRows, visit_operand(0));
    for_each_chunk_of(form.desc_b, options.mn_major_b, 0, static_cast<uint32_t>(form.n), visit_operand(1));
}

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

inline void execute_next_wgmma(Block& block, int warp) {
    WgmmaQueue& queue = block.wgmmas[static_cast<std::size_t>(warp)];
    const WgmmaOp& op = queue.ops[static_cast<std::size_t>(queue.executed - queue.retired)];
    const MatrixKind& kind = op.form.kind;
    const auto n = static_cast<std::size_t>(op.form.n);
    thread_local std::vector<uint8_t> operands[2], acc;
    operands[0].resize(kWarpRows * kBytesK);
    operands[1].resize(n * kBytesK);
    acc.assign(kWarpRows * n * static_cast<std::size_t>(ptx::type_bytes(kind.d)), 0);
    for_each_operand_chunk(op.form, warp,
                           [&](const char* who, uint32_t address, int operand, uint32_t row, uint32_t byte) {
                               const Chunk chunk = block.memory.async_read(address, who, op.known);
                               uint8_t* to = &operands[operand][row * kBytesK + byte];
                               if (operand ? kind.options.mn_major_b : kind.options.mn_major_a)
                                   for (std::size_t i = 0; i < 8; ++i) std::memcpy(to + i * kBytesK, &chunk[i * 2], 2);
                               else
                                   std::ranges::copy(chunk, to);
                           });
    if (op.form.a_in_registers)
        for (std::size_t lane = 0; lane < 32; ++lane) place_a(operands[0].data(), lane, op.a[lane].data());
    if (kind.options.negate_a) change_signs(operands[0], kind.a);
    if (kind.options.negate_b) change_signs(operands[1], kind.b);
    for (std::size_t lane = 0; lane < 32 && op.form.scale_d; ++lane)
        for_each_accumulator(kind.d, lane, n, [&](std::size_t i, std::size_t at) {
            std::memcpy(&acc[at], &op.accumulator[lane][i], sizeof(uint32_t));
        });
    multiply(0, kind, op.form.n, operands[0].data(), operands[1].data(), acc.data());
    for (std::size_t lane = 0; lane < 32; ++lane)
        for_each_accumulator(kind.d, lane, n, [&](std::size_t i, std::size_t at) {
            std::memcpy(&op.accumulator[lane][i], &acc[at], sizeof(uint32_t));
        });
    ++queue.executed;
    current_cluster->record(Event::wgmma_executed, block, -1,
                            op.form.a_in_registers ? 0 : Descriptor(op.form.desc_a).start, op.form.n);
}

inline std::string reader_of(const SharedMemory& memory, uint32_t address) {
    for (Block& block : current_cluster->blocks) {
        if (&block.memory != &memory) continue;
        for (std::size_t warp = 0; warp < block.wgmmas.size(); ++warp) {
            const WgmmaQueue& queue = block.wgmmas[warp];
            for (std::size_t i = 0; i < queue.ops.size(); ++i) {
                bool reads = false;
                for_each_operand_chunk(queue.ops[i].form, static_cast<int>(warp),
                                       [&](const char*, uint32_t at, int, uint32_t, uint32_t) {
                                           reads = reads || at / SharedMemory::kChunk == address / SharedMemory::kChunk;
                                       });
                if (!reads) continue;
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

// One lane issues a WGMMA. When the last of the warp's 32 lanes has done so, the tensor core may execute it.
void issue_wgmma(const MatrixKind& kind, uint32_t* d, int64_t n, const uint32_t* a, uint64_t desc_a, uint64_t desc_b,
                 bool scale_d) {
    EMULATOR_ENTER;
    Cluster& cluster = *current_cluster;
    Thread& thread = self();
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
        queue.ops.push_back({form, 0, 0, {}, {}, {}});
        if (a) queue.ops.back().a.resize(32);
    }
    WgmmaOp& op = queue.ops[place];
    if (!(op.form == form))
        fail(Fault::divergent_warp, "wgmma number %lld differs from its warp's", static_cast<long long>(number));

    auto accumulator = std::ranges::find(thread.accumulators, d, &Accumulator::home);
    if (accumulator == thread.accumulators.end()) {
        const auto count = static_cast<std::size_t>(kind.d == ptx::Type::f16 ? n / 4 : n / 2);
        if (!thread.wgmma_fenced)
            fail(Fault::missing_wgmma_fence, "wgmma without wgmma.fence after the accumulators were last touched");
        check_fenced(thread, d, count, "accumulator");
        if (scale_d) check_initialised(d, count, "wgmma adds to", "accumulator");
        const uint32_t poison = kind.d == ptx::Type::f16 ? 0x7FFF7FFF : __float_as_uint(NAN);
        thread.accumulators.push_back({d, std::vector<uint32_t>(d, d + count), 0, poison});
        accumulator = std::prev(thread.accumulators.end());
        std::fill_n(d, count, poison);
    }
    accumulator->last_op = number;
    const auto lane = static_cast<std::size_t>(thread.lane());
    op.accumulator[lane] = accumulator->value.data();
    if (a) {
        check_fenced(thread, a, 4, "A's");
        check_initialised(a, 4, "wgmma reads", "A's");
        std::copy_n(a, 4, op.a[lane].begin());
    }
    if (lane == 0) cluster.record(Event::wgmma, block, thread.index, a ? 0 : Descriptor(desc_a).start, n);

    const auto wait_for_load = [&](uint64_t bits, bool mn_major, uint32_t row, const char* who) {
        const Descriptor descriptor(bits);
        block.memory.wait_for_load(mn_major ? descriptor.mn_major(row, 0) : descriptor.k_major(row, 0), who, thread);
    };
    if (!a) wait_for_load(desc_a, kind.options.mn_major_a, static_cast<uint32_t>(warp % 4) * kWarpRows, "wgmma (A)");
    wait_for_load(desc_b, kind.options.mn_major_b, 0, "wgmma (B)");
    op.known = thread.known;
    if (++op.lanes == 32) {
        ++queue.issued;
        for_each_operand_chunk(form, warp, [&](const char* who, uint32_t address, int, uint32_t, uint32_t) {
            block.memory.begin_read(address, who);
        });
        cluster.later({block.index, warp, -1}, [&block, &queue, warp] {
            if (queue.executed < queue.issued) execute_next_wgmma(block, warp);
        });
        cluster.wake(queue.waiters);
    }
    cluster.maybe_yield();
}

// wgmma.wait_group of one lane: its warp goes on when at most `in_flight` of its groups are unfinished.
void wait_wgmma(int in_flight, int line) {
    EMULATOR_ENTER;
    together("wgmma.wait_group", line);
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
            for_each_operand_chunk(
                queue.ops.front().form, thread.warp(),
                [&](const char*, uint32_t address, int, uint32_t, uint32_t) { block.memory.end_read(address); });
            queue.ops.pop_front();
            ++queue.retired;
        }
        std::erase_if(thread.accumulators, [&](const Accumulator& accumulator) {
            if (accumulator.last_op >= target) return false;
            for (std::size_t i = 0; i < accumulator.value.size(); ++i) {
                if (accumulator.home[i] != accumulator.poison)
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
