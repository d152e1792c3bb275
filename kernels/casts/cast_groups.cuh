// Which rows are cast: all of one matrix's (OneMatrix), or those that counts or ends say of each group, as in the
// masked and the psum layout (RowsOfGroups).
//
// The latter follow each other as if they were one matrix's, and so have numbers from 0 on. Where row number i lies is
// found in a table in shared memory, of the rows that count ahead of each group. With hundreds of groups of a few rows,
// going from one group's count to the next, in memory, took several times as long as the cast (NOTES.md).
#pragma once

#include "cast_numbers.cuh"
#include "prefix.cuh"

constexpr int64_t kMostGroups = 2048;  // for whose table each CTA has room

class OneMatrix {
  public:
    static constexpr uint32_t group = 0;

    __device__ __forceinline__ explicit OneMatrix(const CastParams& p) : m_(static_cast<uint32_t>(p.m)) {}
    __device__ __forceinline__ void find(uint32_t row) { row_ = row; }
    __device__ __forceinline__ uint32_t place(uint32_t row) const { return row; }
    __device__ __forceinline__ bool any() const { return row_ < m_; }

  private:
    uint32_t m_, row_ = 0;
};

class RowsOfGroups {
  public:
    static uint32_t shared_bytes(int64_t groups) { return static_cast<uint32_t>(4 * (2 * groups + 3 + kThreads / 32)); }

    uint32_t group = 0;  // of the row that find() was called for; past the last row it is the number of groups

    // Makes the table; all kThreads threads of a CTA do.
    __device__ __forceinline__ explicit RowsOfGroups(const CastParams& p) : groups_(static_cast<uint32_t>(p.groups)) {
        const uint32_t m = static_cast<uint32_t>(p.m), scratch = shifts() + 4 * (groups_ + 1);
        uint32_t ahead = 0, reached = 0;  // of the groups before `base`: rows that count, and the largest end
        for (uint32_t base = 0; base < groups_; base += kThreads) {
            const uint32_t one = base + threadIdx.x;
            uint32_t first = 0, end = 0;
            if (one < groups_) end = p.ends ? inside(p.ends[one], m) : p.counts ? inside(p.counts[one], m) : m;
            if (p.ends) {
                // A group begins behind all groups before it, even if an end is lower than one before: so no row has
                // two groups, as in the products' scheduler.
                const Prefix ends = prefix_of_cta(end, scratch, kThreads / 32, Largest{});
                first = padded(max(reached, ends.before), p.alignment);
                reached = max(reached, ends.all);
            }
            const Prefix counts = prefix_of_cta(end > first ? end - first : 0, scratch, kThreads / 32, Sum{});
            const uint32_t mine = ahead + counts.before;
            if (one < groups_) write(one, mine, first - mine);
            ahead += counts.all;
        }
        if (threadIdx.x == 0) {
            write(groups_, ahead, 0);
            ptx::st_shared(before() + 4 * (groups_ + 1), UINT32_MAX);
        }
        __syncthreads();
    }

    // Finds the group of row number `row`, which is not less than in the call before.
    __device__ __forceinline__ void find(uint32_t row) {
        if (row >= load(before(), group + 1)) {
            uint32_t high = groups_;
            ++group;
            while (group < high) {  // the first group that ends behind the row
                const uint32_t middle = (group + high) / 2;
                if (load(before(), middle + 1) <= row)
                    group = middle + 1;
                else
                    high = middle;
            }
        }
    }
    // Which row of the group that row number `row` is: in the psum layout, of the matrix.
    __device__ __forceinline__ uint32_t place(uint32_t row) const { return row + load(shifts(), group); }
    // Whether there was such a row.
    __device__ __forceinline__ bool any() const { return group < groups_; }

  private:
    uint32_t groups_;

    // The table: how many rows count ahead of each group, and of all groups together; UINT32_MAX; then for each group
    // what leads from a row's number to its place, modulo 2^32. A thread reads it again for each row, as it has no
    // registers to spare.
    static __device__ __forceinline__ uint32_t before() { return ptx::shared_memory(); }
    __device__ __forceinline__ uint32_t shifts() const { return before() + 4 * (groups_ + 2); }
    __device__ __forceinline__ void write(uint32_t one, uint32_t ahead, uint32_t shift) const {
        ptx::st_shared(before() + 4 * one, ahead);
        ptx::st_shared(shifts() + 4 * one, shift);
    }
    static __device__ __forceinline__ uint32_t load(uint32_t array, uint32_t i) {
        return ptx::ld_shared<uint32_t>(array + 4 * i);
    }
    static __device__ __forceinline__ uint32_t inside(int32_t given, uint32_t m) {
        return given < 0 ? 0 : min(static_cast<uint32_t>(given), m);
    }
    static __device__ __forceinline__ uint32_t padded(uint32_t end, int64_t alignment) {
        const uint32_t step = static_cast<uint32_t>(alignment);
        return (end + step - 1) / step * step;
    }
};
