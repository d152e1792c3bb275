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
# # Rung s2: tiles in shared memory and in registers
#
# [s2_tiled.cu](../kernels/stages/s2_tiled.cu) computes the same sums as s1_naive, in the same order, with the
# same instruction, `fmaf`. All that changes is where the operands are when that instruction wants them. You
# will predict what that is worth before you look.
#
# From here on every [rung](glossary.md#rung) is written for whole [K blocks](glossary.md#k-block): k is a
# multiple of 128.
#
# > **Needs:** lesson [02](02_naive.ipynb). **Time:** 30 minutes to read, 65 for guesses and exercises; its
# > cells run in a minute, less when its kernels have been compiled. **May be skipped:** nothing.

# %%
from gemm_ladder.figures import lessons

lessons.enter()  # makes this folder the working directory, wherever Jupyter was started

import json

import gemm_ladder as gl
import numpy as np
from gemm_ladder.figures import measured, rung_cards
from gemm_ladder.ref import gemm, metrics
from workshop import constants, drawing, drawing_shared, evidence, exercises, model, workbench

drawing.style()
rung = gl.rungs["s2_tiled"]

# %%
drawing.where("warp scheduler", "registers", "CUDA cores", "shared memory", "banks")

# %% [markdown]
# ## What limited the rung below
#
# The card of s1_naive names one unit, [L1](glossary.md#l1), at 98 % of its peak. A line of L1 has 128 bytes,
# four of lesson 02's [sectors](glossary.md#sector), and to answer a load the cache has to find every line
# that the [warp](glossary.md#warp) touches, however little of it is read. Suppose that it finds one line a
# cycle. A warp of s1_naive touches one line for A and 32 for B, and with them its 32 threads do one `fmaf`
# each. What would that allow? Work it out on paper first: 132 [SMs](glossary.md#sm), at the [SM
# clock](glossary.md#sm-clock)'s upper limit of 1.98 GHz, an operation being a multiplication or an addition.
# How many [TFLOPS](glossary.md#tflops)?

# %% tags=["guess"]
exercises.guess("03.lines", None)

# %%
SMS, CLOCK = model.SMS, model.FULL_MHZ * 1e6  # the SM clock's upper limit, of an H100 and of an H200

lines, fmas = 1 + 32, 32
size = (4096, 7168, 16384)
recorded = {one.impl: one.tflops for one in measured.series(measured.recorded(), "dirty")}
exercises.found("03.lines", SMS * CLOCK * 2 * fmas / lines / 1e12, "TFLOPS, by this guess about L1")
print(f"measured:  {recorded['s1_naive'][size]:.3f} TFLOPS")

# %% [markdown]
# One guess about one unit explains the whole kernel, and it is the first term of the model. Here it is at
# other shapes, in microseconds. ("[L2](glossary.md#l2) [dirty](glossary.md#dirty)" below such a table: before
# each call the cache was filled with other data, so that no operand is in it; [lesson
# 13](13_reading_the_results.ipynb) has more.)

# %%
constants.show("s1_naive")
evidence.compare("s1_naive")

# %% [markdown]
# So there are two things to do: ask the cache for fewer lines, and use what it hands over more than once.
#
# ## A model, one term for each unit
#
# An SM has four units that a kernel on the [CUDA cores](glossary.md#cuda-core) can fill. Each does so much in
# a cycle:
#
# | unit | in a cycle, on each SM |
# |---|---|
# | FP32 pipe | 128 `fmaf` |
# | issue slots | 4 instructions, each for a warp of 32 threads |
# | shared memory | 128 bytes: 32 banks of 4 |
# | L1, on a load from global memory | one line found (the guess that has just held) |
#
# They work at the same time. So count, for one `fmaf`, how much of each it takes, and the unit that takes the
# longest says how fast the kernel can be. Here is that for s1_naive and for three steps from there to s2.
#
# 1. **A [tile](glossary.md#tile) in [shared memory](glossary.md#shared-memory).** A [thread
#    block](glossary.md#thread-block) of 32 x 32 threads loads 32 rows of A and of B once, and all of its
#    threads read them from shared memory: two numbers for each `fmaf`. Threads of a warp that want the same
#    number get it in one turn of 128 bytes.
# 2. **A tile in [registers](glossary.md#register).** A thread computes 8 x 8 outputs. For each k it reads 8
#    numbers of A and 8 of B, and does 64 `fmaf` with them.
# 3. **128-bit loads.** One instruction reads four of those numbers.
#
# Which unit limits each of them? Decide before you run the next cell but one; then see which guess was wrong.

# %% tags=["guess"]
UNITS = {
    "FP32 pipe": model.FMAS,
    "issue slots": model.INSTRUCTIONS,
    "shared memory": model.SHARED_BYTES,
    "L1": model.LINES,
}
exercises.guess("03.shared", None, *UNITS)
exercises.guess("03.registers", None, *UNITS)
exercises.guess("03.vector", None, *UNITS)


# %%
def cycles(fmas, instructions, shared_bytes, lines):
    """Cycles that each unit of an SM needs for this much work of one warp; `fmas` counts threads."""
    work = {"FP32 pipe": fmas, "issue slots": instructions, "shared memory": shared_bytes, "L1": lines}
    return {unit: work[unit] / UNITS[unit] for unit in UNITS}


def bound(name, fmas, guess="", **work):
    """Print the most TFLOPS that the fullest unit allows, and that unit beside the guess."""
    needed = cycles(fmas, **work)
    unit = max(needed, key=needed.get)
    tflops = SMS * CLOCK * 2 * fmas / needed[unit] / 1e12
    print(f"{name:24} {tflops:5.1f} TFLOPS at most, limited by the {unit}")
    if guess:
        exercises.found(guess, unit)
    return tflops


print(f"the FP32 pipe, if nothing else limited it: {SMS * CLOCK * 2 * UNITS['FP32 pipe'] / 1e12:.0f} TFLOPS")
# A warp, one k. Instructions of s1: two loads, two conversions of two instructions each, one fmaf.
bound("s1_naive", 32, instructions=7, shared_bytes=0, lines=33)
# The 32 threads read one number of A and 32 of B: a turn of all banks each, 128 bytes.
bound("tile in shared memory", 32, "03.shared", instructions=3, shared_bytes=2 * 128, lines=0)
bound("tile in registers", 32 * 64, "03.registers", instructions=16 + 64, shared_bytes=16 * 128, lines=0)
vectorised = bound("128-bit loads", 32 * 64, "03.vector", instructions=4 + 64, shared_bytes=4 * 128, lines=0)

# %% [markdown]
# A tile in shared memory moves the limit from L1 to shared memory, which is faster; but with an `fmaf` that
# reads two numbers from there the FP32 pipe does 8.4 of the 67 TFLOPS that it could: it is idle seven cycles
# in eight. A tile in registers is what feeds it: a thread with 8 x 8 outputs does 64 `fmaf` for 16 numbers, 4
# for each; with R x R it would be R / 2. What bounds R is the number of registers, 255 for each thread; and
# the more of them a thread has, the fewer warps fit on an SM: the lower is its
# **[occupancy](glossary.md#occupancy)**.
#
# The last two lines of the model assume something that is not free: that shared memory serves a warp's load
# in one cycle for every 128 bytes. Section 2 sees to that.
#
# ## The idea
#
# A block of 256 threads computes a tile of 128 x 128. Sixteen of k are in shared memory at a time. A thread's
# 8 rows and its 8 columns are two **quads** each, 64 apart; a quad is what a 128-bit load reads.

# %%
drawing_shared.tile(thread=47)

# %% [markdown]
# ## The change to the file
#
# Lines with `-` are rung s1's, lines with `+` are new.

# %%
workbench.diff("s1_naive", "s2_tiled")

# %% [markdown]
# Read it in this order:
#
# - `tile_a` and `tile_b` are **`__shared__`**: each block has one, and all of its threads can read and write
#   it. Both exist twice, for two steps of k.
# - `load` reads 16 bytes of one row, for one thread. `store` converts them and writes 16 numbers to shared
#   memory.
# - **`__syncthreads`** is a barrier: no thread of the block goes on before all have arrived, and what was
#   written before it can be read after it.
# - In the main loop `next` is loaded *before* the 16 steps of k that do not need it. A load from [global
#   memory](glossary.md#global-memory) takes hundreds of cycles; they pass while the thread multiplies.
# - The [promotion](glossary.md#promotion) is what it was, 64 times.
#
# ## 1. What a block asks of the cache
#
# **[Coalescing](glossary.md#coalesced)**, in lesson 02, was about the 32-byte sectors that a warp's load
# touches. Here a thread loads 16 bytes of a row of its own, so a warp touches 32 lines, and half of each
# sector is of use at once; the other half is what the next step asks for, and it is in L1 by then. How many
# lines are that for each `fmaf`?

# %%
loads = 8 * 8  # 8 warps, one load each for 16 of k, 8 times for a block of 128
per_block_of_k = {"s1_naive": 128 * 128 * 128 / 32 * 33, "s2_tiled": loads * 32}
for name, lines in per_block_of_k.items():
    print(f"{name}: {lines:8.0f} lines found for a tile of 128 x 128 and 128 of k")
busy = per_block_of_k["s2_tiled"] / (128 * 128 * 128 / UNITS["FP32 pipe"])
print(f"L1 is busy for {busy:.0%} of the time that the FP32 pipe needs")

# %% [markdown]
# So the loads may stay as they are: they are no longer the limit. If neighbours in a warp loaded neighbours
# along k, they would ask for fewer lines, and the stores below would then want the same
# [banks](glossary.md#bank).
#
# ## 2. Banks
#
# Shared memory has 32 **banks**, each 4 bytes wide: address 0 to 3 belong to bank 0, 4 to 7 to bank 1, and
# after bank 31 it starts over. A bank gives one word at a time. Threads that want different words of one bank
# take turns; threads that want the same word get it together.
#
# A 128-bit load wants four banks for each thread, so eight threads fill all 32. In s2, eight neighbours in a
# warp have eight neighbouring quads of columns. The obvious way to share out the columns is another: the
# first eight for the first thread, the next eight for the next. What do the first eight threads touch, each
# way, when they read the first half of their columns?

# %%
WORD = 4  # bytes
thread = np.arange(8)
as_it_is, obvious = 4 * thread * WORD, 8 * thread * WORD
drawing_shared.banks({"quads, as in s2": (as_it_is, 4), "eight columns in a row": (obvious, 4)})

# %% [markdown]
# Two turns, so twice the time in shared memory, and the same result. Nothing but a count, or a profiler,
# shows it.
#
# Stores have banks too. `tile[k][row]` has K first, so the 32 threads of a warp, with a row each, store to 32
# neighbours. Had the tile kept A's own order, a row with its 16 of k, then:

# %%
lane = np.arange(32)
for name, offsets in {"tile[k][row]": lane * WORD, "tile[row][k]": lane * 16 * WORD}.items():
    print(f"{name}: {drawing_shared.turns(offsets, 1)} turns for a warp's store")

# %% [markdown]
# ## Run it, check it
#
# D has more than one tile each way here, and neither m nor n is a multiple of 128.

# %%
problem = workbench.problem(m=150, n=136, k=256)
d = workbench.multiply(rung, problem)
exact = gemm.dense(*problem.arrays)
print("relative error:                 ", metrics.relative_error(d, exact))
print("largest relative error of a row:", metrics.max_row_error(d, exact))
print(
    "s1_naive's bits:                ",
    workbench.difference(d, workbench.expected("s1_naive", problem)) is None,
)
print("k = 200:", rung.supports(64, 128, 200))

# %% [markdown]
# The bits are those of s1. Each thread adds its products in the order of k, whichever thread loaded them.
#
# ## How fast it is: first the prediction
#
# The model's last line, 63 TFLOPS with 128-bit loads, left out what comes in every step of 16 of k, and every
# block of 128. Tiles are made in **[waves](glossary.md#wave)**: all SMs begin one, and the last wave takes as
# long as the others, however few tiles it has. And an SM has room for one such block, because of the
# registers, and so for two warps at each of its [four schedulers](glossary.md#warp-scheduler). How many
# microseconds do you expect for 4096 x 7168 x 2048?

# %%
constants.show("s2_tiled")

# %% tags=["guess"]
exercises.guess("03.measured", None)

# %% [markdown]
# This is the model with all of it, but for the schedulers: while both warps wait at `__syncthreads`, or for a
# number from shared memory, nothing is issued. The model does not know that: its time is the least that there
# can be.

# %%
model.code(model.s2, model.waves)

# %%
evidence.predict("s2_tiled", size)
tiles, waves = model.tiles(*size[:2], 128, 128), model.waves(*size[:2], 128, 128, SMS)
print(f"{tiles} tiles on {SMS} SMs: {waves} waves, of which {tiles / SMS / waves:.0%} is work")

# %%
notes = drawing.bars(["s1_naive", "s2_tiled", "cublaslt_tensorwise"], size, marked="s2_tiled")
evidence.compare("s2_tiled", "03.measured")
print(*notes, sep="\n")

# %% [markdown]
# The prediction is a quarter too low, and at all shapes by much the same factor, 0.73 to 0.77. What is
# missing in it is waiting: with two warps a scheduler there is not always one that can issue. Were it a unit
# that the model has forgotten, the factor would change with the shape. The profiler, on the card below, has
# the same number from the other side: the issue slots are full for 76 % of the time.
#
# And this is what the compiler made of it. 219 registers: 64 for `partial` and 64 for `total`, because a
# block of 128 has to be scaled before it is added; 16 for the numbers of one k, and as many for those of the
# next.

# %%
workbench.card("s2_tiled")

# %% [markdown]
# A warp that waits for "the dispatcher" has an instruction that was chosen and is held back. The [tensor
# cores](glossary.md#tensor-core)' 0.1 % is unexplained: no instruction of the machine code needs them.
#
# One row of the card is far from the model: "L1 and shared memory" are busy for 61 % of the time, and the
# model has 4634 of 17261 us for shared memory, 27 %. Why? The card counts the loads of shared memory and of
# L1 in one row, and its time is the measured one, a third longer. So bring the model's two terms to it:

# %%
card = next(row for row in rung_cards.load(measured.DATA / "cards.json")["rows"] if row["rung"] == "s2_tiled")
at = 4096, 7168, 2048  # what ncu ran
terms, measured_us = model.s2(*at).terms, 2 * np.prod(at, dtype=float) / recorded["s2_tiled"][at] / 1e6
share = {unit: terms[unit] / measured_us for unit in ("shared memory", "L1")}
print("of the measured time:", ", ".join(f"{unit} {part:.0%}" for unit, part in share.items()))
print(f"together {sum(share.values()):.0%}; the card has {card['ncu']['l1']:.0f}%")
MODEL = 4 * 1 + 1  # for each k: four 128-bit loads of a warp, in one turn each, and one number stored
for words, turns in (("A's two loads in 2 turns, B's in 4", 2 * 2 + 2 * 4 + 1), ("all in 4", 4 * 4 + 1)):
    print(f"{words}: {share['shared memory'] * turns / MODEL + share['L1']:.0%}")

# %% [markdown]
# The model's two terms are half of what the card counts. They have a warp's load take one turn for every 128
# *different* bytes: too few. A 128-bit load is served for eight threads at a time (section 2),
# which makes four turns, and a turn is not saved whenever the next eight threads want the same words again.
# In s2 all four groups of eight want the same eight quads of B, and each group a single quad of A. If B's
# loads take four turns, and A's two, the row comes out right. A kernel that does nothing else
# ([shared_loads.py](data/shared_loads.py)) says:

# %%
loads = json.loads((lessons.FOLDER / "data" / "shared_loads.json").read_text())
print(f"cycles of the SM for a warp's 128-bit load ({loads['meta']['gpu']}, {loads['meta']['date']})")
for words, cycles in loads["cycles"].items():
    print(f"{cycles:5.2f}  {words}")

# %% [markdown]
# So it is. The predicted time stays what it was: the issue slots are still the fullest unit.

# %% [markdown]
# ## What limits it now
#
# By the model it is the issue slots and the FP32 pipe: nearly everything that an SM issues is already an
# `fmaf`. A better order could gain the quarter for which the warps wait. With this instruction the end is
# near:

# %%
print(f"the FP32 pipes of all SMs: {SMS * CLOCK * 2 * UNITS['FP32 pipe'] / 1e12:.0f} TFLOPS")
print(f"cuBLASLt, on the tensor cores: {recorded['cublaslt_tensorwise'][size]:.0f} TFLOPS")

# %% [markdown]
# What is left is another instruction: one for a whole tile. The next rung has it. Shared memory stays, and so
# do its banks; the conversion to FP32 goes.
#
# ## Break it
#
# Predict each symptom before you run the cell. A fault names its thread by the warp and the
# [lane](glossary.md#lane), which is the thread's number in the warp.

# %%
problem = workbench.problem(m=130, n=136, k=256)

# %% [markdown]
# **1.** No `__syncthreads` at the end of a step.

# %% tags=["guess"]
exercises.guess_break("03.break1", line=None, then=None)

# %% tags=["break"]
SYNC = "            __syncthreads();  // the next step is stored, and this one's place may be overwritten\n"
workbench.break_it("s2_tiled", problem, (SYNC, ""), seeds=4, guess="03.break1")

# %% [markdown]
# <details><summary>Why</summary>
#
# Nothing says that a number has been stored before another thread reads it, or read before it is overwritten.
# The emulator names the first two such accesses. On a GPU the result is right as long as the warps happen to
# keep step: on some days.
#
# </details>
#
# **2.** One buffer in shared memory instead of two: `step % 2` is 0. All barriers stay.

# %% tags=["guess"]
exercises.guess_break("03.break2", line=None, then=None)

# %% tags=["break"]
workbench.break_it(
    "s2_tiled",
    problem,
    ("tile_a[step % 2] : tile_b[step % 2]", "tile_a[0] : tile_b[0]"),
    ("tile_a[step % 2][k]", "tile_a[0][k]"),
    ("tile_b[step % 2][k]", "tile_b[0][k]"),
    seeds=4,
    guess="03.break2",
)

# %% [markdown]
# <details><summary>Why</summary>
#
# A fast thread stores the next step where a slow one still reads this step. The emulator says the same as for
# break 1, as it sees the same: a store and a read of one place without a barrier in between. With one buffer
# you need two of them: one after the last read, one after the stores.
#
# </details>
#
# **3.** A thread has eight neighbouring rows, and eight neighbouring columns.

# %% tags=["guess"]
exercises.guess_break("03.break3", line=None, then=None)

# %% tags=["break"]
workbench.break_it(
    "s2_tiled",
    problem,
    ("return i / kQuad * kHalf + quad * kQuad + i % kQuad;", "return quad * kPerThread + i;"),
    seeds=4,
    guess="03.break3",
)

# %% [markdown]
# <details><summary>Why</summary>
#
# The result does not depend on which thread computes which output. It is right, and slower (section 2): the
# emulator does not count bank conflicts.
#
# </details>
#
# **4.** `inside` is always true.

# %% tags=["guess"]
exercises.guess_break("03.break4", then=None)

# %% tags=["break"]
workbench.break_it(
    "s2_tiled",
    problem,
    ("const bool inside = row < (loads_a ? p.m : p.n);", "const bool inside = true;"),
    seeds=4,
    guess="03.break4",
)

# %% [markdown]
# <details><summary>Why</summary>
#
# m = 130 leaves 126 rows of the second tile without a row of A, and n = 136 does the same to B. What the
# threads load there is not A or B, but whatever lies behind them in memory.
#
# </details>
#
# ## Exercises
#
# **1.** The multiplication is missing from the kernel. `a` has the thread's eight numbers of A for this k,
# `b` those of B. Write the two loops and the line in them, for `partial`, [kPerThread][kPerThread]. (`#pragma
# unroll` before each loop has the compiler use registers; here it may be left out.)

# %% tags=["exercise"]
multiply = "partial[0][0] += a[0];"

# %% tags=["check"]
exercises.check("03.1", multiply)

# %% [markdown]
# **2.** The store to shared memory is missing, too, which you have seen (so from memory): byte i of a row's
# 16 bytes is in `word`, at bits `i % 4 * 8`. Write the line that converts it and puts it where `load_quads`
# will look for it.

# %% tags=["exercise"]
put = "tile[0][line] = static_cast<float>(word);"

# %% tags=["check"]
exercises.check("03.2", put)

# %% [markdown]
# **3.** A thread computes R x R outputs, and reads its 2 R numbers for each k by loads of `width` numbers.
# What share of the instructions, `fmaf` and loads alone, is `fmaf`?


# %% tags=["exercise"]
def share(r, width):
    return 0.5


# %% tags=["check"]
exercises.check("03.3", share)

# %% [markdown]
# **4.** How many turns does a warp's store take, if each thread stores one word, thread i at word `i *
# stride`?


# %% tags=["exercise"]
def strided(stride):
    return 1


# %% tags=["check"]
exercises.check("03.4", strided)

# %% [markdown]
# **5.** A whole kernel. The first step from s1_naive to s2_tiled: tiles in shared memory, and no more. A
# block makes a tile of 32 x 32; a thread makes four outputs of one column. For each 32 of k the threads store
# both tiles as FP32 numbers, meet, and multiply. The frame below has the rest of the file; write the kernel
# `mine`. The sums are those of s1_naive, in its order, and n is a multiple of 8, not of 32. `tile_b` has rows
# of 33 numbers: exercise 4 says why.

# %%
exercises.frame("03.5")

# %% tags=["exercise"]
kernel = """
__global__ void __launch_bounds__(kThreads) mine(const GemmArgs p) {
    __shared__ float tile_a[kTile][kTile + 1], tile_b[kTile][kTile + 1];  // [row][k]
    // Which tile is this block's, which rows and which column are this thread's?
    // For each block of 128 of k: partial sums from 0; for each kTile of it, store, meet, multiply, meet;
    // then promote.
    // Round to BF16, and store what is inside D.
}
"""

# %% tags=["check"]
exercises.check("03.5", kernel)

# %% [markdown]
# Next: [the tensor cores](04_wgmma.ipynb).
