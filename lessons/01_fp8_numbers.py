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
# # FP8 numbers and their scales
#
# A matrix product in [FP8](glossary.md#fp8), floating-point numbers of 8 bits, moves half the bytes of one in
# 16 bits, and Hopper's [tensor cores](glossary.md#tensor-core) compute it faster. This lesson is about what
# the 8 bits can hold, how scales stretch them, and what they cost.
#
# > **Needs:** lesson [00](00_start_here.ipynb). **Time:** 20 minutes to read, 30 for guesses and exercises;
# > its cells run in half a minute, less when its kernels have been compiled. **May be skipped:** *On matrices
# > that look real* (5 minutes more).

# %%
from gemm_ladder.figures import lessons

lessons.enter()  # makes this folder the working directory, wherever Jupyter was started

import numpy as np
from gemm_ladder.figures import measured
from gemm_ladder.ref import fp8, gemm, layouts, metrics
from matplotlib import pyplot as plt
from workshop import drawing, exercises, printed, workbench

drawing.style()
np.set_printoptions(precision=4, suppress=True, linewidth=100)

size = (4096, 7168, 16384)
recorded = {one.impl: one for one in measured.series(measured.recorded(), "dirty")}
fast, bf16 = recorded["cublaslt_tensorwise"], recorded["cublas_bf16"]
print(
    f"NVIDIA's FP8 product is {fast.tflops[size] / bf16.tflops[size]:.2f} times as fast as its BF16 product"
)
print(f"at m x n x k = {' x '.join(map(str, size))}.", *printed.provenance([fast, bf16]), sep="\n")

# %%
drawing.where("HBM", "tensor cores")

# %% [markdown]
# ## 256 numbers
#
# **[E4M3](glossary.md#e4m3)** has a sign, 4 bits of exponent and 3 of fraction: `s eeee mmm`.
#
# - Where `eeee` is not 0, the number is **normal**: $(-1)^s \cdot 1.mmm_2 \cdot 2^{e-7}$.
# - Where it is 0, it is **subnormal**: $(-1)^s \cdot 0.mmm_2 \cdot 2^{-6}$. These are evenly spaced, and
#   reach zero.
# - `s 1111 111` is NaN. There is no infinity, so the other codes with `1111` are ordinary numbers.
#
# The conversion in the repository is a table of all codes. Look some up:

# %%
for code in (
    0b0_0000_000,
    0b0_0000_001,
    0b0_0000_111,
    0b0_0001_000,
    0b0_0111_000,
    0b0_1111_110,
    0b1_1000_100,
    0x7F,
):
    bits = f"{code:08b}"
    print(f"{bits[0]} {bits[1:5]} {bits[5:]}   {fp8.decode(np.uint8(code)):g}")

# %% [markdown]
# Here is every positive one. Between two powers of two there are always eight normal numbers, so the gaps
# double with each power: it is the *relative* gap that stays the same.

# %%
drawing.number_line()

# %% [markdown]
# ## What rounding costs
#
# `fp8.encode` rounds to the nearest number, ties to the even code, as the GPU does. Take numbers of all sizes
# and measure the relative error of the trip to E4M3 and back.

# %%
x = np.geomspace(2.0**-11, 1024, 40_000)
error = np.abs(fp8.decode(fp8.encode(x)) - x) / x

_, axes = plt.subplots(figsize=(9, 2.8))
axes.plot(x, error, linewidth=0.6, color=drawing.BLUE)
axes.set_xscale("log", base=2)
axes.set_ylim(0, 1.05)
axes.set_title("Relative error of a number that becomes E4M3")
axes.set_xlabel("the number")
plt.show()

normal = (x >= 2.0**-6) & (x <= fp8.E4M3_MAX)
print(f"largest error of normal numbers: {error[normal].max():.4f} = 2^{np.log2(error[normal].max()):.2f}")
print(f"largest normal number: {fp8.E4M3_MAX:g}, smallest: {2.0**-6}, ratio: {fp8.E4M3_MAX / 2.0**-6:g}")

# %% [markdown]
# Three regions. In the middle the error is small, and does not depend on the size. To the left, among the
# subnormal numbers, it grows until everything becomes zero. To the right there is nothing above the largest
# number: conversion **saturates**, and the error grows without end.
#
# ## A scale moves the numbers to the middle
#
# Divide a block of numbers by a scale before the conversion, and multiply by it afterwards. DeepSeek-V3 takes
# the scale that sends the block's largest magnitude to E4M3's largest number: nothing saturates, and as many
# numbers as possible stay above the subnormal ones. Is that the best place? Try others: send the largest
# magnitude to 2 to any power.

# %%
rng = np.random.default_rng(1)
block = rng.standard_normal(4096)


def there_and_back(x, target):
    """x as E4M3, scaled so that its largest magnitude becomes `target`, and back."""
    scale = np.abs(x).max() / target
    return fp8.decode(fp8.encode(x / scale)) * scale


powers = np.arange(-10, 16)
errors = [metrics.relative_error(there_and_back(block, 2.0**power), block) for power in powers]
_, axes = plt.subplots(figsize=(9, 2.8))
axes.plot(powers, errors, marker="o", markersize=3, color=drawing.BLUE)
axes.axvline(np.log2(fp8.E4M3_MAX), color=drawing.ORANGE, linestyle="--", linewidth=1)
axes.text(np.log2(fp8.E4M3_MAX) - 0.2, 0.8, "E4M3's largest number", ha="right", color=drawing.ORANGE)
axes.set_ylim(0, 1)
axes.set_xlabel("power of two that the largest magnitude is sent to")
axes.set_title("Relative error of 4096 normal numbers")
plt.show()
print("sent to 448:", metrics.relative_error(there_and_back(block, fp8.E4M3_MAX), block))
print("sent to 1:  ", metrics.relative_error(there_and_back(block, 1.0), block))
print("sent to 2^10:", metrics.relative_error(there_and_back(block, 2.0**10), block))

# %% [markdown]
# It is flat over many powers of two. That is the floating point at work: in the middle region the relative
# error does not depend on the size. So where the scale sends the block matters little, as long as it does not
# saturate. Look at what becomes of each number:


# %%
def steps(axes, power):
    x = np.linspace(-4, 4, 2001)
    scale = 4 / 2.0**power
    axes.plot(x, x, color=drawing.GRID)
    axes.plot(x, fp8.decode(fp8.encode(x / scale)) * scale, color=drawing.BLUE, linewidth=1)
    axes.set_title(f"4 is sent to 2^{power}")
    axes.set_xlabel("the number")
    axes.set_ylabel("what it becomes")


figure, panels = plt.subplots(1, 3, figsize=(9, 2.8), layout="constrained")
for axes, power in zip(panels, (-6, 8, 10), strict=True):
    steps(axes, power)
plt.show()

# %% [markdown]
# On the left everything is subnormal: the steps are even, and coarse. In the middle the steps are fine near
# zero and grow with the numbers. On the right the large numbers saturate. Move the power yourself:


# %%
def staircase(power):
    _, axes = plt.subplots(figsize=(3.6, 3.2))
    steps(axes, power)
    plt.show()


workbench.slider(staircase, power=(-9, 12))

# %% [markdown]
# ## Who shares a scale
#
# One scale for the whole matrix would be the simplest. DeepSeek-V3 has more:
#
# - A, the activations: a scale for each run of 128 elements along k of a row, **1x128**. They are computed
#   anew for every token, and one token's numbers say little about another's.
# - B, the weights: a scale for each block of **128x128**. They are computed once.

# %%
drawing.scale_blocks(m=64, n=384, k=512)

# %% [markdown]
# A scale costs 4 bytes. How much is that for each operand?

# %%
for name, elements in {"1 x 128": 128, "128 x 128": 128 * 128}.items():
    print(f"{name:10} {4 / elements:.3%} more bytes")

# %% [markdown]
# The two casts, and the way back:

# %%
activations = rng.standard_normal((256, 512)).astype(np.float32)
weights = 0.02 * rng.standard_normal((384, 512)).astype(np.float32)
a, sfa = fp8.per_token_cast_to_fp8(activations)
b, sfb = fp8.per_block_cast_to_fp8(weights)
print("A", a.shape, "scales", sfa.shape, "   B", b.shape, "scales", sfb.shape)
print("error of A:", metrics.relative_error(fp8.dequantize_lhs(a, sfa), activations))
print("error of B:", metrics.relative_error(fp8.dequantize_rhs(b, sfb), weights))

# %% [markdown]
# ## What it costs a product
#
# Each term of a sum over k has an error of its own, and these are as often up as down: their sum grows like
# $\sqrt{k}$. But the terms, of normal numbers, are as often positive as negative, too, so that the sum itself
# also grows like $\sqrt{k}$. The relative error of the product does not depend on k. (Were all terms
# positive, the sum would grow like k, and the relative error would fall.)

# %%
for k in (128, 512, 2048, 8192):
    x, y = (rng.standard_normal((128, k)).astype(np.float32) for _ in range(2))
    quantised = gemm.dense(*fp8.per_token_cast_to_fp8(x), *fp8.per_block_cast_to_fp8(y))
    full = x.astype(np.float64) @ y.T.astype(np.float64)
    relative, diff = metrics.relative_error(quantised, full), metrics.calc_diff(quantised, full)
    print(f"k = {k:5}: relative error {relative:.4f}, calc_diff {diff:.6f}")

# %% [markdown]
# `calc_diff` is DeepGEMM's measure, about half of the relative error's square.
#
# This error is made before a kernel starts. A kernel cannot undo it, and must not hide its own errors behind
# it. So the tests of this repository compare a kernel with the product of the *quantised* matrices. A bug of
# the same size as the quantisation would otherwise go unseen.
#
# ## Outliers
#
# In a language model's activations a few channels are often far larger than the rest. Such an **outlier**
# decides the scale of everything that shares it. What happens to the others?
#
# With 8-bit integers the answer is well known: they lose their bits. E4M3 is a floating-point format. Before
# you run the cell, guess: how many times as large as the rest may an outlier be, if one scale covers the
# whole matrix, until the error of the others has doubled?

# %% tags=["guess"]
exercises.guess("01.outlier", None)


# %%
def per_tensor(x):
    return there_and_back(x, fp8.E4M3_MAX)


def int8_per_tensor(x):
    scale = np.abs(x).max() / 127
    return np.rint(x / scale) * scale


def by_1x128(x):
    return fp8.dequantize_lhs(*fp8.per_token_cast_to_fp8(x.astype(np.float32)))


def by_128x128(x):
    return fp8.dequantize_rhs(*fp8.per_block_cast_to_fp8(x.astype(np.float32)))


factors = 2.0 ** np.arange(0, 19)
base = rng.standard_normal((128, 1024))
ordinary = np.arange(1024) != 77  # column 77 is the outlier
casts = {"INT8, one scale": int8_per_tensor, "E4M3, one scale": per_tensor, "E4M3, 1x128": by_1x128}
_, axes = plt.subplots(figsize=(9, 3.2))
doubled = {}  # by cast, the first factor at which the error has doubled
for (name, cast), colour in zip(casts.items(), ("#9a9a9a", drawing.ORANGE, drawing.BLUE), strict=True):
    errors = []
    for factor in factors:
        x = np.where(ordinary, base, factor * base)
        errors.append(metrics.relative_error(cast(x)[:, ordinary], base[:, ordinary]))
    axes.plot(factors, errors, marker="o", markersize=3, color=colour, label=name)
    doubled[name] = next(
        (x for x, error in zip(factors, errors, strict=True) if error > 2 * errors[0]), np.inf
    )
    at = [f"{factor:g}: {errors[int(np.log2(factor))]:.3f}" for factor in (1, 16, 256, 4096, 65536)]
    print(f"{name:16} {'   '.join(at)}")
axes.set_xscale("log", base=2)
axes.set_ylim(0, 1.05)
axes.set_xlabel("how many times larger one of 1024 columns is")
axes.set_title("Relative error of the other columns")
axes.legend()
plt.show()
exercises.found("01.outlier", doubled["E4M3, one scale"], "times, with E4M3")

# %% [markdown]
# Integers fail early. E4M3 with one scale holds on until the ordinary numbers reach the subnormal region, and
# then fails as well. With 1x128 scales an outlier can spoil only the runs that it is in, one of the eight of
# each row here: the same happens, to an eighth of the numbers. It also happens later. One scale for the
# matrix has to suit the largest of 128 outliers, while a run's scale has to suit its own row's alone.
#
# So fine scales buy *range*, not precision: a format with 4 bits of exponent has much range of its own, and
# blocks add the rest.
#
# ## On matrices that look real (optional)
#
# These are generated, not a model's, but generated to look like one's; a trained model's are in [the lesson
# on precision](05_precision.ipynb). The weights have heavier tails than normal numbers (Student's t), rows of
# different sizes, and one in 20000 is far out. The activations have channels of very different sizes, a few
# of them enormous. The last column is the error of their product.

# %%
m, n, k = 256, 256, 2048
channels = np.exp(rng.normal(0, 1.0, k))
channels[rng.choice(k, 6, replace=False)] *= 3000
activations = rng.standard_normal((m, k)) * channels
weights = 0.02 * rng.standard_t(5, (n, k)) * np.exp(rng.normal(0, 0.5, (n, 1)))
weights *= np.where(rng.random((n, k)) < 1 / 20000, 100, 1)
weights /= channels  # a model learns small weights where the activations are large
ordinary = channels < np.quantile(channels, 0.95)

full = activations @ weights.T
print(f"{'':24}{'activations':>12}{'ordinary ones':>15}{'weights':>10}{'product':>10}")
for name, cast_a, cast_b in (
    ("one scale each", per_tensor, per_tensor),
    ("1x128 and 128x128", by_1x128, by_128x128),
    ("1x128 for both", by_1x128, by_1x128),
):
    x, w = cast_a(activations), cast_b(weights)
    print(
        f"{name:24}{metrics.relative_error(x, activations):12.4f}"
        f"{metrics.relative_error(x[:, ordinary], activations[:, ordinary]):15.4f}"
        f"{metrics.relative_error(w, weights):10.4f}{metrics.relative_error(x @ w.T, full):10.4f}"
    )

# %% [markdown]
# The first column hides the damage: it is a norm, and the enormous channels fill it. (With 1x128 scales it is
# nearly zero: an enormous number is the largest of its run, so it becomes 448 exactly.) The second looks at
# the ordinary channels, and the last at the product, to which they contribute as much as the others. That is
# worth remembering whenever you are given one number for the error of a whole matrix.
#
# ## Why the scales shape the kernel
#
# One scale for each matrix could wait until the end: multiply everything, then scale D once. Scales that
# change along k cannot. After every 128 of k the sum so far has to be scaled by $s^A_{i,k/128} \cdot
# s^B_{j/128,k/128}$ and added to a total. This is the **[promotion](glossary.md#promotion)** of [the first
# lesson](00_start_here.ipynb).
#
# Why 128, and not 32 or 512? Shorter runs follow the numbers more closely, but each costs a promotion; and
# there is another reason, in how tensor cores add, which [the lesson on
# precision](05_precision.ipynb) shows.
#
# ## How A's scales lie in memory
#
# A kernel's [tile](glossary.md#tile) has 64 rows or more, and for one [block of k](glossary.md#k-block) it
# needs the scales of all of its rows. So the kernels want them with m contiguous, each column padded to a
# multiple of 16 bytes, as the [copy engine](06_tma.ipynb) demands.

# %%
scales = np.arange(10, dtype=np.float32).reshape(5, 2)  # m = 5, two blocks of k
aligned = layouts.get_mn_major_tma_aligned(scales)
print("strides in elements, before:", tuple(stride // 4 for stride in scales.strides))
print("strides in elements, after: ", tuple(stride // 4 for stride in aligned.strides))
print("in memory:", np.lib.stride_tricks.as_strided(aligned, (16,), (4,)))

# %% [markdown]
# ## Exercises
#
# **1.** Decode E4M3 yourself. The check tries every code but the two NaNs.


# %% tags=["exercise"]
def decode(code):
    sign = -1 if code & 0x80 else 1
    exponent = code >> 3 & 0xF
    fraction = code & 0x7
    return sign * (1 + fraction / 8) * 2.0 ** (exponent - 7)


# %% tags=["check"]
exercises.check("01.1", decode)

# %% [markdown]
# **2.** The scales of 128x128 blocks: a float for each block of `x`, whose sides are multiples of 128, such
# that the block's largest magnitude becomes 448.


# %% tags=["exercise"]
def block_scales(x):
    return np.abs(x).max() / 448


# %% tags=["check"]
exercises.check("01.2", block_scales)

# %% [markdown]
# **3.** Break it: a colleague's cast divides by a scale that is eight times too small. Predict the relative
# error of this lesson's 4096 normally distributed numbers, cast with one scale, then replace the 0 below.
# Within a twentieth of the truth is right.

# %% tags=["exercise"]
predicted = 0.0

# %% tags=["check"]
exercises.check("01.3", predicted)

# %% [markdown]
# Next: [the product on a GPU, the simplest way](02_naive.ipynb).
