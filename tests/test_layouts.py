"""The layouts: one to one, with the property that each exists for, and as the kernels' header has them."""

from __future__ import annotations

import ctypes
import shutil

import numpy as np
import pytest
from gemm_ladder.ref import layouts

ROWS, BYTES = np.meshgrid(np.arange(64), np.arange(128), indexing="ij")


def test_swizzle_is_a_permutation_with_its_inverse():
    offsets = layouts.swizzle_128b(ROWS, BYTES)
    assert sorted(offsets.ravel()) == list(range(64 * 128))
    rows, col_bytes = layouts.unswizzle_128b(offsets)
    assert np.array_equal(rows, ROWS) and np.array_equal(col_bytes, BYTES)


def test_swizzle_keeps_16_bytes_together_and_rows_apart():
    offsets = layouts.swizzle_128b(ROWS, BYTES)
    assert np.array_equal(offsets // 128, ROWS)
    chunks = offsets.reshape(64, 8, 16)
    assert np.array_equal(chunks - chunks[..., :1], np.broadcast_to(np.arange(16), chunks.shape))
    assert np.array_equal(offsets[:8] + 1024, offsets[8:16])  # the pattern repeats every 8 rows
    assert np.array_equal(offsets[0], np.arange(128))


def bank_groups(offsets: np.ndarray) -> np.ndarray:
    """Which of the eight groups of four 4-byte banks a byte lies in."""
    return offsets // 16 % 8


def test_swizzle_spreads_a_column_over_all_banks():
    for first_row in range(0, 64, 8):
        rows = np.arange(first_row, first_row + 8)
        for column in range(0, 128, 16):
            assert len(set(bank_groups(layouts.swizzle_128b(rows, column)))) == 8
            assert len(set(bank_groups(rows * 128 + column))) == 1  # what it is for: a plain tile's conflict


def test_swizzle_is_the_address_xor_that_the_hardware_does():
    offset = ROWS * 128 + BYTES
    assert np.array_equal(layouts.swizzle_128b(ROWS, BYTES), offset ^ (offset >> 3 & 0x70))


@pytest.mark.parametrize("address", [0, 1024, 16 * 1024 + 32, 232448 - 16])
def test_descriptor_of_the_kernels(address):
    bits = layouts.smem_descriptor(address)
    assert bits >> 32 == 0x40000040  # as disassembled from a Hopper kernel
    assert bits & 0xFFFFFFFF == address >> 4
    assert layouts.SmemDescriptor.decode(bits) == layouts.SmemDescriptor(
        address=address, leading_byte_offset=0, stride_byte_offset=1024, base_offset=0, swizzle=1
    )


def test_the_next_k_and_the_next_rows():
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


def test_mn_major_scales_need_two_or_three_dimensions():
    with pytest.raises(ValueError, match=r"\(3,\)"):
        layouts.get_mn_major_tma_aligned(np.ones(3, np.float32))


HEADER = """
#include "ptx.cuh"
#include "layout.cuh"
extern "C" uint32_t swizzle(uint32_t address) { return swizzle_128b(address); }
extern "C" uint64_t descriptor(uint32_t address) { return smem_descriptor(address); }
extern "C" int row(int thread, int i) { return accumulator_row(thread, i); }
extern "C" int column(int thread, int i) { return accumulator_column(thread, i); }
"""


@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="needs a C++ compiler")
def test_the_kernels_header_says_the_same():
    from gemm_ladder import build

    header = build.load(HEADER, target="emulator", name="layout_test").lib
    header.descriptor.restype = ctypes.c_uint64
    for offset in range(0, 64 * 128, 16):
        assert header.swizzle(offset) == layouts.swizzle_128b(*divmod(offset, 128))
    for address in range(0, 232448, 1024 + 32):
        assert header.descriptor(address) == layouts.smem_descriptor(address)
    rows, columns = layouts.wgmma_accumulator(256)
    for thread in range(128):
        for i in range(128):
            assert (header.row(thread, i), header.column(thread, i)) == (rows[thread, i], columns[thread, i])
