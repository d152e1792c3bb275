// "Asynchronous warpgroup-level matrix instructions: wgmma.mma_async" (PTX ISA).
// d[64 x N] = a[64 x 32] * b[N x 32]^T + (scale_d ? d : 0), E4M3 in, FP32 out, both operands in shared memory.
// Every N, with N / 2 registers, needs a line of its own (operand_lists.cuh).
#pragma once

#include <cstdint>

#include "operand_lists.cuh"

namespace ptx {

template <int N>
__device__ void wgmma(float (&d)[N / 2], uint64_t desc_a, uint64_t desc_b, int scale_d);

// clang-format off
#define GL_2(i) "+f"(d[i]), "+f"(d[i + 1])

#define GL_WGMMA(N, REGS, A, B, P)                                                                             \
    template <>                                                                                                \
    __device__ __forceinline__ void wgmma<N>(float (&d)[N / 2], uint64_t desc_a, uint64_t desc_b, int scale_d) { \
        asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " P ", 0;\n"                                             \
                     "wgmma.mma_async.sync.aligned.m64n" #N "k32.f32.e4m3.e4m3 {" GL_NAMES_##REGS "}, " A ", " B \
                     ", p, 1, 1;\n}\n"                                                                         \
                     : GL_REGS_##REGS                                                                          \
                     : "l"(desc_a), "l"(desc_b), "r"(scale_d));                                                \
    }

GL_WGMMA(8, 4, "%4", "%5", "%6")
GL_WGMMA(16, 8, "%8", "%9", "%10")
GL_WGMMA(24, 12, "%12", "%13", "%14")
GL_WGMMA(32, 16, "%16", "%17", "%18")
GL_WGMMA(40, 20, "%20", "%21", "%22")
GL_WGMMA(48, 24, "%24", "%25", "%26")
GL_WGMMA(56, 28, "%28", "%29", "%30")
GL_WGMMA(64, 32, "%32", "%33", "%34")
GL_WGMMA(72, 36, "%36", "%37", "%38")
GL_WGMMA(80, 40, "%40", "%41", "%42")
GL_WGMMA(88, 44, "%44", "%45", "%46")
GL_WGMMA(96, 48, "%48", "%49", "%50")
GL_WGMMA(104, 52, "%52", "%53", "%54")
GL_WGMMA(112, 56, "%56", "%57", "%58")
GL_WGMMA(120, 60, "%60", "%61", "%62")
GL_WGMMA(128, 64, "%64", "%65", "%66")
GL_WGMMA(136, 68, "%68", "%69", "%70")
GL_WGMMA(144, 72, "%72", "%73", "%74")
GL_WGMMA(152, 76, "%76", "%77", "%78")
GL_WGMMA(160, 80, "%80", "%81", "%82")
GL_WGMMA(168, 84, "%84", "%85", "%86")
GL_WGMMA(176, 88, "%88", "%89", "%90")
GL_WGMMA(184, 92, "%92", "%93", "%94")
GL_WGMMA(192, 96, "%96", "%97", "%98")
GL_WGMMA(200, 100, "%100", "%101", "%102")
GL_WGMMA(208, 104, "%104", "%105", "%106")
GL_WGMMA(216, 108, "%108", "%109", "%110")
GL_WGMMA(224, 112, "%112", "%113", "%114")
GL_WGMMA(232, 116, "%116", "%117", "%118")
GL_WGMMA(240, 120, "%120", "%121", "%122")
GL_WGMMA(248, 124, "%124", "%125", "%126")
GL_WGMMA(256, 128, "%128", "%129", "%130")

#undef GL_WGMMA
#undef GL_2
// clang-format on

}  // namespace ptx
