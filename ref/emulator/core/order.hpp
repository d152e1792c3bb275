// Which of two accesses to shared memory happens first, and whether anything makes sure of it.
//
// This is the FastTrack algorithm (Flanagan and Freund, 2009). Every thread counts its moments; a new one begins when
// it releases something. A thread knows of each other thread up to which moment that one's accesses lie before its own:
// what it has acquired. Two accesses to a word, one of them a write, of which neither thread knows, are a data race,
// whatever order they had in this run.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <memory>
#include <vector>

namespace emulator {

struct Moment {  // of a thread, by its number in the cluster; number 0 of a moment: none
    uint32_t thread = 0, number = 0;
};

// For each thread of the cluster, the last moment that is known. Many threads share one, so it is never changed.
using Known = std::shared_ptr<const std::vector<uint32_t>>;

inline bool knows(const Known& known, const Moment& moment) {
    return known && moment.thread < known->size() && (*known)[moment.thread] >= moment.number;
}

// What a barrier, or another thing that threads meet at, has been told in its current phase.
class Told {
  public:
    // All that `known` says, and a thread's own moments up to `moment`.
    void join(const Known& known, const Moment& moment, std::size_t threads) {
        if (known && known != last_) {
            if (moments_.size() < known->size()) moments_.resize(known->size());
            for (std::size_t i = 0; i < known->size(); ++i) moments_[i] = std::max(moments_[i], (*known)[i]);
            last_ = known;
        }
        if (threads = std::max<std::size_t>(threads, moment.thread + 1); moments_.size() < threads)
            moments_.resize(threads);
        moments_[moment.thread] = std::max(moments_[moment.thread], moment.number);
    }
    // Ends the phase.
    Known take() {
        last_.reset();
        if (moments_.empty()) return nullptr;
        auto all = std::make_shared<const std::vector<uint32_t>>(std::move(moments_));
        moments_.clear();
        return all;
    }

  private:
    std::vector<uint32_t> moments_;
    Known last_;  // what was joined last: threads that come from the same barrier know the same
};

// What a thread knows that knew `known` and is told `more`.
inline Known both(const Known& known, const Known& more) {
    if (!more || known == more) return known;
    if (!known) return more;
    const auto is_part_of = [](const std::vector<uint32_t>& part, const std::vector<uint32_t>& whole) {
        if (part.size() > whole.size()) return false;
        bool all = true;
        for (std::size_t i = 0; i < part.size(); ++i) all &= part[i] <= whole[i];
        return all;
    };
    if (is_part_of(*known, *more)) return more;
    if (is_part_of(*more, *known)) return known;
    std::vector<uint32_t> joined(std::max(known->size(), more->size()));
    std::copy(known->begin(), known->end(), joined.begin());
    for (std::size_t i = 0; i < more->size(); ++i) joined[i] = std::max(joined[i], (*more)[i]);
    return std::make_shared<const std::vector<uint32_t>>(std::move(joined));
}

// The last answers of both(): the lanes of a warp ask for the same one after another, and then share the answer.
class Joined {
  public:
    void tell(Known& known, const Known& more) {
        if (!more || known == more) return;
        Answer& answer = answers_[(reinterpret_cast<uintptr_t>(known.get()) ^ reinterpret_cast<uintptr_t>(more.get())) /
                                  16 % answers_.size()];
        if (answer.known != known || answer.more != more) answer = {known, more, both(known, more)};
        known = answer.result;
    }

  private:
    struct Answer {
        Known known, more, result;
    };
    std::array<Answer, 16> answers_;
};

// A thread, as shared memory knows it.
struct Actor {
    uint32_t number = 0;  // in the cluster
    int index = 0;        // in the block
    uint32_t moment = 1;
    Known known;
    const void* from = nullptr;      // the place in the kernel's machine code that called the emulator last
    bool doubtful = false;           // its last store is a race if it changes what lies there (SharedMemory::doubt)
    std::vector<uint32_t> unfenced;  // words written since the last fence.proxy.async

    Moment now() const { return {number, moment}; }
    bool comes_after(const Moment& earlier) const {
        return earlier.number == 0 || earlier.thread == number || knows(known, earlier);
    }
    // The thread's accesses until now are told to others. What it does from here on is another moment.
    void release(Told& told, std::size_t threads) {
        told.join(known, now(), threads);
        ++moment;
    }
};

}  // namespace emulator
