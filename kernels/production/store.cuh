// What the copy engine cannot store of D, or must not, in layouts whose groups have rows that do not count.
#pragma once

#include <cstdint>

#include "launch.cuh"
#include "layout.cuh"
#include "ptx.cuh"
#include "scheduler.cuh"

// A consumer's results in rows from `rows` on become zeros: they are products of what lies in A behind a group.
template <int kSlices, int kRegisters>
__device__ void clear_rows(float (&total)[kSlices][kRegisters], int slice_m, int rows) {
    const int first = accumulator_row(threadIdx.x % 128, 0);
#pragma unroll
    for (int i = 0; i < kSlices * kRegisters; ++i) {
        const int row = i / kRegisters * slice_m + first + i % 4 / 2 * 8;
        if (row >= rows) total[i / kRegisters][i % kRegisters] = 0;
    }
}

// A consumer's threads store the rows of a tile that count, from its boxes in shared memory to D, and zeros in those of
// padding. The consumer has kWgmmaM rows of every kSliceM, and kN columns; `address` is where its first slice lies.
// The masked layout, which alone calls this, has no padding: without the zeros the compiler makes other machine code
// than the one that was measured.
template <int kColumns, int kN, int kStoreN, int kSliceM>
__device__ void store_rows(const GroupedArgs& p, const Tile& tile, uint32_t address, uint32_t bytes_slice, int thread) {
    constexpr uint32_t kBytesBox = kWgmmaM * kStoreN * 2;
    for (int i = thread; i / (kN / 8) / kWgmmaM * kSliceM < tile.padded; i += 128) {
        const int column = i % (kN / 8) * 8, r = i / (kN / 8);
        const int row = r / kWgmmaM * kSliceM + r % kWgmmaM;
        if (row >= tile.padded || tile.column + column >= kColumns) continue;
        const uint32_t box = address + r / kWgmmaM * bytes_slice + column / kStoreN * kBytesBox;
        const uint32_t from = swizzle<kStoreN * 2>((r % kWgmmaM * kStoreN + column % kStoreN) * 2);
        *reinterpret_cast<uint4*>(p.d + (tile.row + row) * p.d_stride + tile.column + column) =
            row < tile.rows ? ptx::ld_shared<uint4>(box + from) : uint4{};
    }
}

// A consumer's threads write zeros to its rows of the padding from `first` on, which is a multiple of kSliceM.
template <int kColumns, int kN, int kSliceM>
__device__ void store_zeros(const GroupedArgs& p, const Tile& tile, int first) {
    for (int i = threadIdx.x % 128; first + i / (kN / 8) / kWgmmaM * kSliceM < tile.padded; i += 128) {
        const int column = i % (kN / 8) * 8, r = i / (kN / 8);
        const int row = first + r / kWgmmaM * kSliceM + r % kWgmmaM;
        if (row >= tile.padded || tile.column + column >= kColumns) continue;
        *reinterpret_cast<uint4*>(p.d + (tile.row + row) * p.d_stride + tile.column + column) = uint4{};
    }
}
