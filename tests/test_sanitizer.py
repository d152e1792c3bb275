"""NVIDIA's compute-sanitizer on every rung: no invalid access, no race, no misused barrier."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import gemm_ladder as gl
import pytest
import torch
from families import FAMILIES, name
from gemm_ladder.casts.kernel import KERNELS as KERNELS_OF_CASTS
from gemm_ladder.casts.kernel import Kernel
from gemm_ladder.layers import choosing, combining, placing, scattering, silu_backward, turning
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
CAST = """
import sys
import torch
from cast_cases import Placed, columns, numbers, spaced, weight_for
kind, before = sys.argv[1:]
def check(x, k, **given):
    cast = Placed.of(kind, before, x, True, **weight_for(before, k, x.dtype, "cuda"), **given)
    cast.run()
    cast.check()
def integers(*values):
    return torch.tensor(values, dtype=torch.int32, device="cuda")
for m, k, gap, rows in ((130, 264, 8, None), (20, 137, 3, None), (1600, 2176, 0, None), (140, 136, 8, 12)):
    x = spaced(numbers((rows or m, columns(before, k)), torch.bfloat16), "cuda", gap)
    check(x, k, **({"rows": integers(*range(-15, 3 * m - 15, 3))} if rows else {}))
x = numbers((3, 130, columns(before, 136)), torch.bfloat16).cuda()
check(x, 136, **({"masked_m": integers(0, 2**31 - 1, 7)} if kind == "per_token" else {}))
if kind == "per_channel_turned":
    check(numbers((384, columns(before, 136)), torch.bfloat16).cuda(), 136, ks=integers(128, -7, 2**31 - 1))
"""
BACKWARD = """
import torch
from gemm_ladder.layers import silu_backward, turning
from test_layers_kernels import codes, numbers
for shape in ((144, 272), (2, 80, 400)):
    given = codes(*shape).cuda()
    assert torch.equal(turning.by_kernel(given), given.mT)
factors = torch.ones(17, device="cuda")
silu_backward.by_kernel(numbers(17, 2 * 272, 0).cuda(), numbers(17, 272, 1).cuda(), factors)
torch.cuda.synchronize()
"""
COMBINE = """
import torch
from gemm_ladder.casts.kernel import INPUTS
from test_layers_combining import by_kernel, check_same, choices, expected, numbers
for hidden, top_k in ((144, 3), (1040, 16)):
    rows = numbers((40, hidden), torch.bfloat16).cuda()
    for dtype in INPUTS:
        given = rows, *choices(9, top_k, dtype, "cuda")
        check_same(by_kernel(*given, dtype), expected(*given, dtype))
"""
PLACE = """
import torch
from gemm_ladder.layers import routing, scattering
from gemm_ladder.layers.routing import LAYOUTS
from layer_cases import choices
from test_layers_choosing import SIZES, distinct_logits
for tokens, experts, top_k, groups, kept in SIZES:
    routing.route(distinct_logits(tokens, experts).cuda(), top_k, num_groups=groups, top_groups=kept)
for tokens, top_k, experts in ((3, 2, 4), (129, 6, 64), (700, 8, 160)):
    for layout in LAYOUTS:
        given = choices(tokens, top_k, experts)
        found, wanted = routing.place(given.cuda(), experts, layout), routing.place(given, experts, layout)
        assert torch.equal(found.places.cpu(), wanted.places) and torch.equal(found.rows.cpu(), wanted.rows)
    codes = torch.zeros(tokens, 256, dtype=torch.float8_e4m3fn, device="cuda")
    places = routing.place(given.cuda(), experts, "masked").places
    routing.in_masked_layout(codes, torch.ones(tokens, 2, device="cuda"), places, experts, tokens)
    for layout in LAYOUTS:
        placed = routing.place(given.cuda(), experts, layout)
        scattering.in_layout(torch.ones(tokens, 272, device="cuda"), placed, False)
torch.cuda.synchronize()
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


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize(
    "kernel",
    [kernel for kernel in KERNELS_OF_CASTS if kernel.dtype == torch.bfloat16],
    ids=lambda one: one.name,
)
def test_casts_are_clean(kernel: Kernel, tool: str) -> None:
    kernel.compile("cuda")
    check(tool, CAST, kernel.kind, kernel.before)


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.parametrize("tool", TOOLS)
def test_combining_is_clean(tool: str) -> None:
    combining.KERNEL.compile_for("cuda")
    check(tool, COMBINE)


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.parametrize("tool", TOOLS)
def test_a_backward_pass_is_clean(tool: str) -> None:
    for kernel in (turning.KERNEL, silu_backward.KERNEL):
        kernel.compile_for("cuda")
    check(tool, BACKWARD)


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.parametrize("tool", TOOLS)
def test_placing_is_clean(tool: str) -> None:
    for kernel in (choosing.KERNEL, *placing.KERNELS, scattering.KERNEL):
        kernel.compile_for("cuda")
    check(tool, PLACE)
