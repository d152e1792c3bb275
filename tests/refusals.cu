// Launches that the host's side refuses, so that no kernel runs (test_refusals.py).
#include "launch.cuh"

struct RefusalArgs {
    int64_t which;
    float* tensor;  // [64, 64]
};

__global__ void nothing(const __grid_constant__ TensorMap) {}

const char* refused(int64_t which, const float* tensor) {
    TensorMap map;
    const auto box = [&](const float* base, int64_t rows, int64_t columns, int64_t stride, uint32_t box_rows,
                         uint32_t box_columns, Swizzle swizzle) {
        return tensor_map_2d(&map, base, rows, columns, stride, box_rows, box_columns, swizzle);
    };
    switch (which) {
        case 0:
            return box(tensor + 1, 64, 32, 64, 64, 32, Swizzle::k128B);
        case 1:
            return box(tensor, 64, 32, 33, 64, 32, Swizzle::k128B);
        case 2:
            return box(tensor, 0, 32, 64, 64, 32, Swizzle::k128B);
        case 3:
            return box(tensor, 64, 32, 64, 257, 32, Swizzle::k128B);
        case 4:
            return box(tensor, 64, 32, 64, 64, 3, Swizzle::kNone);
        case 5:
            return box(tensor, 64, 64, 64, 64, 64, Swizzle::k128B);
        case 6:
            return launch(nothing, {.blocks = 1, .threads = 1025}, map);
        case 7:
            return launch(nothing, {.blocks = 1, .threads = 128, .shared_bytes = 232449}, map);
        case 8:
            return launch(nothing, {.blocks = 3, .threads = 128, .cluster = 2}, map);
        case 9:
            return launch(nothing, {.blocks = 16, .threads = 128, .cluster = 16}, map);
        case 10:
            return launch(nothing, {.blocks = int64_t{1} << 31, .threads = 128}, map);
        case 11:
            return box(tensor, 64, 64, 64, 64, 20, Swizzle::k64B);
        case 12:
            return box(tensor, 64, 64, 64, 64, 12, Swizzle::k32B);
        default:
            return "emulator: not a fault, whatever the words";
    }
}

extern "C" const char* gemm_ladder_launch(const RefusalArgs* args) { return refused(args->which, args->tensor); }
