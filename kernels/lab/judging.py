"""Judging a rung: the cases of the ladder on many schedules, and the first thing that is wrong."""

from __future__ import annotations

import ctypes
import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from gemm_ladder.arguments import EMULATED_SMS, N_MULTIPLE, SCALE_BLOCK
from gemm_ladder.errors import EmulatorError, InputError
from gemm_ladder.lab import bf16, judging_on_gpu
from gemm_ladder.lab.cases import CASES, GPU_CASES, OPERAND_TYPES, UNEVEN_CASES, Case, OperandType
from gemm_ladder.lab.given import Given, arguments
from gemm_ladder.lab.surroundings import Surrounded, surround, trespass
from gemm_ladder.lab.verdicts import Bits, Device, Verdict, Wrong
from gemm_ladder.ref import emulator

MORE_SEEDS, MORE_SECONDS = 12, 10.0  # to tell a race from a mistake that every schedule shows
SLOWER = 1.5  # a run may take so much longer than those before it let expect


def judge(
    source: str | Path,
    *,
    operands: OperandType = "fp8",
    n_multiple: int = N_MULTIPLE,
    k_multiple: int | None = None,
    seconds: float = 60.0,
    every_case: bool = False,
    device: Device | None = None,
    cases: Sequence[str] | None = None,
    timed: Sequence[tuple[int, int, int]] = (),
    first_seed: int = 0,
    defines: Mapping[str, str | int] | None = None,
    include: Sequence[str | Path] = (),
    tick: Callable[[str], None] = lambda text: None,
) -> Verdict:
    """Say whether a rung is right, or the first thing that is wrong.

    Every case of the ladder runs once, cheap ones first, each with a seed of its own; then all of them again
    with other seeds, until the time is up. Outputs are poisoned and lie between canaries, inputs lie between
    poison, and accesses outside of them are faults. A shape that the kernel's launcher refuses with a
    sentence counts as refused, and not as wrong. On a machine with a Hopper GPU the cases then run there, and
    a right kernel is timed beside the rungs.

    Args:
        source: the path of a .cu file, or source text, with `extern "C" const char*
            gemm_ladder_launch(const GemmArgs* args)`, as every file in kernels/stages has it.
        operands: "fp8": A and B in E4M3 with their scales, as the rungs have them; "bf16": BF16 A and B, and
            D = A B^T. Then a and b of GemmArgs are pointers to BF16 numbers, and those to scales are null.
        n_multiple, k_multiple: n and k have to be multiples of these; 1 and 1: any. By default 8, and the
            elements in 128 bytes of K: 128, or 64 of BF16.
        seconds: for the emulator, without the build. A shape that would take longer is not run, and the
            verdict says so.
        every_case: run each case once on the emulator, however long it takes; `seconds` then limits only the
            runs with other seeds.
        device: "cpu": the emulator alone; "cuda": a Hopper GPU alone; None: the emulator, and then a GPU if
            there is one.
        cases: the names of the cases to run; None: all.
        timed: the (m, n, k) at which a right kernel is timed on a GPU; none: one of prefill, one of decoding.
        first_seed: the seed of the first run; each run has the next one.
        defines, include: as for `gemm_ladder.lab.run`.
        tick: called before each run with a few words about it.

    Raises:
        InputError: the source has no launcher, an argument cannot be used, or there is no Hopper GPU for
            device="cuda".
        BuildError, ToolchainError: the source does not compile, or there is no compiler.
    """
    if operands not in OPERAND_TYPES:
        raise InputError(f'operands is {operands!r}; "fp8" or "bf16" is needed.')
    if k_multiple is None:
        k_multiple = SCALE_BLOCK if operands == "fp8" else bf16.BLOCK
    for name, multiple in (("n_multiple", n_multiple), ("k_multiple", k_multiple)):
        if not isinstance(multiple, int) or multiple < 1:
            raise InputError(f"{name} is {multiple!r}; a positive number is needed.")
    if not isinstance(first_seed, int) or not 0 <= first_seed < 2**63:
        raise InputError(f"first_seed is {first_seed!r}; an integer from 0 to 2^63 - 1 is needed.")
    if not seconds > 0:
        raise InputError(f"seconds is {seconds!r}; a positive number is needed.")
    if device not in (None, "cpu", "cuda"):
        raise InputError(f'device is {device!r}; "cpu" or "cuda" is needed.')
    chosen = _chosen(operands, cases, n_multiple, k_multiple)
    given = Given.of(source, defines, include)
    found: Verdict | None = None
    if device != "cuda":
        found = _on_emulator(given, chosen, seconds, every_case, first_seed, tick)
    if device == "cuda" or (device is None and found and found.right and judging_on_gpu.has_hopper()):
        if cases is None:
            chosen += _fitting(_of_type(operands, GPU_CASES), n_multiple, k_multiple)
        on_gpu = judging_on_gpu.judge(given, chosen, n_multiple, k_multiple, tick, timed)
        if found is None or not on_gpu.right:
            return on_gpu
        found.times = on_gpu.times
    assert found is not None
    return found


def _of_type(operands: OperandType, cases: Sequence[Case]) -> list[Case]:
    """The cases with operands of a type. Those that are uneven along k are for FP8, whose k may be any."""
    if operands == "fp8":
        return list(cases)
    return [bf16.of_case(case) for case in cases if case not in UNEVEN_CASES]


def _fitting(cases: Sequence[Case], n_multiple: int, k_multiple: int) -> list[Case]:
    return [case for case in cases if case.n % n_multiple == 0 and case.k % k_multiple == 0]


def _chosen(
    operands: OperandType, cases: Sequence[str] | None, n_multiple: int, k_multiple: int
) -> list[Case]:
    """The cases to run, in order. Raises InputError where there is none."""
    known = {case.name: case for case in _of_type(operands, (*CASES, *UNEVEN_CASES, *GPU_CASES))}
    if cases is not None:
        for name in cases:
            if name not in known:
                raise InputError(f"{name!r} is not a case; one of {', '.join(known)} is needed.")
        return [known[name] for name in cases]
    fitting = _fitting(_of_type(operands, (*CASES, *UNEVEN_CASES)), n_multiple, k_multiple)
    if not fitting:
        raise InputError(
            f"No case has an n that is a multiple of {n_multiple} and a k that is one of {k_multiple}; "
            "smaller numbers are needed."
        )
    return fitting


class _Emulated:
    """The runs of one kernel on the emulator, and the verdict that they lead to."""

    def __init__(self, given: Given, first_seed: int, tick: Callable[[str], None]) -> None:
        self.given, self.tick = given, tick
        tick("building")
        self.library = given.build("emulator").lib
        emulator.arithmetic()  # compiled now, so that the first run does not count as slow
        self.verdict, self.bits = Verdict(given.name, "cpu"), Bits()
        self.began, self.seed = time.perf_counter(), first_seed
        self._rate = math.inf  # seconds for each pair of elements of A and B that is multiplied

    @property
    def spent(self) -> float:
        return time.perf_counter() - self.began

    def estimate(self, case: Case) -> float:
        """About the seconds that a run of the case takes, by those before it."""
        return SLOWER * self._rate * case.m * case.n * case.k if self._rate < math.inf else 0.0

    def run(self, case: Case) -> bool:
        """Run a case with the next seed. Returns whether it is to be run again: it was right."""
        self.tick(f"{case.name}, seed {self.seed}")
        started = time.perf_counter()
        wrong = self._outcome(case, self.seed)
        if case.name in self.verdict.refused:
            return False
        self.verdict.runs += 1
        if wrong:
            self.verdict.wrong = self._with_more_seeds(wrong)
            return False
        # What a launch costs by itself says nothing about a larger one.
        if case.m * case.n * case.k >= 1 << 18:
            self._rate = min(self._rate, (time.perf_counter() - started) / (case.m * case.n * case.k))
        self.seed += 1
        return True

    def _outcome(self, case: Case, seed: int) -> Wrong | None:
        """What is wrong with one launch; a refusal is noted."""
        try:
            said, found, trespassed, notes = launch(self.library, case, seed)
        except EmulatorError as fault:
            return _fault(case, seed, fault)
        if said is not None:
            self.verdict.refused[case.name] = said
            return None
        if trespassed:
            return Wrong(case, seed, trespassed, (("case", case.reaches),))
        wrong = self.bits.wrong(case, seed, found)
        if wrong and notes:
            wrong = dataclasses.replace(wrong, details=(*wrong.details, *(("note", note) for note in notes)))
        return wrong

    def _with_more_seeds(self, wrong: Wrong) -> Wrong:
        """The same, with the number of schedules that show it, and how to run it again."""
        assert wrong.seed is not None
        began, tried, bad, vary = time.perf_counter(), 1, 1, False
        for seed in range(wrong.seed + 1, wrong.seed + 1 + MORE_SEEDS):
            if time.perf_counter() - began > MORE_SECONDS:
                break
            self.tick(f"{wrong.case.name}, seed {seed}")
            tried, other = tried + 1, self._outcome(wrong.case, seed)
            bad += other is not None
            if other and other.found is not None and wrong.found is not None:
                vary |= not np.array_equal(other.found, wrong.found)
        often = "all of them are wrong" if bad == tried else f"{bad} of them are wrong"
        if vary:
            often += ", with other values each time: a race, or something that was never initialised"
        elif bad < tried:
            often += ": it is a matter of timing"
        file = self.given.source if isinstance(self.given.source, Path) else "FILE"
        again = f"python -m gemm_ladder lab judge {file} --cases {wrong.case.name} --first-seed {wrong.seed}"
        if not wrong.case.operands.scaled:
            again += " --operands bf16"
        more = (("schedules", f"{tried} were tried, and {often}"), ("again", again))
        return dataclasses.replace(wrong, details=wrong.details + more)


def _on_emulator(
    given: Given,
    cases: Sequence[Case],
    seconds: float,
    every_case: bool,
    first_seed: int,
    tick: Callable[[str], None],
) -> Verdict:
    runs = _Emulated(given, first_seed, tick)
    verdict = runs.verdict
    for case in cases:
        if not every_case and runs.spent + runs.estimate(case) > seconds and verdict.judged:
            verdict.unreached.append(case)
        elif runs.run(case):
            verdict.judged.append(case)
        elif verdict.wrong:
            break
    again = list(verdict.judged)
    while again and not verdict.wrong:
        for case in list(again):
            if runs.spent + runs.estimate(case) > seconds:
                again.remove(case)
            elif not runs.run(case):
                break
    verdict.arithmetic = runs.bits.models[0] if runs.bits.models else None
    verdict.apart, verdict.until, verdict.seconds = runs.bits.apart, runs.bits.until, runs.spent
    return verdict


def launch(
    library: ctypes.CDLL, case: Case, seed: int
) -> tuple[str | None, np.ndarray, str | None, list[str]]:
    """One launch on the emulator: the launcher's refusal, D, where something was written besides D, and the
    emulator's notes (`emulator.Run`).

    Raises EmulatorError: the kernel is at fault.
    """
    placed = surround(case.operands)
    with emulator.emulator(seed=seed) as run:
        said = emulator.launch(
            library, arguments(case, _pointers(placed), EMULATED_SMS), _tensors(placed, case.m)
        )
    return said, placed.out.copy(), trespass(placed.around), run.notes


def _pointers(placed: Surrounded) -> dict[str, int]:
    arrays = {name: one.array for name, one in placed.inputs.items()} | {"d": placed.out}
    return {name: array.ctypes.data for name, array in arrays.items()}


def _tensors(placed: Surrounded, m: int) -> dict[str, np.ndarray]:
    found = {"A": placed.a.array, "B": placed.b.array, "D": placed.out}
    if placed.sfa and placed.sfb:
        found |= {"A's scales": placed.sfa.array.T[:m], "B's scales": placed.sfb.array}
    return found


def _fault(case: Case, seed: int, fault: EmulatorError) -> Wrong:
    message = str(fault).removeprefix("emulator: ").rstrip(".")
    details = [("case", case.reaches), ("fault", fault.what)]
    if fault.line:
        details.append(("line", fault.line))
    return Wrong(case, seed, message, tuple(details), fault)
