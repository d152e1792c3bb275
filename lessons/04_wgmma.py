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
# # Rung s3: tensor cores
#
# [s3_wgmma.cu](../kernels/stages/s3_wgmma.cu) leaves the multiplying to the [tensor
# cores](glossary.md#tensor-core). One instruction, **[WGMMA](glossary.md#wgmma)**, multiplies a whole
# [tile](glossary.md#tile). In return it wants its operands in [shared memory](glossary.md#shared-memory), in
# a certain order, described in 64 bits of its own; it leaves its result scattered over the
# [registers](glossary.md#register) of 128 threads; and it does all that *later*. This lesson takes these one
# at a time.
#
# > **Needs:** lesson [03](03_tiled.ipynb). **Time:** 35 minutes to read, 65 for guesses and exercises; its
# > cells run in a minute, less when its kernels have been compiled. **May be skipped:** nothing.

# %%
from gemm_ladder.figures import lessons

lessons.enter()  # makes this folder the working directory, wherever Jupyter was started

import gemm_ladder as gl
import numpy as np
from gemm_ladder.figures import measured, rung_cards
from gemm_ladder.ref import fp8, gemm, layouts, metrics
from gemm_ladder.timeline import spans
from workshop import constants, drawing, drawing_shared, evidence, exercises, model, printed, workbench

drawing.style()
rung = gl.rungs["s3_wgmma"]

# %%
drawing.where("tensor cores", "registers", "shared memory", "banks")

# %% [markdown]
# ## What limited the rung below
#
# [Rung s2](03_tiled.ipynb) has its operands at hand, and nearly everything that it issues is an
# [FFMA](glossary.md#ffma). An FFMA is 32 multiplications and additions, one for each thread of a
# [warp](glossary.md#warp), and an [SM](glossary.md#sm) issues four a cycle. That is where it ends. A WGMMA is
# one instruction, too, which four warps issue together:

# %%
for name, fmas, warps in (("FFMA", 32, 1), ("WGMMA of 64 x 128 x 32", 64 * 128 * 32, 4)):
    print(f"{name:22} {fmas // warps:6} multiplications and additions for each instruction of a warp")

# %% [markdown]
# ## The idea
#
# A **[warpgroup](glossary.md#warpgroup)** is four warps, 128 threads. Together they compute a tile of D with
# 64 rows and 128 columns. For each [block of 128 along k](glossary.md#k-block) they copy A's and B's tiles to
# shared memory; then four WGMMAs multiply, each 32 of k further on; then the [CUDA
# cores](glossary.md#cuda-core) [promote](glossary.md#promotion).

# %%
drawing.wgmma_tile(128)

# %% [markdown]
# The instruction's full name is `wgmma.mma_async.m64nNk32`: m is always 64, k is always 32 for 8-bit
# operands, and n is a multiple of 8 up to 256.
#
# ## The change to the file
#
# Lines with `-` are [rung](glossary.md#rung) s2's, lines with `+` are new.

# %%
workbench.diff("s2_tiled", "s3_wgmma")

# %% [markdown]
# It reads more easily after the next five sections, which take its new words one by one.
#
# ## 1. Where a byte lies: the swizzle
#
# The 32 [banks](glossary.md#bank) of shared memory are those of [lesson 03](03_tiled.ipynb): threads that
# want different words of one bank take turns. [FP8](glossary.md#fp8) stays as it is now, without a
# conversion, and K is contiguous, as in [global memory](glossary.md#global-memory).
#
# A row of a tile has 128 bytes, which is all 32 banks once. A tensor core reads the *same* 16 bytes of k, a
# **chunk**, of eight rows at a time. How many turns does that take, if the rows lie one after the other?

# %% tags=["guess"]
exercises.guess("04.turns", None)


# %%
def turns(offsets):
    """How many turns it takes to read 16 bytes, four words, at each of these offsets at once."""
    return drawing_shared.turns(offsets, words=4)


row = np.arange(8)
for chunk in (0, 2):
    plain, swizzled = 128 * row + 16 * chunk, layouts.swizzle_128b(row, 16 * chunk)
    print(f"chunk {chunk} of rows 0 to 7: {turns(plain)} turns as the rows come, {turns(swizzled)} swizzled")
exercises.found("04.turns", int(turns(plain)), "turns as the rows come")

# %% [markdown]
# The **128-byte [swizzle](glossary.md#swizzle)** puts chunk c of row r at place c XOR (r mod 8). A row keeps
# its chunks, in another order; and in each column of the picture every chunk occurs once. The marked chunk
# then lies in eight different groups of banks.

# %%
drawing.banks(chunk=2)

# %%
workbench.slider(drawing.banks, chunk=(0, 7))

# %% [markdown]
# The threads that *write* the tile should not wait either. Eight neighbouring threads write the eight chunks
# of one row, and a row is all 32 banks, in whatever order:

# %%
print("writing one row, swizzled:", turns(layouts.swizzle_128b(3, 16 * np.arange(8))), "turn")

# %% [markdown]
# The pattern repeats every 8 rows, 1024 bytes: that is the swizzle's **atom**. The hardware computes the XOR
# from the address itself, from bits 7 to 9 into bits 4 to 6, so a tile has to begin at a multiple of 1024.
# `swizzle_128b` in [layout.cuh](../kernels/include/layout.cuh) does the same, and `copy_tile` uses it:

# %%
workbench.code(rung.source, "^template <int kRows>", "^}")

# %% [markdown]
# ## 2. Telling the tensor core: the descriptor
#
# A WGMMA is not given pointers. Each operand is a **[descriptor](glossary.md#descriptor)** of 64 bits: where
# the tile begins, how far it is from 8 rows to the next 8, and which swizzle it has. Let a kernel compute
# some:

# %%
out = np.zeros(3, np.uint64)
workbench.try_kernel(
    """
__global__ void descriptors(const void* in, uint64_t* out) {
    const uint32_t tile = ptx::shared_memory();
    out[0] = smem_descriptor(tile);
    out[1] = advance(smem_descriptor(tile), 32);  // the next 32 of k
    out[2] = smem_descriptor(tile + 64 * 128);    // behind 64 rows of 128 bytes
}
""",
    out,
    threads=32,
    shared_bytes=2 * 64 * 128,
)
for bits in out:
    print(f"0x{bits:016x}:\n    {layouts.SmemDescriptor.decode(int(bits))}")

# %%
drawing.descriptor(int(out[0]))

# %% [markdown]
# - **address**: shared memory's own addresses, which are 32 bits wide. This and the two offsets are kept in
#   units of 16 bytes: the bits hold a sixteenth of the number that the picture names.
# - **stride_byte_offset** (SBO): from one group of 8 rows to the next, one atom.
# - **leading_byte_offset** (LBO): not used by operands like these.
# - **base_offset**: 0 where the tile begins at a multiple of 1024.
# - **swizzle**: 1 is the 128-byte swizzle.
#
# The second one differs from the first in its address only, by 32 bytes: the next 32 of k are *inside* the
# swizzled rows. That this works is not obvious. The hardware adds the offset first and applies the XOR to the
# sum.
#
# ## 3. One WGMMA, alone: who gets what
#
# Multiply operands whose product says where it comes from: D[r, c] = 16 r + c. [E4M3](glossary.md#e4m3) holds
# these factors exactly, and four terms of k are enough. `shared_memory()` is where the block's shared memory
# begins, and `st_shared` stores at such an address; the other new functions are in the next section.

# %%
r, c = np.arange(64), np.arange(16)
a, b = np.zeros((64, 128)), np.zeros((16, 128))
a[:, 0], b[:, 0] = r // 8, 128
a[:, 1], b[:, 1] = r % 8, 16
a[:, 2], b[:, 2] = 1, c // 8 * 8
a[:, 3], b[:, 3] = 1, c % 8

ONE_WGMMA = """
__global__ void __launch_bounds__(128) one_wgmma(const uint8_t* in, float* out) {
    const uint32_t a = ptx::shared_memory(), b = a + 64 * 128;
    for (int i = threadIdx.x; i < (64 + 16) * 8; i += 128)  // 16 bytes at a time, A and then B
        ptx::st_shared(a + swizzle_128b(i * 16), reinterpret_cast<const uint4*>(in)[i]);
    ptx::fence_proxy_async();
    __syncthreads();

    float d[8];
    ptx::wgmma_fence();
    ptx::wgmma<16>(d, smem_descriptor(a), smem_descriptor(b), 0);
    ptx::wgmma_commit_group();
    ptx::wgmma_wait_group<0>();

    for (int i = 0; i < 8; ++i) out[threadIdx.x * 8 + i] = d[i];
}
"""


def one_wgmma(a, b, source=ONE_WGMMA, device=workbench.DEVICE):
    """What each of the 128 threads has in each of its 8 registers: float32 [128, 8]."""
    held = np.zeros((128, 8), np.float32)
    workbench.try_kernel(
        source, held, fp8.encode(np.concatenate([a, b])), shared_bytes=(64 + 16) * 128, device=device
    )
    return held


held = one_wgmma(a, b)
print("thread 0: ", held[0], "\nthread 5: ", held[5], "\nthread 32:", held[32])

# %% [markdown]
# Thread 0 has columns 0 and 1 of row 0, the same of row 8, then columns 8 and 9 of both rows. Thread 32, of
# the next warp, begins 16 rows further down. Compare all of them with what the documentation says,
# `layouts.wgmma_accumulator`:

# %%
rows, columns = layouts.wgmma_accumulator(16)
print("as documented:", np.array_equal(held, 16 * rows + columns))
drawing.fragment()

# %% [markdown]
# This is the [accumulator](glossary.md#accumulator) **[fragment](glossary.md#fragment)**. A thread has pieces
# of two rows, eight apart. So it needs two of A's scales, and that is why the kernel has `scale0` and
# `scale1`, and chooses by `i / 2 % 2`.
#
# ## 4. Later: fences, groups, waiting
#
# A WGMMA is *asynchronous*: the instruction starts the work, and the threads go on. Four more instructions
# say what is ordered.
#
# - **`fence_proxy_async`**. Ordinary stores and the tensor core reach shared memory by two different paths,
#   two **[proxies](glossary.md#proxy)**. What has been stored on one is guaranteed to be visible on the other
#   only behind this fence. In this repository each thread executes it for its own stores, and then comes
#   `__syncthreads`, because the tensor core reads what *all* threads wrote. That is the usual order, and not
#   the only one: [PTX](glossary.md#ptx) asks for a fence somewhere on the way from the store, by way of the
#   barrier, to the WGMMA. A warp that executes the fence behind the barrier, and then issues the WGMMA,
#   carries over all stores that the barrier has told it of. The [emulator](glossary.md#emulator) accepts
#   both.
# - **`wgmma_fence`** comes before the first WGMMA, and whenever the threads have touched the accumulators
#   since the last.
# - **`wgmma_commit_group`** closes a group of WGMMAs.
# - **`wgmma_wait_group<N>`** waits until at most N groups are unfinished. Before it, no thread may read the
#   accumulators or overwrite the operands.
#
# What is in the registers before the wait? A GPU promises nothing. The emulator puts NaN there, and names a
# thread that reads it, by its warp and [lane](glossary.md#lane):

# %%
wait = "    ptx::wgmma_wait_group<0>();\n"
look = "    for (int i = 0; i < 8; ++i) out[threadIdx.x * 8 + i] = d[i];\n"
too_early = ONE_WGMMA.replace(wait, "").replace(look, look + wait)
try:
    one_wgmma(a, b, too_early, device="cpu")
except gl.EmulatorError as fault:
    printed.show(fault)

# %% [markdown]
# The last argument of `wgmma`, `scale_d`, says whether it adds to the accumulators or starts from zero. The
# kernel passes `k != 0`: the first of a block's four starts anew, and clears the registers at no cost.
#
# ## 5. Why promote
#
# Add a small number to a large one with one WGMMA: 128 x 128 + 1 x 1, and next to it 64 x 64 + 1 x 1.

# %%
a, b = np.zeros((64, 128)), np.zeros((16, 128))
a[0, :2], b[0, :2] = (128, 1), (128, 1)
a[8, :2], b[1, :2] = (64, 1), (64, 1)
held = one_wgmma(a, b)
print(f"128 * 128 + 1 = {held[0, 0]:g}")  # row 0, column 0
print(f" 64 *  64 + 1 = {held[0, 3]:g}")  # row 8, column 1

# %% [markdown]
# The first sum lost its 1. A 32-bit float has 24 significant bits, and 15 would have done. The tensor core's
# adder keeps fewer: it lines all terms up with the largest one, and keeps 14 digits, counted from that one's
# first digit on. Over a long sum such losses add up, always toward zero. So the sum is taken out of the
# tensor core every 128 of k, scaled, and added to the total in true 32-bit arithmetic: that is the promotion.
#
# The emulator computes what the hardware does, by a model whose every result was compared with an H100's:

# %%
probe = measured.load(measured.DATA / "tensor_core_probe.json", row=("kind", "compared", "equal"))
equal, compared = (sum(row[key] for row in probe["rows"]) for key in ("equal", "compared"))
print(
    f"{equal:,} of {compared:,} results equal, bit for bit ({probe['meta']['gpu']}, {probe['meta']['date']})"
)

# %% [markdown]
# ## The kernel
#
# Now it can be read. The loop over blocks of 128, from the copy to the promotion:

# %%
workbench.code(rung.source, "for \\(int64_t block = 0", "^    }")

# %% [markdown]
# The second `__syncthreads` is for the next turn: no thread may overwrite a tile that a WGMMA still reads.
#
# Run it, check it:

# %%
problem = workbench.problem(m=70, n=136, k=512)  # ragged: the second tile of m has 6 rows, that of n has 8
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
# ## How fast it is
#
# First the prediction. The model of s2 took the fullest unit, because all units worked at the same time. Here
# they do not: for each K block a [thread block](glossary.md#thread-block) copies A's tile, then B's, then
# multiplies, then promotes, and each step waits for the one before. So this rung's terms are *added*, and
# there are two new ones:
#
# - **tensor cores**: 8192 FP8 operations a cycle and SM, so 256 cycles for a K block of 64 x 128,
# - **latency**: the time from a load to its data. It is hundreds of cycles from [L2](glossary.md#l2) or
#   memory, and the model has 800, for a GPU on which everybody loads at once. A thread waits three times: for
#   A's tile, for B's, and, beside the WGMMAs, for A's scales.
#
# The promotion is here, too, with 1.5 cycles for each column of 64 rows. The SM's 128 CUDA cores could do it
# in half a cycle; the rest is waiting, and lesson 10 asks how much of it can go. From here on cycles become
# microseconds at 1.65 GHz, the [SM clock](glossary.md#sm-clock) of a GPU whose tensor cores work.
#
# Guess the microseconds for 4096 x 7168 x 2048, and how many times as fast as s2_tiled the kernel is there.

# %%
constants.show("s3_wgmma")

# %% tags=["guess"]
exercises.guess("04.us", None)
exercises.guess("04.faster", None)

# %%
model.code(model.s3, model.tensor, model.promotion)

# %%
size = (4096, 7168, 16384)
evidence.predict("s3_wgmma", size)

# %% [markdown]
# Nearly all of it is latency. Do you believe that? (The tensor cores' 278 us are half of the floor's 539 in
# lesson 02. Two blocks share an SM and work at the same time, each on half of the tiles; and this is what one
# of these two chains waits for its own products. That the two may be in each other's way is not in the
# model.)

# %%
notes = drawing.bars(
    ["s1_naive", "s2_tiled", "s3_wgmma", "cublaslt_blockwise", "cublaslt_tensorwise"], size, marked="s3_wgmma"
)
tflops = {
    one.impl: one.tflops[size] for one in measured.series(measured.recorded(), "dirty") if size in one.tflops
}
evidence.faster("04.faster", "s3_wgmma", "s2_tiled")
print(f"{tflops['s3_wgmma'] / tflops['cublaslt_tensorwise']:.0%} of the ceiling")
print(*notes, sep="\n")

# %%
evidence.compare("s3_wgmma", "04.us")

# %% [markdown]
# A chain of waits, with round numbers, is most of this kernel's time. Where the prediction is lowest, at
# 0.78, k is short, and what a tile costs before its first K block and after its last one is not in the model
# yet. How much would that be for each [wave](glossary.md#wave)?

# %%
evidence.a_wave("s3_wgmma", [(4096, 32768, 512)])

# %% [markdown]
# ## What limits it now
#
# Look at the thread first. Where most of the time is latency, the tensor cores cannot be busy:

# %%
evidence.thread("s3_wgmma")

# %% [markdown]
# Record a run and draw what the first block does. Look at the order, not at the lengths: on the emulator
# orange fills half of the picture, while by the model the products take a tenth of the time. Between the
# orange bars nothing is multiplied. (The four warps issue a WGMMA together; each warp's bar ends when that
# warp has looked whether it is done, so they are not equally long.) A warp's own row is grey throughout, and
# has no colour for copying and promoting. Both consist of ordinary instructions, and the emulator lets a warp
# run through those within one step, up to the next wait. So they have no length here: they are the white
# lines between two waits. Behind a dark piece comes the promotion; then the warp waits for the others,
# copies, and waits for the others again.

# %%
with gl.emulator(seed=2, record=True) as run:
    workbench.multiply(rung, workbench.problem(64, 128, 512), "cpu")
found = spans.spans(spans.of_emulator(run.events))
drawing.timeline(found, max(span.end for span in found), "s3_wgmma: four blocks of k")

# %% [markdown]
# Between the orange bars no tensor core of the block has anything to do. The kernel copies, *then*
# multiplies, *then* promotes, and while it does one of them the hardware for the others is idle. Two blocks
# share an SM, as `__launch_bounds__(kThreads, 2)` asks for, and may fill each other's gaps, but more do not
# fit:

# %%
card = next(row for row in rung_cards.load(measured.DATA / "cards.json")["rows"] if row["rung"] == "s3_wgmma")
registers = 65536  # of an SM: "Technical Specifications per Compute Capability", CUDA C++ Programming Guide
rounded = -(-card["registers"] // 8) * 8  # registers are given out in eights
print(f"{card['registers']} registers a thread, {card['threads']} threads a block:", end=" ")
print(f"room for {registers // (rounded * card['threads'])} blocks an SM")

# %% [markdown]
# Most of these registers are `total` and `partial`, and the bytes on their way from global memory to shared
# memory, which pass through registers too. The card:

# %%
workbench.card("s3_wgmma")

# %% [markdown]
# The next rung hands the copying to an engine of its own, which writes shared memory without any thread's
# help, so that the next tiles arrive while these are multiplied.
#
# ## Break it
#
# Predict, then run. Each cell plants one fault in the kernel and runs it under eight
# [schedules](glossary.md#schedule).

# %%
problem = workbench.problem(m=64, n=128, k=512)

# %% [markdown]
# **1.** The threads store the tile without the swizzle; the descriptor still says 128-byte swizzle.

# %% tags=["guess"]
exercises.guess_break("04.break1", line=None, then=None)

# %% tags=["break"]
plain = "((r + i * kRowsPerStep) * kSwizzleRow + chunk * kChunk)"
workbench.break_it("s3_wgmma", problem, (f"swizzle_128b{plain}", plain), guess="04.break1")

# %% [markdown]
# <details><summary>Why</summary>
#
# In every row but those with r mod 8 = 0, chunks of k change places. A's rows and B's rows that meet have
# been mixed up differently, so products of the wrong k are added. Nothing is out of bounds, so no fault is
# named: it is just wrong. Where r mod 8 is the same in both rows, they were mixed up alike, and the result is
# right up to the order of addition. So the first wrong element is D[0, 1]: D[0, 0] is right.
#
# </details>
#
# **2.** B's descriptor has half the stride byte offset: 512.

# %% tags=["guess"]
exercises.guess_break("04.break2", line=None, then=None)

# %% tags=["break"]
workbench.break_it(
    "s3_wgmma",
    problem,
    ("desc_b = smem_descriptor(smem_b);", "desc_b = smem_descriptor(smem_b) ^ (96ull << 32);"),
    guess="04.break2",
)

# %% [markdown]
# <details><summary>Why</summary>
#
# The tensor core takes rows 8 to 15 of B from 512 bytes further on, which is row 4. The first eight columns
# of D are right, and the others are copies of columns further to the left.
#
# </details>
#
# **3.** The accumulators are promoted before the wait.

# %% tags=["guess"]
exercises.guess_break("04.break3", line=None, then=None)

# %% tags=["break"]
WAIT = "        ptx::wgmma_wait_group<0>();\n"
PROMOTE = (
    "#pragma unroll\n        for (int i = 0; i < kRegisters; ++i) "
    "total[i] = fmaf(partial[i], i / 2 % 2 ? scale1 : scale0, total[i]);\n"
)
workbench.break_it("s3_wgmma", problem, (WAIT + PROMOTE, PROMOTE + WAIT), guess="04.break3")

# %% [markdown]
# <details><summary>Why</summary>
#
# Until the wait the contents of the registers are undefined, and the emulator names the thread that reads
# them. On a GPU you would get the sum of an unknown part of the products; or ptxas, the last stage of the
# compiler, would notice, and put a wait of its own behind every WGMMA.
#
# </details>
#
# **4.** The `__syncthreads` at the end of the loop is gone.

# %% tags=["guess"]
exercises.guess_break("04.break4", line=None, then=None)

# %% tags=["break"]
workbench.break_it(
    "s3_wgmma",
    problem,
    ("__syncthreads();  // the next copy must not overwrite a tile that is still being read", ""),
    guess="04.break4",
)

# %% [markdown]
# <details><summary>Why</summary>
#
# Nothing goes wrong, and that is not luck: the four warps of a warpgroup issue a WGMMA together, its group is
# one "per warpgroup" in PTX's words, and a wait for it is a wait for the parts of all four. So a warp that is
# ahead knows that this tile has been read. With a second warpgroup in the block it would not, because its
# wait does not cover the other one's WGMMAs. The barrier stays, because a kernel that grows should not depend
# on how many warps it has.
#
# </details>
#
# **5.** Every WGMMA adds to what is there: `scale_d` is always 1.

# %% tags=["guess"]
exercises.guess_break("04.break5", line=None, then=None)

# %% tags=["break"]
workbench.break_it("s3_wgmma", problem, ("k != 0);", "1);"), guess="04.break5")

# %% [markdown]
# <details><summary>Why</summary>
#
# The first K block adds to registers that have not been set. Each later one begins with the sum of the one
# before, which is then scaled and added again.
#
# </details>
#
# ## Exercises
#
# **1.** The swizzle: the offset in a tile of 128-byte rows at which the byte `byte` of row `row` lies.


# %% tags=["exercise"]
def swizzle(row, byte):
    return 128 * row + byte


# %% tags=["check"]
exercises.check("04.1", swizzle)

# %% [markdown]
# **2.** The descriptor of a tile at `address`, with the 128-byte swizzle: an integer of 64 bits.


# %% tags=["exercise"]
def descriptor(address):
    return address >> 4


# %% tags=["check"]
exercises.check("04.2", descriptor)

# %% [markdown]
# **3.** Which element of the tile does thread `thread` of the warpgroup hold in register `i`? Return (row,
# column).


# %% tags=["exercise"]
def element(thread, i):
    return thread // 32 * 16, i


# %% tags=["check"]
exercises.check("04.3", element)

# %% [markdown]
# **4.** The lines between the copying and the first WGMMA are missing from the kernel. Write them, from
# memory and by the reasons of section 4. The check tells you what the emulator says.

# %% tags=["exercise"]
between = """
"""

# %% tags=["check"]
exercises.check("04.4", between)

# %% [markdown]
# **5.** A whole kernel. Two warpgroups share a tile of B: a block makes 128 x 128 outputs, the first
# warpgroup the upper 64 rows, the second the lower. A byte of B that has been copied is then used twice as
# often as in s3_wgmma. The frame has `copy_tile` and the launcher; write the kernel. Break 4 told you what
# two warpgroups need that one does not.

# %%
exercises.frame("04.5")

# %% tags=["exercise"]
kernel = """
__global__ void __launch_bounds__(kThreads, 1) mine(const GemmArgs p) {
    // Which tile is this block's, which half of it this warpgroup's, which two rows this thread's?
    // Two descriptors.
    // For each block of 128 of k: copy, make it visible, meet; multiply; wait; promote; meet.
    // Store what is inside D, two neighbours at a time.
}
"""

# %% tags=["check"]
exercises.check("04.5", kernel)

# %% [markdown]
# Next: [what 14 bits do to long sums](05_precision.ipynb).
