// The configuration of a training kernel, a constant of its compilation, and the constants that follow from it.
// config.py has the same struct and writes it into the source that is compiled.
#pragma once

#include <cstdint>

#include "layout.cuh"

enum class Share {
    kNothing,
    kA,  // the two CTAs of a cluster compute tiles side by side, and multicast A
    kB,  // the two CTAs of a cluster compute tiles below each other, and multicast B
};

struct Config {
    int tile_m, tile_n;  // D is computed in tiles (tile_m, tile_n), by two consumer warpgroups below each other
    int stages;          // of the ring between the copy engine and the tensor cores
    int boxes;           // of shared memory through which a consumer stores D: (kWgmmaM, kBoxN) floats each
    int ahead;           // pairs of B's scales that a thread loads before it promotes; it loads the others meanwhile
    Share share;         // what the clusters of two share; kNothing: no clusters
    int band;            // rasterisation: units of work walk bands this many units tall or, with `across`, wide
    bool across;
    int groups;  // groups of a launch at most: their tensor maps are parameters of the kernel
};

constexpr int kBoxN = 32;  // columns of a box of D: 128 bytes, a swizzled row

template <Config kC>
struct Geometry {
    static constexpr int kWarpgroup = 128, kConsumers = 2, kThreads = (1 + kConsumers) * kWarpgroup;
    static constexpr int kCluster = kC.share == Share::kNothing ? 1 : 2;
    static constexpr int kDown = kC.share == Share::kB ? 2 : 1;   // tiles of a unit of work below each other
    static constexpr int kRight = kC.share == Share::kA ? 2 : 1;  // tiles of a unit of work side by side
    static constexpr uint16_t kEveryCta = (1 << kCluster) - 1;
    static constexpr int kSliceM = kConsumers * kWgmmaM;  // rows whose WGMMAs are issued together
    static constexpr int kSlices = kC.tile_m / kSliceM;
    static constexpr int kRegisters = kC.tile_n / 2;  // a thread's accumulators of (kWgmmaM, tile_n)
    static constexpr int kPairs = kC.tile_n / 8;      // pairs of neighbouring columns that a thread holds, per row

    // A stage: A's tile, B's tile, A's scales, B's scales, in that order.
    static constexpr uint32_t kB = kC.tile_m * kScaleK;
    static constexpr uint32_t kScaleA = kB + kC.tile_n * kScaleK;
    static constexpr uint32_t kScaleB = kScaleA + kC.tile_m * sizeof(float);
    static constexpr uint32_t kBytesLoads = kScaleB + kC.tile_n * sizeof(float);
    static constexpr uint32_t kBytesStage = ceil_div(kBytesLoads, 1024) * 1024;

    // The consumers store D box after box. If the buffer has room for a whole tile's boxes, there is one round, and its
    // stores are read while the next tile is multiplied. Otherwise the rounds fill one half of the buffer after the
    // other, and a round waits until the copy engine has read what is in its half.
    static constexpr int kBoxesN = kC.tile_n / kBoxN, kBoxes = kSlices * kBoxesN;  // of a consumer's tile
    static constexpr int kRound = kC.boxes >= kBoxes ? kBoxes : kC.boxes > 1 ? kC.boxes / 2 : 1;
    static constexpr int kRoundsHeld = kC.boxes >= kBoxes ? 1 : kC.boxes / kRound;  // rounds in the buffer at a time
    static constexpr uint32_t kBytesBox = kWgmmaM * kBoxN * sizeof(float);

    // Shared memory: the consumers' boxes, then the ring's stages, then each stage's mbarriers `full` and `empty`.
    static constexpr uint32_t kBytesD = kC.boxes * kBytesBox;  // per consumer
    static constexpr uint32_t kRing = kConsumers * kBytesD;
    static constexpr uint32_t kFull = kRing + kC.stages * kBytesStage, kEmpty = kFull + kC.stages * 8;
    static constexpr uint32_t kSharedBytes = kEmpty + kC.stages * 8;

    static_assert(kC.tile_m == 128 || kC.tile_m == 256, "64 rows a consumer, once or twice");
    static_assert(kC.tile_n % kBoxN == 0 && kC.tile_n <= 256, "whole boxes of D; TMA's largest box");
    static_assert((kSlices + 1) * kRegisters <= 192, "a thread has 232 registers");
    static_assert((kSlices + 1) * kRegisters + 2 * kC.ahead <= 208, "registers for the scales");
    static_assert(kC.ahead >= 0 && kC.ahead <= kPairs, "a thread has so many pairs");
    static_assert(kC.stages > 0 && kC.boxes > 0 && kC.band > 0, "positive");
    static_assert(kC.groups > 0 && kC.groups <= 64, "the kernel's parameters have 32,764 bytes");
    static_assert(kSharedBytes <= 232448, "what a CTA can have");
};
