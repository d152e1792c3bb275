"""What Fp8Linear and Fp8Experts write to a checkpoint, and what they read from those of others."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from gemm_ladder.errors import InputError
from gemm_ladder.layers import Fp8Experts, Fp8Linear, weights
from gemm_ladder.utils import ceil_to_ue8m0
from layer_cases import EXPERTS, HIDDEN, INTERMEDIATE, experts_of, tokens

N, K = 136, 272  # blocks that end inside the weight
E4M3, E8M0, BF16 = torch.float8_e4m3fn, torch.float8_e8m0fnu, torch.bfloat16
SCALE_TYPES = (torch.float32, BF16, E8M0)
NAMES = ("weight_scale_inv", "weight_scale")
EACH = ("gate_proj", "up_proj", "down_proj")  # of a single expert


def checkpoint(
    name: str = "weight_scale_inv", dtype: torch.dtype = torch.float32
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """A weight in FP8 as a checkpoint has it, and what it stands for, float32 [N, K]."""
    torch.manual_seed(0)
    codes, scales = weights.quantized(torch.randn(N, K), False)
    stored = (ceil_to_ue8m0(scales) if dtype == E8M0 else scales).to(dtype)
    bias = torch.randn(N)
    state = {"weight": codes, name: stored, "bias": bias}
    rows = stored.float().repeat_interleave(128, 0)[:N]
    return state, codes.float() * rows.repeat_interleave(128, 1)[:, :K]


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("dtype", SCALE_TYPES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_names_and_scales(name: str, dtype: torch.dtype, assign: bool) -> None:
    """Both names, and scales of every type, which become float32 without a change."""
    state, meant = checkpoint(name, dtype)
    given = dict(state)
    layer = Fp8Linear(K, N, device="meta" if assign else None)
    layer.load_state_dict(state, assign=assign)
    assert state.keys() == given.keys(), "the caller's dict"
    assert layer.weight_scale_inv.dtype == torch.float32 and not layer.weight_scale_inv.requires_grad
    assert torch.equal(layer.weight.view(torch.uint8), state["weight"].view(torch.uint8))
    assert torch.equal(layer.dequantized_weight(), meant)
    assert torch.equal(layer.bias, state["bias"])


@pytest.mark.parametrize("name", NAMES)
def test_inside_a_model(name: str) -> None:
    """Names have the path of the layer ahead, and torch finds every key used."""
    state, meant = checkpoint(name)
    model = torch.nn.ModuleDict({"up": torch.nn.Sequential(Fp8Linear(K, N)), "norm": torch.nn.LayerNorm(8)})
    whole = {f"up.0.{key}": tensor for key, tensor in state.items()}
    whole |= {f"norm.{key}": tensor for key, tensor in torch.nn.LayerNorm(8).state_dict().items()}
    assert str(model.load_state_dict(whole)) == "<All keys matched successfully>"
    assert torch.equal(model["up"][0].dequantized_weight(), meant)
    without = {key: tensor for key, tensor in whole.items() if key != f"up.0.{name}"}
    found = model.load_state_dict(without, strict=False)
    assert found.missing_keys == ["up.0.weight_scale_inv"]
    found = model.load_state_dict({"up.0.input_scale": torch.ones(1)}, strict=False)
    assert found.unexpected_keys == ["up.0.input_scale"]
    for name in ("input_scale", "activation_scale"):
        with pytest.raises(RuntimeError) as refused:
            model.load_state_dict(whole | {f"up.0.{name}": torch.ones(1)})
        assert f'"up.0.{name} (a static scale of inputs, which get a scale for each 128' in str(refused.value)


@pytest.mark.parametrize("dtype", [torch.int8, E4M3], ids=str)
def test_zero_points_of_zero(dtype: torch.dtype) -> None:
    """compressed-tensors may write them for symmetric weights; others are refused, also with strict=False."""
    state, meant = checkpoint("weight_scale")
    zeros = {"weight_zero_point": torch.zeros(2, 3).to(dtype)}
    layer = Fp8Linear(K, N)
    assert str(layer.load_state_dict(state | zeros)) == "<All keys matched successfully>"
    assert torch.equal(layer.dequantized_weight(), meant)
    single = {f"{expert}.{name}.weight": torch.ones(128, 128) for expert in range(2) for name in EACH}
    zeros = {f"{name}_zero_point": torch.zeros(1, 1).to(dtype) for name in single}
    experts = Fp8Experts(2, 128, 128)
    assert str(experts.load_state_dict(single | zeros)) == "<All keys matched successfully>"
    zeros["1.up_proj.weight_zero_point"] = torch.ones(1, 1).to(dtype)
    with pytest.raises(InputError, match=r"^1\.up_proj\.weight_zero_point has numbers other than 0"):
        experts.load_state_dict(single | zeros, strict=False)


def test_one_scale_for_all() -> None:
    state, _ = checkpoint("weight_scale")
    for one in (torch.tensor(0.5), torch.tensor([0.5]), torch.tensor([[0.5]], dtype=BF16)):
        layer = Fp8Linear(K, N)
        layer.load_state_dict(state | {"weight_scale": one})
        assert torch.equal(layer.dequantized_weight(), state["weight"].float() / 2)
    small = Fp8Linear(16, 16)
    small.load_state_dict(small.state_dict() | {"weight_scale_inv": torch.tensor(0.5)})
    small.load_state_dict(small.state_dict())


def test_tensors_that_begin_anywhere() -> None:
    """As those of a file do, which a load that assigns them keeps where they are."""
    state, meant = checkpoint("weight_scale_inv")
    memory = torch.empty(N * K + 8, dtype=torch.uint8)[8:]
    state["weight"] = memory.view(N, K).copy_(state["weight"].view(torch.uint8)).view(E4M3)
    layer = Fp8Linear(K, N)
    layer.load_state_dict(state, assign=True)
    assert torch.equal(layer.dequantized_weight(), meant)
    assert layer(torch.ones(1, K)).shape == (1, N)


def test_shards() -> None:
    """A weight and its scales may come from different files."""
    state, meant = checkpoint()
    layer = Fp8Linear(K, N)
    for key, tensor in state.items():
        layer.load_state_dict({key: tensor}, strict=False)
    assert torch.equal(layer.dequantized_weight(), meant)


@pytest.mark.parametrize("dtype", [torch.float32, BF16, torch.float16], ids=str)
def test_a_checkpoint_without_fp8(dtype: torch.dtype) -> None:
    """The weight of a torch.nn.Linear is cast when it is loaded."""
    torch.manual_seed(0)
    linear = torch.nn.Linear(K, N, dtype=dtype)
    layer, expected = Fp8Linear(K, N, dtype=dtype), Fp8Linear.from_linear(linear)
    layer.load_state_dict(linear.state_dict())
    assert torch.equal(layer.dequantized_weight(), expected.dequantized_weight())
    trained = Fp8Linear(K, N, dtype=dtype, trainable=True)
    trained.load_state_dict(linear.state_dict())
    assert torch.equal(trained.weight, linear.weight)
    linear.load_state_dict(trained.state_dict())  # a trained layer's is one that torch's takes


@pytest.mark.parametrize("name", NAMES)
def test_training_goes_on_from_fp8(name: str) -> None:
    """A layer that is trained takes what the FP8 weight stands for; cast again, it is the same."""
    state, meant = checkpoint(name)
    layer = Fp8Linear(K, N, trainable=True)
    layer.load_state_dict(state)
    assert torch.equal(layer.weight, meant) and layer.weight.requires_grad
    half = Fp8Linear(K, N, trainable=True, dtype=BF16)
    half.load_state_dict(state, assign=True)
    assert half.weight.dtype == BF16
    torch.testing.assert_close(layer.dequantized_weight(), meant, rtol=1e-6, atol=0)


@pytest.mark.parametrize("trainable", [False, True])
def test_safetensors(trainable: bool, tmp_path: Path) -> None:
    """Through a file and back, the bits are the same."""
    safetensors = pytest.importorskip("safetensors.torch")
    torch.manual_seed(0)
    layer = Fp8Linear(K, N, trainable=trainable, dtype=BF16)
    safetensors.save_file(layer.state_dict(), tmp_path / "model.safetensors")
    state = safetensors.load_file(tmp_path / "model.safetensors")
    assert sorted(state) == ["bias", "weight", *([] if trainable else ["weight_scale_inv"])]
    assert state["weight"].dtype == (BF16 if trainable else E4M3)
    other = Fp8Linear(K, N, trainable=trainable, dtype=BF16)
    other.load_state_dict(state)
    x = torch.randn(3, K, dtype=BF16)
    assert torch.equal(other(x), layer(x))
    safetensors.save_model(layer, tmp_path / "whole.safetensors")
    other = Fp8Linear(K, N, trainable=trainable, dtype=BF16)
    safetensors.load_model(other, tmp_path / "whole.safetensors")
    assert torch.equal(other(x), layer(x))


@pytest.mark.parametrize("dtype", SCALE_TYPES, ids=str)
def test_safetensors_of_others(dtype: torch.dtype, tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    state, meant = checkpoint("weight_scale_inv", dtype)
    safetensors.save_file(state, tmp_path / "model.safetensors")
    layer = Fp8Linear(K, N)
    layer.load_state_dict(safetensors.load_file(tmp_path / "model.safetensors"))
    assert torch.equal(layer.dequantized_weight(), meant)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"weight_scale_inv": torch.ones(N, 1)},
            "weight_scale_inv has shape [136, 1]; [2, 3], one for each 128 x 128 of the weight, or a single "
            "one is needed",
        ),
        (
            {"weight_scale_inv": torch.ones(2, 3, dtype=torch.float16)},
            "weight_scale_inv is torch.float16; float32, bfloat16 or float8_e8m0fnu is needed",
        ),
        (
            {"weight_scale": torch.ones(2, 3)},
            "weight_scale_inv and weight_scale are both given; one is needed",
        ),
        ({"weight": torch.ones(N, K + 16).to(E4M3)}, "weight has shape [136, 288]; [136, 272] is needed"),
        (
            {"weight": torch.ones(N, K, dtype=torch.int8)},
            "weight is torch.int8; float8_e4m3fn, float32, bfloat16 or float16 is needed",
        ),
        (
            {"weight": torch.ones(N, K).to(torch.float8_e5m2)},
            "weight is torch.float8_e5m2; float8_e4m3fn, float32, bfloat16 or float16 is needed",
        ),
        (
            {"weight": torch.ones(N, K, dtype=BF16)},
            "weight is torch.bfloat16 and weight_scale_inv is given; float8_e4m3fn is needed",
        ),
        (
            {"weight_zero_point": torch.tensor([[0.0, 0, 0], [0, 0, -1]]).to(E4M3)},
            "weight_zero_point has numbers other than 0, as asymmetric quantisation has; symmetric "
            "quantisation is needed, since FP8 with a scale for each 128 x 128 has no zero points",
        ),
    ],
)
@pytest.mark.parametrize("trainable", [False, True])
def test_refusals(trainable: bool, changed: dict[str, torch.Tensor], message: str) -> None:
    state, _ = checkpoint()
    layer = Fp8Linear(K, N, trainable=trainable)
    before = layer.dequantized_weight()
    with pytest.raises(InputError) as refused:
        layer.load_state_dict(state | changed)
    assert str(refused.value) == message
    assert torch.equal(layer.dequantized_weight(), before), "nothing was written"


def test_refusals_of_a_trained_layer() -> None:
    state, _ = checkpoint()
    layer = torch.nn.Sequential(Fp8Linear(K, N, trainable=True))
    with pytest.raises(InputError) as refused:
        layer.load_state_dict({"0.weight": state["weight"]}, strict=False)
    assert str(refused.value) == "0.weight is float8_e4m3fn without scales; 0.weight_scale_inv is needed"


@pytest.mark.parametrize("use_ue8m0", [False, True])
@pytest.mark.parametrize("name", ["weight_scale_inv", "weight_scale"])
def test_checkpoint_of_single_experts(name: str, use_ue8m0: bool) -> None:
    """DeepSeek-V3's and compressed-tensors' names; scales of power of two also as E8M0."""
    hidden, intermediate = 144, 128
    torch.manual_seed(0)
    state, expected = {}, Fp8Experts(2, hidden, intermediate)
    shapes = {"gate_proj": (128, 144), "up_proj": (128, 144), "down_proj": (144, 128)}
    for expert in range(2):
        for projection, shape in shapes.items():
            codes, scales = weights.quantized(torch.randn(shape), use_ue8m0)
            state[f"mlp.experts.{expert}.{projection}.weight"] = codes
            stored = scales.to(torch.float8_e8m0fnu) if use_ue8m0 else scales
            state[f"mlp.experts.{expert}.{projection}.{name}"] = stored
            part = {"gate_proj": slice(128), "up_proj": slice(128, 256), "down_proj": slice(None)}[projection]
            whole = expected.down_proj if projection == "down_proj" else expected.gate_up_proj
            of_whole = (
                expected.down_proj_scale_inv if projection == "down_proj" else expected.gate_up_proj_scale_inv
            )
            whole[expert, part] = codes
            block = {"gate_proj": slice(1), "up_proj": slice(1, 2), "down_proj": slice(None)}[projection]
            of_whole[expert, block] = scales
    layer = Fp8Experts(2, hidden, intermediate)
    model = torch.nn.ModuleDict({"mlp": torch.nn.ModuleDict({"experts": layer})})
    assert str(model.load_state_dict(state)) == "<All keys matched successfully>"
    for one in ("gate_up_proj", "down_proj"):
        assert torch.equal(getattr(layer, one).view(torch.uint8), getattr(expected, one).view(torch.uint8))
        assert torch.equal(getattr(layer, f"{one}_scale_inv"), getattr(expected, f"{one}_scale_inv"))
    missing = dict(state)
    del missing[f"mlp.experts.1.up_proj.{name}"]
    with pytest.raises(RuntimeError, match=r'Missing key.*"mlp.experts.1.up_proj.weight_scale_inv"\.'):
        model.load_state_dict(missing)


def test_checkpoint_without_fp8() -> None:
    """Weights of single experts, or of all together, in BF16; here gate and up do not end at a block."""
    _, (first, second) = experts_of()
    expected = Fp8Experts.from_weights(first, second)
    single = {}
    for expert in range(EXPERTS):
        single[f"{expert}.gate_proj.weight"] = first[expert, :INTERMEDIATE]
        single[f"{expert}.up_proj.weight"] = first[expert, INTERMEDIATE:]
        single[f"{expert}.down_proj.weight"] = second[expert]
    for state in (single, {"gate_up_proj": first, "down_proj": second}):
        layer = Fp8Experts(EXPERTS, HIDDEN, INTERMEDIATE)
        layer.load_state_dict(state)
        given = tokens(5)
        assert torch.equal(layer(*given), expected(*given))
    in_fp8 = {}
    for name, weight in single.items():
        in_fp8[name], in_fp8[f"{name}_scale_inv"] = weights.quantized(weight, False)
    with pytest.raises(InputError) as refused:
        layer.load_state_dict(in_fp8)
    assert str(refused.value) == (
        "intermediate_size is 80; a multiple of 128 is needed to join gate_proj and up_proj in FP8, of which "
        "a block would have two scales"
    )


def test_checkpoint_of_its_own(tmp_path: Path) -> None:
    layer, _ = experts_of()
    given = tokens(5)
    other = Fp8Experts(EXPERTS, HIDDEN, INTERMEDIATE, device="meta")
    other.load_state_dict(layer.state_dict(), assign=True)
    assert torch.equal(other(*given), layer(*given))
    safetensors = pytest.importorskip("safetensors.torch")
    safetensors.save_file(layer.state_dict(), tmp_path / "experts.safetensors")
    other = Fp8Experts(EXPERTS, HIDDEN, INTERMEDIATE)
    other.load_state_dict(safetensors.load_file(tmp_path / "experts.safetensors"))
    assert torch.equal(other(*given), layer(*given))
