"""The cluster, its shared memory, and the lanes of a warp, on the emulator and on a GPU."""

from __future__ import annotations

import numpy as np
import pytest
from instruction_units import check_fault, fault_of, run_unit, schedules

NONE = np.zeros(1, np.uint32)


def run(
    machine: str, unit: int, shape: tuple[int, ...], data: np.ndarray = NONE, **launch
) -> list[np.ndarray]:
    outs = []
    for seed in schedules(machine):
        outs.append(np.zeros(shape, np.uint32))
        launch.setdefault("shared_bytes", 8192)
        run_unit(machine, "units_cluster.cu", unit, data, outs[-1], seed=seed, **launch)
    return outs


def test_where_a_block_is(machine: str) -> None:
    cluster, grid = np.array([2, 1, 2]), np.array([4, 3, 2])
    expected = []
    for z, y, x in np.ndindex(*grid[::-1]):
        block = np.array([x, y, z])
        inner = block % cluster
        rank = inner[0] + cluster[0] * (inner[1] + cluster[1] * inner[2])
        expected.append([*inner, *cluster, *(block // cluster), *(grid // cluster), rank, 4])
    for out in run(machine, 0, (24, 14), grid=(4, 3, 2), cluster=(2, 1, 2), block=32):
        np.testing.assert_array_equal(out, expected)


def test_lanes(machine: str) -> None:
    values = np.random.default_rng(0).integers(0, 2**32, 64, np.uint32)
    values[32:] = values[32::1] % 3 + 4  # the second warp: few different values
    values[33::2] = 5  # and its odd lanes: one
    expected = np.zeros((64, 15), np.uint32)
    for thread in range(64):
        group = [t for t in range(64) if t // 32 == thread // 32 and t % 2 == thread % 2]
        of = values[group]
        mask = sum(1 << t % 32 for t in group)
        odd = [t for t in group if values[t] % 2]
        expected[thread, :11] = [
            *(of.sum(dtype=np.uint32), of.min(), of.view(np.int32).max().astype(np.uint32)),
            *(np.bitwise_and.reduce(of), np.bitwise_or.reduce(of), np.bitwise_xor.reduce(of)),
            sum(1 << t % 32 for t in group if values[t] == values[thread]),
            mask if (of == of[0]).all() else 0,
            sum(1 << t % 32 for t in odd),
            (len(odd) == len(group)) + 2 * bool(odd),
            1,
        ]
        expected[thread, 14] = values[thread ^ 2]
    for out in run(machine, 1, (64, 15), values, block=64):
        np.testing.assert_array_equal(out[:, :11], expected[:, :11])
        np.testing.assert_array_equal(out[:, 14], expected[:, 14])
        assert out[:, 12].all() and (out[:, 13] == 1).all()  # one leader, which belongs to the mask
        assert out[:, 11].sum() == 4


def test_stores_of_all_widths_to_the_other_block(machine: str) -> None:
    seeds = np.arange(256)
    expected = np.zeros((256, 5), np.uint32)
    for column, width in enumerate((1, 2, 4, 8, 16)):
        for i in range(width):
            byte = (seeds * 7 + i * 31) % 256 * (i + 1)
            expected[:, column] += (byte + (np.roll(byte, 128) << 16)).astype(np.uint32)
    for out in run(machine, 2, (256, 5), grid=2, cluster=2):
        np.testing.assert_array_equal(out, expected)


def test_atomics_on_the_first_block(machine: str) -> None:
    for out in run(machine, 3, (10,), grid=2, cluster=2):
        total = 255 * 256 // 2
        assert out[:4].tolist() == [total, 0, 2**32 - 1, 256 % 100]
        assert out[4:5].view(np.float32) == 256
        assert out[6:8].view(np.uint64) == 2**39
        assert out[8:].tolist() == [0, 8]


def test_stores_that_complete_bytes(machine: str) -> None:
    for out in run(machine, 4, (2 * 128 * 7 + 4,), grid=2, cluster=2):
        got = out[: 2 * 128 * 7].reshape(256, 7)
        sender = np.roll(np.arange(256, dtype=np.uint32), 128)
        np.testing.assert_array_equal(got[:, :3], sender[:, None] + np.arange(3))
        floats = got[:, 3:].copy().view(np.float32)
        np.testing.assert_array_equal(floats, sender[:, None] + np.arange(4) + 0.5)
        ids = np.arange(256).reshape(2, 128)[::-1]
        words = out[2 * 128 * 7 :].view(np.int32).reshape(2, 2)
        np.testing.assert_array_equal(words, np.stack([ids.sum(1), -ids.max(1)], 1))


def test_a_block_that_arrives_and_ends(machine: str) -> None:
    """Its arrival counts, with what was written before it, until the others have arrived, and not longer."""
    for out in run(machine, 5, (128,), grid=2, cluster=2, block=128):
        assert out.tolist() == list(range(1, 129))


FAULTS = {
    40: ("data_race", "(reads|writes) shared memory at 0x400, which (a st.async of )?thread"),
    41: ("invalid_operand", "st.async to block 0 completes bytes on an mbarrier of block 1"),
    42: ("misaligned", "an atomic operation on 4 bytes at 0x1000402, which is not a multiple of 4"),
    43: (
        "mbarrier_not_visible",
        "st.async on mbarrier 0x4400 .full 0., which is not visible to it yet: fence.mbarrier_init",
    ),
    44: ("data_race", "(reads|writes) shared memory at 0x400, which thread"),
}


@pytest.mark.parametrize("which", FAULTS)
def test_faults(which: int) -> None:
    check_fault(which, *FAULTS[which], grid=2, cluster=2)


def test_a_store_that_reaches_a_block_too_late() -> None:
    found = [error for seed in range(16) if (error := fault_of(45, seed, grid=2, cluster=2))]
    assert found and {error.what for error in found} == {"block_ended"}
