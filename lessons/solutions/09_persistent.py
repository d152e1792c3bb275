# Lesson 09: what belongs in its exercise cells, in their order.

# %%
def largest(consumers, producer):
    for_each = (65536 - 128 * producer) // (128 * consumers)
    return min(256, for_each // 8 * 8)


# %%
def walk_to(pair, tiles_m, pairs_n, group):
    first = pair // (group * pairs_n) * group  # the tile of m that the group begins with
    inside = pair % (group * pairs_n)
    height = min(group, tiles_m - first)
    return first + inside % height, inside // height


# %%
def address(warp, lane, column):
    row = 16 * warp + lane % 16
    chunk = column // 8 + lane // 16
    return 128 * row + 16 * (chunk ^ row % 8)


# %%
between = """
        ptx::fence_proxy_async();
        ptx::bar_sync(1 + consumer, kWarpgroup);
"""
