"""Measuring FP8 in layers and a model: the layers, what is checked and recorded, what is drawn and said."""

from __future__ import annotations

import copy
import functools
import types
from collections.abc import Iterator
from pathlib import Path

import gemm_ladder
import launched
import pytest
import torch
from gemm_ladder.arguments import ceil_div
from gemm_ladder.cli import main
from gemm_ladder.errors import InputError
from gemm_ladder.figures import draw, measured, readme, sheet
from gemm_ladder.figures import model as figure
from gemm_ladder.measure import (
    decoder,
    minilm,
    model,
    model_cases,
    model_times,
    model_warming,
    records,
    session,
    timing,
)
from gemm_ladder.measure.arithmetic import IN_BF16, Fused

CPU = torch.device("cpu")
SMALL = {
    "Qwen3-8B": {
        **{"hidden_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64},
        "intermediate_size": 384,
    },
    "DeepSeek-V3": {
        **{"hidden_size": 256, "num_attention_heads": 4, "q_lora_rank": 128, "kv_lora_rank": 128},
        **{"qk_nope_head_dim": 64, "qk_rope_head_dim": 32, "v_head_dim": 64},
        **{"n_routed_experts": 16, "moe_intermediate_size": 128, "n_shared_experts": 1},
    },
}
# DeepGEMM as far as it is called, computed by this package.
LIBRARY = types.SimpleNamespace(
    **{
        name: getattr(gemm_ladder, name)
        for name in ("fp8_gemm_nt", "m_grouped_fp8_gemm_nt_masked", "m_grouped_fp8_gemm_nt_contiguous")
    }
)


def whole_tiles(lhs: tuple, rhs: tuple, out: torch.Tensor, rows: torch.Tensor, expected: int) -> None:
    """As DeepGEMM: what lies behind a group's rows is written, too, to the end of a tile of 128 rows, which
    may be the next group's."""
    gemm_ladder.m_grouped_fp8_gemm_nt_masked(lhs, rhs, out, rows, expected)
    flat, room = out.view(-1, out.shape[-1]), out.shape[1]
    for group, count in enumerate(rows.tolist()):
        flat[group * room + count : group * room + ceil_div(count, 128) * 128] = torch.nan


WHOLE_TILES = types.SimpleNamespace(**vars(LIBRARY) | {"m_grouped_fp8_gemm_nt_masked": whole_tiles})


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture(scope="module", params=SMALL)
def part(request: pytest.FixtureRequest) -> model_cases.Decoder:
    return model_cases.Decoder(request.param, CPU, LIBRARY, SMALL[request.param])


def test_decoding_gives_what_prefill_gives(part: model_cases.Decoder) -> None:
    """Attention in FP32: token by token, each with the keys and values, or latents, of those before it."""
    layer = copy.deepcopy(part.layer).float()
    layer.converted_()
    x = torch.randn(5, 256, generator=torch.Generator().manual_seed(1))
    expected = layer.attention(x, None, IN_BF16, decoder.ignore)
    cache = tuple(one.float() for one in layer.cache(1, 0))
    for token in range(len(x)):
        cache = tuple(torch.cat([one, one.new_zeros(*one.shape[:-2], 1, one.shape[-1])], -2) for one in cache)
        found = layer.attention(x[token : token + 1], cache, IN_BF16, decoder.ignore)
        assert torch.allclose(found[0], expected[token], rtol=1e-4, atol=1e-4), token
    assert not torch.allclose(expected[0], expected[1], atol=0.1)


def test_every_arithmetic_is_near_bf16(part: model_cases.Decoder) -> None:
    """DeepGEMM's stand-in has the same bits as ours; what is measured is what was converted."""
    names = [layer.name for layer in part.report.kept]
    assert names == (["router"] if part.name == "DeepSeek-V3" else [])
    assert {type(one).__name__ for one in part.in_fp8.children()} <= {"Fp8Linear", "Fp8Experts", "Linear"}
    cases = list(part.cases({}, prefill=(8,), decode=(2,), context=8))
    assert [(case.phase, case.tokens, case.context) for case in cases] == [
        ("prefill", 8, 0),
        ("decode", 2, 8),
    ]
    for case in cases:
        result: session.Measured = session.Measured()
        errors = model.check(case, result)
        assert not result.wrong and not result.missing and [*errors] == [*part.made]
        assert errors["bf16"] == 0 and all(0.02 < errors[name] < 0.12 for name in ("fp8", "fp8_fused"))
        assert torch.equal(case.calls["fp8_fused"](), case.calls["deep_gemm"]())
        marks: list[str] = []
        case.marked["fp8_fused"](marks.append)
        assert {*marks} == {"elementwise", "products", "attention"} | (
            {"routing", "experts"} if part.name == "DeepSeek-V3" else set()
        )


def test_what_is_launched() -> None:
    """The lists of kernels have those beside the products, and no others. (MiniLM's linears are converted as
    those of the decoders.)"""
    with launched.noted() as found:
        for name, config in SMALL.items():
            part = model_cases.Decoder(name, CPU, None, config)
            for case in part.cases({}, prefill=(8,), decode=(2,), context=8):
                for call in case.calls.values():
                    call()
    assert found == {*model_cases.CASTS, *model_cases.OWN}


def test_the_librarys_experts_get_every_layout() -> None:
    """Contiguous and masked, too, which few and many tokens have."""
    part = model_cases.Decoder("DeepSeek-V3", CPU, None, SMALL["DeepSeek-V3"])
    experts, x = part.in_fp8.experts, torch.randn(4, 256).to(decoder.BF16)
    chosen = torch.arange(8).view(4, 2)
    for layout in ("psum", "contiguous", "masked"):
        experts.layout = layout
        arithmetic = Fused(WHOLE_TILES)
        found = arithmetic.experts(experts, x, chosen, torch.ones(4, 2))
        assert torch.equal(found, experts(x, chosen, torch.ones(4, 2))) and found.abs().max() > 0


def test_deep_gemms_experts_are_called_ahead() -> None:
    """With every size; what is refused ends nothing."""
    called: list[int] = []

    class Library:
        def m_grouped_fp8_gemm_nt_masked(self, lhs: tuple, rhs: tuple, out: torch.Tensor, *more: object):
            called.append(lhs[0].shape[1])
            if len(called) == 1:
                raise RuntimeError("refused")

    sizes = {"num_experts": 16, "hidden_size": 256, "intermediate_size": 128}
    model_warming.run(Library(), [3, 5], CPU, **sizes)
    assert called == [128, 128, 128], "room for whole tiles"
    assert sum(model_warming.SIZES, ()) == (*model_cases.PREFILL, *model_cases.DECODE)


def test_what_is_wrong_is_named() -> None:
    x = torch.zeros(4, 8)
    one = torch.ones(4, 8)

    def failing() -> torch.Tensor:
        raise RuntimeError("no kernel")

    calls = {
        "bf16": lambda: one,
        "fp8": lambda: one * 1.5,
        "fp8_fused": lambda: one / 0,
        "fp8_compiled": failing,
        "deep_gemm": lambda: -one,
    }
    case, result = model_cases.Case("M", "prefill", 4, 0, calls, {}, x), session.Measured()
    model.check(case, result)
    assert [*case.calls] == ["bf16"]
    assert result.wrong == [
        "fp8 at M prefill 4: its relative error is 0.5; at most 0.15 is right",
        "fp8_fused at M prefill 4: its relative error is inf; at most 0.15 is right",
    ]
    assert [(one["impl"], one["reason"][:9]) for one in result.missing] == [
        ("fp8_compiled", "no kernel"),
        ("deep_gemm", "deep_gemm"),
    ]


def test_kernels_are_counted_where_they_belong() -> None:
    spin = f"void {timing.MARKER}(long)"
    kernels = [
        *(("fill", 9.0), (spin, 1.0), ("rms_norm", 2.0), (spin, 1.0), ("fp8_cast_rms_norm<1>", 3.0)),
        *(("fp8_gemm", 5.0), (spin, 1.0), ("cat", 1.0), ("flash_fwd", 4.0), (spin, 1.0), ("fill", 9.0)),
        *((spin, 1.0), (spin, 1.0), ("fp8_cast_per_token", 7.0), (spin, 1.0)),
    ]
    marks = ["", "products", "attention", "-", "", "experts", "-"]
    first, second = model_times.by_part(kernels, marks)
    assert {part: us for part, us in first.items() if us} == {
        "elementwise": 5,
        "products": 5,
        "attention": 5,
    }
    assert {part: us for part, us in second.items() if us} == {"experts": 7}
    with pytest.raises(timing.ProfilerError, match="reported 7 markers; 8 are needed"):
        model_times.by_part(kernels, [*marks, "-"])


def test_the_time_of_a_call() -> None:
    assert 0 < model_times.as_called(lambda: torch.ones(3), CPU)() < 1e5


def test_implementations_take_turns() -> None:
    """Each once in every round, and not always after the same one."""
    order: list[str] = []

    def measure(name: str) -> float:
        order.append(name)
        return len(order)

    found = model_times.in_turns({name: functools.partial(measure, name) for name in "abc"})
    rounds = ["".join(order[begin : begin + 3]) for begin in range(0, len(order), 3)]
    assert len(rounds) == model_times.ROUNDS and {*map("".join, map(sorted, rounds))} == {"abc"}
    assert len({*rounds}) > 2
    assert found == {name: [1 + i for i, one in enumerate(order) if one == name] for name in "abc"}


def meta() -> dict[str, object]:
    found = dict.fromkeys(measured.META_FIELDS, "1") | {"gpu": "GPU", "sources": "abcdef" * 10 + "0123"}
    return found | {"deep_gemm": "2.8.1", "weights": "trained", "cosine": 0.996, "cosine_short": 0.985}


def test_a_run_goes_on_with_the_next_model(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, part: model_cases.Decoder
) -> None:
    """What was measured of a model is kept, with its parts; another run's file, or no such file, is not."""
    monkeypatch.setattr(model_times, "as_called", lambda call, device: lambda: 2.0)
    monkeypatch.setattr(model_times, "in_graph", lambda call, device: lambda: 1.0)
    monkeypatch.setattr(model_times, "parts", lambda runs: [{"products": 0.5} for _ in runs])
    cases = part.cases
    monkeypatch.setattr(part, "cases", lambda compiled: cases(compiled, (3,), (), 8), raising=False)
    result, path = session.Measured(meta()), tmp_path / "model.json"
    model.measure(part, {}, CPU, result)
    assert len(result.rows) == 2 * len(part.made)
    in_graph = [row for row in result.rows if row["how"] == "graph"]
    assert all(row["parts"] == {"products": 0.5} and row["us"] == 1 for row in in_graph)
    assert all(row["tokens_s"] == 1_500_000 for row in result.rows if row["how"] == "calls")
    model.save(result, path)
    assert model.resumed(path, meta()).rows == result.rows
    assert model.resumed(path, meta() | {"sources": "others"}).rows == []
    path.write_text("{}")
    with pytest.raises(InputError, match="is not a file that this command wrote"):
        model.resumed(path, meta())


def made_up() -> dict[str, object]:
    """A record with every model, size and implementation."""
    impls = dict(zip(figure.LABELS, (100.0, 90.0, 70.0, 60.0, 55.0, 58.0), strict=True))
    shares = dict(zip(figure.PARTS, (0.35, 0.3, 0.1, 0.15, 0.05), strict=True))
    rows = []
    for name in model_cases.MODELS:
        small = name == minilm.NAME
        sizes = [("encode", tokens, 0) for tokens in model_cases.ENCODED] if small else [
            *(("prefill", tokens, 0) for tokens in model_cases.PREFILL),
            *(("decode", tokens, model_cases.CONTEXT) for tokens in model_cases.DECODE),
        ]  # fmt: skip
        for phase, tokens, context in sizes:
            case = model_cases.Case(name, phase, tokens, context, {})
            for impl, us in impls.items():
                dense_only = impl.endswith("compiled") and name == "DeepSeek-V3"
                if dense_only or (small and impl in ("fp8_fused", "deep_gemm")):
                    continue
                us *= 0.9 + tokens**0.5 / 10
                us *= 3 / (1 + tokens**0.15) if small and impl.startswith("fp8") else 1
                for how in figure.HOWS:
                    one = model.row(case, impl, how, [us, 1.1 * us, 0.9 * us], 0.07)
                    if how == "graph" and not impl.endswith("compiled"):
                        dense = {"experts", "routing"} if name != "DeepSeek-V3" else set()
                        one["parts"] = {part: us * of for part, of in shares.items() if part not in dense}
                    rows.append(one)
    return {"schema": measured.SCHEMA, "meta": meta(), "rows": rows}


def test_the_record_is_drawn(tmp_path: Path) -> None:
    data, path = made_up(), tmp_path / "model.json"
    records.save(data, path)
    assert figure.load(path) == data and draw.recorded(tmp_path) == {"model": data}
    head, first, *rest = figure.table(figure.load(path), "graph")
    assert len(rest) + 1 == 7 + 7 + 7 and len(first) == len(head)
    assert first[:4] == ["Qwen3-8B", "prefill", "512", "316"] and first[-4:-2] == ["1.64", "1.05"]
    assert figure.parts_table(data)[1][3:] == ["BF16", "111", "-", "31.6", "47.4", "-"]
    for picture in (figure.picture(data), figure.lines(data)):
        for text, size in sheet.shown(picture, 130).items():
            assert size >= sheet.SMALLEST - 1e-6, text
    text = readme.figures_readme("<!-- table-model:begin -->\n<!-- table-model:end -->", {"model": data})
    assert "(layers.png)" in text and "(minilm.png)" in text and "FP8 pays at every size" in text


def test_what_the_times_mean() -> None:
    sentences = figure.summary(made_up())
    said = "In a CUDA graph, Qwen3-8B, decode: FP8 pays at every size, it is 1.64 times as fast as the faster"
    assert any(line.startswith(said) for line in sentences)
    assert any(line.strip() == "With DeepGEMM's products it takes 1.05 times as long." for line in sentences)
    (small,) = (line for line in sentences if line.startswith("Called from Python, all-MiniLM"))
    assert "FP8 pays at 8, 32, 128, 512, 2048 and 8192 tokens" in small and "not at 1 (1.00)" in small
    assert figure.verdict({1: 0.5, 8: 1.01}).startswith("FP8 pays at no size, it is 0.50 to 1.01 times")
    assert figure.verdict({1: 0.5, 8: 1.5}) == (
        "FP8 pays at 8 tokens (1.50 times as fast as the faster BF16), not at 1 (0.50)."
    )
    (only_one,) = (line for line in sentences if line.startswith("In a CUDA graph, DeepSeek-V3, decode"))
    assert only_one.endswith("times as fast as BF16.")
    assert "cosine of 0.9960 or more" in sentences[-1] and "of 0.9850 or more" in sentences[-1]


def test_every_product_is_compiled_ahead() -> None:
    """And the sizes are those of the models that `everywhere` measures."""
    for name in model_cases.DECODERS:
        linears = {(one.n, one.k) for one in next(m for m in decoder.MODELS if m.name == name).linears}
        cells = list(model_cases.products(name))
        assert {cell.shape[1:] for cell in cells} <= linears
        assert {cell.shape.m for cell in cells} == {*model_cases.PREFILL, *model_cases.DECODE}
    layer = decoder.make("DeepSeek-V3", "meta")
    assert layer.experts.gate_up_proj.shape == (256, 4096, 7168)
    assert sum(one.numel() for one in layer.experts.parameters()) == 3 * 256 * 2048 * 7168


def test_choices(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert model.chosen_models("all") == ["Qwen3-8B", "DeepSeek-V3", "all-MiniLM-L6-v2"]
    assert model.chosen_models("DeepSeek-V3, Qwen3-8B") == ["DeepSeek-V3", "Qwen3-8B"]
    with pytest.raises(InputError, match="'GPT' is no model; all, or some of Qwen3-8B, DeepSeek-V3, all-M"):
        model.chosen_models("GPT")
    monkeypatch.setattr(session, "find_gpu", lambda: (None, "no GPU"))
    assert main(["model"]) == 2
    expected = "gemm_ladder: found no GPU; what is measured is time, and a Hopper GPU is needed\n"
    assert capsys.readouterr().err == expected


@pytest.mark.gpu
def test_a_measurement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of layers of few numbers, without peers, with torch.compile for the dense one."""
    device, _ = session.find_gpu()
    assert device is not None
    for name, config in SMALL.items():
        one = model_cases.Decoder(name, device, None, config)
        cases = one.cases
        monkeypatch.setattr(one, "cases", lambda made, cases=cases: cases(made, (64,), (1, 4), 128))
        result: session.Measured = session.Measured()
        compiled = model.ready(one, True, float("inf"), result)
        assert [*compiled] == (["bf16_compiled", "fp8_compiled"] if name == "Qwen3-8B" else [])
        model.measure(one, compiled, device, result)
        assert not result.wrong and not result.missing
        assert len(result.rows) == 3 * 2 * (3 + len(compiled))
        for row in result.rows:
            assert row["us"] > 0
            assert bool(row["parts"]) == (row["how"] == "graph" and "compiled" not in row["impl"])
