"""What each process of `python -m gemm_ladder parallel` does: it has one GPU, checks the layers that all
share beside the whole ones, and times both.

    python -m gemm_ladder.measure.parallel_ranks PLAN RANK FOLDER

PLAN is JSON; rank 0 writes FOLDER/rows.json. It times the whole layers alone, for the figures of one GPU.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from gemm_ladder.casts import functions
from gemm_ladder.figures import parallel_model
from gemm_ladder.figures.rows import ParallelRow
from gemm_ladder.layers import (
    ColumnParallelFp8Linear,
    Fp8Experts,
    Fp8Linear,
    ParallelFp8Experts,
    RowParallelFp8Linear,
)
from gemm_ladder.layers.dispatching import Dispatched
from gemm_ladder.measure import parallel_training
from gemm_ladder.measure.parallel_training import Mixture, routed
from gemm_ladder.measure.rank_timing import WARM, Step, error, gathered, row, timed, wait

MODULE = "gemm_ladder.measure.parallel_ranks"
AT_ONCE = 16  # experts whose weights are made at the same time
# Of ||out - one device|| / ||one device||. Both have the same operands, but other kernels may add in another
# order, which changes some codes of the cast between the two products.
MOST_ERROR = 1e-2


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is measured: the sizes of DeepSeek-V3 (arXiv:2412.19437), whole.

    Attributes:
        ranks: numbers of GPUs; 1 is measured with the whole layers.
        tokens: of all ranks together.
        hidden, intermediate, experts, top_k: of the mixture.
        mlp: the intermediate size of a feed-forward layer without experts.
        transfers: bytes that a rank sends to others in an all-to-all, and that it adds in an all-reduce.
        training: a smaller mixture, whose forward and backward passes are measured.
        calls: of each layer at each size.
        graph_tokens: instead of all else, a mixture in a CUDA graph with so many tokens.
    """

    ranks: tuple[int, ...] = (1, 2)
    tokens: tuple[int, ...] = (128, 1024, 4096, 16384)
    hidden: int = 7168
    intermediate: int = 2048
    experts: int = 256
    top_k: int = 8
    mlp: int = 18432
    transfers: tuple[int, ...] = (1 << 16, 1 << 20, 1 << 24, 1 << 28)
    training: Mixture = dataclasses.field(default_factory=Mixture)
    calls: int = 20
    graph_tokens: tuple[int, ...] = ()


def main(arguments: Sequence[str]) -> None:
    given, rank, folder = json.loads(arguments[0]), int(arguments[1]), Path(arguments[2])
    given["training"] = Mixture(**with_tuples(given["training"]))
    plan = Plan(**with_tuples(given))
    device = torch.device("cuda", rank)
    torch.cuda.set_device(device)
    dist.init_process_group(
        "nccl",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=max(plan.ranks),
        device_id=device,
    )
    rows, wrong = measure(plan, device)
    if rank == 0:
        (folder / "rows.json").write_text(json.dumps({"rows": rows, "wrong": wrong}))
    dist.barrier()
    dist.destroy_process_group()


def with_tuples(given: dict[str, Any]) -> dict[str, Any]:
    """What JSON has made lists, as tuples again."""
    return {name: tuple(one) if isinstance(one, list) else one for name, one in given.items()}


class Round(NamedTuple):
    """One round of measuring, on the first of the ranks, each with a device of its own.

    Attributes:
        size: how many ranks take part.
        group: these.
        rows, wrong: what has been measured, and what was not right; added to.
    """

    plan: Plan
    size: int
    group: dist.ProcessGroup
    device: torch.device
    rows: list[ParallelRow]
    wrong: list[str]

    def right(self, what: str, tokens: int, off: float) -> bool:
        """Whether a result that is off by so much is right; noted if not."""
        if off < MOST_ERROR:
            return True
        self.wrong.append(f"{what}, {tokens} tokens on {self.size} GPUs: off by {off:.2g}")
        return False


def measure(plan: Plan, device: torch.device) -> tuple[list[ParallelRow], list[str]]:
    """Check and time everything, in all processes at once.

    Returns:
        The rows and, as sentences, what is wrong; complete on rank 0.
    """
    rows: list[ParallelRow] = []
    wrong: list[str] = []
    with torch.no_grad():
        whole = whole_experts(plan, device)
        for size in plan.ranks:
            here = Round(plan, size, dist.new_group(range(size)), device, rows, wrong)
            if dist.get_rank() < size:
                (measure_graphs if plan.graph_tokens else measure_experts)(here, whole)
        if plan.graph_tokens:
            return rows, wrong
        del whole
        linears = whole_mlp(plan, device)
        for size in plan.ranks:
            here = Round(plan, size, dist.new_group(range(size)), device, rows, wrong)
            if dist.get_rank() < size:
                measure_mlp(here, linears)
                if size > 1:
                    measure_transfers(here)
    del linears
    for size in plan.ranks:
        here = Round(plan, size, dist.new_group(range(size)), device, rows, wrong)
        if dist.get_rank() < size:
            parallel_training.measure(here, plan.training)
    return rows, wrong


# ----------------------------------------------------------------------------------------------- a mixture


def whole_experts(plan: Plan, device: torch.device) -> Fp8Experts:
    """All experts, the same on every rank, of random normal weights."""
    with torch.device("meta"):
        layer = Fp8Experts(plan.experts, plan.hidden, plan.intermediate)
    state = {name: torch.empty_like(one, device=device) for name, one in layer.state_dict().items()}
    for begin in range(0, plan.experts, AT_ONCE):
        some = slice(begin, min(begin + AT_ONCE, plan.experts))
        generator = torch.Generator(device).manual_seed(begin)
        for name in ("gate_up_proj", "down_proj"):
            shape = (some.stop - some.start, *state[name].shape[1:])
            made = torch.randn(shape, generator=generator, device=device, dtype=torch.bfloat16)
            codes, scales = functions.per_block_quant_fp8(made / shape[-1] ** 0.5)
            state[name][some], state[f"{name}_scale_inv"][some] = codes, scales
    layer.load_state_dict(state, assign=True)
    return layer


def measure_experts(here: Round, whole: Fp8Experts) -> None:
    plan, size, group, device, rows, _ = here
    layers = {} if size == 1 else shared_layers(whole, group)
    rank = dist.get_rank(group)
    for tokens in plan.tokens:
        call = tuple(one.chunk(size)[rank] for one in routed(plan, tokens, device))
        if size == 1:
            found = timed([functools.partial(_called, whole, call)], group, plan.calls, device)
            rows.append(row("experts", "one", 1, tokens, found, {"products": 0}, 0, 0.0))
            continue
        expected = whole(*call)
        for name, layer in layers.items():
            dispatched = layer.dispatch(*call)
            off = error(layer.combine(layer.compute(dispatched), dispatched), expected, group)
            if not here.right(f"experts, {name}", tokens, off):
                continue
            found = timed(_steps(layer, call), group, plan.calls, device)
            moved = max(gathered(outgoing(dispatched, plan.hidden, rank), group))
            named = {"dispatch": 0, "products": 1, "combine": 2}
            rows.append(row("experts", name, size, tokens, found, named, moved, off))


def shared_layers(whole: Fp8Experts, group: dist.ProcessGroup) -> dict[str, ParallelFp8Experts]:
    """This rank's part of the experts, by how tokens travel."""
    return {
        "sums": ParallelFp8Experts.from_experts(whole, group),
        "rows": ParallelFp8Experts.from_experts(whole, group, combine="rows"),
        "everywhere": ParallelFp8Experts.from_experts(whole, group, everywhere=True),
    }


def measure_graphs(here: Round, whole: Fp8Experts) -> None:
    """The layers that a CUDA graph can capture, in one: the host's share is that of a single launch."""
    plan, size, group, device, rows, _ = here
    layer, name = whole, "one"
    if size > 1:
        layer, name = ParallelFp8Experts.from_experts(whole, group, everywhere=True), "everywhere"
    for tokens in plan.graph_tokens:
        call = tuple(one.chunk(size)[dist.get_rank(group)] for one in routed(plan, tokens, device))
        expected = whole(*call)
        for _ in range(WARM):
            layer(*call)
        wait(device)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=torch.cuda.Stream(device)):
            out = layer(*call)
        out.zero_()
        graph.replay()
        off = error(out, expected, group)
        if not here.right(f"experts, {name} in a graph", tokens, off):
            continue
        found = timed([functools.partial(_replayed, graph)], group, plan.calls, device)
        moved = 0 if size == 1 else (size - 1) * tokens // size * (row_bytes(plan) + 2 * plan.hidden)
        rows.append(row("experts", f"{name}_graph", size, tokens, found, {}, moved, off))


def row_bytes(plan: Plan) -> int:
    """Of a token that travels to a rank."""
    return parallel_model.Layer(plan.hidden, plan.intermediate, plan.experts, plan.top_k).row_bytes


def _replayed(graph: torch.cuda.CUDAGraph, _: object) -> None:
    graph.replay()


def _called(layer: Fp8Experts, call: tuple[torch.Tensor, ...], _: object) -> torch.Tensor:
    found: torch.Tensor = layer(*call)
    return found


def _steps(layer: ParallelFp8Experts, call: tuple[torch.Tensor, ...]) -> list[Step]:
    x, chosen, factors = call
    return [
        lambda _: layer.dispatch(x, chosen, factors),
        lambda dispatched: (layer.compute(dispatched), dispatched),
        lambda both: layer.combine(*both),
    ]


def outgoing(dispatched: Dispatched, hidden: int, rank: int) -> int:
    """Bytes that this rank sends to others: rows to experts, and results back."""
    back = sum(dispatched.sent) - dispatched.sent[rank]
    return dispatched.bytes + 2 * hidden * back


# ------------------------------------------------------------------------------------ a layer without experts


def whole_mlp(plan: Plan, device: torch.device) -> list[Fp8Linear]:
    """gate, up and down, the same on every rank."""
    torch.manual_seed(0)
    sizes = ((plan.hidden, plan.mlp), (plan.hidden, plan.mlp), (plan.mlp, plan.hidden))
    return [Fp8Linear(*one, bias=False, device=device, dtype=torch.bfloat16) for one in sizes]


def measure_mlp(here: Round, linears: list[Fp8Linear]) -> None:
    plan, size, group, device, rows, _ = here
    kinds = (ColumnParallelFp8Linear, ColumnParallelFp8Linear, RowParallelFp8Linear)
    gate, up, down = (kind.from_linear(one, group) for kind, one in zip(kinds, linears, strict=True))
    assert isinstance(down, RowParallelFp8Linear)
    for tokens in plan.tokens:
        x, *_ = routed(plan, tokens, device)

        def whole(_: object, x: torch.Tensor = x) -> torch.Tensor:
            return linears[2](F.silu(linears[0](x)) * linears[1](x))

        if size == 1:
            found = timed([whole], group, plan.calls, device)
            rows.append(row("mlp", "one", 1, tokens, found, {"products": 0}, 0, 0.0))
            continue
        steps: list[Step] = [
            lambda _, x=x: down.partial(F.silu(gate(x)) * up(x)),
            lambda partial: down.reduce(partial),
        ]
        off = error(steps[1](steps[0](None)), whole(None), group)
        if not here.right("mlp", tokens, off):
            continue
        found = timed(steps, group, plan.calls, device)
        moved = 2 * (size - 1) * x.nbytes // size  # of a ring: each part is sent to be added, and once more
        rows.append(row("mlp", "sums", size, tokens, found, {"products": 0, "combine": 1}, moved, off))


def measure_transfers(here: Round) -> None:
    """Transfers alone: what the links give. Their rows have bytes instead of tokens."""
    plan, size, group, device, rows, _ = here
    for count in plan.transfers:
        of_each = count // (size - 1) // 16 * 8  # BF16 numbers that go to each other rank
        sent = torch.zeros(size * of_each, dtype=torch.bfloat16, device=device)
        received = torch.empty_like(sent)
        keep = [0 if rank == dist.get_rank(group) else of_each for rank in range(size)]
        behind = sum(keep)
        moves: dict[str, tuple[Step, int]] = {
            "all_to_all": (
                lambda _, r=received[:behind], s=sent[:behind], k=keep: dist.all_to_all_single(
                    r, s, k, k, group=group
                ),
                2 * behind,
            ),
            "all_reduce": (
                lambda _, s=sent[:behind]: dist.all_reduce(s, group=group),
                4 * behind * (size - 1) // size,
            ),
        }
        for name, (move, moved) in moves.items():
            found = timed([move], group, plan.calls, device)
            rows.append(row(name, "nccl", size, 0, found, {"combine": 0}, moved, 0.0))


if __name__ == "__main__":
    main(sys.argv[1:])
