// Writes to shared memory that a thread has issued and does not wait for: cp.async here, st.async in
// cluster_memory.hpp.
//
// They are another actor's than the thread's (order.hpp), so nobody, the thread included, knows of them who has not
// waited for them: an access before that is a data race. Until a write lands, its bytes are 0xFF.
#pragma once

#include "../cp_async.cuh"
#include "barriers.hpp"

namespace emulator {

void access_outside(uintptr_t address, std::size_t bytes, bool write);

// The moment of a thread's last asynchronous write.
inline Moment last_write(const Thread& thread) {
    return {current_cluster->actor(Cluster::Unit::thread_writes, thread.number), thread.async_writes.issued};
}

// The actor of the calling thread's asynchronous writes. Its next write is a moment of its own, and it knows what the
// thread does.
inline Actor next_writer() {
    Thread& thread = self();
    Actor writer;
    writer.index = thread.index;
    writer.from = thread.from;
    writer.number = last_write(thread).thread;
    AsyncWrites& writes = thread.async_writes;
    writer.moment = current_cluster->orders() ? ++writes.issued : 0;
    if (!current_cluster->orders()) return writer;
    if (writes.thread_knew != thread.known || writes.thread_moment != thread.moment || !writes.known) {
        Told told;
        told.join(thread.known, thread.now(), 0);
        writes.known = told.take();
        writes.thread_knew = thread.known;
        writes.thread_moment = thread.moment;
    }
    writer.known = writes.known;
    return writer;
}

// `who` begins a write of `bytes` bytes, 4, 8 or 16, to a block's shared memory. It lands some time later, at the
// latest when somebody waits for it; then `data` gives the bytes, and `landed` is called.
inline std::shared_ptr<AsyncWrite> begin_write(const char* who, Block& block, uint32_t address, uint32_t bytes,
                                               std::function<void(uint8_t*)> data,
                                               std::function<void(const Moment&)> landed = {}) {
    auto write = std::make_shared<AsyncWrite>();
    Actor writer = next_writer();
    Chunk poison;
    poison.fill(0xFF);
    block.memory.write(address, poison.data(), bytes, writer, who);
    write->land = [who, &block, address, bytes, data = std::move(data), landed = std::move(landed), writer,
                   issuer = self().place(), write = write.get()]() mutable {
        if (write->has_landed) return;
        const Issued issued(issuer, writer.from);
        write->has_landed = true;
        Chunk chunk;
        data(chunk.data());
        block.memory.write(address, chunk.data(), bytes, writer, who);
        if (landed) landed(writer.now());
    };
    current_cluster->later(self().place(), [write] { write->land(); });
    return write;
}

void copy_async(uint32_t shared, const void* global, uint32_t size, uint32_t bytes) {
    EMULATOR_ENTER;
    Thread& thread = self();
    const auto address = reinterpret_cast<uintptr_t>(global);
    if (bytes > size)
        fail_at(Fault::invalid_operand, shared, "cp.async of %u bytes, of which %u are to be copied: at most %u are",
                size, bytes, size);
    if (bytes && address % size)
        fail_at(Fault::misaligned, address, "cp.async of %u bytes from an address that is no multiple of %u", size,
                size);
    if (!thread.dependency_waited)
        fail_at(Fault::missing_dependency_wait, shared,
                "cp.async before griddepcontrol.wait, in a kernel that may begin before the one ahead has ended");
    if (bytes && !current_cluster->memory->allows(address, bytes, thread.last_tensor, false))
        access_outside(address, bytes, false);
    thread.async_writes.open.push_back(
        begin_write("cp.async", *thread.block, shared, size, [global, size, bytes](uint8_t* data) {
            std::memset(data, 0, size);
            std::memcpy(data, global, bytes);
        }));
    current_cluster->maybe_yield();
}

// cp.async.wait_group: does what the calling thread's copies still have to do, except those of its last `groups`
// groups.
void wait_copies(std::size_t groups) {
    EMULATOR_ENTER;
    Thread& thread = self();
    auto& committed = thread.async_writes.groups;
    for (; committed.size() > groups; committed.erase(committed.begin())) {
        for (const auto& copy : committed.front().copies) copy->land();
        Told told;
        told.join(nullptr, committed.front().last, 0);
        thread.async_writes.waited = committed.front().last.number;
        thread.cluster->acquire(told.take());
    }
}

// An arrival that follows the calling thread's copies until now.
inline void arrive_after_copies(uint32_t address, bool counts) {
    Thread& thread = self();
    Block& block = *thread.block;
    Mbarrier& barrier = mbarrier(block, address, "cp.async.mbarrier.arrive");
    if (!counts) ++barrier.pending;
    thread.async_writes.arrived = thread.async_writes.issued;
    thread.async_writes.arrived_on = address;
    std::vector<std::shared_ptr<AsyncWrite>>& open = thread.async_writes.open;
    std::erase_if(open, [](const auto& copy) { return copy->has_landed; });
    std::vector<std::shared_ptr<AsyncWrite>> copies = open;
    for (const auto& group : thread.async_writes.groups)
        copies.insert(copies.end(), group.copies.begin(), group.copies.end());
    const auto arrive = [&block, address, copies = std::move(copies), known = thread.known, last = last_write(thread),
                         thread = &thread, from = thread.from] {
        for (const auto& copy : copies) copy->land();
        Mbarrier& barrier = mbarrier(block, address, "cp.async.mbarrier.arrive");
        barrier.told.join(known, last, 0);
        if (barrier.pending == 0)
            fail_at(Fault::too_many_arrivals, address,
                    "cp.async.mbarrier.arrive on %s more often than its count of %lld in phase %lld",
                    name_of(block, address).c_str(), static_cast<long long>(barrier.count),
                    static_cast<long long>(barrier.phase));
        --barrier.pending;
        barrier.last = thread->number + 1;
        barrier.last_from = from;
        current_cluster->record(Event::mbarrier_arrive, block, thread->index, address, barrier.pending);
        settle(barrier, block, address);
    };
    current_cluster->later(thread.place(), arrive);
}

}  // namespace emulator

namespace ptx {

using emulator::self;

void cp_async_commit_group() {
    EMULATOR_ENTER;
    emulator::AsyncWrites& writes = self().async_writes;
    writes.groups.push_back({std::move(writes.open), emulator::last_write(self())});
    writes.committed = writes.issued;
    writes.open.clear();
}
void cp_async_mbarrier_arrive(uint32_t mbarrier) {
    EMULATOR_ENTER;
    emulator::arrive_after_copies(mbarrier, false);
}
void cp_async_mbarrier_arrive_noinc(uint32_t mbarrier) {
    EMULATOR_ENTER;
    emulator::arrive_after_copies(mbarrier, true);
}

}  // namespace ptx
