"""The table of the production kernels: its rows, their operands, and the command that measures them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import gemm_ladder
import pytest
import torch
from gemm_ladder import api, checks, launch, ops, precompiling
from gemm_ladder.cli import main
from gemm_ladder.errors import InputError, LaunchError
from gemm_ladder.figures import measured as measurements
from gemm_ladder.measure import operands, peers, production_rows, records, session, shapes, timing
from gemm_ladder.measure.product import How
from gemm_ladder.measure.shapes import PRODUCTS, Product, Shape
from gemm_ladder.production import config, launching

CPU = torch.device("cpu")
SMALL = (
    Product("dense", 1, Shape(64, 128, 256)),
    Product("contiguous", 3, Shape(100, 136, 256)),
    Product("masked", 2, Shape(40, 128, 384)),
)


# --------------------------------------------------------------------------------------------- the rows


def test_the_table() -> None:
    assert [sum(one.kind == kind for one in PRODUCTS) for kind in ("dense", "contiguous", "masked")] == [
        *(18, 6, 6)
    ]
    assert len(set(map(str, PRODUCTS))) == 30
    assert {one.shape for one in PRODUCTS if one.kind == "dense"} == set(shapes.DEEPSEEK_V3)


def test_numbers_of_valid_rows() -> None:
    """They are those of DeepGEMM's tests: with others, the results would not compare."""
    counts = {(one.kind, one.groups): one.counts for one in PRODUCTS}
    assert counts["contiguous", 4] == (9884, 9459, 7801, 7007)
    assert counts["masked", 4] == (308, 295, 243, 218)
    assert sum(counts["contiguous", 32]) == 8747
    for product in PRODUCTS:
        assert len(product.counts) == product.groups
        assert all(0.7 * product.shape.m <= count <= 1.3 * product.shape.m for count in product.counts)


def test_operations_and_bytes_count_valid_rows() -> None:
    us = 100.0
    for product in SMALL:
        row = records.row("s9_production", product, "dirty", timing.Timing(us, us, us), 0.001)
        assert tuple(row) == measurements.ROW_FIELDS
        assert (row["kind"], row["groups"], row["m"], row["n"], row["k"]) == (*product[:2], *product.shape)
        _, n, k = product.shape
        rows = sum(product.counts)
        assert row["tflops"] == round(2 * rows * n * k / us / 1e6, 3)
        weights = product.groups * (n * k + 4 * -(-n // 128) * (k // 128))
        assert row["gb_s"] == round((rows * (k + 4 * (k // 128) + 2 * n) + weights) / us / 1e3, 1)
    dense = SMALL[0]
    assert records.row("s1_naive", dense, "dirty", timing.Timing(us, us, us), 0.001) == records.row(
        "s1_naive", dense.shape, "dirty", timing.Timing(us, us, us), 0.001
    )


def test_rows_are_chosen_by_kind_and_name() -> None:
    assert shapes.products("all") == PRODUCTS
    assert shapes.products("masked") == PRODUCTS[24:]
    chosen = shapes.products("64x2112x7168, contiguous:8x4096x7168x2048,64x2112x7168")
    assert chosen == (
        Product("dense", 1, Shape(64, 2112, 7168)),
        Product("contiguous", 8, Shape(4096, 7168, 2048)),
    )
    assert all(shapes.products(str(product)) == (product,) for product in PRODUCTS)


@pytest.mark.parametrize("text", ["", "dens", "64x2112", "masked:4x256x7168", "dense,"])
def test_no_row_of_the_table(text: str) -> None:
    with pytest.raises(InputError, match="is no row of the table"):
        shapes.products(text)


# ------------------------------------------------------------------------------------------ the operands


@pytest.mark.parametrize("product", SMALL, ids=str)
def test_operands_are_those_of_the_groups(product: Product) -> None:
    """The call's result, on the CPU, is each group's reference."""
    made = operands.make_operands(product, CPU)
    assert tuple(part.shape.m for part in made.parts) == product.counts
    error = made.errors(operands.interface_call(api, made)(), made.references())
    assert error.right and error.relative > 0
    assert made.lhs[1].stride()[-2:] == (1, -(-made.lhs[0].shape[-2] // 4) * 4)


def test_padding_rows() -> None:
    contiguous, masked = (operands.make_operands(product, CPU) for product in SMALL[1:])
    assert operands.held_rows(SMALL[1]) == [128, 128, 128]
    assert contiguous.rows.shape == (384,)
    for made in (contiguous, masked):
        assert [part.a.shape[0] for part in made.blocks] == [128] * made.product.groups
    for group, rows in enumerate(contiguous.rows.split(128)):
        count = SMALL[1].counts[group]
        assert (rows[:count] == group).all() and (rows[count:] == -1).all()
    assert masked.lhs[0].shape == (2, shapes.MASKED_MAX_M, 384)
    assert tuple(masked.rows.tolist()) == SMALL[2].counts


@pytest.mark.parametrize("product", SMALL, ids=str)
def test_a_wrong_group_is_found(product: Product) -> None:
    """Even where only its last valid row is wrong."""
    made = operands.make_operands(product, CPU)
    out = operands.interface_call(api, made)()
    made.results(out)[-1][-1] *= 2
    assert not made.errors(out, made.references()).right


@pytest.mark.parametrize("kind", operands.NAMES)
def test_either_generation_of_a_library(kind: str) -> None:
    made = operands.make_operands(next(one for one in SMALL if one.kind == kind), CPU)
    first = ModuleType("first_generation")
    with pytest.raises(AttributeError, match="first_generation has none of "):
        operands.interface_call(first, made)
    name = operands.NAMES[kind][-1]
    setattr(first, name, getattr(api, name))
    assert made.errors(operands.interface_call(first, made)(), made.references()).right
    assert all(hasattr(gemm_ladder, name) for name in operands.NAMES[kind])


# --------------------------------------------------------------------------------------------- measuring


def measured(product: Product) -> session.Measured:
    """measure_row on the CPU, with a timer that runs each call once."""
    result = session.Measured(meta=dict.fromkeys(measurements.META_FIELDS, "1"))

    def once(call: Callable[[], object], l2: str, calls: int) -> list[float]:
        call()
        return [100.0] * calls

    production_rows.measure_row(product, How(("dirty", "clean"), CPU, once, lambda text: None), result)
    return result


@pytest.mark.parametrize("product", SMALL, ids=str)
def test_measure_row(product: Product) -> None:
    result = measured(product)
    assert not result.wrong and result.errors.keys() == {"s9_production"}
    measurements.check(result.data, "result")
    found = {(row["impl"], row["l2"]): row for row in result.rows}
    for impl, most in {"s9_production": 5e-3, "cublas_bf16": 1e-2}.items():
        for l2 in timing.L2_STATES:
            assert found[impl, l2]["kind"] == product.kind and 0 < found[impl, l2]["rel_err"] < most
    missing = {miss["impl"]: miss["reason"] for miss in result.missing}
    assert missing["deep_gemm"] == "No module named 'deep_gemm'"
    assert {name for name, _ in found} | missing.keys() == {
        *("s9_production", *peers.PEERS),
        *(["torch_grouped"] if product.kind == "contiguous" else []),
    }


@pytest.mark.parametrize("product", [one for one in PRODUCTS if one.kind == "contiguous"], ids=str)
def test_torch_takes_the_grouped_operands(product: Product) -> None:
    """On the meta device torch checks shapes and strides, and computes nothing."""
    _, n, k = product.shape
    rows = sum(operands.held_rows(product))
    a, b = (
        torch.empty(*sizes, dtype=torch.float8_e4m3fn, device="meta")
        for sizes in ((rows, k), (product.groups, n, k))
    )
    made = operands.Operands(product, [], operands.held_rows(product), [], [], (a, None), (b, None), None)
    assert production_rows.torch_grouped(made)().shape == (rows, n)


def test_a_wrong_result_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(a: object, b: object, d: torch.Tensor, *rest: object) -> None:
        d.fill_(1)

    monkeypatch.setattr(gemm_ladder, "m_grouped_fp8_gemm_nt_masked", wrong)
    result = measured(SMALL[2])
    assert "s9_production" not in {row["impl"] for row in result.rows}
    assert len(result.wrong) == 1 and result.wrong[0].startswith("s9_production is wrong at masked:2x40x128x")


def test_a_call_that_fails_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*arguments: object) -> None:
        raise LaunchError("the production kernel: too many\nresources")

    monkeypatch.setattr(gemm_ladder, "fp8_gemm_nt", fails)
    result = measured(SMALL[0])
    assert result.wrong == ["s9_production fails at 64x128x256: the production kernel: too many resources"]
    assert {row["impl"] for row in result.rows} >= {"cublas_bf16"}


# ------------------------------------------------------------------------------------------- the command


@pytest.fixture
def compiled(fake_gpu: None, monkeypatch: pytest.MonkeyPatch) -> list[config.Config]:
    """The CPU in a Hopper GPU's place, and a short table. Returns what is compiled."""
    found: list[config.Config] = []
    monkeypatch.setattr(launch, "usable_sms", lambda device, limit=0: 132)
    monkeypatch.setattr(precompiling, "build_all", lambda configs, target: found.extend(configs))
    monkeypatch.setattr(shapes, "PRODUCTS", SMALL)
    monkeypatch.setattr(production_rows, "PRODUCTS", SMALL)
    return found


def test_some_rows_of_the_table(
    compiled: list[config.Config], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mine.json"
    argv = ["production", "--rows", "dense,masked:2x40x128x384", "--l2", "clean", "--json", str(path)]
    assert main(argv) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("Found NVIDIA H100: every row is checked, then timed beside its peers.")
    for words in (
        "L2 cold and clean:",
        "2 of 40 x 128 x 384",
        "s9_production",
        "left as they are",
        "Written",
    ):
        assert words in printed
    assert "3 of 100" not in printed and "dirty" not in printed
    data = measurements.load(path)
    assert {row["kind"] for row in data["rows"]} == {"dense", "masked"}
    assert [one.kind for one in compiled] == ["dense", "masked"]
    assert data["meta"]["configurations"] == {
        str(product): one.name for product, one in zip((SMALL[0], SMALL[2]), compiled, strict=True)
    }


def test_the_whole_table_is_kept(compiled: list, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = []
    monkeypatch.setattr(session, "keep", lambda *arguments, **options: kept.append((arguments, options)))
    assert production_rows.main([]) == production_rows.main(["--l2", "dirty"]) == 0
    assert production_rows.main(["--rows", "masked,contiguous,dense"]) == 0
    assert [whole for (_, _, whole), _ in kept] == [True, False, True]
    assert all(options == {"record": "production.json"} for _, options in kept)
    rows = kept[0][0][0].rows
    assert {(row["kind"], row["l2"]) for row in rows if row["impl"] == "s9_production"} == {
        (product.kind, l2) for product in SMALL for l2 in ("dirty", "clean")
    }


def test_configurations_are_those_of_the_calls(compiled: list, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call chooses its configuration by the sizes of its tensors; the same one has to be compiled ahead."""
    asked: list[tuple] = []

    def queue(call: checks.CheckedCall, expected_m: int = 0) -> None:
        asked.append((call.kind, call.m, call.n, call.k, call.groups, expected_m))
        raise LaunchError("there is no GPU")

    monkeypatch.setattr(ops, "run", queue)
    for product in SMALL:
        with pytest.raises(LaunchError):
            operands.interface_call(api, operands.make_operands(product, CPU))()
    expected = production_rows.configurations(SMALL, CPU)
    for (kind, m, n, k, groups, expected_m), product in zip(asked, SMALL, strict=True):
        found = launching.configuration(kind, m, n, k, groups, expected_m, 132, "NVIDIA H100")
        assert found == expected[product]
    assert [key[0] for key in asked] == [product.kind for product in SMALL]


def test_without_a_gpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for argv, said in (
        (["production"], "found no CUDA GPU that torch can use; what is measured is time, and a Hopper GPU"),
        (["production", "--rows", "64x64x64"], "'64x64x64' is no row of the table; all, dense,"),
    ):
        assert main(argv) == 2
        printed = capsys.readouterr()
        assert printed.out == "" and printed.err.count("\n") == 1 and said in printed.err


@pytest.mark.gpu
def test_on_gpu() -> None:
    device, _ = session.find_gpu()
    result = production_rows.on_gpu(SMALL, ["dirty"], device)
    assert not result.wrong
    measurements.check(result.data, "result")
    assert [row["kind"] for row in result.rows if row["impl"] == "s9_production"] == [
        product.kind for product in SMALL
    ]
