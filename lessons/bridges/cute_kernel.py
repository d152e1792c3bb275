"""Rung s6_warp_specialized in CuTe DSL, the Python of CUTLASS.

The tile, the ring of stages, the cluster that shares A, the two consumers, the order of the tiles and the
promotion are the rung's.

    python lessons/bridges/compile.py      what the compilers make of it; needs no GPU
    python lessons/bridges/measure.py      on a Hopper GPU: whether it is right, and how fast

Constraints: k is a multiple of 128 and n of 8, A and B are FP8 E4M3 with k contiguous, sfa has m contiguous.
"""

import cuda.bindings.driver as cuda
import cutlass
import cutlass.cute as cute
from cutlass import pipeline
from cutlass.cute.nvgpu import OperandMajorMode, cpasync, warpgroup
from cutlass.utils import LayoutEnum, SmemAllocator, hopper_helpers

TILE = (256, 128, 128)  # m, n, k; n as wide as a scale block of B: one scale of B for the whole tile
STAGES = 4
CLUSTER = (1, 2, 1)  # two CTAs compute tiles side by side, and share A
CONSUMERS = 2  # warpgroups
WARPGROUP = 128  # threads
THREADS = (1 + CONSUMERS) * WARPGROUP
GROUP_M = 8


@cute.jit
def bridge_cute(
    a: cute.Tensor,
    b: cute.Tensor,
    sfa: cute.Tensor,
    sfb: cute.Tensor,
    d: cute.Tensor,
    pinned: cutlass.Constexpr,
    stream: cuda.CUstream,
):
    """a (m, k), b (n, k), sfa (m, k / 128) with m contiguous, sfb (n / 128, k / 128), d (m, n)."""
    mma = hopper_helpers.make_trivial_tiled_mma(
        a.element_type,
        b.element_type,
        OperandMajorMode.K,
        OperandMajorMode.K,
        cutlass.Float32,
        atom_layout_mnk=(CONSUMERS, 1, 1),
        tiler_mn=(64, TILE[1]),
    )
    # Swizzled by 128 bytes: what TMA writes and WGMMA reads. (TILE_M or TILE_N, TILE_K, STAGES)
    layout_a = hopper_helpers.make_smem_layout_a(LayoutEnum.ROW_MAJOR, TILE, a.element_type, STAGES)
    layout_b = hopper_helpers.make_smem_layout_b(LayoutEnum.ROW_MAJOR, TILE, b.element_type, STAGES)
    layout_sfa = cute.make_layout((TILE[0], 1, STAGES))
    map_a, tma_a = cpasync.make_tiled_tma_atom(
        cpasync.CopyBulkTensorTileG2SMulticastOp(),
        a,
        cute.slice_(layout_a, (None, None, 0)),
        (TILE[0], TILE[2]),
        num_multicast=CLUSTER[1],
    )
    map_b, tma_b = cpasync.make_tiled_tma_atom(
        cpasync.CopyBulkTensorTileG2SOp(), b, cute.slice_(layout_b, (None, None, 0)), (TILE[1], TILE[2])
    )
    map_sfa, tma_sfa = cpasync.make_tiled_tma_atom(
        cpasync.CopyBulkTensorTileG2SOp(), sfa, cute.slice_(layout_sfa, (None, None, 0)), (TILE[0], 1)
    )
    tiles_m = cute.ceil_div(d.shape[0], TILE[0])
    pairs_n = cute.ceil_div(d.shape[1], TILE[1] * CLUSTER[1])
    kernel(
        mma, map_a, tma_a, map_b, tma_b, map_sfa, tma_sfa, sfb, d, layout_a, layout_b, layout_sfa, pinned
    ).launch(
        grid=(tiles_m * pairs_n * CLUSTER[1], 1, 1),
        block=(THREADS, 1, 1),
        cluster=(CLUSTER[1], 1, 1),
        min_blocks_per_mp=1,
        stream=stream,
    )


def promote(partial, scale, total, pinned):
    """partial * scale + total, rounded once.

    The compiler may move the instruction behind the next slice's WGMMAs. Then both slices' partial sums are
    in registers at a time, which are too few. If `pinned`, it is written as PTX, which stays where it is.
    """
    if pinned:
        return cute.arch.inline_ptx(
            "fma.rn.f32 {$w0}, {$r0}, {$r1}, {$r2};",
            write_only_types=[cutlass.Float32],
            read_only_args=[partial, scale, total],
        )
    return cute.math.fma(partial, scale, total)


@cute.kernel
def kernel(
    mma: cute.TiledMma,
    map_a: cute.CopyAtom,
    tma_a: cute.Tensor,
    map_b: cute.CopyAtom,
    tma_b: cute.Tensor,
    map_sfa: cute.CopyAtom,
    tma_sfa: cute.Tensor,
    sfb: cute.Tensor,
    d: cute.Tensor,
    layout_a: cute.ComposedLayout,
    layout_b: cute.ComposedLayout,
    layout_sfa: cute.Layout,
    pinned: cutlass.Constexpr,
):
    thread = cute.arch.thread_idx()[0]
    warpgroup_index = cute.arch.make_warp_uniform(thread // WARPGROUP)
    rank = cute.arch.make_warp_uniform(cute.arch.block_idx_in_cluster())
    blocks = cute.ceil_div(tma_a.shape[1], TILE[2])

    # ---- Prologue: the ring's shared memory and mbarriers
    @cute.struct
    class Shared:
        barriers: cute.struct.MemRange[cutlass.Int64, 2 * STAGES]
        a: cute.struct.Align[cute.struct.MemRange[cutlass.Float8E4M3FN, cute.cosize(layout_a)], 1024]
        b: cute.struct.Align[cute.struct.MemRange[cutlass.Float8E4M3FN, cute.cosize(layout_b)], 1024]
        sfa: cute.struct.Align[cute.struct.MemRange[cutlass.Float32, cute.cosize(layout_sfa)], 128]

    shared = SmemAllocator().allocate(Shared)
    smem_a = shared.a.get_tensor(layout_a.outer, swizzle=layout_a.inner)  # (TILE_M, TILE_K, STAGES)
    smem_b = shared.b.get_tensor(layout_b.outer, swizzle=layout_b.inner)
    smem_sfa = shared.sfa.get_tensor(layout_sfa)
    ring = pipeline.PipelineTmaAsync.create(
        barrier_storage=shared.barriers.data_ptr(),
        num_stages=STAGES,
        producer_group=pipeline.CooperativeGroup(pipeline.Agent.Thread),  # its expect_tx
        consumer_group=pipeline.CooperativeGroup(
            pipeline.Agent.Thread,
            CLUSTER[1] * CONSUMERS * WARPGROUP // 32,  # the warps of both CTAs
        ),
        tx_count=(TILE[0] + TILE[1]) * TILE[2] + TILE[0] * 4,
        cta_layout_vmnk=cute.make_layout((1, *CLUSTER)),
        mcast_mode_mn=(1, 0),  # A alone is multicast, to the CTAs of one row of the cluster
        defer_sync=True,
    )
    pipeline.pipeline_init_arrive(cluster_shape_mn=CLUSTER[:2], is_relaxed=True)

    # ---- Which tile: clusters go down a band GROUP_M tiles tall before they go right
    tiles_m = cute.ceil_div(d.shape[0], TILE[0])
    pairs_n = cute.ceil_div(d.shape[1], TILE[1] * CLUSTER[1])
    pair = cute.arch.block_idx()[0] // CLUSTER[1]
    first_m = pair // (GROUP_M * pairs_n) * GROUP_M
    in_group = pair % (GROUP_M * pairs_n)
    group_m = cutlass.min(tiles_m - first_m, GROUP_M)
    tile_m = first_m + in_group % group_m
    tile_n = in_group // group_m * CLUSTER[1] + rank

    pipeline.pipeline_init_wait(cluster_shape_mn=CLUSTER[:2])

    if warpgroup_index == 0:
        # ---- The producer: one warp, of which TMA takes one thread
        cute.arch.setmaxregister_decrease(40)
        if thread < 32:
            global_a = cute.local_tile(tma_a, (TILE[0], TILE[2]), (tile_m, None))  # (TILE_M, TILE_K, blocks)
            global_b = cute.local_tile(tma_b, (TILE[1], TILE[2]), (tile_n, None))
            global_sfa = cute.local_tile(tma_sfa, (TILE[0], 1), (tile_m, None))
            to_a, from_a = cpasync.tma_partition(
                map_a,
                rank,
                cute.make_layout(CLUSTER[1]),
                cute.group_modes(smem_a, 0, 2),
                cute.group_modes(global_a, 0, 2),
            )
            to_b, from_b = cpasync.tma_partition(
                map_b,
                0,
                cute.make_layout(1),
                cute.group_modes(smem_b, 0, 2),
                cute.group_modes(global_b, 0, 2),
            )
            to_sfa, from_sfa = cpasync.tma_partition(
                map_sfa,
                0,
                cute.make_layout(1),
                cute.group_modes(smem_sfa, 0, 2),
                cute.group_modes(global_sfa, 0, 2),
            )
            state = pipeline.make_pipeline_state(pipeline.PipelineUserType.Producer, STAGES)
            for block in cutlass.range(blocks, unroll=1):
                ring.producer_acquire(state)  # wait for `empty`, then expect_tx on `full`
                full = ring.producer_get_barrier(state)
                cute.copy(
                    map_a,
                    from_a[None, block],
                    to_a[None, state.index],
                    tma_bar_ptr=full,
                    mcast_mask=cutlass.Int16((1 << CLUSTER[1]) - 1),
                )
                cute.copy(map_b, from_b[None, block], to_b[None, state.index], tma_bar_ptr=full)
                cute.copy(map_sfa, from_sfa[None, block], to_sfa[None, state.index], tma_bar_ptr=full)
                state.advance()
            ring.producer_tail(state)  # the neighbour still sends to this CTA, and this one to it
    else:
        # ---- The consumers
        cute.arch.setmaxregister_increase(232)
        slice_mma = mma.get_slice(thread - WARPGROUP)  # this thread's part of the warpgroups' work
        # Descriptors, (MMA, slices or 1, 4, STAGES), are the same for all threads of a warpgroup.
        warpgroup_mma = mma.get_slice(cute.make_layout(CONSUMERS, stride=WARPGROUP)(warpgroup_index - 1))
        fragment_a = mma.make_fragment_A(warpgroup_mma.partition_A(smem_a))
        fragment_b = mma.make_fragment_B(warpgroup_mma.partition_B(smem_b))
        # ((2, 2, 16), slices, 1): pairs of columns, rows 8 apart, columns 8 apart
        to_d = slice_mma.partition_C(cute.local_tile(d, TILE[:2], (tile_m, tile_n)))
        # Scales of A as if each stood in a whole row: a stride of 0.
        rows_sfa = cute.make_tensor(
            smem_sfa.iterator, cute.make_layout((TILE[0], TILE[1], STAGES), stride=(1, 0, TILE[0]))
        )
        my_sfa = slice_mma.partition_C(rows_sfa)
        slices = to_d.shape[1]
        total = cute.make_rmem_tensor(to_d.shape, cutlass.Float32)
        total.fill(0.0)
        partial = cute.make_rmem_tensor((to_d.shape[0], 1, 1), cutlass.Float32)
        # The cluster's second tile may lie past the end of B: it gets any scale, and stores nothing.
        scale_row = cutlass.min(tile_n, sfb.shape[0] - 1)

        state = pipeline.make_pipeline_state(pipeline.PipelineUserType.Consumer, STAGES)
        for block in cutlass.range(blocks, unroll=4):
            ring.consumer_wait(state)
            scale_b = sfb[scale_row, block]
            scale_a = cute.make_rmem_tensor((2, slices), cutlass.Float32)
            for s in cutlass.range_constexpr(slices):
                for r in cutlass.range_constexpr(2):
                    scale_a[r, s] = my_sfa[(0, r, 0), s, 0, state.index]
            for s in cutlass.range_constexpr(slices):
                warpgroup.fence()
                for step in cutlass.range_constexpr(cute.size(fragment_a, mode=[2])):
                    mma.set(warpgroup.Field.ACCUMULATE, step != 0)
                    cute.gemm(
                        mma,
                        partial,
                        cute.append_ones(fragment_a[None, s, step, state.index]),
                        cute.append_ones(fragment_b[None, 0, step, state.index]),
                        partial,
                    )
                warpgroup.commit_group()
                warpgroup.wait_group(0)
                if cutlass.const_expr(s == slices - 1):
                    ring.consumer_release(state)  # one arrival from each warp, at both CTAs
                # ---- Promotion
                for i in cutlass.range_constexpr(cute.size(partial)):
                    scale, at = scale_a[i // 2 % 2, s] * scale_b, i + s * cute.size(partial)
                    total[at] = promote(partial[i], scale, total[at], pinned)
            state.advance()

        # ---- Epilogue: registers to D
        place = slice_mma.partition_C(
            cute.local_tile(cute.make_identity_tensor(d.shape), TILE[:2], (tile_m, tile_n))
        )
        rounded = cute.make_rmem_tensor(total.shape, cutlass.BFloat16)
        rounded.store(total.load().to(cutlass.BFloat16))
        for s in cutlass.range_constexpr(slices):
            for i in cutlass.range_constexpr(cute.size(partial) // 2):
                pair_at = ((None, i % 2, i // 2), s, 0)
                where = place[(0, i % 2, i // 2), s, 0]
                if cute.elem_less(where, d.shape):  # n is even: both columns of a pair are inside, or neither
                    cute.autovec_copy(rounded[pair_at], to_d[pair_at])
