// Which tiles a CTA computes, and in which order. The producer and the consumers walk the same sequence.
#pragma once

#include <cstdint>

#include "config.cuh"
#include "launch.cuh"
#include "layout.cuh"
#include "ptx.cuh"

struct Tile {
    int row;     // first row in A and D; masked: in the rows of all groups, one after the other
    int column;  // first column in D
    int rows;    // from `row` to the end of A or, if masked or psum, of the group's valid rows. May be more than
                 // a tile has, and <= 0 where a tile of the unit lies past the end
    int padded;  // psum: `rows`, and with a group's last tile the rows of padding after it; otherwise `rows`
    int slices;  // slices of rows that belong to this tile; the others belong to the next one
    int live;    // slices in which this consumer's rows are not all padding
    int group;   // which B; -1: the tile is padding and becomes zeros
    int scale_row, scale_column;  // where its scales of A begin in [K blocks][rows]; masked: [groups * K blocks][rows]

    // What remains of the tile from a row and a column of it on.
    __device__ void move(int down, int right) { row += down, rows -= down, padded -= down, column += right; }
};

// A cluster takes a unit of work: tiles side by side (they share A), tiles below each other (they share B), or one tile
// of which each CTA multiplies its own range of K.
// Rasterisation: clusters walk bands of units, so that tiles that run at the same time share operands in L2. In a band
// group_m units tall, consecutive units lie below each other and load the same rows of B; in one group_n units wide
// they lie side by side and load the same rows of A. Up to group_m units below each other make one band, in which every
// part of B is loaded once, by units that run together. Where there are more, the bands are group_n wide, unless
// group_n is 0. Narrow bands, of fewer than group_m units, load all of A again very often. They pay where there are
// many, and only while A stays in L2 (NOTES.md, 2026-11-29).
template <Config kC>
class Scheduler {
  public:
    static constexpr int kDown = kC.share == Share::kB ? kC.cluster : 1;   // tiles of a unit below each other
    static constexpr int kRight = kC.share == Share::kA ? kC.cluster : 1;  // tiles of a unit side by side
    static constexpr int kUnitsN = static_cast<int>(ceil_div(kC.n, kC.tile_n* kRight));
    static constexpr int kSliceM = kC.consumers_m * kWgmmaM;
    static constexpr int kSlices = kC.tile_m / kSliceM;
    static constexpr int kManyUnits = 12;          // side by side
    static constexpr int kStaysInL2 = 24'000'000;  // bytes of A; L2 has 50 MB, and holds parts of B and D, too
    // Whether consumers leave out slices that are all padding: consume() in gemm.cuh.
    static constexpr bool kSkips = kC.kind == Kind::kContiguous || kC.kind == Kind::kPsum;
    static constexpr bool kByGroup = kC.kind == Kind::kMasked || kC.kind == Kind::kPsum;  // group after group

    // An upper bound of the number of units. The launcher uses it, because it does not read the layout.
    static int64_t units(const GroupedArgs& p) { return p.groups_a * ceil_div(p.m, kC.tile_m * kDown) * kUnitsN; }

    // `first_row`: where this consumer's rows begin in a slice, which tile.live depends on. `first_cluster`: index of
    // the cluster that gets the first unit of this Part (gemm.cuh).
    __device__ explicit Scheduler(const GroupedArgs& p, int first_row = 0, int first_cluster = 0)
        : p_(p), first_row_(first_row), unit_(blockIdx.x / kC.cluster) {
        if (kC.tail_m > 0 && (unit_ -= first_cluster) < 0) unit_ += gridDim.x / kC.cluster;
        if (kByGroup) coming_ = p_.layout[0];
        enter_group();
        look_ahead();
    }

    __device__ bool next(Tile& tile) {
        if (unit_ >= units_m_ * kUnitsN) return false;
        const bool second = second_;
        const int row = row_ + (second ? kSliceM : 0);
        tile.column = column_;
        tile.rows = tile.padded = rows_ - row;
        tile.slices = tile.live = kSlices;
        tile.row = tile.scale_column = row;
        tile.group = tile.scale_row = 0;
        if (kC.kind == Kind::kMasked) {
            tile.row = group_ * static_cast<int>(p_.m) + row;
            tile.group = group_;
            tile.scale_row = group_ * static_cast<int>(ceil_div(kC.k, kScaleK));
        } else if (kC.kind == Kind::kPsum) {
            tile.row = tile.scale_column = begin_ + row;
            tile.group = group_;
            if (tile.rows <= kC.tile_m) tile.padded += padding_of(rows_);
            const int live = tile.rows - first_row_;
            tile.live = live <= 0 ? 0 : kSlices > 1 && live <= kSliceM ? 1 : kSlices;
        } else if (kC.kind == Kind::kContiguous) {
            // Two slices with the same expert are one tile. With different experts each slice is a tile, and the unit
            // takes two steps.
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
    static __device__ int rank() { return kC.cluster > 1 ? ptx::cluster_ctarank() : 0; }

    // Finds the next unit's place and its slices' experts. This is done a tile ahead to hide the latency: a division
    // takes long, and a load from memory takes as long as a K block.
    __device__ void look_ahead() {
        while (kByGroup && unit_ >= units_m_ * kUnitsN && ++group_ < p_.groups) {
            unit_ -= units_m_ * kUnitsN;  // go on to the group that the unit is in
            enter_group();
            if (kC.sparse && units_m_ == 0) pass_empty_groups();
        }
        if (unit_ >= units_m_ * kUnitsN) return;
        // With a single row of units there is no order to choose, and no division has to end before the first load.
        if (kC.kind == Kind::kDense && units_m_ == 1) {
            row_ = (kDown > 1 ? rank() : 0) * kC.tile_m;
            column_ = (unit_ * kRight + (kRight > 1 ? rank() : 0)) * kC.tile_n;
            return;
        }
        constexpr bool kNarrow = kC.group_n < kC.group_m;
        const bool across = kC.group_n > 0 && units_m_ > kC.group_m &&
                            (!kNarrow || (kUnitsN >= kManyUnits && rows_ <= kStaysInL2 / kC.k));
        const int group = across ? kC.group_n : kC.group_m;
        const int width = across ? kUnitsN : units_m_, length = across ? units_m_ : kUnitsN;
#pragma unroll 1
        for (; in_band_ >= group * length; first_ += group) in_band_ -= group * length;
        const int band = width - first_ < group ? width - first_ : group;  // the last one may be narrower
        const int along = static_cast<unsigned>(in_band_) / static_cast<unsigned>(band);
        int beside = first_ + in_band_ - along * band;
        if constexpr (kC.kind == Kind::kPsum) {
            // A group's last tile takes less time than the others if it is mostly padding. The clusters take units in
            // turn, and are of an even number: where the units below each other are, too, the same half of the clusters
            // would get all of the last ones, were the order of pairs not changed from column to column.
            beside = in_band_ - along * band;
            if (band % 2 == 0) beside ^= along & 1;
            beside += first_;
        }
        const int down = across ? along : beside, right = across ? beside : along;
        row_ = (down * kDown + (kDown > 1 ? rank() : 0)) * kC.tile_m;
        column_ = (right * kRight + (kRight > 1 ? rank() : 0)) * kC.tile_n;
        // In the contiguous layout the rows of a slice have one expert, except that the last of them may be padding. An
        // expert that does not exist counts as padding.
#pragma unroll
        for (int i = 0; kC.kind == Kind::kContiguous && i < kSlices; ++i) {
            const int row = row_ + i * kSliceM, expert = row < rows_ ? p_.layout[row] : -1;
            padding_[i] = row + first_row_ < rows_ && p_.layout[row + first_row_] < 0;
            experts_[i] = expert < 0 || expert >= p_.groups ? -1 : expert;
        }
    }

    __device__ void enter_group() {
        if (kC.kind == Kind::kPsum) begin_ += rows_ + padding_of(rows_);  // of the group before
        rows_ = static_cast<int>(p_.m) - begin_;
        if (kByGroup) {
            const int count = coming_ < begin_ ? 0 : coming_ - begin_;
            rows_ = count < rows_ ? count : rows_;
            if (group_ + 1 < p_.groups) coming_ = p_.layout[group_ + 1];
        }
        // ceil_div would divide 64-bit numbers, which takes far longer.
        units_m_ = static_cast<unsigned>(rows_ + kC.tile_m * kDown - 1) / (kC.tile_m * kDown);
        first_ = 0, in_band_ = unit_;
    }

    // From a group without rows, goes on to the last one of those that follow each other. A mixture of experts that
    // decodes few tokens has hundreds of groups, and rows in few of them. To enter one after another would take longer
    // than a tile, most of all behind the last tile: a tile is begun when the place of the next one is known.
    __device__ void pass_empty_groups() {
        constexpr int kBatch = 8;  // groups that are looked at together, so that their loads are in flight together
        const int last = static_cast<int>(p_.groups) - 1;
        for (int empty = kBatch; empty == kBatch && group_ < last; group_ += empty) {
            int ends[kBatch];  // or, if masked, rows
#pragma unroll
            for (int i = 0; i < kBatch; ++i) ends[i] = p_.layout[group_ + 1 + i < last ? group_ + 1 + i : last];
#pragma unroll
            for (int i = kBatch; i-- > 0;)
                if (ends[i] > begin_) empty = i, coming_ = ends[i];
        }
    }

    // psum: rows of padding after the valid rows of the group that begins at row begin_. The last group's may be cut
    // off by the end of D.
    __device__ int padding_of(int rows) const {
        const unsigned aligned = (static_cast<unsigned>(rows) + kC.alignment - 1) / kC.alignment * kC.alignment;
        const unsigned end = static_cast<unsigned>(p_.m) - begin_;
        return static_cast<int>(aligned < end ? aligned : end) - rows;
    }

    const GroupedArgs& p_;
    const int first_row_;
    int unit_, group_ = 0, rows_ = 0, units_m_ = 0;  // next unit within its group; the group's rows and units down
    int first_ = 0, in_band_ = 0;                    // where the unit's band begins; the unit's number in the band
    int row_ = 0, column_ = 0;                       // where this CTA's tile of the unit begins
    int coming_ = 0;                                 // of the next group, loaded a group ahead: rows, or psum: its end
    int begin_ = 0;                                  // psum: first row of the group; otherwise 0
    int experts_[kSlices]{};                         // contiguous: each slice's expert, of the next unit
    bool padding_[kSlices]{};                        // contiguous: whether this consumer's rows of a slice are padding
    bool second_ = false;                            // contiguous: the next tile is the unit's second slice
};
