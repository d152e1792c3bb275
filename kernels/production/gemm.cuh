// The production kernel: rung 5 with everything that a shape decides made a constant of the compilation.
//
// D[m, n] = sum_k A[m, k] * sfa[m, k / 128] * B[n, k] * sfb[n / 128, k / 128], for one matrix or for groups of them.
#pragma once

#include "config.cuh"
#include "epilogue.cuh"
#include "launch.cuh"
#include "layout.cuh"
#include "ptx.cuh"
#include "scheduler.cuh"

// Every thread of every block of the cluster.
__device__ inline void meet() {
    __syncwarp();
    ptx::barrier_cluster_arrive();
    ptx::barrier_cluster_wait();
}

constexpr int gcd(int a, int b) { return b ? gcd(b, a % b) : a; }

template <Config kC>
struct Gemm {
    static constexpr int kWarpgroup = 128;
    static constexpr int kConsumers = kC.consumers_m * kC.consumers_n;
    static constexpr int kThreads = (1 + kConsumers) * kWarpgroup;
    static constexpr int kSliceM = Scheduler<kC>::kSliceM, kSlices = Scheduler<kC>::kSlices;
    static constexpr int kConsumerN = kC.tile_n / kC.consumers_n;
    static constexpr int kRegisters = kConsumerN / 2;
    // Registers a thread that a consumer takes while the loader keeps 40; one alone on its SM has enough from the
    // start.
    static constexpr int kTakes = kConsumers > 1 ? 232 : kC.blocks_an_sm > 1 ? 216 : 0;
    static constexpr int kSplits = kC.share == Share::kK ? kC.cluster : 1;
    static constexpr int kBlocks = kC.k / kScaleK;
    static constexpr uint16_t kEveryBlock = (1 << kC.cluster) - 1;

    // Columns that surely share a scale of B, and how many such scales a tile needs for a block of K.
    static constexpr int kSegment = gcd(gcd(kC.tile_n, kScaleN), kConsumerN);
    static constexpr int kSegments = kConsumerN / kSegment;
    static constexpr int kScalesB = (kScaleN - gcd(kC.tile_n, kScaleN) + kC.tile_n - 1) / kScaleN + 1;

    static constexpr int kStoreN = gcd(kConsumerN, 64);  // columns in a box of D
    static constexpr int kBoxes = kConsumerN / kStoreN;  // a slice of a consumer
    static constexpr uint32_t kBytesBox = kWgmmaM * kStoreN * sizeof(uint16_t);
    static constexpr uint32_t kBytesSlice = kBoxes * kBytesBox;
    // Where K is split, a thread's results leave it in pieces of 16 bytes.
    static constexpr int kPieces = kSlices * kRegisters / 4;
    static constexpr uint32_t kBytesPieces = ceil_div(kPieces, kSplits) * kSplits * kWarpgroup * sizeof(float4);
    static constexpr uint32_t kBytesD =  // of a consumer
        kSplits > 1 ? kBytesPieces : ceil_div(kSlices * kBytesSlice, 1024) * 1024;

    static constexpr uint32_t kBytesA = kC.tile_m * kScaleK;
    static constexpr uint32_t kBytesB = kC.tile_n * kScaleK;
    static constexpr uint32_t kBytesScaleA = kC.tile_m * sizeof(float);
    static constexpr uint32_t kBytesLoads = kBytesA + kBytesB + kBytesScaleA + kScalesB * kScaleBox * sizeof(float);
    static constexpr uint32_t kB = kBytesA, kScaleA = kB + kBytesB, kScaleB = kScaleA + kBytesScaleA;
    static constexpr uint32_t kFull = kScaleB + kScalesB * kScalePitch, kEmpty = kFull + 16;
    static constexpr uint32_t kBytesStage = ceil_div(kEmpty + 16, 1024) * 1024;
    static constexpr uint32_t kSharedBytes = kConsumers * kBytesD + kC.stages * kBytesStage;

    static_assert(kConsumers == 1 || kConsumers == 2, "registers for one or two consumers");
    static_assert(kC.tile_m % kSliceM == 0 && kConsumerN % 16 == 0 && kConsumerN <= 256, "whole WGMMA tiles");
    static_assert(kC.k % kScaleK == 0 && kC.n % 8 == 0, "whole promotion blocks; rows of D of whole 16 bytes");
    static_assert(kSharedBytes <= 233472 / kC.blocks_an_sm - 1024, "what a block can have");
    static_assert(kC.share != Share::kA || kC.tile_m % (8 * kC.cluster) == 0, "whole swizzle atoms a block");
    static_assert(kC.share != Share::kB || kC.tile_n % (8 * kC.cluster) == 0, "whole swizzle atoms a block");
    static_assert(kC.share != Share::kB || kC.kind != Kind::kContiguous, "neighbours may have different experts");
    static_assert(kSplits == 1 || kC.kind == Kind::kDense,
                  "a cluster that splits K makes one tile, whichever its group");
    static_assert(kC.kind != Kind::kContiguous || (kSlices <= 2 && 128 % kSliceM == 0),
                  "128 rows are sure to have one expert; where they do not, one slice is multiplied at a time");
    static_assert((kC.share == Share::kNothing) == (kC.cluster == 1), "a cluster shares something");
    static_assert(kC.blocks_an_sm == 1 || (kC.blocks_an_sm == 2 && kConsumers == 1), "registers for two blocks an SM");

    static __device__ uint32_t smem_d(int consumer) { return ptx::shared_memory() + consumer * kBytesD; }
    static __device__ uint32_t smem_stage(int stage) { return smem_d(kConsumers) + stage * kBytesStage; }
    static __device__ uint32_t rank() { return kC.cluster > 1 ? ptx::cluster_ctarank() : 0; }

    // The part of K that this block multiplies.
    static __device__ int first_block() { return kSplits > 1 ? rank() * kBlocks / kSplits : 0; }
    static __device__ int last_block() { return kSplits > 1 ? (rank() + 1) * kBlocks / kSplits : kBlocks; }

    struct Ring {
        uint32_t stage = smem_stage(0), parity = 0;
        __device__ void advance() {
            stage += kBytesStage;
            if (stage == smem_stage(kC.stages)) stage = smem_stage(0), parity ^= 1;
        }
    };

    // Where a tile's scales of B begin: [groups][scale blocks of N][blocks of K].
    static __device__ uint32_t first_scale_b(const Tile& tile) {
        return (tile.group * static_cast<int>(ceil_div(kC.n, kScaleN)) + tile.column / kScaleN) * kBlocks;
    }

    static __device__ void produce(const TensorMap* map_a, const TensorMap* map_b, const TensorMap* map_sfa,
                                   const TensorMap* map_sfb, const GroupedArgs& p) {
        const uint64_t policy_b = ptx::createpolicy_evict_first();
        const int first = first_block(), last = last_block();
        Scheduler<kC> tiles(p);
        Ring ring;
        for (Tile tile; tiles.next(tile);) {
            if (tile.group < 0) continue;
            const uint32_t scale_b = first_scale_b(tile);
#pragma unroll 1
            for (int block = first; block < last; ++block, ring.advance()) {
                const uint32_t full = ring.stage + kFull;
                ptx::mbarrier_wait_parity(ring.stage + kEmpty, ring.parity ^ 1);
                ptx::mbarrier_arrive_expect_tx(full, kBytesLoads);
                load<kC.share == Share::kB, kC.stream_b>(ring.stage + kB, map_b, full, block * kScaleK,
                                                         tile.group * kC.n + tile.column, kC.tile_n, policy_b);
                load<kC.share == Share::kA, false>(ring.stage, map_a, full, block * kScaleK, tile.row, kC.tile_m, 0);
                ptx::cp_async_bulk_tensor_2d(ring.stage + kScaleA, map_sfa, full, tile.scale_column,
                                             tile.scale_row + block);
#pragma unroll
                for (int i = 0; i < kScalesB; ++i)  // what lies outside belongs to columns that go nowhere
                    ptx::cp_async_bulk_tensor_2d(ring.stage + kScaleB + i * kScalePitch, map_sfb, full,
                                                 (scale_b + i * kBlocks + block) / kScaleBox * kScaleBox, 0);
            }
        }
    }

    // The loader's idle warps ask L2 for the first blocks of K of the block's first tile of B. They need neither
    // barriers nor tensor descriptions, so they are some 1000 cycles ahead of the first load.
    static __device__ void prefetch(const GroupedArgs& p) {
        const uint64_t policy = ptx::createpolicy_evict_first();
        const int first = first_block(), blocks = last_block() - first;
        Scheduler<kC> tiles(p);
        Tile tile;
        if (!tiles.next(tile) || tile.group < 0) return;
        const uint32_t bytes = (blocks < kC.prefetch ? blocks : kC.prefetch) * kScaleK;
        for (int row = threadIdx.x - 32; row < kC.tile_n && tile.column + row < kC.n; row += kWarpgroup - 32) {
            const int64_t at = static_cast<int64_t>(tile.group) * kC.n + tile.column + row;
            ptx::cp_async_bulk_prefetch_l2_hint(p.b + at * kC.k + first * kScaleK, bytes, policy);
        }
    }

    // `rows` rows of an operand: each block of the cluster loads its part for all of them, or all for itself.
    template <bool kMulticast, bool kStream>
    static __device__ void load(uint32_t shared, const TensorMap* map, uint32_t full, int x, int y, int rows,
                                uint64_t policy) {
        if constexpr (kMulticast) {
            const int part = rank() * (rows / kC.cluster);
            ptx::cp_async_bulk_tensor_2d_multicast(shared + part * kSwizzleRow, map, full, x, y + part, kEveryBlock);
        } else if constexpr (kStream) {
            ptx::cp_async_bulk_tensor_2d_hint(shared, map, full, x, y, policy);
        } else {
            ptx::cp_async_bulk_tensor_2d(shared, map, full, x, y);
        }
    }

    // Where a consumer is in its tile, and in the ring.
    struct Place {
        int first_row, first_column;  // in the tile, of its 64 rows of each slice
        int row, column;              // of this thread in the tile; of the consumer, from the last scale block of B
        uint32_t scale_b;             // the tile's first scale of B, in this block of K
        Ring ring;
    };

    // The scales that a thread needs for the products of one stage.
    struct Scales {
        float a[kSlices][2], b[kSegments];
        __device__ void load(const Place& at) {
#pragma unroll
            for (int i = 0; i < kSlices * 2; ++i)
                a[i / 2][i % 2] = ptx::ld_shared<float>(at.ring.stage + kScaleA +
                                                        (i / 2 * kSliceM + at.row + i % 2 * 8) * sizeof(float));
#pragma unroll
            for (int i = 0; i < kSegments; ++i) {
                const int which = (at.column + i * kSegment) / kScaleN;
                const uint32_t in_box = (at.scale_b + which * kBlocks) % kScaleBox;
                b[i] = ptx::ld_shared<float>(at.ring.stage + kScaleB + which * kScalePitch + in_box * sizeof(float));
            }
        }
        __device__ void promote(float (&total)[kRegisters], const float (&partial)[kRegisters], int slice) const {
#pragma unroll
            for (int i = 0; i < kRegisters; ++i)
                total[i] = fmaf(partial[i], a[slice][i / 2 % 2] * b[i / 4 * 8 / kSegment], total[i]);
        }
    };

    // The first kCount slices of a tile.
    template <int kCount>
    static __device__ void multiply(float (&total)[kSlices][kRegisters], Place& at) {
        const int first = first_block(), last = last_block();
#pragma unroll kC.unroll
        for (int block = first; block < last; ++block) multiply_block<kCount>(total, at);
    }

    // A tile that has no rows for this consumer: the loader waits for it all the same.
    static __device__ void skip(Place& at) {
#pragma unroll 1
        for (int block = first_block(); block < last_block(); ++block) {
            ptx::mbarrier_wait_parity(at.ring.stage + kFull, at.ring.parity);
            release(at.ring.stage + kEmpty);
            at.ring.advance();
        }
    }

    // One block of K, slice after slice: the other consumer has the tensor cores meanwhile.
    template <int kCount>
    static __device__ void multiply_block(float (&total)[kSlices][kRegisters], Place& at) {
        float partial[kRegisters];
        ptx::mbarrier_wait_parity(at.ring.stage + kFull, at.ring.parity);
        Scales scales;  // read before the first WGMMA: a wait for them would hold up the second
        scales.load(at);
        const uint64_t desc_a = smem_descriptor(at.ring.stage + at.first_row * kSwizzleRow);
        const uint64_t desc_b = smem_descriptor(at.ring.stage + kB + at.first_column * kSwizzleRow);
#pragma unroll
        for (int slice = 0; slice < kCount; ++slice) {
            ptx::wgmma_fence();
#pragma unroll
            for (int k = 0; k < kScaleK; k += kWgmmaK)
                ptx::wgmma<kConsumerN>(partial, advance(desc_a, slice * kSliceM * kSwizzleRow + k), advance(desc_b, k),
                                       k != 0);
            ptx::wgmma_commit_group();
            ptx::wgmma_wait_group<0>();
            if (slice == kCount - 1) {
                release(at.ring.stage + kEmpty);
                at.ring.advance();
                ++at.scale_b;
            }
            scales.promote(total[slice], partial, slice);
        }
    }

    static __device__ void consume(const TensorMap* map_d, const GroupedArgs& p, int consumer) {
        const int thread = threadIdx.x % kWarpgroup;
        Place at;
        at.first_row = consumer % kC.consumers_m * kWgmmaM;
        at.first_column = consumer / kC.consumers_m * kConsumerN;
        at.row = at.first_row + accumulator_row(thread, 0);
        Scheduler<kC> tiles(p, at.first_row);
        for (Tile tile; tiles.next(tile);) {
            at.column = tile.column % kScaleN + at.first_column;
            at.scale_b = first_scale_b(tile) + first_block();
            float total[kSlices][kRegisters] = {};
            if (kC.kind != Kind::kContiguous || (tile.group >= 0 && tile.live == kSlices))
                multiply<kSlices>(total, at);
            else if (kSlices > 1 && tile.group >= 0 && tile.live == 1)
                multiply<1>(total, at);
            else if (tile.group >= 0)
                skip(at);
            tile.row += at.first_row, tile.rows -= at.first_row, tile.column += at.first_column;
            if constexpr (kSplits > 1)
                reduce(total, p, consumer, tile);
            else
                store(total, map_d, p, consumer, tile);
        }
        if (kSplits == 1 && thread == 0) ptx::cp_async_bulk_wait_group_read<0>();  // D itself is the end's affair
    }

    // This warp has finished with a stage. Blocks that multicast into it hear it too.
    static __device__ void release(uint32_t empty) {
        __syncwarp();
        if constexpr (kC.share == Share::kA || kC.share == Share::kB) {
            if (ptx::laneid() < kC.cluster) ptx::mbarrier_arrive_cluster(ptx::mapa(empty, ptx::laneid()));
        } else {
            if (ptx::laneid() == 0) ptx::mbarrier_arrive(empty);
        }
    }

    // A consumer's results to shared memory, swizzled, and from there to D, while the next tile is being multiplied.
    static __device__ void store(const float (&total)[kSlices][kRegisters], const TensorMap* map_d,
                                 const GroupedArgs& p, int consumer, const Tile& tile) {
        const int thread = threadIdx.x % kWarpgroup;
        if (thread == 0) ptx::cp_async_bulk_wait_group_read<0>();  // the last tile has left this buffer
        ptx::bar_sync(1 + consumer, kWarpgroup);
#pragma unroll
        for (int slice = 0; slice < kSlices; ++slice)
            store_shared<kConsumerN, kStoreN>(smem_d(consumer) + slice * kBytesSlice, total[slice]);
        if (kC.kind == Kind::kMasked && tile.rows < kC.tile_m - kSliceM + kWgmmaM) {
            // Some rows are not to be written, and the copy engine cannot leave them out.
            ptx::bar_sync(1 + consumer, kWarpgroup);
            for (int i = thread; i < kSlices * kWgmmaM * (kConsumerN / 8); i += kWarpgroup) {
                const int column = i % (kConsumerN / 8) * 8, r = i / (kConsumerN / 8);
                const int row = r / kWgmmaM * kSliceM + r % kWgmmaM;
                if (row >= tile.rows || tile.column + column >= kC.n) continue;
                const uint32_t box = smem_d(consumer) + r / kWgmmaM * kBytesSlice + column / kStoreN * kBytesBox;
                *reinterpret_cast<uint4*>(p.d + static_cast<int64_t>(tile.row + row) * kC.n + tile.column + column) =
                    ptx::ld_shared<uint4>(box + swizzle<kStoreN * 2>((r % kWgmmaM * kStoreN + column % kStoreN) * 2));
            }
            return;
        }
        ptx::fence_proxy_async();
        ptx::bar_sync(1 + consumer, kWarpgroup);
        if (thread == 0) {
            const int slices = kC.kind == Kind::kContiguous ? tile.slices : kSlices;
            for (int box = 0; box < slices * kBoxes; ++box)
                ptx::cp_async_bulk_tensor_2d_store(
                    map_d, smem_d(consumer) + box / kBoxes * kBytesSlice + box % kBoxes * kBytesBox,
                    tile.column + box % kBoxes * kStoreN, tile.row + box / kBoxes * kSliceM);
            ptx::cp_async_bulk_commit_group();
        }
    }

    // The blocks of a cluster have each a part of the sum over K. Each adds up, and writes, every kSplits-th piece of
    // the tile: the others send it theirs. It adds in the order of the blocks' ranks, so the bits do not depend on who
    // was first. What is a block's own stays in its registers: loops are unrolled for that.
    static __device__ void reduce(const float (&total)[kSlices][kRegisters], const GroupedArgs& p, int consumer,
                                  const Tile& tile) {
        const int thread = threadIdx.x % kWarpgroup, mine = rank();
        // Where block `from`'s part of piece i lies, in the block that adds it up. 16 bytes a lane: no two in one bank.
        const auto place = [&](int i, int from) {
            return smem_d(consumer) + ((i / kSplits * kSplits + from) * kWarpgroup + thread) * sizeof(float4);
        };
        ptx::barrier_cluster_wait();  // for the others to have begun: until then they have no shared memory
#pragma unroll
        for (int i = 0; i < kPieces; ++i) {
            const float* t = &total[0][0] + i * 4;
            if (i % kSplits != mine)
                ptx::st_shared_cluster(ptx::mapa(place(i, mine), i % kSplits), float4{t[0], t[1], t[2], t[3]});
        }
        meet();
#pragma unroll
        for (int i = 0; i < kPieces; ++i) {
            if (i % kSplits != mine) continue;
            const float* t = &total[0][0] + i * 4;
            const auto part = [&](int from) {
                return from == i % kSplits ? float4{t[0], t[1], t[2], t[3]} : ptx::ld_shared<float4>(place(i, from));
            };
            float4 sum = part(0);
#pragma unroll
            for (int from = 1; from < kSplits; ++from) {
                const float4 next = part(from);
                sum.x += next.x, sum.y += next.y, sum.z += next.z, sum.w += next.w;
            }
            const int column = tile.column + accumulator_column(thread, i * 4 % kRegisters);
            const int row = i * 4 / kRegisters * kSliceM + accumulator_row(thread, 0);
            uint16_t* d = p.d + static_cast<int64_t>(tile.row + row) * kC.n + column;
            if (column >= kC.n) continue;
            if (row < tile.rows) *reinterpret_cast<uint32_t*>(d) = ptx::cvt_rn_bf16x2_f32(sum.y, sum.x);
            if (row + 8 < tile.rows) *reinterpret_cast<uint32_t*>(d + 8 * kC.n) = ptx::cvt_rn_bf16x2_f32(sum.w, sum.z);
        }
    }
};

template <Config kC>
__global__ void __launch_bounds__(Gemm<kC>::kThreads, kC.blocks_an_sm)
    s7_production_fp8_gemm(const __grid_constant__ TensorMap map_a, const __grid_constant__ TensorMap map_b,
                           const __grid_constant__ TensorMap map_sfa, const __grid_constant__ TensorMap map_sfb,
                           const __grid_constant__ TensorMap map_d, const __grid_constant__ GroupedArgs p) {
    using G = Gemm<kC>;
    if constexpr (G::kSplits > 1) ptx::barrier_cluster_arrive();  // reduce() waits for it
    if constexpr (kC.prefetch > 0)
        if (threadIdx.x >= 32 && threadIdx.x < G::kWarpgroup) G::prefetch(p);
    if (threadIdx.x == G::kWarpgroup)  // before the first loads ask for them
        for (const TensorMap* map : {&map_a, &map_b, &map_sfa, &map_sfb}) ptx::prefetch_tensormap(map);
    constexpr bool kSends = kC.share == Share::kA || kC.share == Share::kB;
    if (threadIdx.x == 0) {
        constexpr int kSharers = kSends ? kC.cluster : 1;
        for (int stage = 0; stage < kC.stages; ++stage) {
            ptx::mbarrier_init(G::smem_stage(stage) + G::kFull, 1);  // the issuing thread; the bytes count themselves
            ptx::mbarrier_init(G::smem_stage(stage) + G::kEmpty, kSharers * G::kConsumers * 4);  // one arrival a warp
        }
        ptx::fence_mbarrier_init();
    }
    if constexpr (kSends)
        meet();  // nobody sends before every block's barriers exist
    else
        __syncthreads();

    if (threadIdx.x < G::kWarpgroup) {
        if constexpr (G::kTakes > 0) ptx::setmaxnreg_dec<40>();
        if (threadIdx.x == 0) G::produce(&map_a, &map_b, &map_sfa, &map_sfb, p);
        if constexpr (G::kSplits > 1) {  // as the consumers do in reduce()
            __syncwarp();
            ptx::barrier_cluster_wait();
            meet();
        }
    } else {
        if constexpr (G::kTakes > 0) ptx::setmaxnreg_inc<G::kTakes>();
        // The shuffle tells the compiler that the number is the same in all lanes.
        G::consume(&map_d, p, ptx::shfl_sync_idx(threadIdx.x / G::kWarpgroup, 0) - 1);
    }
    if constexpr (kSends) meet();  // nobody leaves while a neighbour may still send to it
}

template <Config kC>
const char* start(const GroupedArgs& p) {
    using G = Gemm<kC>;
    constexpr int kPartA = kC.share == Share::kA ? kC.cluster : 1, kPartB = kC.share == Share::kB ? kC.cluster : 1;
    constexpr Swizzle kSwizzleD = G::kStoreN == 64 ? Swizzle::k128B : G::kStoreN == 32 ? Swizzle::k64B : Swizzle::k32B;
    const int64_t units = Scheduler<kC>::units(p), rows = p.groups_a * p.m, blocks = p.groups_a * G::kBlocks;
    if (units == 0) return nullptr;
    const int64_t scales_b = p.groups * ceil_div(kC.n, kScaleN) * G::kBlocks;
    TensorMap map_a, map_b, map_sfa, map_sfb, map_d;
    if (auto error = tensor_map_2d(&map_a, p.a, rows, kC.k, kC.k, kC.tile_m / kPartA, kScaleK, Swizzle::k128B))
        return error;
    if (auto error =
            tensor_map_2d(&map_b, p.b, p.groups * kC.n, kC.k, kC.k, kC.tile_n / kPartB, kScaleK, Swizzle::k128B))
        return error;
    if (auto error = tensor_map_2d(&map_sfa, p.sfa, blocks, p.m, p.sfa_stride, 1, kC.tile_m, Swizzle::kNone))
        return error;
    if (auto error = tensor_map_2d(&map_sfb, p.sfb, 1, scales_b, ceil_div(scales_b, kScaleBox) * kScaleBox, 1,
                                   kScaleBox, Swizzle::kNone))
        return error;
    if (auto error = tensor_map_2d(&map_d, p.d, rows, kC.n, kC.n, kWgmmaM, G::kStoreN, kSwizzleD)) return error;
    const int64_t at_once = p.num_sms * kC.blocks_an_sm, most = at_once < kC.cluster ? 1 : at_once / kC.cluster;
    // A block that splits K makes one tile: parts of a second one could arrive before the first is added up.
    const int64_t clusters = units < most || G::kSplits > 1 ? units : most;
    return launch(s7_production_fp8_gemm<kC>,
                  {.blocks = clusters * kC.cluster,
                   .threads = G::kThreads,
                   .shared_bytes = G::kSharedBytes,
                   .stream = p.stream,
                   .cluster = static_cast<uint32_t>(kC.cluster),
                   .blocks_an_sm = static_cast<uint32_t>(kC.blocks_an_sm)},
                  map_a, map_b, map_sfa, map_sfb, map_d, p);
}
