"""The measurement of the training kernels: its products, its errors, and the command, with the CPU in a GPU's
place."""

from __future__ import annotations

import json
from pathlib import Path

import gemm_ladder as gl
import pytest
import torch
from gemm_ladder.cli import main
from gemm_ladder.errors import InputError
from gemm_ladder.figures import measured
from gemm_ladder.measure import peers, records, timing, training
from gemm_ladder.measure.training import PRODUCTS, Gradient, Product

CPU = torch.device("cpu")
SMALL = "130x72x256,k_grouped:3x64x40x600"
RECORD = measured.DATA / "training.json"


@pytest.fixture(autouse=True)
def no_deep_gemm(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise ImportError("no module named deep_gemm")

    monkeypatch.setattr(peers, "deep_gemm_library", refuse)


def test_products() -> None:
    assert len(set(map(str, PRODUCTS))) == len(PRODUCTS)
    assert training.products("all") == PRODUCTS
    assert all(training.products(str(one)) == (one,) for one in PRODUCTS)
    dense, grouped = training.products(SMALL)
    assert (dense.kind, dense.groups, dense.shape, dense.ks) == ("dense", 1, (130, 72, 256), [256])
    assert (grouped.kind, grouped.groups, grouped.shape) == ("k_grouped", 3, (64, 40, 600))
    assert all(k % 128 == 0 and 420 <= k <= 780 + 127 for k in grouped.ks) and len(set(grouped.ks)) > 1
    for text in ("", "64x64", "k_grouped:64x64x64", "masked:2x64x64x64", "64x0x64", "2x64x64x64"):
        with pytest.raises(InputError, match="is no product"):
            training.products(text)


def test_operations_and_bytes() -> None:
    """D is read and written, and every run of 128 of A and of B has a scale."""
    (product,) = training.products("k_grouped:3x64x40x600")
    row = records.row("training", product, "dirty", timing.Timing(1.0, 1.0, 1.0), 0.0)
    k = sum(product.ks)
    assert row["tflops"] == round(2 * 64 * 40 * k / 1e6, 3)
    assert row["gb_s"] == round((104 * (k + 4 * k / 128) + 3 * 8 * 64 * 40) / 1e3, 1)
    assert Gradient(1, 1, 130).bytes == 2 * (130 + 8) + 8


@pytest.mark.parametrize("text", SMALL.split(","))
def test_a_wrong_result_is_seen(text: str) -> None:
    (product,) = training.products(text)
    problem = training.make_problem(product, CPU)
    references = problem.reference()
    call = training.interface_call(gl, problem)
    out = call()
    assert problem.errors(out, references).relative < 1e-6
    for place in ((0, 0, 0), (-1, -1, -1)):
        wrong = out.clone()
        wrong[place] += 100
        assert not problem.errors(wrong, references).right
    assert not problem.errors(call(), references).right, "a second call adds again"


def test_the_first_generation_is_called_as_it_wants() -> None:
    class First:
        wgrad_gemm_fp8_fp8_fp32_nt = staticmethod(gl.wgrad_gemm_fp8_fp8_fp32_nt)
        k_grouped_wgrad_gemm_fp8_fp8_fp32_nt = staticmethod(gl.k_grouped_wgrad_gemm_fp8_fp8_fp32_nt)

    for product in training.products(SMALL):
        problem = training.make_problem(product, CPU)
        out = training.interface_call(First, problem)()
        assert problem.errors(out, problem.reference()).relative < 1e-6


def test_the_command(fake_gpu, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "training.json"
    assert main(["training", "--products", SMALL, "--json", str(path)]) == 0
    printed = capsys.readouterr().out
    assert "they take every product and state of L2 at once" in printed
    assert "deep_gemm at 2 shapes: no module named deep_gemm" in printed
    data = json.loads(path.read_text())
    assert [(row["kind"], row["impl"], row["l2"]) for row in data["rows"]] == [
        (kind, "training", l2) for kind in ("dense", "k_grouped") for l2 in ("dirty", "clean")
    ]
    assert set(data["meta"]["configurations"]) == set(SMALL.split(","))
    assert "weight" not in data["meta"] and training.PROTOCOL in data["meta"]["protocol"]


def test_configurations(fake_gpu, capsys: pytest.CaptureFixture[str]) -> None:
    names = "128x64_a8_nothing_s7_b2_down8,256x32_a4_A_s5_b2_down8"
    assert main(["training", "--products", SMALL, "--configs", names, "--l2", "dirty"]) == 0
    printed = capsys.readouterr().out
    for name in names.split(","):
        assert f"1.000  fp8_gemm_1d1d_{name} (2 products)" in printed
    assert main(["training", "--configs", "128x64"]) == 2
    assert "'128x64' is no configuration" in capsys.readouterr().err


@pytest.mark.skipif(not RECORD.exists(), reason="nothing is recorded yet")
def test_the_record() -> None:
    """Every product in both states of L2, with DeepGEMM in the same run."""
    data = measured.load(RECORD)
    keys = {
        (row["impl"], row["l2"], row["kind"], row["groups"], row["m"], row["n"], row["k"])
        for row in data["rows"]
    }
    for impl in ("training", "deep_gemm"):
        for l2 in ("dirty", "clean"):
            assert {(impl, l2, one.kind, one.groups, *one.shape) for one in PRODUCTS} <= keys
    for row in data["rows"]:
        product = Product(row["kind"], row["groups"], Gradient(row["m"], row["n"], row["k"]))
        flops = sum(part.flops for part in product.parts)
        assert row["tflops"] == pytest.approx(flops / row["us"] / 1e6, rel=5e-3)
