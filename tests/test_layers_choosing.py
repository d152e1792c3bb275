"""The kernel that chooses experts, on the emulator and on a GPU, beside torch's operators on the CPU."""

from __future__ import annotations

import itertools
from typing import Literal

import pytest
import torch
from gemm_ladder.layers import choosing, route

INF, NAN = float("inf"), float("nan")
SIZES = [  # tokens, experts, top_k, groups, kept groups
    *((5, 256, 8, 8, 4), (3, 256, 8, 1, 1), (9, 64, 6, 1, 1), (4, 160, 6, 8, 3), (2, 100, 7, 1, 1)),
    *((3, 1024, 32, 1, 1), (6, 40, 4, 40, 6), (7, 1, 1, 1, 1), (3, 12, 3, 4, 2), (1, 8, 2, 1, 1)),
]


def distinct_logits(tokens: int, experts: int) -> torch.Tensor:
    """Logits whose scores differ by more than any rounding, in another order for each token."""
    generator = torch.Generator().manual_seed(tokens * experts)
    order = torch.stack([torch.randperm(experts, generator=generator) for _ in range(tokens)])
    return (order - experts / 2) * (12 / experts)


@pytest.mark.parametrize(("tokens", "experts", "top_k", "groups", "kept"), SIZES)
def test_choice(tokens: int, experts: int, top_k: int, groups: int, kept: int, device: str) -> None:
    logits = distinct_logits(tokens, experts)
    biases = (None, (distinct_logits(1, experts)[0] * 0.7).contiguous())
    for scoring, bias, normalize, good in itertools.product(
        ("softmax", "sigmoid"), biases, (False, True), ("top2", "max")
    ):
        options = {"scoring": scoring, "normalize": normalize, "scale": 2.5, "group_score": good}
        wanted = route(logits, top_k, bias=bias, num_groups=groups, top_groups=kept, **options)
        assert choosing.why_not(logits, top_k, bias) is None
        found = choosing.choose(
            logits.to(device),
            top_k,
            None if bias is None else bias.to(device),
            sigmoid=scoring == "sigmoid",
            normalize=normalize,
            scale=2.5,
            groups=groups,
            top_groups=kept,
            top2=good == "top2",
        )
        assert torch.equal(found[0].cpu(), wanted[0]), options
        torch.testing.assert_close(found[1].cpu(), wanted[1], rtol=2e-6, atol=1e-9)


def choose(logits: torch.Tensor, top_k: int, sigmoid: bool) -> tuple[torch.Tensor, torch.Tensor]:
    options = {"scale": 1.0, "groups": 1, "top_groups": 1, "top2": True}
    return choosing.choose(logits, top_k, None, sigmoid=sigmoid, normalize=True, **options)


@pytest.mark.parametrize("sigmoid", [False, True])
def test_odd_numbers(sigmoid: bool, device: str) -> None:
    """Of NaN, infinities and equal scores some experts are chosen, each once, with torch's weights."""
    logits = torch.tensor(
        [
            *([NAN] * 8, [INF] + [0.0] * 7, [-INF] * 8, [0.0] * 8, [-200.0] * 8, [NAN] + [1.0] * 7),
            *([3e38, -3e38] + [0.0] * 6, [-NAN] * 4 + [-0.0] * 4),
        ]
    )
    chosen, weights = choose(logits.to(device), 3, sigmoid)
    assert all(len({*row}) == 3 and {*row} <= {*range(8)} for row in chosen.tolist())
    assert chosen[3].tolist() == [0, 1, 2], "the first of equal ones"
    wanted = route(logits, 3, scoring="sigmoid" if sigmoid else "softmax")[1]
    torch.testing.assert_close(weights.cpu(), wanted, equal_nan=True, rtol=1e-6, atol=1e-30)


@pytest.mark.parametrize("scoring", ["sigmoid", "softmax"])
def test_tiny_scores(scoring: Literal["sigmoid", "softmax"], device: str) -> None:
    """Near the smallest that FP32 has, where exp is a product of two."""
    logits = torch.tensor(
        [[-87.1, -87.3, -87.2, -87.4], [0.0, -90.0, -89.0, -88.0], [-101.0, -86.9, -99.0, -95.0]]
    )
    chosen, weights = choose(logits.to(device), 3, scoring == "sigmoid")
    # torch's sigmoid in FP32 is 0 where exp(-x) is infinite.
    scores = logits.double().sigmoid().float() if scoring == "sigmoid" else logits.softmax(-1)
    assert chosen.tolist() == scores.topk(3).indices.tolist()
    wanted = scores.gather(-1, chosen.cpu())
    wanted /= wanted.sum(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    torch.testing.assert_close(weights.cpu(), wanted, rtol=1e-4, atol=1e-4)


def test_equal_scores(device: str) -> None:
    """BF16 has few numbers, so many scores are equal: the first experts, of the first groups, are chosen."""
    logits = (torch.randn(40, 64, generator=torch.Generator().manual_seed(0)) * 2).round().bfloat16()
    options = {"sigmoid": True, "normalize": False, "scale": 1.0, "groups": 8, "top_groups": 3, "top2": False}
    chosen, _ = choosing.choose(logits.to(device), 4, None, **options)
    groups = logits.float().view(40, 8, 8)
    first = groups.amax(-1).sort(dim=-1, descending=True, stable=True).indices[:, :3]
    inside = torch.zeros(40, 8, dtype=torch.bool).scatter(1, first, True)
    of_groups = groups.where(inside[..., None], -torch.inf).flatten(1)
    assert torch.equal(chosen.cpu(), of_groups.sort(dim=-1, descending=True, stable=True).indices[:, :4])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_other_types_and_strides(dtype: torch.dtype, device: str) -> None:
    logits = distinct_logits(6, 64).to(dtype)
    wanted = choose(logits.float().to(device), 4, True)
    wide = torch.full((2, 3, 80), NAN, dtype=dtype, device=device)
    wide[..., 7:71] = logits.view(2, 3, 64).to(device)
    turned = logits.t().contiguous().to(device).t()
    for given in (logits.to(device), wide[..., 7:71], turned):
        for one, other in zip(choose(given, 4, True), wanted, strict=True):
            assert one.shape == (*given.shape[:-1], 4) and torch.equal(one.view(6, 4), other)


def test_what_the_kernel_does_not_choose() -> None:
    """torch's operators do."""
    logits = torch.zeros(2, 64)
    for reason, given in {
        "not FP32, BF16 or FP16": (logits.double(), 2, None),
        "the bias is not FP32": (logits, 2, torch.zeros(64).bfloat16()),
        "2000 experts, 2 of which": (torch.zeros(1, 2000), 2, None),
        "64 experts, 33 of which": (logits, 33, None),
        "0 logits": (logits[:0], 2, None),
    }.items():
        assert reason in str(choosing.why_not(*given))


@pytest.mark.gpu
def test_a_gpu_chooses_by_the_kernel() -> None:
    """With and without gradients the same experts, which are the CPU's where scores are apart."""
    logits, bias = distinct_logits(50, 256), (distinct_logits(1, 256)[0] * 0.7).contiguous()
    options = {"scoring": "sigmoid", "num_groups": 8, "top_groups": 4, "scale": 2.5}
    of_equals = (torch.randn(500, 256, device="cuda") * 2).round().bfloat16()
    equals = route(of_equals, 8, scoring="sigmoid")
    given = logits.cuda().requires_grad_()
    for one in (logits.cuda(), given):
        route(one, 8, bias=bias.cuda(), **options)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            chosen, weights = route(one, 8, bias=bias.cuda(), **options)
        assert "route_tokens" in " ".join(one.key for one in profile.key_averages())
        wanted = route(logits.requires_grad_(), 8, bias=bias, **options)
        assert torch.equal(chosen.cpu(), wanted[0])
        torch.testing.assert_close(weights.detach().cpu(), wanted[1].detach(), rtol=2e-6, atol=1e-9)
    weights.square().sum().backward()
    wanted[1].square().sum().backward()
    torch.testing.assert_close(given.grad.cpu(), logits.grad, rtol=1e-4, atol=1e-7)
    with_gradients = route(of_equals.requires_grad_(), 8, scoring="sigmoid")
    assert torch.equal(with_gradients[0], equals[0])
