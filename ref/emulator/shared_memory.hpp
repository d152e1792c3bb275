// One block's shared memory, kept twice: as threads see it (the generic proxy) and as WGMMA and the copy engine see it
// (the async proxy). A thread's store reaches the async proxy's copy when that thread executes fence.proxy.async.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <vector>

#include "fault.hpp"

namespace emulator {

constexpr uint32_t kSharedBase = 1024;     // where dynamic shared memory starts; so 0 is never a valid address
constexpr uint32_t kSharedLimit = 232448;  // the most dynamic shared memory a Hopper block can have
constexpr uint32_t kRankShift = 24;        // shared::cluster addresses: block rank + 1 above these bits
constexpr uint32_t kOffsetMask = (1u << kRankShift) - 1;
using Chunk = std::array<uint8_t, 16>;

class SharedMemory {
  public:
    // Fresh contents are 0xFF: NaN as FP32, as BF16 and as E4M3.
    void reset(uint32_t bytes) {
        const uint32_t chunks = (bytes + kChunk - 1) / kChunk;
        bytes_ = bytes;
        generic_.assign(chunks * kChunk, 0xFF);
        async_.assign(chunks * kChunk, 0xFF);
        writer_.assign(chunks * (kChunk / kWord), 0);
        state_.assign(chunks, {});
    }

    // ---- Generic proxy: ld.shared and st.shared. A written word is marked with its thread until that thread's fence.
    void read(uint32_t address, void* data, uint32_t bytes) const {
        const uint32_t at = check(address, bytes, "ld.shared");
        if (state_[at / kChunk].landing)
            fail_at(Fault::read_during_load, address,
                    "ld.shared at 0x%x reads bytes that a TMA load is still writing: wait for its mbarrier first",
                    address);
        std::memcpy(data, &generic_[at], bytes);
    }
    void write(uint32_t address, const void* data, uint32_t bytes, int thread, std::vector<uint32_t>& unfenced) {
        const uint32_t at = check(address, bytes, "st.shared");
        writable(at, bytes, address, "st.shared");
        std::memcpy(&generic_[at], data, bytes);
        for (uint32_t word = at / kWord; word <= (at + bytes - 1) / kWord; ++word) {
            if (writer_[word] != thread + 1) unfenced.push_back(word);
            writer_[word] = static_cast<uint16_t>(thread + 1);
        }
    }
    // fence.proxy.async by `thread`: its own writes become visible to the async proxy.
    void publish(int thread, std::vector<uint32_t>& unfenced) {
        for (const uint32_t word : unfenced) {
            if (writer_[word] != thread + 1) continue;  // another thread has overwritten it since
            writer_[word] = 0;
            std::memcpy(&async_[word * kWord], &generic_[word * kWord], kWord);
        }
        unfenced.clear();
    }

    // ---- Async proxy: WGMMA and TMA, one 16-byte chunk at a time.
    Chunk async_read(uint32_t address, const char* who) const {
        const uint32_t at = check(address, kChunk, who);
        if (state_[at / kChunk].landing)
            fail_at(Fault::read_during_load, address,
                    "%s reads shared memory at 0x%x while a TMA load is still writing it", who, address);
        for (uint32_t word = at / kWord; word < (at + kChunk) / kWord; ++word)
            if (writer_[word])
                fail_at(Fault::missing_proxy_fence, address,
                        "%s reads shared memory at 0x%x that thread %d wrote without fence.proxy.async", who, address,
                        writer_[word] - 1);
        Chunk chunk;
        std::memcpy(chunk.data(), &async_[at], kChunk);
        return chunk;
    }
    // A load has been issued: until it lands, no one may read or write this chunk, and it holds NaN.
    void begin_load(uint32_t address) {
        const uint32_t at = check(address, kChunk, "TMA load");
        writable(at, kChunk, address, "TMA load");
        std::memset(&generic_[at], 0xFF, kChunk);
        std::memset(&async_[at], 0xFF, kChunk);
        state_[at / kChunk].landing = true;
    }
    void land(uint32_t address, const Chunk& chunk) {
        const uint32_t at = address - kSharedBase;  // checked when the load began
        std::memcpy(&generic_[at], chunk.data(), kChunk);
        std::memcpy(&async_[at], chunk.data(), kChunk);
        std::fill_n(writer_.begin() + at / kWord, kChunk / kWord, uint16_t{0});
        state_[at / kChunk].landing = false;
    }
    // A WGMMA or a TMA store reads this chunk at some moment between begin_read and end_read.
    void begin_read(uint32_t address, const char* who) { ++state_[check(address, kChunk, who) / kChunk].reading; }
    void end_read(uint32_t address) { --state_[(address - kSharedBase) / kChunk].reading; }

    void mark_mbarrier(uint32_t address) {
        const uint32_t at = check(address, kMbarrier, "mbarrier.init");
        state_[at / kChunk].mbarrier[at % kChunk / kMbarrier] = true;
    }

    static constexpr uint32_t kChunk = sizeof(Chunk);

  private:
    static constexpr uint32_t kWord = 4, kMbarrier = 8;
    struct ChunkState {
        uint16_t reading = 0;                             // number of WGMMAs and TMA stores that may still read it
        bool landing = false;                             // a TMA load is on its way
        std::array<bool, kChunk / kMbarrier> mbarrier{};  // whether each half of the chunk is an mbarrier
    };

    uint32_t check(uint32_t address, uint32_t bytes, const char* who) const {
        if (address < kSharedBase || address - kSharedBase + bytes > bytes_)
            fail_at(Fault::out_of_bounds, address,
                    "%s at 0x%x (%u bytes) is outside the block's shared memory, 0x%x to 0x%x", who, address, bytes,
                    kSharedBase, kSharedBase + bytes_);
        if (address % bytes)
            fail_at(Fault::misaligned, address, "%s of %u bytes at 0x%x, which is not a multiple of %u", who, bytes,
                    address, bytes);
        return address - kSharedBase;
    }
    void writable(uint32_t at, uint32_t bytes, uint32_t address, const char* who) const {
        const ChunkState& state = state_[at / kChunk];
        if (state.landing)
            fail_at(Fault::write_during_load, address, "%s writes 0x%x while a TMA load is still writing it", who,
                    address);
        if (state.reading)
            fail_at(Fault::released_too_early, address,
                    "%s overwrites 0x%x while a WGMMA or a TMA store may still read it: released too early", who,
                    address);
        const uint32_t first = at % kChunk;  // a write is aligned to its size, so it ends in this chunk
        for (uint32_t half = first / kMbarrier; half <= (first + bytes - 1) / kMbarrier; ++half)
            if (state.mbarrier[half])
                fail_at(Fault::mbarrier_overwritten, address, "%s overwrites the mbarrier near 0x%x", who, address);
    }

    uint32_t bytes_ = 0;
    std::vector<uint8_t> generic_, async_;
    std::vector<uint16_t> writer_;  // for each word: 1 + the thread whose store is not fenced yet; 0 = none
    std::vector<ChunkState> state_;
};

}  // namespace emulator
