"""The production kernels beside their peers, and what a call costs the host: tables and pictures."""

from __future__ import annotations

from pathlib import Path

import pictures
import pytest
from gemm_ladder.figures import draw, host, measured, production, readme, roofline
from gemm_ladder.measure import records, timing
from gemm_ladder.measure.shapes import DEEPSEEK_V3, PRODUCTS, Product, Shape

DENSE = (Product("dense", 1, Shape(64, 128, 256)), Product("dense", 1, Shape(64, 256, 256)))
MASKED = Product("masked", 2, Shape(40, 128, 384))


def data(times: dict[tuple[str, Product], float], l2: str = "dirty") -> dict:
    """A data file with these microseconds."""
    meta = dict.fromkeys(measured.META_FIELDS, "1") | {"gpu": "GPU", "sources": "abcdef" * 10 + "0123"}
    rows = [
        records.row(impl, product, l2, timing.Timing(us, us, us), 0.001)
        for (impl, product), us in times.items()
    ]
    return {"schema": measured.SCHEMA, "meta": meta, "rows": rows}


def whole(l2: str = "dirty") -> dict:
    """production.json with made-up times, some slower than the peer's and some faster."""
    impls = (production.RUNG, "cublaslt_blockwise", "cublaslt_tensorwise", "cublas_bf16")
    return data(
        {
            (impl, product): (20 + sum(part.flops for part in product.parts) / 1e9) * (1 + 0.13 * turn)
            for index, product in enumerate(PRODUCTS)
            for turn, impl in enumerate(impls if index % 3 else (*impls[1::-1], *impls[2:]))
        },
        l2=l2,
    )


def calls() -> dict:
    """host.json with made-up times."""
    rows = {
        "call": ("fp8_gemm_nt", "m_grouped_fp8_gemm_nt_masked", *list(host.LABELS)[:5]),
        **dict.fromkeys(list(host.LABELS)[5:], ("s9_production",)),
    }
    size = {"call": 10.0, "first_build": 8e6, "cached_load": 2500.0, "first_call": 9e3}
    size |= {"one_core_call": 4e6, "warm_up": 9e6, "cached_warm_up": 2e5}
    shape = {"kind": "dense", "groups": 1, "m": 64, "n": 7168, "k": 2048}
    meta = dict.fromkeys(host.META_FIELDS, "1") | {"cpu": "A CPU", "sources": "abcdef" * 10 + "0123"}
    return {
        "schema": measured.SCHEMA,
        "meta": meta,
        "rows": [
            {"quantity": quantity, "impl": impl, **shape, "us": us, "us_p10": 0.9 * us, "us_p90": 1.1 * us}
            for quantity, impls in rows.items()
            for index, impl in enumerate(impls)
            for us in [size[quantity] * (1 + index)]
        ],
    }


# ------------------------------------------------------------------------------------- the best peer


def test_the_best_peer_and_the_ceiling() -> None:
    """The peer is the fastest library with the same scales; one without scales is the ceiling."""
    one, other = DENSE
    run = {(impl, one): us for us, impl in enumerate((production.RUNG, *measured.PEERS), start=10)}
    run |= {(production.RUNG, other): 8.0}
    first, second = production.compared(data(run), "dirty")
    best = min(us for (impl, _), us in run.items() if impl in production.BLOCK_SCALED)
    assert (first.peer_us, first.ceiling_us) == (best, run["cublaslt_tensorwise", one])
    assert first.ratio == best / 10 and first.peer in production.BLOCK_SCALED
    assert second.peer is second.ratio is second.ceiling_us is None
    assert production.table([first, second])[1][-4:] == ["cuBLASLt", "12.00", "1.200", "14.00"]
    assert production.table([first, second])[2][-4:] == ["-", "-", "-", "-"]
    assert production.compared(data(run), "clean") == []
    assert production.summary([second]) == [] and production.geometric_mean([second]) is None


def test_ratios_are_summarised_for_dense_and_grouped_rows() -> None:
    """With the note that says how the grouped rows of cuBLASLt are measured."""
    run = {(production.RUNG, product): 10.0 for product in (*DENSE, MASKED)}
    run |= {("cublaslt_blockwise", DENSE[0]): 20.0, ("deep_gemm", DENSE[1]): 5.0}
    run |= {("cublaslt_blockwise", MASKED): 30.0, ("torch_grouped", MASKED): 9.0}
    found = production.compared(data(run), "dirty")
    assert [(one.n, one.kind, one.ceiling_us) for one in found] == [
        (128, "dense", None),
        (256, "dense", None),
        (128, "masked", 9.0),
    ]
    assert production.summary(found) == [
        "Geometric mean of the 2 dense ratios: 1.000; 1 are 1 or more.",
        "Geometric mean of the 1 grouped ratios: 3.000; 1 are 1 or more.",
        production.GROUP_BY_GROUP,
    ]
    assert production.summary(found[:2]) == production.summary(found)[:1]
    assert production.table(found)[2][5:8] == ["DeepGEMM", "5.00", "0.500"]


# --------------------------------------------------------------------------------------- the pictures


def test_production_picture() -> None:
    texts = pictures.texts(production.picture(whole()))
    pictures.check(texts)
    words = [text for text, _ in texts]
    assert {"dense", "contiguous", "masked", "64 x 2112 x 7168", "32 of 256 x 4096 x 7168"} <= set(words)
    assert sum(word in ("1.13", "0.88") for word in words) == len(PRODUCTS)


def test_production_picture_without_peers() -> None:
    alone = data({(production.RUNG, product): 10.0 for product in PRODUCTS})
    pictures.check(pictures.texts(production.picture(alone)))


def test_roofline() -> None:
    ladder = data(
        {(f"s{n}", Product("dense", 1, shape)): 9000.0 / n for n in (1, 2, 3) for shape in DEEPSEEK_V3}
    )
    slow = data({("s0", Product("dense", 1, DEEPSEEK_V3[-3])): 1e6})
    ladder["rows"] += slow["rows"]
    found = whole()
    found["meta"]["gpu"] = "NVIDIA H200"
    texts = pictures.texts(roofline.roofline(found, ladder))
    pictures.check(texts)
    words = [text for text, _ in texts]
    for beginning in ("memory: 4.14 TB/s", "tensor cores: ", "s1  ", "s2  ", "s3  "):
        assert sum(word.startswith(beginning) for word in words) == 1, beginning
    assert not any(word.startswith("s0  ") for word in words)
    assert any("Too slow for the picture: s0 (0.962)." in word for word in words)
    row = whole()["rows"][0]
    first = PRODUCTS[0].shape
    assert roofline.intensity(row) == pytest.approx(first.flops / first.bytes, rel=2e-3)


def test_roofline_of_the_production_kernels_alone() -> None:
    alone = data({(production.RUNG, product): 10.0 + product.groups for product in PRODUCTS})
    pictures.texts(roofline.roofline(alone, None))


def test_host_picture_and_table() -> None:
    found = calls()
    measured.check(found, "x", host.META_FIELDS, host.ROW_FIELDS)
    texts = pictures.texts(host.picture(found))
    pictures.check(texts)
    cells = host.table(found)
    words = {text for text, _ in texts}
    for name, duration, *_ in cells[1:]:
        assert {name, duration} <= words
    assert cells[1] == ["gemm_ladder.fp8_gemm_nt", "10 us", "9 us to 11 us", "0.25"]
    assert cells[-1] == ["a weight's warm-up, kernels in the cache", "200 ms", "180 ms to 220 ms", "-"]
    found["rows"] = [row for row in found["rows"] if row["quantity"] == "call"]
    pictures.check(pictures.texts(host.picture(found)))
    assert host.duration(8.31e6) == "8.31 s" and host.duration(999.4) == "999 us"


# ------------------------------------------------------------------------------------------- the tables


def test_tables_of_the_measurements() -> None:
    """Each table between its markers, with where it comes from; without the data they stay as they are."""
    names = ("dirty", "clean", "production", "host")
    text = "\n".join(f"<!-- table-{name}:{end} -->" for name in names for end in ("begin", "end"))
    run = whole()
    run["rows"] += whole("clean")["rows"]
    assert readme.figures_readme(text, {}) == text
    bare = readme.figures_readme(text, {"ladder": run})
    assert "<!-- table-production:begin -->\n<!-- table-production:end -->" in bare
    full = readme.figures_readme(text, {"ladder": run, "production": run, "host": calls()})
    table = full.split("<!-- table-production:begin -->")[1].split("<!-- table-production:end -->")[0]
    assert table.count("| dense |") == 18 and "| 32 of 256 x 7168 x 2048 | contiguous |" in table
    assert "us, L2 clean |" in table and "kernel sources abcdefabcdef" in table and "Geometric mean" in table
    table = full.split("<!-- table-host:begin -->")[1]
    assert "| gemm_ladder.fp8_gemm_nt | 10 us |" in table and "A CPU, 1; " in table


def test_what_is_not_there_is_not_drawn(tmp_path: Path) -> None:
    assert draw.recorded(tmp_path) == {}
    (tmp_path / "host.json").write_text((measured.DATA / "host.json").read_text())
    assert list(draw.recorded(tmp_path)) == ["host"]
