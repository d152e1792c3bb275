// Chooses the experts of each token, and their weights. It computes what routing.route does by about 17 of torch's
// kernels.
//
// Each warp handles one token. It keeps the scores of all experts in shared memory, and beside each a key that decides
// the choice: the score with its bias as an unsigned integer of the same order (order_of). A key of 0, which no number
// has, marks an expert that cannot be chosen: its group is not among the best, or it has been chosen already. top_k
// times the warp takes the largest key, of equal ones that of the expert with the lowest number.
//
// With few tokens there are few warps, so that what counts are trips to memory, one behind another. Lane i has experts
// i, i + 32, ..., and loads kBatch numbers before it uses the first. It knows the largest of its own keys, and looks at
// them again only when that has been taken.
#pragma once

#include "cast_numbers.cuh"
#include "launch.cuh"

constexpr uint32_t kRouteWarps = 4;  // of a CTA
constexpr uint32_t kBatch = 8;       // numbers that a lane loads before it uses the first

struct RouteParams {
    const void* logits;  // kInput [tokens, experts]: columns side by side
    const float* bias;   // [experts], or null
    int64_t* chosen;     // [tokens, top_k]
    float* weights;      // [tokens, top_k]
    int64_t tokens, experts;
    int64_t top_k;               // at most 32: lane i writes choice i
    int64_t row_stride;          // in elements
    int64_t groups, top_groups;  // into how many equal runs experts are split, and how many a token's may come from
    float scale;
    bool sigmoid;    // scores by sigmoid; else by softmax
    bool normalize;  // weights are divided by the sum of the chosen scores
    bool top2;       // a group's score is the sum of its two largest; else its largest
};

// The argument of the launcher, filled in by Python (choosing.py).
struct RouteArgs {
    RouteParams params;
    int64_t input;  // Input
    void* stream;   // cudaStream_t; ignored by the emulator
};

// Maps floats to unsigned integers of the same order. NaN, of either sign, is the largest, and no float becomes 0.
__device__ __forceinline__ uint32_t order_of(float x) {
    const uint32_t bits = __float_as_uint(x);
    if ((bits & 0x7FFFFFFFu) > kInfinity) return 0xFFFFFFFFu;
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}
__device__ __forceinline__ float float_of_order(uint32_t order) {
    if (order == 0xFFFFFFFFu) return __uint_as_float(0x7FFFFFFFu);
    return __uint_as_float(order >> 31 ? order & 0x7FFFFFFFu : ~order);
}

// exp(x) of x <= 0, or NaN. Below -87 it is a product of two powers, which may be subnormal or 0.
__device__ __forceinline__ float exponential_of(float x) {
    if (x != x) return x;
    if (x >= -87.0f) return exponential_of_minus(-x);
    return exponential_of_minus(87.0f) * exponential_of_minus(fminf(-(x + 87.0f), 87.0f));
}
// 1 / (1 + exp(-x)); below -87, where sigmoid() ends, it is exp(x).
__device__ __forceinline__ float sigmoid_of(float x) { return x >= -87.0f ? sigmoid(x) : exponential_of(x); }

// Calls use(i, load(i)) for this lane's i below `count`.
template <typename Load, typename Use>
__device__ __forceinline__ void each_of_lane(uint32_t count, const Load& load, const Use& use) {
    for (uint32_t first = threadIdx.x % 32; first < count; first += 32 * kBatch) {
        decltype(load(0u)) loaded[kBatch];
#pragma unroll
        for (uint32_t j = 0; j < kBatch; ++j) loaded[j] = load(first + 32 * j < count ? first + 32 * j : first);
#pragma unroll
        for (uint32_t j = 0; j < kBatch; ++j)
            if (first + 32 * j < count) use(first + 32 * j, loaded[j]);
    }
}

__device__ __forceinline__ uint32_t load_word(uint32_t array, uint32_t i) {
    return ptx::ld_shared<uint32_t>(array + 4 * i);
}
__device__ __forceinline__ float load_float(uint32_t array, uint32_t i) { return __uint_as_float(load_word(array, i)); }
__device__ __forceinline__ void store_word(uint32_t array, uint32_t i, uint32_t value) {
    ptx::st_shared(array + 4 * i, value);
}

// The keys of a warp, in shared memory. A lane reads and writes its own alone.
struct Keys {
    uint32_t array, count;
    uint32_t most, at;  // this lane's largest key, and where it is

    __device__ __forceinline__ Keys(uint32_t keys, uint32_t keys_count) : array(keys), count(keys_count) { look(); }

    __device__ __forceinline__ void look() {
        most = 0, at = 0xFFFFFFFFu;
        each_of_lane(
            count, [&](uint32_t i) { return load_word(array, i); },
            [&](uint32_t i, uint32_t key) {
                if (key > most) most = key, at = i;
            });
    }

    // Gives all lanes the index of the largest key, and replaces that key by 0, which other lanes may then read. At
    // least one key must not be 0.
    __device__ __forceinline__ uint32_t take_largest() {
        const uint32_t largest = ptx::redux_sync_max(kAllLanes, most);
        const uint32_t found = ptx::redux_sync_min(kAllLanes, most == largest ? at : 0xFFFFFFFFu);
        if (threadIdx.x % 32 == found % 32) {
            store_word(array, found, 0);
            look();
        }
        __syncwarp();
        return found;
    }
};

__device__ __forceinline__ float sum_of_lanes(float x) {
    for (int lanes = 16; lanes; lanes /= 2) x += ptx::shfl_sync_bfly(kAllLanes, x, lanes);
    return x;
}

template <Input kInput>
__global__ void __launch_bounds__(32 * kRouteWarps) route_tokens(const RouteParams p) {
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32, experts = static_cast<uint32_t>(p.experts);
    const uint32_t groups = static_cast<uint32_t>(p.groups), top_k = static_cast<uint32_t>(p.top_k);
    const int64_t token = static_cast<int64_t>(blockIdx.x) * kRouteWarps + warp;
    ptx::griddepcontrol_launch_dependents();
    ptx::griddepcontrol_wait();  // all that is read may be what the kernels ahead write
    if (token >= p.tokens) return;

    const uint32_t scores = ptx::shared_memory() + 4 * warp * (2 * experts + groups);
    const uint32_t orders = scores + 4 * experts, of_groups = orders + 4 * experts;
    const auto score_of = [&](uint32_t i) { return load_float(scores, i); };

    const auto logit_of = [&](uint32_t i) {
        return load_piece<kInput, false>(p.logits, token * p.row_stride + i, 1, 1)[0];
    };
    if (p.sigmoid) {
        each_of_lane(experts, logit_of,
                     [&](uint32_t i, float x) { store_word(scores, i, __float_as_uint(sigmoid_of(x))); });
    } else {
        uint32_t most = 0;
        each_of_lane(experts, logit_of, [&](uint32_t i, float x) {
            store_word(scores, i, __float_as_uint(x));
            most = max(most, order_of(x));
        });
        const float largest = float_of_order(ptx::redux_sync_max(kAllLanes, most));
        float sum = 0;
        each_of_lane(experts, score_of, [&](uint32_t i, float x) {
            const float power = exponential_of(x - largest);
            store_word(scores, i, __float_as_uint(power));
            sum += power;
        });
        sum = sum_of_lanes(sum);
        each_of_lane(experts, score_of,
                     [&](uint32_t i, float x) { store_word(scores, i, __float_as_uint(__fdiv_rn(x, sum))); });
    }
    if (p.bias)
        each_of_lane(
            experts, [&](uint32_t i) { return p.bias[i]; },
            [&](uint32_t i, float x) { store_word(orders, i, order_of(score_of(i) + x)); });
    else
        each_of_lane(experts, score_of, [&](uint32_t i, float x) { store_word(orders, i, order_of(x)); });
    __syncwarp();  // what follows reads other lanes' scores and keys

    if (p.top_groups < p.groups) {
        const uint32_t group_size = experts / groups;
        for (uint32_t group = lane; group < groups; group += 32) {
            uint32_t best = 0, second = 0;
            for (uint32_t first = 0; first < group_size; first += kBatch) {
                uint32_t keys[kBatch];
#pragma unroll
                for (uint32_t j = 0; j < kBatch; ++j)
                    keys[j] = load_word(orders, group * group_size + min(first + j, group_size - 1));
#pragma unroll
                for (uint32_t j = 0; j < kBatch; ++j) {
                    const uint32_t one = first + j < group_size ? keys[j] : 0;
                    second = max(second, min(best, one)), best = max(best, one);
                }
            }
            // A sum has to be taken of floats. It is NaN, and so the best, for inf + -inf, as in torch.
            const bool both = p.top2 && group_size > 1;
            store_word(of_groups, group, both ? order_of(float_of_order(best) + float_of_order(second)) : best);
        }
        Keys best_groups(of_groups, groups);
        for (uint32_t i = 0; i < static_cast<uint32_t>(p.top_groups); ++i) best_groups.take_largest();
        for (uint32_t i = lane; i < experts; i += 32)  // a group whose key is still there was not taken
            if (load_word(of_groups, i / group_size)) store_word(orders, i, 0);
    }
    Keys best_experts(orders, experts);
    uint32_t mine = 0;  // the expert of choice number `lane`
    for (uint32_t i = 0; i < top_k; ++i) {
        const uint32_t expert = best_experts.take_largest();
        if (lane == i) mine = expert;
    }
    const float score = score_of(mine);
    float sum = sum_of_lanes(lane < top_k ? score : 0);
    // As torch's clamp in routing.route: where all scores are 0 the weights become 0 instead of NaN.
    constexpr float kTiny = 1.17549435e-38f;  // the smallest normal number
    if (sum < kTiny) sum = kTiny;
    if (lane >= top_k) return;
    p.chosen[token * top_k + lane] = mine;
    p.weights[token * top_k + lane] = (p.normalize ? __fdiv_rn(score, sum) : score) * p.scale;
}

template <Input kInput>
const char* start_route(const RouteArgs& args) {
    const RouteParams& p = args.params;
    const uint32_t words = kRouteWarps * static_cast<uint32_t>(2 * p.experts + p.groups);
    return launch(route_tokens<kInput>,
                  {.blocks = ceil_div(p.tokens, kRouteWarps),
                   .threads = 32 * kRouteWarps,
                   .shared_bytes = 4 * words,
                   .stream = args.stream,
                   .early = true},
                  p);
}

extern "C" const char* gemm_ladder_launch(const RouteArgs* args) {
    return with_input(args->input, [&]<Input kInput>() { return start_route<kInput>(*args); });
}
