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
# # Start here
#
# You are about to read one matrix product several times. Each time it is a complete CUDA kernel for NVIDIA's
# Hopper GPUs, and each time it has one idea more than the time before. The kernels are the
# *[rungs](glossary.md#rung)* of a ladder.
#
# You need NumPy, and to have seen one CUDA kernel. You do not need a GPU: the same kernel files also run on a
# CPU, on an emulated piece of a Hopper GPU. If you have a Hopper GPU, the cells below use it.
#
# > **Needs:** NumPy, and to have seen one CUDA kernel. **Time:** 15 minutes to read, 25 for guesses and
# > exercises; its cells run in half a minute, less when its kernels have been compiled. **May be skipped:**
# > nothing.

# %%
from gemm_ladder.figures import lessons

lessons.enter()  # makes this folder the working directory, wherever Jupyter was started

import gemm_ladder as gl
import numpy as np
import torch
from gemm_ladder.figures import measured
from gemm_ladder.ref import fp8, gemm, metrics
from workshop import drawing, exercises, workbench

drawing.style()
print("The kernels run on", "this machine's Hopper GPU." if workbench.HOPPER else "the emulator.")

# %%
drawing.where("GPU", "SM")

# %% [markdown]
# ## The product
#
# $$D_{ij} = \sum_k \; A_{ik} \, s^A_{i,\lfloor k/128 \rfloor} \;
# B_{jk} \, s^B_{\lfloor j/128 \rfloor,\lfloor k/128 \rfloor}$$
#
# It is the product of DeepSeek-V3's linear layers ("DeepSeek-V3 Technical Report", arXiv:2412.19437, section
# 3.3).
#
# - **A** is $m \times k$ and **B** is $n \times k$. Both have k as their contiguous dimension, so each
#   element of D is the product of a row of A and a *row* of B. Their elements are numbers of 8 bits, in the
#   format **[E4M3](glossary.md#e4m3)**.
# - Eight bits do not reach far, so blocks of elements share a **scale**, an ordinary 32-bit float. A has one
#   for each run of 128 elements of a row. B has one for each block of 128 x 128.
# - **D** is $m \times n$, in [BF16](glossary.md#bf16): 16 bits, with the exponent range of a 32-bit float.
#
# [The next lesson](01_fp8_numbers.ipynb) is about these numbers. Here is the formula as a program.


# %%
def product(a, sfa, b, sfb):
    """a [m, k], sfa [m, k / 128], b [n, k], sfb [n / 128, k / 128]: D, float64 [m, n]."""
    a, sfa, b, sfb = (x.astype(np.float64) for x in (a, sfa, b, sfb))
    d = np.zeros((len(a), len(b)))
    for block in range(sfa.shape[1]):
        k = slice(128 * block, 128 * (block + 1))
        scale = np.outer(sfa[:, block], np.repeat(sfb[:, block], 128)[: len(b)])
        d += scale * (a[:, k] @ b[:, k].T)
    return d


# %% [markdown]
# Make two matrices of normal numbers, and cast them as DeepSeek-V3 does. `gemm.dense` is the repository's own
# definition, rung `s0_numpy`: it is short, slow, in float64, and all other rungs are compared with it.

# %%
rng = np.random.default_rng(0)
a, sfa = fp8.per_token_cast_to_fp8(rng.standard_normal((64, 256)).astype(np.float32))
b, sfb = fp8.per_block_cast_to_fp8(rng.standard_normal((256, 256)).astype(np.float32))
for name, array in {"A": a, "scales of A": sfa, "B": b, "scales of B": sfb}.items():
    print(f"{name:12} {array.dtype!s:14} {array.shape}")

exact = gemm.dense(a, sfa, b, sfb)
print("\nproduct() against rung s0_numpy:", metrics.relative_error(product(a, sfa, b, sfb), exact))

# %% [markdown]
# The loop over blocks of 128 in `product` is the loop of every kernel that you will read. Inside a block the
# scales are constant, so the hardware can multiply plain 8-bit numbers; after each block, the kernel has to
# scale the sum and add it to a total. That step is called **[promotion](glossary.md#promotion)**, and hiding
# its cost is half of what the ladder is about.
#
# ## The rungs

# %%
for rung in gl.rungs.values():
    print(f"{rung.name:20} {rung.idea}")

# %% [markdown]
# ## Running one
#
# A rung is called with PyTorch tensors: two pairs of matrix and scales, and the output. CPU tensors run on
# the [emulator](glossary.md#emulator), tensors of a Hopper GPU on the GPU. The first call compiles the
# kernel, which takes some seconds; the result is kept for later.

# %%
lhs = workbench.tensor(a), workbench.tensor(sfa)
rhs = workbench.tensor(b), workbench.tensor(sfb)
d = torch.empty(64, 256, dtype=torch.bfloat16, device=workbench.DEVICE)
gl.rungs["s3_wgmma"](lhs, rhs, d)

rounded = gemm.to_bf16(exact).astype(np.float64)
print("s3_wgmma against the definition:       ", metrics.relative_error(d.cpu().double().numpy(), exact))
print("the definition, itself rounded to BF16:", metrics.relative_error(rounded, exact))

# %% [markdown]
# The two errors are nearly the same: the kernel's error is that of its output format. **Relative error**
# means, here and in all lessons, $\lVert x - y \rVert / \lVert y \rVert$, where y is the exact matrix and the
# norm goes over all of its elements.
#
# ## What the emulator does
#
# The emulator runs the kernel's own text, compiled by your C++ compiler. Every CUDA thread is there, and
# takes turns with the others in an order that a **[seed](glossary.md#schedule)** decides. Another seed is
# another order.

# %%
on_cpu = workbench.Problem(a, sfa, b, sfb)
results = []
for seed in range(3):
    with gl.emulator(seed=seed, record=True) as run:
        results.append(workbench.multiply(gl.rungs["s3_wgmma"], on_cpu, "cpu"))
    print(f"seed {seed}: {run.steps} steps of the scheduler, {len(run.events)} events")
print(
    "the same bits each time:",
    all((result.view(np.uint16) == results[0].view(np.uint16)).all() for result in results),
)

# %% [markdown]
# With `record=True` it writes down what happened: of what a [warp](glossary.md#warp) does together one event,
# so that the two blocks of 128 threads have 8 `thread_start`. These are the kinds of events of the last run,
# most of them named after the [PTX](glossary.md#ptx) instruction that caused them; later lessons say what
# those do, and draw them. ([WGMMA](glossary.md#wgmma) is the instruction of the [tensor
# cores](glossary.md#tensor-core).)

# %%
for kind, count in zip(*np.unique(run.events["kind"], return_counts=True), strict=True):
    print(f"{count:4} {kind}")

# %% [markdown]
# The emulator is strict. Where the hardware promises nothing, it does the worst that is allowed: a copy
# arrives late, and a write stays invisible until the instruction that makes it visible. So a mistake that a
# GPU forgives on most days has a symptom here, and often a name. Take one line out of `s3_wgmma`, the fence
# between writing [shared memory](glossary.md#shared-memory) and letting the tensor core read it.
#
# Guess first: what will happen, and which line of [s3_wgmma.cu](../kernels/stages/s3_wgmma.cu) is it? There
# are two fences in it, and the comments beside them help. Put your guess in place of the two `None`: the
# line, or a piece of it that no other has, and one of four outcomes: "right" (the right answer all the same),
# "wrong" (another answer, without an error), "fault" (the emulator names what was done wrong) or "hang" (a
# thread waits for ever). The cell after it shows both. If you have no guess, run them as they are.

# %% tags=["guess"]
exercises.guess_break("00.break1", line=None, then=None)

# %% tags=["break"]
workbench.break_it("s3_wgmma", on_cpu, ("ptx::fence_proxy_async();", ""), guess="00.break1")

# %% [markdown]
# [Lesson 04](04_wgmma.ipynb) says what that fence is. You will often do this: predict what a fault does,
# plant it, and see whether you were right. A broken kernel runs in a process of its own, so your notebook
# survives a crash or a hang.
#
# ## How fast
#
# The emulator says whether a kernel is right, not how fast it is. For that there are measurements: every
# rung was timed on a Hopper GPU, beside NVIDIA's own libraries, and the results are in
# [figures/data](../figures/data). The lessons read them from there.
#
# The unit is **[TFLOPS](glossary.md#tflops)**: $10^{12}$ floating-point operations a second, where one
# multiplication and one addition are two. The [ceiling](glossary.md#ceiling), with a star in the pictures, is
# cuBLASLt with one scale for a whole matrix. That is not the same product: it has no promotion. cuBLASLt is
# NVIDIA's library; the other grey bar is its product with the same scales as ours. Where a lesson has
# DeepGEMM beside it, that is DeepSeek's library. The times are of an H200, which is an H100 with more and
# faster memory, 141 GB and 4.8 TB/s; the map of the chip has an H100's figures, 80 GB and 3.35 TB/s.
#
# How many times as fast as the naive kernel, `s1_naive`, is the last rung, `s9_production`? Guess. (The front
# page of the repository has a table of all rungs' speeds at this shape. If you have seen it, you know. The
# later lessons ask for the rungs between these two, one at a time, and mostly at another shape.)

# %% tags=["guess"]
exercises.guess("00.ladder", None)

# %%
size = (4096, 7168, 16384)
impls = ["s1_naive", "s9_production", "cublaslt_blockwise", "cublaslt_tensorwise"]
for line in drawing.bars(impls, size):
    print(line)
speeds = {
    one.impl: one.tflops[size] for one in measured.series(measured.recorded(), "dirty") if size in one.tflops
}
exercises.found("00.ladder", speeds["s9_production"] / speeds["s1_naive"], "times as fast")

# %% [markdown]
# The axis is logarithmic: from one labelled tick to the next is ten times as fast. What lies between the two
# blue bars is the course. [The measurements](../figures/README.md) have all rungs at all shapes; look at them
# after the lessons, as these will ask you to guess.
#
# ## How a lesson goes
#
# 1. What held the rung below back.
# 2. The one new idea, drawn.
# 3. The new instructions, each tried alone.
# 4. The kernel, run and checked; its speed; what holds it back now.
# 5. **Break it**: predict what a fault does, then plant it.
# 6. **Exercises**. You change a cell, the cell below says "Right" or what is wrong. `exercises.hint("00.1")`
#    gives a hint on the first exercise below, and each further call another one: a nudge, the idea, nearly
#    the line. After the third, `exercises.answer("00.1")` shows the answer.
#
# To work in a copy of the lessons, without outputs and answers, which remembers what you have solved and
# guessed, say `python -m gemm_ladder lessons start DIR`; `python -m gemm_ladder lessons progress DIR` tells
# what comes next. In a copy, the cells that break a kernel are folded, so that you can guess the line: run
# them as they are, and unfold them afterwards.
#
# ## Exercises
#
# **1.** How many TFLOPS are `us` microseconds at m x n x k? Change the function until the check says "Right";
# it compares it at every shape that was measured.


# %% tags=["exercise"]
def tflops(m, n, k, us):
    return m * n * k / us


# %% tags=["check"]
exercises.check("00.1", tflops)

# %% [markdown]
# **2.** Which two scales belong to the product of A[i, k] and B[j, k]? Return their indices: a pair for
# `sfa`, and a pair for `sfb`.


# %% tags=["exercise"]
def scales_of(i, j, k):
    return (i, 0), (0, 0)


# %% tags=["check"]
exercises.check("00.2", scales_of)

# %% [markdown]
# Next: [the numbers themselves](01_fp8_numbers.ipynb).
