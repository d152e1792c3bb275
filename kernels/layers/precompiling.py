"""Compiling before the first call: every kernel that the layers of a model may need.

    gemm_ladder.layers.precompile(model, max_tokens=8192)

`_of_linear` and `_of_experts` list what linear.py and experts.py, and the products behind them, call for one
layer. Which kernel a product gets for how many rows, `gemm_ladder.precompiling` finds out, as for calls
without a layer.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import NamedTuple

import torch
from gemm_ladder import checks, precompiling
from gemm_ladder.arguments import K_MULTIPLE, Kind, align, ceil_div
from gemm_ladder.casts import launching as casts_launching
from gemm_ladder.casts.kernel import INPUTS, Kernel
from gemm_ladder.casts.kernel import Kind as CastKind
from gemm_ladder.errors import InputError
from gemm_ladder.layers import (
    choosing,
    combining,
    placing,
    routing,
    scattering,
    silu_backward,
    turning,
    weights,
)
from gemm_ladder.layers.experts import PROJECTIONS, Fp8Experts, Setting
from gemm_ladder.layers.linear import Fp8Linear
from gemm_ladder.layers.own_kernels import OwnKernel
from gemm_ladder.layers.parallel_experts import ParallelFp8Experts
from gemm_ladder.precompiling import Compiled, Gpu
from gemm_ladder.production import choice, fast_path, launching
from gemm_ladder.production.config import Config
from gemm_ladder.training import candidates
from gemm_ladder.training import config as training_config
from gemm_ladder.training import launching as training_launching

BF16 = torch.bfloat16


def precompile(
    model: torch.nn.Module,
    max_tokens: int = 8192,
    *,
    training: bool = False,
    top_k: int | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | int | None = None,
) -> list[Compiled]:
    """Compile and load every kernel that calls of a model's layers with 1 to max_tokens tokens need: those of
    the casts to FP8, of the products, and of the layers themselves.

    Each is compiled once for all layers, as many at the same time as there are CPUs; if another process is
    building one already, this one waits for it. The fast path is built as well. On a terminal a progress bar
    is shown. Afterwards such calls compile nothing, and a CUDA graph can capture the first call of a layer on
    one GPU (but for the gradients of trained experts, which wait for the GPU).

    Args:
        model: with Fp8Linear and Fp8Experts, also those that several GPUs share. It may be on the meta
            device, to be loaded later. Nothing is computed with it.
        max_tokens: the most rows of a call: the tokens of all sequences of a batch; of experts over several
            GPUs the most that a rank has.
        training: also compile the backward pass, for calls whose gradients are wanted. Experts whose weights
            are frozen use other kernels then; ask twice for both. Gradients of weights are those of
            parameters that require grad now.
        top_k: how many experts a token goes to; None: any number, for which more kernels are compiled.
        dtype: of what the layers are given: float32, bfloat16 or float16. None: each of these that a
            parameter of the model has, bfloat16 if none has; called inside of torch.autocast, also its type.
            Weights that are trained are cast from the type that they have now.
        device: the GPU, a Hopper; None: that of each layer's weights, the current one if they are on none.

    Returns:
        What was compiled, each with its `name`, for the number of SMs and the alignment of groups that are
        set now.

    Raises:
        InputError: the arguments, or the GPU, cannot be used.
        gemm_ladder.build.ToolchainError, BuildError: a kernel could not be compiled.

    Example:
        >>> import torch, gemm_ladder
        >>> model = torch.nn.Sequential(gemm_ladder.layers.Fp8Linear(512, 256))
        >>> gemm_ladder.layers.precompile(model.cuda(), max_tokens=64)  # doctest: +SKIP
    """
    if not isinstance(model, torch.nn.Module):
        raise InputError(f"model is of type {type(model).__name__}; a torch.nn.Module is needed")
    for name, value in {"max_tokens": max_tokens, "top_k": top_k}.items():
        if value is not None:
            weights.check_size(name, value, 1)
    checks.flag("training", training)
    if dtype is not None and dtype not in INPUTS:
        raise InputError(f"dtype is {dtype}; float32, bfloat16 or float16 is needed")
    layers = [one for one in model.modules() if isinstance(one, (Fp8Linear, Fp8Experts))]
    if not layers:
        raise InputError("model has no layer in FP8; an Fp8Linear or Fp8Experts in it is needed")
    calls = _Calls(max_tokens, training, top_k, *_types(model, dtype))
    described = dict.fromkeys((_described(layer), _device(layer, device)) for layer in layers)
    gpus = {where: precompiling.gpu_of(where) for _, where in described}
    needed: dict[Compiled, None] = {}
    for layer, where in described:
        gpu = gpus[where]
        kernels = (
            _of_linear(layer, calls, gpu) if isinstance(layer, _Linear) else _of_experts(layer, calls, gpu)
        )
        needed |= dict.fromkeys(kernels)
    fast_path.start()
    precompiling.build_all([*needed], "cuda")
    fast_path.load()
    for one in needed:
        _load(one)
    return [*needed]


class _Calls(NamedTuple):
    """What layers are called with: at most so many tokens of these types; linear layers convert them in
    autocast's region, and experts do not."""

    tokens: int
    training: bool
    top_k: int | None
    of_linear: tuple[torch.dtype, ...]
    of_experts: tuple[torch.dtype, ...]


class _Linear(NamedTuple):
    """What decides an Fp8Linear's kernels.

    Attributes:
        n, k: of its weight.
        cast: the type of a weight that is cast in every call; None where it is stored in FP8.
        trained: whether the weight gets a gradient.
    """

    n: int
    k: int
    cast: torch.dtype | None
    trained: bool


class _Experts(NamedTuple):
    """What decides the kernels of experts.

    Attributes:
        experts, hidden, intermediate, layout: of this process's experts.
        cast, trained: as for _Linear.
        ranks: how many processes' tokens they get.
        choices: the most experts of this process that a token can choose.
        counted: whether only tokens and choices of this process's experts arrive, rather than all.
        differentiable: whether there are gradients.
        in_fp8: whether tokens arrive in FP8, from other processes.
    """

    experts: int
    hidden: int
    intermediate: int
    layout: Setting
    cast: torch.dtype | None
    trained: bool
    ranks: int
    choices: int
    counted: bool
    differentiable: bool
    in_fp8: bool


def _described(layer: Fp8Linear | Fp8Experts) -> _Linear | _Experts:
    """What decides a layer's kernels.

    Raises:
        InputError: its weights are of a type that is not cast.
    """
    names = PROJECTIONS if isinstance(layer, Fp8Experts) else ("weight",)
    given = [getattr(layer, name) for name in names]
    if layer.trainable:
        for weight in given:
            weights.check_castable(weight)
    cast = given[0].dtype if layer.trainable else None
    trained = layer.trainable and any(weight.requires_grad for weight in given)
    if isinstance(layer, Fp8Linear):
        return _Linear(layer.out_features, layer.in_features, cast, trained)
    count = layer.num_experts
    sizes = (count, layer.hidden_size, layer.intermediate_size, layer.layout)
    if not isinstance(layer, ParallelFp8Experts):
        return _Experts(*sizes, cast, trained, 1, count, counted=False, differentiable=True, in_fp8=False)
    choices, counted = (layer.all_experts, False) if layer.everywhere else (count, True)
    return _Experts(*sizes, cast, trained, layer.ranks.size, choices, counted, counted, in_fp8=True)


def _device(layer: Fp8Linear | Fp8Experts, device: torch.device | int | None) -> torch.device | int | None:
    """The GPU that a layer is for; None: the current one."""
    weight = layer.weight if isinstance(layer, Fp8Linear) else layer.down_proj
    return weight.device if device is None and weight.is_cuda else device


def _types(
    model: torch.nn.Module, dtype: torch.dtype | None
) -> tuple[tuple[torch.dtype, ...], tuple[torch.dtype, ...]]:
    """Of what types linear layers cast their inputs, and experts."""
    if dtype is not None:
        return (dtype,), (dtype,)
    of_parameters = [one.dtype for name, one in model.named_parameters() if not name.endswith(weights.SCALES)]
    found = tuple(one for one in INPUTS if one in of_parameters) or (BF16,)
    if not torch.is_autocast_enabled("cuda"):
        return found, found
    of_region = torch.get_autocast_dtype("cuda")
    return (of_region,), tuple(dict.fromkeys((of_region, *found)))


def _of_linear(layer: _Linear, calls: _Calls, gpu: Gpu) -> Iterator[Compiled]:
    """What a linear layer calls, and the products of products.py."""
    n, k, cast, trained = layer
    steps = choice.steps_up_to("dense", calls.tokens, 1)
    yield from precompiling.configurations("dense", n, k, 1, steps, gpu)
    yield from _casts("per_block", () if cast is None else (cast,))
    yield from _casts("per_token", calls.of_linear)
    if not calls.training:
        return
    padded = align(n, K_MULTIPLE)
    yield from precompiling.configurations("dense", k, padded, 1, steps, gpu)
    if padded == n:
        yield turning.KERNEL
    if trained:
        yield from candidates.all_up_to(n, k, calls.tokens, gpu.num_sms)
        yield from _casts("per_channel_turned", calls.of_linear)


def _of_experts(layer: _Experts, calls: _Calls, gpu: Gpu) -> Iterator[Compiled]:
    """What experts call, also over several GPUs, and the products of expert_products.py."""
    count, hidden, inner = layer.experts, layer.hidden, 2 * layer.intermediate
    backward = calls.training and layer.differentiable
    layout = "contiguous" if backward or layer.cast is not None else layer.layout
    shapes = [(inner, hidden), (hidden, inner // 2)]
    if backward:
        shapes += [(k, n) for n, k in shapes]
    kinds = _steps(layer, layout, calls)
    for kind, steps in kinds.items():
        for n, k in shapes:
            yield from precompiling.configurations(kind, n, k, count, steps, gpu)
    yield from _casts("per_block", () if layer.cast is None else (layer.cast,))
    yield from _casts("per_token", calls.of_experts)
    yield Kernel("per_token", "silu_and_mul", BF16)
    yield combining.KERNEL
    yield choosing.KERNEL  # of a router, which is mostly ahead of experts
    yield placing.PLACE
    if kinds.keys() - {"contiguous"} and not layer.in_fp8:
        yield scattering.KERNEL
    if "masked" in kinds or (layer.in_fp8 and "psum" in kinds):
        yield placing.SCATTER
    if not backward:
        return
    yield turning.KERNEL
    yield silu_backward.KERNEL
    yield from _casts("per_token", (BF16,))
    if layer.trained:
        yield from candidates.all_for(count)
        yield from _casts("per_channel_turned", (*calls.of_experts, BF16))


def _steps(layer: _Experts, layout: Setting, calls: _Calls) -> dict[Kind, Collection[int]]:
    """The layouts that calls have, each with the numbers of rows of an expert, of choice.STEPS, by which
    products choose their kernels."""
    count, tokens = layer.experts, layer.ranks * calls.tokens

    def step(kind: Kind, received: int, choices: int) -> int:
        rows = received if kind == "masked" else routing.most_rows(choices, count)
        return choice.rows_to_expect(kind, rows, count, ceil_div(choices, count))

    if calls.top_k is None:
        kinds: tuple[Kind, ...] = ("masked", "psum") if layout == "auto" else (layout,)
        return {kind: _up_to(step(kind, tokens, tokens * layer.choices)) for kind in kinds}
    found: dict[Kind, set[int]] = {}
    each, first = (min(calls.top_k, layer.choices), 1) if layer.counted else (calls.top_k, layer.ranks)
    for received in range(first, tokens + 1, first):
        kind = routing.layout_for(received, calls.top_k, count) if layout == "auto" else layout
        found.setdefault(kind, set()).add(step(kind, received, received * each))
    if layer.counted:
        return {kind: _up_to(max(steps)) for kind, steps in found.items()}
    return {kind: sorted(steps) for kind, steps in found.items()}


def _up_to(last: int) -> Collection[int]:
    return [one for one in choice.STEPS if one <= last]


def _casts(kind: CastKind, types: Iterable[torch.dtype]) -> list[Kernel]:
    return [Kernel(kind, "nothing", dtype) for dtype in types]


def _load(one: Compiled) -> None:
    """Load what was compiled, as a call would."""
    if isinstance(one, Config):
        launching.library(one)
    elif isinstance(one, training_config.Config):
        training_launching.library(one)
    elif isinstance(one, Kernel):
        casts_launching.launcher(one)
    else:
        assert isinstance(one, OwnKernel)
        one.library("cuda")
