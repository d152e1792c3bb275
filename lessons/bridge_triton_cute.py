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
# # Bridge: rung s6 in Gluon and in CuTe DSL
#
# You can read [s6_warp_specialized.cu](../kernels/stages/s6_warp_specialized.cu), and others write such
# kernels in Python. Here is the same kernel in two of their languages:
#
# - **Gluon** is the language below Triton, and comes with it. Triton chooses layouts, barriers and warps
#   for you; in Gluon you write them. The kernel is [gluon_kernel.py](bridges/gluon_kernel.py).
# - **CuTe DSL** is the Python of CUTLASS: its layouts and its classes for pipelines. The kernel is
#   [cute_kernel.py](bridges/cute_kernel.py).
#
# You need [lesson 08](08_warp_specialized.ipynb). Reading takes about 40 minutes, running a few seconds:
# the cells show files of this folder and what was recorded. Both kernels were written for this lesson. They
# have the rung's tile of 256 x 128, its ring of four stages, its producer and its two consumers, and its
# order of tiles. [compile.py](bridges/compile.py) compiles them without a GPU, and on a Hopper GPU
# [measure.py](bridges/measure.py) checks and times them.

# %%
from gemm_ladder.figures import lessons

lessons.enter()  # makes this folder the working directory, wherever Jupyter was started

from workshop import bridges, drawing

drawing.style()

# %% [markdown]
# ## Who does what
#
# A row is a thing that the kernel has to do. The numbers are lines of the three files, and lead there.

# %%
bridges.who_does_what()

# %% [markdown]
# No row is empty: all three say the same things. They differ in who decides the details.
#
# ## The producer
#
# In CUDA a warpgroup is a range of `threadIdx.x`, and one thread of it does everything. In Gluon the parts
# of a kernel are functions, *partitions*, and `warp_specialize` says how many warps and registers each one
# gets. The first partition keeps the kernel's own four warps, and the registers that are left. In CuTe DSL
# it is a condition again, now on the warpgroup's number.

# %%
bridges.beside("the producer's warps", "its registers")

# %% [markdown]
# ## The barriers
#
# The rung's head has a diagram of its mbarriers, `full` and `empty`, and its code counts parities. In Gluon
# you count, too: `block // STAGES & 1` is the phase's parity. `mbarrier.arrive` is one arrival of a whole
# partition; the compiler has the partition's warps wait for each other first, and one thread arrives.
#
# `PipelineTmaAsync` of CuTe DSL has both mbarriers of all stages inside, and a *pipeline state* counts for
# you. `producer_acquire` waits for `empty` and announces the bytes on `full`. `consumer_release` has one
# thread of each warp arrive at both CTAs of the cluster, as the rung does, and `producer_tail` is the
# rung's wait at the end.

# %%
bridges.beside("wait for an empty stage", "announce the bytes", "give the stage back")

# %% [markdown]
# ## The layouts
#
# The 128-byte swizzle is the same pattern of bytes in all three, because TMA writes it and WGMMA reads it.
# The rung knows it as a number in a tensor map and another one in a descriptor. The other two attach it to
# the tensor in shared memory, and derive both from that.
#
# Accumulators are the other layout. `accumulator_row` of the rung is a formula of lesson 04. In Gluon the
# layout has a name, and a tensor carries it as part of its type. `gl.SliceLayout(1, ACCUMULATOR)` is the
# layout of one number for each row, so the scales of A come from shared memory into the right threads. In
# CuTe DSL, `partition_C` cuts any tensor as the accumulators are cut. The scales become one by a trick: a
# matrix whose columns have a stride of 0, so that a row has the same scale in each column.

# %%
bridges.beside("swizzled layout of a stage", "who has which element", "a scale of A for each row")

# %% [markdown]
# ## WGMMA and promotion
#
# The rung writes four WGMMAs of 32 of k. Gluon has one call for all 128, and CuTe DSL a loop. Four
# instructions come out of each. Neither asks for the tensor core's own accumulation over more than one K
# block: the first of the four WGMMAs overwrites, as in the rung.

# %%
bridges.beside("WGMMA", "wait for the WGMMAs", "promotion")

# %% [markdown]
# ## What the compilers made of it
#
# In the first version of both kernels the promotion was plain: a fused multiply-add after the wait, in the
# order of the text. Before you look at the table: a consumer thread holds 128 sums and 64 partial sums, and
# may have 232 registers. The promotion of slice 0 stands before the WGMMAs of slice 1. Nothing in slice 1
# needs its results. What may a compiler do with it, and what would follow? (The answer is in the fold below
# the table.)

# %%
bridges.machine_code()

# %% [markdown]
# <details><summary>The answer</summary>
#
# It may move the promotion of slice 0 behind the WGMMAs of slice 1: that starts them earlier, and is what a
# scheduler likes. But then the partial sums of *both* slices are in registers at once, 128 + 64 + 64 = 256
# of the 232 that there are. The rest goes to local memory and back, in every K block: the column of spills.
#
# </details>
#
# The cure is the same in both, to write down an order that the text alone does not enforce. In Gluon the
# wait for slice 1 takes slice 0's sums as one of its dependencies, so they have to be computed before.
# (That a WGMMA overwrites the old partial sums, which the kernel also asks for, is not enough: the compiler
# copies them away.) In CuTe DSL the multiply-add is written as PTX, which the compiler leaves in its place.
# In the rows *not pinned* that is missing; `pinned` in the files is where it is.
#
# In the rung nvcc keeps the order of the text. Nothing obliges it to: `spilled` on its
# [card](../figures/cards/s6_warp_specialized.md) is what to watch when you change such a loop.
#
# Other numbers differ for reasons that are in the text. Gluon's loop is not unrolled, those of the other
# two are, by 4, and so they have more WGMMAs; but Gluon's consumers are two functions, each with its own
# code. Its barriers of warps belong to `mbarrier.arrive`, which was said above, and to the start and the
# end of partitions. It has no cluster, because TMA multicast cannot be asked for in Triton 3.6. Both CTAs
# of the rung's cluster load half of A, each of Gluon's CTAs all of it.
#
# ## How fast
#
# All three were run on an H200, at ragged sizes and at large ones: all are right, and all have *the same
# bits*. That is no accident. Each sums the same products in the same instruction, and promotes in the same
# order with the same rounding.
#
# Guess the times relative to the rung's before you run the cell: of Gluon, which has no cluster, of CuTe
# DSL, and of the two kernels with spills. To see what the missing cluster costs, the rung was also measured
# with clusters of one CTA.

# %%
recorded = bridges.load("bridges")
bridges.times(recorded, (4096, 7168, 16384))

# %% [markdown]
# Three languages, and at most 3 % between them at this shape. The language is not what makes a kernel fast.
# What does is in the other two bars: the same kernels, with the compiler free to move the promotion, take 2.3
# times as long in Gluon and 4.4 times in CuTe DSL. They compute the same bits, no tool warns, and only the
# machine code shows why. That is what a person who writes such kernels is for.
#
# Look at a shorter k, too.

# %%
bridges.times(recorded, (4096, 7168, 2048))

# %% [markdown]
# Here the rung is the slowest of those without spills, 5 to 6 % behind the other two. Without its cluster it
# takes 8 % less time than with it, and 3 % less than Gluon's kernel, the next. Two CTAs of a cluster start
# together and end together: at the end all of the rung's threads wait for the neighbour's, after their stores
# to D. At a short k a tile ends more often, and the loads that the cluster saves are fewer. CuTe DSL's kernel
# has the cluster, too, and is in between; there the producer alone waits at the end. Whether that is the
# reason was not measured. [Lesson 11](11_production.ipynb) has a kernel that takes a cluster only where one
# pays.
#
# ## Which one to use
#
# - **Triton** itself, where its own choice is good enough: it would write this kernel's loop for you, but
#   which warps do what, and when sums are promoted, is its decision.
# - **Gluon**, where you know what the hardware should do and want Python's speed of trying. The layouts are
#   checked by the compiler. You give up what its release does not know yet, here the multicast.
# - **CuTe DSL**, where you want all that the hardware has, and CUTLASS's parts for it. Its layouts take
#   time to learn, and are the same in C++.
# - **CUDA with wrappers**, as here, where you want to see every instruction, or run it on an emulator that
#   names a missing barrier. None of the others' kernels can run on ours: they never become CUDA text.
#
# ## Questions
#
# 1. In Gluon the two consumers are two partitions of four warps. Why not one partition of eight?
#
# <details><summary>The answer</summary>
#
# All warps of a partition wait for each other at its `mbarrier.arrive`. Eight warps would then promote at
# the same time, and the tensor cores would be idle. Two partitions meet nowhere, so while one promotes, the
# other can multiply.
#
# </details>
#
# 2. CuTe DSL's `mcast_mode_mn=(1, 0)` says that A alone is multicast. What happens if it is `(1, 1)`?
#
# <details><summary>The answer</summary>
#
# A consumer also arrives at the CTAs that would share B with it, those in its column of the cluster. There
# is only itself, so nothing changes here. In a cluster of 2 x 2 CTAs the counts would be different: a stage
# would be given back to three CTAs instead of two, and `empty` would have to expect arrivals from three.
#
# </details>
#
# 3. Gluon's `empty` is complete after 2 arrivals, the rung's after 16. Why?
#
# <details><summary>The answer</summary>
#
# In the rung one thread of each warp arrives, at both CTAs: 4 warps x 2 consumers x 2 CTAs. In Gluon one
# thread arrives for a whole partition, after its four warps have waited for each other, and there is no
# other CTA.
#
# </details>
#
# Next: [what Blackwell changes](bridge_blackwell.ipynb).
