"""Fitting the network of `gemm_ladder.production.prediction` to measured times, and judging it.

The loss looks at what a choice needs: the differences between the configurations of one product, those near
its best one most of all. Configurations that are far slower matter little, as long as they stay slower; what
is expected to be faster than it is matters most, as it would be chosen.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from gemm_ladder.arguments import H100_SMS
from gemm_ladder.measure.calibration import rows_of
from gemm_ladder.measure.configurations import Timed
from gemm_ladder.production import prediction
from gemm_ladder.production.candidates import Candidates, Floats
from gemm_ladder.production.prediction import STATES, Network

LEAST_SCALE = 0.1  # of an input: what hardly varies must not weigh much where it does
HIDDEN = 32  # units of a hidden layer
MEMBERS = 3  # networks, of which the mean is taken
STEPS = 3000
RATE, DECAY = 1e-2, 1e-3  # of AdamW
NEAR = 4.0  # how fast a configuration's weight falls with its distance from the best, as a logarithm
OTHERS = 0.3  # weight of a result of another GPU model, against one of the model that is fitted
BETWEEN = 3.0  # weight of the differences between configurations, against that of the times themselves
# How much more a difference counts where a configuration is expected to be faster than it is. Such a one is
# chosen; one that is expected to be slower than it is only means that the next best is.
OPTIMISTIC = 3.0


class Data(NamedTuple):
    """Measured times of one GPU model in the form that the fit needs.

    Attributes:
        inputs: [results, inputs] of the network.
        base: [results], logarithms of the estimates.
        target: [results, STATES], logarithms of the measured times; NaN where there is none.
        products: [results], the number of the product.
    """

    inputs: Floats
    base: Floats
    target: Floats
    products: np.ndarray[Any, np.dtype[np.int64]]


def prepare(results: Sequence[Timed], num_sms: int = H100_SMS) -> Data:
    """The inputs and targets of results, in their order. A graph that was not measured, because it would tell
    nothing more, is taken to be as fast as calls with L2 clean."""
    numbers: dict[Any, int] = {}
    products = np.array([numbers.setdefault(one.cell, len(numbers)) for one in results])
    inputs = np.zeros((len(results), len(prediction.INPUTS)))
    base = np.zeros(len(results))
    for cell, number in numbers.items():
        at = np.flatnonzero(products == number)
        columns = Candidates(tuple(results[one].config for one in at)).columns
        rows = np.full(len(at), rows_of(cell))
        _, n, k = cell.shape
        found = prediction.work(columns, rows, cell.kind, n, k, cell.groups, num_sms)
        inputs[at] = prediction.inputs(found)
        base[at] = np.log(found["estimate"])
    target = np.log(np.array([one.us for one in results]))
    clean, graph = STATES.index("clean"), STATES.index("graph")
    target[:, graph] = np.where(np.isnan(target[:, graph]), target[:, clean], target[:, graph])
    return Data(inputs, base, target, products)


def fit(own: Data, others: Data | None = None, seed: int = 0) -> dict[str, Any]:
    """Fit the networks for a GPU model to its results: `fits`, with nothing left out."""
    count = len(own.base) + (0 if others is None else len(others.base))
    (found,) = fits(own, others, [np.zeros(count, dtype=bool)], seed)
    return found


def fits(
    own: Data,
    others: Data | None,
    left_out: Sequence[np.ndarray[Any, np.dtype[np.bool_]]],
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Fit the networks for a GPU model several times, each time without some of the results.

    All networks are fitted side by side, on a GPU if there is one: there that takes half a minute, on a CPU
    many minutes.

    Args:
        others: results of other models. They count OTHERS times as much, and an input that says whose result
            it is lets the networks tell them apart. What only these have, such as an order of tiles that was
            never measured on this model, the networks know from them.
        left_out: for each fit, a mask of results that it does not see, of its own and then of the others.

    Returns:
        For each fit, the content of a file of learned/: see `prediction.read`.
    """
    data, mine = own, np.ones(len(own.base))
    if others is not None:
        products = np.concatenate([own.products, others.products + own.products.max() + 1])
        pairs = zip(own[:-1], others[:-1], strict=True)
        data = Data(*(np.concatenate(pair) for pair in pairs), products)
        mine = np.concatenate([mine, np.zeros(len(others.base))])
    mean, scale = data.inputs.mean(axis=0), np.maximum(data.inputs.std(axis=0), LEAST_SCALE)
    seen = np.array([~one for one in left_out for _ in range(MEMBERS)])
    networks = _fitted(data, mine, mean, scale, seen, [seed + one for one in range(MEMBERS)] * len(left_out))
    return [
        {
            "inputs": list(prediction.INPUTS),
            "states": list(STATES),
            "mean": _rounded(mean),
            "scale": _rounded(scale),
            "members": networks[first : first + MEMBERS],
        }
        for first in range(0, len(networks), MEMBERS)
    ]


def _fitted(
    data: Data,
    mine: Floats,
    mean: Floats,
    scale: Floats,
    seen: np.ndarray[Any, np.dtype[np.bool_]],
    seeds: Sequence[int],
) -> list[list[list[Any]]]:
    """Fit a network for each of `seeds`, to the results that its row of `seen`, [networks, results], marks:
    its layers, as a file of learned/ has them."""
    device = "cuda" if torch.cuda.is_available() else "cpu"

    def there(values: Any) -> torch.Tensor:
        return torch.from_numpy(np.asarray(values, dtype=np.float32)).to(device)

    far = prediction.FAR
    normal = np.clip((data.inputs - mean) / scale, -far, far)
    given = there(np.concatenate([normal, mine[:, None]], axis=1))
    target = there(np.nan_to_num(data.target - data.base[:, None]))
    known = there(~np.isnan(data.target))
    products = torch.from_numpy(data.products).to(device)
    near = np.nan_to_num(np.exp(-NEAR * (data.target - _best(data))))
    weight = there(near * np.where(mine, 1, OTHERS)[:, None]) * there(seen)[:, :, None]
    all_weights = weight.sum(dim=(1, 2))
    count = _sums(known[None], products).clamp(min=1).index_select(1, products)
    layers = _start(given.shape[1], seeds, device)
    optimizer = torch.optim.AdamW([one for layer in layers for one in layer], lr=RATE, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=STEPS)
    for _ in range(STEPS):
        optimizer.zero_grad()
        off = (_answer(layers, given) - target) * known
        between = (off - _sums(off, products).index_select(1, products) / count) * known
        loss = _loss(off, between)
        ((weight * loss).sum(dim=(1, 2)) / all_weights).sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    with torch.no_grad():  # whose result it is, is known when the network is used
        (first, bias), *rest = layers
        layers = [(first[:, :-1], bias + first[:, -1:]), *rest]
    return [
        [[_rounded(matrix[one]), _rounded(bias[one, 0])] for matrix, bias in layers]
        for one in range(len(seeds))
    ]


def _loss(off: torch.Tensor, between: torch.Tensor) -> torch.Tensor:
    """[networks, results, STATES], of what is expected less what was measured, and of that less its mean over
    the product."""
    return off.square() + BETWEEN * between.square() * torch.where(between < 0, OPTIMISTIC, 1.0)


Layers = Sequence[tuple[torch.Tensor, torch.Tensor]]  # [networks, inputs, outputs], [networks, 1, outputs]


def _start(given: int, seeds: Sequence[int], device: str) -> Layers:
    """The layers of a network for each seed, before they are fitted."""
    sizes = [(given, HIDDEN), (HIDDEN, HIDDEN), (HIDDEN, len(STATES))]
    networks = []
    for seed in seeds:
        torch.manual_seed(seed)
        layers = [torch.nn.Linear(*size) for size in sizes]
        with torch.no_grad():
            layers[-1].weight.mul_(0.1)
            layers[-1].bias.zero_()
        networks.append(layers)
    return [
        tuple(torch.stack(some).to(device).requires_grad_() for some in zip(*pairs, strict=True))
        for pairs in (
            [(layers[place].weight.detach().T, layers[place].bias.detach()[None]) for layers in networks]
            for place in range(len(sizes))
        )
    ]


def _best(data: Data) -> Floats:
    """For each result, the logarithm of the least time at its product in each state: [results, STATES]."""
    times = np.where(np.isnan(data.target), np.inf, data.target)
    best = np.full((data.products.max() + 1, times.shape[1]), np.inf)
    np.minimum.at(best, data.products, times)
    answer: Floats = best[data.products]
    return answer


def _answer(layers: Layers, values: torch.Tensor) -> torch.Tensor:
    """[networks, results, STATES]"""
    for matrix, bias in layers[:-1]:
        values = torch.nn.functional.silu(values @ matrix + bias)
    matrix, bias = layers[-1]
    return values @ matrix + bias


def _sums(values: torch.Tensor, products: torch.Tensor) -> torch.Tensor:
    """The sums over each product's results: [networks, products, STATES]."""
    sums = torch.zeros(len(values), int(products.max()) + 1, values.shape[2], device=values.device)
    return sums.index_add(1, products, values)


def _rounded(values: Any) -> Any:
    """Numbers with five significant digits, in lists."""
    if isinstance(values, torch.Tensor):
        values = values.detach().double().cpu().numpy()
    if values.ndim > 1:
        return [_rounded(row) for row in values]
    return [float(f"{value:.5g}") for value in values.tolist()]


class Regret(NamedTuple):
    """How much slower the expected best of a product's measured configurations is than the best of them.

    Attributes:
        product: its number.
        mean: over the states of L2, as a logarithm, one configuration for all of them.
        states: in each state alone; NaN where it was not measured.
    """

    product: int
    mean: float
    states: tuple[float, ...]


def regrets(network: Network, data: Data, among: np.ndarray[Any, np.dtype[np.bool_]]) -> list[Regret]:
    """The regret at each product of the results `among`, a mask."""
    expected = data.base[:, None] + network(data.inputs)
    found = []
    for product in np.unique(data.products[among]):
        at = np.flatnonzero((data.products == product) & among)
        known = ~np.isnan(data.target[at]).any(axis=0)
        times = data.target[at][:, known]
        chosen = int(expected[at].mean(axis=1).argmin())
        mean = times.mean(axis=1)
        states = np.full(len(STATES), np.nan)
        states[known] = times[chosen] - times.min(axis=0)
        found.append(Regret(int(product), float(mean[chosen] - mean.min()), tuple(states.tolist())))
    return found


def residuals(network: Network, data: Data, among: np.ndarray[Any, np.dtype[np.bool_]]) -> list[float]:
    """The root mean square of expected less measured, as a logarithm, in each state of L2."""
    off = data.base[:, None] + network(data.inputs) - data.target
    return [float(one) for one in np.sqrt(np.nanmean(off[among] ** 2, axis=0))]
