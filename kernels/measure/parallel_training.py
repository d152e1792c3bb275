"""A training step of a mixture of experts that several GPUs share, beside one GPU: checked, then timed.

What `parallel_ranks` does for calls without gradients. The mixture is smaller, so that one GPU has room for
all of its weights in BF16, their gradients and what is kept for the backward pass.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from gemm_ladder.layers import Fp8Experts, ParallelFp8Experts, row_format
from gemm_ladder.layers.parallel_experts import COMBINES
from gemm_ladder.measure.rank_timing import Step, error, gathered, row, timed

if TYPE_CHECKING:
    from gemm_ladder.measure.parallel_ranks import Plan, Round


@dataclasses.dataclass(frozen=True)
class Mixture:
    """What is trained: the experts of DeepSeek-V2-Lite (arXiv:2405.04434).

    Attributes:
        tokens: of a step, of all ranks together.
        hidden, intermediate, experts, top_k: of the mixture.
    """

    tokens: tuple[int, ...] = (4096, 16384)
    hidden: int = 2048
    intermediate: int = 1408
    experts: int = 64
    top_k: int = 6


def whole_experts(mixture: Mixture, device: torch.device | str, dtype: torch.dtype) -> Fp8Experts:
    """All experts, the same on every rank."""
    torch.manual_seed(0)
    sizes = (mixture.experts, mixture.hidden, mixture.intermediate)
    return Fp8Experts(*sizes, trainable=True, device=device, dtype=dtype)


def routed(
    sizes: Mixture | Plan, tokens: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The tokens of all ranks, each with different experts, all equally likely, and their weights."""
    generator = torch.Generator(device).manual_seed(tokens)
    x = torch.randn(tokens, sizes.hidden, generator=generator, device=device).bfloat16()
    likes = torch.rand(tokens, sizes.experts, generator=generator, device=device)
    best = likes.topk(sizes.top_k, dim=1)
    return x, best.indices, best.values / best.values.sum(1, keepdim=True)


def differentiated(mixture: Mixture, tokens: int, device: torch.device) -> list[torch.Tensor]:
    """The same, and the gradient of the results."""
    generator = torch.Generator(device).manual_seed(tokens + 1)
    grad = torch.randn(tokens, mixture.hidden, generator=generator, device=device).bfloat16()
    return [*routed(mixture, tokens, device), grad]


def measure(here: Round, mixture: Mixture) -> None:
    """Check and time the steps of one round's ranks; all of these call it."""
    size, group, device = here.size, here.group, here.device
    rank = dist.get_rank(group)
    whole = whole_experts(mixture, device, torch.bfloat16)
    layers: list[Fp8Experts] = [whole]
    if size > 1:
        layers = [ParallelFp8Experts.from_experts(whole, group, combine=one) for one in COMBINES]
    for tokens in mixture.tokens:
        of_all = differentiated(mixture, tokens, device)
        mine = [one.chunk(size)[rank] for one in of_all]
        expected = step(whole, of_all) if size > 1 else []
        for layer in layers:
            name, off, moved = "one", 0.0, 0
            if isinstance(layer, ParallelFp8Experts):
                name, off = layer.combine_by, _error(layer, mine, expected, group)
                moved = sent(mixture, layer, mine[1], group)
            if not here.right(f"training, {name}", tokens, off):
                continue
            passes: list[Step] = [
                lambda _, layer=layer, given=mine: forward(layer, given),
                lambda found, grad=mine[-1]: torch.autograd.grad(found[0], found[1:], grad),
            ]
            found = timed(passes, group, here.plan.calls, device)
            named = {"forward": 0, "backward": 1}
            here.rows.append(row("training", name, size, tokens, found, named, moved, off))


def forward(layer: Fp8Experts, given: list[torch.Tensor]) -> list[torch.Tensor]:
    """The result, then what has gradients: the tokens, their experts' weights, and the experts."""
    x, chosen, factors, _ = given
    x, factors = x.detach().requires_grad_(), factors.detach().requires_grad_()
    return [layer(x, chosen, factors), x, factors, *layer.parameters()]


def step(layer: Fp8Experts, given: list[torch.Tensor]) -> list[torch.Tensor]:
    """The result and the gradients."""
    out, *inputs = forward(layer, given)
    return [out.detach(), *torch.autograd.grad(out, inputs, given[-1])]


def _error(
    layer: ParallelFp8Experts,
    mine: list[torch.Tensor],
    expected: list[torch.Tensor],
    group: dist.ProcessGroup,
) -> float:
    """The largest error of a result or gradient, on any rank."""
    tokens = [one.chunk(layer.ranks.size)[layer.ranks.rank] for one in expected[:3]]
    own = slice(layer.first_expert, layer.first_expert + layer.num_experts)
    parts = tokens + [one[own] for one in expected[3:]]
    return max(error(one, part, group) for one, part in zip(step(layer, mine), parts, strict=True))


def sent(mixture: Mixture, layer: ParallelFp8Experts, chosen: torch.Tensor, group: dist.ProcessGroup) -> int:
    """Bytes that the busiest rank sends in a step: tokens, and gradients of results, to the experts' ranks;
    results, and gradients of tokens, back."""
    rank, by_choice = layer.ranks.rank, layer.combine_by == "rows"
    begins = torch.tensor(gathered(layer.first_expert, group), device=chosen.device)
    owners = torch.searchsorted(begins, chosen, right=True) - 1
    mine = [owners == one for one in range(len(begins))]
    counts = gathered([(int(one.any(1).sum()), int(one.sum())) for one in mine], group)
    hidden, factors = mixture.hidden, 1 if by_choice else mixture.top_k
    there = row_format.token_format(hidden, mixture.top_k, torch.bfloat16).width
    there += row_format.token_format(hidden, 0, torch.bfloat16).width
    back = 2 * hidden + row_format.RowFormat(((hidden, torch.bfloat16), (factors, torch.float32))).width
    moved = sum(
        counts[rank][one][0] * there + counts[one][rank][by_choice] * back
        for one in range(len(begins))
        if one != rank
    )
    return int(max(gathered(moved, group)))
