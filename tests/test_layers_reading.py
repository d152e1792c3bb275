"""`gemm_ladder.layers.convert` leaves layers alone whose weights are read by the modules around them."""

from __future__ import annotations

import functools

import pytest
import torch
from gemm_ladder.layers import Fp8Linear, convert


def linear() -> torch.nn.Linear:
    return torch.nn.Linear(16, 16)


class Own(torch.nn.Module):
    """Has two layers; a class derived from it reads the weight of `wo` in its own way."""

    def __init__(self) -> None:
        super().__init__()
        self.wi, self.wo = linear(), linear()


class ConvertsItsInput(Own):
    """As T5's layers do."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.wi(x)
        if isinstance(self.wo.weight, torch.Tensor) and h.dtype != self.wo.weight.dtype:
            h = h.to(self.wo.weight.dtype)
        return self.wo(h)


class Derived(ConvertsItsInput):
    """Has no method of its own."""


class Multiplies(Own):
    """As Mamba's do."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.wi(x) @ self.wo.weight.T


class GivesItAway(Own):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(self.wi(x), getattr(self.wo, "weight"), None)  # noqa: B009


class HasAProperty(Own):
    @property
    def dtype(self) -> torch.dtype:
        return self.wo.weight.dtype


class HasOtherNames(Own):
    def forward(this, x: torch.Tensor) -> torch.Tensor:
        last = this.wo
        return this.wi(x) @ last.weight.T


def passed_on(method):
    @functools.wraps(method)
    def call(*given):
        return method(*given)

    return call


class IsWrapped(Own):
    @passed_on
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.wi(x) @ self.wo.weight.T


class HasABranch(Own):
    """The condition depends on what is given."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.wi(x) @ self.wo.weight.T if len(x) > 1 else self.wo(self.wi(x))


class TrainsOtherwise(Own):
    """The condition is about a mode that changes."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.wi(x) @ self.wo.weight.T if self.training else self.wo(self.wi(x))


READING = (ConvertsItsInput, Multiplies, GivesItAway, HasAProperty, HasOtherNames, IsWrapped, HasABranch)


@pytest.mark.parametrize("kind", [*READING, TrainsOtherwise], ids=lambda kind: kind.__name__)
def test_a_weight_that_is_read(kind: type[Own]) -> None:
    """The layer stays, its neighbour is replaced, and the model runs as before."""
    model = torch.nn.Sequential(kind()).eval()
    report = convert(model)
    method = "dtype" if kind is HasAProperty else "forward"
    assert {layer.name: layer.reason for layer in report.layers} == {
        "0.wi": "",
        "0.wo": f"{kind.__name__}.{method} reads its weight itself",
    }
    assert isinstance(model[0].wi, Fp8Linear) and type(model[0].wo) is torch.nn.Linear
    if kind is not HasAProperty:
        assert model(torch.ones(2, 16)).isfinite().all()


def test_a_method_of_a_base_class() -> None:
    report = convert(torch.nn.Sequential(Derived()))
    assert [layer.reason for layer in report.kept] == ["ConvertsItsInput.forward reads its weight itself"]


def test_from_further_out() -> None:
    """Modules that are further out read it by a longer path, also through lists."""

    class Deep(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = torch.nn.ModuleList([Own(), Own(), Own()])
            self.by_name = torch.nn.ModuleDict({"a": Own(), "b": Own()})

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = x.to(self.blocks[0].wo.weight.dtype) @ self.by_name["b"].wi.weight
            for block in self.blocks:
                x = x @ block.wi.weight
            return x

    found = {layer.name for layer in convert(torch.nn.ModuleDict({"deep": Deep()})).kept}
    assert found == {"deep.blocks.0.wo", "deep.by_name.b.wi", *(f"deep.blocks.{i}.wi" for i in range(3))}


def test_what_does_no_harm() -> None:
    """Reading of what is the same in FP8, before a model is used, of another module, or never."""

    class Harmless(Own):
        def __init__(self) -> None:
            super().__init__()
            self.wo.weight.data.fill_(0.5)
            self.parts, self.exact = 1, False
            self.norm = torch.nn.LayerNorm(16)

        def _init_weights(self) -> None:
            self.wo.weight.data.zero_()

        def init_two(self) -> None:
            self.wi.weight.data.zero_()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.wi(x.to(self.wo.weight.device)) + self.wo.weight.shape[0]
            if self.parts > 1 and (self.exact or len(x) == 3):
                return sum(x @ part.T for part in self.wo.weight.split(self.parts))
            elif not self.exact:
                x = x.to(self.norm.weight.dtype)
            else:
                x = x @ self.wi.weight
            return self.wo(self.norm(x))

    class Ready(Own):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            last = self.wo
            weight = last.dequantized_weight() if isinstance(last, Fp8Linear) else last.weight
            return self.wi(x) @ weight.T

    ready = torch.nn.Sequential(Ready())
    assert not convert(ready).kept and ready(torch.ones(2, 16)).isfinite().all()
    model = torch.nn.Sequential(Harmless())
    assert not convert(model).kept
    assert model(torch.ones(2, 16)).isfinite().all()
    other = Harmless()
    other.parts = 2
    assert [layer.name for layer in convert(torch.nn.Sequential(other)).kept] == ["0.wo"]


def test_without_source() -> None:
    """Nothing is known then, and nothing left alone."""
    space = {"Own": Own}
    exec("class Unknown(Own):\n    def forward(self, x):\n        return x @ self.wo.weight.T", space)
    assert not convert(torch.nn.Sequential(space["Unknown"]())).kept


def test_a_weight_that_is_trained() -> None:
    """It keeps its type, so others may read it."""
    model = torch.nn.Sequential(Multiplies())
    assert not convert(model, trainable=True).kept
    assert model(torch.ones(2, 16)).isfinite().all()


def test_kept_in_fp32() -> None:
    """What transformers says has to stay in FP32, whichever module says so, as parts of paths."""

    class Says(Own):
        _keep_in_fp32_modules = ("wo",)
        _keep_in_fp32_modules_strict = {"wi.weight"}  # noqa: RUF012

    class Strict(Own):
        _keep_in_fp32_modules = None
        _keep_in_fp32_modules_strict = ["other", "w"]  # noqa: RUF012

    model = torch.nn.ModuleDict({"says": Says(), "strict": Strict(), "wo": linear()})
    assert {layer.name: layer.reason for layer in convert(model).layers} == {
        "says.wi": "_keep_in_fp32_modules_strict of Says has 'wi.weight'",
        "says.wo": "_keep_in_fp32_modules of Says has 'wo'",
        "strict.wi": "",
        "strict.wo": "",
        "wo": "",
    }
