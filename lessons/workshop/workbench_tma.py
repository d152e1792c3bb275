"""What lessons with tensor maps need that is not a picture: kernels that get one, and what mbarriers did."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Mapping

import gemm_ladder as gl
import numpy as np
import torch
from gemm_ladder import build
from gemm_ladder.ref import emulator
from workshop import workbench

TYPES = {np.dtype(np.uint8): "uint8_t", np.dtype(np.float32): "float"}


class _Args(ctypes.Structure):
    _fields_ = [
        *(("tensor", ctypes.c_void_p), ("out", ctypes.c_void_p), ("stream", ctypes.c_void_p)),
        *(("rows", ctypes.c_int64), ("columns", ctypes.c_int64)),
        *(("x", ctypes.c_int32), ("y", ctypes.c_int32)),
    ]


_AROUND = """#include "launch.cuh"
#include "layout.cuh"
#include "ptx.cuh"

{source}

struct TryArgs {{
    const {element}* tensor;
    void *out, *stream;
    int64_t rows, columns;
    int32_t x, y;
}};
extern "C" const char* gemm_ladder_launch(const TryArgs* args) {{
    TensorMap map;
    if (auto error = tensor_map_2d(&map, args->tensor, args->rows, args->columns, args->columns, {box_rows},
                                   {box_columns}, Swizzle::{swizzle}))
        return error;
    LaunchConfig config{{.blocks = {cluster}, .threads = {threads}, .shared_bytes = {shared_bytes}}};
    config.stream = args->stream;
    config.cluster = {cluster};
    return launch({kernel}, config, map, args->x, args->y, args->out);
}}
"""


def try_box(
    source: str,
    out: np.ndarray,
    tensor: np.ndarray,
    box: tuple[int, int],
    at: tuple[int, int] = (0, 0),
    swizzle: str = "k128B",
    threads: int = 32,
    shared_bytes: int = 4096,
    cluster: int = 1,
    seed: int = 0,
    device: str = workbench.DEVICE,
) -> emulator.Run | None:
    """Run one cluster of `__global__ void name(const __grid_constant__ TensorMap map, int x, int y, T* out)`.

    Args:
        tensor: uint8 or float32 [rows, columns], which `map` describes.
        box: its boxes' (rows, columns).
        at: (x, y), x the contiguous dimension.
        swizzle: a Swizzle of launch_config.cuh.

    Returns:
        What the emulator recorded, or None from a GPU.

    Raises:
        gl.GemmLadderError: what the encoder of tensor maps, or the emulator, says against it.
    """
    kernel = re.search(r"__global__\s+void\s+(\w+)\(", source)[1]
    text = _AROUND.format(
        source=source, element=TYPES[tensor.dtype], box_rows=box[0], box_columns=box[1], swizzle=swizzle,
        cluster=cluster, threads=threads, shared_bytes=shared_bytes, kernel=kernel,
    )  # fmt: skip
    library = build.load(text, target="emulator" if device == "cpu" else "cuda", name=kernel).lib
    if device == "cpu":
        args = _Args(tensor.ctypes.data, out.ctypes.data, None, *tensor.shape, *at)
        with gl.emulator(seed=seed, record=True, max_steps=workbench.MAX_STEPS) as run:
            error = emulator.launch(library, args)
    else:
        library.gemm_ladder_launch.restype = ctypes.c_char_p
        gpu_out, gpu_tensor = workbench.bytes_on_gpu(out), workbench.bytes_on_gpu(tensor)
        stream = torch.cuda.current_stream().cuda_stream
        args = _Args(gpu_tensor.data_ptr(), gpu_out.data_ptr(), stream, *tensor.shape, *at)
        error = library.gemm_ladder_launch(ctypes.byref(args))
        out.reshape(-1).view(np.uint8)[:] = gpu_out.cpu().numpy()
        run = None
    if error is not None:
        raise gl.GemmLadderError(error.decode() if isinstance(error, bytes) else str(error))
    return run


WORDS = {
    "mbarrier_init": "is made, for {} arrivals a phase",
    "mbarrier_arrive": "one arrives: {} still pending",
    "mbarrier_expect_tx": "{:,} bytes are announced",
    "mbarrier_complete_tx": "bytes land: {:,} still to come",
    "mbarrier_phase": "phase {} is complete",
    "mbarrier_wait": "one waits for parity {}",
    "mbarrier_pass": "... and goes on: the phase of parity {} is over",
    "tma_load": "the copy engine is asked for {:,} bytes",
    "tma_load_landed": "the copy engine has written {:,} bytes",
}
RANK_SHIFT = 24  # an address from mapa: the block's rank in the cluster + 1 above these bits
BASE = 1024  # where the emulator's shared memory begins


def tell(run: emulator.Run | None, names: Mapping[int, str]) -> None:
    """Print, in words, what a recorded run did at the shared-memory offsets that have a name, in order.

    Of the threads, lane 0 of each warp speaks.
    """
    if run is None:
        return print("(a GPU does not tell: the emulator does)")
    blocks = len(set(run.events["block"])) > 1
    for event in run.events:
        offset, rank = int(event["address"]) % (1 << RANK_SHIFT) - BASE, int(event["address"]) >> RANK_SHIFT
        kind = str(event["kind"])
        if kind not in WORDS or offset not in names or (event["thread"] >= 0 and event["thread"] % 32):
            continue
        who = f"thread {event['thread']}" if event["thread"] >= 0 else "copy engine"
        if event["thread"] < 0 and kind == "mbarrier_phase":
            who = ""
        at = f"block {event['block']}: " if blocks else ""
        where = f"block {rank - 1}'s " if rank else ""
        words = WORDS[kind].format(int(event["value"]))
        print(f"step {event['step']:3}  {at}{who:12} {where}{names[offset]}: {words}")
