"""Operands for thousands of products, cut out of one store of random numbers on the GPU.

Making each product's operands anew would take longer than measuring it. What is stored are FP8 numbers, as a
cast of normal data gives them, and FP32 scales of seven bits. An FP8 number has four bits, so its product
with a scale has eleven and TF32 holds it exactly: a product in TF32 with FP32 sums is then a reference whose
error is far below a BF16 result's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from gemm_ladder.arguments import SCALE_BLOCK, align, ceil_div
from gemm_ladder.measure.operands import Operands, filled
from gemm_ladder.measure.peers import Call
from gemm_ladder.measure.problems import Errors, Problem
from gemm_ladder.measure.shapes import Cell
from gemm_ladder.measure.timing import GRAPH_BYTES
from gemm_ladder.scales import mn_major_strides

MIN_WEIGHTS, MAX_WEIGHTS = 4, 200  # how many weights the calls of a graph have
APART = 128 << 20  # elements from one weight to the next where they overlap: much more than L2 holds
SPREAD = 112.0  # standard deviation of the FP8 numbers, whose largest is 448
CHUNK = 1 << 28  # elements that are computed with at once


def weights_of(cell: Cell) -> int:
    """How many weights of a product are needed for GRAPH_BYTES; MIN_WEIGHTS at least, MAX_WEIGHTS at most."""
    return min(MAX_WEIGHTS, max(MIN_WEIGHTS, ceil_div(GRAPH_BYTES, cell.weights)))


def apart(cell: Cell) -> int:
    """Elements from the beginning of one weight to that of the next. Weights so large that L2 has lost the
    beginning of one long before its end may overlap: no call finds in L2 what it reads."""
    return APART if cell.weights >= GRAPH_BYTES else align(cell.weights, 1024)


def elements(cell: Cell) -> int:
    """FP8 numbers that a product needs: A, and all the weights."""
    return sum(cell.held) * cell.shape.k + cell.weights + (weights_of(cell) - 1) * apart(cell)


class Pool:
    """Random numbers on one device, for the operands of any of some products.

    Args:
        cells: the products.
        device: where.
        bf16: whether BF16 weights are wanted too, for the BF16 peer.
        random: whether the numbers are random; without, they are zeros, for calls that only compile.
    """

    def __init__(
        self, cells: Iterable[Cell], device: torch.device, bf16: bool = True, random: bool = True
    ) -> None:
        cells = list(cells)
        generator = torch.Generator(device).manual_seed(0)

        def numbers(count: int) -> torch.Tensor:
            return SPREAD * torch.randn(count, generator=generator, device=device)

        self.device = device
        rows = max(sum(cell.held) * cell.shape.k for cell in cells)
        weights = max(cell.weights + (weights_of(cell) - 1) * apart(cell) for cell in cells)
        self._a, self._b = (
            torch.zeros(count, dtype=torch.uint8, device=device).view(torch.float8_e4m3fn)
            for count in (rows, weights)
        )
        self._bf16 = torch.zeros(weights if bf16 else 0, dtype=torch.bfloat16, device=device)
        scales = max(sum(_scales(cell)) + weights_of(cell) * 4 for cell in cells)
        self._scales = torch.ones(scales, device=device)
        if random:
            for store in (self._a, self._b):
                for part in store.split(CHUNK):
                    part.copy_(numbers(len(part)).clamp_(-448, 448))
            for part in self._bf16.split(CHUNK):
                part.copy_(numbers(len(part)))
            bits = torch.randint(64, 128, (scales,), generator=generator, device=device)
            self._scales.copy_(bits * 2.0**-13)

    def operands(self, cell: Cell, index: int = 0) -> Operands:
        """A product's operands. Those of different `index`, below weights_of(cell), have the same A and
        different B."""
        kind, groups, (_, n, k) = cell.kind, cell.groups, cell.shape
        counts, held, blocks = list(cell.counts), cell.held, k // SCALE_BLOCK
        sizes = (groups, cell.max_m) if kind == "masked" else (sum(held),)
        a = self._a[: sum(held) * k].view(*sizes, k)
        sfa = torch.as_strided(self._scales, (*sizes, blocks), mn_major_strides((*sizes, blocks)))
        b = self._b[index * apart(cell) :][: cell.weights].view(groups, n, k)
        before, own = _scales(cell)
        begin = before + index * 4  # another one for each weight, and at an address that TMA takes
        sfb = self._scales[begin : begin + own].view(groups, ceil_div(n, SCALE_BLOCK), blocks)
        of_groups = (a, sfa) if kind == "masked" else (a.split(held), sfa.split(held))
        parts, padded = (
            [
                Problem(cell.shape._replace(m=count), rows[:count], scales[:count], b[group], sfb[group])
                for group, (count, rows, scales) in enumerate(zip(chosen, *of_groups, strict=True))
            ]
            for chosen in (counts, list(map(min, filled(kind, counts), held)))
        )
        rhs = (b[0], sfb[0]) if kind == "dense" else (b, sfb)
        return Operands(cell, counts, held, parts, padded, (a, sfa), rhs, self._rows(cell))

    def _rows(self, cell: Cell) -> torch.Tensor | None:
        if cell.kind == "dense":
            return None
        if cell.kind == "masked":
            return torch.tensor(cell.counts, dtype=torch.int32, device=self.device)
        rows = torch.full((sum(cell.held),), -1, dtype=torch.int32)
        for group, (count, mine) in enumerate(zip(cell.counts, rows.split(cell.held), strict=True)):
            mine[:count] = group
        return rows.to(self.device)

    def bf16_calls(self, operands: Operands) -> Callable[[int], Call]:
        """For each index, cuBLAS's BF16 product of each group, one after another; a call returns the outputs.

        Weight 0 is the dequantised one, so that its result can be checked. The others are random.
        """
        cell, blocks = operands.product, operands.blocks
        assert isinstance(cell, Cell)
        size = cell.groups, cell.shape.n, cell.shape.k
        left = [_join(dequantized(one.a, one.sfa, 1)) for one in blocks]
        outs = [one.output() for one in blocks]

        def weights(index: int) -> torch.Tensor:
            return self._bf16[index * apart(cell) :][: cell.weights].view(size)

        for group, one in enumerate(blocks):
            for rows, values in dequantized(one.b, one.sfb, SCALE_BLOCK):
                weights(0)[group, rows].copy_(values)

        def call_of(index: int) -> Call:
            right = [b.T for b in weights(index)]
            products = [one for one in zip(left, right, outs, strict=True) if len(one[0])]

            def call() -> list[torch.Tensor]:
                for a, b, out in products:
                    torch.mm(a, b, out=out)
                return outs

            return call

        return call_of


def _join(parts: Iterable[tuple[slice, torch.Tensor]]) -> torch.Tensor:
    return torch.cat([values.bfloat16() for _, values in parts])


def _scales(cell: Cell) -> tuple[int, int]:
    """How many scales A and one weight have, padding included."""
    n, blocks = cell.shape.n, cell.shape.k // SCALE_BLOCK
    rows = cell.groups * align(cell.max_m, 4) if cell.kind == "masked" else align(sum(cell.held), 4)
    return rows * blocks, cell.groups * ceil_div(n, SCALE_BLOCK) * blocks


def dequantized(
    fp8: torch.Tensor, scales: torch.Tensor | None, rows: int
) -> Iterator[tuple[slice, torch.Tensor]]:
    """The values of FP8 [r, k] as float32, CHUNK elements at once: which rows, and their values.

    Args:
        scales: float32 [ceil(r / rows), k / 128], one for each block of `rows` x 128; None: all 1.
    """
    r, k = fp8.shape
    step = max(1, CHUNK // k // SCALE_BLOCK) * SCALE_BLOCK
    for begin in range(0, max(r, 1), step):
        part = slice(begin, min(begin + step, r))
        values = fp8[part].float()
        if scales is not None:
            mine = scales[part] if rows == 1 else scales.repeat_interleave(rows, 0)[part]
            values = (values.view(-1, k // SCALE_BLOCK, SCALE_BLOCK) * mine[:, :, None]).view(-1, k)
        yield part, values


def references(operands: Operands, scaled: bool = True) -> list[torch.Tensor]:
    """For each group float32 [rows, n]: the product of the dequantised operands; without the scales if not
    `scaled`. In TF32, which holds the operands of a Pool exactly."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        return [_reference(part, scaled) for part in operands.parts]
    finally:
        torch.set_float32_matmul_precision(before)


def _reference(part: Problem, scaled: bool) -> torch.Tensor:
    m, n, _ = part.shape
    found = torch.empty(m, n, device=part.a.device)
    if m:
        for rows, a in dequantized(part.a, part.sfa if scaled else None, 1):
            for columns, b in dequantized(part.b, part.sfb if scaled else None, SCALE_BLOCK):
                found[rows, columns] = a @ b.T
    return found


def errors(outs: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> Errors:
    """The errors of the worst group, as problems.errors defines them; NaN where anything is NaN.

    Args:
        outs, expected: for each group the valid rows of the result, and the reference.
    """
    found = [_errors(out, reference) for out, reference in zip(outs, expected, strict=True) if len(out)]
    if not found:
        return Errors(0.0, 0.0)
    relative, element = torch.stack([torch.stack(one) for one in found]).amax(0).tolist()
    return Errors(relative, element)


def _errors(out: torch.Tensor, reference: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """relative and element of problems.Errors, still on the device."""
    off, whole, element = [], [], []
    for mine, right in zip(
        *(one.split(max(1, CHUNK // out.shape[1])) for one in (out, reference)), strict=True
    ):
        difference = mine.float() - right
        squares = right.square().sum(1, dtype=torch.float64)
        off.append(difference.square().sum(dtype=torch.float64))
        whole.append(squares.sum())
        row = (squares / right.shape[1]).sqrt()
        element.append((difference.abs().amax(1) / row).amax())
    return (torch.stack(off).sum() / torch.stack(whole).sum()).sqrt(), torch.stack(element).amax()
