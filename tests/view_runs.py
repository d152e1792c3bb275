"""Recorded runs of rungs and of small kernels, for the tests of what shows them."""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path

import gemm_ladder as gl
from gemm_ladder import build, checks, launch
from gemm_ladder.lab.recording import Recording
from gemm_ladder.lab.viewer.history import History
from gemm_ladder.measure.problems import make_problem
from gemm_ladder.measure.shapes import Shape

SHAPES = {"s4_tma": Shape(64, 128, 768), "s5_tma_multicast": Shape(128, 128, 768)}
FULL_WAIT = "ptx::mbarrier_wait_parity(ring.stage + kFull, ring.parity);"
# What is done to s4, and the fault that follows.
BROKEN = {
    "a wait removed": (FULL_WAIT, "", "released_too_early"),
    "a wrong parity": (FULL_WAIT, FULL_WAIT.replace("parity)", "parity ^ (block > 2))"), "deadlock"),
}
# As the kernels have them: a stage of s4 and s5, its bytes, and where it begins.
STAGE_BYTES = 64 * 128 + 128 * 128 + 64 * 4
STAGES = [1024 + stage * 25600 for stage in range(4)]
BARRIER = 24832  # behind the stage's data: full; 16 bytes further: empty

SMALL = """
#include "ptx.cuh"
__global__ void twice(float* x, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    __syncthreads();
    if (i < n) x[i] *= 2;
}
"""


SEED = 0  # with which a warp gets further than its removed wait before the fault


@functools.cache
def recorded(name: str, seed: int = SEED, edit: str = "") -> Recording:
    """A run of a rung, with one of BROKEN's edits."""
    problem = make_problem(SHAPES[name], "cpu")
    operands = (problem.a, problem.sfa), (problem.b, problem.sfb), problem.output()
    text = gl.rungs[name].source
    if edit:
        assert BROKEN[edit][0] in text
        text = text.replace(BROKEN[edit][0], BROKEN[edit][1], 1)
    library = build.load(text if edit else gl.rungs[name].path, target="emulator", name=name).lib
    with gl.emulator(seed=seed, record=True) as run:
        run.texts[f"{name}.cu"] = text
        try:
            launch.on_emulator(name, library, checks.operands("dense", *operands))
        except gl.EmulatorError as fault:
            assert fault.what == BROKEN[edit][2]
        else:
            assert not edit
    return Recording.of(run)


@functools.cache
def history(name: str, seed: int = SEED, edit: str = "") -> History:
    return History(recorded(name, seed, edit), 0)


def data_of(written: Path) -> dict:
    """The data in a page."""
    (found,) = re.findall(
        r'<script type="application/json" id="data">(.*?)</script>', written.read_text(), re.S
    )
    return json.loads(found)
