"""Products on a GPU, one after another, each in four phases: check ours, check the peers, count calls, time
and record.

An implementation whose result is not right is not timed: a fast wrong kernel would be the best of all.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from gemm_ladder.errors import GemmLadderError, InputError, one_line
from gemm_ladder.figures.rows import TimedRow
from gemm_ladder.measure import records, timing
from gemm_ladder.measure.peers import Call
from gemm_ladder.measure.problems import Errors, describe
from gemm_ladder.measure.session import Measured, Status, progress
from gemm_ladder.measure.shapes import Cell, Product, Shape

# A peer whose relative error is larger computes something else, and its time would say nothing.
MAX_PEER_ERROR = 0.1

Of = TypeVar("Of", Shape, Product)
Maker = Callable[[], Call]
ErrorsOf = Callable[[str, Any], Errors]  # (implementation, what its call returned)


class How(NamedTuple):
    """How products are measured.

    Attributes:
        states: the states of L2.
        device: the GPU.
        timer: a timing.KernelTimer.
        status: called with what is being done, to show it beside a progress bar.
    """

    states: Sequence[timing.L2]
    device: torch.device
    timer: timing.Timer
    status: Status


class Checked(NamedTuple):
    """A call that gave a right result, and the result's relative error."""

    call: Call
    error: float


class GpuFault(Exception):
    """A kernel has faulted, and with it the process's CUDA context: every later CUDA call fails."""


def measure_each(
    products: Sequence[Of],
    unit: str,
    measure_one: Callable[[Of, How], bool],
    states: Sequence[timing.L2],
    device: torch.device,
    result: Measured[TimedRow],
) -> None:
    """Measure one product after another, until measure_one(product, how) says that no other can be measured.

    Args:
        unit: what the progress bar counts.

    Raises:
        InputError: a product does not fit the GPU's memory.
    """
    timer = timing.KernelTimer(device)
    result.meta = {**records.machine(device, timer.flush_bytes)}
    with progress(products, unit) as (bar, status):
        how = How(states, device, timer, status)
        for product in bar:
            try:
                if not measure_one(product, how):
                    break
            except torch.cuda.OutOfMemoryError:
                raise InputError(
                    f"{product} does not fit the memory of the GPU beside the reference and "
                    f"{timer.flush_bytes / 1e9:.3g} GB to clear L2 with; a smaller shape is needed"
                ) from None


def measure_product(
    product: Shape | Product | Cell,
    ours: Mapping[str, Maker],
    peers: Mapping[str, Maker],
    errors: ErrorsOf,
    how: How,
    result: Measured[TimedRow],
) -> bool:
    """Check and time all implementations of one product; add what is found to `result`.

    Args:
        ours, peers: by name, a function that prepares an implementation and returns its call. If one of ours
            fails, that is wrong; a peer that fails is missing.
        errors: the errors of what a call returned.

    Returns:
        Whether another product can be measured: not after a kernel has faulted on the GPU.
    """
    try:
        right = check_ours(product, ours, errors, how, result)
        right |= check_peers(product, peers, errors, how, result)
        counts, failures = count_calls(right, how.device)
        time_and_record(product, right, counts, failures, ours.keys(), how, result)
    except GpuFault:
        result.wrong.append(f"Nothing more is measured after {product}: a kernel has faulted on the GPU.")
        return False
    return True


def check_ours(
    product: Shape | Product | Cell,
    ours: Mapping[str, Maker],
    errors: ErrorsOf,
    how: How,
    result: Measured[Any],
) -> dict[str, Checked]:
    """Phase 1: run each of ours once; those with a right result. Raises GpuFault."""
    right: dict[str, Checked] = {}
    for name, make in ours.items():
        try:
            call, error = _check(product, name, make, errors, how)
        except torch.cuda.OutOfMemoryError:
            raise
        except (GemmLadderError, RuntimeError) as fault:
            result.wrong.append(f"{name} fails at {product}: {one_line(fault)}")
            if isinstance(fault, GemmLadderError):
                continue
            raise GpuFault from fault  # torch reports a kernel's fault as a RuntimeError
        result.errors[name] = result.errors.get(name, error).worst(error)
        if error.right:
            right[name] = Checked(call, error.relative)
        else:
            result.wrong.append(f"{name} is wrong at {product}: {describe(error)}")
    return right


def check_peers(
    product: Shape | Product | Cell,
    peers: Mapping[str, Maker],
    errors: ErrorsOf,
    how: How,
    result: Measured[Any],
) -> dict[str, Checked]:
    """Phase 2: run each peer once; those that compute the same product. Raises GpuFault."""
    right: dict[str, Checked] = {}
    for name, make in peers.items():
        try:
            call, error = _check(product, name, make, errors, how)
        except torch.cuda.OutOfMemoryError:
            raise
        except Exception as reason:  # a library may refuse with any exception
            result.miss(name, product, one_line(reason))
            if not usable(how.device):
                raise GpuFault from reason
            continue
        if error.relative <= MAX_PEER_ERROR:
            right[name] = Checked(call, error.relative)
        else:
            result.miss(name, product, f"its result is another: {describe(error)}")
    return right


def count_calls(right: Mapping[str, Checked], device: torch.device) -> tuple[dict[str, int], dict[str, str]]:
    """Phase 3: how many calls fit a pass, by implementation; and why one could not be tried."""
    counts: dict[str, int] = {}
    failures: dict[str, str] = {}
    for name, (call, _) in right.items():
        try:
            counts[name] = timing.calls_for(timing.seconds_of(call, device))
        except torch.cuda.OutOfMemoryError:
            raise
        except Exception as reason:  # the other implementations are still to be measured
            failures[name] = one_line(reason)
    return counts, failures


def time_and_record(
    product: Shape | Product | Cell,
    right: Mapping[str, Checked],
    counts: Mapping[str, int],
    failures: Mapping[str, str],
    ours: Container[str],
    how: How,
    result: Measured[TimedRow],
) -> None:
    """Phase 4: time the implementations that have a count and add their rows and all failures to `result`.

    Raises GpuFault.
    """
    calls = {name: right[name].call for name in counts}
    timings, untimed = timing.measure(
        calls, counts, how.states, how.timer, lambda name: how.status(f"{product} {name}: timing")
    )
    failed = [*failures.items(), *untimed.items()]
    lost = bool(failed) and not usable(how.device)
    for name, reason in failed[:1] if lost else failed:  # after a fault all later ones fail because of it
        if name in ours:
            result.wrong.append(f"{name} fails at {product} while it is timed: {reason}")
        else:
            result.miss(name, product, reason)
    for (name, l2), found in timings.items():
        result.rows.append(records.row(name, product, l2, found, right[name].error))
    if lost:
        raise GpuFault


def usable(device: torch.device) -> bool:
    """Whether the GPU still works: after a fault every CUDA call of the process fails."""
    try:
        timing.synchronize(device)
    except RuntimeError:
        return False
    return True


def _check(
    product: Shape | Product | Cell, name: str, make: Maker, errors: ErrorsOf, how: How
) -> tuple[Call, Errors]:
    """Prepare an implementation, run it once and compare its result with the reference."""
    how.status(f"{product} {name}: checking")
    call = make()
    out = call()
    timing.synchronize(how.device)
    return call, errors(name, out)
