"""A small transformer over bytes, whose linear layers can be in FP8.

    embedding -> [norm, attention, norm, gated MLP] * layers -> norm -> head

Each layer has four linears, without biases: queries, keys and values together; what attention gives; gates
and what they multiply together; and the way back. These are the ones that `layers.convert` replaces. The
embedding and the head, a hundredth of the parameters, stay as they are, as in models that are trained in FP8.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from gemm_ladder import layers
from torch import nn

VOCABULARY = 256  # bytes
HEAD = "head"  # the name of the linear that stays in BF16
SPREAD = 0.02  # of the numbers that weights begin with


@dataclass(frozen=True)
class Sizes:
    """The sizes of a model.

    Attributes:
        layers: how many.
        width: of what goes from layer to layer.
        heads: of attention; each has width / heads numbers.
        hidden: the width between the MLP's products.
        context: the most bytes that a sequence has.
    """

    layers: int
    width: int
    heads: int
    hidden: int
    context: int

    @property
    def linears(self) -> tuple[tuple[int, int], ...]:
        """(out_features, in_features) of a layer's four linears, in the order in which they are used."""
        d = self.width
        return ((3 * d, d), (d, d), (2 * self.hidden, d), (d, self.hidden))


class Layer(nn.Module):
    """One layer: attention and MLP, each of the norm of x and added to x."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.heads = sizes.heads
        self.norms = nn.ModuleList(nn.RMSNorm(sizes.width, eps=1e-6) for _ in range(2))
        self.qkv, self.out, self.up, self.down = (nn.Linear(k, n, bias=False) for n, k in sizes.linears)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        attend, multiply = self.norms
        batch, length, width = x.shape
        qkv = self.qkv(attend(x)).view(batch, length, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        gate, up = self.up(multiply(x)).chunk(2, dim=-1)
        out: torch.Tensor = x + self.down(F.silu(gate) * up)
        return out


class Transformer(nn.Module):
    """The model. Input: int64 [batch, length] of bytes. Output: [batch, length, VOCABULARY] logits."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.bytes = nn.Embedding(VOCABULARY, sizes.width)
        self.places = nn.Embedding(sizes.context, sizes.width)
        self.layers = nn.ModuleList(Layer(sizes) for _ in range(sizes.layers))
        self.norm = nn.RMSNorm(sizes.width, eps=1e-6)
        self.head = nn.Linear(sizes.width, VOCABULARY, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.bytes(tokens) + self.places.weight[: tokens.shape[1]]
        for layer in self.layers:
            x = layer(x)
        logits: torch.Tensor = self.head(self.norm(x))
        return logits


def make(sizes: Sizes, seed: int, fp8: bool, device: torch.device) -> Transformer:
    """A model with FP32 parameters.

    Args:
        seed: of the numbers that it begins with, which are the same on every device, with FP8 and without.
        fp8: whether the linears of its layers are Fp8Linear.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Transformer(sizes)
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2:
                # What is added to x is smaller, the more layers add to it.
                adds = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(parameter, std=SPREAD / (2 * sizes.layers) ** 0.5 if adds else SPREAD)
    if fp8:
        report = layers.convert(model, skip=HEAD, trainable=True)
        assert len(report.converted) == len(sizes.linears) * sizes.layers, str(report)
    return model.to(device)
