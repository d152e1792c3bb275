"""Where tokens go: the choice of experts, and their rows in each layout."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
import torch
from gemm_ladder.errors import InputError
from gemm_ladder.layers import route, routing
from gemm_ladder.layers.routing import LAYOUTS

BF16 = torch.bfloat16
INF = float("inf")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_places(layout: routing.Layout) -> None:
    """Written down by hand: five choices, one of which is no expert."""
    chosen = torch.tensor([[2, 0], [0, -1], [2, 3]])
    placed = routing.place(chosen, 4, layout)
    if layout == "masked":
        assert placed.size == 12 and placed.rows.tolist() == [2, 0, 2, 1]
        assert placed.places.tolist() == [[6, 0], [1, 12], [7, 9]]
        assert placed.tokens().tolist() == [0, 1, -1, -1, -1, -1, 0, 2, -1, 2, -1, -1]
        return
    assert placed.size == routing.most_rows(6, 4) == 512
    assert placed.places.tolist() == [[128, 0], [1, 512], [129, 256]]
    held = placed.tokens()
    assert held[[0, 1, 128, 129, 256]].tolist() == [0, 1, 0, 2, 2] and (held == -1).sum() == 512 - 5
    if layout == "psum":
        assert placed.rows.tolist() == [2, 128, 130, 257]
    else:
        assert placed.rows[[0, 1, 128, 129, 256]].tolist() == [0, 0, 2, 2, 3]
        assert (placed.rows == -1).sum() == 512 - 5


def test_room() -> None:
    """For more rows than there are tokens, and for fewer."""
    chosen = torch.tensor([[2, 0], [0, -1], [2, 3]])
    placed = routing.place(chosen, 4, "masked", room=128)
    assert placed.size == 512 and placed.rows.tolist() == [2, 0, 2, 1]
    assert placed.places.tolist() == [[256, 0], [1, 512], [257, 384]]
    placed = routing.place(chosen, 4, "masked", room=1)
    assert placed.size == 4 and placed.rows.tolist() == [1, 0, 1, 1]
    assert placed.places.tolist() == [[2, 0], [4, 4], [4, 3]]


def test_most_rows_is_enough_and_needed() -> None:
    """The worst choices need exactly so many rows."""
    for choices, experts in ((1, 8), (8, 8), (300, 8), (300, 2)):
        spread = torch.arange(choices) % experts
        one_each = (torch.arange(choices) - choices + experts).clamp(min=0)  # and all others to expert 0
        for chosen in (spread, torch.zeros_like(spread), one_each):
            placed = routing.place(chosen[:, None], experts, "psum")
            assert placed.places.max() < placed.size
        blocks = -(-torch.bincount(one_each, minlength=experts) // 128)
        assert blocks.sum() * 128 == placed.size, (choices, experts)
    assert routing.most_rows(1, 8) == 128 and routing.most_rows(8, 8) == 1024


def test_route() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0, -1.0], [0.0, 0.0, 5.0, 1.0]])
    chosen, factors = route(logits, 2)
    scores = logits.softmax(-1)
    assert chosen.tolist() == [[1, 2], [2, 3]]
    torch.testing.assert_close(factors.sum(-1), torch.ones(2))
    torch.testing.assert_close(factors[0, 0] / factors[0, 1], scores[0, 1] / scores[0, 2])
    chosen, factors = route(logits.to(BF16), 2, scoring="sigmoid", normalize=False, scale=2.5)
    assert chosen.tolist() == [[1, 2], [2, 3]] and factors.dtype == torch.float32
    torch.testing.assert_close(factors[0], 2.5 * torch.sigmoid(torch.tensor([3.0, 2.0])))
    chosen, factors = route(logits, 1, bias=torch.tensor([9.0, 0, 0, 0]), normalize=False)
    assert chosen.tolist() == [[0], [0]]  # chosen by its bias, weighted without
    torch.testing.assert_close(factors[:, 0], scores[:, 0])
    none = torch.full((1, 4), -200.0)  # their sigmoids are 0 in FP32
    assert route(none, 2, scoring="sigmoid")[1].tolist() == [[0, 0]]
    for call, message in (
        (lambda: route(logits, 5), "top_k is 5; 1 to 4, the number of experts, is needed"),
        (lambda: route(logits, 0), "top_k is 0; 1 to 4, the number of experts, is needed"),
        (lambda: route(logits, 2, scoring="tanh"), "scoring is 'tanh'; 'softmax' or 'sigmoid' is needed"),
        (
            lambda: route(logits.int(), 2),
            "logits is torch.int32 [2, 4]; a tensor [..., experts] of a floating-point type is needed",
        ),
        (
            lambda: route(logits, 2, bias=torch.ones(3)),
            "bias is torch.float32 [3]; a floating-point type and [4], one for each expert, is needed",
        ),
        (
            lambda: route(logits, 2, bias=torch.ones(4, dtype=torch.int64)),
            "bias is torch.int64 [4]; a floating-point type and [4], one for each expert, is needed",
        ),
        (lambda: route(logits, 2, bias=1.0), "bias is of type float; a torch.Tensor or None is needed"),
        (
            lambda: route(logits, 2, bias=torch.ones(4, device="meta")),
            "bias is on meta and logits on cpu; one device is needed",
        ),
        (lambda: route(logits, 2, normalize="no"), "normalize is of type str; a bool is needed"),
        (lambda: route(logits, 2, scale="2"), "scale is of type str; a number is needed"),
        (lambda: route(logits, 2, scale=torch.ones(2)), "scale is of type Tensor; a number is needed"),
        (lambda: route(logits, 2, scale=None), "scale is of type NoneType; a number is needed"),
        (
            lambda: route(3, 2),
            "logits is of type int; a tensor [..., experts] of a floating-point type is needed",
        ),
    ):
        with pytest.raises(InputError) as refused:
            call()
        assert str(refused.value) == message


def of_best_groups(
    scores: np.ndarray, top_k: int, num_groups: int, top_groups: int, counted: int
) -> tuple[set[int], list[float]]:
    """What one token's float32 `scores` [experts] ask for: the experts of its best groups, each group as good
    as the sum of its `counted` largest, and the largest scores among them, of which no two finite ones may be
    equal."""
    groups = np.split(np.arange(len(scores)), num_groups)
    good = [np.sort(scores[group])[::-1][:counted].sum() for group in groups]
    best = sorted(range(num_groups), key=lambda group: -good[group])[:top_groups]
    allowed = [int(expert) for group in best for expert in groups[group]]
    return set(allowed), sorted(scores[allowed].tolist(), reverse=True)[:top_k]


@pytest.mark.parametrize("scoring", ["softmax", "sigmoid"])
@pytest.mark.parametrize("group_score", ["top2", "max"])
@pytest.mark.parametrize(
    "bias", ["none", "random", "all negative", "one group negative", "-inf", "a group of -inf"]
)
def test_groups(
    bias: str, group_score: routing.GroupScore, scoring: Literal["softmax", "sigmoid"], device: str
) -> None:
    """As written down one token at a time, for biases that a masked expert's score of 0 or -inf would not
    survive."""
    experts, top_k, groups, top_groups = 32, 6, 8, 2
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(3, 20, experts, generator=generator).to(device)
    added = 0.3 * torch.randn(experts, generator=generator)
    if bias == "all negative":
        added -= 5
    elif bias == "one group negative":
        added[8:12] -= 5
    elif bias == "-inf":  # two in each group are finite, so that two of the six chosen are not
        added.view(groups, -1)[:, 1:3] = -INF
    elif bias == "a group of -inf":
        added[:4] = -INF
    added = added.to(device)
    chosen, factors = route(
        logits,
        top_k,
        scoring=scoring,
        bias=None if bias == "none" else added,
        scale=2.5,
        num_groups=groups,
        top_groups=top_groups,
        group_score=group_score,
    )
    scores = logits.softmax(-1) if scoring == "softmax" else logits.sigmoid()
    chosen_by = scores if bias == "none" else scores + added
    assert (chosen.shape, chosen.dtype) == ((3, 20, top_k), torch.int64)
    counted = {"top2": 2, "max": 1}[group_score]
    limited = 0
    for mine, numbers in zip(chosen.reshape(-1, top_k).tolist(), chosen_by.reshape(-1, experts), strict=True):
        numbers = numbers.cpu().numpy()
        allowed, wanted = of_best_groups(numbers, top_k, groups, top_groups, counted)
        assert set(mine) <= allowed and len(set(mine)) == top_k
        assert numbers[mine].tolist() == wanted
        limited += wanted != sorted(numbers.tolist(), reverse=True)[:top_k]
    assert limited > 50  # of 60 tokens; without groups they would go elsewhere
    wanted = scores.gather(-1, chosen)
    torch.testing.assert_close(factors, 2.5 * wanted / wanted.sum(-1, keepdim=True))


def test_the_score_of_a_group() -> None:
    """By hand: group 0 has the best expert, group 1 the best two."""
    logits = torch.tensor([3.0, -4.0, -5.0, 2.0, 1.0, 0.0])

    def routed(
        group_score: routing.GroupScore, bias: torch.Tensor | None = None
    ) -> tuple[list[int], list[float]]:
        chosen, factors = route(
            logits,
            2,
            scoring="sigmoid",
            bias=bias,
            normalize=False,
            num_groups=2,
            top_groups=1,
            group_score=group_score,
        )
        return chosen.tolist(), factors.tolist()

    scores = logits.sigmoid().tolist()
    assert routed("top2") == ([3, 4], scores[3:5]) and routed("max") == ([0, 1], scores[:2])
    # A bias decides which group is better, and is in no weight.
    assert routed("top2", torch.tensor([2.0, 0, 0, 0, 0, 0])) == ([0, 1], scores[:2])
    assert routed("max", torch.tensor([-1.0, 0, 0, 0, 0, 0])) == ([3, 4], scores[3:5])


def test_groups_that_limit_nothing() -> None:
    logits, bias = torch.randn(50, 12, generator=torch.Generator().manual_seed(0)).to(BF16), torch.randn(12)
    wanted = route(logits, 3, bias=bias, scale=2)
    for groups in (
        {"num_groups": 1},
        {"num_groups": 1, "top_groups": 1, "group_score": "max"},
        {"num_groups": 4, "top_groups": 4},
        {"num_groups": 12, "top_groups": 3},  # of one expert each
    ):
        found = route(logits, 3, bias=bias, scale=2, **groups)
        assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True)), groups


@pytest.mark.parametrize("group_score", ["top2", "max"])
def test_groups_with_nan(group_score: routing.GroupScore, device: str) -> None:
    """A NaN is larger than all numbers, as in torch.topk, and no other token's affair."""
    logits = torch.randn(4, 16, generator=torch.Generator().manual_seed(0)).to(device)
    spoilt = logits.clone()
    spoilt[1, 6] = torch.nan

    def routed(given: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return route(given, 3, scoring="sigmoid", num_groups=4, top_groups=2, group_score=group_score)

    chosen, factors = routed(spoilt)
    assert chosen[1, 0] == 6 and len(set(chosen[1].tolist())) == 3 and factors[1].isnan().all()
    others = torch.tensor([0, 2, 3], device=device)
    for found, wanted in zip((chosen, factors), routed(logits), strict=True):
        assert torch.equal(found[others], wanted[others])


def test_groups_of_unknown_sizes() -> None:
    """On the meta device, with no tokens, and compiled for any number of them."""

    def routed(given: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return route(given, 3, num_groups=4, top_groups=2)

    assert [one.shape for one in routed(torch.empty(2, 5, 16, device="meta"))] == [(2, 5, 3)] * 2
    assert [one.shape for one in routed(torch.empty(0, 16))] == [(0, 3)] * 2
    torch._dynamo.reset()
    compiled = torch.compile(routed, fullgraph=True, backend="aot_eager", dynamic=True)
    for tokens in (4, 9):
        logits = torch.randn(tokens, 16, generator=torch.Generator().manual_seed(tokens))
        for found, wanted in zip(compiled(logits), routed(logits), strict=True):
            assert torch.equal(found, wanted)


def test_groups_with_gradients() -> None:
    """They flow through the weights, as without groups."""
    logits = torch.randn(9, 16, generator=torch.Generator().manual_seed(0), requires_grad=True)
    chosen, factors = route(logits, 3, num_groups=4, top_groups=2)
    grad = torch.randn(factors.shape, generator=torch.Generator().manual_seed(1))
    (found,) = torch.autograd.grad(factors, logits, grad)
    weights = logits.softmax(-1).gather(-1, chosen)
    (wanted,) = torch.autograd.grad(weights / weights.sum(-1, keepdim=True), logits, grad)
    assert wanted.abs().max() > 0.01
    torch.testing.assert_close(found, wanted)


@pytest.mark.gpu
def test_groups_in_a_cuda_graph() -> None:
    logits, bias = torch.randn(50, 256, device="cuda"), torch.randn(256, device="cuda")

    def routed() -> tuple[torch.Tensor, torch.Tensor]:
        return route(logits, 8, scoring="sigmoid", bias=bias, num_groups=8, top_groups=4)

    routed()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):  # which refuses to wait
        captured = routed()
    for _ in range(2):
        logits.normal_()
        graph.replay()
        for found, wanted in zip(captured, routed(), strict=True):
            assert torch.equal(found, wanted)


def test_groups_refused() -> None:
    logits = torch.zeros(2, 12)
    divisor = "a divisor of 12, the number of experts, is needed"
    of_four = "1 to 4, the number of groups, is needed"
    for given, message in (
        ({"num_groups": 5, "top_groups": 1}, f"num_groups is 5; {divisor}"),
        ({"num_groups": 24, "top_groups": 1}, f"num_groups is 24; {divisor}"),
        ({"num_groups": 0, "top_groups": 1}, f"num_groups is 0; {divisor}"),
        ({"num_groups": -4, "top_groups": 1}, f"num_groups is -4; {divisor}"),
        ({"top_k": -1}, "top_k is -1; 1 to 12, the number of experts, is needed"),
        ({"num_groups": 4, "top_groups": -1}, f"top_groups is -1; {of_four}"),
        ({"num_groups": 4.0, "top_groups": 1}, "num_groups is of type float; an int is needed"),
        ({"num_groups": True}, "num_groups is of type bool; an int is needed"),
        ({"top_k": True}, "top_k is of type bool; an int is needed"),
        ({"num_groups": None}, "num_groups is of type NoneType; an int is needed"),
        ({"num_groups": torch.tensor(4)}, "num_groups is of type Tensor; an int is needed"),
        ({"num_groups": 4}, f"top_groups is None; {of_four}"),
        ({"num_groups": 4, "top_groups": 0}, f"top_groups is 0; {of_four}"),
        ({"num_groups": 4, "top_groups": 5}, f"top_groups is 5; {of_four}"),
        ({"top_groups": 2}, "top_groups is 2; 1 to 1, the number of groups, is needed"),
        ({"num_groups": 4, "top_groups": True}, "top_groups is of type bool; an int is needed"),
        ({"num_groups": 4, "top_groups": 2.0}, "top_groups is of type float; an int is needed"),
        (
            {"num_groups": 4, "top_groups": 1},
            "top_k is 4; 1 to 3, the number of experts in top_groups, is needed",
        ),
        ({"group_score": "sum"}, "group_score is 'sum'; 'top2' or 'max' is needed"),
        ({"group_score": 2}, "group_score is 2; 'top2' or 'max' is needed"),
    ):
        with pytest.raises(InputError) as refused:
            route(logits, **{"top_k": 4, **given})
        assert str(refused.value) == message


@pytest.mark.parametrize("layout", LAYOUTS)
def test_places_of_many(layout: routing.Layout, device: str) -> None:
    """As counted one by one, for any number of experts and any nonsense among the choices; none of them lies
    outside, or in another's row."""
    for tokens, top_k, experts, dtype in (
        (1, 1, 1, torch.int64),
        (40, 3, 7, torch.int32),
        (9, 16, 40000, torch.int64),
        (150, 8, 64, torch.int64),
    ):
        generator = torch.Generator().manual_seed(tokens)
        chosen = torch.randint(-1, experts + 1, (tokens, top_k), generator=generator)
        chosen[0], chosen[-1, 0] = experts - 1, 2**31 - 1  # an expert more than once
        if dtype == torch.int64:
            chosen[0, -1], chosen[tokens // 2, 0] = 1 << 40, -(1 << 40)
        placed = routing.place(chosen.to(device, dtype), experts, layout)
        ends, first = [0] * experts, 0
        counts = torch.bincount(chosen[(chosen >= 0) & (chosen < experts)], minlength=experts).tolist()
        begins = []
        for expert in range(experts):
            begins.append(expert * tokens if layout == "masked" else first)
            first += -(-counts[expert] // 128) * 128
        wanted, held = torch.full_like(chosen, placed.size), torch.full((placed.size,), -1)
        for token in range(tokens):
            for choice, expert in enumerate(chosen[token].tolist()):
                if 0 <= expert < experts and (layout != "masked" or ends[expert] < tokens):
                    wanted[token, choice] = begins[expert] + ends[expert]
                    held[wanted[token, choice]] = token
                    ends[expert] += 1
        assert torch.equal(placed.places.cpu(), wanted) and placed.places.dtype == torch.int64
        assert torch.equal(placed.tokens().cpu().long(), held)
        assert placed.rows.dtype == torch.int32 and placed.rows.is_contiguous()
        if layout == "masked":
            assert placed.rows.tolist() == ends
        elif layout == "psum":
            assert placed.rows.tolist() == [begin + end for begin, end in zip(begins, ends, strict=True)]
        else:
            rows = torch.full((placed.size,), -1)
            for expert, (begin, end) in enumerate(zip(begins, ends, strict=True)):
                rows[begin : begin + end] = expert
            assert torch.equal(placed.rows.cpu().long(), rows)
