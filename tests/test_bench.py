"""The command bench: what its arguments name, what it says of a product, and what it writes and draws."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pictures
import pytest
from gemm_ladder.cli import main
from gemm_ladder.errors import InputError
from gemm_ladder.figures import bench as figure
from gemm_ladder.figures import measured
from gemm_ladder.measure import bench, peers, pool, run, verdicts
from gemm_ladder.measure.shapes import Cell, Shape, masked_cell
from small_cells import invented

DENSE = Cell("dense", 1, Shape(64, 2112, 7168))
CONFIG = {
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
}
RATES = verdicts.Rates(3e6, 1.5e9)


# ----------------------------------------------------------------------------------------- the arguments


def test_products_by_their_numbers() -> None:
    chosen, refused = bench.products(["64", "2112", "7168", "1", "8", "128", "64", "2112", "7168"])
    assert chosen == [DENSE, Cell("dense", 1, Shape(1, 8, 128))] and refused == []
    with pytest.raises(InputError, match="4 numbers are given; m, n and k of each product"):
        bench.products(["64", "2112", "7168", "1"])


def test_products_by_name() -> None:
    chosen, _ = bench.products(["64x2112x7168", "contiguous:8x16x128x256", "masked:8x16x128x256"])
    assert chosen == [
        DENSE,
        Cell("contiguous", 8, Shape(16, 128, 256)),
        masked_cell(8, Shape(16, 128, 256), 64),
    ]


@pytest.mark.parametrize("word", ["sparse:8x16x128x256", "masked:0x16x128x256", "masked:x1x128x256"])
def test_a_kind_that_there_is_not(word: str) -> None:
    with pytest.raises(InputError, match="is no product; MxNxK, contiguous:GxMxNxK or masked"):
        bench.products([word])


@pytest.mark.parametrize("word", ["64x2112", "nothing.txt", "masked:8x16x128"])
def test_no_product_and_no_file(word: str) -> None:
    with pytest.raises(InputError, match="is not a shape; MxNxK is needed"):
        bench.products([word])


def test_a_weight_that_cannot_be_multiplied() -> None:
    chosen, refused = bench.products(["64x2112x100", "64x12x128"])
    assert chosen == []
    assert refused == [
        "64x2112x100 cannot be multiplied: k = 100 is not a multiple of 128.",
        "64x12x128 cannot be multiplied: n = 12 is not a multiple of 8.",
    ]


def test_a_file_of_products(tmp_path: Path) -> None:
    path = tmp_path / "products.txt"
    path.write_text("# ours\n64x2112x7168   # decoding\n\n8 128 256\nmasked:8x16x128x256\n")
    chosen, _ = bench.products([str(path)])
    assert [str(cell) for cell in chosen[:2]] == ["64x2112x7168", "8x128x256"]
    assert len(chosen) == 3 and chosen[2].kind == "masked"


def test_a_configuration(tmp_path: Path) -> None:
    """Dense linears at every m; the experts' rows are their share, masked when decoding."""
    path = tmp_path / "config.json"
    path.write_text(json.dumps(CONFIG))
    chosen, refused = bench.products([str(path)], 1, "1,64,4096")
    assert refused == []
    assert chosen[:3] == [Cell("dense", 1, Shape(m, 512 + 256, 512)) for m in (1, 64, 4096)]
    experts = [cell for cell in chosen if cell.kind != "dense"]
    assert [(cell.kind, cell.groups, cell.shape) for cell in experts[:3]] == [
        ("masked", 8, Shape(1, 2048, 512)),
        ("masked", 8, Shape(16, 2048, 512)),
        ("contiguous", 8, Shape(1024, 2048, 512)),
    ]
    chosen, refused = bench.products([str(path)], 8, "1")
    assert [cell.shape.n for cell in chosen if cell.kind == "masked"] == [256, 512]
    assert refused == ["o (512 x 64) cannot be multiplied: k = 64 is not a multiple of 128."]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is not JSON"),
        ("[1]", "is not a model's config.json"),
        ("{}", "hidden_size is not there"),
        (json.dumps(CONFIG | {"intermediate_size": -1}), "intermediate_size is -1"),
    ],
)
def test_a_configuration_that_is_none(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(InputError, match=said):
        bench.products([str(path)])


def test_other_arguments() -> None:
    with pytest.raises(InputError, match="--tp is 0; 1 or more is needed"):
        bench.products(["1x8x128"], 0)
    assert bench.chosen_states("graph, dirty") == ("dirty", "graph")
    with pytest.raises(InputError, match="'warm' is not a state; dirty, clean, graph or all is needed"):
        bench.chosen_states("warm")


# ------------------------------------------------------------------------------------------ the sentences


def test_whether_fp8_pays() -> None:
    ours = {"s9_production": 10.0}
    assert verdicts.pays(ours | {"cublas_bf16": 19.0}) == "FP8 pays, 1.90 times as fast as BF16"
    assert verdicts.pays(ours | {"cublas_bf16": 8.0}) == "FP8 does not pay, BF16 is 1.25 times as fast"
    assert verdicts.pays(ours | {"cublas_bf16": 10.1}) == "FP8 and BF16 take the same time"
    assert verdicts.pays(ours) == "BF16 was not measured"


def test_against_whom() -> None:
    us = {"s9_production": 10.0, "deep_gemm": 9.0, "cublaslt_blockwise": 20.0, "cublaslt_tensorwise": 5.0}
    assert verdicts.against(us) == (
        "gemm_ladder wins against cuBLASLt (10 us against 20), loses to DeepGEMM (10 us against 9)"
    )
    us |= {"deep_gemm": 10.05, "cublaslt_blockwise": 9.9}
    assert verdicts.against(us) == (
        "gemm_ladder is level with cuBLASLt (10 us against 9.9) and DeepGEMM (10 us against 10.05)"
    )
    assert verdicts.against({"s9_production": 1.0}) == "no library with the same scales was measured"


def test_what_bounds_it() -> None:
    memory = verdicts.bound(DENSE, 9.0, RATES)
    assert memory == "memory bounds it: moving 15.9 MB takes 5.3 of its 9 us"
    large = Cell("dense", 1, Shape(8192, 8192, 8192))
    assert verdicts.bound(large, 750.0, RATES).startswith(
        "the tensor cores bound it: they need 733 of its 750"
    )
    tiny = Cell("dense", 1, Shape(1, 128, 128))
    assert verdicts.bound(tiny, 3.0, RATES).startswith(
        "fixed costs of the launch bound it: of its 3 us memory"
    )


def test_grouped_products_count_valid_rows() -> None:
    cell = masked_cell(8, Shape(16, 4096, 7168), 64)
    moved = sum(shape.bytes for shape in cell.parts)
    assert moved < 7.2 * 4096 * 7168, "one of eight groups is empty"
    assert f"moving {moved / 1e6:.3g} MB" in verdicts.bound(cell, 1.5 * moved / 3e6, RATES)


# -------------------------------------------------------------------------------------------- the command


def test_a_whole_command(
    fake_gpu: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuses(problem: object) -> None:
        raise ValueError("not on a CPU")

    for name in ("cublaslt_tensorwise", "cublaslt_blockwise"):
        monkeypatch.setattr(peers, name, refuses)
    monkeypatch.setattr(pool, "MAX_WEIGHTS", 4)
    monkeypatch.setattr(verdicts, "rates", lambda device: RATES)
    path, drawn = tmp_path / "mine.json", tmp_path / "mine.png"
    argv = ["bench", "64", "128", "256", "8", "128", "256", "--json", str(path), "--picture", str(drawn)]
    assert main(argv) == 0
    printed = capsys.readouterr().out
    sentence = (
        "64x128x256 (in a CUDA graph of calls over different weights): FP8 and BF16 take the same time; no "
        "library with the same scales was measured; fixed costs of the launch bound it: of its 100 us memory "
    )
    for words in ("Found NVIDIA H100: 2 products", "with L2 dirty:", sentence, "Written", "Drawn"):
        assert words in printed
    data = measured.load(path, row=run.COLUMNS)
    assert len(data["rows"]) == 2 * 2 * 3 and len(data["meta"]["verdicts"]) == 2
    assert drawn.read_bytes().startswith(b"\x89PNG")
    assert main(["bench", "64x128x256", "--states", "clean"]) == 0
    printed = capsys.readouterr().out
    assert "64x128x256 (with L2 clean): " in printed and "with L2 dirty" not in printed


def test_nothing_that_can_be_multiplied(fake_gpu: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "64x128x100"]) == 0
    assert "k = 100 is not a multiple of 128" in capsys.readouterr().out


# ----------------------------------------------------------------------------------- the table, the picture


def made_up(chosen: list[Cell], *impls: str) -> Any:
    return invented(chosen, impls, random.Random(2), (-0.1, 0.4))


CHOSEN = [
    *(Cell("dense", 1, Shape(m, 24576, 16384)) for m in (1, 64, 4096)),
    Cell("contiguous", 256, Shape(64, 4096, 7168)),
    masked_cell(128, Shape(16, 4096, 7168), 1024),
]


@pytest.mark.parametrize("impls", [4, 1])
def test_the_picture(impls: int) -> None:
    names = ("s9_production", "deep_gemm", "cublaslt_blockwise", "cublas_bf16")[:impls]
    texts = pictures.texts(figure.picture(made_up(CHOSEN, *names)))
    pictures.check(texts)
    assert "1 x 24576 x 16384" in {text for text, _ in texts}


def test_the_table() -> None:
    data = made_up([DENSE], "s9_production", "deep_gemm", "cublas_bf16")
    for row in data["rows"]:
        row["us"] = {"s9_production": 10.0, "deep_gemm": 9.0, "cublas_bf16": 20.0}[row["impl"]]
    head, row = figure.table(data, "graph")
    assert len(head) == len(row)
    assert row[:2] == ["64 x 2112 x 7168", "10"]
    assert row[4:] == ["DeepGEMM", "9", "0.900", "20", "2.00", "-"]
    assert figure.table({"rows": []}, "graph") == []
