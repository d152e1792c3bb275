"""The order of accesses to shared memory: by threads in pieces of a word, by WGMMAs, by the copy engine."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from gemm_ladder import lab

SOURCE = Path(__file__).with_name("faults_order.cu")
SEEDS = 8


class Fault(NamedTuple):
    """An error's `what` and its message, as regular expressions; texts of the two lines that it names."""

    what: str
    message: str
    lines: tuple[str, str]


STORED = (
    r"reads shared memory at 0x\w+, which thread \d+ of block \d+ has written, and nothing orders the two"
)
TAKEN = r"overwrites shared memory at 0x\w+, which a (WGMMA of warps 0 to 3|TMA store of warp 0) reads"
EARLY = r"TMA load overwrites shared memory at 0x\w+, which a WGMMA of warps 0 to 3 may still read: "
WGMMA, LOAD, TMA_STORE = "ptx::wgmma<", "ptx::cp_async_bulk_tensor_2d(", "ptx::cp_async_bulk_tensor_2d_store("
STORES_TILE = "ptx::st_shared(smem + i * 4, 0u)"
FAULTS = {
    0: Fault(
        "data_race",
        r"writes shared memory at 0x\w+ \(bytes\[\d+\]\), which thread \d+ of block \d+ has written",
        ("bytes[t / 2]",) * 2,
    ),
    1: Fault(
        "data_race",
        r"(reads|writes) shared memory at 0x\w+ \(halves\[\d+\]\), which thread \d+ of block \d+ has (wr|re)",
        ("halves[t", "halves[t"),
    ),
    2: Fault(
        "data_race",
        r"writes shared memory at 0x\w+ \(halves\[\d+\]\), which thread \d+ of block \d+ has written",
        ("halves[", "halves["),
    ),
    3: Fault("data_race", f"{STORED}|{TAKEN}", (f"{WGMMA}|{STORES_TILE}",) * 2),
    4: Fault("data_race", f"{STORED}|{TAKEN}", (f"{WGMMA}|smem + 4",) * 2),
    5: Fault(
        "released_too_early",
        r"st.shared overwrites shared memory at 0x\w+, which a WGMMA of warps 0 to 3 may still read",
        ("t == 40", WGMMA),
    ),
    6: Fault("data_race", f"{STORED}|{TAKEN}", (f"{TMA_STORE}|{STORES_TILE}",) * 2),
    7: Fault("data_race", f"{STORED}|{TAKEN}", (f"{TMA_STORE}|t == 40",) * 2),
    8: Fault(
        "released_too_early",
        EARLY + r"it is committed, and the arrival .* before wgmma.wait_group",
        (LOAD, WGMMA),
    ),
    9: Fault("released_too_early", EARLY + "it is not committed", (LOAD, WGMMA)),
    10: Fault(
        "released_too_early|too_many_arrivals|data_race",
        rf"{EARLY}|arrives on mbarrier 0x4400.* more often than its count of 1 in phase 0"
        r"|TMA load overwrites shared memory at 0x\w+, which an earlier TMA load has filled",
        (f"{LOAD}|arrive_expect_tx", f"{LOAD}|{WGMMA}|arrive_expect_tx"),
    ),
    12: Fault(
        "read_during_load|data_race",
        r"this thread has not waited for mbarrier 0x4400.*, on which the load completes, nor met"
        r"|TMA load overwrites shared memory at 0x\w+, which thread \d+ of block \d+ has read",
        (f"ld_shared<float>(smem + t * 4)|{LOAD}",) * 2,
    ),
}
RIGHT = range(100, 107)


def sweep(which: int) -> lab.Sweep:
    tile, out = np.zeros((64, 32), np.float32), np.zeros(160, np.float32)
    threads = 160 if which in (4, 5, 101, 8, 9, 10, 11, 12, 104, 105) else 128
    arguments = (which, lab.tensor_map(tile, (64, 32), 128), out)
    return lab.sweep(SOURCE, *arguments, block=threads, shared_bytes=16384 + 16, seeds=SEEDS)


def text_of(line: str) -> str:
    file, number = line.split(":")
    assert file == SOURCE.name
    return SOURCE.read_text().splitlines()[int(number) - 1]


@pytest.mark.parametrize("which", FAULTS)
def test_a_fault_is_reported_with_both_lines_on_every_schedule(which: int) -> None:
    fault, faults = FAULTS[which], sweep(which).faults
    assert len(faults) == SEEDS
    for error in faults.values():
        assert re.fullmatch(fault.what, error.what) and re.search(fault.message, str(error)), error
        for line, expected in zip((error.line, error.other_line), fault.lines, strict=True):
            if line is None:  # an arrival has no other place
                assert error.what == "too_many_arrivals"
            else:
                assert any(text in text_of(line) for text in expected.split("|")), error


@pytest.mark.parametrize("which", RIGHT)
def test_what_is_ordered_is_right(which: int) -> None:
    assert not sweep(which).faults


def test_a_phase_that_completes_too_early_is_named() -> None:
    """Where half of the bytes complete it; where all of them land first, the phase never completes."""
    found = sweep(11).faults.values()
    assert {error.what for error in found} <= {"read_during_load", "deadlock"}
    early = [str(error) for error in found if "may still be writing" in str(error)]
    assert early
    for text in early:
        assert re.search(
            r"the phases of mbarrier 0x4400.* do not wait for all of its loads: they expect fewer bytes", text
        )


HELPERS = """
#include <cuda_runtime.h>
__device__ inline void put(float* s, int i, float v) {
    s[i] = v;
}
__global__ void k(float* y) {
    __shared__ float s[64];
    put(s, threadIdx.x, 1.0f);
    put(s, 63 - threadIdx.x, 2.0f);
    __syncthreads();
    y[threadIdx.x] = s[threadIdx.x];
}
"""


def test_the_lines_that_call_a_helper_are_named() -> None:
    found = lab.sweep(HELPERS, np.zeros(64, np.float32), block=64, seeds=2).faults.values()
    for error in found:
        assert error.what == "data_race" and error.line.endswith(":4") and error.other_line.endswith(":4")
        called = re.findall(r":4, called at \S+?:(8|9)", str(error))
        assert sorted(called) == ["8", "9"], error
    assert found
