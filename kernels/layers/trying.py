"""Calling a model with inputs before it is converted, to compare what its layers give with what they gave."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from gemm_ladder.errors import InputError, one_line

ROWS = 256  # of a layer's first call that are kept: enough for an error in the norm


@dataclasses.dataclass(frozen=True)
class Call:
    """What a layer got in its first call and what it gave, at most ROWS rows of it."""

    args: tuple[Any, ...]
    keywords: dict[str, Any]
    output: torch.Tensor

    def error(self, replacement: torch.nn.Module) -> float:
        """||replacement's output - output|| / ||output||, in FP32."""
        with torch.no_grad():
            found = replacement(*self.args, **self.keywords).float()
            expected = self.output.float()
            wrong, norm = (found - expected).norm().item(), expected.norm().item()
        return wrong / norm if norm else float("inf") if wrong else 0.0


def calls(model: torch.nn.Module, layers: Iterable[torch.nn.Module], inputs: object) -> dict[int, Call]:
    """Call a model, in eval mode and without gradients, and note the first call of each layer that has rows.

    Args:
        model: the model. Its mode is the same afterwards.
        layers: those to look at.
        inputs: a tensor, or a tuple or a dict of what the model is called with.

    Returns:
        The calls by the layers' id; none for a layer that was not reached.

    Raises:
        InputError: inputs is something else, the model has no memory, or it raises an exception.
    """
    args: tuple[Any, ...] = ()
    keywords: dict[str, Any] = {}
    if isinstance(inputs, torch.Tensor):
        args = (inputs,)
    elif isinstance(inputs, Mapping):
        keywords = dict(inputs)
    elif isinstance(inputs, (tuple, list)):
        args = tuple(inputs)
    else:
        raise InputError(
            f"inputs is of type {type(inputs).__name__}; a tensor, or a tuple or a dict of the model's "
            "arguments is needed"
        )
    if any(parameter.is_meta for parameter in model.parameters()):
        raise InputError("inputs are given, and the model has weights on the meta device; memory is needed")
    found: dict[int, Call] = {}

    def note(
        layer: torch.nn.Module, given: tuple[Any, ...], named: dict[str, Any], output: torch.Tensor
    ) -> None:
        if id(layer) not in found and isinstance(output, torch.Tensor) and output.numel():
            kept = {name: _rows(value) for name, value in named.items()}
            found[id(layer)] = Call(tuple(map(_rows, given)), kept, _rows(output))

    modes = [(module, module.training) for module in model.modules()]
    hooks = [layer.register_forward_hook(note, with_kwargs=True) for layer in layers]
    try:
        model.eval()
        with torch.no_grad():
            model(*args, **keywords)
    except Exception as failed:
        raise InputError(
            f"the model cannot be called with inputs: {type(failed).__name__}: {one_line(failed)}"
        ) from failed
    finally:
        for hook in hooks:
            hook.remove()
        for module, training in modes:
            module.training = training
    return found


def _rows(value: Any) -> Any:
    """The first rows of a tensor, as a copy: what comes later may overwrite it."""
    if not isinstance(value, torch.Tensor) or not value.dim():
        return value
    return value.detach().reshape(-1, value.shape[-1])[:ROWS].clone()
