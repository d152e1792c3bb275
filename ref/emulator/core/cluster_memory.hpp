// The functions that ../cluster.cuh declares: the cluster's shape, and the shared memory of its blocks.
#pragma once

#include "../cluster.cuh"
#include "cp_async.hpp"
#include "reductions.hpp"

namespace emulator {

// A thread's fence.proxy.async publishes what it wrote into its own block, so what it writes into another's is kept out
// of that list.
template <typename Use>
void use_remote(uint32_t address, const Use& use) {
    Actor& actor = self();
    Block& block = remote_block(address);
    if (&block == self().block) return use(block.memory, address & kOffsetMask, actor);
    std::vector<Words> own = std::move(actor.unfenced);
    use(block.memory, address & kOffsetMask, actor);
    actor.unfenced = std::move(own);
}

void load_remote(uint32_t address, void* value, uint32_t bytes) {
    EMULATOR_LOOK;
    use_remote(address, [&](SharedMemory& memory, uint32_t at, Actor& actor) { memory.read(at, value, bytes, actor); });
}
void store_remote(uint32_t address, const void* value, uint32_t bytes) {
    EMULATOR_ENTER;
    use_remote(address,
               [&](SharedMemory& memory, uint32_t at, Actor& actor) { memory.write(at, value, bytes, actor); });
}

void atomic_remote(uint32_t address, Element element, Reduction reduction, bool exchanges, const void* compare,
                   const void* value, void* old) {
    EMULATOR_LOOK;
    const uint32_t bytes = element_bytes(element);
    if (address % bytes)
        fail_at(Fault::misaligned, address, "an atomic operation on %u bytes at 0x%x, which is not a multiple of %u",
                bytes, address, bytes);
    use_remote(address, [&](SharedMemory& memory, uint32_t at, Actor& actor) {
        memory.use(at, bytes, true, actor, true);
        uint8_t* const place = memory.pointer(at - kSharedBase);
        std::memcpy(old, place, bytes);
        if (!exchanges)
            reduce(reduction, element, place, static_cast<const uint8_t*>(value), bytes);
        else if (!compare || std::memcmp(compare, old, bytes) == 0)
            std::memcpy(place, value, bytes);
        if (std::memcmp(place, old, bytes)) self().cluster->enter(self(), self().from);
    });
    current_cluster->maybe_yield();
}

// The mbarrier on which a store to `address` completes its bytes.
inline Block& counting_block(uint32_t address, uint32_t barrier_address, const char* who) {
    Block &block = remote_block(address), &counting = remote_block(barrier_address);
    if (&block != &counting)
        fail_at(Fault::invalid_operand, barrier_address,
                "%s to block %d completes bytes on an mbarrier of block %d: the two must be of one block", who,
                block.rank, counting.rank);
    if (const Mbarrier& on = mbarrier(block, barrier_address & kOffsetMask, who); !on.visible)
        fail_at(Fault::mbarrier_not_visible, barrier_address, "%s on %s, which is not visible to it yet: %s", who,
                name_of(block, barrier_address & kOffsetMask).c_str(), why_not_visible(on).c_str());
    return block;
}

// Called when a store lands: the block it goes to must still be there.
inline void check_live(const Block& block, uint32_t address, const char* who) {
    if (!block.live)
        fail_at(Fault::block_ended, address, "%s reaches block %lld of its cluster, which has already ended", who,
                static_cast<long long>(block.index));
}

void store_async(uint32_t address, const void* value, uint32_t bytes, uint32_t mbarrier) {
    EMULATOR_ENTER;
    Block& block = counting_block(address, mbarrier, "st.async");
    Chunk chunk;
    std::memcpy(chunk.data(), value, bytes);
    begin_write(
        "st.async", block, address & kOffsetMask, bytes,
        [&block, address, chunk, bytes](uint8_t* data) {
            check_live(block, address, "st.async");
            std::memcpy(data, chunk.data(), bytes);
        },
        [&block, mbarrier, bytes, known = self().known](const Moment& when) {
            complete_bytes(block, mbarrier & kOffsetMask, bytes, known, when);
        });
    AsyncWrites& writes = self().async_writes;
    writes.stores[writes.issued] = {&block, mbarrier & kOffsetMask};
    current_cluster->maybe_yield();
}

// Several may be on their way to one word, so the word is not poisoned, and who reads it too early is not reported.
void reduce_async(uint32_t address, Element element, Reduction reduction, const void* value, uint32_t mbarrier) {
    EMULATOR_ENTER;
    Block& block = counting_block(address, mbarrier, "red.async");
    const uint32_t bytes = element_bytes(element), at = address & kOffsetMask;
    if (address % bytes)
        fail_at(Fault::misaligned, address, "red.async on %u bytes at 0x%x, which is not a multiple of %u", bytes,
                address, bytes);
    Chunk chunk;
    std::memcpy(chunk.data(), value, bytes);
    Actor writer = next_writer();
    const auto land = [=, &block, known = self().known, issuer = self().place()]() mutable {
        const Issued issued(issuer, writer.from);
        check_live(block, address, "red.async");
        block.memory.use(at, bytes, true, writer, true);
        reduce(reduction, element, block.memory.pointer(at - kSharedBase), chunk.data(), bytes);
        complete_bytes(block, mbarrier & kOffsetMask, bytes, known, writer.now());
    };
    current_cluster->later(self().place(), land);
    current_cluster->maybe_yield();
}

}  // namespace emulator

namespace ptx {

using emulator::current_cluster;

dim3 cluster_ctaid() {
    EMULATOR_ENTER;
    return emulator::at(static_cast<uint64_t>(self().block->rank), current_cluster->shape().grid.cluster);
}
dim3 cluster_nctaid() { return current_cluster->shape().grid.cluster; }
dim3 clusterid() {
    const dim3& size = current_cluster->shape().grid.cluster;
    return {blockIdx.x / size.x, blockIdx.y / size.y, blockIdx.z / size.z};
}
dim3 nclusterid() {
    const dim3& size = current_cluster->shape().grid.cluster;
    return {gridDim.x / size.x, gridDim.y / size.y, gridDim.z / size.z};
}
uint32_t cluster_nctarank() { return static_cast<uint32_t>(current_cluster->shape().size); }

// Any lane of the mask may be elected; the seed says which, for the whole run.
bool elect_sync(uint32_t mask, uint32_t& leader) {
    EMULATOR_MEET;
    emulator::exchange("elect.sync", {}, mask);
    mask &= self().lanes();
    int skip = current_cluster->elected_lane() % std::popcount(mask);
    for (leader = 0; !(mask >> leader & 1) || skip--;) ++leader;
    return self().lane() == static_cast<int>(leader);
}

}  // namespace ptx
