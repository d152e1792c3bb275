"""How a token travels to its experts on another GPU, and a result back: as a row of bytes, whose format all
ranks know."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch
from gemm_ladder import scales
from gemm_ladder.arguments import SCALE_BLOCK, align, ceil_div
from gemm_ladder.casts import functions
from gemm_ladder.layers import weights

ALIGNMENT = 16  # bytes that a row is a multiple of


class RowFormat(NamedTuple):
    """What a row of bytes is made of: for each part how many numbers of which type it has."""

    parts: tuple[tuple[int, torch.dtype], ...]

    @property
    def begins(self) -> list[int]:
        """Where in a row its parts begin, and where the last one ends."""
        found = [0]
        for count, dtype in self.parts:
            found.append(found[-1] + count * dtype.itemsize)
        return found

    @property
    def width(self) -> int:
        """A row's bytes, of which there are some also if it has no numbers."""
        return align(max(self.begins[-1], 1), ALIGNMENT)

    def pack(self, *parts: torch.Tensor) -> torch.Tensor:
        """uint8 [rows, width]: rows of these parts, each [rows, numbers], which are converted to the format's
        types."""
        rows = torch.empty(len(parts[0]), self.width, dtype=torch.uint8, device=parts[0].device)
        spans = itertools.pairwise(self.begins)
        for part, (begin, end), (_, dtype) in zip(parts, spans, self.parts, strict=True):
            rows[:, begin:end].view(dtype).copy_(part)
        return rows

    def unpack(self, rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The parts of rows that `pack` has made: views."""
        spans = itertools.pairwise(self.begins)
        return tuple(
            rows[:, begin:end].view(dtype) for (begin, end), (_, dtype) in zip(spans, self.parts, strict=True)
        )


def token_format(hidden: int, top_k: int, dtype: torch.dtype = weights.E4M3) -> RowFormat:
    """Tokens: their numbers, with E4M3 the scales of these, their experts as int32, their weights as BF16."""
    of_scales = ((ceil_div(hidden, SCALE_BLOCK), torch.float32),) * (dtype == weights.E4M3)
    return RowFormat(((hidden, dtype), *of_scales, (top_k, torch.int32), (top_k, torch.bfloat16)))


def pack_tokens(form: RowFormat, x: torch.Tensor, use_ue8m0: bool, *others: torch.Tensor) -> torch.Tensor:
    """uint8 [tokens, width]: x, cast to FP8 if the format has that, and the other parts, as rows."""
    if not len(x):
        return torch.empty(0, form.width, dtype=torch.uint8, device=x.device)
    in_fp8 = form.parts[0][1] == weights.E4M3
    numbers = functions.per_token_group_quant_fp8(x, use_ue8m0) if in_fp8 else (x,)
    return form.pack(*numbers, *others)


def gather_tokens(
    codes: torch.Tensor, of_tokens: torch.Tensor, token: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes and scales of rows as a contiguous layout has them.

    Args:
        codes, of_tokens: float8_e4m3fn [tokens, hidden], and scales, float32 [tokens, ceil(hidden / 128)].
        token: int32 [rows]: the token of each; those of -1 get the numbers of some token.
    """
    token = token.clamp(min=0).long()
    a = codes.view(torch.int64)[token].view(codes.dtype)
    shape = (len(token), of_tokens.shape[1])
    sfa = of_tokens.new_empty_strided(shape, scales.mn_major_strides(shape))
    return a, sfa.copy_(of_tokens[token])
