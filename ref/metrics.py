"""How far a result is from the reference.

Each function takes the result `x` and the reference `y`, float arrays of one shape, computes in float64 and
returns a Python float. A NaN in either makes the error NaN, so that `error < tolerance` is false. A reference
of zeros has an error of 0 if the result is zeros as well, and infinity otherwise.

One number over a whole matrix can hide a local fault: in a matrix of 4096 rows, one wrong row passes
`calc_diff < 1e-3`. `max_row_error` and `max_tile_error` show it.
"""

from __future__ import annotations

import numpy as np


def calc_diff(x: np.ndarray, y: np.ndarray) -> float:
    """DeepGEMM's measure, 1 - 2 * sum(x * y) / sum(x^2 + y^2): about half the relative error squared."""
    x, y = _float64(x, y)
    energy = np.sum(x * x + y * y)
    return float(1 - 2 * np.sum(x * y) / energy) if energy != 0 else 0.0


def relative_error(x: np.ndarray, y: np.ndarray) -> float:
    """||x - y|| / ||y|| in the Frobenius norm."""
    x, y = _float64(x, y)
    return float(_ratio(np.sum((x - y) ** 2), np.sum(y**2)))


def max_row_error(x: np.ndarray, y: np.ndarray) -> float:
    """The largest relative error of any row (along the last axis); 0 if there are no rows."""
    x, y = _float64(x, y)
    return float(np.max(_ratio(np.sum((x - y) ** 2, axis=-1), np.sum(y**2, axis=-1)), initial=0.0))


def max_tile_error(x: np.ndarray, y: np.ndarray, rows: int = 64, columns: int = 64) -> float:
    """The largest relative error of any rows x columns tile of a matrix; the last tiles may be smaller."""
    x, y = _float64(x, y)
    if x.ndim != 2:
        raise ValueError(f"arrays of shape {x.shape} were given; matrices are needed")
    if x.size == 0:
        return 0.0

    def tile_sums(z: np.ndarray) -> np.ndarray:
        sums = np.add.reduceat(z, np.arange(0, z.shape[0], rows), axis=0)
        return np.add.reduceat(sums, np.arange(0, z.shape[1], columns), axis=1)

    return float(np.max(_ratio(tile_sums((x - y) ** 2), tile_sums(y**2))))


def _float64(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.asarray(x), np.asarray(y)
    if x.shape != y.shape:
        raise ValueError(
            f"a result of shape {x.shape} and a reference of shape {y.shape} were given; one shape is needed"
        )
    return x.astype(np.float64), y.astype(np.float64)


def _ratio(error: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """sqrt(error / reference), of squared norms; 0 / 0 is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(error == 0, 0.0, np.sqrt(error / reference))
