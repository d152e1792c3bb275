"""The tensor core's arithmetic in exact rational numbers, slowly, and inputs that try each part of it."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from gemm_ladder.ref import fp8

NAN, INFINITY = 0x7FFFFFFF, 0x7F800000


def power(exponent: int) -> Fraction:
    return Fraction(2) ** exponent


def exponent_of(x: Fraction) -> int:
    """The e for which 2^e <= |x| < 2^(e + 1); x is not 0."""
    e = abs(x.numerator).bit_length() - x.denominator.bit_length()
    return e if power(e) <= abs(x) else e - 1


def truncate(x: Fraction, unit: Fraction) -> Fraction:
    return int(x / unit) * unit  # int() of a Fraction goes toward zero


def e4m3(code: int) -> tuple[Fraction, int]:
    """(value, exponent as the tensor core counts it: at least -6) of a code that is not NaN."""
    field, mantissa = code >> 3 & 15, code & 7
    exponent = max(field, 1) - 7
    magnitude = Fraction((8 if field else 0) + mantissa, 8) * power(exponent)
    return (-magnitude if code >> 7 else magnitude), exponent


def fp32(bits: int) -> Fraction:
    """The value of a finite FP32 number."""
    return Fraction(float(np.uint32(bits).view(np.float32)))


def rounded_bits(x: Fraction) -> int:
    """FP32 bits nearest to x, ties to even; 0 is +0."""
    if x == 0:
        return 0
    e = max(exponent_of(x), -126)
    count = round(abs(x) / power(e - 23))  # Python rounds a Fraction's half to even
    return min((e + 126 << 23) + count, INFINITY) | (0x80000000 if x < 0 else 0)


def slow_wgmma(a: list[int], b: list[int], acc: int) -> int:
    """One output's bits from 32 codes of A, 32 of B and the accumulator's bits, step by step as the model's
    description in ref/tensor_core.py says."""
    if any(code & 0x7F == 0x7F for code in (*a, *b)) or acc & 0x7FFFFFFF > INFINITY:
        return NAN
    if acc & 0x7FFFFFFF == INFINITY:
        return acc
    products = [(x * y, ex + ey) for (x, ex), (y, ey) in zip(map(e4m3, a), map(e4m3, b), strict=True)]
    c = fp32(acc)
    exponents = [e for product, e in products if product] + ([exponent_of(c)] if c else [])
    unit = power(max([*exponents, -132]) - 13)
    total = sum(truncate(product, unit) for product, _ in products) + truncate(c, unit)
    if total:
        total = truncate(total, power(max(exponent_of(total), -126) - 13))
    return rounded_bits(total)


def finite_codes(rng, shape, low=0, high=0x7F) -> np.ndarray:
    """Random codes of either sign whose magnitude's code is in [low, high)."""
    return (rng.integers(low, high, shape) | rng.integers(0, 2, shape) << 7).astype(np.uint8)


def spread(rng, shape, low=-50, high=22) -> np.ndarray:
    """Finite normal numbers times powers of two from 2^low to 2^high."""
    largest = np.finfo(np.float32).max
    return (
        (rng.normal(size=shape) * np.exp2(rng.uniform(low, high, shape)))
        .clip(-largest, largest)
        .astype(np.float32)
    )


def inputs(category: str, m: int = 12, n: int = 16):
    """a [m, 32], b [n, 32], acc [m, n] of one kind."""
    rng = np.random.default_rng(sum(map(ord, category)))
    a, b = finite_codes(rng, (m, 32)), finite_codes(rng, (n, 32))
    acc = np.zeros((m, n), np.float32)
    match category:
        case "spread accumulators":
            acc = spread(rng, (m, n))
        case "huge accumulators":
            acc = spread(rng, (m, n), 100, 127.5)
            acc[0] = np.finfo(np.float32).max
        case "subnormal accumulators":
            a[: m // 2] = 0  # half of the accumulators alone, the others with products
            acc = (rng.integers(0, 1 << 32, (m, n), np.uint32) & 0x807FFFFF).view(np.float32)
            acc[0] = -np.exp2(np.arange(-149.0, -149 + n)).astype(np.float32)
        case "tiny accumulators":
            a[: m // 2] = 0
            acc = spread(rng, (m, n), -149, -100)
        case "subnormal operands":
            a, b = finite_codes(rng, (m, 32), 0, 9), finite_codes(rng, (n, 32), 0, 9)
            acc = spread(rng, (m, n), -30, -8)
        case "one subnormal operand":
            a = finite_codes(rng, (m, 32), 0, 8)
            acc = spread(rng, (m, n), -20, 2)
        case "sparse":
            a[rng.random(a.shape) < 0.9] = 0
            b[rng.random(b.shape) < 0.5] = 0x80
            acc = spread(rng, (m, n), -20, 2)
        case "normal":
            a, b = (fp8.encode(rng.normal(size=x.shape).astype(np.float32) * 100) for x in (a, b))
            acc = spread(rng, (m, n), 5, 18)
        case "cancelling":
            a[:, 16:], b[:, 16:] = a[:, :16] ^ 0x80, b[:, :16]
            acc = spread(rng, (m, n), -20, 2)
            acc[::2] = -0.0
        case "NaN operands":
            a[::3, 5], b[::4, 9] = 0x7F, 0xFF
            b[1, 5] = 0  # NaN times zero
        case "special accumulators":
            acc = np.resize(np.array([np.inf, -np.inf, np.nan, -np.nan, 1], np.float32), (m, n))
            a[0] = 0
            a[1, 3] = 0x7F
    return a, b, acc


CATEGORIES = [
    "zero accumulators",
    "spread accumulators",
    "huge accumulators",
    "subnormal accumulators",
    "tiny accumulators",
    "subnormal operands",
    "one subnormal operand",
    "sparse",
    "normal",
    "cancelling",
    "NaN operands",
    "special accumulators",
]


def bits_of(x: np.ndarray) -> list:
    return x.view(np.uint32).tolist()


def exact_fma_bits(a, b, c) -> list[int]:
    numbers = ([Fraction(float(x)) for x in values] for values in (a, b, c))
    return [rounded_bits(x * y + z) for x, y, z in zip(*numbers, strict=True)]
