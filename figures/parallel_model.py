"""A mixture of experts over 1 to 64 GPUs on paper: the bytes that travel, and the time that they and the
products take, from the sizes of the layer and the rates below. Nothing is fitted to measurements of it.

The sizes are DeepSeek-V3's, and every expert is equally likely. A rank sends a token once to each rank that
has one of its experts, as 7168 codes, their scales and the choices, and gets one row of BF16 back from each,
as gemm_ladder.layers.ParallelFp8Experts does. Transfers, and the products between them, follow one another:
nothing is hidden behind anything else.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

# Bytes a second that a GPU can send to others of its machine: NVLink of the fourth generation moves 900 GB/s
# in both directions together (nvidia.com, "H100 GPU" and "H200 GPU" data sheets).
NVLINK = 450e9
# And to GPUs of other machines, where each GPU has a network adapter of 400 Gb/s (nvidia.com, "NVIDIA DGX
# H100" data sheet: eight ConnectX-7 of 400 Gb/s InfiniBand).
INFINIBAND = 50e9
# An H200's memory (nvidia.com, "H200 GPU" data sheet).
MEMORY = 4.8e12
# FP8 operations a second of grouped products with many rows: about what figures/data/production.json has.
FP8 = 1.4e15
# Assumed: what a transfer takes however few tokens there are. Before dispatch, counts travel first.
FIXED_US = {"dispatch": 30.0, "combine": 15.0}
GPUS_OF_A_MACHINE = 8
RANKS = (1, 2, 4, 8, 16, 32, 64)


class Layer(NamedTuple):
    """The sizes of a mixture."""

    hidden: int = 7168
    intermediate: int = 2048
    experts: int = 256
    top_k: int = 8

    @property
    def weight_bytes(self) -> int:
        """Of one expert, in FP8."""
        return 3 * self.hidden * self.intermediate

    @property
    def row_bytes(self) -> int:
        """Of a token that travels: codes, scales, and for each choice an expert and its weight."""
        used = self.hidden + 4 * -(-self.hidden // 128) + 6 * self.top_k
        return -(-used // 16) * 16


class Cost(NamedTuple):
    """What a layer takes on each of some ranks, in microseconds, and the bytes that a rank sends: inside of
    its machine, and to others; there and back."""

    dispatch: float
    products: float
    combine: float
    inside: float
    outside: float

    @property
    def us(self) -> float:
        return self.dispatch + self.products + self.combine


def reaches(layer: Layer, parts: float) -> float:
    """The probability that a token has an expert in a given one of so many equal parts of all experts."""
    each, misses = layer.experts / parts, 1.0
    for drawn in range(layer.top_k):
        misses *= max(0.0, layer.experts - each - drawn) / (layer.experts - drawn)
    return 1 - misses


def used(layer: Layer, tokens: float, experts: float) -> float:
    """How many of so many experts have a row, if `tokens` tokens may choose them."""
    return experts * (1 - (1 - layer.top_k / layer.experts) ** tokens)


def shared(layer: Layer, tokens: float, ranks: int, passed_on: bool = False) -> Cost:
    """A layer whose experts are shared.

    Args:
        tokens: in all.
        ranks: GPUs.
        passed_on: whether a row goes to another machine once, to one of its GPUs, which passes it on to the
            others there. (ParallelFp8Experts sends it to each of them.)
    """
    each, chance = tokens / ranks, reaches(layer, ranks)
    machines = max(1, ranks // GPUS_OF_A_MACHINE)
    outside = each * chance * (ranks - min(ranks, GPUS_OF_A_MACHINE))
    inside = each * chance * (ranks - 1) - outside
    if passed_on:
        outside = each * reaches(layer, machines) * (machines - 1)
        inside = each * chance * (ranks - machines)

    def takes(row: int, fixed: float) -> float:
        seconds = max(inside * row / NVLINK, outside * row / INFINIBAND)  # both at the same time
        return fixed + seconds * 1e6 if ranks > 1 else 0.0

    back = 2 * layer.hidden
    return Cost(
        takes(layer.row_bytes, FIXED_US["dispatch"]),
        _products(layer, tokens * layer.top_k / ranks, used(layer, tokens, layer.experts / ranks)),
        takes(back, FIXED_US["combine"]),
        inside * (layer.row_bytes + back),
        outside * (layer.row_bytes + back),
    )


def alone(layer: Layer, tokens: float, ranks: int) -> Cost:
    """The same tokens on as many GPUs, each of which has all experts, if it had room for them."""
    each = tokens / ranks
    return Cost(0.0, _products(layer, each * layer.top_k, used(layer, each, layer.experts)), 0.0, 0.0, 0.0)


def _products(layer: Layer, rows: float, experts: float) -> float:
    """Microseconds: as long as the tensor cores need, or memory for the weights."""
    return 1e6 * max(rows * 2 * layer.weight_bytes / FP8, experts * layer.weight_bytes / MEMORY)


def stops_paying(layer: Layer, ranks: int, passed_on: bool = False) -> float:
    """The number of tokens for each rank above which sharing costs more than it saves; 0 if it never pays.

    With few tokens a GPU reads the weights of its experts, and those of a share are read sooner than all of
    them. With many the products take as long either way, and dispatch comes on top.
    """
    each = 2.0**20
    while each >= 1:
        if shared(layer, each * ranks, ranks, passed_on).us < alone(layer, each * ranks, ranks).us:
            return each
        each /= 2**0.05
    return 0.0


def table(layer: Layer | None = None) -> Iterator[list[str]]:
    """The model as cells; the first row is the header."""
    layer = layer or Layer()
    head = ["GPUs", "tokens a GPU", "MB inside", "MB outside", "dispatch, us", "products, us", "combine, us"]
    yield [*head, "all experts on each, us", "pays up to, tokens a GPU", "where rows are passed on"]
    for ranks in (8, 16, 32, 64):
        for each in (128, 4096):
            cost, own = shared(layer, each * ranks, ranks), alone(layer, each * ranks, ranks)
            sent = [f"{moved / 1e6:.1f}" for moved in (cost.inside, cost.outside)]
            times = [f"{us:.0f}" for us in (cost.dispatch, cost.products, cost.combine, own.us)]
            limits = [f"{stops_paying(layer, ranks, passed_on):.0f}" for passed_on in (False, True)]
            yield [str(ranks), str(each), *sent, *times, *limits]
