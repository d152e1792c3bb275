"""One layer of a language model, of the sizes that a public model has, with random weights, in plain torch.

    layer = decoder.make("Qwen3-8B", device)
    out = layer(x)                                # x: BF16 [tokens, hidden], one sequence: prefill
    out = layer(x, layer.cache(32, 4096))         # x: [32, hidden], the last tokens of 32 sequences: decode
    in_fp8, report = decoder.converted(layer)

`Dense` is a layer of Qwen3: attention whose heads of queries share keys and values, and a gated MLP.
`Mixture` is one of DeepSeek-V3: latent attention and a mixture of experts. SIMPLIFIED says what is simpler
than in those models. When DeepSeek decodes, servers multiply by kv_b in two halves, in BF16, so that
attention works on the latents; so does this.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from gemm_ladder.layers import Fp8Linear, Report, convert, route
from gemm_ladder.measure.arithmetic import EPSILON, IN_BF16, Arithmetic
from gemm_ladder.measure.models import MODELS
from torch.nn.parameter import Parameter

BF16 = torch.bfloat16
LONGEST = 8192  # tokens of a sequence
TOP_K, EXPERT_GROUPS, TOP_GROUPS = 8, 8, 4  # DeepSeek-V3's experts: chosen within half of their groups
ROUTED_SCALE = 2.5  # by which DeepSeek-V3 multiplies the experts' weights
ROPE_BASE = 1e6

SIMPLIFIED = (
    "positions are RoPE's, without the rescaling of long contexts; the choice of experts has no bias that "
    "balances them, and random weights spread tokens evenly; prefill is one sequence; attention is torch's, "
    "in DeepSeek's prefill with values padded to the size of keys, in its decode two batched products with a "
    "softmax between them; a decoded token is one of a batch whose sequences are all of the same length"
)

Mark = Callable[[str], None]  # is told the name of the part of the layer that begins
Cache = tuple[torch.Tensor, ...]


def ignore(part: str) -> None:
    """A Mark that does nothing."""


class Layer(torch.nn.Module):
    """What both kinds of layer have: two norms, a sum around each half, linears.

    Args:
        config: the sizes, by the names of a Hugging Face config.json.
    """

    tables: torch.Tensor

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.config = config
        self.hidden: int = config["hidden_size"]
        self.heads: int = config["num_attention_heads"]
        self.norm, self.inner_norm = (_vector(self.hidden) for _ in range(2))

    def forward(
        self, x: torch.Tensor, cache: Cache | None = None, how: Arithmetic = IN_BF16, mark: Mark = ignore
    ) -> torch.Tensor:
        """BF16 [tokens, hidden]: the layer's output.

        Args:
            x: BF16 [tokens, hidden]: a sequence from its beginning or, with a cache, the last token of each
                of so many sequences.
            cache: as `cache` makes it: its last position gets what the token adds.
            how: the arithmetic of what lies between the sums.
            mark: told "elementwise" (norms, SiLU, sums, casts), "products", "attention", "routing" or
                "experts" where such a part begins.
        """
        mark("elementwise")
        x = x + self.attention(how.normed(x, self.norm), cache, how, mark)
        return x + self.feed_forward(x, how, mark)

    def attention(self, x: Any, cache: Cache | None, how: Arithmetic, mark: Mark) -> torch.Tensor:
        raise NotImplementedError

    def feed_forward(self, x: torch.Tensor, how: Arithmetic, mark: Mark) -> torch.Tensor:
        raise NotImplementedError

    def cache(self, batch: int, context: int) -> Cache:
        """Random keys and values of so many sequences."""
        raise NotImplementedError

    def converted_(self) -> None:
        """Called when the weights are there, or were replaced."""

    def linear(self, layer: torch.nn.Module, x: Any, how: Arithmetic, mark: Mark) -> torch.Tensor:
        mark("products")
        out = how.linear(layer, x)
        mark("elementwise")
        return out

    def gated(
        self, first: torch.nn.Module, second: torch.nn.Module, x: Any, how: Arithmetic, mark: Mark
    ) -> torch.Tensor:
        """A gated MLP: second(SiLU(gate) * up), where first gives gate and up beside each other."""
        return self.linear(second, how.gated(self.linear(first, x, how, mark)), how, mark)

    def rotated(self, x: torch.Tensor, cache: Cache | None) -> torch.Tensor:
        """RoPE: x is [tokens, heads, size], of the positions from 0 on or, with a cache, of its last one."""
        if cache is None:
            turn = self.tables[: len(x)]
        else:
            context = cache[0].shape[-2]
            turn = self.tables[context - 1 : context]
        cosine, sine = turn[:, None].chunk(2, -1)
        first, second = x.chunk(2, -1)
        return torch.cat([first * cosine - second * sine, second * cosine + first * sine], -1)


class Dense(Layer):
    """A layer of Qwen3."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config)
        self.kv_heads: int = config["num_key_value_heads"]
        self.size: int = config["head_dim"]
        inner: int = config["intermediate_size"]
        self.qkv = _linear(self.hidden, (self.heads + 2 * self.kv_heads) * self.size)
        self.o = _linear(self.heads * self.size, self.hidden)
        self.gate_up, self.down = _linear(self.hidden, 2 * inner), _linear(inner, self.hidden)
        self.q_norm, self.k_norm = _vector(self.size), _vector(self.size)
        self.register_buffer("tables", _tables(self.size))

    def attention(self, x: Any, cache: Cache | None, how: Arithmetic, mark: Mark) -> torch.Tensor:
        qkv = self.linear(self.qkv, x, how, mark)
        mark("attention")
        qkv = qkv.unflatten(-1, (-1, self.size))
        q, k, v = qkv.split([self.heads, self.kv_heads, self.kv_heads], 1)
        q, k = (
            self.rotated(F.rms_norm(one, (self.size,), weight, EPSILON), cache)
            for one, weight in ((q, self.q_norm), (k, self.k_norm))
        )
        if cache is None:
            q, k, v = (one.transpose(0, 1)[None] for one in (q, k, v))
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
            mixed = mixed[0].transpose(0, 1)
        else:
            keys, values = cache
            keys[:, :, -1], values[:, :, -1] = k, v
            mixed = F.scaled_dot_product_attention(q[:, :, None], keys, values, enable_gqa=True)
        flat = mixed.reshape(-1, self.heads * self.size)
        mark("elementwise")
        return self.linear(self.o, how.cast(flat), how, mark)

    def feed_forward(self, x: torch.Tensor, how: Arithmetic, mark: Mark) -> torch.Tensor:
        return self.gated(self.gate_up, self.down, how.normed(x, self.inner_norm), how, mark)

    def cache(self, batch: int, context: int) -> Cache:
        shape = (batch, self.kv_heads, context, self.size)
        return tuple(torch.randn(shape, dtype=BF16, device=self.norm.device) for _ in range(2))


class Mixture(Layer):
    """A layer of DeepSeek-V3 that has experts."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config)
        self.q_rank, self.kv_rank = config["q_lora_rank"], config["kv_lora_rank"]
        self.plain, self.turned = config["qk_nope_head_dim"], config["qk_rope_head_dim"]
        self.value: int = config["v_head_dim"]
        experts, inner = config["n_routed_experts"], config["moe_intermediate_size"]
        self.qkv_a = _linear(self.hidden, self.q_rank + self.kv_rank + self.turned)
        self.q_b = _linear(self.q_rank, self.heads * (self.plain + self.turned))
        self.kv_b = _linear(self.kv_rank, self.heads * (self.plain + self.value))
        self.o = _linear(self.heads * self.value, self.hidden)
        self.router = _linear(self.hidden, experts)
        self.experts = Experts(experts, self.hidden, inner)
        shared = inner * config["n_shared_experts"]
        self.gate_up, self.down = _linear(self.hidden, 2 * shared), _linear(shared, self.hidden)
        self.q_norm, self.kv_norm = _vector(self.q_rank), _vector(self.kv_rank)
        self.register_buffer("tables", _tables(self.turned))

    def converted_(self) -> None:
        weight = self.kv_b.weight
        if isinstance(self.kv_b, Fp8Linear):
            weight = self.kv_b.dequantized_weight().to(BF16)
        of_heads = weight.detach().view(self.heads, self.plain + self.value, self.kv_rank)
        self.to_latent, self.from_latent = of_heads[:, : self.plain], of_heads[:, self.plain :].mT

    def attention(self, x: Any, cache: Cache | None, how: Arithmetic, mark: Mark) -> torch.Tensor:
        latent = self.linear(self.qkv_a, x, how, mark)
        q, kv, k_turned = latent.split([self.q_rank, self.kv_rank, self.turned], -1)
        q = self.linear(self.q_b, how.normed(q, self.q_norm), how, mark)
        mark("attention")
        q, q_turned = q.unflatten(-1, (self.heads, -1)).split([self.plain, self.turned], -1)
        q_turned, k_turned = self.rotated(q_turned, cache), self.rotated(k_turned[:, None], cache)
        kv = F.rms_norm(kv, (self.kv_rank,), self.kv_norm, EPSILON)
        if cache is None:
            mark("elementwise")
            kv = self.linear(self.kv_b, how.cast(kv), how, mark)
            mark("attention")
            mixed = self._in_full(q, q_turned, kv, k_turned)
        else:
            mixed = self._in_latent_space(q, q_turned, torch.cat([kv, k_turned[:, 0]], -1), cache[0])
        mark("elementwise")
        return self.linear(self.o, how.cast(mixed.reshape(len(mixed), -1)), how, mark)

    def _in_full(
        self, q: torch.Tensor, q_turned: torch.Tensor, kv: torch.Tensor, k_turned: torch.Tensor
    ) -> torch.Tensor:
        """[tokens, heads, value], with the keys and values of every head."""
        k, v = kv.unflatten(-1, (self.heads, -1)).split([self.plain, self.value], -1)
        v = F.pad(v, (0, self.plain + self.turned - self.value))
        q, k = torch.cat([q, q_turned], -1), torch.cat([k, k_turned.expand(-1, self.heads, -1)], -1)
        q, k, v = (one.transpose(0, 1)[None] for one in (q, k, v))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return mixed[0, ..., : self.value].transpose(0, 1)

    def _in_latent_space(
        self, q: torch.Tensor, q_turned: torch.Tensor, added: torch.Tensor, latents: torch.Tensor
    ) -> torch.Tensor:
        """The same with the latents that the keys and values of all heads are made of."""
        latents[:, -1] = added
        q = torch.bmm(q.transpose(0, 1), self.to_latent).transpose(0, 1)
        scale = (self.plain + self.turned) ** -0.5
        scores = torch.bmm(scale * torch.cat([q, q_turned], -1), latents.mT)
        mixed = torch.bmm(scores.softmax(-1), latents[..., : self.kv_rank])
        return torch.bmm(mixed.transpose(0, 1), self.from_latent).transpose(0, 1)

    def feed_forward(self, x: torch.Tensor, how: Arithmetic, mark: Mark) -> torch.Tensor:
        mark("elementwise")
        x = F.rms_norm(x, (self.hidden,), self.inner_norm, EPSILON)
        mark("routing")
        chosen, factors = route(
            self.router(x),
            TOP_K,
            scoring="sigmoid",
            scale=ROUTED_SCALE,
            num_groups=EXPERT_GROUPS,
            top_groups=TOP_GROUPS,
        )
        mark("experts")
        routed = how.experts(self.experts, x, chosen, factors)
        mark("elementwise")
        return routed + self.gated(self.gate_up, self.down, how.cast(x), how, mark)

    def cache(self, batch: int, context: int) -> Cache:
        size = self.kv_rank + self.turned
        return (torch.randn(batch, context, size, dtype=BF16, device=self.norm.device),)


class Experts(torch.nn.Module):
    """The experts in BF16, by the names that transformers gives them: torch's grouped products of rows that
    are sorted by expert."""

    def __init__(self, experts: int, hidden: int, inner: int) -> None:
        super().__init__()
        self.gate_up_proj = Parameter(torch.empty(experts, 2 * inner, hidden, dtype=BF16))
        self.down_proj = Parameter(torch.empty(experts, hidden, inner, dtype=BF16))

    def forward(self, x: torch.Tensor, chosen: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
        of_sorted, order = chosen.reshape(-1).sort(stable=True)
        numbers = torch.arange(len(self.down_proj), device=x.device)
        ends = torch.searchsorted(of_sorted, numbers, right=True).int()
        inner = _grouped(x[order // chosen.shape[1]], self.gate_up_proj.mT, ends)
        out = _grouped(self._apply_gate(inner), self.down_proj.mT, ends)
        back = torch.empty_like(out)
        back[order] = out
        return torch.bmm(factors[:, None].to(BF16), back.view(*chosen.shape, -1))[:, 0]

    def _apply_gate(self, inner: torch.Tensor) -> torch.Tensor:
        gate, up = inner.chunk(2, -1)
        return F.silu(gate) * up


def _grouped(x: torch.Tensor, weight: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    """torch's grouped product, by the name that this release of torch has for it."""
    function = getattr(F, "grouped_mm", None) or torch._grouped_mm
    found: torch.Tensor = function(x, weight, offs=ends)
    return found


KINDS = {"Qwen3-8B": Dense, "DeepSeek-V3": Mixture}


def config_of(name: str) -> dict[str, Any]:
    """The sizes of a public model, as its config.json has them."""
    return dict(next(one.config for one in MODELS if one.name == name))


def experts_of(name: str) -> dict[str, int]:
    """The sizes of a model's experts, by the names that Fp8Experts has for them; empty where it has none."""
    config = config_of(name) if KINDS.get(name) is Mixture else {}
    names = {
        "num_experts": "n_routed_experts",
        "hidden_size": "hidden_size",
        "intermediate_size": "moe_intermediate_size",
    }
    return {ours: config[theirs] for ours, theirs in names.items()} if config else {}


def make(name: str, device: torch.device | str, config: Mapping[str, Any] | None = None) -> Layer:
    """A layer with random weights that keep the size of what they multiply.

    Args:
        name: one of KINDS.
        device: where; on "meta" the layer has no memory.
        config: other sizes than the model's.
    """
    with torch.device("meta"):
        layer: Layer = KINDS[name](config or config_of(name))
    layer = layer.requires_grad_(False).eval()
    if torch.device(device).type == "meta":
        return layer
    layer = layer.to_empty(device=device)
    torch.manual_seed(0)
    for parameter in layer.parameters():
        if parameter.dim() == 1:
            parameter.normal_(1, 0.1)
        else:
            parameter.normal_(0, parameter.shape[-1] ** -0.5)
    layer.tables.copy_(_tables(layer.tables.shape[1]))
    layer.converted_()
    return layer


def converted(layer: Layer) -> tuple[Layer, Report]:
    """The same layer in FP8, which shares what is not converted, and the report of `convert`."""
    with torch.device("meta"):
        twin = type(layer)(layer.config)
    twin.load_state_dict(layer.state_dict(), assign=True)
    report = convert(twin.requires_grad_(False).eval())
    twin.converted_()
    return twin, report


def _linear(k: int, n: int) -> torch.nn.Linear:
    return torch.nn.Linear(k, n, bias=False, dtype=BF16)


def _vector(size: int) -> Parameter:
    return Parameter(torch.empty(size, dtype=BF16))


def _tables(size: int) -> torch.Tensor:
    """BF16 [LONGEST, size]: for each position the cosines and the sines of size / 2 angles."""
    rates = ROPE_BASE ** (-torch.arange(0, size, 2, device="cpu") / size)
    angles = torch.arange(LONGEST, device="cpu")[:, None] * rates
    return torch.cat([angles.cos(), angles.sin()], -1).to(BF16)
