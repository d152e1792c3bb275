// The launcher of a training kernel: it describes the operands to the copy engine, and starts the kernel.
#pragma once

#include "gemm_1d1d.cuh"
#include "launch.cuh"

// The argument of a launcher, filled in by Python (launching.py).
struct TrainingGroup {
    const uint8_t *a, *b;        // E4M3 [m, k], [n, k], K contiguous
    float* d;                    // FP32 [m, n], n contiguous
    int64_t k;                   // at least 1
    int64_t a_stride, b_stride;  // elements from row to row
    int64_t scale_row;           // where its scales begin in sfa and sfb
};

struct TrainingArgs {
    const float *sfa, *sfb;                    // [scale_rows][sfa_stride], [scale_rows][sfb_stride]
    int64_t m, n, scale_rows;                  // of all groups
    int64_t sfa_stride, sfb_stride, d_stride;  // elements from row to row
    int64_t accumulate;                        // whether D is added to; otherwise it is written
    int64_t num_sms;                           // that the kernel may use
    void* stream;                              // cudaStream_t; ignored by the emulator
    const TrainingGroup* groups;
    int64_t num_groups;
};

// Starts the kernel for up to kC.groups groups.
template <Config kC>
const char* start_some(const TrainingArgs& args, const TrainingGroup* groups, int count) {
    using G = Geometry<kC>;
    const int64_t units_m = ceil_div(args.m, kC.tile_m * G::kDown), units_n = ceil_div(args.n, kC.tile_n * G::kRight);
    Params<kC> p{};
    p.groups = count, p.units_m = static_cast<int>(units_m), p.units_n = static_cast<int>(units_n);
    p.accumulate = args.accumulate != 0;
    if (auto error =
            tensor_map_2d(&p.sfa, args.sfa, args.scale_rows, args.m, args.sfa_stride, 1, kC.tile_m, Swizzle::kNone))
        return error;
    if (auto error =
            tensor_map_2d(&p.sfb, args.sfb, args.scale_rows, args.n, args.sfb_stride, 1, kC.tile_n, Swizzle::kNone))
        return error;
    for (int i = 0; i < count; ++i) {
        const TrainingGroup& group = groups[i];
        p.blocks[i] = static_cast<int>(ceil_div(group.k, kScaleK));
        p.scale_row[i] = static_cast<int>(group.scale_row);
        if (auto error = tensor_map_2d(&p.a[i], group.a, args.m, group.k, group.a_stride, kC.tile_m / G::kRight,
                                       kScaleK, Swizzle::k128B))
            return error;
        if (auto error = tensor_map_2d(&p.b[i], group.b, args.n, group.k, group.b_stride, kC.tile_n / G::kDown, kScaleK,
                                       Swizzle::k128B))
            return error;
        if (auto error = tensor_map_2d(&p.d[i], group.d, args.m, args.n, args.d_stride, kWgmmaM, kBoxN, Swizzle::k128B))
            return error;
    }
    const int64_t units = units_m * units_n * count, at_once = args.num_sms / G::kCluster, most = at_once ? at_once : 1;
    return launch(training_fp8_gemm_1d1d<kC>,
                  {.blocks = (units < most ? units : most) * G::kCluster,
                   .threads = G::kThreads,
                   .shared_bytes = G::kSharedBytes,
                   .stream = args.stream,
                   .cluster = G::kCluster,
                   .early = true},
                  p);
}

template <Config kC>
const char* start(const TrainingArgs& args) {
    for (int64_t first = 0; first < args.num_groups; first += kC.groups) {
        const int64_t left = args.num_groups - first;
        const int count = static_cast<int>(left < kC.groups ? left : kC.groups);
        if (auto error = start_some<kC>(args, args.groups + first, count)) return error;
    }
    return nullptr;
}
