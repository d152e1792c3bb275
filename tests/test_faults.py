"""The emulator says what is wrong: a small kernel for each kind of fault (faults.cu), on several seeds."""

from __future__ import annotations

import copy
import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import fault_examples
import gemm_ladder as gl
import numpy as np
import pytest
from fault_kernels import PLAIN, REPOSITORY, SOURCE, caught, kinds, run


class Fault(NamedTuple):
    """What an error must have: its `what`, a part of its message, its `address`. The first two are regular
    expressions, because in one kernel the seed decides which of two faults happens first."""

    what: str
    message: str
    address: int | None = None


SEEDS = range(4)
# By the kernel's number in faults.cu: reported on every schedule.
FAULTS = {
    0: Fault("divergent_warp", r"wgmma number 0 differs from its warp's"),
    1: Fault(
        "divergent_warpgroup",
        r"wgmma number 0 differs from the one that another warp of its warpgroup issued",
    ),
    2: Fault("divergent_warpgroup", r"wgmma needs a whole warpgroup: four warps, the first a multiple of 4"),
    3: Fault(
        "divergent_warpgroup", r"a warp has ended without a wgmma that other warps of its warpgroup issued"
    ),
    4: Fault(
        "accumulator_overwritten", r"writes accumulator register 0 while a WGMMA that adds to it is in flight"
    ),
    5: Fault("unsupported", r"wgmma descriptor 0x\w+ has base offset 1; the emulator knows 0", address=0x400),
    6: Fault(
        "divergent_warp",
        r"executes (shfl.sync.idx|bar.warp.sync) while its warp executes (shfl.sync.idx|bar.warp.sync)",
    ),
    7: Fault(
        "deadlock", r"deadlock in cluster 0 after \d+ steps:\n  block 0, warps 0 1 2 3 wait for elect.sync"
    ),
    8: Fault("uncommitted_store", r"exits with a TMA store that was never committed"),
    9: Fault("invalid_operand", r"setmaxnreg 20: a multiple of 8 from 24 to 256 is needed"),
    10: Fault("invalid_operand", r"setmaxnreg.inc 32 while the warp has 248 registers a thread"),
    11: Fault("divergent_warpgroup", r"setmaxnreg 4[08], where warp \d of its warpgroup asked for 4[08]"),
    12: Fault(
        "divergent_warpgroup",
        r"the block ends with a setmaxnreg that only some warps of a warpgroup executed",
    ),
    13: Fault("invalid_operand", r"barrier 16: a block has barriers 0 to 15"),
    14: Fault("invalid_operand", r"barrier 1 for 40 threads: a multiple of 32 is needed"),
    15: Fault(
        "named_barrier_mismatch|deadlock",
        r"barrier 1 for (96|128) threads, while others are there for (96|128)|deadlock .* barrier 1, where",
    ),
    16: Fault("cluster_barrier_order", r"barrier.cluster.arrive twice without a wait"),
    17: Fault("cluster_barrier_order", r"barrier.cluster.wait without an arrive"),
    18: Fault(
        "too_many_bytes",
        r"mbarrier 0x4400 expects 1048576 bytes; the transaction count ends at 2\^20 - 1",
        address=0x4400,
    ),
    19: Fault(
        "invalid_operand", r"mbarrier.init with a count of 0: 1 to 2\^20 - 1 is needed", address=0x4400
    ),
    20: Fault("out_of_bounds", r"address 0x6004400 names block 5 of a cluster of 1", address=0x6004400),
    21: Fault("misaligned", r"st.shared of 16 bytes at 0x404, which is not a multiple of 16", address=0x404),
    22: Fault(
        "mbarrier_overwritten", r"st.shared of 4 bytes at 0x4404 overwrites mbarrier 0x4400", address=0x4404
    ),
    23: Fault(
        "misaligned", r"TMA load at shared memory 0x480, which is not a multiple of 1024", address=0x480
    ),
    24: Fault(
        "out_of_bounds",
        r"ld.shared at 0x4800 \(4 bytes\) is outside the block's shared memory, 0x400 to 0x4418",
        address=0x4800,
    ),
    25: Fault(
        "endless_polling",
        r"polls mbarrier 0x4400 for ever: nothing is on its way and no other thread makes",
        address=0x4400,
    ),
    28: Fault(
        "mbarrier_uninitialised",
        r"mbarrier.arrive at 0x1004400: that is an address of the cluster, which mapa gives",
        address=0x1004400,
    ),
    29: Fault(
        "mbarrier_overwritten", r"st.shared of 16 bytes at 0x43f0 overwrites mbarrier 0x43f8", address=0x43F0
    ),
    30: Fault(
        "mbarrier_overwritten", r"TMA load of 16 bytes at 0x4000 overwrites mbarrier 0x4008", address=0x4000
    ),
    31: Fault(
        "misaligned", r"TMA load at shared memory 0x500, which is not a multiple of 512", address=0x500
    ),
    32: Fault(
        "misaligned", r"TMA load at shared memory 0x480, which is not a multiple of 256", address=0x480
    ),
    33: Fault("out_of_bounds", r"address 0x6004400 names block 5 of a cluster of 1", address=0x6004400),
    34: Fault("misaligned", r"ld.shared of 16 bytes at 0x404, which is not a multiple of 16", address=0x404),
    38: Fault(
        "missing_proxy_fence",
        r"wgmma \([AB]\) reads shared memory at 0x400 that thread 0 of block 0 wrote without fence",
        address=0x400,
    ),
    39: Fault(
        "missing_proxy_fence",
        r"TMA store reads shared memory at 0x400 that thread 37 of block 0 wrote without fence.proxy.async",
        address=0x400,
    ),
    40: Fault("missing_wgmma_fence", r"wgmma without wgmma.fence after the accumulators were last touched"),
    41: Fault("unfinished_wgmma", r"exits with WGMMAs in flight: wgmma.wait_group is missing"),
    43: Fault(
        "mbarrier_not_visible",
        r"TMA load on mbarrier 0x4400, which the copy engine cannot see yet: fence.mbarrier_init is missing",
        address=0x4400,
    ),
    44: Fault(
        "too_many_arrivals",
        r"arrives on mbarrier 0x4400 \(full 0\) more often than its count of 1 in phase 0: the count is",
        address=0x4400,
    ),
    45: Fault("block_not_started", r"reaches into block [01] of its cluster, which may not have begun"),
    46: Fault(
        "block_ended",
        r"reaches into block 1 of its cluster, which has already ended|"
        r"the block ends, and nothing makes sure that thread 0 of block 0 has done by then what it does to",
    ),
    49: Fault(
        "missing_dependency_wait",
        r"warp 2, lane 0: TMA load before griddepcontrol.wait, in a kernel that may begin before",
        address=0x400,
    ),
    50: Fault("missing_dependency_wait", r"TMA store before griddepcontrol.wait", address=0x400),
    51: Fault("missing_dependency_wait", r"the block ends without griddepcontrol.wait"),
    52: Fault("missing_dependency_wait", r"uses global memory before griddepcontrol.wait"),
    79: Fault("missing_dependency_wait", r"warp 2, lane 6: uses global memory before griddepcontrol.wait"),
    60: Fault("accumulator_read", r"reads accumulator register 1 while a WGMMA that adds to it is in flight"),
    62: Fault(
        "data_race",
        r"(reads|writes) shared memory at 0x400, which thread \d+ of block 0 has (written|read), and nothing",
    ),
    63: Fault(
        "data_race",
        r"TMA load overwrites shared memory at 0x\w+, which thread \d+ of block 0 has read, and nothing",
    ),
    64: Fault(
        "data_race",
        r"reads shared memory at 0x400, which thread 0 of block 0 has written, and",
    ),
    65: Fault("mbarrier_reinitialised", r"mbarrier.init of mbarrier 0x4400 \(full 3\), which is", 0x4400),
    67: Fault(
        "missing_proxy_fence",
        r"TMA load overwrites shared memory at 0x400 that thread 0 of block 0 wrote",
        0x400,
    ),
    68: Fault("read_during_load", r"wgmma \(A\) reads shared memory at 0x\w+(, which| while) a TMA load"),
    70: Fault(
        "uninitialised_register", r"wgmma adds to accumulator register 0, which nothing has initialised"
    ),
    71: Fault(
        "deadlock", r"wait for setmaxnreg.inc 136: each thread has 128 registers, as __launch_bounds__"
    ),
    72: Fault("invalid_operand", r"512 threads a block; the kernel's __launch_bounds__ promises at most 256"),
    73: Fault("accumulator_read", r"as wgmma.commit_group is missing"),
    74: Fault(
        "released_too_early",
        r"a WGMMA of warps 0 to 3 may still read: it is not committed, .* wgmma.commit_group is missing",
    ),
    77: Fault("divergent_warp", r"executes bar.sync, and other lanes of its warp execute bar.sync elsewhere"),
    78: Fault("divergent_warp", r"executes wgmma.fence, and other lanes of its warp execute wgmma.fence"),
    76: Fault("block_ended", r"the block ends, and nothing makes sure that thread 7 of block [01] has done"),
    61: Fault("missing_wgmma_fence", r"wgmma after accumulator register 2 was written behind wgmma.fence"),
}
# The text of the line of faults.cu that the error names.
LINES = {
    4: "d[0] = 1.0f;",
    60: "sink(d[1]);",
    61: "ptx::wgmma<kN>(d, tile, tile, 1);",
}
# Reported only on those schedules on which the copy engine, or the other block, is slow or fast enough.
RACES = {
    27: Fault(
        "unfinished_load",
        r"block 0 ends while 1 TMA loads .* in flight: this one completes on mbarrier 0x4400",
    ),
    35: Fault(
        "read_during_load",
        r"reads (bytes that a TMA load is still|shared memory at 0x600, which a TMA load may still be)",
        address=0x600,
    ),
    36: Fault(
        "write_during_load",
        r"writes (0x600 while a TMA load is still|shared memory at 0x600, which a TMA load may still be)",
        address=0x600,
    ),
    37: Fault(
        "released_too_early",
        r"st.shared overwrites shared memory at 0x600, which a TMA store of warp 0 may still read: the",
        address=0x600,
    ),
    42: Fault(
        "unfinished_store", r"exits while a TMA store may still read shared memory: wait_group.read first"
    ),
    75: Fault("data_race", r"; barrier 1 was completed by warps [0-7 ]+, of several warpgroups: do two"),
}
POLLS_FOR_A_LOAD, PREFETCHES, HIDES_ITS_FAULT = 26, 47, 48


NO_ONE_ADDRESS = (
    *(
        "block_not_started",
        "block_ended",
        "written_twice",
        "data_race",
        "read_during_load",
        "released_too_early",
    ),
)


def check(error: gl.EmulatorError, fault: Fault) -> None:
    """The error is this fault, and the thread that its message names is the one in its fields."""
    assert re.fullmatch(fault.what, error.what)
    assert re.search(fault.message, str(error))
    in_host_memory = re.search("global memory|outside T|local memory", str(error))
    elsewhere = fault.what in NO_ONE_ADDRESS
    assert error.address == fault.address or elsewhere or in_host_memory
    if thread := re.match(r"emulator: block (\d+), warp (\d+), lane (\d+): ", str(error)):
        assert (error.block, error.warp, error.lane) == tuple(map(int, thread.groups()))


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_reported_on_every_schedule(fault: int) -> None:
    for seed in SEEDS[:1] if FAULTS[fault].what == "endless_loop" else SEEDS:  # which takes seconds
        error = caught(fault, seed)
        assert error is not None
        check(error, FAULTS[fault])


@pytest.mark.parametrize("fault", LINES)
def test_a_fault_names_the_line(fault: int) -> None:
    error = caught(fault)
    file, number = error.line.split(":")
    assert file == "faults.cu"
    assert LINES[fault] in SOURCE.read_text().splitlines()[int(number) - 1]
    assert str(error).endswith(f"({error.line})")


@pytest.mark.parametrize("fault", RACES)
def test_a_race_is_reported_on_some_schedules(fault: int) -> None:
    found = [error for seed in range(16) if (error := caught(fault, seed))]
    assert found
    for error in found:
        check(error, RACES[fault])


def test_each_kind_of_fault_is_tested() -> None:
    here = {"step_limit", "host"}  # by tests of their own, below
    tested = {what for fault in [*FAULTS.values(), *RACES.values()] for what in fault.what.split("|")}
    assert tested | here | PLAIN == set(kinds())


def test_the_readme_explains_each_kind_of_fault() -> None:
    table = (REPOSITORY / "ref" / "emulator" / "README.md").read_text(encoding="utf-8")
    explained = {
        name for row in table.splitlines() if row.startswith("| `") for name in re.findall(r"`(\w+)`", row)
    }
    assert set(kinds()) <= explained


@pytest.mark.parametrize("fault", fault_examples.CASES)
def test_the_example_of_a_fault_is_that_of_a_run(fault: str) -> None:
    """ref/emulator/FAULTS.md, which python tests/fault_examples.py writes."""
    shown, found = fault_examples.read()[fault], fault_examples.example(fault)
    assert shown.code == found.code
    assert fault_examples.words(shown.message) == fault_examples.words(found.message)


def test_each_fault_has_an_example() -> None:
    assert fault_examples.read().keys() == fault_examples.CASES.keys() == set(kinds()) - {"host"}


def test_a_fault_of_asynchronous_work_names_the_thread_that_issued_it() -> None:
    """Whether that thread meets the fault, in its wait, or the copy engine or tensor core does so before."""
    stores = [caught(39, seed) for seed in range(64)]
    assert {(error.block, error.warp, error.lane) for error in stores} == {(0, 1, 5)}
    assert len({str(error) for error in stores}) == 1
    products = [caught(38, seed) for seed in range(16)]
    assert all(error.block == 0 and error.warp in range(4) for error in products)
    assert any(error.lane is None for error in products)  # a whole warp issues a WGMMA


def test_a_deadlock_has_no_single_place() -> None:
    error = caught(7)
    assert (error.block, error.warp, error.lane, error.address) == (None, None, None, None)


def test_a_deadlock_says_which_lanes_wait_and_has_a_line() -> None:
    error = caught(80)
    assert error.what == "deadlock"
    assert re.search(
        r"block 0, warps 0 \(lane 0\) 1 \(lane 0\).* wait for mbarrier 0x4400 to complete", str(error)
    )
    assert re.search(
        r"block 0, warps 0 \(lanes 1 to 31\) 1 \(lanes 1 to 31\).* wait for bar.warp.sync", str(error)
    )
    file, number = error.line.split(":")
    assert file == SOURCE.name and "mbarrier_wait_parity" in SOURCE.read_text().splitlines()[int(number) - 1]


def test_the_address_of_a_prefetch_is_in_global_memory() -> None:
    error = caught(PREFETCHES)
    assert error.what == "misaligned"
    assert "TMA prefetch at column 1, byte 4 of the row: a multiple of 16 is needed" in str(error)
    assert error.address > 2**32 and error.address % 16 == 4


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_an_error_survives_pickling(protocol: int) -> None:
    error = caught(21)
    assert vars(error)["address"] == 0x404
    for other in (pickle.loads(pickle.dumps(error, protocol)), copy.copy(error)):
        assert type(other) is gl.EmulatorError
        assert (str(other), other.args, vars(other)) == (str(error), error.args, vars(error))


def test_a_fault_is_raised_whatever_the_launcher_returns() -> None:
    with pytest.raises(gl.EmulatorError, match=r"st\.shared of 16 bytes") as error:
        run(HIDES_ITS_FAULT)
    assert error.value.what == "misaligned"


def test_polling_for_a_load_ends() -> None:
    for seed in range(16):
        assert run(POLLS_FOR_A_LOAD, seed)[0] is None


def test_a_run_can_be_limited() -> None:
    error = caught(POLLS_FOR_A_LOAD, max_steps=20)
    assert error.what == "step_limit"
    assert "no end after 20 steps" in str(error)


def test_a_load_may_land_in_two_parts() -> None:
    parts = [
        np.count_nonzero(run(POLLS_FOR_A_LOAD, seed)[1].events["kind"] == "mbarrier_complete_tx")
        for seed in range(16)
    ]
    assert set(parts) == {1, 2}


NO_MEMORY_FOR_STACKS = """
import resource
from pathlib import Path
from fault_kernels import caught, library
from gemm_ladder.ref import mma
library(), mma.cfunc_address()  # everything is loaded, and there are no stacks yet
pages = int(Path("/proc/self/statm").read_text().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2**22,) * 2)
error = caught(26, threads=1)  # stacks of threads lie in at least 256 MiB of addresses
print(error.what, error.block, error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_running_out_of_memory_is_reported() -> None:
    """In a process of its own, whose memory is limited."""
    said = subprocess.run(
        [sys.executable, "-c", NO_MEMORY_FOR_STACKS],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout.strip() == "host None emulator: std::bad_alloc"
