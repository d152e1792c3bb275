"""What the accumulators of WGMMAs held: their values after each wait, as the emulator has recorded them."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from gemm_ladder.errors import InputError
from gemm_ladder.lab.recording import Recording
from gemm_ladder.ref.emulator import interface
from gemm_ladder.ref.mma import Type

_WARPS = 4  # of a warpgroup
_WARP_ROWS = 16
_DTYPES = {Type.F32: np.dtype(np.float32), Type.F16: np.dtype(np.float16), Type.S32: np.dtype(np.int32)}
_NAMES = {Type.F32: "FP32", Type.F16: "FP16", Type.S32: "INT32"}
# What the emulator's registers hold while a WGMMA is in flight: `poison` of core/wgmma.hpp.
_POISON = {Type.F32: np.nan, Type.F16: np.nan, Type.S32: 0x7FC00000}


class Use(NamedTuple):
    """From the WGMMA that is the first to use a warp's accumulators to the wait that gives them back.

    Attributes:
        begin, end: indices of the events; end = -1: the run ended before.
        values: of the warp's 16 rows, after the wait; None: they were left out, or the run ended before.
    """

    begin: int
    end: int
    values: np.ndarray | None

    def ended(self, event: int) -> bool:
        return 0 <= self.end <= event


@dataclass
class Accumulator:
    """The accumulators of a warpgroup's WGMMAs: 64 rows, warp 0's 16 first, of `n` columns.

    Attributes:
        number: in the order in which the warpgroup's WGMMAs have used them first.
        uses: of each of its warps, in the order of time.
    """

    block: int
    warpgroup: int
    number: int
    type: Type
    n: int
    uses: list[list[Use]] = field(default_factory=lambda: [[] for _ in range(_WARPS)])

    @property
    def name(self) -> str:
        return f"warpgroup {self.warpgroup}, accumulator {self.number}"

    def at(self, event: int) -> np.ndarray | None:
        """The values after an event, [64, n]; rows in flight are NaN. None before the first WGMMA."""
        last = [_last(uses, event) for uses in self.uses]
        if not any(last):
            return None
        values = np.full((_WARPS * _WARP_ROWS, self.n), _POISON[self.type], _DTYPES[self.type])
        for warp, use in enumerate(last):
            if use is None or not use.ended(event):
                continue
            if use.values is None:
                raise InputError(
                    f"The values of {self.name} at this event were left out: the emulator keeps "
                    f"{interface.KEPT_BYTES >> 20} MB of them a launch. A smaller grid or K, or an "
                    "earlier event, is needed."
                )
            values[warp * _WARP_ROWS : (warp + 1) * _WARP_ROWS] = use.values
        return values

    def state(self, event: int) -> str | None:
        """Such as "64 x 128 of FP32, in flight in warps 0, 1"; None before the first WGMMA."""
        last = [_last(uses, event) for uses in self.uses]
        if not any(last):
            return None
        flying = [
            self.warpgroup * _WARPS + warp for warp, use in enumerate(last) if use and not use.ended(event)
        ]
        said = f"64 x {self.n} of {_NAMES[self.type]}"
        if not flying:
            return f"{said}, complete"
        warps = f"warp{'s' * (len(flying) > 1)} {', '.join(map(str, flying))}"
        return f"{said}, in flight" if len(flying) == _WARPS else f"{said}, in flight in {warps}"


def accumulators(recording: Recording, cluster: int) -> list[Accumulator]:
    """Those of a cluster, by block, warpgroup and number."""
    rows, values = recording.accumulators
    found: dict[tuple[int, ...], Accumulator] = {}
    numbers: dict[tuple[int, int], int] = defaultdict(int)
    for row in rows[rows["cluster"] == cluster]:
        fields = ("block", "warp", "number", "type", "n", "begin", "end", "offset")
        block, warp, number, kind, n, begin, end, offset = (int(row[name]) for name in fields)
        mine = block, warp // _WARPS
        key = (*mine, number, kind, n)  # another kernel of the same launcher may have others of that number
        if key not in found:
            found[key] = Accumulator(*mine, numbers[mine], Type(kind), n)
            numbers[mine] += 1
        one = found[key]
        kept = None
        if offset >= 0:
            dtype = _DTYPES[one.type]
            size = _WARP_ROWS * one.n * dtype.itemsize
            kept = values[offset : offset + size].view(dtype).reshape(_WARP_ROWS, one.n)
        one.uses[warp % _WARPS].append(Use(begin, end, kept))
    return sorted(found.values(), key=lambda one: (one.block, one.warpgroup, one.number))


def _last(uses: list[Use], event: int) -> Use | None:
    """The last of the uses that began at the event or before it."""
    place = bisect_right(uses, event, key=lambda use: use.begin)
    return uses[place - 1] if place else None
