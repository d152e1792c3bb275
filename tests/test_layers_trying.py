"""`gemm_ladder.layers.convert` with inputs: the errors of the layers' outputs."""

from __future__ import annotations

import pytest
import torch
from gemm_ladder.errors import InputError
from gemm_ladder.layers import Fp8Experts, Fp8Linear, convert, route, trying
from gemm_ladder.layers.report import Layer, Report


class Model(torch.nn.Module):
    """Three layers, of which inputs reach two, one of them twice; with dropout."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = torch.nn.Linear(64, 64), torch.nn.Linear(64, 32)
        self.other, self.small = torch.nn.Linear(64, 64), torch.nn.Linear(64, 10)
        self.dropout = torch.nn.Dropout(0.5)

    def forward(self, x: torch.Tensor, scale: float = 1.0, *, fail: bool = False) -> torch.Tensor:
        assert not fail, "it was asked to\nand did"
        return self.last(self.dropout(self.first(100 * self.first(x * scale))))


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item()


def no_hooks(model: torch.nn.Module) -> bool:
    return not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


X = torch.randn(3, 5, 64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    "inputs", [X, (X, 1.0), [X], {"x": X, "scale": 1.0}], ids=["x", "(x,)", "[x]", "{x}"]
)
def test_errors_of_outputs(inputs: object) -> None:
    """They are those of a layer alone, for what it got in its first call."""
    model, original = Model(), Model().eval()
    model.other.eval()
    report = convert(model, skip=(), inputs=inputs)
    errors = {layer.name: layer.output_error for layer in report.layers}
    with torch.no_grad():
        first = original.first(X)
        inner = original.first(100 * first)
        expected = {"first": (X, first), "last": (inner, original.last(inner))}
        for name, (given, gave) in expected.items():
            assert errors.pop(name) == pytest.approx(difference(getattr(model, name)(given), gave), rel=1e-4)
    assert errors == {"other": None, "small": None} and report.measured
    assert model.training and model.dropout.training and not model.other.training and no_hooks(model)
    assert all(0.02 < layer.error < 0.03 for layer in report.converted)


def test_where_terms_cancel() -> None:
    """The error of the weight does not show it, that of the output does, and the report names the layer."""
    model = Model().eval()
    with torch.no_grad():
        model.first.weight[:, :32] = model.first.weight[:, 32:]
    x = torch.randn(300, 32).repeat(1, 2)
    x[:, 32:] *= -0.99
    report = convert(model, skip=(), inputs=x)
    first = report.layers[0]
    assert first.error < 0.03 < 0.05 < first.output_error and report.worst is first
    lines = str(report).splitlines()
    assert lines[0] == "layer   weight  error  output"
    assert lines[1] == f"first  64 x 64  {first.error:.2%}  {first.output_error:.2%}"
    assert lines[3].endswith("%  not reached") and "not converted: out_features is 10" in lines[4]
    assert lines[5:] == [
        "3 of 4 layers converted",
        f"the largest error of an output is {first.output_error:.2%}, of first",
    ]


def test_where_an_error_is_not_known() -> None:
    """An output with NaN has none, and one that was all zeros has no finite one: the report says so."""
    x = torch.zeros(3, 64)
    x[1, 2] = torch.nan
    lines = str(convert(Model().eval(), skip="other", inputs=x)).splitlines()
    assert all(line.endswith("%  unknown") for line in (lines[1], lines[2]))
    assert lines[-1] == (
        "the output of first has NaN or infinities for these inputs, so its error is not known"
    )
    layer = Layer("one", (16, 16), error=0.02, output_error=float("inf"))
    lines = str(Report((layer,), measured=True)).splitlines()
    assert lines[1].endswith("2.00%  infinite")
    assert lines[-1] == "the largest error of an output is infinite, of one"


def test_rows_that_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the first of them, as they were then; a call without rows does not count."""

    class Overwrites(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = torch.nn.Linear(64, 64)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.inner(x[:0])
            out = self.inner(x)
            x.zero_()
            return out.zero_()

    model, seen = Overwrites(), []
    inner, given = model.inner, torch.randn(1000, 64)
    monkeypatch.setattr(trying.Call, "error", lambda call, module: seen.append(call) or 0.5)
    assert convert(model, inputs=given.clone()).layers[0].output_error == 0.5
    assert torch.equal(seen[0].args[0], given[: trying.ROWS])
    assert torch.allclose(seen[0].output, inner(given[: trying.ROWS]), atol=1e-5)


def test_experts() -> None:
    """Both weights have the error of what the experts give together."""

    class Experts(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.gate_up_proj = torch.nn.Parameter(torch.randn(4, 96, 64) / 8)
            self.down_proj = torch.nn.Parameter(torch.randn(4, 64, 48) / 7)

        def _apply_gate(self, inner: torch.Tensor) -> torch.Tensor:
            gate, up = inner.chunk(2, -1)
            return torch.nn.functional.silu(gate) * up

        def forward(self, x: torch.Tensor, chosen: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
            inner = torch.einsum("tk,tcnk->tcn", x, self.gate_up_proj[chosen])
            results = torch.einsum("tcn,tckn->tck", self._apply_gate(inner), self.down_proj[chosen])
            return (results * factors[..., None]).sum(1)

    class Mixture(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.experts = Experts()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.experts(x, *route(x[:, :4], 2))

    model, x = Mixture(), torch.randn(12, 64)
    with torch.no_grad():
        before = model(x)
        report = convert(model, inputs=x)
        expected = difference(model(x), before)
    assert isinstance(model.experts, Fp8Experts)
    assert [layer.output_error for layer in report.layers] == [pytest.approx(expected, rel=1e-4)] * 2


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (3, "inputs is of type int; a tensor, or a tuple or a dict of the model's arguments is needed"),
        (torch.ones(3, 5), "the model cannot be called with inputs: RuntimeError: mat1 and mat2 shapes"),
        (
            {"x": X, "fail": True},
            "the model cannot be called with inputs: AssertionError: it was asked to",
        ),
        ({"y": X}, "the model cannot be called with inputs: TypeError: Model.forward() got an unexpected"),
    ],
)
def test_inputs_that_cannot_be_used(inputs: object, message: str) -> None:
    """Nothing was replaced, and nothing is left behind."""
    model = Model().train()
    with pytest.raises(InputError) as refused:
        convert(model, inputs=inputs)
    assert str(refused.value).startswith(message) and "\n" not in str(refused.value)
    assert not any(isinstance(module, Fp8Linear) for module in model.modules())
    assert all(module.training for module in model.modules()) and no_hooks(model)


def test_without_memory() -> None:
    with torch.device("meta"):
        model = Model()
    with pytest.raises(InputError, match="has weights on the meta device; memory is needed"):
        convert(model, inputs=X)
