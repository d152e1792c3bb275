"""Where things lie: bytes in swizzled shared memory, accumulators in registers, scales in global memory.

The functions take integers or integer arrays, so that a whole tile can be mapped, and drawn, in one call.
kernels/include/layout.cuh has those that the kernels use, under similar names.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from gemm_ladder.arguments import TMA_ALIGNMENT
from numpy.typing import ArrayLike

SWIZZLE_ROW = 128  # bytes of a row of a 128-byte-swizzled tile
SWIZZLE_ATOM_ROWS = 8  # rows after which the pattern repeats
SWIZZLE_CHUNK = 16  # bytes that stay together
SWIZZLE_ATOM = SWIZZLE_ROW * SWIZZLE_ATOM_ROWS  # bytes; a tile starts at a multiple of it

WARPGROUP = 128  # threads


def swizzle(row: ArrayLike, col_byte: ArrayLike, row_bytes: int) -> np.ndarray:
    """Byte offset, in a tile with rows of `row_bytes`, of the byte that belongs at (row, col_byte).

    A tensor core reads the same 16-byte chunk of eight rows together. Shared memory serves eight chunks at
    once only if they lie in different banks, but without a swizzle the chunks of one column lie in the same
    ones. So the swizzle permutes the chunks of each row: in a tile of 128-byte rows, chunk c of row r lies at
    place c XOR (r mod 8). Two rows of 64 bytes, or four of 32, cover all banks once; such rows have the same
    permutation, of 4 chunks or of 2.
    Source: "Shared Memory Matrix Layout", PTX ISA, wgmma.

    Raises ValueError if row_bytes is not 32, 64 or 128, a col_byte not in [0, row_bytes) or a row not >= 0.
    """
    row, col_byte = np.asarray(row), np.asarray(col_byte)
    mask = _swizzle_mask(row, row_bytes)
    if np.any(row < 0) or np.any((col_byte < 0) | (col_byte >= row_bytes)):
        raise ValueError(
            f"rows {row}, bytes {col_byte} were given; rows >= 0, bytes in [0, {row_bytes}) are needed"
        )
    return row * row_bytes + (col_byte ^ mask)


def unswizzle(offset: ArrayLike, row_bytes: int) -> tuple[np.ndarray, np.ndarray]:
    """The (row, col_byte) of the byte that `swizzle` puts at `offset`."""
    row, place = np.divmod(np.asarray(offset), row_bytes)
    return row, place ^ _swizzle_mask(row, row_bytes)


def swizzle_128b(row: ArrayLike, col_byte: ArrayLike) -> np.ndarray:
    """Where the byte at (row, col_byte) lies in the tiles that a tensor core reads: rows of 128 bytes."""
    return swizzle(row, col_byte, SWIZZLE_ROW)


def unswizzle_128b(offset: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """The (row, col_byte) of the byte that `swizzle_128b` puts at `offset`."""
    return unswizzle(offset, SWIZZLE_ROW)


def _swizzle_mask(row: np.ndarray, row_bytes: int) -> np.ndarray:
    """The number that a col_byte in that row is XORed with."""
    if row_bytes not in (32, 64, 128):
        raise ValueError(f"rows of {row_bytes} bytes were given; 32, 64 or 128 are needed")
    return row // (SWIZZLE_ROW // row_bytes) * SWIZZLE_CHUNK % row_bytes


@dataclasses.dataclass(frozen=True)
class SmemDescriptor:
    """The 64 bits that tell a WGMMA where an operand lies. Source: "Matrix Descriptor Format", PTX ISA.

    Attributes:
        address: of the operand in shared memory, in bytes, a multiple of 16 below 2^18.
        leading_byte_offset: not used by K-major operands with the 128-byte swizzle.
        stride_byte_offset: from one group of 8 rows to the next, in bytes.
        base_offset: 0 if the atoms of the swizzle are aligned to their size, 1024 bytes.
        swizzle: 0 none, 1 128 bytes, 2 64 bytes, 3 32 bytes.
    """

    address: int
    leading_byte_offset: int = 0
    stride_byte_offset: int = SWIZZLE_ATOM
    base_offset: int = 0
    swizzle: int = 1

    def encode(self) -> int:
        """The 64 bits. Raises ValueError, naming the field, for a value that its bits cannot hold."""
        bits = 0
        for name, (shift, width, unit) in _DESCRIPTOR_FIELDS.items():
            value = getattr(self, name)
            if not 0 <= value < unit << width or value % unit:
                multiple = f"a multiple of {unit}" if unit > 1 else "a number"
                raise ValueError(f"{name} = {value} was given; {multiple} in [0, {unit << width}) is needed")
            bits |= value // unit << shift
        return bits

    @classmethod
    def decode(cls, bits: int) -> SmemDescriptor:
        """The fields of a descriptor."""
        return cls(
            **{
                name: (bits >> shift & (1 << width) - 1) * unit
                for name, (shift, width, unit) in _DESCRIPTOR_FIELDS.items()
            }
        )


# For each field: its lowest bit, its number of bits, and the unit that it counts (16: units of 16 bytes).
_DESCRIPTOR_FIELDS = {
    "address": (0, 14, 16),
    "leading_byte_offset": (16, 14, 16),
    "stride_byte_offset": (32, 14, 16),
    "base_offset": (49, 3, 1),
    "swizzle": (62, 2, 1),
}


def smem_descriptor(address: int) -> int:
    """The descriptor of a K-major operand with the 128-byte swizzle at `address`, as the kernels make it.

    The next 32 columns of K begin 32 bytes further, inside the atom; the next 64 rows 64 * 128 bytes further.
    """
    return SmemDescriptor(address).encode()


def wgmma_accumulator(n: int) -> tuple[np.ndarray, np.ndarray]:
    """(row, column) of D that thread t of a warpgroup holds in register i: two int arrays [128, n / 2].

    Each warp has 16 rows. Each four registers of a thread hold two neighbouring columns of one row and the
    same two columns of the row 8 below; the next four registers are 8 columns to the right. Source: "Register
    Fragments for wgmma.mma_async.m64nNk32", PTX ISA.

    Raises ValueError if n is not a multiple of 8 in [8, 256].
    """
    if n % 8 or not 8 <= n <= 256:
        raise ValueError(f"n = {n} was given; a multiple of 8 from 8 to 256 is needed")
    thread, i = np.arange(WARPGROUP)[:, np.newaxis], np.arange(n // 2)
    row = thread // 32 * 16 + thread % 32 // 4 + i // 2 % 2 * 8
    column = i // 4 * 8 + thread % 4 * 2 + i % 2
    return row, column


def tma_aligned_size(x: int, element_size: int) -> int:
    """`x` elements of element_size bytes, rounded up to what a TMA stride can be: a multiple of 16 bytes."""
    multiple = TMA_ALIGNMENT // element_size
    return -(-x // multiple) * multiple


def get_mn_major_tma_aligned(sf: np.ndarray) -> np.ndarray:
    """Scales [m, k / 128] or [groups, m, k / 128] in the layout that TMA reads: m contiguous, rows padded.

    The stride along k is m rounded up to 16 bytes; the padding is zeros. Float32 [m, kb] becomes strides,
    in elements, of (1, align(m, 4)); [groups, m, kb] of (align(m, 4) * kb, 1, align(m, 4)).
    """
    sf = np.asarray(sf)
    if sf.ndim not in (2, 3):
        raise ValueError(f"scales of shape {sf.shape} were given; 2 dimensions, or 3 with groups, are needed")
    *groups, m, blocks = sf.shape
    storage = np.zeros((*groups, blocks, tma_aligned_size(m, sf.itemsize)), sf.dtype)
    aligned = np.swapaxes(storage[..., :m], -1, -2)
    aligned[...] = sf
    return aligned
