# Lesson 04: what belongs in its exercise cells, in their order.

# %%
def swizzle(row, byte):
    return 128 * row + (byte ^ (row % 8 * 16))


# %%
def descriptor(address):
    # The 128-byte swizzle, a stride byte offset of one atom, the address; both in units of 16 bytes.
    return 1 << 62 | (1024 >> 4) << 32 | address >> 4


# %%
def element(thread, i):
    row = thread // 32 * 16 + thread % 32 // 4 + i // 2 % 2 * 8
    column = i // 4 * 8 + thread % 4 * 2 + i % 2
    return row, column


# %%
between = """
        ptx::fence_proxy_async();
        __syncthreads();
        ptx::wgmma_fence();
"""

# %%
kernel = """
__global__ void __launch_bounds__(kThreads, 1) mine(const GemmArgs p) {
    const int64_t tiles_m = ceil_div(p.m, kTileM);
    const int64_t tile_m = blockIdx.x % tiles_m * kTileM, tile_n = blockIdx.x / tiles_m * kTileN;
    const int warpgroup = threadIdx.x / kWarpgroup, thread = threadIdx.x % kWarpgroup;
    const uint32_t smem_a = ptx::shared_memory(), smem_b = smem_a + kBytesA;
    const uint64_t desc_a = smem_descriptor(smem_a + warpgroup * kWgmmaM * kSwizzleRow);
    const uint64_t desc_b = smem_descriptor(smem_b);
    const int64_t row0 = tile_m + warpgroup * kWgmmaM + accumulator_row(thread, 0), row1 = row0 + 8;
    const float* sfb = p.sfb + tile_n / kScaleN * (p.k / kScaleK);

    float total[kRegisters] = {}, partial[kRegisters];
    for (int64_t block = 0; block < p.k / kScaleK; ++block) {
        copy_tile(smem_a, p.a, tile_m, p.m, block * kTileK, p.k);
        copy_tile(smem_b, p.b, tile_n, p.n, block * kTileK, p.k);
        ptx::fence_proxy_async();
        __syncthreads();

        ptx::wgmma_fence();
#pragma unroll
        for (int k = 0; k < kTileK; k += kWgmmaK)
            ptx::wgmma<kTileN>(partial, advance(desc_a, k), advance(desc_b, k), k != 0);
        ptx::wgmma_commit_group();
        const float* sfa = p.sfa + block * p.sfa_stride;
        const float scale0 = (row0 < p.m ? sfa[row0] : 0.0f) * sfb[block];
        const float scale1 = (row1 < p.m ? sfa[row1] : 0.0f) * sfb[block];
        ptx::wgmma_wait_group<0>();
#pragma unroll
        for (int i = 0; i < kRegisters; ++i)
            total[i] = fmaf(partial[i], i / 2 % 2 ? scale1 : scale0, total[i]);
        __syncthreads();  // the other warpgroup has read the tile of B, too
    }

#pragma unroll
    for (int i = 0; i < kRegisters; i += 2) {
        const int64_t row = i / 2 % 2 ? row1 : row0, column = tile_n + accumulator_column(thread, i);
        if (row < p.m && column < p.n)
            *reinterpret_cast<uint32_t*>(p.d + row * p.n + column) =
                ptx::cvt_rn_bf16x2_f32(total[i + 1], total[i]);
    }
}
"""
