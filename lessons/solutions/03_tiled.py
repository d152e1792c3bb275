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
