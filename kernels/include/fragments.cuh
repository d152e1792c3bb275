// Moving 8x8 tiles of 16-bit elements between shared memory and the registers of a warp, as mma.sync and WGMMA have
// their operands and accumulators.
//
// Lane i gives the address of row i % 8 of tile i / 8, 16 bytes that begin at a multiple of 16; with fewer than four
// tiles the other lanes' addresses count for nothing. In every tile a lane holds two elements of row lane / 4, from
// column 2 * (lane % 4) on, the first in bits 0 to 15; with kTranspose, of column lane / 4 from that row on.
#pragma once

#include <cstdint>

namespace ptx {

// "Warp-level matrix load instruction: ldmatrix"
template <int kTiles, bool kTranspose = false>
__device__ __forceinline__ void ldmatrix(uint32_t (&r)[kTiles], uint32_t address) {
    static_assert(kTiles == 1 || kTiles == 2 || kTiles == 4, "ldmatrix loads 1, 2 or 4 tiles");
    if constexpr (kTiles == 1 && !kTranspose)
        asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];" : "=r"(r[0]) : "r"(address) : "memory");
    else if constexpr (kTiles == 1)
        asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];"
                     : "=r"(r[0])
                     : "r"(address)
                     : "memory");
    else if constexpr (kTiles == 2 && !kTranspose)
        asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                     : "=r"(r[0]), "=r"(r[1])
                     : "r"(address)
                     : "memory");
    else if constexpr (kTiles == 2)
        asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                     : "=r"(r[0]), "=r"(r[1])
                     : "r"(address)
                     : "memory");
    else if constexpr (!kTranspose)
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                     : "r"(address)
                     : "memory");
    else
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                     : "r"(address)
                     : "memory");
}

// "Warp-level matrix store instruction: stmatrix"
template <int kTiles, bool kTranspose = false>
__device__ __forceinline__ void stmatrix(uint32_t address, const uint32_t (&r)[kTiles]) {
    static_assert(kTiles == 1 || kTiles == 2 || kTiles == 4, "stmatrix stores 1, 2 or 4 tiles");
    if constexpr (kTiles == 1 && !kTranspose)
        asm volatile("stmatrix.sync.aligned.m8n8.x1.shared.b16 [%0], {%1};" : : "r"(address), "r"(r[0]) : "memory");
    else if constexpr (kTiles == 1)
        asm volatile("stmatrix.sync.aligned.m8n8.x1.trans.shared.b16 [%0], {%1};"
                     :
                     : "r"(address), "r"(r[0])
                     : "memory");
    else if constexpr (kTiles == 2 && !kTranspose)
        asm volatile("stmatrix.sync.aligned.m8n8.x2.shared.b16 [%0], {%1, %2};"
                     :
                     : "r"(address), "r"(r[0]), "r"(r[1])
                     : "memory");
    else if constexpr (kTiles == 2)
        asm volatile("stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [%0], {%1, %2};"
                     :
                     : "r"(address), "r"(r[0]), "r"(r[1])
                     : "memory");
    else if constexpr (!kTranspose)
        asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};"
                     :
                     : "r"(address), "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3])
                     : "memory");
    else
        asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};"
                     :
                     : "r"(address), "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3])
                     : "memory");
}

}  // namespace ptx
