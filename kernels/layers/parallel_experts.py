"""A mixture of experts over several GPUs: each has some of the experts, and tokens travel to them.

    dispatch   every rank casts its tokens to FP8, once, and sends each to the ranks of its experts
    compute    every rank runs its experts over the rows that it has received
    combine    the results travel back, and each token's rank adds them up

Rows travel as FP8 codes with their scales, 1.03 bytes for each number instead of BF16's 2. As a scale belongs
to a part of one row, a cast before the journey gives the bits of a cast after it. A token travels once to a
rank, however many of its experts are there.

All of it is `torch.distributed.all_to_all_single`. How many rows travel is known on the GPU only, and is read
before they do, so a call waits for the GPU, and no CUDA graph can capture it: but for the setting with which
all tokens go everywhere.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
import torch.distributed as dist
from gemm_ladder import scales
from gemm_ladder.casts import functions
from gemm_ladder.errors import InputError
from gemm_ladder.layers import combining, routing, single_experts, travelling, weights
from gemm_ladder.layers.experts import PROJECTIONS, Fp8Experts, Setting
from gemm_ladder.layers.ranks import Ranks
from torch.nn.parameter import Parameter

if TYPE_CHECKING:
    from gemm_ladder.layers.ranks import Group

Combine = Literal["sums", "rows"]
COMBINES = ("sums", "rows")


class Dispatched(NamedTuple):
    """What a rank has received, and what it needs to send the results back.

    Attributes:
        rows: uint8 [received, ...]: for each row its codes, scales, experts and weights.
        top_k: how many experts a row has.
        here: how many of the received rows' choices are experts of this rank.
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


class ParallelFp8Experts(Fp8Experts):
    """Fp8Experts of which each rank of a group has a contiguous part. For inference alone.

    Every rank of the group calls it, each with its own tokens, also one that has none; a rank that does not,
    or that refuses what it is given, leaves the others waiting for it until the group's timeout.

    Args:
        num_experts, hidden_size, intermediate_size, layout, use_ue8m0, device: of all experts, as for
            Fp8Experts. The first ranks have one expert more than the others where it does not divide.
        group: a process group, or a DeviceMesh of one dimension; None: all processes. NCCL for GPUs, or gloo
            for CPUs.
        combine: what travels back. "sums": each rank adds up a token's rows of its experts, and sends one row
            for each that it was sent. "rows": one for each expert of a token.
        everywhere: every token goes to every rank, so that nothing has to be counted. All ranks then need the
            same number of tokens in a call, which nobody checks. For few tokens: nothing waits for the GPU,
            and a CUDA graph can capture a call after one with as many tokens.

    Attributes:
        num_experts, gate_up_proj, down_proj, ...: those of this rank's experts.
        all_experts: how many all ranks have.
        first_expert: the number of this rank's first.
        ranks: the group.

    With combine="rows" a token's result has the bits of one device with all experts, where that computes the
    products with the same kernels: always on a CPU, while on a GPU another number of rows may get a kernel
    that adds in another order. With "sums" each rank's sum is rounded to BF16 before all are added, in FP32,
    and rounded once. So a number of the result, y, is then at most about 2^-8 (s + 2 |y|) from that with
    "rows", where s adds up the absolute values of the ranks' sums: BF16 rounds by 2^-8 at most, each of these
    sums and both results.

    `state_dict` has the names of Fp8Experts and this rank's weights: a file for each rank. `load_state_dict`
    takes those, or the weights of all experts, by the same names or by those of checkpoints
    (`17.gate_proj.weight`, numbered among all experts), of which it keeps its own. So a rank need not read
    more than these: experts from first_expert on, num_experts of them.

    Raises:
        InputError: as Fp8Experts; or torch.distributed is not initialised, the group is none that this
            process is in, moves no tensors of this device, or has more ranks than there are experts; or
            ranks differ in sizes, in use_ue8m0, in combine or in top_k.

    Example:
        >>> layer = ParallelFp8Experts.from_experts(experts, mesh["ep"])  # doctest: +SKIP
        >>> layer(my_tokens, *route(router(my_tokens), top_k=8))  # doctest: +SKIP
    """

    _constants: dict[tuple[str, str], torch.Tensor]
    ranks: Ranks
    combine_by: Combine
    everywhere: bool
    all_experts: int
    first_expert: int

    def __init__(
        self,
        num_experts: int,
        hidden_size: int,
        intermediate_size: int,
        *,
        group: Group = None,
        combine: Combine = "sums",
        everywhere: bool = False,
        layout: Setting = "auto",
        use_ue8m0: bool = False,
        device: torch.device | str | int | None = None,
    ) -> None:
        ranks = Ranks(group)
        weights.check_size("num_experts", num_experts, 1)
        own = len(ranks.share("num_experts", num_experts))
        super().__init__(
            own, hidden_size, intermediate_size, layout=layout, use_ue8m0=use_ue8m0, device=device
        )
        self._share(ranks, combine, everywhere)

    @classmethod
    def from_weights(  # type: ignore[override] # these are not trained
        cls,
        gate_up_proj: torch.Tensor,
        down_proj: torch.Tensor,
        *,
        group: Group = None,
        combine: Combine = "sums",
        everywhere: bool = False,
        layout: Setting = "auto",
        use_ue8m0: bool = False,
    ) -> ParallelFp8Experts:
        """This rank's part, of its own weights.

        Args:
            gate_up_proj, down_proj: as for `Fp8Experts.from_weights`, of this rank's experts. Ranks may have
                different numbers of them.
            group, combine, everywhere, layout, use_ue8m0: as for the class.
        """
        ranks = Ranks(group)
        layer = super().from_weights(gate_up_proj, down_proj, layout=layout, use_ue8m0=use_ue8m0)
        assert isinstance(layer, cls)
        layer._share(ranks, combine, everywhere)
        return layer

    @classmethod
    def from_experts(
        cls,
        whole: Fp8Experts,
        group: Group = None,
        *,
        combine: Combine = "sums",
        everywhere: bool = False,
    ) -> ParallelFp8Experts:
        """This rank's part of experts that every rank has, copied out of them.

        Args:
            whole: all experts, whose layout and use_ue8m0 hold on.
            group, combine, everywhere: as for the class.
        """
        if not isinstance(whole, Fp8Experts) or isinstance(whole, cls):
            raise InputError(f"experts is of type {type(whole).__name__}; a whole Fp8Experts is needed")
        if whole.trainable:
            raise InputError("the experts are trained; quantize_() is needed before they are divided")
        ranks = Ranks(group)
        own = ranks.share("num_experts", whole.num_experts)
        layer = cls.__new__(cls)
        torch.nn.Module.__init__(layer)
        layer.layout, layer.use_ue8m0 = whole.layout, whole.use_ue8m0
        for name, tensor in whole.named_parameters():
            part = tensor.detach()[own.start : own.stop].clone()
            layer.register_parameter(name, Parameter(part, requires_grad=False))
        layer._share(ranks, combine, everywhere)
        return layer.train(whole.training)

    def _share(self, ranks: Ranks, combine: Combine, everywhere: bool) -> None:
        """Find out what the other ranks have."""
        if combine not in COMBINES:
            raise InputError(f"combine is {combine!r}; one of {', '.join(COMBINES)} is needed")
        if everywhere and combine != "sums":
            raise InputError(f"combine is {combine!r} and everywhere is True; 'sums' is needed for that")
        ranks.check_device(self.down_proj.device)
        self.ranks, self.combine_by, self.everywhere = ranks, combine, bool(everywhere)
        alike = {
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "use_ue8m0": self.use_ue8m0,
            "combine": combine,
            "everywhere": self.everywhere,
        }
        of_ranks = ranks.agree(num_experts=self.num_experts, **alike)
        for name, value in alike.items():
            for rank, found in enumerate(of_ranks):
                if found[name] != of_ranks[0][name]:
                    raise InputError(
                        f"{name} is {of_ranks[0][name]} on rank 0 and {found[name]} on rank {rank}; one is "
                        f"needed for all; here it is {value}"
                    )
        counts = [found["num_experts"] for found in of_ranks]
        self.all_experts, self.first_expert = sum(counts), sum(counts[: ranks.rank])
        # No buffers, which a load of the weights would leave on the meta device.
        self._constants = {
            ("bounds", "cpu"): torch.tensor([0, *itertools.accumulate(counts)], device="cpu"),
            ("one", "cpu"): torch.ones(1, dtype=torch.int64, device="cpu"),
        }

    def _constant(self, name: str, device: torch.device) -> torch.Tensor:
        """A small tensor, copied to a device once: "bounds", where each rank's experts begin, or "one"."""
        key = name, str(device)
        if key not in self._constants:
            self._constants[key] = self._constants[name, "cpu"].to(device)
        return self._constants[key]

    def forward(self, x: torch.Tensor, experts: torch.Tensor, expert_weights: torch.Tensor) -> torch.Tensor:
        """The experts' results for this rank's tokens, weighted and added up.

        Args:
            x, experts, expert_weights: as for Fp8Experts, with the numbers of all ranks' experts. The number
                of tokens may differ from rank to rank.

        Returns:
            x's type and shape.
        """
        dispatched = self.dispatch(x, experts, expert_weights)
        return self.combine(self.compute(dispatched), dispatched).view(x.shape).to(x.dtype)

    def dispatch(self, x: torch.Tensor, experts: torch.Tensor, expert_weights: torch.Tensor) -> Dispatched:
        """Send this rank's tokens to the ranks of their experts, and receive what others send here."""
        self._check(x, experts, expert_weights)
        for name, tensor in (("x", x), ("expert_weights", expert_weights)):
            if torch.is_grad_enabled() and tensor.requires_grad:
                raise InputError(
                    f"{name} requires grad, and experts over several GPUs have no gradient; torch.no_grad() "
                    "is needed"
                )
        size, top_k = self.ranks.size, experts.shape[-1]
        rows = x.reshape(-1, self.hidden_size)
        chosen = experts.reshape(len(rows), top_k).long()
        factors = expert_weights.reshape(chosen.shape)
        if self.everywhere:
            return self._to_everyone(self._packed(rows, chosen, factors, top_k), top_k)

        # Each choice's rank, from 1; 0 and size + 1 are nobody. And how many of a token's are on each rank.
        owner = torch.searchsorted(self._constant("bounds", x.device), chosen, right=True)
        goes = torch.zeros(len(rows), size + 2, dtype=torch.int64, device=x.device)
        goes.scatter_add_(1, owner, self._constant("one", x.device).expand_as(owner))
        of_ranks = goes[:, 1 : size + 1].t().contiguous()
        there = of_ranks > 0
        width = self._constant("one", x.device).expand(size) * (top_k if len(rows) else 0)
        told = torch.stack((there.sum(1), of_ranks.sum(1), width), 1)
        heard = torch.empty_like(told)
        dist.all_to_all_single(heard, told, group=self.ranks.group)
        (sends, my_choices, _), (receives, their_choices, of_tokens) = (
            torch.stack((told, heard)).transpose(1, 2).tolist()  # which waits for the GPU
        )
        top_k = self._same_top_k(of_tokens)

        packed = self._packed(rows, chosen, factors, top_k)
        sent = packed.view(torch.int64)[there.nonzero()[:, 1]]
        received = sent.new_empty(sum(receives), sent.shape[1])
        dist.all_to_all_single(received, sent, receives, sends, group=self.ranks.group)
        received, here = received.view(torch.uint8), sum(their_choices)
        moved = (sum(sends) - sends[self.ranks.rank]) * packed.shape[1]
        if self.combine_by == "rows":
            places = _places_by_owner(owner, size, sum(my_choices))
            return Dispatched(received, top_k, here, places, factors, my_choices, their_choices, moved)
        row = torch.where(there, there.view(-1).cumsum(0).view_as(there) - 1, sum(sends))
        # For each rank, or where there are more of them than a token can reach, for each that it does.
        places = row.t() if size <= top_k else _reached(owner, row, sum(sends))
        return Dispatched(received, top_k, here, places, None, sends, receives, moved)

    def _to_everyone(self, packed: torch.Tensor, top_k: int) -> Dispatched:
        """The same with every token going to every rank."""
        size, tokens = self.ranks.size, len(packed)
        received = packed.new_empty(size * tokens, packed.shape[1])
        dist.all_to_all_single(received, packed.repeat(size, 1), group=self.ranks.group)
        places = torch.arange(size * tokens, device=packed.device).view(size, tokens).t()
        counts, moved = [tokens] * size, (size - 1) * packed.numel()
        return Dispatched(received, top_k, len(received) * top_k, places, None, counts, counts, moved)

    def compute(self, dispatched: Dispatched) -> torch.Tensor:
        """bfloat16 [rows, hidden]: what this rank's experts give for the rows that it has received, a row for
        each of them or, with combine="rows", for each of their choices that is one of these experts."""
        if not dispatched.here:
            return self.down_proj.new_empty(sum(dispatched.sent), self.hidden_size, dtype=torch.bfloat16)
        codes, of_rows, chosen, factors = travelling.unpacked(
            dispatched.rows, self.hidden_size, dispatched.top_k
        )
        chosen = chosen - self.first_expert
        layout = self.layout
        if layout == "auto":
            layout = routing.layout_for(len(codes), chosen.shape[1], self.num_experts)
        placed = routing.place(chosen, self.num_experts, layout, dispatched.here)
        if layout == "masked":
            found = self._masked((codes, of_rows), placed)
        else:
            found = self._in_one_matrix(_gathered(codes, of_rows, placed), placed)
        if self.combine_by == "sums":
            return combining.combined(found, placed.places, factors)
        places = placed.places.view(-1)
        is_here = (chosen.view(-1) >= 0) & (chosen.view(-1) < self.num_experts)
        behind = torch.where(is_here, is_here.cumsum(0) - 1, dispatched.here)
        order = places.new_empty(dispatched.here + 1)
        order[behind] = places
        # An expert that a token chose twice may have no row for it, which makes a row of zeros.
        return combining.combined(found, order[:-1, None], None)

    def combine(self, rows: torch.Tensor, dispatched: Dispatched) -> torch.Tensor:
        """bfloat16 [tokens, hidden]: send the experts' results back, and add up those for this rank's own
        tokens."""
        returned = rows.new_empty(sum(dispatched.returned), self.hidden_size)
        dist.all_to_all_single(returned, rows, dispatched.returned, dispatched.sent, group=self.ranks.group)
        return combining.combined(returned, dispatched.places, dispatched.factors)

    def _same_top_k(self, of_ranks: list[int]) -> int:
        """How many experts a token has. All ranks hear the same numbers, so all of them refuse."""
        found: dict[int, int] = {}
        for rank, top_k in enumerate(of_ranks):
            if top_k:
                found.setdefault(top_k, rank)
        if len(found) > 1:
            (first, at), (second, other) = list(found.items())[:2]
            raise InputError(
                f"a token has {first} experts on rank {at} and {second} on rank {other}; one number is "
                "needed for all"
            )
        return next(iter(found), 0)

    def _packed(
        self, x: torch.Tensor, chosen: torch.Tensor, factors: torch.Tensor, top_k: int
    ) -> torch.Tensor:
        """uint8 [tokens, ...]: this rank's tokens, in the form in which they travel."""
        if not len(x):
            width = travelling.columns(self.hidden_size, top_k)[-1]
            return torch.empty(0, width, dtype=torch.uint8, device=x.device)
        in_fp8 = functions.per_token_group_quant_fp8(x, self.use_ue8m0)
        # A number that is no expert's may not fit into 32 bits.
        return travelling.packed(in_fp8, chosen.clamp(-1, self.all_experts), factors)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *others: Any, **keywords: Any
    ) -> None:
        """Keep this rank's part of what a checkpoint has of all experts, and load it as Fp8Experts does."""
        first, own = self.first_expert, self.num_experts
        for name in PROJECTIONS:
            for key in (prefix + name + behind for behind in ("", weights.SCALES, weights.OTHERS_SCALES)):
                tensor = state_dict.get(key)
                if tensor is not None and tensor.dim() == 3 and len(tensor) == self.all_experts:
                    state_dict[key] = tensor[first : first + own]
        elsewhere = {*range(self.all_experts)} - {*range(first, first + own)}
        single_experts.drop(state_dict, prefix, elsewhere)
        super()._load_from_state_dict(state_dict, prefix, *others, **keywords)

    def _first_expert(self) -> int:
        return self.first_expert

    def extra_repr(self) -> str:
        how = f"combine={self.combine_by}" + ", everywhere=True" * self.everywhere
        return f"{super().extra_repr()}, {self.ranks}, all_experts={self.all_experts}, {how}"


def _gathered(
    codes: torch.Tensor, of_rows: torch.Tensor, placed: routing.Placement
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows and their scales as a contiguous or a psum layout has them; padding has numbers of some row."""
    token = placed.tokens().clamp(min=0).long()
    a = codes.view(torch.int64)[token].view(codes.dtype)
    shape = (placed.size, of_rows.shape[1])
    sfa = of_rows.new_empty_strided(shape, scales.mn_major_strides(shape))
    return a, sfa.copy_(of_rows[token])


def _places_by_owner(owner: torch.Tensor, size: int, count: int) -> torch.Tensor:
    """int64 [tokens, top_k]: where each choice is when all are sorted by their owner, 1 to `size`, and within
    one by token and place; `count`, which is that of all, for those that have no owner."""
    order = owner.masked_fill(owner == 0, size + 1).view(-1).sort(stable=True).indices
    places = torch.empty_like(order)
    places[order] = torch.arange(len(order), device=order.device)
    return places.clamp(max=count).view(owner.shape)


def _reached(owner: torch.Tensor, row: torch.Tensor, count: int) -> torch.Tensor:
    """int64 [tokens, top_k]: for each rank that a token goes to, the row in which it is sent there; `count`
    where it goes to fewer.

    Args:
        owner: int64 [tokens, top_k]: each choice's rank, from 1; another number is nobody.
        row: int64 [ranks, tokens]: the row in which a token is sent to a rank.
    """
    none = row.new_full((1, row.shape[1]), count)
    by_rank, _ = owner.sort(dim=1)
    again = by_rank[:, 1:] == by_rank[:, :-1]
    by_rank[:, 1:].masked_fill_(again, 0)
    return torch.cat((none, row, none)).gather(0, by_rank.t()).t()
