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
#include <utility>
#include <vector>

namespace emulator {

struct Moment {  // of a thread, by its number in the cluster; number 0 of a moment: none
    uint32_t thread = 0, number = 0;
};

// For each thread of the cluster, the last moment that is known. Many threads share one, so it is never changed. All
// who share it run on one OS thread. Barriers make new ones all the time, so their memory is kept for the next.
class Known {
  public:
    using Moments = std::vector<uint32_t>;

    Known() = default;
    Known(std::nullptr_t) {}
    Known(const Known& other) : shared_(other.shared_) {
        if (shared_) ++shared_->users;
    }
    Known(Known&& other) noexcept : shared_(std::exchange(other.shared_, nullptr)) {}
    Known& operator=(Known other) noexcept {
        std::swap(shared_, other.shared_);
        return *this;
    }
    ~Known() {
        if (shared_ && --shared_->users == 0) spare_.emplace_back(shared_);
    }
    // One that nobody shares yet, and its moments, of which nothing is known.
    static Known make() {
        Known known;
        if (spare_.empty()) spare_.push_back(std::make_unique<Shared>());
        known.shared_ = spare_.back().release();
        spare_.pop_back();
        known.shared_->users = 1;
        known.shared_->moments.clear();
        return known;
    }
    Moments& moments() { return shared_->moments; }

    explicit operator bool() const { return shared_; }
    const Moments& operator*() const { return shared_->moments; }
    const Moments* operator->() const { return &shared_->moments; }
    const void* get() const { return shared_; }
    bool operator==(const Known& other) const { return shared_ == other.shared_; }
    void reset() { *this = Known(); }

  private:
    struct Shared {
        Moments moments;
        uint32_t users = 0;
    };
    Shared* shared_ = nullptr;
    static inline thread_local std::vector<std::unique_ptr<Shared>> spare_;
};

// Each of the first moments becomes that of `more`, if that is later.
inline void raise(Known::Moments& moments, const Known::Moments& more) {
    uint32_t* into = moments.data();
    const uint32_t* from = more.data();
    for (std::size_t i = 0, count = more.size(); i < count; ++i) into[i] = std::max(into[i], from[i]);
}

inline bool knows(const Known& known, const Moment& moment) {
    return known && moment.thread < known->size() && (*known)[moment.thread] >= moment.number;
}

// What a barrier, or another thing that threads meet at, has been told in its current phase.
class Told {
  public:
    Told() = default;
    Told(Told&&) = default;
    Told& operator=(Told&&) = default;

    // All that `known` says, and a thread's own moments up to `moment`.
    void join(const Known& known, const Moment& moment, std::size_t threads) {
        if (!all_) all_ = Known::make();
        Known::Moments& moments = all_.moments();
        if (known && known != last_) {
            if (moments.empty()) {
                moments = *known;
            } else {
                if (moments.size() < known->size()) moments.resize(known->size());
                raise(moments, *known);
            }
            last_ = known;
        }
        if (threads = std::max<std::size_t>(threads, moment.thread + 1); moments.size() < threads)
            moments.resize(threads);
        moments[moment.thread] = std::max(moments[moment.thread], moment.number);
    }
    // Ends the phase.
    Known take() {
        last_.reset();
        return std::move(all_);
    }

  private:
    Known all_, last_;  // last_: what was joined last. Threads that come from the same barrier know the same
};

// What a thread knows that knew `known` and is told `more`.
inline Known both(const Known& known, const Known& more) {
    if (!more || known == more) return known;
    if (!known) return more;
    const auto is_part_of = [](const Known::Moments& part, const Known::Moments& whole) {
        if (part.size() > whole.size()) return false;
        const uint32_t *of_part = part.data(), *of_whole = whole.data();
        uint32_t missing = 0;
        for (std::size_t i = 0, count = part.size(); i < count; ++i) missing |= of_part[i] > of_whole[i];
        return missing == 0;
    };
    if (is_part_of(*known, *more)) return more;
    if (is_part_of(*more, *known)) return known;
    Known joined = Known::make();
    const bool shorter = known->size() < more->size();
    const Known::Moments &shorter_one = shorter ? *known : *more, &longer = shorter ? *more : *known;
    joined.moments() = longer;
    raise(joined.moments(), shorter_one);
    return joined;
}

// The last answers of both(): the lanes of a warp ask for the same one after another, and then share the answer.
class Joined {
  public:
    [[gnu::always_inline]] void tell(Known& known, const Known& more) {
        if (more && known != more) add(known, more);
    }

  private:
    void add(Known& known, const Known& more) {
        if (!known) {
            known = more;
            return;
        }
        const auto pair = reinterpret_cast<uintptr_t>(known.get()) * 3 + reinterpret_cast<uintptr_t>(more.get());
        Answer& answer = answers_[pair * 0x9E3779B97F4A7C15 >> (64 - kBits)];
        if (answer.known != known || answer.more != more) answer = {known, more, both(known, more)};
        known = answer.result;
    }

    struct Answer {
        Known known, more, result;
    };
    static constexpr int kBits = 7;
    std::array<Answer, 1 << kBits> answers_;
};

struct Words {  // of shared memory, neighbours
    uint32_t first, count;
};

// Those who issue an asynchronous access: a thread, or the lanes of a warp, which do so together. What any of them has
// done or been told lies before it.
struct Issuer {
    const Known& known;
    uint32_t first, count = 1;  // numbers of these threads in the cluster

    bool comes_after(const Moment& earlier) const {
        return earlier.number == 0 || earlier.thread - first < count || knows(known, earlier);
    }
};

// How far a warpgroup has come with its WGMMAs, counted from its first one.
struct WgmmaProgress {
    int64_t committed = 0, waited = 0;  // by any of its warps
    Known told_committed, told_waited;  // what a thread learns by the commit, and by the wait
};

// A read of shared memory by a WGMMA or the copy engine. That it was issued (a WGMMA: committed) and that it is done
// are moments of their own: who knows of the first need not know of the second.
struct AsyncRead {
    const char* who = nullptr;
    const void* from = nullptr;  // the place in the kernel
    int warp = -1;               // that issued it; of a WGMMA, the first of its warpgroup
    Moment issued, done;
    const WgmmaProgress* progress = nullptr;  // of a WGMMA's warpgroup
    // Of a WGMMA, counted from its warpgroup's first one, which is 1; of a TMA store, from its warp's; 0: of another.
    int64_t number = 0;
    uint32_t load = 0;  // of a WGMMA: the TMA load that had filled the operand
    // The number of an earlier WGMMA of the warpgroup that had read the same operand, of the same load, and was done.
    int64_t again = 0;
    uint32_t running = 0;  // its parts, one of each warp, that are not known to be done
};

// A thread, as shared memory knows it.
struct Actor {
    uint32_t number = 0;  // in the cluster
    int index = 0;        // in the block
    uint32_t moment = 1;
    Known known;
    const void* from = nullptr;   // the place in the kernel's machine code that called the emulator last
    bool doubtful = false;        // its last store is a race if it changes what lies there (Accesses::settle)
    int64_t wgmmas = 0;           // that it has issued
    std::vector<Words> unfenced;  // written since the last fence.proxy.async

    Moment now() const { return {number, moment}; }
    Issuer issuer() const { return {known, number}; }
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
