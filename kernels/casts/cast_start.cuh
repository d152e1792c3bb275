// The launchers of the casts: one function for each kind of cast, which chooses among its kernels by what the tensors
// allow. A library has the kernels of one kind, one activation and one type of x. operands.py has seen to it that all
// runs of 128 numbers can be counted with 31 bits.
#pragma once

#include <algorithm>

#include "cast_per_token.cuh"
#include "cast_tiles.cuh"
#include "launch.cuh"

// The argument of a launcher, filled in by Python (launching.py).
struct CastArgs {
    CastParams params;
    int64_t num_sms;
    void* stream;  // cudaStream_t; ignored by the emulator
};

// Whether rows of x can be loaded 16 bytes at a time, and their codes stored 8 at a time. Turned codes are stored 16 at
// a time in any case, as operands.py lays them out for it.
template <Input kInput>
bool in_pieces(const CastParams& p, bool turned) {
    const int64_t bytes = Piece<kInput>::kBytes;
    const auto whole = [](int64_t size, int64_t of) { return size % of == 0; };
    return whole(p.k, kPiece) && p.x_column == 1 && whole(reinterpret_cast<int64_t>(p.x), 16) &&
           whole(reinterpret_cast<int64_t>(p.weight), 16) && whole(p.x_row * bytes, 16) &&
           whole(p.x_group * bytes, 16) &&
           (turned || (whole(p.codes_row, kPiece) && whole(p.codes_group, kPiece) &&
                       whole(reinterpret_cast<int64_t>(p.codes), kPiece)));
}

// Whether rows are made of x's own, without a gather, and have whole runs; and whether a row's bytes, and those from
// one row to the next, can be counted with 32 bits.
template <Input kInput>
bool in_whole_runs(const CastParams& p) {
    return !p.rows && p.k % kScaleK == 0 && p.x_row * Piece<kInput>::kBytes <= UINT32_MAX &&
           p.k * Piece<kInput>::kBytes <= UINT32_MAX;
}

// The same for all rows of one matrix.
template <Input kInput>
bool in_one_matrix(const CastParams& p) {
    return in_whole_runs<kInput>(p) && !p.counts && p.groups == 1;
}

template <typename Kernel>
const char* start_kernel(Kernel kernel, const CastArgs& args, LaunchConfig config) {
    config.stream = args.stream, config.early = true;
    return launch(kernel, config, args.params);
}

template <Input kInput, Before kBefore, bool kVector, int kRows, bool kSkips = false, int kLines = 1>
const char* start_runs(const CastArgs& args) {
    const CastParams& p = args.params;
    const int64_t units = p.groups * ceil_div(p.m, kRows * kLines) * kLines * ceil_div(p.k, kScaleK);
    return start_kernel(fp8_cast_per_token<kInput, kBefore, kVector, kRows, kSkips, kLines>, args,
                        {.blocks = ceil_div(units, kThreads / kRunLanes), .threads = kThreads});
}

template <Input kInput, bool kGroups>
const char* start_silu(const CastArgs& args, uint32_t shared_bytes) {
    return start_kernel(fp8_cast_silu<kInput, kGroups>, args,
                        {.blocks = args.num_sms * kSiluCtasAnSm,
                         .threads = kThreads,
                         .shared_bytes = shared_bytes,
                         .blocks_an_sm = kSiluCtasAnSm});
}

template <Input kInput, Before kBefore>
const char* start_per_token(const CastArgs& args) {
    constexpr int kMostRows = kBefore == Before::kSiluAndMul || kInput == Input::kFp32 ? 2 : 4;
    constexpr int64_t kThreadsAnSm = 2048;
    constexpr int64_t kManyRunsAnSm = 990;  // 2^24 numbers on 132 SMs, which with their codes fill L2 (NOTES.md)
    const CastParams& p = args.params;
    const int64_t runs = p.groups * p.m * ceil_div(p.k, kScaleK);
    if (!in_pieces<kInput>(p, false)) return start_runs<kInput, kBefore, false, 1>(args);
    // So few runs that the GPU has room for all at once.
    if (runs * kRunLanes <= args.num_sms * kThreadsAnSm) return start_runs<kInput, kBefore, true, 1>(args);
    if constexpr (kBefore == Before::kSiluAndMul && kInput != Input::kFp32)
        if (in_whole_runs<kInput>(p)) {
            CastArgs of_groups = args;
            if (p.ends) {  // the groups lie in one matrix
                CastParams& q = of_groups.params;
                q.groups = p.ends_count, q.x_group = q.codes_group = q.scale_group = 0;
            }
            const int64_t groups = of_groups.params.groups;
            // Rows are counted with 32 bits, even if what counts and ends say makes no sense.
            const bool counted = groups <= kMostGroups && groups * p.m <= INT32_MAX;
            if (in_one_matrix<kInput>(p) && !(p.ends && counted)) return start_silu<kInput, false>(args, 0);
            if (counted) return start_silu<kInput, true>(of_groups, RowsOfGroups::shared_bytes(groups));
        }
    if (p.ends && p.rows) return start_runs<kInput, kBefore, true, kMostRows, true>(args);
    if constexpr (kBefore == Before::kNothing && kInput != Input::kFp32)
        if (!p.rows && p.m >= 2 * kMostRows && runs >= args.num_sms * kManyRunsAnSm)
            return start_runs<kInput, kBefore, true, kMostRows, false, 2>(args);
    return start_runs<kInput, kBefore, true, kMostRows>(args);
}

// Whether there are so many rows of one matrix, whose pieces a CTA can hold, that CTAs take row after row. With fewer,
// 256 threads for each end sooner.
template <Input kInput>
bool in_many_rows(const CastArgs& args) {
    constexpr int64_t kLeastRows = 6;                                // of an SM
    constexpr int64_t kMostColumns = 4 * 32 * kMostPieces * kPiece;  // of with_row's largest
    const CastParams& p = args.params;
    return in_one_matrix<kInput>(p) && p.k <= kMostColumns && p.m >= kLeastRows * args.num_sms;
}

// Calls `start` with the Row for rows of k numbers.
template <Input kInput, typename Start>
const char* with_row(int64_t k, const Start& start) {
    const int64_t pieces = ceil_div(k, 32 * kPiece);  // of a warp
    if (pieces <= 2) return start(Row<kInput, 1, 2>{});
    if (pieces <= 4) return start(Row<kInput, 1, 4>{});
    if (pieces <= 6) return start(Row<kInput, 1, 6>{});
    if (pieces <= 8) return start(Row<kInput, 1, 8>{});
    if (pieces <= 12) return start(Row<kInput, 2, 6>{});
    if (pieces <= 16) return start(Row<kInput, 2, 8>{});
    if (pieces <= 24) return start(Row<kInput, 4, 6>{});
    return start(Row<kInput, 4, 8>{});
}

template <typename R, typename Kernel>
const char* start_rows(Kernel kernel, const CastArgs& args, uint32_t shared_bytes) {
    return start_kernel(kernel, args,
                        {.blocks = std::min(args.params.m, args.num_sms * R::kCtasAnSm),
                         .threads = R::kThreads,
                         .shared_bytes = shared_bytes,
                         .blocks_an_sm = R::kCtasAnSm});
}

// What each row is multiplied by, ahead of the casts of tiles.
template <Input kInput>
const char* start_row_roots(const CastArgs& args, bool pieces) {
    const CastParams& p = args.params;
    if constexpr (kInput != Input::kFp32)
        if (pieces && in_many_rows<kInput>(args))
            return with_row<kInput>(
                p.k, [&]<typename R>(R) { return start_rows<R>(fp8_cast_row_roots_rows<R>, args, 2 * kBytesSums); });
    return start_kernel(pieces ? fp8_cast_row_roots<kInput, true> : fp8_cast_row_roots<kInput, false>, args,
                        {.blocks = p.groups * p.m, .threads = kThreads, .shared_bytes = kBytesSums});
}

template <Input kInput, Before kBefore, Kind kKind>
const char* start_tile(const CastArgs& args) {
    const CastParams& p = args.params;
    const bool pieces = in_pieces<kInput>(p, kKind == Kind::kChannelTurned);
    if constexpr (kBefore == Before::kRmsNorm)
        if (const char* error = start_row_roots<kInput>(args, pieces)) return error;
    if constexpr (kBefore != Before::kNothing && kInput != Input::kFp32)
        if (pieces && in_one_matrix<kInput>(p)) {
            using T = NextTile<kKind>;
            constexpr int kCtasAnSm = kTilesCtasAnSm<kKind>;
            const int64_t tiles = ceil_div(p.m, kTile) * (p.k / T::kColumns), most = args.num_sms * kCtasAnSm;
            // It pays to load ahead where an SM has one CTA, and that more than one tile.
            constexpr bool kMayBeAhead = kCtasAnSm == 1;
            const auto kernel = kMayBeAhead && tiles > most ? fp8_cast_tiles<kInput, kBefore, kKind, kMayBeAhead>
                                                            : fp8_cast_tiles<kInput, kBefore, kKind, false>;
            return start_kernel(kernel, args,
                                {.blocks = std::min(tiles, most),
                                 .threads = T::kThreads,
                                 .shared_bytes = T::shared_bytes(kKind),
                                 .blocks_an_sm = kCtasAnSm});
        }
    const int64_t tiles = p.groups * ceil_div(p.m, kTile) * ceil_div(p.k, kTile);
    using T = WholeTile<kInput, kBefore>;
    const auto kernel =
        pieces ? fp8_cast_tile<kInput, kBefore, kKind, true> : fp8_cast_tile<kInput, kBefore, kKind, false>;
    const uint32_t ctas_an_sm = tile_ctas_an_sm(kInput, kBefore, pieces);
    return start_kernel(
        kernel, args,
        {.blocks = tiles, .threads = T::kThreads, .shared_bytes = T::shared_bytes(kKind), .blocks_an_sm = ctas_an_sm});
}

template <Input kInput>
const char* start_rms_norm(const CastArgs& args) {
    const CastParams& p = args.params;
    const int64_t rows = p.groups * p.m, passes = ceil_div(p.k, kThreads * kPiece);
    const auto start = [&](auto kernel) {
        return start_kernel(kernel, args, {.blocks = rows, .threads = kThreads, .shared_bytes = kBytesSums});
    };
    if (!in_pieces<kInput>(p, false)) return start(fp8_cast_rms_norm<kInput, false, 0>);
    if (passes > 4) return start(fp8_cast_rms_norm<kInput, true, 0>);
    if constexpr (kInput != Input::kFp32)
        if (in_many_rows<kInput>(args))
            return with_row<kInput>(p.k, [&]<typename R>(R) {
                return start_rows<R>(fp8_cast_rms_norm_rows<R>, args, 2 * kBytesSums + R::kBytesWeights);
            });
    return start(passes <= 1   ? fp8_cast_rms_norm<kInput, true, 1>
                 : passes <= 2 ? fp8_cast_rms_norm<kInput, true, 2>
                               : fp8_cast_rms_norm<kInput, true, 4>);
}

template <Kind kKind, Before kBefore, Input kInput>
const char* start_cast(const CastArgs& args) {
    if constexpr (kBefore == Before::kRmsNorm && kKind == Kind::kToken)
        return start_rms_norm<kInput>(args);
    else if constexpr (kKind == Kind::kToken)
        return start_per_token<kInput, kBefore>(args);
    else
        return start_tile<kInput, kBefore, kKind>(args);
}
