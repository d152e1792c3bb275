# Lesson 02: what belongs in its exercise cells, in their order.

# %%
promotion = "total = fmaf(partial, p.sfa[block * p.sfa_stride + row] * sfb[block], total);"


# %%
def who(i, j, n):
    tiles_n = -(-n // 32)
    block = i // 8 * tiles_n + j // 32
    thread = i % 8 * 32 + j % 32
    return block, thread


# %%
def intensity(rows, columns):
    # Each k: a byte for each row of A and of B, and two operations for each output.
    return 2 * rows * columns / (rows + columns)
