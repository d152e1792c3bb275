"""Which experts a token goes to, and in which row of which layout it lies there.

Nothing here waits for a GPU: the sizes of all tensors follow from the number of tokens, not from where they
go, so a CUDA graph can capture it.
"""

from __future__ import annotations

import numbers
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
        size: how many rows it has; in the masked layout those of all groups, which have equally many.
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
        token = torch.arange(len(self.places), dtype=torch.int32, device=self.places.device)
        found[self.places] = token[:, None]
        return found[: self.size]


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
        InputError: logits or bias is no such tensor, top_k is below 1 or more than there are experts, scoring
            is neither, or scale is no number.
    """
    if not isinstance(logits, torch.Tensor) or not logits.is_floating_point() or logits.dim() == 0:
        is_tensor = isinstance(logits, torch.Tensor)
        given = f"{logits.dtype} {list(logits.shape)}" if is_tensor else f"of type {type(logits).__name__}"
        raise InputError(f"logits is {given}; a tensor [..., experts] of a floating-point type is needed")
    if not 1 <= settings.whole_number("top_k", top_k) <= logits.shape[-1]:
        raise InputError(f"top_k is {top_k}; 1 to {logits.shape[-1]}, the number of experts, is needed")
    if scoring not in ("softmax", "sigmoid"):
        raise InputError(f"scoring is {scoring!r}; 'softmax' or 'sigmoid' is needed")
    _check_bias(bias, logits)
    if isinstance(scale, bool) or not isinstance(scale, numbers.Real):
        raise InputError(f"scale is of type {type(scale).__name__}; a number is needed")
    scores = logits.float().softmax(-1) if scoring == "softmax" else logits.float().sigmoid()
    chosen_by = scores if bias is None else scores + bias
    experts = chosen_by.topk(top_k, dim=-1).indices
    weights = scores.gather(-1, experts)
    if normalize:
        total = weights.sum(-1, keepdim=True)
        weights = weights / total.clamp(min=torch.finfo(total.dtype).tiny)  # scores may all be 0
    return experts, weights * scale


def _check_bias(bias: object, logits: torch.Tensor) -> None:
    if bias is None:
        return
    if not isinstance(bias, torch.Tensor):
        raise InputError(f"bias is of type {type(bias).__name__}; a torch.Tensor or None is needed")
    if not bias.is_floating_point() or tuple(bias.shape) != tuple(logits.shape[-1:]):
        raise InputError(
            f"bias is {bias.dtype} {list(bias.shape)}; a floating-point type and [{logits.shape[-1]}], one "
            "for each expert, is needed"
        )
    if bias.device != logits.device:
        raise InputError(f"bias is on {bias.device} and logits on {logits.device}; one device is needed")


def layout_for(tokens: int, top_k: int, experts: int) -> Layout:
    """The layout with fewer rows: masked for few tokens, psum for many."""
    return "masked" if experts * tokens <= most_rows(tokens * top_k, experts) else "psum"


def most_rows(choices: int, experts: int) -> int:
    """The most rows of a contiguous or psum layout, whoever chooses what: each group that has a row may need
    one row less than the alignment as padding."""
    alignment = settings.get_mk_alignment_for_contiguous_layout()
    return (choices + min(experts, choices) * (alignment - 1)) // alignment * alignment


def place(
    chosen: torch.Tensor, experts: int, layout: Layout, most: int | None = None, room: int | None = None
) -> Placement:
    """Lay out the choices of all tokens, those of an expert in the order of the tokens.

    Args:
        chosen: int32 or int64 [tokens, top_k]: experts. What is below 0, or not below `experts`, is no
            expert: the choice has no row.
        experts: how many there are.
        layout: of the product.
        most: how many of the choices are experts, or more; all if None. A contiguous or psum layout has rows
            for so many.
        room: how many rows each expert has in the masked layout, and choices beyond that have none; as many
            as there are tokens if None.
    """
    most = chosen.numel() if most is None else most
    if layout == "masked":
        return _masked(chosen, experts, most, len(chosen) if room is None else room)
    choices = chosen.reshape(-1).clamp(-1, experts)  # -1 or `experts`: no expert
    # Numbers of 16 bits are sorted in fewer passes.
    keys = choices.short() if experts < 2**15 else choices
    of_sorted, order = keys.sort(stable=True)
    buckets = torch.arange(experts + 1, dtype=keys.dtype, device=chosen.device)
    begins = torch.searchsorted(of_sorted, buckets, out_int32=True)
    counts = begins.diff()
    alignment = settings.get_mk_alignment_for_contiguous_layout()
    padded = (counts + (alignment - 1)) // alignment * alignment
    behind = padded.cumsum(0, dtype=torch.int32)
    first = behind - padded
    rows = first + counts
    size = most_rows(most, experts)
    # By how much the place of an expert's row is beyond that of its choice among the sorted ones. The last
    # number is for choices that are no expert: for -1, too, which is an index from the end.
    beyond = torch.nn.functional.pad(first - begins[:-1], (0, 1), value=size)
    among_sorted = torch.empty_like(order)
    among_sorted[order] = torch.arange(len(order), device=order.device)
    places = (among_sorted + beyond[choices.long()]).clamp(max=size)
    if layout == "contiguous":
        row = torch.arange(size, dtype=torch.int32, device=chosen.device)
        group = torch.searchsorted(behind, row, right=True, out_int32=True)
        inside = row < torch.nn.functional.pad(rows, (0, 1))[group]
        rows = group.where(inside, -1)
    return Placement(layout, size, rows, places.view(chosen.shape), most)


def _masked(chosen: torch.Tensor, experts: int, most: int, room: int) -> Placement:
    """`place` for the masked layout. As it is for few tokens, a choice's number among its expert's is counted
    in a table, which takes fewer operators than sorting."""
    # Numbers that are no expert's become -1 or `experts`, and both become `experts`.
    choices = chosen.reshape(1, -1).clamp(-1, experts).long() % (experts + 1)
    is_of = torch.zeros(experts + 1, choices.shape[1] + 1, dtype=torch.int32, device=chosen.device)
    is_of[:, 1:].scatter_(0, choices, 1)
    # In column i: how many of the first i choices are an expert's.
    before = is_of.cumsum(1, dtype=torch.int32)
    number = before[:, :-1].gather(0, choices)
    size = experts * room
    places = torch.add(number, choices, alpha=room).clamp(max=size)
    places = places.where(number < room, size)  # none outside, whatever is chosen twice
    return Placement("masked", size, before[:experts, -1].clamp(max=room), places.view(chosen.shape), most)
