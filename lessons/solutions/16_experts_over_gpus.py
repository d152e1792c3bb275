# Lesson 16: what belongs in its exercise cells, in their order.

# %%
def sends(chosen, ranks, experts):
    owner = np.asarray(chosen) // (experts // ranks)
    return [int((owner == rank).any(axis=1).sum()) for rank in range(ranks)]


# %%
def traffic(tokens, reached, hidden):
    # As many rows come as go, in the mean, so there are as many results as rows.
    return tokens * reached * (hidden + 4 * hidden / 128 + 2 * hidden)


# %%
def reaches(own, experts, top_k):
    misses = 1.0
    for drawn in range(top_k):
        misses *= (experts - own - drawn) / (experts - drawn)
    return 1 - misses
