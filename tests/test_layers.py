"""Fp8Linear: its results and gradients beside a float64 model and BF16, and how it behaves as a layer of
torch. On the CPU, and on a GPU if there is one."""

from __future__ import annotations

import copy
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from gemm_ladder import ops
from gemm_ladder.errors import InputError
from gemm_ladder.layers import Fp8Linear, products
from gemm_ladder.ref import metrics
from layer_cases import check, check_sums, layer_of, model, normal
from opcheck import byte_wise

BF16 = torch.bfloat16
# m, n, k: whole blocks; an n that the gradient of x pads; one row; a k and an m that end inside a block.
SHAPES = ((128, 256, 128), (37, 136, 208), (1, 8, 16), (200, 384, 272))


@pytest.mark.parametrize("use_ue8m0", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, BF16, torch.float16], ids=str)
@pytest.mark.parametrize("trainable", [False, True])
def test_numbers(trainable: bool, dtype: torch.dtype, use_ue8m0: bool, device: str) -> None:
    """Results and gradients are those of the quantised operands."""
    for m, n, k in SHAPES:
        layer, linear = layer_of(n, k, device, dtype, trainable=trainable, use_ue8m0=use_ue8m0)
        x = normal(m, k, device=device, dtype=dtype).requires_grad_()
        grad = normal(m, n, device=device, dtype=dtype, seed=1)
        expected = model(x, linear.weight, grad, use_ue8m0)
        out = layer(x)
        out.backward(grad)
        check(out, expected.out, dtype)
        check(x.grad, expected.grad_input, dtype)
        if trainable:
            check_sums(layer.weight.grad, expected.grad_weight, dtype)
        else:
            assert layer.weight.grad is None
        with torch.no_grad():
            assert torch.equal(layer(x), out)


@pytest.mark.parametrize("trainable", [False, True])
def test_exact_where_the_casts_are(trainable: bool, device: str) -> None:
    """Small integers and scales that are powers of two lose nothing: the layer is torch's, and a step in x or
    in the weight changes the result by exactly what the gradients say."""
    rng = np.random.default_rng(0)
    m, n, k = 20, 136, 144

    def integers(*shape: int) -> torch.Tensor:
        return torch.from_numpy(rng.integers(-1, 2, shape).astype(np.float32)).to(device)

    linear = torch.nn.Linear(k, n, device=device)
    with torch.no_grad():
        linear.weight.copy_(integers(n, k))
        linear.bias.copy_(integers(n))
    layer = Fp8Linear.from_linear(linear, trainable=trainable, use_ue8m0=True)
    x, grad = integers(m, k).requires_grad_(), integers(m, n)
    out = layer(x)
    found = torch.autograd.grad(out, [x, layer.bias, *([layer.weight] if trainable else [])], grad)
    exact = copy.deepcopy(linear).double()
    same = x.detach().double().requires_grad_()
    expected = torch.autograd.grad(exact(same), [same, exact.bias, exact.weight], grad.double())
    assert torch.equal(out.double(), exact(same))
    for one, other in zip(found, expected, strict=False):
        assert torch.equal(one.double(), other)
    step = integers(m, k)
    assert (layer(x + step) - out).mul(grad).sum() == step.mul(found[0]).sum()
    if trainable:
        step = integers(n, k)
        with torch.no_grad():
            layer.weight += step
            assert (layer(x) - out).mul(grad).sum() == step.mul(found[2]).sum()


def test_beside_bf16(device: str) -> None:
    """Rounding to E4M3 changes a number by 2.6 % in the mean, so a product of two such by 3.7 %; measured on
    normal numbers, 3.6 % for results and gradients. torch's layer in BF16 itself is within 0.3 % of
    float64."""
    m, n, k = 256, 384, 512
    layer, linear = layer_of(n, k, device, BF16, trainable=True)
    x = torch.randn(m, k, generator=torch.Generator().manual_seed(0)).to(device, BF16).requires_grad_()
    grad = torch.randn(m, n, generator=torch.Generator().manual_seed(1)).to(device, BF16)
    found = [layer(x), *torch.autograd.grad(layer(x), [x, layer.weight], grad)]
    plain = [linear(x), *torch.autograd.grad(linear(x), [x, linear.weight], grad)]
    for one, other in zip(found, plain, strict=True):
        error = metrics.relative_error(*(each.detach().double().cpu().numpy() for each in (one, other)))
        assert 0.034 < error < 0.040


def test_leading_dimensions(device: str) -> None:
    """Any number of them, none, and one that is 0; inputs and gradients of any strides."""
    layer, _ = layer_of(136, 144, device, bias=True, trainable=True)
    x = normal(2, 3, 5, 144, device=device)
    whole = layer(x.view(-1, 144))
    assert torch.equal(layer(x), whole.view(2, 3, 5, 136))
    assert layer(x[1, 2, 4]).shape == (136,)
    torch.testing.assert_close(layer(x[1, 2, 4]), whole[-1], rtol=0, atol=0 if device == "cpu" else 5e-2)
    turned = x.permute(2, 0, 1, 3)
    assert torch.equal(layer(turned), layer(x).permute(2, 0, 1, 3))
    spread = normal(144, 5, device=device).t().requires_grad_()
    layer(spread).sum().backward()  # an expanded gradient
    expected = model(spread, layer.weight, torch.ones(5, 136))
    check(spread.grad, expected.grad_input, torch.float32)
    layer.zero_grad()
    empty = x[:0].requires_grad_()
    out = layer(empty)
    assert out.shape == (0, 3, 5, 136)
    out.sum().backward()
    assert empty.grad.shape == empty.shape
    assert not layer.weight.grad.any() and not layer.bias.grad.any()


def test_only_what_is_asked_for(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No gradient is computed that nobody wants: of the first layer's input, of a frozen weight."""
    calls = []
    for name in ("_grad_input", "_grad_weight"):
        function = getattr(products, name)
        monkeypatch.setattr(
            products, name, lambda *given, of=function: calls.append(of.__name__) or of(*given)
        )
    layer, _ = layer_of(16, 32, device, trainable=True)
    x = normal(3, 32, device=device)
    layer(x).sum().backward()
    assert calls == ["_grad_weight"]
    layer.weight.requires_grad_(False)
    layer(x.requires_grad_()).sum().backward()
    assert calls[1:] == ["_grad_input"]
    layer.quantize_().requires_grad_(True)  # of a whole model; an FP8 weight has no gradient all the same
    layer(x).sum().backward()
    assert layer.weight.grad is None and len(calls) == 3


@pytest.mark.parametrize("trainable", [False, True])
def test_as_the_operators(trainable: bool, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nobody looks on, no operator is called; hooks are; the bits are those of the operators, which a
    profiler and a transform of torch.func still see."""
    layer, _ = layer_of(24, 32, device, bias=True, trainable=trainable)
    x = normal(3, 5, 32, device=device).requires_grad_()
    seen: list[torch.Tensor] = []
    layer.register_full_backward_hook(lambda layer, grads, of_out: seen.extend(grads))

    def gradients() -> list[torch.Tensor]:
        x.grad, layer.bias.grad, layer.weight.grad = None, None, None
        with torch.autograd.graph.save_on_cpu():
            out = layer(x)
        out.square().sum().backward()
        return [out, x.grad, layer.bias.grad, *([layer.weight.grad] if trainable else [])]

    def operators() -> set[str]:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            gradients()
        return {one.key for one in profile.key_averages() if one.key.startswith("gemm_ladder::fp8_linear")}

    wanted = {"", "_grad_input", *(["_grad_weight"] if trainable else [])}
    assert operators() == {f"gemm_ladder::fp8_linear{name}" for name in wanted}
    seen.clear()
    with pytest.MonkeyPatch.context() as patch:
        for name in wanted:
            patch.setattr(torch.ops.gemm_ladder, f"fp8_linear{name}", lambda *given: pytest.fail("called"))
        found = gradients()
    assert len(seen) == 1 and torch.equal(seen[0], found[1])
    monkeypatch.setattr(ops, "direct", lambda *operands: False)
    assert all(map(torch.equal, found, gradients()))


@pytest.mark.parametrize("trainable", [False, True])
def test_several_gradients_at_once(trainable: bool, device: str) -> None:
    """torch's batched gradients stand for many in one tensor of its own class; each comes to its own."""
    layer, _ = layer_of(16, 32, device, trainable=trainable)
    x, grads = normal(3, 32, device=device).requires_grad_(), normal(2, 3, 16, device=device, seed=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch: of its fallback, which calls the operator for each
        (found,) = torch.autograd.grad(layer(x), x, grads, is_grads_batched=True)
    for one, grad in zip(found, grads, strict=True):
        assert torch.equal(one, torch.autograd.grad(layer(x), x, grad)[0])


def test_gradients_add_up(device: str) -> None:
    layer, _ = layer_of(16, 32, device, trainable=True)
    x = normal(3, 32, device=device)
    layer(x).sum().backward()
    once = layer.weight.grad.clone()
    layer(x).sum().backward()
    assert torch.equal(layer.weight.grad, 2 * once)


def test_checkpointing(device: str) -> None:
    """Computed again in the backward pass, the gradients have the same bits."""
    layer, _ = layer_of(16, 32, device, trainable=True)
    x = normal(3, 32, device=device).requires_grad_()
    expected = torch.autograd.grad(layer(x).square().sum(), [x, layer.weight])
    out = torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=False)
    found = torch.autograd.grad(out.square().sum(), [x, layer.weight])
    assert all(map(torch.equal, found, expected))


def test_an_input_that_was_overwritten(device: str) -> None:
    layer, _ = layer_of(16, 32, device, trainable=True)
    x = normal(3, 32, device=device)
    out = layer(x)
    x.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_no_second_derivative(device: str) -> None:
    """Refused where one would be lost: through the gradient, and through the weight that dx depends on."""
    trained, _ = layer_of(16, 32, device, trainable=True)
    given = normal(3, 32, device=device).requires_grad_()
    with pytest.raises(InputError, match="create_graph=False is needed"):
        torch.autograd.grad(trained(given).sum(), given, create_graph=True)
    layer, _ = layer_of(16, 32, device)
    x = normal(3, 32, device=device).requires_grad_()
    grad = torch.ones(3, 16, device=device, requires_grad=True)
    with pytest.raises(InputError, match="create_graph=False is needed"):
        torch.autograd.grad(layer(x), x, grad, create_graph=True)


def test_no_tangents(device: str) -> None:
    """A forward-mode derivative is refused, and not left out."""
    layer, _ = layer_of(16, 32, device)
    x = normal(3, 32, device=device)
    with torch.autograd.forward_ad.dual_level(), pytest.raises(InputError, match="x has a tangent"):
        layer(torch.autograd.forward_ad.make_dual(x, torch.ones_like(x)))


@pytest.mark.parametrize("trainable", [False, True])
def test_no_gradient_transform(trainable: bool, device: str) -> None:
    layer, _ = layer_of(16, 32, device, trainable=trainable)
    with pytest.raises(InputError, match=r"x is a tensor inside of torch.func.grad"):
        torch.func.grad(lambda x: layer(x).sum())(normal(3, 32, device=device))


@pytest.mark.parametrize("trainable", [False, True])
def test_autocast(trainable: bool, device: str) -> None:
    """As torch.nn.Linear: the result has autocast's type, the gradients those of their tensors."""
    layer, _ = layer_of(16, 32, device, bias=True, trainable=trainable)
    x = normal(3, 32, device=device).requires_grad_()
    with torch.autocast(device, dtype=BF16):
        out = layer(x)
    assert out.dtype == BF16 and torch.equal(out, layer(x.to(BF16)))
    out.sum().backward()
    assert x.grad.dtype == layer.bias.grad.dtype == torch.float32
    if trainable:
        assert layer.weight.grad.dtype == torch.float32


@pytest.mark.parametrize("trainable", [False, True])
def test_compiled(trainable: bool, device: str) -> None:
    """In one graph, forward and backward, for any number of rows, and in autocast: the bits are the same."""
    layer, _ = layer_of(136, 144, device, BF16, bias=True, trainable=trainable)
    parameters = [layer.bias, *([layer.weight] if trainable else [])]
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for m in (5, 6, 40):
        x = normal(2, m, 144, device=device, dtype=BF16).requires_grad_()
        with torch.no_grad():
            assert torch.equal(compiled(x), layer(x))
        grad = normal(2, m, 136, device=device, dtype=BF16, seed=1)
        expected = torch.autograd.grad(layer(x), [x, *parameters], grad)
        found = torch.autograd.grad(compiled(x), [x, *parameters], grad)
        assert all(map(torch.equal, found, expected))
    with torch.autocast(device, dtype=BF16):
        assert torch.equal(compiled(x.float()), layer(x))


@pytest.mark.slow
def test_compiled_by_inductor(device: str) -> None:
    layer, _ = layer_of(136, 144, device, BF16, bias=True, trainable=True)
    x = normal(7, 144, device=device, dtype=BF16).requires_grad_()
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True)
    expected = [layer(x), *torch.autograd.grad(layer(x).sum(), [x, layer.weight, layer.bias])]
    found = [compiled(x), *torch.autograd.grad(compiled(x).sum(), [x, layer.weight, layer.bias])]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_export(device: str) -> None:
    layer, _ = layer_of(16, 32, device, bias=True)
    x = normal(3, 32, device=device)
    exported = torch.export.export(layer, (x,))
    assert "gemm_ladder.fp8_linear.default" in [str(node.target) for node in exported.graph.nodes]
    assert torch.equal(exported.module()(x), layer(x))


@pytest.mark.parametrize("name", ["fp8_linear", "fp8_linear_grad_input", "fp8_linear_grad_weight"])
def test_opcheck(name: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    byte_wise(monkeypatch)
    layer, linear = layer_of(24, 32, device)
    x, grad = normal(5, 32, device=device).requires_grad_(), normal(5, 24, device=device)
    codes, scales = layer.weight.detach(), layer.weight_scale_inv.detach()
    arguments = {
        "fp8_linear": (x, linear.weight, codes, scales, False),
        "fp8_linear_grad_input": (grad, codes, scales, False),
        "fp8_linear_grad_weight": (grad, x.detach(), False),
    }
    found = torch.library.opcheck(getattr(torch.ops.gemm_ladder, name).default, arguments[name])
    assert set(found.values()) == {"SUCCESS"} and len(found) >= 4


def test_it_learns(device: str) -> None:
    """A layer in FP8 fits a linear map about as well as one in BF16 does, from the same beginning."""
    torch.manual_seed(0)
    target, x = torch.randn(64, 128, device=device) / 11, torch.randn(256, 128, device=device)
    losses = {}
    for fp8 in (False, True):
        torch.manual_seed(1)
        layer = torch.nn.Linear(128, 64, device=device)
        if fp8:
            layer = Fp8Linear.from_linear(layer, trainable=True)
        optimizer = torch.optim.AdamW(layer.parameters(), lr=3e-2, weight_decay=0)
        for _ in range(60):
            optimizer.zero_grad()
            with torch.autocast(device, dtype=BF16):
                loss = F.mse_loss(layer(x).float(), x @ target.t())
            loss.backward()
            optimizer.step()
        losses[fp8] = loss.item()
    assert losses[False] < 1e-3 and losses[True] < 5e-3, losses  # at first it is about 1.3


@pytest.mark.gpu
def test_cuda_graph() -> None:
    """A layer that has been called once can be captured."""
    layer, _ = layer_of(256, 512, "cuda", BF16, bias=True)
    x = normal(64, 512, device="cuda", dtype=BF16)
    with torch.no_grad():
        layer(x)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = layer(x)
        x.copy_(normal(64, 512, dtype=BF16, seed=5))
        graph.replay()
        assert torch.equal(out, layer(x))


def test_products_refuse_what_does_not_fit(device: str) -> None:
    """What a layer never passes, the products' own checks refuse."""
    codes, scales = Fp8Linear(32, 16, device=device)._weight_in_fp8()
    with pytest.raises(InputError, match="B has shape"):
        products.linear(normal(3, 48, device=device), None, codes, scales)
