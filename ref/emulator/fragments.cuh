// The functions of kernels/include/fragments.cuh, for the emulator. That file says which instruction each one is.
#pragma once

#include "cuda.hpp"

namespace emulator {

void load_tiles(uint32_t* r, int tiles, bool transpose, uint32_t address);
void store_tiles(const uint32_t* r, int tiles, bool transpose, uint32_t address);

}  // namespace emulator

namespace ptx {

template <int kTiles, bool kTranspose = false>
void ldmatrix(uint32_t (&r)[kTiles], uint32_t address) {
    static_assert(kTiles == 1 || kTiles == 2 || kTiles == 4, "ldmatrix loads 1, 2 or 4 tiles");
    emulator::load_tiles(r, kTiles, kTranspose, address);
}
template <int kTiles, bool kTranspose = false>
void stmatrix(uint32_t address, const uint32_t (&r)[kTiles]) {
    static_assert(kTiles == 1 || kTiles == 2 || kTiles == 4, "stmatrix stores 1, 2 or 4 tiles");
    emulator::store_tiles(r, kTiles, kTranspose, address);
}

}  // namespace ptx
