// ldmatrix, stmatrix and mma.sync alone (test_matrices.py).
#include "fragments.cuh"
#include "mma.cuh"
#include "ptx.cuh"

using ptx::Type;

// Four tiles, [tile][row][16 bytes], are loaded: out[lane][register].
template <int kTiles, bool kTranspose>
__device__ void load(const uint4* in, uint32_t* out) {
    const uint32_t lane = ptx::laneid(), address = ptx::shared_memory() + lane * 16;
    ptx::st_shared(address, in[lane]);
    __syncwarp();
    uint32_t r[kTiles];
    ptx::ldmatrix<kTiles, kTranspose>(r, address);
    for (int i = 0; i < kTiles; ++i) out[lane * 4 + i] = r[i];
}

// Registers in[lane][register] are stored: out[tile][row][16 bytes], zeros where there is no tile.
template <int kTiles, bool kTranspose>
__device__ void store(const uint32_t* in, uint4* out) {
    const uint32_t lane = ptx::laneid(), address = ptx::shared_memory() + lane * 16;
    ptx::st_shared(address, uint4{});
    __syncwarp();
    uint32_t r[kTiles];
    for (int i = 0; i < kTiles; ++i) r[i] = in[lane * 4 + i];
    ptx::stmatrix<kTiles, kTranspose>(address, r);
    __syncwarp();
    out[lane] = ptx::ld_shared<uint4>(address);
}

// D[16][8] = A[16][16] * B[16][8] in BF16, B as it lies in memory: the transposing ldmatrix makes columns of its rows.
__device__ void multiply(const uint8_t* in, float* out) {
    const uint32_t lane = ptx::laneid(), a = ptx::shared_memory(), b = a + 512;
    ptx::st_shared(a + lane * 16, *reinterpret_cast<const uint4*>(in + lane * 16));
    if (lane < 16) ptx::st_shared(b + lane * 16, *reinterpret_cast<const uint4*>(in + 512 + lane * 16));
    __syncwarp();
    uint32_t a_registers[4], b_registers[2];
    ptx::ldmatrix<4>(a_registers, a + lane % 16 * 32 + lane / 16 * 16);
    ptx::ldmatrix<2, true>(b_registers, b + lane % 16 * 16);
    float d[4] = {};
    ptx::mma_sync<Type::f32, Type::bf16, Type::bf16>(d, a_registers, b_registers);
    for (int i = 0; i < 4; ++i) out[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = d[i];
}

__global__ void units(int unit, const uint8_t* in, uint8_t* out) {
    const auto* vectors = reinterpret_cast<const uint4*>(in);
    const auto* words = reinterpret_cast<const uint32_t*>(in);
    auto* out_words = reinterpret_cast<uint32_t*>(out);
    auto* out_vectors = reinterpret_cast<uint4*>(out);
    switch (unit) {
        case 0:
            return load<1, false>(vectors, out_words);
        case 1:
            return load<2, false>(vectors, out_words);
        case 2:
            return load<4, false>(vectors, out_words);
        case 3:
            return load<1, true>(vectors, out_words);
        case 4:
            return load<2, true>(vectors, out_words);
        case 5:
            return load<4, true>(vectors, out_words);
        case 6:
            return store<1, false>(words, out_vectors);
        case 7:
            return store<2, false>(words, out_vectors);
        case 8:
            return store<4, false>(words, out_vectors);
        case 9:
            return store<1, true>(words, out_vectors);
        case 10:
            return store<2, true>(words, out_vectors);
        case 11:
            return store<4, true>(words, out_vectors);
        default:
            return multiply(in, reinterpret_cast<float*>(out));
    }
}
