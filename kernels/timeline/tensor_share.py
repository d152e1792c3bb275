"""The one number that says how busy an SM's tensor cores are: the tensor-core share.

It is the operations that the WGMMAs of an SM did, over those that its tensor cores could have done in the
same time, 8192 in a cycle. All thread blocks on the SM count, so that rungs with one block on an SM and rungs
with two compare. The same number comes out of a kernel's time (`of_time`), out of a timeline (`of_spans`),
and out of ncu, whose name for it is the tensor pipe's percentage of its peak.

A timeline also says for how much of the time at least one WGMMA was in flight: from its issue until its warp
has seen its end. That alone says little, because a WGMMA that waits behind another is in flight too, and so
is one that has ended unseen. The share is that time multiplied by the rate at which the WGMMAs in flight went
on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from gemm_ladder.figures.timeline import length, union
from gemm_ladder.production.prediction import WGMMA_FLOPS
from gemm_ladder.timeline.spans import TENSOR_CORE, Span
from gemm_ladder.timeline.stamps import WARPS_A_GROUP


class TensorShare(NamedTuple):
    """What an SM's tensor cores did in a window of time.

    Attributes:
        share: operations done over operations possible, 0 to 1.
        in_flight: the part of the time in which at least one WGMMA was in flight, 0 to 1.
        window: the length of the window, in the unit of the spans.
    """

    share: float
    in_flight: float
    window: float


def of_time(tflops: float, num_sms: int, mhz: float) -> float:
    """The mean share of `num_sms` SMs during a kernel that did `tflops`, with a clock of `mhz`."""
    return tflops * 1e6 / (WGMMA_FLOPS * num_sms * mhz)


def of_spans(found: Sequence[Span], group_flops: float, mhz: float) -> TensorShare:
    """The share of one SM, from its first event to its last.

    Args:
        found: the spans of all thread blocks that ran on the SM; times in microseconds.
        group_flops: operations of a WGMMA group: of the four warps that issue it.
        mhz: the SM's clock.
    """
    window = max(span.end for span in found) - min(span.begin for span in found)
    products = [span for span in found if span.unit == TENSOR_CORE]
    flops = group_flops / WARPS_A_GROUP * len(products)
    busy = length(union((span.begin, span.end) for span in products))
    return TensorShare(flops / (WGMMA_FLOPS * mhz * window), busy / window, window)
