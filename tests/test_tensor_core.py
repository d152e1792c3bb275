"""The tensor core's model and the products built on it, against exact rational arithmetic."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from exact_arithmetic import CATEGORIES, bits_of, exact_fma_bits, finite_codes, inputs, slow_wgmma, spread
from gemm_ladder.ref import fp8, gemm, layouts, tensor_core
from numba import njit


@pytest.mark.parametrize("category", CATEGORIES)
def test_model_equals_exact_arithmetic(category):
    a, b, acc = inputs(category)
    expected = [
        [slow_wgmma(row.tolist(), column.tolist(), bits) for column, bits in zip(b, accs, strict=True)]
        for row, accs in zip(a, bits_of(acc), strict=True)
    ]
    assert bits_of(tensor_core.wgmma(a, b, acc)) == expected


def one_output(a: list[float], b: list[float], acc: float) -> float:
    def codes(x):
        return fp8.encode(np.array([x + [0.0] * (32 - len(x))], np.float32))

    return float(tensor_core.wgmma(codes(a), codes(b), np.array([[acc]], np.float32))[0, 0])


def test_which_bits_a_sum_keeps():
    assert one_output([2.0**-6], [2.0**-7], 1.0) == 1 + 2.0**-13
    assert one_output([2.0**-7], [2.0**-7], 1.0) == 1  # 2^-14 is below the last bit
    assert (
        one_output([2.0**-7] * 32, [2.0**-7] * 32, 1.0) == 1
    )  # 32 times 2^-14 as well: each is truncated before they are added
    assert (
        one_output([-(2.0**-7)] * 32, [2.0**-7] * 32, 1.0) == 1
    )  # negative products are truncated toward zero too
    assert (
        one_output([2.0**-7] * 32, [2.0**-7] * 32, 0.0) == 2.0**-9
    )  # nothing is lost among products of one size
    assert one_output([], [], 1 + 2.0**-13 + 2.0**-14) == 1 + 2.0**-13
    # 1.75 * 1.75 = 3.0625 has exponent 0, not 1, so that other products keep one bit more than they would
    # beside a normalised product.
    assert one_output([1.75, 2.0**-6], [1.75, 2.0**-7], 0.0) == 3.0625  # the sum has 13 bits below 2
    assert one_output([1.75, 2.0**-6, -1.75], [1.75, 2.0**-7, 1.75], 0.0) == 2.0**-13
    assert one_output([2.0, 2.0**-6, -2.0], [2.0, 2.0**-7, 2.0], 0.0) == 0


def test_zero_is_positive():
    for acc in (0.0, -0.0, -(2.0**-149)):
        assert np.copysign(1, one_output([], [], acc)) == 1
    assert np.copysign(1, one_output([1.0, -1.0], [1.0, 1.0], -0.0)) == 1


def test_operands_may_be_swapped_and_k_permuted():
    a, b, acc = inputs("spread accumulators", 40, 24)
    d = tensor_core.wgmma(a, b, acc)
    order = np.random.default_rng(0).permutation(32)
    assert bits_of(tensor_core.wgmma(b, a, acc.T).T.copy()) == bits_of(d)
    assert bits_of(tensor_core.wgmma(a[:, order], b[:, order], acc)) == bits_of(d)


def test_outputs_do_not_affect_one_another():
    a, b, acc = inputs("NaN operands", 9, 33)
    d = tensor_core.wgmma(a, b, acc)
    for i, j in ((0, 0), (1, 1), (8, 32), (3, 4), (5, 31)):
        one = tensor_core.wgmma(a[i : i + 1], b[j : j + 1], acc[i : i + 1, j : j + 1])
        assert bits_of(one)[0][0] == bits_of(d)[i][j]


def test_inputs_are_left_as_they_are_and_may_be_strided():
    rng = np.random.default_rng(0)
    a, b, acc = finite_codes(rng, (8, 64)), finite_codes(rng, (6, 64)), spread(rng, (6, 8)).T
    kept = a.copy(), b.copy(), acc.copy()
    d = tensor_core.wgmma(a[:, ::2], b[:, 32:], acc)
    assert all(np.array_equal(x, y) for x, y in zip((a, b, acc), kept, strict=True))
    assert bits_of(d) == bits_of(tensor_core.wgmma(a[:, ::2].copy(), b[:, 32:].copy(), acc.copy()))
    assert bits_of(d) == bits_of(tensor_core.wgmma(a[:, ::2].copy().view(fp8.E4M3), b[:, 32:], acc))


def test_chain_is_one_instruction_after_another():
    rng = np.random.default_rng(0)
    a, b, acc = finite_codes(rng, (8, 128)), finite_codes(rng, (16, 128)), spread(rng, (8, 16), 0, 20)
    d = acc
    for k in range(0, 128, 32):
        d = tensor_core.wgmma(a[:, k : k + 32], b[:, k : k + 32], d)
    assert bits_of(tensor_core.chain(a, b, acc)) == bits_of(d)
    assert bits_of(tensor_core.chain(a[:, :0], b[:, :0], acc)) == bits_of(acc)


@njit
def fma_all(a, b, c):
    out = np.empty_like(a)
    for i in range(a.size):
        out[i] = tensor_core.fma(a[i], b[i], c[i])
    return out


def test_fma_rounds_once():
    rng = np.random.default_rng(0)
    a, b, c = (spread(rng, 3000, -6, 6) for _ in range(3))
    c[:1000] = -(a[:1000] * b[:1000])  # the sum is the rounding error of the product
    a[1000:1100], b[1000:1100] = spread(rng, 100, -80, -70), spread(rng, 100, -75, -65)
    c[1000:1100] = spread(rng, 100, -149, -140)  # subnormal results
    # The exact sum is just below the middle between an odd FP32 number and the next; a float64 sum is the
    # middle.
    ulp, k = 2.0**-23, rng.integers(1, 8, 1000)
    a[2000:], b[2000:], c[2000:] = 1 + k * ulp, (1 - k * ulp) * 2.0**-24, 1 + (2 * k + 1) * ulp
    bits = bits_of(fma_all(a, b, c))
    assert bits == exact_fma_bits(a, b, c)
    # These inputs distinguish fma from a product and a sum in float32, and from a sum in float64:
    assert bits != bits_of(a * b + c)
    assert bits != bits_of((a.astype(np.float64) * b + c).astype(np.float32))


def test_fma_is_for_float32_only():
    with pytest.raises(Exception, match=r"fma"):
        fma_all(np.ones(2), np.ones(2), np.ones(2))


def operands(m: int, n: int, k: int, seed: int = 0):
    rng = np.random.default_rng(seed)
    a, sfa = fp8.per_token_cast_to_fp8(rng.normal(size=(m, k)).astype(np.float32))
    b, sfb = fp8.per_block_cast_to_fp8(rng.normal(size=(n, k)).astype(np.float32))
    return a, sfa, b, sfb


def promoted_bits(partials, sfa, sfb) -> np.ndarray:
    """uint16 [m, n]: the blocks' partial sums [m, n], promoted and rounded by exact arithmetic."""
    m, n = partials[0].shape
    total = np.zeros((m, n), np.float32)
    for block, partial in enumerate(partials):
        scale = sfa[:, block, np.newaxis] * sfb[np.arange(n) // 128, block]
        bits = exact_fma_bits(partial.ravel(), scale.ravel(), total.ravel())
        total = np.array(bits, np.uint32).view(np.float32).reshape(m, n)
    return gemm.to_bf16(total).view(np.uint16)


@pytest.mark.parametrize(("m", "n", "k"), [(3, 136, 384), (70, 8, 128), (2, 24, 160)])
def test_gemm_is_four_chained_instructions_and_a_promotion(m, n, k):
    a, sfa, b, sfb = operands(m, n, k)
    partials = [
        tensor_core.chain(a[:, start : start + 128], b[:, start : start + 128], np.zeros((m, n), np.float32))
        for start in range(0, k, 128)
    ]
    d = tensor_core.gemm(a, sfa, b, sfb)
    assert d.dtype == np.uint16
    assert np.array_equal(d, promoted_bits(partials, sfa, sfb))


@pytest.mark.parametrize(("m", "n", "k"), [(3, 136, 256), (1, 1, 1), (5, 7, 130)])
def test_cuda_core_gemm_is_a_chain_of_fma(m, n, k):
    a, sfa, b, sfb = operands(m, n, k)
    left, right = fp8.decode(a), fp8.decode(b)
    partials = []
    for start in range(0, k, 128):
        partial = np.zeros(m * n, np.float32)
        for column in range(start, min(start + 128, k)):
            x, y = np.repeat(left[:, column], n), np.tile(right[:, column], m)
            partial = np.array(exact_fma_bits(x, y, partial), np.uint32).view(np.float32)
        partials.append(partial.reshape(m, n))
    assert np.array_equal(tensor_core.cuda_core_gemm(a, sfa, b, sfb), promoted_bits(partials, sfa, sfb))


@pytest.mark.parametrize("product", [tensor_core.gemm, tensor_core.cuda_core_gemm])
def test_products_are_near_the_reference(product):
    a, sfa, b, sfb = operands(65, 130, 300)
    d = (product(a, sfa, b, sfb).astype(np.uint32) << 16).view(np.float32)
    exact = gemm.dense(a, sfa, b, sfb)
    assert np.abs(d - exact).max() < 0.01 * np.abs(exact).max()
    # Scales in the copy engine's layout are the same scales.
    assert np.array_equal(product(a, layouts.get_mn_major_tma_aligned(sfa), b, sfb), product(a, sfa, b, sfb))


@pytest.mark.parametrize("product", [tensor_core.gemm, tensor_core.cuda_core_gemm])
def test_products_of_nan_and_of_nothing(product):
    a, sfa, b, sfb = operands(4, 8, 256)
    a = a.view(np.uint8).copy()
    a[1, 200] = 0xFF
    d = product(a, sfa, b, sfb)
    assert (d[1] == 0x7FFF).all() and not (d[[0, 2, 3]] == 0x7FFF).any()
    assert product(a[:0], sfa[:0], b, sfb).shape == (0, 8)


def test_ties_and_overflow_to_bf16():
    one = np.full((1, 1), 0x38, np.uint8)
    scales = np.array([0x3F808000, 0x3F818000, 0x3F808001, 0x7F7FFFFF, 0x80000001], np.uint32).view(
        np.float32
    )
    d = [tensor_core.gemm(one, np.array([[s]]), one, np.ones((1, 1), np.float32))[0, 0] for s in scales]
    assert d == [0x3F80, 0x3F82, 0x3F81, 0x7F80, 0x8000]


WGMMA = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 2, *[ctypes.c_void_p] * 3)


def call(wgmma, a, b, acc) -> np.ndarray:
    d = acc.copy()
    wgmma(len(a), len(b), a.ctypes.data, b.ctypes.data, d.ctypes.data)
    return d


@pytest.mark.parametrize(("m", "n"), [(16, 8), (64, 24), (16, 128), (64, 256)])
@pytest.mark.parametrize("category", ["spread accumulators", "NaN operands", "special accumulators"])
def test_cfunc_is_wgmma(category, m, n):
    a, b, acc = inputs(category, m, n)
    d = call(WGMMA(tensor_core.cfunc_address()), a, b, acc)
    assert bits_of(d) == bits_of(tensor_core.wgmma(a, b, acc))


@pytest.mark.parametrize("n", [8, 40, 64])
def test_cfuncs_that_decode_and_multiply(n):
    """b is decoded once, and two parts of a are multiplied by it."""
    a, b, acc = inputs("NaN operands", 32, n)
    decode, multiply = tensor_core.decoding_addresses()
    columns = -(-n // tensor_core.LANES) * tensor_core.LANES
    values, exponents = np.full((columns, 32), np.nan, np.float32), np.full((columns, 32), 99, np.int8)
    address, number = ctypes.c_void_p, ctypes.c_int64
    ctypes.CFUNCTYPE(None, number, *[address] * 3)(decode)(
        n, b.ctypes.data, values.ctypes.data, exponents.ctypes.data
    )
    d = acc.copy()
    for rows in (slice(0, 16), slice(16, 32)):
        ctypes.CFUNCTYPE(None, number, number, *[address] * 4)(multiply)(
            16, n, a[rows].ctypes.data, values.ctypes.data, exponents.ctypes.data, d[rows].ctypes.data
        )
    assert bits_of(d) == bits_of(tensor_core.wgmma(a, b, acc))


def test_cfunc_from_many_threads():
    wgmma = WGMMA(tensor_core.cfunc_address())  # ctypes drops the GIL during a call
    problems = [inputs(category, 64, n) for category in CATEGORIES for n in (8, 64, 256)]
    expected = [bits_of(tensor_core.wgmma(*problem)) for problem in problems]
    with ThreadPoolExecutor(8) as pool:
        addresses = set(pool.map(lambda _: tensor_core.cfunc_address(), range(32)))
        results = list(pool.map(lambda problem: bits_of(call(wgmma, *problem)), problems * 20))
    assert len(addresses) == 1
    assert results == expected * 20


def run_copy(folder: Path, cache: str) -> str:
    """Uses a copy of the package in a new process; Numba cannot write its cache into the copy's folder."""
    code = (
        "import numpy as np; from copied import tensor_core as t; t.cfunc_address();"
        "x = np.full((1, 32), 0x38, np.uint8);"
        "print(t.wgmma(x, x, np.ones((1, 1), np.float32))[0, 0], sum(t._wgmma.stats.cache_hits.values()))"
    )
    environment = {**os.environ, "XDG_CACHE_HOME": cache, "PYTHONPATH": str(folder)}
    environment.pop("NUMBA_CACHE_DIR", None)
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True
    ).stdout.strip()


def test_read_only_package_folder(tmp_path):
    package = tmp_path / "copied"
    package.mkdir()
    for name in ("__init__.py", "fp8.py", "lanes.py", "tensor_core.py"):
        shutil.copy(Path(tensor_core.__file__).parent / name, package)
    (package / "__pycache__").touch()  # a file where the cache's folder would be: read-only even for root
    user_cache = tmp_path / "cache"
    assert run_copy(tmp_path, str(user_cache)) == "33.0 0"
    assert run_copy(tmp_path, str(user_cache)) == "33.0 1"  # compiled once, kept in the user's own cache
    assert run_copy(tmp_path, "/dev/null/none") == "33.0 0"  # nowhere to keep it: compiled each time


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            (np.zeros((4, 64), np.uint8), np.zeros((8, 64), np.uint8), np.zeros((4, 8), np.float32)),
            r"\[m, 32\]",
        ),
        (
            (np.zeros((4, 32), np.uint8), np.zeros((8, 31), np.uint8), np.zeros((4, 8), np.float32)),
            "multiple",
        ),
        (
            (np.zeros((4, 32), np.uint8), np.zeros((8, 32), np.uint8), np.zeros((8, 4), np.float32)),
            r"\(4, 8\)",
        ),
        ((np.zeros((4, 32), np.uint8), np.zeros((8, 32), np.uint8), np.zeros((4, 8))), "float64"),
        ((np.zeros((4, 32), np.int8), np.zeros((8, 32), np.uint8), np.zeros((4, 8), np.float32)), "int8"),
    ],
)
def test_refusals_say_what_is_needed(arguments, words):
    with pytest.raises((ValueError, TypeError), match=words):
        tensor_core.wgmma(*arguments)


def test_a_chain_refuses_half_an_instruction():
    a, b = np.zeros((4, 48), np.uint8), np.zeros((8, 48), np.uint8)
    with pytest.raises(ValueError, match="k a multiple of 32"):
        tensor_core.chain(a, b, np.zeros((4, 8), np.float32))


@pytest.mark.parametrize("product", [tensor_core.gemm, tensor_core.cuda_core_gemm])
def test_products_refuse_shapes_that_do_not_fit(product):
    a, sfa, b, sfb = operands(4, 8, 256)
    with pytest.raises(ValueError, match="same k"):
        product(a[:, :128], sfa[:, :1], b, sfb)
    with pytest.raises(ValueError, match="scales"):
        product(a, sfa[:, :1], b, sfb)
