// What becomes of accumulators at the end of a tile, for every kernel that stores by way of shared memory.
#pragma once

#include <cstdint>
#include <ptx.cuh>  // the machine's own: in quotes it would be the one beside this file

#include "layout.cuh"

// A warpgroup's 64 x kN accumulators to shared memory as BF16, in boxes of kStoreN columns one after the other, each
// swizzled: with 64 columns the eight 16-byte rows that a stmatrix writes at once lie in different banks.
template <int kN, int kStoreN>
__device__ void store_shared(uint32_t address, const float (&d)[kN / 2]) {
    constexpr int kRowBytes = kStoreN * sizeof(uint16_t);
    const int lane = ptx::laneid(), row = threadIdx.x % 128 / 32 * 16 + lane % 16;
    const uint32_t first = swizzle<kRowBytes>(row * kRowBytes + lane / 16 * 16);
#pragma unroll
    for (int i = 0; i < kN / 2; i += 8) {  // 16 rows x 16 columns a warp: four 8 x 8 tiles
        const int chunk = i / 4 % (kStoreN / 8), box = i * 2 / kStoreN;  // chunk is even: no carry, so XOR adds it
        ptx::stmatrix_x4(address + box * kWgmmaM * kRowBytes + (first ^ chunk * 16),
                         ptx::cvt_rn_bf16x2_f32(d[i + 1], d[i]), ptx::cvt_rn_bf16x2_f32(d[i + 3], d[i + 2]),
                         ptx::cvt_rn_bf16x2_f32(d[i + 5], d[i + 4]), ptx::cvt_rn_bf16x2_f32(d[i + 7], d[i + 6]));
    }
}
