"""How accurate a result is, and how many bytes tensors have."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gemm_ladder.errors import InputError
from gemm_ladder.ref import metrics

__all__ = ["assert_bitwise_equal", "calc_diff", "count_bytes"]


def calc_diff(x: torch.Tensor | np.ndarray, y: torch.Tensor | np.ndarray) -> float:
    """1 - 2 * sum(x * y) / sum(x^2 + y^2), in float64: about half the relative error squared.

    Args:
        x, y: the result and the reference, of one shape, of any real types, on any devices.

    Returns:
        A Python float: 0 for equal tensors, zeros too; NaN where anything is NaN.

    Raises:
        ValueError: the shapes differ.
    """
    return metrics.calc_diff(_float64(x), _float64(y))


def count_bytes(*tensors: Any) -> int:
    """The bytes of the elements of all tensors; tuples and lists of them count too, and None counts 0.

    Raises:
        InputError: something else is among them.
    """
    total = 0
    for one in tensors:
        if isinstance(one, torch.Tensor):
            total += one.numel() * one.element_size()
        elif isinstance(one, (tuple, list)):
            total += count_bytes(*one)
        elif one is not None:
            raise InputError(f"{one!r} is no tensor; tensors, tuples and lists of them, or None are needed")
    return total


def assert_bitwise_equal(x: torch.Tensor, y: torch.Tensor, label: str = "") -> None:
    """Raise AssertionError, which says where, unless two tensors have the same shape, type and bits.

    Args:
        x, y: on one device.
        label: what they are, for the message.
    """
    name = f" of {label}" if label else ""
    shapes = [(list(one.shape), one.dtype) for one in (x, y)]
    if shapes[0] != shapes[1]:
        raise AssertionError(f"the types{name} differ: {shapes[0]} and {shapes[1]}")
    bits = [one.contiguous().view(-1, 1).view(torch.uint8) for one in (x, y)]  # [elements, bytes of one]
    differ = (bits[0] != bits[1]).any(dim=1).nonzero().flatten()
    if len(differ):
        first = np.unravel_index(int(differ[0]), x.shape)
        where = [int(index) for index in first]
        values = [one[tuple(where)].item() for one in (x, y)]
        raise AssertionError(
            f"{len(differ)} of {x.numel()} elements{name} differ, the first at {where}: {values[0]} and "
            f"{values[1]}"
        )


def _float64(x: torch.Tensor | np.ndarray) -> np.ndarray:
    return x.detach().double().cpu().numpy() if isinstance(x, torch.Tensor) else np.asarray(x)
