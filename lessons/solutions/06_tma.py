# Lesson 06: what belongs in its exercise cells, in their order.


# %%
def mbarrier(count, events):
    phase, pending, to_come = 0, count, 0
    for event, size in events:
        if event == "land":
            to_come -= size
        else:
            pending -= 1
            to_come += size  # an arrival announces 0
        if pending == 0 and to_come == 0:
            phase, pending = phase + 1, count
    return phase, pending, to_come


# %%
def waits(block, stages):
    turn = block // stages
    return block % stages, turn % 2, (turn + 1) % 2


# %%
loads = """
        ptx::mbarrier_arrive_expect_tx(full, kBytesA + kBytesB + kBytesScales);
        ptx::cp_async_bulk_tensor_2d(next.stage, &map_a, full, block * kTileK, tile_m);
        ptx::cp_async_bulk_tensor_2d(next.stage + kB, &map_b, full, block * kTileK, tile_n);
        ptx::cp_async_bulk_tensor_2d(next.stage + kScalesA, &map_sfa, full, tile_m, block);
"""


# %%
def stages_needed(latency, block):
    # The order precedes the need by stages - 1 blocks.
    return -(-latency // block) + 1
