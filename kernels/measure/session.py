"""One measurement on a GPU: products checked and timed one after another, and what was found."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from gemm_ladder.errors import GemmLadderError, InputError, one_line
from gemm_ladder.figures import draw, measured, tables
from gemm_ladder.measure import records, timing
from gemm_ladder.measure.peers import UNSCALED, Call
from gemm_ladder.measure.problems import Errors, Problem, describe
from gemm_ladder.measure.shapes import Product, Shape
from gemm_ladder.rungs import Rung

# A peer further off than this computes something else; its time would be compared with nothing.
MAX_PEER_ERROR = 0.1
Maker = Callable[[], Call]
Status = Callable[[str], None]  # says what is being done, beside a progress bar


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
        records.refuse_unwritable(path)
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


@dataclass
class Measured:
    """What a run on a GPU found."""

    meta: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    errors: dict[str, Errors] = field(default_factory=dict)  # by rung, the worst of all shapes
    wrong: list[str] = field(default_factory=list)  # a sentence for each rung and shape
    missing: list[dict[str, str]] = field(default_factory=list)  # impl, shape, reason

    def miss(self, impl: str, product: Shape | Product, reason: str) -> None:
        self.missing.append({"impl": impl, "shape": str(product), "reason": reason})

    @property
    def data(self) -> dict[str, Any]:
        """The content of figures/data/ladder.json."""
        meta = {**self.meta, "not_measured": self.missing} if self.missing else self.meta
        return {"schema": measured.SCHEMA, "meta": meta, "rows": self.rows}


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
    timer = timing.KernelTimer(device)
    result.meta = records.machine(device, timer.flush_bytes)
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


def measure_product(
    product: Shape | Product,
    ours: Mapping[str, Maker],
    peers: Mapping[str, Maker],
    errors: Callable[[str, Any], Errors],
    states: Sequence[timing.L2],
    device: torch.device,
    timer: timing.Timer,
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
    calls: dict[str, Call] = {}
    accuracy: dict[str, float] = {}

    def checked(name: str, make: Maker) -> tuple[Call, Errors]:
        status(f"{product} {name}: checking")
        call = make()
        out = call()
        timing.synchronize(device)
        return call, errors(name, out)

    for name, make in ours.items():
        try:
            call, error = checked(name, make)
        except torch.cuda.OutOfMemoryError:
            raise
        except (GemmLadderError, RuntimeError) as fault:
            result.wrong.append(f"{name} fails at {product}: {one_line(fault)}")
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
            result.miss(name, product, one_line(reason))
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
            counts[name] = timing.calls_for(timing.seconds_of(call, device))
        except torch.cuda.OutOfMemoryError:
            raise
        except Exception as reason:  # one implementation's trouble is not the others'
            failures[name] = one_line(reason)
    calls = {name: calls[name] for name in counts}
    timings, untimed = timing.measure(
        calls, counts, states, timer, lambda name: status(f"{product} {name}: timing")
    )
    failures |= untimed
    lost = bool(failures) and not usable(device)
    for name, reason in list(failures.items())[: 1 if lost else None]:  # the first took the others with it
        if name in ours:
            result.wrong.append(f"{name} fails at {product} while it is timed: {reason}")
        else:
            result.miss(name, product, reason)
    for (name, l2), found in timings.items():
        result.rows.append(records.row(name, product, l2, found, accuracy[name]))
    return stop(product, result) if lost else True


def usable(device: torch.device) -> bool:
    """Whether the GPU still does what it is asked: after a fault every call of the process fails."""
    try:
        timing.synchronize(device)
    except RuntimeError:
        return False
    return True


def stop(product: Shape | Product, result: Measured) -> bool:
    """Say that nothing follows, which is wrong whoever's fault it is. Returns False, for measure_product."""
    result.wrong.append(f"Nothing more is measured after {product}: a kernel has faulted on the GPU.")
    return False


def rung_call(rung: Rung, problem: Problem) -> Call:
    out = problem.output()

    def call() -> torch.Tensor:
        rung((problem.a, problem.sfa), (problem.b, problem.sfb), out)
        return out

    return call


def show_measured(result: Measured, states: Sequence[timing.L2]) -> None:
    """Print the tables, the errors, what is missing and what is wrong."""
    for l2 in states:
        shown = measured.series([result.data], l2)
        if shown:
            print(f"\nTFLOPS, L2 cold and {l2}:\n{tables.plain(tables.table(shown))}")
            if any(one.impl in UNSCALED for one in shown):
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
    checkout = records.checkout_root()
    reason = None
    if result.wrong:
        reason = "a result is wrong"
    elif not whole:
        reason = "they take every rung, shape and state of L2 at once"
    elif not checkout:
        reason = "this is an installed package, not a checkout"
    print()
    if reason is None:
        records.save(result.data, checkout / "figures" / "data" / record)
    if path:
        records.export(result.data, path)
    if reason is None:
        draw.main(checkout)
        print(f"Renewed: figures/data/{record}, the figures and README.md's tables.")
    else:
        print(f"The recorded figures are left as they are: {reason}.")


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
