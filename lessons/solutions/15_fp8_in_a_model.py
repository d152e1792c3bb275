# Lesson 15: what belongs in its exercise cells, in their order.

# %%
def stored(n, k):
    return n * k + 4 * -(-n // 128) * -(-k // 128)


# %%
def repaid(bandwidth, speed_16, speed_8):
    # 2 m n k (1 / speed_16 - 1 / speed_8) = 3 m k / bandwidth, solved for n.
    return 3 / (2 * bandwidth * (1 / speed_16 - 1 / speed_8))


# %%
skip = ["layers.5", "down"]
