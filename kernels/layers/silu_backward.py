"""Back through SiLU-and-multiply, for the gradients of a mixture of experts.

silu_backward.cuh does it in one pass on a Hopper GPU, where torch's operators, which do it elsewhere, take a
dozen. The two may differ in the last bits: the kernel's are those of gemm_ladder.ref.activations.
"""

from __future__ import annotations

import ctypes

import torch
from gemm_ladder.layers.own_kernels import OwnKernel

KERNEL = OwnKernel("silu_backward")
Gradients = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class Params(ctypes.Structure):
    """struct SiluBackwardParams of silu_backward.cuh"""

    _fields_ = (
        *(
            (name, ctypes.c_void_p)
            for name in ("inner", "of_h", "factors", "of_inner", "factored", "of_factors")
        ),
        ("rows", ctypes.c_int64),
        ("columns", ctypes.c_int64),
    )


class Args(ctypes.Structure):
    """struct SiluBackwardArgs of silu_backward.cuh"""

    _fields_ = (("params", Params), ("stream", ctypes.c_void_p))


def through_silu_and_mul(inner: torch.Tensor, of_h: torch.Tensor, factors: torch.Tensor) -> Gradients:
    """What comes back through h = SiLU(gate) * up, which is then multiplied by a factor for each row.

    Args:
        inner: bfloat16 [rows, 2 columns], contiguous: gates, then ups; columns a multiple of 16.
        of_h: bfloat16 [rows, columns], contiguous: what comes back for h, without the factor.
        factors: float32 [rows].

    Returns:
        The gradients of `inner`, bfloat16, and of `factors`, float32; and h times the factors, bfloat16
        [rows, columns].
    """
    if of_h.is_cuda and len(of_h) and KERNEL.why_not(of_h.device) is None:
        return by_kernel(inner, of_h, factors)
    return by_torch(inner, of_h, factors)


def by_torch(inner: torch.Tensor, of_h: torch.Tensor, factors: torch.Tensor) -> Gradients:
    """As `through_silu_and_mul`, on any device. What is FP32 in between lives no longer than this takes."""
    gate, up = inner.float().chunk(2, -1)
    gate = gate.clamp(min=-87)  # as the definition limits it, so that an infinite gate does not make NaN
    back = of_h.float()
    sigmoid = gate.sigmoid()
    silu = gate * sigmoid
    h = silu * up
    of_factors = (back * h).sum(-1)
    back = back * factors[:, None]
    slope = sigmoid * (1 + gate.clamp(max=30) * (1 - sigmoid))
    of_inner = torch.cat([back * up * slope, back * silu], -1).bfloat16()
    return of_inner, of_factors, (factors[:, None] * h).bfloat16()


def by_kernel(inner: torch.Tensor, of_h: torch.Tensor, factors: torch.Tensor) -> Gradients:
    """As `through_silu_and_mul`, on the emulator or a GPU, of at least one row.

    Raises:
        LaunchError: the launch is refused. EmulatorError: the emulator found the kernel at fault.
        gemm_ladder.build.ToolchainError, BuildError: the kernel could not be compiled.
    """
    given = {"inner": inner, "of_h": of_h, "factors": factors}
    found = {
        "of_inner": torch.empty_like(inner),
        "factored": torch.empty_like(of_h),
        "of_factors": torch.empty_like(factors),
    }
    params = Params(*(one.data_ptr() for one in (*given.values(), *found.values())), *of_h.shape)
    KERNEL.start(Args(params), given, found)
    return found["of_inner"], found["of_factors"], found["factored"]
