"""Runs the kernels of units.cu, one for each instruction, on the emulator or on a GPU."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

import gemm_ladder as gl
import numpy as np
from gemm_ladder import build
from gemm_ladder.ref import emulator

UNITS = Path(__file__).parent / "units.cu"
BOX_ROWS, BOX_COLUMNS = 16, 128
BOX = BOX_ROWS * BOX_COLUMNS


class UnitArgs(ctypes.Structure):
    """struct UnitArgs of units.cu"""

    _fields_ = [
        ("unit", ctypes.c_int64),
        ("input", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("rows", ctypes.c_int64),
        ("columns", ctypes.c_int64),
        ("x", ctypes.c_int64),
        ("y", ctypes.c_int64),
        ("row_bytes", ctypes.c_int64),
        ("stream", ctypes.c_void_p),
    ]


@functools.cache
def library(target: str) -> ctypes.CDLL:
    lib = build.load(UNITS, target=target).lib
    lib.gemm_ladder_launch.restype = ctypes.c_char_p
    return lib


def run_unit(
    machine: str, unit: int, out: np.ndarray, input: np.ndarray | None = None, seed: int = 0, **sizes
):
    """Run one unit of units.cu, which writes `out`. Returns the emulator's Run, or None from a GPU."""
    sizes.setdefault("row_bytes", BOX_COLUMNS)
    if machine == "emulator":
        pointer = None if input is None else input.ctypes.data
        with gl.emulator(seed=seed, record=True) as run:
            emulator.launch(library("emulator"), UnitArgs(unit, pointer, out.ctypes.data, **sizes))
        return run
    import torch

    def on_gpu(array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array.view(np.uint8).reshape(-1)).cuda()

    gpu_out, gpu_input = on_gpu(out), None if input is None else on_gpu(input)
    stream = torch.cuda.current_stream().cuda_stream
    pointer = None if gpu_input is None else gpu_input.data_ptr()
    args = UnitArgs(unit, pointer, gpu_out.data_ptr(), stream=stream, **sizes)
    error = library("cuda").gemm_ladder_launch(ctypes.byref(args))
    assert error is None, error
    torch.cuda.synchronize()
    out.reshape(-1).view(np.uint8)[:] = gpu_out.cpu().numpy()
    return None


def store_into_middle(machine: str, canvas: np.ndarray, seed: int, x: int, y: int, row_bytes: int) -> None:
    """Run tma_store on rows 20 to 39 of `canvas`; a store outside the tensor would change the other rows."""
    sizes = {"rows": 20, "columns": 144, "x": x, "y": y, "row_bytes": row_bytes}
    if machine == "emulator":
        run_unit(machine, 3, canvas[20:40], None, seed, **sizes)
        return
    import torch

    gpu = torch.from_numpy(canvas).cuda()
    args = UnitArgs(3, None, gpu[20:].data_ptr(), **sizes)
    args.stream = torch.cuda.current_stream().cuda_stream
    error = library("cuda").gemm_ladder_launch(ctypes.byref(args))
    assert error is None, error
    canvas[:] = gpu.cpu().numpy()


def run_bad_box(machine: str, unit: int, x: int, y: int) -> None:
    """Run a unit on a box that the copy engine refuses."""
    matrix = np.zeros((40, 176), np.uint8)
    run_unit(machine, unit, matrix.copy(), matrix, rows=40, columns=44 if unit == 1 else 176, x=x, y=y)
