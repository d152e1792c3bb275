"""Fp8Experts: its results beside a model of the quantised experts and beside plain floating-point ones, in
every layout; how tokens are placed. On the CPU, and on a GPU if there is one."""

from __future__ import annotations

import copy
from pathlib import Path

import gemm_ladder as gl
import numpy as np
import pytest
import torch
from families import DEVICE
from gemm_ladder.errors import InputError
from gemm_ladder.layers import Fp8Experts, Fp8Linear, route, routing, weights
from gemm_ladder.layers.routing import LAYOUTS
from gemm_ladder.ref import activations, fp8, gemm, metrics

BF16 = torch.bfloat16
EXPERTS, HIDDEN, INTERMEDIATE = 5, 144, 80
# A sum of a few BF16 numbers, rounded to BF16: 2^-9 for the last rounding, and as much for the weights'.
ROW_ERROR = {"cpu": 2**-8, "cuda": 1.5e-2}


@pytest.fixture
def device(machine: str) -> str:
    return DEVICE[machine]


def experts_of(
    device: str = "cpu", **options: object
) -> tuple[Fp8Experts, tuple[torch.Tensor, torch.Tensor]]:
    """Experts, and the BF16 weights that they were made of."""
    torch.manual_seed(0)
    given = (
        torch.randn(EXPERTS, 2 * INTERMEDIATE, HIDDEN, dtype=BF16) / 12,
        torch.randn(EXPERTS, HIDDEN, INTERMEDIATE, dtype=BF16) / 9,
    )
    given = tuple(one.to(device) for one in given)
    return Fp8Experts.from_weights(*given, **options), given


def tokens(count: int, top_k: int = 2, device: str = "cpu", seed: int = 0) -> tuple[torch.Tensor, ...]:
    """Tokens, the experts of each, and their weights."""
    generator = torch.Generator().manual_seed(seed + count)
    x = torch.randn(count, HIDDEN, generator=generator).to(BF16)
    chosen, factors = route(torch.randn(count, EXPERTS, generator=generator), top_k)
    return x.to(device), chosen.to(device), factors.to(device)


def bf16(x: np.ndarray) -> np.ndarray:
    return gemm.to_bf16(x).astype(np.float64)


def quantised(layer: Fp8Experts, x: torch.Tensor, chosen: torch.Tensor, factors: torch.Tensor) -> np.ndarray:
    """float64 [tokens, HIDDEN]: the layer in float64, with its casts and roundings, choice by choice."""
    first, second = (
        weights.dequantized(getattr(layer, name), getattr(layer, f"{name}_scale_inv")).double().cpu().numpy()
        for name in ("gate_up_proj", "down_proj")
    )

    def cast(rows: np.ndarray) -> np.ndarray:
        return fp8.dequantize_lhs(*fp8.per_token_cast_to_fp8(rows.astype(np.float32), layer.use_ue8m0))

    rows = cast(x.float().cpu().numpy())
    factors = bf16(factors.double().cpu().numpy())
    out = np.zeros(rows.shape)
    for token, row in enumerate(chosen.tolist()):
        for choice, expert in enumerate(row):
            if 0 <= expert < EXPERTS:
                inner = bf16(rows[token] @ first[expert].T).astype(np.float32)[np.newaxis]
                inner = activations.silu_and_mul(inner[:, :INTERMEDIATE], inner[:, INTERMEDIATE:])
                out[token] += factors[token, choice] * bf16(cast(inner)[0] @ second[expert].T)
    return out


def plain(
    given: tuple[torch.Tensor, torch.Tensor], x: torch.Tensor, chosen: torch.Tensor, factors: torch.Tensor
) -> np.ndarray:
    """float64 [tokens, HIDDEN]: experts without FP8."""
    first, second = (one.double().cpu() for one in given)
    out = torch.zeros(x.shape, dtype=torch.float64)
    for token, row in enumerate(chosen.tolist()):
        for choice, expert in enumerate(row):
            gate, up = (first[expert] @ x[token].double().cpu()).chunk(2)
            inner = torch.nn.functional.silu(gate) * up
            out[token] += factors[token, choice].double().cpu() * (second[expert] @ inner)
    return out.numpy()


def check_same(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal on a CPU; on a GPU another number of rows may get another kernel, with sums in another order."""
    if found.is_cuda:
        assert metrics.max_row_error(numbers(found), numbers(expected)) < ROW_ERROR["cuda"]
    else:
        assert torch.equal(found, expected)


def numbers(found: torch.Tensor) -> np.ndarray:
    return found.double().cpu().numpy()


@pytest.mark.parametrize("use_ue8m0", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_numbers(layout: routing.Layout, use_ue8m0: bool, device: str) -> None:
    """Row by row those of the quantised experts, for one token and for more than a block has."""
    layer, _ = experts_of(device, layout=layout, use_ue8m0=use_ue8m0)
    for count, top_k in ((1, 1), (7, 3), (200, 2)):
        given = tokens(count, top_k, device)
        found = layer(*given)
        assert found.dtype == BF16 and found.shape == given[0].shape
        assert metrics.max_row_error(numbers(found), quantised(layer, *given)) < ROW_ERROR[device]
        assert torch.equal(layer(*given), found)


def test_beside_plain_experts(device: str) -> None:
    """A product of normal numbers in FP8 is off by 3.7 %. The first product's errors pass SiLU-and-multiply
    twice, as gate and as factor, the second adds its own: measured, 6.1 % of a layer's result."""
    layer, given = experts_of(device)
    call = tokens(100, 2, device)
    assert 0.05 < metrics.relative_error(numbers(layer(*call)), plain(given, *call)) < 0.075


def test_layouts_agree(device: str) -> None:
    call = tokens(60, 2, device)
    found = [experts_of(device, layout=layout)[0](*call) for layout in LAYOUTS]
    for one in found[1:]:
        check_same(one, found[0])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_choices_that_are_no_expert(layout: routing.Layout, device: str) -> None:
    """They add nothing: what several GPUs with some experts each compute adds up to the whole."""
    layer, given = experts_of(device, layout=layout)
    x, chosen, factors = tokens(20, 3, device)
    cut, whole = 2, layer(x, chosen, factors)
    parts = []
    for begin, end in ((0, cut), (cut, EXPERTS)):
        of_this = copy.deepcopy(given)
        part = Fp8Experts.from_weights(*(one[begin:end] for one in of_this), layout=layout)
        parts.append(part(x, chosen - begin, factors))
    assert (
        metrics.max_row_error(numbers(parts[0]) + numbers(parts[1]), numbers(whole)) < 3 * ROW_ERROR[device]
    )
    nowhere = torch.full_like(chosen, -1)
    assert not layer(x, nowhere, factors).any()
    nowhere[3:5, 1] = EXPERTS - 1
    assert layer(x, nowhere, factors).any(1).nonzero().flatten().tolist() == [3, 4]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_all_tokens_to_one_expert(layout: routing.Layout, device: str) -> None:
    layer, _ = experts_of(device, layout=layout)
    x, chosen, factors = tokens(140, 1, device)
    given = (x, torch.full_like(chosen, 3), factors)
    assert metrics.max_row_error(numbers(layer(*given)), quantised(layer, *given)) < ROW_ERROR[device]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_nothing_but_its_own_rows(layout: routing.Layout, device: str) -> None:
    """A token of NaN or infinities leaves the others as they are."""
    layer, _ = experts_of(device, layout=layout)
    x, chosen, factors = tokens(20, 2, device)
    expected = layer(x, chosen, factors)
    x[3], x[7, 5] = torch.nan, torch.inf
    found = layer(x, chosen, factors)
    rest = [token for token in range(20) if token not in (3, 7)]
    assert torch.equal(found[rest], expected[rest])
    assert found[3].isnan().all() and found[7].isnan().all()


def test_an_expert_twice_stays_inside(device: str) -> None:
    """The masked layout has one row for each token and expert: what does not fit is left out, and overwrites
    nothing."""
    layer, _ = experts_of(device, layout="masked")
    x, chosen, factors = tokens(6, 2, device)
    chosen[:], factors[:] = 2, 0.5
    found = layer(x, chosen, factors)
    single = layer(x, chosen[:, :1], torch.ones_like(factors[:, :1]))
    check_same(found[:3], single[:3])
    assert not found[3:].any()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_shapes_and_types(layout: routing.Layout, device: str) -> None:
    layer, _ = experts_of(device, layout=layout)
    x, chosen, factors = tokens(12, 2, device)
    expected = layer(x, chosen, factors)
    assert torch.equal(
        layer(x.view(3, 4, -1), chosen.view(3, 4, 2).int(), factors.view(3, 4, 2).double()),
        expected.view(3, 4, -1),
    )
    assert torch.equal(layer(x[2], chosen[2], factors[2]), layer(x[2:3], chosen[2:3], factors[2:3])[0])
    for dtype in (torch.float32, torch.float16):
        found = layer(x.to(dtype), chosen, factors)
        assert found.dtype == dtype and torch.equal(found, expected.to(dtype))
    assert layer(x[:0], chosen[:0], factors[:0]).shape == (0, HIDDEN)
    assert not layer(x, chosen[:, :0], factors[:, :0]).any()


def test_auto(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The layout with fewer rows. With 5 experts: 5 for each token, or 127 of padding for each expert."""
    used = []
    place = routing.place
    monkeypatch.setattr(routing, "place", lambda *given: used.append(given[2]) or place(*given))
    layer, _ = experts_of(device)
    for count in (1, 100, 300):
        layer(*tokens(count, 2, device))
    assert used == ["masked", "masked", "psum"]
    assert routing.layout_for(64, 8, 256) == "masked" and routing.layout_for(4096, 8, 256) == "psum"


@pytest.mark.parametrize("alignment", [64, 128, 256])
@pytest.mark.parametrize("layout", ["contiguous", "psum"])
def test_alignment(layout: routing.Layout, alignment: int, device: str, settings_restored: None) -> None:
    gl.set_mk_alignment_for_contiguous_layout(alignment)
    layer, _ = experts_of(device, layout=layout)
    given = tokens(100, 2, device)
    assert metrics.max_row_error(numbers(layer(*given)), quantised(layer, *given)) < ROW_ERROR[device]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_places(layout: routing.Layout) -> None:
    """Written down by hand: five choices, one of which is no expert."""
    chosen = torch.tensor([[2, 0], [0, -1], [2, 3]])
    placed = routing.place(chosen, 4, layout)
    if layout == "masked":
        assert placed.size == 12 and placed.rows.tolist() == [2, 0, 2, 1]
        assert placed.places.tolist() == [[6, 0], [1, 12], [7, 9]]
        assert placed.tokens().tolist() == [0, 1, -1, -1, -1, -1, 0, 2, -1, 2, -1, -1]
        return
    assert placed.size == routing.most_rows(6, 4) == 512
    assert placed.places.tolist() == [[128, 0], [1, 512], [129, 256]]
    held = placed.tokens()
    assert held[[0, 1, 128, 129, 256]].tolist() == [0, 1, 0, 2, 2] and (held == -1).sum() == 512 - 5
    if layout == "psum":
        assert placed.rows.tolist() == [2, 128, 130, 257]
    else:
        assert placed.rows[[0, 1, 128, 129, 256]].tolist() == [0, 0, 2, 2, 3]
        assert (placed.rows == -1).sum() == 512 - 5


def test_most_rows_is_enough_and_needed() -> None:
    """The worst choices need exactly so many rows."""
    for choices, experts in ((1, 8), (8, 8), (300, 8), (300, 2)):
        spread = torch.arange(choices) % experts
        for chosen in (spread, torch.zeros_like(spread), spread.clamp(max=1)):
            placed = routing.place(chosen[:, None], experts, "psum")
            assert placed.places.max() < placed.size
    assert routing.most_rows(1, 8) == 128 and routing.most_rows(8, 8) == 1024


def test_route() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0, -1.0], [0.0, 0.0, 5.0, 1.0]])
    chosen, factors = route(logits, 2)
    scores = logits.softmax(-1)
    assert chosen.tolist() == [[1, 2], [2, 3]]
    torch.testing.assert_close(factors.sum(-1), torch.ones(2))
    torch.testing.assert_close(factors[0, 0] / factors[0, 1], scores[0, 1] / scores[0, 2])
    chosen, factors = route(logits.to(BF16), 2, scoring="sigmoid", normalize=False, scale=2.5)
    assert chosen.tolist() == [[1, 2], [2, 3]] and factors.dtype == torch.float32
    torch.testing.assert_close(factors[0], 2.5 * torch.sigmoid(torch.tensor([3.0, 2.0])))
    chosen, factors = route(logits, 1, bias=torch.tensor([9.0, 0, 0, 0]), normalize=False)
    assert chosen.tolist() == [[0], [0]]  # chosen by its bias, weighted without
    torch.testing.assert_close(factors[:, 0], scores[:, 0])
    for call, message in (
        (lambda: route(logits, 5), "top_k is 5; 1 to 4, the number of experts, is needed"),
        (lambda: route(logits, 0), "top_k is 0; 1 to 4, the number of experts, is needed"),
        (lambda: route(logits, 2, scoring="tanh"), "scoring is 'tanh'; 'softmax' or 'sigmoid' is needed"),
        (
            lambda: route(logits.int(), 2),
            "logits is torch.int32 [2, 4]; a tensor [..., experts] of a floating-point type is needed",
        ),
        (
            lambda: route(3, 2),
            "logits is of type int; a tensor [..., experts] of a floating-point type is needed",
        ),
    ):
        with pytest.raises(InputError) as refused:
            call()
        assert str(refused.value) == message


@pytest.mark.parametrize("layout", ["auto", *LAYOUTS])
def test_compiled(layout: str, device: str) -> None:
    layer, _ = experts_of(device, layout=layout)
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for count in (4, 9):
        given = tokens(count, 2, device)
        with torch.no_grad():
            assert torch.equal(compiled(*given), layer(*given))


@pytest.mark.gpu
@pytest.mark.parametrize("layout", LAYOUTS)
def test_cuda_graph(layout: routing.Layout) -> None:
    """Routing, casts, products and sums are captured together, and replayed with other tokens and experts."""
    layer, _ = experts_of("cuda", layout=layout)
    torch.manual_seed(1)
    router = torch.randn(HIDDEN, EXPERTS, device="cuda", dtype=BF16)
    x, *_ = tokens(50, 2, "cuda")
    with torch.no_grad():
        layer(x, *route(x @ router, 2))
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = layer(x, *route(x @ router, 2))
        for seed in (1, 2):
            x.copy_(tokens(50, 2, "cuda", seed)[0])
            graph.replay()
            assert torch.equal(out, layer(x, *route(x @ router, 2)))


@pytest.mark.gpu
@pytest.mark.parametrize("layout", LAYOUTS)
def test_nothing_waits(layout: routing.Layout) -> None:
    layer, _ = experts_of("cuda", layout=layout)
    given = tokens(50, 2, "cuda")
    layer(*given)
    torch.cuda.set_sync_debug_mode("error")
    try:
        layer(*given)
    finally:
        torch.cuda.set_sync_debug_mode("default")


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
    with pytest.raises(InputError, match=r"mlp.experts.1.up_proj.weight, or the scales of it, is missing"):
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


def test_as_a_layer_of_torch() -> None:
    """Copies, `half()`, text, and what a router's gradient is told."""
    layer, _ = experts_of()
    given = tokens(5)
    expected = layer(*given)
    assert torch.equal(copy.deepcopy(layer)(*given), expected)
    assert torch.equal(layer.to(BF16)(*given), expected) and layer.down_proj_scale_inv.dtype == torch.float32
    assert repr(layer) == (
        "Fp8Experts(num_experts=5, hidden_size=144, intermediate_size=80, weights=float8_e4m3fn, layout=auto)"
    )
    x, chosen, factors = given
    for name, changed in (
        ("x", (x.clone().requires_grad_(), chosen, factors)),
        ("expert_weights", (x, chosen, factors.clone().requires_grad_())),
    ):
        with pytest.raises(InputError, match=f"{name} requires grad, and experts in FP8 have no gradient"):
            layer(*changed)
        with torch.no_grad():
            assert torch.equal(layer(*changed), expected)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Fp8Experts(0, 16, 16), "num_experts is 0; a positive multiple of 1 is needed"),
        (lambda: Fp8Experts(2, 24, 16), "hidden_size is 24; a positive multiple of 16 is needed"),
        (lambda: Fp8Experts(2, 16, 8), "intermediate_size is 8; a positive multiple of 16 is needed"),
        (
            lambda: Fp8Experts(2, 16, 16, layout="dense"),
            "layout is 'dense'; one of auto, contiguous, masked, psum is needed",
        ),
        (
            lambda: Fp8Experts.from_weights(torch.ones(2, 32, 16), torch.ones(2, 16, 32)),
            "down_proj has shape [2, 16, 32]; [2, 16, 16], for gate_up_proj's sizes, is needed",
        ),
        (
            lambda: Fp8Experts.from_weights(torch.ones(2, 48, 16), torch.ones(2, 16, 24)),
            "gate_up_proj has shape [2, 48, 16]; [experts, 2 intermediate, hidden] with intermediate and "
            "hidden positive multiples of 16 is needed",
        ),
        (
            lambda: Fp8Experts.from_weights(torch.ones(32, 16), torch.ones(2, 16, 16)),
            "gate_up_proj is torch.float32 [32, 16]; float32, bfloat16 or float16 with 3 dimensions is "
            "needed",
        ),
        (
            lambda: experts_of()[0](tokens(3)[0], tokens(3)[1], [1]),
            "expert_weights is of type list; a torch.Tensor is needed",
        ),
        (
            lambda: experts_of()[0](*tokens(3)[:2], tokens(4)[2]),
            "experts has shape [3, 2] and expert_weights [4, 2]; [3, 'top_k'], as x has them, is needed of "
            "both",
        ),
        (
            lambda: experts_of()[0](tokens(3)[0], tokens(3)[2], tokens(3)[2]),
            "experts is torch.float32 and expert_weights torch.float32; int32 or int64, and a floating-point "
            "type, are needed",
        ),
        (
            lambda: experts_of()[0](torch.ones(3, 16), *tokens(3)[1:]),
            "x is torch.float32 [3, 16]; float32, bfloat16 or float16 [..., 144] is needed",
        ),
        (
            lambda: experts_of()[0](tokens(3)[0].to("meta"), *tokens(3)[1:]),
            "x is on meta and the weights on cpu; one device is needed for both",
        ),
    ],
)
def test_refusals(call, message: str) -> None:
    with pytest.raises(InputError) as refused:
        call()
    assert str(refused.value) == message


def test_one_expert_is_a_gated_layer(device: str) -> None:
    """With a single expert and a weight of 1 it is two Fp8Linear, but for how SiLU is rounded."""
    _, (first, second) = experts_of(device)
    single = Fp8Experts.from_weights(first[:1], second[:1])
    linears = []
    for weight in (first[0], second[0]):
        linear = torch.nn.Linear(*weight.shape[::-1], bias=False, device=device, dtype=BF16)
        linear.weight.data.copy_(weight)
        linears.append(Fp8Linear.from_linear(linear))
    x, *_ = tokens(9, 2, device)
    one = torch.ones(9, 1, device=device)
    with torch.no_grad():
        gate, up = linears[0](x).float().chunk(2, -1)
        expected = linears[1](torch.nn.functional.silu(gate) * up)
        found = single(x, one.long() * 0, one)
    assert metrics.max_row_error(numbers(found), numbers(expected)) < 1e-2
