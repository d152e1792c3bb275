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
# # Rung s9: one kernel for every shape
#
# The last [rung](glossary.md#rung) has no new way to multiply. It is rung s7 with every decision left open
# that depends on the shape: how large the [tiles](glossary.md#tile) are, what a
# [cluster](glossary.md#cluster) shares, how many [stages](glossary.md#stage) there are, whether K is split,
# which rows are valid. Around it there is what a library needs: a choice of the configuration, a check of a
# call's operands that takes a microsecond, and the names that other people's code already calls.
#
# - The kernel: [gemm.cuh](../kernels/production/gemm.cuh),
#   [geometry.cuh](../kernels/production/geometry.cuh), [scheduler.cuh](../kernels/production/scheduler.cuh),
#   [store.cuh](../kernels/production/store.cuh), and what starts it,
#   [start.cuh](../kernels/production/start.cuh).
# - What is decided before it is compiled: [config.cuh](../kernels/production/config.cuh), and in Python
#   [config.py](../kernels/production/config.py), [candidates.py](../kernels/production/candidates.py) and
#   [choice.py](../kernels/production/choice.py).
# - What a decision is expected to cost: [prediction.py](../kernels/production/prediction.py),
#   [explain.py](../kernels/production/explain.py); how that was learned:
#   [calibrate.py](../kernels/measure/calibrate.py), [learning.py](../kernels/measure/learning.py).
# - What it costs when it is measured: [tuner.py](../kernels/production/tuner.py),
#   [tuned.py](../kernels/production/tuned.py).
# - The functions to call: [api.py](../kernels/api.py), [checks/](../kernels/checks),
#   [fast_path.cpp](../kernels/production/fast_path.cpp).
# - What was tried, with what result: [NOTES.md](../kernels/production/NOTES.md).
#
# > **Needs:** lesson [09](09_persistent.ipynb). **Time:** 60 minutes to read, 55 for guesses and exercises;
# > its cells run in two minutes, less when its kernels have been compiled. **May be skipped:** *5. Tiles that
# > straddle scales*; *6. Before the first load*; *What was learned*; *A dozen kernels for a weight*;
# > *Measuring instead of expecting*; *What a call costs the host*; *In other people's code* (30 minutes
# > more).

# %%
from gemm_ladder.figures import lessons

lessons.enter()  # makes this folder the working directory, wherever Jupyter was started

import json
import math
import os
import re
import tempfile
import time
from unittest import mock

import gemm_ladder as gl
import numpy as np
import torch
from gemm_ladder import api, checks
from gemm_ladder.arguments import H100_SMS
from gemm_ladder.figures import draw, host, measured, tables
from gemm_ladder.measure import calibration, learning
from gemm_ladder.production import choice, explain, fast_path, launching, prediction, tuned
from gemm_ladder.production.candidates import Candidates, candidates
from gemm_ladder.production.config import Config
from gemm_ladder.ref import gemm, metrics
from workshop import (
    drawing,
    drawing_production,
    drawing_results,
    evidence,
    exercises,
    model,
    printed,
    workbench,
    workbench_production,
    workbench_tma,
)

drawing.style()
SMS = H100_SMS
GPU = measured.load(measured.DATA / "ladder.json")["meta"]["gpu"]

# %%
drawing.where("host", "GPU", "L2", "cluster")

# %% [markdown]
# ## What limited the rung below
#
# [Rung s7](09_persistent.ipynb) has tiles of two sizes, 256 x 128 and 128 x 192, and pairs of [thread
# blocks](glossary.md#thread-block) that share A; [rung s8](10_ffma_interleave.ipynb) is the same source.
# Their [timeline](../figures/timeline_s7_persistent.png) shows [SMs](glossary.md#sm) that have work. Those
# that have none are in no timeline, so count: the tiles that some of DeepSeek-V3's products have, and the SMs
# that get one. `Config` is a production kernel's description; here it describes those of s7.

# %%
for m, n, k in ((4096, 7168, 16384), (4096, 2112, 7168), (64, 7168, 2048), (64, 2112, 7168)):
    for tile_m, tile_n in ((256, 128), (128, 192)):
        like_s7 = Config.of("dense", n, k, tile_m, tile_n, cluster=2, share="A")
        tiles = 2 * workbench_production.units(like_s7, m)
        wanted = m * n / (tiles * tile_m * tile_n)
        print(
            f"{m:4} x {n} x {k:5}: {tiles:3} tiles of {tile_m} x {tile_n} "
            f"for {SMS} SMs, {wanted:.0%} of the outputs wanted"
        )

# %% [markdown]
# (The last rung gives its tiles to pairs of blocks, so it has an even number of columns of tiles.) With 64
# rows, most SMs have nothing to do, and those that work spend half of their products or more on rows
# that do not exist. A product of few rows, as in decoding, is bound by reading B from memory, and a few SMs
# cannot ask for enough bytes at a time. Orange is what this lesson is about. (It is above the
# [ceiling](glossary.md#ceiling) here: that is another product's time, by a library's kernel, and not a
# bound.)

# %%
size = (64, 2112, 7168)
impls = ["s3_wgmma", "s4_tma", "s5_tma_multicast", "s7_persistent", "s9_production"]
notes = drawing_production.bars([*impls, "cublaslt_blockwise", "cublaslt_tensorwise"], size, "s9_production")
print(*notes, sep="\n")

# %% [markdown]
# The card of the rung below:

# %%
workbench.card("s8_ffma_interleave", again=True)

# %% [markdown]
# ## The idea
#
# Decide before compiling. The weights of a model, and so n and k, never change; m changes from call to call,
# but a dozen kernels are enough for all values of m. So for each n and k a few kernels are compiled, with all
# of their sizes as **compile-time constants**, when they are first needed. This is all that a kernel is told
# beforehand. (Its `kind` is "dense" for a product of one A and one B, as all were until here. The other
# kinds, contiguous, masked and [psum](glossary.md#psum-layout), are for the many B's of a [mixture of
# experts](glossary.md#mixture-of-experts), and [the next lesson](12_grouped_gemms.ipynb) is about them; a
# dense kernel has none of what is said about groups, as it is compiled away.)

# %%
workbench.code(workbench_production.source("config.cuh"), "^struct Config", "^};")

# %% [markdown]
# `Config` in Python has the same fields, and one more for the machine code, `interleave`
# ([rung s8](10_ffma_interleave.ipynb)). It writes the text that is compiled:

# %%
config = choice.choose("dense", 64, 2112, 7168)
text = printed.folded(config.source().replace(" = ", printed.whole(" = ")))
workbench.Text(f"```cpp\n{text}\n```", text)

# %% [markdown]
# Everything else follows in the template, also at compile time: how many [registers](glossary.md#register),
# bytes and boxes there are, and what is impossible. Two of many: `kStoreN` is the width of the boxes in which
# a [consumer](glossary.md#consumer)'s columns are stored, 64 if that divides them; `kBytesOutput` is the room
# that a consumer's results need on their way to D. ([geometry.cuh](../kernels/production/geometry.cuh) has
# them all; `kPieces` belongs to section 3, and what has B's scales in its name to section 5.)

# %%
geometry = workbench_production.source("geometry.cuh")
workbench.code(geometry, "constexpr int kStoreN =", "kBytesPieces : ")

# %%
workbench.code(geometry, "static_assert\\(kConsumers", "a cluster shares something")

# %% [markdown]
# config.py has the same rules, so that a mistake is reported in one sentence, and before the compiler runs:

# %%
try:
    Config.of("dense", 2112, 7168, 128, 192, cluster=2, share="B", stages=6).check()
except gl.GemmLadderError as error:
    print(error)

# %% [markdown]
# ## 1. Which block computes which tile
#
# A cluster takes a **[unit of work](glossary.md#unit-of-work)**. If it shares A, that is two tiles side by
# side; if it shares B, two below each other; if it shares K, one tile, and each block multiplies a part of
# its K. The **scheduler** says which unit is whose, to the [producer](glossary.md#producer) and to the
# consumers alike: `next` gives a block its next tile, the same one to all of its [warps](glossary.md#warp).
# This is what a dense kernel has of it; the next lesson shows the rest.

# %%
scheduler = workbench_production.source("scheduler.cuh")
GROUPED = "left out: what the grouped kinds need, lesson 12"
others = [("kC.kind == Kind::kMasked", "^        }$")]
workbench.code(scheduler, "__device__ bool next", "^    }", others, GROUPED)

# %% [markdown]
# To find where a unit lies takes a division, which is slow. So it is worked out a tile ahead, when no warp
# waits for it. Only the first tile is waited for; if all tiles lie side by side, it takes no division.
# Otherwise the units are walked through in bands, `group` of them wide, as in rung s7; `first_` is where a
# band begins, and `in_band_` the unit's number in it. (`across` says whether the bands run to the right; the
# constants beside it ask whether that pays.)

# %%
others = [
    ("while \\(kByGroup", "^        }$"),
    ("if constexpr \\(kC.kind == Kind::kPsum", "^        }$"),
    ("In the contiguous layout the rows", "^        }$"),
]
workbench.code(scheduler, "void look_ahead", "^    }", others, GROUPED)

# %% [markdown]
# Ask the scheduler itself, in a kernel that only writes down what it is told. You see the first tiles of
# three clusters: each colour is a cluster, a number is a block; where K is shared, its halves are drawn side
# by side:

# %%
walks = {}
for share in ("nothing", "A", "B", "K"):
    one = Config.of(
        "dense", 512, 2048, 128, 128, cluster=1 if share == "nothing" else 2, share=share, group_m=2
    )
    walks[f"{share} shared"] = one, workbench_production.walk(one, m=512, num_sms=8)
drawing_production.clusters(walks)

# %% [markdown]
# Here `group_m` is 2: units go two down, then one to the right (with `group_n`, the other way round), for the
# reason that you saw in [rung s7](09_persistent.ipynb): what runs together should read the same rows. With
# the scheduler's list you can count what the blocks ask of [L2](glossary.md#l2) for one [block of
# K](glossary.md#k-block), and compare with `prediction.py`, which does not walk:

# %%
for title, (one, tiles) in walks.items():
    rows_a = one.tile_m // (2 if one.share == "A" else 1)
    rows_b = one.tile_n // (2 if one.share == "B" else 1)
    blocks = one.k // 128 // (2 if one.share == "K" else 1)
    asked = len(tiles) * blocks * (128 * (rows_a + rows_b) + 4 * one.tile_m)
    print(f"{title:15} {asked:8,} bytes counted, {prediction.predict(one, 512).l2_bytes:8,} predicted")

# %% [markdown]
# Sharing K saves nothing from L2: it is there to give more SMs something to do.
#
# The grouped layouts are decided here too. A masked product's group has only as many tiles as its rows need,
# and the scheduler finds that out on the GPU, from `masked_m`:


# %%
masked = Config.of("masked", 256, 512, 64, 128)
counts = np.array([5, 0, 100, 70], np.int32)
for tile in workbench_production.walk(masked, m=128, num_sms=8, layout=counts, groups=4):
    print(
        f"turn {tile['turn']}, block {tile['block']}: group {tile['group']}, rows {tile['row']} on, of which "
        f"{min(tile['rows'], 64):2} are wanted, columns {tile['column']} on"
    )

# %% [markdown]
# [The next lesson](12_grouped_gemms.ipynb) is about these layouts.
#
# ## 2. Waves, and the last one
#
# All SMs together make a **[wave](glossary.md#wave)** of tiles. A product has whole waves, then a rest that
# takes as long as a whole one. This is 4096 x 2112 x 7168 with tiles of 256 x 128, then of 128 x 192, then
# with the configuration that a call on this GPU gets. The tiles are the scheduler's; the length of a tile in
# the picture is proportional to its number of outputs.

# %%
m, n, k = 4096, 2112, 7168
panels = {}
for one in (
    Config.of("dense", n, k, 256, 128),
    Config.of("dense", n, k, 128, 192),
    launching.configuration("dense", m, n, k, 1, None, SMS, GPU),
):
    panels[explain.tile(one, " x ")] = one, workbench_production.walk(one, m, SMS)
drawing_production.schedule(panels, SMS)

# %% [markdown]
# The third is the second with another end. 2112 columns are 11 tiles of 192; two waves are 264 tiles, and 264
# / 11 = 24 tiles of 128 rows are 3072 rows. The other 1024 rows, the **tail**, are 4 x 33 = 132 tiles of 256
# x 64, again a whole wave, and a shorter one. A kernel for that has two copies of the main loop, one for each
# tile. They take turns with the same [ring](glossary.md#ring): `Geometry` says what each tile needs, and a
# stage is as large as the larger need. The launcher deals out the rows before the kernel runs, so each copy
# sees a product of its own:

# %%
workbench.code(workbench_production.source("start.cuh"), "^int64_t deal", "^}")

# %% [markdown]
# A tail has a price: its tiles ask L2 for more, and read B once more. Where it gains, and where it does not,
# is in [NOTES.md](../kernels/production/NOTES.md); the choice counts both.
#
# Without a tail, the share of the SMs' time that goes into valid outputs is a sawtooth, against m: it falls
# where one more wave begins, and rises while that wave fills.


# %%
SIZES = ((64, 64), (128, 128), (128, 192), (256, 128))
drawing_production.sawtooth(n, SIZES)

# %%
workbench.slider(lambda n_128: drawing_production.sawtooth(128 * n_128, SIZES), n_128=(4, 64))

# %% [markdown]
# If this were all, the smallest tile would win for every m. It does not, because it asks L2 for more bytes
# for each operation:


# %%
for tile_m, tile_n in SIZES:
    intensity = 2 * tile_m * tile_n / (tile_m + tile_n)
    print(f"{tile_m:3} x {tile_n:3}: {intensity:5.1f} operations for each byte from L2")

# %% [markdown]
# ## 3. Few rows: splitting K
#
# 64 x 2112 outputs are 66 tiles of 64 x 32, half as many as an H100 has SMs. Narrower ones would each read
# all of A for fewer columns. **[Splitting K](glossary.md#split-k)** makes two blocks of one tile: each
# multiplies a half of K, then the halves have to be added. [Rung s5](07_tma_multicast.ipynb) knows clusters
# whose blocks send to each other. Here they write into each other's [shared
# memory](glossary.md#shared-memory), with an ordinary store whose address comes from `mapa`.
#
# Try that alone. Four blocks send a number each to all four; then each adds up what it has got, once in the
# order of the ranks and once beginning with its own. They meet twice: no block may send before the others
# have begun, because until then they have no shared memory, and none may add before all numbers are there.

# %%
NEIGHBOURS = """
__global__ void sums(const __grid_constant__ TensorMap map, int x, int y, float* out) {
    const float numbers[4] = {16777216.f, 1.f, -16777216.f, 1.f};
    const uint32_t places = ptx::shared_memory(), rank = ptx::cluster_ctarank();
    ptx::barrier_cluster_arrive();
    ptx::barrier_cluster_wait();
    if (threadIdx.x == 0)
        for (int to = 0; to < 4; ++to)
            ptx::st_shared_cluster(ptx::mapa(places + rank * 16, to), float4{numbers[rank]});
    __syncwarp();
    ptx::barrier_cluster_arrive();
    ptx::barrier_cluster_wait();
    if (threadIdx.x == 0) {
        float in_order = 0, own_first = 0;
        for (int i = 0; i < 4; ++i) {
            in_order += ptx::ld_shared<float4>(places + i * 16).x;
            own_first += ptx::ld_shared<float4>(places + (rank + i) % 4 * 16).x;
        }
        out[2 * rank] = in_order;
        out[2 * rank + 1] = own_first;
    }
}
"""
out = np.zeros((4, 2), np.float32)
workbench_tma.try_box(NEIGHBOURS, out, np.zeros((8, 128), np.uint8), (8, 128), cluster=4)
for rank in range(4):
    print(
        f"block {rank}: {out[rank, 0]:g} in the order of the ranks, {out[rank, 1]:g} beginning with its own"
    )

# %% [markdown]
# An FP32 addition rounds, so the order decides about the sum. That is why the order is written down: a call
# that is repeated has to give the same bits, and so has a row of A, whichever block happened to be first.
# `reduce` deals out the tile's pieces to the blocks, sends each block the parts of its pieces, and each adds
# up its pieces from rank 0 on. The first of the two meetings is in two steps: a block says that it has begun
# when it begins, and waits for the others long after, when all have said so and the wait is short.

# %%
workbench.code(workbench_production.source("gemm.cuh"), "static __device__ void reduce\\(", "^    }$")

# %% [markdown]
# A whole kernel, K in four parts, under several [schedules](glossary.md#schedule):

# %%
split = Config.of("dense", 72, 512, 64, 64, cluster=4, share="K", stages=2)
problem = workbench.problem(m=60, n=72, k=512)
found = []
for seed in range(4):
    with gl.emulator(seed=seed):
        found.append(workbench_production.multiply(split, problem))
print("the same bits each time:", all(workbench.difference(d, found[0]) is None for d in found))
print("relative error:         ", metrics.relative_error(found[0], gemm.dense(*problem.arrays)))
print(
    "against K in one part:  ", workbench.difference(found[0], workbench.expected("s9_production", problem))
)

# %% [markdown]
# None: no element of D differs. The FP32 sums may differ in their last bits, and [BF16](glossary.md#bf16)
# keeps eight.
#
# K is split in two, four or eight parts. The blocks of a cluster wait for each other, so a split pays only
# where all clusters are [resident](glossary.md#occupancy) at once and each block still has several blocks of
# K: [candidates.py](../kernels/production/candidates.py) has the conditions. The choice for 16 rows and some
# weights:

# %%
for n, k in ((384, 1536), (1280, 8192), (2112, 7168), (4096, 2048), (7168, 2048)):
    one = choice.choose("dense", 16, n, k)
    parts = one.cluster if one.share == "K" else 1
    print(f"n = {n:4}, k = {k}: tiles of {one.tile_m} x {one.tile_n}, K in {parts} part(s)")

# %% [markdown]
# ## 4. What is read once may go first
#
# L2 keeps what was read last. But if there is one row of tiles, B is read only once, and what has to leave L2
# for it may be something that is needed. So B's loads carry a hint, `evict_first`, which an instruction makes
# and the load takes along:

# %%
workbench.code(workbench_production.source("gemm.cuh"), "void load\\(uint32_t shared", "^    }")

# %% [markdown]
# `if constexpr` is decided by the compiler: a kernel has one of the three branches and no trace of the
# others. A hint changes no result, and the [emulator](glossary.md#emulator), which has no L2, takes it and
# does nothing.
#
# ## 5. Tiles that straddle scales (optional)
#
# 128 columns share a scale of B. A tile of 96 or 112 columns begins anywhere, so it may touch two blocks of
# scales, and a thread has to take the right one for each of its columns. `kSegment` is the number of columns
# that *surely* share one, and `kScalesB` how many a tile may touch:

# %%
for tile_n in (32, 64, 96, 112, 128, 176, 192):
    one = Config.of("dense", 2112, 7168, 128, tile_n)
    segment = np.gcd(np.gcd(tile_n, 128), one.consumer_n)
    firsts = {(column // 128, (column + tile_n - 1) // 128) for column in range(0, 128 * tile_n, tile_n)}
    most = max(last - first + 1 for first, last in firsts)
    print(
        f"{tile_n:3} columns: segments of {segment:3}, room for {one.scales_b} scales, {most} touched at most"
    )

# %% [markdown]
# So a width that divides 128 or is a multiple of it is cheap, and 112 costs registers and shared memory: two
# more costs that the choice has to count.
#
# [Rung s7](09_persistent.ipynb) loads B's scales with every block of k, four floats of which it wants
# one. Here a tile's scales lie side by side in memory, one for each block of k, and they are loaded once,
# with its first block. They cannot lie in a stage then, because the stages are overwritten while they are
# needed. They have buffers of their own behind the ring. How many?

# %%
workbench.code(geometry, "A buffer holds B's scales", "kTilesInRing")

# %% [markdown]
# No barrier guards them. At k = 7168 a tile has 56 blocks of k, and a ring never more than 16 stages: two
# buffers are enough, of a few hundred bytes each.
#
# ## 6. Before the first load (optional)
#
# A product of few rows takes about ten microseconds, and in a model the next one is right behind it. For
# about one of the ten, no load has been issued yet: blocks start, barriers are initialised. This could be
# done while the kernel *ahead* is still busy with its last tiles. CUDA permits it, under the name
# **[programmatic dependent launch](glossary.md#programmatic-dependent-launch)**: the launcher sets an
# attribute (`early` in start.cuh), and the kernel may begin before the one ahead of it has ended. In return
# it must say itself at which point the other has to have ended:

# %%
workbench.code(workbench_production.source("gemm.cuh"), "---- Prologue", "^        __syncthreads\\(\\);")

# %% [markdown]
# `griddepcontrol.wait` waits until the kernel ahead has ended and what it wrote can be seen. What is before
# it must not depend on that: the barriers are this block's own, the [tensor maps](glossary.md#tensor-map) are
# arguments of the launch. And the **prefetch**: an idle thread has L2 fetch the first two to eight blocks of
# k of its B, about 32 KB. That is no load. If the kernel ahead should write B, it writes to L2, where the
# load after the wait finds it. In a grouped product it takes a look into memory to know *which* B, so there
# the prefetch waits too:

# %%
workbench.code(workbench_production.source("gemm.cuh"), "static __device__ void prefetch", "^    }")

# %% [markdown]
# `griddepcontrol.launch_dependents` is the other half: it lets the kernel *behind* begin. A kernel says it at
# its start if one tile has room for all rows. With more rows, blocks that read the same rows of B should run
# side by side, and those of a kernel that begins early get their SMs one by one, as these become free.
#
# Few rows have one more cost. The [copy engine](glossary.md#copy-engine) takes as long for a row outside of
# A, which it fills with zeros, as for one inside, and a tile of 64 rows of which one exists has 63 of them.
# So the launcher makes the boxes of A only as high as A, and tells the kernel how many bytes a stage then
# has:

# %%
workbench.code(workbench_production.source("start.cuh"), "If A has fewer rows", "part.bytes_loads")

# %% [markdown]
# ## The kernel
#
# With these words it can be read: [gemm.cuh](../kernels/production/gemm.cuh). This is the change to the file
# of the rung below. Nearly every line that has a size in it is another one, so read the file rather than the
# difference:

# %%
change = workbench.diff("s8_ffma_interleave", "s9_production", context=1)
fold = f"<details><summary>The difference</summary>\n\n{change.markdown}\n\n</details>"
workbench.Text(fold, change.plain)

# %% [markdown]
# Its main loop is the one you know:

# %%
workbench.code(workbench_production.source("gemm.cuh"), "Multiplies one K block, slice after slice", "^    }")

# %% [markdown]
# Who loads is decided in another way. In rung s7 it is thread 0, by `threadIdx.x`. Here a warp's number comes
# out of a shuffle, and `elect.sync` picks the [lane](glossary.md#lane). The result is the same, but the
# machine code is not: the compiler now *knows* that no warp is divided and that one thread loads. So it keeps
# addresses in [uniform registers](glossary.md#uniform-register).

# %%
workbench.code(workbench_production.source("gemm.cuh"), "---- Roles", "G::produce")

# %% [markdown]
# Run some members of the family on one ragged product, and compare bit for bit:

# %%
problem = workbench.problem(m=200, n=328, k=384)
right = workbench.expected("s9_production", problem)
pair_a = Config.of("dense", 328, 384, 128, 96, cluster=2, share="A", stages=3)
pair_b = Config.of("dense", 328, 384, 64, 112, cluster=2, share="B")
for one in (pair_a, pair_b):
    d = workbench_production.multiply(one, problem)
    shape = f"{one.tile_m} x {one.tile_n}, {one.share} shared, {one.consumers} consumer(s)"
    print(f"{shape}: the expected bits: {workbench.difference(d, right) is None}")

# %% [markdown]
# The bits do not depend on the tile: every output is the same sum in the same order, unless K is split.
#
# ## Who decides
#
# The **candidates** are the configurations to choose from. Some of them do not suit a product: a tile of 256
# rows, for example, is of no use to 64 rows. Of those that there are for dense products with k = 7168, how
# many suit 64 x 2112 x 7168? Guess.

# %%
m, n, k = 64, 2112, 7168
known = candidates("dense", k)
print(f"{len(known.configs)} candidates for dense products with k = {k}")

# %% tags=["guess"]
exercises.guess("11.candidates", None)

# %%
suits = known.suiting("dense", np.array([float(m)]), n, k, SMS)
exercises.found("11.candidates", int(suits.sum()), f"of them suit {m} x {n} x {k}")

# %% [markdown]
# There are too many to time them all for every weight and every m. So the time of each is predicted, and the
# candidate with the shortest expected time is chosen. `explain` says what a product gets and what is expected
# of it:

# %%
_ = explain.main([str(m), str(n), str(k)])

# %% [markdown]
# What is in this table?
#
# - **waves**, **last wave**: as above, in units of work.
# - **stages**: as many as fit in the shared memory of a block, beside the buffers for results and for B's
#   scales; with tiles of 64 rows no more than 176 KB of them. L2 has to keep what is asked for until it is
#   loaded, and a deeper ring asks for more at once.
# - **L2 MB**: what all blocks together ask for.
# - **floor**: the time to move every byte once at the bandwidth that a copy reaches, or to do the
#   operations at the peak rate of the [tensor cores](glossary.md#tensor-core), whichever is longer. It is
#   an H100's here; where this lesson compares measured times with a floor, further down, it is that of the
#   GPU that was measured, whose memory may be faster.
# - **estimate**: what arithmetic alone says, which is the next section.
# - **us**: the expected time with L2 [dirty](glossary.md#dirty), with L2 clean, and in a [CUDA
#   graph](glossary.md#cuda-graph) ([lesson 13](13_reading_the_results.ipynb) describes these states). The
#   choice is made by the geometric mean of the three.
#
# "B kept" is the hint of section 4: whether B stays in L2, or leaves it first because it is read once.
#
# ### Arithmetic first
#
# A kernel does several things at the same time. `work` in prediction.py finds how long each of them would
# take if it were alone. The constants are round figures of an H100, also where the GPU is an H200: what
# differs is left to the learned factor, of which each GPU model has its own. (Measured times are of the GPU
# that the lessons show, unless a line names another.)

# %%
with open(prediction.__file__) as file:
    page = file.read()
text = page[page.index("# Round figures of an H100") : page.index("FAR = ")].rstrip() + "\n"
workbench.Text(f"```python\n{text}```", text)

# %%
text = page[page.index("    cycles = BLOCK_CYCLES") : page.index("    columns_of = ")]
workbench.Text(f"```python\n{text}```", text)

# %% [markdown]
# - **tensor**: for each wave, the operations of a tile at the peak rate of an SM's tensor cores.
# - **[promotion](glossary.md#promotion)**: a consumer needs some cycles for each block of K, whatever the
#   size of its tile, and more for each column that it promotes.
# - **memory**: every byte of A, B and D once.
# - **L2**: what all blocks ask for, so an operand counts as often as it is loaded.
# - **load**: what one SM loads. A product of few tiles is limited by it although L2 could deliver more.
# - **output**: the stores of the last tile, which have nothing to hide behind.
#
# The first five overlap. If they overlapped perfectly, the longest would be the total; if not at all, their
# sum. The estimate is between these two: the third root of the sum of their third powers. Two terms of equal
# length then cost 26 % more than one of them, and a short term hardly counts beside a long one. The launch,
# the output and the addition of split-K's parts come on top.
#
# This is the model that you have built, rung by rung, with the same constants (memory's is an H100's here):
# waves since s2, the tensor cores and the promotion since s3, L2 and memory since s4, sharing since s5, begin
# and end since s6. On its own it is a quarter to a half too slow for what is chosen, most of all where L2's
# term is the longest, which lesson 07 has shown to be too long; the learned factor below corrects that. Three
# things are different. It takes any tile, cluster and split, because it has to compare them. Its promotion is
# that of *one* consumer, where the lessons' model has a consumer's whole chain; and the power mean stands for
# what hides badly behind something else, where the lessons' model takes the longest term. For tiles of 256 x
# 128, as in s7:

# %%
for shape in evidence.SIZES[:4]:
    like_s7 = Config.of("dense", *shape[1:], 256, 128, cluster=2, share="A")
    estimate = prediction.predict(like_s7, shape[0]).estimate_us
    mine = model._two_consumers(*shape, 256, 128, model.FILL_US, 256 * 128 * model.OUTPUT_US).us
    words = f"estimate {estimate:6.1f} us, the lessons' model of that tile {mine:6.1f} us"
    print(f"{drawing_results.name(shape):>20}: {words}")

# %% [markdown]
# The estimate is the longer one where two terms are nearly equal, at large shapes; for choosing that does no
# harm, as all candidates are estimated alike.
#
# How good is that? [figures/data/calibration](../figures/data/calibration) has the times of thousands of
# configurations, measured with `python -m gemm_ladder calibrate`. These are the ones for one product, with
# L2 dirty:

# %%
GPU_FILE = GPU.replace(" ", "_")  # how the files of a GPU are named
everything = list(calibration.read(measured.DATA / "calibration" / GPU_FILE))
results = [one for one in everything if math.isfinite(one.us[0])]  # those that were measured and right
weights = {(one.cell.kind, one.cell.groups, *one.cell.shape[1:]) for one in results}
print(f"{len(results)} configurations, at {len({one.cell for one in results})} products")
print(f"of {len(weights)} weights, or groups of weights\n")

TERMS = ("tensor", "promotion", "memory", "l2", "load", "output")
same = [one for one in results if one.cell.kind == "dense" and one.cell.shape == (m, n, k)]
found = prediction.work(
    Candidates(tuple(one.config for one in same)).columns, np.full(len(same), m), "dense", n, k, 1, SMS
)
head = ["tile", "K in", "evict first", *(term.replace("l2", "L2") for term in TERMS), "estimate", "measured"]
cells = []
for index in sorted(range(len(same)), key=lambda index: same[index].us[0]):
    one = same[index].config
    terms = [f"{found[f'{term}_us'][index]:.1f}" for term in TERMS]
    parts = str(one.cluster if one.share == "K" else 1)
    times = f"{found['estimate'][index]:.1f}", f"{same[index].us[0]:.1f}"
    cells.append([explain.tile(one, "x"), parts, "yes" if one.stream_b else "no", *terms, *times])
print(tables.plain([head, *cells]))

# %% [markdown]
# All times are in microseconds. You can read in this table *why* something is slow: a wide tile whose K is
# not split leaves so few blocks that each has much to load, and the narrowest one asks L2 for the most. What
# it cannot tell apart is what no term is about. Two candidates that differ in the hint `evict_first` have the
# same estimate and take different times.
#
# Now for all of them. Two questions are asked. How far is the estimate from the measured time? And, since a
# choice needs no times but only the right order: how much longer does the configuration with the smallest
# estimate take than the best one that was measured for the product? That is its **regret**.

# %%
data = learning.prepare(results)
dirty = np.exp(data.target[:, 0])


def words(expected_us):
    ratio = np.quantile(expected_us / dirty, (0.05, 0.5, 0.95))
    near = np.mean(np.abs(expected_us / dirty - 1) < 0.2)
    return "times the measured one: {:.2f} (5 %), {:.2f} (median), {:.2f} (95 %)".format(*ratio) + (
        f"; {near:.1%} are within a fifth"
    )


def regrets(network):
    """Of the configuration, among those measured, that is expected to be the fastest; for each product."""
    every = np.ones(len(results), dtype=bool)
    return np.expm1([one.mean for one in learning.regrets(network, data, every)])


def summary(regret):
    return (
        f"regret: mean {regret.mean():.1%}, 95 % of the products below {np.quantile(regret, 0.95):.1%}, "
        + (f"worst {regret.max():.0%}")
    )


estimates = np.exp(data.base)
by_estimate = regrets(lambda inputs: np.zeros((len(inputs), len(prediction.STATES))))
printed.show("the estimate alone is", words(estimates))
print(summary(by_estimate))

# %% [markdown]
# For a page of arithmetic that is not bad, and it is no good choice. An error that all candidates of a
# product share does no harm. But the estimate is also off by different factors for candidates of one product,
# and the best candidate is often only a few percent ahead of the next one.
#
# ### What was learned (optional)
#
# What is missing has no single cause. How well the loads hide behind the multiplication depends on the number
# of stages *and* on the blocks of K *and* on how many tiles run at the same time; what a hint gains depends
# on the rows and on the state of L2. One could add a term and a constant for each such case, and each
# constant would have to be fitted together with all the others. Such a formula existed here before. At
# numbers of rows for which it had not been fitted, the kernel that it chose took up to 2.4 times as long as
# the best one (NOTES.md, *The expected time at numbers of rows that no table had*). With thousands of
# measured times, it is better to let a general function find the dependencies. It does not start from
# nothing: it is given the terms above as shares of the estimate, the number of waves, stages, blocks of K and
# so on, and it answers with a **factor on the estimate**, one for each state of L2. What arithmetic knows,
# such as that twice the work takes about twice the time, need not be learned.
#
# The function is the mean of three small neural networks. NumPy computes it:

# %%
text = page[page.index("    def __call__(self, given") : page.index("def stem(gpu")].rstrip() + "\n"
workbench.Text(f"```python\n{text}```", text)

# %%
learned = json.loads((prediction.LEARNED / f"{GPU_FILE}.json").read_text())
network = prediction.read(learned)
numbers = [sum(matrix.size + bias.size for matrix, bias in layers) for layers in network.members]
print(
    f"{len(learned['inputs'])} inputs, hidden layers of", *(len(bias) for _, bias in network.members[0][:-1])
)
print(f"{len(learned['states'])} outputs; {len(numbers)} networks of {numbers[0]} numbers each")

# %% [markdown]
# Four decisions in [learning.py](../kernels/measure/learning.py) make it good at choosing, not only at
# predicting. The error of the *differences* between candidates of one product counts three times as much as
# that of the times themselves. It counts three times more if a candidate is expected to be faster than it is,
# since such a one is chosen; one that is expected to be too slow only leaves the next best. Candidates near
# the best one of their product count more than those that are far slower. And the mean of three networks is
# used, because each alone errs in its own way between the measured points.
#
# On the left, every measured configuration; on the right, the regret of the products, the smallest one first:

# %%
expected = estimates * np.exp(network(data.inputs)[:, 0])
by_network = regrets(network)
of_calls = calibration.regrets(results, GPU)
by_choice = np.array(list(of_calls.values()))
drawing_production.how_good(
    dirty,
    {"estimate alone": estimates, "with the learned factor": expected},
    {
        "estimate alone": by_estimate,
        "with the learned factor": by_network,
        "the same, at most 12 kernels a weight": by_choice,
    },
)
printed.show("with the factor, it is", words(expected))
print(f"any measured configuration:     {summary(by_network)}")
print(f"at most {choice.MOST_KERNELS} kernels for a weight: {summary(by_choice)}")

# %% [markdown]
# The third line of the picture is what a call really gets when no table has the product: a weight has few
# kernels, as the next section explains. Its worst cases, with geometric means over the states of L2:

# %%
head = ["product", "chosen", "measured us", "expected", "best", "measured us", "expected", "regret"]
cells = []
for cell, regret in sorted(of_calls.items(), key=lambda item: -item[1])[:8]:
    at = [index for index, one in enumerate(results) if one.cell == cell]
    found = calibration.of_choice([results[index] for index in at], calibration.chosen(cell, GPU))
    chosen, best = results.index(found), min(at, key=lambda index: results[index].mean)
    fields = []
    for index in (chosen, best):
        known = ~np.isnan(results[index].us)  # not all states were measured at all products
        us = np.exp(data.base[index] + network(data.inputs[index : index + 1])[0, known].mean())
        words_for = workbench_production.short(results[index].config)
        fields += [words_for, f"{results[index].mean:.1f}", f"{us:.1f}"]
    cells.append([str(cell), *fields, f"{regret:.0%}"])
print(tables.plain([head, *cells]))
print(f"\n{np.mean(by_choice < 0.01):.0%} of the products lose less than 1 %,")
print(f"{np.mean(by_choice > 0.05):.0%} lose more than 5 %")
missing = len({one.cell for one in results}) - len(of_calls)
print(f"{missing} products are not counted: the kernel that they would get was not measured")

# %% [markdown]
# Compare the two columns of expected times. Where the choice was expected to be faster than the best one, the
# prediction is wrong. Where the best one was expected to be faster, too, the limits of the next section are
# to blame: it is not among the weight's few kernels, or another kernel suits the middle of a range of m.
#
# Before you believe these numbers, ask what they are relative to. "The best one measured" is the best of
# about a dozen configurations for each product, not of all candidates. Most of the dozen are those that were
# expected to be good when they were measured, the others were drawn at random; one that was not expected to
# be good may be faster still. And times repeat within about 1 %, so that the fastest of a dozen is partly the
# luckiest.
#
# The sharper question: has the network learned a rule, or only remembered the products? For an answer,
# `calibrate fit` leaves out a fifth of the weights with all of their products, fits to the rest, and judges
# the choice at the weights that were left out; five times, until every weight had its turn.

# %%
head = ["choice among the measured ones", "products", "mean regret", "95 % below", "worst"]
cells = [
    [
        f"weights {name}",
        str(one["products"]),
        *(f"{one[part]:.1%}" for part in ("mean", "95 %", "worst")),
    ]
    for name, one in learned["meta"]["regret"].items()
]
parts = by_estimate.mean(), np.quantile(by_estimate, 0.95), by_estimate.max()
cells.append(["estimate alone", str(len(by_estimate)), *(f"{part:.1%}" for part in parts)])
print(tables.plain([head, *cells]))

# %% [markdown]
# A weight that was left out loses more, but far less than with the estimate alone: most of what the network
# adds to the estimate holds for weights that it has never seen. The worst case grows, too. If a product
# matters to you, measure it, as shown below.
#
# Every candidate at one product, by the geometric mean of the expected times: a line is the number of rows of
# a tile and what is shared, and each point is the best of those candidates that have so many columns.

# %%
drawing_production.choices(64, 2112, 7168)

# %%
workbench.slider(
    lambda m, weights: drawing_production.choices(m, *map(int, weights.split(" x "))),
    m=[1, 64, 128, 256, 512, 1024, 2048, 4096],
    weights=[
        f"{n} x {k}" for n, k in ((2112, 7168), (4096, 7168), (7168, 2048), (7168, 16384), (32768, 512))
    ],
)

# %% [markdown]
# ### A dozen kernels for a weight (optional)
#
# The best candidate for m = 1000 may be another one than for m = 1010. Every kernel has to be compiled, which
# takes seconds, and loaded, so a process should not need one for every m. `plan` in
# [choice.py](../kernels/production/choice.py) therefore selects at most 12 kernels for a weight. The first is
# the one that is the fastest on average over numbers of rows from 8 to 16384, the next the one that improves
# this average most beside the first, and so on. It stops early if the next one would gain next to nothing.
# How much longer calls are expected to take with few kernels than if each m had the best candidate:

# %%
n, k = 7168, 2048
rows = choice.SELECTED_FOR
best = choice.expected(candidates("dense", k), "dense", rows, n, k, 1, SMS, GPU).min(axis=0)
for most in (1, 2, 4, 8, 12, 100):
    with mock.patch.object(choice, "MOST_KERNELS", most):
        plan = choice.plan.__wrapped__("dense", n, k, 1, SMS, GPU)  # not the cached one
    loss = choice.expected(Candidates(plan.configs), "dense", rows, n, k, 1, SMS, GPU).min(axis=0) - best
    print(f"at most {most:3} kernels: {len(plan.configs):2} used, {np.expm1(loss.mean()):5.2%} longer")

# %% [markdown]
# Among its kernels, a weight uses the one with the shortest expected time for the m of the call. For this, m
# is rounded up to one of the `STEPS`: multiples of 8 up to 256, and above that in steps of at most an eighth.
# The steps can be that fine because they cost no kernels:

# %%
plan = choice.plan("dense", n, k, 1, SMS, GPU)
drawing_production.plan(plan, f"n = {n}, k = {k}")
needed = dict.fromkeys(map(plan.at, choice.steps_up_to("dense", 8192, 1)))
print(f"{len(choice.STEPS)} steps, {len(plan.configs)} kernels; calls with m up to 8192 need {len(needed)}")

# %% [markdown]
# It looks restless, and that is the sawtooth of section 2: as m grows, now one tile fills its last wave, now
# another. `precompile` compiles the kernels ahead, on as many threads as there are cores.
#
# ## Measuring instead of expecting (optional)
#
# `gemm_ladder.tune(kind, m, n, k)`, or `python -m gemm_ladder tune M N K`, times the candidates that are
# expected to be good on your GPU in all three states of L2, each after a look at its result, and keeps the
# best. From then on it is one of the weight's kernels, and a call with this GPU, this number of SMs, these n
# and k and the same step of m takes it, whatever is expected of it. With another number of SMs the kept time
# does not count. Watch that, without a GPU, in a folder of its own; the time that is kept is made up, and
# nothing looks at it again:

# %%
with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ, GEMM_LADDER_CACHE=folder):
    call = ("dense", 64, 2112, 7168, 1, None, SMS, "A Hopper GPU")
    print("expected:", launching.configuration(*call).name)
    other = choice.ranked("dense", 64, 2112, 7168)[3]
    path = tuned.keep("A Hopper GPU", other, 64, 1, SMS, us=[1.0])
    print("kept:    ", launching.configuration(*call).name, "in", path.name)
    print("with 130 SMs:", launching.configuration(*call[:6], 130, "A Hopper GPU").name)

# %% [markdown]
# What was measured for the products of DeepSeek-V3 comes with the package, in a table for each GPU model. How
# often does it differ from what is expected? Some differ in the tile or in what is shared; others only in
# finer settings, such as the order of the tiles or the interleaving.

# %%
for path in sorted(tuned.SHIPPED.glob("*.json")):
    gpu, differ, finer = path.stem.replace("_", " "), 0, 0
    table = json.loads(path.read_text())
    for key, entry in table.items():
        kind, sizes = key.split()
        groups, m, n, k = map(int, sizes.split("x"))
        rows = m * groups if kind == "contiguous" else m
        expected = choice.choose(kind, rows, n, k, groups, entry["num_sms"], gpu=gpu)
        best = Config(**entry["config"])
        coarse = best.name != expected.name
        differ, finer = differ + coarse, finer + (not coarse and best != expected)
    print(f"{path.stem}: {len(table)} products; {differ} have another tile or sharing than the expected one,")
    print(f"    {finer} more differ in finer settings")

# %% [markdown]
# The first example of section 2 is one of them: at 4096 x 2112 x 7168 the tail is expected to gain less than
# it was measured to. Both configurations are in the file of measured times. The network has learned from
# these very lines, among thousands of others, and is still off by several per cent:

# %%
for one in results:
    if one.cell.shape == (4096, 2112, 7168) and one.config.name.endswith(("128x192", "128x192_256x64")):
        expected_us = prediction.predict(one.config, 4096, gpu=GPU).us
        tile = explain.tile(one.config, " x ")
        finer = f"{one.config.stages} stages, bands of {one.config.group_m}"
        print(f"{tile:25} {finer:24} measured {one.us[0]:.1f} us, expected {expected_us:.1f} us, L2 dirty")

# %% [markdown]
# ## What was tried
#
# Most ideas do not work. [NOTES.md](../kernels/production/NOTES.md) keeps them all: what was expected, what
# was measured, what became of it. How its entries end (those that end neither way are counts, tables, and
# what was found out without a change):

# %%
notes = workbench_production.source("NOTES.md").split("\n\n")
entries = [" ".join(entry.split()) for entry in notes if entry.startswith("**")]
listed = []
for entry in entries:
    title, rest = re.match(r"\*\*(.+?)\*\*[.:,]?(.*)", entry).groups()
    found = re.findall(r"Not kept|Kept|are kept|Dropped|No clusters", rest)
    verdict = "" if not found else "kept" if found[0] in ("Kept", "are kept") else "dropped"
    listed.append((verdict, title.rstrip(".")))
counts = {words: sum(verdict == words for verdict, _ in listed) for words in ("kept", "dropped", "")}
print("entries that end with kept: {kept}, with dropped: {dropped}, others: {}".format(counts[""], **counts))
fold = "\n".join(f"- {verdict + ': ' if verdict else ''}{title}" for verdict, title in listed)
workbench.Text(f"<details><summary>All titles</summary>\n\n{fold}\n\n</details>", fold)

# %% [markdown]
# Two of them in full. Read them for the pattern: an expectation with a number, *before* the measurement.
# Where the two disagree you have learned something about the machine.

# %%
chosen = [entry for entry in entries if entry.startswith(("**Split-K.**", "**L2 prefetch.**"))]
workbench.Text("\n\n".join(f"> {entry}" for entry in chosen), "\n\n".join(chosen))

# %% [markdown]
# An entry may be wrong. The measurement is right, but what is said about its cause is a guess. Here is one
# idea, dropped on one day and kept on another, after a look at the machine code:

# %%
again = [entry for entry in entries if entry.startswith(("**The producer elected**", "**The loading thread"))]
workbench.Text("\n\n".join(f"> {entry}" for entry in again[::-1]), "\n\n".join(again[::-1]))

# %% [markdown]
# ## What a call costs the host (optional)
#
# Before a kernel runs, the host has to check the operands, find the kernel, and launch it. A product of few
# rows is over in some microseconds; if a call costs the host more than that, the GPU waits for the host. Two
# things keep it short.
#
# **The checks.** [checks/](../kernels/checks) finds the sentence that says what is wrong with a call, and is
# slow. So a call whose operands need neither a sentence nor a conversion does not go there, and not through
# Python at all: [fast_path.cpp](../kernels/production/fast_path.cpp) looks at them. These are its questions,
# asked once types, sizes, strides and addresses are read:

# %%
queue_cpp = fast_path.SOURCE.read_text()
workbench.code(queue_cpp, "if \\(!m ", "beside\\(rows")

# %%
problem = workbench.problem(m=64, n=256, k=512)
a, sfa, b, sfb = (workbench.tensor(array) for array in problem.arrays)
sfa = gl.get_mn_major_tma_aligned_tensor(sfa)
d = torch.empty(64, 256, dtype=torch.bfloat16, device=workbench.DEVICE)


def microseconds(call, calls=2000):
    """Of the host, for a call; the best of five rounds."""
    times = []
    for _ in range(5):
        begin = time.perf_counter()
        for _ in range(calls):
            call()
        times.append((time.perf_counter() - begin) / calls * 1e6)
    return min(times)


whole = microseconds(lambda: checks.call("dense", (a, sfa), (b, sfb), d))
fast_path.load()
quick = microseconds(lambda: fast_path.queue["dense"]((a, sfa), (b, sfb), d))
words = f"the checks {whole:.0f} us, the fast path {quick:.1f} us"
print(f"on this machine, now: {words}: {whole / quick:.0f} times as fast")


# %% [markdown]
# It answers with `False` here: it has found nothing wrong, and no plan.
#
# **The plan.** The first call of a weight with some m goes the long way, finds its configuration and its
# kernel, and leaves them for every m that gets the same. Later calls fill in one struct and launch. This is
# all of it:

# %%
workbench.code(queue_cpp, "const auto weight =", "^}$")

# %%
workbench.code(queue_cpp, "const Found found = unseen", "if \\(error\\)")

# %% [markdown]
# What it comes to on a host with a GPU, beside PyTorch's own functions, and what the first call of a kernel
# costs, which has to be compiled or loaded before:

# %%
recorded = draw.recorded(measured.DATA)
times = recorded.get("host")
if times:
    kernel = drawing_production.recorded("s9_production")[64, 7168, 2048]
    mine = next(row["us"] for row in times["rows"] if row["impl"] == "fp8_gemm_nt")
    print(f"the kernel itself, 64 x 7168 x 2048: {kernel:.1f} us, the host's part of a call: {mine:.1f} us")
else:
    print("Not measured yet. On a machine with a Hopper GPU: python -m gemm_ladder host")
drawing_results.page(host.picture(times)) if times else None

# %% [markdown]
# A host that is faster than the GPU costs no time: it queues call after call, and the GPU is never without
# work. With this product the two are about equal: with a smaller product, or a slower host, the GPU waits.
# Then a CUDA graph helps: it records the calls once, and replays them without the host's part.
#
# ## In other people's code (optional)
#
# The functions have the names and arguments of both generations of DeepGEMM's interface, so its users change
# one line. This is such code:

# %%
CODE = """
import torch
import deep_gemm

def linear(x, weight):
    m, n = x.shape[0], weight[0].shape[0]
    a, sfa = deep_gemm.utils.per_token_cast_to_fp8(x, use_ue8m0=False)
    out = torch.empty(m, n, dtype=torch.bfloat16, device=x.device)
    deep_gemm.fp8_gemm_nt((a, deep_gemm.get_mn_major_tma_aligned_tensor(sfa)), weight, out)
    return out
"""
names = {}
exec(CODE.replace("import deep_gemm", "import gemm_ladder as deep_gemm"), names)

x = torch.randn(64, 512, device=workbench.DEVICE)
w = torch.randn(256, 512, device=workbench.DEVICE)
y = names["linear"](x, gl.utils.per_block_cast_to_fp8(w, use_ue8m0=False))
print("relative difference to x @ w.T, in float32:", ((y.float() - x @ w.T).norm() / (x @ w.T).norm()).item())

# %% [markdown]
# That difference is the price of casting to [FP8](glossary.md#fp8), not the kernel's error: [lesson
# 01](01_fp8_numbers.ipynb) has it without any kernel. On a CPU the functions compute the reference, so that
# callers can be tested without a GPU; `gl.rungs["s9_production"]` is the kernel on the emulator.
#
# What cannot be used is refused before the output is touched, in one sentence:

# %%
short = (a[:, :200].contiguous(), sfa[:, :2]), (b[:, :200].contiguous(), sfb[:, :2].contiguous())
for words, call in {
    "k = 200": lambda: api.fp8_gemm_nt(*short, d),
    "D in FP16": lambda: api.fp8_gemm_nt((a, sfa), (b, sfb), d.half()),
    "D is a slice": lambda: api.fp8_gemm_nt((a, sfa), (b, sfb), torch.cat([d, d], 1)[:, :256]),
    "an old name": lambda: api.gemm_fp8_fp8_bf16_nt((a, sfa, a), (b, sfb), d),
}.items():
    try:
        call()
    except gl.GemmLadderError as error:
        print(f"{words:14}{error}")
    else:
        print(f"{words:14}can be used: the columns of a larger matrix")

# %% [markdown]
# One thing is not checked: what `m_indices` and `masked_m` hold, because to read them the host would have to
# wait for the GPU. The kernels stay inside their tensors with any numbers there, and `GEMM_LADDER_CHECK=1`
# turns that check on.
#
# ## How fast it is
#
# The first picture has shown 64 x 2112 x 7168: four times as fast as s7. Now take the same 64 rows and a
# larger weight, 7168 x 16384, of which s7 makes 38 tiles. How many times as fast as s7 is this rung there?
# And how many microseconds does it take for 4096 x 7168 x 2048?

# %% tags=["guess"]
exercises.guess("11.us", None)
exercises.guess("11.faster", None)

# %% [markdown]
# The prediction for this rung is the library's own: the estimate, and the estimate times the learned factor.

# %%
expected = {}
for m, n, k in evidence.SIZES:
    mine = launching.configuration("dense", m, n, k, 1, None, SMS, GPU)
    one = expected[m, n, k] = prediction.predict(mine, m, num_sms=SMS, gpu=GPU)
    words = f"estimate {one.estimate_us:6.1f} us, with the factor {one.us:6.1f} us"
    print(f"{drawing_results.name((m, n, k)):>20}: {words}")

# %%
size = (4096, 7168, 16384)
impls = ["s7_persistent", "s8_ffma_interleave", "s9_production"]
impls += ["cublaslt_blockwise", "cublaslt_tensorwise"]
notes = drawing_production.bars(impls, size, "s9_production")
print(*notes, sep="\n")
below, mine = (drawing_production.recorded(rung) for rung in ("s7_persistent", "s9_production"))
for shape in mine:
    print(f"{' x '.join(map(str, shape)):>20}: {below[shape] / mine[shape]:.2f} times as fast as s7")
exercises.found(
    "11.faster", below[64, 7168, 16384] / mine[64, 7168, 16384], "times as fast at 64 x 7168 x 16384"
)

# %%
cells = [["m x n x k", "estimate / measured", "with the learned factor / measured"]]
for shape, one in expected.items():
    ratios = one.estimate_us / mine[shape], one.us / mine[shape]
    cells.append([drawing_results.name(shape), *(f"{ratio:.2f}" for ratio in ratios)])
print(tables.plain(cells))
exercises.found("11.us", mine[evidence.GUESSED], "us at 4096 x 7168 x 2048")
evidence.thread("s9_production")

# %% [markdown]
# Where the tile of s7 was right for the shape, there was little to gain. The rest is the choice. Its card:
# the instructions are those of a kernel for k = 16384, the percentages those of k = 2048.

# %%
workbench.card("s9_production")

# %% [markdown]
# ## What limits it now
#
# Three kinds of shapes have three limits. Compare the measured time with the model's floor: what memory needs
# to move every byte once, or the tensor cores to multiply, at 1.65 GHz. ([Lesson
# 13](13_reading_the_results.ipynb) compares with the speed that a library has reached, which is lower, and
# comes to higher percentages.)

# %%
for (m, n, k), us in sorted(drawing_production.recorded("s9_production").items()):
    floors = model.floor(m, n, k)
    limit = max(floors, key=floors.get)
    print(f"{m:4} x {n:5} x {k:5}: {us:7.1f} us, {floors[limit] / us:4.0%} of it the floor of the {limit}")

# %% [markdown]
# - Many rows and a long k: the tensor cores. What is left is the promotion, whose [FFMAs](glossary.md#ffma)
#   have to be issued beside the [WGMMAs](glossary.md#wgmma) (NOTES.md, *Where the time is*), and what power
#   does to the clock (lesson 13).
# - Few rows: memory, and the time until the first bytes arrive and after the last ones, which is a larger
#   part the smaller the product is.
# - In between, and where k is short: waves that are not full, and outputs that have to be stored while
#   nothing is left to multiply.
#
# ## Break it
#
# Predict, then run. The first three are in `reduce`, with K in four parts. The operands are chosen so that
# the order of addition shows: the parts of every sum are $2^{24}$, 1, $-2^{24}$ and 1.

# %%
parts = workbench_production.parts_in_order()
right = workbench_production.multiply(split, parts, "cpu")
print("every element is", *np.unique(right.astype(np.float32)))

# %% [markdown]
# **1.** Each block begins the addition with its own part, not with that of rank 0: its own is there first.

# %% tags=["guess"]
exercises.guess_break("11.break1", line=None, then=None)

# %% tags=["break"]
workbench_production.break_it(
    split,
    parts,
    ("partial(0)", "partial(i % kSplits)"),
    ("partial(from)", "partial((i + from) % kSplits)"),
    right=right,
    guess="11.break1",
)

# %% [markdown]
# <details><summary>Why</summary>
#
# It is wrong in the pieces of the ranks whose order comes out differently, and in the same way under every
# schedule: not a race, only another sum. Columns of one tile then depend on which block happens to add them.
# With random operands you would hardly ever see it in BF16. With two parts nothing would differ, because a +
# b is b + a.
#
# </details>
#
# **2.** `reduce` does not wait for the other blocks' parts before it adds them up.

# %% tags=["guess"]
exercises.guess_break("11.break2", line=None, then=None)

# %% tags=["break"]
text = workbench_production.source("gemm.cuh")
until_met = text[text.index("static __device__ void reduce(") :].partition("meet();")[0]
workbench_production.break_it(
    split, parts, (until_met + "meet();", until_met), right=right, guess="11.break2"
)

# %% [markdown]
# <details><summary>Why</summary>
#
# A block adds up what is there, and other blocks' parts arrive while it does. The emulator names a part that
# is written where another block has read already, with nothing that orders the two. On a GPU the sum would
# have whatever was in its place before, for example the parts of the call before: they may be the very
# numbers that you expect.
#
# </details>
#
# **3.** The first meeting is left out: a block sends its parts as soon as it has them.

# %% tags=["guess"]
exercises.guess_break("11.break3", line=None, then=None)

# %% tags=["break"]
begun = workbench_production.last_line("if constexpr (G::kSplits > 1) ptx::barrier_cluster_arrive_relaxed();")
asks = workbench_production.last_line("ptx::barrier_cluster_wait();  // all CTAs run")
loader_asks = "            __syncwarp();\n            ptx::barrier_cluster_wait();\n"
workbench_production.break_it(
    split, parts, (begun, ""), (asks, ""), (loader_asks, ""), right=right, guess="11.break3"
)

# %% [markdown]
# <details><summary>Why</summary>
#
# A block that has not begun has no shared memory yet: what is sent there lands in another block's, or
# nowhere. On a GPU all four begin at about the same time, so it nearly always goes well. The emulator asks
# whether the blocks have met at all.
#
# </details>
#
# **4.** A pair shares A, and the empty barriers count the arrivals of one block only.

# %% tags=["guess"]
exercises.guess_break("11.break4", line=None, then=None)

# %% tags=["break"]
problem = workbench.problem(m=200, n=328, k=384)
sharers = workbench_production.last_line("constexpr int kSharers")
print(sharers.strip())
workbench_production.break_it(
    pair_a, problem, (sharers, "constexpr int kSharers = 1;"), seeds=4, guess="11.break4"
)

# %% [markdown]
# <details><summary>Why</summary>
#
# Half of A's tile comes from the neighbour, so a stage is free when the consumers of *both* blocks have read
# it. With half of the count the neighbour's consumers alone can end the phase. Then the loader has the next
# tiles loaded while the last ones are still on their way, or being read, in one block or the other. The
# emulator names what it meets first. A GPU would let the next load overwrite a tile that a neighbour still
# reads.
#
# </details>
#
# **5.** (Needs section 5, which may be skipped.) A thread takes one scale of B for all of its columns, in
# tiles of 96.

# %% tags=["guess"]
exercises.guess_break("11.break5", line=None, then=None)

# %% tags=["break"]
SEGMENT = "kSegment = gcd(gcd(kC.tile_n, kScaleN), kConsumerN)"
workbench_production.break_it(pair_a, problem, (SEGMENT, "kSegment = kConsumerN"), seeds=4, guess="11.break5")

# %% [markdown]
# <details><summary>Why</summary>
#
# The first tile, columns 0 to 95, lies in one block of scales and is right. The second begins at column 96,
# and from column 128 on it needs another scale than the one that it begins with. Where tiles begin at
# multiples of 128 and are no wider, nothing would be wrong: a test with tiles of 128 alone does not see it.
#
# </details>
#
# **6.** (Needs section 6, which may be skipped.) The kernel does not wait for the one ahead of it.

# %% tags=["guess"]
exercises.guess_break("11.break6", line=None, then=None)

# %% tags=["break"]
waits = workbench_production.last_line("ptx::griddepcontrol_wait();")
printed.show(waits.strip())
workbench_production.break_it(pair_a, problem, (waits, ""), seeds=4, guess="11.break6")

# %% [markdown]
# <details><summary>Why</summary>
#
# D would be right here: the emulator runs one kernel after the other, so the operands are there. On a GPU
# they nearly always are, too. The kernel ahead has to be late, and to write an operand, before a stale one is
# read. So the emulator does not look at the result but at the order, and names the first load: a thread of a
# kernel that may begin early must have waited before it has anything loaded or stored.
#
# </details>
#
# ## Exercises
#
# **1.** How many waves does a product have, and which part of the SMs has work in the last one? Return both
# for tiles that share nothing.


# %% tags=["exercise"]
def waves(m, n, tile_m, tile_n, sms):
    tiles = m * n / (tile_m * tile_n)
    return tiles / sms, 1.0


# %% tags=["check"]
exercises.check("11.1", waves)

# %% [markdown]
# **2.** Units of work go `group` down, then one to the right; at the bottom there may be fewer left. Which
# (row, column), counted in units, is unit number `unit` of a product with `units_m` x `units_n` of them?


# %% tags=["exercise"]
def place(unit, units_m, units_n, group):
    return unit // units_n, unit % units_n


# %% tags=["check"]
exercises.check("11.2", place)

# %% [markdown]
# **3.** How many stages are there at k = 7168? A block has 232448 bytes. The buffer for results has the
# tile in BF16. B's scales have two buffers, and each has 256 bytes for each of the tile's `scales_b`. A stage
# has A's and B's tile for 128 of k, A's scales and 32 bytes for barriers, all rounded up to 1024. There are
# never more than 16 stages, and in a tile of 64 rows never more than 176 KB of them.


# %% tags=["exercise"]
def stages(tile_m, tile_n, scales_b):
    return 232448 // ((tile_m + tile_n) * 128)


# %% tags=["check"]
exercises.check("11.3", stages)

# %% [markdown]
# **4.** The addition in `reduce` is missing. (From memory.) `sum` has to become the sum of all blocks'
# partial sums of piece `i`, from rank 0 on. `partial(from)` is block `from`'s.

# %% tags=["exercise"]
addition = """
            float4 sum = partial(0);
"""

# %% tags=["check"]
exercises.check("11.4", addition)

# %% [markdown]
# Next: [products for mixtures of experts](12_grouped_gemms.ipynb), or [how to read what was
# measured](13_reading_the_results.ipynb).
