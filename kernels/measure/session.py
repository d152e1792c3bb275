"""What all measuring commands share: finding a GPU, building, and showing and keeping what was measured."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import torch
from gemm_ladder.arguments import HOPPER
from gemm_ladder.errors import GemmLadderError
from gemm_ladder.figures import draw, measured, tables
from gemm_ladder.measure import records
from gemm_ladder.measure.peers import UNSCALED, Call
from gemm_ladder.measure.problems import Errors, Problem
from gemm_ladder.measure.shapes import Cell, Product, Shape
from gemm_ladder.measure.timing import L2
from gemm_ladder.rungs import Rung

Status = Callable[[str], None]  # shows what is being done beside a progress bar
Row = TypeVar("Row")  # a form of a row in gemm_ladder.figures.rows


def need_gpu(why: str, path: Path | None) -> tuple[torch.device, str]:
    """The first Hopper GPU and its name, for a command that needs one and may write a file.

    Args:
        why: what the GPU is needed for, the second clause of the refusal.
        path: the file that will be written, if any.

    Raises:
        GemmLadderError: there is no Hopper GPU.
        InputError: `path` cannot be written.
    """
    device, found = find_gpu()
    if device is None:
        raise GemmLadderError(f"found {found}; {why}, and a Hopper GPU is needed")
    if path:
        records.refuse_unwritable(path)
    return device, found


def find_gpu() -> tuple[torch.device | None, str]:
    """The first Hopper GPU and its name; or None, and a description of what there is instead."""
    if not torch.cuda.is_available():
        return None, "no CUDA GPU that torch can use"
    others = []
    for index in range(torch.cuda.device_count()):
        name, capability = torch.cuda.get_device_name(index), torch.cuda.get_device_capability(index)
        if capability == HOPPER:
            return torch.device("cuda", index), name
        others.append(f"{name} (compute capability {capability[0]}.{capability[1]})")
    return None, f"{', '.join(others)} and no Hopper GPU (9.0)"


@dataclass
class Measured(Generic[Row]):
    """What a run on a GPU found.

    Attributes:
        meta, rows: what figures/data keeps.
        errors: by rung, the worst of all shapes.
        wrong: a sentence for everything that is wrong; empty if nothing is.
        missing: what could not be measured: impl, shape, reason.
    """

    meta: dict[str, Any] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    errors: dict[str, Errors] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    missing: list[dict[str, str]] = field(default_factory=list)

    def miss(self, impl: str, product: Shape | Product | Cell, reason: str) -> None:
        self.missing.append({"impl": impl, "shape": str(product), "reason": reason})

    @property
    def data(self) -> Any:
        """The content of a file of figures/data: {"schema", "meta", "rows"}."""
        meta = {**self.meta, "not_measured": self.missing} if self.missing else self.meta
        return {"schema": measured.SCHEMA, "meta": meta, "rows": self.rows}


def rung_call(rung: Rung, problem: Problem) -> Call:
    """A call of the rung on the problem's device; it returns the output, which all its calls share."""
    out = problem.output()

    def call() -> torch.Tensor:
        rung((problem.a, problem.sfa), (problem.b, problem.sfb), out)
        return out

    return call


def show_measured(result: Measured[Any], states: Sequence[L2]) -> None:
    """Print a table for each state of L2, the errors, what is missing and what is wrong."""
    for l2 in states:
        shown = measured.series(result.data, l2)
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


def keep(
    result: Measured[Any],
    path: Path | None,
    whole: bool,
    record: str = "ladder.json",
    needed: str = "every rung, shape and state of L2 at once",
) -> None:
    """Keep the measurements: in figures/data and its pictures and tables, if the run may replace what is
    recorded there; and in `path`, if given.

    Args:
        whole: whether everything that the record has was measured.
        record: the file's name in figures/data.
        needed: what has to be measured for `whole`.

    Raises:
        InputError: `path` cannot be written. The record has been written by then, but nothing is drawn.
    """
    checkout = records.checkout_root()
    reason = None
    if result.wrong:
        reason = "a result is wrong"
    elif not whole:
        reason = f"they take {needed}"
    elif not checkout:
        reason = "this is an installed package, not a checkout"
    print()
    if reason is None and checkout:
        records.save(result.data, checkout / "figures" / "data" / record)
    if path:
        records.export(result.data, path)
    if reason is None and checkout:
        draw.main(checkout)
        print(f"Renewed: figures/data/{record}, the figures and the tables.")
    else:
        print(f"The recorded figures are left as they are: {reason}.")


def build_all(chosen: Sequence[Rung], target: Literal["cuda", "emulator"]) -> None:
    """Compile the rungs, all at once, before anything is timed."""
    jobs: list[Callable[[], object]] = [lambda rung=rung: rung.build(target) for rung in chosen]
    if target == "emulator":
        from gemm_ladder.ref import tensor_core

        jobs.append(tensor_core.cfunc_address)  # the emulator's arithmetic, compiled by Numba
    with ThreadPoolExecutor() as pool, progress(range(len(jobs)), "builds") as (bar, _):
        futures = [pool.submit(job) for job in jobs]
        for index in bar:
            futures[index].result()


@contextmanager
def progress(items: Iterable[Any], unit: str) -> Iterator[tuple[Iterable[Any], Status]]:
    """`items`, with a progress bar if stderr is a terminal, and a function that sets the words beside it."""
    try:
        from tqdm import tqdm
    except ImportError:
        yield items, lambda text: None
        return
    with tqdm(items, unit=f" {unit}", disable=not sys.stderr.isatty(), leave=False) as bar:
        yield bar, bar.set_postfix_str


def echo(line: str) -> None:
    """Print a line above the progress bar, if there is one."""
    try:
        from tqdm import tqdm
    except ImportError:
        print(line, flush=True)
    else:
        tqdm.write(line)
