// "Asynchronous warpgroup-level matrix instructions: wgmma.mma_async" (PTX ISA).
// d[64 x N] = a[64 x 32] * b[N x 32]^T + (scale_d ? d : 0), E4M3 in, FP32 out, both operands in shared memory.
// An asm statement must name each of its operands, so every N, with N / 2 registers, needs a line of its own.
#pragma once

#include <cstdint>

namespace ptx {

template <int N>
__device__ void wgmma(float (&d)[N / 2], uint64_t desc_a, uint64_t desc_b, int scale_d);

// clang-format off
#define GL_4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])

#define GL_NAMES_4 "%0, %1, %2, %3"
#define GL_NAMES_8 GL_NAMES_4 ", %4, %5, %6, %7"
#define GL_NAMES_12 GL_NAMES_8 ", %8, %9, %10, %11"
#define GL_NAMES_16 GL_NAMES_12 ", %12, %13, %14, %15"
#define GL_NAMES_20 GL_NAMES_16 ", %16, %17, %18, %19"
#define GL_NAMES_24 GL_NAMES_20 ", %20, %21, %22, %23"
#define GL_NAMES_28 GL_NAMES_24 ", %24, %25, %26, %27"
#define GL_NAMES_32 GL_NAMES_28 ", %28, %29, %30, %31"
#define GL_NAMES_36 GL_NAMES_32 ", %32, %33, %34, %35"
#define GL_NAMES_40 GL_NAMES_36 ", %36, %37, %38, %39"
#define GL_NAMES_44 GL_NAMES_40 ", %40, %41, %42, %43"
#define GL_NAMES_48 GL_NAMES_44 ", %44, %45, %46, %47"
#define GL_NAMES_52 GL_NAMES_48 ", %48, %49, %50, %51"
#define GL_NAMES_56 GL_NAMES_52 ", %52, %53, %54, %55"
#define GL_NAMES_60 GL_NAMES_56 ", %56, %57, %58, %59"
#define GL_NAMES_64 GL_NAMES_60 ", %60, %61, %62, %63"
#define GL_NAMES_68 GL_NAMES_64 ", %64, %65, %66, %67"
#define GL_NAMES_72 GL_NAMES_68 ", %68, %69, %70, %71"
#define GL_NAMES_76 GL_NAMES_72 ", %72, %73, %74, %75"
#define GL_NAMES_80 GL_NAMES_76 ", %76, %77, %78, %79"
#define GL_NAMES_84 GL_NAMES_80 ", %80, %81, %82, %83"
#define GL_NAMES_88 GL_NAMES_84 ", %84, %85, %86, %87"
#define GL_NAMES_92 GL_NAMES_88 ", %88, %89, %90, %91"
#define GL_NAMES_96 GL_NAMES_92 ", %92, %93, %94, %95"
#define GL_NAMES_100 GL_NAMES_96 ", %96, %97, %98, %99"
#define GL_NAMES_104 GL_NAMES_100 ", %100, %101, %102, %103"
#define GL_NAMES_108 GL_NAMES_104 ", %104, %105, %106, %107"
#define GL_NAMES_112 GL_NAMES_108 ", %108, %109, %110, %111"
#define GL_NAMES_116 GL_NAMES_112 ", %112, %113, %114, %115"
#define GL_NAMES_120 GL_NAMES_116 ", %116, %117, %118, %119"
#define GL_NAMES_124 GL_NAMES_120 ", %120, %121, %122, %123"
#define GL_NAMES_128 GL_NAMES_124 ", %124, %125, %126, %127"

#define GL_REGS_4 GL_4(0)
#define GL_REGS_8 GL_REGS_4, GL_4(4)
#define GL_REGS_12 GL_REGS_8, GL_4(8)
#define GL_REGS_16 GL_REGS_12, GL_4(12)
#define GL_REGS_20 GL_REGS_16, GL_4(16)
#define GL_REGS_24 GL_REGS_20, GL_4(20)
#define GL_REGS_28 GL_REGS_24, GL_4(24)
#define GL_REGS_32 GL_REGS_28, GL_4(28)
#define GL_REGS_36 GL_REGS_32, GL_4(32)
#define GL_REGS_40 GL_REGS_36, GL_4(36)
#define GL_REGS_44 GL_REGS_40, GL_4(40)
#define GL_REGS_48 GL_REGS_44, GL_4(44)
#define GL_REGS_52 GL_REGS_48, GL_4(48)
#define GL_REGS_56 GL_REGS_52, GL_4(52)
#define GL_REGS_60 GL_REGS_56, GL_4(56)
#define GL_REGS_64 GL_REGS_60, GL_4(60)
#define GL_REGS_68 GL_REGS_64, GL_4(64)
#define GL_REGS_72 GL_REGS_68, GL_4(68)
#define GL_REGS_76 GL_REGS_72, GL_4(72)
#define GL_REGS_80 GL_REGS_76, GL_4(76)
#define GL_REGS_84 GL_REGS_80, GL_4(80)
#define GL_REGS_88 GL_REGS_84, GL_4(84)
#define GL_REGS_92 GL_REGS_88, GL_4(88)
#define GL_REGS_96 GL_REGS_92, GL_4(92)
#define GL_REGS_100 GL_REGS_96, GL_4(96)
#define GL_REGS_104 GL_REGS_100, GL_4(100)
#define GL_REGS_108 GL_REGS_104, GL_4(104)
#define GL_REGS_112 GL_REGS_108, GL_4(108)
#define GL_REGS_116 GL_REGS_112, GL_4(112)
#define GL_REGS_120 GL_REGS_116, GL_4(116)
#define GL_REGS_124 GL_REGS_120, GL_4(120)
#define GL_REGS_128 GL_REGS_124, GL_4(124)

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
#undef GL_4
// clang-format on

}  // namespace ptx
