"""The operands of a row of the table (`shapes.PRODUCTS`), and a call of them by DeepGEMM's interface."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from gemm_ladder import checks, measuring
from gemm_ladder.ref.gemm import M_ALIGNMENT
from gemm_ladder.shapes import MASKED_MAX_M, Product, Shape

# The functions of DeepGEMM's interface, the second generation's names first.
NAMES = {
    "dense": ("fp8_gemm_nt", "gemm_fp8_fp8_bf16_nt"),
    "contiguous": ("m_grouped_fp8_gemm_nt_contiguous", "m_grouped_gemm_fp8_fp8_bf16_nt_contiguous"),
    "masked": (
        "m_grouped_fp8_gemm_nt_masked",
        "fp8_m_grouped_gemm_nt_masked",
        "m_grouped_gemm_fp8_fp8_bf16_nt_masked",
    ),
}


@dataclass(frozen=True)
class Operands:
    """A row's tensors on one device.

    Attributes:
        product: the row.
        parts: for each group, the rows that count, and its B: a dense problem of its own.
        blocks: the same, with the rows that fill the group's last block; dense: the rows that count.
        lhs, rhs: (A, sfa) and (B, sfb) of all groups, as `gemm_ladder.api` takes them.
        rows: m_indices or masked_m; None if dense.
    """

    product: Product
    parts: list[measuring.Problem]
    blocks: list[measuring.Problem]
    lhs: tuple[torch.Tensor, torch.Tensor]
    rhs: tuple[torch.Tensor, torch.Tensor]
    rows: torch.Tensor | None

    def output(self) -> torch.Tensor:
        """A bfloat16 [m, n], masked: [groups, max_m, n], for the result, full of NaN."""
        a, n = self.lhs[0], self.product.shape.n
        return torch.full((*a.shape[:-1], n), float("nan"), dtype=torch.bfloat16, device=a.device)

    def results(self, out: torch.Tensor | Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The rows that count of an output, or of one for each group: bfloat16 [counts[g], n]."""
        one = isinstance(out, torch.Tensor) and self.product.kind != "masked"
        groups = out.split(held_rows(self.product)) if one else out
        return [rows[:count] for rows, count in zip(groups, self.product.counts, strict=True)]


def held_rows(product: Product) -> list[int]:
    """How many rows of A each group has, those that do not count too: whole blocks; masked: MASKED_MAX_M."""
    if product.kind == "masked":
        return [MASKED_MAX_M] * product.groups
    return filled_rows(product)


def filled_rows(product: Product) -> list[int]:
    """How many rows each group's are in whole blocks; dense: m."""
    multiple = M_ALIGNMENT if product.kind != "dense" else 1
    return [checks.align(count, multiple) for count in product.counts]


def make_operands(product: Product, device: torch.device | str) -> Operands:
    """Random normal operands, the rows that do not count as well."""
    kind, (_, n, k) = product.kind, product.shape
    held = held_rows(product)
    whole = [measuring.make_problem(Shape(rows, n, k), device, seed) for seed, rows in enumerate(held)]
    parts, blocks = (
        [
            measuring.Problem(Shape(rows, n, k), one.a[:rows], one.sfa[:rows], one.b, one.sfb)
            for one, rows in zip(whole, counts, strict=True)
        ]
        for counts in (product.counts, filled_rows(product))
    )
    if kind == "dense":
        (one,) = parts
        return Operands(product, parts, blocks, (one.a, one.sfa), (one.b, one.sfb), None)
    rhs = join(torch.stack, [one.b for one in whole]), torch.stack([one.sfb for one in whole])
    if kind == "masked":
        lhs = join(torch.stack, [one.a for one in whole]), torch.stack([one.sfa for one in whole])
        rows = torch.tensor(product.counts, dtype=torch.int32, device=device)
    else:
        lhs = join(torch.cat, [one.a for one in whole]), torch.cat([one.sfa for one in whole])
        rows = torch.full((sum(held),), -1, dtype=torch.int32, device=device)
        for group, indices in enumerate(rows.split(held)):
            indices[: product.counts[group]] = group
    return Operands(product, parts, blocks, (lhs[0], checks.mn_major(lhs[1])), rhs, rows)


def join(how: Callable[[list[torch.Tensor]], torch.Tensor], fp8: Sequence[torch.Tensor]) -> torch.Tensor:
    """torch.cat or torch.stack of FP8 tensors, by their bytes: not every torch joins this type on a GPU."""
    return how([one.view(torch.uint8) for one in fp8]).view(torch.float8_e4m3fn)


def interface_call(library: ModuleType, operands: Operands) -> measuring.Call:
    """A call of a library that has DeepGEMM's interface, of either generation; gemm_ladder is one.

    Raises:
        AttributeError: it does not have this kind of product.
    """
    kind, out = operands.product.kind, operands.output()
    functions = [getattr(library, name) for name in NAMES[kind] if hasattr(library, name)]
    if not functions:
        raise AttributeError(f"{library.__name__} has none of {', '.join(NAMES[kind])}")
    arguments: list[Any] = [operands.lhs, operands.rhs, out]
    if kind != "dense":
        arguments.append(operands.rows)
    if kind == "masked":
        arguments.append(operands.product.shape.m)  # expected_m

    def call() -> torch.Tensor:
        functions[0](*arguments)
        return out

    return call
