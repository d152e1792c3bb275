"""Calls for which the fast path has a plan, without a GPU: for CPU tensors, with a launcher that notes its
arguments."""

from __future__ import annotations

import ctypes
import functools

import gemm_ladder as gl
import numpy as np
import pytest
import torch
from call_arguments import GROUPS, MAX_M, Arguments, K, M, N, grouped_arguments
from cases import place
from gemm_ladder.arguments import GroupedArgs
from gemm_ladder.lab.operands import normal
from gemm_ladder.production import fast_path

EXPECTED_M, NUM_SMS = 7, 99
HINTED = ("masked", "psum")  # the layouts whose calls have an expected m

PUBLIC = {
    "dense": gl.fp8_gemm_nt,
    "contiguous": gl.m_grouped_fp8_gemm_nt_contiguous,
    "masked": gl.m_grouped_fp8_gemm_nt_masked,
    "psum": functools.partial(
        gl.m_grouped_fp8_gemm_nt_contiguous, use_psum_layout=True, expected_m_for_psum_layout=EXPECTED_M
    ),
}

CPU = torch.device("cpu")

notes: list[dict[str, int]] = []
refusal = ctypes.create_string_buffer(b"no such luck")
answer: list[int | None] = [None]


@ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.POINTER(GroupedArgs))
def launcher(arguments):
    """Stands for the launcher of a kernel, and notes what it is given."""
    notes.append({name: getattr(arguments.contents, name) for name in names(GroupedArgs)})
    return answer[0]


def names(structure: type[ctypes.Structure]) -> list[str]:
    return [field[0] for base in reversed(structure.__mro__) for field in base.__dict__.get("_fields_", ())]


@pytest.fixture(autouse=True, params=["torch's C++ functions", "Python's functions"])
def no_plans(request):
    """Every test of the modules that import this runs with and without what torch may lack."""
    assert fast_path.load(), "fast_path.cpp is not built"
    api = fast_path._api()
    for field in (*fast_path._TORCH_CPP, *fast_path._OFFSETS):
        assert getattr(api, field), f"this torch lacks {field}"
        if request.param == "Python's functions":
            setattr(api, field, 0)
    fast_path._library.gemm_ladder_queue_fill(ctypes.byref(api))
    fast_path.forget()
    notes.clear()
    answer[0] = None
    yield
    fast_path.forget()
    fast_path._library.gemm_ladder_queue_fill(ctypes.byref(fast_path._api()))


def call_of(layout: str, m: int = M) -> Arguments:
    if layout != "dense":
        return grouped_arguments(layout)
    placed = place(normal(np.random.default_rng(0), m, N, K))
    return Arguments(lhs=placed.lhs, rhs=placed.rhs, out=placed.out)


def add(layout: str, m: int | None = None, n: int = N, k: int = K, last: int = 0, sms: int = NUM_SMS) -> None:
    groups, expected_m = 1 if layout == "dense" else GROUPS, EXPECTED_M if layout in HINTED else 0
    m = m or (MAX_M if layout == "masked" else M)
    fast_path.add(CPU, layout, (m, last or m), n, k, groups, expected_m, launcher, sms, (0, 128))


def queue(layout: str, arguments: Arguments) -> dict[str, int] | None:
    """The arguments of the launch, or None if nothing was launched."""
    result = ask(layout, arguments)
    assert (result, len(notes)) in ((None, 1), (False, 0), (True, 0))
    return notes.pop() if notes else None


def ask(layout: str, arguments: Arguments) -> fast_path.Queued:
    """What the fast path answers."""
    further = (EXPECTED_M,) if layout in HINTED else ()
    return fast_path.queue[layout](*arguments.values(), *further)
