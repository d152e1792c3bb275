"""Where tokens go: the choice of experts, and their rows in each layout."""

from __future__ import annotations

import pytest
import torch
from gemm_ladder.errors import InputError
from gemm_ladder.layers import route, routing
from gemm_ladder.layers.routing import LAYOUTS

BF16 = torch.bfloat16


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
