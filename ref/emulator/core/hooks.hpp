// What a kernel's own loads, stores and loops call. A kernel is compiled by g++ with -fsanitize=thread, which puts a
// call before every access to memory that is not a register. clang++ leaves out those to most local arrays, so its
// calls are those of -fsanitize-coverage=trace-loads,trace-stores. With -fsanitize=bounds there is one where an index
// lies outside an array. Here are the functions called, so nothing of a sanitizer's library is linked: an access
// outside the launch's tensors is reported before it happens, and a loop without end ends.
#pragma once

#include "lanes.hpp"
#include "plain.hpp"

namespace emulator {

constexpr uintptr_t kNull = 1 << 16;       // addresses below are a null pointer's, with an index
constexpr uint64_t kNearShared = 1 << 16;  // so near an array in shared memory is meant

[[gnu::noinline]] void access_outside(uintptr_t address, std::size_t bytes, bool write) {
    const GlobalMemory& memory = *current_cluster->memory;
    for (const auto& other : self().block->threads)
        if (other->fiber.owns(address))
            fail_at(Fault::global_out_of_bounds, address,
                    "%s local memory of thread %d, which only that thread can use", write ? "writes" : "reads",
                    other->index);
    const char* does = write ? "writes" : "reads";
    if (address < kNull)
        fail_at(Fault::global_out_of_bounds, address, "%s %zu bytes at address 0x%llx: by way of a null pointer", does,
                bytes, static_cast<unsigned long long>(address));
    uint64_t nearest = std::min(kNearShared, memory.nearest(address, bytes));
    std::string beside;
    for (Block& block : current_cluster->blocks) {
        const auto begin = reinterpret_cast<uintptr_t>(block.memory.pointer(0)), end = begin + kSharedLimit;
        const uint64_t far = address < begin ? begin - address : address - end;
        if (far >= nearest) continue;
        nearest = far;
        beside = std::to_string(far) + (address < begin ? " bytes before the begin of " : " bytes behind the end of ") +
                 (&block == self().block ? "the block's" : "block " + std::to_string(block.index) + "'s");
    }
    if (!beside.empty())
        fail_at(Fault::out_of_bounds, address, "%s %zu bytes of shared memory, %s", does, bytes, beside.c_str());
    fail_at(Fault::global_out_of_bounds, address, "%s %zu bytes at %s", does, bytes,
            memory.describe(address, bytes).c_str());
}

// A thread's own stack: local variables, among them the accumulators of WGMMAs.
[[gnu::noinline]] inline void touch_accumulator(Thread& thread, uintptr_t address, std::size_t bytes, bool write) {
    for (const Accumulator& accumulator : thread.accumulators) {
        const auto begin = reinterpret_cast<uintptr_t>(accumulator.home);
        const std::size_t size = accumulator.count * sizeof(float);
        if (address + bytes <= begin || address >= begin + size) continue;
        const bool committed = !thread.wgmma_groups.empty() && thread.wgmma_groups.back() > accumulator.last_op;
        fail(write ? Fault::accumulator_overwritten : Fault::accumulator_read,
             "%s accumulator register %zu while a WGMMA that adds to it is in flight: %s", write ? "writes" : "reads",
             (std::max(address, begin) - begin) / sizeof(float),
             committed ? "wgmma.wait_group first"
                       : "it is in no group that wgmma.wait_group could wait for, as wgmma.commit_group is missing");
    }
    std::erase_if(thread.rested, [=](const Accumulator& one) {
        const auto begin = reinterpret_cast<uintptr_t>(one.home);
        return address + bytes > begin && address < begin + one.count * sizeof(float);
    });
    thread.watch();
    if (write) thread.written_since_fence.emplace_back(address, bytes);
}

// Global memory, before the kernel ahead has ended.
[[gnu::noinline]] inline void access_early(uintptr_t address) {
    if (knows_dependency(self())) return;
    fail_at(Fault::missing_dependency_wait, address,
            "uses global memory before griddepcontrol.wait, in a kernel that may begin before the one ahead has ended");
}

[[gnu::noinline]] inline void write_global(Thread& thread, uintptr_t address, std::size_t bytes, const void* from) {
    if (!thread.stored && thread.lane() == 0 && thread.cluster->config().record) {
        thread.stored = true;
        thread.from = from;
        thread.cluster->record(Event::global_store, *thread.block, thread.index, 0, static_cast<int64_t>(bytes));
    }
    const GlobalMemory& memory = *thread.cluster->memory;
    const auto ordered = [&](const Writer& other) { return thread.comes_after(moment_of(thread, other)); };
    const std::optional<Writer> other = memory.write(address, bytes, thread.last_tensor, writer(thread), ordered);
    if (!other) return;
    if (other->block == thread.block->index) {
        // Stores of one value are no fault, and it is known only when this one is done.
        Accesses::doubt(reinterpret_cast<const uint8_t*>(address), bytes, from, thread, [other = *other](uintptr_t at) {
            fail_at(Fault::written_twice, at, "writes %s",
                    current_cluster->memory->conflict(at, self().last_tensor, other, other.block).c_str());
        });
        return;
    }
    thread.from = from;
    fail_at(Fault::written_twice, address, "writes %s",
            memory.conflict(address, thread.last_tensor, *other, thread.block->index).c_str());
}

// What a compiler says of an index outside an array (-fsanitize=bounds), as UndefinedBehaviorSanitizer's library reads
// it.
struct IndexType {
    uint16_t kind, info;  // an integer: 0, and whether it is signed in bit 0, the logarithm of its bits above that
    char name[1];
};
struct IndexOutside {
    const char* file;
    uint32_t line, column;
    const IndexType *array, *index;
};
[[gnu::noinline]] inline void index_outside(const IndexOutside& what, uintptr_t index, const void* from) {
    if (!Stacks::holds(reinterpret_cast<uintptr_t>(__builtin_frame_address(0)))) return;  // the launcher
    Thread& thread = self();
    thread.from = from;
    auto number = static_cast<int64_t>(index);
    if (const int bits = 1 << (what.index->info >> 1); what.index->info & 1 && bits < 64)
        number = static_cast<int64_t>(index << (64 - bits)) >> (64 - bits);
    fail(Fault::array_out_of_bounds, "index %lld of an array of type %s", static_cast<long long>(number),
         what.array->name);
}

// Not the thread's stack, nor the tensor that it used last.
[[gnu::noinline]] inline void access_elsewhere(Thread& thread, uintptr_t address, std::size_t bytes, bool write) {
    if (Block* block = holder(address)) return use_shared(*block, address, bytes, write);
    const GlobalMemory& memory = *thread.cluster->memory;
    if (!memory.known()) return;
    if (!memory.find(address, bytes, thread.last_tensor)) {
        if (memory.holds(address, write)) return;
        access_outside(address, bytes, write);
    }
    if (!thread.dependency_waited) access_early(address);
    if (write) write_global(thread, address, bytes, thread.from);
}

[[gnu::noinline]] inline void tick_over(Thread& thread, void* from) {
    thread.from = from;
    thread.ticks = 0;
    thread.polls = false;
    current_cluster->spin();
}

// Whether the address is in the stack of the calling thread, which need not be told of it. Most accesses are of local
// variables, so this is all that their hook does. (Or in that of the launcher, where access_any does nothing, either.)
[[gnu::always_inline]] inline bool is_own_variable(uintptr_t address, uintptr_t here) {
    return (address ^ here) < kStackBytes && !Stacks::watched(here);
}

[[gnu::noinline]] inline void access_any(uintptr_t address, std::size_t bytes, bool write, void* from) {
    const auto here = reinterpret_cast<uintptr_t>(__builtin_frame_address(0));
    if (!Stacks::holds(here)) return;  // the launcher, which runs on no fiber
    auto* thread = static_cast<Thread*>(indices().state);
    if (thread->overdue) [[unlikely]] {
        thread->from = from;
        fail(Fault::endless_loop, kEndless);
    }
    if ((address ^ here) < kStackBytes) {
        if (!thread->fiber.watched()) return;
        thread->from = from;
        return touch_accumulator(*thread, address, bytes, write);
    }
    if (++thread->ticks > kTicks) [[unlikely]]
        tick_over(*thread, from);
    const GlobalMemory& memory = *thread->cluster->memory;
    if (memory.is_tensor(address, bytes, thread->last_tensor) && thread->dependency_waited) [[likely]] {
        if (write) [[unlikely]]
            write_global(*thread, address, bytes, from);
        return;
    }
    thread->from = from;
    access_elsewhere(*thread, address, bytes, write);
}

[[gnu::always_inline]] inline void access(void* pointer, std::size_t bytes, bool write, void* from) {
    const auto address = reinterpret_cast<uintptr_t>(pointer);
    if (is_own_variable(address, stack_pointer())) return;
    access_any(address, bytes, write, from);
}

[[gnu::always_inline]] inline void* copy(void* to, const void* bytes_from, std::size_t bytes, void* from) {
    if (bytes == 0) return to;
    const Launcher::Copying copying(from);
    access(const_cast<void*>(bytes_from), bytes, false, from);
    access(to, bytes, true, from);
    return std::memmove(to, bytes_from, bytes);
}
[[gnu::always_inline]] inline void* fill(void* to, int value, std::size_t bytes, void* from) {
    if (bytes == 0) return to;
    const Launcher::Copying copying(from);
    access(to, bytes, true, from);
    return std::memset(to, value, bytes);
}

}  // namespace emulator

// What -fsanitize=alignment calls: a pointer to a type is used that is not a multiple of the type's alignment, which
// stops a GPU.
struct EmulatorAlignment {  // as the compiler lays it out
    struct {
        const char* file;
        uint32_t line, column;
    } place;
    const struct {
        uint16_t kind, info;
        char name[1];  // in quotes
    }* type;
    uint8_t log_alignment, check;  // `check`: 0 for a load, 1 for a store, others for references and members
};

[[gnu::noinline]] inline void emulator_misaligned(const EmulatorAlignment& use, const void* pointer, const void* from) {
    if (!emulator::Stacks::holds(reinterpret_cast<uintptr_t>(__builtin_frame_address(0)))) return;
    emulator::Thread& thread = emulator::self();
    thread.cluster->enter(thread, from);
    const auto address = reinterpret_cast<uintptr_t>(pointer);
    std::string where;
    std::size_t number = 0;
    if (const emulator::Block* block = emulator::holder(address)) {
        char text[48];
        std::snprintf(text, sizeof text, "shared memory at 0x%x", block->memory.address_of(address));
        where = text;
    } else if (const emulator::GlobalMemory& memory = *emulator::current_cluster->memory;
               memory.find(address, 1, number)) {
        where = memory.element(address, number);
    }
    if (where.empty()) where = "an address";
    emulator::fail_at(emulator::Fault::misaligned, address, "%s a %s at %s, which is not a multiple of %d bytes",
                      use.check == 0   ? "loads"
                      : use.check == 1 ? "stores"
                                       : "uses",
                      use.type->name, where.c_str(), 1 << use.log_alignment);
}

#define EMULATOR_ACCESS(name, bytes, write) \
    extern "C" void name(void* address) { emulator::access(address, bytes, write, __builtin_return_address(0)); }
#define EMULATOR_ACCESSES(bytes)                                         \
    EMULATOR_ACCESS(__tsan_read##bytes, bytes, false)                    \
    EMULATOR_ACCESS(__tsan_write##bytes, bytes, true)                    \
    EMULATOR_ACCESS(__tsan_volatile_read##bytes, bytes, false)           \
    EMULATOR_ACCESS(__tsan_volatile_write##bytes, bytes, true)           \
    EMULATOR_ACCESS(__tsan_unaligned_read##bytes, bytes, false)          \
    EMULATOR_ACCESS(__tsan_unaligned_write##bytes, bytes, true)          \
    EMULATOR_ACCESS(__tsan_unaligned_volatile_read##bytes, bytes, false) \
    EMULATOR_ACCESS(__tsan_unaligned_volatile_write##bytes, bytes, true) \
    EMULATOR_ACCESS(__sanitizer_cov_load##bytes, bytes, false)           \
    EMULATOR_ACCESS(__sanitizer_cov_store##bytes, bytes, true)
EMULATOR_ACCESSES(1)
EMULATOR_ACCESSES(2)
EMULATOR_ACCESSES(4)
EMULATOR_ACCESSES(8)
EMULATOR_ACCESSES(16)
#undef EMULATOR_ACCESSES
#undef EMULATOR_ACCESS

extern "C" {
void __ubsan_handle_type_mismatch_v1(const EmulatorAlignment* use, void* pointer) {
    emulator_misaligned(*use, pointer, __builtin_return_address(0));
}
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
void __ubsan_handle_out_of_bounds(void* what, uintptr_t index) {
    emulator::index_outside(*static_cast<emulator::IndexOutside*>(what), index, __builtin_return_address(0));
}
void __tsan_read_range(void* address, std::size_t bytes) {
    emulator::access(address, bytes, false, __builtin_return_address(0));
}
void __tsan_write_range(void* address, std::size_t bytes) {
    emulator::access(address, bytes, true, __builtin_return_address(0));
}
// What clang++ 16 and newer calls. Others call the C library's functions, in whose place a kernel has ../copies.hpp.
void* __tsan_memcpy(void* to, const void* from, std::size_t bytes) {
    return emulator::copy(to, from, bytes, __builtin_return_address(0));
}
void* __tsan_memmove(void* to, const void* from, std::size_t bytes) {
    return emulator::copy(to, from, bytes, __builtin_return_address(0));
}
void* __tsan_memset(void* to, int value, std::size_t bytes) {
    return emulator::fill(to, value, bytes, __builtin_return_address(0));
}
void* emulator_copy(void* to, const void* from, std::size_t bytes, void* place) noexcept {
    return emulator::copy(to, from, bytes, place);
}
void* emulator_fill(void* to, int value, std::size_t bytes, void* place) noexcept {
    return emulator::fill(to, value, bytes, place);
}
// Each function begins with one of these. Without it, clang++ has no calls for loads and stores either.
void __sanitizer_cov_trace_pc_guard(uint32_t*) {}
void __sanitizer_cov_trace_pc_guard_init(uint32_t*, uint32_t*) {}
}
