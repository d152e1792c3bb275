"""The arithmetic of Hopper's matrix instructions, bit for bit: every dense WGMMA and the common mma.sync.

`INSTRUCTIONS` names them, "wgmma.f32.bf16.bf16" for example; `multiply` computes one, and `cfunc_address` is
the same for C callers. E4M3 WGMMAs into FP32 have a faster model in tensor_core.py, which is what this module
calls for them.

**Floating point.** Each output is a fused sum of the accumulator and the products of 32 bytes of K: 32 FP8
elements, 16 of FP16 or BF16, or 8 of TF32.

1. Products are exact. A product's exponent is the sum of its operands' exponents, not normalised. A subnormal
   number has the exponent of the smallest normal one, and keeps its leading zeros.
2. E is the largest exponent among the nonzero products and the accumulator, but at least -133 where the
   accumulator is FP32, and at least -21 where it is FP16. So products may be lost beside a zero accumulator.
3. Each product, and the accumulator, is truncated toward zero to a multiple of 2^(E - F), where F is 13 for a
   WGMMA of FP8 operands and 25 for all others.
4. They are added exactly. The sum is rounded to D's type: to FP16 to nearest, ties to even; to FP32 toward
   zero, to 23 fraction bits, or to 13 where F is 13. What is too large becomes infinite, in FP32 too. A zero
   is +0, also where a negative sum is rounded to it.
5. NaN and infinite operands and accumulators count as in IEEE 754: a NaN, an infinity times zero or opposite
   infinities give NaN, which is 0x7FFFFFFF in FP32 and 0x7FFF in FP16; otherwise an infinity gives itself.
   Products of finite operands are never infinite, whatever their exponent.
6. TF32 operands are FP32 numbers whose last 13 bits are ignored, in NaNs too.

Hopper has no mma.sync of FP8 operands. ptxas (of CUDA 13.0; read in its machine code) makes two mma.sync of
FP16 out of one, each over 16 of the 32 elements: first those at k % 4 = 0 and 1, from an accumulator of zero,
then those at k % 4 = 2 and 3. Operands are converted to FP16, where E4M3's subnormal numbers are normal, so
that point 1 gives them their own exponents. The accumulator is added to the sum by an ordinary addition, in
FP32 or FP16, to nearest even.

**Integers.** Products and sums are exact. The result wraps around or, with .satfinite, is clamped, once, at
the end.

Sources. Points 1 to 6 are those of MMA-Sim (P. Xie and others, arXiv:2511.10909; version 2.1.1 of its
code), which says nothing on integers, nor on mma.sync of FP8 operands. F. A. Khattak, M. Mikaitis, "Accurate
Models of NVIDIA Tensor Cores", arXiv:2512.07004, is the source of the FP8 model. All was compared with an
H200, bit for bit (`python -m gemm_ladder mma-probe`): figures/data/mma_probe.json says how many results of
each instruction, all of them equal.

Sums are computed in float64, where no step rounds: a product has at most 22 significant bits, and a sum of at
most 33 integers below 2^27 has 33.
"""

from __future__ import annotations

import enum
import functools
import threading
from typing import NamedTuple

import numpy as np
from numba import carray, cfunc, njit, types

from . import tensor_core

GROUP_BYTES = 32  # bytes of K that are summed at once; all WGMMAs have as many


class Type(enum.IntEnum):
    """The types of operands and accumulators; kernels/include/mma_types.cuh has the same numbers."""

    E4M3 = 0
    E5M2 = 1
    BF16 = 2
    F16 = 3
    TF32 = 4
    S8 = 5
    U8 = 6
    F32 = 7
    S32 = 8


class Unit(enum.IntEnum):
    """Whose arithmetic it is: `wgmma.mma_async` or `mma.sync`."""

    WGMMA = 0
    MMA = 1


BYTES = {Type.E4M3: 1, Type.E5M2: 1, Type.BF16: 2, Type.F16: 2, Type.TF32: 4, Type.S8: 1, Type.U8: 1} | {
    Type.F32: 4,
    Type.S32: 4,
}
STORAGE = {1: np.uint8, 2: np.uint16, 4: np.uint32}  # the dtype of elements of so many bytes, as bits
EXPONENT_BITS = {Type.E4M3: 4, Type.E5M2: 5, Type.BF16: 8, Type.F16: 5, Type.TF32: 8, Type.F32: 8}
FRACTION_BITS = {Type.E4M3: 3, Type.E5M2: 2, Type.BF16: 7, Type.F16: 10, Type.TF32: 10, Type.F32: 23}
FP8_TYPES = (Type.E4M3, Type.E5M2)
INTEGER_TYPES = (Type.S8, Type.U8)

# The same as arrays, for Numba, which takes them as constants. TF32 has 13 more bits, which are ignored.
_E4M3, _E5M2, _F16, _F32, _S8, _S32 = (
    np.int64(t) for t in (Type.E4M3, Type.E5M2, Type.F16, Type.F32, Type.S8, Type.S32)
)
_BYTES = np.array([BYTES[t] for t in Type], np.int64)
_EXPONENT_BITS = np.array([EXPONENT_BITS.get(t, 0) for t in Type], np.int64)
_FRACTION_BITS = np.array([FRACTION_BITS.get(t, 0) for t in Type], np.int64)
_IGNORED_BITS = np.array([13 if t == Type.TF32 else 0 for t in Type], np.int64)

_FLOOR_F32, _FLOOR_F16 = -133, -21
_KEPT_FP8_WGMMA, _KEPT = 13, 25  # fraction bits that survive the alignment
_ZERO_EXPONENT = -10000  # of a zero: below every floor, also when another operand's exponent is added
_NAN_F32, _NAN_F16, _INFINITY_F16 = np.uint32(0x7FFFFFFF), np.uint16(0x7FFF), np.uint16(0x7C00)
_DOUBLE_BIAS, _DOUBLE_FRACTION = 1023, 52


class Instruction(NamedTuple):
    """One matrix instruction, without its M and N, which do not affect its arithmetic.

    Attributes:
        unit, a, b, d: whose it is, the operands' types, the accumulators'.
        satfinite: integer sums are clamped, not wrapped.
    """

    unit: Unit
    a: Type
    b: Type
    d: Type
    satfinite: bool = False

    @property
    def name(self) -> str:
        """ "wgmma.f32.e4m3.e5m2", "mma.s32.s8.u8.satfinite": the unit, D, A and B."""
        parts = [self.unit, self.d, self.a, self.b]
        return ".".join(part.name.lower() for part in parts) + ".satfinite" * self.satfinite

    @property
    def k(self) -> int:
        """Elements of K in 32 bytes: a WGMMA's K, and that of the largest mma.sync."""
        return GROUP_BYTES // BYTES[self.a]


def _instructions() -> dict[str, Instruction]:
    found = []
    for unit in Unit:
        for d in (Type.F32, Type.F16):
            found += [Instruction(unit, a, b, d) for a in FP8_TYPES for b in FP8_TYPES]
            found.append(Instruction(unit, Type.F16, Type.F16, d))
        found += [Instruction(unit, t, t, Type.F32) for t in (Type.BF16, Type.TF32)]
        found += [
            Instruction(unit, a, b, Type.S32, satfinite)
            for a in INTEGER_TYPES
            for b in INTEGER_TYPES
            for satfinite in (False, True)
        ]
    return {instruction.name: instruction for instruction in found}


INSTRUCTIONS = _instructions()
_SUPPORTED = np.zeros((len(Unit), *[len(Type)] * 3), np.bool_)  # [unit, a, b, d]
for _one in INSTRUCTIONS.values():
    _SUPPORTED[_one.unit, _one.a, _one.b, _one.d] = True


# ------------------------------------------------------------------------------------- from bits to numbers


@tensor_core._compiled(njit, nogil=True)
def _power(exponent):
    """2^exponent, float64, for an exponent of a normal number."""
    return np.int64((np.int64(exponent) + _DOUBLE_BIAS) << _DOUBLE_FRACTION).view(np.float64)


@tensor_core._compiled(njit, nogil=True)
def _decode(codes, type_, values, exponents):
    """The numbers in codes, uint8 [rows, bytes]: float64 values and int32 exponents, [rows, elements]."""
    size, ignored = _BYTES[type_], _IGNORED_BITS[type_]
    exponent_bits, fraction_bits = _EXPONENT_BITS[type_], _FRACTION_BITS[type_]
    bias, largest_field = (1 << (exponent_bits - 1)) - 1, (1 << exponent_bits) - 1
    rows, count = values.shape
    for i in range(rows):
        for k in range(count):
            code = np.int64(0)
            for byte in range(size):
                code |= np.int64(codes[i, k * size + byte]) << (8 * byte)
            code >>= ignored
            fraction = code & ((1 << fraction_bits) - 1)
            field = code >> fraction_bits & largest_field
            exponent = max(field, 1) - bias
            significand = fraction + (np.int64(field > 0) << fraction_bits)
            value = np.float64(significand) * _power(exponent - fraction_bits)
            if type_ == _E4M3:
                if code & 0x7F == 0x7F:
                    value = np.nan
            elif field == largest_field:
                value = np.nan if fraction else np.inf
            values[i, k] = -value if code >> (exponent_bits + fraction_bits) else value
            exponents[i, k] = exponent if value != 0 else _ZERO_EXPONENT


# --------------------------------------------------------------------------------------- from numbers to bits


@tensor_core._compiled(njit, nogil=True)
def _truncate_to_f32(sums, fraction_bits, out):
    """FP32 bits, uint32, of float64 sums of the same shape, rounded toward zero to so many fraction bits."""
    mask = ~((np.int64(1) << (_DOUBLE_FRACTION - fraction_bits)) - 1)
    smallest_normal = _power(-126)
    to_unit, unit = _power(126 + fraction_bits), _power(-126 - fraction_bits)
    for i in range(sums.shape[0]):
        for j in range(sums.shape[1]):
            x = sums[i, j]
            kept = np.int64(np.float64(x).view(np.int64) & mask).view(np.float64)
            if abs(x) < smallest_normal:
                kept = np.trunc(x * to_unit) * unit
            bits = np.float32(kept + 0.0).view(np.uint32)  # -0.0 + 0.0 is 0.0
            out[i, j] = bits if x == x else _NAN_F32


@tensor_core._compiled(njit, nogil=True)
def _round_to_f16(sums, out):
    """FP16 bits, uint16, of float64 sums of the same shape, rounded to nearest, ties to even."""
    for i in range(sums.shape[0]):
        for j in range(sums.shape[1]):
            x = sums[i, j]
            magnitude = abs(x)
            exponent = max((np.float64(magnitude).view(np.int64) >> _DOUBLE_FRACTION) - _DOUBLE_BIAS, -14)
            exponent = min(exponent, 16)
            count = np.rint(magnitude * _power(10 - exponent))  # of 2^(exponent - 10), up to 2048
            # Adding is right for subnormals, and where rounding reaches the next power of two: the carry goes
            # into the exponent.
            code = np.int64(min(count, 2048.0)) + ((exponent + 14) << 10)
            code = min(code, np.int64(_INFINITY_F16)) if x == x else np.int64(_NAN_F16)
            out[i, j] = np.uint16(code | (np.int64(x < 0 and code > 0) << 15))


# ------------------------------------------------------------------------------------------- the instructions


@tensor_core._compiled(njit, nogil=True)
def _fused_sums(a, a_exponents, b, b_exponents, acc, acc_exponents, kept, floor):
    """acc [m, n] += a [m, k] @ b [k, n] in place, float64, not yet rounded: steps 1 to 4 of the model."""
    m, n = acc.shape
    count = a.shape[1]
    top = np.empty(n, np.int32)  # E
    scale = np.empty(n, np.float64)  # 2^(kept - E)
    for i in range(m):
        total = acc[i]
        for j in range(n):
            top[j] = max(acc_exponents[i, j], np.int32(floor))
        for k in range(count):
            exponent = a_exponents[i, k]
            for j in range(n):
                top[j] = max(top[j], np.int32(exponent + b_exponents[k, j]))
        for j in range(n):
            scale[j] = _power(kept - top[j])
            total[j] = np.trunc(total[j] * scale[j])
        for k in range(count):
            value = a[i, k]
            for j in range(n):
                total[j] += np.trunc(value * b[k, j] * scale[j])
        for j in range(n):
            total[j] = total[j] * _power(top[j] - kept)


@tensor_core._compiled(njit, nogil=True)
def _columns(x, first, step, count):
    """Columns of x [rows, k]: `count` of every `step`, from `first` on."""
    rows, k = x.shape
    out = np.empty((rows, k // step * count), x.dtype)
    for i in range(rows):
        for j in range(out.shape[1]):
            out[i, j] = x[i, j // count * step + first + j % count]
    return out


@tensor_core._compiled(njit, nogil=True)
def _normalise(values, exponents):
    """The exponents that E4M3 numbers, float64 [rows, elements], have in FP16, where none is subnormal."""
    for i in range(values.shape[0]):
        for k in range(values.shape[1]):
            if values[i, k] != 0:
                bits = np.float64(abs(values[i, k])).view(np.int64)
                exponents[i, k] = (bits >> _DOUBLE_FRACTION) - _DOUBLE_BIAS


@tensor_core._compiled(njit, nogil=True)
def _round(sums, type_d, fraction_bits, d):
    """The accumulators d, uint8 [m, bytes], of these sums."""
    if type_d == _F32:
        _truncate_to_f32(sums, fraction_bits, d.view(np.uint32))
    else:
        _round_to_f16(sums, d.view(np.uint16))


@tensor_core._compiled(njit, nogil=True)
def _float_group(a, a_exponents, b, b_exponents, type_d, kept, d):
    """One fused sum: a [m, k], b [n, k], and d, the accumulators' bytes, uint8 [m, bytes], in place."""
    sums = np.empty((a.shape[0], b.shape[0]))
    exponents = np.empty(sums.shape, np.int32)
    _decode(d, type_d, sums, exponents)
    floor = _FLOOR_F32 if type_d == _F32 else _FLOOR_F16
    _fused_sums(a, a_exponents, b.T.copy(), b_exponents.T.copy(), sums, exponents, kept, floor)
    _round(sums, type_d, min(kept, 23), d)


@tensor_core._compiled(njit, nogil=True)
def _add_to_nearest(x, y, type_d):
    """x += y in FP32 or FP16, to nearest even, as FADD and HADD2: bytes, uint8 [m, bytes]. y is never -0."""
    elements = x.shape[1] // _BYTES[type_d]
    left, right = np.empty((x.shape[0], elements)), np.empty((x.shape[0], elements))
    exponents = np.empty(left.shape, np.int32)
    _decode(x, type_d, left, exponents)
    _decode(y, type_d, right, exponents)
    if type_d == _F32:
        # float64 has more than twice as many bits as FP32, and two more: rounding twice is rounding once.
        out = x.view(np.float32)
        for i in range(left.shape[0]):
            for j in range(elements):
                out[i, j] = np.float32(left[i, j] + right[i, j])
                if out[i, j] != out[i, j]:
                    out.view(np.uint32)[i, j] = _NAN_F32
    else:
        _round_to_f16(left + right, x.view(np.uint16))


@tensor_core._compiled(njit, nogil=True)
def _float(unit, type_a, type_b, type_d, a, b, d):
    """An instruction of floating-point operands, over all of K."""
    m, n = a.shape[0], b.shape[0]
    k = a.shape[1] // _BYTES[type_a]
    a_values, b_values = np.empty((m, k)), np.empty((n, k))
    a_exponents, b_exponents = np.empty((m, k), np.int32), np.empty((n, k), np.int32)
    _decode(a, type_a, a_values, a_exponents)
    _decode(b, type_b, b_values, b_exponents)
    fp8 = type_a in (_E4M3, _E5M2)
    if unit == Unit.MMA and type_a == _E4M3:
        _normalise(a_values, a_exponents)
    if unit == Unit.MMA and type_b == _E4M3:
        _normalise(b_values, b_exponents)
    group = GROUP_BYTES // _BYTES[type_a]
    for start in range(0, k, group):
        end = start + group
        left, left_exponents = a_values[:, start:end].copy(), a_exponents[:, start:end].copy()
        right, right_exponents = b_values[:, start:end].copy(), b_exponents[:, start:end].copy()
        if fp8 and unit == Unit.MMA:
            sums = np.zeros_like(d)
            for first in (0, 2):
                _float_group(
                    _columns(left, first, 4, 2),
                    _columns(left_exponents, first, 4, 2),
                    _columns(right, first, 4, 2),
                    _columns(right_exponents, first, 4, 2),
                    type_d,
                    _KEPT,
                    sums,
                )
            _add_to_nearest(d, sums, type_d)
        else:
            kept = _KEPT_FP8_WGMMA if fp8 else _KEPT
            _float_group(left, left_exponents, right, right_exponents, type_d, kept, d)


@tensor_core._compiled(njit, nogil=True)
def _integers(codes, type_):
    """int32 [k, rows] of codes, uint8 [rows, k]."""
    out = np.empty((codes.shape[1], codes.shape[0]), np.int32)
    for i in range(codes.shape[0]):
        for k in range(codes.shape[1]):
            code = np.int32(codes[i, k])
            out[k, i] = code - 256 if type_ == _S8 and code >= 128 else code
    return out


@tensor_core._compiled(njit, nogil=True)
def _integer(type_a, type_b, satfinite, a, b, d):
    """An instruction of integer operands, over all of K; d int32 [m, n], in place."""
    left, right = _integers(a, type_a), _integers(b, type_b)
    m, n = d.shape
    total = np.empty(n, np.int32)
    for i in range(m):
        total[:] = 0
        for k in range(a.shape[1]):
            value = left[k, i]
            for j in range(n):
                total[j] += value * right[k, j]
        for j in range(n):
            exact = np.int64(d[i, j]) + total[j]
            if satfinite:
                exact = min(max(exact, -(2**31)), 2**31 - 1)
            d[i, j] = np.int32(exact)


@tensor_core._compiled(njit, nogil=True)
def _multiply(unit, type_a, type_b, type_d, satfinite, a, b, d):
    """Bytes, all uint8: a [m, k bytes], b [n, k bytes], d [m, bytes], in place."""
    if type_d == _S32:
        for start in range(0, a.shape[1], GROUP_BYTES):
            end = start + GROUP_BYTES
            _integer(
                type_a, type_b, satfinite, a[:, start:end].copy(), b[:, start:end].copy(), d.view(np.int32)
            )
    else:
        _float(unit, type_a, type_b, type_d, a, b, d)


# ------------------------------------------------------------------------------------------------ for callers


def _pointers(unit, type_a, type_b, type_d, satfinite, rows, n, k_bytes, a, b, d):
    """`_multiply` for C callers, as `cfunc_address` says."""
    known = 0 <= unit < 2 and min(type_a, type_b, type_d) >= 0 and max(type_a, type_b, type_d) < 9
    if not known or not _SUPPORTED[unit, type_a, type_b, type_d] or (satfinite and type_d != _S32):
        return 1
    fp8 = type_a in (_E4M3, _E5M2)
    half = k_bytes == GROUP_BYTES // 2 and unit == Unit.MMA and not fp8
    if k_bytes <= 0 or (k_bytes % GROUP_BYTES and not half):
        return 1
    if unit == 0 and type_a == _E4M3 and type_b == _E4M3 and type_d == _F32 and k_bytes == GROUP_BYTES:
        tensor_core._wgmma(
            carray(a, (rows, GROUP_BYTES)), carray(b, (n, GROUP_BYTES)), carray(d, (rows, n), np.float32)
        )
        return 0
    d_bytes = n * _BYTES[type_d]
    _multiply(
        unit,
        type_a,
        type_b,
        type_d,
        satfinite != 0,
        carray(a, (rows, k_bytes)),
        carray(b, (n, k_bytes)),
        carray(d, (rows, d_bytes), np.uint8),
    )
    return 0


@functools.cache
def _cfunc():
    operand, number = types.CPointer(types.uint8), types.int64
    signature = types.int64(*[number] * 8, operand, operand, types.voidptr)
    return tensor_core._compiled(cfunc, signature)(_pointers)


_cfunc_lock = threading.Lock()


def cfunc_address() -> int:
    """`multiply`'s address, a C function:

        int64_t mma(int64_t unit, int64_t type_a, int64_t type_b, int64_t type_d, int64_t satfinite,
                    int64_t rows, int64_t n, int64_t k_bytes, const uint8_t* a, const uint8_t* b, void* acc)

    It adds to acc [rows][n], of type_d, the product of a [rows][k_bytes] and b [n][k_bytes], of type_a and
    type_b, all row-major, without gaps and aligned to their elements. `unit` is a `Unit`, the types are
    `Type`s. TF32 elements have 4 bytes, FP16 accumulators 2. k_bytes is 32; or 16, for an mma.sync of other
    types than FP8; or a multiple of 32, for as many instructions, one after another.

    Two things are the caller's. For a WGMMA with `scale-d` false, acc holds zeros. For one with `imm-scale-a`
    or `imm-scale-b` of -1, the signs of that operand's elements are changed.

    It returns 0, or 1 without having done anything where there is no such instruction. Any thread may call
    it, holding the GIL or not. The address is valid for the life of the process. The first call of this
    function compiles it (10 s), or loads what an earlier process has compiled.
    """
    with _cfunc_lock:
        return _cfunc().address


def _bytes_of(x: np.ndarray, type_: Type, what: str) -> np.ndarray:
    x = np.ascontiguousarray(x)
    if x.ndim != 2 or x.dtype.itemsize != BYTES[type_]:
        raise ValueError(
            f"{what} of shape {x.shape} and dtype {x.dtype} was given; a matrix of {BYTES[type_]}-byte "
            f"elements ({type_.name}) is needed"
        )
    return x.view(np.uint8)


def multiply(instruction: Instruction, a: np.ndarray, b: np.ndarray, acc: np.ndarray) -> np.ndarray:
    """`acc + a @ b.T`, as the instruction computes it.

    Args:
        instruction: of `INSTRUCTIONS`.
        a, b: [m, k] and [n, k], in any dtype of the size of their type's elements: what counts are the bits.
            TF32 elements are FP32 numbers. k is `instruction.k` or a multiple of it, for several
            instructions, each adding to the result of the last; or half of it, as some mma.sync have. m and n
            may be any size, because outputs do not affect one another.
        acc: [m, n], 4-byte elements, or 2-byte ones for FP16; not changed.

    Returns:
        [m, n], of acc's dtype.

    Raises:
        ValueError: other shapes or sizes of elements.
    """
    a, b = _bytes_of(a, instruction.a, "a"), _bytes_of(b, instruction.b, "b")
    out = np.array(acc, order="C")
    d = _bytes_of(out, instruction.d, "an accumulator")
    k = a.shape[1]
    if k != b.shape[1] or out.shape != (a.shape[0], b.shape[0]):
        raise ValueError(
            f"operands of {a.shape} and {b.shape} bytes and an accumulator {out.shape} were given; [m, k], "
            "[n, k] and [m, n] are needed"
        )
    half = k == GROUP_BYTES // 2 and instruction.unit == Unit.MMA and instruction.a not in FP8_TYPES
    if k % GROUP_BYTES and not half:
        raise ValueError(f"k is {k // BYTES[instruction.a]}; a multiple of {instruction.k} is needed")
    fast = instruction == INSTRUCTIONS["wgmma.f32.e4m3.e4m3"]
    if fast:
        for start in range(0, k, GROUP_BYTES):
            part = slice(start, start + GROUP_BYTES)
            tensor_core._wgmma(a[:, part].copy(), b[:, part].copy(), d.view(np.float32))
    else:
        _multiply(*map(int, instruction[:4]), instruction.satfinite, a, b, d)
    return out
