"""What a model computes just before an operand is cast to FP8: SiLU-and-multiply, and RMSNorm; and what comes
back through the first.

Both are defined here as sequences of FP32 operations, each rounded once to nearest even, with the order of
every sum written down. So a kernel can have the same bits on every machine, which library functions such as
expf and rsqrtf do not have.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from . import tensor_core
from .tensor_core import fma

# exp(-x) = 2^n * 2^r with n an integer and |r| <= 1/2. 2^r is a polynomial, whose coefficients minimise its
# largest relative error, 9.2e-8; the constant one is 1.
LOG2_E = np.float32(1.4426950408889634)
C1, C2, C3, C4, C5 = map(np.float32, (0.693147, 0.24022242, 0.055507336, 0.009671513, 0.0013264727))
# Adding 1.5 * 2^23 rounds a number to an integer, which the sum then has in its last bits.
ROUNDING = np.float32(12582912.0)
# Below -87 the gate counts as -87: SiLU is about -1e-36 there, and exp(-x) is still a normal FP32 number.
# Above 30 exp(-x) is taken at 30, where 1 + exp(-x) is 1.
SMALLEST_GATE, LARGEST_EXPONENT = np.float32(-87.0), np.float32(30.0)
ONE = np.float32(1)

PIECE, THREADS, WARP = 8, 256, 32  # of the kernels, which decide the order of their sums


def silu_and_mul(gate: np.ndarray, up: np.ndarray) -> np.ndarray:
    """gate / (1 + exp(-gate)) * up in FP32, element by element.

    A gate of -infinity counts as -87, one of +infinity stays infinite, and NaN stays NaN. The relative error
    is below 2e-6 for gates above -30.

    Args:
        gate, up: float32, of one shape.

    Returns:
        float32 of that shape.
    """
    gate, up = (np.ascontiguousarray(x, np.float32) for x in (gate, up))
    out = np.empty_like(gate)
    with np.errstate(all="ignore"):
        _silu_and_mul(gate.ravel(), up.ravel(), out.reshape(-1))
    return out


@tensor_core._compiled(njit, error_model="numpy")
def _limited(gate):
    """What a gate counts as."""
    return SMALLEST_GATE if gate < SMALLEST_GATE else gate


@tensor_core._compiled(njit, error_model="numpy")
def _sigmoid(x, scaled, bits):
    """1 / (1 + exp(-x)) of a limited x. `scaled` and `bits` are room for a number each."""
    y = LARGEST_EXPONENT if not x < LARGEST_EXPONENT else x
    bits[0] = fma(y, -LOG2_E, ROUNDING)
    n = bits[0] - ROUNDING
    r = fma(y, -LOG2_E, -n)
    scaled[0] = fma(fma(fma(fma(fma(C5, r, C4), r, C3), r, C2), r, C1), r, ONE)
    scaled.view(np.int32)[0] += bits.view(np.int32)[0] << 23
    return ONE / (ONE + scaled[0])


@tensor_core._compiled(njit, error_model="numpy")
def _silu_and_mul(gate, up, out):
    scaled, bits = np.empty(1, np.float32), np.empty(1, np.float32)
    for i in range(out.size):
        x = _limited(gate[i])
        out[i] = x * _sigmoid(x, scaled, bits) * up[i]


def silu_and_mul_backward(
    gate: np.ndarray, up: np.ndarray, of_h: np.ndarray, factors: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """What comes back through h = silu_and_mul(gate, up), which is then multiplied by a factor for each row.

    With s = 1 / (1 + exp(-gate)) as in silu_and_mul, and b = of_h * factor,

        d gate = b * up * (s * (1 + gate * (1 - s)))     d up = b * (gate * s)     d factor = sum of of_h * h

    where the gate counts as -87 below that, and in the sum of the slope as 30 above that. The sum in the
    slope, and each step of the last sum, are fused multiply-adds. The last sum is that of 32 threads: thread
    t adds up pieces t, t + 32, ... of 8 elements, and these sums are added in pairs whose numbers differ in
    bit 4, then in bit 3 and so on.

    Args:
        gate, up, of_h: float32 [rows, columns]; of_h is what comes back for h, without the factor.
        factors: float32 [rows].

    Returns:
        float32: the gradients of gate and up, and h times the factor, all [rows, columns]; the gradients of
        the factors [rows].
    """
    gate, up, of_h, factors = (np.ascontiguousarray(one, np.float32) for one in (gate, up, of_h, factors))
    of_gate, of_up, factored = (np.empty_like(gate) for _ in range(3))
    of_factors = np.empty_like(factors)
    with np.errstate(all="ignore"):
        _silu_and_mul_backward(gate, up, of_h, factors, of_gate, of_up, factored, of_factors)
    return of_gate, of_up, factored, of_factors


@tensor_core._compiled(njit, error_model="numpy")
def _silu_and_mul_backward(gate, up, of_h, factors, of_gate, of_up, factored, of_factors):
    scaled, bits = np.empty(1, np.float32), np.empty(1, np.float32)
    sums = np.empty(WARP, np.float32)
    rows, columns = gate.shape
    for row in range(rows):
        for lane in range(WARP):
            total = np.float32(0)
            for begin in range(lane * PIECE, columns, WARP * PIECE):
                for column in range(begin, min(begin + PIECE, columns)):
                    x = _limited(gate[row, column])
                    s = _sigmoid(x, scaled, bits)
                    silu = x * s
                    h = silu * up[row, column]
                    slope = s * fma(LARGEST_EXPONENT if x > LARGEST_EXPONENT else x, ONE - s, ONE)
                    back = of_h[row, column] * factors[row]
                    total = fma(of_h[row, column], h, total)
                    of_gate[row, column] = back * up[row, column] * slope
                    of_up[row, column] = back * silu
                    factored[row, column] = factors[row] * h
            sums[lane] = total
        of_factors[row] = _in_pairs(sums, 0)


@tensor_core._compiled(njit, error_model="numpy")
def _in_pairs(sums, begin):
    """The sum of a warp's 32 sums from `begin` on, which are lost: as shuffles add them up."""
    step = WARP // 2
    while step:
        for lane in range(begin, begin + step):
            sums[lane] += sums[lane + step]
        step //= 2
    return sums[begin]


def rms_norm(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    """x / sqrt(mean(x^2) + eps) * weight in FP32, row by row.

    The sum of a row's squares is that of 256 threads. Thread t adds up the squares of pieces t, t + 256, ...
    of 8 elements, one after the other, each by a fused multiply-add. The 32 sums of a warp are added in pairs
    whose numbers differ in bit 4, then in bit 3 and so on down to bit 0. The sums of the 8 warps are added in
    order. Then mean = sum / k, inverse = 1 / sqrt(mean + eps), and an element becomes x * inverse * weight.

    Args:
        x: float32 [m, k].
        weight: float32 [k].
        eps: is rounded to FP32.

    Returns:
        float32 [m, k].
    """
    x, weight = (np.ascontiguousarray(one, np.float32) for one in (x, weight))
    out = np.empty_like(x)
    with np.errstate(all="ignore"):
        _rms_norm(x, weight, np.float32(eps), out)
    return out


@tensor_core._compiled(njit, error_model="numpy")
def _rms_norm(x, weight, eps, out):
    rows, k = x.shape
    sums = np.empty(THREADS, np.float32)
    for row in range(rows):
        for thread in range(THREADS):
            total = np.float32(0)
            for begin in range(thread * PIECE, k, THREADS * PIECE):
                for column in range(begin, min(begin + PIECE, k)):
                    total = fma(x[row, column], x[row, column], total)
            sums[thread] = total
        whole = np.float32(0)
        for warp in range(0, THREADS, WARP):
            whole += _in_pairs(sums, warp)
        inverse = ONE / np.sqrt(whole / np.float32(k) + eps)
        for column in range(k):
            out[row, column] = x[row, column] * inverse * weight[column]
