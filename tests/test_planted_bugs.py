"""The emulator finds bugs that a GPU may let pass: each test plants one bug (planted_bugs.py) in a rung.

A bug is caught if, in at least one of SEEDS schedules, the emulator reports a fault or the answer is wrong;
and no schedule may show a symptom that is not the bug's own. The control: the unchanged source gives the
right answer to the same problem on all of them.
"""

from __future__ import annotations

import ctypes
import functools

import gemm_ladder as gl
import numpy as np
import pytest
from gemm_ladder import build
from gemm_ladder.arguments import GemmArgs
from gemm_ladder.ref import emulator, tensor_core
from planted_bugs import BUGS, SHAPES, SMS, K, code, rung_of

SEEDS = 20
CONTROL = "control"  # the variant without a bug
# (kernel, index of the bug): a bug of a rung is planted in each kernel of that rung.
PLANTED = [
    (kernel, index)
    for index, bug in enumerate(BUGS)
    for kernel in SHAPES
    if bug.kernel in (kernel, rung_of(kernel))
]


@functools.cache
def problem(m: int, n: int) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
    """Operands, and the bits of their product."""
    rng = np.random.default_rng(7)
    codes = [
        rng.integers(0, 0x60, (rows, K), np.uint8) | rng.integers(0, 2, (rows, K), np.uint8) << 7
        for rows in (m, n)
    ]
    scales = [rng.uniform(0.5, 2.0, (rows, K // 128)).astype(np.float32) for rows in (m, -(-n // 128))]
    operands = codes[0], scales[0], codes[1], scales[1]
    return operands, tensor_core.gemm(*operands)


class Planted:
    """One variant of a rung, as `emulator.launch` wants it. A library holds all variants of a rung, because
    compiling them together is faster."""

    def __init__(self, library: ctypes.CDLL, variant: int | str) -> None:
        self._library = library
        self.gemm_ladder_launch = library[f"gemm_ladder_launch_{variant}"]

    def __getattr__(self, name: str):
        return getattr(self._library, name)


@functools.cache
def planted(rung: str) -> ctypes.CDLL:
    """The rung as it is (CONTROL) and with each of its bugs (their indices), each in a namespace."""
    source = code(gl.rungs[rung].source)
    variants = {CONTROL: source}
    variants |= {index: bug.plant(source) for index, bug in enumerate(BUGS) if bug.rung == rung}
    includes = [line for line in source.splitlines() if line.startswith("#include")]
    parts = []
    for variant, body in variants.items():
        body = body.replace("gemm_ladder_launch", f"gemm_ladder_launch_{variant}")
        body = "\n".join(line for line in body.splitlines() if not line.startswith("#include"))
        parts.append(f"namespace variant_{variant} {{\n{body}\n}}")
    return build.load("\n".join(includes + parts), target="emulator", name=f"bugs_{rung}").lib


def faults(kernel: str, variant: int | str) -> list[gl.EmulatorError | None]:
    """What each schedule that does not give the right answer ends with: an error, or None for a wrong one."""
    library = Planted(planted(rung_of(kernel)), variant)
    m, n = SHAPES[kernel]
    (a, sfa, b, sfb), expected = problem(m, n)
    sfa = np.ascontiguousarray(sfa.T)
    caught = []
    for seed in range(SEEDS):
        d = np.full((m, n), 0x7FA5, np.uint16)
        names = ("a", "sfa", "b", "sfb", "d")
        pointers = {name: x.ctypes.data for name, x in zip(names, (a, sfa, b, sfb, d), strict=True)}
        try:
            with gl.emulator(seed=seed):
                emulator.launch(library, GemmArgs(**pointers, m=m, n=n, k=K, sfa_stride=m, num_sms=SMS))
        except gl.EmulatorError as error:
            caught.append(error)
        else:
            if not np.array_equal(d, expected):
                caught.append(None)
    return caught


@pytest.mark.parametrize(
    ("kernel", "index"), PLANTED, ids=[f"{kernel}: {BUGS[index].wrong}" for kernel, index in PLANTED]
)
def test_a_bug_is_caught(kernel: str, index: int) -> None:
    caught = faults(kernel, index)
    assert caught, f"not caught by any of {SEEDS} seeds"
    unexpected = {
        str(error or "wrong answer")
        for error in caught
        if not any(symptom.matches(error) for symptom in BUGS[index].symptoms)
    }
    assert not unexpected, "\n".join(sorted(unexpected))


@pytest.mark.parametrize("kernel", SHAPES)
def test_a_rung_without_a_bug_is_right_on_every_schedule(kernel: str) -> None:
    assert faults(kernel, CONTROL) == []


def test_each_shape_selects_another_tile() -> None:
    """Otherwise one kernel of s7 would go untested."""
    asked = []
    for kernel, (m, n) in SHAPES.items():
        with gl.emulator(dry=True) as run:
            args = GemmArgs(m=m, n=n, k=K, sfa_stride=m, num_sms=SMS)  # nothing is run, so no tensors
            emulator.launch(Planted(planted(rung_of(kernel)), CONTROL), args)
        asked.append((rung_of(kernel), run.launches[0].shared_bytes))
    assert len(set(asked)) == len(SHAPES)
