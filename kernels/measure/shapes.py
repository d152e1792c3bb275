"""The shapes that are measured and shown: m, n, k of D[m, n] = A[m, k] B[n, k]^T. To measure another, add it
to MEASURED (the rungs) or PRODUCTS (the production kernels)."""

from __future__ import annotations

import functools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from gemm_ladder.arguments import M_ALIGNMENT, Kind, align, ceil_div
from gemm_ladder.errors import InputError

MAX_BYTES = 2**40  # of a product: more memory than any machine that this runs on has


class Shape(NamedTuple):
    """m: rows of A and D; n: rows of B, columns of D; k: columns of A and B."""

    m: int
    n: int
    k: int

    def __str__(self) -> str:
        return f"{self.m}x{self.n}x{self.k}"

    @property
    def flops(self) -> int:
        """Floating-point operations: one multiplication and one addition for each m, n and k."""
        return 2 * self.m * self.n * self.k

    @property
    def padded(self) -> int:
        """m * n * k rounded up to what a kernel computes: clusters of two 128 x 128 tiles, whole K blocks."""
        return -(-self.m // 256) * 256 * -(-self.n // 256) * 256 * -(-self.k // 128) * 128

    @property
    def bytes(self) -> int:
        """The least that has to move: FP8 A and B and their FP32 scales read once, BF16 D written once."""
        blocks = -(-self.k // 128)
        scales = 4 * (self.m * blocks + -(-self.n // 128) * blocks)
        return self.m * self.k + self.n * self.k + scales + 2 * self.m * self.n


# The weights of DeepSeek-V3's dense products, [n, k], at two batch sizes of decoding and one of prefill:
# DeepGEMM's published figures are for these shapes.
WEIGHTS = ((2112, 7168), (24576, 1536), (32768, 512), (7168, 16384), (4096, 7168), (7168, 2048))
DEEPSEEK_V3 = tuple(Shape(m, n, k) for m in (64, 128, 4096) for n, k in WEIGHTS)

# Squares: from a problem that leaves most of the GPU idle to one that fills it many times.
SQUARES = tuple(Shape(size, size, size) for size in (512, 1024, 2048, 4096, 8192))
MEASURED = DEEPSEEK_V3 + SQUARES


class Product(NamedTuple):
    """A row of the production kernels' table.

    Attributes:
        kind: "dense", "contiguous" or "masked".
        groups: the number of matrices in B.
        shape: n and k of each group; m is the number of rows, in a grouped product about that of each group.
    """

    kind: Kind
    groups: int
    shape: Shape

    def __str__(self) -> str:
        return str(self.shape) if self.kind == "dense" else f"{self.kind}:{self.groups}x{self.shape}"

    @property
    def counts(self) -> tuple[int, ...]:
        """Valid rows of each group: m in a dense product, else numbers between 0.7 m and 1.3 m. They are the
        same in every run, and the same that DeepGEMM's own tests draw with seed 0."""
        if self.kind == "dense":
            return (self.shape.m,)
        draw = random.Random(0)
        return tuple(int(self.shape.m * draw.uniform(0.7, 1.3)) for _ in range(self.groups))

    @property
    def parts(self) -> tuple[Shape, ...]:
        """Each group's valid rows and its B, as the shape of a dense product."""
        return tuple(self.shape._replace(m=count) for count in self.counts)

    @property
    def expected_m(self) -> int:
        """What a masked call is told about the rows of a group."""
        return self.shape.m


@dataclass(frozen=True)
class Cell:
    """A product of the grid that `everywhere` measures; its groups are of very uneven size.

    Attributes:
        kind, groups, shape: as in Product; m is the mean number of valid rows of a group, before those of
            a masked product are limited to max_m.
        max_m: if masked, how many rows of A each group has room for; else 0.
        expected_m: if masked, what the call is told about the rows of a group, be it right or not; else 0.
    """

    kind: Kind
    groups: int
    shape: Shape
    max_m: int = 0
    expected_m: int = 0

    def __str__(self) -> str:
        if self.kind == "dense":
            return str(self.shape)
        room = f", max_m {self.max_m}, expected_m {self.expected_m}" if self.kind == "masked" else ""
        return f"{self.kind}:{self.groups}x{self.shape}{room}"

    @functools.cached_property
    def counts(self) -> tuple[int, ...]:
        """Valid rows of each group. One group in eight, and at least one, has none; the others' numbers are
        drawn from a log-normal distribution, so that the largest has many times the rows of the smallest. In
        a masked product the largest group has max_m. The numbers follow from the sizes alone, so they are
        the same in every run and for every expected_m."""
        if self.kind == "dense":
            return (self.shape.m,)
        draw = random.Random(f"{self.kind} {self.groups} {self.shape} {self.max_m}")
        empty = set(draw.sample(range(self.groups), max(1, self.groups // 8) if self.groups > 1 else 0))
        sizes = [0.0 if group in empty else draw.lognormvariate(0, 1) for group in range(self.groups)]
        rows = self.shape.m * self.groups
        counts = [max(1, round(rows * size / sum(sizes))) if size else 0 for size in sizes]
        if self.kind == "masked":
            counts = [min(count, self.max_m) for count in counts]
            counts[counts.index(max(counts))] = self.max_m
        return tuple(counts)

    @property
    def held(self) -> list[int]:
        """Rows of A that each group has, padding included."""
        if self.kind == "masked":
            return [self.max_m] * self.groups
        return [align(count, M_ALIGNMENT) if self.kind == "contiguous" else count for count in self.counts]

    @property
    def parts(self) -> tuple[Shape, ...]:
        """The valid rows and the B of each group that has rows, as the shape of a dense product."""
        return tuple(self.shape._replace(m=count) for count in self.counts if count)

    @property
    def flops(self) -> int:
        """Floating-point operations of the valid rows."""
        return sum(part.flops for part in self.parts)

    @property
    def bytes(self) -> int:
        """The least that has to move, of the valid rows and of the groups that have any."""
        return sum(part.bytes for part in self.parts)

    @property
    def weights(self) -> int:
        """Elements of B, of all groups."""
        return self.groups * self.shape.n * self.shape.k


def masked_cell(groups: int, shape: Shape, max_m: int, told: str = "right") -> Cell:
    """A masked product whose expected_m is "right" (the mean, rounded up), too "high" (max_m) or too "low" (a
    quarter of the mean)."""
    counts = Cell("masked", groups, shape, max_m).counts
    mean = ceil_div(sum(counts), groups)
    return Cell(
        "masked", groups, shape, max_m, {"right": mean, "high": max_m, "low": max(1, mean // 4)}[told]
    )


# The table: DeepSeek-V3's dense products, and its experts' with the weights EXPERTS, [n, k]: prefill in the
# contiguous layout, decoding in the masked one.
EXPERTS = ((4096, 7168), (7168, 2048))
MASKED_MAX_M = 4096  # max_m: rows of A that each group of a masked product has room for
PRODUCTS = (
    *(Product("dense", 1, shape) for shape in DEEPSEEK_V3),
    *(
        Product(kind, groups, Shape(m, n, k))
        for kind, sizes in {
            "contiguous": ((4, 8192), (8, 4096), (32, 256)),
            "masked": ((1, 1024), (2, 512), (4, 256)),
        }.items()
        for groups, m in sizes
        for n, k in EXPERTS
    ),
)

# For the emulator, which is about ten thousand times slower than a GPU: one small shape, one ragged in m and
# n with an odd number of K blocks, one of several tiles.
EMULATOR = (Shape(64, 128, 256), Shape(100, 72, 384), Shape(256, 256, 512))
EMULATOR_LIMIT = 2**34  # the largest Shape.padded: a minute or two per rung on two cores


def parse(text: str, known: tuple[Shape, ...]) -> tuple[Shape, ...]:
    """The shapes that `text` names: "all" for every one in `known`, or "MxNxK,MxNxK,...".

    Raises:
        InputError: it is neither, or a shape is too large for any machine.
    """
    if text.strip() == "all":
        return known
    return tuple(dict.fromkeys(_parse_one(word.strip()) for word in text.split(",")))


def _parse_one(word: str) -> Shape:
    sizes = [size.lstrip("0") for size in word.lower().split("x")]
    shown = repr(word if len(word) <= 60 else word[:57] + "...")
    if len(sizes) != 3 or not all(size.isascii() and size.isdigit() for size in sizes):
        raise InputError(
            f"{shown} is not a shape; MxNxK is needed, three positive numbers, as in 64x2112x7168"
        )
    # Count the digits first: Python refuses to read numbers of thousands of digits.
    if any(len(size) > 10 or int(size) >= 2**31 for size in sizes):
        raise InputError(f"{shown} has a number of 2^31 or more; m, n and k below that are needed")
    shape = Shape(*map(int, sizes))
    if shape.bytes > MAX_BYTES:
        raise InputError(f"{shown} is {shape.bytes:.2g} bytes; at most {MAX_BYTES:.2g} are taken")
    return shape


def products(text: str) -> tuple[Product, ...]:
    """The rows of PRODUCTS that `text` names: "all", or a list of kinds and of rows, as in
    "masked,64x2112x7168,contiguous:8x4096x7168x2048".

    Raises:
        InputError: a word of the list is neither.
    """
    chosen: dict[Product, None] = {}
    for word in map(str.strip, text.split(",")):
        found = [one for one in PRODUCTS if word in ("all", one.kind, str(one))]
        if not found:
            shown = repr(word if len(word) <= 60 else word[:57] + "...")
            raise InputError(
                f"{shown} is no row of the table; all, dense, contiguous, masked or a row, as 64x2112x7168 "
                "and masked:4x256x7168x2048 are, is needed"
            )
        chosen |= dict.fromkeys(found)
    return tuple(chosen)


def refuse_the_endless(problems: Sequence[Shape]) -> None:
    """Raise InputError for a shape that would keep the emulator busy for more than a minute or two."""
    for shape in problems:
        if shape.padded > EMULATOR_LIMIT:
            raise InputError(
                f"{shape} multiplies {shape.padded:.2g} pairs, in whole tiles; the emulator takes at most "
                f"{EMULATOR_LIMIT:.2g} (4096x512x7168, say), and a Hopper GPU is needed for more"
            )
