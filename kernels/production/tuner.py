"""Measure which configuration is the fastest for a product, and keep the result: `gemm_ladder.tune`, and

    python -m gemm_ladder tune M N K [--kind masked --groups 4]      on a machine with a Hopper GPU

What is kept (`tuned`) is used from the next call on, by later processes too. Kernels are timed as in every
measurement of this package (`gemm_ladder.measure.timing`), after their results were checked: with L2 dirty,
with L2 clean, and in a CUDA graph. The best one has the least geometric mean of these times.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from gemm_ladder import checks, launch
from gemm_ladder.arguments import M_ALIGNMENT, Kind, align, ceil_div
from gemm_ladder.errors import GemmLadderError, InputError
from gemm_ladder.figures import tables
from gemm_ladder.measure import timing
from gemm_ladder.measure.configurations import Timed, measure_cell
from gemm_ladder.measure.pool import Pool
from gemm_ladder.measure.shapes import Cell, Shape
from gemm_ladder.measure.timing import STATES, State
from gemm_ladder.precompiling import build_all
from gemm_ladder.production import choice, launching, tuned
from gemm_ladder.production import config as configs
from gemm_ladder.production.choice import ranked
from gemm_ladder.production.config import Config
from gemm_ladder.production.explain import add_product
from gemm_ladder.production.prediction import predict, spread

CANDIDATES = 16


class Tuned(NamedTuple):
    """A configuration, and microseconds.

    Attributes:
        us: the geometric mean over the states.
        by_state: in each of timing.STATES; NaN where it was not measured.
    """

    config: Config
    us: float
    by_state: tuple[float, ...]


class Expected(Cell):
    """A product whose groups are as unequal as `prediction` assumes."""

    @property
    def counts(self) -> tuple[int, ...]:
        """Valid rows of each group."""
        if self.kind == "dense":
            return (self.shape.m,)
        return tuple(spread(self.shape.m, self.groups)[0])


def product_for(kind: Kind, m: int, n: int, k: int, groups: int) -> Expected:
    """What is measured for a product.

    Args:
        m: rows of A in all; in the masked layout, about how many rows of a group count.
    """
    if kind == "masked":
        most = align(max(spread(m, groups)[0]), M_ALIGNMENT)
        return Expected(kind, groups, Shape(m, n, k), most, m)
    return Expected(kind, groups, Shape(ceil_div(m, groups), n, k))


def tune(
    kind: Kind,
    m: int,
    n: int,
    k: int,
    groups: int = 1,
    device: torch.device | str = "cuda",
    limit: int = CANDIDATES,
    among: Sequence[Config] | None = None,
    states: Sequence[State] = STATES,
) -> list[Tuned]:
    """Time the configurations that are expected to be good, and keep the best one.

    Args:
        kind, n, k, groups: the layout, the sizes of B, and how many groups B has.
        m: rows of A in all; in the masked layout, about how many rows of a group count. The result is used
            for every m for which choice.rows_to_expect gives the same number.
        device: a Hopper GPU; all of its SMs are used.
        limit: how many configurations to time, the best expected ones. After them, if its tile is large, the
            fastest one is timed with its FFMAs interleaved in the other ways.
        among: time these configurations instead, and no others.
        states: the states of L2 that count: some of "dirty", "clean" and "graph". The graph is left out for
            large products and those with groups, where it would tell nothing more.

    Returns:
        The configurations and their times, the fastest first.

    Raises:
        InputError: no kernel multiplies these sizes, `among` has a configuration for other ones, a state is
            unknown, or there is no Hopper GPU.
        GemmLadderError: no configuration gave a right result.
    """
    device = torch.device(device)
    if device.type != "cuda" or not torch.cuda.is_available():
        raise InputError(f"device is {device}, and torch finds no GPU there; a Hopper GPU is needed")
    checks.runs_on(device)
    if not states or not set(states) <= set(STATES):
        raise InputError(f"states is {states!r}; some of {', '.join(STATES)} are needed")
    num_sms, gpu = launch.usable_sms(device), torch.cuda.get_device_name(device)
    choice.check(kind, m, n, k, groups, num_sms)
    found = list(among) if among else ranked(kind, m, n, k, groups, num_sms, gpu)[:limit]
    for config in found:
        if (config.kind, config.n, config.k) != (kind, n, k):
            raise InputError(f"among has {config.name}; configurations for {kind} {n}x{k} are needed")
    with torch.cuda.device(device):
        product = product_for(kind, m, n, k, groups)
        store, timer = Pool([product], device, bf16=False), timing.KernelTimer(device)
        build_all(found, "cuda")
        results = _time(product, found, store, timer, states)
        if results and not among:
            found = interleaved(results[0].config)
            results = sorted(
                [*results, *_time(product, found, store, timer, states)], key=lambda result: result.us
            )
    if not results:
        raise GemmLadderError(f"none of {len(found)} configurations gave a right result for {m}x{n}x{k}")
    best, rows = results[0], choice.rows_to_expect(kind, m, groups, None)
    tuned.keep(gpu, best.config, rows, groups, num_sms, [one for one in best.by_state if not math.isnan(one)])
    launching.forget()
    return results


def interleaved(config: Config) -> list[Config]:
    """Compile the configuration with its FFMAs interleaved in the other ways, and return those that the pass
    could make. Interleaving may pay where the tensor cores are busy, so only with large tiles."""
    if config.tile_m * config.tile_n < 128 * 128:
        return []
    others = [dataclasses.replace(config, interleave=mode) for mode in configs.INTERLEAVES]
    built = build_all(others, "cuda")
    return [
        other
        for other, one in zip(others, built, strict=True)
        if other != config
        and one.rewritten
        is not False  # False: the pass could not, so this is the compiler's code; None: no pass was asked for
    ]


def _time(
    product: Cell, found: Sequence[Config], store: Pool, timer: timing.KernelTimer, states: Sequence[State]
) -> list[Tuned]:
    def launcher_of(config: Config) -> launch.Launcher:
        return launch.launcher(launching.library(config))

    timed = measure_cell(product, found, launcher_of, store, timer, states) if found else []
    right: list[Timed] = [one for one in timed if math.isfinite(one.mean)]
    return sorted((Tuned(one.config, one.mean, one.us) for one in right), key=lambda result: result.us)


def main(argv: Sequence[str] | None = None) -> int:
    """Run `tune`. Returns 0. Raises the errors of tune()."""
    parser = argparse.ArgumentParser(
        prog="python -m gemm_ladder tune",
        description="Time the configurations that are expected to be good for a product, on a Hopper GPU, "
        "and keep the best one for later calls.",
    )
    add_product(parser)
    parser.add_argument(
        "--limit", type=int, default=CANDIDATES, metavar="N", help="how many to time (default: %(default)s)"
    )
    parser.add_argument(
        "--states",
        nargs="+",
        choices=STATES,
        default=STATES,
        help="the states of L2 that count (default: all)",
    )
    arguments = parser.parse_args(argv)
    shape, groups = (arguments.m, arguments.n, arguments.k), arguments.groups
    results = tune(arguments.kind, *shape, groups, limit=arguments.limit, states=arguments.states)
    cells = [["configuration", "FFMAs", *(f"us {state}" for state in STATES), "expected us"]]
    for config, _, by_state in results:
        times = ["" if math.isnan(us) else f"{us:.2f}" for us in by_state]
        expected = predict(config, arguments.m, groups, gpu=torch.cuda.get_device_name())
        cells.append([config.name, config.interleave, *times, f"{expected.us:.2f}"])
    print(tables.plain(cells))
    return 0
