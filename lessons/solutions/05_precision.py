# Lesson 05: what belongs in its exercise cells, in their order.

# %%
def taken(x, largest):
    unit = 2.0 ** (largest - 13)
    return math.trunc(x / unit) * unit


# %%
def stops_at(j):
    # A product is cut to nothing where the last digit, 2^(E - 13), is above it: where E = j + 14. The sum
    # gets there exactly, as all of its digits before that are kept.
    return 2.0 ** (j + 14)


# %%
longest = 2**14


# %%
def part(every):
    # One fmaf an output and `every` of k: 1 / 128 of a cycle, against every / 8192.
    return 64 / every
