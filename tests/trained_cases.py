"""Cases like those of parallel_cases.py, of experts that train on several ranks."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import gemm_ladder
import torch
import torch.distributed as dist
from gemm_ladder.layers import Fp8Experts, ParallelFp8Experts
from layer_cases import EXPERTS, HIDDEN, INTERMEDIATE, normal, tokens
from measured_cases import CASES, sent_bytes
from parallel_cases import BF16, UNIT, case, near, refused, same
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

__all__ = ["CASES"]  # with those of measured_cases.py


class Given(NamedTuple):
    """A call's arguments, of which x and factors want gradients, and the gradient of its result."""

    x: torch.Tensor
    chosen: torch.Tensor
    factors: torch.Tensor
    grad: torch.Tensor


def given_on(rank: int, device: str, dtype: torch.dtype = BF16, top_k: int = 3, each: int = 40) -> Given:
    """What a rank calls: the last has no tokens, and some choices are nobody's."""
    count = 0 if rank == dist.get_world_size() - 1 else 9 + each * rank
    x, chosen, factors = tokens(count, top_k, device, seed=rank)
    chosen[::5, 1] = EXPERTS
    grad = normal(count, HIDDEN, device=device, dtype=dtype, seed=rank)
    return Given(x.to(dtype).requires_grad_(), chosen, factors.requires_grad_(), grad)


def plain(given: Given) -> list[torch.Tensor]:
    """A call's arguments that want no gradients."""
    return [one.detach() for one in given[:3]]


def of_all(device: str, **options: Any) -> Given:
    """The calls of all ranks as one."""
    parts = zip(*(given_on(rank, device, **options) for rank in range(dist.get_world_size())), strict=True)
    joined = [torch.cat([one.detach() for one in part]) for part in parts]
    return Given(joined[0].requires_grad_(), joined[1], joined[2].requires_grad_(), joined[3])


def mine(whole: torch.Tensor, count: int, each: int = 40) -> torch.Tensor:
    """This rank's tokens of all."""
    begin = sum(9 + each * rank for rank in range(dist.get_rank()))
    return whole[begin : begin + count]


def trained(device: str, dtype: torch.dtype = BF16, **options: Any) -> Fp8Experts:
    torch.manual_seed(0)
    first = torch.randn(EXPERTS, 2 * INTERMEDIATE, HIDDEN) / 12
    second = torch.randn(EXPERTS, HIDDEN, INTERMEDIATE) / 9
    options = {"trainable": True} | options
    return Fp8Experts.from_weights(first.to(device, dtype), second.to(device, dtype), **options)


def own(layer: ParallelFp8Experts, whole: torch.Tensor) -> torch.Tensor:
    """What of all experts is this rank's."""
    return whole[layer.first_expert : layer.first_expert + layer.num_experts]


def results(layer: Fp8Experts, given: Given) -> list[torch.Tensor]:
    """The result, and the gradients of x, of the factors, and, if it is trained, of the weights."""
    wanted = [given.x, given.factors, *(layer.parameters() if layer.trainable else ())]
    out = layer(*given[:3])
    return [out.detach(), *torch.autograd.grad(out, wanted, given.grad)]


@case
def experts_train_with_the_bits_of_one_device(device: str) -> None:
    """With "rows" everything; with "sums" what is no sum over ranks. One rank has no tokens."""
    for dtype, trainable, use_ue8m0 in (
        (BF16, True, False),
        (torch.float32, True, True),
        (BF16, False, False),
    ):
        whole = trained(device, dtype, trainable=trainable, use_ue8m0=use_ue8m0)
        given = given_on(dist.get_rank(), device, dtype=dtype)
        count = len(given.x)
        expected = results(whole, of_all(device, dtype=dtype))
        expected = [mine(one, count) for one in expected[:3]] + expected[3:]
        for combine in ("rows", "sums"):
            layer = ParallelFp8Experts.from_experts(whole, combine=combine)
            assert layer.trainable == trainable
            found = results(layer, given)
            for place, (one, other) in enumerate(zip(found, expected, strict=True)):
                if place >= 3:
                    same(one, own(layer, other))
                elif combine == "rows" or place == 2:
                    same(one, other)
                else:
                    near(one, other)
            with torch.no_grad():
                same(layer(*given[:3]), found[0])


@case
def experts_gradients_of_x_are_within_their_bound(device: str) -> None:
    """With "sums", where s adds up what each rank gives."""
    whole = trained(device)
    given = given_on(0, device, top_k=4)
    layer = ParallelFp8Experts.from_experts(whole)
    found, expected = (results(one, given)[1] for one in (layer, whole))
    s = torch.zeros_like(expected, dtype=torch.float64)
    for counts in [one["count"] for one in layer.ranks.agree(count=(layer.first_expert, layer.num_experts))]:
        first, number = counts
        outside = (given.chosen < first) | (given.chosen >= first + number)
        s += results(whole, given._replace(chosen=given.chosen.masked_fill(outside, -1)))[1].double().abs()
    if device == "cuda":
        same(found, expected)
    else:
        bound = UNIT * (s + 2 * expected.double().abs()) * (1 + 4 * UNIT)
        assert ((found.double() - expected.double()).abs() <= bound).all()
        assert (found != expected).any(), "a bound that nothing comes near says nothing"


@case
def experts_train_whoever_wants_gradients(device: str) -> None:
    """Also where one rank alone wants some: all go back, and none waits for another."""
    rank = dist.get_rank()
    whole = trained(device)
    frozen = ParallelFp8Experts.from_experts(trained(device, trainable=False))
    layer = ParallelFp8Experts.from_experts(whole)
    for one in (frozen, layer):
        x, chosen, factors, grad = (tensor.detach() for tensor in given_on(rank, device))
        if rank == 0:
            x.requires_grad_()
        one(x, chosen, factors).backward(grad)
        assert x.grad is None if rank else x.grad.any()
    layer.zero_grad()
    layer(x.detach(), chosen, factors).backward(grad)  # weights alone: nothing is sent back
    expected = layer.down_proj.grad.clone()
    layer.zero_grad()
    frozen.requires_grad_(False)
    assert not frozen(x.detach(), chosen, factors).requires_grad
    layer(given_on(rank, device).x, chosen, factors).backward(grad)
    assert torch.equal(layer.down_proj.grad, expected)
    layer.requires_grad_(rank == 1)
    layer.zero_grad()
    layer(x.detach(), chosen, factors).backward(grad)
    assert layer.down_proj.grad is None if rank != 1 else torch.equal(layer.down_proj.grad, expected)


@case
def experts_train_with_checkpointing(device: str) -> None:
    """A pass that is computed again gives the same gradients, whoever wants them."""
    rank, whole = dist.get_rank(), trained(device)
    given = given_on(rank, device)
    for layer in (whole, trained(device, trainable=False)):
        layer = ParallelFp8Experts.from_experts(layer, combine="rows")
        expected = results(layer, given)[1:]
        for reentrant, wanted in ((False, True), (False, rank == 0), (True, True)):
            x, factors = (one.detach().requires_grad_(wanted) for one in (given.x, given.factors))
            layer.zero_grad()

            def twice(x: torch.Tensor, factors: torch.Tensor, layer: Fp8Experts = layer) -> torch.Tensor:
                return layer(x, given.chosen, factors) + layer(x, given.chosen, factors)

            checkpoint(twice, x, factors, use_reentrant=reentrant).backward(given.grad)
            found = [x.grad, factors.grad, *(one.grad for one in layer.parameters() if layer.trainable)]
            assert wanted == (x.grad is not None) == (factors.grad is not None)
            for one, other in zip(found, expected, strict=True):
                assert one is None or torch.equal(one, 2 * other)


class Model(torch.nn.Module):
    """Experts behind a layer that all ranks have."""

    def __init__(self, experts: Fp8Experts) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.norm = torch.nn.LayerNorm(HIDDEN, device=experts.down_proj.device)
        self.experts = experts

    def forward(self, x: torch.Tensor, chosen: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
        return self.experts(self.norm(x), chosen, factors)


def with_ddp(model: Model, device: str) -> torch.nn.Module:
    names = [f"experts.{name}" for name, _ in model.experts.named_parameters()]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, names)
    return DistributedDataParallel(model)


def with_fsdp(model: Model, device: str) -> torch.nn.Module:
    mesh = init_device_mesh(device, (dist.get_world_size(),))
    return fully_shard(model, mesh=mesh, ignored_params=set(model.experts.parameters()))


@case
def experts_train_beside_others(device: str) -> None:
    """DDP or FSDP for the rest of a model: a step is that of all tokens on one device."""
    size, rank = dist.get_world_size(), dist.get_rank()
    every = [tokens(24, 2, device, seed=one) for one in range(size)]
    joined = [torch.cat(part) for part in zip(*every, strict=True)]
    for wrap in (with_ddp, with_fsdp):
        alone = Model(trained(device, torch.float32))
        before = {name: one.clone() for name, one in alone.named_parameters()}
        shared = Model(ParallelFp8Experts.from_experts(alone.experts, combine="rows"))
        for parameter in shared.experts.parameters():
            parameter.register_hook(lambda grad: grad / size)
        wrapped, losses = wrap(shared, device), []
        # On a GPU torch would take several parameters at once, and FSDP's are not of the experts' type.
        one_by_one = functools.partial(torch.optim.SGD, lr=0.02, foreach=False)
        optimizers = [one_by_one(model.parameters()) for model in (shared, alone)]
        for step in range(4):
            for model, call, optimizer in zip(
                (wrapped, alone), (every[rank], joined), optimizers, strict=True
            ):
                optimizer.zero_grad()
                x = call[0].float()
                # Not the mean of all numbers, whose gradient is so small that its scale is the smallest.
                loss = (model(x, *call[1:]) - x).square().sum(-1).mean()
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
            for name, found in shared.named_parameters():
                expected, begun = dict(alone.named_parameters())[name], before[name]
                if name.startswith("experts."):
                    expected, begun = own(shared.experts, expected), own(shared.experts, begun)
                else:
                    found = found.full_tensor() if hasattr(found, "full_tensor") else found
                off = (found - expected).norm() / (expected - begun).norm()
                # Later a number that differs in its last bit may have got another code.
                assert off < (1e-5 if step == 0 and device == "cpu" else 5e-2), (step, name, off)
        for run in (losses[::2], losses[1::2]):
            assert run == sorted(run, reverse=True) and run[-1] < 0.97 * run[0], losses


@case
def experts_train_in_a_mesh(device: str) -> None:
    """Two ranks share experts, and each pair of ranks has all of them: FSDP averages over the pairs. With one
    pair there is nothing to average, and torch divides all the same."""
    size = dist.get_world_size()
    if size == 2:
        return
    mesh = init_device_mesh(device, (size // 2, 2), mesh_dim_names=("dp", "ep"))
    whole = trained(device, torch.float32)
    plain, sharded = (ParallelFp8Experts.from_experts(whole, mesh["ep"], combine="rows") for _ in range(2))
    fully_shard(sharded, mesh=mesh["dp"])
    sharded.set_gradient_divide_factor(float(size))
    sharded.set_force_sum_reduction_for_comms(device == "cpu")
    given = given_on(dist.get_rank(), device, torch.float32)
    for layer in (plain, sharded):
        layer(*given[:3]).backward(given.grad)
    for one, other in zip(sharded.parameters(), plain.parameters(), strict=True):
        dist.all_reduce(other.grad, group=mesh["dp"].get_group())
        near(one.grad.full_tensor(), other.grad / size)


@case
def experts_that_train_read_checkpoints(device: str) -> None:
    """Of all experts, of this rank's, and of single ones."""
    whole = trained(device)
    layer = ParallelFp8Experts.from_experts(whole)
    single = {}
    for expert, (first, second) in enumerate(zip(whole.gate_up_proj, whole.down_proj, strict=True)):
        named = zip(("gate_proj", "up_proj", "down_proj"), (*first.detach().chunk(2), second), strict=True)
        single |= {f"{expert}.{name}.weight": one.detach() for name, one in named}
    for state in (whole.state_dict(), layer.state_dict(), single):
        fresh = ParallelFp8Experts(
            EXPERTS, HIDDEN, INTERMEDIATE, trainable=True, dtype=torch.float32, device=device
        )
        assert fresh.trainable and fresh.down_proj.requires_grad
        fresh.load_state_dict(state)
        for name, one in fresh.named_parameters():
            assert torch.equal(one, own(layer, getattr(whole, name)).float()), name


@case
def experts_training_refusals(device: str) -> None:
    rank, whole = dist.get_rank(), trained(device)
    layer = ParallelFp8Experts.from_experts(whole)
    given = given_on(0, device)
    with (
        torch.set_grad_enabled(rank == 0),
        refused("rank 0 needs gradients and rank 1 can have none, as they are disabled there"),
    ):
        layer(*given[:3])
    with refused("rank 0 needs gradients and rank 1 can have none"):
        layer(*given[:3]) if rank == 0 else layer.requires_grad_(False).dispatch(*plain(given))
    gemm_ladder.set_mk_alignment_for_contiguous_layout(64 if rank else 128)
    with refused("rank 0 needs gradients and rank 1 can have none", "its alignment is no multiple of 128"):
        layer(*(plain(given) if rank else given[:3]))
    gemm_ladder.set_mk_alignment_for_contiguous_layout(128)
    layer.requires_grad_(True)
    x = given.x.detach().to(torch.float32 if rank else BF16)
    with refused("x is torch.bfloat16 on rank 0 and torch.float32 on rank 1; one type is needed for all"):
        layer(x, *given[1:3])
    with refused("a gradient of a gradient is asked for"):
        torch.autograd.grad(layer(*given[:3]).sum(), given.x, create_graph=True)
    with refused("gradients are wanted, and dispatch has none; torch.no_grad(), or a call of the layer"):
        layer.dispatch(*given[:3])
    with refused("everywhere is True and trainable is True; False is needed for one of them"):
        ParallelFp8Experts.from_experts(whole, everywhere=True)
    with refused("trainable is False on rank 0 and True on rank 1; one is needed"):
        ParallelFp8Experts(8, 128, 128, trainable=bool(rank), device=device)
    frozen = ParallelFp8Experts.from_experts(trained(device, trainable=False), everywhere=True)
    for name, place in (("x", 0), ("expert_weights", 2)):
        wanted = [one.detach().requires_grad_(number == place) for number, one in enumerate(given[:3])]
        with refused(f"{name} requires grad and everywhere is True; everywhere=False, or torch.no_grad()"):
            frozen(*wanted)
    out = layer(*given[:3]).detach()
    same(layer.quantize_()(*plain(given)), out)


@case
def experts_that_one_rank_refuses(device: str) -> None:
    """The others raise, too, and do not wait; later calls are as ever."""
    rank, last = dist.get_rank(), dist.get_world_size() - 1
    layer = ParallelFp8Experts.from_experts(trained(device), combine="rows")
    given = given_on(0, device)
    x, chosen, factors = plain(given)
    expected = results(layer, given)
    weight = layer.down_proj

    def converted() -> torch.Tensor:
        layer.down_proj = torch.nn.Parameter(weight.double()) if rank == last else weight
        return layer(x, chosen, factors)

    def misaligned() -> torch.Tensor:
        gemm_ladder.set_mk_alignment_for_contiguous_layout(64 if rank == last else 128)
        return layer(x, chosen, factors)

    calls: dict[str, Callable[[], object]] = {
        "x is torch.bfloat16 [9, 64]; float32": lambda: layer(
            x[:, :64] if rank == last else x, chosen, factors
        ),
        "gradients are wanted, and dispatch has none": lambda: layer.requires_grad_(rank == last).dispatch(
            x, chosen, factors
        ),
        "the weight is torch.float64; float32": converted,
        "the alignment of the contiguous layout is 64; a multiple of 128": misaligned,
    }
    for words, call in calls.items():
        with refused(words if rank == last else f"rank {last} refused its input, and its own error says why"):
            call()
        layer.down_proj = weight
        layer.requires_grad_(True)
        gemm_ladder.set_mk_alignment_for_contiguous_layout(128)
        for one, other in zip(results(layer, given), expected, strict=True):
            same(one, other)
    elsewhere = copy.deepcopy(layer).to("meta") if rank == last else layer
    words = f"x is on {x.device} and the weights on meta"
    with refused(words if rank == last else f"rank {last} refused its input"):
        elsewhere(x, chosen, factors)
    out = layer(*given[:3])
    gemm_ladder.set_mk_alignment_for_contiguous_layout(256)
    with refused(
        "the alignment of the contiguous layout was 128 in the forward pass and is 256 in the backward"
    ):
        out.backward(given.grad)
    gemm_ladder.set_mk_alignment_for_contiguous_layout(128)


@case
def experts_send_no_more_than_is_needed(device: str) -> None:
    """Gradients of tokens, if some rank needs them; tokens in the type of the ranks that have some."""
    rank, size = dist.get_rank(), dist.get_world_size()
    layer = ParallelFp8Experts.from_experts(trained(device, trainable=False))
    given = given_on(0, device, each=40)
    moved = []
    for of_x in (True, False):
        x, factors = given.x.detach().requires_grad_(of_x), given.factors.detach().requires_grad_()
        with sent_bytes() as found:
            layer(x, given.chosen, factors).backward(given.grad)
        moved.append(found)
    owned = (given.chosen >= layer.first_expert) & (given.chosen < layer.first_expert + layer.num_experts)
    received = (size - 1) * int(owned.any(1).sum())  # every rank has the same tokens
    assert moved[0][:-1] == moved[1][:-1] and moved[0][-1] - moved[1][-1] == received * 2 * HIDDEN
    x, chosen, factors, grad = (one[:0] for one in given)
    factors = factors.detach().requires_grad_()
    layer(x.detach(), chosen, factors).backward(grad)  # of no tokens, whose gradients nobody needs
    assert factors.grad is not None and not factors.grad.numel()
    empty = rank == size - 1
    whole = trained(device)
    layer = ParallelFp8Experts.from_experts(whole, combine="rows")
    part = [one[: 0 if empty else None].detach() for one in given]
    part[0] = part[0].float() if empty else part[0]
    layer(*part[:3]).backward(part[3].float() if empty else part[3])
    parts = [torch.cat([one.detach()] * (size - 1)) for one in given]
    whole(*parts[:3]).backward(parts[3])
    for name, parameter in layer.named_parameters():
        same(parameter.grad, own(layer, getattr(whole, name).grad))
