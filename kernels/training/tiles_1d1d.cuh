// The parameters of a launch, and the tiles that a CTA computes, in order. The producer and the consumers walk the same
// sequence.
#pragma once

#include <ptx.cuh>  // in <>: the emulator must find its own

#include "config_1d1d.cuh"

template <Config kC>
struct Params {
    TensorMap sfa, sfb;                                  // [K blocks of all groups][m], [...][n]
    TensorMap a[kC.groups], b[kC.groups], d[kC.groups];  // of each group: [m, k], [n, k], [m, n]
    int blocks[kC.groups];                               // K blocks of a group, at least one
    int scale_row[kC.groups];                            // where a group's scales begin in sfa and sfb
    int groups, units_m, units_n;                        // units of work of a group: below each other, side by side
    bool accumulate;                                     // add to D instead of writing it
};

struct Tile {
    int group, row, column;
};

// The tiles of this CTA, in the order in which it computes them. Units of work, of one tile for each CTA of a cluster,
// are handed out in turn: all units of a group, then those of the next. Those of a group are walked in bands, so that
// tiles that run at the same time share operands in L2.
template <Config kC>
class Tiles {
    using G = Geometry<kC>;

  public:
    __device__ explicit Tiles(const Params<kC>& p) : p_(p), unit_(blockIdx.x / G::kCluster) {}

    __device__ bool next(Tile& tile) {
        const unsigned of_group = p_.units_m * p_.units_n;
        // Groups are passed by a division, not in a loop. Behind a loop ptxas does not see that a warp's threads agree
        // on the tile, and keeps the addresses of the main loop in registers, from which every WGMMA has to fetch them.
        const unsigned passed = kC.groups > 1 ? unit_ / of_group : unit_ >= of_group;
        group_ += passed, unit_ -= passed * of_group;
        if (group_ >= p_.groups) return false;
        tile.group = group_;
        const unsigned width = kC.across ? p_.units_n : p_.units_m, length = kC.across ? p_.units_m : p_.units_n;
        const unsigned first = unit_ / (kC.band * length) * kC.band;
        const unsigned in_band = unit_ - first * length;
        const unsigned band = width - first < kC.band ? width - first : kC.band;  // the last one may be narrower
        const unsigned along = in_band / band, beside = first + in_band - along * band;
        const unsigned rank = G::kCluster > 1 ? ptx::cluster_ctarank() : 0;
        tile.row = ((kC.across ? along : beside) * G::kDown + (G::kDown > 1 ? rank : 0)) * kC.tile_m;
        tile.column = ((kC.across ? beside : along) * G::kRight + (G::kRight > 1 ? rank : 0)) * kC.tile_n;
        unit_ += gridDim.x / G::kCluster;
        return true;
    }

  private:
    const Params<kC>& p_;
    unsigned unit_;  // the next one, counted from the first of group_
    int group_ = 0;
};
