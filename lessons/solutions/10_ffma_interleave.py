# Lesson 10: what belongs in its exercise cells, in their order.

# %%
def control(i):
    high = words[i] >> 64
    return high >> 41 & 15, not high >> 45 & 1, high >> 58 & 15


# %%
def keeps(gap, scale, next_scale, destination):
    return gap == 16 and scale == next_scale and scale != destination


# %%
def yields(i, sixteenths):
    earlier = scales[:i].count(scales[i])
    return i < len(scales) * sixteenths // 16 and earlier % 2 == 0


# %%
def cycles(columns):
    multiplying = 2 * 64 * columns * 128 / TENSOR
    # A thread has an FFMA for each of its accumulators; a warp's 32 are one issue slot of its scheduler.
    return multiplying, 64 * columns / 128 / multiplying
