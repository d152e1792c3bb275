"""The arithmetic of Hopper's FP8 tensor cores, bit for bit, and of the kernels built on it.

One `wgmma.mma_async.m64nNk32.f32.e4m3.e4m3` computes each of its outputs from 32 products and an FP32
accumulator:

1. Products are exact. A product's exponent is the sum of its operands' exponents, not normalised: an
   operand's exponent is at least -6 (a subnormal keeps its leading zeros), so a product of exponent e lies in
   [2^(e-6), 2^(e+2)).
2. E is the largest exponent among the nonzero products and the accumulator.
3. Each product, and the accumulator, is truncated toward zero to a multiple of 2^(E - 13).
4. They are added exactly; the sum is truncated toward zero to 13 fraction bits of its own exponent (at least
   -126). A zero sum is +0. NaN is 0x7FFFFFFF, whatever caused it.

So an accumulator keeps 14 significant bits, not FP32's 24: that is why the kernels promote the sum of each
K block (128 of K) into FP32 registers of the CUDA cores. The promotion is IEEE's `fmaf`; it is here as well.

Source of the model: F. A. Khattak, M. Mikaitis, "Accurate Models of NVIDIA Tensor Cores", arXiv:2512.07004.

No step below rounds: a product has at most 8 significant bits, scaling by a power of two keeps them, and a
sum of 33 integers below 2^15 fits an int32 (and, at most 2^20, a float32) with room to spare.
"""

from __future__ import annotations

import functools
import threading

import numpy as np
from llvmlite import ir
from numba import carray, cfunc, njit, types
from numba.extending import intrinsic

from . import fp8
from .lanes import FLOAT32, INT8, INT32, LANES, Lanes, size_of, transpose

K_INSTRUCTION = LANES  # elements of K that one FP8 WGMMA adds up: 32, a row of A is a vector of codes

_FRACTION_BITS = 13  # what survives the alignment, and what the result keeps
_BIAS = 127
# Bits of FP32 numbers, as int32: the sign, the exponent and 13 of the 23 fraction bits; and two values.
_KEEP_MASK, _INFINITY, _NAN = -0x400, 0x7F800000, 0x7FFFFFFF

# The exponents of nonzero products are from -12 to 16. Zero gets an exponent so low, and NaN one so high,
# that its sum with any other operand's lies outside of that range, and within int8. So the largest exponent
# of all products tells whether one of them is not zero, and whether one of them is NaN.
_ZERO_EXPONENT, _NAN_EXPONENT = -40, 60
_NO_PRODUCT, _LARGEST_PRODUCT = -13, 16


def _compiled(decorator, *args, **options):
    """`decorator(*args, cache=True, **options)`, or without the cache where no folder for it can be written.

    Numba tries NUMBA_CACHE_DIR, this package's __pycache__ and the user's cache folder, and gives up after
    that.
    """

    def wrap(function):
        try:
            return decorator(*args, cache=True, **options)(function)
        except RuntimeError as error:
            if "cannot cache" not in str(error):
                raise
            return decorator(*args, **options)(function)

    return wrap


@intrinsic
def fma(_typing, a, b, c):
    """CUDA's fmaf for Numba code: float32 a * b + c, rounded once. (Through float64 it would be twice.)"""
    if not all(argument == types.float32 for argument in (a, b, c)):
        return None  # Numba reports the types

    def generate(_context, builder, _signature, arguments):
        f32 = ir.FloatType()
        function = builder.module.declare_intrinsic("llvm.fma", [f32], ir.FunctionType(f32, [f32] * 3))
        return builder.call(function, arguments)

    return types.float32(a, b, c), generate


def _decoded(codes: Lanes) -> tuple[Lanes, Lanes]:
    """E4M3 codes, int8 -> their values, FP32, and exponents, int8. The value of NaN is 0."""
    codes = codes.to_int32()
    magnitude = codes & 0x7F
    is_number = magnitude.compare("!=", 0x7F)
    # FP32 has the same fields; its exponents are 127 - 7 higher.
    value = ((magnitude << 20).bits(FLOAT32) * 2.0**120).bits(INT32) | codes & -0x80000000
    value = is_number.choose(value, 0).bits(FLOAT32)
    exponent = (magnitude >> 3).max(1) + -7
    exponent = magnitude.compare("!=", 0).choose(exponent, _ZERO_EXPONENT)
    return value, is_number.choose(exponent, _NAN_EXPONENT).to_int8()


def _store_decoded(builder, codes, values, exponents, at):
    """Stores what _decoded makes of the codes at element `at` of what `values` and `exponents` point to."""
    value, exponent = _decoded(codes)
    value.store(builder.add(values, values.type(at * size_of(FLOAT32))))
    exponent.store(builder.add(exponents, exponents.type(at)))


@intrinsic
def _decode_row(_typing, codes, values, exponents):
    """LANES codes, by addresses: FP32 values and int8 exponents."""

    def generate(context, builder, _signature, arguments):
        codes, values, exponents = arguments
        _store_decoded(builder, Lanes.load(builder, INT8, codes), values, exponents, 0)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 3), generate


@intrinsic
def _decode_columns(_typing, codes, values, exponents):
    """The same of codes [LANES, 32], by addresses; values and exponents are [32, LANES]."""

    def generate(context, builder, _signature, arguments):
        codes, values, exponents = arguments
        rows = [
            Lanes.load(builder, INT8, builder.add(codes, codes.type(row * K_INSTRUCTION)))
            for row in range(LANES)
        ]
        for k, column in enumerate(transpose(rows)):
            _store_decoded(builder, column, values, exponents, k * LANES)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 3), generate


@intrinsic
def _add_products(_typing, acc, a_values, a_exponents, b_values, b_exponents):
    """A row of A times LANES columns of B, by addresses: acc = tensor_core(acc + products), FP32 [LANES].

    Values are FP32 and exponents int8: of the row [32], of the columns [32, LANES].
    """

    def generate(context, builder, _signature, arguments):
        acc, a_values, a_exponents, b_values, b_exponents = arguments

        def of_a(element, base, k):
            return Lanes.repeat(builder, element, builder.add(base, base.type(k * size_of(element))))

        def of_b(element, base, k):
            return Lanes.load(builder, element, builder.add(base, base.type(k * LANES * size_of(element))))

        old = Lanes.load(builder, INT32, acc)
        top = of_b(INT8, b_exponents, 0).number(_NO_PRODUCT)
        for k in range(K_INSTRUCTION):
            top = top.max(of_a(INT8, a_exponents, k) + of_b(INT8, b_exponents, k))
        top = top.to_int32()  # the largest exponent of all products
        largest = top.max((old >> 23 & 255) + -_BIAS)  # E
        scale = (_FRACTION_BITS + _BIAS - largest << 23).bits(FLOAT32)  # 2^(13 - E)
        magnitude = old & 0x7FFFFFFF
        finite = magnitude.compare("<", _INFINITY)
        # The sum, in units of 2^(E - 13). Conversions to integers truncate toward zero.
        total = (finite.choose(old, 0).bits(FLOAT32) * scale).to_int32()
        for k in range(K_INSTRUCTION):
            product = of_b(FLOAT32, b_values, k) * scale * of_a(FLOAT32, a_values, k)
            total = total + product.to_int32()
        kept = (total.to_float32().bits(INT32) & _KEEP_MASK).bits(FLOAT32)
        unit = (largest + (_BIAS - _FRACTION_BITS) << 23).bits(FLOAT32)  # 2^(E - 13)
        new = finite.choose((kept * unit).bits(INT32), old)  # an infinite accumulator stays as it is
        # Only the accumulator, which may be too small for the scale above.
        alone = (magnitude & _KEEP_MASK).compare("!=", 0).choose(old & _KEEP_MASK, 0)
        new = top.compare("==", _NO_PRODUCT).choose(alone, new)
        new = top.compare("<=", _LARGEST_PRODUCT).choose(new, _NAN)
        magnitude.compare("<=", _INFINITY).choose(new, _NAN).store(acc)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 5), generate


@_compiled(njit, nogil=True)
def _decode(codes, values, exponents):
    """FP32 values and int8 exponents of B's E4M3 codes, uint8 [n, 32]. Both are [ceil(n / LANES), 32, LANES]:
    groups of LANES columns, the last of them filled up with zeros."""
    n = codes.shape[0]
    for group in range(values.shape[0]):
        first = group * LANES
        if first + LANES <= n:
            columns = codes[first : first + LANES]
        else:
            columns = np.zeros((LANES, K_INSTRUCTION), np.uint8)
            columns[: n - first] = codes[first:]
        _decode_columns(columns.ctypes.data, values[group].ctypes.data, exponents[group].ctypes.data)


@_compiled(njit, nogil=True)
def _multiply(a, b_values, b_exponents, acc):
    """`_wgmma` with what `_decode` makes of b."""
    m, n = acc.shape
    a_values, a_exponents = np.empty((m, K_INSTRUCTION), np.float32), np.empty((m, K_INSTRUCTION), np.int8)
    for i in range(m):
        _decode_row(a[i].ctypes.data, a_values[i].ctypes.data, a_exponents[i].ctypes.data)
    rest = np.zeros(LANES, np.float32)  # for columns that do not fill all lanes
    for group in range(b_values.shape[0]):
        first = group * LANES
        values, exponents = b_values[group].ctypes.data, b_exponents[group].ctypes.data
        for i in range(m):
            row_values, row_exponents = a_values[i].ctypes.data, a_exponents[i].ctypes.data
            if first + LANES <= n:
                _add_products(acc[i, first:].ctypes.data, row_values, row_exponents, values, exponents)
            else:
                rest[: n - first] = acc[i, first:]
                _add_products(rest.ctypes.data, row_values, row_exponents, values, exponents)
                acc[i, first:] = rest[: n - first]


@_compiled(njit, nogil=True)
def _wgmma(a, b, acc):
    """acc = tensor_core(acc + a @ b.T), in place: float32 [m, n] and E4M3 codes, uint8 [m, 32], [n, 32]."""
    shape = ((b.shape[0] + LANES - 1) // LANES, K_INSTRUCTION, LANES)
    values, exponents = np.empty(shape, np.float32), np.empty(shape, np.int8)
    _decode(b, values, exponents)
    _multiply(a, values, exponents, acc)


@_compiled(njit, nogil=True)
def _promote(partial, sfa, sfb, acc, block):
    """acc [m, n] = fmaf(partial [m, n], fl32(sfa[i, block] * sfb[j / 128, block]), acc), in place."""
    m, n = acc.shape
    for i in range(m):
        for j in range(n):
            acc[i, j] = fma(partial[i, j], sfa[i, block] * sfb[j // fp8.SCALE_BLOCK, block], acc[i, j])


@_compiled(njit, nogil=True)
def _promote_1d1d(partial, sfa, sfb, acc, block):
    """As `_promote`, with a scale for each row of B: sfb[j, block]."""
    m, n = acc.shape
    for i in range(m):
        for j in range(n):
            acc[i, j] = fma(partial[i, j], sfa[i, block] * sfb[j, block], acc[i, j])


@_compiled(njit, nogil=True)
def _fma_block(a, b_transposed, partial):
    """partial [m, n] = a [m, kb] @ b_transposed [kb, n], float32, each output by fmaf in k order from +0."""
    m, n = partial.shape
    partial[:] = 0
    for i in range(m):
        for k in range(a.shape[1]):
            value = a[i, k]
            for j in range(n):
                partial[i, j] = fma(value, b_transposed[k, j], partial[i, j])


def _wgmma_pointers(m, n, a, b, acc):
    """`_wgmma` for C callers: uint8 a[m][32], uint8 b[n][32], float acc[m][n], all row-major."""
    _wgmma(carray(a, (m, K_INSTRUCTION)), carray(b, (n, K_INSTRUCTION)), carray(acc, (m, n)))


def _decode_pointers(n, b, values, exponents):
    """`_decode` for C callers."""
    shape = ((n + LANES - 1) // LANES, K_INSTRUCTION, LANES)
    _decode(carray(b, (n, K_INSTRUCTION)), carray(values, shape), carray(exponents, shape))


def _multiply_pointers(m, n, a, values, exponents, acc):
    """`_multiply` for C callers."""
    shape = ((n + LANES - 1) // LANES, K_INSTRUCTION, LANES)
    _multiply(
        carray(a, (m, K_INSTRUCTION)), carray(values, shape), carray(exponents, shape), carray(acc, (m, n))
    )


_NUMBER, _BYTES, _FLOATS = types.int64, types.CPointer(types.uint8), types.CPointer(types.float32)
_EXPONENTS = types.CPointer(types.int8)
_SIGNATURES = {
    _wgmma_pointers: types.void(_NUMBER, _NUMBER, _BYTES, _BYTES, _FLOATS),
    _decode_pointers: types.void(_NUMBER, _BYTES, _FLOATS, _EXPONENTS),
    _multiply_pointers: types.void(_NUMBER, _NUMBER, _BYTES, _FLOATS, _EXPONENTS, _FLOATS),
}
_cfunc_lock = threading.Lock()


@functools.cache
def _compiled_cfunc(function):
    return _compiled(cfunc, _SIGNATURES[function])(function)


def _address(function) -> int:
    with _cfunc_lock:  # two threads could otherwise compile it twice, and one of the two would be freed
        return _compiled_cfunc(function).address


def cfunc_address() -> int:
    """`_wgmma`'s address: `void wgmma(int64_t m, int64_t n, const uint8_t* a, const uint8_t* b, float* acc)`.

    a [m][32] and b [n][32] are E4M3 codes; the products are added to acc [m][n]; all are row-major. m is 64
    for a whole instruction, 16 for the rows of one warp. Any thread may call it, holding the GIL or not. The
    address is valid for the life of the process. The first call compiles it (2 s), or loads what an earlier
    process has compiled.
    """
    return _address(_wgmma_pointers)


def decoding_addresses() -> tuple[int, int]:
    """The same in two steps, for callers that multiply one b several times:

        void decode(int64_t n, const uint8_t* b, float* values, int8_t* exponents)
        void multiply(int64_t m, int64_t n, const uint8_t* a, const float* values, const int8_t* exponents,
                      float* acc)

    `values` and `exponents` have 32 elements for each column, and as many columns as n rounded up to a
    multiple of LANES.
    """
    return _address(_decode_pointers), _address(_multiply_pointers)


def wgmma(a: np.ndarray, b: np.ndarray, acc: np.ndarray) -> np.ndarray:
    """One FP8 WGMMA: `acc + a @ b.T` as the tensor core computes it.

    Args:
        a, b: E4M3 [m, 32] and [n, 32], or their uint8 codes. m and n may be any size, because outputs do not
            affect one another.
        acc: float32 [m, n]; not changed.

    Returns:
        float32 [m, n].

    Raises:
        ValueError, TypeError: other shapes or dtypes.
    """
    if np.shape(a)[1:] != (K_INSTRUCTION,):
        raise ValueError(f"a of shape {np.shape(a)} was given; one FP8 WGMMA needs [m, {K_INSTRUCTION}]")
    return chain(a, b, acc)


def chain(a: np.ndarray, b: np.ndarray, acc: np.ndarray) -> np.ndarray:
    """Several WGMMAs, each adding to the result of the last: as `wgmma`, with k any multiple of 32."""
    a, b, out = fp8.as_codes(a), fp8.as_codes(b), np.array(acc, order="C")
    if out.dtype != np.float32:
        raise TypeError(f"an accumulator of dtype {out.dtype} was given; it must be float32")
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or a.shape[1] % K_INSTRUCTION:
        raise ValueError(
            f"a {a.shape} and b {b.shape} were given; [m, k] and [n, k] are needed, k a multiple of 32"
        )
    if out.shape != (a.shape[0], b.shape[0]):
        raise ValueError(
            f"an accumulator of shape {out.shape} was given; {(a.shape[0], b.shape[0])} is needed"
        )
    for k in range(0, a.shape[1], K_INSTRUCTION):
        _wgmma(_columns(a, k, K_INSTRUCTION), _columns(b, k, K_INSTRUCTION), out)
    return out


def gemm(a: np.ndarray, sfa: np.ndarray, b: np.ndarray, sfb: np.ndarray) -> np.ndarray:
    """The product, bit for bit as every WGMMA rung computes it.

    For each K block (128 of K): partial = four chained WGMMAs from 0, then acc = fmaf(partial, fl32(sfa *
    sfb), acc). At the end acc is rounded to BF16, to nearest even; NaN is 0x7FFF. If k is not a multiple of
    128, zeros fill the last K block, as the copy engine does.

    Args:
        a, sfa: E4M3 [m, k] (or its uint8 codes) and float32 [m, ceil(k / 128)].
        b, sfb: E4M3 [n, k] and float32 [ceil(n / 128), ceil(k / 128)].

    Returns:
        BF16 bits, uint16 [m, n].

    Raises:
        ValueError, TypeError: shapes that do not fit, other dtypes.
    """

    return bf16_bits(gemm_f32(a, sfa, b, sfb))


def gemm_f32(a: np.ndarray, sfa: np.ndarray, b: np.ndarray, sfb: np.ndarray) -> np.ndarray:
    """As `gemm`, but not rounded to BF16: float32 [m, n]. Kernels that split K add such sums."""
    return _promoted(a, sfa, b, sfb, _tensor_core_block, fp8.check_rhs, _promote)


def gemm_1d1d(a: np.ndarray, sfa: np.ndarray, b: np.ndarray, sfb: np.ndarray) -> np.ndarray:
    """The product with a scale for each 1x128 run of both operands, bit for bit as the training kernels
    compute it: as `gemm`, but not rounded to BF16.

    Args:
        a, sfa: E4M3 [m, k] (or its uint8 codes) and float32 [m, ceil(k / 128)].
        b, sfb: E4M3 [n, k] and float32 [n, ceil(k / 128)].

    Returns:
        float32 [m, n].

    Raises:
        ValueError, TypeError: shapes that do not fit, other dtypes.
    """
    return _promoted(a, sfa, b, sfb, _tensor_core_block, fp8.check_lhs, _promote_1d1d)


def cuda_core_gemm(a: np.ndarray, sfa: np.ndarray, b: np.ndarray, sfb: np.ndarray) -> np.ndarray:
    """As `gemm`, with the bits of s1_naive and s2_tiled: partial = fmaf(a, b, partial) in k order from +0."""

    def cuda_core_block(a, b, partial):
        _fma_block(fp8.decode(a), np.ascontiguousarray(fp8.decode(b).T), partial)

    return bf16_bits(_promoted(a, sfa, b, sfb, cuda_core_block, fp8.check_rhs, _promote))


def _tensor_core_block(a, b, partial):
    partial[:] = 0
    for k in range(0, a.shape[1], K_INSTRUCTION):
        _wgmma(_columns(a, k, K_INSTRUCTION), _columns(b, k, K_INSTRUCTION), partial)


def _promoted(a, sfa, b, sfb, block_product, check_b, promote) -> np.ndarray:
    """What the products share, float32 [m, n]; block_product(a [m, kb], b [n, kb], partial [m, n]) overwrites
    partial."""
    (a, sfa), (b, sfb) = fp8.check_lhs(a, sfa), check_b(b, sfb)
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"A {a.shape} and B {b.shape} were given; the same k is needed in both")
    sfa, sfb = np.ascontiguousarray(sfa), np.ascontiguousarray(sfb)  # one layout, one compilation
    acc = np.zeros((a.shape[0], b.shape[0]), np.float32)
    partial = np.empty_like(acc)
    for block in range(sfa.shape[1]):
        start = block * fp8.SCALE_BLOCK
        block_product(_columns(a, start, fp8.SCALE_BLOCK), _columns(b, start, fp8.SCALE_BLOCK), partial)
        promote(partial, sfa, sfb, acc, block)
    return acc


def _columns(x: np.ndarray, start: int, count: int) -> np.ndarray:
    """x[:, start : start + count], contiguous; past the last column are zeros, up to a multiple of 32."""
    part = x[:, start : start + count]
    return np.ascontiguousarray(np.pad(part, ((0, 0), (0, -part.shape[1] % K_INSTRUCTION))))


def bf16_bits(x: np.ndarray) -> np.ndarray:
    """float32 -> BF16 bits (uint16), to nearest, ties to even, NaN to 0x7FFF, as `__float2bfloat16_rn`."""
    bits = x.view(np.uint32)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    return np.where(np.isnan(x), 0x7FFF, rounded).astype(np.uint16)
