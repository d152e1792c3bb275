"""python -m gemm_ladder casts: the casts to FP8, beside a copy of as many bytes, an empty kernel and peers.

Needs a Hopper GPU. Each cast's bits are compared with the reference's, then it is timed: alone, with L2 cold,
and where m is small also in a CUDA graph of calls back to back. In a checkout, figures/data/casts.json is
renewed.
"""

from __future__ import annotations

import argparse
import ctypes
import functools
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import gemm_ladder
import numpy as np
import torch
import torch.nn.functional as F
from gemm_ladder import build, launch
from gemm_ladder.arguments import SCALE_BLOCK, align, ceil_div
from gemm_ladder.casts import eager, functions, launching, operands
from gemm_ladder.casts.kernel import KINDS, Before, Kernel, Kind
from gemm_ladder.errors import InputError, LaunchError, one_line
from gemm_ladder.figures import casts as figure
from gemm_ladder.figures import tables
from gemm_ladder.figures.rows import CastRow
from gemm_ladder.measure import casts_peers, records, session, timing
from gemm_ladder.measure.peers import Call

RECORD = "casts.json"
OURS, COPY, EMPTY = "casts", "copy", "empty"
EXPERTS = 8  # that get each token, where rows are gathered
GROUPS = 8  # of the masked layout
EPSILON = 1e-6
GRAPH_ROWS, GRAPH_CALLS = 64, 50  # up to which m, and how many calls, a graph is measured
CHECKED_ROWS = 128  # at either end: some kernels do the first and the last in different turns of a loop
COPY_STEP = 1 << 13  # bytes; a copy of another size takes torch up to 3 us longer
PEER_ERROR = 0.05  # a peer's result, relative to what it casts: E4M3's steps allow 0.036
PROTOCOL = (
    "kernel time from the CUDA profiler (sum of the call's kernels); BF16, normal numbers; median of "
    f"{timing.MAX_CALLS} calls in two passes of opposite order, of which the better counts, all in one "
    f"process; before every call a memset of {timing.BATCH_FLUSH_BYTES >> 20} MiB (dirty) and, for the clean "
    f"rows, a read of them; graph: a CUDA graph of {GRAPH_CALLS} calls on the same tensors, its time over "
    "the calls; copy: torch's copy of as many bytes, half of them read and half written, both rounded up to "
    f"multiples of {COPY_STEP}; gb_s counts what "
    f"has to move, a gathered row each time; a gather makes {EXPERTS} rows of each token; masked: "
    f"m is the rows of {GROUPS} groups together, of each of which three quarters are valid, and only those "
    "count; torch, torch_compile: the same work by torch's operators, in BF16 until the cast, of all rows, "
    "as they would have to wait for the GPU to know which are valid; vllm: its wheel's compiled operators, "
    "scales MN-major"
)


@dataclass(frozen=True)
class Cast:
    """A cast that is measured: of [m, k] in BF16. Masked, the m rows are those of GROUPS groups."""

    kind: Kind
    before: Before = "nothing"
    gather: bool = False
    masked: bool = False

    def __str__(self) -> str:
        before = "" if self.before == "nothing" else f"{self.before}_"
        return f"{'masked_' * self.masked}{'gather_' * self.gather}{before}{self.kind}"

    @property
    def kernel(self) -> Kernel:
        return Kernel(self.kind, self.before, torch.bfloat16)

    def bytes(self, m: int, k: int) -> int:
        """What has to move: BF16 read, FP8 and scales written, indices, counts and weights read."""
        if self.masked:
            m = GROUPS * valid_rows(m)
        columns = 2 * k if self.before == "silu_and_mul" else k
        scales = {
            "per_token": m * ceil_div(k, SCALE_BLOCK),
            "per_block": ceil_div(m, SCALE_BLOCK) * ceil_div(k, SCALE_BLOCK),
        }.get(self.kind, ceil_div(m, SCALE_BLOCK) * k)
        others = 4 * m * self.gather + 4 * GROUPS * self.masked + 2 * k * (self.before == "rms_norm")
        return 2 * m * columns + m * k + 4 * scales + others


def valid_rows(m: int) -> int:
    """The rows that are cast of each of GROUPS groups, which have m rows together: three quarters."""
    return ceil_div(3 * ceil_div(m, GROUPS), 4)


CASTS = (
    *(Cast(kind) for kind in KINDS),
    *(Cast(kind, "silu_and_mul") for kind in KINDS),
    *(Cast(kind, "rms_norm") for kind in KINDS),
    *(Cast(kind, gather=True) for kind in KINDS),
    Cast("per_token", "silu_and_mul", masked=True),  # behind DeepEP's low-latency dispatch
)
SHAPES = ((64, 7168), (4096, 7168), (16384, 7168))


def main(argv: Sequence[str] | None = None) -> int:
    """Run `casts`. Returns 0, or 1 where a result is wrong.

    Raises:
        GemmLadderError: there is no Hopper GPU, or an argument is not usable.
        gemm_ladder.build.ToolchainError, BuildError: a kernel cannot be built.
    """
    parser = argparse.ArgumentParser(
        prog="python -m gemm_ladder casts",
        description="Check and time the casts to FP8 beside a copy, an empty kernel and other libraries.",
    )
    named = ", ".join(map(str, CASTS))
    parser.add_argument("--casts", default="all", metavar="NAME,...", help=f"some of {named}")
    parser.add_argument("--shapes", metavar="MxK,...", help="others than the recorded ones")
    parser.add_argument("--no-peers", action="store_true", help="time no other library")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the measurements to FILE")
    arguments = parser.parse_args(argv)
    chosen, shapes = chosen_casts(arguments.casts), chosen_shapes(arguments.shapes)
    device, found = session.need_gpu("what is measured is time", arguments.json)
    print(f"Found {found}: every cast is checked, then timed.\n")
    result = on_gpu(chosen, shapes, device, not arguments.no_peers)
    if result.rows:
        print(tables.plain(figure.table(result.data)))
    session.show_measured(result, ())
    whole = (set(chosen), set(shapes)) == (set(CASTS), set(SHAPES)) and not arguments.no_peers
    session.keep(result, arguments.json, whole, RECORD, "every cast, shape and peer at once")
    return 1 if result.wrong else 0


def chosen_casts(text: str) -> list[Cast]:
    """The casts that `text` names. Raises InputError for another name."""
    named = {str(one): one for one in CASTS}
    words = [*named] if text == "all" else [word.strip() for word in text.split(",")]
    if unknown := [word for word in words if word not in named]:
        raise InputError(f"{unknown[0]!r} is no cast; all, or some of {', '.join(named)} are needed")
    return [named[word] for word in words]


def chosen_shapes(text: str | None) -> list[tuple[int, int]]:
    """The shapes (m, k) that `text` names. Raises InputError where it names none."""
    if text is None:
        return [*SHAPES]
    found = []
    for word in text.split(","):
        if not (sizes := re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", word.strip())):
            raise InputError(f"{word!r} is no shape; MxK is needed, such as 4096x7168")
        found.append((int(sizes[1]), int(sizes[2])))
    return found


def on_gpu(
    chosen: Sequence[Cast], shapes: Sequence[tuple[int, int]], device: torch.device, peers: bool
) -> session.Measured[CastRow]:
    """Build the kernels, then check and time every cast."""
    meta = {**records.machine(device, timing.BATCH_FLUSH_BYTES), "protocol": PROTOCOL}
    result: session.Measured[CastRow] = session.Measured(meta=meta)
    with torch.cuda.device(device):
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda kernel: kernel.compile("cuda"), {one.kernel for one in chosen}))
        timer = timing.KernelTimer(device)
        each = [(cast, shape) for shape in shapes for cast in chosen]
        with session.progress(each, "casts") as (bar, status):
            for cast, (m, k) in bar:
                status(f"{cast} {m}x{k}")
                measure_one(Problem(cast, m, k, device), timer, peers, result)
    return result


class Problem:
    """A cast's operands. Masked, x has three dimensions, of whose second the first `valid` rows are cast."""

    def __init__(self, cast: Cast, m: int, k: int, device: torch.device) -> None:
        self.cast, self.m, self.k = cast, m, k
        generator = torch.Generator(device).manual_seed(0)
        groups = (GROUPS,) if cast.masked else ()
        rows = ceil_div(m, EXPERTS if cast.gather else GROUPS if cast.masked else 1)
        columns = 2 * k if cast.before == "silu_and_mul" else k
        self.x = torch.randn(*groups, rows, columns, generator=generator, device=device).bfloat16()
        self.weight = torch.randn(k, generator=generator, device=device).bfloat16()
        order = torch.randperm(m, generator=generator, device=device)
        self.rows = (order % rows).int() if cast.gather else None
        self.valid = valid_rows(m) if cast.masked else m
        self.counts = torch.full(groups, self.valid, dtype=torch.int32, device=device) if groups else None

    def checked(
        self, x: torch.Tensor, rows: torch.Tensor | None, counts: torch.Tensor | None = None
    ) -> operands.CheckedCast:
        """The call of gemm_ladder.casts."""
        norm = {"weight": self.weight.to(x.device), "eps": EPSILON} if self.cast.before == "rms_norm" else {}
        return operands.check(self.cast.kind, self.cast.before, x, rows=rows, masked_m=counts, **norm)

    def ours(self) -> Call:
        cast, given = self.cast, {"rows": self.rows}
        if cast.before == "rms_norm":
            given |= {"weight": self.weight, "eps": EPSILON}
        if "channel" in cast.kind:
            given["transposed"] = cast.kind.endswith("turned")
        if cast.masked:
            given["masked_m"] = self.counts
        function = getattr(gemm_ladder, figure.function_of(str(cast)))
        return functools.partial(function, self.x, **given)

    def numbers(self) -> torch.Tensor:
        """What is cast, by torch's operators: [m, k], masked all rows of all groups."""
        x = self.x.flatten(0, -2) if self.rows is None else self.x[self.rows]
        if self.cast.before == "silu_and_mul":
            return F.silu(x[:, : self.k]) * x[:, self.k :]
        if self.cast.before == "rms_norm":
            return F.rms_norm(x, (self.k,), self.weight, EPSILON)
        return x

    def by_torch(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The whole cast by torch's operators."""
        numbers = self.numbers()
        if "channel" not in self.cast.kind:
            rows = 1 if self.cast.kind == "per_token" else SCALE_BLOCK
            return eager.blocks(numbers, rows, SCALE_BLOCK, False)
        codes, scales = eager.blocks(numbers.T, 1, SCALE_BLOCK, False)
        return codes if self.cast.kind.endswith("turned") else codes.T.contiguous(), scales

    def of_valid(self, rows: torch.Tensor) -> torch.Tensor:
        """The valid ones of masked rows [groups, m of each, ...] or [groups * m of each, ...], as a matrix;
        other rows as they are."""
        if not self.cast.masked:
            return rows
        return rows.reshape(*self.x.shape[:2], -1)[:, : self.valid].flatten(0, 1)

    def wrong(self) -> str | None:
        """What is wrong with the first and the last rows of our result, or of each group's, compared bit by
        bit with the reference."""
        out = functions.run(self.checked(self.x, self.rows, self.counts), mn_major=True)
        last = (self.valid - 1) // CHECKED_ROWS * CHECKED_ROWS
        return next(filter(None, (self._wrong_from(first, out) for first in {0, last})), None)

    def _wrong_from(self, first: int, out: operands.Results) -> str | None:
        part = slice(first, min(first + CHECKED_ROWS, self.valid))
        if self.rows is None:
            on_cpu = self.checked(self.x[..., part, :].cpu(), None)
        else:
            on_cpu = self.checked(self.x.cpu(), self.rows[part].cpu())
        expected = operands.results(on_cpu, mn_major=True)
        eager.run(on_cpu, expected)
        codes = out.codes[..., part] if self.cast.kind.endswith("turned") else out.codes[:, part]
        row = first if self.cast.kind == "per_token" else first // SCALE_BLOCK
        scales = out.scales[:, row : row + expected.scales.shape[1]]
        if not torch.equal(codes.cpu().view(torch.uint8), expected.codes.view(torch.uint8)):
            return "its codes are not the reference's"
        return None if torch.equal(scales.cpu(), expected.scales) else "its scales are not the reference's"


def measure_one(
    problem: Problem, timer: timing.KernelTimer, peers: bool, result: session.Measured[CastRow]
) -> None:
    """Check and time one cast at one shape."""
    cast, m, k = problem.cast, problem.m, problem.k
    where = f"{cast} {m}x{k}"
    if reason := launching.why_not(cast.kernel, problem.x.device):
        raise LaunchError(reason)
    if reason := problem.wrong():
        result.wrong.append(f"{where}: {reason}")
        return
    calls: dict[str, Call] = {OURS: problem.ours(), COPY: copy_of(cast.bytes(m, k))}
    if m <= GRAPH_ROWS:
        calls[EMPTY] = empty(problem)
    for name, make in PEERS.items() if peers else ():
        try:
            call = make(problem)
            check_peer(problem, call)
        except Exception as error:  # a library may refuse with any exception
            result.missing.append({"impl": name, "shape": where, "reason": one_line(error)})
        else:
            calls[name] = call
    for call in calls.values():
        call()
    found = times(calls, timer)
    for name, call in calls.items() if m <= GRAPH_ROWS else ():
        try:
            found[name, "graph"] = timing.graph_times([call] * GRAPH_CALLS, problem.x.device)
        except RuntimeError as error:  # it cannot be captured
            result.missing.append({"impl": name, "shape": f"{where} in a graph", "reason": one_line(error)})
    for (name, l2), us in found.items():
        result.rows.append(row(cast, m, k, name, l2, us))


def times(
    calls: dict[str, Call], timer: timing.KernelTimer
) -> dict[tuple[str, timing.State], Sequence[float]]:
    """Microseconds of each call, by implementation and state of L2, of the better of two passes."""
    found: dict[tuple[str, timing.State], Sequence[float]] = {}
    for order in (list(calls), list(calls)[::-1]):
        plan: list[tuple[str, timing.L2]] = [(name, l2) for name in order for l2 in timing.L2_STATES]
        jobs = [timing.Job(calls[name], l2, timing.MAX_CALLS) for name, l2 in plan]
        for key, us in zip(plan, timer.batch(jobs), strict=True):
            if key not in found or np.median(us) < np.median(found[key]):
                found[key] = us
    return found


def row(cast: Cast, m: int, k: int, impl: str, l2: timing.State, us: Sequence[float]) -> CastRow:
    """One row of figures/data/casts.json."""
    p10, median, p90 = (float(value) for value in np.percentile(us, [10, 50, 90]))
    return {
        "cast": str(cast),
        "m": m,
        "k": k,
        "impl": impl,
        "l2": l2,
        "us": round(median, 3),
        "us_p10": round(p10, 3),
        "us_p90": round(p90, 3),
        "gb_s": 0.0 if impl == EMPTY else round(cast.bytes(m, k) / median / 1e3, 1),
    }


# ------------------------------------------------------------------------------------------------------ peers


def copy_of(moved: int) -> Call:
    """A copy that moves so many bytes, or a few more: half of them are read, half written."""
    source = torch.ones(align(moved // 2, COPY_STEP), dtype=torch.uint8, device="cuda")
    return functools.partial(torch.empty_like(source).copy_, source)


def empty(problem: Problem) -> Call:
    """An empty kernel with as many thread blocks as the GPU has SMs."""

    class Args(ctypes.Structure):
        _fields_ = (("blocks", ctypes.c_int64), ("stream", ctypes.c_void_p))

    library = build.load(Path(__file__).with_name("empty.cu"), target="cuda").lib
    entry, blocks = launch.launcher(library), launch.usable_sms(problem.x.device)

    def call() -> None:
        args = Args(blocks, torch.cuda.current_stream().cuda_stream)
        if message := entry(ctypes.addressof(args)):
            raise LaunchError(message.decode())

    return call


def torch_compile(problem: Problem) -> Call:
    """torch's operators, compiled by torch, which compiles one function a few times at most."""
    torch._dynamo.reset()
    return torch.compile(problem.by_torch, dynamic=False)


PEERS: dict[str, Callable[[Problem], Call]] = {
    "torch": lambda problem: problem.by_torch,
    "torch_compile": torch_compile,
    "vllm": lambda problem: casts_peers.vllm(
        str(problem.cast), problem.x, problem.weight, EPSILON, problem.counts
    ),
    "sglang": lambda problem: casts_peers.sglang(str(problem.cast), problem.x),
}


def check_peer(problem: Problem, call: Call) -> None:
    """Raise InputError where a peer's codes times its scales are not what was to be cast."""
    codes, scales = map(problem.of_valid, call())
    numbers = problem.of_valid(problem.numbers()).float()
    if "channel" in problem.cast.kind:  # of which some are transposed: here all are
        numbers = numbers.T
        codes = codes if codes.shape == numbers.shape else codes.T
        scales = scales if len(scales) == len(codes) else scales.T
    by_rows = scales if len(scales) == len(codes) else scales.repeat_interleave(SCALE_BLOCK, 0)[: len(codes)]
    found = codes.float() * by_rows.repeat_interleave(SCALE_BLOCK, 1)[:, : codes.shape[1]]
    if (error := ((found - numbers).norm() / numbers.norm()).item()) > PEER_ERROR:
        raise InputError(f"its relative error is {error:.2g}; at most {PEER_ERROR} is needed")
