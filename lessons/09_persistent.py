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
# # Rung s7: blocks that stay
#
# [Rung](glossary.md#rung) s6 has a [producer](glossary.md#producer) and two
# [consumers](glossary.md#consumer), which end after one [tile](glossary.md#tile). In
# [s7_persistent.cu](../kernels/stages/s7_persistent.cu) they stay, and go from tile to tile. With that come a
# buffer from which the [copy engine](glossary.md#copy-engine) stores a tile while the next one is multiplied,
# B's scales by TMA, and a second shape of tiles.
#
# The roles are those of [lesson 08](08_warp_specialized.ipynb).
#
# > **Needs:** lesson [08](08_warp_specialized.ipynb). **Time:** 40 minutes to read, 50 for guesses and
# > exercises; its cells run in a minute, less when its kernels have been compiled. **May be skipped:**
# > nothing.

# %%
from gemm_ladder.figures import lessons

lessons.enter()  # makes this folder the working directory, wherever Jupyter was started

import gemm_ladder as gl
import numpy as np
from gemm_ladder.arguments import GemmArgs
from gemm_ladder.figures import measured, timeline
from gemm_ladder.ref import gemm, layouts, metrics
from workshop import (
    constants,
    drawing,
    drawing_tiles,
    drawing_warps,
    evidence,
    exercises,
    model,
    printed,
    workbench,
)

drawing.style()
rung = gl.rungs["s7_persistent"]

# %%
drawing.where("GPU", "L2", "TMA", "shared memory")

# %% [markdown]
# ## What limited the rung below
#
# A [thread block](glossary.md#thread-block) of s6 begins with an empty [ring](glossary.md#ring), and ends
# with a store during which nothing is multiplied. Here it is, and below it the new rung, on the
# [emulator](glossary.md#emulator): an order, without durations.

# %%
drawing_warps.before_after(
    drawing_warps.on_emulator("s6_warp_specialized"), drawing_warps.on_emulator("s7_persistent")
)

# %% [markdown]
# And recorded on a GPU, a block of each while they computed the same product. Of each role you see the first
# [warp](glossary.md#warp). The block of s6 makes one tile, stores it until beyond the picture's end, and
# ends; the block of s7 goes on to its next.

# %%
below, mine = drawing_warps.on_gpu("s6_warp_specialized"), drawing_warps.on_gpu("s7_persistent")
if below and mine:
    drawing_warps.before_after(below, mine, until=min(rows[0]["until"] for rows in (below, mine)))
    for rows in (below, mine):
        print(f"{rows[0]['rung']}, k = {rows[0]['k']}:\n    {timeline.share_in_words(rows[0])};")
        print(
            f"    {timeline.beside(rows):.0%} of this block's promotion beside its other warpgroup's WGMMAs"
        )

# %% [markdown]
# ## The change to the file
#
# A line that only moved to the right is not shown as changed. Scroll through it now, and read it after the
# next four sections.

# %%
workbench.diff("s6_warp_specialized", "s7_persistent", context=1)

# %% [markdown]
# The constants are in a `struct` now, because there are two sets of them: `Kernel<256, 128, 3>` and
# `Kernel<128, 192, 4>`.
#
# ## 1. B's scales come by TMA too
#
# In s6 every consumer thread read B's scale from [global memory](glossary.md#global-memory), in every [block
# of k](glossary.md#k-block). Here the producer orders it with the rest of the [stage](glossary.md#stage). A
# scale has 4 bytes, and the copy engine has a smallest unit: a [box](glossary.md#box)'s row has a multiple of
# 16 bytes, and begins at a multiple of 16. So a box has four scales, and the wanted one is somewhere in it.
# Load the box that has scale 6; then try one that begins there:

# %%
SCALES = """
__global__ void __launch_bounds__(32) scales(const __grid_constant__ TensorMap map, float* out) {
    const uint32_t box = ptx::shared_memory(), full = box + kScalePitch;
    if (threadIdx.x == 0) {
        ptx::mbarrier_init(full, 1);
        ptx::fence_mbarrier_init();
        ptx::mbarrier_arrive_expect_tx(full, kScaleBox * sizeof(float));
        ptx::cp_async_bulk_tensor_2d(box, &map, full, 6 / kScaleBox * kScaleBox, 0);
    }
    __syncwarp();
    ptx::mbarrier_wait_parity(full, 0);
    if (threadIdx.x < kScaleBox) out[threadIdx.x] = ptx::ld_shared<float>(box + threadIdx.x * sizeof(float));
}

// The host's part: the scales are one row, of ten.
using Scales = void (*)(TensorMap, float*);
const char* launch(Scales kernel, LaunchConfig config, const void* in, void* out) {
    TensorMap map;
    const float* scales = static_cast<const float*>(in);
    if (auto error = tensor_map_2d(&map, scales, 1, 10, 12, 1, kScaleBox, Swizzle::kNone)) return error;
    return launch(kernel, config, map, static_cast<float*>(out));
}
"""
ten, box = np.arange(10, dtype=np.float32), np.zeros(4, np.float32)
workbench.try_kernel(SCALES, box, ten, threads=32, shared_bytes=256)
print(f"the box: {box}; scale 6 is at {6 % 4}")
try:
    begins_there = SCALES.replace("6 / kScaleBox * kScaleBox", "6")
    workbench.try_kernel(begins_there, box, ten, threads=32, shared_bytes=256, device="cpu")
except gl.EmulatorError as error:
    printed.show(error)

# %% [markdown]
# In [shared memory](glossary.md#shared-memory) every box begins at a multiple of 128. That is `kScalePitch`:
# the tile of 192 columns needs two of B's scales, and so two boxes, 128 bytes apart. The consumers look for
# theirs at `in_box`.
#
# ## 2. From registers to shared memory: `stmatrix`
#
# In s6 each thread wrote its results to global memory, two [BF16](glossary.md#bf16) at a time, in rows eight
# apart. Here they go to shared memory first, and the copy engine takes them from there.
#
# **`stmatrix`** is one warp's instruction. Its `x4` form writes four tiles of 8 x 8 elements of 16 bits. It
# takes from each [lane](glossary.md#lane) four [registers](glossary.md#register) with two elements each, and
# one address. Let each lane write who it is, and look at what lies where:

# %%
tile = np.zeros((16, 16), np.uint16)
workbench.try_kernel(
    """
__global__ void one_stmatrix(const void* in, uint32_t* out) {
    const uint32_t tile = ptx::shared_memory(), lane = ptx::laneid();
    const auto mine = [&](uint32_t i) { return (lane << 8 | (2 * i + 1)) << 16 | (lane << 8 | 2 * i); };
    ptx::stmatrix_x4(tile + lane % 16 * 32 + lane / 16 * 16, mine(0), mine(1), mine(2), mine(3));
    __syncwarp();
    for (int i = lane; i < 128; i += 32) out[i] = ptx::ld_shared<uint32_t>(tile + i * 4);
}
""",
    tile,
    threads=32,
    shared_bytes=16 * 32,
)
drawing_tiles.stmatrix(tile >> 8, tile & 0xFF)

# %% [markdown]
# A register is a pair of neighbours, its low half on the left. The registers are distributed as in the
# [accumulator](glossary.md#accumulator) [fragment](glossary.md#fragment) of [rung s3](04_wgmma.ipynb): lane 0
# has columns 0 and 1 of row 0, then of row 8, then columns 8 and 9 of both. So a warp can hand over its
# fragment as it is, rounded to BF16. The addresses are distributed in another way: lane i says where row i
# mod 16 of the left or of the right half begins. Check the first claim for a whole warp:

# %%
rows, columns = layouts.wgmma_accumulator(16)
held = np.array(
    [[tile[r, c] for r, c in zip(*pair, strict=True)] for pair in zip(rows[:32], columns[:32], strict=True)]
)
print("as the fragment:", np.array_equal(held, np.arange(32)[:, np.newaxis] << 8 | np.arange(8)))

# %% [markdown]
# The end of a tile, its **[epilogue](glossary.md#epilogue)**, calls `store_shared`. It writes **boxes** of 64
# x 64 elements, rows of 128 bytes, with the [swizzle](glossary.md#swizzle) that you know from the operands.

# %%
epilogue = (rung.path.parents[1] / "include" / "epilogue.cuh").read_text()
workbench.code(epilogue, "^template", "^}")

# %% [markdown]
# Run it on sums that say where they belong, the row in one run and the column in another, and find out at
# which byte each element lies:

# %%
EPILOGUE = """#include "epilogue.cuh"
__global__ void epilogue(const float* in, uint32_t* out) {
    const uint32_t box = ptx::shared_memory();
    float d[32];
    for (int i = 0; i < 32; ++i) d[i] = in[threadIdx.x * 32 + i];
    store_shared<64, 64>(box, d);
    __syncthreads();
    for (int i = threadIdx.x; i < 64 * 32; i += 128) out[i] = ptx::ld_shared<uint32_t>(box + i * 4);
}
"""
found = []
for what in layouts.wgmma_accumulator(64):
    out = np.zeros(64 * 64, np.uint16)
    workbench.try_kernel(EPILOGUE, out, what.astype(np.float32), shared_bytes=64 * 128)
    found.append((out.astype(np.uint32) << 16).view(np.float32).astype(int))  # BF16: a float's upper half
place = np.empty((64, 64), int)
place[tuple(found)] = 2 * np.arange(64 * 64)
row, column = np.arange(64)[:, np.newaxis], np.arange(64)
print("as layouts.swizzle_128b says:", np.array_equal(place, layouts.swizzle_128b(row, 2 * column)))

# %% [markdown]
# Each 8 x 8 tile of a stmatrix is eight rows of 16 bytes. In rows of 128 bytes they would all meet in the
# same four [banks](glossary.md#bank). Where the kernel puts them, they go through all of the 32:

# %%
drawing_tiles.store_banks(place, marked=2)

# %%
workbench.slider(lambda marked: drawing_tiles.store_banks(place, marked), marked=(0, 7))


# %% [markdown]
# Without stmatrix, a thread would store its pairs with ordinary stores of 4 bytes. Count the turns for a tile
# of 16 x 16, by the rule of [rung s3](04_wgmma.ipynb): words of one bank take turns.


# %%
def turns(offsets, size):
    """How many turns it takes to write `size` bytes at each of these offsets at once."""
    words = np.unique(np.asarray(offsets)[:, np.newaxis] // 4 + np.arange(size // 4))
    return np.bincount(words % drawing.BANKS).max()


plain = layouts.SWIZZLE_ROW * row + 2 * column
lane = np.arange(32)
for words, offset in (("as the rows come", plain), ("swizzled", place)):
    pairs = [offset[rows[:32, i], columns[:32, i]] for i in range(0, 8, 2)]
    tiles = [offset[8 * (t % 2) + np.arange(8), 8 * (t // 2)] for t in range(4)]
    print(f"{words}: 4 stores of 4 bytes a lane, {sum(turns(one, 4) for one in pairs)} turns;", end=" ")
    print(f"1 stmatrix, {sum(turns(one, 16) for one in tiles)} turns")

# %% [markdown]
# So the swizzle is what avoids the conflicts. What stmatrix saves is instructions: one in place of four, with
# one address in place of four.
#
# ## 3. From shared memory to D: the TMA store
#
# The copy engine also goes the other way. **`cp_async_bulk_tensor_2d_store`** takes a box from shared memory
# and writes it to a matrix that a [tensor map](glossary.md#tensor-map) describes. It undoes the swizzle, and
# leaves out what lies outside of the matrix. Alone, with a matrix of 40 x 80 and a box of 64 x 64 at column
# 32:

# %%
STORE = """
__global__ void __launch_bounds__(128) store(const __grid_constant__ TensorMap map, const uint16_t* in) {
    const uint32_t box = ptx::shared_memory();
    for (int i = threadIdx.x; i < 64 * 8; i += 128)  // 16 bytes at a time
        ptx::st_shared(box + swizzle_128b(i * 16), reinterpret_cast<const uint4*>(in)[i]);
    ptx::fence_proxy_async();
    ptx::bar_sync(1, 128);
    if (threadIdx.x == 0) {
        ptx::cp_async_bulk_tensor_2d_store(&map, box, 32, 0);
        ptx::cp_async_bulk_commit_group();
        ptx::cp_async_bulk_wait_group<0>();
    }
}

// The host's part: it describes the matrix to the copy engine.
using Store = void (*)(TensorMap, const uint16_t*);
const char* launch(Store kernel, LaunchConfig config, const void* in, void* out) {
    TensorMap map;
    if (auto error = tensor_map_2d(&map, static_cast<uint16_t*>(out), 40, 80, 80, 64, 64, Swizzle::k128B))
        return error;
    return launch(kernel, config, map, static_cast<const uint16_t*>(in));
}
"""
box, d = np.arange(1, 64 * 64 + 1, dtype=np.uint16), np.zeros((40, 80), np.uint16)
workbench.try_kernel(STORE, d, box, shared_bytes=64 * 128)
print("columns 32 to 79 are the box:  ", np.array_equal(d[:, 32:], box.reshape(64, 64)[:40, :48]))
print("columns 0 to 31 are untouched: ", not d[:, :32].any())

# %% [markdown]
# Around it there are four things, and each is needed:
#
# - **`fence_proxy_async`**: the copy engine reads by the [async proxy](glossary.md#proxy), and the threads
#   wrote by the generic one. Here every thread that wrote executes it, before the barrier. As in lesson 04,
#   one behind the barrier is as good, by the thread that asks for the store: it knows of all stores by then.
# - **`bar_sync(id, threads)`**: a barrier for some of the block's threads. Only when all 128 have written may
#   one of them ask for the store. `__syncthreads` would wait for the producer, which never arrives.
# - **`cp_async_bulk_commit_group`** closes a group of this thread's stores. No
#   [mbarrier](glossary.md#mbarrier) is involved.
# - **`cp_async_bulk_wait_group<N>`** waits until at most N groups are unfinished. Its **`.read`** form waits
#   only until they have *read* shared memory, which comes earlier, and is enough to write there again.
#
# The fence first: leave it out.

# %%
try:
    workbench.try_kernel(
        STORE.replace("    ptx::fence_proxy_async();\n", ""), d, box, shared_bytes=64 * 128, device="cpu"
    )
except gl.EmulatorError as error:
    printed.show(error)

# %% [markdown]
# Then the two kinds of waiting. After `.read` the buffer may be written again, and D may still be without its
# results. Without `.read`, D has them too. In the events you see all three moments:

# %%
read = STORE.replace("cp_async_bulk_wait_group<0>", "cp_async_bulk_wait_group_read<0>")
for name, source in (("wait_group", STORE), ("wait_group.read", read)):
    run = workbench.try_kernel(source, d, box, shared_bytes=64 * 128, seed=3, device="cpu")
    kinds = ("tma_store", "tma_store_read", "tma_store_written", "thread_exit")
    order = [str(event["kind"]) for event in run.events if event["kind"] in kinds and event["thread"] <= 0]
    print(f"{name + ':':16}", " -> ".join(order))

# %% [markdown]
# Here is the kernel's `store`, with all of it. The wait comes *before* the buffer is written again, a whole
# tile later, so the copy engine has all of that time. The last wait, at the end of the consumers' path, is of
# the same kind: a block may not end and give up its shared memory while the copy engine still reads it. D is
# complete when the kernel is.

# %%
workbench.code(rung.source, "static __device__ void store", "^    }")

# %%
with gl.emulator(seed=46, record=True) as run:
    workbench.multiply(rung, workbench.problem(m=1280, n=128, k=512), "cpu")
drawing_warps.stores(run.events)

# %% [markdown]
# The emulator makes the copy engine late on purpose, each time by another delay.
#
# ## 4. Blocks that stay: the persistent loop
#
# The stages and the buffer for results fill the shared memory of an [SM](glossary.md#sm), so one block fits,
# not two. If it ended after its tile, the next one would begin with an empty ring. So a block stays and walks
# through many tiles: it is **[persistent](glossary.md#persistent)**. The launcher starts as many
# [clusters](glossary.md#cluster) as there is room for, a block on each SM, and `Tiles` says which tiles are
# whose:

# %%
workbench.code(rung.source, "struct Tiles", "^    };")

# %% [markdown]
# Producer and consumers each have their own `Tiles` and their own `Ring`. Both give the same sequence to all,
# so they need not tell each other which tile comes next. The producer runs ahead into the next tile as soon
# as a stage is empty, while the consumers still store the last one.
#
# Let the kernel's own code list all tiles of a product:

# %%
WALK = (
    "__global__ void walk(const GemmArgs* in, int* out);\n"
    + rung.source.split('extern "C"')[0]
    + """
__global__ void walk(const GemmArgs* in, int* out) {
    Kernel<256, 128, 3>::Tiles tiles(*in);
    if (threadIdx.x == 0)
        for (int i = 0; i < tiles.pairs; ++i) tiles.pair = i, tiles.next(out[2 * i], out[2 * i + 1]);
}
"""
)
m, n, k = 4096, 7168, 16384
tiles_m, pairs_n = m // 256, n // 256
walk = np.zeros((tiles_m * pairs_n, 2), np.int32)
workbench.try_kernel(WALK, walk, np.frombuffer(bytes(GemmArgs(m=m, n=n, k=k)), np.uint8), threads=32)
printed.show("the first pairs of tiles, by row and column of D:", *map(tuple, walk[:10].tolist()))
print(
    "in the order of the pictures below:",
    np.array_equal(walk // 256, drawing_tiles.order(tiles_m, pairs_n, group=8)),
)

# %% [markdown]
# This [order of tiles](glossary.md#rasterisation) is the kernel's **rasterisation**. Why eight tiles down
# before one to the right? What runs at the same time reads at the same time, and what one cluster has fetched
# from memory, others find in **[L2](glossary.md#l2)**, the cache that all SMs share. All clusters together
# make one pair of tiles each: a **[wave](glossary.md#wave)**. Orange is the first wave, and the line is where
# the walk begins. A pair needs 256 rows of A and 256 of B. How many *different* rows does the wave read?

# %%
clusters = measured.load(measured.DATA / "ladder.json")["meta"]["num_sms"] // 2
drawing_tiles.tile_orders((1, 8, 16), tiles_m, pairs_n, clusters)
for group in (1, 8, 16):
    asked, different = drawing_tiles.footprint(drawing_tiles.order(tiles_m, pairs_n, group), clusters)
    print(
        f"{group:2} at a time: {asked} rows asked for, {different} different: "
        f"{1 - different / asked:.0%} can come from L2"
    )

# %% [markdown]
# The squarer the wave's shape, the fewer rows. For every width:

# %%
drawing_tiles.footprints(tiles_m, pairs_n, clusters)

# %%
workbench.slider(
    lambda group: drawing_tiles.tile_orders((group,), tiles_m, pairs_n, clusters), group=(1, tiles_m)
)

# %% [markdown]
# This counts what the wave shares if its clusters go along k together. The GPU does not promise that they do.
#
# Waves also say which tile is best. The last one takes as long as the others, however few tiles it has. The
# launcher compares 256 x 128 with 128 x 192, wave for wave, and takes what ends first:

# %%
for m, n in ((4096, 7168), (4096, 4096), (4096, 2112), (64, 7168)):
    for tile_m, tile_n in ((256, 128), (128, 192)):
        pairs = -(-m // tile_m) * -(-n // (2 * tile_n))
        waves = -(-pairs // clusters)
        time = waves * tile_m * tile_n / (256 * 128)
        print(f"{m} x {n}, tiles of {tile_m} x {tile_n}: {pairs / clusters:.2f} waves, time {time:g}")

# %% [markdown]
# ## The kernel
#
# The two paths are those of s6, with a loop over tiles around each. First the producer's, then the
# consumers'.

# %%
workbench.code(rung.source, "if \\(threadIdx.x < kWarpgroup\\) {", "^        } else {$")

# %%
workbench.code(rung.source, "^        } else {$", "^        }$")

# %% [markdown]
# Run it, check it:

# %%
for tile, (m, n, k) in {"256 x 128": (520, 136, 640), "128 x 192": (600, 328, 640)}.items():  # both ragged
    problem = workbench.problem(m=m, n=n, k=k)
    d = workbench.multiply(rung, problem)
    exact = gemm.dense(*problem.arrays)
    print(f"tiles of {tile}:")
    print("relative error:                 ", metrics.relative_error(d, exact))
    print("of the definition, as BF16:     ", metrics.relative_error(gemm.to_bf16(exact), exact))
    print("largest relative error of a row:", metrics.max_row_error(d, exact))
    right = workbench.expected(rung.name, problem)
    print("the expected bits:              ", workbench.difference(d, right) is None)

# %% [markdown]
# ## How fast it is: first the prediction
#
# In the model, **begin and end** loses two things: the ring fills once, not once for each tile, and the copy
# engine stores a tile beside the next one's products, which costs `OUTPUT_US` (below) for an element, where
# s6's 64 KB at the rate `STORE` took microseconds. A second tile is there to choose. The rest is s6's. How
# many microseconds does it take for 4096 x 7168 x 2048, and how many times as fast as s6_warp_specialized is
# it there? Guess.

# %%
constants.show("s7_persistent")

# %% tags=["guess"]
exercises.guess("09.us", None)
exercises.guess("09.faster", None)

# %%
model.code(model.s7)

# %%
size = (4096, 7168, 16384)
evidence.predict(rung.name, size)
for shape in ((4096, 7168, 16384), (4096, 32768, 512)):
    print(f"{' x '.join(map(str, shape))}: {model.s7(*shape).us / model.s6(*shape).us:.2f} of s6's time")

# %%
notes = drawing.bars(
    [*list(gl.rungs)[1:8], "cublaslt_blockwise", "cublaslt_tensorwise"],
    size,
    marked=rung.name,
)
tflops = {
    one.impl: one.tflops[size] for one in measured.series(measured.recorded(), "dirty") if size in one.tflops
}
evidence.faster("09.faster", rung.name, "s6_warp_specialized")
print(f"{tflops['s7_persistent'] / tflops['cublaslt_tensorwise']:.0%} of the ceiling")
print(*notes, sep="\n")

# %%
evidence.compare(rung.name, "09.us")
evidence.thread(rung.name)

# %% [markdown]
# Within about a tenth, at all of them. At the long k the prediction is 8 % too short, and the cause may be
# the model's clock: power sets the real one, and the longer a kernel keeps the [tensor
# cores](glossary.md#tensor-core) busy, the lower that is. The model's longest term is "a consumer", not the
# tensor cores. That is the next rung's subject.

# %% [markdown]
# ## What limits it now
#
# Go back to the picture of the GPU, its lower half. Where one consumer has a gap between its orange bars,
# the other often has a bar: that is what warps with different jobs are for. What remains are the times in
# which *both* have a gap. Sort them by what the consumers do meanwhile:

# %%
if mine:
    consumers = {row["role"] for row in mine if row["unit"] == "tensor core"}
    products = [span for row in mine for span in row["spans"] if span[0] == "multiply"]
    clock = np.linspace(min(begin for _, begin, _ in products), max(end for *_, end in products), 20001)

    def doing(what):
        """Whether a consumer's first warp, or the tensor core for it, does this: at each moment."""
        spans = [span for row in mine if row["role"] in consumers for span in row["spans"] if span[0] == what]
        return np.any([(clock >= begin) & (clock < end) for _, begin, end in spans], axis=0)

    idle = ~doing("multiply")
    promoting, storing, waiting = (doing(what) for what in ("promote", "store", "wait"))
    print(f"no product in flight: {idle.mean():.0%} of the time; then")
    for words, moments in {
        "a consumer promotes": promoting,
        "none promotes, one stores its tile": ~promoting & storing,
        "neither, and one waits at least": ~promoting & ~storing & waiting,
        "they are between two steps": ~promoting & ~storing & ~waiting,
    }.items():
        print(f"  {moments[idle].mean():4.0%}  {words}")

# %% [markdown]
# With no product in flight, a consumer that waits does so for a load, or at the barriers around its store.
# The product of the recording has a short k: after eight blocks the next tile begins, and all SMs store and
# load at about the same time. That weighs more here than in the product of the bars above.
#
# The [promotion](glossary.md#promotion) itself is a run of [FFMAs](glossary.md#ffma), one for each
# accumulator. An SM has [four schedulers](glossary.md#warp-scheduler), and each issues for warps of both
# consumers: FFMAs of the one that promotes, [WGMMAs](glossary.md#wgmma) of the one that could have the tensor
# cores. When both have something to issue, which goes first? The program cannot say. But the machine code has
# a bit for it, and that is the [next rung](10_ffma_interleave.ipynb).

# %%
workbench.card("s7_persistent")

# %% [markdown]
# ## Break it
#
# Predict, then run. The problem has three pairs of tiles for two clusters, so one cluster computes two.

# %%
problem = workbench.problem(m=768, n=128, k=512)

# %% [markdown]
# **1.** No fence between the results and the copy engine.

# %% tags=["guess"]
exercises.guess_break("09.break1", line=None, then=None)

# %% tags=["break"]
workbench.break_it("s7_persistent", problem, ("ptx::fence_proxy_async();", ""), guess="09.break1")

# %% [markdown]
# <details><summary>Why</summary>
#
# As in section 3. A GPU may well write the right D, or what lay in the buffer before.
#
# </details>
#
# **2.** The consumers do not wait before they write the store's buffer again.

# %% tags=["guess"]
exercises.guess_break("09.break2", line=None, then=None)

# %% tags=["break"]
workbench.break_it(
    "s7_persistent",
    problem,
    ("if (thread == 0) ptx::cp_async_bulk_wait_group_read<0>();", ""),
    guess="09.break2",
)

# %% [markdown]
# <details><summary>Why</summary>
#
# Only the cluster with two tiles can fail, and only if the copy engine is late: a whole tile has been
# multiplied in between. Such a fault passes many tests on a GPU, where the copy engine is rarely so late. The
# emulator finds it on every schedule, because it asks whether the store was waited for, not whether it was
# late.
#
# </details>
#
# **3.** The consumers begin every tile at the ring's first stage.

# %% tags=["guess"]
exercises.guess_break("09.break3", line=None, then=None)

# %% tags=["break"]
begins = "            Ring ring;  // the stage to multiply\n"
loop = "            for (int tile_m, tile_n; tiles.next(tile_m, tile_n);) {\n"
workbench.break_it("s7_persistent", problem, (begins + loop, loop + "    " + begins), guess="09.break3")

# %% [markdown]
# <details><summary>Why</summary>
#
# The producer's walk goes on where it was: with four blocks of k and three stages, the second tile begins at
# stage 1. The consumers begin at stage 0, with parity 0. What arrives there is the tile's *third* block,
# which they take for its first. Then they go to stage 1, again for parity 0. The tile's first block is there.
# If it has landed, the barrier is a phase further than they think: they wait for the phase after it, for a
# load that the producer orders only when stage 1 has been released. Both wait for ever. If it has not landed
# yet, the phase before is the one that parity 0 names, so they pass at once and read what is still being
# written. With k = 384 the producer would be at stage 0 again, too, but in a phase of the other parity.
#
# </details>
#
# ## Exercises
#
# **1.** The walk. Which tile of m and which pair of n has number `pair`, if `group` tiles of m come at a
# time? Mind the last group, which may have fewer. Return (tile_m, pair_n).


# %% tags=["exercise"]
def walk_to(pair, tiles_m, pairs_n, group):
    return pair % tiles_m, pair // tiles_m


# %% tags=["check"]
exercises.check("09.1", walk_to)

# %% [markdown]
# **2.** Warp `warp` of a consumer writes columns `column` to `column + 15` of its 16 rows into a box of 64 x
# 64, by one `stmatrix.x4`. `column` is a multiple of 16. At which offset in the box does lane `lane`'s row of
# 16 bytes begin?


# %% tags=["exercise"]
def address(warp, lane, column):
    row = 16 * warp + lane % 8
    return 128 * row + 2 * column


# %% tags=["check"]
exercises.check("09.2", address)

# %% [markdown]
# **3.** Which lines does `store` need between the writing of shared memory and the one thread that starts the
# copy engine? Write them, from memory and by the four points of section 3. Consumer `consumer` has the named
# barrier 1 + consumer to itself.

# %% tags=["exercise"]
between = """
"""

# %% tags=["check"]
exercises.check("09.3", between)

# %% [markdown]
# **4.** A whole kernel: that of lesson 08's last exercise, with blocks that stay. There are no more blocks
# than SMs, and block i makes the tiles i, i + gridDim.x, and so on; tiles go down first, as they did (the
# check looks at the results, not at their order). The results may be stored from registers. The frame is the
# same again, with PERSISTENT = 1.

# %%
exercises.frame("09.4")

# %% tags=["exercise"]
kernel = """
__global__ void __launch_bounds__(kThreads, 1)
    mine(const __grid_constant__ TensorMap map_a, const __grid_constant__ TensorMap map_b,
         const __grid_constant__ TensorMap map_sfa, const GemmArgs p) {
    // How many tiles are there? The mbarriers of all stages; then everybody meets.
    // Warpgroup 0: for each of the block's tiles, and each block of k, load.
    // The others: for each of the block's tiles, multiply and promote all blocks of k, then store.
}
"""

# %% tags=["check"]
exercises.check("09.4", kernel)

# %% [markdown]
# Next: [two bits of an instruction](10_ffma_interleave.ipynb).
