"""The measurements' form, README's tables, and the pictures that are drawn of them."""

from __future__ import annotations

import datetime
import itertools
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pictures
import pytest
from gemm_ladder.figures import draw, ladder, measured, readme, rung_cards, tables
from gemm_ladder.measure.shapes import DEEPSEEK_V3, MEASURED, PRODUCTS, Product, Shape

REPOSITORY = Path(__file__).resolve().parents[1]
DATA = REPOSITORY / "figures" / "data"
# These have other fields.
OTHERS = {
    DATA / name
    for name in ("tensor_core_probe.json", "cards.json", "timeline.json", "precision.json", "host.json")
}
FILES = sorted(set(DATA.glob("*.json")) - OTHERS)
RUNGS = ("s1_naive", "s2_wgmma", "s3_tma", "s4_tma_multicast", "s5_warp_specialized", "s6_ffma_interleave")


def invented(
    *impls: str, gpu: str = "GPU", factor: float = 1.0, shapes: tuple[Shape, ...] = DEEPSEEK_V3
) -> dict:
    """A data file with made-up figures, the later an implementation the faster."""
    meta = dict.fromkeys(measured.META_FIELDS, "1") | {"gpu": gpu, "sources": "abcdef" * 10 + "0123"}
    rows = [
        dict.fromkeys(measured.ROW_FIELDS, 1)
        | {"kind": "dense", "impl": impl, "l2": l2, **shape._asdict()}
        | {"tflops": factor * 10.0 ** (index / 2) * (1 + shape.m / 4096)}
        for index, impl in enumerate(impls)
        for shape in shapes
        for l2 in ("dirty", "clean")
    ]
    return {"schema": measured.SCHEMA, "meta": meta, "rows": rows}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_data_file(path: Path) -> None:
    data = measured.load(path)
    meta = data["meta"]
    datetime.date.fromisoformat(meta["date"])
    assert meta["gpu"] and meta["protocol"] and meta["driver"] and meta["torch"]
    if path.name == "peers.json":
        assert meta["provenance"]
    else:
        assert re.fullmatch("[0-9a-f]{64}", meta["sources"])
    keys = [
        tuple(row[key] for key in ("kind", "groups", "m", "n", "k", "impl", "l2")) for row in data["rows"]
    ]
    assert len(set(keys)) == len(keys) > 0
    for row in data["rows"]:
        product = Product(row["kind"], row["groups"], Shape(row["m"], row["n"], row["k"]))
        assert row["kind"] in ("dense", "contiguous", "masked") and row["l2"] in ("dirty", "clean")
        assert row["us"] > 0 and row["gb_s"] > 0
        if row["us_p10"] is not None:
            assert row["us_p10"] <= row["us"] <= row["us_p90"]
        flops = sum(part.flops for part in product.parts)
        assert row["tflops"] == pytest.approx(flops / row["us"] / 1e6, rel=5e-3)


def test_peers_are_there_at_every_row() -> None:
    peers = json.loads((REPOSITORY / "figures" / "data" / "peers.json").read_text())
    found = {
        (row["impl"], Product(row["kind"], row["groups"], Shape(row["m"], row["n"], row["k"])))
        for row in peers["rows"]
        if row["l2"] == "dirty"
    }
    assert found == {
        (impl, product)
        for impl in measured.PEERS
        for product in PRODUCTS
        if product.kind == "dense" or impl in ("deep_gemm", "deep_gemm_v1")
    }


def test_readme_tables_are_what_the_data_give() -> None:
    text = (REPOSITORY / "README.md").read_text()
    files = measured.recorded()
    data = draw.recorded(DATA)
    assert text == readme.readme(text, files, data), "python figures/draw.py rewrites them"
    for one in [*files, *(data[name] for name in data if name != "cards")]:
        assert one["meta"]["gpu"] in text and one["meta"]["date"] in text
        assert one["meta"].get("sources", "")[:12] in text


def test_cards_are_what_the_data_give() -> None:
    written = {path.stem: path.read_text() for path in (REPOSITORY / "figures" / "cards").iterdir()}
    data = rung_cards.load(DATA / "cards.json")
    assert written == rung_cards.cards(data), "python figures/draw.py rewrites them"
    datetime.date.fromisoformat(data["meta"]["date"])
    assert re.fullmatch("[0-9a-f]{64}", data["meta"]["sources"])
    for text in written.values():
        assert data["meta"]["nvcc"] in text and data["meta"]["sources"][:12] in text
        for link in re.findall(r"\]\(([^)]+)\)", text):
            assert (REPOSITORY / "figures" / "cards" / link).exists(), link


def test_draws_without_the_package(tmp_path: Path) -> None:
    """One command, from the data alone: nothing of gemm_ladder is imported."""
    shutil.copytree(
        REPOSITORY / "figures", tmp_path / "figures", ignore=shutil.ignore_patterns("*.png", "*.md")
    )
    shutil.copy(REPOSITORY / "README.md", tmp_path)
    script = (
        "import runpy, sys; runpy.run_path(sys.argv[1], run_name='__main__'); "
        "assert 'gemm_ladder' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script, tmp_path / "figures" / "draw.py"], check=True, cwd=tmp_path)
    assert (tmp_path / "README.md").read_text() == (REPOSITORY / "README.md").read_text()
    assert (tmp_path / "figures" / "ladder.png").read_bytes().startswith(b"\x89PNG")
    for path in (REPOSITORY / "figures" / "cards").iterdir():
        assert (tmp_path / "figures" / "cards" / path.name).read_text() == path.read_text()


@pytest.mark.parametrize("shapes", [DEEPSEEK_V3, MEASURED], ids=["without squares", "with squares"])
@pytest.mark.parametrize("count", [0, 2, len(RUNGS)])
def test_picture_names_everything_and_nothing_overlaps(count: int, shapes: tuple[Shape, ...]) -> None:
    peers = invented(*measured.PEERS, factor=9, shapes=shapes)
    files = [invented(*RUNGS[:count], shapes=shapes), peers] if count else [peers]
    texts = pictures.texts(ladder.ladder(files))
    pictures.check(texts)
    drawn = {text for text, _ in texts}
    assert drawn >= {*RUNGS[:count], *measured.PEERS.values(), "m = 64", "m = 128", "m = 4096"}
    assert ("m = n = k" in drawn) == ("8192" in drawn) == (shapes is MEASURED)
    ends = sum(text.startswith("cuBLASLt ceiling*  ") for text, _ in texts)
    assert ends == (4 if shapes is MEASURED else 3), "the ceiling is named where its line ends"


def test_picture_without_some_of_the_shapes() -> None:
    pictures.texts(ladder.ladder([invented("s1_naive", "cublas_bf16", shapes=DEEPSEEK_V3[:3])]))


def test_series_takes_the_first_file_and_one_gpu() -> None:
    rungs = invented("s2_wgmma", "cublas_bf16", "s1_naive", factor=1)
    peers = invented("deep_gemm", "cublas_bf16", factor=7)
    other = invented("cublaslt_blockwise", gpu="another")
    shown = measured.series([rungs, peers, other], "dirty")
    assert [one.impl for one in shown] == ["s1_naive", "s2_wgmma", "cublas_bf16", "deep_gemm"]
    assert shown[2].meta is rungs["meta"] and shown[3].meta is peers["meta"]
    assert len(shown[2].tflops) == len(DEEPSEEK_V3)
    first, second = measured.provenance(shown)
    assert first.startswith("s1_naive, s2_wgmma, cuBLAS BF16: GPU") and "abcdefabcdef" in first
    assert second.startswith("DeepGEMM: GPU")


def test_table() -> None:
    shown = measured.series([invented("s1_naive", shapes=(Shape(64, 8, 128),))], "clean")
    shown.append(measured.Series("deep_gemm", {(64, 8, 256): 1234.5}, {}))
    cells = tables.table(shown)
    assert cells == [
        ["m x n x k", "s1_naive", "DeepGEMM"],
        ["64 x 8 x 128", "1.02", "-"],
        ["64 x 8 x 256", "-", "1234"],
    ]
    assert tables.plain(cells).splitlines()[1] == "64 x 8 x 128      1.02         -"
    assert tables.markdown(cells).splitlines()[1:3] == ["|---|---:|---:|", "| 64 x 8 x 128 | 1.02 | - |"]


def test_squares_come_last_and_are_no_part_of_the_other_panels() -> None:
    (one,) = measured.series([invented("s1_naive", shapes=MEASURED)], "dirty")
    sizes = measured.sizes_of([one])
    assert sizes[18:] == [tuple(shape) for shape in MEASURED[18:]]
    assert not any(measured.is_square(size) for size in sizes[:18])
    texts = pictures.texts(ladder.ladder([invented("s1_naive", shapes=MEASURED)]))
    assert "4096 x 7168 x 16384" in {text for text, _ in texts}, "the bars' shape"


def test_spread() -> None:
    assert ladder.spread([1, 5, 9], 2) == [1, 5, 9]
    assert ladder.spread([5, 5, 5], 2) == [3, 5, 7]
    assert ladder.spread([0, 0.1], 1) == [0.5, 1.5]
    heights = ladder.spread([0, 1, 1.1, 1.2, 4, 4.1, 9], 1)
    assert all(upper - lower >= 1 - 1e-9 for lower, upper in itertools.pairwise(heights))
    assert min(heights) >= 0.5


def test_bad_files_are_refused() -> None:
    good = invented("s1_naive")
    with pytest.raises(ValueError, match='x has no "schema": 1'):
        measured.check({**good, "schema": 2}, "x")
    with pytest.raises(ValueError, match="x lacks gpu in its meta"):
        measured.check({**good, "meta": {key: 1 for key in measured.META_FIELDS if key != "gpu"}}, "x")
    with pytest.raises(ValueError, match="x lacks us in row 1"):
        rows = [good["rows"][0], {key: 1 for key in measured.ROW_FIELDS if key != "us"}]
        measured.check({**good, "rows": rows}, "x")


@pytest.mark.parametrize(
    "text", ["", "<!-- t:begin -->", "<!-- t:end --><!-- t:begin -->", "<!-- t:begin -->" * 2]
)
def test_rewrite_needs_its_markers(text: str) -> None:
    with pytest.raises(ValueError, match="needs <!-- t:begin -->"):
        readme.rewrite(text, "t", "body")


def test_rewrite_keeps_the_rest() -> None:
    once = readme.rewrite("a <!-- t:begin --> old <!-- t:end --> z", "t", "new")
    assert once == "a <!-- t:begin -->\nnew\n<!-- t:end --> z"
    assert readme.rewrite(once, "t", "new") == once
