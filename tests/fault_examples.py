"""Writes ref/emulator/FAULTS.md, an example of each fault: python tests/fault_examples.py

An example is a case of faults.cu or faults_plain.cu, and the message of a run of it.
"""

from __future__ import annotations

import re
import textwrap
from typing import NamedTuple

import gemm_ladder as gl
import numpy as np
from fault_kernels import PLAIN, REPOSITORY, caught, kinds
from gemm_ladder import lab

PAGE = REPOSITORY / "ref" / "emulator" / "FAULTS.md"
# By fault, the number of a case: of faults_plain.cu for those in PLAIN, else of faults.cu.
CASES = {
    **{"deadlock": 80, "endless_polling": 25, "step_limit": 26, "endless_loop": 4},
    **{"read_during_load": 35, "data_race": 62, "write_during_load": 36, "released_too_early": 74},
    **{"missing_proxy_fence": 38, "missing_wgmma_fence": 40, "accumulator_overwritten": 4},
    **{"uninitialised_register": 70, "accumulator_read": 60, "unfinished_wgmma": 41, "unfinished_load": 27},
    **{"unfinished_store": 42, "uncommitted_store": 8, "mbarrier_uninitialised": 28},
    **{"mbarrier_not_visible": 43, "mbarrier_reinitialised": 65, "mbarrier_overwritten": 22},
    **{"too_many_arrivals": 44, "too_many_bytes": 18, "named_barrier_mismatch": 15},
    **{"cluster_barrier_order": 17, "missing_dependency_wait": 52, "divergent_warp": 77},
    **{"divergent_warpgroup": 1, "block_not_started": 45, "block_ended": 76, "global_out_of_bounds": 0},
    **{"array_out_of_bounds": 8, "written_twice": 7, "crashed": 5, "out_of_bounds": 24, "misaligned": 21},
    **{"invalid_operand": 9, "unsupported": 5},
}
CHOICES = {"step_limit": {"max_steps": 20}}
WITHOUT = {"host"}  # the emulator itself is at fault
HEAD = """\
# An example of each fault

Each is a case of the kernel in [faults.cu](../../tests/faults.cu) or, for what any C++ can do wrong, in
[faults_plain.cu](../../tests/faults_plain.cu), and the message of a run of it, with lines of these files.
`smem` is the block's shared memory, `tile` a descriptor of it, `barrier` a place for an mbarrier in it.
`load` starts a TMA load of 64 rows of 128 bytes, on an mbarrier that it initialises; `multiply` issues and
commits a WGMMA. [README.md](README.md#faults) has a table of what the faults mean. `host` has no example: it
says that the emulator itself has no memory or no thread.

Written by `python tests/fault_examples.py`; [test_faults.py](../../tests/test_faults.py) compares it with
runs.
"""


class Example(NamedTuple):
    """A case's text, and the message of a run of it."""

    code: str
    message: str


def code_of(fault: str) -> str:
    """The text of a fault's case, without `case` and the return at its end."""
    source = REPOSITORY / "tests" / ("faults_plain.cu" if fault in PLAIN else "faults.cu")
    text = source.read_text(encoding="utf-8")
    cases = dict(re.findall(r"^ {8}case (\d+):(.*?)(?=^ {8}case|^ {8}default|^ {4}\})", text, re.M | re.S))
    number = CASES[fault]
    comment, _, statements = cases[str(number)].partition("\n")
    while not statements.strip():  # it has those of the next case
        number += 1
        statements = cases[str(number)].partition("\n")[2]
    kept = re.sub(r"\n *return;\s*$", "\n", textwrap.dedent(statements))
    return f"{comment.strip()}\n{kept}".strip()


def caught_by(fault: str, seed: int) -> gl.EmulatorError | None:
    if fault not in PLAIN:
        return caught(CASES[fault], seed, **CHOICES.get(fault, {}))
    source = REPOSITORY / "tests" / "faults_plain.cu"
    found = lab.sweep(source, CASES[fault], np.zeros((64, 64), np.float32), grid=2, block=128, seeds=[seed])
    return found.faults.get(seed)


def example(fault: str, seeds: range = range(64)) -> Example:
    """The first of the seeds with which the case ends in this fault."""
    for seed in seeds:
        error = caught_by(fault, seed)
        if error is not None and error.what == fault:
            return Example(code_of(fault), str(error))
    raise AssertionError(f"no seed of {seeds} ends in {fault}")


def written(fault: str, shown: Example) -> str:
    lines = [
        line
        for part in shown.message.splitlines()
        for line in textwrap.wrap(part, 118, subsequent_indent="  ", break_on_hyphens=False)
    ]
    said = "\n".join(lines)
    return f"\n## {fault}\n\n```cpp\n{shown.code}\n```\n\n```\n{said}\n```\n"


def read() -> dict[str, Example]:
    """The examples of the page, by fault."""
    pattern = r"^## (\w+)\n\n```cpp\n(.*?)\n```\n\n```\n(.*?)\n```$"
    found = re.findall(pattern, PAGE.read_text(encoding="utf-8"), re.M | re.S)
    return {fault: Example(code, message) for fault, code, message in found}


def words(message: str) -> str:
    """A message without places, numbers and line breaks, which may differ between compilers."""
    message = re.sub(r"\s\([^()]*\.cu:\d+[^()]*\)|\s(?=\[)", "", message)
    return " ".join(re.sub(r"0x[0-9a-f]+|\d+", "#", message).split())


if __name__ == "__main__":
    faults = [kind for kind in kinds() if kind not in WITHOUT]
    PAGE.write_text(HEAD + "".join(written(fault, example(fault)) for fault in faults), encoding="utf-8")
    print(f"Written: {PAGE}")
