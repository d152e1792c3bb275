# Lesson 11: what belongs in its exercise cells, in their order.

# %%
def waves(m, n, tile_m, tile_n, sms):
    tiles = -(-m // tile_m) * -(-n // tile_n)
    whole = -(-tiles // sms)
    return whole, (tiles - (whole - 1) * sms) / sms


# %%
def place(unit, units_m, units_n, group):
    first = unit // (group * units_n) * group
    height = min(group, units_m - first)
    inside = unit % (group * units_n)
    return first + inside % height, inside // height


# %%
def stages(tile_m, tile_n, scales_b):
    def round_up(size):
        return -(-size // 1024) * 1024

    results = tile_m * tile_n * 2
    scales = 2 * scales_b * 256
    stage = round_up((tile_m + tile_n) * 128 + 4 * tile_m + 32)
    most = 176 * 1024 // stage if tile_m == 64 else 16
    return min(16, most, (232448 - results - scales) // stage)


# %%
addition = """
            float4 sum = partial(0);
            for (int from = 1; from < kSplits; ++from) {
                const float4 next = partial(from);
                sum.x += next.x, sum.y += next.y, sum.z += next.z, sum.w += next.w;
            }
"""
