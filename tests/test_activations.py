"""SiLU-and-multiply and RMSNorm of the reference, compared with float64 and with a sum written out."""

from __future__ import annotations

import numpy as np
import pytest
from gemm_ladder.ref import activations


def test_silu_is_accurate():
    gate = np.concatenate([np.linspace(-30, 60, 200_001), [0.0, -0.0, 1e30, 1e-30]]).astype(np.float32)
    up = np.random.default_rng(0).normal(size=gate.shape).astype(np.float32)
    exact = gate / (1 + np.exp(-gate.astype(np.float64))) * up
    np.testing.assert_allclose(activations.silu_and_mul(gate, up), exact, rtol=2e-6, atol=0)
    far = np.linspace(-87, -30, 10_001).astype(np.float32)
    exact = far / (1 + np.exp(-far.astype(np.float64)))
    np.testing.assert_allclose(activations.silu_and_mul(far, np.ones_like(far)), exact, rtol=1e-5, atol=0)


def test_silu_of_what_is_not_finite():
    gate = np.array([np.nan, np.inf, -np.inf, -1e30, 1, 0], np.float32)
    up = np.array([1, 2, 3, 4, np.nan, np.inf], np.float32)
    found = activations.silu_and_mul(gate, up)
    assert np.isnan(found[[0, 4, 5]]).all() and found[1] == np.inf
    assert (found[[2, 3]] < 0).all() and (found[[2, 3]] > -1e-35).all()


@pytest.mark.parametrize("k", [1, 100, 2048, 5000])
def test_norm_is_accurate(k):
    rng = np.random.default_rng(1)
    x, weight = rng.normal(size=(3, k)).astype(np.float32), rng.normal(size=k).astype(np.float32)
    exact = x / np.sqrt((x.astype(np.float64) ** 2).mean(1, keepdims=True) + 1e-5) * weight
    np.testing.assert_allclose(activations.rms_norm(x, weight, 1e-5), exact, rtol=2e-6, atol=0)


def test_the_sum_is_in_the_order_that_is_promised():
    """A square of 2^-25 is lost when it is added to 1. So those that thread 0 adds to its sum of 1 are lost,
    and those of thread 16 are not: their sum is added as a whole."""
    x = np.zeros((1, 4096), np.float32)
    small = np.float32(2.0**-12.5)
    x[0, 0], x[0, 1:8], x[0, 2048:2056] = 1, small, small  # thread 0
    x[0, 128:136] = small  # thread 16
    squares = np.float32(1 + 8 * 2.0**-25)
    assert squares > 1
    inverse = np.float32(1) / np.sqrt(squares / np.float32(4096))
    assert activations.rms_norm(x, np.ones(4096, np.float32), 0.0)[0, 0] == inverse
    whole = np.float32(1 + 23 * 2.0**-25)
    assert inverse != np.float32(1) / np.sqrt(whole / np.float32(4096))


def test_a_row_of_zeros_without_epsilon_is_nan():
    assert np.isnan(activations.rms_norm(np.zeros((1, 8), np.float32), np.ones(8, np.float32), 0.0)).all()
