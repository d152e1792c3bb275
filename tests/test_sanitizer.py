"""NVIDIA's compute-sanitizer on every rung: no invalid access, no race, no misused barrier."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import gemm_ladder as gl
import pytest
from families import FAMILIES, name
from gemm_ladder.production.config import Config
from training_cases import CONFIGS as TRAINING_CONFIGS

KERNELS = [name for name, rung in gl.rungs.items() if rung.path.suffix == ".cu"]

# Ragged in m and n, several tiles; ten blocks of k turn a ring of four stages twice and a half. With many
# rows s7 takes its other tile on a GPU of 78 to 132 SMs.
SHAPES = {"few rows": (300, 264, 1280), "many rows": (8500, 136, 640)}
RUNG = """
import sys
import gemm_ladder as gl
import numpy as np
from cases import place
from gemm_ladder.lab.operands import normal
operands = normal(np.random.default_rng(0), *map(int, sys.argv[2:]))
placed = place(operands, "cuda")
gl.rungs[sys.argv[1]](placed.lhs, placed.rhs, placed.out)
assert (placed.bits() == operands.expected_bits(sys.argv[1])).all()
"""
FAMILY = """
import sys
from families import FAMILIES, name, run_family
(config,) = (one for one in FAMILIES if name(one) == sys.argv[1])
run_family(config, "gpu")
"""
TRAINING = """
import sys
from training_cases import CONFIGS, place, run
config = CONFIGS[int(sys.argv[1])]
for shape, ks in (((300, 264), 400), ((136, 72), [128, 0, 384, 256])):
    call = place(shape, ks, "cuda", "d")
    run(config, call, num_sms=2)
    call.check()
"""
TOOLS = ("memcheck", "racecheck", "synccheck")


def sanitizer() -> str | None:
    return shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")


def check(tool: str, program: str, *arguments: str) -> None:
    """Run a Python program under one of compute-sanitizer's tools; skipped where there is none."""
    found = sanitizer()
    if not found:
        pytest.skip("compute-sanitizer is not installed: it comes with the CUDA toolkit")
    run = subprocess.run(
        [found, "--tool", tool, "--error-exitcode", "9", sys.executable, "-c", program, *arguments],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent,
        # Without its pool, torch gives every tensor an allocation of its own, with edges that memcheck sees.
        env=os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
    )
    assert run.returncode == 0 and "0 errors" in run.stdout, run.stdout + run.stderr


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize(
    ("rung", "rows"), [*((rung, "few rows") for rung in KERNELS), ("s7_persistent", "many rows")]
)
def test_clean(rung: str, rows: str, tool: str) -> None:
    gl.rungs[rung].build("cuda")  # outside: the sanitizer would follow the compiler too
    check(tool, RUNG, rung, *map(str, SHAPES[rows]))


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize("config", FAMILIES, ids=name)
def test_production_is_clean(config: Config, tool: str) -> None:
    config.compile("cuda")
    check(tool, FAMILY, name(config))


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize("index", range(len(TRAINING_CONFIGS)))
def test_training_is_clean(index: int, tool: str) -> None:
    TRAINING_CONFIGS[index].compile("cuda")
    check(tool, TRAINING, str(index))
