// The copy engine: moves boxes of a tensor, or contiguous bytes, between global and shared memory, some time after the
// instruction.
#pragma once

#include <span>

#include "reductions.hpp"
#include "transfers.hpp"

namespace emulator {

// No two blocks may write one element, nor two threads of a block that nothing orders, with other values. `known`: what
// the writer knew when it issued the store of `data`.
inline void check_once(const Piece& piece, const Thread& thread, const Writer& mine, const Known& known,
                       const uint8_t* data, const char* who) {
    const GlobalMemory& memory = *current_cluster->memory;
    const auto address = reinterpret_cast<uintptr_t>(piece.global);
    std::size_t number = 0;
    if (!memory.find(address, 1, number)) return;
    const auto ordered = [&](const Writer& other) { return knows(known, moment_of(thread, other)); };
    const auto other = memory.write(address, piece.bytes, number, mine, ordered);
    if (other && (other->block != mine.block || std::memcmp(piece.global, data, piece.bytes) != 0))
        fail_at(Fault::written_twice, address, "%s writes %s", who,
                memory.conflict(address, number, *other, mine.block).c_str());
}

// A load into one block (a multicast is one of these for each block). `read` has the pieces that it is given land, some
// time later. The first rows may land, and complete their bytes on the mbarrier, before the rest do; `landed` is called
// at the end.
inline void load(Block& block, const SharedTransfer& transfer, uint32_t barrier_address,
                 const std::function<void(std::span<const Piece>)>& read, const std::function<void()>& landed = {},
                 const Moment& moment = current_cluster->next_load()) {
    Cluster& cluster = *current_cluster;
    Mbarrier& barrier = mbarrier(block, barrier_address, "TMA load");
    if (!barrier.visible)
        fail_at(Fault::mbarrier_not_visible, barrier_address,
                "TMA load on %s, which the copy engine cannot see yet: %s", name_of(block, barrier_address).c_str(),
                why_not_visible(barrier).c_str());
    block.memory.begin_load(transfer->pieces, self(), moment, barrier_address);
    cluster.layouts.note_load(block.layouts, transfer->shared, transfer->bytes(), transfer->layout);
    const Load entry{++block.loads_issued, self().place(), self().from, barrier_address};
    block.loads.push_back(entry);
    barrier.loading += transfer->bytes();
    barrier.brought += transfer->bytes();
    const auto land = [&cluster, &block, transfer, barrier_address, read, landed, known = self().known, moment, entry](
                          uint32_t first, uint32_t last) {
        const Issued issued(entry.issuer, entry.from);
        const std::size_t in_row = transfer->pieces.size() / transfer->rows;
        read(std::span(transfer->pieces).subspan(first * in_row, (last - first) * in_row));
        if (last == transfer->rows) {
            block.end_load(entry.number);
            cluster.record(Event::tma_load_landed, block, -1, transfer->shared, transfer->bytes());
            if (landed) landed();
        }
        const auto bytes = static_cast<uint32_t>((last - first) * in_row) * kChunk;
        mbarrier(block, barrier_address, "TMA load").loading -= bytes;
        complete_bytes(block, barrier_address, bytes, known, moment);
    };
    const uint32_t split = cluster.random().chance(512) ? cluster.random().below(transfer->rows) : 0;
    const Place issuer = self().place();
    cluster.later(issuer, [&cluster, land, split, rows = transfer->rows, issuer] {
        if (!split) return land(0, rows);
        land(0, split);
        cluster.later(issuer, [land, split, rows] { land(split, rows); });
    });
}

// A load from global memory into each block of the mask.
inline void load_global(const SharedTransfer& transfer, uint32_t mbarrier, uint32_t mask) {
    Thread& thread = self();
    current_cluster->record(Event::tma_load, *thread.block, thread.index, transfer->shared, transfer->bytes());
    check_global(*transfer, false);
    for (uint32_t rank = 0; rank < 16; ++rank) {
        if (!(mask >> rank & 1)) continue;
        Block& block = remote_block((transfer->shared & kOffsetMask) | (rank + 1) << kRankShift, true);
        load(block, transfer, mbarrier, [&block](std::span<const Piece> pieces) { block.memory.land(pieces); });
    }
    current_cluster->maybe_yield();
}

// What a copy between blocks of the cluster is told. The mbarrier is of the block that it goes to.
inline Block& check_shared(const char* who, uint32_t remote, uint32_t shared, uint32_t bytes, uint32_t mbarrier) {
    Block& to = remote_block(remote, true);
    if (&remote_block(mbarrier, true) != &to)
        fail_at(Fault::invalid_operand, mbarrier,
                "%s %d completes bytes on an mbarrier of block %d: the two must be of one block", who, to.rank,
                remote_block(mbarrier).rank);
    if (shared % 16 || remote % 16 || bytes == 0 || bytes % 16)
        fail_at(Fault::misaligned, shared % 16 ? shared : remote,
                "%s of %u bytes from 0x%x to 0x%x: multiples of 16 are needed", who, bytes, shared, remote);
    return to;
}

// The thread issues a copy of `bytes` bytes of its block's shared memory; `done`: the moment that its end is.
// `number`: AsyncRead::number.
inline void begin_read(const Thread& thread, const char* who, uint32_t shared, uint32_t bytes, const Moment& done,
                       int64_t number = 0) {
    const AsyncRead read{
        .who = who, .from = thread.from, .warp = thread.warp(), .issued = thread.now(), .done = done, .number = number};
    thread.block->memory.begin_read(shared, bytes, read, thread);
}

// From the calling thread's block to a block of the cluster, whose mbarrier counts the bytes.
inline void load_shared(uint32_t remote, uint32_t shared, uint32_t bytes, uint32_t mbarrier) {
    static constexpr char kWho[] = "cp.async.bulk to block";
    Thread& thread = self();
    Block& from = *thread.block;
    Block& to = check_shared(kWho, remote, shared, bytes, mbarrier);
    auto transfer = std::make_shared<Transfer>(Transfer{kWho, remote & kOffsetMask, bytes / 16, {}});
    for (uint32_t at = 0; at < bytes; at += 16) transfer->pieces.push_back({transfer->shared + at, nullptr, 0, 16});
    const Moment moment = current_cluster->next_load();
    begin_read(thread, kWho, shared, bytes, moment);
    current_cluster->record(Event::tma_load, from, thread.index, remote, bytes);
    const auto read = [&from, &to, shared, begin = transfer->shared, known = thread.known](auto pieces) {
        for (const Piece& piece : pieces)
            to.memory.land(piece.shared, from.memory.async_read(shared + piece.shared - begin, kWho, known).data());
    };
    const auto landed = [&from, shared, bytes] {
        for (uint32_t at = 0; at < bytes; at += 16) from.memory.end_read(shared + at);
    };
    load(to, transfer, mbarrier & kOffsetMask, read, landed, moment);
    current_cluster->maybe_yield();
}

// How a store writes: the type of elements and what to make of them; or nothing, to overwrite.
struct Combination {
    Reduction reduction;
    Element element;
};

// A store, in two steps that happen later: shared memory is read, then global memory is written, or combined with.
inline void store(const SharedTransfer& transfer, std::optional<Combination> combination = std::nullopt) {
    Cluster& cluster = *current_cluster;
    Thread& thread = self();
    Block& block = *thread.block;
    auto store = std::make_shared<Store>();
    auto data = std::make_shared<std::vector<Chunk>>();
    store->done = cluster.next_store();
    store->number = cluster.stores_issued();
    store->from = thread.from;
    check_global(*transfer, true);
    for (const Piece& piece : transfer->pieces)
        begin_read(thread, transfer->who, piece.shared, kChunk, store->done, store->number);
    store->read = [&cluster, &block, data, transfer, known = thread.known, issuer = thread.place(),
                   store = store.get()] {
        if (store->has_read) return;
        const Issued issued(issuer, store->from);
        store->has_read = true;
        data->reserve(transfer->pieces.size());
        for (const Piece& piece : transfer->pieces) {
            data->push_back(block.memory.async_read(piece.shared, transfer->who, known));
            block.memory.end_read(piece.shared);
        }
        cluster.record(Event::tma_store_read, block, -1, transfer->shared, transfer->bytes());
    };
    store->write = [&cluster, &block, &thread, data, transfer, combination, mine = writer(thread), known = thread.known,
                    issuer = thread.place(), store = store.get()] {
        store->read();
        if (store->has_written) return;
        store->has_written = true;
        const Issued issued(issuer, store->from);
        for (std::size_t i = 0; i < transfer->pieces.size(); ++i) {
            const Piece& piece = transfer->pieces[i];
            if (!piece.bytes) continue;
            const uint8_t* from = &(*data)[i][piece.begin];
            if (!combination) check_once(piece, thread, mine, known, from, transfer->who);
            if (combination)
                reduce(combination->reduction, combination->element, piece.global, from, piece.bytes);
            else
                std::memcpy(piece.global, from, piece.bytes);
        }
        cluster.record(Event::tma_store_written, block, -1, transfer->shared, transfer->bytes());
    };
    thread.stores.push_back(store);
    cluster.record(Event::tma_store, block, thread.index, transfer->shared, transfer->bytes());
    const auto write = [store] { store->write(); };
    const auto read = [&cluster, store, write, issuer = thread.place()] {
        store->read();
        cluster.later(issuer, write, true);
    };
    cluster.later(thread.place(), read, true);
    cluster.maybe_yield();
}

inline void store_box(const TensorMap& map, uint32_t shared, const Coordinates& at,
                      std::optional<Combination> combination = std::nullopt) {
    check_box(map, "TMA store", shared, at, true);
    store(box_of(map, "TMA store", shared, at, true), combination);
}

// L2 is not modelled. The box must still be one that could be loaded.
inline void prefetch_box(const TensorMap& map, const Coordinates& at) {
    auto global = static_cast<int64_t>(reinterpret_cast<uintptr_t>(map.base));
    for (int i = 0; i < map.rank; ++i) global += at.at[i] * map.stride[i];
    check_rank(map, "TMA prefetch", static_cast<uint64_t>(global), at.rank);
    check_column(map, "TMA prefetch", static_cast<uint64_t>(global), at.at[0]);
}

// ------------------------------------------------------------------------ what ../cp_async_bulk.cuh declares

void load_tensor(uint32_t shared, const TensorMap* map, uint32_t mbarrier, const Coordinates& at, uint32_t mask) {
    EMULATOR_ENTER;
    check_box(*map, "TMA load", shared, at, false);
    load_global(box_of(*map, "TMA load", shared, at, false), mbarrier, mask);
}
void prefetch_tensor(const TensorMap* map, const Coordinates& at) {
    EMULATOR_ENTER;
    prefetch_box(*map, at);
}
void store_tensor(const TensorMap* map, uint32_t shared, const Coordinates& at) {
    EMULATOR_ENTER;
    store_box(*map, shared, at);
}
void reduce_tensor(Reduction reduction, const TensorMap* map, uint32_t shared, const Coordinates& at) {
    EMULATOR_ENTER;
    if (!has_reduction(reduction, map->element))
        fail_at(Fault::invalid_operand, shared, "a reduction that the copy engine does not have for %s elements",
                element_name(map->element));
    store_box(*map, shared, at, Combination{reduction, map->element});
}
void load_bulk(uint32_t shared, const void* global, uint32_t bytes, uint32_t mbarrier, uint32_t mask) {
    EMULATOR_ENTER;
    load_global(bytes_of("cp.async.bulk", shared, const_cast<void*>(global), bytes), mbarrier, mask);
}
// Several may be on their way to one word, so the words are not poisoned, and who reads them too early is not reported.
void reduce_shared(Reduction reduction, Element element, uint32_t remote, uint32_t shared, uint32_t bytes,
                   uint32_t barrier) {
    EMULATOR_ENTER;
    static constexpr char kWho[] = "cp.reduce.async.bulk to block";
    Cluster& cluster = *current_cluster;
    Thread& thread = self();
    Block& from = *thread.block;
    Block& to = check_shared(kWho, remote, shared, bytes, barrier);
    const uint32_t begin = remote & kOffsetMask, counted = barrier & kOffsetMask;
    if (const Mbarrier& on = mbarrier(to, counted, kWho); !on.visible)
        fail_at(Fault::mbarrier_not_visible, barrier, "%s %d on %s, which the copy engine cannot see yet: %s", kWho,
                to.rank, name_of(to, counted).c_str(), why_not_visible(on).c_str());
    const Moment moment = cluster.next_load();
    begin_read(thread, kWho, shared, bytes, moment);
    const Load entry{++to.loads_issued, thread.place(), thread.from, counted};
    to.loads.push_back(entry);
    cluster.record(Event::tma_load, from, thread.index, remote, bytes);
    cluster.later(thread.place(), [=, &cluster, &from, &to, known = thread.known] {
        const Issued issued(entry.issuer, entry.from);
        for (uint32_t at = 0; at < bytes; at += 16) {
            const Chunk data = from.memory.async_read(shared + at, kWho, known);
            Chunk sum = to.memory.async_read(begin + at, kWho, known);
            reduce(reduction, element, sum.data(), data.data(), sizeof sum);
            to.memory.land(begin + at, sum.data());
            from.memory.end_read(shared + at);
        }
        to.end_load(entry.number);
        cluster.record(Event::tma_load_landed, to, -1, begin, bytes);
        complete_bytes(to, counted, bytes, known, moment);
    });
    cluster.maybe_yield();
}
void reduce_bulk(Reduction reduction, Element element, void* global, uint32_t shared, uint32_t bytes) {
    EMULATOR_ENTER;
    store(bytes_of("cp.reduce.async.bulk", shared, global, bytes), Combination{reduction, element});
}

}  // namespace emulator

namespace ptx {

void cp_async_bulk_cluster(uint32_t remote, uint32_t shared, uint32_t bytes, uint32_t mbarrier) {
    EMULATOR_ENTER;
    emulator::load_shared(remote, shared, bytes, mbarrier);
}
void cp_async_bulk_store(void* global, uint32_t shared, uint32_t bytes) {
    EMULATOR_ENTER;
    emulator::store(emulator::bytes_of("cp.async.bulk", shared, global, bytes));
}
void cp_async_bulk_prefetch(const void* global, uint32_t bytes) {
    EMULATOR_ENTER;
    emulator::bytes_of("cp.async.bulk.prefetch", 0, const_cast<void*>(global), bytes);
}

}  // namespace ptx
