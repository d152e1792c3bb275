"""Compiling a model's layers ahead: the kernels are those that calls launch, and a capture needs them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from call_arguments import refusal
from gemm_ladder import build, launch, precompiling
from gemm_ladder.casts import launching as casts_launching
from gemm_ladder.casts import plans
from gemm_ladder.casts.kernel import Kernel
from gemm_ladder.checks import grouped
from gemm_ladder.errors import LaunchError
from gemm_ladder.layers import (
    Fp8Experts,
    Fp8Linear,
    ParallelFp8Experts,
    choosing,
    combining,
    convert,
    dispatching,
    own_kernels,
    precompile,
    route,
    routing,
    row_format,
    silu_backward,
    turning,
)
from gemm_ladder.production import fast_path, launching
from gemm_ladder.training import candidates
from gemm_ladder.training import config as training_config
from gemm_ladder.training import launching as training_launching
from launched import noted
from layer_cases import EXPERTS, HIDDEN, experts_of, layer_of, normal, tokens

BF16 = torch.bfloat16
SMS, GPU = 132, "NVIDIA H100"
MOST = 200  # tokens
OWN = (combining.KERNEL, turning.KERNEL, silu_backward.KERNEL)


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[object]]:
    """What is compiled, and then loaded, where there seems to be an H100. Nothing is compiled."""
    found: list[object] = []
    loaded: list[object] = []
    monkeypatch.setattr(precompiling, "gpu_of", lambda device: precompiling.Gpu(GPU, SMS))
    monkeypatch.setattr(precompiling, "build_all", lambda needed, target: found.extend(needed))
    monkeypatch.setattr(launching, "library", loaded.append)
    monkeypatch.setattr(training_launching, "library", loaded.append)
    monkeypatch.setattr(casts_launching, "launcher", loaded.append)
    monkeypatch.setattr(own_kernels.OwnKernel, "library", lambda kernel, target: loaded.append(kernel))
    monkeypatch.setattr(fast_path, "start", lambda: None)
    monkeypatch.setattr(fast_path, "load", lambda: True)
    yield found
    assert found == loaded


@pytest.fixture
def launched() -> Iterator[set[object]]:
    """What calls with CPU tensors would launch on an H100."""
    with noted(GPU, SMS) as found:
        yield found


def is_grouped(kernel: object) -> bool:
    """Whether it is one of the products that experts' weights get their gradients by: all that a call may
    need are compiled, wherever tokens go."""
    return isinstance(kernel, training_config.Config) and kernel.groups > 1


def differentiate(layer: Fp8Experts, most: int) -> None:
    """Both passes for 1 to `most` tokens."""
    for count in range(1, most + 1):
        x, chosen, factors = tokens(count)
        layer(x.float().requires_grad_(), chosen, factors).sum().backward()


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("trainable", [False, True])
@pytest.mark.parametrize("n", [272, 136])
def test_linear(n: int, trainable: bool, training: bool, built: list[object], launched: set[object]) -> None:
    """Where n is no multiple of 16, torch turns the weight."""
    layer, _ = layer_of(n, 144, dtype=BF16, trainable=trainable)
    launched.clear()
    assert precompile(layer, MOST, training=training) == built
    for m in range(1, MOST + 1):
        x = torch.zeros(m, 144, dtype=BF16, requires_grad=training)
        with torch.set_grad_enabled(training):
            out = layer(x)
        if training:
            out.sum().backward()
    assert set(built) == launched and len(built) == len(launched)
    assert (turning.KERNEL in launched) == (training and n == 272)


def test_the_gradient_of_a_weight(built: list[object], launched: set[object]) -> None:
    """Where n and k exchanged would get other kernels."""
    layer = Fp8Linear(1040, 1360, bias=False, trainable=True, dtype=BF16)
    launched.clear()
    precompile(layer, MOST, training=True)
    for m in (1, MOST):
        layer(torch.zeros(m, 1040, dtype=BF16)).sum().backward()
    of_gradient = {one for one in launched if isinstance(one, training_config.Config)}
    assert of_gradient == {one for one in built if isinstance(one, training_config.Config)}
    assert not of_gradient & {*candidates.all_up_to(1040, 1360, MOST, SMS)}


@pytest.mark.parametrize("top_k", [1, 3])
@pytest.mark.parametrize("layout", ["auto", *routing.LAYOUTS])
def test_experts(layout: str, top_k: int, built: list[object], launched: set[object]) -> None:
    layer, _ = experts_of(layout=layout)
    launched.clear()
    for most, counts in ((1, (1,)), (MOST, range(1, MOST + 1))):
        known = precompile(layer, most, top_k=top_k, dtype=BF16)
        for count in counts:
            layer(*tokens(count, top_k))
        assert set(known) == launched and len(known) == len(launched)


@pytest.mark.parametrize("trainable", [False, True])
def test_experts_with_gradients(trainable: bool, built: list[object], launched: set[object]) -> None:
    layer, _ = experts_of(trainable=trainable)
    launched.clear()
    precompile(layer, MOST, training=True, top_k=2, dtype=torch.float32)
    differentiate(layer, MOST)
    used, there = ({one for one in of if not is_grouped(one)} for of in (launched, built))
    single = {one for one in there if isinstance(one, training_config.Config)}  # of one expert's tokens
    assert launched <= set(built) and used == there - single and {*OWN} <= used
    assert any(map(is_grouped, launched)) == trainable


def test_trained_experts_without_gradients(built: list[object], launched: set[object]) -> None:
    """They have the contiguous layout all the same, and cast their weights."""
    layer, _ = experts_of(trainable=True)
    precompile(layer, MOST, top_k=2)
    with torch.no_grad():
        for count in range(1, MOST + 1):
            layer(*tokens(count))
    assert set(built) == launched and Kernel("per_block", "nothing", BF16) in launched


@pytest.mark.parametrize("layout", ["auto", *routing.LAYOUTS])
def test_any_number_of_experts_for_a_token(layout: str, built: list[object]) -> None:
    layer, _ = experts_of(layout=layout)
    every = set(precompile(layer, MOST))
    for training in (False, True):
        every = set(precompile(layer, MOST, training=training))
        for top_k in range(1, EXPERTS + 1):
            assert set(precompile(layer, MOST, training=training, top_k=top_k)) <= every


@pytest.mark.parametrize("top_k", [4, 7])
@pytest.mark.parametrize("everywhere", [False, True])
@pytest.mark.parametrize("layout", ["auto", *routing.LAYOUTS])
def test_experts_of_two_ranks(
    layout: str, everywhere: bool, top_k: int, built: list[object], launched: set[object]
) -> None:
    """A rank has half of the experts, and gets tokens from both."""
    layer, _ = experts_of(layout=layout)
    layer.__class__ = ParallelFp8Experts
    layer.ranks, layer.everywhere = SimpleNamespace(size=2), everywhere
    layer.all_experts, layer.first_expert, layer.combine_by = 2 * EXPERTS, 0, "sums"
    launched.clear()
    most = 40
    known = set(precompile(layer, most, top_k=top_k))
    assert known <= set(precompile(layer, most))
    form = row_format.token_format(HIDDEN, top_k)
    generator = torch.Generator().manual_seed(0)
    for count in range(1, 2 * most + 1):
        if everywhere and count % 2:
            continue
        x, factors = torch.zeros(count, HIDDEN, dtype=BF16), torch.ones(count, top_k)
        # Any experts; first this rank's; and first the other rank's.
        for preferred in (0.0, 1.0, -1.0):
            scores = torch.rand(count, 2 * EXPERTS, generator=generator)
            scores[:, :EXPERTS] += preferred
            chosen = scores.topk(top_k, dim=1).indices
            chosen[0, 0] = 0
            here = count * top_k if everywhere else int((chosen < EXPERTS).sum())
            packed = row_format.pack_tokens(form, x, layer.use_ue8m0, chosen, factors)
            layer.compute(dispatching.Dispatched(packed, top_k, here, chosen, factors, [count], [count], 0))
    assert launched <= known
    if everywhere:
        assert launched == known - {choosing.KERNEL}  # these calls choose no experts


@pytest.mark.parametrize("trainable", [False, True])
def test_experts_over_ranks_with_gradients(
    trainable: bool, built: list[object], launched: set[object], tmp_path: Path
) -> None:
    """Of one rank, whose tokens travel to itself."""
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        layer = ParallelFp8Experts.from_experts(experts_of(trainable=trainable)[0])
        launched.clear()
        known = set(precompile(layer, 40, training=True, top_k=2, dtype=torch.float32))
        differentiate(layer, 40)
    finally:
        dist.destroy_process_group()
    assert launched <= known and {*OWN} <= launched
    assert any(map(is_grouped, launched)) == trainable


def test_once_for_all_layers(built: list[object]) -> None:
    """And for layers of several kinds together; what others have is not asked about."""
    torch.manual_seed(0)
    linears = [torch.nn.Linear(144, n, dtype=BF16) for n in (272, 272, 10)]
    experts, _ = experts_of()
    model = torch.nn.ModuleList([*linears, torch.nn.LayerNorm(144, dtype=BF16), experts])
    convert(model)
    found = precompile(model, 50)
    parts = {one for layer in (model[0], experts) for one in precompile(layer, 50, dtype=BF16)}
    assert len(found) == len(set(found)) and set(found) == parts
    assert all(one.name for one in found)


def types(model: torch.nn.Module, **options: object) -> set[torch.dtype]:
    """Of what is cast per token."""
    found = precompile(model, 8, **options)
    return {one.dtype for one in found if isinstance(one, Kernel) and one[:2] == ("per_token", "nothing")}


def test_types_of_tokens(built: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the model's parameters, but for scales; in autocast's region linear layers have its type."""
    stored = Fp8Linear(144, 272, bias=False)
    assert types(stored) == {BF16}
    assert types(stored, dtype=torch.float32) == {torch.float32}
    assert types(torch.nn.Sequential(stored, torch.nn.LayerNorm(272))) == {torch.float32}
    trained = Fp8Linear(144, 272, trainable=True)
    experts, _ = experts_of()
    assert types(trained) == {torch.float32}
    assert types(torch.nn.ModuleList([trained, torch.nn.LayerNorm(8, dtype=BF16)])) == {BF16, torch.float32}
    # torch.autocast turns itself off where there is no GPU.
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: device == "cuda")
    monkeypatch.setattr(torch, "get_autocast_dtype", lambda device: torch.float16)
    assert types(trained) == {torch.float16}
    assert types(torch.nn.ModuleList([trained, experts])) == {torch.float16, torch.float32}


def test_frozen_weights_have_no_gradient(built: list[object]) -> None:
    layer = Fp8Linear(144, 272, trainable=True).requires_grad_(False)
    assert not any(isinstance(one, training_config.Config) for one in precompile(layer, training=True))


class Unlike:
    """No module."""


@pytest.mark.parametrize(
    ("model", "options", "sentence"),
    [
        (Unlike(), {}, "model is of type Unlike; a torch.nn.Module is needed"),
        (
            torch.nn.Linear(16, 8),
            {},
            "model has no layer in FP8; an Fp8Linear or Fp8Experts in it is needed",
        ),
        (Fp8Linear(16, 8), {"max_tokens": 0}, "max_tokens is 0; 1 or more is needed"),
        (Fp8Linear(16, 8), {"max_tokens": -1}, "max_tokens is -1; 1 or more is needed"),
        (Fp8Linear(16, 8), {"training": "no"}, "training is of type str; a bool is needed"),
        (Fp8Linear(16, 8), {"top_k": 0}, "top_k is 0; 1 or more is needed"),
        (Fp8Linear(16, 8), {"top_k": 2.5}, "top_k is of type float; an int is needed"),
        (
            Fp8Linear(16, 8),
            {"dtype": torch.float64},
            "dtype is torch.float64; float32, bfloat16 or float16 is needed",
        ),
        (
            Fp8Linear(16, 8, trainable=True).double(),
            {},
            "the weight is torch.float64; float32, bfloat16 or float16 is needed to be cast to FP8",
        ),
    ],
)
def test_refusals(model: object, options: dict, sentence: str, built: list[object]) -> None:
    assert refusal(precompile, model, **options) == sentence
    assert not built


def test_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    sentence = "there is no GPU to precompile for; a Hopper GPU is needed"
    assert refusal(precompile, Fp8Linear(16, 8)) == sentence
    sentence = "device is cpu; a GPU, which kernels are compiled for, is needed"
    assert refusal(precompile, Fp8Linear(16, 8), device="cpu") == sentence


@pytest.mark.parametrize("kernel", [Kernel("per_token", "nothing", BF16), *OWN], ids=lambda one: one.name)
def test_a_capture_needs_the_kernel(kernel: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a CUDA graph is captured, torch's operators do not take a kernel's place because it is not
    loaded: only because it could not be built, which a call before has said."""
    monkeypatch.setattr(launch, "is_hopper", lambda device: True)
    monkeypatch.setattr(grouped, "capturing", lambda device: True)
    monkeypatch.setattr(build, "make", lambda *given: pytest.fail("it was built"))
    libraries: dict[object, object] = {}
    if isinstance(kernel, Kernel):
        monkeypatch.setattr(casts_launching, "_libraries", libraries)
        key, why_not = kernel, lambda: casts_launching.why_not(kernel, torch.device("cuda", 0))
    else:
        monkeypatch.setattr(kernel, "libraries", libraries)
        key, why_not = "cuda", lambda: kernel.why_not(torch.device("cuda", 0))
    with pytest.raises(LaunchError) as refused:
        why_not()
    assert str(refused.value) == (
        f"a CUDA graph is being captured and {kernel.name} is not loaded; the same call, or "
        "gemm_ladder.layers.precompile for the layers of a model, is needed before"
    )
    libraries[key] = object()
    assert why_not() is None
    libraries[key] = None
    assert why_not() == f"{kernel.name} could not be built"


# ------------------------------------------------------------------------------------------------- on a GPU


@pytest.fixture
def nothing_loaded(monkeypatch: pytest.MonkeyPatch, settings_restored: None) -> None:
    """As in a new process."""
    for module in (launching, training_launching, casts_launching):
        monkeypatch.setattr(module, "_libraries", {})
    for kernel in OWN:
        monkeypatch.setattr(kernel, "libraries", {})
    monkeypatch.setattr(plans, "_plans", {})
    launching.forget()


@pytest.fixture
def compiles_nothing(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From its call on, whatever is built, or looked for in the cache, fails the test."""

    def begin() -> None:
        for name in ("make", "find"):
            monkeypatch.setattr(build, name, lambda job, *others: pytest.fail(f"{job.name} was asked for"))

    return begin


class Block(torch.nn.Module):
    """A linear layer, experts, and another linear layer, whose n is no multiple of 16."""

    def __init__(self, trainable: bool) -> None:
        super().__init__()
        self.first, _ = layer_of(HIDDEN, 272, "cuda", BF16, trainable=trainable)
        self.experts, _ = experts_of("cuda", trainable=trainable)
        self.router = torch.nn.Linear(HIDDEN, EXPERTS, device="cuda", dtype=BF16)
        self.last, _ = layer_of(136, HIDDEN, "cuda", BF16, trainable=trainable)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        return self.last(self.experts(x, *route(self.router(x), 2)))


@pytest.mark.gpu
@pytest.mark.parametrize("trainable", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_nothing_more_is_compiled(
    training: bool, trainable: bool, nothing_loaded: None, compiles_nothing: Callable[[], None]
) -> None:
    model = Block(trainable)
    assert precompile(model, 150, training=training, top_k=2)
    compiles_nothing()
    for m in (1, 17, 100, 128, 150):
        x = normal(m, 272, device="cuda", dtype=BF16).requires_grad_(training)
        with torch.set_grad_enabled(training):
            out = model(x)
        if training:
            out.float().square().sum().backward()
            assert x.grad.isfinite().all()
        assert out.isfinite().all()
    torch.cuda.synchronize()


@pytest.mark.gpu
def test_a_first_call_is_captured(nothing_loaded: None, compiles_nothing: Callable[[], None]) -> None:
    """Refused without kernels; after precompile captured, with the bits of a later call."""
    model, x = Block(False), normal(100, 272, device="cuda", dtype=BF16)
    model.router(x.new_zeros(1, HIDDEN))  # so that cuBLAS has begun
    torch.cuda.synchronize()
    with torch.no_grad():
        remedy = r"gemm_ladder\.layers\.precompile for the layers of a model, is needed before"
        with pytest.raises(LaunchError, match=remedy), torch.cuda.graph(torch.cuda.CUDAGraph()):
            model(x)
        precompile(model, 100, top_k=2)
        compiles_nothing()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = model(x)
        x.copy_(normal(100, 272, dtype=BF16, seed=3))
        graph.replay()
        assert torch.equal(out, model(x))


@pytest.mark.gpu
def test_a_first_backward_pass_is_captured(
    nothing_loaded: None, compiles_nothing: Callable[[], None]
) -> None:
    layer, _ = layer_of(272, HIDDEN, "cuda", BF16, trainable=True)
    x = normal(100, HIDDEN, device="cuda", dtype=BF16).requires_grad_()
    grad = normal(100, 272, device="cuda", dtype=BF16)
    torch.autograd.grad((2 * x).sum(), x)  # so that autograd's thread has begun
    precompile(layer, 100, training=True)
    compiles_nothing()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = torch.autograd.grad(layer(x), (x, layer.weight), grad)
    graph.replay()
    for one, other in zip(captured, torch.autograd.grad(layer(x), (x, layer.weight), grad), strict=True):
        assert torch.equal(one, other)
