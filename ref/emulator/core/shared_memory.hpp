// One block's shared memory, kept twice: as threads see it (the generic proxy) and as WGMMA and the copy engine see it
// (the async proxy). A thread's store reaches the async proxy's copy when that thread executes fence.proxy.async.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "accesses.hpp"
#include "async_reads.hpp"
#include "fault.hpp"
#include "names.hpp"
#include "order.hpp"
#include "shared_layout.hpp"
#include "shared_variables.hpp"

namespace emulator {

class SharedMemory;
std::string why_not_landed(const SharedMemory& memory, uint32_t mbarrier, const Actor* actor);  // barriers.hpp
std::string why_loaded_again(const Moment& earlier, const Actor& actor);  // these are in causes.hpp
std::string who_loads(const Moment& load);
void note_unwritten(uint32_t address, const void* from, const std::string& name);
std::string name_of_writer(uint32_t number);
std::string name_of_mbarrier(const SharedMemory& memory, uint32_t address);
[[noreturn]] void overwritten(const SharedMemory& memory, uint32_t address, const char* who, const AsyncRead& read,
                              const Actor& actor);

class SharedMemory {
  public:
    // `bytes` of dynamic shared memory; there are no variables yet. Each byte is `fresh`. 0xFF is NaN as FP32, as BF16
    // and as E4M3.
    void reset(uint32_t bytes, uint8_t fresh) {
        fresh_ = fresh;
        generic_.resize(kSharedLimit);
        async_.resize(kSharedLimit);
        writer_.resize(kSharedLimit / kWord);
        for (uint32_t region = 0; region < regions_.size(); ++region)
            if (regions_[region].unfenced) std::fill_n(writer_.begin() + region * kRegionWords, kRegionWords, 0);
        state_.assign(kSharedLimit / kChunk, {});
        regions_.assign(kRegions, {});
        accesses_.reset();
        reads_.reset(bytes == bytes_ && variables_.none());
        bytes_ = bytes;
        clear(0, (bytes + kChunk - 1) / kChunk * kChunk);
        variables_.reset(bytes);
        loads_.assign(1, {});
        forget();
    }
    // What threads knew is kept no longer: its memory belongs to the OS thread that runs the cluster (Known), and this
    // object may be used by another one next, or be destroyed when none of them is left.
    void forget() {
        fences_.clear();
        reads_.forget();
    }

    // The offset of a __shared__ variable, which gets one when it is used first. Returns nothing if there is no room.
    std::optional<uint32_t> variable(const SharedVariable& variable, uint32_t alignment) {
        if (const auto known = variables_.find(variable)) return known;
        const uint32_t end = variables_.begin();
        const auto offset = variables_.add(variable, alignment);
        if (offset) clear(*offset, end);
        return offset;
    }
    // What a place in a __shared__ variable is called, such as "tile[3][5]"; "" for any other place.
    std::string name_at(uint64_t address) const { return variables_.name_at(address - kSharedBase); }
    // Of a pointer outside, such as one behind an array's last element: how far behind the last variable it is; "" if
    // it is nowhere near.
    std::string nearest_variable(uintptr_t pointer) const {
        constexpr uintptr_t kNear = 4096;
        const uintptr_t behind = pointer - reinterpret_cast<uintptr_t>(generic_.data()) - kSharedLimit;
        return behind < kNear ? variables_.behind(behind + kSharedLimit) : "";
    }
    // The bytes of the __shared__ variables, with what lies between them.
    uint32_t variables_bytes() const { return kSharedLimit - variables_.begin(); }

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
                readable(first, first + kSharedBase, kLoad, actor);
        }
        if (!atomic) order(at, bytes, writes, actor);
        if (writes) mark(at, bytes, actor);
    }

    // ---- Generic proxy: ld.shared and st.shared. A written word is marked with its thread until that thread's fence.
    void read(uint32_t address, void* data, uint32_t bytes, Actor& actor, const char* who = kLoad) {
        const uint32_t at = check(address, bytes, who);
        readable(at, address, who, actor);
        order(at, bytes, false, actor);
        std::memcpy(data, &generic_[at], bytes);
    }
    void write(uint32_t address, const void* data, uint32_t bytes, Actor& actor, const char* who = kStore) {
        const uint32_t at = check(address, bytes, who);
        writable(at, bytes, address, who, actor);
        order(at, bytes, true, actor);
        std::memcpy(&generic_[at], data, bytes);
        if (actor.doubtful) [[unlikely]]
            Accesses::settle(actor);
        mark(at, bytes, actor);
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
            fail_race(Fault::read_during_load, address, loads_[state_[at / kChunk].load].from,
                      "%s reads shared memory at 0x%x while a TMA load is still writing it: %s", who, address,
                      why_not_landed(*this, loads_[state_[at / kChunk].load].mbarrier, nullptr).c_str());
        for (uint32_t word = at / kWord; word < (at + kChunk) / kWord; ++word)
            if (writer_[word] && !published_by_another(word, {issuer, 0, 0}))
                fail_race(Fault::missing_proxy_fence, address, accesses_.stored_from(word),
                          "%s reads shared memory at 0x%x that %s wrote without fence.proxy.async", who, address,
                          name_of_writer(writer_[word] - 1).c_str());
        Chunk chunk;
        std::memcpy(chunk.data(), &async_[at], kChunk);
        return chunk;
    }
    // ---- TMA loads into it (shared_memory_loads.hpp)
    // A load has been issued: until it lands, no one may read or write these chunks, and they hold NaN. `pieces` have
    // their addresses, as `shared`.
    template <typename Pieces>
    void begin_load(const Pieces& pieces, const Actor& actor, const Moment& done, uint32_t mbarrier);
    // A lane issues a WGMMA that reads this chunk: it, or a lane that it has met since, must have waited for the load
    // that filled it.
    void wait_for_load(uint32_t address, const char* who, const Actor& actor);
    // Some of the load's chunks arrive from global memory. Elements outside the tensor arrive as zeros.
    template <typename Piece>
    void land(std::span<const Piece> pieces);
    // One of the load's chunks, with its data.
    void land(uint32_t address, const uint8_t* chunk);

    // The copy engine reads `bytes` bytes, which it need not have read before end_read. What threads have stored there
    // must lie before `issuer`.
    void begin_read(uint32_t address, uint32_t bytes, const AsyncRead& read, const Actor& issuer) {
        const uint32_t number = reads_.add(read);
        for (uint32_t at = address; at < address + bytes; at += kChunk) {
            wait_for_load(at, read.who, issuer);
            const uint32_t offset = check(at, kChunk, read.who);
            reads_.begin(offset, number);
            if (read.done.number && accesses_.touched(offset)) order_read(offset, read.who, issuer.issuer());
        }
    }
    void end_read(uint32_t address) { reads_.end(address - kSharedBase); }

    // ---- The operands of WGMMAs
    Footprint& footprint(const Operand& operand) {
        return reads_.footprint(operand, [&](uint32_t address) { return check(address, kChunk, operand.who); });
    }
    // The first lane of a warp issues a WGMMA, which reads the operand at some moment between begin_read and end_read.
    void begin_read(Footprint& operand, AsyncRead read) {
        read.load = state_[operand.chunks.front() / kChunk].load;
        reads_.begin(operand, read);
    }
    // The last lane has issued it: what threads have stored there must lie before.
    void order_read(Footprint& operand, const char* who, const Issuer& issuer) {
        uint64_t stores = 0;
        bool touched = false, unfenced = false;
        for (const uint32_t region : operand.regions) {
            stores += accesses_.stores(region);
            touched |= accesses_.touched_region(region);
            unfenced |= regions_[region].unfenced != 0;
        }
        const bool is_known = operand.checked && operand.checked == issuer.known && operand.checked_stores == stores;
        if (!touched || (is_known && !unfenced)) return;
        bool told = true;
        for (const uint32_t at : operand.chunks)
            if (accesses_.touched(at)) told &= order_read(at, who, issuer);
        operand.checked = told ? issuer.known : nullptr;
        operand.checked_stores = stores;
    }
    void end_read(Footprint& operand, const WgmmaProgress* progress) { reads_.end(operand, progress); }
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

    // Whether a TMA load has filled this chunk, or a thread has used it.
    bool filled(uint32_t address) const {
        const uint32_t at = address - kSharedBase;
        return state_[at / kChunk].load || accesses_.touched(at);
    }
    bool reads_again(const AsyncRead& read) const { return reads_.reads_again(read); }
    // Whether a thread has stored something in this chunk since the last TMA load filled it.
    bool has_stored(uint32_t address) const { return accesses_.stored((address - kSharedBase) / kChunk * kChunk); }

    // Whether there could be an mbarrier.
    void check_mbarrier(uint32_t address, const char* who) const { check(address, kMbarrier, who); }
    void mark_mbarrier(uint32_t address, bool is = true) {
        const uint32_t at = check(address, kMbarrier, "mbarrier.init");
        state_[at / kChunk].mbarrier[at % kChunk / kMbarrier] = is;
    }

  private:
    static constexpr uint32_t kMbarrier = 8;
    struct Load {  // a TMA load
        Moment done;
        const void* from = nullptr;  // the place in the kernel
        uint32_t mbarrier = 0;       // on which it completes
    };
    struct ChunkState {
        uint32_t load = 0;                                // in loads_, of the last TMA load
        bool landing = false;                             // a TMA load is on its way
        std::array<bool, kChunk / kMbarrier> mbarrier{};  // whether each half of the chunk is an mbarrier
        bool is_free() const { return !(landing | mbarrier[0] | mbarrier[1]); }  // to be written
    };
    struct Region {
        uint32_t landing = 0;   // chunks into which a TMA load is on its way
        uint32_t unfenced = 0;  // words that have a writer_
        uint64_t version = 0;   // rises with each change of async_
    };

    void clear(uint32_t begin, uint32_t end) {
        std::fill(generic_.begin() + begin, generic_.begin() + end, fresh_);
        std::fill(async_.begin() + begin, async_.begin() + end, fresh_);
    }
    // Words of one region, all of which have a writer_.
    template <uint32_t kWords>
    void publish(uint32_t first) {
        Region& region = regions_[first / kRegionWords];
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
            if (!accesses_.knows_stores(word, fence.known)) continue;
            publish<1>(word);
            return true;
        }
        return false;
    }

    // An asynchronous read is issued: of what threads have stored, its issuer must know. Returns as
    // Accesses::order_read.
    bool order_read(uint32_t at, const char* who, const Issuer& issuer) {
        if (regions_[at / kRegion].unfenced)
            for (uint32_t word = at / kWord; word < (at + kChunk) / kWord; ++word)
                if (writer_[word]) published_by_another(word, issuer);  // the issuer's own fences count
        return accesses_.order_read(at, who, issuer);
    }
    // A thread loads or stores: whatever it conflicts with must lie before.
    void order(uint32_t at, uint32_t bytes, bool writes, Actor& actor) {
        if (actor.doubtful) [[unlikely]]
            Accesses::settle(actor);
        if (actor.moment == 0) return;
        for (uint32_t chunk = at / kChunk; chunk <= (at + bytes - 1) / kChunk; ++chunk)
            if (!actor.comes_after(loads_[state_[chunk].load].done))
                use_race(std::max(at, chunk * kChunk), writes, actor);
        const uint32_t none = accesses_.order(at, bytes, writes, actor, &generic_[at]);
        if (none == kSharedLimit || state_[none / kChunk].load) [[likely]]
            return;
        // Atomics write, too, and then what lies there is no longer what clear() has put there.
        const bool poison = std::all_of(&generic_[none], &generic_[none] + std::min(bytes, kWord),
                                        [this](uint8_t byte) { return byte == fresh_; });
        if (poison) note_unwritten(none + kSharedBase, actor.from, name_at(none + kSharedBase));
    }
    // ---- In shared_memory_loads.hpp
    // A TMA load is issued, into a chunk that threads have used.
    void order_load(uint32_t at, const Actor& actor);
    // A thread's load or store of what a TMA load may not have written yet.
    [[noreturn]] void use_race(uint32_t at, bool writes, const Actor& actor) const;
    [[noreturn]] void load_race(uint32_t at, const Load& load, const Actor& actor) const;
    // A store or a TMA load (`who`) writes what a TMA load has not written yet.
    [[noreturn]] void already_landing(uint32_t address, const char* who, const Load& load, const Actor& actor) const;

    void mark(uint32_t at, uint32_t bytes, Actor& actor) {
        const uint32_t first = at / kWord, end = (at + bytes - 1) / kWord + 1;
        bool is_new = false;
        if (end - first == kChunkWords && first % kChunkWords == 0)
            is_new = mark<kChunkWords>(first, actor.number + 1);
        else
            for (uint32_t word = first; word < end; ++word) is_new |= mark<1>(word, actor.number + 1);
        if (is_new) actor.unfenced.push_back({first, end - first});
    }
    // Words of one region. Returns whether the writer had not written some of them. (Their number is known to the
    // compiler, which would make loops over many words of it otherwise.)
    template <uint32_t kWords>
    bool mark(uint32_t first, uint32_t writer) {
        uint32_t fresh = 0, others = 0;
        for (uint32_t word = first; word < first + kWords; ++word) {
            fresh += writer_[word] == 0;
            others |= writer_[word] ^ writer;
            writer_[word] = writer;
        }
        regions_[first / kRegionWords].unfenced += fresh;
        return others != 0;
    }
    void readable(uint32_t at, uint32_t address, const char* who, const Actor& actor) const {
        if (!state_[at / kChunk].landing) return;
        const Load& load = loads_[state_[at / kChunk].load];
        if (!actor.comes_after(load.done)) use_race(at, false, actor);
        fail_race(Fault::read_during_load, address, load.from,
                  "%s at 0x%x reads bytes that a TMA load is still writing: %s", who, address,
                  why_not_landed(*this, load.mbarrier, nullptr).c_str());
    }
    // The offset of an address that lies in the dynamic shared memory, or among the variables.
    uint32_t inside(uint32_t address, uint32_t bytes, const char* who) const {
        const uint32_t at = address - kSharedBase;
        const bool dynamic = address >= kSharedBase && at + bytes <= bytes_;
        if (!dynamic && (at < variables_.begin() || at + bytes > kSharedLimit || address < kSharedBase))
            fail_at(Fault::out_of_bounds, address,
                    "%s at 0x%x (%u bytes) is outside the block's shared memory, 0x%x to 0x%x", who, address, bytes,
                    kSharedBase, kSharedBase + bytes_);
        return at;
    }
    uint32_t check(uint32_t address, uint32_t bytes, const char* who) const {
        const uint32_t at = inside(address, bytes, who);
        if (address & (bytes - 1))  // `bytes` is a power of two
            fail_at(Fault::misaligned, address, "%s of %u bytes at 0x%x, which is not a multiple of %u", who, bytes,
                    address, bytes);
        return at;
    }
    // `unread`: whether it is known already that nothing reads the region.
    void writable(uint32_t at, uint32_t bytes, uint32_t address, const char* who, const Actor& actor,
                  bool unread = false) const {
        const ChunkState& state = state_[at / kChunk];
        if (state.landing) already_landing(address, who, loads_[state.load], actor);
        if (!unread)
            if (const AsyncRead* read = reads_.unfinished(at, actor)) overwritten(*this, address, who, *read, actor);
        const uint32_t first = at % kChunk;  // a write is aligned to its size, so it ends in this chunk
        for (uint32_t half = first / kMbarrier; half <= (first + bytes - 1) / kMbarrier; ++half)
            if (state.mbarrier[half])
                fail_at(Fault::mbarrier_overwritten, address,
                        "%s of %u bytes at 0x%x overwrites %s, which mbarrier.inval has not ended", who, bytes, address,
                        name_of_mbarrier(*this, at / kChunk * kChunk + half * kMbarrier + kSharedBase).c_str());
    }

    uint32_t bytes_ = 0;
    uint8_t fresh_ = 0xFF;
    SharedVariables variables_;
    std::vector<uint8_t> generic_, async_;
    std::vector<uint32_t> writer_;  // for each word: 1 + the thread whose store is not fenced yet; 0 = none
    struct Fence {
        Moment when;
        Known known;
    };
    std::vector<Fence> fences_;  // the last fence.proxy.async of each thread
    std::vector<ChunkState> state_;
    std::vector<Region> regions_;
    std::vector<Load> loads_{1};  // loads_[0]: none
    Accesses accesses_;
    AsyncReads reads_;
};

}  // namespace emulator
