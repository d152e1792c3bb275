"""python -m gemm_ladder calibrate: measure configurations on a Hopper GPU, and learn how to choose from them.

    calibrate extend     add what the choice of today expects to be good, and some random configurations, for
                         every product of `calibration.cells` to the results, without times
    calibrate measure    time every result that has no times; can be interrupted and goes on
    calibrate fit        learn from the results, print how good the choice is, and write
                         production/learned/GPU.json
    calibrate table      find the best configurations of the 30 rows of DeepSeek-V3's table, and write
                         production/tables/GPU.json

With no word it does the four of them. To measure a GPU for the first time, it begins with the choice for an
H100; to repeat them finds better configurations until nothing new is worth measuring.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gemm_ladder import build, launch
from gemm_ladder.errors import InputError
from gemm_ladder.figures import tables
from gemm_ladder.measure import calibration, learning, records, session, table, timing
from gemm_ladder.measure.batches import Batches
from gemm_ladder.measure.configurations import WRONG, KernelFault, Timed, measure_cell
from gemm_ladder.measure.pool import Pool
from gemm_ladder.measure.shapes import Cell
from gemm_ladder.measure.timing import STATES
from gemm_ladder.production import choice, prediction, tuned
from gemm_ladder.production.config import Config

SAVE_EVERY = 20  # products
UNMEASURED = (math.nan,) * len(STATES)
FOLDS = 5
WORST = 10  # products with the largest regret, to print


def main(argv: Sequence[str] | None = None) -> int:
    """Run `calibrate`. Returns 0.

    Raises:
        InputError: this is no checkout, or an argument is not usable.
        GemmLadderError: there is no Hopper GPU to measure on.
    """
    parser = argparse.ArgumentParser(
        prog="python -m gemm_ladder calibrate",
        description="Measure configurations of the production kernel on a Hopper GPU, and learn from them "
        "which one a product should get.",
    )
    steps = ("extend", "measure", "fit", "table")
    parser.add_argument("step", nargs="?", choices=steps, help="only this step (default: all of them)")
    parser.add_argument("--gpu", help="the GPU's name (default: that of this machine)")
    parser.add_argument("--seconds", type=float, default=math.inf, help="of measuring, at most")
    parser.add_argument("--seed", type=int, default=0, help="of the random configurations (default: 0)")
    arguments = parser.parse_args(argv)
    root = records.checkout_root()
    if root is None:
        raise InputError("this is an installed package; a checkout is needed, whose files are renewed")
    gpu = arguments.gpu
    if gpu is None or arguments.step in (None, "measure", "table"):
        device, gpu = session.need_gpu("what is measured is time", None)
    name = prediction.stem(gpu)
    folder = root / "figures" / "data" / "calibration" / name
    if arguments.step in (None, "extend"):
        extend(folder, gpu, arguments.seed)
    if arguments.step in (None, "measure"):
        measure(folder, device, arguments.seconds)
    if arguments.step in (None, "fit"):
        fit(folder, prediction.LEARNED / f"{name}.json")
    if arguments.step in (None, "table"):
        make_table(tuned.SHIPPED / f"{name}.json", device, gpu)
    return 0


def extend(folder: Path, gpu: str, seed: int) -> None:
    """Add configurations to a folder of results, those that are not in it."""
    results = {(one.cell, one.config): one for one in calibration.read(folder)}
    before, products = len(results), calibration.cells()
    draw = random.Random(seed)
    for cell in products:
        for config in calibration.to_measure(cell, gpu, draw):
            results.setdefault((cell, config), Timed(cell, config, UNMEASURED))
    calibration.write(folder, _in_order(results.values()))
    print(f"{len(results)} configurations at {len(products)} products, {len(results) - before} of them new")


def _in_order(results: Iterable[Timed]) -> list[Timed]:
    """Results by product, and the products of one weight together, since they share kernels."""
    weights: dict[object, list[Timed]] = {}
    for one in results:
        cell = one.cell
        weights.setdefault((cell.kind, cell.groups, cell.shape[1:]), []).append(one)
    return [one for same in weights.values() for one in sorted(same, key=lambda timed: timed.cell.shape.m)]


def measure(folder: Path, device: torch.device, seconds: float) -> None:
    """Time everything in a folder of results that has no times, and keep them there.

    Raises:
        GemmLadderError: a kernel has faulted on the GPU. It is marked as wrong.
    """
    results = _in_order(calibration.read(folder))
    todo: dict[Cell, list[Config]] = {}
    for cell, config, us in results:
        if math.isnan(us[0]):
            todo.setdefault(cell, []).append(config)
    if not todo:
        return
    found = {(one.cell, one.config): one for one in results}
    try:
        for number, timed in enumerate(_timed(todo, device, "products", seconds)):
            found |= {(one.cell, one.config): one for one in timed}
            if number % SAVE_EVERY == SAVE_EVERY - 1:
                calibration.write(folder, found.values())
    except KernelFault as fault:
        found[fault.cell, fault.config] = Timed(fault.cell, fault.config, WRONG)
        raise
    finally:
        calibration.write(folder, found.values())


def make_table(path: Path, device: torch.device, gpu: str) -> None:
    """Measure configurations at every row of the table, and write the best of them. Raises as `measure`."""
    num_sms = launch.usable_sms(device)
    todo = {cell: table.to_measure(cell, gpu, num_sms) for cell in table.cells()}
    table.write(path, [one for timed in _timed(todo, device, "rows") for one in timed], num_sms)
    tuned.forget()
    print(f"Written: {path.name}")


def _timed(
    todo: Mapping[Cell, Sequence[Config]], device: torch.device, unit: str, seconds: float = math.inf
) -> Iterator[list[Timed]]:
    """Time configurations at one product after another, until `seconds` have passed; what was found at each.

    Args:
        unit: what the progress bar counts.

    Raises:
        KernelFault: a kernel has faulted.
    """
    started, timer = time.monotonic(), timing.KernelTimer(device)
    batches = Batches(config for some in todo.values() for config in some)
    store = Pool(todo, device, bf16=False)
    try:
        with torch.cuda.device(device), session.progress(list(todo), unit) as (bar, status):
            for number, cell in enumerate(bar):
                if time.monotonic() - started > seconds:
                    print(f"{len(todo) - number} {unit} are left for the next run")
                    break
                status(str(cell))
                yield measure_cell(cell, todo[cell], batches.launcher, store, timer)
    finally:
        batches.close()


def fit(folder: Path, learned: Path) -> None:
    """Learn from a folder of results, and to a lesser degree from those of other GPU models beside it; print
    how good the choice is, and write what was learned."""
    results = _measured(folder)
    if not results:
        raise InputError(f"{folder.name} has no times; calibrate measure on a Hopper GPU is needed first")
    beside = [other for other in sorted(folder.parent.iterdir()) if other != folder]
    others = [one for other in beside for one in _measured(other)]
    data = learning.prepare(results)
    data_of_others = learning.prepare(others) if others else None
    unseen = cross_validated(results, data, others, data_of_others)
    written = learning.fit(data, data_of_others)
    network = prediction.read(written)
    everything = np.ones(len(results), dtype=bool)
    seen = learning.regrets(network, data, everything)
    off = learning.residuals(network, data, everything)
    meta = {
        "gpu": folder.name.replace("_", " "),
        "sources": build.sources_digest(),
        "results": len(results),
        "regret": {
            name: _summary([math.expm1(one.mean) for one in regrets])
            for name, regrets in (("learned from", seen), ("not learned from", unseen))
        },
        "residuals": dict(zip(STATES, (round(one, 4) for one in off), strict=True)),
    }
    learned.parent.mkdir(exist_ok=True)
    learned.write_text(_lines({"meta": meta, **written}), encoding="utf-8")
    prediction.forget()
    choice.plan.cache_clear()
    print(f"Written: {learned.name}")
    show(results, meta)


def _measured(folder: Path) -> list[Timed]:
    return [one for one in calibration.read(folder) if math.isfinite(one.us[0])]


def show(results: Sequence[Timed], meta: Mapping[str, Any]) -> None:
    """Print how good the choice is: the regret over all candidates, for weights that were learned from and
    for others, and that of the few kernels that a weight really gets."""
    of_plans = calibration.regrets(results, meta["gpu"])
    summaries = {**meta["regret"], "kernels of a weight": _summary(list(of_plans.values()))}
    rows = [["regret", "products", "mean", "95 %", "worst"]]
    for name, one in summaries.items():
        shares = (f"{one[part]:.2%}" for part in ("mean", "95 %", "worst"))
        rows.append([name, str(one["products"]), *shares])
    print(tables.plain(rows))
    errors = ", ".join(f"{state} {one:.1%}" for state, one in meta["residuals"].items())
    print(f"expected less measured, root mean square: {errors}")
    for cell, regret in sorted(of_plans.items(), key=lambda item: -item[1])[:WORST]:
        print(f"  {regret:.1%} at {cell} with {calibration.chosen(cell, meta['gpu']).name}")


def _summary(regrets: Sequence[float]) -> dict[str, float]:
    of = np.array(regrets)
    found = {"mean": of.mean(), "95 %": np.quantile(of, 0.95), "worst": of.max()}
    return {"products": len(of), **{name: round(float(one), 4) for name, one in found.items()}}


def _lines(written: dict[str, object]) -> str:
    """JSON with a row of a matrix a line."""
    text = json.dumps(written, separators=(",", ":"))
    return text.replace("],[", "],\n[").replace('},"', '},\n"') + "\n"


def cross_validated(
    results: Sequence[Timed],
    data: learning.Data,
    others: Sequence[Timed] = (),
    data_of_others: learning.Data | None = None,
) -> list[learning.Regret]:
    """The regret at weights that a fit has not seen, on this GPU model or another: a fifth of the weights is
    left out in each of five."""
    weights = sorted({one.cell.shape[1:] for one in results})
    random.Random(0).shuffle(weights)
    left_out, tests = [], []
    for fold in range(FOLDS):
        among = set(weights[fold::FOLDS])
        tests.append(np.array([one.cell.shape[1:] in among for one in results]))
        foreign = np.array([one.cell.shape[1:] in among for one in others], dtype=bool)
        left_out.append(np.concatenate([tests[-1], foreign]))
    fitted = learning.fits(data, data_of_others, left_out)
    return [
        regret
        for written, test in zip(fitted, tests, strict=True)
        for regret in learning.regrets(prediction.read(written), data, test)
    ]
