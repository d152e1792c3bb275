"""Processes that share a layer, for the lesson on experts over several GPUs. Each is what one with a GPU
of its own would be, but it computes on the CPU, and gloo moves what NCCL would."""

from __future__ import annotations

import multiprocessing
import tempfile
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

SECONDS = 150  # that the processes may take to start and to answer
TOKENS, EXPERTS, TOP_K = 48, 8, 4  # tokens of each rank
HIDDEN, INTERMEDIATE = 512, 256


class Seen(NamedTuple):
    """What one rank says of its call of a shared layer.

    Attributes:
        sent, back: rows that it sends to each rank, and results that it sends back to each.
        bytes: what it sends to others, there.
        differ: the share of its results' numbers that are not those of one device.
        off: ||its results - one device's|| / ||one device's||.
    """

    sent: list[int]
    back: list[int]
    bytes: int
    differ: float
    off: float


def together(function: Callable[[], Any], size: int) -> list[Any]:
    """What a function of a module returns in each of `size` processes, a group of torch.distributed.

    Raises what one of them raises, or TimeoutError.
    """
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        pipes, processes = [], []
        for rank in range(size):
            here, there = context.Pipe()
            process = context.Process(target=_work, args=(function, rank, size, folder, there), daemon=True)
            process.start()
            there.close()
            pipes.append(here)
            processes.append(process)
        try:
            return [_answer(pipe) for pipe in pipes]
        finally:
            for process in processes:
                process.kill()
                process.join()


def _answer(pipe: Connection) -> Any:
    if not pipe.poll(SECONDS):
        raise TimeoutError(f"a process gave no answer in {SECONDS} s")
    returned, answer = pipe.recv()
    if returned:
        return answer
    raise answer


def _work(function: Callable[[], Any], rank: int, size: int, folder: str, pipe: Connection) -> None:
    try:
        torch.set_num_threads(1)
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size)
        answer: tuple[bool, Any] = True, function()
        dist.barrier()
    except Exception as error:
        answer = False, error
    pipe.send(answer)
    if answer[0]:
        dist.destroy_process_group()


def shared_layers() -> dict[str, Seen]:
    """Every kind of shared layer, called by this rank beside the whole one; for `together`."""
    from gemm_ladder.layers import ColumnParallelFp8Linear as Column
    from gemm_ladder.layers import Fp8Experts, Fp8Linear, ParallelFp8Experts, route
    from gemm_ladder.layers import RowParallelFp8Linear as Row

    rank, size, found = dist.get_rank(), dist.get_world_size(), {}
    torch.manual_seed(0)
    whole = Fp8Experts(EXPERTS, HIDDEN, INTERMEDIATE)
    linear = torch.nn.Linear(HIDDEN, 2 * HIDDEN, bias=False, dtype=torch.bfloat16)
    torch.manual_seed(1 + rank)
    x = torch.randn(TOKENS, HIDDEN).bfloat16()
    call = (x, *route(torch.randn(TOKENS, EXPERTS), TOP_K))
    with torch.no_grad():
        expected = whole(*call)
        for combine in ("rows", "sums"):
            layer = ParallelFp8Experts.from_experts(whole, combine=combine)
            there = layer.dispatch(*call)
            out = layer.combine(layer.compute(there), there)
            sent = there.returned if combine == "sums" else found_rows(call[1], size)
            found[combine] = Seen(sent, there.sent, there.bytes, *_beside(out, expected))
        torch.manual_seed(99)
        same = torch.randn(TOKENS, HIDDEN).bfloat16()
        expected = Fp8Linear.from_linear(linear)(same)
        column = Column.from_linear(linear)(same)
        row = Row.from_linear(linear)(same.chunk(size, -1)[rank])
        found["column"] = Seen([], [], 0, *_beside(column, expected.chunk(size, -1)[rank]))
        found["row"] = Seen([], [], 2 * row.nbytes * (size - 1) // size, *_beside(row, expected))
    return found


def found_rows(chosen: torch.Tensor, size: int) -> list[int]:
    """How many tokens have an expert on each rank."""
    owner = chosen * size // EXPERTS
    return [int((owner == rank).any(1).sum()) for rank in range(size)]


def _beside(found: torch.Tensor, expected: torch.Tensor) -> tuple[float, float]:
    differ = (found != expected).double().mean().item()
    return differ, ((found.double() - expected.double()).norm() / expected.double().norm()).item()
