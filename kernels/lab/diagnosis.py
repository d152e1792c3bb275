"""What wrong values are: each guess is a result that a certain mistake would give, computed and compared.

`explain` tries the guesses of this module, which look at the values as they are, and those of `mistakes`,
which compute the product with a mistake in it. It takes the one that explains the most of the wrong values.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from gemm_ladder.lab import mistakes, moves
from gemm_ladder.lab.agreement import ELEMENT, FLUSHED, added, never_written, values
from gemm_ladder.lab.operands import Operands

ENOUGH = 0.9  # the share of the wrong values that a guess has to explain
SAMPLE = 192  # wrong values on which the products with mistakes are compared
FEWEST = 4  # with fewer wrong values, one of the many guesses would fit by chance
UNINITIALISED = 0xFEFF  # BF16 bits of what g++ puts into a variable that nothing initialises: -1.7e38
TILE = 64, 128  # the part of D that is explained alone where no guess explains all


class Guess(NamedTuple):
    """A mistake, as the end of a sentence about the wrong values, and the share of them that it explains."""

    text: str
    share: float


def explain(operands: Operands, found: np.ndarray, expected: np.ndarray, wrong: np.ndarray) -> Guess | None:
    """The guess that explains most of the wrong values; None if none explains ENOUGH of them, in all of D or
    in the first wrong tile.

    Args:
        found, expected: uint16 [m, n], BF16 bits.
        wrong: bool [m, n].
    """
    whole = _best(operands, found, expected, wrong)
    if whole and whole.share >= ENOUGH:
        return whole
    row, column = np.argwhere(wrong)[0] // TILE * TILE
    first = np.zeros_like(wrong)
    tile = np.s_[row : row + TILE[0], column : column + TILE[1]]
    first[tile] = wrong[tile]
    if (first == wrong).all():
        return None
    part = _best(operands, found, expected, first)
    if part and part.share >= ENOUGH:
        return Guess(f"{part.text} (in rows {row} to {row + TILE[0] - 1}, columns {column} on)", part.share)
    return None


def _best(operands: Operands, found: np.ndarray, expected: np.ndarray, wrong: np.ndarray) -> Guess | None:
    best: Guess | None = None
    for guess in _guesses(operands, found, expected, wrong):
        if best is None or guess.share > best.share + 0.01:  # the earlier guess is the simpler one
            best = guess
        if best.share == 1:
            break
    return best


def _guesses(
    operands: Operands, found: np.ndarray, expected: np.ndarray, wrong: np.ndarray
) -> Iterator[Guess]:
    bits = found[wrong]
    unwritten = never_written(bits)
    yield Guess("were never written", float(unwritten.mean()))
    yield Guess("are zeros", float(((bits & 0x7FFF) == 0).mean()))
    yield Guess("are of a register that nothing has initialised", float((bits == UNINITIALISED).mean()))
    nan = float((np.isnan(values(bits)) & ~unwritten).mean())
    yield Guess("are NaN, which no value that belongs there can make", nan)
    if nan > 1 - ENOUGH or unwritten.mean() > 1 - ENOUGH:
        return  # what follows compares numbers
    exact = operands.exact()[wrong].astype(np.float32).view(np.uint32)
    truncated = (bits == exact >> 16) & (bits != expected[wrong])
    yield Guess("are rounded to BF16 toward zero, and not to nearest", float(truncated.mean()))
    yield from _other_places(found, expected, wrong)
    yield from _mistakes(operands, found, wrong)


# ------------------------------------------------------------------------- right values in the wrong places


def _other_places(found: np.ndarray, expected: np.ndarray, wrong: np.ndarray) -> Iterator[Guess]:
    """Values that belong to other places of D: a neighbour's, or rows or columns that changed places."""
    if wrong.sum() < FEWEST or len(np.unique(found[wrong])) < FEWEST:
        return
    places = np.argwhere(wrong)
    for distance in moves.likely(places, lambda row, column: np.argwhere(expected == found[row, column]))[:1]:
        share = moves.share(distance, places, found.shape, lambda here, there: found[here] == expected[there])
        text = "another tile's, or rows or columns that moved"
        yield Guess(f"are those of D {moves.in_words(distance)}: {text}", share)
    for axis, one in ((0, "row"), (1, "column")):
        yield from _permuted(found, expected, wrong, axis, one)
    top, left = places.min(axis=0)
    bottom, end = places.max(axis=0) + 1
    box = np.s_[top:bottom, left:end]
    if np.array_equal(np.sort(found[box], axis=None), np.sort(expected[box], axis=None)):
        yield Guess("are the right ones of this region, in other places of it", 1.0)


def _permuted(
    found: np.ndarray, expected: np.ndarray, wrong: np.ndarray, axis: int, one: str
) -> Iterator[Guess]:
    """Whole rows (axis 0) or columns (axis 1) of the wrong region that hold another one's values."""
    if axis:
        found, expected, wrong = found.T, expected.T, wrong.T
    rows = np.flatnonzero(wrong.any(axis=1))
    columns = np.flatnonzero(wrong.any(axis=0))
    if len(columns) < FEWEST:
        return
    known: dict[bytes, int] = {}
    for row in range(len(expected)):
        known.setdefault(np.ascontiguousarray(expected[row, columns]).tobytes(), row)
    moved = {}
    for row in rows.tolist():
        there = known.get(np.ascontiguousarray(found[row, columns]).tobytes())
        if there is not None and there != row:
            moved[row] = there
    if not moved:
        return
    share = float(wrong[list(moved)].sum() / wrong.sum())
    some = [f"{one} {row} has those of {one} {there}" for row, there in list(moved.items())[:3]]
    yield Guess(f"are those of other {one}s{_rule(moved)}: {', '.join(some)}", share)


def _rule(moved: dict[int, int]) -> str:
    """How the rows changed places, if it can be said in few words."""
    keys, goals = np.array(list(moved)), np.array(list(moved.values()))
    if len(set((keys ^ goals).tolist())) == 1:
        return f" (index XOR {keys[0] ^ goals[0]})"
    return ""


# ----------------------------------------------------------------------------- the product with a mistake


def _mistakes(operands: Operands, found: np.ndarray, wrong: np.ndarray) -> Iterator[Guess]:
    """Products with one mistake, compared on a sample of the wrong values, and then on another."""
    places = np.argwhere(wrong)
    if len(places) < FEWEST:
        return
    rng = np.random.default_rng(1)
    chosen = places[np.sort(rng.permutation(len(places))[:SAMPLE])]
    sample = mistakes.Sample(operands, chosen)
    got = values(found[tuple(chosen.T)]).astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        slack = added(operands) * sample.magnitude + FLUSHED
        # Of a guess that is right for a few of the values by chance, nothing is to be said.
        for text, predicted in mistakes.products(sample, got):
            same = np.abs(got - predicted) <= ELEMENT * np.abs(predicted) + slack
            # A mistake that changes nothing explains nothing: the values may be wrong in their last bit.
            told = np.abs(predicted - sample.right) > (ELEMENT * np.abs(predicted) + slack) / 2
            if told.mean() >= 0.5:
                yield Guess(text, float(same.mean()))
