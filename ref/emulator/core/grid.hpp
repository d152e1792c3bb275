// The functions that ../launch.cuh declares: a grid runs as clusters, each on one OS thread; and what Python calls.
#pragma once

#include <algorithm>
#include <atomic>
#include <exception>
#include <list>
#include <mutex>
#include <numeric>
#include <thread>

#include "../launch.cuh"
#include "crash.hpp"
#include "scheduler.hpp"

namespace emulator {

// A refusal by the launcher, as CUDA's would be: nothing has run, and session.fault is empty.
inline const char* refuse(const std::string& text) {
    session.refusal = text;
    return session.refusal.c_str();
}

constexpr int kResident = 132;  // clusters that a GPU runs at the same time, at the most

// The order in which clusters begin, which the seed chooses, as a GPU does not promise one.
inline std::vector<int64_t> shuffled(int64_t clusters, uint64_t seed) {
    std::vector<int64_t> order(static_cast<std::size_t>(clusters));
    std::iota(order.begin(), order.end(), 0);
    Random random(seed ^ 0x5DEECE66D);
    for (std::size_t i = order.size(); i > 1; --i)
        std::swap(order[i - 1], order[random.below(static_cast<uint32_t>(i))]);
    return order;
}

// What the clusters of a grid have done.
struct Outcome {
    std::vector<std::pair<int64_t, FaultReport>> faults;  // with the cluster's place in the order
    std::vector<Recorded> recorded;                       // of each cluster, if it is recorded
    uint64_t steps = 0;
};

inline Outcome run_clusters(const LaunchConfig& config, const Cluster::Shape& shape, const Call& call, Launch& launch) {
    const int64_t clusters = config.blocks / config.cluster;
    const std::vector<int64_t> order = shuffled(clusters, launch.config.seed);
    std::atomic<int64_t> next{0};
    Outcome outcome;
    outcome.recorded.resize(launch.config.record ? static_cast<std::size_t>(clusters) : 0);
    std::mutex mutex;
    Watchdog watchdog;
    // The first failing cluster in this order is reported, so the report does not depend on how many OS threads there
    // are.
    const auto work = [&] {
        try {
            const Signals signals;
            Cluster cluster(shape, launch);
            const Watchdog::Watching watching(watchdog, cluster);
            for (int64_t i; (i = next++) < clusters && i < launch.failed;) {
                const int64_t index = order[static_cast<std::size_t>(i)];
                const std::optional<FaultReport> fault = cluster.run(index, call, i);
                const std::lock_guard lock(mutex);
                outcome.steps += cluster.steps();
                if (!outcome.recorded.empty())
                    outcome.recorded[static_cast<std::size_t>(index)] = std::move(cluster.recorded);
                if (!fault) continue;
                outcome.faults.emplace_back(i, *fault);
                launch.failed = std::min<int64_t>(launch.failed, i);
            }
        } catch (const std::exception& error) {
            const std::lock_guard lock(mutex);
            outcome.faults.emplace_back(-1, FaultReport{Fault::host, error.what(), {}, 0});
            launch.failed = -1;
        }
    };
    const int64_t cores =
        launch.config.threads > 0 ? launch.config.threads : std::max(1u, std::thread::hardware_concurrency());
    std::list<std::thread> workers;
    launch.begin_another = [&] {
        const std::lock_guard lock(mutex);
        if (next < clusters && static_cast<int>(workers.size()) < kResident) workers.emplace_back(work);
    };
    for (int64_t i = 1; i < std::min(cores, clusters); ++i) launch.begin_another();
    work();
    for (;;) {
        std::thread worker;
        {
            const std::lock_guard lock(mutex);
            if (workers.empty()) break;
            worker = std::move(workers.front());
            workers.pop_front();
        }
        worker.join();
    }
    return outcome;
}

inline std::unique_ptr<Launch> new_launch(const Call& call) {
    return std::unique_ptr<Launch>(
        new Launch{session.config, {session.config.tensors, session.config.tensor_count, call}});
}

// Whether what a launch has written depends on numbers in shared memory that nothing has written, such as scales of
// rows that are not stored. The grid runs again from what memory held `before`, with other numbers there: those of the
// launch are NaN, these are large, and then large and negative, so that a maximum or minimum shows them, too. What the
// launch has written stays. Where it is not known what a kernel may write, the answer is yes.
inline bool uses_unwritten(const LaunchConfig& config, const Cluster::Shape& shape, const Call& call,
                           const Launch& launch, const Contents& before) {
    if (!before.complete() || launch.memory.wrote_variables()) return true;
    const Contents after(launch.memory);
    bool uses = false;
    for (const uint8_t fresh : {0x7B, 0xFB}) {
        if (uses) break;
        before.restore();
        const std::unique_ptr<Launch> again = new_launch(call);
        again->config.record = 0;
        again->fresh = fresh;
        uses = !run_clusters(config, shape, call, *again).faults.empty() || again->printed != launch.printed ||
               again->memory.wrote_variables() || !after.same();
    }
    after.restore();
    return uses;
}

inline thread_local LaunchConfig launched{};  // of this OS thread's last launch

const char* run_grid(const LaunchConfig& config, const GridShape& grid, const Call& call) {
    if (config.blocks == 0) return nullptr;
    if (config.blocks > INT32_MAX) return refuse("more than 2^31 - 1 blocks");
    if (config.threads == 0 || config.threads > 1024)
        return refuse("a block of " + std::to_string(config.threads) + " threads; 1 to 1024 are needed");
    // An SM reserves 1024 bytes more for each of its blocks, which the blocks cannot use.
    const uint32_t limit = (kSharedLimit + 1024) / config.blocks_an_sm - 1024;
    const uint32_t asked = std::max(config.shared_bytes, config.most_shared_bytes);
    if (asked > limit)
        return refuse(std::to_string(asked) + " bytes of shared memory a block; Hopper has " + std::to_string(limit));
    if (config.most_shared_bytes && config.shared_bytes > config.most_shared_bytes)
        return refuse(std::to_string(config.shared_bytes) + " bytes of shared memory a block; the launcher says that " +
                      std::to_string(config.most_shared_bytes) + " are the most");
    if (config.cluster > 8 && !config.large_clusters)
        return refuse("clusters of " + std::to_string(config.cluster) +
                      " blocks; more than 8 need cudaFuncAttributeNonPortableClusterSizeAllowed");
    if (config.cluster == 0 || config.cluster > 16 || config.blocks % config.cluster)
        return refuse(std::to_string(config.blocks) + " blocks in clusters of " + std::to_string(config.cluster));

    launched = config;
    if (session.config.dry) return nullptr;
    const Cluster::Shape shape{grid,
                               static_cast<int>(config.cluster),
                               static_cast<int>(config.threads),
                               config.shared_bytes,
                               static_cast<int>(kRegisters / config.blocks_an_sm),
                               config.early};
    const Launcher::Waiting waiting;
    const std::unique_ptr<Launch> launch = new_launch(call);
    const Contents before(launch->memory);
    Outcome outcome = run_clusters(config, shape, call, *launch);
    if (!launch->unwritten.empty() && (!outcome.faults.empty() || uses_unwritten(config, shape, call, *launch, before)))
        launch->notes.merge(launch->unwritten);

    Dl_info found{};
    dladdr(call.kernel, &found);
    session.library = found.dli_fname ? found.dli_fname : "";
    session.library_begin = reinterpret_cast<uintptr_t>(found.dli_fbase);
    session.steps += outcome.steps;  // of all kernels that one launcher starts
    session.printed += launch->printed;
    for (const auto& [begin, end] : launch->notes) session.notes.push_back(begin + end);
    const std::size_t earlier = session.recorded.events.size();
    for (const Recorded& of_cluster : outcome.recorded) session.recorded.append(of_cluster, earlier);
    if (outcome.faults.empty()) return nullptr;
    session.fault = std::ranges::min_element(outcome.faults, {}, [](const auto& fault) { return fault.first; })->second;
    session.fault->message.insert(0, "emulator: ");
    return session.fault->message.c_str();
}

}  // namespace emulator

const char* tensor_map(TensorMap* map, const void* base, Element element, int rank, const int64_t* size,
                       const int64_t* stride, const uint32_t* box, Swizzle swizzle) {
    using emulator::refuse;
    const auto bytes = static_cast<int64_t>(element_bytes(element));
    if (rank < 1 || rank > 5) return refuse("a tensor of " + std::to_string(rank) + " dimensions; 1 to 5 are needed");
    if (reinterpret_cast<uintptr_t>(base) % 16) return refuse("a tensor map's base is not a multiple of 16 bytes");
    for (int i = 1; i < rank; ++i)
        if (stride[i] * bytes % 16)
            return refuse("a tensor map's " +
                          (rank == 2 ? std::string("row stride") : "stride of dimension " + std::to_string(i)) +
                          " of " + std::to_string(stride[i] * bytes) + " bytes is not a multiple of 16");
    for (int i = 0; i < rank; ++i)
        if (size[i] < 1) return refuse("a tensor map of no elements");
    for (int i = 0; i < rank; ++i)
        if (box[i] < 1 || box[i] > 256) return refuse("a box is 1 to 256 elements along each dimension");
    const int64_t row_bytes = box[0] * bytes;
    if (row_bytes % 16) return refuse("a box row of " + std::to_string(row_bytes) + " bytes is not a multiple of 16");
    const int64_t span = swizzle == Swizzle::kNone ? 0 : 16 << static_cast<int>(swizzle);
    if (span && row_bytes > span)
        return refuse("a " + std::to_string(span) + "-byte-swizzled box row has " + std::to_string(row_bytes) +
                      " bytes");
    *map = {};
    map->base = static_cast<uint8_t*>(const_cast<void*>(base));
    map->rank = rank;
    map->element = element;
    map->swizzle = static_cast<uint32_t>(span);
    for (int i = 0; i < rank; ++i) {
        map->size[i] = size[i];
        map->stride[i] = (i ? stride[i] : 1) * bytes;
        map->box[i] = box[i];
    }
    return nullptr;
}

// ------------------------------------------------------------------------------------- functions that Python calls

extern "C" {
void emulator_configure(const EmulatorConfig* config) {
    emulator::session = {};
    emulator::session.config = *config;
    emulator::launched = {};
}
const char* emulator_printed() { return emulator::session.printed.c_str(); }
// The notes of the last launch, one after another; nullptr behind the last.
const char* emulator_note(int64_t number) {
    const auto& notes = emulator::session.notes;
    return number < static_cast<int64_t>(notes.size()) ? notes[static_cast<std::size_t>(number)].c_str() : nullptr;
}
void emulator_launched(LaunchConfig* out) { *out = emulator::launched; }
int64_t emulator_steps() { return static_cast<int64_t>(emulator::session.steps); }
int64_t emulator_events(const EmulatorEvent** out) {
    *out = emulator::session.recorded.events.data();
    return static_cast<int64_t>(emulator::session.recorded.events.size());
}
int64_t emulator_accumulators(const EmulatorAccumulator** out) {
    *out = emulator::session.recorded.accumulators.data();
    return static_cast<int64_t>(emulator::session.recorded.accumulators.size());
}
int64_t emulator_accumulator_values(const uint8_t** out) {
    *out = emulator::session.recorded.values.data();
    return static_cast<int64_t>(emulator::session.recorded.values.size());
}
const char* emulator_event_name(int32_t kind) { return emulator::event_name(kind); }
// Whether the last launch was stopped by a fault of its kernel, and which.
bool emulator_fault(EmulatorFault* out) {
    if (!emulator::session.fault) return false;
    const auto& [what, message, place, address, from, other, callers] = *emulator::session.fault;
    const auto offset = [](const void* place) {
        return place ? reinterpret_cast<uintptr_t>(place) - emulator::session.library_begin : 0;
    };
    *out = {emulator::fault_name(static_cast<int32_t>(what)),
            message.c_str(),
            address,
            place.block,
            place.warp,
            place.lane,
            emulator::session.library.c_str(),
            offset(from),
            offset(other),
            {}};
    for (std::size_t i = 0; i < std::min(callers.size(), std::size(out->callers)); ++i)
        out->callers[i] = offset(callers[i]);
    return true;
}
const char* emulator_fault_name(int32_t fault) { return emulator::fault_name(fault); }
}
