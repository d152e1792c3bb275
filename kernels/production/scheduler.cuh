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
    int live;                     // so many of those have rows to multiply in the part of a slice that was asked for
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

    // `first_row`: where the rows that tile.live speaks of begin in a slice. `first_cluster`: whose the first unit is,
    // where there are tiles of two sizes.
    __device__ explicit Scheduler(const GroupedArgs& p, int first_row = 0, int first_cluster = 0)
        : p_(p), first_row_(first_row), unit_(blockIdx.x / kC.cluster) {
        if (kC.tail_m > 0 && (unit_ -= first_cluster) < 0) unit_ += gridDim.x / kC.cluster;
        if (kC.kind == Kind::kMasked) coming_ = p_.layout[0];
        enter_group();
        look_ahead();
    }

    __device__ bool next(Tile& tile) {
        if (unit_ >= units_m_ * kUnitsN) return false;
        const bool second = second_;
        const int row = row_ + (second ? kSliceM : 0);
        tile.column = column_;
        tile.rows = rows_ - row;
        tile.slices = tile.live = kSlices;
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
            tile.live =
                tile.slices > 1 && !padding_[kSlices - 1] ? kSlices : !(second ? padding_[kSlices - 1] : padding_[0]);
            if (second_) return true;
        }
        unit_ += gridDim.x / kC.cluster;
        in_band_ += gridDim.x / kC.cluster;
        look_ahead();
        return true;
    }

  private:
    // The next unit's place, and whose its slices are. Worked out a tile ahead: a division takes long, and an answer
    // from memory as long as a block of K.
    __device__ void look_ahead() {
        while (kC.kind == Kind::kMasked && unit_ >= units_m_ * kUnitsN && ++group_ < p_.groups) {
            unit_ -= units_m_ * kUnitsN;  // on to the group that it is in
            enter_group();
        }
        if (unit_ >= units_m_ * kUnitsN) return;
        constexpr bool kAcross = kC.group_n > 0;
        constexpr int kGroup = kAcross ? kC.group_n : kC.group_m;
        const int width = kAcross ? kUnitsN : units_m_, length = kAcross ? units_m_ : kUnitsN;
        for (; in_band_ >= kGroup * length; first_ += kGroup) in_band_ -= kGroup * length;
        const int band = width - first_;  // the last one may be narrower
        const int along = band < kGroup ? in_band_ / band : static_cast<unsigned>(in_band_) / kGroup;
        const int beside = first_ + in_band_ - along * (band < kGroup ? band : kGroup);
        const int down = kAcross ? along : beside, right = kAcross ? beside : along;
        const int rank = kC.cluster > 1 ? ptx::cluster_ctarank() : 0;
        row_ = (down * kDown + (kDown > 1 ? rank : 0)) * kC.tile_m;
        column_ = (right * kRight + (kRight > 1 ? rank : 0)) * kC.tile_n;
        // The 128 rows of a block of the contiguous layout have one expert, but for the last, which may be padding. An
        // expert that does not exist counts as padding.
#pragma unroll
        for (int i = 0; kC.kind == Kind::kContiguous && i < kSlices; ++i) {
            const int row = row_ + i * kSliceM, expert = row < rows_ ? p_.layout[row] : -1;
            padding_[i] = row + first_row_ < rows_ && p_.layout[row + first_row_] < 0;
            experts_[i] = expert < 0 || expert >= p_.groups ? -1 : expert;
        }
    }

    __device__ void enter_group() {
        rows_ = static_cast<int>(p_.m);
        if (kC.kind == Kind::kMasked) {
            rows_ = coming_ < 0 ? 0 : coming_ < rows_ ? coming_ : rows_;
            if (group_ + 1 < p_.groups) coming_ = p_.layout[group_ + 1];
        }
        units_m_ = static_cast<int>(ceil_div(rows_, kC.tile_m * kDown));
        first_ = 0, in_band_ = unit_;
    }

    const GroupedArgs& p_;
    const int first_row_;
    int unit_, group_ = 0, rows_ = 0, units_m_ = 0;  // the next unit, of its group; the group's rows and units down
    int first_ = 0, in_band_ = 0;                    // of the group_m or group_n that run together; the unit among them
    int row_ = 0, column_ = 0;                       // where this block's tile of the unit begins
    int coming_ = 0;           // masked: how many rows the next group has, asked for a group ahead
    int experts_[kSlices]{};   // contiguous: of the next unit
    bool padding_[kSlices]{};  // ... whether the rows of a slice from first_row_ on are nobody's
    bool second_ = false;      // contiguous: the unit's second slice is the next tile
};
