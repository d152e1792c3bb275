// The epilogue's first half: accumulators to shared memory, for every kernel that stores D from there.
#pragma once

#include <cstdint>
#include <ptx.cuh>  // in <>: the emulator must find its own, and quotes would find the one beside this file

#include "layout.cuh"

// Writes a warpgroup's (kWgmmaM, kN) accumulators to shared memory as BF16, as one swizzled box (kWgmmaM, kStoreN)
// after another. The swizzle of 64-column boxes puts the eight 16-byte rows that stmatrix writes at once in different
// banks.
template <int kN, int kStoreN>
__device__ void store_shared(uint32_t address, const float (&d)[kN / 2]) {
    constexpr int kRowBytes = kStoreN * sizeof(uint16_t);
    const int lane = ptx::laneid(), row = threadIdx.x % 128 / 32 * 16 + lane % 16;
    const uint32_t first = swizzle<kRowBytes>(row * kRowBytes + lane / 16 * 16);
#pragma unroll
    for (int i = 0; i < kN / 2; i += 8) {  // 16 rows x 16 columns in each warp: four 8 x 8 tiles
        const int chunk = i / 4 % (kStoreN / 8), box = i * 2 / kStoreN;  // chunk is even: no carry, so XOR adds it
        ptx::stmatrix_x4(address + box * kWgmmaM * kRowBytes + (first ^ chunk * 16),
                         ptx::cvt_rn_bf16x2_f32(d[i + 1], d[i]), ptx::cvt_rn_bf16x2_f32(d[i + 3], d[i + 2]),
                         ptx::cvt_rn_bf16x2_f32(d[i + 5], d[i + 4]), ptx::cvt_rn_bf16x2_f32(d[i + 7], d[i + 6]));
    }
}
