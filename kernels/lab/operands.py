"""Operands of the product that show a wrong kernel: what the tests of the rungs and the judge multiply.

Operands are NumPy arrays, made from a generator, so that every machine and every process gets the same.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from typing import ClassVar, Literal

import numpy as np
from gemm_ladder.arguments import SCALE_BLOCK, ceil_div
from gemm_ladder.ref import fp8, gemm, tensor_core

# Who adds: the tensor cores, with 14 bits, and FP32 from K block to K block; FP32 alone, in k order; or
# nothing is rounded before the result becomes BF16. Or the tensor cores, with K split (`PARTS`), where the
# parts' sums are added in order, in FP32.
Arithmetic = Literal[
    "tensor core",
    "CUDA cores",
    "float64",
    "K in 2 parts",
    "K in 3 parts",
    "K in 4 parts",
    "K in 8 parts",
    "K in 2 parts, the last the shortest",
    "K in 3 parts, the last the shortest",
    "K in 4 parts, the last the shortest",
    "K in 8 parts, the last the shortest",
]


@dataclasses.dataclass(frozen=True)
class Split:
    """How K is split: where the K blocks do not go evenly into the parts, there is more than one way.

    Attributes:
        parts: how many there are.
        rounded_up: each part has blocks / parts of them, rounded up, and the last has what is left, perhaps
            nothing; otherwise part i begins at block i * blocks // parts.
    """

    parts: int
    rounded_up: bool

    def ends(self, blocks: int) -> list[int]:
        """Where the parts of so many K blocks begin, and where the last one ends."""
        if self.rounded_up:
            return [min(part * ceil_div(blocks, self.parts), blocks) for part in range(self.parts + 1)]
        return [part * blocks // self.parts for part in range(self.parts + 1)]


PARTS: dict[Arithmetic, Split] = {
    "K in 2 parts": Split(2, False),
    "K in 3 parts": Split(3, False),
    "K in 4 parts": Split(4, False),
    "K in 8 parts": Split(8, False),
    "K in 2 parts, the last the shortest": Split(2, True),
    "K in 3 parts, the last the shortest": Split(3, True),
    "K in 4 parts, the last the shortest": Split(4, True),
    "K in 8 parts, the last the shortest": Split(8, True),
}

# The rungs whose product is not the tensor cores'.
OTHER_ARITHMETIC: dict[str, Arithmetic] = {
    "s0_numpy": "float64",
    "s1_naive": "CUDA cores",
    "s2_tiled": "CUDA cores",
}

FP8_NAN = 0x7F
ONE = 0x38  # E4M3 of 1.0


@dataclasses.dataclass(frozen=True)
class Operands:
    """One product's operands: FP8 with scales, and, in a class of their own, other types (bf16.py).

    Attributes:
        a, b: E4M3 codes, uint8 [m, k] and [n, k].
        sfa, sfb: float32 [m, ceil(k / 128)] and [ceil(n / 128), ceil(k / 128)].
        block: elements of a K block: what 128 bytes of K have.
        scaled: whether a kernel is given the scales.
        nan: the code of a NaN, which surrounds the operands in memory.
        lost: what the tensor cores' additions lose, relative to the norm of many numbers (agreement.py).
        arithmetics: those whose bits a result may have.
        other_type: the name of a type that a kernel may take them for, to wrong but finite results.
    """

    a: np.ndarray
    sfa: np.ndarray
    b: np.ndarray
    sfb: np.ndarray

    block: ClassVar[int] = SCALE_BLOCK
    scaled: ClassVar[bool] = True
    nan: ClassVar[int] = FP8_NAN
    lost: ClassVar[float] = 2.0**-12
    arithmetics: ClassVar[tuple[Arithmetic, ...]] = ("tensor core", "CUDA cores", "float64", *PARTS)
    other_type: ClassVar[str | None] = None  # the largest of a run of E4M3 are NaN as E5M2

    @property
    def shape(self) -> tuple[int, int, int]:
        """(m, n, k)"""
        return len(self.a), len(self.b), self.a.shape[1]

    def rows(self, begin: int, end: int) -> Operands:
        """The same product for some of A's rows."""
        return dataclasses.replace(self, a=self.a[begin:end], sfa=self.sfa[begin:end])

    @staticmethod
    def decode(codes: np.ndarray) -> np.ndarray:
        """The numbers that codes of A or B mean."""
        return fp8.decode(codes)

    @staticmethod
    def decode_as_other_type(codes: np.ndarray) -> np.ndarray:
        raise NotImplementedError

    def exact(self) -> np.ndarray:
        """float64 [m, n]: the reference over the dequantised operands."""
        with np.errstate(invalid="ignore", over="ignore"):
            return gemm.dense(self.a, self.sfa, self.b, self.sfb)

    def magnitude(self) -> np.ndarray:
        """float64 [m, n]: the sum of the products' absolute values, to which rounding errors are compared."""
        with np.errstate(invalid="ignore", over="ignore"):
            return gemm.dense(self.a & 0x7F, np.abs(self.sfa), self.b & 0x7F, np.abs(self.sfb))

    def bits(self, arithmetic: Arithmetic) -> np.ndarray:
        """uint16 [m, n]: the BF16 bits of the product, added up in this way."""
        if arithmetic == "float64":
            return gemm.to_bf16(self.exact()).view(np.uint16)
        if arithmetic == "CUDA cores":
            return tensor_core.cuda_core_gemm(self.a, self.sfa, self.b, self.sfb)
        ends = PARTS.get(arithmetic, Split(1, False)).ends(self.sfa.shape[1])
        sums = [self.sum_of(*part) for part in itertools.pairwise(ends) if part[0] < part[1]]
        with np.errstate(invalid="ignore", over="ignore"):
            return tensor_core.bf16_bits(functools.reduce(np.add, sums))

    def sum_of(self, first: int, end: int) -> np.ndarray:
        """float32 [m, n]: the sum of the K blocks from `first` up to `end`, by the tensor cores."""
        k, scales = np.s_[:, first * self.block : end * self.block], np.s_[:, first:end]
        return tensor_core.gemm_f32(self.a[k], self.sfa[scales], self.b[k], self.sfb[scales])

    def expected_bits(self, rung: str) -> np.ndarray:
        """uint16 [m, n]: the BF16 bits that a rung must give."""
        return self.bits(OTHER_ARITHMETIC.get(rung, "tensor core"))


def scale_shapes(m: int, n: int, k: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """The shapes of A's and of B's scales."""
    blocks = ceil_div(k, SCALE_BLOCK)
    return (m, blocks), (ceil_div(n, SCALE_BLOCK), blocks)


def normal(rng: np.random.Generator, m: int, n: int, k: int) -> Operands:
    """Normal numbers over E4M3's whole range. All scales differ, by factors of up to 16, so that using the
    scale of a wrong row or block shows."""

    def codes(rows: int) -> np.ndarray:
        return fp8.encode(rng.normal(scale=448 / 4, size=(rows, k)).astype(np.float32)).view(np.uint8)

    shape_a, shape_b = scale_shapes(m, n, k)
    sfa, sfb = (np.exp2(rng.uniform(-2, 2, shape)).astype(np.float32) for shape in (shape_a, shape_b))
    return Operands(codes(m), sfa, codes(n), sfb)


def cancelling(rng: np.random.Generator, m: int, n: int, k: int) -> Operands:
    """As `normal`, but of every second row of the product the second half of the K blocks takes away what the
    first half gives, and the last one, where their number is odd, gives 2^-20 of what another does. These
    rows show where sums were rounded in FP32, and in which order they were added."""
    one = normal(rng, m, n, k)
    half = k // SCALE_BLOCK // 2
    first, second = slice(half * SCALE_BLOCK), slice(half * SCALE_BLOCK, 2 * half * SCALE_BLOCK)
    one.b[:, second], one.sfb[:, half : 2 * half] = one.b[:, first], one.sfb[:, :half]
    one.a[1::2, second], one.sfa[1::2, half : 2 * half] = one.a[1::2, first], -one.sfa[1::2, :half]
    one.sfa[1::2, 2 * half :] *= np.float32(2.0**-20)
    return one


def powers_of_two(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    return np.exp2(rng.integers(-2, 3, shape)).astype(np.float32)


def small_integers(rng: np.random.Generator, m: int, n: int, k: int) -> Operands:
    """Integers up to 3 and scales 2^-2 to 2^2: partial sums need 11 bits, totals 19, so that nothing is
    rounded before BF16, by the tensor core's 14 bits or by FP32."""

    def codes(rows: int) -> np.ndarray:
        return fp8.encode(rng.integers(-3, 4, (rows, k)).astype(np.float32)).view(np.uint8)

    shape_a, shape_b = scale_shapes(m, n, k)
    return Operands(codes(m), powers_of_two(rng, shape_a), codes(n), powers_of_two(rng, shape_b))


def one_hot(rng: np.random.Generator, m: int, n: int, k: int) -> Operands:
    """Row i of A is 1 at one column and 0 elsewhere: D's row i is a column of B, wherever k lies in a tile.
    Rows differ in their columns, B has any finite code."""
    a = np.zeros((m, k), np.uint8)
    columns = np.arange(m) * 37 % k
    a[np.arange(m), columns] = ONE
    shape_a, shape_b = scale_shapes(m, n, k)
    return Operands(a, powers_of_two(rng, shape_a), finite_codes(rng, n, k), powers_of_two(rng, shape_b))


def finite_codes(rng: np.random.Generator, rows: int, k: int) -> np.ndarray:
    """Every finite code equally often: from 2^-9 to 448, both zeros, subnormals."""
    codes = rng.integers(0, 0x7F, (rows, k)) | rng.integers(0, 2, (rows, k)) << 7
    return codes.astype(np.uint8)


def any_finite(rng: np.random.Generator, m: int, n: int, k: int) -> Operands:
    shape_a, shape_b = scale_shapes(m, n, k)
    sfa, sfb = (np.exp2(rng.uniform(-2, 2, shape)).astype(np.float32) for shape in (shape_a, shape_b))
    return Operands(finite_codes(rng, m, k), sfa, finite_codes(rng, n, k), sfb)


def subnormal(rng: np.random.Generator, m: int, n: int, k: int) -> Operands:
    """Only E4M3 subnormals, and scales so small that some results are subnormal in FP32 and BF16 too."""
    a, b = (rng.integers(0, 8, (rows, k)) | rng.integers(0, 2, (rows, k)) << 7 for rows in (m, n))
    shape_a, shape_b = scale_shapes(m, n, k)
    sfa, sfb = (np.exp2(rng.uniform(-61, -58, shape)).astype(np.float32) for shape in (shape_a, shape_b))
    return Operands(a.astype(np.uint8), sfa, b.astype(np.uint8), sfb)


def large_scales(rng: np.random.Generator, m: int, n: int, k: int) -> Operands:
    """Results near the end of FP32's range, through scales that differ as `normal`'s do: what a kernel keeps
    in a narrower format than FP32 overflows."""
    operands = normal(rng, m, n, k)
    return dataclasses.replace(
        operands, sfa=operands.sfa * np.float32(2.0**60), sfb=operands.sfb * np.float32(2.0**40)
    )


def not_finite(rng: np.random.Generator, m: int, n: int, k: int) -> Operands:
    """NaN in a row of A and in one of B; scales that are NaN, infinite, zero, negative, or overflow FP32."""
    operands = normal(rng, m, n, k)
    operands.a[1, k // 2] = FP8_NAN
    operands.b[2, 3] = FP8_NAN | 0x80
    for row, scale in {
        3: np.nan,
        4: np.inf,
        5: -np.inf,
        6: 0.0,
        7: -1.5,
        8: 3e38,
        9: -3e38,
        10: 1e-40,
    }.items():
        operands.sfa[row, -1] = scale
    operands.sfb[-1, 0] = np.inf
    return operands
