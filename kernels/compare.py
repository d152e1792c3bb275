"""The main job, python -m gemm_ladder compare: is every rung right, and how fast is it?

With a Hopper GPU, every rung is built, checked against the reference and timed beside its peers; a whole run,
in a checkout, also renews figures/data/ladder.json, the figure and README's tables. Without one, every rung
runs on the emulator at small shapes, and the figures recorded on an H100 are shown, as recorded ones.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from gemm_ladder import measuring, shapes
from gemm_ladder.errors import GemmLadderError, InputError
from gemm_ladder.figures import draw, measured, tables
from gemm_ladder.rungs import NumpyRung, Rung, rungs
from gemm_ladder.shapes import Product, Shape

# A peer further off than this computes something else; its time would be compared with nothing.
MAX_PEER_ERROR = 0.1

Maker = Callable[[], measuring.Call]
Status = Callable[[str], None]  # says what is being done, beside a progress bar


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
        choices=[*measuring.L2_STATES, "both"],
        help="how L2 is made cold before a measured call (default: both; of the recorded figures, dirty)",
    )
    arguments = parser.parse_args(argv)

    chosen = list(rungs.values())
    if arguments.rungs is not None:
        chosen = list(dict.fromkeys(rungs[name.strip()] for name in arguments.rungs.split(",")))
    device, found = find_gpu()
    known = shapes.MEASURED if device else shapes.EMULATOR
    problems = shapes.parse(arguments.shapes, known)
    if arguments.json:
        refuse_unwritable(arguments.json)

    if device is None:
        refuse_the_endless(problems)
        print(f"Found {found}: every rung runs on the emulator, a Hopper SM on this CPU.\n")
        rows = on_emulator(chosen, problems)
        print()
        show_recorded(measured.recorded(), arguments.l2 if arguments.l2 in measuring.L2_STATES else "dirty")
        if arguments.json:
            print("\nWhat the emulator ran is kept; no GPU was timed.")
            export({"schema": measured.SCHEMA, "meta": emulated_meta(), "rows": rows}, arguments.json)
        return 1 if any(row["verdict"].startswith("WRONG") for row in rows) else 0

    print(f"Found {found}: every rung is checked, then timed beside its peers.\n")
    states = [arguments.l2] if arguments.l2 in measuring.L2_STATES else list(measuring.L2_STATES)
    result = on_gpu(chosen, problems, states, device)
    show_measured(result, states)
    everything = (shapes.MEASURED, measuring.L2_STATES, set(rungs.values()))
    keep(result, arguments.json, whole=(problems, tuple(states), set(chosen)) == everything)
    return 1 if result.wrong else 0


def refuse_unwritable(path: Path, option: str = "--json") -> None:
    """Raise InputError where a file cannot be written, by trying; nothing is left there."""
    if path.is_dir():
        raise InputError(f"{option} {path} is a folder; a file's name is needed")
    if not path.absolute().parent.is_dir():
        raise InputError(f"{option} {path} is in no folder; one that exists is needed")
    existed = os.path.lexists(path)
    try:
        path.open("a").close()
    except OSError as error:
        raise InputError(f"{option} {path} cannot be written ({error.strerror}); another is needed") from None
    if not existed:
        path.unlink()


def need_gpu(why: str, path: Path | None) -> tuple[torch.device, str]:
    """The first Hopper GPU and its name, for a command that writes to `path`, if any.

    Raises:
        GemmLadderError: there is none; `why` says what it would be for.
        InputError: `path` cannot be written.
    """
    device, found = find_gpu()
    if device is None:
        raise GemmLadderError(f"found {found}; {why}, and a Hopper GPU is needed")
    if path:
        refuse_unwritable(path)
    return device, found


def find_gpu() -> tuple[torch.device | None, str]:
    """The first Hopper GPU and its name; or None and what there is instead."""
    if not torch.cuda.is_available():
        return None, "no CUDA GPU that torch can use"
    others = []
    for index in range(torch.cuda.device_count()):
        name, capability = torch.cuda.get_device_name(index), torch.cuda.get_device_capability(index)
        if capability == (9, 0):
            return torch.device("cuda", index), name
        others.append(f"{name} (compute capability {capability[0]}.{capability[1]})")
    return None, f"{', '.join(others)} and no Hopper GPU (9.0)"


# --------------------------------------------------------------------------------------------------- on a GPU


@dataclass
class Measured:
    """What a run on a GPU found."""

    meta: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    errors: dict[str, measuring.Errors] = field(default_factory=dict)  # by rung, the worst of all shapes
    wrong: list[str] = field(default_factory=list)  # a sentence for each rung and shape
    missing: list[dict[str, str]] = field(default_factory=list)  # impl, shape, reason

    def miss(self, impl: str, product: Shape | Product, reason: str) -> None:
        self.missing.append({"impl": impl, "shape": str(product), "reason": reason})

    @property
    def data(self) -> dict[str, Any]:
        """The content of figures/data/ladder.json."""
        meta = {**self.meta, "not_measured": self.missing} if self.missing else self.meta
        return {"schema": measured.SCHEMA, "meta": meta, "rows": self.rows}


def on_gpu(
    chosen: Sequence[Rung],
    problems: Sequence[Shape],
    states: Sequence[measuring.L2],
    device: torch.device,
    peers: Sequence[str] = tuple(measuring.PEERS),
) -> Measured:
    """Build the rungs, check each on every shape, and time the right ones and the peers."""
    kernels = [rung for rung in chosen if not isinstance(rung, NumpyRung)]
    if len(kernels) < len(chosen):
        print("s0_numpy runs on the CPU alone, and is not timed.")
    result = Measured()
    with torch.cuda.device(device):
        build_all(kernels, "cuda")
        measure_each(
            problems,
            "shapes",
            lambda shape, *how: measure_shape(shape, kernels, peers, states, device, *how),
            device,
            result,
        )
    return result


def measure_each(
    products: Sequence[Shape | Product],
    unit: str,
    measure_one: Callable[..., bool],
    device: torch.device,
    result: Measured,
) -> None:
    """Measure one product after another: measure_one(product, timer, result, status) -> whether to go on.

    Raises InputError where one does not fit the GPU's memory.
    """
    timer = measuring.KernelTimer(device)
    result.meta = measuring.machine(device, timer.flush_bytes)
    with progress(products, unit) as (bar, status):
        for product in bar:
            try:
                if not measure_one(product, timer, result, status):
                    break
            except torch.cuda.OutOfMemoryError:
                raise InputError(
                    f"{product} does not fit the memory of the GPU beside the reference and "
                    f"{timer.flush_bytes / 1e9:.3g} GB to clear L2 with; a smaller shape is needed"
                ) from None


def measure_shape(
    shape: Shape,
    kernels: Sequence[Rung],
    peers: Sequence[str],
    states: Sequence[measuring.L2],
    device: torch.device,
    timer: measuring.Timer,
    result: Measured,
    status: Status,
) -> bool:
    """Check and time rungs and peers at one shape: `measure_product` says how."""
    problem = measuring.make_problem(shape, device)
    reference = functools.cache(problem.reference)
    ours = {}
    for rung in kernels:
        if reason := rung.supports(*shape):
            result.miss(rung.name, shape, reason)
        else:
            ours[rung.name] = functools.partial(rung_call, rung, problem)
    others = {name: functools.partial(measuring.PEERS[name], problem) for name in peers}

    def errors(name: str, out: torch.Tensor) -> measuring.Errors:
        return measuring.errors(out, reference(name not in measuring.UNSCALED))

    return measure_product(shape, ours, others, errors, states, device, timer, result, status)


def measure_product(
    product: Shape | Product,
    ours: Mapping[str, Maker],
    peers: Mapping[str, Maker],
    errors: Callable[[str, Any], measuring.Errors],
    states: Sequence[measuring.L2],
    device: torch.device,
    timer: measuring.Timer,
    result: Measured,
    status: Status,
) -> bool:
    """Check and time all implementations of one product; what is found is added to `result`.

    Args:
        ours, peers: what makes a call of each, by name. One of ours that fails is wrong, a peer is missing.
        errors: of what the call of this name has returned.

    Returns whether there can be another product: not after a kernel has faulted on the GPU, which ends the
    process's CUDA context.
    """
    calls: dict[str, measuring.Call] = {}
    accuracy: dict[str, float] = {}

    def checked(name: str, make: Maker) -> tuple[measuring.Call, measuring.Errors]:
        status(f"{product} {name}: checking")
        call = make()
        out = call()
        measuring.synchronize(device)
        return call, errors(name, out)

    for name, make in ours.items():
        try:
            call, error = checked(name, make)
        except torch.cuda.OutOfMemoryError:
            raise
        except (GemmLadderError, RuntimeError) as fault:
            result.wrong.append(f"{name} fails at {product}: {measuring.one_line(fault)}")
            if isinstance(fault, GemmLadderError):
                continue
            return stop(product, result)  # a RuntimeError is how torch passes on what CUDA says of a kernel
        seen = result.errors.setdefault(name, error)
        result.errors[name] = seen.worst(error)
        if error.right:
            calls[name], accuracy[name] = call, error.relative
        else:
            result.wrong.append(f"{name} is wrong at {product}: {describe(error)}")

    for name, make in peers.items():
        try:
            call, error = checked(name, make)
        except torch.cuda.OutOfMemoryError:
            raise
        except Exception as reason:  # what a library refuses with is its own affair
            result.miss(name, product, measuring.one_line(reason))
            if not usable(device):
                return stop(product, result)
            continue
        if error.relative <= MAX_PEER_ERROR:
            calls[name], accuracy[name] = call, error.relative
        else:
            result.miss(name, product, f"its result is another: {describe(error)}")

    counts: dict[str, int] = {}
    failures: dict[str, str] = {}
    for name, call in calls.items():
        try:
            counts[name] = measuring.calls_for(measuring.seconds_of(call, device))
        except torch.cuda.OutOfMemoryError:
            raise
        except Exception as reason:  # one implementation's trouble is not the others'
            failures[name] = measuring.one_line(reason)
    calls = {name: calls[name] for name in counts}
    timings, untimed = measuring.measure(
        calls, counts, states, timer, lambda name: status(f"{product} {name}: timing")
    )
    failures |= untimed
    lost = bool(failures) and not usable(device)
    for name, reason in list(failures.items())[: 1 if lost else None]:  # the first took the others with it
        if name in ours:
            result.wrong.append(f"{name} fails at {product} while it is timed: {reason}")
        else:
            result.miss(name, product, reason)
    for (name, l2), timing in timings.items():
        result.rows.append(measuring.row(name, product, l2, timing, accuracy[name]))
    return stop(product, result) if lost else True


def usable(device: torch.device) -> bool:
    """Whether the GPU still does what it is asked: after a fault every call of the process fails."""
    try:
        measuring.synchronize(device)
    except RuntimeError:
        return False
    return True


def stop(product: Shape | Product, result: Measured) -> bool:
    """Say that nothing follows, which is wrong whoever's fault it is. Returns False, for measure_product."""
    result.wrong.append(f"Nothing more is measured after {product}: a kernel has faulted on the GPU.")
    return False


def rung_call(rung: Rung, problem: measuring.Problem) -> measuring.Call:
    out = problem.output()

    def call() -> torch.Tensor:
        rung((problem.a, problem.sfa), (problem.b, problem.sfb), out)
        return out

    return call


def describe(error: measuring.Errors) -> str:
    return (
        f"its relative error is {error.relative:.2g} and an element is off by {error.element:.2g} of its "
        f"row's root mean square; {measuring.MAX_RELATIVE_ERROR:g} and "
        f"{measuring.MAX_ELEMENT_ERROR:g} are allowed"
    )


def show_measured(result: Measured, states: Sequence[measuring.L2]) -> None:
    """Print the tables, the errors, what is missing and what is wrong."""
    for l2 in states:
        shown = measured.series([result.data], l2)
        if shown:
            print(f"\nTFLOPS, L2 cold and {l2}:\n{tables.plain(tables.table(shown))}")
            if any(one.impl in measuring.UNSCALED for one in shown):
                print(measured.CEILING)
    if result.errors:
        print("\nLargest errors (relative; of an element, over its row's root mean square):")
        for name, error in result.errors.items():
            verdict = "right" if error.right else "WRONG"
            print(f"  {name:20} {error.relative:.2e}  {error.element:.2e}  {verdict}")
    reasons: dict[tuple[str, str], list[str]] = {}
    for miss in result.missing:
        reasons.setdefault((miss["impl"], miss["reason"]), []).append(miss["shape"])
    if reasons:
        print("\nNot measured:")
        for (impl, reason), at in reasons.items():
            print(f"  {impl} at {at[0] if len(at) == 1 else f'{len(at)} shapes'}: {reason}")
    for sentence in result.wrong:
        print(sentence)


def keep(result: Measured, path: Path | None, whole: bool, record: str = "ladder.json") -> None:
    """Write the measurements: into the checkout, and drawn, if the run is whole; to `path` if given.

    Args:
        record: the file's name in figures/data.

    Raises:
        InputError: `path` cannot be written; the file in the checkout has been, and nothing is drawn.
    """
    checkout = checkout_root()
    reason = None
    if result.wrong:
        reason = "a result is wrong"
    elif not whole:
        reason = "they take every rung, shape and state of L2 at once"
    elif not checkout:
        reason = "this is an installed package, not a checkout"
    print()
    if reason is None:
        save(result.data, checkout / "figures" / "data" / record)
    if path:
        export(result.data, path)
    if reason is None:
        draw.main(checkout)
        print(f"Renewed: figures/data/{record}, the figures and README.md's tables.")
    else:
        print(f"The recorded figures are left as they are: {reason}.")


def export(data: dict[str, Any], path: Path) -> None:
    """Write the file that --json names. Raises InputError where that fails."""
    try:
        save(data, path)
    except OSError as error:
        raise InputError(f"--json {path} cannot be written ({error.strerror}); another is needed") from None
    print(f"Written: {path}")


def checkout_root() -> Path | None:
    """The repository that this package is imported from, or None where it is installed elsewhere."""
    root = draw.HERE.parent
    return root if (root / "pyproject.toml").is_file() and (root / "README.md").is_file() else None


def save(data: dict[str, Any], path: Path) -> None:
    """Write a data file, one row a line."""
    rows = ",\n".join(json.dumps(row) for row in data["rows"])
    meta = json.dumps(data["meta"], indent=1)
    path.write_text(
        f'{{\n"schema": {data["schema"]},\n"meta": {meta},\n"rows": [\n{rows}\n]\n}}\n', encoding="utf-8"
    )


# -------------------------------------------------------------------------------------------- on the emulator


def on_emulator(chosen: Sequence[Rung], problems: Sequence[Shape]) -> list[dict[str, Any]]:
    """Run every rung at every shape; print, and return, its error and its time."""
    build_all(chosen, "emulator")
    print(f"{'rung':20}  {'m x n x k':>17}  {'relative error':>14}  {'element error':>13}  {'seconds':>8}")
    rows = []
    with progress([(rung, shape) for rung in chosen for shape in problems], "runs") as (bar, status):
        for rung, shape in bar:
            status(f"{rung.name} {shape}")
            rows.append(row := emulate(rung, shape))
            line = f"{rung.name:20}  {' x '.join(map(str, shape)):>17}  "
            if "seconds" in row:
                numbers = (
                    f"{row['relative_error']:>14.2e}  {row['element_error']:>13.2e}  {row['seconds']:>8.2f}"
                )
                line += numbers + "  "
            echo(line + row["verdict"])
    return rows


def emulated_meta() -> dict[str, Any]:
    """The "meta" of what the emulator ran."""
    from gemm_ladder import build

    return {
        "machine": "emulator",
        "date": datetime.date.today().isoformat(),
        "sources": build.sources_digest(),
        "protocol": "random normal data; errors against float64 of the dequantised inputs; CPU seconds",
    }


def refuse_the_endless(problems: Sequence[Shape]) -> None:
    """Raise InputError for a shape that would keep the emulator busy for more than a minute or two."""
    for shape in problems:
        if shape.padded > shapes.EMULATOR_LIMIT:
            raise InputError(
                f"{shape} multiplies {shape.padded:.2g} pairs, in whole tiles; the emulator takes at most "
                f"{shapes.EMULATOR_LIMIT:.2g} (4096x512x7168, say), and a Hopper GPU is needed for more"
            )


def emulate(rung: Rung, shape: Shape) -> dict[str, Any]:
    """One run: a row with a verdict ("right", "not run: ..." or "WRONG: ...") and, if it ran, the numbers."""
    row = {"impl": rung.name, **shape._asdict()}
    if reason := rung.supports(*shape):
        return row | {"verdict": f"not run: {reason}"}
    problem = measuring.make_problem(shape, "cpu")
    call = rung_call(rung, problem)
    started = time.perf_counter()
    try:
        out = call()
    except GemmLadderError as fault:
        return row | {"verdict": f"WRONG: {fault}"}
    seconds = time.perf_counter() - started
    error = measuring.errors(out, problem.reference())
    return row | {
        "relative_error": error.relative,
        "element_error": error.element,
        "seconds": round(seconds, 3),
        "verdict": "right" if error.right else f"WRONG: {describe(error)}",
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


# ----------------------------------------------------------------------------------------------------- shared


def build_all(chosen: Sequence[Rung], target: Literal["cuda", "emulator"]) -> None:
    """Compile the rungs at the same time, so that no later time has a build in it."""
    jobs: list[Callable[[], object]] = [lambda rung=rung: rung.build(target) for rung in chosen]
    if target == "emulator":
        from gemm_ladder.ref import tensor_core

        jobs.append(tensor_core.cfunc_address)  # Numba's part of the emulator
    with ThreadPoolExecutor() as pool, progress(range(len(jobs)), "builds") as (bar, _):
        futures = [pool.submit(job) for job in jobs]
        for index in bar:
            futures[index].result()


@contextmanager
def progress(items: Iterable[Any], unit: str) -> Iterator[tuple[Iterable[Any], Status]]:
    """`items` with a bar on stderr where that is a terminal, and a function that says what is being done."""
    try:
        from tqdm import tqdm
    except ImportError:
        yield items, lambda text: None
        return
    with tqdm(items, unit=f" {unit}", disable=not sys.stderr.isatty(), leave=False) as bar:
        yield bar, bar.set_postfix_str


def echo(line: str) -> None:
    """Print a line without tearing a bar apart."""
    try:
        from tqdm import tqdm
    except ImportError:
        print(line, flush=True)
    else:
        tqdm.write(line)
