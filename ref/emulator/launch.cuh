// kernels/include/launch.cuh for the emulator: to start a kernel is to run its clusters, each on one OS thread.
#pragma once

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <thread>

#include "args.cuh"
#include "launch_config.cuh"
#include "ptx.cuh"

namespace emulator {

// A refusal by the launcher, as CUDA's would be: nothing has run, and session.fault is empty.
inline const char* refuse(const std::string& text) {
    session.refusal = text;
    return session.refusal.c_str();
}

inline thread_local LaunchConfig launched{};  // of this OS thread's last launch

// Runs the grid. Returns nullptr, or a refusal, or the message of the fault that stopped the kernel.
inline const char* run_grid(const LaunchConfig& config, const std::function<void()>& kernel) {
    if (config.blocks == 0) return nullptr;
    if (config.blocks > INT32_MAX) return refuse("more than 2^31 - 1 blocks");
    if (config.threads == 0 || config.threads % 32 || config.threads > 1024)
        return refuse("a block of " + std::to_string(config.threads) +
                      " threads; a multiple of 32 up to 1024 is needed");
    // An SM reserves 1024 bytes more for each of its blocks, which the blocks cannot use.
    const uint32_t limit = (kSharedLimit + 1024) / config.blocks_an_sm - 1024;
    if (config.shared_bytes > limit)
        return refuse(std::to_string(config.shared_bytes) + " bytes of shared memory a block; Hopper has " +
                      std::to_string(limit));
    if (config.cluster == 0 || config.cluster > 16 || config.blocks % config.cluster)
        return refuse(std::to_string(config.blocks) + " blocks in clusters of " + std::to_string(config.cluster));

    launched = config;
    if (session.config.dry) return nullptr;
    const int64_t clusters = config.blocks / config.cluster;
    const Cluster::Shape shape{static_cast<int>(config.cluster),
                               static_cast<int>(config.threads),
                               config.shared_bytes,
                               config.blocks,
                               static_cast<int>(65536 / config.blocks_an_sm),
                               config.early};
    std::atomic<int64_t> next{0}, failed{clusters};
    std::vector<std::vector<EmulatorEvent>> events(session.config.record ? static_cast<std::size_t>(clusters) : 0);
    std::vector<std::pair<int64_t, FaultReport>> faults;  // with the cluster's index
    std::mutex mutex;
    uint64_t steps = 0;
    // The lowest failing cluster is reported, so the report does not depend on how many OS threads there are.
    const auto work = [&, settings = session.config] {
        try {
            Cluster cluster(shape, settings);
            for (int64_t i; (i = next++) < clusters && i < failed;) {
                const std::optional<FaultReport> fault = cluster.run(i, kernel);
                const std::lock_guard lock(mutex);
                steps += cluster.steps();
                if (!events.empty()) events[static_cast<std::size_t>(i)] = std::move(cluster.events);
                if (!fault) continue;
                faults.emplace_back(i, *fault);
                failed = std::min<int64_t>(failed, i);
            }
        } catch (const std::exception& error) {
            const std::lock_guard lock(mutex);
            faults.emplace_back(-1, FaultReport{Fault::host, error.what(), {}, 0});
            failed = -1;
        }
    };
    const int64_t cores =
        session.config.threads > 0 ? session.config.threads : std::max(1u, std::thread::hardware_concurrency());
    std::vector<std::thread> workers;
    for (int64_t i = 1; i < std::min(cores, clusters); ++i) workers.emplace_back(work);
    work();
    for (auto& worker : workers) worker.join();

    session.steps = steps;
    for (const auto& of_cluster : events)
        session.events.insert(session.events.end(), of_cluster.begin(), of_cluster.end());
    if (faults.empty()) return nullptr;
    session.fault = std::ranges::min_element(faults, {}, [](const auto& fault) { return fault.first; })->second;
    session.fault->message.insert(0, "emulator: ");
    return session.fault->message.c_str();
}

}  // namespace emulator

template <typename... Params, typename... Args>
const char* launch(void (*kernel)(Params...), const LaunchConfig& config, Args... args) {
    return emulator::run_grid(config, [=] { kernel(Params(args)...); });
}

// Makes a tensor map of a row-major matrix. Returns nullptr, or why the CUDA driver would refuse it.
template <typename T>
const char* tensor_map_2d(TensorMap* map, const T* base, int64_t rows, int64_t columns, int64_t row_stride,
                          uint32_t box_rows, uint32_t box_columns, Swizzle swizzle) {
    const auto size = static_cast<int64_t>(sizeof(T));
    const int64_t box_row_bytes = box_columns * size;
    if (reinterpret_cast<uintptr_t>(base) % 16)
        return emulator::refuse("a tensor map's base is not a multiple of 16 bytes");
    if (row_stride * size % 16)
        return emulator::refuse("a tensor map's row stride of " + std::to_string(row_stride * size) +
                                " bytes is not a multiple of 16");
    if (rows < 1 || columns < 1) return emulator::refuse("a tensor map of no elements");
    if (box_rows < 1 || box_rows > 256 || box_columns < 1 || box_columns > 256)
        return emulator::refuse("a box is 1 to 256 elements along each dimension");
    if (box_row_bytes % 16)
        return emulator::refuse("a box row of " + std::to_string(box_row_bytes) + " bytes is not a multiple of 16");
    const uint32_t span = swizzle == Swizzle::kNone ? 0 : 16u << static_cast<int>(swizzle);
    if (span && box_row_bytes > span)
        return emulator::refuse("a " + std::to_string(span) + "-byte-swizzled box row has " +
                                std::to_string(box_row_bytes) + " bytes");
    *map = {reinterpret_cast<uint8_t*>(const_cast<T*>(base)),
            rows,
            columns,
            row_stride * size,
            box_rows,
            box_columns,
            static_cast<uint32_t>(size),
            span};
    return nullptr;
}

// ------------------------------------------------------------------------------------- functions that Python calls

extern "C" {
inline __attribute__((used)) void emulator_configure(const EmulatorConfig* config) {
    emulator::session = {};
    emulator::session.config = *config;
    emulator::launched = {};
}
inline __attribute__((used)) void emulator_launched(LaunchConfig* out) { *out = emulator::launched; }
inline __attribute__((used)) int64_t emulator_steps() { return static_cast<int64_t>(emulator::session.steps); }
inline __attribute__((used)) int64_t emulator_events(const EmulatorEvent** out) {
    *out = emulator::session.events.data();
    return static_cast<int64_t>(emulator::session.events.size());
}
inline __attribute__((used)) const char* emulator_event_name(int32_t kind) { return emulator::event_name(kind); }
// Whether the last launch was stopped by a fault of its kernel, and which.
inline __attribute__((used)) bool emulator_fault(EmulatorFault* out) {
    if (!emulator::session.fault) return false;
    const auto& [what, message, place, address] = *emulator::session.fault;
    *out = {emulator::fault_name(static_cast<int32_t>(what)),
            message.c_str(),
            address,
            place.block,
            place.warp,
            place.lane};
    return true;
}
inline __attribute__((used)) const char* emulator_fault_name(int32_t fault) { return emulator::fault_name(fault); }
}
