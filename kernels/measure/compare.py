"""python -m gemm_ladder compare: is every rung right, and how fast is it?

With a Hopper GPU, every rung is built, checked against the reference and timed beside its peers; a whole run,
in a checkout, also renews figures/data/ladder.json, the figure and the tables. Without one, every rung runs
on the emulator at small shapes, and the figures recorded on an H100 are shown, as recorded ones.
"""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from gemm_ladder.errors import GemmLadderError
from gemm_ladder.figures import measured, tables
from gemm_ladder.measure import problems, records, session, shapes, timing
from gemm_ladder.measure.peers import PEERS, UNSCALED, Peer
from gemm_ladder.measure.session import Measured, Status
from gemm_ladder.measure.shapes import Shape
from gemm_ladder.rungs import NumpyRung, Rung, rungs


def main(argv: Sequence[str] | None = None) -> int:
    """Run `compare`. Returns 0, or 1 where a rung is wrong.

    Raises:
        InputError, UnknownRungError: an argument is not usable.
        gemm_ladder.build.ToolchainError, BuildError: a rung cannot be built.
    """
    parser = argparse.ArgumentParser(
        prog="python -m gemm_ladder compare",
        description="Check every rung against the reference; with a Hopper GPU, time it beside its peers.",
    )
    parser.add_argument(
        "--shapes",
        default="all",
        metavar="MxNxK,...",
        help="which problems (default: all; DeepSeek-V3's 18 dense shapes and squares, or small ones on the "
        "emulator)",
    )
    parser.add_argument(
        "--rungs", metavar="NAME,...", help=f"which rungs (default: all of {', '.join(rungs)})"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was measured there as well")
    parser.add_argument(
        "--l2",
        choices=[*timing.L2_STATES, "both"],
        help="how L2 is made cold before a measured call (default: both; of the recorded figures, dirty)",
    )
    arguments = parser.parse_args(argv)

    chosen = list(rungs.values())
    if arguments.rungs is not None:
        chosen = list(dict.fromkeys(rungs[name.strip()] for name in arguments.rungs.split(",")))
    device, found = session.find_gpu()
    known = shapes.MEASURED if device else shapes.EMULATOR
    sizes = shapes.parse(arguments.shapes, known)
    if arguments.json:
        records.refuse_unwritable(arguments.json)

    if device is None:
        shapes.refuse_the_endless(sizes)
        print(f"Found {found}: every rung runs on the emulator, a Hopper SM on this CPU.\n")
        rows = on_emulator(chosen, sizes)
        print()
        show_recorded(measured.recorded(), arguments.l2 if arguments.l2 in timing.L2_STATES else "dirty")
        if arguments.json:
            print("\nWhat the emulator ran is kept; no GPU was timed.")
            records.export(
                {"schema": measured.SCHEMA, "meta": records.emulated_meta(), "rows": rows}, arguments.json
            )
        return 1 if any(row["verdict"].startswith("WRONG") for row in rows) else 0

    print(f"Found {found}: every rung is checked, then timed beside its peers.\n")
    states = [arguments.l2] if arguments.l2 in timing.L2_STATES else list(timing.L2_STATES)
    result = on_gpu(chosen, sizes, states, device)
    session.show_measured(result, states)
    everything = (shapes.MEASURED, timing.L2_STATES, set(rungs.values()))
    session.keep(result, arguments.json, whole=(sizes, tuple(states), set(chosen)) == everything)
    return 1 if result.wrong else 0


def on_gpu(
    chosen: Sequence[Rung],
    sizes: Sequence[Shape],
    states: Sequence[timing.L2],
    device: torch.device,
    others: Mapping[str, Peer] = PEERS,
) -> Measured:
    """Build the rungs, check each on every shape, and time the right ones and the peers."""
    kernels = [rung for rung in chosen if not isinstance(rung, NumpyRung)]
    if len(kernels) < len(chosen):
        print("s0_numpy runs on the CPU alone, and is not timed.")
    result = Measured()
    with torch.cuda.device(device):
        session.build_all(kernels, "cuda")
        session.measure_each(
            sizes,
            "shapes",
            lambda shape, *how: measure_shape(shape, kernels, others, states, device, *how),
            device,
            result,
        )
    return result


def measure_shape(
    shape: Shape,
    kernels: Sequence[Rung],
    others: Mapping[str, Peer],
    states: Sequence[timing.L2],
    device: torch.device,
    timer: timing.Timer,
    result: Measured,
    status: Status,
) -> bool:
    """Check and time rungs and peers at one shape: `measure_product` says how."""
    problem = problems.make_problem(shape, device)
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

    return session.measure_product(shape, ours, theirs, errors, states, device, timer, result, status)


def on_emulator(chosen: Sequence[Rung], sizes: Sequence[Shape]) -> list[dict[str, Any]]:
    """Run every rung at every shape; print, and return, its error and its time."""
    session.build_all(chosen, "emulator")
    print(f"{'rung':20}  {'m x n x k':>17}  {'relative error':>14}  {'element error':>13}  {'seconds':>8}")
    rows = []
    with session.progress([(rung, shape) for rung in chosen for shape in sizes], "runs") as (bar, status):
        for rung, shape in bar:
            status(f"{rung.name} {shape}")
            rows.append(row := emulate(rung, shape))
            line = f"{rung.name:20}  {' x '.join(map(str, shape)):>17}  "
            if "seconds" in row:
                numbers = (
                    f"{row['relative_error']:>14.2e}  {row['element_error']:>13.2e}  {row['seconds']:>8.2f}"
                )
                line += numbers + "  "
            session.echo(line + row["verdict"])
    return rows


def emulate(rung: Rung, shape: Shape) -> dict[str, Any]:
    """One run: a row with a verdict ("right", "not run: ..." or "WRONG: ...") and, if it ran, the numbers."""
    row = {"impl": rung.name, **shape._asdict()}
    if reason := rung.supports(*shape):
        return row | {"verdict": f"not run: {reason}"}
    problem = problems.make_problem(shape, "cpu")
    call = session.rung_call(rung, problem)
    started = time.perf_counter()
    try:
        out = call()
    except GemmLadderError as fault:
        return row | {"verdict": f"WRONG: {fault}"}
    seconds = time.perf_counter() - started
    error = problems.errors(out, problem.reference())
    return row | {
        "relative_error": error.relative,
        "element_error": error.element,
        "seconds": round(seconds, 3),
        "verdict": "right" if error.right else f"WRONG: {problems.describe(error)}",
    }


def show_recorded(files: Sequence[measured.Data], l2: str) -> None:
    """Print the figures that are in figures/data, and say that they are not this machine's."""
    shown = measured.series(files, l2)
    if not shown:
        print(f"No figures are recorded for a {l2} L2.")
        return
    print(f"RECORDED, not measured here: TFLOPS on {shown[0].meta['gpu']}, L2 cold and {l2}")
    print(tables.plain(tables.table(shown)))
    print("\n".join(f"recorded: {sentence}" for sentence in measured.provenance(shown)))
    print(measured.CEILING)
