"""The products that every rung is tested with, and that the judge gives a kernel.

A case is made from its name, so that every machine and every process gets the same numbers. Cheap cases come
first, and each reaches a path of some kernel that those before it do not reach: `reaches` says which.
"""

from __future__ import annotations

import dataclasses
import functools
import zlib
from collections.abc import Callable
from typing import Literal, get_args

import numpy as np
from gemm_ladder.lab.operands import (
    Operands,
    any_finite,
    cancelling,
    large_scales,
    normal,
    not_finite,
    one_hot,
    small_integers,
    subnormal,
)

OperandType = Literal["fp8", "bf16"]  # of A and B: E4M3 with scales, or BF16 without (bf16.py)
OPERAND_TYPES: tuple[OperandType, ...] = get_args(OperandType)


@dataclasses.dataclass(frozen=True)
class Case:
    """A named product.

    Attributes:
        m, n, k: as in D[m, n] = A[m, k] B[n, k]^T.
        reaches: what it reaches that the cases before it do not, in words.
        fill: how its operands are made.
        exact: whatever adds up its products, nothing is rounded before the result becomes BF16.
    """

    name: str
    m: int
    n: int
    k: int
    reaches: str
    fill: Callable[[np.random.Generator, int, int, int], Operands] = normal
    exact: bool = False

    @functools.cached_property
    def operands(self) -> Operands:
        return self.fill(np.random.default_rng(zlib.crc32(self.name.encode())), self.m, self.n, self.k)

    @property
    def size(self) -> str:
        return f"{self.m} x {self.n} x {self.k}"

    def __str__(self) -> str:
        return f"{self.size} ({self.name}: {self.reaches})"


# Whole and ragged tiles of m and n, and from one to seventeen K blocks. All n are multiples of 8, and all k
# of 128, which every rung supports; n > 128 crosses into another row of B's scales.
#
# s7 takes the tiles that need less time, here on the emulator's four SMs: of 256 x 128 in the cases named
# tall, else of 128 x 192, inside which B's scale changes. The groups have more than 8 tiles of m, the last
# of them ragged, and two pairs of n; an odd number of pairs leaves a cluster with one more than the other.
CASES = (
    Case("one_tile", 64, 128, 128, "one tile and one K block"),
    Case("two_k_blocks", 64, 128, 256, "a second K block, with other scales"),
    Case("one_row", 1, 128, 128, "a single row"),
    *(
        Case(
            f"{blocks}_k_blocks",
            16,
            24,
            128 * blocks,
            f"{blocks} K blocks: a ring of fewer stages, if there is one, comes round",
        )
        for blocks in range(3, 10)
    ),
    Case(
        "17_k_blocks",
        16,
        24,
        128 * 17,
        "17 K blocks: a ring of up to 8 stages comes round twice, and sums that cancel show every rounding",
        cancelling,
    ),
    Case("narrow", 64, 8, 384, "fewer columns than any tile has"),
    Case("subnormal", 20, 136, 256, "subnormal operands and results", subnormal),
    Case("ragged_65", 65, 248, 128, "one row more than 64"),
    Case("ragged_63", 63, 136, 256, "one row less than 64; a second scale of B along n"),
    Case("any_finite", 66, 136, 256, "every finite code of E4M3", any_finite),
    Case("not_finite", 70, 136, 256, "NaN, infinite, zero and negative scales", not_finite),
    Case("large_scales", 72, 136, 256, "results near the end of FP32's range", large_scales),
    Case("ragged_127", 127, 72, 384, "one row less than 128"),
    Case("small_integers", 129, 136, 384, "results that are exact", small_integers, exact=True),
    Case("third_turn", 64, 136, 1280, "ten K blocks in more than one tile"),
    Case("ragged_129", 129, 264, 384, "one row more than 128, and three tiles of n"),
    Case("one_hot", 130, 264, 384, "each row picks one k: the order of k", one_hot, exact=True),
    Case("tall", 300, 136, 384, "a second tile of 256 rows"),
    Case("whole_tiles", 128, 256, 512, "whole tiles alone"),
    Case("whole_wide_tiles", 256, 384, 256, "whole tiles of 192 columns"),
    Case("256x256x512", 256, 256, 512, "a square of whole tiles"),
    Case("tall_whole_tiles", 512, 256, 256, "whole tiles of 256 rows"),
    Case("tall_odd_pairs", 520, 136, 640, "more tiles of 256 rows than SMs, unevenly shared"),
    Case("odd_pairs", 300, 264, 640, "an odd number of pairs of tiles for clusters of two"),
    Case("many_tiles", 200, 520, 640, "several tiles for each SM, ragged in m and n"),
    Case("second_group", 1130, 520, 128, "more than 8 tiles of 128 rows, in bands"),
    Case("tall_second_group", 2120, 392, 128, "more than 8 tiles of 256 rows, in bands"),
)
# The same for the many SMs of a GPU: a tile for each cluster, and a few more.
GPU_CASES = (
    Case("second_wave", 8500, 264, 256, "more tiles than a GPU's SMs take at once"),
    Case("tall_second_wave", 18000, 136, 256, "more tall tiles than a GPU's SMs take at once"),
)
# n not a multiple of 8 and a last block of k that is not full: only some rungs support these.
UNEVEN_CASES = (
    Case("uneven_tiny", 5, 7, 3, "less than one of anything"),
    Case("uneven", 33, 131, 200, "odd n, and a last K block that is not full"),
    Case("uneven_one_hot", 67, 37, 333, "odd k", one_hot, exact=True),
)
