"""Operands in memory the way a careless caller has them: poison right before and after every input and in the
padding of A's scales, NaN in the output, and rows of canaries around it."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
from gemm_ladder.arguments import TMA_ALIGNMENT, align
from gemm_ladder.lab.operands import Operands

if TYPE_CHECKING:
    import torch

UNWRITTEN = 0x7FA5  # BF16: a NaN that no kernel writes, theirs is 0x7FFF
CANARY = 0x7FB6  # another one
# Large enough that a kernel that writes a whole tile too far is reported, and does not crash the process.
MARGIN = 256  # rows of canaries on each side of the output
GUARD = 1 << 16  # bytes of poison on each side of an input


@dataclasses.dataclass(frozen=True)
class Guarded:
    """An array between GUARD bytes of poison.

    Attributes:
        flat: all of it, the poison too.
        shape: of the array in its middle.
    """

    flat: np.ndarray
    shape: tuple[int, ...]

    @property
    def array(self) -> np.ndarray:
        return self.flat[self._inside].reshape(self.shape)

    def on(self, device: str | torch.device) -> torch.Tensor:
        """The array, as a part of a tensor that has the poison too."""
        import torch

        return torch.from_numpy(self.flat).to(device)[self._inside].view(self.shape)

    @property
    def _inside(self) -> slice:
        guard = GUARD // self.flat.itemsize
        return slice(guard, self.flat.size - guard)


def guarded(values: np.ndarray, poison: float) -> Guarded:
    """A copy of an array between GUARD bytes of poison."""
    guard = GUARD // values.itemsize
    flat = np.full(values.size + 2 * guard, poison, values.dtype)
    flat[guard : guard + values.size] = values.ravel()
    return Guarded(flat, values.shape)


@dataclasses.dataclass(frozen=True)
class Surrounded:
    """A launch's memory.

    Attributes:
        a, b: uint8 [m, k] and [n, k], or uint16 if they are BF16.
        sfa: float32 [ceil(k / 128), align(m, 4)], as kernels read A's scales; the columns from m on are NaN.
        sfb: float32 [ceil(n / 128), ceil(k / 128)]. Both are None where there are no scales.
        around: uint16 [MARGIN + m + MARGIN, n], the output between canaries.
    """

    a: Guarded
    sfa: Guarded | None
    b: Guarded
    sfb: Guarded | None
    around: np.ndarray

    @property
    def inputs(self) -> dict[str, Guarded]:
        """Those that there are, by the names of GemmArgs."""
        named = {"a": self.a, "sfa": self.sfa, "b": self.b, "sfb": self.sfb}
        return {name: one for name, one in named.items() if one is not None}

    @property
    def out(self) -> np.ndarray:
        """uint16 [m, n], the output."""
        return self.around[MARGIN:-MARGIN]


def surround(operands: Operands) -> Surrounded:
    """Put operands into memory, and an output that nothing has been written to."""
    m, n, _ = operands.shape
    padded = np.full((operands.sfa.shape[1], align(m, TMA_ALIGNMENT // 4)), np.nan, np.float32)
    padded[:, :m] = operands.sfa.T
    around = np.full((MARGIN + m + MARGIN, n), CANARY, np.uint16)
    around[MARGIN : MARGIN + m] = UNWRITTEN
    return Surrounded(
        a=guarded(operands.a, operands.nan),
        sfa=guarded(padded, np.nan) if operands.scaled else None,
        b=guarded(operands.b, operands.nan),
        sfb=guarded(operands.sfb, np.nan) if operands.scaled else None,
        around=around,
    )


def trespass(around: np.ndarray) -> str | None:
    """None if only the output was written, or else a sentence that says where something was written besides.

    Args:
        around: uint16 [MARGIN + m + MARGIN, n], after a launch.
    """
    m = len(around) - 2 * MARGIN
    for begin, end, where in ((0, MARGIN, "above its first row"), (MARGIN + m, None, "below its last row")):
        rows, columns = np.nonzero(around[begin:end] != CANARY)
        if len(rows):
            first = int(rows[0]) + begin - MARGIN
            return (
                f"something was written outside D, {where}: {len(rows)} values, one of them where "
                f"D[{first}, {int(columns[0])}] would be"
            )
    return None
