"""The linears of public models, the grid that is made of them, and the products of it that are measured."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import pytest
from gemm_ladder.errors import InputError
from gemm_ladder.measure import grid, models
from gemm_ladder.measure.models import CUTS, MODELS, Linear
from gemm_ladder.measure.shapes import Cell, Shape, masked_cell

OF = {model.name: {linear.name: linear for linear in model.linears} for model in MODELS}


def sizes(model: str) -> dict[str, tuple[int, int]]:
    return {name: (linear.n, linear.k) for name, linear in OF[model].items()}


# ------------------------------------------------------------------------------------------- the models


def test_models_have_sources() -> None:
    assert len(MODELS) >= 8 and len({model.name for model in MODELS}) == len(MODELS)
    assert all(model.source.count("/") == 1 for model in MODELS)
    assert all(one["source"].startswith("https://huggingface.co/") for one in grid.described())
    mixtures = {model.name for model in MODELS if any(one.experts > 1 for one in model.linears)}
    assert 3 <= len(mixtures) < len(MODELS)


def test_sizes_that_are_known() -> None:
    assert sizes("DeepSeek-V3") == {
        "q_a, kv_a": (2112, 7168),
        "q_b": (24576, 1536),
        "kv_b": (32768, 512),
        "o": (7168, 16384),
        "gate_up": (36864, 7168),
        "down": (7168, 18432),
        "shared expert gate_up": (4096, 7168),
        "shared expert down": (7168, 2048),
        "expert gate_up": (4096, 7168),
        "expert down": (7168, 2048),
    }
    for model, known in {
        "Llama-3.1-8B": ((6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336)),
        "Llama-3.1-70B": ((10240, 8192), (8192, 8192), (57344, 8192), (8192, 28672)),
        "Llama-3.1-405B": ((18432, 16384), (16384, 16384), (106496, 16384), (16384, 53248)),
        "Qwen3-32B": ((10240, 5120), (5120, 8192), (51200, 5120), (5120, 25600)),
        "Qwen3-235B-A22B": ((9216, 4096), (4096, 8192), (3072, 4096), (4096, 1536)),
        "Mixtral-8x7B": ((6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336)),
    }.items():
        assert tuple(sizes(model).values()) == known, model
    experts = {name: max(one.experts for one in of.values()) for name, of in OF.items()}
    assert experts["DeepSeek-V3"] == 256 and experts["Kimi-K2"] == 384 and experts["GLM-4.5"] == 160
    assert experts["Mixtral-8x7B"] == 8 and experts["gpt-oss-120b"] == experts["Qwen3-30B-A3B"] == 128


def test_cuts() -> None:
    """Columns or rows are divided; a head of keys and values is not."""
    llama = OF["Llama-3.1-70B"]
    assert [llama["gate_up"].sizes(gpus) for gpus in CUTS] == [(n, 8192) for n in (57344, 28672, 14336, 7168)]
    assert [llama["down"].sizes(gpus) for gpus in CUTS] == [(8192, k) for k in (28672, 14336, 7168, 3584)]
    assert {OF["DeepSeek-V3"]["q_a, kv_a"].sizes(gpus) for gpus in CUTS} == {(2112, 7168)}
    qkv = OF["Qwen3-235B-A22B"]["qkv"]
    assert [qkv.sizes(gpus)[0] for gpus in CUTS] == [9216, 4608, 2304, 64 // 8 * 128 + 2 * 128]


# --------------------------------------------------------------------------------------- a configuration


DENSE = {"hidden_size": 512, "intermediate_size": 1024, "num_attention_heads": 8, "vocab_size": 99}


def test_a_configuration_without_the_optional_fields() -> None:
    assert list(models.linears(DENSE)) == [
        Linear("qkv", 3 * 512, 512, "n", kv=2 * 512, kv_heads=8),
        Linear("o", 512, 512, "k"),
        Linear("gate_up", 2048, 512, "n"),
        Linear("down", 512, 1024, "k"),
    ]
    assert list(models.linears({"text_config": DENSE, "hidden_size": 3})) == list(models.linears(DENSE))
    few = DENSE | {"num_key_value_heads": 2, "head_dim": 128}
    assert next(models.linears(few)) == Linear("qkv", 8 * 128 + 4 * 128, 512, "n", kv=512, kv_heads=2)


@pytest.mark.parametrize(
    ("more", "names"),
    [
        ({"num_local_experts": 4}, ["expert gate_up", "expert down"]),
        (
            {"num_experts": 4, "moe_intermediate_size": 256, "shared_expert_intermediate_size": 384},
            ["shared expert gate_up", "shared expert down", "expert gate_up", "expert down"],
        ),
        (
            {"n_routed_experts": 4, "moe_intermediate_size": 256, "first_k_dense_replace": 1},
            ["gate_up", "down", "expert gate_up", "expert down"],
        ),
    ],
)
def test_a_configuration_with_experts(more: dict[str, int], names: list[str]) -> None:
    found = {linear.name: linear for linear in models.linears(DENSE | more)}
    assert list(found)[2:] == names
    assert found["expert down"].experts == 4 and found["o"].experts == 1
    assert found["expert down"].k == more.get("moe_intermediate_size", 1024)
    if "shared expert down" in found:
        assert found["shared expert down"].k == 384


def test_latent_attention_without_a_rank_for_queries() -> None:
    ranks = {"kv_lora_rank": 512, "q_lora_rank": None}
    heads = {"qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128}
    found = {linear.name: (linear.n, linear.k) for linear in models.linears(DENSE | ranks | heads)}
    assert found["q"] == (8 * 192, 512) and found["kv_a"] == (576, 512)
    assert found["kv_b"] == (8 * 256, 512) and found["o"] == (512, 8 * 128)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"hidden_size": None}, "hidden_size is not there in the configuration; a positive whole number"),
        ({"hidden_size": "512"}, "hidden_size is '512' in the configuration"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0"),
        ({"kv_lora_rank": 512}, "qk_nope_head_dim is not there"),
    ],
)
def test_a_configuration_that_cannot_be_used(change: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        list(models.linears(DENSE | change))


# --------------------------------------------------------------------------------------------- the grid


def test_the_grid() -> None:
    cells = grid.grid()
    assert len(cells) == len(set(cells)) > 3000
    assert len({str(cell) for cell in cells}) == len(cells)
    assert all(cell.shape.k % 128 == 0 and cell.shape.n % 8 == 0 for cell in cells)
    dense = [cell for cell in cells if cell.kind == "dense"]
    assert {cell.shape.m for cell in dense} == set(grid.MS)
    assert len(dense) == len(grid.MS) * len(grid.dense_weights())
    for model in MODELS:
        for linear in model.linears:
            for gpus in CUTS:
                n, k = linear.sizes(gpus)
                if linear.experts == 1 and not models.refusal(n, k):
                    assert Cell("dense", 1, Shape(33, n, k)) in cells


def test_what_cannot_be_multiplied_is_named() -> None:
    found = grid.unmeasured()
    of_gpt = {one.linear for one in found if one.model == "gpt-oss-120b"}
    assert of_gpt == {"qkv", "expert gate_up", "expert down"}
    assert all("is not a multiple of" in one.reason for one in found)
    assert Cell("dense", 1, Shape(1, 2880, 4096)) in grid.grid()


def test_groups_are_uneven() -> None:
    """Of grouped products: 8 to 256 groups, some of them empty, some many times as large as others."""
    grouped = [cell for cell in grid.grid() if cell.kind == "contiguous"]
    assert {8, 256} <= {cell.groups for cell in grouped} <= set(range(8, 257))
    for cell in grouped:
        counts = cell.counts
        assert len(counts) == cell.groups and counts.count(0) == max(1, cell.groups // 8)
        assert sum(counts) == pytest.approx(cell.shape.m * cell.groups, rel=0.1)
        assert all(held % 128 == 0 and held >= count for held, count in zip(cell.held, counts, strict=True))
    assert sum(max(cell.counts) > 3 * cell.shape.m for cell in grouped) > len(grouped) / 2


def test_masked_products() -> None:
    masked = [cell for cell in grid.grid() if cell.kind == "masked"]
    assert {8, 128} <= {cell.groups for cell in masked} <= set(range(8, 129))
    told = Counter()
    for cell in masked:
        assert min(cell.counts) == 0 and max(cell.counts) == cell.max_m
        mean = sum(cell.counts) / cell.groups
        told[(cell.expected_m > 1.5 * mean) - (cell.expected_m < 0.5 * mean)] += 1
    assert min(told[-1], told[0], told[1]) > len(masked) / 5
    right, high, low = (masked_cell(8, Shape(16, 128, 128), 64, words) for words in ("right", "high", "low"))
    assert right.counts == high.counts == low.counts and low.expected_m < right.expected_m < high.expected_m


def test_the_subset_is_spread_evenly() -> None:
    subset = grid.subset()
    assert subset == grid.subset() == grid.grid()[: len(subset)]
    assert 400 <= len(subset) <= 700
    dense = [cell for cell in subset if cell.kind == "dense"]
    of_weight = Counter(cell.shape[1:] for cell in dense)
    assert of_weight.keys() == set(grid.dense_weights()) and set(of_weight.values()) == {grid.MS_PER_WEIGHT}
    of_m = Counter(cell.shape.m for cell in dense)
    assert of_m.keys() == set(grid.MS) and max(of_m.values()) - min(of_m.values()) <= 1
    q_b = [OF["DeepSeek-V3"]["q_b"].sizes(gpus) for gpus in CUTS]
    assert len({cell.shape.m for cell in dense if cell.shape[1:] in q_b}) == 4 * grid.MS_PER_WEIGHT
    for kind, attribute in itertools.product(("contiguous", "masked"), ("groups", "shape")):
        here = [getattr(cell, attribute) for cell in subset if cell.kind == kind]
        assert len(here) == grid.GROUPED_IN_SUBSET and len(set(here)) > 5
    assert {8, 128} <= {cell.groups for cell in subset if cell.kind == "masked"}
    assert {8, 256} <= {cell.groups for cell in subset if cell.kind == "contiguous"}
