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

The ranks have agreed on which gradients are wanted by any of them (`dispatching.plan_dispatch`). All of them
then have a history, even one whose tokens, of which it may have none, need no gradient: every rank that goes
back takes its part in what travels. All that travels in a pass does so within one call of this function, so
all ranks communicate in the same order, also when checkpointing computes the forward pass again.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from gemm_ladder.casts import functions
from gemm_ladder.layers import combining, dispatching, expert_products, products, routing, row_format
from gemm_ladder.layers.row_format import RowFormat


class Call(NamedTuple):
    """What a call needs besides its tensors.

    Attributes:
        plan: who sends what to whom.
        first_expert: the number of this rank's first expert.
        by_choice: whether a row travels back for each choice of a token, not one for each token.
        use_ue8m0: whether scales are rounded up to powers of two.
    """

    plan: dispatching.DispatchPlan
    first_expert: int
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
        plan, count = call.plan, len(stored.w1)
        form, tokens = plan.form(x.shape[1], plan.top_k), plan.token_of_row()
        received = plan.dispatch(form, tokens, x, call.use_ue8m0, chosen, factors)
        *numbers, their_chosen, their_factors = form.unpack(received)
        their_chosen = their_chosen - call.first_expert
        placed = routing.place(their_chosen, count, "contiguous", sum(plan.choices_from))
        a = _cast(numbers, placed.tokens(), call.use_ue8m0)
        of_experts, inner = expert_products.results(a, placed.rows, stored, call.use_ue8m0)
        if call.by_choice:
            order = dispatching.rows_of_choices(their_chosen, count, placed.places, sum(plan.choices_from))
            rows = combining.combined(of_experts, order[:, None], None)
        else:
            order, rows = None, combining.combined(of_experts, placed.places, their_factors)
        returned = plan.send_back(rows, call.by_choice)
        row_of_choice = plan.row_of_choice(call.by_choice)
        rows_to_add = row_of_choice if call.by_choice else plan.rows_to_add()
        y = combining.combined(returned, rows_to_add, factors if call.by_choice else None, x.dtype)

        ctx.call, ctx.count, ctx.hidden = call, count, x.shape[1]
        ctx.types = [None if one is None else one.dtype for one in (x, factors, gate_up, down)]
        ctx.save_for_backward(
            received if any(ctx.needs_input_grad[2:4]) else None,
            expert_products.of_rows(their_factors, placed.places, placed.size),
            *(inner, placed.places, placed.rows, order),
            *(tokens, rows_to_add, row_of_choice),
            *stored,
        )
        return y

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise products.second_derivative()
        expert_products.alignment_now(ctx.alignment)
        received, row_factors, inner, places, rows, order, tokens, rows_to_add, row_of_choice, *rest = (
            ctx.saved_tensors
        )
        call, stored, hidden = ctx.call, expert_products.Weights(*rest), ctx.hidden
        plan, needed = call.plan, call.plan.needs_grad
        form = plan.form(hidden, 0)
        none = tokens.new_empty(len(grad), 0)
        *dy, _, _ = form.unpack(plan.dispatch(form, tokens, grad, call.use_ue8m0, none, none))
        token = routing.Placement("contiguous", len(rows), rows, places, places.numel()).tokens()
        grad_inner, factor_grads, factored = expert_products.back_to_inner(
            _cast(dy, token, call.use_ue8m0), row_factors, inner, rows, stored
        )
        grad_x = grad_factors = grad_w1 = grad_w2 = None
        if needed.x or needed.factors:  # by any rank
            rows_of_result = places if order is None else order[:, None]
            grad_tokens = grad_inner.new_empty(len(rows_of_result), 0)
            if needed.x:
                grad_rows = expert_products.back_to_x(grad_inner, rows, stored, call.use_ue8m0)
                grad_tokens = combining.combined(grad_rows, rows_of_result, None)
            of_choices = torch.nn.functional.pad(factor_grads, (0, 1))[rows_of_result]  # 0 where none is
            form = RowFormat(((grad_tokens.shape[1], torch.bfloat16), (of_choices.shape[1], torch.float32)))
            sent = form.pack(grad_tokens, of_choices)
            grad_tokens, grad_choices = form.unpack(plan.send_back(sent, call.by_choice))
            if ctx.needs_input_grad[0]:
                grad_x = combining.combined(grad_tokens, rows_to_add, None, ctx.types[0])
            if ctx.needs_input_grad[1]:
                column = torch.zeros_like(row_of_choice)
                if order is None:
                    column += torch.arange(row_of_choice.shape[1], device=column.device)
                grad_choices = torch.nn.functional.pad(grad_choices, (0, 0, 0, 1))  # 0 for what is nobody's
                grad_factors = grad_choices[row_of_choice, column].to(ctx.types[1])
        if received is not None:
            x = plan.form(hidden, plan.top_k).unpack(received)[0]
            grad_weights = expert_products.back_to_weights(
                dy[0], x, grad_inner, factored, token, rows, ctx.count, call.use_ue8m0
            )
            grad_w1, grad_w2 = (
                one.to(dtype) if wanted else None
                for one, dtype, wanted in zip(
                    grad_weights, ctx.types[2:], ctx.needs_input_grad[2:4], strict=True
                )
            )
        return grad_x, grad_factors, grad_w1, grad_w2, None, None, None, None


def _cast(
    numbers: list[torch.Tensor], token: torch.Tensor, use_ue8m0: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes and scales of each row in the contiguous layout: of tokens that have been cast, or of what they
    are."""
    if len(numbers) == 2:
        return row_format.gather_tokens(numbers[0], numbers[1], token)
    return functions.per_token_group_quant_fp8(numbers[0], use_ue8m0, rows=token)
