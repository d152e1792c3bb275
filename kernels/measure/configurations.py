"""Checking and timing configurations of the production kernel at one product, for `calibrate` and `tune`."""

from __future__ import annotations

import ctypes
import math
import statistics
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from gemm_ladder import checks, launch
from gemm_ladder.arguments import GroupedArgs
from gemm_ladder.errors import GemmLadderError, one_line
from gemm_ladder.launch import Launcher
from gemm_ladder.measure import timing
from gemm_ladder.measure.operands import Operands
from gemm_ladder.measure.peers import Call
from gemm_ladder.measure.pool import Pool, errors, references, weights_of
from gemm_ladder.measure.problems import describe
from gemm_ladder.measure.shapes import Cell
from gemm_ladder.measure.timing import STATES, Job, KernelTimer, State
from gemm_ladder.production.config import Config

CALLS, FEW_CALLS, SLOW_FLOPS = 6, 3, 2e11  # calls of a pass; FEW_CALLS for products of more operations
# Dense products are measured in a graph where it tells more than calls with L2 clean: up to GRAPH_FLOPS, as
# the gap between calls counts there, and from LONG_FLOPS on, as a GPU that never rests lowers its clock.
GRAPH_FLOPS, LONG_FLOPS = 4e10, 1e12
LATE = 1.5  # a graph whose calls take so many times as long as with L2 clean may have waited for a busy host
WRONG = (math.inf,) * len(STATES)  # in place of times


class Timed(NamedTuple):
    """A configuration at a product.

    Attributes:
        us: microseconds in each of STATES; NaN where it was not measured.
    """

    cell: Cell
    config: Config
    us: tuple[float, ...]

    @property
    def mean(self) -> float:
        """The geometric mean of the times."""
        times = [one for one in self.us if not math.isnan(one)]
        return statistics.geometric_mean(times) if times else math.nan


class KernelFault(GemmLadderError):
    """A kernel has faulted on the GPU, after which the process can measure nothing."""

    def __init__(self, config: Config, cell: Cell, error: RuntimeError) -> None:
        super().__init__(f"{config.name} faults at {cell}: {one_line(error)}")
        self.config, self.cell = config, cell


def measure_cell(
    cell: Cell,
    wanted: Sequence[Config],
    launcher_of: Callable[[Config], Launcher],
    store: Pool,
    timer: KernelTimer,
    states: Sequence[State] = STATES,
) -> list[Timed]:
    """Check and time configurations at one product.

    Args:
        launcher_of: gives a configuration's function; a GemmLadderError means that there is none.
        store: a pool that has the product.
        states: what to measure. The graph is left out where that tells nothing: where the product has groups,
            whose weights no L2 holds, or between GRAPH_FLOPS and LONG_FLOPS operations.

    Returns:
        A result for each configuration, with WRONG instead of times where it gives no right result.

    Raises:
        KernelFault: a kernel has faulted.
    """
    graphs = "graph" in states and cell.kind == "dense" and not GRAPH_FLOPS < cell.flops < LONG_FLOPS
    cold = [state for state in timing.L2_STATES if state in states]
    operands = [store.operands(cell, index) for index in range(weights_of(cell) if graphs else 1)]
    out, expected = operands[0].output(), references(operands[0])
    results, calls = [], {}
    for config in wanted:
        try:
            made = _calls(launcher_of(config), operands, out, timer.device)
            out.fill_(math.nan)
            made[0]()
            timing.synchronize(timer.device)
            error = errors(operands[0].results(out), expected)
        except GemmLadderError as reason:
            print(f"{config.name} at {cell}: {one_line(reason)}")
            results.append(Timed(cell, config, WRONG))
            continue
        except RuntimeError as reason:
            raise KernelFault(config, cell, reason) from reason
        if error.right:
            calls[config] = made
        else:
            print(f"{config.name} at {cell}: {describe(error)}")
            results.append(Timed(cell, config, WRONG))
    count = CALLS if cell.flops <= SLOW_FLOPS else FEW_CALLS
    times: dict[tuple[Config, str], float] = {}
    for order in (list(calls), list(calls)[::-1]):
        jobs = [(config, l2) for config in order for l2 in cold]
        timed = timer.batch([Job(calls[config][0], l2, count) for config, l2 in jobs]) if jobs else []
        for job, each in zip(jobs, timed, strict=True):
            times[job] = min(times.get(job, math.inf), statistics.median(each))
    if graphs:
        for config, made in calls.items():
            us = min(timing.graph_times(made, timer.device))
            if us > LATE * times.get((config, "clean"), math.inf):
                us = min(us, *timing.graph_times(made, timer.device))
            times[config, "graph"] = us
    for config in calls:
        us = tuple(times.get((config, state), math.nan) for state in STATES)
        results.append(Timed(cell, config, us))
    return results


def _calls(
    launcher: Launcher, operands: Sequence[Operands], out: torch.Tensor, device: torch.device
) -> list[Call]:
    """A call for each of the operands, on the stream that is current when it is made."""
    num_sms = launch.usable_sms(device)

    def call_with(one: Operands) -> Call:
        checked = checks.operands(one.product.kind, one.lhs, one.rhs, out, one.rows)
        args = GroupedArgs.of(checked, num_sms)

        def call() -> None:
            args.stream = torch.cuda.current_stream(device).cuda_stream
            error = launcher(ctypes.addressof(args))
            if error is not None:
                raise GemmLadderError(error.decode())

        return call

    return [call_with(one) for one in operands]
