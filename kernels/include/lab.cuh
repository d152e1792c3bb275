// What gemm_ladder.lab puts around a kernel's source: it starts the kernel with arguments that Python packs, and tells
// Python what the kernel's parameters are. The same for the GPU and for the emulator. It is included before the source,
// so that no macro of the source meets it; the LAB_ macros stand behind the source.
#pragma once

// torch builds extensions without the operators and conversions of CUDA's 16-bit types; a kernel may want them.
#undef __CUDA_NO_HALF_OPERATORS__
#undef __CUDA_NO_HALF_CONVERSIONS__
#undef __CUDA_NO_HALF2_OPERATORS__
#undef __CUDA_NO_BFLOAT16_CONVERSIONS__

#include <cuda_runtime.h>

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

struct __half;  // of cuda_fp16.h, cuda_bf16.h and cuda_fp8.h, which the source may include
struct __nv_bfloat16;
struct __nv_fp8_e4m3;
struct __nv_fp8_e5m2;

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

// What a pointer points to, as far as an array's dtype can be compared with it.
struct Item {
    const char* kind;  // "float", "signed", "unsigned", a name of NumPy's, or "" for anything else
    int64_t bytes;
};
template <typename T>
constexpr Item item_of() {
    using Pointee = std::remove_cv_t<std::remove_pointer_t<T>>;
    if constexpr (std::is_same_v<Pointee, __half>)
        return {"float16", 2};
    else if constexpr (std::is_same_v<Pointee, __nv_bfloat16>)
        return {"bfloat16", 2};
    else if constexpr (std::is_same_v<Pointee, __nv_fp8_e4m3>)
        return {"float8_e4m3fn", 1};
    else if constexpr (std::is_same_v<Pointee, __nv_fp8_e5m2>)
        return {"float8_e5m2", 1};
    else if constexpr (std::is_pointer_v<T> && std::is_arithmetic_v<Pointee>)
        return {kind_of<Pointee>(), sizeof(Pointee)};
    else
        return {"", 0};
}

struct Parameter {
    const char* kind;  // nullptr: there is no such parameter
    int64_t bytes;
    Item item;
};

template <typename... Params>
Parameter parameter(void (*)(Params...), int64_t index) {
    const Parameter all[] = {
        {kind_of<std::remove_cv_t<Params>>(), sizeof(Params), item_of<std::remove_cv_t<Params>>()}...,
        {nullptr, 0, {"", 0}}};
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
#define LAB_KERNEL(...)                                                                                     \
    extern "C" const char* gemm_ladder_launch(const LabLaunch* _l) { return lab::start(__VA_ARGS__, *_l); } \
    extern "C" lab::Parameter gemm_ladder_parameter(int64_t _i) { return lab::parameter(__VA_ARGS__, _i); }

// What the kernel's __cluster_dims__ says.
#define LAB_CLUSTER(...)                                \
    extern "C" void gemm_ladder_cluster(uint32_t* _c) { \
        const dim3 _d(__VA_ARGS__);                     \
        _c[0] = _d.x, _c[1] = _d.y, _c[2] = _d.z;       \
    }

// Copies an array to a __device__ or __constant__ variable of the source, or back. The variable is number `number` of
// those that Python names.
#define LAB_SYMBOL(number, ...)                                                                                       \
    extern "C" int64_t gemm_ladder_symbol_bytes_##number() { return static_cast<int64_t>(sizeof(__VA_ARGS__)); }      \
    extern "C" const char* gemm_ladder_symbol_##number(void* _a, bool _back) {                                        \
        const cudaError_t _e = _back                                                                                  \
                                   ? cudaMemcpyFromSymbol(_a, __VA_ARGS__, sizeof(__VA_ARGS__), 0, cudaMemcpyDefault) \
                                   : cudaMemcpyToSymbol(__VA_ARGS__, _a, sizeof(__VA_ARGS__), 0, cudaMemcpyDefault);  \
        return _e == cudaSuccess ? nullptr : cudaGetErrorString(_e);                                                  \
    }

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
