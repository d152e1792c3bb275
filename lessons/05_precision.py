# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Precision: 14 bits, and what to do about them
#
# [The last lesson](04_wgmma.ipynb), section 5, saw a [tensor core](glossary.md#tensor-core) lose a 1. Here
# you follow its additions digit by digit, see what becomes of long sums, and find out why the kernels
# [promote](glossary.md#promotion) every 128 of k and not every 32 or never. The second half asks the same of
# the *scales*, on the weights of a trained model.
#
# > **Needs:** lesson [04](04_wgmma.ipynb). **Time:** 30 minutes to read, 50 for guesses and exercises; its
# > cells run in a minute, less when its kernels have been compiled. **May be skipped:** *On real numbers: a
# > trained model* (15 minutes more).

# %%
from gemm_ladder.figures import lessons

lessons.enter()  # makes this folder the working directory, wherever Jupyter was started

import functools
import math

import gemm_ladder as gl
import numpy as np
from gemm_ladder.figures import measured
from gemm_ladder.ref import fp8, gemm, metrics, tensor_core
from matplotlib import pyplot as plt
from workshop import drawing, drawing_precision, exercises, workbench

drawing.style()
rung = gl.rungs["s3_wgmma"]

# %%
drawing.where("tensor cores", "CUDA cores")

# %% [markdown]
# ## One sum, by hand
#
# One [WGMMA](glossary.md#wgmma) adds 32 products and the [accumulator](glossary.md#accumulator) it finds, for
# each of its outputs. A Hopper tensor core does it in four steps:
#
# 1. It multiplies. A product of two [E4M3](glossary.md#e4m3) numbers has at most 8 significant bits, and is
#    exact. Its *exponent* is the sum of its factors' exponents.
# 2. It finds the largest exponent, E, of the accumulator and of all products that are not zero.
# 3. It aligns all of them to E, and cuts off what lies below $2^{E-13}$. It does not round: digits are
#    dropped.
# 4. It adds what is left, exactly, and cuts the sum in the same way: 13 digits after its own first one.
#
# One digit before and 13 after: these are the **14 bits**. As a program:


# %%
def exponent(x):
    """Of an E4M3 number; subnormal ones count as the smallest normal ones do."""
    return max(math.frexp(abs(x))[1] - 1, -6)


def cut(x, power):
    """x without its digits below 2^power."""
    return math.trunc(x / 2.0**power) * 2.0**power


def one_wgmma(pairs, acc=0.0, draw=False):
    """What a tensor core makes of acc + the sum of x * y."""
    exponents = [exponent(x) + exponent(y) for x, y in pairs if x * y]
    if acc:
        exponents.append(math.frexp(abs(acc))[1] - 1)
    below = max(exponents) - 13
    terms = [drawing_precision.Term("accumulator", acc, cut(acc, below))] if acc else []
    terms += [drawing_precision.Term(f"{x:g} * {y:g}", x * y, cut(x * y, below)) for x, y in pairs]
    total = sum(term.kept for term in terms)
    below_sum = math.frexp(abs(total))[1] - 1 - 13
    result = cut(total, below_sum)
    if draw:
        drawing_precision.bits(terms, total, result, below, below_sum)
    return result


first = [(128, 128), (1.5, 1.5), (3, 1), (-1.75, 1.75), (0.5, 0.5)]
print("exact:   ", sum(x * y for x, y in first))
result = one_wgmma(first, draw=True)
print("14 bits: ", result)

# %% [markdown]
# Read the line of 3 * 1. Its last digit is the one at $2^0$. What is kept ends at $2^1$, 13 places below the
# largest product's first digit: so 3 becomes 2. The line below it shows the direction: -3.06 becomes -2, not
# -4. Cutting digits goes *toward zero*, whatever the sign.
#
# The next WGMMA finds this result in its accumulator, which is aligned and cut like everything else:

# %%
second = [(128, 128), (1, 1.5)]
print("exact:   ", result + sum(x * y for x, y in second))
print("14 bits: ", one_wgmma(second, result, draw=True))

# %% [markdown]
# 1.5 is gone as before. But the last step loses something as well: the sum begins one digit further to the
# left than its terms, and so ends one digit earlier.
#
# Let the accumulator be a power of two, and watch what is left of the products as it grows:

# %%
workbench.slider(lambda power: print(one_wgmma(first[1:], 2.0**power, draw=True)), power=(0, 17))

# %% [markdown]
# Is this what the kernels get? Two chained WGMMAs, where your kernels run:

# %%
CHAIN = """
__global__ void __launch_bounds__(128) chain(const uint8_t* in, float* out) {
    const uint32_t a = ptx::shared_memory(), b = a + 64 * 128;
    for (int i = threadIdx.x; i < (64 + 16) * 8; i += 128)
        ptx::st_shared(a + swizzle_128b(i * 16), reinterpret_cast<const uint4*>(in)[i]);
    ptx::fence_proxy_async();
    __syncthreads();

    float d[8];
    ptx::wgmma_fence();
    for (int k = 0; k < 128; k += 32)  // four WGMMAs, each adding to what the last one left
        ptx::wgmma<16>(d, advance(smem_descriptor(a), k), advance(smem_descriptor(b), k), k != 0);
    ptx::wgmma_commit_group();
    ptx::wgmma_wait_group<0>();
    if (threadIdx.x == 0) out[0] = d[0];  // row 0, column 0
}
"""


def chain(*sums):
    """Up to four lists of up to 32 pairs, each added by a WGMMA to the result of the one before."""
    operands, out = np.zeros((64 + 16, 128)), np.zeros(1, np.float32)
    for step, pairs in enumerate(sums):
        for i, (x, y) in enumerate(pairs):
            operands[0, 32 * step + i], operands[64, 32 * step + i] = x, y
    workbench.try_kernel(CHAIN, out, fp8.encode(operands), shared_bytes=(64 + 16) * 128)
    return float(out[0])


print("one:", chain(first), "  two:", chain(first, second))

# %% [markdown]
# The [emulator](glossary.md#emulator) adds with `gemm_ladder.ref.tensor_core`, which is your program made
# fast. It was compared with an H100, bit for bit; the count is in section 5 of [the last
# lesson](04_wgmma.ipynb). So from here on you can trust the model with long sums.
#
# ## A sum that stops
#
# Add ones: all of A is 1, all of B is 1, all scales are 1, and D should be k. Change the kernel so that it
# never promotes: the accumulators are cleared once, and taken out once.


# %%
def promoting(every):
    """Rung s3, changed to promote every so many of k; 0: at the end only."""
    blocks = every // 128 or 1 << 40
    last = f"block % {blocks} == {blocks - 1} || block == p.k / kScaleK - 1"
    wait = "ptx::wgmma_wait_group<0>();\n"
    return workbench.changed(
        "s3_wgmma", ("k != 0);", f"k != 0 || block % {blocks} != 0);"), (wait, f"{wait}        if ({last})\n")
    )


def ones(k):
    codes = fp8.encode(np.ones((64, k))).view(fp8.E4M3)
    scales = np.ones((64, k // 128), np.float32)
    return workbench.Problem(codes, scales, codes, scales[:1])


for k in (8192, 16384, 32768):
    promoted, never = (
        workbench.multiply(kernel, ones(k))[0, 0].astype(int) for kernel in (rung, promoting(0))
    )
    print(f"k = {k:5}: promoted every 128: {promoted:5}   never promoted: {never:5}")

# %% [markdown]
# At 16384 = $2^{14}$ the accumulator's exponent is 14, so everything below $2^1$ is cut off. Each product is
# 1, and *each product is cut by itself*, before it is added: 32 times nothing. The sum has stopped for good.
#
# Numbers that are not all equal show it less plainly. Take numbers between 0 and 448, all equally likely, and
# watch one output grow with k:


# %%
LONGEST = 65536
ALL_K = tuple(2**power for power in range(7, 17))
KINDS = ("normal", "non-negative")


@functools.cache
def operands(kind):
    """Codes [64, 65536] of A and of B; kernels/measure/precision.py gives an H100 the same ones."""
    rngs = [np.random.default_rng([KINDS.index(kind), side]) for side in range(2)]
    if kind == "normal":
        values = [rng.standard_normal((LONGEST, 64)).T * 64 for rng in rngs]
    else:
        values = [rng.uniform(0, fp8.E4M3_MAX, (LONGEST, 64)).T for rng in rngs]
    return [fp8.encode(x) for x in values]


@functools.cache
def sums(kind, every, ends=ALL_K):
    """By each k of `ends`: float32 [64, 64], promoted every so many of k; 0: never. All scales are 1."""
    a, b = operands(kind)
    total, partial, k, found = np.zeros((64, 64), np.float32), np.zeros((64, 64), np.float32), 0, {}
    for stop in sorted({*ends, *(range(every, ends[-1], every) if every else ())}):
        partial = tensor_core.chain(a[:, k:stop], b[:, k:stop], partial)
        k = stop
        if k in ends:
            found[k] = total + partial
        if every and k % every == 0:
            total, partial = total + partial, np.zeros_like(partial)
    return found


@functools.cache
def exact(kind, k):
    a, b = (fp8.decode(x[:, :k]).astype(np.float64) for x in operands(kind))
    return a @ b.T


ends = tuple(range(2048, LONGEST + 1, 2048))
found = {
    every: np.array([sums("non-negative", every, ends)[k][0, 0] for k in ends]) for every in (128, 2048, 0)
}
right = np.array([exact("non-negative", k)[0, 0] for k in ends])
drawing_precision.running(
    np.array(ends), right, found, "One sum of products of numbers between 0 and 448, as k grows"
)
print(
    f"missing at k = {LONGEST}: "
    + ", ".join(f"{drawing_precision.name(every)}: {1 - x[-1] / right[-1]:.2%}" for every, x in found.items())
)

# %% [markdown]
# The larger the sum, the coarser its last digit, and the more of every product is cut off: the line bends
# where the sum passes a power of two. All products are positive, all losses go toward zero, so nothing
# cancels. Promoted every 128, the accumulator hardly gets large enough for that. The total does, but it has
# 24 bits and is rounded.
#
# ## The error against k
#
# The same for matrices, and for normal numbers as well, whose products have both signs. Lines are the
# model's. Circles are what a Hopper GPU computed from the same numbers, with the kernel changed as above.
# Crosses are NVIDIA's library on the same GPU, with one scale for a whole matrix. It has an option, *fast
# accumulation*: guess what it is.

# %% tags=["guess"]
PROMOTIONS = (128, 512, 2048, 0)
exercises.guess("05.fast", None, *map(drawing_precision.name, PROMOTIONS))

# %%
path = measured.DATA / "precision.json"
recorded, timed = [], []
if path.exists():
    data = measured.load(path, row=("kind", "impl", "promotion"))
    recorded = [row for row in data["rows"] if row["kind"] == "error"]
    timed = [row for row in data["rows"] if row["kind"] == "time"]

computed = {
    kind: {
        every: {k: metrics.relative_error(d, exact(kind, k)) for k, d in sums(kind, every).items()}
        for every in PROMOTIONS
    }
    for kind in KINDS
}
rounding = {
    kind: metrics.relative_error(gemm.to_bf16(exact(kind, 4096)), exact(kind, 4096)) for kind in KINDS
}
drawing_precision.errors(computed, rounding, recorded)

if recorded:
    mine = [row for row in recorded if row["impl"].startswith("s3_wgmma")]
    equal, compared = (sum(row[key] for row in mine) for key in ("equal", "compared"))
    where = f"{data['meta']['gpu']}, {data['meta']['date']}"
    print(f"The GPU's results with the model's bits: {equal:,} of {compared:,} ({where}).")
    longest_tried = max(row["model"] for row in recorded)  # a shorter k cannot tell it from "never"
    for impl, words in (("scaled_mm_fast", "fast accumulation"), ("scaled_mm_slow", "without it")):
        rows = [row for row in recorded if row["impl"] == impl and row["of"] > row["m"]]
        rows = [row for row in rows if row["k"] > longest_tried]
        models = sorted({row["model"] for row in rows if row["equal"] == row["compared"]})
        same = sum(row["equal"] == row["compared"] for row in rows)
        names = " or ".join(drawing_precision.name(every) for every in models) or "any interval tried"
        print(f"cuBLASLt, {words}: at {same} of {len(rows)} long k all bits are the model's, {names}.")
        if impl == "scaled_mm_fast":
            exercises.found("05.fast", names)
else:
    print("A GPU's results are not recorded yet: the lines are the model's alone.")

# %% [markdown]
# - *Promoted every 128*, the error does not depend on k. It stays below what the last step, the rounding to
#   [BF16](glossary.md#bf16), costs anyway.
# - *Never promoted*, it grows with k, even for normal numbers: their sum grows like $\sqrt{k}$, and the last
#   digit with it.
# - *Non-negative* numbers are the worst case: the sum is as large as it can be, and all losses have one
#   direction.
#
# ## Why 128
#
# Promoting more often costs more. Count it: an output needs one `fmaf` each time. An [SM](glossary.md#sm) of
# an H100 can do 128 of them in a clock cycle ("Throughput of Native Arithmetic Instructions", CUDA C++
# Programming Guide), and its tensor cores multiply and add 4096 pairs of E4M3 numbers (from the 1979
# [TFLOPS](glossary.md#tflops) of the data sheet, 132 SMs and 1.83 GHz, the data sheet's [SM
# clock](glossary.md#sm-clock)).

# %%
INTERVALS = (32, 64, 128, 256, 512, 1024, 2048, 4096)
print(f"pairs in a cycle and SM: {1979e12 / 2 / 132 / 1.83e9:.0f}")
cost = {every: (1 / 128) / (every / 4096) for every in INTERVALS}
by_data = {
    kind: {every: metrics.relative_error(sums(kind, every)[4096], exact(kind, 4096)) for every in INTERVALS}
    for kind in KINDS
}
drawing_precision.why_128(by_data, rounding["normal"], cost)
for every in (32, 128, 512):
    print(
        f"every {every:3}: {cost[every]:.0%} of the multiplying time; error "
        + ", ".join(f"{by_data[kind][every]:.1e} ({kind})" for kind in KINDS)
    )

# %% [markdown]
# The left picture is at k = 4096. To the left of 128 the error falls further, although it is below the
# rounding to BF16 already. To the right, non-negative numbers rise above the line. And the cost: every 32,
# the [CUDA cores](glossary.md#cuda-core) would have as much to do as the tensor cores, and could hardly
# hide behind them. Every 128 it is a quarter: half a cycle for each column of 64 rows, where the products
# take two. That counts the `fmaf` alone. A promotion waits as well, and takes some 1.5 cycles a column by
# the model of [lesson 04](04_wgmma.ipynb), three quarters of the products' two, and hiding *that* is the
# work of [the later rungs](README.md). Beyond 128 little is left to be gained.
#
# 128 has another advantage: the `fmaf` of a promotion multiplies as well. So a scale for every 128 of k costs
# no further instruction.
#
# What does it cost in time? [Rung](glossary.md#rung) s3 is slow for other reasons too, but its time with less
# promotion is easily measured. (In another run than that of lesson 04, where the same kernel took 1 %
# longer.)

# %%
if timed:
    by = {row["promotion"]: row for row in timed}
    names = [drawing_precision.name(every) for every in PROMOTIONS]
    _, axes = plt.subplots(figsize=(8, 1.9))
    axes.barh(names, [by[every]["us"] for every in PROMOTIONS], color=drawing.BLUE, height=0.7)
    for y, every in enumerate(PROMOTIONS):
        words = f" {by[every]['us']:.0f}" + (f"  ({by[every]['us'] / by[128]['us'] - 1:+.1%})" if y else "")
        axes.text(by[every]["us"], y, words, va="center")
    axes.invert_yaxis()
    axes.set_xlim(right=1.15 * max(row["us"] for row in timed))
    axes.tick_params(length=0)
    size = " x ".join(str(timed[0][name]) for name in "mnk")
    axes.set_title(f"Microseconds of rung s3 at {size}, {data['meta']['gpu']}")
    plt.show()
else:
    print("It is not recorded yet.")

# %% [markdown]
# Never to promote would gain less than 5 % here, although the promotion of a [K block](glossary.md#k-block)
# takes three quarters of the time of its products (those 1.5 cycles of 2): nearly all of this rung's time is
# spent waiting, and the promotion is short beside that. In a rung that keeps its tensor cores busy it is not.

# %% [markdown]
# ## On real numbers: a trained model (optional)
#
# So much for sums. The other half of the precision is what the *scales* do, and [the lesson on
# FP8](01_fp8_numbers.ipynb) tried it on made-up matrices. Here is a real one: of all-MiniLM-L6-v2, a
# small language model, the second matrix of the first feed-forward network (128 of its rows), and what it
# multiplies when the model reads a few sentences. [data/README.md](data/README.md) says where they come from.

# %%
with np.load("data/minilm.npz") as file:
    weight, activation = (file[name].astype(np.float64) for name in ("weight", "activations"))
    tokens = file["tokens"]
print("activations:", activation.shape, "  weights:", weight.shape)
for name, x in (("activations", activation), ("weights", weight)):
    row, column = np.unravel_index(np.abs(x).argmax(), x.shape)
    print(
        f"{name:11}: the median magnitude is {np.median(np.abs(x)):.3f}, the largest {np.abs(x).max():.1f}, "
        f"in row {row} and column {column}"
    )
drawing_precision.activations(activation, tokens, (826, 906), 48)

# %% [markdown]
# Every sentence begins with the token `[CLS]`, and at every `[CLS]` the same column, 856, is far larger than
# everything around it. The weights have an outlier too, in the same column. So at every `[CLS]` one product
# is far larger than all others, and the sum that it is in, in column 99 of D, aligns everything to it.
#
# Before you run the cells: with which of these casts will the product's median row suffer most?

# %% tags=["guess"]
NAMES = ("INT8, one scale each", "INT8, 1x128", "E4M3, one scale each", "E4M3, 1x128 and 128x128")
exercises.guess("05.suffers", None, *NAMES)


# %%
def e4m3_tensor(x):
    scale = np.abs(x).max() / fp8.E4M3_MAX
    return fp8.decode(fp8.encode(x / scale)) * scale


def e4m3_1x128(x):
    return fp8.dequantize_lhs(*fp8.per_token_cast_to_fp8(x.astype(np.float32)))


def e4m3_128x128(x):
    return fp8.dequantize_rhs(*fp8.per_block_cast_to_fp8(x.astype(np.float32)))


def int8_tensor(x):
    scale = np.abs(x).max() / 127
    return np.rint(x / scale) * scale


def int8_1x128(x):
    runs = x.reshape(len(x), -1, 128)
    scale = np.abs(runs).max(-1, keepdims=True) / 127
    return (np.rint(runs / scale) * scale).reshape(x.shape)


CASTS = {
    "INT8, one scale each": (int8_tensor, int8_tensor),
    "INT8, 1x128": (int8_1x128, int8_1x128),
    "E4M3, one scale each": (e4m3_tensor, e4m3_tensor),
    "E4M3, 1x128 and 128x128": (e4m3_1x128, e4m3_128x128),
}


def row_errors(d, right):
    return np.linalg.norm(d - right, axis=1) / np.linalg.norm(right, axis=1)


def typical(x, magnitudes):
    """All but the largest hundredth."""
    return x[magnitudes <= np.quantile(magnitudes, 0.99)]


full = activation @ weight.T
medians = {}
heads = ("activations", "all but 1%", "weights", "product", "its median row")
print(f"{'relative error of':24}" + "".join(f"{head:>16}" for head in heads))
for name, (of_a, of_b) in CASTS.items():
    a, b, magnitudes = of_a(activation), of_b(weight), np.abs(activation)
    d = a @ b.T
    errors = (
        metrics.relative_error(a, activation),
        metrics.relative_error(typical(a, magnitudes), typical(activation, magnitudes)),
        metrics.relative_error(b, weight),
        metrics.relative_error(d, full),
        np.median(row_errors(d, full)),
    )
    medians[name] = errors[-1]
    print(f"{name:24}" + "".join(f"{error:16.4f}" for error in errors))
exercises.found("05.suffers", max(medians, key=medians.get))

# %% [markdown]
# Three things:
#
# - Eight-bit *integers* with one scale are lost: the outlier takes the range, and the median row of the
#   product is mostly wrong.
# - E4M3 with *one scale for the whole matrix* hardly suffers. The outlier is some hundred times larger than
#   most numbers, and E4M3's exponents reach much further than that. The blocks are better, by little.
# - With 1x128 scales, integers are *more* precise than E4M3: within a run the numbers are of similar size,
#   and INT8 has more digits for them. What E4M3 gives is that it does not matter much who shares the scale.
#
# The column "product" is a norm over all rows, and the few `[CLS]` rows are most of it. The median row tells
# you more.
#
# So what are the fine scales for? For outliers that are larger. Larger models have them: some numbers are
# 100,000 times as large as the others (M. Sun et al., "Massive Activations in Large Language Models",
# arXiv:2402.17762). Enlarge those of our model and see:

# %%
outliers = np.abs(activation) > 10
rows, columns = np.nonzero(outliers)
print(f"{len(rows)} outliers, in columns {set(columns.tolist())}, at tokens {set(tokens[rows].tolist())}")
share = np.sum(full[rows] ** 2) / np.sum(full**2)
print(f"their rows are {share:.1%} of the product's squared norm")
factors = 4.0 ** np.arange(0, 8)
others = np.median(np.abs(activation))
_, axes = plt.subplots(figsize=(9, 3.4))
colours = ("#9a9a9a", drawing.GREEN, drawing.ORANGE, drawing.BLUE)
for (name, (of_a, of_b)), colour in zip(CASTS.items(), colours, strict=True):
    b, points = of_b(weight), []
    for factor in factors:
        x = np.where(outliers, factor * activation, activation)
        points.append(np.median(row_errors(of_a(x) @ b.T, x @ weight.T)))
    sizes = factors * np.abs(activation).max() / others
    axes.plot(sizes, points, marker="o", markersize=3.5, color=colour)
    at, align = (5, "right") if name == "E4M3, one scale each" else (6, "center")  # where no other line is
    place = {"xytext": (-8, 2) if at == 5 else (0, 6), "ha": align}
    axes.annotate(name, (sizes[at], points[at]), textcoords="offset points", color=colour, **place)
axes.axvline(sizes[0], color=drawing.GRID, linewidth=5, zorder=0)
axes.set_xscale("log")
axes.set_yscale("log")
axes.set_ylim(top=2.5)
axes.set_xlabel("the largest activation, over the median; gray: as the model has it")
axes.set_title("Relative error of the product's median row")
plt.show()

# %% [markdown]
# Where the orange line begins to rise, the ordinary numbers have reached E4M3's subnormal ones: one scale
# sends the outlier to 448, and everything else with it. The blue line does not move. A median row has no
# outlier in it, so with a scale for each run of 128 it never notices.
#
# What does the *sum* do on these numbers? k is short here, and the activations have both signs:

# %%
a, b = (fp8.encode(x / np.abs(x).max() * fp8.E4M3_MAX) for x in (activation, weight))
right = fp8.decode(a).astype(np.float64) @ fp8.decode(b).astype(np.float64).T
start = np.zeros(right.shape, np.float32)
never = tensor_core.chain(a, b, start)
blocks = (tensor_core.chain(a[:, k : k + 128], b[:, k : k + 128], start) for k in range(0, a.shape[1], 128))
promoted = functools.reduce(np.add, blocks, start)
for name, d in (
    ("promoted every 128", promoted),
    ("never promoted", never),
    ("rounded to BF16", gemm.to_bf16(right)),
):
    errors = row_errors(d.astype(np.float64), right)
    print(f"{name:19} median row {np.median(errors):.1e}, worst row {errors.max():.1e}")
errors = row_errors(e4m3_tensor(activation) @ e4m3_tensor(weight).T, full)
print(f"{'the cast to E4M3':19} median row {np.median(errors):.1e}, worst row {errors.max():.1e}")

# %% [markdown]
# The cast costs most, by far. Everything that computes in [FP8](glossary.md#fp8) pays it, and it does not
# grow with k. What a sum loses does grow, and is always toward zero: so it is worth a promotion every 128,
# which keeps it below the two others at any length.
#
# ## Break it
#
# The problem has four blocks of k, each with scales of its own.

# %%
problem = workbench.problem(m=64, n=128, k=512)

# %% [markdown]
# **1.** The kernel promotes at the end only, as it did above. There the loss was small. Predict what comes of
# it here.

# %% tags=["guess"]
exercises.guess_break("05.break1", line=None, then=None)

# %% tags=["break"]
workbench.break_it(
    "s3_wgmma",
    problem,
    ("k != 0);", "k != 0 || block != 0);"),
    (
        "ptx::wgmma_wait_group<0>();\n",
        "ptx::wgmma_wait_group<0>();\n        if (block == p.k / kScaleK - 1)\n",
    ),
    guess="05.break1",
)

# %% [markdown]
# <details><summary>Why</summary>
#
# All of the sum is scaled with the scales of the last block. Where every block has its own, a missing
# promotion is no question of precision. The runs above had all scales 1.
#
# </details>
#
# **2.** The sum is multiplied by the scales and then added, in two steps, each with a rounding, instead of by
# one `fmaf`. The formula is the same.

# %% tags=["guess"]
exercises.guess_break("05.break2", line=None, then=None)

# %% tags=["break"]
workbench.break_it(
    "s3_wgmma",
    problem,
    (
        "fmaf(partial[i], i / 2 % 2 ? scale1 : scale0, total[i])",
        "fmaf(partial[i] * (i / 2 % 2 ? scale1 : scale0), 1.0f, total[i])",
    ),
    guess="05.break2",
)

# %% [markdown]
# <details><summary>Why</summary>
#
# One rounding more for each block, in the last of 24 bits. Hardly any BF16 result changes, but some lie just
# at the border between two. Such a kernel is not wrong. It is only no longer *the same*, and a test for equal
# bits, which finds every other fault at once, could not be used. So the order of the operations is written
# down.
#
# </details>
#
# **3.** The total is kept in BF16: after each promotion its lower 16 bits are cleared. How many times as
# large is the error at k = 4096 then?

# %% tags=["guess"]
exercises.guess("05.break3", None)

# %%
line = "total[i] = fmaf(partial[i], i / 2 % 2 ? scale1 : scale0, total[i]);"
short = (
    "{ "
    + line
    + " uint32_t bits; memcpy(&bits, &total[i], 4); bits &= 0xffff0000u; memcpy(&total[i], &bits, 4); }"
)
cut_total = workbench.changed("s3_wgmma", (line, short))
errors = {}
for k in (512, 4096):
    of = workbench.problem(m=64, n=64, k=k)
    right = gemm.dense(*of.arrays)
    for name, kernel in (("FP32 total", rung), ("BF16 total", cut_total)):
        errors[name] = metrics.relative_error(workbench.multiply(kernel, of, "cpu"), right)
        print(f"k = {k:4}, {name}: {errors[name]:.4f}")
exercises.found("05.break3", errors["BF16 total"] / errors["FP32 total"], "times as large at k = 4096")

# %% [markdown]
# <details><summary>Why</summary>
#
# Promoting helps only because the total has more bits than the tensor core's sum. With 8 bits it has fewer,
# and the error grows with the number of blocks.
#
# </details>
#
# ## Exercises
#
# **1.** What does the adder take of the number `x` when the largest exponent is `largest`?


# %% tags=["exercise"]
def taken(x, largest):
    return x


# %% tags=["check"]
exercises.check("05.1", taken)

# %% [markdown]
# **2.** All products are equal to $2^j$, and the tensor core adds them without end. Where does the sum stop?
# The check tries it.


# %% tags=["exercise"]
def stops_at(j):
    return 2.0**j


# %% tags=["check"]
exercises.check("05.2", stops_at)

# %% [markdown]
# **3.** All of A and B is 1, and a kernel promotes every `longest` of k, a multiple of 128. What is the
# largest one for which D, in FP32, is exact at k = $2^{20}$? Replace the 0.

# %% tags=["exercise"]
longest = 0

# %% tags=["check"]
exercises.check("05.3", longest)

# %% [markdown]
# **4.** A kernel multiplies numbers of 4 bits, and its tensor cores are twice as fast. It promotes every
# `every` of k with the same CUDA cores: what part of the multiplying time is that?


# %% tags=["exercise"]
def part(every):
    return 32 / every


# %% tags=["check"]
exercises.check("05.4", part)

# %% [markdown]
# Next: [the copy engine](06_tma.ipynb).
