"""What the choice is calibrated with: products, configurations to measure at them, and the file of results.

The products have the weights of some models and random ones, so that the choice is not good for a list of
models only. A result is a line of a file of figures/data/calibration/GPU: the product, the fields of the
configuration, and microseconds with L2 dirty, L2 clean and in a graph (empty if not measured, inf if the
result was wrong).
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import math
import random
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast, get_args

import numpy as np
from gemm_ladder.arguments import H100_SMS, M_ALIGNMENT, SCALE_BLOCK, Kind, align
from gemm_ladder.measure.configurations import Timed
from gemm_ladder.measure.shapes import WEIGHTS, Cell, Shape, masked_cell
from gemm_ladder.production import choice, prediction
from gemm_ladder.production.candidates import Form, candidates, made
from gemm_ladder.production.config import WGMMA_M, Config, Share

# [n, k]: DeepSeek-V3's linears, those of Llama 3.1 8B and 70B and of Qwen3 32B, some cut by tensor
# parallelism, and two small ones. `models` has the sources.
PUBLIC = (
    *WEIGHTS,
    *((6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336), (3072, 4096), (4096, 2048), (1280, 8192)),
    *((8192, 1024), (7168, 8192), (8192, 3584), (2560, 8192), (10240, 8192), (5120, 8192), (2560, 5120)),
    *((12800, 5120), (5120, 6400), (384, 1536), (512, 4096)),
)
RANDOM = 36  # how many more weights there are
# A weight is multiplied by one m from each of these ranges.
ROWS = (
    *((1, 8), (9, 24), (25, 48), (49, 64), (65, 112), (113, 160), (161, 256), (257, 448), (449, 768)),
    *((769, 1536), (1537, 3072), (3073, 6144), (6145, 16384)),
)
MOST_FLOPS = 4e12  # of a product
MOST_WEIGHTS = 8e9  # elements of B
# Random weights of any size with an m from each of these ranges, every other one just above a whole number of
# tiles, where a choice of the wrong tile costs most; and random experts.
MORE_RANDOM = 30
MORE_ROWS = ((1, 8), (9, 32), (33, 64), (65, 128), (129, 256), (257, 512), (513, 1100), (1101, 3000))
MOST_GROUPED = 65_536  # rows of all groups


class Region(NamedTuple):
    """Random weights, each with one m from each of some ranges.

    Attributes:
        weights: how many.
        n, k: the least and the most.
        rows: ranges of m; if `above`, of how many tiles of 64 rows m is one to 16 rows above.
        flops: the least and the most operations of a product.
    """

    weights: int
    n: tuple[int, int]
    k: tuple[int, int]
    rows: tuple[tuple[int, int], ...]
    above: bool = False
    flops: tuple[float, float] = (0, MOST_FLOPS)


# Where the choice that had learned from all of these was still furthest from the best: few rows and a short
# k; rows just above whole tiles; narrow weights; few waves; hours of work. And experts of which a call may be
# told too many or too few rows.
WEAK = (
    Region(10, (1024, 8192), (512, 4096), ((92, 128), (129, 200))),
    Region(20, (1024, 12_288), (1024, 16_384), ((2, 2), (4, 4), (6, 10)), above=True),
    Region(16, (256, 2304), (1024, 16_384), ((300, 640), (641, 1400), (1401, 3200))),
    Region(8, (2048, 32_768), (1024, 10_240), ((129, 256), (257, 511))),
    Region(8, (4096, 65_536), (4096, 28_672), ((4096, 16_384),), flops=(1e12, 1.2e13)),
)
WEAK_EXPERTS = 16
MORE_EXPERTS, GROUPS = 40, (4, 8, 16, 32, 64, 128, 256)
EXPERTS = ((4096, 7168), (7168, 2048), (3072, 4096), (4096, 1536), (28672, 4096), (1536, 2048))
EXPERT_ROWS = ((1, 40), (41, 160), (161, 500), (501, 2000))
MOST_LINES = 11_000  # of a file of results, about 800 kB
LIKELY, NEAR, ANY = 6, 3, 3  # configurations for each product: the best expected, and random ones
NEAR_BY, ANY_BY = 0.25, 0.8  # how much slower, as a logarithm, the random ones may be expected to be


def rows_of(cell: Cell) -> float:
    """The rows by which a configuration is chosen for a product, not rounded: see choice.rows_to_expect."""
    if cell.kind == "contiguous":
        return sum(cell.held) / cell.groups
    return float(min(cell.expected_m, cell.max_m) if cell.kind == "masked" else cell.shape.m)


def cells() -> list[Cell]:
    """The products: dense ones, and those with groups. The same in every run."""
    found = [*_first_cells(), *_more_cells()]
    usual = [one for one in found if one.flops <= MOST_FLOPS and one.weights <= MOST_WEIGHTS]
    return list(dict.fromkeys([*usual, *_weak_cells()]))


def _between(draw: random.Random, low: float, high: float) -> float:
    return math.exp(draw.uniform(math.log(low), math.log(high)))


def _first_cells() -> list[Cell]:
    """The weights of some models and random ones."""
    draw = random.Random(0)
    between = functools.partial(_between, draw)
    weights = [*PUBLIC]
    while len(weights) < len(PUBLIC) + RANDOM:
        n, k = round(between(256, 60_000) / 64) * 64, round(between(256, 30_000) / SCALE_BLOCK) * SCALE_BLOCK
        if n * k <= 6e8:
            weights.append((n, k))
    draw.shuffle(weights)
    found = [Cell("dense", 1, Shape(m, n, k)) for m in (64, 128, 4096) for n, k in WEIGHTS]
    for n, k in weights:
        for low, high in ROWS:
            found.append(Cell("dense", 1, Shape(min(high, round(between(low, high + 0.5))), n, k)))
    for n, k in EXPERTS:
        for groups in (4, 16, 64):
            for low, high in EXPERT_ROWS:
                shape = Shape(round(between(low, high)), n, k)
                found.append(Cell("contiguous", groups, shape))
                found.append(masked_cell(groups, shape, align(4 * shape.m, M_ALIGNMENT)))
    return found


def _more_cells() -> list[Cell]:
    """Random ones of the kinds where a first calibration was wrong most often: just above whole tiles, very
    large weights, other numbers of groups."""
    draw = random.Random(1)
    between = functools.partial(_between, draw)
    found, weights = [], 0
    while weights < MORE_RANDOM:
        n, k = round(between(512, 120_000) / 64) * 64, round(between(384, 30_000) / SCALE_BLOCK) * SCALE_BLOCK
        if n * k > 1.8e9:
            continue
        weights += 1
        for low, high in MORE_ROWS:
            m = min(high, round(between(low, high + 0.5)))
            above = draw.random() < 0.5 and m >= WGMMA_M
            found.append(
                Cell("dense", 1, Shape(m // WGMMA_M * WGMMA_M + draw.randint(1, 16) if above else m, n, k))
            )
    for _ in range(MORE_EXPERTS):
        n, k = (round(between(512, 8192) / SCALE_BLOCK) * SCALE_BLOCK for _ in range(2))
        groups = draw.choice(GROUPS)
        shape = Shape(round(between(1, min(2000, MOST_GROUPED // groups))), n, k)
        found.append(Cell("contiguous", groups, shape))
        found.append(masked_cell(groups, shape, align(4 * shape.m, M_ALIGNMENT)))
    return found


def _weak_cells() -> list[Cell]:
    """Random ones of the regions WEAK, and experts."""
    draw = random.Random(2)
    between = functools.partial(_between, draw)
    found: list[Cell] = []
    for region in WEAK:
        weights = 0
        while weights < region.weights:
            n, k = round(between(*region.n) / 64) * 64, round(between(*region.k) / SCALE_BLOCK) * SCALE_BLOCK
            some = []
            for low, high in region.rows:
                m = round(between(low, high + 0.5))
                m = WGMMA_M * m + draw.randint(1, 16) if region.above else min(high, m)
                some.append(Cell("dense", 1, Shape(m, n, k)))
            least, most = region.flops
            if all(least <= one.flops <= most for one in some):
                found += some
                weights += 1
    for number in range(WEAK_EXPERTS):
        n, k = (round(between(512, 8192) / SCALE_BLOCK) * SCALE_BLOCK for _ in range(2))
        shape = Shape(round(between(12, 500)), n, k)
        groups = draw.choice([one for one in GROUPS if one * n * k <= MOST_WEIGHTS / 2])
        found.append(masked_cell(groups, shape, align(4 * shape.m, SCALE_BLOCK // 2)))
        if number % 2:
            found.append(Cell("contiguous", groups, shape))
    return found


def to_measure(cell: Cell, gpu: str, draw: random.Random) -> list[Config]:
    """The configurations to measure at a product: those that are expected to be the best, and random ones."""
    kind, groups, (_, n, k) = cell.kind, cell.groups, cell.shape
    known = candidates(kind, k)
    times = choice.expected(known, kind, (rows_of(cell),), n, k, groups, H100_SMS, gpu)[:, 0]
    order = [int(one) for one in times.argsort(kind="stable") if np.isfinite(times[one])]
    found = order[:LIKELY]
    for count, by in ((NEAR, NEAR_BY), (ANY, ANY_BY)):
        rest = [one for one in order if one not in found and times[one] <= times[order[0]] + by]
        found += draw.sample(rest, min(count, len(rest)))
    first = [chosen(dataclasses.replace(cell, expected_m=told), gpu) for told in told_of(cell)]
    return list(dict.fromkeys([*first, *(known.at(one, n, k) for one in found)]))


def told_of(cell: Cell) -> tuple[int, ...]:
    """What a call may be told about the rows of a masked product's groups: about the truth, a quarter of it,
    and that all may have rows; first what the product says. Just that in other layouts."""
    if cell.kind != "masked":
        return (cell.expected_m,)
    mean = math.ceil(sum(cell.counts) / cell.groups)
    return tuple(dict.fromkeys((cell.expected_m, mean, max(1, mean // 4), cell.max_m)))


def chosen(cell: Cell, gpu: str) -> Config:
    """The configuration that a product gets, whatever the tables have; not its sparse form, which the
    recorded files do not know."""
    kind, groups, (_, n, k) = cell.kind, cell.groups, cell.shape
    rows = math.ceil(rows_of(cell))
    found = choice.choose(kind, rows * groups if kind == "contiguous" else rows, n, k, groups, gpu=gpu)
    return dataclasses.replace(found, sparse=False)


def of_choice(results: Iterable[Timed], config: Config) -> Timed | None:
    """The result of a configuration among those of one product; None if it was not measured there."""
    return next((one for one in results if one.config == config), None)


def regrets(results: Iterable[Timed], gpu: str) -> dict[Cell, float]:
    """How much longer the chosen configuration takes than the best one measured, by the geometric mean over
    the states of L2: 0.01 is one percent. Only products are there whose chosen configuration was measured."""
    products: dict[Cell, list[Timed]] = {}
    for one in results:
        if math.isfinite(one.mean):
            products.setdefault(one.cell, []).append(one)
    found: dict[Cell, float] = {}
    for cell, some in products.items():
        if (result := of_choice(some, chosen(cell, gpu))) is not None:
            found[cell] = result.mean / min(one.mean for one in some) - 1
    return found


_CELL = ("kind", "groups", "m", "n", "k", "max_m", "expected_m")
_OTHERS = tuple(
    field.name
    for field in dataclasses.fields(Config)
    if field.name not in ("kind", "n", "k", "consumers_m", "consumers_n", "sparse", *Form._fields)
)
COLUMNS = (*_CELL, *Form._fields, "others", *prediction.STATES)


def write(folder: Path, results: Iterable[Timed]) -> None:
    """Write results to the files 1.csv, 2.csv, ... of a folder, none of which is too large to look at."""
    left, number = list(results), 0
    folder.mkdir(parents=True, exist_ok=True)
    while left or not number:
        number += 1
        _write(folder / f"{number}.csv", left[:MOST_LINES])
        left = left[MOST_LINES:]
    for path in _files(folder)[number:]:
        path.unlink()


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.csv"), key=lambda path: int(path.stem))


def _write(path: Path, results: Sequence[Timed]) -> None:
    """Write a file of results. What a configuration has in common with the candidate of its form is left out;
    the column "others" has the rest, as name=value."""
    with path.open("w", newline="") as file:
        lines = csv.writer(file, lineterminator="\n")
        lines.writerow(COLUMNS)
        for cell, config, us in results:
            form = _form(config)
            usual = made(cell.kind, config.n, config.k, form)
            others = ";".join(
                f"{name}={getattr(config, name)}"
                for name in _OTHERS
                if getattr(config, name) != getattr(usual, name)
            )
            sizes = (cell.kind, cell.groups, *cell.shape, cell.max_m, cell.expected_m)
            fields = (int(value) if isinstance(value, bool) else value for value in form)
            times = ("" if math.isnan(one) else f"{one:.2f}" for one in us)
            lines.writerow([*sizes, *fields, others, *times])


def _form(config: Config) -> Form:
    return Form(*(getattr(config, name) for name in Form._fields))


def read(folder: Path) -> Iterator[Timed]:
    """The results in the files of a folder."""
    cells: dict[tuple[str, ...], Cell] = {}  # results of one product share the object
    for path in _files(folder):
        yield from _read(path, cells)


def _read(path: Path, cells: dict[tuple[str, ...], Cell]) -> Iterator[Timed]:
    with path.open(newline="") as file:
        for line in csv.DictReader(file):
            sizes = tuple(line[name] for name in _CELL)
            cell = cells.get(sizes) or cells.setdefault(sizes, _cell(*sizes))
            fields: dict[str, Any] = {name: _value(name, line[name]) for name in Form._fields}
            config = _usual(cell.kind, cell.shape.n, cell.shape.k, Form(**fields))
            if line["others"]:
                others: dict[str, Any] = dict(one.split("=") for one in line["others"].split(";"))
                values = {name: _value(name, value) for name, value in others.items()}
                config = dataclasses.replace(config, **values)
            yield Timed(cell, config, tuple(float(line[state] or "nan") for state in prediction.STATES))


_usual = functools.cache(made)


def _cell(kind: str, groups: str, m: str, n: str, k: str, max_m: str, expected_m: str) -> Cell:
    assert kind in get_args(Kind), kind
    shape = Shape(int(m), int(n), int(k))
    return Cell(cast(Kind, kind), int(groups), shape, int(max_m), int(expected_m))


def _value(name: str, text: str) -> int | bool | str:
    if name in ("share", "interleave"):
        assert name != "share" or text in get_args(Share), text
        return text
    return bool(int(text)) if name == "stream_b" else int(text)
