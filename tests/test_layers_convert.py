"""`gemm_ladder.layers.convert`: which linear layers of a model it replaces, and what its report says."""

from __future__ import annotations

import copy

import pytest
import torch
from families import DEVICE
from gemm_ladder.errors import InputError
from gemm_ladder.layers import Fp8Experts, Fp8Linear, conversion, convert, route
from gemm_ladder.ref import metrics

BF16 = torch.bfloat16


class Block(torch.nn.Module):
    """A gated feed-forward layer with a router beside it, by the names that transformers has."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = torch.nn.Linear(64, 8)
        self.gate_proj, self.up_proj = torch.nn.Linear(64, 96), torch.nn.Linear(64, 96, bias=False)
        self.down_proj = torch.nn.Linear(96, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = self.down_proj(torch.nn.functional.silu(self.gate_proj(x)) * self.up_proj(x))
        return x + inner * self.gate(x).softmax(-1)[..., :1]


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = torch.nn.Embedding(40, 64)
        self.layers = torch.nn.ModuleList([Block(), Block()])
        self.lm_head = torch.nn.Linear(64, 40, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.lm_head(x)


def reasons(report: conversion.Report) -> dict[str, str]:
    return {layer.name: layer.reason for layer in report.layers}


def test_a_model() -> None:
    """All but the router and the projection to the vocabulary; the results stay close."""
    model, tokens = Model().eval(), torch.arange(12).view(2, 6)
    expected, before = model(tokens), copy.deepcopy(model)
    report = convert(model)
    assert [layer.name for layer in report.converted] == [
        f"layers.{index}.{name}" for index in (0, 1) for name in ("gate_proj", "up_proj", "down_proj")
    ]
    assert {name: why for name, why in reasons(report).items() if why} == {
        "layers.0.gate": "skip has 'gate'",
        "layers.1.gate": "skip has 'gate'",
        "lm_head": "skip has 'lm_head'",
    }
    assert len(report.kept) == 3 and not report.unused
    for layer in report.converted:
        found, given = model.get_submodule(layer.name), before.get_submodule(layer.name)
        assert isinstance(found, Fp8Linear) and not found.training
        error = metrics.relative_error(found.dequantized_weight().numpy(), given.weight.detach().numpy())
        assert layer.error == pytest.approx(error, rel=1e-4) and 0.02 < error < 0.03
    error = metrics.relative_error(model(tokens).detach().numpy(), expected.detach().numpy())
    assert 0 < error < 0.02
    assert [layer.name for layer in convert(model).layers] == ["layers.0.gate", "layers.1.gate", "lm_head"]


def test_report_as_text() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10))
    lines = str(convert(model, skip="nothing")).splitlines()
    assert lines[0] == "layer    weight  error"
    assert lines[1].startswith("0      128 x 64  2.") and lines[1].endswith("%")
    assert lines[2:] == [
        "2      10 x 128  not converted: out_features is 10; a positive multiple of 8 is needed",
        "1 of 2 layers converted",
        "skip has 'nothing', which matches no layer",
    ]


@pytest.mark.parametrize(
    ("pattern", "name", "matches"),
    [
        ("lm_head", "lm_head", True),
        ("lm_head", "model.lm_head", True),
        ("gate", "layers.0.mlp.gate_proj", False),
        ("gate*", "layers.0.mlp.gate_proj", True),
        ("layers.0", "model.layers.0.mlp.up_proj", True),
        ("layers.0", "model.layers.01.mlp.up_proj", False),
        ("layers.1", "model.layers.11.mlp.up_proj", False),
        ("experts.*.up_proj", "mlp.experts.3.up_proj", True),
        ("[qk]_proj", "attention.k_proj", True),
        ("MLP", "mlp.0", False),
    ],
)
def test_patterns(pattern: str, name: str, matches: bool) -> None:
    assert conversion._matches(name, pattern) is matches


def test_skip_is_a_function() -> None:
    seen = []

    def narrow(name: str, module: torch.nn.Module) -> bool:
        seen.append(name)
        return module.out_features < 64

    report = convert(Model(), skip=narrow)
    assert len(seen) == 9
    assert [name for name, why in reasons(report).items() if why == "skip says so"] == [
        "layers.0.gate",
        "layers.1.gate",
        "lm_head",
    ]


def test_what_is_left_alone() -> None:
    class Derived(torch.nn.Linear):
        pass

    model = torch.nn.ModuleDict(
        {
            "derived": Derived(16, 16),
            "lazy": torch.nn.LazyLinear(16),
            "narrow": torch.nn.Linear(20, 16),
            "wide": torch.nn.Linear(16, 16, dtype=torch.float64),
            "codes": torch.nn.Linear(16, 16),
            "hooked": torch.nn.Linear(16, 16),
            "replaced": torch.nn.Linear(16, 16),
            "nan": torch.nn.Linear(16, 16),
            "norm": torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(16, 16)),
            "embed": torch.nn.Embedding(16, 16),
            "tied": torch.nn.Linear(16, 16),
            "attention": torch.nn.MultiheadAttention(16, 1),
            "encoder": torch.nn.TransformerEncoderLayer(16, 1, 32),
            "good": torch.nn.Linear(16, 16),
        }
    )
    model["codes"].weight = torch.nn.Parameter(torch.zeros(16, 16).to(torch.float8_e4m3fn), False)
    model["hooked"].register_forward_hook(lambda *given: None)
    model["replaced"].forward = lambda x: x
    model["nan"].weight.data[3, 4] = torch.nan
    model["tied"].weight = model["embed"].weight
    found = reasons(convert(model))
    subclass = "its class {} may compute something else than torch.nn.Linear"
    inside = "torch.nn.{} reads its weight itself"
    assert found == {
        "derived": subclass.format("Derived"),
        "lazy": "its weight has no shape yet",
        "narrow": "in_features is 20; a positive multiple of 16 is needed",
        "wide": "the weight is torch.float64; float32, bfloat16 or float16 is needed to be cast",
        "codes": "the weight is torch.float8_e4m3fn; float32, bfloat16 or float16 is needed to be cast",
        "hooked": "it has hooks, which would be lost",
        "replaced": "its forward was replaced, which would be lost",
        "nan": "its weight has NaN or infinities",
        "norm": subclass.format("ParametrizedLinear"),
        "tied": "its weight is embed.weight as well",
        "attention.out_proj": inside.format("MultiheadAttention"),
        "encoder.self_attn.out_proj": inside.format("MultiheadAttention"),
        "encoder.linear1": inside.format("TransformerEncoderLayer"),
        "encoder.linear2": inside.format("TransformerEncoderLayer"),
        "good": "",
    }
    model["encoder"].eval()
    with torch.no_grad():
        model["encoder"](torch.ones(2, 3, 16))  # by torch's fast path, which reads the weights


class Experts(torch.nn.Module):
    """Experts as transformers has them."""

    def __init__(self, activation=torch.nn.functional.silu, **flags: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.gate_up_proj = torch.nn.Parameter(torch.randn(4, 96, 64) / 8)
        self.down_proj = torch.nn.Parameter(torch.randn(4, 64, 48) / 7)
        self.activation = activation
        for name, value in flags.items():
            setattr(self, name, value)

    def _apply_gate(self, inner: torch.Tensor) -> torch.Tensor:
        gate, up = inner.chunk(2, -1)
        return self.activation(gate) * up

    def forward(self, x: torch.Tensor, chosen: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
        inner = torch.einsum("tk,tcnk->tcn", x, self.gate_up_proj[chosen])
        results = torch.einsum("tcn,tckn->tck", self._apply_gate(inner), self.down_proj[chosen])
        return (results * factors[..., None]).sum(1)


def test_experts(machine: str) -> None:
    """Those that compute the same are replaced, and take the same arguments; the others are named."""
    device = DEVICE[machine]
    model = torch.nn.ModuleDict({"moe": torch.nn.ModuleDict({"experts": Experts()})}).eval().to(device)
    call = (torch.randn(6, 64, device=device), *route(torch.randn(6, 4, device=device), 2))
    with torch.no_grad():
        expected = model["moe"]["experts"](*call)
        report = convert(model)
        found = model["moe"]["experts"](*call)
    assert isinstance(model["moe"]["experts"], Fp8Experts) and not model["moe"]["experts"].training
    assert [(layer.name, layer.shape) for layer in report.converted] == [
        ("moe.experts.gate_up_proj", (4, 96, 64)),
        ("moe.experts.down_proj", (4, 64, 48)),
    ]
    assert all(0.02 < layer.error < 0.03 for layer in report.layers)
    assert 0.02 < metrics.relative_error(found.cpu().numpy(), expected.cpu().numpy()) < 0.08
    assert not convert(model).layers


def test_other_experts() -> None:
    unknown = Experts()
    unknown._apply_gate = None
    normed = Experts()
    normed.norm = torch.nn.LayerNorm(64)
    found = reasons(
        convert(
            torch.nn.ModuleDict(
                {
                    "unknown": unknown,
                    "gelu": Experts(torch.nn.functional.gelu),
                    "clamped": Experts(lambda gate: torch.nn.functional.silu(gate).clamp(max=10)),
                    "normed": normed,
                    "bias": Experts(has_bias=True),
                    "turned": Experts(is_transposed=True),
                    "same": Experts(has_gate=True, is_concatenated=True),
                }
            )
        )
    )
    expected = {
        "unknown": "what its class Experts computes is not known",
        "gelu": "between their products these experts do not do SiLU-and-multiply",
        "clamped": "between their products these experts do not do SiLU-and-multiply",
        "normed": "it has norm.weight, too, which Fp8Experts does not",
        "bias": "has_bias is True for these experts; False is needed",
        "turned": "is_transposed is True for these experts; False is needed",
        "same": "",
    }
    assert found == {
        f"{name}.{weight}": reason
        for name, reason in expected.items()
        for weight in ("gate_up_proj", "down_proj")
    }


def test_one_layer_in_two_places() -> None:
    """It is still one layer afterwards, and no reason to leave it alone."""
    shared = torch.nn.Linear(16, 16)
    model = torch.nn.ModuleDict({"a": shared, "b": torch.nn.Sequential(shared, shared)})
    assert reasons(convert(model)) == {"a": "", "b.0": "", "b.1": ""}
    assert model["a"] is model["b"][0] is model["b"][1] and isinstance(model["a"], Fp8Linear)


def test_trainable_experts() -> None:
    model = torch.nn.ModuleList([Experts()])
    parameters = [id(parameter) for parameter in model.parameters()]
    report = convert(model, trainable=True)
    assert [id(parameter) for parameter in model.parameters()] == parameters
    assert isinstance(model[0], Fp8Experts) and model[0].trainable
    assert all(0.02 < layer.error < 0.03 for layer in report.converted) and len(report.converted) == 2


def test_trainable() -> None:
    """The parameters are those that an optimizer has already; tied weights stay tied."""
    model = Model().train()
    model.lm_head.weight = model.embed.weight
    parameters = [id(parameter) for parameter in model.parameters()]
    report = convert(model, skip=(), trainable=True)
    assert [id(parameter) for parameter in model.parameters()] == parameters
    assert not report.kept and model.lm_head.weight is model.embed.weight
    model(torch.arange(12)).square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_without_memory() -> None:
    """On the meta device, to be filled from a checkpoint."""
    model = Model().eval()
    with torch.device("meta"):
        empty = Model().eval()
    report = convert(empty)
    assert {layer.error for layer in report.converted} == {None}
    convert(model)
    empty.load_state_dict(model.state_dict(), assign=True)
    assert torch.equal(empty(torch.arange(12)), model(torch.arange(12)))


def test_buffers_without_memory() -> None:
    """What no state has stays on the meta device until its module is made again, as `convert` says."""

    class Turned(Model):
        def __init__(self) -> None:
            super().__init__()
            self.turn = self.turned()

        @staticmethod
        def turned() -> torch.nn.Module:
            module = torch.nn.Module()
            module.register_buffer("angles", torch.arange(64) / 64, persistent=False)
            return module

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return super().forward(tokens) * self.turn.angles.cos().sum()

    model, tokens = Turned().eval(), torch.arange(12)
    convert(model)
    with torch.device("meta"):
        empty = Turned().eval()
    convert(empty)
    empty.load_state_dict(model.state_dict(), assign=True)
    assert [name for name, buffer in empty.named_buffers() if buffer.is_meta] == ["turn.angles"]
    empty.turn = Turned.turned()
    assert torch.equal(empty(tokens), model(tokens))


def test_other_modules_with_a_weight() -> None:
    """What may be a linear layer of another class is named; embeddings, norms and convolutions are not."""

    class Conv1D(torch.nn.Module):
        def __init__(self, *shape: int) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(shape or (16, 48)))

    class Embedder(Conv1D):
        pass

    class TableNorm(Conv1D):
        pass

    model = torch.nn.ModuleDict(
        {
            "c_attn": Conv1D(),
            "gate": Conv1D(),
            "vector": Conv1D(16),
            "embed": Embedder(),
            "norm": TableNorm(),
            "table": torch.nn.Embedding(16, 16),
            "bag": torch.nn.EmbeddingBag(16, 16),
            "layer_norm": torch.nn.LayerNorm([16, 16]),
            "conv": torch.nn.Conv1d(16, 16, 1),
            "good": torch.nn.Linear(16, 16),
        }
    )
    expected = {
        "c_attn": "its class Conv1D is no torch.nn.Linear",
        "gate": "skip has 'gate'",
        "good": "",
    }
    report = convert(model)
    assert reasons(report) == expected and report.layers[0].shape == (16, 48)
    assert reasons(convert(model, skip=lambda name, module: module.out_features < 16)) == {
        "c_attn": "its class Conv1D is no torch.nn.Linear",
        "gate": "its class Conv1D is no torch.nn.Linear",
    }
    assert reasons(convert(model, trainable=True)).keys() == {"c_attn", "gate"}


def test_compiled() -> None:
    model, tokens = Model().to(BF16).eval(), torch.arange(12).view(2, 6)
    convert(model)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(tokens), model(tokens))


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_scripted() -> None:
    """A scripted model has no layer that could be replaced; a scripted part of another is left alone."""
    part = torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.Embedding(4, 16))
    scripted = torch.jit.script(torch.nn.Sequential(*part[:1]))
    traced = torch.jit.trace(part[0], torch.ones(2, 16))
    for model, kind in ((scripted, "RecursiveScriptModule"), (traced, "TopLevelTracedModule")):
        with pytest.raises(InputError) as refused:
            convert(model)
        assert str(refused.value) == (
            f"model is of type {kind}, a scripted module; a torch.nn.Module in eager form, from before it "
            "was scripted, is needed"
        )
    model = torch.nn.Sequential(torch.nn.Linear(16, 16), torch.jit.script(part))
    assert reasons(convert(model)) == {
        "0": "",
        "1.0": "it is scripted, and only a torch.nn.Linear in eager form is replaced",
    }
    assert isinstance(model[0], Fp8Linear) and isinstance(model[1], torch.jit.ScriptModule)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: convert(3), "model is of type int; a torch.nn.Module is needed"),
        (
            lambda: convert(torch.nn.Linear(16, 16)),
            "model is a torch.nn.Linear, with nothing around it to be replaced in; Fp8Linear.from_linear is "
            "needed",
        ),
        (lambda: convert(Model(), trainable="no"), "trainable is of type str; a bool is needed"),
        (lambda: convert(Model(), use_ue8m0="no"), "use_ue8m0 is of type str; a bool is needed"),
        (lambda: convert(Model(), skip=3), "skip is 3; patterns of names, or a function, are needed"),
        (lambda: convert(Model(), skip=[3]), "skip is [3]; patterns of names, or a function, are needed"),
    ],
)
def test_refusals(call, message: str) -> None:
    with pytest.raises(InputError) as refused:
        call()
    assert str(refused.value) == message
