"""What a launcher is refused before any kernel runs, as CUDA would refuse it (refusals.cu)."""

from __future__ import annotations

import ctypes
from pathlib import Path

import gemm_ladder as gl
import numpy as np
import pytest
from fault_kernels import caught, run
from gemm_ladder import build
from gemm_ladder.ref import emulator

REFUSALS = (
    "a tensor map's base is not a multiple of 16 bytes",
    "a tensor map's row stride of 132 bytes is not a multiple of 16",
    "a tensor map of no elements",
    "a box is 1 to 256 elements along each dimension",
    "a box row of 12 bytes is not a multiple of 16",
    "a 128-byte-swizzled box row has 256 bytes",
    "a block of 1025 threads; 1 to 1024 are needed",
    "232449 bytes of shared memory a block; Hopper has 232448",
    "3 blocks in clusters of 2",
    "clusters of 16 blocks; more than 8 need cudaFuncAttributeNonPortableClusterSizeAllowed",
    "more than 2^31 - 1 blocks",
    "a 64-byte-swizzled box row has 80 bytes",
    "a 32-byte-swizzled box row has 48 bytes",
    "emulator: not a fault, whatever the words",
)


class RefusalArgs(ctypes.Structure):
    """struct RefusalArgs of refusals.cu"""

    _fields_ = [("which", ctypes.c_int64), ("tensor", ctypes.c_void_p)]


@pytest.mark.parametrize("which", range(len(REFUSALS)))
def test_a_launcher_refuses(which: int) -> None:
    run(26)  # leaves events behind
    assert caught(21)  # leaves a fault behind
    tensor = np.zeros((64, 64), np.float32)
    library = build.load(Path(__file__).with_name("refusals.cu"), target="emulator").lib
    with gl.emulator(record=True) as seen:
        said = emulator.launch(library, RefusalArgs(which, tensor.ctypes.data), {"T": tensor})
    assert said == REFUSALS[which]
    assert len(seen.events) == seen.steps == 0
