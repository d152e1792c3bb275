// Where a block's __shared__ variables lie, and what places in them are called.
#pragma once

#include <algorithm>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "names.hpp"
#include "shared_layout.hpp"

namespace emulator {

// The variables lie at the end of shared memory, so what a kernel writes behind its dynamic shared memory does not land
// in one.
class SharedVariables {
  public:
    // There are none yet; `dynamic` bytes at the begin are taken.
    void reset(uint32_t dynamic) {
        dynamic_ = dynamic;
        begin_ = kSharedLimit;
        all_.clear();
    }
    bool none() const { return all_.empty(); }
    // The offset of the first one: what lies behind it is theirs.
    uint32_t begin() const { return begin_; }
    std::optional<uint32_t> find(const SharedVariable& variable) const {
        for (const auto& [known, offset] : all_)
            if (known == &variable) return offset;
        return std::nullopt;
    }
    // Finds room for another one, before the others. Returns its offset, or nothing if there is no room.
    std::optional<uint32_t> add(const SharedVariable& variable, uint32_t alignment) {
        const auto bytes = static_cast<uint32_t>(variable.bytes);
        alignment = std::max(alignment, kChunk);
        if (bytes + alignment > begin_ - std::min(dynamic_, begin_)) return std::nullopt;
        begin_ = (begin_ - bytes) / alignment * alignment;
        all_.emplace_back(&variable, begin_);
        return begin_;
    }

    // What a place in one is called, such as "tile[3][5]"; "" for any other place.
    std::string name_at(uint64_t offset) const {
        for (const auto& [variable, begin] : all_)
            if (offset >= begin && offset - begin < variable->bytes) return place_in(*variable, offset - begin);
        return "";
    }
    // What an offset behind shared memory would be of the last variable.
    std::string behind(std::size_t offset) const {
        const auto last = std::ranges::max_element(all_, {}, [](const auto& one) { return one.second; });
        if (last == all_.end()) return "";
        const SharedVariable& variable = *last->first;
        const std::size_t past = offset - last->second - variable.bytes;
        if (variable.dimensions != 1) return ", " + std::to_string(past) + " bytes behind the end of " + variable.name;
        return ": it is where " + std::string(variable.name) + "[" +
               std::to_string((variable.bytes + past) / variable.element) + "] would be, and " + variable.name +
               " has " + std::to_string(variable.extents[0]) + " elements";
    }

  private:
    uint32_t dynamic_ = 0, begin_ = kSharedLimit;
    std::vector<std::pair<const SharedVariable*, uint32_t>> all_;  // with their offsets
};

}  // namespace emulator
