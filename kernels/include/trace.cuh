// Stamps for a timeline. With GEMM_LADDER_TRACE defined, ptx.cuh's wrappers record which warp executed what, and when.
// Without it everything here compiles to nothing.
//
// Lane 0 records for its warp. Each warp has a row of slots, and the clock chooses the slot of a stamp: there is no
// counter and no waiting, so a stamp costs a dozen instructions. A row is a ring buffer: if a kernel runs for longer
// than a row covers, the row keeps the end. gemm_ladder.timeline.stamps reads the rows.
#pragma once

#include <cstdint>

namespace trace {

// The events, with the meaning of each one's address and value. Names that ref/emulator/core/record.hpp has too mean
// the same there.
#define TRACE_EVENTS(X)                                                         \
    X(none)               /* an empty slot                                   */ \
    X(placed)             /* value = the SM that the CTA runs on             */ \
    X(mbarrier_wait)      /* span: address; value = parity                   */ \
    X(mbarrier_test)      /* address; value = parity                         */ \
    X(mbarrier_expect_tx) /* address; value = bytes                          */ \
    X(tma_load)           /* issued: address                                 */ \
    X(tma_store)          /* issued: address                                 */ \
    X(tma_store_wait)     /* span: value = groups that may stay in flight    */ \
    X(fence_proxy_async)  /*                                                 */ \
    X(wgmma_fence)        /*                                                 */ \
    X(wgmma_wait)         /* span: value = groups that may stay in flight    */ \
    X(bar_sync)           /* span: value = barrier                           */ \
    X(cluster_wait)       /* span                                            */

enum class Event : uint32_t {
#define X(name) name,
    TRACE_EVENTS(X)
#undef X
};

#ifdef GEMM_LADDER_TRACE

// 16 bytes: one store. Little is kept in registers between two stamps, because kernels have none to spare.
struct alignas(16) Stamp {
    uint32_t what;         // bits 0-19: address; 20-27: a span's value; 28-31: the Event
    uint32_t begin;        // a span: the SM's clock at its begin; a moment: its value
    uint32_t end;          // the SM's clock at the end
    uint32_t globaltimer;  // nanoseconds, at the end
};

constexpr uint32_t kWarps = 16;       // rows per CTA
constexpr uint32_t kSlotClocks = 16;  // a stamp takes longer than that, so a warp's next stamp gets a later slot

struct Rows {
    Stamp* stamps;           // [blocks][kWarps][slots], zeros before the launch
    uint32_t blocks, slots;  // CTAs that are recorded, from 0 on; slots per warp, a power of two
};
static __constant__ Rows rows;  // no rows until gemm_ladder_trace is called

// "Special Registers: %clock". Cycles; the low half of %clock64.
__device__ __forceinline__ uint32_t clock() {
    uint32_t now;
    asm volatile("mov.u32 %0, %%clock;" : "=r"(now) : : "memory");
    return now;
}
// "Special Registers: %globaltimer_lo". Nanoseconds; one clock for all SMs, but a coarse one.
__device__ __forceinline__ uint32_t globaltimer() {
    uint32_t now;
    asm volatile("mov.u32 %0, %%globaltimer_lo;" : "=r"(now) : : "memory");
    return now;
}
// The store is predicated, not branched around: with branches between the WGMMAs ptxas spills.
__device__ __forceinline__ void keep(Event event, uint32_t what, uint32_t begin, uint32_t end) {
    const uint32_t row = (blockIdx.x * kWarps + threadIdx.x / 32) * rows.slots;
    const uint32_t slot = end / kSlotClocks & (rows.slots - 1);
    const bool kept = threadIdx.x % 32 == 0 && threadIdx.x < kWarps * 32 && blockIdx.x < rows.blocks;
    asm volatile(
        "{\n.reg .pred p;\n"
        "setp.ne.u32 p, %0, 0;\n"
        "@p st.global.v4.u32 [%1], {%2, %3, %4, %5};\n}\n"
        :
        : "r"(static_cast<uint32_t>(kept)), "l"(rows.stamps + row + slot),
          "r"(static_cast<uint32_t>(event) << 28 | what), "r"(begin), "r"(end), "r"(globaltimer())
        : "memory");
}

// Records a moment.
__device__ __forceinline__ void stamp(Event event, uint32_t address = 0, uint32_t value = 0) {
    keep(event, address, value, clock());
}

// Records which SM the CTA runs on.
__device__ __forceinline__ void place() {
    uint32_t sm;
    asm("mov.u32 %0, %%smid;" : "=r"(sm));  // "Special Registers: %smid"
    stamp(Event::placed, 0, sm);
}

// Records a span, from its construction to the end of the scope. The value is below 256.
class Span {
  public:
    __device__ __forceinline__ explicit Span(Event event, uint32_t address = 0, uint32_t value = 0)
        : event_(event), what_(value << 20 | address), begin_(clock()) {}
    __device__ __forceinline__ ~Span() { keep(event_, what_, begin_, clock()); }

  private:
    Event event_;
    uint32_t what_, begin_;
};

// Sets where the following launches write their stamps, [blocks][kWarps][slots]; with blocks = 0 they write none.
extern "C" inline __attribute__((used)) const char* gemm_ladder_trace(void* stamps, uint32_t blocks, uint32_t slots) {
    const Rows given{static_cast<Stamp*>(stamps), blocks, slots};
    const cudaError_t status = cudaMemcpyToSymbol(rows, &given, sizeof given);
    return status == cudaSuccess ? nullptr : cudaGetErrorString(status);
}

// The name of event number `event`; nullptr if there is no such event.
extern "C" inline __attribute__((used)) const char* gemm_ladder_trace_event(uint32_t event) {
    static const char* const names[] = {
#define X(name) #name,
        TRACE_EVENTS(X)
#undef X
    };
    return event < sizeof names / sizeof names[0] ? names[event] : nullptr;
}

#else

__device__ constexpr void stamp(Event, uint32_t = 0, uint32_t = 0) {}
__device__ constexpr void place() {}
struct Span {
    __device__ constexpr explicit Span(Event, uint32_t = 0, uint32_t = 0) {}
    __device__ constexpr ~Span() {}
};

#endif

}  // namespace trace
