"""python -m gemm_ladder parallel: layers that two GPUs share, beside the same layers on one.

Needs two Hopper GPUs of one machine. A mixture of experts of DeepSeek-V3's sizes, a feed-forward layer
that is divided in columns and rows, and a smaller mixture that is trained, at several numbers of tokens
in all: each is checked beside the whole layer, then timed, with its steps. In a checkout,
figures/data/parallel.json is renewed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from gemm_ladder import launch, layers, precompiling
from gemm_ladder.arguments import HOPPER, ceil_div
from gemm_ladder.casts.kernel import Kernel
from gemm_ladder.errors import GemmLadderError, InputError
from gemm_ladder.figures import parallel as figure
from gemm_ladder.figures import tables
from gemm_ladder.figures.rows import ParallelRow
from gemm_ladder.layers import combining, placing, routing, scattering
from gemm_ladder.measure import records, session
from gemm_ladder.measure.parallel_ranks import MODULE, Plan
from gemm_ladder.measure.parallel_training import whole_experts
from gemm_ladder.measure.rank_timing import WARM
from gemm_ladder.production import choice, launching
from gemm_ladder.production.config import Config

RECORD = "parallel.json"
GRAPHS = 2  # for how many numbers of tokens, the first ones, a CUDA graph is measured
SECONDS = 200  # after which the processes are taken to hang
# What the layers launch beside products.
BESIDE = (
    Kernel("per_block", "nothing", torch.bfloat16),
    Kernel("per_token", "nothing", torch.bfloat16),
    Kernel("per_token", "silu_and_mul", torch.bfloat16),
    combining.KERNEL,
    *placing.KERNELS,
    scattering.KERNEL,
)
PROTOCOL = (
    "a process for each GPU, NCCL; time between CUDA events, the host's share and its waiting included; the "
    f"ranks begin together, and the slowest counts; median of {Plan().calls} calls after {WARM} that do not "
    "count; random normal data, every expert equally likely; nothing is done to L2, than which the weights "
    "are far larger; one: the whole layer on one GPU; bytes: what a rank sends to others; rel_err: ||out - "
    "one|| / ||one|| of the worst rank; everywhere: every token goes to every rank; graph: in a CUDA graph, "
    "replayed; all_to_all, all_reduce: transfers alone, in BF16; training: forward and backward passes "
    "with gradients of tokens, of their weights and of the experts; its rel_err is that of the result or the "
    "gradient that is furthest off"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run `parallel`. Returns 0, or 1 where a result is wrong.

    Raises:
        GemmLadderError: there are not enough Hopper GPUs, a process fails, or an argument is not usable.
        gemm_ladder.build.ToolchainError, BuildError: a kernel cannot be built.
    """
    parser = argparse.ArgumentParser(
        prog="python -m gemm_ladder parallel",
        description="Check and time layers that several GPUs share, beside one GPU.",
    )
    parser.add_argument("--ranks", default="1,2", metavar="N,...", help="numbers of GPUs (default: 1,2)")
    parser.add_argument("--tokens", metavar="N,...", help="of all GPUs together, others than the recorded")
    parser.add_argument("--experts", type=int, default=Plan().experts, help="(default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the measurements to FILE")
    arguments = parser.parse_args(argv)
    plan = planned(arguments.ranks, arguments.tokens, arguments.experts)
    device, found = session.need_gpu("what is measured is time", arguments.json)
    need_gpus(max(plan.ranks))
    print(f"Found {max(plan.ranks)} x {found}: layers are checked beside whole ones, then timed.\n")
    result = on_gpus(plan, device)
    if result.rows:
        for cells in (figure.table(result.data), figure.training(result.data)):
            print(tables.plain(cells))
    session.show_measured(result, ())
    session.keep(result, arguments.json, plan == Plan(), RECORD, "every size on 1 and 2 GPUs")
    return 1 if result.wrong else 0


def planned(ranks: str, tokens: str | None, experts: int) -> Plan:
    """What the arguments ask for. Raises InputError where they ask for nothing that can be measured."""
    plan = Plan(ranks=_numbers("--ranks", ranks), experts=experts)
    if tokens is not None:
        numbers = _numbers("--tokens", tokens)
        trained = dataclasses.replace(plan.training, tokens=numbers)
        plan = dataclasses.replace(plan, tokens=numbers, training=trained)
    most = max(plan.ranks)
    if any(one % most for one in plan.tokens):
        raise InputError(f"--tokens is {tokens}; multiples of {most}, a share for each GPU, are needed")
    if experts < max(most, plan.top_k):
        raise InputError(f"--experts is {experts}; {max(most, plan.top_k)} or more are needed")
    return plan


def _numbers(option: str, text: str) -> tuple[int, ...]:
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdigit() and int(word) for word in words):
        raise InputError(f"{option} is {text!r}; positive numbers, with commas between them, are needed")
    return tuple(dict.fromkeys(map(int, words)))


def need_gpus(count: int) -> None:
    """Raise GemmLadderError where the first `count` GPUs are not there, or are no Hopper GPUs."""
    there = torch.cuda.device_count()
    if there < count:
        raise GemmLadderError(f"found {there} GPUs; {count} are needed")
    others = [index for index in range(count) if torch.cuda.get_device_capability(index) != HOPPER]
    if others:
        raise GemmLadderError(f"GPU {others[0]} is no Hopper GPU; the first {count} have to be")


def on_gpus(plan: Plan, device: torch.device) -> session.Measured[ParallelRow]:
    """Build the kernels, then have a process for each GPU measure."""
    meta = {
        **records.machine(device, 0),
        "protocol": PROTOCOL,
        "nccl": ".".join(map(str, torch.cuda.nccl.version())),
        "plan": dataclasses.asdict(plan),
    }
    result: session.Measured[ParallelRow] = session.Measured(meta=meta)
    num_sms, gpu = launch.usable_sms(device), torch.cuda.get_device_name(device)
    precompiling.build_all([*BESIDE, *needed(plan, num_sms, gpu)], "cuda")
    for size in plan.ranks:
        of_rank = dataclasses.replace(plan.training, experts=ceil_div(plan.training.experts, size))
        layer = whole_experts(of_rank, "meta", torch.bfloat16)
        layers.precompile(layer, max(of_rank.tokens), training=True, top_k=of_rank.top_k, device=device)
    result.rows, result.wrong = found_by(plan)
    try:  # in new processes: what cannot be captured may leave NCCL unusable
        rows, wrong = found_by(dataclasses.replace(plan, graph_tokens=plan.tokens[:GRAPHS]))
    except GemmLadderError as error:
        result.missing.append({"impl": "CUDA graph", "shape": "experts", "reason": str(error)})
    else:
        result.rows += rows
        result.wrong += wrong
    return result


def found_by(plan: Plan) -> tuple[list[ParallelRow], list[str]]:
    """What the processes measure: rows, and what is wrong. Raises as in_processes()."""
    with tempfile.TemporaryDirectory() as name:
        in_processes(plan, Path(name))
        found = json.loads((Path(name) / "rows.json").read_text())
    return found["rows"], found["wrong"]


def needed(plan: Plan, num_sms: int, gpu: str) -> list[Config]:
    """The kernels of products that the layers call on GPUs of this name, so many of whose SMs are used; one
    that is missing here is built when it is called."""
    found: dict[Config, None] = {}
    for size in plan.ranks:
        experts = ceil_div(plan.experts, size)
        for tokens in plan.tokens:
            expected = ceil_div(tokens * plan.top_k, plan.experts)
            rows = tokens if size == 1 else ceil_div(tokens * plan.top_k, size)
            kind = routing.layout_for(min(rows, tokens), plan.top_k, experts)
            for n, k in ((2 * plan.intermediate, plan.hidden), (plan.hidden, plan.intermediate)):
                of_weight = launching.plan(kind, n, k, experts, num_sms, gpu)
                found[of_weight.at(choice.rows_to_expect(kind, tokens, experts, expected))] = None
            for n, k in ((plan.mlp // size, plan.hidden), (plan.hidden, plan.mlp // size)):
                found[launching.plan("dense", n, k, 1, num_sms, gpu).at(tokens)] = None
    return [*found]


def in_processes(plan: Plan, folder: Path) -> None:
    """Run parallel_ranks for each GPU, with this process's environment.

    Raises:
        GemmLadderError: one fails, or they take too long. None is left running.
    """
    given = json.dumps(dataclasses.asdict(plan))
    processes, until, failed = [], time.monotonic() + SECONDS, None
    try:
        for rank in range(max(plan.ranks)):
            with (folder / f"errors{rank}").open("w") as errors:
                command = [sys.executable, "-m", MODULE, given, str(rank), str(folder)]
                processes.append(subprocess.Popen(command, stderr=errors))
        while failed is None and any(process.poll() is None for process in processes):
            if time.monotonic() > until:
                raise GemmLadderError(f"the processes take more than {SECONDS} s; they were ended")
            time.sleep(0.1)
            failed = next((rank for rank, process in enumerate(processes) if process.poll()), None)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    if failed is not None:
        lines = (folder / f"errors{failed}").read_text().strip().splitlines()
        raise GemmLadderError(f"the process of GPU {failed} fails: {(lines or ['it printed no error'])[-1]}")
