// The training kernel: FP8 products with a scale for each 1x128 run of both operands, and an FP32 output that is
// written or added to. It computes weight gradients, dense, and grouped along K for a mixture of experts.
//
// D[g][m, n] (+)= sum over K blocks of (A[g][m, block] . B[g][n, block]) * (sfa[m, block] * sfb[n, block])
//
// All groups have the same m and n, and each its own k. The scales of all groups lie in one matrix each, group after
// group. The kernel is persistent, and one launch walks all groups' tiles. The tensor maps of every group are
// parameters of the launch: k is known on the host, so nothing has to be encoded on the GPU.
//
// The steps are those of rung s7_persistent. For each tile
//   1. the producer, one elected thread of warp 0, loads K block after K block into the ring of stages: the tiles of A
//      and B and their scales, of which a K block has tile_m and tile_n. Where k ends inside a K block, the copy engine
//      fills the rest with zeros;
//   2. the consumers, two warpgroups, multiply and promote: total = fmaf(partial, scale_a * scale_b, total), K block
//      after K block in order, starting from 0. A result's bits depend on no tile size and on no schedule;
//   3. they pack their totals into shared memory, and the copy engine writes them to D, or adds them to it in L2.
//
// The promotion is what this kernel is about: with a scale for each column, too, every accumulator takes an FMUL
// besides its FFMA. Factors says when the scales are loaded, and NOTES.md what that decides. The mbarriers are:
//
//     producer --- 1 arrival (expect_tx), and the bytes of its loads ---+
//        ^         and of those that the neighbour multicasts           +--> full[stage] ---> consumers
//        |                                                                                      |
//        +---- empty[stage] <--- 1 arrival from each of their warps, and with multicast from the neighbour's
#pragma once

#include <ptx.cuh>  // in <>: the emulator must find its own

#include "config_1d1d.cuh"
#include "layout.cuh"
#include "tiles_1d1d.cuh"

// All threads of all CTAs of the cluster arrive and wait. The warp converges first: barrier.cluster is .aligned.
__device__ inline void meet() {
    __syncwarp();
    ptx::barrier_cluster_arrive();
    ptx::barrier_cluster_wait();
}

template <Config kC>
struct Gemm : Geometry<kC> {
    using G = Geometry<kC>;
    using G::kB, G::kScaleA, G::kScaleB, G::kBytesStage;
    using G::kCluster, G::kSlices, G::kSliceM, G::kRegisters, G::kPairs, G::kWarpgroup;

    static __device__ uint32_t smem(uint32_t offset) { return ptx::shared_memory() + offset; }

    // A position in the ring: the addresses of a stage and of its mbarriers, and the parity of the phase of `full` in
    // which this round's loads arrive. The producer waits for `empty` with the opposite parity.
    struct Ring {
        uint32_t stage = smem(G::kRing), full = smem(G::kFull), parity = 0;
        __device__ uint32_t empty() const { return full + G::kEmpty - G::kFull; }
        __device__ void advance() {
            stage += kBytesStage, full += 8;
            if (full == smem(G::kEmpty)) stage = smem(G::kRing), full = smem(G::kFull), parity ^= 1;
        }
    };

    // ---- Producer

    static __device__ void produce(const Params<kC>& p) {
        Ring ring;
        int described = 0;  // groups whose tensor maps have been prefetched
        Tiles<kC> tiles(p);
        for (Tile tile; tiles.next(tile);) {
            const TensorMap *a = &p.a[tile.group], *b = &p.b[tile.group];
            for (; described < tile.group + 2 && described < p.groups; ++described) {  // the next group's, too
                ptx::prefetch_tensormap(&p.a[described]);
                ptx::prefetch_tensormap(&p.b[described]);
            }
            const int blocks = p.blocks[tile.group], scale_row = p.scale_row[tile.group];
#pragma unroll 1
            for (int block = 0; block < blocks; ++block, ring.advance()) {
                ptx::mbarrier_wait_parity(ring.empty(), ring.parity ^ 1);
                ptx::mbarrier_arrive_expect_tx(ring.full, G::kBytesLoads);
                load<kC.share == Share::kA>(ring.stage, a, ring.full, block * kScaleK, tile.row, kC.tile_m);
                load<kC.share == Share::kB>(ring.stage + kB, b, ring.full, block * kScaleK, tile.column, kC.tile_n);
                ptx::cp_async_bulk_tensor_2d(ring.stage + kScaleA, &p.sfa, ring.full, tile.row, scale_row + block);
                ptx::cp_async_bulk_tensor_2d(ring.stage + kScaleB, &p.sfb, ring.full, tile.column, scale_row + block);
            }
        }
    }

    // Loads `rows` rows of an operand. With multicast, each CTA of the cluster loads half of them for both.
    template <bool kMulticast>
    static __device__ void load(uint32_t shared, const TensorMap* map, uint32_t full, int x, int y, int rows) {
        if constexpr (kMulticast) {
            const int row = ptx::cluster_ctarank() * (rows / kCluster);
            ptx::cp_async_bulk_tensor_2d_multicast(shared + row * kSwizzleRow, map, full, x, y + row, G::kEveryCta);
        } else {
            ptx::cp_async_bulk_tensor_2d(shared, map, full, x, y);
        }
    }

    // ---- Consumers: multiply and promote

    // The scales with which a thread promotes its partial sums. load() loads A's, of the thread's two rows in each
    // slice, and the first pairs of B's, with which the promotion can begin at once. promote() loads the other pairs:
    // most registers hold accumulators. So the stage is released after it.
    struct Factors {
        float of_a[kSlices][2];
        float2 ahead[kC.ahead > 0 ? kC.ahead : 1];
        uint32_t of_b;  // the address of the thread's first pair of B's scales

        __device__ float2 load_pair(int i) const { return ptx::ld_shared<float2>(of_b + i * 8 * sizeof(float)); }

        // Loads from a stage, for this thread's first row and column in the tile.
        __device__ void load(uint32_t stage, int row, int column) {
#pragma unroll
            for (int i = 0; i < kSlices * 2; ++i)
                of_a[i / 2][i % 2] =
                    ptx::ld_shared<float>(stage + kScaleA + (i / 2 * kSliceM + row + i % 2 * 8) * sizeof(float));
            of_b = stage + kScaleB + column * sizeof(float);
#pragma unroll
            for (int i = 0; i < kC.ahead; ++i) ahead[i] = load_pair(i);
        }
        // Of every eight columns a thread has four accumulators: of two rows, a pair of columns each.
        __device__ void promote(float (&total)[kRegisters], const float (&partial)[kRegisters], int slice) const {
            const auto [upper, lower] = of_a[slice];
#pragma unroll
            for (int i = 0; i < kPairs; ++i) {
                const float2 b = i < kC.ahead ? ahead[i] : load_pair(i);
                const float factors[] = {upper * b.x, upper * b.y, lower * b.x, lower * b.y};
#pragma unroll
                for (int j = 0; j < 4; ++j) total[4 * i + j] = fmaf(partial[4 * i + j], factors[j], total[4 * i + j]);
            }
        }
    };

    // Multiplies one K block, slice after slice. While this consumer promotes, the other one has the tensor cores.
    static __device__ void multiply_block(float (&total)[kSlices][kRegisters], Ring& ring, int first_row, int row,
                                          int column) {
        float partial[kRegisters];
        Factors factors;
        ptx::mbarrier_wait_parity(ring.full, ring.parity);
        if constexpr (kSlices == 1) factors.load(ring.stage, row, column);
        const uint64_t desc = smem_descriptor(ring.stage);
        const uint64_t desc_a = advance(desc, first_row * kSwizzleRow), desc_b = advance(desc, kB);
#pragma unroll
        for (int slice = 0; slice < kSlices; ++slice) {
            ptx::wgmma_fence();
#pragma unroll
            for (int k = 0; k < kScaleK; k += kWgmmaK)
                ptx::wgmma<kC.tile_n>(partial, advance(desc_a, slice * kSliceM * kSwizzleRow + k), advance(desc_b, k),
                                      k != 0);
            ptx::wgmma_commit_group();
            if (kSlices > 1 && slice == 0) {
                // NOTES: with two slices this order is faster by 2 to 4 %, with one it is not. __syncwarp keeps ptxas
                // from moving the loads in front of the WGMMAs.
                __syncwarp();
                factors.load(ring.stage, row, column);
            }
            ptx::wgmma_wait_group<0>();
            factors.promote(total[slice], partial, slice);
        }
        release(ring.empty());
        ring.advance();
    }

    // This warp has finished with a stage. It tells every CTA whose producer writes into the stage.
    static __device__ void release(uint32_t empty) {
        __syncwarp();
        if constexpr (kCluster > 1) {
            if (ptx::laneid() < kCluster) ptx::mbarrier_arrive_cluster(ptx::mapa(empty, ptx::laneid()));
        } else {
            if (ptx::laneid() == 0) ptx::mbarrier_arrive(empty);
        }
    }

    static __device__ void consume(const Params<kC>& p, int consumer) {
        const int thread = threadIdx.x % kWarpgroup, first_row = consumer * kWgmmaM;
        const int row = first_row + accumulator_row(thread, 0), column = accumulator_column(thread, 0);
        Ring ring;
        Tiles<kC> tiles(p);
        for (Tile tile; tiles.next(tile);) {
            float total[kSlices][kRegisters] = {};  // (kSlices, kWgmmaM, tile_n), over the warpgroup's threads
#pragma unroll 1
            for (int block = 0, blocks = p.blocks[tile.group]; block < blocks; ++block)
                multiply_block(total, ring, first_row, row, column);
            store(total, p, consumer, thread, tile);
        }
        // Wait until shared memory has been read. Kernel exit completes the writes to D.
        if (thread == 0) ptx::cp_async_bulk_wait_group_read<0>();
    }

    // ---- Consumers: epilogue

    static constexpr uint32_t kHalf = kBoxN / 2 * sizeof(float);  // bytes of half a row of a box

    // Writes a thread's 16 accumulators of a box to shared memory, a pair of columns at a time: of rows `row` and
    // row + 8, from `column` on. The 16 lanes whose pairs are stored at once have four rows. In two of these the same
    // columns lie in the same banks, in spite of the swizzle, so odd rows store the box's right half first.
    static __device__ void pack(uint32_t box, const float* t, int row, int column) {
        const bool odd = row % 2;
        const uint32_t at = box + (swizzle_128b(row * kSwizzleRow + column * sizeof(float)) ^ (odd ? kHalf : 0));
#pragma unroll
        for (int i = 0; i < kBoxN / 4; i += 2) {
            const float2 left{t[i], t[i + 1]}, right{t[i + kBoxN / 4], t[i + kBoxN / 4 + 1]};
            const uint32_t pair = (at ^ i / 4 * 8 * sizeof(float)) + i / 2 % 2 * 8 * kSwizzleRow;
            ptx::st_shared(pair, odd ? right : left);
            ptx::st_shared(pair ^ kHalf, odd ? left : right);
        }
    }

    // Packs a consumer's totals into boxes of shared memory, swizzled, which the copy engine writes to D or adds to it.
    static __device__ void store(const float (&total)[kSlices][kRegisters], const Params<kC>& p, int consumer,
                                 int thread, const Tile& tile) {
        const uint32_t buffer = smem(consumer * G::kBytesD);
        const int row = accumulator_row(thread, 0), column = accumulator_column(thread, 0);
        const TensorMap* d = &p.d[tile.group];
#pragma unroll
        for (int round = 0; round * G::kRound < G::kBoxes; ++round) {
            const int begin = round * G::kRound, end = begin + G::kRound < G::kBoxes ? begin + G::kRound : G::kBoxes;
            const uint32_t first = buffer + round % G::kRoundsHeld * G::kRound * G::kBytesBox;
            if (thread == 0) {  // has the copy engine read what is in the way? Of the last tile, everything
                if (round == 0)
                    ptx::cp_async_bulk_wait_group_read<0>();
                else if (round >= G::kRoundsHeld)
                    ptx::cp_async_bulk_wait_group_read<G::kRoundsHeld - 1>();
            }
            if (round == 0 || round >= G::kRoundsHeld) ptx::bar_sync(1 + consumer, kWarpgroup);
#pragma unroll
            for (int box = begin; box < end; ++box)
                pack(first + (box - begin) * G::kBytesBox, &total[box / G::kBoxesN][box % G::kBoxesN * (kBoxN / 2)],
                     row, column);
            ptx::fence_proxy_async();
            ptx::bar_sync(1 + consumer, kWarpgroup);
            if (thread == 0) {
                for (int box = begin; box < end; ++box) {
                    const uint32_t from = first + (box - begin) * G::kBytesBox;
                    const int x = tile.column + box % G::kBoxesN * kBoxN;
                    const int y = tile.row + box / G::kBoxesN * kSliceM + consumer * kWgmmaM;
                    if (p.accumulate)
                        ptx::cp_reduce_async_bulk_tensor_2d_add(d, from, x, y);
                    else
                        ptx::cp_async_bulk_tensor_2d_store(d, from, x, y);
                }
                ptx::cp_async_bulk_commit_group();
            }
        }
    }
};

template <Config kC>
__global__ void __launch_bounds__(Geometry<kC>::kThreads, 1)
    training_fp8_gemm_1d1d(const __grid_constant__ Params<kC> p) {
    using G = Gemm<kC>;
    if (threadIdx.x == G::kWarpgroup) ptx::prefetch_tensormap(&p.sfa), ptx::prefetch_tensormap(&p.sfb);
    if (threadIdx.x == 0) {
        for (int stage = 0; stage < kC.stages; ++stage) {
            ptx::mbarrier_init(G::smem(G::kFull + stage * 8), 1);  // the producer's expect_tx
            ptx::mbarrier_init(G::smem(G::kEmpty + stage * 8), G::kCluster * G::kConsumers * 4);  // one per warp
        }
        ptx::fence_mbarrier_init();
    }
    ptx::griddepcontrol_wait();  // before anything is read that a kernel ahead may write, or written that it may read
    if constexpr (G::kCluster > 1)
        meet();  // both CTAs' mbarriers exist before either sends
    else
        __syncthreads();

    // Roles: warpgroup 0 is the producer's. Why the warp's number is shuffled and the thread elected: production's
    // gemm.cuh says it.
    const int warp = ptx::shfl_sync_idx(threadIdx.x / 32, 0);
    if (warp < G::kWarpgroup / 32) {
        ptx::setmaxnreg_dec<40>();
        if (warp == 0 && ptx::elect_sync()) G::produce(p);
    } else {
        ptx::setmaxnreg_inc<232>();
        G::consume(p, ptx::shfl_sync_idx(threadIdx.x / G::kWarpgroup, 0) - 1);
    }
    if constexpr (G::kCluster > 1) meet();  // no CTA exits while its neighbour may still send to it
}
