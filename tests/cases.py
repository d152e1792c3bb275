"""Operands as a rung takes them: tensors on a device, in the surroundings that show what a kernel touches."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from gemm_ladder.lab.operands import Operands
from gemm_ladder.lab.surroundings import MARGIN, UNWRITTEN, surround, trespass


@dataclasses.dataclass
class Placed:
    """Operands on a device, as a rung takes them."""

    lhs: tuple[torch.Tensor, torch.Tensor]
    rhs: tuple[torch.Tensor, torch.Tensor]
    out: torch.Tensor  # bfloat16 [m, n] inside `surroundings`
    surroundings: torch.Tensor  # int16 [MARGIN + m + MARGIN, n]

    def bits(self) -> np.ndarray:
        """uint16 [m, n], after checking that nothing was written around the output."""
        everything = self.surroundings.cpu().numpy().view(np.uint16)
        assert (said := trespass(everything)) is None, said
        return everything[MARGIN:-MARGIN]

    def untouched(self) -> bool:
        return bool((self.bits() == UNWRITTEN).all())


def place(operands: Operands, device: str = "cpu") -> Placed:
    placed = surround(operands)
    around = torch.from_numpy(placed.around.view(np.int16)).to(device)
    return Placed(
        lhs=(placed.a.on(device).view(torch.float8_e4m3fn), placed.sfa.on(device).T[: len(operands.a)]),
        rhs=(placed.b.on(device).view(torch.float8_e4m3fn), placed.sfb.on(device)),
        out=around[MARGIN:-MARGIN].view(torch.bfloat16),
        surroundings=around,
    )
