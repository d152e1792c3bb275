"""The products on the CPU: by the reference, `gemm_ladder.ref.gemm`, rounded once to BF16."""

from __future__ import annotations

from collections.abc import Callable

import ml_dtypes
import numpy as np
import torch
from gemm_ladder.checks import CheckedCall
from gemm_ladder.ref import gemm as reference


def compute(call: CheckedCall) -> None:
    """Write the product into `call.out`, which may be on a GPU; the other tensors are on the CPU.

    Rows of the contiguous layout whose index is -1 become zeros; rows of the masked layout that do not count
    are left as they were.
    """
    operands = (call.a, call.sfa, call.b, call.sfb)
    if call.rows is None:
        _write(call.out, _in_float64(reference.dense, *operands))
    elif call.kind == "contiguous":
        _write(call.out, _in_float64(reference.grouped_contiguous, *operands, call.rows))
    else:
        products = _in_float64(reference.grouped_masked, *operands, call.rows)
        for group, count in enumerate(call.rows.tolist()):
            _write(call.out[group, :count], products[group, :count])


def _in_float64(function: Callable[..., np.ndarray], *operands: torch.Tensor) -> np.ndarray:
    arrays = (
        tensor.view(torch.uint8).numpy().view(ml_dtypes.float8_e4m3fn)
        if tensor.dtype == torch.float8_e4m3fn
        else tensor.numpy()
        for tensor in (operand.detach() for operand in operands)
    )
    with np.errstate(invalid="ignore", over="ignore"):  # NaN and infinities are results like any other
        return function(*arrays)


def _write(out: torch.Tensor, product: np.ndarray) -> None:
    with np.errstate(invalid="ignore", over="ignore"):
        out.copy_(torch.from_numpy(reference.to_bf16(product).view(np.int16)).view(torch.bfloat16))
