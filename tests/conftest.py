"""Shared by all tests: those marked `gpu` are skipped, with the reason, where no Hopper GPU is found."""

from __future__ import annotations

import functools

import pytest


@functools.cache
def why_no_gpu() -> str | None:
    """None on a machine with a Hopper GPU, or what is missing."""
    import torch

    if not torch.cuda.is_available():
        return "needs a Hopper GPU: torch finds no CUDA device"
    capability = torch.cuda.get_device_capability()
    if capability != (9, 0):
        return f"needs a Hopper GPU (compute capability 9.0): {torch.cuda.get_device_name()} has {capability}"
    return None


def pytest_runtest_setup(item: pytest.Item) -> None:
    # Here and not at collection: the question costs an import of torch, and most runs select other tests.
    if item.get_closest_marker("gpu") and (reason := why_no_gpu()):
        pytest.skip(reason)


@pytest.fixture(params=["emulator", pytest.param("gpu", marks=pytest.mark.gpu)])
def machine(request: pytest.FixtureRequest) -> str:
    """Where a kernel runs."""
    return request.param
