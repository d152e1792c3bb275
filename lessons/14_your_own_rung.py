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
# # Your own rung
#
# This lesson has no new kernel in it: you write one. You choose a brief, predict what it is worth, write
# the kernel, have it judged, and look at where the prediction was off. The kernel takes an evening beyond the
# minutes below, or two sessions of 90 minutes with others. Three worked solutions are at the end.
#
# You need [lesson 06](06_tma.ipynb), whose [rung](glossary.md#rung) you begin with, and for the second brief
# [lesson 07](07_tma_multicast.ipynb). [Thread blocks](glossary.md#thread-block) are called CTAs here, as in
# the CUDA files: a *[K block](glossary.md#k-block)* is 128 bytes of a row along k, what one
# [stage](glossary.md#stage) of the [ring](glossary.md#ring) has.
#
# > **Needs:** lesson [07](07_tma_multicast.ipynb). **Time:** 25 minutes to read, 25 for guesses and
# > exercises; its cells run in two minutes, less when its kernels have been compiled. **May be skipped:**
# > nothing.

# %%
from gemm_ladder.figures import lessons

lessons.enter()  # makes this folder the working directory, wherever Jupyter was started

import gemm_ladder as gl
from gemm_ladder.arguments import H100_SMS
from gemm_ladder.figures import measured
from gemm_ladder.production import prediction
from workshop import drawing, exercises, model, own_rung, workbench

drawing.style()

# %%
drawing.where("SM", "tensor cores", "shared memory", "mbarriers", "TMA", "cluster")

# %% [markdown]
# ## Three briefs
#
# Each changes one thing of s4_tma, at a shape where that is worth a try.
#
# - **`bf16`**: A and B are [BF16](glossary.md#bf16) and there are no scales: D = A B^T. It should take less
#   than twice s4_tma's time: there are twice the bytes and twice the [WGMMAs](glossary.md#wgmma), and nothing
#   is [promoted](glossary.md#promotion). What is hard: 128 bytes are 64 elements. Which of the file's numbers
#   are bytes, and which are elements?
# - **`split_k`**: the two CTAs of a [cluster](glossary.md#cluster) share a [tile](glossary.md#tile), and each
#   sums up half of k. It should pay where rows are few: 64 x 7168 x 16384 has 56 tiles for 132
#   [SMs](glossary.md#sm). What is hard: where the two halves meet, and when a CTA may end. Where k has an odd
#   number of K blocks, either CTA may take the one more. A CTA reads the other's [shared
#   memory](glossary.md#shared-memory) by `ptx::ld_shared_cluster`, or writes to it by
#   `ptx::st_shared_cluster`, at an address from `ptx::mapa`. What is written where the ring was leaves out
#   its [mbarriers](glossary.md#mbarrier), or `ptx::mbarrier_inval` ends them first.
# - **`96_columns`**: tiles of 64 x 96, by whichever WGMMAs. It should pay at n = 2112, which is 22 tiles of
#   96 and nothing left over, or 17 of 128, the last one half empty. What is hard: a tile may lie in two scale
#   blocks of B.
#
# The rules: one file; all of the ladder's wrappers, and no inline [PTX](glossary.md#ptx); at most 130 lines
# of code added and as many removed; every shape that s4_tma takes, right bit for bit or within the rungs'
# bounds, on every [schedule](glossary.md#schedule). A shape that your kernel cannot compute may be refused
# with a sentence, which costs points; the one that your brief is measured at may not.
#
# The wrappers are in [kernels/include](../kernels/include). One that s4_tma does not use may need another
# `#include`: `mma.cuh` has the WGMMA of BF16, which is
# `ptx::wgmma<ptx::Type::f32, ptx::Type::bf16, ptx::Type::bf16, N>`, and `cluster.cuh` what reaches a
# neighbour's memory. [A table](../ref/emulator/README.md#what-a-kernel-may-use) says what the others have.
#
# Choose one. (Any other idea will do as well, if it has a shape where it should pay. The judge asks for no
# brief; the exercise below does.)

# %%
BRIEF = "split_k"  # or "bf16", or "96_columns"

# %% [markdown]
# ## The file to begin with
#
# `lab new` writes one: a copy of the rung under a comment that says what is to be done. From a shell it is
#
# ```sh
# python -m gemm_ladder lab new my_rung_split_k.cu --from s4_tma
# python -m gemm_ladder lab new my_rung_bf16.cu --from s4_tma --operands bf16
# ```
#
# The cell does that in your copy of the lessons, and leaves a file alone that is there already. Edit it in
# Jupyter or wherever you write code.

# %%
mine = own_rung.begin(BRIEF)
head = "\n".join(own_rung.find(mine).read_text().splitlines()[:14])
workbench.Text(f"```cpp\n{head}\n```", head)

# %% [markdown]
# ## The judge
#
# `python -m gemm_ladder lab judge my_rung_split_k.cu` says whether a kernel is right, or the first thing that
# is wrong with it. It looks at three things.
#
# - **Bits.** It multiplies some thirty products: one tile and one K block first, then rings that come
#   round, ragged edges, subnormal and infinite numbers, scales that all differ. A result has to have the
#   bits of the [tensor cores](glossary.md#tensor-core)' sums; or of such sums with k in 2, 3, 4 or 8 parts,
#   rounded down or up where it does not go evenly; or it has to lie within the bounds of rounding, and then
#   you have to say why its bits are others.
# - **Schedules.** Every case runs on schedule after schedule of the [emulator](glossary.md#emulator), and has
#   to give the same bits on each.
# - **Faults.** The emulator names what a GPU would pass over: [its table](../ref/emulator/README.md#faults).
#
# On a machine with a Hopper GPU all cases run there, too, and the kernel is timed beside the rungs; `--timed
# 64x7168x16384` says where. The file as it is, is s4_tma still, and so it is right, unless it is given BF16.

# %%
_ = own_rung.judge(mine, cases=("two_k_blocks", "5_k_blocks", "ragged_65"))

# %% [markdown]
# What will it say of a mistake? Let thread 0 of s4_tma itself not wait for an empty stage before it loads.
# The cases come in this order; which is the first that shows it?

# %% tags=["guess"]
CASES = ("one_tile", "two_k_blocks", "3_k_blocks", "4_k_blocks", "5_k_blocks", "6_k_blocks", "many_tiles")
exercises.guess("14.case", None, *CASES)

# %%
wait = "        ptx::mbarrier_wait_parity(next.stage + kEmpty, next.parity ^ 1);\n"
first = own_rung.judge("s4_tma", (wait, ""), cases=CASES)
exercises.found("14.case", first)

# %% [markdown]
# With four stages, the fifth K block is the first that is loaded over another one. The verdict names the
# case, the seed and the line, and the command that runs just that again. Such a command is what you debug
# with. In a terminal, `python -m gemm_ladder lab view FILE.cu --seed SEED --shape MxNxK` writes a page on
# which you can step through that schedule, event by event.
#
# ## Predict
#
# Before you write a line: what will it be worth? Take s4_tma's own times. The time of a
# [wave](glossary.md#wave) has two parts: one for the two ends of its tiles, the first load and the store,
# whatever k is; and one for each K block. Two shapes that differ in k alone give both numbers. There are two
# pairs of them: for few rows, where each SM has at most one CTA, and for many, where it has two.

# %%
# Of the ladder's model: SMs, microseconds to launch, and bytes that memory moves in one.
SMS, LAUNCH, MEMORY = H100_SMS, prediction.LAUNCH_US, model.MEMORY
WGMMAS = 2 * 64 * 128 * 128 / prediction.WGMMA_FLOPS / prediction.CLOCK_MHZ  # us of a K block's
recorded = {one.impl: one.tflops for one in measured.series(measured.recorded(), "dirty")}


def us(impl, m, n, k):
    """The recorded microseconds of an implementation."""
    return 2 * m * n * k / recorded[impl][m, n, k] / 1e6


def pair(m, waves):
    """(ends, block): microseconds of a wave for the ends of its tiles, and for each K block."""
    short, long = ((us("s4_tma", m, 7168, k) - LAUNCH) / waves for k in (2048, 16384))
    block = (long - short) / (16384 - 2048) * 128
    return short - 2048 / 128 * block, block


alone = pair(64, waves=1)
together = pair(4096, waves=-(-64 * 56 // (2 * SMS)))
for name, (ends, block) in (("alone", alone), ("two on an SM", together)):
    print(f"{name:13} {ends:4.2f} us for the ends of a tile, {block:5.3f} us for a K block")
print(f"its WGMMAs:   {WGMMAS:5.3f} us")

# %% [markdown]
# Two CTAs on an SM take some 1.3 times as long as one, not twice as long: that is what the second is good
# for. And a K block takes far longer than its WGMMAs.
#
# The first exercise makes a function of that. With it you can predict your brief's rung, if you know two
# things: how many CTAs and K blocks there are, and how long one of *your* K blocks takes. For the latter,
# write down a best and a worst case and why:
#
# - `bf16`: twice as many K blocks, of 64 elements. Each takes at worst what s4_tma's takes. At best it takes
#   its WGMMAs alone, as nothing is promoted. These take as many cycles as those of s4_tma's K block: half as
#   many elements, at half of [FP8](glossary.md#fp8)'s rate. Two CTAs on an SM take turns at the tensor cores,
#   so that a K block of each takes twice as long.
# - `split_k`: twice as many CTAs, each with half of the K blocks. A K block takes what it took; at the end
#   comes about 1 us for adding up.
# - `96_columns`: more tiles. A K block takes at worst what it took, and at best three quarters.
#
# For [split-K](glossary.md#split-k) at its shape: how many times as fast as s4_tma should the rung be?

# %% tags=["guess"]
exercises.guess("14.split", None)

# %%
m, n, k = own_rung.BRIEFS["split_k"].timed
ends, block = alone
halves = LAUNCH + ends + k // 128 // 2 * block + prediction.SPLIT_US
floor = (m * k + n * k + 2 * m * n) / MEMORY
print(
    f"s4_tma took {us('s4_tma', m, n, k):.1f} us. Two halves: {halves:.1f} us; memory alone: {floor:.1f} us"
)
exercises.found("14.split", us("s4_tma", m, n, k) / max(halves, floor), "times as fast, by the model")
print(f"s9_production, which may split k too: {us('s9_production', m, n, k):.1f} us")

# %% [markdown]
# Half of the K blocks is a little more than half of the time, and just above what memory needs. What overlaps
# is never perfect, so the truth will be above the larger of the two; how far above is what your report is to
# say.
#
# ## Record, or measure
#
# Without a GPU you can see whether your kernel does what you meant, though not how fast. Below is the file as
# it is, on the emulator; for split-K you want a second CTA beside this one, and each to have half of the
# loads.

# %%
own_rung.timeline(mine, 64, 128, 1024)

# %% [markdown]
# With a GPU, measure at the brief's shape, beside the rungs, in one process and with [L2](glossary.md#l2)
# cold:
#
# ```sh
# python -m gemm_ladder lab judge my_rung_split_k.cu --timed 64x7168x16384
# ```

# %%
if workbench.HOPPER:
    shape = own_rung.BRIEFS[BRIEF]
    print(gl.judge(own_rung.find(mine), operands=shape.operands, device="cuda", timed=[shape.timed]))
else:
    print("There is no Hopper GPU here.")

# %% [markdown]
# ## The report
#
# One page: the idea in one sentence; the prediction, as numbers, made before; the verdict; the timeline, or
# the measured time; and where the prediction was off, by how much, and why. If it is slower than s4_tma, say
# what you would have had to know beforehand. That is worth as much as a fast kernel.
#
# ## For teachers: a rubric
#
# | what | points | full marks |
# |---|---|---|
# | Bits | 25 | right in every case of the judge; if the bits are others, the report says whose |
# | Schedules and faults | 20 | `--seconds 300` finds none; the author can justify each barrier and fence |
# | One idea | 15 | at most 130 lines changed, and the head comment says it |
# | Prediction | 20 | made before, with a best and a worst case, and a reason for each term |
# | What happened | 15 | the difference to the time, or to the planned timeline, is explained |
# | Words | 5 | a stranger understands the comments at first reading |
#
# Half of a row's points: a class of shapes is refused, with the reason; a barrier is there that nobody can
# explain; two ideas are in one file; a prediction is a number without its terms; a difference is stated and
# not explained. None: a case is wrong; a fault is left; the file is a rewrite; the prediction was made
# afterwards.
#
# Beforehand: two of the five exercises that ask for a whole kernel (lessons 03, 04, 06, 08 and 09), of which
# one is 06's. Whoever has solved 08's or 09's may begin with that kernel. In pairs, one may only write the
# kernel and one only run the judge and the timeline, and they change seats at every verdict. To examine, ask
# the author to predict what the judge will say of a line that you change.
#
# ## Exercises
#
# **1.** The model as a function. `ctas` CTAs each walk through `blocks` K blocks, and `moved` bytes go
# through memory. `alone` and `together` are pairs (ends, block) as above: `alone` for at most SMS CTAs,
# `together` for more, of which two run on an SM at once. A kernel does not end before memory has moved all
# bytes, which takes `moved / MEMORY`; that is an alternative to the sum of the launch and the waves, not a
# part of it. Return the microseconds.


# %% tags=["exercise"]
def predicted(ctas, blocks, moved, alone, together):
    return LAUNCH + moved / MEMORY


# %% tags=["check"]
exercises.check("14.1", predicted)

# %% [markdown]
# **2.** Your rung, by the name of its file, which ends with the brief's. The check judges it, on all cases,
# and looks whether it does what the brief asks for.

# %% tags=["exercise"]
rung = "my_rung_split_k.cu"

# %% tags=["check"]
exercises.check("14.2", rung)

# %% [markdown]
# ## At the back: worked solutions
#
# Do not read on before you have a verdict of your own.
#
# - [own_rung_bf16.cu](solutions/own_rung_bf16.cu): nothing is done with the
#   [accumulators](glossary.md#accumulator) between two K blocks, so the next K block's WGMMAs are issued
#   while the last one's run. A stage is therefore released one K block later.
# - [own_rung_split_k.cu](solutions/own_rung_split_k.cu): each CTA finishes half of the columns, so both add
#   and both store. The sums go where the ring was: behind a barrier of the CTA, and between two of the
#   cluster.
# - [own_rung_96_columns.cu](solutions/own_rung_96_columns.cu): 96 and 128 have 32 in common, so a tile has
#   three parts of 32 columns, each with one scale of B, and which of them a [register](glossary.md#register)
#   takes is known when the kernel is compiled.

# %%
for brief in own_rung.BRIEFS:
    file = f"solutions/own_rung_{brief}.cu"
    added, removed = own_rung.changed_lines(file)
    print(f"{file}: {added} lines of code added, {removed} removed")
    own_rung.judge(file, cases=("one_tile", "5_k_blocks", "ragged_127", "ragged_129"))

# %% [markdown]
# The bits of the second are not those of one sum over k, and the judge says whose they are: k was added in
# two parts. Where there is only one K block, one of the two CTAs has nothing to do and adds zeros. In the
# picture, the grey behind the last product is waiting: at the barrier of the CTA, then at the two meetings of
# the cluster, between which the CTAs send each other sums. The store comes last. Sending and storing are
# ordinary instructions, which have no colour of their own. In s4_tma's picture what follows the last product,
# the store included, could be drawn in one piece; here the meetings lie between.

# %%
own_rung.timeline("solutions/own_rung_split_k.cu", 64, 128, 1024)

# %% [markdown]
# What they are worth, and what was predicted, best and worst:


# %%
def tiles(m, n, tile_n):
    return -(-m // 64) * -(-n // tile_n)


def times(of, factor):
    """A pair (ends, block) whose K block takes so many times as long."""
    return of[0], of[1] * factor


found = own_rung.measured()
for brief, made in own_rung.BRIEFS.items():
    m, n, k = made.timed
    ctas, blocks, moved, adding, factors = tiles(m, n, 128), k // 128, m * k + n * k + 2 * m * n, 0, (1, 1)
    if brief == "bf16":  # a K block of 64 BF16 elements has as many WGMMAs
        blocks, moved, factors = 2 * blocks, moved + (m + n) * k, (2 * WGMMAS / together[1], 1)
    elif brief == "split_k":
        ctas, blocks, adding = 2 * ctas, blocks // 2, prediction.SPLIT_US
    else:
        ctas, factors = tiles(m, n, 96), (0.75, 1)
    span = [
        adding + own_rung.predicted(ctas, blocks, moved, times(alone, factor), times(together, factor))
        for factor in factors
    ]
    print(f"{brief:10} {m} x {n} x {k}: predicted {span[0]:.0f} to {span[1]:.0f} us;", end=" ")
    print(f"s4_tma with FP8, recorded: {us('s4_tma', m, n, k):.0f} us")
    for name, value in found.get(brief, {}).items():  # beside the best of the rungs and of the libraries
        if name.startswith("own_rung") or name in ("s9_production", "cublas_bf16"):
            print(f"{'':10} measured: {name.removesuffix(' (yours)')} {value:.0f} us")
if not found:
    print("The worked solutions have not been measured on a GPU yet (lessons/data/own_rungs.py does it).")

# %% [markdown]
# On an H200 none of the three came out as the best case has it.
#
# - `bf16`: within the span, and beyond its middle: a K block takes more than its WGMMAs even where nothing is
#   promoted.
# - `split_k`: 41 us in place of 32, so 1.4 times as fast as s4_tma and not 1.8. The prediction takes a K
#   block for as long as it was with 56 CTAs. With 112 of them memory has to deliver in 41 us what it did in
#   58, of which it needs 29 for itself, and what overlaps is never perfect. How much of the 9 us the
#   cluster's meetings take was not measured.
# - `96_columns`: slower than s4_tma. For its time a K block of 96 columns must have taken nine tenths of one
#   of 128, not three quarters: promotion and WGMMAs get shorter, and the waiting around them does not. It
#   would have been a good reason not to write it.
#
# That was the ladder. What you have read is in [kernels](../kernels/stages); what was tried and did not
# work in [NOTES.md](../kernels/production/NOTES.md). To make your rung one of the ladder,
# [kernels/README.md](../kernels/README.md) says which three files it takes.
