"""The rows of DeepSeek-V3's table: what `calibrate table` measures at them, and the file that keeps the best.

The choice knows some hundred configurations of a kernel. Around the best of these there are more, which
differ in details: in how many stages the ring has, how far the loop is unrolled, in which order tiles are
handed out. At the rows of the table, `shapes.PRODUCTS`, these details are measured too, and
production/tables/GPU.json keeps what was the fastest by the geometric mean over the states of L2.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from gemm_ladder.measure.configurations import Timed
from gemm_ladder.measure.shapes import MASKED_MAX_M, PRODUCTS, Cell, Product
from gemm_ladder.production import choice, tuned
from gemm_ladder.production.config import INTERLEAVES, WGMMA_M, Config, fits

LIKELY = 8  # configurations of a row whose details are not varied, beside the one in the table
VARIED = 3  # of these, the first ones, whose details are
# group_m, group_n; with a group_m of 1, bands are group_n units wide however few units lie below each other
ORDERS = (*((down, 0) for down in (4, 5, 8, 10, 16)), *((1, across) for across in (2, 4, 8, 12, 16)))
UNROLLS = (1, 2, 4, 8)
PREFETCHES = (0, 2, 3, 4, 8)
FEWER_STAGES = (1, 2, 4)
FEW_ROWS = 128  # up to here a row is bound by memory, and other details count


class TableRow(Cell):
    """A row of the table, with the rows of its groups that it always had."""

    @property
    def counts(self) -> tuple[int, ...]:
        """Valid rows of each group."""
        return Product(self.kind, self.groups, self.shape).counts


def cells() -> list[TableRow]:
    """The rows."""
    return [
        TableRow(kind, groups, shape, *((MASKED_MAX_M, shape.m) if kind == "masked" else ()))
        for kind, groups, shape in PRODUCTS
    ]


def step(cell: Cell) -> int:
    """The number of rows by which a configuration is chosen, one of choice.STEPS."""
    rows = cell.shape.m if cell.kind == "masked" else sum(cell.held)
    return choice.rows_to_expect(cell.kind, rows, cell.groups, None)


def to_measure(cell: Cell, gpu: str, num_sms: int) -> list[Config]:
    """The configurations to measure at a row: the one in the table, the best expected ones, and the same with
    other details."""
    kind, groups, (m, n, k) = cell.kind, cell.groups, cell.shape
    rows = m if kind == "masked" else sum(cell.held)
    kept = [config for at, config in tuned.find(gpu, kind, n, k, groups, num_sms) if at == step(cell)]
    found = [*kept, *choice.ranked(kind, rows, n, k, groups, num_sms, gpu)[:LIKELY]]
    varied = [other for one in found[:VARIED] for other in _details(one, m)]
    return [one for one in dict.fromkeys([*found, *varied]) if fits(one)]


def _details(config: Config, m: int) -> Iterator[Config]:
    """The configuration with other details."""
    change = dataclasses.replace
    if m <= FEW_ROWS and config.kind == "dense":
        yield from (change(config, prefetch=blocks, stream_b=True) for blocks in PREFETCHES)
        yield from (change(config, stages=max(3, config.stages - fewer)) for fewer in FEWER_STAGES)
    if m > FEW_ROWS and config.tile_m > WGMMA_M and config.share == "nothing":
        yield from (change(config, group_m=down, group_n=across) for down, across in ORDERS)
    if m > FEW_ROWS and config.consumers == 2:
        yield from (change(config, unroll=blocks) for blocks in UNROLLS)
        yield from (change(config, interleave=mode) for mode in INTERLEAVES if mode != "off")


def write(path: Path, results: Iterable[Timed], num_sms: int) -> None:
    """Write a table with the best configuration of each row."""
    best: dict[Cell, Timed] = {}
    for one in results:
        if math.isfinite(one.mean) and (one.cell not in best or one.mean < best[one.cell].mean):
            best[one.cell] = one
    entries: dict[str, Any] = {}
    for cell, one in best.items():
        us = [each for each in one.us if not math.isnan(each)]
        entries |= tuned.entry(one.config, step(cell), cell.groups, num_sms, us)
    path.write_text(json.dumps(entries, indent=1, sort_keys=True) + "\n", encoding="utf-8")
