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
    int slices;                   // so many of its slices of rows are made; the others are the next tile's
    int group;                    // whose B; -1: rows of padding, which become zeros
    int scale_row, scale_column;  // where its scales of A begin: [blocks of K][rows], masked: of every group
};

// A cluster takes a unit of work: two tiles side by side (they share A) or below each other (they share B), or one tile
// of which each block multiplies a part of K. Units that run together span group_m of them down, and as many to the
// right as there are clusters for, or group_n to the right and as many down: so L2 serves most loads. Neighbours should
// have the larger operand in common.
template <Config kC>
class Scheduler {
  public:
    static constexpr int kDown = kC.share == Share::kB ? kC.cluster : 1;
    static constexpr int kRight = kC.share == Share::kA ? kC.cluster : 1;
    static constexpr int kUnitsN = static_cast<int>(ceil_div(kC.n, kC.tile_n* kRight));
    static constexpr int kSliceM = kC.consumers_m * kWgmmaM;
    static constexpr int kSlices = kC.tile_m / kSliceM;

    // How many units there are at most; the launcher needs it without having read the layout.
    static int64_t units(const GroupedArgs& p) { return p.groups_a * ceil_div(p.m, kC.tile_m * kDown) * kUnitsN; }

    __device__ explicit Scheduler(const GroupedArgs& p) : p_(p), unit_(blockIdx.x / kC.cluster) {
        if (kC.kind == Kind::kMasked) coming_ = p_.layout[0];
        enter_group();
        look_ahead();
    }

    __device__ bool next(Tile& tile) {
        while (unit_ >= units_m_ * kUnitsN) {  // masked: on to the group that it is in
            if (kC.kind != Kind::kMasked || ++group_ == p_.groups) return false;
            unit_ -= units_m_ * kUnitsN;
            enter_group();
        }
        const Place at = place();
        const bool second = second_;
        const int row = at.row + (second ? kSliceM : 0);
        tile.column = at.column;
        tile.rows = rows_ - row;
        tile.slices = kSlices;
        tile.row = tile.scale_column = row;
        tile.group = tile.scale_row = 0;
        if (kC.kind == Kind::kMasked) {
            tile.row = group_ * static_cast<int>(p_.m) + row;
            tile.group = group_;
            tile.scale_row = group_ * (kC.k / kScaleK);
        } else if (kC.kind == Kind::kContiguous) {
            // Two slices of one expert are a tile; of two, each is one, and the unit takes two steps.
            second_ = !second && experts_[0] != experts_[kSlices - 1];
            tile.group = second ? experts_[kSlices - 1] : experts_[0];
            if (second || second_) tile.slices = 1;
            if (second_) return true;
        }
        unit_ += gridDim.x / kC.cluster;
        look_ahead();
        return true;
    }

  private:
    struct Place {
        int row, column;  // where this block's tile of the unit begins
    };

    __device__ Place place() const {
        constexpr bool kAcross = kC.group_n > 0;
        constexpr int kGroup = kAcross ? kC.group_n : kC.group_m;
        const int width = kAcross ? kUnitsN : units_m_, length = kAcross ? units_m_ : kUnitsN;
        const int first = unit_ / (kGroup * length) * kGroup, in_band = unit_ % (kGroup * length);
        const int band = width - first < kGroup ? width - first : kGroup;
        const int beside = first + in_band % band, along = in_band / band;
        const int down = kAcross ? along : beside, right = kAcross ? beside : along;
        const int rank = kC.cluster > 1 ? ptx::cluster_ctarank() : 0;
        return {(down * kDown + (kDown > 1 ? rank : 0)) * kC.tile_m,
                (right * kRight + (kRight > 1 ? rank : 0)) * kC.tile_n};
    }

    __device__ void enter_group() {
        rows_ = static_cast<int>(p_.m);
        if (kC.kind == Kind::kMasked) {
            rows_ = coming_ < 0 ? 0 : coming_ < rows_ ? coming_ : rows_;
            if (group_ + 1 < p_.groups) coming_ = p_.layout[group_ + 1];
        }
        units_m_ = static_cast<int>(ceil_div(rows_, kC.tile_m * kDown));
    }

    // Whose the next unit's slices are: asked for a tile ahead, as an answer from memory takes as long as a block of K.
    // The 128 rows of a block have one expert. One that does not exist counts as padding.
    __device__ void look_ahead() {
        if (kC.kind != Kind::kContiguous || unit_ >= units_m_ * kUnitsN) return;
        const int row = place().row;
#pragma unroll
        for (int i = 0; i < kSlices; ++i) {
            const int expert = row + i * kSliceM < rows_ ? p_.layout[row + i * kSliceM] : -1;
            experts_[i] = expert < 0 || expert >= p_.groups ? -1 : expert;
        }
    }

    const GroupedArgs& p_;
    int unit_, group_ = 0, rows_ = 0, units_m_ = 0;
    int coming_ = 0;          // masked: how many rows the next group has, asked for a group ahead
    int experts_[kSlices]{};  // contiguous: of the next unit
    bool second_ = false;     // contiguous: the unit's second slice is the next tile
};
