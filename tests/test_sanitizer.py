"""NVIDIA's compute-sanitizer over every rung, on a GPU: no wild access, no race, no misused barrier."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import gemm_ladder as gl
import pytest

KERNELS = [name for name, rung in gl.rungs.items() if rung.path.suffix == ".cu"]

# Ragged in m and n, several tiles; ten blocks of k turn a ring of four stages twice and a half. With many
# rows s5 takes its other tile on a GPU of 78 to 132 SMs.
SHAPES = {"few rows": (300, 264, 1280), "many rows": (8500, 136, 640)}
PROGRAM = """
import sys
from cases import Case, normal, place
import gemm_ladder as gl
operands = Case("sanitized", *map(int, sys.argv[2:]), normal).operands
placed = place(operands, "cuda")
gl.rungs[sys.argv[1]](placed.lhs, placed.rhs, placed.out)
assert (placed.bits() == operands.expected_bits(sys.argv[1])).all()
"""


def sanitizer() -> str | None:
    return shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "synccheck"])
@pytest.mark.parametrize(
    ("rung", "rows"), [*((rung, "few rows") for rung in KERNELS), ("s5_warp_specialized", "many rows")]
)
def test_clean(rung: str, rows: str, tool: str) -> None:
    found = sanitizer()
    if not found:
        pytest.skip("compute-sanitizer is not installed: it comes with the CUDA toolkit")
    gl.rungs[rung].build("cuda")  # outside: the sanitizer would follow the compiler too
    run = subprocess.run(
        [
            found,
            "--tool",
            tool,
            "--error-exitcode",
            "9",
            sys.executable,
            "-c",
            PROGRAM,
            rung,
            *map(str, SHAPES[rows]),
        ],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent,
        # Without its pool, torch gives every tensor an allocation of its own, with edges that memcheck sees.
        env=os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
    )
    assert run.returncode == 0 and "0 errors" in run.stdout, run.stdout + run.stderr
