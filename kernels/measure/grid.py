"""The grid that `everywhere` measures: every weight of `models.MODELS`, whole and as tensor parallelism cuts
it, at every m of MS; and the experts' weights in both grouped layouts.

`grid` has all of it, thousands of products. `subset` has some hundreds, the same in every run, in which every
weight and every m occurs about equally often.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from gemm_ladder.measure.models import CUTS, MODELS, Linear, Model, refusal
from gemm_ladder.measure.shapes import Cell, Shape, masked_cell

MS = (
    *(1, 2, 5, 8, 16, 24, 33, 48, 64, 80, 96, 128, 160, 200, 257),
    *(384, 512, 700, 1000, 1536, 2048, 3000, 4096, 8192, 16384),
)
MS_PER_WEIGHT = 3  # of MS, in the subset, for each weight and cut
STEP = len(MS) // MS_PER_WEIGHT  # between them

# Grouped: how many GPUs the experts are divided among, and how many groups a product may have.
EXPERT_PARALLEL = (1, 2, 4, 8, 16, 32)
CONTIGUOUS_GROUPS, MASKED_GROUPS = range(8, 257), range(8, 129)
CONTIGUOUS_MS = (16, 64, 200, 1000)  # mean rows of a group
MAX_ROWS = 65536  # of a contiguous product
MASKED_SIZES = ((64, 16), (192, 48), (1024, 257))  # max_m and the mean rows of a group
MAX_MASKED_BYTES = 1 << 30  # of A
EXPECTATIONS = ("right", "high", "low")
GROUPED_IN_SUBSET = 28  # of each layout


class Unmeasured(NamedTuple):
    """A weight of a model that cannot be multiplied, and why."""

    model: str
    linear: str
    gpus: int
    n: int
    k: int
    reason: str


def subset() -> list[Cell]:
    """The products that are measured by default: for each weight and cut MS_PER_WEIGHT values of m, one step
    further for each, so that together the cuts of a weight have most of MS; and some of each grouped
    layout."""
    cells = []
    for turn, (n, k) in enumerate(dense_weights()):
        picked = sorted((turn + STEP * index) % len(MS) for index in range(MS_PER_WEIGHT))
        cells += [Cell("dense", 1, Shape(MS[index], n, k)) for index in picked]
    for layout in (contiguous, masked):
        of_weights = [found for weight in grouped_weights() if (found := layout(*weight))]
        for index in range(min(GROUPED_IN_SUBSET, len(of_weights))):
            found = of_weights[index * len(of_weights) // GROUPED_IN_SUBSET]
            cells.append(found[index % len(found)])
    return list(dict.fromkeys(cells))


def grid() -> list[Cell]:
    """All products: the subset first, then the others."""
    dense = [Cell("dense", 1, Shape(m, n, k)) for n, k in dense_weights() for m in MS]
    grouped = [cell for layout in (contiguous, masked) for one in grouped_weights() for cell in layout(*one)]
    return list(dict.fromkeys([*subset(), *dense, *grouped]))


def dense_weights() -> list[tuple[int, int]]:
    """n and k of every dense weight that can be multiplied, of every cut; each once."""
    found = [linear.sizes(gpus) for _, linear in of_all_models() if linear.experts == 1 for gpus in CUTS]
    return [sizes for sizes in dict.fromkeys(found) if not refusal(*sizes)]


def grouped_weights() -> list[tuple[int, int, int]]:
    """Groups, n and k of the experts' weights: divided among GPUs as whole experts, or all cut; each once."""
    found = []
    for linear in (one for _, one in of_all_models() if one.experts > 1):
        found += [
            (linear.experts // gpus, linear.n, linear.k)
            for gpus in EXPERT_PARALLEL
            if not linear.experts % gpus
        ]
        found += [(linear.experts, *linear.sizes(gpus)) for gpus in CUTS[1:]]
    return [one for one in dict.fromkeys(found) if one[0] in CONTIGUOUS_GROUPS and not refusal(*one[1:])]


def contiguous(groups: int, n: int, k: int) -> list[Cell]:
    return [Cell("contiguous", groups, Shape(m, n, k)) for m in CONTIGUOUS_MS if m * groups <= MAX_ROWS]


def masked(groups: int, n: int, k: int) -> list[Cell]:
    """Rows right, too high and too low expected. They alternate, so that neighbours differ in both."""
    if groups not in MASKED_GROUPS:
        return []
    fitting = [(max_m, m) for max_m, m in MASKED_SIZES if groups * max_m * k <= MAX_MASKED_BYTES]
    return [
        masked_cell(groups, Shape(m, n, k), max_m, EXPECTATIONS[(turn + index) % len(EXPECTATIONS)])
        for turn in range(len(EXPECTATIONS))
        for index, (max_m, m) in enumerate(fitting)
    ]


def unmeasured() -> list[Unmeasured]:
    """The weights that cannot be multiplied."""
    return [
        Unmeasured(model.name, linear.name, gpus, *linear.sizes(gpus), reason)
        for model, linear in of_all_models()
        for gpus in CUTS
        if (reason := refusal(*linear.sizes(gpus)))
    ]


def of_all_models() -> list[tuple[Model, Linear]]:
    return [(model, linear) for model in MODELS for linear in model.linears]


def described() -> list[dict[str, Any]]:
    """Every linear, its model, the source of its sizes, and its n and k at each cut: what figures need to
    name a row."""
    return [
        {
            "model": model.name,
            "source": f"https://huggingface.co/{model.source}/blob/main/config.json",
            "linear": linear.name,
            "experts": linear.experts,
            "sizes": [list(linear.sizes(gpus)) for gpus in CUTS],
        }
        for model, linear in of_all_models()
    ]


def about() -> dict[str, Any]:
    """What the meta of a measurement of the grid says of the models and of what cannot be measured."""
    return {
        "weights": described(),
        "not_measurable": [one._asdict() for one in unmeasured()],
        "products": {"grid": len(grid()), "subset": len(subset())},
    }
