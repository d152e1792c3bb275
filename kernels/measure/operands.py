"""The operands of a row of `shapes.PRODUCTS`, and a call with them through DeepGEMM's interface."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from gemm_ladder import scales
from gemm_ladder.arguments import M_ALIGNMENT, Kind, align
from gemm_ladder.measure.peers import Call
from gemm_ladder.measure.problems import Errors, Problem, errors, make_problem
from gemm_ladder.measure.shapes import MASKED_MAX_M, Cell, Product, Shape

# The names that DeepGEMM's functions have, by kind of product; the second generation's first.
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
        counts: valid rows of each group.
        held: rows of A that each group has, padding included.
        parts: for each group its valid rows and its B, as a dense problem.
        blocks: the same, with the group's rows padded to a multiple of M_ALIGNMENT; in a dense product
            without padding.
        lhs, rhs: (A, sfa) and (B, sfb) of all groups, as `gemm_ladder.api` takes them.
        rows: m_indices or masked_m; None if dense.
    """

    product: Product | Cell
    counts: list[int]
    held: list[int]
    parts: list[Problem]
    blocks: list[Problem]
    lhs: tuple[torch.Tensor, torch.Tensor]
    rhs: tuple[torch.Tensor, torch.Tensor]
    rows: torch.Tensor | None

    def output(self) -> torch.Tensor:
        """A bfloat16 [m, n], or [groups, max_m, n] if masked, for the result, full of NaN."""
        a, n = self.lhs[0], self.product.shape.n
        return torch.full((*a.shape[:-1], n), float("nan"), dtype=torch.bfloat16, device=a.device)

    def results(self, out: torch.Tensor | Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The valid rows of an output, or of one output for each group: bfloat16 [counts[g], n]."""
        one = isinstance(out, torch.Tensor) and self.product.kind != "masked"
        groups = out.split(self.held) if one else out
        return [rows[:count] for rows, count in zip(groups, self.counts, strict=True)]

    def references(self, scaled: bool = True) -> Iterator[torch.Tensor]:
        """What `results` has to be, in float64, one group after another: memory may not hold them all."""
        return (part.reference(scaled) for part in self.parts)

    def errors(
        self, out: torch.Tensor | Sequence[torch.Tensor], references: Iterable[torch.Tensor]
    ) -> Errors:
        """The errors of the worst group."""
        worst = Errors(0.0, 0.0)
        for rows, reference in zip(self.results(out), references, strict=True):
            if len(rows):
                worst = worst.worst(errors(rows, reference))
        return worst


def held_rows(product: Product) -> list[int]:
    """Rows of A that each group has, padding included: MASKED_MAX_M if masked, else see filled()."""
    if product.kind == "masked":
        return [MASKED_MAX_M] * product.groups
    return filled(product.kind, product.counts)


def filled(kind: Kind, counts: Sequence[int]) -> list[int]:
    """The groups' numbers of rows, rounded up to M_ALIGNMENT; in a dense product as they are."""
    multiple = M_ALIGNMENT if kind != "dense" else 1
    return [align(count, multiple) for count in counts]


def make_operands(product: Product, device: torch.device | str) -> Operands:
    """Random normal operands of a row; the padding holds random numbers too."""
    kind, (_, n, k) = product.kind, product.shape
    counts, held = list(product.counts), held_rows(product)
    whole = [make_problem(Shape(rows, n, k), device, seed) for seed, rows in enumerate(held)]
    parts, blocks = (
        [
            Problem(Shape(rows, n, k), one.a[:rows], one.sfa[:rows], one.b, one.sfb)
            for one, rows in zip(whole, first, strict=True)
        ]
        for first in (counts, filled(kind, counts))
    )
    if kind == "dense":
        (one,) = parts
        return Operands(product, counts, held, parts, blocks, (one.a, one.sfa), (one.b, one.sfb), None)
    rhs = join(torch.stack, [one.b for one in whole]), torch.stack([one.sfb for one in whole])
    if kind == "masked":
        lhs = join(torch.stack, [one.a for one in whole]), torch.stack([one.sfa for one in whole])
        rows = torch.tensor(counts, dtype=torch.int32, device=device)
    else:
        lhs = join(torch.cat, [one.a for one in whole]), torch.cat([one.sfa for one in whole])
        rows = torch.full((sum(held),), -1, dtype=torch.int32, device=device)
        for group, indices in enumerate(rows.split(held)):
            indices[: counts[group]] = group
    lhs = lhs[0], scales.mn_major(lhs[1])
    return Operands(product, counts, held, parts, blocks, lhs, rhs, rows)


def join(how: Callable[[list[torch.Tensor]], torch.Tensor], fp8: Sequence[torch.Tensor]) -> torch.Tensor:
    """torch.cat or torch.stack of FP8 tensors, as bytes: not every torch joins FP8 tensors on a GPU."""
    return how([one.view(torch.uint8) for one in fp8]).view(torch.float8_e4m3fn)


def interface_call(library: ModuleType, operands: Operands, out: torch.Tensor | None = None) -> Call:
    """A call of a library with DeepGEMM's interface of either generation; gemm_ladder is one.

    Args:
        out: what the call writes into, as Operands.output() makes it; None: a new one.

    Raises:
        AttributeError: the library does not have this kind of product.
    """
    kind = operands.product.kind
    out = operands.output() if out is None else out
    functions = [getattr(library, name) for name in NAMES[kind] if hasattr(library, name)]
    if not functions:
        raise AttributeError(f"{library.__name__} has none of {', '.join(NAMES[kind])}")
    arguments: list[Any] = [operands.lhs, operands.rhs, out]
    if kind != "dense":
        arguments.append(operands.rows)
    if kind == "masked":
        arguments.append(operands.product.expected_m)

    def call() -> torch.Tensor:
        functions[0](*arguments)
        return out

    return call
