"""How tokens travel to their experts on other GPUs, and results back: as rows of bytes, whose form all ranks
know, after the ranks have told each other how many of them go where."""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from gemm_ladder import scales
from gemm_ladder.arguments import SCALE_BLOCK, align, ceil_div
from gemm_ladder.casts import functions
from gemm_ladder.casts.kernel import INPUTS
from gemm_ladder.errors import InputError
from gemm_ladder.layers import weights

ALIGNMENT = 16  # bytes that a row is a multiple of


class Form(NamedTuple):
    """What a row of bytes is made of: for each part how many numbers of which type it has."""

    parts: tuple[tuple[int, torch.dtype], ...]

    @property
    def begins(self) -> list[int]:
        """Where in a row its parts begin, and where the last one ends."""
        found = [0]
        for count, dtype in self.parts:
            found.append(found[-1] + count * dtype.itemsize)
        return found

    @property
    def width(self) -> int:
        """A row's bytes."""
        return align(self.begins[-1], ALIGNMENT)

    def packed(self, *parts: torch.Tensor) -> torch.Tensor:
        """uint8 [rows, width]: rows of these parts, each [rows, numbers], which are converted to the form's
        types."""
        rows = torch.empty(len(parts[0]), self.width, dtype=torch.uint8, device=parts[0].device)
        ends = itertools.pairwise(self.begins)
        for part, (begin, end), (_, dtype) in zip(parts, ends, self.parts, strict=True):
            rows[:, begin:end].view(dtype).copy_(part)
        return rows

    def unpacked(self, rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The parts of `packed` rows: views."""
        ends = itertools.pairwise(self.begins)
        return tuple(
            rows[:, begin:end].view(dtype) for (begin, end), (_, dtype) in zip(ends, self.parts, strict=True)
        )


def tokens_form(hidden: int, top_k: int, dtype: torch.dtype = weights.E4M3) -> Form:
    """Tokens: their numbers, with E4M3 the scales of these, their experts as int32, their weights as BF16."""
    of_scales = ((ceil_div(hidden, SCALE_BLOCK), torch.float32),) * (dtype == weights.E4M3)
    return Form(((hidden, dtype), *of_scales, (top_k, torch.int32), (top_k, torch.bfloat16)))


def packed(form: Form, x: torch.Tensor, use_ue8m0: bool, *others: torch.Tensor) -> torch.Tensor:
    """uint8 [tokens, width]: x, cast to FP8 if the form has that, and other parts as rows of the form."""
    if not len(x):
        return torch.empty(0, form.width, dtype=torch.uint8, device=x.device)
    in_fp8 = form.parts[0][1] == weights.E4M3
    return form.packed(*(functions.per_token_group_quant_fp8(x, use_ue8m0) if in_fp8 else (x,)), *others)


def gathered(
    codes: torch.Tensor, of_rows: torch.Tensor, token: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes and scales of rows as a contiguous or a psum layout has them.

    Args:
        codes, of_rows: float8_e4m3fn [tokens, hidden] and float32 [tokens, ceil(hidden / 128)].
        token: int32 [rows]: the token of each; those of -1 get the numbers of some token.
    """
    token = token.clamp(min=0).long()
    a = codes.view(torch.int64)[token].view(codes.dtype)
    shape = (len(token), of_rows.shape[1])
    sfa = of_rows.new_empty_strided(shape, scales.mn_major_strides(shape))
    return a, sfa.copy_(of_rows[token])


class Wishes(NamedTuple):
    """Which gradients are wanted: of the tokens, of the experts' weights for them, of the experts."""

    of_x: bool = False
    of_factors: bool = False
    of_experts: bool = False


class Journey(NamedTuple):
    """How many tokens and choices this rank exchanges with each other rank in a call.

    Attributes:
        group: the process group.
        rank: of this process.
        owner: int64 [tokens, of each]: the rank of each choice of this rank's tokens, from 1; 0 or one more
            than there are ranks where it is nobody's.
        there: bool [ranks, tokens]: whether a token goes to a rank.
        sends, receives: how many tokens go to each rank, and come from it.
        asks, answers: how many choices these are.
        top_k: how many experts a token has, on all ranks.
        wishes: the gradients that some rank wants.
        dtype: of the tokens; the same on all ranks that have some, where gradients of experts are wanted.
    """

    group: dist.ProcessGroup
    rank: int
    owner: torch.Tensor
    there: torch.Tensor
    sends: list[int]
    receives: list[int]
    asks: list[int]
    answers: list[int]
    top_k: int
    wishes: Wishes
    dtype: torch.dtype

    def form(self, hidden: int, top_k: int) -> Form:
        """That of tokens, and of the gradients of their results: in FP8, or in their own type where gradients
        of experts are wanted, which cast them per channel."""
        return tokens_form(hidden, top_k, self.dtype if self.wishes.of_experts else weights.E4M3)

    def tokens(self) -> torch.Tensor:
        """int64 [sum of sends]: the token of each row that is sent, for which this waits for the GPU."""
        return self.there.nonzero()[:, 1]

    def outward(
        self, form: Form, tokens: torch.Tensor, x: torch.Tensor, use_ue8m0: bool, *others: torch.Tensor
    ) -> torch.Tensor:
        """uint8 [sum of receives, width]: what comes here when every rank sends rows of its tokens.

        Args:
            form: of the rows.
            tokens: as the method gives them.
            x, use_ue8m0, others: what `packed` makes them of.
        """
        if not len(tokens):
            x, others = x[:0], ()
        sent = packed(form, x, use_ue8m0, *others).view(torch.int64)[tokens]
        received = sent.new_empty(sum(self.receives), sent.shape[1])
        dist.all_to_all_single(received, sent, self.receives, self.sends, group=self.group)
        return received.view(torch.uint8)

    def homeward(self, rows: torch.Tensor, by_choice: bool) -> torch.Tensor:
        """What comes back when every rank sends a row for each token that it received or, by choice, for each
        of its choices."""
        returned, sent = (self.asks, self.answers) if by_choice else (self.sends, self.receives)
        found = rows.new_empty(sum(returned), rows.shape[1])
        dist.all_to_all_single(found, rows, returned, sent, group=self.group)
        return found

    def rows(self, by_choice: bool) -> torch.Tensor:
        """int64 [tokens, of each]: which returned row has each choice's result; for what is nobody's the
        number of these rows."""
        if by_choice:
            return _places_by_owner(self.owner, len(self.there), sum(self.asks))
        row = self._sent()
        none = row.new_full((1, row.shape[1]), sum(self.sends))
        return torch.cat((none, row, none)).gather(0, self.owner.t()).t()

    def places(self, by_choice: bool) -> torch.Tensor:
        """int64 [tokens, some]: the returned rows that a token adds up; the number of these rows where there
        is none."""
        if by_choice:
            return self.rows(True)
        # For each rank, or where there are more of them than a token can reach, for each that it does.
        if len(self.there) <= self.top_k:
            return self._sent().t()
        by_rank, order = self.owner.sort(dim=1)
        again = torch.nn.functional.pad(by_rank[:, 1:] == by_rank[:, :-1], (1, 0))
        return self.rows(False).gather(1, order).masked_fill(again, sum(self.sends))

    def _sent(self) -> torch.Tensor:
        """int64 [ranks, tokens]: the row in which a token is sent to a rank; the number of rows for none."""
        there = self.there
        return torch.where(there, there.view(-1).cumsum(0).view_as(there) - 1, sum(self.sends))


def planned(
    group: dist.ProcessGroup,
    rank: int,
    owner: torch.Tensor,
    one: torch.Tensor,
    size: int,
    dtype: torch.dtype,
    wishes: Wishes | None,
) -> Journey:
    """Tell the ranks how many tokens come from here, and hear it of them; this waits for the GPU.

    Args:
        group, rank, owner: as Journey has them.
        one: int64 [1] on the device: 1, for which nothing has to be copied there.
        size: how many ranks there are.
        dtype: of this rank's tokens.
        wishes: the gradients that this rank wants; None if it cannot go back, as gradients are disabled.

    Raises:
        InputError: ranks differ in top_k; some want gradients where others have them disabled; or gradients
            of experts are wanted and the tokens are of several types. All ranks hear the same, so all of
            them raise it.
    """
    tokens, top_k = owner.shape
    goes = torch.zeros(tokens, size + 2, dtype=torch.int64, device=owner.device)
    goes.scatter_add_(1, owner, one.expand_as(owner))
    of_ranks = goes[:, 1 : size + 1].t().contiguous()
    there = of_ranks > 0
    said = one.expand(size) * _said(top_k if tokens else 0, dtype, wishes)
    told = torch.stack((there.sum(1), of_ranks.sum(1), said), 1)
    heard = torch.empty_like(told)
    dist.all_to_all_single(heard, told, group=group)
    (sends, asks, _), (receives, answers, of_all) = (
        torch.stack((told, heard)).transpose(1, 2).tolist()  # which waits for the GPU
    )
    found = [_understood(number) for number in of_all]
    common = _one_for_all("number", "a token has {} experts", [one.top_k for one in found])
    wanted = Wishes(*(any(of) for of in zip(*(one.wishes for one in found), strict=True)))
    if any(wanted) and not all(one.ready for one in found):
        first = next(rank for rank, one in enumerate(found) if any(one.wishes))
        other = next(rank for rank, one in enumerate(found) if not one.ready)
        raise InputError(
            f"gradients are wanted on rank {first} and disabled on rank {other}; one is needed for all, as "
            "they go back together"
        )
    types = [one.dtype for one in found]
    common_type = next(filter(None, types), None)
    if wanted.of_experts:
        _one_for_all("type", "x is {}", types)
    return Journey(
        *(group, rank, owner, there, sends, receives, asks, answers),
        *(common or 0, wanted, common_type or dtype),
    )


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


class _Said(NamedTuple):
    """What ranks tell each other of a call; top_k and dtype are None where there are no tokens."""

    top_k: int | None
    dtype: torch.dtype | None
    ready: bool  # gradients are not disabled
    wishes: Wishes


_TYPES = tuple(INPUTS)
_FLAGS = 1 + len(Wishes._fields)


def _said(top_k: int, dtype: torch.dtype, wishes: Wishes | None) -> int:
    """What this rank tells the others, in one integer: whether gradients are enabled, three flags of Wishes,
    two bits of dtype, and top_k."""
    known = (top_k << 2 | _TYPES.index(dtype)) if top_k else 0
    flags = (wishes is not None, *(wishes or Wishes()))
    return known << _FLAGS | sum(flag << place for place, flag in enumerate(flags))


def _understood(number: int) -> _Said:
    known = number >> _FLAGS
    ready, *wishes = (bool(number >> place & 1) for place in range(_FLAGS))
    if not known:
        return _Said(None, None, ready, Wishes(*wishes))
    return _Said(known >> 2, _TYPES[known & 3], ready, Wishes(*wishes))


def _places_by_owner(owner: torch.Tensor, size: int, count: int) -> torch.Tensor:
    """int64 [tokens, top_k]: where each choice is when all are sorted by their owner, 1 to `size`, and within
    one by token and place; `count`, which is that of all, for those that have no owner."""
    order = owner.masked_fill(owner == 0, size + 1).view(-1).sort(stable=True).indices
    places = torch.empty_like(order)
    places[order] = torch.arange(len(order), device=order.device)
    return places.clamp(max=count).view(owner.shape)


def of_choices(chosen: torch.Tensor, experts: int, places: torch.Tensor, here: int) -> torch.Tensor:
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
