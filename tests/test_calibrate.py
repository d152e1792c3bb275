"""Measuring configurations, learning from them, and the file between the two; without a GPU."""

from __future__ import annotations

import ctypes
import dataclasses
import json
import math
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from gemm_ladder import build, cli
from gemm_ladder.arguments import GroupedArgs
from gemm_ladder.errors import BuildError, GemmLadderError
from gemm_ladder.measure import (
    batches,
    calibrate,
    calibration,
    configurations,
    learning,
    records,
    table,
    timing,
)
from gemm_ladder.measure.calibration import MOST_FLOPS, MOST_WEIGHTS
from gemm_ladder.measure.configurations import WRONG, KernelFault, Timed, measure_cell
from gemm_ladder.measure.pool import Pool
from gemm_ladder.measure.shapes import PRODUCTS, Cell, Shape, masked_cell
from gemm_ladder.production import config as configs
from gemm_ladder.production import launching, prediction, tuned
from gemm_ladder.production.candidates import candidates
from gemm_ladder.production.config import Config
from gemm_ladder.ref import emulator

CPU = torch.device("cpu")
SMALL = Cell("dense", 1, Shape(40, 72, 256))
GROUPED = masked_cell(3, Shape(40, 72, 256), 128)

# ---------------------------------------------------------------------------------------- what is measured


def test_cells() -> None:
    found = calibration.cells()
    assert found == calibration.cells(), "the same in every run"
    assert len(found) == len(set(found)) > 800
    assert {cell.kind for cell in found} == {"dense", "contiguous", "masked"}
    most = max(region.flops[1] for region in calibration.WEAK)
    assert all(cell.flops <= most and cell.weights <= MOST_WEIGHTS for cell in found)
    assert sum(cell.flops > MOST_FLOPS for cell in found) < 10
    assert len({cell.shape[1:] for cell in found if cell.kind == "dense"}) == (
        24
        + calibration.RANDOM
        + calibration.MORE_RANDOM
        + sum(region.weights for region in calibration.WEAK)
        - 1  # which was drawn twice
    )
    assert sum(cell.shape.m & (cell.shape.m - 1) > 0 for cell in found) > len(found) / 2, "no power of two"


@pytest.mark.parametrize("cell", [SMALL, GROUPED, Cell("contiguous", 3, Shape(40, 72, 256))], ids=str)
def test_what_is_measured_at_a_product(cell: Cell) -> None:
    found = calibration.to_measure(cell, "", random.Random(0))
    assert found[0] == calibration.chosen(cell, "")
    assert len(found) == len(set(found)) > 5
    assert all(configs.fits(one) and (one.kind, one.n, one.k) == (cell.kind, 72, 256) for one in found)
    assert found == calibration.to_measure(cell, "", random.Random(0))
    assert found != calibration.to_measure(cell, "", random.Random(1))


def test_what_a_call_may_be_told() -> None:
    """A masked product is also measured with what it gets if expected_m is far from the truth."""
    cell = masked_cell(16, Shape(100, 512, 1024), 512)
    mean = math.ceil(sum(cell.counts) / 16)
    assert calibration.told_of(cell) == (mean, mean // 4, 512)
    assert calibration.told_of(dataclasses.replace(cell, expected_m=512)) == (512, mean, mean // 4)
    wanted = calibration.to_measure(cell, "", random.Random(0))
    for told in (mean // 4, 512):
        assert calibration.chosen(dataclasses.replace(cell, expected_m=told), "") in wanted
    assert calibration.told_of(SMALL) == (0,)


def test_regions() -> None:
    """The random weights of a region have one m of each of its ranges."""
    found = calibration._weak_cells()
    for region in calibration.WEAK:
        some, found = found[: region.weights * len(region.rows)], found[region.weights * len(region.rows) :]
        for number, cell in enumerate(some):
            (m, n, k), (low, high) = cell.shape, region.rows[number % len(region.rows)]
            assert region.n[0] <= n <= region.n[1] and region.k[0] <= k <= region.k[1], cell
            assert region.flops[0] <= cell.flops <= region.flops[1], cell
            assert (64 * low < m <= 64 * high + 16 and m % 64 <= 16) if region.above else low <= m <= high
    assert {cell.kind for cell in found} == {"masked", "contiguous"}


def test_rows_of() -> None:
    assert calibration.rows_of(SMALL) == 40
    assert calibration.rows_of(dataclasses.replace(GROUPED, expected_m=50)) == 50
    assert calibration.rows_of(dataclasses.replace(GROUPED, expected_m=500)) == 128, (
        "there is room for no more"
    )
    contiguous = Cell("contiguous", 3, Shape(40, 72, 256))
    assert calibration.rows_of(contiguous) == sum(contiguous.held) / 3


def test_the_file_keeps_everything(tmp_path: Path) -> None:
    usual = candidates("dense", 256).at(5, 72, 256)
    other = dataclasses.replace(usual, stages=3, group_n=2, interleave="full", prefetch=0)
    results = [
        Timed(SMALL, usual, (3.0, 2.5, math.nan)),
        Timed(SMALL, other, WRONG),
        Timed(GROUPED, Config.of("masked", 72, 256, 64, 32), (math.nan,) * 3),
    ]
    path = tmp_path / "GPU"
    calibration.write(path, results)
    assert repr(list(calibration.read(path))) == repr(results), "NaN is not equal to itself"


def test_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At a row of the table details are measured too, and the best of all is what a call then gets."""
    gpu, rows = "NVIDIA H100 80GB HBM3", table.cells()
    assert [(one.kind, one.groups, one.shape) for one in rows] == [*PRODUCTS]
    assert [one.counts for one in rows] == [one.counts for one in PRODUCTS]
    for cell in (rows[0], rows[-1], rows[17]):
        wanted = table.to_measure(cell, gpu, 132)
        assert len(wanted) == len(set(wanted)) > table.LIKELY + 5
        assert wanted[0] in dict(tuned.find(gpu, cell.kind, *cell.shape[1:], cell.groups, 132)).values()
        best = wanted[7]
        times = [Timed(cell, one, (9.0 - (one == best), 8.0, math.nan)) for one in wanted]
        times.append(Timed(cell, wanted[0], WRONG))
        table.write(tmp_path / "NVIDIA_Imaginary.json", times, 132)
        monkeypatch.setattr(tuned, "SHIPPED", tmp_path)
        tuned.forget()
        arguments = (cell.kind, *cell.shape[1:], cell.groups, 132)
        assert tuned.find("NVIDIA Imaginary", *arguments) == ((table.step(cell), best),)
        monkeypatch.undo()
        tuned.forget()


# ---------------------------------------------------------------------------------------------- measuring


class Timer:
    """Every call takes as long as its configuration's tile_n says."""

    device = CPU

    def batch(self, jobs: list[timing.Job]) -> list[list[float]]:
        for job in jobs:
            job.call()
        return [[100.0] * job.calls for job in jobs]


def run(config: Config) -> Callable[[int], bytes | None]:
    """A launcher of the configuration, on the emulator."""

    def launch(address: int) -> bytes | None:
        args = GroupedArgs.from_address(address)
        args.num_sms = 2
        assert emulator.launch(launching._emulated(config), args) is None
        return None

    return launch


@pytest.fixture
def on_the_cpu(fake_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=0))


@pytest.mark.usefixtures("on_the_cpu")
@pytest.mark.parametrize("cell", [SMALL, GROUPED], ids=str)
def test_measure_cell(cell: Cell, capsys: pytest.CaptureFixture[str]) -> None:
    """A right result has times; a wrong one and a refused launch have none."""
    right = Config.of(cell.kind, 72, 256, 64, 48)
    wrong, refused, unbuilt = (dataclasses.replace(right, group_m=group) for group in (2, 3, 4))

    def launcher_of(config: Config) -> Any:
        if config == unbuilt:
            raise BuildError("It does not build.", "")
        if config == refused:
            return lambda address: b"too much shared memory"
        return run(config) if config == right else lambda address: None

    store = Pool([cell], CPU, bf16=False)
    found = {
        one.config: one.us
        for one in measure_cell(cell, [right, wrong, refused, unbuilt], launcher_of, store, Timer())
    }
    graph = 100.0 if cell.kind == "dense" else math.nan
    assert repr(found[right]) == repr((100.0, 100.0, graph))
    assert found[wrong] == found[refused] == found[unbuilt] == WRONG
    printed = capsys.readouterr().out
    assert "too much shared memory" in printed and "It does not build." in printed
    clean = measure_cell(cell, [right], launcher_of, store, Timer(), states=("clean",))
    assert repr(clean[0].us) == repr((math.nan, 100.0, math.nan)) and clean[0].mean == pytest.approx(100)


@pytest.mark.usefixtures("on_the_cpu")
def test_a_fault_names_its_kernel() -> None:
    def launcher_of(config: Config) -> Any:
        def launch(address: int) -> None:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

        return launch

    config = Config.of("dense", 72, 256, 64, 48)
    with pytest.raises(KernelFault, match="72x256_64x48 faults at 40x72x256: CUDA error") as fault:
        measure_cell(SMALL, [config], launcher_of, Pool([SMALL], CPU, bf16=False), Timer())
    assert (fault.value.config, fault.value.cell) == (config, SMALL)


def test_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Configurations of one mode share libraries; each has its own function; a batch that fails says so."""
    texts: list[str] = []

    def compiled(text: str, target: str, name: str, sass_pass: object) -> Any:
        texts.append(text)
        if "768" in text:
            raise BuildError("It does not build.", "")
        return SimpleNamespace(lib=ctypes.CDLL(None))

    monkeypatch.setattr(build, "compile", compiled)
    monkeypatch.setattr(batches, "TOGETHER", 2)
    monkeypatch.setattr("gemm_ladder.launch.launcher", lambda library, name: name)
    wanted = [Config.of("dense", n, 256, 64, 64) for n in (64, 128, 192)]
    wanted += [Config.of("dense", 768, 256, 128, 128, interleave="9/16"), wanted[0]]
    found = batches.Batches(wanted)
    assert [found.launcher(one) for one in wanted[:3]] == [configs.ENTRY, f"{configs.ENTRY}_1", configs.ENTRY]
    with pytest.raises(GemmLadderError, match="768x256_128x128 and 0 more: It does not build"):
        found.launcher(wanted[3])
    found.close()
    assert len(texts) == 3


def test_source_of_several() -> None:
    text = configs.source([Config.of("dense", n, 256, 64, 64) for n in (64, 128)])
    assert text.count("constexpr Config") == 2 and text.count("#include") == 1
    assert f"{configs.ENTRY}(" in text and f"{configs.ENTRY}_1(" in text


# -------------------------------------------------------------------------------------------- the command


@pytest.fixture
def checkout(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A checkout with two products to calibrate at."""
    (tmp_path / "figures" / "data").mkdir(parents=True)
    monkeypatch.setattr(records, "checkout_root", lambda: tmp_path)
    (tmp_path / "learned").mkdir()
    shutil.copy(prediction.LEARNED / "NVIDIA_H100_80GB_HBM3.json", tmp_path / "learned")
    monkeypatch.setattr(prediction, "LEARNED", tmp_path / "learned")
    monkeypatch.setattr(calibration, "cells", lambda: [SMALL, Cell("dense", 1, Shape(300, 136, 512))])
    return tmp_path


@pytest.mark.usefixtures("on_the_cpu")
def test_calibrate(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its three steps, one after another: what is new is added, measured once, and learned from."""
    path = checkout / "figures" / "data" / "calibration" / "NVIDIA_H100"
    monkeypatch.setattr(learning, "STEPS", 20)
    assert cli.main(["calibrate", "extend", "--gpu", "NVIDIA H100"]) == 0
    first = list(calibration.read(path))
    assert all(math.isnan(one.us[0]) for one in first)
    assert cli.main(["calibrate", "extend", "--gpu", "NVIDIA H100"]) == 0
    assert "0 of them new" in capsys.readouterr().out
    assert cli.main(["calibrate", "fit", "--gpu", "NVIDIA H100"]) == 2, "there are no times"

    asked: list[Cell] = []

    def measured(cell: Cell, wanted: list[Config], *rest: object) -> list[Timed]:
        asked.append(cell)
        if len(asked) == 2:
            raise KernelFault(wanted[0], cell, RuntimeError("CUDA error"))
        return [Timed(cell, one, (float(one.tile_n), float(one.tile_m), 7.0)) for one in wanted]

    closing = SimpleNamespace(launcher=None, close=lambda: None)
    monkeypatch.setattr(calibrate, "Batches", lambda wanted: closing)
    monkeypatch.setattr(calibrate, "Pool", lambda cells, device, bf16: None)
    monkeypatch.setattr(calibrate, "measure_cell", measured)
    assert cli.main(["calibrate", "measure"]) == 2, "a kernel has faulted"
    assert sum(one.us == WRONG for one in calibration.read(path)) == 1
    assert cli.main(["calibrate", "measure"]) == 0
    assert not any(math.isnan(one.us[0]) for one in calibration.read(path))
    before = len(asked)
    assert cli.main(["calibrate", "measure"]) == 0 and len(asked) == before, "nothing is left"

    assert cli.main(["calibrate", "fit", "--gpu", "NVIDIA H100"]) == 0
    shown = capsys.readouterr().out
    assert "not learned from" in shown and "root mean square: dirty" in shown
    learned = json.loads((checkout / "learned" / "NVIDIA_H100.json").read_text())
    assert learned["meta"]["results"] == len(first) - 1
    assert prediction.read(learned)(np.zeros((2, len(learned["inputs"])))).shape == (2, 3)


def test_calibrate_needs_a_checkout(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(records, "checkout_root", lambda: None)
    assert cli.main(["calibrate", "fit"]) == 2
    assert "a checkout is needed" in capsys.readouterr().err


def test_learning_finds_what_is_there() -> None:
    """Times that follow a simple rule are learned, and the fit repeats itself."""
    known = candidates("dense", 4096)
    results = []
    for m in (16, 64, 200, 1024):
        cell = Cell("dense", 1, Shape(m, 4096, 4096))
        suits = known.suiting("dense", np.array([float(m)]), 4096, 4096, 132)[:, 0]
        for one in np.flatnonzero(suits):
            config = known.at(one, 4096, 4096)
            us = prediction.predict(config, m).estimate_us * (1 + 0.2 * (config.tile_n == 64))
            results.append(Timed(cell, config, (us, us, math.nan)))
    data = learning.prepare(results)
    assert not np.isnan(data.target).any(), "a graph that was not measured is as fast as clean calls"
    learned = learning.fit(data)
    network = prediction.read(learned)
    assert max(learning.residuals(network, data, np.ones(len(results), dtype=bool))) < 0.05
    regrets = learning.regrets(network, data, np.ones(len(results), dtype=bool))
    assert len(regrets) == 4 and max(one.mean for one in regrets) < 0.03
    assert configurations.STATES == prediction.STATES


def test_several_fits_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fit does not see what it leaves out, and is the same beside other fits."""
    monkeypatch.setattr(learning, "STEPS", 10)
    random_numbers = np.random.default_rng(0)

    def results(count: int) -> learning.Data:
        inputs = random_numbers.normal(size=(count, len(prediction.INPUTS)))
        times = random_numbers.normal(size=(count, len(prediction.STATES)))
        return learning.Data(inputs, random_numbers.normal(size=count), times, np.arange(count) // 4)

    own, others = results(80), results(40)
    left_out = np.zeros(120, dtype=bool)
    left_out[8:20] = left_out[100:] = True
    part, whole = learning.fits(own, others, [left_out, np.zeros(120, dtype=bool)])

    def off(one: dict[str, Any], other: dict[str, Any]) -> float:
        first, second = (prediction.read(learned)(own.inputs) for learned in (one, other))
        return float(np.abs(first - second).max())

    assert off(whole, learning.fit(own, others)) < 1e-4
    assert off(whole, part) > 0.01
    own.target[8:20] += 5
    others.target[20:] -= 3
    again, _ = learning.fits(own, others, [left_out, np.zeros(120, dtype=bool)])
    assert off(part, again) < 1e-4
