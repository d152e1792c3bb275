"""E4M3 codes and the casts, compared with exact arithmetic and with torch."""

from __future__ import annotations

import bisect
import itertools
from fractions import Fraction

import numpy as np
import pytest
import torch
from gemm_ladder import utils
from gemm_ladder.ref import fp8


def value_of(code: int) -> Fraction:
    """An E4M3 code's value from its definition; the code is not NaN."""
    exponent, mantissa = code >> 3 & 15, code & 7
    magnitude = (
        Fraction(8 + mantissa, 8) * Fraction(2) ** (exponent - 7) if exponent else Fraction(mantissa, 512)
    )
    return -magnitude if code & 0x80 else magnitude


POSITIVE = [value_of(code) for code in range(0x7F)]


def nearest_code(x: float) -> int:
    """The E4M3 code of a finite number by search, ties to even, saturating."""
    sign, magnitude = (0x80 if np.signbit(x) else 0), Fraction(abs(float(x)))
    above = bisect.bisect_left(POSITIVE, magnitude)
    if above == len(POSITIVE):
        return sign | 0x7E
    if above and (magnitude - POSITIVE[above - 1], (above - 1) % 2) < (
        POSITIVE[above] - magnitude,
        above % 2,
    ):
        above -= 1
    return sign | above


def test_every_code_decodes_to_its_definition():
    codes = np.arange(256, dtype=np.uint8)
    values = fp8.decode(codes)
    nan = (codes & 0x7F) == 0x7F
    assert values.dtype == np.float32
    assert np.isnan(values[nan]).all()
    assert [Fraction(float(v)) for v in values[~nan]] == [value_of(int(c)) for c in codes[~nan]]
    assert np.array_equal(np.signbit(values[~nan]), codes[~nan] >= 0x80)  # -0 too
    assert values[0x7E] == fp8.E4M3_MAX
    assert np.array_equal(fp8.decode(codes.view(fp8.E4M3)), values, equal_nan=True)


def test_every_code_encodes_to_itself():
    codes = np.array([c for c in range(256) if c & 0x7F != 0x7F], np.uint8)
    assert np.array_equal(fp8.encode(fp8.decode(codes)), codes)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_encode_finds_the_nearest_code(dtype):
    rng = np.random.default_rng(0)
    middles = np.array([float(x + y) / 2 for x, y in itertools.pairwise(POSITIVE)])
    beside = np.concatenate([middles * (1 + e) for e in (0.0, 2.0**-22, -(2.0**-22), 2.0**-50, -(2.0**-50))])
    spread = rng.normal(size=2000) * np.exp2(rng.uniform(-14, 9, 2000))
    x = np.concatenate([beside, -beside, spread]).astype(dtype)
    assert fp8.encode(x).tolist() == [nearest_code(v) for v in x]


def test_encode_saturates_and_keeps_nan():
    x = np.array([449, 464, 480, 1e30, 1e300, np.inf, -480, -np.inf, 1e-300, -1e-300])
    assert fp8.encode(x).tolist() == [0x7E] * 6 + [0xFE] * 2 + [0x00, 0x80]
    assert fp8.encode(np.array([np.nan], np.float32))[0] & 0x7F == 0x7F


def test_encode_agrees_with_torch_on_every_bf16_number_in_range():
    x = (np.arange(65536, dtype=np.uint32) << 16).view(np.float32)
    x = x[np.abs(x) <= fp8.E4M3_MAX]
    assert np.array_equal(
        fp8.encode(x), torch.from_numpy(x).to(torch.float8_e4m3fn).view(torch.uint8).numpy()
    )


def torch_cast(x: torch.Tensor, rows: int, use_ue8m0: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """The casts written with torch's operators, as DeepGEMM writes them; 128 columns share a scale."""
    m, k = x.shape
    padded = torch.nn.functional.pad(x, (0, -k % 128, 0, -m % rows))
    blocks = padded.view(-1, rows, padded.shape[1] // 128, 128)
    scales = blocks.abs().amax(dim=(1, 3), keepdim=True).clamp(1e-4) / 448.0
    if use_ue8m0:
        scales = torch.pow(2.0, torch.ceil(torch.log2(scales.double()))).float()
    codes = (blocks * (1.0 / scales)).to(torch.float8_e4m3fn).view(torch.uint8).view_as(padded)
    return codes[:m, :k], scales.view(blocks.shape[0], blocks.shape[2])


CASTS = {"token": (fp8.per_token_cast_to_fp8, 1), "block": (fp8.per_block_cast_to_fp8, 128)}


@pytest.mark.parametrize("use_ue8m0", [False, True])
@pytest.mark.parametrize("shape", [(1, 128), (128, 256), (130, 300), (5, 1), (257, 129), (0, 256)])
@pytest.mark.parametrize("kind", CASTS)
def test_casts_agree_with_torch(kind, shape, use_ue8m0):
    cast, rows = CASTS[kind]
    x = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    x *= np.exp2(np.arange(shape[1]) // 128 % 7).astype(np.float32)
    if len(x) > 1:
        x[1] = 0
    codes, scales = cast(x, use_ue8m0)
    needed_codes, needed_scales = torch_cast(torch.from_numpy(x), rows, use_ue8m0)
    assert codes.dtype == fp8.E4M3 and codes.shape == shape and scales.dtype == np.float32
    assert np.array_equal(codes.view(np.uint8), needed_codes.numpy())
    assert np.array_equal(scales, needed_scales.numpy())


@pytest.mark.parametrize("kind", CASTS)
def test_casts_of_no_columns(kind):
    codes, scales = CASTS[kind][0](np.zeros((3, 0), np.float32))
    assert codes.shape == (3, 0)
    assert scales.shape == (3 if kind == "token" else 1, 0)


def scales_of_utils(cast, x: np.ndarray) -> np.ndarray:
    return cast(torch.from_numpy(x), use_ue8m0=True)[1].numpy()


SCALES = {
    "ref token": lambda x: fp8.per_token_cast_to_fp8(x, use_ue8m0=True)[1],
    "ref block": lambda x: fp8.per_block_cast_to_fp8(x, use_ue8m0=True)[1],
    "utils token": lambda x: scales_of_utils(utils.per_token_cast_to_fp8, x),
    "utils block": lambda x: scales_of_utils(utils.per_block_cast_to_fp8, x),
}


@pytest.mark.parametrize("scales", SCALES.values(), ids=SCALES)
def test_a_scale_that_is_a_power_of_two_is_not_rounded_up(scales):
    """448 * 2^e needs the scale 2^e; the next larger number needs 2^(e + 1)."""
    exponents = np.arange(-22, 120)  # from the smallest that the lower bound of 1e-4 allows to the largest
    exact = np.float32(448) * np.exp2(exponents.astype(np.float32))
    for largest, expected in (
        (exact, exponents),
        (np.nextafter(exact, np.float32(0)), exponents),
        (np.nextafter(exact, np.float32(np.inf)), exponents + 1),
    ):
        x = np.zeros((1, 128 * exponents.size), np.float32)
        x[0, 5::128] = -largest
        assert np.array_equal(scales(x)[0], np.exp2(expected.astype(np.float64)))


@pytest.mark.parametrize("kind", CASTS)
def test_casts_use_the_whole_range_and_err_by_half_a_step(kind):
    cast, rows = CASTS[kind]
    x = np.random.default_rng(2).normal(size=(200, 300)).astype(np.float32)
    codes, scales = cast(x)
    per_row = np.repeat(scales, rows, axis=0)[:200]
    step = np.repeat(per_row, 128, axis=1)[:, :300].astype(np.float64)
    values = (fp8.dequantize_lhs if rows == 1 else fp8.dequantize_rhs)(codes, scales)
    assert np.array_equal(values, fp8.decode(codes).astype(np.float64) * step)
    # Half a step of E4M3 at x: 2^-4 of its power of two, or half of the smallest subnormal.
    assert (np.abs(values - x) <= np.maximum(np.abs(x) * 2.0**-4, step * 2.0**-10) * (1 + 1e-5)).all()
    largest = np.abs(fp8.decode(codes))[:, :128]
    assert (largest.max(axis=1) == 448).all() if rows == 1 else largest[:128].max() == 448


@pytest.mark.parametrize("use_ue8m0", [False, True])
def test_zeros_nan_and_infinities(use_ue8m0):
    """What a run of 128 becomes is what the module's head says."""
    x = np.zeros((5, 128), np.float32)
    x[1, :3] = np.inf, -2, 3
    x[2, :3] = -np.inf, np.inf, -0.0
    x[3, :3] = -np.nan, np.inf, 7
    x[4, :3] = 1e-6, -1e-8, 0
    codes, scales = fp8.per_token_cast_to_fp8(x, use_ue8m0)
    smallest = np.float32(2.0**-22 if use_ue8m0 else np.float32(1e-4) / np.float32(448))
    np.testing.assert_array_equal(
        scales[:, 0], np.array([smallest, np.inf, np.inf, np.nan, smallest], np.float32)
    )
    codes = codes.view(np.uint8)
    assert not codes[0].any() and (codes[3] == 0x7F).all()
    assert codes[1, :4].tolist() == [0x7F, 0x80, 0, 0] and codes[2, :4].tolist() == [0x7F, 0x7F, 0x80, 0]
    assert np.array_equal(codes[4], fp8.encode(x[4] * (np.float32(1) / smallest)))


def test_per_channel_is_per_token_of_the_transpose():
    x = np.random.default_rng(4).normal(size=(300, 5)).astype(np.float32)
    codes, scales = fp8.per_channel_cast_to_fp8(x, True)
    turned, of_rows = fp8.per_token_cast_to_fp8(x.T, True)
    assert codes.shape == x.shape and scales.shape == (3, 5)
    assert np.array_equal(codes.T.view(np.uint8), turned.view(np.uint8)) and np.array_equal(scales.T, of_rows)


def test_a_smaller_granularity():
    x = np.random.default_rng(3).normal(size=(3, 100)).astype(np.float32)
    codes, scales = fp8.per_token_cast_to_fp8(x, gran_k=32)
    assert scales.shape == (3, 4)
    assert np.array_equal(
        codes[:, 32:64].view(np.uint8), fp8.per_token_cast_to_fp8(x[:, 32:64])[0].view(np.uint8)
    )


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: fp8.decode(np.zeros(3, np.int8)), "int8"),
        (lambda: fp8.per_token_cast_to_fp8(np.zeros(3)), "matrix"),
        (lambda: fp8.dequantize_lhs(np.zeros((3, 129), np.uint8), np.ones((3, 1), np.float32)), r"\(3, 2\)"),
        (
            lambda: fp8.dequantize_rhs(np.zeros((129, 9), np.uint8), np.ones((129, 1), np.float32)),
            r"\(2, 1\)",
        ),
        (lambda: fp8.dequantize_rhs(np.zeros((9, 9), np.uint8), np.ones((1, 1))), "float64"),
    ],
)
def test_refusals_say_what_is_needed(call, words):
    with pytest.raises((ValueError, TypeError), match=words):
        call()
