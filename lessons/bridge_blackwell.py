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
# # Bridge: what Blackwell changes
#
# > **Not run.** Everything here is from documentation and published source, which is linked where it is
# > used. This repository has no Blackwell kernel, its emulator has no Blackwell instruction, and nothing
# > was measured on a Blackwell GPU. The cells compute with numbers from those sources.
#
# Hopper's successor in the data centre, Blackwell (B200, compute capability 10.0), has another tensor core.
# `wgmma` does not exist on it. Its instructions are the family `tcgen05`. What becomes of the ladder?
#
# You need the lessons up to [11](11_production.ipynb), and [05](05_precision.ipynb) for the last section.
# Reading takes about 40 minutes.

# %%
from gemm_ladder.figures import lessons

lessons.enter()  # makes this folder the working directory, wherever Jupyter was started

import numpy as np
from gemm_ladder.ref import fp8, metrics
from matplotlib import pyplot as plt
from workshop import drawing

drawing.style()

# %% [markdown]
# ## The problem that Blackwell answers
#
# A tensor core of Blackwell multiplies FP8 [twice as
# fast](https://docs.nvidia.com/cutlass/media/docs/cpp/blackwell_functionality.html) as Hopper's. The CUDA
# cores do not add twice as fast: an SM still has 128 lanes for FP32. Take a tile of 128 x 256 and one K
# block of 128, and count cycles of the tensor cores and of the FFMAs of promotion.
#
# Guess before you run the cell: while the tensor cores multiply one K block, which share of the FFMA slots
# does its promotion need, on Hopper and at twice the speed?

# %%
LANES = 128  # FFMAs a cycle and SM: "Arithmetic Instructions", CUDA C++ Programming Guide
HOPPER = 4096  # FP8 multiply-adds a cycle and SM: 1979 TFLOPS: an H100 SXM, 132 SMs, at 1.83 GHz
tile_m, tile_n, block_k = 128, 256, 128
for name, rate in (("Hopper", HOPPER), ("Blackwell", 2 * HOPPER)):
    tensor, promotion = tile_m * tile_n * block_k / rate, tile_m * tile_n / LANES
    print(
        f"{name:9}: {tensor:4.0f} cycles of WGMMA or MMA, {promotion:.0f} of FFMA: {promotion / tensor:.0%}"
    )

# %% [markdown]
# Half of all slots, for the FFMAs alone. The rungs from s6 on work to hide a quarter. Promotion had to go,
# and three changes of the hardware make that possible.
#
# ## 1. Sums have a memory of their own: TMEM
#
# On Hopper the sums are in the registers of the warps that issued the WGMMA. That is why a consumer needs
# 232 registers, why [setmaxnreg](08_warp_specialized.ipynb) exists, and why a tile of 256 x 128 fills two
# warpgroups.
#
# A `tcgen05.mma` writes its sums into **Tensor Memory**. An SM has 128 lanes x 512 columns of 32 bits of
# it, [256 KB](https://triton-lang.org/main/getting-started/tutorials/gluon/tcgen05.html), as much again as
# it has registers. The kernel [allocates
# columns](https://docs.nvidia.com/cuda/parallel-thread-execution/#tcgen05-memory-alloc-manage-instructions)
# of it, a power of two and at least 32, and gives them back. Threads read it with `tcgen05.ld`, and each
# warp of a warpgroup reaches its own 32 lanes only: a fragment again, but of rows, and with a memory behind
# it.
#
# Nobody's registers wait for a multiplication, so **one thread** [issues
# it](https://github.com/NVIDIA/cutlass/blob/main/media/docs/pythonDSL/mma_docs/tcgen05_programming.rst).
# There is no warpgroup that has to come together, no `wgmma_fence`, and no wait that returns registers.
# `tcgen05.commit` has an mbarrier told when the multiplications before it are done, as TMA tells one when
# bytes have arrived. The producer and the multiplier have become the same kind of thing: one thread, a
# ring, mbarriers on both sides.
#
# How many tiles of sums fit, beside the scales that section 3 is about? With two, the epilogue of one tile
# runs while the next one is multiplied.

# %%
COLUMNS = 512


def tiles_of_sums(tile_m, tile_n, scales=True):
    """How many tiles' sums fit into TMEM at once. 128 rows' scales of four K blocks take four columns."""
    taken = 4 * (-(-tile_m // 128) - (-tile_n // 128)) if scales else 0
    return (COLUMNS - taken) // (tile_n * tile_m // 128)


for tile in ((128, 128), (128, 192), (128, 224), (128, 256), (256, 128)):
    both = tiles_of_sums(*tile), tiles_of_sums(*tile, scales=False)
    print(f"tile {tile[0]} x {tile[1]}: {both[0]} with scales, {both[1]} without")

# %% [markdown]
# A tile of 128 x 256 fits twice without scales, and once with them: the scales' twelve columns are too
# many. [DeepGEMM's
# kernel](https://github.com/deepseek-ai/DeepGEMM/blob/main/deep_gemm/include/deep_gemm/impls/sm100_fp8_gemm_1d1d.cuh)
# decides by this sum, at compile time, whether it has one stage of sums or two.
#
# ## 2. Two CTAs multiply together
#
# Rung [s5](07_tma_multicast.ipynb) has two CTAs share loads of one operand: each has the whole of it in its
# own shared memory, and L2 is read once. Shared memory still holds it twice, and each tensor core reads its
# own copy.
#
# With `cta_group::2` a [pair of
# CTAs](https://github.com/NVIDIA/cutlass/blob/main/media/docs/pythonDSL/mma_docs/tcgen05_programming.rst)
# executes *one* MMA of 256 rows. Each CTA brings its own 128 rows of A and **half of B**, and each tensor
# core reads the other half from its neighbour's shared memory. The sums of the upper 128 rows are in one
# CTA's TMEM, the others in its neighbour's. One thread of one CTA, the leader, issues for both.
#
# Count the bytes that a CTA has in shared memory for a K block, and the operations that it does with each:

# %%
for name, rows, columns, bytes_a, bytes_b in (
    ("s6, a pair shares A by multicast", 256, 128, 256, 128),
    ("one CTA, 128 x 256", 128, 256, 128, 256),
    ("a pair, 256 x 256 together", 128, 256, 128, 128),
):
    stage = (bytes_a + bytes_b) * block_k
    operations = 2 * rows * columns * block_k / stage
    print(f"{name:34}: {stage / 1024:3.0f} KB a stage, {operations:.0f} operations a byte")

# %% [markdown]
# That pays twice: in stages, as more of them fit, and in the speed at which shared memory has to be read,
# which the doubled tensor core would otherwise run into.
#
# ## 3. Scales are operands
#
# With `.block_scale` the instruction [multiplies by scales
# itself](https://docs.nvidia.com/cuda/parallel-thread-execution/#tcgen05-block-scaling):
#
# $$D_{ij} \mathrel{+}= \sum_k \; (A_{ik} \, s^A_{i,\lfloor k/32 \rfloor}) \;
# (B_{jk} \, s^B_{j,\lfloor k/32 \rfloor})$$
#
# A sum then goes over all of k in TMEM, and there is nothing to promote. But look at what the scales may
# be. For 8-bit numbers (`kind::mxf8f6f4`) they are
# [UE8M0](https://docs.nvidia.com/cutlass/media/docs/cpp/blackwell_functionality.html): 8 bits of exponent,
# no sign, no digits. **A scale is a power of two.** There is one for each 32 of k, and one for each row, of
# B too. The formats are the [OCP's MX
# formats](https://www.opencompute.org/documents/ocp-microscaling-formats-mx-v1-0-spec-final-pdf).
#
# Scales go from global memory to shared memory by TMA, and from there [to
# TMEM](https://github.com/NVIDIA/cutlass/blob/main/media/docs/pythonDSL/mma_docs/tcgen05_programming.rst)
# by `tcgen05.cp`, in a layout of their own: 128 rows in 32 lanes. DeepGEMM has a warp that does nothing but
# bring them into that layout.
#
# DeepSeek-V3's scales, one for each 1 x 128 of A and 128 x 128 of B, still fit: the same scale is used four
# times along k, and for 128 rows of B. Only they have to be powers of two, and on Hopper they are any FP32
# number. `use_ue8m0=True` in the casts of this repository and of DeepGEMM rounds them up. What does that
# cost in precision? This cell is run, as it needs no Blackwell: normal numbers, multiplied exactly after
# each cast.

# %%
rng = np.random.default_rng(0)
a, b = (rng.standard_normal((size, 2048)).astype(np.float32) for size in (128, 256))
exact = a.astype(np.float64) @ b.astype(np.float64).T


def product_error(use_ue8m0, gran_k):
    """Relative error of the product after both operands were cast with a scale for each 1 x gran_k."""
    cast = [fp8.per_token_cast_to_fp8(x, use_ue8m0=use_ue8m0, gran_k=gran_k) for x in (a, b)]
    values = [codes.astype(np.float64) * np.repeat(scales, gran_k, 1) for codes, scales in cast]
    return metrics.relative_error(values[0] @ values[1].T, exact)


bars = {
    f"{'power of two' if ue8m0 else 'FP32'}\n1 x {gran}": product_error(ue8m0, gran)
    for gran in (128, 32)
    for ue8m0 in (False, True)
}
_, axes = plt.subplots(figsize=(7, 2.6))
axes.bar(bars.keys(), bars.values(), color=[drawing.BLUE, drawing.ORANGE] * 2, width=0.6)
axes.set_ylabel("relative error")
axes.set_title("What is lost when both operands are cast")
plt.show()
for name, error in bars.items():
    print(f"{name.replace(chr(10), ', '):22} {error:.4f}")
for gran in (128, 32):
    fp32, power = (bars[f"{kind}\n1 x {gran}"] for kind in ("FP32", "power of two"))
    print(f"1 x {gran:3}: powers of two have {power / fp32 - 1:.0%} more error")

# %% [markdown]
# For normal numbers a power of two costs 3 % more error where 128 numbers share a scale, and 10 % where 32
# do. E4M3 is itself a floating-point format, so a scale that is up to twice too large costs digits only where
# numbers become subnormal. With FP32 scales shorter runs gain something, because the largest number of a run
# is exact; a power of two does not give them that. [Lesson 05](05_precision.ipynb) has outliers, for which it
# may be different: try its activations here.
#
# What if the scales may not be changed, as they came with a checkpoint? Then `kind::f8f6f4`, without
# scales, adds one K block into TMEM, and the CUDA cores promote from there: section "The problem" says what
# share of their time that takes.
#
# ## The ladder, rung by rung
#
# | rung | on Hopper | on Blackwell |
# |---|---|---|
# | s2_tiled | tiles in shared memory and registers | the same |
# | s3_wgmma | swizzle, descriptors | the same, in new fields |
# | | WGMMA by four warps, sums in registers | `tcgen05.mma` by one thread, sums in TMEM |
# | | promotion | scales in the instruction |
# | s4_tma | TMA, mbarriers | the same; `tcgen05.commit` arrives at them, too |
# | s5_tma_multicast | two CTAs share loads | and a pair shares what is in shared memory |
# | s6_warp_specialized | a producer, two consumers, `setmaxnreg` | warps that load, multiply, store |
# | s7_persistent | CTAs that stay, TMA store | the epilogue runs beside the next tile |
# | s8_ffma_interleave | control bits of the promotion's FFMAs | nothing is left to interleave |
# | s9_production | tile shapes by waves | the same question, with larger tiles |
#
# Persistent CTAs may also ask the hardware for their next tile: [cluster launch
# control](https://docs.nvidia.com/cutlass/media/docs/cpp/blackwell_cluster_launch_control.html).
#
# The warps of [DeepGEMM's
# kernel](https://github.com/deepseek-ai/DeepGEMM/blob/main/deep_gemm/include/deep_gemm/impls/sm100_fp8_gemm_1d1d.cuh)
# for Blackwell:
#
# | warps | what they do | wait for | tell |
# |---|---|---|---|
# | 0 | load A, B and, every fourth K block, the scales | `empty` of a stage | `full`: bytes |
# | 1 | scales to TMEM, MMAs | `full`, scales sorted; `empty` of the sums | `empty`; `full` of the sums |
# | 2 | sort the scales in shared memory | `full` of a stage | `full`, scales sorted |
# | 4 to 7 | TMEM to registers, BF16, TMA store | `full` of the sums | `empty` of the sums |
#
# Warp 1 does so in the leader only, and tells by `tcgen05.commit`.
#
# Compare with [s6's diagram](../kernels/stages/s6_warp_specialized.cu): it has two mbarriers a stage. Here
# are three a stage and two for each tile of sums, because a third party, the epilogue, has become
# independent.
#
# ## As it might look
#
# This is the middle of a multiplier's loop, in the style of the rungs. It was **not compiled and not run**;
# the functions would be wrappers as in `ptx.cuh`, named after the instructions.
#
# ```cpp
# // One thread of the leader CTA. sums, scales_a and scales_b are columns of TMEM.
# ptx::mbarrier_wait_parity(sums_empty, sums_parity ^ 1);
# for (int block = 0; block < blocks; ++block, ring.advance()) {
#     ptx::mbarrier_wait_parity(ring.stage + kFull, ring.parity);
#     ptx::tcgen05_fence_after_thread_sync();
#     if (block % 4 == 0) {  // four K blocks' scales are four bytes of one word
#         ptx::tcgen05_cp_4x32x128b<2>(scales_a, descriptor(ring.stage + kScaleA));
#         ptx::tcgen05_cp_4x32x128b<2>(scales_b, descriptor(ring.stage + kScaleB));
#     }
#     for (int k = 0; k < kTileK; k += 32)
#         ptx::tcgen05_mma_block_scale<2>(sums, advance(desc_a, k), advance(desc_b, k),
#                                         instruction(block % 4), scales_a, scales_b, block + k > 0);
#     ptx::tcgen05_commit_multicast<2>(ring.stage + kEmpty, kBothCtas);  // when these MMAs are done
# }
# ptx::tcgen05_commit_multicast<2>(sums_full, kBothCtas);
# ```
#
# ## Questions
#
# 1. Which line of s6's consumer has no counterpart above, and why is it not missed?
#
# <details><summary>The answer</summary>
#
# `wgmma_wait_group<0>`. On Hopper the consumer waits because it wants to promote from its registers. Here
# nobody in this loop looks at the sums; the commits tell the mbarriers, and the epilogue waits.
#
# </details>
#
# 2. A pair of CTAs multiplies 256 x 256. How many bytes of B does each CTA's TMA load for a K block of 128,
#    and how many with s5's multicast of B?
#
# <details><summary>The answer</summary>
#
# In both cases each CTA asks for 128 x 128 bytes. With multicast the bytes arrive in both CTAs' shared
# memory, 256 x 128 bytes in each; in a pair each half exists once.
#
# </details>
#
# 3. Why can a kernel for Hopper not simply be compiled for Blackwell?
#
# <details><summary>The answer</summary>
#
# `wgmma` is a feature of `sm_90a`. The `a` says that no other architecture has to have it. [CUTLASS's
# kernels for
# Hopper](https://research.colfax-intl.com/cutlass-tutorial-writing-gemm-kernels-using-tensor-memory-for-nvidia-blackwell-gpus)
# do not run there either.
#
# </details>
#
# ## Sources
#
# - PTX ISA, ["TensorCore 5th Generation Family
#   Instructions"](https://docs.nvidia.com/cuda/parallel-thread-execution/#tensorcore-5th-generation-family-instructions):
#   TMEM, `tcgen05.mma`, `.block_scale`, `cta_group`.
# - CUTLASS, ["Blackwell SM100
#   GEMMs"](https://docs.nvidia.com/cutlass/media/docs/cpp/blackwell_functionality.html) for speeds and
#   formats, and ["tcgen05 MMA Programming
#   Guide"](https://github.com/NVIDIA/cutlass/blob/main/media/docs/pythonDSL/mma_docs/tcgen05_programming.rst)
#   for TMEM, pairs and scales.
# - Colfax Research, [Tensor
#   Memory](https://research.colfax-intl.com/cutlass-tutorial-writing-gemm-kernels-using-tensor-memory-for-nvidia-blackwell-gpus),
#   [pairs of
#   CTAs](https://research.colfax-intl.com/cutlass-tutorial-gemm-with-thread-block-clusters-on-nvidia-blackwell-gpus),
#   [block
#   scaling](https://research.colfax-intl.com/cutlass-tutorial-hardware-supported-block-scaling-with-nvidia-blackwell-gpus).
# - Triton, Gluon's tutorials
#   [tcgen05](https://triton-lang.org/main/getting-started/tutorials/gluon/tcgen05.html) and, with scales,
#   [tcgen05-mma-scaled](https://github.com/triton-lang/triton/blob/main/python/tutorials/gluon/11-tcgen05-mma-scaled.py).
# - DeepGEMM,
#   [sm100_fp8_gemm_1d1d.cuh](https://github.com/deepseek-ai/DeepGEMM/blob/main/deep_gemm/include/deep_gemm/impls/sm100_fp8_gemm_1d1d.cuh):
#   the kernel of which the warps and barriers above were read.
# - NVIDIA, ["Blackwell Tuning Guide"](https://docs.nvidia.com/cuda/blackwell-tuning-guide/).
