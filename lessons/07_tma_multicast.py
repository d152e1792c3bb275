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
# # Rung s5: two blocks share one operand's loads
#
# [s5_tma_multicast.cu](../kernels/stages/s5_tma_multicast.cu) changes some twenty lines of
# [rung](glossary.md#rung) s4. Two [thread blocks](glossary.md#thread-block) that need the same
# [tile](glossary.md#tile) of B load half of it each, and the [copy engine](glossary.md#copy-engine) writes
# each half to both. This lesson is about what makes that possible, **[clusters](glossary.md#cluster)** and
# **[multicast](glossary.md#multicast)**, which later rungs keep. It is also about an expectation, and how to
# measure whether it comes true.
#
# > **Needs:** lesson [06](06_tma.ipynb). **Time:** 40 minutes to read, 55 for guesses and exercises; its
# > cells run in a minute, less when its kernels have been compiled. **May be skipped:** *A fence that is not
# > in the source* (10 minutes more).

# %%
from gemm_ladder.figures import lessons

lessons.enter()  # makes this folder the working directory, wherever Jupyter was started

import textwrap

import gemm_ladder as gl
import numpy as np
from gemm_ladder.figures import measured
from gemm_ladder.ref import gemm, metrics
from workshop import (
    constants,
    drawing,
    drawing_cluster,
    drawing_tma,
    evidence,
    exercises,
    model,
    printed,
    workbench,
    workbench_tma,
)

drawing.style()
rung = gl.rungs["s5_tma_multicast"]

# %%
drawing.where("cluster", "L2", "TMA", "mbarriers")

# %% [markdown]
# ## What limited the rung below
#
# [Rung s4](06_tma.ipynb) left two suspects. One is in its timeline: the [warps](glossary.md#warp) that start
# the products also order loads and [promote](glossary.md#promotion). The other is the traffic from
# [L2](glossary.md#l2). Its card, once more; its timeline on a GPU is at the end of lesson 06.

# %%
workbench.card("s4_tma", again=True)

# %% [markdown]
# How much traffic is it? Count what one tile asks for, each [block of k](glossary.md#k-block):

# %%
TILE_M, TILE_N, TILE_K = 64, 128, 128  # of s4 and s5 alike
tile = {"A": TILE_M * TILE_K, "B": TILE_N * TILE_K}
for operand, count in tile.items():
    print(f"{operand}: {count:6,} bytes, {count / sum(tile.values()):.0%}")
operations = 2 * TILE_M * TILE_N * TILE_K
print(f"{operations / sum(tile.values()):.1f} operations for each byte asked of L2,")
print(f"{operations / (tile['A'] + tile['B'] / 2):.1f} if two blocks shared B")

# %% [markdown]
# A larger tile would do the same, but its [accumulators](glossary.md#accumulator) need
# [registers](glossary.md#register) that one [warpgroup](glossary.md#warpgroup) does not have. Two blocks have
# twice as many.
#
# ## The idea
#
# Hopper can start blocks in **clusters**: the blocks of a cluster run at the same time, in one part of the
# chip, and reach each other's [shared memory](glossary.md#shared-memory). And the copy engine can
# **multicast**: read a [box](glossary.md#box) once, and write it to several blocks of the cluster. Here two
# blocks compute tiles that lie below each other. Their tile of B is the same.

# %%
problem = workbench.problem(2 * TILE_M, TILE_N, 8 * TILE_K)
with gl.emulator(seed=17, record=True) as run:
    workbench.multiply(rung, problem, "cpu")
drawing_cluster.multicast(run.events, ("A", "B: rows 0-63", "B: rows 64-127", "scales"))

# %% [markdown]
# Everything in the picture is read from a run of the [emulator](glossary.md#emulator): what each block
# ordered, where it landed, and who arrived where. Blue is what block 0 does, orange what block 1 does. Two
# things are new for each block:
#
# - It expects all of B's bytes, and orders half of them. Its neighbour orders the other half.
# - What it orders is also written into its neighbour's [stage](glossary.md#stage). So it may order only when
#   *both* stages are free: every warp arrives at both blocks' `empty`, and each `empty` counts the warps of
#   both.
#
# ## The change to the file
#
# Lines with `-` are rung s4's, lines with `+` are new.

# %%
workbench.diff("s4_tma", "s5_tma_multicast")

# %% [markdown]
# `#pragma unroll 4` has the compiler write out four turns of the loop in a row, so that the
# [ring](glossary.md#ring)'s four stages become constants. The new words, one at a time:
#
# ## 1. The neighbour's shared memory
#
# **`cluster_ctarank`** says which block of its cluster a block is (the hardware's name for a block is CTA).
# **`mapa`** takes an address of shared memory, and gives the address of the same place in another block. Such
# an address is good for few things; arriving at an [mbarrier](glossary.md#mbarrier) is one,
# **`mbarrier_arrive_cluster`**.
#
# **`barrier_cluster_arrive`** and **`barrier_cluster_wait`** are a `__syncthreads` for the whole cluster, in
# two halves. A warp executes each of them as one, so a `__syncwarp` brings its [lanes](glossary.md#lane)
# together where one of them comes from a branch of its own; a `__syncthreads` is not needed besides, because
# the cluster's barrier waits for all threads of both blocks. Here each block initialises a barrier, arrives
# at its neighbour's, and waits for its own:

# %%
MEET = """
    ptx::barrier_cluster_arrive();
    ptx::barrier_cluster_wait();
"""
NEXT_DOOR = """
__global__ void next_door(const __grid_constant__ TensorMap map, int x, int y, uint32_t* out) {
    const uint32_t barrier = ptx::shared_memory(), rank = ptx::cluster_ctarank();
    const uint32_t there = ptx::mapa(barrier, rank ^ 1);
    if (threadIdx.x == 0) {
        ptx::mbarrier_init(barrier, 1);
        ptx::fence_mbarrier_init();
    }
    __syncwarp();
""" + MEET + """
    if (threadIdx.x == 0) ptx::mbarrier_arrive_cluster(there);
    ptx::mbarrier_wait_parity(barrier, 0);
    out[2 * rank] = barrier;
    out[2 * rank + 1] = there;
}
"""  # fmt: skip
tensor = drawing_tma.numbered(rows=16, columns=128)
out = np.zeros((2, 2), np.uint32)
run = workbench_tma.try_box(NEXT_DOOR, out, tensor, (8, 128), cluster=2, seed=2)
workbench_tma.tell(run, {0: "barrier"})
for rank, (here, there) in enumerate(out):
    print(f"block {rank}: its barrier is at 0x{here:x}, its neighbour's at 0x{there:x}")

# %% [markdown]
# They meet because a block may otherwise arrive at a barrier that its neighbour has not initialised yet:

# %%
for seed in range(4):
    try:
        workbench_tma.try_box(
            NEXT_DOOR.replace(MEET, ""), out, tensor, (8, 128), cluster=2, seed=seed, device="cpu"
        )
        print(f"schedule {seed}: went well")
    except gl.EmulatorError as error:
        printed.show(f"schedule {seed}: {error}")

# %% [markdown]
# And they have to meet again at the end, if something is still on its way to the neighbour that the neighbour
# does not wait for: a block that has ended has no shared memory any more. Here each block waits for the only
# arrival that it gets. No thread waits for the kernel's last arrivals, and so it has a second meeting.
#
# ## 2. One load, two blocks
#
# **`cp_async_bulk_tensor_2d_multicast`** has one operand more than the load that you know: a mask, with a
# bit for each block of the cluster. The bytes land at the *same place* in each of these blocks, and count
# on the barrier at the *same place* in each. Block 0 orders; the mask says for whom:

# %%
SHARE = """
__global__ void share(const __grid_constant__ TensorMap map, int mask, int y, uint32_t* out) {
    const uint32_t box = ptx::shared_memory(), full = box + 8 * 128, rank = ptx::cluster_ctarank();
    if (threadIdx.x == 0) {
        ptx::mbarrier_init(full, 1);
        ptx::fence_mbarrier_init();
    }
    __syncwarp();
""" + MEET + """
    const bool mine = mask >> rank & 1;
    if (threadIdx.x == 0 && mine) ptx::mbarrier_arrive_expect_tx(full, 8 * 128);
    if (threadIdx.x == 0 && rank == 0) ptx::cp_async_bulk_tensor_2d_multicast(box, &map, full, 0, y, mask);
    if (mine) {
        ptx::mbarrier_wait_parity(full, 0);
        for (int i = threadIdx.x; i < 256; i += 32)
            out[256 * rank + i] = ptx::ld_shared<uint32_t>(box + 4 * i);
    }
}
"""  # fmt: skip
for mask in (0b11, 0b10):
    got = np.zeros((2, 8, 128), np.uint8)
    run = workbench_tma.try_box(
        SHARE, got.view(np.uint32), tensor, (8, 128), (mask, 0), "kNone", cluster=2, seed=2
    )
    has = [f"block {block}" for block in (0, 1) if np.array_equal(got[block], tensor[:8])]
    print(f"mask {mask:02b}, the box is in {' and '.join(has)}:")
    workbench_tma.tell(run, {0: "box", 1024: "full"})

# %% [markdown]
# The engine is asked once. Each block that gets the box has announced its bytes on its own barrier: no other
# block does that for it. With mask 10, block 0 orders something that it does not get.
#
# ## The kernel
#
# What fills a stage:

# %%
workbench.code(rung.source, "const auto load = ", "^    };")

# %% [markdown]
# Block `rank` loads rows `64 * rank` to `64 * rank + 63` of the tile of B, to the place where these rows
# belong, in both blocks: `next.stage + kB + rank * 8192` is a multiple of 1024, so each half is
# [swizzled](glossary.md#swizzle) as if it were part of the whole, and the
# [descriptors](glossary.md#descriptor) need not know.
#
# `full` expects what lands in *this* block, whichever block ordered it. The neighbour's half may even land
# before this block has announced anything. That does no harm: the [phase](glossary.md#phase) also needs this
# block's arrival, which comes with the announcement.
#
# What releases it:

# %%
workbench.code(rung.source, "ptx::wgmma_wait_group<0>\\(\\);", "mbarrier_arrive_cluster")

# %% [markdown]
# Lane 0 arrives at block 0's barrier, lane 1 at block 1's; for one of them `mapa` gives an address in its own
# block. `empty` expects 8 arrivals, 4 warps of 2 blocks.
#
# Run it, check it:

# %%
problem = workbench.problem(m=150, n=136, k=768)  # three tiles of m: the fourth block has nothing but zeros
d = workbench.multiply(rung, problem)
exact = gemm.dense(*problem.arrays)
print("relative error:                 ", metrics.relative_error(d, exact))
print("of the definition, as BF16:     ", metrics.relative_error(gemm.to_bf16(exact), exact))
print("largest relative error of a row:", metrics.max_row_error(d, exact))
print(
    "the expected bits:              ",
    workbench.difference(d, workbench.expected(rung.name, problem)) is None,
)

# %% [markdown]
# An odd number of tiles is rounded up, because a cluster always has two blocks. The last block loads zeros,
# multiplies them, and writes nothing; it must not end early, because its neighbour needs its half of B.
#
# ## Bytes through L2
#
# Does it do what it is meant to? Two tiles, one below the other, computed by each rung and recorded:

# %%
problem = workbench.problem(2 * TILE_M, TILE_N, 8 * TILE_K)
runs = {}
for name in ("s4_tma", rung.name):
    with gl.emulator(seed=17, record=True) as run:
        workbench.multiply(gl.rungs[name], problem, "cpu")
    runs[name] = run.events
drawing_cluster.traffic_bars(runs)
asked = {name: sum(drawing_cluster.traffic(events)["asked"].values()) for name, events in runs.items()}
print(f"s5 asks for {asked[rung.name] / asked['s4_tma']:.0%} of what s4 asks for")

# %% [markdown]
# The same bytes land; fewer are asked for. B has gone through L2 once instead of twice.
#
# ## How fast it is
#
# The model needs no new term. In s4 its longest was L2; here a block asks L2 for half of B's tile, and the
# neighbour for the other half. How many microseconds will it take for 4096 x 7168 x 2048, and by how many per
# cent is it faster than s4_tma there? Slower is a number below 0.

# %%
constants.show("s5_tma_multicast")

# %% tags=["guess"]
exercises.guess("07.us", None)
exercises.guess("07.faster", None)

# %%
model.code(model.s5)

# %%
size = (4096, 7168, 16384)
evidence.predict("s5_tma_multicast", size)

# %% [markdown]
# Two thirds of what the model said for s4.

# %%
notes = drawing.bars(
    ["s1_naive", "s3_wgmma", "s4_tma", "s5_tma_multicast", "cublaslt_blockwise", "cublaslt_tensorwise"],
    size,
    marked="s5_tma_multicast",
)
series = {one.impl: one.tflops for one in measured.series(measured.recorded(), "dirty")}
s4, s5 = series["s4_tma"], series["s5_tma_multicast"]
ratio = s5[evidence.GUESSED] / s4[evidence.GUESSED]
exercises.found("07.faster", 100 * (ratio - 1), "per cent faster than s4_tma at 4096 x 7168 x 2048")
print(*notes, sep="\n")

# %% [markdown]
# A third of the traffic is gone, and the prediction has failed: it is a third below that for s4, and at the
# sizes of the bars the time is hardly below s4's:

# %%
evidence.compare("s5_tma_multicast", "07.us")

# %% [markdown]
# The prediction is too fast by a seventh at the longest k, by two fifths at k = 2048, and at k = 512 by a
# factor of more than three. So L2 was not what limited s4, although the model with L2 in it was not far off
# for s4. That happens when two terms are wrong in opposite directions, one too long and one too short. An
# experiment that changes only one of them, as this rung does, tells them apart. Which they are, and how much
# each is worth, comes at the end of the lesson. What about the other shapes? Where there are many tiles,
# count also how much longer *one* takes. An [SM](glossary.md#sm) makes two at a time:

# %%
sms = measured.load(measured.DATA / "ladder.json")["meta"]["num_sms"]
ratios = sorted((s5[one] / s4[one], one) for one in s5)
print(f"faster than s4_tma at {sum(ratio > 1 for ratio, _ in ratios)} of {len(ratios)} shapes")
for ratio, shape in (ratios[0], ratios[-1]):
    print(f"{ratio - 1:+.1%} at {' x '.join(map(str, shape))}")
for words, some in (
    ("k up to 2048", [ratio for ratio, shape in ratios if shape[2] <= 2048]),
    ("longer k", [ratio for ratio, shape in ratios if shape[2] > 2048]),
):
    print(f"{np.exp(np.mean(np.log(some))) - 1:+.1%} for {words}, geometric mean of {len(some)} shapes")


def lost_a_tile(m, n, k):
    """Microseconds that a tile takes longer than in s4; None where each SM makes only a few."""
    rounds = -(-m // TILE_M) * -(-n // TILE_N) / (2 * sms)
    if rounds > 4:
        return 2 * m * n * k / 1e6 * (1 / s5[m, n, k] - 1 / s4[m, n, k]) / rounds
    return None


lost = {shape: lost_a_tile(*shape) for shape in s5}
drawing_cluster.against(
    "s5_tma_multicast", "s4_tma", {shape: us for shape, us in lost.items() if us is not None}
)

# %% [markdown]
# Say plainly what you see, also where it is not what you hoped for; our words come after that. This is how to
# read it:
#
# - **Long sums**, at the right of the first picture, are where the traffic of the loop counts most. The
#   farther the dots stay below one and a half, the less was the traffic s4's limit, and the more the other
#   suspect.
# - **Short sums**, at the left, are where a tile's fixed costs dominate, those at its beginning and its end.
#   If each block of k took longer, dots of the second picture would rise with k: from left to right a tile
#   has 32 times as many blocks. If they stay level, what is lost is lost once a tile. If they fall, each
#   block of k takes less, and what a tile loses at its ends is won back where k is long.
# - Where m = 64, half of each cluster multiplies zeros as well.
#
# <details><summary>What we see</summary>
#
# A tile takes 1.3 us longer than in s4 at k = 512, 1.0 us at 1536 and 2048, 0.5 us at 4096, about as long at
# 7168 (from 0.3 us more to 0.1 us less), 0.8 us less at 8192 and 1.4 us less at 16384. So there are two
# things: a fixed loss of more than a microsecond for each tile, and a gain of about 0.02 us for each K block,
# which makes up for the loss at some 60 K blocks. Neither is large. The traffic was not what limited s4.
#
# </details>
#
# ## A fence that is not in the source (optional)
#
# What does s5 pay once a tile, and s4 does not? Both meetings of the cluster. Here is what the compiler made
# of the kernel. Of its machine code only these instructions are shown, in their order; it is
# [recorded](../kernels/measure/fences.py), because your machine may not have the compiler.

# %%
fences = measured.load(measured.DATA / "fences.json", meta=())
WORDS = {
    "QGMMA": "WGMMA",
    "SYNCS": "mbarrier.arrive",  # at a neighbour's barrier, or at its own by the same way
    "STG": "store",
    "MEMBAR": "FENCE",
    "UCGABAR_ARV": "cluster.arrive",
    "UCGABAR_WAIT": "cluster.wait",
}
variants = fences["code"]["variants"]
for variant, instructions in variants.items():
    words = [(WORDS[opcode.partition(".")[0]], count) for opcode, count in instructions]
    line = ", ".join(f"{count} x {word}" if count > 1 else word for word, count in words)
    print(f"{variant}:\n{textwrap.fill(line, 105, initial_indent='    ', subsequent_indent='    ')}\n")
print(f"nvcc {fences['code']['nvcc']}, kernel sources {fences['code']['sources'][:12]}")

# %% [markdown]
# The loop over k is there five times: four turns at a time, and once for the turns that remain. What the
# listings call a fence is `MEMBAR.ALL.GPU`, a **memory barrier**: it holds a warp until all that it has
# written can be seen, here by the whole GPU. It is not in the kernel's source. It is part of
# `barrier.cluster.arrive.release`: a thread that has waited at the cluster's barrier may rely on seeing what
# was written before. At the first meeting nothing has been written to [global
# memory](glossary.md#global-memory) yet, and there is little to wait for.
#
# The second listing is a variant, the way in which one would write it first: the last meeting as the last
# thing, behind the stores of D. Then every warp waits until its part of the result could be seen by all SMs,
# and its block keeps its place on the SM meanwhile, although no block of the cluster reads D. So the kernel
# arrives before the stores: a block that has released its last stage has nothing more to send to its
# neighbour, and may say so at once, store D, and only then wait.
#
# May it say so even earlier, before its loop over k? **Predict** what happens.

# %% tags=["guess"]
exercises.guess_break("07.early", line=None, then=None)

# %% tags=["break"]
ARRIVE = "    ptx::barrier_cluster_arrive();"
workbench.break_it(
    rung.name,
    workbench.problem(m=150, n=136, k=768),
    (f"{ARRIVE}  // before the stores: its release would wait for them to reach memory\n", ""),
    ("#pragma unroll 4", f"    __syncwarp();\n{ARRIVE}\n#pragma unroll 4"),
    seeds=16,
    guess="07.early",
)

# %% [markdown]
# <details><summary>Why?</summary>
#
# A block has arrived before it has multiplied, so its neighbour, if it is ahead, does not wait at the end,
# and exits. Then halves of B, and arrivals, are sent to a block that is no longer there.
#
# </details>
#
# The third listing goes the opposite way. [PTX](glossary.md#ptx) can give *each* arrival the strength of the
# meeting: `mbarrier.arrive.release.cluster`. That sounds like the careful choice, and it puts a fence into
# every turn of the loop, between the product and its promotion. The kernel's arrivals have none. They need
# none: the warps have only read the stage, so there is nothing to be made visible.
#
# How long the three take on a GPU, in microseconds:

# %%
timed = measured.series(fences, "dirty") if fences["rows"] else []
for shape in measured.sizes_of(timed):
    print(" x ".join(map(str, shape)))
    for one in timed:
        print(f"    {2 * np.prod(shape) / one.tflops[shape] / 1e6:8.1f}  {one.impl}")
for line in measured.provenance(timed):
    printed.show(line.partition(": ")[2])
if not timed:
    print("Not measured yet. On a machine with a Hopper GPU: python -m gemm_ladder fences")

# %% [markdown]
# Keep the method: where a change may cost what it should not, read the machine code. The source does not say
# that there is a memory barrier.
#
# ## What limits it now
#
# The suspect that remains: those who start the products do other work in between. The thread first, then the
# two blocks of one SM on a GPU:

# %%
evidence.thread("s5_tma_multicast")

# %%
drawing_tma.gpu_timeline("s5_tma_multicast")

# %% [markdown]
# Otherwise this is s4's picture: while a product runs, the warp orders loads; after it, the warp promotes.
# (The purple stores are new in it because s5 has something recorded behind them, its last meeting.) Look at
# the two blocks beside each other, and at the model's assumption that they take turns. In s4's recording they
# did. Here many promotions of one coincide with those of the other: where both begin together, they multiply
# at the same time, which takes twice as long, and then promote at the same time, and no [tensor
# core](glossary.md#tensor-core) works. Nothing makes them take turns. Put that in place of the turns:

# %%
model.code(model.in_step)

# %%
evidence.predict("s5_tma_multicast", size, model.in_step(*size))
us = 2 * np.prod(size, dtype=float) / s5[size] / 1e6
print(f"measured {us:16.1f}, the prediction is {model.in_step(*size).us / us:.2f} of it")

# %% [markdown]
# With long sums that is it: of the two terms, this one was too short. The same at the five shapes:

# %%
evidence.compare("s5_tma_multicast", of="in_step")

# %% [markdown]
# With short sums something is left even so. How much is it for each [wave](glossary.md#wave)?

# %%
evidence.a_wave("s5_tma_multicast", [(4096, 7168, 2048), (4096, 32768, 512)], of="in_step")

# %% [markdown]
# Some 3 to 5 us a wave: what a tile does before its first K block and behind its last one. In the recording
# above, the last promotion and the stores take 4 us, as the two blocks of an SM store 32 KB at the same time
# as all others do. That is the third thing which the model lacks; the next lesson puts it in. (With 64 rows
# an SM has one block, which is in step with nobody: there the turns of s5's own prediction are nearer, 0.94.)
#
# And the term that was too long? The same chain is in s4, beside an L2 that can give more than the model
# thinks:

# %%
m, n, k = size
asked = model.tiles(m, n, 64, 128) * (64 + 128) * k
us = 2 * m * n * k / s4[size] / 1e6
print(f"s4_tma had {asked / us / 1e6:.1f} TB/s from L2, by the model {model.L2 / 1e6:g} at most")

# %% [markdown]
# So the model's L2 is too slow by a quarter at least. These were the two wrong terms: L2, too long, and the
# chain, too short. (It is too short for s4 as well, though s4's blocks took turns where they were recorded.
# Why, we have not found out.) The constant stays, as it is production's: there it is for choosing between
# kernels, which needs their right order and not their right times.
#
# The cure is to give the loading to a warp that does nothing else, and to let two warpgroups of one block
# multiply and promote in turns. That is [rung s6](08_warp_specialized.ipynb). It keeps the multicast. And the
# blocks of the rung after it live as long as the kernel, so that the meetings at their beginning and end are
# paid once, not once a tile.
#
# The card:

# %%
workbench.card("s5_tma_multicast")

# %% [markdown]
# ## Break it
#
# Predict, then run. Each cell plants one fault in the kernel and runs it under eight
# [schedules](glossary.md#schedule).

# %%
problem = workbench.problem(m=128, n=128, k=768)

# %% [markdown]
# **1.** The warps release a stage to block 0 only.

# %% tags=["guess"]
exercises.guess_break("07.break1", line=None, then=None)

# %% tags=["break"]
workbench.break_it(
    "s5_tma_multicast",
    problem,
    ("ptx::mapa(ring.stage + kEmpty, ptx::laneid())", "ptx::mapa(ring.stage + kEmpty, 0)"),
    guess="07.break1",
)

# %% [markdown]
# <details><summary>Why</summary>
#
# Two lanes of each warp of each block arrive at the same barrier: 16 arrivals where 8 are a phase. So block 0
# takes a stage for free when half of the warps have released it, and orders the next tile into both blocks.
# Block 1, at whose barrier no warp arrives, waits for ever; which of the two comes first depends on the
# schedule.
#
# </details>
#
# **2.** `empty` counts this block's own warps only.

# %% tags=["guess"]
exercises.guess_break("07.break2", line=None, then=None)

# %% tags=["break"]
workbench.break_it(
    "s5_tma_multicast",
    problem,
    ("kEmpty, kCluster * kThreads / 32);", "kEmpty, kThreads / 32);"),
    guess="07.break2",
)

# %% [markdown]
# <details><summary>Why</summary>
#
# Eight warps still arrive, so a phase is over after any four of them: perhaps the neighbour's, while this
# block's own warps still multiply; or its own, while the neighbour's still read what is about to be
# overwritten.
#
# </details>
#
# **3.** A block expects only the bytes that it has ordered itself.

# %% tags=["guess"]
exercises.guess_break("07.break3", line=None, then=None)

# %% tags=["break"]
workbench.break_it(
    "s5_tma_multicast",
    problem,
    ("kBytesA + kBytesB + kBytesScales);", "kBytesA + kBytesB / kCluster + kBytesScales);"),
    guess="07.break3",
)

# %% [markdown]
# <details><summary>Why</summary>
#
# The neighbour's half counts on this barrier, announced or not. A phase may be over before all bytes have
# come, or the count may step past zero, and then no phase ever ends.
#
# </details>
#
# **4.** Both halves are loaded to the same place.

# %% tags=["guess"]
exercises.guess_break("07.break4", line=None, then=None)

# %% tags=["break"]
workbench.break_it(
    "s5_tma_multicast",
    problem,
    ("next.stage + kB + rank * (kBytesB / kCluster)", "next.stage + kB"),
    guess="07.break4",
)

# %% [markdown]
# <details><summary>Why</summary>
#
# Two loads write the same bytes at the same time, in both blocks, and the other bytes are never written.
#
# </details>
#
# **5.** No cluster barrier at the start; a `__syncthreads`, as in rung s4.

# %% tags=["guess"]
exercises.guess_break("07.break5", line=None, then=None)

# %% tags=["break"]
workbench.break_it(
    "s5_tma_multicast",
    problem,
    ("ptx::barrier_cluster_arrive();", "__syncthreads();"),  # the first of two
    ("ptx::barrier_cluster_wait();", ""),
    seeds=16,
    guess="07.break5",
)

# %% [markdown]
# <details><summary>Why</summary>
#
# A load reaches the neighbour before its barriers are there, or before it has begun at all. On a GPU the
# neighbour is mostly ready in time, so that testing hardly finds this fault. The emulator asks whether the
# blocks have met.
#
# </details>
#
# **6.** The blocks do not wait for each other at the end.

# %% tags=["guess"]
exercises.guess_break("07.break6", line=None, then=None)

# %% tags=["break"]
workbench.break_it(
    "s5_tma_multicast",
    problem,
    ("ptx::barrier_cluster_wait();  // no CTA exits", "// no CTA exits"),
    guess="07.break6",
)

# %% [markdown]
# <details><summary>Why</summary>
#
# The slower block's last arrivals go to a block that may have ended. The faster one's result is written by
# then, so a test that looks at D alone may never notice.
#
# </details>
#
# ## Exercises
#
# **1.** A tile of `tile_m` x `tile_n`, and a cluster of `blocks` blocks that lie below each other and share
# B. How many bytes does one block ask of L2 for 128 of k, A and B together?


# %% tags=["exercise"]
def asked_of_l2(tile_m, tile_n, blocks):
    return 128 * (tile_m + tile_n)


# %% tags=["check"]
exercises.check("07.1", asked_of_l2)

# %% [markdown]
# **2.** Which operand should a cluster of two share, if it may choose? Return "A" (the blocks lie side by
# side), "B" (below each other), or "either": what asks least of L2.


# %% tags=["exercise"]
def share(tile_m, tile_n):
    return "B"


# %% tags=["check"]
exercises.check("07.2", share)

# %% [markdown]
# **3.** Clusters of any size: block `rank` of `blocks` loads its part of B's tile of 128 rows for all of
# them. Return (the first row of B that it loads, counted from the tile's; the offset from `kB` where it
# lands, in bytes; the mask; how many arrivals `empty` counts).


# %% tags=["exercise"]
def part(rank, blocks):
    return 0, 0, 1, 4


# %% tags=["check"]
exercises.check("07.3", part)

# %% [markdown]
# **4.** The multicast is missing from the kernel. From memory, write the line or lines that load B. The check
# tells you what the emulator says.

# %% tags=["exercise"]
load_b = """
        ptx::cp_async_bulk_tensor_2d(next.stage + kB, &map_b, full, block * kTileK, tile_n);
"""

# %% tags=["check"]
exercises.check("07.4", load_b)

# %% [markdown]
# Next: [a warp for the loads, two warpgroups for the rest](08_warp_specialized.ipynb).
