"""Which experts a token goes to, and in which row of which layout it lies there.

Nothing here waits for a GPU: the sizes of all tensors follow from the number of tokens, not from where they
go, so a CUDA graph can capture it.
"""

from __future__ import annotations

import numbers
from typing import Any, Literal, NamedTuple, get_args

import torch
from gemm_ladder import checks, ops, scales, settings
from gemm_ladder.checks import grouped
from gemm_ladder.errors import InputError
from gemm_ladder.layers import choosing, placing

Layout = Literal["contiguous", "masked", "psum"]
LAYOUTS: tuple[Layout, ...] = get_args(Layout)
GroupScore = Literal["top2", "max"]


class Placement(NamedTuple):
    """Where each choice of each token lies in a grouped layout.

    Attributes:
        layout: which.
        size: how many rows it has; in the masked layout those of all groups, which have equally many.
        rows: the tensor that the product takes: m_indices int32 [size], masked_m or grouped_layout int32
            [experts].
        places: int64 [tokens, top_k]: the row of each choice; `size` where the choice is no expert.
        most: how many choices are experts, at most.
        row_tokens: what `tokens` returns, if it is known already; not to be written.
    """

    layout: Layout
    size: int
    rows: torch.Tensor
    places: torch.Tensor
    most: int
    row_tokens: torch.Tensor | None = None

    @property
    def ends(self) -> torch.Tensor | None:
        """Of the psum layout, for casts that pass over its padding; else None."""
        return self.rows if self.layout == "psum" else None

    @property
    def counts(self) -> torch.Tensor | None:
        """Of the masked layout, for casts of the rows that count alone; else None."""
        return self.rows if self.layout == "masked" else None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the rows as the product takes them: [experts, room] in the masked layout, else [size]."""
        experts = self.rows.shape[0]
        return (experts, self.size // experts) if self.layout == "masked" else (self.size,)

    def tokens(self) -> torch.Tensor:
        """int32 [size]: the token of each row; -1 where it has none."""
        if self.row_tokens is not None:
            return self.row_tokens
        found = self.places.new_full((self.size + 1,), -1, dtype=torch.int32)
        token = torch.arange(self.places.shape[0], dtype=torch.int32, device=self.places.device)
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
    num_groups: int = 1,
    top_groups: int | None = None,
    group_score: GroupScore = "top2",
) -> tuple[torch.Tensor, torch.Tensor]:
    """The experts that each token goes to, and with which weights.

    With more than one group, the experts are split into `num_groups` equal runs, and a token goes only to
    experts of its `top_groups` best groups. DeepSeek-V3 and R1 choose so: `num_groups=8, top_groups=4`, with
    a bias and sigmoid. Of equal scores, of experts or of groups, the first is chosen by the kernel of a
    Hopper GPU, and any by torch.topk. That chooses elsewhere, where torch compiles, and where the logits or
    the bias have a type, or there are numbers of experts, that the kernel does not take
    (`choosing.why_not`).

    Source: "DeepSeek-V3 Technical Report", arXiv:2412.19437, section 2.1.2, "Node-Limited Routing", which
    adds the top_k / top_groups = 2 largest scores of a group; and `Gate` in inference/model.py of
    github.com/deepseek-ai/DeepSeek-V3, whose group scores include the bias.

    Args:
        logits: [..., experts], of a floating-point type: what the router's linear layer gives.
        top_k: how many experts a token goes to.
        scoring: how logits become scores, in FP32.
        bias: [experts], added to the scores for the choice alone, as DeepSeek-V3 does to balance the load.
        normalize: divide a token's weights by their sum.
        scale: multiply the weights by it, at last.
        num_groups: into how many equal runs the experts are split; a divisor of their number.
        top_groups: how many groups a token's experts may come from; has to be given if num_groups is not 1.
        group_score: what makes a group good: "top2", the sum of its two largest scores with bias (of its only
            one if it has one expert), as in DeepSeek-V3, or "max", the largest, as in DeepSeek-V2
            (arXiv:2405.04434, section 2.2.2), which has no bias.

    Returns:
        int64 and float32 [..., top_k]: the experts, the one with the largest score first, and the weights.

    Raises:
        InputError: logits or bias is no such tensor, top_k is below 1 or more than there are experts, scoring
            is neither, scale is no number, normalize is no bool, num_groups does not divide the number of
            experts, top_groups is below 1 or more than num_groups, the chosen groups have fewer than top_k
            experts, or group_score is neither.
        LaunchError: a CUDA graph is captured, and the kernel has not been loaded before.
    """
    if not isinstance(logits, torch.Tensor) or not logits.is_floating_point() or logits.dim() == 0:
        is_tensor = isinstance(logits, torch.Tensor)
        given = f"{logits.dtype} {list(logits.shape)}" if is_tensor else f"of type {type(logits).__name__}"
        raise InputError(f"logits is {given}; a tensor [..., experts] of a floating-point type is needed")
    for name, number in (("top_k", top_k), ("num_groups", num_groups), ("top_groups", top_groups)):
        if isinstance(number, bool):
            raise InputError(f"{name} is of type bool; an int is needed")
    top_k = settings.integer("top_k", top_k)
    if not 1 <= top_k <= logits.shape[-1]:
        raise InputError(f"top_k is {top_k}; 1 to {logits.shape[-1]}, the number of experts, is needed")
    if scoring not in ("softmax", "sigmoid"):
        raise InputError(f"scoring is {scoring!r}; 'softmax' or 'sigmoid' is needed")
    _check_bias(bias, logits)
    if isinstance(scale, bool) or not isinstance(scale, numbers.Real):
        raise InputError(f"scale is of type {type(scale).__name__}; a number is needed")
    scale = float(scale)
    checks.flag("normalize", normalize)
    groups, kept = _checked_groups(logits.shape[-1], top_k, num_groups, top_groups, group_score)
    by_kernel = None
    if ops.in_eager(logits, bias) and choosing.KERNEL.can_run(logits, choosing.why_not(logits, top_k, bias)):
        by_kernel = choosing.choose(
            logits,
            top_k,
            bias,
            sigmoid=scoring == "sigmoid",
            normalize=normalize,
            scale=scale,
            groups=groups,
            top_groups=kept,
            top2=group_score == "top2",
        )
        if not (torch.is_grad_enabled() and logits.requires_grad):
            return by_kernel
    scores = logits.float().softmax(-1) if scoring == "softmax" else logits.float().sigmoid()
    chosen_by = scores if bias is None else scores + bias
    if by_kernel is not None:
        experts = by_kernel[0]  # the same with and without gradients, which are the weights' alone
    elif kept == groups:
        experts = chosen_by.topk(top_k, dim=-1).indices
    else:
        experts = _of_best_groups(chosen_by, top_k, groups, kept, group_score)
    weights = scores.gather(-1, experts)
    if normalize:
        total = weights.sum(-1, keepdim=True)
        weights = weights / total.clamp(min=torch.finfo(total.dtype).tiny)  # scores may all be 0
    return experts, weights * scale


def _of_best_groups(
    scores: torch.Tensor, top_k: int, num_groups: int, top_groups: int, group_score: GroupScore
) -> torch.Tensor:
    """int64 [..., top_k]: the experts with the largest of `scores` [..., experts] in the best groups.

    The last topk sees the experts of those groups only, so no other can be chosen. DeepSeek's code gives the
    others a score instead: first it was 0, which is more than a negative score, and now it is -inf, which is
    not less than that of an expert whose bias is -inf.
    """
    size = scores.shape[-1] // num_groups
    grouped = scores.reshape(*scores.shape[:-1], num_groups, size)
    best = grouped.amax(-1) if group_score == "max" else grouped.topk(min(size, 2), dim=-1).values.sum(-1)
    first = best.topk(top_groups, dim=-1, sorted=False).indices * size
    members = (first[..., None] + torch.arange(size, device=scores.device)).flatten(-2)
    return members.gather(-1, scores.gather(-1, members).topk(top_k, dim=-1).indices)


def _checked_groups(
    experts: int, top_k: int, num_groups: object, top_groups: object, group_score: object
) -> tuple[int, int]:
    """How many groups there are, and how many of them a token's experts may come from."""
    groups = settings.integer("num_groups", num_groups)
    if groups < 1 or experts % groups != 0:
        raise InputError(f"num_groups is {groups}; a divisor of {experts}, the number of experts, is needed")
    if not isinstance(group_score, str) or group_score not in get_args(GroupScore):
        raise InputError(f"group_score is {group_score!r}; 'top2' or 'max' is needed")
    if top_groups is None:
        if groups == 1:
            return 1, 1
        raise InputError(f"top_groups is None; 1 to {groups}, the number of groups, is needed")
    kept = settings.integer("top_groups", top_groups)
    if not 1 <= kept <= groups:
        raise InputError(f"top_groups is {kept}; 1 to {groups}, the number of groups, is needed")
    most = kept * (experts // groups)
    if top_k > most:
        raise InputError(f"top_k is {top_k}; 1 to {most}, the number of experts in top_groups, is needed")
    return groups, kept


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
    """The layout with fewer rows: masked for few tokens, psum for many.

    Raises:
        InputError: torch.export makes a program for any number of tokens, which has one layout.
    """
    if ops.exporting() and not _is_known(tokens):
        raise InputError(
            "layout is 'auto', which depends on the number of tokens; 'psum', 'contiguous' or 'masked' is "
            "needed to export experts for any number of them"
        )
    return "masked" if experts * tokens <= most_rows(tokens * top_k, experts) else "psum"


def most_rows(choices: int, experts: int) -> int:
    """The most rows of a contiguous or psum layout, whoever chooses what: each group that has a row may need
    one row less than the alignment as padding."""
    alignment = settings.get_mk_alignment_for_contiguous_layout()
    if _is_known(choices):
        groups: Any = min(experts, choices)
    else:
        groups = torch.sym_min(experts, choices)  # without a condition for the symbol
    rows: int = (choices + groups * (alignment - 1)) // alignment * alignment
    return rows


def _is_known(size: int) -> bool:
    """Whether a size is a number, and no symbol of what torch.compile or torch.export traces."""
    if not (ops.compiling() or ops.exporting()):
        return True
    from torch.fx.experimental.symbolic_shapes import has_static_value  # here: it takes long to import

    return has_static_value(size)


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

    Raises:
        LaunchError: a CUDA graph is captured, and the kernel has not been loaded before: by
            `gemm_ladder.layers.precompile`, or a call with as many choices.
    """
    most = chosen.numel() if most is None else most
    room = chosen.shape[0] if room is None else room
    size = experts * room if layout == "masked" else most_rows(most, experts)
    alignment = settings.get_mk_alignment_for_contiguous_layout()
    if ops.in_eager(chosen) and placing.PLACE.can_run(chosen, placing.why_not_placed(chosen, experts, size)):
        rows, places, tokens = placing.place(chosen, experts, layout, size, room, alignment)
        return Placement(layout, size, rows, places, most, tokens)
    if layout == "masked":
        return _masked(chosen, experts, most, room)
    choices = chosen.reshape(-1).clamp(-1, experts)  # -1 or `experts`: no expert
    # Numbers of 16 bits are sorted in fewer passes.
    keys = choices.short() if experts < 2**15 else choices
    of_sorted, order = keys.sort(stable=True)
    buckets = torch.arange(experts + 1, dtype=keys.dtype, device=chosen.device)
    begins = torch.searchsorted(of_sorted, buckets, out_int32=True)
    counts = begins.diff()
    padded = (counts + (alignment - 1)) // alignment * alignment
    behind = padded.cumsum(0, dtype=torch.int32)
    first = behind - padded
    rows = first + counts
    # By how much the place of an expert's row is beyond that of its choice among the sorted ones. The last
    # number is for choices that are no expert: for -1, too, which is an index from the end.
    beyond = torch.cat([first - begins[:-1], first.new_full((1,), size)])
    among_sorted = torch.empty_like(order)
    among_sorted[order] = torch.arange(order.shape[0], device=order.device)
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


def check_room(chosen: torch.Tensor, placed: Placement) -> None:
    """See that every choice of an expert has a row in the masked layout, where contents may be looked at: on
    the CPU, and with GEMM_LADDER_CHECK=1 unless a CUDA graph is captured.

    Args:
        chosen: int32 or int64 [tokens, top_k], as `place` placed them, with room for a row of each token.

    Raises:
        InputError: an expert has more choices than there are tokens.
    """
    looked_at = (settings.check_contents or not chosen.is_cuda) and ops.in_eager(chosen)
    if placed.layout != "masked" or not looked_at or grouped.capturing(chosen.device):
        return
    is_expert = (chosen >= 0) & (chosen < placed.shape[0])
    without_row = chosen[is_expert & (placed.places == placed.size)]
    if without_row.numel():
        expert = int(without_row[0])
        token = int(((chosen == expert).sum(1) > 1).nonzero()[0])
        raise InputError(
            f"experts has {expert} twice for token {token}; experts that differ are needed for each token"
        )


def in_masked_layout(
    codes: torch.Tensor, of_rows: torch.Tensor, places: torch.Tensor, experts: int, room: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens in FP8 where the masked or the psum layout has them. Rows that do not count are not written.

    Args:
        codes, of_rows: float8_e4m3fn [tokens, hidden] and their scales, float32 [tokens, blocks].
        places: as `place` gives them.
        experts, room: how many groups there are, and how many rows each has. A psum layout is one group.

    Returns:
        float8_e4m3fn [experts, room, hidden], and the scales, float32 [experts, room, blocks], as TMA reads
        them.

    Raises:
        LaunchError: as `place`.
    """
    if ops.exporting():  # where strides are no condition for what an operator returns
        found: tuple[torch.Tensor, torch.Tensor] = torch.ops.gemm_ladder.in_masked_layout(
            codes, of_rows, places, experts, room
        )
        return found
    return _in_masked_layout(codes, of_rows, places, experts, room)


def _in_masked_layout(
    codes: torch.Tensor, of_rows: torch.Tensor, places: torch.Tensor, experts: int, room: int
) -> tuple[torch.Tensor, torch.Tensor]:
    size, hidden = experts * room, codes.shape[1]
    if ops.in_eager(codes, of_rows, places) and placing.SCATTER.can_run(
        codes, placing.why_not_scattered(codes, of_rows, places, size)
    ):
        out = codes.new_empty(experts, room, hidden)
        shape = (experts, room, of_rows.shape[1])
        out_scales = of_rows.new_empty_strided(shape, scales.mn_major_strides(shape))
        placing.scatter(codes, of_rows, places, out, out_scales)
        return out, out_scales
    # One row more for the choices that are no expert, and one expert more for their scales.
    a = codes.new_empty(size + 1, hidden)
    a.view(torch.int64)[places] = codes.view(torch.int64)[:, None]
    shape = (experts + 1, room, of_rows.shape[1])
    sfa = of_rows.new_empty_strided(shape, scales.mn_major_strides(shape))
    sfa[places // room, places % room] = of_rows[:, None]
    return a[:size].view(experts, room, hidden), sfa[:experts]


def _fake(
    codes: torch.Tensor, of_rows: torch.Tensor, places: torch.Tensor, experts: int, room: int
) -> tuple[torch.Tensor, torch.Tensor]:
    a, sfa = ((experts, room, one.shape[1]) for one in (codes, of_rows))
    strides = scales.mn_major_strides(sfa, ops.symbolic_ceil_div)
    return codes.new_empty(a), of_rows.new_empty_strided(sfa, strides)


ops.define(
    "in_masked_layout(Tensor codes, Tensor of_rows, Tensor places, SymInt experts, SymInt room) -> "
    "(Tensor, Tensor)",
    _in_masked_layout,
    _fake,
)
