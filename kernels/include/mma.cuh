// The matrix instructions of all types: WGMMA as wgmma<D, A, B, N>, mma.sync as mma_sync<D, A, B>. ref/mma.py has
// their arithmetic. (The kernels of this package need the E4M3 WGMMA only, which ptx.cuh has.)
#pragma once

#include "mma_types.cuh"
#include "operand_lists.cuh"

namespace ptx {

namespace detail {

// The names of an instruction's shape and types, from K on.
template <Type kD, Type kA, Type kB, bool kSatfinite = false>
struct Kind;

// clang-format off
#define GL_KIND(D, A, B, K, SATFINITE, MODIFIER)                                                  \
    template <>                                                                                   \
    struct Kind<Type::D, Type::A, Type::B, SATFINITE> {                                           \
        static constexpr char wgmma[] = K MODIFIER "." #D "." #A "." #B;                          \
        static constexpr char mma[] = K ".row.col" MODIFIER "." #D "." #A "." #B "." #D;          \
    };
#define GL_FP8_KIND(A, B) GL_KIND(f32, A, B, "k32", false, "") GL_KIND(f16, A, B, "k32", false, "")
#define GL_INTEGER_KIND(A, B) GL_KIND(s32, A, B, "k32", false, "") GL_KIND(s32, A, B, "k32", true, ".satfinite")

GL_FP8_KIND(e4m3, e4m3)
GL_FP8_KIND(e4m3, e5m2)
GL_FP8_KIND(e5m2, e4m3)
GL_FP8_KIND(e5m2, e5m2)
GL_KIND(f32, bf16, bf16, "k16", false, "")
GL_KIND(f32, f16, f16, "k16", false, "")
GL_KIND(f16, f16, f16, "k16", false, "")
GL_KIND(f32, tf32, tf32, "k8", false, "")
GL_INTEGER_KIND(s8, s8)
GL_INTEGER_KIND(s8, u8)
GL_INTEGER_KIND(u8, s8)
GL_INTEGER_KIND(u8, u8)

#undef GL_INTEGER_KIND
#undef GL_FP8_KIND
#undef GL_KIND
// clang-format on

// The immediates behind scale-d: none for integers, the signs, and for 16-bit types the majors of the operands that
// are in shared memory.
template <Type kA, WgmmaOptions kOptions, bool kAInRegisters>
struct Immediates {
    static constexpr bool kInteger = kA == Type::s8 || kA == Type::u8, kTwoBytes = type_bytes(kA) == 2;
    static_assert(options_suit<kA, kOptions, kAInRegisters>());
    static constexpr char kMajorA = kOptions.mn_major_a ? '1' : '0', kMajorB = kOptions.mn_major_b ? '1' : '0';
    // What an instruction does not have is blank.
    static constexpr char kComma = kInteger ? ' ' : ',', kOne = kInteger ? ' ' : '1';
    static constexpr char kSignA = kOptions.negate_a ? '-' : ' ', kSignB = kOptions.negate_b ? '-' : ' ';
    static constexpr bool kHasMajorA = kTwoBytes && !kAInRegisters;
    static constexpr char text[] = {kComma,
                                    kSignA,
                                    kOne,
                                    kComma,
                                    kSignB,
                                    kOne,
                                    kHasMajorA ? ',' : ' ',
                                    kHasMajorA ? kMajorA : ' ',
                                    kTwoBytes ? ',' : ' ',
                                    kTwoBytes ? kMajorB : ' ',
                                    '\0'};
};

// The asm statements for N columns: `shared` with both operands in shared memory, `registers` with A in registers.
template <Type kD, int N>
struct Wgmma;

// clang-format off
#define GL_WGMMA(D, REGISTER, N, REGS, P0, P1, P2, P3, P4, P5, P6, P7)                                                 \
    template <>                                                                                                        \
    struct Wgmma<Type::D, N> {                                                                                         \
        template <typename KindOf, typename ImmediatesOf>                                                              \
        static __device__ __forceinline__ void shared(REGISTER (&d)[REGS], uint64_t a, uint64_t b, int scale_d) {      \
            asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " P2 ", 0;\n"                                               \
                         "wgmma.mma_async.sync.aligned.m64n" #N P3 " {" GL_NAMES_##REGS "}, " P0 ", " P1 ", p" P4      \
                         ";\n}\n"                                                                                      \
                         : GL_REGS_##REGS                                                                              \
                         : "l"(a), "l"(b), "r"(scale_d), "C"(KindOf::wgmma), "C"(ImmediatesOf::text));                 \
        }                                                                                                              \
        template <typename KindOf, typename ImmediatesOf>                                                              \
        static __device__ __forceinline__ void registers(REGISTER (&d)[REGS], const uint32_t (&a)[4], uint64_t b,      \
                                                         int scale_d) {                                                \
            asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " P5 ", 0;\n"                                               \
                         "wgmma.mma_async.sync.aligned.m64n" #N P6 " {" GL_NAMES_##REGS "}, {" P0 ", " P1 ", " P2 ", " \
                         P3 "}, " P4 ", p" P7 ";\n}\n"                                                                 \
                         : GL_REGS_##REGS                                                                              \
                         : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(scale_d), "C"(KindOf::wgmma),       \
                           "C"(ImmediatesOf::text));                                                                   \
        }                                                                                                              \
    };

#define GL_WGMMA_F32(...) GL_WGMMA(f32, float, __VA_ARGS__)
#define GL_WGMMA_F16(...) GL_WGMMA(f16, uint32_t, __VA_ARGS__)
#define GL_WGMMA_S32(...) GL_WGMMA(s32, int32_t, __VA_ARGS__)

#define GL_2(i) "+f"(d[i]), "+f"(d[i + 1])
GL_WGMMA_F32(8, 4, "%4", "%5", "%6", "%7", "%8", "%9", "%10", "%11")
GL_WGMMA_F32(16, 8, "%8", "%9", "%10", "%11", "%12", "%13", "%14", "%15")
GL_WGMMA_F32(24, 12, "%12", "%13", "%14", "%15", "%16", "%17", "%18", "%19")
GL_WGMMA_F32(32, 16, "%16", "%17", "%18", "%19", "%20", "%21", "%22", "%23")
GL_WGMMA_F32(40, 20, "%20", "%21", "%22", "%23", "%24", "%25", "%26", "%27")
GL_WGMMA_F32(48, 24, "%24", "%25", "%26", "%27", "%28", "%29", "%30", "%31")
GL_WGMMA_F32(56, 28, "%28", "%29", "%30", "%31", "%32", "%33", "%34", "%35")
GL_WGMMA_F32(64, 32, "%32", "%33", "%34", "%35", "%36", "%37", "%38", "%39")
GL_WGMMA_F32(72, 36, "%36", "%37", "%38", "%39", "%40", "%41", "%42", "%43")
GL_WGMMA_F32(80, 40, "%40", "%41", "%42", "%43", "%44", "%45", "%46", "%47")
GL_WGMMA_F32(88, 44, "%44", "%45", "%46", "%47", "%48", "%49", "%50", "%51")
GL_WGMMA_F32(96, 48, "%48", "%49", "%50", "%51", "%52", "%53", "%54", "%55")
GL_WGMMA_F32(104, 52, "%52", "%53", "%54", "%55", "%56", "%57", "%58", "%59")
GL_WGMMA_F32(112, 56, "%56", "%57", "%58", "%59", "%60", "%61", "%62", "%63")
GL_WGMMA_F32(120, 60, "%60", "%61", "%62", "%63", "%64", "%65", "%66", "%67")
GL_WGMMA_F32(128, 64, "%64", "%65", "%66", "%67", "%68", "%69", "%70", "%71")
GL_WGMMA_F32(136, 68, "%68", "%69", "%70", "%71", "%72", "%73", "%74", "%75")
GL_WGMMA_F32(144, 72, "%72", "%73", "%74", "%75", "%76", "%77", "%78", "%79")
GL_WGMMA_F32(152, 76, "%76", "%77", "%78", "%79", "%80", "%81", "%82", "%83")
GL_WGMMA_F32(160, 80, "%80", "%81", "%82", "%83", "%84", "%85", "%86", "%87")
GL_WGMMA_F32(168, 84, "%84", "%85", "%86", "%87", "%88", "%89", "%90", "%91")
GL_WGMMA_F32(176, 88, "%88", "%89", "%90", "%91", "%92", "%93", "%94", "%95")
GL_WGMMA_F32(184, 92, "%92", "%93", "%94", "%95", "%96", "%97", "%98", "%99")
GL_WGMMA_F32(192, 96, "%96", "%97", "%98", "%99", "%100", "%101", "%102", "%103")
GL_WGMMA_F32(200, 100, "%100", "%101", "%102", "%103", "%104", "%105", "%106", "%107")
GL_WGMMA_F32(208, 104, "%104", "%105", "%106", "%107", "%108", "%109", "%110", "%111")
GL_WGMMA_F32(216, 108, "%108", "%109", "%110", "%111", "%112", "%113", "%114", "%115")
GL_WGMMA_F32(224, 112, "%112", "%113", "%114", "%115", "%116", "%117", "%118", "%119")
GL_WGMMA_F32(232, 116, "%116", "%117", "%118", "%119", "%120", "%121", "%122", "%123")
GL_WGMMA_F32(240, 120, "%120", "%121", "%122", "%123", "%124", "%125", "%126", "%127")
GL_WGMMA_F32(248, 124, "%124", "%125", "%126", "%127", "%128", "%129", "%130", "%131")
GL_WGMMA_F32(256, 128, "%128", "%129", "%130", "%131", "%132", "%133", "%134", "%135")
#undef GL_2

#define GL_2(i) "+r"(d[i]), "+r"(d[i + 1])
GL_WGMMA_F16(8, 2, "%2", "%3", "%4", "%5", "%6", "%7", "%8", "%9")
GL_WGMMA_F16(16, 4, "%4", "%5", "%6", "%7", "%8", "%9", "%10", "%11")
GL_WGMMA_F16(24, 6, "%6", "%7", "%8", "%9", "%10", "%11", "%12", "%13")
GL_WGMMA_F16(32, 8, "%8", "%9", "%10", "%11", "%12", "%13", "%14", "%15")
GL_WGMMA_F16(40, 10, "%10", "%11", "%12", "%13", "%14", "%15", "%16", "%17")
GL_WGMMA_F16(48, 12, "%12", "%13", "%14", "%15", "%16", "%17", "%18", "%19")
GL_WGMMA_F16(56, 14, "%14", "%15", "%16", "%17", "%18", "%19", "%20", "%21")
GL_WGMMA_F16(64, 16, "%16", "%17", "%18", "%19", "%20", "%21", "%22", "%23")
GL_WGMMA_F16(72, 18, "%18", "%19", "%20", "%21", "%22", "%23", "%24", "%25")
GL_WGMMA_F16(80, 20, "%20", "%21", "%22", "%23", "%24", "%25", "%26", "%27")
GL_WGMMA_F16(88, 22, "%22", "%23", "%24", "%25", "%26", "%27", "%28", "%29")
GL_WGMMA_F16(96, 24, "%24", "%25", "%26", "%27", "%28", "%29", "%30", "%31")
GL_WGMMA_F16(104, 26, "%26", "%27", "%28", "%29", "%30", "%31", "%32", "%33")
GL_WGMMA_F16(112, 28, "%28", "%29", "%30", "%31", "%32", "%33", "%34", "%35")
GL_WGMMA_F16(120, 30, "%30", "%31", "%32", "%33", "%34", "%35", "%36", "%37")
GL_WGMMA_F16(128, 32, "%32", "%33", "%34", "%35", "%36", "%37", "%38", "%39")
GL_WGMMA_F16(136, 34, "%34", "%35", "%36", "%37", "%38", "%39", "%40", "%41")
GL_WGMMA_F16(144, 36, "%36", "%37", "%38", "%39", "%40", "%41", "%42", "%43")
GL_WGMMA_F16(152, 38, "%38", "%39", "%40", "%41", "%42", "%43", "%44", "%45")
GL_WGMMA_F16(160, 40, "%40", "%41", "%42", "%43", "%44", "%45", "%46", "%47")
GL_WGMMA_F16(168, 42, "%42", "%43", "%44", "%45", "%46", "%47", "%48", "%49")
GL_WGMMA_F16(176, 44, "%44", "%45", "%46", "%47", "%48", "%49", "%50", "%51")
GL_WGMMA_F16(184, 46, "%46", "%47", "%48", "%49", "%50", "%51", "%52", "%53")
GL_WGMMA_F16(192, 48, "%48", "%49", "%50", "%51", "%52", "%53", "%54", "%55")
GL_WGMMA_F16(200, 50, "%50", "%51", "%52", "%53", "%54", "%55", "%56", "%57")
GL_WGMMA_F16(208, 52, "%52", "%53", "%54", "%55", "%56", "%57", "%58", "%59")
GL_WGMMA_F16(216, 54, "%54", "%55", "%56", "%57", "%58", "%59", "%60", "%61")
GL_WGMMA_F16(224, 56, "%56", "%57", "%58", "%59", "%60", "%61", "%62", "%63")
GL_WGMMA_F16(232, 58, "%58", "%59", "%60", "%61", "%62", "%63", "%64", "%65")
GL_WGMMA_F16(240, 60, "%60", "%61", "%62", "%63", "%64", "%65", "%66", "%67")
GL_WGMMA_F16(248, 62, "%62", "%63", "%64", "%65", "%66", "%67", "%68", "%69")
GL_WGMMA_F16(256, 64, "%64", "%65", "%66", "%67", "%68", "%69", "%70", "%71")
GL_WGMMA_S32(8, 4, "%4", "%5", "%6", "%7", "%8", "%9", "%10", "%11")
GL_WGMMA_S32(16, 8, "%8", "%9", "%10", "%11", "%12", "%13", "%14", "%15")
GL_WGMMA_S32(24, 12, "%12", "%13", "%14", "%15", "%16", "%17", "%18", "%19")
GL_WGMMA_S32(32, 16, "%16", "%17", "%18", "%19", "%20", "%21", "%22", "%23")
GL_WGMMA_S32(48, 24, "%24", "%25", "%26", "%27", "%28", "%29", "%30", "%31")
GL_WGMMA_S32(64, 32, "%32", "%33", "%34", "%35", "%36", "%37", "%38", "%39")
GL_WGMMA_S32(80, 40, "%40", "%41", "%42", "%43", "%44", "%45", "%46", "%47")
GL_WGMMA_S32(96, 48, "%48", "%49", "%50", "%51", "%52", "%53", "%54", "%55")
GL_WGMMA_S32(112, 56, "%56", "%57", "%58", "%59", "%60", "%61", "%62", "%63")
GL_WGMMA_S32(128, 64, "%64", "%65", "%66", "%67", "%68", "%69", "%70", "%71")
GL_WGMMA_S32(144, 72, "%72", "%73", "%74", "%75", "%76", "%77", "%78", "%79")
GL_WGMMA_S32(160, 80, "%80", "%81", "%82", "%83", "%84", "%85", "%86", "%87")
GL_WGMMA_S32(176, 88, "%88", "%89", "%90", "%91", "%92", "%93", "%94", "%95")
GL_WGMMA_S32(192, 96, "%96", "%97", "%98", "%99", "%100", "%101", "%102", "%103")
GL_WGMMA_S32(208, 104, "%104", "%105", "%106", "%107", "%108", "%109", "%110", "%111")
GL_WGMMA_S32(224, 112, "%112", "%113", "%114", "%115", "%116", "%117", "%118", "%119")
GL_WGMMA_S32(240, 120, "%120", "%121", "%122", "%123", "%124", "%125", "%126", "%127")
GL_WGMMA_S32(256, 128, "%128", "%129", "%130", "%131", "%132", "%133", "%134", "%135")
#undef GL_2

#undef GL_WGMMA_S32
#undef GL_WGMMA_F16
#undef GL_WGMMA_F32
#undef GL_WGMMA
// clang-format on

}  // namespace detail

// "Asynchronous warpgroup-level matrix instructions: wgmma.mma_async" (PTX ISA).
// d[64 x N] = a[64 x K] * b[N x K]^T + (scale_d ? d : 0), K being 32 bytes, both operands in shared memory. N is 8 to
// 256 in steps of 8; for integers, from 32 on in steps of 16.
template <Type kD, Type kA, Type kB, int N, WgmmaOptions kOptions = WgmmaOptions{}>
__device__ __forceinline__ void wgmma(Accumulator<kD> (&d)[kWgmmaRegisters<kD, N>], uint64_t desc_a, uint64_t desc_b,
                                      int scale_d) {
    detail::Wgmma<kD, N>::template shared<detail::Kind<kD, kA, kB, kOptions.satfinite>,
                                          detail::Immediates<kA, kOptions, false>>(d, desc_a, desc_b, scale_d);
}
// The same with A in registers: of thread t of the warpgroup, a[i] holds 4 bytes of row t / 32 * 16 + t % 32 / 4 +
// i % 2 * 8, from byte t % 4 * 4 + i / 2 * 16 of K on.
template <Type kD, Type kA, Type kB, int N, WgmmaOptions kOptions = WgmmaOptions{}>
__device__ __forceinline__ void wgmma(Accumulator<kD> (&d)[kWgmmaRegisters<kD, N>], const uint32_t (&a)[4],
                                      uint64_t desc_b, int scale_d) {
    detail::Wgmma<kD, N>::template registers<detail::Kind<kD, kA, kB, kOptions.satfinite>,
                                             detail::Immediates<kA, kOptions, true>>(d, a, desc_b, scale_d);
}

// "Multiply-and-accumulate instruction: mma" (PTX ISA), with K of 32 bytes: m16n8k32, m16n8k16 or m16n8k8.
// d[16 x 8] += a[16 x K] * b[8 x K]^T. Of lane t, a[i] holds 4 bytes of row t / 4 + i % 2 * 8 of A, from byte
// t % 4 * 4 + i / 2 * 16 of K on, and b[i] 4 bytes of row t / 4 of B, from byte t % 4 * 4 + i * 16 on.
template <Type kD, Type kA, Type kB, bool kSatfinite = false>
__device__ __forceinline__ void mma_sync(Accumulator<kD> (&d)[kMmaRegisters<kD>], const uint32_t (&a)[4],
                                         const uint32_t (&b)[2]) {
    using KindOf = detail::Kind<kD, kA, kB, kSatfinite>;
    if constexpr (kD == Type::f32)
        asm volatile("mma.sync.aligned.m16n8%10 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "C"(KindOf::mma));
    else if constexpr (kD == Type::s32)
        asm volatile("mma.sync.aligned.m16n8%10 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                     : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "C"(KindOf::mma));
    else
        asm volatile("mma.sync.aligned.m16n8%8 {%0, %1}, {%2, %3, %4, %5}, {%6, %7}, {%0, %1};"
                     : "+r"(d[0]), "+r"(d[1])
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "C"(KindOf::mma));
}

}  // namespace ptx
