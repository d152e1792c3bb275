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
# # Rung s6: warps with different jobs
#
# Up to [rung](glossary.md#rung) s5 every [warp](glossary.md#warp) does everything: it asks for loads,
# multiplies, [promotes](glossary.md#promotion), stores. In
# [s6_warp_specialized.cu](../kernels/stages/s6_warp_specialized.cu) one warp only loads, and eight only
# multiply and promote. For that, threads get different numbers of [registers](glossary.md#register), and a
# [tile](glossary.md#tile) can be four times as large.
#
# The [mbarriers](glossary.md#mbarrier) are those of [lesson 06](06_tma.ipynb), the
# [cluster](glossary.md#cluster) is that of [lesson 07](07_tma_multicast.ipynb).
#
# > **Needs:** lesson [07](07_tma_multicast.ipynb). **Time:** 30 minutes to read, 50 for guesses and
# > exercises; its cells run in a minute, less when its kernels have been compiled. **May be skipped:**
# > nothing.

# %%
from gemm_ladder.figures import lessons

lessons.enter()  # makes this folder the working directory, wherever Jupyter was started

import gemm_ladder as gl
import numpy as np
from gemm_ladder.figures import measured, timeline
from gemm_ladder.ref import gemm, layouts, metrics
from workshop import bridges, constants, drawing, drawing_warps, evidence, exercises, model, workbench

drawing.style()
rung = gl.rungs["s6_warp_specialized"]

# %%
drawing.where("SM", "registers", "tensor cores", "CUDA cores", "TMA")

# %% [markdown]
# ## What limited the rung below
#
# In s5 a [thread block](glossary.md#thread-block) has one [warpgroup](glossary.md#warpgroup). Orange and
# green alternate: nothing is multiplied while it promotes. In between, its first warp also asks the [copy
# engine](glossary.md#copy-engine) for the next [stage](glossary.md#stage). An [SM](glossary.md#sm) has room
# for a second block, which may multiply while this one promotes, but nothing arranges it.
#
# The cell draws a block of s5, as the [emulator](glossary.md#emulator) ran it, and below it one of the new
# rung. Before you run it: one warpgroup loads in the new rung, and two multiply. What will be different in
# the picture?

# %%
drawing_warps.before_after(
    drawing_warps.on_emulator("s5_tma_multicast"), drawing_warps.on_emulator("s6_warp_specialized")
)

# %% [markdown]
# The orders to the copy engine have a row of their own now, that of the [producer](glossary.md#producer), and
# have left the rows of those who multiply. And there are two rows of orange, each with its own green: one can
# be promoting while the other multiplies. On the emulator this is an order, without durations. On a GPU it
# has durations, too:

# %%
below, mine = drawing_warps.on_gpu("s5_tma_multicast"), drawing_warps.on_gpu("s6_warp_specialized")
if below and mine:
    drawing_warps.before_after(below, mine, until=max(rows[0]["until"] for rows in (below, mine)))
    for rows in (below, mine):
        print(f"{rows[0]['rung']}, k = {rows[0]['k']}:\n    {timeline.share_in_words(rows[0])};")
        print(
            f"    {timeline.beside(rows):.0%} of this block's promotion beside its other warpgroup's WGMMAs"
        )
else:
    print("This rung's timeline has not been recorded on a GPU yet.")

# %% [markdown]
# The tensor-core share ([lesson 06](06_tma.ipynb)) is of all blocks of an SM, so a rung with two and a rung
# with one compare. [WGMMAs](glossary.md#wgmma) may be in flight for less of the time than before, and still
# do more, because none waits behind another block's. Both shares are at k = 1024 and with the recording's own
# time; ncu's, which come further below, are at k = 2048 and higher.
#
# The purple bars at the end are the stores. They have no stamp of their own, being ordinary stores from
# registers: a bar reaches from a [consumer](glossary.md#consumer)'s last wait for a WGMMA to the meeting of
# the cluster, and the last promotion is in it. (s4 has no such meeting, so that its picture ends before the
# stores.) How long is it for s6, and is that typical? The picture is of a block of the first
# [wave](glossary.md#wave), and all SMs store at the same time there. Compare with the launch as a whole:

# %%
for rows, tile in ((below, (64, 128)), (mine, (256, 128))):
    stores = [end - begin for row in rows for what, begin, end in row["spans"] if what == "store"]
    blocks = 2 if rows is below else 1  # of an SM
    waves = model.waves(rows[0]["m"], rows[0]["n"], *tile, blocks * model.SMS)
    last = max(end for row in rows for what, _, end in row["spans"] if what == "multiply")
    print(f"{rows[0]['rung']}: {last:.1f} us until the last WGMMA ends, then {max(stores):.1f} us of stores.")
    whole = rows[0]["us"]  # of a launch that leaves no stamps
    print(f"    The whole launch: {whole:.0f} us, in {waves} waves of {whole / waves:.1f} us each.")

# %% [markdown]
# Over the whole launch a wave of s6 takes two thirds of what the pictured block does. So later tiles are
# stored faster: probably since their blocks neither begin nor end together any more, and are less in each
# other's way. The rung of the next lesson has the copy engine store, beside the next tile's products.
#
# The tile was a limit too. Count the [operations for each byte](glossary.md#arithmetic-intensity) that a
# block asks [L2](glossary.md#l2) for. Of the operand that is shared it asks for half; the neighbour asks for
# the other half, and [multicasts](glossary.md#multicast) it. (s5 shares B. s6 shares A, whose tile is the
# larger one now, with 256 rows against 128: that is exercise 2 of lesson 07.)

# %%
for name, rows, columns, fetched in (("s5", 64, 128, 64 + 128 / 2), ("s6", 256, 128, 256 / 2 + 128)):
    print(
        f"{name}: tile {rows:3} x {columns}, "
        f"{2 * rows * columns / fetched:.0f} operations for each byte asked for"
    )

# %% [markdown]
# A larger tile needs more registers, and section 1 shows why s5 could not have them. Its card:

# %%
workbench.card("s5_tma_multicast", again=True)

# %% [markdown]
# ## The idea
#
# **[Warp specialisation](glossary.md#warp-specialisation)**: a warp gets a job, and keeps it. The
# **producer** walks around the [ring](glossary.md#ring) of stages and fills them. Two warpgroups, the
# **consumers**, walk around the same ring and empty them. They meet at the mbarriers of [rung
# s4](06_tma.ipynb), `full` and `empty`, and nowhere else. Nothing makes the two consumers take turns. But
# each waits for its own products only, so while one promotes, the other can use the [tensor
# cores](glossary.md#tensor-core).
#
# Record a run, and draw who asks for a stage and who reads which rows of it:

# %%
with gl.emulator(seed=20, record=True) as run:
    workbench.multiply(rung, workbench.problem(m=768, n=128, k=512), "cpu")
drawing_warps.roles(run.events)

# %% [markdown]
# A consumer has two slices of 64 rows, one after the other. Both consumers read all of B's tile, which is
# loaded once for 256 rows.
#
# ## The change to the file
#
# Lines with `-` are rung s5's, lines with `+` are new; a line that only moved to the right is not shown as
# changed. Read it after the next two sections.

# %%
workbench.diff("s5_tma_multicast", "s6_warp_specialized")

# %% [markdown]
# `find_tile` is not about warps. It says which tile is a block's: pairs of tiles side by side, which share A,
# in an order that [the next lesson](09_persistent.ipynb) looks at.
#
# ## 1. Who has how many registers: `setmaxnreg`
#
# Count what a consumer's thread must hold: the sums of its part of the tile, and the partial sums of the
# slice that is being multiplied.

# %%
total = 256 * 128 // 256  # of the tile, for each of the consumers' threads
partial = 64 * 128 // 128  # of the slice, for each of the warpgroup's threads
print(f"total: {total} registers, partial: {partial}, together {total + partial}")
registers = 65536  # of an SM: "Technical Specifications per Compute Capability", CUDA C++ Programming Guide
threads = 384  # three warpgroups
at_launch = registers // threads // 8 * 8  # registers are given out in eights
print(f"a block of {threads} threads that has the whole SM: {at_launch} for each thread")

# %% [markdown]
# That is too little, by far: addresses, scales and counters come on top. And a producer needs almost none. A
# kernel is launched with one number for all threads, but **`setmaxnreg`** changes it while it runs. A
# warpgroup executes it as a whole: `setmaxnreg.dec` gives registers back, `setmaxnreg.inc` takes some, and
# waits until there are enough. Here it is alone, on the emulator:

# %%
BUDGET = """
__global__ void __launch_bounds__(384, 1) budget(const void* in, uint32_t* out) {
    if (threadIdx.x < 128) ptx::setmaxnreg_dec<40>();
    else ptx::setmaxnreg_inc<232>();
    out[threadIdx.x] = 1;
}
"""
run = workbench.try_kernel(BUDGET, np.zeros(384, np.uint32), threads=384, seed=1, device="cpu")
drawing_warps.registers(run.events, at_launch)

# %% [markdown]
# No warp can take registers before others have given some back: what the rounding to eights leaves over is
# not enough for one warp. In the end:

# %%
left_over, more = registers - threads * at_launch, 32 * (232 - at_launch)
print(f"left over at the launch: {left_over}; a warp that takes needs {more} more")
print(f"128 x 40 + 256 x 232 = {128 * 40 + 256 * 232} of {registers}")

# %% [markdown]
# The number is a multiple of 8 from 24 to 256, and part of the instruction: the compiler has to know it, and
# `__launch_bounds__(384, 1)` tells it what the launch begins with. All warps of a warpgroup must ask for the
# same. That is why the producer has a warpgroup of its own, of which three warps do nothing.
#
# ## 2. One thread asks
#
# A TMA load is *one* thread's instruction. If 32 threads executed it, there would be 32 copies. The kernel
# takes the simplest way to choose one, `if (threadIdx.x == 0)`. The instruction made for choosing, which you
# will meet in [rung s9](11_production.ipynb) and in other kernels, is **`elect.sync`**. It is true in one
# [lane](glossary.md#lane) of the warp, and you are not told which. The emulator lets the
# [seed](glossary.md#schedule) decide:

# %%
for seed in range(3):
    out = np.zeros(64, np.uint32)
    workbench.try_kernel(
        "__global__ void elected(const void* in, uint32_t* out) { out[threadIdx.x] = ptx::elect_sync(); }",
        out,
        threads=64,
        seed=seed,
    )
    print(f"seed {seed}: threads {np.flatnonzero(out)}")

# %% [markdown]
# ## The kernel
#
# There are two paths through the kernel, which meet again only at its end. First the producer's. It has no
# `if (block + kStages - 1 < blocks)` any more and no [K blocks](glossary.md#k-block) to count ahead: it goes
# on until a stage is not empty, and waits there. At its own `full` it expects all of A's tile, though it asks
# for half: the neighbour multicasts the other half.

# %%
workbench.code(rung.source, "if \\(threadIdx.x < kWarpgroup\\) {", "^    } else {$")

# %% [markdown]
# Then the consumers' path. Each warp reports that it has finished with a stage, at both blocks of the
# cluster, right after the last product that reads it, and before the promotion. (`shfl_sync_idx(x, 0)` gives
# all lanes of a warp lane 0's x. They have the same here anyway; but now the compiler knows it, and computes
# once for the warp what depends on it.)

# %%
workbench.code(rung.source, "^    } else {$", "^    }$")

# %% [markdown]
# Run it, check it:

# %%
problem = workbench.problem(m=600, n=328, k=640)  # ragged: tiles with 88 rows, and with 72 columns
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
# ## How fast it is: first the prediction
#
# What changes in the model: a block has an SM to itself; the tensor cores multiply for two consumers, and
# each consumer is a chain of its own slices. The two are at the same time, so the longer counts. That
# replaces the turns that nobody arranged. And there is a new term, **begin and end**: with no second block
# on the SM, a tile waits for its first stage, about a microsecond, and stores its outputs, with nothing
# beside either. How long a store takes is in the recording of s5: 4 us for the two blocks of an SM, with 16
# KB each. Here a block has 64 KB.
#
# How many microseconds do you expect for 4096 x 7168 x 2048?

# %%
constants.show("s6_warp_specialized")

# %% tags=["guess"]
exercises.guess("08.us", None)

# %%
model.code(model.s6, model._two_consumers)

# %%
size = (4096, 7168, 16384)
evidence.predict(rung.name, size)

# %%
notes = drawing.bars(
    [*list(gl.rungs)[1:7], "cublaslt_blockwise", "cublaslt_tensorwise"], size, marked=rung.name
)
tflops = {
    one.impl: one.tflops[size] for one in measured.series(measured.recorded(), "dirty") if size in one.tflops
}
if rung.name in tflops:
    print(f"{tflops[rung.name] / tflops['s5_tma_multicast']:.2f} times as fast as s5_tma_multicast,")
    print(f"{tflops[rung.name] / tflops['cublaslt_tensorwise']:.0%} of the ceiling")
else:
    print("s6_warp_specialized has not been measured on a GPU yet.")
print(*notes, sep="\n")

# %%
evidence.compare(rung.name, "08.us")
evidence.thread(rung.name)

# %% [markdown]
# Within a tenth at all five. The share is ncu's, at k = 2048, where a tile's begin and end weigh far more
# than at the k = 16384 of the bars: so a rung at 87 % of the [ceiling](glossary.md#ceiling) there can keep
# its tensor cores busy for less than half of the time here. The share at the lesson's beginning was the
# timeline's, at k = 1024.
#
# Does the cluster pay? The rung has been measured without it, too, each block loading all of A itself
# ([bridge_triton_cute](bridge_triton_cute.ipynb), on an H200). At which of the three shapes does the
# cluster win, and by how much?

# %%
for row in (row for row in bridges.load("bridges")["rows"] if row["l2"] == "dirty"):
    if row["impl"] in ("s6_warp_specialized", "without_cluster"):
        words = f"{row['m']} x {row['n']} x {row['k']:5}, {row['impl'].replace('_', ' '):19}"
        print(f"{words} {row['us']:6.1f} us (10 to 90 %: {row['p10']:.1f} to {row['p90']:.1f})")

# %% [markdown]
# Only the longest k gains by the cluster, less than 1 %. At k = 7168 the kernel takes 2 % less time without
# it, and at k = 2048, 8 % less. A cluster's blocks begin together and end together, and in this rung the
# meeting at the end comes *behind* the stores of D: all threads of a block, not only its producer, wait there
# until the neighbour has stored as well. That is the order which [lesson 07](07_tma_multicast.ipynb), in its
# section on a fence, found to be slow for s5. In the next rung it hardly matters, because its blocks end only
# once in a kernel. (Whether the meeting is all of the 8 % was not measured.)
#
# ## What limits it now
#
# A block has all of an SM: of its [shared memory](glossary.md#shared-memory) the ring takes most, of its
# registers the consumers. So there is no second block that could multiply while this one begins or ends.
# Beginning, it waits for its first stage; ending, it stores its tile, and its tensor cores have nothing to
# do. How much is that? Take the model's begin and end of a tile, and for a K block what the tensor cores
# need. Predict: for how many of four of DeepSeek-V3's k, 512, 2048, 7168 and 16384, is it more than a tenth
# of the time?

# %% tags=["guess"]
exercises.guess("08.edges", None)

# %%
matters, edges = 0, model.FILL_US + 256 * 128 * 2 / model.STORE
for k in (512, 2048, 7168, 16384):
    multiply = model.tensor(256, 128) * k / model.BLOCK / model.CLOCK_MHZ
    print(
        f"k = {k:5}: {multiply:5.1f} us of WGMMAs for a tile, "
        f"{edges / (edges + multiply):.1%} of the time without any"
    )
    matters += edges / (edges + multiply) > 0.1
exercises.found("08.edges", matters, "of the four")

# %% [markdown]
# A short k pays a lot. The next rung's blocks stay: while one tile is stored, the next one is loaded.

# %%
workbench.card("s6_warp_specialized")

# %% [markdown]
# ## Break it
#
# Predict, then run. The problem has two tiles below each other, each of which has a neighbour past the end.

# %%
problem = workbench.problem(m=512, n=128, k=768)

# %% [markdown]
# **1.** The consumers ask for 248 registers.

# %% tags=["guess"]
exercises.guess_break("08.break1", line=None, then=None)

# %% tags=["break"]
workbench.break_it(
    "s6_warp_specialized", problem, ("setmaxnreg_inc<232>", "setmaxnreg_inc<248>"), guess="08.break1"
)

# %% [markdown]
# <details><summary>Why</summary>
#
# 128 x 40 + 256 x 248 = 68608, more than there are. The last warps wait for registers that no warp will give
# back. Nothing else is wrong, and a GPU would say nothing: the kernel would never end.
#
# </details>
#
# **2.** The whole producer warp produces, not one thread.

# %% tags=["guess"]
exercises.guess_break("08.break2", line=None, then=None)

# %% tags=["break"]
workbench.break_it(
    "s6_warp_specialized",
    problem,
    (
        "        if (threadIdx.x == 0) {\n            const uint32_t rank",
        "        if (threadIdx.x < 32) {\n            const uint32_t rank",
    ),
    guess="08.break2",
)

# %% [markdown]
# <details><summary>Why</summary>
#
# `full` expects one arrival. The second lane of the warp arrives again; or, before that, it asks for a load
# into a stage in which the first lane's load has not landed yet.
#
# </details>
#
# **3.** `empty` expects the warps of one consumer only.

# %% tags=["guess"]
exercises.guess_break("08.break3", line=None, then=None)

# %% tags=["break"]
workbench.break_it(
    "s6_warp_specialized",
    problem,
    ("kCluster * kConsumers * kWarpgroup / 32", "kCluster * kWarpgroup / 32"),
    guess="08.break3",
)

# %% [markdown]
# <details><summary>Why</summary>
#
# A stage counts as empty when half of the warps have finished with it, for example the neighbour's alone.
# Then the producer announces bytes at `full` again while its own last ones are still on their way, one
# arrival too many, or it fills a stage that others still read. Which comes first depends on the schedule.
#
# </details>
#
# **4.** Both consumers have the first 64 rows of a slice.

# %% tags=["guess"]
exercises.guess_break("08.break4", line=None, then=None)

# %% tags=["break"]
workbench.break_it(
    "s6_warp_specialized",
    problem,
    ("const int row = consumer * kWgmmaM + accumulator_row", "const int row = accumulator_row"),
    guess="08.break4",
)

# %% [markdown]
# <details><summary>Why</summary>
#
# Each multiplies its own rows, but takes the first consumer's scales, and stores where the first one stores.
# So two threads write each of these elements, with different values, and the emulator names the second of
# them. The second consumer's own rows are never written. On a GPU there would be no error: one half of D
# would have the result of whoever stored last, the other what was in memory before.
#
# </details>
#
# ## Exercises
#
# **1.** The register budget. One warpgroup produces, with `producer` registers a thread, and `consumers`
# warpgroups multiply. What is the largest number that they can ask for? A multiple of 8, and 256 at most.


# %% tags=["exercise"]
def largest(consumers, producer):
    return 65536 // (128 * (consumers + 1))


# %% tags=["check"]
exercises.check("08.1", largest)

# %% [markdown]
# **2.** What the producer does with a stage before it asks for its loads is missing. From memory, write the
# two lines: wait until `next.stage` is empty, and announce at `full` how many bytes will come.

# %% tags=["exercise"]
announce = """
"""

# %% tags=["check"]
exercises.check("08.2", announce)

# %% [markdown]
# **3.** Which row of the tile is in register `i` of slice `slice` of thread `thread` of consumer `consumer`?
# `layouts.wgmma_accumulator(128)` gives rows and columns of one WGMMA's
# [accumulators](glossary.md#accumulator), each [thread, register].


# %% tags=["exercise"]
def tile_row(consumer, slice, thread, i):
    rows, _ = layouts.wgmma_accumulator(128)
    return int(rows[thread, i])


# %% tags=["check"]
exercises.check("08.3", tile_row)

# %% [markdown]
# **4.** A whole kernel, the smallest with warps of different jobs: yours of lesson 06, with a third warpgroup
# that loads. No cluster, one slice. Warpgroup 0 produces, 1 and 2 multiply the upper and the lower 64 rows.
# The frame is that lesson's, with PRODUCER = 1. Move registers as in section 1, though this kernel would do
# without: a consumer has half of the totals of s6's, and the 168 registers with which each of 384 threads
# begins are enough. The check does not notice if you leave it out, nor if a consumer gives back what it
# needs: the emulator counts a block's registers, not those that a thread uses. On a GPU the latter is
# undefined.

# %%
exercises.frame("08.4")

# %% tags=["exercise"]
kernel = """
__global__ void __launch_bounds__(kThreads, 1)
    mine(const __grid_constant__ TensorMap map_a, const __grid_constant__ TensorMap map_b,
         const __grid_constant__ TensorMap map_sfa, const GemmArgs p) {
    // The mbarriers of all stages; then everybody meets.
    // Warpgroup 0 gives registers back; its thread 0 loads all blocks of k.
    // The others take registers. For each block: wait until it is full; multiply; release it; promote.
    // They store what is inside D.
}
"""

# %% tags=["check"]
exercises.check("08.4", kernel)

# %% [markdown]
# Next: [blocks that stay](09_persistent.ipynb).
#
# To read whenever you like: [the same kernel in Triton's Gluon and in CuTe DSL](bridge_triton_cute.ipynb).
