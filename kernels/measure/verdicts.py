"""What a measurement of a product means, in one sentence: whether FP8 pays there, which library is faster,
and what bounds the time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from gemm_ladder.figures.measured import PEERS
from gemm_ladder.figures.production import BLOCK_SCALED, RUNG
from gemm_ladder.measure import timing
from gemm_ladder.measure.shapes import Cell

BF16 = "cublas_bf16"
LEVEL = 0.02  # times that differ by less are called level
SIDE = 8192  # of the square product that shows what the tensor cores reach
COPIED = 1 << 30  # bytes


class Rates(NamedTuple):
    """What the GPU reaches: bytes per microsecond in a copy, read and written ones counted, and FP8
    operations per microsecond in a large product without promotion."""

    memory: float
    tensor_cores: float


def rates(device: torch.device) -> Rates:
    """Measure both on this GPU, in this run."""
    source, target = (torch.empty(COPIED, dtype=torch.uint8, device=device).random_() for _ in range(2))
    a, b = (
        torch.randn(SIDE, SIDE, device=device).clamp_(-448, 448).to(torch.float8_e4m3fn) for _ in range(2)
    )
    one = torch.ones((), device=device)

    def product() -> torch.Tensor:
        return torch._scaled_mm(
            a, b.T, scale_a=one, scale_b=one, out_dtype=torch.bfloat16, use_fast_accum=True
        )

    target.copy_(source)
    product()  # what a first call sets up cannot be captured
    copied, multiplied = (
        min(timing.graph_times([call] * 4, device)) for call in (lambda: target.copy_(source), product)
    )
    return Rates(2 * COPIED / copied, 2 * SIDE**3 / multiplied)


def verdict(cell: Cell, us: Mapping[str, float], reached: Rates, state: str) -> str:
    """The sentence about one product.

    Args:
        us: microseconds by implementation, in the state that is named; ours is among them.
    """
    return f"{cell} ({state}): {pays(us)}; {against(us)}; {bound(cell, us[RUNG], reached)}."


def pays(us: Mapping[str, float]) -> str:
    """Whether FP8 is faster than BF16."""
    if BF16 not in us:
        return "BF16 was not measured"
    gain = us[BF16] / us[RUNG]
    if gain > 1 + LEVEL:
        return f"FP8 pays, {gain:.2f} times as fast as BF16"
    if gain < 1 - LEVEL:
        return f"FP8 does not pay, BF16 is {1 / gain:.2f} times as fast"
    return "FP8 and BF16 take the same time"


def against(us: Mapping[str, float]) -> str:
    """Which libraries with the same scales are slower and which are faster."""
    words: dict[str, list[str]] = {"wins against": [], "is level with": [], "loses to": []}
    for impl in BLOCK_SCALED:
        if impl in us:
            ratio = us[impl] / us[RUNG]
            how = "wins against" if ratio > 1 + LEVEL else "is level with"
            how = "loses to" if ratio < 1 - LEVEL else how
            words[how].append(f"{PEERS[impl]} ({us[RUNG]:.4g} us against {us[impl]:.4g})")
    said = [f"{how} {' and '.join(who)}" for how, who in words.items() if who]
    return f"gemm_ladder {', '.join(said)}" if said else "no library with the same scales was measured"


def bound(cell: Cell, us: float, reached: Rates) -> str:
    """What the time goes to: memory or the tensor cores, if at least half of it is what they need, or else
    the fixed costs of the launch, of the first loads and of the last stores."""
    memory, tensor_cores = cell.bytes / reached.memory, cell.flops / reached.tensor_cores
    if max(memory, tensor_cores) < us / 2:
        return (
            f"fixed costs of the launch bound it: of its {us:.4g} us memory needs {memory:.2g} and the "
            f"tensor cores {tensor_cores:.2g}"
        )
    if memory >= tensor_cores:
        return f"memory bounds it: moving {cell.bytes / 1e6:.3g} MB takes {memory:.3g} of its {us:.4g} us"
    return f"the tensor cores bound it: they need {tensor_cores:.3g} of its {us:.4g} us"
