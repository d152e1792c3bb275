// What messages say of asynchronous accesses to shared memory: who has issued one, and what its end lacks.
#pragma once

#include "cp_async.hpp"

namespace emulator {

// The asynchronous writes that a moment is of; nullptr if it is a moment of a thread's own.
inline const AsyncWrites* async_writes_of(const Moment& moment) {
    if (moment.thread < current_cluster->actor(Cluster::Unit::thread_writes, 0)) return nullptr;
    return &thread_of(moment.thread).async_writes;
}

bool is_asynchronous(const Moment& by) { return async_writes_of(by); }

// The thread of that number, or what it has issued, as the writer of a word.
std::string name_of_writer(uint32_t number) {
    const bool asynchronous = number >= current_cluster->actor(Cluster::Unit::thread_writes, 0);
    return (asynchronous ? "an asynchronous copy or store of " : "") + std::string(name_of_thread(number).text);
}

// Such as "thread 5 of block 0 has written", or "a cp.async of thread 5 of block 0 writes".
std::string who_writes(const Moment& by) {
    const std::string thread = name_of_thread(by.thread).text;
    const AsyncWrites* writes = async_writes_of(by);
    if (!writes) return thread + " has written";
    return (writes->stores.contains(by.number) ? "a st.async of " : "a cp.async of ") + thread + " writes";
}

// What is missing between a write and an access of whose thread nothing says that it comes after the write.
std::string missing_after(const Moment& by) {
    const AsyncWrites* writes = async_writes_of(by);
    if (!writes) return "a barrier is missing between them";
    const auto wait_for = [](const Block& block, uint32_t mbarrier) {
        return "this thread has not waited for " + name_of(block, mbarrier) + ", nor met a thread that has";
    };
    if (const auto store = writes->stores.find(by.number); store != writes->stores.end())
        return wait_for(*store->second.first, store->second.second);
    if (by.number <= writes->waited) return "its thread has waited for it, and a barrier behind that wait is missing";
    if (by.number <= writes->arrived) return wait_for(*thread_of(by.thread).block, writes->arrived_on);
    if (by.number > writes->committed)
        return "it is in no group that cp.async.wait_group could wait for, as cp.async.commit_group is missing";
    std::string cause =
        "its thread has not waited for it: cp.async.wait_group is missing, or comes after the barrier, or its N leaves "
        "the group in flight";
    if (writes->issued > writes->committed) cause += ", as copies behind it are in no group yet";
    return cause;
}

// Such as "warp 4 of block 0", which has issued the TMA load that this moment is of.
std::string who_loads(const Moment& load) {
    if (!load.number) return "a warp of the cluster";  // whose order is not followed
    const uint32_t first = load.thread - current_cluster->actor(Cluster::Unit::load, 0);
    const Thread& thread = thread_of(first * 32);
    return "warp " + std::to_string(thread.warp()) + " of block " + std::to_string(thread.block->index);
}

// Why a TMA load need not come after an earlier one of the same bytes.
std::string why_loaded_again(const Moment& earlier, const Actor& actor) {
    if (earlier.thread != current_cluster->actor(Cluster::Unit::load, actor.number / 32))
        return "another warp loads the same bytes, by a wrong address or where one thread was to be elected, or this "
               "one has not waited for the stage's release";
    return "this thread has waited for no arrival that comes after the end of that load. A wait for the stage's "
           "release is missing, or the mbarrier of the release counts fewer arrivals than there are in a phase, or the "
           "two tiles overlap";
}

// A thread loads what nothing has written: it holds NaN here, and anything on a GPU.
void note_unwritten(uint32_t address, const void* from, const std::string& name) {
    if (!from || !current_cluster->orders()) return;
    char text[16];
    std::snprintf(text, sizeof text, "0x%x", address);
    current_cluster->note_unwritten("a thread" + place_of(from) + " reads shared memory that nothing has written",
                                    ", such as " + (name.empty() ? text : name));
}

// The block whose shared memory it is.
const Block& block_of(const SharedMemory& memory) {
    return *std::ranges::find_if(current_cluster->blocks, [&](const Block& block) { return &block.memory == &memory; });
}
std::string name_of_mbarrier(const SharedMemory& memory, uint32_t address) {
    return name_of(block_of(memory), address);
}

// Such as "a WGMMA of warps 0 to 3", with its block where the cluster has several.
std::string who_reads(const Block& block, const AsyncRead& read) {
    std::string who = read.progress
                          ? "a WGMMA of warps " + std::to_string(read.warp) + " to " + std::to_string(read.warp + 3)
                          : std::string("a ") + read.who + " of warp " + std::to_string(read.warp);
    if (current_cluster->shape().size > 1) who += " of block " + std::to_string(block.index);
    return who;
}

// Why nobody has told a thread that a read by the copy engine, of the block's shared memory, is done.
std::string why_not_read(const Block& block, const AsyncRead& read) {
    if (!read.number)
        return "it has read when its bytes have arrived on the other block's mbarrier: a wait for that, and an arrival "
               "or a barrier behind the wait, are missing";
    const auto is_it = [&](const std::shared_ptr<Store>& store) { return store->number == read.number; };
    for (const Thread* thread : block.threads) {
        if (thread->warp() != read.warp) continue;
        if (std::ranges::any_of(thread->stores, is_it))
            return "it is in no group that a wait could wait for, as cp.async.bulk.commit_group is missing";
        for (const auto& group : thread->store_groups)
            if (const auto found = std::ranges::find_if(group, is_it); found != group.end() && !(*found)->waited_for)
                return "the thread that issued it has not waited for it: cp.async.bulk.wait_group.read is missing, or "
                       "comes after the barrier, or its N leaves the group in flight";
    }
    return "the thread that issued it has waited for it, and nothing says so to this one: a barrier behind that wait "
           "is missing";
}

// Why a thread that overwrites the operand of a WGMMA need not come after the WGMMA's end.
std::string why_not_done(const SharedMemory& memory, uint32_t address, const char* who, const AsyncRead& read,
                         const Actor& actor) {
    if (who == kTmaLoad && !memory.filled(address))
        return "nothing had filled it when the WGMMA was issued: its wait for the stage's full mbarrier is missing, "
               "has "
               "the wrong parity, or is one lane's without __syncwarp() behind it";
    if (who == kTmaLoad && memory.reads_again(read))
        return "an earlier WGMMA had read the same and was done, so this one came before its load: its wait for the "
               "stage's full mbarrier is missing, has the wrong parity, or is one lane's without __syncwarp() behind "
               "it";
    if (read.progress->committed < read.number)
        return "it is not committed, so that a wait waits for nothing: wgmma.commit_group is missing, or a wait for "
               "the arrival that follows the WGMMA";
    if (actor.comes_after(read.issued))
        return "it is committed, and the arrival or barrier that says that it is done came before wgmma.wait_group, "
               "or the wait's N leaves it in flight";
    return "nothing tells this thread that it is done: a wait for the stage's empty mbarrier is missing, or that one's "
           "count is too small to include the warpgroup's arrival";
}

// A store or a TMA load (`who`) overwrites what an asynchronous read need not have read yet: its wait does not lie
// before. A thread that does not even know that the read was issued has met no barrier since.
[[noreturn]] void overwritten(const SharedMemory& memory, uint32_t address, const char* who, const AsyncRead& read,
                              const Actor& actor) {
    // A thread that has issued the WGMMA itself knows of it.
    const bool own = read.progress ? read.warp == actor.index / 128 * 4 && actor.wgmmas >= read.number
                                   : read.warp == actor.index / 32;
    const bool races = who != kTmaLoad && !own && !actor.comes_after(read.issued);
    const Block& block = block_of(memory);
    const std::string cause =
        read.progress ? why_not_done(memory, address, who, read, actor) : why_not_read(block, read);
    fail_race(races ? Fault::data_race : Fault::released_too_early, address, read.from,
              races ? "%s overwrites shared memory at 0x%x, which %s reads, and nothing orders the two: %s"
                    : "%s overwrites shared memory at 0x%x, which %s may still read: %s",
              who, address, who_reads(block, read).c_str(), cause.c_str());
}

}  // namespace emulator
