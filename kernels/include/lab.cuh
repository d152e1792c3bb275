// What gemm_ladder.lab puts behind a kernel's source: it starts the kernel with arguments that Python packs, and tells
// Python what the kernel's parameters are. The same for the GPU and for the emulator.
#pragma once

#include <cstdint>
#include <launch.cuh>  // in <>: the emulator must find its own, and quotes would find the one beside this file
#include <tuple>
#include <type_traits>
#include <utility>

struct LabLaunch {
    uint32_t grid[3], block[3], cluster[3];  // in blocks, threads and blocks
    uint32_t shared_bytes;                   // dynamic shared memory of a block
    void* stream;                            // cudaStream_t; the emulator ignores it
    void** arguments;                        // one pointer for each parameter, to its value
};

namespace lab {

template <typename T>
constexpr const char* kind_of() {
    if constexpr (std::is_same_v<T, TensorMap>)
        return "tensor map";
    else if constexpr (std::is_pointer_v<T>)
        return "pointer";
    else if constexpr (std::is_floating_point_v<T>)
        return "float";
    else if constexpr (std::is_same_v<T, bool>)
        return "bool";
    else if constexpr (std::is_enum_v<T> || (std::is_integral_v<T> && std::is_unsigned_v<T>))
        return "unsigned";
    else if constexpr (std::is_integral_v<T>)
        return "signed";
    else
        return "struct";
}

struct Parameter {
    const char* kind;  // nullptr: there is no such parameter
    int64_t bytes;
};

template <typename... Params>
Parameter parameter(void (*)(Params...), int64_t index) {
    const Parameter all[] = {{kind_of<std::remove_cv_t<Params>>(), sizeof(Params)}..., {nullptr, 0}};
    return all[index < static_cast<int64_t>(sizeof...(Params)) ? index : sizeof...(Params)];
}

inline dim3 dim(const uint32_t (&size)[3]) { return {size[0], size[1], size[2]}; }

template <typename... Params>
const char* start(void (*kernel)(Params...), const LabLaunch& launch) {
    return [&]<std::size_t... i>(std::index_sequence<i...>) {
        return launch_grid(kernel, dim(launch.grid), dim(launch.block), dim(launch.cluster), launch.shared_bytes,
                           launch.stream, *static_cast<std::remove_cv_t<Params>*>(launch.arguments[i])...);
    }(std::index_sequence_for<Params...>{});
}

}  // namespace lab

// `...` is the kernel's name, with its template arguments.
#define LAB_KERNEL(...)                                                                                         \
    extern "C" const char* gemm_ladder_launch(const LabLaunch* args) { return lab::start(__VA_ARGS__, *args); } \
    extern "C" lab::Parameter gemm_ladder_parameter(int64_t index) { return lab::parameter(__VA_ARGS__, index); }

// A tensor of one to five dimensions, the contiguous one first. Sizes, strides and boxes are in elements.
struct LabTensor {
    const void* base;
    int64_t size[5], stride[5];
    uint32_t box[5];
    int32_t rank, element, swizzle;  // an Element; 0, 32, 64 or 128 bytes
};
extern "C" inline __attribute__((used)) const char* gemm_ladder_tensor_map(TensorMap* map, const LabTensor* tensor) {
    const auto& [base, size, stride, box, rank, element, bytes] = *tensor;
    const Swizzle swizzle = bytes == 128  ? Swizzle::k128B
                            : bytes == 64 ? Swizzle::k64B
                            : bytes == 32 ? Swizzle::k32B
                                          : Swizzle::kNone;
    return tensor_map(map, base, static_cast<Element>(element), rank, size, stride, box, swizzle);
}
