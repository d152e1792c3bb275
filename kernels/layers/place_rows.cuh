// Finds the row of a grouped layout for each choice of each token. It computes what routing.place does by 12 to 30 of
// torch's kernels, whose launches take longer than their work where there are few tokens.
//
// One CTA counts the choices of each expert, in their order, without atomics: a warp takes a run of choices, 32 in a
// round, and has a count of its own for each expert in shared memory. The position of a choice among those of its
// expert is the sum of three counts of them: in the warps before this one, in the earlier rounds of this warp, and in
// the lower lanes of this round. So the choices are read twice. The first pass only counts. Each warp's counts are then
// replaced by their sums over the warps before it, and the second pass knows the positions.
#pragma once

#include "launch.cuh"
#include "prefix.cuh"
#include "ptx.cuh"
#include "warp.cuh"

constexpr uint32_t kMostPlaceThreads = 1024;
enum class PlaceLayout : int64_t { kContiguous, kMasked, kPsum };

struct PlaceParams {
    const void* chosen;  // [choices], contiguous: int64, or int32 if is_int32; a number outside 0 to experts - 1 means
                         // no expert
    int32_t* rows;       // what the product takes: contiguous [size], masked and psum [experts]
    int64_t* places;     // [choices]: rows; `size` for a choice that has none
    int32_t* tokens;     // [size]: the token of each row, -1 where it has none; null where nobody needs them
    int64_t choices, top_k, experts, size;
    int64_t room;       // masked: the rows of each expert
    int64_t alignment;  // contiguous and psum: each expert's rows begin at a multiple of this
    PlaceLayout layout;
    int64_t is_int32;

    // Whether something is written for each row: its token, or its expert.
    __host__ __device__ bool fills_rows() const { return tokens || layout == PlaceLayout::kContiguous; }
};

// The argument of the launcher, filled in by Python (placing.py).
struct PlaceArgs {
    PlaceParams params;
    void* stream;  // cudaStream_t; ignored by the emulator
};

// How the CTA shares the work, and where what is in shared memory, in words.
struct PlacePlan {
    uint32_t warps;    // that process choices
    uint32_t run;      // choices of each of these warps, a multiple of 32
    uint32_t threads;  // of the CTA: one for each expert, and for each row that is written, if there are so many
    // From word 0: a count for each warp and expert.
    uint32_t firsts;  // each expert's first row, then the end of the last one's, its padding included
    uint32_t ends;    // the row behind the last that each expert fills
    uint32_t sums;    // for each warp of the CTA, the rows of its 32 experts
    uint32_t words;   // all of them

    __host__ __device__ explicit PlacePlan(const PlaceParams& p) {
        const uint32_t choices = static_cast<uint32_t>(p.choices), experts = static_cast<uint32_t>(p.experts);
        const uint32_t rounds = (choices + 31) / 32, most_warps = kMostPlaceThreads / 32;
        warps = rounds < most_warps ? rounds : most_warps;
        run = (rounds + warps - 1) / warps * 32;
        const int64_t rows = p.fills_rows() ? p.size : 0;
        const uint32_t of_rows = static_cast<uint32_t>(rows < kMostPlaceThreads ? rows : kMostPlaceThreads);
        const uint32_t wanted = experts > of_rows ? experts : of_rows;
        threads = wanted > 32 * warps ? (wanted + 31) / 32 * 32 : 32 * warps;
        firsts = warps * experts, ends = firsts + experts + 1, sums = ends + experts, words = sums + threads / 32;
    }
};
// Of a plan with as many experts and warps as there may be.
constexpr uint32_t kMostPlaceWords = kMostPlaceThreads * (kMostPlaceThreads / 32 + 2) + 1 + kMostPlaceThreads / 32;

__global__ void __launch_bounds__(kMostPlaceThreads) place_rows(const PlaceParams p) {
    const PlacePlan plan(p);
    const uint32_t experts = static_cast<uint32_t>(p.experts), choices = static_cast<uint32_t>(p.choices);
    const uint32_t size = static_cast<uint32_t>(p.size), room = static_cast<uint32_t>(p.room);
    const uint32_t thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
    const bool masked = p.layout == PlaceLayout::kMasked;
    const auto word = [base = ptx::shared_memory()](uint32_t i) { return base + 4 * i; };
    const auto load = [&](uint32_t i) { return ptx::ld_shared<uint32_t>(word(i)); };
    const auto store = [&](uint32_t i, uint32_t value) { ptx::st_shared(word(i), value); };
    ptx::griddepcontrol_launch_dependents();

    for (uint32_t i = thread; i < plan.warps * experts; i += plan.threads) store(i, 0);
    ptx::griddepcontrol_wait();  // the choices may be what the kernels ahead write
    __syncthreads();

    // Calls use(choice, expert, position) for each of the warp's choices, and adds it to the warp's count of that
    // expert. For a choice of no expert, `expert` is `experts`, and the position means nothing.
    const auto each_choice = [&](auto use) {
        if (warp >= plan.warps) return;
        const uint32_t counts = warp * experts, begin = warp * plan.run, end = min(begin + plan.run, choices);
        const auto given_at = [&](uint32_t choice) -> int64_t {
            if (choice >= end) return -1;
            return p.is_int32 ? static_cast<const int32_t*>(p.chosen)[choice]
                              : static_cast<const int64_t*>(p.chosen)[choice];
        };
        int64_t next = given_at(begin + lane);
        for (uint32_t first = begin; first < end; first += 32) {
            const uint32_t choice = first + lane;
            const int64_t given = next;
            next = given_at(choice + 32);  // is on its way while this round is counted
            const uint32_t expert = given >= 0 && given < p.experts ? static_cast<uint32_t>(given) : experts;
            const uint32_t same = ptx::match_any_sync(kAllLanes, expert),
                           same_in_lower_lanes = same & ((1u << lane) - 1);
            const uint32_t before = expert < experts ? load(counts + expert) : 0;
            __syncwarp();  // all lanes have read the count before one of them replaces it
            if (expert < experts && !same_in_lower_lanes) store(counts + expert, before + __popc(same));
            __syncwarp();  // and it is replaced before the next round reads it
            if (choice < end) use(choice, expert, before + __popc(same_in_lower_lanes));
        }
    };
    each_choice([](uint32_t, uint32_t, uint32_t) {});  // the first pass
    __syncthreads();

    // Thread e replaces the counts of expert e by their sums over the warps before, and finds where its rows begin.
    uint32_t count = 0;
    if (thread < experts)
        for (uint32_t i = 0; i < plan.warps; ++i) {
            const uint32_t of_warp = load(i * experts + thread);
            store(i * experts + thread, count);
            count += of_warp;
        }
    const uint32_t alignment = static_cast<uint32_t>(p.alignment);
    const uint32_t padded = masked ? 0 : (count + alignment - 1) / alignment * alignment;
    uint32_t first = prefix_of_cta(padded, word(plan.sums), plan.threads / 32, Sum{}).before;
    if (thread < experts) {
        if (masked) {
            first = thread * room;
            count = min(count, room);  // choices beyond the room have no row
        }
        store(plan.firsts + thread, first);
        store(plan.ends + thread, first + count);
        if (thread == experts - 1) store(plan.firsts + experts, first + padded);
        if (p.layout != PlaceLayout::kContiguous) p.rows[thread] = static_cast<int32_t>(masked ? count : first + count);
    }
    __syncthreads();

    // The second pass. Each element of `tokens`, and of the contiguous layout's `rows`, is written once: here where the
    // row has a choice, below where it has none.
    const uint32_t top_k = static_cast<uint32_t>(p.top_k);
    int32_t* experts_of_rows = p.layout == PlaceLayout::kContiguous ? p.rows : nullptr;
    const auto write_row = [&](uint32_t row, int32_t token, int32_t expert) {
        if (p.tokens) p.tokens[row] = token;
        if (experts_of_rows) experts_of_rows[row] = expert;
    };
    each_choice([&](uint32_t choice, uint32_t expert, uint32_t position) {
        uint32_t place = size;
        // There may be fewer rows than the choices need, if the caller said so.
        if (expert < experts) place = min(load(plan.firsts + expert) + position, size);
        if (masked && position >= room) place = size;
        p.places[choice] = place;
        if (place < size) write_row(place, static_cast<int32_t>(choice / top_k), static_cast<int32_t>(expert));
    });
    if (!p.fills_rows()) return;
    // A warp has the padding of every so many experts, and all threads have what is behind the last one's.
    for (uint32_t expert = warp; expert < experts; expert += plan.threads / 32) {
        const uint32_t end = min(load(plan.firsts + expert + 1), size);
        for (uint32_t row = load(plan.ends + expert) + lane; row < end; row += 32) write_row(row, -1, -1);
    }
    for (uint32_t row = load(plan.firsts + experts) + thread; row < size; row += plan.threads) write_row(row, -1, -1);
}

extern "C" const char* gemm_ladder_launch(const PlaceArgs* args) {
    const PlacePlan plan(args->params);
    return launch(place_rows,
                  {.blocks = 1,
                   .threads = plan.threads,
                   .shared_bytes = 4 * plan.words,
                   .most_shared_bytes = 4 * kMostPlaceWords,
                   .stream = args->stream,
                   .early = true},
                  args->params);
}
