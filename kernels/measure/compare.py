"""python -m gemm_ladder compare: is every rung right, and how fast is it?

With a Hopper GPU, every rung is built, checked against the reference and timed beside its peers. If all
rungs, shapes and states of L2 were measured in a checkout, figures/data/ladder.json and its figures and
tables are renewed. Without a Hopper GPU, every rung runs on the emulator at small shapes, and the times
recorded on a GPU are shown, marked as recorded; of some rungs or shapes, where only those are asked for.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from gemm_ladder.errors import GemmLadderError
from gemm_ladder.figures import measured, tables
from gemm_ladder.figures.rows import EmulatedRow, TimesFile
from gemm_ladder.measure import ladder_rows, problems, records, session, shapes, timing
from gemm_ladder.measure.shapes import Shape
from gemm_ladder.rungs import Rung, rungs

RIGHT, WRONG, NOT_RUN = "right", "wrong", "not run"  # an EmulatedRow's outcome


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
        help=f"which shapes (default: all, which is {len(shapes.DEEPSEEK_V3)} dense ones of DeepSeek-V3 and "
        f"{len(shapes.SQUARES)} squares; on the emulator {len(shapes.EMULATOR)} small ones)",
    )
    parser.add_argument(
        "--rungs", metavar="NAME,...", help=f"which rungs (default: all of {', '.join(rungs)})"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the measurements to FILE")
    parser.add_argument(
        "--l2",
        choices=[*timing.L2_STATES, "both"],
        help="the state of L2 before a measured call: cold and full of dirty or of clean lines (default: "
        "both; where recorded times are shown, dirty)",
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
        asked = measured.recorded()
        if arguments.rungs is not None or arguments.shapes != "all":
            asked = only(asked, chosen, None if arguments.shapes == "all" else sizes)
        show_recorded(asked, arguments.l2 if arguments.l2 in timing.L2_STATES else "dirty")
        if arguments.json:
            print("\nWhat the emulator ran is kept; no GPU was timed.")
            records.export(
                {"schema": measured.SCHEMA, "meta": records.emulated_meta(), "rows": rows}, arguments.json
            )
        return 1 if any(row["outcome"] == WRONG for row in rows) else 0

    print(f"Found {found}: every rung is checked, then timed beside its peers.\n")
    states = [arguments.l2] if arguments.l2 in timing.L2_STATES else list(timing.L2_STATES)
    result = ladder_rows.on_gpu(chosen, sizes, states, device)
    session.show_measured(result, states)
    everything = (shapes.MEASURED, timing.L2_STATES, set(rungs.values()))
    session.keep(result, arguments.json, whole=(sizes, tuple(states), set(chosen)) == everything)
    return 1 if result.wrong else 0


def on_emulator(chosen: Sequence[Rung], sizes: Sequence[Shape]) -> list[EmulatedRow]:
    """Run every rung at every shape; print and return its outcome, errors and time."""
    session.build_all(chosen, "emulator")
    print(f"{'rung':20}  {'m x n x k':>17}  {'relative error':>14}  {'element error':>13}  {'seconds':>8}")
    rows = []
    with session.progress([(rung, shape) for rung in chosen for shape in sizes], "runs") as (bar, status):
        for rung, shape in bar:
            status(f"{rung.name} {shape}")
            rows.append(row := emulate(rung, shape))
            line = f"{rung.name:20}  {measured.name_of(shape):>17}  "
            if "seconds" in row:
                errors = f"{row['relative_error']:>14.2e}  {row['element_error']:>13.2e}"
                line += f"{errors}  {row['seconds']:>8.2f}  "
            session.echo(line + row["verdict"])
    return rows


def emulate(rung: Rung, shape: Shape) -> EmulatedRow:
    """Run one rung at one shape. A row that ran to its end has the errors and the seconds, too."""
    if reason := rung.supports(*shape):
        return _row(rung, shape, NOT_RUN, reason)
    problem = problems.make_problem(shape, "cpu")
    call = session.rung_call(rung, problem)
    started = time.perf_counter()
    try:
        out = call()
    except GemmLadderError as fault:
        return _row(rung, shape, WRONG, str(fault))
    seconds = time.perf_counter() - started
    error = problems.errors(out, problem.reference())
    row = _row(rung, shape, RIGHT) if error.right else _row(rung, shape, WRONG, problems.describe(error))
    row["relative_error"], row["element_error"] = error.relative, error.element
    row["seconds"] = round(seconds, 3)
    return row


def _row(rung: Rung, shape: Shape, outcome: str, reason: str | None = None) -> EmulatedRow:
    words = {RIGHT: "right", WRONG: f"WRONG: {reason}", NOT_RUN: f"not run: {reason}"}
    return {
        "impl": rung.name,
        "m": shape.m,
        "n": shape.n,
        "k": shape.k,
        "outcome": outcome,
        "reason": reason,
        "verdict": words[outcome],
    }


def only(ladder: TimesFile, chosen: Sequence[Rung], sizes: Sequence[Shape] | None) -> TimesFile:
    """The recorded times of some rungs, with those of the libraries, at some shapes; None: at all."""
    names = {rung.name for rung in chosen}
    rows = [
        row
        for row in ladder["rows"]
        if (row["impl"] in names or row["impl"] not in rungs)
        and (sizes is None or (row["m"], row["n"], row["k"]) in sizes)
    ]
    return {**ladder, "rows": rows}


def show_recorded(ladder: TimesFile, l2: str) -> None:
    """Print the times that are in figures/data, and say that they are not this machine's."""
    shown = measured.series(ladder, l2)
    if not shown:
        print(f"No figures are recorded for a {l2} L2 at these shapes: without --shapes, all are shown.")
        return
    print(f"RECORDED, not measured here: TFLOPS on {shown[0].meta['gpu']}, L2 cold and {l2}")
    print(tables.plain(tables.table(shown)))
    print("\n".join(f"recorded: {sentence}" for sentence in measured.provenance(shown)))
    print(measured.CEILING)
