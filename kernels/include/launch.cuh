// Host functions: start a kernel, and describe a tensor to the copy engine. Each returns nullptr, or one line of error
// text that stays valid until this thread's next call. ref/emulator/launch.cuh has the same functions for the CPU.
#pragma once

#include <cuda.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <cstdio>

#include "args.cuh"
#include "copy_types.cuh"
#include "launch_config.cuh"
#include "ptx.cuh"

inline const char* error_text(const char* what, const char* why) {
    thread_local char text[256];
    std::snprintf(text, sizeof text, "%s: %s", what, why);
    return text;
}

inline const char* cuda_error(const char* what, cudaError_t status) {
    return status == cudaSuccess ? nullptr : error_text(what, cudaGetErrorString(status));
}

constexpr uint32_t kSharedBytesUnasked = 48 * 1024;  // dynamic shared memory that any kernel may have

template <typename... Params, typename... Args>
const char* launch(void (*kernel)(Params...), const LaunchConfig& config, Args... args) {
    if (config.blocks == 0) return nullptr;
    if (config.blocks > INT32_MAX) return error_text("kernel launch", "more than 2^31 - 1 blocks");
    // More shared memory has to be asked for, once for all launches of a kernel on a device: as much as any of them
    // needs, as the last request counts, whichever thread makes it. That takes half a microsecond, so it is skipped if
    // this thread's last request was for the same kernel and device.
    const uint32_t asked = config.most_shared_bytes ? config.most_shared_bytes : config.shared_bytes;
    if (asked > kSharedBytesUnasked) {
        thread_local void (*allowed)(Params...) = nullptr;
        thread_local int device_allowed = -1;
        int device;
        if (auto status = cudaGetDevice(&device)) return cuda_error("cudaGetDevice", status);
        if (allowed != kernel || device_allowed != device) {
            if (auto status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, asked))
                return cuda_error("cudaFuncSetAttribute", status);
            allowed = kernel, device_allowed = device;
        }
    }
    cudaLaunchAttribute attributes[2];
    uint32_t count = 0;
    if (config.cluster > 1) {
        attributes[count].id = cudaLaunchAttributeClusterDimension;
        attributes[count++].val.clusterDim = {config.cluster, 1, 1};
    }
    if (config.early) {
        attributes[count].id = cudaLaunchAttributeProgrammaticStreamSerialization;
        attributes[count++].val.programmaticStreamSerializationAllowed = 1;
    }
    cudaLaunchConfig_t launch_config = {};
    launch_config.gridDim = dim3(static_cast<uint32_t>(config.blocks));
    launch_config.blockDim = dim3(config.threads);
    launch_config.dynamicSmemBytes = config.shared_bytes;
    launch_config.stream = static_cast<cudaStream_t>(config.stream);
    launch_config.attrs = attributes;
    launch_config.numAttrs = count;
    return cuda_error("kernel launch", cudaLaunchKernelEx(&launch_config, kernel, Params(args)...));
}

// A launch with blocks and clusters of up to three dimensions.
template <typename... Params, typename... Args>
const char* launch_grid(void (*kernel)(Params...), dim3 grid, dim3 block, dim3 cluster, uint32_t shared_bytes,
                        void* stream, Args... args) {
    if (shared_bytes > kSharedBytesUnasked)
        if (auto status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes))
            return cuda_error("cudaFuncSetAttribute", status);
    if (cluster.x * cluster.y * cluster.z > 8)
        if (auto status = cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1))
            return cuda_error("cudaFuncSetAttribute", status);
    cudaLaunchAttribute attribute;
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim = {cluster.x, cluster.y, cluster.z};
    cudaLaunchConfig_t config = {};
    config.gridDim = grid;
    config.blockDim = block;
    config.dynamicSmemBytes = shared_bytes;
    config.stream = static_cast<cudaStream_t>(stream);
    config.attrs = &attribute;
    config.numAttrs = 1;
    return cuda_error("kernel launch", cudaLaunchKernelEx(&config, kernel, Params(args)...));
}

namespace detail {

// The encoder is a driver function. Getting its address from the runtime avoids linking libcuda.
inline decltype(&cuTensorMapEncodeTiled) tensor_map_encoder() {
    static const auto encoder = [] {
        void* function = nullptr;
        cudaDriverEntryPointQueryResult found;
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found);
        return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(function);
    }();
    return encoder;
}

template <typename T>
constexpr CUtensorMapDataType tensor_map_type() {
    static_assert(sizeof(T) == 1 || sizeof(T) == 2 || sizeof(T) == 4, "FP8 bytes, BF16 bits or FP32");
    return sizeof(T) == 1   ? CU_TENSOR_MAP_DATA_TYPE_UINT8
           : sizeof(T) == 2 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16
                            : CU_TENSOR_MAP_DATA_TYPE_FLOAT32;
}

constexpr CUtensorMapSwizzle tensor_map_swizzle(Swizzle swizzle) {
    return swizzle == Swizzle::k128B  ? CU_TENSOR_MAP_SWIZZLE_128B
           : swizzle == Swizzle::k64B ? CU_TENSOR_MAP_SWIZZLE_64B
           : swizzle == Swizzle::k32B ? CU_TENSOR_MAP_SWIZZLE_32B
                                      : CU_TENSOR_MAP_SWIZZLE_NONE;
}

}  // namespace detail

// Describes a tensor of one to five dimensions, which is moved in boxes. Sizes, boxes and strides are in elements, the
// contiguous dimension first; its stride counts for nothing. The base and the other strides are multiples of 16 bytes.
inline const char* tensor_map(TensorMap* map, const void* base, Element element, int rank, const int64_t* size,
                              const int64_t* stride, const uint32_t* box, Swizzle swizzle) {
    const auto encode = detail::tensor_map_encoder();
    if (!encode) return error_text("cuTensorMapEncodeTiled", "the driver does not have it; it needs CUDA 12 or newer");
    if (rank < 1 || rank > 5) return error_text("a tensor map", "one to five dimensions are needed");
    cuuint64_t sizes[5], strides[5];
    const cuuint32_t element_strides[5] = {1, 1, 1, 1, 1};
    for (int i = 0; i < rank; ++i) sizes[i] = static_cast<cuuint64_t>(size[i]);
    for (int i = 1; i < rank; ++i) strides[i - 1] = static_cast<cuuint64_t>(stride[i]) * element_bytes(element);
    const CUresult status =
        encode(map, static_cast<CUtensorMapDataType>(element), static_cast<cuuint32_t>(rank), const_cast<void*>(base),
               sizes, strides, box, element_strides, CU_TENSOR_MAP_INTERLEAVE_NONE, detail::tensor_map_swizzle(swizzle),
               CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    return status == CUDA_SUCCESS
               ? nullptr
               : error_text("cuTensorMapEncodeTiled", "it refused the tensor's shape, strides, box or address");
}

// Describes a row-major tensor [rows, columns] with `row_stride` elements from row to row, which is moved in boxes of
// [box_rows, box_columns]. Its base and its row stride must be multiples of 16 bytes.
template <typename T>
const char* tensor_map_2d(TensorMap* map, const T* base, int64_t rows, int64_t columns, int64_t row_stride,
                          uint32_t box_rows, uint32_t box_columns, Swizzle swizzle) {
    const auto encode = detail::tensor_map_encoder();
    if (!encode) return error_text("cuTensorMapEncodeTiled", "the driver does not have it; it needs CUDA 12 or newer");
    const cuuint64_t dims[2] = {static_cast<cuuint64_t>(columns), static_cast<cuuint64_t>(rows)};
    const cuuint64_t strides[1] = {static_cast<cuuint64_t>(row_stride) * sizeof(T)};
    const cuuint32_t box[2] = {box_columns, box_rows};
    const cuuint32_t element_strides[2] = {1, 1};
    const CUresult status = encode(map, detail::tensor_map_type<T>(), 2, const_cast<T*>(base), dims, strides, box,
                                   element_strides, CU_TENSOR_MAP_INTERLEAVE_NONE, detail::tensor_map_swizzle(swizzle),
                                   CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    return status == CUDA_SUCCESS
               ? nullptr
               : error_text("cuTensorMapEncodeTiled", "it refused the tensor's shape, stride or address");
}
