"""The operands and accumulators that tensor cores are asked about: every kind in `KINDS`, drawn at random."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from gemm_ladder.ref import fp8, tensor_core

K = tensor_core.K_INSTRUCTION
M = 64  # rows of a WGMMA
FLT_MAX = float(np.finfo(np.float32).max)
FP8_NAN = np.array([0x7F, 0xFF], np.uint8)


class Operands(NamedTuple):
    """a uint8 [tiles, 64, k], b uint8 [tiles, n, k]: E4M3 codes; acc float32 [tiles, 64, n]."""

    a: np.ndarray
    b: np.ndarray
    acc: np.ndarray


# ------------------------------------------------------------------------------------- what a matrix may hold
# Functions of (rng, shape): E4M3 codes.


def any_finite(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return below(rng, shape, 0x7F)


def below(rng: np.random.Generator, shape: tuple[int, ...], magnitude: int) -> np.ndarray:
    """Codes of either sign whose magnitude bits are below `magnitude`; 8 gives subnormals and zeros."""
    return (rng.integers(0, magnitude, shape, np.uint8) | rng.integers(0, 2, shape, np.uint8) << 7).astype(
        np.uint8
    )


def normal(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Like cast data: normally distributed, scaled so that the largest of a row is about 448."""
    return fp8.encode(rng.standard_normal(shape, np.float32) * np.float32(448 / 3.5))


def subnormal(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return below(rng, shape, 8)


def small(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Subnormals and the first normal numbers."""
    return below(rng, shape, 20)


def sparse(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """One code in eight is not zero; zeros have both signs."""
    return np.where(rng.random(shape) < 1 / 8, any_finite(rng, shape), below(rng, shape, 1))


def single(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """One nonzero code in 32, at the same place in all rows."""
    codes = np.zeros(shape, np.uint8)
    codes[..., ::K] = any_finite(rng, codes[..., ::K].shape)
    return codes


def zero(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return below(rng, shape, 1)


def some_nan(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Finite codes, many of them zero; every fourth row has one NaN."""
    codes = sparse(rng, shape)
    rows = codes[..., ::4, :]
    place = rng.integers(0, shape[-1], rows.shape[:-1])[..., np.newaxis]
    np.put_along_axis(rows, place, rng.choice(FP8_NAN, place.shape), axis=-1)
    return codes


# ----------------------------------------------------------------------------- what the accumulators may hold
# Functions of (rng, a, b): float32 [tiles, 64, n].


def shape_of(a: np.ndarray, b: np.ndarray) -> tuple[int, int, int]:
    return (*a.shape[:2], b.shape[1])


def zeros(_rng: np.random.Generator, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.zeros(shape_of(a, b), np.float32)


def spread(low: float, high: float) -> Callable:
    """Finite: normally distributed numbers times a power of two, uniform from 2^low to 2^high."""

    def accumulators(rng: np.random.Generator, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        shape = shape_of(a, b)
        x = rng.standard_normal(shape) * np.exp2(rng.uniform(low, high, shape))
        return x.clip(-FLT_MAX, FLT_MAX).astype(np.float32)

    return accumulators


def bits(low: int, high: int) -> Callable:
    """FP32 numbers of either sign whose magnitude bits are in [low, high)."""

    def accumulators(rng: np.random.Generator, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        shape = shape_of(a, b)
        signs = rng.integers(0, 2, shape, np.uint32) << 31
        return (rng.integers(low, high, shape, np.uint32) | signs).view(np.float32)

    return accumulators


def cancelling(rng: np.random.Generator, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The negative of the sum of the products, except for its last few bits."""
    exact = np.matmul(fp8.decode(a).astype(np.float64), fp8.decode(b).astype(np.float64).swapaxes(1, 2))
    return (-exact * (1 + rng.integers(-8, 9, exact.shape) * 2.0**-14)).astype(np.float32)


def signed(value: float) -> Callable:
    """`value` with either sign."""

    def accumulators(rng: np.random.Generator, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.where(rng.random(shape_of(a, b)) < 0.5, -value, value).astype(np.float32)

    return accumulators


any_acc = bits(0, 0x7F800000)
subnormal_acc = bits(1, 0x00800000)
nan_acc = bits(0x7F800001, 0x80000000)
huge_acc = bits(0x7E800000, 0x7F800000)
partial_sums = spread(10, 20)


class Kind(NamedTuple):
    """One kind of input. With scale_d = 0 the first WGMMA ignores the accumulators."""

    a: Callable
    b: Callable
    acc: Callable
    instructions: int = 1
    scale_d: int = 1

    def make(self, rng: np.random.Generator, n: int, tiles: int) -> Operands:
        k = self.instructions * K
        a, b = self.a(rng, (tiles, M, k)), self.b(rng, (tiles, n, k))
        return Operands(a, b, np.ascontiguousarray(self.acc(rng, a, b)))


KINDS = {
    "any operands": Kind(any_finite, any_finite, zeros),
    "any operands, spread accumulators": Kind(any_finite, any_finite, spread(-50, 22)),
    "any operands, any finite accumulators": Kind(any_finite, any_finite, any_acc),
    "normal operands": Kind(normal, normal, zeros),
    "normal operands, partial sums": Kind(normal, normal, partial_sums),
    "sparse operands": Kind(sparse, sparse, spread(-30, 20)),
    "single products": Kind(single, single, spread(-30, 20)),
    "subnormal operands": Kind(subnormal, subnormal, spread(-40, -4)),
    "subnormal and other operands": Kind(subnormal, any_finite, spread(-30, 10)),
    "small operands, no accumulators": Kind(small, small, zeros),
    "small operands, tiny accumulators": Kind(small, small, spread(-60, -12)),
    "cancelling accumulators": Kind(normal, normal, cancelling),
    "cancelling accumulators, sparse": Kind(sparse, sparse, cancelling),
    "accumulators of -0": Kind(sparse, sparse, signed(0.0)),
    "no products, any finite accumulators": Kind(zero, any_finite, any_acc),
    "no products, subnormal accumulators": Kind(zero, any_finite, subnormal_acc),
    "no products, small accumulators": Kind(zero, zero, spread(-149, -100)),
    "subnormal accumulators": Kind(sparse, small, subnormal_acc),
    "huge accumulators": Kind(normal, normal, huge_acc),
    "largest accumulators": Kind(any_finite, any_finite, signed(FLT_MAX)),
    "NaN operands": Kind(some_nan, some_nan, spread(-20, 20)),
    "NaN operands, infinite accumulators": Kind(some_nan, some_nan, signed(np.inf)),
    "NaN accumulators": Kind(sparse, sparse, nan_acc),
    "NaN accumulators, no products": Kind(zero, zero, nan_acc),
    "infinite accumulators": Kind(sparse, sparse, signed(np.inf)),
    "infinite accumulators, no products": Kind(zero, zero, signed(np.inf)),
    "ignored accumulators": Kind(any_finite, any_finite, nan_acc, scale_d=0),
    "chain: any operands": Kind(any_finite, any_finite, nan_acc, 4, scale_d=0),
    "chain: normal operands": Kind(normal, normal, nan_acc, 4, scale_d=0),
    "chain: small operands": Kind(small, small, nan_acc, 4, scale_d=0),
    "chain: sparse operands": Kind(sparse, sparse, spread(-30, 20), 4),
    "chain: partial sums": Kind(normal, normal, partial_sums, 4),
    "chain: NaN operands": Kind(some_nan, some_nan, zeros, 4),
    "chain: infinite accumulators": Kind(sparse, sparse, signed(np.inf), 4),
}
