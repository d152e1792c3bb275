# Lesson 10: what belongs in its exercise cells, in their order.

# %%
def control(i):
    high = words[i] >> 64
    return high >> 41 & 15, not high >> 45 & 1, high >> 58 & 15


# %%
def keeps(gap, scale, next_scale, destination):
    return gap == 16 and scale == next_scale and scale != destination


# %%
def yields(i, sixteenths, scales):
    earlier = scales[:i].count(scales[i])
    return i < len(scales) * sixteenths // 16 and earlier % 2 == 0


# %%
TENSOR = 8192  # FP8 operations of an SM's tensor cores in a cycle


def cycles(columns):
    multiplying = 2 * 64 * columns * 128 / TENSOR
    # A thread has an FFMA for each of its accumulators; a warp's 32 are one issue slot of its scheduler.
    return multiplying, 64 * columns / 128 / multiplying


# %%
overlap = """
#pragma unroll
for (int slice = 0; slice < kSlices; ++slice) {
    const uint64_t slice_a = advance(desc_a, slice * kSliceM * kSwizzleRow);
    ptx::wgmma_fence();
#pragma unroll
    for (int k = 0; k < kTileK; k += kWgmmaK)
        ptx::wgmma<kTileN>(partial[slice], advance(slice_a, k), advance(desc_b, k), k != 0);
    ptx::wgmma_commit_group();
}
const auto promote = [&](int slice) {
#pragma unroll
    for (int i = 0; i < kRegisters; ++i)
        total[slice][i] = fmaf(partial[slice][i], scale_a[slice][i / 2 % 2] * scale_b, total[slice][i]);
};
ptx::wgmma_wait_group<1>();  // the first slice's; the second one's goes on
promote(0);
ptx::wgmma_wait_group<0>();
__syncwarp();
if (ptx::laneid() < kCluster)
    ptx::mbarrier_arrive_cluster(ptx::mapa(ring.stage + kEmpty, ptx::laneid()));
ring.advance();
promote(1);
"""
