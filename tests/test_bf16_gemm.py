"""A BF16 kernel with a two-stage ring, written with the wrappers alone: against NumPy, and bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
from gemm_ladder import lab
from gemm_ladder.ref import mma
from instruction_units import HERE

SOURCE = HERE / "bf16_gemm.cu"
TILE, SHARED = 128, 2 * 2 * 128 * 128 + 128 * 128 * 2 + 32


def bf16(x: np.ndarray) -> np.ndarray:
    """Bits, rounded to nearest even."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def f32(x: np.ndarray) -> np.ndarray:
    return (x.astype(np.uint32) << 16).view(np.float32)


def operands(m: int, n: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(m + n + k)
    return bf16(rng.standard_normal((m, k))), bf16(rng.standard_normal((n, k)))


def expected(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """BF16 bits, by the tensor core's arithmetic: 16 of K at a time, with zeros behind the last."""
    pad = -a.shape[1] % 64
    a, b = np.pad(a, ((0, 0), (0, pad))), np.pad(b, ((0, 0), (0, pad)))
    instruction = mma.INSTRUCTIONS["wgmma.f32.bf16.bf16"]
    acc = mma.multiply(instruction, a, b, np.zeros((len(a), len(b)), np.uint32))
    return bf16(acc.view(np.float32))


def launch(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> tuple[list, dict]:
    maps = [lab.tensor_map(x, (TILE, 64), 128, "bf16") for x in (a, b, out)]
    grid = [-(-out.shape[1] // TILE), -(-out.shape[0] // TILE)]
    return [*maps, a.shape[1]], {"grid": grid, "block": 384, "shared_bytes": SHARED}


@pytest.mark.parametrize(("m", "n", "k"), [(128, 128, 64), (100, 136, 192), (200, 128, 520)])
def test_bits_and_numbers(machine: str, m: int, n: int, k: int) -> None:
    a, b = operands(m, n, k)
    out = np.full((m, n), 0xFFFF, np.uint16)
    args, how = launch(a, b, out)
    lab.run(SOURCE, *args, **how, device="cpu" if machine == "emulator" else "cuda", seed=1)
    np.testing.assert_array_equal(out, expected(a, b))
    product = f32(a).astype(np.float64) @ f32(b).astype(np.float64).T
    bound = np.abs(f32(a)).astype(np.float64) @ np.abs(f32(b)).astype(np.float64).T
    # BF16 keeps 8 bits, and every instruction truncates its sum to 24.
    assert (np.abs(f32(out) - product) <= 2.0**-8 * np.abs(product) + k / 16 * 2.0**-22 * bound).all()


def test_many_schedules() -> None:
    a, b = operands(64, 72, 328)
    out = np.zeros((64, 72), np.uint16)
    args, how = launch(a, b, out)
    found = lab.sweep(SOURCE, *args, **how, seeds=24)
    assert found.sound, str(found)
    np.testing.assert_array_equal(out, expected(a, b))


BUGS = {
    "a stage is released before it has been read": (
        "        ptx::wgmma_wait_group<0>();\n        if (ptx::laneid() == 0)",
        "        if (ptx::laneid() == 0)",
    ),
    "the wrong parity": ("(turn & 1) ^ 1)", "turn & 1)"),
    "the loads are not waited for": ("ptx::mbarrier_wait_parity(smem + kFull + s * 8, turn & 1);", ""),
    "no proxy fence": ("    ptx::fence_proxy_async();\n", ""),
    "no barrier before the store": ("    ptx::bar_sync(1, kConsumers * 128);\n", ""),
    "an arrival too few": ("kConsumers * 4)", "kConsumers * 4 + 1)"),
    "no wgmma.fence": ("        ptx::wgmma_fence();\n", ""),
}


def test_one_thread_may_release_a_stage_for_its_warpgroup() -> None:
    """As in CUTLASS's pipelines: wgmma.wait_group waits for the products of the whole warpgroup."""
    before = "if (ptx::laneid() == 0) ptx::mbarrier_arrive(smem + kEmpty + s * 8);"
    text = SOURCE.read_text()
    assert text.count(before) == 1
    a, b = operands(128, 128, 512)
    args, how = launch(a, b, np.zeros((128, 128), np.uint16))
    after = "if (threadIdx.x % 128 == 0) ptx::mbarrier_arrive(smem + kEmpty + s * 8, 4);"
    found = lab.sweep(text.replace(before, after), *args, **how, seeds=6)
    assert found.sound, found


@pytest.mark.parametrize("bug", BUGS)
def test_bugs_are_found(bug: str) -> None:
    before, after = BUGS[bug]
    text = SOURCE.read_text()
    assert text.count(before) == 1
    a, b = operands(128, 128, 512)
    args, how = launch(a, b, np.zeros((128, 128), np.uint16))
    found = lab.sweep(text.replace(before, after), *args, **how, seeds=6)
    assert not found.sound
