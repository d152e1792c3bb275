"""A mixture of experts over several GPUs: each has some of the experts, and tokens travel to them.

    dispatch   every rank casts its tokens to FP8, once, and sends each to the ranks of its experts
    compute    every rank runs its experts over the rows that it has received
    combine    the results travel back, and each token's rank adds them up

Tokens travel as FP8 codes with their scales, 1.03 bytes for each number instead of BF16's 2, and results in
BF16. As a scale belongs to a part of one row, a cast before the all-to-all gives the bits of a cast after it.
A token travels once to a rank, however many of its experts are there. Calls with gradients are
`parallel_products`; where experts are trained, tokens travel in their own type.

All of it is `torch.distributed.all_to_all_single`. How many rows travel is known on the GPU only, and is read
before they do, so a call waits for the GPU, and no CUDA graph can capture it. With everywhere=True nothing is
counted, and a graph can.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.distributed as dist
from gemm_ladder import checks
from gemm_ladder.errors import InputError
from gemm_ladder.layers import (
    combining,
    dispatching,
    expert_products,
    parallel_products,
    routing,
    row_format,
    single_experts,
    weights,
)
from gemm_ladder.layers.dispatching import Dispatched, Rows
from gemm_ladder.layers.experts import PROJECTIONS, Fp8Experts, Setting
from gemm_ladder.layers.ranks import Ranks
from torch.nn.parameter import Parameter

if TYPE_CHECKING:
    from gemm_ladder.layers.ranks import Group

Combine = Literal["sums", "rows"]
COMBINES = ("sums", "rows")


class ParallelFp8Experts(Fp8Experts):
    """Fp8Experts of which each rank of a group has a contiguous part.

    Every rank of the group has to call it, with its own tokens or with none; if one does not, the others wait
    until the group's timeout. Where a rank refuses its input, in a call or in `dispatch`, all raise
    InputError. A rank that raises while the layer is made, in the backward pass, or with everywhere=True,
    where nothing is told, leaves the others waiting.

    If any rank wants gradients, of x, expert_weights or its experts, the results of all ranks require grad,
    and every rank has to run backward through them, also one that needs no gradient itself.
    torch.utils.checkpoint may compute the call again, if it does on all ranks; with use_reentrant=True every
    rank then needs an input that requires grad.

    Args:
        num_experts, hidden_size, intermediate_size, layout, trainable, use_ue8m0, device, dtype: of all
            experts, as for Fp8Experts. The first ranks have one expert more than the others where it does not
            divide. Each rank draws the numbers that its experts begin with, so ranks need different seeds.
        group: a process group, or a DeviceMesh of one dimension; None: all processes. NCCL for GPUs, or gloo
            for CPUs.
        combine: what travels back. "sums": each rank adds up a token's rows of its experts, and sends one row
            for each that it was sent. "rows": one for each expert of a token.
        everywhere: every token goes to every rank, so that nothing has to be counted. All ranks then need the
            same number of tokens in a call, which nobody checks. For few tokens, and without gradients:
            nothing waits for the GPU, and a CUDA graph can capture a call after one with as many tokens.

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

    Gradients of experts are sums over the tokens of all ranks, for the sum of all ranks' losses. They and the
    gradient of expert_weights have the bits of one device with all experts and all tokens, those of the first
    rank first, where that uses the same kernels and the gradient of the result is the same. So has the
    gradient of x with "rows"; with "sums" each rank's part of it is rounded to BF16 before these are added,
    and the bound is as for y.

    Experts must not be averaged over ranks that have others. FSDP (`fully_shard`) is told by
    `ignored_params=set(layer.parameters())`, and on GPUs then needs an optimizer with `foreach=False`, as
    torch's default does not take FSDP's parameters beside others. DistributedDataParallel is told by the
    parameters' names in the model, as `frozen_parameters` tells it others. These two average all other
    gradients over the ranks; for experts that is left to do:
    `parameter.register_hook(lambda grad: grad / layer.ranks.size)`. With several such groups, in a mesh of
    "dp" and "ep", `fully_shard(layer, mesh=mesh["dp"])` has the ranks with the same experts average theirs,
    and runs no hooks: `layer.set_gradient_divide_factor(number_of_all_ranks)` makes it the average over all,
    where these are two or more (with gloo only after `layer.set_force_sum_reduction_for_comms(True)`).

    `state_dict` has the names of Fp8Experts and this rank's weights: a file for each rank. `load_state_dict`
    takes those, or the weights of all experts, by the same names or by those of checkpoints
    (`17.gate_proj.weight`, numbered among all experts), of which it keeps its own. So a rank need not read
    more than these: experts from first_expert on, num_experts of them.

    Raises:
        InputError: as Fp8Experts; or torch.distributed is not initialised, the group is none that this
            process is in, moves no tensors of this device, or has more ranks than there are experts; ranks
            differ in sizes, trainable, use_ue8m0, combine or top_k, or in x's type where experts are trained;
            some want gradients and others have them disabled; or they are wanted with everywhere.

    Example:
        >>> layer = ParallelFp8Experts.from_experts(experts, mesh["ep"])  # doctest: +SKIP
        >>> layer(my_tokens, *route(router(my_tokens), top_k=8))  # doctest: +SKIP
    """

    _bounds: dict[str, torch.Tensor]
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
        trainable: bool = False,
        use_ue8m0: bool = False,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        ranks = Ranks(group)
        checks.flag("everywhere", everywhere)
        weights.check_size("num_experts", num_experts, 1)
        own = len(ranks.share("num_experts", num_experts))
        super().__init__(
            own,
            hidden_size,
            intermediate_size,
            layout=layout,
            trainable=trainable,
            use_ue8m0=use_ue8m0,
            device=device,
            dtype=dtype,
        )
        self._share(ranks, combine, everywhere)

    @classmethod
    def from_weights(
        cls,
        gate_up_proj: torch.Tensor,
        down_proj: torch.Tensor,
        *,
        group: Group = None,
        combine: Combine = "sums",
        everywhere: bool = False,
        layout: Setting = "auto",
        trainable: bool = False,
        use_ue8m0: bool = False,
    ) -> ParallelFp8Experts:
        """This rank's part, of its own weights.

        Args:
            gate_up_proj, down_proj: as for `Fp8Experts.from_weights`, of this rank's experts. Ranks may have
                different numbers of them.
            group, combine, everywhere, layout, trainable, use_ue8m0: as for the class. Parameters are shared
                if they are trained.
        """
        ranks = Ranks(group)
        checks.flag("everywhere", everywhere)
        layer = super().from_weights(
            gate_up_proj, down_proj, layout=layout, trainable=trainable, use_ue8m0=use_ue8m0
        )
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
            whole: all experts, whose layout and use_ue8m0 hold on, and which are trained or not.
            group, combine, everywhere: as for the class.
        """
        if not isinstance(whole, Fp8Experts) or isinstance(whole, cls):
            raise InputError(f"experts is of type {type(whole).__name__}; a whole Fp8Experts is needed")
        ranks = Ranks(group)
        checks.flag("everywhere", everywhere)
        own = ranks.share("num_experts", whole.num_experts)
        layer = cls.__new__(cls)
        torch.nn.Module.__init__(layer)
        layer.layout, layer.use_ue8m0 = whole.layout, whole.use_ue8m0
        for name, tensor in whole.named_parameters():
            part = tensor.detach()[own.start : own.stop].clone()
            layer.register_parameter(name, Parameter(part, requires_grad=tensor.requires_grad))
        for name in PROJECTIONS:
            if whole.trainable:
                layer.register_parameter(name + weights.SCALES, None)
        layer._share(ranks, combine, everywhere)
        return layer.train(whole.training)

    def _share(self, ranks: Ranks, combine: Combine, everywhere: bool) -> None:
        """Find out what the other ranks have."""
        if combine not in COMBINES:
            raise InputError(f"combine is {combine!r}; one of {', '.join(COMBINES)} is needed")
        if everywhere and combine != "sums":
            raise InputError(f"combine is {combine!r} and everywhere is True; 'sums' is needed for that")
        if everywhere and self.trainable:
            raise InputError("everywhere is True and trainable is True; False is needed for one of them")
        ranks.check_device(self.down_proj.device)
        self.ranks, self.combine_by, self.everywhere = ranks, combine, everywhere
        alike = {
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "use_ue8m0": self.use_ue8m0,
            "combine": combine,
            "everywhere": self.everywhere,
            "trainable": self.trainable,
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
        # No buffer, which a load of the weights would leave on the meta device.
        self._bounds = {"cpu": torch.tensor([0, *itertools.accumulate(counts)], device="cpu")}

    def _first_experts(self, device: torch.device) -> torch.Tensor:
        """Where each rank's experts begin, and how many there are: copied to a device once."""
        key = str(device)
        if key not in self._bounds:
            self._bounds[key] = self._bounds["cpu"].to(device)
        return self._bounds[key]

    def forward(self, x: torch.Tensor, experts: torch.Tensor, expert_weights: torch.Tensor) -> torch.Tensor:
        """The experts' results for this rank's tokens, weighted and added up.

        Args:
            x, experts, expert_weights: as for Fp8Experts, with the numbers of all ranks' experts. The number
                of tokens may differ from rank to rank.

        Returns:
            x's type and shape.
        """
        if self.everywhere:
            dispatched = self._to_everyone(*self._checked(x, experts, expert_weights)[0])
        else:
            plan, given = self._planned(x, experts, expert_weights)
            if any(plan.needs_grad):
                return self._differentiated_over_ranks(plan, *given).view(x.shape)
            dispatched = self._dispatched(plan, *given)
        return self.combine(self.compute(dispatched), dispatched).view(x.shape).to(x.dtype)

    def dispatch(self, x: torch.Tensor, experts: torch.Tensor, expert_weights: torch.Tensor) -> Dispatched:
        """Send this rank's tokens to the ranks of their experts, and receive what others send here. `compute`
        and `combine` are the rest of a call that has no gradients.

        Args:
            x, experts, expert_weights: as for `forward`.

        Raises:
            InputError: as there, or gradients are wanted.
        """
        if self.everywhere:
            return self._to_everyone(*self._checked(x, experts, expert_weights, differentiable=False)[0])
        plan, given = self._planned(x, experts, expert_weights, differentiable=False)
        return self._dispatched(plan, *given)

    def _checked(
        self,
        x: torch.Tensor,
        experts: torch.Tensor,
        expert_weights: torch.Tensor,
        differentiable: bool = True,
    ) -> tuple[Rows, dispatching.NeedsGrad]:
        """A call's tokens, and which gradients this rank needs. Raises InputError where the call is refused,
        as it is if it needs gradients and is not differentiable."""
        self._check(x, experts, expert_weights)
        rows = x.reshape(-1, self.hidden_size)
        chosen = experts.reshape(len(rows), experts.shape[-1]).long().contiguous()
        given = Rows(rows, chosen, expert_weights.reshape(chosen.shape))
        for name in PROJECTIONS:
            weight = getattr(self, name)
            if self.trainable:
                weights.check_castable(weight)
            else:
                weights.check_stored(name, weight)
        if not torch.is_grad_enabled():
            return given, dispatching.NeedsGrad()
        for name, tensor in (("x", x), ("expert_weights", expert_weights)):
            if self.everywhere and tensor.requires_grad:
                raise InputError(
                    f"{name} requires grad and everywhere is True; everywhere=False, or torch.no_grad(), is "
                    "needed"
                )
        trained = self.trainable and any(getattr(self, name).requires_grad for name in PROJECTIONS)
        needs_grad = dispatching.NeedsGrad(x.requires_grad, expert_weights.requires_grad, trained)
        if any(needs_grad) and not differentiable:
            raise InputError(
                "gradients are wanted, and dispatch has none; torch.no_grad(), or a call of the layer, is "
                "needed"
            )
        if any(needs_grad):
            expert_products.alignment_now()
        return given, needs_grad

    def _planned(
        self,
        x: torch.Tensor,
        experts: torch.Tensor,
        expert_weights: torch.Tensor,
        differentiable: bool = True,
    ) -> tuple[dispatching.DispatchPlan, Rows]:
        """Where tokens go, and the tokens. A rank that refuses its part tells the others."""
        group = self.ranks.group
        try:
            given, needs_grad = self._checked(x, experts, expert_weights, differentiable)
        except Exception:
            dispatching.refuse_dispatch(group, self.ranks.device_of_messages(self.down_proj.device))
            raise
        # Each choice's rank, from 1; 0 and one more than there are ranks are nobody.
        owner = torch.searchsorted(self._first_experts(given.x.device), given.chosen, right=True)
        can_have = differentiable and torch.is_grad_enabled() and expert_products.is_aligned()
        plan = dispatching.plan_dispatch(group, owner, given.x.dtype, needs_grad if can_have else None)
        return plan, given

    def _dispatched(
        self, plan: dispatching.DispatchPlan, x: torch.Tensor, chosen: torch.Tensor, factors: torch.Tensor
    ) -> Dispatched:
        """What a rank has received after all tokens have gone to their experts."""
        form, top_k = plan.form(self.hidden_size, plan.top_k), plan.top_k
        # A number that is no expert's may not fit into 32 bits.
        others = (chosen.clamp(-1, self.all_experts), factors)
        received = plan.dispatch(form, plan.token_of_row(), x, self.use_ue8m0, *others)
        moved = (sum(plan.tokens_to) - plan.tokens_to[self.ranks.rank]) * form.width
        here, by_choice = sum(plan.choices_from), self.combine_by == "rows"
        if by_choice:
            rows, counts = plan.row_of_choice(True), (plan.choices_to, plan.choices_from)
            return Dispatched(received, top_k, here, rows, factors, *counts, moved)
        rows, counts = plan.rows_to_add(), (plan.tokens_to, plan.tokens_from)
        return Dispatched(received, top_k, here, rows, None, *counts, moved)

    def _to_everyone(self, x: torch.Tensor, chosen: torch.Tensor, factors: torch.Tensor) -> Dispatched:
        """The same with every token going to every rank."""
        size, tokens, top_k = self.ranks.size, len(x), chosen.shape[1]
        form = row_format.token_format(self.hidden_size, top_k)
        known = chosen.clamp(-1, self.all_experts)
        packed = row_format.pack_tokens(form, x, self.use_ue8m0, known, factors)
        received = packed.new_empty(size * tokens, packed.shape[1])
        dist.all_to_all_single(received, packed.repeat(size, 1), group=self.ranks.group)
        places = torch.arange(size * tokens, device=packed.device).view(size, tokens).t()
        counts, moved = [tokens] * size, (size - 1) * packed.numel()
        return Dispatched(received, top_k, len(received) * top_k, places, None, counts, counts, moved)

    def _differentiated_over_ranks(
        self, plan: dispatching.DispatchPlan, x: torch.Tensor, chosen: torch.Tensor, factors: torch.Tensor
    ) -> torch.Tensor:
        """The result, with gradients."""
        pairs = [self._in_fp8(name) for name in PROJECTIONS]
        return parallel_products.experts(
            x,
            chosen.clamp(-1, self.all_experts),
            factors,
            (self.gate_up_proj, self.down_proj) if self.trainable else None,
            expert_products.Weights(*pairs[0], *pairs[1]),
            parallel_products.Call(plan, self.first_expert, self.combine_by == "rows", self.use_ue8m0),
        )

    def compute(self, dispatched: Dispatched) -> torch.Tensor:
        """What this rank's experts give for the rows that it has received.

        Args:
            dispatched: from `dispatch`.

        Returns:
            bfloat16 [rows, hidden]: a row for each of these or, with combine="rows", for each of their
            choices that is one of this rank's experts.
        """
        if not dispatched.here:  # rows of zeros if tokens go everywhere and none has an expert
            return self.down_proj.new_zeros(sum(dispatched.sent), self.hidden_size, dtype=torch.bfloat16)
        form = row_format.token_format(self.hidden_size, dispatched.top_k)
        codes, of_rows, chosen, factors = form.unpack(dispatched.rows)
        chosen = chosen - self.first_expert
        layout = "contiguous" if self.trainable else self.layout
        if layout == "auto":
            layout = routing.layout_for(len(codes), chosen.shape[1], self.num_experts)
        placed = routing.place(chosen, self.num_experts, layout, dispatched.here)
        if layout == "contiguous":
            a, sfa = row_format.gather_tokens(codes, of_rows, placed.tokens())
        elif layout == "psum":  # as a masked layout of one group
            (a,), (sfa,) = routing.in_masked_layout(codes, of_rows, placed.places, 1, placed.size)
        else:
            a, sfa = routing.in_masked_layout(codes, of_rows, placed.places, *placed.shape)
        found = self._results((a, sfa), placed)
        if self.combine_by == "sums":
            return combining.combined(found, placed.places, factors)
        # An expert that a token chose twice may have no row for it, which makes a row of zeros.
        order = dispatching.rows_of_choices(chosen, self.num_experts, placed.places, dispatched.here)
        return combining.combined(found, order[:, None], None)

    def combine(self, rows: torch.Tensor, dispatched: Dispatched) -> torch.Tensor:
        """Send the experts' results back, and add up those for this rank's own tokens.

        Args:
            rows: from `compute`.
            dispatched: from `dispatch`.

        Returns:
            bfloat16 [tokens, hidden].
        """
        returned = rows.new_empty(sum(dispatched.returned), self.hidden_size)
        dist.all_to_all_single(returned, rows, dispatched.returned, dispatched.sent, group=self.ranks.group)
        return combining.combined(returned, dispatched.places, dispatched.factors)

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
