"""Each layout is one to one, has the property that it exists for, and is the same in the kernels' header."""

from __future__ import annotations

import ctypes
import re
import shutil

import numpy as np
import pytest
from gemm_ladder.ref import layouts

each_swizzle = pytest.mark.parametrize("row_bytes", [32, 64, 128])


def tile(row_bytes: int) -> tuple[np.ndarray, np.ndarray]:
    """The row, and the byte in it, of every byte of 64 rows."""
    return tuple(np.indices((64, row_bytes)))


@each_swizzle
def test_swizzle_is_a_permutation_with_its_inverse(row_bytes):
    rows, col_bytes = tile(row_bytes)
    offsets = layouts.swizzle(rows, col_bytes, row_bytes)
    assert sorted(offsets.ravel()) == list(range(64 * row_bytes))
    found = layouts.unswizzle(offsets, row_bytes)
    assert np.array_equal(found[0], rows) and np.array_equal(found[1], col_bytes)


@each_swizzle
def test_swizzle_keeps_16_bytes_together_and_rows_apart(row_bytes):
    rows, col_bytes = tile(row_bytes)
    offsets = layouts.swizzle(rows, col_bytes, row_bytes)
    assert np.array_equal(offsets // row_bytes, rows)
    chunks = offsets.reshape(64, row_bytes // 16, 16)
    assert np.array_equal(chunks - chunks[..., :1], np.broadcast_to(np.arange(16), chunks.shape))
    assert np.array_equal(offsets[:8] + 8 * row_bytes, offsets[8:16])  # the pattern repeats every 8 rows
    assert np.array_equal(offsets[0], np.arange(row_bytes))


def bank_groups(offsets: np.ndarray) -> np.ndarray:
    """Which of the eight groups of four 4-byte banks a byte lies in."""
    return offsets // 16 % 8


@each_swizzle
def test_swizzle_spreads_a_column_over_all_banks(row_bytes):
    for first_row in range(0, 64, 8):
        rows = np.arange(first_row, first_row + 8)
        for column in range(0, row_bytes, 16):
            assert len(set(bank_groups(layouts.swizzle(rows, column, row_bytes)))) == 8
            # Without the swizzle the same chunks share banks: the conflict that it avoids.
            assert len(set(bank_groups(rows * row_bytes + column))) == 128 // row_bytes


@pytest.mark.parametrize(("row_bytes", "mask"), [(32, 0x10), (64, 0x30), (128, 0x70)])
def test_swizzle_is_the_hardwares_xor_of_address_bits(row_bytes, mask):
    rows, col_bytes = tile(row_bytes)
    offset = rows * row_bytes + col_bytes
    assert np.array_equal(layouts.swizzle(rows, col_bytes, row_bytes), offset ^ (offset >> 3 & mask))


def test_swizzle_128b():
    rows, col_bytes = tile(128)
    offsets = layouts.swizzle_128b(rows, col_bytes)
    assert np.array_equal(offsets, layouts.swizzle(rows, col_bytes, 128))
    assert np.array_equal(layouts.unswizzle_128b(offsets), (rows, col_bytes))


@pytest.mark.parametrize(
    ("row", "col_byte", "row_bytes", "given"),
    [
        (0, 32, 32, "bytes 32"),
        (-1, 0, 64, "rows -1"),
        (0, -1, 128, "bytes -1"),
        (0, 0, 16, "rows of 16 bytes"),
    ],
)
def test_swizzle_refuses_places_outside_the_tile(row, col_byte, row_bytes, given):
    with pytest.raises(ValueError, match=f"{given}.* given; .* needed"):
        layouts.swizzle(row, col_byte, row_bytes)


@pytest.mark.parametrize("address", [0, 1024, 16 * 1024 + 32, 232448 - 16])
def test_descriptor_equals_the_one_in_a_hopper_kernel(address):
    bits = layouts.smem_descriptor(address)
    assert bits >> 32 == 0x40000040  # read from a disassembled Hopper kernel
    assert bits & 0xFFFFFFFF == address >> 4
    assert layouts.SmemDescriptor.decode(bits) == layouts.SmemDescriptor(
        address=address, leading_byte_offset=0, stride_byte_offset=1024, base_offset=0, swizzle=1
    )


def test_descriptors_of_the_next_columns_and_of_the_next_rows():
    first = layouts.smem_descriptor(4096)
    assert layouts.smem_descriptor(4096 + layouts.swizzle_128b(0, 32)) - first == 2
    assert layouts.smem_descriptor(4096 + layouts.swizzle_128b(64, 0)) - first == 512


def test_descriptor_round_trip_and_disjoint_fields():
    rng = np.random.default_rng(0)
    for _ in range(200):
        address, leading, stride = (int(x) * 16 for x in rng.integers(0, 1 << 14, 3))
        base, swizzle = int(rng.integers(8)), int(rng.integers(4))
        descriptor = layouts.SmemDescriptor(address, leading, stride, base, swizzle)
        assert layouts.SmemDescriptor.decode(descriptor.encode()) == descriptor
    fields = {
        "address": (1 << 14) - 1,
        "leading_byte_offset": ((1 << 14) - 1) << 16,
        "stride_byte_offset": ((1 << 14) - 1) << 32,
        "base_offset": 7 << 49,
        "swizzle": 3 << 62,
    }
    for name, mask in fields.items():
        largest = mask >> (mask & -mask).bit_length() - 1
        value = largest * 16 if name not in ("base_offset", "swizzle") else largest
        zeros = dict.fromkeys(fields, 0)
        assert layouts.SmemDescriptor(**{**zeros, name: value}).encode() == mask


@pytest.mark.parametrize(
    ("field", "value"),
    [("address", 8), ("address", 1 << 18), ("address", -16), ("stride_byte_offset", 1000), ("swizzle", 4)],
)
def test_descriptor_refuses_what_its_bits_cannot_hold(field, value):
    with pytest.raises(ValueError, match=f"{field} = {value}"):
        layouts.SmemDescriptor(**{"address": 0, field: value}).encode()


@pytest.mark.parametrize("n", range(8, 257, 8))
def test_accumulators_cover_the_tile_once(n):
    rows, columns = layouts.wgmma_accumulator(n)
    assert rows.shape == columns.shape == (128, n // 2)
    assert sorted((rows * n + columns).ravel()) == list(range(64 * n))


def test_accumulator_fragment():
    rows, columns = layouts.wgmma_accumulator(16)
    # The first and last thread of warp 0, and a thread of warp 3, by hand from the PTX ISA's figure.
    assert list(zip(rows[0].tolist(), columns[0].tolist(), strict=True)) == [
        *((0, 0), (0, 1), (8, 0), (8, 1)),
        *((0, 8), (0, 9), (8, 8), (8, 9)),
    ]
    assert (rows[31, 0], columns[31, 0], rows[31, 7], columns[31, 7]) == (7, 6, 15, 15)
    assert (rows[101, 0], columns[101, 0]) == (49, 2)


@pytest.mark.parametrize("n", [0, 4, 12, 264])
def test_accumulator_refuses_other_widths(n):
    with pytest.raises(ValueError, match=f"n = {n}"):
        layouts.wgmma_accumulator(n)


@pytest.mark.parametrize(
    ("x", "size", "aligned"), [(0, 4, 0), (1, 4, 4), (4, 4, 4), (5, 4, 8), (5, 2, 8), (17, 1, 32)]
)
def test_tma_aligned_size(x, size, aligned):
    assert layouts.tma_aligned_size(x, size) == aligned


@pytest.mark.parametrize("shape", [(1, 1), (4, 3), (7, 5), (130, 2), (3, 7, 5), (2, 8, 1)])
def test_mn_major_scales(shape):
    sf = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    aligned = layouts.get_mn_major_tma_aligned(sf)
    *groups, m, blocks = shape
    rows = layouts.tma_aligned_size(m, 4)
    strides = (rows * blocks, 1, rows)[-len(shape) :]
    assert np.array_equal(aligned, sf)
    assert tuple(s // 4 for s in aligned.strides) == strides
    whole = np.lib.stride_tricks.as_strided(aligned, (*groups, rows, blocks), aligned.strides)
    assert (whole[..., m:, :] == 0).all()


@pytest.mark.parametrize(("dtype", "rows"), [(np.uint8, 16), (np.uint16, 8), (np.float64, 6)])
def test_mn_major_rows_are_padded_to_16_bytes(dtype, rows):
    aligned = layouts.get_mn_major_tma_aligned(np.ones((5, 3), dtype))
    assert aligned.dtype == dtype
    assert tuple(s // aligned.itemsize for s in aligned.strides) == (1, rows)


@pytest.mark.parametrize("shape", [(3,), (1, 2, 3, 4)])
def test_mn_major_scales_need_two_or_three_dimensions(shape):
    with pytest.raises(ValueError, match=re.escape(str(shape))):
        layouts.get_mn_major_tma_aligned(np.ones(shape, np.float32))


HEADER = """
#include "ptx.cuh"
#include "layout.cuh"
extern "C" uint32_t at_128b(uint32_t address) { return swizzle_128b(address); }
extern "C" uint32_t at_32(uint32_t address) { return swizzle<32>(address); }
extern "C" uint32_t at_64(uint32_t address) { return swizzle<64>(address); }
extern "C" uint32_t at_128(uint32_t address) { return swizzle<128>(address); }
extern "C" uint64_t descriptor(uint32_t address) { return smem_descriptor(address); }
extern "C" int row(int thread, int i) { return accumulator_row(thread, i); }
extern "C" int column(int thread, int i) { return accumulator_column(thread, i); }
"""


@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="needs a C++ compiler")
def test_the_kernels_header_has_the_same_layouts():
    from gemm_ladder import build

    header = build.load(HEADER, target="emulator", name="layout_test").lib
    header.descriptor.restype = ctypes.c_uint64
    for row_bytes, function in {32: header.at_32, 64: header.at_64, 128: header.at_128}.items():
        for offset in range(0, 64 * row_bytes, 16):
            assert function(offset) == layouts.swizzle(*divmod(offset, row_bytes), row_bytes)
    for offset in range(0, 64 * 128, 16):
        assert header.at_128b(offset) == layouts.swizzle_128b(*divmod(offset, 128))
    for address in range(0, 232448, 1024 + 32):
        assert header.descriptor(address) == layouts.smem_descriptor(address)
    rows, columns = layouts.wgmma_accumulator(256)
    for thread in range(128):
        for i in range(128):
            assert (header.row(thread, i), header.column(thread, i)) == (rows[thread, i], columns[thread, i])
