# Lesson 14: what belongs in its exercise cells, in their order.


# %%
def predicted(ctas, blocks, moved, alone, together):
    ends, block = alone if ctas <= SMS else together
    waves = -(-ctas // (SMS if ctas <= SMS else 2 * SMS))
    return max(LAUNCH + waves * (ends + blocks * block), moved / MEMORY)


# %%
rung = "solutions/own_rung_split_k.cu"
