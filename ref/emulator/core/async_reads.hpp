// What WGMMAs and the copy engine may still be reading in a block's shared memory.
#pragma once

#include <algorithm>
#include <unordered_map>
#include <utility>
#include <vector>

#include "fault.hpp"
#include "operand.hpp"
#include "order.hpp"
#include "shared_layout.hpp"

namespace emulator {

// The chunks of a WGMMA's operand.
struct Footprint {
    std::vector<uint32_t> chunks;   // offsets, in the order of Operand::for_each_chunk
    std::vector<uint32_t> regions;  // of shared memory, that they lie in
    std::vector<AsyncRead> reads;   // the last one of each warpgroup
    // What the last issuer knew that had been told of everything which threads have stored in the regions, and how many
    // stores that were.
    Known checked;
    uint64_t checked_stores = 0;
    uint32_t laid_out = 0;  // the layouts that it was compared with last (layouts.hpp)
};

// WGMMAs read operands so often that what is known of a region stands for its chunks.
class AsyncReads {
  public:
    // There are no reads. `keep_operands`: the next kernel is likely to have those that are known.
    void reset(bool keep_operands) {
        keep_operands &= footprints_.size() < kMostOperands;
        chunks_.resize(kSharedLimit / kChunk);
        regions_.resize(kRegions);
        for (uint32_t number = 0; number < kRegions; ++number) {
            Region& region = regions_[number];
            if (region.copied) std::fill_n(chunks_.begin() + number * (kRegion / kChunk), kRegion / kChunk, Copies{});
            region.copied = false;
            region.reading = 0;
            region.latest.clear();
            if (!keep_operands) region.operands.clear();
        }
        if (!keep_operands) footprints_.clear();
        for (auto& [operand, footprint] : footprints_) {
            footprint.reads.clear();
            footprint.laid_out = 0;
        }
        copies_.assign(1, {});
    }
    // What threads knew is kept no longer.
    void forget() {
        for (auto& [operand, footprint] : footprints_) footprint.checked.reset();
    }

    // check(address) is the offset of a chunk.
    template <typename Check>
    Footprint& footprint(const Operand& operand, const Check& check) {
        if (const auto found = footprints_.find(operand); found != footprints_.end()) return found->second;
        Footprint made;
        operand.for_each_chunk([&](uint32_t address, uint32_t, uint32_t) {
            made.chunks.push_back(check(address));
            const uint32_t region = made.chunks.back() / kRegion;
            if (std::ranges::find(made.regions, region) == made.regions.end()) made.regions.push_back(region);
        });
        Footprint& footprint = footprints_.emplace(operand, std::move(made)).first->second;
        for (const uint32_t region : footprint.regions) regions_[region].operands.push_back(&footprint);
        return footprint;
    }
    // A WGMMA reads the operand at some moment between begin and end, in the tensor core of one of the warpgroup's
    // warps.
    void begin(Footprint& operand, const AsyncRead& read) {
        const auto last = of_warpgroup(operand, read.progress);
        const uint32_t running = last == operand.reads.end() ? 0 : last->running;
        AsyncRead& noted = last == operand.reads.end() ? operand.reads.emplace_back() : *last;
        const bool is_new = noted.number < read.number;  // and not another warp's part of the same WGMMA
        if (is_new) {
            const bool again = noted.number && noted.number <= read.progress->waited && noted.load == read.load;
            const int64_t before = noted.number;
            noted = read;
            noted.again = again ? before : 0;
        }
        noted.running = running + 1;
        for (const uint32_t number : operand.regions) {
            Region& region = regions_[number];
            ++region.reading;
            if (!is_new || !read.done.number) continue;
            const auto found = std::ranges::find(region.latest, read.done.thread, &Moment::thread);
            if (found == region.latest.end())
                region.latest.push_back(read.done);
            else
                found->number = std::max(found->number, read.done.number);
        }
    }
    void end(Footprint& operand, const WgmmaProgress* progress) {
        --of_warpgroup(operand, progress)->running;
        for (const uint32_t region : operand.regions) --regions_[region].reading;
    }

    // The copy engine reads the chunk at some moment between begin and end. Returns the read's number.
    // A copy says the same of each of its chunks, and then they have one number.
    uint32_t add(const AsyncRead& read) {
        const AsyncRead& last = copies_.back();
        const bool same = read.done.number && read.done.number == last.done.number &&
                          read.done.thread == last.done.thread && read.from == last.from && read.who == last.who;
        if (!same) copies_.push_back(read);
        return static_cast<uint32_t>(copies_.size() - 1);
    }
    void begin(uint32_t at, uint32_t number) {
        regions_[at / kRegion].copied = true;
        Copies& copies = chunks_[at / kChunk];
        copies.last = number;
        ++copies.running;
    }
    void end(uint32_t at) { --chunks_[at / kChunk].running; }

    // Whether all that reads some of the region is known to be done.
    bool done(uint32_t region, const Actor& actor) const {
        const Region& of = regions_[region];
        return !of.copied && !of.reading &&
               std::ranges::all_of(of.latest, [&](const Moment& moment) { return actor.comes_after(moment); });
    }
    // What may still be reading the chunk, for all that the thread knows; nullptr: nothing.
    const AsyncRead* unfinished(uint32_t at, const Actor& actor) const {
        const uint32_t region = at / kRegion;
        if (done(region, actor)) return nullptr;
        if (regions_[region].copied) {
            const Copies& copies = chunks_[at / kChunk];
            const AsyncRead& last = copies_[copies.last];
            if (copies.running || !actor.comes_after(last.done)) return &last;
        }
        for (const Footprint* operand : regions_[region].operands)
            for (const AsyncRead& read : operand->reads)
                if ((read.running || !actor.comes_after(read.done)) &&
                    std::ranges::find(operand->chunks, at / kChunk * kChunk) != operand->chunks.end())
                    return &read;
        return nullptr;
    }

    // Whether an earlier WGMMA had read both operands of this one and was done, and no TMA load has come between.
    bool reads_again(const AsyncRead& read) const {
        int operands = 0;
        for (const auto& [operand, footprint] : footprints_)
            for (const AsyncRead& one : footprint.reads) {
                if (one.progress != read.progress || one.number != read.number) continue;
                if (one.again != read.again) return false;
                ++operands;
            }
        return read.again && operands > 1;
    }

  private:
    struct Copies {         // reads of a chunk by the copy engine
        uint32_t last = 0;  // number of the last one; 0: none
        uint16_t running = 0;
    };
    struct Region {
        uint32_t reading = 0;              // WGMMAs, of one warp each, that may still read some of its chunks
        bool copied = false;               // whether the copy engine has read any of its chunks
        std::vector<Moment> latest;        // AsyncRead::done of each warpgroup's last WGMMA that reads some of it
        std::vector<Footprint*> operands;  // that lie in it
    };
    struct Hash {
        std::size_t operator()(const Operand& operand) const {
            return (operand.bits ^ operand.bits >> 32 ^ static_cast<uint64_t>(operand.first) << 20 ^ operand.last) *
                   0x9E3779B97F4A7C15;
        }
    };
    static std::vector<AsyncRead>::iterator of_warpgroup(Footprint& operand, const WgmmaProgress* progress) {
        return std::ranges::find(operand.reads, progress, &AsyncRead::progress);
    }

    static constexpr std::size_t kMostOperands = 4096;
    std::vector<Copies> chunks_;
    std::vector<Region> regions_;
    std::vector<AsyncRead> copies_;
    std::unordered_map<Operand, Footprint, Hash> footprints_;
};

}  // namespace emulator
