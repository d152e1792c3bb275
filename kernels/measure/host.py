"""What a call costs the host, python -m gemm_ladder host: microseconds a call, and a kernel's first build.

A small product takes a GPU less time than a host needs to ask for it, so this is a part of a kernel's speed.
Measured at SHAPE, on a machine with a Hopper GPU:

    call         many calls in a row, none of which is waited for
    first build  loading the kernel where the cache is an empty folder, so that it is compiled first
    cached load  loading it from the cache
    first call   from the beginning of a cached load to the end of the call after it: the load, the choice of
                 the configuration, the launch and the kernel itself

The last three are those of fresh processes, in which torch and the GPU are in use already.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gemm_ladder import api
from gemm_ladder.errors import GemmLadderError, one_line
from gemm_ladder.figures import host, tables
from gemm_ladder.measure import operands, production_rows, records, session, timing
from gemm_ladder.measure.peers import PEERS
from gemm_ladder.measure.shapes import Product, Shape
from gemm_ladder.production import launching, precompiling

SHAPE = Shape(64, 7168, 2048)
DENSE, MASKED = Product("dense", 1, SHAPE), Product("masked", 4, SHAPE)
CALLS, BATCHES, STARTS = 200, 60, 3  # a GPU's queue holds about a thousand launches: it is never full
START_SECONDS = 120  # a process that takes longer hangs
PROTOCOL = (
    f"call: the host's clock over {CALLS} calls in a row, divided by {CALLS}, the GPU waited for before and "
    f"after and not between; median of {BATCHES} such batches, the implementations taking turns; first "
    "build, cached load and first call: in fresh processes that have used torch and the GPU before, one with "
    f"an empty cache folder and then one with what that left there; median of {STARTS} such pairs, which run "
    "at the same time"
)

Call = Callable[[], object]


def main(argv: Sequence[str] | None = None) -> int:
    """Run `host`. Returns 0, or 1 where a call of gemm_ladder fails.

    Raises:
        GemmLadderError: there is no Hopper GPU, or --json cannot be written.
    """
    parser = argparse.ArgumentParser(
        prog="python -m gemm_ladder host",
        description=f"Time what a call at {SHAPE} costs the host, beside torch's own, and how long a "
        "kernel's first build, load and call take, on a machine with a Hopper GPU.",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the measurements there as well")
    arguments = parser.parse_args(argv)
    device, found = session.need_gpu("calls to a GPU are timed", arguments.json)

    print(f"Found {found}: calls at {SHAPE} are timed on the host.\n")
    result = on_gpu(device)
    if result.rows:
        print(tables.plain(host.table(result.data)))
    session.show_measured(result, ())
    session.keep(result, arguments.json, whole=True, record="host.json")
    return 1 if result.wrong else 0


def on_gpu(device: torch.device) -> session.Measured:
    """Time everything."""
    meta = records.machine(device, 0)
    meta |= {"cpu": cpu_name(), "python": platform.python_version(), "protocol": PROTOCOL}
    result = session.Measured(meta=meta)
    calls = {}
    with torch.cuda.device(device):
        needed = production_rows.configurations([DENSE, MASKED], device)
        precompiling.build_all(list(needed.values()), "cuda")
        ours, peers = makers(device)
        for name, make in (ours | peers).items():
            try:
                call = make()
                call()  # loads what is needed
                timing.synchronize(device)
            except Exception as reason:  # what a library refuses with is its own affair
                if name in ours:
                    result.wrong.append(f"{name} fails: {one_line(reason)}")
                else:
                    result.miss(name, SHAPE, one_line(reason))
            else:
                calls[name] = call
        with session.progress(range(BATCHES), "batches") as (bar, _):
            for name, us in take_turns(calls, device, bar).items():
                product = MASKED if name == MASKED_CALL else DENSE
                result.rows.append(data_row("call", name, product, us))
    try:
        for quantity, us in starts().items():
            result.rows.append(data_row(quantity, production_rows.RUNG, DENSE, us))
    except GemmLadderError as reason:
        result.wrong.append(str(reason))
    return result


# ------------------------------------------------------------------------------------------------------ calls

MASKED_CALL = "m_grouped_fp8_gemm_nt_masked"


def makers(device: torch.device | str) -> tuple[dict[str, Callable[[], Call]], dict[str, Callable[[], Call]]]:
    """What makes each call that is timed, by name: gemm_ladder's, and its peers'."""
    dense, masked = (operands.make_operands(product, device) for product in (DENSE, MASKED))
    (problem,) = dense.parts
    ours = {
        name: partial(partial, getattr(api, name), dense.lhs, dense.rhs, dense.output())
        for name in operands.NAMES["dense"]
    }
    ours[MASKED_CALL] = partial(
        partial, getattr(api, MASKED_CALL), masked.lhs, masked.rhs, masked.output(), masked.rows, SHAPE.m
    )
    a, b, out = problem.a.bfloat16(), problem.b.bfloat16().T, dense.output()
    theirs = {
        "torch_mm": partial(partial, torch.mm, a, b),
        "torch_mm_out": partial(partial, torch.mm, a, b, out=out),
    }
    for name in ("cublaslt_tensorwise", "cublaslt_blockwise", "deep_gemm"):
        theirs[name] = partial(PEERS[name], problem)
    return ours, theirs


def take_turns(
    calls: Mapping[str, Call], device: torch.device, batches: Iterable[int]
) -> dict[str, list[float]]:
    """Microseconds a call by name, one number a batch; every implementation has a batch, then all again."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for _ in batches:
        for name, call in calls.items():
            found[name].append(batch(call, device))
    return found


def batch(call: Call, device: torch.device) -> float:
    """Microseconds of the host for a call, on average of CALLS."""
    timing.synchronize(device)
    started = time.perf_counter()
    for _ in range(CALLS):
        call()
    elapsed = time.perf_counter() - started
    timing.synchronize(device)
    return elapsed / CALLS * 1e6


# ------------------------------------------------------------------------------------------- fresh processes


def starts() -> dict[str, list[float]]:
    """Microseconds of the first build, the cached load and the first call: STARTS of each.

    Raises:
        GemmLadderError: a process fails.
    """
    with ThreadPoolExecutor(STARTS) as pool:
        found = list(pool.map(lambda _: start(), range(STARTS)))
    builds, loads, calls = (list(times) for times in zip(*found, strict=True))
    return {"first_build": builds, "cached_load": loads, "first_call": calls}


def start() -> tuple[float, float, float]:
    """Microseconds of one first build, and of the cached load and first call after it."""
    with tempfile.TemporaryDirectory() as cache:
        build, _ = in_fresh_process(cache)
        return (build, *in_fresh_process(cache))


def in_fresh_process(cache: str) -> tuple[float, float]:
    """What load_and_call() prints in a process of its own, with this cache folder.

    Raises:
        GemmLadderError: it fails, or takes more than START_SECONDS.
    """
    try:
        ran = subprocess.run(
            [sys.executable, "-c", "from gemm_ladder.measure import host; host.load_and_call()"],
            env=os.environ | {"GEMM_LADDER_CACHE": cache},
            capture_output=True,
            text=True,
            timeout=START_SECONDS,
            check=True,
        )
    except subprocess.CalledProcessError as error:
        last = (error.stderr.strip().splitlines() or ["it says nothing"])[-1]
        raise GemmLadderError(f"A fresh process cannot load and call the kernel: {last}") from None
    except subprocess.TimeoutExpired:
        raise GemmLadderError(
            f"A fresh process takes more than {START_SECONDS} s to load and call the kernel"
        ) from None
    load, call = map(float, ran.stdout.splitlines()[-1].split())
    return load, call


def load_and_call() -> None:
    """In a fresh process: print the microseconds until the kernel is loaded, and until a call is over."""
    device, _ = session.need_gpu("a kernel is loaded", None)
    with torch.cuda.device(device):
        call = operands.interface_call(api, operands.make_operands(DENSE, device))
        config = production_rows.configurations([DENSE], device)[DENSE]
        timing.synchronize(device)
        begin = time.perf_counter()
        launching.library(config)
        loaded = time.perf_counter()
        call()
        timing.synchronize(device)
        print((loaded - begin) * 1e6, (time.perf_counter() - begin) * 1e6)


# -------------------------------------------------------------------------------------------------- the data


def data_row(quantity: str, impl: str, product: Product, us: Sequence[float]) -> dict[str, Any]:
    """One row of figures/data/host.json: of some measurements the median, 10th and 90th percentile."""
    p10, median, p90 = (round(float(value), 3) for value in np.percentile(us, [10, 50, 90]))
    return {
        "quantity": quantity,
        "impl": impl,
        "kind": product.kind,
        "groups": product.groups,
        **product.shape._asdict(),
        "us": median,
        "us_p10": p10,
        "us_p90": p90,
    }


def cpu_name() -> str | None:
    """The host's processor, as Linux calls it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return None
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), None)
