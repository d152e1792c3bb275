// A probe of one matrix instruction's arithmetic: it runs the instruction, or a chain of four, on given operands and
// accumulators, tile after tile, in every form that it has. measure/mma_probe.py runs it and compares the results with
// ref/mma.py. It is compiled for one instruction at a time.
//
//   python -m gemm_ladder mma-probe --out FOLDER
#include <utility>

#include "launch.cuh"
#include "layout.cuh"
#include "mma.cuh"
#include "ptx.cuh"

using ptx::Type;

// The instruction: PROBE_UNIT 0 is WGMMA, 1 mma.sync; the types by their numbers in ref/mma.py.
constexpr bool kWgmma = PROBE_UNIT == 0, kSatfinite = PROBE_SATFINITE;
constexpr Type kTypeA = static_cast<Type>(PROBE_A), kTypeB = static_cast<Type>(PROBE_B);
constexpr Type kTypeD = static_cast<Type>(PROBE_D);
[[maybe_unused]] constexpr bool kTwoBytes = ptx::type_bytes(kTypeA) == 2;  // the types whose operands may be MN-major
#ifndef PROBE_N_STEP  // the probe is compiled for its multiples up to 256
#define PROBE_N_STEP 64
#endif
constexpr int kStep = PROBE_N_STEP, kLargestN = 256;
constexpr int kThreads = 128;
constexpr int kBytesK = 32;  // of one instruction

// How the operands reach the instruction. Of a WGMMA, B is always in shared memory.
enum Form { kShared, kRegisters, kMnMajorA, kMnMajorB, kMnMajorBoth, kRegistersMnMajorB, kForms };

struct ProbeArgs {
    const uint8_t* a;    // [tiles][64][instructions * 32 bytes]
    const uint8_t* b;    // [tiles][n][instructions * 32 bytes]
    const uint8_t* acc;  // [tiles][64][n] of D's type: the accumulators before the first instruction
    uint8_t* d;          // [tiles][64][n]: the accumulators after the last instruction
    int64_t tiles, n, instructions, form;
    int64_t scale_d;  // 0: the first instruction, a WGMMA, ignores the accumulators
    void* stream;
};

// An MN-major operand in shared memory lies in atoms of 64 elements of M or N and 8 of K, 1024 bytes each, with K
// outside: atoms that are neighbours in K follow one another.
[[maybe_unused]] constexpr int kAtomMn = 64, kAtomK = 8, kAtomBytes = 1024;

template <int kInstructions>
constexpr uint32_t kMnStride = kInstructions * (kBytesK / 2 / kAtomK) * kAtomBytes;  // to the next 64 of M or N

// "Matrix Descriptor Format": MN-major, 128-byte swizzle. The leading byte offset leads to the next 64 elements of M or
// N, the stride byte offset to the next 8 of K.
template <int kInstructions>
__device__ uint64_t mn_major_descriptor(uint32_t address) {
    constexpr uint64_t kSwizzle128B = 1;
    return kSwizzle128B << 62 | uint64_t{kAtomBytes >> 4} << 32 | uint64_t{kMnStride<kInstructions> >> 4} << 16 |
           (address & 0x3FFFF) >> 4;
}

template <int kRows, int kBytes>
__device__ void copy_k_major(uint32_t tile, const uint8_t* matrix) {
    constexpr int kChunk = sizeof(uint4), kChunks = kBytes / kChunk;
    for (int i = threadIdx.x; i < kRows * kChunks; i += kThreads)
        ptx::st_shared(tile + swizzle_128b(i / kChunks * kSwizzleRow + i % kChunks * kChunk),
                       reinterpret_cast<const uint4*>(matrix)[i]);
}

template <int kRows, int kBytes>
__device__ void copy_mn_major(uint32_t tile, const uint8_t* matrix) {
    constexpr int kK = kBytes / 2;
    const auto* elements = reinterpret_cast<const uint16_t*>(matrix);
    for (int i = threadIdx.x; i < kRows / 2 * kK; i += kThreads) {
        const int row = i / kK * 2, k = i % kK;
        const uint32_t pair = elements[row * kK + k] | static_cast<uint32_t>(elements[(row + 1) * kK + k]) << 16;
        const uint32_t atom = row / kAtomMn * kMnStride<kBytes / kBytesK> + k / kAtomK * kAtomBytes;
        ptx::st_shared(tile + atom + swizzle_128b(k % kAtomK * kSwizzleRow + row % kAtomMn * 2), pair);
    }
}

// The 4 bytes of A, or of B, that this lane holds in register i, for the 16 (or 8) rows from `rows` on.
__device__ uint32_t fragment(const uint8_t* rows, int row_bytes, int row_in_8, int i_k) {
    const int lane = threadIdx.x % 32;
    return *reinterpret_cast<const uint32_t*>(rows + (lane / 4 + row_in_8 * 8) * row_bytes + lane % 4 * 4 + i_k * 16);
}

__device__ void load_a(uint32_t (&a)[4], const uint8_t* rows, int row_bytes) {
    for (int i = 0; i < 4; ++i) a[i] = fragment(rows, row_bytes, i % 2, i / 2);
}

// Where this lane's accumulators of register i lie in a matrix of n columns, in registers.
__device__ int64_t place(int64_t n, int i) {
    if constexpr (kTypeD == Type::f16)
        return (accumulator_row(threadIdx.x, 2 * i) * n + accumulator_column(threadIdx.x, 2 * i)) / 2;
    else
        return accumulator_row(threadIdx.x, i) * n + accumulator_column(threadIdx.x, i);
}

template <int N, int kInstructions, Form kForm>
__global__ void __launch_bounds__(kThreads) probe_wgmma(const ProbeArgs p) {
    using Register = ptx::Accumulator<kTypeD>;
    constexpr int kCount = ptx::kWgmmaRegisters<kTypeD, N>;
    constexpr int kBytes = kInstructions * kBytesK;
    constexpr bool kMnA = kForm == kMnMajorA || kForm == kMnMajorBoth;
    constexpr bool kMnB = kForm == kMnMajorB || kForm == kMnMajorBoth || kForm == kRegistersMnMajorB;
    constexpr bool kAInRegisters = kForm == kRegisters || kForm == kRegistersMnMajorB;
    constexpr ptx::WgmmaOptions kOptions{.mn_major_a = kMnA, .mn_major_b = kMnB, .satfinite = kSatfinite};
    const uint8_t* const a = p.a + int64_t{blockIdx.x} * kWgmmaM * kBytes;
    const uint8_t* const b = p.b + int64_t{blockIdx.x} * N * kBytes;
    const uint32_t smem_a = ptx::shared_memory(), smem_b = smem_a + kWgmmaM * kSwizzleRow;
    if constexpr (kMnA)
        copy_mn_major<kWgmmaM, kBytes>(smem_a, a);
    else
        copy_k_major<kWgmmaM, kBytes>(smem_a, a);
    if constexpr (kMnB)
        copy_mn_major<N, kBytes>(smem_b, b);
    else
        copy_k_major<N, kBytes>(smem_b, b);
    ptx::fence_proxy_async();
    __syncthreads();

    uint32_t fragments[kInstructions][4];
    for (int k = 0; k < kInstructions; ++k)
        load_a(fragments[k], a + threadIdx.x / 32 * 16 * kBytes + k * kBytesK, kBytes);
    const int64_t tile = int64_t{blockIdx.x} * kCount * kThreads;
    const auto* acc = reinterpret_cast<const Register*>(p.acc) + tile;
    auto* out = reinterpret_cast<Register*>(p.d) + tile;
    Register d[kCount];
#pragma unroll
    for (int i = 0; i < kCount; ++i) d[i] = acc[place(N, i)];
    ptx::wgmma_fence();
#pragma unroll
    for (int k = 0; k < kInstructions; ++k) {
        constexpr uint32_t kMnStep = kBytesK / 2 / kAtomK * kAtomBytes;
        const uint64_t desc_a =
            kMnA ? mn_major_descriptor<kInstructions>(smem_a + k * kMnStep) : smem_descriptor(smem_a + k * kBytesK);
        const uint64_t desc_b =
            kMnB ? mn_major_descriptor<kInstructions>(smem_b + k * kMnStep) : smem_descriptor(smem_b + k * kBytesK);
        const int scale_d = k != 0 || p.scale_d != 0;
        if constexpr (kAInRegisters)
            ptx::wgmma<kTypeD, kTypeA, kTypeB, N, kOptions>(d, fragments[k], desc_b, scale_d);
        else
            ptx::wgmma<kTypeD, kTypeA, kTypeB, N, kOptions>(d, desc_a, desc_b, scale_d);
    }
    ptx::wgmma_commit_group();
    ptx::wgmma_wait_group<0>();
#pragma unroll
    for (int i = 0; i < kCount; ++i) out[place(N, i)] = d[i];
}

// mma.sync: each warp computes 16 rows, 8 columns at a time.
__global__ void __launch_bounds__(kThreads) probe_mma(const ProbeArgs p) {
    using Register = ptx::Accumulator<kTypeD>;
    constexpr int kCount = ptx::kMmaRegisters<kTypeD>;
    constexpr int kInARegister = kTypeD == Type::f16 ? 2 : 1;
    const int row_bytes = static_cast<int>(p.instructions) * kBytesK;
    const uint8_t* const a = p.a + (int64_t{blockIdx.x} * kWgmmaM + threadIdx.x / 32 * 16) * row_bytes;
    const auto* acc = reinterpret_cast<const Register*>(p.acc) + int64_t{blockIdx.x} * kWgmmaM * p.n / kInARegister;
    auto* out = reinterpret_cast<Register*>(p.d) + int64_t{blockIdx.x} * kWgmmaM * p.n / kInARegister;
    for (int column = 0; column < p.n; column += 8) {
        const uint8_t* const b = p.b + (blockIdx.x * p.n + column) * row_bytes;
        Register d[kCount];
        for (int i = 0; i < kCount; ++i) d[i] = acc[place(p.n, i) + column / kInARegister];
        for (int k = 0; k < p.instructions; ++k) {
            uint32_t a_fragment[4], b_fragment[2];
            load_a(a_fragment, a + k * kBytesK, row_bytes);
            for (int i = 0; i < 2; ++i) b_fragment[i] = fragment(b + k * kBytesK, row_bytes, 0, i);
            ptx::mma_sync<kTypeD, kTypeA, kTypeB, kSatfinite>(d, a_fragment, b_fragment);
        }
        for (int i = 0; i < kCount; ++i) out[place(p.n, i) + column / kInARegister] = d[i];
    }
}

template <int N, Form kForm>
const char* launch_wgmma(const ProbeArgs& args) {
    constexpr uint32_t kRowsB = (N + kAtomMn - 1) / kAtomMn * kAtomMn;
    return launch(args.instructions == 1 ? probe_wgmma<N, 1, kForm> : probe_wgmma<N, 4, kForm>,
                  {.blocks = args.tiles,
                   .threads = kThreads,
                   .shared_bytes = (kWgmmaM + kRowsB) * kSwizzleRow,
                   .stream = args.stream},
                  args);
}

template <int N>
const char* launch_form(const ProbeArgs& args) {
    // An integer WGMMA has fewer N.
    if constexpr (kTypeD == Type::s32 && N > 32 && N % 16) {
        return "an integer WGMMA does not have this n";
    } else {
        if (args.form == kShared) return launch_wgmma<N, kShared>(args);
        if (args.form == kRegisters) return launch_wgmma<N, kRegisters>(args);
        if constexpr (kTwoBytes) {
            if (args.form == kMnMajorA) return launch_wgmma<N, kMnMajorA>(args);
            if (args.form == kMnMajorB) return launch_wgmma<N, kMnMajorB>(args);
            if (args.form == kMnMajorBoth) return launch_wgmma<N, kMnMajorBoth>(args);
            if (args.form == kRegistersMnMajorB) return launch_wgmma<N, kRegistersMnMajorB>(args);
        }
        return "this instruction does not have this form";
    }
}

template <int... kIndex>
const char* launch_for_n(const ProbeArgs& args, std::integer_sequence<int, kIndex...>) {
    using Launcher = const char* (*)(const ProbeArgs&);
    constexpr Launcher kLaunchers[] = {launch_form<kStep*(kIndex + 1)>...};
    return kLaunchers[args.n / kStep - 1](args);
}

extern "C" const char* gemm_ladder_launch(const ProbeArgs* args) {
    if (args->n % kStep || args->n < kStep || args->n > kLargestN) return "the probe was not compiled for this n";
    if (args->instructions != 1 && args->instructions != 4) return "one instruction, or a chain of four, is needed";
    if constexpr (kWgmma) {
        return launch_for_n(*args, std::make_integer_sequence<int, kLargestN / kStep>());
    } else {
        if (args->form != kRegisters) return "mma.sync has its operands in registers";
        return launch(probe_mma, {.blocks = args->tiles, .threads = kThreads, .stream = args->stream}, *args);
    }
}
