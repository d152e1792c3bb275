"""The measures that DeepGEMM's callers use: calc_diff, bench and bench_kineto."""

from __future__ import annotations

import gemm_ladder as gl
import numpy as np
import pytest
import torch
from call_arguments import refusal
from gemm_ladder import testing
from gemm_ladder.ref import metrics
from gemm_ladder.testing.bench import mean_seconds


def test_calc_diff():
    x, y = torch.randn(30, 20), torch.randn(30, 20)
    assert gl.calc_diff(x, y) == metrics.calc_diff(x.numpy(), y.numpy())
    assert gl.calc_diff(x.bfloat16(), x.bfloat16().double()) == 0 and gl.calc_diff(0 * x, 0 * x) == 0
    assert np.isnan(gl.calc_diff(x, x / 0 - x / 0))
    with pytest.raises(ValueError, match="one shape is needed"):
        gl.calc_diff(x, y[0])


@pytest.mark.parametrize("gpu", [False, pytest.param(True, marks=pytest.mark.gpu)])
def test_bench(gpu, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    called = []
    seconds = testing.bench(lambda: called.append(0), num_warmups=2, num_tests=3, high_precision=gpu)
    assert len(called) == 5 and 0 <= seconds < 1
    assert refusal(testing.bench, print, num_tests=0) == "num_tests is 0; 1 or more is needed"


def test_bench_kineto_without_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert refusal(testing.bench_kineto, print, "gemm") == (
        "torch finds no CUDA device; bench_kineto needs one, and bench times calls without"
    )


@pytest.mark.gpu
def test_bench_kineto(tmp_path):
    x = torch.zeros(1 << 20, device="cuda")
    trace = tmp_path / "trace.json"
    seconds = testing.bench_kineto(x.sin, "sin", num_tests=3, trace_path=str(trace))
    assert 1e-6 < seconds < 1e-3 and "sin" in trace.read_text()
    assert len(testing.bench_kineto(x.cos, ("cos",), num_tests=3, flush_l2=False)) == 1


def test_mean_seconds():
    ran = [("memset", 9.0), ("gemm<64>", 1.0), ("memset", 9.0), ("gemm<64>", 2.0), ("gemm<128>", 6.0)]
    assert mean_seconds(ran, "gemm<64>") == 1.5e-6
    assert mean_seconds(ran, "gemm", several=True) == 3e-6
    assert refusal(mean_seconds, ran, "gemm") == (
        "'gemm' is a part of 2 kernels' names, gemm<128>, gemm<64>; "
        "a part of one, or with_multiple_kernels=True, is needed"
    )
    assert refusal(mean_seconds, ran, "mma") == (
        "'mma' is a part of no kernel's name; one of those that ran is needed: gemm<128>, gemm<64>, memset"
    )
