// Constants that follow from a configuration and its tile: how the consumers divide the tile, and the layout of shared
// memory.
#pragma once

#include <cstdint>

#include "config.cuh"
#include "layout.cuh"
#include "scheduler.cuh"

constexpr int gcd(int a, int b) { return b ? gcd(b, a % b) : a; }

template <Config kC>
struct Geometry {
    static constexpr int kWarpgroup = 128;
    static constexpr int kConsumers = kC.consumers_m * kC.consumers_n;
    static constexpr int kThreads = (1 + kConsumers) * kWarpgroup;
    static constexpr int kSliceM = Scheduler<kC>::kSliceM, kSlices = Scheduler<kC>::kSlices;
    static constexpr int kConsumerN = kC.tile_n / kC.consumers_n;  // a consumer computes (kSlices, kWgmmaM, kConsumerN)
    static constexpr int kRegisters = kConsumerN / 2;              // a thread's accumulators of (kWgmmaM, kConsumerN)
    // Registers per thread that setmaxnreg gives a consumer, while the producer keeps 40. A single consumer that has
    // the SM to itself has enough from the start: 0.
    static constexpr int kTakes = kConsumers > 1 ? 232 : kC.blocks_an_sm > 1 ? 216 : 0;
    static constexpr int kSplits = kC.share == Share::kK ? kC.cluster : 1;
    static constexpr int kBlocks = ceil_div(kC.k, kScaleK);
    static constexpr uint16_t kEveryBlock = (1 << kC.cluster) - 1;

    // A segment is a run of columns that share a scale of B, wherever the tile lies. kScalesB: the scales of B that a
    // tile needs for a K block.
    static constexpr int kSegment = gcd(gcd(kC.tile_n, kScaleN), kConsumerN);
    static constexpr int kSegments = kConsumerN / kSegment;
    static constexpr int kScalesB = (kScaleN - gcd(kC.tile_n, kScaleN) + kC.tile_n - 1) / kScaleN + 1;
    // The scales of B for all of a tile's K blocks: kScalesB rows, one float per K block. A box begins at a multiple of
    // 16 bytes, so a row has room for up to three other floats before its first scale. A box has at most 256 floats,
    // which is TMA's limit; a longer row takes several.
    static constexpr int kRowScalesB = ceil_div(ceil_div(kBlocks, kSplits) + kScaleBox - 1, kScaleBox) * kScaleBox;
    static constexpr int kBoxScalesB = kRowScalesB < 256 ? kRowScalesB : 256;
    static constexpr int kBoxesScalesB = ceil_div(kRowScalesB, kBoxScalesB);
    static constexpr uint32_t kBytesScalesB = kScalesB * kBoxesScalesB * kBoxScalesB * sizeof(float);  // as loaded
    static constexpr uint32_t kPitchScalesB =  // from row to row in shared memory
        ceil_div(kBytesScalesB / kScalesB, kScalePitch) * kScalePitch;

    static constexpr int kStoreN = gcd(kConsumerN, 64);  // a box of D is (kWgmmaM, kStoreN): one TMA store
    static constexpr int kBoxes = kConsumerN / kStoreN;  // per slice and consumer
    static constexpr uint32_t kBytesBox = kWgmmaM * kStoreN * sizeof(uint16_t);
    static constexpr uint32_t kBytesSlice = kBoxes * kBytesBox;
    // With split-K, threads exchange their partial sums in pieces of 16 bytes.
    static constexpr int kPieces = kSlices * kRegisters / 4;
    static constexpr uint32_t kBytesPieces = ceil_div(kPieces, kSplits) * kSplits * kWarpgroup * sizeof(float4);
    static constexpr uint32_t kBytesOutput =  // per consumer
        kSplits > 1 ? kBytesPieces : ceil_div(kSlices * kBytesSlice, 1024) * 1024;

    // A stage: A's tile, B's tile and A's scales, in that order.
    static constexpr uint32_t kBytesA = kC.tile_m * kScaleK;  // (tile_m, kScaleK)
    static constexpr uint32_t kBytesB = kC.tile_n * kScaleK;  // (tile_n, kScaleK)
    static constexpr uint32_t kBytesScaleA = kC.tile_m * sizeof(float);
    static constexpr uint32_t kB = kBytesA, kScaleA = kB + kBytesB;
    static constexpr uint32_t kBytesLoads = kScaleA + kBytesScaleA;

    static_assert(kConsumers == 1 || kConsumers == 2, "registers for one or two consumers");
    static_assert(kC.tile_m % kSliceM == 0 && kConsumerN % 16 == 0 && kConsumerN <= 256, "whole WGMMA tiles");
    static_assert(kC.k % 16 == 0 && kC.n % 8 == 0, "rows of A, B and D of whole 16 bytes");
    static_assert(kC.share != Share::kA || kC.tile_m % (8 * kC.cluster) == 0, "whole swizzle atoms a block");
    static_assert(kC.share != Share::kB || kC.tile_n % (8 * kC.cluster) == 0, "whole swizzle atoms a block");
    static_assert(kC.share != Share::kB || kC.kind != Kind::kContiguous, "neighbours may have different experts");
    static_assert(kSplits == 1 || (kC.kind == Kind::kDense && kC.tail_m == 0),
                  "a cluster that splits K makes one tile, whichever its group");
    static_assert(kC.tail_m == 0 || kC.kind == Kind::kDense, "where the last rows begin is the launcher's to say");
    static_assert(kC.kind == Kind::kDense || kC.kind == Kind::kMasked || kSlices <= 2,
                  "a consumer multiplies none, one or all of its slices");
    static_assert(kC.kind != Kind::kContiguous || kC.alignment % kSliceM == 0, "the rows of a slice have one expert");
    static_assert(kC.kind != Kind::kPsum || kC.alignment % kC.tile_m == 0, "a tile holds rows of one group");
    static_assert((kC.share == Share::kNothing) == (kC.cluster == 1), "a cluster shares something");
    static_assert(kC.blocks_an_sm == 1 || (kC.blocks_an_sm == 2 && kConsumers == 1), "registers for two blocks an SM");
};

constexpr uint32_t larger(uint32_t a, uint32_t b) { return a > b ? a : b; }

// A CTA's shared memory: the consumers' buffers for D, then the ring's stages, then the buffers for B's scales.
template <Config kC>
struct SharedMemory {
    using One = Geometry<kC>;
    using Other = Geometry<exchanged(kC)>;  // the other tile size, which uses the same shared memory in turn

    static constexpr uint32_t kBytesD = larger(One::kBytesOutput, Other::kBytesOutput);  // per consumer
    static constexpr uint32_t kBytesStage = ceil_div(larger(One::kBytesLoads, Other::kBytesLoads) + 32, 1024) * 1024;
    static constexpr uint32_t kFull = kBytesStage - 32, kEmpty = kFull + 16;  // the two mbarriers end the stage
    // A buffer holds B's scales for all K blocks of one tile. It is free when the consumers have released the tile's
    // last K block. The producer waits for `empty` of a tile's first stage before it loads the tile's scales. By then
    // the consumers have released all earlier K blocks except, at most, the kC.stages before this one. So it is enough
    // to have a buffer for each tile to which those can belong, and one for the tile itself.
    static constexpr uint32_t kBytesScales =
        larger(One::kScalesB * One::kPitchScalesB, Other::kScalesB* Other::kPitchScalesB);
    static constexpr uint32_t kTilesInRing = 1 + ceil_div(kC.stages, larger(One::kBlocks / One::kSplits, 1));
    static constexpr uint32_t kSharedBytes =
        One::kConsumers * kBytesD + kC.stages * kBytesStage + kTilesInRing * kBytesScales;
    // An SM's 228 KiB are divided among its CTAs, and CUDA reserves 1 KiB of each CTA's share.
    static_assert(kSharedBytes <= 233472 / kC.blocks_an_sm - 1024, "what a block can have");
};
