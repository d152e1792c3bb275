"""`gemm_ladder.layers.convert` says in a model's config what its weights are."""

from __future__ import annotations

import torch
from gemm_ladder.layers import convert


class Config:
    """As the config of a model of transformers."""

    def to_dict(self) -> dict[str, object]:
        return vars(self)


class Pretrained(torch.nn.Module):
    """As a model of transformers."""

    def __init__(self) -> None:
        super().__init__()
        self.config = Config()
        self.body = torch.nn.ModuleDict({"up": torch.nn.Linear(16, 32), "gate": torch.nn.Linear(16, 8)})
        self.narrow = torch.nn.Linear(20, 16)
        self.lm_head = torch.nn.Linear(16, 64)

    def save_pretrained(self, folder: str) -> None:
        raise NotImplementedError


FORM = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}


def test_what_the_config_says() -> None:
    model = Pretrained()
    convert(model)
    kept = ["body.gate", "narrow", "lm_head"]
    assert model.config.quantization_config == {**FORM, "modules_to_not_convert": kept}
    convert(model, skip="lm_head")  # the gate as well
    assert model.config.quantization_config == {**FORM, "modules_to_not_convert": ["narrow", "lm_head"]}


def test_where_it_says_nothing() -> None:
    """If the weights are trained, none is in FP8, the config says something else, or there is none."""
    trained, whole, other, plain = (Pretrained() for _ in range(4))
    convert(trained, trainable=True)
    convert(whole, skip=("body", "narrow", "lm_head"))
    other.config.quantization_config = {"quant_method": "awq"}
    convert(other)
    plain.config = {"hidden_size": 16}
    convert(plain)
    assert not vars(trained.config) and not vars(whole.config)
    assert other.config.quantization_config == {"quant_method": "awq"}
    assert plain.config == {"hidden_size": 16}
