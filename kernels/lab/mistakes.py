"""The product with one mistake in it, at some places of D: what a wrong kernel may have computed.

Each mistake is one that a kernel of the ladder can make: a stage of the ring that still holds another K
block, a scale of another row, a descriptor that is not advanced, a swizzle that is missing. They are computed
in float64, so they are compared with a result up to its rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from gemm_ladder.arguments import SCALE_BLOCK, TMA_ALIGNMENT, align
from gemm_ladder.lab.operands import Operands

SLICES = 4  # WGMMAs of a K block, each of 32 bytes of K
CHUNKS = 8  # pieces of a row of 128 bytes that a swizzle moves as one, 16 bytes each
NEIGHBOURS = (1, -1, 2, -2, 4, -4, 8, -8, 16, -16, 32, -32, 64, -64, 128, -128)
FLIPS = (1, 2, 4, 8, 16, 32, 64, 128)
TILES = (8, 16, 32, 64, 128, 256)

Products = Iterator[tuple[str, np.ndarray]]


class Sample:
    """Some places of D, S of them, and what their values are made of. K is the number of K blocks.

    Attributes:
        row, column: int [S].
        a, b: float64 [S, K, block], the row of A and the row of B, in K blocks; zeros fill the last one.
        scale_a, scale_b: float64 [S, K].
        partial: float64 [S, K], the unscaled sum of each K block.
        right: float64 [S], the product.
        magnitude: float64 [S], the sum of the absolute values of what is added up.
    """

    def __init__(self, operands: Operands, places: np.ndarray) -> None:
        self.operands = operands
        self.row, self.column = places[:, 0], places[:, 1]
        self.a, self.b = self.a_of(self.row), self.b_of(self.column)
        self.scale_a = operands.sfa[self.row].astype(np.float64)
        self.scale_b = operands.sfb[self.column // SCALE_BLOCK].astype(np.float64)
        self.scale = self.scale_a * self.scale_b
        self.partial = _dot(self.a, self.b)
        self.right = (self.scale * self.partial).sum(1)
        self.magnitude = (np.abs(self.scale) * _dot(np.abs(self.a), np.abs(self.b))).sum(1)

    @property
    def blocks(self) -> int:
        return len(self.operands.sfa[0])

    def a_of(self, rows: np.ndarray) -> np.ndarray:
        """float64 [S, K, block]: rows of A."""
        return self._in_blocks(self.operands.a[rows])

    def b_of(self, columns: np.ndarray) -> np.ndarray:
        """float64 [S, K, block]: rows of B, by the columns of D that they make."""
        return self._in_blocks(self.operands.b[columns])

    def other_types(self) -> tuple[np.ndarray, np.ndarray]:
        """float64 [S, K, block]: A and B as numbers of another type."""
        decode = self.operands.decode_as_other_type
        a, b = self.operands.a[self.row], self.operands.b[self.column]
        return self._in_blocks(a, decode), self._in_blocks(b, decode)

    def _in_blocks(
        self, codes: np.ndarray, decode: Callable[[np.ndarray], np.ndarray] | None = None
    ) -> np.ndarray:
        block = self.operands.block
        padded = np.pad(codes, ((0, 0), (0, -codes.shape[1] % block)))
        numbers = (decode or self.operands.decode)(padded)
        return numbers.astype(np.float64).reshape(len(codes), -1, block)


def _dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    found: np.ndarray = np.einsum("...k,...k->...", a, b)
    return found


def products(sample: Sample, found: np.ndarray) -> Products:
    """Every mistake: what it means, as the end of a sentence about the wrong values, and its values [S].

    Args:
        found: float64 [S], the values that are to be explained.
    """
    yield from _missing(sample)
    yield from _stale(sample)
    yield from _scales_of_others(sample)
    yield from _scales_by_block(sample)
    yield from _scales_in_memory(sample)
    yield from _accumulation(sample)
    yield from _slices(sample)
    yield from _swizzles(sample)
    yield from _operands(sample)
    yield from _rows_of_others(sample)
    yield from _factors(sample, found)


def _missing(s: Sample) -> Products:
    parts = s.scale * s.partial
    if s.blocks == 1:
        return
    for block in range(s.blocks):
        yield f"lack K block {block}", s.right - parts[:, block]
        yield f"have K block {block} twice", s.right + parts[:, block]
    for count in range(1, s.blocks - 1):
        yield f"have only the first {count} of {s.blocks} K blocks", parts[:, :count].sum(1)
        yield f"have only the K blocks from {s.blocks - count} on", parts[:, s.blocks - count :].sum(1)


def _stale(s: Sample) -> Products:
    """A stage of the ring that holds another K block than it should."""
    cross = np.einsum("sik,sjk->sij", s.a, s.b)  # A of block i times B of block j
    index = np.arange(s.blocks)
    for distance in range(1, s.blocks):
        for away, when in ((-distance, "before"), (distance, "after")):
            there = index + away
            there = np.where((there >= 0) & (there < s.blocks), there, index)
            blocks = f"{distance} K block{'s' if distance > 1 else ''}"
            for which, partial in (
                ("A is that of", cross[:, there, index]),
                ("B is that of", cross[:, index, there]),
                ("A and B are those of", cross[:, there, there]),
            ):
                made = (s.scale * partial).sum(1)
                yield f"are made as if in every K block {which} {blocks} {when}: a stale or early stage", made
    for block in range(s.blocks):
        rest = s.right - s.scale[:, block] * s.partial[:, block]
        for other in range(s.blocks):
            if other == block:
                continue
            for which, partial in (
                ("the A", cross[:, other, block]),
                ("the B", cross[:, block, other]),
                ("the A and the B", cross[:, other, other]),
            ):
                text = f"are made with {which} of K block {other} in K block {block}: a stale or early stage"
                yield text, rest + s.scale[:, block] * partial


def _scales_of_others(s: Sample) -> Products:
    """A scale that is not applied, or is that of another row, or is read at another place."""
    operands = s.operands
    m = len(operands.a)
    yield "lack A's scales", (s.scale_b * s.partial).sum(1)
    yield "lack B's scales", (s.scale_a * s.partial).sum(1)
    yield "lack the scales of A and of B", s.partial.sum(1)

    def with_a(rows: np.ndarray) -> np.ndarray:
        made: np.ndarray = (operands.sfa[rows].astype(np.float64) * s.scale_b * s.partial).sum(1)
        return made

    for step in NEIGHBOURS:
        where = f"{abs(step)} {'below' if step > 0 else 'above'}"
        yield f"have A's scale of the row {where}", with_a(np.clip(s.row + step, 0, m - 1))
    for flip in FLIPS:
        yield f"have A's scale of another row (index XOR {flip})", with_a(np.minimum(s.row ^ flip, m - 1))
    for tile in TILES:
        yield f"have A's scale of the first row of every {tile}", with_a(s.row // tile * tile)
        inside = s.row % tile
        yield f"have A's scales of rows 0 to {tile - 1}, whatever the tile", with_a(np.minimum(inside, m - 1))
    padded = np.full((s.blocks, align(m, TMA_ALIGNMENT // 4)), np.nan)
    padded[:, :m] = operands.sfa.T
    at = np.arange(s.blocks) * m + s.row[:, None]
    yield (
        f"have A's scales as if their rows were m = {m} apart, and not sfa_stride = {padded.shape[1]}",
        (padded.ravel()[at] * s.scale_b * s.partial).sum(1),
    )

    rows_b, blocks = operands.sfb.shape
    row_b, block = s.column[:, None] // SCALE_BLOCK, np.arange(s.blocks)
    for step, where in ((1, "next"), (-1, "previous")) if rows_b > 1 else ():
        other = np.clip(row_b + step, 0, rows_b - 1)
        yield f"have B's scale of the {where} 128 columns", _with_b(s, other * blocks + block)
    if rows_b > 1:
        yield "have B's scale of the first 128 columns", _with_b(s, 0 * row_b + block)
        yield "have B's scales as if they lay column by column", _with_b(s, row_b + block * rows_b)
    for columns in (64, 192, 256):
        text = f"have B's scale of n / {columns}, and not of n / 128"
        yield text, _with_b(s, s.column[:, None] // columns * blocks + block)


def _scales_by_block(s: Sample) -> Products:
    """The scales of another K block."""
    for other in range(s.blocks if s.blocks > 1 else 0):
        a, b = s.scale_a[:, [other]], s.scale_b[:, [other]]
        for which, scale in (
            ("A's scale", a * s.scale_b),
            ("B's scale", s.scale_a * b),
            ("the scales", a * b),
        ):
            yield f"have {which} of K block {other} in every K block", (scale * s.partial).sum(1)
        for block in range(s.blocks):
            if block == other:
                continue
            rest = s.right - s.scale[:, block] * s.partial[:, block]
            for which, scale_of in (
                ("A's scale", s.scale_a[:, other] * s.scale_b[:, block]),
                ("B's scale", s.scale_a[:, block] * s.scale_b[:, other]),
                ("the scales", s.scale[:, other]),
            ):
                text = f"have {which} of K block {other} in K block {block}"
                yield text, rest + scale_of * s.partial[:, block]
    index = np.arange(s.blocks)
    for distance in range(1, s.blocks):
        for away, when in ((-distance, "before"), (distance, "after")):
            there = np.clip(index + away, 0, s.blocks - 1)
            blocks = f"{distance} K block{'s' if distance > 1 else ''}"
            for which, scale in (
                ("A's scale", s.scale_a[:, there] * s.scale_b),
                ("B's scale", s.scale_a * s.scale_b[:, there]),
                ("both scales", s.scale_a[:, there] * s.scale_b[:, there]),
            ):
                yield f"have {which} of {blocks} {when}", (scale * s.partial).sum(1)


def _with_b(s: Sample, at: np.ndarray) -> np.ndarray:
    """The product with other scales of B: those at the indices `at` [S, K] of all of them in memory."""
    flat = s.operands.sfb.ravel().astype(np.float64)
    made: np.ndarray = (s.scale_a * flat[np.clip(at, 0, flat.size - 1)] * s.partial).sum(1)
    return made


def _scales_in_memory(s: Sample) -> Products:
    """Scales of B from where they do not lie."""
    at = s.column[:, None] // SCALE_BLOCK * s.blocks + np.arange(s.blocks)
    for step in (1, -1):
        where = "behind" if step > 0 else "before"
        yield f"have the scale that lies right {where} B's own in memory", _with_b(s, at + step)
    for box in (4, 8, 16, 32):
        yield f"have the first of each {box} scales of B", _with_b(s, at // box * box)


def _accumulation(s: Sample) -> Products:
    if s.blocks == 1:
        return
    running = s.partial.cumsum(1)
    yield "are made as if each K block began with the sum of those before it", (s.scale * running).sum(1)
    yield "are the unscaled sum of all K blocks times the last one's scales", s.scale[:, -1] * running[:, -1]


def _slices(s: Sample) -> Products:
    """The WGMMAs of a K block, and descriptors that are not advanced in it."""
    cut, size = SLICES, s.operands.block // SLICES
    a, b = (x.reshape(len(x), s.blocks, cut, size) for x in (s.a, s.b))
    each = _dot(a, b)  # [S, K, cut]

    def scaled(partial: np.ndarray) -> np.ndarray:
        made: np.ndarray = (s.scale * partial).sum(1)
        return made

    for which in range(cut):
        only = f"K {which * size} to {which * size + size - 1} of each K block"
        yield f"lack {only}", scaled(s.partial - each[..., which])
        yield f"have only {only}", scaled(each[..., which])
        yield f"have {only} four times", scaled(cut * each[..., which])
    for one in range(cut):
        for other in range(one + 1, cut):
            first, second = (f"{which * size} to {which * size + size - 1}" for which in (one, other))
            made = scaled(each[..., one] + each[..., other])
            yield f"have only K {first} and {second} of each K block", made
    fixed = "is not advanced from one WGMMA to the next"
    yield f"are made as if A's descriptor {fixed}", scaled(_dot(a[:, :, :1], b).sum(2))
    yield f"are made as if B's descriptor {fixed}", scaled(_dot(a, b[:, :, :1]).sum(2))


def _swizzles(s: Sample) -> Products:
    """16-byte pieces of a row of 128 bytes that are swizzled for one side alone, writer or reader."""
    chunks = np.arange(CHUNKS)

    def swizzled(x: np.ndarray, rows: np.ndarray) -> np.ndarray:
        pieces = x.reshape(len(x), s.blocks, CHUNKS, -1)
        order = chunks ^ (rows % CHUNKS)[:, None]
        moved: np.ndarray = pieces[np.arange(len(x))[:, None], :, order].transpose(0, 2, 1, 3)
        return moved.reshape(x.shape)

    a, b = swizzled(s.a, s.row), swizzled(s.b, s.column)
    for which, left, right in (("A is", a, s.b), ("B is", s.a, b), ("A and B are", a, b)):
        text = f"are made as if {which} swizzled by the writer alone, or by the reader alone"
        yield text, (s.scale * _dot(left, right)).sum(1)


def _operands(s: Sample) -> Products:
    """An operand in the other's place, or of another type. Rows that a matrix lacks are zeros, as TMA's."""
    m, n, _ = s.operands.shape
    for one, other, taken, rows, count, kept in (
        ("A", "B", s.a_of, s.column, m, s.a),
        ("B", "A", s.b_of, s.row, n, s.b),
    ):
        there = taken(np.minimum(rows, count - 1)) * (rows < count)[:, None, None]
        yield f"are made with {one} in place of {other}", (s.scale * _dot(kept, there)).sum(1)
    if s.operands.other_type is None:
        return
    a, b = s.other_types()
    with np.errstate(invalid="ignore", over="ignore"):
        made = (s.scale * _dot(a, b)).sum(1)
    yield f"are made as if A and B were {s.operands.other_type}", made


def _rows_of_others(s: Sample) -> Products:
    """Rows of A, or of B, that belong elsewhere, with the scales that belong here."""
    m, n, _ = s.operands.shape

    def with_a(rows: np.ndarray) -> np.ndarray:
        made: np.ndarray = (s.scale * _dot(s.a_of(np.clip(rows, 0, m - 1)), s.b)).sum(1)
        return made

    def with_b(columns: np.ndarray) -> np.ndarray:
        made: np.ndarray = (s.scale * _dot(s.a, s.b_of(np.clip(columns, 0, n - 1)))).sum(1)
        return made

    for step in NEIGHBOURS:
        where = f"{abs(step)} {'below' if step > 0 else 'above'}"
        yield f"are made with the row of A {where}, and this row's scale", with_a(s.row + step)
        yield f"are made with the row of B {where}, and this row's scale", with_b(s.column + step)
    for flip in FLIPS:
        text = f"and this row's scale (index XOR {flip})"
        yield f"are made with another row of A, {text}", with_a(s.row ^ flip)
        yield f"are made with another row of B, {text}", with_b(s.column ^ flip)


def _factors(s: Sample, found: np.ndarray) -> Products:
    large = np.abs(s.right) > 0.05 * s.magnitude
    if large.sum() >= len(large) // 4 and large.any():
        factor = float(np.median(found[large] / s.right[large]))
        if np.isfinite(factor) and factor:
            yield f"are {factor:.3g} times the right ones", factor * s.right
