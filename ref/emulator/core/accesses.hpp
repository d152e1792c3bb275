// Which threads have loaded and stored each place of a block's shared memory, and whether anything orders a new access
// behind them. Places are chunks of 16 bytes; words where a chunk is used in words; bytes where a word is used in
// pieces.
#pragma once

#include <algorithm>
#include <cstring>
#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "fault.hpp"
#include "order.hpp"
#include "shared_layout.hpp"

namespace emulator {

// These are in causes.hpp.
std::string who_writes(const Moment& by);
std::string missing_after(const Moment& by);
bool is_asynchronous(const Moment& by);

class Accesses {
  public:
    // There are no accesses yet.
    void reset() {
        entries_.resize(kChunks + kWords);
        bytes_of_.resize(kWords);
        chunks_.resize(kChunks);
        regions_.resize(kRegions);
        for (uint32_t region = 0; region < kRegions; ++region) {
            if (!regions_[region].used) continue;
            const uint32_t word = region * kRegionWords, chunk = region * (kRegion / kChunk);
            std::fill_n(entries_.begin() + chunk, kRegion / kChunk, Entry{});
            std::fill_n(entries_.begin() + kChunks + word, kRegionWords, Entry{});
            std::fill_n(bytes_of_.begin() + word, kRegionWords, 0);
            std::fill_n(chunks_.begin() + chunk, kRegion / kChunk, ChunkState{});
            regions_[region] = {};
        }
        readers_.clear();
        free_readers_.clear();
        free_bytes_.clear();
    }

    // Whether a thread has used some of the chunk, or the region, since the last TMA load into it.
    bool touched(uint32_t at) const { return chunks_[at / kChunk].touched; }
    bool touched_region(uint32_t region) const { return regions_[region].touched; }
    // Whether a thread has stored something in the chunk since then.
    bool stored(uint32_t at) const {
        bool stored = false;
        for_each_entry_of(at, [&](uint32_t entry, uint32_t) { stored |= entries_[entry].written.by.number != 0; });
        return stored;
    }
    uint64_t stores(uint32_t region) const { return regions_[region].stores; }  // number of them, into a region

    // A thread loads or stores: whatever it conflicts with must lie before. `data`: what lies there. Returns the offset
    // of something that a load reads and no thread has stored since the last TMA load, or kSharedLimit.
    uint32_t order(uint32_t at, uint32_t bytes, bool writes, Actor& actor, const uint8_t* data) {
        const Use use{at, bytes, writes, data};
        unwritten_ = kSharedLimit;
        for (uint32_t begin = at; begin < at + bytes;) {
            ChunkState& state = chunks_[begin / kChunk];
            const uint32_t next = std::min(at + bytes, (begin / kChunk + 1) * kChunk);
            if (next - begin == kChunk && !state.split)
                order_entry(begin / kChunk, begin, state, use, actor);
            else
                order_words(state, begin, next, use, actor);
            begin = next;
        }
        return unwritten_;
    }

    // A thread's last store had no order with an earlier one of the same place. It is a race only if it has written
    // another value: what several threads set to one value has that value afterwards, whoever was the last. The hook of
    // a store is called before the store, so this is asked as soon as the thread does anything that the emulator sees.
    [[gnu::noinline]] static void settle(Actor& actor) {
        actor.doubtful = false;
        const Doubt doubt = *std::exchange(doubt_, std::nullopt);
        if (std::memcmp(doubt.use.data, doubt.before.data(), doubt.use.bytes) == 0) return;
        actor.from = doubt.from;
        if (doubt.report) doubt.report(reinterpret_cast<uintptr_t>(doubt.use.data));
        write_race(doubt.at, true, doubt.earlier);
    }
    // A store to global memory that has no order with another thread's: `report` is called if it changes what lies
    // there.
    static void doubt(const uint8_t* data, std::size_t bytes, const void* from, Actor& actor,
                      std::function<void(uintptr_t)> report) {
        if (bytes > kChunk) return;
        if (actor.doubtful) settle(actor);
        actor.doubtful = true;
        doubt_ = {0, {0, static_cast<uint32_t>(bytes), true, data}, {}, {}, from, std::move(report)};
        std::memcpy(doubt_->before.data(), data, bytes);
    }

    // `who` is issued, which reads this chunk: of what threads have stored there, its issuer must know. Returns whether
    // it has been told of all; otherwise some are its own.
    bool order_read(uint32_t at, const char* who, const Issuer& issuer) const {
        bool told = true;
        for_each_entry_of(at, [&](uint32_t entry, uint32_t address) {
            const Access& written = entries_[entry].written;
            if (written.by.number == 0 || knows(issuer.known, written.by)) return;
            told = false;
            if (!issuer.comes_after(written.by))
                fail_race(Fault::data_race, address, written.from,
                          "%s reads shared memory at 0x%x, which %s, and nothing orders the two: %s", who, address,
                          who_writes(written.by).c_str(), missing_after(written.by).c_str());
        });
        return told;
    }
    // A TMA load is issued: every thread that has used the chunk must be known to have done so.
    void order_load(uint32_t at, const Actor& actor) const {
        for_each_entry_of(at, [&](uint32_t entry, uint32_t address) {
            const Access* reader = unknown_reader(entries_[entry], actor);
            const Access& written = entries_[entry].written;
            if (!reader && actor.comes_after(written.by)) return;
            const std::string who =
                reader ? std::string(name_of_thread(reader->by.thread).text) + " has read" : who_writes(written.by);
            const std::string cause =
                is_asynchronous(written.by) && !reader
                    ? missing_after(written.by)
                    : "a wait for the stage's empty mbarrier is missing, or the mbarrier counts too few arrivals, or "
                      "there is no __syncwarp() before one lane's arrival for its warp";
            fail_race(Fault::data_race, address, reader ? reader->from : written.from,
                      "TMA load overwrites shared memory at 0x%x, which %s, and nothing orders the two: %s", address,
                      who.c_str(), cause.c_str());
        });
    }
    // The load's data takes the place of what threads have stored.
    void forget(uint32_t at) {
        ChunkState& state = chunks_[at / kChunk];
        if (state.split)
            for (uint32_t word = at / kWord; word < (at + kChunk) / kWord; ++word) {
                unite(word);
                clear(entries_[kChunks + word]);
            }
        clear(entries_[at / kChunk]);
        state = {};
        --regions_[at / kRegion].touched;
    }

    // Whether all that was stored in the word is known.
    bool knows_stores(uint32_t word, const Known& known) const {
        bool all = true;
        for_each_entry(word, [&](uint32_t entry, uint32_t) { all &= knows(known, entries_[entry].written.by); });
        return all;
    }
    // The place in the kernel that stored the word, or its first byte.
    const void* stored_from(uint32_t word) const {
        return entries_[bytes_of_[word] ? bytes_of_[word] : entry(word)].written.from;
    }

  private:
    struct Access {
        Moment by;
        const void* from = nullptr;  // the place in the kernel
    };
    struct Entry {             // what is known of a place
        Access written;        // by a thread's own store
        Access read;           // by a thread's own load, since it was written
        uint32_t readers = 0;  // 1 + index in readers_, if several threads have read it that do not know of each other
    };
    struct Use {  // a thread's load or store
        uint32_t at, bytes;
        bool writes;
        const uint8_t* data;
    };
    struct Doubt {
        uint32_t at;  // the first place without an order
        Use use;
        Chunk before;  // what lay there
        Access earlier;
        const void* from;
        std::function<void(uintptr_t)> report;  // of a store to global memory
    };
    struct ChunkState {
        bool touched = false;  // by a thread's own load or store, since the last TMA load
        bool split = false;    // its words were used one by one; false: all four alike
    };
    struct Region {
        uint32_t touched = 0;  // chunks that are touched
        bool used = false;     // whether any has ever been
        uint64_t stores = 0;
    };

    // From here on each word of the chunk is kept by itself, until the chunk is written whole.
    void order_words(ChunkState& state, uint32_t begin, uint32_t end, const Use& use, Actor& actor) {
        if (!state.split) split_chunk(state, begin / kChunk);
        for (uint32_t at = begin; at < end;) {
            const uint32_t word = at / kWord, next = std::min((word + 1) * kWord, end);
            if (next - at == kWord && !bytes_of_[word])
                order_entry(kChunks + word, at, state, use, actor);
            else
                order_bytes(word, at, next, state, use, actor);
            at = next;
        }
        if (use.writes && end - begin == kChunk) unite_chunk(state, begin / kChunk);
    }
    // What is known of the chunk, the word, or the byte at `at`.
    void order_entry(uint32_t number, uint32_t at, ChunkState& state, const Use& use, Actor& actor) {
        Entry& entry = entries_[number];
        if (!actor.comes_after(entry.written.by)) {
            if (!use.writes || use.bytes > kChunk) write_race(at, use.writes, entry.written);
            doubt(at, use, entry.written, actor);
        }
        Region& region = regions_[at / kRegion];
        if (!state.touched) {
            state.touched = true;
            region.used = true;
            ++region.touched;
        }
        if (use.writes) {
            if (entry.readers || !actor.comes_after(entry.read.by))
                if (const Access* reader = unknown_reader(entry, actor)) read_race(at, *reader);
            clear(entry);
            entry.written = {actor.now(), actor.from};
            ++region.stores;
            return;
        }
        if (!entry.written.by.number) unwritten_ = at;
        if (actor.comes_after(entry.read.by) && !entry.readers) {
            entry.read = {actor.now(), actor.from};
        } else {
            add_reader(entry, {actor.now(), actor.from});
        }
    }
    // A word that is used in pieces has an entry for each of its bytes, behind those of the words, until it is written
    // whole.
    [[gnu::noinline]] void order_bytes(uint32_t word, uint32_t begin, uint32_t end, ChunkState& state, const Use& use,
                                       Actor& actor) {
        if (!bytes_of_[word]) split_word(word);
        for (uint32_t at = begin; at < end; ++at) order_entry(bytes_of_[word] + at % kWord, at, state, use, actor);
        if (use.writes && end - begin == kWord) unite(word);
    }
    void split_chunk(ChunkState& state, uint32_t chunk) {
        state.split = true;
        for (uint32_t word = chunk * kChunkWords; word < (chunk + 1) * kChunkWords; ++word)
            copy_entry(chunk, kChunks + word);
        clear(entries_[chunk]);
    }
    // All words have been written alike.
    void unite_chunk(ChunkState& state, uint32_t chunk) {
        state.split = false;
        entries_[chunk] = entries_[kChunks + chunk * kChunkWords];
    }
    void copy_entry(uint32_t from, uint32_t to) {
        entries_[to] = entries_[from];
        entries_[to].readers = 0;
        if (!entries_[from].readers) return;
        add_reader(entries_[to], {});
        readers_[entries_[to].readers - 1] = readers_[entries_[from].readers - 1];
    }
    void split_word(uint32_t word) {
        if (free_bytes_.empty()) {
            free_bytes_.push_back(static_cast<uint32_t>(entries_.size()));
            entries_.resize(entries_.size() + kWord);
        }
        const uint32_t first = free_bytes_.back();
        free_bytes_.pop_back();
        for (uint32_t entry = first; entry < first + kWord; ++entry) copy_entry(kChunks + word, entry);
        bytes_of_[word] = first;
    }
    // The bytes' entries become the word's again; they all say the same.
    void unite(uint32_t word) {
        const uint32_t first = std::exchange(bytes_of_[word], 0);
        if (!first) return;
        clear(entries_[kChunks + word]);
        entries_[kChunks + word].written = entries_[first].written;
        for (uint32_t entry = first; entry < first + kWord; ++entry) clear(entries_[entry]);
        free_bytes_.push_back(first);
    }
    // The number of the entry of a word without bytes: its own, or that of its chunk.
    uint32_t entry(uint32_t word) const {
        return chunks_[word / kChunkWords].split ? kChunks + word : word / kChunkWords;
    }
    [[gnu::noinline]] static void doubt(uint32_t at, const Use& use, const Access& earlier, Actor& actor) {
        if (actor.doubtful) return;
        actor.doubtful = true;
        doubt_ = {at, use, {}, earlier, actor.from, {}};
        std::memcpy(doubt_->before.data(), use.data, use.bytes);
    }
    // Calls visit(entry, address) for the word, or for each of its bytes.
    template <typename Visit>
    void for_each_entry(uint32_t word, const Visit& visit) const {
        const uint32_t first = bytes_of_[word], address = word * kWord + kSharedBase;
        if (!first) return visit(entry(word), address);
        for (uint32_t i = 0; i < kWord; ++i) visit(first + i, address + i);
    }
    // The same for the chunk, or for each of its words.
    template <typename Visit>
    void for_each_entry_of(uint32_t at, const Visit& visit) const {
        if (!chunks_[at / kChunk].split) return visit(at / kChunk, at + kSharedBase);
        for (uint32_t word = at / kWord; word < (at + kChunk) / kWord; ++word) for_each_entry(word, visit);
    }
    [[gnu::noinline]] static void write_race(uint32_t at, bool writes, const Access& written) {
        fail_race(Fault::data_race, at + kSharedBase, written.from,
                  "%s shared memory at 0x%x, which %s, and nothing orders the two: %s", writes ? "writes" : "reads",
                  at + kSharedBase, who_writes(written.by).c_str(), missing_after(written.by).c_str());
    }
    [[gnu::noinline]] static void read_race(uint32_t at, const Access& reader) {
        fail_race(Fault::data_race, at + kSharedBase, reader.from,
                  "writes shared memory at 0x%x, which %s has read, and nothing orders the two: a barrier is "
                  "missing between them",
                  at + kSharedBase, name_of_thread(reader.by.thread).text);
    }
    const Access* unknown_reader(const Entry& entry, const Actor& actor) const {
        if (!actor.comes_after(entry.read.by)) return &entry.read;
        if (!entry.readers) return nullptr;
        for (const Access& reader : readers_[entry.readers - 1])
            if (!actor.comes_after(reader.by)) return &reader;
        return nullptr;
    }
    // Of many threads that read one place and do not know of each other, the last one of each of kReaders warps is
    // kept.
    void add_reader(Entry& entry, const Access& reader) {
        if (!entry.readers) {
            if (free_readers_.empty()) {
                readers_.emplace_back();
                free_readers_.push_back(static_cast<uint32_t>(readers_.size()));
            }
            entry.readers = free_readers_.back();
            free_readers_.pop_back();
            readers_[entry.readers - 1].fill({});
        }
        readers_[entry.readers - 1][reader.by.thread / 32 % kReaders] = reader;
    }
    void clear(Entry& entry) {
        if (entry.readers) free_readers_.push_back(entry.readers);
        entry = {};
    }

    static constexpr uint32_t kChunks = kSharedLimit / kChunk, kWords = kSharedLimit / kWord;
    static inline thread_local std::optional<Doubt> doubt_;  // of the thread that runs: Actor::doubtful
    uint32_t unwritten_ = kSharedLimit;  // of the access that is being looked at: as order() returns it
    std::vector<ChunkState> chunks_;
    std::vector<Region> regions_;
    // Of each chunk, behind those of each word of chunks that are used in words, and behind those of each byte of words
    // that are used in pieces.
    std::vector<Entry> entries_;
    static constexpr uint32_t kReaders = 16;
    std::vector<std::array<Access, kReaders>> readers_;
    std::vector<uint32_t> free_readers_;  // numbers for Entry::readers that no entry has
    std::vector<uint32_t> bytes_of_;      // for each word: its first byte's entry; 0 = it has none
    std::vector<uint32_t> free_bytes_;    // the first entries of groups of four that no word has
};

}  // namespace emulator
