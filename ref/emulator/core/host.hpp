// The functions that ../cuda_host.hpp declares: what a launcher does on the host.
#pragma once

#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>

#include "../cuda_host.hpp"
#include "crash.hpp"
#include "grid.hpp"

namespace emulator {

inline cudaError_t failed(cudaError_t error) {
    session.error = error;
    return error;
}
// What a GPU would report of the kernels that were launched before.
inline cudaError_t outcome() { return session.fault ? failed(cudaErrorLaunchFailure) : cudaSuccess; }

// What a launch of a kernel may ask for, as cudaFuncSetAttribute has said.
struct Allowed {
    std::size_t shared_bytes = kSharedUnasked;
    bool large_clusters = false;
};
inline std::mutex allowed_mutex;
inline std::map<const void*, Allowed> allowed;

cudaError_t allow(const void* kernel, cudaFuncAttribute attribute, int value) {
    const std::lock_guard lock(allowed_mutex);
    if (attribute == cudaFuncAttributeNonPortableClusterSizeAllowed) allowed[kernel].large_clusters = value != 0;
    if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
    if (value < 0 || value > static_cast<int>(kSharedLimit)) return failed(cudaErrorInvalidValue);
    allowed[kernel].shared_bytes = std::max<std::size_t>(static_cast<std::size_t>(value), kSharedUnasked);
    return cudaSuccess;
}

void start_from_host(const HostLaunch& launch, const void* kernel,
                     void (*run)(const void* kernel, const void* arguments), const void* arguments, std::size_t bytes) {
    if (outcome() != cudaSuccess) return;
    const auto size = [](const dim3& box) { return static_cast<int64_t>(box.x) * box.y * box.z; };
    const auto multiple = [](uint32_t blocks, uint32_t cluster) { return blocks && cluster && blocks % cluster == 0; };
    const dim3 &grid = launch.grid, &cluster = launch.cluster;
    const Allowed may = [kernel] {
        const std::lock_guard lock(allowed_mutex);
        return allowed[kernel];
    }();
    if (launch.shared_bytes > may.shared_bytes) {
        failed(cudaErrorInvalidValue);
        return;
    }
    if (!multiple(grid.x, cluster.x) || !multiple(grid.y, cluster.y) || !multiple(grid.z, cluster.z)) {
        failed(cudaErrorInvalidConfiguration);
        return;
    }
    const LaunchConfig config{.blocks = size(grid),
                              .threads = static_cast<uint32_t>(std::min<int64_t>(size(launch.block), UINT32_MAX)),
                              .shared_bytes = static_cast<uint32_t>(launch.shared_bytes),
                              .stream = launch.stream,
                              .cluster = static_cast<uint32_t>(size(cluster)),
                              .large_clusters = may.large_clusters};
    if (run_grid(config, {grid, launch.block, cluster}, {kernel, run, arguments, bytes}) && !session.fault)
        failed(cudaErrorInvalidConfiguration);
    outcome();
}

cudaError_t allocate(void** memory, std::size_t bytes) {
    if (outcome() != cudaSuccess) return cudaErrorLaunchFailure;
    constexpr std::size_t kAlignment = 256;
    *memory = bytes ? std::aligned_alloc(kAlignment, (bytes + kAlignment - 1) / kAlignment * kAlignment) : nullptr;
    if (bytes && !*memory) return failed(cudaErrorMemoryAllocation);
    if (bytes) std::memset(*memory, 0xFF, bytes);  // NaN, whatever floating-point type it is read as
    if (bytes) Allocations::add(*memory, bytes);
    return cudaSuccess;
}

// The lab fills variables between launches, so an earlier launch's fault does not count here.
cudaError_t copy_to(void* to, std::size_t size, std::size_t offset, const void* from, std::size_t bytes) {
    if (offset > size || bytes > size - offset) return failed(cudaErrorInvalidValue);
    std::memcpy(static_cast<char*>(to) + offset, from, bytes);
    return cudaSuccess;
}
cudaError_t copy_from(void* to, const void* from, std::size_t size, std::size_t offset, std::size_t bytes) {
    if (offset > size || bytes > size - offset) return failed(cudaErrorInvalidValue);
    std::memcpy(to, static_cast<const char*>(from) + offset, bytes);
    return cudaSuccess;
}

}  // namespace emulator

// Calls a launcher. Returns what it does; where it crashes, the fault's message.
extern "C" const char* emulator_call(const char* (*launcher)(const void*), const void* arguments) {
    const emulator::Signals signals;
    emulator::Launcher mine(reinterpret_cast<const void*>(launcher));
    mine.stands_at(emulator::stack_pointer());
    if (_setjmp(mine.back()) == 0) {
        try {
            const char* said = launcher(arguments);
            if (!mine.note_elsewhere()) return said;
        } catch (const std::exception& error) {
            mine.note((std::string("throws an exception that nothing catches: ") + error.what()).c_str(), nullptr);
        } catch (...) {
            mine.note("throws an exception that nothing catches", nullptr);
        }
    }
    return emulator::session.fault->message.c_str();
}

cudaError_t cudaGetLastError() {
    const auto error = static_cast<cudaError_t>(emulator::session.error);
    emulator::session.error = cudaSuccess;
    emulator::outcome();
    return error;
}
cudaError_t cudaPeekAtLastError() { return static_cast<cudaError_t>(emulator::session.error); }
const char* cudaGetErrorName(cudaError_t error) {
    switch (error) {
#define EMULATOR_NAMED(name) \
    case name:               \
        return #name
        EMULATOR_NAMED(cudaSuccess);
        EMULATOR_NAMED(cudaErrorInvalidValue);
        EMULATOR_NAMED(cudaErrorMemoryAllocation);
        EMULATOR_NAMED(cudaErrorInvalidConfiguration);
        EMULATOR_NAMED(cudaErrorInvalidDevice);
        EMULATOR_NAMED(cudaErrorLaunchFailure);
#undef EMULATOR_NAMED
    }
    return "unrecognized error code";
}
const char* cudaGetErrorString(cudaError_t error) {
    switch (error) {
        case cudaSuccess:
            return "no error";
        case cudaErrorInvalidValue:
            return "invalid argument";
        case cudaErrorMemoryAllocation:
            return "out of memory";
        case cudaErrorInvalidConfiguration:
            return "invalid configuration argument";
        case cudaErrorInvalidDevice:
            return "invalid device ordinal";
        case cudaErrorLaunchFailure:
            return "unspecified launch failure";
    }
    return "unrecognized error code";
}

cudaError_t cudaFree(void* memory) {
    if (memory && !emulator::Allocations::remove(memory)) return emulator::failed(cudaErrorInvalidValue);
    std::free(memory);
    return emulator::outcome();
}
cudaError_t cudaMemcpy(void* to, const void* from, std::size_t bytes, cudaMemcpyKind) {
    if (bytes && (!to || !from)) return emulator::failed(cudaErrorInvalidValue);
    if (bytes) std::memmove(to, from, bytes);
    return emulator::outcome();
}
cudaError_t cudaMemset(void* memory, int value, std::size_t bytes) {
    if (bytes && !memory) return emulator::failed(cudaErrorInvalidValue);
    if (bytes) std::memset(memory, value, bytes);
    return emulator::outcome();
}
cudaError_t cudaDeviceSynchronize() { return emulator::outcome(); }
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
    if (device) return emulator::failed(cudaErrorInvalidDevice);
    *properties = {.name = "the emulated Hopper SM",
                   .major = 9,
                   .minor = 0,
                   .multiProcessorCount = emulator::kResident,
                   .warpSize = 32,
                   .maxThreadsPerBlock = 1024,
                   .totalGlobalMem = std::size_t{80} << 30,
                   .sharedMemPerBlock = emulator::kSharedUnasked,
                   .sharedMemPerBlockOptin = emulator::kSharedLimit,
                   .sharedMemPerMultiprocessor = emulator::kSharedLimit + 1024};
    return cudaSuccess;
}
