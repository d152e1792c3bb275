# Lesson 03: what belongs in its exercise cells, in their order.

# %%
multiply = """
for (int i = 0; i < kPerThread; ++i)
    for (int j = 0; j < kPerThread; ++j) partial[i][j] = fmaf(a[i], b[j], partial[i][j]);
"""

# %%
put = "tile[i][line] = ptx::cvt_f32_e4m3(static_cast<uint8_t>(word >> i % 4 * 8));"


# %%
def share(r, width):
    # R x R outputs are as many fmaf; 2 R numbers are 2 R / width loads.
    return r * r / (r * r + 2 * r / width)


# %%
def strided(stride):
    # The words of one bank are 32 / gcd(stride, 32) threads apart.
    return int(np.gcd(stride, 32))


# %%
kernel = """
__global__ void __launch_bounds__(kThreads) mine(const GemmArgs p) {
    // One float more than a row needs: 32 threads that read one column each are in 32 banks.
    __shared__ float tile_a[kTile][kTile + 1], tile_b[kTile][kTile + 1];
    const int64_t tiles_m = ceil_div(p.m, kTile);
    const int64_t tile_m = blockIdx.x % tiles_m * kTile, tile_n = blockIdx.x / tiles_m * kTile;
    const int first = threadIdx.x / kTile, column = threadIdx.x % kTile;
    const float* sfb = p.sfb + tile_n / kScaleN * (p.k / kScaleK);
    float total[kEach] = {};
    for (int64_t block = 0; block < p.k / kScaleK; ++block) {
        float partial[kEach] = {};
        for (int64_t k = block * kScaleK; k < (block + 1) * kScaleK; k += kTile) {
            for (int i = 0; i < kEach; ++i) {
                const int line = first + i * kRowsApart;
                const int64_t m = tile_m + line, n = tile_n + line;
                tile_a[line][column] = m < p.m ? ptx::cvt_f32_e4m3(p.a[m * p.k + k + column]) : 0.0f;
                tile_b[line][column] = n < p.n ? ptx::cvt_f32_e4m3(p.b[n * p.k + k + column]) : 0.0f;
            }
            __syncthreads();
            for (int j = 0; j < kTile; ++j)
                for (int i = 0; i < kEach; ++i)
                    partial[i] = fmaf(tile_a[first + i * kRowsApart][j], tile_b[column][j], partial[i]);
            __syncthreads();
        }
        for (int i = 0; i < kEach; ++i) {
            const int64_t m = tile_m + first + i * kRowsApart;
            if (m < p.m)
                total[i] = fmaf(partial[i], p.sfa[block * p.sfa_stride + m] * sfb[block], total[i]);
        }
    }
    for (int i = 0; i < kEach; ++i) {
        const int64_t m = tile_m + first + i * kRowsApart, n = tile_n + column;
        if (m < p.m && n < p.n)
            p.d[m * p.n + n] = static_cast<uint16_t>(ptx::cvt_rn_bf16x2_f32(0.0f, total[i]));
    }
}
"""
