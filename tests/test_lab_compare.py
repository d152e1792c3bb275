"""What lab.compare says of the values of a kernel that is no rung."""

from __future__ import annotations

import re
from collections.abc import Callable

import ml_dtypes
import numpy as np
import pytest
from gemm_ladder import lab
from gemm_ladder.errors import InputError

M, N = 128, 192


@pytest.fixture(scope="module")
def right() -> np.ndarray:
    return 20 * np.random.default_rng(3).standard_normal((M, N)).astype(np.float32)


def rows_unwritten(d: np.ndarray) -> None:
    d.reshape(-1, 16, N)[:, 8:] = np.nan


def tile_of_zeros(d: np.ndarray) -> None:
    d[64:, 64:128] = 0


def moved_down(d: np.ndarray) -> None:
    d[8:] = d[:-8].copy()


def columns_swapped(d: np.ndarray) -> None:
    d[:] = d.reshape(M, -1, 2)[:, :, ::-1].reshape(M, N)


def rows_permuted(d: np.ndarray) -> None:
    d[:] = d[np.random.default_rng(0).permutation(M)]


def half(d: np.ndarray) -> None:
    d *= 0.5


def noise(d: np.ndarray) -> None:
    d[5] = np.random.default_rng(1).standard_normal(N)


def one_value(d: np.ndarray) -> None:
    d[7, 9] = np.inf


WRONG: dict[Callable[[np.ndarray], None], str] = {
    rows_unwritten: r"12288 of 24576 values \(rows 8 to 15 of every 16, all 192 columns\) are NaN: not "
    r"written(.*\n)+.*whole bands of 8 rows",
    tile_of_zeros: r"4\d+ of 24576 .*rows 64 to 127, columns 64 to 127\) are zeros\.\n.*tiles of 64 x 64",
    moved_down: r"are those that belong 8 rows above\.",
    columns_swapped: r"are those of other columns: column 0 has those of column 1, column",
    rows_permuted: r"are those of other rows: row \d+ has those of row \d+",
    half: r"are the right ones times 0\.5\.",
    noise: r"WRONG: \d+ of 24576 values \(row 5, [^)]*\)\.\n",
    one_value: r"one value \(row 7, column 9\)\.\n.*\n?  \[7, 9\] is inf, and should be -?\d",
}


@pytest.mark.parametrize("mistake", WRONG)
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_wrong_values(right: np.ndarray, mistake: Callable[[np.ndarray], None], dtype: type) -> None:
    found = right.copy()
    mistake(found)
    said = lab.compare(found.astype(dtype), right)
    assert not said.right and re.search(WRONG[mistake], str(said)), said
    changed = np.abs(found - right) > 1  # of it no rounding and no bound matters
    assert (said.mask >= (changed | np.isnan(found))).all()
    assert not said.mask[found == right].any()


def test_the_transposed_matrix() -> None:
    right = np.random.default_rng(3).standard_normal((64, 64))
    assert "are those of the transposed matrix." in str(lab.compare(right.T, right))


def test_right_values(right: np.ndarray) -> None:
    said = lab.compare(right.astype(ml_dtypes.bfloat16), right)
    assert said.right and not said.mask.any() and "RIGHT: all 24576 values" in str(said)
    assert 0 < said.largest < 20 * 5 * 2.0**-8
    assert lab.compare(np.array([1.0, np.nan, np.inf]), np.array([1.0, np.nan, np.inf]), 0).right
    assert not lab.compare(right.astype(ml_dtypes.bfloat16), right, 0).right
    assert lab.compare(np.zeros((0, 4)), np.zeros((0, 4))).right
    assert lab.compare(np.arange(6).reshape(1, 2, 3), np.arange(6).reshape(1, 2, 3), 0).right


def test_torch_tensors(right: np.ndarray) -> None:
    torch = pytest.importorskip("torch")
    assert lab.compare(torch.from_numpy(right).bfloat16(), torch.from_numpy(right)).right


@pytest.mark.parametrize(
    ("found", "expected", "tolerance", "said"),
    [
        (np.zeros(3), np.zeros(4), 0, r"found has shape \(3,\), expected \(4,\); one shape is needed"),
        (np.zeros(3), 3, 0, "expected is 3; a NumPy array or a torch tensor is needed"),
        (np.zeros(3), np.zeros(3), -1, "tolerance is -1; a number from 0 on is needed"),
    ],
)
def test_refusals(found: object, expected: object, tolerance: float, said: str) -> None:
    with pytest.raises(InputError, match=said):
        lab.compare(found, expected, tolerance)


def _half_of_k(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    kept = np.arange(a.shape[1]) % 32 < 16
    return (a * kept) @ b.T


PRODUCTS = {
    "have only K 0 to 15 and 32 to 47 of each K block": _half_of_k,
    "are made with A in place of B": lambda a, b: a @ np.pad(a, ((0, len(b) - len(a)), (0, 0))).T,
    "lack K block 1": lambda a, b: np.delete(a, np.s_[64:128], 1) @ np.delete(b, np.s_[64:128], 1).T,
    "A is that of 2 K blocks before": lambda a, b: np.concatenate([a[:, :128], a[:, :-128]], 1) @ b.T,
}


@pytest.mark.parametrize("said", PRODUCTS)
def test_a_wrong_product(said: str) -> None:
    rng = np.random.default_rng(2)
    arrays = [rng.standard_normal((rows, 384)).astype(ml_dtypes.bfloat16) for rows in (M, N)]
    a, b = (array.astype(np.float32) for array in arrays)
    found, expected = PRODUCTS[said](a, b), a @ b.T
    assert said in str(lab.compare(found, expected, product_of=(arrays[0], arrays[1])))
    assert said not in str(lab.compare(found, expected))


def test_what_is_no_product() -> None:
    a, b, d = np.zeros((M, 64)), np.zeros((N, 32)), np.zeros((M, N))
    with pytest.raises(InputError, match=r"product_of has shapes \(128, 64\) and \(192, 32\); \[m, k\] and"):
        lab.compare(d, d, product_of=(a, b))
