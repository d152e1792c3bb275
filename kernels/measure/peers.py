"""The libraries that the kernels are compared with.

To add one, add a function to PEERS here and its label to gemm_ladder.figures.measured.PEERS. If it computes
the same product, add its name to BLOCK_SCALED in gemm_ladder.figures.production; if it ignores the scales, to
CEILINGS there and to UNSCALED here. If its operands or output have other types, bytes_moved() has to know.
The commands everywhere and bench take what cells.implementations names.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from gemm_ladder import drop_in
from gemm_ladder.arguments import SCALE_BLOCK, ceil_div
from gemm_ladder.errors import one_line
from gemm_ladder.measure.problems import Problem, dequantize
from gemm_ladder.measure.shapes import Shape

Call = Callable[[], Any]  # runs once on the current stream; returns its output, or one for each group


def cublaslt_blockwise(problem: Problem) -> Call:
    """cuBLASLt's FP8 product with the same 1x128 and 128x128 scales, through torch (CUDA 12.9 or newer)."""
    m, _, k = problem.shape
    blocks = ceil_div(k, SCALE_BLOCK)
    # torch needs A's scales [m, k / 128] with strides (1, m), and B's [k / 128, n / 128] with strides
    # (1, k / 128 rounded up to 4). scaled_mm needs the rounded number in B's shape too, _scaled_mm does not.
    sfa = torch.empty_strided((m, blocks), (1, m), device=problem.a.device).copy_(problem.sfa)
    sfb = F.pad(problem.sfb, (0, -blocks % 4)).T
    b = problem.b.T

    def scaled_mm() -> torch.Tensor:
        recipe = F.ScalingType
        return F.scaled_mm(
            problem.a,
            b,
            scale_a=sfa,
            scale_recipe_a=recipe.BlockWise1x128,
            scale_b=sfb,
            scale_recipe_b=recipe.BlockWise128x128,
            output_dtype=torch.bfloat16,
        )

    def _scaled_mm() -> torch.Tensor:
        return torch._scaled_mm(problem.a, b, scale_a=sfa, scale_b=sfb[:blocks], out_dtype=torch.bfloat16)

    refusals = []
    for call in (scaled_mm, _scaled_mm):
        try:
            call()
        except Exception as error:  # releases of torch differ in which of the two they have and accept
            refusals.append(f"{call.__name__}: {one_line(error)}")
        else:
            return call
    raise RuntimeError("; ".join(refusals))


def cublaslt_tensorwise(problem: Problem) -> Call:
    """cuBLASLt's FP8 product with one scale per tensor and without promotion (fast accumulation): a ceiling
    for this data type, not the same product. Its result is compared with the product without scales."""
    one = torch.ones((), device=problem.a.device)
    b = problem.b.T
    return lambda: torch._scaled_mm(
        problem.a, b, scale_a=one, scale_b=one, out_dtype=torch.bfloat16, use_fast_accum=True
    )


def cublas_bf16(problem: Problem) -> Call:
    """cuBLAS's BF16 product of the dequantised operands."""
    a = dequantize(problem.a, problem.sfa, 1).bfloat16()
    b = dequantize(problem.b, problem.sfb, SCALE_BLOCK).bfloat16().T
    out = problem.output()
    return lambda: torch.mm(a, b, out=out)


def deep_gemm_library() -> ModuleType:
    """DeepGEMM of either generation: the package, or else the copy that vLLM's wheel has among its own files,
    for which vLLM is not imported; never this package under DeepGEMM's name. Raises ImportError where neither
    is installed."""
    try:
        found = importlib.import_module("deep_gemm")
    except ModuleNotFoundError as error:
        if error.name != "deep_gemm" or not (folder := drop_in.folder_in_vllm()):
            raise
        sys.path.append(str(folder))
        found = importlib.import_module("deep_gemm")
    if found.__name__ != drop_in.OURS:
        return found
    if other := drop_in.another():
        return other
    raise ImportError("deep_gemm is GEMM Ladder here, and no other DeepGEMM is installed")


def deep_gemm(problem: Problem) -> Call:
    """DeepGEMM of either generation. Raises ImportError where it is not installed."""
    library = deep_gemm_library()
    gemm = getattr(library, "fp8_gemm_nt", None) or library.gemm_fp8_fp8_bf16_nt
    out = problem.output()

    def call() -> torch.Tensor:
        gemm((problem.a, problem.sfa), (problem.b, problem.sfb), out)
        return out

    return call


Peer = Callable[[Problem], Call]
PEERS: Mapping[str, Peer] = {
    peer.__name__: peer for peer in (cublaslt_blockwise, cublaslt_tensorwise, cublas_bf16, deep_gemm)
}
UNSCALED = ("cublaslt_tensorwise", "torch_grouped")  # these ignore the scales: ceilings


def bytes_moved(impl: str, shape: Shape) -> int:
    """The least that `impl` moves through memory at `shape`."""
    m, n, k = shape
    if impl == "cublas_bf16":
        return 2 * (m * k + n * k + m * n)
    return m * k + n * k + 2 * m * n if impl in UNSCALED else shape.bytes
