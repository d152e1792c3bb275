"""Arguments of calls that pass every check, and ways to spoil them, for the tests of the checks."""

from __future__ import annotations

import pytest
import torch
from gemm_ladder import scales
from gemm_ladder.errors import InputError

M, N, K = 5, 136, 256


def nothing(*shape: int, dtype: torch.dtype = torch.float8_e4m3fn) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.uint8).to(dtype)


def misaligned(tensor: torch.Tensor) -> torch.Tensor:
    """A copy that starts at an odd multiple of its element's size."""
    flat = torch.zeros(tensor.numel() + 1, dtype=torch.uint8).to(tensor.dtype)
    return flat[1:].view(tensor.shape)


def columns_of_more(tensor: torch.Tensor) -> torch.Tensor:
    """The same shape as a slice of a wider tensor."""
    m, n = tensor.shape
    return torch.zeros(m, n + 16, dtype=torch.uint8).to(tensor.dtype)[:, :n]


class Arguments(dict):
    """Arguments by name. Inside of the pairs lhs and rhs, "A", "sfa", "B" and "sfb" can be changed, too."""

    def change(self, which: str, function) -> None:
        inside = {"A": ("lhs", 0), "sfa": ("lhs", 1), "B": ("rhs", 0), "sfb": ("rhs", 1)}
        if which in inside:
            pair, index = inside[which]
            parts = list(self[pair])
            parts[index] = function(parts[index])
            self[pair] = tuple(parts)
        else:
            self[which] = function(self[which])

    def address(self, which: str) -> str:
        tensors = {"A": self["lhs"][0], "B": self["rhs"][0], "out": self["out"]}
        return hex(tensors[which].data_ptr())


GROUPS, MAX_M = 3, 6


def grouped_arguments(layout: str) -> Arguments:
    """A grouped call that needs no conversion, so that the fast path takes it."""
    rows = (GROUPS, MAX_M) if layout == "masked" else (M,)
    sfa = scales.mn_major(torch.ones(*rows, K // 128))
    index = {"contiguous": "m_indices", "masked": "masked_m", "psum": "grouped_layout"}[layout]
    return Arguments(
        lhs=(nothing(*rows, K), sfa),
        rhs=(nothing(GROUPS, N, K), torch.ones(GROUPS, 2, K // 128)),
        out=nothing(*rows, N, dtype=torch.bfloat16),
        **{index: torch.zeros(M if layout == "contiguous" else GROUPS, dtype=torch.int32)},
    )


def refusal(function, *arguments, **keywords) -> str:
    with pytest.raises(InputError) as refused:
        function(*arguments, **keywords)
    assert "\n" not in str(refused.value)
    return str(refused.value)
