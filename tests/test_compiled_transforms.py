"""Layers, products and casts that are compiled inside of a transform of torch.func, or with dual numbers:
what comes is what comes without torch.compile, and no derivative of 0."""

from __future__ import annotations

from collections.abc import Callable

import gemm_ladder as gl
import pytest
import torch
from gemm_ladder.errors import InputError
from layer_cases import HIDDEN, experts_of, layer_of, normal, tokens
from torch import func
from torch.autograd import forward_ad

BF16 = torch.bfloat16
Call = Callable[[torch.Tensor], torch.Tensor]
SENTENCE = r"the call is inside of a transform of torch\.func, or of dual numbers, for which FP8 has no rule"


def derivative(call: Call) -> Call:
    return func.grad(lambda x: call(x).float().sum())


def pulled(call: Call) -> Call:
    def back(x: torch.Tensor) -> torch.Tensor:
        out, pull = func.vjp(call, x)
        return pull(torch.ones_like(out))[0]

    return back


def pushed(call: Call) -> Call:
    return lambda x: func.jvp(call, (x,), (x,))[1]


def mapped(call: Call) -> Call:
    return lambda x: func.vmap(call)(x[None])


def dual(call: Call) -> Call:
    def forward(x: torch.Tensor) -> torch.Tensor:
        with forward_ad.dual_level():
            out = forward_ad.unpack_dual(call(forward_ad.make_dual(x, 2 * x)))
        return out.primal if out.tangent is None else out.tangent

    return forward


TRANSFORMS = {"grad": derivative, "vjp": pulled, "jvp": pushed, "vmap": mapped, "dual": dual}


def linear(trainable: bool) -> Call:
    return layer_of(16, HIDDEN, trainable=trainable)[0]


def experts(trainable: bool) -> Call:
    layer, _ = experts_of(trainable=trainable)
    _, *chosen = tokens(4)
    return lambda x: layer(x, *chosen)


def cast_layout(x: torch.Tensor) -> torch.Tensor:
    return gl.get_mn_major_tma_aligned_tensor(x)


def cast(x: torch.Tensor) -> torch.Tensor:
    return gl.per_token_group_quant_fp8(x)[1]


CODES = torch.ones(4, 128).to(torch.float8_e4m3fn)


def dense(x: torch.Tensor) -> torch.Tensor:
    out = torch.zeros(4, 8, dtype=BF16)
    gl.fp8_gemm_nt((CODES, x[:, :1]), (CODES.repeat(2, 1), x[:1, :1]), out)
    return out


def grouped(x: torch.Tensor) -> torch.Tensor:
    out = torch.zeros(1, 4, 8, dtype=BF16)
    rhs = (CODES.repeat(2, 1)[None], x[None, :1, :1])
    gl.m_grouped_fp8_gemm_nt_masked((CODES[None], x[None, :, :1]), rhs, out, torch.tensor([3]).int(), 3)
    return out


def of_training(x: torch.Tensor) -> torch.Tensor:
    out = torch.zeros(4, 4)
    gl.wgrad_gemm_fp8_fp8_fp32_nt((CODES, x[:, :1]), (CODES, x[:, :1]), out)
    return out


def of_experts(x: torch.Tensor) -> torch.Tensor:
    out = torch.zeros(1, 4, 4)
    pair = (CODES.flatten(), x[:, :1])
    gl.k_grouped_fp8_gemm_nt_contiguous(pair, pair, out, [128])
    return out


CALLS = {
    "linear": lambda: linear(False),
    "trained_linear": lambda: linear(True),
    "experts": lambda: experts(False),
    "trained_experts": lambda: experts(True),
    **{
        function.__name__: lambda function=function: function
        for function in (cast_layout, cast, dense, grouped, of_training, of_experts)
    },
}


@pytest.fixture
def x() -> torch.Tensor:
    torch._dynamo.reset()
    return normal(4, HIDDEN)


def what_comes(call: Call, x: torch.Tensor) -> torch.Tensor | str:
    """The value, or the sentence of the refusal."""
    try:
        return call(x)
    except InputError as refused:
        return str(refused)


def same(one: torch.Tensor | str, other: torch.Tensor | str) -> bool:
    return one == other if isinstance(one, str) or isinstance(other, str) else torch.equal(one, other)


# What sees transforms in other ways, and one transform for everything.
SEEN = [
    *(("linear", transform) for transform in TRANSFORMS),
    *((name, "grad") for name in CALLS if name != "linear"),
    *(("trained_experts", "jvp"), ("experts", "vmap"), ("cast_layout", "dual"), ("cast", "dual")),
]


@pytest.mark.parametrize(("name", "transform"), SEEN)
def test_in_one_graph(name: str, transform: str, x: torch.Tensor) -> None:
    whole = torch.compile(TRANSFORMS[transform](CALLS[name]()), backend="eager", fullgraph=True)
    with pytest.raises(RuntimeError, match=SENTENCE):
        whole(x)


@pytest.mark.parametrize(
    ("name", "transform"),
    [
        *(("linear", "dual"), ("trained_linear", "vmap"), ("experts", "grad")),
        *(("cast", "vjp"), ("cast_layout", "dual"), ("dense", "jvp"), ("of_training", "grad")),
    ],
)
def test_in_pieces(name: str, transform: str, x: torch.Tensor) -> None:
    """Compiled inside of the transform, after a call outside of it, and around it."""
    call, around = CALLS[name](), TRANSFORMS[transform]
    expected = what_comes(around(call), x)
    assert isinstance(expected, str) == (transform != "dual" or name == "linear")
    compiled = torch.compile(call, backend="aot_eager")
    assert torch.equal(compiled(x), call(x))
    assert same(what_comes(around(compiled), x), expected)
    assert same(what_comes(torch.compile(around(call), backend="aot_eager"), x), expected)


def test_functionalize(x: torch.Tensor) -> None:
    """Which torch.compile does not trace at all."""
    around = func.functionalize(linear(True))
    refused = what_comes(torch.compile(around, backend="aot_eager"), x)
    assert refused == what_comes(around, x) and "torch.func.functionalize" in refused


def test_gradients_of_parameters(x: torch.Tensor) -> None:
    """The way that torch.func has for them, of a layer that is trained."""
    layer = linear(True)

    def loss(parameters: dict[str, torch.Tensor]) -> torch.Tensor:
        return func.functional_call(layer, parameters, (x,)).sum()

    given = dict(layer.named_parameters())
    with pytest.raises(RuntimeError, match=SENTENCE):
        torch.compile(func.grad(loss), backend="aot_eager", fullgraph=True)(given)
    torch._dynamo.reset()
    with pytest.raises(InputError, match=r"is a tensor inside of torch\.func\.grad"):
        torch.compile(func.grad(loss), backend="aot_eager")(given)


def test_what_is_not_differentiated(x: torch.Tensor) -> None:
    """Tensors beside those of the transform are cast as elsewhere."""

    def used(y: torch.Tensor) -> torch.Tensor:
        return (y * gl.per_token_group_quant_fp8(x)[0].float()).sum()

    found = torch.compile(func.grad(used), backend="aot_eager")(torch.ones_like(x))
    assert torch.equal(found, gl.per_token_group_quant_fp8(x)[0].float())


@pytest.mark.parametrize("name", ["linear", "experts", "cast_layout", "dense", "of_training"])
def test_outside(name: str, x: torch.Tensor) -> None:
    """One graph, as ever, and nothing in it that asks for transforms."""
    call, graphs = CALLS[name](), []

    def backend(graph: torch.fx.GraphModule, example: list[torch.Tensor]) -> torch.fx.GraphModule:
        graphs.append(str(graph.graph))
        return graph

    compiled = torch.compile(call, backend=backend, fullgraph=True)
    with torch.no_grad():
        assert torch.equal(compiled(x), call(x))
    assert len(graphs) == 1 and "functorch" not in graphs[0] and "uncompiled" not in graphs[0]
