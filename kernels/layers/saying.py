"""Saying in the config of a model of transformers that its weights are in FP8."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from gemm_ladder.arguments import SCALE_BLOCK

# As in the config.json of DeepSeek-V3's checkpoints, which transformers, vLLM and SGLang read.
FORM = {
    "quant_method": "fp8",
    "fmt": "e4m3",
    "activation_scheme": "dynamic",
    "weight_block_size": [SCALE_BLOCK, SCALE_BLOCK],
}


def say(model: torch.nn.Module, kept: Iterable[str]) -> None:
    """Set `model.config.quantization_config`, if the model has a config that is saved with it and that says
    nothing else yet, so that a file says what its weights are.

    Args:
        model: the model, which has layers in FP8.
        kept: the paths of the linear layers, and the like, that are not.
    """
    config: Any = getattr(model, "config", None)
    if not callable(getattr(model, "save_pretrained", None)) or not callable(
        getattr(config, "to_dict", None)
    ):
        return
    given = getattr(config, "quantization_config", None)
    if given is None or (isinstance(given, dict) and FORM.items() <= given.items()):
        config.quantization_config = {**FORM, "modules_to_not_convert": list(kept)}
