"""python -m gemm_ladder timeline: who loads, multiplies, promotes and waits in a rung (from s4 on), and when.

    python -m gemm_ladder timeline s7_persistent --trace s7.json --picture s7.png
    python -m gemm_ladder timeline all --json timeline.json       the content of figures/data/timeline.json

On a GPU a run is recorded by stamps (`gemm_ladder.timeline.stamps`), in microseconds; on the emulator in
steps of its scheduler, which show what happens at the same time, not how long it takes. --trace writes
Chrome's trace event format, which ui.perfetto.dev and chrome://tracing open.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import gemm_ladder as gl
import torch
from gemm_ladder.arguments import ceil_div
from gemm_ladder.errors import GemmLadderError, InputError
from gemm_ladder.figures import measured, tables
from gemm_ladder.figures import timeline as figure
from gemm_ladder.figures.rows import TimelineFile, TimelineRow
from gemm_ladder.measure import problems, records, session, shapes
from gemm_ladder.measure.shapes import Shape
from gemm_ladder.rungs import rungs
from gemm_ladder.timeline import stamps, tensor_share
from gemm_ladder.timeline.chrome_trace import chrome_trace
from gemm_ladder.timeline.spans import COPY_ENGINE, WARP, Span, label, of_emulator, place, spans

Machine = Literal["gpu", "emulator"]

UNITS = {"gpu": "microseconds", "emulator": "steps"}


class Case(NamedTuple):
    """What is recorded of a rung.

    Attributes:
        gpu, emulator: the shapes. They are large enough that a thread block of s7 computes more than one
            tile.
        seed: of the emulator's schedule; one with which copies and WGMMAs complete early.
        blocks: the thread blocks on the emulator. On a GPU they are block 0 and those beside it on its SM.
        until: microseconds; spans that end later are dropped.
        tile: the rows and columns of a thread block's one tile; None: as many thread blocks as SMs.
    """

    gpu: Shape
    emulator: Shape
    seed: int
    blocks: tuple[int, ...]
    until: float
    tile: tuple[int, int] | None


_GPU = Shape(4096, 7168, 1024)
BLOCKS_AN_SM = 2  # the most thread blocks of a rung that an SM holds: the first wave is in the picture
CASES = {
    "s4_tma": Case(_GPU, Shape(64, 128, 1024), 54, (0,), 12, (64, 128)),
    "s5_tma_multicast": Case(_GPU, Shape(128, 128, 1024), 14, (0, 1), 16, (64, 128)),
    "s6_warp_specialized": Case(_GPU, Shape(256, 256, 1024), 20, (0,), 26, (256, 128)),
    "s7_persistent": Case(_GPU, Shape(512, 512, 512), 20, (0,), 20, None),
}
RECORDED = tuple(CASES)
# s8 has no timeline: its pass does not recognise the machine code of a kernel with stamps, and the timeline
# would be that of s7.

PROTOCOL = (
    "one launch after others; the first warp of each role; spans [what, begin, end] that end by `until`, "
    "counted from the first event; gpu: microseconds, each SM's clock converted to the global timer's scale, "
    "stamps taken by lane 0 of each warp; us and stamped_us are the median time of "
    f"{stamps.CALLS} launches without and with stamps; a load lasts until a warp of its thread block sees "
    "that it has arrived; the spans are of a launch whose first wave leaves stamps, tensor_share and "
    "in_flight of one in which every thread block does: of all that ran on block 0's SM, from its first "
    "stamp to its last; emulator: steps of its scheduler"
)


@dataclasses.dataclass(frozen=True)
class Timeline:
    """One recording.

    Attributes:
        spans: times in microseconds on a GPU, of the thread blocks of the first wave on block 0's SM; in
            steps on the emulator.
        sm: the SM of each thread block on a GPU; empty on the emulator.
        about: the seed of the emulator; or the GPU's clocks, the kernel's time without and with stamps, and
            the tensor-core share.
    """

    rung: str
    machine: Machine
    shape: Shape
    spans: list[Span]
    sm: dict[int, int]
    about: dict[str, Any]

    @property
    def head(self) -> dict[str, Any]:
        """What was recorded, as fields of a row."""
        return {"rung": self.rung, "machine": self.machine, **self.shape._asdict(), **self.about}


def main(argv: Sequence[str] | None = None) -> int:
    """Run `timeline`. Returns 0.

    Raises:
        GemmLadderError: the rung has no timeline, there is no such machine, the shape is not supported, or a
            file cannot be written.
        gemm_ladder.build.ToolchainError, BuildError: the kernel could not be compiled.
    """
    arguments = _parser().parse_args(argv)
    device, found = session.find_gpu()
    for option in ("trace", "picture", "json"):
        if path := getattr(arguments, option):
            records.refuse_unwritable(path, f"--{option}")
    if arguments.rung == "all":
        others = arguments.trace or arguments.picture or arguments.shape or arguments.machine
        if others or not arguments.json:
            raise InputError(
                "timeline all is for --json alone; a rung's name is needed for the other options"
            )
        records.export(record_all(device), arguments.json)
        return 0
    machine: Machine = arguments.machine or ("gpu" if device else "emulator")
    if machine == "gpu" and device is None:
        raise GemmLadderError(f"found {found}; a Hopper GPU is needed for --machine gpu")
    shape = _shape(arguments.shape) if arguments.shape else None
    taken = take(arguments.rung, machine, device, shape, arguments.seed)
    where = found if machine == "gpu" else "the emulator"
    print(f"{taken.rung} at {' x '.join(map(str, taken.shape))} on {where}\n")
    print(summary(taken))
    if arguments.trace:
        arguments.trace.write_text(
            json.dumps(chrome_trace(taken.spans, taken.sm, taken.head)), encoding="utf-8"
        )
        print(f"\nWritten: {arguments.trace}")
    if arguments.picture:
        (drawn,) = figure.pictures(data_of([taken], device)).values()
        drawn.savefig(arguments.picture, dpi=130)
        print(f"\nWritten: {arguments.picture}")
    if arguments.json:
        records.export(data_of([taken], device), arguments.json)
    return 0


def take(
    name: str,
    machine: Machine,
    device: torch.device | None,
    shape: Shape | None = None,
    seed: int | None = None,
) -> Timeline:
    """Run the rung once and record it.

    Args:
        device: the GPU; not used on the emulator.
        shape, seed: instead of those in CASES.

    Raises:
        InputError: the rung has no timeline, or does not support the shape.
    """
    case, rung = _case(name), rungs[name]
    shape, seed = shape or getattr(case, machine), case.seed if seed is None else seed
    if reason := rung.supports(*shape):
        raise InputError(reason)
    if machine == "emulator":
        shapes.refuse_the_endless([shape])
    problem = problems.make_problem(shape, device if machine == "gpu" else "cpu")
    operands = (problem.a, problem.sfa), (problem.b, problem.sfb), problem.output()
    if machine == "gpu":
        sms = torch.cuda.get_device_properties(device).multi_processor_count
        most = most_blocks(case, shape, sms)
        # The fewer thread blocks leave stamps, the less is the picture slowed down.
        recording = stamps.record(rung, *operands, min(most, BLOCKS_AN_SM * sms))
        whole = stamps.record(rung, *operands, most)
        found = tensor_share.of_spans(spans(whole.events), shape.flops / whole.groups, whole.about["sm_mhz"])
        share = {"tensor_share": round(found.share, 4), "in_flight": round(found.in_flight, 4)}
        return Timeline(name, machine, shape, spans(recording.events), recording.sm, recording.about | share)
    with gl.emulator(seed=seed, record=True) as run:
        rung(*operands)
    found = [span for span in spans(of_emulator(run.events)) if span.block in case.blocks]
    return Timeline(name, machine, shape, found, {}, {"seed": seed})


def most_blocks(case: Case, shape: Shape, num_sms: int) -> int:
    """At least as many as the launch has thread blocks; a cluster may reach one tile past the end."""
    if case.tile is None:
        return num_sms
    rows, columns = case.tile
    return (ceil_div(shape.m, rows) + 1) * (ceil_div(shape.n, columns) + 1)


def record_all(device: torch.device | None) -> TimelineFile:
    """The content of figures/data/timeline.json: every rung of RECORDED on both machines, or only on the
    emulator where there is no GPU."""
    machines: tuple[Machine, ...] = ("gpu", "emulator") if device else ("emulator",)
    taken = []
    for name in RECORDED:
        for machine in machines:
            taken.append(one := take(name, machine, device))
            about = ", ".join(f"{key} {value:g}" for key, value in one.about.items())
            print(f"{name}, {machine}: {len(one.spans)} spans, {about}", flush=True)
    return data_of(taken, device)


def data_of(taken: Sequence[Timeline], device: torch.device | None) -> TimelineFile:
    """Timelines in the form of figures/data/timeline.json."""
    meta: Any = records.machine(device, 0) if device else {"gpu": None, **records.emulated_meta()}
    return {
        "schema": measured.SCHEMA,
        "meta": {**meta, "protocol": PROTOCOL},
        "rows": [row for timeline in taken for row in rows(timeline)],
    }


def rows(timeline: Timeline) -> list[TimelineRow]:
    """A row for each actor: the first warp of each role, the tensor core working for it, every stage."""
    until = (
        CASES[timeline.rung].until if timeline.machine == "gpu" else max(span.end for span in timeline.spans)
    )
    first: dict[tuple[int, str], int] = {}
    blocks = beside_block_0(timeline.spans)
    shown = [span for span in timeline.spans if span.block in blocks]
    for span in shown:
        if span.unit == WARP:
            first.setdefault((span.block, span.role), span.index)
    digits = 3 if timeline.machine == "gpu" else 0
    found: dict[tuple[int, str, int, str], list[list[Any]]] = {}
    for span in shown:
        if span.end <= until and (span.unit == COPY_ENGINE or first[span.block, span.role] == span.index):
            actor = span.block, span.unit, span.index, span.role
            times = [round(time, digits) if digits else int(time) for time in (span.begin, span.end)]
            found.setdefault(actor, []).append([span.what, *times])
    made: list[Any] = [
        {**timeline.head, "until": until, "block": block, "sm": timeline.sm.get(block)}
        | {"unit": unit, "index": index, "role": role, "spans": of_actor}
        for (block, unit, index, role), of_actor in found.items()
    ]
    return made


def beside_block_0(found: Sequence[Span]) -> set[int]:
    """The thread blocks that are at work in the middle of block 0's life, itself included."""
    lives: dict[int, tuple[float, float]] = {}
    for span in found:
        begin, end = lives.get(span.block, (span.begin, span.end))
        lives[span.block] = min(begin, span.begin), max(end, span.end)
    middle = sum(lives[0]) / 2
    return {block for block, (begin, end) in lives.items() if begin <= middle <= end}


def summary(timeline: Timeline) -> str:
    """A table of how each actor spends the time from the first event to the last, in per cent; of a GPU, of
    the thread blocks beside block 0, and the tensor-core share of all of its SM's."""
    words = figure.share_in_words(cast(TimelineRow, timeline.head))
    blocks = beside_block_0(timeline.spans)
    shown = [span for span in timeline.spans if span.block in blocks]
    timeline = dataclasses.replace(timeline, spans=shown)
    begin, end = min(span.begin for span in timeline.spans), max(span.end for span in timeline.spans)
    kinds = ("load", "issue", "multiply", "promote", "store", "wait")
    actors = sorted({(span.block, *place(span), label(span)) for span in timeline.spans})
    cells = [[f"per cent of {end - begin:.4g} {UNITS[timeline.machine]}", *kinds]]
    for block, *where, who in actors:
        mine = [span for span in timeline.spans if (span.block, *place(span)) == (block, *where)]
        busy = {kind: sum(span.end - span.begin for span in mine if span.what == kind) for kind in kinds}
        shares = [f"{100 * busy[kind] / (end - begin):.0f}" if busy[kind] else "-" for kind in kinds]
        cells.append([f"block {block}, {who}", *shares])
    return tables.plain(cells) + (f"\n\n{words}" if words else "")


def _case(name: str) -> Case:
    if name not in CASES and name in rungs:
        raise InputError(f"{name} has no timeline; one of {', '.join(CASES)} is needed")
    return CASES[rungs[name].name]  # rungs raises UnknownRungError if there is no such rung


def _shape(text: str) -> Shape:
    found = shapes.parse(text, ())
    if len(found) != 1:
        raise InputError(f"--shape is given {text!r}; one shape is needed")
    return found[0]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m gemm_ladder timeline",
        description="Record who loads, multiplies, promotes and waits in a rung (from s4 on), and when.",
    )
    parser.add_argument("rung", metavar="RUNG", help=f"{', '.join(CASES)}, or all (with --json)")
    parser.add_argument(
        "--machine", choices=("gpu", "emulator"), help="default: gpu if there is a Hopper GPU"
    )
    parser.add_argument("--shape", metavar="MxNxK", help="default: one that shows the rung well")
    parser.add_argument(
        "--seed", type=int, help="seed of the emulator's schedule (default: one that shows the rung well)"
    )
    parser.add_argument(
        "--trace", type=Path, metavar="FILE", help="write a trace for Perfetto (Chrome's trace event format)"
    )
    parser.add_argument("--picture", type=Path, metavar="FILE", help="write a picture (PNG)")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write the data that the pictures are drawn from"
    )
    return parser
