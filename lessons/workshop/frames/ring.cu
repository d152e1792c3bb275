// What stands around the reader's kernel in lessons 06, 08 and 09. A CTA computes 128 x 128 tiles of D: two warpgroups
// multiply, 64 rows each. With PRODUCER there is a third warpgroup, number 0, for the loads; with PERSISTENT there are
// no more CTAs than SMs.
#include "launch.cuh"
#include "layout.cuh"
#include "ptx.cuh"

constexpr int kWarpgroup = 128;
constexpr int kConsumers = 2;  // warpgroups that multiply
constexpr int kThreads = (PRODUCER + kConsumers) * kWarpgroup;
constexpr int kTileM = kConsumers * kWgmmaM;
constexpr int kTileN = 128;  // as wide as a scale block of B: one scale of B for the whole tile
constexpr int kTileK = kScaleK;
constexpr int kRegisters = kWgmmaM * kTileN / kWarpgroup;
constexpr int kStages = 4;

// A stage: the tiles of A and B, A's scales, and the stage's two mbarriers, in that order.
constexpr uint32_t kBytesA = kTileM * kTileK;  // (kTileM, kTileK)
constexpr uint32_t kBytesB = kTileN * kTileK;  // (kTileN, kTileK)
constexpr uint32_t kBytesScales = kTileM * sizeof(float);
constexpr uint32_t kB = kBytesA, kScaleA = kB + kBytesB;
constexpr uint32_t kFull = kScaleA + kBytesScales, kEmpty = kFull + 16;
constexpr uint32_t kBytesStage = ceil_div(kEmpty + 16, 1024) * 1024;

__device__ uint32_t smem_stage(int stage) { return ptx::shared_memory() + stage * kBytesStage; }

// A position in the ring: the stage's address, and the parity of the phase that its mbarriers are in this time around.
struct Ring {
    uint32_t stage = smem_stage(0), parity = 0;
    __device__ void advance() {
        stage += kBytesStage;
        if (stage == smem_stage(kStages)) stage = smem_stage(0), parity ^= 1;
    }
};

// ---- Your kernel

extern "C" const char* gemm_ladder_launch(const GemmArgs* args) {
    const GemmArgs& p = *args;
    const int64_t tiles = ceil_div(p.m, kTileM) * ceil_div(p.n, kTileN);
    if (tiles == 0) return nullptr;
    TensorMap map_a, map_b, map_sfa;
    if (auto error = tensor_map_2d(&map_a, p.a, p.m, p.k, p.k, kTileM, kTileK, Swizzle::k128B)) return error;
    if (auto error = tensor_map_2d(&map_b, p.b, p.n, p.k, p.k, kTileN, kTileK, Swizzle::k128B)) return error;
    if (auto error = tensor_map_2d(&map_sfa, p.sfa, p.k / kScaleK, p.m, p.sfa_stride, 1, kTileM, Swizzle::kNone))
        return error;
    return launch(mine,
                  {.blocks = PERSISTENT && p.num_sms < tiles ? p.num_sms : tiles,
                   .threads = kThreads,
                   .shared_bytes = kStages * kBytesStage,
                   .stream = p.stream},
                  map_a, map_b, map_sfa, p);
}
