"""The casts of inference servers, as their wheels ship them: the compiled operators, called directly.

vLLM's are in one library, which needs torch and nothing else of vLLM: it is loaded from the package's folder,
and vllm itself is not imported.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path

import torch
from gemm_ladder.arguments import SCALE_BLOCK, align, ceil_div
from gemm_ladder.errors import InputError
from gemm_ladder.measure.peers import Call

VLLM_LIBRARIES = ("_C_stable_libtorch*.so", "_C.*.so")  # as its newer wheels have them, and its older ones
VLLM_OPERATORS = "_C"  # the namespace in torch.ops
VLLM_SMALLEST = 1e-10  # of a run's largest magnitude, vLLM's own
LARGEST = 448.0  # of E4M3
Pair = tuple[torch.Tensor, torch.Tensor]


@functools.cache
def vllm_library() -> Path:
    """Load vLLM's operators into torch.ops; the file that has them.

    Raises:
        ImportError: no package vllm is there, or it has no such library.
        OSError: the library cannot be loaded.
    """
    spec = importlib.util.find_spec("vllm")
    folders = [Path(folder) for folder in (spec.submodule_search_locations or ())] if spec else []
    if not folders:
        raise ImportError("no package vllm is installed")
    found = [path for folder in folders for name in VLLM_LIBRARIES for path in sorted(folder.glob(name))]
    if not found:
        raise ImportError(f"{folders[0]} has no {VLLM_LIBRARIES[0]}")
    torch.ops.load_library(str(found[0]))
    return found[0]


def vllm(
    cast: str, x: torch.Tensor, weight: torch.Tensor, epsilon: float, counts: torch.Tensor | None = None
) -> Call:
    """vLLM's operator for a cast of BF16, with scales MN-major.

    Args:
        cast: its name in the record.
        x: [m, k], or [m, 2 k] ahead of SiLU-and-multiply, or masked [groups, m, 2 k].
        weight, epsilon: of RMSNorm.
        counts: int32 [groups], of the masked layout: how many rows of each group are cast.

    Raises:
        InputError: vLLM has no such cast.
        ImportError, OSError, AttributeError: its operator is not there.
    """
    vllm_library()
    named = getattr(torch.ops, VLLM_OPERATORS)
    if cast == "per_token":
        return functools.partial(_per_token, named.per_token_group_fp8_quant, x)
    if cast == "silu_and_mul_per_token":
        return functools.partial(_silu_and_mul, named.silu_and_mul_per_block_quant, x)
    if cast == "rms_norm_per_token":
        return functools.partial(_rms_norm, named.rms_norm_per_block_quant, x, weight, epsilon)
    if cast == "masked_silu_and_mul_per_token" and counts is not None:
        return functools.partial(_masked, named.persistent_masked_m_silu_mul_quant, x, counts)
    raise InputError("it has no such cast")


def _results(m: int, k: int, device: torch.device, rows: int) -> Pair:
    """Codes [m, k], and scales [m, k / 128] whose columns are `rows` apart."""
    codes = torch.empty(m, k, dtype=torch.float8_e4m3fn, device=device)
    shape = (m, ceil_div(k, SCALE_BLOCK))
    return codes, torch.empty_strided(shape, (1, rows), dtype=torch.float32, device=device)


def _per_token(operator: Callable[..., None], x: torch.Tensor) -> Pair:
    m, k = x.shape
    codes, scales = _results(m, k, x.device, align(m, 4))
    power_of_two, transposed, aligned = False, True, True
    operator(
        *(x, codes, scales, SCALE_BLOCK, VLLM_SMALLEST, -LARGEST, LARGEST),
        *(power_of_two, transposed, aligned),
    )
    return codes, scales


def _silu_and_mul(operator: Callable[..., None], x: torch.Tensor) -> Pair:
    m, k = x.shape
    codes, scales = _results(m, k // 2, x.device, m)
    largest, transposed = None, True
    operator(codes, x, scales, SCALE_BLOCK, largest, transposed)
    return codes, scales


def _rms_norm(operator: Callable[..., None], x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> Pair:
    m, k = x.shape
    codes, scales = _results(m, k, x.device, m)
    largest, residual, transposed = None, None, True
    operator(codes, x, weight, scales, epsilon, largest, residual, SCALE_BLOCK, transposed)
    return codes, scales


def _masked(operator: Callable[..., None], x: torch.Tensor, counts: torch.Tensor) -> Pair:
    """Without the kernel by which vLLM's function of this name first fills the scales with zeros. That
    favours vLLM; the scales of rows that do not count are never read."""
    groups, m, columns = x.shape
    k = columns // 2
    codes = torch.empty(groups, m, k, dtype=torch.float8_e4m3fn, device=x.device)
    shape = (groups, m, runs := ceil_div(k, SCALE_BLOCK))
    scales = torch.empty_strided(shape, (m * runs, 1, m), dtype=torch.float32, device=x.device)
    power_of_two = False
    operator(x, counts, codes, scales, power_of_two)
    return codes, scales


def sglang(cast: str, x: torch.Tensor) -> Call:
    """SGLang's cast per token. Arguments as for `vllm`.

    Raises:
        InputError: another cast.
        ImportError: SGLang is not installed.
    """
    utils = importlib.import_module("sglang.srt.layers.quantization.fp8_kernel")
    if cast != "per_token":
        raise InputError("its cast per token alone is compared")
    options = {"column_major_scales": True, "scale_tma_aligned": True}
    return functools.partial(utils.sglang_per_token_group_quant_fp8, x, SCALE_BLOCK, **options)
