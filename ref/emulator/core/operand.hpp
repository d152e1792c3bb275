// Where the operands of a WGMMA lie in shared memory.
#pragma once

#include <algorithm>
#include <cstdint>

#include "fault.hpp"

namespace emulator {

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

    uint32_t swizzle_bytes() const { return swizzle ? row_bytes() : 0; }

  private:
    uint32_t row_bytes() const { return 256u >> swizzle; }  // 128, 64, 32
    uint32_t swizzled(uint32_t address) const { return address ^ ((address >> 7 & (row_bytes() / 16 - 1)) << 4); }
};

// Rows `first` to `last` of an operand, as one warp reads them.
struct Operand {
    const char* who;
    uint64_t bits;  // of the descriptor
    bool mn_major;
    uint32_t first, last;

    bool operator==(const Operand&) const = default;

    // Calls visit(shared address, row, byte of K) for every chunk. A chunk is 16 bytes of one row; if the operand is
    // MN-major, 2 bytes of each of 8 rows. Rows are counted from `first`.
    template <typename Visit>
    void for_each_chunk(const Visit& visit) const {
        const Descriptor descriptor(bits);
        if (mn_major) {
            for (uint32_t k = 0; k < kBytesK / 2; ++k)
                for (uint32_t row = first; row < last; row += 8) visit(descriptor.mn_major(row, k), row - first, k * 2);
        } else {
            for (uint32_t byte = 0; byte < kBytesK; byte += 16)
                for (uint32_t row = first; row < last; ++row) visit(descriptor.k_major(row, byte), row - first, byte);
        }
    }
    // The first chunk's address.
    uint32_t begin() const {
        const Descriptor descriptor(bits);
        return mn_major ? descriptor.mn_major(first, 0) : descriptor.k_major(first, 0);
    }
};

}  // namespace emulator
