// The host side of <cuda_runtime.h> for the emulator: kernel<<<grid, block>>>(...), memory, streams and events.
//
// The host and the device have one memory. A launch has ended when it returns, so what waits for one does nothing, and
// streams, events and the kinds of copies are taken and ignored. A kernel that is at fault leaves
// cudaErrorLaunchFailure to cudaGetLastError() and to all calls that could report it on a GPU; from then on nothing is
// launched.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <tuple>

#include "cuda_vectors.hpp"

enum cudaError_t {
    cudaSuccess = 0,
    cudaErrorInvalidValue = 1,
    cudaErrorMemoryAllocation = 2,
    cudaErrorInvalidConfiguration = 9,
    cudaErrorInvalidDevice = 101,
    cudaErrorLaunchFailure = 719,
};
enum cudaMemcpyKind {
    cudaMemcpyHostToHost,
    cudaMemcpyHostToDevice,
    cudaMemcpyDeviceToHost,
    cudaMemcpyDeviceToDevice,
    cudaMemcpyDefault,
};
enum cudaFuncAttribute {
    cudaFuncAttributeMaxDynamicSharedMemorySize = 8,
    cudaFuncAttributePreferredSharedMemoryCarveout = 9,
    cudaFuncAttributeNonPortableClusterSizeAllowed = 14,
};
using cudaStream_t = void*;
using cudaEvent_t = void*;
struct cudaDeviceProp {
    char name[256];
    int major, minor, multiProcessorCount, warpSize, maxThreadsPerBlock;
    std::size_t totalGlobalMem, sharedMemPerBlock, sharedMemPerBlockOptin, sharedMemPerMultiprocessor;
};

// A launcher that gives up, as where a CUDA call has failed, ends with a fault, and Python goes on.
extern "C" [[noreturn]] void emulator_exit(int code);
extern "C" [[noreturn]] void emulator_abort();
namespace std {
using ::emulator_abort;
using ::emulator_exit;
}  // namespace std
#define exit(code) emulator_exit(code)
#define abort() emulator_abort()

namespace emulator {

// How kernel<<<...>>> starts a kernel; the cluster's size is what its __cluster_dims__ says.
struct HostLaunch {
    dim3 grid, block, cluster;
    std::size_t shared_bytes;
    cudaStream_t stream;
};
// `run` calls the kernel with the arguments.
void start_from_host(const HostLaunch& launch, const void* kernel,
                     void (*run)(const void* kernel, const void* arguments), const void* arguments, std::size_t bytes);
cudaError_t allocate(void** memory, std::size_t bytes);
cudaError_t allow(const void* kernel, cudaFuncAttribute attribute, int value);
cudaError_t copy_to(void* to, std::size_t size, std::size_t offset, const void* from, std::size_t bytes);
cudaError_t copy_from(void* to, const void* from, std::size_t size, std::size_t offset, std::size_t bytes);

template <typename... Params>
class Starter {
  public:
    Starter(void (*kernel)(Params...), const HostLaunch& launch) : kernel_(kernel), launch_(launch) {}
    void operator()(Params... params) const {
        const std::tuple<Params...> arguments(params...);
        const auto run = [](const void* kernel, const void* arguments) {
            std::apply(reinterpret_cast<void (*)(Params...)>(const_cast<void*>(kernel)),
                       *static_cast<const std::tuple<Params...>*>(arguments));
        };
        start_from_host(launch_, reinterpret_cast<const void*>(kernel_), run, &arguments, sizeof arguments);
    }

  private:
    void (*kernel_)(Params...);
    HostLaunch launch_;
};
// What kernels/build/plain_cpp.py makes of kernel<<<grid, block, shared_bytes, stream>>>.
template <typename... Params>
Starter<Params...> start(dim3 cluster, void (*kernel)(Params...), dim3 grid, dim3 block, std::size_t shared_bytes = 0,
                         cudaStream_t stream = nullptr) {
    return {kernel, {grid, block, cluster, shared_bytes, stream}};
}

}  // namespace emulator

cudaError_t cudaGetLastError();  // and forgets it, unless it is a kernel's fault
cudaError_t cudaPeekAtLastError();
const char* cudaGetErrorName(cudaError_t error);
const char* cudaGetErrorString(cudaError_t error);

template <typename T>
cudaError_t cudaMalloc(T** memory, std::size_t bytes) {
    return emulator::allocate(reinterpret_cast<void**>(memory), bytes);
}
template <typename T>
cudaError_t cudaMallocAsync(T** memory, std::size_t bytes, cudaStream_t) {
    return cudaMalloc(memory, bytes);
}
template <typename T>
cudaError_t cudaMallocManaged(T** memory, std::size_t bytes, unsigned = 1) {
    return cudaMalloc(memory, bytes);
}
template <typename T>
cudaError_t cudaMallocHost(T** memory, std::size_t bytes, unsigned = 0) {
    return cudaMalloc(memory, bytes);
}
cudaError_t cudaFree(void* memory);
inline cudaError_t cudaFreeAsync(void* memory, cudaStream_t) { return cudaFree(memory); }
inline cudaError_t cudaFreeHost(void* memory) { return cudaFree(memory); }

cudaError_t cudaMemcpy(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind);
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind,
                                   cudaStream_t = nullptr) {
    return cudaMemcpy(to, from, bytes, kind);
}
cudaError_t cudaMemset(void* memory, int value, std::size_t bytes);
inline cudaError_t cudaMemsetAsync(void* memory, int value, std::size_t bytes, cudaStream_t = nullptr) {
    return cudaMemset(memory, value, bytes);
}
// A symbol is a __device__ or __constant__ variable.
template <typename T>
cudaError_t cudaMemcpyToSymbol(T& symbol, const void* from, std::size_t bytes, std::size_t offset = 0,
                               cudaMemcpyKind = cudaMemcpyHostToDevice) {
    return emulator::copy_to(const_cast<void*>(static_cast<const volatile void*>(&symbol)), sizeof symbol, offset, from,
                             bytes);
}
template <typename T>
cudaError_t cudaMemcpyFromSymbol(void* to, const T& symbol, std::size_t bytes, std::size_t offset = 0,
                                 cudaMemcpyKind = cudaMemcpyDeviceToHost) {
    return emulator::copy_from(to, const_cast<const void*>(static_cast<const volatile void*>(&symbol)), sizeof symbol,
                               offset, bytes);
}
template <typename T>
cudaError_t cudaGetSymbolAddress(void** address, T& symbol) {
    *address = const_cast<void*>(static_cast<const volatile void*>(&symbol));
    return cudaSuccess;
}

template <typename... Params>
cudaError_t cudaFuncSetAttribute(void (*kernel)(Params...), cudaFuncAttribute attribute, int value) {
    return emulator::allow(reinterpret_cast<const void*>(kernel), attribute, value);
}

cudaError_t cudaDeviceSynchronize();
inline cudaError_t cudaStreamCreate(cudaStream_t* stream) { return *stream = nullptr, cudaSuccess; }
inline cudaError_t cudaStreamDestroy(cudaStream_t) { return cudaSuccess; }
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaDeviceSynchronize(); }
inline cudaError_t cudaEventCreate(cudaEvent_t* event) { return *event = nullptr, cudaSuccess; }
inline cudaError_t cudaEventDestroy(cudaEvent_t) { return cudaSuccess; }
inline cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t = nullptr) { return cudaSuccess; }
inline cudaError_t cudaEventSynchronize(cudaEvent_t) { return cudaDeviceSynchronize(); }
// Time is not modelled: 0 ms.
inline cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t, cudaEvent_t) {
    return *milliseconds = 0.0f, cudaSuccess;
}
inline cudaError_t cudaGetDeviceCount(int* count) { return *count = 1, cudaSuccess; }
inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
inline cudaError_t cudaSetDevice(int device) { return device == 0 ? cudaSuccess : cudaErrorInvalidDevice; }
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device);
