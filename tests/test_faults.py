"""The emulator names what is wrong: one small kernel for each fault (faults.cu), on several schedules."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

import gemm_ladder as gl
import numpy as np
import pytest
from gemm_ladder import build
from gemm_ladder.ref import emulator

SEEDS = range(4)
FAULTS = {
    0: r"wgmma number 0 differs from its warp's",
    1: r"wgmma number 0 differs from the one that another warp of its warpgroup issued",
    2: r"wgmma needs a whole warpgroup: four warps, the first a multiple of 4",
    3: r"the block ends with a wgmma that only some warps of a warpgroup issued",
    4: r"accumulator register 0 was written while a WGMMA was in flight",
    5: r"wgmma descriptor 0x\w+ has base offset 1; the emulator knows 0",
    6: r"executes (shfl.sync|bar.warp.sync) while its warp executes (shfl.sync|bar.warp.sync)",
    7: r"deadlock in cluster 0 after \d+ steps: block 0, warp 0 1 2 3 waits for elect.sync",
    8: r"exits with a TMA store that was never committed",
    9: r"setmaxnreg 20: a multiple of 8 from 24 to 256 is needed",
    10: r"setmaxnreg.inc 32 while the warp has 248 registers a thread",
    11: r"setmaxnreg 4[08], where warp \d of its warpgroup asked for 4[08]",
    12: r"the block ends with a setmaxnreg that only some warps of a warpgroup executed",
    13: r"barrier 16: a block has barriers 0 to 15",
    14: r"barrier 1 for 40 threads: a multiple of 32 is needed",
    15: r"barrier 1 for (96|128) threads, while others are there for (96|128)|deadlock .* barrier 1, where",
    16: r"barrier.cluster.arrive twice without a wait",
    17: r"barrier.cluster.wait without an arrive",
    18: r"mbarrier 0x4400 expects 1048576 bytes; the transaction count ends at 2\^20 - 1",
    19: r"mbarrier.init with a count of 0: 1 to 2\^20 - 1 is needed",
    20: r"address 0x6004400 names block 5 of a cluster of 1",
    21: r"st.shared of 16 bytes at 0x404, which is not a multiple of 16",
    22: r"st.shared overwrites the mbarrier near 0x4404",
    23: r"TMA load at shared memory 0x480, which is not a multiple of 1024",
    24: r"ld.shared at 0x4800 \(4 bytes\) is outside the block's shared memory, 0x400 to 0x4408",
    25: r"polls an mbarrier for ever: nothing is on its way and no other thread makes progress",
    28: r"mbarrier.arrive: no mbarrier was initialised at 0x1004400 of block 0",
    29: r"st.shared overwrites the mbarrier near 0x43f0",
    30: r"TMA load overwrites the mbarrier near 0x4000",
    31: r"TMA load at shared memory 0x500, which is not a multiple of 512",
    32: r"TMA load at shared memory 0x480, which is not a multiple of 256",
    33: r"address 0x6004400 names block 5 of a cluster of 1",
    34: r"ld.shared of 16 bytes at 0x404, which is not a multiple of 16",
}
POLLS_FOR_WHAT_COMES, LEAVES_TOO_EARLY = 26, 27
REFUSALS = {
    100: "a tensor map's base is not a multiple of 16 bytes",
    101: "a tensor map's row stride of 132 bytes is not a multiple of 16",
    102: "a tensor map of no elements",
    103: "a box is 1 to 256 elements along each dimension",
    104: "a box row of 12 bytes is not a multiple of 16",
    105: "a 128-byte-swizzled box row has 256 bytes",
    106: "a block of 100 threads; a multiple of 32 up to 1024 is needed",
    107: "232449 bytes of shared memory a block; Hopper has 232448",
    108: "3 blocks in clusters of 2",
    109: "more than 2^31 - 1 blocks",
    110: "a 64-byte-swizzled box row has 80 bytes",
    111: "a 32-byte-swizzled box row has 48 bytes",
}


class FaultArgs(ctypes.Structure):
    """struct FaultArgs of faults.cu"""

    _fields_ = [("fault", ctypes.c_int64), ("tensor", ctypes.c_void_p)]


@functools.cache
def library() -> ctypes.CDLL:
    return build.load(Path(__file__).parent / "faults.cu", target="emulator").lib


def run(fault: int, seed: int = 0, **choices) -> tuple[str | None, emulator.Run]:
    """What the launcher said, and the run."""
    tensor = np.zeros((64, 64), np.float32)
    with gl.emulator(seed=seed, record=True, **choices) as seen:
        said = emulator.launch(library(), FaultArgs(fault, tensor.ctypes.data))
    return said, seen


@pytest.mark.parametrize("fault", FAULTS)
def test_is_named(fault: int) -> None:
    for seed in SEEDS:
        with pytest.raises(gl.EmulatorError, match=FAULTS[fault]):
            run(fault, seed)


@pytest.mark.parametrize("fault", REFUSALS)
def test_is_refused(fault: int) -> None:
    run(POLLS_FOR_WHAT_COMES)  # leaves events behind
    said, seen = run(fault)
    assert said == REFUSALS[fault]
    assert len(seen.events) == seen.steps == 0


def test_polling_for_what_is_on_its_way_ends() -> None:
    for seed in range(16):
        assert run(POLLS_FOR_WHAT_COMES, seed)[0] is None


def test_leaving_while_a_load_is_on_its_way() -> None:
    said = []
    for seed in range(16):  # it may land in time
        try:
            run(LEAVES_TOO_EARLY, seed)
        except gl.EmulatorError as error:
            said.append(str(error))
    assert said
    assert all(
        "the block ends while 1 TMA loads into its shared memory are in flight" in text for text in said
    )


def test_a_run_can_be_limited() -> None:
    with pytest.raises(gl.EmulatorError, match="no end after 20 steps"):
        run(POLLS_FOR_WHAT_COMES, max_steps=20)


def test_a_load_may_land_in_two_parts() -> None:
    parts = [
        np.count_nonzero(run(POLLS_FOR_WHAT_COMES, seed)[1].events["kind"] == "mbarrier_complete_tx")
        for seed in range(16)
    ]
    assert set(parts) == {1, 2}
