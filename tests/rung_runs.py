"""Running a rung on a case's operands, on either machine: what the tests of the rungs share."""

from __future__ import annotations

import gemm_ladder as gl
import numpy as np
from cases import place
from gemm_ladder.arguments import GemmArgs
from gemm_ladder.lab.operands import Operands
from gemm_ladder.ref import emulator
from gemm_ladder.rungs import Rung

RUNGS = list(gl.rungs.values())
KERNELS = [rung for rung in RUNGS if rung.path.suffix in (".cu", ".cuh")]
DEVICE = {"emulator": "cpu", "gpu": "cuda"}

# s7's two tiles. Their launches differ in the bytes of shared memory. A cluster computes two side by side.
TALL, WIDE = (256, 128), (128, 192)
TILES = {219136: TALL, 217088: WIDE}  # bytes of shared memory per CTA


def name(thing: object) -> str:
    return thing.name


def run(rung: Rung, operands: Operands, machine: str, seed: int = 0) -> np.ndarray:
    """uint16 [m, n], the BF16 bits."""
    placed = place(operands, DEVICE[machine])
    with gl.emulator(seed=seed) as seen:
        assert rung(placed.lhs, placed.rhs, placed.out) is None
    assert seen.notes == []
    return placed.bits()


def launched(rung: Rung, m: int, n: int, k: int, num_sms: int) -> emulator.LaunchConfig:
    """The launch that the rung's launcher would make."""
    args = GemmArgs(m=m, n=n, k=k, sfa_stride=-(-m // 4) * 4, num_sms=num_sms)  # nothing runs: no tensors
    with gl.emulator(dry=True) as dry:
        assert emulator.launch(rung.build("emulator").lib, args) is None
    return dry.launches[0]
