"""Compiling ahead: which kernels, by the names that calls have for a product."""

from __future__ import annotations

from collections.abc import Iterator

import gemm_ladder as gl
import numpy as np
import pytest
import torch
from call_arguments import refusal
from gemm_ladder import checks, launch, precompiling
from gemm_ladder.production import choice, fast_path, launching
from gemm_ladder.training import candidates
from gemm_ladder.training import launching as training_launching
from training_cases import place

RECIPE = (1, 1, 128)


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[object]]:
    """The configurations that are loaded, after they were built, where there seems to be an H100. Nothing is
    compiled."""
    built: list[object] = []
    found: list[object] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100")
    monkeypatch.setattr(launch, "usable_sms", lambda device, limit=0: 132)
    monkeypatch.setattr(checks, "runs_on", lambda device: None)
    monkeypatch.setattr(precompiling, "build_all", lambda configs, target: built.extend(configs))
    monkeypatch.setattr(launching, "library", found.append)
    monkeypatch.setattr(training_launching, "library", found.append)
    monkeypatch.setattr(fast_path, "start", lambda: None)
    monkeypatch.setattr(fast_path, "load", lambda: True)
    yield found
    assert built == found


@pytest.mark.parametrize("kind", ["dense", "contiguous", "masked", "psum"])
def test_products_of_inference(kind: str, loaded: list[object]) -> None:
    """Every number of rows up to the largest finds its kernel among them."""
    groups = 1 if kind == "dense" else 3
    recipe = (1, 128, 128) if kind == "dense" else None
    configs = gl.precompile(2112, 1024, groups, 700, kind, recipe=recipe)
    assert configs == loaded and 1 <= len(configs) <= choice.MOST_KERNELS
    for m in (1, 8, 63, 200, 700):
        for expected_m in (0, 5, 600):
            of_call = (kind, m, 2112, 1024, groups, expected_m, 132, "NVIDIA H100")
            assert launching.configuration(*of_call) in configs


@pytest.mark.parametrize(
    ("arguments", "groups", "kernels"),
    [
        ({"recipe": RECIPE}, 1, 6),
        ({"kind": "k_grouped"}, 1, 6),
        ({"kind": "k_grouped", "groups": 7}, 7, 12),
        ({"kind": "k_grouped", "groups": 300, "recipe": list(RECIPE)}, 300, 18),
    ],
)
def test_products_of_training(arguments: dict, groups: int, kernels: int, loaded: list[object]) -> None:
    """Whatever m, n and k are, and however many groups have something to multiply."""
    configs = gl.precompile(136, 512, max_m=300, **arguments)
    assert configs == loaded and len(configs) == len(set(configs)) == kernels
    rng = np.random.default_rng(groups)
    for _ in range(500):
        m, n = (int(2 ** rng.uniform(0, 14)) for _ in range(2))
        ks = [int(2 ** rng.uniform(4, 16)) for _ in range(int(rng.integers(1, groups + 1)))]
        assert candidates.choose(m, n, ks, int(rng.integers(1, 133))) in configs


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"kind": "masked", "recipe": RECIPE}, "recipe is (1, 1, 128); None is needed for kind 'masked'"),
        (
            {"kind": "k_grouped", "recipe": (1, 128, 128)},
            "recipe is (1, 128, 128); (1, 1, 128) or None is needed for kind 'k_grouped'",
        ),
        ({"recipe": (1, 1, 64)}, "recipe is (1, 1, 64); (1, 128, 128) or None is needed"),
        ({"max_m": 0}, "max_m is 0; 1 or more is needed"),
        ({"n": 12}, "n is 12; a multiple of 8 is needed"),
        (
            {"device": torch.device("meta")},
            "device is meta; a GPU, which kernels are compiled for, is needed",
        ),
        ({"device": "gpu:0"}, "device is gpu:0; a GPU, which kernels are compiled for, is needed"),
        ({"device": "cuda:1"}, "device is GPU 1; less than 1, the number of GPUs, is needed"),
        (
            {"kind": "grouped"},
            "kind is 'grouped'; one of dense, contiguous, masked, psum, k_grouped is needed",
        ),
    ],
)
def test_refusals(arguments: dict, sentence: str, loaded: list[object]) -> None:
    assert refusal(gl.precompile, **({"n": 136, "k": 512} | arguments)) == sentence


@pytest.mark.gpu
@pytest.mark.parametrize("groups", [1, 3])
def test_training_needs_nothing_more(groups: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """After precompile, no training call loads a kernel."""
    gl.precompile(264, 512, groups=groups, kind="k_grouped")
    there = dict(training_launching._libraries)
    monkeypatch.setattr(training_launching, "library", there.__getitem__)
    for shape in ((1, 8), (300, 264), (3000, 2000)):
        call = place(shape, [128, 0, 384][:groups], "cuda")
        gl.k_grouped_fp8_gemm_nt_contiguous(call.lhs, call.rhs, call.d, call.ks)
        call.check()
