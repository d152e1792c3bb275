"""python -m gemm_ladder lab view and lab step: see what a kernel did on the emulator.

    python -m gemm_ladder lab view s4_tma -o s4.html                  a rung
    python -m gemm_ladder lab view s4_tma --against my_s3.cu          a rung beside a changed copy of it
    python -m gemm_ladder lab view s4_tma --seed 1 --against 2        two schedules
    python -m gemm_ladder lab view my_script.py                       what a Python script launches
    python -m gemm_ladder lab step my_script.py                       the same, in the terminal

A script may launch any kernel, by `lab.run` or otherwise, with the seeds that it chooses; every launch in it
is recorded. The one that is shown is the first that ends in a fault or, without one, the last.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gemm_ladder.errors import EmulatorError, InputError
from gemm_ladder.lab.recording import Recording
from gemm_ladder.ref import emulator

# Small shapes: one cluster's tiles, and one and a half turns of the ring of stages.
SHAPES = {"s4_tma": "64x128x768", "s7_persistent": "512x256x512", "s8_ffma_interleave": "512x256x512"}
SHAPE = "128x128x768"


def add_view(subparsers: Any) -> None:
    """Add `view` and `step` to the sub-commands of `lab`; `arguments.run(arguments)` carries them out."""
    view = subparsers.add_parser("view", help="write a page that shows what a kernel did on the emulator")
    step = subparsers.add_parser("step", help="step through what a kernel did on the emulator")
    for parser, call in ((view, view_command), (step, step_command)):
        parser.add_argument(
            "what",
            metavar="WHAT",
            help="a rung's name, a .cu with a rung's launcher, or a Python script that launches a kernel",
        )
        parser.add_argument("--seed", type=int, help="of the schedule of a rung or a .cu (default: 0)")
        parser.add_argument("--shape", metavar="MxNxK", help="of the product of a rung or a .cu")
        parser.add_argument("--launch", type=int, help="which launch of a run of several, from 0")
        parser.set_defaults(run=call)
    view.add_argument(
        "--against", metavar="WHAT", help="what to show below it: another WHAT, or another seed"
    )
    view.add_argument("-o", "--output", type=Path, default=Path("view.html"), help="the page (view.html)")


def view_command(arguments: argparse.Namespace) -> int:
    """Write the page. Returns 0.

    Raises:
        GemmLadderError: there is no such rung, file or launch; the page cannot be written.
        gemm_ladder.build.ToolchainError, BuildError: the kernel could not be compiled.
    """
    from gemm_ladder.lab.viewer.page import view

    runs = [_recorded(arguments.what, _seed(arguments), arguments)]
    if arguments.against is not None:
        if arguments.against.isdigit():
            if arguments.what.endswith(".py"):
                raise InputError(
                    "--against is a seed; a script chooses its own seeds, so a second script is needed."
                )
            runs.append(_recorded(arguments.what, int(arguments.against), arguments))
        else:
            runs.append(_recorded(arguments.against, _seed(arguments), arguments))
    page = view(runs[0], runs[1] if len(runs) > 1 else None, arguments.output)
    for run in runs:
        if run.fault:
            print(f"{run.fault}\n")
    print(f"Written: {page}")
    return 0


def step_command(arguments: argparse.Namespace) -> int:
    """Read commands until the end of the input. Returns 0; raises as view_command does."""
    from gemm_ladder.lab.viewer.stepper import Stepper, Terminal

    Terminal(Stepper(_recorded(arguments.what, _seed(arguments), arguments))).cmdloop()
    return 0


def _seed(arguments: argparse.Namespace) -> int:
    """--seed, or 0. Raises InputError where no run would use it, or --shape."""
    runs = [arguments.what, getattr(arguments, "against", None) or arguments.what]
    for option in ("seed", "shape"):
        given = getattr(arguments, option)
        if given is not None and all(one.endswith(".py") for one in runs):
            raise InputError(
                f"--{option} is {given}; a script chooses its own {option}s: a change there is needed."
            )
    seed: int = arguments.seed or 0
    return seed


def _recorded(what: str, seed: int, arguments: argparse.Namespace) -> Recording:
    launch: Callable[[], None]
    if what.endswith(".py"):
        if not Path(what).is_file():
            raise InputError(f"The script {what} does not exist.")
        launch = functools.partial(_run_script, what)
    else:
        launch = _product(what, arguments.shape or SHAPES.get(arguments.what, SHAPE))
    with emulator.watching() as watched, contextlib.suppress(EmulatorError):  # the page shows a fault
        if what.endswith(".py"):
            launch()
        else:
            with emulator.emulator(seed=seed):
                launch()
    if watched.run is None:
        raise InputError(f"{what} launches no kernel on the emulator.")
    return Recording.of(watched.run, arguments.launch)


def _run_script(path: str) -> None:
    before = sys.argv
    sys.argv = [path]
    try:
        with contextlib.suppress(SystemExit):
            runpy.run_path(path, run_name="__main__")
    finally:
        sys.argv = before


def _product(what: str, shape: str) -> Callable[[], None]:
    """A call that multiplies random matrices by a rung, or by a .cu with a rung's launcher."""
    from gemm_ladder import build, checks, launch
    from gemm_ladder.measure import problems, shapes
    from gemm_ladder.rungs import rungs

    parsed = shapes.parse(shape, ())
    if len(parsed) != 1:
        raise InputError(f"--shape is {shape!r}; one shape is needed.")
    chosen = parsed[0]
    shapes.refuse_the_endless([chosen])
    problem = problems.make_problem(chosen, "cpu")
    operands = (problem.a, problem.sfa), (problem.b, problem.sfb), problem.output()
    if not what.endswith((".cu", ".cuh")):
        rung = rungs[what]
        return lambda: rung(*operands)
    path = Path(what)
    if not path.is_file():
        raise InputError(f"The source {what} does not exist.")
    if "gemm_ladder_launch" not in path.read_text(encoding="utf-8"):
        raise InputError(
            f"{what} has no gemm_ladder_launch, so its arguments are not known; a Python script that calls "
            "lab.run with them is needed."
        )
    library = build.load(path, target="emulator").lib
    return lambda: launch.on_emulator(path.stem, library, checks.operands("dense", *operands))
