"""`gemm_ladder.layers.convert` on models of transformers, small ones with random weights, where it is
installed."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from gemm_ladder.layers import Fp8Linear, Report, convert

BF16 = torch.bfloat16
TOKENS = torch.arange(24).view(2, 12)
SIZES: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
DEEPSEEK = {
    **{
        "num_key_value_heads": 4,
        "moe_intermediate_size": 64,
        "n_routed_experts": 8,
        "num_experts_per_tok": 2,
    },
    **{"n_group": 2, "topk_group": 1, "first_k_dense_replace": 1, "q_lora_rank": 64, "kv_lora_rank": 64},
    **{"qk_rope_head_dim": 32, "qk_nope_head_dim": 32, "v_head_dim": 32},
}


@pytest.fixture(scope="module")
def transformers() -> ModuleType:
    return pytest.importorskip("transformers", minversion="5")


def llama(transformers: ModuleType) -> torch.nn.Module:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**SIZES, num_key_value_heads=2)
    return transformers.LlamaForCausalLM(config).to(BF16).eval()


def logits(model: torch.nn.Module, **inputs: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(TOKENS, **inputs).logits.float()


def converted(model: torch.nn.Module, least: float, **inputs: torch.Tensor) -> Report:
    """Convert a model, whose logits stay close: their least cosine is given."""
    expected = logits(model, **inputs)
    report = convert(model, inputs={"input_ids": TOKENS, **inputs})
    similarity = torch.nn.functional.cosine_similarity(logits(model, **inputs), expected, dim=-1)
    assert least < similarity.min() < 1
    assert all(0.02 < layer.output_error < 0.1 for layer in report.converted), str(report)
    return report


def reasons(report: Report) -> set[str]:
    return {layer.reason for layer in report.kept}


def test_llama(transformers: ModuleType) -> None:
    """It generates, and its weights go through a state."""
    model = llama(transformers)
    report = converted(model, 0.99)
    assert len(report.converted) == 14 and [layer.name for layer in report.kept] == ["lm_head"]
    assert model.generate(TOKENS, max_new_tokens=3, do_sample=False).shape == (2, 15)
    again = llama(transformers)
    convert(again)
    again.load_state_dict(model.state_dict())
    assert torch.equal(logits(again), logits(model))


def test_on_the_meta_device(transformers: ModuleType, tmp_path: Path) -> None:
    """The recipe that `convert` has, with a file that save_pretrained wrote."""
    stored = pytest.importorskip("safetensors.torch")
    model = llama(transformers)
    config = copy.deepcopy(model.config)
    convert(model)
    model.save_pretrained(tmp_path)
    state = stored.load_file(tmp_path / "model.safetensors")
    with torch.device("meta"):
        empty = transformers.LlamaForCausalLM(config).eval()
    convert(empty)
    empty.load_state_dict(state, assign=True)
    empty.model.rotary_emb, model.model.rotary_emb = (type(model.model.rotary_emb)(config) for _ in range(2))
    assert torch.equal(logits(empty), logits(model))


def test_saved_and_loaded(transformers: ModuleType, tmp_path: Path) -> None:
    """The file says what it is. Without what transformers needs for it, loading it fails; with that, its
    weights are what the codes stand for. Changing the model's type does no harm."""
    model = llama(transformers)
    convert(model)
    model.save_pretrained(tmp_path)
    found = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    assert found == model.config.quantization_config
    assert found["modules_to_not_convert"] == ["lm_head"] and found["weight_block_size"] == [128, 128]
    expected = logits(model)
    assert torch.equal(logits(model.to(torch.float32).to(BF16)), expected)
    try:
        loaded = transformers.LlamaForCausalLM.from_pretrained(tmp_path)
    except ImportError as refused:
        assert "accelerate" in str(refused)
        return
    for name, layer in model.named_modules():
        if isinstance(layer, Fp8Linear):
            weight = loaded.get_submodule(name).weight
            in_fp8 = weight.dtype == torch.float8_e4m3fn  # where transformers finds a GPU for its own kernels
            codes = layer.weight.float() if in_fp8 else layer.dequantized_weight().to(BF16)
            assert torch.equal(weight.to(codes.dtype), codes)


def test_experts_of_qwen3(transformers: ModuleType) -> None:
    torch.manual_seed(0)
    config = transformers.Qwen3MoeConfig(
        **SIZES, num_key_value_heads=2, moe_intermediate_size=64, num_experts=8, num_experts_per_tok=2
    )
    report = converted(transformers.Qwen3MoeForCausalLM(config).to(BF16).eval(), 0.98)
    assert len([layer for layer in report.converted if "experts" in layer.name]) == 4
    assert reasons(report) == {"skip has 'gate'", "skip has 'lm_head'"} and len(report.kept) == 3


@pytest.mark.parametrize("intermediate", [64, 128])
def test_saved_experts(transformers: ModuleType, tmp_path: Path, intermediate: int) -> None:
    """save_pretrained writes their codes one by one and their scales together, which can be read again."""
    config = transformers.Qwen3MoeConfig(
        **SIZES,
        num_key_value_heads=2,
        moe_intermediate_size=intermediate,
        num_experts=4,
        num_experts_per_tok=2,
    )
    model, other = (transformers.Qwen3MoeForCausalLM(config).to(BF16).eval() for _ in range(2))
    convert(model)
    convert(other)
    model.save_pretrained(tmp_path)
    load_file = pytest.importorskip("safetensors.torch").load_file
    state = {name: one for file in tmp_path.glob("*.safetensors") for name, one in load_file(file).items()}
    assert any("experts.0.gate_proj.weight" in name for name in state)
    other.load_state_dict(state)
    assert torch.equal(logits(other), logits(model))


def test_deepseek_v3(transformers: ModuleType) -> None:
    torch.manual_seed(0)
    model = transformers.DeepseekV3ForCausalLM(transformers.DeepseekV3Config(**SIZES, **DEEPSEEK))
    report = converted(model.eval(), 0.9)
    assert [layer.name for layer in report.kept] == ["model.layers.1.mlp.gate", "lm_head"]
    assert len([layer for layer in report.converted if ".experts." in layer.name]) == 2


def test_deepseek_v32(transformers: ModuleType) -> None:
    """Its indexer converts what it gets to the type of a weight."""
    if not hasattr(transformers, "DeepseekV32Config"):
        pytest.skip("this version of transformers does not have it")
    torch.manual_seed(0)
    indexer = {"index_n_heads": 8, "index_head_dim": 64, "index_topk": 8}
    config = transformers.DeepseekV32Config(**SIZES, **DEEPSEEK, **indexer)
    report = converted(transformers.DeepseekV32ForCausalLM(config).eval(), 0.8)
    read = [layer.name for layer in report.kept if layer.reason.endswith("reads its weight itself")]
    assert read == [f"model.layers.{index}.self_attn.indexer.weights_proj" for index in (0, 1)]


@pytest.mark.parametrize("gated", [False, True])
def test_t5(transformers: ModuleType, gated: bool) -> None:
    """It converts what `wo` gets to the type of its weight, so that stays."""
    torch.manual_seed(0)
    kind = {"feed_forward_proj": "gated-gelu"} if gated else {}
    config = transformers.T5Config(vocab_size=128, d_model=128, d_ff=256, num_layers=1, num_heads=4, **kind)
    model = transformers.T5ForConditionalGeneration(config).eval()
    report = converted(model, 0.9, decoder_input_ids=TOKENS)
    assert len(report.converted) == 14 + 2 * gated
    method = f"T5Dense{'Gated' * gated}ActDense.forward"
    assert reasons(report) == {f"{method} reads its weight itself", "skip has 'lm_head'"}


def test_gpt2(transformers: ModuleType) -> None:
    """Its linear layers are of another class, which the report says."""
    config = transformers.GPT2Config(
        vocab_size=128, n_embd=64, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0
    )
    report = convert(transformers.GPT2LMHeadModel(config))
    assert not report.converted and len(report.kept) == 5
    assert reasons(report) == {"its class Conv1D is no torch.nn.Linear", "skip has 'lm_head'"}
