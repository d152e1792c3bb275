"""What a call costs the host: how it is timed, what fresh processes report, and the command."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest
import torch
from gemm_ladder import launch
from gemm_ladder.cli import main
from gemm_ladder.errors import GemmLadderError
from gemm_ladder.figures import host as table
from gemm_ladder.figures import measured
from gemm_ladder.measure import host, operands, problems, production_rows, session, starting, timing
from gemm_ladder.measure.shapes import Shape
from gemm_ladder.production import launching

CPU = torch.device("cpu")
Output = pytest.CaptureFixture[str]
STARTS = {
    **{"first_build": [4e6, 5e6, 6e6], "cached_load": [2e3, 3e3, 1e3], "first_call": [9e3, 8e3, 7e3]},
    **{"one_core_call": [5e6] * 3, "warm_up": [9e6] * 3, "cached_warm_up": [2e5] * 3},
}


SMALL = host.Plan(Shape(8, 128, 128), groups=2, calls=2, batches=3)


@pytest.fixture
def quick(fake_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU in a Hopper GPU's place; fresh processes take the times in STARTS."""
    monkeypatch.setattr(launch, "usable_sms", lambda device, limit=0: 132)
    monkeypatch.setattr(starting, "measure", lambda repeats: STARTS)


def test_the_calls_compute_the_product() -> None:
    """gemm_ladder's and torch's calls, with the same operands."""
    ours, peers = host.makers(CPU, SMALL)
    assert ours.keys() == {"fp8_gemm_nt", "gemm_fp8_fp8_bf16_nt", "m_grouped_fp8_gemm_nt_masked"}
    dense = operands.make_operands(SMALL.dense, CPU)
    reference, unscaled = (dense.parts[0].reference(scaled) for scaled in (True, False))
    for name in ("fp8_gemm_nt", "gemm_fp8_fp8_bf16_nt"):
        call = ours[name]()
        assert call() is None
        assert problems.errors(call.args[2], reference).right
    masked = ours["m_grouped_fp8_gemm_nt_masked"]()
    masked()
    out, rows = masked.args[2], masked.args[3].tolist()
    assert out.shape[0] == 2 and all(
        not group[:count].isnan().any() for group, count in zip(out, rows, strict=True)
    )
    for name in ("torch_mm", "torch_mm_out"):
        assert problems.errors(peers[name]()(), unscaled).relative < 1e-2
    with pytest.raises(ModuleNotFoundError):
        peers["deep_gemm"]()


def test_a_batch_is_host_time_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting for the GPU, before and after, is not in it."""
    clock = [0.0]
    waits = []

    def wait(device: torch.device) -> None:
        waits.append(clock[0])
        clock[0] += 1.0

    def call() -> None:
        clock[0] += 7e-6

    monkeypatch.setattr(timing, "synchronize", wait)
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    assert host.batch(call, CPU, 200) == pytest.approx(7.0)
    assert waits == [0.0, pytest.approx(1.0 + 200 * 7e-6)]
    assert host.PLAN.calls < 1000, "a GPU's queue would be full, and calls would wait for it"


def test_implementations_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    order = []
    monkeypatch.setattr(host, "batch", lambda call, device, count: float(order.append(call) or len(order)))
    found = host.take_turns({"a": "a", "b": "b"}, CPU, range(3), 200)
    assert order == ["a", "b"] * 3
    assert found == {"a": [1.0, 3.0, 5.0], "b": [2.0, 4.0, 6.0]}


def test_each_start_has_the_cache_that_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty one, then the same with what the first process left there; each pair has its own, and so has
    the call on one core."""
    caches: dict[str, int] = {}
    times = {
        "load_and_call": [(5e6, 6e6), (2e3, 9e3)],
        "call_on_one_core": [(4e6,)],
        "warm_up": [(8e6,), (1e5,)],
    }

    def process(function: str, cache: str) -> tuple[float, ...]:
        assert len(list(Path(cache).iterdir())) == caches.setdefault(cache, 0)
        (Path(cache) / "kernel").touch()
        caches[cache] += 1
        return times[function][caches[cache] - 1]

    monkeypatch.setattr(starting, "in_fresh_process", process)
    pairs = 3
    assert starting.measure(pairs) == {
        "first_build": [5e6] * pairs,
        "cached_load": [2e3] * pairs,
        "first_call": [9e3] * pairs,
        "one_core_call": [4e6] * pairs,
        "warm_up": [8e6] * pairs,
        "cached_warm_up": [1e5] * pairs,
    }
    assert list(caches.values()) == [2] * pairs + [1, 2] * pairs
    assert not any(Path(cache).exists() for cache in caches)


def test_a_fresh_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only its last line is read, because torch may print before."""

    def run(command: list[str], **options: object) -> subprocess.CompletedProcess:
        assert command[-1].endswith("starting.load_and_call()")
        environment = options["env"]
        assert (environment["GEMM_LADDER_CACHE"], environment["PATH"]) == ("folder", os.environ["PATH"])
        assert environment["GEMM_LADDER_BACKGROUND"] == "1", "a command turns it off for itself"
        return subprocess.CompletedProcess(command, 0, "a warning\n1500.5 9000.25\n", "")

    monkeypatch.setattr(subprocess, "run", run)
    assert starting.in_fresh_process("load_and_call", "folder") == (1500.5, 9000.25)


def test_what_a_fresh_process_times(fake_gpu: None, monkeypatch: pytest.MonkeyPatch, capsys: Output) -> None:
    """The load, and the load with the call; not the imports or the operands."""
    clock, loads = [0.0], []
    make = operands.make_operands

    def takes(seconds: float, result: object = None) -> object:
        clock[0] += seconds
        return result

    monkeypatch.setattr(session, "find_gpu", lambda: takes(1.0, (CPU, "NVIDIA H100")))
    monkeypatch.setattr(operands, "make_operands", lambda *given: takes(1.0, make(SMALL.dense, CPU)))
    monkeypatch.setattr(operands, "interface_call", lambda *given: lambda: takes(0.25))
    monkeypatch.setattr(production_rows, "configurations", lambda chosen, device: {chosen[0]: "best"})
    monkeypatch.setattr(launching, "library", lambda config: takes(0.5, loads.append(config)))
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    starting.load_and_call()
    assert capsys.readouterr().out == "500000.0 750000.0\n"
    assert loads == ["best"]


def test_a_call_on_one_core(fake_gpu: None, monkeypatch: pytest.MonkeyPatch, capsys: Output) -> None:
    """The process is confined to one CPU before the clock starts; all of the call is timed."""
    clock, allowed = [0.0], [{2, 3, 5}]
    make = operands.make_operands

    def confine(process: int, chosen: set[int]) -> None:
        allowed.append(chosen)
        clock[0] += 1.0

    def call() -> None:
        assert allowed[-1] == {2}
        clock[0] += 0.25

    monkeypatch.setattr(os, "sched_getaffinity", lambda process: allowed[-1])
    monkeypatch.setattr(os, "sched_setaffinity", confine)
    monkeypatch.setattr(operands, "make_operands", lambda *given: make(SMALL.dense, CPU))
    monkeypatch.setattr(operands, "interface_call", lambda *given: call)
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    starting.call_on_one_core()
    assert capsys.readouterr().out == "250000.0\n"


def test_a_warm_up(fake_gpu: None, monkeypatch: pytest.MonkeyPatch, capsys: Output) -> None:
    """Calls with m = 1, 2, 3, ... in this order, each of which is right."""
    clock, met = [0.0], []
    multiply = starting.api.fp8_gemm_nt

    def timed(lhs: object, rhs: object, out: torch.Tensor) -> None:
        clock[0] += 0.5
        multiply(lhs, rhs, out)
        met.append(len(out))

    monkeypatch.setattr(starting, "WARM_UP_TO", 5)
    monkeypatch.setattr(starting, "SHAPE", SMALL.shape)
    monkeypatch.setattr(starting.api, "fp8_gemm_nt", timed)
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    starting.warm_up()
    assert capsys.readouterr().out == "2500000.0\n" and met == [1, 2, 3, 4, 5]


def test_a_fresh_process_that_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Here because there is no GPU: the last line that it prints is passed on."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(GemmLadderError, match=r"cannot load and call the kernel: .*found no CUDA GPU"):
        starting.in_fresh_process("load_and_call", str(tmp_path))


def test_a_fresh_process_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str], **options: object) -> None:
        raise subprocess.TimeoutExpired(command, options["timeout"])

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(GemmLadderError, match="takes more than 120 s to load and call the kernel"):
        starting.in_fresh_process("load_and_call", "folder")


def test_the_command(quick: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Output) -> None:
    kept = []
    monkeypatch.setattr(session, "keep", lambda *arguments, **options: kept.append((arguments, options)))
    path = tmp_path / "mine.json"
    assert host.main(["--json", str(path)], SMALL) == 0
    printed = capsys.readouterr().out
    for words in ("gemm_ladder.fp8_gemm_nt", "torch.mm", "first build", "5 s", "2 ms", "8 ms"):
        assert words in printed
    (((result, given), options),) = kept
    assert (given, options) == (path, {"whole": True, "record": "host.json"})
    measured.check(result.data, "result", table.META_FIELDS, table.ROW_FIELDS)
    calls = {row["impl"]: row for row in result.rows if row["quantity"] == "call"}
    assert calls.keys() >= {"fp8_gemm_nt", "gemm_fp8_fp8_bf16_nt", "m_grouped_fp8_gemm_nt_masked", "torch_mm"}
    assert (
        calls["m_grouped_fp8_gemm_nt_masked"]["kind"],
        calls["m_grouped_fp8_gemm_nt_masked"]["groups"],
    ) == (*("masked", 2),)
    assert all(0 < row["us_p10"] <= row["us"] <= row["us_p90"] for row in result.rows)
    assert [row["us"] for row in result.rows if row["quantity"] == "first_build"] == [5e6]
    assert "deep_gemm" in {miss["impl"] for miss in result.missing}


def test_a_call_that_fails(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of ours that fails is wrong, a peer that fails is missing; the others are timed."""

    def fails(*arguments: object) -> None:
        raise RuntimeError("no\nsuch")

    def starts(pairs: int) -> None:
        raise GemmLadderError("A fresh process fails")

    monkeypatch.setattr(host.api, "gemm_fp8_fp8_bf16_nt", fails)
    monkeypatch.setattr(starting, "measure", starts)
    result = host.on_gpu(CPU, SMALL)
    assert result.wrong == [
        "gemm_fp8_fp8_bf16_nt fails: no such",
        "A fresh process fails",
    ]
    assert {row["impl"] for row in result.rows} >= {"fp8_gemm_nt", "torch_mm"}
    assert "gemm_fp8_fp8_bf16_nt" not in {row["impl"] for row in result.rows}


def test_without_a_gpu(monkeypatch: pytest.MonkeyPatch, capsys: Output) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["host"]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1
    assert "found no CUDA GPU that torch can use; calls to a GPU are timed, and a Hopper GPU" in printed.err


@pytest.mark.gpu
@pytest.mark.slow
def test_on_gpu() -> None:
    device, _ = session.find_gpu()
    result = host.on_gpu(device, host.Plan(batches=3, starts=1))
    assert not result.wrong
    measured.check(result.data, "result", table.META_FIELDS, table.ROW_FIELDS)
    us = {row["quantity"]: row["us"] for row in result.rows}
    assert us["cached_load"] < us["first_build"]
    assert us["cached_warm_up"] < us["warm_up"] < 8 * us["first_build"], "builds are done at the same time"
