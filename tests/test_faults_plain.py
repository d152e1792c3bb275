"""What any C++ does wrong is named: memory that is not the kernel's, no end, crashes (faults_plain.cu)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from fault_kernels import PLAIN
from gemm_ladder import lab

SOURCE = Path(__file__).with_name("faults_plain.cu")


class Fault(NamedTuple):
    """An error's `what`, a part of its message as a regular expression, a text of the line that it names."""

    what: str
    message: str
    line: str | None = None


FAULTS = (
    Fault(
        "global_out_of_bounds",
        r"reads 4 bytes at tensor\[64, 2\], outside tensor of shape 64 x 64: 8 bytes behind its end",
        "tensor[64 * 64 + 2]",
    ),
    Fault(
        "global_out_of_bounds",
        r"writes 4 bytes at tensor\[-1, 63\], outside tensor of shape 64 x 64: 4 bytes before",
        "tensor[-1] = 1.0f",
    ),
    Fault("global_out_of_bounds", r"reads local memory of thread \d+, which only that thread can use"),
    Fault(
        "endless_loop", r"has run for a second without an instruction: an endless loop", "while (threadIdx"
    ),
    Fault(
        "endless_loop",
        r"has run for long without an instruction that changes anything, and nothing else happens",
        "while (*static_cast<volatile float*>(tensor)",
    ),
    Fault("crashed", r"has used up its stack"),
    Fault("crashed", r"reaches code that is not to be reached"),
    Fault(
        "written_twice",
        r"writes tensor\[0, 5\], which block [01] has written: nothing orders the two",
        "tensor[5] = 1.0f;",
    ),
    Fault("array_out_of_bounds", r"index 4 of an array of type 'float \[4\]'"),
)
BY_ONE_THREAD = ("tensor[", "while (threadIdx", "not to be reached")  # thread 70, which is lane 6 of warp 2


def test_each_kind_is_tested() -> None:
    assert {fault.what for fault in FAULTS} == PLAIN


@pytest.mark.parametrize("which", range(len(FAULTS)))
def test_a_fault_is_reported_on_every_schedule_with_its_line(which: int) -> None:
    expected = FAULTS[which]
    seeds = 1 if expected.what == "endless_loop" else 4  # which takes seconds
    found = lab.sweep(SOURCE, which, np.zeros((64, 64), np.float32), grid=2, block=128, seeds=seeds)
    assert len(found.faults) == seeds
    for error in found.faults.values():
        assert error.what == expected.what and re.search(expected.message, str(error)), error
        if any(text in f"{expected.message} {expected.line}" for text in BY_ONE_THREAD):
            assert (error.warp, error.lane) == (2, 6)
        if expected.line:
            file, number = error.line.split(":")
            assert file == SOURCE.name and expected.line in SOURCE.read_text().splitlines()[int(number) - 1]
            assert str(error).endswith(f"({error.line})")
