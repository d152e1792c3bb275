# Lesson 01: what belongs in its exercise cells, in their order.

# %%
def decode(code):
    sign = -1 if code & 0x80 else 1
    exponent = code >> 3 & 0xF
    fraction = code & 0x7
    if exponent == 0:
        return sign * fraction / 8 * 2.0**-6
    return sign * (1 + fraction / 8) * 2.0 ** (exponent - 7)


# %%
def block_scales(x):
    rows, columns = x.shape
    blocks = x.reshape(rows // 128, 128, columns // 128, 128)
    return np.abs(blocks).max(axis=(1, 3)) / 448


# %%
# The largest magnitude is sent to 8 * 448, so whatever is over an eighth of it saturates at an eighth of it.
# The largest of 4096 normal numbers is about four standard deviations; over half of one are most numbers.
limit = np.abs(block).max() / 8
predicted = metrics.relative_error(np.clip(block, -limit, limit), block)
