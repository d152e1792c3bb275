// kernels/include/launch.cuh for the emulator: to start a kernel is to run its clusters on the CPU.
#pragma once

#include <tuple>

#include "args.cuh"
#include "launch_config.cuh"
#include "ptx.cuh"

namespace emulator {

struct GridShape {
    dim3 grid, block, cluster;  // in blocks, threads and blocks
};

// A kernel with its arguments, which live as long as the launch.
struct Call {
    const void* kernel;  // its address
    void (*run)(const void* kernel, const void* arguments);
    const void* arguments;
    std::size_t bytes;  // of the arguments
};

// Runs the grid. Returns nullptr, or a refusal, or the message of the fault that stopped the kernel; a text stays valid
// until this thread's next call.
const char* run_grid(const LaunchConfig& config, const GridShape& shape, const Call& call);

template <typename... Params>
const char* run_kernel(void (*kernel)(Params...), const LaunchConfig& config, const GridShape& shape,
                       const std::tuple<Params...>& arguments) {
    const auto run = [](const void* kernel, const void* arguments) {
        std::apply(reinterpret_cast<void (*)(Params...)>(const_cast<void*>(kernel)),
                   *static_cast<const std::tuple<Params...>*>(arguments));
    };
    return run_grid(config, shape, {reinterpret_cast<const void*>(kernel), run, &arguments, sizeof arguments});
}

}  // namespace emulator

// A launch with blocks and clusters of up to three dimensions.
template <typename... Params, typename... Args>
const char* launch_grid(void (*kernel)(Params...), dim3 grid, dim3 block, dim3 cluster, uint32_t shared_bytes,
                        void* stream, Args... args) {
    const auto size = [](const dim3& box) { return static_cast<int64_t>(box.x) * box.y * box.z; };
    const LaunchConfig config{.blocks = size(grid),
                              .threads = static_cast<uint32_t>(size(block)),
                              .shared_bytes = shared_bytes,
                              .stream = stream,
                              .cluster = static_cast<uint32_t>(size(cluster)),
                              .large_clusters = true};
    return emulator::run_kernel(kernel, config, {grid, block, cluster}, std::tuple<Params...>(Params(args)...));
}

template <typename... Params, typename... Args>
const char* launch(void (*kernel)(Params...), const LaunchConfig& config, Args... args) {
    const emulator::GridShape shape{dim3(static_cast<uint32_t>(config.blocks)), dim3(config.threads),
                                    dim3(config.cluster)};
    return emulator::run_kernel(kernel, config, shape, std::tuple<Params...>(Params(args)...));
}

// Makes a tensor map of a tensor of one to five dimensions. Returns nullptr, or why the CUDA driver would refuse it.
const char* tensor_map(TensorMap* map, const void* base, Element element, int rank, const int64_t* size,
                       const int64_t* stride, const uint32_t* box, Swizzle swizzle);

// Makes a tensor map of a row-major matrix. Returns nullptr, or why the CUDA driver would refuse it.
template <typename T>
const char* tensor_map_2d(TensorMap* map, const T* base, int64_t rows, int64_t columns, int64_t row_stride,
                          uint32_t box_rows, uint32_t box_columns, Swizzle swizzle) {
    static_assert(sizeof(T) == 1 || sizeof(T) == 2 || sizeof(T) == 4, "FP8 bytes, BF16 bits or FP32");
    const Element element = sizeof(T) == 1 ? Element::u8 : sizeof(T) == 2 ? Element::bf16 : Element::f32;
    const int64_t size[] = {columns, rows}, stride[] = {1, row_stride};
    const uint32_t box[] = {box_columns, box_rows};
    return tensor_map(map, base, element, 2, size, stride, box, swizzle);
}
