// The copy engine: moves boxes of a tensor between global and shared memory, some time after the instruction.
#pragma once

#include <algorithm>

#include "barriers.hpp"

struct TensorMap {
    uint8_t* base = nullptr;
    int64_t rows = 0, columns = 0;  // elements
    int64_t row_stride = 0;         // bytes
    uint32_t box_rows = 0, box_columns = 0;
    uint32_t element = 0;  // bytes
    uint32_t swizzle = 0;  // bytes of a swizzled row: 32, 64 or 128; 0: not swizzled
};

namespace emulator {

inline uint32_t box_bytes(const TensorMap& map) { return map.box_rows * map.box_columns * map.element; }

// Calls visit(shared address, row, column) for each 16-byte chunk of rows [first, last) of the box at (x, y): its place
// in shared memory, and the tensor's row and column of its first element, which may lie outside the tensor.
template <typename Visit>
void for_each_chunk(const TensorMap& map, uint32_t shared, int x, int y, uint32_t first, uint32_t last,
                    const Visit& visit) {
    const uint32_t row_bytes = map.box_columns * map.element;
    for (uint32_t r = first; r < last; ++r) {
        for (uint32_t byte = 0; byte < row_bytes; byte += SharedMemory::kChunk) {
            uint32_t address = shared + r * row_bytes + byte;
            if (map.swizzle) address ^= address >> 3 & (map.swizzle - 16);
            visit(address, y + static_cast<int64_t>(r), x + static_cast<int64_t>(byte / map.element));
        }
    }
}

// Calls copy(global address, byte in the chunk, bytes) for those bytes of the chunk at (row, column) that are inside
// the tensor, if there are any.
template <typename Copy>
void inside(const TensorMap& map, int64_t row, int64_t column, const Copy& copy) {
    if (row < 0 || row >= map.rows) return;
    const int64_t begin = std::max<int64_t>(column, 0);
    const int64_t end = std::min<int64_t>(column + SharedMemory::kChunk / map.element, map.columns);
    if (begin < end)
        copy(map.base + row * map.row_stride + begin * map.element, (begin - column) * map.element,
             static_cast<std::size_t>((end - begin) * map.element));
}

// An H100 reports an illegal instruction for a load or a store that does not keep this.
inline void check_column(const TensorMap& map, const char* who, uint64_t address, int x) {
    if (x * static_cast<int64_t>(map.element) % 16)
        fail_at(Fault::misaligned, address, "%s at column %d, byte %lld of the row: a multiple of 16 is needed", who, x,
                static_cast<long long>(x) * map.element);
}

inline void check_box(const TensorMap& map, const char* who, uint32_t shared, int x, int y, bool store) {
    // The copy engine needs 128 bytes; the kernels also rely on the swizzle pattern beginning where the tile begins.
    const uint32_t alignment = std::max(map.swizzle * 8, 128u);
    if (shared % alignment)
        fail_at(Fault::misaligned, shared, "%s at shared memory 0x%x, which is not a multiple of %u", who, shared,
                alignment);
    // Stricter than a GPU, where a thread may also rely on a barrier behind another thread's wait.
    if (!self().dependency_waited)
        fail_at(Fault::missing_dependency_wait, shared,
                "%s before griddepcontrol.wait, in a kernel that may begin before the one ahead has ended", who);
    check_column(map, who, shared, x);
    // For this, too, an H100 reports an illegal instruction.
    if (store && (x < 0 || y < 0))
        fail_at(Fault::invalid_operand, shared, "%s at row %d, column %d: a store may not begin before the tensor", who,
                y, x);
}

// A load into one block (a multicast is one of these for each block). Its first rows may land, and complete their
// bytes on the mbarrier, before the rest do.
inline void load_box(Block& block, uint32_t shared, const TensorMap& map, uint32_t barrier_address, int x, int y) {
    Cluster& cluster = *current_cluster;
    check_box(map, "TMA load", shared, x, y, false);
    if (!mbarrier(block, barrier_address, "TMA load").visible)
        fail_at(Fault::mbarrier_not_visible, barrier_address,
                "TMA load on mbarrier 0x%x, which the copy engine cannot see: fence.mbarrier_init after mbarrier.init",
                barrier_address);
    for_each_chunk(map, shared, x, y, 0, map.box_rows,
                   [&](uint32_t address, int64_t, int64_t) { block.memory.begin_load(address); });
    ++block.loads_in_flight;
    const auto land = [&cluster, &block, shared, map, barrier_address, x, y](uint32_t first, uint32_t last) {
        for_each_chunk(map, shared, x, y, first, last, [&](uint32_t address, int64_t row, int64_t column) {
            Chunk chunk{};  // elements outside the tensor arrive as zeros
            inside(map, row, column, [&](const uint8_t* global, int64_t at, std::size_t bytes) {
                std::memcpy(&chunk[static_cast<std::size_t>(at)], global, bytes);
            });
            block.memory.land(address, chunk);
        });
        const uint32_t bytes = (last - first) * map.box_columns * map.element;
        if (last == map.box_rows) {
            --block.loads_in_flight;
            cluster.record(Event::tma_load_landed, block, -1, shared, box_bytes(map));
        }
        complete_bytes(block, barrier_address, bytes);
    };
    const uint32_t split = cluster.random().chance(512) ? cluster.random().below(map.box_rows) : 0;
    const Place issuer = self().place();
    cluster.later(issuer, [&cluster, land, split, rows = map.box_rows, issuer] {
        if (!split) return land(0, rows);
        land(0, split);
        cluster.later(issuer, [land, split, rows] { land(split, rows); });
    });
}

// Global memory's FP32 numbers plus those of `data`. Unlike red.add.f32, of which PTX says so, an H200's copy engine
// does not take subnormal numbers for zero.
inline void add_floats(uint8_t* global, const uint8_t* data, std::size_t bytes) {
    for (std::size_t at = 0; at < bytes; at += sizeof(float)) {
        float sum, addend;
        std::memcpy(&sum, global + at, sizeof sum);
        std::memcpy(&addend, data + at, sizeof addend);
        sum += addend;
        std::memcpy(global + at, &sum, sizeof sum);
    }
}

// A store, in two steps that happen later: shared memory is read, then global memory is written, or with `add` added
// to.
inline void store_box(const TensorMap& map, uint32_t shared, int x, int y, bool add = false) {
    Cluster& cluster = *current_cluster;
    Thread& thread = self();
    Block& block = *thread.block;
    check_box(map, "TMA store", shared, x, y, true);
    auto store = std::make_shared<Store>();
    auto data = std::make_shared<std::vector<Chunk>>();
    const auto chunks = [map, shared, x, y](const auto& visit) {
        for_each_chunk(map, shared, x, y, 0, map.box_rows, visit);
    };
    chunks([&](uint32_t address, int64_t, int64_t) { block.memory.begin_read(address, "TMA store"); });
    store->read = [&cluster, &block, chunks, data, shared, map, store = store.get()] {
        if (store->has_read) return;
        store->has_read = true;
        chunks([&](uint32_t address, int64_t, int64_t) {
            data->push_back(block.memory.async_read(address, "TMA store"));
            block.memory.end_read(address);
        });
        cluster.record(Event::tma_store_read, block, -1, shared, box_bytes(map));
    };
    store->write = [&cluster, &block, chunks, data, shared, map, add, store = store.get()] {
        store->read();
        if (store->has_written) return;
        store->has_written = true;
        const Chunk* chunk = data->data();
        chunks([&](uint32_t, int64_t row, int64_t column) {
            inside(map, row, column, [&](uint8_t* global, int64_t at, std::size_t bytes) {
                const uint8_t* from = &(*chunk)[static_cast<std::size_t>(at)];
                add ? add_floats(global, from, bytes) : static_cast<void>(std::memcpy(global, from, bytes));
            });
            ++chunk;
        });
        cluster.record(Event::tma_store_written, block, -1, shared, box_bytes(map));
    };
    thread.stores.push_back(store);
    cluster.record(Event::tma_store, block, thread.index, shared, box_bytes(map));
    const auto write = [store] { store->write(); };
    const auto read = [&cluster, store, write, issuer = thread.place()] {
        store->read();
        cluster.later(issuer, write, true);
    };
    cluster.later(thread.place(), read, true);
}

}  // namespace emulator
