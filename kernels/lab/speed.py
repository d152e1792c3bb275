"""python -m gemm_ladder lab speed: the seconds that the emulator takes for 10^9 multiply-adds.

ref/emulator/README.md keeps the history of these numbers.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from gemm_ladder.errors import InputError
from gemm_ladder.ref import emulator

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

# Rungs whose kernels spend their time in different ways, and products that take each a tenth of a second.
PRODUCTS = (
    ("s3_wgmma", 256, 512, 1024),
    ("s4_tma", 256, 512, 1024),
    ("s7_persistent", 512, 512, 1024),
    ("s9_production", 512, 512, 1024),
)


class Speed(NamedTuple):
    """Seconds for 10^9 multiply-adds of one rung at one product: of CPU time, all threads together, and on
    the wall. Each is the least of several runs."""

    rung: str
    m: int
    n: int
    k: int
    cpu: float
    wall: float

    def __str__(self) -> str:
        product = f"{self.m} x {self.n} x {self.k}"
        return f"{self.rung:20} {product:16} {self.cpu:6.3f} s of CPU time {self.wall:6.3f} s on the wall"


def measure(runs: int = 8, threads: int | None = None) -> Iterator[Speed]:
    """Run each of PRODUCTS `runs` times with seed 0, after one run that builds the kernel and is not timed.

    Args:
        runs: at least 1.
        threads: OS threads, as `gemm_ladder.emulator` takes them.

    Raises:
        InputError: runs or threads cannot be used.
        ToolchainError, BuildError: a kernel cannot be built.
    """
    if threads is not None and threads < 1:
        raise InputError(f"threads is {threads}; a positive number of OS threads is needed.")
    if runs < 1:
        raise InputError(f"runs is {runs}; a positive number is needed.")
    return _measure(runs, threads)


def _measure(runs: int, threads: int | None) -> Iterator[Speed]:
    import torch
    from gemm_ladder.rungs import rungs
    from gemm_ladder.utils.math import per_block_cast_to_fp8, per_token_cast_to_fp8

    for name, m, n, k in PRODUCTS:
        generator = torch.Generator().manual_seed(0)
        lhs = per_token_cast_to_fp8(torch.randn(m, k, generator=generator), False)
        rhs = per_block_cast_to_fp8(torch.randn(n, k, generator=generator), False)
        out = torch.empty(m, n, dtype=torch.bfloat16)
        taken = []
        for _ in range(1 + runs):
            cpu, wall = time.process_time(), time.perf_counter()
            with emulator.emulator(threads=threads):
                rungs[name](lhs, rhs, out)
            taken.append((time.process_time() - cpu, time.perf_counter() - wall))
        billions = m * n * k / 1e9
        yield Speed(name, m, n, k, *(min(times) / billions for times in zip(*taken[1:], strict=True)))


def cpu_name() -> str:
    """What the CPU calls itself, as far as this system says."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def add_speed(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "speed",
        help="measure how fast the emulator is on this machine",
        description="Print the seconds that the emulator takes for 10^9 multiply-adds of some rungs.",
    )
    parser.add_argument(
        "--runs", type=int, default=8, help="of each, of which the fastest counts (default: 8)"
    )
    parser.add_argument("--threads", type=int, help="OS threads (default: one for each core)")
    parser.set_defaults(run=_speed)


def _speed(arguments: argparse.Namespace) -> int:
    speeds = measure(arguments.runs, arguments.threads)
    print(f"{cpu_name()}, {arguments.threads or os.cpu_count()} threads; seconds for 10^9 multiply-adds:")
    for speed in speeds:
        print(f"  {speed}", flush=True)
    return 0
