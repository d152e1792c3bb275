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
# # Rung s8: two bits of an instruction
#
# This [rung](glossary.md#rung) does not change a line of the source. It takes the library that the compiler
# made of [s7_persistent.cu](../kernels/stages/s7_persistent.cu), finds the
# [promotions](glossary.md#promotion) in its machine code, and rewrites two bits of their instructions. What
# these bits say cannot be said in CUDA, nor in [PTX](glossary.md#ptx).
#
# You will read machine code, see what today's compiler does by itself, and measure against that, not against
# an older compiler.
#
# > **Needs:** lesson [09](09_persistent.ipynb). **Time:** 35 minutes to read, 60 for guesses and exercises;
# > its cells run in a minute, less when its kernels have been compiled. **May be skipped:** all of it: no
# > other lesson needs it; lesson [13](13_reading_the_results.ipynb) has an example or an exercise of it.

# %%
from gemm_ladder.figures import lessons

lessons.enter()  # makes this folder the working directory, wherever Jupyter was started

import dataclasses

import gemm_ladder as gl
import numpy as np
from gemm_ladder import build
from gemm_ladder.figures import measured, rung_cards, timeline
from gemm_ladder.measure.interleave import MODES
from gemm_ladder.ref import gemm, metrics
from gemm_ladder.sass import ffma
from workshop import (
    constants,
    drawing,
    drawing_ffma,
    drawing_warps,
    evidence,
    exercises,
    model,
    printed,
    workbench,
    workbench_sass,
)

drawing.style()
rung = gl.rungs["s8_ffma_interleave"]

# %%
drawing.where("warp scheduler", "registers", "CUDA cores")

# %% [markdown]
# ## What limited the rung below
#
# In [rung s7](09_persistent.ipynb) one [consumer](glossary.md#consumer) promotes while the other has the
# [tensor cores](glossary.md#tensor-core). Here is a piece of its recording on a GPU, closer:

# %%
rows = drawing_warps.on_gpu("s7_persistent")
if rows:
    products = sorted(span[1] for row in rows for span in row["spans"] if span[0] == "multiply")
    drawing_warps.closer(rows, products[6], products[18])
    print(f"{timeline.beside(rows):.0%} of the promotion lies beside the other consumer's WGMMAs")

# %% [markdown]
# Green should lie beside orange: then the promotion costs nothing. How much of the time would that need?
# Count cycles for one slice, 64 x 128 of D and 128 of k; recorded times become cycles by the clock that this
# [SM](glossary.md#sm) had meanwhile.

# %%
m, n = 64, 128
print(f"at the least: WGMMAs {model.tensor(m, n):.0f} cycles, promotion {m * n // model.FMAS} cycles")
for what in ("multiply", "promote") if rows else ():
    spans = [end - begin for row in rows for kind, begin, end in row["spans"] if kind == what]
    print(f"recorded, {what}: {np.median(spans) * rows[0]['sm_mhz']:.0f} cycles, median")

# %% [markdown]
# By the first line there is room for it, four times over. What is recorded is longer: the recording itself
# takes time, the consumers share the tensor cores, and the [warps](glossary.md#warp) share what issues
# instructions. An SM has [four schedulers](glossary.md#warp-scheduler); each has one warp of each consumer,
# and issues one instruction a cycle. Through a promotion a scheduler issues nothing but
# [FFMAs](glossary.md#ffma), if it is let. A consumer that could start its next [WGMMAs](glossary.md#wgmma)
# needs a few issue slots at that moment, of the same schedulers.
#
# The card of s7:

# %%
workbench.card("s7_persistent", again=True)

# %% [markdown]
# ## The idea
#
# The compiler's output for an NVIDIA GPU is called **[SASS](glossary.md#sass)**. An instruction has 128 bits,
# and some of them are no part of the operation: they tell the warp scheduler what the compiler knows: the
# **control bits**. Two matter here:
#
# - **yield**: prefer another warp for the next instruction.
# - **reuse**: keep the [register](glossary.md#register) that this instruction reads in a certain place, since
#   the next one reads it there again. That saves a read of the register file.
#
# They exclude each other. If another warp comes between, what was kept may be lost. A promotion multiplies
# many [accumulators](glossary.md#accumulator) with the same scale, one FFMA after the other, so a compiler
# likes to keep the scale, and then the run does not yield. The authors of DeepGEMM found that it pays to give
# up every second reuse for a yield. Because the compiler of their day did not do it, they did it in the
# machine code: [interleave_ffma.py](https://github.com/deepseek-ai/DeepGEMM), 2025.
# [ffma.py](../kernels/sass/ffma.py) is this ladder's pass.
#
# NVIDIA does not document these bits. What is said of them here was found by others, by experiment: see
# [CuAssembler](https://github.com/cloudcores/CuAssembler) and DeepGEMM.
#
# ## The change to the file
#
# There is none:

# %%
print(rung.path.name, "is the file of", gl.rungs["s7_persistent"].path.stem)
print(rung.path == gl.rungs["s7_persistent"].path)

# %% [markdown]
# The difference is in the library. Build s7 and read it: a promotion with the WGMMAs before it. `QGMMA` is
# the WGMMA of 8-bit numbers, `WARPGROUP.DEPBAR` the wait for it.

# %%
code = workbench_sass.code()
print(code.origin)
before = code.instructions("compiler")
print(*map(workbench_sass.line, before), sep="\n")

# %% [markdown]
# FMUL makes one scale of A's and B's. In the first QGMMA, `RZ, !UPT` is `scale_d` = 0: it starts from zero.
# R24 is a register of each thread; UR28 is a **[uniform register](glossary.md#uniform-register)**, which a
# warp has once, for all of its threads. UIADD3 (an addition), UMOV, UISETP (a comparison) and USEL (a choice
# by its result) compute in such registers, here the next WGMMAs' [descriptors](glossary.md#descriptor) and
# the [ring](glossary.md#ring)'s next [stage](glossary.md#stage). R2UR, which other listings have, moves a
# number there from a thread's register. (NVIDIA lists them as uniform datapath instructions in [CUDA Binary
# Utilities](https://docs.nvidia.com/cuda/cuda-binary-utilities/#instruction-set-reference).) The yields at
# the right are not in cuobjdump's text. They are read from the bits, as the next section shows.
#
# ## 1. The bits of an FFMA
#
# **FFMA** Rd, Ra, Rb, Rc is Rd = Ra Rb + Rc. In a promotion Ra is one of the WGMMA's accumulators, Rb the
# scale, and Rc and Rd are one register, the total. Take the first of the run:

# %%
first = next(one for one in before if one.mnemonic == "FFMA")
drawing_ffma.instruction(first.word, title="The first FFMA: " + workbench_sass.line(first, width=0))

# %% [markdown]
# - **stall**: after how many cycles this warp's next instruction may be issued.
# - **yield** is stored inverted: 0 is yes. With a stall of 0, or of 12 and more, it means something else.
# - **write barrier** and **read barrier**: one of six counters, which an instruction of unknown duration
#   releases when it has written its result, or read its operands; 7 is none. An FFMA's duration is known.
# - **wait mask**: the counters that it waits for.
# - **reuse**: a bit for each source. The scale is the second.
#
# Now the same FFMA as rung s8 would have it if nothing yielded. Framed: what is different.

# %%
off = [one for one in code.instructions("off") if one.mnemonic == "FFMA"]
drawing_ffma.instruction(first.word, off[0].word, title=f"{workbench_sass.line(off[0])}, in mode off")

# %% [markdown]
# That is all that the pass ever changes: these two bits.

# %%
compiled = [one for one in before if one.mnemonic == "FFMA"]


def compare(i):
    drawing_ffma.instruction(compiled[i].word, off[i].word, title=workbench_sass.line(off[i]))


workbench.slider(compare, i=(0, len(compiled) - 1))

# %% [markdown]
# ## 2. What the compiler does by itself
#
# `yield` and `reuse` of a whole promotion, in four modes:
#
# - **off**: nothing yields, and every scale that the next instruction reads again is kept.
# - **compiler**: as it came.
# - **9/16**: the first 9/16 of the run as in full, the rest as in off. This was DeepGEMM's last choice.
# - **full**: the first use of a scale in the run, and every second one after it, yields. This was its first.

# %%
TITLES = {name: name.replace("_of_", "/") for name in MODES}
drawing_ffma.runs({TITLES[name]: code.run(name) for name in MODES})

# %% [markdown]
# Compare the second line with the last. Which compiler it is was printed above: nvcc 13.0 alternates by
# itself, as DeepGEMM's pass does. The run that is drawn is one of those in which both agree, but for its last
# FFMA; in others the compiler begins with the second FFMA in place of the first, so that every instruction
# differs from the pass's, and a few runs are less regular at their ends. nvcc 12.8 and those before it let
# none yield. In numbers, for all runs of both kernels of the library:

# %%
for name, mode in code.data["modes"].items():
    counts = f"{mode['yields']:3} FFMAs yield, {mode['reuses']:3} keep the scale"
    print(f"{TITLES[name]:8}: {counts}; {mode['changed']:3} bytes changed")
runs = code.data["differ"]
counts = ", ".join(f"{differ} of {length}" for differ, length in runs)
printed.show("FFMAs that are others in full than the compiler's, run by run:", counts)

# %% [markdown]
# It does not do it everywhere. These are the FFMAs of the other rungs, from the cards:

# %%
cards = rung_cards.load(measured.DATA / "cards.json")
for row in cards["rows"]:
    if row["sass"] and row["rung"] != rung.name:  # which would give an answer away
        ffmas, yielding = (
            sum(kernel[key] for kernel in row["sass"].values()) for key in ("FFMA", "FFMA, yielding")
        )
        print(f"{row['rung']:20} {ffmas:4} FFMAs, {yielding:3} of them yield")

# %% [markdown]
# So an honest measurement goes both ways: add the interleaving, as DeepGEMM did, and take away what the
# compiler has put there.
#
# ## 3. Finding them in the file
#
# A library is an ELF file. In one of its sections lies a **fat binary**, in that another ELF file with the
# machine code, in that a section for each kernel. `ffma.kernels` finds them, and `ffma.promotions` finds the
# runs: FFMAs between WGMMAs, as many as these have accumulators.

# %%
print(f"the library: {code.data['bytes']} bytes")
for kernel in code.data["kernels"]:
    begin, end, lengths = kernel["begin"], kernel["end"], kernel["runs"]
    print(f"kernel <{kernel['of']}>: bytes {begin} to {end}, {(end - begin) // 16} instructions,")
    print(f"    {len(lengths)} promotion(s), of {', '.join(map(str, sorted(set(lengths))))} FFMAs")

# %% [markdown]
# The kernel with [tiles](glossary.md#tile) of 256 x 128 has more promotions because its loop is unrolled, and
# because each of its consumers has two slices.
#
# It is easy to make a mistake in machine code, and such a mistake is silent. So the pass checks first. A run
# must multiply each accumulator once, and all by the same few scales; no FFMA may have a modifier, or a stall
# for which the yield bit has another meaning. And it checks afterwards: nothing but the two bits may differ,
# and every scale that is kept must be read by the very next instruction. If a check fails, the file stays as
# it was. These are the checks:

# %%
workbench_sass.of_pass("^def _checked", "^    return run")

# %% [markdown]
# ## 4. The rewriting
#
# For each FFMA of a run it decides two things, whether it yields, and whether it keeps the scale:

# %%
workbench_sass.of_pass("^def _controls", "^        yield ffma")

# %% [markdown]
# The first eight, from the compiler's to off:

# %%
start = before.index(compiled[0])
part = slice(start, start + 8)
workbench_sass.change(before[part], code.instructions("off")[part])

# %% [markdown]
# ... and all that changes from the compiler's to full, in this run:

# %%
pairs = zip(before, code.instructions("full"), strict=True)
different = [pair for pair in pairs if pair[0].word != pair[1].word]
workbench_sass.change(*zip(*different, strict=True)) if different else print("nothing, in this run")

# %% [markdown]
# ## The kernel
#
# The [emulator](glossary.md#emulator) runs source, not SASS. To it s8 is s7, and all modes are the same; on a
# GPU this cell runs the rewritten code. Yields and reuse decide *when* things happen, so the bits of D must
# be the same.

# %%
problem = workbench.problem(m=600, n=328, k=640)  # ragged: the last tiles of 128 x 192 are not whole
right = workbench.expected(rung.name, problem)
for name, mode in MODES.items():
    d = workbench.multiply(dataclasses.replace(rung, name=f"s8_{name}", mode=mode), problem)
    print(f"{TITLES[name]:8}: the expected bits:", workbench.difference(d, right) is None)
print("relative error:", metrics.relative_error(d, gemm.dense(*problem.arrays)))
print("where:", "on the GPU" if workbench.HOPPER else "on the emulator")

# %% [markdown]
# ## How fast it is: first the prediction
#
# What can it gain at most? In the model of s7 a consumer's promotion takes 1.5 cycles for each column: 192
# for a slice, of which the `fmaf` need only the half-cycle of each column that 64 rows take on 128 [CUDA
# cores](glossary.md#cuda-core), 64 in all. That is the last unit that was not a term of its own, the **issue
# slots**. Suppose that yielding makes everything else go away, as if no FFMA ever waited behind another
# warp's.
#
# How many microseconds will it really be for 4096 x 7168 x 2048? And the rung is built in the mode that wins,
# by the mean over all shapes. Which of the four is it? Guess; by how much it wins comes below.

# %%
constants.show("s8_ffma_interleave")

# %% tags=["guess"]
exercises.guess("10.us", None)
exercises.guess("10.mode", None, *TITLES.values())

# %%
model.code(model.s8)

# %%
size = (4096, 7168, 16384)
evidence.predict(rung.name, size)
print(f"at most {1 - model.s8(*size).us / model.s7(*size).us:.0%} less time than s7, by the model")

# %% [markdown]
# The tensor cores are the longest term then, so more cannot be gained by any promotion. Beside the other
# rungs:

# %%
ladder = [*list(gl.rungs)[1:9], "cublaslt_blockwise", "cublaslt_tensorwise"]
notes = drawing.bars(ladder, size, marked=rung.name)
tflops = {
    one.impl: one.tflops[size] for one in measured.series(measured.recorded(), "dirty") if size in one.tflops
}
print(f"{tflops[rung.name] / tflops['s7_persistent']:.3f} times as fast as s7_persistent")
if measured.recorded()["meta"]["sources"] != build.sources_digest():
    print("The kernels' files have changed since these times were taken (lesson 13: sources). That may be a")
    print("name, or this rung's mode: a digest tells that something is different, not what.")
print(*notes, sep="\n")

# %% [markdown]
# The bound was far from what came:

# %%
evidence.compare(rung.name, "10.us")
evidence.thread(rung.name)

# %% [markdown]
# So most of the 1.5 cycles are not FFMAs that stand in the way of another warp's instruction. We think that
# they are the warp's own waiting, for the WGMMA's registers and at the turn of the loop, which no bit in the
# FFMAs can take away; nothing here measures that by itself.
#
# Two numbers do not tell whether a small difference is one. This is each mode against the compiler's own
# code, measured in one process:

# %%
data = measured.load(measured.DATA / "interleave.json")
built = next(name for name, mode in MODES.items() if mode == ffma.DEFAULT_MODE)
drawing_ffma.modes(data)

# %% [markdown]
# Where a line does not touch the grey band, the percentiles of the two are apart: nine calls in ten of the
# one are faster than nine in ten of the other. Count:

# %%
times = {(row["impl"], (row["m"], row["n"], row["k"])): row for row in data["rows"]}
shapes = list(dict.fromkeys(shape for _, shape in times))
mean = {"compiler": 0.0}
for name in ("off", "full", "9_of_16"):
    mine, base = ([times[f"s8_{mode}", shape] for shape in shapes] for mode in (name, "compiler"))
    ratio = [one["us"] / other["us"] for one, other in zip(mine, base, strict=True)]
    mean[name] = np.exp(np.mean(np.log(ratio))) - 1
    slower = sum(one["us_p10"] > other["us_p90"] for one, other in zip(mine, base, strict=True))
    faster = sum(one["us_p90"] < other["us_p10"] for one, other in zip(mine, base, strict=True))
    print(f"{TITLES[name]:5} {mean[name]:+5.1%} time, geometric mean; by more than the spread", end=" ")
    print(f"faster at {faster} and slower at {slower} of {len(shapes)} shapes")
best = min(mean, key=mean.get)
print(f"So: without any yield, {mean['off']:+.1%}; as the rung is built, {mean[built]:+.1%};", end=" ")
print(f"the best of these modes, {TITLES[best]}, {mean[best]:+.1%}.")
exercises.found("10.mode", TITLES[best])
meta = data["meta"]
print(f"{meta['gpu']}, driver {meta['driver']}, nvcc {meta['nvcc']}; {meta['date']}, ", end="")
print(f"kernel sources {meta['sources'][:12]}")

# %% [markdown]
# Read it line by line:
#
# - **off** says what yielding is worth at all. A compiler that does not do it gives you code like this.
# - **full** says what DeepGEMM's first pass still adds to a compiler that alternates by itself.
# - **9/16** says whether yielding all the way is too much.
#
# The last line is the answer, and the rung is built that way. Look at the lines of the picture again: 9/16
# wins most where k is long, 1.1 to 1.5 % from k = 7168 on, and 0.2 to 0.8 % below; all six shapes have 4096
# rows. Full changes little. The compiler alternates, too, and with which of two FFMAs a run begins seems to
# make no difference.
#
# Against rung s7 alone you would see only what the pass adds to what the compiler has done; against off
# alone, you would also count what everybody with such a compiler has already. A measurement of an idea
# needs both.
#
# ## What limits it now
#
# Leave the instructions, and look at the shapes. This is the rung against the [ceiling](glossary.md#ceiling),
# which has no block scales and no promotion:

# %%
notes = drawing_ffma.of_ceiling(rung.name)
print(*notes, sep="\n")

# %% [markdown]
# One bar is longer than 100: the ceiling is an easier product, not a bound, and at that shape its kernel is
# not the best that there could be. The short bars are where D is small: two sizes of tile, made for large m,
# cannot fit all shapes. Do what the launcher does, and count:

# %%
sms = data["meta"]["num_sms"]
for m, n in ((64, 2112), (64, 7168), (4096, 2112), (4096, 7168)):
    pairs = {tile: -(-m // tile[0]) * -(-n // (2 * tile[1])) for tile in ((256, 128), (128, 192))}
    tile = min(pairs, key=lambda tile: -(-pairs[tile] // (sms // 2)) * tile[0] * tile[1])
    computed = 2 * pairs[tile] * tile[0] * tile[1]
    print(
        f"{m} x {n}: tiles of {tile[0]} x {tile[1]}, {min(sms, 2 * pairs[tile])} of {sms} SMs have one;",
        end=" ",
    )
    print(f"{m * n / computed:.0%} of what they compute is D")

# %% [markdown]
# Idle SMs, and rows of tiles that go nowhere. The [next rung](11_production.ipynb) is a kernel whose tile,
# stages and [clusters](glossary.md#cluster) are chosen for the shape. The card of this one:

# %%
workbench.card(rung.name)

# %% [markdown]
# ## Break it
#
# The emulator cannot help: it has no machine code. Here the pass itself must refuse. Predict what it objects
# to.
#
# **1.** The FFMA before the scale changes is told to keep it.

# %% tags=["guess"]
OBJECTIONS = ("to nothing", "to one FFMA", "to every FFMA that yields", "to all of them")
exercises.guess("10.break1", None, *OBJECTIONS)

# %% tags=["break"]
run = code.run("off")
last = next(i for i in range(len(run)) if run[i].scale != run[i + 1].scale)
YIELD, REUSE = 1 << 109, 1 << 123  # yield is stored inverted


def objects_to(run):
    """What the pass finds wrong with a run, by number."""
    found = ffma.wrong_reuse(run)
    return [run.index(one) for one in found] or "nothing"


def in_words(run):
    """The one of OBJECTIONS that the pass has."""
    wrong = {id(one) for one in ffma.wrong_reuse(run)}
    yielding = {id(one) for one in run if one.yields}
    sets = (set(), wrong if len(wrong) == 1 else None, yielding, {id(one) for one in run})
    return OBJECTIONS[sets.index(wrong)] if wrong in sets else "to some others"


kept = [dataclasses.replace(one, word=one.word | REUSE) if i == last else one for i, one in enumerate(run)]
print("before:", objects_to(run), " after:", objects_to(kept))
exercises.found("10.break1", in_words(kept))

# %% [markdown]
# <details><summary>Why</summary>
#
# The next FFMA reads another scale in that place. What a GPU does with a register that is kept and not read
# is not documented, so the pass takes no chance.
#
# </details>
#
# **2.** No reuse is given up: in mode full all yields stay, and every scale is kept as in mode off.

# %% tags=["guess"]
exercises.guess("10.break2", None, *OBJECTIONS)

# %% tags=["break"]
both = [
    dataclasses.replace(one, word=one.word & ~YIELD if interleaved.yields else one.word)
    for one, interleaved in zip(run, code.run("full"), strict=True)
]
printed.show("it objects to", objects_to(both))
exercises.found("10.break2", in_words(both))

# %% [markdown]
# <details><summary>Why</summary>
#
# These yield and keep at the same time. Another warp may come between, and overwrite what was kept: then the
# next FFMA would multiply with some other number. Nothing would crash.
#
# </details>
#
# **3.** A scale is computed as fmaf(a, b, 0), which is an FFMA too, in place of a multiplication. Does the
# pass rewrite the promotion even so?

# %% tags=["guess"]
exercises.guess("10.break3", None, "it rewrites", "it refuses")

# %% tags=["break"]
product = "scale_a[slice][i / 2 % 2] * scale_b[i * 2 / kStoreN % kSegments]"
fused = "fmaf(scale_a[slice][i / 2 % 2], scale_b[i * 2 / kStoreN % kSegments], 0.0f)"
changed = workbench.changed("s7_persistent", (product, fused)).source
workbench_sass.refused(
    lambda: build.compile(changed, target="cuda", sass_pass=ffma.sass_pass("full")), guess="10.break3"
)

# %% [markdown]
# <details><summary>Why</summary>
#
# D would have the same bits. But now there are FFMAs between the WGMMAs that are no promotion, and a yield
# there might be as good or as bad as anywhere: the pass only touches what it has understood.
#
# </details>
#
# **4.** nvcc compresses the machine code.

# %% tags=["guess"]
exercises.guess("10.break4", None, "it rewrites", "it refuses")

# %% tags=["break"]
text, flags = rung.source, ["--compress-mode=size"]
workbench_sass.refused(
    lambda: build.compile(text, target="cuda", extra_flags=flags, sass_pass=ffma.sass_pass("full")),
    guess="10.break4",
)

# %% [markdown]
# <details><summary>Why</summary>
#
# Without compression an instruction can be changed in place, and nothing else moves. The pass says that it
# cannot, where it would otherwise find no FFMA.
#
# </details>
#
# ## Exercises
#
# **1.** Read the control bits of instruction number `i` of the listing. `words[i]` has its 128 bits. Return
# (stall, whether it yields, the four bits of reuse).

# %%
words = [one.word for one in before]


# %% tags=["exercise"]
def control(i):
    high = words[i] >> 64
    return high >> 41, False, 0


# %% tags=["check"]
exercises.check("10.1", control)

# %% [markdown]
# **2.** May an FFMA keep its scale? `gap` is how many bytes behind it the next FFMA stands, `scale` and
# `next_scale` are the registers that the two read, `destination` is the register that the first one writes.


# %% tags=["exercise"]
def keeps(gap, scale, next_scale, destination):
    return True


# %% tags=["check"]
exercises.check("10.2", keeps)

# %% [markdown]
# **3.** Does FFMA number `i` of a run yield, if the first `sixteenths` sixteenths of the run are interleaved?
# `scales[i]` is the register with its scale. These are the scales of the run above; the check has another
# run, too.

# %%
scales = [one.scale for one in code.run("compiler")]


# %% tags=["exercise"]
def yields(i, sixteenths, scales):
    return i < sixteenths


# %% tags=["check"]
exercises.check("10.3", yields)

# %% [markdown]
# **4.** Take a slice of 64 rows and `columns` columns, and 128 of k. Return the least cycles that its WGMMAs
# take, and the share of a scheduler's issue slots, in these cycles, that its promotion's FFMAs need.


# %% tags=["exercise"]
TENSOR = 8192  # FP8 operations of an SM's tensor cores in a cycle


def cycles(columns):
    return 0, 0.0


# %% tags=["check"]
exercises.check("10.4", cycles)

# %% [markdown]
# **5.** Kernel lines. This rung hides one consumer's promotion behind the other's WGMMAs. One consumer could
# do it alone: it has two slices, so let the second one multiply while the first is promoted. In
# s6_warp_specialized give each slice accumulators of its own, `partial[slice]` (the check declares them), and
# write the loop over the slices anew: both groups are issued before the first is waited for. Below is the
# rung's own order, which the check tells from yours by the groups that are in flight.

# %% tags=["exercise"]
overlap = """
#pragma unroll
for (int slice = 0; slice < kSlices; ++slice) {
    const uint64_t slice_a = advance(desc_a, slice * kSliceM * kSwizzleRow);
    ptx::wgmma_fence();
#pragma unroll
    for (int k = 0; k < kTileK; k += kWgmmaK)
        ptx::wgmma<kTileN>(partial[slice], advance(slice_a, k), advance(desc_b, k), k != 0);
    ptx::wgmma_commit_group();
    ptx::wgmma_wait_group<0>();
    if (slice == kSlices - 1) {
        __syncwarp();
        if (ptx::laneid() < kCluster)
            ptx::mbarrier_arrive_cluster(ptx::mapa(ring.stage + kEmpty, ptx::laneid()));
        ring.advance();
    }
#pragma unroll
    for (int i = 0; i < kRegisters; ++i)
        total[slice][i] = fmaf(partial[slice][i], scale_a[slice][i / 2 % 2] * scale_b, total[slice][i]);
}
"""

# %% tags=["check"]
exercises.check("10.5", overlap)

# %% [markdown]
# <details><summary>Why the ladder does not do that</summary>
#
# Count the accumulators of a thread: 2 x 64 in `total`, and now 2 x 64 in `partial`. That is 256 registers
# for them alone, and `setmaxnreg` gives a consumer 232: the compiler would have to keep some in local memory.
# With one `partial` it is the other consumer whose WGMMAs run while this one promotes.
#
# </details>

# %% [markdown]
# Next: [one kernel for every shape](11_production.ipynb).
