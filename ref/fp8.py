"""FP8 E4M3, and the casts that make DeepSeek-V3's operands.

E4M3 is `s eeee mmm`: (-1)^s * 1.mmm * 2^(e - 7), or (-1)^s * 0.mmm * 2^-6 where e = 0. It has no infinity;
`s 1111 111` is NaN, so the largest number is 448. The type is ml_dtypes.float8_e4m3fn, byte for byte
torch.float8_e4m3fn.

An operand is a pair (codes, scales): A [m, k] has one FP32 scale for each run of 128 along k, B [n, k] one
for each block of 128 x 128, and an element's value is its code's times its scale. The casts follow DeepGEMM's
(its utils/math.py) operation by operation, so their bits are the same. Weight gradients sum over the tokens,
so their operands have one scale for each run of 128 down a column.

Every input has a defined result. What shares a scale with a NaN becomes NaN, and so does the scale. With an
infinity and no NaN, the scale is infinity, infinities become NaN, and all other numbers 0 with their signs
kept. Where all numbers are 0, or so small that the largest is below 1e-4, the scale is that of 1e-4. A NaN is
the code 0x7F, the one that a GPU's conversion gives.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
from gemm_ladder.arguments import SCALE_BLOCK, ceil_div

E4M3 = np.dtype(ml_dtypes.float8_e4m3fn)
E4M3_MAX = 448.0

# As in DeepGEMM: a block of zeros needs a scale above 0, because values are divided by it.
_SMALLEST_AMAX = 1e-4
_NAN_CODE = 0x7F
_VALUES = np.arange(256, dtype=np.uint8).view(E4M3).astype(np.float32)


def as_codes(x: np.ndarray) -> np.ndarray:
    """`x`, uint8 codes or E4M3, as uint8 codes. Raises TypeError for any other dtype."""
    x = np.asarray(x)
    if x.dtype != np.uint8 and x.dtype != E4M3:
        raise TypeError(f"an array of {x.dtype} was given; E4M3 is needed, as uint8 codes or {E4M3}")
    return x.view(np.uint8)


def decode(codes: np.ndarray) -> np.ndarray:
    """The values, float32, of E4M3 codes of any shape. Exact; 0x7F and 0xFF are NaN."""
    return _VALUES[as_codes(codes)]


def encode(x: np.ndarray) -> np.ndarray:
    """The E4M3 codes, uint8, nearest to `x` (float32 or float64, any shape); ties go to the even code.

    Magnitudes beyond 448, infinity included, become 448, and NaN of either sign 0x7F, as in the GPU's
    conversion (cvt.rn.satfinite).
    """
    codes = np.clip(narrow(x), -E4M3_MAX, E4M3_MAX).astype(E4M3).view(np.uint8)
    return np.where(np.isnan(x), np.uint8(_NAN_CODE), codes)


def narrow(x: np.ndarray) -> np.ndarray:
    """float64 to float32, rounded to odd, so that rounding the result to a shorter type rounds only once.

    The middle between two neighbours of the shorter type is a float32 whose last bit is 0. A float64 near
    such a middle must not become the middle itself, which would then be a tie. So a value that is not exactly
    a float32 is truncated and its last bit set. float32 is returned as it is.
    """
    x = np.asarray(x)
    with np.errstate(over="ignore"):
        nearest = x.astype(np.float32)
    inexact = (nearest != x) & ~np.isnan(x)
    too_large = np.abs(nearest) > np.abs(x)
    bits = nearest.view(np.uint32)
    return np.where(inexact, (bits - too_large) | 1, bits).astype(np.uint32).view(np.float32)


def per_token_cast_to_fp8(
    x: np.ndarray, use_ue8m0: bool = False, gran_k: int = SCALE_BLOCK
) -> tuple[np.ndarray, np.ndarray]:
    """The cast for A: each run of `gran_k` columns of a row gets a scale, so that its largest code is 448.

    Args:
        x: float32 [m, k].
        use_ue8m0: round each scale up to a power of two.
        gran_k: columns that share a scale.

    Returns:
        E4M3 [m, k] and its scales, float32 [m, ceil(k / gran_k)].

    Raises:
        ValueError: x is not a matrix.
    """
    return _cast(x, 1, gran_k, use_ue8m0)


def per_block_cast_to_fp8(
    x: np.ndarray, use_ue8m0: bool = False, gran_k: int = SCALE_BLOCK
) -> tuple[np.ndarray, np.ndarray]:
    """The cast for B: as for A, with one scale for each block of gran_k x gran_k.

    Returns:
        E4M3 [n, k] and its scales, float32 [ceil(n / gran_k), ceil(k / gran_k)].
    """
    return _cast(x, gran_k, gran_k, use_ue8m0)


def per_channel_cast_to_fp8(
    x: np.ndarray, use_ue8m0: bool = False, gran_k: int = SCALE_BLOCK
) -> tuple[np.ndarray, np.ndarray]:
    """The cast for weight gradients: as for A, with one scale for each run of `gran_k` rows of a column.

    Args:
        x: float32 [k, n].

    Returns:
        E4M3 [k, n] and its scales, float32 [ceil(k / gran_k), n].
    """
    codes, scales = _cast(np.asarray(x).T, 1, gran_k, use_ue8m0)
    return np.ascontiguousarray(codes.T), np.ascontiguousarray(scales.T)


def dequantize_lhs(a: np.ndarray, sfa: np.ndarray) -> np.ndarray:
    """The exact values, float64 [m, k], of A: E4M3 [m, k] and scales [m, ceil(k / 128)]."""
    a, sfa = check_lhs(a, sfa)
    return _scaled(a, sfa)


def dequantize_rhs(b: np.ndarray, sfb: np.ndarray) -> np.ndarray:
    """The exact values, float64 [n, k], of B: E4M3 [n, k] and scales [ceil(n / 128), ceil(k / 128)]."""
    b, sfb = check_rhs(b, sfb)
    return _scaled(b, np.repeat(sfb, SCALE_BLOCK, axis=0)[: len(b)])


def check_lhs(a: np.ndarray, sfa: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A as uint8 codes [m, k] and its scales [m, ceil(k / 128)]; ValueError or TypeError if they are not."""
    return _check("A", a, sfa, 1)


def check_rhs(b: np.ndarray, sfb: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """B as uint8 codes [n, k] and its scales [ceil(n / 128), ceil(k / 128)]; raises as check_lhs."""
    return _check("B", b, sfb, SCALE_BLOCK)


def _check(name: str, codes: np.ndarray, scales: np.ndarray, rows: int) -> tuple[np.ndarray, np.ndarray]:
    codes, scales = as_codes(codes), np.asarray(scales)
    if codes.ndim != 2:
        raise ValueError(f"{name} of shape {codes.shape} was given; a matrix is needed")
    needed = (ceil_div(codes.shape[0], rows), ceil_div(codes.shape[1], SCALE_BLOCK))
    if scales.dtype != np.float32:
        raise TypeError(f"{name}'s scales are {scales.dtype}; float32 is needed")
    if scales.shape != needed:
        raise ValueError(f"{name} {codes.shape} was given with scales {scales.shape}; {needed} are needed")
    return codes, scales


def _cast(x: np.ndarray, gran_rows: int, gran_k: int, use_ue8m0: bool) -> tuple[np.ndarray, np.ndarray]:
    x = np.asarray(x, dtype=np.float32)
    if x.ndim != 2:
        raise ValueError(f"an array of shape {x.shape} was given; a matrix is needed")
    rows, columns = x.shape
    block_rows, block_columns = ceil_div(rows, gran_rows), ceil_div(columns, gran_k)
    padded = np.zeros((block_rows * gran_rows, block_columns * gran_k), np.float32)
    padded[:rows, :columns] = x
    blocks = padded.reshape(block_rows, gran_rows, block_columns, gran_k)
    amax = np.abs(blocks).max(axis=(1, 3), keepdims=True, initial=np.float32(_SMALLEST_AMAX))
    scales = amax / np.float32(E4M3_MAX)
    if use_ue8m0:
        fraction, exponent = np.frexp(scales)  # fraction in [1/2, 1), and 1/2 for a power of two
        powers = np.ldexp(np.float32(1), exponent - (fraction == 0.5))
        scales = np.where(np.isfinite(scales), powers, scales)
    with np.errstate(invalid="ignore"):  # infinity times 0 is NaN
        codes = encode(blocks * (np.float32(1) / scales)).reshape(padded.shape)
    return codes[:rows, :columns].copy().view(E4M3), scales.reshape(block_rows, block_columns)


def _scaled(codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """The values times the rows' own scales [rows, ceil(k / 128)]; a float64 holds such a product exactly."""
    values = decode(codes).astype(np.float64)
    for block, scale in enumerate(scales.T):
        values[:, block * SCALE_BLOCK : (block + 1) * SCALE_BLOCK] *= scale[:, np.newaxis]
    return values
