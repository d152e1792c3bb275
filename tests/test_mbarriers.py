"""What else an mbarrier can do, on the emulator and on a GPU."""

from __future__ import annotations

import numpy as np
import pytest
from instruction_units import check_fault, run_unit, schedules


def run(machine: str, unit: int, size: int, **launch) -> list[np.ndarray]:
    outs = []
    for seed in schedules(machine):
        outs.append(np.full(size, 99, np.uint32))
        run_unit(machine, "units_mbarriers.cu", unit, outs[-1], shared_bytes=1024, seed=seed, **launch)
    return outs


def test_states_and_pending_counts(machine: str) -> None:
    for out in run(machine, 0, 5):
        assert out.tolist() == [128, 0, 28, 1, 1]


def test_threads_drop_out(machine: str) -> None:
    for out in run(machine, 1, 64):
        np.testing.assert_array_equal(out, np.arange(64, 128))


def test_bytes_without_a_copy(machine: str) -> None:
    for out in run(machine, 2, 3):
        assert out.tolist() == [0, 0, 1]


def test_from_another_block(machine: str) -> None:
    for out in run(machine, 3, 2, grid=2, cluster=2):
        assert out.tolist() == [1, 2]


def test_made_invalid_and_used_again(machine: str) -> None:
    for out in run(machine, 4, 2):
        assert out.tolist() == [0, 1]


FAULTS = {
    30: ("too_many_arrivals", "arrives on mbarrier 0x4400 more often than its count of 4 in phase 0"),
    31: ("invalid_operand", "mbarrier.arrive with a count of 0: 1 to"),
    32: ("too_many_bytes", "mbarrier 0x4400 expects 1048576 bytes"),
    33: ("mbarrier_uninitialised", "mbarrier.expect_tx: mbarrier 0x400 of block 0 was not initialised"),
    34: ("data_race", "(reads|writes) shared memory at 0x400, which thread"),
    35: ("endless_polling", "polls mbarrier 0x4400 for ever"),
}


@pytest.mark.parametrize("which", FAULTS)
def test_faults(which: int) -> None:
    check_fault(which, *FAULTS[which])
