"""What the emulator says in clusters of more than 4096 threads, in which it follows no order of accesses."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from gemm_ladder import lab

SOURCE = Path(__file__).with_name("large_clusters.cu")
SEEDS = 3
MESSAGES = {
    0: r"a WGMMA of warps 0 to 3 of block \d may still read: it is committed",
    1: r"a WGMMA of warps 0 to 3 of block \d may still read: it is not committed",
    2: r"a TMA store of warp 0 of block \d may still read: the thread that issued it has not waited",
}


@pytest.mark.parametrize("which", MESSAGES)
def test_what_is_still_read_is_not_overwritten(which: int) -> None:
    tile = lab.tensor_map(np.zeros((64, 32), np.float32), (64, 32), 128)
    arguments = dict(grid=8, block=1024, cluster=8, shared_bytes=8192, seeds=SEEDS)
    faults = lab.sweep(SOURCE, which, tile, **arguments).faults
    assert len(faults) == SEEDS
    for error in faults.values():
        assert error.what == "released_too_early"
        assert re.search(f"which {MESSAGES[which]}", str(error)), error
        assert error.other_line, "where it was issued"
