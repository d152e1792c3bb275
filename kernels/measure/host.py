"""python -m gemm_ladder host: what a call costs the host, and how long kernels take to be ready.

Needs a Hopper GPU. A small product takes a GPU less time than a host needs to ask for it, so the host's time
is part of how fast a kernel is. The quantity `call` is one of many calls in a row; nothing waits for the GPU
in between. `starting` measures the others, in fresh processes. figures/data/host.json is renewed.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from gemm_ladder import api, precompiling
from gemm_ladder.errors import GemmLadderError, one_line
from gemm_ladder.figures import host, tables
from gemm_ladder.figures.rows import HostRow
from gemm_ladder.measure import operands, production_rows, records, session, starting, timing
from gemm_ladder.measure.peers import PEERS
from gemm_ladder.measure.shapes import Product, Shape
from gemm_ladder.production import fast_path

MASKED_CALL = "m_grouped_fp8_gemm_nt_masked"

Call = Callable[[], object]


@dataclass(frozen=True)
class Plan:
    """What is measured, and how often.

    Attributes:
        shape: of the dense product, and of each group of the masked one.
        groups: of the masked product.
        calls: in a batch. A GPU's queue holds about a thousand launches; it must never be full.
        batches: of each implementation.
        starts: how often each quantity of `starting` is measured.
    """

    shape: Shape = starting.SHAPE
    groups: int = 4
    calls: int = 200
    batches: int = 60
    starts: int = 3

    @property
    def dense(self) -> Product:
        return Product("dense", 1, self.shape)

    @property
    def masked(self) -> Product:
        return Product("masked", self.groups, self.shape)

    @property
    def warm_up(self) -> Product:
        """The largest of a warm-up's products."""
        return Product("dense", 1, self.shape._replace(m=starting.WARM_UP_TO))

    @property
    def protocol(self) -> str:
        return (
            f"call: the host's clock over {self.calls} calls in a row, divided by {self.calls}; the GPU is "
            f"waited for before and after them, not in between; median of {self.batches} such batches, with "
            "the implementations taking turns; first build, cached load and first call: in pairs of fresh "
            "processes that have used torch and the GPU before, the first with an empty cache folder, the "
            f"second with what the first left there; median of {self.starts} such pairs, which run at the "
            "same time; first call on one core: in a fresh process with an empty cache folder; warm-up: "
            f"calls with m = 1 to {starting.WARM_UP_TO} one after another, as servers warm up, in pairs of "
            f"fresh processes as above; medians of {self.starts}, one process at a time"
        )


PLAN = Plan()


def main(argv: Sequence[str] | None = None, plan: Plan = PLAN) -> int:
    """Run `host`. Returns 0, or 1 where a call of gemm_ladder fails.

    Raises:
        GemmLadderError: there is no Hopper GPU, or --json cannot be written.
    """
    parser = argparse.ArgumentParser(
        prog="python -m gemm_ladder host",
        description=f"Time what a call at {plan.shape} costs the host, beside torch's own, and how long "
        "a kernel's first build, load and call take, and a weight's warm-up. Needs a Hopper GPU.",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the measurements to FILE")
    arguments = parser.parse_args(argv)
    device, found = session.need_gpu("calls to a GPU are timed", arguments.json)

    print(f"Found {found}: calls at {plan.shape} are timed on the host.\n")
    result = on_gpu(device, plan)
    if result.rows:
        print(tables.plain(host.table(result.data)))
    session.show_measured(result, ())
    session.keep(result, arguments.json, whole=True, record="host.json")
    return 1 if result.wrong else 0


def on_gpu(device: torch.device, plan: Plan = PLAN) -> session.Measured[HostRow]:
    """Time everything."""
    meta = {**records.machine(device, 0), "protocol": plan.protocol}
    meta |= {"cpu": cpu_name(), "python": platform.python_version()}
    result: session.Measured[HostRow] = session.Measured(meta=meta)
    calls: dict[str, Call] = {}
    with torch.cuda.device(device):
        needed = production_rows.configurations([plan.dense, plan.masked], device)
        precompiling.build_all(list(needed.values()), "cuda")
        fast_path.load()
        ours, peers = makers(device, plan)
        for name, make in (ours | peers).items():
            try:
                call = make()
                call()  # loads what is needed
                timing.synchronize(device)
            except Exception as reason:  # a library may refuse with any exception
                if name in ours:
                    result.wrong.append(f"{name} fails: {one_line(reason)}")
                else:
                    result.miss(name, plan.shape, one_line(reason))
            else:
                calls[name] = call
        with session.progress(range(plan.batches), "batches") as (bar, _):
            for name, us in take_turns(calls, device, bar, plan.calls).items():
                product = plan.masked if name == MASKED_CALL else plan.dense
                result.rows.append(data_row("call", name, product, us))
    try:
        for quantity, us in starting.measure(plan.starts).items():
            product = plan.warm_up if quantity.endswith("warm_up") else plan.dense
            result.rows.append(data_row(quantity, production_rows.RUNG, product, us))
    except GemmLadderError as reason:
        result.wrong.append(str(reason))
    return result


# ------------------------------------------------------------------------------------------------------ calls


def makers(
    device: torch.device | str, plan: Plan = PLAN
) -> tuple[dict[str, Callable[[], Call]], dict[str, Callable[[], Call]]]:
    """By name, what prepares each call that is timed: gemm_ladder's, and its peers'."""
    dense, masked = (operands.make_operands(product, device) for product in (plan.dense, plan.masked))
    (problem,) = dense.parts
    ours: dict[str, Callable[[], Call]] = {
        name: partial(partial, getattr(api, name), dense.lhs, dense.rhs, dense.output())
        for name in operands.NAMES["dense"]
    }
    ours[MASKED_CALL] = partial(
        partial, getattr(api, MASKED_CALL), masked.lhs, masked.rhs, masked.output(), masked.rows, plan.shape.m
    )
    a, b, out = problem.a.bfloat16(), problem.b.bfloat16().T, dense.output()
    theirs: dict[str, Callable[[], Call]] = {
        "torch_mm": partial(partial, torch.mm, a, b),
        "torch_mm_out": partial(partial, torch.mm, a, b, out=out),
    }
    for name in ("cublaslt_tensorwise", "cublaslt_blockwise", "deep_gemm"):
        theirs[name] = partial(PEERS[name], problem)
    return ours, theirs


def take_turns(
    calls: Mapping[str, Call], device: torch.device, batches: Iterable[int], count: int
) -> dict[str, list[float]]:
    """Microseconds of a call by name, one number for each batch of `count` calls. Every implementation has
    one batch before the first has its second, so that a slow moment of the machine hits all of them."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for _ in batches:
        for name, call in calls.items():
            found[name].append(batch(call, device, count))
    return found


def batch(call: Call, device: torch.device, count: int) -> float:
    """Microseconds of host time for a call, the mean of `count` calls."""
    timing.synchronize(device)
    started = time.perf_counter()
    for _ in range(count):
        call()
    elapsed = time.perf_counter() - started
    timing.synchronize(device)
    return elapsed / count * 1e6


# -------------------------------------------------------------------------------------------------- the data


def data_row(quantity: str, impl: str, product: Product, us: Sequence[float]) -> HostRow:
    """One row of figures/data/host.json: the median, 10th and 90th percentile of some measurements."""
    p10, median, p90 = (round(float(value), 3) for value in np.percentile(us, [10, 50, 90]))
    return {
        "quantity": quantity,
        "impl": impl,
        "kind": product.kind,
        "groups": product.groups,
        "m": product.shape.m,
        "n": product.shape.n,
        "k": product.shape.k,
        "us": median,
        "us_p10": p10,
        "us_p90": p90,
    }


def cpu_name() -> str | None:
    """The name of the host's processor, from Linux."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return None
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), None)
