"""Experts over several ranks with gradients: one function of autograd, whose passes are these.

    forward     tokens travel to the ranks of their experts, which multiply; results travel back, and each
                token adds up its own
    backward    the gradients of the tokens' results travel the same way out; a token's gradient is what
                comes back, added up, and each rank keeps those of its own experts

The products are those of `expert_products`, and what is rounded between them, too. A factor, a choice's
weight, goes out with its token and is multiplied where the products are: so the gradient of a result goes out
once to each rank, and is cast before the factor, as on one device.

Tokens and the gradients of results travel in FP8, unless experts are trained: a gradient of a weight needs
the numbers, which it casts per channel.

The ranks have agreed on which gradients are wanted by any of them (`travelling.planned`). All of them then
have a history, even one whose tokens, of which it may have none, need no gradient: every rank that goes back
takes its part in what travels. All that travels in a pass does so within one call of this function, so all
ranks communicate in the same order, also when checkpointing computes the forward pass again.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from gemm_ladder.casts import functions
from gemm_ladder.layers import combining, expert_products, products, routing, travelling


class Call(NamedTuple):
    """What a call needs besides its tensors.

    Attributes:
        journey: who sends what to whom.
        first: the number of this rank's first expert.
        by_choice: whether a row travels back for each choice of a token, not one for each token.
        use_ue8m0: whether scales are rounded up to powers of two.
    """

    journey: travelling.Journey
    first: int
    by_choice: bool
    use_ue8m0: bool


def experts(
    x: torch.Tensor,
    chosen: torch.Tensor,
    factors: torch.Tensor,
    trained: tuple[torch.Tensor, torch.Tensor] | None,
    stored: expert_products.Weights,
    call: Call,
) -> torch.Tensor:
    """The experts' results for this rank's tokens, with gradients.

    Args:
        x: float32, bfloat16 or float16 [tokens, hidden].
        chosen: int64 [tokens, top_k]: experts of all ranks; numbers that fit into 32 bits.
        factors: [tokens, top_k], of a floating-point type; they are rounded to BF16.
        trained: what this rank's weights were cast from, which gets gradients; None if they are stored in
            FP8.
        stored: this rank's weights.
        call: the rest.

    Returns:
        x's type [tokens, hidden].
    """
    anchor = x.new_empty(0).requires_grad_()  # so that there is a history on every rank
    out: torch.Tensor = _Experts.apply(x, factors, *(trained or (None, None)), anchor, chosen, stored, call)
    return out


class _Experts(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        factors: torch.Tensor,
        gate_up: torch.Tensor | None,
        down: torch.Tensor | None,
        anchor: torch.Tensor,
        chosen: torch.Tensor,
        stored: expert_products.Weights,
        call: Call,
    ) -> torch.Tensor:
        ctx.alignment = expert_products.alignment_now()
        journey, count = call.journey, len(stored.w1)
        form, tokens = journey.form(x.shape[1], journey.top_k), journey.tokens()
        received = journey.outward(form, tokens, x, call.use_ue8m0, chosen, factors)
        *numbers, their_chosen, their_factors = form.unpacked(received)
        their_chosen = their_chosen - call.first
        placed = routing.place(their_chosen, count, "contiguous", sum(journey.answers))
        a = _cast(numbers, placed.tokens(), call.use_ue8m0)
        of_experts, inner = expert_products.results(a, placed.rows, stored, call.use_ue8m0)
        if call.by_choice:
            order = travelling.of_choices(their_chosen, count, placed.places, sum(journey.answers))
            rows = combining.combined(of_experts, order[:, None], None)
        else:
            order, rows = None, combining.combined(of_experts, placed.places, their_factors)
        returned = journey.homeward(rows, call.by_choice)
        places = journey.places(call.by_choice)
        y = combining.combined(returned, places, factors if call.by_choice else None, x.dtype)

        ctx.call, ctx.count, ctx.hidden = call, count, x.shape[1]
        ctx.types = [None if one is None else one.dtype for one in (x, factors, gate_up, down)]
        ctx.save_for_backward(
            received if any(ctx.needs_input_grad[2:4]) else None,
            expert_products.of_rows(their_factors, placed.places, placed.size),
            *(inner, placed.places, placed.rows, order),
            *(tokens, places, journey.rows(call.by_choice)),
            *stored,
        )
        return y

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise products.second_derivative()
        expert_products.alignment_now(ctx.alignment)
        received, row_factors, inner, places, rows, order, tokens, returned, choices, *rest = (
            ctx.saved_tensors
        )
        call, stored, hidden = ctx.call, expert_products.Weights(*rest), ctx.hidden
        journey, wanted = call.journey, call.journey.wishes
        form = journey.form(hidden, 0)
        none = tokens.new_empty(len(grad), 0)
        *dy, _, _ = form.unpacked(journey.outward(form, tokens, grad, call.use_ue8m0, none, none))
        token = routing.Placement("contiguous", len(rows), rows, places, places.numel()).tokens()
        of_inner, of_each, factored = expert_products.back_to_inner(
            _cast(dy, token, call.use_ue8m0), row_factors, inner, rows, stored
        )
        of_x = of_factors = of_w1 = of_w2 = None
        if wanted.of_x or wanted.of_factors:  # by any rank
            pick = places if order is None else order[:, None]
            back = of_inner.new_empty(len(pick), 0)
            if wanted.of_x:
                each = expert_products.back_to_x(of_inner, rows, stored, call.use_ue8m0)
                back = combining.combined(each, pick, None)
            form = travelling.Form(((back.shape[1], torch.bfloat16), (pick.shape[1], torch.float32)))
            sent = form.packed(back, torch.nn.functional.pad(of_each, (0, 1))[pick])
            of_rows, of_choices = form.unpacked(journey.homeward(sent, call.by_choice))
            if ctx.needs_input_grad[0]:
                of_x = combining.combined(of_rows, returned, None, ctx.types[0])
            if ctx.needs_input_grad[1]:
                column = torch.zeros_like(choices)
                if order is None:
                    column += torch.arange(choices.shape[1], device=choices.device)
                of_choices = torch.nn.functional.pad(of_choices, (0, 0, 0, 1))  # 0 for what is nobody's
                of_factors = of_choices[choices, column].to(ctx.types[1])
        if received is not None:
            x = journey.form(hidden, journey.top_k).unpacked(received)[0]
            of_weights = expert_products.back_to_weights(
                dy[0], x, of_inner, factored, token, rows, ctx.count, call.use_ue8m0
            )
            of_w1, of_w2 = (
                one.to(dtype) if needed else None
                for one, dtype, needed in zip(
                    of_weights, ctx.types[2:], ctx.needs_input_grad[2:4], strict=True
                )
            )
        return of_x, of_factors, of_w1, of_w2, None, None, None, None


def _cast(
    numbers: list[torch.Tensor], token: torch.Tensor, use_ue8m0: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes and scales of each row in the contiguous layout: of tokens that have been cast, or of what they
    are."""
    if len(numbers) == 2:
        return travelling.gathered(numbers[0], numbers[1], token)
    return functions.per_token_group_quant_fp8(numbers[0], use_ue8m0, rows=token)
