"""The operands and accumulators that matrix instructions are asked about: `kinds_of` lists the kinds for one
instruction. Each is made to tell apart models that differ in one point; the comment above it says which."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from gemm_ladder.ref import mma
from gemm_ladder.ref.mma import Instruction, Type, Unit

M = 64  # rows of a WGMMA; four mma.sync have as many
Shape = tuple[int, ...]


class Operands(NamedTuple):
    """a [tiles, 64, k], b [tiles, n, k] and acc [tiles, 64, n]: bits, in unsigned integers of their size."""

    a: np.ndarray
    b: np.ndarray
    acc: np.ndarray


# ------------------------------------------------------------------------------------- floating-point numbers


class Format:
    """A floating-point type as fields of bits."""

    def __init__(self, type_: Type) -> None:
        self.type = type_
        self.dtype = mma.STORAGE[mma.BYTES[type_]]
        self.ignored = 13 if type_ == Type.TF32 else 0
        self.fraction_bits, exponent_bits = mma.FRACTION_BITS[type_], mma.EXPONENT_BITS[type_]
        self.bias = 2 ** (exponent_bits - 1) - 1
        self.lowest = 1 - self.bias  # the smallest normal number's exponent, and a subnormal one's
        self.infinity = (2**exponent_bits - 1) << self.fraction_bits  # where there is one
        self.first_not_finite = 0x7F if type_ == Type.E4M3 else self.infinity
        self.highest = (self.first_not_finite - 1 >> self.fraction_bits) - self.bias
        self.sign = 1 << (exponent_bits + self.fraction_bits)

    def codes(self, rng: np.random.Generator, magnitudes: np.ndarray) -> np.ndarray:
        """The bits of magnitudes, with random signs. What TF32 ignores is random too."""
        codes = magnitudes.astype(np.uint32) | (rng.integers(0, 2, magnitudes.shape, np.uint32) * self.sign)
        if self.ignored:
            codes = codes << self.ignored | rng.integers(0, 1 << self.ignored, codes.shape, np.uint32)
        return codes.astype(self.dtype)

    def finite(self, rng: np.random.Generator, shape: Shape) -> np.ndarray:
        return self.codes(rng, rng.integers(0, self.first_not_finite, shape))

    def zeros(self, rng: np.random.Generator, shape: Shape) -> np.ndarray:
        return self.codes(rng, np.zeros(shape, np.uint32))

    def subnormals(self, rng: np.random.Generator, shape: Shape) -> np.ndarray:
        return self.codes(rng, rng.integers(0, 1 << self.fraction_bits, shape))

    def window(self, rng: np.random.Generator, shape: Shape, low: float, high: float) -> np.ndarray:
        """Exponents from low to high, as far as the type has them. The lowest may be subnormal."""
        low, high = (int(np.clip(x, self.lowest - 1, self.highest)) for x in (low, high))
        fields = rng.integers(low, high + 1, shape) + self.bias
        magnitudes = fields << self.fraction_bits | rng.integers(0, 1 << self.fraction_bits, shape)
        return self.codes(rng, np.minimum(magnitudes, self.first_not_finite - 1))

    def power(self, rng: np.random.Generator, exponents: np.ndarray) -> np.ndarray:
        """Powers of two, subnormal where they have to be; 0 below that."""
        exponents = np.minimum(exponents, self.highest)
        normal = (np.maximum(exponents, self.lowest) + self.bias) << self.fraction_bits
        shift = self.fraction_bits - (self.lowest - exponents)
        subnormal = np.where(shift >= 0, 1 << np.maximum(shift, 0), 0)
        return self.codes(rng, np.where(exponents >= self.lowest, normal, subnormal))

    def truncated(self, x: np.ndarray) -> np.ndarray:
        """The codes of float32 numbers, rounded toward zero; what is too small or too large is cut off."""
        bits = x.astype(np.float32).view(np.uint32)
        fields = (bits >> 23 & 255).astype(np.int64) - 127 + self.bias
        magnitudes = np.maximum(fields, 0) << self.fraction_bits
        magnitudes |= np.where(fields > 0, (bits & 0x7FFFFF) >> (23 - self.fraction_bits), 0)
        magnitudes = np.minimum(magnitudes, self.first_not_finite - 1).astype(np.uint32)
        codes = (magnitudes | np.where(bits >> 31, np.uint32(self.sign), np.uint32(0))) << self.ignored
        return codes.astype(self.dtype)

    def special(self, rng: np.random.Generator, shape: Shape) -> np.ndarray:
        """NaNs, and infinities if the type has them."""
        nans = rng.integers(self.first_not_finite + (self.type != Type.E4M3), self.sign, shape)
        if self.type == Type.E4M3:
            return self.codes(rng, nans)
        codes = self.codes(rng, np.where(rng.random(shape) < 0.5, self.infinity, nans))
        return codes

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """float64 values."""
        rows = np.ascontiguousarray(codes).reshape(-1, codes.shape[-1])
        values, exponents = np.empty(rows.shape), np.empty(rows.shape, np.int32)
        mma._decode(rows.view(np.uint8), self.type, values, exponents)
        return values.reshape(codes.shape)


# ------------------------------------------------------------------------------------------------- the kinds
# An operand is a function of (rng, format, shape), accumulators are one of (rng, format, Sums). Both return
# bits.

Operand = Callable[[np.random.Generator, Format, Shape], np.ndarray]


def any_finite(rng: np.random.Generator, form: Format, shape: Shape) -> np.ndarray:
    return form.finite(rng, shape)


def zero(rng: np.random.Generator, form: Format, shape: Shape) -> np.ndarray:
    return form.zeros(rng, shape)


def subnormal(rng: np.random.Generator, form: Format, shape: Shape) -> np.ndarray:
    return form.subnormals(rng, shape)


def around(center: float, width: float) -> Operand:
    """Exponents within width of a center."""
    return lambda rng, form, shape: form.window(rng, shape, center - width, center + width)


def normal(rng: np.random.Generator, form: Format, shape: Shape) -> np.ndarray:
    return form.truncated(rng.standard_normal(shape, np.float32))


def sparse(operand: Operand, share: float = 1 / 8) -> Operand:
    """Most numbers are zeros, of both signs."""

    def make(rng: np.random.Generator, form: Format, shape: Shape) -> np.ndarray:
        return np.where(rng.random(shape) < share, operand(rng, form, shape), form.zeros(rng, shape))

    return make


def one_hot(operand: Operand) -> Operand:
    """One nonzero number in each row, at any place."""

    def make(rng: np.random.Generator, form: Format, shape: Shape) -> np.ndarray:
        place = rng.integers(0, shape[-1], shape[:-1])[..., np.newaxis] == np.arange(shape[-1])
        return np.where(place, operand(rng, form, shape), form.zeros(rng, shape))

    return make


def special(operand: Operand, share: float) -> Operand:
    def make(rng: np.random.Generator, form: Format, shape: Shape) -> np.ndarray:
        return np.where(rng.random(shape) < share, form.special(rng, shape), operand(rng, form, shape))

    return make


def any_bits(rng: np.random.Generator, form: Format, shape: Shape) -> np.ndarray:
    return rng.integers(0, 2 ** (8 * form.dtype().itemsize), shape, np.uint64).astype(form.dtype)


def ones(_rng: np.random.Generator, form: Format, shape: Shape) -> np.ndarray:
    return np.full(shape, form.bias << form.fraction_bits << form.ignored, form.dtype)


def low_bits_of_infinities(rng: np.random.Generator, form: Format, shape: Shape) -> np.ndarray:
    """TF32: infinities but for the bits that are ignored, which would make a NaN of them in FP32."""
    infinity = form.codes(rng, np.full(shape, form.infinity))
    return np.where(rng.random(shape) < 1 / 16, infinity, form.window(rng, shape, -3, 3))


def pairs(operand: Operand) -> Operand:
    """Each number and its negative, at random places, so that products with `mirrored` cancel; a few are
    changed in their last bit."""

    def make(rng: np.random.Generator, form: Format, shape: Shape) -> np.ndarray:
        half = operand(rng, form, (*shape[:-1], shape[-1] // 2))
        top = np.array(form.sign << form.ignored, form.dtype)
        changed = (rng.random(half.shape) < 1 / 4).astype(form.dtype) << np.array(form.ignored, form.dtype)
        codes = np.concatenate([half, half ^ top ^ changed], -1)
        return codes[..., np.random.default_rng(0).permutation(shape[-1])]

    return make


def mirrored(operand: Operand) -> Operand:
    """The other operand of `pairs`."""

    def make(rng: np.random.Generator, form: Format, shape: Shape) -> np.ndarray:
        half = operand(rng, form, (*shape[:-1], shape[-1] // 2))
        return np.concatenate([half, half], -1)[..., np.random.default_rng(0).permutation(shape[-1])]

    return make


def big_and_small(rng: np.random.Generator, form: Format, shape: Shape) -> np.ndarray:
    """In each row a power of two and its negative, at any two places, and a small one at a third: whether it
    survives depends on which products are summed at once, and on how many bits they keep."""
    k = shape[-1]
    places = rng.permuted(np.broadcast_to(np.arange(k), shape), axis=-1)[..., :3]
    high = min(6, form.highest)
    big = form.power(rng, np.full(shape[:-1], high))
    codes = np.zeros(shape, form.dtype)
    top = np.array(form.sign << form.ignored, form.dtype)
    small = form.power(rng, rng.integers(high - 32, high - 6, shape[:-1]))
    for place, value in enumerate((big, big ^ top, small)):
        np.put_along_axis(codes, places[..., place, np.newaxis], value[..., np.newaxis], -1)
    return codes


def _small_exponents(form: Format) -> tuple[int, int]:
    """The exponents in `smallest`: a normal number's at even k, at odd k as small a one as there is."""
    return max(form.lowest, -100), max(form.lowest - form.fraction_bits, -100)


def smallest(rng: np.random.Generator, form: Format, shape: Shape) -> np.ndarray:
    """Small powers of two, one for even k and one for odd k."""
    return form.power(rng, np.resize(_small_exponents(form), shape))


def near_smallest(form_d: Format) -> Operand:
    """Beside `smallest`: a product near D's smallest number, at an even k, and a far smaller one, at an odd
    k. The second decides how the sum is rounded, unless it is lost beside a zero accumulator. That depends on
    the smallest E if the first product's operands are normal: a subnormal one would count as larger."""

    def make(rng: np.random.Generator, form: Format, shape: Shape) -> np.ndarray:
        bottom, rows = form_d.lowest - form_d.fraction_bits, shape[:-1]
        lost = -22 if form_d.type == Type.F16 else -9  # where the model loses it
        far = np.where(rng.random(rows) < 0.5, rng.integers(-28, -4, rows), rng.integers(-3, 4, rows) + lost)
        codes = np.zeros(shape, form.dtype)
        for odd, exponents in enumerate((rng.integers(-2, 1, rows), far)):
            value = form.power(rng, bottom + exponents - _small_exponents(form)[odd])
            place = 2 * rng.integers(0, shape[-1] // 2, rows) + odd
            np.put_along_axis(codes, place[..., np.newaxis], value[..., np.newaxis], -1)
        return codes

    return make


class Sums(NamedTuple):
    """What accumulators may depend on: the exact sums of the products, float64 [tiles, 64, n], which
    `cancelling` gets, or only their shape."""

    products: np.ndarray

    @property
    def shape(self) -> Shape:
        return self.products.shape


Accumulators = Callable[[np.random.Generator, Format, Sums], np.ndarray]


def acc_of(operand: Operand) -> Accumulators:
    return lambda rng, form, sums: operand(rng, form, sums.shape)


def acc_window(low: float, high: float) -> Accumulators:
    return lambda rng, form, sums: form.window(rng, sums.shape, low, high)


def no_acc(_rng: np.random.Generator, form: Format, sums: Sums) -> np.ndarray:
    return np.zeros(sums.shape, form.dtype)


def cancelling(rng: np.random.Generator, form: Format, sums: Sums) -> np.ndarray:
    """The negative of the sum of the products, except for its last few bits."""
    exact = form.truncated(np.nan_to_num(-sums.products, posinf=0, neginf=0))
    last = rng.integers(-8, 9, sums.shape)
    changed = exact.astype(np.int64) + np.where(exact & (form.sign - 1) > 8, last, 0)
    finite = (changed & (form.sign - 1)) < form.first_not_finite
    return np.where(finite, changed, exact).astype(form.dtype)


def half_way(rng: np.random.Generator, form: Format, sums: Sums) -> np.ndarray:
    """Near 2^10: beside the products of `halves`, many sums are half-way between FP16 numbers, or nearly."""
    return form.window(rng, sums.shape, 9, 11)


def with_special(rng: np.random.Generator, form: Format, sums: Sums) -> np.ndarray:
    finite = form.window(rng, sums.shape, -6, 6)
    return np.where(rng.random(sums.shape) < 0.5, form.special(rng, sums.shape), finite)


def largest(rng: np.random.Generator, form: Format, sums: Sums) -> np.ndarray:
    return form.codes(rng, np.full(sums.shape, form.first_not_finite - 1))


def halves(rng: np.random.Generator, form: Format, shape: Shape) -> np.ndarray:
    """Few nonzero numbers: powers of two from 2^-16 to 1. Products with ones are 1, a half or a quarter of
    the last FP16 bit at 2^10, or far less."""
    exponents = np.where(rng.random(shape) < 0.5, rng.integers(-2, 1, shape), rng.integers(-16, 1, shape))
    codes = form.power(rng, exponents)
    return np.where(rng.random(shape) < 3 / shape[-1], codes, form.zeros(rng, shape))


class Kind(NamedTuple):
    """One kind of input. With scale_d = 0 the first WGMMA ignores the accumulators."""

    a: Callable
    b: Callable
    acc: Callable
    instructions: int = 1
    scale_d: int = 1


def _float_kinds(instruction: Instruction) -> dict[str, Kind]:
    a, d = Format(instruction.a), Format(instruction.d)
    nan_acc = acc_of(lambda rng, form, shape: form.special(rng, shape))
    kinds = {
        "any operands": Kind(any_finite, any_finite, no_acc),
        "any operands and accumulators": Kind(any_finite, any_finite, acc_of(any_finite)),
        # How many bits survive the alignment, and in which direction they are cut.
        "exponents within 1": Kind(around(0, 1), around(0, 1), no_acc),
        "exponents within 3": Kind(around(0, 3), around(0, 3), acc_window(-8, 8)),
        "exponents within 6": Kind(around(0, 6), around(0, 6), acc_window(-14, 14)),
        "exponents within 12": Kind(around(0, 12), around(0, 12), acc_window(-30, 30)),
        "normal operands": Kind(normal, normal, no_acc),
        "normal operands and accumulators": Kind(normal, normal, acc_of(normal)),
        "larger accumulators": Kind(around(0, 2), around(0, 2), acc_window(5, 30)),
        "smaller accumulators": Kind(around(0, 2), around(0, 2), acc_window(-32, -5)),
        "cancelling pairs": Kind(pairs(around(0, 4)), mirrored(around(0, 4)), acc_window(-30, 0)),
        "cancelling pairs, no accumulators": Kind(pairs(around(0, 4)), mirrored(around(0, 4)), no_acc),
        "cancelling accumulators": Kind(around(0, 3), around(0, 3), cancelling),
        "cancelling accumulators, sparse": Kind(sparse(around(0, 6)), around(0, 3), cancelling),
        # Which products are summed at once.
        "one product": Kind(one_hot(around(0, 6)), around(0, 6), acc_window(-20, 20)),
        "big and small products": Kind(big_and_small, ones, no_acc),
        "big and small products, accumulators": Kind(big_and_small, ones, acc_window(-28, 12)),
        # Rounding of the result.
        "ties": Kind(halves, ones, half_way),
        "ties, no accumulators": Kind(sparse(around(0, 2), 1 / 4), sparse(around(0, 6), 1 / 2), no_acc),
        # Subnormal operands and results.
        "subnormal operands": Kind(subnormal, subnormal, acc_of(subnormal)),
        "subnormal operands, no accumulators": Kind(subnormal, subnormal, no_acc),
        "subnormal and other operands": Kind(
            subnormal, around(0, 6), acc_window(a.lowest - 12, a.lowest + 12)
        ),
        "subnormal accumulators": Kind(sparse(any_finite), any_finite, acc_of(subnormal)),
        "accumulators of -0": Kind(sparse(any_finite, 1 / 16), any_finite, acc_of(zero)),
        "no products, any accumulators": Kind(zero, any_finite, acc_of(any_finite)),
        "no products, subnormal accumulators": Kind(zero, any_finite, acc_of(subnormal)),
        # Results that are too large.
        "largest accumulators": Kind(any_finite, any_finite, largest),
        "largest accumulators, sparse": Kind(sparse(any_finite, 1 / 16), around(0, 3), largest),
        # NaNs and infinities.
        "special operands": Kind(
            special(around(0, 3), 1 / 128), special(around(0, 3), 1 / 128), acc_window(-6, 6)
        ),
        "special operands and zeros": Kind(
            special(sparse(around(0, 3)), 1 / 64), special(sparse(around(0, 3)), 1 / 64), no_acc
        ),
        "special operands and accumulators": Kind(
            special(around(0, 3), 1 / 256), special(around(0, 3), 1 / 256), with_special
        ),
        "special accumulators": Kind(sparse(any_finite), any_finite, nan_acc),
        "special accumulators, no products": Kind(zero, zero, nan_acc),
        "any bits": Kind(sparse(any_bits, 1 / 16), any_bits, acc_of(any_bits)),
        "chain: normal operands": Kind(normal, normal, no_acc, 4),
        "chain: exponents within 6": Kind(around(0, 6), around(0, 6), acc_window(-14, 14), 4),
        "chain: special operands": Kind(special(normal, 1 / 512), special(normal, 1 / 512), no_acc, 4),
    }
    # Products near the smallest numbers of D, beside zeros and small accumulators: what is lost there.
    small = (d.lowest - 8) / 2
    kinds |= {
        "tiny products": Kind(around(small, 6), around(small, 6), no_acc),
        "tiny products, sparse": Kind(sparse(around(small, 8)), around(small, 8), no_acc),
        "one tiny product": Kind(one_hot(around(small, 8)), around(small, 8), no_acc),
        "tiny products, subnormal accumulators": Kind(around(small, 8), around(small, 8), acc_of(subnormal)),
        "tiny products, small accumulators": Kind(
            sparse(around(small, 8)), around(small, 8), acc_window(d.lowest, d.lowest + 4)
        ),
    }
    if instruction.d == Type.F16 or a.lowest < -100:
        kinds["sums near the smallest number"] = Kind(near_smallest(d), smallest, no_acc)
    large = d.highest / 2
    if a.highest >= large:
        kinds |= {
            "huge products": Kind(
                sparse(around(large, 2)), around(large, 2), acc_window(d.highest - 3, d.highest)
            ),
            "huge products, no accumulators": Kind(sparse(around(large, 2)), around(large, 2), no_acc),
            "huge cancelling products": Kind(
                pairs(around(large + 3, 3)),
                mirrored(around(large + 3, 3)),
                acc_window(d.highest - 30, d.highest),
            ),
        }
    if instruction.a == Type.TF32:
        kinds["infinities with ignored bits"] = Kind(low_bits_of_infinities, around(0, 3), acc_window(-6, 6))
    if instruction.unit == Unit.WGMMA:
        kinds["ignored accumulators"] = Kind(normal, normal, nan_acc, scale_d=0)
        kinds["chain: ignored accumulators"] = Kind(normal, normal, nan_acc, 4, scale_d=0)
    return kinds


# --------------------------------------------------------------------------------------------------- integers


def _integer_kinds(instruction: Instruction) -> dict[str, Kind]:
    """As floating-point kinds, but an operand is a function of (rng, type, shape)."""

    def any_byte(rng: np.random.Generator, _type: Type, shape: Shape) -> np.ndarray:
        return rng.integers(0, 256, shape, np.uint8)

    def extreme(rng: np.random.Generator, type_: Type, shape: Shape) -> np.ndarray:
        return rng.choice(np.array([0, 1, 255, 0x7F, 0x80], np.uint8), shape)

    def small(rng: np.random.Generator, _type: Type, shape: Shape) -> np.ndarray:
        return rng.integers(-3, 4, shape).astype(np.uint8)

    def one_of_k(rng: np.random.Generator, _type: Type, shape: Shape) -> np.ndarray:
        place = rng.integers(0, shape[-1], shape[:-1])[..., np.newaxis] == np.arange(shape[-1])
        return np.where(place, rng.integers(0, 256, shape, np.uint8), np.uint8(0))

    def up_and_down(rng: np.random.Generator, type_: Type, shape: Shape) -> np.ndarray:
        """Large numbers of both signs at random places: sums that leave the range and return."""
        high = np.where(rng.random(shape) < 0.5, 0x7F, 0x80).astype(np.uint8)
        return np.where(rng.random(shape) < 0.9, high, rng.integers(0, 256, shape, np.uint8))

    def first_up(rng: np.random.Generator, _type: Type, shape: Shape) -> np.ndarray:
        """One sign up to some k, and the other from there on."""
        turn = rng.integers(0, shape[-1], shape[:-1])[..., np.newaxis]
        sign = rng.integers(0, 2, shape[:-1])[..., np.newaxis]
        return np.where((np.arange(shape[-1]) < turn) ^ (sign > 0), 0x7F, 0x80).astype(np.uint8)

    def signed(value: int) -> Accumulators:
        """Within a few products of value and of its negative."""

        def make(rng: np.random.Generator, _type: Type, sums: Sums) -> np.ndarray:
            near = value - rng.integers(0, 70000, sums.shape)
            return np.where(rng.random(sums.shape) < 0.5, near, -near - 1).astype(np.int32).view(np.uint32)

        return make

    def any_word(rng: np.random.Generator, _type: Type, sums: Sums) -> np.ndarray:
        return rng.integers(0, 1 << 32, sums.shape, np.uint32)

    def nothing(_rng: np.random.Generator, _type: Type, sums: Sums) -> np.ndarray:
        return np.zeros(sums.shape, np.uint32)

    limit = signed(2**31 - 1)
    kinds = {
        "any operands": Kind(any_byte, any_byte, nothing),
        "any operands and accumulators": Kind(any_byte, any_byte, any_word),
        "extreme operands": Kind(extreme, extreme, nothing),
        "one product": Kind(one_of_k, any_byte, any_word),
        "small operands, largest accumulators": Kind(small, small, limit),
        "any operands, largest accumulators": Kind(any_byte, any_byte, limit),
        "up and down, largest accumulators": Kind(up_and_down, extreme, limit),
        "first up, then down, largest accumulators": Kind(first_up, extreme, limit),
        "one product, largest accumulators": Kind(one_of_k, any_byte, limit),
        "chain: any operands": Kind(any_byte, any_byte, any_word, 4),
        "chain: largest accumulators": Kind(first_up, extreme, limit, 4),
    }
    if instruction.unit == Unit.WGMMA:
        kinds["ignored accumulators"] = Kind(any_byte, any_byte, any_word, scale_d=0)
    return kinds


# ---------------------------------------------------------------------------------------------- for the probe


def kinds_of(instruction: Instruction) -> dict[str, Kind]:
    integers = instruction.d == Type.S32
    return _integer_kinds(instruction) if integers else _float_kinds(instruction)


def make(instruction: Instruction, kind: Kind, rng: np.random.Generator, n: int, tiles: int) -> Operands:
    """Operands of one kind for WGMMAs of n columns, or for as many mma.sync."""
    k = kind.instructions * instruction.k
    shapes = (tiles, M, k), (tiles, n, k)
    if instruction.d == Type.S32:
        a, b = kind.a(rng, instruction.a, shapes[0]), kind.b(rng, instruction.b, shapes[1])
        return Operands(a, b, kind.acc(rng, instruction.d, Sums(np.empty((tiles, M, n)))))
    format_a, format_b = Format(instruction.a), Format(instruction.b)
    a, b = (
        np.ascontiguousarray(x) for x in (kind.a(rng, format_a, shapes[0]), kind.b(rng, format_b, shapes[1]))
    )
    products = np.empty((tiles, M, n))
    if kind.acc is cancelling:
        products = np.matmul(format_a.decode(a), format_b.decode(b).swapaxes(1, 2))
    return Operands(a, b, np.ascontiguousarray(kind.acc(rng, Format(instruction.d), Sums(products))))
