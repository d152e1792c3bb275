// Which tiles a block makes, and in which order: the same for the loader and for the consumers.
#pragma once

#include <cstdint>

#include "config.cuh"
#include "launch.cuh"
#include "layout.cuh"
#include "ptx.cuh"

struct Tile {
    int row;                      // its first row, of A and of D (masked: all groups' rows one after the other)
    int column;                   // its first column, of D
    int rows;                     // so many of its rows are wanted; 0 or fewer where a pair has no second tile
    int group;                    // whose B; -1: rows of padding, which become zeros
    int scale_row, scale_column;  // where its scales of A begin: [blocks of K][rows], masked: of every group
};

// A cluster takes a unit of work: two tiles side by side (they share A) or below each other (they share B), or one tile
// of which each block multiplies a part of K. Units that run together span kGroupM of them down, and as many to the
// right as there are clusters for: so L2 serves most loads.
template <Config kC>
class Scheduler {
  public:
    static constexpr int kDown = kC.share == Share::kB ? kC.cluster : 1;
    static constexpr int kRight = kC.share == Share::kA ? kC.cluster : 1;
    static constexpr int kUnitsN = static_cast<int>(ceil_div(kC.n, kC.tile_n* kRight));

    // How many units there are at most; the launcher needs it without having read the layout.
    static int64_t units(const GroupedArgs& p) { return p.groups_a * ceil_div(p.m, kC.tile_m * kDown) * kUnitsN; }

    __device__ explicit Scheduler(const GroupedArgs& p) : p_(p), unit_(blockIdx.x / kC.cluster) { enter_group(); }

    __device__ bool next(Tile& tile) {
        while (unit_ >= units_m_ * kUnitsN) {  // masked: on to the group that it is in
            if (kC.kind != Kind::kMasked || ++group_ == p_.groups) return false;
            unit_ -= units_m_ * kUnitsN;
            enter_group();
        }
        const int first_m = unit_ / (kC.group_m * kUnitsN) * kC.group_m, in_band = unit_ % (kC.group_m * kUnitsN);
        const int band = units_m_ - first_m < kC.group_m ? units_m_ - first_m : kC.group_m;
        const int rank = kC.cluster > 1 ? ptx::cluster_ctarank() : 0;
        const int row = ((first_m + in_band % band) * kDown + (kDown > 1 ? rank : 0)) * kC.tile_m;
        tile.column = (in_band / band * kRight + (kRight > 1 ? rank : 0)) * kC.tile_n;
        tile.rows = rows_ - row;
        tile.row = tile.scale_column = row;
        tile.group = tile.scale_row = 0;
        if (kC.kind == Kind::kMasked) {
            tile.row = group_ * static_cast<int>(p_.m) + row;
            tile.group = group_;
            tile.scale_row = group_ * (kC.k / kScaleK);
        } else if (kC.kind == Kind::kContiguous) {
            // Every row of a tile has the same expert. One that does not exist counts as padding.
            const int expert = tile.rows > 0 ? p_.layout[row] : -1;
            tile.group = expert < p_.groups ? expert : -1;
        }
        unit_ += gridDim.x / kC.cluster;
        return true;
    }

  private:
    __device__ void enter_group() {
        rows_ = static_cast<int>(p_.m);
        if (kC.kind == Kind::kMasked) {
            const int wanted = p_.layout[group_];
            rows_ = wanted < 0 ? 0 : wanted < rows_ ? wanted : rows_;
        }
        units_m_ = static_cast<int>(ceil_div(rows_, kC.tile_m * kDown));
    }

    const GroupedArgs& p_;
    int unit_, group_ = 0, rows_ = 0, units_m_ = 0;
};
