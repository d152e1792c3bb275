// Layouts: arithmetic on addresses and indices, the same for the GPU and for the emulator.
// ref/layouts.py has the same functions in Python and draws them.
#pragma once

#include <cstdint>

constexpr int kScaleK = 128;      // a K block: one scale and one promotion for every 128 of K
constexpr int kScaleN = 128;      // rows of B that share a scale
constexpr int kScaleBox = 4;      // scales in 16 bytes, TMA's smallest box; boxes begin at multiples of it
constexpr int kScalePitch = 128;  // bytes between boxes of scales: TMA writes to multiples of 128 bytes
constexpr int kWgmmaM = 64;       // rows of one WGMMA tile: 16 for each of the warpgroup's 4 warps
constexpr int kWgmmaK = 32;       // FP8 elements of K that one WGMMA consumes
constexpr int kSwizzleRow = 128;  // bytes in a row of a 128-byte-swizzled tile: 128 FP8 elements

__host__ __device__ constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The 128-byte swizzle: the 16-byte chunk index (address bits 4-6) is XORed with the row inside the
// 8-row atom (bits 7-9). The tile must start at a multiple of 1024 bytes.
__host__ __device__ constexpr uint32_t swizzle_128b(uint32_t address) { return address ^ ((address >> 3) & 0x70); }
// The swizzle of rows of kRowBytes = 32, 64 or 128 bytes: it XORs 1, 2 or 3 bits of the chunk index.
template <int kRowBytes>
__host__ __device__ constexpr uint32_t swizzle(uint32_t address) {
    static_assert(kRowBytes == 32 || kRowBytes == 64 || kRowBytes == 128, "the swizzles that TMA knows");
    return address ^ ((address >> 3) & (kRowBytes - 16));
}

// "Matrix Descriptor Format" (PTX ISA, wgmma): K-major operand, 128-byte swizzle. Consecutive 8-row atoms lie
// 1024 bytes apart (the stride byte offset); the leading byte offset is not used in this mode.
__host__ __device__ constexpr uint64_t smem_descriptor(uint32_t address) {
    constexpr uint64_t kStrideByteOffset = 8 * kSwizzleRow;
    constexpr uint64_t kSwizzle128B = 1;
    return (kSwizzle128B << 62) | ((kStrideByteOffset >> 4) << 32) | ((address & 0x3FFFF) >> 4);
}

// The descriptor of the operand `bytes` further on, a multiple of 16: only the address field, bits 0 to 13, changes.
__host__ __device__ constexpr uint64_t advance(uint64_t descriptor, uint32_t bytes) {
    return (descriptor & 0xFFFFFFFF00000000) | (static_cast<uint32_t>(descriptor) + (bytes >> 4));
}

// The WGMMA accumulator fragment: which element of the 64 x N tile thread `thread` of the warpgroup holds in
// register i. Registers come in pairs of neighbouring columns: rows r and r + 8, then the next 8 columns.
__host__ __device__ constexpr int accumulator_row(int thread, int i) {
    return (thread / 32) * 16 + (thread % 32) / 4 + (i / 2 % 2) * 8;
}
__host__ __device__ constexpr int accumulator_column(int thread, int i) {
    return (i / 4) * 8 + (thread % 4) * 2 + i % 2;
}
