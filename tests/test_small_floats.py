"""CUDA's own headers on the emulator: FP16, BF16, FP8, intrinsics, cooperative groups, pipelines."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from building import nvcc_or_skip
from gemm_ladder import build, lab

SOURCE = Path(__file__).with_name("small_floats.cu")
PRIOR = {"PRIOR": 1}
ALL = np.arange(1 << 16, dtype=np.uint16)
BF16 = np.dtype(ml_dtypes.bfloat16)


def run(kernel: str, *args: object, threads: int = 256, count: int = 256, seed: int = 0) -> None:
    lab.run(SOURCE, *args, kernel=kernel, grid=-(-count // threads), block=threads, seed=seed, defines=PRIOR)


def same(found: np.ndarray, expected: np.ndarray) -> None:
    """Bit for bit, but for the bits of NaNs."""
    nan = np.isnan(expected.astype(np.float32))
    np.testing.assert_array_equal(np.isnan(found.astype(np.float32)), nan)
    unsigned = f"u{found.itemsize}"
    np.testing.assert_array_equal(found.view(unsigned)[~nan], expected.view(unsigned)[~nan])


def test_every_number_of_16_bits() -> None:
    half, brain = np.zeros(1 << 16, np.float32), np.zeros(1 << 16, np.float32)
    run("widen", ALL.view(np.float16), ALL, half, brain, count=1 << 16, threads=1024)
    same(half, ALL.view(np.float16).astype(np.float32))
    same(brain, ALL.view(BF16).astype(np.float32))


def test_every_number_of_8_bits() -> None:
    bytes_ = np.arange(256, dtype=np.uint8)
    e4m3, e5m2 = np.zeros(256, np.float32), np.zeros(256, np.float32)
    run("widen_fp8", bytes_.view(ml_dtypes.float8_e4m3fn), bytes_, e4m3, e5m2)
    same(e4m3, bytes_.view(ml_dtypes.float8_e4m3fn).astype(np.float32))
    same(e5m2, bytes_.view(ml_dtypes.float8_e5m2).astype(np.float32))


def floats() -> np.ndarray:
    """FP32: numbers of each format, what lies halfway between them, their neighbours, others, and NaN."""
    wide = [ALL.view(np.float16)[::7].astype(np.float32), ALL.view(BF16)[::7].astype(np.float32)]
    for dtype in (ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2):
        numbers = np.arange(128, dtype=np.uint8).view(dtype).astype(np.float32)
        numbers = numbers[np.isfinite(numbers)]
        wide += [numbers, -(numbers[1:] + numbers[:-1]) / 2]
    numbers = np.sort(ALL.view(np.float16)[:0x7C00].astype(np.float32))[::11]
    wide.append((numbers[1:] + numbers[:-1]) / 2)
    exact = np.concatenate(wide).astype(np.float32)
    random = np.random.default_rng(0).integers(0, 1 << 32, 1 << 13, np.uint32).view(np.float32)
    limits = np.array(
        [np.inf, -np.inf, np.nan, 0.0, -0.0, 65519.99, 65520, 447, 464, 464.1, 1e-45], np.float32
    )
    finite = exact[np.isfinite(exact)]
    nearby = [np.nextafter(finite, np.float32(side)) for side in (np.inf, -np.inf)]
    return np.concatenate([exact, random, limits, *nearby])


def directed(x: np.ndarray, nearest: np.ndarray, direction: str) -> np.ndarray:
    """The number of the format that lies in the direction: beside the nearest one, or it."""
    wide = nearest.astype(np.float32)
    bits = nearest.view(np.uint16).astype(np.int32)
    up = np.where(bits == 0x8000, 1, np.where(bits & 0x8000, bits - 1, bits + 1))
    down = np.where(bits == 0, 0x8001, np.where(bits & 0x8000, bits + 1, bits - 1))
    lower = (direction == "down") | ((direction == "zero") & (x > 0))
    chosen = np.where(lower, np.where(wide > x, down, bits), np.where(wide < x, up, bits))
    # Towards zero from below a number that has become zero is -0.
    chosen = np.where((chosen & 0x7FFF) == 0, np.where(np.signbit(x), 0x8000, 0), chosen)
    return chosen.astype(np.uint16).view(nearest.dtype)


def test_rounding() -> None:
    x = floats()
    n = len(x)
    half, brain = np.zeros((4, n), np.float16), np.zeros((4, n), BF16)
    e4m3, e5m2, open_ = (np.zeros(n, np.uint8) for _ in range(3))
    run("narrow", x, half, brain, e4m3, e5m2, open_, n, count=n)
    with np.errstate(all="ignore"):
        for found, dtype in ((half, np.dtype(np.float16)), (brain, BF16)):
            nearest = x.astype(dtype)
            same(found[0], nearest)
            for row, direction in enumerate(("zero", "down", "up"), 1):
                same(found[row], directed(x, nearest, direction))
        for found, dtype in ((e4m3, ml_dtypes.float8_e4m3fn), (e5m2, ml_dtypes.float8_e5m2)):
            most = float(ml_dtypes.finfo(dtype).max)
            same(found.view(dtype), np.clip(x, -most, most).astype(dtype))
        beyond = np.abs(x) > 464
        same(open_.view(ml_dtypes.float8_e4m3fn), np.where(beyond, np.nan, x).astype(ml_dtypes.float8_e4m3fn))


def rounded(exact: Fraction, dtype: np.dtype) -> np.ndarray:
    """The nearest number to an exact one, ties to even, from the numbers beside a rough one."""
    bits = int(np.array(float(exact), np.float32).astype(dtype).view(np.uint16))
    magnitude = bits & 0x7FFF
    near = [np.uint16((bits & 0x8000) | m) for m in (magnitude - 1, magnitude, magnitude + 1) if m >= 0]
    values = [np.array(one, np.uint16).view(dtype) for one in near]
    finite = [one for one in values if np.isfinite(one.astype(np.float32))]
    return min(finite, key=lambda one: (abs(Fraction(float(one)) - exact), int(one.view(np.uint16)) & 1))


@pytest.mark.parametrize(("name", "dtype"), [("__half", np.dtype(np.float16)), ("__nv_bfloat16", BF16)])
def test_arithmetic(name: str, dtype: np.dtype) -> None:
    """Each result as FP32 gives it, rounded once; multiply-adds against exact numbers."""
    rng = np.random.default_rng(1)
    a, b, c = (rng.normal(size=3000).astype(np.float32) * 2.0 ** rng.integers(-8, 8, 3000) for _ in range(3))
    c[:1000] = -a[:1000] * b[:1000]  # the sum is what the product has lost
    # A product that lies between two numbers, and so little beside it that FP32 would round it away.
    last = 10 if dtype == np.float16 else 7
    a[-2:], b[-2:], c[-2:] = 1 + 2.0**-last, 1.5, [2.0**-24, -(2.0**-24)]
    a, b, c = (one.astype(dtype) for one in (a, b, c))
    out = np.zeros((8, len(a)), dtype)
    run(f"arithmetic<{name}>", *(one.view(np.uint16) for one in (a, b, c)), out, len(a), count=len(a))
    x, y = a.astype(np.float32), b.astype(np.float32)
    for row, expected in enumerate((x + y, x - y, x * y, x / y)):
        with np.errstate(over="ignore"):
            same(out[row], expected.astype(dtype))
    exact = [
        rounded(Fraction(float(p)) * Fraction(float(q)) + Fraction(float(r)), dtype)
        for p, q, r in zip(a, b, c, strict=True)
    ]
    np.testing.assert_array_equal(out[4].astype(np.float32), np.array(exact, dtype).astype(np.float32))
    twice = (x.astype(np.float64) * y + c.astype(np.float64)).astype(np.float32).astype(dtype)
    assert (twice.view(np.uint16) != out[4].view(np.uint16)).any() or dtype == BF16, (
        "two roundings would differ"
    )
    same(out[5], np.maximum(x, y).astype(dtype))
    same(out[6], np.sqrt(np.abs(x)).astype(dtype))
    same(out[7], np.where(x < y, -x, y).astype(dtype))


def test_pairs_shuffles_and_atomics() -> None:
    x = np.random.default_rng(2).integers(-9, 9, (64, 2)).astype(np.float32) / 4
    out, whole = np.zeros((64, 2), np.float32), np.zeros(64, np.int32)
    for seed in range(3):
        total, sums = np.zeros(1, np.float16), np.zeros(2, BF16)
        run("pairs", x, out, whole, total, sums, threads=64, count=64, seed=seed)
        np.testing.assert_array_equal(out, x * x + 2 * x + x)
        np.testing.assert_array_equal(whole, np.rint(x[:, 0]) + 1000 * np.trunc(x[:, 1]))
        assert total[0] == 32 and sums.astype(float).tolist() == [64, 16]


def test_intrinsics() -> None:
    out, numbers = np.zeros(18, np.int32), np.zeros(8, np.float32)
    run("intrinsics", out, numbers, threads=64, count=64)
    expected = [0x026F8101, 0x017F7F81, 0x017F0281, 0xFF000000, 3 * -128 - 5, 12, 0x17F02810, 0x017F0281, 0]
    expected += [2**31 - 1, 0, 3, 4, 15, 1, 3, 64, 1]
    assert out.view(np.uint32).tolist() == [one & 0xFFFFFFFF for one in expected]
    third = np.float32(1) / np.float32(3)
    assert numbers.tolist() == [third, np.sqrt(np.float32(2)), -1, 0, np.inf, np.float32(np.pi), 0.5, third]


@pytest.mark.parametrize("seed", range(6))
def test_cooperative_groups(seed: int) -> None:
    out = np.zeros(258, np.int32)
    run("groups", out, threads=64, count=64, seed=seed)
    t = np.arange(64)
    np.testing.assert_array_equal(out[:64], [np.arange(i // 16 * 16, i // 16 * 16 + 16).sum() for i in t])
    tiles = [range(i // 16 * 16, i // 16 * 16 + 16) for i in t]
    masks = [sum(1 << (j % 16) for j in tile if j // 3 == i // 3) for i, tile in zip(t, tiles, strict=True)]
    np.testing.assert_array_equal(out[64:128], masks)

    def with_(i: int) -> list[int]:
        warp = range(i // 32 * 32, i // 32 * 32 + 32)
        return [j for j in warp if (j % 3 == 0) == (i % 3 == 0) and (i % 3 == 0 or j % 2 == i % 2)]

    np.testing.assert_array_equal(out[128:192], [100 * len(with_(i)) + with_(i).index(i) for i in t])
    for i in t[::3]:
        assert out[192 + i] == with_(i)[2] + 1000 * len(with_(i))
    assert out[256:].tolist() == [807, 63]


def test_a_pipeline_of_copies() -> None:
    x = np.random.default_rng(3).integers(0, 9, (4, 32, 4)).astype(np.float32)
    out = np.zeros(32, np.float32)
    given = {"kernel": "pipeline", "block": 32, "seeds": 6}
    assert lab.sweep(SOURCE, x, out, 4, defines=PRIOR, **given).sound
    np.testing.assert_array_equal(out, (x[0].sum(1) + x[1:, :, :2].sum((0, 2)))[::-1])
    found = lab.sweep(SOURCE, x, out, 4, defines={"PRIOR": 2}, **given)
    assert {fault.what for fault in found.faults.values()} == {"data_race"} and len(found.faults) == 6


@pytest.mark.slow
def test_nvcc_compiles_the_same_source() -> None:
    """All that the kernels here call is CUDA's, by these names and with these types."""
    nvcc_or_skip()
    kernels = [
        f"template __global__ void arithmetic<{one}>(const {one}*, const {one}*, const {one}*, {one}*, int);"
        for one in ("__half", "__nv_bfloat16")
    ]
    text = "\n".join(["#include <lab.cuh>", SOURCE.read_text(), *kernels])
    assert build.compile(text, target="cuda", name="small_floats", defines=PRIOR).path.is_file()
