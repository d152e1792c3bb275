"""Fp8Linear as a module of torch: its types, copies, text, and what it refuses."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from gemm_ladder.casts import functions
from gemm_ladder.errors import InputError
from gemm_ladder.layers import Fp8Experts, Fp8Linear, frozen_parameters, route, weights
from gemm_ladder.ref import metrics
from layer_cases import layer_of, normal

BF16 = torch.bfloat16


def test_type_of_a_model(device: str) -> None:
    """`half()` and the like change the bias, but no FP8 weight and none of its scales."""
    layer, _ = layer_of(136, 144, device, bias=True)
    x, codes, scales = normal(3, 144, device=device), layer.weight.clone(), layer.weight_scale_inv.clone()
    expected = layer(x)
    for change, dtype in (
        (lambda: layer.to(BF16), BF16),
        (layer.half, torch.float16),
        (layer.float, torch.float32),
        (lambda: layer.to(device=device, dtype=BF16), BF16),
    ):
        assert change() is layer and layer.bias.dtype == dtype
        assert torch.equal(layer.weight.view(torch.uint8), codes.view(torch.uint8))
        assert torch.equal(layer.weight_scale_inv, scales)
    layer.float()
    torch.testing.assert_close(layer(x), expected, rtol=1e-2, atol=1e-2)  # the bias was in BF16
    trained, _ = layer_of(136, 144, device, trainable=True)
    assert trained.half().weight.dtype == torch.float16


def test_copies(device: str) -> None:
    layer, _ = layer_of(136, 144, device, bias=True)
    x = normal(3, 144, device=device)
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    for copied in (copy.deepcopy(layer), torch.load(file, weights_only=False)):
        assert torch.equal(copied(x), layer(x))


def test_quantize(device: str) -> None:
    """After training: the same results from half the memory or less."""
    layer, linear = layer_of(136, 144, device, trainable=True)
    assert layer.weight is linear.weight and layer.trainable
    x = normal(3, 144, device=device)
    expected, weight = layer(x), layer.dequantized_weight()
    assert torch.equal(layer.quantize_()(x), expected) and not layer.trainable
    assert torch.equal(layer.dequantized_weight(), weight)
    assert layer.weight.dtype == torch.float8_e4m3fn and linear.weight.dtype == torch.float32
    error = metrics.relative_error(weight.cpu().numpy(), linear.weight.detach().cpu().numpy())
    assert 0.02 < error < 0.03


def test_repr() -> None:
    layer, _ = layer_of(136, 144, bias=True)
    assert repr(layer) == (
        "Fp8Linear(in_features=144, out_features=136, bias=True, weight=float8_e4m3fn, scales=2x2)"
    )
    assert repr(layer_of(16, 32, dtype=BF16, trainable=True, use_ue8m0=True)[0]) == (
        "Fp8Linear(in_features=32, out_features=16, bias=False, weight=bfloat16, cast to float8_e4m3fn in "
        "every call, use_ue8m0=True)"
    )


def test_begins_like_torchs() -> None:
    """Of its own, a layer begins with the numbers that torch.nn.Linear begins with."""
    torch.manual_seed(0)
    linear = torch.nn.Linear(144, 136)
    torch.manual_seed(0)
    layer = Fp8Linear(144, 136)
    expected = Fp8Linear.from_linear(linear)
    assert torch.equal(layer.weight.view(torch.uint8), expected.weight.view(torch.uint8))
    assert torch.equal(layer.bias, linear.bias)
    assert Fp8Linear(144, 136, bias=False, dtype=BF16, trainable=True).weight.dtype == BF16


def test_a_weight_that_is_computed() -> None:
    """As weight_norm makes one. It can be cast, but has no memory of its own that could be trained."""
    linear = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(32, 16))
    expected = weights.dequantized(*weights.quantized(linear.weight, False))
    assert torch.equal(Fp8Linear.from_linear(linear).dequantized_weight(), expected)
    with pytest.raises(InputError, match="the weight is computed from other tensors; a parameter is needed"):
        Fp8Linear.from_linear(linear, trainable=True)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Fp8Linear(100, 16), "in_features is 100; a positive multiple of 16 is needed"),
        (lambda: Fp8Linear(96, 10), "out_features is 10; a positive multiple of 8 is needed"),
        (lambda: Fp8Linear(0, 8), "in_features is 0; a positive multiple of 16 is needed"),
        (lambda: Fp8Linear(-16, 8), "in_features is -16; a positive multiple of 16 is needed"),
        (lambda: Fp8Linear(16, 2**31), "out_features is 2147483648; less than 2^31 is needed"),
        (lambda: Fp8Linear("a", 8), "in_features is of type str; an int is needed"),
        (lambda: Fp8Linear(True, 8), "in_features is of type bool; an int is needed"),
        (lambda: Fp8Linear(16, 8, use_ue8m0="no"), "use_ue8m0 is of type str; a bool is needed"),
        (lambda: Fp8Linear(16, 8, trainable="no"), "trainable is of type str; a bool is needed"),
        (
            lambda: Fp8Linear.from_linear(torch.nn.Linear(16, 8), trainable=1),
            "trainable is of type int; a bool is needed",
        ),
        (
            lambda: Fp8Linear.from_linear(torch.nn.Linear(16, 8), use_ue8m0=None),
            "use_ue8m0 is of type NoneType; a bool is needed",
        ),
        (
            lambda: Fp8Linear(16, 8, dtype=torch.float64),
            "dtype is torch.float64; float32, bfloat16 or float16 is needed",
        ),
        (
            lambda: Fp8Linear(16, 8, dtype=torch.float8_e4m3fn),
            "dtype is torch.float8_e4m3fn; float32, bfloat16 or float16 is needed",
        ),
        (
            lambda: Fp8Linear(16, 8, trainable=True).double()(torch.ones(1, 16)),
            "the weight is torch.float64; float32, bfloat16 or float16 is needed to be cast to FP8",
        ),
        (
            lambda: Fp8Linear.from_linear(torch.nn.Conv1d(16, 16, 1)),
            "linear is of type Conv1d; a torch.nn.Linear is needed",
        ),
        (lambda: Fp8Linear(16, 8)(3), "x is of type int; a torch.Tensor is needed"),
        (
            lambda: Fp8Linear(16, 8)(torch.ones(2, 16, dtype=torch.int32)),
            "x is torch.int32; float32, bfloat16 or float16 is needed",
        ),
        (lambda: Fp8Linear(16, 8)(torch.ones(16, 2)), "x has shape [16, 2]; [..., 16] is needed"),
        (lambda: Fp8Linear(16, 8)(torch.ones(())), "x has shape []; [..., 16] is needed"),
        (
            lambda: Fp8Linear(16, 8)(torch.ones(2, 16).to_sparse()),
            "x has layout torch.sparse_coo; a dense tensor (torch.strided) is needed",
        ),
        (
            lambda: Fp8Linear(16, 8)(torch.ones(2, 16, device="meta")),
            "x is on meta and the weight on cpu; one device is needed for both",
        ),
    ],
)
def test_refusals(call, message: str) -> None:
    with pytest.raises(InputError) as refused:
        call()
    assert str(refused.value) == message


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage")
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged], ids=str)
def test_nested_tensors(layout: torch.layout) -> None:
    """Neither kind of torch's has a shape with rows of x."""
    nested = torch.nested.nested_tensor([torch.ones(2, 16), torch.ones(3, 16)], layout=layout)
    chosen, factors = torch.zeros(2, 1, dtype=torch.int64), torch.ones(2, 1)
    calls = {
        "x": (
            lambda: Fp8Linear(16, 8)(nested),
            lambda: Fp8Linear(16, 8, trainable=True)(nested),
            lambda: Fp8Experts(2, 16, 16)(nested, chosen, factors),
        ),
        "expert_weights": (lambda: Fp8Experts(2, 16, 16)(torch.ones(2, 16), chosen, nested),),
        "down_proj": (lambda: Fp8Experts.from_weights(torch.ones(2, 32, 16), nested),),
    }
    for name, of_name in calls.items():
        for call in of_name:
            with pytest.raises(InputError) as refused:
                call()
            assert str(refused.value) == (
                f"{name} is a nested tensor, of several shapes; one of a single shape is needed"
            )


def test_a_refusal_draws_no_numbers() -> None:
    """Options are looked at before the weights are made, so that seeds mean the same afterwards."""
    state = torch.get_rng_state()
    for make in (
        lambda: Fp8Linear(16, 8, trainable="no"),
        lambda: Fp8Experts(2, 16, 16, use_ue8m0="no"),
        lambda: Fp8Experts(2, 16, 16, layout="dense"),
    ):
        with pytest.raises(InputError):
            make()
        assert torch.equal(torch.get_rng_state(), state)


def test_memory_can_be_resized() -> None:
    """FSDP lets go of a weight's memory after a pass; NumPy, which computes on a CPU, does not forbid it."""
    layer, _ = layer_of(24, 32, bias=True)
    experts = Fp8Experts(2, 32, 16)
    x, norm = torch.randn(3, 32, requires_grad=True), torch.nn.Parameter(torch.ones(32))
    layer(x).sum().backward()
    with torch.no_grad():
        experts(x, *route(x[:, :2], 1))
        functions.rms_norm_per_token_group_quant_fp8(x, norm, 1e-6)
    for tensor in (*layer.parameters(), *experts.parameters(), x, norm):
        storage = tensor.untyped_storage()
        size = storage.nbytes()
        storage.resize_(0)
        storage.resize_(size)


@pytest.mark.parametrize("trainable", [False, True])
def test_shapes_alone(trainable: bool) -> None:
    """On the meta device a call says what it would return."""
    with torch.device("meta"):
        x = torch.empty(2, 3, 32, dtype=BF16)
        layer, experts = Fp8Linear(32, 16, trainable=trainable), Fp8Experts(4, 32, 16)
        chosen = route(torch.empty(2, 3, 4), 2)
    with torch.no_grad():
        found = [layer(x), experts(x, *chosen)]
    assert [(one.shape, one.dtype, one.is_meta) for one in (*found, layer(x))] == [
        ((2, 3, size), BF16, True) for size in (16, 32, 16)
    ]


def test_frozen_parameters() -> None:
    shared = Fp8Linear(32, 16)
    parts = {"one": shared, "two": Fp8Linear(32, 16, trainable=True), "three": shared}
    model = torch.nn.ModuleDict(parts | {"experts": Fp8Experts(2, 32, 16), "norm": torch.nn.LayerNorm(16)})
    found = frozen_parameters(model)
    experts = (f"experts.{name}" for name in dict(model.experts.named_parameters()))
    assert list(found) == ["one.weight", "one.weight_scale_inv", *experts]
    assert found["one.weight"] is shared.weight and frozen_parameters(parts["two"]) == {}
    assert list(frozen_parameters(shared)) == ["weight", "weight_scale_inv"]
    with pytest.raises(InputError, match=r"model is of type list; a torch.nn.Module is needed"):
        frozen_parameters([model])


def test_a_weight_that_was_converted() -> None:
    """By what does not know that its numbers mean nothing without their scales, or set by somebody."""
    layer, experts = layer_of(24, 32)[0], Fp8Experts(2, 32, 16)
    for module, name, call in (
        (layer, "weight", lambda: layer(normal(3, 32))),
        (experts, "down_proj", lambda: experts(normal(3, 32), *route(normal(3, 2), 1))),
    ):
        what = "the weight" if name == "weight" else name
        for dtype in (BF16, torch.float32):
            changed = torch.nn.Parameter(getattr(module, name).to(dtype), requires_grad=False)
            setattr(module, name, changed)
            with pytest.raises(InputError) as refused:
                call()
            assert str(refused.value) == (
                f"{what} is {dtype} and the layer has scales for one in FP8; float8_e4m3fn is needed (FSDP "
                "with a param_dtype, for example, converts it: gemm_ladder.layers.frozen_parameters says how "
                "to keep it)"
            )
