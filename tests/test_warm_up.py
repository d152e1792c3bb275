"""A server's warm-up: calls with m = 1, 2, 3, ... one after another, without a GPU. Nothing is launched."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from building import FakeJob, builds, idle, jobs_of, nvcc_or_skip, wait_until
from gemm_ladder import build, launch, precompiling
from gemm_ladder.build import background, cache, worker
from gemm_ladder.errors import BuildError
from gemm_ladder.production import choice, fast_path, launching
from gemm_ladder.production.config import Config

N, K = 2112, 1024
CPU = torch.device("cpu")


@pytest.fixture
def launched(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[object]]:
    """The libraries that calls launch. The cache is empty, nothing is loaded, and there seems to be a GPU."""
    found: list[object] = []
    monkeypatch.setattr(launch, "usable_sms", lambda device, limit=0: 132)
    monkeypatch.setattr(launch, "on_gpu", lambda name, library, call, num_sms: found.append(library))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100")
    monkeypatch.setattr(launching, "_refuse_capture", lambda config, call: None)
    monkeypatch.setattr(launching, "_libraries", {})
    monkeypatch.setattr(launching, "_ahead", set())
    monkeypatch.delenv("GEMM_LADDER_BACKGROUND", raising=False)
    launching.forget()
    assert idle()
    yield found
    wait_until(idle, 120)
    launching.forget()  # what was found out about a GPU that is none


def call_with(m: int) -> None:
    launching.queue(SimpleNamespace(kind="dense", m=m, n=N, k=K, groups=1, out=SimpleNamespace(device=CPU)))


class Fakes:
    """What takes the place of compiling: `events` has what was built, and `jobs` the jobs by their names."""

    def __init__(self, weight: choice.Plan) -> None:
        self.events: list[str] = []
        names = {config: f"kernel {number:02}" for number, config in enumerate(weight.from_rows(1))}
        self.jobs = {config: FakeJob(name, self.events) for config, name in names.items()}
        self.names = list(names.values())
        self.fast_path = FakeJob("fast path", self.events)


@pytest.fixture
def fakes(launched: list[object], monkeypatch: pytest.MonkeyPatch) -> Fakes:
    """Fake jobs for the kernels of the weight and for the fast path."""
    made = Fakes(launching.plan("dense", N, K, 1, 132, "NVIDIA H100"))
    monkeypatch.setattr(Config, "job", lambda config, target: made.jobs[config])
    monkeypatch.setattr(fast_path, "_job", lambda: made.fast_path)
    monkeypatch.setattr(fast_path, "_started", None)
    monkeypatch.setattr(fast_path, "_library", None)
    monkeypatch.setattr(fast_path, "add", lambda *arguments: None)
    monkeypatch.setattr(build.Built, "lib", property(lambda built: built.path.parent.name))
    monkeypatch.setattr(launch, "launcher", lambda library: library)
    return made


def test_kernels_in_the_order_of_a_warm_up() -> None:
    weight = launching.plan("dense", N, K, 1, 132, "NVIDIA H100")
    met = list(dict.fromkeys(weight.at(rows) for rows in choice.STEPS))
    assert weight.from_rows(1) == weight.from_rows(8) == met and set(met) == set(weight.configs)
    later = weight.from_rows(1024)
    assert later[0] == weight.at(1024) and len(later) == len(met) and set(later) == set(met)


def test_the_first_call_starts_all_builds(fakes: Fakes, launched: list[object]) -> None:
    """It waits for its own kernel alone, and each later call for its own; each kernel is built once."""
    for job in fakes.jobs.values():
        job.may_end.clear()
    first, second, *others = fakes.jobs.values()
    first.may_end.set()
    call_with(1)
    assert launched == [first.name] and f"{second.name} ends" not in fakes.events
    for job in (second, *others):
        job.may_end.set()
    for m in range(2, 16385, 8):
        call_with(m)
    wait_until(idle, 60)
    assert builds(fakes.events) == sorted(["fast path", *fakes.names])
    assert list(dict.fromkeys(launched)) == fakes.names


def test_on_one_cpu_the_first_call_builds_alone(fakes: Fakes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "cpus", lambda: 1)
    call_with(1)
    wait_until(idle, 60)
    first, *others = fakes.names
    ends = [event.removesuffix(" ends") for event in fakes.events[1::2]]
    assert ends == [first, "fast path", *others]
    assert fakes.events[::2] == [f"{name} begins" for name in ends]


def test_where_another_process_builds_the_first_kernel(
    fakes: Fakes, launched: list[object], folder: Path
) -> None:
    """The call waits for it, and the others are started all the same."""
    key = fakes.names[0]
    with cache._lock(folder, key, 60.0):
        call = threading.Thread(target=call_with, args=(1,))
        call.start()
        call.join(0.2)
        assert call.is_alive() and not launched
    call.join(60)
    wait_until(idle, 60)
    assert launched == [key] and builds(fakes.events) == sorted(["fast path", *fakes.names])


def test_a_second_process_finds_what_the_first_built(
    fakes: Fakes, launched: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It looks for a kernel when a call needs it, and starts no thread."""
    call_with(1)
    wait_until(idle, 60)
    fakes.events.clear()
    monkeypatch.setattr(launching, "_libraries", {})
    monkeypatch.setattr(launching, "_ahead", set())
    monkeypatch.setattr(background, "start", lambda jobs: pytest.fail("builds were started"))
    for m in (1, 100, 16384):
        call_with(m)
    assert fakes.events == [] and len(launching._libraries) == len(set(launched)) == 3


def test_one_slow_call_for_a_step(fakes: Fakes, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call's plan holds for every m that gets its configuration by the same rule; the weight's kernels are
    chosen once."""
    added: list[tuple[int, int]] = []
    monkeypatch.setattr(fast_path, "add", lambda device, kind, ms, *others: added.append(ms))
    chosen: list[object] = []
    plan = launching.plan
    monkeypatch.setattr(launching, "plan", lambda *of: chosen.append(of) or plan(*of))
    launching.forget()
    m = 1
    while m <= 1024:
        call_with(m)
        first, last = added[-1]
        assert first == m
        m = last + 1
    assert len(added) == choice.STEPS.index(1024) + 1 and len(chosen) == 1


def test_the_background_can_be_turned_off(fakes: Fakes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMM_LADDER_BACKGROUND", "0")
    call_with(1)
    assert idle() and builds(fakes.events) == fakes.names[:1]


def test_a_kernel_that_does_not_build(
    fakes: Fakes, launched: list[object], capfd: pytest.CaptureFixture[str]
) -> None:
    """It fails the calls that need it, each of which says so, and no other."""
    weight = launching.plan("dense", N, K, 1, 132, "NVIDIA H100")
    fakes.jobs[weight.at(16384)].fails = True
    call_with(1)
    wait_until(idle, 60)
    for _ in range(2):
        with pytest.raises(BuildError, match="It does not build"):
            call_with(16384)
    call_with(2)
    assert launched == fakes.names[:1] * 2 and capfd.readouterr() == ("", "")
    fakes.jobs[weight.at(16384)].fails = False
    call_with(16384)
    assert launched[-1] == fakes.jobs[weight.at(16384)].name


def test_precompiling_builds_each_once(fakes: Fakes, monkeypatch: pytest.MonkeyPatch) -> None:
    """The results are in the order of the configurations, and nothing is built after a failure."""
    configs = list(fakes.jobs)
    built = precompiling.build_all(configs, "cuda")
    assert [one.path.parent.name for one in built] == fakes.names
    assert builds(fakes.events) == fakes.names
    monkeypatch.setattr(background, "cpus", lambda: 1)
    bad, second, third = jobs_of(fakes.events, "abc")
    bad.fails = True
    second.may_end.clear()  # it may have begun when the first one fails
    monkeypatch.setattr(fakes, "jobs", dict(zip(configs, (bad, second, third), strict=False)))
    with pytest.raises(BuildError):
        precompiling.build_all(configs[:3], "cuda")
    second.may_end.set()
    wait_until(idle, 60)
    assert "c" not in builds(fakes.events)


def test_the_fast_path_is_not_waited_for(fakes: Fakes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls are launched without it while it is being built; then it is loaded."""
    loads: list[bool] = []
    monkeypatch.setattr(fast_path, "load", lambda: not loads.append(True))
    fakes.fast_path.may_end.clear()
    fast_path.start()
    fast_path.start()
    assert not fast_path._ready() and not loads
    fakes.fast_path.may_end.set()
    wait_until(idle, 60)
    assert fast_path._ready() and loads
    assert builds(fakes.events) == ["fast path"]


@pytest.mark.slow
def test_with_compilers(launched: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Three kernels and the fast path are compiled once each; the first call waits for one of them."""
    nvcc_or_skip()
    weight = launching.plan("dense", N, K, 1, 132, "NVIDIA H100")
    configs = tuple(weight.from_rows(1)[:3])
    few = choice.Plan(configs, tuple(min(2, step // 16) for step in range(len(choice.STEPS))))
    monkeypatch.setattr(launching, "plan", lambda *arguments: few)
    started: list[str] = []
    run, lock = worker.run, threading.Lock()

    def counted(request: dict, environment: dict[str, str], output: Path) -> tuple[int, str]:
        with lock:
            started.append(request["name"])
        return run(request, environment, output)

    monkeypatch.setattr(worker, "run", counted)
    # A fast path of this test's own.
    for name in ("_started", "_library"):
        monkeypatch.setattr(fast_path, name, None)
    monkeypatch.setattr(fast_path, "queue", dict(fast_path.queue))
    monkeypatch.setattr(fast_path, "_loaded", functools.cache(fast_path._loaded.__wrapped__))
    for m in range(1, 400):
        call_with(m)
    wait_until(idle, 120)
    assert sorted(started) == sorted(["fast_path", *(config.name for config in configs)])
    assert len(set(map(id, launched))) == 3
    assert fast_path.load() and len(started) == 4
