"""The rungs on the emulator, driven from Python: seeds, what is recorded, and what becomes an error."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import gemm_ladder as gl
import numpy as np
import pytest
from cases import place
from gemm_ladder.arguments import EMULATED_SMS
from gemm_ladder.errors import LaunchError
from gemm_ladder.lab.operands import Operands, normal
from gemm_ladder.rungs import Rung
from rung_runs import KERNELS, TALL, TILES, WIDE, launched, run

SEEDS = int(os.environ.get("GEMM_LADDER_SEEDS", "40"))

# Ten K blocks go around a ring of four stages two and a half times. Three pairs of s7's tiles, tall or wide,
# are one more than the clusters that the emulated SMs hold, so that a persistent CTA computes a second tile.
SEEDED = {TALL: (520, 136, 1280), WIDE: (300, 264, 1280)}


@pytest.mark.parametrize(
    ("rung", "tile"),
    [
        pytest.param(rung, tile, id=f"{rung.name}-{tile[0]}x{tile[1]}")
        for rung in KERNELS
        for tile in (SEEDED if rung.path.stem == "s7_persistent" else [TALL])
    ],
)
def test_every_seed_gives_the_same_bits(rung, tile):
    """Seeds change the order of threads and the delays, not the result. GEMM_LADDER_SEEDS: how many seeds."""
    if rung.path.stem == "s7_persistent":
        assert TILES[launched(rung, *SEEDED[tile], EMULATED_SMS).shared_bytes] == tile
    operands = normal(np.random.default_rng(13), *SEEDED[tile])
    expected = operands.expected_bits(rung.name)
    for seed in range(1, SEEDS + 1):
        np.testing.assert_array_equal(run(rung, operands, "emulator", seed), expected, err_msg=f"seed {seed}")


def record(rung: Rung, operands: Operands, **choices):
    placed = place(operands)
    with gl.emulator(record=True, **choices) as recorded:
        rung(placed.lhs, placed.rhs, placed.out)
    return recorded


TINY = normal(np.random.default_rng(14), 8, 8, 128)


def test_events_say_what_happened():
    """Four tiles, two K blocks: each of four warps issues 2 * 4 WGMMAs, and its tensor core executes them."""
    recorded = record(gl.rungs["s3_wgmma"], normal(np.random.default_rng(19), 100, 136, 256))
    events = recorded.events
    names = ("launch", "step", "cluster", "block", "thread", "kind", "address", "value", "offset")
    assert events.dtype.names == names
    assert set(events["block"]) == set(range(4))
    for block in range(4):
        of_block = events[events["block"] == block]
        assert (np.diff(of_block["step"].astype(np.int64)) >= 0).all(), "not in order"
        assert of_block["thread"].min() >= -1 and of_block["thread"].max() < 128
        issued, executed = of_block["kind"] == "wgmma", of_block["kind"] == "wgmma_executed"
        assert issued.sum() == executed.sum() == 2 * 4 * 4
        assert (of_block["value"][issued] == 128).all()
        assert (of_block["thread"][executed] == -1).all()
    assert int(events["step"].max()) < recorded.steps


def test_launches_of_one_block_are_kept_apart():
    placed = place(TINY)
    with gl.emulator(seed=1, record=True) as recorded:
        gl.rungs["s3_wgmma"](placed.lhs, placed.rhs, placed.out)
        alone = recorded.events, recorded.steps
        gl.rungs["s3_wgmma"](placed.lhs, placed.rhs, placed.out)
    assert recorded.steps == 2 * alone[1]
    assert set(recorded.events["launch"]) == {0, 1}
    assert (recorded.events[: len(alone[0])] == alone[0]).all()


def test_nothing_is_recorded_by_default():
    placed = place(TINY)
    with gl.emulator(seed=1) as recorded:
        gl.rungs["s3_wgmma"](placed.lhs, placed.rhs, placed.out)
    assert recorded.steps > 0 and len(recorded.events) == 0


def test_threads_have_their_own_emulator():
    """Python threads run at the same time, and each has its own seed and record."""
    rung = gl.rungs["s3_wgmma"]
    expected = {seed: record(rung, TINY, seed=seed) for seed in range(4)}
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda seed: record(rung, TINY, seed=seed), range(4)))
    for seed, recorded in enumerate(found):
        assert recorded.steps == expected[seed].steps
        assert (recorded.events == expected[seed].events).all()


def test_contexts_nest():
    rung = gl.rungs["s3_wgmma"]
    placed = place(TINY)
    with gl.emulator(seed=1) as outer:
        with gl.emulator(seed=2, record=True) as inner:
            rung(placed.lhs, placed.rhs, placed.out)
        assert outer.steps == 0
        rung(placed.lhs, placed.rhs, placed.out)
    assert outer.steps == record(rung, TINY, seed=1).steps
    assert (inner.events == record(rung, TINY, seed=2).events).all()


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"seed": -1}, "seed is -1; an integer from 0 to 2^64 - 1 is needed"),
        ({"seed": 2**64}, f"seed is {2**64}; an integer from 0 to 2^64 - 1 is needed"),
        ({"seed": "x"}, "seed is 'x'; an integer from 0 to 2^64 - 1 is needed"),
        ({"threads": 0}, "threads is 0; a positive number of OS threads, or None, is needed"),
    ],
)
def test_emulator_refuses(choices, message):
    with pytest.raises(gl.GemmLadderError) as refusal, gl.emulator(**choices):
        pass
    assert str(refusal.value) == message


class Planted(Rung):
    """A rung whose source is given."""

    def build(self, target):
        return gl.build.load(self.idea, target=target, name=self.name)


DEADLOCK = """
#include "launch.cuh"
#include "ptx.cuh"

__global__ void waits_for_nobody(const GemmArgs) {
    if (threadIdx.x == 0) ptx::mbarrier_init(ptx::shared_memory(), 1);
    __syncthreads();
    ptx::mbarrier_wait_parity(ptx::shared_memory(), 0);
}

extern "C" const char* gemm_ladder_launch(const GemmArgs* args) {
    return launch(waits_for_nobody, {.blocks = 1, .threads = 32, .shared_bytes = 64}, *args);
}
"""


def test_a_fault_is_an_error_with_its_events():
    """A kernel that waits forever is reported, and the events before the deadlock are recorded."""
    rung, placed = Planted("deadlock", DEADLOCK), place(TINY)
    with (
        pytest.raises(gl.EmulatorError, match=r"^emulator: (?s:.*)mbarrier") as error,
        gl.emulator(record=True) as recorded,
    ):
        rung(placed.lhs, placed.rhs, placed.out)
    assert isinstance(error.value, RuntimeError) and isinstance(error.value, gl.GemmLadderError)
    assert len(recorded.events)
    assert placed.untouched()


REFUSES = """
#include "launch.cuh"

extern "C" const char* gemm_ladder_launch(const GemmArgs* args) {
    return args->m == 8 ? "8 rows are too few" : nullptr;
}
"""


def test_a_launcher_that_refuses():
    """The error text that a launcher returns becomes a LaunchError, not an EmulatorError."""
    placed = place(TINY)
    with pytest.raises(LaunchError, match=r"^refuses: 8 rows are too few$"):
        Planted("refuses", REFUSES)(placed.lhs, placed.rhs, placed.out)
