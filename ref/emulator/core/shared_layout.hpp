// How a block's shared memory is divided up, and where it lies.
#pragma once

#include <array>
#include <cstdint>

namespace emulator {

constexpr uint32_t kSharedBase = 1024;          // where dynamic shared memory starts; so 0 is never a valid address
constexpr uint32_t kSharedLimit = 232448;       // the most dynamic shared memory a Hopper block can have
constexpr uint32_t kSharedUnasked = 48 * 1024;  // what a block can have without cudaFuncSetAttribute
constexpr uint32_t kRankShift = 24;             // shared::cluster addresses: block rank + 1 above these bits
constexpr uint32_t kOffsetMask = (1u << kRankShift) - 1;

using Chunk = std::array<uint8_t, 16>;  // what the copy engine and WGMMA move at a time
constexpr uint32_t kChunk = sizeof(Chunk), kWord = 4, kChunkWords = kChunk / kWord;
constexpr uint32_t kRegion = 1024, kRegionWords = kRegion / kWord;  // a region is one atom of the 128-byte swizzle
constexpr uint32_t kRegions = kSharedLimit / kRegion;
static_assert(kSharedLimit % kRegion == 0);

// In messages: a thread's load and store, and what the copy engine brings.
constexpr const char *kLoad = "ld.shared", *kStore = "st.shared", *kTmaLoad = "TMA load";

}  // namespace emulator
