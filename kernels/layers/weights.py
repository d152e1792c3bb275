"""Weights with a scale for each block of 128 x 128: making them, and reading those of checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping

import torch
from gemm_ladder import scales as of_products
from gemm_ladder.arguments import SCALE_BLOCK, ceil_div
from gemm_ladder.casts import functions
from gemm_ladder.casts.kernel import INPUTS
from gemm_ladder.errors import InputError
from gemm_ladder.settings import integer, whole_number

E4M3 = torch.float8_e4m3fn
# What the name of a weight's scales has behind the weight's: in DeepSeek-V3's checkpoints (although weights
# are multiplied by them), and in those of compressed-tensors, which are only read here.
SCALES = "_scale_inv"
OTHERS_SCALES = "_scale"
# The codes of 0 in checkpoints of compressed-tensors, whose asymmetric weights are (code - this) * scale.
ZERO_POINTS = "_zero_point"
# Scales of inputs that are not computed in each call: of compressed-tensors, and of transformers.
STATIC = ("input_scale", "activation_scale")
SCALE_TYPES = (torch.float32, *of_products.CONVERTED)


def quantized(weight: torch.Tensor, use_ue8m0: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight [(groups,) n, k] in FP8, and its scales, float32 [(groups,) ceil(n / 128), ceil(k / 128)]. One
    without memory, on the meta device, gets the like.

    Raises:
        InputError: it is of another type, as a trained one is after model.double().
    """
    check_castable(weight)
    if weight.is_meta:
        return torch.empty_like(weight, dtype=E4M3), weight.new_empty(blocks(weight), dtype=torch.float32)
    return functions.per_block_quant_fp8(weight, use_ue8m0)


def dequantized(codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """float32 [..., n, k]: what a weight in FP8 stands for. Each number is rounded once."""
    n, k = codes.shape[-2:]
    of_rows = scales.repeat_interleave(SCALE_BLOCK, -2)[..., :n, :]
    return codes.float() * of_rows.repeat_interleave(SCALE_BLOCK, -1)[..., :k]


def blocks(weight: torch.Tensor) -> tuple[int, ...]:
    """The shape of a weight's scales."""
    *groups, n, k = weight.shape
    return (*groups, ceil_div(n, SCALE_BLOCK), ceil_div(k, SCALE_BLOCK))


def check_size(name: str, value: object, multiple: int) -> None:
    """Refuse a size that is not positive, no multiple of `multiple`, or more than kernels can be given; and a
    bool, which Python takes for 0 or 1."""
    if isinstance(value, bool):
        raise InputError(f"{name} is of type bool; an int is needed")
    size = integer(name, value)
    if size < 1 or size % multiple:
        needed = "1 or more" if multiple == 1 else f"a positive multiple of {multiple}"
        raise InputError(f"{name} is {size}; {needed} is needed")
    whole_number(name, size)


def check_castable(weight: torch.Tensor) -> None:
    """Refuse a weight of a type that is not cast, as a trained one is after model.double()."""
    if weight.dtype not in INPUTS:
        raise InputError(
            f"the weight is {weight.dtype}; float32, bfloat16 or float16 is needed to be cast to FP8"
        )


def check_stored(name: str, codes: torch.Tensor) -> None:
    """Refuse a weight of another type in the place of one in FP8, whose scales it does not go with: somebody
    has set it, or converted the model's parameters."""
    if codes.dtype != E4M3:
        raise InputError(
            f"{name} is {codes.dtype} and the layer has scales for one in FP8; float8_e4m3fn is needed (FSDP "
            "with a param_dtype, for example, converts it: gemm_ladder.layers.frozen_parameters says how to "
            "keep it)"
        )


def as_blocks(name: str, scales: torch.Tensor, needed: tuple[int, ...]) -> torch.Tensor:
    """A checkpoint's scales as float32 of the shape `needed`.

    Args:
        name: in the refusal.
        scales: float32, bfloat16 or float8_e8m0fnu, one for each block or a single one for all.

    Raises:
        InputError: another type or shape.
    """
    if scales.dtype not in SCALE_TYPES:
        raise InputError(f"{name} is {scales.dtype}; float32, bfloat16 or float8_e8m0fnu is needed")
    if scales.numel() == 1:
        one = scales.float().reshape([1] * len(needed)).expand(needed)
        return one.clone(memory_format=torch.contiguous_format)
    if tuple(scales.shape) != needed:
        raise InputError(
            f"{name} has shape {list(scales.shape)}; {list(needed)}, one for each "
            f"{SCALE_BLOCK} x {SCALE_BLOCK} of the weight, or a single one is needed"
        )
    return scales.float()


def take(
    state: MutableMapping[str, torch.Tensor], name: str, shape: tuple[int, ...]
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Take a weight, its scales and zero points of 0 out of a checkpoint's tensors, as `look` finds them."""
    weight, scales = look(state, name, shape)
    for behind in ("", SCALES, OTHERS_SCALES, ZERO_POINTS):
        state.pop(name + behind, None)
    # The tensors of a file may begin anywhere, and a load that assigns them keeps their addresses.
    if weight is not None and weight.dtype == E4M3:
        weight = of_products.row_major(weight)
    return weight, None if scales is None else of_products.row_major(scales)


def bring(
    state: MutableMapping[str, torch.Tensor],
    name: str,
    parameter: torch.Tensor,
    trained: bool,
    use_ue8m0: bool,
) -> None:
    """Bring a weight among a checkpoint's tensors into the form in which a layer has it: that of `parameter`,
    if it is trained, or else FP8.

    Raises:
        InputError: as `look`, or it is in FP8 without scales and is to be trained.
    """
    weight, scales = take(state, name, parameter.shape)
    if weight is not None and trained and weight.dtype == E4M3:
        if scales is None:
            raise InputError(f"{name} is float8_e4m3fn without scales; {name}{SCALES} is needed")
        weight, scales = dequantized(weight, scales).to(parameter.dtype), None
    elif weight is not None and not trained and weight.dtype != E4M3:
        weight, scales = quantized(weight, use_ue8m0)
    for behind, tensor in (("", weight), (SCALES, scales)):
        if tensor is not None:
            state[name + behind] = tensor


def look(
    state: Mapping[str, torch.Tensor], name: str, shape: tuple[int, ...]
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Find a weight and its scales among a checkpoint's tensors.

    Args:
        name: the weight's, such as "model.layers.3.mlp.up_proj.weight".
        shape: [(groups,) n, k] of the weight.

    Returns:
        The weight, of a type that `quantized` takes or in FP8, and its scales in float32; None for what is
        not there.

    Raises:
        InputError: what is there cannot be such a weight.
    """
    weight = state.get(name)
    of_blocks = [given for behind in (SCALES, OTHERS_SCALES) if (given := name + behind) in state]
    if len(of_blocks) > 1:
        raise InputError(f"{' and '.join(of_blocks)} are both given; one is needed")
    if weight is not None and tuple(weight.shape) != tuple(shape):
        raise InputError(f"{name} has shape {list(weight.shape)}; {list(shape)} is needed")
    if weight is not None and weight.dtype not in (E4M3, *INPUTS):
        raise InputError(f"{name} is {weight.dtype}; float8_e4m3fn, float32, bfloat16 or float16 is needed")
    if weight is not None and of_blocks and weight.dtype != E4M3:
        raise InputError(f"{name} is {weight.dtype} and {of_blocks[0]} is given; float8_e4m3fn is needed")
    zero_points = state.get(name + ZERO_POINTS)
    if zero_points is not None and not zero_points.is_meta and zero_points.float().any():
        raise InputError(
            f"{name}{ZERO_POINTS} has numbers other than 0, as asymmetric quantisation has; symmetric "
            f"quantisation is needed, since FP8 with a scale for each {SCALE_BLOCK} x {SCALE_BLOCK} has no "
            "zero points"
        )
    if not of_blocks:
        return weight, None
    needed = blocks(torch.empty(shape, device="meta"))
    return weight, as_blocks(of_blocks[0], state[of_blocks[0]], needed)


class Static(str):
    """The key of a static scale of inputs, which a layer does not take. Torch collects the unexpected keys of
    a model and refuses them together, unless strict=False; in its message this one says why."""

    def __format__(self, spec: str) -> str:
        return (
            f"{self!s} (a static scale of inputs, which get a scale for each {SCALE_BLOCK} of a row here; "
            "strict=False loads the rest)"
        )


def keeping_types(
    change: Callable[[torch.Tensor], torch.Tensor], kept: tuple[torch.Tensor | None, ...]
) -> Callable[[torch.Tensor], torch.Tensor]:
    """What torch.nn.Module._apply does to each tensor, but for those that are `kept`, which it only moves: a
    weight in FP8, which torch takes for numbers that mean something without scales, and its scales."""

    def changed(tensor: torch.Tensor) -> torch.Tensor:
        found = change(tensor)
        if found.dtype != tensor.dtype and any(tensor is one for one in kept):
            return tensor.to(found.device)
        return found

    return changed
