"""The emulator catches single faults, made mechanically in every line of every kernel (mutants.py).

A mutant is caught if it does not compile, if the launcher refuses, if a schedule ends in a fault, or if one
gives wrong bits, within mutation_runs.SEEDS schedules and launches. Those that are not caught are listed with
the reason why they are no fault, in data/surviving_mutants.txt; of the others fewer than one in a hundred may
be missed.

A whole run takes more than an hour of CPU, so a test run takes a sample, always the same. In the environment
GEMM_LADDER_MUTANTS=1 takes every mutant, 10 about every tenth; `python tests/all_mutants.py results.json`
does the same on all CPUs and writes down how each ended.
"""

from __future__ import annotations

import os

import pytest
from mutants import mutants
from mutation_runs import CRASHES, HANGS, LIST, MISSED, SURVIVES, all_mutants, listed, outcomes
from mutation_subjects import SUBJECTS

PART = int(os.environ.get("GEMM_LADDER_MUTANTS", "100"))


@pytest.mark.slow
@pytest.mark.parametrize("name", SUBJECTS)
def test_every_fault_is_caught(name: str) -> None:
    reasons, found = listed(), list(outcomes(SUBJECTS[name], PART))
    assert not [str(mutant) for mutant, ended in found if ended in (HANGS, CRASHES)]
    survivors = {mutant.key: str(mutant) for mutant, ended in found if ended == SURVIVES}
    assert not [said for key, said in survivors.items() if key not in reasons], (
        f"not caught, nor in {LIST.name}"
    )
    known = {mutant.key: str(mutant) for mutant, _ in found if mutant.key in reasons}
    assert not [said for key, said in known.items() if key not in survivors], (
        f"caught: take it out of {LIST.name}"
    )


def test_what_is_listed_exists() -> None:
    """And few of them are faults that are missed."""
    every = [mutant.key for subject in SUBJECTS.values() for mutant in all_mutants(subject)]
    reasons = listed()
    assert set(reasons) <= set(every)
    assert all(reasons.values())
    missed = [key for key, reason in reasons.items() if reason.startswith(MISSED)]
    assert len(missed) < 0.01 * (len(every) - len(reasons))


KERNEL = """\
__global__ void kernel(int n) {
    ptx::fence_proxy_async();  // a comment
    if (threadIdx.x < n)
        ptx::mbarrier_wait_parity(full,
                                  parity);
    const int row = n * 2;
}
"""
WAIT = "if (threadIdx.x < n) ptx::mbarrier_wait_parity(full, parity);"


def test_mutants_of_a_small_kernel() -> None:
    found = mutants("kernel.cu", KERNEL)
    assert {(mutant.line, mutant.what, mutant.after) for mutant in found} == {
        (2, "another fence", "ptx::fence_mbarrier_init();"),
        (2, "left out", ";"),
        (3, "the other parity", "if (threadIdx.x < n) ptx::mbarrier_wait_parity(full, (parity) ^ 1);"),
        (3, "left out", "if (threadIdx.x < n) ;"),
        (3, "the bound included", "if (threadIdx.x <= n) ptx::mbarrier_wait_parity(full, parity);"),
        (3, "always", "if (true || (threadIdx.x < n)) ptx::mbarrier_wait_parity(full, parity);"),
        (6, "one more", "const int row = n * (2 + 1);"),
        (6, "one more", "const int row = n * 2 + 1;"),
        (6, "one less", "const int row = n * 2 - 1;"),
        (6, "plus in place of times", "const int row = n + 2;"),
        (2, "after the next", f"{WAIT} ptx::fence_proxy_async();"),
    }
    for mutant in found:
        lines = mutant.text.splitlines()
        assert len(lines) == len(KERNEL.splitlines())
        assert lines[0] == KERNEL.splitlines()[0]
