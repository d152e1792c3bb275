"""Measuring many products, some hundred at a time: kernels are built, then results are checked and timed.

A run can be ended and resumed. After every few products what was measured is written to a file, and a run
with the same GPU, libraries and kernel sources goes on from there. If a kernel faults, the process can
measure nothing more; the file then says whose it was and where, and the next run skips it.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from gemm_ladder.errors import InputError, one_line
from gemm_ladder.figures import everywhere, measured
from gemm_ladder.figures.rows import EverywhereRow, fields
from gemm_ladder.measure import cells, peers, pool, records, session, timing, warming
from gemm_ladder.measure.shapes import Cell

STEP = 200  # products whose kernels are built together
SAVED_EVERY = 20  # products
COLUMNS = fields(EverywhereRow)
SAME = ("gpu", "driver", "cuda", "torch", "sources", "protocol", "deep_gemm")  # of meta, where a run goes on
EVERY = "every product"  # the shape of what is missing everywhere


@dataclass
class Run(session.Measured[EverywhereRow]):
    """What one or several runs found.

    Attributes:
        faults: for each kernel that has faulted: impl, shape, reason.
        unfinished: how many products are still to be measured.
    """

    faults: list[dict[str, str]] = field(default_factory=list)
    unfinished: int = 0

    @property
    def data(self) -> Any:
        kept = {"faults": self.faults, "wrong": self.wrong}
        meta = super().data["meta"] | {name: found for name, found in kept.items() if found}
        return {"schema": measured.SCHEMA, "meta": meta, "columns": list(COLUMNS), "rows": self.rows}

    def left(self, chosen: Sequence[Cell]) -> list[Cell]:
        """The products that are still to be measured. One that does not fit the GPU's memory is not."""
        done = set(map(everywhere.key_of, self.rows))
        too_large = {one["shape"] for one in self.missing if one["impl"] == "all"}
        return [cell for cell in chosen if key(cell) not in done and str(cell) not in too_large]

    def of(self, chosen: Collection[Cell]) -> Run:
        """What was found at some of the products."""
        keys, names = set(map(key, chosen)), {EVERY, *map(str, chosen)}
        missing = [one for one in self.missing if one["shape"] in names]
        rows = [row for row in self.rows if everywhere.key_of(row) in keys]
        return Run(self.meta, rows, self.errors, self.wrong, missing, self.faults, self.unfinished)


def key(cell: Cell) -> everywhere.Key:
    """What everywhere.key_of gives for the product's rows."""
    return cell.kind, cell.groups, *cell.shape, cell.max_m, cell.expected_m


def measure(
    chosen: Sequence[Cell],
    states: Sequence[timing.State],
    device: torch.device,
    path: Path | None = None,
    minutes: float | None = None,
    about: Mapping[str, Any] | None = None,
) -> Run:
    """Check and time products beside their peers.

    Args:
        path: where what was measured is kept, and where an earlier run may have left something; None: nowhere
            else than in the result.
        minutes: how long the run may take, give or take a product or a step's builds; None: any time.
        about: what meta is to say besides.

    Raises:
        InputError: `path` has something else, or cannot be written.
    """
    deadline = time.monotonic() + 60 * (float("inf") if minutes is None else minutes)
    with torch.cuda.device(device):
        timer = timing.KernelTimer(device)
        meta = {**records.machine(device, timer.flush_bytes), "protocol": cells.PROTOCOL}
        version, absent = _deep_gemm()
        meta |= {"deep_gemm": version, **(about or {})}
        result = resumed(path, meta) if path else Run(meta)
        if absent and not any(one["shape"] == EVERY for one in result.missing):
            result.missing.append({"impl": "deep_gemm", "shape": EVERY, "reason": absent})
        todo = result.left(chosen)
        result.unfinished = len(todo)
        while todo and time.monotonic() < deadline:
            step, todo = todo[:STEP], todo[STEP:]
            torch.cuda.empty_cache()  # DeepGEMM's kernels are compiled by processes that need room too
            warming.compile_all([cells.configuration(cell, device) for cell in step], step)
            if not _step(step, states, device, timer, deadline, result, path, absent):
                break
    return result


def _step(
    step: Sequence[Cell],
    states: Sequence[timing.State],
    device: torch.device,
    timer: timing.KernelTimer,
    deadline: float,
    result: Run,
    path: Path | None,
    absent: str | None,
) -> bool:
    """Measure one step's products. Returns whether another can be measured: not after a fault."""
    step, store = _that_fit(step, device, result)
    try:
        with session.progress(step, "products") as (bar, status):
            how = cells.How(states, device, timer, status)
            for index, cell in enumerate(bar):
                if time.monotonic() >= deadline:
                    return True
                known = {one["impl"] for one in result.faults if one["shape"] == str(cell)}
                assert store is not None
                fault = cells.measure_cell(
                    cell, store, how, result, known | ({"deep_gemm"} if absent else set())
                )
                if fault:
                    result.faults.append(fault)
                    return False
                result.unfinished -= 1
                if path and index % SAVED_EVERY == SAVED_EVERY - 1:
                    records.keep_whole(result.data, path)
    finally:
        if path:
            records.keep_whole(result.data, path)
    return True


def _that_fit(step: Sequence[Cell], device: torch.device, result: Run) -> tuple[list[Cell], pool.Pool | None]:
    """The products whose operands fit the GPU's memory, and a pool for them. The others are noted."""
    left = list(step)
    while left:
        try:
            return left, pool.Pool(left, device)
        except torch.cuda.OutOfMemoryError:
            left.remove(largest := max(left, key=pool.elements))
            cells.does_not_fit(largest, result)
            result.unfinished -= 1
    return left, None


def _deep_gemm() -> tuple[str | None, str | None]:
    """DeepGEMM's version, or None and why it cannot be imported."""
    try:
        return str(getattr(peers.deep_gemm_library(), "__version__", "unknown")), None
    except Exception as reason:  # a library may fail to load with any exception
        return None, one_line(reason)


def resumed(path: Path, meta: dict[str, Any]) -> Run:
    """What an earlier run left in `path` if it was one of the same GPU, libraries and sources; else a new
    run.

    Raises:
        InputError: the file is there and is not one that a run wrote.
    """
    if not path.exists():
        return Run(meta)
    try:
        earlier = measured.load(path, measured.META_FIELDS, COLUMNS)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} is not a file that this command wrote ({error}); another is needed"
        ) from None
    before = earlier["meta"]
    if any(before.get(name) != meta.get(name) for name in SAME):
        return Run(meta)
    return Run(
        meta,
        earlier["rows"],
        wrong=before.get("wrong", []),
        missing=before.get("not_measured", []),
        faults=before.get("faults", []),
    )
