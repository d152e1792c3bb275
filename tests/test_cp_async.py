"""cp.async on the emulator and on a GPU: pieces of all sizes, zeros behind them, groups, and mbarriers."""

from __future__ import annotations

import numpy as np
import pytest
from gemm_ladder.ref import layouts, mma
from instruction_units import check_fault, run_unit, schedules

FILE = "units_cp_async.cu"
THREADS, BYTES = 128, 48
PIECES = (4, 8, 16, 16, 16, 16)  # by unit


@pytest.mark.parametrize("unit", range(6))
@pytest.mark.parametrize("valid", [0, 3, None])
def test_cp_async(machine: str, unit: int, valid: int | None) -> None:
    data = np.random.default_rng(unit).integers(0, 256, THREADS * BYTES, np.uint8)
    piece = PIECES[unit]
    pieces = data.reshape(-1, piece).copy()
    pieces[:, piece if valid is None else valid :] = 0
    expected = pieces.reshape(-1).view(np.uint32)
    if unit == 3:
        expected[:: BYTES // 4] += 1
    for seed in schedules(machine):
        out = np.zeros(THREADS * BYTES // 4, np.uint32)
        bytes_ = piece if valid is None else valid
        run_unit(machine, FILE, unit, data, out, bytes_, shared_bytes=THREADS * BYTES + 8, seed=seed)
        np.testing.assert_array_equal(out, expected)


def test_wgmma_of_copied_bytes(machine: str) -> None:
    """With a proxy fence, which test_faults leaves out."""
    values = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32).view(np.uint32) >> 16
    image = np.empty(64 * 128, np.uint8)
    rows, bytes_ = np.indices((64, 128))
    image[layouts.swizzle(rows, bytes_, 128)] = values.astype(np.uint16).view(np.uint8)
    a = np.ascontiguousarray(values[:, :16].astype(np.uint16))
    product = mma.multiply(mma.INSTRUCTIONS["wgmma.f32.bf16.bf16"], a, a[:8], np.zeros((64, 8), np.uint32))
    row, column = layouts.wgmma_accumulator(8)
    for seed in schedules(machine):
        out = np.zeros((128, 4), np.uint32)
        run_unit(machine, FILE, 6, image, out, 16, shared_bytes=8192, seed=seed)
        np.testing.assert_array_equal(out, product[row, column])


FAULTS = {
    10: ("data_race", "reads shared memory at 0x400, which a cp.async of thread"),  # not waited for
    11: (
        "data_race",
        "(reads|writes) shared memory at 0x400, which (a cp.async of )?thread",
    ),  # without a barrier
    12: ("misaligned", "cp.async of 16 bytes at 0x408, which is not a multiple of 16"),
    13: ("misaligned", "cp.async of 16 bytes from an address that is no multiple of 16"),
    14: ("global_out_of_bounds", r"reads 16 bytes at tensor\[64, 0\], outside tensor of shape 64 x 64"),
    15: ("invalid_operand", "cp.async of 8 bytes, of which 9 are to be copied: at most 8 are"),
    16: (
        "missing_proxy_fence",
        r"wgmma .* reads shared memory at 0x\w+ that an asynchronous copy or store of thread",
    ),
    17: (
        "too_many_arrivals",
        "cp.async.mbarrier.arrive on mbarrier 0x4400 .full 0. more often than its count of 1",
    ),
    18: (
        "released_too_early",
        "cp.async overwrites shared memory at 0x400, which a WGMMA of warps 0 to 3 may still read",
    ),
}


@pytest.mark.parametrize("which", FAULTS)
def test_faults(which: int) -> None:
    check_fault(which, *FAULTS[which])
