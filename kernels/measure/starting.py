"""How long a new process needs until its kernels are ready: for the command `host`.

Every time is measured in fresh processes that have already used torch and the GPU, with a cache folder of
their own, which is empty at first:

    first_build     loading a kernel, which compiles it
    cached_load     loading it from the cache, in the next process
    first_call      there, from the beginning of the load to the end of the call after it: the load, the
                    choice of the configuration, the launch and the kernel itself
    one_core_call   the first call of a process that may use one CPU: the choice, the build and the launch
    warm_up         calls with m = 1, 2, 3, ... WARM_UP_TO for one weight, one after another, as servers warm
                    up; all kernels that these need are compiled
    cached_warm_up  the same in the next process, which finds the kernels in the cache
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor

import torch
from gemm_ladder import api
from gemm_ladder.errors import GemmLadderError
from gemm_ladder.measure import operands, production_rows, session, timing
from gemm_ladder.measure.shapes import Product, Shape
from gemm_ladder.production import launching

SHAPE = Shape(64, 7168, 2048)
WARM_UP_TO = 1024
LIMIT_SECONDS = 120  # a fresh process that takes longer is taken to hang


def measure(repeats: int) -> dict[str, list[float]]:
    """Microseconds by quantity, `repeats` of each.

    Raises:
        GemmLadderError: a process fails.
    """
    with ThreadPoolExecutor(repeats) as pool:
        found = list(pool.map(lambda _: first_call(), range(repeats)))
    # These need a machine of their own: one of them at a time.
    found = [(*times, one_core_call(), *warm_ups()) for times in found]
    quantities = ("first_build", "cached_load", "first_call", "one_core_call", "warm_up", "cached_warm_up")
    return {name: list(times) for name, times in zip(quantities, zip(*found, strict=True), strict=True)}


def first_call() -> tuple[float, ...]:
    """first_build, cached_load, first_call"""
    with tempfile.TemporaryDirectory() as cache:
        build, _ = in_fresh_process("load_and_call", cache)
        return (build, *in_fresh_process("load_and_call", cache))


def one_core_call() -> float:
    """one_core_call"""
    with tempfile.TemporaryDirectory() as cache:
        (us,) = in_fresh_process("call_on_one_core", cache)
    return us


def warm_ups() -> tuple[float, ...]:
    """warm_up, cached_warm_up"""
    with tempfile.TemporaryDirectory() as cache:
        return (*in_fresh_process("warm_up", cache), *in_fresh_process("warm_up", cache))


def in_fresh_process(function: str, cache: str) -> tuple[float, ...]:
    """Run a function of this module in a process of its own with this cache folder. Returns what it prints.

    Raises:
        GemmLadderError: the process fails, or takes more than LIMIT_SECONDS.
    """
    try:
        ran = subprocess.run(
            [sys.executable, "-c", f"from gemm_ladder.measure import starting; starting.{function}()"],
            env=os.environ | {"GEMM_LADDER_CACHE": cache, "GEMM_LADDER_BACKGROUND": "1"},
            capture_output=True,
            text=True,
            timeout=LIMIT_SECONDS,
            check=True,
        )
    except subprocess.CalledProcessError as error:
        last = (error.stderr.strip().splitlines() or ["it printed no error"])[-1]
        raise GemmLadderError(f"A fresh process cannot load and call the kernel: {last}") from None
    except subprocess.TimeoutExpired:
        raise GemmLadderError(
            f"A fresh process takes more than {LIMIT_SECONDS} s to load and call the kernel"
        ) from None
    return tuple(map(float, ran.stdout.splitlines()[-1].split()))


# ----------------------------------------------------------------------------- what runs in a fresh process


def load_and_call() -> None:
    """Print the microseconds until the kernel is loaded, and until the first call is over."""
    device, _ = session.need_gpu("a kernel is loaded", None)
    product = Product("dense", 1, SHAPE)
    with torch.cuda.device(device):
        call = operands.interface_call(api, operands.make_operands(product, device))
        config = production_rows.configurations([product], device)[product]
        timing.synchronize(device)
        begin = time.perf_counter()
        launching.library(config)
        loaded = time.perf_counter()
        call()
        timing.synchronize(device)
        print((loaded - begin) * 1e6, (time.perf_counter() - begin) * 1e6)


def call_on_one_core() -> None:
    """Print the microseconds of the first call, on one CPU."""
    device, _ = session.need_gpu("a kernel is called", None)
    with torch.cuda.device(device):
        call = operands.interface_call(api, operands.make_operands(Product("dense", 1, SHAPE), device))
        timing.synchronize(device)
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # and what this thread starts
        begin = time.perf_counter()
        call()
        timing.synchronize(device)
        print((time.perf_counter() - begin) * 1e6)


def warm_up() -> None:
    """Print the microseconds of a server's warm-up. The operands of its calls are slices of the largest ones,
    and A's scales are row by row, so each call converts them."""
    device, _ = session.need_gpu("kernels are called", None)
    with torch.cuda.device(device):
        made = operands.make_operands(Product("dense", 1, SHAPE._replace(m=WARM_UP_TO)), device)
        (a, sfa), out = made.lhs, made.output()
        sfa = sfa.contiguous()
        timing.synchronize(device)
        begin = time.perf_counter()
        for m in range(1, WARM_UP_TO + 1):
            api.fp8_gemm_nt((a[:m], sfa[:m]), made.rhs, out[:m])
        timing.synchronize(device)
        print((time.perf_counter() - begin) * 1e6)
