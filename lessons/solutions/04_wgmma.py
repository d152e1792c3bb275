# Lesson 04: what belongs in its exercise cells, in their order.

# %%
def swizzle(row, byte):
    return 128 * row + (byte ^ (row % 8 * 16))


# %%
def descriptor(address):
    # The 128-byte swizzle, a stride byte offset of one atom, the address; both in units of 16 bytes.
    return 1 << 62 | (1024 >> 4) << 32 | address >> 4


# %%
def element(thread, i):
    row = thread // 32 * 16 + thread % 32 // 4 + i // 2 % 2 * 8
    column = i // 4 * 8 + thread % 4 * 2 + i % 2
    return row, column


# %%
between = """
        ptx::fence_proxy_async();
        __syncthreads();
        ptx::wgmma_fence();
"""
