"""Fp8Experts: its results beside a model of the quantised experts and beside plain floating-point ones, in
every layout; how tokens are placed. On the CPU, and on a GPU if there is one."""

from __future__ import annotations

import copy

import gemm_ladder as gl
import numpy as np
import pytest
import torch
from gemm_ladder import settings
from gemm_ladder.errors import InputError
from gemm_ladder.lab import agreement
from gemm_ladder.layers import Fp8Experts, Fp8Linear, route, routing
from gemm_ladder.layers.routing import LAYOUTS
from gemm_ladder.ref import activations, fp8, gemm, metrics, tensor_core
from layer_cases import EXPERTS, HIDDEN, INTERMEDIATE, experts_of, tokens

BF16 = torch.bfloat16
# A sum of a few BF16 numbers, rounded to BF16: 2^-9 for the last rounding, and as much for the weights'.
ROW_ERROR = {"cpu": 2**-8, "cuda": 1.5e-2}


def bf16(x: np.ndarray) -> np.ndarray:
    return gemm.to_bf16(x).astype(np.float64)


def quantised(layer: Fp8Experts, x: torch.Tensor, chosen: torch.Tensor, factors: torch.Tensor) -> np.ndarray:
    """float64 [tokens, HIDDEN]: the layer with its casts and roundings, expert by expert.

    The products are exact for a layer on a CPU, and a tensor core's for one on a GPU. Their sums differ by
    little, but where the cast between the products rounds one to another code, that is off by an eighth.
    """
    product = tensor_core_product if x.is_cuda else exact_product

    def times(rows: np.ndarray, name: str, expert: int) -> np.ndarray:
        codes = getattr(layer, name)[expert].view(torch.uint8).cpu().numpy().view(fp8.E4M3)
        scales = getattr(layer, f"{name}_scale_inv")[expert].float().cpu().numpy()
        return product(*fp8.per_token_cast_to_fp8(rows, layer.use_ue8m0), codes, scales)

    rows, factors = x.float().cpu().numpy(), bf16(factors.double().cpu().numpy())
    out = np.zeros(rows.shape)
    for expert in range(EXPERTS):
        at, choices = np.nonzero(chosen.cpu().numpy() == expert)
        if len(at) == 0:
            continue
        inner = times(rows[at], "gate_up_proj", expert)
        inner = activations.silu_and_mul(inner[:, :INTERMEDIATE], inner[:, INTERMEDIATE:])
        np.add.at(out, at, factors[at, choices, None] * times(inner, "down_proj", expert))
    return out


def exact_product(a: np.ndarray, sfa: np.ndarray, b: np.ndarray, sfb: np.ndarray) -> np.ndarray:
    return bf16(gemm.dense(a, sfa, b, sfb)).astype(np.float32)


def tensor_core_product(a: np.ndarray, sfa: np.ndarray, b: np.ndarray, sfb: np.ndarray) -> np.ndarray:
    return agreement.values(tensor_core.gemm(a, sfa, b, sfb))


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
    assert not layer(x, nowhere, torch.full_like(factors, torch.nan)).any()
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


def test_an_expert_twice(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The masked layout has one row for each token and expert. What does not fit is refused where the choices
    are looked at; elsewhere it is left out, and overwrites nothing."""
    layer, _ = experts_of(device, layout="masked")
    x, chosen, factors = tokens(6, 2, device)
    chosen[:], factors[:] = 2, 0.5
    if device == "cuda":
        found = layer(x, chosen, factors)
        single = layer(x, chosen[:, :1], torch.ones_like(factors[:, :1]))
        check_same(found[:3], single[:3])
        assert not found[3:].any()
        monkeypatch.setattr(settings, "check_contents", True)
    chosen[0, 1] = -1
    with pytest.raises(InputError, match="experts has 2 twice for token 1; experts that differ are needed"):
        layer(x, chosen, factors)


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


def test_as_a_layer_of_torch() -> None:
    """Copies, `half()`, text."""
    layer, _ = experts_of()
    given = tokens(5)
    expected = layer(*given)
    assert torch.equal(copy.deepcopy(layer)(*given), expected)
    assert torch.equal(layer.to(BF16)(*given), expected) and layer.down_proj_scale_inv.dtype == torch.float32
    assert repr(layer) == (
        "Fp8Experts(num_experts=5, hidden_size=144, intermediate_size=80, weights=float8_e4m3fn, layout=auto)"
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Fp8Experts(0, 16, 16), "num_experts is 0; 1 or more is needed"),
        (lambda: Fp8Experts(-1, 16, 16), "num_experts is -1; 1 or more is needed"),
        (lambda: Fp8Experts(True, 16, 16), "num_experts is of type bool; an int is needed"),
        (lambda: Fp8Experts(2, 16, 16, use_ue8m0="no"), "use_ue8m0 is of type str; a bool is needed"),
        (lambda: Fp8Experts(2, 16, 16, trainable="no"), "trainable is of type str; a bool is needed"),
        (lambda: experts_of(trainable=0), "trainable is of type int; a bool is needed"),
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
            lambda: Fp8Experts.from_weights(torch.ones(0, 32, 16), torch.ones(0, 16, 16)),
            "gate_up_proj has shape [0, 32, 16], of 0 experts; 1 or more is needed",
        ),
        (
            lambda: Fp8Experts.from_weights(torch.ones(2, 32, 16), torch.ones(2, 16, 16, device="meta")),
            "gate_up_proj is on cpu and down_proj on meta; one device is needed for both",
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
            "experts has shape [3, 2] and expert_weights [4, 2]; [3, top_k], as x has them, is needed of "
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


def test_another_layout() -> None:
    """It may be set, to one that there is: then a compiled call has it, too."""
    layer, _ = experts_of()
    given = tokens(9)
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        expected = layer(*given)
        for layout in ("auto", *LAYOUTS):
            layer.layout = layout
            assert copy.deepcopy(layer).layout == layout and f"layout={layout}" in repr(layer)
            assert torch.equal(layer(*given), expected) and torch.equal(compiled(*given), expected)
            with pytest.raises(InputError) as refused:
                layer.layout = "foo"
            assert str(refused.value) == "layout is 'foo'; one of auto, contiguous, masked, psum is needed"
            assert layer.layout == layout


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


def test_autocast_leaves_the_sums(device: str) -> None:
    """Of BF16, whatever type autocast has: in FP16 they could be infinite."""
    layer, _ = experts_of(device)
    call = tokens(20, 2, device)
    expected = layer(*call)
    with torch.autocast(device, dtype=torch.float16):
        assert torch.equal(layer(*call), expected)
