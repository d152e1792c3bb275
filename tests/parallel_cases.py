"""What each of several processes does with layers that they share. A case raises where something is wrong;
all processes run all cases in the same order."""

from __future__ import annotations

import contextlib
import copy
import itertools
import warnings
from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.distributed as dist
from gemm_ladder.errors import InputError
from gemm_ladder.layers import (
    ColumnParallelFp8Linear,
    Fp8Experts,
    Fp8Linear,
    ParallelFp8Experts,
    RowParallelFp8Linear,
)
from gemm_ladder.ref import fp8, metrics
from layer_cases import EXPERTS, HIDDEN, experts_of, normal, tokens

BF16 = torch.bfloat16
UNIT = 2**-8  # what BF16 rounds a number by, at most
ROW_ERROR = 1.5e-2  # on a GPU, where other shapes may get kernels that add in another order
CASES: dict[str, Callable[[str], None]] = {}


def case(function: Callable[[str], None]) -> Callable[[str], None]:
    CASES[function.__name__] = function
    return function


@contextlib.contextmanager
def refused(*words: str) -> Iterator[None]:
    """Checks that InputError is raised, with these words."""
    try:
        yield
    except InputError as error:
        assert all(word in str(error) for word in words), str(error)
    else:
        raise AssertionError(f"nothing was refused; {words} is expected")


def same(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal bits on a CPU."""
    assert found.dtype == expected.dtype and found.shape == expected.shape
    if found.is_cuda and found.numel():
        rows = (one.detach().double().reshape(-1, one.shape[-1]).cpu().numpy() for one in (found, expected))
        assert metrics.max_row_error(*rows) < ROW_ERROR
    else:
        assert torch.equal(found, expected), (found - expected).abs().max()


def within(found: torch.Tensor, expected: torch.Tensor, bound: torch.Tensor) -> None:
    """Every number as close as the bound says; on a GPU, row by row."""
    assert found.dtype == expected.dtype
    if found.is_cuda:
        same(found, expected)
    elif found.numel():
        over = (found.double() - expected.double()).abs() - bound * (1 + 4 * UNIT)
        assert over.max() <= 0, over.max()


def near(found: torch.Tensor, expected: torch.Tensor) -> None:
    """As close as sums that were rounded once more are."""
    off = (found.double() - expected.double()).norm() / expected.double().norm()
    assert not found.numel() or off < (ROW_ERROR if found.is_cuda else UNIT), off


def mine(x: torch.Tensor, dim: int = -1) -> torch.Tensor:
    """This rank's part of a tensor."""
    return x.chunk(dist.get_world_size(), dim)[dist.get_rank()]


def both(device: str, **options: object) -> tuple[ParallelFp8Experts, Fp8Experts]:
    """Experts that all ranks share, and the whole."""
    combine = options.pop("combine", "rows")
    whole, _ = experts_of(device, **options)
    return ParallelFp8Experts.from_experts(whole, combine=combine), whole


def ragged(device: str, top_k: int = 3) -> tuple[torch.Tensor, ...]:
    """Tokens, of which every rank has another number."""
    return tokens(9 + 40 * dist.get_rank(), top_k, device, seed=dist.get_rank())


@case
def experts_have_the_bits_of_one_device(device: str) -> None:
    for layout, use_ue8m0 in (("auto", False), ("psum", True), ("contiguous", False), ("masked", False)):
        layer, whole = both(device, layout=layout, use_ue8m0=use_ue8m0)
        given = ragged(device)
        same(layer(*given), whole(*given))
    counts = layer.ranks.agree(count=layer.num_experts)
    assert sum(one["count"] for one in counts) == EXPERTS == layer.all_experts
    assert torch.equal(layer(*given), layer(*given))
    x, chosen, factors = given
    doubled = chosen.repeat_interleave(2, dim=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torch warns of what it copies to search in
        assert torch.equal(layer(x, doubled[:, ::2], factors), layer(*given))


@case
def experts_sums_are_within_their_bound(device: str) -> None:
    layer, whole = both(device, combine="sums")
    x, chosen, factors = ragged(device, 4)
    expected, s = whole(x, chosen, factors), 0
    cuts = [0, *itertools.accumulate(one["count"] for one in layer.ranks.agree(count=layer.num_experts))]
    for begin, end in itertools.pairwise(cuts):
        outside = (chosen < begin) | (chosen >= end)
        s = s + whole(x, chosen.masked_fill(outside, -1), factors).double().abs()
    found = layer(x, chosen, factors)
    within(found, expected, UNIT * (s + 2 * expected.double().abs()))
    assert (found != expected).any(), "a bound that nothing comes near says nothing"
    one_each = tokens(30, 1, device, seed=dist.get_rank())
    same(layer(*one_each), whole(*one_each))


@case
def experts_that_every_token_goes_to(device: str) -> None:
    """They give the same sums, and wait for nothing."""
    whole, _ = experts_of(device)
    layers = [ParallelFp8Experts.from_experts(whole, everywhere=everywhere) for everywhere in (False, True)]
    for count in (1, 40):
        x, chosen, factors = tokens(count, 4, device, seed=dist.get_rank())
        chosen[::3, 2] = -1
        same(*(layer(x, chosen, factors) for layer in layers))
    assert "everywhere=True" in repr(layers[1])
    none = tuple(one[:0] for one in (x, chosen, factors))
    assert layers[1](*none).shape == (0, HIDDEN)
    assert not layers[1](x, chosen[:, :0], factors[:, :0]).any()
    with refused("combine is 'rows' and everywhere is True; 'sums' is needed for that"):
        ParallelFp8Experts.from_experts(whole, combine="rows", everywhere=True)
    if device == "cuda":
        layer, expected = layers[1], layers[1](x, chosen, factors)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = layer(x, chosen, factors)
        out.zero_()
        graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(out, expected)


@case
def experts_whatever_the_load(device: str) -> None:
    """A rank without tokens, no row for some expert or rank, all rows for one expert, choices of nobody."""
    for combine in ("rows", "sums"):
        layer, whole = both(device, combine=combine)
        alike = same if combine == "rows" else near
        last = dist.get_world_size() - 1
        empty = tokens(0 if dist.get_rank() == last else 5, 2, device)
        found, expected = layer(*empty), whole(*empty)
        alike(found, expected)
        x, chosen, factors = ragged(device, 1)
        for expert in (0, EXPERTS - 1, -1, EXPERTS, 1 << 40):
            given = (x, torch.full_like(chosen, expert), factors)
            same(layer(*given), whole(*given))
        mixed = ragged(device)
        for nobody in (-1, EXPERTS, 1 << 40):
            mixed[1][::3, 1] = nobody
            found, expected = layer(*mixed), whole(*mixed)
            alike(found, expected)
        none = tuple(one[:0] for one in ragged(device))
        assert layer(*none).shape == (0, HIDDEN)
        nothing = (x, chosen[:, :0], factors[:, :0])
        assert not layer(*nothing).any()
        nan = factors.masked_fill(torch.ones_like(chosen, dtype=torch.bool), torch.nan)
        assert not layer(x, torch.full_like(chosen, -1), nan).any()


@case
def experts_shapes_and_types(device: str) -> None:
    layer, whole = both(device)
    x, chosen, factors = tokens(12, 2, device, seed=dist.get_rank())
    expected = whole(x, chosen, factors)
    found = layer(x.view(3, 4, -1), chosen.view(3, 4, 2).int(), factors.view(3, 4, 2).double())
    same(found, expected.view(3, 4, -1))
    same(layer(x.float(), chosen, factors), expected.float())
    copied = copy.deepcopy(layer)
    assert torch.equal(copied(x, chosen, factors), layer(x, chosen, factors))
    assert f"rank {dist.get_rank()} of" in repr(layer) and f"all_experts={EXPERTS}" in repr(layer)


@case
def experts_from_their_own_weights(device: str) -> None:
    """From a rank's part, and from checkpoints of the whole or of the part."""
    layer, whole = both(device)
    _, given = experts_of(device)
    own = slice(layer.first_expert, layer.first_expert + layer.num_experts)
    made = ParallelFp8Experts.from_weights(*(one[own] for one in given), combine="rows")
    call = ragged(device)
    expected = layer(*call)
    assert torch.equal(made(*call), expected)
    named = {}
    for expert, (first, second) in enumerate(zip(*given, strict=True)):
        gate, up = first.chunk(2)
        named |= {
            f"{expert}.{name}.weight": tensor
            for name, tensor in (("gate_proj", gate), ("up_proj", up), ("down_proj", second))
        }
    numbers = range(own.start, own.stop)
    part = {name: one for name, one in named.items() if int(name.partition(".")[0]) in numbers}
    states = (whole.state_dict(), layer.state_dict(), named, part)
    for state in states:
        fresh = ParallelFp8Experts(EXPERTS, HIDDEN, whole.intermediate_size, combine="rows", device=device)
        assert not torch.equal(fresh(*call), expected)
        fresh.load_state_dict(state)
        assert torch.equal(fresh(*call), expected)
    fresh = ParallelFp8Experts(EXPERTS, HIDDEN, whole.intermediate_size, combine="rows", device=device)
    for expert in range(EXPERTS):  # in files of one expert each
        one = {name: tensor for name, tensor in named.items() if name.startswith(f"{expert}.")}
        assert not fresh.load_state_dict(one, strict=False).unexpected_keys
    assert torch.equal(fresh(*call), expected)
    assert {*layer.state_dict()} == {*whole.state_dict()}
    with torch.device("meta"):
        empty = ParallelFp8Experts(EXPERTS, HIDDEN, whole.intermediate_size, combine="rows")
    empty.load_state_dict(layer.state_dict(), assign=True)
    assert torch.equal(empty(*call), expected)


@case
def experts_refusals(device: str) -> None:
    whole, _ = experts_of(device)
    size, rank = dist.get_world_size(), dist.get_rank()
    groups = [dist.new_group([one]) for one in range(size)]
    alone = ParallelFp8Experts.from_experts(whole, groups[rank], combine="rows")
    call = ragged(device)
    assert alone.num_experts == EXPERTS and torch.equal(alone(*call), whole(*call))
    with refused("this process is not in the group"):
        ParallelFp8Experts.from_experts(whole, groups[(rank + 1) % size])
    with refused("group is of type str; a ProcessGroup, a DeviceMesh or None is needed"):
        ParallelFp8Experts.from_experts(whole, "world")
    mesh = torch.distributed.device_mesh.init_device_mesh(device, (1, size), mesh_dim_names=("dp", "ep"))
    with refused("the mesh has 2 dimensions; one, such as mesh['tp'], is needed"):
        ParallelFp8Experts.from_experts(whole, mesh)
    layer = ParallelFp8Experts.from_experts(whole, mesh["ep"], combine="rows")
    same(layer(*call), whole(*call))
    few, _ = experts_of(device)
    for name, tensor in few.named_parameters():
        setattr(few, name, torch.nn.Parameter(tensor[:1], requires_grad=False))
    with refused(f"num_experts is 1 and there are {size} ranks; at least one for each is needed"):
        ParallelFp8Experts.from_experts(few)
    with refused("experts is of type ParallelFp8Experts; a whole Fp8Experts is needed"):
        ParallelFp8Experts.from_experts(layer)
    with refused("combine is 'all'; one of sums, rows is needed"):
        ParallelFp8Experts.from_experts(whole, combine="all")
    with refused("everywhere is of type str; a bool is needed"):
        ParallelFp8Experts.from_experts(whole, everywhere="no")
    for flag in ("everywhere", "trainable", "use_ue8m0"):
        with refused(f"{flag} is of type str; a bool is needed"):
            ParallelFp8Experts(8, 128, 128, device=device, **{flag: "no"})
    with refused("layout is 'foo'; one of auto, contiguous, masked, psum is needed"):
        layer.layout = "foo"
    with refused("combine is rows on rank 0 and sums on rank 1; one is needed for all"):
        ParallelFp8Experts.from_experts(whole, combine="sums" if rank else "rows")
    with refused("hidden_size is 128 on rank 0 and 256 on rank 1"):
        ParallelFp8Experts(8, 256 if rank else 128, 128, device=device)
    with refused("a token has 2 experts on rank 0 and 3 on rank 1; one number is needed"):
        layer(*tokens(5, 3 if rank else 2, device))
    same(layer(*call), whole(*call))


def linears(device: str, dtype: torch.dtype, **options: bool) -> tuple[torch.nn.Linear, Fp8Linear]:
    torch.manual_seed(1)
    plain = torch.nn.Linear(512, 1024, device=device, dtype=dtype)
    return plain, Fp8Linear.from_linear(copy.deepcopy(plain), **options)


def absolute(layer: Fp8Linear, x: torch.Tensor, dim: int) -> torch.Tensor:
    """float64: what ranks add up to a result (dim 1) or a gradient of its input (dim 0), all positive."""
    size, weight = dist.get_world_size(), layer.dequantized_weight().double()
    parts = zip(x.double().chunk(size, -1), weight.chunk(size, dim), strict=True)
    return sum((one @ (part if dim == 0 else part.T)).abs() for one, part in parts)


@case
def column_parallel(device: str) -> None:
    """Results and the weight's gradient have the whole layer's bits; x's gradient is a sum."""
    for dtype, trainable, use_ue8m0 in (
        (BF16, True, False),
        (torch.float32, True, True),
        (BF16, False, False),
    ):
        plain, whole = linears(device, dtype, trainable=trainable, use_ue8m0=use_ue8m0)
        layer = ColumnParallelFp8Linear.from_linear(plain, trainable=trainable, use_ue8m0=use_ue8m0)
        given = [normal(2, 70, 512, device=device, dtype=dtype).requires_grad_() for _ in range(2)]
        out, expected = layer(given[0]), whole(given[1])
        same(out, mine(expected))
        grad = normal(2, 70, 1024, device=device, dtype=dtype)
        out.backward(mine(grad))
        expected.backward(grad)
        size = dist.get_world_size()
        s = absolute(whole, quantised(grad, use_ue8m0), 0)
        within(given[0].grad, given[1].grad, UNIT * (size * s + given[1].grad.double().abs()))
        same(layer.bias.grad, mine(whole.bias.grad))
        if trainable:
            same(layer.weight.grad, mine(whole.weight.grad, 0))


def quantised(x: torch.Tensor, use_ue8m0: bool = False) -> torch.Tensor:
    """What a cast per token makes of x."""
    rows = x.detach().float().flatten(0, -2).cpu().numpy()
    found = fp8.dequantize_lhs(*fp8.per_token_cast_to_fp8(rows, use_ue8m0))
    return torch.from_numpy(np.ascontiguousarray(found)).view(x.shape).to(x.device)


@case
def row_parallel(device: str) -> None:
    """Results are a sum; the gradients have the whole layer's bits."""
    for dtype, trainable in ((BF16, True), (torch.float32, True), (BF16, False)):
        plain, whole = linears(device, dtype, trainable=trainable)
        layer = RowParallelFp8Linear.from_linear(plain, trainable=trainable)
        x = normal(3, 50, 512, device=device, dtype=dtype)
        own, all_of_it = mine(x).clone().requires_grad_(), x.clone().requires_grad_()
        out, expected = layer(own), whole(all_of_it)
        before = expected.double() - whole.bias.double()
        s = absolute(whole, quantised(x), 1)
        bound = UNIT * (dist.get_world_size() * s + before.abs() + 2 * expected.double().abs())
        within(out, expected, bound)
        grad = normal(3, 50, 1024, device=device, dtype=dtype)
        out.backward(grad)
        expected.backward(grad)
        same(own.grad, mine(all_of_it.grad))
        same(layer.bias.grad, whole.bias.grad)
        if trainable:
            same(layer.weight.grad, mine(whole.weight.grad, 1))


@case
def linear_without_bias_is_within_its_bound(device: str) -> None:
    plain, _ = linears(device, BF16)
    plain.bias = None
    layer, whole = RowParallelFp8Linear.from_linear(plain), Fp8Linear.from_linear(plain)
    x = normal(100, 512, device=device, dtype=BF16)
    with torch.no_grad():
        found, expected = layer(mine(x)), whole(x)
    s = absolute(whole, quantised(x), 1)
    within(found, expected, UNIT * (dist.get_world_size() * s + expected.double().abs()))
    assert (found != expected).any(), "a bound that nothing comes near says nothing"
    everywhere = [torch.empty_like(found) for _ in range(dist.get_world_size())]
    dist.all_gather(everywhere, found)
    assert all(torch.equal(one, found) for one in everywhere)


@case
def column_and_row_in_a_model(device: str) -> None:
    """They train: the parts of a step are those of the whole model's step, but for the sums' rounding."""
    up, _ = linears(device, torch.float32)
    down = torch.nn.Linear(1024, 512, device=device)
    dist.broadcast(down.weight.data, 0)
    dist.broadcast(down.bias.data, 0)
    whole = torch.nn.Sequential(
        *(Fp8Linear.from_linear(copy.deepcopy(one), trainable=True) for one in (up, down))
    )
    shared = torch.nn.Sequential(
        ColumnParallelFp8Linear.from_linear(up, trainable=True),
        RowParallelFp8Linear.from_linear(down, trainable=True),
    )
    x = normal(64, 512, device=device) / 8
    for model in (whole, shared):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        for _ in range(2):
            optimizer.zero_grad()
            (model(x) - x).square().mean().backward()
            optimizer.step()
    found, expected = shared(x).detach(), whole(x).detach()
    assert ((found - expected).norm() / expected.norm()).item() < 3e-2


@case
def linear_checkpoints(device: str) -> None:
    """Of the whole layer, in BF16 or FP8 with either naming, and of the part."""
    for kind, dim in ((ColumnParallelFp8Linear, 0), (RowParallelFp8Linear, 1)):
        plain, whole = linears(device, BF16)
        layer = kind.from_linear(plain)
        in_fp8 = whole.state_dict()
        renamed = {name.replace("_scale_inv", "_scale"): one for name, one in in_fp8.items()}
        for state in (plain.state_dict(), in_fp8, renamed, layer.state_dict()):
            fresh = kind(512, 1024, device=device, dtype=BF16)
            assert not torch.equal(fresh.weight.float(), layer.weight.float())
            fresh.load_state_dict(state)
            for name, tensor in layer.state_dict().items():
                assert torch.equal(fresh.state_dict()[name].float(), tensor.float()), name
        copied = kind.from_linear(whole)
        assert torch.equal(copied.weight.float(), layer.weight.float()) and not copied.trainable
        assert torch.equal(layer.weight.float(), mine(whole.weight, dim).float())
        trained = kind(512, 1024, trainable=True, device=device)
        trained.load_state_dict(plain.state_dict())
        assert torch.equal(trained.weight, mine(plain.weight, dim).float())
        dist.broadcast(bias := trained.bias.detach().clone(), 0)
        assert dim == 0 or torch.equal(bias, trained.bias)


@case
def linear_refusals(device: str) -> None:
    size = dist.get_world_size()
    for kind, sizes, name in (
        (ColumnParallelFp8Linear, (512, 128 * size + 64), "out_features"),
        (RowParallelFp8Linear, (128 * size + 64, 512), "in_features"),
    ):
        needed = f"a multiple of {128 * size} is needed"
        with refused(f"{name} is {128 * size + 64} and there are {size} ranks; {needed}"):
            kind(*sizes, device=device)
        with refused(needed):
            kind.from_linear(torch.nn.Linear(*sizes, device=device))
        layer = kind(128 * size, 128 * size, device=device)
        with refused(f"the layer is of type {kind.__name__}; a whole torch.nn.Linear or Fp8Linear is needed"):
            kind.from_linear(layer)
        for flag in ("trainable", "use_ue8m0"):
            with refused(f"{flag} is of type str; a bool is needed"):
                kind(128 * size, 128 * size, device=device, **{flag: "no"})
            with refused(f"{flag} is of type str; a bool is needed"):
                kind.from_linear(torch.nn.Linear(*[128 * size] * 2, device=device), **{flag: "no"})
        with refused("x has shape [3, 7]"):
            layer(torch.ones(3, 7, device=device))
        with refused("in_features is 24; a positive multiple of 16"):
            kind(24, 512, device=device)
        assert f"rank {dist.get_rank()} of {size}" in repr(layer)
    if device == "cuda":
        with refused("the weights are on cpu and the group moves tensors of cuda; one device is needed"):
            ColumnParallelFp8Linear(128, 128 * size)
