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
# # Experts over several GPUs
#
# A [mixture of experts](glossary.md#mixture-of-experts) has many weight matrices and needs a few for each
# token; lesson [12](12_grouped_gemms.ipynb) multiplies them on one GPU. Here the experts are on several, and
# it is the tokens that travel. How much travels, what a cast has to do with it, when that is worth it, and
# whether the answer is the same: all of this can be found without a GPU.
#
# > **Needs:** lesson [12](12_grouped_gemms.ipynb). **Time:** 25 minutes to read, 35 for guesses and
# > exercises; its cells run in a minute, less when its kernels have been compiled. **May be skipped:** all of
# > it: no other lesson needs it.

# %%
from gemm_ladder.figures import lessons

lessons.enter()  # makes this folder the working directory, wherever Jupyter was started

import numpy as np
from gemm_ladder.figures import measured, parallel, parallel_model, tables
from workshop import drawing, drawing_ranks, exercises, printed, workbench_ranks

drawing.style()

# %%
drawing.where("host", "GPU", "HBM")

# %% [markdown]
# ## Why share them
#
# DeepSeek-V3 (arXiv:2412.19437) has 58 layers with 256 experts each. An expert has three matrices, 2048 x
# 7168, 2048 x 7168 and 7168 x 2048, in [FP8](glossary.md#fp8). An H200 has 141 GB of memory. How many GB do
# all experts take?

# %% tags=["guess"]
exercises.guess("16.memory", None)

# %%
layer = parallel_model.Layer()  # DeepSeek-V3's sizes
of_layer = layer.experts * layer.weight_bytes
print(f"an expert {layer.weight_bytes / 1e6:.0f} MB, a layer {of_layer / 1e9:.1f} GB")
exercises.found("16.memory", 58 * of_layer / 1e9, "GB")

# %% [markdown]
# Five GPUs would hold them, and nothing else. There is a second reason. A token needs 8 of 256 experts, so a
# few hundred tokens together need all of them, and a GPU reads 11 GB from its memory for every layer, which
# takes more than 2 ms, whether an expert has one row or thirty. Each of 8 GPUs that share the experts reads
# an eighth.
#
# So each GPU, or **rank**, gets a contiguous part of the experts: rank 0 the first, and so on. That is
# **[expert parallelism](glossary.md#expert-parallelism)**. The tokens are divided, too: each rank has some,
# from the layers before. For every token that needs an expert of another rank, three things happen:
#
# 1. **dispatch**: the token's row goes to the ranks that have its experts;
# 2. each rank multiplies the rows that it has received, by the kernels of lesson 12;
# 3. **combine**: the results travel back, and the token's own rank adds them up, with the router's weights.
#
# Both journeys are one call of torch.distributed: an **[all-to-all](glossary.md#all-to-all)**. Each rank has
# a message for each, of different sizes, and gets one from each.
#
# ## Who sends what
#
# Four ranks, 1000 tokens on each, every expert equally likely. A token may have several of its experts on the
# same rank. Is its row sent there once for each, or once? Once is enough, if the choices travel along with
# it.

# %%
RANKS, TOKENS = 4, 1000
rng = np.random.default_rng(0)
chosen = np.stack([
    np.argsort(rng.random((TOKENS, layer.experts)), axis=1)[:, : layer.top_k] for _ in range(RANKS)
])  # [ranks, tokens, 8]  # fmt: skip
owner = chosen // (layer.experts // RANKS)
for_each = np.stack([[(owner[here] == to).sum() for to in range(RANKS)] for here in range(RANKS)])
once = np.stack([[(owner[here] == to).any(1).sum() for to in range(RANKS)] for here in range(RANKS)])
drawing_ranks.travel({"a row for each expert": for_each, "a row for each rank": once})

# %% [markdown]
# What stays on its rank, the diagonal, does not travel. With 4 ranks a row for each rank is less than half as
# many. With 64 ranks, of which each has 4 experts, it would be nearly the same: 8 experts are on 7 or 8
# different ranks then.
#
# How many rows come is known only after the router has run, on the GPU. So the ranks tell each other the
# numbers first, in a small all-to-all, and the CPU waits for them, to know how much memory to ask for. That
# is why no [CUDA graph](glossary.md#cuda-graph) can record this. Where there are few tokens and few ranks,
# there is another way (`everywhere=True`): every token goes to every rank, so there is nothing to count. With
# 4 ranks that is a tenth more rows than in the picture on the right.
#
# ## Before or after the cast
#
# The products take FP8, so each row is cast, with a scale for each 128 numbers. Does a rank cast its own
# tokens before they travel, or what it has received?

# %%
travels = {"BF16": 2 * layer.hidden, "FP8 with scales": layer.hidden + 4 * layer.hidden // 128}
for name, count in travels.items():
    print(f"{name:16} {count:6} bytes a row")

# %% [markdown]
# Before: it is half the bytes, and each token is cast once, not once on every rank. And the bits are the
# same, because a scale belongs to a piece of *one* row: nothing of another row decides it. With one scale for
# a whole matrix it would not be so, as another rank's rows would have their part in the maximum.
#
# On the way back there is no such choice to make: results are sums, and [BF16](glossary.md#bf16) is what the
# product writes. So combine moves twice the bytes of dispatch. But a rank may add up a token's rows of all of
# its experts before it sends them, and send one row (`combine="sums"`) where it would send several
# (`"rows"`). Then each rank's sum is rounded to BF16, before the sums are added. With one device there is one
# sum, and one rounding.
#
# ## Two processes
#
# `gemm_ladder.layers.ParallelFp8Experts` does all of this. A program that uses it runs once for each GPU;
# `torchrun --nproc-per-node=2 program.py` starts it so, and tells each process its rank:
#
# ```python
# torch.distributed.init_process_group("nccl")
# torch.cuda.set_device(torch.distributed.get_rank())
# layer = ParallelFp8Experts(256, 7168, 2048, device="cuda")  # this rank's part of 256 experts
# layer.load_state_dict(state)  # of a checkpoint with all experts, of which it keeps its own
# out = layer(x, *route(router(x), top_k=8))  # x: this rank's tokens
# ```
#
# The last line is three steps, which can be called one by one, for instance to time them:
#
# ```python
# there = layer.dispatch(x, experts, expert_weights)  # cast, and sent to the ranks of their experts
# out = layer.combine(layer.compute(there), there)  # both products, and the way back
# ```
#
# On GPUs, [NCCL](glossary.md#nccl) moves the rows; here are two processes on your CPU, and gloo does. Each
# has half of the experts, and all of them as well, to compare. Of the numbers that come out, how many percent
# are not those of one device, with `"sums"`?

# %% tags=["guess"]
exercises.guess("16.differ", None)

# %%
ranks = workbench_ranks.together(workbench_ranks.shared_layers, 2)
cells = [["combine", "rank", "rows sent to", "results sent to", "numbers that differ", "relative error"]]
for combine in ("rows", "sums"):
    for rank, seen in enumerate(ranks):
        found = seen[combine]
        counts = [" and ".join(map(str, of)) for of in (found.sent, found.back)]
        cells.append([combine, str(rank), *counts, f"{found.differ:.1%}", f"{found.off:.1e}"])
print(tables.plain(cells))
exercises.found("16.differ", 100 * float(np.mean([seen["sums"].differ for seen in ranks])), "percent")

# %% [markdown]
# With `"rows"` every number has the bits of one device. With `"sums"` many differ, each by a rounding of
# BF16, some tenths of a percent. The cast to FP8 is off by several percent, so nobody would notice. But who
# debugs a model on many GPUs is glad of a setting in which not one bit may change.
#
# ## Columns and rows
#
# A layer without experts can be shared as well. Divide W by its outputs, in *columns*: each rank computes
# some columns of y, from all of x, and nothing travels. Divide the next layer's W by its inputs, in *rows*:
# each rank has just the part of x that it needs, from the layer before, and computes a part of *every* sum.
# These parts are added up over the ranks, by an **[all-reduce](glossary.md#all-reduce)**: one for two layers.
# A rank's part is whole blocks of 128, so that every scale is on one rank.

# %%
cells = [["layer", "rank", "numbers that differ", "relative error"]]
for kind in ("column", "row"):
    for rank, seen in enumerate(ranks):
        cells.append([kind, str(rank), f"{seen[kind].differ:.1%}", f"{seen[kind].off:.1e}"])
print(tables.plain(cells))

# %% [markdown]
# In columns the sums are the same sums. In rows each is the sum of two that were rounded.
#
# ## What was measured
#
# `python -m gemm_ladder parallel` measures the mixture and a layer in columns and rows on one and on two
# GPUs, which [NVLink](glossary.md#nvlink) joins. Rows with `sums` or `rows` combine in that way; those with
# `all` are `everywhere=True`.

# %%
data = parallel.load(measured.DATA / "parallel.json")
head, *cells = parallel.table(data)
for name in dict.fromkeys(row[0] for row in cells):
    print(f"{name}:")
    print(tables.plain([row[1:8] for row in (head, *cells) if row[0] in (name, head[0])]), "\n")
print(tables.plain(parallel.transfers(data)))
printed.show(*parallel.provenance(data))
best = max(row["bytes"] / row["us"] / 1e3 for row in data["rows"] if row["what"] == "all_to_all")
print(f"\nan all-to-all: {best:.0f} GB/s at best, of the data sheet's {parallel_model.NVLINK / 1e9:.0f}")

# %% [markdown]
# Called from Python, dispatch takes about as long with 128 tokens as with 4096. It is the host's time, not
# the rows': dozens of small operations around two transfers, and the wait for the numbers. Only where every
# token goes everywhere can a CUDA graph spare it.
#
# Training goes the same ways once more: the gradient of a token's result travels to the ranks of its experts,
# and the gradients of the token come back. A rank has the gradients of its own experts then, of all ranks'
# tokens, and nothing has to be added up. Experts of DeepSeek-V2-Lite's sizes, 64 of 2048 x 1408:

# %%
print(tables.plain([row[1:] for row in parallel.training(data)]))

# %% [markdown]
# With 4096 tokens two GPUs take longer than one, and with 16384 they are far from twice as fast: again much
# of it is the host's time.
#
# ## More GPUs, on paper
#
# What would 8 GPUs take, or 64? `gemm_ladder.figures.parallel_model` makes three parts of the time. The first
# two are known for more GPUs if we assume something; the third is what two GPUs take besides.
#
# | part | measured | assumed |
# |---|---|---|
# | share | the whole layer on one GPU | of R GPUs each has 1/R of that work |
# | travel | an all-to-all alone, between two GPUs | as fast among 8; to others 50 GB in a second |
# | rest | what two GPUs take besides | more GPUs take as much |
#
# Eight GPUs are in a machine, linked by NVLink. To another machine a GPU sends through a network adapter of
# 400 Gb/s, which is 50 GB in a second. And the rest is one number for all sizes. How far off is the model for
# the two GPUs that it is taken from?

# %%
known = parallel_model.measured(layer, data["rows"])
print(tables.plain([*parallel_model.checks(layer, known, data["rows"])]))

# %% [markdown]
# It is what is left when the parts that are known have been taken away, so these errors say only how well one
# number does for all sizes. About 8 GPUs they say nothing. Nor do they say anything of more tokens than were
# measured: 4096 on each of 64 GPUs are 262,144, whose time is taken to grow as it does up to 16,384.
#
# What sharing is compared with are GPUs that have all experts each, if they had the memory: no token travels,
# and each GPU reads all of the weights. In the table, *MB inside* is what both journeys take from a GPU to
# others of its machine, and *MB outside* what they take to other machines. Called from Python, sharing has
# to save more than the rest takes; with few tokens there is not so much to save, as few experts have a row.
# With many the weights do not count, and what travels does. Up to how many tokens on each of 8 GPUs does
# sharing pay, called from Python?

# %% tags=["guess"]
exercises.guess("16.stops", None)

# %%
for cells in (parallel_model.table(layer, known), parallel_model.limits(layer, known)):
    print(tables.plain([*cells]), "\n")
exercises.found("16.stops", parallel_model.pays(layer, known, "calls", 8)[1], "tokens")

# %%
drawing_ranks.paper(layer, known, (128, 1024, 4096))

# %% [markdown]
# With 128 tokens a GPU, as in decoding, sharing takes less time at every number of GPUs, but called from
# Python, from 8 GPUs on, most of it is the rest. In a CUDA graph there is hardly a rest, and on 8 GPUs it is
# much faster; but as every token goes to every GPU then, on 64 it no longer pays. With 4096, as where long
# prompts are read, sharing loses; from 16 GPUs on much, since most rows leave the machine then, and the
# network is far slower. The brackets show how much the limits depend on the rest. How much they depend on
# what was assumed has not been measured.
#
# So what is done in practice is to send a row to another *machine* once, and to pass it on there by NVLink
# (ParallelFp8Experts does not); to let the next batch's products run while this batch's rows travel; and,
# where prompts are read, to share among fewer GPUs.
#
# Real experts are not equally likely, either. The slowest rank decides, and all others wait for it.

# %%
likely = np.exp(rng.normal(0, 1.0, layer.experts))  # some experts are liked much better than others
for name, scores in (("equally likely", np.ones(layer.experts)), ("some preferred", likely)):
    keys = np.log(scores) + rng.gumbel(size=(RANKS * TOKENS, layer.experts))
    picked = np.argsort(-keys, axis=1)[:, : layer.top_k]
    loads = np.bincount((picked // (layer.experts // 32)).ravel(), minlength=32)
    print(f"{name}: of 32 ranks the fullest has {loads.max() / loads.mean():.2f} times the mean")

# %% [markdown]
# ## Exercises
#
# **1.** A rank's tokens have these experts, int [tokens, of each], and each of `ranks` ranks has `experts`
# divided by `ranks` of them, in order. How many rows does it send to each rank, if a row is sent once to a
# rank? Return a list; what stays counts, too.


# %% tags=["exercise"]
def sends(chosen, ranks, experts):
    return [len(chosen)] * ranks


# %% tags=["check"]
exercises.check("16.1", sends)

# %% [markdown]
# **2.** Each of `ranks` ranks has `tokens` tokens, and a token has `reached` of the *other* ranks, in the
# mean. A row is `hidden` codes and a scale of 4 bytes for each 128 of them, and a result is `hidden` numbers
# in BF16. How many bytes does a rank send in one layer: its rows, and the results of what it has received?


# %% tags=["exercise"]
def traffic(tokens, reached, hidden):
    return tokens * hidden


# %% tags=["check"]
exercises.check("16.2", traffic)

# %% [markdown]
# **3.** A token takes `top_k` different ones of `experts` experts, all equally likely. How probable is it
# that at least one is on a given rank, which has `own` of them?


# %% tags=["exercise"]
def reaches(own, experts, top_k):
    return top_k * own / experts


# %% tags=["check"]
exercises.check("16.3", reaches)
