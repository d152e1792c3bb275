// The launcher of a production kernel: it divides the rows among the tile sizes, describes the operands to the copy
// engine, and starts the kernel.
#pragma once

#include "gemm.cuh"

// Encodes the tensor maps of a Part's operands, and works out the bytes of a stage's loads.
template <Config kC>
const char* describe(Part& part) {
    using G = Gemm<kC>;
    constexpr int kSharersA = kC.share == Share::kA ? kC.cluster : 1,
                  kSharersB = kC.share == Share::kB ? kC.cluster : 1;
    constexpr Swizzle kSwizzleD = G::kStoreN == 64 ? Swizzle::k128B : G::kStoreN == 32 ? Swizzle::k64B : Swizzle::k32B;
    const GroupedArgs& p = part.p;
    if (p.m == 0) return nullptr;  // no units of work, so the tensor maps are not used
    const int64_t rows = p.groups_a * p.m, blocks = p.groups_a * G::kBlocks;
    const int64_t scales_b = p.groups * ceil_div(kC.n, kScaleN) * G::kBlocks;
    // If A has fewer rows than a tile, the boxes of A and of its scales have only the rows that A has, rounded up to
    // whole swizzle atoms of 8 rows. The copy engine would take as long for rows outside A, which arrive as zeros, as
    // for those inside. The rows of a stage that no box fills hold whatever was there; they only affect rows of D that
    // are never stored. Where A is multicast each CTA loads a fixed part of the tile, so the boxes stay as they are.
    const int64_t box = kSharersA > 1 || p.m >= kC.tile_m ? kC.tile_m : ceil_div(p.m, 8) * 8;
    part.bytes_loads = G::kBytesLoads - (kC.tile_m - box) * (kScaleK + sizeof(float));
    if (auto error = tensor_map_2d(&part.a, p.a, rows, kC.k, p.a_stride, box / kSharersA, kScaleK, Swizzle::k128B))
        return error;
    if (auto error = tensor_map_2d(&part.b, p.b, p.groups * kC.n, kC.k, p.b_stride, kC.tile_n / kSharersB, kScaleK,
                                   Swizzle::k128B))
        return error;
    if (auto error = tensor_map_2d(&part.sfa, p.sfa, blocks, p.m, p.sfa_stride, 1, box, Swizzle::kNone)) return error;
    if (auto error = tensor_map_2d(&part.sfb, p.sfb, 1, scales_b, ceil_div(scales_b, kScaleBox) * kScaleBox, 1,
                                   G::kBoxScalesB, Swizzle::kNone))
        return error;
    return tensor_map_2d(&part.d, p.d, rows, kC.n, p.d_stride, kWgmmaM, G::kStoreN, kSwizzleD);
}

// Divides the rows between the Parts. The main tile gets as many whole rows of units as fit into whole waves, or all
// rows if that is none; the tail tile gets the rest. Returns the number of clusters to start.
template <Config kC>
int64_t deal(const GroupedArgs& p, Parts<kC>& parts) {
    using Tiles = Scheduler<kC>;
    using TailTiles = Scheduler<exchanged(kC)>;
    const int64_t at_once = p.num_sms * kC.blocks_an_sm, most = at_once < kC.cluster ? 1 : at_once / kC.cluster;
    int64_t units = Tiles::units(p);
    for (Part& part : parts.part) part.p = p;
    if constexpr (kC.tail_m > 0) {
        auto& [first, last] = parts.part;
        const int64_t in_waves = units / most * most / Tiles::kUnitsN * Tiles::kDown * kC.tile_m;
        const int64_t rows = in_waves == 0 || in_waves > p.m ? p.m : in_waves;
        last.p.m -= first.p.m = rows;
        last.p.a += rows * p.a_stride;
        last.p.sfa += rows;
        last.p.d += rows * p.d_stride;
        const int64_t before = Tiles::units(first.p);
        units = before + TailTiles::units(last.p);
        last.first_cluster = static_cast<int>(before % most);
    }
    // With split-K a cluster may compute only one tile, because a second tile's partial sums could arrive before the
    // first tile's have been added up. So there are as many clusters as units.
    return units < most || kC.share == Share::kK ? units : most;
}

template <Config kC>
const char* start(const GroupedArgs& p) {
    using G = Gemm<kC>;
    Parts<kC> parts{};
    const int64_t clusters = deal(p, parts);
    if (auto error = describe<kC>(parts.part[0])) return error;
    if constexpr (kC.tail_m > 0)
        if (auto error = describe<exchanged(kC)>(parts.part[1])) return error;
    return launch(s9_production_fp8_gemm_nt<kC>,
                  {.blocks = clusters * kC.cluster,
                   .threads = G::kThreads,
                   .shared_bytes = G::kSharedBytes,
                   .stream = p.stream,
                   .cluster = static_cast<uint32_t>(kC.cluster),
                   .blocks_an_sm = static_cast<uint32_t>(kC.blocks_an_sm),
                   .early = true},
                  parts);
}
