"""How tokens are dispatched to their experts on other GPUs, and results sent back: in all-to-alls of rows of
bytes, after the ranks have told each other how many of them go where."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from gemm_ladder.casts.kernel import INPUTS
from gemm_ladder.errors import InputError
from gemm_ladder.layers import row_format, weights
from gemm_ladder.layers.row_format import RowFormat


class Dispatched(NamedTuple):
    """What a rank has received, and what it needs to send the results back.

    Attributes:
        rows: uint8 [received, ...]: for each row its codes, scales, experts and weights.
        top_k: how many experts a row has.
        here: how many of the received rows' choices are experts of this rank, at most; exact unless every
            token goes everywhere.
        places: int64 [tokens, of each]: of this rank's own tokens, which returned rows a token adds up; the
            number of these rows where it is none.
        factors: [tokens, of each], by which it multiplies them; None for 1.
        returned, sent: the numbers of rows that come back from each rank, and that go back to each.
        bytes: what this rank has sent to others.
    """

    rows: torch.Tensor
    top_k: int
    here: int
    places: torch.Tensor
    factors: torch.Tensor | None
    returned: list[int]
    sent: list[int]
    bytes: int


class Rows(NamedTuple):
    """A call's tokens as rows: x, [tokens, hidden], and each one's experts and their weights, [tokens,
    top_k]."""

    x: torch.Tensor
    chosen: torch.Tensor
    factors: torch.Tensor


class NeedsGrad(NamedTuple):
    """Which gradients are needed: of x, of expert_weights, of the experts' parameters."""

    x: bool = False
    factors: bool = False
    experts: bool = False


class DispatchPlan(NamedTuple):
    """How many tokens and choices this rank exchanges with each other rank in a call.

    Attributes:
        group: the process group.
        owner: int64 [tokens, of each]: the rank of each choice of this rank's tokens, from 1; 0 or one more
            than there are ranks where it is nobody's.
        row_of_token: int64 [ranks, tokens]: the row in which a token goes to a rank; the number of all rows
            where it does not.
        tokens_to, tokens_from: how many tokens go to each rank, and come from it.
        choices_to, choices_from: how many choices these are.
        top_k: how many experts a token has, on all ranks.
        needs_grad: the gradients that some rank needs.
        dtype: of the tokens; the same on all ranks that have some, where gradients of experts are needed.
    """

    group: dist.ProcessGroup
    owner: torch.Tensor
    row_of_token: torch.Tensor
    tokens_to: list[int]
    tokens_from: list[int]
    choices_to: list[int]
    choices_from: list[int]
    top_k: int
    needs_grad: NeedsGrad
    dtype: torch.dtype

    def form(self, hidden: int, top_k: int) -> RowFormat:
        """The format of tokens, and of the gradients of their results: in FP8, or in the tokens' type where
        gradients of experts are needed, which cast them per channel."""
        dtype = self.dtype if self.needs_grad.experts else weights.E4M3
        return row_format.token_format(hidden, top_k, dtype)

    def token_of_row(self) -> torch.Tensor:
        """int64 [sum of tokens_to]: the token of each row that is sent."""
        row = self.row_of_token
        found = row.new_empty(sum(self.tokens_to) + 1)
        found[row] = torch.arange(row.shape[1], device=row.device).expand_as(row)
        return found[:-1]

    def dispatch(
        self, form: RowFormat, tokens: torch.Tensor, x: torch.Tensor, use_ue8m0: bool, *others: torch.Tensor
    ) -> torch.Tensor:
        """uint8 [sum of tokens_from, width]: what comes here when every rank sends rows of its tokens.

        Args:
            form: the rows' format.
            tokens: as token_of_row() gives them.
            x, use_ue8m0, others: what `row_format.pack_tokens` makes them of.
        """
        if not len(tokens):
            x, others = x[:0], ()
        sent = row_format.pack_tokens(form, x, use_ue8m0, *others).view(torch.int64)[tokens]
        received = sent.new_empty(sum(self.tokens_from), sent.shape[1])
        dist.all_to_all_single(received, sent, self.tokens_from, self.tokens_to, group=self.group)
        return received.view(torch.uint8)

    def send_back(self, rows: torch.Tensor, by_choice: bool) -> torch.Tensor:
        """What comes back when every rank sends a row for each token that it received or, by choice, for each
        of its choices."""
        returned, sent = (
            (self.choices_to, self.choices_from) if by_choice else (self.tokens_to, self.tokens_from)
        )
        found = rows.new_empty(sum(returned), rows.shape[1])
        dist.all_to_all_single(found, rows, returned, sent, group=self.group)
        return found

    def row_of_choice(self, by_choice: bool) -> torch.Tensor:
        """int64 [tokens, of each]: which returned row has each choice's result; for what is nobody's the
        number of these rows. By choice each has a row, and they are sorted by owner, token and place."""
        if not by_choice:
            none = self.row_of_token.new_full((1, self.row_of_token.shape[1]), sum(self.tokens_to))
            return torch.cat((none, self.row_of_token, none)).gather(0, self.owner.t()).t()
        nobody_last = self.owner.masked_fill(self.owner == 0, len(self.row_of_token) + 1)
        order = nobody_last.view(-1).sort(stable=True).indices
        row = torch.empty_like(order)
        row[order] = torch.arange(len(order), device=order.device)
        return row.clamp(max=sum(self.choices_to)).view(self.owner.shape)

    def rows_to_add(self) -> torch.Tensor:
        """int64 [tokens, some]: the returned rows that a token adds up, if there is one for each rank that it
        went to; the number of these rows where there is none."""
        # For each rank, or where there are more of them than a token can reach, for each that it does.
        if len(self.row_of_token) <= self.top_k:
            return self.row_of_token.t()
        by_rank, order = self.owner.sort(dim=1)
        again = torch.nn.functional.pad(by_rank[:, 1:] == by_rank[:, :-1], (1, 0))
        return self.row_of_choice(False).gather(1, order).masked_fill(again, sum(self.tokens_to))


def plan_dispatch(
    group: dist.ProcessGroup, owner: torch.Tensor, dtype: torch.dtype, needs_grad: NeedsGrad | None
) -> DispatchPlan:
    """Tell the ranks how many tokens come from here, and hear it of them; this waits for the GPU.

    Args:
        group, owner: as DispatchPlan has them.
        dtype: of this rank's tokens.
        needs_grad: the gradients that this rank needs; None if it can have none.

    Raises:
        InputError: a rank has refused its input; ranks differ in top_k; some need gradients where others can
            have none; or gradients of experts are needed and the tokens are of several types. All ranks hear
            the same, so all of them raise it.
    """
    (tokens, top_k), size = owner.shape, dist.get_world_size(group)
    goes = torch.zeros(tokens, size + 2, dtype=torch.int64, device=owner.device)
    goes.scatter_add_(1, owner, torch.ones_like(owner))
    choices = goes[:, 1 : size + 1].t().contiguous()
    is_sent = choices > 0
    has_choices = bool(tokens and top_k)
    message = _Message(
        top_k if has_choices else None, dtype if has_choices else None, refused=False, needs_grad=needs_grad
    )
    told = torch.stack((is_sent.sum(1), choices.sum(1), choices.new_full((size,), message.encoded())), 1)
    (tokens_to, choices_to, _), (tokens_from, choices_from, encoded) = _exchange(told, group)
    messages = [_Message.decoded(number) for number in encoded]
    for rank, found in enumerate(messages):
        if found.refused:
            raise InputError(
                f"rank {rank} refused its input, and its own error says why; the call needs every rank"
            )
    common = _one_for_all("number", "a token has {} experts", [found.top_k for found in messages])
    of_ranks = [found.needs_grad or NeedsGrad() for found in messages]
    needed = NeedsGrad(*(any(of_one) for of_one in zip(*of_ranks, strict=True)))
    if any(needed) and any(found.needs_grad is None for found in messages):
        one = next(rank for rank, found in enumerate(of_ranks) if any(found))
        other = next(rank for rank, found in enumerate(messages) if found.needs_grad is None)
        raise InputError(
            f"rank {one} needs gradients and rank {other} can have none, as they are disabled there, it "
            "calls dispatch, or its alignment is no multiple of 128; the backward pass needs every rank"
        )
    types = [found.dtype for found in messages]
    common_type = next(filter(None, types), None)
    if needed.experts:
        _one_for_all("type", "x is {}", types)
    row_of_token = torch.where(is_sent, is_sent.view(-1).cumsum(0).view_as(is_sent) - 1, sum(tokens_to))
    return DispatchPlan(
        *(group, owner, row_of_token, tokens_to, tokens_from, choices_to, choices_from),
        *(common or 0, needed, common_type or dtype),
    )


def refuse_dispatch(group: dist.ProcessGroup, device: torch.device) -> None:
    """Tell the ranks, which are in `plan_dispatch`, that this one refuses its input; all raise then.

    device: where the group's tensors are."""
    told = torch.zeros(dist.get_world_size(group), 3, dtype=torch.int64, device=device)
    told[:, 2] = _Message(None, None, refused=True, needs_grad=None).encoded()
    _exchange(told, group)


def _exchange(told: torch.Tensor, group: dist.ProcessGroup) -> list[list[list[int]]]:
    """What this rank tells each of the others, [ranks, 3], and what it hears of each, transposed and on the
    host, for which this waits."""
    heard = torch.empty_like(told)
    dist.all_to_all_single(heard, told, group=group)
    found: list[list[list[int]]] = torch.stack((told, heard)).transpose(1, 2).tolist()
    return found


def _one_for_all(noun: str, words: str, of_ranks: list[Any]) -> Any:
    """What all ranks have, but for those that have None; raises InputError where it differs."""
    known = [(rank, one) for rank, one in enumerate(of_ranks) if one is not None]
    for rank, one in known:
        if one != known[0][1]:
            raise InputError(
                f"{words.format(known[0][1])} on rank {known[0][0]} and {one} on rank {rank}; one {noun} is "
                "needed for all"
            )
    return known[0][1] if known else None


_TYPES = tuple(INPUTS)


class _Message(NamedTuple):
    """What ranks tell each other of a call.

    Attributes:
        top_k, dtype: None where there are no tokens.
        refused: whether the rank refuses its input.
        needs_grad: the gradients that it needs; None if it can have none.
    """

    top_k: int | None
    dtype: torch.dtype | None
    refused: bool
    needs_grad: NeedsGrad | None

    def encoded(self) -> int:
        """All in one integer: five flags, two bits of the type, and top_k, which is 0 for None."""
        known = 0
        if self.top_k is not None and self.dtype is not None:
            known = self.top_k << 2 | _TYPES.index(self.dtype)
        flags = (self.refused, self.needs_grad is not None, *(self.needs_grad or NeedsGrad()))
        return known << len(flags) | sum(flag << place for place, flag in enumerate(flags))

    @classmethod
    def decoded(cls, number: int) -> _Message:
        refused, enabled, *needed = (bool(number >> place & 1) for place in range(2 + len(NeedsGrad._fields)))
        known = number >> 2 + len(NeedsGrad._fields)
        top_k, dtype = (known >> 2, _TYPES[known & 3]) if known else (None, None)
        return cls(top_k, dtype, refused, NeedsGrad(*needed) if enabled else None)


def rows_of_choices(chosen: torch.Tensor, experts: int, places: torch.Tensor, here: int) -> torch.Tensor:
    """int64 [here]: the row of each choice that is one of `experts`, in the order of tokens and choices.

    Args:
        chosen: [tokens, top_k]: a number of 0 or more and less than `experts` is an expert's.
        places: int64 [tokens, top_k]: the row of each, as routing.place gives it.
        here: how many are an expert's.
    """
    is_here = (chosen.view(-1) >= 0) & (chosen.view(-1) < experts)
    behind = torch.where(is_here, is_here.cumsum(0) - 1, here)
    order = places.new_empty(here + 1)
    order[behind] = places.view(-1)
    return order[:-1]
