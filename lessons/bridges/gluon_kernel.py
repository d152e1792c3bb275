"""Rung s6_warp_specialized in Gluon, Triton's language in which layouts, barriers and warps are written out.

The tile, the ring of stages, the two consumers, the order of the tiles and the promotion are the rung's. It
has no cluster, as TMA multicast cannot be asked for in Triton 3.6, so each CTA loads all of A itself.

    python lessons/bridges/compile.py      what the compilers make of it; needs no GPU
    python lessons/bridges/measure.py      on a Hopper GPU: whether it is right, and how fast

Constraints: k is a multiple of 128, A and B are FP8 E4M3 with k contiguous, sfa has m contiguous.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

TILE_M = gl.constexpr(256)
TILE_N = gl.constexpr(128)  # as wide as a scale block of B: one scale of B for the whole tile
TILE_K = gl.constexpr(128)
STAGES = gl.constexpr(4)
CONSUMERS = gl.constexpr(2)
SLICE_M = gl.constexpr(64)  # rows of one WGMMA
SLICES = gl.constexpr(2)  # slices of one consumer
GROUP_M = gl.constexpr(8)

# The shared memory of a stage is swizzled by 128 bytes: what TMA writes and WGMMA reads.
SWIZZLED = gl.constexpr(gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=8, rank=2))
PLAIN = gl.constexpr(gl.NVMMASharedLayout(swizzle_byte_width=0, element_bitwidth=32, rank=1))
# Which thread holds which element of an accumulator: the fragment of wgmma.m64n128k32.
ACCUMULATOR = gl.constexpr(
    gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, 128, 32])
)


@gluon.jit
def find_tile(m, n):
    """The first row and column of this CTA's tile. Tiles go down a band GROUP_M tall, then right."""
    tiles_m = gl.cdiv(m, TILE_M)
    tiles_n = gl.cdiv(n, TILE_N)
    tile = gl.program_id(0)
    first_m = tile // (GROUP_M * tiles_n) * GROUP_M
    in_group = tile % (GROUP_M * tiles_n)
    group_m = gl.minimum(tiles_m - first_m, GROUP_M)
    return (first_m + in_group % group_m) * TILE_M, in_group // group_m * TILE_N


@gluon.jit
def producer(map_a, map_b, map_sfa, a, b, sfa, full, empty, tile_m, tile_n, sfa_stride, k):
    for block in range(k // TILE_K):
        stage = block % STAGES
        # A fresh mbarrier is in phase 0, so waiting for the other parity returns at once.
        mbarrier.wait(empty.index(stage), block // STAGES & 1 ^ 1)
        ready = full.index(stage)
        mbarrier.expect(ready, map_a.block_type.nbytes + map_b.block_type.nbytes + map_sfa.block_type.nbytes)
        tma.async_copy_global_to_shared(map_a, [tile_m, block * TILE_K], ready, a.index(stage))
        tma.async_copy_global_to_shared(map_b, [tile_n, block * TILE_K], ready, b.index(stage))
        tma.async_copy_global_to_shared(map_sfa, [block * sfa_stride + tile_m], ready, sfa.index(stage))


@gluon.jit
def multiply(a, b, partial, other_total, pinned: gl.constexpr):
    """One slice by one K block: four WGMMAs and the wait for them, into the registers of `partial`.

    The compiler may move the other slice's promotion behind these WGMMAs. Then both slices' partial sums are
    in registers at a time, which are too few. If `pinned`, the wait takes `other_total`, which has to be
    computed before.
    """
    partial = warpgroup_mma(a, b, partial, use_acc=False, is_async=True)
    if pinned:
        partial, other_total = warpgroup_mma_wait(0, deps=[partial, other_total])
    else:
        partial = warpgroup_mma_wait(0, deps=[partial])
    return partial, other_total


@gluon.jit
def consumer(
    a,
    b,
    sfa,
    full,
    empty,
    sfb_pointer,
    d_pointer,
    tile_m,
    tile_n,
    m,
    n,
    k,
    first: gl.constexpr,
    pinned: gl.constexpr,
):
    row: gl.constexpr = gl.SliceLayout(1, ACCUMULATOR)
    column: gl.constexpr = gl.SliceLayout(0, ACCUMULATOR)
    total0 = gl.zeros([SLICE_M, TILE_N], gl.float32, ACCUMULATOR)
    total1 = gl.zeros([SLICE_M, TILE_N], gl.float32, ACCUMULATOR)
    partial = gl.zeros([SLICE_M, TILE_N], gl.float32, ACCUMULATOR)
    sfb_pointer += tile_n // 128 * (k // TILE_K)
    for block in range(k // TILE_K):
        stage = block % STAGES
        mbarrier.wait(full.index(stage), block // STAGES & 1)
        scale_b = gl.load(sfb_pointer + block)
        scales = sfa.index(stage)
        scale0 = scales.slice(first, SLICE_M).load(row) * scale_b
        scale1 = scales.slice(first + SLICE_M, SLICE_M).load(row) * scale_b
        a_tile, b_tile = a.index(stage), b.index(stage).permute((1, 0))
        partial, total1 = multiply(a_tile.slice(first, SLICE_M), b_tile, partial, total1, pinned)
        total0 = gl.fma(partial, gl.expand_dims(scale0, 1), total0)
        partial, total0 = multiply(a_tile.slice(first + SLICE_M, SLICE_M), b_tile, partial, total0, pinned)
        mbarrier.arrive(empty.index(stage))
        total1 = gl.fma(partial, gl.expand_dims(scale1, 1), total1)

    columns = tile_n + gl.arange(0, TILE_N, column)
    rows = tile_m + first + gl.arange(0, SLICE_M, row)
    store(d_pointer, total0, rows, columns, m, n)
    store(d_pointer, total1, rows + SLICE_M, columns, m, n)


@gluon.jit
def store(d_pointer, total, rows, columns, m, n):
    places = rows.to(gl.int64)[:, None] * n + columns[None, :]
    gl.store(d_pointer + places, total.to(gl.bfloat16), mask=(rows < m)[:, None] & (columns < n)[None, :])


@gluon.jit
def bridge_gluon(map_a, map_b, map_sfa, sfb, d, m, n, k, sfa_stride, pinned: gl.constexpr):
    tile_m, tile_n = find_tile(m, n)
    a = gl.allocate_shared_memory(gl.float8e4nv, [STAGES, TILE_M, TILE_K], SWIZZLED)
    b = gl.allocate_shared_memory(gl.float8e4nv, [STAGES, TILE_N, TILE_K], SWIZZLED)
    sfa = gl.allocate_shared_memory(gl.float32, [STAGES, TILE_M], PLAIN)
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for stage in gl.static_range(STAGES):
        mbarrier.init(full.index(stage), count=1)
        mbarrier.init(empty.index(stage), count=CONSUMERS)
    gl.warp_specialize(
        [
            (consumer, (a, b, sfa, full, empty, sfb, d, tile_m, tile_n, m, n, k, gl.constexpr(0), pinned)),
            (
                consumer,
                (
                    a,
                    b,
                    sfa,
                    full,
                    empty,
                    sfb,
                    d,
                    tile_m,
                    tile_n,
                    m,
                    n,
                    k,
                    gl.constexpr(SLICES * SLICE_M),
                    pinned,
                ),
            ),
            (producer, (map_a, map_b, map_sfa, a, b, sfa, full, empty, tile_m, tile_n, sfa_stride, k)),
        ],
        [4, 1],
        [232, 40],
    )
