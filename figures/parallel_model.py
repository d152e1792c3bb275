"""A mixture of experts over up to 64 GPUs, on paper, from what data/parallel.json has of one GPU and of two.

    us = one(tokens) / ranks + travel + rest

one     Measured: the whole layer on one GPU. Assumed: a rank has its share of that work, and none has more.
        Between measured numbers of tokens it is a straight line, above the largest it grows with the tokens,
        and below the smallest with the experts that have a row.
travel  Measured: how long an all-to-all alone takes between two GPUs, a fixed time and a rate. Assumed: both
        are the same among the 8 GPUs of a machine, and the rate to other machines is that of a data sheet.
rest    Measured: what else two GPUs take: the host, counting the rows, laying them out. Assumed: more GPUs
        take as much. It is not the same for all sizes, so there are a least, a mean and a most.

There are two ways of sharing: called from Python, where a token goes once to each rank that has one of its
experts; and in a CUDA graph, which can record nothing but that every token goes to every rank.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from .rows import ParallelRow

# Bytes a second that a GPU can send to others of its machine: NVLink of the fourth generation moves 900 GB/s
# in both directions together (nvidia.com, "H100 GPU" and "H200 GPU" data sheets).
NVLINK = 450e9
# And to GPUs of other machines, where each GPU has a network adapter of 400 Gb/s (nvidia.com, "NVIDIA DGX
# H100" data sheet: eight ConnectX-7 of 400 Gb/s InfiniBand).
INFINIBAND = 50e9
GPUS_OF_A_MACHINE = 8
RANKS = (1, 2, 4, 8, 16, 32, 64)
# The ways of sharing: in words, and the rows on one GPU and on two.
WAYS = {
    "calls": ("Python", "one", "sums"),
    "graph": ("CUDA graph", "one_graph", "everywhere_graph"),
}


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


class Rest(NamedTuple):
    """Microseconds that two GPUs take besides their shares and the transfers."""

    least: float
    mean: float
    most: float


class Measured(NamedTuple):
    """What the model takes from measurements: microseconds of one GPU by tokens, and the rest, for each way;
    microseconds of a transfer however small, and bytes a second of a large one."""

    one: dict[str, dict[int, float]]
    rest: dict[str, Rest]
    fixed_us: float
    rate: float


class Cost(NamedTuple):
    """What a layer takes on each of some ranks, in microseconds, and the bytes that a rank sends: inside of
    its machine, and to others; there and back."""

    share: float
    travel: float
    rest: float
    inside: float
    outside: float

    @property
    def us(self) -> float:
        return self.share + self.travel + self.rest


def measured(layer: Layer, rows: Iterable[ParallelRow]) -> Measured:
    """What parallel.json has for the model. The way "graph" is missing where its rows are."""
    rows = [*rows]
    sent = sorted((row["bytes"], row["us"]) for row in rows if row["what"] == "all_to_all")
    rate = (sent[-1][0] - sent[0][0]) / (sent[-1][1] - sent[0][1]) * 1e6
    found = Measured({}, {}, sent[0][1], rate)
    for way, (_, one, two) in WAYS.items():
        alone, shares = _times(rows, one, 1), _times(rows, two, 2)
        if not alone or not shares:
            continue
        if way == "graph":  # with more tokens than there: what Python takes, less what the graph spares there
            last = max(alone)
            spared = found.one["calls"][last] - alone[last]
            alone |= {tokens: us - spared for tokens, us in found.one["calls"].items() if tokens > last}
        found.one[way] = alone
        found.rest[way] = Rest(0, 0, 0)
        left = [us - shared(layer, found, way, tokens, 2).us for tokens, us in shares.items()]
        found.rest[way] = Rest(min(left), sum(left) / len(left), max(left))
    return found


def _times(rows: Iterable[ParallelRow], impl: str, ranks: int) -> dict[int, float]:
    wanted = ("experts", impl, ranks)
    return {row["tokens"]: row["us"] for row in rows if (row["what"], row["impl"], row["ranks"]) == wanted}


def reaches(layer: Layer, parts: float) -> float:
    """The probability that a token has an expert in a given one of so many equal parts of all experts."""
    each, misses = layer.experts / parts, 1.0
    for drawn in range(layer.top_k):
        misses *= max(0.0, layer.experts - each - drawn) / (layer.experts - drawn)
    return 1 - misses


def used(layer: Layer, tokens: float) -> float:
    """The share of the experts that have a row, if `tokens` tokens choose."""
    misses: float = (1 - layer.top_k / layer.experts) ** tokens
    return 1 - misses


def one(layer: Layer, known: Measured, way: str, tokens: float) -> float:
    """Microseconds of the whole layer on one GPU."""
    times = sorted(known.one[way].items())
    if tokens <= times[0][0]:
        return times[0][1] * used(layer, tokens) / used(layer, times[0][0])
    for (below, less), (above, more) in itertools.pairwise(times):
        if tokens <= above:
            return less + (more - less) * (tokens - below) / (above - below)
    return times[-1][1] * tokens / times[-1][0]


def shared(layer: Layer, known: Measured, way: str, tokens: float, ranks: int, rest: str = "mean") -> Cost:
    """A layer whose experts are shared.

    Args:
        tokens: in all.
        ranks: GPUs.
        rest: which of what was measured: "least", "mean" or "most".
    """
    share = one(layer, known, way, tokens) / ranks
    if ranks == 1:
        return Cost(share, 0.0, 0.0, 0.0, 0.0)
    to_each = tokens / ranks * (1.0 if way == "graph" else reaches(layer, ranks))
    near = min(ranks, GPUS_OF_A_MACHINE) - 1
    rows = (to_each * near, to_each * (ranks - 1 - near))
    travel = 0.0
    for size in (layer.row_bytes, 2 * layer.hidden):  # there and back; inside and outside at the same time
        travel += known.fixed_us + 1e6 * size * max(rows[0] / known.rate, rows[1] / INFINIBAND)
    both = layer.row_bytes + 2 * layer.hidden
    return Cost(share, travel, getattr(known.rest[way], rest), rows[0] * both, rows[1] * both)


def pays(
    layer: Layer, known: Measured, way: str, ranks: int, rest: str = "mean"
) -> tuple[float, float] | None:
    """From how many tokens on each rank on, and up to how many, the shared layer is faster than one that has
    all experts on each rank, if they had the memory; None where it never is.

    A GPU with few tokens reads few experts anyhow. With more it reads all of them, or its share, which is
    what sharing saves; with many it is the products that take long, either way, and travelling comes on top.
    """
    steps = [2 ** (step / 20) for step in range(20 * 18)]
    paying = [
        each
        for each in steps
        if shared(layer, known, way, each * ranks, ranks, rest).us < one(layer, known, way, each)
    ]
    return (paying[0], paying[-1]) if paying else None


def checks(layer: Layer, known: Measured, rows: Iterable[ParallelRow]) -> Iterator[list[str]]:
    """The model beside what was measured on two GPUs, as cells; the first row is the header."""
    head = ["2 GPUs", "tokens", "half of one, us", "travel, us", "rest, us"]
    yield [*head, "model, us", "measured, us", "off"]
    rows = [*rows]
    for way in known.one:
        for tokens, us in _times(rows, WAYS[way][2], 2).items():
            cost = shared(layer, known, way, tokens, 2)
            times = [f"{part:.0f}" for part in (cost.share, cost.travel, cost.rest, cost.us, us)]
            yield [WAYS[way][0], str(tokens), *times, f"{cost.us / us - 1:+.0%}"]


def table(layer: Layer, known: Measured) -> Iterator[list[str]]:
    """More GPUs as cells; the first row is the header."""
    head = ["", "GPUs", "tokens a GPU", "MB inside", "MB outside", "share, us", "travel, us"]
    yield [*head, "in all, us", "all on each, us"]
    for way in known.one:
        for ranks in RANKS[3:]:
            for each in (128, 4096):
                cost = shared(layer, known, way, each * ranks, ranks)
                sent = [f"{moved / 1e6:.1f}" for moved in (cost.inside, cost.outside)]
                whole = one(layer, known, way, each)
                times = [f"{us:.0f}" for us in (cost.share, cost.travel, cost.us, whole)]
                yield [WAYS[way][0], str(ranks), str(each), *sent, *times]


def limits(layer: Layer, known: Measured) -> Iterator[list[str]]:
    """From how many tokens a GPU on sharing pays, and up to how many, as cells; the first row is the header.
    In brackets, with the least and the most rest that was measured."""
    yield ["GPUs", *(f"{WAYS[way][0]}, pays {end}" for way in known.one for end in ("from", "up to"))]
    for ranks in RANKS[3:]:
        cells = []
        for way in known.one:
            found = [pays(layer, known, way, ranks, rest) for rest in ("least", "mean", "most")]
            for end in range(2):
                ends = [_rounded(both[end]) if both else "never" for both in found]
                first, mean, last = ends[::-1] if end else ends
                cells.append(f"{mean} ({first} to {last})")
        yield [str(ranks), *cells]


def _rounded(tokens: float) -> str:
    """To two digits: a model is no more precise."""
    return f"{float(f'{tokens:.2g}'):.0f}"
