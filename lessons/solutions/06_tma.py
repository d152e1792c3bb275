# Lesson 06: what belongs in its exercise cells, in their order.


# %%
def mbarrier(count, events):
    phase, pending, to_come = 0, count, 0
    for event, size in events:
        if event == "land":
            to_come -= size
        else:
            pending -= 1
            to_come += size  # an arrival announces 0
        if pending == 0 and to_come == 0:
            phase, pending = phase + 1, count
    return phase, pending, to_come


# %%
def waits(block, stages):
    turn = block // stages
    return block % stages, turn % 2, (turn + 1) % 2


# %%
loads = """
        ptx::mbarrier_arrive_expect_tx(full, kBytesA + kBytesB + kBytesScales);
        ptx::cp_async_bulk_tensor_2d(next.stage, &map_a, full, block * kTileK, tile_m);
        ptx::cp_async_bulk_tensor_2d(next.stage + kB, &map_b, full, block * kTileK, tile_n);
        ptx::cp_async_bulk_tensor_2d(next.stage + kScaleA, &map_sfa, full, tile_m, block);
"""


# %%
def stages_needed(latency, block):
    # The order precedes the need by stages - 1 blocks.
    return -(-latency // block) + 1


# %%
kernel = """
__global__ void __launch_bounds__(kThreads, 1)
    mine(const __grid_constant__ TensorMap map_a, const __grid_constant__ TensorMap map_b,
         const __grid_constant__ TensorMap map_sfa, const GemmArgs p) {
    const int64_t tiles_m = ceil_div(p.m, kTileM);
    const int tile_m = blockIdx.x % tiles_m * kTileM, tile_n = blockIdx.x / tiles_m * kTileN;
    const int blocks = static_cast<int>(p.k / kScaleK);
    const int consumer = threadIdx.x / kWarpgroup, thread = threadIdx.x % kWarpgroup;

    if (threadIdx.x == 0) {
        for (int stage = 0; stage < kStages; ++stage) {
            ptx::mbarrier_init(smem_stage(stage) + kFull, 1);
            ptx::mbarrier_init(smem_stage(stage) + kEmpty, kConsumers * kWarpgroup / 32);
        }
        ptx::fence_mbarrier_init();
    }
    __syncthreads();

    Ring next;
    const auto load = [&](int block) {
        const uint32_t full = next.stage + kFull;
        ptx::mbarrier_wait_parity(next.stage + kEmpty, next.parity ^ 1);
        ptx::mbarrier_arrive_expect_tx(full, kBytesA + kBytesB + kBytesScales);
        ptx::cp_async_bulk_tensor_2d(next.stage, &map_a, full, block * kTileK, tile_m);
        ptx::cp_async_bulk_tensor_2d(next.stage + kB, &map_b, full, block * kTileK, tile_n);
        ptx::cp_async_bulk_tensor_2d(next.stage + kScaleA, &map_sfa, full, tile_m, block);
        next.advance();
    };
    if (threadIdx.x == 0)
        for (int block = 0; block < kStages - 1 && block < blocks; ++block) load(block);

    const int row0 = consumer * kWgmmaM + accumulator_row(thread, 0), row1 = row0 + 8;
    const float* sfb = p.sfb + tile_n / kScaleN * blocks;
    Ring ring;
    float total[kRegisters] = {}, partial[kRegisters];
    for (int block = 0; block < blocks; ++block, ring.advance()) {
        ptx::mbarrier_wait_parity(ring.stage + kFull, ring.parity);
        const uint64_t desc_a = smem_descriptor(ring.stage + consumer * kWgmmaM * kSwizzleRow);
        const uint64_t desc_b = smem_descriptor(ring.stage + kB);
        ptx::wgmma_fence();
#pragma unroll
        for (int k = 0; k < kTileK; k += kWgmmaK)
            ptx::wgmma<kTileN>(partial, advance(desc_a, k), advance(desc_b, k), k != 0);
        ptx::wgmma_commit_group();
        if (threadIdx.x == 0 && block + kStages - 1 < blocks) load(block + kStages - 1);
        const float scale0 =
            ptx::ld_shared<float>(ring.stage + kScaleA + row0 * sizeof(float)) * sfb[block];
        const float scale1 =
            ptx::ld_shared<float>(ring.stage + kScaleA + row1 * sizeof(float)) * sfb[block];
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
