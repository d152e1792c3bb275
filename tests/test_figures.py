"""The form of the data files, the tables of the two READMEs, and the pictures of the rungs."""

from __future__ import annotations

import datetime
import itertools
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
    for name in (
        *("tensor_core_probe.json", "cards.json", "timeline.json", "precision.json", "host.json"),
        *("everywhere.json", "training.json", "mma_probe.json", "casts.json"),
        *("fp8_training.json", "parallel.json"),
        "model.json",
    )
}
FILES = sorted(set(DATA.glob("*.json")) - OTHERS)
RUNGS = (
    *("s1_naive", "s2_tiled", "s3_wgmma", "s4_tma", "s5_tma_multicast"),
    *("s6_warp_specialized", "s7_persistent", "s8_ffma_interleave"),
)


def invented(*impls: str, shapes: tuple[Shape, ...] = DEEPSEEK_V3) -> dict:
    """A data file with made-up times; each implementation is faster than the one before."""
    meta = dict.fromkeys(measured.META_FIELDS, "1") | {"gpu": "GPU", "sources": "abcdef" * 10 + "0123"}
    rows = [
        dict.fromkeys(measured.ROW_FIELDS, 1)
        | {"kind": "dense", "impl": impl, "l2": l2, **shape._asdict()}
        | {"tflops": 10.0 ** (index / 3) * (1 + shape.m / 4096)}
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


@pytest.mark.parametrize("name", ["ladder", "production"])
def test_every_shape_has_its_libraries_in_the_same_run(name: str) -> None:
    """A picture without one of them would hide the comparison."""
    data = draw.recorded(DATA)[name]
    found = {(row["impl"], row["kind"], row["groups"], row["m"], row["n"], row["k"]) for row in data["rows"]}
    products = PRODUCTS if name == "production" else [Product("dense", 1, shape) for shape in MEASURED]
    for impl in ("s9_production", "cublas_bf16", "cublaslt_blockwise", "cublaslt_tensorwise"):
        assert {(impl, kind, groups, *shape) for kind, groups, shape in products} <= found


def test_tables_are_what_the_data_give() -> None:
    data = draw.recorded(DATA)
    text = (REPOSITORY / "README.md").read_text()
    assert text == readme.readme(text, data), "python figures/draw.py rewrites it"
    text = (REPOSITORY / "figures" / "README.md").read_text()
    assert text == readme.figures_readme(text, data), "python figures/draw.py rewrites it"
    for name, one in data.items():
        assert one["meta"]["date"] in text and one["meta"]["sources"][:12] in text
        assert name == "cards" or one["meta"]["gpu"] in text


def test_readme_is_one_page() -> None:
    assert len((REPOSITORY / "README.md").read_text().splitlines()) <= 130


def test_links_of_the_measurements_lead_somewhere() -> None:
    folder = REPOSITORY / "figures"
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", (folder / "README.md").read_text())
    assert {"../README.md", "data", "ladder.png"} <= set(links)
    assert [link for link in links if not (folder / link).exists()] == []


def test_every_picture_is_shown() -> None:
    text = "".join((REPOSITORY / path).read_text() for path in ("README.md", "figures/README.md"))
    assert [path.name for path in (REPOSITORY / "figures").glob("*.png") if path.name not in text] == []


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
    """figures/draw.py makes everything from the data, without importing gemm_ladder."""
    shutil.copytree(
        REPOSITORY / "figures", tmp_path / "figures", ignore=shutil.ignore_patterns("*.png", "s*.md")
    )
    shutil.copy(REPOSITORY / "README.md", tmp_path)
    script = (
        "import runpy, sys; runpy.run_path(sys.argv[1], run_name='__main__'); "
        "assert 'gemm_ladder' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script, tmp_path / "figures" / "draw.py"], check=True, cwd=tmp_path)
    for name in ("README.md", "figures/README.md"):
        assert (tmp_path / name).read_text() == (REPOSITORY / name).read_text()
    assert (tmp_path / "figures" / "ladder.png").read_bytes().startswith(b"\x89PNG")
    for path in (REPOSITORY / "figures" / "cards").iterdir():
        assert (tmp_path / "figures" / "cards" / path.name).read_text() == path.read_text()


@pytest.mark.parametrize("shapes", [DEEPSEEK_V3, MEASURED], ids=["without squares", "with squares"])
@pytest.mark.parametrize("count", [0, 2, len(RUNGS)])
def test_picture_names_every_line_and_no_texts_overlap(count: int, shapes: tuple[Shape, ...]) -> None:
    data = invented(*RUNGS[:count], *measured.PEERS, shapes=shapes)
    texts = pictures.texts(ladder.ladder(data))
    pictures.check(texts)
    drawn = {text for text, _ in texts}
    assert drawn >= {"m = 64", "m = 128", "m = 4096"}
    for end in (*(name.split("_")[0] for name in RUNGS[:count]), *measured.PEERS.values()):
        found = sum(text.startswith(f"{end}  ") for text in drawn)
        assert found == (4 if shapes is MEASURED else 3), "every line is named at its end"
    assert ("m = n = k" in drawn) == ("8192" in drawn) == (shapes is MEASURED)


def test_picture_without_some_of_the_shapes() -> None:
    pictures.texts(ladder.ladder(invented("s1_naive", "cublas_bf16", shapes=DEEPSEEK_V3[:3])))


@pytest.mark.parametrize("count", [0, 1, len(RUNGS)])
def test_picture_of_one_shape(count: int) -> None:
    """Every rung and library has a bar with its number, on an axis that begins at 0."""
    figure = ladder.bars(invented(*RUNGS[:count], *measured.PEERS))
    texts = pictures.texts(figure)
    pictures.check(texts)
    words = [text for text, _ in texts]
    assert [word for word in words if word in {*RUNGS, *measured.PEERS.values()}] == [
        *RUNGS[:count],
        *measured.PEERS.values(),
    ]
    (axes,) = figure.axes
    assert axes.get_xscale() == "linear" and axes.get_xlim()[0] == 0
    for index in range(count + len(measured.PEERS)):
        assert measured.number(2 * 10.0 ** (index / 3)) in words


def test_series_are_in_order() -> None:
    data = invented("s3_wgmma", "cublas_bf16", "s1_naive", "deep_gemm")
    shown = measured.series(data, "dirty")
    assert [one.impl for one in shown] == ["s1_naive", "s3_wgmma", "cublas_bf16", "deep_gemm"]
    assert all(one.meta is data["meta"] and len(one.tflops) == len(DEEPSEEK_V3) for one in shown)
    (sentence,) = measured.provenance(shown)
    assert (
        sentence.startswith("s1_naive, s3_wgmma, cuBLAS BF16, DeepGEMM: GPU") and "abcdefabcdef" in sentence
    )


def test_table() -> None:
    shown = measured.series(invented("s1_naive", shapes=(Shape(64, 8, 128),)), "clean")
    shown.append(measured.Series("deep_gemm", {(64, 8, 256): 1234.5}, {}))
    cells = tables.table(shown)
    assert cells == [
        ["m x n x k", "s1_naive", "DeepGEMM"],
        ["64 x 8 x 128", "1.02", "-"],
        ["64 x 8 x 256", "-", "1234"],
    ]
    assert tables.plain(cells).splitlines()[1] == "64 x 8 x 128      1.02         -"
    assert tables.markdown(cells).splitlines()[1:3] == ["|---|---:|---:|", "| 64 x 8 x 128 | 1.02 | - |"]


def test_squares_come_last() -> None:
    (one,) = measured.series(invented("s1_naive", shapes=MEASURED), "dirty")
    sizes = measured.sizes_of([one])
    assert sizes[18:] == [tuple(shape) for shape in MEASURED[18:]]
    assert not any(measured.is_square(size) for size in sizes[:18])


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
