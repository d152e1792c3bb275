"""The choice of experts on a Hopper GPU, in one kernel (route_tokens.cuh) instead of about 17 of torch's.

`routing.route` defines what it computes, and does it by torch's operators where the kernel is not used.
Scores may differ from torch's in the last bits, so of nearly equal experts another may be chosen. Of equal
scores the expert with the lowest number is chosen, where torch.topk picks any.
"""

from __future__ import annotations

import ctypes

import torch
from gemm_ladder.arguments import MAX_SIZE
from gemm_ladder.casts.kernel import INPUT_NUMBERS, INPUTS
from gemm_ladder.layers.own_kernels import OwnKernel

KERNEL = OwnKernel("route_tokens")
# The scores and keys of so many experts fit into 48 KB of shared memory for the warps of a thread block, and
# a lane of a warp writes one choice.
MOST_EXPERTS, MOST_CHOSEN = 1024, 32


class Params(ctypes.Structure):
    """struct RouteParams of route_tokens.cuh"""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("logits", "bias", "chosen", "weights")),
        *((name, ctypes.c_int64) for name in ("tokens", "experts", "top_k", "row_stride")),
        *((name, ctypes.c_int64) for name in ("groups", "top_groups")),
        ("scale", ctypes.c_float),
        *((name, ctypes.c_bool) for name in ("sigmoid", "normalize", "top2")),
    )


class Args(ctypes.Structure):
    """struct RouteArgs of route_tokens.cuh"""

    _fields_ = (("params", Params), ("input", ctypes.c_int64), ("stream", ctypes.c_void_p))


def why_not(logits: torch.Tensor, top_k: int, bias: torch.Tensor | None) -> str | None:
    """A reason why the kernel cannot choose by these logits, wherever they are; None if it can."""
    if logits.dtype not in INPUTS or (bias is not None and bias.dtype != torch.float32):
        return "the logits are not FP32, BF16 or FP16, or the bias is not FP32"
    if logits.shape[-1] > MOST_EXPERTS or top_k > MOST_CHOSEN:
        return (
            f"there are {logits.shape[-1]} experts, {top_k} of which are chosen; at most {MOST_EXPERTS} and "
            f"{MOST_CHOSEN} are possible"
        )
    if not 0 < logits.numel() <= MAX_SIZE:
        return f"there are {logits.numel()} logits; 1 to {MAX_SIZE} are possible"
    return None


def choose(
    logits: torch.Tensor,
    top_k: int,
    bias: torch.Tensor | None,
    *,
    sigmoid: bool,
    normalize: bool,
    scale: float,
    groups: int,
    top_groups: int,
    top2: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose experts, on the emulator, or queued on the current stream of a GPU.

    Args:
        logits, top_k, bias, normalize, scale: as for `routing.route`, `why_not` must have no reason.
        sigmoid: how logits become scores; else by softmax.
        groups, top_groups: how many groups of experts there are, and how many of them a token's experts may
            come from.
        top2: a group's score is the sum of its two largest; else its largest.

    Returns:
        int64 and float32 [..., top_k], without a history for autograd.

    Raises:
        LaunchError: the launch is refused. EmulatorError: the emulator found the kernel at fault.
        gemm_ladder.build.ToolchainError, BuildError: the kernel could not be compiled.
    """
    rows = logits.detach().reshape(-1, logits.shape[-1])
    if rows.stride(1) != 1:
        rows = rows.contiguous()
    shape = (*logits.shape[:-1], top_k)
    chosen, weights = rows.new_empty(shape, dtype=torch.int64), rows.new_empty(shape, dtype=torch.float32)
    bias = None if bias is None else bias.detach().contiguous()
    params = Params(
        rows.data_ptr(),
        None if bias is None else bias.data_ptr(),
        chosen.data_ptr(),
        weights.data_ptr(),
        *(*rows.shape, top_k, rows.stride(0), groups, top_groups),
        scale,
        *(sigmoid, normalize, top2),
    )
    read = {"the logits": rows} | ({} if bias is None else {"the bias": bias})
    KERNEL.start(
        Args(params, INPUT_NUMBERS[rows.dtype]), read, {"the experts": chosen, "the weights": weights}
    )
    return chosen, weights
