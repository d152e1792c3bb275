"""Compiling kernels before any is timed: ours, and DeepGEMM's in processes of their own:

    python -m gemm_ladder.measure.warming       reads products from stdin, and calls DeepGEMM with each

DeepGEMM compiles a kernel when it is first called for it, which takes seconds, and keeps it in a folder that
all processes share. Before hundreds of its kernels are timed, several processes make these first calls at the
same time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from gemm_ladder import precompiling
from gemm_ladder.measure import peers, session, timing
from gemm_ladder.measure.operands import interface_call
from gemm_ladder.measure.pool import Pool
from gemm_ladder.measure.shapes import Cell, Shape
from gemm_ladder.production.config import Config

PROCESSES = 12
MAX_BYTES = 3 << 30  # of a product's operands and output: larger ones compile when they are measured
FEW = 4  # so many products are compiled sooner where they are measured than in new processes
MODULE = "gemm_ladder.measure.warming"


def small(cell: Cell) -> bool:
    """Whether several processes can have such operands at the same time."""
    _, n, k = cell.shape
    return cell.weights + sum(cell.held) * (k + 2 * n) <= MAX_BYTES


@contextmanager
def warming(cells: Sequence[Cell]) -> Iterator[Callable[[], None]]:
    """Start the processes; a function that waits for them. On leaving, those that still run are ended."""
    chosen = [cell for cell in cells if small(cell)]
    count = min(PROCESSES, max(1, (os.cpu_count() or 1) - 2), len(chosen) if len(chosen) > FEW else 0)
    running = []
    # One process has all products of a weight: they may need the same kernel.
    of_weight: dict[tuple[int, ...], list[Cell]] = {}
    for cell in chosen:
        of_weight.setdefault((cell.groups, *cell.shape[1:]), []).append(cell)
    for turn in range(count):
        own = itertools.chain.from_iterable(list(of_weight.values())[turn::count])
        mine = [dataclasses.astuple(cell) for cell in own]
        command = [sys.executable, "-m", MODULE]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True
        )
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps(mine))
            process.stdin.close()
        running.append(process)

    def wait() -> None:
        with session.progress(running, "processes that compile for DeepGEMM") as (bar, _):
            for process in bar:
                process.wait()

    try:
        yield wait
    finally:
        for process in running:
            if process.poll() is None:
                process.kill()
                process.wait()


def compile_all(configs: Iterable[Config], cells: Sequence[Cell]) -> None:
    """Compile our kernels of these configurations, each once, and at the same time DeepGEMM's of these
    products, where it can be imported."""
    try:
        peers.deep_gemm_library()
    except Exception:  # a library may fail to load with any exception
        cells = ()
    with warming(cells) as wait:
        precompiling.build_all(list(dict.fromkeys(configs)), "cuda")
        wait()


def main() -> int:
    """Call DeepGEMM with every product on stdin. What it refuses is found again, and noted, when it is
    measured; after a fault nothing more can be compiled here."""
    cells = [Cell(kind, groups, Shape(*shape), *rest) for kind, groups, shape, *rest in json.load(sys.stdin)]
    device, _ = session.find_gpu()
    if device is None:
        return 1
    library = peers.deep_gemm_library()
    with torch.cuda.device(device):
        for cell in cells:
            with contextlib.suppress(Exception):
                interface_call(library, Pool([cell], device, bf16=False, random=False).operands(cell))()
                timing.synchronize(device)
                torch.cuda.empty_cache()
    return 0


if __name__ == "__main__":
    sys.exit(main())
