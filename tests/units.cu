// One small kernel for each instruction or pair of instructions, which writes its effect to `out`. test_emulator.py
// runs them on the emulator and, if there is one, on a GPU, and compares `out` with a result computed in Python.
#include "launch.cuh"
#include "layout.cuh"
#include "ptx.cuh"

struct UnitArgs {
    int64_t unit;
    const uint8_t* in;
    uint8_t* out;
    int64_t rows, columns, x, y;
    int64_t row_bytes;  // of a swizzled box: 32, 64 or 128
    void* stream;
};

constexpr uint32_t kBoxRows = 16;
constexpr uint32_t kBoxBytes = kBoxRows * kSwizzleRow;  // of the largest box
constexpr uint32_t kBarrier = 2 * kBoxBytes;            // offset of the mbarrier, after two boxes

__device__ void dump(uint8_t* out, uint32_t shared, uint32_t bytes) {
    for (uint32_t i = threadIdx.x * 4; i < bytes; i += blockDim.x * 4)
        *reinterpret_cast<uint32_t*>(out + i) = ptx::ld_shared<uint32_t>(shared + i);
}

__device__ void init_barrier(uint32_t barrier, uint32_t count) {
    if (threadIdx.x == 0) {
        ptx::mbarrier_init(barrier, count);
        ptx::fence_mbarrier_init();
    }
    __syncthreads();
}

// 0, 1, 10: the shared memory of a loaded box, of bytes with a swizzle (0), of floats without one (1), of bytes and
// with an L2 hint (10).
template <bool kHint>
__global__ void tma_load(const __grid_constant__ TensorMap map, uint8_t* out, int x, int y, uint32_t box_bytes) {
    const uint32_t smem = ptx::shared_memory(), barrier = smem + kBarrier;
    init_barrier(barrier, 1);
    if (threadIdx.x == 0) {
        ptx::mbarrier_arrive_expect_tx(barrier, box_bytes);
        if constexpr (kHint)
            ptx::cp_async_bulk_tensor_2d_hint(smem, &map, barrier, x, y, ptx::createpolicy_evict_first());
        else
            ptx::cp_async_bulk_tensor_2d(smem, &map, barrier, x, y);
    }
    ptx::mbarrier_wait_parity(barrier, 0);
    dump(out, smem, box_bytes);
}

// 2: each block of the cluster of two loads one box with a multicast to both.
__global__ void tma_multicast(const __grid_constant__ TensorMap map, uint8_t* out) {
    const uint32_t smem = ptx::shared_memory(), barrier = smem + kBarrier, rank = ptx::cluster_ctarank();
    init_barrier(barrier, 1);
    ptx::barrier_cluster_arrive();  // no multicast before both barriers exist
    ptx::barrier_cluster_wait();
    if (threadIdx.x == 0) {
        ptx::mbarrier_arrive_expect_tx(barrier, 2 * kBoxBytes);
        ptx::cp_async_bulk_tensor_2d_multicast(smem + rank * kBoxBytes, &map, barrier, 0, rank * kBoxRows, 0b11);
    }
    ptx::mbarrier_wait_parity(barrier, 0);
    dump(out + rank * 2 * kBoxBytes, smem, 2 * kBoxBytes);
    ptx::barrier_cluster_arrive();  // no block ends while the other still sends to it
    ptx::barrier_cluster_wait();
}

// 3: a swizzled box of bytes 0, 1, 2, ..., stored at (x, y) of a tensor, which may be smaller than the box.
template <int kRowBytes>
__global__ void tma_store(const __grid_constant__ TensorMap map, int x, int y) {
    const uint32_t smem = ptx::shared_memory();
    for (uint32_t i = threadIdx.x * 4; i < kBoxRows * kRowBytes; i += blockDim.x * 4)
        ptx::st_shared(smem + swizzle<kRowBytes>(i), (i & 0xFF) * 0x01010101u + 0x03020100u);
    ptx::fence_proxy_async();
    __syncthreads();
    if (threadIdx.x == 0) {
        ptx::cp_async_bulk_tensor_2d_store(&map, smem, x, y);
        ptx::cp_async_bulk_commit_group();
        ptx::cp_async_bulk_wait_group<0>();
    }
}

// 4, 19: out[thread][register] of two chained m64n64k32. A is the first and B the second 64 rows of a swizzled tile.
// The proxy fence is on the writers' side of the barrier (4) or on the reader's (19).
template <bool kReaderFences>
__global__ void __launch_bounds__(128) wgmma_fragment(const uint8_t* in, uint8_t* out) {
    const uint32_t smem = ptx::shared_memory(), bytes = 64 * kSwizzleRow;
    for (uint32_t i = threadIdx.x * 4; i < 2 * bytes; i += blockDim.x * 4)
        ptx::st_shared(smem + swizzle_128b(i), *reinterpret_cast<const uint32_t*>(in + i));
    if (!kReaderFences) ptx::fence_proxy_async();
    __syncthreads();
    if (kReaderFences) ptx::fence_proxy_async();
    float d[32];
    ptx::wgmma_fence();
    ptx::wgmma<64>(d, smem_descriptor(smem), smem_descriptor(smem + bytes), 0);
    ptx::wgmma<64>(d, smem_descriptor(smem + 32), smem_descriptor(smem + bytes + 32), 1);
    ptx::wgmma_commit_group();
    ptx::wgmma_wait_group<0>();
    for (int i = 0; i < 32; ++i) reinterpret_cast<float*>(out)[threadIdx.x * 32 + i] = d[i];
}

// 5: four 8x8 tiles; row r of tile t is at byte 128 * t + 16 * r. Both halves of register j of lane i hold 100 * i + j.
__global__ void stmatrix(uint8_t* out) {
    const uint32_t smem = ptx::shared_memory(), lane = ptx::laneid();
    const auto pair = [lane](uint32_t j) { return (100 * lane + j) * 0x00010001u; };
    ptx::stmatrix_x4(smem + lane * 16, pair(0), pair(1), pair(2), pair(3));
    __syncwarp();
    dump(out, smem, 512);
}

// 6: out[thread] = its lane, the value that lane 5 holds, the number of elected lanes in the warp.
__global__ void lanes(uint8_t* out) {
    uint32_t* row = reinterpret_cast<uint32_t*>(out) + threadIdx.x * 3;
    row[0] = ptx::laneid();
    row[1] = ptx::shfl_sync_idx(threadIdx.x * 7, 5);
    uint32_t elected = 0;
    const uint32_t mine = ptx::elect_sync();
    for (int lane = 0; lane < 32; ++lane) elected += ptx::shfl_sync_idx(mine, lane);
    row[2] = elected;
}

// 7: three times, one warpgroup passes 128 words to two others through one buffer, synchronised by named barriers.
__global__ void __launch_bounds__(384, 1) named_barriers(uint8_t* out) {
    constexpr int kFull = 1, kEmpty = 2;
    const uint32_t smem = ptx::shared_memory(), i = threadIdx.x % 128;
    if (threadIdx.x < 128) {
        ptx::setmaxnreg_dec<40>();
        for (uint32_t turn = 0; turn < 3; ++turn) {
            if (turn) ptx::bar_sync(kEmpty, 384);
            ptx::st_shared(smem + (127 - i) * 4, 1000 * turn + i);
            ptx::bar_arrive(kFull, 384);
        }
    } else {
        ptx::setmaxnreg_inc<232>();
        for (uint32_t turn = 0; turn < 3; ++turn) {
            ptx::bar_sync(kFull, 384);
            reinterpret_cast<uint32_t*>(out)[turn * 256 + threadIdx.x - 128] = ptx::ld_shared<uint32_t>(smem + i * 4);
            if (turn < 2) ptx::bar_arrive(kEmpty, 384);
        }
    }
}

// 8: the two blocks of a cluster take turns, each waiting for the other's arrival on its mbarrier. In its turn a block
// writes out[turn] = out[turn - 1] + 10 + its rank; out[0] is 0.
__global__ void remote_arrive(uint8_t* out) {
    const uint32_t barrier = ptx::shared_memory(), rank = ptx::cluster_ctarank();
    init_barrier(barrier, 1);
    ptx::barrier_cluster_arrive();
    ptx::barrier_cluster_wait();
    if (threadIdx.x == 0) {
        volatile uint32_t* turns = reinterpret_cast<volatile uint32_t*>(out);
        for (uint32_t turn = rank; turn < 8; turn += 2) {
            if (turn) ptx::mbarrier_wait_parity(barrier, (turn - 1) / 2 % 2);
            turns[turn] = turn ? turns[turn - 1] + 10 + rank : 0;
            if (turn < 7) ptx::mbarrier_arrive_cluster(ptx::mapa(barrier, 1 - rank));
        }
    }
    ptx::barrier_cluster_arrive();
    ptx::barrier_cluster_wait();
}

// 9: every E4M3 byte as FP32; every pair of floats as BF16, and as E4M3; every float's inverse.
__global__ void conversions(const uint8_t* in, uint8_t* out, int64_t count) {
    reinterpret_cast<float*>(out)[threadIdx.x] = ptx::cvt_f32_e4m3(static_cast<uint8_t>(threadIdx.x));
    const float* floats = reinterpret_cast<const float*>(in);
    uint32_t* pairs = reinterpret_cast<uint32_t*>(out) + 256;
    uint16_t* bytes = reinterpret_cast<uint16_t*>(pairs + count / 2);
    for (int64_t i = threadIdx.x; i < count / 2; i += blockDim.x) {
        pairs[i] = ptx::cvt_rn_bf16x2_f32(floats[2 * i + 1], floats[2 * i]);
        bytes[i] = ptx::cvt_rn_satfinite_e4m3x2_f32(floats[2 * i + 1], floats[2 * i]);
    }
    float* inverses = reinterpret_cast<float*>(bytes + count / 2);
    for (int64_t i = threadIdx.x; i < count; i += blockDim.x) inverses[i] = ptx::rcp_approx_ftz_f32(floats[i]);
}

// 11: each thread of a cluster of two stores four floats at once in its own block's shared memory and in the other's.
// Then it reads its own and those that the same thread of the other block has stored: out[rank][thread][own, other's].
__global__ void shared_vectors(uint8_t* out) {
    const uint32_t smem = ptx::shared_memory(), address = smem + threadIdx.x * 16, rank = ptx::cluster_ctarank();
    const float first = static_cast<float>(1000 * rank + 4 * threadIdx.x);
    const float4 four{first, first + 0.25f, first + 0.5f, first + 0.75f};
    ptx::st_shared(address, four);
    ptx::barrier_cluster_arrive();  // this block has begun
    ptx::barrier_cluster_wait();
    ptx::st_shared_cluster(ptx::mapa(address + blockDim.x * 16, 1 - rank), four);
    ptx::barrier_cluster_arrive();
    ptx::barrier_cluster_wait();
    auto* row = reinterpret_cast<uint4*>(out) + (rank * blockDim.x + threadIdx.x) * 2;
    row[0] = ptx::ld_shared<uint4>(address);
    *reinterpret_cast<float4*>(row + 1) = ptx::ld_shared<float4>(address + blockDim.x * 16);
}

// 12: stores the two words right before and the two right after an mbarrier, which is the first (half = 0) or the
// second half of an aligned 16 bytes: out[half][word]. The barrier must still work.
__global__ void beside_a_barrier(uint8_t* out) {
    for (uint32_t half = 0; half < 2; ++half) {
        const uint32_t barrier = ptx::shared_memory() + 16 + half * 24;
        init_barrier(barrier, 1);
        if (threadIdx.x == 0) {
            for (uint32_t i = 0; i < 4; ++i) {
                const uint32_t beside = barrier + (i < 2 ? i * 4 - 8 : i * 4);
                ptx::st_shared(beside, 10 * half + i);
                reinterpret_cast<uint32_t*>(out)[half * 4 + i] = ptx::ld_shared<uint32_t>(beside);
            }
            ptx::mbarrier_arrive(barrier);
        }
        ptx::mbarrier_wait_parity(barrier, 0);
    }
}

// 13, 16: as 10, but first the box is prefetched into L2 (13), or the tensor map (16), which must not change what is
// loaded.
template <bool kMap>
__global__ void tma_prefetch(const __grid_constant__ TensorMap map, uint8_t* out, int x, int y, uint32_t box_bytes) {
    const uint32_t smem = ptx::shared_memory(), barrier = smem + kBarrier;
    init_barrier(barrier, 1);
    if (threadIdx.x == 0) {
        if (kMap)
            ptx::prefetch_tensormap(&map);
        else
            ptx::cp_async_bulk_prefetch_tensor_2d_hint(&map, x, y, ptx::createpolicy_evict_first());
        ptx::mbarrier_arrive_expect_tx(barrier, box_bytes);
        ptx::cp_async_bulk_tensor_2d(smem, &map, barrier, x, y);
    }
    ptx::mbarrier_wait_parity(barrier, 0);
    dump(out, smem, box_bytes);
}

// 14: two kernels, one behind the other. The first lets the second begin, and then counts to kCount in out[0][thread],
// which takes a while. The second waits for the first, and copies the counts to out[1][thread].
constexpr uint32_t kCount = 4000;
__global__ void counts(uint8_t* out) {
    ptx::griddepcontrol_launch_dependents();
    volatile uint32_t* count = reinterpret_cast<volatile uint32_t*>(out) + threadIdx.x;
    for (uint32_t i = 0; i < kCount; ++i) *count = *count + 1;
}
__global__ void copies_counts(uint8_t* out) {
    ptx::griddepcontrol_wait();
    uint32_t* count = reinterpret_cast<uint32_t*>(out) + threadIdx.x;
    count[blockDim.x] = *count;
}

// 15: a swizzled box of floats 0, 1, 2, ..., added at (x, y) to a tensor, which may be smaller than the box. The
// threads write and read back pairs of them.
__global__ void tma_reduce(const __grid_constant__ TensorMap map, int x, int y) {
    const uint32_t smem = ptx::shared_memory();
    for (uint32_t i = threadIdx.x; i < kBoxBytes / 8; i += blockDim.x) {
        const uint32_t at = smem + swizzle_128b(i * 8);
        ptx::st_shared(at, float2{2 * i - 0.5f, 2 * i + 0.0f});
        const float2 pair = ptx::ld_shared<float2>(at);
        ptx::st_shared(at, float2{pair.x + 0.5f, pair.y + 1.0f});
    }
    ptx::fence_proxy_async();
    __syncthreads();
    if (threadIdx.x == 0) {
        ptx::cp_reduce_async_bulk_tensor_2d_add(&map, smem, x, y);
        ptx::cp_async_bulk_commit_group();
        ptx::cp_async_bulk_wait_group<0>();
    }
}

// 17: stores kTurns boxes, of bytes t, t + 1, t + 2, ..., below each other. They take turns with two buffers: a box is
// written when at most one store may not have read its buffer yet.
constexpr int kTurns = 6;
__global__ void tma_stores_in_turn(const __grid_constant__ TensorMap map) {
    for (uint32_t turn = 0; turn < kTurns; ++turn) {
        const uint32_t buffer = ptx::shared_memory() + turn % 2 * kBoxBytes;
        if (threadIdx.x == 0) ptx::cp_async_bulk_wait_group_read<1>();
        __syncthreads();
        for (uint32_t i = threadIdx.x * 4; i < kBoxBytes; i += blockDim.x * 4)
            ptx::st_shared(buffer + swizzle_128b(i), (i + turn & 0x7F) * 0x01010101u + 0x03020100u);
        ptx::fence_proxy_async();
        __syncthreads();
        if (threadIdx.x == 0) {
            ptx::cp_async_bulk_tensor_2d_store(&map, buffer, 0, turn * kBoxRows);
            ptx::cp_async_bulk_commit_group();
        }
    }
    if (threadIdx.x == 0) ptx::cp_async_bulk_wait_group<0>();
}

// 18: each thread of a cluster of two stores four equal floats in the other block, once all threads of both have
// arrived: an arrival that is relaxed says that the block has begun. out[rank][thread] = what the other block has
// stored.
__global__ void relaxed_arrivals(uint8_t* out) {
    const uint32_t address = ptx::shared_memory() + threadIdx.x * 16, rank = ptx::cluster_ctarank();
    const float mine = static_cast<float>(1000 * rank + threadIdx.x);
    ptx::barrier_cluster_arrive_relaxed();
    ptx::barrier_cluster_wait();
    ptx::st_shared_cluster(ptx::mapa(address, 1 - rank), float4{mine, mine, mine, mine});
    ptx::barrier_cluster_arrive();
    ptx::barrier_cluster_wait();
    reinterpret_cast<float4*>(out)[rank * blockDim.x + threadIdx.x] = ptx::ld_shared<float4>(address);
}

template <int kRowBytes>
const char* store_box(const UnitArgs& u, const LaunchConfig& config, const TensorMap& map) {
    return launch(tma_store<kRowBytes>, config, map, static_cast<int>(u.x), static_cast<int>(u.y));
}

extern "C" const char* gemm_ladder_launch(const UnitArgs* args) {
    const UnitArgs& u = *args;
    LaunchConfig config{.blocks = 1, .threads = 128, .shared_bytes = kBarrier + 8, .stream = u.stream};
    const int x = static_cast<int>(u.x), y = static_cast<int>(u.y);
    TensorMap map;
    const auto row_bytes = static_cast<uint32_t>(u.row_bytes), box_bytes = kBoxRows * row_bytes;
    const auto bytes_map = [&](const uint8_t* base) {
        const Swizzle swizzle = row_bytes == 32 ? Swizzle::k32B : row_bytes == 64 ? Swizzle::k64B : Swizzle::k128B;
        return tensor_map_2d(&map, base, u.rows, u.columns, u.columns, kBoxRows, row_bytes, swizzle);
    };
    switch (u.unit) {
        case 0:
            if (auto error = bytes_map(u.in)) return error;
            return launch(tma_load<false>, config, map, u.out, x, y, box_bytes);
        case 1:
            if (auto error = tensor_map_2d(&map, reinterpret_cast<const float*>(u.in), u.rows, u.columns, u.columns,
                                           kBoxRows, kSwizzleRow / 4, Swizzle::kNone))
                return error;
            return launch(tma_load<false>, config, map, u.out, x, y, kBoxBytes);
        case 2:
            if (auto error = bytes_map(u.in)) return error;
            config.blocks = 2;
            config.cluster = 2;
            return launch(tma_multicast, config, map, u.out);
        case 3:
            if (auto error = bytes_map(u.out)) return error;
            return row_bytes == 32   ? store_box<32>(u, config, map)
                   : row_bytes == 64 ? store_box<64>(u, config, map)
                                     : store_box<128>(u, config, map);
        case 4:
            config.shared_bytes = 2 * 64 * kSwizzleRow;
            return launch(wgmma_fragment<false>, config, u.in, u.out);
        case 5:
            config.threads = 32;
            return launch(stmatrix, config, u.out);
        case 6:
            return launch(lanes, config, u.out);
        case 7:
            config.threads = 384;
            return launch(named_barriers, config, u.out);
        case 8:
            config.blocks = 2;
            config.cluster = 2;
            return launch(remote_arrive, config, u.out);
        case 9:
            config.threads = 256;
            return launch(conversions, config, u.in, u.out, u.columns);
        case 10:
            if (auto error = bytes_map(u.in)) return error;
            return launch(tma_load<true>, config, map, u.out, x, y, box_bytes);
        case 11:
            config.blocks = 2;
            config.cluster = 2;
            return launch(shared_vectors, config, u.out);
        case 12:
            return launch(beside_a_barrier, config, u.out);
        case 13:
            if (auto error = bytes_map(u.in)) return error;
            return launch(tma_prefetch<false>, config, map, u.out, x, y, box_bytes);
        case 14:
            if (auto error = launch(counts, config, u.out)) return error;
            config.early = true;
            return launch(copies_counts, config, u.out);
        case 15:
            if (auto error = tensor_map_2d(&map, reinterpret_cast<const float*>(u.out), u.rows, u.columns, u.columns,
                                           kBoxRows, kSwizzleRow / 4, Swizzle::k128B))
                return error;
            return launch(tma_reduce, config, map, x, y);
        case 16:
            if (auto error = bytes_map(u.in)) return error;
            return launch(tma_prefetch<true>, config, map, u.out, x, y, box_bytes);
        case 17:
            if (auto error = bytes_map(u.out)) return error;
            return launch(tma_stores_in_turn, config, map);
        case 18:
            config.blocks = 2;
            config.cluster = 2;
            return launch(relaxed_arrivals, config, u.out);
        case 19:
            config.shared_bytes = 2 * 64 * kSwizzleRow;
            return launch(wgmma_fragment<true>, config, u.in, u.out);
        default:
            return "no such unit";
    }
}
