"""Operands of a product in BF16: D = A B^T with BF16 A and B and no scales, for the judge.

A kernel is given the same GemmArgs, in which a and b are BF16 numbers and sfa and sfb null. K blocks are 64
elements, which are the 128 bytes of a swizzled row, so that a ring of stages has as many of them as with FP8.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import ClassVar

import numpy as np
from gemm_ladder.arguments import SCALE_BLOCK, ceil_div
from gemm_ladder.lab import operands
from gemm_ladder.lab.cases import Case
from gemm_ladder.lab.operands import PARTS, Arithmetic, Operands
from gemm_ladder.ref import gemm, mma

BLOCK = 64  # elements: 128 bytes
WGMMA = mma.INSTRUCTIONS["wgmma.f32.bf16.bf16"]
ONE = 0x3F80  # BF16 of 1.0
NAN, INFINITY = 0x7FC0, 0x7F80

Codes = np.ndarray  # uint16: BF16 bits


class Bf16Operands(Operands):
    """A and B are BF16 bits, uint16 [m, k] and [n, k]; sfa and sfb are ones, which no kernel is given.

    Rounding in the tensor cores: an instruction truncates 16 products and its sum, of at most 2^E in all, to
    multiples of 2^(E - 25) (ref/mma.py). That is less than 2^-20 of the sum of magnitudes for each of the 136
    instructions that the longest K has, and their errors, whose signs differ, add up to less than 2^-16.
    """

    block: ClassVar[int] = BLOCK
    scaled: ClassVar[bool] = False
    nan: ClassVar[int] = NAN
    lost: ClassVar[float] = 2.0**-16
    arithmetics: ClassVar[tuple[Arithmetic, ...]] = ("tensor core", "float64", *PARTS)
    other_type: ClassVar[str | None] = "FP16"

    @classmethod
    def of(cls, a: Codes, b: Codes) -> Bf16Operands:
        blocks = ceil_div(a.shape[1], BLOCK)
        return cls(a, _ones(len(a), blocks), b, _ones(ceil_div(len(b), SCALE_BLOCK), blocks))

    @staticmethod
    def decode(codes: Codes) -> np.ndarray:
        return (codes.astype(np.uint32) << 16).view(np.float32)

    @staticmethod
    def decode_as_other_type(codes: Codes) -> np.ndarray:
        return codes.view(np.float16).astype(np.float32)

    def exact(self) -> np.ndarray:
        with np.errstate(invalid="ignore", over="ignore"):
            a, b = (self.decode(codes).astype(np.float64) for codes in (self.a, self.b))
            product: np.ndarray = a @ b.T
            return product

    def magnitude(self) -> np.ndarray:
        return dataclasses.replace(self, a=self.a & 0x7FFF, b=self.b & 0x7FFF).exact()

    def sum_of(self, first: int, end: int) -> np.ndarray:
        """float32 [m, n]: the sum of the K blocks from `first` up to `end`, instruction after instruction."""
        a, b = (np.ascontiguousarray(codes[:, first * BLOCK : end * BLOCK]) for codes in (self.a, self.b))
        return mma.multiply(WGMMA, a, b, np.zeros((len(a), len(b)), np.float32))


def _ones(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


def of_case(case: Case) -> Case:
    """The case with operands in BF16: half of k, so that it has as many K blocks."""
    reaches = REACHES.get(case.name, case.reaches)
    return dataclasses.replace(case, k=case.k // 2, fill=FILLS[case.fill], reaches=reaches)


def _bits(numbers: np.ndarray) -> Codes:
    codes: Codes = gemm.to_bf16(numbers).view(np.uint16)
    return codes


def normal(rng: np.random.Generator, m: int, n: int, k: int) -> Operands:
    """Normal numbers; rows of A and of B differ in size by factors of up to 16, so that another row shows."""

    def codes(rows: int) -> Codes:
        return _bits(rng.standard_normal((rows, k)) * np.exp2(rng.uniform(-2, 2, (rows, 1))))

    return Bf16Operands.of(codes(m), codes(n))


def _cancelling(rng: np.random.Generator, m: int, n: int, k: int) -> Operands:
    """As operands.cancelling."""
    one = normal(rng, m, n, k)
    half = k // BLOCK // 2 * BLOCK
    one.b[:, half : 2 * half] = one.b[:, :half]
    one.a[1::2, half : 2 * half] = one.a[1::2, :half] ^ 0x8000
    one.a[1::2, 2 * half :] = _bits(one.decode(one.a[1::2, 2 * half :]) * 2.0**-20)
    return one


def _small_integers(rng: np.random.Generator, m: int, n: int, k: int) -> Operands:
    """Integers up to 3: sums are exact."""
    return Bf16Operands.of(*(_bits(rng.integers(-3, 4, (rows, k)).astype(np.float32)) for rows in (m, n)))


def _one_hot(rng: np.random.Generator, m: int, n: int, k: int) -> Operands:
    """As operands.one_hot: row i of D is a column of B."""
    a = np.zeros((m, k), np.uint16)
    a[np.arange(m), np.arange(m) * 37 % k] = ONE
    return Bf16Operands.of(a, _any(rng, n, k))


def _any(rng: np.random.Generator, rows: int, k: int) -> Codes:
    """Any sign and fraction, and exponents from -30 to 30."""
    sign, exponent, fraction = (rng.integers(*ends, (rows, k)) for ends in ((0, 2), (97, 158), (0, 128)))
    codes: Codes = (sign << 15 | exponent << 7 | fraction).astype(np.uint16)
    return codes


def _any_exponent(rng: np.random.Generator, m: int, n: int, k: int) -> Operands:
    return Bf16Operands.of(_any(rng, m, k), _any(rng, n, k))


def _subnormal(rng: np.random.Generator, m: int, n: int, k: int) -> Operands:
    """A has only subnormal numbers, B numbers of about 1."""
    a = (rng.integers(0, 128, (m, k)) | rng.integers(0, 2, (m, k)) << 15).astype(np.uint16)
    return Bf16Operands.of(a, _bits(rng.standard_normal((n, k))))


def _large(rng: np.random.Generator, m: int, n: int, k: int) -> Operands:
    """Results near the end of FP32's range."""
    a, b = (_bits(rng.standard_normal((rows, k)) * 2.0**59) for rows in (m, n))
    return Bf16Operands.of(a, b)


def _not_finite(rng: np.random.Generator, m: int, n: int, k: int) -> Operands:
    """NaN in a row of A and in one of B, infinities in others of A."""
    found = normal(rng, m, n, k)
    found.a[1, k // 2], found.b[2, 3] = NAN, NAN | 0x8000
    found.a[3, k - 1], found.a[4, 0] = INFINITY, INFINITY | 0x8000
    return found


Fill = Callable[[np.random.Generator, int, int, int], Operands]
# By what fills a case with FP8, what fills it with BF16.
FILLS: dict[Fill, Fill] = {
    operands.normal: normal,
    operands.cancelling: _cancelling,
    operands.small_integers: _small_integers,
    operands.one_hot: _one_hot,
    operands.any_finite: _any_exponent,
    operands.subnormal: _subnormal,
    operands.large_scales: _large,
    operands.not_finite: _not_finite,
}
# What cases reach, where the words for FP8 speak of scales or of E4M3.
REACHES = {
    "two_k_blocks": "a second K block",
    "ragged_63": "one row less than 64; columns past 128",
    "any_finite": "products of very different size",
    "not_finite": "NaN and infinities",
}
