// A program that runs rung s4 and kernels that crash on the emulator, and prints what came of it:
// test_other_machines.py compiles it for this machine and for another one, and compares the outputs.
#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "core/record.hpp"
#include "launch.cuh"

extern "C" {
const char* gemm_ladder_launch(const GemmArgs* args);
void emulator_configure(const EmulatorConfig* config);
int64_t emulator_steps();
bool emulator_fault(EmulatorFault* out);
}

namespace {

float value_of[256];  // of each E4M3 code

// The tensor core's arithmetic is Numba's machine code, which there is only for the machine that Python runs on. These
// two add FP32 numbers, which is enough to see that both machines do the same: decode gives the numbers of B's codes in
// groups of 32 columns, and multiply adds a's products with them. They are no part of a kernel, whose accesses to
// memory are counted.
constexpr int64_t kGroup = 32, kInstructionK = 32;
[[gnu::no_sanitize_thread]] int64_t at(int64_t column, int64_t k) {
    return (column / kGroup * kInstructionK + k) * kGroup + column % kGroup;
}
[[gnu::no_sanitize_thread]] void decode(int64_t n, const uint8_t* b, float* values, int8_t*) {
    for (int64_t column = 0; column < n; ++column)
        for (int64_t k = 0; k < kInstructionK; ++k) values[at(column, k)] = value_of[b[column * kInstructionK + k]];
}
[[gnu::no_sanitize_thread]] void multiply(int64_t m, int64_t n, const uint8_t* a, const float* values, const int8_t*,
                                          float* sums) {
    for (int64_t row = 0; row < m; ++row)
        for (int64_t column = 0; column < n; ++column) {
            float sum = sums[row * n + column];
            for (int64_t k = 0; k < kInstructionK; ++k)
                sum += value_of[a[row * kInstructionK + k]] * values[at(column, k)];
            sums[row * n + column] = sum;
        }
}

int64_t no_mma(int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, const uint8_t*, const uint8_t*,
               void*) {
    std::abort();  // WGMMA of other types than FP8
}

EmulatorConfig seeded(uint64_t seed, const std::vector<EmulatorTensor>& tensors = {}) {
    return {.seed = seed,
            .record = 0,
            .threads = 1,
            .max_steps = 0,
            .mma = no_mma,
            .decode = decode,
            .multiply = multiply,
            .dry = 0,
            .tensors = tensors.data(),
            .tensor_count = static_cast<int64_t>(tensors.size())};
}

int recurse(int depth) {
    volatile int more = depth + 1;
    return more ? recurse(more) + 1 : 0;
}

}  // namespace

__global__ void crash(int how, int* tensor) {
    if (threadIdx.x != 7) return;
    if (how == 0) *reinterpret_cast<volatile int*>(16) = 1;
    if (how == 1) tensor[0] = recurse(1);
    if (how == 2) __builtin_trap();
    if (how == 3)
        for (unsigned i = 0;; i += 3) {
        }
    if (how == 4) tensor[1000] = 1;
}

int main() {
    constexpr int64_t kM = 64, kN = 128, kK = 256;
    std::vector<uint8_t> a(kM * kK), b(kN * kK);
    std::vector<float> sfa(kK / 128 * kM), sfb(kK / 128);
    std::vector<uint16_t> d(kM * kN);
    for (int code = 0; code < 256; ++code) value_of[code] = ptx::cvt_f32_e4m3(static_cast<uint8_t>(code));
    uint32_t state = 1;
    const auto next = [&] { return (state = state * 1664525 + 1013904223) >> 24; };
    for (auto* operand : {&a, &b})
        for (uint8_t& code : *operand) code = static_cast<uint8_t>(next() & 0xBF);  // no NaN
    for (auto* scales : {&sfa, &sfb})
        for (float& scale : *scales) scale = static_cast<float>(1 + next());
    for (uint64_t seed = 0; seed < 4; ++seed) {
        const EmulatorConfig config = seeded(seed);
        emulator_configure(&config);
        const GemmArgs args{.a = a.data(),
                            .sfa = sfa.data(),
                            .b = b.data(),
                            .sfb = sfb.data(),
                            .d = d.data(),
                            .m = kM,
                            .n = kN,
                            .k = kK,
                            .sfa_stride = kM,
                            .num_sms = 4,
                            .stream = nullptr};
        const char* said = gemm_ladder_launch(&args);
        uint64_t hash = 14695981039346656037u;  // FNV-1a
        for (const uint16_t bits : d) hash = (hash ^ bits) * 1099511628211u;
        std::printf("seed %" PRIu64 ": %s, %" PRId64 " steps, D %016" PRIx64 "\n", seed, said ? said : "right",
                    emulator_steps(), hash);
    }
    for (int how = 0; how < 5; ++how) {
        std::vector<int> tensor(8);
        std::vector<EmulatorTensor> tensors;
        if (how == 4) tensors.push_back({"T", reinterpret_cast<uint64_t>(tensor.data()), 32, 4, 1, 0, {8}, {1}});
        const EmulatorConfig config = seeded(0, tensors);
        emulator_configure(&config);
        const char* said = launch(crash, {.blocks = 1, .threads = 32}, how, tensor.data());
        EmulatorFault fault{};
        const bool found = emulator_fault(&fault);
        std::printf("crash %d: %s, lane %d: %s\n", how, found ? fault.what : "none", fault.lane, said ? said : "");
    }
}
