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
# # Rung s1: one thread for each output
#
# [Rung](glossary.md#rung) `s0_numpy` is the definition. The other rungs are compared with it, and its speed
# does not matter. This lesson puts the same formula on a GPU, in the plainest way there is:
# [s1_naive.cu](../kernels/stages/s1_naive.cu), a kernel that you can read in a minute. It is slow, and you
# will count why.
#
# > **Needs:** lesson [01](01_fp8_numbers.ipynb). **Time:** 30 minutes to read, 40 for guesses and exercises;
# > its cells run in half a minute, less when its kernels have been compiled. **May be skipped:** nothing.

# %%
from gemm_ladder.figures import lessons

lessons.enter()  # makes this folder the working directory, wherever Jupyter was started

import gemm_ladder as gl
import numpy as np
from gemm_ladder.ref import fp8, gemm, metrics
from matplotlib import pyplot as plt
from workshop import constants, drawing, drawing_results, evidence, exercises, model, workbench

drawing.style()
rung = gl.rungs["s1_naive"]

# %%
drawing.where("SM", "registers", "CUDA cores", "L1")

# %% [markdown]
# ## The idea
#
# Every element of D is an independent sum, so each gets a thread of its own. A [thread
# block](glossary.md#thread-block), or block for short, of 256 threads computes 8 x 32 outputs. The 32 threads
# of a **[warp](glossary.md#warp)**, which execute together, have 32 neighbours of one row.

# %%
drawing.naive_block(8, 32)

# %% [markdown]
# Here is the kernel. Compare it with `product` in [the first lesson](00_start_here.ipynb): the loop over [K
# blocks](glossary.md#k-block), blocks of 128 along k, and the [promotion](glossary.md#promotion) at its end
# are the same two steps.

# %%
workbench.code(rung.source, "__global__", "^}")

# %% [markdown]
# And here is how it is started. `launch` is a function of the repository, because the
# [emulator](glossary.md#emulator) has one of the same name: it takes the number of blocks and of threads, and
# the kernel's arguments.

# %%
workbench.code(rung.source, 'extern "C"', "^}")

# %% [markdown]
# Line by line:
#
# - `row` and `column` say which output is this thread's. Blocks are numbered along n first.
# - A thread outside of D returns. That is all that m and n of any size need.
# - `a` and `b` point to the two rows that meet. `sfb` is the row of B's scales for this column.
# - A's scales are read as `sfa[block * sfa_stride + row]`: m is contiguous, as at the end of [the last
#   lesson](01_fp8_numbers.ipynb).
# - `end` takes care of a last block of k that is shorter.
#
# ## The new instructions, one by one
#
# A kernel of this repository never writes assembly. It calls a function of
# [ptx.cuh](../kernels/include/ptx.cuh), one for each instruction, and the emulator has the same functions. So
# you can try one alone. `workbench.try_kernel` compiles the text that you give it and runs one block of it.
#
# **`cvt_f32_e4m3`** turns an [E4M3](glossary.md#e4m3) byte into a 32-bit float. Give every byte to a thread,
# and compare with the table of the last lesson:

# %%
out = np.zeros(256, np.float32)
workbench.try_kernel(
    """
__global__ void every_byte(const uint8_t* in, float* out) {
    out[threadIdx.x] = ptx::cvt_f32_e4m3(static_cast<uint8_t>(threadIdx.x));
}
""",
    out,
    threads=256,
)
print("byte 0x38 is", out[0x38], "  byte 0x7E is", out[0x7E], "  byte 0x7F is", out[0x7F])
print(
    "all as fp8.decode says:", np.array_equal(out, fp8.decode(np.arange(256, dtype=np.uint8)), equal_nan=True)
)

# %% [markdown]
# **`fmaf(x, y, z)`** is $xy + z$, rounded *once*. A multiplication followed by an addition rounds twice, and
# that can be another number:

# %%
x = np.float32(1 + 2**-12)
inputs, out = np.array([x, x, -1], np.float32), np.zeros(2, np.float32)
workbench.try_kernel(
    """
__global__ void fused(const float* in, float* out) {
    out[0] = fmaf(in[0], in[1], in[2]);
    volatile float product = in[0] * in[1];  // volatile: the compiler may not fuse it
    out[1] = product + in[2];
}
""",
    out,
    inputs,
    threads=32,  # one warp, the least that can be started
)
exact = float(x) ** 2 - 1
print(f"exact:     {exact!r}\nfused:     {float(out[0])!r}\nin two:    {float(out[1])!r}")

# %% [markdown]
# Left to itself, a compiler may fuse or not. The kernels say `fmaf` wherever the bits matter, and so two
# machines can agree to the last bit.
#
# **`cvt_rn_bf16x2_f32(high, low)`** rounds two floats to [BF16](glossary.md#bf16) and packs them into 32
# bits. BF16 is the upper half of a 32-bit float, and ties go to the even one:

# %%
inputs = np.array([1, 1 + 2**-8, 1 + 3 * 2**-8, -3.14159], np.float32)
out = np.zeros(2, np.uint32)
workbench.try_kernel(
    """
__global__ void to_bf16(const float* in, uint32_t* out) {
    const int i = threadIdx.x;
    if (i < 2) out[i] = ptx::cvt_rn_bf16x2_f32(in[2 * i + 1], in[2 * i]);
}
""",
    out,
    inputs,
    threads=32,
)
for value, bits in zip(inputs, out.view(np.uint16), strict=True):
    print(f"{value:.6f} -> 0x{bits:04x} = {float(np.uint32(int(bits) << 16).view(np.float32)):.6f}")

# %% [markdown]
# ## Run it, check it

# %%
problem = workbench.problem(m=70, n=150, k=300)  # nothing is a multiple of anything
d = workbench.multiply(rung, problem)
exact = gemm.dense(*problem.arrays)
print("relative error:                 ", metrics.relative_error(d, exact))
print("of the definition, as BF16:     ", metrics.relative_error(gemm.to_bf16(exact), exact))
print("largest relative error of a row:", metrics.max_row_error(d, exact))
print(
    "the expected bits:              ",
    workbench.difference(d, workbench.expected("s1_naive", problem)) is None,
)

# %% [markdown]
# The last line is the strongest. `tensor_core.cuda_core_gemm` does the same additions in the same order in
# NumPy and Numba, so there is one right answer, bit for bit, and the kernel gives it on the emulator and on
# the GPU.
#
# ## How fast it is: first a prediction
#
# From here on every lesson predicts its rung's time before it looks. The model for that begins with what *no*
# kernel can be faster than. Every byte of A, B and D has to move once, and every multiplication has to be
# done. These are the two in microseconds, with what a copy reaches on the GPU that was measured, and with its
# [tensor cores](glossary.md#tensor-core) at the clock that they keep under load:

# %%
model.code(model.floor)

# %%
constants.show("floor")
size = (4096, 7168, 16384)
for m, n, k in (size, (64, 7168, 16384)):
    print(
        f"{m} x {n} x {k}:", ", ".join(f"{us:.0f} us of {name}" for name, us in model.floor(m, n, k).items())
    )

# %% [markdown]
# The lessons' model has no other constants than those that are shown like this, each where it comes in, with
# its origin. Two of these are of the **[SM clock](glossary.md#sm-clock)**, how many cycles an
# [SM](glossary.md#sm) does in a second. A GPU sets it itself. `FULL_MHZ`, 1.98 GHz, is its upper limit; the
# model has s1 and s2 run at it, as they need little power. `CLOCK_MHZ`, 1.65 GHz, is what remains when busy
# tensor cores bring the GPU to its power limit. A third figure, 1.83 GHz, is NVIDIA's: the data sheet's 1979
# [TFLOPS](glossary.md#tflops) are those of that clock. (`WGMMA_FLOPS` is named after the instruction that
# drives the tensor cores, in lesson 04.) Wherever a lesson turns cycles into microseconds, it says by which
# of the three.
#
# The longer of the two times is the floor. (A GPU at a clock above 1.65 GHz could be faster than the tensor
# cores' floor, by a fifth at most; none of those measured here is.) With 4096 rows it is the tensor cores';
# with 64 rows each byte of B is used 64 times instead of 4096, and the floor is memory's. A kernel works at
# both at the same time, so they are not added.
#
# s1 has no tensor cores, but FP32 pipes: on each SM 128 `fmaf` a cycle instead of 4096, at 1.98 GHz. How
# many microseconds will it take for 4096 x 7168 x 2048? (Lesson 00's bars would tell; do not look.) And how
# many times as fast is the [ceiling](glossary.md#ceiling), NVIDIA's library on the tensor cores, where
# memory is its floor, at 64 x 7168 x 16384?

# %% tags=["guess"]
exercises.guess("02.us", None)
exercises.guess("02.ceiling", None)

# %%
notes = drawing.bars(["s1_naive", "cublaslt_tensorwise"], size, marked="s1_naive")
naive, ceiling = (drawing_results.times(impl) for impl in ("s1_naive", "cublaslt_tensorwise"))
m, n, k = evidence.GUESSED
pipes = m * n * k / (model.FMAS * model.SMS * model.FULL_MHZ)
off = naive[m, n, k] / pipes
exercises.found("02.us", naive[m, n, k], f"us at {m} x {n} x {k}")
print(f"The FP32 pipes alone need {pipes:.0f} us: as a prediction, off {off:.0f}-fold.")
few = (64, 7168, 16384)
exercises.found("02.ceiling", naive[few] / ceiling[few], f"times as fast at {drawing_results.name(few)}")
print(*notes, sep="\n")

# %% [markdown]
# The same as a picture, the **[roofline](glossary.md#roofline)**. To the right: [operations for each
# byte](glossary.md#arithmetic-intensity) that has to move, a property of the shape. Upwards: operations a
# second. A floor of the time is a roof of the speed. The slope is what memory allows, the flat part what the
# tensor cores allow, and both are drawn twice: dotted by the data sheet (at its 1.83 GHz), and as a full line
# where they have been reached on this GPU, by a copy and by the ceiling. No dot can be above the dotted
# lines, and none here is above the full ones. A dot far below is limited by something else, and this kernel
# is.

# %%
drawing_results.roofline([(64, 7168, 16384), size], ["s1_naive", "cublaslt_tensorwise"])

# %% [markdown]
# ## What limits it
#
# Count what one multiplication and one addition cost. The inner loop loads a byte of A and a byte of B,
# converts each by two instructions, and does one `fmaf`: seven at the least, one of which does what we want.
# The rest of the answer is in memory. First, how often is each byte read?

# %%
m, n, k = size
loaded = 2 * m * n * k  # a byte of A and a byte of B for each multiplication
needed = m * k + n * k
print(f"bytes that the threads load: {loaded / 1e12:.2f} TB")
print(f"bytes of A and B:            {needed / 1e6:.0f} MB")
print(f"each byte of A is loaded {n} times, each byte of B {m} times")
print(f"operations for each byte loaded: {2 * m * n * k / loaded:g}")

# %% [markdown]
# One multiplication and one addition for two bytes. That ratio of operations to bytes is the **arithmetic
# intensity**, and here it is as low as it gets, because nothing that was loaded is used twice by the thread
# that loaded it.
#
# The caches answer most of these loads, but they have to be asked. A warp's load is served in
# **[sectors](glossary.md#sector)** of 32 bytes. Which sectors do the 32 threads of a warp touch in one step
# of the loop?

# %%
SECTOR = 32  # bytes: "Device Memory Accesses" in the CUDA C++ Programming Guide


def sectors(addresses):
    """How many sectors a warp's load touches."""
    return len(np.unique(np.asarray(addresses) // SECTOR))


lane = np.arange(32)
step = 0  # of k
of_a = 17 * k + step + 0 * lane  # all threads of a warp have the same row of A
of_b = (64 + lane) * k + step  # ... and 32 different rows of B
print("A:", sectors(of_a), "sector for the warp, of which 1 byte is used")
print("B:", sectors(of_b), "sectors for the warp, of which", len(of_b), "bytes are used")
share = (1 + len(of_b)) / (SECTOR * (sectors(of_a) + sectors(of_b)))
print(f"used: {share:.1%} of the bytes that the cache hands over")

_, axes = plt.subplots(figsize=(9, 2.6))
for y, (words, addresses) in enumerate(
    {"A": of_a, "B": of_b, "if k went across the warp": of_a + lane}.items()
):
    row = addresses - addresses.min()
    axes.scatter(row / k, np.full(32, y), s=14, color=(drawing.BLUE, drawing.ORANGE, drawing.GREEN)[y])
    axes.text(33, y, f"{words}: {sectors(addresses)} sector{'s' * (sectors(addresses) > 1)}", va="center")
axes.set_xlim(-1, 44)
axes.set_ylim(2.6, -0.6)
axes.set_yticks([])
axes.set_xticks(range(0, 32, 4))
axes.set_xlabel("address, in rows of k bytes from the first thread's")
axes.set_title("What the 32 threads of a warp load in one step")
axes.spines["left"].set_visible(False)
plt.show()

# %% [markdown]
# The green dots, all in one place, are how one would like it: 32 neighbouring threads, 32 neighbouring bytes.
# Such a load is called **[coalesced](glossary.md#coalesced)**. Here every byte of B costs a sector of its
# own. The next steps of k find their bytes in the same sectors, in the cache; but the cache is asked for all
# of them, every time.
#
# By these counts the limit is not the arithmetic, and not the memory of the GPU. It is the traffic between
# the cache and the threads, and the instructions around each `fmaf`. The next lesson makes a number of it.
#
# ## How to read a card
#
# Each rung has a card, and each of the following lessons shows one. Two tables say what the compiler made of
# the kernel. Two are from a profiler, NVIDIA's Nsight Compute (`ncu`), which counted while it ran:

# %%
workbench.card("s1_naive")

# %% [markdown]
# Read it from the line in bold type downwards.
#
# 1. **What is full?** For each unit of an SM, and for [L2](glossary.md#l2) and memory, there is a percentage
#    of what it could do. From 80 % on the unit is the limit: ask it for less. Here that is
#    [L1](glossary.md#l1), as we have just counted.
# 2. **Nothing is full?** If all units are below 60 %, the warps wait, and the last table says what for: for
#    memory, for a barrier, for a result. Then the cure is more work at the same time, not less work. Between
#    60 and 80 % it is some of both: a unit is near its limit, and yet there are times in which it has nothing
#    to do, because the warps wait. So the line in bold type names both, the unit and the wait. (The two
#    thresholds are NVIDIA's, of Nsight Compute.)
# 3. **Who is [resident](glossary.md#occupancy)?** Few resident warps can hide little waiting.
#    [Registers](glossary.md#register) and [shared memory](glossary.md#shared-memory) of a block, at the top,
#    say how many fit: an SM has 65536 registers and 228 KB.
# 4. **The machine code** says whether the instructions are there that you have meant. Most rows are 0 here.
#    They are instructions that later lessons bring in: [QGMMA](glossary.md#wgmma) multiplies on the tensor
#    cores ([04](04_wgmma.ipynb)). UTMALDG orders a load of the [copy engine](glossary.md#copy-engine) and
#    SYNCS works on a barrier in shared memory, an [mbarrier](glossary.md#mbarrier) (both [06](06_tma.ipynb));
#    a [multicast](glossary.md#multicast) load is for several blocks ([07](07_tma_multicast.ipynb)); UTMASTG
#    orders a store of the copy engine ([09](09_persistent.ipynb)). BAR is `__syncthreads` and its kind
#    ([03](03_tiled.ipynb)), [FFMA](glossary.md#ffma) is `fmaf`, and a yielding one lets another warp go first
#    ([10](10_ffma_interleave.ipynb)).
#
# Two things to know when you compare. ncu looked at k = 2048, and the bars of speed are of k = 16384: at the
# shorter k the two ends of a [tile](glossary.md#tile) weigh more, so a rung may look worse here than there.
# And "the FP32 pipe" is busy for 2.3 %, not for one part in 135, 0.74 %. Each E4M3 number becomes a float by
# two instructions. The conversion pipe has neither of them (0.0), and three times 0.74 is 2.2: so the `fmaf`
# and one instruction of each of the two conversions seem to share the FP32 pipe. Among the waits, "a delay
# that the compiler has set" is a number of cycles in the instruction itself; "room in the queue to [global
# memory](glossary.md#global-memory)" is a place for one more load.
#
# One row is the thread through all lessons: the tensor cores. A product is done when they are busy all the
# time. Here and in the next rung they are never busy; from [lesson 04](04_wgmma.ipynb) on each lesson shows
# their share, and the rungs do little but raise it.
#
# Two cures are old. Load a tile once into the **shared memory** of a block and let all of its threads use it;
# and let each thread make many outputs. The next rung has both.
#
# ## Break it
#
# Predict each symptom before you run the cell. The problem has four blocks of k and two blocks of n.

# %%
problem = workbench.problem(m=24, n=256, k=512)

# %% [markdown]
# **1.** `partial` is set to zero once, before the loop over blocks, and not in each of its turns.

# %% tags=["guess"]
exercises.guess_break("02.break1", line=None, then=None)

# %% tags=["break"]
workbench.break_it(
    "s1_naive",
    problem,
    ("        float partial = 0.0f;\n", ""),
    ("    float total = 0.0f;\n", "    float total = 0.0f, partial = 0.0f;\n"),
    guess="02.break1",
)

# %% [markdown]
# <details><summary>Why</summary>
#
# Every block's products stay in the sum and are scaled again, with the scales of the blocks after it. All
# elements are wrong, and none is NaN: only a comparison with the right result finds this.
#
# </details>
#
# **2.** The row of B's scales is forgotten: `sfb` starts at the first row for every column.

# %% tags=["guess"]
exercises.guess_break("02.break2", line=None, then=None)

# %% tags=["break"]
workbench.break_it(
    "s1_naive", problem, ("p.sfb + column / kScaleK * ceil_div(p.k, kScaleK)", "p.sfb"), guess="02.break2"
)

# %% [markdown]
# <details><summary>Why</summary>
#
# Columns 0 to 127 do have the first row of scales. Only the others are wrong. A test with n = 128 would pass,
# and so would one in which all scales are equal.
#
# </details>
#
# **3.** A multiplication and an addition, each rounded, in place of the inner `fmaf`.

# %% tags=["guess"]
exercises.guess_break("02.break3", line=None, then=None)

# %% tags=["break"]
workbench.break_it(
    "s1_naive",
    problem,
    (
        "partial = fmaf(ptx::cvt_f32_e4m3(a[k]), ptx::cvt_f32_e4m3(b[k]), partial);",
        "{ volatile float x = ptx::cvt_f32_e4m3(a[k]) * ptx::cvt_f32_e4m3(b[k]); partial = x + partial; }",
    ),
    guess="02.break3",
)

# %% [markdown]
# <details><summary>Why</summary>
#
# The product of two E4M3 numbers has at most 8 significant bits, so a 32-bit float holds it exactly: the
# first rounding rounds nothing. In the promotion, where the scales have all their bits, it would make a
# difference.
#
# </details>
#
# ## Exercises
#
# **1.** The promotion is missing from the kernel. Without scrolling up, write the line: `partial` is the sum
# over this block, `row` this thread's row, and the result belongs in `total`, rounded as the rung rounds it.

# %% tags=["exercise"]
promotion = "total += partial;"

# %% tags=["check"]
exercises.check("02.1", promotion)

# %% [markdown]
# **2.** Which thread of which block computes D[i, j] where D has n columns? Return (block, thread).


# %% tags=["exercise"]
def who(i, j, n):
    block = 0
    thread = i % 8 * 32 + j % 32
    return block, thread


# %% tags=["check"]
exercises.check("02.2", who)

# %% [markdown]
# **3.** Suppose a block loaded the operands of a tile of `rows` x `columns` outputs into shared memory, each
# byte once, and all of its threads read them there. How many operations would there be for each byte loaded
# from the cache?


# %% tags=["exercise"]
def intensity(rows, columns):
    return 1.0


# %% tags=["check"]
exercises.check("02.3", intensity)

# %% [markdown]
# Next: [tiles in shared memory and in registers](03_tiled.ipynb).
