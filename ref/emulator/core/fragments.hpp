// The functions that ../fragments.cuh declares: ldmatrix and stmatrix.
#pragma once

#include "../fragments.cuh"
#include "lanes.hpp"

namespace emulator {

// Each lane reads the row whose address it gives; then every lane takes its elements of all rows.
void load_tiles(uint32_t* r, int tiles, bool transpose, uint32_t address) {
    EMULATOR_ENTER;
    Thread& thread = self();
    const auto lane = static_cast<std::size_t>(thread.lane()), count = static_cast<std::size_t>(tiles);
    std::array<uint64_t, 2> row{};
    if (lane < 8 * count) thread.block->memory.read(address, row.data(), sizeof row, thread, "ldmatrix");
    const Slots& lanes = exchange("ldmatrix", {row[0], row[1], count, transpose, address});
    if (lanes[0][2] != count || lanes[0][3] != transpose)
        fail(Fault::divergent_warp, "executes an ldmatrix that differs from its warp's");
    for (std::size_t tile = 0; tile < count && lane == 0; ++tile) {
        std::array<uint32_t, 8> rows;
        for (std::size_t i = 0; i < rows.size(); ++i) rows[i] = static_cast<uint32_t>(lanes[tile * 8 + i][4]);
        note_misfit("an ldmatrix", " reads the eight rows of one matrix",
                    current_cluster->layouts.misfit(rows, thread.block->layouts, thread.block->memory));
    }
    for (std::size_t tile = 0; tile < count; ++tile) {
        uint16_t halves[2];
        for (std::size_t half = 0; half < 2; ++half) {
            std::size_t at_row = lane / 4, column = lane % 4 * 2 + half;
            if (transpose) std::swap(at_row, column);
            std::memcpy(&halves[half], reinterpret_cast<const uint8_t*>(lanes[tile * 8 + at_row].data()) + column * 2,
                        sizeof halves[half]);
        }
        std::memcpy(&r[tile], halves, sizeof r[tile]);
    }
    if (thread.fiber.watched())  // as the kernel's own writes are noted (hooks.hpp)
        thread.written_since_fence.emplace_back(reinterpret_cast<uintptr_t>(r), count * sizeof(uint32_t));
}

// Each lane writes the row whose address it gives, from what other lanes hold.
void store_tiles(const uint32_t* r, int tiles, bool transpose, uint32_t address) {
    EMULATOR_ENTER;
    Thread& thread = self();
    const auto lane = static_cast<std::size_t>(thread.lane()), count = static_cast<std::size_t>(tiles);
    uint32_t words[4]{};
    std::copy_n(r, count, words);
    const auto pair = [](uint32_t low, uint32_t high) { return static_cast<uint64_t>(high) << 32 | low; };
    const Slots& lanes = exchange("stmatrix", {pair(words[0], words[1]), pair(words[2], words[3]), count, transpose});
    if (lanes[0][2] != count || lanes[0][3] != transpose)
        fail(Fault::divergent_warp, "executes an stmatrix that differs from its warp's");
    record_warp(Event::stmatrix, address);
    if (lane >= 8 * count) return;
    const std::size_t tile = lane / 8;
    Chunk row;
    for (std::size_t column = 0; column < 8; ++column) {
        std::size_t held_row = lane % 8, held_column = column;
        if (transpose) std::swap(held_row, held_column);
        const auto* words_of = reinterpret_cast<const uint8_t*>(lanes[held_row * 4 + held_column / 2].data());
        std::memcpy(&row[column * 2], words_of + tile * sizeof(uint32_t) + held_column % 2 * 2, 2);
    }
    thread.block->memory.write(address, row.data(), sizeof row, thread, "stmatrix");
}

}  // namespace emulator
