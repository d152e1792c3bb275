"""The model of lesson 15: all-MiniLM-L6-v2, or the same with random weights where no package has them."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import NamedTuple

import torch
from gemm_ladder.errors import GemmLadderError
from gemm_ladder.measure import minilm

SENTENCES = minilm.SENTENCES[:6]
SHORT = minilm.SHORT[:2]


class Subject(NamedTuple):
    """A model, and whether its weights were trained."""

    model: minilm.Encoder
    trained: bool

    def __str__(self) -> str:
        kind = "its trained weights" if self.trained else "random weights (the package is not installed)"
        count = sum(one.numel() for one in self.model.parameters())
        return f"{minilm.NAME} with {kind}: {count / 1e6:.1f} million numbers"

    def tokens(self, sentences: Sequence[str]) -> list[list[int]]:
        """Each sentence's tokens; without the package, which has the vocabulary, one for each word."""
        if self.trained:
            of_word = minilm.vocabulary()
            return [minilm.numbers(one, of_word) for one in sentences]
        every = [["", *minilm.words(one), "."] for one in sentences]
        return [[1 + zlib.crc32(word.encode()) % (minilm.VOCABULARY - 1) for word in one] for one in every]


class Run(NamedTuple):
    """What a model did with some sentences.

    Attributes:
        vectors: [sentences, 384].
        states: after each layer, [tokens, 384].
        inputs: of each linear layer, by its name: [tokens, k].
    """

    vectors: torch.Tensor
    states: list[torch.Tensor]
    inputs: dict[str, torch.Tensor]


@torch.no_grad()
def run(model: torch.nn.Module, tokens: Sequence[Sequence[int]]) -> Run:
    """Run a model, and keep what goes through it; padding is left out."""
    ids, valid = minilm.padded(tokens)
    states: list[torch.Tensor] = []
    inputs: dict[str, torch.Tensor] = {}
    hooks = []
    for name, module in model.named_modules():
        if isinstance(module, minilm.Layer):
            hooks.append(module.register_forward_hook(lambda one, given, out: states.append(out[valid])))
        elif hasattr(module, "in_features"):
            keep = lambda one, given, name=name: inputs.update({name: given[0][valid]})  # noqa: E731
            hooks.append(module.register_forward_pre_hook(keep))
    try:
        found = minilm.vectors(model(ids, valid), valid)
    finally:
        for hook in hooks:
            hook.remove()
    return Run(found, states, inputs)


def load() -> Subject:
    """The model."""
    try:
        return Subject(minilm.load(), True)
    except GemmLadderError:
        torch.manual_seed(0)
        return Subject(minilm.Encoder().requires_grad_(False).eval(), False)
