# Lesson 08: what belongs in its exercise cells, in their order.

# %%
def largest(consumers, producer):
    for_each = (65536 - 128 * producer) // (128 * consumers)
    return min(256, for_each // 8 * 8)


# %%
announce = """
                ptx::mbarrier_wait_parity(next.stage + kEmpty, next.parity ^ 1);
                ptx::mbarrier_arrive_expect_tx(full, kBytesA + kBytesB + kBytesScales);
"""


# %%
def tile_row(consumer, slice, thread, i):
    # A slice is 128 rows, of which each consumer has 64.
    rows, _ = layouts.wgmma_accumulator(128)
    return int(128 * slice + 64 * consumer + rows[thread, i])


# %%
kernel = """
__global__ void __launch_bounds__(kThreads, 1)
    mine(const __grid_constant__ TensorMap map_a, const __grid_constant__ TensorMap map_b,
         const __grid_constant__ TensorMap map_sfa, const GemmArgs p) {
    const int64_t tiles_m = ceil_div(p.m, kTileM);
    const int tile_m = blockIdx.x % tiles_m * kTileM, tile_n = blockIdx.x / tiles_m * kTileN;
    const int blocks = static_cast<int>(p.k / kScaleK);

    if (threadIdx.x == 0) {
        for (int stage = 0; stage < kStages; ++stage) {
            ptx::mbarrier_init(smem_stage(stage) + kFull, 1);
            ptx::mbarrier_init(smem_stage(stage) + kEmpty, kConsumers * kWarpgroup / 32);
        }
        ptx::fence_mbarrier_init();
    }
    __syncthreads();

    if (threadIdx.x < kWarpgroup) {
        ptx::setmaxnreg_dec<40>();
        if (threadIdx.x > 0) return;
        Ring next;
        for (int block = 0; block < blocks; ++block, next.advance()) {
            const uint32_t full = next.stage + kFull;
            ptx::mbarrier_wait_parity(next.stage + kEmpty, next.parity ^ 1);
            ptx::mbarrier_arrive_expect_tx(full, kBytesA + kBytesB + kBytesScales);
            ptx::cp_async_bulk_tensor_2d(next.stage, &map_a, full, block * kTileK, tile_m);
            ptx::cp_async_bulk_tensor_2d(next.stage + kB, &map_b, full, block * kTileK, tile_n);
            ptx::cp_async_bulk_tensor_2d(next.stage + kScaleA, &map_sfa, full, tile_m, block);
        }
        return;
    }

    ptx::setmaxnreg_inc<232>();
    const int consumer = ptx::shfl_sync_idx(threadIdx.x / kWarpgroup, 0) - 1,
              thread = threadIdx.x % kWarpgroup;
    const int row0 = consumer * kWgmmaM + accumulator_row(thread, 0), row1 = row0 + 8;
    const float* sfb = p.sfb + tile_n / kScaleN * blocks;
    Ring ring;
    float total[kRegisters] = {}, partial[kRegisters];
    for (int block = 0; block < blocks; ++block, ring.advance()) {
        ptx::mbarrier_wait_parity(ring.stage + kFull, ring.parity);
        const uint64_t desc_a = smem_descriptor(ring.stage + consumer * kWgmmaM * kSwizzleRow);
        const uint64_t desc_b = smem_descriptor(ring.stage + kB);
        const float scale0 =
            ptx::ld_shared<float>(ring.stage + kScaleA + row0 * sizeof(float)) * sfb[block];
        const float scale1 =
            ptx::ld_shared<float>(ring.stage + kScaleA + row1 * sizeof(float)) * sfb[block];
        ptx::wgmma_fence();
#pragma unroll
        for (int k = 0; k < kTileK; k += kWgmmaK)
            ptx::wgmma<kTileN>(partial, advance(desc_a, k), advance(desc_b, k), k != 0);
        ptx::wgmma_commit_group();
        ptx::wgmma_wait_group<0>();
        __syncwarp();
        if (ptx::laneid() == 0) ptx::mbarrier_arrive(ring.stage + kEmpty);
#pragma unroll
        for (int i = 0; i < kRegisters; ++i)
            total[i] = fmaf(partial[i], i / 2 % 2 ? scale1 : scale0, total[i]);
    }

#pragma unroll
    for (int i = 0; i < kRegisters; i += 2) {
        const int64_t row = tile_m + (i / 2 % 2 ? row1 : row0),
                      column = tile_n + accumulator_column(thread, i);
        if (row < p.m && column < p.n)
            *reinterpret_cast<uint32_t*>(p.d + row * p.n + column) =
                ptx::cvt_rn_bf16x2_f32(total[i + 1], total[i]);
    }
}
"""
