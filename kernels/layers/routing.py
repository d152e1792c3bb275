"""Which experts a token goes to, and in which row of which layout it lies there.

Nothing here waits for a GPU: the sizes of all tensors follow from the number of tokens, not from where they
go, so a CUDA graph can capture it.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import torch
from gemm_ladder import settings
from gemm_ladder.errors import InputError

Layout = Literal["contiguous", "masked", "psum"]
LAYOUTS: tuple[Layout, ...] = get_args(Layout)


class Placement(NamedTuple):
    """Where each choice of each token lies in a grouped layout.

    Attributes:
        layout: which.
        size: how many rows it has; in the masked layout those of all groups, which have tokens' number each.
        rows: the tensor that the product takes: m_indices int32 [size], masked_m or grouped_layout int32
            [experts].
        places: int64 [tokens, top_k]: the row of each choice; `size` where the choice is no expert.
        most: how many choices are experts, at most.
    """

    layout: Layout
    size: int
    rows: torch.Tensor
    places: torch.Tensor
    most: int

    def tokens(self) -> torch.Tensor:
        """int32 [size]: the token of each row; -1 where it has none."""
        found = self.places.new_full((self.size + 1,), -1, dtype=torch.int32)
        found[self.places.view(-1)] = self.token_of_choice().int()
        return found[: self.size]

    def token_of_choice(self) -> torch.Tensor:
        """int64 [tokens * top_k]: the token whose choice it is."""
        token = torch.arange(len(self.places), device=self.places.device)
        return token[:, None].expand(self.places.shape).reshape(-1)


def route(
    logits: torch.Tensor,
    top_k: int,
    *,
    scoring: Literal["softmax", "sigmoid"] = "softmax",
    bias: torch.Tensor | None = None,
    normalize: bool = True,
    scale: float = 1.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The experts that each token goes to, and with which weights.

    Args:
        logits: [..., experts], of a floating-point type: what the router's linear layer gives.
        top_k: how many experts a token goes to.
        scoring: how logits become scores, in FP32.
        bias: [experts], added to the scores for the choice alone, as DeepSeek-V3 does to balance the load.
        normalize: divide a token's weights by their sum.
        scale: multiply the weights by it, at last.

    Returns:
        int64 and float32 [..., top_k]: the experts, the one with the largest score first, and the weights.

    Raises:
        InputError: logits is no such tensor, top_k is below 1 or more than there are experts, or scoring is
            neither.
    """
    if not isinstance(logits, torch.Tensor) or not logits.is_floating_point() or logits.dim() == 0:
        is_tensor = isinstance(logits, torch.Tensor)
        given = f"{logits.dtype} {list(logits.shape)}" if is_tensor else f"of type {type(logits).__name__}"
        raise InputError(f"logits is {given}; a tensor [..., experts] of a floating-point type is needed")
    if not 1 <= settings.whole_number("top_k", top_k) <= logits.shape[-1]:
        raise InputError(f"top_k is {top_k}; 1 to {logits.shape[-1]}, the number of experts, is needed")
    if scoring not in ("softmax", "sigmoid"):
        raise InputError(f"scoring is {scoring!r}; 'softmax' or 'sigmoid' is needed")
    scores = logits.float().softmax(-1) if scoring == "softmax" else logits.float().sigmoid()
    chosen_by = scores if bias is None else scores + bias
    experts = chosen_by.topk(top_k, dim=-1).indices
    weights = scores.gather(-1, experts)
    if normalize:
        weights = weights / weights.sum(-1, keepdim=True)
    return experts, weights * scale


def layout_for(tokens: int, top_k: int, experts: int) -> Layout:
    """The layout with fewer rows: masked for few tokens, psum for many."""
    return "masked" if experts * tokens <= most_rows(tokens * top_k, experts) else "psum"


def most_rows(choices: int, experts: int) -> int:
    """The most rows of a contiguous or psum layout, whoever chooses what: each group that has a row may need
    one row less than the alignment as padding."""
    alignment = settings.get_mk_alignment_for_contiguous_layout()
    return (choices + min(experts, choices) * (alignment - 1)) // alignment * alignment


def place(chosen: torch.Tensor, experts: int, layout: Layout, most: int | None = None) -> Placement:
    """Lay out the choices of all tokens, those of an expert in the order of the tokens.

    Args:
        chosen: int32 or int64 [tokens, top_k]: experts. What is below 0, or not below `experts`, is no
            expert: the choice has no row.
        experts: how many there are.
        layout: of the product. In the masked layout each expert has room for every token once, and choices
            beyond that have no row.
        most: how many of the choices are experts, or more; all if None. A contiguous or psum layout has rows
            for so many.
    """
    tokens, top_k = chosen.shape
    choices = chosen.reshape(-1).long()
    most = len(choices) if most is None else most
    # A bucket behind the last expert's for the choices that are no expert.
    choices = choices.where((choices >= 0) & (choices < experts), experts)
    of_sorted, order = choices.sort(stable=True)
    buckets = torch.arange(experts + 1, device=chosen.device)
    ends = torch.searchsorted(of_sorted, buckets, right=True)
    begins = torch.searchsorted(of_sorted, buckets)
    counts = ends - begins
    rank = torch.arange(len(choices), device=chosen.device) - begins[of_sorted]
    if layout == "masked":
        size, first = experts * tokens, buckets * tokens
        rows = counts[:experts].clamp(max=tokens)
        of_sorted = of_sorted.where(rank < tokens, experts)  # none outside, whatever is chosen twice
    else:
        alignment = settings.get_mk_alignment_for_contiguous_layout()
        size = most_rows(most, experts)
        padded = (counts + alignment - 1) // alignment * alignment
        behind = padded.cumsum(0)
        first = behind - padded
        rows = (first + counts)[:experts]
        if layout == "contiguous":
            row = torch.arange(size, device=chosen.device)
            group = torch.searchsorted(behind[:experts], row, right=True)
            inside = row < torch.cat([rows, rows.new_zeros(1)])[group]
            rows = group.where(inside, -1)
    place_of_sorted = (first[of_sorted] + rank).where(of_sorted < experts, size)
    places = torch.empty_like(place_of_sorted)
    places[order] = place_of_sorted
    return Placement(layout, size, rows.int(), places.view(tokens, top_k), most)
