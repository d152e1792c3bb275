// Rung 9, the production kernel: rung 7, with n, k and the configuration (config.cuh) as compile-time constants, and
// with the grouped layouts. m, the number of groups and the number of SMs are arguments of a launch.
//
//   python -m gemm_ladder compare --rungs s9_production --shapes 256x256x256
//
// D[m, n] = sum_k A[m, k] * sfa[m, k / 128] * B[n, k] * sfb[n / 128, k / 128], for one matrix or for groups of them.
//
// The steps are rung 7's. For each tile that scheduler.cuh gives this CTA
//   1. the producer, one elected thread of warp 0, loads K block after K block into the ring of stages. With the first
//      of them it also loads the tile's scales of B, for all K blocks at once: produce();
//   2. the consumer warpgroups multiply and promote, slice after slice: consume(), multiply_block();
//   3. they store D. Without split-K, store() packs the tile into shared memory and the copy engine writes it to D.
//      With split-K, reduce() adds up the partial sums of the cluster's CTAs and writes D from registers.
// With a tail (config.cuh) the loop over tiles runs twice: over the tiles of the main size, then over the tail's.
//
// ---- Before the first tile. start.cuh launches the kernel so that it may begin while the kernel ahead of it in the
// stream is still running. Every thread executes griddepcontrol.wait before the barrier that precedes the first load.
// So A, B, their scales, m_indices and masked_m are read, and D is written, only after the kernel ahead has ended and
// its writes are visible. This kernel in turn ends only after its own wait, so waiting for the kernel ahead is waiting
// for all that came before it. What runs before the wait overlaps the end of the kernel ahead:
//   - The mbarriers are initialised, and the tensor maps are fetched, which are parameters of the launch: no kernel
//     writes them.
//   - In the dense layout an idle thread prefetches the first K blocks of the CTA's first tile of B into L2, by tensor
//     boxes: prefetch(). This is safe even where the kernel ahead is still writing B: a prefetch brings nothing into
//     the SM, and the writes go to L2, too, so the loads after the wait find them. In a grouped layout memory says
//     which group's B the tile needs, and the kernel ahead may write that, so there prefetch() waits first.
// griddepcontrol.launch_dependents, at the kernel's start, lets the kernel behind begin in the same way. It is executed
// only where one tile has room for all rows. With more rows the CTAs that share a tile of B should run side by side,
// and those of a kernel that begins early are given the SMs in the order in which these become free: large products
// took up to 1.5 times as long. A kernel that does not execute it lets the kernel behind begin when its CTAs have
// ended.
//
// The mbarriers of one CTA. With Share::kA or kB the CTAs of the cluster multicast to each other.
//
//     producer --- 1 arrival (expect_tx); the bytes of its loads -------------+
//        ^                                                                    +--> full[stage]
//        |     neighbours' producers --- the bytes that they multicast -------+         |
//        |                                                                              |
//        | phase complete: load the stage again                                         | phase complete:
//        |                                                                              v the bytes are there
//   empty[stage] <----------------------------------- consumers, and with multicast the neighbours' consumers
//                 1 arrival from each of their warps
//
// B's scales lie after the ring, in buffers that the tiles use in turn. Their bytes count on `full` of the tile's first
// stage. No barrier says that a buffer is free: geometry.cuh explains why `empty` is enough.
//
// ---- The cluster barrier. barrier.cluster completes when all threads of all CTAs of the cluster have arrived. A
// thread may not arrive again before it has waited, so every thread executes every arrive and wait below, those
// of the producer's warpgroup too.
//
// With Share::kA or kB:
//   before the first load   meet(): the mbarriers of all CTAs are initialised. A neighbour's multicast counts its bytes
//                           on this CTA's `full`, and its consumers arrive on this CTA's `empty`.
//   at the kernel's end     meet(): no neighbour will send any more. Without it a CTA could exit, and lose its shared
//                           memory, while a neighbour still arrives on its `empty`.
// With Share::kK (split-K):
//   at the kernel's start   arrive: this CTA runs, so its shared memory exists. The arrival is relaxed because no data
//                           is handed over; a release would wait for earlier writes.
//   in reduce()             wait: all CTAs run, so partial sums may be written to their shared memory.
//   in reduce()             meet(): all partial sums have been written. Arrive releases this CTA's, wait acquires the
//                           neighbours'.
// With split-K three barriers that a reader might expect are not needed. Before the first load: every CTA loads only
// for itself, and __syncthreads() is enough for its own mbarriers. At the end: after the meet() in reduce() no CTA
// sends anything. Between two tiles: a cluster computes only one tile (deal() in start.cuh).
// Without a cluster there is no cluster barrier.
#pragma once

#include "config.cuh"
#include "epilogue.cuh"
#include "geometry.cuh"
#include "launch.cuh"
#include "layout.cuh"
#include "ptx.cuh"
#include "scheduler.cuh"
#include "store.cuh"

// All threads of all CTAs of the cluster arrive and wait. The warp converges first: barrier.cluster is .aligned.
__device__ inline void meet() {
    __syncwarp();
    ptx::barrier_cluster_arrive();
    ptx::barrier_cluster_wait();
}

// The rows that are computed in tiles of one size, with the tensor maps and arguments for them. Part 0 has the main
// tile size, part 1 the tail's.
struct Part {
    TensorMap a, b, sfa, sfb, d;
    GroupedArgs p;
    int first_cluster;     // index of the cluster that gets this part's first unit
    uint32_t bytes_loads;  // of a stage's loads: Geometry::kBytesLoads, or less if A has fewer rows than a tile
};

template <Config kC>
struct Parts {
    Part part[kC.tail_m > 0 ? 2 : 1];
};

template <Config kC>
struct Gemm : Geometry<kC>, SharedMemory<kC> {
    using One = Geometry<kC>;
    using Shared = SharedMemory<kC>;
    using One::kB, One::kScaleA, One::kBoxScalesB, One::kBoxesScalesB, One::kPitchScalesB;
    using One::kStoreN, One::kBoxes, One::kBytesBox, One::kBytesSlice, One::kPieces;
    using One::kTakes, One::kSplits, One::kBlocks, One::kEveryBlock, One::kSegment, One::kSegments, One::kScalesB;
    using One::kWarpgroup, One::kConsumers, One::kThreads, One::kSliceM, One::kSlices, One::kConsumerN, One::kRegisters;
    using Shared::kBytesD, Shared::kBytesStage, Shared::kFull, Shared::kEmpty, Shared::kBytesScales;

    static __device__ uint32_t smem_d(int consumer) { return ptx::shared_memory() + consumer * kBytesD; }
    static __device__ uint32_t smem_stage(int stage) { return smem_d(kConsumers) + stage * kBytesStage; }
    static __device__ uint32_t rank() { return kC.cluster > 1 ? ptx::cluster_ctarank() : 0; }

    // The position of the producer or of a consumer in the ring: the stage's address in shared memory, and the parity
    // of the phase of `full` in which this round's loads arrive. `empty` is one phase behind: the producer waits for it
    // with the opposite parity, so that it does not wait in the first round. There is also the position in the buffers
    // for B's scales, which goes from tile to tile.
    struct Ring {
        uint32_t stage = smem_stage(0), parity = 0;
        // The stage's address as a WGMMA descriptor holds it. It is kept, not computed for each K block, so that it is
        // there as soon as the stage is full.
        uint32_t descriptor_address = smem_stage(0) >> 4;
        uint32_t scales = smem_stage(kC.stages);  // the buffer with B's scales for the tile
        __device__ void advance() {
            stage += kBytesStage, descriptor_address += kBytesStage >> 4;
            if (stage == smem_stage(kC.stages))
                stage = smem_stage(0), descriptor_address = smem_stage(0) >> 4, parity ^= 1;
        }
        __device__ void next_tile() {
            scales += kBytesScales;
            if (scales == ptx::shared_memory() + Shared::kSharedBytes) scales = smem_stage(kC.stages);
        }
    };

    // The K blocks [first_block(), last_block()) that this CTA multiplies: all of them unless K is split.
    static __device__ int first_block() { return kSplits > 1 ? rank() * kBlocks / kSplits : 0; }
    static __device__ int last_block() { return kSplits > 1 ? (rank() + 1) * kBlocks / kSplits : kBlocks; }

    // The index of a tile's first scale of B in sfb, which is [groups][ceil(n / 128)][K blocks].
    static __device__ uint32_t first_scale_b(const Tile& tile) {
        return (tile.group * static_cast<int>(ceil_div(kC.n, kScaleN)) + tile.column / kScaleN) * kBlocks;
    }

    // ---- Producer

    // Loads all tiles of a part. Returns where the ring stands, from where the tail goes on.
    static __device__ Ring produce(const Part& part, Ring ring) {
        const uint64_t policy_b = ptx::createpolicy_evict_first();
        const int first = first_block(), last = last_block();
        Scheduler<kC> tiles(part.p, 0, part.first_cluster);
        for (Tile tile; tiles.next(tile);) {
            if (tile.group < 0) continue;
#pragma unroll 1
            for (int block = first; block < last; ++block, ring.advance()) {
                const uint32_t full = ring.stage + kFull;
                ptx::mbarrier_wait_parity(ring.stage + kEmpty, ring.parity ^ 1);
                ptx::mbarrier_arrive_expect_tx(full, part.bytes_loads + (block == first ? One::kBytesScalesB : 0));
                load<kC.share == Share::kB, kC.stream_b>(ring.stage + kB, &part.b, full, block * kScaleK,
                                                         tile.group * kC.n + tile.column, kC.tile_n, policy_b);
                load<kC.share == Share::kA, false>(ring.stage, &part.a, full, block * kScaleK, tile.row, kC.tile_m, 0);
                ptx::cp_async_bulk_tensor_2d(ring.stage + kScaleA, &part.sfa, full, tile.scale_column,
                                             tile.scale_row + block);
                if (block > first) continue;
                // The tile's scales of B. A box begins at a multiple of kScaleBox floats, so up to three other floats
                // may precede them. Out-of-range scales only affect columns >= n, which are never stored.
#pragma unroll
                for (int i = 0; i < kScalesB * kBoxesScalesB; ++i) {
                    const uint32_t row = i / kBoxesScalesB, box = i % kBoxesScalesB * kBoxScalesB;
                    const uint32_t to = ring.scales + row * kPitchScalesB + box * sizeof(float);
                    const uint32_t from = (first_scale_b(tile) + row * kBlocks + first) / kScaleBox * kScaleBox + box;
                    ptx::cp_async_bulk_tensor_2d(to, &part.sfb, full, from, 0);
                }
            }
            ring.next_tile();
        }
        return ring;
    }

    // One idle thread fetches into L2 the first kC.prefetch K blocks of this CTA's first tile of B, some 1000 cycles
    // before the first load. The head of this file says why it may do so while a kernel ahead is running.
    static __device__ void prefetch(const Part& part) {
        if (kC.kind != Kind::kDense) ptx::griddepcontrol_wait();  // the scheduler reads m_indices or masked_m
        const uint64_t policy = ptx::createpolicy_evict_first();
        Scheduler<kC> tiles(part.p, 0, part.first_cluster);
        Tile tile;
        if (!tiles.next(tile) || tile.group < 0) return;
        for (int first = first_block(), block = first; block < last_block() && block < first + kC.prefetch; ++block)
            ptx::cp_async_bulk_prefetch_tensor_2d_hint(&part.b, block * kScaleK, tile.group * kC.n + tile.column,
                                                       policy);
    }

    // Loads `rows` rows of an operand. With multicast, each CTA of the cluster loads some of them for all CTAs.
    template <bool kMulticast, bool kStream>
    static __device__ void load(uint32_t shared, const TensorMap* map, uint32_t full, int x, int y, int rows,
                                uint64_t policy) {
        if constexpr (kMulticast) {
            const int row = rank() * (rows / kC.cluster);
            ptx::cp_async_bulk_tensor_2d_multicast(shared + row * kSwizzleRow, map, full, x, y + row, kEveryBlock);
        } else if constexpr (kStream) {
            ptx::cp_async_bulk_tensor_2d_hint(shared, map, full, x, y, policy);
        } else {
            ptx::cp_async_bulk_tensor_2d(shared, map, full, x, y);
        }
    }

    // ---- Consumers: multiply and promote

    // What a consumer works on: where in the tile, and where in the ring.
    struct Place {
        int first_row, first_column;  // the consumer's 64 rows of a slice, and its columns, begin here in the tile
        // This thread's first row in the tile, and first_column counted from a multiple of kScaleN: it decides which
        // scale of B a segment has.
        int row, column;
        uint32_t scale_b;  // index in sfb of the first scale of B that is needed; modulo kScaleBox, its place in a box
        uint32_t scales;   // address of the tile's buffer for B's scales, plus 4 bytes per K block already multiplied
        Ring ring;
    };

    // The scales that a thread needs for one stage, in registers.
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
                b[i] = ptx::ld_shared<float>(at.scales + which * kPitchScalesB + in_box * sizeof(float));
            }
        }
        __device__ void promote(float (&total)[kRegisters], const float (&partial)[kRegisters], int slice) const {
#pragma unroll
            for (int i = 0; i < kRegisters; ++i)
                total[i] = fmaf(partial[i], a[slice][i / 2 % 2] * b[i / 4 * 8 / kSegment], total[i]);
        }
    };

    // Multiplies the first kCount slices of a tile, over all K blocks of this CTA.
    template <int kCount>
    static __device__ void multiply(float (&total)[kSlices][kRegisters], Place& at) {
#pragma unroll kC.unroll
        for (int block = first_block(), last = last_block(); block < last; ++block) multiply_block<kCount>(total, at);
    }

    // Passes over the stages of a tile that has no valid rows for this consumer. The producer loads them for the other
    // consumer, and `empty` counts the arrivals of both.
    static __device__ void skip(Place& at) {
#pragma unroll 1
        for (int block = first_block(); block < last_block(); ++block) {
            ptx::mbarrier_wait_parity(at.ring.stage + kFull, at.ring.parity);
            release(at.ring.stage + kEmpty);
            at.ring.advance();
        }
    }

    // Multiplies one K block, slice after slice. While this consumer promotes, another one has the tensor cores: the
    // CTA's second consumer, or the consumer of the SM's second CTA.
    //
    // The stage is released before the last promotion, not after it: once wgmma_wait_group<0> returns, the WGMMAs have
    // read the tiles, and the scales are in registers, so nothing reads the stage any more. Promotion works on
    // registers and takes hundreds of cycles; during these the producer can already refill the stage. It is released
    // after the last slice's wait because every slice reads the same tile of B.
    template <int kCount>
    static __device__ void multiply_block(float (&total)[kSlices][kRegisters], Place& at) {
        float partial[kRegisters];
        ptx::mbarrier_wait_parity(at.ring.stage + kFull, at.ring.parity);
        Scales scales;  // loaded before the first WGMMA: loading them after it would delay the second slice's WGMMAs
        scales.load(at);
        const uint64_t desc = smem_descriptor(0) | at.ring.descriptor_address;
        const uint64_t desc_a = advance(desc, at.first_row * kSwizzleRow);
        const uint64_t desc_b = advance(desc, kB + at.first_column * kSwizzleRow);
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
                at.scales += sizeof(float);
            }
            scales.promote(total[slice], partial, slice);
        }
    }

    // Multiplies and stores all tiles of a part. Returns where the ring stands, from where the tail goes on.
    static __device__ Ring consume(const Part& part, int consumer, Ring ring) {
        const int thread = threadIdx.x % kWarpgroup;
        Place at;
        at.ring = ring;
        at.first_row = consumer % kC.consumers_m * kWgmmaM;
        at.first_column = consumer / kC.consumers_m * kConsumerN;
        at.row = at.first_row + accumulator_row(thread, 0);
        Scheduler<kC> tiles(part.p, at.first_row, part.first_cluster);
        for (Tile tile; tiles.next(tile);) {
            at.column = tile.column % kScaleN + at.first_column;
            at.scale_b = first_scale_b(tile) + first_block(), at.scales = at.ring.scales;
            float total[kSlices][kRegisters] = {};  // (kSlices, kWgmmaM, kConsumerN), over the warpgroup's threads
            // In the contiguous and the psum layout an expert's rows may end in padding. A consumer does not multiply
            // its 64 rows of a slice if they are all padding. tile.live counts the slices that it multiplies; there are
            // four cases:
            //
            //   live == kSlices  It multiplies the whole tile. The dense and the masked layout always do this: in the
            //                    masked layout, skipping slices was slower.
            //   live == 1 of 2   It multiplies the first slice. The second one is padding, or it belongs to another
            //                    expert and is a tile of its own.
            //   live == 0        It multiplies nothing, but waits for the stages and releases them: skip().
            //   group < 0        The whole tile is padding, and the producer loads nothing for it.
            //
            // Slices that are not multiplied stay zero. The number of slices is a template argument because
            // accumulators are registers, which cannot be indexed at run time.
            if (!Scheduler<kC>::kSkips || (tile.group >= 0 && tile.live == kSlices))
                multiply<kSlices>(total, at);
            else if (kSlices > 1 && tile.group >= 0 && tile.live == 1)
                multiply<1>(total, at);
            else if (tile.group >= 0)
                skip(at);
            if (tile.group >= 0) at.ring.next_tile();
            tile.move(at.first_row, at.first_column);
            if constexpr (kC.kind == Kind::kPsum)
                if (tile.padded > tile.rows) clear_rows(total, kSliceM, tile.rows);
            if constexpr (kSplits > 1)
                reduce(total, part.p, consumer, tile);
            else
                store(total, part, consumer, tile);
        }
        // Wait until shared memory has been read. Kernel exit completes the writes to D.
        if (kSplits == 1 && thread == 0) ptx::cp_async_bulk_wait_group_read<0>();
        return at.ring;
    }

    // This warp has finished with a stage. It tells every CTA whose producer writes into the stage: with multicast, all
    // of the cluster.
    static __device__ void release(uint32_t empty) {
        __syncwarp();
        if constexpr (kC.share == Share::kA || kC.share == Share::kB) {
            if (ptx::laneid() < kC.cluster) ptx::mbarrier_arrive_cluster(ptx::mapa(empty, ptx::laneid()));
        } else {
            if (ptx::laneid() == 0) ptx::mbarrier_arrive(empty);
        }
    }

    // ---- Consumers: epilogue

    // Packs a consumer's results into shared memory, swizzled. The copy engine stores them to D while the next tile is
    // being multiplied; only in the masked layout, a group's last tile may be stored by the threads instead.
    static __device__ void store(const float (&total)[kSlices][kRegisters], const Part& part, int consumer,
                                 const Tile& tile) {
        const int thread = threadIdx.x % kWarpgroup;
        if (thread == 0) ptx::cp_async_bulk_wait_group_read<0>();  // the previous tile's stores read this buffer
        ptx::bar_sync(1 + consumer, kWarpgroup);
#pragma unroll
        for (int slice = 0; slice < kSlices; ++slice)
            store_shared<kConsumerN, kStoreN>(smem_d(consumer) + slice * kBytesSlice, total[slice]);
        // The rows after a group's valid ones lie inside D. In the masked layout they must stay as they are, so a TMA
        // store, which writes whole tiles, cannot be used. In the psum layout those of padding are zeros, and a tile's
        // rows are all of one group or its padding; but padding behind the tile has no tile of its own.
        if (kC.kind == Kind::kMasked && tile.rows < kC.tile_m - kSliceM + kWgmmaM) {
            ptx::bar_sync(1 + consumer, kWarpgroup);
            store_rows<kC.n, kConsumerN, kStoreN, kSliceM>(part.p, tile, smem_d(consumer), kBytesSlice, thread);
            return;
        }
        if (kC.kind == Kind::kPsum && tile.padded <= 0) return;  // a unit's tile that lies behind the group
        if (kC.kind == Kind::kPsum && tile.padded > tile.rows)
            store_zeros<kC.n, kConsumerN, kSliceM>(part.p, tile, kC.tile_m);
        ptx::fence_proxy_async();
        ptx::bar_sync(1 + consumer, kWarpgroup);
        if (thread == 0) {
            const int slices = kC.kind == Kind::kContiguous ? tile.slices : kSlices;
            for (int box = 0; box < slices * kBoxes; ++box)
                ptx::cp_async_bulk_tensor_2d_store(
                    &part.d, smem_d(consumer) + box / kBoxes * kBytesSlice + box % kBoxes * kBytesBox,
                    tile.column + box % kBoxes * kStoreN, tile.row + box / kBoxes * kSliceM);
            ptx::cp_async_bulk_commit_group();
        }
    }

    // Split-K: each CTA of the cluster holds the tile's sums over its own range of K. The tile is divided into pieces;
    // a piece is four consecutive accumulators of every thread. The CTA of rank r adds up and stores the pieces r, r +
    // kSplits, and so on: the other CTAs write their partial sums of these pieces into its shared memory. Partial sums
    // are added in the order of the CTAs' ranks, so the bits do not depend on which arrived first. A CTA's own partial
    // sums stay in registers, which is why the loops are unrolled. Those of the others are received in the buffers for
    // D, which leaves the ring's stages undisturbed.
    static __device__ void reduce(const float (&total)[kSlices][kRegisters], const GroupedArgs& p, int consumer,
                                  const Tile& tile) {
        const int thread = threadIdx.x % kWarpgroup, mine = rank();
        // Where the CTA that adds up piece i receives it from CTA `from`. 16 bytes per lane, without bank conflicts.
        const auto place = [&](int i, int from) {
            return smem_d(consumer) + ((i / kSplits * kSplits + from) * kWarpgroup + thread) * sizeof(float4);
        };
        ptx::barrier_cluster_wait();  // all CTAs run, so their shared memory exists
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
            const auto partial = [&](int from) {
                return from == i % kSplits ? float4{t[0], t[1], t[2], t[3]} : ptx::ld_shared<float4>(place(i, from));
            };
            float4 sum = partial(0);
#pragma unroll
            for (int from = 1; from < kSplits; ++from) {
                const float4 next = partial(from);
                sum.x += next.x, sum.y += next.y, sum.z += next.z, sum.w += next.w;
            }
            const int column = tile.column + accumulator_column(thread, i * 4 % kRegisters);
            const int row = i * 4 / kRegisters * kSliceM + accumulator_row(thread, 0);
            uint16_t *d = p.d + (tile.row + row) * p.d_stride + column, *below = d + 8 * p.d_stride;
            if (column >= kC.n) continue;
            if (row < tile.rows) *reinterpret_cast<uint32_t*>(d) = ptx::cvt_rn_bf16x2_f32(sum.y, sum.x);
            if (row + 8 < tile.rows) *reinterpret_cast<uint32_t*>(below) = ptx::cvt_rn_bf16x2_f32(sum.w, sum.z);
        }
    }
};

template <Config kC>
__global__ void __launch_bounds__(Gemm<kC>::kThreads, kC.blocks_an_sm)
    s9_production_fp8_gemm_nt(const __grid_constant__ Parts<kC> parts) {
    using G = Gemm<kC>;
    using Tail = Gemm<exchanged(kC)>;
    // ---- Prologue. The head of this file explains griddepcontrol, and the cluster barrier's steps here, in reduce()
    // and at the end.
    const Part &part = parts.part[0], &tail = parts.part[kC.tail_m > 0 ? 1 : 0];
    if (part.p.m <= kC.tile_m) ptx::griddepcontrol_launch_dependents();   // no CTAs share a tile of B
    if constexpr (G::kSplits > 1) ptx::barrier_cluster_arrive_relaxed();  // this CTA runs; reduce() waits
    if (kC.prefetch > 0 && threadIdx.x == 32) G::prefetch(part);
    if (threadIdx.x == G::kWarpgroup)  // the first loads will need the tensor maps
        for (const TensorMap* map : {&part.a, &part.b, &part.sfa, &part.sfb}) ptx::prefetch_tensormap(map);
    constexpr bool kSends = kC.share == Share::kA || kC.share == Share::kB;
    if (threadIdx.x == 0) {
        constexpr int kSharers = kSends ? kC.cluster : 1;
        for (int stage = 0; stage < kC.stages; ++stage) {
            ptx::mbarrier_init(G::smem_stage(stage) + G::kFull, 1);  // the producer's expect_tx
            ptx::mbarrier_init(G::smem_stage(stage) + G::kEmpty, kSharers * G::kConsumers * 4);  // one arrival per warp
        }
        ptx::fence_mbarrier_init();
    }
    ptx::griddepcontrol_wait();  // before anything is read that a kernel ahead may write, or written that it may read
    if constexpr (kSends)
        meet();  // all CTAs' mbarriers exist before any CTA sends
    else
        __syncthreads();

    // ---- Roles: warpgroup 0 is the producer's, the others are the consumers. The roles go by a warp number that comes
    // from a shuffle, which tells the compiler that all lanes of a warp have the same number and so the same role. If
    // the roles go by threadIdx, nvcc expects divided warps, and the consumers' addresses and descriptors move from
    // uniform to general registers: a K block takes a consumer 95 instructions instead of 76. elect.sync tells the
    // compiler that a single thread produces. If thread 0 produces, nvcc puts each load into a loop over the lanes that
    // might be active: a K block takes the producer 68 instructions instead of 36.
    const int warp = ptx::shfl_sync_idx(threadIdx.x / 32, 0);
    if (warp < G::kWarpgroup / 32) {
        if constexpr (G::kTakes > 0) ptx::setmaxnreg_dec<40>();
        if (warp == 0 && ptx::elect_sync()) {
            const auto ring = G::produce(part, {});
            if constexpr (kC.tail_m > 0) Tail::produce(tail, __builtin_bit_cast(typename Tail::Ring, ring));
        }
        if constexpr (G::kSplits > 1) {  // the same steps as the consumers' in reduce()
            __syncwarp();
            ptx::barrier_cluster_wait();
            meet();
        }
    } else {
        if constexpr (G::kTakes > 0) ptx::setmaxnreg_inc<G::kTakes>();
        const int consumer = ptx::shfl_sync_idx(threadIdx.x / G::kWarpgroup, 0) - 1;
        const auto ring = G::consume(part, consumer, {});
        if constexpr (kC.tail_m > 0) Tail::consume(tail, consumer, __builtin_bit_cast(typename Tail::Ring, ring));
    }
    if constexpr (kSends) meet();  // no CTA exits while a neighbour may still send to it
}
