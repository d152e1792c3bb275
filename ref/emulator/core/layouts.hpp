// Whether tiles are read as they were written: a TMA load lays a box out in shared memory by its tensor map, and a
// WGMMA finds the rows by its descriptor. If the two do not fit, the product is wrong and nothing has failed, so that
// is said in a note.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "../mma.cuh"
#include "operand.hpp"
#include "reductions.hpp"
#include "shared_memory.hpp"

namespace emulator {

// How a load has laid out its box: rows of `row_bytes` bytes one behind another. In boxes of three and more dimensions
// `rows` of them are a slab.
struct Layout {
    uint32_t begin, row_bytes, rows, swizzle;
    Element element;   // of the tensor map
    const void* from;  // the place in the kernel that has issued the load

    bool operator==(const Layout&) const = default;

    struct Spot {  // of a chunk in the box
        uint32_t slab, row, byte;
    };
    Spot spot(uint32_t address) const {
        if (swizzle) address ^= address >> 3 & (swizzle - 16);
        const uint32_t row = (address - begin) / row_bytes;
        return {row / rows, row % rows, (address - begin) % row_bytes};
    }
};

// For each chunk of a block's shared memory, the layout of the load that filled it last: its number from 1 on, or 0.
using LayoutNumbers = std::vector<uint16_t>;

// Of a cluster: the layouts that there have been, and which operands were looked at.
class Layouts {
  public:
    struct Misfit {
        const Layout* layout;
        std::string before, after;  // of a sentence, between which the load's place is named
    };

    // A load fills `bytes` bytes from `begin` on; `layout` is nothing if they are not a box of a tensor map.
    void note_load(LayoutNumbers& numbers, uint32_t begin, uint32_t bytes, const std::optional<Layout>& layout) {
        numbers.resize(kSharedLimit / kChunk);
        const auto first = numbers.begin() + (begin - kSharedBase) / kChunk;
        std::fill(first, first + bytes / kChunk, layout ? number_of(*layout) : uint16_t{0});
    }

    // Whether the chunks of a WGMMA's operand lie otherwise in the boxes than its descriptor has them. An operand is
    // looked at once for each layout that it meets.
    std::optional<Misfit> misfit(const Operand& operand, ptx::Type type, Footprint& footprint,
                                 const LayoutNumbers& numbers, const SharedMemory& memory) {
        if (numbers.empty()) return std::nullopt;
        const auto number = [&](uint32_t offset) { return numbers[offset / kChunk]; };
        const uint16_t first = number(footprint.chunks.front()), last = number(footprint.chunks.back());
        const uint32_t both = static_cast<uint32_t>(first) << 16 | last;
        if (both == std::exchange(footprint.laid_out, both) || !both) return std::nullopt;
        if (!seen_.emplace(operand.bits, operand.first, operand.last, operand.mn_major, first, last).second)
            return std::nullopt;
        // Within one slab of one box, row r of the operand has to be row r + const, and its bytes likewise.
        std::map<std::pair<uint16_t, uint32_t>, Piece> boxes;
        std::optional<Misfit> found;
        operand.for_each_chunk([&](uint32_t address, uint32_t row, uint32_t byte) {
            const uint16_t at = number(address - kSharedBase);
            if (!at || found) return;
            const Layout& layout = layouts_[at - 1];
            const Layout::Spot spot = layout.spot(address);
            // The rows of a box for an MN-major operand run along K.
            const Piece piece = operand.mn_major ? Piece{spot, byte / 2, row * 2, row, byte / 2, address}
                                                 : Piece{spot, row, byte, row, byte, address};
            const Piece& known = boxes.try_emplace({at, spot.slab}, piece).first->second;
            if (spot.row - piece.row == known.spot.row - known.row &&
                spot.byte - piece.byte == known.spot.byte - known.byte)
                return;
            // What a thread has stored since the load is laid out as that thread has chosen.
            if (memory.has_stored(address) || memory.has_stored(known.address)) return;
            found = describe(operand, layout, known, piece);
        });
        if (!found && !operand.mn_major) found = runs_on(operand, boxes);
        if (found || !first || memory.has_stored(footprint.chunks.front() + kSharedBase)) return found;
        return other_type(layouts_[first - 1u], type);
    }

    // Whether the eight rows of a matrix, which ldmatrix reads, are eight rows of a box, and not all of them from the
    // same bytes of these.
    std::optional<Misfit> misfit(const std::array<uint32_t, 8>& rows, const LayoutNumbers& numbers,
                                 const SharedMemory& memory) const {
        if (numbers.empty()) return std::nullopt;
        const uint16_t number = numbers[(rows[0] - kSharedBase) / kChunk];
        if (!number) return std::nullopt;
        const Layout& layout = layouts_[number - 1u];
        const Layout::Spot first = layout.spot(rows[0]);
        bool apart = false;
        for (uint32_t i = 0; i < rows.size(); ++i) {
            const Layout::Spot spot = layout.spot(rows[i]);
            if (numbers[(rows[i] - kSharedBase) / kChunk] != number || spot.slab != first.slab ||
                spot.row != first.row + i || memory.has_stored(rows[i]))
                return std::nullopt;
            apart |= spot.byte != first.byte;
        }
        if (!apart) return std::nullopt;
        return Misfit{&layout, " from different columns of a tile, which a TMA load",
                      " has laid out " + with_swizzle(layout.swizzle)};
    }

  private:
    struct Piece {  // a chunk
        Layout::Spot spot;
        uint32_t row, byte;               // where it would be in a box that begins with the operand
        uint32_t operand_row, operand_k;  // K in bytes, or in elements if the operand is MN-major
        uint32_t address;
    };

    uint16_t number_of(const Layout& layout) {
        const auto found = std::ranges::find(layouts_, layout);
        const auto index = static_cast<std::size_t>(found - layouts_.begin());
        if (found == layouts_.end()) {
            if (index + 1 > UINT16_MAX) return 0;
            layouts_.push_back(layout);
        }
        return static_cast<uint16_t>(index + 1);
    }

    // An operand of several boxes has whole boxes, or a part of the last. One that begins inside of its first box and
    // runs on into another is likely at a wrong address. (It may also run on into the rest of an older load: a kernel
    // that needs only the first rows can load a smaller box.)
    std::optional<Misfit> runs_on(const Operand& operand,
                                  const std::map<std::pair<uint16_t, uint32_t>, Piece>& boxes) const {
        const auto row = [](const auto& box) { return box.second.row; };
        if (boxes.empty()) return std::nullopt;
        const auto first = std::ranges::min_element(boxes, {}, row), last = std::ranges::max_element(boxes, {}, row);
        const Piece &begin = first->second, &next = last->second;
        if (first->first.first == last->first.first || begin.row == next.row || begin.spot.row <= begin.row)
            return std::nullopt;
        const Layout &box = layouts_[first->first.first - 1u], &other = layouts_[last->first.first - 1u];
        if (other.begin <= box.begin) return std::nullopt;  // an older, larger box, of which the rest is still there
        return Misfit{&box, " by a descriptor that begins inside of the tile of a TMA load",
                      ", at its row " + std::to_string(begin.spot.row) + ", and from row " +
                          std::to_string(operand.first + next.row) + " on is in another tile"};
    }

    // A tensor map's elements are not the WGMMA's. Those of unsigned integers may be anything's bits, and so may those
    // that tensor_map_2d makes of 16-bit integers, which it calls BF16.
    static std::optional<Misfit> other_type(const Layout& layout, ptx::Type type) {
        const Element element = layout.element;
        const bool differs = element == Element::f16    ? type != ptx::Type::f16
                             : element == Element::bf16 ? ptx::type_bytes(type) != 2
                             : element == Element::f32  ? ptx::type_bytes(type) != 4
                                                        : false;
        if (!differs) return std::nullopt;
        static constexpr const char* kNames[] = {"e4m3", "e5m2", "bf16", "f16", "tf32", "s8", "u8"};
        return Misfit{&layout, " as " + std::string(kNames[static_cast<int>(type)]) + " from a tile that a TMA load",
                      std::string(" has brought by a tensor map of ") + element_name(element) + " elements"};
    }

    static Misfit describe(const Operand& operand, const Layout& layout, const Piece& known, const Piece& piece) {
        const uint32_t swizzle = Descriptor(operand.bits).swizzle_bytes();
        if (swizzle != layout.swizzle)
            return {&layout, " by a descriptor " + with_swizzle(swizzle) + ", from a tile that a TMA load",
                    " has laid out " + with_swizzle(layout.swizzle)};
        const auto place = [&](const Piece& one) {
            return "row " + std::to_string(operand.first + one.operand_row) + " at " +
                   (operand.mn_major ? "k = " : "byte ") + std::to_string(one.operand_k) + " of K is row " +
                   std::to_string(one.spot.row) + " at byte " + std::to_string(one.spot.byte) + " of the box";
        };
        return {&layout, " by a descriptor whose offsets do not fit the tile of a TMA load",
                ": " + place(known) + ", and " + place(piece)};
    }
    static std::string with_swizzle(uint32_t bytes) {
        return bytes ? "with a swizzle of " + std::to_string(bytes) + " bytes" : "without a swizzle";
    }

    std::vector<Layout> layouts_;
    std::set<std::tuple<uint64_t, uint32_t, uint32_t, bool, uint16_t, uint16_t>> seen_;
};

}  // namespace emulator
