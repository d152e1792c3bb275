// Bulk copies, and copies of boxes of tensors of one to five dimensions (test_copies.py).
#include "cp_async_bulk.cuh"
#include "ptx.cuh"

constexpr uint32_t kBarrier = 32768;  // offset of the mbarrier, behind the data

__device__ void init_barrier(uint32_t barrier) {
    if (threadIdx.x == 0) {
        ptx::mbarrier_init(barrier, 1);
        ptx::fence_mbarrier_init();
    }
    __syncthreads();
}

__device__ void meet_cluster() {
    ptx::barrier_cluster_arrive();
    ptx::barrier_cluster_wait();
}

__device__ void dump(uint8_t* out, uint32_t bytes) {
    for (uint32_t i = threadIdx.x * 4; i < bytes; i += blockDim.x * 4)
        *reinterpret_cast<uint32_t*>(out + i) = ptx::ld_shared<uint32_t>(ptx::shared_memory() + i);
}

// From global to shared memory, with ordinary instructions.
__device__ void fill(const uint8_t* in, uint32_t bytes) {
    for (uint32_t i = threadIdx.x * 4; i < bytes; i += blockDim.x * 4)
        ptx::st_shared(ptx::shared_memory() + i, *reinterpret_cast<const uint32_t*>(in + i));
    ptx::fence_proxy_async();
    __syncthreads();
}

__device__ void finish_stores() {
    ptx::cp_async_bulk_commit_group();
    ptx::cp_async_bulk_wait_group<0>();
}

template <Reduction kReduction>
__device__ void reduce_box(const TensorMap* map, const int (&at)[3]) {
    ptx::cp_reduce_async_bulk_tensor<kReduction>(map, ptx::shared_memory(), at);
}

__device__ void reduce_box(Reduction reduction, const TensorMap* map, const int (&at)[3]) {
    switch (reduction) {
        case Reduction::add:
            return reduce_box<Reduction::add>(map, at);
        case Reduction::min:
            return reduce_box<Reduction::min>(map, at);
        case Reduction::max:
            return reduce_box<Reduction::max>(map, at);
        case Reduction::inc:
            return reduce_box<Reduction::inc>(map, at);
        case Reduction::dec:
            return reduce_box<Reduction::dec>(map, at);
        case Reduction::bit_and:
            return reduce_box<Reduction::bit_and>(map, at);
        case Reduction::bit_or:
            return reduce_box<Reduction::bit_or>(map, at);
        default:
            return reduce_box<Reduction::bit_xor>(map, at);
    }
}

enum Unit { kLoad, kStore, kReduce, kMulticast };

// The box at `at`, of `bytes` bytes: loaded and dumped to `out`, or stored from `in`. A multicast is by both blocks of
// a cluster, each of which loads the box into both.
template <int kRank>
__device__ void move(int unit, Reduction reduction, const TensorMap* map, const int* coordinates, const uint8_t* in,
                     uint8_t* out, uint32_t bytes) {
    const uint32_t smem = ptx::shared_memory(), barrier = smem + kBarrier, rank = ptx::cluster_ctarank();
    int at[kRank];
    for (int i = 0; i < kRank; ++i) at[i] = coordinates[i];
    if (unit == kLoad) {
        init_barrier(barrier);
        if (threadIdx.x == 0) {
            ptx::cp_async_bulk_prefetch_tensor(map, at);
            ptx::mbarrier_arrive_expect_tx(barrier, bytes);
            ptx::cp_async_bulk_tensor(smem, map, barrier, at);
        }
        ptx::mbarrier_wait_parity(barrier, 0);
        dump(out, bytes);
    } else if (unit == kMulticast) {
        init_barrier(barrier);
        meet_cluster();
        if (threadIdx.x == 0) {
            ptx::mbarrier_arrive_expect_tx(barrier, 2 * bytes);
            ptx::cp_async_bulk_tensor_multicast(smem + rank * bytes, map, barrier, at, 0b11);
        }
        ptx::mbarrier_wait_parity(barrier, 0);
        dump(out + rank * 2 * bytes, 2 * bytes);
        meet_cluster();
    } else {
        fill(in, bytes);
        if (threadIdx.x) return;
        if constexpr (kRank == 3) {
            if (unit == kReduce)
                reduce_box(reduction, map, at);
            else
                ptx::cp_async_bulk_tensor_store(map, smem, at);
        } else {
            ptx::cp_async_bulk_tensor_store(map, smem, at);
        }
        finish_stores();
    }
}

__global__ void boxes(int unit, int rank, Reduction reduction, const __grid_constant__ TensorMap map, const int* at,
                      const uint8_t* in, uint8_t* out, uint32_t bytes) {
    switch (rank) {
        case 1:
            return move<1>(unit, reduction, &map, at, in, out, bytes);
        case 2:
            return move<2>(unit, reduction, &map, at, in, out, bytes);
        case 3:
            return move<3>(unit, reduction, &map, at, in, out, bytes);
        case 4:
            return move<4>(unit, reduction, &map, at, in, out, bytes);
        default:
            return move<5>(unit, reduction, &map, at, in, out, bytes);
    }
}

template <Reduction kReduction, Element kElement>
__device__ void reduce(const uint8_t* in, uint8_t* out, uint32_t bytes) {
    fill(in, bytes);
    if (threadIdx.x) return;
    ptx::cp_reduce_async_bulk<kReduction, kElement>(out, ptx::shared_memory(), bytes);
    finish_stores();
}

// Contiguous bytes from `in` to `out`; with a cluster of two blocks, out[block].
__global__ void bytes(int unit, const uint8_t* in, uint8_t* out, uint32_t count) {
    const uint32_t smem = ptx::shared_memory(), barrier = smem + kBarrier, rank = ptx::cluster_ctarank();
    switch (unit) {
        case 0:
            init_barrier(barrier);
            if (threadIdx.x == 0) {
                ptx::cp_async_bulk_prefetch(in, count);
                ptx::mbarrier_arrive_expect_tx(barrier, count);
                ptx::cp_async_bulk(smem, in, count, barrier);
            }
            ptx::mbarrier_wait_parity(barrier, 0);
            return dump(out, count);
        case 1:
            fill(in, count);
            if (threadIdx.x) return;
            ptx::cp_async_bulk_store(out, smem, count);
            return finish_stores();
        case 2:  // the first block loads for both
            init_barrier(barrier);
            meet_cluster();
            if (threadIdx.x == 0) {
                ptx::mbarrier_arrive_expect_tx(barrier, count);
                if (rank == 0) ptx::cp_async_bulk_multicast(smem, in, count, barrier, 0b11);
            }
            ptx::mbarrier_wait_parity(barrier, 0);
            dump(out + rank * count, count);
            return meet_cluster();
        case 3:  // each block sends its half of `in` to the other
            init_barrier(barrier);
            fill(in + rank * count, count);
            meet_cluster();
            if (threadIdx.x == 0) {
                ptx::mbarrier_arrive_expect_tx(barrier, count);
                ptx::cp_async_bulk_cluster(ptx::mapa(smem + count, 1 - rank), smem, count,
                                           ptx::mapa(barrier, 1 - rank));
            }
            ptx::mbarrier_wait_parity(barrier, 0);
            for (uint32_t i = threadIdx.x * 4; i < count; i += blockDim.x * 4)
                *reinterpret_cast<uint32_t*>(out + rank * count + i) = ptx::ld_shared<uint32_t>(smem + count + i);
            return meet_cluster();
        case 4:  // both blocks add their half of `in` to what the second block has, 1, 2, 3 ...
            init_barrier(barrier);
            fill(in + rank * count, count);
            for (uint32_t i = threadIdx.x; i < count / 4; i += blockDim.x) ptx::st_shared(smem + count + i * 4, i + 1);
            ptx::fence_proxy_async();
            if (threadIdx.x == 0) ptx::mbarrier_arrive_expect_tx(barrier, rank ? 2 * count : 0);
            meet_cluster();
            if (threadIdx.x == 0)
                ptx::cp_reduce_async_bulk_cluster<Reduction::add, Element::u32>(ptx::mapa(smem + count, 1), smem, count,
                                                                                ptx::mapa(barrier, 1));
            ptx::mbarrier_wait_parity(barrier, 0);
            for (uint32_t i = threadIdx.x * 4; i < count && rank; i += blockDim.x * 4)
                *reinterpret_cast<uint32_t*>(out + i) = ptx::ld_shared<uint32_t>(smem + count + i);
            return meet_cluster();
        case 10:
            return reduce<Reduction::add, Element::u32>(in, out, count);
        case 11:
            return reduce<Reduction::min, Element::s32>(in, out, count);
        case 12:
            return reduce<Reduction::max, Element::u64>(in, out, count);
        case 13:
            return reduce<Reduction::add, Element::f16>(in, out, count);
        case 14:
            return reduce<Reduction::add, Element::bf16>(in, out, count);
        case 15:
            return reduce<Reduction::max, Element::bf16>(in, out, count);
        case 16:
            return reduce<Reduction::add, Element::f32>(in, out, count);
        case 17:
            return reduce<Reduction::add, Element::f64>(in, out, count);
        case 18:
            return reduce<Reduction::bit_xor, Element::u32>(in, out, count);
        case 19:
            return reduce<Reduction::bit_and, Element::u64>(in, out, count);
        default:
            return reduce<Reduction::inc, Element::u32>(in, out, count);
    }
}
