"""Error measures: known values, and local faults that one number over a whole matrix hides."""

from __future__ import annotations

import math

import numpy as np
import pytest
from gemm_ladder.ref import metrics

ALL = [metrics.calc_diff, metrics.relative_error, metrics.max_row_error, metrics.max_tile_error]


@pytest.fixture
def reference():
    return np.random.default_rng(0).normal(size=(300, 200))


@pytest.mark.parametrize("measure", ALL)
def test_equal_results_have_no_error(measure, reference):
    assert measure(reference, reference) == pytest.approx(0, abs=1e-15)
    assert measure(np.zeros((3, 4)), np.zeros((3, 4))) == 0
    assert measure(np.zeros((0, 4)), np.zeros((0, 4))) == 0
    assert isinstance(measure(reference, reference), float)


def test_known_values():
    x, y = np.array([[3.0, 5.0]]), np.array([[3.0, 4.0]])
    assert metrics.calc_diff(x, y) == pytest.approx(1 - 2 * 29 / 59)
    for measure in ALL[1:]:
        assert measure(x, y) == pytest.approx(1 / 5)
    assert metrics.calc_diff(-y, y) == pytest.approx(2)


@pytest.mark.parametrize("measure", ALL)
def test_a_nan_makes_the_error_nan(measure, reference):
    broken = reference.copy()
    broken[17, 3] = np.nan
    assert math.isnan(measure(broken, reference))
    assert math.isnan(measure(reference, broken))


@pytest.mark.parametrize("measure", ALL[1:])
def test_a_nonzero_result_for_a_reference_of_zeros(measure):
    assert measure(np.ones((2, 2)), np.zeros((2, 2))) == math.inf


def test_max_row_error_shows_one_wrong_row_in_4096():
    y = np.random.default_rng(1).normal(size=(4096, 64))
    x = y.copy()
    x[1234] *= -1
    assert metrics.calc_diff(x, y) < 1e-3
    assert metrics.max_row_error(x, y) == pytest.approx(2)
    assert metrics.max_row_error(y * 1.001, y) == pytest.approx(1e-3)


def test_max_tile_error_shows_one_wrong_tile(reference):
    x = reference.copy()
    x[256:, 192:] = 0  # the last, smaller tile
    assert metrics.max_tile_error(x, reference) == pytest.approx(1)
    assert metrics.relative_error(x, reference) < 0.1
    x = reference.copy()
    x[64:128, 0:64] = 0
    assert metrics.max_tile_error(x, reference) == pytest.approx(1)
    assert metrics.max_tile_error(x, reference, rows=300, columns=200) == pytest.approx(
        metrics.relative_error(x, reference)
    )


@pytest.mark.parametrize(("rows", "columns"), [(64, 100), (100, 64)])
def test_tiles_need_not_be_square(reference, rows, columns):
    x = reference.copy()
    x[:rows, :columns] = 0
    assert metrics.max_tile_error(x, reference, rows, columns) == pytest.approx(1)


def test_low_precision_inputs_are_compared_in_float64():
    x, y = np.full((1, 4096), 100, np.float16), np.full((1, 4096), 100, np.float16)
    assert metrics.relative_error(x, y) == 0
    assert metrics.relative_error(x, -y) == pytest.approx(2)


@pytest.mark.parametrize("measure", ALL)
def test_shapes_must_agree(measure):
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(3, 2\)"):
        measure(np.zeros((2, 3)), np.zeros((3, 2)))


def test_tiles_need_matrices():
    with pytest.raises(ValueError, match="matrices"):
        metrics.max_tile_error(np.zeros(3), np.zeros(3))
