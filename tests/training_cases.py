"""Calls of the training kernels, placed as a careless caller would: poison around and between the rows of the
inputs, NaN in an output that is to be written, canaries around it and between its rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import gemm_ladder as gl
import numpy as np
import torch
from gemm_ladder.lab.operands import (
    FP8_NAN,
    Operands,
    any_finite,
    normal,
    one_hot,
    powers_of_two,
    small_integers,
)
from gemm_ladder.lab.surroundings import guarded
from gemm_ladder.ref import fp8, metrics, tensor_core
from gemm_ladder.training import launching, operands
from gemm_ladder.training.candidates import CANDIDATES
from gemm_ladder.training.config import Config

CANARY = np.uint32(0x7FC6B6B6).view(np.float32)  # a NaN that no kernel writes
MARGIN = 260  # rows of canaries on each side of an output, more than a tile has
# Beside the tiles that a call may get, what else config_1d1d.cuh distinguishes: how many pairs of scales are
# loaded ahead, what clusters share, one round of stores or several, the order of tiles, one stage.
VARIANTS = (
    Config.of(128, 128, ahead=16, share="A", groups=2),
    Config.of(128, 128, ahead=3, share="B", across=True, band=2),
    Config.of(128, 128, boxes=2),
    Config.of(128, 160, ahead=20, boxes=3, band=1),
    Config.of(128, 192, share="A", boxes=3),
    Config.of(256, 128, share="B", boxes=1, across=True),
    Config.of(256, 96, ahead=12, stages=1),
    Config.of(256, 32, ahead=2, share="A", groups=8),
)
CONFIGS = (*CANDIDATES, *VARIANTS)
Fill = Callable[[np.random.Generator, int, int, int], Operands]
DEVICE = {"emulator": "cpu", "gpu": "cuda"}


def with_row_scales(fill: Fill, rng: np.random.Generator, m: int, n: int, k: int) -> Operands:
    """Operands of a kind of gemm_ladder.lab, with a scale of its own for every row of B and K block."""
    found = fill(rng, m, n, k)
    shape = (n, -(-k // 128))
    exact = fill in (one_hot, small_integers)
    sfb = powers_of_two(rng, shape) if exact else np.exp2(rng.uniform(-2, 2, shape)).astype(np.float32)
    return dataclasses.replace(found, sfb=sfb)


def exact(part: Operands) -> np.ndarray:
    """float64 [m, n]: the product of the dequantised operands."""
    return fp8.dequantize_lhs(part.a, part.sfa) @ fp8.dequantize_lhs(part.b, part.sfb).T


def modelled(part: Operands) -> np.ndarray:
    """float32 [m, n]: the bits that the kernel must give, by the model of its arithmetic."""
    return tensor_core.gemm_1d1d(part.a, part.sfa, part.b, part.sfb)


@dataclasses.dataclass
class Placed:
    """A call on a device.

    Attributes:
        parts: the product of each group; one in a dense call.
        lhs, rhs, d, c: as the functions take them; c may be `d`, or None.
        ks: the k of each group; None in a dense call.
        added: float32 [groups, m, n], what `c` held; zeros where it is None.
    """

    parts: list[Operands]
    lhs: tuple[torch.Tensor, torch.Tensor]
    rhs: tuple[torch.Tensor, torch.Tensor]
    d: torch.Tensor
    c: torch.Tensor | None
    ks: list[int] | None
    added: np.ndarray
    surroundings: torch.Tensor

    def checked(self) -> operands.CheckedCall:
        if self.ks is None:
            return operands.dense(self.lhs, self.rhs, self.d, self.c)
        return operands.k_grouped(self.lhs, self.rhs, self.d, self.ks, self.c, operands.K_MULTIPLE)

    def found(self) -> np.ndarray:
        """float32 [groups, m, n], after checking that nothing was written around the output."""
        everything = self.surroundings.cpu().clone()
        inside = everything.as_strided(self.d.shape, self.d.stride(), self.d.storage_offset())
        result = inside.numpy().copy().reshape(len(self.parts), *self.d.shape[-2:])
        inside.fill_(float(CANARY))
        bits = everything.numpy().view(np.uint32)
        assert np.isin(bits, [CANARY.view(np.uint32), np.uint32(0x7FF6B6B6)]).all(), (
            "written around the output"
        )
        return result

    def check(self, bits: bool = True) -> None:
        """Compare with the reference, every row and tile, and the bits with the model's; without `bits`, a
        result that is the reference's rounded once."""
        for result, part, added in zip(self.found(), self.parts, self.added, strict=True):
            reference = exact(part) + added
            assert metrics.max_row_error(result, reference) < (2e-3 if bits else 1e-6)
            assert metrics.max_tile_error(result, reference, 16, 8) < (2e-3 if bits else 1e-6)
            if bits:
                np.testing.assert_array_equal(result, modelled(part) + added)
            else:
                np.testing.assert_array_equal(result, reference.astype(np.float32))


def place(
    shape: tuple[int, int],
    ks: int | Sequence[int],
    device: str = "cpu",
    c: str = "none",
    fill: Fill = normal,
    gap: int = 0,
    seed: int = 0,
) -> Placed:
    """Make a call: dense if `ks` is a number, else grouped.

    Args:
        shape: (m, n).
        c: "none"; "d": the output itself; "other": another tensor.
        gap: elements of poison between the rows of A and B, and floats of canaries between those of D: a
            multiple of 16.
    """
    (m, n), grouped = shape, not isinstance(ks, int)
    sizes = list(ks) if grouped else [ks]
    rng = np.random.default_rng(m * 1000 + n + sum(sizes) + seed)
    parts = [with_row_scales(fill, rng, m, n, k) for k in sizes]
    codes = []
    for name in ("a", "b"):
        if grouped:
            rows = np.concatenate([getattr(part, name).ravel() for part in parts])
        else:
            rows = np.pad(getattr(parts[0], name), ((0, 0), (0, gap)), constant_values=FP8_NAN)
        placed = guarded(rows, FP8_NAN).on(device).view(torch.float8_e4m3fn)
        codes.append(placed if grouped else placed[:, : sizes[0]])
    scales = []
    for name, rows in (("sfa", m), ("sfb", n)):
        whole = np.concatenate([getattr(part, name).T for part in parts])
        padded = np.full((len(whole), -(-rows // 4) * 4), np.nan, np.float32)
        padded[:, :rows] = whole
        scales.append(guarded(padded, np.nan).on(device).T[:rows])
    groups, pitch = len(sizes), -(-n // 4) * 4 + gap
    around = np.full((MARGIN + groups * (m + (4 if gap else 0)) + MARGIN) * pitch, CANARY, np.float32)
    surroundings = torch.from_numpy(around).to(device)
    inside = surroundings[MARGIN * pitch :]
    d = inside.as_strided((groups, m, n), ((m + (4 if gap else 0)) * pitch, pitch, 1), MARGIN * pitch)
    d.fill_(float("nan"))
    added = np.zeros((groups, m, n), np.float32)
    held: torch.Tensor | None = None
    if c != "none":
        values = (
            rng.integers(-50, 50, added.shape)
            if fill in (one_hot, small_integers)
            else rng.normal(scale=1e5, size=added.shape)
        )
        added = values.astype(np.float32)
        held = torch.from_numpy(added.copy()).to(device)
        if c == "d":
            d.copy_(held)
            held = d
    if not grouped:
        d = d[0]
        held = None if held is None else d if c == "d" else held[0]
    return Placed(
        parts,
        (codes[0], scales[0]),
        (codes[1], scales[1]),
        d,
        held,
        sizes if grouped else None,
        added,
        surroundings,
    )


def run(config: Config, call: Placed, seed: int = 0, num_sms: int = 0) -> None:
    with gl.emulator(seed=seed):
        launching.run(config, call.checked(), num_sms)


__all__ = [
    "CONFIGS",
    "DEVICE",
    "VARIANTS",
    "any_finite",
    "normal",
    "one_hot",
    "place",
    "run",
    "small_integers",
]
