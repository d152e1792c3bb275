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
# # Rung s4: the copy engine and a ring of mbarriers
#
# [s4_tma.cu](../kernels/stages/s4_tma.cu) copies nothing itself. One thread asks the **[copy
# engine](glossary.md#copy-engine)**, called **TMA** (tensor memory accelerator), for whole
# [tiles](glossary.md#tile); the engine writes them to [shared memory](glossary.md#shared-memory), and tells
# all who wait for them. Shared memory holds four tiles of each operand, so the next ones arrive while this
# one is multiplied. The new difficulty is to know *when*: when a tile is there, and when its place is free
# again. One object answers both, the **[mbarrier](glossary.md#mbarrier)**, and most of this lesson is about
# it.
#
# > **Needs:** lesson [04](04_wgmma.ipynb). **Time:** 45 minutes to read, 65 for guesses and exercises; its
# > cells run in a minute, less when its kernels have been compiled. **May be skipped:** nothing.

# %%
from gemm_ladder.figures import lessons

lessons.enter()  # makes this folder the working directory, wherever Jupyter was started

import gemm_ladder as gl
import numpy as np
from gemm_ladder.figures import measured, rung_cards, timeline
from gemm_ladder.ref import gemm, layouts, metrics
from gemm_ladder.timeline import spans
from workshop import (
    constants,
    drawing,
    drawing_tma,
    evidence,
    exercises,
    model,
    printed,
    workbench,
    workbench_tma,
)

drawing.style()
rung = gl.rungs["s4_tma"]

# %%
drawing.where("L2", "TMA", "shared memory", "mbarriers")

# %% [markdown]
# ## What limited the rung below
#
# [Rung s3](04_wgmma.ipynb) copies, then multiplies, then [promotes](glossary.md#promotion). Here are two of
# its [warps](glossary.md#warp), over four [blocks of k](glossary.md#k-block). As in lesson 04, their own
# work, copying and promoting, has no length on the [emulator](glossary.md#emulator): it is in the white lines
# between two waits. (In s4 events before and after give it a bar.)

# %%
with gl.emulator(seed=2, record=True) as run:
    workbench.multiply(gl.rungs["s3_wgmma"], workbench.problem(64, 128, 512), "cpu")


def first_warps(run, warps):
    """What the first warps and their parts of the tensor core do, and the copy engine."""
    found = spans.spans(spans.of_emulator(run.events))
    return [span for span in found if span.unit == spans.COPY_ENGINE or span.index < warps]


found = first_warps(run, 2)
drawing.timeline(found, max(span.end for span in found), "s3_wgmma: copy, multiply, promote, and again")

# %% [markdown]
# The copying is work of the threads, and every byte passes through a [register](glossary.md#register) on its
# way. Without it a thread needs fewer of them:

# %%
TILE_M, TILE_N, TILE_K, THREADS = 64, 128, 128, 128  # of s3 and s4 alike
each = (TILE_M + TILE_N) * TILE_K // THREADS
print(f"a thread copies {each} bytes a block of k: {each // 16} loads, {each // 16} stores, 16 bytes each")
cards = {row["rung"]: row for row in rung_cards.load(measured.DATA / "cards.json")["rows"]}
for name in ("s3_wgmma", "s4_tma"):
    print(f"{name}: {cards[name]['registers']} registers a thread")

# %% [markdown]
# All of [rung](glossary.md#rung) s3's card:

# %%
workbench.card("s3_wgmma", again=True)

# %% [markdown]
# ## The idea
#
# Let an engine copy, straight from [global memory](glossary.md#global-memory) to shared memory. A thread
# gives it an order and goes on. And because no thread has to wait while it works, order early: shared memory
# is a **[ring](glossary.md#ring)** of four **[stages](glossary.md#stage)**, each with room for one block of
# k. While one is multiplied, the engine fills the other three.

# %%
problem = workbench.problem(TILE_M, TILE_N, 8 * TILE_K)
with gl.emulator(seed=17, record=True) as run:
    workbench.multiply(rung, problem, "cpu")
drawing_tma.ring_memory(run.events, ("A", "B", "scales of A"))

# %% [markdown]
# At its end, a stage has two mbarriers. `full` says that its bytes have arrived, `empty` that all warps have
# finished with them. Here is how a run of eight blocks of k used the ring. Find block 4: it goes where block
# 0 was, and is ordered as soon as that one has been released, long before it is needed.

# %%
drawing_tma.ring_use(run.events, "s4_tma: the ring")

# %% [markdown]
# How many stages should there be?


# %%
def ring_of(stages):
    source = workbench.changed("s4_tma", ("kStages = 4;", f"kStages = {stages};"))
    with gl.emulator(seed=17, record=True) as run:
        workbench.multiply(source, problem, "cpu")
    drawing_tma.ring_use(run.events, f"{stages} stages")


workbench.slider(ring_of, stages=(2, 6))

# %% [markdown]
# ## The change to the file
#
# Lines with `-` are rung s3's, lines with `+` are new.

# %%
workbench.diff("s3_wgmma", "s4_tma")

# %% [markdown]
# Gone: `copy_tile`, the [swizzle](glossary.md#swizzle)'s arithmetic, the fence between the
# [proxies](glossary.md#proxy), and both `__syncthreads` of the loop. What came instead, one at a time:
#
# ## 1. An mbarrier, alone
#
# An **mbarrier** is 8 bytes of shared memory. `mbarrier_init` gives it a count. It is in a
# **[phase](glossary.md#phase)**, phase 0 at first, and knows how many arrivals are still **pending**. Each
# `mbarrier_arrive` takes one off. With the last, the phase is complete; the next one begins, with the full
# count pending again.
#
# Three warps arrive once a phase, and wait for its end:

# %%
ONE_BARRIER = """
__global__ void one_barrier(const void* in, void* out) {
    const uint32_t barrier = ptx::shared_memory(), warp = threadIdx.x / 32;
    if (threadIdx.x == 0) ptx::mbarrier_init(barrier, 3);
    __syncthreads();
    if (ptx::laneid() == 0)
        for (uint32_t phase = 0; phase < 2; ++phase) {
            ptx::mbarrier_arrive(barrier);
            ptx::mbarrier_wait_parity(barrier, phase % 2);
        }
}
"""


def one_barrier(source, **options):
    return workbench.try_kernel(source, np.zeros(1, np.uint32), threads=96, shared_bytes=1024, **options)


run = one_barrier(ONE_BARRIER, seed=3)
workbench_tma.tell(run, {0: "barrier"})

# %% [markdown]
# A waiting thread does not name the phase, only its **parity**: 0 for phases 0, 2, 4, ..., 1 for the others.
# `mbarrier_wait_parity(barrier, p)` returns if the barrier is in a phase of the *other* parity: then the last
# phase of parity p is over.
#
# One bit is enough as long as no thread falls a whole phase behind. Let warp 2 only wait, while the other two
# complete the phases without it:

# %%
without_it = ONE_BARRIER.replace("barrier, 3", "barrier, 2").replace(
    "ptx::mbarrier_arrive", "if (warp < 2) ptx::mbarrier_arrive"
)
for seed in range(6):
    try:
        one_barrier(without_it, seed=seed, device="cpu")
        print(f"schedule {seed}: went well")
    except gl.EmulatorError as error:
        printed.show(f"schedule {seed}: {error}")

# %% [markdown]
# Where it hangs, warp 2 looked too late: phase 1 was over as well, so the barrier was in phase 2, whose
# parity is that of phase 0, and no thread is left to end that phase. In the kernels no thread can fall
# behind: the next phase of a barrier cannot end before all threads that wait for this one have gone on.
#
# What does a barrier answer that has not been used yet? `mbarrier_test_wait_parity` asks without waiting.
# Which parity lets a thread pass, before anybody has arrived? (It follows from the rule above; a comment in
# the change to the file gives it away.)

# %% tags=["guess"]
exercises.guess("06.fresh", None, "parity 0", "parity 1", "both", "neither")

# %%
out = np.zeros((2, 2), np.uint32)
workbench.try_kernel(
    """
__global__ void fresh(const void* in, uint32_t* out) {
    const uint32_t barrier = ptx::shared_memory();
    if (threadIdx.x) return;
    ptx::mbarrier_init(barrier, 1);
    for (int row = 0; row < 2; ++row) {
        for (uint32_t parity = 0; parity < 2; ++parity)
            out[row * 2 + parity] = ptx::mbarrier_test_wait_parity(barrier, parity);
        ptx::mbarrier_arrive(barrier);
    }
}
""",
    out,
    threads=32,
    shared_bytes=1024,
)
for when, (zero, one) in zip(("fresh, in phase 0:", "after an arrival, in phase 1:"), out, strict=True):
    print(f"{when:30} parity 0 {'passes' if zero else 'waits'}, parity 1 {'passes' if one else 'waits'}")
answers = {(0, 0): "neither", (1, 0): "parity 0", (0, 1): "parity 1", (1, 1): "both"}
exercises.found("06.fresh", answers[tuple(map(int, out[0]))])

# %% [markdown]
# A fresh barrier lets parity 1 pass, as if a phase -1 had been completed. So the thread that fills stages can
# begin with `parity ^ 1` and needs no special case for the first round, in which every stage is free.
#
# ## 2. Bytes count too
#
# An mbarrier counts the copy engine's bytes as well, apart from the arrivals of threads.
# `mbarrier_arrive_expect_tx(barrier, bytes)` announces so many bytes and arrives; the copy engine takes off
# what it has written. A phase is complete when no arrival is pending *and* no byte is missing. This second
# number is the **[transaction count](glossary.md#transaction-count)**.
#
# Ask for a [box](glossary.md#box) of 8 rows of 128 bytes. The tensor is described by a **[tensor
# map](glossary.md#tensor-map)**, which the host makes and hands to the kernel as a `__grid_constant__`, so
# that the engine finds it; the kernel says only where the box is.

# %%
ONE_BOX = """
__global__ void one_box(const __grid_constant__ TensorMap map, int x, int y, uint32_t* out) {
    const uint32_t box = ptx::shared_memory(), full = box + 8 * 128;
    if (threadIdx.x == 0) {
        ptx::mbarrier_init(full, 1);
        ptx::fence_mbarrier_init();
        ptx::mbarrier_arrive_expect_tx(full, 8 * 128);
        ptx::cp_async_bulk_tensor_2d(box, &map, full, x, y);
    }
    __syncthreads();
    ptx::mbarrier_wait_parity(full, 0);
    for (int i = threadIdx.x; i < 8 * 128 / 4; i += 32) out[i] = ptx::ld_shared<uint32_t>(box + 4 * i);
}
"""


def one_box(tensor, at, swizzle="k128B", **options):
    """The box of 8 x 128 bytes at (x, y) as it lies in shared memory, and what the emulator recorded."""
    shared = np.zeros((8, 128), np.uint8)
    run = workbench_tma.try_box(ONE_BOX, shared.view(np.uint32), tensor, (8, 128), at, swizzle, **options)
    return shared, run


tensor = drawing_tma.numbered(rows=12, columns=240)  # each 16 bytes hold their own number
shared, run = one_box(tensor, at=(32, 2), seed=17)
workbench_tma.tell(run, {0: "box", 1024: "full"})

# %% [markdown]
# The bytes may come in several pieces, in whatever order; with this [seed](glossary.md#schedule) they came in
# one. No thread needs to know that: the phase is complete with the last of them.
#
# `fence_mbarrier_init` is what the copy engine needs to see the barrier at all: a thread has initialised it
# by one [proxy](04_wgmma.ipynb), and the engine reaches it by the other.
#
# ## 3. The tensor map and its box
#
# Here is what s4's host code says: the address, rows and columns, elements from row to row, the box, and
# the swizzle.

# %%
workbench.code(rung.source, "TensorMap map_a, map_b", "return error;$")

# %% [markdown]
# The engine does with it what `copy_tile` did thread by thread. It works out the addresses, and it puts each
# chunk of 16 bytes where the 128-byte swizzle wants it, so that the tile is ready for a
# [WGMMA](glossary.md#wgmma):

# %%
drawing_tma.box(tensor, (32, 2), shared)
plain, _ = one_box(tensor, (32, 2), swizzle="kNone")
r, byte = np.arange(8)[:, np.newaxis], np.arange(128)
print(
    "as layouts.swizzle_128b says:", np.array_equal(shared.reshape(-1)[layouts.swizzle_128b(r, byte)], plain)
)

# %% [markdown]
# And a box may stick out. What is outside the tensor arrives as zeros, and *counts like any other byte*:
# the kernel announces 1024 bytes, wherever the box is. Zeros add nothing to a product, so a ragged edge
# needs no code at all.

# %%
shared, _ = one_box(tensor, at=(176, 8))
drawing_tma.box(tensor, (176, 8), shared)

# %% [markdown]
# Move it. x moves by chunks here, because the engine wants a box to begin at a multiple of 16 bytes.


# %%
def move(chunk, row):
    drawing_tma.box(tensor, (16 * chunk, row), one_box(tensor, (16 * chunk, row))[0])


workbench.slider(move, chunk=(-4, 12), row=(-4, 10))

# %% [markdown]
# The other constraints: the base and the distance from row to row are multiples of 16 bytes, a box has at
# most 256 elements along each dimension, and a swizzled box's row at most 128 bytes. The encoder refuses what
# it cannot do:

# %%
for columns, swizzle, box_columns in ((240, "k128B", 256), (250, "kNone", 128), (240, "kNone", 120)):
    try:
        workbench_tma.try_box(
            ONE_BOX,
            np.zeros(256, np.uint32),
            np.zeros((12, columns), np.uint8),
            (8, box_columns),
            (0, 0),
            swizzle,
        )
    except gl.GemmLadderError as error:
        print(error)

# %% [markdown]
# This is why the kernels take A's scales with m padded to a multiple of 4: a row of floats that long is a
# multiple of 16 bytes.
#
# ## 4. A ring of two, through time
#
# Now put it together. Rung s4 with two stages instead of four, four blocks of k. For each of the ring's
# mbarriers: the pending arrivals, the bytes to come, and who waits.

# %%
two_stages = workbench.changed("s4_tma", ("kStages = 4;", "kStages = 2;"))
with gl.emulator(seed=20, record=True) as run:
    workbench.multiply(two_stages, workbench.problem(TILE_M, TILE_N, 4 * TILE_K), "cpu")
drawing_tma.barriers(run.events, "Two stages, four blocks of k: the ring's mbarriers")

# %% [markdown]
# Read `full 0` from the left. Thread 0 announces the bytes and arrives: nothing is pending any more, but
# the phase goes on until the bytes are there. Its end lets the four warps pass, and they multiply. When a
# warp is done, it arrives on `empty 0`; the fourth arrival ends *that* phase, and only then does thread 0
# announce the next block of k on `full 0`. The two barriers of a stage take turns, and so do their
# parities.
#
# ## The kernel
#
# Now it can be read. First what fills a stage:

# %%
workbench.code(rung.source, "---- Loading, by thread 0", "load\\(block\\);$")

# %% [markdown]
# `next` is a place in the ring and a parity, which flips when the ring begins anew. The thread waits until
# the stage is empty, announces all three boxes' bytes at once, and orders them. The coordinates are
# elements: of A and B (k, row), of the scales (row, block of k). The first `kStages - 1` blocks are ordered
# before the loop.
#
# And what empties it:

# %%
workbench.code(rung.source, "for \\(int block = 0; block < blocks; \\+\\+block, ring", "^    }")

# %% [markdown]
# - All warps wait for `full`. After that wait the bytes are visible to the WGMMA, without a fence between
#   proxies: the copy engine wrote them, not a thread.
# - Thread 0 orders block `block + kStages - 1` *while* this block's WGMMAs run. It goes where block - 1
#   was, which all warps have released, or are about to.
# - The scales are read from shared memory before the stage is released.
# - After `wgmma_wait_group<0>` the [tensor core](glossary.md#tensor-core) reads the stage no more.
#   `__syncwarp` makes sure that every [lane](glossary.md#lane) has read its scales; then one lane arrives for
#   its warp.
# - The promotion needs registers only, so it comes *after* the release.
#
# Run it, check it:

# %%
problem = workbench.problem(m=70, n=136, k=768)  # ragged, and six blocks of k turn the ring once and a half
d = workbench.multiply(rung, problem)
exact = gemm.dense(*problem.arrays)
print("relative error:                 ", metrics.relative_error(d, exact))
print("of the definition, as BF16:     ", metrics.relative_error(gemm.to_bf16(exact), exact))
print("largest relative error of a row:", metrics.max_row_error(d, exact))
print(
    "the expected bits:              ",
    workbench.difference(d, workbench.expected(rung.name, problem)) is None,
)
print("k = 200:", rung.supports(64, 128, 200))

# %% [markdown]
# The expected bits are rung s3's, too: the same sums in the same order.
#
# ## How fast it is
#
# The loads hide behind the products now, and the promotion does not. So the model loses its latency, and
# something else can be seen that was behind it: the blocks together ask [L2](glossary.md#l2) for a tile of A
# and one of B for every K block, and L2 gives some 9 TB/s to all [SMs](glossary.md#sm), a round figure that
# production's model of an H100 has. Keep an eye on it. That is the new term, **L2**. Memory is there, too,
# with every byte once. What happens at the same time is not added: the longest counts.
#
# The chain of a K block is what hands over a stage (220 cycles: an mbarrier is waited for, the first WGMMA
# goes its way through the pipe, its end is noticed), the WGMMAs, and the promotion. The model assumes that
# the two blocks of an SM take turns, so that one multiplies while the other promotes.
#
# Guess the microseconds for 4096 x 7168 x 2048, and how many times as fast as s3_wgmma it is there.

# %%
constants.show("s4_tma")

# %% tags=["guess"]
exercises.guess("06.us", None)
exercises.guess("06.faster", None)

# %%
model.code(model.s4)

# %%
size = (4096, 7168, 16384)
evidence.predict("s4_tma", size)

# %% [markdown]
# L2, by this.

# %%
notes = drawing.bars(
    ["s1_naive", "s3_wgmma", "s4_tma", "cublaslt_blockwise", "cublaslt_tensorwise"], size, marked="s4_tma"
)
tflops = {
    one.impl: one.tflops[size] for one in measured.series(measured.recorded(), "dirty") if size in one.tflops
}
evidence.faster("06.faster", "s4_tma", "s3_wgmma")
print(f"{tflops['s4_tma'] / tflops['cublaslt_tensorwise']:.0%} of the ceiling")
print(*notes, sep="\n")

# %%
evidence.compare("s4_tma", "06.us")

# %% [markdown]
# Within about a quarter, but for 32768 x 512. There a tile has four K blocks, and its beginning and its end,
# which the model still leaves out, take longer than what is between them:

# %%
evidence.a_wave("s4_tma", [(4096, 32768, 512)])

# %% [markdown]
# The rest looks as if L2 were the limit. Keep that in mind: the prediction came about true at three of five
# shapes, and a prediction can come true for a wrong reason.
#
# ## What limits it now

# %%
evidence.thread("s4_tma")

# %% [markdown]
# Warp 0 again, and the copy engine:

# %%
with gl.emulator(seed=20, record=True) as run:
    workbench.multiply(rung, workbench.problem(TILE_M, TILE_N, 8 * TILE_K), "cpu")
found = first_warps(run, 1)
drawing.timeline(found, max(span.end for span in found), "s4_tma: eight blocks of k")

# %% [markdown]
# The loads have left the warps and lie beside the products. The promotion has not: while a warp promotes, the
# tensor core still has nothing to do for it. The emulator's steps are no durations. These are, from a GPU, of
# two blocks that share an SM:

# %%
drawing_tma.gpu_timeline("s4_tma")

# %% [markdown]
# The first number under its title is the **tensor-core share**, and every timeline has it: the operations
# that the WGMMAs of all blocks on this SM did, over those that its tensor cores could have done in that time,
# at the clock that the SM had. It is what ncu's number above is, 40 %, for another product: ncu ran k = 2048,
# and here k is 1024, so a tile's beginning and end weigh twice as much, and the recording itself takes time.
# Compare timelines with timelines, and ncu's numbers with each other. That a WGMMA is *in flight* says less:
# it is in flight from its issue until its warp has seen its end, also while it waits behind the other
# block's. Orange bars are no work. How fast they pass is.
#
# On a GPU only some instructions are recorded: waits, orders to the copy engine, WGMMAs. Ordinary stores are
# not. So a row ends with its last wait for a WGMMA: what comes after it, the last promotion and the stores to
# D, is not in the picture.
#
# Do the two blocks take turns, as the model assumes? The green bars tell. Their promotions hardly ever
# coincide, and while one promotes, a product of the other is mostly in flight: they do. That the orange bars
# coincide is no objection: a product that waits behind the other one is in flight, too.
#
# The long wait is for the first load. After it, the warp hardly waits for `full` here: look at its second job
# instead. The first products of a block have a blue bar below them: its first thread waits for an empty
# stage, announces, orders three boxes. The last ones have none, as everything has been ordered. Compare how
# long they take, and how long the warp then still waits for the tensor core:


# %%
def products(rung_name):
    """Mean ns of a product and of the wait at its end: where loads were ordered meanwhile, and where not."""
    data = timeline.load(measured.DATA / "timeline.json")
    rows = [row for row in data["rows"] if row["rung"] == rung_name and row["machine"] == "gpu"]
    found = {True: [], False: []}
    for block in {row["block"] for row in rows}:
        of = {row["unit"]: row["spans"] for row in rows if row["block"] == block}
        for _, begin, end in (span for span in of["tensor core"] if span[0] == "multiply"):
            orders = any(what == "issue" and begin < b < end for what, b, _ in of["warp"])
            waited = sum(e - b for what, b, e in of["warp"] if what == "wait" and begin < b and e == end)
            found[orders].append((1000 * (end - begin), 1000 * waited))
    return {orders: np.mean(times, axis=0) for orders, times in found.items()}


for orders, (length, waited) in products("s4_tma").items():
    words = "the warp orders loads meanwhile" if orders else "it has nothing else to do"
    print(f"{words:32} a product takes {length:4.0f} ns, its last {waited:3.0f} of them waiting")

# %% [markdown]
# Where the warp orders loads, it hardly waits for the product at its end: the tensor core was ready before
# the warp came to look, and had nothing more to do for this block. So two jobs delay the next product, the
# ordering and the promotion, because those who do them are those who start it. The cure is to give the jobs
# to different warps; that is [rung s6](08_warp_specialized.ipynb).
#
# There is a second suspect, which is cheaper to remove. Each block loads its own tiles:

# %%
m, n, k = size
asked = (m // TILE_M) * (n // TILE_N) * (TILE_M + TILE_N) * k
microseconds = 2 * m * n * k / tflops["s4_tma"] / 1e6
print(f"A and B have {(m + n) * k / 1e6:.0f} MB; the blocks ask for {asked / 1e9:.1f} GB of them,")
print(f"{asked / microseconds / 1e6:.1f} TB/s")

# %% [markdown]
# By NVIDIA's data sheets memory gives 3.35 TB/s on an H100 and 4.8 on an H200, so most of this comes from L2.
# It is also more than the 9 that the model allows: figures of the model are wrong, and the next lesson's
# experiment says which. And blocks that lie below each other ask for the same tile of B. The next rung lets
# two of them share it.
#
# The card. It has six UTMALDG: A, B and the scales are ordered in two places, ahead of the loop and in it.

# %%
workbench.card("s4_tma")

# %% [markdown]
# ## Break it
#
# Predict, then run. Each cell plants one fault in the kernel and runs it under eight schedules.

# %%
problem = workbench.problem(m=64, n=128, k=768)

# %% [markdown]
# **1.** The warps that multiply wait for the wrong parity of `full`.

# %% tags=["guess"]
exercises.guess_break("06.break1", line=None, then=None)

# %% tags=["break"]
workbench.break_it(
    "s4_tma",
    problem,
    ("ring.stage + kFull, ring.parity);", "ring.stage + kFull, ring.parity ^ 1);"),
    guess="06.break1",
)

# %% [markdown]
# <details><summary>Why</summary>
#
# On a fresh barrier the wrong parity passes at once, so the warps multiply a stage whose bytes are still on
# their way. The emulator names a load that writes what a WGMMA has been told to read, with nothing between
# the two. On a GPU the result would come from whatever was in shared memory, which is sometimes the right
# data.
#
# </details>
#
# **2.** The thread that loads waits for the wrong parity of `empty`.

# %% tags=["guess"]
exercises.guess_break("06.break2", line=None, then=None)

# %% tags=["break"]
workbench.break_it(
    "s4_tma",
    problem,
    ("next.stage + kEmpty, next.parity ^ 1);", "next.stage + kEmpty, next.parity);"),
    guess="06.break2",
)

# %% [markdown]
# <details><summary>Why</summary>
#
# The first load waits until a stage is released that has never been filled. All other threads, this warp's
# other lanes too, wait for the load. A GPU would hang silently; the emulator tells which warp waits at which
# barrier, and what the barrier still lacks. (It gives this one's address and no name, because it knows a full
# and an empty barrier by what they are used for, and here nobody got that far.)
#
# </details>
#
# **3.** The barrier is told to expect 16 bytes too many.

# %% tags=["guess"]
exercises.guess_break("06.break3", line=None, then=None)

# %% tags=["break"]
workbench.break_it(
    "s4_tma",
    problem,
    ("kBytesA + kBytesB + kBytesScales);", "kBytesA + kBytesB + kBytesScales + 16);"),
    guess="06.break3",
)

# %% [markdown]
# <details><summary>Why</summary>
#
# All bytes land, no arrival is pending, and the phase is never complete: 16 bytes are still to come. The same
# happens if a tile is made smaller and its count of bytes is not.
#
# </details>
#
# **4.** A warp releases the stage before it has waited for its WGMMAs.

# %% tags=["guess"]
exercises.guess_break("06.break4", line=None, then=None)

# %% tags=["break"]
WAIT = "        ptx::wgmma_wait_group<0>();\n"
RELEASE = (
    "        __syncwarp();\n        if (ptx::laneid() == 0) ptx::mbarrier_arrive(ring.stage + kEmpty);\n"
)
workbench.break_it("s4_tma", problem, (WAIT + RELEASE, RELEASE + WAIT), guess="06.break4")

# %% [markdown]
# <details><summary>Why</summary>
#
# Here it is right all the same. The thread that refills the stage belongs to the warpgroup that reads it: it
# loads one turn later, behind its own wait, and that is a wait for the WGMMAs of all four warps. It would be
# wrong as soon as another thread loads, one that knows of the WGMMAs only by the arrivals, such as the
# producer two lessons on. So a kernel always releases a stage after the wait.
#
# </details>
#
# **5.** A's tensor map forgets the swizzle.

# %% tags=["guess"]
exercises.guess_break("06.break5", line=None, then=None)

# %% tags=["break"]
workbench.break_it(
    "s4_tma",
    problem,
    ("p.k, kTileM, kTileK, Swizzle::k128B", "p.k, kTileM, kTileK, Swizzle::kNone"),
    guess="06.break5",
)

# %% [markdown]
# <details><summary>Why</summary>
#
# The engine writes A's rows as they come, and the descriptor still says 128-byte swizzle: products of the
# wrong k are added, as in [lesson 04](04_wgmma.ipynb). Rows with r mod 8 = 0 are as they should be.
#
# </details>
#
# **6.** `fence_mbarrier_init` is gone.

# %% tags=["guess"]
exercises.guess_break("06.break6", then=None)

# %% tags=["break"]
workbench.break_it("s4_tma", problem, ("ptx::fence_mbarrier_init();", ""), guess="06.break6")

# %% [markdown]
# <details><summary>Why</summary>
#
# The copy engine has to count its bytes at a barrier whose initialisation was never made visible to it.
#
# </details>
#
# ## Exercises
#
# **1.** What an mbarrier does, as a function. It was initialised with `count`; the `events` are pairs:
# ("arrive", 0), ("expect", bytes), which announces bytes and arrives, and ("land", bytes). Bytes may land
# before they are announced: the number of those to come is negative then, and the phase goes on. Return
# (phase, pending arrivals, bytes to come).


# %% tags=["exercise"]
def mbarrier(count, events):
    phase, pending, to_come = 0, count, 0
    for event, _size in events:
        if event == "arrive":
            pending -= 1
    return phase, pending, to_come


# %% tags=["check"]
exercises.check("06.1", mbarrier)

# %% [markdown]
# **2.** A ring of `stages` stages. For block of k number `block`: which stage is it in, for which parity of
# `full` does one wait to multiply it, and for which parity of `empty` to load it?


# %% tags=["exercise"]
def waits(block, stages):
    stage, full, empty = block, 0, 1
    return stage, full, empty


# %% tags=["check"]
exercises.check("06.2", waits)

# %% [markdown]
# **3.** The loads are missing from the kernel. From memory, write the lines between the wait for an empty
# stage and `next.advance()`. The check tells you what the emulator says.

# %% tags=["exercise"]
loads = """
"""

# %% tags=["check"]
exercises.check("06.3", loads)

# %% [markdown]
# **4.** How many stages are enough? A load takes `latency` from the order to the last byte, a block of k
# keeps the tensor core and the warps for `block`. In the ring, block i + stages - 1 is ordered when block i
# begins. Return the smallest number of stages with which no block has to wait for its load, once the ring
# is full.


# %% tags=["exercise"]
def stages_needed(latency, block):
    return 2


# %% tags=["check"]
exercises.check("06.4", stages_needed)

# %% [markdown]
# **5.** A whole kernel: that of lesson 04's last exercise, with the copy engine and a ring of four stages.
# Two [warpgroups](glossary.md#warpgroup) multiply, 64 rows each, and thread 0 loads for both. The frame has
# the stages, `Ring` and the launcher with its tensor maps; PRODUCER and PERSISTENT are for later lessons.

# %%
exercises.frame("06.5")

# %% tags=["exercise"]
kernel = """
__global__ void __launch_bounds__(kThreads, 1)
    mine(const __grid_constant__ TensorMap map_a, const __grid_constant__ TensorMap map_b,
         const __grid_constant__ TensorMap map_sfa, const GemmArgs p) {
    // Which tile is this block's, which half of it this warpgroup's, which two rows this thread's?
    // The mbarriers of all stages; then everybody meets.
    // Thread 0 loads the first kStages - 1 blocks of k.
    // For each block: wait until it is full; multiply; let thread 0 load another; release the stage; promote.
    // Store what is inside D.
}
"""

# %% tags=["check"]
exercises.check("06.5", kernel)

# %% [markdown]
# Next: [two blocks share a load](07_tma_multicast.ipynb).
