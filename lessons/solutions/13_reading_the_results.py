# Lesson 13: what belongs in its exercise cells, in their order.

# %%
def roof(m, n, k, tb_s, peak):
    blocks = -(-k // 128)
    scales = 4 * (m * blocks + -(-n // 128) * blocks)
    intensity = 2 * m * n * k / (m * k + n * k + 2 * m * n + scales)
    return min(peak, tb_s * intensity)


# %%
def result(passes):
    better = min(passes, key=np.median)
    p10, us, p90 = np.percentile(better, [10, 50, 90])
    return us, p10, p90


# %%
def call_times(kernels):
    times, inside = [], False
    for name, us in kernels:
        if name == "spin_kernel":
            inside = not inside
            if inside:
                times.append(0.0)
        elif inside:
            times[-1] += us
    return times


# %%
def ratio(ours_now, theirs_then, yardsticks):
    slower = statistics.geometric_mean(now / then for then, now in yardsticks)
    return theirs_then * slower / ours_now


# %%
def weakest(rows, libraries):
    times = {}
    for row in rows:
        product = tuple(
            row[field] for field in ("kind", "groups", "m", "n", "k", "l2", "max_m", "expected_m")
        )
        times.setdefault(product, {})[row["impl"]] = row["us"]
    ratios = {}
    for product, us in times.items():
        theirs = [us[library] for library in libraries if library in us]
        if theirs and "s9_production" in us:
            ratios[product] = min(theirs) / us["s9_production"]
    worst = min(ratios, key=ratios.get)
    return *worst[:6], ratios[worst]
