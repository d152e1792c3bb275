"""What all tests share. Tests marked `gpu` are skipped, with the reason, where there is no Hopper GPU."""

from __future__ import annotations

import contextlib
import functools
import os
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from gemm_ladder.arguments import HOPPER
from no_distribution import hide

hide()  # what is installed as deep_gemm in this environment is not what the tests are about

# Most tests that call the GPU need one kernel of a weight; the tests of the background turn it on.
os.environ.setdefault("GEMM_LADDER_BACKGROUND", "0")

# Where tests run beside each other: threads of torch's that wait for one another take the CPUs from the tests
# in the other process, and small tensors take many times as long. Torch reads it when it is imported, later.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@functools.cache
def why_no_gpu() -> str | None:
    """What is missing; None on a machine with a Hopper GPU."""
    import torch

    if not torch.cuda.is_available():
        return "needs a Hopper GPU: torch finds no CUDA device"
    capability = torch.cuda.get_device_capability()
    if capability != HOPPER:
        return f"needs a Hopper GPU (compute capability 9.0): {torch.cuda.get_device_name()} has {capability}"
    return None


def pytest_runtest_setup(item: pytest.Item) -> None:
    # Not at collection, because asking imports torch, and most runs select tests without a GPU.
    if item.get_closest_marker("gpu") and (reason := why_no_gpu()):
        pytest.skip(reason)


@pytest.fixture(params=["emulator", pytest.param("gpu", marks=pytest.mark.gpu)])
def machine(request: pytest.FixtureRequest) -> str:
    """The machine that a kernel runs on."""
    return request.param


@pytest.fixture
def device(machine: str) -> str:
    """The device of its tensors. What is public computes CPU tensors by the reference, so "emulator" stands
    for the CPU in tests that have this."""
    return {"emulator": "cpu", "gpu": "cuda"}[machine]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder, in force."""
    path = tmp_path / "cache"
    monkeypatch.setenv("GEMM_LADDER_CACHE", str(path))
    return path


@pytest.fixture
def no_builds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any process that is started fails the test."""

    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError(f"started {arguments}")

    monkeypatch.setattr(subprocess, "Popen", refuse)


@pytest.fixture
def settings_restored() -> Iterator[None]:
    """After the test, the settings of the process are what they are at first."""
    from gemm_ladder import settings

    yield
    settings.set_num_sms(0)
    settings.set_mk_alignment_for_contiguous_layout(128)


class FakeKernelTimer:
    """Takes the place of timing.KernelTimer where there is no GPU."""

    flush_bytes = 8

    def __init__(self, device: object) -> None:
        pass

    def __call__(self, call: Callable[[], object], l2: str, calls: int) -> list[float]:
        return [100.0] * calls

    def batch(self, jobs: Sequence[tuple[Callable[[], object], str, int]]) -> list[list[float]]:
        return [[100.0] * calls for _, _, calls in jobs]


@pytest.fixture
def fake_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU in a Hopper GPU's place, for the commands that measure: nothing is built, and every call takes
    100 us."""
    import torch
    from gemm_ladder import launch, precompiling
    from gemm_ladder.figures import measured
    from gemm_ladder.measure import records, session, timing

    meta = dict.fromkeys(measured.META_FIELDS, "1") | {"sources": "0123456789ab" + 52 * "0"}
    monkeypatch.setattr(session, "find_gpu", lambda: (torch.device("cpu"), "NVIDIA H100"))
    monkeypatch.setattr(session, "build_all", lambda chosen, target: None)
    monkeypatch.setattr(precompiling, "build_all", lambda configs, target: None)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100")
    monkeypatch.setattr(timing, "KernelTimer", FakeKernelTimer)
    monkeypatch.setattr(timing, "graph_times", lambda calls, device: [100.0, 100.0, 100.0])
    monkeypatch.setattr(launch, "usable_sms", lambda device, limit=0: 132)
    monkeypatch.setattr(records, "machine", lambda device, flush: dict(meta))


@pytest.fixture
def two_libraries(fake_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours and BF16: releases of torch differ in what else they multiply on a CPU."""
    from gemm_ladder.measure import cells, peers

    def refuses(*arguments: object) -> None:
        raise ValueError("not on a CPU")

    monkeypatch.setattr(peers, "cublaslt_tensorwise", refuses)
    monkeypatch.setattr(peers, "cublaslt_blockwise", refuses)
    monkeypatch.setattr(cells, "torch_grouped", refuses)


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The GPU is lost once there is something in the list."""
    from gemm_ladder.measure import timing

    found: list[object] = []

    def synchronize(device: object) -> None:
        if found:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(timing, "synchronize", synchronize)
    return found
