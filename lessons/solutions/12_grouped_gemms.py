# Lesson 12: what belongs in its exercise cells, in their order.

# %%
def owner(row, counts):
    for expert, count in enumerate(counts):
        if row < count:
            return expert
        row -= -(-count // 128) * 128
        if row < 0:
            return -1
    return -1


# %%
def find(unit, masked_m, tile_m, tiles_n):
    for group, rows in enumerate(masked_m):
        units = -(-rows // tile_m) * tiles_n
        if unit < units:
            return group, unit
        unit -= units


# %%
def balance(n, k, bandwidth, speed):
    # 2 n k rows / speed = (n k + rows (k + 2 n)) / bandwidth, solved for rows.
    return n * k / bandwidth / (2 * n * k / speed - (k + 2 * n) / bandwidth)


# %%
walk_on = """
        while (kByGroup && unit_ >= units_m_ * kUnitsN && ++group_ < p_.groups) {
            unit_ -= units_m_ * kUnitsN;
            enter_group();
        }
"""
