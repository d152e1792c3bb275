"""One product in three states, ours beside the peers: what `everywhere` and `bench` have in common.

As in `product`, an implementation whose result is not right is not timed. In the states "dirty" and "clean"
all calls of a product are timed in one session of the profiler; "graph" is a CUDA graph of calls over
different weights (`timing` says more of each).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple, cast

import gemm_ladder
import numpy as np
import torch
from gemm_ladder import launch
from gemm_ladder.errors import one_line
from gemm_ladder.figures.rows import EverywhereRow
from gemm_ladder.measure import peers, pool, product, records, timing
from gemm_ladder.measure.operands import Operands, interface_call
from gemm_ladder.measure.pool import Pool
from gemm_ladder.measure.problems import Errors
from gemm_ladder.measure.product import Checked, GpuFault, check_ours, check_peers, usable
from gemm_ladder.measure.production_rows import RUNG, group_by_group, torch_grouped
from gemm_ladder.measure.session import Measured, Status
from gemm_ladder.measure.shapes import Cell
from gemm_ladder.measure.timing import L2, Job, State, Timing
from gemm_ladder.production import launching
from gemm_ladder.production.config import Config
from gemm_ladder.settings import num_sms_limit

CALLS, LEAST_CALLS, PASS_US = 10, 3, 20_000  # a pass makes as many calls as fit PASS_US
PROTOCOL = (
    f"{RUNG} is called through gemm_ladder's public functions; dirty and clean: kernel time from the CUDA "
    f"profiler (sum of the call's kernels), median of {CALLS} calls, of fewer (at least {LEAST_CALLS}) "
    f"where they take more than {PASS_US // 1000} ms, before each a memset of "
    f"{timing.BATCH_FLUSH_BYTES >> 20} MiB and, if clean, a read of the same; graph: a CUDA graph of calls "
    f"back to back, each with a B of its own, of {timing.GRAPH_BYTES // 10**6} MB together or more "
    f"({pool.MIN_WEIGHTS} to {pool.MAX_WEIGHTS} of them), and the time of a replay over its calls; "
    "everything of a product in one process, in two passes of opposite order, of which the better counts; "
    "random normal FP8 data; rel_err is ||out - ref|| / ||ref|| of the worst group, with ref in TF32 from "
    "operands that it holds exactly (cublaslt_tensorwise and torch_grouped: from the operands without "
    "scales); TFLOPS and GB/s count valid rows only; the groups of a grouped product are of very uneven "
    "size (one in eight is empty, the others' sizes are log-normal), and m is their mean before those of a "
    "masked product are limited to max_m; cuBLASLt and cuBLAS compute a grouped product as one dense "
    "product for each group, its rows padded to a multiple of 128"
)
ANY = "unknown"  # in place of an implementation's name, where a fault could be any one's


class How(NamedTuple):
    """How products are measured: as product.How, with the states of STATES and a timer of many calls."""

    states: Sequence[State]
    device: torch.device
    timer: timing.KernelTimer
    status: Status


Made = Mapping[str, Callable[[int], peers.Call]]  # by implementation: from a weight's index to its call


def implementations(store: Pool, cell: Cell) -> Made:
    """For each implementation of a product, what makes its call with one of the weights."""

    @functools.cache
    def operands(index: int) -> Operands:
        return store.operands(cell, index)

    @functools.cache
    def output(name: str) -> torch.Tensor:
        return operands(0).output()

    @functools.cache
    def bf16() -> Callable[[int], peers.Call]:
        return store.bf16_calls(operands(0))

    def ours(index: int) -> peers.Call:
        return interface_call(gemm_ladder, operands(index), output(RUNG))

    def deep_gemm(index: int) -> peers.Call:
        return interface_call(peers.deep_gemm_library(), operands(index), output("deep_gemm"))

    def cublaslt(peer: peers.Peer, index: int) -> peers.Call:
        if cell.kind == "dense":
            return peer(operands(index).parts[0])
        return group_by_group(peer, operands(index))

    made: dict[str, Callable[[int], peers.Call]] = {
        RUNG: ours,
        "deep_gemm": deep_gemm,
        "cublaslt_blockwise": functools.partial(cublaslt, peers.cublaslt_blockwise),
        "cublaslt_tensorwise": functools.partial(cublaslt, peers.cublaslt_tensorwise),
        "cublas_bf16": lambda index: bf16()(index),
    }
    if cell.kind == "contiguous":
        made["torch_grouped"] = lambda index: torch_grouped(operands(index))
    return made


def measure_cell(
    cell: Cell,
    store: Pool,
    how: How,
    result: Measured[EverywhereRow],
    skipped: Collection[str] = (),
) -> dict[str, str] | None:
    """Check and time everything at one product, in the states how.states; add what is found to `result`.

    Args:
        skipped: implementations that have faulted at this product before; with ANY among them, the others are
            timed one by one.

    Returns:
        None, or where a kernel has faulted, after which the process can measure nothing: whose it was (impl),
        at which product (shape), and the reason.
    """
    operands = store.operands(cell)
    made = {name: make for name, make in implementations(store, cell).items() if name not in skipped}
    running = [ANY]

    def first(name: str) -> peers.Call:
        running[0] = name
        return made[name](0)

    @functools.cache
    def expected(scaled: bool) -> list[torch.Tensor]:
        return pool.references(operands, scaled)

    def errors(name: str, out: Any) -> Errors:
        return pool.errors(operands.results(out), expected(name not in peers.UNSCALED))

    makers = {name: functools.partial(first, name) for name in made}
    before = len(result.rows)
    # What a run that ended at this product has noted already is found anew.
    result.missing = [one for one in result.missing if one["shape"] != str(cell) or one["impl"] in skipped]
    try:
        mine = {name: makers.pop(name) for name in (RUNG,) if name in makers}
        checking = product.How((), how.device, how.timer, how.status)
        right = check_ours(cell, mine, errors, checking, result)
        right |= check_peers(cell, makers, errors, checking, result)
        expected.cache_clear()
        running[0] = ANY
        states = [state for state in timing.L2_STATES if state in how.states]
        timings = _cold(right, cell, states, how, result, one_by_one=ANY in skipped) if states else {}
        if "graph" in how.states:
            timings |= _graphs(right, made, cell, how, result, running)
    except torch.cuda.OutOfMemoryError:
        del result.rows[before:]
        does_not_fit(cell, result)
        return None
    except GpuFault as fault:
        del result.rows[before:]
        impl = str(fault) or running[0]
        reason = one_line(fault.__cause__ or RuntimeError("a kernel has faulted"))
        if impl == RUNG and not any(f" at {cell}" in sentence for sentence in result.wrong):
            result.wrong.append(f"{RUNG} faults at {cell}: {reason}")
        elif impl in made and impl != RUNG:
            result.missing = [
                one for one in result.missing if (one["impl"], one["shape"]) != (impl, str(cell))
            ]
            result.miss(impl, cell, f"its kernel faults: {reason}")
        return {"impl": impl, "shape": str(cell), "reason": reason}
    for (name, state), found in timings.items():
        result.rows.append(row(name, cell, state, found, right[name].error))
    return None


def does_not_fit(cell: Cell, result: Measured[EverywhereRow]) -> None:
    """Note that no implementation can be measured at a product, and free what was reserved for it."""
    result.miss("all", cell, "it does not fit the memory of the GPU")
    torch.cuda.empty_cache()


def _cold(
    right: Mapping[str, Checked],
    cell: Cell,
    states: Sequence[L2],
    how: How,
    result: Measured[EverywhereRow],
    one_by_one: bool,
) -> dict[tuple[str, State], Timing]:
    """Time the states in which L2 is cold. Raises GpuFault; if one by one, with the name of whose it is."""
    how.status(f"{cell}: timing")
    count = calls_for(cell)
    sets = [[name] for name in right] if one_by_one else [list(right)]
    found: dict[tuple[str, State], Timing] = {}
    while sets:
        names = sets.pop(0)
        keys = [(name, state) for name in names for state in states]
        order = [*keys, *reversed(keys)]
        try:
            times = how.timer.batch([Job(right[name].call, state, count) for name, state in order])
        except torch.cuda.OutOfMemoryError:
            raise
        except Exception as reason:
            if not usable(how.device):
                raise GpuFault(*(names if one_by_one else ())) from reason
            if len(names) > 1:
                sets += [[name] for name in names]  # to find whose it is
            else:
                miss(result, names[0], cell, reason)
            continue
        for key, passed in zip(order, times, strict=True):
            p10, median, p90 = np.percentile(passed, [10, 50, 90])
            if key not in found or median < found[key].us:
                found[key] = Timing(float(median), float(p10), float(p90))
    return found


def _graphs(
    right: Mapping[str, Checked],
    made: Made,
    cell: Cell,
    how: How,
    result: Measured[EverywhereRow],
    running: list[str],
) -> dict[tuple[str, State], Timing]:
    """Time the state "graph". Raises GpuFault, with running[0] set to the name of whose fault it is."""
    found: dict[tuple[str, State], Timing] = {}
    failed: set[str] = set()
    kept: dict[str, list[peers.Call]] = {}
    for name in [*right, *reversed(list(right))]:
        if name in failed:
            continue
        how.status(f"{cell} {name}: timing a graph")
        running[0] = name
        try:
            if name not in kept:
                kept[name] = [made[name](index) for index in range(pool.weights_of(cell))]
            times = timing.graph_times(kept[name], how.device)
        except torch.cuda.OutOfMemoryError:
            raise
        except Exception as reason:
            if not usable(how.device):
                raise GpuFault from reason
            failed.add(name)
            miss(result, name, cell, reason, "in a graph: ")
            continue
        median = float(np.median(times))
        if (name, "graph") not in found or median < found[name, "graph"].us:
            found[name, "graph"] = Timing(median, min(times), max(times))
    return {key: value for key, value in found.items() if key[0] not in failed}


def miss(
    result: Measured[EverywhereRow], name: str, cell: Cell, reason: BaseException, where: str = ""
) -> None:
    """Note that something is not timed: of ours, that is wrong; a peer is missing."""
    if name == RUNG:
        result.wrong.append(f"{name} fails at {cell} while it is timed {where}: {one_line(reason)}")
    else:
        result.miss(name, cell, f"{where}{one_line(reason)}")


def calls_for(cell: Cell) -> int:
    """How many calls a pass makes, by a guess of what one takes at least."""
    us = max(cell.flops / 600e6, cell.bytes / 2e6)
    return max(LEAST_CALLS, min(CALLS, int(PASS_US / us)))


def row(impl: str, cell: Cell, state: State, found: Timing, error: float) -> EverywhereRow:
    """A row of figures/data/everywhere.json, its times rounded to four digits."""
    timed: dict[str, Any] = {**records.row(impl, cell, state, found, error)}
    for name in ("us", "us_p10", "us_p90", "tflops", "gb_s"):
        timed[name] = float(f"{timed[name]:.4g}")
    timed |= {"rows": sum(cell.counts), "max_m": cell.max_m, "expected_m": cell.expected_m}
    return cast(EverywhereRow, timed)


def configuration(cell: Cell, device: torch.device) -> Config:
    """The kernel configuration that our call of a product runs."""
    n, k = cell.shape[1:]
    rows = cell.max_m if cell.kind == "masked" else sum(cell.held)
    gpu = torch.cuda.get_device_name(device)
    num_sms = launch.usable_sms(device, num_sms_limit())
    return launching.configuration(cell.kind, rows, n, k, cell.groups, cell.expected_m, num_sms, gpu)
