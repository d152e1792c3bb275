// TMA loads into shared memory: from when they are issued until they land, nobody may use what they fill.
#pragma once

#include "shared_memory.hpp"

namespace emulator {

template <typename Pieces>
void SharedMemory::begin_load(const Pieces& pieces, const Actor& actor, const Moment& done, uint32_t mbarrier) {
    loads_.push_back({done, actor.from, mbarrier});
    const auto number = static_cast<uint32_t>(loads_.size() - 1);
    uint32_t last_region = kRegions, last_load = 0;
    bool unread = false;
    for (const auto& piece : pieces) {
        const uint32_t at = check(piece.shared, kChunk, kTmaLoad), region = at / kRegion;
        if (region != last_region) unread = reads_.done(region, actor);
        last_region = region;
        ChunkState& state = state_[at / kChunk];
        if (!unread || !state.is_free()) writable(at, kChunk, piece.shared, kTmaLoad, actor, unread);
        if (state.load != last_load && !actor.comes_after(loads_[state.load].done))
            load_race(at, loads_[state.load], actor);
        last_load = state.load;
        if (accesses_.touched(at)) order_load(at, actor);
        state.load = number;
        state.landing = true;
        std::memset(&generic_[at], 0xFF, kChunk);
        std::memset(&async_[at], 0xFF, kChunk);
        ++regions_[region].landing;
        ++regions_[region].version;
    }
}

inline void SharedMemory::wait_for_load(uint32_t address, const char* who, const Actor& actor) {
    const uint32_t at = check(address, kChunk, who);
    const Load& load = loads_[state_[at / kChunk].load];
    if (actor.comes_after(load.done)) return;
    const std::string cause = why_not_landed(*this, load.mbarrier, &actor);
    fail_race(Fault::read_during_load, address, load.from,
              "%s reads shared memory at 0x%x, which a TMA load may still be writing: %s", who, address, cause.c_str());
}

template <typename Piece>
void SharedMemory::land(std::span<const Piece> pieces) {
    constexpr std::size_t kAhead = 16;  // pieces that are fetched into the caches before they are read
    for (std::size_t i = 0; i < pieces.size(); ++i) {
        const Piece& piece = pieces[i];
        if (i + kAhead < pieces.size()) __builtin_prefetch(pieces[i + kAhead].global);
        if (piece.bytes == kChunk) {
            land(piece.shared, piece.global);
            continue;
        }
        Chunk chunk{};
        if (piece.bytes) std::memcpy(&chunk[piece.begin], piece.global, piece.bytes);
        land(piece.shared, chunk.data());
    }
}

inline void SharedMemory::land(uint32_t address, const uint8_t* chunk) {
    const uint32_t at = address - kSharedBase;  // checked when the load began
    std::memcpy(&generic_[at], chunk, kChunk);
    std::memcpy(&async_[at], chunk, kChunk);
    Region& region = regions_[at / kRegion];
    if (region.unfenced)
        for (uint32_t word = at / kWord; word < (at + kChunk) / kWord; ++word) {
            region.unfenced -= writer_[word] != 0;
            writer_[word] = 0;
        }
    state_[at / kChunk].landing = false;
    --region.landing;
    ++region.version;
}

[[gnu::noinline]] inline void SharedMemory::order_load(uint32_t at, const Actor& actor) {
    accesses_.order_load(at, actor);
    const uint32_t first = at / kWord;
    for (uint32_t word = first; word < first + kChunkWords; ++word)
        if (writer_[word] && !published_by_another(word, actor.issuer()))
            fail_race(Fault::missing_proxy_fence, word * kWord + kSharedBase, accesses_.stored_from(word),
                      "TMA load overwrites shared memory at 0x%x that %s wrote without fence.proxy.async: the "
                      "store may come after the load",
                      word * kWord + kSharedBase, name_of_writer(writer_[word] - 1).c_str());
    accesses_.forget(at);
}

[[noreturn, gnu::noinline]] inline void SharedMemory::use_race(uint32_t at, bool writes, const Actor& actor) const {
    const Load& load = loads_[state_[at / kChunk].load];
    const std::string cause = why_not_landed(*this, load.mbarrier, &actor);
    fail_race(writes ? Fault::write_during_load : Fault::read_during_load, at + kSharedBase, load.from,
              "%s shared memory at 0x%x, which a TMA load may still be writing: %s", writes ? "writes" : "reads",
              at + kSharedBase, cause.c_str());
}

[[noreturn, gnu::noinline]] inline void SharedMemory::load_race(uint32_t at, const Load& load,
                                                                const Actor& actor) const {
    fail_race(Fault::data_race, at + kSharedBase, load.from,
              "TMA load overwrites shared memory at 0x%x, which an earlier TMA load has filled, that of %s, and "
              "nothing orders the two: %s",
              at + kSharedBase, who_loads(load.done).c_str(), why_loaded_again(load.done, actor).c_str());
}

[[noreturn, gnu::noinline]] inline void SharedMemory::already_landing(uint32_t address, const char* who,
                                                                      const Load& load, const Actor& actor) const {
    if (who == kTmaLoad)
        fail_race(Fault::write_during_load, address, load.from,
                  "TMA load writes 0x%x while an earlier TMA load is still writing it, that of %s: %s", address,
                  who_loads(load.done).c_str(), why_loaded_again(load.done, actor).c_str());
    const std::string cause = why_not_landed(*this, load.mbarrier, actor.comes_after(load.done) ? nullptr : &actor);
    fail_race(Fault::write_during_load, address, load.from, "%s writes 0x%x while a TMA load is still writing it: %s",
              who, address, cause.c_str());
}

}  // namespace emulator
