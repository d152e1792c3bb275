// The cluster and the lanes of a warp (test_cluster.py).
#include "cluster.cuh"
#include "ptx.cuh"
#include "warp.cuh"

__device__ void meet_cluster() {
    ptx::barrier_cluster_arrive();
    ptx::barrier_cluster_wait();
}

__device__ void put(uint32_t*& out, dim3 index) {
    *out++ = index.x;
    *out++ = index.y;
    *out++ = index.z;
}

// out[block][14], by the block's number in the grid.
__device__ void identity(uint32_t* out) {
    out += 14 * (blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z));
    put(out, ptx::cluster_ctaid());
    put(out, ptx::cluster_nctaid());
    put(out, ptx::clusterid());
    put(out, ptx::nclusterid());
    out[0] = ptx::cluster_ctarank();
    out[1] = ptx::cluster_nctarank();
}

// out[thread][15]: what the lanes of a mask do; their values are in[thread].
template <uint32_t mask>
__device__ void lanes(const uint32_t* in, uint32_t* out) {
    const uint32_t lane = ptx::laneid(), value = in[threadIdx.x];
    const auto number = static_cast<int32_t>(value);
    out += threadIdx.x * 15;
    out[0] = ptx::redux_sync_add(mask, value);
    out[1] = ptx::redux_sync_min(mask, value);
    out[2] = static_cast<uint32_t>(ptx::redux_sync_max(mask, number));
    out[3] = ptx::redux_sync_and(mask, value);
    out[4] = ptx::redux_sync_or(mask, value);
    out[5] = ptx::redux_sync_xor(mask, value);
    out[6] = ptx::match_any_sync(mask, value);
    out[7] = ptx::match_all_sync(mask, value);
    out[8] = ptx::vote_sync_ballot(mask, value % 2);
    out[9] = ptx::vote_sync_all(mask, value % 2) + 2 * ptx::vote_sync_any(mask, value % 2);
    out[10] = ptx::vote_sync_uni(mask, lane % 2);
    uint32_t leader;
    out[11] = ptx::elect_sync(mask, leader);
    out[12] = leader % 2 == lane % 2 && leader < 32;
    out[13] = ptx::redux_sync_add(mask, out[11]);
    out[14] = ptx::shfl_sync_bfly(mask, value, 2);
}

// Each thread of a cluster of two stores values of every width into the other block, and the other loads what it has
// stored into its own: out[block][thread][2], sums of the bytes, which must be equal.
template <typename T>
__device__ uint32_t exchange(uint32_t seed) {
    const uint32_t here = ptx::shared_memory() + threadIdx.x * 16, there = ptx::mapa(here, 1 - ptx::cluster_ctarank());
    union {
        T value;
        uint8_t bytes[sizeof(T)];
    } data;
    for (uint32_t i = 0; i < sizeof(T); ++i) data.bytes[i] = static_cast<uint8_t>(seed * 7 + i * 31);
    ptx::st_shared_cluster(there, data.value);
    data.value = ptx::ld_shared_cluster<T>(there);  // this thread's own store
    meet_cluster();
    uint32_t sum = 0;
    for (uint32_t i = 0; i < sizeof(T); ++i) sum += data.bytes[i] * (i + 1);
    data.value = ptx::ld_shared_cluster<T>(here);
    for (uint32_t i = 0; i < sizeof(T); ++i) sum += data.bytes[i] * (i + 1) << 16;
    meet_cluster();
    return sum;
}

__device__ void widths(uint32_t* out) {
    const uint32_t rank = ptx::cluster_ctarank(), seed = threadIdx.x + 128 * rank;
    meet_cluster();
    out += seed * 5;
    out[0] = exchange<uint8_t>(seed);
    out[1] = exchange<uint16_t>(seed);
    out[2] = exchange<float>(seed);
    out[3] = exchange<uint2>(seed);
    out[4] = exchange<uint4>(seed);
}

// All threads of a cluster of two change the first block's words: out[9].
__device__ void atomics(uint32_t* out) {
    const uint32_t smem = ptx::shared_memory(), rank = ptx::cluster_ctarank();
    const uint32_t id = threadIdx.x + 128 * rank, words = ptx::mapa(smem, 0);
    if (rank == 0 && threadIdx.x < 16) ptx::st_shared(smem + threadIdx.x * 4, 0u);
    meet_cluster();
    ptx::atom_shared_cluster<Reduction::add>(words, id);
    ptx::atom_shared_cluster<Reduction::max>(words + 4, static_cast<int32_t>(id) - 1000);
    ptx::atom_shared_cluster<Reduction::bit_or>(words + 8, 1u << id % 32);
    ptx::atom_shared_cluster<Reduction::inc>(words + 12, 99u);
    ptx::atom_shared_cluster<Reduction::add>(words + 16, 1.0f);
    ptx::atom_shared_cluster<Reduction::add>(words + 24, 1ull << 31);
    if (ptx::laneid() == 0) {  // a lock, under which a word is counted in two steps
        while (ptx::atom_cas_shared_cluster(words + 32, 0, 1) != 0) {
        }
        const uint32_t count = ptx::atom_shared_cluster<Reduction::bit_or>(words + 36, 0u);
        ptx::atom_exch_shared_cluster(words + 36, count + 1);
        ptx::atom_exch_shared_cluster(words + 32, 0);
    }
    meet_cluster();
    if (id < 10) out[id] = ptx::ld_shared<uint32_t>(smem + id * 4);
}

// Each thread of a cluster of two sends 4, 8 and 16 bytes to the other block, and adds to two of its words:
// out[block][thread][7], and the two words behind them.
__device__ void asynchronous(uint32_t* out) {
    constexpr uint32_t kBarrier = 128 * 32, kWords = kBarrier + 8;
    const uint32_t smem = ptx::shared_memory(), barrier = smem + kBarrier, rank = ptx::cluster_ctarank();
    const uint32_t remote = ptx::mapa(smem, 1 - rank), id = threadIdx.x + 128 * rank;
    if (threadIdx.x == 0) {
        ptx::mbarrier_init(barrier, 1);
        ptx::fence_mbarrier_init();
        ptx::st_shared(smem + kWords, 0u);
        ptx::st_shared(smem + kWords + 4, 0u);
        ptx::mbarrier_arrive_expect_tx(barrier, 128 * (4 + 8 + 16 + 2 * 4));
    }
    meet_cluster();
    const uint32_t to = remote + threadIdx.x * 32, count = remote + kBarrier;
    ptx::st_async(to, id, count);
    ptx::st_async(to + 8, uint2{id + 1, id + 2}, count);
    ptx::st_async(to + 16, float4{id + 0.5f, id + 1.5f, id + 2.5f, id + 3.5f}, count);
    ptx::red_async<Reduction::add>(remote + kWords, id, count);
    ptx::red_async<Reduction::min>(remote + kWords + 4, -static_cast<int32_t>(id), count);
    ptx::mbarrier_wait_parity(barrier, 0);
    uint32_t* mine = out + (rank * 128 + threadIdx.x) * 7;
    const uint32_t from = smem + threadIdx.x * 32;
    mine[0] = ptx::ld_shared<uint32_t>(from);
    mine[1] = ptx::ld_shared<uint32_t>(from + 8);
    mine[2] = ptx::ld_shared<uint32_t>(from + 12);
    const uint4 four = ptx::ld_shared<uint4>(from + 16);
    mine[3] = four.x, mine[4] = four.y, mine[5] = four.z, mine[6] = four.w;
    if (threadIdx.x < 2)
        out[2 * 128 * 7 + rank * 2 + threadIdx.x] = ptx::ld_shared<uint32_t>(smem + kWords + 4 * threadIdx.x);
    meet_cluster();
}

// The second block writes to the first one, arrives, and ends without waiting.
__device__ void last_words(uint32_t* out) {
    const uint32_t mine = ptx::shared_memory() + 4 * threadIdx.x;
    meet_cluster();
    if (ptx::cluster_ctarank() == 1) {
        ptx::st_shared_cluster(ptx::mapa(mine, 0), threadIdx.x + 1);
        return ptx::barrier_cluster_arrive();
    }
    meet_cluster();
    out[threadIdx.x] = ptx::ld_shared<uint32_t>(mine);
    meet_cluster();  // of those that are left
}

__global__ void units(int unit, const uint32_t* in, uint32_t* out) {
    if (unit == 0 && threadIdx.x == 0) identity(out);
    if (unit == 1 && threadIdx.x % 2) lanes<0xAAAAAAAA>(in, out);
    if (unit == 1 && threadIdx.x % 2 == 0) lanes<0x55555555>(in, out);
    if (unit == 2) widths(out);
    if (unit == 3) atomics(out);
    if (unit == 4) asynchronous(out);
    if (unit == 5) last_words(out);
}
