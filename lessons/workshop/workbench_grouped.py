"""What the lesson on grouped GEMMs runs: grouped calls, production kernels with another text."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable

import gemm_ladder as gl
import numpy as np
import torch
from gemm_ladder.arguments import M_ALIGNMENT, align
from gemm_ladder.production import launching
from gemm_ladder.production.config import Config
from gemm_ladder.ref import fp8, gemm, tensor_core
from gemm_ladder.ref.gemm import BF16
from workshop import workbench, workbench_production
from workshop.changes import Change

BEFORE = -1.0  # what `out` holds before a call: to be seen where nothing was written
MAX_STEPS = 300_000  # of the emulator's scheduler: more than any call of the lesson needs


# ----------------------------------------------------------------------------------------------------- a call


@dataclasses.dataclass(frozen=True, eq=False)
class Call:
    """A grouped product's operands in NumPy.

    Attributes:
        kind: "contiguous", "masked" or "psum".
        lhs: E4M3 [m, k] and float32 [m, k / 128]; masked: [groups, max_m, ...].
        rhs: E4M3 [groups, n, k] and float32 [groups, ceil(n / 128), k / 128].
        rows: int32, m_indices [m], masked_m [groups], or psum's ends [groups].
    """

    kind: str
    lhs: tuple[np.ndarray, np.ndarray]
    rhs: tuple[np.ndarray, np.ndarray]
    rows: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        """Of `out`."""
        return *self.lhs[0].shape[:-1], self.rhs[0].shape[1]

    @property
    def owners(self) -> np.ndarray:
        """The group of each row of A, -1 for padding; not of a masked call."""
        if self.kind == "contiguous":
            return self.rows
        owners = np.full(len(self.lhs[0]), -1)
        for group, (begin, end, _) in enumerate(gemm.psum_rows(self.rows, M_ALIGNMENT, len(owners))):
            owners[begin:end] = group
        return owners

    def expected(self) -> np.ndarray:
        """BF16, of out's shape, bit for bit: zeros for rows of padding, BEFORE where nothing is written."""
        d = np.full(self.shape, BEFORE if self.kind == "masked" else 0, BF16)
        for group, (b, sfb) in enumerate(zip(*self.rhs, strict=True)):
            mine = (group, slice(self.rows[group])) if self.kind == "masked" else self.owners == group
            d[mine] = tensor_core.gemm(self.lhs[0][mine], self.lhs[1][mine], b, sfb).view(BF16)
        return d


def multiply(config: Config, call: Call, device: str = workbench.DEVICE, num_sms: int = 0) -> np.ndarray:
    """What a configuration makes of a call: BF16, of out's shape, which holds BEFORE at first."""
    out = torch.full(call.shape, BEFORE, dtype=torch.bfloat16, device=device)
    pairs = (tuple(workbench.tensor(x, device) for x in pair) for pair in (call.lhs, call.rhs))
    launching.launch(config, *pairs, out, workbench.tensor(call.rows, device), num_sms)
    return out.view(torch.int16).cpu().numpy().view(BF16)


def random_call(kind: str, counts: Iterable[int], n: int, k: int, max_m: int = 0) -> Call:
    """Normal numbers for groups of so many rows. contiguous: the groups one right after the other, with no
    padding; masked: of max_m rows each; psum: each padded to the alignment."""
    counts, rng = list(counts), np.random.default_rng(0)
    padded = np.array([align(count, M_ALIGNMENT) for count in counts])
    b = [fp8.per_block_cast_to_fp8(rng.standard_normal((n, k)).astype(np.float32)) for _ in counts]
    rhs = tuple(np.stack(part) for part in zip(*b, strict=True))
    shape = {"contiguous": (sum(counts),), "masked": (len(counts), max_m), "psum": (padded.sum(),)}[kind]
    a, sfa = fp8.per_token_cast_to_fp8(rng.standard_normal((np.prod(shape), k)).astype(np.float32))
    rows = np.repeat(np.arange(len(counts)), counts) if kind == "contiguous" else np.array(counts)
    if kind == "psum":
        rows += np.cumsum(padded) - padded
    return Call(kind, (a.reshape(*shape, k), sfa.reshape(*shape, -1)), rhs, rows.astype(np.int32))


# ------------------------------------------------------------------------------------------- a changed kernel


def symptoms(
    config: Config, call: Call, seeds: Iterable[int], num_sms: int = 0
) -> list[workbench.Symptom | None]:
    """What is wrong under each schedule of the emulator; None where nothing is."""
    right = call.expected()

    def run() -> str | None:
        return difference(multiply(config, call, "cpu", num_sms), right, call)

    return workbench.under_schedules(run, seeds, MAX_STEPS)


def difference(d: np.ndarray, right: np.ndarray, call: Call) -> str | None:
    """Where D is not the expected one, bit for bit: a line for each group; None where it is."""
    wrong = d.view(np.uint16) != right.view(np.uint16)
    lines = []
    for group in range(-1, len(call.rhs[0])):
        if call.kind == "masked":
            here = wrong[group] if group >= 0 else np.zeros(0, bool)
        else:
            here = wrong[call.owners == group]
        if here.any():
            name = f"group {group}" if group >= 0 else "padding"
            rows, columns = (np.flatnonzero(here.any(axis)) for axis in (1, 0))
            lines.append(
                f"{name}: {here.sum()} elements wrong, in rows {rows[0]} to {rows[-1]} of its {len(here)}, "
                f"columns {columns[0]} to {columns[-1]}"
            )
    return "\n      ".join(lines) or None


def break_it(
    config: Config,
    call: Call,
    *changes: tuple[str, str],
    seeds: int = 4,
    num_sms: int = 0,
    guess: str = "",
) -> None:
    """Run a configuration with each (old, new) replaced, under some schedules; print the symptoms.

    `guess` names a guess of `exercises.guess_break`, to be printed beside them.
    """
    broken, change = config, None
    if changes:
        broken = workbench_production.changed(config, *changes)
        change = Change(workbench_production.changed(config).kernel, broken.kernel)
    found = workbench.tried(symptoms, broken, call, range(seeds), num_sms)
    workbench.show_symptoms(found, _kind, change, guess)


def _kind(symptom: workbench.Symptom) -> str:
    """A fault, whatever its numbers; a wrong answer with them."""
    return re.sub(r"\d+", "#", str(symptom)) if isinstance(symptom, gl.EmulatorError) else symptom
