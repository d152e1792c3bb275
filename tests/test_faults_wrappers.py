"""Misuse of the instructions that no other kernel of a fault has: each ends in its fault, by name."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from gemm_ladder import lab
from gemm_ladder.errors import EmulatorError

SOURCE = Path(__file__).with_name("faults_wrappers.cu")
NONE = ("mbarrier_uninitialised", r"mbarrier 0xc00 of block 0 was not initialised")
FAULTS = {
    0: ("deadlock", "warp 0 waits for mma.sync"),
    1: ("misaligned", "stmatrix"),
    2: ("divergent_warp", "redux"),
    3: ("divergent_warp", "match"),
    4: ("divergent_warp", "vote"),
    5: ("divergent_warp", "shfl"),
    10: NONE,
    11: NONE,
    12: ("misaligned", "cp.async.bulk.prefetch of 8 bytes: a multiple of 16"),
    13: (
        "global_out_of_bounds",
        r"reduce.async.bulk writes 16 bytes at .*0 bytes behind.*there are fewer bytes",
    ),
    14: NONE,
    15: ("invalid_operand", "TMA load with 3 coordinates, and a tensor map of 2 dimensions"),
    16: NONE,
    17: ("misaligned", "TMA prefetch at column 1"),
    18: ("invalid_operand", "TMA store at row -1"),
    19: ("invalid_operand", "a reduction that the copy engine does not have"),
    20: NONE,
    21: NONE,
    22: ("misaligned", "at column 1"),
    30: NONE,
    31: ("too_many_arrivals", "more often than its count of 2"),
    32: ("too_many_arrivals", "more often than its count of 2"),
    33: ("too_many_bytes", "expects 1048576 bytes"),
    34: NONE,
    35: NONE,
    36: NONE,
    37: NONE,
    38: ("mbarrier_uninitialised", "mbarrier 0xc08 of block 0 was not initialised"),
    39: NONE,
    40: ("out_of_bounds", "at 0x2400"),
}


@pytest.mark.parametrize("which", FAULTS)
def test_faults(which: int) -> None:
    tensor = np.zeros((16, 64), np.float32)
    tensor_map = lab.tensor_map(tensor, (8, 4))
    what, message = FAULTS[which]
    for seed in range(3):
        with pytest.raises(EmulatorError) as caught:
            lab.run(SOURCE, which, tensor_map, tensor, block=32, shared_bytes=4096, seed=seed)
        assert caught.value.what == what and re.search(message, str(caught.value)), caught.value
        assert "(faults_wrappers.cu:" in str(caught.value), "and not a line of a header"
