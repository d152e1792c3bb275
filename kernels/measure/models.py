"""The linears of public models: n and k of their weights, whole and as tensor parallelism cuts them.

A model is what its Hugging Face repository's config.json says of its sizes, and `linears` makes the weights
of those, as inference engines fuse them: q, k and v are one product, gate and up are one, and DeepSeek's two
projections to a latent of low rank are one. The same function reads a user's own config.json for the command
`bench`. Left out is what is not multiplied in FP8: embeddings, routers and the head.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

from gemm_ladder.arguments import N_MULTIPLE, SCALE_BLOCK
from gemm_ladder.errors import InputError

CUTS = (1, 2, 4, 8)  # GPUs that tensor parallelism cuts a weight for


class Linear(NamedTuple):
    """One weight, B of shape [n, k], or one for each expert.

    Attributes:
        name: what the weight is called.
        n, k: its sizes, uncut.
        cut: the size that tensor parallelism divides: "n" (column-parallel), "k" (row-parallel), or None if
            every GPU has all of it.
        experts: how many weights of these sizes a layer has; 1 if it is dense.
        kv: of n, the rows that make keys and values.
        kv_heads: how many heads share those. A head is not cut: more GPUs than heads each have a whole one.
    """

    name: str
    n: int
    k: int
    cut: Literal["n", "k"] | None
    experts: int = 1
    kv: int = 0
    kv_heads: int = 1

    def sizes(self, gpus: int) -> tuple[int, int]:
        """n and k on each of so many GPUs; n rounded up to whole rows."""
        if self.cut == "n":
            own, shared = self.n - self.kv, min(gpus, self.kv_heads)
            return -(-own // gpus) + -(-self.kv // shared), self.k
        return (self.n, -(-self.k // gpus)) if self.cut == "k" else (self.n, self.k)


class Model(NamedTuple):
    """A public model.

    Attributes:
        name: as people call it.
        source: the repository on huggingface.co whose config.json says so.
        config: the fields of that file that decide the sizes of the weights.
    """

    name: str
    source: str
    config: Mapping[str, Any]

    @property
    def linears(self) -> tuple[Linear, ...]:
        return tuple(linears(self.config))


def refusal(n: int, k: int) -> str | None:
    """Why the kernels, and their peers, do not multiply by such a weight; None if they do."""
    if k % SCALE_BLOCK:
        return f"k = {k} is not a multiple of {SCALE_BLOCK}"
    return f"n = {n} is not a multiple of {N_MULTIPLE}" if n % N_MULTIPLE else None


def linears(config: Mapping[str, Any]) -> Iterator[Linear]:
    """The linears of a decoder layer, by the fields of a Hugging Face config.json.

    Understood are attention with heads of queries that share keys and values, DeepSeek's latent attention,
    gated MLPs, and mixtures of such with and without shared experts. A configuration of several parts counts
    with its "text_config".

    Raises:
        InputError: a field that is needed is not there, or is not a positive whole number.
    """
    config = config.get("text_config", config)
    hidden = _size(config, "hidden_size")
    yield from _latent_attention(config, hidden) if config.get("kv_lora_rank") else _attention(config, hidden)
    experts = next((_size(config, name) for name in _EXPERTS if config.get(name)), 0)
    own = "moe_intermediate_size" if config.get("moe_intermediate_size") else "intermediate_size"
    if not experts or _has_dense_layers(config):
        yield from _mlp("", hidden, _size(config, "intermediate_size"))
    if experts:
        size = _size(config, own)
        shared = config.get("shared_expert_intermediate_size") or size * (config.get("n_shared_experts") or 0)
        if shared:
            yield from _mlp("shared expert ", hidden, int(shared))
        yield from _mlp("expert ", hidden, size, experts)


_EXPERTS = ("n_routed_experts", "num_experts", "num_local_experts")


def _has_dense_layers(config: Mapping[str, Any]) -> bool:
    """Whether a model with experts has layers without them."""
    return bool(
        config.get("first_k_dense_replace")
        or config.get("mlp_only_layers")
        or (config.get("decoder_sparse_step") or 1) > 1
    )


def _attention(config: Mapping[str, Any], hidden: int) -> Iterator[Linear]:
    heads = _size(config, "num_attention_heads")
    kv_heads = _size(config, "num_key_value_heads") if config.get("num_key_value_heads") else heads
    size = _size(config, "head_dim") if config.get("head_dim") else hidden // heads
    kv = 2 * kv_heads * size
    yield Linear("qkv", heads * size + kv, hidden, "n", kv=kv, kv_heads=kv_heads)
    yield Linear("o", hidden, heads * size, "k")


def _latent_attention(config: Mapping[str, Any], hidden: int) -> Iterator[Linear]:
    heads, kv_rank = _size(config, "num_attention_heads"), _size(config, "kv_lora_rank")
    nope, rope, value = (_size(config, f"{name}_head_dim") for name in ("qk_nope", "qk_rope", "v"))
    latent = kv_rank + rope
    if config.get("q_lora_rank"):
        q_rank = _size(config, "q_lora_rank")
        yield Linear("q_a, kv_a", q_rank + latent, hidden, None)
        yield Linear("q_b", heads * (nope + rope), q_rank, "n")
    else:
        yield Linear("q", heads * (nope + rope), hidden, "n")
        yield Linear("kv_a", latent, hidden, None)
    yield Linear("kv_b", heads * (nope + value), kv_rank, "n")
    yield Linear("o", hidden, heads * value, "k")


def _mlp(prefix: str, hidden: int, size: int, experts: int = 1) -> Iterator[Linear]:
    yield Linear(f"{prefix}gate_up", 2 * size, hidden, "n", experts)
    yield Linear(f"{prefix}down", hidden, size, "k", experts)


def _size(config: Mapping[str, Any], name: str) -> int:
    value = config.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        found = "is not there" if value is None else f"is {value!r}"
        raise InputError(f"{name} {found} in the configuration; a positive whole number is needed")
    return value


def _heads(heads: int, kv_heads: int, head_dim: int) -> dict[str, int]:
    return {"num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": head_dim}


def _latent(heads: int) -> dict[str, int]:
    ranks = {"q_lora_rank": 1536, "kv_lora_rank": 512}
    sizes = {"qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128}
    return {"num_attention_heads": heads, **ranks, **sizes}


def _sizes(hidden: int, intermediate: int) -> dict[str, int]:
    return {"hidden_size": hidden, "intermediate_size": intermediate}


def _experts(name: str, experts: int, intermediate: int, shared: int = 0, dense: int = 0) -> dict[str, int]:
    more = {"n_shared_experts": shared, "first_k_dense_replace": dense}
    return {name: experts, "moe_intermediate_size": intermediate, **more}


MODELS = (
    Model(
        "DeepSeek-V3",
        "deepseek-ai/DeepSeek-V3",
        _sizes(7168, 18432) | _latent(128) | _experts("n_routed_experts", 256, 2048, shared=1, dense=3),
    ),
    Model(
        "Kimi-K2",
        "moonshotai/Kimi-K2-Instruct",
        _sizes(7168, 18432) | _latent(64) | _experts("n_routed_experts", 384, 2048, shared=1, dense=1),
    ),
    Model("Llama-3.1-8B", "meta-llama/Llama-3.1-8B", _sizes(4096, 14336) | _heads(32, 8, 128)),
    Model("Llama-3.1-70B", "meta-llama/Llama-3.1-70B", _sizes(8192, 28672) | _heads(64, 8, 128)),
    Model("Llama-3.1-405B", "meta-llama/Llama-3.1-405B", _sizes(16384, 53248) | _heads(128, 8, 128)),
    Model("Qwen3-8B", "Qwen/Qwen3-8B", _sizes(4096, 12288) | _heads(32, 8, 128)),
    Model("Qwen3-32B", "Qwen/Qwen3-32B", _sizes(5120, 25600) | _heads(64, 8, 128)),
    Model(
        "Qwen3-30B-A3B",
        "Qwen/Qwen3-30B-A3B",
        _sizes(2048, 6144) | _heads(32, 4, 128) | _experts("num_experts", 128, 768),
    ),
    Model(
        "Qwen3-235B-A22B",
        "Qwen/Qwen3-235B-A22B",
        _sizes(4096, 12288) | _heads(64, 4, 128) | _experts("num_experts", 128, 1536),
    ),
    Model(
        "Mixtral-8x7B",
        "mistralai/Mixtral-8x7B-v0.1",
        _sizes(4096, 14336) | _heads(32, 8, 128) | {"num_local_experts": 8},
    ),
    Model(
        "GLM-4.5",
        "zai-org/GLM-4.5",
        _sizes(5120, 12288) | _heads(96, 8, 128) | _experts("n_routed_experts", 160, 1536, shared=1, dense=3),
    ),
    Model(
        "gpt-oss-120b",
        "openai/gpt-oss-120b",
        _sizes(2880, 2880) | _heads(64, 8, 64) | {"num_local_experts": 128},
    ),
)
