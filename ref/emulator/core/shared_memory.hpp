// One block's shared memory, kept twice: as threads see it (the generic proxy) and as WGMMA and the copy engine see it
// (the async proxy). A thread's store reaches the async proxy's copy when that thread executes fence.proxy.async.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <optional>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "fault.hpp"
#include "operand.hpp"
#include "order.hpp"

namespace emulator {

constexpr uint32_t kSharedBase = 1024;          // where dynamic shared memory starts; so 0 is never a valid address
constexpr uint32_t kSharedLimit = 232448;       // the most dynamic shared memory a Hopper block can have
constexpr uint32_t kSharedUnasked = 48 * 1024;  // what a block can have without cudaFuncSetAttribute
constexpr uint32_t kRankShift = 24;             // shared::cluster addresses: block rank + 1 above these bits
constexpr uint32_t kOffsetMask = (1u << kRankShift) - 1;
using Chunk = std::array<uint8_t, 16>;

class SharedMemory;
std::string why_not_landed(const SharedMemory& memory, uint32_t mbarrier);  // barriers.hpp
std::string who_writes(const Moment& by);                                   // these are in causes.hpp
std::string missing_after(const Moment& by);
bool is_asynchronous(const Moment& by);
std::string why_loaded_again(const Moment& earlier, const Actor& actor);
std::string who_loads(const Moment& load);
std::string who_reads(const SharedMemory& memory, const AsyncRead& read);
std::string why_not_read(const SharedMemory& memory, const AsyncRead& read);
std::string name_of_mbarrier(const SharedMemory& memory, uint32_t address);

// The chunks of a WGMMA's operand.
struct Footprint {
    std::vector<uint32_t> chunks;   // offsets, in the order of Operand::for_each_chunk
    std::vector<uint32_t> regions;  // of shared memory, that they lie in
    uint32_t readers = 0;           // WGMMAs that may still read them
    Moment noted;                   // AsyncRead::done of the last one of these
};

class SharedMemory {
  public:
    // `bytes` of dynamic shared memory; there are no variables yet. Fresh contents are 0xFF: NaN as FP32, as BF16 and
    // as E4M3.
    void reset(uint32_t bytes) {
        generic_.resize(kSharedLimit);
        async_.resize(kSharedLimit);
        writer_.resize(kSharedLimit / kWord);
        written_.resize(kSharedLimit / kWord);
        read_.resize(kSharedLimit / kWord);
        reader_of_.resize(kSharedLimit / kWord);
        bytes_of_.resize(kSharedLimit / kWord);
        state_.resize(kSharedLimit / kChunk);
        bytes_ = bytes;
        clear(0, (bytes + kChunk - 1) / kChunk * kChunk);
        variables_begin_ = kSharedLimit;
        variables_.clear();
        readers_.clear();
        free_readers_.clear();
        free_bytes_.clear();
        fences_.clear();
        regions_.assign(kSharedLimit / kRegion, {});
        footprints_.clear();
    }

    // The offset of a __shared__ variable, which `key` stands for. The variables lie at the end of shared memory, so
    // what a kernel writes behind its dynamic shared memory does not land in one. Returns nothing if there is no room.
    std::optional<uint32_t> variable(const void* key, uint32_t bytes, uint32_t alignment) {
        for (const auto& [known, offset] : variables_)
            if (known == key) return offset;
        alignment = std::max(alignment, kChunk);
        if (bytes + alignment > variables_begin_ - std::min(bytes_, variables_begin_)) return std::nullopt;
        const uint32_t end = variables_begin_;
        variables_begin_ = (variables_begin_ - bytes) / alignment * alignment;
        clear(variables_begin_, end);
        variables_.emplace_back(key, variables_begin_);
        return variables_begin_;
    }

    // The bytes of the __shared__ variables, with what lies between them.
    uint32_t variables_bytes() const { return kSharedLimit - variables_begin_; }

    // ---- Pointers, as plain C++ uses them
    uint8_t* pointer(uint32_t offset) { return generic_.data() + offset; }
    bool holds(uintptr_t address) const {
        return address - reinterpret_cast<uintptr_t>(generic_.data()) < generic_.size();
    }
    uint32_t address_of(uintptr_t pointer) const {
        return static_cast<uint32_t>(pointer - reinterpret_cast<uintptr_t>(generic_.data())) + kSharedBase;
    }
    // A load or store by way of a pointer, of any size and alignment.
    void use(uint32_t address, uint32_t bytes, bool writes, Actor& actor, bool atomic = false) {
        const uint32_t at = inside(address, bytes, writes ? kStore : kLoad);
        for (uint32_t chunk = at / kChunk; chunk <= (at + bytes - 1) / kChunk; ++chunk) {
            const uint32_t first = std::max(at, chunk * kChunk), last = std::min(at + bytes, (chunk + 1) * kChunk);
            if (writes)
                writable(first, last - first, first + kSharedBase, kStore, actor);
            else
                readable(first, first + kSharedBase, kLoad);
        }
        if (!atomic) order(at, bytes, writes, actor);
        if (writes) mark(at, bytes, actor);
    }

    // ---- Generic proxy: ld.shared and st.shared. A written word is marked with its thread until that thread's fence.
    void read(uint32_t address, void* data, uint32_t bytes, Actor& actor, const char* who = kLoad) {
        const uint32_t at = check(address, bytes, who);
        readable(at, address, who);
        order(at, bytes, false, actor);
        std::memcpy(data, &generic_[at], bytes);
    }
    void write(uint32_t address, const void* data, uint32_t bytes, Actor& actor, const char* who = kStore) {
        const uint32_t at = check(address, bytes, who);
        writable(at, bytes, address, who, actor);
        order(at, bytes, true, actor);
        std::memcpy(&generic_[at], data, bytes);
        if (actor.doubtful) [[unlikely]]
            settle(actor);
        mark(at, bytes, actor);
    }
    // A thread's last store had no order with an earlier one of the same place. It is a race only if it has written
    // another value: what several threads set to one value has that value afterwards, whoever was the last. The hook of
    // a store is called before the store, so this is asked as soon as the thread does anything that the emulator sees.
    [[gnu::noinline]] static void settle(Actor& actor) {
        actor.doubtful = false;
        const Doubt doubt = *std::exchange(doubt_, std::nullopt);
        if (std::memcmp(&doubt.memory->generic_[doubt.use.at], doubt.before.data(), doubt.use.bytes) == 0) return;
        actor.from = doubt.from;
        doubt.memory->write_race(doubt.at, true, doubt.earlier);
    }
    // fence.proxy.async by a thread: its own writes become visible to the async proxy.
    void publish(Actor& actor) {
        for (const Words& words : actor.unfenced) {
            // Words that another thread has overwritten since are not this one's to publish.
            const auto mine = [&](uint32_t word) { return writer_[word] == actor.number + 1; };
            const uint32_t first = words.first;
            if (words.count == kChunkWords && first % kChunkWords == 0 && mine(first) && mine(first + 1) &&
                mine(first + 2) && mine(first + 3)) {
                publish<kChunkWords>(first);
                continue;
            }
            for (uint32_t word = first; word < first + words.count; ++word)
                if (mine(word)) publish<1>(word);
        }
        actor.unfenced.clear();
        if (fences_.size() <= actor.number) fences_.resize(actor.number + 1);
        fences_[actor.number] = {actor.now(), actor.known};
    }

    // ---- Async proxy: WGMMA and TMA, one 16-byte chunk at a time.
    // `issuer` knows what the thread knew that issued the instruction.
    Chunk async_read(uint32_t address, const char* who, const Known& issuer) {
        const uint32_t at = check(address, kChunk, who);
        if (state_[at / kChunk].landing)
            fail_race(Fault::read_during_load, address, state_[at / kChunk].loaded_from,
                      "%s reads shared memory at 0x%x while a TMA load is still writing it: wait for %s first", who,
                      address, name_of_mbarrier(*this, state_[at / kChunk].loaded_on).c_str());
        for (uint32_t word = at / kWord; word < (at + kChunk) / kWord; ++word)
            if (writer_[word] && !published_by_another(word, {issuer, 0, 0}))
                fail_race(Fault::missing_proxy_fence, address,
                          written_[bytes_of_[word] ? bytes_of_[word] : entry(word)].from,
                          "%s reads shared memory at 0x%x that %s wrote without fence.proxy.async", who, address,
                          name_of_thread(writer_[word] - 1).text);
        Chunk chunk;
        std::memcpy(chunk.data(), &async_[at], kChunk);
        return chunk;
    }
    // A load has been issued: until it lands, no one may read or write this chunk, and it holds NaN.
    void begin_load(uint32_t address, const Actor& actor, const Moment& load, uint32_t mbarrier) {
        const uint32_t at = check(address, kChunk, kTmaLoad);
        writable(at, kChunk, address, kTmaLoad, actor);
        ChunkState& state = state_[at / kChunk];
        order_load(at, state, actor);
        state.read = {};
        state.loaded = load;
        state.loaded_from = actor.from;
        state.loaded_on = mbarrier;
        std::memset(&generic_[at], 0xFF, kChunk);
        std::memset(&async_[at], 0xFF, kChunk);
        state.landing = true;
        Region& region = regions_[at / kRegion];
        ++region.landing;
        ++region.version;
    }
    // A lane issues a WGMMA that reads this chunk: it, or a lane that it has met since, must have waited for the load
    // that filled it.
    void wait_for_load(uint32_t address, const char* who, const Actor& actor) {
        const uint32_t at = check(address, kChunk, who);
        const ChunkState& state = state_[at / kChunk];
        if (state.landing || actor.comes_after(state.loaded)) return;
        const std::string cause = why_not_landed(*this, state.loaded_on);
        fail_race(Fault::read_during_load, address, state.loaded_from,
                  "%s reads shared memory at 0x%x, which a TMA load may still be writing: %s", who, address,
                  cause.c_str());
    }
    void land(uint32_t address, const Chunk& chunk) {
        const uint32_t at = address - kSharedBase;  // checked when the load began
        std::memcpy(&generic_[at], chunk.data(), kChunk);
        std::memcpy(&async_[at], chunk.data(), kChunk);
        Region& region = regions_[at / kRegion];
        for (uint32_t word = at / kWord; word < (at + kChunk) / kWord; ++word) {
            region.unfenced -= writer_[word] != 0;
            writer_[word] = 0;
        }
        state_[at / kChunk].landing = false;
        --region.landing;
        ++region.version;
    }
    // A TMA store reads this chunk at some moment between begin_read and end_read. What threads have stored there must
    // lie before `issuer`.
    void begin_read(uint32_t address, const AsyncRead& read, const Issuer& issuer) {
        const uint32_t at = check(address, kChunk, read.who);
        ++state_[at / kChunk].reading;
        order_async_read(at, read, issuer);
    }
    void end_read(uint32_t address) { --state_[(address - kSharedBase) / kChunk].reading; }

    // ---- The operands of WGMMAs. They are read so often that what is known of a region stands for its chunks.
    Footprint& footprint(const Operand& operand) {
        const auto [found, is_new] = footprints_.try_emplace(operand);
        Footprint& footprint = found->second;
        if (!is_new) return footprint;
        operand.for_each_chunk([&](uint32_t address, uint32_t, uint32_t) {
            footprint.chunks.push_back(check(address, kChunk, operand.who));
            const uint32_t region = footprint.chunks.back() / kRegion;
            if (std::ranges::find(footprint.regions, region) == footprint.regions.end())
                footprint.regions.push_back(region);
        });
        return footprint;
    }
    // A WGMMA reads the operand at some moment between begin_read and end_read.
    void begin_read(Footprint& operand, const AsyncRead& read, const Issuer& issuer) {
        const bool touched =
            std::ranges::any_of(operand.regions, [this](uint32_t region) { return regions_[region].touched; });
        // The warps of a warpgroup read the same B: where threads have stored nothing, one of them stands for all.
        if (touched || operand.noted.number != read.done.number || operand.noted.thread != read.done.thread)
            for (const uint32_t at : operand.chunks) order_async_read(at, read, issuer);
        operand.noted = read.done;
        ++operand.readers;
        for (const uint32_t region : operand.regions) ++regions_[region].reading;
    }
    void end_read(Footprint& operand) {
        --operand.readers;
        for (const uint32_t region : operand.regions) --regions_[region].reading;
    }
    // A number that rises when what the async proxy sees of these regions changes; or nothing, if a TMA load is on its
    // way into one of them or a store to it is not fenced.
    std::optional<uint64_t> version(const Footprint& operand) const {
        uint64_t sum = 0;
        for (const uint32_t number : operand.regions) {
            const Region& region = regions_[number];
            if (region.landing || region.unfenced) return std::nullopt;
            sum += region.version;
        }
        return sum;
    }
    // A WGMMA reads the operand: calls visit(number, chunk) for every chunk.
    template <typename Visit>
    void async_read(const Footprint& operand, const char* who, const Known& issuer, const Visit& visit) {
        if (!version(operand))
            for (const uint32_t at : operand.chunks) async_read(at + kSharedBase, who, issuer);
        for (std::size_t i = 0; i < operand.chunks.size(); ++i) visit(i, &async_[operand.chunks[i]]);
    }

    // Whether there could be an mbarrier.
    void check_mbarrier(uint32_t address, const char* who) const { check(address, kMbarrier, who); }
    void mark_mbarrier(uint32_t address, bool is = true) {
        const uint32_t at = check(address, kMbarrier, "mbarrier.init");
        state_[at / kChunk].mbarrier[at % kChunk / kMbarrier] = is;
    }

    static constexpr uint32_t kChunk = sizeof(Chunk);

  private:
    static constexpr uint32_t kWord = 4, kMbarrier = 8, kChunkWords = kChunk / kWord;
    static constexpr uint32_t kRegion = 1024;  // one atom of the 128-byte swizzle
    static constexpr const char *kStore = "st.shared", *kLoad = "ld.shared", *kTmaLoad = "TMA load";
    struct Access {
        Moment by;
        const void* from = nullptr;  // the place in the kernel
    };
    struct Use {  // a thread's load or store
        uint32_t at, bytes;
        bool writes;
    };
    struct Doubt {
        const SharedMemory* memory;
        uint32_t at;  // the first place without an order
        Use use;
        Chunk before;  // what lay there
        Access earlier;
        const void* from;
    };
    static inline thread_local std::optional<Doubt> doubt_;  // of the thread that runs: Actor::doubtful
    struct ChunkState {
        uint16_t reading = 0;                             // number of TMA stores that may still read it
        bool landing = false;                             // a TMA load is on its way
        bool touched = false;                             // by a thread's own load or store, since the last TMA load
        bool read_twice = false;                          // by WGMMAs of which the second came after the first's end
        bool split = false;                               // its words were used one by one; false: all four alike
        Moment loaded;                                    // of the last TMA load, which those know who waited for it
        const void* loaded_from = nullptr;                // by which place in the kernel
        uint32_t loaded_on = 0;                           // the mbarrier on which it completes
        AsyncRead read;                                   // the last one of these, since the chunk was written
        std::array<bool, kChunk / kMbarrier> mbarrier{};  // whether each half of the chunk is an mbarrier
    };

    struct Region {
        uint32_t reading = 0;   // number of WGMMAs that may still read some of its chunks
        uint32_t landing = 0;   // chunks into which a TMA load is on its way
        uint32_t unfenced = 0;  // words that have a writer_
        uint32_t touched = 0;   // chunks that are touched
        uint64_t version = 0;   // rises with each change of async_
    };
    struct Hash {
        std::size_t operator()(const Operand& operand) const {
            return (operand.bits ^ operand.bits >> 32 ^ static_cast<uint64_t>(operand.first) << 20 ^ operand.last) *
                   0x9E3779B97F4A7C15;
        }
    };

    void clear(uint32_t begin, uint32_t end) {
        std::fill(generic_.begin() + begin, generic_.begin() + end, 0xFF);
        std::fill(async_.begin() + begin, async_.begin() + end, 0xFF);
        std::fill(writer_.begin() + begin / kWord, writer_.begin() + end / kWord, 0);
        std::fill(state_.begin() + begin / kChunk, state_.begin() + end / kChunk, ChunkState{});
        std::fill(written_.begin() + begin / kWord, written_.begin() + end / kWord, Access{});
        std::fill(read_.begin() + begin / kWord, read_.begin() + end / kWord, Access{});
        std::fill(reader_of_.begin() + begin / kWord, reader_of_.begin() + end / kWord, 0);
        std::fill(bytes_of_.begin() + begin / kWord, bytes_of_.begin() + end / kWord, 0);
    }
    // Words of one region, all of which have a writer_.
    template <uint32_t kWords>
    void publish(uint32_t first) {
        Region& region = regions_[first / (kRegion / kWord)];
        region.unfenced -= kWords;
        ++region.version;
        std::fill_n(writer_.begin() + first, kWords, 0u);
        std::memcpy(&async_[first * kWord], &generic_[first * kWord], kWords * kWord);
    }
    // Whether a thread that knows of the write has executed fence.proxy.async, and the issuer of an asynchronous access
    // knows of that: PTX asks for a proxy fence somewhere on the way from the write to the access, not of the writer.
    bool published_by_another(uint32_t word, const Issuer& issuer) {
        for (const Fence& fence : fences_) {
            if (!fence.when.number || !issuer.comes_after(fence.when)) continue;
            bool known = true;
            for_each_entry(word, [&](uint32_t entry, uint32_t) { known &= knows(fence.known, written_[entry].by); });
            if (!known) continue;
            publish<1>(word);
            return true;
        }
        return false;
    }

    // An asynchronous read is issued: of what threads have stored, its issuer must know.
    void order_async_read(uint32_t at, const AsyncRead& read, const Issuer& issuer) {
        if (!read.done.number) return;
        ChunkState& state = state_[at / kChunk];
        if (state.read.done.number != read.done.number || state.read.done.thread != read.done.thread) {
            state.read_twice = read.progress && state.read.progress == read.progress && state.read.done.number &&
                               knows(issuer.known, state.read.done);
            state.read = read;
        }
        if (!state.touched) return;
        for (uint32_t word = at / kWord; word < (at + kChunk) / kWord; ++word)
            if (writer_[word]) published_by_another(word, issuer);  // the issuer's own fences count
        for_each_entry_of(at, state, [&](uint32_t entry, uint32_t address) {
            const Access& written = written_[entry];
            if (issuer.comes_after(written.by)) return;
            fail_race(Fault::data_race, address, written.from,
                      "%s reads shared memory at 0x%x, which %s, and nothing orders the two: %s", read.who, address,
                      who_writes(written.by).c_str(), missing_after(written.by).c_str());
        });
    }
    // A store or a TMA load (`who`) overwrites what an asynchronous read need not have read yet: its wait does not lie
    // before. A thread that does not even know that the read was issued has met no barrier since.
    [[noreturn, gnu::noinline]] void overwritten(uint32_t address, const char* who, const ChunkState& state,
                                                 const Actor& actor) const {
        const AsyncRead& read = state.read;
        const std::string reader = who_reads(*this, read);
        const bool own = read.warp == (read.progress ? actor.index / 128 * 4 : actor.index / 32);
        const bool races = who != kTmaLoad && !own && !actor.comes_after(read.issued);
        std::string cause;
        if (!read.progress)
            cause = why_not_read(*this, read);
        else if (who == kTmaLoad && !state.loaded.number && !state.touched)
            cause =
                "nothing had filled it when the WGMMA was issued: its wait for the stage's full mbarrier is missing, "
                "or "
                "has the wrong parity";
        else if (who == kTmaLoad && state.read_twice)
            cause =
                "an earlier WGMMA had read the same and was done, so this one came before its load: its wait for the "
                "stage's full mbarrier is missing, or has the wrong parity";
        else if (actor.comes_after(read.issued))
            cause =
                "it is committed, and the arrival or barrier that says that it is done came before wgmma.wait_group, "
                "or the wait's N leaves it in flight";
        else if (read.progress->committed < read.done.number)
            cause =
                "it is not committed, so that a wait waits for nothing: wgmma.commit_group is missing, or a wait for "
                "the arrival that follows the WGMMA";
        else
            cause =
                "nothing tells this thread that it is done: a wait for the stage's empty mbarrier is missing, or that "
                "one's count is too small to include the warpgroup's arrival";
        fail_race(races ? Fault::data_race : Fault::released_too_early, address, read.from,
                  races ? "%s overwrites shared memory at 0x%x, which %s reads, and nothing orders the two: %s"
                        : "%s overwrites shared memory at 0x%x, which %s may still read: %s",
                  who, address, reader.c_str(), cause.c_str());
    }

    // A thread loads or stores: whatever it conflicts with must lie before.
    void order(uint32_t at, uint32_t bytes, bool writes, Actor& actor) {
        if (actor.doubtful) [[unlikely]]
            settle(actor);
        if (actor.moment == 0) return;
        const Use use{at, bytes, writes};
        for (uint32_t begin = at; begin < at + bytes;) {
            ChunkState& state = state_[begin / kChunk];
            const uint32_t next = std::min(at + bytes, (begin / kChunk + 1) * kChunk);
            if (next - begin == kChunk && !state.split)
                order_entry(begin / kWord, begin, state, use, actor);
            else
                order_words(state, begin, next, use, actor);
            begin = next;
        }
    }
    // From here on each word of the chunk is kept by itself, until the chunk is written whole.
    void order_words(ChunkState& state, uint32_t begin, uint32_t end, const Use& use, Actor& actor) {
        if (!state.split) split_chunk(state, begin / kChunk * kChunkWords);
        for (uint32_t at = begin; at < end;) {
            const uint32_t word = at / kWord, next = std::min((word + 1) * kWord, end);
            if (next - at == kWord && !bytes_of_[word])
                order_entry(word, at, state, use, actor);
            else
                order_bytes(word, at, next, state, use, actor);
            at = next;
        }
        if (use.writes && end - begin == kChunk) state.split = false;
    }
    // What is known of the chunk, the word, or the byte at `at`.
    void order_entry(uint32_t entry, uint32_t at, ChunkState& state, const Use& use, Actor& actor) {
        Access& written = written_[entry];
        if (!actor.comes_after(state.loaded)) load_race(at, use.writes, state);
        if (!actor.comes_after(written.by)) {
            if (!use.writes || use.bytes > kChunk) write_race(at, use.writes, written);
            doubt(at, use, written, actor);
        }
        if (!state.touched) {
            state.touched = true;
            ++regions_[at / kRegion].touched;
        }
        if (use.writes) {
            if (reader_of_[entry] || !actor.comes_after(read_[entry].by))
                if (const Access* reader = unknown_reader(entry, actor)) read_race(at, *reader);
            written = {actor.now(), actor.from};
            forget_readers(entry);
        } else if (actor.comes_after(read_[entry].by) && !reader_of_[entry]) {
            read_[entry] = {actor.now(), actor.from};
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
    void split_chunk(ChunkState& state, uint32_t first) {
        state.split = true;
        for (uint32_t word = first + 1; word < first + kChunkWords; ++word) copy_entry(first, word);
    }
    void copy_entry(uint32_t from, uint32_t to) {
        written_[to] = written_[from];
        read_[to] = read_[from];
        reader_of_[to] = 0;
        if (!reader_of_[from]) return;
        add_reader(to, {});
        readers_[reader_of_[to] - 1] = readers_[reader_of_[from] - 1];
    }
    void split_word(uint32_t word) {
        if (free_bytes_.empty()) {
            free_bytes_.push_back(static_cast<uint32_t>(written_.size()));
            written_.resize(written_.size() + kWord);
            read_.resize(written_.size());
            reader_of_.resize(written_.size());
        }
        const uint32_t first = free_bytes_.back();
        free_bytes_.pop_back();
        for (uint32_t entry = first; entry < first + kWord; ++entry) copy_entry(word, entry);
        bytes_of_[word] = first;
    }
    // The bytes' entries become the word's again; they all say the same.
    void unite(uint32_t word) {
        const uint32_t first = std::exchange(bytes_of_[word], 0);
        if (!first) return;
        written_[word] = written_[first];
        forget_readers(word);
        for (uint32_t entry = first; entry < first + kWord; ++entry) forget_readers(entry);
        free_bytes_.push_back(first);
    }
    // The entry in written_, read_ and reader_of_ of a word without bytes: the first word's is that of a whole chunk.
    uint32_t entry(uint32_t word) const {
        return state_[word / kChunkWords].split ? word : word / kChunkWords * kChunkWords;
    }
    [[gnu::noinline]] void doubt(uint32_t at, const Use& use, const Access& earlier, Actor& actor) {
        if (actor.doubtful) return;
        actor.doubtful = true;
        doubt_ = {this, at, use, {}, earlier, actor.from};
        std::memcpy(doubt_->before.data(), &generic_[use.at], use.bytes);
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
    void for_each_entry_of(uint32_t at, const ChunkState& state, const Visit& visit) const {
        if (!state.split) return visit(at / kWord, at + kSharedBase);
        for (uint32_t word = at / kWord; word < (at + kChunk) / kWord; ++word) for_each_entry(word, visit);
    }
    [[gnu::noinline]] void load_race(uint32_t at, bool writes, const ChunkState& state) const {
        const std::string cause = why_not_landed(*this, state.loaded_on);
        fail_race(writes ? Fault::write_during_load : Fault::read_during_load, at + kSharedBase, state.loaded_from,
                  "%s shared memory at 0x%x, which a TMA load may still be writing: %s", writes ? "writes" : "reads",
                  at + kSharedBase, cause.c_str());
    }
    [[gnu::noinline]] void write_race(uint32_t at, bool writes, const Access& written) const {
        fail_race(Fault::data_race, at + kSharedBase, written.from,
                  "%s shared memory at 0x%x, which %s, and nothing orders the two: %s", writes ? "writes" : "reads",
                  at + kSharedBase, who_writes(written.by).c_str(), missing_after(written.by).c_str());
    }
    [[gnu::noinline]] void read_race(uint32_t at, const Access& reader) const {
        fail_race(Fault::data_race, at + kSharedBase, reader.from,
                  "writes shared memory at 0x%x, which %s has read, and nothing orders the two: a barrier is "
                  "missing between them",
                  at + kSharedBase, name_of_thread(reader.by.thread).text);
    }
    // A TMA load is issued: every thread that has used what it overwrites must be known to have done so.
    void order_load(uint32_t at, ChunkState& state, const Actor& actor) {
        if (!actor.comes_after(state.loaded))
            fail_race(
                Fault::data_race, at + kSharedBase, state.loaded_from,
                "TMA load overwrites shared memory at 0x%x, which an earlier TMA load has filled, that of %s, and "
                "nothing orders the two: %s",
                at + kSharedBase, who_loads(state.loaded).c_str(), why_loaded_again(state.loaded, actor).c_str());
        if (!state.touched) return;
        for_each_entry_of(at, state, [&](uint32_t entry, uint32_t address) {
            const Access* reader = unknown_reader(entry, actor);
            const Access& written = written_[entry];
            if (!reader && actor.comes_after(written.by)) return;
            const std::string who =
                reader ? std::string(name_of_thread(reader->by.thread).text) + " has read" : who_writes(written.by);
            const std::string cause =
                is_asynchronous(written.by) && !reader
                    ? missing_after(written.by)
                    : "__syncwarp() before one lane's arrival for its warp, or an arrival of each lane";
            fail_race(Fault::data_race, address, reader ? reader->from : written.from,
                      "TMA load overwrites shared memory at 0x%x, which %s, and nothing orders the two: %s", address,
                      who.c_str(), cause.c_str());
        });
        const uint32_t first = at / kWord;
        for (uint32_t word = first; word < first + kChunkWords; ++word)
            if (writer_[word] && !published_by_another(word, actor.issuer()))
                fail_race(Fault::missing_proxy_fence, word * kWord + kSharedBase,
                          written_[bytes_of_[word] ? bytes_of_[word] : entry(word)].from,
                          "TMA load overwrites shared memory at 0x%x that %s wrote without fence.proxy.async: the "
                          "store may come after the load",
                          word * kWord + kSharedBase, name_of_thread(writer_[word] - 1).text);
        for (uint32_t word = first; word < first + (state.split ? kChunkWords : 1); ++word) {
            unite(word);
            written_[word] = {};
            forget_readers(word);
        }
        state.split = false;
        state.touched = false;
        --regions_[at / kRegion].touched;
    }
    const Access* unknown_reader(uint32_t entry, const Actor& actor) const {
        if (!actor.comes_after(read_[entry].by)) return &read_[entry];
        if (!reader_of_[entry]) return nullptr;
        for (const Access& reader : readers_[reader_of_[entry] - 1])
            if (!actor.comes_after(reader.by)) return &reader;
        return nullptr;
    }
    // Of many threads that read one entry and do not know of each other, the last one of each of kReaders warps is
    // kept.
    void add_reader(uint32_t entry, const Access& reader) {
        if (!reader_of_[entry]) {
            if (free_readers_.empty()) {
                readers_.emplace_back();
                free_readers_.push_back(static_cast<uint32_t>(readers_.size()));
            }
            reader_of_[entry] = free_readers_.back();
            free_readers_.pop_back();
            readers_[reader_of_[entry] - 1] = {};
        }
        readers_[reader_of_[entry] - 1][reader.by.thread / 32 % kReaders] = reader;
    }
    void forget_readers(uint32_t entry) {
        read_[entry] = {};
        if (!reader_of_[entry]) return;
        free_readers_.push_back(reader_of_[entry]);
        reader_of_[entry] = 0;
    }

    void mark(uint32_t at, uint32_t bytes, Actor& actor) {
        const uint32_t first = at / kWord, end = (at + bytes - 1) / kWord + 1, writer = actor.number + 1;
        bool is_new = false;
        for (uint32_t word = first; word < end; ++word) {
            if (writer_[word] == writer) continue;
            is_new = true;
            regions_[word / (kRegion / kWord)].unfenced += writer_[word] == 0;
            writer_[word] = writer;
        }
        if (is_new) actor.unfenced.push_back({first, end - first});
    }
    [[gnu::noinline]] bool read_by_wgmma(uint32_t chunk) const {
        return std::ranges::any_of(footprints_, [chunk](const auto& entry) {
            return entry.second.readers && std::ranges::find(entry.second.chunks, chunk) != entry.second.chunks.end();
        });
    }
    void readable(uint32_t at, uint32_t address, const char* who) const {
        if (const ChunkState& state = state_[at / kChunk]; state.landing)
            fail_race(Fault::read_during_load, address, state.loaded_from,
                      "%s at 0x%x reads bytes that a TMA load is still writing: wait for %s first", who, address,
                      name_of_mbarrier(*this, state.loaded_on).c_str());
    }
    // The offset of an address that lies in the dynamic shared memory, or among the variables.
    uint32_t inside(uint32_t address, uint32_t bytes, const char* who) const {
        const uint32_t at = address - kSharedBase;
        const bool dynamic = address >= kSharedBase && at + bytes <= bytes_;
        if (!dynamic && (at < variables_begin_ || at + bytes > kSharedLimit || address < kSharedBase))
            fail_at(Fault::out_of_bounds, address,
                    "%s at 0x%x (%u bytes) is outside the block's shared memory, 0x%x to 0x%x", who, address, bytes,
                    kSharedBase, kSharedBase + bytes_);
        return at;
    }
    uint32_t check(uint32_t address, uint32_t bytes, const char* who) const {
        const uint32_t at = inside(address, bytes, who);
        if (address % bytes)
            fail_at(Fault::misaligned, address, "%s of %u bytes at 0x%x, which is not a multiple of %u", who, bytes,
                    address, bytes);
        return at;
    }
    void writable(uint32_t at, uint32_t bytes, uint32_t address, const char* who, const Actor& actor) const {
        const ChunkState& state = state_[at / kChunk];
        if (state.landing && who == kTmaLoad)
            fail_race(Fault::write_during_load, address, state.loaded_from,
                      "TMA load writes 0x%x while an earlier TMA load is still writing it, that of %s: %s", address,
                      who_loads(state.loaded).c_str(), why_loaded_again(state.loaded, actor).c_str());
        if (state.landing)
            fail_race(Fault::write_during_load, address, state.loaded_from,
                      "%s writes 0x%x while a TMA load is still writing it: wait for %s first", who, address,
                      name_of_mbarrier(*this, state.loaded_on).c_str());
        if (!actor.comes_after(state.read.done)) overwritten(address, who, state, actor);
        if (state.reading || (regions_[at / kRegion].reading && read_by_wgmma(at / kChunk * kChunk)))
            fail_at(Fault::released_too_early, address,
                    "%s overwrites 0x%x while a WGMMA or a TMA store may still read it: released too early%s", who,
                    address, reader_of(*this, address).c_str());
        const uint32_t first = at % kChunk;  // a write is aligned to its size, so it ends in this chunk
        for (uint32_t half = first / kMbarrier; half <= (first + bytes - 1) / kMbarrier; ++half)
            if (state.mbarrier[half])
                fail_at(Fault::mbarrier_overwritten, address, "%s of %u bytes at 0x%x overwrites %s", who, bytes,
                        address,
                        name_of_mbarrier(*this, at / kChunk * kChunk + half * kMbarrier + kSharedBase).c_str());
    }

    uint32_t bytes_ = 0, variables_begin_ = kSharedLimit;
    std::vector<std::pair<const void*, uint32_t>> variables_;
    std::vector<uint8_t> generic_, async_;
    std::vector<uint32_t> writer_;  // for each word: 1 + the thread whose store is not fenced yet; 0 = none
    // The following have an entry for each word, and behind those for each byte of words that are used in pieces.
    std::vector<Access> written_;  // by a thread's own store
    std::vector<Access> read_;     // by a thread's own load, since it was written
    static constexpr uint32_t kReaders = 16;
    std::vector<std::array<Access, kReaders>> readers_;
    std::vector<uint32_t> free_readers_, reader_of_;  // 1 + index in readers_; reader_of_ for each entry, 0 = none
    std::vector<uint32_t> bytes_of_;                  // for each word: its first byte's entry; 0 = it has none
    std::vector<uint32_t> free_bytes_;                // the first entries of groups of four that no word has
    struct Fence {
        Moment when;
        Known known;
    };
    std::vector<Fence> fences_;  // the last fence.proxy.async of each thread
    std::vector<ChunkState> state_;
    std::vector<Region> regions_;
    std::unordered_map<Operand, Footprint, Hash> footprints_;
};

}  // namespace emulator
