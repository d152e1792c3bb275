"""Comparing what a kernel wrote with what is right: which values are wrong, and what they look like."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from gemm_ladder.errors import InputError
from gemm_ladder.lab import moves, plain_products
from gemm_ladder.lab.arrays import dtype_name, is_array, item_bytes, on_gpu
from gemm_ladder.lab.places import where, whole_tiles

if TYPE_CHECKING:
    from gemm_ladder.lab.arrays import Array

TOLERANCE = 2.0**-8  # an element of BF16 is rounded by up to 2^-9 of it; a sum on FP8 tensor cores loses less
ENOUGH = 0.9  # the share of the wrong values that a guess has to explain
SAMPLE = 64  # rows, or columns, that are looked up
FEWEST = 4  # with fewer wrong values, a guess would fit by chance
SHOWN = 3  # wrong values that are listed


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Whether values are right; `print` says which are not, and what they look like.

    Attributes:
        right: whether all are.
        mask: bool, of the arrays' shape: which are wrong.
        largest: the largest difference; NaN if a value is NaN that should be none.
        text: the same in words.
    """

    right: bool
    mask: np.ndarray = dataclasses.field(repr=False)
    largest: float
    text: str = dataclasses.field(repr=False)

    def __str__(self) -> str:
        return self.text


def compare(
    found: Array,
    expected: Array,
    tolerance: float = TOLERANCE,
    product_of: tuple[Array, Array] | None = None,
) -> Comparison:
    """Compare an array that a kernel wrote with the right one, of any type and any layout in memory.

    A value is right if it differs from the expected one by at most `tolerance` times the sum of that one's
    size and the root mean square of all. NaN is right where NaN is expected, infinity where the same infinity
    is. Of wrong values it is said in which rows and columns they are, and whether they are zeros, NaN,
    another row's, another column's, those of a place at some distance, the transposed ones or a multiple.

    Args:
        found, expected: NumPy arrays or CPU tensors of one shape. A 1D array counts as one row; dimensions
            before the last two count as more rows.
        tolerance: 0 asks for equality.
        product_of: A [m, k] and B [n, k], if what is expected is A B^T. Then mistakes are named that kernels
            for products make, such as a stage of the ring that holds another K block (128 bytes of K).

    Raises:
        InputError: no arrays of one shape, on a GPU, a tolerance below 0, or no matrices of which it is the
            product.
    """
    got, right = _numbers("found", found), _numbers("expected", expected)
    if got.shape != right.shape:
        raise InputError(f"found has shape {got.shape}, expected {right.shape}; one shape is needed.")
    if not tolerance >= 0:
        raise InputError(f"tolerance is {tolerance}; a number from 0 on is needed.")
    operands = _operands(product_of, got.shape) if product_of else None
    if not got.size:
        return Comparison(True, np.zeros(got.shape, bool), 0.0, "There are no values.")
    matrix = _matrix(got), _matrix(right)
    wrong = ~_near(*matrix, tolerance, _size(right))
    with np.errstate(invalid="ignore"):
        difference = np.where(matrix[0] == matrix[1], 0.0, np.abs(matrix[0] - matrix[1]))
    difference[np.isnan(matrix[0]) & np.isnan(matrix[1])] = 0
    largest = float(difference.max())
    text = (
        _said(*matrix, wrong, tolerance, operands)
        if wrong.any()
        else f"RIGHT: all {got.size} values; the largest difference is {largest:.3g}."
    )
    return Comparison(not wrong.any(), wrong.reshape(got.shape), largest, text)


def _numbers(name: str, array: Array) -> np.ndarray:
    if not is_array(array):
        raise InputError(f"{name} is {array!r}; a NumPy array or a torch tensor is needed.")
    if on_gpu(array):
        raise InputError(f"{name} is on a GPU; {name}.cpu() is needed.")
    if isinstance(array, np.ndarray):
        return array.astype(np.float64)
    widened = array.detach().float() if dtype_name(array) not in ("float64", "int64") else array.detach()
    return widened.numpy().astype(np.float64)


def _matrix(array: np.ndarray) -> np.ndarray:
    return array.reshape(-1, array.shape[-1]) if array.ndim else array.reshape(1, 1)


def _size(right: np.ndarray) -> float:
    """The root mean square of the expected values."""
    finite = right[np.isfinite(right)]
    return float(np.sqrt(np.mean(finite**2))) if finite.size else 0.0


def _near(found: np.ndarray, expected: np.ndarray, tolerance: float, size: float) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        near: np.ndarray = np.abs(found - expected) <= tolerance * (np.abs(expected) + size)
    return near & np.isfinite(expected) | (found == expected) | (np.isnan(found) & np.isnan(expected))


_Operands = tuple[np.ndarray, np.ndarray, int]  # A, B, bytes of an element


def _operands(given: tuple[Array, Array], shape: tuple[int, ...]) -> _Operands:
    a, b = (_numbers(name, array) for name, array in zip("AB", given, strict=True))
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or (len(a), len(b)) != shape:
        raise InputError(
            f"product_of has shapes {a.shape} and {b.shape}; [m, k] and [n, k] are needed, where [m, n] is "
            f"{shape}."
        )
    return a, b, item_bytes(given[0])


def _said(
    found: np.ndarray,
    expected: np.ndarray,
    wrong: np.ndarray,
    tolerance: float,
    operands: _Operands | None,
) -> str:
    count = int(wrong.sum())
    values = f"{count} of {wrong.size} values" if count > 1 else "one value"
    text = f"WRONG: {values} ({where(wrong, 'all')})"
    guesses = _guesses(found, expected, wrong, tolerance, operands)
    guess = next((one for one in guesses if one[1] >= ENOUGH), None)
    if guess:
        text += f" {guess[0]}" if guess[1] == 1 else f", of which {guess[1]:.0%} {guess[0]}"
    lines = [text + "."]
    if made_of := whole_tiles(wrong):
        lines.append(f"  They are whole {made_of}.")
    rows, columns = np.nonzero(wrong)
    for i in np.linspace(0, count - 1, min(count, SHOWN)).astype(int):
        place = rows[i], columns[i]
        lines.append(
            f"  [{place[0]}, {place[1]}] is {found[place]:.6g}, and should be {expected[place]:.6g}."
        )
    return "\n".join(lines)


def _guesses(
    found: np.ndarray,
    expected: np.ndarray,
    wrong: np.ndarray,
    tolerance: float,
    operands: _Operands | None,
) -> Iterator[tuple[str, float]]:
    """What the wrong values may be, as the end of a sentence, and the share of them that are that."""
    values = found[wrong]
    yield "are NaN: not written, if NaN was there before", float(np.isnan(values).mean())
    yield "are zeros", float((values == 0).mean())
    size = _size(expected)
    places = np.argwhere(wrong)
    if len(places) < FEWEST or len(np.unique(values[np.isfinite(values)])) < FEWEST:
        return

    def share(of: np.ndarray) -> float:
        return float(_near(values, of[wrong], tolerance, size).mean())

    with np.errstate(divide="ignore", invalid="ignore"):
        factors = values / expected[wrong]
    factor = float(np.median(factors[np.isfinite(factors)])) if np.isfinite(factors).any() else 1.0
    yield f"are the right ones times {factor:.4g}", share(expected * factor) if abs(factor) > 1e-3 else 0.0
    if found.shape[0] == found.shape[1]:
        yield "are those of the transposed matrix", share(expected.T)
    yield from _moved(found, expected, places, (tolerance, size))
    for axis, one in ((0, "row"), (1, "column")):
        yield from _others(found, expected, wrong, axis, one, (tolerance, size))
    if operands:
        yield plain_products.mistake(*operands, found, wrong, tolerance * size, tolerance)


def _moved(
    found: np.ndarray, expected: np.ndarray, places: np.ndarray, bounds: tuple[float, float]
) -> Iterator[tuple[str, float]]:
    """Values that belong to a place at one distance, the same for all."""

    def belongs(row: int, column: int) -> np.ndarray:
        return np.argwhere(_near(np.asarray(found[row, column]), expected, *bounds))

    for distance in moves.likely(places, belongs):
        share = moves.share(
            distance, places, found.shape, lambda here, there: _near(found[here], expected[there], *bounds)
        )
        yield f"are those that belong {moves.in_words(distance)}", share


def _others(
    found: np.ndarray,
    expected: np.ndarray,
    wrong: np.ndarray,
    axis: int,
    one: str,
    bounds: tuple[float, float],
) -> Iterator[tuple[str, float]]:
    """Rows (axis 0) or columns (axis 1) with the values of other ones."""
    if axis:
        found, expected, wrong = found.T, expected.T, wrong.T
    rows = np.flatnonzero(wrong.any(axis=1))
    moved = []
    for row in rows[np.linspace(0, len(rows) - 1, min(len(rows), SAMPLE)).astype(int)].tolist():
        columns = np.flatnonzero(wrong[row])
        shares = _near(found[row, columns], expected[:, columns], *bounds).mean(axis=1)
        shares[row] = 0
        if len(columns) >= FEWEST and shares.max() >= ENOUGH:
            moved.append((row, int(shares.argmax())))
    if not moved:
        return
    some = ", ".join(f"{one} {row} has those of {one} {there}" for row, there in moved[:3])
    yield f"are those of other {one}s: {some}", len(moved) / min(len(rows), SAMPLE)
