"""The matrix instructions of all types, and ldmatrix and stmatrix, on the emulator and on a GPU."""

from __future__ import annotations

import ctypes
import functools

import gemm_ladder as gl
import numpy as np
import pytest
from gemm_ladder import build, lab
from gemm_ladder.measure import mma_inputs, mma_probe
from gemm_ladder.ref import emulator, mma
from gemm_ladder.ref.mma import INSTRUCTIONS
from instruction_units import check_fault, run_unit, schedules

FILE = "units_matrices.cu"
TILES = (1, 2, 4, 1, 2, 4)  # of units 0 to 5 and 6 to 11; the last three of each transpose


def held_by_lanes(tiles: np.ndarray, transpose: bool) -> np.ndarray:
    """[lane, tile] words, of tiles [tile, 8, 8] of 16-bit elements."""
    if transpose:
        tiles = tiles.transpose(0, 2, 1)
    return np.ascontiguousarray(tiles).view(np.uint32).reshape(len(tiles), 32).T


@pytest.mark.parametrize("variant", range(6))
def test_ldmatrix(machine: str, variant: int) -> None:
    tiles = np.random.default_rng(variant).integers(0, 2**16, (4, 8, 8), np.uint16)
    expected = np.zeros((32, 4), np.uint32)
    expected[:, : TILES[variant]] = held_by_lanes(tiles, variant >= 3)[:, : TILES[variant]]
    for seed in schedules(machine):
        out = np.zeros((32, 4), np.uint32)
        run_unit(machine, FILE, variant, tiles, out, block=32, shared_bytes=1024, seed=seed)
        np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("variant", range(6))
def test_stmatrix(machine: str, variant: int) -> None:
    tiles = np.random.default_rng(variant).integers(0, 2**16, (4, 8, 8), np.uint16)
    expected = tiles.copy()
    expected[TILES[variant] :] = 0
    lanes = np.ascontiguousarray(held_by_lanes(tiles, variant >= 3))
    for seed in schedules(machine):
        out = np.ones((4, 8, 8), np.uint16)
        run_unit(machine, FILE, 6 + variant, lanes, out, block=32, shared_bytes=1024, seed=seed)
        np.testing.assert_array_equal(out, expected)


def test_ldmatrix_feeds_mma_sync(machine: str) -> None:
    rng = np.random.default_rng(0)
    values = rng.standard_normal((2, 16, 16)).astype(np.float32).view(np.uint32) >> 16
    a, b = values[0].astype(np.uint16), values[1, :, :8].astype(np.uint16)
    expected = mma.multiply(INSTRUCTIONS["mma.f32.bf16.bf16"], a, b.T.copy(), np.zeros((16, 8), np.uint32))
    operands = np.concatenate([a.ravel(), b.ravel()])
    for seed in schedules(machine):
        out = np.zeros((16, 8), np.uint32)
        run_unit(machine, FILE, 12, operands, out, block=32, shared_bytes=1024, seed=seed)
        np.testing.assert_array_equal(out, expected)


# One of each type of operand and of accumulator. On a GPU, `gemm_ladder mma-probe` runs them all.
ON_THE_EMULATOR = [
    "wgmma.f32.e4m3.e4m3",
    "wgmma.f32.bf16.bf16",
    "wgmma.f16.f16.f16",
    "wgmma.f32.tf32.tf32",
    "wgmma.f16.e5m2.e4m3",
    "wgmma.s32.u8.s8.satfinite",
    "mma.f32.f16.f16",
    "mma.f16.e4m3.e5m2",
    "mma.s32.s8.u8",
]


@functools.cache
def probe_library(name: str) -> ctypes.CDLL:
    defines = mma_probe.defines(INSTRUCTIONS[name], 64)
    return build.load(mma_probe.SOURCE, target="emulator", defines=defines).lib


@pytest.mark.parametrize("name", ON_THE_EMULATOR)
def test_probe_on_the_emulator(name: str) -> None:
    """Operands from shared memory and from registers, K-major and MN-major, one instruction and four."""
    instruction = INSTRUCTIONS[name]
    kinds = mma_inputs.kinds_of(instruction)
    seed = 0
    for kind in [
        kinds["any operands and accumulators"],
        next(v for k, v in kinds.items() if k[:5] == "chain"),
    ]:
        operands = mma_inputs.make(instruction, kind, np.random.default_rng(0), 64, 1)
        expected = mma_probe.model(instruction, kind, operands)
        a, b, acc = (np.ascontiguousarray(x) for x in operands)
        for form in mma_probe.forms_of(instruction):
            seed += 1
            d = np.zeros_like(acc)
            pointers = (x.ctypes.data for x in (a, b, acc, d))
            args = mma_probe.ProbeArgs(*pointers, 1, 64, kind.instructions, form.number, kind.scale_d, None)
            with gl.emulator(seed=seed):
                said = emulator.launch(probe_library(name), args, {"a": a, "b": b, "acc": acc, "d": d})
            assert said is None
            np.testing.assert_array_equal(d, expected, form.name)


FAULTS = {
    5: ("missing_wgmma_fence", "wgmma after A's register 0 was written behind wgmma.fence"),
    0: ("divergent_warp", "executes an ldmatrix that differs from its warp's"),
    1: ("misaligned", "stmatrix of 16 bytes at 0x408, which is not a multiple of 16"),
    2: ("data_race", "shared memory at 0x400, which thread"),
    3: ("missing_wgmma_fence", "wgmma after A's register [0-3] was written behind wgmma.fence"),
    4: (
        "divergent_warpgroup",
        "wgmma number 0 differs from the one that another warp of its warpgroup issued",
    ),
}


@pytest.mark.parametrize("which", FAULTS)
def test_faults(which: int) -> None:
    check_fault(which, *FAULTS[which])


def test_integers_like_the_mark_of_what_is_uninitialised(machine: str) -> None:
    """What a compiler puts into such registers is -2 or -1 in each byte, or the integer -1."""
    source = """
    #include "launch.cuh"
    #include "mma.cuh"
    using ptx::Type;
    __global__ void k(const uint32_t* bytes, int* out) {
        const uint32_t a[4] = {bytes[0], bytes[0], bytes[0], bytes[0]}, b[2] = {bytes[1], bytes[1]};
        int d[4] = {out[threadIdx.x], out[threadIdx.x], out[threadIdx.x], out[threadIdx.x]};
        ptx::mma_sync<Type::s32, Type::s8, Type::s8>(d, a, b);
        out[threadIdx.x] = d[0];
    }
    """
    device = "cpu" if machine == "emulator" else "cuda"
    for value in (-1, -2):
        data, out = np.full((2, 4), value, np.int8).view(np.uint32).ravel(), np.full(32, -1, np.int32)
        lab.run(source, data, out, block=32, device=device)
        assert (out == -1 + 32 * value * value).all()
