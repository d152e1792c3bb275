"""Operands of the grouped layouts, and their expected results, for the tests of the public API.

A group's operands are cases.normal's. What must not be read is poisoned: rows of padding, rows that do not
count, their scales; the output is UNWRITTEN and lies between canaries.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from gemm_ladder import scales
from gemm_ladder.arguments import align
from gemm_ladder.lab.operands import FP8_NAN, Operands, normal
from gemm_ladder.lab.surroundings import CANARY, MARGIN, UNWRITTEN
from gemm_ladder.ref import gemm, metrics

BLOCK = 128  # rows of the contiguous layout that belong to one group
# A tensor core's additions keep 14 bits, and BF16 has 8; a wrong row, scale or group gives errors near 1.
MAX_ROW_ERROR = 1e-2


@dataclasses.dataclass
class Grouped:
    """The tensors of a grouped call, and its expected result."""

    lhs: tuple[torch.Tensor, torch.Tensor]
    rhs: tuple[torch.Tensor, torch.Tensor]
    out: torch.Tensor
    rows: torch.Tensor  # m_indices, masked_m or grouped_layout
    expected: np.ndarray  # float64, of out's shape; NaN where `out` must stay as it was
    around: torch.Tensor  # int16: `out` between canaries

    def untouched(self) -> bool:
        return bool((self.out.view(torch.int16) == UNWRITTEN).all())

    def check(self, exact: bool) -> None:
        """`out` against the reference: its bits if `exact`, else every row's error."""
        everything = self.around.cpu().numpy().view(np.uint16)
        assert (everything[:MARGIN] == CANARY).all() and (everything[-MARGIN:] == CANARY).all()
        bits = everything[MARGIN:-MARGIN].reshape(self.expected.shape)
        kept = np.isnan(self.expected)
        assert (bits[kept] == UNWRITTEN).all(), "written where nothing belongs"
        if exact:
            np.testing.assert_array_equal(bits[~kept], gemm.to_bf16(self.expected[~kept]).view(np.uint16))
        else:
            values = (bits.astype(np.uint32) << 16).view(np.float32)
            assert metrics.max_row_error(np.where(kept, 0, values), np.where(kept, 0, self.expected)) < (
                MAX_ROW_ERROR
            )


def _operands(rng: np.random.Generator, counts: list[int], n: int, k: int) -> list[Operands]:
    return [normal(rng, count, n, k) for count in counts]


def _products(operands: Operands) -> np.ndarray:
    return gemm.dense(operands.a, operands.sfa, operands.b, operands.sfb)


def _rhs(groups: list[Operands], device: str) -> tuple[torch.Tensor, torch.Tensor]:
    b = torch.from_numpy(np.stack([group.b for group in groups])).to(device)
    return b.view(torch.float8_e4m3fn), torch.from_numpy(np.stack([group.sfb for group in groups])).to(device)


def _output(shape: tuple[int, ...], device: str) -> tuple[torch.Tensor, torch.Tensor]:
    rows, n = int(np.prod(shape[:-1])), shape[-1]
    around = torch.full((MARGIN + rows + MARGIN, n), CANARY, dtype=torch.int16, device=device)
    around[MARGIN : MARGIN + rows] = UNWRITTEN
    return around[MARGIN : MARGIN + rows].view(torch.bfloat16).view(shape), around


def contiguous(
    counts: list[int], n: int, k: int, device: str = "cpu", padding: int = 0, block: int = BLOCK
) -> Grouped:
    """Groups with these numbers of rows, each filled up to whole blocks by rows of -1, then `padding` blocks
    of -1."""
    groups = _operands(np.random.default_rng(sum(counts) + n + k), counts, n, k)
    m = sum(-(-count // block) * block for count in counts) + padding * block
    a = np.full((m, k), FP8_NAN, np.uint8)
    sfa = np.full((m, -(-k // 128)), np.nan, np.float32)
    indices, expected = np.full(m, -1, np.int32), np.zeros((m, n))
    at = 0
    for group, operands in enumerate(groups):
        rows = slice(at, at + counts[group])
        a[rows], sfa[rows] = operands.a, operands.sfa
        indices[rows], expected[rows] = group, _products(operands)
        at += -(-counts[group] // block) * block
    out, around = _output((m, n), device)
    lhs = (
        torch.from_numpy(a).to(device).view(torch.float8_e4m3fn),
        scales.mn_major(torch.from_numpy(sfa).to(device)),
    )
    rows = torch.from_numpy(indices).to(device)
    return Grouped(lhs, _rhs(groups, device), out, rows, expected, around)


def ends_of(counts: list[int], alignment: int = BLOCK) -> list[int]:
    """The ends of a psum layout's groups with these numbers of rows."""
    begins = np.cumsum([0, *(align(count, alignment) for count in counts[:-1])]).tolist()
    return [begin + count for begin, count in zip(begins, counts, strict=True)]


def psum(
    counts: list[int], n: int, k: int, device: str = "cpu", alignment: int = BLOCK, behind: int = 0
) -> Grouped:
    """Groups with these numbers of rows, each beginning at a multiple of the alignment, then `behind` rows of
    none."""
    groups = _operands(np.random.default_rng(sum(counts) + n + k), counts, n, k)
    ends = ends_of(counts, alignment)
    begins = [end - count for end, count in zip(ends, counts, strict=True)]
    m = ends[-1] + behind
    a = np.full((m, k), FP8_NAN, np.uint8)
    sfa = np.full((m, -(-k // 128)), np.nan, np.float32)
    expected = np.full((m, n), np.nan)
    for operands, begin, end in zip(groups, begins, ends, strict=True):
        a[begin:end], sfa[begin:end] = operands.a, operands.sfa
        expected[begin:end] = _products(operands)
        expected[end : -(-end // alignment) * alignment] = 0
    out, around = _output((m, n), device)
    lhs = (
        torch.from_numpy(a).to(device).view(torch.float8_e4m3fn),
        scales.mn_major(torch.from_numpy(sfa).to(device)),
    )
    rows = torch.tensor(ends, dtype=torch.int32, device=device)
    return Grouped(lhs, _rhs(groups, device), out, rows, expected, around)


def masked(counts: list[int], max_m: int, n: int, k: int, device: str = "cpu") -> Grouped:
    """Groups with room for max_m rows each, of which these numbers count."""
    groups = _operands(np.random.default_rng(sum(counts) + n + k), counts, n, k)
    a = np.full((len(counts), max_m, k), FP8_NAN, np.uint8)
    sfa = np.full((len(counts), max_m, -(-k // 128)), np.nan, np.float32)
    expected = np.full((len(counts), max_m, n), np.nan)
    for group, operands in enumerate(groups):
        a[group, : counts[group]], sfa[group, : counts[group]] = operands.a, operands.sfa
        expected[group, : counts[group]] = _products(operands)
    out, around = _output(expected.shape, device)
    lhs = (
        torch.from_numpy(a).to(device).view(torch.float8_e4m3fn),
        scales.mn_major(torch.from_numpy(sfa).to(device)),
    )
    rows = torch.tensor(counts, dtype=torch.int32, device=device)
    return Grouped(lhs, _rhs(groups, device), out, rows, expected, around)
