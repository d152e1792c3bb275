"""The form in which a token travels to its experts on other GPUs: its codes and their scales, its experts,
and their weights, as one row of bytes."""

from __future__ import annotations

import torch
from gemm_ladder.arguments import SCALE_BLOCK, align, ceil_div
from gemm_ladder.layers import weights

# A row's parts: codes, scales, experts, and their weights.
TYPES = (weights.E4M3, torch.float32, torch.int32, torch.bfloat16)
ALIGNMENT = 16  # bytes that a row is a multiple of


def columns(hidden: int, top_k: int) -> list[int]:
    """Where in a row its parts begin, where they end, and the row's bytes."""
    found = [0]
    for count, dtype in zip((hidden, ceil_div(hidden, SCALE_BLOCK), top_k, top_k), TYPES, strict=True):
        found.append(found[-1] + count * dtype.itemsize)
    return [*found, align(found[-1], ALIGNMENT)]


def packed(
    cast: tuple[torch.Tensor, torch.Tensor], chosen: torch.Tensor, factors: torch.Tensor
) -> torch.Tensor:
    """Tokens as rows.

    Args:
        cast: float8_e4m3fn [tokens, hidden] and its scales, float32 [tokens, ceil(hidden / 128)].
        chosen: int64 [tokens, top_k]: numbers of experts that fit into 32 bits.
        factors: [tokens, top_k], of a floating-point type; they are rounded to BF16.

    Returns:
        uint8 [tokens, bytes of a row].
    """
    (tokens, hidden), top_k = cast[0].shape, chosen.shape[1]
    *begins, width = columns(hidden, top_k)
    rows = torch.empty(tokens, width, dtype=torch.uint8, device=chosen.device)
    for column, part in enumerate((*cast, chosen, factors)):
        rows[:, begins[column] : begins[column + 1]].view(TYPES[column]).copy_(part)
    return rows


def unpacked(rows: torch.Tensor, hidden: int, top_k: int) -> tuple[torch.Tensor, ...]:
    """The parts of `packed` rows: views of codes, scales, experts as int32, weights as bfloat16."""
    begins = columns(hidden, top_k)
    return tuple(
        rows[:, begins[column] : begins[column + 1]].view(dtype) for column, dtype in enumerate(TYPES)
    )
