// What one instruction of the copy engine is to move, and whether it may: the pieces of a box of a tensor, or
// contiguous bytes.
#pragma once

#include <algorithm>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "../cp_async_bulk.cuh"
#include "barriers.hpp"

namespace emulator {

// 16 bytes of shared memory, and which of them lie in the tensor: `bytes` from `begin` on; 0: none.
struct Piece {
    uint32_t shared;
    uint8_t* global;  // of byte `begin`
    uint32_t begin, bytes;
};

// What one instruction moves: the pieces of a box, row by row.
struct Transfer {
    const char* who;
    uint32_t shared, rows;  // rows: of which some may land before others
    std::vector<Piece> pieces;
    std::optional<Layout> layout{};  // in shared memory, of a box

    uint32_t bytes() const { return static_cast<uint32_t>(pieces.size()) * kChunk; }
};
using SharedTransfer = std::shared_ptr<const Transfer>;

// An H100 reports an illegal instruction for a load or a store that does not keep this.
inline void check_column(const TensorMap& map, const char* who, uint64_t address, int x) {
    const auto element = static_cast<int64_t>(element_bytes(map.element));
    if (x * element % 16)
        fail_at(Fault::misaligned, address, "%s at column %d, byte %lld of the row: a multiple of 16 is needed", who, x,
                static_cast<long long>(x * element));
}

inline void check_rank(const TensorMap& map, const char* who, uint64_t address, int rank) {
    if (map.rank != rank)
        fail_at(Fault::invalid_operand, address, "%s with %d coordinates, and a tensor map of %d dimensions", who, rank,
                map.rank);
}

// Stricter than a GPU, where a thread may also rely on a barrier behind another thread's wait.
inline void check_dependency(const char* who, uint32_t shared) {
    if (!self().dependency_waited)
        fail_at(Fault::missing_dependency_wait, shared,
                "%s before griddepcontrol.wait, in a kernel that may begin before the one ahead has ended", who);
}

inline void check_box(const TensorMap& map, const char* who, uint32_t shared, const Coordinates& at, bool store) {
    // The copy engine needs 128 bytes; the kernels also rely on the swizzle pattern beginning where the tile begins.
    const uint32_t alignment = std::max(map.swizzle * 8, 128u);
    if (shared % alignment)
        fail_at(Fault::misaligned, shared, "%s at shared memory 0x%x, which is not a multiple of %u", who, shared,
                alignment);
    check_dependency(who, shared);
    check_rank(map, who, shared, at.rank);
    check_column(map, who, shared, at.at[0]);
    // For this, too, an H100 reports an illegal instruction.
    for (int i = 0; i < at.rank && store; ++i)
        if (at.at[i] < 0 && at.rank == 2)
            fail_at(Fault::invalid_operand, shared, "%s at row %d, column %d: a store may not begin before the tensor",
                    who, at.at[1], at.at[0]);
        else if (at.at[i] < 0)
            fail_at(Fault::invalid_operand, shared, "%s at %d in dimension %d: a store may not begin before the tensor",
                    who, at.at[i], i);
}

// The box at `at`: elements that are outside the tensor belong to no piece's bytes. A load ends with a row's last
// element, and a store with the 16 bytes that hold it: it overwrites what lies behind a row that ends inside them, as
// an H200 does for elements of 1, 2 and 4 bytes, and for reductions.
inline SharedTransfer box_of(const TensorMap& map, const char* who, uint32_t shared, const Coordinates& at,
                             bool store) {
    const uint32_t element = element_bytes(map.element), row_bytes = map.box[0] * element;
    const int64_t in_piece = kChunk / element;
    const int64_t row_end = store ? (map.size[0] + in_piece - 1) / in_piece * in_piece : map.size[0];
    auto transfer = std::make_shared<Transfer>(Transfer{who, shared, 1, {}});
    for (int i = 1; i < map.rank; ++i) transfer->rows *= map.box[i];
    transfer->layout = Layout{shared, row_bytes, map.rank > 1 ? map.box[1] : 1, map.swizzle, map.element, self().from};
    const uint32_t in_row = (row_bytes + kChunk - 1) / kChunk;
    transfer->pieces.resize(std::size_t{transfer->rows} * in_row);
    Piece* piece = transfer->pieces.data();
    const bool inside =
        at.at[0] >= 0 && at.at[0] + static_cast<int64_t>(map.box[0]) <= row_end && row_bytes % kChunk == 0;
    for (uint32_t row = 0; row < transfer->rows; ++row) {
        uint8_t* base = map.base;
        bool outside = false;
        uint32_t rest = row;
        for (int i = 1; i < map.rank; rest /= map.box[i], ++i) {
            const int64_t place = at.at[i] + static_cast<int64_t>(rest % map.box[i]);
            outside |= place < 0 || place >= map.size[i];
            base += place * map.stride[i];
        }
        const uint32_t begin_of_row = shared + row * row_bytes;
        const auto place = [&](uint32_t byte) {
            const uint32_t address = begin_of_row + byte;
            return map.swizzle ? address ^ (address >> 3 & (map.swizzle - 16)) : address;
        };
        if (inside && !outside) {
            uint8_t* global = base + at.at[0] * static_cast<int64_t>(element);
            for (uint32_t byte = 0; byte < row_bytes; byte += kChunk)
                *piece++ = {place(byte), global + byte, 0, kChunk};
            continue;
        }
        for (uint32_t byte = 0; byte < row_bytes; byte += kChunk) {
            const int64_t column = at.at[0] + static_cast<int64_t>(byte / element);
            const int64_t begin = std::max<int64_t>(column, 0);
            const int64_t end = std::min<int64_t>(column + in_piece, row_end);
            if (outside || begin >= end)
                *piece++ = {place(byte), nullptr, 0, 0};
            else
                *piece++ = {place(byte), base + begin * element, static_cast<uint32_t>(begin - column) * element,
                            static_cast<uint32_t>(end - begin) * element};
        }
    }
    return transfer;
}

// `bytes` contiguous bytes.
inline SharedTransfer bytes_of(const char* who, uint32_t shared, void* global, uint32_t bytes) {
    const auto address = reinterpret_cast<uintptr_t>(global);
    if (shared % 16 || address % 16)
        fail_at(Fault::misaligned, shared % 16 ? shared : address,
                "%s between shared memory 0x%x and global memory that is %d bytes behind a multiple of 16: multiples "
                "of 16 are needed",
                who, shared, static_cast<int>(address % 16));
    if (bytes == 0 || bytes % 16)
        fail_at(Fault::misaligned, shared, "%s of %u bytes: a multiple of 16 is needed", who, bytes);
    check_dependency(who, shared);
    auto transfer = std::make_shared<Transfer>(Transfer{who, shared, bytes / 16, {}});
    for (uint32_t at = 0; at < bytes; at += 16)
        transfer->pieces.push_back({shared + at, static_cast<uint8_t*>(global) + at, 0, 16});
    return transfer;
}

// What the copy engine will read or write in global memory must be part of a tensor, or of its padding.
inline void check_global(const Transfer& transfer, bool write) {
    const GlobalMemory& memory = *current_cluster->memory;
    if (!memory.known()) return;
    std::size_t number = 0;
    const std::span pieces(transfer.pieces);
    const std::size_t in_row = pieces.size() / transfer.rows;
    // Of a whole row that is part of one tensor, the pieces are, too.
    const auto is_fine = [&](std::span<const Piece> row) {
        const Piece &first = row.front(), &last = row.back();
        const auto address = reinterpret_cast<uintptr_t>(first.global);
        const std::size_t bytes = in_row * kChunk;
        return first.bytes == kChunk && last.bytes == kChunk && last.global - first.global + kChunk == bytes &&
               (memory.is_tensor(address, bytes, number) || memory.find(address, bytes, number));
    };
    std::size_t checked = 0;
    while (checked < pieces.size() && is_fine(pieces.subspan(checked, in_row))) checked += in_row;
    for (const Piece& piece : pieces.subspan(checked)) {
        const auto address = reinterpret_cast<uintptr_t>(piece.global);
        if (!piece.bytes || memory.is_tensor(address, piece.bytes, number) || memory.find(address, piece.bytes, number))
            continue;
        if (memory.holds(address, write) || (write && memory.pads(address, piece.bytes))) continue;
        fail_at(Fault::global_out_of_bounds, address, "%s %s %u bytes at %s: %s", transfer.who,
                write ? "writes" : "reads", piece.bytes, memory.describe(address, piece.bytes).c_str(),
                !transfer.layout ? "there are fewer bytes"
                : write ? "the tensor map describes more than there is, or the last row ends inside these 16 bytes, "
                          "which are written whole, and the array has no memory behind it"
                        : "the tensor map describes more than there is");
    }
}

}  // namespace emulator
