"""The rungs on a GPU: built, checked at every shape, and timed beside the peers. `compare` and `interleave`
use it."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import torch
from gemm_ladder.figures.rows import TimedRow
from gemm_ladder.measure import cells, problems, session, timing, warming
from gemm_ladder.measure.peers import PEERS, UNSCALED, Peer
from gemm_ladder.measure.product import How, measure_each, measure_product
from gemm_ladder.measure.session import Measured
from gemm_ladder.measure.shapes import Cell, Shape
from gemm_ladder.rungs import NumpyRung, ProductionRung, Rung


def on_gpu(
    chosen: Sequence[Rung],
    sizes: Sequence[Shape],
    states: Sequence[timing.L2],
    device: torch.device,
    others: Mapping[str, Peer] = PEERS,
) -> Measured[TimedRow]:
    """Build the rungs, check each at every shape, and time the right ones and the peers."""
    kernels = [rung for rung in chosen if not isinstance(rung, NumpyRung)]
    if len(kernels) < len(chosen):
        print("s0_numpy runs on the CPU alone, and is not timed.")
    result: Measured[TimedRow] = Measured()
    with torch.cuda.device(device):
        session.build_all(kernels, "cuda")
        products = [Cell("dense", 1, shape) for shape in sizes]
        own = products if any(isinstance(rung, ProductionRung) for rung in kernels) else []
        configs = [cells.configuration(product, device) for product in own]
        warming.compile_all(configs, products if "deep_gemm" in others else ())
        measure_each(
            sizes,
            "shapes",
            lambda shape, how: measure_shape(shape, kernels, others, how, result),
            states,
            device,
            result,
        )
    return result


def measure_shape(
    shape: Shape, kernels: Sequence[Rung], others: Mapping[str, Peer], how: How, result: Measured[TimedRow]
) -> bool:
    """Check and time rungs and peers at one shape. Returns what measure_product() does."""
    problem = problems.make_problem(shape, how.device)
    reference = functools.cache(problem.reference)
    ours = {}
    for rung in kernels:
        if reason := rung.supports(*shape):
            result.miss(rung.name, shape, reason)
        else:
            ours[rung.name] = functools.partial(session.rung_call, rung, problem)
    theirs = {name: functools.partial(peer, problem) for name, peer in others.items()}

    def errors(name: str, out: torch.Tensor) -> problems.Errors:
        return problems.errors(out, reference(name not in UNSCALED))

    return measure_product(shape, ours, theirs, errors, how, result)
