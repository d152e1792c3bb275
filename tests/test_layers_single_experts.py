"""Checkpoints with three layers for each expert, in one file or several, and the memory that it takes."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from gemm_ladder.errors import InputError
from gemm_ladder.layers import Fp8Experts, route, weights
from torch.utils._python_dispatch import TorchDispatchMode

EXPERTS, HIDDEN, INTERMEDIATE = 6, 144, 128
BF16 = torch.bfloat16
SHAPES = {
    "gate_proj": (INTERMEDIATE, HIDDEN),
    "up_proj": (INTERMEDIATE, HIDDEN),
    "down_proj": (HIDDEN, INTERMEDIATE),
}
State = dict[str, torch.Tensor]


def checkpoint(change: Callable[[str], str] = str) -> State:
    """Every expert's layers in FP8."""
    torch.manual_seed(0)
    state = {}
    for expert in range(EXPERTS):
        for name, shape in SHAPES.items():
            key = change(f"{expert}.{name}.weight")
            state[key], state[key + "_scale_inv"] = weights.quantized(torch.randn(shape) / 12, False)
    return state


def shards(state: State) -> list[State]:
    """Three parts, that end within an expert and between a weight and its scales."""
    keys, cuts = list(state), (0, 7, 20, len(state))
    return [{key: state[key] for key in keys[begin:end]} for begin, end in itertools.pairwise(cuts)]


def given() -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(9, EXPERTS, generator=generator)
    return torch.randn(9, HIDDEN, generator=generator), *route(logits, EXPERTS)


@pytest.mark.parametrize("on_meta", [False, True])
def test_shards(on_meta: bool) -> None:
    """One after the other they are the whole, whatever lies in which; until then results are NaN where there
    was nothing before."""
    state = checkpoint()
    whole = Fp8Experts(EXPERTS, HIDDEN, INTERMEDIATE)
    assert str(whole.load_state_dict(state)) == "<All keys matched successfully>"
    layer = Fp8Experts(EXPERTS, HIDDEN, INTERMEDIATE, device="meta" if on_meta else None)
    missing = set(state)
    for part in shards(state):
        found = layer.load_state_dict(part, strict=False, assign=on_meta)
        assert set(found.missing_keys) == state.keys() - part.keys() and not found.unexpected_keys
        missing &= set(found.missing_keys)
        out = layer(*given())
        assert not on_meta or out.isnan().all() == bool(missing)
    assert not missing and torch.equal(out, whole(*given()))


def test_assigned_at_once() -> None:
    """A whole checkpoint that is assigned makes new tensors, and leaves the old ones alone."""
    layer, state = Fp8Experts(EXPERTS, HIDDEN, INTERMEDIATE), checkpoint()
    before = {name: (tensor, tensor.detach().clone()) for name, tensor in layer.named_parameters()}
    layer.load_state_dict(state, assign=True)
    for name, (tensor, copied) in before.items():
        assert getattr(layer, name) is not tensor and not getattr(layer, name).requires_grad
        assert torch.equal(tensor.view(torch.uint8), copied.view(torch.uint8))
    other = Fp8Experts(EXPERTS, HIDDEN, INTERMEDIATE)
    other.load_state_dict(state)
    assert torch.equal(other(*given()), layer(*given()))


class Largest(TorchDispatchMode):
    """The bytes of the largest tensor that an operator makes."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        known = {one.untyped_storage().data_ptr() for one in args if isinstance(one, torch.Tensor)}
        found = function(*args, **(kwargs or {}))
        if not isinstance(found, torch.Tensor) or found.is_meta:
            return found
        if found.untyped_storage().data_ptr() not in known:
            self.bytes = max(self.bytes, found.untyped_storage().nbytes())
        return found


@pytest.mark.parametrize("in_fp8", [True, False])
def test_memory(in_fp8: bool) -> None:
    """Nothing larger than one expert is made beside the layer and the checkpoint."""
    state = (
        checkpoint()
        if in_fp8
        else {
            f"{expert}.{name}.weight": torch.randn(shape, dtype=BF16)
            for expert in range(EXPERTS)
            for name, shape in SHAPES.items()
        }
    )
    layer = Fp8Experts(EXPERTS, HIDDEN, INTERMEDIATE)
    with Largest() as largest:
        layer.load_state_dict(state)
    # A weight in FP8 is copied as it is. One in BF16 is cast, on a CPU in whole blocks of FP32.
    assert largest.bytes <= (0 if in_fp8 else 4 * 256 * 128), largest.bytes
    with Largest() as largest:
        layer.load_state_dict(state, assign=True)
    assert largest.bytes == EXPERTS * 2 * INTERMEDIATE * HIDDEN, "that of the layer itself"


def test_types_may_differ() -> None:
    """Experts that are not in FP8 yet beside others that are."""
    state, expected = checkpoint(), Fp8Experts(EXPERTS, HIDDEN, INTERMEDIATE)
    expected.load_state_dict(state)
    for key in ("2.up_proj.weight", "4.down_proj.weight"):
        codes, scales = state[key], state.pop(f"{key}_scale_inv")
        state[key] = weights.dequantized(codes, scales)
    layer = Fp8Experts(EXPERTS, HIDDEN, INTERMEDIATE)
    layer.load_state_dict(state)
    assert torch.equal(layer(*given()), expected(*given()))


def test_refusals_write_nothing() -> None:
    layer, state = Fp8Experts(EXPERTS, HIDDEN, INTERMEDIATE), checkpoint()
    before = layer(*given())
    shape = [INTERMEDIATE, HIDDEN]
    for changed, message in (
        ({"3.up_proj.weight": torch.ones(9, 9)}, f"3.up_proj.weight has shape [9, 9]; {shape} is needed"),
        (
            {"5.gate_proj.weight": torch.ones(shape)},
            "5.gate_proj.weight is torch.float32 and 5.gate_proj.weight_scale_inv is given; float8_e4m3fn is "
            "needed",
        ),
    ):
        with pytest.raises(InputError) as refused:
            layer.load_state_dict(state | changed)
        assert str(refused.value) == message and torch.equal(layer(*given()), before)
    with pytest.raises(RuntimeError, match=r'Unexpected key.*"6.gate_proj.weight"\.'):
        layer.load_state_dict(state | {"6.gate_proj.weight": state["5.gate_proj.weight"]})


def test_rows_of_both_in_a_block() -> None:
    """Where gate and up meet inside a block of 128 x 128 they are cast together, so both are needed."""
    layer = Fp8Experts(1, 32, 80)
    state = {
        "0.gate_proj.weight": torch.randn(80, 32),
        "0.up_proj.weight": torch.randn(80, 32),
        "0.down_proj.weight": torch.randn(32, 80),
    }
    layer.load_state_dict(state)
    expected = Fp8Experts.from_weights(
        torch.cat([state["0.gate_proj.weight"], state["0.up_proj.weight"]])[None],
        state["0.down_proj.weight"][None],
    )
    for name, tensor in expected.state_dict().items():
        assert torch.equal(layer.state_dict()[name].view(torch.uint8), tensor.view(torch.uint8)), name
    del state["0.gate_proj.weight"]
    with pytest.raises(InputError) as refused:
        layer.load_state_dict(state)
    assert str(refused.value) == (
        "intermediate_size is 80; a multiple of 128 is needed to load 0.up_proj.weight without gate_proj, "
        "since a block has rows of both"
    )


def together() -> tuple[State, State]:
    """A layer's own state, and the same as transformers writes it: codes one by one, scales together."""
    layer = Fp8Experts(EXPERTS, HIDDEN, INTERMEDIATE)
    layer.load_state_dict(checkpoint())
    own = layer.state_dict()
    written = {name: tensor for name, tensor in own.items() if name.endswith("_scale_inv")}
    for expert in range(EXPERTS):
        gate, up = own["gate_up_proj"][expert].chunk(2)
        codes = {"gate_proj": gate, "up_proj": up, "down_proj": own["down_proj"][expert]}
        written |= {f"{expert}.{name}.weight": one for name, one in codes.items()}
    return own, written


@pytest.mark.parametrize("assign", [False, True])
def test_scales_that_are_together(assign: bool) -> None:
    """They are the file's, not what the layer had; in one file with the codes, or in another."""
    own, written = together()
    scales = {name: written[name] for name in written if name.endswith("_scale_inv")}
    codes = {name: written[name] for name in written if name not in scales}
    for parts in ((written,), (codes, scales), (scales, codes)):
        layer = Fp8Experts(EXPERTS, HIDDEN, INTERMEDIATE)
        for part in parts:
            found = layer.load_state_dict(dict(part), strict=False, assign=assign)
            assert not found.unexpected_keys and bool(found.missing_keys) == (len(parts) > 1)
        for name, tensor in layer.state_dict().items():
            assert torch.equal(tensor.float(), own[name].float()), name


def test_scales_that_are_given_twice() -> None:
    _, written = together()
    first = "0.gate_proj.weight"
    of_one = {first + "_scale_inv": torch.ones(1, 2)}
    for change, trainable, message in (
        (of_one, False, f"gate_up_proj_scale_inv is given, and {first} is .* with scales of its own"),
        ({first: written[first].bfloat16()}, False, f"{first} is torch.bfloat16; float8_e4m3fn without"),
        ({}, True, f"the scales of {first} are in gate_up_proj_scale_inv; {first}_scale_inv is needed"),
        ({"down_proj": torch.ones(EXPERTS, HIDDEN, INTERMEDIATE)}, False, "down_proj is given, and layers"),
    ):
        layer = Fp8Experts(EXPERTS, HIDDEN, INTERMEDIATE, trainable=trainable)
        before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
        with pytest.raises(InputError, match=message):
            layer.load_state_dict(written | change)
        assert all(torch.equal(before[name].float(), one.float()) for name, one in layer.state_dict().items())
