// The functions that ../cuda_runtime.h and ../cooperative_groups.h declare: CUDA C++ that is not one instruction of
// ../ptx.cuh.
#pragma once

#include <cstdarg>
#include <utility>

#include "../cooperative_groups.h"
#include "instructions.hpp"
#include "lanes.hpp"
#include "launcher.hpp"

namespace emulator {

Lanes gather(const char* what, unsigned mask, uint64_t bits) {
    EMULATOR_MEET;
    const Slots& slots = exchange(what, {bits}, mask, true);
    const Thread& thread = self();
    Lanes lanes;
    lanes.present = thread.block->exchanges[static_cast<std::size_t>(thread.warp())][mask].gave;
    for (unsigned lane = 0; lane < 32; ++lane)
        lanes.values[lane] = lanes.present >> lane & 1 ? slots[lane][0] : ~uint64_t{0};
    return lanes;
}

// On a GPU the lanes of a branch execute it together. Here each lane runs by itself, so a lane that asks who is with it
// waits until all lanes of its warp have come to the same place, or for kTurns turns: those that are elsewhere then
// wait for something, have exited, or are on another way.
uint32_t active_lanes() {
    EMULATOR_MEET;
    constexpr int kTurns = 64;
    Thread& thread = self();
    Block& block = *thread.block;
    const auto warp = static_cast<std::size_t>(thread.warp()), lane = static_cast<std::size_t>(thread.lane());
    Convergence& here = block.convergences[{warp, thread.from}];
    here.arrived |= 1u << lane;
    here.together[lane] = 0;
    for (int turn = 0; turn < kTurns && !here.together[lane] && here.arrived != block.alive[warp]; ++turn)
        current_cluster->yield();
    if (!here.together[lane]) {
        const uint32_t all = std::exchange(here.arrived, 0);
        for (std::size_t one = 0; one < 32; ++one)
            if (all >> one & 1) here.together[one] = all;
    }
    return here.together[lane];
}

// ------------------------------------------------------------------------------------------------ shared memory

// The block of the calling thread's cluster in whose shared memory a pointer lies; nullptr if in none.
inline Block* holder(uintptr_t pointer) {
    Block& own = *self().block;
    if (own.memory.holds(pointer)) return &own;
    for (Block& block : current_cluster->blocks)
        if (block.memory.holds(pointer)) return &block;
    return nullptr;
}

void* shared_variable(const SharedVariable& variable, std::size_t alignment) {
    self().from = __builtin_return_address(0);
    SharedMemory& memory = self().block->memory;
    const auto offset = memory.variable(variable, static_cast<uint32_t>(alignment));
    if (!offset)
        fail(Fault::out_of_bounds, "a __shared__ variable of %zu bytes: the block's shared memory has no room for it",
             variable.bytes);
    if (memory.variables_bytes() > kSharedUnasked)
        fail(Fault::out_of_bounds,
             "a __shared__ variable of %zu bytes: with it the block has %u bytes of them, and nvcc refuses more than "
             "%u; "
             "larger arrays have to be dynamic (extern __shared__, and the launch says their bytes)",
             variable.bytes, memory.variables_bytes(), kSharedUnasked);
    return memory.pointer(*offset);
}
void* dynamic_shared_memory() { return self().block->memory.pointer(0); }

uint32_t shared_address(const void* pointer) {
    EMULATOR_LOOK;
    const auto address = reinterpret_cast<uintptr_t>(pointer);
    const Block* block = holder(address);
    if (!block)
        fail_at(Fault::invalid_operand, address,
                "__cvta_generic_to_shared of a pointer that is not into shared memory%s",
                self().block->memory.nearest_variable(address).c_str());
    const uint32_t shared = block->memory.address_of(address);
    return block == self().block ? shared : at_rank(shared, static_cast<uint32_t>(block->rank));
}
bool is_shared(const void* pointer) { return holder(reinterpret_cast<uintptr_t>(pointer)); }
bool is_local(const void* pointer) { return Stacks::holds(reinterpret_cast<uintptr_t>(pointer)); }
void* shared_pointer(uint32_t address) {
    EMULATOR_LOOK;
    return remote_block(address).memory.pointer((address & kOffsetMask) - kSharedBase);
}
void* pointer_at_rank(const void* pointer, unsigned rank) {
    EMULATOR_LOOK;
    const uint32_t address = self().block->memory.address_of(reinterpret_cast<uintptr_t>(pointer));
    return remote_block(at_rank(address, rank)).memory.pointer(address - kSharedBase);
}
unsigned rank_of_pointer(const void* pointer) {
    EMULATOR_LOOK;
    const Block* block = holder(reinterpret_cast<uintptr_t>(pointer));
    if (!block) fail(Fault::invalid_operand, "query_shared_rank of a pointer that is not into shared memory");
    return static_cast<unsigned>(block->rank);
}

// A load or store by way of a pointer into shared memory. Another block's is used only while that block runs.
inline void use_shared(Block& block, uintptr_t pointer, std::size_t bytes, bool write, bool atomic = false) {
    const uint32_t address = block.memory.address_of(pointer);
    Actor& actor = self();
    if (&block == self().block) return block.memory.use(address, static_cast<uint32_t>(bytes), write, actor, atomic);
    remote_block(at_rank(address, static_cast<uint32_t>(block.rank)));
    std::vector<Words> own = std::move(actor.unfenced);  // its fence publishes what it wrote into its own block
    block.memory.use(address, static_cast<uint32_t>(bytes), write, actor, atomic);
    actor.unfenced = std::move(own);
}

// ------------------------------------------------------------------------------------------------------ atomics

template <typename T>
T combined(AtomicOp op, T old, T operand, T compare) {
    switch (op) {
        case AtomicOp::kAdd:
            return static_cast<T>(old + operand);
        case AtomicOp::kExchange:
            return operand;
        case AtomicOp::kCompareAndSwap:
            return std::memcmp(&old, &compare, sizeof(T)) == 0 ? operand : old;
        case AtomicOp::kMin:
            return std::min(old, operand);
        case AtomicOp::kMax:
            return std::max(old, operand);
        case AtomicOp::kIncrement:
            return old >= operand ? T{0} : static_cast<T>(old + 1);
        case AtomicOp::kDecrement:
            return old == T{0} || old > operand ? operand : static_cast<T>(old - 1);
        default:
            break;
    }
    uint64_t a = 0, b = 0;
    std::memcpy(&a, &old, sizeof old);
    std::memcpy(&b, &operand, sizeof operand);
    return from_bits<T>(op == AtomicOp::kAnd ? a & b : op == AtomicOp::kOr ? a | b : a ^ b);
}

template <typename T, typename Bits>
uint64_t atomic_of(void* address, AtomicOp op, uint64_t operand, uint64_t compare) {
    // The compilers' own functions, because Apple's library has no std::atomic_ref.
    auto* memory = static_cast<Bits*>(address);
    Bits old = __atomic_load_n(memory, __ATOMIC_SEQ_CST);
    for (;;) {
        const T next = combined(op, from_bits<T>(old), from_bits<T>(operand), from_bits<T>(compare));
        if (__atomic_compare_exchange_n(memory, &old, static_cast<Bits>(to_bits(next)), true, __ATOMIC_SEQ_CST,
                                        __ATOMIC_SEQ_CST))
            return old;
    }
}

void access_outside(uintptr_t address, std::size_t bytes, bool write);

// What an atomic operation on so many bytes does besides: its address is compared with the launch's arrays, and another
// thread may run before it.
void use_atomically(void* pointer, std::size_t bytes) {
    const auto address = reinterpret_cast<uintptr_t>(pointer);
    if (address % bytes)
        fail_at(Fault::misaligned, address, "an atomic operation on %zu bytes at an address that is no multiple of it",
                bytes);
    if (Block* block = holder(address))
        use_shared(*block, address, bytes, true, true);
    else if (!current_cluster->memory->allows(address, bytes, self().last_tensor, true))
        access_outside(address, bytes, true);
    current_cluster->maybe_yield();
}

// Those bytes, as they are now.
uint64_t bits_at(const void* pointer, std::size_t bytes) {
    if (bytes == 2) return __atomic_load_n(static_cast<const uint16_t*>(pointer), __ATOMIC_RELAXED);
    if (bytes == 4) return __atomic_load_n(static_cast<const uint32_t*>(pointer), __ATOMIC_RELAXED);
    return __atomic_load_n(static_cast<const uint64_t*>(pointer), __ATOMIC_RELAXED);
}

uint64_t combine_atomically(void* pointer, std::size_t bytes, AtomicOp op, Number number, uint64_t operand,
                            uint64_t compare) {
    const bool wide = bytes == 8;
    if (bytes == 2) return atomic_of<uint16_t, uint16_t>(pointer, op, operand, compare);
    switch (number) {
        case Number::kFloat:
            return wide ? atomic_of<double, uint64_t>(pointer, op, operand, compare)
                        : atomic_of<float, uint32_t>(pointer, op, operand, compare);
        case Number::kSigned:
            return wide ? atomic_of<int64_t, uint64_t>(pointer, op, operand, compare)
                        : atomic_of<int32_t, uint32_t>(pointer, op, operand, compare);
        default:
            return wide ? atomic_of<uint64_t, uint64_t>(pointer, op, operand, compare)
                        : atomic_of<uint32_t, uint32_t>(pointer, op, operand, compare);
    }
}

// One that leaves the number as it was, such as an addition of 0 or a comparison that fails, only looks at it.
uint64_t atomic(void* pointer, std::size_t bytes, AtomicOp op, Number number, uint64_t operand, uint64_t compare) {
    EMULATOR_LOOK;
    use_atomically(pointer, bytes);
    const uint64_t old = combine_atomically(pointer, bytes, op, number, operand, compare);
    if (bits_at(pointer, bytes) != old) self().cluster->enter(self(), self().from);
    return old;
}

// red.global.add.v2.f32 and .v4.f32.
template <typename Vector>
Vector add_vector(Vector* pointer, const Vector& value, const void* from) {
    Thread& thread = self();
    thread.cluster->enter(thread, from);
    const auto address = reinterpret_cast<uintptr_t>(pointer);
    if (address % sizeof(Vector))
        fail_at(Fault::misaligned, address, "atomicAdd of %zu bytes at an address that is no multiple of it",
                sizeof(Vector));
    if (holder(address))
        fail_at(Fault::invalid_operand, address, "atomicAdd of a vector in shared memory; global memory is needed");
    if (!current_cluster->memory->allows(address, sizeof(Vector), thread.last_tensor, true))
        access_outside(address, sizeof(Vector), true);
    Vector old;
    for (std::size_t at = 0; at < sizeof(Vector); at += sizeof(float)) {
        uint32_t operand;
        std::memcpy(&operand, reinterpret_cast<const char*>(&value) + at, sizeof operand);
        const auto before = static_cast<uint32_t>(
            atomic_of<float, uint32_t>(reinterpret_cast<char*>(pointer) + at, AtomicOp::kAdd, operand, 0));
        std::memcpy(reinterpret_cast<char*>(&old) + at, &before, sizeof before);
        current_cluster->maybe_yield();
    }
    return old;
}

// ------------------------------------------------------------------------------------------------------- others

void cluster_arrive() {
    EMULATOR_MEET;
    arrive_at_cluster(false);
}
void cluster_wait() {
    EMULATOR_MEET;
    wait_for_cluster(false);
}
unsigned cluster_blocks() { return static_cast<unsigned>(current_cluster->shape().size); }

int print(const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    char text[4096];
    const int length = std::vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    current_cluster->print(text);
    return length;
}

void trap(const char* what) {
    EMULATOR_ENTER;
    fail(Fault::crashed, "executes %s", what);
}

uint64_t steps() { return current_cluster ? current_cluster->steps() : 0; }  // 0: on the host
void sleep() {
    EMULATOR_LOOK;
    current_cluster->maybe_yield();
}

}  // namespace emulator

namespace emulator {

[[noreturn, gnu::always_inline]] inline void failed_assert(const char* assertion, const char* file, unsigned line,
                                                           const char* function) {
    if (!current_thread) {
        if (const Launcher* launcher = Launcher::running())
            launcher->fail(("fails the assertion `" + std::string(assertion) + "'").c_str(),
                           __builtin_return_address(0));
        Launcher::end_elsewhere(("fails the assertion `" + std::string(assertion) + "'").c_str(),
                                __builtin_return_address(0));
        std::fprintf(stderr, "%s:%u: %s: assertion `%s' failed\n", file, line, function, assertion);
        std::abort();
    }
    EMULATOR_ENTER;
    fail(Fault::crashed, "assertion `%s' failed in %s", assertion, function);
}

}  // namespace emulator

// What exit() and abort() are in a file that includes cuda_runtime.h (../cuda_host.hpp).
extern "C" [[noreturn]] void emulator_exit(int code) {
    if (emulator::current_thread) emulator::fail(emulator::Fault::crashed, "calls exit(%d), as only a host can", code);
    if (const emulator::Launcher* launcher = emulator::Launcher::running())
        launcher->fail(("calls exit(" + std::to_string(code) + ")").c_str(), __builtin_return_address(0));
    emulator::Launcher::end_elsewhere(("calls exit(" + std::to_string(code) + ")").c_str(),
                                      __builtin_return_address(0));
    std::exit(code);
}
extern "C" [[noreturn]] void emulator_abort() {
    if (emulator::current_thread) emulator::fail(emulator::Fault::crashed, "calls abort(), as only a host can");
    if (const emulator::Launcher* launcher = emulator::Launcher::running())
        launcher->fail("calls abort()", __builtin_return_address(0));
    emulator::Launcher::end_elsewhere("calls abort()", __builtin_return_address(0));
    std::abort();
}

// What <cassert>'s assert() calls in a kernel (kernels/build/job.py renames it), in GNU's library and in Apple's.
extern "C" [[noreturn]] void emulator_assert_fail(const char* assertion, const char* file, unsigned line,
                                                  const char* function) {
    emulator::failed_assert(assertion, file, line, function);
}
extern "C" [[noreturn]] void emulator_assert_rtn(const char* function, const char* file, int line,
                                                 const char* assertion) {
    emulator::failed_assert(assertion, file, static_cast<unsigned>(line), function);
}

float2 atomicAdd(float2* address, float2 value) {
    return emulator::add_vector(address, value, __builtin_return_address(0));
}
float4 atomicAdd(float4* address, float4 value) {
    return emulator::add_vector(address, value, __builtin_return_address(0));
}

int __syncthreads_count(int predicate, int place) {
    EMULATOR_MEET;
    emulator::together("__syncthreads_count()", place);
    return static_cast<int>(emulator::named_barrier(0, 0, true, predicate != 0));
}
int __syncthreads_and(int predicate, int place) {
    EMULATOR_MEET;
    emulator::together("__syncthreads_and()", place);
    return emulator::named_barrier(0, 0, true, predicate == 0) == 0;
}
int __syncthreads_or(int predicate, int place) {
    EMULATOR_MEET;
    emulator::together("__syncthreads_or()", place);
    return emulator::named_barrier(0, 0, true, predicate != 0) != 0;
}
void __syncwarp(unsigned mask) {
    EMULATOR_MEET;
    emulator::exchange("bar.warp.sync", {}, mask, true, true);
}
