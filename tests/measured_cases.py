"""Cases like those of parallel_cases.py, of what `python -m gemm_ladder parallel` does in each process."""

from __future__ import annotations

import contextlib
import dataclasses
import unittest.mock
from collections.abc import Iterator
from typing import Any

import launched
import torch
import torch.distributed as dist
from gemm_ladder.layers import ParallelFp8Experts
from gemm_ladder.measure import parallel, parallel_ranks, parallel_training, rank_timing
from parallel_cases import case
from sharded_cases import CASES

__all__ = ["CASES"]  # with those of sharded_cases.py


@case
def what_is_measured(device: str) -> None:
    """The command `parallel`, at small sizes: its layers are right, its rows whole; BESIDE lists the kernels
    that are launched beside the products."""
    size = dist.get_world_size()
    sizes = {"hidden": 128, "intermediate": 128, "experts": 8, "top_k": 2, "mlp": 128 * size}
    nothing = parallel_training.Mixture((), 128, 16, size, 1)
    plan = parallel_ranks.Plan((1, size), (8,), transfers=(1 << 10,), calls=2, training=nothing, **sizes)
    own = torch.device(device, torch.cuda.current_device()) if device == "cuda" else torch.device("cpu")
    with launched.noted() as kernels:
        rows, wrong = parallel_ranks.measure(plan, own)
    assert device == "cuda" or kernels == {*parallel.BESIDE}
    found = {(row["what"], row["impl"], row["ranks"]): row for row in rows}
    expected = {(what, "sums", size) for what in ("experts", "mlp")}
    expected |= {("experts", impl, size) for impl in ("rows", "everywhere")}
    expected |= {(what, "nccl", size) for what in ("all_to_all", "all_reduce")}
    if dist.get_rank() == 0:
        expected |= {("experts", "one", 1), ("mlp", "one", 1)}
    assert not wrong and {*found} == expected
    sums, copies = found["experts", "sums", size], found["experts", "rows", size]
    assert 0 < sums["dispatch_us"] < sums["us"] and sums["rel_err"] < parallel_ranks.MOST_ERROR
    assert 0 < sums["bytes"] <= copies["bytes"]
    everywhere = found["experts", "everywhere", size]["bytes"]
    assert everywhere == (size - 1) * 8 // size * (parallel_ranks.row_bytes(plan) + 2 * 128)
    if device == "cuda":
        rows, wrong = parallel_ranks.measure(dataclasses.replace(plan, graph_tokens=(8,)), own)
        assert not wrong and ("everywhere_graph", size) in {(row["impl"], row["ranks"]) for row in rows}


@case
def what_is_measured_of_training(device: str) -> None:
    """Steps of both kinds are right, and have the bytes that they send."""
    size, own = dist.get_world_size(), torch.device(device)
    mixture = parallel_training.Mixture((8 * size,), 128, 16, 2 * size - 1, 2)
    rows: list[Any] = []
    wrong: list[str] = []
    here = parallel_ranks.Round(parallel_ranks.Plan(calls=1), size, dist.group.WORLD, own, rows, wrong)
    parallel_training.measure(here, mixture)
    assert not wrong and [row["impl"] for row in rows] == ["sums", "rows"]
    whole = parallel_training.whole_experts(mixture, own, torch.bfloat16)
    given = [
        one.chunk(size)[dist.get_rank()] for one in parallel_training.differentiated(mixture, 8 * size, own)
    ]
    for row in rows:
        layer = ParallelFp8Experts.from_experts(whole, combine=row["impl"])
        with sent_bytes() as moved:
            parallel_training.step(layer, given)
        told = size * (size - 1) * 3 * 8 // size  # how many rows there will be: three numbers for each rank
        assert max(rank_timing.gathered(sum(moved) - told, dist.group.WORLD)) == row["bytes"]
        assert row["forward_us"] > 0 and row["backward_us"] > 0
        assert row["rel_err"] < (1e-9 if row["impl"] == "rows" and device == "cpu" else 1e-2)


@contextlib.contextmanager
def sent_bytes() -> Iterator[list[int]]:
    """What this rank sends to others, by call of all_to_all_single."""
    found: list[int] = []
    call, rank = dist.all_to_all_single, dist.get_rank()

    def noted(
        received: torch.Tensor,
        sent: torch.Tensor,
        theirs: list[int] | None = None,
        mine: list[int] | None = None,
        group: Any = None,
    ) -> Any:
        to = mine or [len(sent) // dist.get_world_size(group)] * dist.get_world_size(group)
        found.append((sum(to) - to[rank]) * sent[:1].nbytes)
        return call(received, sent, theirs, mine, group=group)

    with unittest.mock.patch.object(dist, "all_to_all_single", noted):
        yield found
