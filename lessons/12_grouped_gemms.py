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
# # Grouped GEMMs: products for mixtures of experts
#
# A product has had one A and one B so far. A **[mixture of experts](glossary.md#mixture-of-experts)** has
# many B's, its **experts**, and for each token a **router** picks a few of them. So one layer is many
# products: the same n and k, but each expert has an m of its own, which is known only after the router has
# run. The production kernel computes them all in one launch. Little is new in it, and nearly all of that is
# in one place, the **scheduler**: which [thread block](glossary.md#thread-block) computes which
# [tile](glossary.md#tile).
#
# > **Needs:** lesson [11](11_production.ipynb). **Time:** 40 minutes to read, 50 for guesses and exercises;
# > its cells run in a minute, less when its kernels have been compiled. **May be skipped:** all of it: no
# > lesson needs it, but for [16](16_experts_over_gpus.ipynb); lesson [13](13_reading_the_results.ipynb) has
# > an example or an exercise of it.

# %%
from gemm_ladder.figures import lessons

lessons.enter()  # makes this folder the working directory, wherever Jupyter was started

import gemm_ladder as gl
import numpy as np
import torch
from gemm_ladder.arguments import H100_SMS
from gemm_ladder.errors import InputError
from gemm_ladder.figures import measured, tables
from gemm_ladder.measure.shapes import EXPERTS as EXPERT_SIZES
from gemm_ladder.production import choice, prediction
from gemm_ladder.production.config import Config
from gemm_ladder.ref import fp8, gemm, metrics
from workshop import (
    drawing,
    drawing_grouped,
    drawing_results,
    exercises,
    workbench,
    workbench_grouped,
    workbench_production,
)

drawing.style()

# %%
drawing.where("GPU", "SM", "HBM")

# %% [markdown]
# ## A router at work
#
# Here are the tokens of some sentences, as [the lesson on precision](05_precision.ipynb) had them: a trained
# model's activations for each, 1536 numbers. They go to 4 of 8 experts. (DeepSeek-V3 has 256 and takes 8:
# arXiv:2412.19437, whose router works like this one.) The router is a small matrix, a row for each expert. A
# token's product with it, mapped to a number between 0 and 1, says how well the two fit. The best four are
# taken. Their results will be added up, with these four numbers, divided by their sum, as weights.

# %%
EXPERTS, OF_EACH = 8, 4
with np.load("data/minilm.npz") as file:
    x, tokens = file["activations"].astype(np.float32), file["tokens"]

rng = np.random.default_rng(1)
router = rng.standard_normal((EXPERTS, x.shape[1])).astype(np.float32) / np.sqrt(x.shape[1])
normalised = x / np.sqrt((x * x).mean(axis=1, keepdims=True))
fit = 1 / (1 + np.exp(-normalised @ router.T))
chosen = np.argsort(-fit, axis=1)[:, :OF_EACH]  # [tokens, 4]
weights = np.take_along_axis(fit, chosen, axis=1)
weights /= weights.sum(axis=1, keepdims=True)
counts = np.bincount(chosen.ravel(), minlength=EXPERTS)
drawing_grouped.routing(chosen, tokens, EXPERTS)

for word in ("[CLS]", "."):
    sets = {tuple(sorted(each.tolist())) for each in chosen[tokens == word]}
    print(f"{(tokens == word).sum()} times {word!r}: {len(sets)} different sets of experts")

# %% [markdown]
# The router's numbers are random here, while a real one is trained, and trained to be fair as well. But two
# things are as in real life. Tokens that are alike go the same way: every `[CLS]` has the same four experts.
# And so the experts have *different numbers of rows*, others in every call.
#
# ## One launch for each expert?
#
# You could loop over the experts and multiply for each, with the kernels that you know. Take 32 experts of
# DeepSeek-V3's size, and different numbers of rows. How many **[waves](glossary.md#wave)**, one tile for
# every [SM](glossary.md#sm), is that?

# %%
n, k = EXPERT_SIZES[1]
groups = 32
head = ["rows each", "waves of one", "turns, one by one", "together", "us, one by one", "together"]
cells = []
for each in (128, 256, 512, 1024):
    one = prediction.predict(choice.choose("dense", each, n, k), each)
    every = prediction.predict(
        choice.choose("contiguous", groups * each, n, k, groups), groups * each, groups
    )
    turns = groups * int(np.ceil(one.waves)), int(np.ceil(every.waves))
    cells.append(
        [str(each), f"{one.waves:.2f}", *map(str, turns), f"{groups * one.us:.0f}", f"{every.us:.0f}"]
    )
print(tables.plain([head, *cells]))

# %% [markdown]
# An expert alone does not fill its last wave, and SMs that have nothing to do wait for the next launch. In
# one launch they go on with the next expert's tiles. And each launch pays for its beginning and its end:
# the first loads have nothing to hide behind, nor has the last output. The product of all experts also gets
# larger tiles, where that is faster: then its turns are fewer, and longer. The times are what
# `gemm_ladder.production.prediction` expects of an H100 with [L2](glossary.md#l2)
# [dirty](glossary.md#dirty). They are predicted, not measured; [lesson 11](11_production.ipynb) has shown
# how well that works.
#
# And to loop you must *know* the numbers of rows. They come out of the router, on the GPU. To read them, the
# CPU would have to wait for it, in every layer.
#
# ## The contiguous layout
#
# So all rows go into one A, sorted by expert, and a vector says whose they are: **`m_indices`**, an expert
# for every row. There is one rule. A tile is multiplied by *one* B, so all of its rows must have the same
# expert. Therefore each expert's rows begin at a multiple of 128, and gaps are filled with rows of padding,
# marked -1.

# %%
BLOCK = gl.get_mk_alignment_for_contiguous_layout()


def contiguous_rows(chosen):
    """m_indices, and in which row of A each (token, choice) is."""
    counts = np.bincount(chosen.ravel(), minlength=EXPERTS)
    begins = np.concatenate([[0], np.cumsum(-(-counts // BLOCK) * BLOCK)])
    m_indices = np.full(begins[-1], -1, np.int32)
    place = np.empty(chosen.shape, np.int64)
    for expert in range(EXPERTS):
        rows = begins[expert] + np.arange(counts[expert])
        m_indices[rows] = expert
        place[chosen == expert] = rows
    return m_indices, place


m_indices, place = contiguous_rows(chosen)


def strips(sentences):
    begins = np.flatnonzero(tokens == "[CLS]")
    some = chosen[: begins[sentences] if sentences < len(begins) else len(chosen)]
    drawing_grouped.packing(
        {
            "as the tokens come": some.ravel(),
            "sorted by expert": np.sort(some.ravel()),
            "contiguous layout": contiguous_rows(some)[0],
        },
        BLOCK,
    )


strips((tokens == "[CLS]").sum())

# %%
workbench.slider(strips, sentences=(1, int((tokens == "[CLS]").sum())))

# %% [markdown]
# Now A. Each token is cast to [FP8](glossary.md#fp8) once, with a scale for each 128 of its numbers, and its
# codes are copied to all of its rows. The experts get weights of random normal numbers, and only 256 outputs,
# so that the [emulator](glossary.md#emulator) is quick.

# %%
N, K = 256, x.shape[1]
codes, scales = fp8.per_token_cast_to_fp8(x)
experts = [fp8.per_block_cast_to_fp8(rng.standard_normal((N, K)).astype(np.float32)) for _ in range(EXPERTS)]
rhs = tuple(np.stack(part) for part in zip(*experts, strict=True))

a, sfa = np.zeros((len(m_indices), K), fp8.E4M3), np.ones((len(m_indices), K // 128), np.float32)
token = np.broadcast_to(np.arange(len(x))[:, np.newaxis], chosen.shape)
a[place], sfa[place] = codes[token], scales[token]
call = workbench_grouped.Call("contiguous", (a, sfa), rhs, m_indices)
print("A:", a.shape, " B:", rhs[0].shape, " their scales:", sfa.shape, rhs[1].shape)

# %% [markdown]
# ### The same rows, told by their ends
#
# `m_indices` repeats each expert for all of its rows. But the next expert begins at the next multiple of 128,
# so it is enough to say where each one *ends*: one number for each, in a vector on the GPU. DeepGEMM calls
# this the **[psum layout](glossary.md#psum-layout)**, because without padding the ends would be prefix sums
# of the counts. The same public function takes it, with `use_psum_layout=True`.

# %%
ends = (np.cumsum(-(-counts // BLOCK) * BLOCK) - (-counts % BLOCK)).astype(np.int32)
print("ends:", *ends)
for expert, (begin, end, padded) in enumerate(gemm.psum_rows(ends, BLOCK, len(m_indices))):
    print(f"expert {expert}: {end - begin:3} rows from row {begin:3} on, {padded - end:3} of padding")

# %% [markdown]
# To the kernel it is a kind of its own, `kPsum`. The listings below have its lines, too; leave them for
# later: they follow from the [masked layout](glossary.md#masked-layout), and are explained behind it.
#
# ### The scheduler, alone
#
# How does a block find its tiles? No other block tells it. Every block computes the same list of **units**
# and takes every so-many-th of it: block 0 begins with unit 0, block 1 with unit 1, and each goes on by the
# number of blocks. (A unit is a tile, or as many as a [cluster](07_tma_multicast.ipynb) computes together.)

# %%
scheduler = workbench_production.source("scheduler.cuh")
workbench.code(scheduler, "^template <Config kC>", "^};")

# %% [markdown]
# Read it for the [contiguous layout](glossary.md#contiguous-layout). In `look_ahead`, a unit's number becomes
# a row and a column of tiles, in bands, so that tiles which are computed at the same time share what they
# read. Then the expert is *looked up*, in `m_indices`, by the tile's first row. That is nearly all; `next`
# hands out what was found, and looks ahead again. (A tile of 256 rows may meet two experts. Then its unit is
# handed out as two tiles, one half after the other.)
#
# The [producer](glossary.md#producer) and the [consumers](glossary.md#consumer) of a block each have a
# scheduler of their own. They need not tell each other about tiles, because they compute the same list.
#
# Run the scheduler by itself, with 6 blocks:

# %%
contiguous = Config.of("contiguous", N, K, tile_m=128, tile_n=128)
walked = workbench_production.walk(contiguous, len(m_indices), 6, m_indices, EXPERTS)
drawing_grouped.tiles(walked, contiguous, call, "Which block computes which tile: colours are experts")

# %% [markdown]
# ### The right B, and its edges
#
# The experts' matrices lie one after the other in memory. For the [copy engine](06_tma.ipynb) that is one
# tensor with groups * n rows, and an expert is a coordinate in it:

# %%
kernel = workbench_production.source("gemm.cuh")
workbench.code(kernel, "load<kC.share == Share::kB, kC.stream_b>", "policy_b\\);")

# %% [markdown]
# If n is not a multiple of the tile's width, the last tile of an expert reaches into the next expert's rows.
# They are loaded and multiplied in vain: D's [tensor map](glossary.md#tensor-map) ends at column n, and the
# [copy engine](glossary.md#copy-engine) writes nothing outside.
#
# A whole block of -1 is not even loaded. The producer skips its tiles; the consumers store zeros.
#
# ### The kernel
#
# Run it, and check it:

# %%
d = workbench_grouped.multiply(contiguous, call)
exact = gemm.grouped_contiguous(*call.lhs, *call.rhs, m_indices)
counted = m_indices >= 0
print("relative error:                  ", metrics.relative_error(d[counted], exact[counted]))
print("largest relative error of a row: ", metrics.max_row_error(d[counted], exact[counted]))
print("the expected bits:               ", workbench_grouped.difference(d, call.expected(), call) is None)

# %% [markdown]
# Then each token collects its four results, with the router's weights. That is the layer. Compare it with the
# definition, token by token, from the tokens before their cast:

# %%
layer = np.einsum("tc,tcn->tn", weights, d.astype(np.float32)[place])
matrices = [fp8.dequantize_rhs(*pair) for pair in experts]
definition = np.array(
    [
        sum(weight * matrices[expert] @ x[t] for weight, expert in zip(weights[t], chosen[t], strict=True))
        for t in range(len(x))
    ]
)
print("relative error of the layer:       ", metrics.relative_error(layer, definition))
print("of the tokens, by the cast to E4M3: ", metrics.relative_error(fp8.dequantize_lhs(codes, scales), x))

# %% [markdown]
# The products add hardly anything to the error that the cast has made.
#
# You would not call the kernel like this, but by one of its public names. With tensors on the CPU these give
# the reference's result; with tensors on a Hopper GPU they choose a configuration and run it.

# %%
lhs, b = (tuple(workbench.tensor(part) for part in pair) for pair in (call.lhs, call.rhs))
out = torch.empty(call.shape, dtype=torch.bfloat16, device=workbench.DEVICE)
gl.m_grouped_fp8_gemm_nt_contiguous(lhs, b, out, workbench.tensor(m_indices))
public = out.float().cpu().numpy()
print("relative error:", metrics.relative_error(public[counted], exact[counted]))

# %% [markdown]
# ## What padding costs
#
# Rows of padding inside a block are multiplied like all others. Suppose that the model had read the first two
# sentences only. Of all rows of A, how many per cent would count then, with 4 of 8 experts for each token?

# %% tags=["guess"]
exercises.guess("12.padding", None)

# %%
rows = np.arange(1, 641)
drawing_grouped.padding(
    rows, {f"filled up to {size}": rows / (-(-rows // size) * size) for size in (64, 128)}
)
print(f"in the example above: {counts.sum()} of {len(m_indices)} rows count")
two = chosen[: np.flatnonzero(tokens == "[CLS]")[2]]
rows_of_two = len(contiguous_rows(two)[0])
print(f"of two sentences: {two.size} of {rows_of_two}")
exercises.found("12.padding", 100 * two.size / rows_of_two, "per cent")

# %% [markdown]
# With hundreds of rows an expert it is little. With a few, nearly all of the multiplying is in vain; what
# that costs in time, you will see below.
#
# ## The masked layout
#
# When a model writes text, one token after another, each step is short, and the CPU must not hold it up: the
# steps are recorded once as a **[CUDA graph](glossary.md#cuda-graph)** and played back. Then every shape is
# fixed. And where the experts are spread over many GPUs, the tokens come from all of them, and each needs a
# place in A before anybody has counted how many there will be.
#
# In the **masked layout** each expert has room for `max_m` rows, and a vector on the GPU, **`masked_m`**,
# says how many count. The shapes never change, and nothing is padded: what is in the rest of the room does
# not matter. Here it is NaN:

# %%
MAX_M = 192  # an expert can be chosen by every token once
masked_m = counts.astype(np.int32)
a = np.full((EXPERTS, MAX_M, K), 0x7F, np.uint8).view(fp8.E4M3)  # 0x7F is NaN
sfa = np.full((EXPERTS, MAX_M, K // 128), np.nan, np.float32)
for expert in range(EXPERTS):
    who = np.flatnonzero((chosen == expert).any(axis=1))
    a[expert, : len(who)], sfa[expert, : len(who)] = codes[who], scales[who]
masked_call = workbench_grouped.Call("masked", (a, sfa), rhs, masked_m)
print("A:", a.shape, " masked_m:", masked_m)

# %% [markdown]
# ### The scheduler walks
#
# How many units are there? Now that depends on numbers which only the GPU knows. So the launcher starts as
# many blocks as there are SMs, and each block finds out for itself. It goes through the groups, and subtracts
# each one's units from its own number, until it is in the group it wants:

# %%
workbench.code(scheduler, "while \\(kByGroup", "^        }")

# %% [markdown]
# `enter_group` takes a number from `masked_m`. One below 0 counts as none, one above `max_m` as `max_m`:
# whatever the router wrote there, a block stays inside the tensors and comes to an end. (For a psum call,
# which walks as well, it takes a group's end, and subtracts where the group begins.)

# %%
masked = Config.of("masked", N, K, tile_m=64, tile_n=128)
walked = workbench_production.walk(masked, MAX_M, 6, masked_m, EXPERTS)
drawing_grouped.tiles(walked, masked, masked_call, "Masked: blocks pass from group to group")

# %% [markdown]
# Follow block 0 to the right. It does not begin anew in each group, but goes on counting: no block has two
# tiles more than another.
#
# Now the psum lines can be read. A psum call goes from group to group, too: that is `kByGroup`. `tile.rows`
# is how many valid rows there are from a tile's first one to its group's end. The padding behind a group
# becomes zeros, whatever A holds there, and `padding_of` says how many rows that is; in a group's last tile
# `tile.padded` counts them as well as the valid ones, and in all other tiles the two are equal.
#
# ### Rows that are not to be written
#
# One thing is harder than in the contiguous layout. The last tile of a group has rows that do not count, and
# `out` must stay there as it was. The copy engine writes whole boxes, and what it leaves out lies outside of
# the *tensor*; here it is only outside of the *group*. Such a tile is stored by ordinary instructions, row by
# row. All others are stored by the copy engine. (In a psum call it stores the last tiles, too: what follows a
# group's rows there is the group's own padding, and the consumers set its sums to zero before.)

# %%
workbench.code(kernel, "// The rows after a group's valid ones", "^        }")

# %%
workbench.code(workbench_production.source("store.cuh"), "^// A consumer's threads store the rows", "^}")

# %%
d = workbench_grouped.multiply(masked, masked_call)
exact = gemm.grouped_masked(*masked_call.lhs, *masked_call.rhs, masked_m)
counted = np.arange(MAX_M) < masked_m[:, np.newaxis]
print("largest relative error of a row: ", metrics.max_row_error(d[counted], exact[counted]))
print("rows that do not count, untouched:", bool((d[~counted] == workbench_grouped.BEFORE).all()))
print(
    "the expected bits:               ",
    workbench_grouped.difference(d, masked_call.expected(), masked_call) is None,
)

# %% [markdown]
# The NaN were loaded, and multiplied: a tile is always whole. But a row of A only affects its own row of D,
# and those rows of D are never stored.
#
# ## How fast it can be, and is
#
# An expert's B must be read from memory whether one row needs it or a hundred. The time of that is a floor,
# whatever the [tensor cores](glossary.md#tensor-core) compute meanwhile.

# %%
EACH = np.unique(np.geomspace(16, 8192, 500).astype(int))


def allowed(n, k, filled_to):
    """TFLOPS of the rows that count, at the speed of memory or of the tensor cores, by EACH."""
    multiplied = -(-EACH // filled_to) * filled_to
    bytes_moved = n * k + EACH * k + 2 * EACH * n
    memory_us = bytes_moved / (drawing_results.memory().copy * 1e6)
    compute_us = 2 * multiplied * n * k / (prediction.WGMMA_FLOPS * prediction.CLOCK_MHZ * H100_SMS)
    return 2 * EACH * n * k / np.maximum(memory_us, compute_us) / 1e6


path = measured.DATA / "production.json"
recorded = measured.load(path)["rows"] if path.exists() else []
recorded = [row for row in recorded if row["kind"] != "dense" and row["l2"] == "dirty"]
curves = {
    size: {"without padding": allowed(*size, 1), "filled up to 128": allowed(*size, 128)}
    for size in EXPERT_SIZES
}
drawing_grouped.reach(curves, EACH, recorded)
if recorded:
    head = ["layout", "groups of m x n x k", "TFLOPS", "GB/s"]
    cells = [
        [
            *(row["kind"], f"{row['groups']} of {row['m']} x {row['n']} x {row['k']}"),
            *(f"{row['tflops']:.0f}", f"{row['gb_s']:.0f}"),
        ]
        for row in recorded
        if row["impl"] == "s9_production"
    ]
    print(tables.plain([head, *cells]))
    meta = measured.load(path)["meta"]
    print(f"{meta['gpu']}, driver {meta['driver']}; {meta['date']}, kernel sources {meta['sources'][:12]}")
else:
    print("The production kernels' times are not recorded yet: the lines are what is possible.")

# %% [markdown]
# The black line rises with the rows as long as memory sets the pace: twice the rows, twice the work, in the
# same time. There the green line is the same: padding only makes the tensor cores do something while they
# would wait. It leaves the black line where the tensor cores are the slower of the two, and gets back to it
# as padding becomes small. So a handful of rows filled up to 128 cost no more than themselves.
#
# The lines assume that everything is read once, at the rate that a copy reaches on the GPU that was measured,
# and that the tensor cores run at 1.65 GHz. The slope itself has no dots yet: no product with fewer than 256
# rows an expert is in the table.
#
# ## Which tile
#
# The kernel is compiled for one tile size, and the best one depends on the rows that experts have. In the
# masked layout the host does not know them, hence the argument `expected_m`: what the caller thinks the mean
# will be. It is a hint, which chooses the kernel and never the result.

# %%
n, k = EXPERT_SIZES[0]
print(f"32 experts, n = {n}, k = {k}, masked, room for 4096 rows:")
for expected_m in (4, 64, 100, 256, 1024):
    one = choice.choose("masked", 4096, n, k, 32, expected_m=expected_m)
    shared = "" if one.share == "nothing" else f", {one.share} shared by {one.cluster} blocks"
    print(f"  expected_m = {expected_m:4}: tiles of {one.tile_m} x {one.tile_n}, {one.stages} stages{shared}")

# %% [markdown]
# ## Break it
#
# Predict, then run. Each cell runs its fault under four [schedules](glossary.md#schedule) of the emulator.
# The problem is small: three experts with 128, 256 and 128 rows, two [blocks of k](glossary.md#k-block).

# %%
small = {
    kind: Config.of(kind, 256, 256, 128 if kind == "contiguous" else 64, 128)
    for kind in ("contiguous", "masked")
}
problem = workbench_grouped.random_call("contiguous", (128, 256, 128), 256, 256)
workbench_grouped.break_it(small["contiguous"], problem)

# %% [markdown]
# **1.** The caller has forgotten the rule: experts of 100, 40 and 116 rows follow each other without padding.
# The kernel is as it was. How many of the 256 rows will be wrong?

# %% tags=["guess"]
exercises.guess("12.break1", None)

# %%
unaligned = workbench_grouped.random_call("contiguous", (100, 40, 116), 256, 256)
workbench_grouped.break_it(small["contiguous"], unaligned)
d = workbench_grouped.multiply(small["contiguous"], unaligned, "cpu")
exercises.found("12.break1", int((d != unaligned.expected()).any(axis=1).sum()), "rows")

# %% [markdown]
# <details><summary>Why</summary>
#
# The first tile has rows 0 to 127, and row 0 says expert 0: so the first 28 rows of expert 1 get its B. The
# second tile begins at row 128, which is the 29th row of expert 1, and takes all of expert 2 along. Nothing
# is out of bounds, so nothing is named. The public functions look at `m_indices` where that costs no waiting,
# on the CPU, and refuse them:
#
# </details>

# %%
lhs, b = (tuple(workbench.tensor(part, "cpu") for part in pair) for pair in (unaligned.lhs, unaligned.rhs))
out = torch.empty(unaligned.shape, dtype=torch.bfloat16)
try:
    gl.m_grouped_fp8_gemm_nt_contiguous(lhs, b, out, workbench.tensor(unaligned.rows, "cpu"))
except InputError as refused:
    print(refused)

# %% [markdown]
# **2.** [A cluster](07_tma_multicast.ipynb) of two blocks, with tiles below each other, shares B: each loads
# half of the columns' tile, for both. The rules forbid this in the contiguous layout. What comes of it if you
# do it all the same?

# %% tags=["guess"]
exercises.guess_break("12.break2", line=None, then=None)

# %% tags=["break"]
forbidden = Config.of("contiguous", 256, 256, 128, 128, share="B", cluster=2)
try:
    forbidden.check()
except InputError as refused:
    print(refused)
workbench_grouped.break_it(
    forbidden,
    problem,
    ("static_assert(kC.share != Share::kB || kC.kind != Kind::kContiguous", "static_assert(true"),
    guess="12.break2",
)

# %% [markdown]
# <details><summary>Why</summary>
#
# The first pair has a tile of expert 0 above one of expert 1. Both get a B whose first 64 columns are expert
# 0's and whose last 64 are expert 1's. So expert 0's rows are wrong in the last half of each tile's columns,
# and expert 1's first 128 rows in the first half. The second pair does the same with experts 1 and 2. If both
# tiles of a pair had the same expert, everything would be right: a test with one expert would not see it.
#
# </details>
#
# **3.** Masked: all tiles are stored by the copy engine, the partly filled ones too. There is room for 100
# rows, and the tiles are 64 high.

# %% tags=["guess"]
exercises.guess_break("12.break3", line=None, then=None)

# %% tags=["break"]
problem = workbench_grouped.random_call("masked", (70, 100, 0, 5), 256, 256, max_m=100)
workbench_grouped.break_it(
    small["masked"],
    problem,
    ("kC.kind == Kind::kMasked && tile.rows", "false && tile.rows"),
    guess="12.break3",
)

# %% [markdown]
# <details><summary>Why</summary>
#
# The second tile of a group has rows 64 to 127 of a room for 100. Its first rows are right. Then it
# overwrites the rows that do not count, and then the first 28 rows of the *next group*. Whether those are
# wrong in the end depends on which block is last: the one that computes them, or the one that overwrites
# them. The emulator names the second of the two; on a GPU the result would change from call to call.
#
# </details>
#
# **4.** A block that goes on to the next group forgets to subtract the units of the last one.

# %% tags=["guess"]
exercises.guess_break("12.break4", line=None, then=None)

# %% tags=["break"]
workbench_grouped.break_it(small["masked"], problem, ("unit_ -= units_m_ * kUnitsN;", ""), guess="12.break4")

# %% [markdown]
# <details><summary>Why</summary>
#
# In the next group a block begins with a unit number that is too high by what came before. No block computes
# the tiles below it: valid rows stay as they were. The first group is right.
#
# </details>
#
# **5.** Contiguous, with one block of padding. The producer does not skip it, the consumers do.

# %% tags=["guess"]
exercises.guess_break("12.break5", line=None, then=None)

# %% tags=["break"]
problem = workbench_grouped.random_call("contiguous", (128, 128, 128), 256, 256)
problem.rows[128:256] = -1
workbench_grouped.break_it(
    small["contiguous"], problem, ("if (tile.group < 0) continue;", ""), num_sms=1, guess="12.break5"
)

# %% [markdown]
# <details><summary>Why</summary>
#
# The producer fills stages for the padding, from outside of B, where the copy engine gives zeros. The
# consumers take them for the first stages of the *next* tile. From there on they are two blocks of k behind.
# At the end loads are left over that no thread waits for; in some schedules they are still on their way when
# the block ends, and this the emulator names. The two schedulers of a block need not communicate, but they
# must agree.
#
# </details>
#
# ## Exercises
#
# **1.** The contiguous layout of experts with `counts` rows each: whose is row `row`? -1 for padding, and for
# rows behind the end.


# %% tags=["exercise"]
def owner(row, counts):
    return row // 128


# %% tags=["check"]
exercises.check("12.1", owner)

# %% [markdown]
# **2.** In the masked layout, with tiles of `tile_m` rows, `tiles_n` of them side by side: which group is
# unit `unit` in, and which of its units is it? Return (group, unit in the group).


# %% tags=["exercise"]
def find(unit, masked_m, tile_m, tiles_n):
    return 0, unit


# %% tags=["check"]
exercises.check("12.2", find)

# %% [markdown]
# **3.** An expert has B [n, k] and some number of rows. At how many do the tensor cores need as long as
# memory? Memory moves `bandwidth` bytes in a microsecond: B, the rows of A, and D in
# [BF16](glossary.md#bf16), all once; leave the scales out. The tensor cores do `speed` operations in a
# microsecond.


# %% tags=["exercise"]
def balance(n, k, bandwidth, speed):
    return speed / bandwidth


# %% tags=["check"]
exercises.check("12.3", balance)

# %% [markdown]
# **4.** The lines with which a block walks on to its group are missing from `look_ahead`. Write them without
# scrolling up. The same file serves calls of all kinds: masked and psum ones walk from group to group,
# contiguous ones do not.

# %% tags=["exercise"]
walk_on = """
"""

# %% tags=["check"]
exercises.check("12.4", walk_on)

# %% [markdown]
# Next: [how to read what was measured](13_reading_the_results.ipynb), and when not to believe it.
