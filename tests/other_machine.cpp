// A program that runs rung s3 and kernels that crash on the emulator, and prints what came of it:
// test_other_machines.py compiles it for this machine and for another one, and compares the outputs.
#include <cinttypes>
#include <cstdio>
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

// The tensor core's arithmetic is Numba's machine code, which there is only for the machine that Python runs on. This
// one adds FP32 numbers, which is enough to see that both machines do the same. It is no part of a kernel, whose
// accesses to memory are counted.
[[gnu::no_sanitize_thread]] int64_t multiply(int64_t, int64_t, int64_t, int64_t, int64_t, int64_t rows, int64_t n,
                                             int64_t k, const uint8_t* a, const uint8_t* b, void* sums) {
    for (int64_t row = 0; row < rows; ++row)
        for (int64_t column = 0; column < n; ++column) {
            float sum = static_cast<float*>(sums)[row * n + column];
            for (int64_t i = 0; i < k; ++i) sum += value_of[a[row * k + i]] * value_of[b[column * k + i]];
            static_cast<float*>(sums)[row * n + column] = sum;
        }
    return 0;
}

EmulatorConfig seeded(uint64_t seed, const std::vector<EmulatorTensor>& tensors = {}) {
    return {.seed = seed,
            .record = 0,
            .threads = 1,
            .max_steps = 0,
            .mma = multiply,
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
