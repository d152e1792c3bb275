"""Measure which configuration is the fastest for a product, and keep the result: `gemm_ladder.tune`, and

    python -m gemm_ladder tune M N K [--kind masked --groups 4]      on a machine with a Hopper GPU

What is kept (`tuned`) is used from the next call on, by later processes too. Kernels are timed as in every
measurement of this package (`gemm_ladder.measure.timing`), L2 dirty, after their results were checked.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from typing import NamedTuple

import torch
from gemm_ladder import checks
from gemm_ladder.arguments import M_ALIGNMENT, Kind, align
from gemm_ladder.errors import GemmLadderError, InputError
from gemm_ladder.figures import tables
from gemm_ladder.measure import timing
from gemm_ladder.measure.operands import Operands, make_operands
from gemm_ladder.measure.shapes import Product, Shape
from gemm_ladder.production import choice, launching, tuned
from gemm_ladder.production import config as configs
from gemm_ladder.production.choice import ranked
from gemm_ladder.production.config import Config
from gemm_ladder.production.explain import add_product
from gemm_ladder.production.precompiling import build_all
from gemm_ladder.production.prediction import predict, spread

CANDIDATES = 16


class Tuned(NamedTuple):
    """A configuration, and its microseconds: the median of its calls."""

    config: Config
    us: float


def operands_for(kind: Kind, m: int, n: int, k: int, groups: int, device: torch.device | str) -> Operands:
    """Random normal operands. In the contiguous layout, the groups have equal numbers of blocks of 128 rows,
    as far as possible; in the masked layout about m rows each, as unequal as `prediction` assumes."""
    if kind == "masked":
        counts = spread(m, groups)[0]
        held = [align(max(counts), M_ALIGNMENT)] * groups
    elif kind == "contiguous":
        blocks = align(m, M_ALIGNMENT) // M_ALIGNMENT
        ends = [blocks * (group + 1) // groups * M_ALIGNMENT for group in range(groups)]
        counts = held = [end - start for start, end in zip([0, *ends], ends, strict=False)]
    else:
        counts = held = [m]
    return make_operands(Product(kind, groups, Shape(m, n, k)), device, counts, held)


def tune(
    kind: Kind,
    m: int,
    n: int,
    k: int,
    groups: int = 1,
    device: torch.device | str = "cuda",
    limit: int = CANDIDATES,
    among: Sequence[Config] | None = None,
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

    Returns:
        The configurations and their times, the fastest first.

    Raises:
        InputError: no kernel multiplies these sizes, `among` has a configuration for other ones, or there is
            no Hopper GPU.
        GemmLadderError: no configuration gave a right result.
    """
    device = torch.device(device)
    if device.type != "cuda" or not torch.cuda.is_available():
        raise InputError(f"device is {device}, and torch finds no GPU there; a Hopper GPU is needed")
    checks.runs_on(device)
    num_sms, gpu = (
        torch.cuda.get_device_properties(device).multi_processor_count,
        torch.cuda.get_device_name(device),
    )
    rows = choice.rows_to_expect(kind, m, groups, None)
    found = list(among) if among else ranked(kind, m, n, k, groups, num_sms)[:limit]
    for config in found:
        if (config.kind, config.n, config.k) != (kind, n, k):
            raise InputError(f"among has {config.name}; configurations for {kind} {n}x{k} are needed")
    with torch.cuda.device(device):
        operands = operands_for(kind, m, n, k, groups, device)
        build_all(found, "cuda")
        results = _time(found, operands, device)
        if results and not among:
            found = interleaved(results[0].config)
            results = sorted([*results, *_time(found, operands, device)], key=lambda result: result.us)
    if not results:
        raise GemmLadderError(f"none of {len(found)} configurations gave a right result for {m}x{n}x{k}")
    best = results[0]
    tuned.keep(gpu, best.config, rows, groups, num_sms, best.us)
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


def _time(found: Sequence[Config], operands: Operands, device: torch.device) -> list[Tuned]:
    from tqdm import tqdm

    calls = {}
    labels = [f"{config.name} ({index})" for index, config in enumerate(found)]  # two may have one name
    out, references = operands.output(), list(operands.references())
    for config, label in zip(found, labels, strict=True):

        def call(config: Config = config) -> torch.Tensor:
            launching.launch(config, operands.lhs, operands.rhs, out, operands.rows)
            return out

        out.fill_(float("nan"))
        if operands.errors(call(), references).right:
            calls[label] = call
        else:
            print(f"{label} gives a wrong result and is left out", file=sys.stderr)
    counts = {name: timing.calls_for(timing.seconds_of(call, device)) for name, call in calls.items()}
    timer = timing.KernelTimer(device)
    with tqdm(total=2 * len(calls), leave=False, disable=not sys.stderr.isatty()) as bar:

        def tick(name: str) -> None:
            bar.set_description(name)
            bar.update()

        timings, failures = timing.measure(calls, counts, ("dirty",), timer, tick)
    for name, reason in failures.items():
        print(f"{name} is left out: {reason}", file=sys.stderr)
    timed = [(config, timings.get((label, "dirty"))) for config, label in zip(found, labels, strict=True)]
    results = [Tuned(config, timing.us) for config, timing in timed if timing]
    return sorted(results, key=lambda result: result.us)


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
    arguments = parser.parse_args(argv)
    shape = (arguments.m, arguments.n, arguments.k)
    results = tune(arguments.kind, *shape, arguments.groups, limit=arguments.limit)
    rows = choice.rows_to_expect(arguments.kind, arguments.m, arguments.groups, None)
    cells = [["configuration", "FFMAs", "us", "expected us"]]
    for config, us in results:
        cells.append(
            [config.name, config.interleave, f"{us:.2f}", f"{predict(config, rows, arguments.groups).us:.2f}"]
        )
    print(tables.plain(cells))
    return 0
