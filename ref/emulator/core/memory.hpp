// Global memory: the tensors that a launch was given. A kernel's accesses are compared with them, where the launch said
// what they are.
#pragma once

#include <dlfcn.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "../launch.cuh"

// A tensor as Python describes it.
struct EmulatorTensor {
    const char* name;
    uint64_t begin;
    int64_t bytes;  // from the first element's begin to the last one's end
    int32_t item;   // bytes of an element
    int32_t dimensions;
    int32_t once;                  // 1: no two threads may write the same element, unless a barrier orders them
    int64_t shape[8], strides[8];  // strides in elements
    int64_t padding;               // bytes of the same memory behind the last element, at most 15
};

namespace emulator {

// What launchers have taken by cudaMalloc and not given back. A launch may use it beside its tensors.
class Allocations {
  public:
    static void add(void* memory, std::size_t bytes) {
        const std::lock_guard lock(mutex_);
        all_[reinterpret_cast<uintptr_t>(memory)] = {bytes, ++count_};
    }
    static bool remove(void* memory) {
        const std::lock_guard lock(mutex_);
        return all_.erase(reinterpret_cast<uintptr_t>(memory));
    }
    static void list(std::vector<EmulatorTensor>& tensors, std::deque<std::string>& names) {
        const std::lock_guard lock(mutex_);
        for (const auto& [begin, one] : all_) {
            names.push_back("cudaMalloc_" + std::to_string(one.number));
            const auto bytes = static_cast<int64_t>(one.bytes);
            tensors.push_back({names.back().c_str(), begin, bytes, 1, 1, 0, {bytes}, {1}, 0});
        }
    }

  private:
    struct Allocation {
        std::size_t bytes;
        int number;  // in the order of the calls
    };
    static inline std::map<uintptr_t, Allocation> all_;
    static inline int count_ = 0;
    static inline std::mutex mutex_;
};

// Who has written an element last: a thread of a block, and its moment (order.hpp); 0: the order is not followed.
struct Writer {
    int64_t block;
    uint32_t thread, moment;

    uint64_t packed() const {
        constexpr uint32_t kMoments = 1 << 22;
        return static_cast<uint64_t>(block + 1) << 32 | thread << 22 | (moment < kMoments ? moment : 0);
    }
    static Writer of(uint64_t packed) {
        return {static_cast<int64_t>(packed >> 32) - 1, static_cast<uint32_t>(packed) >> 22,
                static_cast<uint32_t>(packed) & ((1 << 22) - 1)};
    }
};

class GlobalMemory {
  public:
    GlobalMemory(const EmulatorTensor* tensors, int64_t count, const Call& call)
        : tensors_(tensors, tensors + count), call_(call) {
        if (count) Allocations::list(tensors_, names_);
        Dl_info found;
        if (dladdr(call.kernel, &found)) image_ = found.dli_fbase;
        writers_.resize(tensors_.size());
        for (std::size_t i = 0; i < tensors_.size(); ++i)
            if (tensors_[i].once)
                writers_[i] = std::make_unique<Writers>(static_cast<std::size_t>(tensors_[i].bytes / tensors_[i].item));
    }

    // Whether an address in machine code is the kernel's, and not the emulator's or a system library's.
    bool runs(const void* instruction) const {
        Dl_info found;
        return dladdr(instruction, &found) && found.dli_fbase == image_;
    }

    // Whether accesses are compared with tensors at all.
    bool known() const { return !tensors_.empty(); }
    // Whether the bytes belong to tensor number `number`.
    bool is_tensor(uintptr_t address, std::size_t bytes, std::size_t number) const {
        return number < tensors_.size() && within(tensors_[number], address, bytes);
    }
    // Whether the bytes belong to any tensor; if so, `number` is that one's.
    bool find(uintptr_t address, std::size_t bytes, std::size_t& number) const {
        for (std::size_t i = 0; i < tensors_.size(); ++i)
            if (within(tensors_[i], address, bytes)) return number = i, true;
        return false;
    }
    // Whether the bytes begin in a tensor and end in its padding.
    bool pads(uintptr_t address, std::size_t bytes) const {
        return std::ranges::any_of(tensors_, [=](const EmulatorTensor& tensor) {
            const uint64_t end = tensor.begin + static_cast<uint64_t>(tensor.bytes);
            return address >= tensor.begin && address < end &&
                   address + bytes <= end + static_cast<uint64_t>(tensor.padding);
        });
    }
    // `mine` writes these bytes of tensor number `number`. Returns another block, or another thread of the block, that
    // has written one of their elements before, or nothing. `ordered`: whether a thread of the block has done so before
    // all that the writer does now.
    template <typename Ordered>
    std::optional<Writer> write(uintptr_t address, std::size_t bytes, std::size_t number, const Writer& mine,
                                const Ordered& ordered) const {
        if (number >= writers_.size() || !writers_[number]) return std::nullopt;
        const EmulatorTensor& tensor = tensors_[number];
        Writers& writers = *writers_[number];
        const uint64_t packed = mine.packed();
        const std::size_t item = static_cast<std::size_t>(tensor.item);
        const std::size_t end = std::min((address - tensor.begin + bytes - 1) / item + 1, writers.size());
        std::optional<Writer> other;
        for (std::size_t i = (address - tensor.begin) / item; i < end;) {
            const std::size_t group = i / kGroup * kGroup, group_end = std::min(end, group + kGroup);
            uint64_t first = lock(writers[group]);
            for (; i < group_end; ++i) {
                const uint64_t before = i == group ? first : writers[i].load(std::memory_order_relaxed);
                if (before == packed) continue;
                if (i == group)
                    first = packed;
                else
                    writers[i].store(packed, std::memory_order_relaxed);
                if (!before) continue;
                const Writer writer = Writer::of(before);
                if (writer.block != mine.block || (writer.thread != mine.thread && writer.moment && !ordered(writer)))
                    other = writer;
            }
            writers[group].store(first, std::memory_order_release);
        }
        return other;
    }
    // The name and index of an element, such as "D[64, 3]".
    std::string element(uintptr_t address, std::size_t number) const {
        return tensors_[number].name + index(tensors_[number], address);
    }

    // What is wrong with a write to an element that another thread block has written, or another thread of the block
    // with number `block`.
    std::string conflict(uintptr_t address, std::size_t number, const Writer& other, int64_t block) const {
        const bool same = other.block == block;
        const std::string who = same ? "thread " + std::to_string(other.thread) + " of the same block"
                                     : "block " + std::to_string(other.block);
        return element(address, number) + ", which " + who + " has written" + (same ? " with another value" : "") +
               ": nothing orders the two that the emulator knows of. The " +
               (same ? "threads' parts" : "blocks' tiles") + " overlap" +
               (tensors_[number].dimensions > 1 ? ", or one runs past the end of a row, into the next: a check of the "
                                                  "column is missing"
                                                : "") +
               (same ? ", or a barrier is missing" : "") +
               ". (Where atomics order the writes, as in a lock, several_writers=[\"" + tensors_[number].name +
               "\"] allows them)";
    }

    // Whether it is one of the kernel's arguments, or a variable or constant of its library.
    bool holds(uintptr_t address, bool write) const {
        const bool is = address - reinterpret_cast<uintptr_t>(call_.arguments) < call_.bytes ||
                        runs(reinterpret_cast<const void*>(address));
        if (is && write) wrote_variables_ = true;
        return is;
    }
    // Whether the kernel has written one of those.
    bool wrote_variables() const { return wrote_variables_; }

    // Whether a kernel may use the bytes; if they are a tensor's, `number` is that one's.
    bool allows(uintptr_t address, std::size_t bytes, std::size_t& number, bool write) const {
        return !known() || find(address, bytes, number) || holds(address, write);
    }
    const std::vector<EmulatorTensor>& tensors() const { return tensors_; }

    // How many bytes the nearest tensor is away.
    uint64_t nearest(uintptr_t address, std::size_t bytes) const {
        uint64_t least = UINT64_MAX;
        for (const EmulatorTensor& tensor : tensors_) least = std::min(least, distance(tensor, address, bytes));
        return least;
    }

    // Says where the bytes lie: the element that the nearest tensor would have there, and how far outside it is.
    std::string describe(uintptr_t address, std::size_t bytes) const {
        const EmulatorTensor& tensor =
            *std::ranges::min_element(tensors_, {}, [&](const auto& one) { return distance(one, address, bytes); });
        std::string shape;
        for (int i = 0; i < tensor.dimensions; ++i) shape += (i ? " x " : "") + std::to_string(tensor.shape[i]);
        std::string text = tensor.name + index(tensor, address) + ", outside " + tensor.name + " of shape " + shape;
        const uint64_t end = tensor.begin + static_cast<uint64_t>(tensor.bytes);
        if (address < tensor.begin)
            return text + ": " + std::to_string(tensor.begin - address) + " bytes before its begin";
        if (address < end)
            return text + ": the last " + std::to_string(address + bytes - end) + " of them lie behind its end";
        return text + ": " + std::to_string(address - end) + " bytes behind its end";
    }

  private:
    static uint64_t distance(const EmulatorTensor& tensor, uintptr_t address, std::size_t bytes) {
        const uint64_t end = tensor.begin + static_cast<uint64_t>(tensor.bytes);
        if (address < tensor.begin) return tensor.begin - address;
        return address + bytes > end ? address + bytes - end : 0;
    }
    static bool within(const EmulatorTensor& tensor, uintptr_t address, std::size_t bytes) {
        return address >= tensor.begin && address + bytes <= tensor.begin + static_cast<uint64_t>(tensor.bytes);
    }

    // The index that an address would have if the dimension with the largest stride had no end, such as "[64, 3]".
    static std::string index(const EmulatorTensor& tensor, uintptr_t address) {
        const auto distance = static_cast<int64_t>(address - tensor.begin);
        int64_t rest = distance >= 0 ? distance / tensor.item : (distance - tensor.item + 1) / tensor.item;
        std::vector<int> order(static_cast<std::size_t>(tensor.dimensions));
        for (std::size_t i = 0; i < order.size(); ++i) order[i] = static_cast<int>(i);
        std::ranges::stable_sort(order, std::greater{}, [&](int i) { return tensor.strides[i]; });
        std::vector<int64_t> at(order.size());
        for (const int i : order) {
            const int64_t stride = std::max<int64_t>(tensor.strides[i], 1);
            at[static_cast<std::size_t>(i)] = rest >= 0 ? rest / stride : -((-rest + stride - 1) / stride);
            rest -= at[static_cast<std::size_t>(i)] * stride;
        }
        std::string text = "[";
        for (std::size_t i = 0; i < at.size(); ++i) text += (i ? ", " : "") + std::to_string(at[i]);
        return text + "]";
    }

    // For each element: the last one, packed; 0 = none. Clusters on several OS threads write them. The first of each
    // kGroup neighbours holds kLocked while one of them looks at the group: one atomic exchange where each of the
    // elements would need one, which takes as long as twenty other instructions.
    using Writers = std::vector<std::atomic<uint64_t>>;
    static constexpr std::size_t kGroup = 8;
    static constexpr uint64_t kLocked = UINT64_MAX;  // no writer: Writer::packed has the block in the high 32 bits
    static uint64_t lock(std::atomic<uint64_t>& first) {
        uint64_t was;
        while ((was = first.exchange(kLocked, std::memory_order_acquire)) == kLocked) std::this_thread::yield();
        return was;
    }

    std::vector<EmulatorTensor> tensors_;
    std::deque<std::string> names_;  // of allocations
    std::vector<std::unique_ptr<Writers>> writers_;
    Call call_;
    const void* image_ = nullptr;
    mutable std::atomic<bool> wrote_variables_{false};
};

// What a launch's arrays held at some time.
class Contents {
  public:
    // None are kept if it is not known what the kernel may write, or if it is too much.
    explicit Contents(const GlobalMemory& memory) {
        std::size_t bytes = 0;
        for (const EmulatorTensor& tensor : memory.tensors()) bytes += size(tensor);
        if (!memory.known() || bytes > kMost) return;
        complete_ = true;
        for (const EmulatorTensor& tensor : memory.tensors()) {
            const auto* begin = reinterpret_cast<const uint8_t*>(tensor.begin);
            parts_.emplace_back(tensor.begin, std::vector<uint8_t>(begin, begin + size(tensor)));
        }
    }
    bool complete() const { return complete_; }
    // Whether they hold the same now.
    bool same() const {
        return std::ranges::all_of(parts_, [](const auto& part) {
            return std::memcmp(reinterpret_cast<const void*>(part.first), part.second.data(), part.second.size()) == 0;
        });
    }
    // Writes only what has changed: others of the arrays may lie in memory that cannot be written.
    void restore() const {
        for (const auto& [begin, bytes] : parts_) {
            auto* now = reinterpret_cast<uint8_t*>(begin);
            for (std::size_t i = 0; i < bytes.size(); ++i)
                if (now[i] != bytes[i]) now[i] = bytes[i];
        }
    }

  private:
    static constexpr std::size_t kMost = std::size_t{256} << 20;
    static std::size_t size(const EmulatorTensor& tensor) {
        return static_cast<std::size_t>(tensor.bytes ? tensor.bytes + tensor.padding : 0);
    }
    bool complete_ = false;
    std::vector<std::pair<uintptr_t, std::vector<uint8_t>>> parts_;
};

}  // namespace emulator
