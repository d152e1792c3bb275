"""Matrix instructions in exact rational numbers, slowly: one output at a time, step by step as ref/mma.py
describes them."""

from __future__ import annotations

from fractions import Fraction
from typing import NamedTuple

import numpy as np
from exact_arithmetic import exponent_of, power, truncate
from gemm_ladder.ref import mma
from gemm_ladder.ref.mma import Instruction, Type, Unit

NAN, PLUS, MINUS = "nan", "inf", "-inf"
Number = Fraction | str  # a str is one of the three above


class Model(NamedTuple):
    """What is not known from the instruction's description in the PTX ISA.

    Attributes:
        kept: fraction bits that survive the alignment.
        fraction_bits: of FP32 results.
        floor: the smallest E.
        group: bytes of K that are summed at once.
        nearest: FP32 results are rounded to nearest, not toward zero.
        truncated: FP16 results are rounded toward zero, not to nearest.
        normalised: a product's exponent is its own, not the sum of its operands'.
        down: the alignment rounds down, not toward zero.
        clamped_often: integer sums are clamped after every 16 products.
    """

    kept: int = 25
    fraction_bits: int = 23
    floor: int = -133
    group: int = 32
    nearest: bool = False
    truncated: bool = False
    normalised: bool = False
    down: bool = False
    clamped_often: bool = False


def model_of(instruction: Instruction) -> Model:
    fp8_wgmma = instruction.unit == Unit.WGMMA and instruction.a in mma.FP8_TYPES
    return Model(
        kept=13 if fp8_wgmma else 25,
        fraction_bits=13 if fp8_wgmma else 23,
        floor=-21 if instruction.d == Type.F16 else -133,
    )


def decode(code: int, type_: Type) -> tuple[Number, int]:
    """A number and its exponent as the tensor core counts it."""
    exponent_bits, fraction_bits = mma.EXPONENT_BITS[type_], mma.FRACTION_BITS[type_]
    if type_ == Type.TF32:
        code >>= 13
    fraction, rest = code % 2**fraction_bits, code >> fraction_bits
    field, negative = rest % 2**exponent_bits, rest >> exponent_bits
    last = 2**exponent_bits - 1
    if type_ == Type.E4M3 and (field, fraction) == (last, 7):
        return NAN, 0
    if type_ != Type.E4M3 and field == last:
        return NAN if fraction else (MINUS if negative else PLUS), 0
    exponent = max(field, 1) - (2 ** (exponent_bits - 1) - 1)
    magnitude = Fraction(fraction + (2**fraction_bits if field else 0), 2**fraction_bits) * power(exponent)
    return (-magnitude if negative else magnitude), exponent


def to_f32(x: Fraction, model: Model) -> int:
    if x == 0:
        return 0
    unit = power(max(exponent_of(x), -126) - model.fraction_bits)
    x = round(x / unit) * unit if model.nearest else truncate(x, unit)
    if x == 0:
        return 0
    sign = 0x80000000 if x < 0 else 0
    if abs(x) >= power(128):
        return sign | 0x7F800000
    return int(np.float32(float(x)).view(np.uint32))


def to_f16(x: Fraction, truncated: bool = False) -> int:
    if x == 0:
        return 0
    exponent = max(exponent_of(x), -14)
    count = abs(x) / power(exponent - 10)
    code = (int(count) if truncated else round(count)) + (exponent + 14) * 1024  # round(): half to even
    code = min(code, 0x7C00)
    return code | (0x8000 if x < 0 and code else 0)


def special(numbers: list[Number], products: list[tuple[Number, Number]]) -> str | None:
    """The sum of numbers and products if it is NaN or infinite because one of them is."""
    signs = {x for x in numbers if isinstance(x, str)}
    for x, y in products:
        if NAN in (x, y):
            signs.add(NAN)
        elif isinstance(x, str) or isinstance(y, str):
            if 0 in (x, y):
                signs.add(NAN)
            else:
                negative = [z == MINUS or (not isinstance(z, str) and z < 0) for z in (x, y)]
                signs.add(MINUS if negative[0] != negative[1] else PLUS)
    if NAN in signs or len(signs) == 2:
        return NAN
    return signs.pop() if signs else None


def special_bits(what: str, d: Type) -> int:
    table = {Type.F32: (0x7FFFFFFF, 0x7F800000, 0xFF800000), Type.F16: (0x7FFF, 0x7C00, 0xFC00)}
    return table[d][(NAN, PLUS, MINUS).index(what)]


def fused_sum(a: list[int], b: list[int], types: tuple[Type, Type, Type], acc: int, model: Model) -> int:
    """The accumulator's bits after one fused sum."""
    left, right = [decode(x, types[0]) for x in a], [decode(x, types[1]) for x in b]
    value, exponent = decode(acc, types[2])
    products = [(x, y) for (x, _), (y, _) in zip(left, right, strict=True)]
    if what := special([value], products):
        return special_bits(what, types[2])
    terms = [(x * y, ex + ey) for (x, ex), (y, ey) in zip(left, right, strict=True)]
    if model.normalised:
        terms = [(x, exponent_of(x) if x else 0) for x, _ in terms]
    terms.append((value, exponent))
    top = max([e for x, e in terms if x] + [model.floor])
    unit = power(top - model.kept)
    total = sum(((x // unit) * unit if model.down else truncate(x, unit) for x, _ in terms), Fraction(0))
    return to_f16(total, model.truncated) if types[2] == Type.F16 else to_f32(total, model)


def plain_sum(x: int, y: int, d: Type) -> int:
    """x + y as IEEE 754 has it, to nearest even; bits. Neither is -0 beside a zero."""
    left, right = decode(x, d)[0], decode(y, d)[0]
    if what := special([left, right], []):
        return special_bits(what, d)
    return to_f16(left + right) if d == Type.F16 else to_f32(left + right, Model(nearest=True))


def as_f16(code: int, type_: Type) -> int:
    """The bits in FP16 of an FP8 number, which FP16 has."""
    x = decode(code, type_)[0]
    return special_bits(x, Type.F16) if isinstance(x, str) else to_f16(x)


def integer(code: int, type_: Type) -> int:
    return code - 256 if type_ == Type.S8 and code > 127 else code


def slow(instruction: Instruction, a: list[int], b: list[int], acc: int, model: Model | None = None) -> int:
    """One output's bits, from the bits of a row of A and of B and of the accumulator."""
    model = model or model_of(instruction)
    types = instruction.a, instruction.b, instruction.d
    for start in range(0, len(a), instruction.k):
        left, right = a[start : start + instruction.k], b[start : start + instruction.k]
        if instruction.d == Type.S32:
            total = acc - 2**32 if acc >= 2**31 else acc
            for k, (x, y) in enumerate(zip(left, right, strict=True)):
                total += integer(x, types[0]) * integer(y, types[1])
                if instruction.satfinite and (
                    k == instruction.k - 1 or (model.clamped_often and k % 16 == 15)
                ):
                    total = min(max(total, -(2**31)), 2**31 - 1)
            acc = total % 2**32
        elif instruction.unit == Unit.MMA and instruction.a in mma.FP8_TYPES:
            left, right = [as_f16(x, types[0]) for x in left], [as_f16(x, types[1]) for x in right]
            halves, total = (Type.F16, Type.F16, types[2]), 0
            for first in (0, 2):
                places = [k for k in range(instruction.k) if k % 4 // 2 == first // 2]
                total = fused_sum([left[k] for k in places], [right[k] for k in places], halves, total, model)
            acc = plain_sum(acc, total, instruction.d)
        else:
            count = model.group // mma.BYTES[instruction.a]
            for at in range(0, len(left), count):
                acc = fused_sum(left[at : at + count], right[at : at + count], types, acc, model)
    return acc
