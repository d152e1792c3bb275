"""The weights of public models beside libraries: the ratios, the picture, and what README.md says of them."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pictures
import pytest
from gemm_ladder.figures import everywhere as figure
from gemm_ladder.figures import measured, readme
from gemm_ladder.measure import grid, records, run
from gemm_ladder.measure.shapes import Cell, Shape
from small_cells import CONTIGUOUS, DENSE, SMALL, invented


def made_up(chosen: list[Cell], *impls: str) -> Any:
    return invented(chosen, impls, random.Random(1), (-0.2, 0.3), grid.about())


IMPLS = ("s9_production", "deep_gemm", "cublaslt_blockwise", "cublaslt_tensorwise", "cublas_bf16")


def test_the_picture_of_the_subset(tmp_path: Path) -> None:
    data = made_up(grid.subset(), *IMPLS)
    path = tmp_path / "everywhere.json"
    records.save(data, path)
    assert path.stat().st_size < 1_000_000, "tests/test_house.py allows no more"
    loaded = figure.load(path)
    assert loaded["rows"] == data["rows"] and json.loads(path.read_text())["columns"] == list(run.COLUMNS)
    texts = pictures.texts(figure.picture(loaded))
    pictures.check(texts)
    words = [text for text, _ in texts]
    assert {*figure.STATES.values(), *figure.SECTIONS.values()} <= {" ".join(word.split()) for word in words}
    assert sum(text.endswith("2112 x 7168") for text in words) == 1


def test_ratios_and_their_summary() -> None:
    data = made_up([DENSE, CONTIGUOUS], "s9_production", "deep_gemm", "cublaslt_blockwise")
    for row in data["rows"]:
        row["us"] = {"s9_production": 10.0, "deep_gemm": 8.0, "cublaslt_blockwise": 20.0}[row["impl"]]
        if row["kind"] == "contiguous" and row["impl"] == "deep_gemm":
            row["us"] = 30.0
    dense, contiguous = figure.ratios(data, "graph")
    assert (dense.peer, dense.value) == ("deep_gemm", 0.8)
    assert (contiguous.peer, contiguous.value) == ("cublaslt_blockwise", 2.0)
    sentence = figure.summary(data)[0]
    assert f"of 2 ratios is {math.sqrt(1.6):.2f}, 50% are 1 or more, and the least is 0.80" in sentence
    assert figure.table(data)[1] == ["m = 33", *["0.800 (1)"] * 3]
    assert figure.table(data)[2] == ["experts, contiguous", *["2.000 (1)"] * 3]


def test_the_picture_without_some_states_or_libraries() -> None:
    data = made_up(list(SMALL), *IMPLS[:2])
    data["rows"] = [row for row in data["rows"] if row["l2"] == "graph"]
    figure.picture(data)
    assert len(figure.summary(data)) == 2


def test_readme_with_and_without_the_data() -> None:
    text = (Path(__file__).parents[1] / "README.md").read_text()
    assert readme.readme(text, {}) == text
    full = readme.readme(text, {"everywhere": made_up(grid.subset(), *IMPLS)})
    assert "(figures/everywhere.png)" in full and "public models" in full
    assert len(full.splitlines()) <= 130 and len(text.splitlines()) <= 130
    block = full.split("<!-- everywhere:begin -->\n")[1].split("<!-- everywhere:end -->")[0]
    assert all(len(line) <= 118 for line in block.splitlines()[1:])


def test_the_record_if_there_is_one() -> None:
    path = measured.DATA / "everywhere.json"
    if not path.exists():
        pytest.skip("figures/data has no everywhere.json")
    data = figure.load(path)
    keys = [(*figure.key_of(row), row["impl"], row["l2"]) for row in data["rows"]]
    assert len(set(keys)) == len(keys) > 0
    for row in data["rows"]:
        cell = Cell(
            row["kind"], row["groups"], Shape(row["m"], row["n"], row["k"]), row["max_m"], row["expected_m"]
        )
        assert row["rows"] == sum(cell.counts) and row["us"] > 0 and row["l2"] in figure.STATES
        assert row["tflops"] == pytest.approx(cell.flops / row["us"] / 1e6, rel=2e-3)
        assert row["rel_err"] <= 5e-3 or row["impl"] != "s9_production"
