# Lesson 00: what belongs in its exercise cells, in their order.

# %%
def tflops(m, n, k, us):
    return 2 * m * n * k / (us * 1e-6) / 1e12  # a multiplication and an addition for each m, n and k


# %%
def scales_of(i, j, k):
    return (i, k // 128), (j // 128, k // 128)
