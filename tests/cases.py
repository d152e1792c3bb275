"""The test cases that all rungs and both machines share: operands, poisoned surroundings, expected bits.

A case is made in NumPy from its name, so that every machine and every process gets the same numbers. `place`
puts it on a device the way a careless caller would: poison right before and after every input, in the
padding of A's scales too, NaN in the output, canary rows around it.
"""

from __future__ import annotations

import dataclasses
import functools
import zlib
from collections.abc import Callable

import numpy as np
import torch
from gemm_ladder.ref import fp8, gemm, tensor_core

FP8_NAN = 0x7F
ONE = 0x38  # E4M3 of 1.0
UNWRITTEN = 0x7FA5  # BF16: a NaN that no kernel writes, theirs is 0x7FFF
CANARY = 0x7FB6  # another one
# Large enough that a kernel that writes a whole tile too far is reported, and does not crash the tests.
MARGIN = 256  # rows of canaries on each side of the output
GUARD = 1 << 16  # bytes of poison on each side of an input


@dataclasses.dataclass(frozen=True)
class Operands:
    """E4M3 codes a uint8 [m, k], b uint8 [n, k]; float32 sfa [m, ceil(k / 128)], sfb [ceil(n / 128), ...]."""

    a: np.ndarray
    sfa: np.ndarray
    b: np.ndarray
    sfb: np.ndarray

    @property
    def shape(self) -> tuple[int, int, int]:
        """(m, n, k)"""
        return len(self.a), len(self.b), self.a.shape[1]

    def rows(self, begin: int, end: int) -> Operands:
        """The same product for some of A's rows."""
        return dataclasses.replace(self, a=self.a[begin:end], sfa=self.sfa[begin:end])

    def exact(self) -> np.ndarray:
        """float64 [m, n]: the reference over the dequantised operands."""
        with np.errstate(invalid="ignore", over="ignore"):
            return gemm.dense(self.a, self.sfa, self.b, self.sfb)

    def expected_bits(self, rung: str) -> np.ndarray:
        """uint16 [m, n]: the BF16 bits that a rung must give, by the model of its arithmetic."""
        if rung == "s0_numpy":
            return gemm.to_bf16(self.exact()).view(np.uint16)
        model = tensor_core.cuda_core_gemm if rung == "s1_naive" else tensor_core.gemm
        return model(self.a, self.sfa, self.b, self.sfb)


@dataclasses.dataclass(frozen=True)
class Case:
    """A named product. `exact`: on every rung, nothing is rounded before the result becomes BF16."""

    name: str
    m: int
    n: int
    k: int
    fill: Callable[[np.random.Generator, int, int, int], Operands]
    exact: bool = False

    @functools.cached_property
    def operands(self) -> Operands:
        return self.fill(np.random.default_rng(zlib.crc32(self.name.encode())), self.m, self.n, self.k)


def scale_shapes(m: int, n: int, k: int) -> tuple[tuple[int, int], tuple[int, int]]:
    return (m, -(-k // 128)), (-(-n // 128), -(-k // 128))


def normal(rng: np.random.Generator, m: int, n: int, k: int) -> Operands:
    """Normal numbers over E4M3's whole range. All scales differ, by factors of up to 16, so that using the
    scale of a wrong row or block shows."""

    def codes(rows: int) -> np.ndarray:
        return fp8.encode(rng.normal(scale=448 / 4, size=(rows, k)).astype(np.float32)).view(np.uint8)

    shape_a, shape_b = scale_shapes(m, n, k)
    sfa, sfb = (np.exp2(rng.uniform(-2, 2, shape)).astype(np.float32) for shape in (shape_a, shape_b))
    return Operands(codes(m), sfa, codes(n), sfb)


def powers_of_two(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    return np.exp2(rng.integers(-2, 3, shape)).astype(np.float32)


def small_integers(rng: np.random.Generator, m: int, n: int, k: int) -> Operands:
    """Integers up to 3 and scales 2^-2 to 2^2: partial sums need 11 bits, totals 19, so that nothing is
    rounded before BF16, by the tensor core's 14 bits or by FP32."""

    def codes(rows: int) -> np.ndarray:
        return fp8.encode(rng.integers(-3, 4, (rows, k)).astype(np.float32)).view(np.uint8)

    shape_a, shape_b = scale_shapes(m, n, k)
    return Operands(codes(m), powers_of_two(rng, shape_a), codes(n), powers_of_two(rng, shape_b))


def one_hot(rng: np.random.Generator, m: int, n: int, k: int) -> Operands:
    """Row i of A is 1 at one column and 0 elsewhere: D's row i is a column of B, wherever k lies in a tile.
    Rows differ in their columns, B has any finite code."""
    a = np.zeros((m, k), np.uint8)
    columns = np.arange(m) * 37 % k
    a[np.arange(m), columns] = ONE
    shape_a, shape_b = scale_shapes(m, n, k)
    return Operands(a, powers_of_two(rng, shape_a), finite_codes(rng, n, k), powers_of_two(rng, shape_b))


def finite_codes(rng: np.random.Generator, rows: int, k: int) -> np.ndarray:
    """Every finite code equally often: from 2^-9 to 448, both zeros, subnormals."""
    codes = rng.integers(0, 0x7F, (rows, k)) | rng.integers(0, 2, (rows, k)) << 7
    return codes.astype(np.uint8)


def any_finite(rng: np.random.Generator, m: int, n: int, k: int) -> Operands:
    shape_a, shape_b = scale_shapes(m, n, k)
    sfa, sfb = (np.exp2(rng.uniform(-2, 2, shape)).astype(np.float32) for shape in (shape_a, shape_b))
    return Operands(finite_codes(rng, m, k), sfa, finite_codes(rng, n, k), sfb)


def subnormal(rng: np.random.Generator, m: int, n: int, k: int) -> Operands:
    """Only E4M3 subnormals, and scales so small that some results are subnormal in FP32 and BF16 too."""
    a, b = (rng.integers(0, 8, (rows, k)) | rng.integers(0, 2, (rows, k)) << 7 for rows in (m, n))
    shape_a, shape_b = scale_shapes(m, n, k)
    sfa, sfb = (np.exp2(rng.uniform(-61, -58, shape)).astype(np.float32) for shape in (shape_a, shape_b))
    return Operands(a.astype(np.uint8), sfa, b.astype(np.uint8), sfb)


def not_finite(rng: np.random.Generator, m: int, n: int, k: int) -> Operands:
    """NaN in a row of A and in one of B; scales that are NaN, infinite, zero, negative, or overflow FP32."""
    operands = normal(rng, m, n, k)
    operands.a[1, k // 2] = FP8_NAN
    operands.b[2, 3] = FP8_NAN | 0x80
    for row, scale in {
        3: np.nan,
        4: np.inf,
        5: -np.inf,
        6: 0.0,
        7: -1.5,
        8: 3e38,
        9: -3e38,
        10: 1e-40,
    }.items():
        operands.sfa[row, -1] = scale
    operands.sfb[-1, 0] = np.inf
    return operands


# Whole and ragged tiles of m and n, one to ten blocks of k, odd and even: what every rung supports. n is a
# multiple of 8 but not always of 128; n > 128 crosses into another row of B's scales. Ten blocks of k reach
# the third turn of a ring of four stages.
#
# s5 takes the tiles that need less time, here on the emulator's four SMs: of 256 x 128 in the cases named
# tall, else of 128 x 192, inside which B's scale changes. The groups have more than 8 tiles of m, the last
# of them ragged, and two pairs of n; an odd number of pairs leaves a cluster with one more than the other.
CASES = [
    Case("one_row", 1, 128, 128, normal),
    Case("narrow", 64, 8, 384, normal),
    Case("ragged_63", 63, 136, 256, normal),
    Case("ragged_65", 65, 248, 128, normal),
    Case("ragged_127", 127, 72, 384, normal),
    Case("ragged_129", 129, 264, 384, normal),
    Case("whole_tiles", 128, 256, 512, normal),
    Case("many_tiles", 200, 520, 640, normal),
    Case("256x256x512", 256, 256, 512, normal),
    Case("third_turn", 64, 136, 1280, normal),
    Case("second_group", 1130, 520, 128, normal),
    Case("odd_pairs", 300, 264, 640, normal),
    Case("whole_wide_tiles", 256, 384, 256, normal),
    Case("tall", 300, 136, 384, normal),
    Case("tall_second_group", 2120, 392, 128, normal),
    Case("tall_odd_pairs", 520, 136, 640, normal),
    Case("tall_whole_tiles", 512, 256, 256, normal),
    Case("one_hot", 130, 264, 384, one_hot, exact=True),
    Case("small_integers", 129, 136, 384, small_integers, exact=True),
    Case("any_finite", 66, 136, 256, any_finite),
    Case("subnormal", 20, 136, 256, subnormal),
    Case("not_finite", 70, 136, 256, not_finite),
]
# The same for the many SMs of a GPU: a tile for each cluster, and a few more.
GPU_CASES = [
    Case("second_wave", 8500, 264, 256, normal),
    Case("tall_second_wave", 18000, 136, 256, normal),
]
# n not a multiple of 8 and a last block of k that is not full: only some rungs support these.
UNEVEN_CASES = [
    Case("uneven", 33, 131, 200, normal),
    Case("uneven_tiny", 5, 7, 3, normal),
    Case("uneven_one_hot", 67, 37, 333, one_hot, exact=True),
]


@dataclasses.dataclass
class Placed:
    """Operands on a device, as a rung takes them."""

    lhs: tuple[torch.Tensor, torch.Tensor]
    rhs: tuple[torch.Tensor, torch.Tensor]
    out: torch.Tensor  # bfloat16 [m, n] inside `surroundings`
    surroundings: torch.Tensor  # int16 [MARGIN + m + MARGIN, n]

    def bits(self) -> np.ndarray:
        """uint16 [m, n], after checking that nothing was written around the output."""
        everything = self.surroundings.cpu().numpy().view(np.uint16)
        assert (everything[:MARGIN] == CANARY).all(), "written above the output's first row"
        assert (everything[-MARGIN:] == CANARY).all(), "written below the output's last row"
        return everything[MARGIN:-MARGIN]

    def untouched(self) -> bool:
        return bool((self.bits() == UNWRITTEN).all())


def place(operands: Operands, device: str = "cpu") -> Placed:
    m, n, _ = operands.shape
    blocks = operands.sfa.shape[1]
    padded = np.full((blocks, -(-m // 4) * 4), np.nan, np.float32)
    padded[:, :m] = operands.sfa.T
    around = torch.full((MARGIN + m + MARGIN, n), _int16(CANARY), dtype=torch.int16, device=device)
    around[MARGIN : MARGIN + m] = _int16(UNWRITTEN)
    return Placed(
        lhs=(
            _guarded(operands.a, FP8_NAN, device).view(torch.float8_e4m3fn),
            _guarded(padded, np.nan, device).T[:m],
        ),
        rhs=(
            _guarded(operands.b, FP8_NAN, device).view(torch.float8_e4m3fn),
            _guarded(operands.sfb, np.nan, device),
        ),
        out=around[MARGIN : MARGIN + m].view(torch.bfloat16),
        surroundings=around,
    )


def _int16(bits: int) -> int:
    return int(np.uint16(bits).astype(np.int16))


def _guarded(values: np.ndarray, poison: float, device: str) -> torch.Tensor:
    """A copy of `values` in the middle of a larger allocation, with GUARD bytes of `poison` on both sides."""
    guard = GUARD // values.itemsize
    flat = np.full(values.size + 2 * guard, poison, values.dtype)
    flat[guard : guard + values.size] = values.ravel()
    return torch.from_numpy(flat).to(device)[guard : guard + values.size].view(values.shape)
