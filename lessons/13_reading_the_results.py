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
# # Reading the results
#
# Most lessons ended with a speed. This one is about the speeds themselves: what exactly was measured, what a
# number may be compared with, what it could have been at best, and how a true number misleads. All of it is
# in [figures/data](../figures/data): you can answer each question below from the files.
#
# > **Needs:** lesson [11](11_production.ipynb). **Time:** 50 minutes to read, 55 for guesses and exercises;
# > its cells run in a minute, less when its kernels have been compiled. **May be skipped:** nothing.

# %%
from gemm_ladder.figures import lessons

lessons.enter()  # makes this folder the working directory, wherever Jupyter was started

import json
import math
import statistics

import gemm_ladder as gl
import numpy as np
import torch
from gemm_ladder.arguments import H100_SMS
from gemm_ladder.figures import draw, everywhere, measured, production, roofline, tables
from gemm_ladder.measure import peers, problems, timing
from gemm_ladder.measure.shapes import Shape
from gemm_ladder.production import prediction
from gemm_ladder.production.launching import configuration
from gemm_ladder.testing import calc_diff
from workshop import drawing, drawing_results, evidence, exercises, workbench

drawing.style()

# %%
drawing.where("HBM", "L2", "tensor cores")

# %% [markdown]
# ## One row
#
# A file has rows, and a **meta** that says where they come from. Without the meta a time is only a number.

# %%
data = measured.load(measured.DATA / "ladder.json")
for field in ("gpu", "num_sms", "power_limit_w", "driver", "cuda", "torch", "date"):
    print(f"{field:14} {data['meta'][field]}")
print(f"{'sources':14} {data['meta']['sources'][:12]}, a hash of the kernels' tokens")

# %%
row = next(row for row in data["rows"] if row["impl"] == "s9_production")
for field, value in row.items():
    print(f"{field:8} {value}")

# %% [markdown]
# - **sources**, in the meta: which kernels these are. It is a digest of all words and signs of the kernels'
#   files, comments left out. If it is not that of the files beside you, one of them has been changed since:
#   perhaps a kernel, perhaps only a name. Whether the *machine code* is another one can be asked:
#   `python -m gemm_ladder.measure.carry_over COMMIT --machine-code` compiles the kernels of then and of now,
#   and if they have the same instructions, it writes the present digest into the file. A file with an older
#   digest is of the kernels of its date, and no more can be said of it.
# - **us**: microseconds, the median of some calls; **us_p10** and **us_p90**: a tenth of the calls was
#   faster, a tenth slower.
# - **tflops** and **gb_s** follow from the time: operations, and the bytes that have to move *at least*, by
#   the shape alone. A kernel that moves more bytes gets no credit for them.
# - **rel_err**: how far the result was from the reference. A time of a wrong result is not kept.
# - **l2**: the state of the cache before each call. The next section says how it is made.
#
# Check the two that follow, for all rows:

# %%
worst = 0.0
for row in data["rows"]:
    shape = Shape(row["m"], row["n"], row["k"])
    tflops = shape.flops / row["us"] / 1e6
    gb_s = peers.bytes_moved(row["impl"], shape) / row["us"] / 1e3
    rounding = 0.05 / row["gb_s"]  # gb_s has one decimal place, and s1 moves few bytes a second
    worst = max(worst, abs(tflops / row["tflops"] - 1), abs(gb_s / row["gb_s"] - 1) - rounding)
print(f"{len(data['rows'])} rows; the largest difference: {worst:.3%}")

# %% [markdown]
# ## How a time is taken
#
# The protocol, in the file's own words:

# %%
workbench.Text("> " + data["meta"]["protocol"])

# %% [markdown]
# **Kernel time.** The CUDA profiler reports when each kernel began and ended on the GPU. The host's share and
# the gaps between kernels are not in it; [lesson 11](11_production.ipynb) has the host's share. A call may be
# several kernels, and their times are added. To find them, a small kernel runs before and after each call as
# a marker. Try the function that reads the profiler's list:

# %%
seen = [
    ("memset", 2700.0),  # makes L2 cold
    ("spin_kernel", 1.0),
    ("gemm", 10.0),
    ("spin_kernel", 1.0),
    ("memset", 2700.0),
    ("spin_kernel", 1.0),
    ("split_k_gemm", 6.0),
    ("reduce", 3.0),
    ("spin_kernel", 1.0),
]
print("microseconds of the calls:", timing.between_markers(seen, calls=2))

# %% [markdown]
# What if you time only the kernel whose name says gemm? Then a library that [splits K](glossary.md#split-k),
# and adds up the parts in a second kernel, looks faster than it is. And what if the profiler loses an event,
# which happens?

# %%
try:
    timing.between_markers(seen[:3] + seen[4:], calls=2)
except gl.GemmLadderError as error:
    print(error)

# %% [markdown]
# **A cold [L2](glossary.md#l2).** In a model, other layers run between two calls of a product, and its
# weights have left the cache. A benchmark that calls the same product again and again finds them there. So
# before each call 8 GB are written. That leaves L2 full of lines that memory does not have yet,
# **[dirty](glossary.md#dirty)** lines, and the kernel that comes next has to wait while they are written
# back. With 1 GB *read* afterwards, L2 is cold but **clean**.
#
# Predict: which products take longer with L2 dirty, and by how much? For s9_production, which shape loses
# most?

# %% tags=["guess"]
SHAPES = ("64 x 7168 x 2048", "64 x 7168 x 16384", "4096 x 7168 x 2048", "4096 x 7168 x 16384")
exercises.guess("13.dirty", None, *SHAPES)

# %%
drawing_results.states(["s9_production", "cublaslt_blockwise", "s3_wgmma"])
both = [drawing_results.times("s9_production", l2) for l2 in ("dirty", "clean")]
loss = {shape: both[0][shape] / both[1][shape] for shape in both[0] if drawing_results.name(shape) in SHAPES}
exercises.found("13.dirty", drawing_results.name(max(loss, key=loss.get)))

# %% [markdown]
# <details><summary>Why</summary>
#
# A line leaves L2 when another one needs its place. So what has to be written back is bounded by what the
# product reads and writes, and by the size of L2. A product of few rows reads much for its time; a small
# square reads little; and one of a millisecond does not see a cost that is bounded.
#
# </details>
#
# Neither state is the right one. But a number with one of them must not stand beside a number with the other:

# %%
dirty, clean = drawing_results.times("s9_production"), drawing_results.times("s9_production", "clean")
theirs = drawing_results.times("cublaslt_blockwise"), drawing_results.times("cublaslt_blockwise", "clean")
shape = max(dirty, key=lambda shape: dirty[shape] / clean[shape])
print(f"s9_production against cuBLASLt at {drawing_results.name(shape)}:")
print(f"    both dirty                     {theirs[0][shape] / dirty[shape]:.2f}")
print(f"    both clean                     {theirs[1][shape] / clean[shape]:.2f}")
print(f"    ours clean, theirs dirty       {theirs[0][shape] / clean[shape]:.2f}")

# %% [markdown]
# **Random numbers.** Operands of zeros would not do. Fewer bits change in the multipliers, the GPU needs less
# power, and where power sets the clock, it runs faster ([Horace
# He](https://www.thonking.ai/p/strangely-matrix-multiplications) measured that). This GPU may draw as many
# watts as `power_limit_w` says, and where a product reaches that limit, a kernel that needs less energy is a
# faster kernel.
#
# **Two passes.** All implementations run in one process, in two passes of opposite order, and the better pass
# counts. Try `measure` with GPUs that are made up. On both of them "first" and "second" are equally fast: 100
# us. The one is slow until it has worked for a while, the other slows down while it works.


# %%
class MadeUp:
    """A timer: call after call it takes 100 us, times what `factor` says of the calls before it."""

    def __init__(self, factor):
        self.factor, self.before = factor, 0

    def __call__(self, call, l2, calls):
        times = [100 * self.factor(self.before + i) for i in range(calls)]
        self.before += calls
        return times


gpus = {
    "slow to start": lambda call: 1 + 0.2 * math.exp(-call / 10),
    "slows down": lambda call: 1.1 - 0.1 * math.exp(-call / 10),
}
for words, factor in gpus.items():
    one_pass = MadeUp(factor)
    medians = [statistics.median(one_pass(None, "dirty", 20)) for _ in range(2)]
    calls = {"first": None, "second": None}
    both, _ = timing.measure(calls, dict.fromkeys(calls, 20), ("dirty",), MadeUp(factor))
    print(f"{words:14} one pass:   first {medians[0]:5.1f} us, second {medians[1]:5.1f} us")
    first, second = (both[name, "dirty"].us for name in calls)
    print(f"{'':14} two passes: first {first:5.1f} us, second {second:5.1f} us")

# %% [markdown]
# Two passes cure what makes a GPU slow for a while. They do not cure what favours the one that ran first.
# Against that, there is something between the calls: 8 GB of memset, which takes longer than most products
# and keeps the GPU in the same state for all. No protocol cures everything, which is why it is written down.
#
# **Clocks.** The [SM clock](glossary.md#sm-clock) is not pinned: the GPU is measured as its users have it. It
# chooses the clock itself, up to 1.98 GHz, as high as its power limit and its temperature let it. A time does
# not say what the clock was, but [TFLOPS](glossary.md#tflops) say what it was *at least*: the [tensor
# cores](glossary.md#tensor-core) of an [SM](glossary.md#sm) do no more than 8192 operations a cycle.

# %%
best = {
    row["impl"]: row["tflops"]
    for row in drawing_results.rows()
    if drawing_results.size(row) == (4096, 7168, 16384)
}
best["the data sheet"] = drawing_results.SHEET_TFLOPS
for impl in ("cublas_bf16", "cublaslt_blockwise", "s9_production", "cublaslt_tensorwise", "the data sheet"):
    a_cycle = prediction.WGMMA_FLOPS // (2 if impl == "cublas_bf16" else 1)  # BF16: half as many
    clock = best[impl] * 1e6 / (a_cycle * data["meta"]["num_sms"])
    print(f"{impl:20} {best[impl]:5.0f} TFLOPS need {clock:5.0f} MHz, if no cycle is lost")

# %% [markdown]
# Two kernels can both keep the tensor cores busy all the time, and yet differ in speed: the one that moves
# fewer bytes and issues fewer other instructions leaves more of the power to the tensor cores, and gets a
# higher clock.
#
# ## How much a number moves
#
# The same kernel does not take the same time twice. Inside a run:

# %%
drawing_results.spreads()

# %% [markdown]
# From run to run it is another matter. The libraries were measured twice, in two runs. By how many per cent
# may a shape's time move? Guess the bound that nine shapes in ten keep.

# %% tags=["guess"]
exercises.guess("13.noise", None)

# %%
for name in ("ladder.json", "production.json"):
    meta = measured.load(measured.DATA / name)["meta"]
    print(f"{name:11} {meta['gpu']}, driver {meta['driver']}, torch {meta['torch']}; {meta['date']}")
again = drawing_results.two_runs(["cublas_bf16", "cublaslt_blockwise", "cublaslt_tensorwise"])
ratios = [ratio for values in again.values() for ratio in values]
noise = float(np.percentile([abs(ratio - 1) for ratio in ratios], 90))
most = max(abs(ratio - 1) for ratio in ratios)
print(f"9 of 10 shapes moved by less than {noise:.1%}, none by more than {most:.1%}")
exercises.found("13.noise", 100 * noise, "per cent")

# %% [markdown]
# This is what a difference has to be compared with. Take [rung](glossary.md#rung) s8, whose modes differ in
# some control bits, in the file [interleave.json](../figures/data/interleave.json), where all were measured
# in one run. Is one of them faster than what the compiler made?

# %%
modes = measured.load(measured.DATA / "interleave.json")["rows"]
at = {(drawing_results.size(row), row["impl"]): row for row in modes}
print(f"from run to run: {noise:.1%}")
for size, mode in at:
    if mode == "s8_compiler":
        continue
    mine, base = at[size, mode], at[size, "s8_compiler"]
    apart = mine["us_p90"] < base["us_p10"] or mine["us_p10"] > base["us_p90"]
    change = mine["us"] / base["us"] - 1
    words = f"percentiles {'apart,' if apart else 'overlap,':8} "
    words += f"{'more' if abs(change) > noise else 'less'} than from run to run"
    print(f"{drawing_results.name(size):>20} {mode:10} {change:+6.2%}, {words}")

# %% [markdown]
# A difference inside one run may be smaller than those between runs and yet be real: where the percentiles
# are apart. Where they overlap, single calls of the two modes cannot be told apart, and a median that is
# off by more than runs are from each other says that this shape's times scatter: measure it again, with
# more calls, before you believe it. A difference below both is not a result. "No difference" is a result,
# too; [lesson 10](10_ffma_interleave.ipynb) is about this one.
#
# So the tables here show a library from the same run as the kernels, or not at all. Where only a time of
# another run can be had, it has to be brought to this run by **yardsticks**: what other libraries took in
# this run over what they took in that one.
#
# ## What is possible: the roofline
#
# [Lesson 02](02_naive.ipynb) has the [roofline](glossary.md#roofline): operations a byte to the right, and
# two roofs. Here are all rungs under it. Which bandwidth, which speed? The data sheet's (dotted), or what has
# been reached: a copy, and the product with one scale per tensor, on this very GPU?

# %%
impls = [name for name in gl.rungs if name != "s0_numpy"] + ["cublaslt_tensorwise"]
sizes = [(64, 7168, 16384), (512, 512, 512), (4096, 32768, 512), (4096, 7168, 16384)]
drawing_results.roofline(sizes, impls)
print(f"data sheet: {drawing_results.memory().sheet} TB/s, {drawing_results.SHEET_TFLOPS} TFLOPS")
print(f"reached:    {drawing_results.memory().copy} TB/s, {drawing_results.ceiling():.0f} TFLOPS")

# %% [markdown]
# Read it column by column.
#
# - Under the slope only bytes help. A kernel near it is done, however few TFLOPS it has.
# - Under the flat part only a busier tensor core helps.
# - A column far from both, like the small square, is limited by neither: too few [tiles](glossary.md#tile) to
#   fill the GPU, and a time so short that starting and ending is most of it. No roof knows that.
#
# The data sheet's flat roof is out of reach for every kernel here: it assumes an SM clock of 1.83 GHz, and
# under full load the power limit does not allow that. So "percent of peak" says little, and the lessons use
# "percent of the [ceiling](glossary.md#ceiling)". The tensor-core share, which is also ncu's percentage and a
# timeline's, is another: it is of the cycles that there were, at whatever clock. This is the whole thread,
# for 4096 x 7168 x 2048 (the timelines have k = 1024, and lower shares):

# %%
evidence.thread("s9_production")

# %%
SIZES = sorted(drawing_results.times("s9_production"))
workbench.slider(
    lambda shape: drawing_results.roofline([tuple(map(int, shape.split(" x ")))], impls),
    shape=[drawing_results.name(size) for size in SIZES],
)

# %% [markdown]
# The same for the top rung at every shape, as a part of its roof:

# %%
drawing_results.of_the_roof("s9_production")

# %% [markdown]
# Before you say that a kernel reaches only half of what is possible: would another be faster? The roof is a
# bound, not a promise. Look for the best library at the same shape before you answer.
#
# ## What the tiles allow: waves
#
# Between the roof and the time lies something that you can compute: how full the [waves](glossary.md#wave)
# are ([lesson 11](11_production.ipynb)). For the shapes with many rows, the share of the SMs' time that goes
# into valid outputs, against the part of the ceiling that was measured:

# %%
points = {}
for (m, n, k), us in drawing_results.times("s9_production").items():
    if m < 2048:
        continue
    one = configuration("dense", m, n, k, 1, None, H100_SMS, data["meta"]["gpu"])  # what a call runs
    parts = one.parts(m, H100_SMS)  # the last rows may have another tile
    tiles = [(part.units(rows), part.tile_m * part.tile_n) for part, rows in parts]
    full = m * n / (prediction.busy(tiles, one.at_once(H100_SMS)) * H100_SMS)
    part = 2 * m * n * k / us / 1e6 / drawing_results.ceiling()
    points[drawing_results.name((m, n, k))] = full, part
drawing_results.fullness(points)

# %% [markdown]
# The dots lie at 97 to 100 % to the right: with the tiles that are chosen hardly any wave is empty, and
# what these shapes lose is something else. On the dotted line a kernel would lose nothing but its empty
# waves. A dot far below it loses something else: with k = 512 the output is as large as it is elsewhere,
# but there is little to multiply while it leaves. With 2048 x 2048 x 2048 all of it takes one wave, a
# matter of microseconds, of which starting, the first load and the last store are a part that nothing
# hides.
#
# ## Pictures that mislead
#
# The same four numbers:

# %%
shape = (4096, 7168, 16384)
drawing_results.three_axes(
    ["s7_persistent", "s9_production", "cublaslt_blockwise", "cublaslt_tensorwise"], shape
)

# %% [markdown]
# All three are right. The length of a bar is compared with other bars' lengths, so a bar has to begin at
# zero, and the one in the middle tells a lie that the one on the left does not. A logarithmic axis is for
# numbers that differ by factors, as from s1 to s9; here it hides what there is to see.
#
# The lessons' bars are logarithmic, as s1 has to be in sight. The ladder's own figure has lines from zero.
# Look at it with these questions: which panels can be compared with each other? Where do lines cross, and
# what does a line *between* two shapes mean? (Nothing: it leads the eye.)
#
# ![The ladder: TFLOPS by shape and by size](../figures/ladder.png)
#
# ## Ratios
#
# "How many times as fast" is a ratio, and 2 and 1/2 have to look equally far from 1: so the axis is
# logarithmic, or the bars begin at 1. The dashed line is the **geometric mean**, the mean on that axis.

# %%
found = drawing_results.ratios("s9_production", "cublaslt_blockwise")

# %% [markdown]
# Why not the ordinary mean? Compute it in both directions:

# %%
there, back = list(found.values()), [1 / ratio for ratio in found.values()]
for words, mean in (("ordinary", statistics.fmean), ("geometric", statistics.geometric_mean)):
    s9, cublaslt = mean(there), mean(back)
    print(
        f"{words:9} mean: s9 is {s9:.3f} times as fast, cuBLASLt {cublaslt:.3f}; product {s9 * cublaslt:.3f}"
    )

# %% [markdown]
# With the ordinary mean both can be "faster on average". The geometric mean of the one direction is the
# inverse of the other's. Yet it is one number about a chosen set of shapes. See what other sets give:

# %%
sets = {
    "all shapes": list(found),
    "64 rows": [shape for shape in found if shape[0] == 64],
    "4096 rows": [shape for shape in found if shape[0] == 4096 and not measured.is_square(shape)],
    "squares": [shape for shape in found if measured.is_square(shape)],
    "the best three": sorted(found, key=found.get)[-3:],
}
for words, shapes in sets.items():
    print(f"{words:15} {statistics.geometric_mean(found[shape] for shape in shapes):.3f}")

# %% [markdown]
# ## The whole table
#
# [production.json](../figures/data) has every product of DeepSeek-V3, grouped ones too, and for each the best
# implementation of the *same* product that could be found, not the one that is easiest to beat. One with a
# scale per tensor is not among them: it computes something else.

# %%
recorded = draw.recorded(measured.DATA)
if "production" in recorded:
    everything = recorded["production"]
    rows = production.compared(everything, "dirty")
    print(*production.summary(rows), sep="\n")
else:
    print("Not measured yet. On a machine with a Hopper GPU: python -m gemm_ladder production")
drawing_results.page(production.picture(everything)) if "production" in recorded else None

# %% [markdown]
# All rows of that file, and the rungs, under the roof:

# %%
ladder = measured.recorded()
drawing_results.page(roofline.roofline(everything, ladder)) if "production" in recorded else None

# %% [markdown]
# A last look at the table: which shapes lose? The printed lines say how many. Their bars go from 1 to the
# left; one that is less than half a per cent behind is labelled 1.00 and has no bar that can be seen. (The
# black ticks are the ceiling's.) Losers are the ones to ask about first. A table in which nothing loses may
# be a table from which something was taken.
#
# ## How to doubt a benchmark
#
# Each of the next cells takes a true measurement and makes a wrong claim of it. Say what is wrong before you
# look at the answer below it.
#
# **1.** "Our kernel reaches more TFLOPS than any library here."

# %%
lookup = {(row["impl"], drawing_results.size(row)): row["tflops"] for row in drawing_results.rows()}
shape = max(found, key=found.get)
print(f"at {drawing_results.name(shape)}:")
for impl in ("s9_production", "cublas_bf16"):
    print(f"    {impl:13} {lookup[impl, shape]:4.0f} TFLOPS")

# %% [markdown]
# <details><summary>What is wrong</summary>
#
# Three things. The shape is the one with the best ratio. The peer computes in BF16, on tensor cores that do
# half as many operations a cycle, and moves twice the bytes. And there are other peers in the same file. Ask
# for the strongest peer, at the shapes that you use.
#
# </details>
#
# **2.** "Masked, 4096 rows of which 256 count: 16 times the TFLOPS." Count the operations of all rows, and of
# those that count:

# %%
us, groups, rows_held, rows_counted, n, k = 40.0, 4, 4096, 256, 4096, 7168  # a made-up time
for words, m in (("all rows", rows_held), ("rows that count", rows_counted)):
    print(f"{words:16} {2 * groups * m * n * k / us / 1e6:8.0f} TFLOPS")

# %% [markdown]
# <details><summary>What is wrong</summary>
#
# Rows that are not multiplied are not operations. The first number is above every roof: that is how you
# notice. In production.json, operations and bytes are those of the rows that count.
#
# </details>
#
# **3.** "Its result is right: the difference is below 0.001." One row of 4096 is wrong, by a factor of 2:

# %%
rng = np.random.default_rng(0)
reference = torch.from_numpy(rng.standard_normal((4096, 256)))
wrong = reference.clone()
wrong[1234] *= 2
print(f"calc_diff, over the whole matrix: {calc_diff(wrong, reference):.2g}")
print(
    "problems.errors:",
    problems.errors(wrong, reference),
    "right:",
    problems.errors(wrong, reference).right,
)

# %% [markdown]
# <details><summary>What is wrong</summary>
#
# One number over a matrix averages a wrong row away. `problems.errors` also takes the worst element, over
# its row's own size. A fast kernel that forgets the last tile is fast.
#
# </details>
#
# **4.** "1000 calls took 4 ms by the host's clock: 4 us a call." No GPU is needed to see how that comes
# about. This is a GPU that takes 50 us for a call, and a host that takes 4 us to queue one:

# %%
host_us, kernel_us, calls = 4.0, 50.0, 1000
host_now, gpu_free = 0.0, 0.0
for _ in range(calls):
    host_now += host_us
    gpu_free = max(gpu_free, host_now) + kernel_us
print(f"stopped when the last call was queued:   {host_now / calls:5.1f} us a call")
print(f"stopped when the GPU had finished:       {gpu_free / calls:5.1f} us a call")

# %% [markdown]
# <details><summary>What is wrong</summary>
#
# A call returns when it is queued. Without waiting for the GPU (`torch.cuda.synchronize()`), you time the
# host. With it, and one call at a time, you time both, one after the other. With many calls in a row and one
# wait at the end, the longer of both; a little less if kernels may begin before those ahead have ended, as
# [rung s9](11_production.ipynb)'s do. And with all of them the same product is called again and again, with
# L2 warm.
#
# </details>
#
# **5.** "2 % faster", with the times of two runs, ten calls each, the fastest taken.
#
# <details><summary>What is wrong</summary>
#
# Perhaps nothing; but look at what the libraries moved by from run to run, above. And the fastest of ten is
# the luckiest: it gets better the more often you try, so the one who tries more wins. Take the median, one
# run, both orders, and show the spread.
#
# </details>
#
# ## The same doubts, about our own tables
#
# **Where do we lose?** The table above was chosen by us: the shapes of one model, for which kernels were
# tuned. [everywhere.json](../figures/data/everywhere.json) was not: public models' weights, cut for 1 to 8
# GPUs, with m from 1 to 16384. A ratio is the best library's time over ours in the same run, in one of
# three states of L2. In how many of 100 cells are we slower than a library? Guess. (The repository's front
# page tells it, if you have read that.)

# %% tags=["guess"]
exercises.guess("13.lost", None)

# %%
cells = everywhere.load(measured.DATA / "everywhere.json")
by_state = {state: everywhere.ratios(cells, state) for state in everywhere.STATES}
every = [one for found_in in by_state.values() for one in found_in]
exercises.found("13.lost", 100 * sum(one.value < 1 for one in every) / len(every), "of 100")
for state, found_in in by_state.items():
    lost = [one for one in found_in if one.value < 1]
    by_more = sum(one.value < 1 - noise for one in lost)
    print(f"{state:6} {len(lost):3} of {len(found_in)} below 1, {by_more} of them by more than {noise:.1%}")

# %% [markdown]
# And how is that with more rows? A mean over all m hides it:

# %%
for low, high in ((1, 128), (129, 1024), (1025, 16384)):
    some = [one for one in every if one.key[0] == "dense" and low <= one.key[2] <= high]
    lost = sum(one.value < 1 for one in some) / len(some)
    print(
        f"dense, m from {low:4} to {high:5}: geometric mean {everywhere.mean(some):.3f}, {lost:.0%} below 1"
    )

# %% [markdown]
# Our own "1.1 times as fast" comes from the rows where a call takes ten microseconds. Where it takes a
# millisecond there is little between the libraries, and sometimes less than nothing. The exercise at the
# end asks for the worst cell.
#
# **The card decides.** 4096 x 7168 x 16384 is the shape of the ladder's bars, and power sets its clock. These
# are the runs of this repository's history at that shape, on whatever card of the model there was that day.
# cuBLASLt's code is the same in all of them. The last column is DeepGEMM's time of the first day, divided by
# ours of each:

# %%
with open("data/runs.json") as file:
    runs = json.load(file)
shape, across = tuple(runs["shape"]), runs["across"]
(theirs_then,) = (row[6] for row in across["rows"] if tuple(row[:6]) == ("dense", 1, *shape, "dirty"))
head = [
    "date",
    "GPU",
    "cuBLASLt, per tensor",
    "cuBLASLt, per block",
    "ours",
    "DeepGEMM then / ours",
]
lines = []
for run in runs["runs"]:
    us = run["us"]
    mine = us.get("s9_production", us.get("s7_production"))  # the top rung was the seventh once
    times = [us["cublaslt_tensorwise"], us["cublaslt_blockwise"], mine]
    ratio = f"{theirs_then / mine:.3f}" if mine else "-"
    lines.append([run["date"], run["gpu"], *(f"{one:.1f}" if one else "-" for one in times), ratio])
print(tables.plain([head, *lines]))
print(f"DeepGEMM on the first day, at which our top rung was not timed: {theirs_then:.1f} us")
ceilings = [run["us"]["cublaslt_tensorwise"] for run in runs["runs"]]
print(f"the same library, the same product: {max(ceilings) / min(ceilings) - 1:.1%} between these runs")

# %% [markdown]
# On 26 November the first run lost by 4 %, and the second drew. Between them some lines of the kernel had
# changed, and the card: cuBLASLt's time says by how much. That is more than lies between us and DeepGEMM when
# both are in one run:

# %%
at_shape = {row["impl"]: row["us"] for row in drawing_results.rows() if drawing_results.size(row) == shape}
if "deep_gemm" in at_shape:
    print(f"DeepGEMM's time over ours: {at_shape['deep_gemm'] / at_shape['s9_production']:.3f}, in one run")

# %% [markdown]
# So at this shape a time of ours on a good card beside theirs on a bad one is a victory, and the other way
# round a defeat, with the same two kernels. Whoever shows one number for it has chosen a card.
#
# **A ratio across days.** We told one. Until 28 November 2026 README showed DeepGEMM's times of the 22nd
# beside ours of the 27th, of another card of the same model; the libraries that were in both runs were
# yardsticks, and agreed within 3 %. Then DeepGEMM was measured beside ours. These are the products at which
# the two ways of comparing differ most:

# %%
day_by_day = {tuple(row[:6]): row[6] / row[7] for row in across["rows"]}
beside = {}
for row in measured.load(measured.DATA / "production.json")["rows"]:
    key = row["kind"], row["groups"], row["m"], row["n"], row["k"], row["l2"]
    beside.setdefault(key, {})[row["impl"]] = row["us"]
one_run = {key: us["deep_gemm"] / us["s9_production"] for key, us in beside.items() if "deep_gemm" in us}
both = [key for key in day_by_day if key in one_run]
for words in ("theirs", "ours"):
    print(f"{words:7} {across[words]['gpu']}, {across[words]['date']}")
print(f"in one run: {measured.load(measured.DATA / 'production.json')['meta']['gpu']}")
if both:
    both.sort(key=lambda key: abs(math.log(one_run[key] / day_by_day[key])), reverse=True)
    for key in both[:8]:
        kind, groups, *size, l2 = key
        where = f"{kind} {groups} x {drawing_results.name(size)}, {l2}"
        flips = ", the other way round" if (day_by_day[key] - 1) * (one_run[key] - 1) < 0 else ""
        print(f"{where:40} across days {day_by_day[key]:.3f}, in one run {one_run[key]:.3f}{flips}")
    for words, found_in in (("across days", day_by_day), ("in one run", one_run)):
        print(f"{words:11} geometric mean {statistics.geometric_mean(found_in[key] for key in both):.3f}")

# %% [markdown]
# <details><summary>What is wrong</summary>
#
# The means are near each other, and that is the trap: the errors of single rows go both ways, and a mean
# hides them. A
# yardstick tells how much faster a *card* is, at best; it does not tell what another version of a library
# does, nor how a product that lives by memory moves when the tensor cores do. (The second comparison is not
# the first one repeated, either: another GPU model, and a later DeepGEMM. Say what you changed.) The rows and
# their commits are in data/runs.json; the file that was compared with is gone from this repository.
#
# </details>
#
# A list to go through, with any benchmark, this one too:
#
# - Is the result right, element by element? Was it checked in the run that was timed?
# - Which GPU, power limit, driver, versions, date? Which source, by its hash?
# - Kernel time, or a call's? Which state of L2? Which data?
# - Which operations and bytes are counted?
# - Who are the peers, how new, and do they compute the same?
# - Who chose the shapes, and where does it lose?
# - How much does a number move from call to call, and from run to run?
#
# ## Exercises
#
# **1.** The roof: at m x n x k, with memory of `tb_s` TB/s and tensor cores of `peak` TFLOPS, how many TFLOPS
# are possible? Count the bytes as the data does: A and B of one byte an element, D of two, A's scales of four
# bytes for each row and 128 of k, B's for each 128 of n and of k, where what is left of n or k counts as 128.


# %% tags=["exercise"]
def roof(m, n, k, tb_s, peak):
    return peak


# %% tags=["check"]
exercises.check("13.1", roof)

# %% [markdown]
# **2.** One time out of two passes. `passes` has two lists of microseconds; return what the data have as us,
# us_p10 and us_p90: of the pass with the better median. Percentiles are np.percentile's, which
# interpolates linearly.


# %% tags=["exercise"]
def result(passes):
    return min(map(min, passes)), 0.0, 0.0


# %% tags=["check"]
exercises.check("13.2", result)

# %% [markdown]
# **3.** The markers. `kernels` is a list of (name, microseconds) in the order in which they ran. Return the
# time of each call: the sum of what ran between one "spin_kernel" and the next, every second time.


# %% tags=["exercise"]
def call_times(kernels):
    return [us for name, us in kernels if "gemm" in name]


# %% tags=["check"]
exercises.check("13.3", call_times)

# %% [markdown]
# **4.** A peer was measured in another run: `theirs_then` microseconds. `yardsticks` has, for each of some
# other libraries, what it took in that run and in this one: (then, now). Ours takes `ours_now`. How many
# times as fast as the peer are we, the peer brought to this run by the geometric mean of its yardsticks?


# %% tags=["exercise"]
def ratio(ours_now, theirs_then, yardsticks):
    return theirs_then / ours_now


# %% tags=["check"]
exercises.check("13.4", ratio)

# %% [markdown]
# **5.** The weakest cell of everywhere.json. `rows` are the file's rows, each a dictionary with kind,
# groups, m, n, k, impl, l2, us, us_p10, us_p90, tflops, gb_s, rel_err, rows, max_m and expected_m. Of all
# products and states of L2 in which both "s9_production" and one of `libraries` was measured, return the
# one with the smallest ratio of the best library's time over ours: (kind, groups, m, n, k, l2, ratio).
# Beware of the masked products ([lesson 12](12_grouped_gemms.ipynb)): which two further fields tell them
# apart?


# %% tags=["exercise"]
def weakest(rows, libraries):
    row = min(rows, key=lambda row: row["us"])
    return row["kind"], row["groups"], row["m"], row["n"], row["k"], row["l2"], 1.0


# %% tags=["check"]
exercises.check("13.5", weakest)

# %% [markdown]
# Then ask why it is weak: `python -m gemm_ladder explain` says what a call runs there, and whether the
# model of [lesson 11](11_production.ipynb) expected it. The answer to that is not at the back.

# %% [markdown]
# Next: [the rung that you write](14_your_own_rung.ipynb).
