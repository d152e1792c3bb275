"""A product to measure: its operands, the float64 reference, and how far a result is from that."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from gemm_ladder.arguments import SCALE_BLOCK
from gemm_ladder.measure.shapes import Shape
from gemm_ladder.scales import mn_major
from gemm_ladder.utils import per_block_cast_to_fp8, per_token_cast_to_fp8

# A correct result differs from the reference by its rounding to BF16 (8 bits) and by the tensor core's 14-bit
# additions. A lost or stale tile or a wrong scale gives errors of the order of 1.
MAX_RELATIVE_ERROR = 5e-3
MAX_ELEMENT_ERROR = 5e-2


@dataclass(frozen=True)
class Problem:
    """Operands of one product, all on one device.

    Attributes:
        a, b: float8_e4m3fn [m, k] and [n, k].
        sfa: float32 [m, ceil(k / 128)], MN-major.
        sfb: float32 [ceil(n / 128), ceil(k / 128)].
    """

    shape: Shape
    a: torch.Tensor
    sfa: torch.Tensor
    b: torch.Tensor
    sfb: torch.Tensor

    def reference(self, scaled: bool = True) -> torch.Tensor:
        """float64 [m, n]: the product of the dequantised operands; without the scales if not `scaled`."""
        if not scaled:
            return self.a.double() @ self.b.double().T
        return dequantize(self.a, self.sfa, 1) @ dequantize(self.b, self.sfb, SCALE_BLOCK).T

    def output(self) -> torch.Tensor:
        """A bfloat16 [m, n] for the result, full of NaN."""
        m, n, _ = self.shape
        return torch.full((m, n), float("nan"), dtype=torch.bfloat16, device=self.a.device)


def make_problem(shape: Shape, device: torch.device | str, seed: int = 0) -> Problem:
    """Random normal matrices, cast to FP8 with one scale per 1x128 run of A and per 128x128 block of B."""
    generator = torch.Generator(device).manual_seed(seed)
    m, n, k = shape
    a, sfa = per_token_cast_to_fp8(torch.randn(m, k, generator=generator, device=device))
    b, sfb = per_block_cast_to_fp8(torch.randn(n, k, generator=generator, device=device))
    return Problem(shape, a, mn_major(sfa), b, sfb)


def dequantize(fp8: torch.Tensor, scales: torch.Tensor, rows: int) -> torch.Tensor:
    """float64 [r, k]: the values of FP8 [r, k] with one scale for each block of `rows` x 128."""
    r, k = fp8.shape
    spread = scales.double().repeat_interleave(rows, 0)[:r].repeat_interleave(SCALE_BLOCK, 1)[:, :k]
    return fp8.double() * spread


class Errors(NamedTuple):
    """How far a result is from the reference.

    Attributes:
        relative: ||out - ref|| / ||ref|| over the whole matrix.
        element: the largest |out - ref|, divided by the root mean square of that row of the reference.
    """

    relative: float
    element: float

    @property
    def right(self) -> bool:
        return self.relative <= MAX_RELATIVE_ERROR and self.element <= MAX_ELEMENT_ERROR  # False for NaN

    def worst(self, other: Errors) -> Errors:
        """The larger of each; NaN where one of the two is NaN."""
        return Errors(*(y if y != y or y > x else x for x, y in zip(self, other, strict=True)))


def errors(out: torch.Tensor, reference: torch.Tensor) -> Errors:
    """Compare all of `out` [m, n] with the float64 `reference` [m, n]; NaN where anything is NaN."""
    difference = out.double() - reference
    row = reference.square().mean(dim=1, keepdim=True).sqrt()
    return Errors(
        (difference.norm() / reference.norm()).item(),
        (difference.abs() / row).max().item(),
    )


def describe(error: Errors) -> str:
    return (
        f"its relative error is {error.relative:.2g} and an element is off by {error.element:.2g} of its "
        f"row's root mean square; {MAX_RELATIVE_ERROR:g} and "
        f"{MAX_ELEMENT_ERROR:g} are allowed"
    )
