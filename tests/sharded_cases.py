"""Cases like those of parallel_cases.py, of what torch itself does with layers: FSDP and
DistributedDataParallel around those whose weights are stored in FP8, torch.compile and
checkpoints of those that ranks have a part of."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterator

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as checkpoint
from gemm_ladder.layers import (
    ColumnParallelFp8Linear,
    Fp8Experts,
    Fp8Linear,
    ParallelFp8Experts,
    RowParallelFp8Linear,
    distributed_state_dict,
    frozen_parameters,
    route,
)
from layer_cases import normal
from parallel_cases import BF16, CASES, case, linears, near, refused
from torch._dynamo.backends.common import aot_autograd
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.parallel import DistributedDataParallel

__all__ = ["CASES"]  # with those of parallel_cases.py

K, N = 128, 256


class Block(torch.nn.Module):
    """Frozen layers in FP8 beside others that are trained."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = torch.nn.LayerNorm(K)
        self.up, self.down = Fp8Linear(K, N), Fp8Linear(N, K, bias=False)
        self.beside = torch.nn.Linear(K, N, bias=False)
        self.experts = Fp8Experts(3, K, 128)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(x)
        x = x + self.down(torch.relu(self.up(y) + self.beside(y)))
        return x + self.experts(x, *route(x[:, :3], 2))


def model(device: str) -> torch.nn.Sequential:
    torch.manual_seed(0)
    return torch.nn.Sequential(Block(), Block()).to(device)


def inputs(device: str) -> torch.Tensor:
    return torch.randn(5, K, generator=torch.Generator().manual_seed(1)).to(device)


@contextlib.contextmanager
def unchanged(shared: torch.nn.Module) -> Iterator[None]:
    """Checks that the weights in FP8 keep their types, bits and number."""
    before = {name: one.detach().clone() for name, one in frozen_parameters(shared).items()}
    assert len(before) == 16
    yield
    for name, one in frozen_parameters(shared).items():
        mine, its = (local(tensor).flatten() for tensor in (one.detach(), before.pop(name)))
        assert mine.dtype == its.dtype and torch.equal(mine.view(torch.uint8), its.view(torch.uint8)), name
    assert not before


def local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


@case
def fsdp_with_frozen_layers(device: str) -> None:
    """FP8 layers apart, without a type to cast to, or whole on every rank; both give what one device does."""
    mesh = init_device_mesh(device, (dist.get_world_size(),))
    x = inputs(device)
    for dtype in (None, BF16):
        policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
        plain = model(device)
        expected = plain.to(dtype or torch.float32)(x.to(dtype or torch.float32))
        for whole in (False, True):
            shared = model(device)
            ignored = set(frozen_parameters(shared).values()) if whole else None
            for layer in [*shared.modules()] if not whole else ():
                if isinstance(layer, (Fp8Linear, Fp8Experts)):
                    fully_shard(layer, mesh=mesh)
            for block in shared:
                fully_shard(block, mesh=mesh, mp_policy=policy, ignored_params=ignored)
            fully_shard(shared, mesh=mesh, mp_policy=policy, ignored_params=ignored)
            optimizer = torch.optim.AdamW([one for one in shared.parameters() if one.requires_grad])
            with unchanged(shared):
                out = shared(x)
                assert out.dtype == (dtype or torch.float32)
                near(out, expected)
                out.float().square().mean().backward()
                before = local(shared[0].beside.weight.detach()).clone()
                optimizer.step()
                assert not torch.equal(local(shared[0].beside.weight.detach()), before)
                optimizer.zero_grad()
                assert shared(x).isfinite().all()
    shared = model(device)
    fully_shard(shared, mesh=mesh, mp_policy=policy)
    with refused("the weight is torch.bfloat16 and the layer has scales for one in FP8"):
        shared(x)


@case
def ddp_with_frozen_layers(device: str) -> None:
    shared = model(device)
    names = list(frozen_parameters(shared))
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(shared, names)
    wrapped = DistributedDataParallel(shared)
    with unchanged(shared):
        wrapped(inputs(device) * (1 + dist.get_rank())).square().mean().backward()
        found = shared[0].beside.weight.grad
        dist.broadcast(others := found.clone(), 0)
        assert found.any() and torch.equal(found, others)


@case
def compiled_linears(device: str) -> None:
    """In one graph forward and one backward, each with one functional collective; the bits stay."""
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, _: object) -> Callable[..., object]:
        graphs.append(graph)
        return graph.forward

    up, _ = linears(device, BF16)
    shared = torch.nn.Sequential(
        ColumnParallelFp8Linear.from_linear(up, trainable=True),
        RowParallelFp8Linear.from_linear(torch.nn.Linear(1024, 512, device=device, dtype=BF16)),
    )
    compiled = torch.compile(shared, fullgraph=True, backend=aot_autograd(fw_compiler=backend))
    x = normal(20, 512, device=device, dtype=BF16).requires_grad_()
    wanted = [x, *(one for one in shared.parameters() if one.requires_grad)]
    seen = []
    for module in (shared, compiled, torch.compile(shared, fullgraph=True, backend="eager")):
        out = module(x)
        grads = torch.autograd.grad(out, wanted, normal(20, 512, device=device, dtype=BF16, seed=1))
        seen.append([out, *grads])
    assert all(torch.equal(one, other) for found in seen for one, other in zip(found, seen[0], strict=True))
    called = [[str(node.target) for node in graph.graph.nodes] for graph in graphs]
    assert [sum("c10d_functional.all_reduce" in one for one in names) for names in called] == [1, 1]


@case
def checkpoints_for_any_number_of_ranks(device: str) -> None:
    """What ranks save of their parts, whole layers load, and layers that are divided otherwise, each bit."""
    kinds, size = (ColumnParallelFp8Linear, RowParallelFp8Linear), dist.get_world_size()
    up, _ = linears(device, BF16)
    experts = Fp8Experts(2 * size, K, K, device=device)
    linear = [Fp8Linear.from_linear(up, trainable=one) for one in (True, False)]
    whole = torch.nn.ModuleList([*linear, experts])
    saved, other = (
        torch.nn.ModuleList([kind.from_linear(one) for kind, one in zip(order, linear, strict=True)])
        for order in (kinds, kinds[::-1])
    )
    for model in (saved, other):
        model.append(ParallelFp8Experts.from_experts(experts))
    expected = [{name: one.clone() for name, one in model.state_dict().items()} for model in (whole, other)]
    for one in (*whole.state_dict().values(), *other.state_dict().values()):
        one.zero_()
    folder = [tempfile.mkdtemp()]
    dist.broadcast_object_list(folder, 0)
    checkpoint.save(distributed_state_dict(saved), checkpoint_id=folder[0])
    for model, states in zip((whole, other), expected, strict=True):
        checkpoint.load(distributed_state_dict(model), checkpoint_id=folder[0])
        for name, one in model.state_dict().items():
            assert torch.equal(one.float(), states[name].float()) and one.float().any(), name
    dist.barrier()
    shutil.rmtree(folder[0], ignore_errors=True)
    fewer = [2] * (size - 1) + [1]
    given = [torch.ones(fewer[dist.get_rank()], n, K, device=device) for n in (2 * K, K)]
    with refused(f"the layer has {', '.join(map(str, fewer))} experts on its ranks; the same number on each"):
        distributed_state_dict(ParallelFp8Experts.from_weights(*given))
    with refused("model is of type list; a torch.nn.Module is needed"):
        distributed_state_dict([whole])


@case
def traced_linears(device: str) -> None:
    """In make_fx's graph the sum over the ranks is waited for."""
    layer = RowParallelFp8Linear.from_linear(
        torch.nn.Linear(1024, 512, bias=False, device=device, dtype=BF16)
    )
    x = normal(20, layer.weight.shape[1], device=device, dtype=BF16)
    with torch.no_grad():
        graph = make_fx(lambda one: layer(one) * 2)(x)
        for given in (x, x + 1):
            assert torch.equal(graph(given), layer(given) * 2)
