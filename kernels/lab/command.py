"""python -m gemm_ladder lab: run any kernel, judge a rung, begin a new one, see what a kernel did, how fast.

python -m gemm_ladder lab run my.cu --grid 4 --block 128 float32[64,64]=normal float32[64,64]=nan 64
python -m gemm_ladder lab new my_rung.cu --from s4_tma
python -m gemm_ladder lab judge my_rung.cu
python -m gemm_ladder lab judge my_rung.cu --operands bf16
python -m gemm_ladder lab view s5_tma_multicast -o view.html
python -m gemm_ladder lab speed
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from gemm_ladder.arguments import N_MULTIPLE
from gemm_ladder.errors import EmulatorError, InputError
from gemm_ladder.lab import judging, literals, running, template
from gemm_ladder.lab.cases import OPERAND_TYPES
from gemm_ladder.lab.speed import add_speed
from gemm_ladder.lab.viewer.command import add_view

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

CHANGED = 3  # of an array's values, how many are shown from its begin


def main(argv: Sequence[str] | None = None) -> int:
    """Run `lab`. Returns 0; 1 where a kernel is at fault, wrong, or gives other results on other schedules.

    Raises:
        InputError, UnknownRungError: an argument is not usable.
        LaunchError: the launch is refused, or a GPU reports an error.
        gemm_ladder.build.ToolchainError, BuildError: the kernel cannot be built.
    """
    parser = argparse.ArgumentParser(
        prog="python -m gemm_ladder lab",
        description="Run any kernel for Hopper on the emulator or on a GPU, and judge a rung.",
    )
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    for add in COMMANDS:
        add(subparsers)
    arguments, others = parser.parse_known_args(argv)
    # argparse takes a kernel's arguments only where they follow the file; they may also follow options.
    unknown = [word for word in others if re.match(r"-(?![\d.])", word) or "arguments" not in arguments]
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    if others:
        arguments.arguments += others
    status: int = arguments.run(arguments)
    return status


# ---------------------------------------------------------------------------------------------------- lab run


def add_run(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "run",
        help="launch a kernel with arguments, once or on many schedules",
        description="Launch a kernel and say what it wrote, or what fault it has.",
        epilog=(literals.__doc__ or "")
        + "\nTypes: "
        + ", ".join(literals.DTYPES)
        + ".\nFills: "
        + "; ".join(f"{name}, {what}" for name, what in literals.FILLS.items())
        + ".",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_launch(parser)
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu", help="cpu: the emulator (default)"
    )
    parser.add_argument("--seeds", type=int, metavar="N", help="launch it on N schedules of the emulator")
    parser.add_argument("--print", action="store_true", help="print the arrays that the launch has changed")
    parser.add_argument(
        "--save", type=Path, metavar="FILE.npz", help="write the arrays after the launch to FILE"
    )
    parser.add_argument(
        "--record", type=Path, metavar="FILE.npy", help="write what happened on the emulator, event by event"
    )
    parser.set_defaults(run=_run)


def add_launch(parser: argparse.ArgumentParser) -> None:
    """The options that say which kernel is launched, and how: what `lab.run` needs."""
    parser.add_argument("source", metavar="FILE.cu", help="the kernel's source")
    parser.add_argument("arguments", metavar="ARG", nargs="*", help="the kernel's arguments (below)")
    parser.add_argument("--kernel", metavar="NAME", help="the kernel's name, if the file has several")
    for name, default, what in (
        ("grid", "1", "blocks of the grid"),
        ("block", "128", "threads of a block"),
        ("cluster", None, "blocks of a cluster"),
    ):
        said = default or "what __cluster_dims__ says, or 1"
        parser.add_argument(
            f"--{name}", default=default, metavar="X[,Y[,Z]]", help=f"{what} (default: {said})"
        )
    parser.add_argument(
        "--shared", type=int, default=0, metavar="BYTES", help="dynamic shared memory of a block (default: 0)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the emulator's schedule (default: 0)")
    parser.add_argument(
        "--data-seed", type=int, default=0, metavar="SEED", help="of random numbers (default: 0)"
    )
    parser.add_argument(
        "--max-steps", type=int, metavar="N", help="the steps after which the emulator gives a kernel up"
    )
    add_build(parser)


def add_build(parser: argparse.ArgumentParser) -> None:
    """The options that say how a source is compiled."""
    parser.add_argument(
        "--define", action="append", default=[], metavar="NAME[=VALUE]", help="a macro; may be repeated"
    )
    parser.add_argument(
        "--include", action="append", default=[], metavar="FOLDER", help="of headers; may be repeated"
    )


def launch_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """What `add_launch` read, as keywords for `lab.run` and `lab.sweep`."""
    shape = {name: _dim(f"--{name}", getattr(arguments, name)) for name in ("grid", "block", "cluster")}
    return {
        **shape,
        "shared_bytes": arguments.shared,
        "kernel": arguments.kernel,
        "max_steps": arguments.max_steps,
        **build_options(arguments),
    }


def build_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """What `add_build` read, as keywords for `lab.run` and `judge`."""
    defines = dict(word.partition("=")[::2] for word in arguments.define)
    return {
        "defines": {name: value or "1" for name, value in defines.items()},
        "include": arguments.include,
    }


def _dim(name: str, text: str | None) -> list[int] | None:
    if text is None:
        return None
    sizes = text.split(",")
    if not 1 <= len(sizes) <= 3 or not all(size.isascii() and size.isdigit() for size in sizes):
        raise InputError(f"{name} is {text!r}; a positive number, or up to three, are needed, as in 4,2.")
    return list(map(int, sizes))


def _run(arguments: argparse.Namespace) -> int:
    for option, suffix in (("save", ".npz"), ("record", ".npy")):
        path = getattr(arguments, option)
        if path and (path.suffix != suffix or not path.absolute().parent.is_dir()):
            raise InputError(f"--{option} is {path}; a {suffix} file in a folder that exists is needed.")
    for option in ("seeds", "record"):
        if getattr(arguments, option) is not None and arguments.device == "cuda":
            raise InputError(f"--{option} is for the emulator; --device cpu is needed.")
    if arguments.seeds is not None and (arguments.seeds < 1 or arguments.record):
        needed = "one launch is recorded" if arguments.record else "a positive number of schedules is needed"
        raise InputError(f"--seeds is {arguments.seeds}; {needed}.")
    given = literals.parse(arguments.arguments, arguments.data_seed, as_bits=arguments.device == "cuda")
    before = {name: array.copy() for name, array in given.arrays.items()}
    options = launch_options(arguments)
    status = 0
    if arguments.seeds is not None:
        seeds = range(arguments.seed, arguments.seed + arguments.seeds)
        found = running.sweep(arguments.source, *given.values, seeds=seeds, tick=_ticker(), **options)
        print(found)
        status = 0 if found.sound else 1
    else:
        try:
            result = running.run(
                arguments.source,
                *given.values,
                device=arguments.device,
                seed=arguments.seed,
                record=arguments.record is not None,
                **options,
            )
        except EmulatorError as fault:
            print(f"FAULT ({fault.what}): {fault}")
            status = 1
        else:
            steps = f", {result.steps} steps" if result.steps else ""
            machine = "The emulator" if result.device == "cpu" else "The GPU"
            print(f"{machine}: {result.seconds:.3g} s{steps}.")
            if arguments.record:
                np.save(arguments.record, result.events)
                print(f"Written: {arguments.record}")
    for name, array in given.arrays.items():
        print(f"  {summary(name, before[name], array)}")
        if arguments.print and _changed(before[name], array):
            print(np.array2string(array, threshold=2000, max_line_width=110))
    if arguments.save:
        saved: dict[str, Any] = {_key(name): _saved(array) for name, array in given.arrays.items()}
        np.savez(arguments.save, **saved)
        print(f"Written: {arguments.save}")
    return status


def summary(name: str, before: np.ndarray, after: np.ndarray) -> str:
    """What became of an array, in a line."""
    changed = _changed(before, after)
    said = f"{name:30} "
    if not changed:
        return f"{said} as it was"
    numbers = after.astype(np.float64)
    finite = numbers[np.isfinite(numbers)]
    said += f" {changed} of {after.size} values written"
    if nan := int(np.isnan(numbers).sum()):
        said += f"; {nan} NaN"
    if finite.size:
        said += f"; {finite.min():.6g} to {finite.max():.6g}, mean {finite.mean():.6g}"
    first = ", ".join(f"{one:.6g}" for one in numbers.ravel()[:CHANGED])
    return f"{said}; begins {first}"


def _changed(before: np.ndarray, after: np.ndarray) -> int:
    """How many elements have other bits."""
    bits = f"u{after.itemsize}"
    return int((before.view(bits) != after.view(bits)).sum())


def _key(name: str) -> str:
    """The name of an argument's array in a .npz file."""
    return f"arg{name.partition(':')[0]}"


def _saved(array: np.ndarray) -> np.ndarray:
    """NumPy's files have no BF16 and no FP8: their values fit float32."""
    return array if array.dtype.isbuiltin == 1 else array.astype(np.float32)


# -------------------------------------------------------------------------------------------------- lab judge


def add_judge(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "judge",
        help="say whether a rung is right, or the first thing that is wrong",
        description="Run a rung on the cases of the ladder, on many schedules, and say the first thing that "
        "is wrong. On a Hopper GPU, run it there too, and time it beside the rungs.",
    )
    parser.add_argument("source", metavar="FILE.cu", help="with gemm_ladder_launch, as the files in stages/")
    parser.add_argument(
        "--seconds", type=float, default=60.0, help="for the emulator (default: 60); more is more schedules"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), help="the emulator alone, or a GPU alone")
    parser.add_argument(
        "--operands",
        choices=OPERAND_TYPES,
        default="fp8",
        help="of A and B: fp8, with scales (default), or bf16, without",
    )
    parser.add_argument("--n-multiple", type=int, default=N_MULTIPLE, metavar="N", help="default: 8")
    parser.add_argument(
        "--k-multiple", type=int, metavar="K", help="default: 128, and with --operands bf16 64"
    )
    parser.add_argument("--cases", metavar="NAME,...", help="the cases to run (default: all)")
    parser.add_argument(
        "--first-seed", type=int, default=0, metavar="SEED", help="of the first run (default: 0)"
    )
    parser.add_argument(
        "--timed", metavar="MxNxK,...", help="on a GPU: the shapes at which a right kernel is timed"
    )
    add_build(parser)
    parser.set_defaults(run=_judge)


def _judge(arguments: argparse.Namespace) -> int:
    from gemm_ladder.measure import shapes

    verdict = judging.judge(
        Path(arguments.source),
        operands=arguments.operands,
        n_multiple=arguments.n_multiple,
        k_multiple=arguments.k_multiple,
        seconds=arguments.seconds,
        device=arguments.device,
        cases=arguments.cases.split(",") if arguments.cases else None,
        timed=shapes.parse(arguments.timed, ()) if arguments.timed else (),
        first_seed=arguments.first_seed,
        tick=_ticker(),
        **build_options(arguments),
    )
    print(verdict)
    return 0 if verdict.right else 1


def _ticker() -> Callable[[str], None]:
    """Shows what is being done on one line of a terminal's stderr."""
    if not sys.stderr.isatty():
        return lambda text: None
    return lambda text: print(f"\r\x1b[K{text[:100]}\r", end="", file=sys.stderr, flush=True)


# ---------------------------------------------------------------------------------------------------- lab new


def add_new(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "new",
        help="begin a rung: a copy of another one, with a comment that says what to do",
        description="Write a new file that begins as a copy of a rung.",
    )
    parser.add_argument("path", type=Path, metavar="FILE.cu", help="the file to write; it must not exist")
    parser.add_argument(
        "--from", dest="rung", required=True, metavar="RUNG", help=f"one of {', '.join(template.copied())}"
    )
    parser.add_argument(
        "--operands", choices=OPERAND_TYPES, default="fp8", help="those that your kernel will have"
    )
    parser.set_defaults(run=_new)


def _new(arguments: argparse.Namespace) -> int:
    template.new(arguments.path, arguments.rung, arguments.operands)
    option = "" if arguments.operands == "fp8" else f" --operands {arguments.operands}"
    print(f"Written: {arguments.path}. Next: python -m gemm_ladder lab judge {arguments.path}{option}")
    return 0


# The sub-commands, in the order in which help lists them: each adds its parser, whose default `run` carries
# it out.
COMMANDS: tuple[Callable[[Subparsers], None], ...] = (add_run, add_judge, add_new, add_view, add_speed)
